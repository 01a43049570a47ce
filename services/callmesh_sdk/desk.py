"""An agent's desktop: one session, through every break of its stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, call_pb2
from callmesh_sdk.client import Client
from callmesh_sdk.streams import Reopening


class Desk:
    """An agent's seat.

        desk = Desk(client, "agents/wang")
        async for event in desk.events():
            match event.WhichOneof("event"):
                case "offer":
                    await desk.accept(event.offer.offer_id)
                case "ended":
                    await desk.wrap_up(event.ended.call_id, call_pb2.Disposition(code="done", resolved=True))

    `events` opens the session, and opens it again with the same number after a break, naming the calls in
    hand. What was sent and not yet answered by an event is sent again where it still matters: an accepted
    offer that is still open, the after-call work of a call that is still held.
    """

    def __init__(self, client: Client, agent: str, *, session: int = 0, pause_reason: str = "") -> None:
        """`session` must be greater than any earlier one of this agent: by default the time in milliseconds.
        With a `pause_reason` the agent begins paused.
        """
        self._client = client
        self._agent = agent
        self._session = session or time.time_ns() // 1_000_000
        self._command = 0
        self._stream: Any = None
        self._state, self._reason = agent_pb2.AGENT_STATE_AVAILABLE, pause_reason
        if pause_reason:
            self._state = agent_pb2.AGENT_STATE_PAUSED
        self._accepted: set[str] = set()
        self._ending: set[str] = set()
        self._wrapping: dict[str, call_pb2.Disposition] = {}
        self._writing = asyncio.Lock()
        self._closed = False
        #: The stream was opened again, and the first status that says what is in hand has not come yet.
        self._reopened = False
        #: Calls in conversation.
        self.calls_held: set[str] = set()

    async def events(self) -> AsyncIterator[agent_pb2.AgentEvent]:
        """What the desktop is told, until `close`. `CallError`: Aborted with reason NEWER_SESSION when
        another desktop took over, others when the server refuses or was away for `Options.give_up_seconds`.
        """
        again = Reopening(self._client, "routing")
        while not self._closed:
            broken: grpc.aio.AioRpcError | None = None
            # The generated stub wants a synchronous channel's type; grpc.aio's is as good.
            stub: Any = agent_pb2_grpc.AgentServiceStub(self._client.channel("routing"))
            stream = stub.Session(metadata=self._client.metadata())
            try:
                await self._open(stream)
                async for event in stream:
                    again.well()
                    await self._note(event)
                    yield event
            except grpc.aio.AioRpcError as error:
                broken = error
            except asyncio.InvalidStateError:
                # Broken before the first word was written; its status says how.
                broken = await _ending(stream)
            finally:
                self._stream = None
                stream.cancel()
            if not self._closed:
                await again.after(broken)

    async def _open(self, stream: Any) -> None:
        opening = agent_pb2.AgentCommand.Open(
            agent=self._agent,
            session=self._session,
            state=self._state,
            pause_reason=self._reason,
            calls_held=sorted(self.calls_held),
        )
        async with self._writing:
            self._command += 1
            await stream.write(agent_pb2.AgentCommand(command=self._command, open=opening))
            self._stream = stream
            self._reopened = self._command > 1

    async def _note(self, event: Any) -> None:
        """Keeps the books of what is in hand, and says again what got lost."""
        match event.WhichOneof("event"):
            case "connected":
                self.calls_held.add(event.connected.call.call_id)
                self._accepted.discard(event.connected.offer_id)
            case "offer_gone":
                self._accepted.discard(event.offer_gone.offer_id)
            case "ended":
                self.calls_held.discard(event.ended.call_id)
                self._ending.discard(event.ended.call_id)
            case "status":
                await self._repeat(event.status)

    async def _repeat(self, status: Any) -> None:
        held, offered = set(status.calls_held), set(status.offers_held)
        self._accepted &= offered
        self._ending &= held
        self._wrapping = {call: said for call, said in self._wrapping.items() if call in held}
        if not self._reopened:
            return
        self._reopened = False
        for offer in sorted(self._accepted):
            await self._send(accept={"offer_id": offer})
        for call in sorted(self._ending):
            await self._send(end_conversation={"call_id": call})
        for call, said in sorted(self._wrapping.items()):
            await self._send(wrap_up={"call_id": call, "disposition": said})

    async def _send(self, **kind: Any) -> None:
        """Writes a command if the stream stands; if not, the next one says what still matters."""
        async with self._writing:
            if self._stream is None:
                return
            self._command += 1
            try:
                await self._stream.write(agent_pb2.AgentCommand(command=self._command, **kind))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                self._stream = None

    # --- what an agent does --------------------------------------------------------------------------------

    async def accept(self, offer_id: str) -> None:
        """Takes an offer."""
        self._accepted.add(offer_id)
        await self._send(accept={"offer_id": offer_id})

    async def decline(self, offer_id: str, reason: str = "") -> None:
        """Declines an offer; it ends by itself where this gets lost."""
        self._accepted.discard(offer_id)
        await self._send(decline={"offer_id": offer_id, "reason": reason})

    async def pause(self, reason: str) -> None:
        """Takes nothing more, until `resume`."""
        self._state, self._reason = agent_pb2.AGENT_STATE_PAUSED, reason
        await self._send(set_state={"state": self._state, "pause_reason": reason})

    async def resume(self) -> None:
        """Is there again."""
        self._state, self._reason = agent_pb2.AGENT_STATE_AVAILABLE, ""
        await self._send(set_state={"state": self._state})

    async def end_conversation(self, call_id: str) -> None:
        """The agent hangs up."""
        self._ending.add(call_id)
        await self._send(end_conversation={"call_id": call_id})

    async def wrap_up(self, call_id: str, disposition: call_pb2.Disposition) -> None:
        """After-call work is done."""
        self._wrapping[call_id] = disposition
        await self._send(wrap_up={"call_id": call_id, "disposition": disposition})

    async def close(self) -> None:
        """Logs out; `events` ends."""
        self._closed = True
        await self._send(close={})


async def _ending(stream: Any) -> grpc.aio.AioRpcError:
    """The status that a stream ended with, as an error."""
    code, details = await stream.code(), await stream.details()
    return grpc.aio.AioRpcError(
        code, await stream.initial_metadata(), await stream.trailing_metadata(), details, None
    )
