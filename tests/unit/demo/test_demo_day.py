"""The generated day, the replayed day, the constructed numbers and the reference."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import statistics
from collections import Counter
from pathlib import Path

import phonenumbers
import pytest
from phone import Phone

from cli.demo import day, reference, replay, staffing
from cli.demo.calls import COLUMNS, CallLogError
from cli.demo.model import OVERTIME_SECONDS, REGIONS, Day, DayCall, Duty, clock_text
from cli.demo.numbers import AREA_CODES, MOBILE_PREFIXES, Geography

DATE = datetime.date(2026, 11, 23)
CITIES = {"beijing": "北京", "shanghai": "上海", "guangzhou": "广州", "chengdu": "成都"}
SHARES = [(region.id, region.load_share) for region in REGIONS]


def test_the_same_seed_makes_the_same_day() -> None:
    assert day.generate(seed=3, date=DATE) == day.generate(seed=3, date=DATE)
    assert day.generate(seed=3, date=DATE).calls != day.generate(seed=4, date=DATE).calls


def test_a_generated_day_has_the_published_shape() -> None:
    made = day.generate(seed=1, date=DATE, hours=None)
    assert len(made.calls) == pytest.approx(day.CALLS_PER_DAY, rel=0.1)
    arrivals = [call.arrival_seconds for call in made.calls]
    assert arrivals == sorted(arrivals)
    by_hour = Counter(int(arrival // 3600) for arrival in arrivals)
    assert by_hour[10] > 1.5 * by_hour[20] > by_hour[4] * 10
    for kind, (share, mean, median) in day.SERVICES.items():
        services = [call.service_seconds for call in made.calls if call.type == kind]
        assert len(services) / len(made.calls) == pytest.approx(share, abs=0.04)
        if len(services) > 150:
            assert statistics.median(services) == pytest.approx(median, rel=0.25)
            assert statistics.mean(services) == pytest.approx(mean, rel=0.25)
    patience = [call.patience_seconds for call in made.calls]
    assert statistics.median(patience) == pytest.approx(day.PATIENCE_MEAN_SECONDS * math.log(2), rel=0.1)


def test_the_window_is_the_busiest_and_starts_at_zero() -> None:
    whole = day.generate(seed=1, date=DATE, hours=None)
    made = day.generate(seed=1, date=DATE, hours=4)
    assert made.window_seconds == 4 * 3600
    assert all(0 <= call.arrival_seconds < made.window_seconds for call in made.calls)
    inside = [
        call
        for call in whole.calls
        if made.window_start_seconds <= call.arrival_seconds < made.window_start_seconds + 4 * 3600
    ]
    assert len(inside) == len(made.calls)


def test_every_agent_has_a_region_and_duties_that_do_not_overlap() -> None:
    for made in (day.generate(seed=1, date=DATE), day.generate(seed=1, date=DATE, agents=9)):
        assert {duty.agent for duty in made.duties} == made.agent_regions.keys()
        assert set(made.agent_regions.values()) <= {region.id for region in REGIONS}
        for agent in made.agent_regions:
            spans = sorted((d.start_seconds, d.end_seconds) for d in made.duties if d.agent == agent)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
            assert spans[-1][1] <= made.window_seconds + OVERTIME_SECONDS
    assert len(day.generate(seed=1, date=DATE, agents=9).agent_regions) == 9


def test_shares_of_the_load_add_up() -> None:
    assert sum(share for _, share in SHARES) == pytest.approx(1.0)


def test_numbers_resolve_to_the_callers_city() -> None:
    phone = Phone()
    for region, prefixes in MOBILE_PREFIXES.items():
        for prefix in prefixes:
            assert phone.find(int(prefix))["city"] == CITIES[region]
    geography = Geography(seed=1, shares=SHARES)
    regions: Counter[str] = Counter()
    for index in range(3000):
        key = f"c{index}"
        number, region = geography.number_of(key), geography.region_of(key)
        regions[region] += 1
        assert phonenumbers.is_valid_number(phonenumbers.parse(number))
        fixed = number.startswith(f"+86{AREA_CODES[region]}6") and len(number) <= 13
        assert fixed or number[3:10] in MOBILE_PREFIXES[region]
    for region, share in SHARES:
        assert regions[region] / 3000 == pytest.approx(share, abs=0.03)


def test_a_customer_keeps_the_number() -> None:
    first, second = Geography(seed=1, shares=SHARES), Geography(seed=1, shares=SHARES)
    assert first.number_of("bob") == second.number_of("bob")
    assert first.number_of("bob") != Geography(seed=2, shares=SHARES).number_of("bob")


# --- a log's day
# ---------------------------------------------------------------------------------------------------------


def log_file(path: Path, *rows: str) -> Path:
    lines = ["\t".join(COLUMNS), *("\t".join(row.split()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROWS = (
    "AA0101 1 77 2 PS 990201 9:00:00 9:00:10 10 0:00:00 0:00:00 0 AGENT 9:00:09 9:03:09 180 DORIT",
    "AA0101 2 0 0 NW 990201 9:00:30 9:00:40 10 9:00:40 9:01:40 60 HANG 0:00:00 0:00:00 0 NO_SERVER",
    "AA0101 3 77 2 PS 990201 9:20:00 9:20:10 10 9:20:10 9:20:30 20 AGENT 9:20:29 10:20:29 3600 TOVA",
    "AA0101 4 0 0 PS 990201 23:00:00 23:00:01 1 0:00:00 0:00:00 0 AGENT 23:00:00 23:01:00 60 DORIT",
    "AA0101 5 0 0 PS 990201 9:05:00 9:05:01 1 0:00:00 0:00:00 0 PHANTOM 0:00:00 0:00:00 0 NO_SERVER",
    "torn",
)


def test_a_logs_day_keeps_arrivals_services_and_the_patience_of_those_who_left(tmp_path: Path) -> None:
    loaded = replay.load(log_file(tmp_path / "l.tsv", *ROWS), wanted=None, hours=4, seed=1, agents=None)
    made = loaded.day
    assert (made.date, len(made.calls), loaded.torn.total) == (datetime.date(1999, 2, 1), 3, 1)
    served, left, long = made.calls
    assert long.arrival_seconds - served.arrival_seconds == 20 * 60
    assert served.service_seconds == 180
    assert left.patience_seconds == 60
    assert long.patience_seconds > 20
    assert long.service_seconds == day.SERVICE_SECONDS_MAX
    assert served.number == long.number and served.home_region == long.home_region
    assert (served.customer, left.customer) == ("77", "")
    assert set(made.agent_regions) == {"dorit", "tova"}
    assert any("constructed" in note.lower() for note in made.notes)


def test_agents_override_the_logs(tmp_path: Path) -> None:
    loaded = replay.load(log_file(tmp_path / "l.tsv", *ROWS), wanted="990201", hours=None, seed=1, agents=5)
    assert len(loaded.day.agent_regions) == 5
    assert loaded.day.window_seconds == 24 * 3600


def test_a_window_without_servers_is_refused(tmp_path: Path) -> None:
    path = log_file(tmp_path / "l.tsv", ROWS[1])
    with pytest.raises(CallLogError, match="AGENTS"):
        replay.load(path, wanted=None, hours=4, seed=1, agents=None)


def test_agent_ids_are_directory_ids() -> None:
    assert replay.agent_id("AVI NI/2") == "avi-ni-2"
    assert replay.agent_id("##") == "agent"


# --- the reference
# -------------------------------------------------------------------------------------------------------


def small_day(calls: list[tuple[float, float, float]], duties: list[tuple[str, float, float]]) -> Day:
    """Calls as (arrival, service, patience)."""
    made = [
        DayCall(
            id=str(index), arrival_seconds=at, service_seconds=service, patience_seconds=patience,
            type="PS", priority=0, customer="", number="+8613800000000", home_region="beijing",
        )
        for index, (at, service, patience) in enumerate(calls)
    ]  # fmt: skip
    return Day(
        source="log",
        title="small",
        date=DATE,
        window_start_seconds=0,
        window_seconds=3600,
        calls=tuple(made),
        duties=tuple(Duty(agent=a, start_seconds=s, end_seconds=e) for a, s, e in duties),
        agent_regions={agent: "beijing" for agent, _, _ in duties},
    )


def test_the_reference_of_a_hand_worked_day() -> None:
    # One agent. The first call is served at once; the second waits 90 s; the third leaves after 30 s.
    found = reference.run(
        small_day([(0, 100, 999), (10, 60, 999), (20, 60, 30)], [("amy", 0, 3600)]), credit_seconds_of={}
    )
    assert (found.answered, found.abandoned) == (2, 1)
    assert found.asa_seconds == pytest.approx(45.0, abs=0.1)


def test_the_reference_knows_breaks() -> None:
    # The agent begins at 500 s, has a break from 600 s to 1000 s, and finishes what is in hand first.
    made = small_day([(0, 200, 9999), (650, 50, 9999)], [("amy", 500, 600), ("amy", 1000, 3600)])
    found = reference.run(made, credit_seconds_of={})
    assert found.asa_seconds == pytest.approx((500 + 350) / 2, abs=0.1)


def test_an_agent_who_stays_adds_nobody_when_another_leaves() -> None:
    # Two agents, one leaves while both are busy: ciw's own schedules would bring in a third.
    calls = [(0.0, 100.0, 9999.0), (1.0, 100.0, 9999.0), (60.0, 10.0, 9999.0), (61.0, 10.0, 9999.0)]
    found = reference.run(small_day(calls, [("amy", 0, 3600), ("bob", 0, 50)]), credit_seconds_of={})
    assert found.asa_seconds == pytest.approx((0 + 0 + 41 + 50) / 4, abs=1.1)


def test_priority_is_a_credit_of_waiting() -> None:
    calls = [(0.0, 100.0, 9999.0), (10.0, 100.0, 9999.0), (20.0, 100.0, 9999.0)]
    made = small_day(calls, [("amy", 0, 3600)])
    late = dataclasses.replace(made, calls=(*made.calls[:2], dataclasses.replace(made.calls[2], priority=2)))
    plain, credited = (reference.run(d, credit_seconds_of={2: 90.0}) for d in (made, late))
    assert plain.asa_seconds == pytest.approx(credited.asa_seconds)
    impatient = dataclasses.replace(late.calls[2], patience_seconds=100.0)
    saved = dataclasses.replace(late, calls=(*late.calls[:2], impatient))
    assert reference.run(saved, credit_seconds_of={2: 90.0}).abandoned == 0
    assert reference.run(saved, credit_seconds_of={}).abandoned == 1


def test_who_hangs_up_at_once_is_abandoned_in_the_reference_too() -> None:
    found = reference.run(small_day([(0, 100, 0)], [("amy", 0, 3600)]), credit_seconds_of={})
    assert (found.answered, found.abandoned) == (0, 1)


def test_breaks_of_duties() -> None:
    duties = [
        Duty(agent="amy", start_seconds=10, end_seconds=20),
        Duty(agent="amy", start_seconds=30, end_seconds=100),
        Duty(agent="bob", start_seconds=0, end_seconds=50),
    ]
    assert reference.breaks_of(duties, 100) == [(0, 10), (20, 30), (50, 100)]


def test_erlang_agrees_with_the_reference() -> None:
    made = day.generate(seed=1, date=DATE)
    mean = statistics.mean(call.service_seconds for call in made.calls)
    load = len(made.calls) * mean / made.window_seconds
    enough = staffing.agents_needed(load, mean)
    busy = day.generate(seed=1, date=DATE, agents=enough)
    assert reference.run(busy, credit_seconds_of={}).service_level_ratio > 0.75


def test_clock_text() -> None:
    assert (clock_text(0), clock_text(29_100), clock_text(90_000)) == ("00:00", "08:05", "25:00")
