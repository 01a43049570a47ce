"""What a forecast asks for: people by half-hour. Pure.

Calls are as they were on average over the days looked at: handle time = conversation and after-call work of
all who were served / their number; mean patience = all time waited / hang-ups, the maximum-likelihood
estimate for exponential patience of which the served show only a part (censored); nobody who hung up means
nobody leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from routing.model import QueueConfig
from routing.planning.erlang import Demand, Performance, agents_needed, performance
from routing.planning.forecast import HistoryTooShort
from routing.planning.history import SLOT_MS
from routing.planning.store import QueueRow

#: Service level that is planned for where nobody says.
SERVICE_LEVEL = 0.8
#: Estimates keep within these, seconds.
HANDLE_SECONDS_MIN, PATIENCE_SECONDS_MIN = 1.0, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """Half an hour."""

    start_ms: int
    arrivals: float
    agents: int
    #: With these agents.
    performance: Performance


def usual(rows: Iterable[QueueRow], queue: QueueConfig) -> Demand:
    """How a queue's calls are; the rate is 0. Raises HistoryTooShort while none was served."""
    handled = handle_ms = left = waited_ms = 0
    for row in rows:
        handled += row.handled
        handle_ms += row.handle_ms
        left += row.left
        waited_ms += row.waited_ms
    if not handled:
        raise HistoryTooShort(subject=f"queues/{queue.id}", why="no conversation was counted yet")
    return Demand(
        rate=0.0,
        handle_seconds=max(HANDLE_SECONDS_MIN, handle_ms / handled / 1000),
        patience_seconds=max(PATIENCE_SECONDS_MIN, waited_ms / left / 1000) if left else math.inf,
        target_seconds=queue.service_level_span_ms / 1000,
        short_abandon_seconds=queue.short_abandon_span_ms / 1000,
    )


def needed(
    arrivals: Iterable[tuple[int, float]],
    calls: Demand,
    *,
    service_level: float = SERVICE_LEVEL,
    occupancy_max: float = 1.0,
) -> list[Needed]:
    """For (beginning of a half-hour, calls in it). Raises InvalidArgument naming the field."""
    found = []
    known: dict[float, int] = {}
    for start_ms, count in arrivals:
        demand = replace(calls, rate=count * 1000 / SLOT_MS)
        if count not in known:
            known[count] = agents_needed(demand, service_level, occupancy_max)
        found.append(shown(start_ms, count, known[count], calls))
    return found


def shown(start_ms: int, count: float, agents: int, calls: Demand) -> Needed:
    """How so many agents do with so many calls."""
    demand = replace(calls, rate=count * 1000 / SLOT_MS)
    return Needed(start_ms=start_ms, arrivals=count, agents=agents, performance=performance(agents, demand))
