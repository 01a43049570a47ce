"""What one call or agent is listed in, brought into line with its facts.

Whoever has changed an agent calls `refresh`; whoever has changed whether, or where, a call waits calls
`list_call`, `unlist_call` or `prefer`. Taking in an image ends with the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from routing.state.entries import AgentEntry, CallEntry
from routing.state.free import Place
from routing.state.lines import come, turn_of
from routing.state.shard import DUE_OF_AGENT, DUE_OF_CALL, ShardState


def refresh(state: ShardState, agent: AgentEntry) -> None:
    """Brings the agent's place in the idle heaps into line with what it holds."""
    _account(state, agent)
    standing = agent.state
    if standing is not agent.counted:
        state.count(agent, standing)
    if agent.draining and not agent.holding:
        state.leaving.append(agent.config.id)
    takes = not (agent.wraps or agent.rest_until_ms or agent.draining) and agent.serves
    if not takes and not agent.idle:
        return
    held = len(agent.offers) + len(agent.calls)
    for channel, capacity in agent.config.capacity:
        if takes and held < capacity and (not held or _holds_only(state, agent, channel)):
            if channel not in agent.idle:
                agent.since_ms = state.now_ms
                come(agent, channel)
            state.hot_agents.append(agent.config.id)
        elif channel in agent.idle:
            agent.idle.pop(channel).live = False
            for line in agent.plain.get(channel, ()):
                line.idle -= 1


def _holds_only(state: ShardState, agent: AgentEntry, channel: str) -> bool:
    """Whether all that the agent holds is of one channel."""
    return all(state.calls[call_id].facts.channel == channel for call_id in (*agent.offers, *agent.calls))


def _account(state: ShardState, agent: AgentEntry) -> None:
    """Counts the time on contacts, for the strategies that look at it."""
    if agent.offers or agent.calls or agent.wraps:
        agent.busy_since_ms = agent.busy_since_ms or state.now_ms
    elif agent.busy_since_ms:
        agent.busy_span_ms += state.now_ms - agent.busy_since_ms
        agent.busy_since_ms = 0


def list_call(state: ShardState, entry: CallEntry) -> None:
    """Puts a call that may be offered into its line's heap (again), or into that of the agent it waits for,
    at its original place.
    """
    unlist_call(state, entry)
    if not entry.offerable:
        return
    entry.ticket = state.next_ticket()
    place = (*turn_of(entry), entry.facts.call_id, entry.ticket)
    preferred = state.agents.get(entry.preferred)
    if preferred is None:
        heapq.heappush(entry.line.waiting, place)
    else:
        heapq.heappush(preferred.own.setdefault(entry.facts.channel, []), place)
        preferred.own_count += 1
    entry.line.waiting_count += 1
    entry.line.crowd.waiting += 1
    state.hot_calls.append(entry.facts.call_id)


def unlist_call(state: ShardState, entry: CallEntry) -> None:
    if not entry.ticket:
        return
    entry.ticket = 0
    entry.line.waiting_count -= 1
    entry.line.crowd.waiting -= 1
    preferred = state.agents.get(entry.preferred)
    if preferred is not None:
        preferred.own_count -= 1


def prefer(state: ShardState, entry: CallEntry, agent_id: str) -> None:
    """Makes a call, which is not listed, one agent's first; "" for nobody's."""
    for name, change in ((entry.preferred, set.discard), (agent_id, set.add)):
        agent = state.agents.get(name) if name else None
        if agent is not None:
            change(agent.wanted_by, entry.facts.call_id)
    entry.preferred = agent_id


def adopt_agent(state: ShardState, agent: AgentEntry, free_since: Mapping[str, int]) -> None:
    """Takes in an agent of an image, before the lines: it can be found, it is free on the channels of
    `free_since` since then, and its deadlines run.
    """
    state.agents[agent.config.id] = agent
    state.count(agent, agent.state)
    agent.idle = {channel: Place(agent.config.id, agent, ms) for channel, ms in free_since.items()}
    state.index_skills(agent)
    for kind, name in DUE_OF_AGENT.items():
        state.set_deadline(getattr(agent, name), kind, agent.config.id)
    for call_id, (_, due_ms) in agent.wraps.items():
        state.set_deadline(due_ms, "wrap", f"{agent.config.id}/{call_id}")


def adopt_call(state: ShardState, entry: CallEntry, *, listed: bool) -> None:
    """Takes in a call of an image, after agents and lines: its deadlines run, and it waits if it did."""
    state.calls[entry.facts.call_id] = entry
    agent = state.agents.get(entry.agent)
    if agent is not None and (entry.facts.call_id in agent.calls or entry.facts.call_id in agent.offers):
        state.serve(entry.facts.queue, 1)
    for kind, name in DUE_OF_CALL.items():
        state.set_deadline(getattr(entry, name), kind, entry.facts.call_id)
    prefer(state, entry, entry.preferred)
    if listed:
        list_call(state, entry)
