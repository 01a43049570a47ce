"""Standbys: who follows, who opens after which silence, and who steps down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.testing.waiting import eventually
from routing import leader as leader_module
from routing import settling
from routing.committed import NotLeading
from routing.journal import JournalGap
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.model import AskCall, CallFacts, ConfigureQueue, PlaceCall, QueueConfig, SetLeadList
from routing.silence import STALL_SECONDS, Silence
from routing.testing import MemoryBlocks, MemoryJournal

DEADLINE_SECONDS = 10
BEAT, TAKEOVER, BACKUP = 0.01, 0.08, 0.4


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in life, a leader asks again several times within the takeover time."""
    for module in (leader_module, settling):
        monkeypatch.setattr(module, "RETRY_SECONDS_MAX", TAKEOVER / 4)


class Candidate:
    """One router's leader or standby over the shared journal, started at once."""

    def __init__(self, blocks: MemoryBlocks, name: str, *, home: bool = True, **options: Any) -> None:
        self.journal = MemoryJournal(blocks, now_ms=SystemClock().now_ms)
        timings = {"heartbeat_seconds": BEAT, "takeover_seconds": TAKEOVER, "backup_seconds": BACKUP}
        self.leader = Leader(
            shard="beijing",
            router=name,
            store=self.journal,
            clock=SystemClock(),
            options=LeaderOptions(**{**timings, "tail_seconds": BEAT, **options}),
            home=home,
        )
        self.task = asyncio.create_task(self.leader.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Region:
    """Candidates of one shard."""

    def __init__(self) -> None:
        self.blocks = MemoryBlocks()
        self.candidates: list[Candidate] = []

    async def leader(self, name: str, **how: Any) -> Candidate:
        """The first one: it leads on return."""
        candidate = self.standby(name, **how)
        await eventually(lambda: candidate.leader.leading)
        return candidate

    def standby(self, name: str, **how: Any) -> Candidate:
        candidate = Candidate(self.blocks, name, **how)
        self.candidates.append(candidate)
        return candidate


@asynccontextmanager
async def a_region() -> AsyncIterator[Region]:
    region = Region()
    try:
        yield region
    finally:
        for candidate in region.candidates:
            await candidate.stop()


def placing(call_id: str) -> PlaceCall:
    return PlaceCall(facts=CallFacts(call_id=call_id, queue="q"), attempt=1, move=1, front="f")


async def test_a_warm_standby_takes_over_with_everything_acknowledged() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1")
        await first.leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
        placed = await first.leader.submit(placing("c1"))
        await eventually(lambda: "c1" in second.leader.state.calls)
        assert second.leader.ready and not second.leader.leading and second.leader.opened_by == "one:1"
        with pytest.raises(NotLeading):
            second.leader.submit(AskCall(call_id="c1"))
        reads = len(region.blocks.of("beijing"))
        await first.stop()
        await eventually(lambda: second.leader.leading)
        assert second.leader.epoch > placed.sequence and second.leader.opened_by == "two:1"
        assert second.journal.probes >= 1, "it found out that it can write before it opened"
        assert len(region.blocks.of("beijing")) >= reads
        found = await second.leader.submit(AskCall(call_id="c1"))
        assert found.answer.call is not None


async def test_a_standby_is_not_ready_before_it_follows_a_living_leader() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        await first.stop()
        second = region.standby("two:1", takeover_seconds=60.0)
        await eventually(lambda: second.leader.sequence > 0)
        assert not second.leader.ready, "whoever led may be gone"
        third = await region.leader("three:1")
        await eventually(lambda: second.leader.ready)
        assert third.leader.ready


async def test_nobody_opens_while_a_leader_commits() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        for name in ("two:1", "three:1"):
            region.standby(name)
        before = first.leader.sequence
        await eventually(lambda: first.leader.sequence > before + 4 * TAKEOVER / BEAT / 2)
        assert [block.sequence for block in region.blocks.of("beijing") if block.opening] == [1]


async def test_a_candidate_that_cannot_write_does_not_open() -> None:
    """Reads go on without a majority: the silence is the store's, and when it ends the leader comes first."""
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1")
        await eventually(lambda: second.leader.ready)
        for candidate in (first, second):
            candidate.journal.read_only = True
        await eventually(lambda: second.journal.probes >= 2)
        assert not second.leader.leading
        before = first.leader.sequence
        for candidate in (first, second):
            candidate.journal.read_only = False
        await eventually(lambda: first.leader.sequence > before + 2)
        assert first.leader.leading and first.leader.epoch == 1


async def test_silence_that_nobody_saw_is_none() -> None:
    """The store is away for both: back again, the leader has its time before anybody opens."""
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1")
        await eventually(lambda: second.leader.ready)
        for candidate in (first, second):
            candidate.journal.away = True
        await asyncio.sleep(3 * TAKEOVER)
        before = first.leader.sequence
        for candidate in (first, second):
            candidate.journal.away = False
        await eventually(lambda: first.leader.sequence > before + 2)
        assert first.leader.leading and not second.leader.leading


async def test_the_regions_own_router_comes_before_the_backup() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        await first.leader.submit(SetLeadList(routers=("one:1", "two:1", "far:1")))
        backup = region.standby("far:1", home=False)
        own = region.standby("two:1")
        await eventually(lambda: own.leader.ready and backup.leader.ready)
        await first.stop()
        await eventually(lambda: own.leader.leading)
        await own.stop()
        await eventually(lambda: backup.leader.leading)
        assert backup.leader.state.lead_list == ("one:1", "two:1", "far:1")


@pytest.mark.parametrize(("name", "home"), [("far:1", False), ("two:1", True)], ids=["backup", "own"])
async def test_who_is_not_on_the_list_does_not_open(name: str, home: bool) -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        if home:
            await first.leader.submit(SetLeadList(routers=("one:1", "three:1")))
        other = region.standby(name, home=home, backup_seconds=TAKEOVER)
        await eventually(lambda: other.leader.ready)
        await first.stop()
        await asyncio.sleep(4 * TAKEOVER)
        assert not other.leader.leading and other.leader.ready


async def test_a_leader_taken_off_the_list_steps_down_for_one_on_it() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1")
        await eventually(lambda: second.leader.ready)
        await first.leader.submit(SetLeadList(routers=("two:1",)))
        await eventually(lambda: second.leader.leading)
        assert not first.leader.leading
        await eventually(lambda: first.leader.opened_by == "two:1")


async def test_a_leader_that_hears_a_newer_epoch_steps_down() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        dropped: list[int] = []
        first.leader.on_drop.append(lambda: dropped.append(1))
        first.leader.hear_epoch(first.leader.epoch)
        assert first.leader.leading
        first.leader.hear_epoch(first.leader.epoch + 1)
        assert not first.leader.leading and dropped == [1]
        # Nobody else is there: it opens again, after twice the silence.
        began = asyncio.get_running_loop().time()
        await eventually(lambda: first.leader.leading)
        assert asyncio.get_running_loop().time() - began >= 2 * TAKEOVER


async def test_a_paused_leader_finds_itself_deposed() -> None:
    """It hangs in an insert while another takes over; its block is never there, and it follows."""
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1")
        await eventually(lambda: second.leader.ready)
        first.journal.gate = asyncio.Event()
        await eventually(lambda: second.leader.leading)
        first.journal.gate.set()
        await eventually(lambda: first.leader.opened_by == "two:1")
        before = second.leader.sequence
        await eventually(lambda: first.leader.sequence > before)
        assert not first.leader.leading and second.leader.leading
        openings = [block.sequence for block in region.blocks.of("beijing") if block.opening]
        assert openings == [1, second.leader.epoch]


def test_silence_is_what_was_heard_of_it() -> None:
    """Whoever had no turn for a minute has heard a moment of silence; whoever heard somebody, none."""
    silence = Silence(100.0)
    for now in (100.25, 100.5, 100.75):
        silence.look(now, 0.25)
    assert silence.seconds == pytest.approx(0.75)
    silence.look(160.0, 0.1)
    assert silence.seconds == pytest.approx(0.75 + 0.1 + STALL_SECONDS)
    silence.heard(161.0)
    silence.look(161.25, 0.25)
    assert silence.seconds == pytest.approx(0.25)


async def test_a_backup_that_slept_has_heard_no_more_of_it_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks less often, and of a look that came late no more counts than of any other router's."""
    allowed: dict[bool, set[float]] = {True: set(), False: set()}
    late = STALL_SECONDS + 1.0

    class Sleeper(Silence):
        def look(self, now: float, due_seconds: float) -> None:
            probe = Silence(now - late)
            probe.look(now, due_seconds)
            allowed[backup is not None].add(round(probe.seconds, 6))
            super().look(now, due_seconds)

    monkeypatch.setattr(leader_module, "Silence", Sleeper)
    backup: Candidate | None = None
    async with a_region() as region:
        first = await region.leader("one:1")
        own = region.standby("two:1")
        await eventually(lambda: allowed[False])
        await own.stop()
        backup = region.standby("far:1", home=False)
        await eventually(lambda: allowed[True])
        assert first.leader.leading
    assert max(allowed[True]) == max(allowed[False]) == BEAT + STALL_SECONDS


async def test_a_standby_opens_neither_above_nor_below_what_a_restore_has_taken_away() -> None:
    """Its memory is ahead of the database: leading from it would leave a gap, from the rest a fork."""
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1")
        await first.leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
        await first.leader.submit(placing("c1"))
        await eventually(lambda: "c1" in second.leader.state.calls)
        await first.stop()
        for block in region.blocks.of("beijing", 1):
            region.blocks.remove("beijing", block.sequence)
        probes = second.journal.probes
        # It had its turn, more than once.
        await eventually(lambda: second.journal.probes >= probes + 2)
        assert not second.leader.leading and region.blocks.newest("beijing") == 1
        # An operator who wants the older state starts the routers anew.
        third = region.standby("three:1")
        await eventually(lambda: third.leader.leading)
        assert third.leader.epoch == 2 and "c1" not in third.leader.state.calls


async def test_a_block_that_others_have_read_first_is_no_sign_of_a_restore() -> None:
    async with a_region() as region:
        first = await region.leader("one:1")
        second = region.standby("two:1", takeover_seconds=60.0)
        await eventually(lambda: second.leader.ready)
        await second.stop()
        before = second.leader.newest_committed
        await eventually(lambda: first.leader.sequence > before)
        second.leader.hear_committed(before + 1)
        assert await second.leader._is_behind() and second.leader.sequence > before
        assert not await second.leader._is_behind()
        second.leader.hear_committed(region.blocks.newest("beijing") + 100)
        with pytest.raises(JournalGap, match="set back"):
            await second.leader._is_behind()
