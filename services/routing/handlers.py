"""Use cases of the client-facing services: check, place, ask, answer. Streams are the front's business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Iterator
from contextlib import aclosing, contextmanager
from operator import attrgetter
from typing import Protocol

import msgspec

from callmesh.routing.v1 import agent_pb2, call_pb2, routing_pb2
from chassis import callcontext
from chassis.clock import Clock, from_ms
from chassis.errors import CallmeshError, InvalidArgument, Unavailable
from chassis.ids import check_id, parse_name, resource_name
from chassis.pagination import Page
from routing import convert, model
from routing.acts import acting
from routing.announcements import announcement
from routing.audit import Act
from routing.callers import REPEAT_WINDOW_MS, STRANGER, Profiles, points
from routing.committed import Committed
from routing.desks import is_logged_in
from routing.errors import (
    AgentNotFound,
    Announced,
    DirectoryUnread,
    QueueClosed,
    QueueNotFound,
    RegionClosed,
    RegionNotFound,
    error_of,
)
from routing.front import Front
from routing.geo.numbers import parse_number
from routing.regions import Ranked, Regions, place_of, ties_of
from routing.streams import Caller, Desk, Moved, Update
from routing.tokens import Place, PlaceTokens

#: Longest and default wait of AssignCall, real seconds.
ASSIGN_SECONDS_MAX, ASSIGN_SECONDS_DEFAULT = 60.0, 5.0
#: Where a preferred agent sits is looked up for at most this long, real seconds.
PREFERRED_AGENT_SECONDS = 0.3
#: A margin for the answer's way back, real seconds.
ANSWER_SECONDS = 0.1


#: Regions of a call that no region is sought for.
NOWHERE = Ranked("", [])
#: States of a call by what AssignCall makes of them.
_UNDECIDED = frozenset({model.CallState.WAITING, model.CallState.OFFERED, model.CallState.OVERFLOWING})
_CONNECTED = frozenset({model.CallState.CONNECTED, model.CallState.ENDED})
_DECIDED = _CONNECTED | {model.CallState.ACCEPTED}


class AgentDirectory(Protocol):
    """Where agents belong."""

    async def region_of(self, agent: str) -> str | None:
        """The agent's region, None for an unknown agent."""


