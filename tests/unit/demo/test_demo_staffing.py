"""Duty spans from a log, dealing agents over regions, and Erlang's staffing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.demo import staffing
from cli.demo.model import Duty


def spans(duties: list[Duty]) -> list[tuple[str, float, float]]:
    return [(duty.agent, duty.start_seconds, duty.end_seconds) for duty in duties]


def test_short_gaps_are_joined_and_long_ones_are_breaks() -> None:
    services = {"amy": [(100.0, 200.0), (800.0, 900.0), (1501.0, 1600.0)]}
    assert spans(staffing.duties_from_services(services, 0, 10_000)) == [
        ("amy", 100, 900),
        ("amy", 1501, 1600),
    ]


def test_spans_are_clipped_to_the_window_and_counted_from_it() -> None:
    services = {"amy": [(0.0, 1200.0)], "bob": [(0.0, 900.0)], "cyd": [(1900.0, 2500.0)]}
    found = staffing.duties_from_services(services, 1000, 2000)
    assert spans(found) == [("amy", 0, 200), ("cyd", 900, 1000)]


def test_a_service_within_another_does_not_shorten_the_span() -> None:
    services = {"amy": [(0.0, 5000.0), (10.0, 20.0)]}
    assert spans(staffing.duties_from_services(services, 0, 10_000)) == [("amy", 0, 5000)]


def test_capacity_by_slot_adds_up() -> None:
    duties = [
        Duty(agent="amy", start_seconds=900, end_seconds=2700),
        Duty(agent="amy", start_seconds=3500, end_seconds=9999),
    ]
    assert staffing.capacity_by_slot(duties, 3600) == {"amy": [900.0, 900.0 + 100.0]}


def test_equal_agents_are_dealt_by_the_shares() -> None:
    capacity = {f"a{n}": [1800.0] * 4 for n in range(10)}
    dealt = staffing.deal(capacity, {"x": 0.5, "y": 0.3, "z": 0.2})
    counts = {region: list(dealt.values()).count(region) for region in "xyz"}
    assert counts == {"x": 5, "y": 3, "z": 2}


def test_early_and_late_shifts_are_mixed() -> None:
    early = {f"e{n}": [1800.0, 0.0] for n in range(4)}
    late = {f"l{n}": [0.0, 1800.0] for n in range(4)}
    dealt = staffing.deal(early | late, {"x": 0.5, "y": 0.5})
    for kind in "el":
        assert sum(dealt[f"{kind}{n}"] == "x" for n in range(4)) == 2


@given(
    st.lists(st.lists(st.floats(0, 1800), min_size=4, max_size=4), min_size=1, max_size=14),
    st.lists(st.floats(0.05, 1), min_size=2, max_size=4),
)
def test_dealing_is_complete_and_no_single_move_would_help(
    rows: list[list[float]], weights: list[float]
) -> None:
    capacity = {f"a{index:02d}": row for index, row in enumerate(rows)}
    shares = {f"r{index}": weight / sum(weights) for index, weight in enumerate(weights)}
    dealt = staffing.deal(capacity, shares)
    assert dealt.keys() == capacity.keys()

    def imbalance(assignment: dict[str, str]) -> float:
        total = [sum(row[slot] for row in rows) for slot in range(4)]
        return sum(
            (shares[r] * total[s] - sum(capacity[a][s] for a in assignment if assignment[a] == r)) ** 2
            for r in shares
            for s in range(4)
        )

    best = imbalance(dealt)
    for agent in dealt:
        for region in shares:
            assert imbalance(dealt | {agent: region}) >= best - 1e-3


def test_erlang_c_of_a_textbook_case() -> None:
    # 50 agents, 48 erlangs: the wait of issue trackers' anchors, 20.8 s with a mean service of 60 s.
    waiting = staffing.erlang_c(50, 48.0)
    assert waiting * 60.0 / (50 - 48.0) == pytest.approx(20.8, abs=0.1)
    assert staffing.erlang_c(3, 3.0) == 1.0
    assert staffing.erlang_c(3, 0.0) == 0.0


@given(st.floats(0.1, 60), st.floats(30, 600))
def test_agents_needed_meets_the_target_and_the_square_root_rule(load: float, mean: float) -> None:
    agents = staffing.agents_needed(load, mean)
    assert agents >= load + 0.5 * load**0.5
    assert staffing.erlang_c(agents, load) < 1.0
    assert staffing.agents_needed(0.0, mean) == 0


def test_no_agent_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        staffing.constant_duties(0, 100)
