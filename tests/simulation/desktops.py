"""Agents' desktops: they open sessions, take offers (or not, or twice, or too late), talk, and do
after-call work.

A desktop keeps its newest session and command number through crashes, and a ledger of the calls it holds. Two
desktops of one agent may run at once: the newer session wins.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc import StatusCode
from grpc.aio import AioRpcError
from tests.simulation.agenda import Process
from tests.simulation.network import Channel
from tests.simulation.plan import ROUTERS

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc
from chassis.grpc_status import error_info

if TYPE_CHECKING:
    from tests.simulation.world import World

#: An agent who hears nothing on the line ends the conversation after this.
SILENCE_SECONDS = 20.0
AVAILABLE, PAUSED = agent_pb2.AGENT_STATE_AVAILABLE, agent_pb2.AGENT_STATE_PAUSED


class Seat:
    """What outlives a desktop's process: the numbers that it wrote down."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.session = 0


class Desktop:
    """One desktop process."""

    def __init__(self, world: World, seat: Seat, name: str) -> None:
        self.world = world
        self.seat = seat
        self.rng = world.rng(f"{name} {world.generation(name)}")
        self.process = Process(world.agenda, name)
        self.stubs: dict[str, Any] = {}
        for router in ROUTERS:
            channel: Any = Channel(world.network, self.process, router)
            self.stubs[router] = agent_pb2_grpc.AgentServiceStub(channel)
        self.session = 0
        self.command = 0
        self.held: set[str] = set()
        self.present = True
        self._stream: Any = None
        #: Newest epoch and block that this stream has told of, by shard.
        self._seen: dict[str, tuple[int, int]] = {}
        self.process.spawn(self.run(), name).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and not self.world.agenda.over:
            self.world.violate(f"{task.get_name()} failed: {task.exception()!r}")

    def _spawn(self, work: Any) -> None:
        asyncio.get_running_loop().create_task(work).add_done_callback(self._ended)

    async def run(self) -> None:
        """Sits there until a newer desktop takes over."""
        self._new_session()
        while self.present:
            try:
                await self._attend()
            except AioRpcError as error:
                self._failed(error)
            await asyncio.sleep(self.rng.uniform(0.05, 1.5))
            if self.rng.random() < 0.2:
                self._new_session()

    def _new_session(self) -> None:
        self.seat.session += 1
        self.session, self.command = self.seat.session, 0

    def _failed(self, error: AioRpcError) -> None:
        info = error_info(error)
        reason = info.reason if info is not None else ""
        if reason == "NEWER_SESSION":
            # Another desktop sits there now.
            if self.session == self.seat.session:
                self.world.violate(f"{self.seat.agent}: session {self.session} lost to an older stream")
            self.present = False
        elif error.code() not in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.NOT_FOUND):
            self.world.violate(f"{self.seat.agent}: refused with {error.code()} {reason} {error.details()}")

    def _number(self) -> int:
        self.command += 1
        return self.command

    async def _attend(self) -> None:
        stream = self.stubs[self.rng.choice(ROUTERS)].Session()
        opening = agent_pb2.AgentCommand.Open(
            agent=f"agents/{self.seat.agent}",
            session=self.session,
            state=AVAILABLE,
            calls_held=sorted(self.held),
        )
        await stream.write(agent_pb2.AgentCommand(command=self._number(), open=opening))
        self._stream, self._seen = stream, {}
        seconds = self.rng.uniform(2.0, 15.0) if self.world.faulty else 1_000.0
        try:
            async with asyncio.timeout(seconds):
                async for event in stream:
                    self._hear(event)
        except TimeoutError:
            await self._leave(stream)
        finally:
            if self.world.strike("half_open", self.seat.agent):
                self.world.agenda.after(self.rng.uniform(0.5, 8.0), self.process, stream.cancel)
            else:
                stream.cancel()

    async def _leave(self, stream: Any) -> None:
        """Logs out at times; otherwise the stream just breaks."""
        if self.rng.random() < 0.15 and not self.held and self.world.faulty:
            self.world.auditor.logging_out.add(self.seat.agent)
            await self._say(stream, close=agent_pb2.AgentCommand.Close())
            await asyncio.sleep(0.2)

    async def _say(self, stream: Any, number: int = 0, **kind: Any) -> None:
        try:
            await stream.write(agent_pb2.AgentCommand(command=number or self._number(), **kind))
        except AioRpcError:
            pass

    # --- what it hears

    def _hear(self, event: Any) -> None:
        self.world.step()
        kind = event.WhichOneof("event")
        if event.sequence:
            place = (event.shard, event.epoch, event.sequence)
            what = f"{self.seat.agent} {kind}"
            self.world.auditor.check_place(*place, what, durable=event.durable)
            if self._seen.get(event.shard, (0, 0)) > place[1:]:
                self.world.violate(f"{what}: told {place} after {self._seen[event.shard]}")
            self._seen[event.shard] = place[1:]
        match kind:
            case "status":
                self.held &= set(event.status.calls_held)
                if event.status.state == PAUSED and not self.world.faulty:
                    self._spawn(self._set_state(AVAILABLE))
            case "offer":
                self.world.auditor.rung.add(event.offer.offer_id)
                self._spawn(self._answer(event.offer.offer_id))
            case "connected":
                self._connected(event.connected.call)
            case "ended":
                self.held.discard(event.ended.call_id)
                self._spawn(self._wrap_up(event.ended.call_id))

    def _connected(self, call: Any) -> None:
        if call.call_id in self.held:
            return
        self.held.add(call.call_id)
        self._spawn(self._hold(call.call_id))

    async def _hold(self, call_id: str) -> None:
        """Nobody there: the agent ends it."""
        await asyncio.sleep(self.rng.choice((SILENCE_SECONDS, self.rng.uniform(0.5, SILENCE_SECONDS))))
        while call_id in self.held and self.present:
            await self._say(
                self._stream, end_conversation=agent_pb2.AgentCommand.EndConversation(call_id=call_id)
            )
            await asyncio.sleep(3.0)

    async def _answer(self, offer_id: str) -> None:
        """Takes the offer, mostly; declines it, ignores it, takes it twice, late, or both."""
        accept = agent_pb2.AgentCommand.Accept(offer_id=offer_id)
        decline = agent_pb2.AgentCommand.Decline(offer_id=offer_id)
        draw = self.rng.random() if self.world.faulty else 0.0
        await asyncio.sleep(self.rng.uniform(0.02, 1.5))
        stream = self._stream
        if draw < 0.68:
            await self._say(stream, accept=accept)
        elif draw < 0.75:
            await self._say(stream, decline=decline)
        elif draw < 0.80:
            await self._say(stream, accept=accept)
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
            await self._say(self._stream, accept=accept)
        elif draw < 0.84:
            # The moment at which it expires.
            await asyncio.sleep(self.rng.uniform(2.2, 4.2))
            await self._say(stream, decline=decline)
        elif draw < 0.88:
            await asyncio.sleep(self.rng.uniform(3.5, 6.0))
            await self._say(self._stream, accept=accept)
        elif draw < 0.91:
            await self._say(stream, accept=accept)
            await self._say(stream, decline=decline)
            await self._shuffle_states(stream)

    async def _shuffle_states(self, stream: Any) -> None:
        """PAUSED and AVAILABLE, said out of order."""
        first, second = self._number(), self._number()
        available = agent_pb2.AgentCommand.SetState(state=AVAILABLE)
        paused = agent_pb2.AgentCommand.SetState(state=PAUSED, pause_reason="tea")
        await self._say(stream, second, set_state=available)
        await self._say(stream, first, set_state=paused)

    async def _set_state(self, state: Any) -> None:
        await self._say(self._stream, set_state=agent_pb2.AgentCommand.SetState(state=state))

    async def _wrap_up(self, call_id: str) -> None:
        """After-call work: done soon, twice, or left to its time."""
        draw = self.rng.random()
        await asyncio.sleep(self.rng.uniform(0.05, 1.5))
        for _ in range(0 if draw < 0.2 else 1 if draw < 0.8 else 2):
            await self._say(self._stream, wrap_up=agent_pb2.AgentCommand.WrapUp(call_id=call_id))
