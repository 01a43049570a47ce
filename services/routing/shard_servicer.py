"""What a router is to other routers: the leader's side of their links, and the state of the
shards it leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import structlog

from callmesh.routing.v1 import shard_pb2, shard_pb2_grpc
from chassis.errors import CallmeshError, FailedPrecondition, InvalidArgument, Unavailable, Unimplemented
from chassis.ids import check_id
from routing import codec
from routing.committed import Committed, PoisonCommand
from routing.continuing import Continuing
from routing.convert import INT64_MAX, whole
from routing.hold_peers import unpack_blocks
from routing.holds import Asker
from routing.leader import Leader
from routing.links import (
    BATCH_MAX,
    BEAT_SECONDS,
    COMMANDS_KNOWN,
    NOT_LEADER,
    POISON,
    POISON_DEPOSED,
    STALL_SECONDS,
)
from routing.model import DetachFront, Fact
from routing.peers import Voice
from routing.seizure import ShardNotFollowed

#: Messages to a front that may be unread; a front that far behind is cut off and attaches again.
LINK_UNREAD_MAX = 50_000
#: Steps of detaching a lost front.
DETACH_STEPS_MAX = 1_000
#: A front that promised to be heard and is silent for longer is gone, real seconds: what it holds is
#: detached, or agents whom nobody can reach would be rung.
FRONT_SILENT_SECONDS = 3.0
#: The longest time that a leader may ask to be held.
HOLD_MS_MAX = 60_000
#: Bytes of facts and answers from which on nothing more goes in a message: half of what one may have.
BATCH_BYTES_MAX = 8 << 20
#: Facts that go in one message: with all the context that calls may have, a block's would be too much for it.
FACTS_MAX = 200

log = structlog.get_logger(__name__)


class NotLeader(FailedPrecondition):
    """This router does not lead {subject}: {why}."""

    reason = NOT_LEADER


class FormatUnknown(FailedPrecondition):
    """This router cannot read the link's format: {why}."""

    reason = "FORMAT_UNKNOWN"


class ShardServicer(shard_pb2_grpc.ShardServiceServicer):
    """Speaks for all shards that have a leader or a standby in this process."""

    def __init__(
        self, leaders: Mapping[str, Leader], router: str, who_leads: Callable[[str], str] = lambda shard: ""
    ) -> None:
        """`leaders` by shard, read anew each time; `router` is this router's name; `who_leads` says the
        address of the router that is believed to lead a shard, empty when nobody is.
        """
        self._leaders = leaders
        self._who_leads = who_leads
        #: In the order in which they began: they end in it, too, run for run.
        self._links: dict[_Link, None] = {}
        #: Of all who ask what these shards' load is.
        self.voice = Voice(leaders.values, router)
        self._draining = False

    async def WatchPeers(
        self, request: shard_pb2.WatchPeersRequest, context: Any
    ) -> AsyncIterator[shard_pb2.PeerState]:
        async with aclosing(self.voice.listen(lambda: self._draining)) as states:
            async for state in states:
                yield state

    async def Attach(
        self, request_iterator: AsyncIterator[shard_pb2.FrontMessage], context: Any
    ) -> AsyncIterator[shard_pb2.ShardMessage]:
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            raise InvalidArgument(field="hello", why="must be the first message of a link")
        link = _Link(
            self._leader_for(first.hello),
            first.hello.router,
            FRONT_SILENT_SECONDS if first.hello.beats else None,
            batches=first.hello.batches,
        )
        self._links[link] = None
        try:
            async with aclosing(link.run(request_iterator)) as messages:
                async for message in messages:
                    yield message
        finally:
            del self._links[link]

    async def GetNewestBlock(
        self, request: shard_pb2.GetNewestBlockRequest, context: Any
    ) -> shard_pb2.GetNewestBlockResponse:
        leader = self._leaders.get(check_id("shard", request.shard, 63))
        known = leader.newest_committed if leader is not None else 0
        return shard_pb2.GetNewestBlockResponse(sequence=known)

    async def Hold(self, request: shard_pb2.HoldRequest, context: Any) -> shard_pb2.HoldResponse:
        part = self._continuing(request.shard, "Hold")
        seconds = whole("hold_ms", request.hold_ms, 1, HOLD_MS_MAX) / 1000
        answer = await part.hold(_asker(request), seconds)
        return shard_pb2.HoldResponse(
            held=answer.held, can_write=answer.can_write, reason=answer.reason, epoch=answer.epoch
        )

    async def TakeBlocks(
        self, request: shard_pb2.TakeBlocksRequest, context: Any
    ) -> shard_pb2.TakeBlocksResponse:
        part = self._continuing(request.shard, "TakeBlocks")
        taken = await part.take(_asker(request), unpack_blocks(request), last=request.open)
        return shard_pb2.TakeBlocksResponse(taken=taken)

    def _continuing(self, shard: str, method: str) -> Continuing:
        """What answers for a shard in an outage. Raises Unimplemented where `on_outage` is not `continue`,
        ShardNotFollowed.
        """
        if all(leader.continuing is None for leader in self._leaders.values()):
            raise Unimplemented(method=method)
        leader = self._leaders.get(shard)
        if leader is None or leader.continuing is None:
            raise ShardNotFollowed(subject=f"regions/{shard}", why="name it in the region's lead list first")
        return leader.continuing

    def drain(self) -> None:
        """Ends the links: their fronts attach to the next leader, and this process can end."""
        self._draining = True
        for link in self._links:
            link.cut()

    def _leader_for(self, hello: shard_pb2.FrontMessage.Hello) -> Leader:
        """The leader that a front wants. Raises FormatUnknown, NotLeader."""
        if hello.format > codec.FORMAT:
            raise FormatUnknown(subject="link", why=f"it is {hello.format}, this router reads {codec.FORMAT}")
        subject, leader = f"shard {hello.shard}", self._leaders.get(hello.shard)
        if self._draining:
            raise NotLeader(subject=subject, why="it is being stopped", leader="")
        if leader is not None:
            leader.hear_epoch(hello.epoch_seen)
        if leader is None or not leader.leading:
            raise NotLeader(
                subject=subject,
                why="it does not lead it just now",
                leader=self._who_leads(hello.shard),
                committed=leader.newest_committed if leader is not None else "",
            )
        return leader


