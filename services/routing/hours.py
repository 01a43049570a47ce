"""When a region is open: business hours by weekday, public holidays, moved workdays. Pure but for the
calendars that the `holidays` library brings; no clock.

The rules, in prose:

1. A rule is days and windows: `Mo-Fr 08:00-20:00`, `Sa,Su 09:00-12:00,14:00-18:00`, `PH 10:00-16:00`,
   `Su off`. Without days it holds for every weekday; `24/7` is `Mo-Su 00:00-24:00` and `PH 00:00-24:00`.
2. A window ends before the minute it names. One that ends at or before its beginning runs over midnight and
   belongs to the day on which it begins; `24:00` is midnight at the end of the day.
3. Windows of several rules for one day add up; overlapping ones are one. `off` alone says that a day has
   none.
4. A public holiday of the region's calendar has the windows of `PH`, and none when no rule names `PH`. A
   window that began the day before is not cut by it.
5. A moved workday (in China a Saturday or Sunday that is worked for a long holiday) has the windows of the
   first weekday from Monday to Friday that has any.
6. Times are those that the clock on the region's wall shows: an hour that comes twice in autumn is open
   twice, one that is skipped in spring is not there.
7. Without any rule a region is always open, whatever its calendar says.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import holidays

from chassis.errors import InvalidArgument

DAY_MINUTES = 1_440
#: Rules of one region, and windows of one rule.
RULES_MAX = 50
WINDOWS_PER_RULE_MAX = 12
#: How far ahead an opening is looked for.
LOOK_AHEAD_DAYS_MAX = 40
#: Years that a calendar is asked for; beyond them nothing is a holiday.
YEAR_MIN, YEAR_MAX = 1971, 2099
#: Calendars and years kept in memory.
CALENDAR_YEARS_KEPT = 512

_DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
_HOLIDAY = "PH"
_RULE = re.compile(r"(?:(?P<days>[A-Z][A-Za-z,\- ]*?)\s+)?(?P<windows>off|24/7|[0-9][0-9:,\- ]*)")
_WINDOW = re.compile(r"([0-9]{2}):([0-9]{2})\s*-\s*([0-9]{2}):([0-9]{2})")
_CALENDAR = re.compile(r"[A-Z]{2}(?:-[A-Z0-9]{1,6})?")

#: First minute of the day and the minute after the last; beyond 1,440 it lies in the next day.
Window = tuple[int, int]
#: Index of the holiday's windows behind those of Monday to Sunday.
_PH = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A region's opening hours."""

    #: Windows of Monday to Sunday, then of public holidays; disjoint, ascending.
    days: tuple[tuple[Window, ...], ...]
    #: IANA zone whose clock the windows are read by.
    time_zone: str = "UTC"
    #: "CN", "US-CA"; no holidays when empty.
    calendar: str = ""

    def is_open(self, now_ms: int) -> bool:
        """Whether the region is open at an instant, milliseconds since 1970."""
        return self._open_at(_utc(now_ms).astimezone(_zone(self.time_zone)))

    def _open_at(self, local: dt.datetime) -> bool:
        minute = local.hour * 60 + local.minute
        today = local.date()
        if _within(self._windows(today), minute):
            return True
        return _within(self._windows(today - dt.timedelta(days=1)), minute + DAY_MINUTES)

    def _windows(self, day: dt.date) -> tuple[Window, ...]:
        """Windows that begin on a day."""
        off, moved = _calendar_year(self.calendar, day.year)
        if day in off:
            return self.days[_PH]
        if day in moved:
            return next((windows for windows in self.days[:5] if windows), ())
        return self.days[day.weekday()]

    def next_opening_ms(self, now_ms: int) -> int | None:
        """The first instant from `now_ms` on at which the region is open; None when there is none within
        `LOOK_AHEAD_DAYS_MAX` days.
        """
        if self.is_open(now_ms):
            return now_ms
        zone = _zone(self.time_zone)
        today = _utc(now_ms).astimezone(zone).date()
        for ahead in range(-1, LOOK_AHEAD_DAYS_MAX + 1):
            found = self._openings(today + dt.timedelta(days=ahead), zone, now_ms)
            if found:
                return min(found)
        return None

    def _openings(self, day: dt.date, zone: zoneinfo.ZoneInfo, after_ms: int) -> list[int]:
        """Instants after `after_ms` at which a window that begins on a day may open: its beginning, both
        times that the clock shows it, and the end of an hour that the clock skips.
        """
        instants: set[int] = set()
        for begin, end in self._windows(day):
            midnight = dt.datetime.combine(day, dt.time())
            for wall in (midnight + dt.timedelta(minutes=m) for m in _probes(begin, end)):
                for fold in (0, 1):
                    at = wall.replace(tzinfo=zone, fold=fold).astimezone(dt.UTC)
                    instants.add(round(at.timestamp()) * 1000)
        return [ms for ms in instants if ms > after_ms and self.is_open(ms)]


def _probes(begin: int, end: int) -> Iterator[int]:
    """Beginning of a window and the quarters of an hour inside: clocks are changed at such times."""
    yield begin
    yield from range(begin - begin % 15 + 15, end, 15)


