"""The front: the router that holds a client's stream, whoever leads the shard that the call or agent is in.

A front places calls (and numbers its placements), attaches them again after every change of leader, moves
waiting calls to a region that can take them now, and places them elsewhere when a region is lost. It decides
nothing about who talks to whom, and tells clients only what a leader has committed. Everything it asks may be
asked again.

Here are callers' streams. Agents' sessions are in `desks`, how shards are asked is in `shards`, what is held
for one stream in `streams`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Container,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from chassis.clock import Clock
from chassis.errors import CallmeshError, Code, Unavailable
from chassis.metrics import counter, gauge
from routing.committed import Committed, NothingTaken
from routing.desks import Desks
from routing.errors import (
    RouterDraining,
    StaleAttempt,
    Superseded,
    Unconfirmed,
    error_of,
)
from routing.model import (
    ABANDONED,
    ACCEPTED,
    BEFORE_CONNECTION,
    CONNECTED,
    ENDED,
    MOVED,
    OVERFLOWING,
    STEP_ENTRIES_MAX,
    VOICE,
    WAITING,
    AskExplain,
    AttachCalls,
    CallAttached,
    CallbackRequested,
    CallEnded,
    CallFacts,
    CallOverflowing,
    CallQueued,
    CallReprioritized,
    CallTransferred,
    CallView,
    Command,
    ConfirmCall,
    DetachCalls,
    EndCall,
    Fact,
    HangUp,
    OfferEnded,
    OfferOutcome,
    OverflowCall,
    PlaceCall,
    PositionChanged,
    WithdrawCall,
)
from routing.positions import noticeable
from routing.shards import RETRY_SECONDS, Shards, regions_of, update_of
from routing.streams import Caller, Moved, Present, Update
from routing.turnstile import NoTurn, Urgency

if TYPE_CHECKING:
    from routing.links import ShardPort

#: Regions tried for one placement.
PLACEMENTS_MAX = 4
#: Moves of one attempt; beyond it the call stays where it is.
MOVES_MAX = 50
#: Calls that leave a drained region for one target at one look.
LEAVING_PER_LOOK_MAX = 20
#: Streams that end within so long leave together, real seconds.
LEAVING_SECONDS = 0.02
#: How often waiting calls are looked at for a move, real seconds.
OVERFLOW_SECONDS = 0.05
#: What a region has said of who is not there is believed for so long, of so many wishes, real seconds.
UNFIT_SECONDS, UNFIT_MAX = 5.0, 1_000
#: A call that its region does not let go just now is not asked for again before this, real seconds.
STAYS_SECONDS = 1.0
#: Longer than any call waits, milliseconds.
LONGEST_WAIT_MS = 1 << 62
#: Refusals of one region that another may not share; a shard that has just begun may not know the queue yet.
TRY_NEXT = ("QUEUE_FULL", "NO_AGENT_LOGGED_IN", "QUEUE_NOT_FOUND")
#: How a call ends whose stream nobody attached within the grace period.
_LAPSED = (ABANDONED, "STREAM_LOST")
#: Events by which a router's stream comes to hold an entry.
_PLACED = (CallQueued, CallAttached)
#: Withdrawing a stale entry from a shard without a leader is tried for this long; after that the next leader
#: ends it by itself (the grace period).
WITHDRAW_SECONDS_MAX = 60.0

log = structlog.get_logger(__name__)
_CALLERS = gauge("callmesh_front_callers", "Callers' streams held by this router.")
_DESKS = gauge("callmesh_front_desks", "Agents' sessions held by this router.")
_MOVED = counter("callmesh_front_moves_total", "Calls placed at another region.", ["reason"])


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontOptions:
    """Real seconds."""

    #: A leader has this long to answer a placement before the next region is tried, if there is one.
    place_seconds: float = 2.0
    #: A leader has this long to answer anything else.
    ask_seconds: float = 5.0
    #: A shard that is gone this long is lost: its waiting calls are placed elsewhere.
    silent_seconds: float = 3.0
    #: What comes while a shard has no leader waits here for the next one this long, as a change of leader
    #: may take. A refusal would only bring it back, at another router, again and again.
    leaderless_seconds: float = 3.0


class CallerGone(CallmeshError):
    """The caller of {subject} hung up; it is placed nowhere any more."""

    code = Code.ABORTED
    reason = "CALLER_GONE"


class NotInTime(NothingTaken):
    """The call could not be queued in time; ask again, nothing is done twice."""

    reason = Unavailable.reason


#: What decides where a waiting call could go, beside its wait: queue, region, language, channel, and whether
#: it asks for more than its queue.
_Way = tuple[str, str, str, str, bool]
#: Of calls of which figures say too little: queue, channel, what they ask for, and a region.
_Wish = tuple[str, str, tuple[tuple[str, int], ...], str]


class FindOverflow(Protocol):
    """Where waiting calls could go now."""

    def __call__(
        self,
        queue: str,
        region: str,
        waited_ms: int,
        language: str,
        besides: Container[str] = (),
        *,
        channel: str = VOICE,
        skilled: bool = False,
    ) -> str | None:
        """A region other than `region`, in which they wait, and those in `besides`; None for nowhere.
        `skilled`: they ask for more than their queue.
        """


#: An agent's region; None for an unknown agent. Raises Unavailable.
FindAgent = Callable[[str], Awaitable[str | None]]


async def _nowhere(agent: str) -> str | None:
    return None


class Front:
    """All client streams of one router. Its methods belong to one event loop."""

    def __init__(
        self,
        *,
        router: str,
        shards: Mapping[str, ShardPort],
        clock: Clock,
        options: FrontOptions,
        find_overflow: FindOverflow = lambda *way, **more: None,
        find_agent: FindAgent | None = None,
        leaves: Callable[[str], bool] = lambda region: False,
        deserted: Callable[[str, str], bool] = lambda region, queue: False,
    ) -> None:
        """`shards` by region id; `leaves(region)` whether its waiting calls are to go, `deserted(region,
        queue)` whether nobody is there any more.
        """
        self.router = router
        self._ports = shards
        self.shards = Shards(shards, clock, options.ask_seconds)
        self._clock = clock
        self._options = options
        self._find_overflow = find_overflow
        self._leaves = leaves
        self._is_deserted = deserted
        self._find_agent: FindAgent = find_agent if find_agent is not None else _nowhere
        self._callers: dict[str, Caller] = {}
        self.desks = Desks(
            router,
            shards,
            self.shards,
            silent_seconds=options.silent_seconds,
            leaderless_seconds=options.leaderless_seconds,
        )
        #: By region: entries whose streams have just ended, as (call id, attempt, move).
        self._leaving: dict[str, list[tuple[str, int, int]]] = {}
        #: Streams that have ended and whose shards do not know yet, by call id: for as long as that is being
        #: said.
        self._gone: dict[str, Caller] = {}
        self._lost_timers: dict[str, asyncio.TimerHandle] = {}
        #: Since when this router has been cut off, on the monotonic clock.
        self._alone_since: float | None = None
        #: Where nobody is who fits calls that ask for more, and until when that is believed, on the monotonic
        #: clock.
        self._unfit: dict[_Wish, float] = {}
        #: Regions that have been gone for too long.
        self._lost: set[str] = set()
        self._closed = False
        self._draining = False
        _CALLERS.set_function(lambda: float(len(self._callers)))
        _DESKS.set_function(lambda: float(len(self.desks)))
        for region, shard in shards.items():
            shard.listen(
                self._on_facts,
                functools.partial(self._on_shard_change, region),
                self._callers.__contains__,
            )

    @property
    def streams(self) -> int:
        """Client streams held."""
        return len(self._callers) + len(self.desks)

    def drain(self) -> None:
        """Ends all streams with UNAVAILABLE: their places are kept, and their clients open them at another
        router.
        """
        self._draining = True
        for caller in self._callers.values():
            caller.push(RouterDraining())
        self.desks.drain()

    async def close(self) -> None:
        """Cancels what still runs; nothing begins any more."""
        self._closed = True
        for handle in self._lost_timers.values():
            handle.cancel()
        await self.shards.close()

    # --- asking shards

    async def find_call(self, call_id: str, shard: str = "") -> Committed:
        """The newest entry of a call over all shards that answer. Raises CallNotFound, or Unavailable when
        one did not answer.
        """
        regions = [shard] if shard in self._ports else list(self._ports)
        caller = self._callers.get(call_id)
        if caller is not None and caller.region and not caller.moving and not shard:
            regions = [caller.region]
        return await self.shards.newest(call_id, regions)

    # --- callers

    async def route(self, caller: Caller) -> AsyncGenerator[Update, None]:
        """The caller's stream, from being queued to the end. Raises what placing raises, Superseded,
        Unavailable.

        Closing the iterator early means that the stream broke: the place is kept for the grace period.
        """
        older = self._enter(caller)
        ended = placed = False
        try:
            await self._place_first(caller)
            placed = True
            while not ended:
                update = await caller.updates.get()
                if isinstance(update, CallmeshError):
                    raise update
                ended = _ends(update)
                yield update
        finally:
            self._quit(caller, older if not placed else None, ended=ended)

    async def decide(
        self, caller: Caller, wait_seconds: float, decided: Callable[[Update], bool]
    ) -> Update | None:
        """The newest update on the call once `decided` says so, or when `wait_seconds` (real) have passed
        since it was queued; then its stream is over, as when `route` is closed. None when nothing was told.
        Raises as `route`. For those who want the decision alone: without a stream's detours.
        """
        older = self._enter(caller)
        ended = placed = False
        last: Update | None = None
        try:
            await self._place_first(caller)
            placed = True
            until = min(caller.give_up, asyncio.get_running_loop().time() + wait_seconds)
            while not ended and not (last is not None and decided(last)):
                unread = caller.updates.unread
                update = unread.popleft() if unread else await caller.updates.get(until)
                if update is None:
                    break
                if isinstance(update, CallmeshError):
                    raise update
                ended = _ends(update)
                if not isinstance(update.what, Moved):
                    last = update
            return last
        finally:
            self._quit(caller, older if not placed else None, ended=ended)

    def _enter(self, caller: Caller) -> Caller | None:
        """A stream begins; the older one of the same call that it takes the place of."""
        if self._draining:
            raise RouterDraining()
        call_id = caller.facts.call_id
        older = self._callers.get(call_id)
        if older is None and (gone := self._gone.get(call_id)) is not None:
            # Its place is not left yet: an edge that is back under the same attempt goes on there.
            older = gone if gone.attempt == caller.attempt else None
        if older is not None:
            self._take_over(caller, older)
        self._callers[call_id] = caller
        return older

    def _quit(self, caller: Caller, older: Caller | None, *, ended: bool) -> None:
        """A stream is over. Without a place of its own, it leaves that of the `older` one too."""
        if self._callers.get(caller.facts.call_id) is not caller:
            return
        del self._callers[caller.facts.call_id]
        if not ended and caller.region:
            self._leave(caller, caller.region, caller.move)
        if older is not None and older.region:
            self._leave(older, older.region, older.move)

    def _take_over(self, caller: Caller, older: Caller) -> None:
        """A stream of this router takes the place of its older one."""
        subject = f"calls/{caller.facts.call_id}"
        if older.attempt > caller.attempt:
            raise StaleAttempt(subject=subject, why="a higher attempt is open at this router")
        older.push(Superseded(subject=subject, why="the edge opened it again"))
        left_behind = (*caller.stale, *older.stale, older.region, older.source)
        caller.stale = [region for region in dict.fromkeys(left_behind) if region]
        if older.attempt == caller.attempt and older.region:
            # The same attempt goes on where it stands, under the number that it has there.
            caller.move = older.move - 1
            caller.regions = [older.region, *(r for r in caller.regions if r != older.region)]

    def _alive(self, caller: Caller) -> bool:
        """Its stream is open here and its call goes on: otherwise nothing may be placed for it."""
        current = self._callers.get(caller.facts.call_id) is caller
        return current and not caller.hung_up and caller.state is not ENDED

    def _leave(self, caller: Caller, region: str, move: int) -> None:
        """An entry at `region` that this stream no longer listens to: hung up, left to a newer stream, or
        detached.
        """
        call_id, newer = caller.facts.call_id, self._callers.get(caller.facts.call_id)
        if caller.hung_up:
            self.shards.spawn(self._hang_up_at(region, call_id, caller.attempt))
        elif newer is not None and newer is not caller:
            if newer.region != region:
                self.shards.spawn(self._withdraw(region, call_id, newer.attempt, newer.move))
        else:
            if region == caller.region:
                self._gone[call_id] = caller
            self._detach_soon(region, call_id, caller.attempt, move)

    def _detach_soon(self, region: str, call_id: str, attempt: int, move: int) -> None:
        """Says that nobody listens to an entry any more, together with others that end now."""
        leaving = self._leaving.setdefault(region, [])
        leaving.append((call_id, attempt, move))
        if len(leaving) == 1:
            self.shards.spawn(self._detach_all(region))

    async def _detach_all(self, region: str) -> None:
        await asyncio.sleep(LEAVING_SECONDS)
        leaving = self._leaving.pop(region)
        for at in range(0, len(leaving), STEP_ENTRIES_MAX):
            self.shards.spawn(self._detach_step(region, leaving[at : at + STEP_ENTRIES_MAX]))

    async def _detach_step(self, region: str, entries: Sequence[tuple[str, int, int]]) -> None:
        gone = {call_id: self._gone.get(call_id) for call_id, _, _ in entries}
        await self._detach(region, functools.partial(self._left, region, entries))
        for call_id, caller in gone.items():
            if self._gone.get(call_id) is caller:
                self._gone.pop(call_id, None)

    def _left(self, region: str, entries: Sequence[tuple[str, int, int]]) -> DetachCalls | None:
        """Those of the entries that nobody listens to at this moment. A stream of the same attempt may have
        come back to one since: it attaches under the same number, and must not be detached for the older.
        """
        calls = tuple(entry for entry in entries if not self._listens(region, *entry))
        return DetachCalls(front=self.router, calls=calls) if calls else None

    def _listens(self, region: str, call_id: str, attempt: int, move: int) -> bool:
        caller = self._callers.get(call_id)
        return caller is not None and caller.region == region and caller.version == (attempt, move)

    async def _place_first(self, caller: Caller) -> None:
        """Places a call that was just opened, and withdraws what older streams of it left elsewhere. One that
        finds no leader anywhere waits for one. Raises as `_place`.
        """
        agent_lost = caller.agent_lost
        # Elsewhere somebody would be rung for a caller who talks already.
        regions = [caller.talks] if caller.talks else caller.regions
        async with caller.placing:
            try:
                await self._place(caller, regions)
            except NothingTaken as error:
                if self._alone or any(self._ports[region].up for region in regions):
                    raise
                await self._place_in_turn(caller, regions, error)
        if caller.stale:
            self._leave_behind(
                caller, regions_of(*caller.stale, besides=caller.region), agent_lost=agent_lost
            )

    async def _place_in_turn(self, caller: Caller, regions: Sequence[str], failure: NothingTaken) -> None:
        """Places a call once the nearest region has a leader again; raises `failure` when it is too long."""
        seconds = min(self._options.leaderless_seconds, self._seconds_left(caller))
        urgency = Urgency.TALKING if caller.talks else Urgency.NEW_CALL
        try:
            async with self.shards.turnstiles[regions[0]].passage(urgency, seconds):
                await self._place(caller, regions)
        except NoTurn:
            raise failure from None

    def _seconds_left(self, caller: Caller) -> float:
        """Until nobody waits for the call's place any more, real seconds."""
        left = caller.give_up - asyncio.get_running_loop().time()
        if left <= 0:
            raise NotInTime()
        return left

    async def _place(self, caller: Caller, regions: Sequence[str], keep: str = "") -> None:
        """Places the call at the first region that takes it; what an unanswered placement left behind is
        withdrawn, except at `keep`, where the call goes back to if this fails. Raises what the last region
        said, CallerGone or Superseded when there is nobody to place for.
        """
        failure: CallmeshError | None = None
        unsure: list[str] = []
        tried = regions[:PLACEMENTS_MAX]
        for region in tried:
            if not self._alive(caller):
                failure = self._why_dead(caller)
                break
            caller.move += 1
            caller.region = region
            # Where there is no other, an early end would only bring the call back, with all its work.
            seconds = self._options.place_seconds if region != tried[-1] else self._options.ask_seconds
            try:
                committed = await self._place_at(caller, region, seconds)
            except Unavailable as error:
                failure = error
                if not isinstance(error, NothingTaken):
                    unsure.append(region)
                continue
            except CallmeshError as error:
                failure = error
                break
            except asyncio.CancelledError:
                # The stream was closed meanwhile; the entry at `region` is the closing's to detach.
                self._withdraw_all(caller, [r for r in unsure if r not in (region, keep)])
                raise
            refusal = committed.answer.refusal
            if refusal is None:
                self._placed(caller, committed)
                if unsure:
                    self._withdraw_all(caller, [r for r in unsure if r != region])
                return
            failure = error_of(refusal, caller.facts.call_id, caller.facts.queue)
            if refusal.reason not in TRY_NEXT:
                break
        caller.region = ""
        self._withdraw_all(caller, [r for r in unsure if r != keep])
        raise failure or Unavailable(why="no region can be reached")

    def _why_dead(self, caller: Caller) -> CallmeshError:
        subject = f"calls/{caller.facts.call_id}"
        if caller.hung_up or caller.state is ENDED:
            return CallerGone(subject=subject)
        return Superseded(subject=subject, why="its stream was closed or opened again")

    async def _place_at(self, caller: Caller, region: str, seconds: float) -> Committed:
        """One placement, which the leader has `seconds` to answer; if this router numbered higher before (an
        earlier stream of the attempt), it goes on from there.
        """
        while True:
            command = PlaceCall(
                facts=caller.facts,
                attempt=caller.attempt,
                move=caller.move,
                front=self.router,
                waited_span_ms=max(0, self._clock.now_ms() - caller.queued_ms),
                agent_lost=caller.agent_lost,
                talks=caller.state is CONNECTED or caller.talks != "",
                fitting=caller.source not in ("", region) and _is_particular(caller.facts),
            )
            committed = await self.shards.ask(region, command, min(seconds, self._seconds_left(caller)))
            view, refusal = committed.answer.call, committed.answer.refusal
            stale = refusal is not None and refusal.reason == "STALE_ATTEMPT"
            moved_away = refusal is None and view is not None and view.outcome is MOVED
            if view is None or view.attempt != caller.attempt or not (stale or moved_away):
                if refusal is None:
                    self._catch_up(caller, committed)
                return committed
            if view.move >= MOVES_MAX:
                raise StaleAttempt(subject=f"calls/{view.facts.call_id}", why="it has moved too often")
            if not self._alive(caller):
                raise self._why_dead(caller)
            caller.move = view.move + 1 if moved_away else view.move

    def _placed(self, caller: Caller, committed: Committed) -> None:
        caller.moved_ms = self._clock.now_ms()
        caller.agent_lost, caller.talks = False, ""
        view = committed.answer.call
        if view is not None:
            # An edge that comes back says what it said at first: the shard knows what became of it since, and
            # what of its time is a credit and no wait.
            credited = view.facts.credit_span_ms > caller.facts.credit_span_ms
            caller.facts = view.facts
            queued_ms = self._clock.now_ms() - (committed.now_ms - view.queued_ms)
            caller.queued_ms = queued_ms if credited else min(caller.queued_ms, queued_ms)
        if not self._alive(caller) and caller.state is not ENDED:
            # The caller hung up, or its stream closed, while the placement was under way.
            self._leave(caller, caller.region, caller.move)

    def _catch_up(self, caller: Caller, committed: Committed) -> None:
        """Tells what the answer to a placement says and no fact has said: facts are lost with a link."""
        view = committed.answer.call
        if view is None or committed.shard != caller.region:
            return
        at = (committed.shard, committed.epoch, committed.sequence)
        if caller.heard_at[0] == at[0] and caller.heard_at >= at:
            return
        if (view.attempt, view.move) != caller.version and view.state is not ENDED:
            return
        lapsed = view.state is ENDED and (view.outcome, view.reason) == _LAPSED
        # A stream that is new learns how its call ended.
        if lapsed and caller.heard and self._alive(caller):
            self._place_anew(caller)
            return
        caller.state, caller.heard, caller.heard_at = view.state, True, at
        caller.push(update_of(committed))
        self._note_place(caller, view)
        self._consent(caller, view)

    def _place_anew(self, caller: Caller) -> None:
        """Its shard took its stream for lost, and it is here: nobody has hung up, so the call goes on with
        what it has waited. A leader that was slow, or a front, is no reason to lose one.
        """
        log.warning("taken_for_lost", call=caller.facts.call_id, shard=caller.region)
        caller.moved_for = "REGION_LOST"
        self.shards.spawn(self._place_lapsed(caller, caller.region, caller.version))

    async def _place_lapsed(self, caller: Caller, region: str, version: tuple[int, int]) -> None:
        async with caller.placing:
            if not self._alive(caller) or (caller.region, caller.version) != (region, version):
                return
            try:
                await self._place(caller, [region, *(r for r in caller.regions if r != region)])
                _MOVED.labels(caller.moved_for).inc()
            except CallmeshError as error:
                caller.push(error)

    def _note_place(self, caller: Caller, view: CallView) -> None:
        """What a caller was told of its place, if it was."""
        if view.position:
            caller.place = (view.position, view.expected_wait_span_ms)
            caller.place_seconds = self._clock.monotonic()

    def _withdraw_all(self, caller: Caller, regions: Sequence[str]) -> None:
        for region in dict.fromkeys(regions):
            self.shards.spawn(self._withdraw(region, caller.facts.call_id, caller.attempt, caller.move + 1))

    def _leave_behind(self, caller: Caller, regions: Sequence[str], *, agent_lost: bool = False) -> None:
        """Withdraws what older streams, or a lost leader, left at some regions. `agent_lost`: its edge has
        said that a conversation broke off.
        """
        withdrawn = WithdrawCall(
            call_id=caller.facts.call_id,
            attempt=caller.attempt,
            move=caller.move + 1,
            agent_lost=agent_lost,
        )
        for region in regions:
            self.shards.spawn(self._leave_or_return(caller, region, withdrawn))

    async def _leave_or_return(self, caller: Caller, region: str, withdrawn: WithdrawCall) -> None:
        """A call that turns out to be in conversation at a region waits nowhere else: it goes on there."""
        committed = await self.shards.get_through(region, lambda: withdrawn, WITHDRAW_SECONDS_MAX)
        if committed is None or committed.answer.refusal is None or withdrawn.agent_lost:
            return
        async with caller.placing:
            if self._alive(caller) and caller.region not in ("", region) and caller.state is not CONNECTED:
                await self._overflow(caller, region, hold=False)

    async def _withdraw(self, region: str, call_id: str, attempt: int, move: int) -> None:
        command = WithdrawCall(call_id=call_id, attempt=attempt, move=move)
        await self.shards.get_through(region, lambda: command, WITHDRAW_SECONDS_MAX)

    async def _hang_up_at(self, region: str, call_id: str, attempt: int) -> None:
        command = HangUp(call_id=call_id, attempt=attempt)
        await self.shards.get_through(region, lambda: command, WITHDRAW_SECONDS_MAX)

    async def _detach(self, region: str, say: Callable[[], Command | None]) -> None:
        await self.shards.get_through(region, say, self._options.silent_seconds)

    async def confirm(self, region: str, command: ConfirmCall, seconds: float) -> Committed:
        """The edge's consent, asked until a committed yes or no or until `seconds` are over."""
        return await self.shards.ask_patiently(region, command, seconds)

    async def hang_up(self, call_id: str, attempt: int, shard: str, seconds: float) -> Committed:
        """The caller is gone, whichever shards hold the call."""
        caller = self._callers.get(call_id)
        if caller is not None and (not attempt or attempt >= caller.attempt):
            caller.hung_up = True
            for region in regions_of(caller.region, caller.source, besides=shard):
                self.shards.spawn(self._hang_up_at(region, call_id, attempt))
        return await self._tell_holder(HangUp(call_id=call_id, attempt=attempt), shard, seconds)

    async def end_call(self, command: EndCall, shard: str, seconds: float) -> Committed:
        """The conversation is over."""
        return await self._tell_holder(command, shard, seconds)

    async def _tell_holder(self, command: HangUp | EndCall, shard: str, seconds: float) -> Committed:
        """Carries out a command where the call is now, even if the client's word for it is outdated."""
        give_up = self._clock.monotonic() + seconds
        region = await self._region_of(command.call_id, shard)
        committed = await self.shards.ask_patiently(region, command, seconds)
        refusal, view = committed.answer.refusal, committed.answer.call
        unknown = refusal is not None and refusal.reason == "CALL_NOT_FOUND"
        if not unknown and (view is None or view.outcome is not MOVED):
            return committed
        newest = await self.shards.newest(command.call_id, list(self._ports))
        if newest.shard == region:
            return committed
        return await self.shards.ask_patiently(newest.shard, command, give_up - self._clock.monotonic())

    async def _region_of(self, call_id: str, shard: str) -> str:
        if shard in self._ports:
            return shard
        caller = self._callers.get(call_id)
        if caller is not None and caller.region:
            return caller.region
        return (await self.find_call(call_id)).shard

    # --- moves

    async def run_overflow(self) -> None:
        """Moves waiting calls to regions with free agents, longest waiting first, until cancelled."""
        while True:
            await asyncio.sleep(OVERFLOW_SECONDS)
            if len(self._ports) == 1:
                continue
            self._leave_if_alone()
            taken: Counter[tuple[str, str]] = Counter()
            stuck_ms: dict[_Way, int] = {}
            waiting = self._movable()
            for caller in sorted(waiting, key=lambda c: (c.queued_ms, c.facts.call_id)):
                target = self._target_of(caller, stuck_ms)
                if target is None:
                    continue
                leaves = self._leaves(caller.region)
                # One call a look and free region: the figures are a moment old. A drained region is left
                # faster.
                if taken[caller.facts.queue, target] >= (LEAVING_PER_LOOK_MAX if leaves else 1):
                    continue
                taken[caller.facts.queue, target] += 1
                caller.moved_for = "DRAINING" if leaves else "OVERFLOW"
                caller.moving = True
                settles = leaves or self._is_deserted(caller.region, caller.facts.queue)
                self.shards.spawn(self._move(caller, target, to_free=not settles))

    @property
    def _alone(self) -> bool:
        """This router is cut off: it hears no leader that commits, and of the other regions less than half.
        Then whoever can go elsewhere should; while the database is away for all, most others are heard,
        though one may be lost with its member of it.
        """
        ports = self._ports.values()
        if any(port.up and not port.stalled for port in ports):
            return False
        # Its own region is one of them.
        others, heard = len(ports) - 1, sum(port.up for port in ports) - 1
        return others > 0 and 2 * heard < others

    def _leave_if_alone(self) -> None:
        """Callers who wait at a router that has been cut off for too long open their streams elsewhere, where
        their places are kept.
        """
        now = self._clock.monotonic()
        if not self._alone:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since >= self._options.silent_seconds:
            self._alone_since = now
            waiting = [c for c in self._callers.values() if c.state in BEFORE_CONNECTION and c.heard]
            log.warning("cut_off", calls=len(waiting))
            for caller in waiting:
                caller.push(Unavailable(why="this router is cut off from all regions"))

    def _movable(self) -> list[Caller]:
        """Calls that wait where somebody could go elsewhere: where even the longest wait leads nowhere,
        nobody needs to be looked at.
        """
        known = dict.fromkeys(map(_way, self._callers.values()))
        ways = {way for way in known if self._overflow_by(way, LONGEST_WAIT_MS) is not None}
        if not ways:
            return []
        return [
            c
            for c in self._callers.values()
            if c.state is WAITING and not c.moving and _way(c) in ways and not c.placing.locked()
        ]

    def _overflow_by(self, way: _Way, waited_ms: int, besides: Container[str] = ()) -> str | None:
        queue, region, language, channel, skilled = way
        return self._find_overflow(
            queue, region, waited_ms, language, besides, channel=channel, skilled=skilled
        )

    def _where_unfit(self, caller: Caller) -> list[str]:
        """Regions that have said just now that nobody is there for what the call asks for."""
        now = self._clock.monotonic()
        return [r for r in self._ports if self._unfit.get(_wish(caller.facts, r), now) > now]

    def _note_unfit(self, caller: Caller, region: str) -> None:
        now = self._clock.monotonic()
        if len(self._unfit) >= UNFIT_MAX:
            self._unfit = {wish: until for wish, until in self._unfit.items() if until > now}
        if len(self._unfit) < UNFIT_MAX:
            self._unfit[_wish(caller.facts, region)] = now + UNFIT_SECONDS

    def _target_of(self, caller: Caller, stuck_ms: dict[_Way, int]) -> str | None:
        """Where a call could go. `stuck_ms` remembers how long a call of a way had waited that could go
        nowhere: who has waited less need not be looked at.
        """
        if not caller.heard or not caller.region or caller.move >= MOVES_MAX:
            return None
        if caller.stays_until and self._clock.monotonic() < caller.stays_until:
            return None
        waited_ms = self._clock.now_ms() - caller.moved_ms
        way = _way(caller)
        if waited_ms <= stuck_ms.get(way, -1):
            return None
        besides = self._where_unfit(caller) if self._unfit and _is_particular(caller.facts) else ()
        target = self._overflow_by(way, waited_ms, besides)
        if target is None and not besides:
            stuck_ms[way] = waited_ms
        return target

    async def _move(self, caller: Caller, target: str, *, to_free: bool = False) -> None:
        """Places a waiting call at another region; `to_free`: only while somebody is free there for it."""
        try:
            async with caller.placing:
                here = self._alive(caller) and caller.region not in ("", target)
                if here and (not to_free or await self._is_free_at(target, caller)):
                    await self._overflow(caller, target)
        finally:
            caller.moving = False

    async def _is_free_at(self, target: str, caller: Caller) -> bool:
        """Whether somebody is free at a region who fits the call. Figures tell of agents who take voice and
        fit the queue; for a call that asks for something else the region is asked before anything is begun.
        """
        if not _is_particular(caller.facts):
            return True
        waited_ms = max(0, self._clock.now_ms() - caller.queued_ms)
        question = AskExplain(facts=caller.facts, limit=1, waited_span_ms=waited_ms)
        try:
            explained = (
                await self.shards.ask(target, question, self._options.place_seconds)
            ).answer.explanation
        except CallmeshError as error:
            log.info("not_asked", call=caller.facts.call_id, target=target, error=error.reason)
            explained = None
        found = explained is not None and any(agent.rank for agent in explained.agents)
        if not found:
            self._note_unfit(caller, target)
        return found

    async def _overflow(self, caller: Caller, target: str, *, hold: bool = True) -> None:
        """The source stops offering, the target takes the call, then the source lets it go. Without `hold`
        the source is not asked first: that it rings there is no reason to keep the call.
        """
        source, call_id = caller.region, caller.facts.call_id
        held = OverflowCall(call_id=call_id, attempt=caller.attempt, move=caller.move)
        try:
            refused = hold and (await self.shards.ask(source, held)).answer.refusal is not None
            if refused:
                caller.stays_until = self._clock.monotonic() + STAYS_SECONDS
            if refused or not self._alive(caller):
                return
            caller.source = source
            await self._place(caller, [target, source], keep=source)
            if caller.region == target:
                if hold:
                    _MOVED.labels(caller.moved_for).inc()
                self.shards.spawn(self._withdraw(source, call_id, caller.attempt, caller.move))
            elif _is_particular(caller.facts):
                self._note_unfit(caller, target)
        except CallmeshError as error:
            log.info("move_failed", call=call_id, source=source, target=target, error=error.reason)
            if self._alive(caller):
                caller.region = source
                await self._go_back(caller, source)
            else:
                self._leave(caller, source, held.move)
        finally:
            caller.source = ""

    async def _go_back(self, caller: Caller, source: str) -> None:
        """Attaches at the source again, under the number that its target may have seen, until the source
        answers or is lost.
        """
        while self._alive(caller) and caller.region == source:
            if source in self._lost:
                await self._flee(caller, source)
                return
            if await self._attach(caller, source):
                return
            await self._pause(source)

    async def _pause(self, region: str) -> None:
        """Before another try: a moment, or until the shard has a leader again, whichever is later."""
        await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.0))
        if not self._ports[region].up:
            with contextlib.suppress(NoTurn):
                async with self.shards.turnstiles[region].passage(
                    Urgency.CALLER, self._options.silent_seconds
                ):
                    return

    async def _attach(self, caller: Caller, region: str) -> bool:
        """Attaches a placed call again; whether the shard has answered."""
        try:
            committed = await self._place_at(caller, region, self._options.ask_seconds)
        except Unavailable:
            return False
        except CallmeshError as error:
            caller.push(error)
            return True
        if committed.answer.refusal is not None:
            caller.push(error_of(committed.answer.refusal, caller.facts.call_id, caller.facts.queue))
        return True

    def _on_shard_change(self, region: str, shard: str, up: bool) -> None:
        self._on_change(region, up)

    def _on_change(self, region: str, up: bool) -> None:
        """A shard's leader came or went."""
        if self._closed:
            return
        handle = self._lost_timers.pop(region, None)
        if handle is not None:
            handle.cancel()
        self.shards.turnstiles[region].look()
        if up:
            self._lost.discard(region)
            self._attach_callers(region)
            self.desks.open_all_again(region)
        else:
            loop = asyncio.get_running_loop()
            self._lost_timers[region] = loop.call_later(
                self._options.silent_seconds, self._region_lost, region
            )

    def _attach_callers(self, region: str) -> None:
        """A new leader knows of no stream, and takes for lost what nobody attaches in time. Those that wait
        as they did are named together, a few hundred at once: one by one, some thousand of them were behind
        one another for longer than the grace period on a machine with too much to do.
        """
        waiting: list[Caller] = []
        others: list[Caller] = []
        for caller in self._callers.values():
            if caller.region == region:
                (waiting if _waits(caller) else others).append(caller)
        for at in range(0, len(waiting), STEP_ENTRIES_MAX):
            self.shards.spawn(self._attach_together(waiting[at : at + STEP_ENTRIES_MAX], region))
        for caller in others:
            self.shards.spawn(self._attach_again(caller, region))

    async def _attach_together(self, callers: Sequence[Caller], region: str) -> None:
        """Attaches waiting calls by one question; those that do not stand as they did, one by one."""
        try:
            async with self.shards.turnstiles[region].passage(Urgency.AGENT):
                present = [c for c in callers if self._alive(c) and c.region == region]
                together = tuple((c.facts.call_id, *c.version) for c in present if _waits(c))
                apart = {c.facts.call_id for c in present if not _waits(c)}
                if together:
                    apart |= await self._attach_all(together, region)
        except NoTurn:
            # The next change of leader begins anew.
            return
        for caller in present:
            if caller.facts.call_id in apart:
                self.shards.spawn(self._attach_again(caller, region))

    async def _attach_all(self, calls: tuple[tuple[str, int, int], ...], region: str) -> set[str]:
        """Those of the calls that the leader has not attached."""
        try:
            answer = (await self.shards.ask(region, AttachCalls(front=self.router, calls=calls))).answer
        except CallmeshError as error:
            log.info("not_attached", shard=region, calls=len(calls), error=error.reason)
            return {call_id for call_id, _, _ in calls}
        if answer.refusal is not None:
            return {call_id for call_id, _, _ in calls}
        return set(answer.apart)

    async def _attach_again(self, caller: Caller, region: str) -> None:
        urgency = Urgency.CALLER if caller.state in BEFORE_CONNECTION else Urgency.TALKING

        async def attach() -> bool:
            async with caller.placing:
                here = self._alive(caller) and caller.region == region
                return not here or await self._attach(caller, region)

        await self.shards.until_done(region, urgency, attach)

    def _region_lost(self, region: str) -> None:
        """A region was gone for too long: its waiting calls go elsewhere, conversations are left to their
        endpoints.
        """
        self._lost_timers.pop(region, None)
        self._lost.add(region)
        waiting = [c for c in self._callers.values() if c.region == region and c.state in BEFORE_CONNECTION]
        log.warning("region_lost", region=region, calls=len(waiting))
        for caller in waiting:
            self.shards.spawn(self._place_elsewhere(caller, region))

    async def _place_elsewhere(self, caller: Caller, lost: str) -> None:
        async with caller.placing:
            if self._alive(caller) and caller.region == lost and lost in self._lost:
                await self._flee(caller, lost)

    async def _flee(self, caller: Caller, lost: str) -> None:
        try:
            others = [r for r in caller.regions if r != lost and self._ports[r].up]
            if not others and not self._alone and await self._comes_back(caller, lost):
                return
            caller.moved_for = "REGION_LOST"
            await self._place(caller, others)
            _MOVED.labels("REGION_LOST").inc()
            self._leave_behind(caller, [lost])
        except CallmeshError as error:
            caller.push(error)

    async def _comes_back(self, caller: Caller, lost: str) -> bool:
        """Whether a region that there is no other for has a leader again soon; then it goes on there. To be
        waited for, by chance no two equally long: a stream that ends is opened again at once, elsewhere.
        """
        seconds = self._options.leaderless_seconds * random.uniform(1.0, 3.0)
        caller.stays = True
        try:
            async with self.shards.turnstiles[lost].passage(Urgency.CALLER, seconds):
                return True
        except NoTurn:
            # It may be back, and others' turn before this one's: it attaches with all who wait.
            return self._ports[lost].up
        finally:
            caller.stays = False

    # --- facts

    def _on_facts(self, shard: str, epoch: int, sequence: int, facts: Sequence[Fact]) -> None:
        durable = self._ports[shard].durable
        for fact in facts:
            event, call, agent = fact.event, fact.call, fact.agent
            caller = self._callers.get(call.facts.call_id) if call is not None else None
            desk = self.desks.get(agent.agent) if agent is not None else None
            if call is not None and isinstance(event, _PLACED) and event.front == self.router:
                self._disown(caller, shard, event, call.facts.call_id)
            if caller is None and desk is None:
                continue
            update = Update(
                shard=shard,
                epoch=epoch,
                sequence=sequence,
                now_ms=fact.now_ms,
                what=fact,
                durable=durable,
            )
            if caller is not None:
                self._tell_caller(caller, shard, fact, update)
            if desk is not None:
                self.desks.hear(desk, fact, update)

    def _tell_caller(self, caller: Caller, shard: str, fact: Fact, update: Update) -> None:
        assert fact.call is not None
        event, view = fact.event, fact.call
        if isinstance(event, _PLACED) and event.front != self.router:
            self._held_elsewhere(caller, shard, event)
            return
        if type(event) is CallEnded and view.state is not ENDED:
            # An older entry's end: the same command has queued the call anew.
            return
        if shard != caller.region or (view.attempt, view.move) != caller.version:
            if _is_hang_up(event) and view.attempt == caller.attempt:
                self._hung_up_elsewhere(caller, update)
            return
        if type(event) is CallEnded and (event.outcome, event.reason) == _LAPSED and self._alive(caller):
            self._place_anew(caller)
            return
        if type(event) is CallEnded and event.outcome is MOVED:
            self._supersede(caller, "it was placed elsewhere under a higher number")
            return
        self._hear(caller, fact, update)

    def _hear(self, caller: Caller, fact: Fact, update: Update) -> None:
        """Something happened to the entry that this stream is about."""
        event, view = fact.event, fact.call
        assert view is not None
        if type(event) is CallTransferred:
            self._handed_on(caller, event, view)
        elif type(event) is CallReprioritized:
            caller.facts = view.facts
        if type(event) is CallQueued and caller.move > 1:
            moved = Moved(region=update.shard, reason=caller.moved_for)
            caller.push(msgspec.structs.replace(update, what=moved))
        # A leader has come: to who waits where it did, nothing has happened.
        unmoved = type(event) is CallAttached and caller.heard and caller.facts == view.facts
        told = type(event) is not CallOverflowing and not (unmoved and caller.state is view.state is WAITING)
        if type(event) is PositionChanged:
            told = _is_news(caller, (event.position, event.expected_wait_span_ms), self._clock.monotonic())
        elif told:
            self._note_place(caller, view)
        caller.heard = True
        if type(event) is not PositionChanged:
            caller.state = view.state
            caller.heard_at = (update.shard, update.epoch, update.sequence)
        if type(event) is CallAttached:
            caller.facts = view.facts
        if told:
            caller.push(update)
        if type(event) is OfferEnded and event.outcome is OfferOutcome.UNCONFIRMED:
            caller.push(Unconfirmed(subject=f"calls/{caller.facts.call_id}"))
            self._let_go(caller)
        elif caller.updates.cut_off:
            self._let_go(caller)
        elif caller.auto_confirm:
            self._consent(caller, view)

    def _let_go(self, caller: Caller) -> None:
        """The edge confirmed nothing or reads nothing, and its stream may stay open for ever: its shard lets
        go of the call, and no leader to come shall have it from here. A living edge opens it again, and keeps
        its place.
        """
        log.info("caller_let_go", call=caller.facts.call_id, unread=caller.updates.cut_off)
        del self._callers[caller.facts.call_id]
        self._leave(caller, caller.region, caller.move)

    def _handed_on(self, caller: Caller, event: CallTransferred, view: CallView) -> None:
        """The call is another from now on; to another shard's agent it is brought."""
        caller.facts = event.facts
        caller.queued_ms = caller.moved_ms = self._clock.now_ms()
        if view.state is OVERFLOWING and not caller.moving:
            caller.moving = True
            self.shards.spawn(self._bring(caller, event.facts.preferred_agent))

    async def _bring(self, caller: Caller, agent: str) -> None:
        """Places a call that was handed on at the agent's region; failing that, its source goes on."""
        try:
            region = await self._find_agent(agent)
        except CallmeshError as error:
            log.info("agent_not_found", agent=agent, error=error.reason)
            region = None
        if region is None or region not in self._ports or region == caller.region:
            caller.moving = False
            return
        await self._move(caller, region)

    def _disown(
        self, caller: Caller | None, shard: str, event: CallQueued | CallAttached, call_id: str
    ) -> None:
        """A placement of this router took effect after its stream had gone or moved on: a message came late
        or twice. Nobody would listen to that entry.
        """
        version = event.attempt, event.move
        if caller is None:
            self._detach_soon(shard, call_id, *version)
            return
        elsewhere = shard not in (caller.region, caller.source)
        if version > caller.version and (elsewhere or event.attempt > caller.attempt):
            # A stream before this one had numbered higher.
            self._detach_soon(shard, call_id, *version)
        elif version < caller.version and elsewhere:
            self.shards.spawn(self._withdraw(shard, call_id, caller.attempt, caller.move))

    def _held_elsewhere(self, caller: Caller, shard: str, event: CallQueued | CallAttached) -> None:
        """The edge has opened the call at another router; an entry that this one left behind is withdrawn."""
        same_entry = shard == caller.region and (event.attempt, event.move) >= caller.version
        if event.attempt <= caller.attempt and not same_entry:
            return
        self._supersede(caller, "opened at another router")
        for region in regions_of(caller.region, caller.source, besides=shard):
            self.shards.spawn(self._withdraw(region, caller.facts.call_id, event.attempt, event.move))

    def _supersede(self, caller: Caller, why: str) -> None:
        """Ends the stream without a word to the shard: the entry is another's now."""
        caller.push(Superseded(subject=f"calls/{caller.facts.call_id}", why=why))
        del self._callers[caller.facts.call_id]

    def _hung_up_elsewhere(self, caller: Caller, update: Update) -> None:
        """The caller hung up at the entry that this call is just leaving: the new one must not live on."""
        caller.hung_up = True
        caller.push(update)
        for region in regions_of(caller.region, caller.source):
            self.shards.spawn(self._hang_up_at(region, caller.facts.call_id, caller.attempt))

    def _consent(self, caller: Caller, view: CallView) -> None:
        """`auto_confirm`: the front consents for an edge that cannot."""
        if not caller.auto_confirm or view.state is not ACCEPTED:
            return
        command = ConfirmCall(
            call_id=view.facts.call_id, offer_id=view.offer_id, attempt=view.attempt, move=view.move
        )
        self.shards.spawn(self.shards.get_through(caller.region, lambda: command, self._options.ask_seconds))


