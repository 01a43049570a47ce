"""Events of calls, applied: from being queued to being forgotten, offers and after-call work included."""

from __future__ import annotations

import msgspec

from routing.model import (
    ABANDONED,
    ACCEPTED,
    CONNECTED,
    DECLINERS_MAX,
    ENDED,
    MOVED,
    OFFERED,
    OVERFLOWING,
    REFUSED,
    WAITING,
    CallAttached,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallDetached,
    CallEnded,
    CallOffered,
    CallOverflowing,
    CallQueued,
    CallRelaxed,
    CallReprioritized,
    CallResumed,
    CallsForgotten,
    CallTransferred,
    CallWrappedUp,
    OfferAccepted,
    OfferEnded,
    OfferOutcome,
    PreferenceEnded,
    RecordingNamed,
)
from routing.state.entries import AgentEntry, CallEntry
from routing.state.indexes import list_call, prefer, refresh, unlist_call
from routing.state.lines import step_back
from routing.state.shard import ShardState
from routing.state.tallies import HANDLE_TIME_GAIN, expected_span_ms


def call_queued(s: ShardState, e: CallQueued) -> None:
    line = s.line_of((e.facts.queue, e.facts.channel, e.facts.skills, e.step))
    old = s.calls.get(e.facts.call_id)
    goes_on = old is not None and old.state is not ENDED
    if old is None or not goes_on or old.facts.queue != e.facts.queue:
        s.tallies[e.facts.queue].offered += 1
        if old is not None and goes_on and old.facts.queue in s.tallies:
            # Its edge has opened it again for another queue.
            s.tallies[old.facts.queue].moved += 1
    if old is not None:
        unlist_call(s, old)
        prefer(s, old, "")
    entry = s.calls[e.facts.call_id] = CallEntry(e.facts, line)
    entry.ordinal = s.ordinal
    entry.attempt, entry.move, entry.front = e.attempt, e.move, e.front
    entry.queued_ms, entry.effective_ms, entry.refuse_ms = e.queued_ms, e.effective_ms, e.refuse_ms
    s.set_deadline(e.refuse_ms, "refuse", e.facts.call_id)
    _begin_wait(s, entry, e)


def call_relaxed(s: ShardState, e: CallRelaxed) -> None:
    entry = s.calls[e.call_id]
    unlist_call(s, entry)
    entry.step, entry.relax_ms = e.step, e.relax_ms
    facts = entry.facts
    entry.line = s.line_of((facts.queue, facts.channel, facts.skills, e.step))
    s.set_deadline(e.relax_ms, "relax", e.call_id)
    list_call(s, entry)


def preference_ended(s: ShardState, e: PreferenceEnded) -> None:
    end_preference(s, s.calls[e.call_id])


def end_preference(s: ShardState, entry: CallEntry) -> None:
    unlist_call(s, entry)
    prefer(s, entry, "")
    entry.prefer_ms = 0
    list_call(s, entry)


def call_transferred(s: ShardState, e: CallTransferred) -> None:
    call_id = e.facts.call_id
    entry = s.calls[call_id]
    _tally_conversation(s, entry)
    agent = s.agents.get(e.agent)
    if agent is not None and call_id in agent.calls:
        agent.calls.discard(call_id)
        s.serve(entry.facts.queue, -1)
        if e.wrap_up_until_ms:
            agent.wrap_queues[call_id] = entry.facts.queue
            if e.wrap_up_until_ms > entry.others_wrap_until_ms:
                entry.others_wrap_until_ms = e.wrap_up_until_ms
    entry.facts, entry.agent, entry.offer_id = e.facts, "", ""
    entry.state = OVERFLOWING if e.resume_ms else WAITING
    entry.resume_ms = e.resume_ms
    s.set_deadline(e.resume_ms, "resume", call_id)
    entry.line = s.line_of((e.facts.queue, e.facts.channel, e.facts.skills, e.step))
    entry.connected_ms, entry.ordinal = 0, s.ordinal
    entry.queued_ms, entry.effective_ms, entry.refuse_ms = e.queued_ms, e.effective_ms, e.refuse_ms
    entry.callback_number, entry.declined_by, entry.told_ms = "", (), 0
    entry.transfers += 1
    s.tallies[e.facts.queue].offered += 1
    s.set_deadline(e.refuse_ms, "refuse", call_id)
    _begin_wait(s, entry, e)
    if agent is not None:
        begin_wrap_up(s, agent, call_id, e.wrap_up_until_ms)


