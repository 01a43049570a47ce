"""The front: placing, attaching again, moving, hanging up, and every race between them.

Its shards are real engines behind a wire that loses, delays and refuses what a test tells it to. The law
behind most tests: once a stream is over, no shard holds a live, attached entry of its call, for nobody would
listen to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Container
from typing import Any, TypeVar

import pytest

from callmesh.routing.v1 import agent_pb2
from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.errors import CallmeshError, Unavailable
from chassis.testing import FakeClock
from chassis.testing.waiting import eventually
from routing import convert
from routing.audience import Audience, Holds
from routing.committed import Committed, ShardBusy
from routing.engine import step
from routing.errors import (
    AgentNotFound,
    CallNotFound,
    NewerSession,
    QueueFull,
    StaleAttempt,
    Superseded,
    Unconfirmed,
)
from routing.front import (
    LONGEST_WAIT_MS,
    OVERFLOW_SECONDS,
    STAYS_SECONDS,
    UNFIT_SECONDS,
    CallerGone,
    Front,
    FrontOptions,
)
from routing.handlers import Handlers
from routing.links import AnswerLate, LinkDown, LinkLost, OnChange, OnFacts
from routing.model import (
    STEP_ENTRIES_MAX,
    AcceptOffer,
    AgentConfig,
    Answer,
    AskAgent,
    AskCall,
    AttachCalls,
    CallConnected,
    CallEnded,
    CallFacts,
    CallOffered,
    CallOutcome,
    CallQueued,
    CallState,
    CallTransferred,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    DetachCalls,
    DetachSession,
    EndCall,
    Event,
    Fact,
    FinishWrapUp,
    ForceLogOut,
    HangUp,
    OfferAccepted,
    OpenSession,
    OverflowCall,
    PauseAgent,
    PlaceCall,
    PositionChanged,
    Presence,
    QueueConfig,
    RecordAct,
    RemoveAgent,
    Reprioritize,
    RequestCallback,
    SessionClosed,
    SetPresence,
    ShardOpened,
    Tick,
    TransferCall,
    WithdrawCall,
)
from routing.peers import PeerTable
from routing.state import ShardState, evolve, next_deadline
from routing.streams import UPDATES_UNREAD_MAX, Caller, Desk, Moved, Present, Update
from routing.supervision_handlers import SupervisionHandlers
from routing.turnstile import AT_ONCE_MAX
from routing.views import view_call

DEADLINE_SECONDS = 10
ON_CALL, OFFLINE = agent_pb2.AGENT_STATE_ON_CALL, agent_pb2.AGENT_STATE_OFFLINE
T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, DEADLINE_SECONDS)


class Shard:
    """An engine whose every command is committed at once."""

    def __init__(self, region: str, clock: FakeClock, **queue: Any) -> None:
        self.state = ShardState(region)
        self.state.epoch = 1
        self.sequence = 1
        self.clock = clock
        self.audience = Audience()
        self.wires: dict[str, Wire] = {}
        self.log: list[Event] = []
        self.do(ConfigureQueue(queue=QueueConfig(id="service", **queue)))

    def do(self, command: Command) -> Answer:
        now_ms = self.clock.now_ms()
        events, answer = step(self.state, command, now_ms)
        self.sequence += 1
        self.log += events
        told: dict[str, list[Fact]] = {}
        for front, fact in self.audience.facts(self.state, events, answer, now_ms):
            told.setdefault(front, []).append(fact)
        for front, facts in told.items():
            if front in self.wires:
                self.wires[front].tell(facts)
        return answer

    def open(self) -> None:
        """A new leader."""
        self.sequence += 1
        self.state.epoch = self.sequence
        evolve(self.state, ShardOpened(router="new", leaderless_span_ms=0), self.clock.now_ms())

    def tick(self) -> None:
        while (due := next_deadline(self.state)) is not None and due[0] <= self.clock.now_ms():
            self.do(Tick())

    def agent(self, agent: str, front: str = "elsewhere") -> None:
        self.do(ConfigureAgent(agent=AgentConfig(id=agent)))
        self.do(OpenSession(agent=agent, session=1, command=1, front=front))

    def accept(self, call_id: str = "c1") -> None:
        entry = self.state.calls[call_id]
        answer = self.do(AcceptOffer(agent=entry.agent, session=1, offer_id=entry.offer_id))
        assert answer.refusal is None, answer

    def confirm(self, call_id: str = "c1") -> None:
        entry = self.state.calls[call_id]
        answer = self.do(
            ConfirmCall(call_id=call_id, offer_id=entry.offer_id, attempt=entry.attempt, move=entry.move)
        )
        assert answer.refusal is None, answer

    def live(self, call_id: str = "c1") -> bool:
        """Whether an entry goes on here that believes somebody listens."""
        entry = self.state.calls.get(call_id)
        return entry is not None and entry.state is not CallState.ENDED and entry.attached

    def outcome(self, call_id: str = "c1") -> CallOutcome | None:
        return self.state.calls[call_id].outcome


class Wire:
    """A front's port to a shard; trouble is ordered by kind of command."""

    def __init__(self, shard: Shard, front: str) -> None:
        self.shard_ = shard
        self.shard = shard.state.shard
        shard.wires[front] = self
        self.up = True
        #: Its leader cannot commit.
        self.stalled, self.durable = False, True
        #: Whoever asks is told that nobody leads.
        self.nobody_leads = False
        self.asked: list[Command] = []
        #: Commands of these kinds are lost on the way there (number of times).
        self.unreachable: dict[type, int] = {}
        #: The leader takes none of them.
        self.busy: dict[type, int] = {}
        #: Their answers are lost on the way back.
        self.answer_lost: dict[type, int] = {}
        #: They wait for the event on the way there, or their answers on the way back.
        self.late_there: dict[type, asyncio.Event] = {}
        self.late_back: dict[type, asyncio.Event] = {}
        self.facts_lost = False
        self._on_facts: OnFacts | None = None
        self._on_change: OnChange | None = None

    def listen(self, on_facts: OnFacts, on_change: OnChange, holds: Holds) -> None:
        self._on_facts, self._on_change = on_facts, on_change

    def tell(self, facts: list[Fact]) -> None:
        if self.up and not self.facts_lost and self._on_facts is not None:
            self._on_facts(self.shard, self.shard_.state.epoch, self.shard_.sequence, facts)

    def down(self) -> None:
        self.up = False
        assert self._on_change is not None
        self._on_change(self.shard, False)

    def back(self) -> None:
        self.up = True
        assert self._on_change is not None
        self._on_change(self.shard, True)

    async def ask(self, command: Command, seconds: float) -> Committed:
        kind = type(command)
        self.asked.append(command)
        if self.nobody_leads:
            raise LinkDown(shard=self.shard, retry_seconds=0.5)
        if not self.up or self._count(self.unreachable, kind):
            await asyncio.sleep(0)
            raise LinkLost(shard=self.shard, retry_seconds=0.5)
        if self._count(self.busy, kind):
            await asyncio.sleep(0)
            raise ShardBusy(shard=self.shard, retry_seconds=0.5)
        if kind in self.late_there:
            await self.late_there[kind].wait()
        answer = self.shard_.do(command)
        committed = Committed(
            answer=answer,
            shard=self.shard,
            epoch=self.shard_.state.epoch,
            sequence=self.shard_.sequence,
            now_ms=self.shard_.clock.now_ms(),
        )
        await asyncio.sleep(0)
        if kind in self.late_back:
            await self.late_back[kind].wait()
        if self._count(self.answer_lost, kind):
            raise AnswerLate(shard=self.shard, retry_seconds=0.5)
        return committed

    @staticmethod
    def _count(trouble: dict[type, int], kind: type) -> bool:
        left = trouble.get(kind, 0)
        trouble[kind] = max(0, left - 1)
        return left > 0

    def trouble_left(self) -> list[type]:
        """Kinds of commands for which trouble is ordered that has not come."""
        return [
            kind
            for trouble in (self.unreachable, self.busy, self.answer_lost)
            for kind, left in trouble.items()
            if left
        ]

    def kinds(self) -> list[type]:
        return [type(command) for command in self.asked]


