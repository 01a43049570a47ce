"""`continue` in an outage: what a leader does with a block that stays unknown, and what a standby answers
when it is asked to hold. The rules are in holds.py; off by default, and then none of this exists.

The backlog is the blocks that are not known to be in the journal, oldest first. Its bytes are frozen, each
names the one before it. The first is always on its way to the store; when it is there, the next ones follow
many at a time, in order, each only if the one before was taken (ADR 35).
While all others hold, what is decided becomes further blocks of the backlog and is told with `durable=false`.
Without all holds, and while the backlog is written down, nothing more is told than in `reject`: that time is
an outage's, too, and moves the deadlines if it was long enough.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from chassis.metrics import counter, gauge
from routing import codec
from routing.holds import (
    LEADS,
    NEWER_EPOCH,
    OPENING,
    STOPPED,
    TOO_LONG,
    UNREAD,
    Asker,
    HoldAnswer,
    Holds,
    Lists,
    Moment,
    Promise,
    Round,
    Verdict,
)
from routing.journal import Block, JournalGap, OutcomeUnknown

if TYPE_CHECKING:
    from routing.leader import Leader

#: Holds are asked for this often, and an answer is waited for this long beside the router's own try; real
#: seconds.
RENEW_SECONDS, ANSWER_SECONDS = 1.0, 0.3
#: Blocks of the backlog begin at least so far apart, real seconds: each must be written down later. So far
#: when there are many of them.
GATHER_SECONDS, GATHER_SECONDS_LONG, LONG_BLOCKS = 0.05, 0.2, 1_000
#: Shortest pause of a leader that waits for something, real seconds.
MOMENT_SECONDS = 0.002
#: Blocks that one message hands over: bytes, about, and how many.
HANDED_BYTES_MAX, HANDED_BLOCKS_MAX = 4 << 20, 200
#: The same of blocks that are written down together.
WRITTEN_BYTES_MAX, WRITTEN_BLOCKS_MAX = 1 << 20, 100
#: Blocks handed over are tried to be written for this long, real seconds.
TAKE_SECONDS_MAX = 5.0
#: An orphaned backlog is tried to be kept so often, with this pause (real seconds).
ORPHAN_TRIES_MAX, ORPHAN_PAUSE_SECONDS = 120, 1.0
#: The size of a block's frame beside its body.
FRAME_BYTES = 256

log = structlog.get_logger(__name__)
_GOING_ON = gauge("callmesh_shard_from_memory", "1 while the shard is led from memory alone.", ["shard"])
_ORPHANS = counter(
    "callmesh_journal_orphaned_blocks_total", "Blocks told from memory that met another epoch.", ["shard"]
)


class HoldPeers(Protocol):
    """The other routers."""

    def homes(self, shard: str) -> Sequence[str]:
        """Addresses of the routers of the shard's own region."""

    async def hold(
        self, router: str, shard: str, asker: Asker, seconds: float, wait_seconds: float
    ) -> HoldAnswer | None:
        """Asks a router to hold; None when it does not answer within `wait_seconds`."""

    async def take(
        self, router: str, shard: str, asker: Asker, blocks: Sequence[Block], *, last: bool
    ) -> bool:
        """Hands blocks to a router that can write; whether it has them in the journal. With the `last` of
        them it opens the shard.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinueOptions:
    """Bounds of going on from memory."""

    #: A router promises not to open for this long, real seconds.
    hold_seconds: float = 3.0
    #: From memory for at most this long, real seconds.
    seconds_max: float = 600.0
    #: Bytes of blocks that may wait to be written down.
    backlog_bytes_max: int = 64 << 20


@dataclass(eq=False, slots=True)
class _Waiting:
    """A block of the backlog."""

    block: Block
    #: What it was made of.
    batch: list[Any]
    told: bool = False


def boottime() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Continuing:
    """One leader's or standby's part. Belongs to the event loop of the leader's `run`."""

    def __init__(self, leader: Leader, peers: HoldPeers, options: ContinueOptions) -> None:
        self._leader = leader
        self._peers = peers
        self._options = options
        self.promise = Promise(self._lasting(), options.hold_seconds)
        #: Who may be on the lead list in force.
        self.lists = Lists()
        #: Since when nothing decided could be told, a second of the leader's clock; None while all is told.
        self.stalled_since: float | None = None
        self._holds = Holds(options.hold_seconds)
        self._backlog: deque[_Waiting] = deque()
        self._bytes = 0
        #: Boottime at which the outage began; loop's time of the newest block of the backlog.
        self._began = 0.0
        self._sealed = float("-inf")
        #: The blocks are being handed over: nothing is told any more. Newest one that arrived so.
        self._handing, self._handed = False, 0
        #: Newest block that was sent with others and may be there or not.
        self._sent = 0
        #: Rounds of asking, ever.
        self._rounds = 0
        self._changed = asyncio.Event()
        #: One hand-over at a time is written down here.
        self._taking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        _GOING_ON.labels(leader.shard).set(0)
        _ORPHANS.labels(leader.shard)

    # --- what the leader asks

    @property
    def going_on(self) -> bool:
        """Whether the shard is led from memory just now."""
        if not self._backlog or self._handing or self._bytes >= self._options.backlog_bytes_max:
            return False
        within = boottime() - self._began < self._options.seconds_max
        return within and self._holds.left(self._now()) > 0.0

    @property
    def owing(self) -> bool:
        """Whether something is told and not written down."""
        return any(waiting.told for waiting in self._backlog)

    def may_open(self) -> bool:
        """Whether this router has promised nothing, and has not just started."""
        return self.promise.may_open(self._lasting())

    def _now(self) -> Moment:
        # Where all clocks of a machine stood still with it, the wall clock is set right first.
        return boottime(), self._leader.monotonic(), time.time()

    def _lasting(self) -> Moment:
        """By the clocks that nobody sets."""
        return boottime(), self._leader.monotonic()

    # --- the leader's side

    async def commit(self, batch: list[Any], block: Block) -> None:
        """Brings a block into the journal, and whatever follows it meanwhile; on return the backlog is empty,
        or the leader deposed. Raises JournalGap.
        """
        self._began, self._handing, self._handed, self._sent = boottime(), False, 0, 0
        self._push(_Waiting(block, batch))
        try:
            while self._backlog and self._leader.leading:
                await self._write_first()
                await self._write_on()
        finally:
            self._abandon()

    def _push(self, waiting: _Waiting) -> None:
        self._backlog.append(waiting)
        self._bytes += len(waiting.block.body) + FRAME_BYTES

    def _pop(self) -> _Waiting:
        first = self._backlog.popleft()
        self._bytes -= len(first.block.body) + FRAME_BYTES
        return first

    async def _write_first(self) -> None:
        """Writes down the oldest block, going on from memory meanwhile where that is allowed."""
        leader, first = self._leader, self._backlog[0]
        started = leader.monotonic()
        if self.stalled_since is None:
            self.stalled_since = started
        sent = first.block.sequence <= self._sent
        sender = asyncio.ensure_future(leader.settling.settle(first.block, sent=sent))
        try:
            await asyncio.wait({sender}, timeout=leader.outage_seconds)
            if not sender.done():
                await self._outlast(sender)
        finally:
            if not sender.done():
                sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        if sender.cancelled() or not leader.leading:
            # Deposed, or the blocks were handed over.
            return
        if not sender.result():
            leader.lose_to_another(first.block)
            return
        self._finish(started)

    async def _write_on(self) -> None:
        """The journal can be written again: the rest is written down together, as long as that is certain.
        What is not is left to `_write_first`, which looks before it sends a block again.
        """
        leader = self._leader
        while len(self._backlog) > 1 and leader.leading and self._backlog[0].block.sequence > self._sent:
            if leader.names_lists([waiting.batch for waiting in self._backlog]):
                # Whoever is not on a new lead list may write nothing after it.
                return
            blocks, _ = next(_parts([w.block for w in self._backlog], WRITTEN_BYTES_MAX, WRITTEN_BLOCKS_MAX))
            self._sent = blocks[-1].sequence
            started = leader.monotonic()
            if self.stalled_since is None:
                self.stalled_since = started
            known = await leader.settling.settle_all(blocks)
            # Deposed meanwhile it has nothing to finish: what is in the journal is no orphan (`_keep`).
            if not known or not leader.leading:
                return
            for _ in blocks:
                self._finish(started)

    def _finish(self, started: float) -> None:
        """The oldest block is in the journal."""
        leader, first = self._leader, self._pop()
        # From here on nothing is told from memory: what is left is written down first.
        self._holds.void()
        now, stalled = leader.monotonic(), 0.0
        if not self._backlog and self.stalled_since is not None:
            stalled, self.stalled_since = now - self.stalled_since, None
        leader.finish(first.batch, first.block, now - started, stalled, told=first.told)
        batches = [waiting.batch for waiting in self._backlog] if not self.lists.certain else []
        if not self.lists.certain and not leader.names_lists(batches):
            self.lists.is_in_force(leader.state.lead_list)

    async def _outlast(self, sender: asyncio.Future[bool]) -> None:
        """Until the block is known: holds are asked for, and while they last the shard goes on."""
        leader = self._leader
        asker = asyncio.create_task(self._ask_again(), name=f"holds-{leader.shard}")
        try:
            while not sender.done() and not asker.done() and leader.leading:
                if self.going_on:
                    self._go_on()
                if self.stalled_since is None and not self.going_on:
                    self.stalled_since = leader.monotonic()
                    _GOING_ON.labels(leader.shard).set(0)
                await self._until_something(sender, asker)
            if asker.done() and not sender.done():
                asker.result()
        finally:
            asker.cancel()
            await asyncio.gather(asker, return_exceptions=True)
            self._handing = False
            _GOING_ON.labels(leader.shard).set(0)

    async def _until_something(self, sender: asyncio.Future[bool], asker: asyncio.Task[None]) -> None:
        """Until there is work that may be told, an answer, or nothing for a moment."""
        leader, going_on = self._leader, self.going_on
        self._changed.clear()
        if going_on and leader.has_work:
            rest = max(MOMENT_SECONDS, self._sealed + self._spacing() - asyncio.get_running_loop().time())
            both: set[asyncio.Future[Any]] = {sender, asker}
            await asyncio.wait(both, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            return
        leader.work.clear()
        worker = asyncio.ensure_future(leader.work.wait())
        changed = asyncio.ensure_future(self._changed.wait())
        waited: set[asyncio.Future[Any]] = {sender, asker, changed}
        pause = RENEW_SECONDS
        if going_on:
            waited.add(worker)
            pause = min(RENEW_SECONDS, max(MOMENT_SECONDS, self._holds.left(self._now())))
        try:
            await asyncio.wait(waited, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            worker.cancel()
            changed.cancel()

    def _spacing(self) -> float:
        """How far apart blocks of the backlog begin."""
        return GATHER_SECONDS if len(self._backlog) < LONG_BLOCKS else GATHER_SECONDS_LONG

    def _go_on(self) -> None:
        """Tells what is decided, from memory, and makes blocks of it. Nothing is awaited in here: what holds
        at its beginning holds to its end.
        """
        leader = self._leader
        if self.stalled_since is not None:
            stalled, self.stalled_since = leader.monotonic() - self.stalled_since, None
            log.warning("from_memory", shard=leader.shard, blocks=len(self._backlog))
            _GOING_ON.labels(leader.shard).set(1)
            leader.move_deadlines(stalled)
        for waiting in self._backlog:
            self._tell(waiting)
        loop = asyncio.get_running_loop()
        while leader.has_work and self.going_on and loop.time() - self._sealed >= self._spacing():
            batch = leader.take_batch()
            waiting = _Waiting(leader.block_after(self._backlog[-1].block, batch), batch)
            self._push(waiting)
            self._tell(waiting)
            if not leader.has_work:
                self._sealed = loop.time()

    def _tell(self, waiting: _Waiting) -> None:
        if not waiting.told:
            waiting.told = True
            self._leader.tell(waiting.batch, waiting.block)

    # --- asking

    async def _ask_again(self) -> None:
        """Rounds of asking, one a second; ends when the blocks were handed over or the leader steps down."""
        while True:
            asked = self._now()
            answers = await self._ask_all()
            verdict = self._holds.take(answers, asked)
            if verdict is Verdict.STEP_DOWN:
                self._leader.hear_epoch(answers.newest_epoch())
                return
            if verdict is Verdict.HAND_OVER and await self._hand_over(answers.writer()):
                return
            self._changed.set()
            await asyncio.sleep(max(GATHER_SECONDS, RENEW_SECONDS - (self._now()[1] - asked[1])))

    async def _ask_all(self) -> Round:
        leader, homes = self._leader, self._peers.homes(self._leader.shard)
        others = [router for router in self.lists.named(homes) if router != leader.router]
        self._rounds += 1
        wait_seconds = leader.outage_seconds + ANSWER_SECONDS
        asking = (
            self._peers.hold(each, leader.shard, self._asker, self._options.hold_seconds, wait_seconds)
            for each in others
        )
        able = self.lists.able(homes)
        answers = await asyncio.gather(*asking)
        return Round(epoch=leader.epoch, answers=dict(zip(others, answers, strict=True)), able=able)

    @property
    def _asker(self) -> Asker:
        return Asker(epoch=self._leader.epoch, round=self._rounds)

    async def _hand_over(self, router: str) -> bool:
        """Stops, and hands all blocks to a router that can write; whether it has them and opens. When it does
        not answer, this leader goes on as it was: the journal's fence decides between the two.
        """
        leader, self._handing = self._leader, True
        blocks = [waiting.block for waiting in self._backlog if waiting.block.sequence > self._handed]
        log.warning("handing_over", shard=leader.shard, router=router, blocks=len(blocks))
        try:
            for part, last in _parts(blocks, HANDED_BYTES_MAX, HANDED_BLOCKS_MAX):
                if not await self._peers.take(router, leader.shard, self._asker, part, last=last):
                    return False
                # What is there need not be handed over again.
                self._handed = part[-1].sequence if part else self._handed
        finally:
            self._handing = False
        for waiting in self._backlog:
            waiting.told = False
        leader.stop_for(router)
        return True

    # --- the end

    def _abandon(self) -> None:
        """What is left when the leader is deposed: what was told and is not written down is an orphan."""
        left, self._backlog, self._bytes = list(self._backlog), deque(), 0
        self._holds.void()
        if not left:
            return
        self.stalled_since = None
        for waiting in reversed(left):
            self._leader.give_back(waiting.batch)
        orphans = [waiting.block for waiting in left if waiting.told]
        if orphans:
            shard = self._leader.shard
            log.error("backlog_orphaned", shard=shard, first=orphans[0].sequence, last=orphans[-1].sequence)
            _ORPHANS.labels(shard).inc(len(orphans))
            task = asyncio.create_task(self._keep(orphans), name=f"orphans-{shard}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, orphans: list[Block]) -> None:
        """Puts an orphaned backlog aside in the database, for an operator."""
        for _ in range(ORPHAN_TRIES_MAX):
            try:
                await self._leader.store.keep_orphans(orphans)
                return
            except OutcomeUnknown:
                await asyncio.sleep(ORPHAN_PAUSE_SECONDS)
        log.error("orphans_lost", shard=self._leader.shard, blocks=len(orphans))

    # --- the standby's side

    async def hold(self, asker: Asker, seconds: float) -> HoldAnswer:
        """What this router says to a leader that asks it to hold."""
        leader = self._leader
        # Whoever asks leads by an opening that is committed: no older leader is promised anything after it.
        leader.hear_epoch(asker.epoch)
        reason = self._refusal(asker.epoch)
        if not reason and seconds > self._options.hold_seconds:
            # After a restart it would wait for less than it had promised.
            reason = TOO_LONG
        if not reason:
            if await leader.probe():
                return HoldAnswer(can_write=True, epoch=leader.newest_epoch)
            # The try took its time.
            reason = self._refusal(asker.epoch)
        if reason:
            return HoldAnswer(reason=reason, epoch=leader.newest_epoch)
        self.promise.give(asker, self._lasting(), seconds)
        return HoldAnswer(held=True, epoch=leader.newest_epoch)

    def _refusal(self, epoch: int) -> str:
        """Why this router does not hold; empty when it may."""
        leader = self._leader
        if leader.newest_epoch > epoch:
            return NEWER_EPOCH
        if leader.leading:
            return LEADS
        if leader.stopped:
            return STOPPED
        if leader.opening_unknown:
            return OPENING
        return "" if leader.has_read else UNREAD

    async def take(self, asker: Asker, blocks: Sequence[Block], *, last: bool) -> bool:
        """Writes down what a leader hands over, and opens after the `last`; False when it could not."""
        async with self._taking:
            if self._refusal(asker.epoch) or self.promise.given_later(asker):
                return False
            if blocks:
                # What is handed over stands on what the leader knows to be committed.
                self._leader.hear_committed(blocks[0].sequence - 1)
            if any(block.format > codec.FORMAT for block in blocks) or not await self._write(blocks):
                return False
            if last:
                if self.promise.given_later(asker):
                    return False
                self.promise.release()
                self._leader.take_turn()
            return True

    async def _write(self, blocks: Sequence[Block]) -> bool:
        """Whether all of another leader's blocks are in the journal now."""
        try:
            async with asyncio.timeout(TAKE_SECONDS_MAX):
                for index, block in enumerate(blocks):
                    if not await self._leader.settling.send_until_known(
                        block, unsure=index == 0, leads=False
                    ):
                        return False
        except (TimeoutError, OutcomeUnknown, JournalGap) as error:
            log.warning("blocks_not_taken", shard=self._leader.shard, error=str(error)[:200])
            return False
        return True


def _parts(blocks: Sequence[Block], bytes_max: int, blocks_max: int) -> Iterator[tuple[list[Block], bool]]:
    """Blocks in parts of bounded size, in order; whether a part is the last. One, empty, of none."""
    part: list[Block] = []
    size = 0
    for block in blocks:
        if part and (size + len(block.body) > bytes_max or len(part) >= blocks_max):
            yield part, False
            part, size = [], 0
        part.append(block)
        size += len(block.body) + FRAME_BYTES
    yield part, True
