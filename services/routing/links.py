"""How a front reaches a shard: one port, wherever its leader is just now.

`ShardLink` finds the leader: in this process, or at one of the routers that may lead the shard, asked in
turn, the likeliest first (whoever was heard to lead, or was named by one that does not). It keeps one Attach
stream, and comes back by itself.

1. What was asked and not answered fails with LinkLost, whose meaning is "unknown, ask again": every command
   is idempotent.
2. Whoever has seen an epoch drops what an older one says, and tells it so: its leader steps down.
3. A command that was just sent when its leader's stream broke, and again at the next one, is poison: it
   outlived two leaders, of one shard or of two, and is refused, so that it does not kill the third. So is one
   that made two leaders step down because their engine failed half-way. After the first time it is asked
   alone, so that those that were on their way when a leader died do not convict one another; and only a
   leader that said, before it decided, that it has received it may have died of it, for an accident may
   break several links. While it is not known whether the second has died, it waits (`outlived.py`). A leader
   that steps down for any other reason ends its streams in order; that does not count. Nor does the death of
   one that has said anything since it decided the command: it did not die of that, however long the block
   took. Of a command that is asked alone it says so at once.
4. A link that says nothing for `silent_seconds` is left: a leader is heard every heartbeat, even when it
   cannot commit. The other way the front is heard as often, or its leader ends the link.
5. A standby of the shard's own region that has followed a leader of another region for long enough asks it to
   stop, and leads in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog

from callmesh.routing.v1 import shard_pb2, shard_pb2_grpc
from chassis import client
from chassis.errors import CallmeshError, Internal, Unavailable
from chassis.grpc_status import error_info
from routing import codec
from routing.audience import Holds
from routing.committed import Committed, NothingTaken, NotLeading, PoisonCommand, ShardBusy, StoreOutage
from routing.leader import Leader
from routing.model import AttachCalls, Command, DetachCall, DetachCalls, Fact
from routing.outlived import Outlived, Verdict, identity

#: Messages that go in one.
BATCH_MAX = 64
#: What a leader of this release says that it knows: 1, `DetachCalls`; 2, to say what it has received;
#: 3, `AttachCalls`.
COMMANDS_KNOWN = 3
SAYS_RECEIVED, ATTACHES_TOGETHER = 2, 3
#: Questions open at once on one link; more are refused.
OPEN_QUESTIONS_MAX = 20_000
#: First and longest pause after all routers were asked in vain, real seconds.
RECONNECT_SECONDS_FIRST, RECONNECT_SECONDS_MAX = 0.05, 0.5
#: Routers asked in one round for one shard.
ADDRESSES_MAX = 32
#: Either side of a link that has nothing to say says so this often, real seconds.
BEAT_SECONDS = 0.5
#: Patience with a silent link at least: a leader that is well may say nothing for nearly two beats.
SILENT_SECONDS_MIN = 3 * BEAT_SECONDS
#: A region's own router leads its shard again when it has been able to for this long (a little longer by
#: chance), and asks again after this if nothing came of it, real seconds.
HOMECOMING_SECONDS, HOMECOMING_JITTER = 2.0, 0.3
#: A watch that itself slept for longer than this past its time draws no conclusion, real seconds.
STALL_SECONDS = 0.25
#: How long before a break a command counts as just sent, real seconds.
JUST_SENT_SECONDS = 1.0
#: Reason of ErrorInfo of a router that does not lead; its metadata's `leader` names who is believed to,
#: `committed` the newest block that it knows of.
NOT_LEADER = "NOT_LEADER"
#: Digits of a sequence number, at most.
SEQUENCE_DIGITS_MAX = 18

log = structlog.get_logger(__name__)


class LinkLost(Unavailable):
    """The router that leads shard {shard} cannot be reached just now; try again."""

    reason = "SHARD_UNREACHABLE"


class LinkDown(LinkLost, NothingTaken):
    """No router is known to lead shard {shard} just now; nothing was asked, try again."""


class AnswerLate(Unavailable):
    """Shard {shard} did not answer in time; ask again, nothing is done twice."""

    reason = "SHARD_SLOW"


#: What a leader that did not take a command says of it, by reason: nothing has changed then.
_NOT_TAKEN: dict[str, type[Unavailable]] = {
    error.reason: error for error in (NotLeading, StoreOutage, ShardBusy)
}
#: The reasons that stand for PoisonCommand: the leader goes on, or had to step down.
POISON, POISON_DEPOSED = "POISON_COMMAND", "POISON_DEPOSED"

#: (shard, epoch, sequence, facts)
OnFacts = Callable[[str, int, int, Sequence[Fact]], None]
#: (shard, whether it is up)
OnChange = Callable[[str, bool], None]


class ShardPort(Protocol):
    """A shard, as a front sees it."""

    shard: str

    @property
    def up(self) -> bool:
        """Whether a leader is attached just now."""

    @property
    def stalled(self) -> bool:
        """Whether that leader cannot commit just now."""

    @property
    def durable(self) -> bool:
        """Whether what is being told just now is in the journal of a majority."""

    async def ask(self, command: Command, seconds: float) -> Committed:
        """The committed answer. Raises LinkLost, AnswerLate or LeaderGone (result unknown), LinkDown,
        NotLeading, StoreOutage or ShardBusy (nothing taken), Internal when the engine failed on it.
        """

    def listen(self, on_facts: OnFacts, on_change: OnChange, holds: Holds) -> None:
        """Where facts and changes of leader go, and who says which calls' streams are held; once, before the
        first question.
        """


def not_taken(reason: str, shard: str, retry_seconds: float) -> CallmeshError:
    """The error that a leader's reason for not taking a command stands for; LinkLost for one unknown here."""
    if reason in (POISON, POISON_DEPOSED):
        return Internal()
    return _NOT_TAKEN.get(reason, LinkLost)(shard=shard, retry_seconds=retry_seconds or 0.5)


