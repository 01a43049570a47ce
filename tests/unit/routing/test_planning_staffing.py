"""Forecasts, staffing, shifts, adherence, and the requests that ask for them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import os
import random
import subprocess
import sys
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import empty_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import menus_pb2, planning_pb2
from chassis.errors import CallmeshError, DeadlineExceeded, InvalidArgument
from chassis.testing import FakeClock
from chassis.testing.waiting import eventually
from routing.errors import QueueNotFound
from routing.model import QueueConfig
from routing.planning import forecast, process, requests, shifts
from routing.planning.adherence import SETTLED_MS, Entry, adherence
from routing.planning.answers import METHODS, Planner
from routing.planning.forecast import HistoryTooShort, Seasonal
from routing.planning.history import SLOT_MS, SLOTS, History, history, of_days, slot_of, start_ms
from routing.planning.process import Elsewhere, PlannerBusy, PlanningAway
from routing.planning.requests import CHECKS
from routing.planning.shifts import Group, ShiftRules, patterns, plan_day
from routing.planning.store import MemoryPlanning, QueueRow, queue_row, time_there

CHINA = zoneinfo.ZoneInfo("Asia/Shanghai")
FIRST = dt.date(2026, 9, 7)  # a Monday


def shape(day: dt.date) -> list[float]:
    """Open from 8 to 20 o'clock, half as many on Saturdays, closed on Sundays."""
    share = {5: 0.4, 6: 0.0}.get(day.weekday(), 1.0)
    return [
        share * (20 + 15 * math.sin((slot - 16) / 24 * math.pi)) if 16 <= slot < 40 else 0.0
        for slot in range(SLOTS)
    ]


def drawn(days: int, seed: int = 1) -> History:
    rng = random.Random(seed)
    table = {}
    for n in range(days):
        day = FIRST + dt.timedelta(days=n)
        row = []
        for mean in shape(day):
            calls, at = 0, rng.expovariate(1.0)
            while at < mean:
                calls, at = calls + 1, at + rng.expovariate(1.0)
            row.append(float(calls))
        table[day] = tuple(row)
    return of_days(table, CHINA)


