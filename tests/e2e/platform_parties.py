"""Who meets at the platform, as the end-to-end tests play them: an edge with a caller on the line, an agent's
desktop, clients of every service, and an ear on the bus.

All waiting has a deadline in real seconds, generous because the machine may be busy.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

import amqp
import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from callmesh.crm.v1 import customers_pb2_grpc, screen_pop_pb2_grpc, timeline_pb2_grpc
from callmesh.marketing.v1 import offers_pb2_grpc, recommendations_pb2_grpc
from callmesh.routing.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    call_pb2,
    directory_pb2,
    directory_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from callmesh.tickets.v1 import sla_pb2, sla_pb2_grpc, ticket_service_pb2_grpc
from chassis.bus import Event
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.topology import events_exchange
from cli import plan
from cli.demo.events import EventCounter, EventFigures, Samples, read_samples
from cli.demo.rpc import Channels, EventStream, StreamEnded
from cli.stack import Stack

#: How long anything may take that a caller would wait for.
WAIT_SECONDS = 30.0
#: How long a process may take to serve again after a restart, and what follows from that.
RECOVERY_SECONDS = 60.0
#: Between two looks at a condition.
POLL_SECONDS = 0.05
#: Business seconds in a real one.
CLOCK_SPEED = 60
#: From a resolution to the return visit, business seconds: a second of real time.
FOLLOW_UP_SECONDS = 60
SOURCES = ("routing", *plan.SERVICES)

#: Latitude, longitude, and whose callers are at home there.
REGIONS = {
    "beijing": (39.90, 116.41, "CN/北京"),
    "shanghai": (31.23, 121.47, "CN/上海"),
    "guangzhou": (23.13, 113.26, "CN/广东"),
    "chengdu": (30.57, 104.07, "CN/四川"),
}
#: Each test has a queue with a skill of the same name, so that no test's agents take another's calls.
QUEUES = ("service", "burst", "standby", "rollout")
AGENTS = {
    "service-1": ("service", "beijing"),
    **{f"burst-{n}": ("burst", "beijing") for n in range(6)},
    "standby-home": ("standby", "guangzhou"),
    "standby-away": ("standby", "shanghai"),
    **{f"rollout-{region}-{n}": ("rollout", region) for region in REGIONS for n in range(3)},
}

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Looks until what it sees is true, and returns that; AssertionError after so many real seconds."""
    deadline = time.monotonic() + seconds
    while True:
        seen = await look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what} (last seen: {seen!r})"
        await asyncio.sleep(POLL_SECONDS)


class Wire:
    """Channels to every server of a stack, and the clients on them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        addresses = {region: stack.address("routing", region) for region in plan.REGIONS}
        self._channels = Channels(addresses | {service: stack.address(service) for service in plan.SERVICES})
        crm, tickets, marketing = (self._channels[service] for service in plan.SERVICES)
        self.customers = customers_pb2_grpc.CustomerServiceStub(crm)
        self.timeline = timeline_pb2_grpc.TimelineServiceStub(crm)
        self.screen_pop = screen_pop_pb2_grpc.ScreenPopServiceStub(crm)
        self.tickets = ticket_service_pb2_grpc.TicketServiceStub(tickets)
        self.offers = offers_pb2_grpc.OfferServiceStub(marketing)
        self.recommendations = recommendations_pb2_grpc.RecommendationServiceStub(marketing)
        self.directory = directory_pb2_grpc.DirectoryServiceStub(self._channels["beijing"])

    def channel(self, server: str) -> grpc.aio.Channel:
        """To the router of a region, or to the server of another service."""
        return self._channels[server]

    def routing(self, region: str = "beijing") -> Any:
        """Calls, at the router of a region."""
        return routing_pb2_grpc.RoutingServiceStub(self._channels[region])

    def agents(self, region: str) -> Any:
        """Desktops' sessions, at the router of a region."""
        return agent_pb2_grpc.AgentServiceStub(self._channels[region])

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channels.close()


