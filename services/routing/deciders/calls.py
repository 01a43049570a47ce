"""What edges say of their calls, and fronts of edges' streams: placed, attached, moved, confirmed, over.

Transfers and call-backs have a module of their own.
"""

from __future__ import annotations

import msgspec

from routing.deciders.endings import detach_events, end, end_offer
from routing.deciders.refusals import refuse
from routing.deciders.transfers import TRANSFERRED_FROM
from routing.deciders.waiting import hope, no_room, place_ms, step_at
from routing.model import (
    ABANDONED,
    ACCEPTED,
    BEFORE_CONNECTION,
    COMPLETED,
    CONNECTED,
    ENDED,
    INTERRUPTED,
    MOVED,
    OVERFLOWING,
    STEP_ENTRIES_MAX,
    WAITING,
    AttachCalls,
    CallAttached,
    CallConnected,
    CallOverflowing,
    CallQueued,
    CallReprioritized,
    CallWrappedUp,
    ConfirmCall,
    Decision,
    DetachCall,
    DetachCalls,
    EndCall,
    Event,
    HangUp,
    OverflowCall,
    PlaceCall,
    RecordingNamed,
    Reprioritize,
    WithdrawCall,
)
from routing.state import CallEntry, ShardState

#: Priorities beyond this are refused.
PRIORITY_MAX = 100


