"""Who meets at a router in these tests: an agent's desktop, and who waits for events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from callmesh.routing.v1 import agent_pb2, routing_pb2

#: How long anything may take that a client would wait for, real seconds.
DEADLINE_SECONDS = 60


async def until(stream: Any, kind: str) -> Any:
    """The next event of a kind; what comes before is skipped."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            event = await stream.read()
            assert event is not grpc.aio.EOF, f"the stream ended before {kind}"
            if event.WhichOneof("event") == kind:
                return event


def consent(event: Any, call_id: str) -> routing_pb2.ConfirmCallRequest:
    """The edge's yes to an ACCEPTED event."""
    return routing_pb2.ConfirmCallRequest(
        call_id=call_id, offer_id=event.accepted.offer_id, version=event.version, shard=event.shard
    )


class Seat:
    """A desktop's stream."""

    def __init__(self, agents: Any, agent: str, session: int = 1, **opening: Any) -> None:
        self._commands: asyncio.Queue[agent_pb2.AgentCommand] = asyncio.Queue()
        self._number = 0
        self.stream = agents.Session(self._drain())
        self.send(open={"agent": f"agents/{agent}", "session": session, **opening})

    async def _drain(self) -> AsyncIterator[agent_pb2.AgentCommand]:
        while True:
            yield await self._commands.get()

    def send(self, **kind: Any) -> None:
        self._number += 1
        self._commands.put_nowait(agent_pb2.AgentCommand(command=self._number, **kind))

    async def until(self, kind: str) -> Any:
        return await until(self.stream, kind)

    async def accept(self) -> Any:
        """Takes the next offer and says which call it was."""
        offer = (await self.until("offer")).offer
        self.send(accept={"offer_id": offer.offer_id})
        return offer.call
