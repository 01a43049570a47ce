"""The queueing benchmark's own parts: formulas, intervals, replications, and one day of the log."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from bench.queueing import (
    SYSTEMS,
    LogDay,
    Task,
    compare_day,
    draw,
    erlang_a,
    interval,
    judge,
    judge_log,
    replicate,
    wrong_calls,
)

from routing.virtual import DayResult, Fate, Outcome

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("CALLMESH_DATA") or ROOT.parent / "shared" / "data")
LOG = DATA / "anonymous_bank_1999_02.tsv.gz"
BY_NAME = {system.name: system for system in SYSTEMS}


@pytest.mark.parametrize(
    ("name", "wait", "abandoned"),
    [
        ("erlang_c", 20.8, 0.0),
        ("erlang_a", 3.7, 0.031),
        ("pooled_c", 8.8, 0.0),
        ("pooled_a", 2.2, 0.018),
    ],
)
def test_theory_says_what_it_is_known_to_say(name: str, wait: float, abandoned: float) -> None:
    exact_wait, exact_abandoned = BY_NAME[name].exact()
    assert round(exact_wait, 1) == wait and round(exact_abandoned, 3) == abandoned


def test_erlang_a_of_one_server_worked_by_hand() -> None:
    # M/M/1 with rate, service and patience all 1: state n has weight 1/n!, so it is Poisson with mean 1.
    wait, abandoned = erlang_a(1, 1.0, 1.0, 1.0)
    waiting = math.exp(-1)
    assert wait == pytest.approx(60 * waiting) and abandoned == pytest.approx(waiting)


def test_an_interval_holds_the_mean_as_often_as_it_says_and_controls_make_it_narrow() -> None:
    rng = random.Random(5)
    held = 0
    for _ in range(400):
        controls = [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(12)]
        values = [7 + 3 * a - 2 * b + rng.gauss(0, 0.1) for a, b in controls]
        mean, half = interval(values, controls)
        held += abs(mean - 7) <= half
        assert half < 0.5
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_short_replication(name: str) -> None:
    system = BY_NAME[name]
    run = replicate(Task(system=system, seed=3, calls=400, warm_up=200))
    assert run.calls == 400 and run.commands > 5 * 600
    assert run.wrong_calls == (0 if system.sites == 1 else -1)
    assert (run.abandoned_ratio == 0) or system.patience_minutes is not None
    assert draw(Task(system=system, seed=3, calls=5, warm_up=1)) == draw(
        Task(system=system, seed=3, calls=5, warm_up=1)
    )


def test_what_is_not_theory_is_not_ok() -> None:
    system = BY_NAME["erlang_a"]
    runs = [replicate(Task(system=system, seed=seed, calls=300, warm_up=100)) for seed in range(5)]
    far = [replace(run, wait_seconds=run.wait_seconds + 60) for run in runs]
    figures, ok = judge(system, far)
    assert not ok and figures["erlang_a_wait_seconds_within"] is False


def test_a_wait_that_does_not_follow_is_counted() -> None:
    calls = draw(Task(system=BY_NAME["erlang_c"], seed=1, calls=3, warm_up=0))
    rows = [Outcome(contact=call, fate=Fate.ANSWERED, wait_ms=n) for n, call in enumerate(calls)]
    assert wrong_calls(DayResult(outcomes=tuple(rows), busy_ms={}, duty_ms={}, commands=0), 50) == 2


def test_a_log_day_that_differs_is_not_ok() -> None:
    same = LogDay(calls=100, engine_wait_seconds=10.0, ciw_wait_seconds=10.0, differing=1)
    assert judge_log([same])[1]
    assert not judge_log([replace(same, engine_wait_seconds=11.0)])[1]
    assert not judge_log([replace(same, differing=3)])[1]


@pytest.mark.skipif(not LOG.exists(), reason="the bank log (../shared/data) is not here")
def test_a_day_of_the_log_waits_as_long_as_ciw_says() -> None:
    day = compare_day((LOG, "1999-02-07", 1))
    assert day.calls > 1_000 and day.differing <= 0.02 * day.calls
    assert day.engine_wait_seconds == pytest.approx(day.ciw_wait_seconds, rel=0.01)