def place(s: ShardState, c: PlaceCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.facts.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id") if c.talks else _queue(s, c, now_ms, [])
    version = (c.attempt, c.move)
    if version < entry.version:
        return refuse("STALE_ATTEMPT", "attempt")
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
        broken_off = end(s, entry, INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False)
        return _queue(s, _waiting_anew(c), now_ms, broken_off)
    # Of a call that was handed on, its edge says what it said at first: not where it was handed to.
    handed_on = entry.transfers and TRANSFERRED_FROM not in dict(c.facts.attributes)
    if handed_on or c.facts.queue == entry.facts.queue:
        # It has its place here, whatever newcomers are told; what rings belongs to the older version.
        return Decision(events=[*end_offer(s, entry), *_attach(entry, c, now_ms)])
    return _queue(s, c, now_ms, end_offer(s, entry))


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


def attach_calls(s: ShardState, c: AttachCalls, now_ms: int) -> Decision:
    """As a PlaceCall under the same number for each that waits; all else is left to that."""
    if len(c.calls) > STEP_ENTRIES_MAX:
        return refuse("OUT_OF_RANGE", "calls")
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
        return refuse("QUEUE_NOT_FOUND", "queue")
    queued_ms = now_ms - c.waited_span_ms
    step, relax_ms = step_at(s, queue, c.facts, queued_ms, now_ms)
    preferred, preferred_until_ms = hope(s, queue, c.facts, queued_ms, now_ms)
    refusal = no_room(s, queue, c.facts, step, fitting=c.fitting and not preferred)
    if refusal is not None:
        return Decision(refusal=refusal)
    queued = CallQueued(
        facts=c.facts,
        attempt=c.attempt,
        move=c.move,
        front=c.front,
        queued_ms=queued_ms,
        effective_ms=place_ms(queue, c.facts, queued_ms, c.facts.priority),
        waited_span_ms=c.waited_span_ms,
        refuse_ms=queued_ms + queue.wait_span_max_ms if queue.wait_span_max_ms else 0,
        step=step,
        relax_ms=relax_ms,
        preferred=preferred,
        preferred_until_ms=preferred_until_ms,
    )
    return Decision(events=[*before, queued])


def detach(s: ShardState, c: DetachCall, now_ms: int) -> Decision:
    return Decision(events=_left_by(s, c.front, c.call_id, c.attempt, c.move, now_ms))


def _left_by(s: ShardState, front: str, call_id: str, attempt: int, move: int, now_ms: int) -> list[Event]:
    """What follows when a front's stream of an entry has ended; empty `front`: whoever's."""
    entry = s.calls.get(call_id)
    if entry is None or entry.attempt != attempt or entry.move != move or not entry.attached:
        return []
    if front and front != entry.front:
        return []
    return detach_events(s, entry, now_ms)


def detach_calls(s: ShardState, c: DetachCalls, now_ms: int) -> Decision:
    if len(c.calls) > STEP_ENTRIES_MAX:
        return refuse("OUT_OF_RANGE", "calls")
    events: list[Event] = []
    for call_id, attempt, move in dict.fromkeys(c.calls):
        events += _left_by(s, c.front, call_id, attempt, move, now_ms)
    return Decision(events=events)


def overflow(s: ShardState, c: OverflowCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    if entry.version != (c.attempt, c.move):
        return refuse("STALE_VERSION", "version")
    if entry.state is OVERFLOWING:
        return Decision()
    if entry.state is not WAITING or entry.callback_number:
        return refuse("ILLEGAL_STATE")
    if entry.preferred and not s.draining:
        # Somebody is free elsewhere, but it waits for one agent, for as long as was asked for.
        return refuse("ILLEGAL_STATE")
    return Decision(events=[CallOverflowing(call_id=c.call_id, until_ms=now_ms + s.timing.move_span_ms)])


def withdraw(s: ShardState, c: WithdrawCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None or entry.state is ENDED or entry.version >= (c.attempt, c.move):
        return Decision()
    if entry.callback_number and entry.state is not CONNECTED and c.attempt == entry.attempt:
        # Promised while the call was on its way elsewhere: where it went nobody holds a line.
        return Decision()
    if entry.state is CONNECTED:
        if not c.agent_lost:
            return refuse("ILLEGAL_STATE")
        return Decision(events=end(s, entry, INTERRUPTED, now_ms, "AGENT_LOST", wrap_up=False))
    return Decision(events=end(s, entry, MOVED, now_ms, c.reason))


def hang_up(s: ShardState, c: HangUp, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is ENDED or (c.attempt and c.attempt < entry.attempt):
        return Decision()
    connected = entry.state is CONNECTED
    if entry.callback_number and not connected:
        # The line is free, as it should be: the place is kept for the call-back.
        return Decision()
    outcome = COMPLETED if connected else ABANDONED
    return Decision(events=end(s, entry, outcome, now_ms))


def end_call(s: ShardState, c: EndCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    if entry.state is ENDED or (c.attempt and c.attempt < entry.attempt):
        return Decision(events=_named_late(entry, c))
    if entry.callback_number and entry.state in BEFORE_CONNECTION and not c.agent:
        return Decision(events=end(s, entry, ABANDONED, now_ms, "CALLBACK_CANCELLED"))
    if entry.state is not CONNECTED:
        return refuse("ILLEGAL_STATE")
    if c.agent and c.agent != entry.agent:
        return refuse("CALL_NOT_HELD", "call_id")
    return Decision(events=end(s, entry, COMPLETED, now_ms, recording_uri=c.recording_uri))


def _named_late(entry: CallEntry, c: EndCall) -> list[Event]:
    """The recording of a conversation that somebody else ended: the first that its edge names."""
    late = entry.state is ENDED and not entry.recording_uri
    late = late and bool(entry.connected_ms or entry.transfers)
    if not late or not c.recording_uri or c.agent or (c.attempt and c.attempt < entry.attempt):
        return []
    return [RecordingNamed(call_id=c.call_id, recording_uri=c.recording_uri)]


def confirm(s: ShardState, c: ConfirmCall, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    if entry.offer_id == c.offer_id and entry.state is CONNECTED:
        return Decision()
    if entry.state in (ENDED, CONNECTED):
        return refuse("CALL_ENDED" if entry.state is ENDED else "OFFER_ENDED", "offer_id")
    if entry.version != (c.attempt, c.move):
        return refuse("STALE_VERSION", "version")
    if entry.state is not ACCEPTED or entry.offer_id != c.offer_id:
        return refuse("OFFER_ENDED", "offer_id")
    return Decision(events=[CallConnected(call_id=c.call_id, offer_id=c.offer_id, agent=entry.agent)])


def reprioritize(s: ShardState, c: Reprioritize, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    if abs(c.priority) > PRIORITY_MAX:
        return refuse("OUT_OF_RANGE", "priority")
    if entry.state not in BEFORE_CONNECTION:
        return refuse("ILLEGAL_STATE")
    if entry.facts.priority == c.priority:
        return Decision()
    effective_ms = place_ms(entry.line.queue, entry.facts, entry.queued_ms, c.priority)
    return Decision(
        events=[CallReprioritized(call_id=c.call_id, priority=c.priority, effective_ms=effective_ms)]
    )
