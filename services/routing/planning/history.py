"""A queue's past by local days and half-hours. Pure.

A day has 48 half-hours of its zone's clock; where clocks change, a half-hour that comes twice has the calls
of both, and one that is left out has none. Reports' half-hours are those of UTC: where the zone's are not
(Nepal, +05:45), the calls of one lie in two, by the time that it shares with each. Days between the first and
the last without a call count as closed.
"""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chassis.errors import InvalidArgument

#: Half-hours of a day, and their length.
SLOTS = 48
SLOT_MS = 1_800_000
#: A span of local days may be so much longer than its days: on one of them clocks go back.
CLOCKS_BACK_MS = 2 * SLOT_MS
WEEK_DAYS = 7
#: Days kept: what is older says little about tomorrow.
DAYS_MAX = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """Calls a half-hour."""

    zone: zoneinfo.ZoneInfo
    #: Without gaps, ascending.
    days: tuple[dt.date, ...]
    #: One row of 48 a day.
    calls: tuple[tuple[float, ...], ...]

    def before(self, day: dt.date) -> History:
        """What was known when that day began."""
        count = sum(each < day for each in self.days)
        return History(zone=self.zone, days=self.days[:count], calls=self.calls[:count])

    def on(self, day: dt.date) -> tuple[float, ...] | None:
        """That day's row."""
        place = (day - self.days[0]).days if self.days else -1
        return self.calls[place] if 0 <= place < len(self.days) else None


def zone_named(field: str, name: str) -> zoneinfo.ZoneInfo:
    """An IANA zone; UTC for none. Raises InvalidArgument."""
    try:
        return zoneinfo.ZoneInfo(name or "UTC")
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise InvalidArgument(field=field, why='must be an IANA zone such as "Asia/Shanghai"') from None


def slot_of(ms: int, zone: zoneinfo.ZoneInfo) -> tuple[dt.date, int]:
    """(local day, half-hour of it) that an instant lies in."""
    local = dt.datetime.fromtimestamp(ms / 1000, zone)
    return local.date(), local.hour * 2 + local.minute // 30


def start_ms(day: dt.date, slot: int, zone: zoneinfo.ZoneInfo) -> int:
    """When a half-hour begins. Of one that comes twice, the first."""
    local = dt.datetime.combine(day, dt.time(slot // 2, slot % 2 * 30), zone)
    return round(local.timestamp() * 1000)


def history(rows: Iterable[tuple[int, float]], zone: zoneinfo.ZoneInfo, *, until_ms: int) -> History:
    """From (beginning of a half-hour, calls) rows, those of the last whole day before `until_ms` at the
    latest.

    The first day is left out: nobody knows what was before the first row. So are the days behind it up to
    the next call if they are a week or more: a call that tried the queue out does not open it.
    """
    table: dict[dt.date, list[float]] = {}
    end, _ = slot_of(until_ms, zone)
    for ms, calls in rows:
        behind_ms = dt.datetime.fromtimestamp(ms / 1000, zone).minute % 30 * 60_000
        parts = ((ms, SLOT_MS - behind_ms), (ms + SLOT_MS - behind_ms, behind_ms))
        for at_ms, shared_ms in parts:
            day, slot = slot_of(at_ms, zone)
            if shared_ms and day < end:
                table.setdefault(day, [0.0] * SLOTS)[slot] += calls * shared_ms / SLOT_MS
    return of_days({day: tuple(row) for day, row in table.items()}, zone, skip_first=True)


def of_days(
    table: Mapping[dt.date, tuple[float, ...]], zone: zoneinfo.ZoneInfo, *, skip_first: bool = False
) -> History:
    """From rows by day; with `skip_first` as `history` begins."""
    if not table:
        return History(zone=zone, days=(), calls=())
    first, last = min(table), max(table)
    count = min(DAYS_MAX, (last - first).days + 1)
    days = [last - dt.timedelta(days=n) for n in range(count - 1, -1, -1)]
    if skip_first and days[0] == first:
        days = days[1:]
        empty = sum(1 for _ in itertools.takewhile(lambda day: not any(table.get(day, ())), days))
        days = days[empty:] if empty >= WEEK_DAYS else days
    closed = (0.0,) * SLOTS
    return History(zone=zone, days=tuple(days), calls=tuple(table.get(day, closed) for day in days))
