"""Who talks to whom: the pure core of routing.

The rules, in prose (ROUTING in docs/routing.md has their reasons):

1. A command comes in, `decide` looks at the state and says which events follow, `evolve` (state.py) applies
them. No
   clock, no randomness, no I/O: `now_ms` is passed in. A command that makes `decide` raise has changed
   nothing.
2. A call waits in the line of its queue, channel and extra skills, ordered by effective arrival: when it
first came, less
   the credit of its priority. It keeps that place for ever: an offer that fails puts it back where it was.
3. Whoever becomes free takes the call that has waited longest over all lines that fit (weights are head
starts); a call
   that arrives takes the best free agent by its queue's strategy. `pair` does both, right after each command.
4. Only an attached call is offered, to an attached agent. A call whose stream broke keeps its place,
unoffered, for the
   grace period; after a leader change nothing is concluded from absence for the re-attach period.
5. An offer is ringing (OFFERED) until the agent accepts, then held (ACCEPTED) until the edge confirms
exactly this offer.
   Only the edge's confirmation connects. Every offer ends exactly once.
6. (attempt, move) is a call's version. A lower one is refused, the same one attaches again, a higher one
takes over.
7. What an agent holds is a set of call ids; ending twice frees once.
8. A deadline is state. `Tick` does what is due, in steps of bounded size.

`step` is the whole engine for one command: decide, evolve, pair; it returns the events in order and the
answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routing.model import (
    BEFORE_CONNECTION,
    LINES_MAX,
    STEP_ENTRIES_MAX,
    AcceptOffer,
    AgentConfigured,
    AgentRemoved,
    AgentRested,
    Answer,
    AskAgent,
    AskCall,
    AskCalls,
    CallAttached,
    CallConnected,
    CallDetached,
    CallEnded,
    CallOffered,
    CallOutcome,
    CallOverflowing,
    CallQueued,
    CallReprioritized,
    CallResumed,
    CallsForgotten,
    CallState,
    CallWrappedUp,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfigureTiming,
    ConfirmCall,
    Decision,
    DeclineOffer,
    DetachCall,
    DetachFront,
    DetachSession,
    DrainingSet,
    EndCall,
    Event,
    FinishWrapUp,
    HangUp,
    OfferAccepted,
    OfferEnded,
    OfferOutcome,
    OpenSession,
    OverflowCall,
    PlaceCall,
    Presence,
    PresenceSet,
    QueueConfigured,
    QueueRemoved,
    Refusal,
    RemoveAgent,
    RemoveQueue,
    Reprioritize,
    SessionClosed,
    SessionDetached,
    SessionOpened,
    SetDraining,
    SetPresence,
    Tick,
    TimingConfigured,
    WithdrawCall,
)
from routing.state import (
    AgentEntry,
    CallEntry,
    ShardState,
    best_idle,
    evolve,
    head_of,
    next_deadline,
)
from routing.views import page_of_calls, view_agent, view_call

#: Priorities beyond this are refused.
PRIORITY_MAX = 100
#: Reason of the pause after too many missed offers.
MISSED_OFFERS = "missed offers"


def step(state: ShardState, command: Command, now_ms: int) -> tuple[list[Event], Answer]:
    """Decides `command` at `now_ms`, applies what follows and pairs calls with agents; returns all events
    and the answer.

    Raises whatever `decide` raises, in which case nothing has changed.
    """
    now_ms = max(now_ms, state.now_ms)
    decision = decide(state, command, now_ms)
    events = decision.events
    for event in events:
        evolve(state, event, now_ms)
    for offer in pair(state, now_ms):
        events.append(offer)
    return events, _answer(state, command, decision)


def decide(state: ShardState, command: Command, now_ms: int) -> Decision:
    """What follows from a command; changes nothing."""
    return _DECIDE[type(command)](state, command, now_ms)


def pair(state: ShardState, now_ms: int) -> list[Event]:
    """Offers calls to free agents until neither worklist has a match left, applying each offer as it is
    made.
    """
    offers: list[Event] = []
    while state.hot_agents or state.hot_calls:
        if state.hot_agents:
            match = _call_for(state, state.hot_agents.pop())
        else:
            match = _agent_for(state, state.hot_calls.pop())
        if match is not None:
            offer = _offer(state, *match, now_ms)
            evolve(state, offer, now_ms)
            offers.append(offer)
    return offers


def _call_for(state: ShardState, agent_id: str) -> tuple[str, str] | None:
    """The call that has waited longest over all lines the agent is free for."""
    agent = state.agents.get(agent_id)
    if agent is None or not agent.idle:
        return None
    best: tuple[int, int, str] | None = None
    for line in agent.lines:
        if line.waiting_count and line.channel in agent.idle:
            head = head_of(line, state.calls)
            if head is not None and (best is None or head < best):
                best = head
    return None if best is None else (best[2], agent_id)


def _agent_for(state: ShardState, call_id: str) -> tuple[str, str] | None:
    """The best free agent for the head of the call's line (the head, so that nobody is overtaken)."""
    entry = state.calls.get(call_id)
    if entry is None or not entry.ticket:
        return None
    agent_id = best_idle(entry.line, state.agents)
    head = head_of(entry.line, state.calls)
    return None if agent_id is None or head is None else (head[2], agent_id)