class World:
    """Two regions and as many fronts as a test wants."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.shards = {region: Shard(region, self.clock) for region in ("beijing", "shanghai")}
        self.wires: dict[tuple[str, str], Wire] = {}
        self.free: str | None = None
        #: How often the free region was asked for and was none of those.
        self.passed_over = 0
        #: How often the overflow watch has looked for calls that could move.
        self.looks = 0
        self.fronts: list[Front] = []

    @property
    def beijing(self) -> Shard:
        return self.shards["beijing"]

    @property
    def shanghai(self) -> Shard:
        return self.shards["shanghai"]

    def front(
        self,
        name: str = "f",
        silent_seconds: float = 3.0,
        agents: str | None = None,
        leaderless_seconds: float = 3.0,
    ) -> Front:
        """`agents` is the region where every agent is found."""

        for region, shard in self.shards.items():
            self.wires[name, region] = Wire(shard, name)
        front = Front(
            router=name,
            shards={region: self.wires[name, region] for region in self.shards},
            clock=self.clock,
            options=FrontOptions(silent_seconds=silent_seconds, leaderless_seconds=leaderless_seconds),
            find_overflow=self.find_overflow,
            find_agent=lambda agent: asyncio.sleep(0, agents),
        )
        self.fronts.append(front)
        return front

    def find_overflow(
        self,
        queue: str,
        region: str,
        waited_ms: int,
        language: str,
        besides: Container[str] = (),
        **more: Any,
    ) -> str | None:
        """The free region, to one call."""
        self.looks += waited_ms == LONGEST_WAIT_MS
        if self.free in besides:
            self.passed_over += 1
            return None
        if self.free == region or waited_ms == LONGEST_WAIT_MS:
            return None if self.free == region else self.free
        found, self.free = self.free, None
        return found

    def wire(self, region: str, front: str = "f") -> Wire:
        return self.wires[front, region]

    def nobody_left(self, call_id: str = "c1") -> bool:
        return not any(shard.live(call_id) for shard in self.shards.values())


class Line:
    """A client's stream."""

    def __init__(self, world: World, front: Front, call_id: str = "c1", **more: Any) -> None:
        fields: dict[str, Any] = {
            "attempt": 1,
            "queued_ms": world.clock.now_ms(),
            "agent_lost": False,
            "auto_confirm": False,
            "regions": ["beijing", "shanghai"],
            **more,
        }
        self.caller = Caller(facts=CallFacts(call_id=call_id, queue="service"), **fields)
        self.stream = front.route(self.caller)
        self.seen: list[Update] = []

    async def next(self) -> Update:
        update = await soon(anext(self.stream))
        self.seen.append(update)
        return update

    async def until(self, kind: type) -> Update:
        while True:
            update = await self.next()
            what = update.what.event if isinstance(update.what, Fact) else update.what
            if isinstance(what, kind):
                return update

    async def rest(self) -> list[Update]:
        """Everything to the end of the stream."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for update in self.stream:
                self.seen.append(update)
        return self.seen

    async def close(self) -> None:
        await self.stream.aclose()


def state_of(update: Update) -> CallState | None:
    what = update.what
    return None if isinstance(what, Moved) or what.call is None else what.call.state


@pytest.fixture
async def world() -> Any:
    world = World()
    yield world
    for front in world.fronts:
        await front.close()
    left = [(wire.shard, wire.trouble_left()) for wire in world.wires.values() if wire.trouble_left()]
    assert left == [], "trouble that was ordered and never came: the test shows less than it says"


# --- placing


async def test_a_placed_call_is_told_once_and_is_the_callers_stream(world: World) -> None:
    line = Line(world, world.front())
    first = await line.next()
    assert (first.shard, state_of(first)) == ("beijing", CallState.WAITING)
    # From its memory, from here on.
    world.wire("beijing").durable = False
    world.beijing.do(HangUp(call_id="c1", attempt=1))
    rest = await line.rest()
    assert [state_of(update) for update in rest] == [CallState.WAITING, CallState.ENDED]
    assert first.durable and not rest[-1].durable


TROUBLE = ["unreachable", "answer_lost"]


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_the_next_region_is_tried_and_a_lost_answer_leaves_nothing_behind(
    world: World, trouble: str
) -> None:
    line = Line(world, world.front())
    getattr(world.wire("beijing"), trouble)[PlaceCall] = 1
    update = await line.next()
    while update.shard != "shanghai" or isinstance(update.what, Moved):
        update = await line.next()
    assert line.caller.version == (1, 2)
    await eventually(lambda: WithdrawCall in world.wire("beijing").kinds())
    assert not world.beijing.live() and world.shanghai.live()


async def test_a_call_that_nobody_can_take_is_refused_and_stands_nowhere(world: World) -> None:
    line = Line(world, world.front())
    for region in world.shards:
        world.wire(region).answer_lost[PlaceCall] = 1
    with pytest.raises(Unavailable):
        await line.rest()
    await eventually(world.nobody_left)


async def test_a_full_queue_is_tried_elsewhere_and_then_refused(world: World) -> None:
    for shard in world.shards.values():
        shard.do(ConfigureQueue(queue=QueueConfig(id="service", length_max=0)))
    line = Line(world, world.front())
    with pytest.raises(QueueFull):
        await line.rest()
    assert [PlaceCall] == world.wire("beijing").kinds() == world.wire("shanghai").kinds()


async def test_a_shard_that_does_not_know_the_queue_yet_is_passed_over(world: World) -> None:
    world.shards["beijing"] = Shard("beijing", world.clock)
    world.beijing.state = ShardState("beijing")
    line = Line(world, world.front())
    while (await line.next()).shard != "shanghai":
        pass
    assert world.shanghai.live()


@pytest.mark.parametrize("silent", [False, True], ids=["facts told", "facts lost"])
async def test_what_no_fact_says_the_answer_does(world: World, silent: bool) -> None:
    front = world.front()
    world.wire("beijing").facts_lost = silent
    line = Line(world, front)
    assert state_of(await line.next()) is CallState.WAITING
    assert not line.caller.updates.unread, "told once"


async def test_a_call_that_was_completed_stays_so_when_opened_again(world: World) -> None:
    world.beijing.agent("ann")
    line = Line(world, world.front())
    await line.next()
    world.beijing.accept()
    world.beijing.confirm()
    world.beijing.do(EndCall(call_id="c1"))
    await line.rest()
    again = Line(world, world.fronts[0], attempt=2)
    updates = await again.rest()
    assert [state_of(update) for update in updates] == [CallState.ENDED]


# --- streams opened again


async def test_a_closed_stream_keeps_its_place_for_the_grace_period(world: World) -> None:
    line = Line(world, world.front())
    await line.next()
    await line.close()
    await eventually(lambda: not world.beijing.live())
    assert world.beijing.state.calls["c1"].state is CallState.WAITING
    world.clock.advance(5.0)
    world.beijing.tick()
    assert world.beijing.outcome() is CallOutcome.ABANDONED


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("regions", [["beijing", "shanghai"], ["shanghai", "beijing"]])
async def test_opened_again_at_the_same_router_one_stream_and_one_entry_go_on(
    world: World, attempt: int, regions: list[str]
) -> None:
    front = world.front()
    old = Line(world, front)
    await old.next()
    new = Line(world, front, attempt=attempt, regions=regions)
    await new.next()
    with pytest.raises(Superseded):
        await old.rest()
    await eventually(lambda: sum(shard.live() for shard in world.shards.values()) == 1)
    assert world.shards[new.caller.region].live()
    assert world.shards[new.caller.region].state.calls["c1"].version == new.caller.version
    await new.close()
    await eventually(world.nobody_left)


async def test_a_stream_that_comes_back_before_the_shard_knows_is_not_detached(world: World) -> None:
    front = world.front()
    old, other = Line(world, front), Line(world, front, call_id="c2")
    await old.next()
    await other.next()
    await old.close()
    await other.close()
    new = Line(world, front)
    await new.next()
    await eventually(lambda: world.nobody_left("c2"))
    assert world.beijing.live() and new.caller.version == (1, 1)
    world.beijing.agent("ann")
    await new.until(CallOffered)
    await new.close()
    await eventually(world.nobody_left)
    await eventually(lambda: not front._gone)


async def test_a_word_of_leaving_that_was_lost_is_not_said_again_of_a_stream_that_is_back(
    world: World,
) -> None:
    front, wire = world.front(), world.wire("beijing")
    old = Line(world, front)
    await old.next()
    wire.unreachable[DetachCalls] = 1
    await old.close()
    await eventually(lambda: DetachCalls in wire.kinds())
    new = Line(world, front)
    await new.next()
    await eventually(lambda: not front._gone)
    assert world.beijing.live() and wire.kinds().count(DetachCalls) == 1


@pytest.mark.parametrize("kind", [DetachCalls, HangUp, WithdrawCall])
async def test_a_leader_with_too_much_to_do_is_told_who_is_gone_until_it_takes_it(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    monkeypatch.setattr("routing.shards.RETRY_SECONDS_MAX", 0.002)
    monkeypatch.setattr("routing.front.WITHDRAW_SECONDS_MAX", 0.01)
    front = world.front(silent_seconds=0.01)
    wire, line = world.wire("beijing"), Line(world, front)
    await line.next()
    tries = wire.busy[kind] = 20
    if kind is WithdrawCall:
        await Line(world, front, attempt=2, regions=["shanghai"]).next()
    line.caller.hung_up = kind is HangUp
    await line.close()
    await eventually(lambda: not world.beijing.live())
    assert wire.kinds().count(kind) == tries + 1


async def test_a_shard_without_a_leader_finds_by_itself_who_is_gone(world: World) -> None:
    front = world.front(silent_seconds=0.01)
    wire, line = world.wire("beijing"), Line(world, front)
    await line.next()
    wire.nobody_leads = True
    wire.down()
    await line.close()
    await eventually(lambda: DetachCalls in wire.kinds() and not front.shards.tasks)
    assert wire.kinds().count(DetachCalls) == 1 and not front._gone


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_a_stream_that_comes_back_and_finds_no_place_leaves_what_it_came_back_to(
    world: World, elsewhere: bool
) -> None:
    front = world.front()
    old = Line(world, front)
    await old.next()
    await old.close()
    for region in ["beijing"] if elsewhere else list(world.shards):
        world.wire(region).busy[PlaceCall] = 1
    new = Line(world, front)
    if elsewhere:
        await new.until(CallQueued)
        await eventually(lambda: world.beijing.outcome() is CallOutcome.MOVED)
        assert world.shanghai.live()
    else:
        with pytest.raises(ShardBusy):
            await new.rest()
        await eventually(world.nobody_left)


async def test_a_lower_attempt_is_refused(world: World) -> None:
    front = world.front()
    line = Line(world, front, attempt=2)
    await line.next()
    with pytest.raises(StaleAttempt):
        await Line(world, front, attempt=1).next()
    assert world.beijing.live(), "the newer stream is not harmed"


@pytest.mark.parametrize("attempt", [1, 2])
async def test_opened_again_at_another_router_the_old_one_learns_it_and_lets_go(
    world: World, attempt: int
) -> None:
    old = Line(world, world.front("f"))
    await old.next()
    new = Line(world, world.front("g"), attempt=attempt)
    await new.next()
    with pytest.raises(Superseded):
        await old.rest()
    await old.close()
    await asyncio.sleep(0.01)
    assert world.beijing.live(), "closing the old stream must not detach the new one"
    assert DetachCalls not in world.wire("beijing", "f").kinds()


@pytest.mark.parametrize(("attempt", "shard"), [(4, "shanghai"), (4, "beijing"), (3, "shanghai")])
async def test_a_placement_that_comes_late_under_a_higher_number_is_nobodys(
    world: World, attempt: int, shard: str
) -> None:
    """The stream that asked for it has ended, and the edge has gone back to a lower attempt."""
    front = world.front()
    line = Line(world, front, attempt=3)
    await line.next()
    late = PlaceCall(facts=line.caller.facts, attempt=attempt, move=2, front="f")
    world.shards[shard].do(late)
    assert world.shards[shard].live()
    await eventually(lambda: not world.shards[shard].live())
    assert shard == "beijing" or world.beijing.live(), "the stream's own"


async def test_opened_elsewhere_in_another_region_the_entry_left_behind_is_withdrawn(world: World) -> None:
    old = Line(world, world.front("f"))
    await old.next()
    new = Line(world, world.front("g"), attempt=2, regions=["shanghai"], stale=["beijing"])
    await new.next()
    await eventually(lambda: world.beijing.outcome() is CallOutcome.MOVED)
    with pytest.raises(Superseded):
        await old.rest()
    assert world.shanghai.live()


async def test_a_conversation_that_broke_off_is_not_the_new_streams_end(world: World) -> None:
    """Reopened with AGENT_LOST, the shard ends the old conversation and queues the call anew at once."""
    world.beijing.agent("ann")
    front = world.front()
    old = Line(world, front)
    await old.next()
    world.beijing.accept()
    world.beijing.confirm()
    new = Line(world, front, attempt=2, agent_lost=True)
    assert state_of(await new.next()) is not CallState.ENDED
    assert CallOutcome.INTERRUPTED in [e.outcome for e in world.beijing.log if isinstance(e, CallEnded)]
    await asyncio.sleep(0)
    assert not any(isinstance(u.what, Fact) and isinstance(u.what.event, CallEnded) for u in new.seen)
    world.beijing.accept()
    await new.until(OfferAccepted)


async def test_a_conversation_that_broke_off_is_a_credit_once_wherever_its_call_goes(world: World) -> None:
    """Its edge knows no token but that of QUEUED; then the call moves on."""
    world.beijing.agent("ann")
    front = world.front()
    old = Line(world, front)
    await old.next()
    world.beijing.accept()
    world.beijing.confirm()
    world.clock.advance(600)
    world.beijing.do(PauseAgent(agent="ann", paused=True))
    new = Line(world, front, attempt=2, agent_lost=True, queued_ms=world.clock.now_ms() - 600_000)
    await new.next()
    await moving(world, new, front)
    await eventually(lambda: new.caller.region == "shanghai" and not new.caller.moving)
    now_ms, entry = world.clock.now_ms(), world.shanghai.state.calls["c1"]
    assert (now_ms - entry.queued_ms, now_ms - entry.effective_ms) == (0, 600_000)


@pytest.mark.parametrize("reachable", [True, False], ids=["at once", "when it has a leader again"])
async def test_a_conversation_that_broke_off_in_one_region_ends_there_when_its_call_goes_on_in_another(
    world: World, reachable: bool
) -> None:
    """Its agent's region takes no calls: the agent would have been held by a call that talks elsewhere."""
    world.beijing.agent("ann")
    world.shanghai.agent("bob")
    old = Line(world, world.front())
    await old.next()
    world.beijing.accept()
    world.beijing.confirm()
    front = world.front("g")
    if not reachable:
        world.wire("beijing", "g").down()
    line = Line(world, front, attempt=2, agent_lost=True, regions=["shanghai"], stale=["beijing"])
    await line.until(CallOffered)
    if not reachable:
        world.wire("beijing", "g").back()
    await eventually(lambda: world.beijing.outcome() is CallOutcome.INTERRUPTED)
    assert not world.beijing.state.agents["ann"].holding
    world.shanghai.accept()
    world.shanghai.confirm()
    await line.until(CallConnected)


