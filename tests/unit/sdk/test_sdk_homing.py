"""Desktops and calls on their way back to their own server, against two routers that keep the contract: of an
agent's sessions the newest wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from callmesh.common.v1 import event_service_pb2, event_service_pb2_grpc
from callmesh.crm.v1 import customers_pb2, customers_pb2_grpc
from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, call_pb2, routing_pb2, routing_pb2_grpc
from callmesh_sdk import Aborted, Caller, Client, Desk, Homing, Options, Unavailable, servers
from chassis import errors
from chassis.server import ServiceBinding
from routing.errors import RouterDraining, Unconfirmed

#: As the product's, in hundredths of seconds.
HOMING = Homing(
    ask_seconds=0.01,
    ask_seconds_max=0.02,
    trust_seconds=0.03,
    trust_seconds_max=0.1,
    relapse_seconds=0.0,
    spread_seconds=0.02,
    idle_seconds=0.02,
    look_seconds=0.01,
)
AWAY = errors.Unavailable(why="no leader", retry_seconds=0.001)
PAUSED, AVAILABLE = agent_pb2.AGENT_STATE_PAUSED, agent_pb2.AGENT_STATE_AVAILABLE


@dataclass
class Shard:
    """What both routers know of the agent."""

    session: int = 0
    #: What is told on the stream of the session in force.
    desk: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    #: (router, session) of each session that was opened.
    opened: list[tuple[str, int]] = field(default_factory=list)
    #: (router, command) of everything that arrived.
    arrived: list[tuple[str, agent_pb2.AgentCommand]] = field(default_factory=list)
    #: Told on the old stream in the moment of a change, before its end.
    parting: list[agent_pb2.AgentEvent] = field(default_factory=list)
    state: Any = AVAILABLE
    reason: str = ""
    calls: tuple[str, ...] = ()

    def take(self, router: str, first: agent_pb2.AgentCommand) -> asyncio.Queue[Any]:
        if first.open.session < self.session:
            raise errors.EtagMismatch(resource="agents/a")
        for event in self.parting if self.opened else ():
            self.desk.put_nowait(event)
        self.desk.put_nowait(errors.EtagMismatch(resource="agents/a"))
        self.session, self.desk = first.open.session, asyncio.Queue()
        self.state, self.reason = first.open.state, first.open.pause_reason
        self.opened.append((router, first.open.session))
        return self.desk

    def tell(self, **kind: Any) -> None:
        self.desk.put_nowait(agent_pb2.AgentEvent(**kind))

    def status(self) -> agent_pb2.AgentEvent:
        newest = max((command.command for _, command in self.arrived), default=0)
        status = {"session": self.session, "state": self.state, "pause_reason": self.reason}
        return agent_pb2.AgentEvent(status={**status, "command": newest, "calls_held": self.calls})

    def kinds(self, router: str) -> list[str]:
        return [str(command.WhichOneof("kind")) for at, command in self.arrived if at == router]


class Router(agent_pb2_grpc.AgentServiceServicer):
    """A router as desktops see it."""

    def __init__(self, name: str, shard: Shard) -> None:
        self.name = name
        self.shard = shard
        #: What it does with a session that is opened.
        self.away, self.hangs, self.dies = False, False, False

    async def Session(self, commands: Any, context: Any) -> AsyncIterator[agent_pb2.AgentEvent]:
        reader = aiter(commands)
        first = await anext(reader)
        if self.away:
            raise AWAY
        self.shard.arrived.append((self.name, first))
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        desk = self.shard.take(self.name, first)
        if self.dies:
            raise AWAY
        yield self.shard.status()
        reading = asyncio.ensure_future(self._read(reader, desk))
        try:
            while (event := await desk.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            reading.cancel()

    async def _read(self, commands: AsyncIterator[Any], desk: asyncio.Queue[Any]) -> None:
        async for command in commands:
            self.shard.arrived.append((self.name, command))
            if command.WhichOneof("kind") == "close":
                desk.put_nowait(None)
            elif command.WhichOneof("kind") == "set_state":
                self.shard.state = command.set_state.state
                self.shard.reason = command.set_state.pause_reason
                desk.put_nowait(self.shard.status())


class Seat:
    """A desk whose events are read, whose router was away when it began, and what it has heard."""

    def __init__(self, client: Client, shard: Shard, home: Router, other: Router, address: str) -> None:
        self.client, self.shard, self.home, self.other, self.address = client, shard, home, other, address
        self.desk = Desk(client, "agents/a", session=7)
        self.heard: list[str] = []
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for event in self.desk.events():
            kind = str(event.WhichOneof("event"))
            self.heard.append(f"status {event.status.session}" if kind == "status" else kind)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Waits until something is so, and the reader has not failed."""
        async with asyncio.timeout(30):
            while not condition():
                if self.reading.done():
                    self.reading.result()
                await asyncio.sleep(0.005)

    async def away(self) -> None:
        """Until the desk is logged in at the other router."""
        await self.until(lambda: "status 7" in self.heard)
        assert self.shard.opened == [("other", 7)] and self.desk.address != self.address

    async def at_home(self) -> None:
        """Until it sits at its own."""
        await self.until(lambda: self.desk.address == self.address)


