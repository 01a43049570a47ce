"""Edges: partner systems that hold callers' lines and ask where they go.

An edge keeps the contract of docs/routing.md: it confirms one offer at a time, repeats that confirmation
until a committed yes or no, bridges only after a yes, and opens what broke again at any router, with a
higher attempt and the newest place token, in a conversation too; when the conversation itself broke off, it
says so. Some of its callers misbehave as their plans say. Each line keeps a ledger of its own; at the end it
is held against the journal.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from grpc.aio import AioRpcError
from tests.simulation.agenda import Process
from tests.simulation.network import Channel
from tests.simulation.plan import ROUTERS, CallPlan

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import call_pb2, routing_pb2, routing_pb2_grpc
from chassis.grpc_status import error_info

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Deadline of a unary request.
ASK_SECONDS = 5.0
#: Bounds of the pause before a broken stream is opened again.
REOPEN_SECONDS = (0.05, 0.6)
#: Refusals that only say: try again.
PASSING = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED)
#: What is told of a call that waits for an agent.
WAITS = ("queued", "offered", "accepted")
STREAM_LOST, AGENT_LOST = call_pb2.REOPEN_REASON_STREAM_LOST, call_pb2.REOPEN_REASON_AGENT_LOST
#: Reasons that a call in trouble may be refused with.
EXPECTED = ("CALLER_GONE", "NO_AGENT_LOGGED_IN", "QUEUE_FULL", "QUEUE_NOT_FOUND")


class Edge:
    """One edge process with its lines."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.process = Process(world.agenda, name)
        self.stubs: dict[str, Any] = {}
        for router in ROUTERS:
            channel: Any = Channel(world.network, self.process, router)
            self.stubs[router] = routing_pb2_grpc.RoutingServiceStub(channel)

    def take(self, plan: CallPlan) -> None:
        """A caller rings; if the edge is down, it hears no tone."""
        if not self.process.alive:
            return
        line = Line(self, plan)
        self.world.lines[plan.call_id] = line
        self.process.spawn(line.run(), f"line {plan.call_id}").add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and not self.world.agenda.over:
            self.world.violate(f"{task.get_name()} failed: {task.exception()!r}")


