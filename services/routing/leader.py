"""A shard's leader: takes commands, decides in memory, commits in groups, and lets nothing out before its
commit.

One block is in flight at a time; what is decided meanwhile forms the next (group commit). A decision is made
at once, on top of decisions not yet committed, but its answer and its facts wait for the commit of their
block. So a client hears only of what is in the journal of a majority.

Life: candidate (a warm standby: follows the journal's tail; after long enough a silence it writes a probe,
inserts an opening block and looks above it) → leader (the journal's progress, a block every heartbeat, is the
lease) → deposed (another's block stands where ours should: memory is dropped).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import structlog

from chassis.clock import Clock
from chassis.errors import Unavailable
from routing import codec, digests
from routing.audience import Audience, Holds
from routing.committed import Committed, LeaderGone, NotLeading, PoisonCommand, ShardBusy, StoreOutage
from routing.engine import step
from routing.journal import Block, ChainReader, JournalGap, JournalStore, OutcomeUnknown
from routing.leader_options import LeaderOptions
from routing.memory import apply, restored
from routing.metrics_leader import BLOCKS, COMMITS, EVENTS, LEADS, OPENINGS, PAUSES, POISON, TAKEOVERS
from routing.model import (
    BLOCK_BYTES_MAX,
    EVENTS_PER_BLOCK_MAX,
    Answer,
    Command,
    ConfigureTiming,
    DetachFront,
    Fact,
    MoveDeadlines,
    PlaceCall,
    ShardOpened,
)
from routing.pending import Pending, names_list
from routing.positions import Positions
from routing.settling import RETRY_SECONDS_MAX, Settling
from routing.silence import Silence
from routing.state import ShardState
from routing.timers import Timers

if TYPE_CHECKING:
    from routing.continuing import Continuing

#: Commands decided and not committed; beyond it new calls are refused, beyond twice it everything is but that
#: a front is gone, which nobody would say again.
PENDING_MAX = 10_000
#: Commands that are enough for a block; it is sent without waiting for more.
GATHERED_MAX = 200
#: While blocks have at least so many commands, they begin so many times as far apart.
CROWD_COMMANDS, CROWD_SPACINGS = 8, 3
#: A backup, which waits for longer than a region's own router, looks so many times less often: most routers
#: that follow a journal never lead it.
BACKUP_TAILS = 2
#: A reader of many blocks lets others have their turn after this, real seconds.
READ_TURN_SECONDS = 0.005
#: A deposed router waits so many times the silence.
DEPOSED_PATIENCE = 2.0
#: Candidates wait up to so much longer than they must, so that not all of them open at once.
JITTER = 0.2
log = structlog.get_logger(__name__)


class Phase(enum.StrEnum):
    """What this router is to the shard."""

    CANDIDATE = "candidate"
    LEADING = "leading"
    STOPPED = "stopped"


#: By short names: what a leader is asked begins with the question whether it is one.
_CANDIDATE, _LEADING, _STOPPED = Phase


@dataclass(slots=True)
class _Known:
    """What a process knows of its shard's journal for as long as it lives."""

    #: Newest block that it ever knew itself to be committed, and that others said is; newest epoch that was
    #: ever heard of.
    sequence: int = 0
    heard: int = 0
    epoch: int = 0
    #: Sequence of an opening of its own that may be in the journal and is not in its memory; 0 for none.
    opening: int = 0
    #: The journal was read to its end.
    was_read: bool = False


@dataclass(slots=True)
class _Told:
    """What has left a leader."""

    #: Newest block that something was told of, and the events ever applied up to it.
    sequence: int = 0
    ordinal: int = 0
    #: What is being told just now is in the journal of a majority.
    durable: bool = True


#: How facts reach a front: (facts, epoch, sequence, committed time of the shard).
Outlet = Callable[[Sequence[Fact], int, int, int], None]