@pytest.fixture
async def seat(grpc_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Seat]:
    for bound in ("MOVE_SECONDS_MAX", "FAREWELL_SECONDS_MAX"):
        monkeypatch.setattr(f"callmesh_sdk.desk.{bound}", 30.0)
    shard = Shard()
    home, other = Router("home", shard), Router("other", shard)
    home.away = True

    async def serves(channel: Any) -> bool:
        return not home.away

    # It says so as soon as it is there, and not before.
    monkeypatch.setattr("callmesh_sdk.watch.serves", serves)
    descriptor = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    add = agent_pb2_grpc.add_AgentServiceServicer_to_server
    at = [(await grpc_server([ServiceBinding(descriptor, add, each)])).address for each in (home, other)]
    where = Options(addresses={"routing": at[:1]}, backups={"routing": at[1:]}, homing=HOMING)
    async with Client(where) as client:
        found = Seat(client, shard, home, other, at[0])
        yield found
        found.reading.cancel()
        await asyncio.gather(found.reading, return_exceptions=True)


async def test_a_desk_goes_home_with_its_next_session_and_ends_there(seat: Seat) -> None:
    await seat.away()
    seat.home.away = False
    await seat.at_home()
    await seat.until(lambda: "status 8" in seat.heard)
    assert seat.shard.opened == [("other", 7), ("home", 8)] and seat.desk.session == 8
    seat.shard.tell(offer={"offer_id": "o1"})
    await seat.until(lambda: "offer" in seat.heard)
    await seat.desk.accept("o1")
    await seat.desk.close()
    async with asyncio.timeout(30):
        await seat.reading
    assert seat.shard.kinds("home") == ["open", "accept", "close"]
    numbers = [command.command for _, command in seat.shard.arrived]
    assert numbers == sorted(set(numbers)), "each higher than the last"


@pytest.mark.parametrize("hand", ["offer", "call", "unheard"])
async def test_a_desk_with_anything_in_hand_stays(
    seat: Seat, hand: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float | None] = []
    plain = servers.Return.look

    def look(self: Any, at: str, idle_since: float | None, now: float) -> str | None:
        if seat.client.watch("routing").servers.trusted(seat.address):
            looks.append(idle_since)
        return plain(self, at, idle_since, now)

    monkeypatch.setattr(servers.Return, "look", look)
    await seat.away()
    seat.shard.tell(offer={"offer_id": "o1"})
    if hand != "offer":
        seat.shard.tell(connected={"call": {"call_id": "c1"}, "offer_id": "o1"})
        seat.shard.state, seat.shard.calls = agent_pb2.AGENT_STATE_ON_CALL, ("c1",)
        seat.shard.desk.put_nowait(seat.shard.status())
    await seat.until(lambda: len(seat.heard) == (2 if hand == "offer" else 4))
    seat.home.away = False
    # Home is well, and its time has come several times over.
    await seat.until(lambda: looks.count(None) > 10)
    assert seat.shard.opened == [("other", 7)] and set(looks[-10:]) == {None}
    if hand == "call":
        # Nobody is offered anything in after-call work: a good moment.
        seat.shard.tell(ended={"call_id": "c1"})
    elif hand == "unheard":
        seat.shard.state, seat.shard.calls = AVAILABLE, ()
        seat.shard.desk.put_nowait(seat.shard.status())
    else:
        seat.shard.tell(offer_gone={"offer_id": "o1"})
    await seat.at_home()
    assert seat.shard.opened == [("other", 7), ("home", 8)]
    if hand == "call":
        await seat.desk.wrap_up("c1", call_pb2.Disposition(code="done"))
        await seat.until(lambda: seat.shard.kinds("home") == ["open", "wrap_up"])


