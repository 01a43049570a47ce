"""Sessions as they are counted, and what is counted of them. Pure; the Mongo store counts the same in the
database.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from routing.menus.engine import Notice, Outcome, State

#: Sessions of a number that make it a regular one.
REGULAR_SESSIONS = 3
#: Accesses of a leaf by one number that make them regular ones.
REGULAR_ACCESSES = 3
PATHS_MAX = 100
#: Sessions that an interval of a comparison needs on each side.
COMPARED_MIN = 30
#: Standard normal quantile of a 95 % interval.
_Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One session for counting."""

    id: str
    menu: str
    version: int
    number: str
    customer: str
    began_ms: int
    last_ms: int
    step: int
    outcome: Outcome
    way: tuple[str, ...]
    leaf: str
    presses: int
    listened_ms: int
    #: Node, key, ms listened, notice.
    visits: tuple[tuple[str, str, int, str], ...]

    @classmethod
    def of(cls, state: State) -> Record:
        """A session's record."""
        return cls(
            id=state.id,
            menu=state.menu,
            version=state.version,
            number=state.number,
            customer=state.customer,
            began_ms=state.began_ms,
            last_ms=state.last_ms,
            step=state.step,
            outcome=state.outcome,
            way=state.way,
            leaf=state.node if state.outcome is Outcome.DONE else "",
            presses=state.presses,
            listened_ms=state.listened_ms,
            visits=tuple((v.node, v.key, v.listened_ms, v.notice.value) for v in state.visits),
        )

    def given_up(self, vanished_ms: int) -> bool:
        """Hung up before a leaf, or not heard of since `vanished_ms`."""
        return self.outcome is Outcome.GAVE_UP or (
            self.outcome is Outcome.OPEN and self.last_ms < vanished_ms
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which sessions count."""

    menu: str
    #: When they began, ms: from (inclusive), to (exclusive).
    from_ms: int
    to_ms: int
    #: Business time before which a session that is not over was left.
    vanished_ms: int
    #: 0 and "" for all.
    version: int = 0
    number: str = ""
    customer: str = ""
    #: Leaves that link on: who goes through one has reached it as well as what they reach in the section.
    links: tuple[str, ...] = ()

    def takes(self, record: Record) -> bool:
        """Whether a session counts."""
        return (
            record.menu == self.menu
            and self.from_ms <= record.began_ms < self.to_ms
            and self.version in (0, record.version)
            and self.number in ("", record.number)
            and self.customer in ("", record.customer)
        )


@dataclass(kw_only=True, slots=True)
class NodeCounts:
    """One node."""

    accesses: int = 0
    given_up: int = 0
    listened_ms: int = 0
    #: Times it was heard: the listening is theirs.
    heard: int = 0
    wrong_keys: int = 0
    timeouts: int = 0


@dataclass(kw_only=True, slots=True)
class Totals:
    """Sessions of one version, or of several."""

    sessions: int = 0
    completed: int = 0
    given_up: int = 0
    fallbacks: int = 0
    #: Over the completed: sums and sums of squares of presses and of milliseconds listened.
    presses: int = 0
    presses_squared: int = 0
    listened_ms: int = 0
    listened_ms_squared: int = 0

    @property
    def over(self) -> int:
        """Sessions that came to an end."""
        return self.completed + self.given_up + self.fallbacks


@dataclass(kw_only=True, slots=True)
class Counts:
    """What is counted of a menu."""

    totals: Totals = field(default_factory=Totals)
    nodes: dict[str, NodeCounts] = field(default_factory=dict)
    #: (way, sessions, given up), the most used first, at most `PATHS_MAX`.
    paths: list[tuple[tuple[str, ...], int, int]] = field(default_factory=list)
    callers: int = 0
    regular_callers: int = 0


def count(records: Iterable[Record], query: Query) -> Counts:
    """Counts sessions."""
    counts, paths, callers = Counts(), Counter[tuple[str, ...]](), Counter[str]()
    lost: Counter[tuple[str, ...]] = Counter()
    for record in filter(query.takes, records):
        gone = record.given_up(query.vanished_ms)
        _add(counts.totals, record, gone)
        paths[record.way] += 1
        lost[record.way] += gone
        if record.number:
            callers[record.number] += 1
        for node in set(record.way):
            counts.nodes.setdefault(node, NodeCounts()).accesses += 1
        counts.nodes[record.way[-1]].given_up += gone
        for node, _, ms, notice in record.visits:
            if node:
                _hear(counts.nodes.setdefault(node, NodeCounts()), ms, notice)
    ranked = sorted(paths, key=lambda way: (-paths[way], way))[:PATHS_MAX]
    counts.paths = [(way, paths[way], lost[way]) for way in ranked]
    counts.callers = len(callers)
    counts.regular_callers = sum(1 for sessions in callers.values() if sessions >= REGULAR_SESSIONS)
    return counts


def _add(totals: Totals, record: Record, gone: bool) -> None:
    totals.sessions += 1
    totals.given_up += gone
    totals.fallbacks += record.outcome is Outcome.FALLBACK
    if record.outcome is Outcome.DONE:
        totals.completed += 1
        totals.presses += record.presses
        totals.presses_squared += record.presses**2
        totals.listened_ms += record.listened_ms
        totals.listened_ms_squared += record.listened_ms**2


def _hear(node: NodeCounts, ms: int, notice: str) -> None:
    node.heard += 1
    node.listened_ms += ms
    node.wrong_keys += notice == Notice.WRONG_KEY
    node.timeouts += notice == Notice.NO_KEY


def accesses(records: Iterable[Record], query: Query) -> tuple[dict[str, int], dict[str, int]]:
    """(accesses by leaf, those by numbers that reach the leaf regularly)."""
    by_leaf, by_both = Counter[str](), Counter[tuple[str, str]]()
    for record in filter(query.takes, records):
        for leaf in {record.leaf, *set(query.links).intersection(record.way)} if record.leaf else ():
            by_leaf[leaf] += 1
            if record.number:
                by_both[leaf, record.number] += 1
    regular = Counter[str]()
    for (leaf, _), times in by_both.items():
        if times >= REGULAR_ACCESSES:
            regular[leaf] += times
    return dict(by_leaf), dict(regular)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """b less a, with its 95 % interval."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    significant: bool = False


def _moments(total: float, squared: float, number: int) -> tuple[float, float]:
    """Mean, and variance of the mean."""
    mean = total / number
    spread = max(0.0, squared / number - mean**2) * number / (number - 1)
    return mean, spread / number


def _between(value: float, error: float, enough: bool) -> Difference:
    low, high = value - _Z95 * error, value + _Z95 * error
    return Difference(value=value, low=low, high=high, significant=enough and not low <= 0.0 <= high)


def mean_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Of two (sum, sum of squares, number): Welch's interval, with the normal quantile since it is for
    large samples. Zeros while a side has fewer than two.
    """
    if a[2] < 2 or b[2] < 2:
        return Difference()
    mean_a, error_a = _moments(a[0], a[1], int(a[2]))
    mean_b, error_b = _moments(b[0], b[1], int(b[2]))
    return _between(mean_b - mean_a, math.sqrt(error_a + error_b), min(a[2], b[2]) >= COMPARED_MIN)


def share_difference(hits_a: int, of_a: int, hits_b: int, of_b: int) -> Difference:
    """Of two shares, by the normal approximation. Zeros while a side has none."""
    if not of_a or not of_b:
        return Difference()
    a, b = hits_a / of_a, hits_b / of_b
    error = math.sqrt(a * (1 - a) / of_a + b * (1 - b) / of_b)
    return _between(b - a, error, min(of_a, of_b) >= COMPARED_MIN)
