"""What befalls a world now and then only: whole regions, lead lists, operators, agents who change regions,
a full house. `Trouble` (faults.py) carries these out beside its own kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from grpc.aio import AioRpcError
from tests.simulation.agenda import WORLD, Process
from tests.simulation.cluster import STORE
from tests.simulation.network import Channel
from tests.simulation.plan import ALL, LEAD_LISTS, LONE, NONE, ROUTERS, Fault

from callmesh.routing.v1 import supervision_pb2, supervision_pb2_grpc
from routing import leader

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Commands that may wait in a full house.
FULL_PENDING = 2
#: Seconds added to every write of a full house.
FULL_SLOW_SECONDS = 0.6
#: How often the store comes and goes, and how long each of it lasts, virtual seconds.
FLAPS, FLAP_SECONDS = 5, (0.1, 1.4)
#: How long an operator waits for a seizure.
SEIZE_SECONDS = 12.0
PENDING_MAX = leader.PENDING_MAX


def restore() -> None:
    """The product's bounds are what they were."""
    leader.PENDING_MAX = PENDING_MAX


class Operator:
    """Who seizes shards, from a machine of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = Process(world.agenda, "operator")
        world.processes.append(self.process)

    def seize(self, shard: str, router: str) -> None:
        """Asks a router to open a shard at once."""
        self.process.spawn(self._seize(shard, router), f"seize {shard}")

    async def _seize(self, shard: str, router: str) -> None:
        channel: object = Channel(self.world.network, self.process, router)
        stub = supervision_pb2_grpc.SupervisionServiceStub(channel)  # type: ignore[arg-type]
        request = supervision_pb2.SeizeShardRequest(region=f"regions/{shard}", reason="the drill of today")
        try:
            answer = await stub.SeizeShard(request, timeout=SEIZE_SECONDS)
        except AioRpcError as error:
            self.world.counts[f"seizure {error.code().name}"] += 1
            return
        self.world.counts["seizures"] += 1
        self.world.auditor.seized(shard, answer.router, answer.epoch, answer.sequence)


class RareTrouble:
    """The rare kinds."""

    world: World
    _later: Callable[[float, Callable[[], None]], None]
    _cut: Callable[[list[tuple[str, str]], float], None]

    def _lose_region(self, fault: Fault) -> None:
        """All routers of a region die in one moment; at times its backup, too."""
        lost = [name for name in ROUTERS if name.startswith(fault.target)]
        if fault.value < 0.3:
            lost = list(LEAD_LISTS[fault.target])
        for name in lost:
            self.world.crash(self.world.routers[name].process, silent=fault.value > 0.6)
        self._later(fault.seconds, lambda: [self.world.start_router(name) for name in lost])

    def _change_list(self, fault: Fault) -> None:
        """Somebody changes who may lead a shard, and changes it back later."""
        world, shard = self.world, fault.target
        before, rng = world.lead_lists[shard], world.rng("lists")
        world.lead_lists[shard] = tuple(rng.sample(before, rng.randint(1, len(before))))
        world.directory_version += 1

        def back() -> None:
            world.lead_lists[shard] = before
            world.directory_version += 1

        self._later(fault.seconds, back)

    def _seize(self, fault: Fault) -> None:
        self.world.operator.seize(fault.target, fault.other)

    def _move_agent(self, fault: Fault) -> None:
        """An agent belongs to another region from now on, busy or not, and comes back later."""
        world, agent = self.world, fault.target
        home = world.agent_homes[agent]
        # Its session ends by configuration, not by absence.
        world.auditor.logging_out.add(agent)
        world.agent_homes[agent] = next(shard for shard in LEAD_LISTS if shard != home)
        world.directory_version += 1

        def back() -> None:
            world.agent_homes[agent] = home
            world.directory_version += 1

        self._later(fault.seconds, back)

    def _store_away(self, fault: Fault) -> bool:
        """No store for anybody, for long; what was not replicated is kept or lost."""
        cluster = self.world.cluster
        if cluster.down:
            return False
        cluster.down = True
        cluster.elect(fault.value)
        self._later(fault.seconds, self._come)
        return True

    def _away_for_some(self, fault: Fault) -> bool:
        """A leader and some of its standbys, or none of them, do not reach the store; at least one does."""
        rng = self.world.rng("away for some")
        leaders = [name for name, router in self.world.routers.items() if router.leads(fault.target)]
        if not leaders:
            return False
        others = [name for name in LEAD_LISTS[fault.target] if name != leaders[0]]
        away = [leaders[0], *rng.sample(others, rng.randint(0, len(others) - 1))]
        self._cut([pair for name in away for pair in ((name, STORE), (STORE, name))], fault.seconds)
        return True

    def _betray(self, fault: Fault) -> bool:
        """In an outage a leader is cut off from everybody but its clients; its standbys die and come back,
        and find a store that the leader cannot reach.
        """
        world, cluster, rng = self.world, self.world.cluster, self.world.rng("betrayal")
        leaders = [name for name, router in world.routers.items() if router.leads(fault.target)]
        if cluster.down or not leaders:
            return False
        cluster.down = True
        others = [name for name in LEAD_LISTS[fault.target] if name != leaders[0]]

        def betray() -> None:
            if not world.faulty:
                return
            pairs = [(leaders[0], each) for each in (*others, STORE)]
            if fault.other == LONE:
                # The one that it does not reach is the only one that reaches the store.
                pairs = [
                    (leaders[0], others[0]),
                    (leaders[0], STORE),
                    *((each, STORE) for each in others[1:]),
                ]
            self._cut([*pairs, *((b, a) for a, b in pairs)], rng.uniform(2.0, 6.0))
            for name in others:
                if rng.random() < {ALL: 1.0, NONE: 0.0, LONE: 0.0}.get(fault.other, 0.7):
                    world.crash(world.routers[name].process, silent=False)
                    world.agenda.after(0.05, WORLD, world.start_router, name)
            cluster.down = False

        world.agenda.after(rng.uniform(1.5, 5.0), WORLD, betray)
        self._later(fault.seconds, self._come)
        return True

    def _sleep_holding(self, fault: Fault) -> bool:
        """A leader that goes on from memory stands still for about as long as it is held, or longer, while
        the store comes back for the others.
        """
        world, cluster, rng = self.world, self.world.cluster, self.world.rng("sleep holding")
        leaders = [router for router in world.routers.values() if router.leads(fault.target)]
        if cluster.down or not leaders:
            return False
        cluster.down = True

        def fall_asleep() -> None:
            process, seconds = leaders[0].process, rng.uniform(1.5, 8.0)
            if world.faulty and process.alive and not process.frozen:
                process.freeze(seconds)
                world.network.stall(process, seconds)
            cluster.down = False

        world.agenda.after(rng.uniform(1.5, 5.0), WORLD, fall_asleep)
        self._later(fault.seconds, self._come)
        return True

    def _stick_clock(self, fault: Fault) -> None:
        """A machine's clock of holds stands still for a while: what it promised lasts longer."""
        process = self.world.routers[fault.target].process
        process.stuck_at = process.monotonic()

        def runs() -> None:
            process.stuck_at = None

        self._later(fault.seconds, runs)

    def _flap_store(self, fault: Fault) -> bool:
        """The store goes and comes back, again and again."""
        cluster, rng = self.world.cluster, self.world.rng("flaps")
        if cluster.down:
            return False
        at = 0.0
        for _ in range(FLAPS):
            self.world.agenda.after(at, WORLD, self._go)
            at += rng.uniform(*FLAP_SECONDS)
            self.world.agenda.after(at, WORLD, self._come)
            at += rng.uniform(*FLAP_SECONDS)
        self._later(at, self._come)
        return True

    def _go(self) -> None:
        if self.world.faulty and not self.world.cluster.down:
            self.world.cluster.down = True
            self.world.cluster.elect(self.world.rng("flaps").choice((0.0, 0.5, 1.0)))

    def _come(self) -> None:
        self.world.cluster.down = False

    def _full_house(self, fault: Fault) -> None:
        """There is more to commit than a leader may hold."""
        cluster = self.world.cluster
        leader.PENDING_MAX = FULL_PENDING
        cluster.slow_writes += FULL_SLOW_SECONDS

        def roomy() -> None:
            restore()
            cluster.slow_writes = 0.0

        self._later(fault.seconds, roomy)

    def _drain_region(self, fault: Fault) -> None:
        """A region is drained of its calls, with many waiting."""
        world = self.world
        world.draining.add(fault.target)
        world.directory_version += 1

        def resumed() -> None:
            world.draining.discard(fault.target)
            world.directory_version += 1

        self._later(fault.seconds, resumed)

    def _broker_away(self, fault: Fault) -> None:
        broker = self.world.broker
        broker.away = True

        def back() -> None:
            broker.away = False

        self._later(fault.seconds, back)