def _within(windows: tuple[Window, ...], minute: int) -> bool:
    return any(begin <= minute < end for begin, end in windows)


def _utc(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms // 1000, dt.UTC)


@functools.cache
def _zone(name: str) -> zoneinfo.ZoneInfo:
    return zoneinfo.ZoneInfo(name)


@functools.lru_cache(CALENDAR_YEARS_KEPT)
def _calendar_year(calendar: str, year: int) -> tuple[frozenset[dt.date], frozenset[dt.date]]:
    """(public holidays, moved workdays) of a year."""
    if not calendar or not YEAR_MIN <= year <= YEAR_MAX:
        return frozenset(), frozenset()
    country, _, part = calendar.partition("-")
    known = holidays.country_holidays(country, subdiv=part or None, years=[year])
    return frozenset(known), frozenset(day for day in known.weekend_workdays if day.year == year)


def load() -> None:
    """Reads what the first question about a Chinese holiday would have to read (a third of a second), so
    that it is not asked on an event loop.
    """
    _calendar_year("CN", 2026)


# --- reading rules ---


def schedule(
    rules: Sequence[str], time_zone: str = "", calendar: str = "", *, field: str = "business_hours"
) -> Schedule | None:
    """The schedule that rules make; None for no rules: always open.

    Raises InvalidArgument naming the rule (`field[2]`).
    """
    if not rules:
        return None
    if len(rules) > RULES_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {RULES_MAX} rules")
    days: list[list[Window]] = [[] for _ in range(8)]
    for index, rule in enumerate(rules):
        _read(rule, days, f"{field}[{index}]")
    if not any(days):
        raise InvalidArgument(field=field, why="must have at least one window: such a region never opens")
    return Schedule(
        days=tuple(_merged(windows) for windows in days), time_zone=time_zone or "UTC", calendar=calendar
    )


def _read(rule: str, days: list[list[Window]], field: str) -> None:
    match = _RULE.fullmatch(rule.strip())
    if match is None:
        raise InvalidArgument(field=field, why='must look like "Mo-Fr 08:00-20:00" or "PH 10:00-16:00"')
    named, windows = match["days"], match["windows"]
    if windows == "24/7":
        if named:
            raise InvalidArgument(field=field, why='"24/7" stands alone')
        chosen, read = [*range(8)], [(0, DAY_MINUTES)]
    else:
        chosen = _chosen(named, field) if named else [*range(7)]
        read = [] if windows == "off" else _windows_of(windows, field)
    for day in chosen:
        days[day].extend(read)


def _chosen(named: str, field: str) -> list[int]:
    """Days by their names: "Mo-Fr,PH"."""
    found: list[int] = []
    for part in (each.strip() for each in named.split(",")):
        first, dash, last = (each.strip() for each in part.partition("-"))
        if part == _HOLIDAY:
            found.append(_PH)
        elif first in _DAYS and not dash:
            found.append(_DAYS.index(first))
        elif first in _DAYS and last in _DAYS:
            begin, end = _DAYS.index(first), _DAYS.index(last)
            found.extend((begin + i) % 7 for i in range((end - begin) % 7 + 1))
        else:
            raise InvalidArgument(field=field, why=f"names no day with {part[:20]!r}: use Mo to Su and PH")
    if len(set(found)) != len(found):
        raise InvalidArgument(field=field, why="must not name a day twice")
    return found


def _windows_of(text: str, field: str) -> list[Window]:
    """Windows in minutes: "08:00-12:00,13:00-20:00"."""
    parts = text.split(",")
    if len(parts) > WINDOWS_PER_RULE_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {WINDOWS_PER_RULE_MAX} windows")
    return [_window(part.strip(), field) for part in parts]


def _window(text: str, field: str) -> Window:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise InvalidArgument(field=field, why=f"has no window in {text[:20]!r}: use HH:MM-HH:MM")
    hours, minutes, end_hours, end_minutes = (int(part) for part in match.groups())
    begin, end = hours * 60 + minutes, end_hours * 60 + end_minutes
    if minutes > 59 or end_minutes > 59 or begin >= DAY_MINUTES or end > DAY_MINUTES:
        raise InvalidArgument(field=field, why=f"has no time of day in {text[:20]!r}: 00:00 to 24:00")
    return begin, end if end > begin else end + DAY_MINUTES


def _merged(windows: list[Window]) -> tuple[Window, ...]:
    """Windows in order, overlapping and touching ones as one."""
    merged: list[Window] = []
    for begin, end in sorted(windows):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return tuple(merged)


@functools.cache
def _calendars() -> dict[str, list[str]]:
    return holidays.list_supported_countries(include_aliases=False)


def check_calendar(field: str, name: str) -> str:
    """A holiday calendar that the library has: a country ("CN"), or a part of one ("US-CA"); "" for none.

    Raises InvalidArgument.
    """
    country, _, part = name.partition("-")
    known = not name or (
        _CALENDAR.fullmatch(name) is not None
        and country in _calendars()
        and (not part or part in _calendars()[country])
    )
    if not known:
        raise InvalidArgument(
            field=field, why='must be a country with a known calendar such as "CN", or a part of one: "US-CA"'
        )
    return name
