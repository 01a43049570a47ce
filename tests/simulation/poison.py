"""Calls that the engine fails on: it raises when it decides them, when it applies what was decided, when a
timer of theirs is due; or the leader's process dies of them.

What must hold: everybody else is served. A front that has lost two leaders to a command gives it to no third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.simulation.agenda import WORLD, Process

from routing import engine
from routing.model import CallQueued, PlaceCall, Tick
from routing.outlived import OUTLIVED_MAX
from routing.state import evolving, next_deadline

if TYPE_CHECKING:
    from tests.simulation.world import World

#: A router that was killed is started again after this, virtual seconds.
RESTART_SECONDS = (0.5, 3.0)


class Poisoned(Exception):
    """The engine fails, as it was made to."""


def poison_of(facts: Any) -> str:
    """How the engine fails on a call; "" when it does not."""
    return dict(facts.attributes).get("poison", "") if facts is not None else ""


class Poisoner:
    """Stands before the engine's own tables."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Leaders that each front has lost to each call.
        self.killed: Counter[tuple[int, str]] = Counter()

    def place(self, s: Any, command: PlaceCall, now_ms: int) -> Any:
        kind = poison_of(command.facts)
        if kind == "kill":
            self._kill(command)
        if kind in ("decide", "kill"):
            raise Poisoned(command.facts.call_id)
        return _PLACE(s, command, now_ms)

    def _kill(self, command: PlaceCall) -> None:
        world, victim = self.world, Process.current
        assert victim is not None
        front = world.routers[command.front].process
        if front.alive and front is not victim:
            self.killed[id(front), command.facts.call_id] += 1
            if self.killed[id(front), command.facts.call_id] > OUTLIVED_MAX:
                world.violate(f"{command.front} gives {command.facts.call_id} to a third leader")
        world.counts["killed by a command"] += 1
        world.crash(victim, silent=False)
        seconds = world.rng("kills").uniform(*RESTART_SECONDS)
        world.agenda.after(seconds, WORLD, world.start_router, victim.name)

    def queued(self, s: Any, event: CallQueued) -> None:
        _QUEUED(s, event)
        if poison_of(event.facts) == "evolve":
            raise Poisoned(event.facts.call_id)

    def tick(self, s: Any, command: Tick, now_ms: int) -> Any:
        due = next_deadline(s)
        if due is not None and due[0] <= now_ms:
            entry = s.calls.get(due[2])
            if entry is not None and poison_of(entry.facts) == "timer":
                raise Poisoned(due[2])
        return _TICK(s, command, now_ms)


_PLACE, _TICK = engine._DECIDE[PlaceCall], engine._DECIDE[Tick]
_QUEUED = evolving._EVOLVE[CallQueued]


@contextmanager
def poisoned(world: World) -> Iterator[None]:
    """While it lasts, the engine fails on the plan's poisonous calls."""
    poisoner = Poisoner(world)
    with ExitStack() as stack:
        if any(call.poison for call in world.plan.calls):
            decide = {PlaceCall: poisoner.place, Tick: poisoner.tick}
            stack.enter_context(patch.dict(engine._DECIDE, decide))
            stack.enter_context(patch.dict(evolving._EVOLVE, {CallQueued: poisoner.queued}))
        yield
