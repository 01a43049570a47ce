"""Routers, edges and agents in virtual time, over a store and a network that misbehave by a seed.

What runs is the product: leaders, engines, audiences and fronts, two routers for each of two shards.
Simulated are the event loop's clock, the store (a primary, a majority point, rollback), the links between
routers, the edges and the agents. A seed decides every delay, loss, repetition, break, outage and election,
so a run can be replayed:

    make sim SEED=17 RUNS=1

After every commit and every message to a client the invariants are looked at; at the end, with the faults
over, every call must have come to an end and no agent may be held by nothing. Two broken variants must be
caught within `SEEDS_TO_CATCH` seeds, so that a simulation that no longer bites is noticed.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from chassis.clock import from_ms
from chassis.errors import CallmeshError, Unavailable
from routing import codec, engine
from routing import leader as leader_module
from routing.errors import CallNotFound
from routing.front import Front, FrontOptions
from routing.journal import Block, Manifest, OutcomeUnknown
from routing.leader import Committed, Leader, LeaderOptions, PoisonCommand
from routing.links import AnswerLate, LinkLost, OnChange, OnFacts
from routing.model import (
    AcceptOffer,
    AgentConfig,
    CallConnected,
    CallEnded,
    CallFacts,
    CallOffered,
    CallOutcome,
    CallState,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    Decision,
    DeclineOffer,
    DetachFront,
    EndCall,
    Fact,
    FinishWrapUp,
    OfferAccepted,
    PositionChanged,
    Presence,
    QueueConfig,
)
from routing.state import ShardState, evolve
from routing.streams import Caller, Desk, Present, Update

SHARDS = ("beijing", "shanghai")
ROUTERS_PER_SHARD = 2
AGENTS_PER_SHARD = 2
CALLS = 14
#: Virtual seconds with faults, and how long everything may take to come to rest after them.
FAULTY_SECONDS, REST_SECONDS = 25.0, 240.0
#: A broken variant must be caught by one of that many seeds.
SEEDS_TO_CATCH = 60
ORIGIN_MS = 1_772_000_000_000
RUNS = int(os.environ.get("RUNS") or 20)
SEED = int(os.environ.get("SEED") or 1)
REPORT = Path(__file__).resolve().parents[2] / "build" / "reports" / "routing_simulation.json"


class Violation(AssertionError):
    """An invariant does not hold."""


# --- virtual time


class _Jump(selectors.SelectSelector):
    """Waits for nothing: the loop's clock jumps to the next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Violation("nothing is left to happen: a deadlock")
        self.loop.virtual += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when there is nothing to do."""

    def __init__(self) -> None:
        self.virtual = 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.virtual


class VirtualClock:
    """A router's clock; the machines agree, business time runs at real speed."""

    speed = 1.0

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return ORIGIN_MS + int(self._loop.virtual * 1000)

    def now(self) -> Any:
        return from_ms(self.now_ms())

    def monotonic(self) -> float:
        return self._loop.virtual

    def real_seconds(self, business_seconds: float) -> float:
        return business_seconds

    def time_ns(self) -> int:
        """In place of the leader's `time` module."""
        return self.now_ms() * 1_000_000


# --- the store