@pytest.mark.parametrize("offered", [False, True], ids=["waiting", "rung"])
@pytest.mark.parametrize("reachable", [True, False], ids=["at once", "when it has a leader again"])
async def test_a_stream_that_breaks_in_a_conversation_goes_on_there_wherever_it_is_opened_again(
    world: World, offered: bool, reachable: bool
) -> None:
    """The region takes no new calls, or had no leader just then: its caller was queued and offered elsewhere,
    talking.
    """
    world.beijing.agent("ann")
    if offered:
        world.shanghai.agent("bob")
    old = Line(world, world.front())
    await old.next()
    world.beijing.accept()
    world.beijing.confirm()
    await old.close()
    front = world.front("g")
    if not reachable:
        world.wire("beijing", "g").down()
    line = Line(world, front, attempt=2, regions=["shanghai"], stale=["beijing"])
    await line.until(CallOffered if offered else CallQueued)
    if not reachable:
        world.wire("beijing", "g").back()
    while state_of(await line.next()) is not CallState.CONNECTED:
        pass
    assert line.seen[-1].shard == "beijing" and world.beijing.live()
    await eventually(lambda: world.shanghai.outcome() is CallOutcome.MOVED)
    world.beijing.do(EndCall(call_id="c1"))
    assert state_of((await line.rest())[-1]) is CallState.ENDED


@pytest.mark.parametrize("back", [True, False], ids=["its leader comes back", "it stays away"])
async def test_who_talks_is_opened_where_the_conversation_is_and_nowhere_else(
    world: World, back: bool
) -> None:
    """Its region had no leader just then: somebody else was rung for a caller who talked."""
    world.beijing.agent("ann")
    world.shanghai.agent("bob")
    old = Line(world, world.front())
    await old.next()
    world.beijing.accept()
    world.beijing.confirm()
    await old.close()
    front, wire = world.front("g", leaderless_seconds=10.0 if back else 0.01), world.wire("beijing", "g")
    wire.nobody_leads = True
    wire.down()
    line = Line(world, front, attempt=2, talks="beijing", stale=["beijing"])
    opened = asyncio.ensure_future(line.next())
    await eventually(lambda: wire.asked)
    if back:
        wire.nobody_leads = False
        wire.back()
        assert state_of(await soon(opened)) is CallState.CONNECTED
        assert line.caller.talks == "", "from now on it is as its shard says"
    else:
        with pytest.raises(LinkDown):
            await soon(opened)
    assert not world.wire("shanghai", "g").asked and "c1" not in world.shanghai.state.calls
    assert world.beijing.state.agents["ann"].holding


async def test_a_conversation_that_the_next_leader_does_not_know_is_not_queued_for_it(world: World) -> None:
    """It was told from memory, and never written down."""
    world.beijing.agent("ann")
    line = Line(world, world.front())
    await line.next()
    world.beijing.accept()
    world.beijing.confirm()
    await line.until(CallConnected)
    wire = world.wire("beijing")
    wire.down()
    del world.beijing.state.calls["c1"]
    wire.back()
    with pytest.raises(CallNotFound):
        await line.rest()
    assert "c1" not in world.beijing.state.calls


# --- moves


async def moving(world: World, line: Line, front: Front) -> None:
    """Lets the overflow watch begin to move the call to Shanghai."""
    world.free = "shanghai"
    watch = asyncio.create_task(front.run_overflow())
    await eventually(lambda: world.free is None)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_a_waiting_call_moves_and_its_source_lets_go(world: World) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    await moving(world, line, front)
    moved = await line.until(Moved)
    assert moved.shard == "shanghai"
    await eventually(lambda: world.beijing.outcome() is CallOutcome.MOVED)
    assert world.shanghai.live()
    world.shanghai.do(HangUp(call_id="c1", attempt=1))
    assert state_of((await line.rest())[-1]) is CallState.ENDED


async def test_a_priority_changed_while_waiting_goes_along(world: World) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    world.beijing.do(Reprioritize(call_id="c1", priority=7))
    await moving(world, line, front)
    await line.until(Moved)
    assert world.shanghai.state.calls["c1"].facts.priority == 7


@pytest.mark.parametrize("ahead_seconds", [0, 3_600, -3_600])
async def test_an_edge_that_comes_back_without_its_token_takes_its_wait_along(
    world: World, ahead_seconds: float
) -> None:
    world.beijing.clock = FakeClock()
    world.beijing.clock.advance(7_200 + ahead_seconds)
    world.clock.advance(7_200)
    front = world.front()
    line = Line(world, front)
    await line.next()
    for clock in (world.clock, world.beijing.clock):
        clock.advance(4)
    again = Line(world, front, attempt=2)
    await again.next()
    for clock in (world.clock, world.beijing.clock):
        clock.advance(3)
    await moving(world, again, front)
    await again.until(Moved)
    there = world.shanghai.state.calls["c1"]
    assert world.clock.now_ms() - there.queued_ms == 7_000
    await line.close()
    await again.close()


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize(
    ("what", "where"), [(OverflowCall, "beijing"), (PlaceCall, "shanghai"), (WithdrawCall, "beijing")]
)
async def test_a_move_with_a_lost_message_leaves_one_entry_that_is_listened_to(
    world: World, trouble: str, where: str, what: type
) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    ordered = getattr(world.wire(where), trouble)
    ordered[what] = 2
    await moving(world, line, front)
    await eventually(lambda: not line.caller.moving)
    await eventually(lambda: sum(shard.live() for shard in world.shards.values()) == 1)
    await eventually(lambda: len(front.shards.tasks) == 0)
    here = world.shards[line.caller.region]
    assert here.live() and here.state.calls["c1"].version == line.caller.version
    assert ordered.pop(what) < 2, "it came, once or twice"
    here.agent("ann")
    here.accept()
    await line.until(OfferAccepted)


async def test_a_full_target_sends_the_call_home(world: World) -> None:
    world.shanghai.do(ConfigureQueue(queue=QueueConfig(id="service", length_max=0)))
    front = world.front()
    line = Line(world, front)
    await line.next()
    await moving(world, line, front)
    await eventually(lambda: not line.caller.moving)
    assert line.caller.region == "beijing" and world.beijing.state.calls["c1"].state is CallState.WAITING
    world.beijing.agent("ann")
    world.beijing.accept()
    await line.until(OfferAccepted)


async def test_a_call_goes_nowhere_where_nobody_fits_what_it_asks_for(world: World) -> None:
    """Agents are free there, and none of them speaks French; somebody is told so once, not every moment."""
    world.shanghai.agent("bob")
    front = world.front()
    line = Line(world, front)
    line.caller.facts = CallFacts(call_id="c1", queue="service", skills=(("french", 1),))
    await line.next()
    await moving(world, line, front)
    await eventually(lambda: not line.caller.moving)
    assert line.caller.region == "beijing" and world.beijing.state.calls["c1"].state is CallState.WAITING
    assert "c1" not in world.shanghai.state.calls
    asked = len(world.wire("shanghai").asked)
    world.free = "shanghai"
    watch = asyncio.create_task(front.run_overflow())
    await eventually(lambda: world.passed_over > 1)
    assert len(world.wire("shanghai").asked) == asked and world.free
    world.clock.advance(UNFIT_SECONDS + 1)
    linguist = AgentConfig(id="eve", skills=(("french", 3),))
    world.shanghai.do(ConfigureAgent(agent=linguist))
    world.shanghai.do(OpenSession(agent="eve", session=1, command=1, front="elsewhere"))
    await eventually(lambda: line.caller.region == "shanghai" and world.shanghai.live())
    watch.cancel()
    assert world.shanghai.state.calls["c1"].agent == "eve"


