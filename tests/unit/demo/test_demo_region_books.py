"""What the books say of a lost region, by small examples with known answers."""

from __future__ import annotations

import math

import pytest
from bench.chaos.region_books import (
    answers,
    connected_twice,
    home_again,
    moved_seconds,
    reroute_seconds,
)
from bench.chaos.region_parties import preferences

from cli.demo.ledger import Conversation, Entry, Fact, Ledger


def ledger(*rows: tuple[str, Fact, float, str, str]) -> Ledger:
    """(call, fact, at, region, agent), in any order."""
    found = Ledger()
    for call, fact, at, region, agent in sorted(rows, key=lambda row: row[2]):
        found.write(Entry(call=call, fact=fact, at=at, business=at, region=region, agent=agent))
    return found


def served(
    call: str, asked: float, waits: float, region: str, agent: str = "a"
) -> list[tuple[str, Fact, float, str, str]]:
    return [
        (call, Fact.ASKED, asked, "", ""),
        (call, Fact.QUEUED, asked + waits / 2, region, ""),
        (call, Fact.BRIDGED, asked + waits, region, agent),
        (call, Fact.TALKED, asked + waits + 1, region, agent),
    ]


def test_new_callers_of_the_area_are_those_who_asked_while_it_was_lost() -> None:
    book = ledger(
        *served("before", 9.0, 3.0, "east"),
        *served("new", 11.0, 2.5, "west"),
        ("nobody", Fact.ASKED, 12.0, "", ""),
        *served("other", 11.0, 9.0, "west"),
        *served("after", 30.0, 1.0, "east"),
    )
    homes = dict.fromkeys(("before", "new", "nobody", "after"), "east") | {"other": "west"}
    found = reroute_seconds(answers(book, homes, "east"), 10.0, 20.0)
    assert found == {"new": 2.5, "nobody": math.inf}


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([("c", Fact.MOVED, 14.0, "west", "")], 4.0),
        # Queued there again is not elsewhere; an agent is an agent.
        ([("c", Fact.QUEUED, 12.0, "east", ""), ("c", Fact.BRIDGED, 17.0, "east", "a")], 7.0),
        ([("c", Fact.REOPENED, 12.0, "", ""), ("c", Fact.QUEUED, 13.0, "west", "")], 3.0),
        ([("c", Fact.HUNG_UP, 15.0, "", "")], 5.0),
        ([], math.inf),
    ],
)
def test_who_waited_there_is_safe_with_a_place_elsewhere(
    rows: list[tuple[str, Fact, float, str, str]], seconds: float
) -> None:
    book = ledger(
        ("c", Fact.ASKED, 8.0, "", ""),
        ("c", Fact.QUEUED, 9.0, "east", ""),
        *served("talking", 5.0, 1.0, "east"),
        *served("elsewhere", 8.0, 9.0, "west"),
        *rows,
    )
    assert moved_seconds(book, "east", 10.0) == {"c": seconds}


def test_a_region_is_back_with_its_callers_and_all_of_its_agents() -> None:
    rows = []
    for n in range(20):
        at = 20.0 + n / 2
        rows += served(f"c{n}", at, 0.5, "west" if n < 4 else "east", agent=f"a{n % 3}")
    homes = {f"c{n}": "east" for n in range(20)}
    found = answers(ledger(*rows), homes, "east")
    assert home_again(found, "east", ["a0"], 20.0) == 2.0, "from the fifth caller on"
    assert home_again(found, "east", ["a0", "a1", "a2"], 20.0) == 2.0
    assert home_again(found, "east", ["a0", "asleep"], 20.0) == math.inf
    assert home_again(found[:6], "east", ["a0"], 20.0) == math.inf, "too few have called since to say so"


def test_connected_twice() -> None:
    whole = served("c", 1.0, 1.0, "east", "ann")
    again = ("c", Fact.BRIDGED, 2.5, "west", "bob")
    assert connected_twice(ledger(*whole), [Conversation(agent="ann", call="c", start=2.0, end=3.0)]) == []
    assert connected_twice(ledger(*whole, again), []) == ["c"], "while they talked"
    assert connected_twice(ledger(*whole, ("c", Fact.BRIDGED, 9.0, "west", "bob")), []) == ["c"], "after it"
    broken = [
        *whole[:3],
        ("c", Fact.BROKEN, 2.2, "east", "ann"),
        again,
        ("c", Fact.TALKED, 4.0, "west", "bob"),
    ]
    late = Conversation(agent="ann", call="c", start=2.0, end=9.0)
    assert connected_twice(ledger(*broken), [late]) == [], "her desktop was cut off and heard of it late"
    stranger = Conversation(agent="eve", call="c", start=2.1, end=2.9)
    assert connected_twice(ledger(*whole), [stranger]) == ["c"], "two agents on one line"


def test_an_edge_asks_another_region_before_its_own_regions_second_router() -> None:
    order = preferences({"east": ["e0", "e1"], "west": ["w0", "w1"], "north": ["n0", "n1"]})
    assert order["e0"] == ["e0", "w0", "n0", "e1", "w1", "n1"]
    assert order["n1"][:3] == ["n1", "e1", "w1"]
    assert all(sorted(each) == sorted(order) for each in order.values())
