"""Erlang-A (M/M/n+M): service level, waits, abandoning and occupancy of a queue, and the agents that a target
needs. Pure.

1. Arrivals are Poisson, conversations and patience exponential, agents equal. Without a patience nobody
   leaves: Erlang C.
2. States are weighted outwards from "all agents busy, nobody waits", so that no weight over- or underflows
   whatever the number of agents, and the sum ends where what is left is below `TAIL_RATIO`.
3. The wait that a caller with j ahead would have to bear is a sum of exponential times with the rates
   n/m, n/m + 1/p, ..., n/m + j/p (m mean conversation, p mean patience), which is distributed as
   -p * log(B) for B ~ Beta(n*p/m, j + 1). All shares below are incomplete beta functions of integer second
   argument, summed term by term: every term is positive, so nothing cancels.

Sources: Palm 1957; Garnett, Mandelbaum and Reiman 2002, "Designing a call center with impatient customers",
https://doi.org/10.1287/msom.4.3.208.7753; Mandelbaum and Zeltyn 2007, "Service engineering in action: the
Palm/Erlang-A queue", https://doi.org/10.1007/978-3-540-29860-1_2. The Beta form follows from the order
statistics of exponential times (Renyi 1953).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from chassis.errors import InvalidArgument

#: States that weigh less than this share of all are left out.
TAIL_RATIO = 1e-13
#: Sums are scaled down at this size.
HUGE = 1e200
#: Ratios beyond this count as infinite.
MOST = 1e280
#: States looked at, and agents that may be needed, at most.
STATES_MAX = 1_000_000
AGENTS_MAX = 100_000
#: Longest span that makes sense here, seconds.
SECONDS_MAX = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What comes to a queue, and what counts as answered in time."""

    #: Calls a second.
    rate: float
    #: Mean handle time, after-call work included, seconds.
    handle_seconds: float
    #: Mean patience, seconds; infinite for callers who never leave.
    patience_seconds: float = math.inf
    #: Answered within this counts.
    target_seconds: float = 20.0
    #: Abandoned sooner than this does not count.
    short_abandon_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the field."""
        for name, value, low, high in (
            ("rate", self.rate, 0.0, 1e5),
            ("handle_seconds", self.handle_seconds, 1e-3, SECONDS_MAX),
            ("target_seconds", self.target_seconds, 0.0, SECONDS_MAX),
            ("short_abandon_seconds", self.short_abandon_seconds, 0.0, SECONDS_MAX),
        ):
            if not low <= value <= high:
                raise InvalidArgument(field=name, why=f"must be {low:g} to {high:g}, got {value!r}")
        if not self.patience_seconds >= 1e-3:
            raise InvalidArgument(field="patience_seconds", why="must be at least 0.001")

    @property
    def load(self) -> float:
        """Offered load in erlangs."""
        return self.rate * self.handle_seconds

    @property
    def leaving_rate(self) -> float:
        """Hang-ups a second of one waiting caller."""
        return 0.0 if math.isinf(self.patience_seconds) else 1.0 / self.patience_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Performance:
    """A queue in steady state."""

    #: Share of all callers.
    abandoned_ratio: float
    #: Answered within the target / (answered + abandoned after the short-abandon time).
    service_level: float
    #: Share of callers who find nobody free.
    delayed_ratio: float
    #: Mean wait of all callers, leavers included; infinite where agents cannot keep up.
    wait_seconds: float
    #: Share of the agents' time in conversation.
    occupancy: float


#: Where agents cannot keep up and nobody leaves.
_HOPELESS = Performance(
    abandoned_ratio=0.0, service_level=0.0, delayed_ratio=1.0, wait_seconds=math.inf, occupancy=1.0
)
_NOBODY_CALLS = Performance(
    abandoned_ratio=0.0, service_level=1.0, delayed_ratio=0.0, wait_seconds=0.0, occupancy=0.0
)


def fates(agents: int, demand: Demand) -> Iterator[tuple[float, float]]:
    """For a caller with 0, 1, 2 ... others waiting ahead, all agents busy: (share answered within the target,
    share that leaves within the short-abandon time). Endless.
    """
    service, leaving = agents / demand.handle_seconds, demand.leaving_rate
    in_target = _Below(service, leaving, demand.target_seconds)
    short = _Below(service, leaving, demand.short_abandon_seconds)
    ahead = 0
    while True:
        # E[B; B >= b] = c / (c + j + 1) * P(B' >= b) for B ~ Beta(c, j + 1), B' ~ Beta(c + 1, j + 1).
        # Where nobody serves and nobody leaves, nobody is answered.
        share = service / (service + (ahead + 1) * leaving) if service or leaving else 0.0
        _, stayed = in_target.next()
        early, early_stayed = short.next()
        yield (
            max(0.0, share * (1.0 - stayed)),
            max(0.0, 1.0 - short.level * early - share * (1.0 - early_stayed)),
        )
        ahead += 1


class _Below:
    """P(B < b) for B ~ Beta(c, j + 1) and for B ~ Beta(c + 1, j + 1), j = 0, 1, 2 ..., where b is the share
    of callers whose patience is longer than a span and c = service / leaving. With nobody leaving the limits:
    Poisson sums.
    """

    def __init__(self, service: float, leaving: float, seconds: float) -> None:
        self.level = math.exp(-leaving * seconds)
        self._service, self._leaving = service, leaving
        self._span = -math.expm1(-leaving * seconds) / leaving if leaving > 0 else seconds
        self._j = 0
        # The logarithms of the terms: the first, b ** c, may be too small for a number.
        self._log = -service * seconds
        self._stayed_log = self._log - leaving * seconds
        self._sum, self._stayed_sum = math.exp(self._log), math.exp(self._stayed_log)

    def next(self) -> tuple[float, float]:
        """The two shares for the present j; then j grows."""
        found = min(1.0, self._sum), min(1.0, self._stayed_sum)
        self._j += 1
        if self._service > 0 and self._span > 0:
            span = self._span / self._j
            self._log += math.log(span * (self._service + (self._j - 1) * self._leaving))
            self._stayed_log += math.log(span * (self._service + self._j * self._leaving))
            self._sum += math.exp(self._log)
            self._stayed_sum += math.exp(self._stayed_log)
        return found


def performance(agents: int, demand: Demand) -> Performance:
    """How `agents` do. Raises InvalidArgument for a number out of range."""
    if not 0 <= agents <= AGENTS_MAX:
        raise InvalidArgument(field="agents", why=f"must be 0 to {AGENTS_MAX}, got {agents}")
    if demand.rate == 0:
        return _NOBODY_CALLS
    leaving = demand.leaving_rate
    if leaving == 0 and agents <= demand.load:
        return _HOPELESS
    below, busy_below, unit = _below(agents, demand.load)
    if unit < below / MOST:
        # Nobody ever waits, as far as numbers can say.
        return replace(_NOBODY_CALLS, occupancy=busy_below / below / agents)
    above, waiting, in_target, short, scale = _above(agents, demand, below / unit)
    below, busy_below = below / unit * scale, busy_below / unit * scale
    total = below + above
    counted = 1.0 - short / total
    busy = busy_below + agents * above
    return Performance(
        abandoned_ratio=min(1.0, leaving * waiting / total / demand.rate),
        service_level=min(1.0, max(0.0, (below + in_target) / total / counted)) if counted > 0 else 1.0,
        delayed_ratio=above / total,
        wait_seconds=waiting / total / demand.rate,
        occupancy=min(1.0, busy / total / agents) if agents else 0.0,
    )


def _below(agents: int, load: float) -> tuple[float, float, float]:
    """(weight of the states with somebody free, agents busy in them, weight of the state with all busy and
    nobody waiting), all times one factor.
    """
    weight = unit = 1.0
    below = busy = 0.0
    for n in range(agents, 0, -1):
        weight *= n / load
        below += weight
        busy += (n - 1) * weight
        if weight > HUGE:
            below, busy, unit, weight = below / HUGE, busy / HUGE, unit / HUGE, weight / HUGE
        if n < load and weight < TAIL_RATIO * below:
            break
    return below, busy, unit


def _above(agents: int, demand: Demand, below: float) -> tuple[float, float, float, float, float]:
    """(weight of the states with all busy, callers waiting, those of the next arrivals that are answered in
    time, those that leave at once, weight of the state with nobody waiting), all times one factor; `below` is
    what the states with somebody free weigh.
    """
    service, leaving = agents / demand.handle_seconds, demand.leaving_rate
    weight = scale = 1.0
    above = waiting = in_target = short = 0.0
    for ahead, (answered, left) in zip(range(STATES_MAX), fates(agents, demand), strict=False):
        above += weight
        waiting += ahead * weight
        in_target += answered * weight
        short += left * weight
        weight *= demand.rate / (service + (ahead + 1) * leaving)
        if weight > HUGE:
            weight, scale, above = weight / HUGE, scale / HUGE, above / HUGE
            waiting, in_target, short = waiting / HUGE, in_target / HUGE, short / HUGE
        if demand.rate < service + ahead * leaving and weight < TAIL_RATIO * (above + below * scale):
            break
    return above, waiting, in_target, short, scale


def agents_needed(demand: Demand, service_level: float = 0.8, occupancy_max: float = 1.0) -> int:
    """Least number of agents that reaches a service level (0 to 1) and stays below an occupancy. Raises
    InvalidArgument.
    """
    if not 0.0 <= service_level < 1.0:
        raise InvalidArgument(
            field="service_level", why=f"must be at least 0 and below 1, got {service_level!r}"
        )
    if not 0.1 <= occupancy_max <= 1.0:
        raise InvalidArgument(field="occupancy_max", why=f"must be 0.1 to 1, got {occupancy_max!r}")
    if demand.rate == 0:
        return 0
    if demand.load > AGENTS_MAX:
        raise InvalidArgument(field="rate", why=f"would need more than {AGENTS_MAX} agents")

    def enough(agents: int) -> bool:
        shown = performance(agents, demand)
        return shown.service_level >= service_level and shown.occupancy <= occupancy_max

    # Both grow better with every agent, so doubling and halving find the least.
    low, high = 0, max(1, math.ceil(demand.load))
    while not enough(high):
        if high >= AGENTS_MAX:
            raise InvalidArgument(field="rate", why=f"would need more than {AGENTS_MAX} agents")
        low, high = high, min(AGENTS_MAX, high + max(1, high // 2))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
