"""`python -m routing.planning.dialler_main`: the dialler of one region over gRPC. See dialler.py.

    python -m routing.planning.dialler_main --region beijing --inbound service --outbound callout \
        --routing 127.0.0.1:7120 --marketing 127.0.0.1:7160

It ends on SIGTERM: what nobody has accepted is withdrawn and goes back to its list. Scopes needed:
routing.stats.read, routing.directory.read, routing.calls.route, routing.planning.read,
marketing.outbound.read and marketing.outbound.dial.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
from collections.abc import Awaitable, Mapping, Sequence
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
from chassis.client import Dialer, outgoing
from chassis.clock import SystemClock, to_ms
from chassis.errors import CallmeshError, InvalidArgument, Unavailable
from chassis.ids import new_id
from chassis.tls import TokenFile
from routing.planning.blending import BlendingRules, Contacts, ForecastBlending
from routing.planning.calling_hours import CallingHours
from routing.planning.dialler import (
    LEASE_SECONDS,
    LOOK_SECONDS,
    AgentNow,
    Call,
    Dialler,
    FloorNow,
    Person,
    attributes_of,
)
from routing.planning.erlang import Demand
from routing.planning.history import SLOT_MS
from routing.planning.nowcast import Nowcast

log = structlog.get_logger(__name__)

#: Skips nobody: outbound waits behind every inbound call of the same age.
PRIORITY = -100
#: How long a call waits for its agent before it is given up.
OFFER_SECONDS = 60
#: After leaving a call's stream routing is asked so often, and this much later each time, what became of it.
LEFT_LOOKS_MAX, LEFT_LOOK_SECONDS = 20, 0.1
#: Forecasts are asked for this often, real seconds, for so many half-hours.
FORECAST_SECONDS, FORECAST_HALF_HOURS = 1_800.0, 8
#: So soon again when there was no answer: one plan is made at a time, and that takes a while.
FORECAST_AGAIN_SECONDS = 60.0
#: Calls' usual length and patience come from so many days of reports.
REPORT_DAYS, REPORT_PAGES_MAX = 7, 20
#: Agents and lists that are read, at most, in pages.
PAGES_MAX, PAGE_SIZE = 20, 1_000
#: What calls are taken for while no report tells.
USUAL = Demand(rate=0.0, handle_seconds=180.0, patience_seconds=300.0)
_BUSY = (agent_pb2.AGENT_STATE_RESERVED, agent_pb2.AGENT_STATE_ON_CALL, agent_pb2.AGENT_STATE_WRAP_UP)


async def asked(answer: Awaitable[Any]) -> Any:
    """The answer of another server. Raises Unavailable for whatever it did not answer."""
    try:
        return await answer
    except grpc.aio.AioRpcError as error:
        raise Unavailable(why=f"{error.code().name}: {error.details()}", retry_seconds=1.0) from None


class Peers:
    """Stubs of routing and marketing."""

    def __init__(self, dialer: Dialer, routing: str, marketing: str) -> None:
        self._dialer = dialer
        here, there = dialer.channel(routing), dialer.channel(marketing)
        self.routing = routing_pb2_grpc.RoutingServiceStub(here)
        self.directory = directory_pb2_grpc.DirectoryServiceStub(here)
        self.supervision = supervision_pb2_grpc.SupervisionServiceStub(here)
        self.planning = menus_pb2_grpc.PlanningServiceStub(here)
        self.lists = outbound_pb2_grpc.OutboundServiceStub(there)

    def how(self, seconds: float | None = 5.0) -> dict[str, Any]:
        """Deadline and token of a call."""
        known = outgoing(seconds)
        return {**known, "metadata": (*known.get("metadata", ()), *self._dialer.metadata())}


class GrpcFloor:
    """One region of routing."""

    def __init__(self, peers: Peers, region: str, inbound: str) -> None:
        self._peers, self._region, self._inbound = peers, f"regions/{region}", f"queues/{inbound}"

    async def look(self) -> FloorNow:
        request = supervision_pb2.GetStatsRequest(region=self._region, with_agents=True)
        stats = await asked(self._peers.supervision.GetStats(request, **self._peers.how(2.0)))
        queue = next((q for q in stats.queues if q.queue == self._inbound), supervision_pb2.QueueStats())
        agents = [
            AgentNow(
                agent=each.agent.removeprefix("agents/"),
                free=each.state == agent_pb2.AGENT_STATE_AVAILABLE,
                calls=frozenset(each.calls_held),
                since_ms=_ms(each.state_time),
            )
            for each in stats.agents
            if each.state in (agent_pb2.AGENT_STATE_AVAILABLE, *_BUSY) and not each.draining
        ]
        return FloorNow(
            now_ms=_ms(stats.event_time), agents=agents, waiting=queue.waiting, offered=queue.offered
        )

    async def blended(self) -> frozenset[str]:
        found: set[str] = set()
        token = ""
        for _ in range(PAGES_MAX):
            request = directory_pb2.ListAgentsRequest(page_size=PAGE_SIZE, page_token=token)
            page = await asked(self._peers.directory.ListAgents(request, **self._peers.how()))
            found.update(
                a.name.removeprefix("agents/") for a in page.agents if a.blended and a.region == self._region
            )
            token = page.next_page_token
            if not token:
                break
        return frozenset(found)


class GrpcLists:
    """Marketing's lists of the outbound queue."""

    def __init__(self, peers: Peers, outbound: str, holder: str) -> None:
        self._peers, self._queue, self._holder = peers, f"queues/{outbound}", holder

    async def running(self) -> bool:
        token = ""
        for _ in range(PAGES_MAX):
            request = outbound_pb2.ListContactListsRequest(page_size=PAGE_SIZE, page_token=token)
            page = await asked(self._peers.lists.ListContactLists(request, **self._peers.how()))
            running = outbound_pb2.CONTACT_LIST_STATE_RUNNING
            if any(each.state == running and each.queue == self._queue for each in page.contact_lists):
                return True
            token = page.next_page_token
            if not token:
                break
        return False

    async def next(self, count: int) -> Sequence[Person]:
        request = outbound_pb2.NextContactsRequest(
            holder=self._holder, max_contacts=count, queue=self._queue, lease_seconds=LEASE_SECONDS
        )
        page = await asked(self._peers.lists.NextContacts(request, **self._peers.how()))
        return [
            Person(contact=c.name, number=c.number, attempt=c.attempt, zone=c.time_zone)
            for c in page.contacts
        ]

    async def give_back(self, contacts: Sequence[str]) -> None:
        request = outbound_pb2.ReturnContactsRequest(holder=self._holder, contacts=contacts)
        await asked(self._peers.lists.ReturnContacts(request, **self._peers.how()))