# --- history and forecast


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu", "Australia/Eucla", "Pacific/Chatham"])
def test_half_hours_are_those_of_the_zone_where_its_offset_is_no_whole_hour(zone: str) -> None:
    """Ten calls in each half-hour of UTC that begins from nine to five by the local clock."""
    local = zoneinfo.ZoneInfo(zone)
    first = start_ms(FIRST, 0, local) // SLOT_MS * SLOT_MS
    opens, closes = start_ms(FIRST, 18, local), start_ms(FIRST, 34, local)
    rows = []
    for n in range(4 * SLOTS):
        ms = first + n * SLOT_MS
        shared = max(
            0, min(ms + SLOT_MS, closes + n // SLOTS * 86_400_000) - max(ms, opens + n // SLOTS * 86_400_000)
        )
        rows.append((ms, 10.0 * shared / SLOT_MS))
    known = history(rows, local, until_ms=first + 3 * SLOTS * SLOT_MS + 1)
    day = known.on(FIRST + dt.timedelta(days=1))
    assert day is not None and sum(day) == pytest.approx(160)
    # What a quarter of an hour smears over, and no more.
    assert not any(day[:17]) and not any(day[35:])
    assert all(calls == 10.0 for calls in day[19:33])
    assert day[18] == pytest.approx(day[33])


def test_days_are_those_of_the_zone_and_the_first_is_left_out() -> None:
    midnight = start_ms(FIRST, 0, CHINA)
    rows = [(midnight + n * SLOT_MS, 1.0) for n in range(3 * SLOTS + 5)]
    known = history(rows, CHINA, until_ms=rows[-1][0])
    assert known.days == (FIRST + dt.timedelta(days=1), FIRST + dt.timedelta(days=2))
    assert all(sum(row) == SLOTS for row in known.calls)
    gap = of_days({FIRST: (1.0,) * SLOTS, FIRST + dt.timedelta(days=2): (1.0,) * SLOTS}, CHINA)
    assert gap.on(FIRST + dt.timedelta(days=1)) == (0.0,) * SLOTS
    assert gap.on(FIRST - dt.timedelta(days=1)) is None


def test_clocks_that_change_lose_no_call() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    night = dt.date(2026, 10, 25)
    rows = [(start_ms(night, 0, berlin) + n * SLOT_MS, 1.0) for n in range(SLOTS + 2)]
    assert {slot_of(ms, berlin)[0] for ms, _ in rows} == {night}
    known = history([(rows[0][0] - 86_400_000, 1.0), *rows], berlin, until_ms=rows[-1][0] + 86_400_000)
    assert sum(known.on(night) or ()) == SLOTS + 2


def test_the_model_finds_the_shape_and_beats_what_is_naive() -> None:
    known = drawn(24)
    model = Seasonal(known)
    for ahead in range(7):
        day = known.days[-1] + dt.timedelta(days=1 + ahead)
        said, true = model.day(day).arrivals, shape(day)
        assert sum(abs(a - b) for a, b in zip(said, true, strict=True)) <= 0.15 * max(sum(true), 1.0)
    errors = {
        name: forecast.errors(known, method, first=20)
        for name, method in (("model", forecast.model_day), ("naive", forecast.seasonal_naive))
    }
    assert errors["model"].wape < 0.9 * errors["naive"].wape
    assert errors["model"].mase < errors["naive"].mase


def test_kinds_of_day_put_together_what_is_alike() -> None:
    kinds = forecast.kinds(drawn(28))
    assert len({kinds[w] for w in range(5)}) == 1
    assert len({kinds[0], kinds[5], kinds[6]}) == 3


def test_intervals_hold_about_as_often_as_they_say() -> None:
    known = drawn(26, seed=3)
    inside = count = 0
    for day, before, came in forecast.rolling(known, first=21):
        said = Seasonal(before).day(day)
        for low, high, calls in zip(said.low, said.high, came, strict=True):
            if high > 0:
                inside, count = inside + (low <= calls <= high), count + 1
    assert 0.7 <= inside / count <= 0.97


def at_work(days: int, *open_slots: range, calls: float = 20.0, first: dt.date = FIRST) -> dict[dt.date, Any]:
    """Days with so many calls in each half-hour that is open."""
    row = tuple(calls if any(slot in each for each in open_slots) else 0.0 for slot in range(SLOTS))
    return {first + dt.timedelta(days=n): row for n in range(days)}


def test_a_break_at_noon_is_closed_and_a_lone_caller_opens_no_night() -> None:
    noon = of_days(at_work(14, range(16, 24), range(26, 36)), CHINA)
    said = Seasonal(noon).day(FIRST + dt.timedelta(days=14))
    for row in (said.arrivals, said.high):
        assert row[24:26] == (0.0, 0.0) and row[:16] == (0.0,) * 16
    assert min(said.arrivals[16:24] + said.arrivals[26:36]) > 19, (
        "nor does the break pull at what is beside it"
    )
    days = at_work(14, range(16, 36))
    days[FIRST] = (0.0,) * 4 + (1.0,) + days[FIRST][5:]
    lone = Seasonal(of_days(days, CHINA)).day(FIRST + dt.timedelta(days=14))
    assert lone.arrivals[5:16] == (0.0,) * 11 and 0 < lone.arrivals[4] < 1


def test_a_quiet_line_is_open_between_its_callers() -> None:
    row = tuple(float(slot % 5 == 0) for slot in range(SLOTS))
    said = Seasonal(of_days({FIRST + dt.timedelta(days=n): row for n in range(7)}, CHINA)).day(FIRST)
    assert all(said.arrivals[:46])


def test_a_test_call_long_before_the_first_day_keeps_no_forecast_from_being_made() -> None:
    calls = {FIRST: (0.0,) * 20 + (1.0,) + (0.0,) * 27}
    calls |= at_work(7, range(16, 36), first=FIRST + dt.timedelta(days=25))
    begun = of_days(calls, CHINA, skip_first=True)
    assert len(begun.days) == 7
    assert sum(Seasonal(begun).day(FIRST + dt.timedelta(days=32)).arrivals) == pytest.approx(400, rel=0.05)
    # Nor do closed weeks within a history, before which nothing is kept.
    known = History(zone=CHINA, days=of_days(calls, CHINA).days[1:], calls=of_days(calls, CHINA).calls[1:])
    assert len(known.days) >= forecast.JUDGED_FROM_DAYS and Seasonal(known).day(FIRST)
    assert forecast.errors(known, forecast.model_day, first=len(known.days) - 7).days == 7


def test_a_week_in_which_clocks_go_back_is_a_week() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    for first, days, hours in ((dt.date(2026, 10, 20), 7, 169), (dt.date(2026, 3, 24), 7, 167)):
        begin, end = (start_ms(first + dt.timedelta(days=n), 0, berlin) for n in (0, days))
        assert end - begin == hours * 3_600_000
        week = between(begin // 1_000, end // 1_000)
        asked = menus_pb2.PlanStaffingRequest(queue="queues/q", interval=week, time_zone="Europe/Berlin")
        assert requests.staffing_question(asked).to_ms == end
    four = between(begin // 1_000 - 27 * 86_400, begin // 1_000 + 86_400 + 3_600)
    assert requests.forecast_question(menus_pb2.ForecastArrivalsRequest(queue="queues/q", interval=four))
    weeks = start_ms(FIRST + dt.timedelta(days=8), 0, CHINA)
    assert len(forecast.forecast(drawn(8), weeks, weeks + 28 * 86_400_000 + 3_600_000)) == 28 * SLOTS + 2


def test_a_forecast_needs_a_day_and_a_span() -> None:
    empty = History(zone=CHINA, days=(), calls=())
    with pytest.raises(HistoryTooShort):
        forecast.forecast(empty, 0, SLOT_MS)
    with pytest.raises(InvalidArgument) as caught:
        forecast.forecast(drawn(8), 0, 0)
    assert caught.value.values["field"] == "interval"
    # One day is enough for some answer, for a weekday never seen too.
    one = drawn(1)
    assert sum(Seasonal(one).day(FIRST + dt.timedelta(days=6)).arrivals) > 100


# --- shifts


def needed() -> list[float]:
    return [0.0] * 16 + [math.ceil(3 + 5 * math.sin(n / 24 * math.pi)) for n in range(24)] + [0.0] * 8


def covered(plan: shifts.ShiftPlan, slot: int, group: str = "") -> int:
    return sum(c.agents for c in plan.shifts if c.pattern.works(slot) and c.group == group)


def test_every_pattern_keeps_the_rules() -> None:
    rules = ShiftRules(lengths=(8, 12, 18), work_max=8, break_length=1, earliest=10, latest=44)
    found = patterns(rules)
    assert {p.end - p.start for p in found} == {8, 12, 18}
    for pattern in found:
        assert 10 <= pattern.start < pattern.end <= 44
        works = "".join("x" if pattern.works(t) else " " for t in range(pattern.start, pattern.end))
        assert max(map(len, works.split())) <= 8
        assert len(works.split()) == len(pattern.breaks) + 1


def test_shifts_cover_what_is_needed_at_little_more() -> None:
    plan = plan_day({"q": needed()}, ShiftRules())
    assert not any(plan.missing["q"])
    assert all(covered(plan, t) >= n for t, n in enumerate(needed()))
    # Six in a hundred more than the bare need, breaks included, is what eight-hour shifts cost here.
    assert sum(needed()) <= plan.paid_half_hours <= 1.35 * sum(needed())
    assert plan.gap <= shifts.GAP + 1e-9


def test_groups_take_what_they_can_and_what_is_missing_is_said() -> None:
    groups = [
        Group(name="a-only", queues=frozenset("a"), agents_max=4),
        Group(name="both", queues=frozenset("ab"), agents_max=3),
    ]
    flat = [0.0] * 20 + [4.0] * 8 + [0.0] * 20
    rules = ShiftRules(lengths=(8,))
    plan = plan_day({"a": flat, "b": [n / 2 for n in flat]}, rules, groups)
    assert not any(plan.missing["a"]) and not any(plan.missing["b"])
    assert sum(c.agents for c in plan.shifts if c.group == "both") <= 3
    short = plan_day({"a": flat, "b": flat}, rules, groups)
    assert sum(short.missing["b"]) == pytest.approx(8 * 1.0)
    assert plan_day({"a": [0.0] * SLOTS}, rules).shifts == ()


@pytest.mark.parametrize(
    ("how", "field"),
    [
        (lambda: plan_day({"q": [-1.0] * SLOTS}, ShiftRules()), "requirements"),
        (lambda: plan_day({"q": [math.nan] * SLOTS}, ShiftRules()), "requirements"),
        (lambda: plan_day({"q": [1.0]}, ShiftRules()), "requirements"),
        (lambda: plan_day({}, ShiftRules()), "more_queues"),
        (lambda: plan_day({"q": needed()}, ShiftRules(), [_group(agents_max=-1)]), "groups[0].agents_max"),
        (
            lambda: plan_day({"q": needed()}, ShiftRules(), [_group(queues=frozenset("x"))]),
            "groups[0].queues",
        ),
        (lambda: plan_day({"q": needed()}, ShiftRules(), [_group(), _group()]), "groups[1].name"),
        (lambda: ShiftRules(lengths=()), "shift_rules.lengths"),
        (lambda: ShiftRules(lengths=(1,)), "shift_rules.lengths"),
        (lambda: ShiftRules(work_max=0), "shift_rules.work_max"),
        (lambda: ShiftRules(break_length=9), "shift_rules.break_length"),
        (lambda: ShiftRules(earliest=20, latest=10), "shift_rules.latest_end"),
        (lambda: ShiftRules(earliest=20, latest=22), "shift_rules.lengths"),
        (lambda: patterns(ShiftRules(lengths=(24,), work_max=1, break_length=4)), "shift_rules.work_max"),
        # Twelve breaks, near their even places in 5 ** 12 ways.
        (lambda: patterns(ShiftRules(lengths=(24,), work_max=1)), "shift_rules.work_max"),
        (lambda: patterns(ShiftRules(lengths=tuple(range(17, 25)), work_max=5)), "shift_rules"),
    ],
)
def test_what_no_plan_can_be_made_of_is_named(how: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        how()
    assert caught.value.values["field"] == field


def _group(**values: Any) -> Group:
    return Group(**{"name": "g", "queues": frozenset("q"), **values})


# --- adherence

HOUR = 3_600_000
#: When all of these rosters are over.
FAR = 10**12


def test_adherence_counts_what_was_kept() -> None:
    roster = [Entry(agent="ann", start_ms=0, end_ms=4 * HOUR, breaks=((2 * HOUR, 2 * HOUR + SLOT_MS),))]
    there = {"ann": {n * SLOT_MS: SLOT_MS for n in (0, 1, 2, 4, 9)}}
    kept = adherence(roster, there, FAR)["ann"]
    assert (kept.planned_ms, kept.kept_ms, kept.beyond_ms) == (7 * SLOT_MS, 3 * SLOT_MS, 2 * SLOT_MS)
    assert kept.adherence == pytest.approx(3 / 7)
    assert kept.conformance == pytest.approx(5 / 7)
    assert adherence(roster, {}, FAR)["ann"].adherence == 0.0


def test_a_shift_that_is_to_come_is_no_absence() -> None:
    """Asked at ten past one of a shift from noon to four: the half-hours until one count."""
    noon = 12 * HOUR
    roster = [
        Entry(agent="ann", start_ms=noon, end_ms=noon + 4 * HOUR),
        Entry(agent="ben", start_ms=noon + 2 * HOUR, end_ms=noon + 4 * HOUR),
    ]
    there = {"ann": {noon: SLOT_MS, noon + SLOT_MS: SLOT_MS // 2, noon + 2 * SLOT_MS: SLOT_MS // 6}}
    found = adherence(roster, there, noon + HOUR + 10 * 60_000)
    ann, ben = found["ann"], found["ben"]
    assert (ann.planned_ms, ann.kept_ms, ann.beyond_ms) == (2 * SLOT_MS, 3 * SLOT_MS // 2, 0)
    assert (ben.planned_ms, ben.adherence) == (0, 1.0)
    # One that has ended just now may not be counted yet.
    assert adherence(roster, there, noon + SLOT_MS)["ann"].planned_ms == 0
    assert adherence(roster, there, noon + SLOT_MS + SETTLED_MS)["ann"].planned_ms == SLOT_MS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, SLOT_MS), max_size=20), st.integers(0, 10 * SLOT_MS), st.integers(1, 40))
def test_kept_is_never_more_than_planned_or_there(times: list[int], start: int, slots: int) -> None:
    roster = [Entry(agent="a", start_ms=start, end_ms=start + slots * SLOT_MS)]
    kept = adherence(roster, {"a": {n * SLOT_MS: ms for n, ms in enumerate(times)}}, FAR)["a"]
    assert kept.planned_ms == slots * SLOT_MS
    assert 0 <= kept.kept_ms <= min(kept.planned_ms, sum(times))
    assert kept.kept_ms + kept.beyond_ms == sum(times)


@pytest.mark.parametrize(
    ("roster", "field"),
    [
        ([], "roster"),
        ([Entry(agent="a", start_ms=5, end_ms=5)], "roster[0].interval"),
        ([Entry(agent="a", start_ms=0, end_ms=9, breaks=((4, 12),))], "roster[0].breaks[0]"),
        ([Entry(agent="a", start_ms=0, end_ms=9, breaks=((4, 6), (5, 7)))], "roster[0].breaks[1]"),
        (
            [Entry(agent="a", start_ms=0, end_ms=9), Entry(agent="a", start_ms=8, end_ms=9)],
            "roster[1].interval",
        ),
        ([Entry(agent="a", start_ms=n, end_ms=n + 9) for n in (0, 40 * 86_400_000)], "roster"),
    ],
)
def test_rosters_that_are_none_are_named(roster: list[Entry], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        adherence(roster, {}, FAR)
    assert caught.value.values["field"] == field


# --- requests

NOW = start_ms(FIRST + dt.timedelta(days=28), 20, CHINA)
TOMORROW = FIRST + dt.timedelta(days=29)


def stamp(ms: int) -> Timestamp:
    return Timestamp(seconds=ms // 1000)


def span(first: dt.date = TOMORROW, days: int = 1) -> common_pb2.Interval:
    last = first + dt.timedelta(days=days)
    return common_pb2.Interval(
        start_time=stamp(start_ms(first, 0, CHINA)), end_time=stamp(start_ms(last, 0, CHINA))
    )


def planner(days: int = 29) -> Planner:
    known = drawn(days)
    rows = [
        QueueRow(
            start_ms=start_ms(day, slot, CHINA),
            calls=round(calls),
            handled=round(calls),
            handle_ms=round(calls) * 180_000,
            left=round(calls) // 10,
            waited_ms=round(calls) * 30_000,
        )
        for day, row in zip(known.days, known.calls, strict=True)
        for slot, calls in enumerate(row)
    ]
    queues = {"q": QueueConfig(id="q"), "r": QueueConfig(id="r")}
    there = {"ann": {start_ms(FIRST, 20, CHINA): SLOT_MS}}
    return Planner(MemoryPlanning(queues, {"q": rows, "r": rows}, there, CHINA), "home", NOW)


def test_arrivals_are_forecast_with_their_error() -> None:
    request = menus_pb2.ForecastArrivalsRequest(queue="queues/q", interval=span(days=2))
    response = planner().forecast_arrivals(request)
    assert len(response.forecasts) == 2 * SLOTS
    total = sum(row.arrivals for row in response.forecasts[:SLOTS])
    assert total == pytest.approx(sum(shape(TOMORROW)), rel=0.1)
    assert all(row.arrivals_low <= row.arrivals_high for row in response.forecasts)
    assert response.days == 27  # the first is left out, today is not over
    assert 0 < response.error_ratio < response.naive_error_ratio
    early = menus_pb2.ForecastArrivalsRequest(queue="queues/q", interval=span(FIRST + dt.timedelta(days=9)))
    assert planner().forecast_arrivals(early).days == 8


def test_staffing_reaches_its_target_and_shifts_cover_it() -> None:
    request = menus_pb2.PlanStaffingRequest(queue="queues/q", interval=span(), shrinkage=0.2)
    response = planner().plan_staffing(request)
    busy = [row for row in response.requirements if row.arrivals > 1]
    assert len(busy) == 24
    assert all(row.service_level >= 0.8 and 0 < row.occupancy < 1 and not row.missing for row in busy)
    for row in busy:
        at_work = sum(
            shift.agents
            for shift in response.shifts
            if shift.start_time.seconds <= row.start_time.seconds < shift.end_time.seconds
            and not any(
                b.start_time.seconds <= row.start_time.seconds < b.end_time.seconds for b in shift.breaks
            )
        )
        assert at_work * 0.8 >= row.agents - 1e-6
    without = menus_pb2.PlanStaffingRequest(
        queue="queues/q", interval=span(days=20), without_shifts=True, service_level=0.95
    )
    assert len(planner().plan_staffing(without).requirements) == 20 * SLOTS


def test_given_requirements_take_the_place_of_the_forecast() -> None:
    wanted = [
        planning_pb2.StaffRequirement(
            queue=f"queues/{q}", start_time=stamp(start_ms(TOMORROW, slot, CHINA)), agents=3
        )
        for q in "qr"
        for slot in range(20, 28)
    ]
    groups = [
        planning_pb2.StaffGroup(name="both", queues=["queues/q", "queues/r"], agents_max=4),
        planning_pb2.StaffGroup(name="one", queues=["queues/q"]),
    ]
    request = menus_pb2.PlanStaffingRequest(
        queue="queues/q", more_queues=["queues/r"], interval=span(), requirements=wanted, groups=groups
    )
    response = planner(days=1).plan_staffing(request)
    assert {row.agents for row in response.requirements} == {0, 3}
    assert {shift.group for shift in response.shifts} == {"both", "one"}
    assert not any(row.missing for row in response.requirements)


def test_a_roster_is_held_against_the_reports() -> None:
    entry = planning_pb2.RosterEntry(
        agent="agents/ann",
        interval=common_pb2.Interval(
            start_time=stamp(start_ms(FIRST, 20, CHINA)), end_time=stamp(start_ms(FIRST, 22, CHINA))
        ),
    )
    response = planner().get_adherence(planning_pb2.GetAdherenceRequest(roster=[entry]))
    assert [(a.agent, a.adherence, a.planned.seconds) for a in response.agents] == [
        ("agents/ann", 0.5, 3_600)
    ]
    to_come = planning_pb2.RosterEntry(
        agent="agents/ann",
        interval=common_pb2.Interval(
            start_time=stamp(start_ms(TOMORROW, 20, CHINA)), end_time=stamp(start_ms(TOMORROW, 22, CHINA))
        ),
    )
    response = planner().get_adherence(planning_pb2.GetAdherenceRequest(roster=[entry, to_come]))
    assert [(a.adherence, a.planned.seconds) for a in response.agents] == [(0.5, 3_600)]


#: Seconds of its first instant.
YEAR_9999 = 253_370_764_800


def between(begin: int, end: int) -> common_pb2.Interval:
    return common_pb2.Interval(start_time=Timestamp(seconds=begin), end_time=Timestamp(seconds=end))


REQUIREMENT = planning_pb2.StaffRequirement(
    queue="queues/q", start_time=stamp(start_ms(TOMORROW, 20, CHINA)), agents=1
)


def refused(method: str, request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The field that a router names, as it would if no other process could be started; the planner names the
    same.
    """
    with pytest.raises(InvalidArgument) as caught:
        METHODS[method][1](planner(days=1))(request)
    monkeypatch.setattr(sys, "executable", "/none/such")
    one = elsewhere()
    with pytest.raises(InvalidArgument) as here:
        asyncio.run(one.answer(method, request, empty_pb2.Empty()))
    assert here.value.values == caught.value.values
    return here.value.values["field"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"queue": "q"}, "queue"),
        ({"queue": ""}, "queue"),
        ({"interval": None}, "interval.start_time"),
        ({"interval": span(days=8)}, "interval"),
        ({"interval": span(days=0)}, "interval"),
        ({"interval": between(86_400, 0)}, "interval"),
        ({"interval": between(-3_600, 3_600)}, "interval"),
        ({"interval": between(YEAR_9999, YEAR_9999 + 3_600)}, "interval"),
        ({"service_level": math.nan}, "service_level"),
        ({"shrinkage": -0.1}, "shrinkage"),
        ({"more_queues": [f"queues/{n}" for n in range(21)]}, "more_queues"),
        ({"groups": [planning_pb2.StaffGroup()] * 51}, "groups"),
        ({"groups": [planning_pb2.StaffGroup(queues=["queues/q"] * 22)]}, "groups[0].queues"),
        (
            {"shift_rules": planning_pb2.ShiftRules(lengths=[Duration(seconds=7_200)] * 9)},
            "shift_rules.lengths",
        ),
        (
            {
                "shift_rules": planning_pb2.ShiftRules(
                    lengths=[Duration(seconds=43_200)], work_max=Duration(seconds=1_800)
                )
            },
            "shift_rules.work_max",
        ),
        ({"service_level": -0.1}, "service_level"),
        ({"service_level": 1.0}, "service_level"),
        ({"occupancy_max": -0.5}, "occupancy_max"),
        ({"shrinkage": 0.95}, "shrinkage"),
        ({"more_queues": ["queues/q"]}, "more_queues"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"requirements": [planning_pb2.StaffRequirement(queue="queues/x")]}, "requirements[0].queue"),
        ({"requirements": [REQUIREMENT, REQUIREMENT]}, "requirements[1]"),
        (
            {"requirements": [planning_pb2.StaffRequirement(queue="queues/q", agents=-3)]},
            "requirements[0].agents",
        ),
        (
            {"requirements": [planning_pb2.StaffRequirement(queue="queues/q", agents=3)]},
            "requirements[0].start_time",
        ),
        (
            {"shift_rules": planning_pb2.ShiftRules(lengths=[Duration(seconds=5_000)])},
            "shift_rules.lengths[0]",
        ),
        ({"shift_rules": planning_pb2.ShiftRules(work_max=Duration(seconds=-1_800))}, "shift_rules.work_max"),
        (
            {"groups": [planning_pb2.StaffGroup(name="g", queues=["queues/q"], agents_max=-1)]},
            "groups[0].agents_max",
        ),
        ({"groups": [planning_pb2.StaffGroup(queues=["queues/q"])]}, "groups[0].name"),
    ],
)
def test_bad_staffing_requests_are_named_before_a_process_is_started(
    change: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = menus_pb2.PlanStaffingRequest(**{"queue": "queues/q", "interval": span(), **change})
    assert refused("PlanStaffing", request, monkeypatch) == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"queue": ""}, "queue"),
        ({"interval": None}, "interval.start_time"),
        ({"interval": span(days=0)}, "interval"),
        ({"interval": span(days=29)}, "interval"),
        ({"time_zone": "Asia"}, "time_zone"),
        ({"time_zone": "../etc/passwd"}, "time_zone"),
    ],
)
def test_bad_forecast_requests_are_named_before_a_process_is_started(
    change: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = menus_pb2.ForecastArrivalsRequest(**{"queue": "queues/q", "interval": span(), **change})
    assert refused("ForecastArrivals", request, monkeypatch) == field


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"agent": "ann"}, "roster[0].agent"),
        ({"interval": None}, "roster[0].interval.start_time"),
        ({"interval": between(9, 9)}, "roster[0].interval"),
        ({"breaks": [between(10, 20)] * 21}, "roster[0].breaks"),
        ({"breaks": [between(10, 20)] * 2}, "roster[0].breaks[1]"),
        (None, "roster"),
    ],
)
def test_bad_rosters_are_named_before_a_process_is_started(
    entry: dict[str, Any] | None, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"agent": "agents/ann", "interval": between(0, 3_600)}
    rows = [] if entry is None else [planning_pb2.RosterEntry(**{**good, **entry})]
    request = planning_pb2.GetAdherenceRequest(roster=rows)
    assert refused("GetAdherence", request, monkeypatch) == field


def test_a_router_checks_without_a_statistics_library() -> None:
    script = "import sys, routing.planning.process; print({'numpy', 'scipy', 'sklearn'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, check=True, timeout=60
    )
    assert said.stdout.strip() == b"set()"
    assert set(CHECKS) == set(METHODS)


def test_unknown_queues_and_short_histories_are_said() -> None:
    with pytest.raises(QueueNotFound):
        planner().forecast_arrivals(menus_pb2.ForecastArrivalsRequest(queue="queues/none", interval=span()))
    with pytest.raises(HistoryTooShort):
        planner(days=0).forecast_arrivals(
            menus_pb2.ForecastArrivalsRequest(queue="queues/q", interval=span())
        )
    with pytest.raises(HistoryTooShort):
        planner(days=0).plan_staffing(menus_pb2.PlanStaffingRequest(queue="queues/q", interval=span()))


def test_rows_of_reports_become_rows_of_planning() -> None:
    figures = {"offered": 9, "moved": 2, "handled": 5, "talk_ms": 500, "wrap_up_ms": 50, "abandoned": 1}
    figures |= {"short_abandoned": 1, "wait_ms": 40, "abandoned_wait_ms": 7}
    row = queue_row(0, figures)
    assert (row.calls, row.handled, row.handle_ms, row.left, row.waited_ms) == (7, 5, 550, 2, 47)
    assert time_there({"time_available_ms": 1, "time_wrap_up_ms": 2, "time_paused_ms": 4}) == 3


# --- the other process


def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In place of the process that would do the work."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


def saying(status: int, said: bytes) -> str:
    """An answer to the first request, whatever it is."""
    frame = bytes([status]) + len(said).to_bytes(4) + said
    return "printf '" + "".join(f"\\{byte:03o}" for byte in frame) + "'; cat > /dev/null"


def refusing(reason: str, values: str) -> str:
    return saying(3, f'{{"reason": "{reason}", "values": {{{values}}}}}'.encode())


def elsewhere() -> Elsewhere:
    return Elsewhere(
        "mongodb://127.0.0.1:1", "none", "home", FakeClock(dt.datetime(2026, 10, 1, tzinfo=dt.UTC))
    )


async def ask(one: Elsewhere) -> Any:
    request = menus_pb2.ForecastArrivalsRequest(queue="queues/q", interval=span())
    return await one.answer("ForecastArrivals", request, menus_pb2.ForecastArrivalsResponse())


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        (saying(4, b""), PlanningAway, "cannot be made"),
        ("exit 9", PlanningAway, "cannot be made"),
        (
            refusing("INVALID_ARGUMENT", '"field": "f", "why": "w"'),
            *(InvalidArgument, "f: w"),
        ),
        (
            refusing("HISTORY_TOO_SHORT", '"subject": "s", "why": "w"'),
            *(HistoryTooShort, "s: w"),
        ),
        ("exec sleep 60", DeadlineExceeded, "deadline"),
    ],
)
async def test_what_goes_wrong_in_the_other_process_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[CallmeshError], said: str
) -> None:
    another(tmp_path, monkeypatch, script)
    monkeypatch.setattr(process, "SECONDS_MAX", 0.3 if "sleep" in script else 30)
    one = elsewhere()
    with pytest.raises(error, match=said):
        await ask(one)
    await one.close()


async def test_the_other_process_reads_the_password_where_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = refusing("HISTORY_TOO_SHORT", '"subject": "s", "why": "w"')
    another(tmp_path, monkeypatch, f'[ "$MONGO_URI_FILE" = /etc/uri ] || exit 9; {known}')
    clock = FakeClock(dt.datetime(2026, 10, 1, tzinfo=dt.UTC))
    one = Elsewhere("mongodb://127.0.0.1:1", "none", "home", clock, mongo_uri_file="/etc/uri")
    with pytest.raises(HistoryTooShort):
        await ask(one)
    await one.close()


async def test_one_plan_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    another(tmp_path, monkeypatch, f"touch {started}; exec sleep 60")
    one = elsewhere()
    first = asyncio.create_task(ask(one))
    await eventually(started.exists)
    with pytest.raises(PlannerBusy):
        await ask(one)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    another(tmp_path, monkeypatch, saying(0, b""))
    assert await ask(one) == menus_pb2.ForecastArrivalsResponse()
    await one.close()


def test_the_other_process_says_what_does_not_fit() -> None:
    assert set(METHODS) == {"ForecastArrivals", "PlanStaffing", "GetAdherence"}
    request = menus_pb2.PlanStaffingRequest(queue="queues/q", interval=span(), shrinkage=-1)
    job = process.Job(method="PlanStaffing", now_ms=1, request=request.SerializeToString())
    # It is refused before the database is asked.
    status, answer = process.carry_out(job, None, "home")
    said = json.loads(answer)
    assert status == process.EXIT_REFUSED
    assert (said["reason"], said["values"]["field"]) == ("INVALID_ARGUMENT", "shrinkage")
