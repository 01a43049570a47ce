"""The SDK against servers that misbehave: what is repeated, what is not, what an error says, where streams go
on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from callmesh.common.v1 import event_service_pb2 as pb
from callmesh.common.v1 import event_service_pb2_grpc
from callmesh.crm.v1 import customers_pb2, customers_pb2_grpc, events_pb2
from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, call_pb2, routing_pb2, routing_pb2_grpc
from callmesh_sdk import (
    Aborted,
    Caller,
    CallError,
    Client,
    Desk,
    FailedPrecondition,
    InvalidArgument,
    Options,
    PermissionDenied,
    ResourceExhausted,
    ServerFault,
    Unavailable,
    follow,
)
from chassis import errors
from chassis.auth import StreamTokenEnded
from chassis.config import ServiceSettings
from chassis.eventlog import EventsExpired
from chassis.server import ServiceBinding
from chassis.testing.certificates import Authority
from chassis.testing.grpc import loopback_settings
from chassis.testing.tokens import TokenMaker

AWAY = errors.Unavailable(why="try again", retry_seconds=0.01)


class Customers(customers_pb2_grpc.CustomerServiceServicer):
    """Answers from a script, one entry a call."""

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.requests: list[Any] = []

    async def _answer(self, request: Any, context: Any) -> customers_pb2.Customer:
        self.requests.append(request)
        failure = self.script.pop(0) if self.script else None
        if failure is not None:
            raise failure
        return customers_pb2.Customer(name="customers/1")

    GetCustomer = CreateCustomer = DeleteCustomer = _answer


def customers(servicer: Customers) -> ServiceBinding:
    descriptor = customers_pb2.DESCRIPTOR.services_by_name["CustomerService"]
    return ServiceBinding(descriptor, customers_pb2_grpc.add_CustomerServiceServicer_to_server, servicer)


@pytest.fixture
def connect(grpc_server: Any) -> Any:
    """Makes a client of a service that a servicer plays."""

    async def connected(service: str, *bindings: ServiceBinding, **options: Any) -> Client:
        server = await grpc_server(list(bindings))
        return Client(Options(addresses={service: [server.address]}, **options))

    return connected


@pytest.mark.parametrize(
    ("method", "script", "calls", "raised"),
    [
        ("GetCustomer", [AWAY, AWAY, None], 3, None),
        ("GetCustomer", [AWAY] * 9, 4, Unavailable),
        ("CreateCustomer", [AWAY, None], 2, None),
        # What is deleted twice is not found the second time: whether the first worked must stay visible.
        ("DeleteCustomer", [AWAY, None], 1, Unavailable),
        # A limit refused it before anything was done.
        ("DeleteCustomer", [errors.ResourceExhausted(subject="client:x", retry_seconds=0.01)], 2, None),
        ("GetCustomer", [errors.ResourceExhausted(subject="customers/1")], 1, ResourceExhausted),
        ("GetCustomer", [errors.Unavailable(why="later", retry_seconds=20)], 1, Unavailable),
        ("GetCustomer", [errors.InvalidArgument(field="name", why="must be set")], 1, InvalidArgument),
    ],
)
async def test_only_what_is_safe_is_repeated(
    connect: Any, method: str, script: list[Any], calls: int, raised: type[CallError] | None
) -> None:
    servicer = Customers(*script)
    async with await connect("crm", customers(servicer)) as client:
        stub: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)
        request = getattr(customers_pb2, f"{method}Request")()
        if raised is None:
            await getattr(stub, method)(request)
        else:
            with pytest.raises(raised):
                await getattr(stub, method)(request)
    assert len(servicer.requests) == calls
    ids = {seen.request_id for seen in servicer.requests if hasattr(seen, "request_id")}
    assert ids == set() or (len(ids) == 1 and "" not in ids)


async def test_a_call_that_meets_the_end_of_a_server_is_made_again() -> None:
    """gRPC answers CANCELLED for a server whose end overlaps with the call, not UNAVAILABLE."""
    seen: list[Any] = []

    class Ending(customers_pb2_grpc.CustomerServiceServicer):
        async def GetCustomer(self, request: Any, context: Any) -> customers_pb2.Customer:
            seen.append(request)
            if len(seen) == 1:
                await context.abort(grpc.StatusCode.CANCELLED, "Cancelled")
            return customers_pb2.Customer(name="customers/1")

    server = grpc.aio.server()
    customers_pb2_grpc.add_CustomerServiceServicer_to_server(Ending(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(Options(addresses={"crm": [f"127.0.0.1:{port}"]})) as client:
            stub: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)
            found = await stub.GetCustomer(customers_pb2.GetCustomerRequest())
    finally:
        await server.stop(None)
    assert (found.name, len(seen)) == ("customers/1", 2)


async def test_an_error_names_reason_and_fields_in_the_language_asked_for(connect: Any) -> None:
    bad = errors.InvalidArgument.many(
        [("page_size", "must not be negative, got -1"), ("name", "must be set")]
    )
    async with await connect("crm", customers(Customers(bad)), language="zh-CN, en;q=0.5") as client:
        stub: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)
        with pytest.raises(InvalidArgument) as caught:
            await stub.GetCustomer(customers_pb2.GetCustomerRequest())
    error = caught.value
    assert (error.reason, error.domain, error.locale) == ("INVALID_ARGUMENT", "callmesh.test", "zh-CN")
    assert error.fields == {"page_size": "不能为负数，收到 -1", "name": "必须填写"}
    assert str(error).startswith("page_size：不能为负数")


async def test_a_server_that_is_not_there_makes_way_for_the_next(grpc_server: Any) -> None:
    server = await grpc_server([customers(Customers())])
    gone = await grpc_server([customers(Customers())])
    await gone.stop(None)
    async with Client(Options(addresses={"crm": [gone.address, server.address]})) as client:
        stub: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)
        assert (await stub.GetCustomer(customers_pb2.GetCustomerRequest())).name == "customers/1"


async def test_certificates_and_tokens_come_from_files_and_are_read_again(
    grpc_server: Any, tmp_path: Path
) -> None:
    files = Authority().write(tmp_path, host="localhost")
    maker, token = TokenMaker(), tmp_path / "token"
    settings = loopback_settings(
        ServiceSettings(service="crm"),
        auth_mode="jwt",
        auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json")),
        **files,
    )
    server = await grpc_server([customers(Customers())], settings=settings)
    options = Options(
        addresses={"crm": [f"localhost:{server.port}"]},
        token_file=str(token),
        ca_file=files["tls_ca_file"],
        cert_file=files["tls_cert_file"],
        key_file=files["tls_key_file"],
    )
    token.write_text(maker.token(scope="nothing"))
    async with Client(options) as client:
        stub: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)
        with pytest.raises(PermissionDenied) as denied:
            await stub.GetCustomer(customers_pb2.GetCustomerRequest())
        assert denied.value.metadata["scope"] == "test"
        token.write_text(maker.token(scope="test and more"))
        assert (await stub.GetCustomer(customers_pb2.GetCustomerRequest())).name == "customers/1"


class Events(event_service_pb2_grpc.EventServiceServicer):
    """Ten events; breaks off after every three."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[pb.SubscribeMessage]:
        self.asked.append(request.cursor)
        if request.cursor == "old":
            raise EventsExpired(subject="events", why="too old", oldest_cursor="7")
        begin = int(request.cursor or 0)
        yield pb.SubscribeMessage(cursor=str(begin), heartbeat={})
        for n in range(begin + 1, min(begin + 4, 11)):
            data = json.dumps({"customer": {"customer": f"customers/{n}"}, "fromTheFuture": 1})
            event = pb.Event(id=f"e{n}", type="callmesh.crm.v1.CustomerCreated", data=data)
            yield pb.SubscribeMessage(cursor=str(n), event=event)
        raise AWAY


