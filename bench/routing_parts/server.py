"""A router with one more service, whose one method does nothing: `python -m bench.routing_parts.server`.

Both go through the same server, wrapper and event loop, so that a call of one can be compared with a call of
the other.
"""

from __future__ import annotations

import sys
from typing import Any

from chassis import server
from chassis.mongo import connect, disconnect
from chassis.testing.echo import echo_binding
from routing.config import RoutingSettings
from routing.scopes import SCOPES
from routing.server import Router


class Empty:
    """Answers with what it was asked."""

    async def Unary(self, request: Any, context: Any) -> Any:
        return request


async def run(settings: RoutingSettings) -> None:
    """As routing.server.run, with the empty service beside."""
    connect(settings)
    router = Router(settings)
    empty = echo_binding(Empty())
    await server.serve(
        settings,
        [*router.services(), empty],
        scopes=SCOPES | dict.fromkeys(empty.methods, "routing.call"),
        on_start=router.start,
        on_drain=router.drain,
        on_stop=[router.stop, disconnect],
        checks={"ready": lambda: router.leader.ready},
    )


if __name__ == "__main__":
    sys.exit(server.main(RoutingSettings, run))
