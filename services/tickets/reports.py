"""What many tickets' lives add up to. Pure: from cases to figures.

Definitions. A rate's base is said with it: service levels count what was resolved and had a target,
first-call
resolution counts what came by a call or is known to have been resolved at once, satisfaction counts answers.
Time in a state is the mean over visits of the state. A process map counts what really followed what.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from zoneinfo import ZoneInfo

#: Most cells of a report.
ROWS_MAX = 10_000
#: Digits that costs are reckoned with: more than the largest rate, the longest time and all cases need.
COST_DIGITS_MAX = 64
#: Digits after the point of money that a report gives.
MONEY_DIGITS = Decimal("0.01")
#: Dimensions that are told from when a case was opened -> characters of an ISO date that name a cell.
SPANS: Mapping[str, int] = {"day": 10, "month": 7}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One ticket's life, of this service or of another."""

    #: Its id.
    id: str
    #: When it was opened, ms.
    opened_ms: int
    #: (state, when it was entered, whether somebody works in it), oldest first.
    steps: tuple[tuple[str, int, bool], ...]
    #: Whether it is open.
    open: bool
    #: When last resolved, and when closed.
    resolved_ms: int | None = None
    closed_ms: int | None = None
    #: When it is due; None while no clock runs.
    due_ms: int | None = None
    #: When its target passed; None: it didn't, or nobody told.
    breached_ms: int | None = None
    #: (when, whether somebody still had to do something from then on), oldest first; empty: nobody told.
    turns: tuple[tuple[int, bool], ...] = ()
    #: Whether its targets were kept; None while not decided.
    sla_met: bool | None = None
    first_met: bool | None = None
    #: How often it changed hands, and was reopened.
    reassigned: int = 0
    reopened: int = 0
    #: Whether the first contact resolved it; None when it didn't come by a contact.
    first_contact: bool | None = None
    #: 1 to 5; 0 not said.
    satisfaction: int = 0
    #: Values of dimensions by name; a list for those with several.
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Backlog:
    """Open cases of a cell."""

    open: int
    overdue: int
    oldest_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """Figures of a cell. Ratios are 0 to 1, and 0 where there is nothing to count."""

    count: int
    sla_met: float
    first_met: float
    resolution_median_ms: int
    resolution_p90_ms: int
    reassigned_mean: float
    reopened: float
    first_contact: float
    satisfaction: float
    satisfaction_count: int
    #: (state, mean ms), the longest first.
    in_state: tuple[tuple[str, int], ...]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _keys(case: Case, dimensions: Sequence[str], zone: ZoneInfo) -> list[tuple[str, ...]]:
    """The cells that a case belongs to: one, or one for each of several products."""
    found: list[tuple[str, ...]] = [()]
    for name in dimensions:
        if name in SPANS:
            day = datetime.fromtimestamp(case.opened_ms / 1000, zone).date().isoformat()
            values: Sequence[str] = (day[: SPANS[name]],)
        else:
            values = case.values.get(name) or ("",)
        found = [(*key, value) for key in found for value in values]
    return found


def by_cell(
    cases: Iterable[Case], dimensions: Sequence[str], zone: ZoneInfo
) -> dict[tuple[str, ...], list[Case]]:
    """Cases by the values of some dimensions."""
    found: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        for key in _keys(case, dimensions, zone):
            found[key].append(case)
    return dict(sorted(found.items()))


def was_open(case: Case, at_ms: int) -> bool:
    """Whether somebody still had to do something at an instant."""
    if case.opened_ms > at_ms:
        return False
    if case.turns:
        # before the first that is known it was open
        return next((is_open for moment, is_open in reversed(case.turns) if moment <= at_ms), True)
    ends = [moment for moment in (case.resolved_ms, case.closed_ms) if moment is not None]
    return case.open if not ends else min(ends) > at_ms or (case.open and max(ends) <= at_ms)


def _was_overdue(case: Case, at_ms: int) -> bool:
    passes = case.breached_ms if case.breached_ms is not None else case.due_ms
    return passes <= at_ms if passes is not None else case.sla_met is False


def backlog(cases: Sequence[Case], at_ms: int) -> Backlog:
    """How much is open at an instant, of it overdue, and how old the oldest is."""
    found = [case for case in cases if was_open(case, at_ms)]
    overdue = sum(1 for case in found if _was_overdue(case, at_ms))
    oldest = max((at_ms - case.opened_ms for case in found), default=0)
    return Backlog(open=len(found), overdue=overdue, oldest_ms=oldest)


def _durations(case: Case) -> Iterable[tuple[str, int, bool]]:
    """(state, how long, whether somebody works in it) of each stay; the last of a case that is over has
    none."""
    ends = [moment for _, moment, _ in case.steps[1:]]
    for (state, start, worked), end in zip(case.steps, ends, strict=False):
        yield state, max(0, end - start), worked


