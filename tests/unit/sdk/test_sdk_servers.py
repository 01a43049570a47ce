"""Which server a client calls, and when it goes home: the policy alone, in virtual time."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callmesh_sdk.servers import Homing, Return, Servers, order_of

ROUTERS = ("r0:1", "r1:1", "r2:1")
#: Asked every five seconds, give or take a fifth.
HOMING = Homing()


def test_a_crowd_is_spread_evenly_and_everybody_chooses_the_same_again() -> None:
    names = [f"agents/{number}" for number in range(3000)]
    orders = {name: order_of(name, ROUTERS) for name in names}
    assert orders == {name: order_of(name, reversed(ROUTERS)) for name in names}, "not by the order given"
    firsts = Counter(order[0] for order in orders.values())
    assert all(900 < firsts[router] < 1100 for router in ROUTERS)
    # The clients of a dead router go to all others alike.
    seconds = Counter(order[1] for order in orders.values() if order[0] == "r0:1")
    assert abs(seconds["r1:1"] - seconds["r2:1"]) < 150
    # A router more is the first choice of its share, and changes nobody else's.
    grown = {name: order_of(name, (*ROUTERS, "r3:1")) for name in names}
    moved = [name for name in names if grown[name][0] != orders[name][0]]
    assert 600 < len(moved) < 900 and {grown[name][0] for name in moved} == {"r3:1"}


def test_backups_come_last_and_nobody_is_named_twice() -> None:
    for number in range(50):
        order = order_of(f"agents/{number}", ("a", "b", "a"), ("x", "b", "y"))
        assert sorted(order[:2]) == ["a", "b"] and sorted(order[2:]) == ["x", "y"]


def told(story: list[tuple[float, str]], homing: Homing = HOMING, servers: Servers | None = None) -> Servers:
    """Servers after what happened to "a" by the second."""
    servers = servers or Servers(homing, random.Random(1))
    for at, what in story:
        if what == "lost":
            servers.lost("a", at)
        else:
            servers.heard("a", what == "serves", at)
    return servers


@pytest.mark.parametrize(
    ("story", "trusted"),
    [
        ([], True),
        ([(0, "lost")], False),
        # Once is not for a while.
        ([(0, "lost"), (1, "serves")], False),
        ([(0, "lost"), (1, "serves"), (6, "serves"), (15.9, "serves")], False),
        ([(0, "lost"), (1, "serves"), (6, "serves"), (16, "serves")], True),
        # Away in between, or lost by another stream: from the beginning.
        ([(0, "lost"), (1, "serves"), (6, "silent"), (11, "serves"), (16, "serves")], False),
        ([(0, "lost"), (1, "serves"), (6, "lost"), (11, "serves"), (16, "serves")], False),
        ([(0, "lost"), (1, "serves"), (6, "lost"), (11, "serves"), (26, "serves")], True),
        # Lost again soon: twice as long.
        ([(0, "lost"), (1, "serves"), (16, "serves"), (99, "lost"), (100, "serves"), (129, "serves")], False),
        ([(0, "lost"), (1, "serves"), (16, "serves"), (99, "lost"), (100, "serves"), (130, "serves")], True),
        # Lost again after a long time: forgiven.
        ([(0, "lost"), (1, "serves"), (16, "serves"), (917, "lost"), (918, "serves"), (933, "serves")], True),
        # Many streams break with one server: that is one loss.
        ([(0, "lost"), (0.1, "lost"), (0.2, "lost"), (1, "serves"), (16, "serves")], True),
        # Nobody was asked: nothing is known to be bad.
        ([(0, "silent")], True),
    ],
)
def test_a_lost_server_is_trusted_when_it_has_served_for_long_enough(
    story: list[tuple[float, str]], trusted: bool
) -> None:
    assert told(story).trusted("a") is trusted


def test_patience_with_a_server_that_comes_and_goes_grows_to_a_limit() -> None:
    servers, now, waits = Servers(HOMING, random.Random(1)), 0.0, []
    for _ in range(8):
        servers.lost("a", now)
        began = now
        while not servers.trusted("a"):
            servers.heard("a", True, now)
            now += 1.0
        waits.append(now - began - 1.0)
        now += 60.0
    assert waits == [15, 30, 60, 120, 240, 480, 600, 600]


def test_a_silent_server_is_asked_more_and_more_seldom() -> None:
    servers, now, asked = Servers(HOMING, random.Random(1)), 0.0, []
    servers.lost("a", now)
    while now < 200.0:
        at = servers.next_at()
        assert at is not None and servers.due(at - 0.001) == []
        now = at
        assert servers.due(now) == ["a"]
        asked.append(now)
        servers.heard("a", False, now)
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert asked[0] <= 5.0 and pauses[0] <= 6.0 and max(pauses) <= 24.0 and min(pauses[3:]) >= 16.0
    servers.heard("a", True, now)
    answered = servers.next_at()
    assert answered is not None and 4.0 <= answered - now <= 6.0, "once it answers, often again"


@pytest.mark.parametrize(
    ("lost", "failed", "chosen"),
    [
        ("", "", "a"),
        ("a", "", "b"),
        ("a", "a", "b"),
        ("ab", "b", "c"),
        # Trusted and yet no good: refused there, so elsewhere.
        ("", "a", "b"),
        ("a", "b", "c"),
        # Nobody is trusted: all in turn.
        ("abc", "a", "b"),
        ("abc", "b", "c"),
        ("abc", "c", "a"),
        ("abc", "", "a"),
        ("abc", "somewhere else", "a"),
    ],
)
def test_the_first_trusted_one_is_called(lost: str, failed: str, chosen: str) -> None:
    servers = Servers(HOMING)
    for address in lost:
        servers.lost(address, 0.0)
    assert servers.choose([*"abc"], failed) == chosen
    assert servers.choose(["z"], "z") == "z", "there is no other"


def test_of_all_that_were_lost_one_that_has_answered_is_called() -> None:
    servers = Servers(HOMING)
    for address in "abc":
        servers.lost(address, 0.0)
    servers.heard("b", True, 1.0)
    assert (servers.choose([*"abc"]), servers.choose([*"abc"], "b")) == ("b", "c")


def test_a_desk_goes_home_when_it_is_idle_and_its_time_has_come() -> None:
    servers = Servers(HOMING)
    desk = Return(servers, "abc", HOMING, random.Random(3))
    assert desk.look("a", 0.0, 5.0) is None, "it is at home"
    servers.lost("a", 5.0)
    assert desk.look("b", 0.0, 6.0) is None, "nobody is there"
    told([(10, "serves"), (25, "serves")], servers=servers)
    looks = [desk.look("b", 0.0, 25.0 + tenth / 10) for tenth in range(300)]
    assert looks[0] is None and looks[-1] == "a", "by chance within half a minute"
    assert desk.look("b", None, 60.0) is None, "a call is in hand"
    assert desk.look("b", 59.5, 60.0) is None, "only just idle"
    assert desk.look("b", 59.0, 60.0) == "a"
    assert desk.look("c", 0.0, 60.0) == "a", "b is better than c, and a than both"
    servers.lost("a", 61.0)
    assert desk.look("b", 0.0, 100.0) is None, "gone again: who is not yet back stays"
    assert desk.look("c", 0.0, 100.0) is None and desk.look("c", 0.0, 130.0) == "b"


class Floor:
    """A crowd of desks and its routers in virtual time, a look each second; every desk knows what it saw."""

    def __init__(self, desks: int) -> None:
        self.down: set[str] = set()
        self.now = 0.0
        self.changes: Counter[int] = Counter()
        self.desks: list[Any] = []
        for number in range(desks):
            order = order_of(f"agents/{number}", ROUTERS)
            rng = random.Random(number)
            servers = Servers(HOMING, rng)
            self.desks.append([order, servers, Return(servers, order, HOMING, rng), order[0]])

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            for desk in self.desks:
                self._look(desk)

    def _look(self, desk: Any) -> None:
        order, servers, homeward, at = desk
        for address in servers.due(self.now):
            servers.heard(address, address not in self.down, self.now)
        while at in self.down:
            servers.lost(at, self.now)
            at = servers.choose(order, at)
        if (home := homeward.look(at, 0.0, self.now)) is not None:
            self.changes[int(self.now)] += 1
            at = home
        desk[3] = at

    @property
    def sitting(self) -> Counter[str]:
        return Counter(at for *_, at in self.desks)


def test_a_crowd_leaves_a_dead_router_and_comes_back_bit_by_bit() -> None:
    floor = Floor(600)
    before = floor.sitting
    floor.down = {"r1:1"}
    floor.run(60)
    away = floor.sitting
    assert away["r1:1"] == 0 and all(away[r] - before[r] > before["r1:1"] / 3 for r in ("r0:1", "r2:1"))
    floor.down, began = set(), floor.now
    floor.run(100)
    assert floor.sitting == before
    came = {at - began: count for at, count in floor.changes.items()}
    assert sum(came.values()) == before["r1:1"]
    assert min(came) >= HOMING.trust_seconds and max(came.values()) < before["r1:1"] / 8
    # Asked every 24 s by then, with four more questions to answer, and half a minute to come.
    assert max(came) <= 24 + 24 + HOMING.spread_seconds


def test_a_router_that_comes_and_goes_is_not_run_after() -> None:
    floor = Floor(60)
    crowd = floor.sitting["r1:1"]
    for _ in range(60):
        floor.down = {"r1:1"}
        floor.run(5)
        floor.down = set()
        floor.run(55)
    # Sixty times in an hour. Only who happened not to ask while it was away takes it for one that stays.
    assert crowd <= sum(floor.changes.values()) <= 5 * crowd
    floor.run(700)
    assert floor.sitting["r1:1"] == crowd, "it stays at last"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["lost", "serves", "silent"]))))
@settings(max_examples=50)
def test_whatever_happens_somebody_is_called_and_home_is_only_who_serves(
    history: list[tuple[str, str]],
) -> None:
    servers, served = Servers(HOMING, random.Random(1)), Counter[str]()
    for second, (address, what) in enumerate(history):
        if what == "lost":
            servers.lost(address, float(second))
        else:
            servers.heard(address, what == "serves", float(second))
        served[address] = served[address] + 1 if what == "serves" else 0
        for failed in ("", "a", "b", "c"):
            assert servers.choose([*"abc"], failed) in set("abc") - {failed}
        for at in "abc":
            home = servers.home("abc", at)
            assert home is None or ("abc".index(home) < "abc".index(at) and servers.trusted(home))


@pytest.mark.parametrize(
    "field", ["ask_seconds", "trust_seconds", "look_seconds", "spread_seconds", "ask_seconds_max"]
)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_right_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Homing(**{field: value})
