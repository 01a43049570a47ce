"""Timestamps and durations of a request are checked before any handler sees them: protobuf lets any two
numbers pass, and its own conversions fail on what is out of range, in the middle of whatever called them.

The ranges are those of google/protobuf/timestamp.proto and duration.proto.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    if 0 <= seconds <= DURATION_SECONDS_MAX and 0 <= nanos <= NANOS_MAX:
        return ""
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


class _Field(NamedTuple):
    """A field below which there may be a time, with all that its type says: to ask each message for its own
    costs more than the check.
    """

    name: str
    repeated: bool
    is_map: bool
    #: What is wrong with a value; None for a message that may hold a time further down.
    bad: Callable[[Any], str] | None
    #: The fields of that message that are looked at.
    below: list[_Field]


#: By type; of one that holds itself the list is in itself.
_PLANS: dict[Any, list[_Field]] = {}


def _plan(descriptor: Any) -> list[_Field]:
    """The fields of a message that are looked at."""
    plan = _PLANS.get(descriptor)
    if plan is not None:
        return plan
    plan = _PLANS[descriptor] = []
    for one in descriptor.fields:
        kind = one.message_type
        if kind is not None and _leads(kind, set()):
            is_map = kind.GetOptions().map_entry
            kind = kind.fields_by_name["value"].message_type if is_map else kind
            bad = _CHECKS.get(kind.full_name)
            plan.append(_Field(one.name, one.is_repeated, is_map, bad, [] if bad else _plan(kind)))
    return plan


def has_times(descriptor: Descriptor) -> bool:
    """Whether requests of this type need `check`."""
    return bool(_plan(descriptor))


def _look_at(message: Any, plan: list[_Field], path: str, found: list[tuple[str, str]]) -> None:
    """Adds what is wrong with a message, until there is enough of it."""
    for field in plan:
        name = field.name
        if not field.repeated:
            if not message.HasField(name):
                continue
            value = getattr(message, name)
            if field.bad is None:
                _look_at(value, field.below, f"{path}{name}.", found)
            elif why := field.bad(value):
                found.append((path + name, why))
            continue
        values = getattr(message, name)
        for at, value in values.items() if field.is_map else enumerate(values):
            _judge(value, field, f"{path}{name}[{at!r}]", found)
            if len(found) >= VIOLATIONS_MAX:
                return


def _judge(value: Any, field: _Field, path: str, found: list[tuple[str, str]]) -> None:
    if field.bad is None:
        _look_at(value, field.below, path + ".", found)
    elif why := field.bad(value):
        found.append((path, why))


def check(message: Message) -> None:
    """InvalidArgument with every field whose time or duration is out of range (the first few of many)."""
    found: list[tuple[str, str]] = []
    _look_at(message, _plan(message.DESCRIPTOR), "", found)
    if found:
        raise InvalidArgument.many(found[:VIOLATIONS_MAX])
