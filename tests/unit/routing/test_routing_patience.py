"""Kaplan-Meier against a hand-worked example, and draws from it."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.patience import kaplan_meier


def test_hand_worked_example() -> None:
    # Ten callers. At 5 s two leave (10 at risk), at 8 s one is served, at 10 s one leaves (7 at risk) and one
    # is served, at
    # 20 s three leave (5 at risk), two are served at 30 s.
    curve = kaplan_meier({5: 2, 10: 1, 20: 3}, {8: 1, 10: 1, 30: 2})
    assert curve.times == (5.0, 10.0, 20.0)
    assert curve.survival == pytest.approx((8 / 10, 8 / 10 * 6 / 7, 8 / 10 * 6 / 7 * 2 / 5))
    assert curve.at(4.9) == 1.0
    assert curve.at(5.0) == pytest.approx(0.8)
    assert curve.at(1e9) == pytest.approx(8 / 10 * 6 / 7 * 2 / 5)
    assert curve.tail_rate == pytest.approx(6 / (10 + 10 + 60 + 8 + 10 + 60))


def test_without_censoring_it_is_the_plain_share() -> None:
    curve = kaplan_meier({1: 1, 2: 1, 3: 1, 4: 1}, {})
    assert curve.survival == pytest.approx((0.75, 0.5, 0.25, 0.0))


def test_nobody_left_means_endless_patience() -> None:
    assert kaplan_meier({}, {5: 3}).draw_beyond(5, random.Random(1)) == float("inf")
    assert kaplan_meier({}, {}).draw_beyond(0, random.Random(1)) == float("inf")


def test_draws_follow_the_conditional_distribution() -> None:
    curve = kaplan_meier({10: 50, 20: 25, 30: 25}, {})
    rng = random.Random(7)
    drawn = [curve.draw_beyond(10, rng) for _ in range(4000)]
    assert set(drawn) == {20.0, 30.0}
    assert statistics.mean(value == 20.0 for value in drawn) == pytest.approx(0.5, abs=0.03)


@given(
    st.dictionaries(st.integers(1, 500), st.integers(1, 9), max_size=20),
    st.dictionaries(st.integers(0, 500), st.integers(1, 9), max_size=20),
    st.integers(0, 600),
    st.integers(),
)
def test_a_draw_is_always_beyond_the_wait(
    left: dict[int, int], served: dict[int, int], waited: int, seed: int
) -> None:
    curve = kaplan_meier(left, served)
    assert all(a >= b for a, b in zip(curve.survival, curve.survival[1:], strict=False))
    assert all(0.0 <= s <= 1.0 for s in curve.survival)
    assert curve.draw_beyond(waited, random.Random(seed)) > waited
