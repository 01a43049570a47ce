"""Journal and cursors in memory, for tests without a database.

`MemoryBlocks` is the database, shared by everybody who writes or reads it; `MemoryJournal` is one router's
store, `MemoryTail` and `MemoryCursors` are the relay's. Trouble is ordered beforehand, at one router's store:

    journal.lose_answers(2)     # the next two inserts are applied, and their writers never hear of it
    journal.refuse(1)           # the next insert is not applied, and its writer does not know
    journal.away = True         # nothing answers, nothing is applied
    journal.read_only = True    # reads go on, nothing is applied
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from routing import codec
from routing.journal import Block, Manifest, OutcomeUnknown
from routing.model import Event
from routing.relay import Cursor


def block_of(
    events: Sequence[tuple[int, Event]],
    sequence: int,
    now_ms: int,
    *,
    shard: str = "beijing",
    epoch: int = 1,
    prev: str | None = None,
) -> Block:
    """A block of events, each with the instant it was decided at, as a leader writes it; `prev` None: after
    one that was made here, too.
    """
    return Block(
        shard=shard,
        sequence=sequence,
        epoch=epoch,
        nonce=f"n{sequence}",
        prev=prev if prev is not None else f"n{sequence - 1}" if sequence > 1 else "",
        now_ms=now_ms,
        format=codec.FORMAT,
        count=len(events),
        body=codec.encode_events(events, now_ms),
    )


@dataclass(eq=False, slots=True)
class MemoryBlocks:
    """What a majority has: blocks by shard and sequence."""

    shards: dict[str, dict[int, Block]] = field(default_factory=dict)
    #: Manifests by shard and sequence.
    manifests: dict[str, dict[int, Manifest]] = field(default_factory=dict)
    #: Parts by shard, sequence, maker and number.
    parts: dict[tuple[str, int, str, int], bytes] = field(default_factory=dict)
    #: Blocks told from memory that are in no journal.
    orphans: dict[str, Block] = field(default_factory=dict)

    def of(self, shard: str, after: int = 0) -> list[Block]:
        """A shard's blocks above `after`, by sequence."""
        blocks = self.shards.get(shard, {})
        return [blocks[sequence] for sequence in sorted(blocks) if sequence > after]

    def at(self, shard: str, sequence: int) -> Block | None:
        """The block at a sequence."""
        return self.shards.get(shard, {}).get(sequence)

    def newest(self, shard: str) -> int:
        """Sequence of the newest block, 0 without one."""
        return max(self.shards.get(shard, {}), default=0)

    def snapshots(self, shard: str) -> list[Manifest]:
        """A shard's manifests, newest first."""
        return [m for _, m in sorted(self.manifests.get(shard, {}).items(), reverse=True)]

    def parts_of(self, manifest: Manifest) -> list[bytes]:
        """The parts that are there, in order."""
        wanted = (manifest.shard, manifest.sequence, manifest.maker)
        return [part for key, part in sorted(self.parts.items()) if key[:3] == wanted]

    def put(self, block: Block) -> None:
        """Writes a block, past any fence."""
        self.shards.setdefault(block.shard, {})[block.sequence] = block

    def remove(self, shard: str, sequence: int) -> None:
        """Loses a block."""
        del self.shards[shard][sequence]


