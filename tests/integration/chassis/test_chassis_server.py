"""Real servers over loopback: what a caller sees of the bootstrap and of the wrapper around every RPC."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time

import grpc
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from chassis import errors, metrics, rpc, telemetry
from chassis.auth import current_identity
from chassis.client import outgoing
from chassis.config import ServiceSettings
from chassis.errors import FailedPrecondition, InvalidArgument, NotFound, StartError
from chassis.grpc_status import DETAILS_TRAILER, detail_messages, error_info
from chassis.server import Server, remaining_seconds
from chassis.testing.echo import ECHO_SERVICE, EchoStub, echo_binding
from chassis.testing.grpc import loopback_settings
from chassis.testing.tokens import TokenMaker
from chassis.testing.waiting import eventually

UNARY = f"/{ECHO_SERVICE}/Unary"
MALFORMED = b"\xff\xff\xff"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


class Gone(NotFound):
    """There is no thing {resource}."""

    reason = "THING_NOT_FOUND"


class Leaving(errors.Unavailable):
    """This one goes."""

    reason = "SERVER_LEAVING"
    farewell = True


#: Request text -> what the handler raises.
FAILURES = {
    "leaving": Leaving(),
    "not found": Gone(resource="things/1"),
    "bad": InvalidArgument.many([("a", "is bad"), ("b", "too")]),
    "state": FailedPrecondition(subject="things/1", why="is closed"),
    "etag": errors.EtagMismatch(resource="things/1"),
    "away": errors.Unavailable(why="database away", retry_seconds=2),
    "crash": RuntimeError("password is hunter2"),
    "assert": AssertionError("hunter2"),
    "cancelled inside": asyncio.CancelledError(),
}


def respond(text: str) -> StringValue:
    if text in FAILURES:
        raise FAILURES[text]
    if text == "who":
        return StringValue(value=f"{current_identity().subject} {remaining_seconds(0.0):.0f}")
    if text == "wrong type":
        return object()
    return StringValue(value=text)


class AsyncEcho:
    """Every kind of handler on the loop."""

    async def Unary(self, request, context):
        return respond(request.value)

    async def ServerStream(self, request, context):
        for part in request.value.split(","):
            yield respond(part)

    async def ClientStream(self, request_iterator, context):
        return respond("+".join([message.value async for message in request_iterator]))

    async def Both(self, request_iterator, context):
        async for message in request_iterator:
            yield respond(message.value)


class BlockingEcho:
    """Every kind of handler in the thread pool."""

    def Unary(self, request, context):
        return respond(request.value)

    def ServerStream(self, request, context):
        for part in request.value.split(","):
            yield respond(part)

    def ClientStream(self, request_iterator, context):
        return respond("+".join(message.value for message in request_iterator))

    def Both(self, request_iterator, context):
        for message in request_iterator:
            yield respond(message.value)


class ReaderEcho(AsyncEcho):
    """Streams in the reader and writer style."""

    async def ServerStream(self, request, context):
        for part in request.value.split(","):
            await context.write(respond(part))

    async def Both(self, request_iterator, context):
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(respond(message.value))


@pytest.fixture(params=[AsyncEcho, BlockingEcho, ReaderEcho])
def servicer(request):
    return request.param()


@pytest_asyncio.fixture
async def echo(grpc_server, servicer):
    server = await grpc_server([echo_binding(servicer)])
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield EchoStub(channel)


@pytest_asyncio.fixture
async def raw(grpc_server, servicer):
    """A channel that sends bytes as they are."""
    server = await grpc_server([echo_binding(servicer)])
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


async def messages(*texts):
    for text in texts:
        yield StringValue(value=text)


async def calls_of_every_kind(stub, text):
    """The four RPCs, each as a function that makes the call and gives its last answer."""

    async def last(call):
        value = None
        async for message in call:
            value = message
        return value

    return {
        "Unary": lambda: stub.Unary(StringValue(value=text)),
        "ServerStream": lambda: last(stub.ServerStream(StringValue(value=text))),
        "ClientStream": lambda: stub.ClientStream(messages(text)),
        "Both": lambda: last(stub.Both(messages(text))),
    }


async def failure(awaitable) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


def count_of(method: str, code: str) -> float:
    counter = metrics.counter(
        "callmesh_rpc_requests_total", "RPCs finished, by status code.", ("service", "method", "code")
    )
    return counter.labels("test", method.lstrip("/"), code)._value.get()


async def test_all_four_kinds_answer(echo):
    assert (await echo.Unary(StringValue(value="a"))).value == "a"
    assert [m.value async for m in echo.ServerStream(StringValue(value="a,b,c"))] == ["a", "b", "c"]
    assert (await echo.ClientStream(messages("a", "b"))).value == "a+b"
    assert [m.value async for m in echo.Both(messages("a", "b"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "code", "reason", "kind"),
    [
        ("not found", grpc.StatusCode.NOT_FOUND, "THING_NOT_FOUND", None),
        ("bad", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", error_details_pb2.BadRequest),
        (
            "state",
            grpc.StatusCode.FAILED_PRECONDITION,
            "FAILED_PRECONDITION",
            error_details_pb2.PreconditionFailure,
        ),
        ("etag", grpc.StatusCode.ABORTED, "ETAG_MISMATCH", None),
        ("away", grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", error_details_pb2.RetryInfo),
    ],
)
async def test_errors_of_every_kind_of_handler_are_rich(echo, text, code, reason, kind):
    for name, call in (await calls_of_every_kind(echo, text)).items():
        error = await failure(call())
        assert error.code() is code, name
        (info,) = detail_messages(error, error_details_pb2.ErrorInfo)
        assert (info.reason, info.domain) == (reason, "callmesh.test"), name
        assert kind is None or len(detail_messages(error, kind)) == 1, name


async def test_a_server_that_says_good_bye_has_not_failed(echo):
    """Its callers are told to go elsewhere; nobody is to be woken by each rollout."""
    for name, call in (await calls_of_every_kind(echo, "leaving")).items():
        before = [count_of(f"/{ECHO_SERVICE}/{name}", code) for code in ("FAREWELL", "UNAVAILABLE")]
        error = await failure(call())
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_LEAVING")
        after = [count_of(f"/{ECHO_SERVICE}/{name}", code) for code in ("FAREWELL", "UNAVAILABLE")]
        assert after == [before[0] + 1, before[1]]


async def test_a_caller_who_names_its_language_is_told_in_it(raw):
    chinese = {"metadata": (("accept-language", "fr;q=0.1, zh-CN"),)}
    for ask in (raw.unary_unary(UNARY), raw.unary_unary(f"/{ECHO_SERVICE}/NoSuch")):
        error = await failure(ask(MALFORMED, **chinese))
        (told,) = detail_messages(error, error_details_pb2.LocalizedMessage)
        assert told.locale == "zh-CN" and told.message != error.details()
        assert len(detail_messages(error, error_details_pb2.ErrorInfo)) == 1
        assert detail_messages(await failure(ask(MALFORMED)), error_details_pb2.LocalizedMessage) == []


@pytest.mark.parametrize("text", ["crash", "assert", "wrong type"])
async def test_an_unexpected_error_is_logged_and_not_told(echo, text):
    for name, call in (await calls_of_every_kind(echo, text)).items():
        with capture_logs() as lines:
            error = await failure(call())
        assert error.code() is grpc.StatusCode.INTERNAL, name
        info = error_info(error)
        assert info.reason == "INTERNAL"
        assert "hunter2" not in error.details() + str(error.trailing_metadata())
        (line,) = lines
        assert line["trace_id"] == info.metadata["trace_id"], name
        assert line["method"] == f"/{ECHO_SERVICE}/{name}" and line["exc_info"]


async def test_a_handler_whose_work_was_cancelled_still_answers(echo):
    error = await failure(echo.Unary(StringValue(value="cancelled inside"), timeout=10))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error_info(error).reason == "WORK_CANCELLED"


@pytest.mark.parametrize("name", ["Unary", "ServerStream", "ClientStream", "Both"])
async def test_malformed_bytes_are_an_invalid_argument(raw, name):
    method = f"/{ECHO_SERVICE}/{name}"

    async def stream():
        yield MALFORMED

    calls = {
        "Unary": lambda: raw.unary_unary(method)(MALFORMED),
        "ServerStream": lambda: anext(aiter(raw.unary_stream(method)(MALFORMED))),
        "ClientStream": lambda: raw.stream_unary(method)(stream()),
        "Both": lambda: anext(aiter(raw.stream_stream(method)(stream()))),
    }
    error = await failure(calls[name]())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(error).reason == "MALFORMED_REQUEST"
    assert error_info(error).metadata["message"] == "google.protobuf.StringValue"


async def test_a_declared_method_without_code_and_an_unknown_one_are_unimplemented(echo, raw):
    error = await failure(echo.Missing(StringValue()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error_info(error).metadata["method"] == f"/{ECHO_SERVICE}/Missing"
    for method in ("/no.such.Service/Call", f"/{ECHO_SERVICE}/Nope", "/" + "x" * 3000):
        error = await failure(raw.unary_unary(method)(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error_info(error).reason == "UNIMPLEMENTED"


async def test_handlers_know_the_caller_and_the_deadline(echo):
    assert (await echo.Unary(StringValue(value="who"), timeout=30)).value == "local 30"
    assert (await echo.Unary(StringValue(value="who"))).value == "local 5"
    assert (await echo.ClientStream(messages("who"), timeout=30)).value == "local 30"
    assert [m.value async for m in echo.Both(messages("who"))] == ["local 0"]


# --- one kind of handler is enough below
# -------------------------------------------------------------------------


class Endings:
    """Handlers that wait, and write down how they end."""

    def __init__(self):
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.how = ""

    async def Unary(self, request, context):
        try:
            self.started.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()

    async def ServerStream(self, request, context):
        try:
            yield StringValue(value="first")
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.how = "closed"
            self.ended.set()


async def start_echo(grpc_server, servicer, **changes):
    server = await grpc_server([echo_binding(servicer)], settings=loopback_settings(**changes))
    channel = grpc.aio.insecure_channel(server.address)
    return server, channel, EchoStub(channel)


async def test_a_cancelled_call_reaches_its_handler_and_is_counted(grpc_server):
    servicer = Endings()
    _, channel, stub = await start_echo(grpc_server, servicer)
    async with channel:
        before = count_of(UNARY, "CANCELLED")
        call = stub.Unary(StringValue())
        await servicer.started.wait()
        call.cancel()
        await asyncio.wait_for(servicer.ended.wait(), 30)
        assert servicer.how == "cancelled"
        await eventually(lambda: count_of(UNARY, "CANCELLED") == before + 1)


async def test_a_deadline_ends_the_handler_and_is_counted(grpc_server):
    servicer = Endings()
    _, channel, stub = await start_echo(grpc_server, servicer)
    async with channel:
        # On a busy machine a short one may be over before the handler is there.
        for seconds in (0.2, 2.0, 20.0):
            before = count_of(UNARY, "DEADLINE_EXCEEDED")
            error = await failure(stub.Unary(StringValue(), timeout=seconds))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if servicer.started.is_set():
                break
        await asyncio.wait_for(servicer.ended.wait(), 30)
        await eventually(lambda: count_of(UNARY, "DEADLINE_EXCEEDED") == before + 1)


async def test_an_abandoned_stream_is_closed_at_once(grpc_server):
    servicer = Endings()
    _, channel, stub = await start_echo(grpc_server, servicer)
    async with channel:
        call = stub.ServerStream(StringValue())
        assert (await call.read()).value == "first"
        await servicer.started.wait()
        call.cancel()
        await asyncio.wait_for(servicer.ended.wait(), 30)
        assert servicer.how == "closed"


async def test_an_abandoned_blocking_stream_is_closed_too(grpc_server):
    closed, release = threading.Event(), threading.Event()

    class Blocking:
        def ServerStream(self, request, context):
            try:
                yield StringValue(value="first")
                release.wait(60)
                yield StringValue(value="second")
            finally:
                closed.set()

    server, channel, stub = await start_echo(grpc_server, Blocking())
    async with channel:
        call = stub.ServerStream(StringValue())
        assert (await call.read()).value == "first"
        call.cancel()
        await eventually(lambda: server._guard.open_calls == 0)
        release.set()
        assert await asyncio.to_thread(closed.wait, 30)


async def test_a_call_that_waited_too_long_for_a_thread_is_not_begun(grpc_server):
    release, ran = threading.Event(), []

    class Blocking:
        def Unary(self, request, context):
            ran.append(request.value)
            release.wait(60)
            return request

    server, channel, stub = await start_echo(grpc_server, Blocking(), threads=1)
    async with channel:
        first = asyncio.ensure_future(_outcome(stub.Unary(StringValue(value="first"), timeout=30)))
        await eventually(lambda: ran == ["first"])
        error = await failure(stub.Unary(StringValue(value="late"), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: server._guard.open_calls == 1)
        release.set()
        assert (await first).value == "first"
        assert (await stub.Unary(StringValue(value="next"), timeout=30)).value == "next"
        assert ran == ["first", "next"]


async def _outcome(call):
    return await call


async def test_a_blocking_handler_may_use_its_context(grpc_server):
    class Blocking:
        def Unary(self, request, context):
            context.set_trailing_metadata((("x-echo", dict(context.invocation_metadata())["x-in"]),))
            assert context.time_remaining() > 0 and "127.0.0.1" in context.peer()
            if request.value == "abort":
                context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
            return request

    _, channel, stub = await start_echo(grpc_server, Blocking())
    async with channel:
        call = stub.Unary(StringValue(value="a"), metadata=(("x-in", "1"),), timeout=30)
        assert (await call).value == "a"
        assert ("x-echo", "1") in tuple(await call.trailing_metadata())
        error = await failure(stub.Unary(StringValue(value="abort"), metadata=(("x-in", "1"),), timeout=30))
        assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "by hand")


async def test_more_calls_than_the_limit_are_turned_away(grpc_server):
    servicer = Endings()
    _, channel, stub = await start_echo(grpc_server, servicer, concurrent_calls_max=1)
    async with channel:
        call = stub.Unary(StringValue())
        await servicer.started.wait()
        method, codes = f"/{ECHO_SERVICE}/Unary", ("OVERLOADED", "RESOURCE_EXHAUSTED")
        before = [count_of(method, code) for code in codes]
        error = await failure(stub.Unary(StringValue()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(error).reason == "SERVER_OVERLOADED"
        after = [count_of(method, code) for code in codes]
        assert after == [before[0] + 1, before[1]], "no limit of the caller's: somebody is to know"
        assert detail_messages(error, error_details_pb2.RetryInfo)
        assert detail_messages(error, error_details_pb2.QuotaFailure)[0].violations[0].subject == "server"
        call.cancel()


async def test_a_burst_of_welcome_calls_loses_none(grpc_server):
    gate = asyncio.Event()

    class Waiting:
        async def ServerStream(self, request, context):
            await gate.wait()
            yield request

    server, channel, stub = await start_echo(grpc_server, Waiting())
    async with channel:
        calls = [stub.ServerStream(StringValue(value=str(n))) for n in range(3000)]
        await eventually(lambda: server._guard.open_calls == 3000)
        gate.set()
        answers = await asyncio.gather(*(call.read() for call in calls))
        assert [answer.value for answer in answers] == [str(n) for n in range(3000)]


async def test_messages_beyond_the_limit_and_within_it(grpc_server):
    _, channel, stub = await start_echo(grpc_server, AsyncEcho())
    async with channel:
        error = await failure(stub.Unary(StringValue(value="x" * (17 * 1024 * 1024))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The default client takes 4 MiB; the server took the request.
        assert (await stub.ClientStream(messages("x" * (3 * 1024 * 1024)))).ByteSize() > 3 * 1024 * 1024


async def test_huge_metadata_is_refused(grpc_server):
    _, channel, stub = await start_echo(grpc_server, AsyncEcho())
    async with channel:
        error = await failure(stub.Unary(StringValue(), metadata=(("x-huge", "x" * 40_000),)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest_asyncio.fixture
async def guarded(grpc_server, tmp_path):
    """(stub, raw channel, token maker) of a server that wants tokens: Unary needs "echo.read", the others
    "echo.write".
    """
    maker = TokenMaker()
    settings = loopback_settings(
        auth_mode="jwt",
        auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json")),
        rate_limit_per_second=0.001,
        rate_limit_burst=3,
    )
    binding = echo_binding(AsyncEcho())
    scopes = {**dict.fromkeys(binding.methods, "echo.write"), UNARY: "echo.read"}
    server = await grpc_server([binding], scopes=scopes, settings=settings)
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield EchoStub(channel), channel, maker


async def test_identity_and_scope_come_before_everything_else(guarded):
    stub, channel, maker = guarded
    error = await failure(channel.unary_unary(UNARY)(MALFORMED))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert error_info(error).reason == "TOKEN_MISSING"
    header = maker.header(scope="echo.read")
    assert (await stub.Unary(StringValue(value="who"), metadata=header)).value.startswith("partner ")
    error = await failure(stub.ClientStream(messages("not found"), metadata=header))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error_info(error).metadata["scope"] == "echo.write"
    error = await failure(stub.Missing(StringValue(), metadata=header))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_stream_ends_with_its_token_and_one_between_servers_does_not(grpc_server, tmp_path):
    maker = TokenMaker()
    settings = loopback_settings(
        auth_mode="jwt",
        auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json")),
        auth_leeway_seconds=0,
        auth_stream_grace_seconds=0,
    )
    echo, peer = echo_binding(AsyncEcho()), {UNARY: "", f"/{ECHO_SERVICE}/Both": "echo.peer"}
    ending = await grpc_server([echo], scopes=dict.fromkeys(echo.methods, "echo"), settings=settings)
    lasting = await grpc_server(
        [echo], scopes={**dict.fromkeys(echo.methods, "echo"), **peer}, settings=settings
    )
    header = maker.header(scope="echo echo.peer", exp=int(time.time()) + 2)
    async with (
        asyncio.timeout(30),
        grpc.aio.insecure_channel(ending.address) as one,
        grpc.aio.insecure_channel(lasting.address) as two,
    ):
        streams = [EchoStub(channel).Both(metadata=header) for channel in (one, two)]
        for stream in streams:
            await stream.write(StringValue(value="hello"))
            assert (await stream.read()).value == "hello"
        sending = EchoStub(one).ClientStream(metadata=header)
        await sending.write(StringValue(value="a"))
        for over in (streams[0].read(), sending):
            error = await failure(over)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert error_info(error).reason == "STREAM_TOKEN_ENDED"
        error = await failure(EchoStub(two).Both(metadata=header).read())
        assert error_info(error).reason == "TOKEN_EXPIRED"
        await streams[1].write(StringValue(value="still here"))
        assert (await streams[1].read()).value == "still here"
        streams[1].cancel()


async def test_the_rate_limit_is_for_each_partner(guarded):
    stub, _, maker = guarded
    mine, theirs = maker.header(subject="a", scope="echo.read"), maker.header(subject="b", scope="echo.read")
    for _ in range(3):
        await stub.Unary(StringValue(value="x"), metadata=mine)
    error = await failure(stub.Unary(StringValue(value="x"), metadata=mine))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error).reason == "RATE_LIMITED"
    assert detail_messages(error, error_details_pb2.QuotaFailure)[0].violations[0].subject == "client:a"
    assert detail_messages(error, error_details_pb2.RetryInfo)[0].retry_delay.ToSeconds() > 0
    await stub.Unary(StringValue(value="x"), metadata=theirs)


LIMITS = """
default:
  rates: {echo.write: [{calls: 2, seconds: 3600}]}
  streams_open_max: 2
  stream_messages: {calls: 1000, burst: 1}