class Caller:
    """An edge with one caller on the line."""

    def __init__(self, wire: Wire, call_id: str, number: str, queue: str, **fields: Any) -> None:
        self._wire = wire
        self.call_id = call_id
        self._fields = {"caller_number": number, "queue": f"queues/{queue}", **fields}
        self._stream: EventStream | None = None
        self.attempt = 0
        self.place_token = ""

    def open(self, region: str = "beijing", **more: Any) -> None:
        """Opens the call at a router; again with the next attempt and the newest place token."""
        self.attempt += 1
        request = call_pb2.CallRequest(
            call_id=self.call_id,
            attempt=self.attempt,
            place_token=self.place_token,
            **self._fields,
            **more,
        )
        call = self._wire.routing(region).RouteCall(routing_pb2.RouteCallRequest(call=request))
        self._stream = EventStream(call)

    async def until(self, kind: str, seconds: float = WAIT_SECONDS) -> Any:
        """The next event of a kind; those before it are passed over. StreamEnded when the stream is."""
        assert self._stream is not None, "the call was not opened"
        deadline = time.monotonic() + seconds
        while True:
            event = await self._stream.next(max(0.0, deadline - time.monotonic()))
            assert event is not None, f"{self.call_id}: no {kind} within {seconds:g} s"
            found = event.WhichOneof("event")
            if found == "queued":
                self.place_token = event.queued.place_token or self.place_token
            if found == kind:
                return event

    async def until_broken(self) -> StreamEnded:
        """Reads until the stream breaks off."""
        try:
            await self.until("ended", RECOVERY_SECONDS)
        except StreamEnded as ended:
            return ended
        raise AssertionError(f"{self.call_id} ended in order")

    async def confirm(self, accepted: Any, region: str = "beijing") -> Any:
        """Consents to exactly the offer that ACCEPTED named."""
        return await self._wire.routing(region).ConfirmCall(
            routing_pb2.ConfirmCallRequest(
                call_id=self.call_id,
                offer_id=accepted.accepted.offer_id,
                version=accepted.version,
                shard=accepted.shard,
            ),
            timeout=WAIT_SECONDS,
        )

    async def end(self, region: str = "beijing") -> Any:
        """The conversation is over."""
        return await self._wire.routing(region).EndCall(
            routing_pb2.EndCallRequest(call_id=self.call_id), timeout=WAIT_SECONDS
        )

    async def close(self) -> None:
        """Drops the stream."""
        if self._stream is not None:
            await self._stream.close()