class Leader:
    """Leads one shard, or tries to. All methods belong to the event loop that runs `run`."""

    def __init__(
        self,
        *,
        shard: str,
        router: str,
        store: JournalStore,
        clock: Clock,
        options: LeaderOptions,
        home: bool = True,
    ) -> None:
        """`router` is how other routers reach this one (`host:port`) and what lead lists name; `home` says
        that it is one of the shard's own region.
        """
        self.shard = shard
        self.router = router
        self._home = home
        self._store = store
        self.clock = clock
        #: The wall clock as it was when the monotonic one stood at 0: business time is made of the same, and
        #: a later step of the wall clock changes neither.
        self._wall_ms = time.time_ns() / 1_000_000 - clock.monotonic() * 1000.0
        self.options = options
        self.phase = _CANDIDATE
        self.state = ShardState(shard)
        self._chain = ChainReader()
        self._pending: deque[Pending] = deque()
        self._work, self.timer, self._led = asyncio.Event(), asyncio.Event(), asyncio.Event()
        #: The timers sleep until then (business milliseconds); an earlier deadline wakes them.
        self.timer_ms: float = inf
        #: Wakes a candidate that need not wait any longer.
        self._turn = asyncio.Event()
        #: An operator wants it to open, now.
        self._seizing = False
        self.outlets: dict[str, Outlet] = {}
        self._holders: dict[str, Holds] = {}
        self.settling = Settling(self)
        #: Whatever its memory has forgotten since.
        self._known = _Known()
        self._audience, self.told = Audience(), _Told()
        self._offset_ms = self._platform_ms = 0
        self._deposed: str | None = None
        #: Who wrote the newest opening block that was read; empty if none was.
        self.opened_by = ""
        #: Who had led before this router's newest opening, and the silence in between, business time.
        self._predecessor, self._leaderless_ms = "", 0
        #: A block of another leader deposed this router, and it has not led since.
        self._was_deposed = False
        #: It gave up by itself and may open again at once.
        self._resume = False
        #: Loop's time of the last opening of its own.
        self._opened_seconds = float("-inf")
        #: Loop's time when the last block was put together, and how long after it the next may be.
        self._gathered_seconds = float("-inf")
        self._spacing_seconds = options.gather_seconds
        #: Block that carried a digest last, or the opening.
        self._digest_sequence = 0
        #: It has led, or followed a living leader: it can serve.
        self._warm = False
        #: Called when another router has opened the shard.
        self.on_follow: list[Callable[[], None]] = []
        #: Called when this router begins, and when it ceases, to lead.
        self.on_lead: list[Callable[[], None]] = []
        self.on_drop: list[Callable[[], None]] = []
        #: The newest block that others, a lead list first, know to be committed, 0: none; None: not asked.
        self.ask_others: Callable[[Sequence[str]], Awaitable[int]] | None = None
        #: How it outlasts an outage of the store; None: it refuses new work until the store is back.
        self.continuing: Continuing | None = None

    # --- what others call

    @property
    def leading(self) -> bool:
        return self.phase is _LEADING

    @property
    def ready(self) -> bool:
        """Whether it leads, or is a warm standby of a shard that has been led since it began to follow."""
        return self._warm and self.phase is not _STOPPED

    @property
    def listed(self) -> bool:
        """Whether this router is on the shard's lead list; an empty one means the region's own routers."""
        routers = self.state.lead_list
        return self.router in routers if routers else self._home

    @property
    def epoch(self) -> int:
        return self.state.epoch

    @property
    def sequence(self) -> int:
        """Newest committed block."""
        return self._chain.sequence

    @property
    def outage(self) -> bool:
        """Whether nobody has said for too long what became of the block in flight, by an error or by
        silence.
        """
        since = self.settling.sent_seconds
        if self.continuing is not None and self.leading:
            since = None if self.continuing.going_on else self.continuing.stalled_since
        return since is not None and self.clock.monotonic() - since >= self.options.outage_seconds

    @property
    def stalled(self) -> bool:
        """It leads, and cannot commit just now."""
        return self.leading and self.outage

    async def wait_until_leading(self) -> None:
        await self._led.wait()

    def now_ms(self) -> int:
        """The shard's time: the database's at the opening plus monotonic time since, never behind the last
        block.
        """
        return max(self.clock.now_ms() + self._offset_ms, self.state.now_ms)

    def platform_ms(self) -> int:
        """The time that all routers share, as far as this one has heard of it: the shard's own while leading,
        the newest block's while following; 0 before the first block. Never this machine's clock, nor behind
        what it said before.
        """
        heard_ms = self.now_ms() if self.phase is _LEADING else self.state.now_ms
        self._platform_ms = max(self._platform_ms, heard_ms)
        return self._platform_ms

    def add_outlet(self, front: str, outlet: Outlet, holds: Holds | None = None) -> bool:
        """Facts for `front` go here from now on; whether another outlet of that name has lost its place. One
        that can say which calls' streams it `holds` is spared the ends of others.
        """
        replaced = front in self.outlets
        self.outlets[front] = outlet
        if holds is not None:
            self._holders[front] = holds
        return replaced

    def remove_outlet(self, front: str, outlet: Outlet) -> bool:
        """No more, unless another outlet of the same front has taken over; whether it was still this one."""
        if self.outlets.get(front) == outlet:
            del self.outlets[front]
            self._holders.pop(front, None)
            return True
        return False

    def hear_epoch(self, epoch: int) -> None:
        """Somebody has heard from a leader of this epoch: an older one steps down."""
        self._known.epoch = max(self._known.epoch, epoch)
        if self.phase is _LEADING and epoch > self.epoch:
            self._was_deposed = True
            self._depose(f"epoch {epoch} leads by now")

    def hear_committed(self, sequence: int) -> None:
        """Another router knows that this block is committed: a journal that ends below it was set back."""
        self._known.heard = max(self._known.heard, sequence)

    @property
    def newest_committed(self) -> int:
        """Newest block that this router has ever read, or written, as committed: what it tells others. What
        it was told it does not pass on, or a restored journal would be refused long after all who know
        better are gone.
        """
        return max(self._known.sequence, self._chain.sequence)

    def yield_to(self, router: str) -> bool:
        """A router asks to lead in place of this one: it may when the shard's lead list names it before this
        one. Whether this one has stopped to lead; what it has not committed is unknown to who asked for it.
        """
        routers = self.state.lead_list
        if self.phase is not _LEADING or not {router, self.router} <= {*routers}:
            return False
        if self.continuing is not None and self.continuing.owing:
            # Its blocks first.
            return False
        if routers.index(router) >= routers.index(self.router):
            return False
        self._was_deposed = True
        self._depose(f"{router} leads again")
        return True

    async def could_lead(self) -> bool:
        """Whether this standby follows a living leader and could write in its place."""
        if self.phase is not _CANDIDATE or not self._warm or not self.listed:
            return False
        before = self.sequence
        if not await self._probe():
            return False
        await asyncio.sleep(2 * self.options.heartbeat_seconds)
        return self.phase is _CANDIDATE and self.sequence > before

    def take_turn(self) -> None:
        """The leader has stopped for this standby, which need not wait for the journal's silence."""
        if self.phase is _CANDIDATE:
            self._resume = True
            self._turn.set()

    def begin_seizure(self) -> None:
        """An operator's word: from now on this router opens as soon as it can write, whoever leads and
        whatever the lead list says, until it leads or the seizure ends.
        """
        self._seizing = True
        self._turn.set()

    def end_seizure(self) -> None:
        """It waits for its turn again, as others do."""
        self._seizing = False

    def submit(self, command: Command) -> asyncio.Future[Committed]:
        """Decides a command now; the future is done once its block is committed.

        Raises NotLeading, StoreOutage (only for new calls), ShardBusy, PoisonCommand; then nothing has
        changed. The future fails with LeaderGone when this router is deposed before the commit: whether it
        happened is then unknown.
        """
        self._check(command)
        pending = self.decide(command)
        pending.future = asyncio.get_running_loop().create_future()
        self.enqueue(pending)
        return pending.future

    def carry_out(self, command: Command) -> Answer:
        """Decides a command that nobody waits for; the answer is speculative. Raises as `submit`."""
        self._check(command)
        pending = self.decide(command)
        self.enqueue(pending)
        return pending.answer

    def _check(self, command: Command) -> None:
        if self.phase is not _LEADING:
            raise NotLeading(shard=self.shard, retry_seconds=self.options.heartbeat_seconds)
        new_work = type(command) is PlaceCall and command.facts.call_id not in self.state.calls
        if new_work and self.outage:
            raise StoreOutage(shard=self.shard, retry_seconds=self.options.outage_seconds)
        limit = PENDING_MAX if new_work else 2 * PENDING_MAX
        if len(self._pending) >= limit and not isinstance(command, DetachFront):
            raise ShardBusy(shard=self.shard, retry_seconds=self.options.outage_seconds)

    def decide(self, command: Command) -> Pending:
        """Decides, and makes ready what will be told: nothing that may fail is left for later."""
        ordinal, now_ms = self.state.ordinal, self.now_ms()
        try:
            events, answer = step(self.state, command, now_ms)
            packed = list(map(codec.pack, events))
            facts = self._audience.facts(self.state, events, answer, now_ms)
        except Exception as error:
            POISON.labels(self.shard).inc()
            log.exception("poison_command", shard=self.shard, command=type(command).__name__)
            halfway = self.state.ordinal != ordinal
            if halfway:
                # Applied, at least in part, and not to be committed: the memory is no longer the journal's.
                # Start again from the journal, without this command.
                self._depose("the engine failed on its own decision")
            raise PoisonCommand(type(command).__name__, deposed=halfway) from error
        size = codec.size_of(packed)
        return Pending(now_ms, packed, answer, None, facts, self.state.ordinal, size)

    def enqueue(self, pending: Pending) -> None:
        self._pending.append(pending)
        if self.continuing is not None:
            self.continuing.lists.may_be(self.state.lead_list)
        self._work.set()
        earliest_ms = self.state.deadlines.earliest_ms
        if self.state.unpaired or earliest_ms < self.timer_ms or earliest_ms <= pending.now_ms:
            self.timer.set()

    # --- life

    async def run(self) -> None:
        """Leads whenever it can, until cancelled."""
        try:
            while True:
                try:
                    await self._open()
                    await self._lead()
                except OutcomeUnknown as error:
                    log.warning("journal_unreachable", shard=self.shard, error=str(error)[:200])
                    await asyncio.sleep(RETRY_SECONDS_MAX)
                except JournalGap as error:
                    # Never led over: an operator has to look (a restore, a lost block, a newer release's
                    # format).
                    log.error("journal_gap", shard=self.shard, error=str(error))
                    self._drop(_CANDIDATE, "the journal cannot be led")
                    await asyncio.sleep(self.options.takeover_seconds)
        finally:
            self._drop(_STOPPED, "stopped")
            await self._store.close()

    async def _open(self) -> None:
        """Follows the journal until it is this router's turn, inserts an opening block and looks above it.
        Returns as the leader.
        """
        self._drop(_CANDIDATE, "reading the journal")
        await self._load_snapshot()
        await self._catch_up()
        self._known.was_read = True
        while True:
            await self._await_turn()
            if await self._is_behind():
                continue
            # From here on this router promises nobody not to open.
            self._known.opening = self._chain.sequence + 1
            try:
                block = await self._opening_block()
            except OutcomeUnknown:
                self._known.opening = 0
                raise
            if not await self.settling.settle(block):
                self._known.opening = 0
                await self._catch_up()
                continue
            self._known.epoch = max(self._known.epoch, block.epoch)
            if await self._store.above(self.shard, block.sequence):
                # It slept between reading and opening: what stands above was decided without this block.
                raise OutcomeUnknown(f"{self.shard}: opened below the tail")
            self._apply(block)
            break
        self._begin()

    async def _is_behind(self) -> bool:
        """Whether there is a block that others have read first. Raises JournalGap when the journal does not
        have it: then the database was set back.
        """
        known = max(self._known.sequence, self._known.heard)
        if self._chain.sequence >= known:
            return False
        if await self._follow() and self._chain.sequence < known:
            end = self._chain.sequence
            raise JournalGap(
                f"{self.shard}: ends at {end} after {known} was committed: the database was set back"
            )
        return True

    async def _await_turn(self) -> None:
        """Follows the tail until nobody has written for as long as this router must wait, and it can
        write.
        """
        loop = asyncio.get_running_loop()
        newest, patience = self._chain.sequence, self._patience_seconds()
        tail_seconds = self.options.tail_seconds * (1 if self._home else BACKUP_TAILS)
        silence = Silence(loop.time())
        while True:
            can_seize = self._wants_seizure and await self._probe() and await self._follow()
            if can_seize and self._wants_seizure:
                return
            left = patience - silence.seconds
            if left <= 0 and self.listed and self._may_open and await self._can_write() and self._may_open:
                return
            pause = min(tail_seconds, max(left, 0.0)) or tail_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._turn.wait()
            if self._turn.is_set():
                self._turn.clear()
                await self._follow()
                newest, patience = self._chain.sequence, self._patience_seconds()
                silence.heard(loop.time())
                continue
            # However far apart its looks are, no more of one that came late counts.
            silence.look(loop.time(), min(pause, self.options.tail_seconds))
            # What was not seen to be silent was not silent: the leader has its time again after an outage.
            if not await self._follow() or left <= 0 or self._chain.sequence != newest:
                newest, patience = self._chain.sequence, self._patience_seconds()
                silence.heard(loop.time())

    @property
    def _wants_seizure(self) -> bool:
        """Whether an operator still wants it to open, and it may."""
        return self._seizing and self._may_open

    @property
    def _may_open(self) -> bool:
        """Whether it has not promised to wait."""
        return self.continuing is None or self.continuing.may_open()

    def _patience_seconds(self) -> float:
        """How long the journal must be silent before this router may open it."""
        if self._resume or (self._home and not self._chain.sequence):
            self._resume = False
            return 0.0
        wait = self.options.takeover_seconds if self._home else self.options.backup_seconds
        return wait * random.uniform(1.0, 1.0 + JITTER) * (DEPOSED_PATIENCE if self._was_deposed else 1.0)

    async def _follow(self) -> bool:
        """Reads on as a standby; False when the journal cannot be read just now."""
        before, epoch = self._chain.sequence, self.epoch
        try:
            await self._catch_up()
        except OutcomeUnknown as error:
            log.info("tail_unread", shard=self.shard, error=str(error)[:200])
            return False
        if self._chain.sequence != before:
            self._warm = True
        if self.epoch != epoch:
            log.info("following", shard=self.shard, epoch=self.epoch, leader=self.opened_by)
            for callback in list(self.on_follow):
                callback()
        return True

    async def _can_write(self) -> bool:
        """Whether a majority takes a probe of this router's while the journal stays silent. Reads go on
        without a majority, so silence alone may be the store's.
        """
        before = self._chain.sequence
        return await self._probe() and await self._follow() and self._chain.sequence == before

    async def _probe(self) -> bool:
        """Whether a majority takes a probe of this router's."""
        try:
            async with asyncio.timeout(self.options.outage_seconds):
                await self._store.probe(self.shard, self.router)
        except (OutcomeUnknown, TimeoutError) as error:
            log.info("probe_failed", shard=self.shard, error=str(error)[:200])
            return False
        return True

    async def _opening_block(self) -> Block:
        real_ms = await self._store.now_ms()
        self._offset_ms = self._business_offset_ms(real_ms)
        now_ms = self.now_ms()
        leaderless_ms = now_ms - self.state.now_ms if self._chain.sequence else 0
        self._predecessor, self._leaderless_ms = self.opened_by, leaderless_ms
        opened = ShardOpened(router=self.router, leaderless_span_ms=leaderless_ms)
        sequence = self._chain.sequence + 1
        return self._block([(now_ms, codec.pack(opened))], now_ms, sequence=sequence, epoch=sequence)

    def _business_offset_ms(self, database_real_ms: int) -> int:
        """How far the database's clock is ahead of the one that business time is made of (business time)."""
        difference_ms = database_real_ms - (self._wall_ms + self.clock.monotonic() * 1000.0)
        return round(difference_ms * self.clock.speed)

    async def _catch_up(self) -> None:
        """Reads to the tail; at a gap that pruning has made, from the newest snapshot on. Raises JournalGap
        for any other.
        """
        try:
            await self._read_tail()
        except JournalGap:
            if not await self._load_snapshot():
                raise
            await self._read_tail()

    async def _load_snapshot(self) -> bool:
        """Begins at the newest usable snapshot above what is known; False, and nothing changed, without
        one.
        """
        for manifest in await self._store.manifests(self.shard):
            if manifest.sequence <= self._chain.sequence:
                return False
            state = await restored(self._store, self.shard, manifest)
            if state is not None:
                self.state, self._chain = state, ChainReader(manifest.sequence, manifest.nonce)
                self._known.epoch = max(self._known.epoch, manifest.epoch)
                log.info("snapshot_loaded", shard=self.shard, sequence=manifest.sequence)
                return True
        return False

    async def _read_tail(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.time()
        async for block in self._store.read(self.shard, self._chain.sequence):
            self._apply(block)
            if loop.time() - turn > READ_TURN_SECONDS:
                await asyncio.sleep(0)
                turn = loop.time()

    def _apply(self, block: Block) -> None:
        """Takes the next committed block into the memory. Raises JournalGap, as `memory.apply`."""
        try:
            self.opened_by = apply(self.state, self._chain, block) or self.opened_by
        finally:
            # Also of a block that cannot be read on from: its epoch is heard of.
            self._known.epoch = max(self._known.epoch, self.state.epoch)

    def _begin(self) -> None:
        self.phase = _LEADING
        self._audience = Audience.of(self.state)
        self._audience.holders = self._holders
        self.told.ordinal = self.state.ordinal
        self._deposed, self._was_deposed, self._warm = None, False, True
        self.told.sequence, self._known.opening = self.sequence, 0
        self._opened_seconds = asyncio.get_running_loop().time()
        self._digest_sequence = self.epoch
        self._count_opening()
        log.info("leading", shard=self.shard, epoch=self.epoch, calls=len(self.state.calls))
        if self.continuing is not None:
            self.continuing.lists.is_in_force(self.state.lead_list)
        self.carry_out(ConfigureTiming(timing=self.options.timing))
        self._led.set()
        for callback in list(self.on_lead):
            callback()

    def _count_opening(self) -> None:
        LEADS.labels(self.shard).set(1)
        OPENINGS.labels(self.shard).inc()
        if self._predecessor not in ("", self.router):
            TAKEOVERS.labels(self.shard).inc()
        if self._leaderless_ms:
            PAUSES.labels(self.shard).observe(self.clock.real_seconds(self._leaderless_ms / 1000.0))

    def _drop(self, phase: Phase, why: str) -> None:
        """Forgets everything that is not in the journal; whoever waits learns that the result is unknown."""
        was_leading = self.phase is _LEADING
        self.phase = phase
        self._led.clear()
        waiting, self._pending = self._pending, deque()
        for pending in waiting:
            if pending.future is not None and not pending.future.done():
                pending.future.set_exception(LeaderGone(shard=self.shard, retry_seconds=1.0))
                # Whoever asked may be gone by now; that is nothing to log.
                pending.future.exception()
        self._known.sequence = max(self._known.sequence, self._chain.sequence)
        self.settling.known_seconds = float("-inf")
        self.state, self._chain = ShardState(self.shard), ChainReader()
        self.opened_by = ""
        LEADS.labels(self.shard).set(0)
        for metric in (OPENINGS, TAKEOVERS, PAUSES, POISON):
            # There before anything happens: a first time is an increase as well.
            metric.labels(self.shard)
        if was_leading:
            self._tell_dropped(why)

    def _tell_dropped(self, why: str) -> None:
        log.warning("stepped_down", shard=self.shard, reason=why)
        for callback in list(self.on_drop):
            callback()

    def _depose(self, why: str) -> None:
        """Leads no longer. Its memory is dropped when its loop comes to it, and read from the journal
        again.
        """
        self._deposed = why
        if self.phase is _LEADING:
            self.phase = _CANDIDATE
            self._tell_dropped(why)
        self._led.clear()
        self._work.set()
        self.timer.set()

    # --- leading

    async def _lead(self) -> None:
        helpers = [
            asyncio.create_task(Timers(self).run(), name=f"timers-{self.shard}"),
            asyncio.create_task(Positions(self).run(), name=f"positions-{self.shard}"),
        ]
        for helper in helpers:
            helper.add_done_callback(self._helper_ended)
        try:
            while self._deposed is None:
                await self._commit_next()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        log.warning("deposed", shard=self.shard, reason=self._deposed)
        # Who gave up by itself need not wait for itself, unless it does so again and again.
        held = asyncio.get_running_loop().time() - self._opened_seconds
        self._resume = not self._was_deposed and held > self.options.takeover_seconds

    def _helper_ended(self, helper: asyncio.Task[None]) -> None:
        """A leader without timers would hold calls and agents for ever: better to begin again."""
        if not helper.cancelled() and self._deposed is None:
            log.error(
                "helper_failed", shard=self.shard, helper=helper.get_name(), error=repr(helper.exception())
            )
            self._depose(f"{helper.get_name()} failed")

    async def _commit_next(self) -> None:
        """Commits what is pending, or an empty block when the heartbeat is due."""
        if not self._pending:
            self._work.clear()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it may swallow a cancellation.
                async with asyncio.timeout(self.options.heartbeat_seconds):
                    await self._work.wait()
            if self._deposed is not None:
                return
        await self._gather()
        if self._deposed is not None:
            return
        batch, events = self._take_batch()
        block = self._block(events, self.now_ms() if not events else events[0][0], digest=self._digest())
        if self.continuing is not None:
            # As below, and through an outage.
            await self.continuing.commit(batch, block)
            return
        started = self.clock.monotonic()
        settled = False
        try:
            settled = await self.settling.settle(block)
        finally:
            if not settled:
                # Whoever waits for these learns from `_drop` that the result is unknown.
                self._pending.extendleft(reversed(batch))
        if not settled:
            self.lose_to_another(block)
            return
        seconds = self.clock.monotonic() - started
        self.finish(batch, block, seconds, seconds)

    def lose_to_another(self, block: Block) -> None:
        """Another leader's block stands where this one should."""
        self._was_deposed = True
        self._depose(f"another leader's block stands at {block.sequence}")

    def finish(
        self,
        batch: list[Pending],
        block: Block,
        seconds: float,
        stalled_seconds: float,
        *,
        told: bool = False,
    ) -> None:
        """A block is committed, after so many seconds; nothing could be decided for good during
        `stalled_seconds`. `told`: what follows from it has left already.
        """
        COMMITS.labels(self.shard).observe(seconds)
        BLOCKS.labels(self.shard).inc()
        EVENTS.labels(self.shard).inc(block.count)
        self._chain.accept(block)
        if stalled_seconds >= self.options.outage_seconds:
            self._move_deadlines(stalled_seconds)
        if not told:
            self._release(batch, block)
        if not self.listed and any(names_list(pending) for pending in batch):
            self._was_deposed = True
            self._depose("not on the lead list any more")

    # --- what an outage needs (continuing.py)

    @property
    def durable(self) -> bool:
        """Whether what is being told just now is in the journal of a majority."""
        return self.told.durable

    @property
    def store(self) -> JournalStore:
        return self._store

    @property
    def outage_seconds(self) -> float:
        return self.options.outage_seconds

    @property
    def stopped(self) -> bool:
        return self.phase is _STOPPED

    @property
    def opening_unknown(self) -> bool:
        """Whether an opening of its own may be in the journal, or come there yet."""
        return self._known.opening > self._chain.sequence

    @property
    def newest_epoch(self) -> int:
        """The newest that this process has ever heard of, whatever it has forgotten since."""
        return self._known.epoch

    @property
    def has_read(self) -> bool:
        """Whether it has read the journal to its end since its process began."""
        return self._known.was_read

    def monotonic(self) -> float:
        """Real seconds of the clock that its timers run by."""
        return self.clock.monotonic()

    def names_lists(self, batches: Sequence[list[Pending]]) -> bool:
        """Whether a decision of these batches, or one that is in no block yet, is of a lead list."""
        return any(names_list(pending) for batch in (*batches, self._pending) for pending in batch)

    @property
    def work(self) -> asyncio.Event:
        """Set when something was decided."""
        return self._work

    @property
    def has_work(self) -> bool:
        return bool(self._pending)

    async def probe(self) -> bool:
        """Whether it can write just now."""
        return await self._probe()

    def block_after(self, last: Block, batch: list[Pending]) -> Block:
        """The decisions of a batch as the block that follows `last`, which may not be committed yet."""
        events = [(pending.now_ms, event) for pending in batch for event in pending.events]
        now_ms = events[0][0] if events else max(last.now_ms, self.now_ms())
        block = self._block(events, now_ms, sequence=last.sequence + 1)
        return replace(block, prev=last.nonce)

    def take_batch(self) -> list[Pending]:
        """The oldest decisions, as many as a block may hold."""
        return self._take_batch()[0]

    def give_back(self, batch: list[Pending]) -> None:
        """Whoever waits for these learns from `_drop` that the result is unknown."""
        self._pending.extendleft(reversed(batch))

    def tell(self, batch: list[Pending], block: Block) -> None:
        """Gives out what follows from a block that only this leader's memory has."""
        self.told.durable = False
        try:
            self._release(batch, block)
        finally:
            self.told.durable = True

    def move_deadlines(self, seconds: float) -> None:
        """Nothing could be told for so long: nobody is late for that, if it was an outage."""
        if seconds >= self.options.outage_seconds:
            self._move_deadlines(seconds)

    def stop_for(self, router: str) -> None:
        """Another router has the blocks and opens."""
        self._was_deposed = True
        self._depose(f"{router} has taken its blocks and opens")

    async def _gather(self) -> None:
        """Waits a moment if a block was sent just now: a block costs this router and the database as much as
        a dozen decisions, so what comes at nearly the same time shares one. Who comes alone does not wait,
        and a crowd waits longer: it is as long in coming, and has more of the costs to share.
        """
        loop = asyncio.get_running_loop()
        rest = self._gathered_seconds + self._spacing_seconds - loop.time()
        if rest > 0 and len(self._pending) < GATHERED_MAX:
            await asyncio.sleep(rest)
        self._gathered_seconds = loop.time()
        spacings = CROWD_SPACINGS if len(self._pending) >= CROWD_COMMANDS else 1
        self._spacing_seconds = spacings * self.options.gather_seconds

    def _move_deadlines(self, outage_seconds: float) -> None:
        """Nothing could be done for so long: nobody is late for that. Before any timer has its turn."""
        log.warning("outage_over", shard=self.shard, seconds=round(outage_seconds, 3))
        # Deposed meanwhile, or full to the brim: neither is a reason for the loop to end.
        with contextlib.suppress(PoisonCommand, Unavailable):
            self.carry_out(MoveDeadlines(span_ms=round(outage_seconds * 1000 * self.clock.speed)))

    def _take_batch(self) -> tuple[list[Pending], list[tuple[int, codec.Packed]]]:
        """The oldest decisions, as many as a block may hold; a decision is never divided."""
        batch: list[Pending] = []
        events: list[tuple[int, codec.Packed]] = []
        size = 0
        while self._pending:
            pending = self._pending[0]
            size += pending.bytes
            too_much = size > BLOCK_BYTES_MAX or len(events) + len(pending.events) > EVENTS_PER_BLOCK_MAX
            if events and too_much:
                break
            batch.append(self._pending.popleft())
            events += [(pending.now_ms, event) for event in pending.events]
        return batch, events

    def _digest(self) -> str:
        """Of the state, for the next block, when one is due and the state is what it will be after that
        block.
        """
        sequence = self._chain.sequence + 1
        due = sequence // digests.DIGEST_BLOCKS > self._digest_sequence // digests.DIGEST_BLOCKS
        if not due or self._pending:
            return ""
        self._digest_sequence = sequence
        return digests.digest_of(self.state, sequence)

    def _block(
        self,
        events: list[tuple[int, codec.Packed]],
        now_ms: int,
        *,
        sequence: int = 0,
        epoch: int = 0,
        digest: str = "",
    ) -> Block:
        return Block(
            shard=self.shard,
            sequence=sequence or self._chain.sequence + 1,
            epoch=epoch or self.state.epoch,
            nonce=secrets.token_hex(8),
            prev=self._chain.nonce,
            now_ms=now_ms,
            format=codec.FORMAT,
            count=len(events),
            body=codec.join_events(events, now_ms),
            digest=digest,
        )

    def _release(self, batch: list[Pending], block: Block) -> None:
        """Gives out facts, then answers, of a committed block, in the order they were decided."""
        by_front: dict[str, list[Fact]] = {}
        self.told.sequence = block.sequence
        for pending in batch:
            self.told.ordinal = pending.ordinal
            for front, fact in pending.facts:
                by_front.setdefault(front, []).append(fact)
        for front, facts in by_front.items():
            outlet = self.outlets.get(front)
            if outlet is not None:
                outlet(facts, self.state.epoch, block.sequence, block.now_ms)
        shard, epoch, sequence, durable = self.shard, self.state.epoch, block.sequence, self.told.durable
        for pending in batch:
            future = pending.future
            if future is not None and not future.done():
                answer, now_ms = pending.answer, pending.now_ms
                future.set_result(
                    Committed(
                        answer=answer,
                        shard=shard,
                        epoch=epoch,
                        sequence=sequence,
                        now_ms=now_ms,
                        durable=durable,
                    )
                )