class Line:
    """One caller on the line, with what the edge's ledger says of it."""

    def __init__(self, edge: Edge, plan: CallPlan) -> None:
        self.edge = edge
        self.world = edge.world
        self.plan = plan
        self.rng = edge.world.rng(f"line {plan.call_id}")
        self.attempt = self._highest = 0
        self.token = ""
        #: The caller still holds.
        self.on_line = True
        #: What came of it: "" while open, "served", "hung up", "refused", "poison".
        self.end = ""
        #: Some router has acknowledged it.
        self.acknowledged = False
        #: Offer that is being confirmed, until a committed yes or no.
        self.confirming = ""
        #: Offer and agent it is bridged to, and the highest attempt opened before that.
        self.bridged: tuple[str, str] | None = None
        self.bridged_after = 0
        #: Its conversation broke off, which no router has acknowledged yet; when the next one will.
        self.broke_off = False
        self._breaks_off = plan.breaks_off
        #: It says that the conversation is over.
        self._ending = False
        self.asked_to_hang_up = False
        self._seen: dict[str, tuple[int, int]] = {}
        self._stream: Any = None
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        if plan.mode == "auto":
            self.world.auditor.consent_given.add(plan.call_id)

    # --- life

    async def run(self) -> None:
        self.patience = self._spawn(self._lose_patience())
        if self.plan.reprioritized:
            self._spawn(self._reprioritize())
        while not self.end:
            if self.confirming or not self.on_line or (self.bridged is not None and not self.plan.listens):
                # One confirmation at a time, and nothing else while it is open.
                await self._wait()
                continue
            self._number()
            try:
                if self.plan.mode == "assign":
                    await self._assign()
                else:
                    await self._listen()
            except AioRpcError as error:
                self._failed(error)
            if not self.end:
                await asyncio.sleep(self.rng.uniform(*REOPEN_SECONDS))
        for task in self._tasks:
            task.cancel()

    def _note(self, what: str) -> None:
        self.world.note(self.plan.call_id, what)

    @property
    def honest(self) -> bool:
        """Whether routers can know what its edge was told: it keeps its tokens and counts its attempts."""
        return self.plan.token == "use" and self.plan.attempts == "rising" and not self.plan.poison

    @property
    def excused(self) -> bool:
        """Whether something was told of it, as not durable, that was never written down."""
        return self.world.auditor.excused(self.plan.call_id)

    def talks_before(self, attempt: int) -> bool:
        """Whether this attempt was opened in a conversation that its edge takes to go on."""
        known = self.bridged is not None and self.edge.process.alive and self.honest
        return known and attempt > self.bridged_after

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self.edge._ended)
        return task

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def finish(self, how: str) -> None:
        if not self.end:
            self.end = how
            self._note(how)
            self.on_line = False
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        if self._stream is not None and (self.end or not self.on_line):
            self._stream.cancel()

    def _number(self) -> None:
        """The next attempt's number; some edges count badly."""
        wrong = self.attempt and self.rng.random() < 0.3 and self.world.faulty
        if self.plan.attempts == "same" and wrong:
            return
        if self.plan.attempts == "back" and wrong:
            self.attempt = max(1, self.attempt - 1)
            return
        self.attempt = max(self.attempt, self._highest) + 1
        self._highest = self.attempt

    def _request(self) -> call_pb2.CallRequest:
        request = call_pb2.CallRequest(
            call_id=self.plan.call_id,
            queue="queues/service",
            channel=common_pb2.CHANNEL_VOICE,
            attempt=self.attempt,
            place_token=self._place_token(),
            auto_confirm=self.plan.mode == "auto",
        )
        if self.attempt > 1:
            request.reopen_reason = AGENT_LOST if self.broke_off else STREAM_LOST
        if self.plan.poison:
            request.attributes["poison"] = self.plan.poison
        if self.plan.oversized and self.attempt == 1:
            request.attributes["history"] = "x" * (20 << 10)
        return request

    def _place_token(self) -> str:
        match self.plan.token if self.world.faulty else "use":
            case "forget":
                return ""
            case "forge" if self.token and self.rng.random() < 0.5:
                return self.token[:-4] + "AAAA"
            case "foreign" if self.rng.random() < 0.5:
                others = [line.token for line in self.world.lines.values() if line is not self and line.token]
                return others[0] if others else self.token
        return self.token

    def _router(self) -> str:
        return self.rng.choice(ROUTERS)

    def _failed(self, error: AioRpcError) -> None:
        """A request or stream ended badly."""
        info = error_info(error)
        reason = info.reason if info is not None else ""
        self.world.counts[f"refusal {reason or error.code().name}"] += 1
        self._note(f"refused: {reason} {error.details()}")
        if self.plan.poison and self.attempt > 6:
            self.finish("poison")
        if reason == "INVALID_PLACE_TOKEN":
            if self.plan.token == "use":
                self.world.violate(f"{self.plan.call_id}: its own place token is refused: {error.details()}")
            self.token = ""
        elif reason in ("STALE_ATTEMPT", "SUPERSEDED"):
            # Another of our streams is newer, or we counted badly.
            self._highest = max(self._highest, self.attempt)
        elif reason == "CALL_NOT_FOUND" and self.excused:
            # In a conversation that was told as not durable, and that the journal never heard of.
            self.world.counts["conversations unknown"] += 1
        elif self.plan.oversized and self.attempt == 1 and error.code() is StatusCode.INVALID_ARGUMENT:
            self.world.counts["oversized refused"] += 1
        elif error.code() not in PASSING and reason not in EXPECTED and not self.plan.poison:
            self.world.violate(f"{self.plan.call_id}: refused: {error.code()} {reason} {error.details()}")

    # --- waiting

    async def _listen(self) -> None:
        """Opens the call at some router and hears it out."""
        router = self._router()
        self._note(f"opens attempt {self.attempt} at {router}")
        stub = self.edge.stubs[router]
        stream = stub.RouteCall(routing_pb2.RouteCallRequest(call=self._request()))
        self._stream = stream
        self._seen = {}
        try:
            async with asyncio.timeout(self._stream_seconds()):
                async for event in stream:
                    self._check(event)
                    self._hear(event)
                    if self.end or (self.bridged is not None and not self.plan.listens):
                        return
        except TimeoutError:
            # The line moves on to another router, without a word to this one.
            pass
        finally:
            self._stream = None
            if self.world.strike("half_open", self.plan.call_id):
                # The router believes for a while yet that somebody listens.
                self.world.agenda.after(self.rng.uniform(0.5, 8.0), self.edge.process, stream.cancel)
            else:
                stream.cancel()

    def _stream_seconds(self) -> float:
        return self.rng.uniform(0.5, 12.0) if self.world.faulty else 1_000.0

    def _check(self, event: Any) -> None:
        """What is told is in the journal, and told in order."""
        if not event.shard or event.HasField("moved"):
            return
        call_id = self.plan.call_id
        self.world.step()
        place = (event.epoch, event.sequence)
        what = f"{call_id} {event.WhichOneof('event')}"
        self.world.auditor.check_place(event.shard, *place, what, durable=event.durable)
        if self._seen.get(event.shard, (0, 0)) > place:
            self.world.violate(f"{call_id}: told {place} of {event.shard} after {self._seen[event.shard]}")
        self._seen[event.shard] = place

    def _hear(self, event: Any) -> None:
        kind = event.WhichOneof("event")
        self._note(f"told {kind} by {event.shard} {event.epoch}:{event.sequence}")
        if kind in WAITS and self.talks_before(self.attempt) and not self.excused:
            self.world.violate(f"{self.plan.call_id}: told {kind} while it talks to {self.bridged}")
        match kind:
            case "queued":
                self.acknowledged = True
                self.token = event.queued.place_token
                self.broke_off = False
            case "accepted" if not self.confirming and self.plan.mode != "auto":
                self._consent(event.accepted.offer_id, event.version, event.shard)
            case "connected":
                self._told_connected(event.connected, event.shard)
            case "ended":
                self._told_ended(event.ended)
        if self.plan.hang_up_at == kind and not self.end:
            self._spawn(self._hang_up(self.rng.uniform(0.0, 0.1)))

    def _told_connected(self, connected: Any, shard: str) -> None:
        """The router says that it is connected: so it is, if this edge has consented to just that."""
        offer = connected.offer_id
        self.token = connected.place_token
        if (self.plan.call_id, offer) in self.world.auditor.broke_off:
            # Whoever placed it elsewhere is gone, and nobody has said so here.
            self._say_broken_off()
            return
        if self.bridged is not None and self.bridged[0] != offer:
            if self.plan.mode == "auto" and not self.honest:
                return
            self.world.violate(f"{self.plan.call_id}: bridged to {self.bridged}, told of {offer}")
        elif self.bridged is not None and self.attempt > self.bridged_after:
            self.world.counts["conversations found again"] += 1
        if self.plan.mode != "auto" and (self.plan.call_id, offer) not in self.world.auditor.consents:
            self.world.violate(f"{self.plan.call_id}: told that {offer} is connected, without consent")
        if self.confirming in ("", offer):
            self._bridge(offer, connected.agent, shard)

    def _told_ended(self, ended: Any) -> None:
        outcome = call_pb2.CallOutcome.Name(ended.outcome).removeprefix("CALL_OUTCOME_")
        if self.bridged is not None and self.attempt > self.bridged_after:
            self.world.counts["conversations said to be over"] += 1
        if outcome == "REFUSED":
            self.finish("refused")
        elif outcome == "ABANDONED" and not self.asked_to_hang_up:
            # Its place was lost while no stream held it; the caller is still there.
            if ended.reason not in ("STREAM_LOST",):
                self.world.violate(f"{self.plan.call_id}: abandoned by nobody: {ended.reason}")
        elif outcome == "INTERRUPTED" and self.bridged is not None and self._comes_again():
            self._break_off(self.bridged[0])
        elif outcome in ("COMPLETED", "INTERRUPTED") and not self.confirming:
            self.finish("served" if self.plan.call_id in self.world.auditor.connected else "ended")
        elif outcome == "ABANDONED":
            self.finish("hung up")

    def _comes_again(self) -> bool:
        """Whether a caller whose agent is gone wants another."""
        return self.plan.listens and self.world.faulty and not self._ending and self.rng.random() < 0.5

    async def _assign(self) -> None:
        """Asks for the decision alone."""
        wait = Duration(seconds=self.rng.randint(1, 4))
        request = routing_pb2.AssignCallRequest(call=self._request(), max_wait=wait)
        answer = await self.edge.stubs[self._router()].AssignCall(request, timeout=ASK_SECONDS + 2.0)
        place = (answer.shard, answer.epoch, answer.sequence)
        self.world.auditor.check_place(*place, "an assignment", durable=answer.durable)
        self.acknowledged = True
        self.token = answer.place_token
        if answer.state == call_pb2.CALL_STATE_ACCEPTED:
            self._consent(answer.offer_id, answer.version, answer.shard)
        elif answer.state == call_pb2.CALL_STATE_ENDED and self.asked_to_hang_up:
            self.finish("hung up")

    # --- consent

    def _consent(self, offer: str, version: Any, shard: str) -> None:
        if not self.on_line or self.bridged is not None:
            return
        self.confirming = offer
        if self.plan.hang_up_at == "confirming":
            self._spawn(self._hang_up(self.rng.uniform(0.0, 0.05)))
        request = routing_pb2.ConfirmCallRequest(
            call_id=self.plan.call_id, offer_id=offer, version=version, shard=shard
        )
        self._spawn(self._confirm(request))

    async def _confirm(self, request: Any) -> None:
        """The same confirmation, at any router, until a committed yes or no."""
        after = self.rng.choice((0.0, 0.0, 0.05, self.rng.uniform(0.0, 6.0)))
        await asyncio.sleep(self.rng.uniform(3.5, 7.0) if self.plan.slow and self.world.faulty else after)
        self.world.auditor.consents.add((request.call_id, request.offer_id))
        while True:
            try:
                answer = await self.edge.stubs[self._router()].ConfirmCall(request, timeout=ASK_SECONDS)
            except AioRpcError as error:
                if error.code() not in PASSING:
                    self.world.violate(f"{request.call_id}: confirming failed: {error.details()}")
                    return
                if self.world.edges_give_up:
                    self.confirming = ""
                    self._wake()
                    return
                await asyncio.sleep(self.rng.uniform(0.02, 0.3))
                continue
            place = (request.shard, answer.epoch, answer.sequence)
            self.world.auditor.check_place(*place, "a confirmation", durable=answer.durable)
            self.confirming = ""
            self._note(f"confirmed: {answer.confirmed} {answer.refusal}")
            over = (request.call_id, request.offer_id) in self.world.auditor.broke_off
            # Its stream may have told more than this yes, and earlier: that it was connected, and is over.
            if answer.confirmed and not over:
                self.token = answer.place_token
                self._bridge(request.offer_id, answer.agent, request.shard)
            self._wake()
            return

    def _bridge(self, offer: str, agent: str, shard: str) -> None:
        """Media flows from now on."""
        self.confirming = ""
        if self.bridged is None:
            self.bridged, self.bridged_after = (offer, agent), self._highest
            auditor = self.world.auditor
            told = (shard, self.plan.call_id, offer) in auditor.memory_connected
            if not told and (shard, offer) not in auditor.connected[self.plan.call_id]:
                self.world.violate(
                    f"{self.plan.call_id}: told yes to {offer}, and the journal does not say so"
                )
            self._spawn(self._talk(shard, offer))
        elif self.bridged[0] != offer:
            self.world.violate(f"{self.plan.call_id}: bridged to {self.bridged} and to {offer}")
        self._wake()

    def _say_broken_off(self) -> None:
        """The next stream says that the conversation broke off, until somebody has acknowledged it."""
        self.broke_off = True
        if self._stream is not None:
            self._stream.cancel()
        self._changed.set()

    def _break_off(self, offer: str) -> None:
        """No media any more: the caller is still there, the agent is not, and may not know it."""
        self._note("the conversation breaks off")
        self.world.counts["conversations broken off"] += 1
        self.world.auditor.broke_off.add((self.plan.call_id, offer))
        self.bridged = None
        self._spawn(self._lose_patience())
        self._say_broken_off()

    async def _talk(self, shard: str, offer: str) -> None:
        breaks_off, self._breaks_off = self._breaks_off and self.on_line, 0.0
        await asyncio.sleep(breaks_off or (self.plan.talk if self.on_line else 0.0))
        if self.bridged is None or self.bridged[0] != offer:
            return
        if breaks_off and self.world.faulty:
            self._break_off(offer)
            return
        self._ending = True
        request = routing_pb2.EndCallRequest(call_id=self.plan.call_id, shard=shard)
        while True:
            try:
                await self.edge.stubs[self._router()].EndCall(request, timeout=ASK_SECONDS)
                break
            except AioRpcError as error:
                lost = error.code() in (StatusCode.NOT_FOUND, StatusCode.FAILED_PRECONDITION)
                if lost and self.excused:
                    # The conversation was told as not durable, and the journal never heard of it.
                    break
                if error.code() is StatusCode.FAILED_PRECONDITION and not self.honest:
                    await self._let_go()
                    return
                if error.code() is StatusCode.NOT_FOUND:
                    self.world.violate(f"{self.plan.call_id}: acknowledged and forgotten")
                elif error.code() not in PASSING:
                    self.world.violate(f"{self.plan.call_id}: ending failed: {error.details()}")
                self._note(f"cannot end: {error.details()}")
                await asyncio.sleep(0.1)
        if self.world.strike("twice", self.plan.call_id):
            await asyncio.sleep(self.rng.uniform(0.0, 1.0))
            try:
                await self.edge.stubs[self._router()].EndCall(request, timeout=ASK_SECONDS)
            except AioRpcError:
                pass
        self.finish("served")

    async def _let_go(self) -> None:
        """What it took for a conversation is over: it came back without its token, so it was queued anew."""
        self.bridged = None
        if self.on_line:
            await self._hang_up(0.0)
        else:
            self.finish("hung up")

    # --- the caller

    async def _lose_patience(self) -> None:
        await asyncio.sleep(self.plan.patience)
        if self.bridged is None and not self.end:
            await self._hang_up(0.0)

    async def _hang_up(self, after: float) -> None:
        """The caller is gone; the edge says so until somebody has heard it."""
        await asyncio.sleep(after)
        if not self.on_line or self.bridged is not None or self.end:
            return
        self.on_line, self.asked_to_hang_up = False, True
        self._note("hangs up")
        request = routing_pb2.HangUpRequest(call_id=self.plan.call_id)
        while not self.end:
            # What is told while the question is on its way may be of a placement that came after it.
            acknowledged = self.acknowledged
            try:
                await self.edge.stubs[self._router()].HangUp(request, timeout=ASK_SECONDS)
                break
            except AioRpcError as error:
                if error.code() is StatusCode.NOT_FOUND:
                    if acknowledged and not self.excused:
                        self.world.violate(f"{self.plan.call_id}: acknowledged and forgotten at its hang-up")
                    break
                self._note(f"cannot hang up: {error.details()}")
                await asyncio.sleep(self.rng.uniform(0.05, 0.3))
        while self.confirming:
            await self._wait()
        if self.bridged is None:
            self.finish("hung up")

    async def _reprioritize(self) -> None:
        """Its priority is changed, twice the same, whatever becomes of it."""
        await asyncio.sleep(self.rng.uniform(0.2, 5.0))
        request = routing_pb2.ReprioritizeCallRequest(
            name=f"calls/{self.plan.call_id}", priority=self.rng.randint(-5, 5)
        )
        for _ in range(2):
            try:
                await self.edge.stubs[self._router()].ReprioritizeCall(request, timeout=ASK_SECONDS)
            except AioRpcError as error:
                self.world.counts[f"reprioritize {error.code().name}"] += 1
