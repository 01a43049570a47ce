"""A scripted router on the real protos: says what a test tells it to say, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, call_pb2, routing_pb2, routing_pb2_grpc
from chassis.clock import SystemClock
from cli.demo.edge import Edge, EdgeContext
from cli.demo.ledger import Entry, Fact, Ledger
from cli.demo.media import Media
from cli.demo.model import DayCall
from cli.demo.rpc import Channels
from cli.demo.timing import ReplayClock

Event = routing_pb2.RouteCallEvent
#: Business seconds a second: a conversation of 60 s takes 0.1 s.
SPEED = 600.0


def rich(code: grpc.StatusCode, reason: str, retry_seconds: float | None = None) -> tuple[Any, ...]:
    """Arguments of `context.abort` for an error with ErrorInfo and, if wanted, RetryInfo."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="callmesh.routing")]
    if retry_seconds is not None:
        delay = duration_pb2.Duration(nanos=int(retry_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=reason)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return code, reason, (("grpc-status-details-bin", status.SerializeToString()),)


class Abort(Exception):
    """Raised by a script to end an RPC with an error."""

    def __init__(self, code: grpc.StatusCode, reason: str, retry_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.arguments = rich(code, reason, retry_seconds)


Route = Callable[[routing_pb2.RouteCallRequest], AsyncIterator[Event]]
Answer = Callable[[Any], Awaitable[Any]]


async def _confirm(request: routing_pb2.ConfirmCallRequest) -> routing_pb2.ConfirmCallResponse:
    return routing_pb2.ConfirmCallResponse(confirmed=True)


async def _call(request: Any) -> call_pb2.Call:
    return call_pb2.Call(call_id=request.call_id)


@dataclass
class Script:
    """What a scripted router does; each is replaced by the test that cares."""

    route: Route | None = None
    confirm: Answer = _confirm
    hang_up: Answer = _call
    end_call: Answer = _call
    session: Callable[[AsyncIterator[agent_pb2.AgentCommand]], AsyncIterator[agent_pb2.AgentEvent]] | None = (
        None
    )
    #: Requests in the order of their arrival, by kind.
    routed: list[call_pb2.CallRequest] = field(default_factory=list)
    confirmed: list[routing_pb2.ConfirmCallRequest] = field(default_factory=list)
    hung_up: list[routing_pb2.HangUpRequest] = field(default_factory=list)
    ended: list[routing_pb2.EndCallRequest] = field(default_factory=list)


class ScriptedRouter(routing_pb2_grpc.RoutingServiceServicer, agent_pb2_grpc.AgentServiceServicer):
    """Serves a Script."""

    def __init__(self) -> None:
        self.script = Script()

    async def RouteCall(self, request: Any, context: Any) -> AsyncIterator[Event]:
        self.script.routed.append(request.call)
        assert self.script.route is not None
        try:
            async for event in self.script.route(request):
                yield event
        except Abort as abort:
            await context.abort(*abort.arguments)

    async def _unary(self, log: list[Any], answer: Answer, request: Any, context: Any) -> Any:
        log.append(request)
        try:
            return await answer(request)
        except Abort as abort:
            await context.abort(*abort.arguments)

    async def ConfirmCall(self, request: Any, context: Any) -> Any:
        return await self._unary(self.script.confirmed, self.script.confirm, request, context)

    async def HangUp(self, request: Any, context: Any) -> Any:
        return await self._unary(self.script.hung_up, self.script.hang_up, request, context)

    async def EndCall(self, request: Any, context: Any) -> Any:
        return await self._unary(self.script.ended, self.script.end_call, request, context)

    async def Session(self, commands: Any, context: Any) -> AsyncIterator[agent_pb2.AgentEvent]:
        assert self.script.session is not None
        try:
            async for event in self.script.session(commands):
                yield event
        except Abort as abort:
            await context.abort(*abort.arguments)


@dataclass
class Rig:
    """Two routers, "near" and "far", and all that an edge or desktop needs."""

    near: Script
    far: Script
    channels: Channels
    clock: ReplayClock
    media: Media
    ledger: Ledger
    context: EdgeContext
    stop: dict[str, Callable[[], Awaitable[None]]]

    def edge(self, **fields: Any) -> Edge:
        """A caller at home near, there at once, with a minute of service."""
        values: dict[str, Any] = {
            "id": "one",
            "arrival_seconds": 0.0,
            "patience_seconds": 3000.0,
            "service_seconds": 60.0,
            "type": "PS",
            "priority": 2,
            "customer": "",
            "number": "+8613800000000",
            "home_region": "near",
        }
        return Edge(self.context, DayCall(**(values | fields)))

    def facts(self) -> list[Fact]:
        return [entry.fact for entry in self.ledger.entries]

    def last(self) -> Entry:
        return self.ledger.entries[-1]


async def _serve(router: ScriptedRouter) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(router, server)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    near, far = ScriptedRouter(), ScriptedRouter()
    near_server, near_address = await _serve(near)
    far_server, far_address = await _serve(far)
    system = SystemClock(SPEED)
    clock = ReplayClock(system, system.now_ms())
    media = Media({"amy": "near", "bob": "far"})
    async with Channels({"near": near_address, "far": far_address}) as channels:
        ledger = Ledger()
        context = EdgeContext(
            channels=channels,
            preference={"near": ["near", "far"], "far": ["far", "near"]},
            clock=clock,
            ledger=ledger,
            media=media,
            queue_of=lambda kind: f"queues/{kind.lower()}",
            prefix="t-",
            seed=1,
        )
        yield Rig(
            near=near.script,
            far=far.script,
            channels=channels,
            clock=clock,
            media=media,
            ledger=ledger,
            context=context,
            stop={"near": lambda: near_server.stop(None), "far": lambda: far_server.stop(None)},
        )
    await asyncio.gather(near_server.stop(None), far_server.stop(None))


class Say:
    """Events as a router would send them."""

    @staticmethod
    def _event(attempt: int, **kind: Any) -> Event:
        return Event(
            shard="near", epoch=1, sequence=1, durable=True,
            version=common_pb2.CallVersion(attempt=attempt, move=1), **kind,
        )  # fmt: skip

    @classmethod
    def queued(cls, attempt: int = 1, token: str = "token-1", region: str = "near") -> Event:
        return cls._event(attempt, queued=Event.Queued(region=f"regions/{region}", place_token=token))

    @classmethod
    def accepted(cls, attempt: int = 1, offer: str = "o1", agent: str = "amy") -> Event:
        return cls._event(attempt, accepted=Event.Accepted(offer_id=offer, agent=f"agents/{agent}"))

    @classmethod
    def connected(cls, attempt: int = 1, offer: str = "o1", agent: str = "amy") -> Event:
        return cls._event(attempt, connected=Event.Connected(offer_id=offer, agent=f"agents/{agent}"))

    @classmethod
    def ended(cls, outcome: str, reason: str = "") -> Event:
        return cls._event(1, ended=Event.Ended(outcome=f"CALL_OUTCOME_{outcome}", reason=reason))


@pytest.fixture
def say() -> type[Say]:
    return Say


@pytest.fixture
def abort() -> type[Abort]:
    return Abort


def stay() -> asyncio.Future[None]:
    """Awaited at the end of a script: the stream stays open until the other side ends it."""
    return asyncio.get_running_loop().create_future()


@pytest.fixture
def forever() -> Callable[[], asyncio.Future[None]]:
    return stay
