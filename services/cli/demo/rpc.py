"""What edges and desktops share on the wire: one channel a router, errors as facts, bounded back-off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

#: One channel carries all callers of a router; a killed router must be found again soon after it is back.
#: The minimum is also what one attempt to connect may take: a busy router needs more than a moment.
CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)
#: Deadline of every unary call, real seconds.
DEADLINE_SECONDS = 5.0
#: First and longest pause between tries, real seconds.
BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_SECONDS_MAX = 1.0
#: A server's RetryInfo is honoured up to this.
RETRY_INFO_SECONDS_MAX = 5.0

_DETAILS_KEY = "grpc-status-details-bin"
#: Answers that a repeat, here or elsewhere, may turn into a good one.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorFacts:
    """What an RPC's error says."""

    #: gRPC status code.
    code: grpc.StatusCode
    #: ErrorInfo's reason, or the code's name where there is none.
    reason: str
    #: RetryInfo's delay in real seconds, bounded; 0 where there is none.
    retry_seconds: float
    #: Worth another try.
    transient: bool
    #: For people.
    text: str


def facts_of(error: grpc.RpcError) -> ErrorFacts:
    """The facts of an error of grpc.aio; never raises for odd details."""
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    text = (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else str(error)
    reason, retry = code.name, 0.0
    for detail in _details(error):
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(delay):
            retry = min(max(delay.retry_delay.ToMicroseconds() / 1e6, 0.0), RETRY_INFO_SECONDS_MAX)
    return ErrorFacts(
        code=code, reason=reason, retry_seconds=retry, transient=code in _TRANSIENT, text=text[:300]
    )


def _details(error: grpc.RpcError) -> Sequence[Any]:
    if not isinstance(error, grpc.aio.AioRpcError):
        return ()
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except ValueError:
                return ()
            return tuple(status.details)
    return ()


class Backoff:
    """Pauses that double from BACKOFF_FIRST_SECONDS to BACKOFF_SECONDS_MAX, with jitter, or as the server
    asks.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next = BACKOFF_FIRST_SECONDS

    def next_seconds(self, asked_seconds: float = 0.0) -> float:
        """The next pause; at least what the server asked for."""
        pause = self._next * self._rng.uniform(0.5, 1.0)
        self._next = min(self._next * 2.0, BACKOFF_SECONDS_MAX)
        return max(pause, asked_seconds)

    def reset(self) -> None:
        self._next = BACKOFF_FIRST_SECONDS


class Channels:
    """One channel an address, closed together."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        """`addresses`: name to host:port."""
        self._channels = {
            name: grpc.aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))
            for name, address in addresses.items()
        }

    def __getitem__(self, name: str) -> grpc.aio.Channel:
        return self._channels[name]

    async def close(self) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    async def __aenter__(self) -> Channels:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class StreamEnded(Exception):
    """The stream is over; `error` says how, None for an orderly end."""

    def __init__(self, error: grpc.RpcError | None) -> None:
        super().__init__(str(error) if error else "ended")
        self.error = error


class EventStream:
    """Reads a response stream with time-outs that do not cancel it (cancelling grpc.aio's `read` ends the
    RPC).
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._pending: asyncio.Task[Any] | None = None

    def pending(self) -> asyncio.Task[Any]:
        """The read in progress; started if there is none."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._call.read())
        return self._pending

    async def next(self, timeout: float | None) -> Any:
        """The next message, or None when `timeout` real seconds passed. Raises StreamEnded."""
        task = self.pending()
        done, _ = await asyncio.wait({task}, timeout=timeout)
        return self.take() if done else None

    def take(self) -> Any:
        """The message of a finished read. Raises StreamEnded."""
        task, self._pending = self.pending(), None
        try:
            message = task.result()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            raise StreamEnded(error if isinstance(error, grpc.RpcError) else None) from None
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise StreamEnded(None)
        return message

    async def close(self) -> None:
        """Cancels the RPC and waits until the pending read is over."""
        self._call.cancel()
        if self._pending is not None:
            await asyncio.wait({self._pending})
            if not self._pending.cancelled():
                self._pending.exception()
            self._pending = None
