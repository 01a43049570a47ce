"""Use cases of supervision that look at shards or act on them."""

from __future__ import annotations

import asyncio
import datetime as dt
import zoneinfo
from collections.abc import AsyncGenerator, Awaitable, Callable
from operator import itemgetter
from typing import Any, Protocol

import msgspec
from pymongo.errors import PyMongoError

from callmesh.routing.v1 import agent_pb2
from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.clock import Clock, to_ms
from chassis.errors import CallmeshError, InvalidArgument, ResourceExhausted, Unavailable
from chassis.ids import check_id, parse_name, resource_name
from chassis.pagination import Page
from routing import convert, model
from routing import supervision_convert as words
from routing.acts import acting, checked_reason
from routing.audit import Act
from routing.audit_store import ActQuery, AuditReader
from routing.committed import Committed
from routing.errors import AgentNotFound, RegionNotFound, error_of
from routing.front import Front
from routing.peers import PeerTable
from routing.reports import AGENT, QUEUE, SLOT_MS
from routing.reports_store import ReportQuery, ReportReader

#: Watchers of one router.
WATCHERS_MAX = 200
#: Shortest, default and longest interval of a watcher, milliseconds.
INTERVAL_MS_MIN, INTERVAL_MS_DEFAULT, INTERVAL_MS_MAX = 1_000, 1_000, 60_000
#: Figures younger than this serve another watcher too, real seconds.
SHARED_SECONDS = 0.9
#: A region that has not answered after this is told as down, real seconds.
ANSWER_SECONDS = 2.0
#: Longest span of one report list, days.
REPORT_DAYS_MAX = 400
_DAY_MS = 86_400_000


class AgentDirectory(Protocol):
    """Where agents belong."""

    async def region_of(self, agent: str) -> str | None:
        """The agent's region, None for an unknown agent."""


class ReportsAway(Unavailable):
    """Reports cannot be read just now; try again."""

    reason = "REPORTS_UNAVAILABLE"


class TooManyWatchers(ResourceExhausted):
    """This router serves as many watchers as it can; try another one."""

    reason = "TOO_MANY_WATCHERS"


