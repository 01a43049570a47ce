"""Who talks to whom: the pure core of routing.

Words: a *shard* is one region's calls and agents, decided here. An *edge* (telephone exchange, chat front
end) holds the caller, a *desktop* is the agent's; each has a stream to some router, its *front*, and is
*attached* while that is open. Calls that ask the same of agents wait in one *line*. More in docs/glossary.md.

To read: `step` runs one command. `decide` looks its function up in `_DECIDE`, at the end; these functions
stand below by subject (calls, offers, agents, configuration, transfers, questions and time). `pair` makes
offers.

The rules, in prose (what each is for, and its test: docs/routing.md):

1. A command comes in, `decide` looks at the state and says which events follow, `evolve` (state.py) applies
   them. No clock, no randomness, no I/O: `now_ms` is passed in. A command that makes `decide` raise has
   changed nothing.
2. A call waits in the line of its queue, channel and extra skills, ordered by effective arrival: when it
   first came, less the credit of its priority. It keeps that place for ever: an offer that fails puts it back
   where it was.
3. Whoever becomes free takes first the call that waits for this very agent, then the one that has waited
   longest over all lines that fit (weights are head starts, so no queue starves another); a call that
   arrives takes the best free agent by its queue's strategy. `pair` does both, right after each command, in
   steps of bounded size.
4. Only an attached call is offered, to an attached agent. A call whose stream broke keeps its place,
   unoffered, for the grace period; after a leader change nothing is concluded from absence for the re-attach
   period. A caller who asked to be called back needs no stream: accepting connects.
5. An offer is ringing (OFFERED) until the agent accepts, then held (ACCEPTED) until the edge confirms
   exactly this offer. Only the edge's confirmation connects. Every offer ends exactly once. Who declined a
   call, or let it ring, gets it again only while nobody else is free for it.
6. (attempt, move) is a call's version. A lower one is refused, the same one attaches again, a higher one
   takes over. Whoever talks is queued by none of them, until the edge says that the conversation broke off.
7. What an agent holds is a set of call ids; ending twice frees once.
8. A deadline is state. `Tick` does what is due, in steps of bounded size.
9. A queue may ask less of agents the longer a call waits (steps of relaxation). A step is another line; the
   place among the others is the same. A preferred agent is waited for as long as the queue allows, and only
   while there is hope.
10. A transfer ends the agent's part of a conversation and lets the call wait again: its wait begins anew,
   its place counts what it had waited before, here and wherever it moves. An agent who drains finishes
   what is held, then leaves.

`step` is the whole engine for one command: decide, evolve, pair; it returns the events in order and the
answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from routing.explain import explain
from routing.model import (
    ABANDONED,
    ACCEPTED,
    AVAILABLE,
    BEFORE_CONNECTION,
    CALLBACK_SPAN_MAX_MS,
    COMPLETED,
    CONNECTED,
    CONTEXT_BYTES_MAX,
    CONTEXT_KEYS_MAX,
    ENDED,
    INTERRUPTED,
    LINES_MAX,
    MOVED,
    OFFERED,
    OFFLINE,
    OVERFLOWING,
    PAIRS_PER_STEP_MAX,
    PAUSED,
    REFUSED,
    STEP_ENTRIES_MAX,
    WAITING,
    AcceptOffer,
    ActRecorded,
    AgentConfigured,
    AgentDraining,
    AgentRemoved,
    AgentRested,
    Answer,
    AskAgent,
    AskCall,
    AskCalls,
    AskExplain,
    AskStats,
    AttachCalls,
    CallAttached,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallDetached,
    CallEnded,
    CallFacts,
    CallMonitored,
    CallOffered,
    CallOutcome,
    CallOverflowing,
    CallQueued,
    CallRelaxed,
    CallReprioritized,
    CallResumed,
    CallsForgotten,
    CallTransferred,
    CallView,
    CallWrappedUp,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfigureTiming,
    ConfirmCall,
    DeadlinesMoved,
    Decision,
    DeclineOffer,
    DetachCall,
    DetachCalls,
    DetachFront,
    DetachSession,
    DrainingSet,
    EndCall,
    Event,
    FinishWrapUp,
    ForceLogOut,
    HangUp,
    LeadListSet,
    MonitorCall,
    MoveDeadlines,
    OfferAccepted,
    OfferEnded,
    OfferOutcome,
    OpenSession,
    OverflowCall,
    PauseAgent,
    PlaceCall,
    PreferenceEnded,
    PresenceSet,
    QueueConfig,
    QueueConfigured,
    QueueRemoved,
    RecordAct,
    RecordingNamed,
    Refusal,
    RemoveAgent,
    RemoveQueue,
    Reprioritize,
    RequestCallback,
    SessionClosed,
    SessionDetached,
    SessionOpened,
    SetDraining,
    SetLeadList,
    SetPresence,
    Strategy,
    Tick,
    TimingConfigured,
    TransferCall,
    WithdrawCall,
    context_bytes,
)
from routing.state import (
    AgentEntry,
    CallEntry,
    Crowd,
    ShardState,
    best_idle,
    due_together,
    evolve,
    head_of,
    next_deadline,
    worth_waiting_for,
)
from routing.stats import shard_stats
from routing.views import page_of_calls, view_agent, view_call

#: Attribute of a call that was handed on: who had it last.
TRANSFERRED_FROM = "transferred_from"
#: Priorities beyond this are refused.
PRIORITY_MAX = 100
#: Reason of the pause after too many missed offers.
MISSED_OFFERS = "missed offers"
#: A decline for this reason counts as busy.
BUSY = "BUSY"
#: Who ends a call-back whose queue is closed, and what that is called in the audit log.
OWN_ACTOR, END_CALLBACK = "routing", "END_CALLBACK"
_NO_CROWDS: dict[str, Crowd] = {}
#: Of the strategies the one that draws lots, by a short name.
_RANDOM = Strategy.RANDOM


def step(state: ShardState, command: Command, now_ms: int) -> tuple[list[Event], Answer]:
    """Decides `command` at `now_ms`, applies what follows and pairs calls with agents; returns all events
    and the answer.

    Raises whatever `decide` raises, in which case nothing has changed.
    """
    if now_ms < state.now_ms:
        now_ms = state.now_ms
    decision = decide(state, command, now_ms)
    events = decision.events
    for event in events:
        evolve(state, event, now_ms)
    if state.hot_calls or state.hot_agents or state.leaving:
        events.extend(pair(state, now_ms))
    return events, _answer(state, command, decision, now_ms)


def decide(state: ShardState, command: Command, now_ms: int) -> Decision:
    """What follows from a command; changes nothing."""
    return _DECIDE[type(command)](state, command, now_ms)


def pair(state: ShardState, now_ms: int) -> list[Event]:
    """Lets drained agents go and offers calls to free agents until no worklist has a match left, applying
    each event as it is made. Stops after PAIRS_PER_STEP_MAX of them; `state.unpaired` then says that more is
    to do.
    """
    events: list[Event] = []
    while state.leaving and len(events) < PAIRS_PER_STEP_MAX:
        for event in _leave(state, state.leaving.pop()):
            evolve(state, event, now_ms)
            events.append(event)
    if len(state.hot_calls) > 1:
        state.put_in_order()
    while (state.hot_agents or state.hot_calls) and len(events) < PAIRS_PER_STEP_MAX:
        for event in _next_pairing(state, now_ms):
            evolve(state, event, now_ms)
            events.append(event)
    return events


def _next_pairing(state: ShardState, now_ms: int) -> list[Event]:
    if state.hot_agents:
        agent_id = state.hot_agents.pop()
        match = _call_for(state, agent_id)
        if match is not None and match[1] != agent_id:
            # The call is better with another; this one may yet take the next.
            state.hot_agents.append(agent_id)
    else:
        call_id = state.hot_calls.pop()
        match = _agent_for(state, call_id)
        if match is not None and match[0] != call_id:
            # An older one of its line goes first; this one may yet get the next.
            state.hot_calls.append(call_id)
    return [] if match is None else [_offer(state, match[0], match[1], now_ms)]


def _leave(state: ShardState, agent_id: str) -> list[Event]:
    """What a drained agent's last contact is followed by."""
    agent = state.agents.get(agent_id)
    if agent is None or not agent.draining or agent.holding:
        return []
    events: list[Event] = []
    if agent.presence is not OFFLINE:
        events += [*_disappoint(state, agent), SessionClosed(agent=agent_id)]
    if agent.remove:
        events.append(AgentRemoved(agent=agent_id))
    return events


