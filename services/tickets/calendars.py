"""Working time: what of a stretch of time counts, and when so much of it will have passed. Pure.

Rules. An instant counts when its local time of day lies in a window of its local date. A date's windows are
those of a special day if it is one; else none on a public holiday; else Monday's (or the first weekday's that
has any) on a weekend day that was made a workday; else those of its weekday. Where clocks change, an hour
that comes twice counts twice and one that is left out never.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

#: Furthest that is looked ahead or back, days.
DAYS_MAX = 3_700
#: Most days whose windows are remembered, over all calendars.
REMEMBERED_DAYS_MAX = 16_384
#: Most windows a day.
WINDOWS_MAX = 8
#: Most special days.
SPECIAL_DAYS_MAX = 1_000
DAY_MINUTES = 1_440

#: (first minute inside, first minute after) since local midnight.
Window = tuple[int, int]
#: (from, to) in epoch ms.
Span = tuple[int, int]

_HOUR_S = 3_600
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calendar:
    """One version of a working calendar. Equal calendars are equal by value; hashed by id and version."""

    #: `{calendar}@{version}`.
    id: str
    #: IANA zone.
    zone: str
    #: Windows of Monday to Sunday, each sorted.
    week: tuple[tuple[Window, ...], ...]
    #: Public holidays and what they are called.
    holidays: Mapping[date, str] = field(default_factory=dict)
    #: Weekend days that are workdays.
    moved: frozenset[date] = frozenset()
    #: Days unlike others.
    special: Mapping[date, tuple[Window, ...]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.id)


def windows_of(calendar: Calendar, day: date) -> tuple[tuple[Window, ...], str]:
    """A date's windows and why it has these."""
    if day in calendar.special:
        return calendar.special[day], "special day"
    if day in calendar.moved:
        return next((windows for windows in calendar.week if windows), ()), "moved workday"
    if day in calendar.holidays:
        return (), f"holiday: {calendar.holidays[day]}"
    return calendar.week[day.weekday()], "working hours"


def problems_of(calendar: Calendar) -> list[tuple[str, str]]:
    """(field, what is wrong) for each bad part; empty for a sound calendar."""
    found = []
    days = [(f"windows of weekday {index + 1}", windows) for index, windows in enumerate(calendar.week)]
    days += [(f"special_days {day}", windows) for day, windows in calendar.special.items()]
    for name, windows in days:
        where = name.split(" ")[0]
        if len(windows) > WINDOWS_MAX:
            found.append((where, f"{name}: at most {WINDOWS_MAX} windows a day"))
        for start, end in windows:
            if not 0 <= start < end <= DAY_MINUTES:
                found.append((where, f"{name}: {start} to {end} is not a window within a day"))
        for (_, end), (start, _) in itertools.pairwise(windows):
            if start < end:
                found.append((where, f"{name}: windows overlap at minute {start}"))
    if not any(calendar.week):
        found.append(("windows", "a calendar without working time would never let anything be due"))
    return found


def _offset_s(zone: ZoneInfo, instant_s: int) -> int:
    shift = datetime.fromtimestamp(instant_s, zone).utcoffset()
    return int(shift.total_seconds()) if shift is not None else 0


def _segments(zone: ZoneInfo, first_s: int, end_s: int) -> Iterator[tuple[int, int, int]]:
    """(from, to, offset) of the stretches of [first, end) with one offset from UTC."""
    start, offset = first_s, _offset_s(zone, first_s)
    for probe in range(first_s + _HOUR_S, end_s + _HOUR_S, _HOUR_S):
        probe = min(probe, end_s)
        new = _offset_s(zone, probe)
        if new == offset:
            continue
        low, high = probe - _HOUR_S, probe
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset_s(zone, middle) == offset else (low, middle)
        yield start, high, offset
        start, offset = high, new
    yield start, end_s, offset


@lru_cache(maxsize=REMEMBERED_DAYS_MAX)
def _spans(calendar: Calendar, day: date) -> tuple[Span, ...]:
    """The stretches of a local date that count, epoch ms, sorted and apart."""
    windows, _ = windows_of(calendar, day)
    if not windows:
        return ()
    midnight = (day - _EPOCH).days * 86_400
    found: list[Span] = []
    # no zone is further from UTC than 15 hours
    for first, end, offset in _segments(
        ZoneInfo(calendar.zone), midnight - 15 * _HOUR_S, midnight + 39 * _HOUR_S
    ):
        for start_minute, end_minute in windows:
            low = max(first, midnight + start_minute * 60 - offset)
            high = min(end, midnight + end_minute * 60 - offset)
            if low < high:
                found.append((low * 1000, high * 1000))
    return tuple(sorted(found))


def _day_of(calendar: Calendar, instant_ms: int) -> date:
    return datetime.fromtimestamp(instant_ms // 1000, ZoneInfo(calendar.zone)).date()


def spans_from(calendar: Calendar, start_ms: int) -> Iterator[Span]:
    """The stretches that count from an instant on, in order, for at most `DAYS_MAX` days."""
    # The day before too: where clocks are put back over midnight a date's stretches reach into the next.
    day = _day_of(calendar, start_ms) - timedelta(days=1)
    for _ in range(DAYS_MAX):
        for low, high in _spans(calendar, day):
            if high > start_ms:
                yield max(low, start_ms), high
        day += timedelta(days=1)


def elapsed_ms(calendar: Calendar | None, start_ms: int, end_ms: int) -> int:
    """How much of [start, end) counts; all of it without a calendar."""
    if end_ms <= start_ms:
        return 0
    if calendar is None:
        return end_ms - start_ms
    total = 0
    for low, high in spans_from(calendar, start_ms):
        if low >= end_ms:
            break
        total += min(high, end_ms) - low
    return total


def add_ms(calendar: Calendar | None, start_ms: int, working_ms: int) -> int:
    """The first instant by which `working_ms` of working time have passed since `start_ms`; `start_ms` itself
    for nothing or less. Beyond `DAYS_MAX` days the end of what was looked at."""
    if working_ms <= 0:
        return start_ms
    if calendar is None:
        return start_ms + working_ms
    high = start_ms
    for low, high in spans_from(calendar, start_ms):
        if high - low >= working_ms:
            return low + working_ms
        working_ms -= high - low
    return high


def stretches(
    calendar: Calendar | None, start_ms: int, end_ms: int, most: int
) -> list[tuple[int, int, bool, str]]:
    """(from, to, counted, why) that cover [start, end), oldest first, at most `most`."""
    if calendar is None:
        return [(start_ms, end_ms, True, "every hour counts")] if start_ms < end_ms else []
    found: list[tuple[int, int, bool, str]] = []
    at = start_ms
    for low, high in spans_from(calendar, start_ms):
        if low >= end_ms or len(found) + 2 > most:
            break
        if low > at:
            found.append((at, low, False, _why_not(calendar, at, low)))
        at = min(high, end_ms)
        found.append((low, at, True, windows_of(calendar, _day_of(calendar, low))[1]))
    if at < end_ms and len(found) < most:
        found.append((at, end_ms, False, _why_not(calendar, at, end_ms)))
    return found


def _why_not(calendar: Calendar, low: int, high: int) -> str:
    """What kept a stretch from counting: the holidays in it by name, else that nobody works then."""
    day, last = _day_of(calendar, low), _day_of(calendar, max(low, high - 1))
    names: list[str] = []
    while day <= last and len(names) < 8:
        windows, why = windows_of(calendar, day)
        if not windows and why != "working hours" and why not in names:
            names.append(why)
        day += timedelta(days=1)
    return ", ".join(names) or "outside working hours"