def _offer(state: ShardState, call_id: str, agent_id: str, now_ms: int) -> CallOffered:
    offer_id = f"{state.shard}.{state.epoch}.{state.offers_made + 1}"
    until_ms = now_ms + state.calls[call_id].line.queue.ring_span_ms
    return CallOffered(call_id=call_id, offer_id=offer_id, agent=agent_id, until_ms=until_ms)


def _refuse(reason: str, field: str = "") -> Decision:
    return Decision(refusal=Refusal(reason=reason, field=field))


# --- calls ------------------------------------------------------------------------------------------------
# -----------


def _place(s: ShardState, c: PlaceCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.facts.call_id)
    if entry is None:
        return _queue(s, c, now_ms, [])
    version = (c.attempt, c.move)
    if version < entry.version:
        return _refuse("STALE_ATTEMPT", "attempt")
    if version == entry.version:
        return Decision(events=_attach(entry, c)) if entry.state is not CallState.ENDED else Decision()
    if entry.state is CallState.ENDED:
        return _replace_ended(s, c, entry, now_ms)
    if entry.state is CallState.CONNECTED:
        if not c.agent_lost:
            return Decision(events=_attach(entry, c))
        return _queue(
            s, c, now_ms, _end(s, entry, CallOutcome.INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False)
        )
    if c.facts.queue == entry.facts.queue and entry.state in (CallState.WAITING, CallState.OVERFLOWING):
        return Decision(events=_attach(entry, c))
    return _queue(s, c, now_ms, _end_offer(s, entry, OfferOutcome.CANCELLED))


def _replace_ended(s: ShardState, c: PlaceCall, entry: CallEntry, now_ms: int) -> Decision:
    """A newer version of a call whose entry has ended: a completed one stays so, anything else is queued
    anew.
    """
    if entry.outcome is CallOutcome.COMPLETED:
        return Decision()
    before: list[Event] = []
    if entry.wrap_up_until_ms:
        before.append(CallWrappedUp(call_id=c.facts.call_id, agent=entry.agent, disposition=None))
    return _queue(s, c, now_ms, before)


def _attach(entry: CallEntry, c: PlaceCall) -> list[Event]:
    same = entry.attached and entry.front == c.front and entry.version == (c.attempt, c.move)
    if same and entry.state is not CallState.OVERFLOWING:
        return []
    return [CallAttached(call_id=c.facts.call_id, attempt=c.attempt, move=c.move, front=c.front)]


def _queue(s: ShardState, c: PlaceCall, now_ms: int, before: list[Event]) -> Decision:
    """Queues a call, after the events that make room for it."""
    queue = s.queues.get(c.facts.queue)
    if queue is None:
        return _refuse("QUEUE_NOT_FOUND", "queue")
    key = (queue.id, c.facts.channel, c.facts.skills)
    line = s.lines.get(key)
    if line is None and len(s.lines) >= LINES_MAX:
        return _refuse("TOO_MANY_SKILL_SETS", "skills")
    if sum(each.waiting_count for each in s.lines_by_queue.get(queue.id, [])) >= queue.length_max:
        return _refuse("QUEUE_FULL", "queue")
    if queue.refuse_without_agents and (line is None or line.logged_in == 0):
        return _refuse("NO_AGENT_LOGGED_IN", "queue")
    queued_ms = now_ms - c.waited_span_ms
    queued = CallQueued(
        facts=c.facts,
        attempt=c.attempt,
        move=c.move,
        front=c.front,
        queued_ms=queued_ms,
        effective_ms=queued_ms - c.facts.priority * queue.priority_credit_span_ms,
        waited_span_ms=c.waited_span_ms,
        refuse_ms=queued_ms + queue.wait_span_max_ms if queue.wait_span_max_ms else 0,
    )
    return Decision(events=[*before, queued])


