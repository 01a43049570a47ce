"""Asks the servers that were lost for their health, as long as there are any."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from callmesh_sdk.servers import Homing, Servers

#: How long an answer may take, seconds.
ANSWER_SECONDS_MAX = 2.0
#: What somebody answers who is there, though not to this question: a proxy, or a server that wants a token.
_THERE = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


async def serves(channel: grpc.aio.Channel) -> bool:
    """Whether the server at the other end says that it serves (grpc.health.v1, which needs no token)."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer: Any = await check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS_MAX)
    except grpc.aio.AioRpcError as error:
        return error.code() in _THERE
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Watch:
    """The servers of one service. Belongs to one event loop."""

    def __init__(self, homing: Homing, channel: Callable[[str], grpc.aio.Channel]) -> None:
        """`channel` gives the one to an address."""
        self.homing = homing
        self.servers = Servers(homing)
        self._channel = channel
        self._asking: asyncio.Task[None] | None = None

    def lost(self, address: str) -> None:
        """Nobody was there; it is asked for its health from now on, until it is trusted again."""
        self.servers.lost(address, time.monotonic())
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        while (at := self.servers.next_at()) is not None:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            await asyncio.gather(*(self._ask_one(each) for each in self.servers.due(time.monotonic())))

    async def _ask_one(self, address: str) -> None:
        try:
            answer = await serves(self._channel(address))
        except Exception:
            # A certificate that cannot be read, for one: whatever it is, the server cannot be called. Asking
            # goes on, or nobody would ever come back to it.
            answer = False
        self.servers.heard(address, answer, time.monotonic())

    async def close(self) -> None:
        """Asks nobody any more."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking
            self._asking = None