def _begin_wait(s: ShardState, entry: CallEntry, e: CallQueued | CallTransferred) -> None:
    """The step of relaxation and the preferred agent that a wait begins with."""
    call_id = entry.facts.call_id
    entry.step, entry.relax_ms = e.step, e.relax_ms
    entry.prefer_ms = e.preferred_until_ms
    prefer(s, entry, e.preferred)
    if e.relax_ms:
        s.set_deadline(e.relax_ms, "relax", call_id)
    if e.preferred_until_ms:
        s.set_deadline(e.preferred_until_ms, "prefer", call_id)
    list_call(s, entry)
    if entry.line.crowd.waiting > 1:
        _expect(s, entry)


def _expect(s: ShardState, entry: CallEntry) -> None:
    """Remembers the wait that is expected of a call that found others waiting, for what will come of it. Not
    of one with a head start, for which nobody knows its place at once, or that waits for one agent.
    """
    ahead = entry.line.crowd.waiting - 1
    if entry.ticket and entry.effective_ms == s.now_ms and not entry.preferred:
        tally = s.tallies.get(entry.facts.queue)
        entry.told_ms = max(0, expected_span_ms(entry.line, tally, ahead))


def callback_requested(s: ShardState, e: CallbackRequested) -> None:
    entry = s.calls[e.call_id]
    _end_deferral(s, entry)
    entry.callback_number, entry.callback_ms, entry.expire_ms = e.number, e.not_before_ms, e.expire_ms
    entry.callback_asked_ms = s.now_ms
    entry.detached_until_ms = entry.refuse_ms = entry.told_ms = 0
    if entry.state is OVERFLOWING:
        entry.state, entry.resume_ms = WAITING, 0
    s.set_deadline(e.not_before_ms, "callback", e.call_id)
    s.set_deadline(e.expire_ms, "expire", e.call_id)
    list_call(s, entry)


def callback_due(s: ShardState, e: CallbackDue) -> None:
    entry = s.calls[e.call_id]
    _end_deferral(s, entry)
    list_call(s, entry)


def _end_deferral(s: ShardState, entry: CallEntry) -> None:
    """Whoever wished to be called back later did not wait for anybody until then: that time counts for the
    place alone.
    """
    if entry.callback_ms:
        span_ms = s.now_ms - entry.callback_asked_ms
        entry.queued_ms += span_ms
        entry.facts = msgspec.structs.replace(
            entry.facts, credit_span_ms=entry.facts.credit_span_ms + span_ms
        )
        entry.callback_ms = 0


def call_attached(s: ShardState, e: CallAttached) -> None:
    entry = s.calls[e.call_id]
    entry.attempt, entry.move, entry.front = e.attempt, e.move, e.front
    entry.attached, entry.detached_until_ms = True, 0
    # The caller is on the line again.
    _end_deferral(s, entry)
    entry.callback_number, entry.callback_ms, entry.expire_ms = "", 0, 0
    if e.refuse_ms:
        entry.refuse_ms = e.refuse_ms
        s.set_deadline(e.refuse_ms, "refuse", e.call_id)
    if entry.state is OVERFLOWING:
        entry.state, entry.resume_ms = WAITING, 0
    if entry.state is WAITING and not entry.ticket:
        list_call(s, entry)


def call_detached(s: ShardState, e: CallDetached) -> None:
    detach_call(s, s.calls[e.call_id], e.until_ms)


def detach_call(s: ShardState, entry: CallEntry, until_ms: int) -> None:
    entry.attached, entry.detached_until_ms = False, until_ms
    unlist_call(s, entry)
    s.set_deadline(until_ms, "detached", entry.facts.call_id)