class MemoryJournal:
    """A `routing.journal.JournalStore` over `MemoryBlocks`."""

    def __init__(
        self, shared: MemoryBlocks | None = None, *, now_ms: Callable[[], int] = lambda: 1_772_000_000_000
    ) -> None:
        """`now_ms` is the database's clock, real milliseconds since 1970."""
        self.shared = shared if shared is not None else MemoryBlocks()
        self._now_ms = now_ms
        self._refuse = 0
        self._lose_answers = 0
        #: Nothing answers while set.
        self.away = False
        #: Inserts wait for this before they are applied.
        self.gate: asyncio.Event | None = None
        #: Inserts that came in, trouble included.
        self.inserts = 0
        self.closed = False
        #: Reads go on, writes do not: a majority is lost.
        self.read_only = False
        #: Probes that came in.
        self.probes = 0

    def refuse(self, count: int) -> None:
        """The next `count` inserts are not applied; their outcome is unknown."""
        self._refuse = count

    def lose_answers(self, count: int) -> None:
        """The next `count` inserts (after those refused) are applied; their outcome is unknown."""
        self._lose_answers = count

    async def insert(self, block: Block) -> None:
        self.inserts += 1
        await self._trouble()
        if self.gate is not None:
            await self.gate.wait()
        if self.read_only:
            raise OutcomeUnknown("no majority takes a write")
        if self._refuse:
            self._refuse -= 1
            raise OutcomeUnknown("not applied, and nobody says so")
        if self.shared.at(block.shard, block.sequence) is not None:
            raise OutcomeUnknown(f"{block.key} is taken")
        self.shared.put(block)
        if self._lose_answers:
            self._lose_answers -= 1
            raise OutcomeUnknown("applied, and nobody says so")

    async def insert_all(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            await self.insert(block)

    async def find(self, shard: str, sequence: int) -> Block | None:
        await self._trouble()
        return self.shared.at(shard, sequence)

    async def read(self, shard: str, after: int) -> AsyncIterator[Block]:
        await self._trouble()
        for block in self.shared.of(shard, after):
            yield block

    async def above(self, shard: str, sequence: int) -> bool:
        await self._trouble()
        snapshots = self.shared.snapshots(shard)
        return self.shared.newest(shard) > sequence or any(m.sequence >= sequence for m in snapshots)

    async def manifests(self, shard: str) -> list[Manifest]:
        await self._trouble()
        return self.shared.snapshots(shard)

    async def parts(self, manifest: Manifest) -> AsyncIterator[bytes]:
        await self._trouble()
        for part in self.shared.parts_of(manifest):
            yield part

    async def probe(self, shard: str, router: str) -> None:
        self.probes += 1
        await self._trouble()
        if self.read_only:
            raise OutcomeUnknown("no majority takes a write")

    async def keep_orphans(self, blocks: Sequence[Block]) -> None:
        await self._trouble()
        for block in blocks:
            found = self.shared.at(block.shard, block.sequence)
            if found is None or found.nonce != block.nonce:
                self.shared.orphans.setdefault(f"{block.key}:{block.nonce}", block)

    async def now_ms(self) -> int:
        await self._trouble()
        return self._now_ms()

    async def close(self) -> None:
        self.closed = True

    async def _trouble(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise OutcomeUnknown("the database is away")


class MemoryTail:
    """A `routing.relay.JournalTail` over `MemoryBlocks`."""

    def __init__(self, shared: MemoryBlocks) -> None:
        self.shared = shared
        #: Blocks handed out.
        self.reads = 0

    def shards(self) -> list[str]:
        return sorted(self.shared.shards)

    def read(self, shard: str, after: int, limit: int) -> Iterator[Block]:
        for block in self.shared.of(shard, after)[:limit]:
            self.reads += 1
            yield block

    def newest(self, shard: str) -> int:
        return self.shared.newest(shard)

    def size(self, shard: str, after: int, upto: int) -> int:
        blocks = self.shared.of(shard, after)
        return sum(len(block.body) for block in blocks if block.sequence <= upto)


class MemorySnapshots:
    """A `routing.snapshots.SnapshotStore` over `MemoryBlocks`."""

    def __init__(self, shared: MemoryBlocks) -> None:
        self.shared = shared

    def manifests(self, shard: str) -> list[Manifest]:
        return self.shared.snapshots(shard)

    def parts(self, manifest: Manifest) -> Iterator[bytes]:
        yield from self.shared.parts_of(manifest)

    def put_part(self, shard: str, sequence: int, maker: str, number: int, part: bytes) -> None:
        self.shared.parts[shard, sequence, maker, number] = part

    def put_manifest(self, manifest: Manifest) -> bool:
        kept = self.shared.manifests.setdefault(manifest.shard, {})
        return kept.setdefault(manifest.sequence, manifest) is manifest

    def drop(self, manifest: Manifest) -> None:
        self.shared.manifests[manifest.shard].pop(manifest.sequence, None)
        self._remove(lambda key: key[:3] == (manifest.shard, manifest.sequence, manifest.maker))

    def sweep(self, shard: str, below: int, kept: Sequence[Manifest]) -> None:
        needed = {(m.shard, m.sequence, m.maker) for m in kept}
        self._remove(lambda key: key[0] == shard and key[1] < below and key[:3] not in needed)

    def prune(self, shard: str, below: int, before_ms: int, limit: int) -> int:
        old = [b for b in self.shared.of(shard) if b.sequence < below and b.now_ms < before_ms]
        old = [block for block in old if not block.opening][:limit]
        for block in old:
            self.shared.remove(shard, block.sequence)
        return len(old)

    def _remove(self, unwanted: Callable[[tuple[str, int, str, int]], bool]) -> None:
        for key in [key for key in self.shared.parts if unwanted(key)]:
            del self.shared.parts[key]


class MemoryCursors:
    """A `routing.relay.CursorStore`."""

    def __init__(self) -> None:
        self.stored: dict[str, Cursor] = {}

    def get(self, shard: str) -> Cursor:
        return self.stored.get(shard, Cursor())

    def move(self, shard: str, old: Cursor, new: Cursor) -> bool:
        if self.get(shard).sequence != old.sequence:
            return False
        self.stored[shard] = new
        return True
