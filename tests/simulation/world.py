"""A run: the world of a plan, from its start until everything has come to rest.

world = simulate(draw(17))
world.failure        # "" or the first violation
"""

from __future__ import annotations

import functools
import gc
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any
from unittest.mock import patch

import structlog
from tests.simulation import rare
from tests.simulation.agenda import WORLD, Agenda, Process, Spinning
from tests.simulation.cluster import Cluster, SimJournal
from tests.simulation.desktops import Desktop, Seat
from tests.simulation.edges import Edge, Line
from tests.simulation.endings import Ending
from tests.simulation.faults import Trouble
from tests.simulation.invariants import Auditor
from tests.simulation.keepers import KEEPERS, Keeper
from tests.simulation.network import Network
from tests.simulation.plan import EDGES, FAULTY_SECONDS, LEAD_LISTS, REST_SECONDS, ROUTERS, Plan, agents
from tests.simulation.poison import Poisoned, poisoned
from tests.simulation.relays import RELAYS, Broker, ClusterCursors, Relay
from tests.simulation.routers import Router

from routing import digests, front, leader
from routing.deciders import agents as agents_decider
from routing.deciders import calls, configuration, timers
from routing.journal import Block

#: After the last line is done, streams and graces run out for this long.
SETTLE_SECONDS = 30.0
#: A digest stands in every so many blocks; in life in every thousandth.
DIGEST_BLOCKS = 10
#: Entries a step and events a block in a tight run.
TIGHT_STEP, TIGHT_EVENTS = 2, 6
#: Whose steps a tight run makes small.
STEPPING = (front, agents_decider, calls, configuration, timers)
#: Lines of the history that a failure shows.
HISTORY_LINES = 60


