"""A pytest fixture that runs real servers on loopback. Loads grpc only when a test asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from chassis.config import ServiceSettings

if TYPE_CHECKING:
    from chassis.server import Hook, Server, ServiceBinding

#: (bindings, scopes=..., settings=..., on_start=..., checks=...) -> a started server; its `address` is where
#: to call it.
GrpcServerFactory = Callable[..., Awaitable["Server"]]


def loopback_settings(settings: ServiceSettings | None = None, **changes: Any) -> ServiceSettings:
    """Settings for a test: any free ports, and `changes` applied without validation."""
    base = settings if settings is not None else ServiceSettings(service="test")
    return base.model_copy(update={"grpc_port": 0, "http_port": 0, **changes})


@pytest_asyncio.fixture
async def grpc_server() -> AsyncIterator[GrpcServerFactory]:
    """A factory of running servers in the test's own event loop; all are stopped at its end."""
    from chassis.server import Server

    running: list[Server] = []

    async def start(
        services: Sequence[ServiceBinding],
        *,
        scopes: Mapping[str, str] | None = None,
        settings: ServiceSettings | None = None,
        on_start: Hook | Sequence[Hook] = (),
        checks: Mapping[str, Callable[[], bool]] | None = None,
    ) -> Server:
        """Without `scopes` every method needs the scope "test", which the open mode's local identity has."""
        table = scopes if scopes is not None else {name: "test" for s in services for name in s.methods}
        server = Server(settings or loopback_settings(), services, scopes=table, checks=checks)
        running.append(server)
        await server.start(on_start)
        return server

    yield start
    for server in reversed(running):
        await server.stop(None)
