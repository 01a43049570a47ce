"""Trees of least cost against all trees there are."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.menus.codes import (
    ORDERED_MAX,
    Bundle,
    cheapest,
    cheapest_in_order,
    least_presses,
    split,
    told_in_order,
)

WEIGHTS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def presses(level: Sequence[Any], weights: Sequence[float], depth: int = 1) -> float:
    """Weight times depth over a level and what is below it."""
    return sum(
        presses(entry.members, weights, depth + 1) if isinstance(entry, Bundle) else weights[entry] * depth
        for entry in level
    )


def items_of(level: Sequence[Any]) -> list[int]:
    return [i for e in level for i in (items_of(e.members) if isinstance(e, Bundle) else [e])]


def widest(level: Sequence[Any]) -> int:
    return max([len(level), *(widest(e.members) for e in level if isinstance(e, Bundle))])


def partitions(items: tuple[int, ...], most: int) -> Iterator[list[tuple[int, ...]]]:
    """All ways to put items into at most `most` blocks."""
    if not items:
        yield []
        return
    for blocks in partitions(items[1:], most):
        for i in range(len(blocks)):
            yield [*blocks[:i], (items[0], *blocks[i]), *blocks[i + 1 :]]
        if len(blocks) < most:
            yield [(items[0],), *blocks]


def cuts(items: tuple[int, ...], most: int) -> Iterator[list[tuple[int, ...]]]:
    """All ways to cut a row into at most `most` pieces."""
    for pieces in range(1, min(most, len(items)) + 1):
        for at in itertools.combinations(range(1, len(items)), pieces - 1):
            ends = [0, *at, len(items)]
            yield [items[a:b] for a, b in itertools.pairwise(ends)]


def least(weights: Sequence[int], arity: int, top: int, ways: Any) -> float:
    """The least cost of all trees."""

    @functools.cache
    def level(items: tuple[int, ...], most: int) -> float:
        if most == 1 and len(items) > 1:
            return sum(weights[i] for i in items) + level(items, arity)
        found = math.inf
        for blocks in ways(items, most):
            if len(blocks) > 1 or len(items) == 1:
                below = sum(0 if len(b) == 1 else level(b, arity) for b in blocks)
                found = min(found, sum(weights[i] for i in items) + below)
        return found

    return level(tuple(range(len(weights))), top)


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, arity=st.integers(2, 4), top=st.integers(1, 4))
def test_the_cheapest_tree_is_the_cheapest_of_all(weights: list[int], arity: int, top: int) -> None:
    top = min(top, arity)
    tree = cheapest(weights, range(len(weights)), arity, top)
    assert sorted(items_of(tree)) == list(range(len(weights)))
    assert len(tree) <= top and widest(tree) <= arity
    assert presses(tree, weights) == least(weights, arity, top, partitions)
    if top == arity and len(weights) > 1:
        assert least_presses(weights, arity) == presses(tree, weights)


@settings(max_examples=40, deadline=None)
@given(weights=WEIGHTS, arity=st.integers(2, 4), top=st.integers(1, 4))
def test_the_cheapest_tree_in_order_is_the_cheapest_of_those(
    weights: list[int], arity: int, top: int
) -> None:
    top = min(top, arity)
    tree = cheapest_in_order(weights, range(len(weights)), arity, top)
    assert items_of(tree) == list(range(len(weights)))
    assert len(tree) <= top and widest(tree) <= arity
    assert presses(tree, weights) == least(weights, arity, top, cuts)


def told(level: Sequence[Any], weights: Sequence[float], costs: Sequence[float]) -> float:
    """Cost of a tree in which choosing the i-th entry of a level costs costs[i]."""
    return sum(
        cost * sum(weights[i] for i in items_of([entry]))
        + (told(entry.members, weights, costs) if isinstance(entry, Bundle) else 0.0)
        for cost, entry in zip(costs, level, strict=False)
    )


def least_told(weights: Sequence[int], costs: Sequence[float]) -> float:
    @functools.cache
    def level(items: tuple[int, ...]) -> float:
        found = math.inf
        for blocks in partitions(items, len(costs)):
            if len(blocks) < 2:
                continue
            heavy = sorted((sum(weights[i] for i in b) for b in blocks), reverse=True)
            here = sum(c * w for c, w in zip(costs, heavy, strict=False))
            found = min(found, here + sum(level(b) for b in blocks if len(b) > 1))
        return found

    return level(tuple(range(len(weights)))) if len(weights) > 1 else costs[0] * weights[0]


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6), heavy=st.floats(0.0, 3.0))
def test_splitting_is_near_the_cheapest_where_later_choices_cost_more(
    weights: list[int], heavy: float
) -> None:
    costs = [1.0 + heavy * place for place in range(1, 5)]
    tree = split(weights, range(len(weights)), costs, costs)
    assert sorted(items_of(tree)) == list(range(len(weights))) and widest(tree) <= 4
    best = least_told(weights, costs)
    # The bound of the method is one dearest choice above the entropy's; that is above the best by no more.
    assert best - 1e-9 <= told(tree, weights, costs) <= best + costs[-1] * sum(weights)


@settings(max_examples=40, deadline=None)
@given(items=st.lists(st.tuples(st.integers(0, 9), st.floats(0.5, 9.0)), min_size=1, max_size=5))
def test_telling_by_weight_for_time_is_the_quickest_order(items: list[tuple[int, float]]) -> None:
    def expected(order: Sequence[tuple[int, float]]) -> float:
        ends = itertools.accumulate(seconds for _, seconds in order)
        return sum(weight * end for (weight, _), end in zip(order, ends, strict=True))

    mine = told_in_order(items, lambda item: item[0], lambda item: item[1])
    assert (
        expected(mine) <= min(expected(order) for order in itertools.permutations(items)) * (1 + 1e-9) + 1e-9
    )


def test_zero_weights_and_equal_ones_make_low_trees() -> None:
    def deepest(level: Sequence[Any]) -> int:
        return 1 + max((deepest(e.members) for e in level if isinstance(e, Bundle)), default=0)

    assert deepest(cheapest([0.0] * 729, range(729), 9, 9)) == 3
    draw = random.Random(4)
    skewed = [draw.paretovariate(0.3) for _ in range(2_000)]
    assert deepest(cheapest(skewed, range(2_000), 2, 2)) < 200


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="two choices"):
        cheapest([1], ["a"], 1, 9)
    with pytest.raises(ValueError, match="place at the top"):
        cheapest([1], ["a"], 9, 0)
    with pytest.raises(ValueError, match="two choices"):
        split([1], ["a"], [1.0], [1.0])
    with pytest.raises(ValueError, match=str(ORDERED_MAX)):
        cheapest_in_order([1.0] * (ORDERED_MAX + 1), range(ORDERED_MAX + 1), 9, 9)
    assert least_presses([], 9) == 0 and least_presses([5.0], 9) == 5