def _call_for(state: ShardState, agent_id: str) -> tuple[str, str] | None:
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


def _agent_for(state: ShardState, call_id: str) -> tuple[str, str] | None:
    """The best free agent for the head of the call's line (the head, so that nobody is overtaken), or the
    agent it waits for.
    """
    entry = state.calls.get(call_id)
    if entry is None or not entry.ticket:
        return None
    preferred = state.agents.get(entry.preferred)
    if preferred is not None:
        return _call_for(state, entry.preferred) if entry.facts.channel in preferred.idle else None
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


def _offer(state: ShardState, call_id: str, agent_id: str, now_ms: int) -> CallOffered:
    offer_id = f"{state.shard}.{state.epoch}.{state.offers_made + 1}"
    until_ms = now_ms + state.calls[call_id].line.queue.ring_span_ms
    return CallOffered(call_id=call_id, offer_id=offer_id, agent=agent_id, until_ms=until_ms)


def _refuse(reason: str, field: str = "") -> Decision:
    return Decision(refusal=Refusal(reason=reason, field=field))


# --- calls ------------------------------------------------------------------------------------------------


def _place(s: ShardState, c: PlaceCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.facts.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id") if c.talks else _queue(s, c, now_ms, [])
    version = (c.attempt, c.move)
    if version < entry.version:
        return _refuse("STALE_ATTEMPT", "attempt")
    if version == entry.version:
        # Who attaches again after a change of leader may not have heard of the call-back that was promised,
        # and the caller has hung up: only another attempt takes it back.
        over = entry.state is ENDED or entry.callback_number
        return Decision() if over else Decision(events=_attach(entry, c, now_ms))
    if entry.state is ENDED:
        return _replace_ended(s, c, entry, now_ms)
    if entry.state is CONNECTED:
        if not c.agent_lost:
            return Decision(events=_attach(entry, c, now_ms))
        broken_off = _end(s, entry, INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False)
        return _queue(s, _waiting_anew(c), now_ms, broken_off)
    # Of a call that was handed on, its edge says what it said at first: not where it was handed to.
    handed_on = entry.transfers and TRANSFERRED_FROM not in dict(c.facts.attributes)
    if handed_on or c.facts.queue == entry.facts.queue:
        # It has its place here, whatever newcomers are told; what rings belongs to the older version.
        return Decision(events=[*_end_offer(s, entry), *_attach(entry, c, now_ms)])
    return _queue(s, c, now_ms, _end_offer(s, entry))


def _replace_ended(s: ShardState, c: PlaceCall, entry: CallEntry, now_ms: int) -> Decision:
    """A newer version of a call whose entry has ended: a completed one stays so, anything else is queued
    anew; but an edge that still bridges it hears first that its conversation broke off.
    """
    if entry.outcome is COMPLETED or (c.talks and entry.outcome is INTERRUPTED):
        return Decision()
    before: list[Event] = []
    if entry.wrap_up_until_ms:
        before.append(CallWrappedUp(call_id=c.facts.call_id, agent=entry.agent, disposition=None))
    return _queue(s, _waiting_anew(c) if entry.outcome is INTERRUPTED else c, now_ms, before)


def _waiting_anew(c: PlaceCall) -> PlaceCall:
    """After a conversation that broke off: what is said to have been waited has the conversation in it. As
    after a transfer it counts for the place; the longest wait, relaxation and the figures begin anew.
    """
    facts = msgspec.structs.replace(c.facts, credit_span_ms=c.facts.credit_span_ms + c.waited_span_ms)
    return msgspec.structs.replace(c, facts=facts, waited_span_ms=0)


def _attach(entry: CallEntry, c: PlaceCall, now_ms: int) -> list[Event]:
    same = entry.attached and entry.front == c.front and entry.version == (c.attempt, c.move)
    if same and entry.state is not OVERFLOWING:
        return []
    attached = CallAttached(call_id=c.facts.call_id, attempt=c.attempt, move=c.move, front=c.front)
    span_ms = entry.line.queue.wait_span_max_ms
    if entry.callback_number and entry.state is not CONNECTED and span_ms and not entry.refuse_ms:
        # A call-back may take as long as it does; who holds the line again waits no longer than anybody.
        attached = msgspec.structs.replace(attached, refuse_ms=now_ms + span_ms)
    return [attached]


def _attach_calls(s: ShardState, c: AttachCalls, now_ms: int) -> Decision:
    """As a PlaceCall under the same number for each that waits; all else is left to that."""
    if len(c.calls) > STEP_ENTRIES_MAX:
        return _refuse("OUT_OF_RANGE", "calls")
    events: list[Event] = []
    apart: list[str] = []
    for call_id, attempt, move in dict.fromkeys(c.calls):
        entry = s.calls.get(call_id)
        stands = entry is not None and entry.version == (attempt, move) and not entry.callback_number
        if entry is not None and stands and entry.state is WAITING:
            # Also if it is attached already: who asks again has not heard so.
            events.append(CallAttached(call_id=call_id, attempt=attempt, move=move, front=c.front))
        else:
            apart.append(call_id)
    return Decision(events=events, apart=tuple(apart))


def _queue(s: ShardState, c: PlaceCall, now_ms: int, before: list[Event]) -> Decision:
    """Queues a call, after the events that make room for it."""
    queue = s.queues.get(c.facts.queue)
    if queue is None:
        return _refuse("QUEUE_NOT_FOUND", "queue")
    queued_ms = now_ms - c.waited_span_ms
    step, relax_ms = _step_at(s, queue, c.facts, queued_ms, now_ms)
    preferred, preferred_until_ms = _hope(s, queue, c.facts, queued_ms, now_ms)
    refusal = _no_room(s, queue, c.facts, step, fitting=c.fitting and not preferred)
    if refusal is not None:
        return Decision(refusal=refusal)
    queued = CallQueued(
        facts=c.facts,
        attempt=c.attempt,
        move=c.move,
        front=c.front,
        queued_ms=queued_ms,
        effective_ms=_place_ms(queue, c.facts, queued_ms, c.facts.priority),
        waited_span_ms=c.waited_span_ms,
        refuse_ms=queued_ms + queue.wait_span_max_ms if queue.wait_span_max_ms else 0,
        step=step,
        relax_ms=relax_ms,
        preferred=preferred,
        preferred_until_ms=preferred_until_ms,
    )
    return Decision(events=[*before, queued])


def _place_ms(queue: QueueConfig, facts: CallFacts, queued_ms: int, priority: int) -> int:
    """Effective arrival of a wait that began at `queued_ms`: its place among others."""
    return queued_ms - facts.credit_span_ms - priority * queue.priority_credit_span_ms


def _no_room(
    s: ShardState, queue: QueueConfig, facts: CallFacts, step: int, *, fitting: bool = False
) -> Refusal | None:
    """Why a call cannot wait in a queue; None if it can. `fitting`: only where somebody is who fits it."""
    line = s.lines.get((queue.id, facts.channel, facts.skills, step))
    if queue.closed:
        return Refusal(reason="QUEUE_CLOSED", field="queue")
    if line is None and len(s.lines) >= LINES_MAX:
        return Refusal(reason="TOO_MANY_SKILL_SETS", field="skills")
    waiting = 0
    for crowd in s.crowds.get(queue.id, _NO_CROWDS).values():
        waiting += crowd.waiting
    if waiting >= queue.length_max:
        return Refusal(reason="QUEUE_FULL", field="queue")
    if (queue.refuse_without_agents or fitting) and not _logged_in(s, queue, facts, step):
        return Refusal(reason="NO_AGENT_LOGGED_IN", field="queue")
    return None


def _step_at(
    s: ShardState, queue: QueueConfig, facts: CallFacts, began_ms: int, now_ms: int
) -> tuple[int, int]:
    """(step of relaxation in force at `now_ms` for a wait that began at `began_ms`, when the next begins).

    A step is over when its time is, or at once when nobody who fits it is logged in and it says so; the last
    one has no end, so 0 is returned for the next.
    """
    if not queue.steps:
        return 0, 0
    ends_ms = began_ms
    for index, step in enumerate(queue.steps[:-1]):
        if step.skip_if_nobody_fits and not _logged_in(s, queue, facts, index):
            continue
        ends_ms += step.span_ms
        if now_ms < ends_ms:
            return index, ends_ms
    return max(0, len(queue.steps) - 1), 0


def _logged_in(s: ShardState, queue: QueueConfig, facts: CallFacts, step: int) -> int:
    """Agents logged in who could take the call in a step. Makes the step's line if it is the first to want
    it: an index, no fact.
    """
    key = (queue.id, facts.channel, facts.skills, step)
    if key not in s.lines and len(s.lines) >= LINES_MAX:
        return 0
    return s.line_of(key).logged_in


def _hope(s: ShardState, queue: QueueConfig, facts: CallFacts, began_ms: int, now_ms: int) -> tuple[str, int]:
    """(the preferred agent, until when it is waited for), or ("", 0) when there is none to be waited for."""
    if not facts.preferred_agent:
        return "", 0
    until_ms = began_ms + (facts.preferred_span_ms or queue.preferred_span_ms)
    if until_ms <= now_ms or not worth_waiting_for(s.agents.get(facts.preferred_agent), facts.channel):
        return "", 0
    return facts.preferred_agent, until_ms


def _disappoint(s: ShardState, agent: AgentEntry) -> list[PreferenceEnded]:
    """The agent goes: whoever waits for nobody else waits in line from now on, also a call that rings there,
    whose offer ends with this.
    """
    return [PreferenceEnded(call_id=call_id) for call_id in sorted(agent.wanted_by)]


def _detach(s: ShardState, c: DetachCall, now_ms: int) -> Decision:
    return Decision(events=_left_by(s, c.front, c.call_id, c.attempt, c.move, now_ms))


def _left_by(s: ShardState, front: str, call_id: str, attempt: int, move: int, now_ms: int) -> list[Event]:
    """What follows when a front's stream of an entry has ended; empty `front`: whoever's."""
    entry = s.calls.get(call_id)
    if entry is None or entry.attempt != attempt or entry.move != move or not entry.attached:
        return []
    if front and front != entry.front:
        return []
    return _detach_events(s, entry, now_ms)


def _detach_calls(s: ShardState, c: DetachCalls, now_ms: int) -> Decision:
    if len(c.calls) > STEP_ENTRIES_MAX:
        return _refuse("OUT_OF_RANGE", "calls")
    events: list[Event] = []
    for call_id, attempt, move in dict.fromkeys(c.calls):
        events += _left_by(s, c.front, call_id, attempt, move, now_ms)
    return Decision(events=events)


def _detach_events(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    call_id = entry.facts.call_id
    if entry.state is ENDED or entry.callback_number:
        return []
    if entry.state is CONNECTED:
        return [CallDetached(call_id=call_id, until_ms=0)]
    until_ms = max(now_ms, s.conclude_ms) + s.timing.grace_span_ms
    ringing = _end_offer(s, entry) if entry.state is OFFERED else []
    return [*ringing, CallDetached(call_id=call_id, until_ms=until_ms)]


def _overflow(s: ShardState, c: OverflowCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.version != (c.attempt, c.move):
        return _refuse("STALE_VERSION", "version")
    if entry.state is OVERFLOWING:
        return Decision()
    if entry.state is not WAITING or entry.callback_number:
        return _refuse("ILLEGAL_STATE")
    if entry.preferred and not s.draining:
        # Somebody is free elsewhere, but it waits for one agent, for as long as was asked for.
        return _refuse("ILLEGAL_STATE")
    return Decision(events=[CallOverflowing(call_id=c.call_id, until_ms=now_ms + s.timing.move_span_ms)])


def _withdraw(s: ShardState, c: WithdrawCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None or entry.state is ENDED or entry.version >= (c.attempt, c.move):
        return Decision()
    if entry.callback_number and entry.state is not CONNECTED and c.attempt == entry.attempt:
        # Promised while the call was on its way elsewhere: where it went nobody holds a line.
        return Decision()
    if entry.state is CONNECTED:
        if not c.agent_lost:
            return _refuse("ILLEGAL_STATE")
        return Decision(events=_end(s, entry, INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False))
    return Decision(events=_end(s, entry, MOVED, now_ms, c.reason))


def _hang_up(s: ShardState, c: HangUp, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is ENDED or (c.attempt and c.attempt < entry.attempt):
        return Decision()
    connected = entry.state is CONNECTED
    if entry.callback_number and not connected:
        # The line is free, as it should be: the place is kept for the call-back.
        return Decision()
    outcome = COMPLETED if connected else ABANDONED
    return Decision(events=_end(s, entry, outcome, now_ms))


def _end_call(s: ShardState, c: EndCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is ENDED or (c.attempt and c.attempt < entry.attempt):
        return Decision(events=_named_late(entry, c))
    if entry.callback_number and entry.state in BEFORE_CONNECTION and not c.agent:
        return Decision(events=_end(s, entry, ABANDONED, now_ms, "CALLBACK_CANCELLED"))
    if entry.state is not CONNECTED:
        return _refuse("ILLEGAL_STATE")
    if c.agent and c.agent != entry.agent:
        return _refuse("CALL_NOT_HELD", "call_id")
    return Decision(events=_end(s, entry, COMPLETED, now_ms, recording_uri=c.recording_uri))


def _named_late(entry: CallEntry, c: EndCall) -> list[Event]:
    """The recording of a conversation that somebody else ended: the first that its edge names."""
    late = entry.state is ENDED and not entry.recording_uri
    late = late and bool(entry.connected_ms or entry.transfers)
    if not late or not c.recording_uri or c.agent or (c.attempt and c.attempt < entry.attempt):
        return []
    return [RecordingNamed(call_id=c.call_id, recording_uri=c.recording_uri)]


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
    events = _end_offer(s, entry)
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


def _confirm(s: ShardState, c: ConfirmCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.offer_id == c.offer_id and entry.state is CONNECTED:
        return Decision()
    if entry.state in (ENDED, CONNECTED):
        return _refuse("CALL_ENDED" if entry.state is ENDED else "OFFER_ENDED", "offer_id")
    if entry.version != (c.attempt, c.move):
        return _refuse("STALE_VERSION", "version")
    if entry.state is not ACCEPTED or entry.offer_id != c.offer_id:
        return _refuse("OFFER_ENDED", "offer_id")
    return Decision(events=[CallConnected(call_id=c.call_id, offer_id=c.offer_id, agent=entry.agent)])


def _reprioritize(s: ShardState, c: Reprioritize, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if abs(c.priority) > PRIORITY_MAX:
        return _refuse("OUT_OF_RANGE", "priority")
    if entry.state not in BEFORE_CONNECTION:
        return _refuse("ILLEGAL_STATE")
    if entry.facts.priority == c.priority:
        return Decision()
    effective_ms = _place_ms(entry.line.queue, entry.facts, entry.queued_ms, c.priority)
    return Decision(
        events=[CallReprioritized(call_id=c.call_id, priority=c.priority, effective_ms=effective_ms)]
    )


# --- offers


def _end_offer(
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
    others = [e for e in _disappoint(s, agent) if e.call_id != entry.facts.call_id]
    return [pause, *others]


def _rest_span_ms(queue: QueueConfig, outcome: OfferOutcome, busy: bool) -> int:
    if outcome is OfferOutcome.EXPIRED:
        return queue.no_answer_delay_span_ms or queue.reject_delay_span_ms
    return (queue.busy_delay_span_ms if busy else 0) or queue.reject_delay_span_ms


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


def _accept(s: ShardState, c: AcceptOffer, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = _offer_of(s, agent, c.offer_id)
    if entry is None:
        if any(s.calls[call_id].offer_id == c.offer_id for call_id in agent.calls):
            # Asked again, because its answer was lost: it has come to a conversation since.
            return Decision()
        return _refuse("OFFER_ENDED", "offer_id")
    if entry.state is ACCEPTED:
        return Decision()
    until_ms = now_ms + s.timing.confirm_span_ms
    call_id = entry.facts.call_id
    accepted = OfferAccepted(call_id=call_id, offer_id=c.offer_id, agent=c.agent, until_ms=until_ms)
    if entry.callback_number:
        # No edge holds a line: the desktop's word is the only one there is.
        return Decision(events=[accepted, CallConnected(call_id=call_id, offer_id=c.offer_id, agent=c.agent)])
    return Decision(events=[accepted])


def _decline(s: ShardState, c: DeclineOffer, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = _offer_of(s, agent, c.offer_id)
    if entry is None:
        return _refuse("OFFER_ENDED", "offer_id")
    busy = c.reason.upper() == BUSY
    return Decision(events=_end_offer(s, entry, OfferOutcome.DECLINED, now_ms, busy=busy))


# --- agents


def _open_session(s: ShardState, c: OpenSession, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return _refuse("AGENT_NOT_FOUND", "agent")
    if c.session < agent.session:
        return _refuse("NEWER_SESSION", "session")
    if c.session == agent.session and c.command < agent.command and c.front != agent.front:
        # Its desktop has left that router's stream for another's, which the router has not heard.
        return _refuse("NEWER_SESSION", "command")
    events: list[Event] = []
    if c.session > agent.session:
        events += _drop_offers(s, agent)
        for call_id in sorted(agent.calls.difference(c.calls_held)):
            events += _end(s, s.calls[call_id], INTERRUPTED, now_ms, "NEW_SESSION", wrap_up=False)
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
        events += _disappoint(s, agent)
    if agent.presence is OFFLINE and agent.missed and opened.presence is AVAILABLE:
        # What was missed before the log-out is no reason to pause who comes back: ready ends the row.
        events.append(PresenceSet(agent=c.agent, command=opened.command, presence=AVAILABLE, pause_reason=""))
    return Decision(events=events)


def _drop_offers(s: ShardState, agent: AgentEntry, *, accepted: bool = True) -> list[Event]:
    events: list[Event] = []
    for call_id in sorted(agent.offers):
        entry = s.calls[call_id]
        if accepted or entry.state is OFFERED:
            events += _end_offer(s, entry, OfferOutcome.AGENT_LOST)
    return events


def _detach_session(s: ShardState, c: DetachSession, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None or agent.session != c.session or not agent.attached:
        return Decision()
    if c.front and c.front != agent.front:
        return Decision()
    return Decision(events=_detach_agent_events(s, agent, now_ms))


def _detach_agent_events(s: ShardState, agent: AgentEntry, now_ms: int) -> list[Event]:
    """An absent agent is rung no longer; what was accepted or connected waits for the session."""
    until_ms = max(now_ms, s.conclude_ms) + s.timing.agent_grace_span_ms
    gone = SessionDetached(agent=agent.config.id, until_ms=until_ms)
    return [gone, *_drop_offers(s, agent, accepted=False), *_disappoint(s, agent)]


def _close_session(s: ShardState, c: CloseSession, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    return Decision(events=_log_out(s, agent, now_ms))


def _log_out(s: ShardState, agent: AgentEntry, now_ms: int) -> list[Event]:
    events: list[Event] = [
        SessionClosed(agent=agent.config.id),
        *_drop_offers(s, agent),
        *_disappoint(s, agent),
    ]
    for call_id in sorted(agent.calls):
        events += _end(s, s.calls[call_id], INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False)
    for call_id in sorted(agent.wraps):
        events.append(CallWrappedUp(call_id=call_id, agent=agent.config.id, disposition=None))
    return events


def _set_presence(s: ShardState, c: SetPresence, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    if c.command <= agent.command:
        return Decision()
    presence = PresenceSet(agent=c.agent, command=c.command, presence=c.presence, pause_reason=c.pause_reason)
    left = [] if c.presence is AVAILABLE else _disappoint(s, agent)
    return Decision(events=[presence, *left])


def _finish_wrap_up(s: ShardState, c: FinishWrapUp, now_ms: int) -> Decision:
    agent = _session_of(s, c.agent, c.session)
    if isinstance(agent, Refusal):
        return Decision(refusal=agent)
    entry = s.calls.get(c.call_id)
    if entry is not None and entry.agent != c.agent and c.call_id in agent.wraps:
        # Handed on: the call lives, this agent's part of it is done.
        return Decision(events=[CallWrappedUp(call_id=c.call_id, agent=c.agent, disposition=c.disposition)])
    if entry is None or entry.agent != c.agent:
        return _refuse("CALL_NOT_HELD", "call_id")
    if entry.wrapped and (entry.disposed or c.disposition is None):
        return Decision()
    ended: list[Event] = []
    if entry.state is CONNECTED:
        ended = _end(s, entry, COMPLETED, now_ms, wrap_up=False)
    elif entry.state is not ENDED:
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
        if entry.front == c.front and entry.attached and entry.state is not ENDED:
            if call_id in touched:
                return Decision(events=events, more=True)
            events += _detach_events(s, entry, now_ms)
            entries += 1
            if entries >= STEP_ENTRIES_MAX:
                return Decision(events=events, more=True)
    return Decision(events=events)


# --- configuration


def _configure_timing(s: ShardState, c: ConfigureTiming, now_ms: int) -> Decision:
    return Decision(events=[] if s.timing == c.timing else [TimingConfigured(timing=c.timing)])


def _configure_queue(s: ShardState, c: ConfigureQueue, now_ms: int) -> Decision:
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


def _remove_queue(s: ShardState, c: RemoveQueue, now_ms: int) -> Decision:
    if c.queue not in s.queues:
        return Decision()
    if any(e.facts.queue == c.queue and e.state is not ENDED for e in s.calls.values()):
        return _refuse("QUEUE_IN_USE", "queue")
    return Decision(events=[QueueRemoved(queue=c.queue)])


def _configure_agent(s: ShardState, c: ConfigureAgent, now_ms: int) -> Decision:
    """An agent who was to be removed when free, and is wanted again, stays; one who was to be logged out as
    well is logged out all the same.
    """
    known = s.agents.get(c.agent.id)
    same = known is not None and known.config == c.agent
    events: list[Event] = [] if same else [AgentConfigured(agent=c.agent)]
    if known is not None and known.wanted_by and not same:
        takes = {channel for channel, count in c.agent.capacity if count > 0}
        events += [e for e in _disappoint(s, known) if s.calls[e.call_id].facts.channel not in takes]
    if known is not None and known.remove:
        asked = known.log_out
        events.append(AgentDraining(agent=c.agent.id, draining=asked, log_out=asked))
    return Decision(events=events)


def _remove_agent(s: ShardState, c: RemoveAgent, now_ms: int) -> Decision:
    """At once, or when the contacts in hand are finished."""
    agent = s.agents.get(c.agent)
    if agent is None or agent.remove:
        return Decision()
    if agent.calls or agent.wraps:
        # Who drains already has been asked to go, whichever release has written it down.
        draining = AgentDraining(agent=c.agent, draining=True, remove=True, log_out=agent.draining)
        return Decision(events=[draining, *_disappoint(s, agent)])
    return Decision(events=[*_log_out(s, agent, now_ms), AgentRemoved(agent=c.agent)])


def _set_draining(s: ShardState, c: SetDraining, now_ms: int) -> Decision:
    return Decision(events=[] if s.draining == c.draining else [DrainingSet(draining=c.draining)])


def _set_lead_list(s: ShardState, c: SetLeadList, now_ms: int) -> Decision:
    return Decision(events=[] if s.lead_list == c.routers else [LeadListSet(routers=c.routers)])


def _move_deadlines(s: ShardState, c: MoveDeadlines, now_ms: int) -> Decision:
    return Decision(events=[DeadlinesMoved(span_ms=c.span_ms)] if c.span_ms > 0 else [])


# --- transfers, call-backs, supervision


def _transfer(s: ShardState, c: TransferCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is not CONNECTED:
        return _refuse("ILLEGAL_STATE")
    if not entry.attached or entry.callback_number:
        return _refuse("CALL_NOT_ATTACHED")
    if c.agent and c.agent == entry.agent:
        return _refuse("SAME_AGENT", "agent")
    queue = s.queues.get(c.queue or entry.facts.queue)
    if queue is None:
        return _refuse("QUEUE_NOT_FOUND", "queue")
    facts = _handed_on(entry, c)
    if _is_too_much(facts):
        return _refuse("OUT_OF_RANGE", "attributes")
    step, relax_ms = _step_at(s, queue, facts, now_ms, now_ms)
    refusal = _no_room(s, queue, facts, step)
    if refusal is not None:
        return Decision(refusal=refusal)
    preferred, until_ms = _hope(s, queue, facts, now_ms, now_ms)
    span_ms = entry.line.queue.wrap_up_span_ms if entry.agent in s.agents else 0
    transferred = CallTransferred(
        facts=facts,
        agent=entry.agent,
        wrap_up_until_ms=now_ms + span_ms if span_ms else 0,
        queued_ms=now_ms,
        effective_ms=_place_ms(queue, facts, now_ms, facts.priority),
        refuse_ms=now_ms + queue.wait_span_max_ms if queue.wait_span_max_ms else 0,
        step=step,
        relax_ms=relax_ms,
        preferred=preferred,
        preferred_until_ms=until_ms,
        resume_ms=now_ms + s.timing.move_span_ms if c.elsewhere else 0,
    )
    return Decision(events=[transferred])


def _is_too_much(facts: CallFacts) -> bool:
    """Whether a call has come to more context than one may carry: no block can hold what grows for ever."""
    said = [pair for pair in facts.attributes if pair[0] != TRANSFERRED_FROM]
    return len(said) > CONTEXT_KEYS_MAX or context_bytes(said) > CONTEXT_BYTES_MAX


def _handed_on(entry: CallEntry, c: TransferCall) -> CallFacts:
    """The call's facts after a transfer: context added, skills of the first queue's caller kept, and what it
    has waited so far is a credit wherever it goes.
    """
    waited_ms = max(0, entry.connected_ms - entry.queued_ms)
    attributes = {**dict(entry.facts.attributes), **dict(c.attributes), TRANSFERRED_FROM: entry.agent}
    return msgspec.structs.replace(
        entry.facts,
        queue=c.queue or entry.facts.queue,
        preferred_agent=c.agent,
        preferred_span_ms=0,
        credit_span_ms=entry.facts.credit_span_ms + waited_ms,
        attributes=tuple(sorted(attributes.items())),
    )


def _request_callback(s: ShardState, c: RequestCallback, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    not_before_ms = c.not_before_ms if c.not_before_ms > now_ms else 0
    if not_before_ms > now_ms + CALLBACK_SPAN_MAX_MS:
        return _refuse("OUT_OF_RANGE", "not_before_time")
    if entry.state not in (WAITING, OVERFLOWING):
        return _refuse("ILLEGAL_STATE")
    if entry.line.queue.closed:
        # Its turn in being refused has not come yet: nothing is to be promised any more.
        return _refuse("QUEUE_CLOSED", "queue")
    if (entry.callback_number, entry.callback_ms) == (c.number, not_before_ms):
        return Decision()
    requested = CallbackRequested(
        call_id=c.call_id,
        number=c.number,
        not_before_ms=not_before_ms,
        expire_ms=max(now_ms, not_before_ms) + CALLBACK_SPAN_MAX_MS,
    )
    return Decision(events=[requested])


def _force_log_out(s: ShardState, c: ForceLogOut, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return _refuse("AGENT_NOT_FOUND", "agent")
    if agent.presence is OFFLINE:
        return Decision()
    if c.interrupt or not agent.holding:
        return Decision(events=_log_out(s, agent, now_ms))
    if agent.draining and (agent.log_out or not agent.remove):
        return Decision()
    draining = AgentDraining(agent=c.agent, draining=True, remove=agent.remove, log_out=True)
    return Decision(events=[draining, *_drop_offers(s, agent, accepted=False), *_disappoint(s, agent)])


def _pause_agent(s: ShardState, c: PauseAgent, now_ms: int) -> Decision:
    agent = s.agents.get(c.agent)
    if agent is None:
        return _refuse("AGENT_NOT_FOUND", "agent")
    if agent.presence is OFFLINE:
        return _refuse("NO_SESSION", "agent")
    presence = PAUSED if c.paused else AVAILABLE
    reason = c.reason if c.paused else ""
    if (agent.presence, agent.pause_reason) == (presence, reason):
        return Decision()
    paused = PresenceSet(agent=c.agent, command=agent.command, presence=presence, pause_reason=reason)
    return Decision(events=[paused, *(_disappoint(s, agent) if c.paused else [])])


def _monitor(s: ShardState, c: MonitorCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return _refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is not CONNECTED:
        return _refuse("ILLEGAL_STATE")
    if not entry.attached or entry.callback_number:
        # Of a call-back no edge holds a line.
        return _refuse("CALL_NOT_ATTACHED")
    return Decision(events=[CallMonitored(call_id=c.call_id, mode=c.mode, address=c.address)])


def _record_act(s: ShardState, c: RecordAct, now_ms: int) -> Decision:
    act = ActRecorded(actor=c.actor, act=c.act, subject=c.subject, reason=c.reason, details=c.details)
    return Decision(events=[act])


# --- questions and time


def _ask_call(s: ShardState, c: AskCall, now_ms: int) -> Decision:
    return Decision() if c.call_id in s.calls else _refuse("CALL_NOT_FOUND", "call_id")


def _ask_explain(s: ShardState, c: AskExplain, now_ms: int) -> Decision:
    if c.facts is not None:
        return Decision() if c.facts.queue in s.queues else _refuse("QUEUE_NOT_FOUND", "queue")
    return Decision() if c.call_id in s.calls else _refuse("CALL_NOT_FOUND", "call_id")


def _ask_agent(s: ShardState, c: AskAgent, now_ms: int) -> Decision:
    return Decision() if c.agent in s.agents else _refuse("AGENT_NOT_FOUND", "agent")


def _ask_calls(s: ShardState, c: AskCalls, now_ms: int) -> Decision:
    return Decision() if not c.queue or c.queue in s.queues else _refuse("QUEUE_NOT_FOUND", "queue")


def _ask_stats(s: ShardState, c: AskStats, now_ms: int) -> Decision:
    return Decision()


def _tick(s: ShardState, c: Tick, now_ms: int) -> Decision:
    """What is due first, alone: its events may end what is due next. Only calls that are left or forgotten do
    not concern one another, and go together. `more` when anything happened, the rest of a long pairing
    included.
    """
    due = next_deadline(s)
    if due is None or due[0] > now_ms:
        return Decision(more=s.unpaired)
    _, kind, owner = due
    if kind == "forget":
        forgotten = due_together(s, kind, now_ms, STEP_ENTRIES_MAX)
        return Decision(events=[CallsForgotten(call_ids=forgotten)], more=True)
    owners = due_together(s, kind, now_ms, STEP_ENTRIES_MAX) if kind == "detached" else (owner,)
    return Decision(events=[event for each in owners for event in _due(s, kind, each, now_ms)], more=True)


def _due(s: ShardState, kind: str, owner: str, now_ms: int) -> list[Event]:
    if kind == "rest":
        return [AgentRested(agent=owner)]
    if kind == "lost":
        return _log_out(s, s.agents[owner], now_ms)
    if kind == "wrap":
        agent_id, _, call_id = owner.partition("/")
        return [CallWrappedUp(call_id=call_id, agent=agent_id, disposition=None)]
    return _DUE_OF_CALL[kind](s, s.calls[owner], now_ms)


def _due_offer(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    if entry.state is OFFERED:
        return _end_offer(s, entry, OfferOutcome.EXPIRED, now_ms)
    # An edge that does not confirm may have stalled with its stream open: first in line, its call would take
    # one agent after the other. It is offered again when its edge shows that it is there.
    left = _detach_events(s, entry, now_ms) if entry.attached else []
    return [*_end_offer(s, entry, OfferOutcome.UNCONFIRMED, now_ms), *left]


def _due_relax(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    queue, following = entry.line.queue, entry.step + 1
    last = len(queue.steps) - 1
    while following < last:
        step = queue.steps[following]
        if not step.skip_if_nobody_fits or _logged_in(s, queue, entry.facts, following):
            break
        following += 1
    relax_ms = now_ms + queue.steps[following].span_ms if following < last else 0
    return [CallRelaxed(call_id=entry.facts.call_id, step=min(following, max(0, last)), relax_ms=relax_ms)]


def _due_refuse(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    if not entry.callback_number:
        reason = "QUEUE_CLOSED" if entry.line.queue.closed else "WAIT_TOO_LONG"
        return _end(s, entry, REFUSED, now_ms, reason)
    # Whoever was promised a call-back waits for as long as it takes: only the queue's closing ends that. No
    # stream is there to say it on, so the audit log says that a promise is not kept.
    act = ActRecorded(
        actor=OWN_ACTOR,
        act=END_CALLBACK,
        subject=f"calls/{entry.facts.call_id}",
        reason="the queue was closed",
        details=(("queue", f"queues/{entry.facts.queue}"),),
    )
    return [act, *_end(s, entry, REFUSED, now_ms, "CALLBACK_QUEUE_CLOSED")]


_DUE_OF_CALL: dict[str, Callable[[ShardState, CallEntry, int], list[Event]]] = {
    "offer": _due_offer,
    "relax": _due_relax,
    "refuse": _due_refuse,
    "prefer": lambda s, entry, now_ms: [PreferenceEnded(call_id=entry.facts.call_id)],
    "resume": lambda s, entry, now_ms: [CallResumed(call_id=entry.facts.call_id)],
    "callback": lambda s, entry, now_ms: [CallbackDue(call_id=entry.facts.call_id)],
    "expire": lambda s, entry, now_ms: _end(s, entry, ABANDONED, now_ms, "CALLBACK_EXPIRED"),
    "detached": lambda s, entry, now_ms: _end(s, entry, ABANDONED, now_ms, "STREAM_LOST"),
}


def _answer(state: ShardState, command: Any, decision: Decision, now_ms: int) -> Answer:
    kind = type(command)
    call, agent = None, None
    if kind is PlaceCall or kind in _OF_CALL:
        call_id = command.facts.call_id if kind is PlaceCall else command.call_id
        call = view_call(state, call_id) if call_id in state.calls else None
    if kind in _OF_AGENT:
        agent = view_agent(state, command.agent) if command.agent in state.agents else None
    if kind not in _QUESTIONS:
        return Answer(
            refusal=decision.refusal, call=call, agent=agent, more=decision.more, apart=decision.apart
        )
    calls, more = page_of_calls(state, command) if kind is AskCalls else (_views(state, command), False)
    return Answer(
        refusal=decision.refusal,
        call=call,
        agent=agent,
        calls=calls,
        more=more,
        explanation=explain(state, command, now_ms)
        if isinstance(command, AskExplain) and decision.refusal is None
        else None,
        stats=shard_stats(state, command, now_ms) if isinstance(command, AskStats) else None,
    )


def _views(state: ShardState, command: Any) -> tuple[CallView, ...]:
    """With a session that is opened, its agent's conversations and offers."""
    agent = state.agents.get(command.agent) if isinstance(command, OpenSession) else None
    if agent is None:
        return ()
    return tuple(view_call(state, call_id) for call_id in sorted({*agent.calls, *agent.offers}))


#: Commands whose answer has more than how a call and an agent are now.
_QUESTIONS = frozenset({AskCalls, AskExplain, AskStats, OpenSession})

_DECIDE: dict[type, Callable[[ShardState, Any, int], Decision]] = {
    PlaceCall: _place,
    AttachCalls: _attach_calls,
    DetachCall: _detach,
    DetachCalls: _detach_calls,
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
    TransferCall: _transfer,
    RequestCallback: _request_callback,
    ForceLogOut: _force_log_out,
    PauseAgent: _pause_agent,
    MonitorCall: _monitor,
    RecordAct: _record_act,
    SetLeadList: _set_lead_list,
    MoveDeadlines: _move_deadlines,
    AskExplain: _ask_explain,
    AskStats: _ask_stats,
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
#: Commands that name a call, or an agent, in a field of that name.
_OF_CALL = frozenset(kind for kind in _DECIDE if "call_id" in kind.__annotations__)
_OF_AGENT = frozenset(kind for kind in _DECIDE if kind.__annotations__.get("agent") == "str")
