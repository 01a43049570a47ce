"""`python -m routing.planning.dialler_main`: the dialler of one region over gRPC. See dialler.py.

    python -m routing.planning.dialler_main --region beijing --inbound service --outbound callout \
        --routing 127.0.0.1:7120 --marketing 127.0.0.1:7160

Every option is a setting, too (`DIALLER_REGION`, ...). Gateways with telephone lines come to its own gRPC
port (LineService); that port, the HTTP port of /metrics, /healthz and /readyz, TLS, tokens of gateways, and
the clock are settings as every server has them (`DIALLER_GRPC_PORT`, `TLS_CERT_FILE`, `AUTH_MODE`,
`CLOCK_SPEED`, ...; docs/settings.md).

It ends on SIGTERM: what nobody has accepted is withdrawn and goes back to its list. Scopes of its token:
`routing.scopes.DIALLER_ASKS`.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import outbound_pb2, outbound_pb2_grpc
from callmesh.routing.v1 import (
    agent_pb2,
    call_pb2,
    directory_pb2,
    directory_pb2_grpc,
    menus_pb2,
    menus_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
    supervision_pb2,
    supervision_pb2_grpc,
)
from chassis import server, tls
from chassis.client import Dialer, outgoing
from chassis.clock import Clock, to_ms
from chassis.errors import CallmeshError, FailedPrecondition, Unavailable
from chassis.ids import new_id, stable_id
from routing.planning.blending import BlendingRules, Contacts, ForecastBlending
from routing.planning.calling_hours import CallingHours
from routing.planning.dialler import (
    HELD_LEASE_SECONDS,
    LEASE_SECONDS,
    LOOK_SECONDS,
    Dialler,
    attributes_of,
)
from routing.planning.dialler_config import DiallerSettings, environment_of
from routing.planning.dialler_ports import (
    AgentNow,
    Call,
    FloorNow,
    LineResult,
    ListNow,
    Person,
    Reserved,
    Results,
)
from routing.planning.erlang import Demand
from routing.planning.history import SLOT_MS
from routing.planning.lines import Gateways
from routing.planning.lines_servicer import lines_binding
from routing.planning.nowcast import Nowcast
from routing.planning.pacing import WINDOW_MS_MAX, WINDOW_MS_MIN, Mode
from routing.scopes import DIALLER_SCOPES

log = structlog.get_logger(__name__)

#: Skips nobody: outbound waits behind every inbound call of the same age.
PRIORITY = -100
#: How long a call waits for its agent before it is given up, real seconds; so long, in business time, nobody
#: else is offered it.
OFFER_SECONDS, OWN_SECONDS = 120, 3_600
#: After leaving a call's stream routing is asked so often, and this much later each time, what became of it.
LEFT_LOOKS_MAX, LEFT_LOOK_SECONDS = 20, 0.1
#: Where a call's stream has broken routing is asked so often, real seconds: until it is known whether the
#: agent has accepted, and while they talk.
ASK_SECONDS, ASK_TALK_SECONDS = 0.5, 5.0
#: The directory has so long to say where an agent sits, real seconds: somebody waits on a line.
SEAT_SECONDS = 1.0
#: Forecasts are asked for this often, real seconds, for so many half-hours.
FORECAST_SECONDS, FORECAST_HALF_HOURS = 1_800.0, 8
#: So soon again when there was no answer: one plan is made at a time, and that takes a while.
FORECAST_AGAIN_SECONDS = 60.0
#: Calls' usual length and patience come from so many days of reports.
REPORT_DAYS, REPORT_PAGES_MAX = 7, 20
#: Agents and lists that are read, at most, in pages; of lists fewer in each, for a list's words for the agent
#: may be long.
PAGES_MAX, PAGE_SIZE, LISTS_PAGE_SIZE = 20, 1_000, 80
#: Contacts of one question to marketing, at most.
CONTACTS_MAX = 1_000
#: What calls are taken for while no report tells.
USUAL = Demand(rate=0.0, handle_seconds=180.0, patience_seconds=300.0)
#: What would not be otherwise if it were asked again at once.
_LASTING = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)
_MODES: Mapping[int, Mode] = {
    outbound_pb2.PACING_MODE_PROGRESSIVE: Mode.PROGRESSIVE,
    outbound_pb2.PACING_MODE_PREDICTIVE: Mode.PREDICTIVE,
}
#: Results of marketing's that say that a person answered.
_ANSWERED = ("SUCCESS", "DECLINED", "CALL_BACK", "ABANDONED", "OPTED_OUT")
_UNKNOWN = "the call does not say what became of it"
_BUSY = (agent_pb2.AGENT_STATE_RESERVED, agent_pb2.AGENT_STATE_ON_CALL, agent_pb2.AGENT_STATE_WRAP_UP)


async def asked(answer: Awaitable[Any]) -> Any:
    """The answer of another server. Raises FailedPrecondition for what it refuses and will go on to, else
    Unavailable.
    """
    try:
        return await answer
    except grpc.aio.AioRpcError as error:
        why = f"{error.code().name}: {error.details()}"
        if error.code() in _LASTING:
            raise FailedPrecondition(subject="asked", why=why) from None
        raise Unavailable(why=why, retry_seconds=1.0) from None


class Peers:
    """Stubs of routing and marketing; a renewed certificate counts from the next call on."""

    def __init__(self, dialer: Dialer, routing: str, marketing: str) -> None:
        self._dialer = dialer
        self._routing, self._marketing = routing, marketing
        self._stubs: dict[Any, tuple[grpc.aio.Channel, Any]] = {}

    def _stub(self, make: Any, target: str) -> Any:
        channel = self._dialer.channel(target)
        known = self._stubs.get(make)
        if known is None or known[0] is not channel:
            known = self._stubs[make] = (channel, make(channel))
        return known[1]

    @property
    def routing(self) -> Any:
        return self._stub(routing_pb2_grpc.RoutingServiceStub, self._routing)

    @property
    def directory(self) -> Any:
        return self._stub(directory_pb2_grpc.DirectoryServiceStub, self._routing)

    @property
    def supervision(self) -> Any:
        return self._stub(supervision_pb2_grpc.SupervisionServiceStub, self._routing)

    @property
    def planning(self) -> Any:
        return self._stub(menus_pb2_grpc.PlanningServiceStub, self._routing)

    @property
    def lists(self) -> Any:
        return self._stub(outbound_pb2_grpc.OutboundServiceStub, self._marketing)

    def how(self, seconds: float | None = 5.0) -> dict[str, Any]:
        """Deadline and token of a call."""
        known = outgoing(seconds)
        return {**known, "metadata": (*known.get("metadata", ()), *self._dialer.metadata())}


class GrpcFloor:
    """One region of routing, as far as it is there for one inbound queue."""

    def __init__(self, peers: Peers, region: str, inbound: str) -> None:
        self._peers, self._region, self._inbound = peers, f"regions/{region}", f"queues/{inbound}"
        #: Agents who have the queue's skills, or are blended; None until the directory was asked.
        self._meant: frozenset[str] | None = None

    async def look(self, *, agents: bool = True) -> FloorNow:
        request = supervision_pb2.GetStatsRequest(region=self._region, with_agents=agents)
        stats = await asked(self._peers.supervision.GetStats(request, **self._peers.how(2.0)))
        queue = next((q for q in stats.queues if q.queue == self._inbound), supervision_pb2.QueueStats())
        there = [
            AgentNow(
                agent=each.agent.removeprefix("agents/"),
                free=each.state == agent_pb2.AGENT_STATE_AVAILABLE,
                calls=frozenset(each.calls_held),
                rung=bool(each.offers_held),
                since_ms=_ms(each.state_time),
            )
            for each in stats.agents
            if each.state in (agent_pb2.AGENT_STATE_AVAILABLE, *_BUSY) and not each.draining
        ]
        if self._meant is not None:
            there = [each for each in there if each.agent in self._meant]
        return FloorNow(
            now_ms=_ms(stats.event_time), agents=there, waiting=queue.waiting, offered=queue.offered
        )

    async def blended(self) -> Mapping[str, frozenset[str]]:
        asking = directory_pb2.GetQueueRequest(name=self._inbound)
        queue = await asked(self._peers.directory.GetQueue(asking, **self._peers.how()))
        wanted = {each.skill.removeprefix("skills/") for each in queue.skills}
        found: dict[str, frozenset[str]] = {}
        meant: set[str] = set()
        async for agent in self._agents():
            id, skills = agent.name.removeprefix("agents/"), frozenset(agent.skills)
            if agent.blended:
                found[id] = skills
            if agent.blended or wanted <= skills:
                meant.add(id)
        self._meant = frozenset(meant)
        return found

    async def _agents(self) -> AsyncIterator[directory_pb2.Agent]:
        """Those of the region."""
        token = ""
        for _ in range(PAGES_MAX):
            request = directory_pb2.ListAgentsRequest(
                page_size=PAGE_SIZE, page_token=token, region=self._region
            )
            page = await asked(self._peers.directory.ListAgents(request, **self._peers.how()))
            for agent in page.agents:
                yield agent
            token = page.next_page_token
            if not token:
                return


class GrpcLists:
    """Marketing's lists of the outbound queue."""

    def __init__(
        self, peers: Peers, outbound: str, holder: str, speed: float = 1.0, calls_a_day: int = 0
    ) -> None:
        """Marketing counts leases in business time, of which `speed` seconds pass in a real one, and how
        often a number is called, over restarts and for all diallers: `calls_a_day` at most, 0 for no limit.
        """
        self._calls_a_day = calls_a_day
        self._peers, self._queue, self._holder = peers, f"queues/{outbound}", holder
        self._held_seconds = min(LEASE_SECONDS, math.ceil(HELD_LEASE_SECONDS * speed))

    async def running(self) -> Sequence[ListNow]:
        found: list[ListNow] = []
        token = ""
        for _ in range(PAGES_MAX):
            request = outbound_pb2.ListContactListsRequest(
                page_size=LISTS_PAGE_SIZE, page_token=token, state=outbound_pb2.CONTACT_LIST_STATE_RUNNING
            )
            page = await asked(self._peers.lists.ListContactLists(request, **self._peers.how()))
            if page.halted:
                return ()
            found += [list_now(each) for each in page.contact_lists if self._runs(each)]
            token = page.next_page_token
            if not token:
                break
        return found

    def _runs(self, one: outbound_pb2.ContactList) -> bool:
        runs = one.state == outbound_pb2.CONTACT_LIST_STATE_RUNNING and not one.campaign_holds
        return runs and one.queue == self._queue

    async def next(self, count: int, skills: frozenset[str]) -> Sequence[Person]:
        request = outbound_pb2.NextContactsRequest(
            holder=self._holder,
            max_contacts=min(count, CONTACTS_MAX),
            queue=self._queue,
            lease_seconds=self._held_seconds,
            # Lists name skills by id or by resource name.
            skills=[name for id in sorted(skills) for name in (id, f"skills/{id}")],
        )
        page = await asked(self._peers.lists.NextContacts(request, **self._peers.how()))
        return [person_of(each) for each in page.contacts]

    async def renew(self, contacts: Sequence[str], *, calling: bool, talk: bool = True) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for some in _batches(contacts):
            request = outbound_pb2.RenewContactsRequest(
                holder=self._holder,
                contacts=some,
                lease_seconds=LEASE_SECONDS if talk else self._held_seconds,
                calling=calling,
                calls_in_day_max=self._calls_a_day if calling else 0,
            )
            kept = await asked(self._peers.lists.RenewContacts(request, **self._peers.how()))
            found |= {each.name: _ms(each.lease_expire_time) for each in kept.contacts}
        return found

    async def reserved(self, name: str) -> Sequence[Reserved]:
        prefix = self._holder.rpartition("-")[0] + "-"
        request = outbound_pb2.ListContactsRequest(
            parent=name, page_size=PAGE_SIZE, state=outbound_pb2.CONTACT_STATE_LEASED
        )
        page = await asked(self._peers.lists.ListContacts(request, **self._peers.how()))
        return [
            Reserved(person=person_of(each), holder=each.holder)
            for each in page.contacts
            if each.holder.startswith(prefix) and each.holder != self._holder
        ]

    async def give_back(self, contacts: Sequence[str], holder: str = "", not_before_ms: int = 0) -> None:
        for some in _batches(contacts):
            request = outbound_pb2.ReturnContactsRequest(holder=holder or self._holder, contacts=some)
            if not_before_ms:
                request.not_before_time.FromMilliseconds(not_before_ms)
            await asked(self._peers.lists.ReturnContacts(request, **self._peers.how()))

    async def record(self, person: Person, result: LineResult, note: str = "") -> None:
        request = outbound_pb2.RecordResultRequest(
            contact=person.contact,
            holder=self._holder,
            attempt=person.attempt,
            result=f"OUTBOUND_RESULT_{result.value}",
            note=note,
        )
        await asked(self._peers.lists.RecordResult(request, **self._peers.how()))

    async def results(self, name: str) -> Results:
        request = outbound_pb2.GetDialStatisticsRequest(contact_list=name)
        counts = (await asked(self._peers.lists.GetDialStatistics(request, **self._peers.how()))).results
        # Asking a map for a key would add it.
        known = dict(counts)
        return Results(
            attempts=sum(known.values()),
            answered=sum(known.get(result, 0) for result in _ANSWERED),
            abandoned=known.get("ABANDONED", 0),
        )