async def test_what_is_told_in_the_moment_of_the_change_is_heard(seat: Seat) -> None:
    offer, gone = {"offer_id": "o1"}, {"offer_id": "o1", "outcome": "OFFER_OUTCOME_AGENT_LOST"}
    seat.shard.parting = [agent_pb2.AgentEvent(offer=offer), agent_pb2.AgentEvent(offer_gone=gone)]
    await seat.away()
    seat.home.away = False
    await seat.until(lambda: "status 8" in seat.heard)
    assert seat.heard == ["status 7", "offer", "offer_gone", "status 8"]


async def test_an_offer_that_ended_before_its_accept_does_not_hold_a_desk_back(seat: Seat) -> None:
    await seat.away()
    seat.shard.tell(offer={"offer_id": "o1"})
    await seat.until(lambda: "offer" in seat.heard)
    seat.shard.tell(offer_gone={"offer_id": "o1"})
    await seat.until(lambda: "offer_gone" in seat.heard)
    await seat.desk.accept("o1")
    await seat.until(lambda: "accept" in seat.shard.kinds("other"))
    seat.home.away = False
    seat.shard.tell(refused={"command": seat.shard.arrived[-1][1].command, "reason": "OFFER_ENDED"})
    await seat.at_home()
    assert seat.shard.opened == [("other", 7), ("home", 8)]


async def test_a_home_that_does_not_answer_costs_nothing(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callmesh_sdk.desk.MOVE_SECONDS_MAX", 0.1)
    await seat.away()
    seat.home.away, seat.home.hangs = False, True
    await seat.until(lambda: "open" in seat.shard.kinds("home"))
    # Said while the change is tried: it waits for the outcome, and is not lost.
    await seat.desk.pause("lunch")
    await seat.until(lambda: "set_state" in seat.shard.kinds("other"))
    assert seat.shard.opened == [("other", 7)] and seat.shard.kinds("other") == ["open", "set_state"]
    seat.home.hangs = False
    await seat.at_home()
    await seat.until(lambda: seat.shard.opened[-1][0] == "home")
    assert (seat.shard.state, seat.shard.reason) == (PAUSED, "lunch"), "still at lunch"


async def test_a_session_that_was_taken_and_not_answered_is_opened_again(seat: Seat) -> None:
    await seat.away()
    seat.home.away, seat.home.dies = False, True
    await seat.until(lambda: ("home", 8) in seat.shard.opened)
    seat.home.dies = False
    # The old stream was ended by a session that is its own: it goes on with that one, or a newer one.
    await seat.until(lambda: seat.heard[-1] != "status 7" and seat.desk.address)
    await seat.at_home()
    assert seat.heard[-1] == f"status {seat.shard.session}" and seat.shard.session >= 8
    assert not seat.reading.done()


async def test_another_desktop_is_still_another_desktop(seat: Seat) -> None:
    await seat.away()
    seat.home.away = False
    await seat.until(lambda: "status 8" in seat.heard)
    seat.shard.take("other", agent_pb2.AgentCommand(open={"session": 99}))
    with pytest.raises(Aborted):
        async with asyncio.timeout(30):
            await seat.reading


async def test_who_was_paused_by_the_platform_is_so_at_home(seat: Seat) -> None:
    await seat.away()
    seat.shard.state, seat.shard.reason = PAUSED, "missed-offers"
    seat.shard.desk.put_nowait(seat.shard.status())
    await seat.until(lambda: len(seat.heard) == 2)
    seat.home.away = False
    await seat.until(lambda: "status 8" in seat.heard)
    assert (seat.shard.state, seat.shard.reason) == (PAUSED, "missed-offers")
    await seat.desk.resume()
    await seat.until(lambda: seat.shard.state == AVAILABLE)


class Customers(customers_pb2_grpc.CustomerServiceServicer):
    """Says who answers, or that nobody does."""

    def __init__(self, name: str) -> None:
        self.name, self.away = name, False

    async def GetCustomer(self, request: Any, context: Any) -> customers_pb2.Customer:
        if self.away:
            raise AWAY
        return customers_pb2.Customer(name=self.name)


async def test_calls_go_to_their_own_server_again(grpc_server: Any) -> None:
    descriptor = customers_pb2.DESCRIPTOR.services_by_name["CustomerService"]
    add = customers_pb2_grpc.add_CustomerServiceServicer_to_server
    both = [Customers("one"), Customers("two")]
    at = [(await grpc_server([ServiceBinding(descriptor, add, each)])).address for each in both]
    async with Client(Options(addresses={"crm": at}, name="pbx-1", homing=HOMING)) as client:
        stub: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)

        async def answered() -> str:
            found = await stub.GetCustomer(customers_pb2.GetCustomerRequest(name="customers/1"))
            return str(found.name)

        first = both[at.index(servers.order_of("pbx-1", at)[0])]
        assert await answered() == first.name
        first.away = True
        assert await answered() != first.name
        first.away = False
        async with asyncio.timeout(30):
            while await answered() != first.name:
                await asyncio.sleep(0.005)


