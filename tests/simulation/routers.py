"""A router as a process of the simulation: the product's own leaders, front, links, use cases and
servicers, put together as `routing.server` does, over the simulated store and network.

Left out: placement by geography and load (which region is tried first, and which call overflows, is drawn;
both happen far more often than is wise), crm's profiles, and the sending of events (relays.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.simulation.agenda import Process
from tests.simulation.cluster import STORE
from tests.simulation.network import Channel, Host
from tests.simulation.plan import LEAD_LISTS, ROUTERS

from chassis.client import Dialer
from chassis.clock import SystemClock
from chassis.errors import Unavailable
from routing import leader as leader_module
from routing import model
from routing.callers import STRANGER, KnownCaller
from routing.committed import Committed, PoisonCommand, ShardBusy
from routing.continuing import ContinueOptions, Continuing
from routing.directory import Snapshot, follow
from routing.front import Front, FrontOptions
from routing.handlers import Handlers
from routing.hold_peers import GrpcHoldPeers
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.links import Routers, ShardLink
from routing.model import AgentConfig, Fact, QueueConfig
from routing.peers import PeerTable
from routing.regions import RegionConfig, Regions
from routing.seizure import Seizer
from routing.servicer import ShardServicer, bindings
from routing.supervision_servicer import supervision_binding
from routing.tokens import PlaceTokens
from routing.witnesses import Witnesses

if TYPE_CHECKING:
    from tests.simulation.world import World

QUEUE = QueueConfig(
    id="service", ring_span_ms=4_000, wrap_up_span_ms=2_000, reject_delay_span_ms=500, missed_offers_max=6
)
DIRECTORY_POLL_SECONDS = 0.5
#: Key of the place tokens, of the whole platform.
KEY = b"the simulation's key, of 32 bytes or more"


class WatchedLeader(Leader):
    """The product's leader; the world hears of commands that it fails on."""

    world: World
    process: Process
    _patience = 0.0
    #: When it last heard of its shard's leader, true seconds.
    _heard = 0.0

    def _apply(self, block: Any) -> None:
        super()._apply(block)
        self._heard = self.world.agenda.now

    def _patience_seconds(self) -> float:
        self._patience = super()._patience_seconds()
        return self._patience

    async def _opening_block(self) -> Any:
        if not self._seizing:
            self.world.auditor.opens(
                self.process, self.shard, max(self._heard, self.process.born), self._patience
            )
        return await super()._opening_block()

    def _release(self, batch: Any, block: Any) -> None:
        if not self.durable:
            self.world.auditor.from_memory(self.process, block)
        self.world.auditor.check_place(
            self.shard, self.epoch, block.sequence, "released", durable=self.durable
        )
        super()._release(batch, block)

    def _check(self, command: model.Command) -> None:
        new = isinstance(command, model.PlaceCall) and command.facts.call_id not in self.state.calls
        waiting, room = len(self._pending), leader_module.PENDING_MAX
        try:
            super()._check(command)
        except ShardBusy:
            self.world.counts["refused in a full house"] += 1
            if not new and waiting < 2 * room:
                self.world.violate(
                    f"{type(command).__name__} is refused with {waiting} waiting, as new calls"
                )
            raise
        if new and self.leading and waiting >= room:
            self.world.violate(f"a new call is taken with {waiting} waiting")

    def _decide(self, command: model.Command) -> Any:
        try:
            return super()._decide(command)
        except PoisonCommand as error:
            self.world.poisoned(command, error)
            raise


class WatchedFront(Front):
    """The product's front; whatever reaches it from leaders is held against the journal."""

    world: World

    def watch(self, world: World) -> None:
        """Whatever is asked from now on, by whichever part of the front, is looked at."""
        self.world, ask = world, self.shards.ask

        async def watched(region: str, command: model.Command, seconds: float | None = None) -> Committed:
            newest = world.auditor.newest(region)
            committed = await ask(region, command, seconds)
            world.auditor.answered(committed, newest)
            return committed

        self.shards.ask = watched

    def _on_facts(self, shard: str, epoch: int, sequence: int, facts: Sequence[Fact]) -> None:
        for fact in facts:
            self.world.auditor.told(shard, epoch, sequence, fact, durable=self._ports[shard].durable)
        super()._on_facts(shard, epoch, sequence, facts)


