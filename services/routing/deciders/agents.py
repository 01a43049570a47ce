"""What desktops say, and fronts of desktops' streams: offers accepted and declined, sessions, presence,
after-call work.
"""

from __future__ import annotations

from routing.deciders.endings import (
    detach_agent_events,
    detach_events,
    disappoint,
    drop_offers,
    end,
    end_offer,
    log_out,
)
from routing.deciders.refusals import refuse
from routing.model import (
    ACCEPTED,
    AVAILABLE,
    COMPLETED,
    CONNECTED,
    ENDED,
    INTERRUPTED,
    OFFLINE,
    STEP_ENTRIES_MAX,
    AcceptOffer,
    CallConnected,
    CallWrappedUp,
    CloseSession,
    Decision,
    DeclineOffer,
    DetachFront,
    DetachSession,
    Event,
    FinishWrapUp,
    OfferAccepted,
    OfferEnded,
    OfferOutcome,
    OpenSession,
    PresenceSet,
    Refusal,
    SessionOpened,
    SetPresence,
)
from routing.state import AgentEntry, CallEntry, ShardState

#: A decline for this reason counts as busy.
BUSY = "BUSY"


def _session_of(s: ShardState, agent_id: str, session: int) -> AgentEntry | Refusal:
    agent = s.agents.get(agent_id)
    if agent is None:
        return Refusal(reason="AGENT_NOT_FOUND", field="agent")
    if agent.session != session or agent.presence is OFFLINE:
        return Refusal(reason="NEWER_SESSION" if agent.session > session else "NO_SESSION", field="session")
    return agent


def _offer_of(s: ShardState, agent: AgentEntry, offer_id: str) -> CallEntry | None:
    for call_id, held in agent.offers.items():
        if held == offer_id:
            return s.calls[call_id]
    return None


def accept(s: ShardState, c: AcceptOffer, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = _offer_of(s, agent, c.offer_id)
    if entry is None:
        if any(s.calls[call_id].offer_id == c.offer_id for call_id in agent.calls):
            # Asked again, because its answer was lost: it has come to a conversation since.
            return Decision()
        return refuse("OFFER_ENDED", "offer_id")
    if entry.state is ACCEPTED:
        return Decision()
    until_ms = now_ms + s.timing.confirm_span_ms
    call_id = entry.facts.call_id
    accepted = OfferAccepted(call_id=call_id, offer_id=c.offer_id, agent=c.agent, until_ms=until_ms)
    if entry.callback_number:
        # No edge holds a line: the desktop's word is the only one there is.
        return Decision(events=[accepted, CallConnected(call_id=call_id, offer_id=c.offer_id, agent=c.agent)])
    return Decision(events=[accepted])


def decline(s: ShardState, c: DeclineOffer, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = _offer_of(s, agent, c.offer_id)
    if entry is None:
        return refuse("OFFER_ENDED", "offer_id")
    busy = c.reason.upper() == BUSY
    return Decision(events=end_offer(s, entry, OfferOutcome.DECLINED, now_ms, busy=busy))


def open_session(s: ShardState, c: OpenSession, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return refuse("AGENT_NOT_FOUND", "agent")
    if c.session < agent.session:
        return refuse("NEWER_SESSION", "session")
    if c.session == agent.session and c.command < agent.command and c.front != agent.front:
        # Its desktop has left that router's stream for another's, which the router has not heard.
        return refuse("NEWER_SESSION", "command")
    events: list[Event] = []
    if c.session > agent.session:
        events += drop_offers(s, agent)
        for call_id in sorted(agent.calls.difference(c.calls_held)):
            events += end(s, s.calls[call_id], INTERRUPTED, now_ms, "NEW_SESSION", wrap_up=False)
    elif agent.attached and agent.front == c.front and c.command <= agent.command:
        return Decision()
    warm_up_ms = agent.config.warm_up_span_ms if agent.presence is OFFLINE else 0
    same = c.session == agent.session and agent.presence is not OFFLINE and c.command <= agent.command
    opened = SessionOpened(
        agent=c.agent,
        session=c.session,
        command=max(c.command, agent.command) if c.session == agent.session else c.command,
        front=c.front,
        presence=agent.presence if same else c.presence,
        pause_reason=agent.pause_reason if same else c.pause_reason,
        rest_until_ms=now_ms + warm_up_ms if warm_up_ms else 0,
    )
    events.append(opened)
    if opened.presence is not AVAILABLE:
        events += disappoint(s, agent)
    if agent.presence is OFFLINE and agent.missed and opened.presence is AVAILABLE:
        # What was missed before the log-out is no reason to pause who comes back: ready ends the row.
        events.append(PresenceSet(agent=c.agent, command=opened.command, presence=AVAILABLE, pause_reason=""))
    return Decision(events=events)


def detach_session(s: ShardState, c: DetachSession, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None or agent.session != c.session or not agent.attached:
        return Decision()
    if c.front and c.front != agent.front:
        return Decision()
    return Decision(events=detach_agent_events(s, agent, now_ms))


def close_session(s: ShardState, c: CloseSession, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    return Decision(events=log_out(s, agent, now_ms))


def set_presence(s: ShardState, c: SetPresence, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    if c.command <= agent.command:
        return Decision()
    presence = PresenceSet(agent=c.agent, command=c.command, presence=c.presence, pause_reason=c.pause_reason)
    left = [] if c.presence is AVAILABLE else disappoint(s, agent)
    return Decision(events=[presence, *left])


def finish_wrap_up(s: ShardState, c: FinishWrapUp, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = s.calls.get(c.call_id)
    if entry is not None and entry.agent != c.agent and c.call_id in agent.wraps:
        # Handed on: the call goes on, this agent's part of it is done.
        return Decision(events=[CallWrappedUp(call_id=c.call_id, agent=c.agent, disposition=c.disposition)])
    if entry is None or entry.agent != c.agent:
        return refuse("CALL_NOT_HELD", "call_id")
    if entry.wrapped and (entry.disposed or c.disposition is None):
        return Decision()
    ended: list[Event] = []
    if entry.state is CONNECTED:
        ended = end(s, entry, COMPLETED, now_ms, wrap_up=False)
    elif entry.state is not ENDED:
        return refuse("ILLEGAL_STATE", "call_id")
    return Decision(
        events=[*ended, CallWrappedUp(call_id=c.call_id, agent=c.agent, disposition=c.disposition)]
    )


def detach_front(s: ShardState, c: DetachFront, now_ms: int) -> Decision:
    events: list[Event] = []
    entries = 0
    for agent in s.agents.values():
        if agent.front == c.front and agent.attached:
            events += detach_agent_events(s, agent, now_ms)
            entries += 1
            if entries >= STEP_ENTRIES_MAX:
                return Decision(events=events, more=True)
    touched = {event.call_id for event in events if isinstance(event, OfferEnded)}
    for call_id, entry in s.calls.items():
        if entry.front == c.front and entry.attached and entry.state is not ENDED:
            if call_id in touched:
                return Decision(events=events, more=True)
            events += detach_events(s, entry, now_ms)
            entries += 1
            if entries >= STEP_ENTRIES_MAX:
                return Decision(events=events, more=True)
    return Decision(events=events)