def performance(cases: Sequence[Case]) -> Performance:
    """The figures of some cases."""
    times = sorted(c.resolved_ms - c.opened_ms for c in cases if c.resolved_ms is not None)
    asked = [case.satisfaction for case in cases if case.satisfaction]
    stays: dict[str, list[int]] = defaultdict(list)
    for case in cases:
        for state, duration, _ in _durations(case):
            stays[state].append(duration)
    in_state = sorted(((s, round(_mean(d))) for s, d in stays.items()), key=lambda pair: -pair[1])
    return Performance(
        count=len(cases),
        sla_met=_mean(float(case.sla_met) for case in cases if case.sla_met is not None),
        first_met=_mean(float(case.first_met) for case in cases if case.first_met is not None),
        resolution_median_ms=round(statistics.median(times)) if times else 0,
        resolution_p90_ms=times[min(len(times) - 1, int(len(times) * 0.9))] if times else 0,
        reassigned_mean=_mean(case.reassigned for case in cases),
        reopened=_mean(float(case.reopened > 0) for case in cases),
        first_contact=_mean(float(c.first_contact) for c in cases if c.first_contact is not None),
        satisfaction=_mean(asked),
        satisfaction_count=len(asked),
        in_state=tuple(in_state),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What tickets cost, exact decimal numbers."""

    per_ticket: Decimal
    baseline_per_ticket: Decimal
    saving: Decimal
    #: (saving - investment) / investment; 0 without an investment.
    return_on_investment: float
    explanation: tuple[str, ...]


def worked_hours(cases: Sequence[Case]) -> Decimal:
    """Time that cases spent in states in which somebody works, hours."""
    total = sum(duration for case in cases for _, duration, worked in _durations(case) if worked)
    return Decimal(total) / 3_600_000


def _money(amount: Decimal) -> Decimal:
    return amount.quantize(MONEY_DIGITS, ROUND_HALF_EVEN)


def cost(cases: Sequence[Case], baseline: Sequence[Case], hourly: Decimal, investment: Decimal) -> Cost:
    """What a ticket costs, against a baseline, and what an improvement brought."""
    with localcontext(prec=COST_DIGITS_MAX):
        return _cost(cases, baseline, hourly, investment)


def _cost(cases: Sequence[Case], baseline: Sequence[Case], hourly: Decimal, investment: Decimal) -> Cost:
    def per_ticket(some: Sequence[Case]) -> Decimal:
        return worked_hours(some) * hourly / len(some) if some else Decimal(0)

    now, before = per_ticket(cases), per_ticket(baseline)
    saving = (before - now) * len(cases) if baseline else Decimal(0)
    lines = [
        f"{len(cases)} tickets were worked on for {worked_hours(cases):.2f} hours, {hourly} each hour",
        f"so a ticket cost {_money(now)}",
    ]
    if baseline:
        lines.append(f"in the baseline, {len(baseline)} tickets took {worked_hours(baseline):.2f} hours")
        lines.append(f"so a ticket cost {_money(before)}, and {_money(saving)} was saved over {len(cases)}")
    earned = float((saving - investment) / investment) if investment else 0.0
    if investment:
        lines.append(f"the investment was {investment}: the return on it is {earned:.1%}")
    return Cost(
        per_ticket=_money(now),
        baseline_per_ticket=_money(before),
        saving=_money(saving),
        return_on_investment=earned,
        explanation=tuple(lines),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity:
    """A state and how often it was entered."""

    name: str
    count: int
    mean_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """One state followed another; empty: the beginning, the end."""

    source: str
    target: str
    count: int
    mean_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessMap:
    """What really happened, the most frequent first."""

    activities: tuple[Activity, ...]
    edges: tuple[Edge, ...]
    cases: int


def process_map(cases: Sequence[Case], minimum_share: float = 0.0) -> ProcessMap:
    """The map of some cases, without steps rarer than a share of the most frequent one."""
    entered: Counter[str] = Counter()
    stays: dict[str, list[int]] = defaultdict(list)
    followed: Counter[tuple[str, str]] = Counter()
    between: dict[tuple[str, str], list[int]] = defaultdict(list)
    for case in cases:
        names = [state for state, _, _ in case.steps]
        entered.update(names)
        for pair in zip(["", *names], [*names, ""], strict=True):
            if pair != ("", ""):
                followed[pair] += 1
        for (state, duration, _), target in zip(_durations(case), names[1:], strict=True):
            stays[state].append(duration)
            between[state, target].append(duration)
    least = max(followed.values(), default=0) * minimum_share
    edges = [
        Edge(source=a, target=b, count=count, mean_ms=round(_mean(between[a, b])))
        for (a, b), count in followed.items()
        if count >= least
    ]
    kept = {name for edge in edges for name in (edge.source, edge.target)}
    activities = [
        Activity(name=name, count=count, mean_ms=round(_mean(stays[name])))
        for name, count in entered.items()
        if name in kept
    ]
    by_count: Callable[[Activity | Edge], int] = lambda one: -one.count  # noqa: E731
    return ProcessMap(
        activities=tuple(sorted(activities, key=by_count)),
        edges=tuple(sorted(edges, key=by_count)),
        cases=len(cases),
    )
