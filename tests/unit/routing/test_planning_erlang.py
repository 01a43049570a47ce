"""Erlang-A: published values, laws, and the engine under virtual time."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from routing.model import AgentConfig, QueueConfig
from routing.planning.erlang import Demand, agents_needed, fates, performance
from routing.planning.marginal import MarginalCost
from routing.virtual import Contact, Duty, Fate, Roster, run_day

DEMANDS = st.builds(
    Demand,
    rate=st.floats(1e-4, 2.0),
    handle_seconds=st.floats(10, 600),
    patience_seconds=st.floats(5, 5_000),
    target_seconds=st.floats(0, 120),
    short_abandon_seconds=st.floats(0, 10),
)


def test_the_published_example() -> None:
    # Garnett, Mandelbaum and Reiman 2002, table 1: 50 agents, 48 calls a minute, one minute each.
    patient = performance(50, Demand(rate=0.8, handle_seconds=60))
    assert patient.wait_seconds == pytest.approx(20.8, abs=0.05)
    leaving = performance(50, Demand(rate=0.8, handle_seconds=60, patience_seconds=120))
    assert leaving.wait_seconds == pytest.approx(3.7, abs=0.05)
    assert leaving.abandoned_ratio == pytest.approx(0.031, abs=0.0005)


@pytest.mark.parametrize(
    ("agents", "load", "delayed"),
    # Erlang C by its definition, from Erlang's B recursion.
    [(2, 1.0, 1 / 3), (1, 0.5, 0.5), (3, 2.0, 4 / 9), (5, 4.0, 0.5541126)],
)
def test_nobody_leaves_is_erlang_c(agents: int, load: float, delayed: float) -> None:
    demand = Demand(rate=load / 100, handle_seconds=100, target_seconds=20, short_abandon_seconds=5)
    found = performance(agents, demand)
    assert found.delayed_ratio == pytest.approx(delayed, rel=1e-5)
    assert found.service_level == pytest.approx(1 - delayed * math.exp(-(agents - load) * 20 / 100), rel=1e-5)
    assert found.wait_seconds == pytest.approx(delayed * 100 / (agents - load), rel=1e-5)


def test_one_agent_and_nobody_waits_is_erlang_b() -> None:
    # Whoever would wait leaves at once: lost calls, B(n, a).
    lost = 1.0
    for n in range(1, 11):
        lost = 10.0 * lost / (n + 10.0 * lost)
    found = performance(10, Demand(rate=0.1, handle_seconds=100, patience_seconds=0.001))
    assert found.abandoned_ratio == pytest.approx(lost, rel=1e-4)
    assert lost == pytest.approx(0.2146, abs=5e-5)  # Erlang's table


@settings(max_examples=30, deadline=None)
@given(DEMANDS, st.integers(0, 200))
def test_more_agents_are_never_worse(demand: Demand, agents: int) -> None:
    fewer, more = performance(agents, demand), performance(agents + 1, demand)
    for found in (fewer, more):
        shares = (found.abandoned_ratio, found.service_level, found.delayed_ratio, found.occupancy)
        assert all(0.0 <= share <= 1.0 for share in shares)
    assert more.service_level >= fewer.service_level - 1e-9
    assert more.abandoned_ratio <= fewer.abandoned_ratio + 1e-9
    assert more.wait_seconds <= fewer.wait_seconds * (1 + 1e-9) + 1e-9


@settings(max_examples=30, deadline=None)
@given(DEMANDS, st.integers(1, 100))
def test_what_comes_in_goes_out(demand: Demand, agents: int) -> None:
    found = performance(agents, demand)
    # Who does not leave is served: flow balance. Leavers wait their patience out: Little's law.
    served = found.occupancy * agents / demand.handle_seconds
    assert served == pytest.approx(demand.rate * (1 - found.abandoned_ratio), rel=1e-6, abs=1e-12)
    assert found.wait_seconds == pytest.approx(found.abandoned_ratio * demand.patience_seconds, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(DEMANDS, st.floats(0.1, 0.99))
def test_agents_needed_is_the_least_number(demand: Demand, target: float) -> None:
    needed = agents_needed(demand, target)
    assert performance(needed, demand).service_level >= target
    assert needed == 0 or performance(needed - 1, demand).service_level < target


def test_large_and_small_systems_keep_their_digits() -> None:
    big = Demand(rate=10_000 / 180, handle_seconds=180, patience_seconds=300)
    assert 0.999 < performance(10_000, big).service_level <= 1.0
    assert performance(50_000, big).occupancy == pytest.approx(0.2)
    assert performance(10, big).abandoned_ratio == pytest.approx(0.999, abs=1e-3)
    assert 10_000 <= agents_needed(Demand(rate=10_000 / 180, handle_seconds=180)) < 10_100
    # Patience without end is the limit of long patience.
    long = performance(50, Demand(rate=0.8, handle_seconds=60, patience_seconds=1e9))
    assert long.service_level == pytest.approx(
        performance(50, Demand(rate=0.8, handle_seconds=60)).service_level, rel=1e-5
    )


def test_the_fate_of_a_caller_by_drawing() -> None:
    demand = Demand(rate=0.1, handle_seconds=100, patience_seconds=60)
    rng = random.Random(1)
    for (answered, left), ahead in zip(fates(4, demand), range(4), strict=False):
        drawn = []
        for _ in range(20_000):
            wait = sum(rng.expovariate(4 / 100 + n / 60) for n in range(ahead + 1))
            drawn.append((wait, rng.expovariate(1 / 60)))
        assert answered == pytest.approx(sum(w <= min(20, p) for w, p in drawn) / 20_000, abs=0.015)
        assert left == pytest.approx(sum(p < w and p <= 5 for w, p in drawn) / 20_000, abs=0.015)


def test_the_engine_agrees() -> None:
    demand = Demand(rate=1 / 30, handle_seconds=170, patience_seconds=300)
    rng = random.Random(7)
    now, contacts = 0.0, []
    for n in range(3_000):
        now += rng.expovariate(demand.rate) * 1000
        contacts.append(
            Contact(
                id=f"c{n:05d}",
                queue="service",
                arrival_ms=round(now),
                talk_ms=max(1, round(rng.expovariate(1 / 170) * 1000)),
                patience_ms=max(1, round(rng.expovariate(1 / 300) * 1000)),
            )
        )
    agents = tuple(AgentConfig(id=f"a{n}") for n in range(7))
    duties = tuple(Duty(agent=a.id, start_ms=0, end_ms=round(now) + 10_000_000) for a in agents)
    roster = Roster(queues=(QueueConfig(id="service", wrap_up_span_ms=0),), agents=agents, duties=duties)
    outcomes = run_day(roster, contacts, until_ms=round(now) + 9_000_000).outcomes
    answered = [o for o in outcomes if o.fate is Fate.ANSWERED]
    counted = len(answered) + sum(o.fate is Fate.ABANDONED and o.wait_ms > 5_000 for o in outcomes)
    exact = performance(7, demand)
    assert sum(o.wait_ms <= 20_000 for o in answered) / counted == pytest.approx(
        exact.service_level, abs=0.04
    )
    assert 1 - len(answered) / len(outcomes) == pytest.approx(exact.abandoned_ratio, abs=0.015)


@pytest.mark.parametrize(
    ("how", "field"),
    [
        (lambda: Demand(rate=-1, handle_seconds=60), "rate"),
        (lambda: Demand(rate=math.nan, handle_seconds=60), "rate"),
        (lambda: Demand(rate=1, handle_seconds=0), "handle_seconds"),
        (lambda: Demand(rate=1, handle_seconds=60, patience_seconds=0), "patience_seconds"),
        (lambda: Demand(rate=1, handle_seconds=60, patience_seconds=math.nan), "patience_seconds"),
        (lambda: performance(-1, Demand(rate=1, handle_seconds=60)), "agents"),
        (lambda: agents_needed(Demand(rate=1, handle_seconds=60), 1.0), "service_level"),
        (lambda: agents_needed(Demand(rate=1, handle_seconds=60), 0.8, 0.0), "occupancy_max"),
        (lambda: agents_needed(Demand(rate=1e5, handle_seconds=3_600)), "rate"),
    ],
)
def test_numbers_out_of_range_are_named(how: object, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        how()  # type: ignore[operator]
    assert caught.value.values["field"] == field


# --- what taking agents away costs


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.floats(0.2, 0.9), st.floats(10, 400), st.floats(30, 2_000))
def test_the_cost_of_an_agent_away(agents: int, busy: float, away: float, patience: float) -> None:
    demand = Demand(rate=busy * agents / 180, handle_seconds=180, patience_seconds=patience)
    table = MarginalCost(agents, demand, away)
    costs = [table.cost(0, x) for x in range(agents)]
    assert all(cost >= 0 for cost in costs)
    # The more callers are there, the dearer, while somebody is free.
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(costs))
    # The mean rate of late calls is Erlang-A's own.
    steady = performance(agents, demand)
    short = late = 0.0
    weight = 1.0
    for ahead, (answered, left) in zip(range(3_000), fates(agents, demand), strict=False):
        late += weight * (1 - answered - left)
        short += weight
        weight *= demand.rate / (agents / 180 + (ahead + 1) / patience)
    assert table.late_rate / demand.rate == pytest.approx(steady.delayed_ratio * late / short, abs=5e-3)


def test_a_longer_conversation_costs_more_and_a_hopeless_queue_a_call() -> None:
    demand = Demand(rate=6 / 177, handle_seconds=177, patience_seconds=600)
    by_length = [MarginalCost(8, demand, seconds).cost(0, 2) for seconds in (30, 60, 120, 240)]
    assert by_length == sorted(by_length)
    assert MarginalCost(3, Demand(rate=1, handle_seconds=60), 60).cost(0, 0) == 1.0
    assert MarginalCost(0, demand, 60).cost(0, 0) == 1.0
    assert MarginalCost(5, Demand(rate=0, handle_seconds=60), 60).cost(0, 0) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.floats(0.01, 2.0), st.sampled_from([math.inf, 1.0, 300.0]))
def test_the_cost_is_a_number_wherever_somebody_is_left(agents: int, load: float, patience: float) -> None:
    """Also where nobody ever hung up, and all agents but none may be away."""
    demand = Demand(rate=load / 60, handle_seconds=60, patience_seconds=patience)
    table = MarginalCost(agents, demand, 70.0)
    assert all(0 <= table.cost(away, x) < math.inf for away in range(agents + 1) for x in range(4))


def test_the_cost_by_drawing() -> None:
    """Late calls with one agent away for a while, less those with everybody there, on the same draws."""
    demand = Demand(rate=0.03, handle_seconds=150, patience_seconds=300)
    assert _drawn_cost(6, 2, 90.0, demand) == pytest.approx(MarginalCost(6, demand, 90.0).cost(0, 2), rel=0.3)


def _drawn_cost(agents: int, busy: int, away: float, demand: Demand) -> float:
    total, runs = 0, 5_000
    for seed in range(runs):
        rng = random.Random(seed)
        gone = rng.expovariate(1 / away)
        held = [rng.expovariate(1 / demand.handle_seconds) for _ in range(busy)]
        callers, at = [], 0.0
        while (at := at + rng.expovariate(demand.rate)) < 900.0:
            callers.append((at, rng.expovariate(1 / 150), rng.expovariate(1 / 300)))
        late = [
            _late(sorted(free + held + [0.0] * (agents - busy - len(free))), callers) for free in ([gone], [])
        ]
        total += late[0] - late[1]
    return total / runs


def _late(free: list[float], callers: list[tuple[float, float, float]]) -> int:
    late = 0
    for at, talk, patience in callers:
        wait = max(0.0, free[0] - at)
        if wait > patience:
            late += patience > 5
            continue
        late += wait > 20
        free = sorted([*free[1:], at + wait + talk])
    return late
