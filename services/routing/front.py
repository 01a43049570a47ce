"""The front: the router that holds a client's stream, whoever leads the shard that the call or agent is in.

A front places calls (and numbers its placements), attaches them again after every change of leader, moves
waiting calls to
a region that can take them now, and places them elsewhere when a region is lost. It decides nothing about
who talks
to whom, and tells clients only what a leader has committed. Everything it asks may be asked again.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from chassis.clock import Clock
from chassis.errors import CallmeshError, Unavailable
from chassis.metrics import counter, gauge
from routing.errors import NewerSession, RouterDraining, StaleAttempt, Superseded, error_of
from routing.leader import Committed
from routing.model import (
    BEFORE_CONNECTION,
    AskAgent,
    AskCall,
    CallAttached,
    CallEnded,
    CallOutcome,
    CallOverflowing,
    CallQueued,
    CallState,
    CloseSession,
    Command,
    ConfirmCall,
    DetachCall,
    DetachSession,
    EndCall,
    Fact,
    HangUp,
    OfferAccepted,
    OpenSession,
    OverflowCall,
    PlaceCall,
    PositionChanged,
    SessionOpened,
    WithdrawCall,
)
from routing.streams import Caller, Desk, Moved, Present, Update

if TYPE_CHECKING:
    from routing.links import ShardPort

#: Regions tried for one placement.
PLACEMENTS_MAX = 4
#: Moves of one attempt; beyond it the call stays where it is.
MOVES_MAX = 50
#: Calls attached again at once after a change of leader.
REATTACH_AT_ONCE = 200
#: Pause between two tries of something that must get through, real seconds.
RETRY_SECONDS = 0.05
#: How often waiting calls are looked at for a move, real seconds.
OVERFLOW_SECONDS = 0.05
#: Withdrawing a stale entry is tried for this long; after that its shard ends it by itself (the grace
#: period).
WITHDRAW_SECONDS_MAX = 60.0

log = structlog.get_logger(__name__)
_CALLERS = gauge("callmesh_front_callers", "Callers' streams held by this router.")
_DESKS = gauge("callmesh_front_desks", "Agents' sessions held by this router.")
_MOVED = counter("callmesh_front_moves_total", "Calls placed at another region.", ["reason"])


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontOptions:
    """Real seconds."""

    #: A leader has this long to answer a placement before the next region is tried.
    place_seconds: float = 2.0
    #: A leader has this long to answer anything else.
    ask_seconds: float = 5.0
    #: A shard that is gone this long is lost: its waiting calls are placed elsewhere.
    silent_seconds: float = 3.0


#: Where waiting calls could go now: (queue id, region they wait in, milliseconds waited there) -> region or
#: None.
FindOverflow = Callable[[str, str, int], str | None]


class Front:
    """All client streams of one router. Its methods belong to one event loop."""

    def __init__(
        self,
        *,
        router: str,
        shards: Mapping[str, ShardPort],
        clock: Clock,
        options: FrontOptions,
        find_overflow: FindOverflow = lambda queue, region, waited_ms: None,
    ) -> None:
        """`shards` by region id."""
        self.router = router
        self._shards = shards
        self._clock = clock
        self._options = options
        self._find_overflow = find_overflow
        self._callers: dict[str, Caller] = {}
        self._desks: dict[str, Desk] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reattach = asyncio.Semaphore(REATTACH_AT_ONCE)
        self._lost_timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        self._draining = False
        _CALLERS.set_function(lambda: float(len(self._callers)))
        _DESKS.set_function(lambda: float(len(self._desks)))
        for region, shard in shards.items():
            shard.listen(self._on_facts, functools.partial(self._on_shard_change, region))

    @property
    def streams(self) -> int:
        """Client streams held."""
        return len(self._callers) + len(self._desks)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs work that outlives the request that began it; `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def drain(self) -> None:
        """Ends all streams with UNAVAILABLE: their places are kept, and their clients open them at another router."""
        self._draining = True
        for caller in self._callers.values():
            caller.push(RouterDraining())
        for desk in self._desks.values():
            desk.push(RouterDraining())

    async def close(self) -> None:
        """Cancels what still runs; nothing begins any more."""
        self._closed = True
        for handle in self._lost_timers.values():
            handle.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- asking shards
    # ------------------------------------------------------------------------------------------

    async def ask(self, region: str, command: Command, seconds: float | None = None) -> Committed:
        """One question to a region's leader. Raises Unavailable's kinds."""
        return await self._shards[region].ask(command, seconds or self._options.ask_seconds)

    async def ask_patiently(self, region: str, command: Command, seconds: float) -> Committed:
        """The same question until it is answered or `seconds` (real) are over: for what must get through."""
        give_up = self._clock.monotonic() + seconds
        while True:
            left = give_up - self._clock.monotonic()
            try:
                return await self.ask(region, command, max(0.05, min(left, self._options.ask_seconds)))
            except Unavailable:
                if left <= RETRY_SECONDS:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def find_call(self, call_id: str, shard: str = "") -> Committed:
        """The newest entry of a call over all shards that answer. Raises CallNotFound, or Unavailable when
        one did not answer.
        """
        regions = [shard] if shard in self._shards else list(self._shards)
        caller = self._callers.get(call_id)
        if caller is not None and caller.region and not shard:
            regions = [caller.region]
        question = AskCall(call_id=call_id)
        results = await asyncio.gather(*(self.ask(r, question) for r in regions), return_exceptions=True)
        found = [r for r in results if isinstance(r, Committed) and r.answer.call is not None]
        if found:
            return max(found, key=_version_of)
        for result in results:
            if isinstance(result, CallmeshError):
                raise result
        answered = next(r for r in results if isinstance(r, Committed))
        assert answered.answer.refusal is not None
        raise error_of(answered.answer.refusal, call_id)

    # --- callers
    # ------------------------------------------------------------------------------------------------

    async def route(self, caller: Caller) -> AsyncGenerator[Update, None]:
        """The caller's stream, from being queued to the end. Raises what placing raises, Superseded,
        Unavailable.

        Closing the iterator early means that the stream broke: the place is kept for the grace period.
        """
        call_id = caller.facts.call_id
        if self._draining:
            raise RouterDraining()
        older = self._callers.get(call_id)
        if older is not None:
            if older.attempt > caller.attempt:
                raise StaleAttempt(subject=f"calls/{call_id}", why="a higher attempt is open at this router")
            older.push(Superseded(subject=f"calls/{call_id}", why="the edge opened it again"))
        self._callers[call_id] = caller
        ended = False
        try:
            committed = await self._place(caller, caller.regions)
            if not caller.heard:
                caller.push(_present(committed))
            while not ended:
                update = await caller.updates.get()
                if isinstance(update, CallmeshError):
                    raise update
                ended = _ends(update)
                yield update
        finally:
            if self._callers.get(call_id) is caller:
                del self._callers[call_id]
                if not ended and caller.region:
                    self.spawn(self._detach(caller))

    async def _place(self, caller: Caller, regions: Sequence[str]) -> Committed:
        """Places the call at the first region that takes it; what an unanswered placement left behind is
        withdrawn.
        """
        failure: CallmeshError = Unavailable(why="no region can be reached")
        unsure: list[str] = []
        for region in regions[:PLACEMENTS_MAX]:
            caller.move += 1
            caller.region = region
            try:
                committed = await self._place_at(caller, region)
            except Unavailable as error:
                failure = error
                if error.reason in ("SHARD_SLOW", "SHARD_NOT_LED", "SHARD_UNREACHABLE"):
                    unsure.append(region)
                continue
            refusal = committed.answer.refusal
            if refusal is None:
                self._placed(caller, committed)
                self._withdraw_all(caller, [r for r in unsure if r != region])
                return committed
            failure = error_of(refusal, caller.facts.call_id, caller.facts.queue)
            if refusal.reason not in ("QUEUE_FULL", "NO_AGENT_LOGGED_IN"):
                break
        caller.region = ""
        self._withdraw_all(caller, unsure)
        raise failure

    async def _place_at(self, caller: Caller, region: str) -> Committed:
        """One placement; if this router numbered higher before (an earlier stream of the attempt), it goes
        on from there.
        """
        while True:
            command = PlaceCall(
                facts=caller.facts,
                attempt=caller.attempt,
                move=caller.move,
                front=self.router,
                waited_span_ms=max(0, self._clock.now_ms() - caller.queued_ms),
                agent_lost=caller.agent_lost,
            )
            committed = await self.ask(region, command, self._options.place_seconds)
            view, refusal = committed.answer.call, committed.answer.refusal
            stale = refusal is not None and refusal.reason == "STALE_ATTEMPT"
            if not stale or view is None or view.attempt != caller.attempt or view.move >= MOVES_MAX:
                return committed
            caller.move = view.move

    def _placed(self, caller: Caller, committed: Committed) -> None:
        caller.moved_ms = self._clock.now_ms()
        caller.agent_lost = False
        if committed.answer.call is not None:
            caller.state = committed.answer.call.state

    def _withdraw_all(self, caller: Caller, regions: Sequence[str]) -> None:
        for region in dict.fromkeys(regions):
            self.spawn(self._withdraw(region, caller.facts.call_id, caller.attempt, caller.move + 1))

    async def _withdraw(self, region: str, call_id: str, attempt: int, move: int) -> None:
        command = WithdrawCall(call_id=call_id, attempt=attempt, move=move)
        try:
            await self.ask_patiently(region, command, WITHDRAW_SECONDS_MAX)
        except Unavailable:
            log.info("withdraw_given_up", shard=region, call=call_id)

    async def _detach(self, caller: Caller) -> None:
        command = DetachCall(call_id=caller.facts.call_id, attempt=caller.attempt, move=caller.move)
        try:
            await self.ask_patiently(caller.region, command, self._options.silent_seconds)
        except Unavailable:
            # Its leader is gone; the next one finds the call unattached by itself.
            log.info("detach_given_up", shard=caller.region, call=caller.facts.call_id)

    async def confirm(self, region: str, command: ConfirmCall, seconds: float) -> Committed:
        """The edge's consent, asked until a committed yes or no or until `seconds` are over."""
        return await self.ask_patiently(region, command, seconds)

    async def hang_up(self, call_id: str, attempt: int, shard: str, seconds: float) -> Committed:
        """The caller is gone, whichever shards hold the call."""
        region = await self._region_of(call_id, shard)
        return await self.ask_patiently(region, HangUp(call_id=call_id, attempt=attempt), seconds)

    async def end_call(self, command: EndCall, shard: str, seconds: float) -> Committed:
        """The conversation is over."""
        region = await self._region_of(command.call_id, shard)
        return await self.ask_patiently(region, command, seconds)

    async def _region_of(self, call_id: str, shard: str) -> str:
        if shard in self._shards:
            return shard
        caller = self._callers.get(call_id)
        if caller is not None and caller.region:
            return caller.region
        return (await self.find_call(call_id)).shard

    # --- moves
    # --------------------------------------------------------------------------------------------------

    async def run_overflow(self) -> None:
        """Moves waiting calls to regions with free agents, longest waiting first, until cancelled."""
        while True:
            await asyncio.sleep(OVERFLOW_SECONDS)
            taken: set[tuple[str, str]] = set()
            waiting = [c for c in self._callers.values() if c.state is CallState.WAITING and not c.moving]
            for caller in sorted(waiting, key=lambda c: (c.queued_ms, c.facts.call_id)):
                target = self._target_of(caller)
                if target is None or (caller.facts.queue, target) in taken:
                    continue
                # One call a look and free region: the figures are a moment old.
                taken.add((caller.facts.queue, target))
                caller.moving = True
                self.spawn(self._move(caller, target))

    def _target_of(self, caller: Caller) -> str | None:
        if not caller.heard or not caller.region or caller.move >= MOVES_MAX:
            return None
        waited_ms = self._clock.now_ms() - caller.moved_ms
        return self._find_overflow(caller.facts.queue, caller.region, waited_ms)

    async def _move(self, caller: Caller, target: str) -> None:
        """Overflow: the source stops offering, the target takes the call, then the source lets it go."""
        source, call_id = caller.region, caller.facts.call_id
        try:
            held = OverflowCall(call_id=call_id, attempt=caller.attempt, move=caller.move)
            if (await self.ask(source, held)).answer.refusal is not None:
                return
            await self._place(caller, [target, source])
            if caller.region == target:
                _MOVED.labels("OVERFLOW").inc()
                self.spawn(self._withdraw(source, call_id, caller.attempt, caller.move))
        except CallmeshError as error:
            log.info("move_failed", call=call_id, source=source, target=target, error=error.reason)
            caller.region = source
            await self._go_back(caller)
        finally:
            caller.moving = False

    async def _go_back(self, caller: Caller) -> None:
        """Attaches at the source again, under the number that its target may have seen; else the next
        leader's change does.
        """
        give_up = self._clock.monotonic() + self._options.silent_seconds
        while self._clock.monotonic() < give_up and self._callers.get(caller.facts.call_id) is caller:
            try:
                await self._place_at(caller, caller.region)
                return
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)

    def _on_shard_change(self, region: str, shard: str, up: bool) -> None:
        self._on_change(region, up)

    def _on_change(self, region: str, up: bool) -> None:
        """A shard's leader came or went."""
        if self._closed:
            return
        handle = self._lost_timers.pop(region, None)
        if handle is not None:
            handle.cancel()
        if up:
            for caller in [c for c in self._callers.values() if c.region == region]:
                self.spawn(self._attach_again(caller))
            for desk in [d for d in self._desks.values() if d.region == region]:
                self.spawn(self._open_again(desk))
        else:
            loop = asyncio.get_running_loop()
            self._lost_timers[region] = loop.call_later(
                self._options.silent_seconds, self._region_lost, region
            )

    async def _attach_again(self, caller: Caller) -> None:
        async with self._reattach:
            if self._callers.get(caller.facts.call_id) is caller and not caller.moving:
                await self._retry(self._place_at(caller, caller.region), "attach", caller.facts.call_id)

    async def _open_again(self, desk: Desk) -> None:
        async with self._reattach:
            if self._desks.get(desk.agent) is desk:
                await self._retry(self._open(desk), "session", desk.agent)

    async def _retry(self, work: Coroutine[Any, Any, Any], what: str, subject: str) -> None:
        try:
            await work
        except CallmeshError as error:
            # The next change of leader tries again; a region that stays away is lost.
            log.info("reattach_failed", what=what, subject=subject, error=error.reason)

    def _region_lost(self, region: str) -> None:
        """A region was gone for too long: its waiting calls go elsewhere, conversations are left to their
        endpoints.
        """
        self._lost_timers.pop(region, None)
        waiting = [c for c in self._callers.values() if c.region == region and c.state in BEFORE_CONNECTION]
        log.warning("region_lost", region=region, calls=len(waiting))
        for caller in waiting:
            if not caller.moving:
                caller.moving = True
                self.spawn(self._place_elsewhere(caller, region))

    async def _place_elsewhere(self, caller: Caller, lost: str) -> None:
        try:
            others = [r for r in caller.regions if r != lost and self._shards[r].up]
            await self._place(caller, others)
            _MOVED.labels("REGION_LOST").inc()
            self._withdraw_all(caller, [lost])
        except CallmeshError as error:
            caller.push(error)
        finally:
            caller.moving = False

    # --- agents
    # -------------------------------------------------------------------------------------------------

    async def open_desk(self, desk: Desk) -> None:
        """Opens or re-attaches an agent's session. Raises AgentNotFound, NewerSession, Unavailable."""
        if self._draining:
            raise RouterDraining()
        older = self._desks.get(desk.agent)
        if older is not None and older.session > desk.session:
            raise NewerSession(subject=f"agents/{desk.agent}", why="its session number is higher")
        if older is not None:
            older.push(NewerSession(subject=f"agents/{desk.agent}", why="the session was opened again"))
        self._desks[desk.agent] = desk
        try:
            await self._open(desk)
        except CallmeshError:
            self._forget_desk(desk)
            raise

    async def _open(self, desk: Desk) -> None:
        command = OpenSession(
            agent=desk.agent,
            session=desk.session,
            command=desk.command,
            front=self.router,
            presence=desk.presence,
            pause_reason=desk.pause_reason,
            calls_held=desk.calls_held,
        )
        committed = await self.ask(desk.region, command)
        if committed.answer.refusal is not None:
            raise error_of(committed.answer.refusal, agent=desk.agent)
        view = committed.answer.agent
        for call_id in view.calls if view is not None else ():
            held = await self.ask(desk.region, AskCall(call_id=call_id))
            if held.answer.call is not None and held.answer.call.state is CallState.CONNECTED:
                desk.push(_present(held))

    def _forget_desk(self, desk: Desk) -> None:
        if self._desks.get(desk.agent) is desk:
            del self._desks[desk.agent]

    async def close_desk(self, desk: Desk, *, log_out: bool) -> None:
        """The stream ended: a log-out said so, otherwise the session is kept for the grace period."""
        was_current = self._desks.get(desk.agent) is desk
        self._forget_desk(desk)
        command: Command = DetachSession(agent=desk.agent, session=desk.session)
        if log_out:
            command = CloseSession(agent=desk.agent, session=desk.session)
        if was_current:
            try:
                await self.ask_patiently(desk.region, command, self._options.silent_seconds)
            except Unavailable:
                log.info("session_close_given_up", agent=desk.agent)

    async def agent_status(self, region: str, agent: str) -> Committed:
        """An agent's present state. Raises AgentNotFound, Unavailable."""
        committed = await self.ask(region, AskAgent(agent=agent))
        if committed.answer.refusal is not None:
            raise error_of(committed.answer.refusal, agent=agent)
        return committed

    # --- facts
    # --------------------------------------------------------------------------------------------------

    def _on_facts(self, shard: str, epoch: int, sequence: int, facts: Sequence[Fact]) -> None:
        for fact in facts:
            update = Update(shard=shard, epoch=epoch, sequence=sequence, now_ms=fact.now_ms, what=fact)
            if fact.call is not None:
                self._tell_caller(shard, fact, update)
            if fact.agent is not None:
                self._tell_desk(fact, update)

    def _tell_caller(self, shard: str, fact: Fact, update: Update) -> None:
        assert fact.call is not None
        caller = self._callers.get(fact.call.facts.call_id)
        if caller is None:
            return
        event, version = fact.event, (fact.call.attempt, fact.call.move)
        if isinstance(event, CallQueued | CallAttached) and event.front != self.router:
            if event.attempt > caller.attempt:
                caller.push(
                    Superseded(subject=f"calls/{event_call_id(event)}", why="opened at another router")
                )
            return
        if shard != caller.region or version != caller.version:
            return
        if isinstance(event, CallQueued) and caller.move > 1:
            moved = Moved(region=shard, reason="MOVED")
            caller.push(
                Update(
                    shard=shard, epoch=update.epoch, sequence=update.sequence, now_ms=fact.now_ms, what=moved
                )
            )
        if not isinstance(event, PositionChanged):
            caller.state = fact.call.state
        caller.heard = True
        if not isinstance(event, CallOverflowing):
            caller.push(update)
        if caller.auto_confirm and isinstance(event, OfferAccepted):
            self.spawn(self._consent(caller, event))

    async def _consent(self, caller: Caller, event: OfferAccepted) -> None:
        """`auto_confirm`: the front consents for an edge that cannot."""
        command = ConfirmCall(
            call_id=event.call_id, offer_id=event.offer_id, attempt=caller.attempt, move=caller.move
        )
        try:
            await self.ask_patiently(caller.region, command, self._options.ask_seconds)
        except Unavailable:
            log.info("consent_failed", call=event.call_id)

    def _tell_desk(self, fact: Fact, update: Update) -> None:
        assert fact.agent is not None
        desk = self._desks.get(fact.agent.agent)
        if desk is None:
            return
        event = fact.event
        if isinstance(event, SessionOpened) and (event.front != self.router or event.session != desk.session):
            if event.session >= desk.session:
                desk.push(NewerSession(subject=f"agents/{desk.agent}", why="another desktop logged in"))
            return
        desk.push(update)


def event_call_id(event: CallQueued | CallAttached) -> str:
    """The call that an event of placing is about."""
    return event.facts.call_id if isinstance(event, CallQueued) else event.call_id


def _version_of(committed: Committed) -> tuple[int, int]:
    view = committed.answer.call
    return (view.attempt, view.move) if view is not None else (0, 0)


def _present(committed: Committed) -> Update:
    return Update(
        shard=committed.shard,
        epoch=committed.epoch,
        sequence=committed.sequence,
        now_ms=committed.now_ms,
        what=Present(call=committed.answer.call),
        durable=committed.durable,
    )


def _ends(update: Update) -> bool:
    """Whether the client's stream is over after this update. A view may be ahead of its event: the event
    decides.
    """
    what = update.what
    if isinstance(what, Fact):
        return isinstance(what.event, CallEnded) and what.event.outcome is not CallOutcome.MOVED
    return isinstance(what, Present) and what.call is not None and what.call.state is CallState.ENDED
