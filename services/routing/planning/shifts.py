"""Shifts that cover what is needed, by whole-number programming (HiGHS, through SciPy's `milp`).

1. A shift is a span of half-hours of one day with breaks inside; which there are follows from the rules:
   every start, every length allowed, and for the breaks the even places and those up to an hour to either
   side, as far as no stretch of work is longer than allowed.
2. Chosen are whole numbers of agents for each group and shift. In each half-hour a group's agents who are at
   work are divided over the queues that they can take.
3. What is missing anywhere costs so much more than an agent's half-hour that it is only missing where
   nobody may be put. Among the plans with the least missing the one with the fewest paid half-hours is
   taken, and among those the smoothest places of breaks are left to the solver.
4. The solver stops within `GAP` of the optimum or after `SECONDS_MAX`; the plan says how far from it it may
   be.

The set-covering form is Dantzig's (1954, https://doi.org/10.1287/opre.2.3.339), breaks as in Aykin 1996.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chassis.errors import FailedPrecondition, InvalidArgument
from routing.planning.history import SLOTS

#: What an agent missing for half an hour costs, in paid half-hours.
MISSING_COST = 100.0
#: Relative distance from the optimum at which the solver may stop, and the longest it may take, real seconds.
GAP, SECONDS_MAX = 0.01, 20.0
#: Bounds of a problem.
GROUPS_MAX, QUEUES_MAX, PATTERNS_MAX, AGENTS_MAX = 50, 21, 5_000, 10_000
LENGTHS_MAX = 8
#: Breaks may be so many half-hours from their even places.
BREAK_PLAY = 2


class NoShiftPlan(FailedPrecondition):
    """{subject}: {why}."""

    reason = "NO_SHIFT_PLAN"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftRules:
    """What shifts may be like, in half-hours."""

    #: Breaks included.
    lengths: tuple[int, ...] = (8, 12, 16)
    #: Work without a break, at most.
    work_max: int = 8
    #: Length of a break.
    break_length: int = 1
    #: First half-hour that a shift may begin at, and the one before which it must end.
    earliest: int = 0
    latest: int = SLOTS

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the field."""
        if not 1 <= len(self.lengths) <= LENGTHS_MAX or any(not 2 <= n <= 24 for n in self.lengths):
            why = f"must be 1 to {LENGTHS_MAX} spans of 1 to 12 hours"
            raise InvalidArgument(field="shift_rules.lengths", why=why)
        if not 1 <= self.work_max <= 24:
            raise InvalidArgument(field="shift_rules.work_max", why="must be half an hour to 12 hours")
        if not 1 <= self.break_length <= 4:
            raise InvalidArgument(field="shift_rules.break_length", why="must be half an hour to 2 hours")
        if not 0 <= self.earliest < self.latest <= SLOTS:
            raise InvalidArgument(
                field="shift_rules.latest_end", why="must be after earliest_start, 24 hours at most"
            )
        if not any(n <= self.latest - self.earliest for n in self.lengths):
            raise InvalidArgument(
                field="shift_rules.lengths", why="must fit between earliest_start and latest_end"
            )


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Pattern:
    """One kind of shift."""

    #: First half-hour, and the one after the last.
    start: int
    end: int
    #: Spans inside it, [from, until).
    breaks: tuple[tuple[int, int], ...] = ()

    def works(self, slot: int) -> bool:
        """Whether who is on it is at work in that half-hour."""
        return self.start <= slot < self.end and not any(a <= slot < b for a, b in self.breaks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Agents who can do the same."""

    name: str
    #: Of the queues planned.
    queues: frozenset[str]
    #: None for as many as needed.
    agents_max: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Agents of a group on a shift."""

    group: str
    pattern: Pattern
    agents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftPlan:
    """A day."""

    shifts: tuple[Chosen, ...]
    #: Agents that are wanting by queue and half-hour.
    missing: Mapping[str, tuple[float, ...]]
    #: Half-hours paid, breaks included.
    paid_half_hours: int
    #: Share by which the plan's cost may exceed the best one's.
    gap: float


def patterns(rules: ShiftRules) -> list[Pattern]:
    """All shifts that the rules allow. Raises InvalidArgument where they allow none or too many."""
    found = []
    for length in sorted(set(rules.lengths)):
        inside = _breaks(rules, length)
        for start in range(rules.earliest, rules.latest - length + 1):
            for breaks in inside:
                spans = tuple((start + a, start + a + rules.break_length) for a in breaks)
                found.append(Pattern(start=start, end=start + length, breaks=spans))
                if len(found) > PATTERNS_MAX:
                    why = f"allow more than {PATTERNS_MAX} kinds of shift"
                    raise InvalidArgument(field="shift_rules", why=why)
    if not found:
        raise InvalidArgument(field="shift_rules.work_max", why="leaves no place for the breaks it asks for")
    return found


def _breaks(rules: ShiftRules, length: int) -> list[tuple[int, ...]]:
    """Where breaks of a shift may begin, counted from its beginning: the fewest breaks that do, one way more
    than `PATTERNS_MAX` at most.
    """
    count = 0
    while length - count * rules.break_length > (count + 1) * rules.work_max:
        count += 1
        if count * rules.break_length >= length:
            return []
    if count == 0:
        return [()]
    work = length - count * rules.break_length
    even = [round(work * (n + 1) / (count + 1)) + n * rules.break_length for n in range(count)]
    return list(itertools.islice(_placed(even, 0, rules, length), PATTERNS_MAX + 1))


def _placed(even: Sequence[int], at: int, rules: ShiftRules, length: int) -> Iterator[tuple[int, ...]]:
    """Every way to put breaks near their even places behind `at`, where a stretch of work begins: some work
    before, between and after them, none of it too long. A way that leaves too much or too little work for
    what is to come is given up at once: there would be millions of them.
    """
    if not even:
        if 1 <= length - at <= rules.work_max:
            yield ()
        return
    near = range(max(at + 1, even[0] - BREAK_PLAY), min(at + rules.work_max, even[0] + BREAK_PLAY) + 1)
    later = len(even) - 1
    for begin in near:
        work_left = length - begin - (later + 1) * rules.break_length
        if later + 1 <= work_left <= (later + 1) * rules.work_max:
            for rest in _placed(even[1:], begin + rules.break_length, rules, length):
                yield (begin, *rest)


def plan_day(
    needed: Mapping[str, Sequence[float]], rules: ShiftRules, groups: Sequence[Group] = ()
) -> ShiftPlan:
    """Shifts for one day. `needed` has 48 numbers of agents a queue; without groups there is one that takes
    all. Raises InvalidArgument naming the field, and NoShiftPlan when the solver finds nothing in its time.
    """
    check(needed, groups)
    queues = sorted(needed)
    everybody = [Group(name="", queues=frozenset(queues))]
    if not any(any(row) for row in needed.values()):
        return ShiftPlan(shifts=(), missing={q: (0.0,) * SLOTS for q in queues}, paid_half_hours=0, gap=0.0)
    return _Program(needed, queues, patterns(rules), list(groups) or everybody).solve()


def check(needed: Mapping[str, Sequence[float]], groups: Sequence[Group]) -> None:
    """Raises InvalidArgument naming the field."""
    if not 1 <= len(needed) <= QUEUES_MAX:
        raise InvalidArgument(field="more_queues", why=f"at most {QUEUES_MAX - 1} are planned together")
    for queue, row in needed.items():
        if len(row) != SLOTS:
            raise InvalidArgument(field="requirements", why=f"of {queue} must be {SLOTS} half-hours")
        for slot, agents in enumerate(row):
            if not (math.isfinite(agents) and 0 <= agents <= AGENTS_MAX):
                why = f"must be 0 to {AGENTS_MAX} agents, got {agents!r} for {queue} in half-hour {slot}"
                raise InvalidArgument(field="requirements", why=why)
    if len(groups) > GROUPS_MAX:
        raise InvalidArgument(field="groups", why=f"at most {GROUPS_MAX} are allowed")
    for place, group in enumerate(groups):
        if group.agents_max is not None and not 0 <= group.agents_max <= AGENTS_MAX:
            raise InvalidArgument(field=f"groups[{place}].agents_max", why=f"must be 0 to {AGENTS_MAX}")
        if not group.queues or not group.queues <= set(needed):
            raise InvalidArgument(field=f"groups[{place}].queues", why="must be some of the queues planned")
        if any(other.name == group.name for other in groups[:place]):
            raise InvalidArgument(field=f"groups[{place}].name", why=f"{group.name!r} is there already")


class _Program:
    """Variables in their order: agents by group and shift, then by group, queue and half-hour those who
    take it, then by queue and half-hour those missing. Half-hours in which nobody is needed are left out.
    """

    def __init__(
        self,
        needed: Mapping[str, Sequence[float]],
        queues: list[str],
        shifts: list[Pattern],
        groups: list[Group],
    ) -> None:
        self._needed, self._queues, self._shifts, self._groups = needed, queues, shifts, groups
        self._slots = [t for t in range(SLOTS) if any(needed[q][t] for q in queues)]
        self._taken = [
            (g, q, t)
            for g, group in enumerate(groups)
            for q in queues
            if q in group.queues
            for t in self._slots
        ]
        self._missing = [(q, t) for q in queues for t in self._slots]
        self._whole = len(groups) * len(shifts)

    def solve(self) -> ShiftPlan:
        import numpy
        from scipy.optimize import Bounds, milp

        paid = [float(s.end - s.start) for _ in self._groups for s in self._shifts]
        cost = numpy.array(paid + [0.0] * len(self._taken) + [MISSING_COST] * len(self._missing))
        integrality = numpy.zeros(len(cost))
        integrality[: self._whole] = 1
        found = milp(
            cost,
            constraints=self._constraints(),
            integrality=integrality,
            bounds=Bounds(0, numpy.inf),
            options={"mip_rel_gap": GAP, "time_limit": SECONDS_MAX},
        )
        if found.x is None:
            raise NoShiftPlan(subject="shifts", why=f"no plan was found in {SECONDS_MAX:g} s")
        return self._plan(found.x, float(getattr(found, "mip_gap", 0.0) or 0.0))

    def _constraints(self) -> Any:
        """Rows: who takes calls is at work; what is needed is taken or missing; groups are no larger than
        they are.
        """
        import numpy
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_matrix

        entries: list[tuple[int, int, float]] = []
        low: list[float] = []
        high: list[float] = []
        row_of: dict[tuple[int, int], int] = {}
        for g in range(len(self._groups)):
            for t in self._slots:
                row = row_of[g, t] = len(low)
                entries += [
                    (row, g * len(self._shifts) + n, -1.0)
                    for n, shift in enumerate(self._shifts)
                    if shift.works(t)
                ]
                low.append(-numpy.inf)
                high.append(0.0)
        entries += [(row_of[g, t], self._whole + n, 1.0) for n, (g, _, t) in enumerate(self._taken)]
        need_of = {key: len(low) + n for n, key in enumerate(self._missing)}
        entries += [(need_of[q, t], self._whole + n, 1.0) for n, (_, q, t) in enumerate(self._taken)]
        beyond = self._whole + len(self._taken)
        entries += [(need_of[key], beyond + n, 1.0) for n, key in enumerate(self._missing)]
        low += [float(self._needed[q][t]) for q, t in self._missing]
        high += [numpy.inf] * len(self._missing)
        for g, group in enumerate(self._groups):
            if group.agents_max is not None:
                first = g * len(self._shifts)
                entries += [(len(low), first + n, 1.0) for n in range(len(self._shifts))]
                low.append(0.0)
                high.append(float(group.agents_max))
        rows, columns, values = zip(*entries, strict=True)
        shape = (len(low), beyond + len(self._missing))
        return LinearConstraint(coo_matrix((values, (rows, columns)), shape=shape).tocsr(), low, high)

    def _plan(self, values: Any, gap: float) -> ShiftPlan:
        chosen = []
        for g, group in enumerate(self._groups):
            for n, shift in enumerate(self._shifts):
                agents = round(float(values[g * len(self._shifts) + n]))
                if agents:
                    chosen.append(Chosen(group=group.name, pattern=shift, agents=agents))
        missing = {q: [0.0] * SLOTS for q in self._queues}
        beyond = self._whole + len(self._taken)
        for n, (q, t) in enumerate(self._missing):
            missing[q][t] = max(0.0, round(float(values[beyond + n]), 6))
        return ShiftPlan(
            shifts=tuple(sorted(chosen, key=lambda c: (c.pattern, c.group))),
            missing={q: tuple(row) for q, row in missing.items()},
            paid_half_hours=sum(c.agents * (c.pattern.end - c.pattern.start) for c in chosen),
            gap=gap,
        )