class World:
    """Everything of one run."""

    def __init__(self, plan: Plan, journal: type[SimJournal] = SimJournal) -> None:
        self.plan = plan
        self.journal = journal
        self.agenda = Agenda()
        self.failure = ""
        self.steps = 0
        self.counts: Counter[str] = Counter()
        #: Faults that struck, by kind; small troubles that struck, by name.
        self.struck: Counter[str] = Counter()
        self.strikes: list[str] = []
        #: (virtual second, who, what, events of a block).
        self.history: list[tuple[float, str, str, Any]] = []
        self.faulty = True
        #: When the faults were over.
        self.calm_since = inf
        #: Broken on purpose: keepers prune openings, too.
        self.prunes_openings = False
        #: Broken on purpose: an edge that hears no answer to its confirmation takes itself for free.
        self.edges_give_up = False
        self.draining: set[str] = set()
        self.directory_version = 1
        #: As the directory has them; the journals' own may lag behind.
        self.lead_lists = dict(LEAD_LISTS)
        #: Region that each agent belongs to.
        self.agent_homes = {agent: agent.rpartition("-")[0] for agent in agents()}
        self._poisons = {call.call_id: call.poison for call in plan.calls if call.poison}
        self.ending: Ending | None = None
        self._rngs: dict[str, random.Random] = {}
        self._draws: defaultdict[str, int] = defaultdict(int)
        self._generations: Counter[str] = Counter()
        self.auditor = Auditor(self)
        self.broker, self.cursors = Broker(self), ClusterCursors(self)
        self.network = Network(self)
        self.cluster = Cluster(self)
        self.routers: dict[str, Router] = {}
        self.edges: dict[str, Edge] = {}
        self.seats = {agent: Seat(agent) for agent in agents()}
        self.desktops: dict[str, Desktop] = {}
        self.lines: dict[str, Line] = {}
        #: Processes that are gone; kept, so that nothing of them is finalised in the middle of the run.
        self.processes: list[Process] = []
        self.trouble = Trouble(self)
        self.operator = rare.Operator(self)

    # --- chance

    def rng(self, name: str) -> random.Random:
        """Dice of one part of the world: leaving out another part does not change what they throw."""
        found = self._rngs.get(name)
        if found is None:
            found = self._rngs[name] = random.Random(f"{self.plan.seed} {name}")
        return found

    def strike(self, kind: str, who: str) -> bool:
        """Whether a small trouble strikes."""
        chance = self.plan.chances.get(kind, 0.0)
        if not chance or not self.faulty:
            return False
        key = f"{kind} {who}"
        self._draws[key] += 1
        if self.rng(key).random() >= chance:
            return False
        name = f"{key} #{self._draws[key]}"
        if name in self.plan.muted:
            return False
        self.struck[kind] += 1
        self.strikes.append(name)
        return True

    def generation(self, name: str) -> int:
        """How many of that name there were."""
        self._generations[name] += 1
        return self._generations[name]

    # --- what is seen

    def step(self) -> None:
        """One event of the world was handled: a message or an answer of the store arrived, a client or a
        fault acted. Timers and polls do not count.
        """
        self.steps += 1

    def violate(self, what: str) -> None:
        """Remembers the first violation and ends the run."""
        if not self.failure and not self.agenda.over:
            self.failure = f"at {self.agenda.now:.3f} s: {what}"

    def note(self, who: str, what: str, events: Any = ()) -> None:
        """A line of the history."""
        self.history.append((self.agenda.now, who, what, events))

    def told(self, last: int = HISTORY_LINES) -> list[str]:
        """The end of the history, to be read; empty blocks are passed over."""
        lines = [row for row in self.history if row[3] or "block" not in row[2]][-last:]
        return [
            f"{at:8.3f} {who:12} {what} " + "; ".join(str(event) for _, event in events)
            for at, who, what, events in lines
        ]

    def reach(self, point: str, process: Process, block: Block | None) -> None:
        """A process reaches a point of the journal: a fault may wait for it."""
        if self.faulty:
            self.trouble.reached(point, process)

    def poison_of(self, call_id: str) -> str:
        """How the engine fails on a call; "" when it does not."""
        return self._poisons.get(call_id, "")

    def poisoned(self, command: Any, error: Exception) -> None:
        """The engine failed on a command."""
        if not isinstance(error.__cause__, Poisoned):
            self.violate(f"poison: {command} {error.__cause__!r}")

    # --- parts

    @contextmanager
    def inside(self, process: Process) -> Iterator[None]:
        """Runs the block as that process's code."""
        self.processes.append(process)
        before, Process.current = Process.current, process
        try:
            yield
        finally:
            Process.current = before

    def start_router(self, name: str) -> None:
        """Starts a router, unless one of that name runs."""
        if name in self.routers and self.routers[name].process.alive:
            return
        offset_ms = self.trouble.wall_offsets.get(name, 0)
        self.routers[name] = Router(
            self, name, rate=self.trouble.rates.get(name, 1.0), wall_offset_ms=offset_ms
        )

    def start_edge(self, name: str) -> None:
        """Starts an edge, without lines, unless one of that name runs."""
        if name in self.edges and self.edges[name].process.alive:
            return
        self.edges[name] = Edge(self, name)
        self.processes.append(self.edges[name].process)

    def start_desktop(self, agent: str) -> None:
        name = f"desk-{agent}"
        self.desktops[agent] = Desktop(self, self.seats[agent], name)
        self.processes.append(self.desktops[agent].process)

    def crash(self, process: Process, silent: bool) -> None:
        """Kill -9, or (`silent`) the power goes."""
        process.crash()
        self.network.lose(process, silent)

    # --- the run

    def run(self) -> None:
        for name in ROUTERS:
            self.start_router(name)
        for number in range(KEEPERS):
            Keeper(self, f"keeper-{number}")
        for number in range(RELAYS):
            Relay(self, f"relay-{number}")
        for name in EDGES:
            self.start_edge(name)
        for agent in self.seats:
            self.start_desktop(agent)
        for call in self.plan.calls:
            self.agenda.at(call.at, WORLD, self._ring, call)
        for fault in self.plan.faults:
            self.agenda.at(fault.at, WORLD, self.trouble.strike, fault)
        self.agenda.run(FAULTY_SECONDS, self._failed)
        self.faulty, self.calm_since = False, self.agenda.now
        self.trouble.end()
        if self.plan.ending and not self._failed():
            self.ending = Ending(self)
            self.ending.run()
            return
        limit = FAULTY_SECONDS + REST_SECONDS
        self.agenda.run(limit, lambda: self._failed() or self._all_done())
        self.agenda.run(self.agenda.now + SETTLE_SECONDS, self._failed)
        if not self.failure:
            self._check_end()

    def _ring(self, call: Any) -> None:
        self.step()
        self.auditor.rang_ms[call.call_id] = self.cluster.now_ms()
        self.edges[call.edge].take(call)

    def _failed(self) -> bool:
        if self.agenda.unhandled:
            self.violate(self.agenda.unhandled[0])
        return bool(self.failure)

    def _all_done(self) -> bool:
        return all(line.end or not line.edge.process.alive for line in self.lines.values())

    def _check_end(self) -> None:
        for call_id, line in self.lines.items():
            if not line.edge.process.alive:
                continue
            outcomes = self.auditor.outcomes(call_id)
            if not line.end:
                where = [
                    (shard, str(entry.state), entry.attached, entry.front, entry.version)
                    for shard, replica in self.auditor.replicas.items()
                    if (entry := replica.calls.get(call_id)) is not None
                ]
                self.violate(f"{call_id} lost or stuck: {where}, attempt {line.attempt}")
            elif self.auditor.excused(call_id):
                # Told from memory, with `durable=false`, and never written down.
                self.counts["excused"] += 1
            elif line.end == "served" and call_id not in self.auditor.connected:
                self.violate(f"{call_id} was served, says its edge; the journal says {outcomes}")
            elif line.acknowledged and not outcomes:
                self.violate(f"{call_id} was acknowledged, and no shard knows it")
            self.counts[f"line {line.end}"] += 1
        self.auditor.final()
        self.broker.check_end()

    def close(self) -> None:
        """Ends what is left, in peace."""
        self.agenda.over = True
        rare.restore()
        for router in self.routers.values():
            self.processes.append(router.process)
        for process in dict.fromkeys(self.processes):
            process.bury()


