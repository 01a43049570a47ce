"""A simulated edge: the PBX or SBC that holds one caller's line and asks routing where it goes.

The life of a call, by the contract of `routing.proto`:

  1. RouteCall at the router of the caller's own region; when that cannot be had, at the next nearest, with
     the attempt raised and the newest place token, after a bounded pause that honours RetryInfo.
  2. On ACCEPTED exactly that offer is confirmed, and the same confirmation repeated, at any router, until
     there is a committed yes or no. The one exception is an agent whose region's media is gone: nothing can
     be bridged there whatever the answer, so the edge opens the call again with the reason AGENT_LOST.
  3. On the yes, caller and agent are bridged: the only place where the edge's book says so.
  4. The conversation lasts as the day says, then EndCall, repeated until it is answered. If the agent's
     region is lost in between, the call is opened again for what was left of the conversation.
  5. A caller whose patience ends while waiting hangs up. A platform that then does not know an acknowledged
     call has lost it.

Everything is written into the ledger when it happens, by the edge's own clock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import call_pb2, routing_pb2, routing_pb2_grpc
from cli.demo.ledger import Entry, Fact, Ledger
from cli.demo.media import Media
from cli.demo.model import DayCall
from cli.demo.rpc import DEADLINE_SECONDS, Backoff, Channels, EventStream, StreamEnded, facts_of
from cli.demo.timing import ReplayClock

#: How long an edge goes on trying to have a call taken that nobody has acknowledged, real seconds.
GIVE_UP_SECONDS = 120.0
#: How long one request (confirm, hang up, end) is repeated before the edge gives it up, real seconds.
REPEAT_SECONDS_MAX = 60.0
#: A caller who hangs up at once still waits this long, in real seconds, for the first answer.
FIRST_ANSWER_SECONDS = 2.0
#: The agent's after-call work, as a share of the service time, and at most so many business seconds.
WRAP_UP_SHARE = 0.12
WRAP_UP_SECONDS_MAX = 20.0
#: A point of priority is worth `priority_credit` (30 s) of waiting: the bank put high-priority callers 90 s
#: ahead.
PRIORITY_POINTS = {0: 0, 1: 0, 2: 3}
#: Business seconds that a broken-off conversation goes on for at least, once taken up again.
RESUMED_SECONDS_MIN = 15.0


@dataclass(kw_only=True, slots=True)
class EdgeContext:
    """What all edges of a demo share."""

    #: Channels by region.
    channels: Channels
    #: For each region, all routers in the order in which an edge there prefers them.
    preference: dict[str, Sequence[str]]
    #: The business clock.
    clock: ReplayClock
    #: Where everything is written down.
    ledger: Ledger
    #: The voice path.
    media: Media
    #: `queues/{queue}` of a type of service.
    queue_of: Callable[[str], str]
    #: Put before each call's id, so that two demos on one stack do not meet.
    prefix: str
    #: Seeds the edges' jitter.
    seed: int
    #: Business seconds of service still due, by call id; the desktops read it too.
    service_due: dict[str, float] = field(default_factory=dict)


def talk_seconds(service_seconds: float) -> float:
    """The part of a service that is conversation; the rest is after-call work."""
    return service_seconds - min(service_seconds * WRAP_UP_SHARE, WRAP_UP_SECONDS_MAX)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reopen:
    """An attempt ended without the call being over."""

    #: Why it is opened again.
    reason: call_pb2.ReopenReason
    #: Real seconds to wait first.
    pause_seconds: float = 0.0
    #: What went wrong, for the book.
    why: str = ""


class _Over(Exception):
    """The call's life has ended and its book is closed."""


