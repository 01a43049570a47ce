"""Random messages: mostly plausible, now and then hostile. A message that is wrong in one place gets past the
checks of the others, so it reaches further than one that is wrong everywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from google.api import resource_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

#: Deepest message inside a message that is filled.
DEPTH_MAX = 4
#: How often a field is left out.
ABSENT = 0.35
#: How often a value is hostile, by kind of message: none of it, a little, much.
HOSTILE = (0.0, 0.0, 0.03, 0.15)
#: How often a free text is the sender's mark, and how fields are called that hold one.
MARKED = 0.5
FREE = (
    "text",
    "title",
    "subject",
    "description",
    "summary",
    "notes",
    "body",
    "reason",
    "comment",
    "resolution",
)
#: Ids that names are made with.
IDS = ("a1", "c1", "beijing", "service", "main")

NAMES = {
    "customer": "customers/c1", "ticket": "tickets/t1", "offer": "offers/o1", "region": "regions/beijing",
    "queue": "queues/service", "agent": "agents/a1", "call": "calls/k1", "article": "articles/a1",
    "team": "teams/t1", "calendar": "calendars/c1", "flow": "flows/care", "campaign": "campaigns/c1",
    "menu": "menus/main", "skill": "skills/s1",
}  # fmt: skip
PLAUSIBLE = (
    "a", "c1", "service", "beijing", "zh-CN", "en", "+8613800138000", "anna@example.com", "Asia/Shanghai",
    "CNY", "vip", "billing", "open = true", "name", "create_time desc", "1", "12.50",
    "2f1c7b0e-7a54-4a0e-8c53-0d6b5d0a3b11",
    "话费过高", *NAMES.values(),
)  # fmt: skip
NASTY = (
    "", " ", "\x00", "a\x00b", "\ud7ff", "\u202e", "🎧" * 50, "x" * 300, "x" * 70_000, "../../etc/passwd",
    "customers/", "customers/../x", "{$gt: 1}", '{"$where": "1"}', "$", "a.b.c", "'; DROP TABLE",
    "(" * 200, "NOT " * 200,
    "__proto__", "-1", "1e309", "NaN", "2024-02-30", "+", "tel:+86", "\r\nSet-Cookie: x", "%s%s%n", "Ａ", "İ",
)  # fmt: skip
INTEGERS = (0, 1, 2, 5, 10, 60, 100, 1_000)
NASTY_INTEGERS = (-1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32)
NASTY_FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 1e300, -0.0)


class Filler:
    """Fills messages with values of one random source."""

    def __init__(self, rng: random.Random, patterns: Mapping[str, str], mark: str = "") -> None:
        """`patterns` says for each type of resource what its names look like. `mark` is written into texts
        now and then, and into nothing else: by it one tells whose words they were.
        """
        self._rng = rng
        self._mark = mark
        self._patterns = patterns
        self._hostile = 0.0

    def bits(self, count: int) -> int:
        """So many random bits."""
        return self._rng.getrandbits(count)

    def message(self, message: M) -> M:
        """The same message, filled; with how many hostile values is drawn first."""
        self._hostile = self._rng.choice(HOSTILE)
        return self.fill(message, 0)

    def fill(self, message: M, depth: int) -> M:
        """The same message, filled."""
        for one in message.DESCRIPTOR.fields:
            if self._rng.random() < ABSENT or (one.message_type is not None and depth >= DEPTH_MAX):
                continue
            if one.is_repeated:
                self._fill_many(message, one, depth)
            elif one.message_type is not None:
                inner = getattr(message, one.name)
                inner.SetInParent()
                self.fill(inner, depth + 1)
            else:
                setattr(message, one.name, self._value(one))
        return message

    def _fill_many(self, message: Message, one: FieldDescriptor, depth: int) -> None:
        count = self._rng.choice((0, 1, 1, 2, 3, 200 if self._rng.random() < self._hostile else 1))
        into = getattr(message, one.name)
        if one.message_type is None:
            into.extend(self._value(one) for _ in range(count))
        elif one.message_type.GetOptions().map_entry:
            key, value = one.message_type.fields_by_name["key"], one.message_type.fields_by_name["value"]
            for _ in range(min(count, 5)):
                if value.message_type is None:
                    into[self._value(key)] = self._value(value)
                else:
                    self.fill(into[self._value(key)], depth + 1)
        else:
            for _ in range(min(count, 20)):
                self.fill(into.add(), depth + 1)

    def _value(self, one: FieldDescriptor) -> Any:
        rng, hostile = self._rng, self._rng.random() < self._hostile
        if one.enum_type is not None:
            return rng.choice((0, 99, 2**31 - 1)) if hostile else rng.choice(one.enum_type.values).number
        if one.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if one.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            if one.type == FieldDescriptor.TYPE_BYTES:
                return rng.randbytes(rng.choice((0, 1, 16, 1_000)))
            return rng.choice(NASTY) if hostile else self._text(one)
        if one.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return rng.choice(NASTY_FLOATS) if hostile else rng.choice((0.0, 0.5, 1.0, 39.9, 116.4))
        return self._integer(one, hostile)

    def _text(self, one: FieldDescriptor) -> str:
        kind = one.GetOptions().Extensions[resource_pb2.resource_reference].type
        if one.name == "name":
            kind = one.containing_type.GetOptions().Extensions[resource_pb2.resource].type or kind
        pattern = self._patterns.get(kind)
        if pattern is not None:
            return re.sub(r"\{[^}]+\}", lambda _: self._rng.choice(IDS), pattern)
        if self._mark and one.name.endswith(FREE) and self._rng.random() < MARKED:
            return self._mark
        return NAMES.get(one.name) or self._rng.choice(PLAUSIBLE)

    def _integer(self, one: FieldDescriptor, hostile: bool) -> int:
        value = self._rng.choice(NASTY_INTEGERS if hostile else INTEGERS)
        narrow = one.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
        unsigned = one.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
        bits = 32 if narrow else 64
        return value % 2**bits if unsigned else max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, value))