def call_overflowing(s: ShardState, e: CallOverflowing) -> None:
    entry = s.calls[e.call_id]
    entry.state, entry.resume_ms = OVERFLOWING, e.until_ms
    unlist_call(s, entry)
    s.set_deadline(e.until_ms, "resume", e.call_id)


def call_resumed(s: ShardState, e: CallResumed) -> None:
    entry = s.calls[e.call_id]
    entry.state, entry.resume_ms = WAITING, 0
    list_call(s, entry)


def call_reprioritized(s: ShardState, e: CallReprioritized) -> None:
    entry = s.calls[e.call_id]
    entry.facts = msgspec.structs.replace(entry.facts, priority=e.priority, priority_parts=())
    entry.effective_ms = e.effective_ms
    if entry.ticket:
        list_call(s, entry)


def call_offered(s: ShardState, e: CallOffered) -> None:
    entry, agent = s.calls[e.call_id], s.agents[e.agent]
    s.offers_made = int(e.offer_id.rpartition(".")[2])
    entry.state, entry.agent, entry.offer_id = OFFERED, e.agent, e.offer_id
    entry.offer_until_ms = e.until_ms
    unlist_call(s, entry)
    agent.offers[e.call_id] = e.offer_id
    s.serve(entry.facts.queue, 1)
    agent.last_offer = s.ordinal
    agent.since_ms = s.now_ms
    step_back(agent)
    s.set_deadline(e.until_ms, "offer", e.call_id)
    refresh(s, agent)


def offer_accepted(s: ShardState, e: OfferAccepted) -> None:
    entry = s.calls[e.call_id]
    entry.state, entry.offer_until_ms = ACCEPTED, e.until_ms
    s.set_deadline(e.until_ms, "offer", e.call_id)


def offer_ended(s: ShardState, e: OfferEnded) -> None:
    entry, agent = s.calls[e.call_id], s.agents.get(e.agent)
    entry.state, entry.agent, entry.offer_id, entry.offer_until_ms = WAITING, "", "", 0
    if e.outcome in (OfferOutcome.DECLINED, OfferOutcome.EXPIRED):
        others = tuple(agent_id for agent_id in entry.declined_by if agent_id != e.agent)
        entry.declined_by = (*others, e.agent)[-DECLINERS_MAX:]
    list_call(s, entry)
    if agent is None:
        return
    if agent.offers.pop(e.call_id, None) is not None:
        s.serve(entry.facts.queue, -1)
    agent.missed, agent.rest_until_ms = e.missed, e.rest_until_ms
    agent.since_ms = s.now_ms
    s.set_deadline(e.rest_until_ms, "rest", e.agent)
    refresh(s, agent)


def call_connected(s: ShardState, e: CallConnected) -> None:
    entry, agent = s.calls[e.call_id], s.agents[e.agent]
    entry.state, entry.offer_until_ms, entry.refuse_ms = CONNECTED, 0, 0
    entry.relax_ms = entry.prefer_ms = entry.callback_ms = entry.expire_ms = 0
    if entry.preferred:
        prefer(s, entry, "")
    entry.connected_ms, entry.detached_until_ms = s.now_ms, 0
    agent.offers.pop(e.call_id, None)
    agent.calls.add(e.call_id)
    agent.missed, agent.since_ms = 0, s.now_ms
    agent.taken += 1
    if agent.idle:
        step_back(agent)
    tally = s.tallies[entry.facts.queue]
    wait = s.now_ms - entry.queued_ms
    tally.answered += 1
    tally.answered_in_target += wait <= entry.line.queue.service_level_span_ms
    tally.wait_total_ms += wait
    if entry.told_ms:
        tally.keep(entry.told_ms, wait)
    refresh(s, agent)


