"""How a front reaches a shard: the same port whether its leader lives in this process or in another.

`LocalShard` speaks to a `Leader` here. `RemoteShard` keeps one Attach stream to a router elsewhere and
comes back by itself: what was
asked and not answered fails with LinkLost, whose meaning is "unknown, ask again" (every command is
idempotent).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
import structlog

from callmesh.routing.v1 import shard_pb2, shard_pb2_grpc
from chassis.errors import Internal, Unavailable
from routing import codec
from routing.leader import Committed, Leader, PoisonCommand
from routing.model import Command, Fact

#: Questions open at once on one link; more are refused.
OPEN_QUESTIONS_MAX = 20_000
#: First and longest pause between attempts to attach, real seconds.
RECONNECT_SECONDS_FIRST, RECONNECT_SECONDS_MAX = 0.05, 0.5

log = structlog.get_logger(__name__)


class LinkLost(Unavailable):
    """The router that leads shard {shard} cannot be reached just now; try again."""

    reason = "SHARD_UNREACHABLE"


class AnswerLate(Unavailable):
    """Shard {shard} did not answer in time; ask again, nothing is done twice."""

    reason = "SHARD_SLOW"


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

    async def ask(self, command: Command, seconds: float) -> Committed:
        """The committed answer. Raises LinkLost, AnswerLate or NotLeading (result unknown), StoreOutage or
        ShardBusy (nothing taken).
        """

    def listen(self, on_facts: OnFacts, on_change: OnChange) -> None:
        """Where facts and changes of leader go; once, before the first question."""


class LocalShard:
    """The leader is in this process."""

    def __init__(self, leader: Leader, front: str) -> None:
        self.shard = leader.shard
        self._leader = leader
        self._front = front

    @property
    def up(self) -> bool:
        return self._leader.leading

    def listen(self, on_facts: OnFacts, on_change: OnChange) -> None:
        leader, shard = self._leader, self.shard

        def outlet(facts: Sequence[Fact], epoch: int, sequence: int, now_ms: int) -> None:
            on_facts(shard, epoch, sequence, facts)

        leader.add_outlet(self._front, outlet)
        leader.on_lead.append(lambda: on_change(shard, True))
        leader.on_drop.append(lambda: on_change(shard, False))

    async def ask(self, command: Command, seconds: float) -> Committed:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._leader.submit(command))
        except TimeoutError:
            raise AnswerLate(shard=self.shard, retry_seconds=0.5) from None
        except PoisonCommand as error:
            raise Internal() from error


class RemoteShard:
    """The leader is in another process; `run` keeps the link."""

    def __init__(self, shard: str, front: str, channel: grpc.aio.Channel) -> None:
        self.shard = shard
        self._front = front
        self._stub = shard_pb2_grpc.ShardServiceStub(channel)
        self._requests = itertools.count(1)
        self._open: dict[int, asyncio.Future[Committed]] = {}
        self._outgoing: asyncio.Queue[shard_pb2.FrontMessage] | None = None
        self._epoch = 0
        self._on_facts: OnFacts | None = None
        self._on_change: OnChange | None = None

    @property
    def up(self) -> bool:
        return self._outgoing is not None

    def listen(self, on_facts: OnFacts, on_change: OnChange) -> None:
        self._on_facts, self._on_change = on_facts, on_change

    async def ask(self, command: Command, seconds: float) -> Committed:
        outgoing = self._outgoing
        if outgoing is None or outgoing.full() or len(self._open) >= OPEN_QUESTIONS_MAX:
            raise LinkLost(shard=self.shard, retry_seconds=0.5)
        request = next(self._requests)
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._open[request] = future
        outgoing.put_nowait(shard_pb2.FrontMessage(request=request, command=codec.encode_command(command)))
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise AnswerLate(shard=self.shard, retry_seconds=0.5) from None
        finally:
            self._open.pop(request, None)

    async def run(self) -> None:
        """Attaches, and again whenever the link breaks, until cancelled."""
        pause = RECONNECT_SECONDS_FIRST
        while True:
            try:
                await self._attach()
                pause = RECONNECT_SECONDS_FIRST
            except grpc.aio.AioRpcError as error:
                log.debug("link_broken", shard=self.shard, code=error.code().name)
            except codec.CodecError as error:
                # A leader of another release: better no link than facts half understood.
                log.error("link_unreadable", shard=self.shard, error=str(error)[:200])
            finally:
                self._down()
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_SECONDS_MAX)

    async def _attach(self) -> None:
        outgoing: asyncio.Queue[shard_pb2.FrontMessage] = asyncio.Queue(OPEN_QUESTIONS_MAX)
        hello = shard_pb2.FrontMessage.Hello(
            router=self._front, shard=self.shard, format=codec.FORMAT, epoch_seen=self._epoch
        )
        stream = self._stub.Attach()
        await stream.write(shard_pb2.FrontMessage(hello=hello))
        writer = asyncio.create_task(_write(stream, outgoing))
        try:
            async for message in stream:
                if message.epoch < self._epoch:
                    continue
                self._epoch = message.epoch
                if self._outgoing is None:
                    self._outgoing = outgoing
                    if self._on_change is not None:
                        self._on_change(self.shard, True)
                self._take(message)
        finally:
            writer.cancel()
            stream.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _take(self, message: shard_pb2.ShardMessage) -> None:
        if message.facts and self._on_facts is not None:
            self._on_facts(self.shard, message.epoch, message.sequence, codec.decode_facts(message.facts))
        future = self._open.pop(message.request, None)
        if future is None or future.done():
            return
        if not message.reply:
            future.set_exception(LinkLost(shard=self.shard, retry_seconds=0.5))
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

    def _down(self) -> None:
        was_up, self._outgoing = self._outgoing is not None, None
        for future in self._open.values():
            if not future.done():
                future.set_exception(LinkLost(shard=self.shard, retry_seconds=0.5))
        self._open.clear()
        if was_up and self._on_change is not None:
            self._on_change(self.shard, False)


async def _write(stream: Any, outgoing: asyncio.Queue[shard_pb2.FrontMessage]) -> None:
    """Sends what is asked, in order; a broken stream is noticed by its reader."""
    while True:
        await stream.write(await outgoing.get())