class Cluster:
    """A replica set: what the primary has, and how much of it a majority has."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.primary: dict[tuple[str, int], Block] = {}
        self.majority: dict[tuple[str, int], Block] = {}
        self.replicating = True
        self.away = False

    def newest(self, shard: str) -> int:
        return max((sequence for each, sequence in self.majority if each == shard), default=0)

    def commit(self, block: Block) -> None:
        """A majority has it from now on."""
        if self.primary.get((block.shard, block.sequence)) is block:
            self.majority[block.shard, block.sequence] = block
            self.world.committed(block)

    def elect(self, keep: bool) -> None:
        """Ends a stall of replication: what is not replicated is kept by the next primary, or rolled back."""
        for key in sorted(key for key in self.primary if key not in self.majority):
            if keep:
                self.commit(self.primary[key])
            else:
                del self.primary[key]
        self.replicating = True


class Taken(OutcomeUnknown):
    """DuplicateKey: the primary has a block there, which may be rolled back yet."""

    def __init__(self, block: Block) -> None:
        super().__init__("taken")
        self.block = block


class SimJournal:
    """One router's way to the cluster."""

    def __init__(self, cluster: Cluster, world: World) -> None:
        self.cluster = cluster
        self.world = world
        #: This router hangs until then: every call of it takes that long.
        self.stalled_until = 0.0

    async def _way(self) -> None:
        loop, rng = self.world.loop, self.world.rng
        await asyncio.sleep(rng.uniform(0.001, 0.02) + max(0.0, self.stalled_until - loop.virtual))
        if self.cluster.away:
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            raise OutcomeUnknown("away")

    async def insert(self, block: Block) -> None:
        world, cluster = self.world, self.cluster
        await self._way()
        fate = world.fault(refused=0.02, late=0.03)
        if fate == "refused":
            raise OutcomeUnknown("not applied")
        if fate == "late":
            world.loop.call_later(world.rng.uniform(0.05, 4.0), self._apply_late, block)
            raise OutcomeUnknown("on its way")
        there = cluster.primary.get((block.shard, block.sequence))
        if there is not None:
            raise Taken(there)
        cluster.primary[block.shard, block.sequence] = block
        await asyncio.sleep(world.rng.uniform(0.001, 0.01))
        if not cluster.replicating:
            await asyncio.sleep(0.2)
            raise OutcomeUnknown("no majority in time")
        cluster.commit(block)
        if cluster.majority.get((block.shard, block.sequence)) is not block:
            raise OutcomeUnknown("rolled back")
        await asyncio.sleep(world.rng.uniform(0.0, 0.005))
        if world.fault(answer_lost=0.03):
            raise OutcomeUnknown("answer lost")

    def _apply_late(self, block: Block) -> None:
        taken = (block.shard, block.sequence) in self.cluster.primary
        if not taken and self.cluster.replicating:
            self.cluster.primary[block.shard, block.sequence] = block
            self.cluster.commit(block)

    async def find(self, shard: str, sequence: int) -> Block | None:
        await self._way()
        return self.cluster.majority.get((shard, sequence))

    async def read(self, shard: str, after: int) -> Any:
        await self._way()
        for sequence in range(after + 1, self.cluster.newest(shard) + 1):
            yield self.cluster.majority[shard, sequence]

    async def above(self, shard: str, sequence: int) -> bool:
        await self._way()
        return self.cluster.newest(shard) > sequence

    async def manifests(self, shard: str) -> list[Manifest]:
        await self._way()
        return []

    async def parts(self, manifest: Manifest) -> Any:
        raise AssertionError("there are no snapshots")
        yield b""

    async def probe(self, shard: str, router: str) -> None:
        await self._way()
        if not self.cluster.replicating:
            await asyncio.sleep(0.2)
            raise OutcomeUnknown("no majority in time")

    async def now_ms(self) -> int:
        await self._way()
        return self.world.clock.now_ms()

    async def close(self) -> None:
        pass


class TrustingJournal(SimJournal):
    """Broken: takes DuplicateKey on its own block for committed."""

    async def insert(self, block: Block) -> None:
        try:
            await super().insert(block)
        except Taken as taken:
            if taken.block.nonce != block.nonce:
                raise


# --- the network


