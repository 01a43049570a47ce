"""`continue`: leaders that go on from memory while nobody can write, hand over, and write it down later."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from chassis.clock import SystemClock
from chassis.testing.waiting import eventually
from routing import codec, continuing
from routing.committed import Committed, StoreOutage
from routing.continuing import ContinueOptions, Continuing
from routing.holds import Asker, HoldAnswer, Promise
from routing.journal import Block, OutcomeUnknown
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.model import CallFacts, CallQueued, ConfigureQueue, PlaceCall, QueueConfig
from routing.testing import MemoryBlocks, MemoryJournal

DEADLINE_SECONDS = 30
BEAT, OUTAGE, TAKEOVER, HOLD = 0.02, 0.1, 0.2, 90.0
NAMES = ("one:1", "two:1", "three:1")


class Floor:
    """Three routers of one shard; asking goes from object to object."""

    def __init__(self) -> None:
        self.blocks = MemoryBlocks()
        self.journals: dict[str, MemoryJournal] = {}
        self.leaders: dict[str, Leader] = {}
        self.silent: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, *, away: bool = False) -> Leader:
        journal = self.journals[name] = MemoryJournal(self.blocks, now_ms=SystemClock().now_ms)
        journal.away = away
        leader = self.leaders[name] = Leader(
            shard="beijing",
            router=name,
            store=journal,
            clock=SystemClock(),
            options=LeaderOptions(
                heartbeat_seconds=BEAT, takeover_seconds=TAKEOVER, tail_seconds=BEAT, outage_seconds=OUTAGE
            ),
        )
        part = leader.continuing = Continuing(leader, self, ContinueOptions(hold_seconds=HOLD))
        # As if it had been there for long: who has just started may have promised in a former life.
        part.promise = Promise(tuple(at - HOLD for at in part._lasting()), HOLD)
        self._tasks.append(asyncio.create_task(leader.run()))
        return leader

    def homes(self, shard: str) -> Sequence[str]:
        return NAMES

    def part(self, name: str) -> Continuing:
        found = self.leaders[name].continuing
        assert found is not None
        return found

    async def hold(
        self, router: str, shard: str, asker: Asker, seconds: float, wait_seconds: float
    ) -> HoldAnswer | None:
        return None if router in self.silent else await self.part(router).hold(asker, seconds)

    async def take(
        self, router: str, shard: str, asker: Asker, blocks: Sequence[Block], *, last: bool
    ) -> bool:
        return await self.part(router).take(asker, blocks, last=last)

    def store_is(self, *, away: bool, at: Sequence[str] = NAMES) -> None:
        for name in at:
            self.journals[name].away = away

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def place(self, call_id: str) -> asyncio.Future[Committed]:
        command = PlaceCall(facts=CallFacts(call_id=call_id, queue="q"), attempt=1, move=1, front="f")
        return self.leaders["one:1"].submit(command)

    def chain(self) -> list[Block]:
        return self.blocks.of("beijing")


@asynccontextmanager
async def a_floor(monkeypatch: pytest.MonkeyPatch, renew_seconds: float = 0.2) -> AsyncIterator[Floor]:
    """The first router leads, the others follow."""
    monkeypatch.setattr(continuing, "RENEW_SECONDS", renew_seconds)
    floor = Floor()
    try:
        leader = floor.start("one:1")
        await eventually(lambda: leader.leading)
        await leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
        for name in NAMES[1:]:
            floor.start(name)
        await eventually(lambda: all(floor.leaders[name].ready for name in NAMES))
        yield floor
    finally:
        await floor.stop()


def queued(blocks: list[Block]) -> list[CallQueued]:
    events = [event for block in blocks for _, event in codec.decode_events(block.body, block.now_ms)]
    return [event for event in events if isinstance(event, CallQueued)]


def no_gap(blocks: list[Block]) -> bool:
    pairs = itertools.pairwise(blocks)
    return all(b.sequence == a.sequence + 1 and b.prev == a.nonce for a, b in pairs)


async def test_with_all_holds_routing_goes_on_and_is_written_down_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Asked once only: whoever can write first would be given the blocks.
    async with a_floor(monkeypatch, renew_seconds=DEADLINE_SECONDS) as floor:
        floor.store_is(away=True)
        await eventually(lambda: floor.part("one:1").going_on)
        first, second = await floor.place("c1"), await floor.place("c2")
        assert not first.durable and not second.durable
        assert second.sequence > first.sequence > floor.chain()[-1].sequence
        # Another that can write, and would open by now, has promised not to.
        wanted: list[float] = []
        may_open = floor.part("two:1").promise.may_open
        monkeypatch.setattr(
            floor.part("two:1").promise, "may_open", lambda now: wanted.append(now) or may_open(now)
        )
        floor.store_is(away=False, at=["two:1"])
        await eventually(lambda: len(wanted) > 2)
        assert floor.part("one:1").going_on and not floor.leaders["two:1"].leading
        floor.store_is(away=False)
        # Until its next try finds the store back it goes on from memory.
        await eventually(lambda: not floor.part("one:1").owing)
        third = await floor.place("c3")
        assert third.durable and third.epoch == first.epoch
        assert no_gap(floor.chain())
        await eventually(lambda: {"c1", "c2", "c3"} <= floor.leaders["two:1"].state.calls.keys())


class Batches(MemoryJournal):
    """Remembers how many came together; of the next batch so many arrive, and nobody says so."""

    sizes: list[int]
    breaks_after: int | None = None

    async def insert_all(self, blocks: Sequence[Block]) -> None:
        self.__dict__.setdefault("sizes", []).append(len(blocks))
        arrive, self.breaks_after = self.breaks_after, None
        await super().insert_all(blocks if arrive is None else blocks[:arrive])
        if arrive is not None:
            raise OutcomeUnknown("the connection broke")


@pytest.mark.parametrize("arrive", [None, 0, 3, 10], ids=["all", "none arrive", "some", "all, unheard"])
async def test_the_backlog_is_written_down_together(
    monkeypatch: pytest.MonkeyPatch, arrive: int | None
) -> None:
    monkeypatch.setattr(continuing, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(continuing, "WRITTEN_BLOCKS_MAX", 10)
    async with a_floor(monkeypatch, renew_seconds=DEADLINE_SECONDS) as floor:
        leader, part = floor.leaders["one:1"], floor.part("one:1")
        journal = floor.journals["one:1"] = leader._store = Batches(floor.blocks, now_ms=SystemClock().now_ms)
        journal.breaks_after = arrive
        floor.store_is(away=True)
        await eventually(lambda: part.going_on)
        told = [await floor.place(f"c{number}") for number in range(25)]
        floor.store_is(away=False)
        await eventually(lambda: not part.owing)
        after = await floor.place("after")
        assert after.durable and {each.epoch for each in told} == {after.epoch} and not floor.blocks.orphans
        assert no_gap(floor.chain())
        held = {event.facts.call_id for event in queued(floor.chain())}
        assert held == {*(f"c{number}" for number in range(25)), "after"}
        # What was sent together and may be there is looked at one by one, the rest goes together again.
        assert journal.sizes[0] == 10 and len(journal.sizes) in (2, 3) and max(journal.sizes) <= 10


async def test_a_leader_that_slept_writes_nothing_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its blocks stand on may be gone: it looks first."""
    async with a_floor(monkeypatch) as floor:
        leader = floor.leaders["one:1"]
        journal = leader._store = Batches(floor.blocks, now_ms=SystemClock().now_ms)
        leader.settling.known_seconds -= 10 * OUTAGE
        assert not await leader.settling.settle_all([replace(floor.chain()[-1], sequence=99)])
        assert not hasattr(journal, "sizes") and floor.chain()[-1].sequence < 99