def _detach(s: ShardState, c: DetachCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None or entry.version != (c.attempt, c.move) or not entry.attached:
        return Decision()
    return Decision(events=_detach_events(s, entry, now_ms))


def _detach_events(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    call_id = entry.facts.call_id
    if entry.state is CallState.ENDED:
        return []
    if entry.state is CallState.CONNECTED:
        return [CallDetached(call_id=call_id, until_ms=0)]
    until_ms = max(now_ms, s.conclude_ms) + s.timing.grace_span_ms
    ringing = _end_offer(s, entry, OfferOutcome.CANCELLED) if entry.state is CallState.OFFERED else []
    return [*ringing, CallDetached(call_id=call_id, until_ms=until_ms)]


def _overflow(s: ShardState, c: OverflowCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.version != (c.attempt, c.move):
        return _refuse("STALE_VERSION", "version")
    if entry.state is CallState.OVERFLOWING:
        return Decision()
    if entry.state is not CallState.WAITING:
        return _refuse("ILLEGAL_STATE")
    return Decision(events=[CallOverflowing(call_id=c.call_id, until_ms=now_ms + s.timing.move_span_ms)])


def _withdraw(s: ShardState, c: WithdrawCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None or entry.state is CallState.ENDED or entry.version >= (c.attempt, c.move):
        return Decision()
    if entry.state is CallState.CONNECTED:
        return _refuse("ILLEGAL_STATE")
    return Decision(events=_end(s, entry, CallOutcome.MOVED, now_ms, c.reason))


def _hang_up(s: ShardState, c: HangUp, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is CallState.ENDED or (c.attempt and c.attempt < entry.attempt):
        return Decision()
    connected = entry.state is CallState.CONNECTED
    outcome = CallOutcome.COMPLETED if connected else CallOutcome.ABANDONED
    return Decision(events=_end(s, entry, outcome, now_ms))


def _end_call(s: ShardState, c: EndCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is CallState.ENDED or (c.attempt and c.attempt < entry.attempt):
        return Decision()
    if entry.state is not CallState.CONNECTED:
        return _refuse("ILLEGAL_STATE")
    if c.agent and c.agent != entry.agent:
        return _refuse("CALL_NOT_HELD", "call_id")
    return Decision(events=_end(s, entry, CallOutcome.COMPLETED, now_ms, recording_uri=c.recording_uri))


def _end(
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
    events = _end_offer(s, entry, OfferOutcome.CANCELLED)
    after = wrap_up and entry.state is CallState.CONNECTED and entry.agent in s.agents
    span_ms = entry.line.queue.wrap_up_span_ms if after else 0
    ended = CallEnded(
        call_id=entry.facts.call_id,
        outcome=outcome,
        reason=reason,
        wrap_up_until_ms=now_ms + span_ms if span_ms else 0,
        recording_uri=recording_uri,
    )
    return [*events, ended]


def _confirm(s: ShardState, c: ConfirmCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.offer_id == c.offer_id and entry.state is CallState.CONNECTED:
        return Decision()
    if entry.state in (CallState.ENDED, CallState.CONNECTED):
        return _refuse("CALL_ENDED" if entry.state is CallState.ENDED else "OFFER_ENDED", "offer_id")
    if entry.version != (c.attempt, c.move):
        return _refuse("STALE_VERSION", "version")
    if entry.state is not CallState.ACCEPTED or entry.offer_id != c.offer_id:
        return _refuse("OFFER_ENDED", "offer_id")
    return Decision(events=[CallConnected(call_id=c.call_id, offer_id=c.offer_id, agent=entry.agent)])


def _reprioritize(s: ShardState, c: Reprioritize, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if abs(c.priority) > PRIORITY_MAX:
        return _refuse("OUT_OF_RANGE", "priority")
    if entry.state not in BEFORE_CONNECTION or entry.facts.priority == c.priority:
        return Decision()
    effective_ms = entry.queued_ms - c.priority * entry.line.queue.priority_credit_span_ms
    return Decision(
        events=[CallReprioritized(call_id=c.call_id, priority=c.priority, effective_ms=effective_ms)]
    )


# --- offers
# ----------------------------------------------------------------------------------------------------------


def _end_offer(s: ShardState, entry: CallEntry, outcome: OfferOutcome, now_ms: int = 0) -> list[Event]:
    """Ends the entry's live offer, if it has one; the agent rests (or is paused) after a missed one."""
    if entry.state not in (CallState.OFFERED, CallState.ACCEPTED):
        return []
    agent = s.agents.get(entry.agent)
    queue = entry.line.queue
    missed = agent.missed if agent is not None else 0
    rest_until_ms = 0
    if outcome in (OfferOutcome.EXPIRED, OfferOutcome.DECLINED):
        missed += 1
        rest_until_ms = now_ms + queue.reject_delay_span_ms if queue.reject_delay_span_ms else 0
    ended = OfferEnded(
        call_id=entry.facts.call_id,
        offer_id=entry.offer_id,
        agent=entry.agent,
        outcome=outcome,
        rest_until_ms=rest_until_ms,
        missed=missed,
    )
    if agent is not None and queue.missed_offers_max and missed >= queue.missed_offers_max:
        pause = PresenceSet(
            agent=entry.agent, command=agent.command, presence=Presence.PAUSED, pause_reason=MISSED_OFFERS
        )
        return [pause, ended]
    return [ended]


def _session_of(s: ShardState, agent_id: str, session: int) -> AgentEntry | Refusal:
    agent = s.agents.get(agent_id)
    if agent is None:
        return Refusal(reason="AGENT_NOT_FOUND", field="agent")
    if agent.session != session or agent.presence is Presence.OFFLINE:
        return Refusal(reason="NEWER_SESSION" if agent.session > session else "NO_SESSION", field="session")
    return agent


def _offer_of(s: ShardState, agent: AgentEntry, offer_id: str) -> CallEntry | None:
    for call_id, held in agent.offers.items():
        if held == offer_id:
            return s.calls[call_id]
    return None


def _accept(s: ShardState, c: AcceptOffer, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = _offer_of(s, agent, c.offer_id)
    if entry is None:
        return _refuse("OFFER_ENDED", "offer_id")
    if entry.state is CallState.ACCEPTED:
        return Decision()
    until_ms = now_ms + s.timing.confirm_span_ms
    call_id = entry.facts.call_id
    return Decision(
        events=[OfferAccepted(call_id=call_id, offer_id=c.offer_id, agent=c.agent, until_ms=until_ms)]
    )


def _decline(s: ShardState, c: DeclineOffer, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = _offer_of(s, agent, c.offer_id)
    if entry is None:
        return _refuse("OFFER_ENDED", "offer_id")
    return Decision(events=_end_offer(s, entry, OfferOutcome.DECLINED, now_ms))


# --- agents
# ----------------------------------------------------------------------------------------------------------


def _open_session(s: ShardState, c: OpenSession, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return _refuse("AGENT_NOT_FOUND", "agent")
    if c.session < agent.session:
        return _refuse("NEWER_SESSION", "session")
    events: list[Event] = []
    if c.session > agent.session:
        events += _drop_offers(s, agent)
        for call_id in sorted(agent.calls.difference(c.calls_held)):
            events += _end(s, s.calls[call_id], CallOutcome.INTERRUPTED, now_ms, "NEW_SESSION", wrap_up=False)
    elif agent.attached and agent.front == c.front and c.command <= agent.command:
        return Decision()
    same = (
        c.session == agent.session and agent.presence is not Presence.OFFLINE and c.command <= agent.command
    )
    events.append(
        SessionOpened(
            agent=c.agent,
            session=c.session,
            command=max(c.command, agent.command) if c.session == agent.session else c.command,
            front=c.front,
            presence=agent.presence if same else c.presence,
            pause_reason=agent.pause_reason if same else c.pause_reason,
        )
    )
    return Decision(events=events)


def _drop_offers(s: ShardState, agent: AgentEntry, *, accepted: bool = True) -> list[Event]:
    events: list[Event] = []
    for call_id in sorted(agent.offers):
        entry = s.calls[call_id]
        if accepted or entry.state is CallState.OFFERED:
            events += _end_offer(s, entry, OfferOutcome.AGENT_LOST)
    return events


def _detach_session(s: ShardState, c: DetachSession, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None or agent.session != c.session or not agent.attached:
        return Decision()
    return Decision(events=_detach_agent_events(s, agent, now_ms))


def _detach_agent_events(s: ShardState, agent: AgentEntry, now_ms: int) -> list[Event]:
    """An absent agent is rung no longer; what was accepted or connected waits for the session."""
    until_ms = max(now_ms, s.conclude_ms) + s.timing.agent_grace_span_ms
    gone = SessionDetached(agent=agent.config.id, until_ms=until_ms)
    return [gone, *_drop_offers(s, agent, accepted=False)]


def _close_session(s: ShardState, c: CloseSession, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    return Decision(events=_log_out(s, agent, now_ms))


def _log_out(s: ShardState, agent: AgentEntry, now_ms: int) -> list[Event]:
    events: list[Event] = [SessionClosed(agent=agent.config.id), *_drop_offers(s, agent)]
    for call_id in sorted(agent.calls):
        events += _end(s, s.calls[call_id], CallOutcome.INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False)
    for call_id in sorted(agent.wraps):
        events.append(CallWrappedUp(call_id=call_id, agent=agent.config.id, disposition=None))
    return events


def _set_presence(s: ShardState, c: SetPresence, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    if c.command <= agent.command:
        return Decision()
    return Decision(
        events=[
            PresenceSet(agent=c.agent, command=c.command, presence=c.presence, pause_reason=c.pause_reason)
        ]
    )


def _finish_wrap_up(s: ShardState, c: FinishWrapUp, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = s.calls.get(c.call_id)
    if entry is None or entry.agent != c.agent:
        return _refuse("CALL_NOT_HELD", "call_id")
    if entry.wrapped and (entry.disposed or c.disposition is None):
        return Decision()
    ended: list[Event] = []
    if entry.state is CallState.CONNECTED:
        ended = _end(s, entry, CallOutcome.COMPLETED, now_ms, wrap_up=False)
    elif entry.state is not CallState.ENDED:
        return _refuse("ILLEGAL_STATE", "call_id")
    return Decision(
        events=[*ended, CallWrappedUp(call_id=c.call_id, agent=c.agent, disposition=c.disposition)]
    )


def _detach_front(s: ShardState, c: DetachFront, now_ms: int) -> Decision:
    events: list[Event] = []
    entries = 0
    for agent in s.agents.values():
        if agent.front == c.front and agent.attached:
            events += _detach_agent_events(s, agent, now_ms)
            entries += 1
            if entries >= STEP_ENTRIES_MAX:
                return Decision(events=events, more=True)
    touched = {event.call_id for event in events if isinstance(event, OfferEnded)}
    for call_id, entry in s.calls.items():
        if entry.front == c.front and entry.attached and entry.state is not CallState.ENDED:
            if call_id in touched:
                return Decision(events=events, more=True)
            events += _detach_events(s, entry, now_ms)
            entries += 1
            if entries >= STEP_ENTRIES_MAX:
                return Decision(events=events, more=True)
    return Decision(events=events)


# --- configuration
# ---------------------------------------------------------------------------------------------------


def _configure_timing(s: ShardState, c: ConfigureTiming, now_ms: int) -> Decision:
    return Decision(events=[] if s.timing == c.timing else [TimingConfigured(timing=c.timing)])


def _configure_queue(s: ShardState, c: ConfigureQueue, now_ms: int) -> Decision:
    same = s.queues.get(c.queue.id) == c.queue
    return Decision(events=[] if same else [QueueConfigured(queue=c.queue)])


def _remove_queue(s: ShardState, c: RemoveQueue, now_ms: int) -> Decision:
    if c.queue not in s.queues:
        return Decision()
    if any(e.facts.queue == c.queue and e.state is not CallState.ENDED for e in s.calls.values()):
        return _refuse("QUEUE_IN_USE", "queue")
    return Decision(events=[QueueRemoved(queue=c.queue)])


def _configure_agent(s: ShardState, c: ConfigureAgent, now_ms: int) -> Decision:
    known = s.agents.get(c.agent.id)
    same = known is not None and known.config == c.agent
    return Decision(events=[] if same else [AgentConfigured(agent=c.agent)])


def _remove_agent(s: ShardState, c: RemoveAgent, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return Decision()
    return Decision(events=[*_log_out(s, agent, now_ms), AgentRemoved(agent=c.agent)])


def _set_draining(s: ShardState, c: SetDraining, now_ms: int) -> Decision:
    return Decision(events=[] if s.draining == c.draining else [DrainingSet(draining=c.draining)])


# --- questions and time
# ----------------------------------------------------------------------------------------------


def _ask_call(s: ShardState, c: AskCall, now_ms: int) -> Decision:
    return Decision() if c.call_id in s.calls else _refuse("CALL_NOT_FOUND", "call_id")


def _ask_agent(s: ShardState, c: AskAgent, now_ms: int) -> Decision:
    return Decision() if c.agent in s.agents else _refuse("AGENT_NOT_FOUND", "agent")


def _ask_calls(s: ShardState, c: AskCalls, now_ms: int) -> Decision:
    return Decision() if not c.queue or c.queue in s.queues else _refuse("QUEUE_NOT_FOUND", "queue")


def _tick(s: ShardState, c: Tick, now_ms: int) -> Decision:
    """What is due first, alone: its events may end what is due next. `more` while something else is due."""
    due = next_deadline(s)
    if due is None or due[0] > now_ms:
        return Decision()
    return Decision(events=_due(s, due[1], due[2], now_ms), more=True)


def _due(s: ShardState, kind: str, owner: str, now_ms: int) -> list[Event]:
    if kind == "forget":
        return [CallsForgotten(call_ids=(owner,))]
    if kind == "rest":
        return [AgentRested(agent=owner)]
    if kind == "lost":
        return _log_out(s, s.agents[owner], now_ms)
    entry = s.calls[owner]
    if kind == "resume":
        return [CallResumed(call_id=owner)]
    if kind == "wrap":
        return [CallWrappedUp(call_id=owner, agent=entry.agent, disposition=None)]
    if kind == "refuse":
        return _end(s, entry, CallOutcome.REFUSED, now_ms, "WAIT_TOO_LONG")
    if kind == "detached":
        return _end(s, entry, CallOutcome.ABANDONED, now_ms, "STREAM_LOST")
    ringing = entry.state is CallState.OFFERED
    return _end_offer(s, entry, OfferOutcome.EXPIRED if ringing else OfferOutcome.UNCONFIRMED, now_ms)


def _answer(state: ShardState, command: Any, decision: Decision) -> Answer:
    call_id = getattr(command, "call_id", "") or getattr(getattr(command, "facts", None), "call_id", "")
    agent_id = getattr(command, "agent", "")
    return Answer(
        refusal=decision.refusal,
        call=view_call(state, call_id) if call_id in state.calls else None,
        agent=view_agent(state, agent_id) if isinstance(agent_id, str) and agent_id in state.agents else None,
        calls=page_of_calls(state, command) if isinstance(command, AskCalls) else (),
        more=decision.more,
    )


_DECIDE: dict[type, Callable[[ShardState, Any, int], Decision]] = {
    PlaceCall: _place,
    DetachCall: _detach,
    OverflowCall: _overflow,
    WithdrawCall: _withdraw,
    HangUp: _hang_up,
    EndCall: _end_call,
    ConfirmCall: _confirm,
    Reprioritize: _reprioritize,
    DetachFront: _detach_front,
    AcceptOffer: _accept,
    DeclineOffer: _decline,
    OpenSession: _open_session,
    DetachSession: _detach_session,
    CloseSession: _close_session,
    SetPresence: _set_presence,
    FinishWrapUp: _finish_wrap_up,
    ConfigureTiming: _configure_timing,
    ConfigureQueue: _configure_queue,
    RemoveQueue: _remove_queue,
    ConfigureAgent: _configure_agent,
    RemoveAgent: _remove_agent,
    SetDraining: _set_draining,
    AskCall: _ask_call,
    AskAgent: _ask_agent,
    AskCalls: _ask_calls,
    Tick: _tick,
}
