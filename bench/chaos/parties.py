"""Edges and desktops of the chaos commands: those of the demo, spread over several routers of one region,
and the judgement of their books.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from bench.chaos.floor import POLL_SECONDS, QUEUE, REGION, Floor, eventually, furnish

from callmesh.routing.v1 import agent_pb2, call_pb2, routing_pb2_grpc
from callmesh_sdk.servers import Homing, Return
from callmesh_sdk.watch import Watch
from chassis.clock import SystemClock
from cli.demo.agent import AgentContext, Desktop
from cli.demo.edge import Edge, EdgeContext
from cli.demo.ledger import (
    Conversation,
    Fact,
    Ledger,
    conversations,
    double_booked,
    lost_calls,
    untaken_calls,
)
from cli.demo.media import Media
from cli.demo.model import DayCall, Duty
from cli.demo.rpc import CHANNEL_OPTIONS, Channels, StreamEnded, facts_of
from cli.demo.timing import ReplayClock

#: Business time of the parties runs so fast; the routers' runs as ever. An agent picks up and wraps up in a
#: tenth of a second then.
SPEED = 10.0
#: Longer than any run, business seconds.
END_OF_DUTY = 86_400.0 * SPEED
#: Real seconds of a conversation with its after-call work, and of a caller's patience.
SERVICE_SECONDS, PATIENCE_SECONDS = 1.2, 60.0
#: When a router is there and silent. All edges and desktops share one process and one connection a router,
#: and two cores with what they measure: less patient ones (chassis.client has what is right for one of them)
#: took routers for dead that were only late.
KEEPALIVE_OPTIONS = (
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # gRPC's own pings stand in for the keepalive and wait a minute by default.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
)
#: When desktops go back to a router that was lost. Here one is lost every few seconds and not once a month:
#: the SDK's own times are fifteen times as long, and it forgives a router that is lost again less soon.
HOMING = Homing(
    ask_seconds=0.3,
    ask_seconds_max=0.6,
    trust_seconds=1.0,
    trust_seconds_max=1.0,
    relapse_seconds=0.0,
    spread_seconds=1.0,
    idle_seconds=0.05,
    look_seconds=0.2,
)
#: All that a desk may be waited for at the end, real seconds: longer than the longest timer (after-call work,
#: 30 s).
STUCK_SECONDS = 40.0


class ChaosChannels(Channels):
    """Channels that notice a router which is there but silent."""

    def __init__(self, addresses: dict[str, str]) -> None:
        options = [*CHANNEL_OPTIONS, *KEEPALIVE_OPTIONS]
        options = [(n, 1_000 if n == "grpc.min_reconnect_backoff_ms" else v) for n, v in options]
        self._channels = {
            name: grpc.aio.insecure_channel(address, options=options) for name, address in addresses.items()
        }


class ChaosEdge(Edge):
    """An edge that notes when an agent was assigned to its call, and in which epoch."""

    def __init__(
        self,
        context: EdgeContext,
        call: DayCall,
        assigned: list[tuple[float, int]],
        stubs: dict[str, routing_pb2_grpc.RoutingServiceStub],
        from_memory: list[float] | None = None,
    ) -> None:
        """`stubs` by router, made when first wanted: all edges' in common, because making one costs as much
        as calling it, and the load runs on the routers' machine. `from_memory` gets the instants at which an
        assignment was told that is in no journal yet.
        """
        super().__init__(context, call)
        self._assigned = assigned
        self._stubs = stubs
        self._from_memory = [] if from_memory is None else from_memory

    def _stub(self, region: str) -> routing_pb2_grpc.RoutingServiceStub:
        if region not in self._stubs:
            self._stubs[region] = super()._stub(region)
        return self._stubs[region]

    async def _on_event(self, event: Any, stream: Any) -> Any:
        if event.WhichOneof("event") == "offered":
            self._assigned.append((time.monotonic(), event.epoch))
            if not event.durable:
                self._from_memory.append(time.monotonic())
        return await super()._on_event(event, stream)


class ChaosDesktop(Desktop):
    """A desktop that knows its region's routers, in its own order, and goes back to its first one as those of
    the SDK do.
    """

    def __init__(
        self,
        context: AgentContext,
        agent: str,
        routers: Sequence[str],
        watch: Watch,
        region: str = REGION,
    ) -> None:
        """`region` is whose building it stands in: it is lost with that."""
        super().__init__(
            context, agent, region, [Duty(agent=agent, start_seconds=0.0, end_seconds=END_OF_DUTY)]
        )
        self._routers = routers
        self._turn = 0
        self._watch = watch
        self._return = Return(watch.servers, routers, watch.homing, self._rng)

    @property
    def at_home(self) -> bool:
        """Whether it sits at its first router."""
        return self.state != "lost" and self.region == self._routers[0]

    def whereabouts(self) -> str:
        """Where it sits and what may keep it there, a line."""
        trusted = [name for name in self._routers if self._watch.servers.trusted(name)]
        return (
            f"{self.agent}: {self.state} at {self.region} of {list(self._routers)}, trusts {trusted}, "
            f"idle since {self._idle_since}, refused {self._context.refusals}"
        )

    async def _attached(self, backoff: Any, going_home: asyncio.Task[None]) -> None:
        self.region = self._routers[self._turn % len(self._routers)]
        try:
            await super()._attached(backoff, going_home)
        except StreamEnded as ended:
            self._leave(ended)
            raise

    def _leave(self, ended: StreamEnded) -> None:
        """The stream broke: another router's turn."""
        superseded = ended.error is not None and facts_of(ended.error).code is grpc.StatusCode.ABORTED
        if not superseded:
            self._watch.lost(self.region)
        self._turn = self._routers.index(self._watch.servers.choose(self._routers, self.region))

    def _look_seconds(self) -> float | None:
        if self.at_home:
            return None
        homing, servers = self._watch.homing, self._watch.servers
        waits = self._idle_since is None or servers.home(self._routers, self.region) is None
        return homing.look_seconds if waits else homing.idle_seconds

    def _better(self) -> str | None:
        return self._return.look(self.region, self._idle_since, self._context.clock.monotonic())

    def _no_better(self, region: str) -> None:
        self._watch.lost(region)

    def _on_status(self, status: agent_pb2.AgentStatus) -> None:
        super()._on_status(status)
        if status.state == agent_pb2.AGENT_STATE_WRAP_UP:
            # The end of a conversation, or the word that its after-call work is done, was lost with a stream.
            for call_id in status.calls_held:
                self._spawn(self._wrap_up_again(call_id))

    async def _wrap_up_again(self, call_id: str) -> None:
        held = self._held
        if held is not None and held.call.call_id == call_id:
            self._note(held)
            await self._wrap_up(held)
            return
        said = call_pb2.Disposition(code="resolved", resolved=True)
        await self._send(wrap_up=agent_pb2.AgentCommand.WrapUp(call_id=call_id, disposition=said))


