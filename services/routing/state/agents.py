"""Events of agents' sessions, applied: there, gone, in a pause, rested, leaving."""

from __future__ import annotations

from routing.model import (
    AVAILABLE,
    OFFLINE,
    AgentDraining,
    AgentRested,
    PresenceSet,
    SessionClosed,
    SessionDetached,
    SessionOpened,
)
from routing.state.entries import AgentEntry
from routing.state.indexes import refresh
from routing.state.lines import set_presence
from routing.state.shard import ShardState


def session_opened(s: ShardState, e: SessionOpened) -> None:
    agent = s.agents[e.agent]
    if agent.presence is OFFLINE:
        agent.taken = agent.busy_span_ms = agent.busy_since_ms = 0
        agent.login_ms = s.now_ms
        agent.rest_until_ms = e.rest_until_ms
        agent.draining, agent.log_out = agent.remove, False
        s.set_deadline(e.rest_until_ms, "rest", e.agent)
    agent.session, agent.command, agent.front = e.session, e.command, e.front
    agent.lost_ms = 0
    agent.pause_reason = e.pause_reason
    set_presence(agent, e.presence, attached=True)
    refresh(s, agent)


def session_detached(s: ShardState, e: SessionDetached) -> None:
    detach_agent(s, s.agents[e.agent], e.until_ms)


def detach_agent(s: ShardState, agent: AgentEntry, until_ms: int) -> None:
    agent.lost_ms = until_ms
    set_presence(agent, agent.presence, attached=False)
    s.set_deadline(until_ms, "lost", agent.config.id)
    refresh(s, agent)


def session_closed(s: ShardState, e: SessionClosed) -> None:
    agent = s.agents[e.agent]
    agent.lost_ms = agent.rest_until_ms = 0
    agent.pause_reason = ""
    agent.draining, agent.log_out = agent.remove, False
    set_presence(agent, OFFLINE, attached=False)
    refresh(s, agent)


def presence_set(s: ShardState, e: PresenceSet) -> None:
    agent = s.agents[e.agent]
    agent.command, agent.pause_reason = e.command, e.pause_reason
    if e.presence is AVAILABLE:
        agent.missed = 0
    set_presence(agent, e.presence, attached=agent.attached)
    refresh(s, agent)


def agent_draining(s: ShardState, e: AgentDraining) -> None:
    agent = s.agents[e.agent]
    agent.draining, agent.remove, agent.log_out = e.draining or e.remove, e.remove, e.log_out
    refresh(s, agent)


def agent_rested(s: ShardState, e: AgentRested) -> None:
    agent = s.agents[e.agent]
    agent.rest_until_ms = 0
    refresh(s, agent)