class WatchedLink(ShardLink):
    """The product's link; whom it listens to is held against what it has heard."""

    world: World
    newest_epoch = 0

    def _take(self, message: Any) -> None:
        if message.epoch < self.newest_epoch:
            self.world.violate(
                f"{self._front} listens to epoch {message.epoch} of {self.shard} after {self.newest_epoch}"
            )
        self.newest_epoch = message.epoch
        super()._take(message)


class DrawnRegions(Regions):
    """Which region a call is for is drawn; moves are more frequent than is wise."""

    def __init__(self, world: World, clock: SystemClock, name: str) -> None:
        super().__init__(PeerTable(clock, 3.0), clock)
        self._rng = world.rng(f"regions {name}")
        self._shards = world.plan.shards
        self._restless = self._rng.choice((0.0, 0.01, 0.04))
        self._faulty = lambda: world.faulty

    def order(self, request: Any, located: Any, queue: str, ties: Any = None) -> Any:
        return SimpleNamespace(regions=self._rng.sample(self._shards, len(self._shards)), home="")

    def find_overflow(
        self, queue: str, region: str, waited_ms: int, language: str, besides: Any = (), **more: Any
    ) -> str | None:
        if self.leaves(region):
            return next((shard for shard in self._shards if not self.leaves(shard)), None)
        if waited_ms < 1_000 or not self._faulty() or self._rng.random() >= self._restless:
            return None
        return self._rng.choice([shard for shard in self._shards if shard != region])


class Directory:
    """The directory in the store; what it says may be changed during a run."""

    def __init__(self, world: World, machine: str) -> None:
        self._world = world
        self._machine = machine

    async def version(self) -> int:
        network, cluster = self._world.network, self._world.cluster
        if cluster.down or network.blocked(self._machine, STORE) or network.blocked(STORE, self._machine):
            raise Unavailable(why="the directory cannot be read just now", retry_seconds=1.0)
        return self._world.directory_version

    async def snapshot(self, region: str) -> Snapshot:
        version = await self.version()
        draining = self._world.draining
        return Snapshot(
            version=version,
            regions=tuple(
                RegionConfig(
                    id=shard,
                    latitude=30.0,
                    longitude=110.0,
                    draining=shard in draining,
                    move_waiting=shard in draining,
                    lead_list=self._world.lead_lists[shard],
                )
                for shard in self._world.plan.shards
            ),
            queues=(QUEUE,),
            skills=frozenset(),
            agents=tuple(
                AgentConfig(id=agent) for agent, home in self._world.agent_homes.items() if home == region
            ),
        )

    async def region_of(self, agent: str) -> str | None:
        await self.version()
        return self._world.agent_homes.get(agent)


class NoProfiles:
    """Nobody is known."""

    async def caller(self, number: str) -> KnownCaller:
        return STRANGER


