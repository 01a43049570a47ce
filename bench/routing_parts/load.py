"""A process that calls: what the benchmark orders over a pipe it does, and sends back what it saw.

Times are of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue

from callmesh.routing.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    call_pb2,
    routing_pb2,
    routing_pb2_grpc,
)
from chassis import garbage
from chassis.testing.echo import EchoStub
from cli.demo.rpc import facts_of

#: Callers of one process share so many connections.
CHANNELS = 4
#: Longest wait for anything, seconds.
SECONDS_MAX = 60.0
AVAILABLE, PAUSED = agent_pb2.AGENT_STATE_AVAILABLE, agent_pb2.AGENT_STATE_PAUSED


class Loader:
    """One process's clients."""

    def __init__(self, name: str, address: str) -> None:
        self._name = name
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
        self._next = itertools.count()
        self._calls = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._desks: list[_Desk] = []
        self._outcomes: Counter[str] = Counter()
        self._stopping = False
        #: Offer's id -> when a caller's stream brought it.
        self._callers_told: dict[str, float] = {}

    def _channel(self) -> grpc.aio.Channel:
        return self._channels[next(self._next) % CHANNELS]

    def _call(self, queue: str) -> call_pb2.CallRequest:
        number = next(self._calls)
        return call_pb2.CallRequest(
            call_id=f"{self._name}-{number}",
            caller_number=f"+861381{number % 10**7:07d}",
            queue=f"queues/{queue}",
            language="zh-CN",
        )

    # --- unary calls

    async def hammer(self, kind: str, clients: int, seconds: float) -> list[float]:
        """`clients` call one after another for so long; each call's time in seconds."""
        end = time.monotonic() + seconds
        rows = await asyncio.gather(*(self._client(kind, end) for _ in range(clients)))
        return [each for row in rows for each in row]

    async def _client(self, kind: str, end: float) -> list[float]:
        channel = self._channel()
        empty, stub = EchoStub(channel).Unary, routing_pb2_grpc.RoutingServiceStub(channel)
        wait = Duration(nanos=1_000_000)
        times = []
        while (began := time.monotonic()) < end:
            if kind == "empty":
                await empty(StringValue(), timeout=SECONDS_MAX)
            else:
                request = routing_pb2.AssignCallRequest(call=self._call("decide"), max_wait=wait)
                answer = await stub.AssignCall(request, timeout=SECONDS_MAX)
                if not answer.durable or answer.state != call_pb2.CALL_STATE_WAITING:
                    raise RuntimeError(f"not a durable place: {answer}")
            times.append(time.monotonic() - began)
        return times

    # --- streams

    async def callers(self, count: int) -> dict[str, int]:
        """So many callers at once; how many were queued, refused with RetryInfo, or treated otherwise, by
        name.
        """
        self._outcomes.clear()
        for _ in range(count):
            self._spawn(self._caller())
        deadline = time.monotonic() + SECONDS_MAX
        while self._outcomes.total() < count and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return dict(self._outcomes)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _caller(self) -> None:
        """A caller who waits; served, another one comes."""
        call = self._call("serve")
        stub = routing_pb2_grpc.RoutingServiceStub(self._channel())
        waits = False
        try:
            async for event in stub.RouteCall(routing_pb2.RouteCallRequest(call=call)):
                kind = event.WhichOneof("event")
                if kind == "queued" and not waits:
                    waits = True
                    self._outcomes["queued"] += 1
                elif kind == "offered":
                    self._callers_told[event.offered.offer_id] = time.monotonic()
                elif kind == "accepted":
                    self._spawn(self._serve(stub, call.call_id, event))
        except grpc.aio.AioRpcError as error:
            if not waits:
                facts = facts_of(error)
                self._outcomes["refused" if facts.retry_seconds else f"bare {facts.code.name}"] += 1
        if waits and not self._stopping:
            self._spawn(self._caller())

    async def _serve(self, stub: Any, call_id: str, event: Any) -> None:
        request = routing_pb2.ConfirmCallRequest(
            call_id=call_id, offer_id=event.accepted.offer_id, version=event.version, shard=event.shard
        )
        await stub.ConfirmCall(request, timeout=SECONDS_MAX)
        await stub.EndCall(routing_pb2.EndCallRequest(call_id=call_id), timeout=SECONDS_MAX)

    async def desks(self, agents: list[str]) -> int:
        """Every agent logs in, paused; how many did."""
        self._desks = [_Desk(agent, self._channel()) for agent in agents]
        for desk in self._desks:
            self._spawn(desk.run())
        deadline = time.monotonic() + SECONDS_MAX
        while not all(desk.ready for desk in self._desks) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return sum(desk.ready for desk in self._desks)

    async def free(self, per_second: float, seconds: float) -> tuple[dict[str, tuple[float, float]], Any]:
        """Agents become free at a steady rate; ({offer: (free at, told the agent at)}, {offer: told the
        caller at}).
        """
        # The streams that wait are set aside: to look through them for garbage takes longer than an offer.
        garbage.settle()
        began, made = time.monotonic(), 0
        order = itertools.cycle(self._desks)
        while (now := time.monotonic()) < began + seconds:
            while made < (now - began) * per_second:
                made += 1
                desk = next((d for d in itertools.islice(order, len(self._desks)) if d.idle), None)
                if desk is not None:
                    self._spawn(desk.become_free())
            await asyncio.sleep(0.2 / per_second)
        await asyncio.sleep(1.0)
        offers = {offer: times for desk in self._desks for offer, times in desk.offers.items()}
        return offers, dict(self._callers_told)

    async def stop(self) -> None:
        """Hangs everything up."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close(None)


class _Desk:
    """An agent who takes a call whenever told to be free, and is paused after it."""

    def __init__(self, agent: str, channel: grpc.aio.Channel) -> None:
        self._agent = agent
        self._stub = agent_pb2_grpc.AgentServiceStub(channel)
        self._stream: Any = None
        self._command = 0
        self._free_at = 0.0
        self.ready = self.idle = False
        self.offers: dict[str, tuple[float, float]] = {}

    async def _send(self, **kind: Any) -> None:
        self._command += 1
        await self._stream.write(agent_pb2.AgentCommand(command=self._command, **kind))

    async def run(self) -> None:
        """Logs in, again if the router has no time for it just now."""
        while True:
            try:
                await self._work()
            except grpc.aio.AioRpcError as error:
                if self.ready or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(facts_of(error).retry_seconds)

    async def _work(self) -> None:
        self._stream, self._command = self._stub.Session(), 0
        session = time.time_ns() // 1_000_000
        await self._send(open={"agent": f"agents/{self._agent}", "session": session, "state": PAUSED})
        async for event in self._stream:
            kind = event.WhichOneof("event")
            if kind == "status" and not self.ready:
                self.ready = self.idle = True
            elif kind == "offer":
                self.offers[event.offer.offer_id] = (self._free_at, time.monotonic())
                await self._send(accept={"offer_id": event.offer.offer_id})
            elif kind == "ended":
                await self._send(set_state={"state": PAUSED})
                await self._send(wrap_up={"call_id": event.ended.call_id})
                self.idle = True

    async def become_free(self) -> None:
        self.idle = False
        self._free_at = time.monotonic()
        await self._send(set_state={"state": AVAILABLE})


async def _obey(pipe: Connection, name: str, address: str) -> None:
    loader, loop = Loader(name, address), asyncio.get_running_loop()
    while True:
        order, *values = await loop.run_in_executor(None, pipe.recv)
        try:
            pipe.send(await getattr(loader, order)(*values))
        except Exception as error:
            pipe.send(error)
        if order == "stop":
            return


def process(pipe: Connection, name: str, address: str) -> None:
    """Carries out orders until told to stop."""
    garbage.settle()
    uvloop.run(_obey(pipe, name, address))


class Helper:
    """The other end of the pipe."""

    def __init__(self, name: str, address: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=process, args=(theirs, name, address))
        self._process.start()

    def order(self, order: str, *values: Any) -> None:
        """Begins something."""
        self._pipe.send((order, *values))

    def result(self) -> Any:
        """What came of it. Raises what went wrong there."""
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Ends the process, in order if it can."""
        if self._process.is_alive():
            self._pipe.send(("stop",))
            self._process.join(10)
        self._process.kill()
        self._process.join()
