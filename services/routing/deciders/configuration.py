"""What the directory and operators say of a shard: timing, queues, agents, draining, who leads."""

from __future__ import annotations

from routing.deciders.endings import disappoint, log_out
from routing.deciders.refusals import refuse
from routing.model import (
    BEFORE_CONNECTION,
    ENDED,
    STEP_ENTRIES_MAX,
    AgentConfigured,
    AgentDraining,
    AgentRemoved,
    CallRelaxed,
    ConfigureAgent,
    ConfigureQueue,
    ConfigureTiming,
    DeadlinesMoved,
    Decision,
    DrainingSet,
    Event,
    LeadListSet,
    MoveDeadlines,
    QueueConfig,
    QueueConfigured,
    QueueRemoved,
    RemoveAgent,
    RemoveQueue,
    SetDraining,
    SetLeadList,
    TimingConfigured,
)
from routing.state import CallEntry, ShardState


def configure_timing(s: ShardState, c: ConfigureTiming, now_ms: int) -> Decision:
    return Decision(events=[] if s.timing == c.timing else [TimingConfigured(timing=c.timing)])


def configure_queue(s: ShardState, c: ConfigureQueue, now_ms: int) -> Decision:
    """A queue that comes to relax relaxes for those who wait in it, too: their present step ends when it
    would have, or at once. While they are too many for one step, the rules before stay in force.
    """
    if s.queues.get(c.queue.id) == c.queue:
        return Decision()
    waiting = [entry for entry in s.calls.values() if _never_relaxes(entry, c.queue)]
    events: list[Event] = [
        CallRelaxed(
            call_id=entry.facts.call_id,
            step=entry.step,
            relax_ms=max(
                now_ms + 1, entry.queued_ms + sum(p.span_ms for p in c.queue.steps[: entry.step + 1])
            ),
        )
        for entry in waiting[:STEP_ENTRIES_MAX]
    ]
    if len(waiting) > STEP_ENTRIES_MAX:
        return Decision(events=events, more=True)
    return Decision(events=[*events, QueueConfigured(queue=c.queue)])


def _never_relaxes(entry: CallEntry, queue: QueueConfig) -> bool:
    """Whether no timer would take a waiting call to its next step by these rules of its queue."""
    open_ended = not entry.relax_ms and entry.step < len(queue.steps) - 1
    return open_ended and entry.facts.queue == queue.id and entry.state in BEFORE_CONNECTION


def remove_queue(s: ShardState, c: RemoveQueue, now_ms: int) -> Decision:
    if c.queue not in s.queues:
        return Decision()
    if any(e.facts.queue == c.queue and e.state is not ENDED for e in s.calls.values()):
        return refuse("QUEUE_IN_USE", "queue")
    return Decision(events=[QueueRemoved(queue=c.queue)])


def configure_agent(s: ShardState, c: ConfigureAgent, now_ms: int) -> Decision:
    """An agent who was to be removed when free, and is wanted again, stays; one who was to be logged out as
    well is logged out all the same.
    """
    known = s.agents.get(c.agent.id)
    same = known is not None and known.config == c.agent
    events: list[Event] = [] if same else [AgentConfigured(agent=c.agent)]
    if known is not None and known.wanted_by and not same:
        takes = {channel for channel, count in c.agent.capacity if count > 0}
        events += [e for e in disappoint(s, known) if s.calls[e.call_id].facts.channel not in takes]
    if known is not None and known.remove:
        asked = known.log_out
        events.append(AgentDraining(agent=c.agent.id, draining=asked, log_out=asked))
    return Decision(events=events)


def remove_agent(s: ShardState, c: RemoveAgent, now_ms: int) -> Decision:
    """At once, or when the contacts in hand are finished."""
    agent = s.agents.get(c.agent)
    if agent is None or agent.remove:
        return Decision()
    if agent.calls or agent.wraps:
        # Who drains already has been asked to go, whichever release has written it down.
        draining = AgentDraining(agent=c.agent, draining=True, remove=True, log_out=agent.draining)
        return Decision(events=[draining, *disappoint(s, agent)])
    return Decision(events=[*log_out(s, agent, now_ms), AgentRemoved(agent=c.agent)])


def set_draining(s: ShardState, c: SetDraining, now_ms: int) -> Decision:
    return Decision(events=[] if s.draining == c.draining else [DrainingSet(draining=c.draining)])


def set_lead_list(s: ShardState, c: SetLeadList, now_ms: int) -> Decision:
    return Decision(events=[] if s.lead_list == c.routers else [LeadListSet(routers=c.routers)])


def move_deadlines(s: ShardState, c: MoveDeadlines, now_ms: int) -> Decision:
    return Decision(events=[DeadlinesMoved(span_ms=c.span_ms)] if c.span_ms > 0 else [])
