"""A tickets server in a process of its own, with an empty unary call beside its services."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop

from chassis.testing.grpc import loopback_settings
from tickets.config import TicketsSettings

#: How long the server may take to start.
START_SECONDS_MAX = 120.0


class _Empty:
    async def Unary(self, request: Any, context: Any) -> Any:
        return request


def settings_of(uri: str, database: str, **changes: Any) -> Any:
    """Settings of a process of the bench."""
    base = TicketsSettings(mongo_uri=uri, mongo_database=database, log_level="warning")
    return loopback_settings(base, rate_limit_per_second=0, **changes)


async def _serve(pipe: Connection, uri: str, database: str) -> None:
    from chassis.server import Server
    from chassis.testing.echo import echo_binding
    from tickets.scopes import SCOPES
    from tickets.server import Parts

    settings = settings_of(uri, database)
    parts = Parts(settings)
    echo = echo_binding(_Empty())
    scopes = {**SCOPES, **dict.fromkeys(echo.methods, "test")}
    server = Server(settings, [*parts.services, echo], scopes=scopes)
    await server.start(parts.on_start)
    pipe.send(server.port)
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), done.set)
    await done.wait()
    await server.stop(None)
    for hook in parts.on_stop:
        outcome = hook()
        if isinstance(outcome, Awaitable):
            await outcome


def _process(pipe: Connection, uri: str, database: str) -> None:
    uvloop.run(_serve(pipe, uri, database))


@contextlib.asynccontextmanager
async def server(uri: str, database: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a running server; the server ends with the block."""
    ours, theirs = multiprocessing.Pipe()
    serving = multiprocessing.get_context("spawn").Process(target=_process, args=(theirs, uri, database))
    serving.start()
    theirs.close()
    try:
        if not await asyncio.to_thread(ours.poll, START_SECONDS_MAX):
            raise RuntimeError("the server did not start")
        options = [("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ours.recv()}", options=options) as channel:
            yield channel
        ours.send(None)
        await asyncio.to_thread(serving.join, 10)
    finally:
        serving.kill()


async def per_second(call: Callable[[int], Awaitable[Any]], count: int, clients: int) -> float:
    """Calls a second of `count` calls made by `clients` at once, each one after the other."""

    async def client(first: int) -> None:
        for number in range(first, count, clients):
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(client(first) for first in range(clients)))
    return count / (time.perf_counter() - started)


async def milliseconds(call: Callable[[int], Awaitable[Any]], count: int) -> list[float]:
    """How long each of `count` calls took, one after the other, ms."""
    found = []
    for number in range(count):
        started = time.perf_counter()
        await call(number)
        found.append((time.perf_counter() - started) * 1000)
    return found


def p99(values: list[float]) -> float:
    """The 99th percentile of at least 100 values."""
    return statistics.quantiles(values, n=100)[98]