async def test_without_one_hold_new_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_floor(monkeypatch) as floor:
        floor.silent.add("three:1")
        floor.store_is(away=True)
        await eventually(lambda: floor.leaders["one:1"].stalled)
        with pytest.raises(StoreOutage):
            await floor.place("c1")
        assert not floor.part("one:1").owing
        floor.silent.clear()
        await eventually(lambda: floor.part("one:1").going_on)
        assert not (await floor.place("c1")).durable


async def test_a_router_that_can_write_takes_the_blocks_and_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_floor(monkeypatch) as floor:
        floor.store_is(away=True)
        await eventually(lambda: floor.part("one:1").going_on)
        told = await floor.place("c1")
        floor.store_is(away=False, at=["two:1"])
        await eventually(lambda: floor.leaders["two:1"].leading)
        assert "c1" in floor.leaders["two:1"].state.calls and no_gap(floor.chain())
        assert floor.leaders["two:1"].epoch > told.sequence
        assert not floor.leaders["one:1"].leading and not floor.blocks.orphans


async def test_a_backlog_that_meets_another_epoch_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_floor(monkeypatch) as floor:
        floor.store_is(away=True)
        await eventually(lambda: floor.part("one:1").going_on)
        told = await floor.place("c1")
        last = floor.chain()[-1]
        at = last.sequence + 1
        floor.blocks.put(
            Block(
                shard="beijing",
                sequence=at,
                epoch=at,
                nonce="another",
                prev=last.nonce,
                now_ms=last.now_ms,
                format=last.format,
                count=0,
                body=b"\x90",
            )
        )
        floor.store_is(away=False)
        await eventually(lambda: floor.blocks.orphans)
        assert told.sequence in {block.sequence for block in floor.blocks.orphans.values()}
        await eventually(lambda: any(leader.leading for leader in floor.leaders.values()))
        assert no_gap(floor.chain())


