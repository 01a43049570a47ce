"""The network between machines: gRPC calls as the product makes them, over links that lose and delay.

`Channel` takes the place of a `grpc.aio.Channel`: generated stubs work on it unchanged. `Host` takes the
place of a server: generated `add_…_to_server` functions register on it. In between each call is two pipes,
in order while they last. A cut (of one direction or both) holds what is sent; when it lasts, each end
notices for itself, and not at the same time: until then the other end believes in a stream that is half open.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import AioRpcError, Metadata

from callmesh.routing.v1 import shard_pb2
from chassis.callcontext import CallContext, Identity, set_current
from chassis.errors import CallmeshError
from chassis.grpc_status import abort_arguments

if TYPE_CHECKING:
    from tests.simulation.agenda import Process
    from tests.simulation.world import World

#: A message's way, virtual seconds.
WAY_SECONDS = (0.0005, 0.012)
#: A peer that is silent for this long is given up by an end that waits for it.
KEEPALIVE_SECONDS = (1.0, 4.0)
#: How often a held pipe looks whether the cut is over.
HELD_SECONDS = 0.2
#: What an end that hears of a break hears.
BROKEN = (grpc.StatusCode.UNAVAILABLE, "the link broke")

_IDENTITY = Identity(subject="simulation", scopes=frozenset({"*"}))
_EMPTY = Metadata()


class Host:
    """A process that serves."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.methods: dict[str, Any] = {}
        #: Streams that end here, in order of being opened.
        self.calls: dict[Call, None] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Part of a gRPC server; what counts comes by the next method."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self.methods[f"/{service}/{name}"] = handler


class Network:
    """Who can reach whom, and all calls under way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts: dict[str, Host] = {}
        self._cuts: Counter[tuple[str, str]] = Counter()
        #: Seconds added to every message from or to a machine.
        self.slow: dict[str, float] = {}
        self.calls: dict[Call, None] = {}

    def serve(self, host: Host) -> None:
        """A process begins to listen, in place of one of the same name before."""
        self.hosts[host.process.name] = host

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` until `mend`, which is owed as often."""
        self._cuts[source, target] += 1

    def mend(self, source: str, target: str) -> None:
        self._cuts[source, target] -= 1

    def blocked(self, source: str, target: str) -> bool:
        return self._cuts[source, target] > 0

    def way(self, source: str, target: str) -> float:
        """Seconds that a message takes."""
        seconds = self.world.rng(f"way {source} {target}").uniform(*WAY_SECONDS)
        return seconds + self.slow.get(source, 0.0) + self.slow.get(target, 0.0)

    def lose(self, process: Process, silent: bool) -> None:
        """A process died: the other ends of its streams hear a reset, or (`silent`) nothing."""
        for call in [c for c in self.calls if process in (c.client, c.server)]:
            seconds = self.world.rng("crash").uniform(*KEEPALIVE_SECONDS) if silent else 0.02
            if call.client is process:
                call.server_hears(seconds)
            else:
                call.client_hears(seconds)

    def stall(self, process: Process, seconds: float) -> None:
        """A process is frozen: what has waited longer than its patience for a sign of life gives it up."""
        for call in [c for c in self.calls if process in (c.client, c.server)]:
            patience = self.world.rng(f"stall {process.name}").uniform(*KEEPALIVE_SECONDS)
            if patience < seconds:
                # The frozen end hears of it when it wakes.
                call.break_off(client_seconds=patience, server_seconds=patience)


class Pipe:
    """One direction of a call: in order, delayed, held by a cut."""

    __slots__ = ("_at", "_held", "_held_since", "call", "source", "target")

    def __init__(self, call: Call, source: Process, target: Process) -> None:
        self.call, self.source, self.target = call, source, target
        self._at = 0.0
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._held_since = -1.0

    def send(self, deliver: Callable[..., None], *args: Any) -> None:
        network = self.call.network
        agenda = network.world.agenda
        if agenda.over or self.call.broken or not self.source.alive:
            return
        self._at = max(self._at + 1e-6, agenda.now + network.way(self.source.name, self.target.name))
        agenda.at(self._at, self.target, self._arrive, deliver, args)

    def _arrive(self, deliver: Callable[..., None], args: tuple[Any, ...]) -> None:
        network = self.call.network
        if self._held or network.blocked(self.source.name, self.target.name):
            if not self._held:
                self._held_since = network.world.agenda.now
                network.world.agenda.after(HELD_SECONDS, self.target, self._look)
            self._held.append((deliver, args))
            return
        network.world.step()
        deliver(*args)

    def _look(self) -> None:
        """Whether the cut is over; if it lasts, both ends give up, each when it notices."""
        network = self.call.network
        agenda = network.world.agenda
        if not network.blocked(self.source.name, self.target.name):
            while self._held:
                deliver, args = self._held.popleft()
                network.world.step()
                deliver(*args)
        elif agenda.now - self._held_since > KEEPALIVE_SECONDS[0]:
            self.call.break_off()
        else:
            agenda.after(HELD_SECONDS, self.target, self._look)