async def test_following_goes_on_behind_the_last_event(connect: Any) -> None:
    servicer = Events()
    descriptor = pb.DESCRIPTOR.services_by_name["EventService"]
    add = event_service_pb2_grpc.add_EventServiceServicer_to_server
    async with await connect("crm", ServiceBinding(descriptor, add, servicer)) as client:
        seen = []
        async for received in follow(client, "crm", types=[events_pb2.CustomerCreated], oldest=True):
            assert isinstance(received.message, events_pb2.CustomerCreated)
            seen.append((received.event.id, received.message.customer.customer, received.cursor))
            if len(seen) == 10:
                break
        with pytest.raises(FailedPrecondition) as expired:
            await anext(follow(client, "crm", cursor="old"))
    assert seen == [(f"e{n}", f"customers/{n}", str(n)) for n in range(1, 11)]
    assert servicer.asked == ["", "3", "6", "9", "old"]
    assert (expired.value.reason, expired.value.metadata["oldest_cursor"]) == ("EVENTS_EXPIRED", "7")


class Outlived(Events):
    """Ends each stream because its token has ended."""

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[pb.SubscribeMessage]:
        try:
            async for message in super().Subscribe(request, context):
                yield message
        except errors.Unavailable:
            raise StreamTokenEnded(why="open it again") from None


