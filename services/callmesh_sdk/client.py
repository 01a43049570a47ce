"""Connections, tokens, deadlines and repeats: what every call of a partner has in common.

A call is repeated when that cannot do anything twice:
1. It only reads (`READING`), it is idempotent by contract (`IDEMPOTENT`), or it carries a `request_id`; then
   after UNAVAILABLE, at another address where there are several (`servers`).
2. A limit refused it before anything was done (RESOURCE_EXHAUSTED with RetryInfo), whatever it is.
Never after DEADLINE_EXCEEDED, never beyond the call's own deadline, and `tries_max` times at most. The pause
is the server's advice or a growing one with jitter.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from callmesh_sdk import errors
from callmesh_sdk.servers import Homing, order_of
from callmesh_sdk.watch import Watch
from chassis import client as dialling
from chassis import tls

#: First and longest pause between two tries, seconds, when the server advises none.
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 2.0
#: Names the service that a call is for.
SERVICE_HEADER = "callmesh-service"
#: Methods that only read, by the first word of their names.
READING = re.compile(
    r"(Get|BatchGet|List|Find|Search|Lookup|Explain|Check|Preview|Validate|Compare|Evaluate|Suggest|Forecast)[A-Z]"
)
#: Methods whose repeat does nothing twice, by contract.
IDEMPOTENT = frozenset(
    f"/callmesh.routing.v1.RoutingService/{name}"
    for name in ("ConfirmCall", "HangUp", "EndCall", "ReprioritizeCall", "RequestCallback")
)

StubType = TypeVar("StubType")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Where the platform is and how this partner calls it."""

    #: Service ("routing", "crm", "tickets", "marketing") -> "host:port" of its servers, each named by itself.
    #: They are equals: clients spread over them.
    addresses: Mapping[str, Sequence[str]]
    #: Those that are called only while none of the others is there, such as another region's.
    backups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: Who calls, for the choice among equals; calls and desktops choose by their own names. Empty: a name by
    #: chance.
    name: str = ""
    #: How patiently a server that was lost is returned to.
    homing: Homing = field(default_factory=Homing)
    #: Bearer token; or, better, a file that somebody renews.
    token: str = field(default="", repr=False)
    token_file: str = ""
    #: Authority of the servers' certificates (PEM); empty: plain text.
    ca_file: str = ""
    #: This partner's own certificate and key (PEM), where the servers ask for one.
    cert_file: str = ""
    key_file: str = ""
    #: Language of errors, an Accept-Language value: "zh-CN", "en".
    language: str = ""
    #: Deadline of a call that names none, seconds.
    deadline_seconds: float = 5.0
    #: How often a call is made at most.
    tries_max: int = 4
    #: How long a broken stream is tried to be opened again before it is given up, seconds.
    give_up_seconds: float = 120.0

    def __post_init__(self) -> None:
        """ValueError naming the option that cannot be right."""
        for service, targets in self.addresses.items():
            if isinstance(targets, str) or not targets:
                raise ValueError(f"addresses[{service!r}] must be a list with at least one host:port")
        for service, targets in self.backups.items():
            if isinstance(targets, str) or service not in self.addresses:
                raise ValueError(f"backups[{service!r}] must be a list, of a service that has addresses")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file must be named together")
        if self.cert_file and not self.ca_file:
            raise ValueError("ca_file must be named with cert_file: without it connections are in plain text")
        if self.tries_max < 1:
            raise ValueError("tries_max must be at least 1")
        if not self.deadline_seconds > 0:
            raise ValueError("deadline_seconds must be more than 0")
        if not self.give_up_seconds >= 0:
            raise ValueError("give_up_seconds must not be negative")


class _Files(tls.Certificates):
    """A partner's certificate files; its own certificate may be missing."""

    def __init__(self, options: Options) -> None:
        own = [options.cert_file, options.key_file] if options.cert_file else []
        self._files = tls.WatchedFiles([options.ca_file, *own])

    def current(self) -> tls.Pem:
        authority, *own = self._files.contents()
        certificate, key = own or (None, None)
        return tls.Pem(certificate=certificate, key=key, authority=authority)  # type: ignore[arg-type]


class _Token(tls.TokenFile):
    """A token that stays."""

    def __init__(self, token: str) -> None:
        self._fixed = token

    def token(self) -> str | None:
        return self._fixed or None


class Backoff:
    """Pauses that double, with jitter."""

    def __init__(self) -> None:
        self._next = PAUSE_SECONDS_MIN

    def seconds(self, error: errors.CallError) -> float:
        """The next pause; at least what the server asked for."""
        pause = self._next * random.uniform(0.5, 1.0)
        self._next = min(2 * self._next, PAUSE_SECONDS_MAX)
        return max(pause, error.retry_seconds or 0.0)

    def reset(self) -> None:
        """All is well again."""
        self._next = PAUSE_SECONDS_MIN


