"""One suite over both snapshot stores: what the port promises to the maker and to readers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pymongo
import pytest
import pytest_asyncio

from routing.journal import Block, JournalStore, Manifest, MongoJournal
from routing.relay import MongoTail
from routing.snapshots import MongoSnapshots, SnapshotStore
from routing.testing import MemoryBlocks, MemoryJournal, MemorySnapshots, MemoryTail

T0 = 1_772_000_000_000


@dataclass
class Stores:
    """The maker's store, a leader's and the relay's look at one database."""

    snapshots: SnapshotStore
    journal: JournalStore
    tail: Any

    async def write(self, count: int, opening: tuple[int, ...] = (1,)) -> None:
        for sequence in range(1, count + 1):
            await self.journal.insert(
                Block(
                    shard="beijing",
                    sequence=sequence,
                    epoch=sequence if sequence in opening else 1,
                    nonce=f"n{sequence}",
                    prev=f"n{sequence - 1}" if sequence > 1 else "",
                    now_ms=T0 + sequence,
                    format=1,
                    count=0,
                    body=b"\x90",
                )
            )

    def make(self, sequence: int, *parts: bytes, shard: str = "beijing", maker: str = "m") -> Manifest:
        for number, part in enumerate(parts):
            self.snapshots.put_part(shard, sequence, maker, number, part)
        manifest = Manifest(
            shard=shard,
            sequence=sequence,
            nonce=f"n{sequence}",
            epoch=1,
            ordinal=7,
            now_ms=T0,
            format=1,
            parts=len(parts),
            maker=maker,
            seal="s",
        )
        assert self.snapshots.put_manifest(manifest)
        return manifest

    def sequences(self) -> list[int]:
        return [block.sequence for block in self.tail.read("beijing", 0, 1_000)]


@pytest_asyncio.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.integration)])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        shared = MemoryBlocks()
        yield Stores(MemorySnapshots(shared), MemoryJournal(shared), MemoryTail(shared))
        return
    uri, name = request.getfixturevalue("mongo_uri"), request.getfixturevalue("mongo_database")
    # Polling: the driver leaks the socket of its round-trip probe when a client closes while it connects.
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
        uri, serverMonitoringMode="poll"
    )
    with pymongo.MongoClient[dict[str, Any]](uri) as sync_client:
        journal = MongoJournal(client[name])
        yield Stores(MongoSnapshots(sync_client[name]), journal, MongoTail(sync_client[name]))
        await journal.close()
    await client.close()


async def read(store: JournalStore, manifest: Manifest) -> list[bytes]:
    return [part async for part in store.parts(manifest)]


async def test_what_was_written_is_read_by_both_sides(stores: Stores) -> None:
    manifest = stores.make(12, b"one", b"two", bytes(range(256)) * 4_096)
    assert stores.snapshots.manifests("beijing") == [manifest] == await stores.journal.manifests("beijing")
    assert {type(m.now_ms) for m in await stores.journal.manifests("beijing")} == {int}
    expected = [b"one", b"two", bytes(range(256)) * 4_096]
    assert list(stores.snapshots.parts(manifest)) == expected == await read(stores.journal, manifest)
    assert stores.snapshots.manifests("beijin") == [] == await stores.journal.manifests("shanghai")


async def test_the_newest_comes_first_and_a_sequence_counts_once(stores: Stores) -> None:
    made = [stores.make(sequence, b"p") for sequence in (2, 10, 9)]
    assert [m.sequence for m in stores.snapshots.manifests("beijing")] == [10, 9, 2]
    again = replace(made[1], maker="other")
    assert not stores.snapshots.put_manifest(again)
    assert stores.snapshots.manifests("beijing")[0] == made[1]


async def test_parts_of_makers_and_sequences_do_not_mix(stores: Stores) -> None:
    first = stores.make(1, b"a")
    stores.snapshots.put_part("beijing", 1, "mm", 0, b"another's")
    stores.make(11, b"b")
    stores.make(1, b"c", shard="beijing2")
    assert list(stores.snapshots.parts(first)) == [b"a"] == await read(stores.journal, first)


async def test_dropping_and_sweeping_leave_the_others(stores: Stores) -> None:
    old, kept, new = stores.make(5, b"a"), stores.make(8, b"b"), stores.make(9, b"c")
    stores.snapshots.put_part("beijing", 6, "dead", 0, b"half")
    stores.snapshots.put_part("beijing", 20, "working", 0, b"half")
    stores.snapshots.drop(old)
    assert list(stores.snapshots.parts(old)) == []
    stores.snapshots.sweep("beijing", 9, [kept, new])
    assert list(stores.snapshots.parts(replace(old, sequence=6, maker="dead"))) == []
    assert list(stores.snapshots.parts(replace(old, sequence=20, maker="working"))) == [b"half"]
    assert list(stores.snapshots.parts(kept)) == [b"b"] and list(stores.snapshots.parts(new)) == [b"c"]


async def test_pruning_takes_old_blocks_below_and_no_openings(stores: Stores) -> None:
    await stores.write(12, opening=(1, 4))
    assert stores.snapshots.prune("beijing", 9, T0 + 100, 3) == 3
    assert stores.sequences() == [1, 4, *range(6, 13)]
    assert stores.snapshots.prune("beijing", 9, T0 + 7, 100) == 1
    assert stores.sequences() == [1, 4, *range(7, 13)]
    assert stores.snapshots.prune("beijing", 9, T0 + 100, 100) == 2
    assert stores.snapshots.prune("beijing", 9, T0 + 100, 100) == 0
    assert stores.sequences() == [1, 4, *range(9, 13)]


async def test_a_snapshot_stands_above_for_a_candidate(stores: Stores) -> None:
    await stores.write(3)
    assert not await stores.journal.above("beijing", 3)
    stores.make(5, b"p")
    assert await stores.journal.above("beijing", 3) and await stores.journal.above("beijing", 5)
    assert not await stores.journal.above("beijing", 6)


async def test_a_probe_is_written_as_often_as_wanted(stores: Stores) -> None:
    for _ in range(3):
        await stores.journal.probe("beijing", "one:1")
    assert stores.sequences() == []
