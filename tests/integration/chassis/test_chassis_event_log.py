"""The event log on a real MongoDB: one gap-free order whoever writes, and what a cursor sees."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pymongo
import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from callmesh.common.v1 import event_service_pb2 as pb
from callmesh.common.v1 import event_service_pb2_grpc as stubs
from callmesh.crm.v1 import events_pb2
from chassis import eventservice
from chassis.bus import Event
from chassis.bus.publisher import Outcome, Outgoing
from chassis.config import ServiceSettings
from chassis.eventlog import COLLECTION, Cursor, Entry, EventLog, Recorded, forget
from chassis.grpc_status import error_info
from chassis.testing.grpc import loopback_settings
from chassis.testing.tokens import TokenMaker

pytestmark = pytest.mark.integration

CREATED = "callmesh.crm.v1.CustomerCreated"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WRITERS, EACH = 4, 30


def outgoing(number: int, kind: str = "CustomerCreated") -> Outgoing:
    message = getattr(events_pb2, kind)(
        customer={"customer": f"customers/{number}", "display_name": "王芳", "numbers": ["+8613800138000"]},
        actor="local",
    )
    event = Event.of(message, source="crm", subject=f"customers/{number}", time=NOW, id=f"e{number}")
    return Outgoing.event(event)


class Broker:
    """Confirms everything."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, messages: Any, seconds_max: float = 30.0) -> list[Outcome]:
        self.published += [message.message_id for message in messages]
        return [Outcome.PUBLISHED] * len(messages)


@pytest.fixture
def log(mongo_client: pymongo.MongoClient[dict[str, Any]], mongo_database: str) -> EventLog:
    made = EventLog(mongo_client[mongo_database], service="crm", people="customers")
    made.ensure()
    return made


@pytest_asyncio.fixture
async def served(
    grpc_server: Any, mongo_uri: str, mongo_database: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """(stub, metadata of a caller with personal data, of one without, the source)."""
    monkeypatch.setattr(eventservice, "HEARTBEAT_SECONDS", 0.3)
    # Polling: the driver leaks the socket of its round-trip probe when a client closes while it connects.
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
        mongo_uri, tz_aware=True, serverMonitoringMode="poll"
    )
    source = eventservice.EventSource("crm", lambda: client[mongo_database])
    maker = TokenMaker()
    jwks = maker.write_jwks(tmp_path / "jwks.json")
    settings = loopback_settings(
        ServiceSettings(service="crm"), auth_mode="jwt", auth_jwks_file=str(jwks), auth_audience="callmesh"
    )
    server = await grpc_server([source.binding()], scopes=eventservice.scopes("crm"), settings=settings)

    def bearer(*scopes: str, subject: str = "partner") -> Any:
        return (("authorization", f"Bearer {maker.token(subject, ' '.join(scopes))}"),)

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = stubs.EventServiceStub(channel)
        whole = bearer("crm.events.read", "crm.events.personal")
        plain = bearer("crm.events.read", subject="another")
        yield stub, whole, plain, bearer("tickets.events.read"), source
    await client.close()


async def take(stream: Any, count: int) -> list[Any]:
    """So many events, heartbeats passed over."""
    found: list[Any] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            message = await stream.read()
            if message.WhichOneof("message") == "event":
                found.append(message)
    return found