class Client:
    """A partner's connections. Belongs to one event loop; use it as a context manager."""

    def __init__(self, options: Options) -> None:
        """chassis.errors.StartError when a named file cannot be read."""
        self.options = options
        token = tls.TokenFile(options.token_file) if options.token_file else _Token(options.token)
        files = _Files(options) if options.ca_file else None
        self._dialer = dialling.Dialer(files, token, dialling.watchful_channel)
        self._watches: dict[str, Watch] = {}
        #: Whose order of servers is used where nobody else's is.
        self.name = options.name or uuid.uuid4().hex

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes every connection."""
        for watch in self._watches.values():
            await watch.close()
        await self._dialer.close()

    # --- for the other parts of this package ---------------------------------------------------------------

    def order(self, service: str, name: str = "") -> list[str]:
        """The servers of a service as `name` prefers them. KeyError for a service without an address."""
        options = self.options
        return order_of(name or self.name, options.addresses[service], options.backups.get(service, ()))

    def watch(self, service: str) -> Watch:
        """What is known of a service's servers."""
        if service not in self._watches:
            self._watches[service] = Watch(self.options.homing, self.channel)
        return self._watches[service]

    def lost(self, service: str, address: str) -> None:
        """Nobody is at that server, or a stream to it broke: it is returned to when it is well again."""
        if len(self.options.addresses[service]) + len(self.options.backups.get(service, ())) > 1:
            self.watch(service).lost(address)

    def channel(self, address: str) -> grpc.aio.Channel:
        """To one server."""
        return self._dialer.channel(address)

    def metadata(self, service: str = "") -> tuple[tuple[str, str], ...]:
        """What every call carries. `service` tells a proxy before all services whose `EventService` or
        `AuditService` is meant: they have the same name at each.
        """
        language = self.options.language
        named = (("accept-language", language), (SERVICE_HEADER, service))
        return self._dialer.metadata() + tuple(pair for pair in named if pair[1])

    # --- calls ---------------------------------------------------------------------------------------------

    def stub(self, stub: type[StubType], service: str = "") -> StubType:
        """An instance of a generated stub class whose unary methods repeat what is safe and raise
        `CallError`s.

        `service` names the addresses; by default the one that the stub's package is of. Streams of requests
        or responses are passed through, their errors translated; for the three streams that have to be opened
        again, use `Caller`, `Desk` and `follow`.
        """
        owner = service or stub.__module__.split(".")[1]
        return stub(_Channel(self, owner))  # type: ignore[call-arg]

    async def unary(
        self,
        service: str,
        method: str,
        make: Callable[[grpc.aio.Channel], Any],
        request: Any,
        timeout: float | None,
    ) -> Any:
        """One unary call with its repeats. `CallError`."""
        request, safe = _prepared(method, request)
        left = self.options.deadline_seconds if timeout is None else timeout
        deadline, backoff = time.monotonic() + left, Backoff()
        order, servers = self.order(service), self.watch(service).servers
        address = servers.choose(order)
        for turn in range(1, self.options.tries_max + 1):
            try:
                calling = make(self.channel(address))
                return await calling(
                    request, timeout=deadline - time.monotonic(), metadata=self.metadata(service)
                )
            except grpc.aio.AioRpcError as raised:
                error = errors.of(raised)
            if isinstance(error, errors.Unavailable):
                self.lost(service, address)
            pause = backoff.seconds(error)
            if turn == self.options.tries_max or not _worth_repeating(error, safe):
                raise error
            if time.monotonic() + pause >= deadline:
                raise error
            if isinstance(error, errors.Unavailable):
                address = servers.choose(order, failed=address)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")


def _prepared(method: str, request: Any) -> tuple[Any, bool]:
    """The request with a `request_id` where it takes one, and whether its repeat is safe."""
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        if not request.request_id:
            copy = type(request)()
            copy.CopyFrom(request)
            copy.request_id = str(uuid.uuid4())
            request = copy
        return request, True
    return request, method in IDEMPOTENT or bool(READING.match(method.rpartition("/")[2]))


def _worth_repeating(error: errors.CallError, safe: bool) -> bool:
    if isinstance(error, errors.ResourceExhausted):
        return error.retry_seconds is not None
    return safe and isinstance(error, errors.Unavailable)


class _Channel:
    """What a generated stub takes for a channel."""

    def __init__(self, client: Client, service: str) -> None:
        self._client = client
        self._service = service

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., Any]:
        """A method that answers once."""

        def make(channel: grpc.aio.Channel) -> Any:
            return channel.unary_unary(method, request_serializer, response_deserializer)

        async def call(request: Any, timeout: float | None = None) -> Any:
            return await self._client.unary(self._service, method, make, request, timeout)

        return call

    def _passed_through(
        self,
        kind: str,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        **_: Any,
    ) -> Callable[..., Any]:
        def call(address: str, requests: Any, timeout: float | None) -> Any:
            made = getattr(self._client.channel(address), kind)(
                method, request_serializer, response_deserializer
            )
            return made(requests, timeout=timeout, metadata=self._client.metadata(self._service))

        async def once(requests: Any, timeout: float | None = None) -> Any:
            address = self._address()
            try:
                return await call(address, requests, timeout)
            except grpc.aio.AioRpcError as error:
                raise self._failed(address, error) from None

        async def many(requests: Any, timeout: float | None = None) -> AsyncIterator[Any]:
            address = self._address()
            opened = call(address, requests, timeout)
            try:
                async for message in opened:
                    yield message
            except grpc.aio.AioRpcError as error:
                raise self._failed(address, error) from None
            finally:
                opened.cancel()

        return once if kind == "stream_unary" else many

    def _address(self) -> str:
        order = self._client.order(self._service)
        return self._client.watch(self._service).servers.choose(order)

    def _failed(self, address: str, raised: grpc.aio.AioRpcError) -> errors.CallError:
        """What a stream failed with; the next one goes to another server if this one was not there."""
        error = errors.of(raised)
        if isinstance(error, errors.Unavailable):
            self._client.lost(self._service, address)
        return error

    def __getattr__(self, kind: str) -> Any:
        if kind in ("unary_stream", "stream_unary", "stream_stream"):
            return functools.partial(self._passed_through, kind)
        raise AttributeError(kind)
