"""ExplainRoute: why a live, past or hypothetical call goes where it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container

import structlog
from pymongo.errors import PyMongoError

from callmesh.routing.v1 import call_pb2, routing_pb2
from chassis.clock import Clock
from chassis.errors import CallmeshError, InvalidArgument, Unavailable
from chassis.ids import parse_name, resource_name
from routing import convert, model
from routing.callers import REPEAT_WINDOW_MS, STRANGER, Profiles, points
from routing.committed import Committed
from routing.errors import CallNotFound, DirectoryUnread, QueueNotFound, RegionNotFound, error_of
from routing.explain import CANDIDATES_MAX
from routing.front import Front
from routing.geo import Located
from routing.model import BEFORE_CONNECTION, AskExplain, CallFacts, Explanation
from routing.placement import Candidate, Placement
from routing.regions import Regions, place_of, ties_of
from routing.replay import PastDecision

#: A replay may take this long, real seconds; never longer than the request's deadline.
REPLAY_SECONDS_MAX = 30.0
#: Kept for the answer's way back, real seconds.
ANSWER_SECONDS = 0.2
#: Where the points come from that the edge gave, or a supervisor.
REQUEST = "REQUEST"
#: Name of a hypothetical call that has none.
HYPOTHETICAL = "hypothetical"

log = structlog.get_logger(__name__)

#: (shard, call id, around ms, seconds) -> decision: blocking, run in a thread.
LookBack = Callable[[str, str, int, float], PastDecision | None]
#: (agent, regions to try) -> the same regions, the agent's first where that agent can be waited for.
AgentFirst = Callable[[str, list[str]], Awaitable[list[str]]]


class Explainer:
    """One a router. Its methods belong to one event loop."""

    def __init__(
        self,
        *,
        front: Front,
        regions: Regions,
        queues: dict[str, model.QueueConfig],
        skills: Container[str],
        shards: frozenset[str],
        look_back: LookBack,
        clock: Clock,
        profiles: Profiles,
        agent_first: AgentFirst,
        repeat_window_ms: int = REPEAT_WINDOW_MS,
    ) -> None:
        """`queues` and `skills` are the live directory of queues and of skills' ids, kept current by its
        owner; `profiles`, `agent_first` and `repeat_window_ms` are those that calls are placed with.
        """
        self._front = front
        self._regions = regions
        self._queues = queues
        self._skills = skills
        self._shards = shards
        self._look_back = look_back
        self._clock = clock
        self._profiles = profiles
        self._agent_first = agent_first
        self._repeat_window_ms = repeat_window_ms
        #: One replay at a time: it shares the process with routing.
        self._replaying = asyncio.Semaphore(1)

    async def explain(
        self, request: routing_pb2.ExplainRouteRequest, remaining: float
    ) -> routing_pb2.ExplainRouteResponse:
        """Raises InvalidArgument, CallNotFound, JournalPruned, SearchTooLong, Unavailable's kinds."""
        match request.WhichOneof("subject"):
            case "call":
                return await self._hypothetical(request.call)
            case "name":
                return await self._known(request, remaining)
        raise InvalidArgument(field="name", why="or `call` must be set")

    # --- hypothetical ---

    async def _hypothetical(self, asked: call_pb2.CallRequest) -> routing_pb2.ExplainRouteResponse:
        request = call_pb2.CallRequest()
        request.CopyFrom(asked)
        request.call_id = request.call_id or HYPOTHETICAL
        queue = convert.check_call(request)
        config = self._queues.get(queue)
        if config is None:
            if not self._regions.configured:
                raise DirectoryUnread(retry_seconds=0.5)
            raise QueueNotFound(resource=request.queue)
        located = place_of(request)
        number = located.e164 if located is not None else ""
        known = await self._profiles.caller(number) if number else STRANGER
        ranked = self._regions.rank(request, located, queue, ties_of(known))
        since_ms = self._clock.now_ms() - self._repeat_window_ms
        facts = convert.call_facts(
            request,
            queue=queue,
            number=number,
            home_region=ranked.home,
            extra=points(known, request.call_id, since_ms, config.repeat_points),
        )
        convert.check_skills("call.skills", request.skills, self._skills)
        response = _response(located, ranked, ranked.home, facts)
        response.decision_time.CopyFrom(_stamp(self._clock.now_ms()))
        regions = list(ranked.regions)
        if not regions:
            response.summary = f"No region takes it: {ranked.summary}."
            return response
        why = ranked.summary
        if facts.preferred_agent:
            regions = await self._agent_first(facts.preferred_agent, regions)
            if regions[0] != ranked.regions[0]:
                why = f"the agent asked for, {facts.preferred_agent}, is logged in at {regions[0]}"
        committed = await self._ask(regions[0], AskExplain(facts=facts, limit=CANDIDATES_MAX))
        assert committed.answer.explanation is not None
        _add(response, committed.answer.explanation, regions[0], committed.now_ms)
        response.summary = f"{_sentence(why)} {response.summary}"
        return response

    async def _ask(self, region: str, question: AskExplain) -> Committed:
        committed = await self._front.shards.ask(region, question)
        if committed.answer.refusal is not None:
            queue = question.facts.queue if question.facts is not None else ""
            raise error_of(committed.answer.refusal, question.call_id, queue)
        return committed

    # --- live and past ---

    async def _known(
        self, request: routing_pb2.ExplainRouteRequest, remaining: float
    ) -> routing_pb2.ExplainRouteResponse:
        call_id = parse_name("name", "calls", request.name)
        region = parse_name("region", "regions", request.region) if request.region else ""
        if region and region not in self._shards:
            raise RegionNotFound(resource=request.region)
        around_ms = (
            convert.moment_ms("around_time", request.around_time) if request.HasField("around_time") else 0
        )
        try:
            live = await self._front.find_call(call_id, region)
        except CallNotFound:
            return await self._past(
                call_id, [region] if region else sorted(self._shards), around_ms, remaining
            )
        view = live.answer.call
        assert view is not None
        if view.state not in BEFORE_CONNECTION:
            # It is decided: what led there is in the journal.
            around_ms = around_ms or view.connected_ms or view.ended_ms
            try:
                return await self._past(call_id, [live.shard], around_ms, remaining)
            except CallmeshError as error:
                log.info("decision_not_replayed", call=call_id, error=error.reason)
        committed = await self._ask(live.shard, AskExplain(call_id=call_id, limit=CANDIDATES_MAX))
        assert committed.answer.explanation is not None
        response = await self._placed(view.facts)
        _add(response, committed.answer.explanation, live.shard, committed.now_ms)
        return response

    async def _past(
        self, call_id: str, shards: list[str], around_ms: int, remaining: float
    ) -> routing_pb2.ExplainRouteResponse:
        seconds = max(0.5, min(REPLAY_SECONDS_MAX, remaining - ANSWER_SECONDS))
        give_up = self._clock.monotonic() + seconds
        decisions: list[PastDecision] = []
        async with self._replaying:
            for shard in shards:
                left = max(0.1, give_up - self._clock.monotonic())
                try:
                    found = await asyncio.to_thread(self._look_back, shard, call_id, around_ms, left)
                except PyMongoError as error:
                    raise Unavailable(why="the journal cannot be read just now", retry_seconds=1.0) from error
                decisions += [found] if found is not None else []
        if not decisions:
            raise CallNotFound(resource=resource_name("calls", call_id))
        last = max(decisions, key=lambda d: (d.call.attempt, d.call.move, d.at_ms))
        response = await self._placed(last.call.facts)
        _add(response, last.explanation, last.shard, last.at_ms)
        response.replayed = True
        if last.agent:
            response.offered_agent = resource_name("agents", last.agent)
            response.summary = f"Was offered to {last.agent}. Just before: {response.summary}"
        else:
            response.summary = f"Was never offered. Just before it ended: {response.summary}"
        return response

    async def _placed(self, facts: CallFacts) -> routing_pb2.ExplainRouteResponse:
        """Where the call's number is, and how the regions stand now for such a call."""
        request = call_pb2.CallRequest(
            call_id=facts.call_id, caller_number=facts.caller_number, language=facts.language
        )
        located = place_of(request) if facts.caller_number else None
        number = located.e164 if located is not None else ""
        known = await self._profiles.caller(number) if number else STRANGER
        ranked = self._regions.rank(request, located, facts.queue, ties_of(known))
        return _response(located, ranked, facts.home_region, facts)


