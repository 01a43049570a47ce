"""What follows when a deadline passes. Rule 8."""

from __future__ import annotations

from collections.abc import Callable

from routing.deciders.endings import detach_events, end, end_offer, log_out
from routing.deciders.waiting import logged_in
from routing.model import (
    ABANDONED,
    OFFERED,
    REFUSED,
    STEP_ENTRIES_MAX,
    ActRecorded,
    AgentRested,
    CallbackDue,
    CallRelaxed,
    CallResumed,
    CallsForgotten,
    CallWrappedUp,
    Decision,
    Event,
    OfferOutcome,
    PreferenceEnded,
    Tick,
)
from routing.state import CallEntry, ShardState, due_together, next_deadline

#: Who ends a call-back whose queue is closed, and what that is called in the audit log.
OWN_ACTOR, END_CALLBACK = "routing", "END_CALLBACK"


def tick(s: ShardState, c: Tick, now_ms: int) -> Decision:
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
        return log_out(s, s.agents[owner], now_ms)
    if kind == "wrap":
        agent_id, _, call_id = owner.partition("/")
        return [CallWrappedUp(call_id=call_id, agent=agent_id, disposition=None)]
    return _DUE_OF_CALL[kind](s, s.calls[owner], now_ms)


def _due_offer(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    if entry.state is OFFERED:
        return end_offer(s, entry, OfferOutcome.EXPIRED, now_ms)
    # An edge that does not confirm may have stalled with its stream open: first in line, its call would take
    # one agent after the other. It is offered again when its edge shows that it is there.
    left = detach_events(s, entry, now_ms) if entry.attached else []
    return [*end_offer(s, entry, OfferOutcome.UNCONFIRMED, now_ms), *left]


def _due_relax(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    queue, following = entry.line.queue, entry.step + 1
    last = len(queue.steps) - 1
    while following < last:
        step = queue.steps[following]
        if not step.skip_if_nobody_fits or logged_in(s, queue, entry.facts, following):
            break
        following += 1
    relax_ms = now_ms + queue.steps[following].span_ms if following < last else 0
    return [CallRelaxed(call_id=entry.facts.call_id, step=min(following, max(0, last)), relax_ms=relax_ms)]


def _due_refuse(s: ShardState, entry: CallEntry, now_ms: int) -> list[Event]:
    if not entry.callback_number:
        reason = "QUEUE_CLOSED" if entry.line.queue.closed else "WAIT_TOO_LONG"
        return end(s, entry, REFUSED, now_ms, reason)
    # Whoever was promised a call-back waits for as long as it takes: only the queue's closing ends that. No
    # stream is there to say it on, so the audit log says that a promise is not kept.
    act = ActRecorded(
        actor=OWN_ACTOR,
        act=END_CALLBACK,
        subject=f"calls/{entry.facts.call_id}",
        reason="the queue was closed",
        details=(("queue", f"queues/{entry.facts.queue}"),),
    )
    return [act, *end(s, entry, REFUSED, now_ms, "CALLBACK_QUEUE_CLOSED")]


_DUE_OF_CALL: dict[str, Callable[[ShardState, CallEntry, int], list[Event]]] = {
    "offer": _due_offer,
    "relax": _due_relax,
    "refuse": _due_refuse,
    "prefer": lambda s, entry, now_ms: [PreferenceEnded(call_id=entry.facts.call_id)],
    "resume": lambda s, entry, now_ms: [CallResumed(call_id=entry.facts.call_id)],
    "callback": lambda s, entry, now_ms: [CallbackDue(call_id=entry.facts.call_id)],
    "expire": lambda s, entry, now_ms: end(s, entry, ABANDONED, now_ms, "CALLBACK_EXPIRED"),
    "detached": lambda s, entry, now_ms: end(s, entry, ABANDONED, now_ms, "STREAM_LOST"),
}
