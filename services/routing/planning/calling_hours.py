"""When somebody may be called: legal and quiet hours by the clock where they are. Pure, but for the tables of
number plans.

1. Somebody is where they say, else where their number may be: a number without a place (mobile phones of most
   countries) may be in several zones, and then the hours must allow the call in all of them. An unknown
   number's place allows nothing: `never_why` says of whom that will not change by waiting.
2. Legal hours are windows of the local day by weekday; on holidays those of Sunday hold. Quiet hours are
   taken out of them. A window ends at the latest moment that a call may begin, not end.

The default, 8 to 21 o'clock, is the window of 47 CFR 64.1200(c)(1), and inside what operators elsewhere
observe; where the law is narrower, it is a setting.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from chassis.errors import InvalidArgument

#: Minutes of a day.
DAY_MINUTES = 1_440
#: Windows of one weekday, and zones of one number.
WINDOWS_MAX, ZONES_MAX = 10, 40

#: [from, until) in minutes of the local day.
Window = tuple[int, int]
_UNKNOWN = "Etc/Unknown"
_NO_PLACE = "the number tells no place whose hours would allow a call, and no time_zone is given: not called"


@dataclass(frozen=True, kw_only=True, slots=True)
class CallingHours:
    """What a place allows."""

    #: By weekday, 0 is Monday.
    legal: tuple[tuple[Window, ...], ...] = (((480, 1_260),),) * 7
    #: Every day, beside them; a window may pass midnight.
    quiet: tuple[Window, ...] = ()
    #: Whether a day is a holiday there.
    is_holiday: Callable[[dt.date], bool] = lambda _: False

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the window."""
        if len(self.legal) != 7:
            raise InvalidArgument(field="legal", why="must have seven weekdays")
        for day, windows in enumerate(self.legal):
            _check(f"legal[{day}]", windows, wraps=False)
        _check("quiet", self.quiet, wraps=True)

    def allows(self, ms: int, zones: Iterable[str]) -> bool:
        """Whether somebody who may be in any of these zones may be called. Raises InvalidArgument for a name
        that is no zone.
        """
        named = list(zones)
        if not named or len(named) > ZONES_MAX or _UNKNOWN in named:
            return False
        return all(self._allows_at(dt.datetime.fromtimestamp(ms / 1000, _zone(name))) for name in named)

    def _allows_at(self, local: dt.datetime) -> bool:
        minute = local.hour * 60 + local.minute
        day = 6 if self.is_holiday(local.date()) else local.weekday()
        if not any(first <= minute < last for first, last in self.legal[day]):
            return False
        return not any(_inside(minute, window) for window in self.quiet)


def _check(field: str, windows: Sequence[Window], *, wraps: bool) -> None:
    if len(windows) > WINDOWS_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {WINDOWS_MAX} windows")
    for place, (first, last) in enumerate(windows):
        ordered = first != last if wraps else first < last
        if not (0 <= first < DAY_MINUTES and 0 <= last <= DAY_MINUTES and ordered):
            raise InvalidArgument(
                field=f"{field}[{place}]", why="must be minutes of a day, the end after the start"
            )


def _inside(minute: int, window: Window) -> bool:
    first, last = window
    return first <= minute < last if first < last else minute >= first or minute < last


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise InvalidArgument(field="time_zone", why='must be an IANA zone such as "Asia/Shanghai"') from None


def zones_of(number: str, own_zone: str = "") -> tuple[str, ...]:
    """Where somebody with this number (E.164) may be; what they say themselves wins. Empty for a number
    that can be none. Raises InvalidArgument for a zone that is none.
    """
    if own_zone:
        _zone(own_zone)
        return (own_zone,)
    import phonenumbers
    from phonenumbers import timezone

    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return ()
    if not phonenumbers.is_valid_number(parsed):
        return ()
    return tuple(name for name in timezone.time_zones_for_number(parsed) if name != _UNKNOWN)


def never_why(number: str, own_zone: str = "") -> str:
    """Why no hour allows to call somebody with this number, however long it is waited; "" when some may.
    Raises InvalidArgument for a zone that is none.
    """
    if own_zone:
        _zone(own_zone)
        return ""
    zones = zones_of(number)
    if zones:
        return "" if len(zones) <= ZONES_MAX else _NO_PLACE
    import phonenumbers

    try:
        fits = phonenumbers.is_valid_number(phonenumbers.parse(number))
    except phonenumbers.NumberParseException:
        fits = False
    return _NO_PLACE if fits else "the number fits no numbering plan: not called"