class Handlers:
    """Use cases; one a router."""

    def __init__(
        self,
        *,
        front: Front,
        regions: Regions,
        tokens: PlaceTokens,
        profiles: Profiles,
        agents: AgentDirectory,
        queues: dict[str, model.QueueConfig],
        skills: Container[str],
        shards: frozenset[str],
        clock: Clock,
        platform_now_ms: Callable[[], int] | None = None,
        repeat_window_ms: int = REPEAT_WINDOW_MS,
        note_blocked: Callable[[str, str], None] = lambda queue, reason: None,
    ) -> None:
        """`queues` and `skills` are the live directory of queues and of skills' ids, kept current by its
        owner; `shards` the ids of all shards; a caller who called within `repeat_window_ms` calls again.
        `platform_now_ms` is a time that all routers share, for place tokens that one makes and another
        reads, 0 while it is not known (a token is then as old as it says, whatever its age); this machine's
        clock when there is none. `note_blocked` is told queue and reason of calls that are refused before
        they wait.
        """
        self._front = front
        self._regions = regions
        self._tokens = tokens
        self._profiles = profiles
        self._agents = agents
        self._queues = queues
        self._skills = skills
        self._shards = shards
        self._clock = clock
        self._platform_now_ms = platform_now_ms or clock.now_ms
        self._repeat_window_ms = repeat_window_ms
        self._note_blocked = note_blocked

    # --- callers

    async def route_call(
        self, request: call_pb2.CallRequest
    ) -> AsyncGenerator[routing_pb2.RouteCallEvent, None]:
        """The caller's stream."""
        waits = False
        try:
            caller = await self._caller(request)
            async with aclosing(self._front.route(caller)) as updates:
                async for update in updates:
                    waits = True
                    if isinstance(update.what, Moved):
                        self._regions.note_placed(update.what.region, caller.facts.queue)
                    for event in convert.caller_events(update, self._token):
                        yield self._announced(event, caller.facts.queue, request.language)
        except Announced as error:
            raise self._refused(request, error, waits=waits) from error

    @contextmanager
    def _announcing(self, queue: str, language: str) -> Iterator[None]:
        """A shard that refuses a call does not know the words for its caller."""
        try:
            yield
        except Announced as error:
            raise error.saying(self._words(queue, language)) from error

    def _refused(self, request: call_pb2.CallRequest, error: Announced, *, waits: bool = False) -> Announced:
        """With the words for the caller; one that comes for the first time, and did not wait, is counted as
        blocked.
        """
        queue = request.queue.removeprefix("queues/")
        if not waits and request.attempt <= 1 and not request.place_token and queue in self._queues:
            self._note_blocked(queue, error.reason)
        return error.saying(self._words(queue, request.language))

    def _announced(
        self, event: routing_pb2.RouteCallEvent, queue: str, language: str
    ) -> routing_pb2.RouteCallEvent:
        """With the queue's words for a caller who is refused after a wait."""
        if event.HasField("ended") and event.ended.outcome == call_pb2.CALL_OUTCOME_REFUSED:
            event.ended.announcement = self._words(queue, language)
        return event

    def _words(self, queue: str, language: str) -> str:
        config = self._queues.get(queue)
        return announcement(config.announcements, language) if config is not None else ""

    def _known_queue(self, queue: str, *, kept: bool = False) -> model.QueueConfig:
        """As the directory has it. `kept`: of a call that was queued, which goes on in a queue, or after one,
        that was removed since: its shard knows.

        Raises:
            QueueNotFound: there is no such queue.
            DirectoryUnread: this router cannot tell yet, and a caller is not sent away for that.
        """
        config = self._queues.get(queue)
        if config is not None:
            return config
        if not self._regions.configured:
            raise DirectoryUnread(retry_seconds=0.5)
        if kept:
            return model.QueueConfig(id=queue)
        raise QueueNotFound(resource=f"queues/{queue}")

    def _closed(self, queue: str, language: str) -> QueueClosed:
        words = self._words(queue, language)
        return QueueClosed(subject=f"queues/{queue}", why="a supervisor closed it", announcement=words)

    def _check_open(self, queue: str, language: str) -> None:
        """Raises QueueClosed, or RegionClosed while no region is within its hours."""
        if self._queues[queue].closed:
            raise self._closed(queue, language)
        opens_ms = self._regions.closed_until_ms()
        if opens_ms is not None:
            raise RegionClosed(
                subject=f"queues/{queue}",
                why="every region is outside its business hours",
                announcement=self._words(queue, language),
                opens_time=from_ms(opens_ms).isoformat() if opens_ms else "",
            )

    async def assign_call(
        self, request: routing_pb2.AssignCallRequest, remaining: float
    ) -> routing_pb2.AssignCallResponse:
        """The decision alone: ACCEPTED, CONNECTED (auto_confirm), ENDED, or WAITING when nobody accepted in
        time.
        """
        wanted_ms = convert.span_ms(
            "max_wait",
            request.max_wait,
            maximum_ms=int(ASSIGN_SECONDS_MAX * 1000),
            default_ms=int(ASSIGN_SECONDS_DEFAULT * 1000),
        )
        seconds = max(ANSWER_SECONDS, remaining - ANSWER_SECONDS)
        give_up = asyncio.get_running_loop().time() + seconds
        try:
            caller = await self._caller(request.call)
            caller.give_up = give_up
            decided = _CONNECTED if caller.auto_confirm else _DECIDED
            update = await self._front.decide(
                caller, wanted_ms / 1000, lambda update: _state_of(update) in decided
            )
        except Announced as error:
            raise self._refused(request.call, error) from error
        return self._assigned(update)

    def _assigned(self, update: Update | None) -> routing_pb2.AssignCallResponse:
        view = None if update is None or isinstance(update.what, Moved) else update.what.call
        if update is None or view is None:
            raise Unavailable(why="the call could not be queued in time", retry_seconds=1.0)
        waiting = view.state in _UNDECIDED
        response = routing_pb2.AssignCallResponse(
            state=convert.CALL_STATES[model.WAITING if waiting else view.state],
            region=resource_name("regions", update.shard),
            place_token=self._token(view, update),
            shard=update.shard,
            epoch=update.epoch,
            sequence=update.sequence,
            durable=update.durable,
        )
        # In its place: a message made apart is written down and read again.
        version = response.version
        version.attempt, version.move = view.attempt, view.move
        if not waiting:
            response.offer_id, response.agent_address = view.offer_id, view.agent_address
            response.agent = resource_name("agents", view.agent) if view.agent else ""
        return response

    async def _caller(self, request: call_pb2.CallRequest) -> Caller:
        """A checked call with its place, its customer's priority and the regions to try."""
        queue = convert.check_call(request)
        place = self._place_kept(request)
        config = self._known_queue(queue, kept=place is not None)
        located = place_of(request)
        number = located.e164 if located is not None else ""
        if place is None and request.attempt <= 1:
            # Who waits already is served, whatever the hour.
            self._check_open(queue, request.language)
        known = await self._profiles.caller(number) if number else STRANGER
        # A removed queue has calls where they are and nowhere else.
        removed = queue not in self._queues
        ranked = NOWHERE if removed else self._regions.order(request, located, queue, ties_of(known))
        now_ms = self._clock.now_ms()
        since_ms = now_ms - self._repeat_window_ms
        facts = convert.call_facts(
            request,
            queue=queue,
            number=number,
            home_region=ranked.home,
            extra=points(known, request.call_id, since_ms, config.repeat_points),
            traceparent=_traceparent(),
        )
        if place is not None:
            facts = _with_credit(facts, place)
        elif request.attempt <= 1:
            # A call that was queued goes on with a skill that was deleted since.
            convert.check_skills("call.skills", request.skills, self._skills)
        waited_ms = self._waited_ms(place) if place is not None else 0
        agent_lost = request.reopen_reason == call_pb2.REOPEN_REASON_AGENT_LOST
        if place is not None and place.talks and agent_lost:
            # As after a transfer: the place counts what was before, and this wait begins now.
            facts = msgspec.structs.replace(facts, credit_span_ms=facts.credit_span_ms + waited_ms)
            waited_ms = 0
        kept = place if place is not None and self._regions.serves(place.shard, queue) else None
        regions = _tries(ranked, kept)
        here = [place.shard] if place is not None and place.shard in self._shards else []
        if facts.preferred_agent and place is None:
            regions = await self.agent_first(facts.preferred_agent, regions)
            now_ms = self._clock.now_ms()
        if regions:
            self._regions.note_placed(regions[0], queue)
        return Caller(
            facts=facts,
            attempt=request.attempt or 1,
            queued_ms=now_ms - waited_ms,
            agent_lost=agent_lost,
            auto_confirm=request.auto_confirm,
            regions=regions or here,
            talks=here[0] if here and _talks(request, place) else "",
            stale=list(here),
        )

    async def agent_first(self, agent: str, regions: list[str]) -> list[str]:
        """The regions to try, the preferred agent's first if that agent is there to be waited for."""
        try:
            async with asyncio.timeout(PREFERRED_AGENT_SECONDS):
                home = await self._agents.region_of(agent)
                if home is None or home not in regions or home == regions[0]:
                    return regions
                view = (await self._front.desks.agent_status(home, agent)).answer.agent
        except (CallmeshError, TimeoutError):
            # A wish, not a condition: the call goes where it would have gone.
            return regions
        if view is None or view.state in (model.AgentState.OFFLINE, model.AgentState.PAUSED):
            return regions
        return [home, *(region for region in regions if region != home)]

    def _place_kept(self, request: call_pb2.CallRequest) -> Place | None:
        if not request.place_token:
            return None
        return self._tokens.read(request.place_token, request.call_id, self._platform_now_ms())

    def _waited_ms(self, place: Place) -> int:
        return place.waited_span_ms + max(0, self._platform_now_ms() - place.made_ms)

    def _token(self, view: model.CallView, update: Update | Committed) -> str:
        now_ms = self._platform_now_ms() or self._clock.now_ms()
        if not update.durable:
            # Told from memory: no journal tells the time meanwhile.
            now_ms = max(now_ms, update.now_ms)
        return self._tokens.make(
            Place(
                call_id=view.facts.call_id,
                shard=update.shard,
                attempt=view.attempt,
                move=view.move,
                waited_span_ms=max(0, now_ms - view.queued_ms),
                made_ms=now_ms,
                priority=view.facts.priority,
                credit_span_ms=view.facts.credit_span_ms,
                talks=view.state is model.CallState.CONNECTED,
            )
        )

    async def confirm_call(
        self, request: routing_pb2.ConfirmCallRequest, remaining: float
    ) -> routing_pb2.ConfirmCallResponse:
        """The edge's consent; a committed yes or no."""
        command = model.ConfirmCall(
            call_id=check_id("call_id", request.call_id),
            offer_id=check_id("offer_id", request.offer_id, 200),
            attempt=convert.whole("version.attempt", request.version.attempt, 1, convert.ATTEMPT_MAX),
            move=convert.whole("version.move", request.version.move, 1, convert.INT64_MAX),
        )
        shard = self._known_shard("shard", request.shard)
        committed = await self._front.confirm(shard, command, remaining - ANSWER_SECONDS)
        refusal, view = committed.answer.refusal, committed.answer.call
        confirmed = refusal is None and view is not None
        return routing_pb2.ConfirmCallResponse(
            confirmed=confirmed,
            refusal="" if refusal is None else refusal.reason,
            agent=resource_name("agents", view.agent) if confirmed and view is not None else "",
            agent_address=view.agent_address if confirmed and view is not None else "",
            epoch=committed.epoch,
            sequence=committed.sequence,
            durable=committed.durable,
            place_token=self._token(view, committed) if confirmed and view is not None else "",
        )

    def _known_shard(self, field: str, shard: str, *, required: bool = True) -> str:
        if not shard and not required:
            return ""
        if check_id(field, shard, 63) not in self._shards:
            raise InvalidArgument(field=field, why=f"there is no shard {shard!r}")
        return shard

    async def hang_up(self, request: routing_pb2.HangUpRequest, remaining: float) -> call_pb2.Call:
        """The caller is gone."""
        call_id = check_id("call_id", request.call_id)
        convert.whole("attempt", request.attempt, 0, convert.ATTEMPT_MAX)
        shard = self._known_shard("shard", request.shard, required=False)
        committed = await self._front.hang_up(call_id, request.attempt, shard, remaining - ANSWER_SECONDS)
        return _call_of(committed, call_id)

    async def end_call(self, request: routing_pb2.EndCallRequest, remaining: float) -> call_pb2.Call:
        """The conversation is over."""
        command = model.EndCall(
            call_id=check_id("call_id", request.call_id),
            attempt=convert.whole("attempt", request.attempt, 0, convert.ATTEMPT_MAX),
            recording_uri=convert.text("recording_uri", request.recording_uri, 500),
        )
        shard = self._known_shard("shard", request.shard, required=False)
        committed = await self._front.end_call(command, shard, remaining - ANSWER_SECONDS)
        return _call_of(committed, request.call_id, command=command)

    async def get_call(self, request: routing_pb2.GetCallRequest) -> call_pb2.Call:
        """One call."""
        call_id = parse_name("name", "calls", request.name)
        return _call_of(await self._front.find_call(call_id), call_id)

    async def list_calls(self, request: routing_pb2.ListCallsRequest) -> routing_pb2.ListCallsResponse:
        """Live calls of a region."""
        region = parse_name("region", "regions", request.region)
        if region not in self._shards:
            raise RegionNotFound(resource=request.region)
        queue = parse_name("queue", "queues", request.queue) if request.queue else ""
        unknown = [s for s in request.states if s not in convert.CALL_STATES_BY_NUMBER]
        if unknown:
            raise InvalidArgument(
                field="states", why=f"has a state that this release does not know: {unknown[0]}"
            )
        fingerprint = f"{region}|{queue}|{sorted(request.states)}"
        page = Page.parse(request.page_size, request.page_token, fingerprint=fingerprint)
        question = model.AskCalls(
            queue=queue,
            states=tuple(convert.CALL_STATES_BY_NUMBER[s] for s in request.states),
            after=page.key(int, str) or (0, ""),
            limit=page.limit + 1,
        )
        committed = await self._front.shards.ask(region, question)
        if committed.answer.refusal is not None:
            raise error_of(committed.answer.refusal, queue=queue)
        # A leader of an older release does not say that there are more, and answers one too many.
        answer = committed.answer
        shown, token = page.cut(answer.calls, attrgetter("queued_ms", "facts.call_id"), more=answer.more)
        return routing_pb2.ListCallsResponse(
            calls=[convert.call_message(view, region) for view in shown],
            next_page_token=token,
            read_time=convert.timestamp(committed.now_ms),
        )

    async def reprioritize(self, request: routing_pb2.ReprioritizeCallRequest) -> call_pb2.Call:
        """A waiting call's priority."""
        call_id = parse_name("name", "calls", request.name)
        priority = convert.whole("priority", request.priority, -100, 100)
        shard = (await self._front.find_call(call_id)).shard
        command = model.Reprioritize(call_id=call_id, priority=priority)
        details = {"priority": str(priority)}
        async with acting(self._front, shard, Act.REPRIORITIZE_CALL, request.name, details=details):
            return _call_of(await self._front.shards.ask(shard, command), call_id, command=command)

    async def transfer_call(
        self, request: routing_pb2.TransferCallRequest, remaining: float
    ) -> call_pb2.Call:
        """A conversation goes on with another queue or agent."""
        call_id = parse_name("name", "calls", request.name)
        target = request.WhichOneof("target")
        if target is None:
            raise InvalidArgument(field="target", why="must be a queue or an agent")
        queue = parse_name("queue", "queues", request.queue) if target == "queue" else ""
        if queue:
            self._known_queue(queue)
        agent = parse_name("agent", "agents", request.agent) if target == "agent" else ""
        home = await self._region_of_agent(agent) if agent else ""
        found = await self._front.find_call(call_id)
        assert found.answer.call is not None
        shard = found.shard
        command = model.TransferCall(
            call_id=call_id,
            queue=queue,
            agent=agent,
            elsewhere=bool(agent) and home != shard,
            attributes=convert.context("attributes", request.attributes),
        )
        committed = await self._front.shards.ask(shard, command, remaining - ANSWER_SECONDS)
        facts = found.answer.call.facts
        with self._announcing(queue or facts.queue, facts.language):
            return _call_of(committed, call_id, queue or facts.queue, command)

    async def request_callback(
        self, request: routing_pb2.RequestCallbackRequest, remaining: float
    ) -> call_pb2.Call:
        """The caller hangs up and keeps the place."""
        call_id = parse_name("name", "calls", request.name)
        found = await self._front.find_call(call_id)
        assert found.answer.call is not None
        number = found.answer.call.facts.caller_number
        if request.number:
            number = parse_number(request.number, field="number").e164
        if not number:
            raise InvalidArgument(field="number", why="must be set: the caller's own number is withheld")
        command = model.RequestCallback(
            call_id=call_id,
            number=number,
            not_before_ms=convert.moment_ms("not_before_time", request.not_before_time)
            if request.HasField("not_before_time")
            else 0,
        )
        committed = await self._front.shards.ask(found.shard, command, remaining - ANSWER_SECONDS)
        facts = found.answer.call.facts
        with self._announcing(facts.queue, facts.language):
            return _call_of(committed, call_id, facts.queue, command)

    # --- agents

    async def desk(self, first: agent_pb2.AgentCommand) -> Desk:
        """The session that a stream's first command opens. Raises InvalidArgument, AgentNotFound."""
        if first.WhichOneof("kind") != "open":
            raise InvalidArgument(field="open", why="must be the first command of a stream")
        agent = parse_name("open.agent", "agents", first.open.agent)
        return convert.desk_of(first, await self._region_of_agent(agent))

    async def _region_of_agent(self, agent: str) -> str:
        region = await self._agents.region_of(agent)
        if region is None or region not in self._shards:
            raise AgentNotFound(resource=f"agents/{agent}")
        return region

    async def agent_status(self, request: agent_pb2.GetAgentStatusRequest) -> agent_pb2.AgentStatus:
        """An agent's live state, as the shard has it in which the agent is logged in."""
        agent = parse_name("name", "agents", request.name)
        home = await self._agents.region_of(agent) or ""
        said = (
            [await self._front.shards.ask(home, model.AskAgent(agent=agent))] if home in self._shards else []
        )
        if not any(is_logged_in(each.answer.agent) for each in said):
            said = await self._front.desks.seats_of(agent, home, elsewhere=bool(said)) or said
        if not said or said[0].answer.agent is None:
            raise AgentNotFound(resource=resource_name("agents", agent))
        return convert.status_message(said[0].answer.agent, said[0].shard)