subjects:
  free: {}
"""


@pytest_asyncio.fixture
async def limited(grpc_server, tmp_path):
    """(stub, token maker, server, limits file): Unary needs "echo.read", the others "echo.write"."""
    maker, file = TokenMaker(), tmp_path / "limits.yaml"
    file.write_text(LIMITS)
    settings = loopback_settings(
        auth_mode="jwt",
        auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json")),
        limits_file=str(file),
    )
    binding = echo_binding(ReaderEcho())
    scopes = {**dict.fromkeys(binding.methods, "echo.write"), UNARY: "echo.read"}
    server = await grpc_server([binding], scopes=scopes, settings=settings)
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield EchoStub(channel), maker, server, file


async def test_a_quota_is_told_with_what_and_when(limited):
    stub, maker, _, _ = limited
    mine = maker.header(subject="a", scope="echo.write echo.read")
    for _ in range(2):
        await stub.ClientStream(messages("x"), metadata=mine)
    error = await failure(stub.ClientStream(messages("x"), metadata=mine))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error).reason == "QUOTA_EXCEEDED"
    (quota,) = detail_messages(error, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "client:a" and "2 in 3600 s" in quota.violations[0].description
    (retry,) = detail_messages(error, error_details_pb2.RetryInfo)
    assert 1700 < retry.retry_delay.seconds <= 1800
    for name, method in (("a", stub.Unary), ("free", stub.Unary)):
        await method(StringValue(value="x"), metadata=maker.header(subject=name, scope="echo.read"))


async def test_streams_open_at_once_are_counted_until_they_end(limited):
    stub, maker, server, file = limited
    file.write_text(LIMITS.replace("calls: 2", "calls: 1000"))
    server._guard.callers._look_at = 0.0  # as if a second had gone by
    mine = maker.header(subject="a", scope="echo.write")
    open_ = [stub.Both(metadata=mine) for _ in range(2)]
    for call in open_:
        await call.write(StringValue(value="here"))
        assert (await call.read()).value == "here"
    error = await failure(stub.ClientStream(messages("x"), metadata=mine))
    assert error_info(error).reason == "TOO_MANY_OPEN_STREAMS"
    open_[0].cancel()
    await open_[1].done_writing()
    await eventually(lambda: server._guard.open_calls == 0)
    assert (await stub.ClientStream(messages("x"), metadata=mine)).value == "x"


async def test_a_stream_that_is_too_fast_waits_and_loses_nothing(limited):
    """A thousand messages a second and one at once: the fifth cannot be there before 4 ms are over."""
    stub, maker, _, _ = limited
    mine = maker.header(subject="a", scope="echo.write")
    for kind in (stub.ClientStream, stub.Both):
        began = time.monotonic()
        call = kind(messages(*"abcde"), metadata=mine)
        if kind is stub.Both:
            assert [message.value async for message in call] == [*"abcde"]
        else:
            assert (await call).value == "a+b+c+d+e"
        assert time.monotonic() - began >= 0.004


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"callmesh"
GOAWAY, ENHANCE_YOUR_CALM = 7, 11


async def test_pinging_without_end_is_not_suffered(grpc_server):
    """Who pings far oftener than any edge needs is sent away, so that pings cost no more than calls."""
    server = await grpc_server([echo_binding(AsyncEcho())])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(PREFACE + PING * 20)
        async with asyncio.timeout(30):
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == GOAWAY:
                    break
        assert int.from_bytes(payload[4:8]) == ENHANCE_YOUR_CALM
    finally:
        writer.close()


async def test_probes_need_no_token_but_reflection_does(guarded):
    _, channel, maker = guarded
    check = health_pb2_grpc.HealthStub(channel).Check
    assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING

    async def ask():
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    error = await failure(anext(aiter(stub.ServerReflectionInfo(ask()))))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    answer = await anext(aiter(stub.ServerReflectionInfo(ask(), metadata=maker.header(scope=""))))
    names = {service.name for service in answer.list_services_response.service}
    assert {ECHO_SERVICE, "grpc.health.v1.Health"} <= names


async def test_watching_the_health_is_bounded_and_probing_is_not(grpc_server, monkeypatch):
    """Who needs no token can neither keep calls open without end nor keep the probes from their answer."""
    monkeypatch.setattr(rpc, "WATCHERS_MAX", 2)
    server, channel, _ = await start_echo(grpc_server, AsyncEcho())
    async with channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        error = await failure(health.Watch(health_pb2.HealthCheckRequest()).read())
        assert error_info(error).reason == "TOO_MANY_OPEN_STREAMS"
        answers = await asyncio.gather(*(health.Check(health_pb2.HealthCheckRequest()) for _ in range(50)))
        assert len(answers) == 50
        for watch in watches:
            watch.cancel()
        await eventually(lambda: server._guard.open_calls == 0)


async def test_reflection_can_be_switched_off(grpc_server):
    server, channel, _ = await start_echo(grpc_server, AsyncEcho(), reflection=False)
    async with channel:
        method = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        error = await failure(anext(aiter(method(iter([b""])))))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.port > 0


async def test_health_has_every_service_by_name(grpc_server):
    server, channel, _ = await start_echo(grpc_server, AsyncEcho())
    async with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", ECHO_SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="nope")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=ECHO_SERVICE))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.announce_end()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


def refuses_connections(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


async def test_an_open_call_may_end_while_the_server_drains(grpc_server):
    gate, started = asyncio.Event(), asyncio.Event()

    class Slow:
        async def Unary(self, request, context):
            started.set()
            await gate.wait()
            return request

    server, channel, stub = await start_echo(grpc_server, Slow())
    async with channel:
        call = asyncio.ensure_future(_outcome(stub.Unary(StringValue(value="a"))))
        await started.wait()
        stopping = asyncio.ensure_future(server.stop(30))
        # A call that is under way when it stops to listen may still be answered CANCELLED.
        await eventually(lambda: refuses_connections(server.port))
        async with grpc.aio.insecure_channel(server.address) as late:
            error = await failure(EchoStub(late).Unary(StringValue(), timeout=30))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        gate.set()
        assert (await call).value == "a"
        await asyncio.wait_for(stopping, 30)


async def test_a_call_that_will_not_end_is_cut_after_the_grace(grpc_server):
    servicer = Endings()
    server, channel, stub = await start_echo(grpc_server, servicer)
    async with channel:
        call = asyncio.ensure_future(failure(stub.Unary(StringValue())))
        await servicer.started.wait()
        await asyncio.wait_for(server.stop(0.1), 30)
        assert (await call).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert servicer.how == "cancelled"


async def test_start_hooks_run_before_the_first_call_and_may_fail(grpc_server):
    seen = []

    async def hook():
        seen.append("async")

    await grpc_server([], on_start=[hook, lambda: seen.append("plain")])
    assert seen == ["async", "plain"]

    def broken():
        raise StartError("no leader")

    with pytest.raises(StartError, match="no leader"):
        await grpc_server([], on_start=broken)


async def test_a_taken_port_stops_the_start(grpc_server):
    first = await grpc_server([])
    for field, port in (("grpc_port", first.port), ("http_port", first.http_port)):
        second = Server(loopback_settings().model_copy(update={field: port}), [], scopes={})
        with pytest.raises(StartError, match="cannot listen on 127"):
            await second.start()
        await second.stop()


async def test_a_missing_scope_stops_the_start(grpc_server):
    with pytest.raises(StartError, match=f"no scope is set for /{ECHO_SERVICE}/Both, "):
        await grpc_server([echo_binding(AsyncEcho())], scopes={UNARY: "x"})


async def http(port: int, head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_the_http_port(grpc_server):
    ready = {"database": True}
    server, channel, stub = await start_echo_with_checks(grpc_server, ready)
    async with channel:
        await stub.Unary(StringValue(value="x"))
    text = (await http(server.http_port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).decode()
    assert f'callmesh_rpc_requests_total{{code="OK",method="{UNARY[1:]}",service="test"}}' in text
    assert 'callmesh_rpc_open{service="test"} 0.0' in text
    assert b" 200 " in await http(server.http_port, b"GET /readyz HTTP/1.1\r\n\r\n")
    ready["database"] = False
    answer = await http(server.http_port, b"GET /readyz HTTP/1.1\r\n\r\n")
    assert b" 503 " in answer and b'"database": false' in answer
    assert (await http(server.http_port, b"HEAD /healthz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
    assert b" 400 " in await http(server.http_port, b"nonsense\r\n\r\n")
    assert b" 404 " in await http(server.http_port, b"GET /etc/passwd HTTP/1.1\r\n\r\n")
    assert await http(server.http_port, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n") == b""


async def start_echo_with_checks(grpc_server, ready):
    server = await grpc_server([echo_binding(AsyncEcho())], checks={"database": lambda: ready["database"]})
    channel = grpc.aio.insecure_channel(server.address)
    return server, channel, EchoStub(channel)


async def test_a_trace_comes_in_is_recorded_and_goes_on(grpc_server):
    exporter = InMemorySpanExporter()
    telemetry.setup(ServiceSettings(service="test", trace_ratio=0.0), exporter=exporter)
    sent = []

    class Onward:
        async def Unary(self, request, context):
            sent.append(dict(outgoing(1.0)["metadata"])["traceparent"])
            return respond(request.value)

    _, channel, stub = await start_echo(grpc_server, Onward())
    async with channel:
        await stub.Unary(StringValue(value="a"), metadata=(("traceparent", TRACE + "1"),))
        await failure(stub.Unary(StringValue(value="crash"), metadata=(("traceparent", TRACE + "1"),)))
        await stub.Unary(StringValue(value="a"), metadata=(("traceparent", TRACE + "0"),))
    telemetry.shutdown()
    good, bad = exporter.get_finished_spans()
    assert good.name == UNARY.lstrip("/") == good.attributes["rpc.method"]
    assert good.attributes["rpc.system.name"] == "grpc"
    assert good.attributes["rpc.response.status_code"] == "OK" and "error.type" not in good.attributes
    assert bad.attributes["rpc.response.status_code"] == bad.attributes["error.type"] == "INTERNAL"
    assert not bad.status.is_ok and not bad.events, "an exception's text may hold anything"
    assert [value[:35] for value in sent] == [TRACE[:35]] * 3
    assert sent[0][36:52] == f"{good.context.span_id:016x}"
    assert sent[2] == TRACE + "0"


async def test_what_is_left_of_the_deadline_goes_on(grpc_server):
    seen = []

    class Onward:
        async def Unary(self, request, context):
            seen.append((outgoing(60.0)["timeout"], outgoing(1.0)["timeout"], outgoing(None)["timeout"]))
            return request

    _, channel, stub = await start_echo(grpc_server, Onward())
    async with channel:
        await stub.Unary(StringValue(), timeout=20)
    long, short, none = seen[0]
    # The wire rounds a timeout up.
    assert 15 < long < 20.5 and short == 1.0 and 15 < none < 20.5
    assert outgoing(7.0)["timeout"] == 7.0 and outgoing(None)["timeout"] is None


async def test_the_trailer_of_an_error_fits_any_client(grpc_server):
    class Verbose:
        async def Unary(self, request, context):
            raise InvalidArgument.many((f"field_{n}", "说明" * 5000) for n in range(500))

    _, channel, stub = await start_echo(grpc_server, Verbose())
    async with channel:
        for _ in range(50):  # between the soft and the hard limit clients refuse at random
            error = await failure(stub.Unary(StringValue()))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert DETAILS_TRAILER in dict(error.trailing_metadata())
