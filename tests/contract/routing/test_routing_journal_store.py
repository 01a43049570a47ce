"""One suite over both journals: what the port promises to a leader."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pymongo
import pytest
import pytest_asyncio

from routing.journal import (
    Block,
    ChainReader,
    JournalGap,
    JournalStore,
    MongoJournal,
    OutcomeUnknown,
    block_key,
    from_document,
    to_document,
)
from routing.relay import MongoTail
from routing.testing import MemoryBlocks, MemoryJournal, MemoryTail

T0 = 1_772_000_000_000


def block(sequence: int, shard: str = "beijing", **changes: Any) -> Block:
    values: dict[str, Any] = {
        "shard": shard,
        "sequence": sequence,
        "epoch": 1,
        "nonce": f"n{sequence}",
        "prev": f"n{sequence - 1}" if sequence > 1 else "",
        "now_ms": T0 + sequence,
        "format": 1,
        "count": 0,
        "body": b"\x90",
    }
    return Block(**{**values, **changes})


class Journals:
    """Routers' stores over one database, and the relay's look at it."""

    def __init__(self, open_store: Callable[[], JournalStore], tail: Any) -> None:
        self._open = open_store
        self.tail = tail
        self.stores: list[JournalStore] = []

    def open(self) -> JournalStore:
        self.stores.append(self._open())
        return self.stores[-1]


@pytest_asyncio.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.integration)])
async def journals(request: pytest.FixtureRequest) -> AsyncIterator[Journals]:
    if request.param == "memory":
        shared = MemoryBlocks()
        yield Journals(lambda: MemoryJournal(shared), MemoryTail(shared))
        return
    uri, name = request.getfixturevalue("mongo_uri"), request.getfixturevalue("mongo_database")
    # Polling: the driver leaks the socket of its round-trip probe when a client closes while it connects.
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
        uri, serverMonitoringMode="poll"
    )
    with pymongo.MongoClient[dict[str, Any]](uri) as sync_client:
        made = Journals(lambda: MongoJournal(client[name]), MongoTail(sync_client[name]))
        yield made
        for store in made.stores:
            await store.close()
    await client.close()


async def read(store: JournalStore, shard: str = "beijing", after: int = 0) -> list[Block]:
    return [each async for each in store.read(shard, after)]


async def test_what_was_inserted_is_found_as_it_was(journals: Journals) -> None:
    store = journals.open()
    written = block(1, body=bytes(range(256)), count=7, epoch=1, now_ms=2**53)
    await store.insert(written)
    found = await store.find("beijing", 1)
    assert found == written and type(found.now_ms) is int, "no integer of the database's own goes on"
    assert await journals.open().find("beijing", 1) == written
    assert await store.find("beijing", 2) is None
    assert await store.find("chengdu", 1) is None


async def test_an_empty_journal(journals: Journals) -> None:
    store = journals.open()
    assert await read(store) == []
    assert await store.find("beijing", 1) is None
    assert not await store.above("beijing", 0)
    assert journals.tail.shards() == []
    assert journals.tail.newest("beijing") == 0


async def test_blocks_are_read_in_order_of_their_number(journals: Journals) -> None:
    store = journals.open()
    for sequence in (2, 11, 1, 100, 9, 10):
        await store.insert(block(sequence))
    assert [each.sequence for each in await read(store)] == [1, 2, 9, 10, 11, 100]
    assert [each.sequence for each in await read(store, after=9)] == [10, 11, 100]
    assert await read(store, after=100) == []
    tail = journals.tail
    assert [each.sequence for each in tail.read("beijing", 0, 1000)] == [1, 2, 9, 10, 11, 100]
    assert [each.sequence for each in tail.read("beijing", 2, 3)] == [9, 10, 11]
    assert tail.newest("beijing") == 100


SHARDS = ["a", "a-b", "a1", "beijing", "beijing-2", "beijing2", "b"]


async def test_shards_whose_names_begin_alike_are_apart(journals: Journals) -> None:
    store = journals.open()
    for shard in SHARDS:
        for sequence in (1, 2):
            await store.insert(block(sequence, shard, nonce=f"{shard}{sequence}"))
    for shard in SHARDS:
        assert [each.nonce for each in await read(store, shard)] == [f"{shard}1", f"{shard}2"]
        assert [each.nonce for each in journals.tail.read(shard, 0, 10)] == [f"{shard}1", f"{shard}2"]
        assert journals.tail.newest(shard) == 2
        assert await store.above(shard, 1) and not await store.above(shard, 2)
    assert sorted(journals.tail.shards()) == sorted(SHARDS)


async def test_a_number_is_taken_once_and_the_loser_has_to_look(journals: Journals) -> None:
    first, second = journals.open(), journals.open()
    ours, theirs = block(1, nonce="ours"), block(1, nonce="theirs")
    await first.insert(ours)
    with pytest.raises(OutcomeUnknown):
        await second.insert(theirs)
    assert await second.find("beijing", 1) == ours


async def test_the_same_block_again_is_unknown_too_and_changes_nothing(journals: Journals) -> None:
    store = journals.open()
    await store.insert(block(1))
    with pytest.raises(OutcomeUnknown):
        await store.insert(block(1))
    assert await read(store) == [block(1)]


async def test_several_are_inserted_in_order(journals: Journals) -> None:
    store, blocks = journals.open(), [block(n) for n in range(1, 251)]
    await store.insert_all(blocks)
    assert await read(store) == blocks


@pytest.mark.parametrize("taken", [1, 2, 4])
async def test_none_is_inserted_behind_one_that_is_taken(journals: Journals, taken: int) -> None:
    first, second = journals.open(), journals.open()
    theirs = block(taken, nonce="theirs")
    await second.insert(theirs)
    with pytest.raises(OutcomeUnknown):
        await first.insert_all([block(n) for n in range(1, 6)])
    assert await read(second) == [*(block(n) for n in range(1, taken)), theirs]
    # It goes on where it is let.
    await first.insert_all([block(n) for n in range(taken + 1, 6)])
    assert [each.sequence for each in await read(second)] == [1, 2, 3, 4, 5]


async def test_another_routers_block_above_is_seen(journals: Journals) -> None:
    first, second = journals.open(), journals.open()
    await first.insert(block(1))
    assert not await first.above("beijing", 1)
    await second.insert(block(2))
    assert await first.above("beijing", 1)
    await first.insert(block(1, "chengdu"))
    assert not await first.above("chengdu", 1)


async def test_the_databases_time_is_real_time(journals: Journals) -> None:
    before, after = await journals.open().now_ms(), await journals.open().now_ms()
    assert 1_600_000_000_000 < before <= after


async def test_a_store_may_be_closed_unused_and_twice(journals: Journals) -> None:
    store = journals.open()
    await store.close()
    await store.close()
    # The others are open still.
    other = journals.open()
    await other.insert(block(1))
    assert await read(other) == [block(1)]


def test_a_document_and_a_block_are_the_same() -> None:
    for written in (block(1, epoch=1, body=b"\x00\xff"), block(7, epoch=3)):
        assert from_document(to_document(written)) == written
    assert to_document(block(1))["opening"] is True
    assert block_key("beijing", 12) == "beijing:0000000000000012"


def test_a_chain_takes_only_what_follows() -> None:
    for wrong in (block(2), block(4), block(3, prev="another")):
        chain = ChainReader()
        chain.accept(block(1))
        if wrong.sequence != 2:
            chain.accept(block(2))
        else:
            wrong = replace(wrong, prev="another")
        with pytest.raises(JournalGap):
            chain.accept(wrong)


async def test_troubles_of_the_memory_journal() -> None:
    store = MemoryJournal()
    store.refuse(1)
    with pytest.raises(OutcomeUnknown):
        await store.insert(block(1))
    assert await store.find("beijing", 1) is None
    store.lose_answers(1)
    with pytest.raises(OutcomeUnknown):
        await store.insert(block(1))
    assert await store.find("beijing", 1) == block(1)
    await store.insert(block(2))
    store.away = True
    for question in (
        store.insert(block(3)),
        store.find("beijing", 1),
        store.above("beijing", 1),
        store.now_ms(),
    ):
        with pytest.raises(OutcomeUnknown):
            await question
    with pytest.raises(OutcomeUnknown):
        await read(store)
    store.away = False
    assert [each.sequence for each in await read(store)] == [1, 2]