class GrpcCall:
    """A call's stream, read to its end. To withdraw a call its stream is left: routing then ends an offer
    that nobody has accepted, and leaves a conversation alone; which of both it was is asked afterwards.
    """

    def __init__(self, peers: Peers, request: call_pb2.CallRequest) -> None:
        self.call_id = request.call_id
        self._peers = peers
        self._leaving = False
        self._answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        wanted = routing_pb2.RouteCallRequest(call=request)
        self._stream = peers.routing.RouteCall(wanted, **peers.how(None))
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        connected = False
        try:
            async for event in self._stream:
                kind = event.WhichOneof("event")
                if kind == "connected":
                    connected = True
                    self._settle(True)
                elif kind == "ended" or (kind == "offer_ended" and not connected):
                    # The agent did not want it: nobody else is to have it either.
                    break
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            log.info("outbound_stream_ended", call=self.call_id, error=type(error).__name__)
        finally:
            self._stream.cancel()
            if not self._leaving:
                self._settle(connected)

    def _settle(self, answered: bool) -> None:
        if not self._answered.done():
            self._answered.set_result(answered)

    async def wait_answered(self) -> bool:
        try:
            async with asyncio.timeout(2 * OFFER_SECONDS):
                return await asyncio.shield(self._answered)
        except TimeoutError:
            self._stream.cancel()
            return False

    async def wait_ended(self) -> None:
        await asyncio.shield(self._reading)

    async def withdraw(self) -> None:
        """Raises Unavailable when nobody says what became of it; ask again then."""
        self._leaving = True
        self._stream.cancel()
        for _ in range(LEFT_LOOKS_MAX):
            if self._answered.done():
                return
            asking = routing_pb2.GetCallRequest(name=f"calls/{self.call_id}")
            call = await asked(self._peers.routing.GetCall(asking, **self._peers.how()))
            if call.state == call_pb2.CALL_STATE_CONNECTED:
                self._settle(True)
            elif call.detached or call.state == call_pb2.CALL_STATE_ENDED:
                self._settle(False)
                request = routing_pb2.HangUpRequest(call_id=self.call_id, attempt=1)
                await asked(self._peers.routing.HangUp(request, **self._peers.how()))
            else:
                await asyncio.sleep(LEFT_LOOK_SECONDS)
        raise Unavailable(why="the call does not say what became of it", retry_seconds=LOOK_SECONDS)