def _batches(contacts: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many at a time as marketing takes."""
    for first in range(0, len(contacts), CONTACTS_MAX):
        yield contacts[first : first + CONTACTS_MAX]


def holder_prefix(region: str) -> str:
    """How the names of a region's diallers begin; what follows is each one's own."""
    return f"dialler-{region}-"


def person_of(contact: outbound_pb2.Contact) -> Person:
    """A contact as the dialler needs it."""
    return Person(
        contact=contact.name,
        number=contact.number,
        attempt=contact.attempt,
        zone=contact.time_zone,
        skills=frozenset(name.removeprefix("skills/") for name in contact.skills),
        lease_ms=_ms(contact.lease_expire_time),
    )


def list_now(one: outbound_pb2.ContactList) -> ListNow:
    """A list as the dialler needs it; what is unset as marketing's contract has it."""
    plain = ListNow(name=one.name)
    window_ms = round(_seconds(one.abandon_window) * 1000) or plain.abandon_window_ms
    return ListNow(
        name=one.name,
        mode=_MODES.get(one.pacing_mode, Mode.PREVIEW),
        abandon_ratio_max=one.abandon_ratio_max or plain.abandon_ratio_max,
        # Lists may count abandons over a longer span, or a shorter one, than a pace is kept by; marketing
        # goes by theirs.
        abandon_window_ms=min(max(window_ms, WINDOW_MS_MIN), WINDOW_MS_MAX),
        stint_min_ms=round(_seconds(one.stint_min) * 1000),
    )


class GrpcCall:
    """A call's stream, read to its end. To withdraw a call its stream is left: routing then ends an offer
    that nobody has accepted, and leaves a conversation alone; which of both it was is asked afterwards.
    """

    def __init__(self, peers: Peers, request: call_pb2.CallRequest) -> None:
        self.call_id = request.call_id
        self.address = ""
        self._peers = peers
        self._leaving = False
        #: Whom it was chosen for; "" where somebody waits on a line, whom others may take, too.
        self._chosen = "" if "line" in request.attributes else request.preferred_agent
        #: That agent does not take it.
        self._refused = False
        self._answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        wanted = routing_pb2.RouteCallRequest(call=request)
        self._stream = peers.routing.RouteCall(wanted, **peers.how(None))
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Until routing says that the call is over; where its stream breaks before that, routing is asked."""
        over = False
        try:
            over = await self._heard()
        except grpc.aio.AioRpcError as error:
            # What is refused for good was never placed.
            over = error.code() in _LASTING
            log.info("outbound_stream_ended", call=self.call_id, error=error.code().name)
        except asyncio.CancelledError:
            # The stream was left; a task that is to end does.
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        finally:
            self._stream.cancel()
        if self._refused:
            await self._take_from_others()
        if not over:
            await self._ask_after()
        elif not self._leaving:
            self._settle(False)

    async def _heard(self) -> bool:
        """Reads the stream; whether it was told that the call is over."""
        async for event in self._stream:
            kind = event.WhichOneof("event")
            if kind == "connected":
                self.address = event.connected.agent_address
                self._settle(True)
            elif kind == "ended":
                return True
            elif not self._answered.done() and self._is_refusal(event, kind):
                self._refused = True
                break
        return False

    def _is_refusal(self, event: routing_pb2.RouteCallEvent, kind: str | None) -> bool:
        """Whether the agent did not want it, or is not there any more and somebody else is asked: nobody else
        is to have it.
        """
        if kind == "offered":
            return bool(self._chosen) and event.offered.agent != self._chosen
        return kind == "offer_ended"

    async def _take_from_others(self) -> None:
        """Routing offers it to somebody else at once, who may have accepted by now: only routing knows."""
        try:
            await self.withdraw()
        except CallmeshError as error:
            log.info("outbound_call_unseen", call=self.call_id, error=error.message)
        # Unless that is known, it is asked for on.
        self._leaving = self._answered.done()

    async def _ask_after(self) -> None:
        """What becomes of a call without its stream: a conversation goes on. `withdraw` finds out about one
        that is withdrawn.
        """
        if self._leaving and not await asyncio.shield(self._answered):
            return
        while True:
            try:
                call = await self._now()
                if call is None or call.state == call_pb2.CALL_STATE_ENDED:
                    break
                if call.state == call_pb2.CALL_STATE_CONNECTED:
                    await self._find_seat(call.agent)
                    self._settle(True)
                elif call.detached:
                    break
            except CallmeshError as error:
                log.info("outbound_call_unseen", call=self.call_id, error=error.message)
            await asyncio.sleep(ASK_TALK_SECONDS if self._answered.done() else ASK_SECONDS)
        self._settle(False)

    async def _find_seat(self, agent: str) -> None:
        """Where to connect who waits on a line: the word that said so was lost with the stream."""
        if self._chosen or self.address or self._answered.done():
            return
        asking = directory_pb2.GetAgentRequest(name=agent)
        try:
            seat = await asked(self._peers.directory.GetAgent(asking, **self._peers.how(SEAT_SECONDS)))
            self.address = seat.address
        except CallmeshError as error:
            log.info("seat_unknown", call=self.call_id, agent=agent, error=error.message)

    async def _now(self) -> call_pb2.Call | None:
        """The call as routing has it; None where it has none. Raises CallmeshError."""
        asking = routing_pb2.GetCallRequest(name=f"calls/{self.call_id}")
        try:
            found: call_pb2.Call = await self._peers.routing.GetCall(asking, **self._peers.how())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise Unavailable(why=f"{error.code().name}: {error.details()}", retry_seconds=1.0) from None
        return found

    def _settle(self, answered: bool) -> None:
        if not self._answered.done():
            self._answered.set_result(answered)

    async def wait_answered(self) -> bool:
        try:
            async with asyncio.timeout(OFFER_SECONDS):
                return await asyncio.shield(self._answered)
        except TimeoutError:
            await self.withdraw()
            return self._answered.result()

    async def wait_ended(self) -> None:
        await asyncio.shield(self._reading)

    async def withdraw(self) -> None:
        """Raises Unavailable when nobody says what became of it; ask again then."""
        self._leaving = True
        self._stream.cancel()
        for _ in range(LEFT_LOOKS_MAX):
            if self._answered.done():
                return
            call = await self._now()
            if call is None:
                # Not placed, and without a stream nobody is offered it.
                self._settle(False)
            elif call.state == call_pb2.CALL_STATE_CONNECTED:
                await self._find_seat(call.agent)
                self._settle(True)
            elif call.detached or call.state == call_pb2.CALL_STATE_ENDED:
                self._settle(False)
                request = routing_pb2.HangUpRequest(call_id=self.call_id, attempt=1)
                await asked(self._peers.routing.HangUp(request, **self._peers.how()))
            else:
                await asyncio.sleep(LEFT_LOOK_SECONDS)
        raise Unavailable(why=_UNKNOWN, retry_seconds=LOOK_SECONDS)


def call_id_of(person: Person) -> str:
    """The call in which a reservation is offered: another process can tell it, too, and so learn what became
    of it.
    """
    if not person.lease_ms:
        return new_id("out-")
    return f"out-{stable_id(person.contact, person.attempt, person.lease_ms)}"


class GrpcCalls:
    """Outbound calls of one queue."""

    def __init__(self, peers: Peers, outbound: str, holder: str) -> None:
        self._peers, self._queue, self._holder = peers, f"queues/{outbound}", holder

    async def begin(self, person: Person, agent: str, line: str = "") -> Call:
        request = call_pb2.CallRequest(
            # Somebody on a line may be offered to one agent after the other.
            call_id=new_id("out-") if line else call_id_of(person),
            caller_number=person.number,
            channel=common_pb2.CHANNEL_VOICE,
            queue=self._queue,
            priority=PRIORITY,
            attempt=1,
            preferred_agent=f"agents/{agent}",
            preferred_agent_timeout=Duration(seconds=OWN_SECONDS),
            attributes=attributes_of(person, self._holder, line),
            auto_confirm=True,
        )
        return GrpcCall(self._peers, request)

    async def unanswered(self, person: Person) -> bool:
        request = routing_pb2.GetCallRequest(name=f"calls/{call_id_of(person)}")
        try:
            call = await asked(self._peers.routing.GetCall(request, **self._peers.how()))
        except FailedPrecondition:
            # Never placed, not placed yet, or forgotten: nobody can tell.
            return False
        return call.state == call_pb2.CALL_STATE_ENDED and not call.HasField("connect_time")

    async def end(self, call: Call) -> None:
        request = routing_pb2.EndCallRequest(call_id=call.call_id)
        await asked(self._peers.routing.EndCall(request, **self._peers.how()))


class Outlooks:
    """The next minutes by planning's forecast and the reports, asked for again now and then."""

    def __init__(self, peers: Peers, region: str, inbound: str, start_ms: int = 0) -> None:
        """Callers are seen from `start_ms` on."""
        self._peers, self._region, self._inbound = peers, region, inbound
        self._rows: Mapping[int, float] = {}
        self.nowcast = Nowcast(USUAL, self._rate, start_ms=start_ms)
        #: There is something to call: only then is anything asked, for a plan keeps a router busy a while.
        self.wanted = asyncio.Event()

    def _rate(self, ms: int) -> float | None:
        return self._rows.get(ms - ms % SLOT_MS)

    async def run(self, now_ms: Any) -> None:
        """Keeps it new, until cancelled; what cannot be asked stays as it was."""
        while True:
            await self.wanted.wait()
            wait = FORECAST_SECONDS
            try:
                await self.refresh(now_ms())
            except CallmeshError as error:
                log.info("forecast_not_renewed", error=error.message)
                if isinstance(error, Unavailable):
                    wait = FORECAST_AGAIN_SECONDS
            await asyncio.sleep(wait)
            self.wanted.clear()

    async def refresh(self, now_ms: int) -> None:
        """Raises Unavailable."""
        self.nowcast.use(await self._usual(now_ms))
        begin_ms = now_ms - now_ms % SLOT_MS
        span = _interval(begin_ms - 2 * SLOT_MS, begin_ms + FORECAST_HALF_HOURS * SLOT_MS)
        request = menus_pb2.ForecastArrivalsRequest(queue=f"queues/{self._inbound}", interval=span)
        answer = await asked(self._peers.planning.ForecastArrivals(request, **self._peers.how(60.0)))
        self._rows = {_ms(row.start_time): row.arrivals * 1000 / SLOT_MS for row in answer.forecasts}

    async def _usual(self, now_ms: int) -> Demand:
        """How calls are, from the reports of the last days."""
        handled = handle = left = waited = 0.0
        token = ""
        for _ in range(REPORT_PAGES_MAX):
            request = supervision_pb2.ListIntervalReportsRequest(
                page_size=PAGE_SIZE,
                page_token=token,
                region=f"regions/{self._region}",
                interval=_interval(now_ms - REPORT_DAYS * 86_400_000, now_ms),
            )
            page = await asked(self._peers.supervision.ListIntervalReports(request, **self._peers.how()))
            for row in page.reports:
                if row.subject != f"queues/{self._inbound}":
                    continue
                stats = row.stats
                handled += row.handled
                handle += _seconds(row.talk_time) + _seconds(row.wrap_up_time)
                left += stats.abandoned + stats.short_abandoned
                # The waits of those who hung up are not told apart: theirs count as the mean of the others.
                waited += _seconds(stats.average_speed_of_answer) * (stats.answered + stats.abandoned)
            token = page.next_page_token
            if not token:
                break
        if not handled:
            return USUAL
        patience = max(1.0, waited / left) if left else math.inf
        return Demand(rate=0.0, handle_seconds=max(1.0, handle / handled), patience_seconds=patience)


def _ms(stamp: Timestamp) -> int:
    return to_ms(stamp.ToDatetime(tzinfo=UTC))


def _seconds(span: Duration) -> float:
    return span.seconds + span.nanos / 1e9


def _interval(from_ms: int, to_ms_: int) -> common_pb2.Interval:
    begin, end = Timestamp(), Timestamp()
    begin.FromDatetime(datetime.fromtimestamp(from_ms / 1000, UTC))
    end.FromDatetime(datetime.fromtimestamp(to_ms_ / 1000, UTC))
    return common_pb2.Interval(start_time=begin, end_time=end)


def policy_of(settings: DiallerSettings) -> ForecastBlending:
    """What the settings allow."""
    rules = BlendingRules(
        share=settings.share, stint_min_ms=settings.stint_seconds * 1000, price=settings.price
    )
    like = Contacts(
        answer_ratio=settings.answer_ratio,
        dial_seconds=settings.dial_seconds,
        talk_seconds=settings.talk_seconds,
    )
    return ForecastBlending(rules=rules, contacts=like)


def hours_of(settings: DiallerSettings) -> CallingHours:
    """When calls may begin, every day alike."""
    return CallingHours(legal=(((settings.from_hour * 60, settings.until_hour * 60),),) * 7)


class Process:
    """The dialler with all around it."""

    def __init__(self, settings: DiallerSettings) -> None:
        """StartError for a file that cannot be read. Needs a running event loop."""
        clock: Clock = settings.clock()
        self._dialer = Dialer(tls.certificates(settings), tls.TokenFile(settings.token_file))
        # A name of its own: what a process before it had reserved is not taken for its own.
        holder = f"{holder_prefix(settings.region)}{new_id()}"
        peers = Peers(self._dialer, settings.routing, settings.marketing)
        self._outlooks = Outlooks(peers, settings.region, settings.inbound, clock.now_ms())
        self._now_ms = clock.now_ms
        self.gateways = Gateways()
        self.dialler = Dialler(
            floor=GrpcFloor(peers, settings.region, settings.inbound),
            lists=GrpcLists(peers, settings.outbound, holder, settings.clock_speed, settings.calls_a_day),
            calls=GrpcCalls(peers, settings.outbound, holder),
            policy=policy_of(settings),
            outlook=self._outlooks.nowcast,
            hours=hours_of(settings),
            clock=clock,
            calls_a_day_max=settings.calls_a_day,
            lines=self.gateways,
            answer_ratio=settings.answer_ratio,
            talk_seconds=settings.talk_seconds,
            answered_wait_seconds=settings.answered_wait_seconds,
            woken=self._outlooks.wanted.set,
        )
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Looks and dials from now on."""
        self._tasks = [
            asyncio.create_task(self._outlooks.run(self._now_ms)),
            asyncio.create_task(self.dialler.run(self._ended)),
        ]
        for task in self._tasks:
            task.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """Neither may fail and leave a process that only seems to work."""
        if not task.cancelled() and task.exception() is not None:
            log.error("background_task_ended", error=repr(task.exception()))
            signal.raise_signal(signal.SIGTERM)

    async def end(self) -> None:
        """Everything unanswered is given back, and gateways are sent away."""
        self._ended.set()
        await asyncio.gather(*self._tasks[1:], return_exceptions=True)
        self.gateways.end()

    async def close(self) -> None:
        """Frees what is left; safe after a start that failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._dialer.close()


async def run(settings: DiallerSettings) -> None:
    """Until SIGTERM or SIGINT."""
    process = Process(settings)
    await server.serve(
        settings,
        [server.ServiceBinding(*lines_binding(process.gateways))],
        scopes=DIALLER_SCOPES,
        on_start=process.begin,
        on_drain=process.end,
        on_stop=process.close,
        checks={"floor": process.dialler.sees},
    )


def main() -> int:
    """Returns the process's exit status: 2 for an option that is none."""
    os.environ.update(environment_of(sys.argv[1:]))
    return server.main(DiallerSettings, run)


if __name__ == "__main__":
    sys.exit(main())