@pytest.mark.parametrize("asks", [{"skills": (("french", 1),)}, {"channel": "chat"}])
async def test_a_call_is_not_moved_to_wait_for_the_one_who_fits(world: World, asks: dict[str, Any]) -> None:
    """Who fits talks, and those who are free do not fit: it keeps its place, and no number is used up."""
    both = (("chat", 1), ("voice", 1))
    world.shanghai.agent("bob")
    world.shanghai.do(ConfigureAgent(agent=AgentConfig(id="eve", skills=(("french", 3),), capacity=both)))
    world.shanghai.do(OpenSession(agent="eve", session=1, command=1, front="elsewhere"))
    other = CallFacts(call_id="c0", queue="service", **asks)
    world.shanghai.do(PlaceCall(facts=other, attempt=1, move=1, front="elsewhere"))
    assert world.shanghai.state.calls["c0"].agent == "eve"
    front = world.front()
    line = Line(world, front)
    line.caller.facts = CallFacts(call_id="c1", queue="service", **asks)
    await line.next()
    await moving(world, line, front)
    await eventually(lambda: not line.caller.moving)
    assert (line.caller.region, line.caller.move) == ("beijing", 1)
    assert "c1" not in world.shanghai.state.calls


async def test_a_call_that_its_region_keeps_is_not_asked_for_all_the_time(world: World) -> None:
    """It waits for one agent, who talks."""
    front = world.front()
    world.beijing.agent("ann")
    talking = PlaceCall(facts=CallFacts(call_id="c0", queue="service"), attempt=1, move=1, front="elsewhere")
    world.beijing.do(talking)
    line = Line(world, front)
    line.caller.facts = CallFacts(call_id="c1", queue="service", preferred_agent="ann")
    await line.next()
    await moving(world, line, front)
    await eventually(lambda: not line.caller.moving)
    assert line.caller.region == "beijing" and world.wire("beijing").kinds().count(OverflowCall) == 1
    world.free = "shanghai"
    watch = asyncio.create_task(front.run_overflow())
    looks = world.looks
    await eventually(lambda: world.looks > looks + 2)
    assert world.wire("beijing").kinds().count(OverflowCall) == 1 and world.free
    world.clock.advance(STAYS_SECONDS)
    await eventually(lambda: world.wire("beijing").kinds().count(OverflowCall) == 2)
    watch.cancel()


#: The message in a move that something else overtakes, at which region, and on which way.
PAUSES = [
    ("beijing", OverflowCall, "late_there"),
    ("beijing", OverflowCall, "late_back"),
    ("shanghai", PlaceCall, "late_there"),
    ("shanghai", PlaceCall, "late_back"),
    ("beijing", WithdrawCall, "late_there"),
]


@pytest.mark.parametrize("end", ["close", "hang up", "hang up at the source", "hang up by another router"])
@pytest.mark.parametrize(("region", "kind", "way"), PAUSES)
@pytest.mark.parametrize("full", [False, True], ids=["taken", "target full"])
async def test_an_end_during_a_move_leaves_nothing_behind(
    world: World, end: str, region: str, kind: type, way: str, full: bool
) -> None:
    if full:
        world.shanghai.do(ConfigureQueue(queue=QueueConfig(id="service", length_max=0)))
    front, other = world.front(), world.front("g")
    line = Line(world, front)
    await line.next()
    gate = asyncio.Event()
    getattr(world.wire(region), way)[kind] = gate
    await moving(world, line, front)
    await eventually(lambda: kind in world.wire(region).kinds() or not line.caller.moving)
    if end == "close":
        await line.close()
    else:
        shard = "" if end == "hang up" else "beijing"
        using = other if end == "hang up by another router" else front
        answer = asyncio.create_task(using.hang_up("c1", 1, shard, 5.0))
        await asyncio.sleep(0.005)
    gate.set()
    if end != "close":
        view = (await soon(answer)).answer.call
        assert view is not None and view.state is CallState.ENDED
        await line.rest()
        assert state_of(line.seen[-1]) is CallState.ENDED, "the stream must say so"
        outcomes = [e.outcome for s in world.shards.values() for e in s.log if isinstance(e, CallEnded)]
        assert CallOutcome.ABANDONED in outcomes
    await eventually(lambda: not front.shards.tasks and not other.shards.tasks)
    assert world.nobody_left()


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize(("region", "kind", "way"), PAUSES)
async def test_opened_again_during_a_move_one_entry_goes_on(
    world: World, region: str, kind: type, way: str, attempt: int
) -> None:
    front = world.front()
    old = Line(world, front)
    await old.next()
    gate = asyncio.Event()
    getattr(world.wire(region), way)[kind] = gate
    await moving(world, old, front)
    await eventually(lambda: kind in world.wire(region).kinds())
    new = Line(world, front, attempt=attempt)
    first = asyncio.ensure_future(new.next())
    await asyncio.sleep(0.002)
    gate.set()
    await soon(first)
    await eventually(lambda: not front.shards.tasks)
    assert [r for r, shard in world.shards.items() if shard.live()] == [new.caller.region]
    assert world.shards[new.caller.region].state.calls["c1"].version == new.caller.version
    await new.close()
    await eventually(world.nobody_left)


# --- leaders come and go


async def test_after_a_change_of_leader_the_call_is_attached_again(world: World) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    wire = world.wire("beijing")
    wire.down()
    world.beijing.open()
    wire.answer_lost |= {AttachCalls: 1, PlaceCall: 2}
    wire.back()
    await eventually(world.beijing.live)
    await eventually(lambda: not front.shards.tasks)
    assert world.beijing.live() and wire.kinds() == [PlaceCall, AttachCalls, *[PlaceCall] * 3]
    world.beijing.agent("ann")
    world.beijing.accept()
    await line.until(OfferAccepted)


async def test_what_happened_while_the_link_was_down_is_told(world: World) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    wire = world.wire("beijing")
    wire.down()
    world.beijing.do(HangUp(call_id="c1", attempt=1))
    wire.back()
    updates = await line.rest()
    assert state_of(updates[-1]) is CallState.ENDED


async def test_a_lost_regions_waiting_calls_go_elsewhere_and_conversations_stay(world: World) -> None:
    front = world.front(silent_seconds=0.01)
    waiting, talking = Line(world, front, "c1"), Line(world, front, "c2")
    world.beijing.agent("ann")
    await talking.next()
    world.beijing.accept("c2")
    world.beijing.confirm("c2")
    await talking.until(CallConnected)
    await waiting.next()
    world.wire("beijing").down()
    assert (await waiting.until(Moved)).shard == "shanghai"
    assert talking.caller.region == "beijing" and not world.shanghai.live("c2")
    world.beijing.open()
    world.wire("beijing").back()
    await eventually(lambda: world.beijing.outcome("c1") is CallOutcome.MOVED)
    await eventually(lambda: world.beijing.live("c2"))


@pytest.mark.parametrize(("region", "kind", "way"), PAUSES[:4])
async def test_a_region_lost_during_a_move_does_not_strand_the_call(
    world: World, region: str, kind: type, way: str
) -> None:
    front = world.front(silent_seconds=0.01)
    line = Line(world, front)
    await line.next()
    gate = asyncio.Event()
    getattr(world.wire(region), way)[kind] = gate
    await moving(world, line, front)
    await eventually(lambda: kind in world.wire(region).kinds())
    if kind is not PlaceCall:
        world.wire("shanghai").unreachable[PlaceCall] = 1
    world.wire("beijing").down()
    await eventually(lambda: "beijing" in front._lost)
    gate.set()
    await eventually(lambda: line.caller.region == "shanghai" and not line.caller.moving)
    assert world.shanghai.live()


async def test_a_lost_region_without_another_ends_the_stream_with_unavailable(world: World) -> None:
    front = world.front(silent_seconds=0.01, leaderless_seconds=0.02)
    line = Line(world, front, regions=["beijing"])
    await line.next()
    world.wire("beijing").down()
    with pytest.raises(Unavailable):
        await line.rest()


async def test_a_router_that_is_cut_off_sends_its_waiting_callers_elsewhere(
    world: World,
) -> None:
    """Its own region's leader is as cut off as it is: it is there, and cannot commit."""
    front = world.front(silent_seconds=1.0)
    looking = asyncio.ensure_future(front.run_overflow())
    line = Line(world, front)
    await line.next()
    wire = world.wire("beijing")
    wire.stalled = True
    world.wire("shanghai").down()
    await eventually(lambda: front._alone_since is not None)
    world.clock.advance(0.9)
    await asyncio.sleep(2 * OVERFLOW_SECONDS)
    assert not line.caller.updates.unread, "it may be a moment's"
    world.clock.advance(0.2)
    with pytest.raises(Unavailable):
        await line.rest()
    with pytest.raises(LinkDown):
        wire.nobody_leads = world.wire("shanghai").nobody_leads = True
        await Line(world, front, "c2").rest()
    assert front.shards.turnstiles["beijing"].waiting == 0, "a new call does not wait for a leader here"
    looking.cancel()


async def test_while_the_database_is_away_for_all_callers_stay_where_they_are(world: World) -> None:
    front = world.front(silent_seconds=0.0)
    looking = asyncio.ensure_future(front.run_overflow())
    line = Line(world, front)
    await line.next()
    world.wire("beijing").stalled = world.wire("shanghai").stalled = True
    await asyncio.sleep(3 * OVERFLOW_SECONDS)
    assert not line.caller.updates.unread
    looking.cancel()


@pytest.mark.parametrize(
    ("heard", "cut_off"),
    [
        pytest.param({"shanghai": True, "chengdu": True}, False, id="one of four is lost, none commits"),
        pytest.param({"shanghai": True}, True, id="most are silent"),
        pytest.param({"shanghai": False}, False, id="most are silent, one can commit"),
        pytest.param({}, True, id="all are silent"),
    ],
)
async def test_a_region_that_is_lost_while_the_database_is_away_cuts_nobody_off(
    world: World, heard: dict[str, bool], cut_off: bool
) -> None:
    """With its member of the database, for one, until another is primary: who waits elsewhere stays there."""
    for region in ("chengdu", "shenyang"):
        world.shards[region] = Shard(region, world.clock)
    front = world.front()
    world.wire("beijing").stalled = True
    for region in ("shanghai", "chengdu", "shenyang"):
        wire = world.wire(region)
        wire.up, wire.stalled = region in heard, heard.get(region, False)
    assert front._alone is cut_off


# --- the client's other words