class Edge:
    """One caller's line."""

    def __init__(self, context: EdgeContext, call: DayCall) -> None:
        self._context = context
        self._call = call
        self.call_id = f"{context.prefix}{call.id}"
        self._rng = random.Random(f"{context.seed}:edge:{call.id}")
        self._backoff = Backoff(self._rng)
        self._attempt = 0
        self._token = ""
        self._shard = ""
        self._router = 0
        self._acknowledged = False
        self._patience_end = call.arrival_seconds + call.patience_seconds
        self._untaken_since = 0.0
        self._service_left = call.service_seconds

    async def run(self) -> None:
        """The whole life of the call; returns when it is over. Cancelled: the ledger says so."""
        clock = self._context.clock
        await clock.sleep_until(self._call.arrival_seconds)
        self._untaken_since = clock.monotonic()
        self._write(Fact.ASKED)
        again = _Reopen(reason=call_pb2.REOPEN_REASON_UNSPECIFIED)
        try:
            while True:
                again = await self._one_attempt(again)
                await self._pause(again.pause_seconds)
        except _Over:
            return
        except asyncio.CancelledError:
            self._write(Fact.STILL_WAITING, why="the demo was broken off")
            raise
        finally:
            self._context.media.unbridge(self.call_id)

    async def _one_attempt(self, again: _Reopen) -> _Reopen:
        """One RouteCall stream, from opening to end. Raises _Over when the call's life has ended."""
        self._attempt += 1
        if self._attempt > 1:
            self._write(Fact.REOPENED, why=again.why)
        stub = self._stub(self._region())
        stream = EventStream(stub.RouteCall(routing_pb2.RouteCallRequest(call=self._request(again.reason))))
        try:
            return await self._follow(stream)
        except StreamEnded as ended:
            return self._after_break(ended)
        finally:
            await stream.close()

    def _after_break(self, ended: StreamEnded) -> _Reopen:
        """What to do when the stream is over but not the call. Raises _Over for a final refusal."""
        self._router += 1
        pause = self._backoff.next_seconds() if self._router % len(self._preference()) == 0 else 0.0
        if ended.error is None:
            return _Reopen(
                reason=call_pb2.REOPEN_REASON_STREAM_LOST, pause_seconds=pause, why="the stream ended"
            )
        facts = facts_of(ended.error)
        if not facts.transient and facts.reason not in ("STALE_ATTEMPT", "INVALID_PLACE_TOKEN"):
            self._write(Fact.REFUSED, why=facts.reason)
            raise _Over
        if facts.reason == "INVALID_PLACE_TOKEN":
            self._token = ""
        if not self._acknowledged and self._waited_untaken() > GIVE_UP_SECONDS:
            self._write(Fact.GAVE_UP, why=facts.reason)
            raise _Over
        return _Reopen(
            reason=call_pb2.REOPEN_REASON_STREAM_LOST,
            pause_seconds=max(pause, facts.retry_seconds),
            why=" ".join(dict.fromkeys((facts.code.name, facts.reason))),
        )

    def _waited_untaken(self) -> float:
        return self._context.clock.monotonic() - self._untaken_since

    async def _pause(self, seconds: float) -> None:
        """Waits before the next try, but no longer than the caller does. Raises _Over when the caller hangs
        up.
        """
        patience = self._context.clock.real_until(self._patience_end)
        await asyncio.sleep(min(seconds, patience))
        if patience <= seconds:
            await self._hang_up()

    async def _follow(self, stream: EventStream) -> _Reopen:
        """Acts on the stream's events until the caller hangs up or the attempt is at its end."""
        opened = self._context.clock.monotonic()
        while True:
            timeout = self._context.clock.real_until(self._patience_end)
            if not self._acknowledged:
                waited = self._context.clock.monotonic() - opened
                timeout = max(timeout, FIRST_ANSWER_SECONDS - waited, 0.0)
            event = await stream.next(timeout)
            if event is None:
                await self._hang_up()
            again = await self._on_event(event, stream)
            if again is not None:
                return again

    async def _on_event(self, event: routing_pb2.RouteCallEvent, stream: EventStream) -> _Reopen | None:
        """One event of a waiting call; a value when this attempt is at its end."""
        self._shard = event.shard or self._shard
        kind = event.WhichOneof("event")
        if kind == "queued":
            self._on_queued(event.queued)
        elif kind == "moved":
            self._write(Fact.MOVED, region=_id(event.moved.region), why=event.moved.reason)
        elif kind == "accepted":
            return await self._on_accepted(event, stream)
        elif kind == "connected":
            # The answer to a confirmation was lost, and the stream brings it.
            return await self._converse(event.connected.agent, stream)
        elif kind == "ended":
            return self._on_ended(event.ended)
        return None

    def _on_queued(self, queued: routing_pb2.RouteCallEvent.Queued) -> None:
        self._token = queued.place_token or self._token
        self._backoff.reset()
        self._acknowledged = True
        self._write(Fact.QUEUED, region=_id(queued.region))

    def _on_ended(self, ended: routing_pb2.RouteCallEvent.Ended) -> _Reopen:
        """The platform ended a call whose caller is still on the line."""
        outcome = ended.outcome
        if outcome == call_pb2.CALL_OUTCOME_REFUSED:
            self._write(Fact.REFUSED, why=ended.reason)
            raise _Over
        if outcome == call_pb2.CALL_OUTCOME_MOVED:
            return _Reopen(reason=call_pb2.REOPEN_REASON_STREAM_LOST, why="moved without a word where to")
        if outcome == call_pb2.CALL_OUTCOME_INTERRUPTED:
            return _Reopen(reason=call_pb2.REOPEN_REASON_AGENT_LOST, why="interrupted before the answer")
        self._write(Fact.DROPPED, why=call_pb2.CallOutcome.Name(outcome))
        raise _Over

    # --- consent
    # ---------------------------------------------------------------------------------------------

    async def _on_accepted(self, event: routing_pb2.RouteCallEvent, stream: EventStream) -> _Reopen | None:
        """Confirms the offer; a value when the attempt is at its end, None to wait on after a refusal."""
        accepted = event.accepted
        request = routing_pb2.ConfirmCallRequest(
            call_id=self.call_id, offer_id=accepted.offer_id, version=event.version, shard=event.shard
        )
        region = self._context.media.region_of(_id(accepted.agent))
        answer, error = await self._tell(
            lambda stub: stub.ConfirmCall(request, timeout=DEADLINE_SECONDS),
            until=lambda: self._context.media.is_down(region),
        )
        if error or (answer is not None and not answer.confirmed):
            return None
        if answer is None:
            return _Reopen(reason=call_pb2.REOPEN_REASON_AGENT_LOST, why="no answer to the confirmation")
        return await self._converse(answer.agent or accepted.agent, stream)

    async def _repeat(
        self,
        request: Callable[[routing_pb2_grpc.RoutingServiceStub], Awaitable[Any]],
        *,
        until: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Repeats one request at this router and the others until it is answered.

        None when `until` became true or REPEAT_SECONDS_MAX passed. Raises grpc.RpcError for a final error.
        """
        backoff = Backoff(self._rng)
        began = self._context.clock.monotonic()
        offset = 0
        while self._context.clock.monotonic() - began < REPEAT_SECONDS_MAX and not until():
            try:
                return await request(self._stub(self._region(offset)))
            except grpc.RpcError as error:
                facts = facts_of(error)
                if not facts.transient:
                    raise
                offset += 1
                await asyncio.sleep(backoff.next_seconds(facts.retry_seconds))
        return None

    # --- conversation ---------------------------------------------------------------------------------------

    async def _converse(self, agent_name: str, stream: EventStream) -> _Reopen:
        """Bridges, talks, ends. Raises _Over at the orderly end; a value when the agent's region was lost."""
        context, agent = self._context, _id(agent_name)
        region = context.media.region_of(agent)
        context.service_due[self.call_id] = self._service_left
        broken = context.media.bridge(self.call_id, agent)
        self._write(Fact.BRIDGED, region=region, agent=agent)
        began = context.clock.business()
        whole = await self._talk(stream, broken, began + talk_seconds(self._service_left))
        context.media.unbridge(self.call_id)
        if whole:
            self._write(Fact.TALKED, region=region, agent=agent)
            await self._end_call(region)
            raise _Over
        self._write(Fact.BROKEN, region=region, agent=agent)
        talked = context.clock.business() - began
        self._service_left = max(self._service_left - talked, RESUMED_SECONDS_MIN)
        self._patience_end = context.clock.business() + max(self._call.patience_seconds, RESUMED_SECONDS_MIN)
        return _Reopen(reason=call_pb2.REOPEN_REASON_AGENT_LOST, why="the conversation broke off")

    async def _talk(self, stream: EventStream, broken: asyncio.Event, until: float) -> bool:
        """True when the conversation had its full length or the agent ended it, false when it broke off."""
        clock = self._context.clock
        breaking = asyncio.ensure_future(broken.wait())
        reading: asyncio.Task[Any] | None = stream.pending()
        try:
            while True:
                tasks = {breaking} | ({reading} if reading else set())
                done, _ = await asyncio.wait(
                    tasks, timeout=clock.real_until(until), return_when=asyncio.FIRST_COMPLETED
                )
                if breaking in done:
                    return False
                if not done:
                    return True
                try:
                    event = stream.take()
                except StreamEnded:
                    # Conversations do not hang on the stream: the media stands.
                    reading = None
                    continue
                if event.WhichOneof("event") == "ended":
                    return bool(event.ended.outcome != call_pb2.CALL_OUTCOME_INTERRUPTED)
                reading = stream.pending()
        finally:
            breaking.cancel()

    async def _end_call(self, region: str) -> None:
        """Tells the platform, as long as the agent's region stands: with it, its journal has to find out
        anyway.
        """
        request = routing_pb2.EndCallRequest(call_id=self.call_id, shard=self._shard, attempt=self._attempt)
        await self._tell(
            lambda stub: stub.EndCall(request, timeout=DEADLINE_SECONDS),
            until=lambda: self._context.media.is_down(region),
        )

    async def _tell(
        self,
        request: Callable[[routing_pb2_grpc.RoutingServiceStub], Awaitable[Any]],
        *,
        until: Callable[[], bool] = lambda: False,
    ) -> tuple[Any, str]:
        """Like _repeat, but a final error is an answer too: (answer, "") or (None, reason)."""
        try:
            return await self._repeat(request, until=until), ""
        except grpc.RpcError as error:
            return None, facts_of(error).reason

    # --- hanging up
    # ------------------------------------------------------------------------------------------

    async def _hang_up(self) -> None:
        """The caller's patience is at its end. Always raises _Over."""
        at, business = self._context.clock.monotonic(), self._context.clock.business()
        request = routing_pb2.HangUpRequest(call_id=self.call_id, attempt=self._attempt, shard=self._shard)
        _, why = await self._tell(lambda stub: stub.HangUp(request, timeout=DEADLINE_SECONDS))
        if self._acknowledged and why in ("CALL_NOT_FOUND", "NOT_FOUND"):
            self._write(Fact.DROPPED, why="the platform does not know this acknowledged call")
        else:
            self._write(Fact.HUNG_UP, why=why, at=at, business=business)
        raise _Over

    # --- small things
    # ----------------------------------------------------------------------------------------

    def _request(self, reason: call_pb2.ReopenReason) -> call_pb2.CallRequest:
        call = self._call
        return call_pb2.CallRequest(
            call_id=self.call_id,
            caller_number=call.number,
            channel=common_pb2.CHANNEL_VOICE,
            queue=self._context.queue_of(call.type),
            priority=PRIORITY_POINTS.get(call.priority, 0),
            language="zh-CN",
            attempt=self._attempt,
            place_token=self._token if self._attempt > 1 else "",
            reopen_reason=reason,
        )

    def _preference(self) -> Sequence[str]:
        return self._context.preference[self._call.home_region]

    def _region(self, offset: int = 0) -> str:
        regions = self._preference()
        return regions[(self._router + offset) % len(regions)]

    def _stub(self, region: str) -> routing_pb2_grpc.RoutingServiceStub:
        return routing_pb2_grpc.RoutingServiceStub(self._context.channels[region])

    def _write(
        self,
        fact: Fact,
        *,
        region: str = "",
        agent: str = "",
        why: str = "",
        at: float | None = None,
        business: float | None = None,
    ) -> None:
        clock = self._context.clock
        self._context.ledger.write(
            Entry(
                call=self.call_id,
                fact=fact,
                at=clock.monotonic() if at is None else at,
                business=clock.business() if business is None else business,
                region=region,
                agent=agent,
                attempt=self._attempt,
                why=why[:200],
            )
        )


def _id(name: str) -> str:
    """`agents/amy` to `amy`; what is no resource name stays as it is."""
    return name.rpartition("/")[2]
