"""`callmesh canary`: a call every minute, placed, answered, confirmed and ended as any other, by a caller
and an agent of its own in a queue of their own. It finds what no server says of itself: that callers get
through.

The directory needs the queue, its skill and the agent once (`--furnish` makes them): nobody else has that
skill, so the canary never takes a customer's agent, and a customer's call never reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import grpc
import typer
from google.protobuf import duration_pb2
from prometheus_client import start_http_server

from callmesh.routing.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    call_pb2,
    directory_pb2,
    directory_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from chassis import metrics
from chassis.errors import StartError
from chassis.ids import new_id
from chassis.tls import TokenFile
from chassis.watched import WatchedFiles
from cli.demo.rpc import CHANNEL_OPTIONS, EventStream, StreamEnded
from cli.directory import ADDRESS_DEFAULT, Address, Refused, bearer
from cli.view import ERR

#: Queue, skill and agent of the canary, all of one name.
NAME = "canary"
#: Number that the calls come from: of a block that is kept for fiction.
NUMBER = "+12025550100"
#: Between two calls, and how long one may take in all, seconds.
EVERY_SECONDS, CALL_SECONDS_MAX = 60.0, 30.0
#: Between two looks whether a router knows the agent yet, seconds.
LOOK_SECONDS = 0.2
#: Until then nobody knows the agent, or not every region has said so.
_NOT_YET = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)

_calls = metrics.counter(
    "callmesh_canary_calls_total", "Canary's calls by what became of them.", ("outcome",)
)
_seconds = metrics.histogram(
    "callmesh_canary_answer_seconds",
    "From placing the canary's call to its connection, real seconds.",
    (),
    (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_last = metrics.gauge(
    "callmesh_canary_answered_timestamp_seconds", "When the canary's last call was connected.", ()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Where the canary calls, and how it is let in."""

    address: str
    token: TokenFile
    #: The authority of the servers' certificates, and the canary's own key and certificate where servers ask
    #: for one, PEM; None for plain text.
    tls: WatchedFiles | None = None

    def channel(self) -> grpc.aio.Channel:
        """A channel to the router, by the files as they are now."""
        options = list(CHANNEL_OPTIONS)
        if self.tls is not None:
            credentials = grpc.ssl_channel_credentials(*self.tls.contents())
            return grpc.aio.secure_channel(self.address, credentials, options=options)
        return grpc.aio.insecure_channel(self.address, options=options)

    def metadata(self) -> list[tuple[str, str]]:
        """The file's token, as it is now; without a file that of every other command."""
        token = self.token.token()
        return [("authorization", f"Bearer {token}")] if token else bearer()


def line_of(address: str, token: str, authority: str, certificate: str, key: str) -> Line:
    """The line that these files make; empty for those that there are not. Refused when one cannot be used."""
    if bool(certificate) != bool(key) or (certificate and not authority):
        raise Refused(
            "a certificate (--cert-file) comes with its key (--key-file) and an authority (--ca-file)"
        )
    files = [name for name in (authority, key, certificate) if name]
    try:
        return Line(address=address, token=TokenFile(token), tls=WatchedFiles(files) if files else None)
    except StartError as error:
        raise Refused(str(error)) from None


class CallFailed(Exception):
    """The call did not come through: where it stopped."""


@asynccontextmanager
async def _seat(
    channel: grpc.aio.Channel, metadata: list[tuple[str, str]]
) -> AsyncIterator[Callable[..., Any]]:
    """The canary's agent, logged in; gives (what to send) and what to wait for."""
    call = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=metadata)
    stream = EventStream(call)
    command = 0

    async def say(kind: str = "", until: str = "", **sent: Any) -> Any:
        nonlocal command
        if kind:
            command += 1
            await call.write(agent_pb2.AgentCommand(command=command, **{kind: sent}))
        return await _until(stream, until) if until else None

    try:
        opening = {
            "agent": f"agents/{NAME}",
            "session": time.time_ns() // 1_000_000,
            "state": agent_pb2.AGENT_STATE_AVAILABLE,
        }
        await say("open", "status", **opening)
        yield say
    finally:
        await stream.close()


async def _until(stream: EventStream, kind: str) -> Any:
    while True:
        event = await stream.next(None)
        if event.WhichOneof("event") == kind:
            return event


async def one_call(line: Line) -> float:
    """One call from end to end; seconds until it was connected. Raises CallFailed."""
    step = "the agent's login"
    try:
        async with asyncio.timeout(CALL_SECONDS_MAX), line.channel() as channel:
            metadata = line.metadata()
            routing: Any = routing_pb2_grpc.RoutingServiceStub(channel)
            async with _seat(channel, metadata) as seat:
                step, began = "placing the call", time.monotonic()
                id = f"{NAME}-{new_id()}"
                call = call_pb2.CallRequest(
                    call_id=id, attempt=1, caller_number=NUMBER, queue=f"queues/{NAME}"
                )
                stream = EventStream(
                    routing.RouteCall(routing_pb2.RouteCallRequest(call=call), metadata=metadata)
                )
                try:
                    # Who is refused is told so here; the agent alone would be waited for until the end.
                    await stream.next(None)
                    step = "the offer to the agent"
                    offer = (await seat(until="offer")).offer
                    await seat("accept", offer_id=offer.offer_id)
                    step = "the caller's word of the agent"
                    accepted = await _until(stream, "accepted")
                    step = "the confirmation"
                    answer = await routing.ConfirmCall(
                        routing_pb2.ConfirmCallRequest(
                            call_id=id,
                            offer_id=accepted.accepted.offer_id,
                            version=accepted.version,
                            shard=accepted.shard,
                        ),
                        metadata=metadata,
                    )
                    if not answer.confirmed:
                        raise CallFailed("the call was not confirmed")
                    seconds = time.monotonic() - began
                    step = "the end of the call"
                    await routing.EndCall(routing_pb2.EndCallRequest(call_id=id), metadata=metadata)
                    await seat(until="ended")
                    await seat("wrap_up", call_id=id, disposition={"code": NAME, "resolved": True})
                    return seconds
                finally:
                    await stream.close()
    except TimeoutError:
        raise CallFailed(f"no answer within {CALL_SECONDS_MAX:g} s: {step}") from None
    except StreamEnded as ended:
        code = ended.error.code().name if isinstance(ended.error, grpc.aio.AioRpcError) else "an early end"
        missing = " (--furnish REGION makes its queue and agent)" if code == "NOT_FOUND" else ""
        raise CallFailed(f"{step}: {code}{missing}") from None
    except grpc.aio.AioRpcError as error:
        raise CallFailed(f"{step}: {error.code().name}") from None