async def test_a_stream_that_outlived_its_token_is_opened_again_with_the_new_one(
    connect: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servicer, tokens = Outlived(), tmp_path / "token"
    tokens.write_text("one")
    descriptor = pb.DESCRIPTOR.services_by_name["EventService"]
    add = event_service_pb2_grpc.add_EventServiceServicer_to_server
    binding = ServiceBinding(descriptor, add, servicer)
    async with asyncio.timeout(30), await connect("crm", binding, token_file=str(tokens)) as client:
        seen = []
        async for received in follow(client, "crm", oldest=True):
            seen.append(received.event.id)
            if len(seen) == 10:
                break
    assert seen == [f"e{n}" for n in range(1, 11)]
    assert servicer.asked == ["", "3", "6", "9"]
    assert not caplog.records, "nothing broke"


class Unreadable(event_service_pb2_grpc.EventServiceServicer):
    """Greets, and breaks on the first event."""

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[pb.SubscribeMessage]:
        yield pb.SubscribeMessage(cursor="7", heartbeat={})
        raise ArithmeticError("cannot be read")


async def test_a_stream_that_brings_nothing_but_its_greeting_is_given_up(connect: Any) -> None:
    descriptor = pb.DESCRIPTOR.services_by_name["EventService"]
    add = event_service_pb2_grpc.add_EventServiceServicer_to_server
    binding = ServiceBinding(descriptor, add, Unreadable())
    async with asyncio.timeout(30), await connect("crm", binding, give_up_seconds=0.2) as client:
        with pytest.raises(ServerFault):
            await anext(follow(client, "crm"))


class Routing(routing_pb2_grpc.RoutingServiceServicer):
    """A call whose stream breaks when it was handed on, and which is told something old after that."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def RouteCall(self, request: Any, context: Any) -> AsyncIterator[routing_pb2.RouteCallEvent]:
        self.calls.append(request.call)
        queued = {"place_token": f"token-{request.call.attempt}"}
        yield routing_pb2.RouteCallEvent(shard="a", epoch=1, sequence=len(self.calls), queued=queued)
        if len(self.calls) == 1:
            handed_on = {"queue": "queues/other", "place_token": "token-1"}
            yield routing_pb2.RouteCallEvent(shard="a", epoch=1, sequence=1, transferred=handed_on)
            raise AWAY
        if len(self.calls) == 2:
            talking = {"place_token": "talking"}
            yield routing_pb2.RouteCallEvent(shard="a", epoch=1, sequence=3, connected=talking)
            raise AWAY
        yield routing_pb2.RouteCallEvent(shard="a", epoch=1, sequence=1, offered={})
        yield routing_pb2.RouteCallEvent(
            shard="a", epoch=1, sequence=9, ended={"outcome": "CALL_OUTCOME_COMPLETED"}
        )


async def test_a_call_keeps_its_place_and_is_told_nothing_old(connect: Any) -> None:
    servicer = Routing()
    descriptor = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"]
    add = routing_pb2_grpc.add_RoutingServiceServicer_to_server
    async with await connect("routing", ServiceBinding(descriptor, add, servicer)) as client:
        caller = Caller(client, call_pb2.CallRequest(call_id="c1", queue="queues/q"))
        kinds = [event.WhichOneof("event") async for event in caller.events()]
    assert kinds == ["queued", "transferred", "queued", "connected", "queued", "ended"]
    told = [(call.attempt, call.queue, call.place_token, call.reopen_reason) for call in servicer.calls]
    lost = call_pb2.REOPEN_REASON_STREAM_LOST
    assert told == [
        (1, "queues/q", "", 0),
        (2, "queues/other", "token-1", lost),
        (3, "queues/other", "talking", lost),
    ]
    assert caller.place_token == "token-3"


async def test_that_a_conversation_broke_off_is_said_until_somebody_has_heard_it(connect: Any) -> None:
    class Late(Routing):
        async def RouteCall(self, request: Any, context: Any) -> AsyncIterator[routing_pb2.RouteCallEvent]:
            if not self.calls:
                self.calls.append(request.call)
                raise AWAY
            async for event in super().RouteCall(request, context):
                yield event

    servicer = Late()
    descriptor = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"]
    add = routing_pb2_grpc.add_RoutingServiceServicer_to_server
    lost, broke_off = call_pb2.REOPEN_REASON_STREAM_LOST, call_pb2.REOPEN_REASON_AGENT_LOST
    call = call_pb2.CallRequest(call_id="c1", queue="queues/q", attempt=2, reopen_reason=broke_off)
    async with await connect("routing", ServiceBinding(descriptor, add, servicer)) as client:
        async for _ in Caller(client, call).events():
            pass
    assert [each.reopen_reason for each in servicer.calls] == [broke_off, broke_off, lost]


@pytest.mark.parametrize(("sequence", "kept"), [(3, "token-3"), (30, "of the yes")])
async def test_a_yes_that_the_stream_has_overtaken_keeps_the_newer_token(
    connect: Any, sequence: int, kept: str
) -> None:
    class Confirming(Routing):
        async def ConfirmCall(self, request: Any, context: Any) -> routing_pb2.ConfirmCallResponse:
            return routing_pb2.ConfirmCallResponse(
                confirmed=True, epoch=1, sequence=sequence, place_token="of the yes"
            )

    descriptor = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"]
    add = routing_pb2_grpc.add_RoutingServiceServicer_to_server
    accepted = routing_pb2.RouteCallEvent(shard="a", epoch=1, sequence=2, accepted={"offer_id": "o1"})
    async with await connect("routing", ServiceBinding(descriptor, add, Confirming())) as client:
        caller = Caller(client, call_pb2.CallRequest(call_id="c1", queue="queues/q"))
        async for _ in caller.events():
            pass
        assert (await caller.confirm(accepted)).confirmed
    assert caller.place_token == kept


class Agents(agent_pb2_grpc.AgentServiceServicer):
    """Breaks after the accept was read, and offers it still; then another desktop takes over."""

    def __init__(self) -> None:
        self.commands: list[Any] = []

    async def Session(self, commands: Any, context: Any) -> AsyncIterator[agent_pb2.AgentEvent]:
        first = await anext(aiter(commands))
        self.commands.append(first)
        status = {"session": first.open.session, "offers_held": ["o1"], "calls_held": ["held"]}
        yield agent_pb2.AgentEvent(status=status)
        if len(self.commands) == 1:
            yield agent_pb2.AgentEvent(connected={"call": {"call_id": "held"}, "offer_id": "o0"})
            yield agent_pb2.AgentEvent(offer={"offer_id": "o1"})
            self.commands.append(await anext(aiter(commands)))
            raise AWAY
        self.commands.append(await anext(aiter(commands)))
        raise errors.EtagMismatch(resource="agents/a")


async def test_a_desktop_comes_back_with_its_calls_and_says_again_what_was_lost(connect: Any) -> None:
    servicer = Agents()
    descriptor = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    add = agent_pb2_grpc.add_AgentServiceServicer_to_server
    async with await connect("routing", ServiceBinding(descriptor, add, servicer)) as client:
        desk = Desk(client, "agents/a", session=7)
        with pytest.raises(Aborted):
            async for event in desk.events():
                if event.WhichOneof("event") == "offer":
                    await desk.accept(event.offer.offer_id)
    numbers = [command.command for command in servicer.commands]
    assert numbers == [1, 2, 3, 4]
    first, accept, second, repeated = servicer.commands
    assert (first.open.session, list(first.open.calls_held)) == (7, [])
    assert (second.open.session, list(second.open.calls_held)) == (7, ["held"])
    assert accept.accept.offer_id == repeated.accept.offer_id == "o1"


class ToldAgain(agent_pb2_grpc.AgentServiceServicer):
    """Two offers ring on for the shard's next leader, which has heard nothing of what was said of them."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    async def Session(self, commands: Any, context: Any) -> AsyncIterator[agent_pb2.AgentEvent]:
        reader = aiter(commands)
        await anext(reader)
        for _ in ("the first leader", "the next one"):
            for offer_id in ("taken", "declined"):
                yield agent_pb2.AgentEvent(offer={"offer_id": offer_id})
            self.said += [await anext(reader), await anext(reader)]
        yield agent_pb2.AgentEvent(offer_gone={"offer_id": "declined"})
        yield agent_pb2.AgentEvent(offer={"offer_id": "last"})


async def test_an_offer_told_again_is_no_news_and_gets_the_same_answer(connect: Any) -> None:
    servicer, told = ToldAgain(), []
    descriptor = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    add = agent_pb2_grpc.add_AgentServiceServicer_to_server
    async with await connect("routing", ServiceBinding(descriptor, add, servicer)) as client:
        desk = Desk(client, "agents/a", session=7)
        async for event in desk.events():
            offer_id = event.offer.offer_id
            told.append(offer_id or event.WhichOneof("event"))
            if offer_id == "taken":
                await desk.accept(offer_id)
            elif offer_id == "declined":
                await desk.decline(offer_id, "busy")
            elif offer_id == "last":
                await desk.close()
    assert told == ["taken", "declined", "offer_gone", "last"]
    answers = [(each.accept.offer_id, each.decline.offer_id, each.decline.reason) for each in servicer.said]
    assert answers == [("taken", "", ""), ("", "declined", "busy")] * 2


async def test_a_stream_that_nobody_serves_is_told_of_once_and_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asyncio.timeout(30):
        async with Client(Options(addresses={"crm": ["127.0.0.1:1"]}, give_up_seconds=0.3)) as client:
            with pytest.raises(Unavailable):
                await anext(follow(client, "crm"))
    told = [each.getMessage() for each in caplog.records if each.name == "callmesh_sdk"]
    assert told == ["the stream to crm at 127.0.0.1:1 broke: UNAVAILABLE; it is tried again for 0.3 s"]


def test_aborted_is_its_own_class() -> None:
    from callmesh_sdk import errors as sdk_errors

    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "x")
    assert isinstance(sdk_errors.of(error), Aborted) and sdk_errors.of(error).reason == "ABORTED"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"addresses": {"crm": []}}, "addresses"),
        ({"addresses": {"crm": "127.0.0.1:7140"}}, "addresses"),
        ({"cert_file": "own.crt", "ca_file": "ca.crt"}, "key_file"),
        ({"cert_file": "own.crt", "key_file": "own.key"}, "ca_file"),
        ({"tries_max": 0}, "tries_max"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds"),
        ({"give_up_seconds": -1.0}, "give_up_seconds"),
    ],
)
def test_options_that_cannot_be_right_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Options(**{"addresses": {"crm": ["127.0.0.1:7140"]}, **options})