class Breaking(routing_pb2_grpc.RoutingServiceServicer):
    """Takes a call, and lets go of it the first time that anybody of both has it."""

    def __init__(self, taken: list[Breaking], failure: Exception) -> None:
        self.taken = taken
        self.failure = failure

    async def RouteCall(self, request: Any, context: Any) -> AsyncIterator[routing_pb2.RouteCallEvent]:
        self.taken.append(self)
        yield routing_pb2.RouteCallEvent(shard="a", epoch=1, sequence=request.call.attempt, queued={})
        if len(self.taken) == 1:
            raise self.failure


@pytest.mark.parametrize(
    ("failure", "same"),
    [
        (AWAY, False),
        (RouterDraining(retry_seconds=0.001), False),
        (Unconfirmed(subject="calls/c1", retry_seconds=0.001), True),
    ],
)
async def test_a_router_that_speaks_of_the_call_alone_is_not_left(
    grpc_server: Any, failure: Exception, same: bool
) -> None:
    descriptor = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"]
    add = routing_pb2_grpc.add_RoutingServiceServicer_to_server
    taken: list[Breaking] = []
    both = [Breaking(taken, failure) for _ in range(2)]
    at = [(await grpc_server([ServiceBinding(descriptor, add, each)])).address for each in both]
    async with Client(Options(addresses={"routing": at})) as client:
        caller = Caller(client, call_pb2.CallRequest(call_id="c1", queue="queues/q"))
        assert [event.sequence async for event in caller.events()] == [1, 2]
        first, again = taken
        assert (again is first) is same
        assert client.watch("routing").servers.trusted(at[both.index(first)]) is same


class Events(event_service_pb2_grpc.EventServiceServicer):
    """A stream of one message."""

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield event_service_pb2.SubscribeMessage(cursor="1", heartbeat={})


async def test_a_stream_that_finds_nobody_sends_the_next_one_elsewhere(grpc_server: Any) -> None:
    descriptor = event_service_pb2.DESCRIPTOR.services_by_name["EventService"]
    add = event_service_pb2_grpc.add_EventServiceServicer_to_server
    there = (await grpc_server([ServiceBinding(descriptor, add, Events())])).address
    where = Options(addresses={"crm": ["127.0.0.1:1"]}, backups={"crm": [there]}, homing=HOMING)
    async with Client(where) as client:
        stub: Any = client.stub(event_service_pb2_grpc.EventServiceStub, "crm")
        with pytest.raises(Unavailable):
            await anext(stub.Subscribe(event_service_pb2.SubscribeRequest()))
        assert [m.cursor async for m in stub.Subscribe(event_service_pb2.SubscribeRequest())] == ["1"]
