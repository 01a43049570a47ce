"""Calling another server from inside a handler: what is left of the deadline and the trace go along."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from chassis import callcontext, telemetry, tls

#: Makes a channel to a target with credentials.
Connect = Callable[[str, grpc.ChannelCredentials | None], grpc.aio.Channel]
#: Deadline of a call made outside any other call, seconds.
DEADLINE_SECONDS = 5.0
#: Largest message, bytes; the servers' default.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
#: Longest pause before a lost connection is tried again: a peer that came back is found soon.
RECONNECT_SECONDS_MAX = 2.0


#: Who has a stream open asks a server that has been silent for so long whether it is there, and gives it up
#: when there is no answer for so long, seconds. Together less than the grace period of 5 s, for which a
#: router keeps the place of a lost edge or desktop. Not shorter: on a machine with too much to do, clients
#: that waited a second or two for the answer left routers that were only late, and their coming back kept
#: those busy.
WATCHFUL_SECONDS, ANSWER_SECONDS = 2.0, 2.5

#: Channels that are kept for what still runs on them after a certificate was renewed.
RETIRED_MAX = 8

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", int(RECONNECT_SECONDS_MAX * 1000)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)


#: A server that hangs with its connections open is noticed within the sum of the two.
WATCHFUL_OPTIONS = (
    ("grpc.keepalive_time_ms", int(WATCHFUL_SECONDS * 1000)),
    ("grpc.keepalive_timeout_ms", int(ANSWER_SECONDS * 1000)),
    # gRPC's own pings stand in for the keepalive, and wait a minute by default.
    ("grpc.http2.ping_timeout_ms", int(ANSWER_SECONDS * 1000)),
    # Who only listens sends no data; after two pings without any the next would come a minute later.
    ("grpc.http2.max_pings_without_data", 0),
)


def channel(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, int]] = _OPTIONS,
) -> grpc.aio.Channel:
    """A channel to "host:port" with the limits that our servers use, in plain text without credentials; close
    it with `await channel.close()`.
    """
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)


def watchful_channel(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """The same for an edge or a desktop, whose server is given up as soon as it says nothing any more."""
    known = dict(_OPTIONS) | dict(WATCHFUL_OPTIONS)
    return channel(target, credentials, tuple(known.items()))


class Dialer:
    """Channels to other servers, one for each; a renewed certificate counts from the next one asked for.
    Belongs to one event loop.
    """

    def __init__(
        self,
        found: tls.Certificates | None = None,
        token: tls.TokenFile | None = None,
        connect: Connect = channel,
    ) -> None:
        """Without certificates they are in plain text; without a token calls carry none."""
        self._found = found
        self._token = token
        self._connect = connect
        self._open: dict[str, tuple[int, grpc.aio.Channel]] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self, target: str) -> grpc.aio.Channel:
        """The channel to "host:port". Ask again before each connection."""
        credentials = None if self._found is None else tls.channel_credentials(self._found)
        generation = 0 if self._found is None else self._found.generation
        known = self._open.get(target)
        if known is not None and known[0] == generation:
            return known[1]
        if known is not None:
            self._retire(known[1])
        made = self._connect(target, credentials)
        self._open[target] = (generation, made)
        return made

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries: the token, as it is now."""
        token = None if self._token is None else self._token.token()
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        self._retired.append(channel)
        if len(self._retired) > RETIRED_MAX:
            closing = asyncio.ensure_future(self._retired.pop(0).close(None))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes all of them."""
        for one in [*self._retired, *(channel for _, channel in self._open.values())]:
            with contextlib.suppress(Exception):
                await one.close(None)
        self._retired, self._open = [], {}


def outgoing(timeout_seconds: float | None = DEADLINE_SECONDS, token: str | None = None) -> dict[str, Any]:
    """Keyword arguments for a stub's method: `await stub.Get(request, **outgoing(2.0))`.

    The deadline is `timeout_seconds` or what is left of the current call's, whichever is less; None sets none
    beyond that. `token` is sent as a bearer token.
    """
    left = callcontext.remaining_seconds()
    timeout = (
        left
        if timeout_seconds is None
        else min(timeout_seconds, left)
        if left is not None
        else timeout_seconds
    )
    headers: dict[str, str] = {}
    telemetry.inject(headers)
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return {"timeout": timeout, "metadata": tuple(headers.items())}
