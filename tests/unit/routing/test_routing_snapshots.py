"""Snapshots: when they are made, what is kept, and what everybody who reads a journal begins with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis.clock import SystemClock
from chassis.testing.lease import ScriptedLease
from chassis.testing.waiting import eventually
from routing import digests, image
from routing import snapshots as snapshots_module
from routing.journal import Block, ChainReader, JournalGap
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.model import (
    CallFacts,
    CallQueued,
    ConfigureQueue,
    HangUp,
    PlaceCall,
    QueueConfig,
    QueueConfigured,
    ShardOpened,
)
from routing.publish import Projection
from routing.relay import Cursor, Feed
from routing.snapshots import ShardSnapshots, SnapshotOptions, Snapshotter, nearest_start
from routing.testing import MemoryBlocks, MemoryCursors, MemoryJournal, MemorySnapshots, MemoryTail, block_of

DEADLINE_SECONDS = 10
T0 = 1_772_000_000_000
MINUTE_MS = 60_000


class Journal:
    """A journal that grows by hand: a block a minute, each queueing a call."""

    def __init__(self) -> None:
        self.blocks = MemoryBlocks()
        self.store = MemorySnapshots(self.blocks)
        self.tail = MemoryTail(self.blocks)
        self.read_to = 10**9
        self.open()
        self.add(QueueConfigured(queue=QueueConfig(id="q")))

    def open(self) -> Block:
        """An opening block."""
        return self._put([ShardOpened(router="r", leaderless_span_ms=0)], opening=True)

    def add(self, *events: Any) -> Block:
        return self._put(list(events), opening=False)

    def grow(self, count: int) -> None:
        for _ in range(count):
            number = self.blocks.newest("beijing") + 1
            self.add(
                CallQueued(
                    facts=CallFacts(call_id=f"c{number}", queue="q"),
                    attempt=1,
                    move=1,
                    front="f",
                    queued_ms=T0,
                    effective_ms=T0,
                    waited_span_ms=0,
                )
            )

    def _put(self, events: list[Any], *, opening: bool) -> Block:
        last = self.blocks.at("beijing", self.blocks.newest("beijing"))
        sequence = last.sequence + 1 if last is not None else 1
        now_ms = T0 + sequence * MINUTE_MS
        epoch = sequence if opening or last is None else last.epoch
        prev = last.nonce if last is not None else ""
        block = block_of([(now_ms, event) for event in events], sequence, now_ms, epoch=epoch, prev=prev)
        self.blocks.put(block)
        return block

    def maker(self, **options: Any) -> ShardSnapshots:
        return ShardSnapshots(
            "beijing", self.tail, self.store, SnapshotOptions(**options), lambda shard: self.read_to
        )

    def whole(self) -> Projection:
        """A reader of everything from the first block on."""
        projection = Projection("beijing")
        for block in self.blocks.of("beijing"):
            projection.skip(block)
        return projection

    def sequences(self) -> list[int]:
        return [block.sequence for block in self.blocks.of("beijing")]

    def snapshots(self) -> list[int]:
        return [manifest.sequence for manifest in self.store.manifests("beijing")]


def parts(projection: Projection) -> list[bytes]:
    return list(image.dump(projection.state))


def test_one_is_made_after_so_many_events_or_blocks() -> None:
    journal = Journal()
    maker = journal.maker(events=10)
    maker.step()
    assert journal.snapshots() == []
    journal.grow(9)
    maker.step()
    assert journal.snapshots() == [11]
    quiet = journal.maker(blocks=5)
    for _ in range(5):
        journal.add()
    quiet.step()
    assert journal.snapshots() == [16, 11]


def test_what_begins_at_a_snapshot_is_what_has_read_everything() -> None:
    journal = Journal()
    journal.grow(20)
    journal.maker(events=1).step()
    journal.grow(7)
    start = nearest_start(journal.store, "beijing", 10**9)
    assert start is not None
    projection, chain = start
    assert chain.sequence == 22
    for block in journal.tail.read("beijing", chain.sequence, 100):
        chain.accept(block)
        projection.skip(block)
    assert parts(projection) == parts(journal.whole())


def test_two_are_kept_and_blocks_below_both_are_pruned_but_no_openings() -> None:
    journal = Journal()
    maker = journal.maker(events=10, retention_ms=0)
    for _ in range(4):
        journal.grow(6)
        journal.open()
        journal.grow(6)
        maker.step()
    kept = journal.snapshots()
    assert len(kept) == 2 and kept[0] == journal.blocks.newest("beijing")
    openings = [b.sequence for b in journal.blocks.of("beijing") if b.opening]
    below = [s for s in journal.sequences() if s < kept[1]]
    assert len(openings) == 5 and below == [s for s in openings if s < kept[1]]
    assert {key[1] for key in journal.blocks.parts} == set(kept), "the parts of dropped ones are gone too"


@pytest.mark.parametrize(
    ("read_to", "retention_ms"),
    [(3, 0), (10**9, 10**12)],
    ids=["not published yet", "younger than the retention"],
)
def test_what_is_still_needed_is_not_pruned(read_to: int, retention_ms: int) -> None:
    journal = Journal()
    journal.read_to = read_to
    maker = journal.maker(events=5, retention_ms=retention_ms)
    for _ in range(4):
        journal.grow(6)
        maker.step()
    assert journal.sequences() == list(range(1, 27))


def test_a_slow_reader_keeps_the_snapshot_that_it_needs() -> None:
    journal = Journal()
    maker = journal.maker(events=5, retention_ms=0)
    journal.grow(6)
    maker.step()
    journal.read_to = journal.blocks.newest("beijing")
    for _ in range(4):
        journal.grow(6)
        maker.step()
    assert len(journal.snapshots()) == 3 and journal.snapshots()[-1] == journal.read_to
    assert next(s for s in journal.sequences() if s > 1) == journal.read_to, "its blocks above are all there"
    start = nearest_start(journal.store, "beijing", journal.read_to)
    assert start is not None and start[1].sequence == journal.read_to


def test_of_two_makers_one_counts_and_nothing_is_mixed() -> None:
    journal = Journal()
    journal.grow(10)
    one, two = journal.maker(events=1), journal.maker(events=1)
    one.step()
    two.restart()
    two._projection, two._chain = journal.whole(), ChainReader(12, "n12")
    assert two.make() is None
    assert journal.snapshots() == [12] and len({key[2] for key in journal.blocks.parts}) == 1


def test_parts_of_a_maker_that_died_are_swept_up() -> None:
    journal = Journal()
    journal.grow(5)
    journal.store.put_part("beijing", 3, "dead", 0, b"half")
    journal.store.put_part("shanghai", 3, "alive", 0, b"another's")
    journal.maker(events=1).step()
    assert ("beijing", 3, "dead", 0) not in journal.blocks.parts
    assert ("shanghai", 3, "alive", 0) in journal.blocks.parts


def _lose_a_part(journal: Journal) -> None:
    newest = journal.store.manifests("beijing")[0]
    del journal.blocks.parts["beijing", newest.sequence, newest.maker, 0]


def _change_a_part(journal: Journal) -> None:
    newest = journal.store.manifests("beijing")[0]
    key = ("beijing", newest.sequence, newest.maker, 0)
    journal.blocks.parts[key] = journal.blocks.parts[key][:-1] + b"\x00"


def _newer_format(journal: Journal) -> None:
    newest = journal.store.manifests("beijing")[0]
    journal.blocks.manifests["beijing"][newest.sequence] = replace(newest, format=image.FORMAT + 1)


@pytest.mark.parametrize("damage", [_lose_a_part, _change_a_part, _newer_format])
async def test_a_damaged_snapshot_is_passed_over_for_the_older(damage: Callable[[Journal], None]) -> None:
    journal = Journal()
    maker = journal.maker(events=5)
    for _ in range(2):
        journal.grow(6)
        maker.step()
    damage(journal)
    older = journal.snapshots()[1]
    start = nearest_start(journal.store, "beijing", 10**9)
    assert start is not None and start[1].sequence == older
    leader = a_leader(journal.blocks)
    assert await leader._load_snapshot() and leader.sequence == older


def a_leader(blocks: MemoryBlocks, **options: Any) -> Leader:
    return Leader(
        shard="beijing",
        router="r",
        store=MemoryJournal(blocks, now_ms=SystemClock().now_ms),
        clock=SystemClock(),
        options=LeaderOptions(
            **{"heartbeat_seconds": 0.005, "takeover_seconds": 0.03, "tail_seconds": 0.005, **options}
        ),
    )


async def test_a_leader_begins_at_the_newest_snapshot() -> None:
    journal = Journal()
    maker = journal.maker(events=5, retention_ms=0)
    for _ in range(3):
        journal.grow(6)
        maker.step()
    journal.grow(2)
    assert journal.sequences() != list(range(1, 23)), "the beginning is pruned"
    leader = a_leader(journal.blocks)
    task = asyncio.create_task(leader.run())
    await eventually(lambda: leader.leading)
    assert leader.epoch == 23 and len(leader.state.calls) == 20
    assert [t.offered for t in leader.state.tallies.values()] == [20]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_standby_that_was_left_behind_begins_again_at_a_snapshot() -> None:
    """It sleeps while the blocks that it needs next are pruned."""
    journal = Journal()
    standby = a_leader(journal.blocks, takeover_seconds=60.0)
    await standby._catch_up()
    assert standby.sequence == 2
    maker = journal.maker(events=5, retention_ms=0)
    for _ in range(3):
        journal.grow(6)
        maker.step()
    journal.grow(2)
    with pytest.raises(JournalGap):
        await standby._read_tail()
    await standby._catch_up()
    assert standby.sequence == journal.blocks.newest("beijing")
    assert list(image.dump(standby.state)) == parts(Projection("beijing", standby.state))
    assert len(standby.state.calls) == 20


async def test_a_candidate_below_a_snapshot_does_not_lead() -> None:
    journal = Journal()
    journal.grow(5)
    journal.maker(events=1).step()
    store = MemoryJournal(journal.blocks)
    assert await store.above("beijing", 7) and not await store.above("beijing", 8)
    journal.blocks.shards.clear()
    assert await store.above("beijing", 7), "the snapshot alone tells that others led on"


async def test_a_leader_that_woke_in_a_pruned_stretch_does_not_send_again() -> None:
    journal = Journal()
    leader = a_leader(journal.blocks)
    await leader._catch_up()
    waiting = leader._block([], T0)
    maker = journal.maker(events=5, retention_ms=0)
    for _ in range(3):
        journal.grow(6)
        maker.step()
    assert await leader.settling._may_send_again(waiting) is False
    journal.blocks.manifests.clear()
    with pytest.raises(JournalGap):
        await leader.settling._may_send_again(waiting)


def test_a_relay_begins_at_the_snapshot_below_its_cursor() -> None:
    journal = Journal()
    maker, cursors = journal.maker(events=5, retention_ms=0), MemoryCursors()
    journal.grow(6)
    maker.step()
    middle = journal.snapshots()[0]
    journal.grow(3)
    cursors.stored["beijing"] = Cursor(sequence=middle + 2, nonce=f"n{middle + 2}")
    journal.read_to = middle + 2
    journal.grow(6)
    maker.step()
    before = journal.tail.reads
    feed = Feed(
        "beijing",
        journal.tail,
        cursors,
        lambda: 0.0,
        lambda shard, at_most: nearest_start(journal.store, shard, at_most),
    )
    told = feed.gather(1_000)
    assert told is not None and len(told) == 7, "what is above the cursor, and nothing else"
    assert journal.tail.reads - before == journal.blocks.newest("beijing") - middle


def test_the_snapshotter_finds_shards_and_stops_for_one_that_cannot_be_read() -> None:
    journal, lease, now = Journal(), ScriptedLease(), [0.0]
    journal.grow(5)
    broken = replace(journal.blocks.of("beijing")[3], shard="shanghai", sequence=2)
    journal.blocks.put(broken)
    made = Snapshotter(
        journal.tail,
        journal.store,
        lease,
        SnapshotOptions(events=1),
        lambda shard: 0,
        monotonic=lambda: now[0],
    )
    made.step()
    assert sorted(made.shards) == ["beijing", "shanghai"] and journal.snapshots() == [7]
    assert made._pauses["shanghai"].until == snapshots_module.BROKEN_SECONDS_MIN
    turns = iter([False, True])
    made.run(lambda seconds: next(turns))
    assert lease.released
    told = ("callmesh_snapshot_shard_stopped", {"shard": "shanghai"})
    assert REGISTRY.get_sample_value(*told) == 1
    lease.granted = False
    turns = iter([False, True])
    made.run(lambda seconds: next(turns))
    assert REGISTRY.get_sample_value(*told) == 0, "it is for another maker to say so now"


# --- digests


async def test_a_digest_that_disagrees_keeps_a_reader_from_leading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "DIGEST_BLOCKS", 10)
    blocks = MemoryBlocks()
    leader = a_leader(blocks)
    task = asyncio.create_task(leader.run())
    await eventually(lambda: leader.leading)
    await leader.submit(ConfigureQueue(queue=QueueConfig(id="q")))
    for number in range(30):
        facts = CallFacts(call_id=f"c{number}", queue="q")
        await leader.submit(PlaceCall(facts=facts, attempt=1, move=1, front="f"))
    await leader.submit(HangUp(call_id="c3", attempt=1))
    await eventually(lambda: leader.sequence > 45)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    carrying = [block for block in blocks.of("beijing") if block.digest]
    assert [block.sequence // 10 for block in carrying] == [1, 2, 3, 4]
    reader = a_leader(blocks)
    await reader._catch_up()
    assert reader.sequence == blocks.newest("beijing")
    last = carrying[-1]
    blocks.put(replace(last, digest=f"{last.digest.partition(':')[0]}:0000"))
    suspicious = a_leader(blocks)
    with pytest.raises(JournalGap, match="not the leader's"):
        await suspicious._catch_up()
    blocks.put(replace(last, digest="other:0000"))
    await a_leader(blocks)._catch_up()


def test_no_snapshot_is_made_of_a_state_that_is_not_the_leaders() -> None:
    journal = Journal()
    journal.grow(3)
    last = journal.blocks.of("beijing")[-1]
    layout = image.digest(journal.whole().state, 0).partition(":")[0]
    journal.blocks.put(replace(last, digest=f"{layout}:0000"))
    with pytest.raises(snapshots_module.UnreadableBlock):
        journal.maker(events=1).step()
    assert journal.snapshots() == []