# --- the surroundings of a run


class MachineTime:
    """In place of the `time` module: the clock of the machine whose code runs."""

    @staticmethod
    def monotonic() -> float:
        return _machine().monotonic()

    perf_counter = monotonic
    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    @staticmethod
    def clock_gettime(clock: int) -> float:
        return _machine().boottime()

    @staticmethod
    def time_ns() -> int:
        return _machine().wall_ms() * 1_000_000

    @staticmethod
    def time() -> float:
        return _machine().wall_ms() / 1000


def _machine() -> Process:
    assert Process.current is not None, "some code asks for the time outside of every process"
    return Process.current


class MachineRandom:
    """In place of the `random` and `secrets` modules: the run's own dice."""

    def __init__(self, rng: random.Random) -> None:
        self.uniform, self.random, self.choice = rng.uniform, rng.random, rng.choice
        self.randint, self.sample, self.shuffle = rng.randint, rng.sample, rng.shuffle
        self._rng = rng

    def token_hex(self, size: int = 16) -> str:
        return self._rng.randbytes(size).hex()

    def token_bytes(self, size: int = 16) -> bytes:
        return self._rng.randbytes(size)


_MODULES = ("routing.", "chassis.clock", "chassis.callcontext")


@contextmanager
def surroundings(seed: int) -> Iterator[None]:
    """Clocks and dice of the product's modules are the run's; logs are silent; the collector waits."""
    import secrets

    dice = MachineRandom(random.Random(f"{seed} product"))
    stand_ins: dict[Any, Any] = {time: MachineTime, random: dice, secrets: dice}
    patched: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if not name.startswith(_MODULES) or module is None:
            continue
        for attribute in ("time", "random", "secrets"):
            genuine = getattr(module, attribute, None)
            if genuine in (time, random, secrets):
                patched.append((module, attribute, genuine))
                setattr(module, attribute, stand_ins[genuine])
    quiet = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    gc.disable()
    try:
        with ExitStack() as stack:
            stack.enter_context(patch.object(digests, "DIGEST_BLOCKS", DIGEST_BLOCKS))
            yield
    finally:
        gc.enable()
        structlog.configure(**quiet)
        for module, attribute, genuine in patched:
            setattr(module, attribute, genuine)


@contextmanager
def bounds(plan: Plan) -> Iterator[None]:
    """A tight run has small blocks and steps."""
    with ExitStack() as stack:
        for module in STEPPING if plan.tight else ():
            stack.enter_context(patch.object(module, "STEP_ENTRIES_MAX", TIGHT_STEP))
        if plan.tight:
            stack.enter_context(patch.object(leader, "EVENTS_PER_BLOCK_MAX", TIGHT_EVENTS))
        yield


def simulate(
    plan: Plan, journal: type[SimJournal] = SimJournal, tweak: Callable[[World], None] | None = None
) -> World:
    """One run, start to end."""
    with surroundings(plan.seed):
        world = World(plan, journal)
        if tweak is not None:
            tweak(world)
        try:
            with bounds(plan), poisoned(world):
                world.run()
        except Spinning as error:
            world.violate(str(error))
        finally:
            world.close()
    return world


replay_command: Callable[[int], str] = functools.partial("make sim SEED={} RUNS=1".format)
