"""A simulated agent's desktop: one session stream to the router of its own region, for as long as its duty
lasts.

The desktop numbers its sessions and commands, takes one call at a time, picks up after a moment, looks at the
screen pop,
offers what marketing recommends, and wraps up with a disposition that may open a ticket. When its stream
breaks it
re-attaches: with the same session and the call it holds if only the stream was lost, with a new session and
empty hands if
the region was, because then its conversation broke off too. One that knows several routers changes to another
in a moment in which nothing is in hand, with its next session. What it did is in its own book of
conversations.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc
from cli.demo.desk import Desk
from cli.demo.ledger import Conversation
from cli.demo.media import Media
from cli.demo.model import Duty
from cli.demo.rpc import Backoff, Channels, EventStream, StreamEnded, facts_of
from cli.demo.timing import ReplayClock

#: Business seconds from ringing to picking up.
PICK_UP_SECONDS = 0.5
#: Shortest after-call work, business seconds.
WRAP_UP_SECONDS_MIN = 1.0
#: What an agent works on after the end of duty at most, real seconds; then the desktop logs out.
OVERTIME_SECONDS_MAX = 90.0
#: The router has this long to end a session that was closed, real seconds.
LOG_OUT_SECONDS_MAX = 2.0
#: On a change of router the new session may take so long to stand, and the old stream is heard so long after.
MOVE_SECONDS_MAX, FAREWELL_SECONDS_MAX = 3.0, 1.0
#: Kinds of refusals that a desktop keeps count of.
REFUSALS_KEPT_MAX = 50


@dataclass(kw_only=True, slots=True)
class AgentContext:
    """What all desktops of a demo share."""

    #: Channels by region.
    channels: Channels
    #: The business clock.
    clock: ReplayClock
    #: The voice path.
    media: Media
    #: Business seconds of service still due, by call id (written by the edges).
    service_due: dict[str, float]
    #: What an agent does on the screen.
    desk: Desk
    #: All desktops' conversations.
    book: list[Conversation] = field(default_factory=list)
    #: Commands refused, by reason.
    refusals: dict[str, int] = field(default_factory=dict)
    #: Seeds the desktops' jitter.
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class _Held:
    """The call in hand."""

    #: As CONNECTED told it.
    call: Any
    #: Real seconds; negative once the conversation is in the book.
    since: float
    #: Business second at which service, after-call work included, is over.
    service_until: float


class Desktop:
    """One agent's seat. `state` is what the agent believes: for the live view."""

    def __init__(self, context: AgentContext, agent: str, region: str, duties: Iterable[Duty]) -> None:
        self._context = context
        self.agent = agent
        self.region = region
        self._duties: Sequence[Duty] = sorted(duties, key=lambda duty: duty.start_seconds)
        self._rng = random.Random(f"{context.seed}:desktop:{agent}")
        self._stream: Any = None
        self._session = 0
        self._command = 0
        self._writing = asyncio.Lock()
        self._held: _Held | None = None
        self._offer = ""
        #: Number of the newest accept, and the offer that it was for.
        self._accepted = (0, "")
        self._picking_up = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        #: Whether nothing but after-call work is in hand, by the router's last word on that; and since when
        #: that is so, by the desktop's own books, too; real seconds.
        self._free = False
        self._idle_since: float | None = None
        self._off_duty = True
        self.state = "off"
        context.media.on_loss(region, self._drop)

    async def run(self) -> None:
        """All duties of the day; returns after the last, or when cancelled."""
        try:
            for duty in self._duties:
                await self._context.clock.sleep_until(duty.start_seconds)
                await self._shift(duty.end_seconds)
        finally:
            self._let_go()
            for task in list(self._tasks):
                task.cancel()

    async def _shift(self, end: float) -> None:
        """Logged in from now until that business second and the end of the call in hand."""
        self._off_duty = False
        self._new_session()
        backoff = Backoff(self._rng)
        going_home = asyncio.ensure_future(self._end_of_duty(end))
        try:
            while not going_home.done():
                try:
                    await self._attached(backoff, going_home)
                except StreamEnded as ended:
                    asked = facts_of(ended.error).retry_seconds if ended.error is not None else 0.0
                    self.state = "lost"
                    await asyncio.sleep(backoff.next_seconds(asked))
        finally:
            going_home.cancel()
            self._let_go()
            self.state = "off"

    async def _end_of_duty(self, end: float) -> None:
        await self._context.clock.sleep_until(end)
        self._off_duty = True
        if self._stream is not None:
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await self._pause()
        deadline = self._context.clock.monotonic() + OVERTIME_SECONDS_MAX
        while not self._idle() and self._context.clock.monotonic() < deadline:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), deadline - self._context.clock.monotonic())

    def _idle(self) -> bool:
        return self._held is None and not self._offer

    # --- the stream
    # ------------------------------------------------------------------------------------------

    def _new_session(self) -> None:
        """One start of the desktop: greater than any before."""
        self._session = max(self._session + 1, int(self._context.clock.monotonic() * 1000))
        self._command = 0

    async def _attached(self, backoff: Backoff, going_home: asyncio.Task[None]) -> None:
        """One stream, until it breaks (StreamEnded) or the agent has gone home."""
        call, reader = self._dial(self.region)
        self._stream = call
        try:
            await self._send(open=self._opening())
            while True:
                reading = reader.pending()
                await asyncio.wait(
                    {reading, going_home}, timeout=self._look_seconds(), return_when=asyncio.FIRST_COMPLETED
                )
                if reading.done():
                    self._on_event(reader.take())
                    backoff.reset()
                elif going_home.done():
                    await self._log_out(reader)
                    return
                elif (better := self._better()) is not None:
                    reader = await self._change_to(better, reader)
        except grpc.RpcError as error:
            raise StreamEnded(error) from error
        except asyncio.InvalidStateError:
            raise StreamEnded(None) from None
        finally:
            self._stream = None
            await reader.close()

    def _dial(self, region: str) -> tuple[Any, EventStream]:
        stub = agent_pb2_grpc.AgentServiceStub(self._context.channels[region])
        call = stub.Session()
        return call, EventStream(call)

    def _look_seconds(self) -> float | None:
        """How long nothing has to be told until `_better` is asked; None: never."""
        return None

    def _better(self) -> str | None:
        """The router to change to at this moment, for who knows several."""
        return None

    async def _change_to(self, region: str, old: EventStream) -> EventStream:
        """Opens the next session at another router and leaves the old stream once it stands; `old`, which
        goes on, where nothing comes of it. What the agent does waits meanwhile.
        """
        call, reader = self._dial(region)
        first = None
        try:
            async with self._writing:
                self._session += 1
                await self._write(call, open=self._opening())
                first = await reader.next(MOVE_SECONDS_MAX)
                if first is not None:
                    self._stream, self.region = call, region
        except (grpc.RpcError, asyncio.InvalidStateError, StreamEnded):
            first = None
        finally:
            if first is None:
                await reader.close()
        if first is None:
            self._no_better(region)
            return old
        try:
            await self._farewell(old)
        except BaseException:
            await reader.close()
            raise
        self._on_event(first)
        return reader

    def _no_better(self, region: str) -> None:
        """Nothing came of a change to that router."""

    async def _farewell(self, old: EventStream) -> None:
        """What is still told on the old stream: the router ends it, for a newer session wins."""
        deadline = self._context.clock.monotonic() + FAREWELL_SECONDS_MAX
        try:
            while (left := deadline - self._context.clock.monotonic()) > 0:
                if (event := await old.next(left)) is not None:
                    self._on_event(event)
        except StreamEnded:
            return
        finally:
            await old.close()

    async def _log_out(self, reader: EventStream) -> None:
        """Closes the session and waits, a bounded time, for the router to end the stream: what is cancelled
        right after a write may never arrive.
        """
        await self._send(close=agent_pb2.AgentCommand.Close())
        await self._stream.done_writing()
        deadline = self._context.clock.monotonic() + LOG_OUT_SECONDS_MAX
        with contextlib.suppress(StreamEnded):
            while (left := deadline - self._context.clock.monotonic()) > 0:
                await reader.next(left)

    def _opening(self) -> agent_pb2.AgentCommand.Open:
        state = agent_pb2.AGENT_STATE_PAUSED if self._off_duty else agent_pb2.AGENT_STATE_AVAILABLE
        return agent_pb2.AgentCommand.Open(
            agent=f"agents/{self.agent}",
            session=self._session,
            state=state,
            pause_reason="end-of-duty" if self._off_duty else "",
            calls_held=[self._held.call.call_id] if self._held else [],
        )

    async def _pause(self) -> None:
        await self._send(
            set_state=agent_pb2.AgentCommand.SetState(
                state=agent_pb2.AGENT_STATE_PAUSED, pause_reason="end-of-duty"
            )
        )

    async def _send(self, **kind: Any) -> None:
        """One numbered command. Raises grpc.RpcError or InvalidStateError when the stream is gone."""
        async with self._writing:
            await self._write(self._stream, **kind)

    async def _write(self, stream: Any, **kind: Any) -> None:
        if stream is None:
            raise asyncio.InvalidStateError("not attached")
        self._command += 1
        if "accept" in kind:
            self._accepted = (self._command, kind["accept"].offer_id)
        await stream.write(agent_pb2.AgentCommand(command=self._command, **kind))

    def _spawn(self, work: Any) -> None:
        """Runs beside the reader; an error on the stream there is the reader's to see."""

        async def guarded() -> None:
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await work

        task = asyncio.ensure_future(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what the router says
    # ----------------------------------------------------------------------------------

    def _on_event(self, event: agent_pb2.AgentEvent) -> None:
        kind = event.WhichOneof("event") or ""
        handlers: dict[str, Callable[[Any], None]] = {
            "status": self._on_status,
            "offer": self._on_offer,
            "offer_gone": self._on_offer_gone,
            "connected": self._on_connected,
            "ended": self._on_ended,
            "refused": self._on_refused,
        }
        if kind in handlers:
            handlers[kind](getattr(event, kind))
        if kind != "refused":
            # A refusal, such as that of a wrap-up for which it was too late, says nothing of what is in hand.
            self._free = self._is_free(event.status) if kind == "status" else kind in ("offer_gone", "ended")
        if not self._free or self._offer or self._talks():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._context.clock.monotonic()
        self._changed.set()

    @staticmethod
    def _is_free(status: agent_pb2.AgentStatus) -> bool:
        busy = (agent_pb2.AGENT_STATE_RESERVED, agent_pb2.AGENT_STATE_ON_CALL)
        return status.state not in busy and not status.offers_held

    def _talks(self) -> bool:
        return self._held is not None and self._held.since >= 0

    def _on_status(self, status: agent_pb2.AgentStatus) -> None:
        if self._offer not in status.offers_held:
            # Its end, or the answer to the accept, came while the stream was broken.
            self._offer = ""
        # Whoever is free may be rung in the same moment, and the first word of it is that.
        free = status.state in (
            agent_pb2.AGENT_STATE_AVAILABLE,
            agent_pb2.AGENT_STATE_PAUSED,
            agent_pb2.AGENT_STATE_RESERVED,
        )
        if self._held is not None and free and self._held.call.call_id not in status.calls_held:
            # Its end came while the stream was broken, or the router ended the after-call work.
            self._let_go()
        if self._held is None:
            self.state = agent_pb2.AgentState.Name(status.state).removeprefix("AGENT_STATE_").lower()

    def _on_offer(self, offer: agent_pb2.AgentEvent.Offer) -> None:
        if offer.offer_id == self._offer and self._picking_up:
            # Told again by a leader that found it ringing.
            return
        if self._held is not None or self._off_duty:
            self._spawn(
                self._send(
                    decline=agent_pb2.AgentCommand.Decline(offer_id=offer.offer_id, reason="not-available")
                )
            )
            return
        self._offer = offer.offer_id
        self.state = "ringing"
        self._spawn(self._pick_up(offer.offer_id))

    async def _pick_up(self, offer_id: str) -> None:
        self._picking_up = True
        try:
            await asyncio.sleep(self._context.clock.real(PICK_UP_SECONDS))
        finally:
            self._picking_up = False
        if self._offer == offer_id:
            await self._send(accept=agent_pb2.AgentCommand.Accept(offer_id=offer_id))

    def _on_offer_gone(self, gone: agent_pb2.AgentEvent.OfferGone) -> None:
        if self._offer == gone.offer_id:
            self._offer = ""
            self.state = "available"

    def _on_connected(self, connected: agent_pb2.AgentEvent.CallConnected) -> None:
        clock, call = self._context.clock, connected.call
        self._offer = ""
        if self._held is not None and self._held.call.call_id == call.call_id:
            return
        self._let_go()
        due = self._context.service_due.get(call.call_id, 0.0)
        self._held = _Held(call=call, since=clock.monotonic(), service_until=clock.business() + due)
        self.state = "talking"
        self._spawn(self._context.desk.greet(call, self.agent))

    def _on_ended(self, ended: agent_pb2.AgentEvent.CallEnded) -> None:
        held = self._held
        if held is None or held.call.call_id != ended.call_id:
            return
        self._note(held)
        self.state = "wrap-up"
        self._spawn(self._wrap_up(held))

    async def _wrap_up(self, held: _Held) -> None:
        """What is left of the service time, then the disposition; the agent is free when it is sent."""
        clock = self._context.clock
        await asyncio.sleep(max(clock.real_until(held.service_until), clock.real(WRAP_UP_SECONDS_MIN)))
        if self._held is not held:
            return
        disposition = self._context.desk.disposition(held.call)
        self._idle_since = None
        try:
            await self._send(
                wrap_up=agent_pb2.AgentCommand.WrapUp(call_id=held.call.call_id, disposition=disposition)
            )
        finally:
            if self._held is held:
                self._held = None
                self.state = "available"
                self._changed.set()

    def _on_refused(self, refused: agent_pb2.AgentEvent.CommandRefused) -> None:
        refusals, reason = self._context.refusals, refused.reason or "UNKNOWN"
        if reason in refusals or len(refusals) < REFUSALS_KEPT_MAX:
            refusals[reason] = refusals.get(reason, 0) + 1
        if reason == "OFFER_ENDED" and self._accepted == (refused.command, self._offer):
            # That one; by now another may ring.
            self._offer = ""

    # --- endings
    # ------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        """The region is lost: the conversation breaks off now, and the desktop will start anew."""
        self._let_go()
        self._offer = ""
        self._new_session()
        if self._stream is not None:
            self._stream.cancel()
        self._changed.set()

    def _let_go(self) -> None:
        if self._held is not None:
            self._note(self._held)
            self._held = None

    def _note(self, held: _Held) -> None:
        """Writes the conversation into the book, once."""
        if held.since < 0:
            return
        end = self._context.clock.monotonic()
        self._context.book.append(
            Conversation(agent=self.agent, call=held.call.call_id, start=held.since, end=end)
        )
        held.since = -1.0