def test_writers_at_once_make_one_order_without_a_gap(
    log: EventLog, mongo_client: Any, mongo_database: str
) -> None:
    """Each writes its own, and all of them the same ones as well, in batches of three."""

    def write(writer: int) -> None:
        mine = EventLog(mongo_client[mongo_database], service="crm")
        for n in range(0, EACH, 3):
            own = [Entry(id=f"{writer}-{m}", type=CREATED, body=b"{}") for m in range(n, n + 3)]
            mine.append([*own, Entry(id=f"shared-{n}", type=CREATED, body=b"{}")])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(mongo_client[mongo_database][COLLECTION].find(sort=[("_id", 1)]))
    assert [entry["_id"] for entry in found] == list(range(1, WRITERS * EACH + EACH // 3 + 1))
    assert len({entry["event"] for entry in found}) == len(found)
    for writer in range(WRITERS):
        own = [entry["event"] for entry in found if entry["event"].startswith(f"{writer}-")]
        assert own == [f"{writer}-{n}" for n in range(EACH)]


def test_pruning_keeps_the_count_going(log: EventLog, mongo_client: Any, mongo_database: str) -> None:
    entries = [Entry(id=f"a{n}", type=CREATED, body=b"{}") for n in range(5)]
    log.append(entries)
    later = EventLog(mongo_client[mongo_database], service="crm", now=lambda: NOW + timedelta(days=40000))
    assert later.prune() == 5 and later.floor() == 5
    again = EventLog(mongo_client[mongo_database], service="crm", entries_max=1)
    again.append([Entry(id=f"b{n}", type=CREATED, body=b"{}") for n in range(3)])
    assert again.prune() == 2 and again.floor() == 7
    assert [e["_id"] for e in mongo_client[mongo_database][COLLECTION].find()] == [8]


async def test_a_reader_goes_on_where_it_was(log: EventLog, served: Any) -> None:
    stub, whole, _, _, source = served
    broker = Broker()
    publisher = Recorded(broker, log, "crm")
    publisher.publish([outgoing(n) for n in range(3)])
    publisher.publish([outgoing(n) for n in range(1, 5)])
    assert broker.published == ["e0", "e1", "e2", "e1", "e2", "e3", "e4"]

    stream = stub.Subscribe(pb.SubscribeRequest(start=pb.EVENT_START_OLDEST, types=[CREATED]), metadata=whole)
    first = await take(stream, 3)
    stream.cancel()
    assert [message.event.id for message in first] == ["e0", "e1", "e2"]
    assert "王芳" in first[0].event.data and not first[0].event.redacted
    again = stub.Subscribe(pb.SubscribeRequest(cursor=first[-1].cursor), metadata=whole)
    assert [message.event.id for message in await take(again, 2)] == ["e3", "e4"]
    # Live: what is written now comes without another word; a type nobody asked for only moves the cursor.
    await asyncio.to_thread(publisher.publish, [outgoing(5)])
    (live,) = await take(again, 1)
    other = stub.Subscribe(
        pb.SubscribeRequest(start=pb.EVENT_START_OLDEST, types=["callmesh.crm.v1.CustomerErased"]),
        metadata=whole,
    )
    async with asyncio.timeout(30):
        while (beat := await other.read()).cursor != live.cursor:
            assert beat.WhichOneof("message") == "heartbeat"
    assert beat.WhichOneof("message") == "heartbeat"
    # The end of the server ends the streams by name; the cursor goes on elsewhere.
    source.drain()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        while await again.read() is not grpc.aio.EOF:
            pass
    assert error_info(ended.value).reason == "SERVER_ENDING"
    page = await stub.ListEvents(pb.ListEventsRequest(cursor=live.cursor), metadata=whole)
    assert (list(page.events), page.at_end, page.next_cursor) == ([], True, live.cursor)


async def test_a_page_of_large_events_fits_into_a_message(log: EventLog, served: Any) -> None:
    stub, whole, *_ = served
    body = outgoing(1).body.replace("王芳".encode(), b"x" * 250_000)
    log.append([Entry(id=f"e{n}", type=CREATED, body=body) for n in range(40)])
    counts, cursor, at_end = [], "", False
    while not at_end:
        asked = pb.ListEventsRequest(cursor=cursor, start=pb.EVENT_START_OLDEST, page_size=1_000)
        page = await stub.ListEvents(asked, metadata=whole)
        counts.append(len(page.events))
        cursor, at_end = page.next_cursor, page.at_end
    assert counts == [12, 12, 12, 4]


async def test_nobody_takes_the_places_of_all_others(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventservice, "STREAMS_EACH_MAX", 2)
    monkeypatch.setattr(eventservice, "STREAMS_MAX", 3)
    stub, mine, theirs, _, _ = served

    async def opened(metadata: Any) -> Any:
        stream = stub.Subscribe(pb.SubscribeRequest(), metadata=metadata)
        assert (await stream.read()).WhichOneof("message") == "heartbeat"
        return stream

    async def refused(metadata: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await opened(metadata)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = error_info(caught.value)
        assert info.reason == "TOO_MANY_SUBSCRIPTIONS"
        return caught.value.details()

    streams = [await opened(mine), await opened(mine)]
    assert "client:partner" in await refused(mine)
    streams.append(await opened(theirs))
    assert "crm" in await refused(theirs), "all places are taken"
    streams.pop(0).cancel()
    async with asyncio.timeout(30):
        while True:
            try:
                streams.append(await opened(mine))
                break
            except grpc.aio.AioRpcError as error:
                assert error_info(error).reason == "TOO_MANY_SUBSCRIPTIONS"
    for stream in streams:
        stream.cancel()


async def test_a_fault_while_looking_ends_no_stream(
    log: EventLog, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looked any more after it: a stream learned of events at its heartbeats alone."""
    monkeypatch.setattr(eventservice, "HEARTBEAT_SECONDS", 3_600.0)
    stub, whole, _, _, _ = served
    end, faults = eventservice.Reader.end, iter([ArithmeticError("once")])

    async def failing(self: Any) -> int:
        if asyncio.current_task().get_coro().__name__ == "_look" and (fault := next(faults, None)):
            raise fault
        return await end(self)

    monkeypatch.setattr(eventservice.Reader, "end", failing)
    stream = stub.Subscribe(pb.SubscribeRequest(start=pb.EVENT_START_OLDEST), metadata=whole)
    assert (await stream.read()).WhichOneof("message") == "heartbeat"
    await asyncio.to_thread(Recorded(Broker(), log, "crm").publish, [outgoing(1)])
    (live,) = await take(stream, 1)
    assert live.event.id == "e1" and next(faults, None) is None
    stream.cancel()


async def test_who_may_see_what_and_which_cursors_are_refused(
    log: EventLog, served: Any, mongo_client: Any, mongo_database: str
) -> None:
    stub, whole, plain, stranger, _ = served
    Recorded(Broker(), log, "crm").publish([outgoing(n) for n in range(4)])

    async def ask(metadata: Any = whole, **fields: Any) -> Any:
        return await stub.ListEvents(pb.ListEventsRequest(**fields), metadata=metadata)

    async def refused(metadata: Any = whole, **fields: Any) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(metadata, **fields)
        return error_info(caught.value)

    oldest = {"start": pb.EVENT_START_OLDEST}
    assert (await refused(stranger)).metadata["scope"] == "crm.events.read"
    first = await ask(plain, **oldest, page_size=2)
    assert [event.redacted for event in first.events] == [True, True] and not first.at_end
    assert "王芳" not in str(first) and "138" not in first.events[0].data
    assert first.events[0].subject == "customers/0" and first.events[0].time.ToDatetime(UTC) == NOW
    assert (await refused(types=["callmesh.tickets.v1.TicketCreated"])).metadata["field"] == "types[0]"
    assert (await refused(page_size=-1)).metadata["field"] == "page_size"
    for bad in ("x", "é", "a" * 300, Cursor(log="x", sequence=-1).text()):
        assert (await refused(cursor=bad)).reason == "CURSOR_INVALID", bad
    elsewhere = Cursor(log="other", sequence=1).text()
    ahead = Cursor.parse(first.next_cursor)
    assert (await refused(cursor=elsewhere)).reason == "EVENTS_EXPIRED"
    restored = Cursor(log=ahead.log, sequence=9, check=7).text()
    assert (await refused(cursor=restored)).reason == "EVENTS_EXPIRED"
    early = (await ask(**oldest, page_size=1)).next_cursor
    EventLog(mongo_client[mongo_database], service="crm", entries_max=2).prune()
    gone = await refused(cursor=early)
    assert gone.reason == "EVENTS_EXPIRED"
    kept = await ask(cursor=gone.metadata["oldest_cursor"])
    assert [event.id for event in kept.events] == ["e2", "e3"]


async def test_a_person_who_is_forgotten_is_found_by_no_reader_and_no_cursor_is_lost(
    log: EventLog, served: Any, mongo_client: Any, mongo_database: str
) -> None:
    stub, whole, _, _, _ = served
    told = events_pb2.CustomersMerged(
        survivor={"customer": "customers/12", "company": "某公司"}, absorbed=["customers/1", "customers/7"]
    )
    merged = Event.of(told, source="crm", subject="merges/m", time=NOW, id="m")
    Recorded(Broker(), log, "crm").publish([outgoing(1), outgoing(12), Outgoing.event(merged), outgoing(1)])
    oldest = pb.ListEventsRequest(start=pb.EVENT_START_OLDEST)
    before = await stub.ListEvents(oldest, metadata=whole)
    assert await asyncio.to_thread(forget, mongo_client[mongo_database], "customers/1") == 2
    assert await asyncio.to_thread(forget, mongo_client[mongo_database], "customers/1") == 0
    after = await stub.ListEvents(oldest, metadata=whole)
    assert [event.id for event in after.events] == ["e1", "e12", "m"]
    assert [event.redacted for event in after.events] == [True, False, True]
    assert "王芳" not in after.events[0].data and "customers/1" in after.events[0].data
    assert after.events[1] == before.events[1], "another's stays, though its name begins alike"
    assert "某公司" not in after.events[2].data
    # What was written again as a repetition is known, and stays forgotten; a cursor goes on where it was.
    Recorded(Broker(), log, "crm").publish([outgoing(1)])
    assert (await stub.ListEvents(oldest, metadata=whole)) == after
    on = await stub.ListEvents(pb.ListEventsRequest(cursor=before.next_cursor), metadata=whole)
    assert on.at_end and on.next_cursor == before.next_cursor


async def test_a_cursor_of_a_lost_span_is_refused_though_its_ids_were_given_out_again(
    log: EventLog, served: Any, mongo_client: Any, mongo_database: str
) -> None:
    stub, whole, _, _, _ = served
    log.append([Entry(id="a", type=CREATED, body=b"{}")])
    Recorded(Broker(), log, "crm").publish([outgoing(2)])
    newest = (await stub.ListEvents(pb.ListEventsRequest(), metadata=whole)).next_cursor
    # As a restore leaves it: the span is gone, and its sequences and ids come again.
    mongo_client[mongo_database][COLLECTION].delete_many({"event": "e2"})
    again = EventLog(mongo_client[mongo_database], service="crm", now=lambda: NOW + timedelta(days=1))
    Recorded(Broker(), again, "crm").publish([outgoing(2)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListEvents(pb.ListEventsRequest(cursor=newest), metadata=whole)
    assert error_info(caught.value).reason == "EVENTS_EXPIRED"
