"""Calling another server from inside a handler: what is left of the deadline and the trace go along."""

from __future__ import annotations

from typing import Any

import grpc

from chassis import callcontext, telemetry

#: Deadline of a call made outside any other call, seconds.
DEADLINE_SECONDS = 5.0
#: Largest message, bytes; the servers' default.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
#: Longest pause before a lost connection is tried again: a peer that came back is found soon.
RECONNECT_SECONDS_MAX = 2.0


def channel(target: str) -> grpc.aio.Channel:
    """A plain-text channel to "host:port" with the limits that our servers use; close it with `await
    channel.close()`.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", int(RECONNECT_SECONDS_MAX * 1000)),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),
        ],
    )


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
