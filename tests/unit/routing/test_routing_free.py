"""Who is free for a line: the order of each strategy's index, whatever came and went before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.free import OUTDATED_MAX, ByHeap, ByLot, ByRank, Free, Place

INDEXES: list[Callable[[], Free]] = [ByRank, ByHeap, ByLot]
RANKED: list[Callable[[], Free]] = [ByRank, ByHeap]
#: (agent's number, rank): comes with it, or goes if free.
MOVES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=300)


def leave(free: Free, place: Place) -> None:
    place.live = False
    free.count -= 1


def run(free: Free, moves: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Lets agents come and go; who is free then, with rank and turn."""
    places: dict[str, Place] = {}
    expected: dict[str, tuple[int, int]] = {}
    for turn, (number, rank) in enumerate(moves):
        agent = f"a{number}"
        if agent in expected:
            leave(free, places.pop(agent))
            del expected[agent]
        else:
            places[agent] = Place(agent)
            free.add(places[agent], rank)
            expected[agent] = (rank, turn)
    return expected


@pytest.mark.parametrize("make", RANKED)
@settings(max_examples=50, deadline=None)
@given(moves=MOVES)
def test_lowest_rank_first_then_who_came_first(
    make: Callable[[], Free], moves: list[tuple[int, int]]
) -> None:
    free = make()
    expected = run(free, moves)
    wanted = sorted(expected, key=lambda agent: expected[agent])
    assert free.order() == wanted
    assert free.count == len(wanted)
    assert free.best(0) == (wanted[0] if wanted else None)


@settings(max_examples=50, deadline=None)
@given(moves=MOVES, lot=st.integers(0, 2**64))
def test_a_lot_falls_on_somebody_free(moves: list[tuple[int, int]], lot: int) -> None:
    free = ByLot()
    expected = run(free, moves)
    drawn = free.best(lot)
    assert drawn in expected if expected else drawn is None
    assert sorted(free.order()) == sorted(expected)


def test_everybody_can_be_drawn() -> None:
    free = ByLot()
    for agent in "abc":
        free.add(Place(agent), 0)
    assert {free.best(lot) for lot in range(3)} == {"a", "b", "c"}


@pytest.mark.parametrize("make", INDEXES)
def test_coming_and_going_leaves_nothing_behind(make: Callable[[], Free]) -> None:
    free = make()
    for turn in range(50 * OUTDATED_MAX):
        place = Place("a")
        free.add(place, turn % 5)
        leave(free, place)
    assert free.count == 0
    assert free.length <= OUTDATED_MAX + 1
    assert free.best(7) is None