def _is_news(caller: Caller, place: tuple[int, int], now_seconds: float) -> bool:
    """Whether a caller is to hear of a place: a new leader does not know what the one before it has told, nor
    any leader what an answer has.
    """
    before, seconds = caller.place, now_seconds - caller.place_seconds
    if before is not None and not noticeable(before, place, seconds):
        return False
    caller.place, caller.place_seconds = place, now_seconds
    return True


def _way(caller: Caller) -> _Way:
    facts = caller.facts
    return facts.queue, caller.region, facts.language, facts.channel, facts.skills != ()


def _is_particular(facts: CallFacts) -> bool:
    """Whether a call asks for something that regions do not say of their free agents."""
    return facts.skills != () or facts.channel != VOICE


def _wish(facts: CallFacts, region: str) -> _Wish:
    return facts.queue, facts.channel, facts.skills, region


def _waits(caller: Caller) -> bool:
    """Whether it is known to wait, and nothing is under way that may change where."""
    return caller.heard and caller.state is WAITING and (caller.stays or not caller.placing.locked())


def _is_hang_up(event: object) -> bool:
    """Whether the caller's own word ended the call: a lost stream, a refusal or a move has a reason."""
    return isinstance(event, CallEnded) and event.outcome is ABANDONED and not event.reason


def _ends(update: Update) -> bool:
    """Whether the client's stream is over after this update. A view may be ahead of its event: the event
    decides.
    """
    what = update.what
    if isinstance(what, Fact):
        if isinstance(what.event, CallbackRequested):
            return True
        return isinstance(what.event, CallEnded) and what.event.outcome is not MOVED
    if not isinstance(what, Present) or what.call is None:
        return False
    return what.call.state is ENDED or what.call.called_back
