"""Who is free for a line: the order of each strategy's index, whatever came and went before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.state.free import INBOX_MAX, OUTDATED_MAX, ByHeap, ByLot, ByRank, ByTurn, Free, Place

Make = Callable[[Callable[[Place], int]], Free]
INDEXES: list[Make] = [ByTurn, ByRank, ByHeap, ByLot]
RANKED: list[Make] = [ByRank, ByHeap]
#: (agent's number, rank): comes with it, or goes if free.
MOVES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=300)


def rank_of(place: Place) -> int:
    value: int = place.agent
    return value


def run(free: Free, moves: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Lets agents come and go, and the line be asked now and then; who is free then, with rank and turn."""
    places: dict[str, Place] = {}
    expected: dict[str, tuple[int, int]] = {}
    for turn, (number, rank) in enumerate(moves):
        agent = f"a{number}"
        if agent in expected:
            places.pop(agent).live = False
            del expected[agent]
        else:
            places[agent] = Place(agent, rank, turn)
            free.add(places[agent])
            expected[agent] = (rank, turn)
        if number == 0:
            free.best(turn)
    return expected


@pytest.mark.parametrize("make", RANKED)
@settings(max_examples=50, deadline=None)
@given(moves=MOVES)
def test_lowest_rank_first_then_who_came_first(make: Make, moves: list[tuple[int, int]]) -> None:
    free = make(rank_of)
    expected = run(free, moves)
    wanted = sorted(expected, key=lambda agent: expected[agent])
    assert free.order() == wanted
    assert free.count() == len(wanted)
    assert free.best(0) == (wanted[0] if wanted else None)


@pytest.mark.parametrize("make", [ByTurn, ByRank, ByHeap])
@given(turns=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40))
def test_whoever_is_put_back_stands_where_it_stood(make: Make, turns: list[tuple[int, bool]]) -> None:
    free = make(lambda place: 0)
    for number, (turn, asked) in enumerate(turns):
        free.add_back(Place(f"a{number}", 0, turn))
        if asked:
            free.best(0)
    wanted = [f"a{n}" for n, _ in sorted(enumerate(turns), key=lambda each: each[1][0])]
    assert free.order() == wanted
    assert free.best(0) == (wanted[0] if wanted else None)


@settings(max_examples=50, deadline=None)
@given(moves=MOVES, lot=st.integers(0, 2**64))
def test_a_lot_falls_on_somebody_free(moves: list[tuple[int, int]], lot: int) -> None:
    free = ByLot(rank_of)
    expected = run(free, moves)
    drawn = free.best(lot)
    assert drawn in expected if expected else drawn is None
    assert sorted(free.order()) == sorted(expected)


def test_everybody_can_be_drawn() -> None:
    free = ByLot(rank_of)
    for agent in "abc":
        free.add(Place(agent, 0, 0))
    assert {free.best(lot) for lot in range(3)} == {"a", "b", "c"}


@pytest.mark.parametrize("make", INDEXES)
def test_coming_and_going_leaves_nothing_behind(make: Make) -> None:
    free = make(rank_of)
    for turn in range(50 * OUTDATED_MAX):
        place = Place("a", turn % 5, turn)
        free.add(place)
        if turn % 3 == 0:
            free.best(0)
        place.live = False
    assert free.count() == 0
    assert free.length <= OUTDATED_MAX + 1 and len(free.inbox) <= INBOX_MAX
    assert free.best(7) is None


def test_without_ranks_who_came_first_is_taken() -> None:
    free = ByTurn(rank_of)
    places = [Place(agent, 0, 0) for agent in "abc"]
    for place in places:
        free.add(place)
    assert (free.best(0), free.order(2)) == ("a", ["a", "b"])
    places[0].live = False
    assert (free.best(0), free.order(), free.count()) == ("b", ["b", "c"], 2)