class SupervisionHandlers:
    """One a router. Its methods belong to one event loop."""

    def __init__(
        self,
        *,
        front: Front,
        agents: AgentDirectory,
        peers: PeerTable,
        shards: frozenset[str],
        zone_of: Callable[[str], str],
        reports: ReportReader,
        audit: AuditReader,
        clock: Clock,
    ) -> None:
        """`zone_of(region)` is the IANA zone whose midnight a region's day begins at; empty for UTC."""
        self._front = front
        self._agents = agents
        self._peers = peers
        self._shards = shards
        self._zone_of = zone_of
        self._reports = reports
        self._audit = audit
        self._clock = clock
        self._asked: dict[tuple[str, bool], tuple[float, asyncio.Task[pb.Stats]]] = {}
        self._watchers = 0

    # --- live figures ---

    async def get_stats(self, request: pb.GetStatsRequest) -> pb.Stats:
        """One region now. Raises Unavailable's kinds when nobody leads it."""
        region = self._region("region", request.region)
        if not request.agents_after:
            return await self._stats(region, request.with_agents)
        after = parse_name("agents_after", "agents", request.agents_after)
        return await self._ask_stats(region, model.AskStats(agents=request.with_agents, after=after))

    def _region(self, field: str, name: str) -> str:
        region = parse_name(field, "regions", name)
        if region not in self._shards:
            raise RegionNotFound(resource=name)
        return region

    async def _stats(self, region: str, agents: bool) -> pb.Stats:
        """The region's figures; those who ask at the same time share one question."""
        now = self._clock.monotonic()
        known = self._asked.get((region, agents))
        if known is None or now - known[0] >= SHARED_SECONDS:
            task = asyncio.create_task(self._ask_stats(region, model.AskStats(agents=agents)))
            known = self._asked[(region, agents)] = (now, task)
        # Whoever goes away leaves the answer to the others.
        return await asyncio.shield(known[1])

    async def _ask_stats(self, region: str, question: model.AskStats) -> pb.Stats:
        committed = await self._front.shards.ask(region, question, ANSWER_SECONDS)
        stats = committed.answer.stats
        assert stats is not None
        since_ms = self._day_begins_ms(region, stats.now_ms)
        try:
            day, counted_ms = await self._reports.day(region, since_ms)
        except PyMongoError:
            # Live figures need no reports; `counted_time` then says that nothing is counted.
            day, counted_ms = {}, 0
        message = words.stats_message(stats, region, day, counted_ms if counted_ms >= since_ms else 0)
        message.epoch, message.sequence = committed.epoch, committed.sequence
        heard = self._peers.state(region)
        message.leader = heard.router if heard is not None and heard.epoch == committed.epoch else ""
        return message

    def _day_begins_ms(self, region: str, now_ms: int) -> int:
        zone = zoneinfo.ZoneInfo(self._zone_of(region) or "UTC")
        local = dt.datetime.fromtimestamp(now_ms / 1000, zone)
        # The first one, where the clock is put back over midnight.
        midnight = to_ms(local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0))
        # Rows begin at half-hours of UTC: where a zone's midnight is none, the day begins a little later.
        return midnight + -midnight % SLOT_MS

    async def watch_stats(self, request: pb.WatchStatsRequest) -> AsyncGenerator[pb.Stats, None]:
        """Figures of one region, or of each, every interval. A region that does not answer is told as
        DOWN.
        """
        regions = [self._region("region", request.region)] if request.region else sorted(self._shards)
        interval_ms = convert.span_ms(
            "interval", request.interval, maximum_ms=INTERVAL_MS_MAX, default_ms=INTERVAL_MS_DEFAULT
        )
        if interval_ms < INTERVAL_MS_MIN:
            raise InvalidArgument(field="interval", why=f"must be at least {INTERVAL_MS_MIN / 1000:g} s")
        if self._watchers >= WATCHERS_MAX:
            raise TooManyWatchers(subject="watchers", limit=f"at most {WATCHERS_MAX}", retry_seconds=5.0)
        self._watchers += 1
        try:
            while True:
                began = self._clock.monotonic()
                for message in await asyncio.gather(*(self._told(r, request.with_agents) for r in regions)):
                    yield message
                await asyncio.sleep(max(0.0, began + interval_ms / 1000 - self._clock.monotonic()))
        finally:
            self._watchers -= 1

    async def _told(self, region: str, agents: bool) -> pb.Stats:
        try:
            return await self._stats(region, agents)
        except CallmeshError:
            return words.down_message(region, self._clock.now_ms())

    # --- acts ---

    async def log_out_agent(self, request: pb.LogOutAgentRequest) -> agent_pb2.AgentStatus:
        """At once with `interrupt`, else when what the agent holds is done."""
        command = model.ForceLogOut(
            agent=parse_name("name", "agents", request.name), interrupt=request.interrupt
        )
        details = {"interrupt": "true"} if request.interrupt else {}
        return await self._act_on_agent(Act.LOG_OUT_AGENT, command, request.reason, details)

    async def pause_agent(self, request: pb.PauseAgentRequest) -> agent_pb2.AgentStatus:
        """Pauses, or ends the pause; the reason is shown to the agent."""
        command = model.PauseAgent(
            agent=parse_name("name", "agents", request.name),
            paused=request.paused,
            reason=convert.text("reason", request.reason, 64),
        )
        details = {"paused": str(request.paused).lower()}
        return await self._act_on_agent(Act.PAUSE_AGENT, command, request.reason, details)

    async def _act_on_agent(
        self, act: Act, command: model.ForceLogOut | model.PauseAgent, reason: str, details: dict[str, str]
    ) -> agent_pb2.AgentStatus:
        """Does it where the agent is logged in, recorded once; else in the region that the agent is of."""
        checked_reason(reason)
        agent = command.agent
        resource = resource_name("agents", agent)
        home = await self._agents.region_of(agent) or ""
        seats = await self._front.desks.seats_of(agent, home)
        regions = [seat.shard for seat in seats] or ([home] if home in self._shards else [])
        if not regions:
            raise AgentNotFound(resource=resource)
        async with acting(self._front, regions[0], act, resource, reason=reason, details=details):
            done = [await self._do_to_agent(region, command) for region in regions]
        # Whoever belongs elsewhere leaves a shard's memory together with what was held there.
        view = done[0] or msgspec.structs.replace(
            _seen(seats[0]), state=model.AgentState.OFFLINE, calls=(), offers=()
        )
        return convert.status_message(view, regions[0])

    async def _do_to_agent(
        self, region: str, command: model.ForceLogOut | model.PauseAgent
    ) -> model.AgentView | None:
        """The agent as it is then; None for one who has left the shard."""
        answer = (await self._front.shards.ask(region, command)).answer
        if answer.refusal is not None:
            raise error_of(answer.refusal, agent=command.agent, command=command)
        return answer.agent

    async def monitor_call(self, request: pb.MonitorCallRequest) -> pb.MonitorCallResponse:
        """Tells the edge that holds the conversation's stream."""
        call_id = parse_name("name", "calls", request.name)
        mode = words.MONITOR_MODES.get(request.mode)
        if mode is None:
            raise InvalidArgument(field="mode", why="must be LISTEN, WHISPER, BARGE or STOP")
        address = convert.text(
            "supervisor_address",
            request.supervisor_address,
            255,
            required=mode is not model.MonitorMode.STOP,
        )
        reason = checked_reason(request.reason)
        shard = (await self._front.find_call(call_id)).shard
        command = model.MonitorCall(call_id=call_id, mode=mode, address=address)
        details = {"mode": mode.value, "supervisor_address": address}
        async with acting(self._front, shard, Act.MONITOR_CALL, request.name, reason=reason, details=details):
            committed = await self._front.shards.ask(shard, command)
            if committed.answer.refusal is not None:
                raise error_of(committed.answer.refusal, call_id, command=command)
        assert committed.answer.call is not None
        return pb.MonitorCallResponse(call=convert.call_message(committed.answer.call, shard))

    # --- lists ---

    async def list_interval_reports(
        self, request: pb.ListIntervalReportsRequest
    ) -> pb.ListIntervalReportsResponse:
        """Half-hours by time, region and subject."""
        from_ms, to_ms_ = words.interval_ms("interval", request.interval)
        if not from_ms or not to_ms_:
            missing = "start_time" if not from_ms else "end_time"
            raise InvalidArgument(field=f"interval.{missing}", why="must be set")
        if to_ms_ - from_ms > REPORT_DAYS_MAX * _DAY_MS:
            raise InvalidArgument(field="interval", why=f"must be at most {REPORT_DAYS_MAX} days")
        shard = self._region("region", request.region) if request.region else ""
        fingerprint = f"{shard}|{from_ms}|{to_ms_}|{request.by_agent}"
        page = Page.parse(request.page_size, request.page_token, fingerprint=fingerprint)
        query = ReportQuery(
            kind=AGENT if request.by_agent else QUEUE,
            from_ms=from_ms,
            to_ms=to_ms_,
            shard=shard,
            after=page.key(int, str, str),
            limit=page.limit + 1,
        )
        found = await _read(self._reports.page(query))
        shown, token = page.cut(found, lambda each: (each[1].start_ms, each[0], each[1].subject))
        return pb.ListIntervalReportsResponse(
            reports=[words.report_message(row, region) for region, row in shown],
            next_page_token=token,
        )

    async def list_acts(self, request: pb.ListActsRequest) -> pb.ListActsResponse:
        """The audit log, newest first."""
        from_ms, to_ms_ = words.interval_ms("interval", request.interval)
        actor = convert.text("actor", request.actor, 255)
        resource = request.resource
        if resource:
            check_id("resource", resource.rpartition("/")[2], 255)
            resource = convert.text("resource", resource, 300)
        fingerprint = f"{from_ms}|{to_ms_}|{actor}|{resource}"
        page = Page.parse(request.page_size, request.page_token, fingerprint=fingerprint)
        query = ActQuery(
            from_ms=from_ms,
            to_ms=to_ms_,
            actor=actor,
            resource=resource,
            after=page.key(int, str),
            limit=page.limit + 1,
        )
        shown, token = page.cut(await _read(self._audit.page(query)), itemgetter(0))
        return pb.ListActsResponse(acts=[act for _, act in shown], next_page_token=token)


def _seen(committed: Committed) -> model.AgentView:
    assert committed.answer.agent is not None
    return committed.answer.agent


async def _read(reading: Awaitable[list[Any]]) -> list[Any]:
    try:
        return await reading
    except PyMongoError as error:
        raise ReportsAway(retry_seconds=1.0) from error