class SimLink:
    """A front's link to a shard's leader: in order while it lasts, lost with it, and doubting at times."""

    def __init__(self, world: World, front: str, shard: str) -> None:
        self.world = world
        self.front = front
        self.shard = shard
        self.leader: Leader | None = None
        self.epoch = 0
        self._generation = 0
        self._there = self._back = 0.0
        self._on_facts: OnFacts | None = None
        self._on_change: OnChange | None = None
        self._outlet: Any = None

    @property
    def up(self) -> bool:
        return self.leader is not None

    def listen(self, on_facts: OnFacts, on_change: OnChange) -> None:
        self._on_facts, self._on_change = on_facts, on_change

    async def run(self) -> None:
        """Attaches to whoever says that it leads; an older leader than one seen is not listened to."""
        rng = self.world.rng
        while True:
            await asyncio.sleep(rng.uniform(0.02, 0.1))
            leaders = [each for each in self.world.leaders[self.shard] if each.leading]
            if self.leader is None and leaders:
                self._attach(rng.choice(leaders))

    def _attach(self, leader: Leader) -> None:
        if leader.epoch < self.epoch:
            return
        self.leader, self.epoch = leader, leader.epoch
        self._generation += 1
        generation = self._generation

        def outlet(facts: Sequence[Fact], epoch: int, sequence: int, now_ms: int) -> None:
            copy = codec.decode_facts(codec.encode_facts(facts))
            self._send_back(generation, lambda: self._hear(epoch, sequence, copy))

        self._outlet = outlet
        leader.add_outlet(self.front, outlet)
        leader.on_drop.append(self.break_off)
        assert self._on_change is not None
        self._on_change(self.shard, True)

    def break_off(self) -> None:
        """The link is gone, with all that is on its way; the leader notices a little later."""
        leader, outlet = self.leader, self._outlet
        if leader is None:
            return
        self.leader = None
        self._generation += 1
        leader.on_drop.remove(self.break_off)
        self.world.loop.call_later(self.world.rng.uniform(0.0, 0.5), self._notice, leader, outlet)
        assert self._on_change is not None
        self._on_change(self.shard, False)

    def _notice(self, leader: Leader, outlet: Any) -> None:
        if leader.remove_outlet(self.front, outlet):
            while leader.leading and leader.carry_out(DetachFront(front=self.front)).more:
                pass

    def _hear(self, epoch: int, sequence: int, facts: list[Fact]) -> None:
        if epoch >= self.epoch and self._on_facts is not None:
            self._on_facts(self.shard, epoch, sequence, facts)

    def _send_back(self, generation: int, deliver: Callable[[], None]) -> None:
        loop = self.world.loop
        self._back = max(self._back + 1e-6, loop.virtual + self.world.rng.uniform(0.0005, 0.03))
        loop.call_at(self._back, lambda: deliver() if generation == self._generation else None)

    async def ask(self, command: Command, seconds: float) -> Committed:
        leader, generation = self.leader, self._generation
        if leader is None:
            raise LinkLost(shard=self.shard, retry_seconds=0.1)
        world = self.world
        future: asyncio.Future[Committed] = world.loop.create_future()
        copy = codec.decode_command(codec.encode_command(command))
        self._there = max(self._there + 1e-6, world.loop.virtual + world.rng.uniform(0.0005, 0.03))
        fate = world.fault(lost=0.02, answer_lost=0.02, twice=0.03)
        if fate != "lost":
            told = None if fate == "answer_lost" else future
            world.loop.call_at(self._there, self._arrive, leader, generation, copy, told)
        if fate == "twice":
            again = self._there + world.rng.uniform(0.001, 2.0)
            world.loop.call_at(again, self._arrive, leader, generation, copy, None)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise AnswerLate(shard=self.shard, retry_seconds=0.1) from None

    def _arrive(self, leader: Leader, generation: int, command: Command, future: Any) -> None:
        if generation != self._generation:
            self._fail(future)
            return
        try:
            submitted = leader.submit(command)
        except Unavailable:
            self._send_back(generation, lambda: self._fail(future))
            return
        except PoisonCommand as error:
            self.world.violate(f"poison: {error} ({error.__cause__!r})")
            return
        submitted.add_done_callback(
            lambda done: self._send_back(generation, lambda: self._answer(done, future))
        )

    def _answer(self, done: asyncio.Future[Committed], future: Any) -> None:
        if done.cancelled() or done.exception() is not None:
            self._fail(future)
        elif future is not None and not future.done():
            self.world.check_block(done.result().shard, done.result().epoch, done.result().sequence)
            future.set_result(done.result())

    def _fail(self, future: Any) -> None:
        if future is not None and not future.done():
            future.set_exception(LinkLost(shard=self.shard, retry_seconds=0.1))