@pytest.mark.parametrize("shard", ["", "beijing", "shanghai"])
async def test_hanging_up_and_ending_find_the_call_wherever_it_is(world: World, shard: str) -> None:
    """The edge names the shard of its last event, which may be outdated: any router follows the call."""
    front, other = world.front(), world.front("g")
    line = Line(world, front)
    await line.next()
    await moving(world, line, front)
    await line.until(Moved)
    await eventually(lambda: world.beijing.outcome() is CallOutcome.MOVED)
    world.shanghai.agent("ann")
    world.shanghai.accept()
    world.shanghai.confirm()
    ended = await soon(other.end_call(EndCall(call_id="c1"), shard, 5.0))
    assert ended.shard == "shanghai" and ended.answer.call is not None
    assert ended.answer.call.outcome is CallOutcome.COMPLETED
    again = await soon(other.hang_up("c1", 0, shard, 5.0))
    assert again.answer.call is not None and again.answer.call.outcome is CallOutcome.COMPLETED


async def test_an_unknown_call_is_not_found_and_an_unanswered_question_is_not_that(world: World) -> None:
    front = world.front()
    with pytest.raises(CallNotFound):
        await front.hang_up("nobody", 0, "", 1.0)
    world.wire("shanghai").down()
    with pytest.raises(Unavailable):
        await front.find_call("nobody")


async def test_a_confirmation_is_asked_until_it_is_answered(world: World) -> None:
    world.beijing.agent("ann")
    front = world.front()
    line = Line(world, front)
    await line.next()
    world.beijing.accept()
    entry = world.beijing.state.calls["c1"]
    command = ConfirmCall(call_id="c1", offer_id=entry.offer_id, attempt=1, move=1)
    wire = world.wire("beijing")
    wire.unreachable[ConfirmCall], wire.answer_lost[ConfirmCall] = 2, 2
    committed = await soon(front.confirm("beijing", command, 5.0))
    assert committed.answer.refusal is None
    assert sum(isinstance(event, CallConnected) for event in world.beijing.log) == 1


async def test_asking_patiently_ends_at_its_deadline(world: World) -> None:
    front = world.front()
    world.wire("beijing").down()
    asked = asyncio.ensure_future(front.shards.ask_patiently("beijing", AskAgent(agent="a"), 0.1))
    with pytest.raises(LinkLost):
        await soon(asked)
    assert len(world.wire("beijing").asked) == 1, "nobody to ask again"


# --- while nobody leads


async def test_what_comes_while_nobody_leads_waits_for_the_next_leader(world: World) -> None:
    world.beijing.agent("ann")
    front, wire = world.front(), world.wire("beijing")
    wire.nobody_leads = True
    wire.down()
    line = Line(world, front, regions=["beijing"])
    first = asyncio.ensure_future(line.next())
    seat = desk(agent="bob")
    world.beijing.do(ConfigureAgent(agent=AgentConfig(id="bob")))
    opened = asyncio.ensure_future(front.desks.open(seat))
    await eventually(lambda: len(wire.asked) == 2)
    wire.asked.clear()
    wire.nobody_leads = False
    wire.back()
    await soon(opened)
    assert (await first).shard == "beijing"
    assert wire.kinds()[:2] == [OpenSession, PlaceCall], "agents first"
    assert WithdrawCall not in wire.kinds(), "nothing was taken, so there is nothing to take back"


async def test_who_finds_no_leader_for_too_long_is_refused(world: World) -> None:
    front, wire = world.front(leaderless_seconds=0.05), world.wire("beijing")
    wire.nobody_leads = True
    wire.down()
    with pytest.raises(LinkDown):
        await Line(world, front, regions=["beijing"]).rest()
    assert wire.kinds() == [PlaceCall]


async def test_a_lost_region_without_another_keeps_its_callers_if_it_comes_back(world: World) -> None:
    front, wire = world.front(silent_seconds=0.01), world.wire("beijing")
    line = Line(world, front, regions=["beijing"])
    await line.next()
    wire.down()
    await eventually(lambda: front.shards.turnstiles["beijing"].waiting == 1)
    world.beijing.open()
    wire.back()
    await eventually(lambda: world.beijing.state.calls["c1"].attached)
    assert world.beijing.live() and not line.caller.updates.unread


async def test_who_waited_for_a_lost_region_goes_on_there_though_its_turn_comes_late(world: World) -> None:
    """Desktops are before it. It is attached with the others, and nobody would let go of its place."""
    front, wire = world.front(silent_seconds=0.01, leaderless_seconds=0.02), world.wire("beijing")
    line = Line(world, front, regions=["beijing"])
    await line.next()
    wire.down()
    turnstile = front.shards.turnstiles["beijing"]
    await eventually(lambda: turnstile.waiting == 1)
    world.beijing.open()
    free, turnstile._free = turnstile._free, 0
    wire.back()
    await eventually(lambda: not line.caller.stays)
    turnstile._free = free
    turnstile.look()
    await eventually(world.beijing.live)
    await eventually(lambda: not front.shards.tasks)
    assert not line.caller.updates.unread


@pytest.mark.parametrize("silent", [False, True], ids=["told", "told by attaching again"])
async def test_a_call_that_was_taken_for_lost_goes_on_while_its_stream_is_here(
    world: World, silent: bool
) -> None:
    """A leader that nobody could attach to in time has ended it; the caller has not hung up."""
    front, wire = world.front(), world.wire("beijing")
    line = Line(world, front, regions=["beijing"])
    first = await line.next()
    assert isinstance(first.what, Fact) and first.what.call is not None
    wire.down()
    world.beijing.open()
    world.clock.advance(60.0)
    wire.up = not silent
    world.beijing.tick()
    if silent:
        assert world.beijing.outcome() is CallOutcome.ABANDONED
    wire.back()
    await eventually(world.beijing.live)
    queued = (await line.until(CallQueued)).what
    assert isinstance(queued, Fact) and queued.call is not None
    assert queued.call.queued_ms == first.what.call.queued_ms, "with what it has waited"
    world.beijing.do(HangUp(call_id="c1", attempt=1))
    assert state_of((await line.rest())[-1]) is CallState.ENDED


async def test_those_who_waited_for_a_lost_region_attach_together_too(world: World) -> None:
    """They were placed one by one, thousands of them, and for the last ones the grace period was over."""
    front, wire = world.front(silent_seconds=0.01), world.wire("beijing")
    lines = [Line(world, front, f"c{n}", regions=["beijing"]) for n in range(AT_ONCE_MAX + 20)]
    for line in lines:
        await line.next()
    wire.down()
    await eventually(lambda: front.shards.turnstiles["beijing"].waiting == len(lines))
    world.beijing.open()
    wire.asked.clear()
    wire.back()
    await eventually(lambda: all(world.beijing.live(f"c{n}") for n in range(len(lines))))
    assert wire.kinds() == [AttachCalls]


async def test_after_a_change_of_leader_those_who_wait_attach_together(world: World) -> None:
    """A question for hundreds; to who waits on, nothing has happened, unless something did meanwhile."""
    front, wire = world.front(), world.wire("beijing")
    lines = [Line(world, front, f"c{n}", regions=["beijing"]) for n in range(STEP_ENTRIES_MAX + 6)]
    for line in lines:
        await line.next()
    wire.down()
    world.beijing.do(Reprioritize(call_id="c1", priority=5))
    world.beijing.open()
    wire.asked.clear()
    wire.back()
    await eventually(lambda: all(world.beijing.live(f"c{n}") for n in range(len(lines))))
    assert wire.kinds() == [AttachCalls] * 2
    await eventually(lambda: not front.shards.tasks)
    assert [line.caller.facts.call_id for line in lines if line.caller.updates.unread] == ["c1"]
    assert lines[1].caller.facts.priority == 5


async def test_a_place_is_told_when_it_is_news(world: World) -> None:
    """Whoever leads: one who has just begun knows of nothing that was told."""
    front, wire = world.front(), world.wire("beijing")
    line = Line(world, front, regions=["beijing"])
    first = await line.next()
    assert isinstance(first.what, Fact) and first.what.call is not None
    told = (first.what.call.position, first.what.call.expected_wait_span_ms)

    def place(position: int, wait_ms: int) -> None:
        event = PositionChanged(call_id="c1", position=position, expected_wait_span_ms=wait_ms)
        view = view_call(world.beijing.state, "c1")
        wire.tell([Fact(event=event, now_ms=world.clock.now_ms(), call=view)])

    for position, wait_ms in (told, (2, 5_000), (2, 5_000), (9, 60_000), (10, 61_000), (3, 9_000)):
        place(position, wait_ms)
    heard = [update.what.event.position for update in line.caller.updates.unread]
    assert heard == [2, 9, 3], "the few at the head exactly, the others now and then"


async def test_who_does_not_stand_as_before_attaches_alone_after_a_change_of_leader(world: World) -> None:
    """A new leader that does not know the call, one that rings for it, one to which it has ended; and a
    stream that closed before it could ask.
    """
    front, wire = world.front(), world.wire("beijing")
    unknown, rung, ended, waits, closed = lines = [
        Line(world, front, f"c{n}", regions=["beijing"]) for n in range(5)
    ]
    for line in lines:
        await line.next()
    wire.down()
    await closed.close()
    world.beijing.do(WithdrawCall(call_id="c0", attempt=9, move=1))
    del world.beijing.state.calls["c0"]
    world.beijing.agent("ann")
    assert world.beijing.state.calls["c1"].state is CallState.OFFERED
    world.beijing.do(HangUp(call_id="c2", attempt=1))
    world.beijing.open()
    wire.asked.clear()
    wire.back()
    assert state_of((await ended.rest())[-1]) is CallState.ENDED
    assert isinstance((await unknown.until(CallQueued)).what, Fact)
    assert state_of(await rung.next()) is CallState.OFFERED
    await eventually(lambda: world.beijing.live("c3") and not waits.caller.updates.unread)
    together, *apart = wire.asked
    assert isinstance(together, AttachCalls) and [call for call, _, _ in together.calls] == [
        "c0", "c1", "c2", "c3"
    ]  # fmt: skip
    assert {each.facts.call_id for each in apart if isinstance(each, PlaceCall)} == {"c0", "c1", "c2"}
    assert not world.beijing.live("c4")