async def test_who_has_promised_waits_and_who_has_an_opening_on_its_way_promises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_floor(monkeypatch) as floor:
        part, leader = floor.part("two:1"), floor.leaders["two:1"]
        asker = Asker(epoch=floor.leaders["one:1"].epoch, round=1)
        assert (await part.hold(asker, HOLD)).can_write and part.may_open()
        floor.store_is(away=True)
        assert (await part.hold(asker, HOLD)).held and not part.may_open()
        leader._known.opening = leader.sequence + 1
        assert (await part.hold(asker, HOLD)).reason == "OPENING"
        leader._known.opening = 0
        assert (await floor.part("one:1").hold(asker, HOLD)).reason == "LEADS"
        assert (await part.hold(asker, HOLD + 1)).reason == "TOO_LONG"
        older = Asker(epoch=0, round=1)
        assert (await part.hold(older, HOLD)).reason == "NEWER_EPOCH"
        assert not await part.take(older, [], last=True)


async def test_blocks_that_stand_on_nothing_are_not_taken_and_say_that_the_journal_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_floor(monkeypatch) as floor:
        standby = floor.leaders["two:1"]
        last = floor.chain()[-1]
        far = replace(last, sequence=last.sequence + 1_000, nonce="far", prev="gone")
        asker = Asker(epoch=last.epoch, round=1)
        assert not await floor.part("two:1").take(asker, [far], last=True)
        assert standby._known.heard >= far.sequence - 1, "below that it does not open"


async def test_who_has_read_nothing_since_its_start_promises_nothing_and_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have promised, or have opened, in a former life."""
    async with a_floor(monkeypatch) as floor:
        floor.store_is(away=True)
        asker = Asker(epoch=floor.leaders["one:1"].epoch, round=1)
        floor.start("two:1", away=True)
        part = floor.part("two:1")
        part.promise = Promise(part._lasting(), HOLD)
        assert (await part.hold(asker, HOLD)).reason == "UNREAD" and not part.may_open()


async def test_what_it_has_heard_of_is_not_forgotten_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_floor(monkeypatch) as floor:
        standby, epoch = floor.leaders["two:1"], floor.leaders["one:1"].epoch
        standby.hear_epoch(epoch + 5)
        floor.store_is(away=True)
        answer = await floor.part("two:1").hold(Asker(epoch=epoch, round=1), HOLD)
        assert (answer.reason, answer.epoch) == ("NEWER_EPOCH", epoch + 5)


async def test_a_leader_that_hears_of_a_newer_epoch_tells_nothing_from_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_floor(monkeypatch) as floor:
        leader = floor.leaders["one:1"]
        floor.leaders["two:1"].hear_epoch(leader.epoch + 5)
        floor.store_is(away=True)
        await eventually(lambda: not leader.leading)
        assert not floor.blocks.orphans


async def test_a_backlog_at_its_limit_refuses_like_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_floor(monkeypatch, renew_seconds=DEADLINE_SECONDS) as floor:
        part = floor.part("one:1")
        floor.store_is(away=True)
        await eventually(lambda: part.going_on)
        part._options = ContinueOptions(hold_seconds=HOLD, backlog_bytes_max=part._bytes + 1)
        assert not (await floor.place("c1")).durable and not part.going_on, "now it is full"
        await eventually(lambda: floor.leaders["one:1"].stalled)
        with pytest.raises(StoreOutage):
            await floor.place("c2")
        floor.store_is(away=False)
        await eventually(lambda: not part.owing)
        assert no_gap(floor.chain())
