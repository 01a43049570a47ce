"""The store: a replica set with a primary, a majority point, elections and rollback, as MongoDB was seen to
behave.

A block that the primary has is not committed; a majority must have it, too. While replication is stalled
writes wait, then fail with an unknown outcome; reads go on at the majority point, which may be an old one.
An election keeps a prefix of what was not replicated and rolls back the rest: a writer that was told
DuplicateKey for such a block was told something that is undone later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation.agenda import ORIGIN_MS, WORLD, Process

from routing.journal import Block, Manifest, OutcomeUnknown
from routing.testing import MemoryBlocks

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Name of the store on the network.
STORE = "store"
#: An operation's way, one direction; a write's way to the majority; virtual seconds.
WAY_SECONDS = (0.0005, 0.004)
REPLICATION_SECONDS = (0.001, 0.008)
#: How long a driver waits for a store that it cannot reach, and a writer for a majority.
SELECTION_SECONDS = (0.1, 0.8)
MAJORITY_SECONDS = (0.2, 1.0)
#: An insert whose outcome is unknown may be applied this much later.
LATE_SECONDS_MAX = 25.0

Key = tuple[str, int]


class Taken(OutcomeUnknown):
    """DuplicateKey: the primary has a block there, which may be rolled back yet."""

    def __init__(self, block: Block) -> None:
        super().__init__(f"{block.key} is taken")
        self.block = block


class Cluster:
    """What the replica set holds."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.primary: dict[Key, Block] = {}
        self.majority: dict[Key, Block] = {}
        #: Blocks that only the primary has, in the order of its log.
        self.unreplicated: list[Block] = []
        self._newest: dict[str, int] = {}
        #: Snapshots: manifests and parts.
        self.kept = MemoryBlocks()
        self.replicating = True
        #: No primary at all.
        self.down = False
        #: Seconds added to every write.
        self.slow_writes = 0.0
        #: Machines that reach only a member left behind, and what that member says is committed.
        self.stale: dict[str, dict[Key, Block]] = {}

    def newest(self, shard: str) -> int:
        """Sequence of a shard's newest committed block."""
        return self._newest.get(shard, 0)

    def chain(self, shard: str) -> list[Block]:
        """A shard's committed blocks, in order."""
        return [block for (each, _), block in sorted(self.majority.items()) if each == shard]

    # --- writing

    def apply(self, block: Block) -> None:
        """The primary takes an insert. Raises Taken."""
        there = self.primary.get((block.shard, block.sequence))
        if there is not None:
            raise Taken(there)
        self.primary[block.shard, block.sequence] = block
        self.unreplicated.append(block)

    def replicate(self, block: Block) -> bool:
        """A majority takes everything up to a block, if it can; whether the block is committed."""
        if self.replicating and block in self.unreplicated:
            self._commit(self.unreplicated.index(block) + 1)
        return self.majority.get((block.shard, block.sequence)) is block

    def _commit(self, count: int) -> None:
        done, self.unreplicated = self.unreplicated[:count], self.unreplicated[count:]
        for block in done:
            self.majority[block.shard, block.sequence] = block
            self._newest[block.shard] = max(self._newest.get(block.shard, 0), block.sequence)
            self.world.auditor.committed(block)

    # --- what befalls it

    def heal(self) -> None:
        """The majority is back, nothing was lost."""
        self.replicating = True
        self._commit(len(self.unreplicated))

    def elect(self, kept: float) -> None:
        """A new primary: it has that share of what was not replicated, the rest is rolled back."""
        self.replicating = True
        self._commit(round(len(self.unreplicated) * kept))
        for block in self.unreplicated:
            del self.primary[block.shard, block.sequence]
        self.unreplicated = []

    def leave_behind(self, machine: str) -> None:
        """From now on this machine reads from a member that hears of nothing new."""
        self.stale[machine] = dict(self.majority)

    def catch_up(self, machine: str) -> None:
        self.stale.pop(machine, None)

    def remove(self, shard: str, sequence: int) -> None:
        """A block is pruned."""
        self.primary.pop((shard, sequence), None)
        self.majority.pop((shard, sequence), None)

    def set_back(self, shard: str, blocks: int) -> None:
        """The database is restored: a shard's newest blocks are gone, and what was made of them, but for
        what no snapshot would hold any more.
        """
        kept = min((m.sequence for m in self.kept.snapshots(shard)), default=0)
        upto = max(kept, self._newest[shard] - blocks)
        for sequence in range(upto + 1, self._newest[shard] + 1):
            self.remove(shard, sequence)
        for manifest in self.kept.snapshots(shard):
            if manifest.sequence > upto:
                del self.kept.manifests[shard][manifest.sequence]
        self._newest[shard] = upto
        self.unreplicated = [block for block in self.unreplicated if block.shard != shard]
        self.world.cursors.set_back(shard, upto)

    def visible(self, machine: str) -> dict[Key, Block]:
        """What a majority read shows this machine."""
        return self.stale.get(machine, self.majority)

    def now_ms(self) -> int:
        """The database's clock: the truth."""
        return ORIGIN_MS + int(self.world.agenda.now * 1000)