async def test_who_cannot_attach_together_does_so_by_itself_so_many_at_once(world: World) -> None:
    front, wire = world.front(), world.wire("beijing")
    lines = [Line(world, front, f"c{n}", regions=["beijing"]) for n in range(AT_ONCE_MAX + 20)]
    for line in lines:
        await line.next()
    wire.down()
    world.beijing.open()
    wire.asked.clear()
    wire.unreachable[AttachCalls] = 1
    late = wire.late_back[PlaceCall] = asyncio.Event()
    wire.back()
    await eventually(lambda: front.shards.turnstiles["beijing"].waiting == 20)
    assert wire.kinds().count(PlaceCall) == AT_ONCE_MAX
    late.set()
    await eventually(lambda: all(world.beijing.live(f"c{n}") for n in range(len(lines))))


@pytest.mark.parametrize("silent", [False, True], ids=["told", "told by attaching again"])
async def test_auto_confirm_consents_for_the_edge(world: World, silent: bool) -> None:
    world.beijing.agent("ann")
    front = world.front()
    line = Line(world, front, auto_confirm=True)
    await line.next()
    wire = world.wire("beijing")
    if silent:
        wire.down()
    world.beijing.accept()
    if silent:
        assert world.beijing.state.calls["c1"].state is CallState.ACCEPTED
        wire.back()
    await eventually(lambda: world.beijing.state.calls["c1"].state is CallState.CONNECTED)


async def test_an_edge_that_does_not_confirm_is_let_go_and_comes_back(world: World) -> None:
    """Whether it reads or not: a leader to come does not have the call from its old stream."""
    world.beijing.agent("ann")
    front = world.front()
    stalled = Line(world, front)
    await stalled.next()
    world.beijing.accept()
    world.clock.advance(world.beijing.state.timing.confirm_span_ms / 1_000)
    world.beijing.tick()
    entry = world.beijing.state.calls["c1"]
    assert (entry.state, entry.attached) == (CallState.WAITING, False)
    wire = world.wire("beijing")
    wire.down()
    world.beijing.open()
    wire.back()
    await eventually(lambda: not front.shards.tasks)
    assert not world.beijing.live()
    with pytest.raises(Unconfirmed):
        await stalled.rest()
    again = Line(world, front, attempt=2)
    await again.next()
    assert world.beijing.live()


# --- bounds


async def test_a_reader_that_stalls_is_cut_off_and_keeps_its_place(world: World) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    entry = world.beijing.state.calls["c1"]
    for n in range(UPDATES_UNREAD_MAX + 5):
        world.beijing.do(PlaceCall(facts=entry.facts, attempt=1, move=1, front="f"))
        world.beijing.do(OverflowCall(call_id="c1", attempt=1, move=1))
        assert len(line.caller.updates.unread) <= UPDATES_UNREAD_MAX, n
    # Its stream stands at what its connection does not take, perhaps for ever: the shard is told now.
    await eventually(lambda: not world.beijing.live())
    assert world.beijing.state.calls["c1"].outcome is None
    assert not front.streams
    with pytest.raises(Unavailable):
        await line.rest()


async def test_a_desk_that_stalls_is_cut_off_and_rung_no_longer(seated: World) -> None:
    front = seated.front()
    seat = desk()
    await front.desks.open(seat)
    agent = seated.beijing.state.agents["ann"]
    for number in range(UPDATES_UNREAD_MAX + 5):
        presence = Presence.PAUSED if number % 2 else Presence.AVAILABLE
        seated.beijing.do(SetPresence(agent="ann", session=1, command=number + 2, presence=presence))
    await eventually(lambda: not agent.attached)
    assert not front.streams
    assert isinstance(await seat.updates.get(), Unavailable)


# --- desks


def desk(session: int = 1, **more: Any) -> Desk:
    fields: dict[str, Any] = {
        "agent": "ann",
        "command": 1,
        "region": "beijing",
        "presence": Presence.AVAILABLE,
        "pause_reason": "",
        "calls_held": (),
        **more,
    }
    return Desk(session=session, **fields)


def errors_of(each: Desk | Caller) -> list[CallmeshError]:
    found = []
    while each.updates.unread:
        update = each.updates.unread.popleft()
        if isinstance(update, CallmeshError):
            found.append(update)
    return found


@pytest.fixture
def seated(world: World) -> World:
    world.beijing.do(ConfigureAgent(agent=AgentConfig(id="ann")))
    return world


def attached(world: World) -> bool:
    return world.beijing.state.agents["ann"].attached


async def test_a_desk_opens_and_its_broken_stream_detaches_the_session(seated: World) -> None:
    front = seated.front()
    seat = desk()
    await front.desks.open(seat)
    assert attached(seated) and front.streams == 1
    await front.desks.close(seat, log_out=False)
    assert not attached(seated) and seated.beijing.state.agents["ann"].presence is Presence.AVAILABLE
    again = desk()
    await front.desks.open(again)
    await front.desks.close(again, log_out=True)
    assert seated.beijing.state.agents["ann"].presence.value == "offline"


@pytest.mark.parametrize("same_router", [True, False])
@pytest.mark.parametrize("session", [1, 2])
async def test_the_newest_desk_wins_and_the_old_streams_end_does_not_harm_it(
    seated: World, same_router: bool, session: int
) -> None:
    """A desktop that comes back with the same session, perhaps through another router, keeps it."""
    front = seated.front("f")
    other = front if same_router else seated.front("g")
    old, new = desk(), desk(session, command=2)
    await front.desks.open(old)
    await other.desks.open(new)
    assert [type(error) for error in errors_of(old)] == [NewerSession]
    await front.desks.close(old, log_out=False)
    assert attached(seated) and seated.beijing.state.agents["ann"].session == session
    assert DetachSession not in seated.wire("beijing", "f").kinds()


async def test_an_older_session_is_refused(seated: World) -> None:
    front, other = seated.front("f"), seated.front("g")
    await front.desks.open(desk(2))
    for router in (front, other):
        with pytest.raises(NewerSession):
            await router.desks.open(desk(1))
    assert attached(seated)


async def test_an_unknown_agent_is_not_found(world: World) -> None:
    with pytest.raises(AgentNotFound):
        await world.front().desks.open(desk())


async def test_a_session_whose_opening_was_not_answered_does_not_stay_attached(seated: World) -> None:
    """The desktop is told to try again; until it does, nobody sits there and nobody may be rung."""
    front = seated.front()
    seated.wire("beijing").answer_lost[OpenSession] = 1
    with pytest.raises(Unavailable):
        await front.desks.open(desk())
    await eventually(lambda: not attached(seated))
    assert front.streams == 0


async def test_after_a_change_of_leader_the_session_is_attached_again(seated: World) -> None:
    front = seated.front()
    seat = desk()
    await front.desks.open(seat)
    wire = seated.wire("beijing")
    wire.down()
    seated.beijing.open()
    assert not attached(seated)
    wire.unreachable[OpenSession], wire.answer_lost[OpenSession] = 1, 1
    wire.back()
    await eventually(lambda: attached(seated))


async def test_a_session_that_was_taken_over_meanwhile_is_told_so(seated: World) -> None:
    front = seated.front("f")
    seat = desk()
    await front.desks.open(seat)
    seated.wire("beijing", "f").down()
    await seated.front("g").desks.open(desk(2))
    seated.wire("beijing", "f").back()
    await eventually(lambda: bool(seat.updates.unread))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not isinstance(update := await seat.updates.get(), NewerSession):
            assert not isinstance(update, CallmeshError)


@pytest.mark.parametrize("logged_out", [False, True])
async def test_a_router_that_missed_the_desks_change_does_not_take_the_session_back(
    seated: World, logged_out: bool
) -> None:
    """Its stream is half open: it believes that the desktop is there, and it has lost its link meanwhile."""
    front, other = seated.front("f"), seated.front("g")
    old, new = desk(), desk(command=2)
    await front.desks.open(old)
    seated.wire("beijing", "f").down()
    await other.desks.open(new)
    if logged_out:
        await other.desks.close(new, log_out=True)
    seated.wire("beijing", "f").back()
    await eventually(lambda: any(isinstance(each, NewerSession) for each in old.updates.unread))
    await front.desks.close(old, log_out=False)
    ann = seated.beijing.state.agents["ann"]
    assert (ann.front, ann.attached) == ("g", not logged_out)
    assert errors_of(new) == []


async def test_a_desk_that_is_back_at_once_is_not_ended_by_its_last_router(seated: World) -> None:
    """From f to g and back to f within milliseconds: what f hears of g then is old."""
    front, other, wire = seated.front("f"), seated.front("g"), seated.wire("beijing", "f")
    await front.desks.open(desk())
    wire.late_there[OpenSession] = asyncio.Event()
    back = desk(command=3)
    opening = asyncio.create_task(front.desks.open(back))
    await eventually(lambda: wire.kinds().count(OpenSession) == 2)
    await other.desks.open(desk(command=2))
    wire.late_there[OpenSession].set()
    await soon(opening)
    assert errors_of(back) == [] and front.streams == 1
    assert seated.beijing.state.agents["ann"].front == "f"


async def test_an_opening_that_comes_late_does_not_end_the_newer_stream(seated: World) -> None:
    front = seated.front()
    newer = desk(command=2)
    await front.desks.open(newer)
    with pytest.raises(NewerSession):
        await front.desks.open(desk(command=1))
    assert errors_of(newer) == [] and front.streams == 1 and attached(seated)


@pytest.mark.parametrize("between", [False, True], ids=["at once", "after another one that came to nothing"])
@pytest.mark.parametrize("vanishes", [False, True], ids=["not taken", "vanished"])
async def test_a_new_session_that_comes_to_nothing_leaves_nobody_in_the_old_one(
    seated: World, vanishes: bool, between: bool
) -> None:
    """A desktop starts again: its old stream is half open, its new one ends before the shard has heard of it.
    Nobody sits there then, and nobody may be rung.
    """
    front, wire = seated.front(), seated.wire("beijing")
    streams = [desk(1)]
    await front.desks.open(streams[0])
    for session in (2, 3) if between else (2,):
        streams.append(desk(session))
        if vanishes:
            wire.late_there[OpenSession] = asyncio.Event()
            opening = asyncio.create_task(front.desks.open(streams[-1]))
            await eventually(lambda session=session: wire.kinds().count(OpenSession) == session)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        else:
            wire.busy[OpenSession] = 1
            with pytest.raises(Unavailable):
                await front.desks.open(streams[-1])
    for stream in streams:
        await soon(front.desks.close(stream, log_out=False))
    await eventually(lambda: not attached(seated))
    assert seated.beijing.state.agents["ann"].session == 1 and front.streams == 0