def _response(
    located: Located | None, ranked: Placement, home: str, facts: CallFacts
) -> routing_pb2.ExplainRouteResponse:
    return routing_pb2.ExplainRouteResponse(
        place=_place(located),
        regions=[_region(candidate) for candidate in ranked.candidates],
        home_region=resource_name("regions", home) if home else "",
        priority_parts=_parts(facts),
    )


def _parts(facts: CallFacts) -> dict[str, int]:
    """The points of a call's priority by where they come from; what the limits cut off is the edge's."""
    extra = dict(facts.priority_parts)
    return {REQUEST: facts.priority - sum(extra.values()), **extra}


def _add(
    response: routing_pb2.ExplainRouteResponse, explanation: Explanation, region: str, at_ms: int
) -> None:
    """What a shard says of its agents."""
    response.region = resource_name("regions", region)
    response.step = explanation.step
    response.summary = explanation.summary
    response.decision_time.CopyFrom(_stamp(at_ms))
    for candidate in explanation.agents:
        response.agents.add(
            agent=resource_name("agents", candidate.agent),
            skipped_reason=candidate.skipped_reason,
            rank=candidate.rank,
        )


def _stamp(ms: int) -> convert.Timestamp:
    return convert.timestamp(ms) or convert.Timestamp()


def _place(located: Located | None) -> str:
    """ "CN/广东/深圳 (CITY, by number)"."""
    if located is None or not located.area:
        return "unknown"
    return f"{located.area} ({located.precision.value}, by {located.source.value.lower()})"


def _region(candidate: Candidate) -> routing_pb2.ExplainRouteResponse.RegionCandidate:
    return routing_pb2.ExplainRouteResponse.RegionCandidate(
        region=resource_name("regions", candidate.region),
        distance_km=candidate.distance_km if candidate.distance_km is not None else -1.0,
        cost=candidate.cost_seconds,
        skipped_reason=candidate.skipped.value if candidate.skipped is not None else "",
        cost_parts=dict(candidate.cost_parts),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