class _Screen:
    """An agent's screen without the other services."""

    async def greet(self, call: call_pb2.Call, agent: str) -> None:
        """Nothing to show."""

    def disposition(self, call: call_pb2.Call) -> call_pb2.Disposition:
        """What came of the call."""
        return call_pb2.Disposition(code="resolved", resolved=True)


@dataclass(kw_only=True, slots=True)
class Verdict:
    """What the books of edges and desktops say."""

    calls: int
    #: Acknowledged, and neither served, given up by the caller, refused nor waiting.
    calls_lost: list[str]
    #: Never acknowledged although the caller stayed.
    calls_untaken: list[str]
    agents_double_booked: dict[str, tuple[str, str]]
    agents_stuck: list[str]
    #: Calls that ended in a whole conversation.
    calls_served: int
    reopened: int


@dataclass(slots=True)
class Crowd:
    """All edges and desktops of a run."""

    addresses: dict[str, str]
    agents: Sequence[str]
    #: What the callers wait in.
    queue: str = QUEUE
    #: How long a caller waits before hanging up, real seconds.
    patience_seconds: float = PATIENCE_SECONDS
    seed: int = 7
    ledger: Ledger = field(default_factory=Ledger)
    #: (when, epoch) of each assignment that an edge heard of.
    assigned: list[tuple[float, int]] = field(default_factory=list)
    #: When an edge heard of an assignment that was in no journal yet.
    from_memory: list[float] = field(default_factory=list)
    desktops: list[ChaosDesktop] = field(default_factory=list)
    _calls: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _edges: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _edge_context: Any = None
    _agent_context: Any = None
    _channels: Any = None
    _watch: Watch | None = None
    _stubs: dict[str, routing_pb2_grpc.RoutingServiceStub] = field(default_factory=dict)

    async def open(self) -> None:
        """Every desktop logs in; returns when all are available."""
        clock = SystemClock(speed=SPEED)
        replay = ReplayClock(clock, clock.now_ms())
        media = Media(dict.fromkeys(self.agents, REGION))
        names = list(self.addresses)
        turned = {name: [*names[i:], *names[:i]] for i, name in enumerate(names)}
        self._channels = ChaosChannels(self.addresses)
        self._watch = Watch(HOMING, lambda name: self._channels[name])
        self._edge_context = EdgeContext(
            channels=self._channels,
            preference={name: order for name, order in turned.items()},
            clock=replay,
            ledger=self.ledger,
            media=media,
            queue_of=lambda kind: f"queues/{self.queue}",
            prefix=f"chaos-{self.seed}-",
            seed=self.seed,
        )
        screen: Any = _Screen()
        self._agent_context = AgentContext(
            channels=self._channels,
            clock=replay,
            media=media,
            service_due=self._edge_context.service_due,
            desk=screen,
            seed=self.seed,
        )
        for number, agent in enumerate(self.agents):
            order = turned[names[number % len(names)]]
            desktop = ChaosDesktop(self._agent_context, agent, order, self._watch)
            self.desktops.append(desktop)
            self._keep(asyncio.ensure_future(desktop.run()))
        if not await eventually(lambda: all(d.state == "available" for d in self.desktops), STUCK_SECONDS):
            raise RuntimeError("the desktops could not log in")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def call(self, service_seconds: float = SERVICE_SECONDS) -> str:
        """One more caller, now; the call's id."""
        self._calls += 1
        rng = random.Random(f"{self.seed}:{self._calls}")
        names = list(self.addresses)
        now = self._edge_context.clock.business()
        call = DayCall(
            id=str(self._calls),
            arrival_seconds=now,
            patience_seconds=self.patience_seconds * SPEED,
            service_seconds=service_seconds * SPEED,
            type="service",
            priority=0,
            customer="",
            number=f"+861381{rng.randrange(10**7):07d}",
            home_region=names[self._calls % len(names)],
        )
        edge = ChaosEdge(self._edge_context, call, self.assigned, self._stubs, self.from_memory)
        task = asyncio.ensure_future(edge.run())
        self._edges[edge.call_id] = task
        task.add_done_callback(lambda _: self._edges.pop(edge.call_id, None))
        self._keep(task)
        return edge.call_id

    async def calls(self, per_second: float, until: asyncio.Event) -> None:
        """Callers at a steady rate, whatever becomes of them, until told to end."""
        began, made = time.monotonic(), 0
        while not until.is_set():
            due = (time.monotonic() - began) * per_second
            while made < due:
                self.call()
                made += 1
            await asyncio.sleep(0.5 / per_second)

    async def lines(self, count: int, until: asyncio.Event) -> None:
        """So many callers at any time, each followed by the next one, until told to end: a load that a slow
        machine makes smaller.
        """
        while not until.is_set():
            while len(self._edges) < count:
                self.call()
            await asyncio.sleep(POLL_SECONDS)

    @property
    def epoch(self) -> int:
        """Newest epoch that an edge has heard of."""
        return max((epoch for _, epoch in self.assigned[-1000:]), default=0)

    def first_assignment(self, after: float, epoch: int) -> float | None:
        """Seconds from an instant to the first assignment after it in an epoch above that."""
        # Newest first: this is asked twenty times a second, by the process that is all edges and desktops.
        since = itertools.takewhile(lambda each: each[0] >= after, reversed(self.assigned))
        return min((at - after for at, e in since if e > epoch), default=None)

    def longest_silence(self, begin: float, end: float) -> float:
        """The longest time without any assignment between two instants."""
        times = sorted(at for at, _ in self.assigned if begin <= at <= end)
        marks = [begin, *times, end]
        return max((b - a for a, b in itertools.pairwise(marks)), default=math.inf)

    async def settle(self) -> None:
        """Until every caller has been served or has given up."""
        await eventually(lambda: not self._edges, self.patience_seconds + STUCK_SECONDS)

    async def roll_call(self) -> list[str]:
        """As many callers as agents at once: every agent must get one. Returns those who do not."""
        idle = await eventually(lambda: all(d.state == "available" for d in self.desktops), STUCK_SECONDS)
        silent = [] if idle else [d.agent for d in self.desktops if d.state != "available"]
        ids = {self.call(service_seconds=STUCK_SECONDS) for _ in self.agents}
        reached: set[str] = set()

        def all_reached() -> bool:
            reached.update(e.agent for e in self.ledger.entries if e.call in ids and e.fact is Fact.BRIDGED)
            return len(reached) == len(self.agents)

        await eventually(all_reached, STUCK_SECONDS / 2)
        return sorted({*silent, *(set(self.agents) - reached)})

    async def spread(self, seconds: float) -> list[str]:
        """Waits for a bounded time until every desktop sits at its first router; of those that do not, where
        they are and why.
        """

        def away() -> list[ChaosDesktop]:
            return [desktop for desktop in self.desktops if not desktop.at_home]

        await eventually(lambda: not away(), seconds)
        return [desktop.whereabouts() for desktop in away()]

    async def close(self) -> None:
        """Everybody goes home."""
        if self._watch is not None:
            await self._watch.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._channels is not None:
            await self._channels.close()

    def unserved(self) -> list[str]:
        """Calls that have not ended in a whole conversation, for whatever reason."""
        by_call = self.ledger.by_call()
        return [call for call, rows in by_call.items() if all(row.fact is not Fact.TALKED for row in rows)]

    def story(self, calls: Sequence[str]) -> list[str]:
        """What the edges' book says of each of these calls, a line each."""
        rows: dict[str, list[str]] = {call: [] for call in calls}
        for entry in self.ledger.entries:
            if entry.call in rows:
                rows[entry.call].append(
                    f"{entry.at:.2f} {entry.fact.value} {entry.region} {entry.why}".strip()
                )
        return [f"{call}: {'; '.join(row)}" for call, row in rows.items()]

    def verdict(self, stuck: list[str]) -> Verdict:
        """What the books say; to be asked when everybody has gone home."""
        edges = conversations(self.ledger)
        desks: list[Conversation] = self._agent_context.book
        facts = [entry.fact for entry in self.ledger.entries]
        return Verdict(
            calls=self._calls,
            calls_lost=lost_calls(self.ledger),
            calls_untaken=untaken_calls(self.ledger),
            agents_double_booked={**double_booked(desks), **double_booked(edges)},
            agents_stuck=stuck,
            calls_served=facts.count(Fact.TALKED),
            reopened=facts.count(Fact.REOPENED),
        )


async def under_load(
    floor: Floor,
    agents: int,
    per_second: float,
    warm_up_seconds: float,
    work: Callable[[Crowd], Awaitable[None]],
) -> tuple[Crowd, list[str], Verdict]:
    """Desks and steady callers while `work` does harm; then everybody is served, counted and goes home. Gives
    the crowd with its books, the calls that were not served, and the verdict.
    """
    async with ChaosChannels(floor.addresses) as channels:
        names = await furnish(channels["r0"], agents, {})
    crowd, done = Crowd(floor.addresses, names), asyncio.Event()
    try:
        await crowd.open()
        load = asyncio.ensure_future(crowd.calls(per_second, done))
        await asyncio.sleep(warm_up_seconds)
        await work(crowd)
        done.set()
        await load
        await crowd.settle()
        unserved = crowd.unserved()
        stuck = await crowd.roll_call()
    finally:
        await crowd.close()
    return crowd, unserved, crowd.verdict(stuck)
