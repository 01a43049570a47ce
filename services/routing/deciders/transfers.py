"""Calls that wait anew: handed on out of a conversation, or to be called back."""

from __future__ import annotations

import msgspec

from routing.deciders.refusals import conversation, refuse
from routing.deciders.waiting import hope, no_room, place_ms, step_at
from routing.model import (
    CALLBACK_SPAN_MAX_MS,
    CONTEXT_BYTES_MAX,
    CONTEXT_KEYS_MAX,
    OVERFLOWING,
    WAITING,
    CallbackRequested,
    CallFacts,
    CallTransferred,
    Decision,
    RequestCallback,
    TransferCall,
    context_bytes,
)
from routing.state import CallEntry, ShardState

#: Attribute of a call that was handed on: who had it last.
TRANSFERRED_FROM = "transferred_from"


def transfer(s: ShardState, c: TransferCall, now_ms: int) -> Decision:
    entry = conversation(s, c.call_id)
    if isinstance(entry, Decision):
        return entry
    if c.agent and c.agent == entry.agent:
        return refuse("SAME_AGENT", "agent")
    queue = s.queues.get(c.queue or entry.facts.queue)
    if queue is None:
        return refuse("QUEUE_NOT_FOUND", "queue")
    facts = _handed_on(entry, c)
    if _is_too_much(facts):
        return refuse("OUT_OF_RANGE", "attributes")
    step, relax_ms = step_at(s, queue, facts, now_ms, now_ms)
    refusal = no_room(s, queue, facts, step)
    if refusal is not None:
        return Decision(refusal=refusal)
    preferred, until_ms = hope(s, queue, facts, now_ms, now_ms)
    span_ms = entry.line.queue.wrap_up_span_ms if entry.agent in s.agents else 0
    transferred = CallTransferred(
        facts=facts,
        agent=entry.agent,
        wrap_up_until_ms=now_ms + span_ms if span_ms else 0,
        queued_ms=now_ms,
        effective_ms=place_ms(queue, facts, now_ms, facts.priority),
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


def request_callback(s: ShardState, c: RequestCallback, now_ms: int) -> Decision:
    entry = s.calls.get(c.call_id)
    if entry is None:
        return refuse("CALL_NOT_FOUND", "call_id")
    not_before_ms = c.not_before_ms if c.not_before_ms > now_ms else 0
    if not_before_ms > now_ms + CALLBACK_SPAN_MAX_MS:
        return refuse("OUT_OF_RANGE", "not_before_time")
    if entry.state not in (WAITING, OVERFLOWING):
        return refuse("ILLEGAL_STATE")
    if entry.line.queue.closed:
        # Its turn in being refused has not come yet: nothing is to be promised any more.
        return refuse("QUEUE_CLOSED", "queue")
    if (entry.callback_number, entry.callback_ms) == (c.number, not_before_ms):
        return Decision()
    requested = CallbackRequested(
        call_id=c.call_id,
        number=c.number,
        not_before_ms=not_before_ms,
        expire_ms=max(now_ms, not_before_ms) + CALLBACK_SPAN_MAX_MS,
    )
    return Decision(events=[requested])
