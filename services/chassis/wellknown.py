"""Timestamps and durations of a request are checked before any handler sees them: protobuf lets any two
numbers pass, and its own conversions fail on what is out of range, in the middle of whatever called them.

The ranges are those of google/protobuf/timestamp.proto and duration.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from chassis.errors import VIOLATIONS_MAX, InvalidArgument

#: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z, seconds since 1970.
SECONDS_MIN, SECONDS_MAX = -62_135_596_800, 253_402_300_799
#: Ten thousand years, seconds.
DURATION_SECONDS_MAX = 315_576_000_000
NANOS_MAX = 999_999_999

_TIMESTAMP, _DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"


def _bad_timestamp(value: Any) -> str:
    if SECONDS_MIN <= value.seconds <= SECONDS_MAX and 0 <= value.nanos <= NANOS_MAX:
        return ""
    return "must be a time of the years 1 to 9999, with 0 to 999999999 nanos"


def _bad_duration(value: Any) -> str:
    seconds, nanos = value.seconds, value.nanos
    whole = abs(seconds) <= DURATION_SECONDS_MAX and abs(nanos) <= NANOS_MAX
    if whole and (seconds >= 0 or nanos <= 0) and (seconds <= 0 or nanos >= 0):
        return ""
    return "must be at most 10000 years, with seconds and nanos of one sign"


_CHECKS = {_TIMESTAMP: _bad_timestamp, _DURATION: _bad_duration}


def _leads(descriptor: Descriptor, seen: set[str]) -> bool:
    """Whether a message of this type can hold a time."""
    if descriptor.full_name in _CHECKS:
        return True
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(_leads(one.message_type, seen) for one in descriptor.fields if one.message_type is not None)


@cache
def _plan(descriptor: Descriptor) -> tuple[tuple[str, bool, bool], ...]:
    """(name, repeated, a map) of the fields below which there may be a time."""
    found = []
    for one in descriptor.fields:
        if one.message_type is not None and _leads(one.message_type, set()):
            found.append((one.name, one.is_repeated, one.message_type.GetOptions().map_entry))
    return tuple(found)


def has_times(descriptor: Descriptor) -> bool:
    """Whether requests of this type need `check`."""
    return bool(_plan(descriptor))


def _wrong(message: Any, path: str) -> Iterator[tuple[str, str]]:
    for name, repeated, is_map in _plan(message.DESCRIPTOR):
        if not repeated:
            if message.HasField(name):
                yield from _judge(getattr(message, name), path + name)
        elif is_map:
            for key, value in getattr(message, name).items():
                yield from _judge(value, f"{path}{name}[{key!r}]")
        else:
            for index, value in enumerate(getattr(message, name)):
                yield from _judge(value, f"{path}{name}[{index}]")


def _judge(value: Any, path: str) -> Iterator[tuple[str, str]]:
    bad = _CHECKS.get(value.DESCRIPTOR.full_name)
    if bad is None:
        yield from _wrong(value, path + ".")
    elif why := bad(value):
        yield path, why


def check(message: Message) -> None:
    """InvalidArgument with every field whose time or duration is out of range (the first few of many)."""
    found = []
    for one in _wrong(message, ""):
        found.append(one)
        if len(found) == VIOLATIONS_MAX:
            break
    if found:
        raise InvalidArgument.many(found)