class Call:
    """One call, both ends of it."""

    def __init__(self, network: Network, client: Process, target: str, method: str) -> None:
        self.network = network
        self.client = client
        self.method = method
        self.host = network.hosts.get(target)
        self.server = self.host.process if self.host is not None else client
        self.there = Pipe(self, client, self.server)
        self.back = Pipe(self, self.server, client)
        #: What is sent from now on gets nowhere.
        self.broken = False
        # The client's end.
        self.incoming: deque[Any] = deque()
        self.status: tuple[grpc.StatusCode, str, Any] | None = None
        self._waiter: asyncio.Future[None] | None = None
        # The server's end.
        self.requests: deque[Any] = deque()
        self.requests_done = False
        self._request_waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        network.calls[self] = None

    # --- opening

    def open(self, seconds: float | None) -> None:
        agenda = self.network.world.agenda
        if self.host is None or not self.server.alive:
            agenda.after(0.01, self.client, self.finish, *BROKEN)
            return
        deadline = None if seconds is None else self.server.monotonic() + seconds * self.server.rate
        self.there.send(self._serve, deadline)
        if seconds is not None:
            late = (grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
            agenda.after(seconds, self.client, self.finish, *late)
            agenda.after(seconds + 0.02, self.server, self.hang_up)
        if self.network.blocked(self.server.name, self.client.name):
            agenda.after(self._patience(), self.client, self._give_up)

    def _give_up(self) -> None:
        """The client hears nothing of the server and closes the connection, which the server may hear."""
        if self.status is None:
            self.finish(*BROKEN)
            self.there.send(self.hang_up)

    def _patience(self) -> float:
        return self.network.world.rng(f"patience {self.client.name}").uniform(*KEEPALIVE_SECONDS)

    def _serve(self, deadline: float | None) -> None:
        assert self.host is not None
        if self.method not in self.host.methods:
            self.back.send(self.finish, grpc.StatusCode.UNIMPLEMENTED, self.method)
            return
        self.host.calls[self] = None
        self.task = self.server.loop.create_task(self._handle(deadline), name=self.method)

    async def _handle(self, deadline: float | None) -> None:
        set_current(CallContext(self.method, _IDENTITY, deadline, None))
        assert self.host is not None
        handler = self.host.methods[self.method]
        status: tuple[Any, ...] = (grpc.StatusCode.OK, "")
        try:
            if handler.unary_unary is not None:
                self.respond(await handler.unary_unary(await anext(self._requests()), self))
            else:
                function = handler.stream_stream or handler.unary_stream
                asked = self._requests() if handler.request_streaming else await anext(self._requests())
                responses = function(asked, self)
                try:
                    async for message in responses:
                        self.respond(message)
                finally:
                    await responses.aclose()
        except CallmeshError as error:
            status = abort_arguments(error, "callmesh.routing")
        except StopAsyncIteration:
            status = BROKEN
        except Exception as error:
            self.network.world.violate(f"{self.server.name} failed on {self.method}: {error!r}")
            status = (grpc.StatusCode.INTERNAL, repr(error))
        finally:
            self.host.calls.pop(self, None)
        self.back.send(self.finish, *status)

    # --- the server's end; it is the handler's context, too

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def respond(self, message: Any) -> None:
        self.back.send(self._hear, message)

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            while self.requests:
                yield self.requests.popleft()
            if self.requests_done:
                return
            self._request_waiter = self.server.loop.create_future()
            await self._request_waiter

    def take(self, message: Any) -> None:
        """A request arrives."""
        self.requests.append(message)
        self._wake_server()

    def take_end(self) -> None:
        self.requests_done = True
        self._wake_server()

    def _wake_server(self) -> None:
        if self._request_waiter is not None and not self._request_waiter.done():
            self._request_waiter.set_result(None)

    def hang_up(self) -> None:
        """The server's end learns that nobody is there any more."""
        self.requests_done = True
        if self.task is not None:
            self.task.cancel()

    # --- the client's end

    def send(self, message: Any) -> None:
        world = self.network.world
        self.there.send(self.take, message)
        for each in (message, *message.more) if isinstance(message, shard_pb2.FrontMessage) else ():
            if each.command and world.strike("twice", "link"):
                # Asked again by somebody who never heard the answer; that may be much later.
                again = shard_pb2.FrontMessage(command=each.command)
                seconds = world.rng("twice").uniform(0.001, 2.0)
                world.agenda.after(seconds, self.client, self.there.send, self.take, again)

    def _hear(self, message: Any) -> None:
        if self.status is None:
            self.incoming.append(message)
            self._wake()

    def finish(self, code: grpc.StatusCode, details: str, trailers: Any = ()) -> None:
        """The call is over for the client, with what it heard before."""
        if self.status is None:
            self.status = (code, details, trailers)
            self.network.calls.pop(self, None)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Any:
        """The next message; StopAsyncIteration at a good end, AioRpcError at another."""
        while not self.incoming:
            if self.status is not None:
                code, details, trailers = self.status
                if code is grpc.StatusCode.OK:
                    raise StopAsyncIteration
                raise AioRpcError(code, _EMPTY, Metadata(*trailers), details, None)
            self._waiter = self.client.loop.create_future()
            await self._waiter
        return self.incoming.popleft()

    def cancel(self) -> None:
        if self.status is None:
            self.finish(grpc.StatusCode.CANCELLED, "cancelled here")
            self.there.send(self.hang_up)

    # --- breaking

    def client_hears(self, seconds: float) -> None:
        """The client's end notices a break after that time."""
        self.network.world.agenda.after(seconds, self.client, self.finish, *BROKEN)

    def server_hears(self, seconds: float) -> None:
        self.network.world.agenda.after(seconds, self.server, self.hang_up)

    def break_off(self, *, client_seconds: float | None = None, server_seconds: float | None = None) -> None:
        """Nothing gets through any more; each end notices in its own time."""
        self.broken = True
        self.client_hears(self._patience() if client_seconds is None else client_seconds)
        self.server_hears(self._patience() if server_seconds is None else server_seconds)


class ClientCall:
    """What a stub's method returns."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def write(self, message: Any) -> None:
        if self._call.status is not None:
            raise AioRpcError(grpc.StatusCode.UNAVAILABLE, _EMPTY, _EMPTY, "the call is over", None)
        self._call.send(message)

    async def done_writing(self) -> None:
        self._call.there.send(self._call.take_end)

    def cancel(self) -> bool:
        self._call.cancel()
        return True

    def done(self) -> bool:
        return self._call.status is not None

    async def read(self) -> Any:
        try:
            return await self._call.next()
        except StopAsyncIteration:
            return grpc.aio.EOF

    def __aiter__(self) -> ClientCall:
        return self

    async def __anext__(self) -> Any:
        return await self._call.next()

    def __await__(self) -> Any:
        return self._only().__await__()

    async def _only(self) -> Any:
        try:
            return await self._call.next()
        except asyncio.CancelledError:
            self._call.cancel()
            raise


class Channel:
    """In place of a `grpc.aio.Channel` from one process to a host."""

    def __init__(self, network: Network, client: Process, target: str) -> None:
        self._network = network
        self._client = client
        self._target = target

    def stream_stream(self, method: str, **serializers: Any) -> Callable[..., ClientCall]:
        def begin(*, timeout: float | None = None, **options: Any) -> ClientCall:
            return ClientCall(self._call(method, timeout))

        return begin

    def unary_stream(self, method: str, **serializers: Any) -> Callable[..., ClientCall]:
        def begin(request: Any, *, timeout: float | None = None, **options: Any) -> ClientCall:
            call = self._call(method, timeout)
            call.send(request)
            call.there.send(call.take_end)
            return ClientCall(call)

        return begin

    def unary_unary(self, method: str, **serializers: Any) -> Callable[..., ClientCall]:
        def begin(request: Any, *, timeout: float | None = None, **options: Any) -> ClientCall:
            return ClientCall(self._ask(method, request, timeout))

        return begin

    def _ask(self, method: str, request: Any, timeout: float | None) -> Call:
        """A request that may be lost, answered into the void, or repeated by a proxy on its way."""
        world = self._network.world
        call = Call(self._network, self._client, self._target, method)
        if world.strike("lost", "request"):
            call.client_hears(world.rng("lost").uniform(0.05, 1.0))
            return call
        if world.strike("unanswered", "request"):
            call.client_hears(world.rng("lost").uniform(0.0, 0.05))
        if world.strike("twice", "request"):
            seconds = world.rng("twice").uniform(0.001, 4.0)
            world.agenda.after(seconds, self._client, self._again, method, request)
        call.open(timeout)
        call.send(request)
        return call

    def _again(self, method: str, request: Any) -> None:
        call = self._call(method, 5.0)
        call.send(request)

    def _call(self, method: str, timeout: float | None) -> Call:
        call = Call(self._network, self._client, self._target, method)
        call.open(timeout)
        return call

    async def close(self, grace: float | None = None) -> None:
        """Calls under way end with their tasks."""
