"""Identifiers and resource names."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Sequence

from chassis.errors import InvalidArgument

#: Crockford's base 32, lower-case: no i, l, o, u.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
#: Characters of an id made here: 48 bits of milliseconds and 80 random bits.
ID_LENGTH = 26
#: Longest id accepted from outside.
ID_LENGTH_MAX = 128

_RANDOM_BITS = 80
_ID_PATTERN = re.compile(r"[A-Za-z0-9._~:\-]+")
_ID_RULE = "may hold only letters, digits and . _ ~ - :"


#: Two digits at a time: half the steps, and ids are made by the thousand.
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
_PAIR_SHIFTS = range(10 * (ID_LENGTH // 2 - 1), -1, -10)


def _encode(value: int) -> str:
    return "".join([_PAIRS[value >> shift & 1023] for shift in _PAIR_SHIFTS])


class _Ulids:
    """Makes ids that sort by time, and rise within one process even inside a millisecond or when the clock
    steps back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        #: All but the last two digits of the last one: of several made in one millisecond it is mostly the
        #: same, and chance is asked for the first of them alone.
        self._head = ""

    def next(self) -> str:
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            if now_ms > self._last >> _RANDOM_BITS:
                self._last = now_ms << _RANDOM_BITS | int.from_bytes(os.urandom(_RANDOM_BITS // 8))
                self._head = _encode(self._last)[:-2]
            else:
                self._last += 1
                if not self._last & 1023:
                    self._head = _encode(self._last)[:-2]
            return self._head + _PAIRS[self._last & 1023]


_ulids = _Ulids()


def new_id(prefix: str = "") -> str:
    """`prefix` and 26 characters of lower-case Crockford base 32 (a ULID); rises within a process."""
    return prefix + _ulids.next()


def stable_id(*parts: str | int) -> str:
    """26 characters that depend on the parts alone, order and boundaries included: for consumers that must be
    idempotent.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return _encode(int.from_bytes(digest.digest()[:17]) >> 6)


def check_id(field: str, value: str, max_length: int = ID_LENGTH_MAX) -> str:
    """Returns `value`; InvalidArgument(field) when empty, longer than `max_length` or with a character not
    allowed.
    """
    if not value:
        raise InvalidArgument(field=field, why="must not be empty")
    if len(value) > max_length:
        raise InvalidArgument(field=field, why=f"must be at most {max_length} characters, got {len(value)}")
    if not _ID_PATTERN.fullmatch(value):
        raise InvalidArgument(field=field, why=_ID_RULE)
    return value


def resource_name(collection: str, id: str) -> str:
    """`resource_name("customers", "7")` is "customers/7"."""
    return f"{collection}/{id}"


def parse_name(field: str, collection: str, name: str) -> str:
    """The id in a name "<collection>/<id>"; InvalidArgument(field) for any other form."""
    start, _, id = name.partition("/")
    if start != collection or "/" in id or len(name) > ID_LENGTH_MAX + 64:
        return parse_names(field, (collection,), name)[0]
    return check_id(field, id)


def parse_names(field: str, collections: Sequence[str], name: str) -> tuple[str, ...]:
    """The ids in a nested name: ("tickets", "notes") reads "tickets/7/notes/2" as ("7", "2")."""
    form = "/".join(f"{collection}/{{id}}" for collection in collections)
    if len(name) > (ID_LENGTH_MAX + 64) * len(collections):
        raise InvalidArgument(field=field, why=f"must have the form {form}")
    parts = name.split("/")
    if len(parts) != 2 * len(collections) or parts[::2] != list(collections):
        raise InvalidArgument(field=field, why=f"must have the form {form}")
    return tuple(check_id(field, part) for part in parts[1::2])
