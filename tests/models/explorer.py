"""Looks at every state that a small model can reach, nearest first, and tells how the first bad one came
about.

A model is a set of plain values: where it begins, what may happen next in a state (everything that the world
may do, not what it should), and what must never be true. The search is breadth first, so a counterexample is
as short as there is one. It is exhaustive within the model's own bounds: `complete` says whether it came to
an end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

State = TypeVar("State", bound=Hashable)

#: States after which a search is given up as too large.
STATES_MAX = 3_000_000


class Model(Protocol[State]):
    """What can be explored."""

    def initial(self) -> State:
        """Where it begins."""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next: what, and what is then."""

    def harm(self, state: State) -> str:
        """What is wrong in a state; "" when nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found(Generic[State]):
    """What a search found."""

    #: Different states seen.
    states: int
    #: Every state within the model's bounds was looked at, or harm was found.
    complete: bool
    #: What is wrong in the first bad state; "" for none.
    harm: str = ""
    #: What happened on the way there, in order.
    trace: tuple[str, ...] = ()
    #: Every step that was possible somewhere, to see that a search without harm did not look at nothing.
    steps: frozenset[str] = frozenset()

    def story(self) -> str:
        """The counterexample for people, one step a line."""
        lines = [f"  {number:2d}. {step}" for number, step in enumerate(self.trace, 1)]
        return "\n".join([*lines, f"  ==> {self.harm}"]) if self.harm else "  no counterexample"


def explore(model: Model[State], states_max: int = STATES_MAX) -> Found[State]:
    """Searches all that `model` can reach, up to `states_max` states."""
    first = model.initial()
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    waiting = deque([first])
    steps: set[str] = set()
    while waiting:
        if len(came_from) > states_max:
            return Found(states=len(came_from), complete=False)
        state = waiting.popleft()
        for step, after in model.steps(state):
            steps.add(step)
            if after in came_from:
                continue
            came_from[after] = (state, step)
            harm = model.harm(after)
            if harm:
                trace = _way_to(after, came_from)
                return Found(states=len(came_from), complete=True, harm=harm, trace=trace)
            waiting.append(after)
    return Found(states=len(came_from), complete=True, steps=frozenset(steps))


def _way_to(state: State, came_from: dict[State, tuple[State, str] | None]) -> tuple[str, ...]:
    steps = []
    before = came_from[state]
    while before is not None:
        steps.append(before[1])
        before = came_from[before[0]]
    return tuple(reversed(steps))
