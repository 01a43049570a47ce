"""The wrapper around every RPC handler: identity and scope, limits, deadline, errors, metrics and trace in
one place.

Why one wrapper and no interceptor chain: it sees the request's bytes before they are parsed (so malformed
ones get a proper error after the permission check), it costs one coroutine, and its per-method values are
looked up once, at the start.

Handlers may be of every kind that grpc.aio knows. `async def` runs on the loop; plain `def`, which may block,
in the thread pool, with the call's context variables; such a handler gets a `BlockingContext`. A handler that
answers once may answer in bytes: its message, encoded already.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

import grpc
from grpc.aio import EOF, AbortError, BaseError  # type: ignore[attr-defined]

from chassis import auth, callcontext, deprecation, errors, limits, logs, metrics, telemetry, wellknown
from chassis.acts import Acts
from chassis.callcontext import CallContext
from chassis.errors import (
    CallmeshError,
    Code,
    DeadlineExceeded,
    Internal,
    MalformedRequest,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from chassis.grpc_status import abort_arguments
from chassis.localize import accepted_language

#: What counts in place of a code where a server that ends as it was told to said good-bye, and where it has
#: as many calls open as it takes: that is no limit of the caller's.
FAREWELL, OVERLOADED = "FAREWELL", "OVERLOADED"
#: Most streams of callers whom nobody knows, such as watches of the server's health.
WATCHERS_MAX = 1_000

_log = logs.get_logger(__name__)
_DONE = object()
_STATUS_CODES = frozenset(grpc.StatusCode)
#: Codes with which a server's span counts as failed, by OpenTelemetry's conventions.
_SPAN_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class ServerOverloaded(ResourceExhausted):
    """The server has too many open calls{limit}."""

    reason = "SERVER_OVERLOADED"


class WorkCancelled(Unavailable):
    """The call was given up: {why}."""

    reason = "WORK_CANCELLED"


class Guard:
    """What all methods of one server share."""

    def __init__(
        self,
        *,
        service: str,
        package: str,
        authenticator: auth.Authenticator,
        binding: auth.Binding,
        callers: limits.Limits | None,
        pool: Executor,
        calls_max: int,
        default_deadline_seconds: float,
        stream_grace_seconds: float = 0.0,
        acts: Acts | None = None,
    ) -> None:
        self.service = service
        #: Whose Chinese texts are told: the package that the server's code is of.
        self.package = package
        #: Where administrative acts are recorded; None where they are not.
        self.acts = acts
        self.domain = f"callmesh.{service}"
        self.authenticator = authenticator
        self.binding = binding
        self.callers = callers
        #: Probes are never refused, or a flood of them would end the process; but who watches keeps a call
        #: open.
        self.anybody = limits.Limits(service, limits.Policy(streams_open_max=WATCHERS_MAX), 1)
        self.pool = pool
        self.calls_max = calls_max
        self.default_deadline_seconds = default_deadline_seconds
        #: How long streams outlive the token that they were opened with.
        self.stream_grace_seconds = stream_grace_seconds
        #: Calls open now.
        self.open_calls = 0
        self.open_is_free = isinstance(authenticator, auth.OpenAuthenticator)

    async def abort(self, context: Any, error: CallmeshError) -> None:
        """Ends a call with the error, in the words that its caller asked for. Raises, as grpc does."""
        language = accepted_language(context)
        await context.abort(*abort_arguments(error, self.domain, language, self.package))


class BlockingContext:
    """What a handler in the thread pool may do with its call; each method may be called from its thread."""

    def __init__(self, context: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop

    def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """Ends the call with a bare status by raising; handlers of ours raise a `CallmeshError` instead."""
        ending = self._context.abort(code, details, tuple(trailing_metadata))
        asyncio.run_coroutine_threadsafe(ending, self._loop).result()

    def invocation_metadata(self) -> Any:
        """The request's metadata as pairs."""
        return self._context.invocation_metadata()

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Metadata to send with the status."""
        self._context.set_trailing_metadata(metadata)

    def peer(self) -> str:
        """The client's address."""
        return str(self._context.peer())

    def time_remaining(self) -> float | None:
        """Seconds left of the caller's deadline, None without one."""
        remaining: float | None = self._context.time_remaining()
        return remaining