async def test_a_forced_log_out_outlives_the_leader(seated: World) -> None:
    """The desktop has heard it and sits there logged out: the next leader is not told otherwise."""
    front, wire = seated.front(), seated.wire("beijing")
    seat = desk()
    await front.desks.open(seat)
    seated.beijing.do(ForceLogOut(agent="ann"))
    assert closed_at(seat) == ["beijing"]
    wire.asked.clear()
    wire.down()
    seated.beijing.open()
    wire.back()
    line = Line(seated, front)
    await line.next()
    assert OpenSession not in wire.kinds()
    assert seated.beijing.state.agents["ann"].presence is Presence.OFFLINE
    again = desk(command=2)
    await front.desks.open(again)
    assert attached(seated), "and its next opening logs in"


async def test_a_word_of_a_desk_that_left_is_not_said_again_once_it_is_back(seated: World) -> None:
    front, wire = seated.front(), seated.wire("beijing")
    seat, again = desk(), desk()
    await front.desks.open(seat)
    wire.unreachable[DetachSession] = 1
    leaving = asyncio.create_task(front.desks.close(seat, log_out=False))
    await eventually(lambda: DetachSession in wire.kinds())
    await front.desks.open(again)
    await soon(leaving)
    assert seated.beijing.state.agents["ann"].attached and wire.kinds().count(DetachSession) == 1
    await front.desks.close(again, log_out=False)
    assert not seated.beijing.state.agents["ann"].attached


async def test_a_conversation_is_told_to_the_desk_that_comes_back(seated: World) -> None:
    front = seated.front()
    seat = desk()
    await front.desks.open(seat)
    line = Line(seated, front)
    await line.next()
    seated.beijing.accept()
    seated.beijing.confirm()
    await front.desks.close(seat, log_out=False)
    again = desk(2, calls_held=("c1",))
    await front.desks.open(again)
    present = [u.what for u in again.updates.unread if isinstance(u.what, Present)]
    assert [what.call.facts.call_id for what in present if what.call is not None] == ["c1"]


async def test_what_rings_is_told_by_the_next_leader_when_the_last_ones_word_was_lost(seated: World) -> None:
    """An offer is committed, and the link breaks before the desktop hears of it: the next leader knows the
    offer by its journal, and without a word to the desktop it would ring in vain for its whole time.
    """
    front, wire = seated.front(), seated.wire("beijing")
    seat = desk()
    await front.desks.open(seat)
    wire.facts_lost = True
    line = Line(seated, front)
    await line.next()
    offer = seated.beijing.state.calls["c1"].offer_id
    assert offer and not [u for u in seat.updates.unread if isinstance(u.what, Fact) and u.what.call]
    wire.down()
    seated.beijing.open()
    wire.facts_lost = False
    wire.back()
    await eventually(lambda: any(isinstance(u.what, Present) for u in seat.updates.unread))
    [present] = [u for u in seat.updates.unread if isinstance(u.what, Present)]
    [event] = convert.agent_events(present)
    assert (event.WhichOneof("event"), event.offer.offer_id) == ("offer", offer)
    assert event.offer.call.call_id == "c1" and event.offer.HasField("expire_time")
    seated.beijing.accept()
    assert seated.beijing.state.calls["c1"].state is CallState.ACCEPTED


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_what_rings_is_not_told_behind_what_came_of_it(seated: World, hangs_up: bool) -> None:
    """The answer that opens a session has its turn when later blocks have been told: leaders that go on from
    memory, or find many blocks committed, tell several at once.
    """
    front, wire = seated.front(), seated.wire("beijing")
    seated.beijing.do(
        PlaceCall(facts=CallFacts(call_id="c1", queue="service"), attempt=1, move=1, front="elsewhere")
    )
    wire.late_back[OpenSession] = asyncio.Event()
    seat = desk()
    opening = asyncio.ensure_future(front.desks.open(seat))
    await eventually(lambda: seated.beijing.state.calls["c1"].state is CallState.OFFERED)
    if hangs_up:
        seated.beijing.do(HangUp(call_id="c1", attempt=1))
    else:
        seated.beijing.do(SetPresence(agent="ann", session=1, command=2, presence=Presence.PAUSED))
    wire.late_back[OpenSession].set()
    await soon(opening)
    places = [(update.epoch, update.sequence) for update in seat.updates.unread]
    assert places == sorted(places) and len(set(places)) > 1
    present = [state_of(update) for update in seat.updates.unread if isinstance(update.what, Present)]
    assert present == ([] if hangs_up else [CallState.OFFERED])


@pytest.fixture
async def moved(seated: World) -> World:
    """Ann talks with c1 in Beijing, belongs to Shanghai from now on, and her stream has broken."""
    front = seated.front()
    seat = desk()
    await front.desks.open(seat)
    for shard, call_id in ((seated.beijing, "c1"), (seated.shanghai, "c2")):
        facts = CallFacts(call_id=call_id, queue="service")
        shard.do(PlaceCall(facts=facts, attempt=1, move=1, front="elsewhere"))
    seated.beijing.accept()
    seated.beijing.confirm()
    seated.beijing.do(RemoveAgent(agent="ann"))
    seated.shanghai.do(ConfigureAgent(agent=AgentConfig(id="ann")))
    await front.desks.close(seat, log_out=False)
    return seated


async def test_an_agent_moved_in_a_conversation_is_rung_in_the_new_region_after_it(moved: World) -> None:
    [front] = moved.fronts
    seat = desk(2, region="shanghai", calls_held=("c1",))
    await front.desks.open(seat)
    assert seat.region == "beijing" and attached(moved)
    assert moved.shanghai.state.calls["c2"].state is CallState.WAITING
    present = [u.what for u in seat.updates.unread if isinstance(u.what, Present)]
    assert [what.call.facts.call_id for what in present if what.call is not None] == ["c1"]
    moved.beijing.do(EndCall(call_id="c1"))
    moved.beijing.do(FinishWrapUp(agent="ann", session=2, call_id="c1", disposition=None))
    assert "ann" not in moved.beijing.state.agents, "it has finished there"
    await front.desks.close(seat, log_out=False)
    await front.desks.open(desk(3, region="shanghai"))
    assert moved.shanghai.state.calls["c2"].agent == "ann"


@pytest.mark.parametrize("held", [(), ("c9",)], ids=["nothing", "another"])
async def test_a_desk_that_holds_nothing_of_another_region_opens_in_its_own(
    moved: World, held: tuple[str, ...]
) -> None:
    [front] = moved.fronts
    seat = desk(2, region="shanghai", calls_held=held)
    moved.wire("beijing").nobody_leads = held == ()
    await front.desks.open(seat)
    assert seat.region == "shanghai" and moved.shanghai.state.agents["ann"].attached


async def test_a_new_desktop_in_the_new_region_leaves_nobody_in_the_old_one(seated: World) -> None:
    """It was started anew and knows of no conversation; its stream is at the same router as the old one."""
    front = seated.front()
    seat, again = desk(), desk(2, region="shanghai")
    await front.desks.open(seat)
    seated.beijing.do(
        PlaceCall(facts=CallFacts(call_id="c1", queue="service"), attempt=1, move=1, front="elsewhere")
    )
    seated.beijing.accept()
    seated.beijing.confirm()
    seated.beijing.do(RemoveAgent(agent="ann"))
    seated.shanghai.do(ConfigureAgent(agent=AgentConfig(id="ann")))
    await front.desks.open(again)
    await front.desks.close(seat, log_out=False)
    await eventually(lambda: not attached(seated))
    assert seated.shanghai.state.agents["ann"].attached
    seated.clock.advance(seated.beijing.state.timing.agent_grace_span_ms / 1000 + 1)
    seated.beijing.tick()
    assert seated.beijing.outcome() is CallOutcome.INTERRUPTED, "nobody had ended it"


async def test_where_a_moved_agent_opens_is_asked_anew_once_its_region_has_a_leader(moved: World) -> None:
    [front] = moved.fronts
    wire = moved.wire("shanghai")
    wire.nobody_leads = True
    wire.down()
    seat = desk(2, region="shanghai", calls_held=("c1",))
    opening = asyncio.ensure_future(front.desks.open(seat))
    await eventually(lambda: AskAgent in wire.kinds())
    wire.nobody_leads = False
    wire.back()
    await soon(opening)
    assert seat.region == "beijing" and OpenSession not in wire.kinds()


# --- a supervisor's word to an agent


class Homes:
    """The directory: Ann is of Shanghai, Bob is no more."""

    async def region_of(self, agent: str) -> str | None:
        return {"ann": "shanghai"}.get(agent)


def supervision(world: World, front: Front) -> SupervisionHandlers:
    unused: dict[str, Any] = {"reports": None, "audit": None}
    return SupervisionHandlers(
        front=front,
        agents=Homes(),
        peers=PeerTable(world.clock, 3.0),
        shards=frozenset(world.shards),
        zone_of=lambda region: "",
        clock=world.clock,
        **unused,
    )


def recorded(world: World) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """What is in the journals of acts: region and details."""
    return [
        (region, command.details)
        for (_, region), wire in world.wires.items()
        for command in wire.asked
        if isinstance(command, RecordAct)
    ]


def closed_at(seat: Desk) -> list[str]:
    """The regions that have told a desktop that it is logged out."""
    facts = [(update.shard, update.what) for update in seat.updates.unread if isinstance(update, Update)]
    return [
        shard for shard, what in facts if isinstance(what, Fact) and isinstance(what.event, SessionClosed)
    ]


async def test_a_forced_log_out_reaches_the_conversation_of_an_agent_who_was_moved(moved: World) -> None:
    [front] = moved.fronts
    acts = supervision(moved, front)
    seat = desk(2, region="shanghai", calls_held=("c1",))
    await front.desks.open(seat)
    wanted = pb.LogOutAgentRequest(name="agents/ann", reason="fire alarm")
    status = await acts.log_out_agent(wanted)
    assert (status.region, status.state, status.draining) == ("regions/beijing", ON_CALL, True), (
        "when it is done"
    )
    wanted.interrupt = True
    moved.wire("shanghai").down()
    status = await acts.log_out_agent(wanted)
    assert (status.region, status.state) == ("regions/beijing", OFFLINE) and not status.calls_held
    ended = moved.beijing.state.calls["c1"]
    assert (ended.state, ended.outcome) == (CallState.ENDED, CallOutcome.INTERRUPTED)
    assert "ann" not in moved.beijing.state.agents, "she is of Shanghai alone"
    assert closed_at(seat) == ["beijing"], "her desktop hears it"
    assert recorded(moved) == [("beijing", ()), ("beijing", (("interrupt", "true"),))]