@dataclass(slots=True)
class _Question:
    """A command on its way, and who waits for its answer."""

    command: Command
    sent_seconds: float
    future: asyncio.Future[Committed]
    #: It was asked alone.
    alone: bool = False


async def _answered(answer: asyncio.Future[Committed], seconds: float, shard: str) -> Committed:
    """What was answered. Raises AnswerLate after `seconds`. Whoever answers looks whether somebody still
    waits, so one timer is all that this takes.
    """
    timer = asyncio.get_running_loop().call_later(seconds, _give_up, answer, shard)
    try:
        return await answer
    finally:
        timer.cancel()


def _give_up(answer: asyncio.Future[Committed], shard: str) -> None:
    if not answer.done():
        answer.set_exception(AnswerLate(shard=shard, retry_seconds=0.5))


class Routers:
    """The other routers: whom a region has, and a channel to each, made when first wanted."""

    def __init__(
        self,
        own: str,
        homes: Mapping[str, Sequence[str]],
        dialer: client.Dialer | None = None,
    ) -> None:
        """`own` is this router's address, empty when it does not know it; `homes` are the addresses
        (`host:port`) of every region's routers. `dialer` makes the channels, in plain text if none is given.
        """
        self.own = own
        self._homes = {region: tuple(addresses) for region, addresses in homes.items()}
        self.dialer = dialer or client.Dialer()
        #: Of all their shards: a command that is poison in one kills the next region's leader as well.
        self.outlived = Outlived(time.monotonic)

    def homes(self, region: str) -> tuple[str, ...]:
        """Addresses of a region's routers, this one included."""
        return self._homes.get(region, ())

    def others(self) -> tuple[str, ...]:
        """Addresses of all other routers."""
        known = itertools.chain.from_iterable(self._homes.values())
        return tuple(dict.fromkeys(address for address in known if address != self.own))

    async def close(self) -> None:
        """Closes all channels."""
        await self.dialer.close()


