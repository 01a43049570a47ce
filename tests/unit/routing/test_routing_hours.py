"""Business hours: rules, holidays, moved workdays; against a slow reference that walks minute by minute."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import holidays
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from routing.hours import DAY_MINUTES, LOOK_AHEAD_DAYS_MAX, Schedule, check_calendar, schedule

SHANGHAI = "Asia/Shanghai"
NAMES = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
MINUTE_MS = 60_000


def ms(text: str, zone: str = SHANGHAI, fold: int = 0) -> int:
    local = dt.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold)
    return round(local.timestamp()) * 1000


def made(*rules: str, zone: str = SHANGHAI, calendar: str = "CN") -> Schedule:
    result = schedule(rules, zone, calendar)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("2026-02-13T07:59", False),
        ("2026-02-13T08:00", True),
        ("2026-02-13T19:59", True),
        ("2026-02-13T20:00", False),
        ("2026-02-14T10:00", True),  # a Saturday that is worked for the Spring Festival
        ("2026-02-17T10:00", False),  # New Year's day, a Tuesday
        ("2026-02-20T10:00", False),  # a Friday off in exchange
        ("2026-02-22T10:00", False),  # an ordinary Sunday
        ("2026-02-28T10:00", True),  # the other Saturday
        ("2026-10-10T10:00", True),
        ("2026-10-07T10:00", False),
    ],
)
def test_a_week_of_the_spring_festival(at: str, is_open: bool) -> None:
    assert made("Mo-Fr 08:00-20:00").is_open(ms(at)) is is_open


@pytest.mark.parametrize(
    ("rules", "at", "is_open"),
    [
        (("24/7",), "2026-02-17T03:00", True),
        (("08:00-20:00",), "2026-02-22T10:00", True),
        (("Mo-Su 08:00-20:00", "PH 10:00-16:00"), "2026-02-17T09:00", False),
        (("Mo-Su 08:00-20:00", "PH 10:00-16:00"), "2026-02-17T10:00", True),
        (("Mo-Fr 08:00-12:00, 13:00-20:00",), "2026-02-12T12:30", False),
        (("Fr-Mo 09:00-10:00",), "2026-03-01T09:30", True),
        (("Fr-Mo 09:00-10:00",), "2026-03-03T09:30", False),
        (("Mo,We 22:00-06:00",), "2026-03-03T05:59", True),
        (("Mo,We 22:00-06:00",), "2026-03-03T22:00", False),
        (("Mo 00:00-24:00",), "2026-03-03T00:00", False),
        (("Mo 08:00-08:00",), "2026-03-03T07:59", True),
        (("Sa 09:00-12:00", "Su off"), "2026-03-07T11:59", True),
    ],
)
def test_rules(rules: tuple[str, ...], at: str, is_open: bool) -> None:
    assert made(*rules).is_open(ms(at)) is is_open


def test_a_night_that_begins_before_a_holiday_is_not_cut() -> None:
    nights = made("Mo-Su 22:00-06:00")
    assert nights.is_open(ms("2026-10-01T05:00")), "it belongs to the 30th of September"
    assert not nights.is_open(ms("2026-10-01T23:00"))


def test_no_rules_are_no_schedule() -> None:
    assert schedule([], SHANGHAI, "CN") is None


def test_it_opens_again_after_the_holidays() -> None:
    office = made("Mo-Fr 08:00-20:00")
    assert office.next_opening_ms(ms("2026-02-14T20:00")) == ms("2026-02-24T08:00")
    assert office.next_opening_ms(ms("2026-02-24T08:30")) == ms("2026-02-24T08:30")
    assert made("PH 10:00-12:00", calendar="").next_opening_ms(ms("2026-02-24T08:30")) is None


def test_an_hour_that_comes_twice_is_open_twice_and_a_skipped_one_never() -> None:
    berlin = made("Su 02:00-03:00", zone="Europe/Berlin", calendar="")
    for fold in (0, 1):
        assert berlin.is_open(ms("2026-10-25T02:30", "Europe/Berlin", fold))
    assert not berlin.is_open(ms("2026-10-25T03:00", "Europe/Berlin"))
    spring = ms("2026-03-29T00:00", "Europe/Berlin")
    assert not any(berlin.is_open(spring + i * MINUTE_MS) for i in range(DAY_MINUTES))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("", "must look like"),
        ("Mo-Fr", "must look like"),
        ("Mo-Fr 8:00-20:00", "HH:MM"),
        ("Mo-Fr 08:00-25:00", "time of day"),
        ("Mo-Fr 24:00-06:00", "time of day"),
        ("Mo-Fr 08:61-20:00", "time of day"),
        ("Xx 08:00-20:00", "names no day"),
        ("Mo-PH 08:00-20:00", "names no day"),
        ("Mo-We,Tu 08:00-20:00", "twice"),
        ("Mo 24/7", "stands alone"),
        ("Mo 08:00-12:00,", "HH:MM"),
        ("Mo " + ",".join(["08:00-09:00"] * 13), "at most 12"),
    ],
)
def test_a_bad_rule_is_named(rule: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        schedule(["Mo 08:00-09:00", rule], SHANGHAI, field="region.business_hours")
    violation = caught.value.details.field_violations[0]
    assert violation.field == "region.business_hours[1]" and why in violation.description


def test_a_region_that_never_opens_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        schedule(["Mo-Su off"], SHANGHAI)
    with pytest.raises(InvalidArgument):
        schedule(["Mo 08:00-09:00"] * 51, SHANGHAI)


@pytest.mark.parametrize("name", ["", "CN", "US", "US-CA", "JP"])
def test_calendars(name: str) -> None:
    assert check_calendar("region.holiday_calendar", name) == name


@pytest.mark.parametrize("name", ["cn", "XX", "US-XX", "CN-", "China", "CN "])
def test_a_bad_calendar_is_named(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_calendar("region.holiday_calendar", name)
    assert caught.value.details.field_violations[0].field == "region.holiday_calendar"


# --- against a reference ---

TIMES = st.integers(0, DAY_MINUTES - 1)
RULES = st.lists(
    st.tuples(
        st.lists(st.sampled_from((*NAMES, "PH")), min_size=1, max_size=4, unique=True),
        st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=4,
)
ZONES = st.sampled_from((SHANGHAI, "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"))
CALENDARS = st.sampled_from(("", "CN", "US"))


def written(rules: list[tuple[list[str], list[tuple[int, int]]]]) -> list[str]:
    def time(minute: int) -> str:
        return f"{minute // 60:02}:{minute % 60:02}"

    return [
        f"{','.join(days)} {','.join(f'{time(a)}-{time(b)}' for a, b in windows)}" for days, windows in rules
    ]


def reference(
    rules: list[tuple[list[str], list[tuple[int, int]]]], calendar: str, days: list[dt.date]
) -> set[tuple[dt.date, int]]:
    """Every open (date, minute on the wall), one minute after another."""
    book = holidays.country_holidays(calendar, years=[2026]) if calendar else None
    minutes: set[tuple[dt.date, int]] = set()
    for day in days:
        kind = NAMES[day.weekday()]
        if book is not None and day in book:
            kind = "PH"
        elif book is not None and day.weekday() > 4 and book.is_working_day(day):
            worked = [name for name in NAMES[:5] if any(name in named for named, _ in rules)]
            kind = worked[0] if worked else "none"
        for named, windows in rules:
            if kind in named:
                for begin, end in windows:
                    length = (end - begin) % DAY_MINUTES or DAY_MINUTES
                    for minute in range(begin, begin + length):
                        minutes.add((day + dt.timedelta(days=minute // DAY_MINUTES), minute % DAY_MINUTES))
    return minutes


@given(rules=RULES, zone=ZONES, calendar=CALENDARS, start=st.integers(5, 355))
@settings(max_examples=25, deadline=None)
def test_open_minute_by_minute(
    rules: list[tuple[list[str], list[tuple[int, int]]]], zone: str, calendar: str, start: int
) -> None:
    first = dt.date(2026, 1, 1) + dt.timedelta(days=start)
    days = [first + dt.timedelta(days=i) for i in range(-2, 5)]
    expected = reference(rules, calendar, days)
    result = schedule(written(rules), zone, calendar)
    assert result is not None
    at = round(dt.datetime.combine(first, dt.time(), dt.UTC).timestamp()) * 1000
    tz = zoneinfo.ZoneInfo(zone)
    following: int | None = None
    openings: list[tuple[int, int | None]] = []
    for step in reversed(range(0, 2 * DAY_MINUTES, 7)):
        instant = at + step * MINUTE_MS
        local = dt.datetime.fromtimestamp(instant / 1000, tz)
        is_open = (local.date(), local.hour * 60 + local.minute) in expected
        assert result.is_open(instant) is is_open, local.isoformat()
        following = instant if is_open else following
        openings.append((instant, following))
    for instant, later in openings[::97]:
        found = result.next_opening_ms(instant)
        if found is not None:
            assert found >= instant and result.is_open(found)
            assert found == instant or not result.is_open(found - MINUTE_MS)
        if later is not None:
            assert found is not None and found <= later


def test_an_opening_is_looked_for_no_further_than_said() -> None:
    holidays_only = made("PH 00:00-24:00", zone="UTC", calendar="US")
    memorial_day = ms("2026-05-25T00:00", "UTC")
    assert holidays_only.next_opening_ms(ms("2026-04-20T00:00", "UTC")) == memorial_day
    too_soon = memorial_day - (LOOK_AHEAD_DAYS_MAX + 1) * DAY_MINUTES * MINUTE_MS
    assert holidays_only.next_opening_ms(too_soon) is None


@pytest.mark.parametrize("begin", ["01:37", "02:30", "02:37"])
def test_the_first_minute_is_found_where_the_clock_is_changed(begin: str) -> None:
    night = made(f"Su {begin}-03:20", zone="Europe/Berlin", calendar="")
    for day in ("2026-03-29", "2026-10-25"):
        start = ms(f"{day}T00:00", "Europe/Berlin")
        minutes = [start + i * MINUTE_MS for i in range(6 * 60)]
        opens = [at for at in minutes if night.is_open(at)]
        for at in (m for m in minutes[::10] if m <= max(opens)):
            assert night.next_opening_ms(at) == min(o for o in opens if o >= at)
