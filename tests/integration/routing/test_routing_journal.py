"""The journal in a real MongoDB: what leaders commit is what the relay reads, through outages too."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest
import pytest_asyncio

from chassis.clock import SystemClock
from chassis.localstack import MongoNode, free_ports
from chassis.testing.waiting import eventually
from routing import codec, model
from routing.committed import StoreOutage
from routing.journal import (
    COLLECTION,
    ORPHANS,
    ORPHANS_SECONDS,
    Block,
    ChainReader,
    JournalStore,
    MongoJournal,
    OutcomeUnknown,
)
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.publish import Projection
from routing.relay import MongoTail
from routing.state import ShardState

pytestmark = pytest.mark.integration
DEADLINE_SECONDS = 60
OPTIONS = LeaderOptions(
    heartbeat_seconds=0.05,
    takeover_seconds=0.3,
    # A busy machine's disk takes a while now and then, which is no outage.
    outage_seconds=1.0,
    timing=model.Timing(grace_span_ms=60_000, reattach_span_ms=100, agent_grace_span_ms=60_000),
)


def block(sequence: int, body: bytes = b"\x90", nonce: str = "", prev: str | None = None) -> Block:
    return Block(
        shard="beijing",
        sequence=sequence,
        epoch=1,
        nonce=nonce or f"n{sequence}",
        prev=prev if prev is not None else f"n{sequence - 1}" if sequence > 1 else "",
        now_ms=1_772_000_000_000,
        format=codec.FORMAT,
        count=0,
        body=body,
    )


class Routers:
    """Leaders of one shard, started and stopped by a test."""

    def __init__(self, store: Callable[[], JournalStore]) -> None:
        self._store = store
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, router: str) -> Leader:
        leader = Leader(
            shard="beijing", router=router, store=self._store(), clock=SystemClock(), options=OPTIONS
        )
        self._tasks.append(asyncio.create_task(leader.run(), name=router))
        return leader

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


@pytest_asyncio.fixture
async def database(mongo_uri: str, mongo_database: str) -> AsyncIterator[Any]:
    # Polling: the driver leaks the socket of its round-trip probe when a client closes while it connects.
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
        mongo_uri, serverMonitoringMode="poll"
    )
    yield client[mongo_database]
    await client.close()


@pytest_asyncio.fixture
async def routers(database: Any) -> AsyncIterator[Routers]:
    made = Routers(lambda: MongoJournal(database))
    yield made
    await made.stop()


async def furnish(leader: Leader) -> None:
    await asyncio.wait_for(leader.wait_until_leading(), DEADLINE_SECONDS)
    for command in (
        model.ConfigureQueue(queue=model.QueueConfig(id="q")),
        model.ConfigureAgent(agent=model.AgentConfig(id="amy")),
        model.OpenSession(agent="amy", session=1, command=1, front="f"),
    ):
        await leader.submit(command)


def place(call_id: str) -> model.PlaceCall:
    facts = model.CallFacts(call_id=call_id, queue="q", caller_number="+8613800138000")
    return model.PlaceCall(facts=facts, attempt=1, move=1, front="f")


def read_on(tail: MongoTail, projection: Projection, chain: ChainReader) -> None:
    for each in tail.read("beijing", chain.sequence, 10_000):
        chain.accept(each)
        projection.skip(each)


def essence(state: ShardState) -> dict[str, Any]:
    """What two readers of one journal must agree on."""
    return {
        "epoch": state.epoch,
        "calls": {
            id: (c.state, c.version, c.outcome, c.agent, c.offer_id, c.queued_ms, c.connected_ms, c.ended_ms)
            for id, c in state.calls.items()
        },
        "agents": {
            id: (a.state, a.presence, a.session, dict(a.offers), set(a.calls), set(a.wraps))
            for id, a in state.agents.items()
        },
        "queues": dict(state.queues),
    }


async def test_the_relays_projection_is_the_leaders_state(
    routers: Routers, mongo_client: Any, mongo_database: str
) -> None:
    leader = routers.start("one")
    await furnish(leader)
    placed = await asyncio.gather(*(leader.submit(place(f"c{n}")) for n in range(50)))
    held = await leader.submit(model.AskAgent(agent="amy"))
    assert held.answer.agent is not None
    offer_id = held.answer.agent.offers[0]
    call_id = next(id for id, c in leader.state.calls.items() if c.offer_id == offer_id)
    await leader.submit(model.AcceptOffer(agent="amy", session=1, offer_id=offer_id))
    await leader.submit(model.ConfirmCall(call_id=call_id, offer_id=offer_id, attempt=1, move=1))
    await leader.submit(model.EndCall(call_id=call_id))
    last = await leader.submit(model.HangUp(call_id="c49", attempt=1))
    assert {each.epoch for each in placed} == {last.epoch}
    await routers.stop()

    tail, projection, chain = MongoTail(mongo_client[mongo_database]), Projection("beijing"), ChainReader()
    read_on(tail, projection, chain)
    assert chain.sequence == tail.newest("beijing") >= last.sequence
    # The leader forgets when it stops; another one reads what it left.
    successor = routers.start("two")
    await asyncio.wait_for(successor.wait_until_leading(), DEADLINE_SECONDS)
    await routers_idle(successor)
    state = successor.state
    await routers.stop()
    read_on(tail, projection, chain)
    assert essence(projection.state) == essence(state)
    assert projection.state.calls[call_id].outcome is model.CallOutcome.COMPLETED
    assert projection.state.calls["c49"].outcome is model.CallOutcome.ABANDONED


async def routers_idle(leader: Leader) -> None:
    """Until everything decided so far is committed."""
    await leader.submit(model.AskAgent(agent="amy"))


async def test_two_candidates_at_once_make_one_chain(
    routers: Routers, mongo_client: Any, mongo_database: str
) -> None:
    leaders = [routers.start(f"router-{n}") for n in range(3)]
    await eventually(lambda: max(each.sequence for each in leaders) > 20, "somebody goes on")
    # One who slept for longer than the others wait does not know at once that it was succeeded.
    await eventually(lambda: sum(each.leading for each in leaders) == 1, "one leads")
    await routers.stop()
    chain = ChainReader()
    for each in MongoTail(mongo_client[mongo_database]).read("beijing", 0, 10_000):
        chain.accept(each)
    assert chain.sequence > 20


async def test_the_largest_block_goes_in_and_comes_out(database: Any, mongo_client: Any) -> None:
    store = MongoJournal(database)
    largest = block(1, body=bytes(range(256)) * (model.BLOCK_BYTES_MAX // 256))
    await store.insert(largest)
    assert await store.find("beijing", 1) == largest
    assert list(MongoTail(mongo_client[database.name]).read("beijing", 0, 10)) == [largest]
    await store.close()


async def test_orphans_are_put_aside_once_but_for_what_the_journal_has(database: Any) -> None:
    store = MongoJournal(database)
    await store.insert(block(1))
    for _ in range(2):
        await store.keep_orphans([block(1), block(2, nonce="told", prev="n1")])
    kept = [document async for document in database[ORPHANS].find()]
    assert [(each["_id"], each["prev"]) for each in kept] == [(f"{block(2).key}:told", "n1")]
    indexes = await database[ORPHANS].index_information()
    assert indexes["kept_time_1"]["expireAfterSeconds"] == ORPHANS_SECONDS
    await store.close()


async def test_inserts_are_journaled_by_a_majority(database: Any, mongo_client: Any) -> None:
    store = MongoJournal(database)
    assert store._blocks.write_concern.document == {"w": "majority", "j": True}
    assert store._blocks.read_concern.level == "majority"
    assert MongoTail(mongo_client[database.name])._blocks.read_concern.level == "majority"
    await store.close()


async def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    node = MongoNode(tmp_path / "mongo", free_ports(1)[0])
    node.start()
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
        node.uri, serverSelectionTimeoutMS=500, connectTimeoutMS=500, serverMonitoringMode="poll"
    )
    routers = Routers(lambda: MongoJournal(client["routing"]))
    try:
        store = MongoJournal(client["routing"])
        leader = routers.start("one")
        await furnish(leader)
        before = await leader.submit(place("before"))
        node.kill()
        waiting = leader.submit(place("during"))
        for question in (store.insert(block(9_999)), store.find("beijing", 1), store.above("beijing", 0)):
            with pytest.raises(OutcomeUnknown):
                await question
        with pytest.raises(OutcomeUnknown):
            _ = [each async for each in store.read("beijing", 0)]
        with pytest.raises(StoreOutage):
            leader.submit(place("refused"))
        assert not waiting.done()
        node.start_member(0)
        committed = await asyncio.wait_for(waiting, DEADLINE_SECONDS)
        assert committed.epoch == before.epoch, "the same leader goes on"
        assert committed.answer.call is not None
        found = await store.find("beijing", committed.sequence)
        assert found is not None and found.epoch == before.epoch
        chain = ChainReader()
        async for each in store.read("beijing", 0):
            chain.accept(each)
        assert chain.sequence >= committed.sequence
        await store.close()
    finally:
        await routers.stop()
        await client.close()
        node.stop()


async def test_a_server_that_hangs_with_its_connections_open_is_noticed(tmp_path: Path) -> None:
    """Stopped, not killed: no connection breaks, and the driver alone would wait for 20 s."""
    node = MongoNode(tmp_path / "mongo", free_ports(1)[0])
    node.start()
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(node.uri)
    try:
        await MongoJournal(client["routing"], answer_seconds=30).insert(block(1))
        store = MongoJournal(client["routing"], answer_seconds=0.3)
        node.members[0].halt()
        asked: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.insert(block(2)),
            lambda: store.find("beijing", 1),
            lambda: _all(store.read("beijing", 0)),
            lambda: store.above("beijing", 1),
            lambda: store.manifests("beijing"),
            lambda: store.probe("beijing", "r1"),
            lambda: store.now_ms(),
        ]
        for question in asked:
            began = time.monotonic()
            with pytest.raises(OutcomeUnknown):
                await question()
            assert time.monotonic() - began < 10.0
        node.members[0].send(signal.SIGCONT)
        store = MongoJournal(client["routing"], answer_seconds=30)
        assert (found := await store.find("beijing", 1)) is not None and found.nonce == "n1"
    finally:
        node.members[0].send(signal.SIGCONT)
        await client.close()
        node.stop()


async def _all(blocks: AsyncIterator[Block]) -> list[Block]:
    return [each async for each in blocks]


async def test_the_collection_needs_no_index_but_its_ids(database: Any) -> None:
    store = MongoJournal(database)
    for sequence in range(1, 30):
        await store.insert(block(sequence))
    plan = (
        await database[COLLECTION]
        .find({"_id": {"$gt": "beijing:0000000000000010", "$lt": "beijing;"}})
        .sort("_id", 1)
        .explain()
    )
    stats = plan["executionStats"]
    assert stats["totalDocsExamined"] == 19
    assert "SORT" not in str(plan["queryPlanner"]["winningPlan"])
    await store.close()
