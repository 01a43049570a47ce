"""The audit log of administrative acts: recorded before, finished after; nothing is done unrecorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from pymongo.errors import ServerSelectionTimeoutError

from callmesh.marketing.v1 import offers_pb2 as pb
from chassis.acts import ActNotRecorded, Acts
from chassis.errors import NotFound
from chassis.server import Server
from chassis.testing.echo import ECHO_METHODS, ECHO_SERVICE, EchoStub, echo_binding
from chassis.testing.grpc import loopback_settings


class Rows:
    """As much of a collection as a record needs."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.away = False

    def get_collection(self, name: str, **_: Any) -> Rows:
        assert name == "acts"
        return self

    async def insert_one(self, row: dict[str, Any]) -> None:
        if self.away:
            raise ServerSelectionTimeoutError("secret.host:27017")
        self.rows[row["_id"]] = dict(row)

    async def find_one(self, where: Any, fields: Any, sort: Any) -> Any:
        found = [r for r in self.rows.values() if r["resource"] == where["resource"] and "after" in r]
        return found[-1] if found else None

    async def update_one(self, where: Any, change: Any) -> None:
        self.rows[where["_id"]].update(change["$set"])


METHOD = "/callmesh.marketing.v1.OfferService/UpdateOffer"


async def test_an_act_is_told_with_what_it_changed() -> None:
    rows = Rows()
    acts = Acts("marketing", lambda: rows, frozenset())  # type: ignore[arg-type, return-value]

    async def update(request: Any, context: Any) -> Any:
        assert [row["outcome"] for row in rows.rows.values()][-1] == "BEGUN"
        if request.offer.name == "offers/none":
            raise NotFound(resource=request.offer.name)
        return request.offer

    recorded = acts.recorded(METHOD, update)
    for code in ("one", "two"):
        await recorded(pb.UpdateOfferRequest(offer=pb.Offer(name="offers/gold", etag=code)), None)
    with pytest.raises(NotFound):
        await recorded(pb.UpdateOfferRequest(offer=pb.Offer(name="offers/none")), None)
    first, second, refused = rows.rows.values()
    assert (first["resource"], first["outcome"], first["before"]) == ("offers/gold", "OK", "")
    assert second["before"] == first["after"] != second["after"]
    assert refused["outcome"] == "NOT_FOUND" and "after" not in refused
    assert first["method"] == METHOD and first["actor"] and len(first["request"]) == 64


async def test_what_only_validates_is_no_act_and_what_cannot_be_recorded_is_not_done() -> None:
    rows, done = Rows(), []

    async def handler(request: Any, context: Any) -> Any:
        done.append(request)
        return request

    acts = Acts("test", lambda: rows, frozenset())  # type: ignore[arg-type, return-value]
    recorded = acts.recorded("/x", handler)
    await recorded(SimpleNamespace(validate_only=True), None)
    assert not rows.rows and len(done) == 1
    rows.away = True
    with pytest.raises(ActNotRecorded) as refused:
        await recorded(pb.GetOfferRequest(name="offers/gold"), None)
    assert len(done) == 1 and "secret" not in str(refused.value)


async def test_scopes_say_which_calls_of_a_server_are_acts() -> None:
    class Echo:
        async def Unary(self, request: Any, context: Any) -> Any:
            return request

    rows = Rows()
    acts = Acts("test", lambda: rows, frozenset({"test.admin"}))  # type: ignore[arg-type, return-value]
    for scope, count in (("test.read", 0), ("test.admin", 1)):
        scopes = {f"/{ECHO_SERVICE}/{name}": scope for name in ECHO_METHODS}
        server = Server(loopback_settings(), [echo_binding(Echo())], scopes=scopes, acts=acts)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                assert (await EchoStub(channel).Unary(StringValue(value="x"))).value == "x"
        finally:
            await server.stop(None)
        assert len(rows.rows) == count