def _traceparent() -> str:
    """The trace of the request being handled; empty without one."""
    call = callcontext.current()
    return (call.traceparent or "") if call is not None else ""


def _with_credit(facts: model.CallFacts, place: Place) -> model.CallFacts:
    """A call's facts with what its place has beside the time waited, wherever it is queued now."""
    facts = msgspec.structs.replace(facts, credit_span_ms=place.credit_span_ms)
    if place.priority is None or place.priority == facts.priority:
        return facts
    return msgspec.structs.replace(facts, priority=place.priority, priority_parts=())


def _talks(request: call_pb2.CallRequest, place: Place | None) -> bool:
    """Whether the call is in conversation for all that its edge knows."""
    broke_off = request.reopen_reason == call_pb2.REOPEN_REASON_AGENT_LOST
    return place is not None and place.talks and not broke_off


def _tries(ranked: Ranked, place: Place | None) -> list[str]:
    """Regions to try: the one that holds the place first, if it is eligible, so that the place itself is
    kept.
    """
    regions = list(ranked.regions)
    if place is not None and place.shard in regions:
        regions.remove(place.shard)
        regions.insert(0, place.shard)
    return regions


def _state_of(update: Update) -> model.CallState | None:
    """The call's state, None while it is on its way elsewhere: an entry that was moved is not the call's
    end.
    """
    what = update.what
    if isinstance(what, Moved) or what.call is None or what.call.outcome is model.MOVED:
        return None
    return what.call.state


def _call_of(
    committed: Committed, call_id: str, queue: str = "", command: model.Command | None = None
) -> call_pb2.Call:
    if committed.answer.refusal is not None:
        raise error_of(committed.answer.refusal, call_id, queue, command=command)
    assert committed.answer.call is not None
    return convert.call_message(committed.answer.call, committed.shard)