class StoreClient:
    """One process's way to the cluster. The server's side goes on whatever becomes of the process."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.process = process
        self._rng = self.world.rng(f"store {process.name}")

    async def ask(self, operation: Callable[[Answer], None]) -> Any:
        """Carries out `operation` at the store; what it answers, or OutcomeUnknown."""
        answer = Answer(self)
        if not self.process.alive:
            # It died in this very moment: nothing of it gets out.
            return await answer.future
        self.world.agenda.after(self._rng.uniform(*WAY_SECONDS), WORLD, answer.arrive, operation)
        return await answer.future


class Answer:
    """One operation, on its way there and back."""

    def __init__(self, client: StoreClient) -> None:
        self.client = client
        self.world = client.world
        self.future: asyncio.Future[Any] = client.process.loop.create_future()

    def arrive(self, operation: Callable[[Answer], None]) -> None:
        world, name = self.world, self.client.process.name
        if world.agenda.over:
            return
        world.step()
        if world.network.blocked(name, STORE) or self.client.cluster.down:
            self.fail(OutcomeUnknown("the store cannot be reached"), SELECTION_SECONDS)
        else:
            operation(self)

    def give(self, result: Any) -> None:
        """The answer goes back."""
        self._back(self._set, result, 0.0)

    def fail(self, error: OutcomeUnknown, seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        """A failure goes back, after a while."""
        self._back(self._raise, error, self.client._rng.uniform(*seconds))

    def _back(self, deliver: Callable[[Any], None], what: Any, seconds: float) -> None:
        client = self.client
        if self.world.network.blocked(STORE, client.process.name):
            deliver, what = self._raise, OutcomeUnknown("no answer from the store")
            seconds += client._rng.uniform(*SELECTION_SECONDS)
        way = client._rng.uniform(*WAY_SECONDS)
        self.world.agenda.after(seconds + way, client.process, deliver, what)

    def _set(self, result: Any) -> None:
        self.world.step()
        if not self.future.done():
            self.future.set_result(result)

    def _raise(self, error: OutcomeUnknown) -> None:
        self.world.step()
        if not self.future.done():
            self.future.set_exception(error)


class SimJournal(StoreClient):
    """A `routing.journal.JournalStore` over the cluster."""

    async def insert(self, block: Block) -> None:
        self.world.reach("opening" if block.opening else "sending", self.process, block)
        # Here a process may be frozen or die before anything is sent.
        await asyncio.sleep(0)
        try:
            await self.ask(lambda answer: self._insert(answer, block))
        finally:
            self.world.reach("answered", self.process, block)

    def _insert(self, answer: Answer, block: Block) -> None:
        world, cluster = self.world, self.cluster
        if world.strike("refused", self.process.name):
            answer.fail(OutcomeUnknown("not applied"))
            return
        if world.strike("late", self.process.name):
            late = self._rng.uniform(0.05, LATE_SECONDS_MAX * self._rng.random())
            world.agenda.after(late, WORLD, self._apply_in_order, [block])
            answer.fail(OutcomeUnknown("on its way"))
            return
        if world.ending is not None:
            block = world.ending.altered(block)
        try:
            cluster.apply(block)
        except Taken as taken:
            answer.fail(taken)
            return
        world.reach("applied", self.process, block)
        seconds = self._rng.uniform(*REPLICATION_SECONDS) + cluster.slow_writes
        world.agenda.after(seconds, WORLD, self._replicated, answer, block)

    async def insert_all(self, blocks: Sequence[Block]) -> None:
        self.world.reach("sending", self.process, blocks[0])
        await asyncio.sleep(0)
        try:
            await self.ask(lambda answer: self._insert_all(answer, blocks))
        finally:
            self.world.reach("answered", self.process, blocks[-1])

    def _insert_all(self, answer: Answer, blocks: Sequence[Block]) -> None:
        world, cluster = self.world, self.cluster
        if world.strike("refused", self.process.name):
            # The connection broke in the middle: so many were taken.
            self._apply_in_order(blocks[: self._rng.randrange(len(blocks))])
            answer.fail(OutcomeUnknown("not all applied"))
            return
        if world.strike("late", self.process.name):
            late = self._rng.uniform(0.05, LATE_SECONDS_MAX * self._rng.random())
            world.agenda.after(late, WORLD, self._apply_in_order, blocks)
            answer.fail(OutcomeUnknown("on their way"))
            return
        for block in blocks:
            try:
                cluster.apply(block if world.ending is None else world.ending.altered(block))
            except Taken as taken:
                answer.fail(taken)
                return
        world.reach("applied", self.process, blocks[-1])
        seconds = self._rng.uniform(*REPLICATION_SECONDS) + cluster.slow_writes
        last = cluster.primary[blocks[-1].shard, blocks[-1].sequence]
        world.agenda.after(seconds, WORLD, self._replicated, answer, last)

    def _apply_in_order(self, blocks: Sequence[Block]) -> None:
        """Up to the first that is not taken."""
        if self.world.agenda.over or self.cluster.down:
            return
        for block in blocks:
            try:
                self.cluster.apply(block)
            except Taken:
                return
            self.cluster.replicate(block)

    def _replicated(self, answer: Answer, block: Block) -> None:
        if self.world.agenda.over:
            return
        if not self.cluster.replicate(block):
            answer.fail(OutcomeUnknown("no majority in time"), MAJORITY_SECONDS)
        elif self.world.strike("unanswered", self.process.name):
            answer.fail(OutcomeUnknown("the answer was lost"), (0.0, 0.3))
        else:
            answer.give(None)
        self.world.reach("committed", self.process, block)

    async def find(self, shard: str, sequence: int) -> Block | None:
        name = self.process.name
        found: Block | None = await self.ask(
            lambda answer: answer.give(self.cluster.visible(name).get((shard, sequence)))
        )
        return found

    async def read(self, shard: str, after: int) -> AsyncIterator[Block]:
        def take(answer: Answer) -> None:
            # Everything of the shard above, as the index gives it; a gap is the reader's to see.
            visible = self._readable()
            found = sorted(n for each, n in visible if each == shard and n > after)
            answer.give([visible[shard, n] for n in found])

        for block in await self.ask(take):
            yield block
        self.world.reach("read", self.process, None)

    def _readable(self) -> dict[Key, Block]:
        return self.cluster.visible(self.process.name)

    async def above(self, shard: str, sequence: int) -> bool:
        name = self.process.name

        def look(answer: Answer) -> None:
            if name in self.cluster.stale:
                answer.fail(OutcomeUnknown("behind the session's own write"), MAJORITY_SECONDS)
            else:
                newest = next((m.sequence for m in self.cluster.kept.snapshots(shard)), 0)
                answer.give(self.cluster.newest(shard) > sequence or newest >= sequence)

        return bool(await self.ask(look))

    async def manifests(self, shard: str) -> list[Manifest]:
        found: list[Manifest] = await self.ask(
            lambda answer: answer.give(list(self.cluster.kept.snapshots(shard)))
        )
        return found

    async def parts(self, manifest: Manifest) -> AsyncIterator[bytes]:
        # Read one after another, while keepers drop what is old.
        for number in range(manifest.parts):
            key = (manifest.shard, manifest.sequence, manifest.maker, number)
            part = await self.ask(lambda answer, key=key: answer.give(self.cluster.kept.parts.get(key)))
            if part is not None:
                yield part

    async def probe(self, shard: str, router: str) -> None:
        def write(answer: Answer) -> None:
            seconds = self._rng.uniform(*REPLICATION_SECONDS) + self.cluster.slow_writes
            self.world.agenda.after(seconds, WORLD, settle, answer)

        def settle(answer: Answer) -> None:
            if self.cluster.replicating and not self.cluster.down:
                answer.give(None)
            else:
                answer.fail(OutcomeUnknown("no majority in time"), MAJORITY_SECONDS)

        await self.ask(write)

    async def keep_orphans(self, blocks: Sequence[Block]) -> None:
        def put(answer: Answer) -> None:
            for block in blocks:
                self.cluster.kept.orphans[f"{block.key}:{block.nonce}"] = block
            answer.give(None)

        await self.ask(put)

    async def now_ms(self) -> int:
        now_ms: int = await self.ask(lambda answer: answer.give(self.cluster.now_ms()))
        return now_ms

    async def close(self) -> None:
        """A session ends: nothing to do."""