async def test_a_forced_log_out_is_not_said_to_be_done_where_nobody_knows(moved: World) -> None:
    [front] = moved.fronts
    moved.wire("beijing").down()
    with pytest.raises(Unavailable):
        await supervision(moved, front).log_out_agent(
            pb.LogOutAgentRequest(name="agents/ann", interrupt=True)
        )
    assert moved.beijing.state.calls["c1"].state is CallState.CONNECTED and recorded(moved) == []


async def test_an_agent_who_sits_in_two_regions_is_logged_out_of_both(moved: World) -> None:
    [front] = moved.fronts
    seat = desk(2, region="shanghai")
    await front.desks.open(seat)
    status = await supervision(moved, front).log_out_agent(
        pb.LogOutAgentRequest(name="agents/ann", interrupt=True)
    )
    assert (status.region, status.state) == ("regions/shanghai", OFFLINE)
    assert moved.shanghai.state.agents["ann"].presence is Presence.OFFLINE
    assert moved.beijing.state.calls["c1"].state is CallState.ENDED
    assert recorded(moved) == [("shanghai", (("interrupt", "true"),))], "once"
    assert closed_at(seat) == ["shanghai"], "where her session is"


async def test_an_agent_removed_in_a_conversation_can_be_paused_and_logged_out(seated: World) -> None:
    front = seated.front()
    seated.beijing.do(ConfigureAgent(agent=AgentConfig(id="bob")))
    acts = supervision(seated, front)
    await front.desks.open(desk(agent="bob"))
    await Line(seated, front).next()
    seated.beijing.accept()
    seated.beijing.confirm()
    seated.beijing.do(RemoveAgent(agent="bob"))
    status = await acts.pause_agent(pb.PauseAgentRequest(name="agents/bob", paused=True, reason="coaching"))
    assert (status.state, status.pause_reason) == (ON_CALL, "coaching")
    await acts.log_out_agent(pb.LogOutAgentRequest(name="agents/bob", interrupt=True))
    assert seated.beijing.state.calls["c1"].state is CallState.ENDED
    with pytest.raises(AgentNotFound):
        await acts.log_out_agent(pb.LogOutAgentRequest(name="agents/bob", interrupt=True))
    assert len(recorded(seated)) == 2, "of nobody nothing is recorded"


async def status_of(world: World, agent: str) -> agent_pb2.AgentStatus:
    unused: dict[str, Any] = {"regions": None, "tokens": None, "profiles": None, "queues": {}, "skills": ()}
    handlers = Handlers(
        front=world.fronts[0], agents=Homes(), shards=frozenset(world.shards), clock=world.clock, **unused
    )
    return await handlers.agent_status(agent_pb2.GetAgentStatusRequest(name=f"agents/{agent}"))


async def test_the_status_of_an_agent_who_was_moved_is_that_of_where_she_talks(moved: World) -> None:
    [front] = moved.fronts
    status = await status_of(moved, "ann")
    assert (status.region, status.state) == ("regions/beijing", ON_CALL)
    assert list(status.calls_held) == ["c1"]
    moved.wire("beijing").down()
    with pytest.raises(Unavailable):
        await status_of(moved, "ann")
    moved.wire("beijing").back()
    moved.beijing.do(EndCall(call_id="c1"))
    moved.beijing.do(FinishWrapUp(agent="ann", session=1, call_id="c1"))
    for region in moved.shards:
        moved.wire(region).asked.clear()
    status = await status_of(moved, "ann")
    assert (status.region, status.state) == ("regions/shanghai", OFFLINE)
    assert [moved.wire(region).asked for region in moved.shards] == [[AskAgent(agent="ann")]] * 2, "once each"
    seat = desk(2, region="shanghai")
    await front.desks.open(seat)
    moved.wire("beijing").down()
    assert (await status_of(moved, "ann")).region == "regions/shanghai", "who sits at home is asked for there"


async def test_the_status_of_an_agent_who_was_removed_is_told_until_the_conversation_is_over(
    seated: World,
) -> None:
    front = seated.front()
    seated.beijing.do(ConfigureAgent(agent=AgentConfig(id="bob")))
    await front.desks.open(desk(agent="bob"))
    await Line(seated, front).next()
    seated.beijing.accept()
    seated.beijing.confirm()
    seated.beijing.do(RemoveAgent(agent="bob"))
    assert (await status_of(seated, "bob")).state == ON_CALL
    seated.beijing.do(ForceLogOut(agent="bob", interrupt=True))
    for unknown in ("bob", "eve"):
        with pytest.raises(AgentNotFound):
            await status_of(seated, unknown)


# --- draining and closing


async def test_a_draining_router_sends_its_clients_elsewhere_and_keeps_their_places(seated: World) -> None:
    front = seated.front()
    line, seat = Line(seated, front, "c1", regions=["shanghai"]), desk()
    await line.next()
    await front.desks.open(seat)
    front.drain()
    with pytest.raises(Unavailable):
        await line.rest()
    assert [type(error).__name__ for error in errors_of(seat)] == ["RouterDraining"]
    with pytest.raises(Unavailable):
        await Line(seated, front, "c2").next()
    with pytest.raises(Unavailable):
        await front.desks.open(desk())
    await eventually(lambda: not seated.shanghai.live())
    assert seated.shanghai.state.calls["c1"].outcome is None


async def test_a_closed_front_begins_nothing(world: World) -> None:
    front = world.front(silent_seconds=0.0)
    line = Line(world, front)
    await line.next()
    await front.close()
    world.wire("beijing").down()
    assert not front._lost_timers and not front.shards.tasks


async def test_a_caller_who_is_gone_is_placed_nowhere(world: World) -> None:
    front = world.front()
    gate = asyncio.Event()
    world.wire("beijing").late_back[PlaceCall] = gate
    world.wire("beijing").answer_lost[PlaceCall] = 1
    line = Line(world, front)
    first = asyncio.ensure_future(anext(line.stream))
    await eventually(lambda: world.beijing.live())
    hang_up = asyncio.ensure_future(front.hang_up("c1", 1, "", 5.0))
    await soon(hang_up)
    gate.set()
    with pytest.raises(CallerGone):
        await soon(first)
    await eventually(lambda: not front.shards.tasks)
    assert world.nobody_left() and PlaceCall not in world.wire("shanghai").kinds()


# --- handing on, calling back


async def test_a_call_handed_on_to_another_regions_agent_is_brought_there(world: World) -> None:
    line = Line(world, world.front(agents="shanghai"))
    await line.next()
    world.beijing.agent("ann")
    world.shanghai.agent("sue")
    world.beijing.accept()
    world.beijing.confirm()
    await line.until(CallConnected)
    world.beijing.do(TransferCall(call_id="c1", agent="sue", elsewhere=True))
    update = await line.until(CallOffered)
    assert (update.shard, line.caller.region) == ("shanghai", "shanghai")
    await eventually(lambda: world.beijing.outcome() is CallOutcome.MOVED)
    await line.close()
    await eventually(world.nobody_left)


async def test_a_call_handed_on_to_an_agent_who_cannot_be_found_is_served_at_home(world: World) -> None:
    line = Line(world, world.front())
    await line.next()
    world.beijing.agent("ann")
    world.beijing.accept()
    world.beijing.confirm()
    await line.until(CallConnected)
    world.beijing.do(TransferCall(call_id="c1", agent="nobody", elsewhere=True))
    await line.until(CallTransferred)
    world.beijing.agent("bob")
    world.clock.advance(10)
    world.beijing.tick()
    assert (await line.until(CallOffered)).shard == "beijing"


async def test_an_edge_that_comes_back_after_a_transfer_takes_its_context_to_the_next_region(
    world: World,
) -> None:
    front = world.front()
    line = Line(world, front)
    await line.next()
    world.beijing.agent("ann")
    world.beijing.accept()
    world.beijing.confirm()
    await line.until(CallConnected)
    said = (("product", "fibre"),)
    world.beijing.do(TransferCall(call_id="c1", queue=line.caller.facts.queue, attributes=said))
    await line.until(CallTransferred)
    await line.close()
    again = Line(world, front, attempt=2)
    await again.next()
    await moving(world, again, front)
    assert (await again.until(Moved)).shard == "shanghai"
    assert set(said) < set(world.shanghai.state.calls["c1"].facts.attributes)
    await again.close()


async def test_a_stream_ends_with_the_promise_to_call_back_and_the_place_stays(world: World) -> None:
    line = Line(world, world.front())
    await line.next()
    world.beijing.do(RequestCallback(call_id="c1", number="+8613800138000"))
    await line.rest()
    assert DetachCalls not in world.wire("beijing").kinds()
    assert world.beijing.state.calls["c1"].state is CallState.WAITING


async def test_a_call_back_of_which_its_stream_had_not_heard_ends_it_after_a_change_of_leader(
    world: World,
) -> None:
    line, wire = Line(world, world.front()), world.wire("beijing")
    await line.next()
    wire.down()
    later_ms = world.clock.now_ms() + 60_000
    world.beijing.do(RequestCallback(call_id="c1", number="+8613800138000", not_before_ms=later_ms))
    world.beijing.open()
    wire.back()
    last = (await line.rest())[-1]
    assert isinstance(last.what, Present) and last.what.call is not None
    assert world.beijing.state.calls["c1"].callback_number == "+8613800138000"


async def test_a_session_that_attaches_again_hears_of_its_conversation_in_one_answer(world: World) -> None:
    front, wire = world.front(), world.wire("beijing")
    world.beijing.do(ConfigureAgent(agent=AgentConfig(id="ann")))
    seat = desk(agent="ann")
    await front.desks.open(seat)
    line = Line(world, front)
    await line.next()
    world.beijing.accept()
    world.beijing.confirm()
    wire.asked.clear()
    wire.down()
    world.beijing.open()
    seat.updates.unread.clear()
    wire.back()
    await eventually(lambda: [u for u in seat.updates.unread if isinstance(u.what, Present)])
    present = next(u for u in seat.updates.unread if isinstance(u.what, Present))
    assert state_of(present) is CallState.CONNECTED
    assert AskCall not in wire.kinds()
