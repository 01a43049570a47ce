"""A shard's live figures: what waits, who is there, who talks. A pure read, for supervisors, not for routing.

Agents by state and calls in service are running totals of the state. What is walked over are those who wait,
about a quarter of a microsecond each, the agents of a queue's other channels who do not fit its plain voice
line, and, when they are asked for, the agents who are told one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

from routing.model import OFFLINE, VOICE, AgentState, AgentView, AskStats, QueueFigures, ShardStats
from routing.state import ShardState
from routing.views import QueueLoad, expected_wait_span_ms, queue_loads, view_agent

#: Agents told one by one, at most.
AGENTS_TOLD_MAX = 2_000


def shard_stats(state: ShardState, question: AskStats, now_ms: int) -> ShardStats:
    """Figures of every queue by id, agents by state, and on request the agents who are logged in, by id."""
    oldest = _oldest(state)
    agents, left_out = _told(state, question.after) if question.agents else ((), 0)
    return ShardStats(
        now_ms=now_ms,
        draining=state.draining,
        queues=tuple(_queue(state, load, oldest, now_ms) for load in queue_loads(state)),
        agents_by_state=tuple(sorted((str(name), count) for name, count in state.by_state.items() if count)),
        agents=agents,
        agents_left_out=left_out,
    )


def _queue(state: ShardState, load: QueueLoad, oldest: Mapping[str, int], now_ms: int) -> QueueFigures:
    logged_in, free, expected_ms = _staff(state, load)
    return QueueFigures(
        queue=load.queue,
        waiting=load.waiting,
        longest_wait_span_ms=max(0, now_ms - oldest[load.queue]) if load.queue in oldest else 0,
        expected_wait_span_ms=expected_ms,
        agents_logged_in=logged_in,
        agents_free=free,
        in_service=state.in_service.get(load.queue, 0),
    )


def _staff(state: ShardState, load: QueueLoad) -> tuple[int, int, int]:
    """Agents logged in who fit a queue, those of them who are free, and its expected wait: of voice, which is
    what regions are compared by, and of those channels by which others have come. Who takes several channels
    counts once.
    """
    logged_in, free, expected_ms = load.agents_logged_in, load.agents_free, load.expected_wait_span_ms
    lines = [line for line in state.lines_by_queue.get(load.queue, ()) if line.key[3] == 0]
    others = [line for line in lines if line.channel != VOICE]
    if not others:
        return logged_in, free, expected_ms
    if not logged_in:
        busiest = max(others, key=lambda line: line.logged_in)
        expected_ms = expected_wait_span_ms(busiest, state.tallies.get(load.queue), load.waiting)
    # Nearly everybody takes calls, too: what is walked over are those who do not.
    plain = state.lines.get((load.queue, VOICE, (), 0))
    counted = plain.agents if plain is not None else set()
    for line in others:
        new = line.agents - counted
        if not new:
            continue
        agents = [state.agents[agent_id] for agent_id in new]
        logged_in += sum(agent.presence is not OFFLINE for agent in agents)
        free += sum(line.channel in agent.idle for agent in agents)
        counted = counted | new
    return logged_in, free, expected_ms


def _told(state: ShardState, after: str) -> tuple[tuple[AgentView, ...], int]:
    """Agents behind `after`, and how many more there are."""
    there = (a for a, agent in state.agents.items() if a > after and agent.counted is not AgentState.OFFLINE)
    present = sorted(there)
    told = present[:AGENTS_TOLD_MAX]
    return tuple(view_agent(state, agent_id) for agent_id in told), len(present) - len(told)


def _oldest(state: ShardState) -> dict[str, int]:
    """When the caller came who has waited longest, by queue. Who is to be called back waits for nothing."""
    oldest: dict[str, int] = {}
    heaps = [line.waiting for line in state.lines.values() if line.waiting_count]
    heaps += [heap for agent in state.agents.values() if agent.own_count for heap in agent.own.values()]
    for heap in heaps:
        for _, _, call_id, ticket in heap:
            entry = state.calls.get(call_id)
            if entry is not None and entry.ticket == ticket and not entry.callback_number:
                queue = entry.facts.queue
                oldest[queue] = min(oldest.get(queue, entry.queued_ms), entry.queued_ms)
    return oldest
