"""What supervisors do to agents and conversations, and the record of it."""

from __future__ import annotations

from routing.deciders.endings import disappoint, drop_offers, log_out
from routing.deciders.refusals import conversation, refuse
from routing.model import (
    AVAILABLE,
    OFFLINE,
    PAUSED,
    ActRecorded,
    AgentDraining,
    CallMonitored,
    Decision,
    ForceLogOut,
    MonitorCall,
    PauseAgent,
    PresenceSet,
    RecordAct,
)
from routing.state import ShardState


def force_log_out(s: ShardState, c: ForceLogOut, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return refuse("AGENT_NOT_FOUND", "agent")
    if agent.presence is OFFLINE:
        return Decision()
    if c.interrupt or not agent.holding:
        return Decision(events=log_out(s, agent, now_ms))
    if agent.draining and (agent.log_out or not agent.remove):
        return Decision()
    draining = AgentDraining(agent=c.agent, draining=True, remove=agent.remove, log_out=True)
    return Decision(events=[draining, *drop_offers(s, agent, accepted=False), *disappoint(s, agent)])


def pause_agent(s: ShardState, c: PauseAgent, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return refuse("AGENT_NOT_FOUND", "agent")
    if agent.presence is OFFLINE:
        return refuse("NO_SESSION", "agent")
    presence = PAUSED if c.paused else AVAILABLE
    reason = c.reason if c.paused else ""
    if (agent.presence, agent.pause_reason) == (presence, reason):
        return Decision()
    paused = PresenceSet(agent=c.agent, command=agent.command, presence=presence, pause_reason=reason)
    return Decision(events=[paused, *(disappoint(s, agent) if c.paused else [])])


def monitor(s: ShardState, c: MonitorCall, now_ms: int) -> Decision:
    entry = conversation(s, c.call_id)
    if isinstance(entry, Decision):
        return entry
    return Decision(events=[CallMonitored(call_id=c.call_id, mode=c.mode, address=c.address)])


def record_act(s: ShardState, c: RecordAct, now_ms: int) -> Decision:
    act = ActRecorded(actor=c.actor, act=c.act, subject=c.subject, reason=c.reason, details=c.details)
    return Decision(events=[act])