async def furnish(line: Line, region: str) -> None:
    """Makes skill, queue and agent where they are missing. AioRpcError."""
    async with line.channel() as channel:
        stub: Any = directory_pb2_grpc.DirectoryServiceStub(channel)
        queue = directory_pb2.Queue(
            skills=[{"skill": NAME, "level_min": 1}],
            wrap_up_timeout=duration_pb2.Duration(seconds=int(EVERY_SECONDS)),
        )
        agent = directory_pb2.Agent(
            region=f"regions/{region}", skills={NAME: 1}, address="sip:canary@callmesh.invalid"
        )
        for ask, request in (
            (stub.CreateSkill, directory_pb2.CreateSkillRequest(skill_id=NAME)),
            (stub.CreateQueue, directory_pb2.CreateQueueRequest(queue_id=NAME, queue=queue)),
            (stub.CreateAgent, directory_pb2.CreateAgentRequest(agent_id=NAME, agent=agent)),
        ):
            try:
                await ask(request, metadata=line.metadata(), timeout=CALL_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
        await _until_known(channel, line)


async def _until_known(channel: grpc.aio.Channel, line: Line) -> None:
    """Waits until the router has heard of the agent from the directory. AioRpcError when it does not."""
    stub: Any = agent_pb2_grpc.AgentServiceStub(channel)
    request = agent_pb2.GetAgentStatusRequest(name=f"agents/{NAME}")
    give_up = time.monotonic() + CALL_SECONDS_MAX
    while True:
        try:
            await stub.GetAgentStatus(request, metadata=line.metadata(), timeout=CALL_SECONDS_MAX)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NOT_YET or time.monotonic() >= give_up:
                raise
        await asyncio.sleep(LOOK_SECONDS)


async def _watch(line: Line, every: float, once: bool) -> bool:
    """Calls again and again, or once; whether the last call came through."""
    while True:
        began = time.monotonic()
        try:
            seconds = await one_call(line)
        except CallFailed as failure:
            _calls.labels("failed").inc()
            ERR.print(f"canary: {failure}", markup=False, highlight=False, soft_wrap=True)
            through = False
        else:
            _calls.labels("answered").inc()
            _seconds.observe(seconds)
            _last.set(time.time())
            through = True
            if once:
                typer.echo(f"connected after {seconds * 1000:.0f} ms")
        if once:
            return through
        await asyncio.sleep(max(0.0, every - (time.monotonic() - began)))


def canary(
    address: Address = ADDRESS_DEFAULT,
    every: Annotated[
        float, typer.Option("--every", min=1.0, help="Seconds between two calls.")
    ] = EVERY_SECONDS,
    once: Annotated[bool, typer.Option("--once", help="One call; exit status 1 when it fails.")] = False,
    furnish_in: Annotated[
        str,
        typer.Option("--furnish", metavar="REGION", help="Make skill, queue and agent in this region first."),
    ] = "",
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=0, max=65535, help="Serve /metrics here; 0: nowhere.")
    ] = 0,
    metrics_host: Annotated[str, typer.Option("--metrics-host", help="Address for it.")] = "127.0.0.1",
    token_file: Annotated[
        str,
        typer.Option(
            "--token-file", envvar="CALLMESH_TOKEN_FILE", help="A token; read again when it changes."
        ),
    ] = "",
    authority_file: Annotated[
        str,
        typer.Option("--ca-file", envvar="TLS_CA_FILE", help="Authority of the servers; TLS then."),
    ] = "",
    certificate_file: Annotated[
        str,
        typer.Option(
            "--cert-file", envvar="TLS_CERT_FILE", help="Its own certificate, where servers ask for one."
        ),
    ] = "",
    key_file: Annotated[
        str, typer.Option("--key-file", envvar="TLS_KEY_FILE", help="The certificate's key.")
    ] = "",
) -> None:
    """Place a call every minute, answer it, end it, and tell Prometheus how it went."""
    try:
        line = line_of(address, token_file, authority_file, certificate_file, key_file)
        if metrics_port:
            start_http_server(metrics_port, metrics_host)
    except OSError as error:
        raise Refused(f"{metrics_host}:{metrics_port}: {error.strerror}") from None
    for outcome in ("answered", "failed"):
        _calls.labels(outcome)
    through = False
    with contextlib.suppress(KeyboardInterrupt):
        if furnish_in:
            try:
                asyncio.run(furnish(line, furnish_in))
            except grpc.aio.AioRpcError as error:
                raise Refused(f"the directory refuses: {error.code().name}: {error.details()}") from None
        through = asyncio.run(_watch(line, every, once))
    raise typer.Exit(0 if through else 1)
