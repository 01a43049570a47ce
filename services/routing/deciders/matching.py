"""Who gets whom: the call for an agent who became free, the agent for a call that began to wait. Rule 3.

`engine.pair` asks here, one match at a time. What orders calls and agents is in the state's lines.
"""

from __future__ import annotations

from routing.model import CallOffered, Strategy
from routing.state import CallEntry, ShardState, best_idle, head_of

#: Of the strategies the one that draws lots, by a short name.
_RANDOM = Strategy.RANDOM


def call_for(state: ShardState, agent_id: str) -> tuple[str, str] | None:
    """The call that has waited longest over all lines the agent is free for, and who is to take it: this
    agent, unless it let that very call ring in vain and somebody else is free.
    """
    agent = state.agents.get(agent_id)
    if agent is None or not agent.idle:
        return None
    best: tuple[int, int, str] | None = None
    if agent.own_count:
        best = min(
            (head for channel in agent.idle if (head := head_of(agent.own.get(channel, []), state.calls))),
            default=None,
        )
        if best is not None:
            return best[2], agent_id
    for channel in agent.idle:
        for line in agent.lines.get(channel, ()):
            # An outdated entry at the top is ahead of the line's true head: whatever is not ahead of the best
            # need not be looked at.
            if line.waiting_count and line.waiting and (best is None or line.waiting[0] < best):
                head = head_of(line.waiting, state.calls)
                if head is not None and (best is None or head < best):
                    best = head
    if best is None:
        return None
    entry = state.calls[best[2]]
    if agent_id in entry.declined_by:
        return best[2], _taker(state, entry) or agent_id
    return best[2], agent_id


def _taker(state: ShardState, entry: CallEntry) -> str | None:
    """The best free agent of a call's line; None when nobody is free."""
    queue = entry.line.queue
    lot = _lot(queue.seed, state.offers_made) if queue.strategy is _RANDOM else 0
    return best_idle(entry.line, state.agents, lot, entry.declined_by)


def agent_for(state: ShardState, call_id: str) -> tuple[str, str] | None:
    """The best free agent for the head of the call's line (the head, so that nobody is overtaken), or the
    agent it waits for.
    """
    entry = state.calls.get(call_id)
    if entry is None or not entry.ticket:
        return None
    preferred = state.agents.get(entry.preferred)
    if preferred is not None:
        return call_for(state, entry.preferred) if entry.facts.channel in preferred.idle else None
    head = head_of(entry.line.waiting, state.calls)
    agent_id = _taker(state, state.calls[head[2]]) if head is not None else None
    return None if agent_id is None or head is None else (head[2], agent_id)


def _lot(seed: int, draws: int) -> int:
    """A number that looks random and is the same again for the same journal: splitmix64 (Steele, Lea and
    Flood 2014, https://doi.org/10.1145/2660193.2660195) of the queue's seed and the offers made so far.
    """
    z = (seed * 0x9E3779B97F4A7C15 + (draws + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


def offer(state: ShardState, call_id: str, agent_id: str, now_ms: int) -> CallOffered:
    offer_id = f"{state.shard}.{state.epoch}.{state.offers_made + 1}"
    until_ms = now_ms + state.calls[call_id].line.queue.ring_span_ms
    return CallOffered(call_id=call_id, offer_id=offer_id, agent=agent_id, until_ms=until_ms)
