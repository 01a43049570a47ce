"""Events of a shard's configuration, applied: queues and agents join lines anew, or leave them."""

from __future__ import annotations

import heapq

from routing.model import (
    BEFORE_CONNECTION,
    AgentConfigured,
    AgentRemoved,
    DrainingSet,
    LeadListSet,
    QueueConfigured,
    QueueRemoved,
    TimingConfigured,
)
from routing.state.calls import end_preference
from routing.state.entries import AgentEntry, Line
from routing.state.indexes import refresh
from routing.state.lines import fill, join, leave_lines, part, stay_free, turn_of
from routing.state.shard import ShardState
from routing.state.tallies import Tally


def timing_configured(s: ShardState, e: TimingConfigured) -> None:
    s.timing = e.timing


def draining_set(s: ShardState, e: DrainingSet) -> None:
    s.draining = e.draining


def lead_list_set(s: ShardState, e: LeadListSet) -> None:
    s.lead_list = e.routers


def queue_configured(s: ShardState, e: QueueConfigured) -> None:
    s.queues[e.queue.id] = e.queue
    s.tallies.setdefault(e.queue.id, Tally())
    for line in s.lines_by_queue.get(e.queue.id, []):
        for agent_id in line.agents:
            part(s.agents[agent_id], line)
        s.unshare(line)
        line.configure(e.queue)
        line.agents, line.logged_in, line.present, line.serving = set(), 0, 0, 0
        fill(line, s.agents_with(line.asked), listed=s.share(line))
        _line_up(s, line)
    s.index_lines()
    for step in range(max(1, len(e.queue.steps))):
        s.line_of((e.queue.id, "voice", (), step))
    if e.queue.closed:
        _close_queue(s, e.queue.id)


def _line_up(s: ShardState, line: Line) -> None:
    """Whoever waits in a line stands where its queue's head start puts it now, and is looked at if somebody
    is free: the first ones, by the queue's strategy.
    """
    waiting = [
        (*turn_of(entry), call_id, ticket)
        for _, _, call_id, ticket in line.waiting
        if (entry := s.calls.get(call_id)) is not None and entry.ticket == ticket
    ]
    heapq.heapify(waiting)
    line.waiting = waiting
    first = heapq.nsmallest(min(line.free.count(), len(waiting)), waiting)
    s.hot_calls.extend(call_id for _, _, call_id, _ in first)


def _close_queue(s: ShardState, queue_id: str) -> None:
    """Whoever waits in a closed queue is refused, one by one, by the timers."""
    for call_id, entry in s.calls.items():
        if entry.facts.queue == queue_id and entry.state in BEFORE_CONNECTION:
            entry.refuse_ms = s.now_ms
            s.set_deadline(s.now_ms, "refuse", call_id)


def queue_removed(s: ShardState, e: QueueRemoved) -> None:
    s.queues.pop(e.queue, None)
    s.crowds.pop(e.queue, None)
    for line in s.lines_by_queue.pop(e.queue, []):
        s.lines.pop(line.key, None)
        s.unshare(line)
        for agent_id in line.agents:
            part(s.agents[agent_id], line)
    s.index_lines()


def agent_configured(s: ShardState, e: AgentConfigured) -> None:
    agent = s.agents.get(e.agent.id)
    free_since_ms: dict[str, int] = {}
    if agent is None:
        agent = s.agents[e.agent.id] = AgentEntry(e.agent)
    else:
        free_since_ms = {channel: place.since_ms for channel, place in agent.idle.items()}
        leave_lines(agent)
        s.drop_skills(agent)
        agent.configure(e.agent)
    s.index_skills(agent)
    for line in s.lines_for(agent):
        join(agent, line)
    stay_free(agent, free_since_ms)
    refresh(s, agent)


def agent_removed(s: ShardState, e: AgentRemoved) -> None:
    agent = s.agents.get(e.agent)
    if agent is None:
        return
    for call_id in sorted(agent.wanted_by):
        end_preference(s, s.calls[call_id])
    del s.agents[e.agent]
    s.count(agent, None)
    for call_id in (*agent.offers, *agent.calls):
        s.serve(s.calls[call_id].facts.queue, -1)
    s.drop_skills(agent)
    leave_lines(agent)