class Method:
    """One RPC of one server, with everything looked up that does not change from call to call."""

    def __init__(self, guard: Guard, full_name: str, scope: str, handler: grpc.RpcMethodHandler) -> None:
        self.guard = guard
        self.full_name = full_name
        self.scope = scope
        self.handler = handler
        self.metrics = metrics.rpc_metrics(guard.service, full_name.lstrip("/"))
        self.kind = limits.Kind(scope, handler.request_streaming or handler.response_streaming)
        #: It is a stream that ends with its token.
        self.ends = self.kind.streaming and not scope.endswith(auth.PEER_SUFFIX)
        self.attributes = {"rpc.system.name": "grpc", "rpc.method": full_name.lstrip("/")}
        function: Any = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        self.function: Callable[..., Any] = function
        self.deserialize: Callable[[bytes], Any] = handler.request_deserializer or bytes
        descriptor = self._descriptor()
        self.has_times = descriptor is not None and wellknown.has_times(descriptor)
        self.deprecation = deprecation.of(guard.service, full_name, descriptor)
        self.serialize: Callable[[Any], bytes] = handler.response_serializer or bytes
        #: Declared in the proto, left to the generated base class.
        self.unimplemented = getattr(function, "__module__", "").endswith("_pb2_grpc")
        self.is_async = inspect.iscoroutinefunction(function)
        self.is_async_generator = inspect.isasyncgenfunction(function)

    def wrapped(self) -> grpc.RpcMethodHandler:
        """The handler to serve: raw request bytes in where the request is single, see the module's
        docstring.
        """
        serialize = self.serialize
        if self.handler.request_streaming:
            if self.handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(self._streamed(False), self._parse, serialize)
            return grpc.stream_unary_rpc_method_handler(self._single(False), self._parse, None)
        if self.handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streamed(True), None, serialize)
        return grpc.unary_unary_rpc_method_handler(self._single(True), None, None)

    def _parse(self, data: bytes) -> Any:
        try:
            request = self.deserialize(data)
        except Exception:
            raise MalformedRequest(message=self._request_type()) from None
        if self.has_times:
            wellknown.check(request)
        return request

    def _descriptor(self) -> Any:
        owner = getattr(self.deserialize, "__self__", None) or self.deserialize
        return getattr(owner, "DESCRIPTOR", None)

    def _request_type(self) -> str:
        descriptor = self._descriptor()
        return str(descriptor.full_name) if descriptor is not None else "protobuf"

    def _enter(self, call: _Call, request: Any, parse: bool) -> tuple[Any, Any]:
        """The request and the context that the handler is to see, once all holds that must hold before it
        runs: permission before anything else, and the request's bytes (`parse`) not before that.
        """
        self._admit(call)
        context = call.context
        if parse:
            request = self._parse(request)
        elif (pace := call.pace()) is not None:
            request, context = _paced(request, pace), _PacedContext(context, pace)
        if self.deprecation is not None:
            self.deprecation.warn(request if parse else None, call.context)
        return request, context

    def _admit(self, call: _Call) -> None:
        """Whether the call may be made at all, and until when."""
        guard, context = self.guard, call.context
        authorization, traceparent = _headers(context.invocation_metadata())
        call.current.traceparent = traceparent
        if self.scope == auth.PUBLIC:
            identity = callcontext.ANONYMOUS
            if self.kind.streaming:
                call.account = guard.anybody.enter(identity.subject, self.kind, time.monotonic())
        else:
            identity = guard.authenticator.authenticate(authorization)
            if not guard.open_is_free:
                if guard.binding.concerns(identity):
                    guard.binding.check(identity, _certificate(context))
                auth.authorize(identity, self.scope)
            if guard.callers is not None:
                call.account = guard.callers.enter(identity.subject, self.kind, time.monotonic())
        call.current.identity = identity
        remaining = context.time_remaining()
        if remaining is None and not (self.handler.request_streaming or self.handler.response_streaming):
            remaining = guard.default_deadline_seconds
        if remaining is not None:
            if remaining <= 0:
                raise DeadlineExceeded()
            call.current.deadline = time.monotonic() + remaining
        if guard.open_calls > guard.calls_max:
            raise ServerOverloaded(subject="server", limit=f"at most {guard.calls_max}", retry_seconds=1.0)
        if self.unimplemented:
            raise Unimplemented(method=self.full_name)
        call.span = telemetry.start_call(self.attributes["rpc.method"], traceparent, self.attributes)
        if call.span is not None:
            call.current.traceparent = call.span.traceparent

    def _single(self, parse: bool) -> Callable[[Any, Any], Awaitable[bytes]]:
        """The wrapper for handlers that answer once; `parse` when the request is one message, still in
        bytes.
        """
        function = self._recorded(self.function if self.is_async else self._run_blocking, parse)
        serialize = self.serialize

        async def handle(request: Any, context: Any) -> bytes:
            call = _Call(self, context)
            try:
                request, context = self._enter(call, request, parse)
                running = function(request, context)
                response = await (self._while_valid(running, call) if self.ends else running)
                data = response if type(response) is bytes else serialize(response)
                call.finish_ok()
                return data
            except BaseException as error:
                await call.fail(error)
                raise
            finally:
                call.leave()

        return handle

    def _streamed(self, parse: bool) -> Callable[[Any, Any], Awaitable[None]]:
        """The wrapper for handlers that answer with a stream."""
        run = self._recorded(self._run_stream, parse)

        async def handle(request: Any, context: Any) -> None:
            call = _Call(self, context)
            try:
                request, context = self._enter(call, request, parse)
                running = run(request, context)
                await (self._while_valid(running, call) if self.ends else running)
                call.finish_ok()
            except BaseException as error:
                await call.fail(error)
                raise
            finally:
                call.leave()

        return handle

    async def _while_valid(self, running: Awaitable[Any], call: _Call) -> Any:
        """What a stream comes to. StreamTokenEnded when its token ended long enough ago: the handler is
        cancelled, as by a caller that has gone.
        """
        ends_at = call.current.identity.ends_at
        if ends_at is None:
            return await running
        left = ends_at + self.guard.stream_grace_seconds - time.time()
        limit = asyncio.timeout(max(0.0, left))
        try:
            async with limit:
                answer = await running
        except Exception:
            # What a handler says when it is cancelled is of no interest to the caller.
            if not limit.expired():
                raise
        else:
            if not limit.expired():
                return answer
        raise auth.StreamTokenEnded(why="its token has ended; open it again with a new one")

    def _recorded(self, function: Callable[..., Any], parse: bool) -> Callable[..., Any]:
        """The handler, in the audit log where it is an administrative act."""
        acts = self.guard.acts
        if acts is None or self.scope not in acts.scopes or self.unimplemented:
            return function
        return acts.recorded(self.full_name, function, stream=not parse)

    async def _run_stream(self, request: Any, context: Any) -> None:
        if self.is_async:
            await self.function(request, context)
            return
        if self.is_async_generator:
            responses = self.function(request, context)
        else:
            responses = self._iterate_blocking(request, context)
        # Closed at once when the caller is gone, so that the handler's own clean-up never waits for the
        # collector.
        async with aclosing(responses):
            async for response in responses:
                await context.write(response)

    async def _run_blocking(self, request: Any, context: Any) -> Any:
        loop = asyncio.get_running_loop()
        if self.handler.request_streaming:
            request = _blocking_iterator(request, loop)
        copied = contextvars.copy_context()
        blocking = BlockingContext(context, loop)
        return await loop.run_in_executor(
            self.guard.pool, copied.run, _unless_late, self.function, request, blocking
        )

    async def _iterate_blocking(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Runs a plain generator one step at a time in the thread pool."""
        loop, pool = asyncio.get_running_loop(), self.guard.pool
        copied = contextvars.copy_context()
        responses = iter(await self._run_blocking(request, context))

        def step() -> Any:
            return next(responses, _DONE)

        running: asyncio.Future[Any] | None = None
        try:
            while True:
                running = loop.run_in_executor(pool, copied.run, step)
                response = await asyncio.shield(running)
                running = None if response is _DONE else running
                if running is None:
                    return
                yield response
        finally:
            if running is not None:
                running.add_done_callback(lambda last: _close_later(last, responses, pool, copied))


def _close_later(
    last: asyncio.Future[Any], responses: Iterator[Any], pool: Executor, copied: contextvars.Context
) -> None:
    """Closes an abandoned generator, once its `last` step is over, in a thread because it may block."""
    failed = last.cancelled() or last.exception() is not None
    close = getattr(responses, "close", None)
    if close is not None and not failed:
        try:
            pool.submit(copied.run, close)
        except RuntimeError:  # the pool is shut down: the process ends, and the generator with it
            return


def _unless_late(function: Callable[..., Any], request: Any, context: Any) -> Any:
    """A call that waited for a thread until its deadline is not begun: nobody waits for the answer
    any more.
    """
    if callcontext.remaining_seconds() == 0.0:
        raise DeadlineExceeded()
    return function(request, context)


def _blocking_iterator(messages: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """The request stream for a handler in a thread."""

    async def following() -> Any:
        return await anext(messages, _DONE)

    while (message := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not _DONE:
        yield message


async def _paced(messages: AsyncIterator[Any], pace: limits.Pace) -> AsyncIterator[Any]:
    """A caller's stream, no faster than allowed. What waits is in the connection's own, bounded, window."""
    async for message in messages:
        if pause := pace.next(time.monotonic()):
            await asyncio.sleep(pause)
        yield message


class _PacedContext:
    """A call's context whose `read` is no faster than allowed."""

    def __init__(self, context: Any, pace: limits.Pace) -> None:
        self._context = context
        self._pace = pace

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        message = await self._context.read()
        if message is not EOF and (pause := self._pace.next(time.monotonic())):
            await asyncio.sleep(pause)
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _certificate(context: Any) -> bytes | None:
    """The client's certificate, PEM; None without one."""
    found = context.auth_context().get("x509_pem_cert")
    return found[0] if found else None


def _headers(metadata: Any) -> tuple[str | None, str | None]:
    """(authorization, valid traceparent) of a request."""
    authorization = traceparent = None
    for key, value in metadata:
        if key == "authorization":
            authorization = value
        elif key == "traceparent":
            traceparent = telemetry.valid_traceparent(value)
    return authorization, traceparent


class _Call:
    """One call on its way through the wrapper."""

    __slots__ = ("account", "context", "current", "method", "span", "started")

    def __init__(self, method: Method, context: Any) -> None:
        self.method = method
        self.context = context
        self.span: telemetry.CallSpan | None = None
        self.account: limits.Account | None = None
        self.started = time.perf_counter()
        self.current = CallContext(method.full_name, callcontext.ANONYMOUS, None, None)
        # The call has a task of its own, so what is set here ends with it.
        callcontext.set_current(self.current)
        method.guard.open_calls += 1

    def pace(self) -> limits.Pace | None:
        """How fast the caller's stream is taken; None as fast as it comes."""
        rate = None if self.account is None else self.account.policy.stream_messages
        return None if rate is None else limits.Pace(rate, time.monotonic())

    def leave(self) -> None:
        """The call is no longer open."""
        guard = self.method.guard
        guard.open_calls -= 1
        if self.account is not None:
            self.account.leave(self.method.kind)

    def finish_ok(self) -> None:
        """The handler returned; it may have set another status by hand."""
        self._finish(_code_name(self.context, "OK"))

    def _finish(self, code: str, *, counted: str = "") -> None:
        self.method.metrics.record(counted or code, time.perf_counter() - self.started)
        if self.span is not None:
            fault = code in _SPAN_FAULTS and counted != FAREWELL
            self.span.end(code if fault else "", {"rpc.response.status_code": code})
            self.span = None

    async def fail(self, error: BaseException) -> None:
        """Ends the call with the status that `error` stands for; returns only for errors that grpc itself
        handles.
        """
        if isinstance(error, AbortError):
            self._finish(_code_name(self.context, "UNKNOWN"))
            return
        if isinstance(error, BaseError | GeneratorExit) or _is_cancelled(error):
            self._finish("DEADLINE_EXCEEDED" if self._late() else "CANCELLED")
            return
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._finish("INTERNAL")
            return
        shown = self._shown(error)
        overloaded = OVERLOADED if isinstance(shown, ServerOverloaded) else ""
        self._finish(shown.code.value, counted=FAREWELL if shown.farewell else overloaded)
        await self.method.guard.abort(self.context, shown)

    def _late(self) -> bool:
        return self.current.deadline is not None and time.monotonic() >= self.current.deadline

    def _shown(self, error: BaseException) -> CallmeshError:
        """What the caller sees; an unexpected error is logged whole and shown as its trace id only."""
        if isinstance(error, TimeoutError) and self._late():
            return DeadlineExceeded()
        if isinstance(error, asyncio.CancelledError):
            return WorkCancelled(why="the work behind it was cancelled", retry_seconds=1.0)
        shown = errors.translate(error)
        if shown.code is Code.INTERNAL:
            trace_id = telemetry.trace_id()
            _log.error("rpc.failed", method=self.method.full_name, trace_id=trace_id, exc_info=error)
            if type(shown) is Internal:
                return Internal(trace_id=trace_id)
        return shown


def _is_cancelled(error: BaseException) -> bool:
    """Whether the call itself was cancelled, and not merely something that its handler waited for.

    The difference matters: grpc sends no status for a cancelled call, so the caller of the other kind would
    wait for ever.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _code_name(context: Any, default: str) -> str:
    """The status that a handler set by hand, from gRPC's own table."""
    code = context.code()
    return code.name if code in _STATUS_CODES else default


class _UnknownMethod:
    """Answers whatever no service has, with the same kind of error as everything else."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._metrics = metrics.rpc_metrics(guard.service, "unknown")

    def handler(self, full_name: str) -> grpc.RpcMethodHandler:
        """A handler for one call of a method that does not exist."""

        async def refuse(request: Any, context: Any) -> None:
            self._metrics.record("UNIMPLEMENTED", 0.0)
            refusal = Unimplemented(method=full_name)
            await self._guard.abort(context, refusal)

        return grpc.stream_stream_rpc_method_handler(refuse, None, None)


class Handlers(grpc.GenericRpcHandler):
    """All methods of a server in one table.

    Methods are not registered with grpc one by one: grpc.aio waits for each registered method separately, and
    with a hundred of them that wait would cost every call.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._table: dict[str, grpc.RpcMethodHandler] = {}
        self._unknown = _UnknownMethod(guard)

    def add(self, method: Method) -> None:
        """Serves one more method."""
        self._table[method.full_name] = method.wrapped()

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        """Called by grpc for every call."""
        method = handler_call_details.method
        return self._table.get(method) or self._unknown.handler(method)


class Collector:
    """Stands in for a grpc server when the generated `add_XServicer_to_server` is called; keeps the
    handlers.
    """

    def __init__(self) -> None:
        #: Full method name -> handler as generated.
        self.handlers: dict[str, grpc.RpcMethodHandler] = {}

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """The same handlers again, behind an interface that cannot list them."""

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: dict[str, grpc.RpcMethodHandler]
    ) -> None:
        """What the generated code calls with all methods of a service."""
        for name, handler in method_handlers.items():
            self.handlers[f"/{service_name}/{name}"] = handler