class Desktop:
    """An agent's seat."""

    def __init__(self, wire: Wire, agent: str) -> None:
        self._wire = wire
        self.agent = agent
        self.region = AGENTS[agent][1]
        # Later than any session of this agent before: not by the wall clock, which may be set back.
        self._session = time.monotonic_ns() // 1_000_000
        self._command = 0
        self._call: Any = None
        self._stream: EventStream | None = None

    async def open(self, calls_held: Sequence[str] = ()) -> Any:
        """Logs in, or attaches again with the calls in hand; the state then. Tries again while the router
        does not know the agent yet or is away.
        """

        async def try_once() -> Any:
            await self.close()
            self._call = self._wire.agents(self.region).Session()
            self._stream = EventStream(self._call)
            opening = agent_pb2.AgentCommand.Open(
                agent=f"agents/{self.agent}",
                session=self._session,
                state=agent_pb2.AGENT_STATE_AVAILABLE,
                calls_held=calls_held,
            )
            try:
                await self._send(open=opening)
                return await self.until("status")
            except (StreamEnded, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return None

        return (await eventually(try_once, f"{self.agent} logged in", RECOVERY_SECONDS)).status

    async def _send(self, **kind: Any) -> None:
        self._command += 1
        await self._call.write(agent_pb2.AgentCommand(command=self._command, **kind))

    async def until(self, kind: str, seconds: float = WAIT_SECONDS) -> Any:
        """The next event of a kind; those before it are passed over. StreamEnded when the stream is."""
        assert self._stream is not None, "the desktop was not opened"
        deadline = time.monotonic() + seconds
        while True:
            event = await self._stream.next(max(0.0, deadline - time.monotonic()))
            assert event is not None, f"{self.agent}: no {kind} within {seconds:g} s"
            if event.WhichOneof("event") == kind:
                return event

    async def accept(self, call_id: str) -> None:
        """Waits for the offer of that call and takes it."""
        event = await self.until("offer")
        assert event.offer.call.call_id == call_id, f"{self.agent} was offered {event.offer.call.call_id}"
        await self.take(event)

    async def take(self, event: Any) -> None:
        """Accepts an offer."""
        await self._send(accept={"offer_id": event.offer.offer_id})

    async def decline(self, event: Any) -> None:
        """Does not want an offer."""
        await self._send(decline={"offer_id": event.offer.offer_id})

    async def end(self, call_id: str) -> None:
        """Ends a conversation from the seat."""
        await self._send(end_conversation={"call_id": call_id})

    async def wrap_up(self, call_id: str, **disposition: Any) -> None:
        """Waits for the end of that call and writes down what came of it."""
        ended = (await self.until("ended")).ended
        assert ended.call_id == call_id
        await self._send(wrap_up={"call_id": call_id, "disposition": disposition})

    async def work(self, disposition: Callable[[str], dict[str, Any]], wrapped_up: list[str]) -> None:
        """Takes every call that is offered, and wraps it up; until cancelled. Adds to `wrapped_up` the calls
        that the platform has taken off the agent's hands.
        """
        assert self._stream is not None, "the desktop was not opened"
        sent: set[str] = set()
        while True:
            event = await self._stream.next(None)
            kind = event.WhichOneof("event")
            if kind == "offer":
                await self.take(event)
            elif kind == "ended":
                call_id = event.ended.call_id
                await self._send(wrap_up={"call_id": call_id, "disposition": disposition(call_id)})
                sent.add(call_id)
            elif kind == "status":
                done = sent - set(event.status.calls_held)
                wrapped_up += sorted(done)
                sent -= done

    async def close(self) -> None:
        """Drops the stream."""
        if self._stream is not None:
            await self._stream.close()


async def connect(caller: Caller, desktop: Desktop) -> Any:
    """From queued to connected; the confirmation's answer."""
    await desktop.accept(caller.call_id)
    answer = await caller.confirm(await caller.until("accepted"))
    assert answer.confirmed, answer.refusal
    await caller.until("connected")
    return answer


async def furnish(wire: Wire) -> None:
    """Regions, skills, queues and agents of `REGIONS`, `QUEUES` and `AGENTS`, and deadlines of tickets that
    are far away; returns when every router knows them.
    """
    directory = wire.directory
    await _give_tickets_time(wire)
    for region, (latitude, longitude, area) in REGIONS.items():
        await directory.CreateRegion(
            directory_pb2.CreateRegionRequest(
                region_id=region,
                region=directory_pb2.Region(
                    location={"latitude": latitude, "longitude": longitude},
                    served_areas=[area],
                    head_office=region == "beijing",
                ),
            )
        )
    for queue in QUEUES:
        await directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=queue))
        await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=queue, queue=_queue(queue)))
    for agent, (skill, region) in AGENTS.items():
        await _create_agent(directory, agent, skill, region)
    # The directory is followed as a whole and in order: who knows the last agent knows everything.
    for region in REGIONS:
        await _create_agent(directory, f"last-{region}", QUEUES[0], region)
        await _until_known(wire, f"last-{region}", region)


async def _give_tickets_time(wire: Wire) -> None:
    """Longer than the default, for at this speed an hour until the first answer is over in a minute: whatever
    a slow machine was doing by then would find tickets changed, and be told so, by nothing but time.
    """
    levels = sla_pb2_grpc.SlaServiceStub(wire.channel("tickets"))
    always = sla_pb2.Calendar(
        time_zone="Asia/Shanghai",
        windows=[sla_pb2.WorkWindow(weekday=day, end_minute=1_440) for day in range(1, 8)],
    )
    await levels.CreateCalendar(sla_pb2.CreateCalendarRequest(calendar_id="always", calendar=always))
    month = duration_pb2.Duration(seconds=30 * 86_400)
    policy = sla_pb2.SlaPolicy(calendar="calendars/always", resolution_target=month)
    await levels.CreateSlaPolicy(sla_pb2.CreateSlaPolicyRequest(sla_policy_id="patient", sla_policy=policy))