# --- the world


@dataclass
class Figures:
    """What happened in a run."""

    seed: int
    blocks: int = 0
    openings: int = 0
    connected: int = 0
    abandoned: int = 0
    moved: int = 0
    faults: int = 0
    real_seconds: float = 0.0
    virtual_seconds: float = 0.0


@dataclass
class World:
    """Everything of one run."""

    seed: int
    loop: VirtualLoop
    journal_class: type[SimJournal] = SimJournal
    faulty: bool = True
    failure: str = ""
    leaders: dict[str, list[Leader]] = field(default_factory=dict)
    fronts: list[Front] = field(default_factory=list)
    links: list[SimLink] = field(default_factory=list)
    journals: list[SimJournal] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    #: Calls whose edge has seen the end.
    done: set[str] = field(default_factory=set)
    connected_calls: dict[str, str] = field(default_factory=dict)
    replicas: dict[str, ShardState] = field(default_factory=dict)
    #: Events by (shard, sequence).
    events: dict[tuple[str, int], list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = VirtualClock(self.loop)
        self.cluster = Cluster(self)
        self.figures = Figures(self.seed)
        self.replicas = {shard: ShardState(shard) for shard in SHARDS}
        self.failed = self.loop.create_future()

    def fault(self, **chances: float) -> str:
        """The fault that strikes, by chance; "" for none."""
        draw = self.rng.random()
        for name, chance in chances.items():
            if self.faulty and draw < chance:
                self.figures.faults += 1
                return name
            draw -= chance
        return ""

    def violate(self, what: str) -> None:
        """Remembers the first violation and ends the run."""
        if not self.failure:
            self.failure = f"at {self.loop.virtual:.3f} s: {what}"
            if not self.failed.done():
                self.failed.set_result(None)

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self.loop.create_task(work, name=getattr(work, "__qualname__", "work"))
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.violate(f"{task.get_name()} failed: {task.exception()!r}")

    # --- invariants

    def committed(self, block: Block) -> None:
        """A block has reached its majority: the journal has no gap, and what it says is possible."""
        before = self.cluster.majority.get((block.shard, block.sequence - 1))
        if block.sequence > 1 and (before is None or before.nonce != block.prev):
            self.violate(f"gap: {block.shard} block {block.sequence} does not follow")
        if not block.opening and before is not None and block.epoch != before.epoch:
            self.violate(f"{block.shard} block {block.sequence} of a deposed leader")
        self.figures.blocks += 1
        self.figures.openings += block.opening
        replica = self.replicas[block.shard]
        decoded = codec.decode_events(block.body, block.now_ms)
        self.events[block.shard, block.sequence] = [event for _, event in decoded]
        for at_ms, event in decoded:
            try:
                evolve(replica, event, at_ms)
            except Exception as error:
                self.violate(f"{block.shard} block {block.sequence} does not apply: {event} {error!r}")
                return
            self._check_event(block.shard, event)
        replica.hot_calls.clear()
        replica.hot_agents.clear()
        self._check_agents(replica)

    def _check_event(self, shard: str, event: Any) -> None:
        if isinstance(event, CallConnected):
            self.figures.connected += 1
            if event.call_id in self.connected_calls:
                there = self.connected_calls[event.call_id]
                self.violate(f"{event.call_id} connected twice: {there} and {shard} {event.offer_id}")
            self.connected_calls[event.call_id] = f"{shard} {event.offer_id}"
        elif isinstance(event, CallEnded):
            self.figures.moved += event.outcome is CallOutcome.MOVED
            self.figures.abandoned += event.outcome is CallOutcome.ABANDONED

    def _check_agents(self, replica: ShardState) -> None:
        for agent_id, agent in replica.agents.items():
            if len(list(agent.holds())) > 1:
                self.violate(f"{agent_id} is booked twice: {sorted(agent.holds())}")
            for call_id in (*agent.offers, *agent.calls):
                other = replica.calls[call_id].agent
                if other != agent_id:
                    self.violate(f"{agent_id} holds {call_id}, which is with {other!r}")

    def check_block(self, shard: str, epoch: int, sequence: int) -> None:
        """What left a leader is in the journal."""
        block = self.cluster.majority.get((shard, sequence))
        if block is None or block.epoch != epoch:
            self.violate(f"{shard} {epoch}:{sequence} was told and is not in the journal")

    def check_update(self, update: Update) -> None:
        """What a client is told follows from a committed block."""
        if isinstance(update.what, Fact) and not isinstance(update.what.event, PositionChanged):
            self.check_block(update.shard, update.epoch, update.sequence)
            if update.what.event not in self.events.get((update.shard, update.sequence), []):
                self.violate(f"told and not decided: {update.what.event}")
        elif isinstance(update.what, Present):
            self.check_block(update.shard, update.epoch, update.sequence)

    def check_rest(self) -> None:
        """With the faults over, every call has ended and no agent is held."""
        missing = sorted({f"c{n}" for n in range(CALLS)} - self.done)
        if missing:
            where = {
                call_id: [
                    (shard, str(entry.state), entry.attached, entry.front, entry.version)
                    for shard, replica in self.replicas.items()
                    if (entry := replica.calls.get(call_id)) is not None
                ]
                for call_id in missing
            }
            self.violate(f"lost or stuck: {where}")
        for shard, replica in self.replicas.items():
            for call_id, entry in replica.calls.items():
                if entry.state is not CallState.ENDED:
                    self.violate(f"{call_id} goes on in {shard} for nobody: {entry.state} at {entry.front}")
            for agent_id, agent in replica.agents.items():
                if list(agent.holds()):
                    self.violate(f"{agent_id} is held by {sorted(agent.holds())}")

    # --- building and running

    def build(self) -> None:
        for shard in SHARDS:
            self.leaders[shard] = []
            for n in range(ROUTERS_PER_SHARD):
                journal = self.journal_class(self.cluster, self)
                self.journals.append(journal)
                leader = Leader(
                    shard=shard,
                    router=f"{shard}-{n}",
                    store=journal,
                    clock=self.clock,
                    options=LeaderOptions(),
                )
                self.leaders[shard].append(leader)
                leader.on_lead.append(functools.partial(self.configure, leader))
                self.start(leader.run())
        for name in ("f", "g"):
            links = {shard: SimLink(self, name, shard) for shard in SHARDS}
            front = Front(
                router=name,
                shards=links,
                clock=self.clock,
                options=FrontOptions(),
                find_overflow=self.find_overflow,
            )
            self.fronts.append(front)
            for link in links.values():
                self.links.append(link)
                self.start(link.run())
            self.start(front.run_overflow())

    def configure(self, leader: Leader) -> None:
        """The directory, as every leader puts it in force."""
        leader.carry_out(ConfigureQueue(queue=QueueConfig(id="service", wrap_up_span_ms=2_000)))
        for n in range(AGENTS_PER_SHARD):
            leader.carry_out(ConfigureAgent(agent=AgentConfig(id=f"{leader.shard}-a{n}")))

    def find_overflow(self, queue: str, region: str, waited_ms: int) -> str | None:
        """Moves more often than is wise."""
        if waited_ms < 1_000 or self.rng.random() > 0.02:
            return None
        return next(shard for shard in SHARDS if shard != region)

    async def run(self) -> None:
        self.build()
        for shard in SHARDS:
            for n in range(AGENTS_PER_SHARD):
                self.start(Seat(self, f"{shard}-a{n}", shard).run())
        for n in range(CALLS):
            self.start(Edge(self, f"c{n}").run())
        self.start(self.trouble())
        try:
            async with asyncio.timeout(FAULTY_SECONDS + REST_SECONDS):
                await self.rest()
        except TimeoutError:
            pass
        if not self.failure:
            self.check_rest()
        await self.stop()

    async def rest(self) -> None:
        """Until the faults are over, every edge is done, and what streams left behind has run out."""
        while self.faulty or len(self.done) < CALLS:
            await asyncio.sleep(0.5)
            if self.failed.done():
                return
        await asyncio.sleep(40.0)

    async def trouble(self) -> None:
        """Breaks things for a while, one after another and at once."""
        while self.loop.virtual < FAULTY_SECONDS:
            await asyncio.sleep(self.rng.uniform(0.1, 1.5))
            self.figures.faults += 1
            match self.rng.choice(["link", "link", "link", "stall", "replication", "replication", "away"]):
                case "link":
                    self.rng.choice(self.links).break_off()
                case "stall":
                    until = self.loop.virtual + self.rng.uniform(0.5, 6.0)
                    self.rng.choice(self.journals).stalled_until = until
                case "replication" if self.cluster.replicating:
                    self.cluster.replicating = False
                    keep = self.rng.random() < 0.5
                    self.loop.call_later(self.rng.uniform(0.1, 3.0), self.cluster.elect, keep)
                case "away":
                    self.cluster.away = True
                    await asyncio.sleep(self.rng.uniform(0.1, 3.0))
                    self.cluster.away = False
        self.faulty = False

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for front in self.fronts:
            await front.close()
        self.figures.virtual_seconds = self.loop.virtual


class Edge:
    """A caller's line: it confirms one offer at a time, and repeats that until a committed yes or no."""

    def __init__(self, world: World, call_id: str) -> None:
        self.world = world
        self.call_id = call_id
        self.attempt = 0
        self.queued_ms = 0

    async def run(self) -> None:
        world = self.world
        await asyncio.sleep(world.rng.uniform(0.0, FAULTY_SECONDS * 0.8))
        patience = world.loop.virtual + world.rng.uniform(10.0, 90.0)
        self.queued_ms = world.clock.now_ms()
        while self.call_id not in world.done:
            if world.loop.virtual > patience:
                await self.hang_up()
                break
            self.attempt += 1
            if not await self.listen(min(patience - world.loop.virtual, self.how_long())):
                await asyncio.sleep(world.rng.uniform(0.05, 0.3))
        world.done.add(self.call_id)

    def how_long(self) -> float:
        """Streams break at times."""
        return self.world.rng.uniform(0.5, 10.0) if self.world.faulty else 1_000.0

    async def listen(self, seconds: float) -> bool:
        """Opens the call at some router and hears it out; whether it has come to its end."""
        world = self.world
        front = world.rng.choice(world.fronts)
        caller = Caller(
            facts=CallFacts(call_id=self.call_id, queue="service"),
            attempt=self.attempt,
            queued_ms=self.queued_ms,
            agent_lost=False,
            auto_confirm=False,
            regions=world.rng.sample(SHARDS, len(SHARDS)),
        )
        stream = front.route(caller)
        until = world.loop.virtual + seconds
        try:
            while True:
                async with asyncio.timeout(max(0.1, until - world.loop.virtual)):
                    update = await anext(stream)
                world.check_update(update)
                # Never cut short: a confirmation once sent is asked to its end before another one.
                if await self.react(front, update):
                    return True
        except (TimeoutError, CallmeshError):
            pass
        finally:
            if world.fault(half_open=0.4) and caller.region:
                world.start(self.close_late(stream))
            else:
                await stream.aclose()
        return False

    async def close_late(self, stream: Any) -> None:
        """The router believes for a while yet that somebody listens."""
        await asyncio.sleep(self.world.rng.uniform(0.5, 8.0))
        await stream.aclose()

    async def react(self, front: Front, update: Update) -> bool:
        what = update.what
        event = what.event if isinstance(what, Fact) else None
        call = None if not isinstance(what, Fact | Present) else what.call
        if call is None or isinstance(event, PositionChanged):
            return False
        ended = isinstance(event, CallEnded) and event.outcome is not CallOutcome.MOVED
        if ended or (event is None and call.state is CallState.ENDED):
            return True
        if isinstance(event, OfferAccepted) or call.state is CallState.ACCEPTED:
            command = ConfirmCall(
                call_id=self.call_id, offer_id=call.offer_id, attempt=call.attempt, move=call.move
            )
            return await self.confirm(front, update.shard, command)
        if call.state is CallState.CONNECTED:
            await self.talk(front, update.shard)
            return True
        return False

    async def confirm(self, front: Front, shard: str, command: ConfirmCall) -> bool:
        while True:
            try:
                committed = await front.confirm(shard, command, 5.0)
            except Unavailable:
                front = self.world.rng.choice(self.world.fronts)
                continue
            if committed.answer.refusal is not None:
                return False
            if self.call_id not in self.world.connected_calls:
                self.world.violate(f"{self.call_id}: told yes, and the journal does not say so")
            await self.talk(front, shard)
            return True

    async def talk(self, front: Front, shard: str) -> None:
        await asyncio.sleep(self.world.rng.uniform(0.5, 6.0))
        while True:
            try:
                await front.end_call(EndCall(call_id=self.call_id), shard, 5.0)
            except Unavailable:
                await asyncio.sleep(0.1)
                continue
            except CallNotFound:
                self.world.violate(f"{self.call_id}: acknowledged and forgotten")
            break
        self.world.done.add(self.call_id)

    async def hang_up(self) -> None:
        while True:
            try:
                await self.world.rng.choice(self.world.fronts).hang_up(self.call_id, 0, "", 5.0)
                return
            except CallNotFound:
                return
            except CallmeshError:
                await asyncio.sleep(0.1)


class Seat:
    """An agent's desktop."""

    def __init__(self, world: World, agent: str, region: str) -> None:
        self.world = world
        self.agent = agent
        self.region = region
        self.session = self.command = 1
        self.held: set[str] = set()

    async def run(self) -> None:
        world = self.world
        while True:
            front = world.rng.choice(world.fronts)
            desk = Desk(
                agent=self.agent,
                session=self.session,
                command=self.command,
                region=self.region,
                presence=Presence.AVAILABLE,
                pause_reason="",
                calls_held=tuple(sorted(self.held)),
            )
            try:
                await front.open_desk(desk)
                seconds = world.rng.uniform(2.0, 15.0) if world.faulty else 1_000.0
                async with asyncio.timeout(seconds):
                    await self.work(front, desk)
            except (CallmeshError, TimeoutError):
                pass
            finally:
                front.spawn(front.close_desk(desk, log_out=False))
            await asyncio.sleep(world.rng.uniform(0.1, 2.0))
            self.command += 1
            if world.rng.random() < 0.5:
                self.session, self.command = self.session + 1, 1

    async def work(self, front: Front, desk: Desk) -> None:
        while True:
            update = await desk.updates.get()
            if isinstance(update, CallmeshError):
                raise update
            self.world.check_update(update)
            if isinstance(update.what, Fact):
                self.react(front, update.what.event)

    def react(self, front: Front, event: Any) -> None:
        if getattr(event, "agent", self.agent) != self.agent:
            return
        if isinstance(event, CallOffered):
            wanted: Command | None = AcceptOffer(
                agent=self.agent, session=self.session, offer_id=event.offer_id
            )
            draw = self.world.rng.random()
            if draw < 0.1:
                wanted = DeclineOffer(agent=self.agent, session=self.session, offer_id=event.offer_id)
            if draw < 0.9:
                front.spawn(self.say(front, wanted, self.world.rng.uniform(0.05, 3.0)))
        elif isinstance(event, CallConnected):
            self.held.add(event.call_id)
        elif isinstance(event, CallEnded):
            self.held.discard(event.call_id)
            done = FinishWrapUp(agent=self.agent, session=self.session, call_id=event.call_id)
            front.spawn(self.say(front, done, self.world.rng.uniform(0.1, 3.0)))

    async def say(self, front: Front, command: Any, after: float) -> None:
        await asyncio.sleep(after)
        try:
            await front.ask_patiently(self.region, command, 10.0)
        except CallmeshError:
            pass


# --- runs


@contextmanager
def simulated(journal_class: type[SimJournal], seed: int) -> Iterator[World]:
    """A world in a loop of its own; the leader's clock and dice are the world's."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world = World(seed=seed, loop=loop, journal_class=journal_class)
    before = leader_module.time, leader_module.random
    leader_module.time, leader_module.random = world.clock, world.rng  # type: ignore[assignment]
    try:
        yield world
    finally:
        leader_module.time, leader_module.random = before
        while left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        asyncio.set_event_loop(None)


def simulate(seed: int, journal_class: type[SimJournal] = SimJournal) -> World:
    """One run, start to end."""
    started = time.perf_counter()
    quiet = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[_drop_event])
    try:
        with simulated(journal_class, seed) as world:
            try:
                world.loop.run_until_complete(world.run())
            except Violation as error:
                world.violate(str(error))
            world.figures.real_seconds = time.perf_counter() - started
            return world
    finally:
        structlog.configure(**quiet)


def _drop_event(logger: Any, name: str, event: Any) -> Any:
    raise structlog.DropEvent


def replay_command(seed: int) -> str:
    """What to type to see it again."""
    return f"make sim SEED={seed} RUNS=1"


def test_the_simulation_holds_every_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    """`RUNS` seeds from `SEED` on; the first that fails is printed with the command that replays it."""
    figures: list[Figures] = []
    for seed in range(SEED, SEED + RUNS):
        world = simulate(seed)
        figures.append(world.figures)
        if world.failure:
            _report(figures, ok=False)
            pytest.fail(f"seed {seed}: {world.failure}\nreplay: {replay_command(seed)}", pytrace=False)
        with capsys.disabled():
            _print_row(world.figures, first=seed == SEED)
    _report(figures, ok=True)
    assert sum(each.connected for each in figures) > 0 and sum(each.openings for each in figures) > RUNS * 2


def _print_row(row: Figures, *, first: bool) -> None:
    names = ("seed", "blocks", "openings", "connected", "abandoned", "moved", "faults")
    if first:
        print("\n" + " ".join(f"{name:>9}" for name in (*names, "virtual_s", "real_s")))
    cells = [f"{getattr(row, name):>9}" for name in names]
    print(" ".join([*cells, f"{row.virtual_seconds:>9.1f}", f"{row.real_seconds:>9.2f}"]))


def _report(figures: list[Figures], *, ok: bool) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    totals = {
        name: sum(getattr(row, name) for row in figures)
        for name in ("blocks", "openings", "connected", "abandoned", "moved", "faults", "real_seconds")
    }
    report = {"ok": ok, "runs": len(figures), "seed_first": SEED, "seed_last": figures[-1].seed, **totals}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


def test_a_seed_replays() -> None:
    """The same seed, the same history: block by block, but for the nonces."""

    def history(world: World) -> list[tuple[Any, ...]]:
        blocks = world.cluster.majority.values()
        return sorted((b.shard, b.sequence, b.epoch, b.now_ms, b.body) for b in blocks)

    first, second = simulate(SEED), simulate(SEED)
    assert history(first) == history(second)


# --- broken variants


def _accept_connects(state: ShardState, command: AcceptOffer, now_ms: int) -> Decision:
    """Broken: the agent's accept connects, and nobody asks the edge."""
    decision = _ACCEPT(state, command, now_ms)
    for event in list(decision.events):
        if isinstance(event, OfferAccepted):
            connected = CallConnected(call_id=event.call_id, offer_id=event.offer_id, agent=event.agent)
            decision.events.append(connected)
    return decision


_ACCEPT = engine._DECIDE[AcceptOffer]


def caught(journal_class: type[SimJournal], needle: str) -> str:
    """What the first seed that catches a variant says."""
    for seed in range(1, SEEDS_TO_CATCH + 1):
        failure = simulate(seed, journal_class).failure
        if needle in failure:
            return failure
    return ""


def test_accept_taken_as_connect_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine._DECIDE, AcceptOffer, _accept_connects)
    assert caught(SimJournal, "connected twice")


def test_own_duplicate_key_taken_as_committed_is_caught() -> None:
    assert caught(TrustingJournal, "is not in the journal")