def call_ended(s: ShardState, e: CallEnded) -> None:
    entry = s.calls[e.call_id]
    was_connected = entry.state is CONNECTED
    _end_deferral(s, entry)
    entry.state, entry.outcome, entry.reason = ENDED, e.outcome, e.reason
    entry.ended_ms, entry.recording_uri = s.now_ms, e.recording_uri
    entry.offer_until_ms = entry.detached_until_ms = entry.refuse_ms = entry.resume_ms = 0
    entry.relax_ms = entry.prefer_ms = entry.callback_ms = entry.expire_ms = 0
    entry.wrap_up_until_ms = e.wrap_up_until_ms
    done_ms = max(s.now_ms, e.wrap_up_until_ms, entry.others_wrap_until_ms)
    entry.forget_ms = done_ms + s.timing.memory_span_ms
    unlist_call(s, entry)
    if entry.preferred:
        prefer(s, entry, "")
    s.set_deadline(entry.forget_ms, "forget", e.call_id)
    _tally_end(s, entry, was_connected)
    agent = s.agents.get(entry.agent)
    if agent is None:
        return
    if agent.offers.pop(e.call_id, None) is not None or e.call_id in agent.calls:
        s.serve(entry.facts.queue, -1)
    agent.calls.discard(e.call_id)
    begin_wrap_up(s, agent, e.call_id, e.wrap_up_until_ms)


def recording_named(s: ShardState, e: RecordingNamed) -> None:
    s.calls[e.call_id].recording_uri = e.recording_uri


def begin_wrap_up(s: ShardState, agent: AgentEntry, call_id: str, until_ms: int) -> None:
    """After-call work, if there is any to do."""
    agent.since_ms = s.now_ms
    if until_ms:
        agent.wraps[call_id] = (s.now_ms, until_ms)
        s.set_deadline(until_ms, "wrap", f"{agent.config.id}/{call_id}")
    refresh(s, agent)


def call_wrapped_up(s: ShardState, e: CallWrappedUp) -> None:
    entry, agent = s.calls.get(e.call_id), s.agents.get(e.agent)
    began_ms = agent.wraps.pop(e.call_id, (0, 0))[0] if agent is not None else 0
    queue = entry.facts.queue if entry is not None else ""
    was_at_it = began_ms > 0
    if agent is not None:
        queue = agent.wrap_queues.pop(e.call_id, queue)
    if entry is not None and entry.agent == e.agent:
        # Whoever handed the call on has no say in what becomes of it.
        began_ms = began_ms or (entry.ended_ms if not entry.wrapped else 0)
        entry.wrapped, entry.wrap_up_until_ms = True, 0
        entry.disposed = entry.disposed or e.disposition is not None
    tally = s.tallies.get(queue)
    if tally is not None and began_ms:
        gain = HANDLE_TIME_GAIN if tally.wrapped else 1.0
        tally.wrap_up_span_ms += gain * (s.now_ms - began_ms - tally.wrap_up_span_ms)
        tally.wrapped += 1
    if agent is not None and was_at_it:
        agent.since_ms = s.now_ms
        refresh(s, agent)


def calls_forgotten(s: ShardState, e: CallsForgotten) -> None:
    for call_id in e.call_ids:
        s.calls.pop(call_id, None)


def _tally_conversation(s: ShardState, entry: CallEntry) -> None:
    tally = s.tallies.get(entry.facts.queue)
    if tally is not None:
        gain = HANDLE_TIME_GAIN if tally.handled else 1.0
        tally.handle_span_ms += gain * (s.now_ms - entry.connected_ms - tally.handle_span_ms)
        tally.handled += 1


def _tally_end(s: ShardState, entry: CallEntry, was_connected: bool) -> None:
    tally = s.tallies.get(entry.facts.queue)
    if tally is None:
        return
    if was_connected:
        _tally_conversation(s, entry)
    elif entry.outcome is ABANDONED:
        if s.now_ms - entry.queued_ms <= entry.line.queue.short_abandon_span_ms:
            tally.short_abandoned += 1
        else:
            tally.abandoned += 1
    elif entry.outcome is MOVED:
        tally.moved += 1
    elif entry.outcome is REFUSED:
        tally.refused += 1
