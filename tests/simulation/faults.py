"""What befalls the world: each kind of fault is a method that starts it and sees to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.agenda import WORLD, Process
from tests.simulation.cluster import STORE
from tests.simulation.plan import LEAD_LISTS, ROUTERS, Fault
from tests.simulation.rare import RareTrouble

if TYPE_CHECKING:
    from tests.simulation.world import World

#: A wall clock steps by this much, milliseconds.
STEP_MS = 3_600_000
#: A turn of an overloaded process's loop takes up to this, virtual seconds; a heartbeat is due every 0.5.
OVERLOAD_SECONDS_MAX = 1.2


class Trouble(RareTrouble):
    """Carries out a plan's faults."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Of each router's machine; they outlive its processes.
        self.wall_offsets: dict[str, int] = {}
        self.rates: dict[str, float] = dict(world.plan.rates)
        #: Faults that wait for a point: how many more times it must be reached.
        self._waiting: list[tuple[Fault, list[int]]] = []
        #: What must still be undone when the faults are over.
        self._undo: dict[int, Callable[[], None]] = {}
        self._numbers = 0

    def strike(self, fault: Fault) -> None:
        """A fault's time has come."""
        if not self.world.faulty:
            return
        if fault.point:
            self._waiting.append((fault, [fault.nth]))
        else:
            self._begin(fault)

    def _begin(self, fault: Fault) -> None:
        world = self.world
        if world.agenda.over or not world.faulty:
            return
        if getattr(self, f"_{fault.kind}")(fault) is not False:
            world.step()
            world.struck[fault.kind] += 1
            world.note("FAULT", str(fault))

    def reached(self, point: str, process: Process) -> None:
        """A process reaches a point of the journal; a fault that waits for it strikes a moment later."""
        for waiting in list(self._waiting):
            fault, left = waiting
            if fault.point != point or process is not self._process(fault):
                continue
            left[0] -= 1
            if left[0] <= 0:
                self._waiting.remove(waiting)
                process.after_callbacks(fault.callbacks, lambda fault=fault: self._begin(fault))
                return

    def end(self) -> None:
        """The faults are over: everything that they left is mended."""
        self._waiting = []
        while self._undo:
            self._undo.pop(min(self._undo))()

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        """Mends after a while, or when the faults are over, whichever comes first; once."""
        self._numbers += 1
        number = self._numbers
        self._undo[number] = mend

        def due() -> None:
            if self._undo.pop(number, None) is not None:
                mend()

        self.world.agenda.after(seconds, WORLD, due)

    def _process(self, fault: Fault) -> Process | None:
        """The process that a fault of a router, or of a shard's leader, is meant for."""
        if fault.target in ROUTERS:
            return self.world.routers[fault.target].process
        for router in self.world.routers.values():
            if router.leads(fault.target):
                return router.process
        return None

    # --- processes

    def _freeze(self, fault: Fault) -> bool:
        """SIGSTOP for a while."""
        process = self._process(fault)
        if process is None or not process.alive or process.frozen:
            return False
        process.freeze(fault.seconds)
        self.world.network.stall(process, fault.seconds)
        return True

    _freeze_leader = _sleep_sending = _sleep_opening = _freeze

    def _stall(self, fault: Fault) -> bool:
        """All candidates of a shard stand still and go on in the same moment: a machine or its host has no
        time for any of them.
        """
        world = self.world
        processes = [world.routers[name].process for name in LEAD_LISTS[fault.target]]
        for process in [p for p in processes if p.alive and not p.frozen]:
            process.freeze(fault.seconds)
            world.network.stall(process, fault.seconds)
        return True

    def _overload(self, fault: Fault) -> bool:
        """A leader has more to do than time: every few callbacks it stands still for longer than its
        heartbeat.
        """
        process = self._process(fault)
        if process is None or not process.alive or process.frozen:
            return False
        until, rng = self.world.agenda.now + fault.seconds, self.world.rng("overload")

        def lag() -> None:
            if self.world.faulty and self.world.agenda.now < until and process.alive and not process.frozen:
                seconds = rng.uniform(0.1, OVERLOAD_SECONDS_MAX)
                process.freeze(seconds)
                self.world.network.stall(process, seconds)
                process.after_callbacks(rng.choice((1, 5, 20, 60)), lag)

        lag()
        return True

    def _crash(self, fault: Fault) -> bool:
        """Kill -9 or loss of power; started again a while later."""
        process = self._process(fault)
        if process is None or not process.alive:
            return False
        name = process.name
        self.world.crash(process, silent=fault.value < 0.3)
        self._later(fault.seconds, lambda: self.world.start_router(name))
        return True

    _crash_leader = _crash

    def _drain(self, fault: Fault) -> bool:
        """SIGTERM: clients are sent away, then the process ends; started again."""
        router = self.world.routers[fault.target]
        if not router.process.alive or router.process.frozen:
            return False
        world = self.world
        world.agenda.after(0.0, router.process, router.drain)

        def ended() -> None:
            world.crash(router.process, silent=False)
            self._later(fault.seconds, lambda: world.start_router(fault.target))

        self._later(1.0, ended)
        return True

    def _restart_edge(self, fault: Fault) -> bool:
        """An edge dies with all its lines: its callers are gone."""
        edge = self.world.edges[fault.target]
        if not edge.process.alive:
            return False
        self.world.crash(edge.process, silent=fault.value < 0.5)
        self._later(fault.seconds, lambda: self.world.start_edge(fault.target))
        return True

    def _restart_desk(self, fault: Fault) -> bool:
        """A desktop dies; another is started, with a new session, which knows of no call."""
        desktop = self.world.desktops[fault.target]
        if not desktop.process.alive:
            return False
        self.world.crash(desktop.process, silent=fault.value < 0.5)
        self._later(fault.seconds, lambda: self.world.start_desktop(fault.target))
        return True

    def _take_session(self, fault: Fault) -> None:
        """A second desktop of the same agent, while the first one still runs."""
        self.world.start_desktop(fault.target)

    # --- streams and network

    def _break(self, fault: Fault) -> None:
        """Some streams of a router break; each end notices in its own time."""
        network = self.world.network
        process = self.world.routers[fault.target].process
        rng = self.world.rng("break")
        calls = [call for call in network.calls if process in (call.client, call.server)]
        for call in rng.sample(calls, min(len(calls), 1 + int(fault.value * 6))):
            ends = [rng.choice((0.0, rng.uniform(0.0, 8.0))) for _ in range(2)]
            call.break_off(client_seconds=ends[0], server_seconds=ends[1])

    def _cut(self, pairs: list[tuple[str, str]], seconds: float) -> None:
        network = self.world.network
        for pair in pairs:
            network.cut(*pair)

        def mend() -> None:
            for pair in pairs:
                network.mend(*pair)

        self._later(seconds, mend)

    def _directions(self, fault: Fault, a: str, b: str) -> list[tuple[str, str]]:
        """Both ways, or one of them."""
        if fault.value < 0.5:
            return [(a, b), (b, a)]
        return [(a, b)] if fault.value < 0.75 else [(b, a)]

    def _cut_store(self, fault: Fault) -> None:
        """A router, or a whole region, is cut off from the store."""
        machines = [fault.target]
        if fault.callbacks % 2:
            region = fault.target.rpartition("-")[0]
            machines = [router for router in ROUTERS if router.startswith(region)]
        pairs = [pair for machine in machines for pair in self._directions(fault, machine, STORE)]
        self._cut(pairs, fault.seconds)

    def _cut_routers(self, fault: Fault) -> None:
        self._cut(self._directions(fault, fault.target, fault.other), fault.seconds)

    def _cut_clients(self, fault: Fault) -> None:
        """An edge or a desktop does not reach a router, or the other way round."""
        self._cut(self._directions(fault, fault.target, fault.other), fault.seconds)

    def _slow_machine(self, fault: Fault) -> None:
        slow = self.world.network.slow
        slow[fault.target] = 0.02 + 0.3 * fault.value
        self._later(fault.seconds, lambda: slow.pop(fault.target, None))

    # --- store

    def _stall_replication(self, fault: Fault) -> bool:
        """A majority is lost with blocks in flight; then it comes back, or another primary does."""
        cluster = self.world.cluster
        if not cluster.replicating:
            return False
        cluster.replicating = False

        def over() -> None:
            if fault.value < 0.3:
                cluster.heal()
            else:
                cluster.elect((fault.value - 0.3) / 0.7 if fault.value > 0.6 else 0.0)

        self._later(fault.seconds, over)
        return True

    def _store_down(self, fault: Fault) -> bool:
        """No primary; what was not replicated is gone with the last one."""
        cluster = self.world.cluster
        if cluster.down:
            return False
        cluster.down = True
        cluster.elect(fault.value)

        def up() -> None:
            cluster.down = False

        self._later(fault.seconds, up)
        return True

    def _slow_store(self, fault: Fault) -> None:
        cluster = self.world.cluster
        cluster.slow_writes = fault.value

        def fast() -> None:
            cluster.slow_writes = 0.0

        self._later(fault.seconds, fast)

    def _stale_reads(self, fault: Fault) -> None:
        """A router reads from a member that is left behind."""
        cluster = self.world.cluster
        cluster.leave_behind(fault.target)
        self._later(fault.seconds, lambda: cluster.catch_up(fault.target))

    # --- clocks

    def _step_clock(self, fault: Fault) -> None:
        """The wall clock of a machine steps by an hour, and stays there."""
        name = fault.target
        step_ms = STEP_MS if fault.value < 0.5 else -STEP_MS
        self.wall_offsets[name] = self.wall_offsets.get(name, 0) + step_ms
        process: Any = self.world.routers[name].process
        process.wall_offset_ms = self.wall_offsets[name]

    def leaders(self) -> dict[str, list[str]]:
        """Routers that say that they lead, by shard."""
        return {
            shard: [name for name, router in self.world.routers.items() if router.leads(shard)]
            for shard in LEAD_LISTS
        }
