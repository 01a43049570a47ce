"""A shard's live figures: what waits, who is there, who talks. A pure read, for supervisors, not for routing.

Agents by state and calls in service are running totals of the state. What is walked over are those who wait,
about a quarter of a microsecond each, and, when they are asked for, the agents who are told one by one.
"""

from __future__ import annotations

from routing.model import AgentState, AgentView, AskStats, QueueFigures, ShardStats
from routing.state import ShardState
from routing.views import queue_loads, view_agent

#: Agents told one by one, at most.
AGENTS_TOLD_MAX = 2_000


def shard_stats(state: ShardState, question: AskStats, now_ms: int) -> ShardStats:
    """Figures of every queue by id, agents by state, and on request the agents who are logged in, by id."""
    oldest = _oldest(state)
    agents, left_out = _told(state, question.after) if question.agents else ((), 0)
    return ShardStats(
        now_ms=now_ms,
        draining=state.draining,
        queues=tuple(
            QueueFigures(
                queue=load.queue,
                waiting=load.waiting,
                longest_wait_span_ms=max(0, now_ms - oldest[load.queue]) if load.queue in oldest else 0,
                expected_wait_span_ms=load.expected_wait_span_ms,
                agents_logged_in=load.agents_logged_in,
                agents_free=load.agents_free,
                in_service=state.in_service.get(load.queue, 0),
            )
            for load in queue_loads(state)
        ),
        agents_by_state=tuple(sorted((str(name), count) for name, count in state.by_state.items() if count)),
        agents=agents,
        agents_left_out=left_out,
    )


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