class GrpcCalls:
    """Outbound calls of one queue."""

    def __init__(self, peers: Peers, outbound: str, holder: str) -> None:
        self._peers, self._queue, self._holder = peers, f"queues/{outbound}", holder

    async def begin(self, person: Person, agent: str) -> Call:
        request = call_pb2.CallRequest(
            call_id=new_id("out-"),
            caller_number=person.number,
            channel=common_pb2.CHANNEL_VOICE,
            queue=self._queue,
            priority=PRIORITY,
            attempt=1,
            preferred_agent=f"agents/{agent}",
            preferred_agent_timeout=Duration(seconds=OFFER_SECONDS),
            attributes=attributes_of(person, self._holder),
            auto_confirm=True,
        )
        return GrpcCall(self._peers, request)


class Outlooks:
    """The next minutes by planning's forecast and the reports, asked for again now and then."""

    def __init__(self, peers: Peers, region: str, inbound: str) -> None:
        self._peers, self._region, self._inbound = peers, region, inbound
        self._rows: Mapping[int, float] = {}
        self.nowcast = Nowcast(USUAL, self._rate)

    def _rate(self, ms: int) -> float | None:
        return self._rows.get(ms - ms % SLOT_MS)

    async def run(self, now_ms: Any) -> None:
        """Keeps it new, until cancelled; what cannot be asked stays as it was."""
        while True:
            wait = FORECAST_SECONDS
            try:
                await self.refresh(now_ms())
            except CallmeshError as error:
                log.info("forecast_not_renewed", error=error.message)
                wait = FORECAST_AGAIN_SECONDS
            await asyncio.sleep(wait)

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


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dialler", description="Outbound calls between inbound ones.")
    parser.add_argument("--region", required=True, help="region whose agents call")
    parser.add_argument("--inbound", required=True, help="queue whose service level is kept")
    parser.add_argument("--outbound", required=True, help="queue of the outbound calls and of the lists")
    parser.add_argument("--routing", required=True, help="a router, host:port")
    parser.add_argument("--marketing", required=True, help="a marketing server, host:port")
    parser.add_argument("--token-file", default="", help="file with a bearer token, renewed by others")
    parser.add_argument("--share", type=float, default=BlendingRules().share, help="share of blended agents")
    parser.add_argument("--stint-seconds", type=int, default=300, help="shortest time in outbound")
    parser.add_argument("--price", type=float, default=BlendingRules().price, help="late calls an hour of it")
    parser.add_argument("--answer-ratio", type=float, default=0.3, help="share of contacts who answer")
    parser.add_argument(
        "--talk-seconds", type=float, default=70.0, help="mean conversation and work after it"
    )
    parser.add_argument("--dial-seconds", type=float, default=25.0, help="mean time until somebody answers")
    parser.add_argument("--from-hour", type=int, default=8, help="calls begin from this hour, where they go")
    parser.add_argument("--until-hour", type=int, default=21, help="calls begin before this hour")
    parser.add_argument("--calls-a-day", type=int, default=3, help="calls to one number in 24 hours, at most")
    return parser.parse_args(argv)


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT. Raises InvalidArgument for an option out of range."""
    if not 1 <= options.calls_a_day <= 20:
        raise InvalidArgument(field="calls_a_day", why=f"must be 1 to 20, got {options.calls_a_day}")
    windows = (((options.from_hour * 60, options.until_hour * 60),),) * 7
    hours = CallingHours(legal=windows)
    rules = BlendingRules(share=options.share, stint_min_ms=options.stint_seconds * 1000, price=options.price)
    like = Contacts(
        answer_ratio=options.answer_ratio,
        dial_seconds=options.dial_seconds,
        talk_seconds=options.talk_seconds,
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    dialer = Dialer(token=TokenFile(options.token_file))
    holder = f"dialler-{options.region}-{os.getpid()}"
    peers = Peers(dialer, options.routing, options.marketing)
    outlooks = Outlooks(peers, options.region, options.inbound)
    clock = SystemClock()
    renewing = asyncio.create_task(outlooks.run(clock.now_ms))
    dialler = Dialler(
        floor=GrpcFloor(peers, options.region, options.inbound),
        lists=GrpcLists(peers, options.outbound, holder),
        calls=GrpcCalls(peers, options.outbound, holder),
        policy=ForecastBlending(rules=rules, contacts=like),
        outlook=outlooks.nowcast,
        hours=hours,
        clock=clock,
        calls_a_day_max=options.calls_a_day,
    )
    try:
        await dialler.run(ended)
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await dialer.close()


def main() -> int:
    """Returns the process's exit status: 2 for an option that is none."""
    options = arguments_of(sys.argv[1:])
    try:
        asyncio.run(serve(options))
    except InvalidArgument as error:
        print(error.message, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