class Router:
    """One router from its start to its death; a restart makes another one of the same name."""

    def __init__(self, world: World, name: str, *, rate: float = 1.0, wall_offset_ms: int = 0) -> None:
        self.world = world
        self.name = name
        self.region = name.rpartition("-")[0]
        self.process = Process(world.agenda, name, rate=rate, wall_offset_ms=wall_offset_ms)
        self.leaders: dict[str, Leader] = {}
        with world.inside(self.process):
            self._build()

    def _build(self) -> None:
        world, name = self.world, self.name
        self.clock = SystemClock()
        self.directory = Directory(world, name)
        homes = {shard: [r for r in ROUTERS if r.startswith(shard)] for shard in world.plan.shards}
        self.routers = Routers(name, homes, Dialer(connect=lambda address, _: self._channel(address)))
        self.links = {
            shard: WatchedLink(shard, name, self.routers, silent_seconds=1.5) for shard in world.plan.shards
        }
        for link in self.links.values():
            link.world = world
        for shard in world.plan.shards:
            if name in LEAD_LISTS[shard]:
                self._lead(shard)
        self.regions = DrawnRegions(world, self.clock, name)
        self.front = WatchedFront(
            router=name,
            shards=self.links,
            clock=self.clock,
            options=FrontOptions(),
            find_overflow=self.regions.find_overflow,
            deserted=self.regions.deserted,
            find_agent=self.directory.region_of,
            leaves=self.regions.leaves,
        )
        self.front.watch(world)
        self.queues: dict[str, QueueConfig] = {}
        shared: dict[str, Any] = {}
        if hasattr(Leader, "platform_ms"):
            shared["platform_now_ms"] = self.leaders[self.region].platform_ms
        self.handlers = Handlers(
            front=self.front,
            regions=self.regions,
            tokens=PlaceTokens(KEY, life_span_ms=3_600_000),
            profiles=NoProfiles(),
            agents=self.directory,
            queues=self.queues,
            skills=frozenset(),
            shards=frozenset(world.plan.shards),
            clock=self.clock,
            **shared,
        )
        self.shard_servicer = ShardServicer(self.leaders, name, self._who_leads)
        self._serve()
        self._start()

    def _channel(self, address: str) -> Any:
        return Channel(self.world.network, self.process, address)

    def _lead(self, shard: str) -> None:
        """This router leads a shard, or is a warm standby of it."""
        leader = WatchedLeader(
            shard=shard,
            router=self.name,
            store=self.world.journal(self.world.cluster, self.process),
            clock=self.clock,
            options=LeaderOptions(timing=self.world.plan.timing),
            home=shard == self.region,
        )
        leader.world, leader.process = self.world, self.process
        leader.ask_others = functools.partial(Witnesses(self.routers).newest, shard)
        if self.world.plan.on_outage == "continue":
            options = ContinueOptions(hold_seconds=self.world.plan.hold_seconds)
            leader.continuing = Continuing(leader, GrpcHoldPeers(self.routers), options)
        self.leaders[shard] = leader
        self.links[shard].use_local(leader)

    def _who_leads(self, shard: str) -> str:
        leader = self.leaders.get(shard)
        return leader.opened_by if leader is not None else ""

    def _serve(self) -> None:
        host = Host(self.process)
        nobody: Any = None
        seizer = Seizer(self.leaders, frozenset(self.world.plan.shards), self.name)
        supervision = supervision_binding(nobody, nobody, seizer=seizer)
        for _, add, servicer in (
            *bindings(self.handlers, self.front, self.shard_servicer, nobody),
            supervision,
        ):
            add(servicer, host)
        self.world.network.serve(host)

    def _start(self) -> None:
        for shard, leader in self.leaders.items():
            self._run(leader.run(), f"leader {shard}")
            reader: Any = self.directory
            self._run(
                follow(reader, leader, shard, DIRECTORY_POLL_SECONDS, self._apply), f"directory {shard}"
            )
        self._run(self.front.run_overflow(), "overflow")
        for shard, link in self.links.items():
            self._run(link.run(), f"link {shard}")

    def _run(self, work: Any, name: str) -> None:
        task = self.process.spawn(work, f"{self.name} {name}")
        task.add_done_callback(self._ended)

    def _ended(self, task: Any) -> None:
        """None of these may end before the process."""
        if not task.cancelled() and not self.world.agenda.over:
            self.world.violate(f"{task.get_name()} ended: {task.exception()!r}")

    def _apply(self, snapshot: Snapshot) -> None:
        self.queues.clear()
        self.queues.update({queue.id: queue for queue in snapshot.queues})
        self.regions.configure(snapshot.regions, {queue.id: 1_000 for queue in snapshot.queues})

    def leads(self, shard: str) -> bool:
        leader = self.leaders.get(shard)
        return self.process.alive and leader is not None and leader.leading

    def drain(self) -> None:
        """As at SIGTERM: clients are sent to other routers."""
        self.front.drain()
        self.shard_servicer.drain()
