"""Who is at work when, and in which region.

For a log: a named server is on duty wherever the log shows them serving, gaps up to `GAP_SECONDS`
included: a server who is free for ten minutes in a busy centre is at the desk, one who is gone for longer
has a break. The on-duty capacity is then dealt over the regions so that every half hour has it in
proportion to the load. For a generated day: the square-root rule on each region's offered load, checked
and raised by Erlang C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from cli.demo.model import Duty

#: A server not seen for longer than this is off duty in between.
GAP_SECONDS = 600
#: Length of the slots in which capacity is balanced.
SLOT_SECONDS = 1800
#: Rounds of improvement by moving and swapping agents; each is O(agents²).
DEAL_ROUNDS_MAX = 50


def duties_from_services(
    services: Mapping[str, Iterable[tuple[float, float]]], start: float, end: float, gap: float = GAP_SECONDS
) -> list[Duty]:
    """Duty spans from each agent's service spans, clipped to [start, end) and counted from `start`."""
    duties = []
    for agent in sorted(services):
        for first, last in _joined(sorted(services[agent]), gap):
            first, last = max(first, start), min(last, end)
            if last > first:
                duties.append(Duty(agent=agent, start_seconds=first - start, end_seconds=last - start))
    return duties


def _joined(spans: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for first, last in spans:
        if joined and first - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def capacity_by_slot(duties: Iterable[Duty], length: float) -> dict[str, list[float]]:
    """Agent to seconds on duty in each slot of the window."""
    slots = max(1, math.ceil(length / SLOT_SECONDS))
    table: dict[str, list[float]] = {}
    for duty in duties:
        row = table.setdefault(duty.agent, [0.0] * slots)
        for slot in range(slots):
            begin, finish = slot * SLOT_SECONDS, (slot + 1) * SLOT_SECONDS
            row[slot] += max(0.0, min(duty.end_seconds, finish) - max(duty.start_seconds, begin))
    return table


def deal(capacity: Mapping[str, Sequence[float]], shares: Mapping[str, float]) -> dict[str, str]:
    """Agent to region, such that in every slot the regions' capacity is as near as may be to their share
    of the load.

    Longest duty first to where most is missing, then moves and swaps as long as they help.
    """
    regions = sorted(shares)
    slots = len(next(iter(capacity.values()), ()))
    totals = [sum(row[slot] for row in capacity.values()) for slot in range(slots)]
    missing = {region: [shares[region] * total for total in totals] for region in regions}
    dealt: dict[str, str] = {}
    for agent in sorted(capacity, key=lambda a: (-sum(capacity[a]), a)):
        region = min(regions, key=lambda r: (_cost_change(missing[r], capacity[agent], 1), r))
        _take(missing[region], capacity[agent], 1)
        dealt[agent] = region
    for _ in range(DEAL_ROUNDS_MAX):
        if not _improve(dealt, capacity, missing, regions):
            break
    return dealt


def _cost_change(missing: Sequence[float], row: Sequence[float], sign: int) -> float:
    return sum((m - sign * c) ** 2 - m**2 for m, c in zip(missing, row, strict=True))


def _take(missing: list[float], row: Sequence[float], sign: int) -> None:
    for slot, seconds in enumerate(row):
        missing[slot] -= sign * seconds


def _improve(
    dealt: dict[str, str],
    capacity: Mapping[str, Sequence[float]],
    missing: dict[str, list[float]],
    regions: Sequence[str],
) -> bool:
    """One round of single moves and pairwise swaps; true if any helped."""
    helped = False
    agents = sorted(dealt)
    for index, agent in enumerate(agents):
        for region in regions:
            helped |= _try_exchange(dealt, capacity, missing, agent, None, region)
        for other in agents[index + 1 :]:
            helped |= _try_exchange(dealt, capacity, missing, agent, other, dealt[other])
    return helped


def _try_exchange(
    dealt: dict[str, str],
    capacity: Mapping[str, Sequence[float]],
    missing: dict[str, list[float]],
    agent: str,
    other: str | None,
    target: str,
) -> bool:
    """Puts `agent` into `target` and `other`, if any, into the place left, where that lowers the
    imbalance.
    """
    source = dealt[agent]
    if source == target:
        return False
    nothing = [0.0] * len(capacity[agent])
    back = capacity[other] if other else nothing
    net = [c - b for c, b in zip(capacity[agent], back, strict=True)]
    if _cost_change(missing[target], net, 1) + _cost_change(missing[source], net, -1) >= -1e-6:
        return False
    _take(missing[target], net, 1)
    _take(missing[source], net, -1)
    dealt[agent] = target
    if other:
        dealt[other] = source
    return True


def constant_duties(count: int, length: float) -> list[Duty]:
    """`count` agents on duty for the whole window. Raises ValueError when there is none."""
    if count < 1:
        raise ValueError(f"AGENTS must be at least 1, not {count}")
    return [Duty(agent=f"agent-{n:04d}", start_seconds=0.0, end_seconds=length) for n in range(1, count + 1)]


def erlang_c(agents: int, load: float) -> float:
    """Probability of waiting with `agents` servers and an offered load in erlangs; 1 when they cannot
    keep up.
    """
    if load <= 0:
        return 0.0
    if agents <= load:
        return 1.0
    blocked = 1.0
    for n in range(1, agents + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1.0 - load / agents * (1.0 - blocked))


def agents_needed(
    load: float, mean_service: float, target_seconds: float = 20.0, target_share: float = 0.8
) -> int:
    """Least agents of at least the square-root rule (beta 0.5) that answer `target_share` within
    `target_seconds`.
    """
    if load <= 0:
        return 0
    agents = max(math.ceil(load + 0.5 * math.sqrt(load)), math.floor(load) + 1)
    while (
        erlang_c(agents, load) * math.exp(-(agents - load) * target_seconds / mean_service)
        > 1.0 - target_share
    ):
        agents += 1
    return agents