def _asker(request: shard_pb2.HoldRequest | shard_pb2.TakeBlocksRequest) -> Asker:
    return Asker(
        epoch=whole("epoch", request.epoch, 1, INT64_MAX), round=whole("round", request.round, 1, INT64_MAX)
    )


class _Link:
    """The leader's side of one front's link."""

    def __init__(
        self, leader: Leader, front: str, silent_seconds: float | None = None, *, batches: bool = False
    ) -> None:
        """`silent_seconds`: the front is gone when it says nothing for so long; None: it made no promise.
        `batches`: the front reads several messages in one.
        """
        self._leader = leader
        self._front = front
        self._batches = batches
        self._silent_seconds = silent_seconds
        self._heard_seconds = asyncio.get_running_loop().time()
        self._out: asyncio.Queue[shard_pb2.ShardMessage | None] = asyncio.Queue(LINK_UNREAD_MAX)
        self._quiet = True
        #: Messages that were to be said, taken for writing, and written, ever; and that one more was.
        self._said = self._taken = self._flushed = 0
        self._written = asyncio.Event()
        #: Newest request that was decided.
        self._decided = 0

    async def run(
        self, messages: AsyncIterator[shard_pb2.FrontMessage]
    ) -> AsyncGenerator[shard_pb2.ShardMessage, None]:
        leader = self._leader
        if leader.add_outlet(self._front, self._outlet):
            # The link before has died unnoticed, perhaps with its router: what it held is attached anew by
            # whoever
            # still holds it, or else nobody would listen.
            self._detach()
        leader.on_drop.append(self.cut)
        helpers = [asyncio.create_task(self._read(messages)), asyncio.create_task(self._beat())]
        if self._silent_seconds is not None:
            helpers.append(asyncio.create_task(self._watch(self._silent_seconds)))
        for helper in helpers:
            helper.add_done_callback(lambda _: self.cut())
        try:
            yield self._greeting()
            while (message := await self._out.get()) is not None:
                self._quiet = False
                self._taken += 1
                if self._batches and not self._out.empty():
                    self._take_along(message)
                yield message
                self._flushed = self._taken
                self._written.set()
            # Which command it was that made the leader step down is said after that.
            for message in self._rest():
                yield message
        finally:
            for helper in helpers:
                helper.cancel()
            leader.on_drop.remove(self.cut)
            if leader.remove_outlet(self._front, self._outlet):
                self._detach()

    def cut(self) -> None:
        self._put(None)

    def _greeting(self) -> shard_pb2.ShardMessage:
        message = self._message()
        message.batches, message.commands = True, COMMANDS_KNOWN
        return message

    def _take_along(self, message: shard_pb2.ShardMessage) -> None:
        """What else waits goes in the same message, up to a bound: sending one costs more than what is in
        it.
        """
        more: list[shard_pb2.ShardMessage] = []
        size = len(message.facts) + len(message.reply)
        while not self._out.empty() and len(more) < BATCH_MAX and size < BATCH_BYTES_MAX:
            following = self._out.get_nowait()
            self._taken += 1
            if following is None:
                self._put(None)
                break
            more.append(following)
            size += len(following.facts) + len(following.reply)
        message.more.extend(more)

    def _rest(self) -> list[shard_pb2.ShardMessage]:
        waiting = [self._out.get_nowait() for _ in range(self._out.qsize())]
        return [message for message in waiting if message is not None]

    def _message(self, request: int = 0) -> shard_pb2.ShardMessage:
        leader = self._leader
        return shard_pb2.ShardMessage(
            request=request,
            shard=leader.shard,
            epoch=leader.epoch,
            sequence=leader.sequence,
            stalled=leader.stalled,
            decided=self._decided,
        )

    async def _beat(self) -> None:
        """Breaks the silence, so that a front can tell an idle leader from a lost one."""
        while True:
            self._quiet = True
            await asyncio.sleep(BEAT_SECONDS)
            if self._quiet or self._leader.stalled:
                self._put(self._message())

    async def _watch(self, silent_seconds: float) -> None:
        """Ends with the front's silence, and the link with it."""
        loop, pause = asyncio.get_running_loop(), silent_seconds / 4
        while True:
            began = loop.time()
            await asyncio.sleep(pause)
            # Whoever slept has not heard what was said.
            stalled = loop.time() - began > pause + STALL_SECONDS
            if not stalled and loop.time() - self._heard_seconds > silent_seconds:
                log.warning("front_silent", shard=self._leader.shard, front=self._front)
                return

    def _put(self, message: shard_pb2.ShardMessage | None) -> None:
        if self._out.full():
            while not self._out.empty():
                self._out.get_nowait()
            message = None
        self._said += 1
        self._out.put_nowait(message)

    def _outlet(self, facts: Sequence[Fact], epoch: int, sequence: int, now_ms: int) -> None:
        for at in range(0, len(facts), FACTS_MAX):
            self._put(
                shard_pb2.ShardMessage(
                    shard=self._leader.shard,
                    epoch=epoch,
                    sequence=sequence,
                    durable=self._leader.durable,
                    facts=codec.encode_facts(facts[at : at + FACTS_MAX]),
                    now_ms=now_ms,
                    decided=self._decided,
                )
            )

    async def _read(self, messages: AsyncIterator[shard_pb2.FrontMessage]) -> None:
        loop = asyncio.get_running_loop()
        async for message in messages:
            self._heard_seconds = loop.time()
            for each in (message, *message.more):
                if each.yield_to:
                    self._leader.yield_to(each.yield_to)
                if each.command:
                    if each.outlived:
                        await self._say_received(each.request)
                    self._carry_out(each)
                    self._decided = max(self._decided, each.request)
                    if each.outlived:
                        # Until its front hears of that, this leader's death would be the command's doing.
                        self._put(self._message())

    async def _say_received(self, request: int) -> None:
        """Of a command that a leader was lost to, before this one decides it: returns when it is written."""
        message = self._message()
        message.received = request
        self._put(message)
        mine = self._said
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_SECONDS):
                # Not for all that is to be said: on a busy link there is always more.
                while self._flushed < mine:
                    self._written.clear()
                    await self._written.wait()

    def _carry_out(self, message: shard_pb2.FrontMessage) -> None:
        try:
            command = codec.decode_command(message.command)
            future = self._leader.submit(command)
        except PoisonCommand as error:
            self._refuse(message.request, POISON_DEPOSED if error.deposed else POISON, None)
        except CallmeshError as error:
            self._refuse(message.request, error.reason, error)
        except codec.CodecError as error:
            log.warning("command_unreadable", front=self._front, error=str(error)[:200])
            self._put(self._message(message.request))
        else:
            future.add_done_callback(functools.partial(self._answer, message.request))

    def _refuse(self, request: int, reason: str, error: CallmeshError | None) -> None:
        """A command that was not taken, and why: nothing has changed."""
        message = self._message(request)
        message.not_taken = reason
        if isinstance(error, Unavailable) and error.details.retry_seconds is not None:
            message.retry_ms = round(error.details.retry_seconds * 1000)
        self._put(message)

    def _answer(self, request: int, done: asyncio.Future[Committed]) -> None:
        message = self._message(request)
        if not done.cancelled() and done.exception() is None:
            committed = done.result()
            message.epoch, message.sequence = committed.epoch, committed.sequence
            message.durable, message.now_ms = committed.durable, committed.now_ms
            message.reply = codec.encode_answer(committed.answer)
        self._put(message)

    def _detach(self) -> None:
        """The front is gone: what it held is detached, in steps."""
        if not self._leader.leading:
            return
        for _ in range(DETACH_STEPS_MAX):
            if not self._leader.carry_out(DetachFront(front=self._front)).more:
                return
