"""Keepers: the worker processes' makers of snapshots and pruners of journals.

What runs is the product's `ShardSnapshots`, far more often than it would: a snapshot every few blocks, and
hardly any retention. Two keepers work at once, as two workers do whose lease has run out unnoticed. A
keeper may be cut off in the middle of its work: parts without a manifest, manifests that were dropped, a
journal half pruned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo.errors import PyMongoError
from tests.simulation.agenda import Process

from routing.journal import JournalGap, Manifest
from routing.publish import UnreadableBlock
from routing.snapshots import ShardSnapshots, SnapshotOptions
from routing.testing import MemoryBlocks, MemorySnapshots, MemoryTail

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Seconds between two turns of a keeper; blocks after which it makes a snapshot; how old what it prunes is.
TURN_SECONDS = (0.5, 1.5)
OPTIONS = SnapshotOptions(events=1_000_000, blocks=12, retention_ms=1_500)
KEEPERS = 2


class KeptSnapshots(MemorySnapshots):
    """Snapshots in the cluster; blocks are pruned there."""

    def __init__(self, world: World, shared: MemoryBlocks, name: str) -> None:
        super().__init__(shared)
        self._world = world
        self._name = name

    def _reach(self) -> None:
        if self._world.cluster.down or self._world.strike("interrupted", self._name):
            raise PyMongoError("the keeper was cut off")

    def put_part(self, shard: str, sequence: int, maker: str, number: int, part: bytes) -> None:
        self._reach()
        super().put_part(shard, sequence, maker, number, part)

    def put_manifest(self, manifest: Manifest) -> bool:
        self._reach()
        return super().put_manifest(manifest)

    def drop(self, manifest: Manifest) -> None:
        super().drop(manifest)
        self._reach()

    def prune(self, shard: str, below: int, before_ms: int, limit: int) -> int:
        self._reach()
        old = [b for b in self._world.cluster.chain(shard) if b.sequence < below and b.now_ms < before_ms]
        old = [block for block in old if self._world.prunes_openings or not block.opening][:limit]
        for block in old:
            self._world.cluster.remove(shard, block.sequence)
        self._world.counts["blocks pruned"] += len(old)
        return len(old)


class ClusterTail(MemoryTail):
    """The journals, as a worker reads them."""

    def __init__(self, world: World, shared: MemoryBlocks) -> None:
        super().__init__(shared)
        self._world = world

    def read(self, shard: str, after: int, limit: int):  # type: ignore[no-untyped-def]
        yield from [b for b in self._world.cluster.chain(shard) if b.sequence > after][:limit]

    def newest(self, shard: str) -> int:
        return self._world.cluster.newest(shard)

    def size(self, shard: str, after: int, upto: int) -> int:
        chain = self._world.cluster.chain(shard)
        return sum(len(block.body) for block in chain if after < block.sequence <= upto)


class Keeper:
    """One worker's part in keeping the journals short."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.rng = world.rng(name)
        self.process = Process(world.agenda, name)
        world.processes.append(self.process)
        store = KeptSnapshots(world, world.cluster.kept, name)
        tail = ClusterTail(world, world.cluster.kept)
        self.shards = [
            ShardSnapshots(shard, tail, store, OPTIONS, self._read_to) for shard in world.plan.shards
        ]
        world.agenda.after(self.rng.uniform(*TURN_SECONDS), self.process, self.turn)

    def _read_to(self, shard: str) -> int:
        """As far as the relays have published, and a few blocks less."""
        published = self.world.cursors.stored.get(shard)
        return min(published.sequence if published else 0, max(0, self.world.cluster.newest(shard) - 3))

    def turn(self) -> None:
        if self.world.agenda.over:
            return
        for shard in self.shards:
            try:
                shard.step()
            except PyMongoError:
                self.world.counts["keeper interrupted"] += 1
            except (JournalGap, UnreadableBlock):
                # The other keeper has pruned what this one had not read: begin with a snapshot again.
                self.world.counts["keeper began anew"] += 1
                shard.restart()
        self.world.agenda.after(self.rng.uniform(*TURN_SECONDS), self.process, self.turn)
