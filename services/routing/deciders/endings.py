"""What ends, or is left, and all that follows from it: an offer, a call's entry, a stream, a session.

Every decider that lets something end says so by these, so that an offer ends exactly once, whoever waits for
an agent that goes waits in line, and what an agent held is let go. They return events and change nothing.
"""

from __future__ import annotations

from routing.model import (
    ACCEPTED,
    CONNECTED,
    ENDED,
    INTERRUPTED,
    OFFERED,
    OFFLINE,
    PAUSED,
    AgentRemoved,
    CallDetached,
    CallEnded,
    CallOutcome,
    CallWrappedUp,
    Event,
    OfferEnded,
    OfferOutcome,
    PreferenceEnded,
    PresenceSet,
    QueueConfig,
    SessionClosed,
    SessionDetached,
)
from routing.state import AgentEntry, CallEntry, ShardState

#: Reason of the pause after too many missed offers.
MISSED_OFFERS = "missed offers"


def end(
    s: ShardState,
    entry: CallEntry,
    outcome: CallOutcome,
    now_ms: int,
    reason: str = "",
    *,
    wrap_up: bool = True,
    recording_uri: str = "",
) -> list[Event]:
    """Ends an entry: its offer first, then the call, with after-call work if a conversation took place."""
    events = end_offer(s, entry)
    after = wrap_up and entry.state is CONNECTED and entry.agent in s.agents
    span_ms = entry.line.queue.wrap_up_span_ms if after else 0
    ended = CallEnded(
        call_id=entry.facts.call_id,
        outcome=outcome,
        reason=reason,
        wrap_up_until_ms=now_ms + span_ms if span_ms else 0,
        recording_uri=recording_uri,
    )
    return [*events, ended]


def end_offer(
    s: ShardState,
    entry: CallEntry,
    outcome: OfferOutcome = OfferOutcome.CANCELLED,
    now_ms: int = 0,
    *,
    busy: bool = False,
) -> list[Event]:
    """Ends the entry's live offer, if it has one, as cancelled unless `outcome` says otherwise; the agent
    rests (or is paused) after a missed one, and is no longer waited for.
    """
    if entry.state is not OFFERED and entry.state is not ACCEPTED:
        return []
    agent = s.agents.get(entry.agent)
    queue = entry.line.queue
    missed, rest_until_ms = (agent.missed, agent.rest_until_ms) if agent is not None else (0, 0)
    before: list[Event] = []
    after: list[Event] = []
    if outcome in (OfferOutcome.EXPIRED, OfferOutcome.DECLINED):
        missed += 1
        rest_span_ms = _rest_span_ms(queue, outcome, busy)
        rest_until_ms = max(rest_until_ms, now_ms + rest_span_ms) if rest_span_ms else rest_until_ms
        if entry.preferred == entry.agent:
            after = [PreferenceEnded(call_id=entry.facts.call_id)]
        if agent is not None and queue.missed_offers_max and missed >= queue.missed_offers_max:
            before = _pause_for_missing(s, agent, entry)
    ended = OfferEnded(
        call_id=entry.facts.call_id,
        offer_id=entry.offer_id,
        agent=entry.agent,
        outcome=outcome,
        rest_until_ms=rest_until_ms,
        missed=missed,
    )
    return [*before, ended, *after]


def _pause_for_missing(s: ShardState, agent: AgentEntry, entry: CallEntry) -> list[Event]:
    """Who has missed too many offers, `entry`'s the last, is waited for no longer."""
    pause = PresenceSet(
        agent=agent.config.id, command=agent.command, presence=PAUSED, pause_reason=MISSED_OFFERS
    )
    others = [e for e in disappoint(s, agent) if e.call_id != entry.facts.call_id]
    return [pause, *others]


def _rest_span_ms(queue: QueueConfig, outcome: OfferOutcome, busy: bool) -> int:
    if outcome is OfferOutcome.EXPIRED:
        return queue.no_answer_delay_span_ms or queue.reject_delay_span_ms
    return (queue.busy_delay_span_ms if busy else 0) or queue.reject_delay_span_ms


def drop_offers(s: ShardState, agent: AgentEntry, *, accepted: bool = True) -> list[Event]:
    events: list[Event] = []
    for call_id in sorted(agent.offers):
        entry = s.calls[call_id]
        if accepted or entry.state is OFFERED:
            events += end_offer(s, entry, OfferOutcome.AGENT_LOST)
    return events


def disappoint(s: ShardState, agent: AgentEntry) -> list[PreferenceEnded]:
    """The agent goes: whoever waits for nobody else waits in line from now on, also a call that rings there,
    whose offer ends with this.
    """
    return [PreferenceEnded(call_id=call_id) for call_id in sorted(agent.wanted_by)]


def detach_events(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    call_id = entry.facts.call_id
    if entry.state is ENDED or entry.callback_number:
        return []
    if entry.state is CONNECTED:
        return [CallDetached(call_id=call_id, until_ms=0)]
    until_ms = max(now_ms, s.conclude_ms) + s.timing.grace_span_ms
    ringing = end_offer(s, entry) if entry.state is OFFERED else []
    return [*ringing, CallDetached(call_id=call_id, until_ms=until_ms)]


def detach_agent_events(s: ShardState, agent: AgentEntry, now_ms: int) -> list[Event]:
    """An absent agent is rung no longer; what was accepted or connected waits for the session."""
    until_ms = max(now_ms, s.conclude_ms) + s.timing.agent_grace_span_ms
    gone = SessionDetached(agent=agent.config.id, until_ms=until_ms)
    return [gone, *drop_offers(s, agent, accepted=False), *disappoint(s, agent)]


def log_out(s: ShardState, agent: AgentEntry, now_ms: int) -> list[Event]:
    events: list[Event] = [
        SessionClosed(agent=agent.config.id),
        *drop_offers(s, agent),
        *disappoint(s, agent),
    ]
    for call_id in sorted(agent.calls):
        events += end(s, s.calls[call_id], INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False)
    for call_id in sorted(agent.wraps):
        events.append(CallWrappedUp(call_id=call_id, agent=agent.config.id, disposition=None))
    return events


def leave(state: ShardState, agent_id: str) -> list[Event]:
    """What a drained agent's last contact is followed by."""
    agent = state.agents.get(agent_id)
    if agent is None or not agent.draining or agent.holding:
        return []
    events: list[Event] = []
    if agent.presence is not OFFLINE:
        events += [*disappoint(state, agent), SessionClosed(agent=agent_id)]
    if agent.remove:
        events.append(AgentRemoved(agent=agent_id))
    return events
