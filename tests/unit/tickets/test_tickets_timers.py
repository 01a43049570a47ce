"""The timer loop: when it looks, what it does about failures and about losing the lease."""

from __future__ import annotations

import asyncio

import pytest
from pymongo.errors import AutoReconnect

from chassis.errors import Unavailable
from chassis.lease import LeaseLost
from chassis.testing import FakeClock
from chassis.testing.lease import ScriptedLease
from tickets import convert, server
from tickets import sla as clocks
from tickets.handlers import Create, Handlers
from tickets.model import Draft, Kind, Rules
from tickets.store import MemoryStore
from tickets.timers import STANDBY_SECONDS, Timers

RULES = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=86_400_000)
HOUR = 3_600


class Desk:
    """A loop in memory that is run turn by turn."""

    def __init__(self, speed: float = 1.0, batch_max: int = 100) -> None:
        self.clock = FakeClock(speed=speed)
        self.store = MemoryStore()
        self.use = Handlers(self.store, self.clock, RULES, convert.event_of)
        self.lease = ScriptedLease()
        self.loop = Timers(self.use, self.lease, self.clock, poll_seconds=10.0, batch_max=batch_max)

    def open(self, count: int = 1) -> None:
        for _ in range(count):
            self.use.create(Create(kind=Kind.INQUIRY, draft=Draft(subject="x"), actor="ann"))

    def turns(self, count: int) -> list[float]:
        """Runs the loop for `count` turns and then ends it; the pauses it asked for."""
        pauses: list[float] = []

        def stopping(seconds: float) -> bool:
            pauses.append(seconds)
            return len(pauses) == count

        self.loop.run(stopping)
        return pauses


def test_it_looks_again_when_the_next_timer_is_due_but_never_later_than_its_poll() -> None:
    desk = Desk(speed=60)
    assert desk.turns(1) == [10.0]
    desk.open()
    assert desk.turns(1) == [10.0]
    desk.clock.advance(HOUR - 120)
    assert desk.turns(1) == [2.0]
    assert desk.store.events[1:] == []
    desk.clock.advance(120)
    assert desk.turns(1) == [10.0]
    assert [event.type.rpartition(".")[2] for event in desk.store.events] == ["TicketCreated", "SlaBreached"]
    assert desk.lease.released


def test_a_full_batch_is_followed_at_once_by_the_next() -> None:
    desk = Desk(batch_max=4)
    desk.open(10)
    desk.clock.advance(HOUR)
    assert desk.turns(3) == [0.0, 0.0, 10.0]
    assert desk.use.due(100) == []


def test_without_the_lease_nothing_is_done() -> None:
    desk = Desk()
    desk.open()
    desk.clock.advance(HOUR)
    desk.lease.granted = False
    assert desk.turns(2) == [STANDBY_SECONDS] * 2
    assert len(desk.use.due(10)) == 1


def test_losing_the_lease_ends_the_batch_and_the_loop_goes_on_later() -> None:
    desk = Desk()
    desk.open(3)
    desk.clock.advance(HOUR)
    desk.lease.renewal_due = True

    def lose() -> None:
        desk.lease.granted = False
        raise LeaseLost("another has it")

    desk.lease.on_renew = lose
    assert desk.turns(2) == [STANDBY_SECONDS] * 2
    assert len(desk.use.due(10)) == 3


@pytest.mark.parametrize("away", [AutoReconnect("gone"), Unavailable(why="gone")])
def test_an_outage_of_the_database_is_borne(away: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    desk.open()
    desk.clock.advance(HOUR)
    with monkeypatch.context() as broken:

        def fail(limit: int) -> None:
            raise away

        broken.setattr(desk.use, "fire_due", fail)
        assert desk.turns(2) == [STANDBY_SECONDS] * 2
    assert desk.turns(1) == [10.0]
    assert desk.use.due(10) == []


def test_a_ticket_that_cannot_be_helped_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(batch_max=1)
    desk.open(2)
    desk.clock.advance(HOUR)
    bad = desk.use.due(1)[0]
    fire = desk.use.fire

    def fail_one(ticket_id: str) -> None:
        if ticket_id == bad:
            raise KeyError("a defect")
        fire(ticket_id)

    monkeypatch.setattr(desk.use, "_told_by_clocks", lambda ticket, now: None)
    monkeypatch.setattr(desk.use, "fire", fail_one)
    desk.turns(2)
    assert desk.use.due(10) == []
    monkeypatch.undo()
    desk.clock.advance(61)
    desk.turns(2)
    breached = [event.subject for event in desk.store.events if event.type.endswith("SlaBreached")]
    assert sorted(breached) == sorted({*breached}) and len(breached) == 2


async def test_what_cannot_be_read_does_not_keep_a_server_from_looking_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "REFRESH_SECONDS", 0.0)
    looked = asyncio.Event()
    loop, rounds = asyncio.get_running_loop(), list[int]()

    def unreadable() -> None:
        raise KeyError("a kind of a newer release")

    def others() -> None:
        rounds.append(1)
        if len(rounds) == 3:
            loop.call_soon_threadsafe(looked.set)

    async with asyncio.timeout(10):
        watching = asyncio.create_task(server.keep_fresh(unreadable, others))
        await looked.wait()
    assert not watching.done()
    watching.cancel()