def _queue(skill: str) -> directory_pb2.Queue:
    """Longer than the default, for at this speed a ring of fifteen seconds is over in a quarter of one."""
    patient = duration_pb2.Duration(seconds=int(WAIT_SECONDS) * CLOCK_SPEED)
    return directory_pb2.Queue(
        skills=[{"skill": skill, "level_min": 1}],
        ring_timeout=patient,
        wrap_up_timeout=patient,
        overflow_threshold=patient,
    )


async def _create_agent(directory: Any, agent: str, skill: str, region: str) -> None:
    await directory.CreateAgent(
        directory_pb2.CreateAgentRequest(
            agent_id=agent,
            agent=directory_pb2.Agent(
                region=f"regions/{region}", skills={skill: 3}, address=f"sip:{agent}@{region}"
            ),
        )
    )


async def _until_known(wire: Wire, agent: str, region: str) -> None:
    async def look() -> bool:
        try:
            await wire.agents(region).GetAgentStatus(
                agent_pb2.GetAgentStatusRequest(name=f"agents/{agent}"), timeout=WAIT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            # Nobody knows the agent, or not every region has said so.
            away = error.code() is grpc.StatusCode.UNAVAILABLE
            assert away or refusal(error).reason == "AGENT_NOT_FOUND", error
            return False
        return True

    await eventually(look, f"{region} knows its agents")


# --- errors -----------------------------------------------------------------------------------------------


class Refusal:
    """What an error says to a machine."""

    def __init__(self, error: Any) -> None:
        """AssertionError unless it has exactly one ErrorInfo."""
        self.code: grpc.StatusCode = error.code()
        status = rpc_status.from_call(error)
        assert status is not None, f"no details: {error.code()} {error.details()}"
        infos = []
        self.fields: list[str] = []
        for packed in status.details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if packed.Unpack(info):
                infos.append(info)
            elif packed.Unpack(bad):
                self.fields += [violation.field for violation in bad.field_violations]
        assert len(infos) == 1, f"{len(infos)} ErrorInfo: {error.details()}"
        self.domain, self.reason = infos[0].domain, infos[0].reason


def refusal(error: grpc.RpcError) -> Refusal:
    """What an error says to a machine; AssertionError unless it has exactly one ErrorInfo."""
    assert isinstance(error, grpc.aio.AioRpcError)
    return Refusal(error)


# --- the bus and the figures ------------------------------------------------------------------------------


class EventTap(AbstractContextManager["EventTap"]):
    """A queue of the test's own that gets every event of every service."""

    QUEUE = "e2e.tap"

    def __init__(self, amqp_uri: str) -> None:
        """The exchanges must exist already: workers declare them."""
        self._connection: amqp.Connection = open_connection(amqp_uri)
        self._channel = self._connection.channel()
        self._channel.queue_declare(self.QUEUE, exclusive=True, auto_delete=True)
        for source in SOURCES:
            self._channel.queue_bind(self.QUEUE, events_exchange(source), "#")
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """All events so far, in the order of arrival, those published twice twice."""
        while (message := self._channel.basic_get(self.QUEUE, no_ack=True)) is not None:
            self._events.append(Event.from_json(message.body))
        return list(self._events)

    def __exit__(self, *_: object) -> None:
        close_quietly(self._connection)


def scrape(stack: Stack, process: str) -> Samples:
    """A process' /metrics; OSError when it does not answer."""
    url = f"http://{stack.http_address(process)}/metrics"
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        return read_samples([answer.read().decode()])


def process_names(stack: Stack) -> list[str]:
    """Every process of the platform."""
    return [process.name for process in plan.scrape_targets(stack.config)]


async def settled(stack: Stack) -> EventFigures:
    """The bus once nothing waits to be published or consumed any more."""
    # Only workers publish and consume, and the servers' expositions are long.
    workers = map(plan.worker_name, SOURCES)
    counter = EventCounter({name: stack.http_address(name) for name in workers}, stack.amqp_uri)
    figures = await counter.settle(RECOVERY_SECONDS)
    assert figures.settled, figures
    return figures
