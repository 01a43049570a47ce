"""An agent's desktop: its session, through every break of its stream, and on its way home.

A desktop that lost its router goes on at another one. Once its own router is well again (`servers`) the desk
goes back in a moment in which nothing is in hand, free, paused or in after-call work: it opens its next
session there, goes on hearing the old stream, and leaves it when the new session stands. The router ends the
old one, for a newer session wins. What the agent does meanwhile waits for the end of that, `MOVE_SECONDS_MAX`
at most. Where nothing comes of it the old stream goes on. A call offered in the very moment of the change is
offered anew, at its old place.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, call_pb2
from callmesh_sdk.client import Client
from callmesh_sdk.servers import Return
from callmesh_sdk.streams import Reopening

#: How long the new session may take to stand, and how long the old stream is heard after that, seconds.
MOVE_SECONDS_MAX, FAREWELL_SECONDS_MAX = 3.0, 1.0


@dataclass(eq=False, slots=True)
class _Line:
    """A stream to a router."""

    #: The call.
    stream: Any
    #: Its router.
    address: str
    #: The number of the session that was opened on it.
    session: int
    #: What was read of it already, of a line that the desk changed to.
    first: Any = None
    #: The rest. gRPC wants a stream to be read in one way alone.
    events: AsyncIterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.events = aiter(self.stream)


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
    offer that is still open, the after-call work of a call that is still held. Each agent has its own order
    of routers; a desk that had to leave its first one goes back to it between two calls, with the next
    number.
    """

    def __init__(self, client: Client, agent: str, *, session: int = 0, pause_reason: str = "") -> None:
        """`session` must be greater than any earlier one of this agent: by default the time in milliseconds.
        With a `pause_reason` the agent begins paused.
        """
        self._client = client
        self._agent = agent
        #: The newest session's number: one more each time that the desk went home.
        self.session = session or time.time_ns() // 1_000_000
        self._command = 0
        self._line: _Line | None = None
        self._state, self._reason = agent_pb2.AGENT_STATE_AVAILABLE, pause_reason
        if pause_reason:
            self._state = agent_pb2.AGENT_STATE_PAUSED
        #: Number of the command that said so, and the router's newest word.
        self._said = 0
        self._status = agent_pb2.AgentStatus()
        #: Offers that were told and have not ended, and what was said of them: the newest accept's number.
        self._told: set[str] = set()
        self._accepted: dict[str, int] = {}
        self._declined: dict[str, str] = {}
        self._ending: set[str] = set()
        self._wrapping: dict[str, call_pb2.Disposition] = {}
        #: Offers open, and calls in conversation or after-call work, by the router's word; those that ended.
        self._offered: set[str] = set()
        self._busy: set[str] = set()
        self._ended: set[str] = set()
        self._idle_since: float | None = None
        self._writing = asyncio.Lock()
        self._closed = False
        #: The stream was opened again, and the first status that says what is in hand has not come yet.
        self._reopened = False
        #: A change of router under way: the line that stands, or None when nothing came of it.
        self._moving: asyncio.Future[_Line | None] | None = None
        #: Calls in conversation.
        self.calls_held: set[str] = set()

    @property
    def address(self) -> str:
        """The router where the session is; empty while there is none."""
        return "" if self._line is None else self._line.address

    async def events(self) -> AsyncIterator[agent_pb2.AgentEvent]:
        """What the desktop is told, until `close`. `CallError`: Aborted with reason NEWER_SESSION when
        another desktop took over, others when the server refuses or was away for `Options.give_up_seconds`.
        """
        again = Reopening(self._client, "routing", self._agent)
        homeward = asyncio.ensure_future(self._go_home())
        line: _Line | None = None
        try:
            while line is not None or not self._closed:
                line = line or _Line(self._dial(again.address), again.address, self.session)
                again.address = line.address
                broken: grpc.aio.AioRpcError | None = None
                try:
                    async with contextlib.aclosing(self._heard(line)) as heard:
                        async for event in heard:
                            again.well()
                            if await self._note(event):
                                yield event
                except grpc.aio.AioRpcError as error:
                    broken = error
                except asyncio.InvalidStateError:
                    # Broken before the first word was written; its status says how.
                    broken = await _ending(line.stream)
                old, line = line, await self._moved()
                if line is None and not self._closed:
                    # Ended by a session of our own, of which nothing was heard: that one is opened again.
                    own = old.session < self.session and _is_superseded(broken)
                    await again.after(None if own else broken)
        finally:
            homeward.cancel()
            for each in (line, self._line):
                if each is not None:
                    each.stream.cancel()
            self._line = None

    def _dial(self, address: str) -> Any:
        # The generated stub wants a synchronous channel's type; grpc.aio's is as good.
        stub: Any = agent_pb2_grpc.AgentServiceStub(self._client.channel(address))
        return stub.Session(metadata=self._client.metadata())

    async def _heard(self, line: _Line) -> AsyncGenerator[Any, None]:
        """What comes on a line; opens the session there unless it stands already. The end of a stream that
        the desk has changed from is no error.
        """
        try:
            if line.first is None:
                async with self._writing:
                    await self._open(line)
                    self._line, self._reopened = line, self._command > 1
            else:
                yield line.first
            async for event in line.events:
                yield event
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._moving is None or (task is not None and task.cancelling()):
                raise
        finally:
            line.stream.cancel()
            if self._line is line:
                self._line = None

    async def _open(self, line: _Line) -> None:
        state, reason = self._wanted()
        opening = agent_pb2.AgentCommand.Open(
            agent=self._agent,
            session=line.session,
            state=state,
            pause_reason=reason,
            calls_held=sorted(self.calls_held),
        )
        self._command += 1
        self._said = self._command
        await line.stream.write(agent_pb2.AgentCommand(command=self._command, open=opening))

    def _wanted(self) -> tuple[agent_pb2.AgentState, str]:
        """What the agent is to be: as was said last, unless the platform has paused the agent since."""
        status = self._status
        if status.state == agent_pb2.AGENT_STATE_PAUSED and status.command >= self._said:
            return status.state, status.pause_reason
        return self._state, self._reason

    # --- the way home --------------------------------------------------------------------------------------

    async def _go_home(self) -> None:
        """Looks for a moment to go back to the agent's own router, as long as events are read."""
        watch, order = self._client.watch("routing"), self._client.order("routing", self._agent)
        returning = Return(watch.servers, order, watch.homing)
        while len(order) > 1:
            await asyncio.sleep(watch.homing.look_seconds)
            if self._line is None or self._moving is not None:
                continue
            target = returning.look(self._line.address, self._idle_since, time.monotonic())
            if target is not None:
                await self._move(target)

    async def _move(self, address: str) -> None:
        """Opens the next session at another router, and leaves the old stream once it stands."""
        self._moving = asyncio.get_running_loop().create_future()
        old, found = self._line, None
        try:
            async with self._writing:
                if self._is_idle() and self._line is old and not self._closed:
                    found = await self._settle(address)
            if found is not None and old is not None:
                # The router ends the old stream; one that hangs is not waited for.
                asyncio.get_running_loop().call_later(FAREWELL_SECONDS_MAX, old.stream.cancel)
        finally:
            self._moving.set_result(found)
            if found is None:
                self._moving = None

    async def _settle(self, address: str) -> _Line | None:
        """The line on which the next session stands; None when nothing came of it."""
        self.session += 1
        line = _Line(self._dial(address), address, self.session)
        try:
            async with asyncio.timeout(MOVE_SECONDS_MAX):
                await self._open(line)
                line.first = await anext(line.events, None)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            pass
        finally:
            if line.first is None:
                line.stream.cancel()
        if line.first is None:
            self._client.lost("routing", address)
            return None
        self._line = line
        return line

    async def _moved(self) -> _Line | None:
        """The line that the desk has changed to, now that the one before is at its end."""
        found = None if self._moving is None else await self._moving
        self._moving = None
        return found

    def _is_idle(self) -> bool:
        hands = (self._accepted, self._ending, self._wrapping, self._offered, self.calls_held)
        return not any(hands) and self._busy <= self._ended and self._status.command >= self._said

    # --- books ---------------------------------------------------------------------------------------------

    async def _note(self, event: Any) -> bool:
        """Keeps the books of what is in hand, and says again what got lost. False: it is no news."""
        news = True
        match event.WhichOneof("event"):
            case "offer":
                news = await self._on_offer(event.offer.offer_id)
            case "connected":
                self.calls_held.add(event.connected.call.call_id)
                self._busy.add(event.connected.call.call_id)
                self._forget_offer(event.connected.offer_id)
            case "offer_gone":
                self._forget_offer(event.offer_gone.offer_id)
            case "ended":
                self.calls_held.discard(event.ended.call_id)
                self._ending.discard(event.ended.call_id)
                self._ended.add(event.ended.call_id)
            case "refused":
                self._on_refused(event.refused)
            case "status":
                await self._repeat(event.status)
        if not self._is_idle():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        return news

    async def _on_offer(self, offer: str) -> bool:
        """One that is told again, by a leader that found it ringing, gets the same answer again."""
        news = offer not in self._told
        self._told.add(offer)
        self._offered.add(offer)
        if offer in self._accepted:
            await self._send(accept={"offer_id": offer})
        elif offer in self._declined:
            await self._send(decline={"offer_id": offer, "reason": self._declined[offer]})
        return news

    def _on_refused(self, refused: Any) -> None:
        if refused.command == self._said:
            self._said = self._status.command
        if refused.reason == "OFFER_ENDED":
            for offer in [offer for offer, number in self._accepted.items() if number == refused.command]:
                self._forget_offer(offer)

    def _forget_offer(self, offer: str) -> None:
        self._told.discard(offer)
        self._offered.discard(offer)
        self._accepted.pop(offer, None)
        self._declined.pop(offer, None)

    async def _repeat(self, status: Any) -> None:
        held, offered = set(status.calls_held), set(status.offers_held)
        self._status = status
        self._busy, self._offered = held, set(offered)
        # An end that was told while the stream was broken.
        self.calls_held &= held
        self._told &= offered
        # Where the end was missed, the state says so.
        self._ended = held if status.state == agent_pb2.AGENT_STATE_WRAP_UP else self._ended & held
        self._accepted = {offer: number for offer, number in self._accepted.items() if offer in offered}
        self._declined = {offer: why for offer, why in self._declined.items() if offer in offered}
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
            if self._line is None:
                return
            self._command += 1
            if "set_state" in kind:
                self._said = self._command
            elif "accept" in kind:
                self._accepted[kind["accept"]["offer_id"]] = self._command
            try:
                await self._line.stream.write(agent_pb2.AgentCommand(command=self._command, **kind))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                self._line = None

    # --- what an agent does --------------------------------------------------------------------------------

    async def accept(self, offer_id: str) -> None:
        """Takes an offer."""
        self._accepted[offer_id] = 0
        await self._send(accept={"offer_id": offer_id})

    async def decline(self, offer_id: str, reason: str = "") -> None:
        """Declines an offer."""
        self._accepted.pop(offer_id, None)
        self._declined[offer_id] = reason
        await self._send(decline={"offer_id": offer_id, "reason": reason})

    async def pause(self, reason: str) -> None:
        """Takes nothing more, until `resume`."""
        self._state, self._reason = agent_pb2.AGENT_STATE_PAUSED, reason
        self._said = self._command + 1
        await self._send(set_state={"state": self._state, "pause_reason": reason})

    async def resume(self) -> None:
        """Is there again."""
        self._state, self._reason = agent_pb2.AGENT_STATE_AVAILABLE, ""
        self._said = self._command + 1
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


def _is_superseded(error: grpc.aio.AioRpcError | None) -> bool:
    """Whether a newer session ended the stream."""
    return error is not None and error.code() is grpc.StatusCode.ABORTED