class ShardLink:
    """A shard, wherever its leader is; `run` keeps the link. Belongs to one event loop."""

    def __init__(self, shard: str, front: str, routers: Routers, *, silent_seconds: float) -> None:
        self.shard = shard
        self._front = front
        self._routers = routers
        self._silent_seconds = silent_seconds
        self._local: Leader | None = None
        self._listed: tuple[str, ...] = ()
        #: Who is believed to lead; tried first.
        self._believed = ""
        #: Who said nothing for too long; tried last.
        self._mute = ""
        #: Who the stream is with; empty without one.
        self._attached = ""
        self._requests = itertools.count(1)
        #: Newest of them that its leader was heard to have decided; to have received, of those asked alone.
        self._decided = self._received = 0
        self._open: dict[int, _Question] = {}
        self._outlived = routers.outlived
        #: Whoever outlived a leader is asked alone.
        self._alone = asyncio.Lock()
        #: The leader reads several messages in one.
        self._batches = False
        #: Which commands it knows beside those of the first release.
        self._commands = 0
        #: Epoch of the leader whose stream broke last, and what it had just been given, and whether alone: if
        #: another leads next, that leader died of it, perhaps.
        self._suspects: tuple[int, Mapping[str, bool]] = (0, {})
        self._outgoing: asyncio.Queue[shard_pb2.FrontMessage] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._heard_seconds = 0.0
        #: The leader of this stream cannot commit; what it tells just now is committed.
        self._stalled, self._durable = False, True
        #: The leader of this stream was asked to stop.
        self._came_home = False
        self._wake = asyncio.Event()
        #: Newest epoch heard of.
        self._epoch = 0
        self._told_up = False
        self._on_facts: OnFacts = lambda shard, epoch, sequence, facts: None
        self._on_change: OnChange = lambda shard, up: None
        self._holds: Holds = lambda call_id: True

    @property
    def up(self) -> bool:
        return self._outgoing is not None or self._local_leads

    @property
    def stalled(self) -> bool:
        if self._local is not None and self._local.leading:
            return self._local.stalled
        return self._outgoing is not None and self._stalled

    @property
    def durable(self) -> bool:
        local = self._local
        return local.durable if local is not None and local.leading else self._durable

    @property
    def _local_leads(self) -> bool:
        return self._local is not None and self._local.leading

    def listen(self, on_facts: OnFacts, on_change: OnChange, holds: Holds) -> None:
        self._on_facts, self._on_change, self._holds = on_facts, on_change, holds

    # --- what is known of the leader

    def use_local(self, leader: Leader) -> None:
        """A leader (or standby) of the shard is in this process from now on."""
        self._local = leader
        leader.add_outlet(self._front, self._hear_local, lambda call_id: self._holds(call_id))
        leader.on_lead.append(self._local_began)
        leader.on_drop.append(self._local_dropped)
        leader.on_follow.append(self._local_follows)

    def forget_local(self) -> None:
        """No longer."""
        leader, self._local = self._local, None
        if leader is not None:
            leader.remove_outlet(self._front, self._hear_local)
            leader.on_lead.remove(self._local_began)
            leader.on_drop.remove(self._local_dropped)
            leader.on_follow.remove(self._local_follows)

    def use_list(self, lead_list: Iterable[str]) -> None:
        """The shard's lead list in the directory, beside the region's own routers."""
        self._listed = tuple(lead_list)[:ADDRESSES_MAX]

    def notice(self, epoch: int, address: str) -> None:
        """Somebody leads the shard since `epoch`; a link to an older one is left for it."""
        if epoch < self._epoch or not address or address == self._routers.own:
            return
        newer = epoch > self._epoch
        self._epoch, self._believed = epoch, address
        if self._local is not None:
            self._local.hear_epoch(epoch)
        if newer and self._attached not in ("", address):
            self._cut()
        self._wake.set()

    def _hear_committed(self, sequence: int) -> None:
        """Another router knows that this block is committed; a standby here must not open below it."""
        if self._local is not None:
            self._local.hear_committed(sequence)

    def _addresses(self) -> list[str]:
        """Whom to ask, the likeliest leader first."""
        known = (*self._listed, *self._routers.homes(self.shard))
        believed = (self._believed,) if self._believed in (*known, *self._routers.others()) else ()
        asked = dict.fromkeys(address for address in (*believed, *known) if address != self._routers.own)
        return sorted(asked, key=lambda address: address == self._mute)[:ADDRESSES_MAX]

    def _local_began(self) -> None:
        leader = self._local
        assert leader is not None
        if leader.epoch < self._epoch:
            leader.hear_epoch(self._epoch)
            return
        self._epoch = leader.epoch
        self._cut()
        self._judge(leader.epoch)
        self._tell_up(True)

    def _local_dropped(self) -> None:
        self._tell_up(False)
        self._wake.set()

    def _local_follows(self) -> None:
        leader = self._local
        assert leader is not None
        self.notice(leader.epoch, leader.opened_by)

    def _hear_local(self, facts: Sequence[Fact], epoch: int, sequence: int, now_ms: int) -> None:
        if epoch < self._epoch:
            if self._local is not None:
                self._local.hear_epoch(self._epoch)
            return
        self._on_facts(self.shard, epoch, sequence, facts)

    def _tell_up(self, up: bool) -> None:
        """A leader came or went. A new one after another is told as a loss and a gain."""
        if self._told_up:
            self._told_up = False
            self._on_change(self.shard, False)
        if up:
            self._told_up = True
            self._on_change(self.shard, True)

    # --- asking

    async def ask(self, command: Command, seconds: float) -> Committed:
        if type(command) is DetachCalls and not self._commands and not self._local_leads and command.calls:
            # A leader of an older release: what it does not know it would not answer.
            for call_id, attempt, move in command.calls:
                left = DetachCall(call_id=call_id, attempt=attempt, move=move, front=command.front)
                committed = await self.ask(left, seconds)
            return committed
        if type(command) is AttachCalls and self._commands < ATTACHES_TOGETHER and not self._local_leads:
            # As above; the front goes on to ask for each by itself.
            raise LinkDown(shard=self.shard, retry_seconds=0.5)
        local = self._local
        if local is not None and local.leading and not self._outlived:
            # As nearly always, and so by the shortest way.
            return await self._ask_local(local, command, seconds)
        name = identity(command) if self._outlived else ""
        if not name or self._outlived.verdict(name, self.shard) is Verdict.CLEAR:
            return await self._ask(command, seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._alone.acquire()
        except TimeoutError:
            raise LinkDown(shard=self.shard, retry_seconds=0.5) from None
        try:
            verdict = self._outlived.verdict(name, self.shard)
            if verdict is Verdict.POISON:
                log.error("poison_refused", shard=self.shard, command=name)
                raise Internal()
            if verdict is Verdict.UNSURE:
                raise LinkDown(shard=self.shard, retry_seconds=0.5)
            return await self._ask(command, seconds, alone=True)
        finally:
            self._alone.release()

    async def _ask(self, command: Command, seconds: float, *, alone: bool = False) -> Committed:
        local, outgoing = self._local, self._outgoing
        if local is not None and local.leading:
            return await self._ask_local(local, command, seconds)
        if outgoing is None or outgoing.full() or len(self._open) >= OPEN_QUESTIONS_MAX:
            raise LinkDown(shard=self.shard, retry_seconds=0.5)
        request = next(self._requests)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Committed] = loop.create_future()
        self._open[request] = _Question(command, loop.time(), future, alone)
        message = shard_pb2.FrontMessage(request=request, command=codec.encode_command(command))
        if alone:
            message.outlived = True
        outgoing.put_nowait(message)
        try:
            return await _answered(future, seconds, self.shard)
        finally:
            self._open.pop(request, None)

    async def _ask_local(self, leader: Leader, command: Command, seconds: float) -> Committed:
        try:
            committed = await _answered(leader.submit(command), seconds, self.shard)
        except PoisonCommand as error:
            if error.deposed:
                self._outlived.add(identity(command), self.shard)
            raise Internal() from error
        if self._outlived:
            self._outlived.answered(identity(command), self.shard)
        return committed

    # --- the stream

    async def run(self) -> None:
        """Finds the leader, and again whenever it is lost, until cancelled."""
        pause = RECONNECT_SECONDS_FIRST
        while True:
            self._wake.clear()
            if self._local_leads:
                await self._wake.wait()
                continue
            if await self._try_all():
                pause = RECONNECT_SECONDS_FIRST
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            pause = min(pause * 2, RECONNECT_SECONDS_MAX)

    async def _try_all(self) -> bool:
        """Asks one router after another who leads, and stays with the one that does as long as it lasts;
        whether one did.
        """
        asked: set[str] = set()
        while not self._local_leads:
            # Looked at anew each time: an answer may have named somebody likelier.
            address = next((each for each in self._addresses() if each not in asked), None)
            if address is None:
                return False
            asked.add(address)
            if await self._attach(address):
                return True
        return False

    async def _attach(self, address: str) -> bool:
        """One stream, for as long as it lasts; whether the router led."""
        dialer = self._routers.dialer
        stream = shard_pb2_grpc.ShardServiceStub(dialer.channel(address)).Attach(metadata=dialer.metadata())
        outgoing: asyncio.Queue[shard_pb2.FrontMessage] = asyncio.Queue(OPEN_QUESTIONS_MAX)
        outgoing.put_nowait(
            shard_pb2.FrontMessage(
                hello=shard_pb2.FrontMessage.Hello(
                    router=self._front,
                    shard=self.shard,
                    format=codec.FORMAT,
                    epoch_seen=self._epoch,
                    beats=True,
                    batches=True,
                )
            )
        )
        self._heard_seconds = asyncio.get_running_loop().time()
        reader = self._reader = asyncio.create_task(self._read(stream, address, outgoing))
        self._came_home, self._batches, self._commands = False, False, 0
        helpers = [
            asyncio.create_task(self._write(stream, outgoing)),
            asyncio.create_task(_beat(outgoing)),
            asyncio.create_task(self._watch(reader, address)),
            asyncio.create_task(self._come_home(address, outgoing)),
        ]
        try:
            await asyncio.wait([reader])
        finally:
            self._reader = None
            for task in (reader, *helpers):
                task.cancel()
            stream.cancel()
            results = await asyncio.gather(reader, *helpers, return_exceptions=True)
            led = self._attached == address
            self._lose(address, broken=isinstance(results[0], grpc.aio.AioRpcError))
        if self._came_home and results[0] is None and self._local is not None:
            self._local.take_turn()
        self._explain(address, results[0])
        return led

    async def _read(self, stream: Any, address: str, outgoing: asyncio.Queue[shard_pb2.FrontMessage]) -> None:
        async for message in stream:
            self._heard_seconds = asyncio.get_running_loop().time()
            if self._mute == address:
                self._mute = ""
            if not message.facts:
                self._stalled = message.stalled
            if message.epoch < self._epoch:
                # It does not know yet that it was deposed; the next Hello tells it.
                return
            if not self._attached:
                if self._local_leads:
                    return
                self._attached = self._believed = address
                self._judge(message.epoch)
                self._outgoing, self._epoch = outgoing, message.epoch
                self._batches, self._commands = message.batches, message.commands
                self._tell_up(True)
            self._epoch = message.epoch
            answered = False
            for each in (message, *message.more):
                if answered and each.facts:
                    # Whoever was answered acts on it first: what is told now happened after it.
                    await asyncio.sleep(0)
                    answered = False
                self._take(each)
                answered = answered or bool(each.request)

    async def _write(self, stream: Any, outgoing: asyncio.Queue[shard_pb2.FrontMessage]) -> None:
        """Sends what is asked, in order; a broken stream is noticed by its reader. What was asked meanwhile
        goes in one message: sending one costs more than what is in it.
        """
        while True:
            message = await outgoing.get()
            if self._batches and not outgoing.empty():
                waiting = min(outgoing.qsize(), BATCH_MAX - 1)
                message.more.extend([outgoing.get_nowait() for _ in range(waiting)])
            await stream.write(message)

    async def _watch(self, reader: asyncio.Task[None], address: str) -> None:
        """Leaves a stream that has been silent for too long: a router that sleeps takes connections and says
        nothing. It is asked last from then on, and briefly, until it answers: somebody else may lead by now.
        """
        loop, pause = asyncio.get_running_loop(), self._silent_seconds / 4
        while True:
            began = loop.time()
            await asyncio.sleep(pause)
            stalled = loop.time() - began > pause + STALL_SECONDS
            patience = pause / 2 if self._mute == address else self._silent_seconds
            if not stalled and loop.time() - self._heard_seconds > patience:
                log.warning("link_silent", shard=self.shard, router=address)
                self._mute = address
                reader.cancel()
                return

    async def _come_home(self, address: str, outgoing: asyncio.Queue[shard_pb2.FrontMessage]) -> None:
        """Asks a leader of another region to stop, once the standby here has been able to lead for long
        enough.
        """
        homes = self._routers.homes(self.shard)
        if address in homes or self._routers.own not in homes:
            return
        while True:
            await asyncio.sleep(HOMECOMING_SECONDS * random.uniform(1.0, 1.0 + HOMECOMING_JITTER))
            local = self._local
            could = self._attached == address and local is not None and await local.could_lead()
            if could and not outgoing.full():
                self._came_home = True
                outgoing.put_nowait(shard_pb2.FrontMessage(yield_to=self._routers.own))

    def _explain(self, address: str, ended: object) -> None:
        """Why a stream ended; a router that does not lead may have said who does."""
        if isinstance(ended, grpc.aio.AioRpcError):
            info = error_info(ended)
            if info is not None and self._mute == address:  # it answered
                self._mute = ""
            if info is not None and info.reason == NOT_LEADER:
                self._believed = info.metadata.get("leader", "")
                self._hear_committed(_sequence_of(info.metadata.get("committed", "")))
            log.debug("link_broken", shard=self.shard, router=address, code=ended.code().name)
        elif isinstance(ended, codec.CodecError):
            # A leader of another release: better no link than facts half understood.
            log.error("link_unreadable", shard=self.shard, router=address, error=str(ended)[:200])
        elif isinstance(ended, Exception):
            log.error("link_failed", shard=self.shard, router=address, error=repr(ended)[:200])

    def _cut(self) -> None:
        """Leaves the stream, if there is one; `run` looks again for the leader."""
        if self._reader is not None:
            self._reader.cancel()
        self._lose(self._attached)

    def _lose(self, address: str, *, broken: bool = False) -> None:
        """The stream with `address` is over, or broken: what was asked on it stays unanswered."""
        if not address or self._attached != address:
            return
        self._attached, self._outgoing = "", None
        self._suspects = (self._epoch, self._just_sent() if broken else {})
        for command, alone in self._suspects[1].items():
            self._outlived.suspect(command, self.shard, alone=alone)
        for question in self._open.values():
            if not question.future.done():
                question.future.set_exception(LinkLost(shard=self.shard, retry_seconds=0.5))
        self._open.clear()
        self._tell_up(False)

    def _just_sent(self) -> dict[str, bool]:
        """What the leader may have died of, and whether it was asked alone. Each once: what was asked twice,
        because its client asks again, has outlived one leader all the same.
        """
        since = asyncio.get_running_loop().time() - JUST_SENT_SECONDS
        found: dict[str, bool] = {}
        for request, question in self._open.items():
            unread = question.alone and self._commands >= SAYS_RECEIVED and request > self._received
            if request > self._decided and question.sent_seconds >= since and not unread:
                name = identity(question.command)
                found[name] = question.alone and found.get(name, True)
        return found

    def _judge(self, epoch: int) -> None:
        """Somebody of this epoch leads: were it the same as before, only the stream had broken."""
        lost, commands = self._suspects
        self._suspects = (0, {})
        for command in commands:
            self._outlived.judge(command, self.shard, died=epoch > lost)

    def _take(self, message: shard_pb2.ShardMessage) -> None:
        self._decided = max(self._decided, message.decided)
        self._received = max(self._received, message.received)
        if not message.facts and (message.durable or not message.reply):
            # What is told from memory may never be; what says nothing names the newest committed block.
            self._hear_committed(message.sequence)
        if message.facts:
            self._durable = message.durable
            self._on_facts(self.shard, message.epoch, message.sequence, codec.decode_facts(message.facts))
        question = self._open.pop(message.request, None)
        if question is None:
            return
        if message.not_taken == POISON_DEPOSED:
            self._outlived.add(identity(question.command), self.shard)
        elif self._outlived:
            self._outlived.answered(identity(question.command), self.shard)
        future = question.future
        if future.done():
            return
        if not message.reply:
            future.set_exception(not_taken(message.not_taken, self.shard, message.retry_ms / 1000))
            return
        future.set_result(
            Committed(
                answer=codec.decode_answer(message.reply),
                shard=self.shard,
                epoch=message.epoch,
                sequence=message.sequence,
                now_ms=message.now_ms,
                durable=message.durable,
            )
        )


def _sequence_of(text: str) -> int:
    """A block's number as a router that does not lead says it; 0 for one that says none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= SEQUENCE_DIGITS_MAX else 0


async def _beat(outgoing: asyncio.Queue[shard_pb2.FrontMessage]) -> None:
    """Breaks the silence, so that a leader can tell an idle front from one that is cut off."""
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        if outgoing.empty():
            outgoing.put_nowait(shard_pb2.FrontMessage())
