"""Working time and service-level clocks against a slow reference that looks at every single second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickets import calendars, convert, sla, workdays
from tickets.calendars import Calendar
from tickets.model import (
    Breached,
    ClockState,
    ClockType,
    Escalated,
    Kind,
    Level,
    Phase,
    Policy,
    Priority,
    Rules,
)

HOUR, MINUTE = 3_600_000, 60_000
OFFICE = ((9 * 60, 12 * 60), (13 * 60, 18 * 60))


def at(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def office(zone: str = "Asia/Shanghai", country: str = "", version: int = 1) -> Calendar:
    holidays, moved = workdays.public_days(country, 2026) if country else ({}, frozenset())
    week = (OFFICE,) * 5 + ((), ())
    return Calendar(id=f"office@{version}", zone=zone, week=week, holidays=holidays, moved=frozenset(moved))


#: Windows over midnight's edges, where clocks change and where holidays and moved workdays lie.
CALENDARS = [
    replace(office(country="CN"), id="cn@1"),
    Calendar(id="night@1", zone="Europe/Berlin", week=(((0, 200), (1_300, 1_440)),) * 7),
    Calendar(
        id="mixed@1",
        zone="America/New_York",
        week=(OFFICE, (), OFFICE, ((0, 1_440),), OFFICE, ((600, 601),), ()),
        special={date(2026, 3, 8): ((60, 240),), date(2026, 11, 1): ((30, 150),)},
    ),
]
STARTS = [at(day) for day in ("2026-03-07T20:00", "2026-03-28T22:00", "2026-10-24T21:00", "2026-10-31T23:00")]
STARTS += [at("2026-09-30T08:00", "Asia/Shanghai"), at("2026-10-09T17:00", "Asia/Shanghai")]


@cache
def counts(calendar: Calendar, minute: int) -> bool:
    """Whether a minute counts, looked up from its local time alone."""
    local = datetime.fromtimestamp(minute * 60, UTC).astimezone(ZoneInfo(calendar.zone))
    windows, _ = calendars.windows_of(calendar, local.date())
    return any(start <= local.hour * 60 + local.minute < end for start, end in windows)


def test_moved_workdays_count_and_holidays_do_not() -> None:
    calendar = office(country="CN")
    national_day, moved = at("2026-10-01T09:00", "Asia/Shanghai"), at("2026-10-10T09:00", "Asia/Shanghai")
    assert date(2026, 10, 10).weekday() == 5 and date(2026, 10, 10) in calendar.moved
    assert calendars.elapsed_ms(calendar, national_day, national_day + 9 * HOUR) == 0
    assert calendars.elapsed_ms(calendar, moved, moved + 9 * HOUR) == 8 * HOUR
    why = [part[3] for part in calendars.stretches(calendar, national_day, moved + HOUR, 100)]
    assert why[0].startswith("holiday:") and why[-1] == "moved workday"


@pytest.mark.parametrize(("calendar", "field"), [
    (replace(office(), week=(((0, 100), (99, 200)),) + ((),) * 6), "windows"),
    (replace(office(), week=(((10, 10),),) + ((),) * 6), "windows"),
    (replace(office(), week=((),) * 7), "windows"),
    (replace(office(), week=(tuple((n, n + 1) for n in range(9)),) + ((),) * 6), "windows"),
    (replace(office(), special={date(2026, 1, 1): ((5, 4),)}), "special_days"),
])  # fmt: skip
def test_unsound_calendars_are_named(calendar: Calendar, field: str) -> None:
    assert field in [name for name, _ in calendars.problems_of(calendar)]
    assert calendars.problems_of(office()) == []


@settings(max_examples=25)
@given(
    st.sampled_from(CALENDARS), st.sampled_from(STARTS), st.integers(0, 36 * 3600), st.integers(0, 36 * 3600)
)
def test_elapsed_and_add_agree_with_counting_seconds(
    calendar: Calendar, origin: int, offset: int, span: int
) -> None:
    start = origin // 1000 + offset
    slow = sum(counts(calendar, second // 60) for second in range(start, start + span))
    assert calendars.elapsed_ms(calendar, start * 1000, (start + span) * 1000) == slow * 1000
    if slow:
        end = calendars.add_ms(calendar, start * 1000, slow * 1000)
        assert calendars.elapsed_ms(calendar, start * 1000, end) == slow * 1000
        assert counts(calendar, (end // 1000 - 1) // 60), "it ends where working time does"
    parts = calendars.stretches(calendar, start * 1000, (start + span) * 1000, 10_000)
    assert sum(end - begin for begin, end, counted, _ in parts if counted) == slow * 1000
    assert all(one[1] == two[0] for one, two in pairwise(parts))


# ---- clocks


def policy(calendar: str, hours: int, *levels: Level) -> Policy:
    return Policy(
        id="own", order=1, calendar=calendar, first_response_ms=HOUR, next_response_ms=2 * HOUR,
        resolution_ms=hours * HOUR or None, pausing=("hold",), levels=levels,
    )  # fmt: skip


def rules(calendar: Calendar, hours: int, *levels: Level) -> Rules:
    known = {one.id: one for one in (*CALENDARS, calendar)}
    return Rules(
        sla=sla.DEFAULT_POLICY, follow_up_delay_ms=1, policies=(policy(calendar.id, hours, *levels),),
        calendars=known,
    )  # fmt: skip


FACTS = (Kind.REPAIR, Priority.NORMAL, "", "")


@dataclass
class Reference:
    """The resolution clock, second by second."""

    calendar: Calendar
    #: Seconds; 0 while the policy has no such target.
    target: int
    used: int = 0
    extra: int = 0
    breached: bool = False
    breaches: list[int] = field(default_factory=list)

    def run(self, start: int, end: int, running: bool) -> None:
        for second in range(start, end):
            if running and counts(self.calendar, second // 60):
                self.used += 1
                if self.used >= self.target + self.extra and not self.breached:
                    self.breached = True
                    self.breaches.append(second + 1)

    def runs(self, place: tuple[Phase, str]) -> bool:
        return bool(self.target) and clock_runs(place)

    def reopen(self) -> None:
        if self.target:
            self.extra = max(self.extra, self.used + self.target // 4 - self.target)
        self.breached = False


MOVES: dict[tuple[Phase, str], tuple[tuple[Phase, str], ...]] = {
    (Phase.NEW, ""): ((Phase.ACTIVE, ""), (Phase.WAITING, ""), (Phase.RESOLVED, "")),
    (Phase.ACTIVE, ""): ((Phase.WAITING, ""), (Phase.ACTIVE, "hold"), (Phase.RESOLVED, "")),
    (Phase.ACTIVE, "hold"): ((Phase.ACTIVE, ""), (Phase.RESOLVED, "")),
    (Phase.WAITING, ""): ((Phase.ACTIVE, ""), (Phase.RESOLVED, "")),
    (Phase.RESOLVED, ""): ((Phase.ACTIVE, ""), (Phase.WAITING, ""), (Phase.ACTIVE, "hold")),
}


def clock_runs(place: tuple[Phase, str]) -> bool:
    return place[0] in (Phase.NEW, Phase.ACTIVE) and place[1] != "hold"


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(CALENDARS),
    st.sampled_from(STARTS),
    st.integers(0, 12),
    st.lists(
        st.tuples(
            st.integers(0, 12 * 3600), st.integers(0, 2), st.none() | st.integers(0, 12), st.integers(0, 2)
        ),
        max_size=7,
    ),
)
def test_clocks_agree_with_counting_seconds_through_pauses_reopenings_and_changed_rules(
    calendar: Calendar, origin: int, hours: int, walk: list[tuple[int, int, int | None, int]]
) -> None:
    now, place, current = origin // 1000, (Phase.NEW, ""), rules(calendar, hours)
    levels = sla.start(current, FACTS, now * 1000)
    reference = Reference(calendar, hours * 3600)
    told: list[int] = []
    for wait, choice, new_hours, new_calendar in walk:
        reference.run(now, now + wait, reference.runs(place))
        now += wait
        if new_hours is not None:
            levels, said = sla.settle(levels, now * 1000)
            told += dues(said)
            current = rules(CALENDARS[new_calendar], new_hours)
            levels = sla.retarget(levels, current, FACTS, place, now * 1000)
            levels, said = sla.settle(levels, now * 1000)
            told += [min(due, now * 1000) for due in dues(said)]
            reference.calendar, reference.target = CALENDARS[new_calendar], new_hours * 3600
            late = reference.runs(place) and reference.used >= reference.target + reference.extra
            if late and not reference.breached:  # only a running clock can find its target past
                reference.breached = True
                reference.breaches.append(now)
        after = MOVES[place][choice % len(MOVES[place])]
        levels, said = sla.advance(levels, current, place, after, now * 1000)
        told += dues(said)
        if place[0] is Phase.RESOLVED:
            reference.reopen()
        elif reference.runs(after) and reference.used >= reference.target + reference.extra:
            levels, said = sla.settle(levels, now * 1000)
            told += [now * 1000 for _ in dues(said)]
            if not reference.breached and said:
                reference.breached = True
                reference.breaches.append(now)
        place = after
        used = sla.used_ms(levels.resolution, now * 1000, sla.calendar_of(levels, current))
        assert used == reference.used * 1000
        due = sla.due_ms(levels.resolution)
        assert due is None or due > now * 1000 or not clock_runs(place)
    assert told == [second * 1000 for second in reference.breaches]


def dues(told: object) -> list[int]:
    return [t.due_ms for t in told if isinstance(t, Breached) and t.clock is ClockType.RESOLUTION]  # type: ignore[attr-defined]


def test_nothing_escalates_at_the_instant_of_a_reopening() -> None:
    levels_ = (Level(level=1, offset_ms=-3 * HOUR), Level(level=2, offset_ms=HOUR))
    current = replace(rules(CALENDARS[1], 8, *levels_), warn_percent=80)
    current = replace(current, policies=(replace(current.policies[0], calendar=""),))
    start = STARTS[0]
    clock = sla.start(current, FACTS, start)
    clock, told = sla.settle(clock, start + 9 * HOUR)
    assert [t.level.level for t in told if isinstance(t, Escalated)] == [1, 2] and clock.level == 2
    clock, _ = sla.advance(clock, current, (Phase.NEW, ""), (Phase.RESOLVED, ""), start + 10 * HOUR)
    reopened, told = sla.advance(clock, current, (Phase.RESOLVED, ""), (Phase.ACTIVE, ""), start + 20 * HOUR)
    assert told == () and reopened.level == 0
    assert sla.settle(reopened, start + 20 * HOUR)[1] == ()
    assert sla.due_ms(reopened.resolution) == start + 22 * HOUR
    later = sla.settle(reopened, start + 23 * HOUR)[1]
    assert [t.level.level for t in later if isinstance(t, Escalated)] == [2], "level 1 was past already"


@pytest.mark.parametrize("place", [(Phase.ACTIVE, ""), (Phase.ACTIVE, "hold"), (Phase.WAITING, "")])
@pytest.mark.parametrize("hours", [8, 9])
def test_what_a_reopening_passed_over_is_not_told_when_the_ticket_goes_on(
    place: tuple[Phase, str], hours: int
) -> None:
    current = rules(CALENDARS[1], 8, Level(level=1, offset_ms=-3 * HOUR), Level(level=2, offset_ms=HOUR))
    current = replace(current, policies=(replace(current.policies[0], calendar=""),), warn_percent=80)
    start, soon = STARTS[0], STARTS[0] + 10 * HOUR + 5 * MINUTE
    clock = sla.start(current, FACTS, start)
    clock, _ = sla.advance(clock, current, (Phase.NEW, ""), (Phase.RESOLVED, ""), start + 7 * HOUR)
    clock, told = sla.advance(clock, current, (Phase.RESOLVED, ""), place, start + 10 * HOUR)
    other = replace(current, policies=(replace(current.policies[0], resolution_ms=hours * HOUR),))
    clock = sla.retarget(clock, other, FACTS, place, soon)
    clock, said = sla.settle(clock, soon)
    clock, more = sla.advance(clock, other, place, (Phase.ACTIVE, ""), soon)
    clock, rest = sla.settle(clock, soon)
    assert (told, said, more, rest) == ((), (), (), ())
    later = sla.settle(clock, start + 30 * HOUR)[1]
    assert [t.level.level for t in later if isinstance(t, Escalated)] == [2]


def test_a_response_given_stays_given_through_a_policy_without_such_a_target() -> None:
    current = rules(CALENDARS[1], 8)
    without = replace(current, policies=(replace(current.policies[0], first_response_ms=None),))
    clock, _ = sla.operator_wrote(sla.start(current, FACTS, STARTS[0]), current, STARTS[0] + MINUTE)
    for goes_by in (without, current):
        clock = sla.retarget(clock, goes_by, FACTS, (Phase.NEW, ""), STARTS[0] + HOUR)
    assert (clock.first_response.state, sla.due_ms(clock.first_response)) == (ClockState.MET, None)


def test_customers_words_start_the_next_response_and_an_answer_ends_it() -> None:
    current = rules(CALENDARS[1], 8)
    current = replace(current, policies=(replace(current.policies[0], calendar=""),))
    clock = sla.start(current, FACTS, STARTS[0])
    clock, _ = sla.customer_wrote(clock, current, STARTS[0])
    assert clock.next_response is None, "the first response is still awaited"
    clock, _ = sla.operator_wrote(clock, current, STARTS[0] + MINUTE)
    assert clock.first_response.stopped_ms == STARTS[0] + MINUTE
    clock, _ = sla.customer_wrote(clock, current, STARTS[0] + HOUR)
    again, _ = sla.customer_wrote(clock, current, STARTS[0] + 2 * HOUR)
    assert again == clock and sla.due_ms(clock.next_response) == STARTS[0] + 3 * HOUR
    clock, told = sla.operator_wrote(clock, current, STARTS[0] + 4 * HOUR)
    assert [t.clock for t in told if isinstance(t, Breached)] == [ClockType.NEXT_RESPONSE]
    clock, _ = sla.customer_wrote(clock, current, STARTS[0] + 5 * HOUR)
    assert clock.next_response is not None and clock.next_response.cycle == 2


def test_an_answer_that_nothing_was_promised_for_is_an_answer() -> None:
    """The first response, given under a policy without such a target, was awaited again under the next."""
    current = rules(CALENDARS[1], 8)
    without = replace(current, policies=(replace(current.policies[0], first_response_ms=None),))
    clock, _ = sla.operator_wrote(sla.start(without, FACTS, STARTS[0]), without, STARTS[0] + MINUTE)
    clock = sla.retarget(clock, current, FACTS, (Phase.NEW, ""), STARTS[0] + HOUR)
    assert (clock.first_response.state, clock.first_response.since_ms) == (ClockState.ABSENT, None)
    assert convert.sla_to_proto(clock).first_response.cycle == 1, "1 at first, for clients too"


@pytest.mark.parametrize("answered", [False, True])
def test_a_customer_waits_on_through_a_policy_without_a_next_response(answered: bool) -> None:
    current = rules(CALENDARS[1], 8)
    current = replace(current, policies=(replace(current.policies[0], calendar=""),))
    without = replace(current, policies=(replace(current.policies[0], next_response_ms=None),))
    clock, _ = sla.operator_wrote(sla.start(current, FACTS, STARTS[0]), current, STARTS[0])
    clock, _ = sla.customer_wrote(clock, current, STARTS[0])
    clock = sla.retarget(clock, without, FACTS, (Phase.ACTIVE, ""), STARTS[0] + HOUR)
    assert sla.due_ms(clock.next_response) is None
    if answered:
        clock, _ = sla.operator_wrote(clock, without, STARTS[0] + 2 * HOUR)
    clock = sla.retarget(clock, current, FACTS, (Phase.ACTIVE, ""), STARTS[0] + 9 * HOUR)
    assert clock.next_response is not None and clock.next_response.used_ms == HOUR
    due = None if answered else STARTS[0] + 10 * HOUR
    assert sla.due_ms(clock.next_response) == due, "of two hours one is used"


@pytest.mark.parametrize(
    ("phase", "state"), [(Phase.CANCELLED, ClockState.STOPPED), (Phase.RESOLVED, ClockState.MET)]
)
def test_a_withdrawn_ticket_has_answered_nobody(phase: Phase, state: ClockState) -> None:
    current = rules(CALENDARS[1], 8)
    clock, _ = sla.operator_wrote(sla.start(current, FACTS, STARTS[0]), current, STARTS[0])
    clock, _ = sla.customer_wrote(clock, current, STARTS[0])
    clock, _ = sla.advance(clock, current, (Phase.ACTIVE, ""), (phase, ""), STARTS[0] + MINUTE)
    assert clock.next_response is not None and clock.next_response.state is state
