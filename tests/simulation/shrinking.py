"""A failing plan made short: parts are left out as long as what is left still fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulation.plan import Plan
from tests.simulation.world import World, simulate

#: Runs that shrinking may take.
RUNS_MAX = 150


class Shrinker:
    """Leaves out calls, faults and small troubles, many at once first, then one by one."""

    def __init__(
        self, failing: Plan, run: Callable[[Plan], World] = simulate, runs_max: int = RUNS_MAX
    ) -> None:
        """`failing` fails under `run`; AssertionError when it does not."""
        self._run = run
        self.runs_left = runs_max
        self.plan = failing
        self.world = run(failing)
        assert self.world.failure, "a plan that holds cannot be shrunk"

    def shrink(self) -> World:
        """The world of the shortest plan found; its `plan` and `failure` say the rest."""
        before = None
        while before != self._size() and self.runs_left > 0:
            before = self._size()
            self._leave_out(len(self.plan.calls), lambda some: self.plan.without(calls=some))
            self._leave_out(len(self.plan.faults), lambda some: self.plan.without(faults=some))
            for kind in [kind for kind, chance in self.plan.chances.items() if chance]:
                self._try(replace(self.plan, chances={**self.plan.chances, kind: 0.0}))
            strikes = list(self.world.strikes)
            self._leave_out(len(strikes), lambda some, all_=strikes: self._mute(all_, some))
        return self.world

    def _size(self) -> tuple[int, ...]:
        return (len(self.plan.calls), len(self.plan.faults), len(self.world.strikes))

    def _mute(self, strikes: list[str], some: frozenset[int]) -> Plan:
        return replace(self.plan, muted=self.plan.muted | {strikes[i] for i in some})

    def _leave_out(self, count: int, without: Callable[[frozenset[int]], Plan]) -> None:
        """Tries to leave out halves, quarters, … and at last single ones of `count` parts."""
        width = count
        while width >= 1:
            at = 0
            while at < count and self.runs_left > 0:
                some = frozenset(range(at, min(at + width, count)))
                if self._try(without(some)) and without.__defaults__ is None:
                    # Parts are numbered anew; what follows has moved up.
                    count -= len(some)
                else:
                    at += width
            width //= 2

    def _try(self, shorter: Plan) -> bool:
        if self.runs_left <= 0:
            return False
        self.runs_left -= 1
        world = self._run(shorter)
        if world.failure:
            self.plan, self.world = shorter, world
        return bool(world.failure)


def explain(world: World) -> str:
    """A shrunken run, to be read: what is left of its plan, what happened, what was violated."""
    plan = world.plan
    lines = [f"{len(plan.calls)} calls, {len(plan.faults)} faults, {len(world.strikes)} small troubles:"]
    lines += [f"  {call}" for call in plan.calls]
    lines += [f"  {fault}" for fault in plan.faults]
    lines += [f"  {strike}" for strike in world.strikes]
    return "\n".join([*lines, "the end of its history:", *world.told(), f"VIOLATION {world.failure}"])
