"""The audit log on a real database: streams and commands are acts too, and everybody who may reads them by
pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pymongo
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue

from callmesh.common.v1 import audit_pb2 as pb
from callmesh.common.v1 import audit_pb2_grpc as stubs
from chassis import acts, lifecycle
from chassis.acts import Acts, noted
from chassis.errors import NotFound
from chassis.grpc_status import error_info
from chassis.server import Server
from chassis.testing.echo import ECHO_METHODS, ECHO_SERVICE, EchoStub, echo_binding
from chassis.testing.grpc import loopback_settings

pytestmark = pytest.mark.integration


class Echo:
    """One RPC of each kind; each refuses the word "none"."""

    async def Unary(self, request: Any, context: Any) -> Any:
        return _said(request)

    def ClientStream(self, requests: Iterator[Any], context: Any) -> Any:
        return StringValue(value="".join(_said(request).value for request in requests))

    def Both(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from map(_said, requests)

    async def ServerStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield _said(request)


def _said(request: Any) -> Any:
    if request.value == "none":
        raise NotFound(resource="things/none")
    return request


@pytest.fixture
async def server(mongo_uri: str, mongo_database: str) -> AsyncIterator[Server]:
    # Polling: the driver leaks the socket of its round-trip probe when a client closes while it connects.
    client: Any = pymongo.AsyncMongoClient(mongo_uri, tz_aware=True, serverMonitoringMode="poll")
    scopes = {f"/{ECHO_SERVICE}/{name}": "test.admin" for name in ECHO_METHODS}
    recorded = Acts("test", lambda: client[mongo_database], frozenset({"test.admin"}))
    await recorded.prepare()
    made = Server(loopback_settings(), [echo_binding(Echo())], scopes=scopes, acts=recorded)
    await made.start()
    yield made
    await made.stop(None)
    await client.close()


@pytest.fixture
def database(mongo_uri: str, mongo_database: str) -> Iterator[Any]:
    with pymongo.MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[mongo_database]


async def _messages(*words: str) -> AsyncIterator[StringValue]:
    for word in words:
        yield StringValue(value=word)


async def test_a_stream_is_one_act_recorded_with_its_first_message(server: Server, database: Any) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = EchoStub(channel)
        assert (await stub.ClientStream(_messages("a", "b"))).value == "ab"
        assert [each.value async for each in stub.Both(_messages("a", "b"))] == ["a", "b"]
        assert [each.value async for each in stub.ServerStream(StringValue(value="a"))] == ["a"]
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ClientStream(_messages("a", "none"))
        # Nothing was asked for, so there is nothing to record.
        assert [each async for each in stub.Both(_messages())] == []
        told = (await stubs.AuditServiceStub(channel).ListRecordedActs(pb.ListRecordedActsRequest())).acts
    # By id: the clock of a machine may be set back meanwhile.
    told = sorted(told, key=lambda act: act.id)
    upload, both, download, refused = told
    assert [act.method.rpartition("/")[2] for act in (upload, both, download, refused)] == [
        *("ClientStream", "Both", "ServerStream", "ClientStream")
    ]
    assert [act.outcome for act in told] == ["OK", "OK", "OK", "NOT_FOUND"]
    # The same messages, the same digest; what was asked in all, not the first message alone.
    assert upload.request_digest == both.request_digest != download.request_digest
    assert upload.actor and len(upload.request_digest) == 64


async def test_an_act_is_there_before_a_streams_handler_sees_anything(
    server: Server, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise acts.ActNotRecorded(why="the database does not answer", retry_seconds=1.0)

    seen: list[Any] = []
    monkeypatch.setattr(Acts, "begin", away)
    monkeypatch.setattr(f"{__name__}._said", lambda request: seen.append(request) or request)
    async with grpc.aio.insecure_channel(server.address) as channel:
        for call in (
            EchoStub(channel).ClientStream(_messages("a")),
            EchoStub(channel).Both(_messages("a")).read(),
            EchoStub(channel).Unary(StringValue(value="a")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            info = error_info(refused.value)
            assert info is not None and info.reason == "ACT_NOT_RECORDED"
    assert seen == [] and database.acts.count_documents({}) == 0


async def test_acts_are_read_by_pages_and_filters(server: Server, database: Any) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [
        {
            "_id": f"act-{n:02}",
            "at": int((start + timedelta(hours=n // 2)).timestamp() * 1000),
            "actor": ("ann", "bob")[n % 2],
            "method": "/m",
            "resource": f"things/{n % 3}",
            "outcome": "OK",
        }
        for n in range(10)
    ]
    database.acts.insert_many(rows)

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = stubs.AuditServiceStub(channel)

        async def listed(**fields: Any) -> list[str]:
            found, token = [], ""
            while True:
                page = await stub.ListRecordedActs(
                    pb.ListRecordedActsRequest(page_size=3, page_token=token, **fields)
                )
                found += [act.id for act in page.acts]
                token = page.next_page_token
                if not token:
                    return found

        newest_first = [f"act-{n:02}" for n in reversed(range(10))]
        assert await listed() == newest_first
        assert await listed(actor="ann") == newest_first[1::2]
        assert await listed(resource="things/0") == ["act-09", "act-06", "act-03", "act-00"]
        span = {
            name: Timestamp(seconds=int((start + timedelta(hours=hour)).timestamp()))
            for name, hour in (("start_time", 1), ("end_time", 3))
        }
        assert await listed(interval=span) == ["act-05", "act-04", "act-03", "act-02"]
        turned = {"start_time": span["end_time"], "end_time": span["start_time"]}
        for fields in ({"page_size": -1}, {"page_token": "x"}, {"interval": turned}):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListRecordedActs(pb.ListRecordedActsRequest(**fields))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_command_does_to_the_database_is_told_and_ages(database: Any) -> None:
    with noted(database, actor="cli:ann", method="callmesh retention --apply", resource="test"):
        assert database.acts.find_one({})["outcome"] == acts.BEGUN
    with pytest.raises(ZeroDivisionError), noted(database, actor="cli:ann", method="m", resource="r"):
        raise ZeroDivisionError
    assert [row["outcome"] for row in database.acts.find().sort("_id", 1)] == ["OK", "INTERNAL"]

    table = lifecycle.Lifecycle(service="test", held=lifecycle.technical())
    now = datetime.now(UTC)
    database.acts.insert_one({"_id": "old", "at": 0})
    assert lifecycle.prune(database, table, now, remove=False)["acts"] == 1
    assert lifecycle.prune(database, table, now, remove=True)["acts"] == 1
    assert database.acts.count_documents({}) == 2
    assert (
        lifecycle.prune(database, table, now + timedelta(days=acts.KEPT_DAYS + 1), remove=True)["acts"] == 2
    )
