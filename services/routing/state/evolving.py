"""`evolve`, the only function that changes a state: what it does for each event stands in a table. The
functions are in `calls`, `agents` and `configuration`; those of the shard as a whole are here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routing.model import (
    BEFORE_CONNECTION,
    CONNECTED,
    OFFLINE,
    ActRecorded,
    AgentConfigured,
    AgentDraining,
    AgentRemoved,
    AgentRested,
    CallAttached,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallDetached,
    CallEnded,
    CallMonitored,
    CallOffered,
    CallOverflowing,
    CallQueued,
    CallRelaxed,
    CallReprioritized,
    CallResumed,
    CallsForgotten,
    CallTransferred,
    CallWrappedUp,
    DeadlinesMoved,
    DrainingSet,
    Event,
    LeadListSet,
    OfferAccepted,
    OfferEnded,
    PreferenceEnded,
    PresenceSet,
    QueueConfigured,
    QueueRemoved,
    RecordingNamed,
    SessionClosed,
    SessionDetached,
    SessionOpened,
    ShardOpened,
    TimingConfigured,
)
from routing.state import agents, calls, configuration
from routing.state.agents import detach_agent
from routing.state.calls import detach_call
from routing.state.shard import DUE_OF_AGENT, DUE_OF_CALL, ShardState


def evolve(state: ShardState, event: Event, now_ms: int) -> None:
    """Applies one event that was decided at `now_ms` (business milliseconds since 1970).

    Raises KeyError or AssertionError for an event that does not fit the state: such a journal is not led by
    this code.
    """
    state.ordinal += 1
    if now_ms > state.now_ms:
        state.now_ms = now_ms
    _EVOLVE[type(event)](state, event)


def _shard_opened(s: ShardState, e: ShardOpened) -> None:
    s.conclude_ms = s.now_ms + s.timing.reattach_span_ms
    s.clear_worklists()
    _move_deadlines(s, e.leaderless_span_ms)
    for call in s.calls.values():
        if call.callback_number and call.state is not CONNECTED:
            continue
        if call.state in BEFORE_CONNECTION:
            detach_call(s, call, s.conclude_ms + s.timing.grace_span_ms)
        elif call.state is CONNECTED:
            call.attached = False
    for agent in s.agents.values():
        if agent.presence is not OFFLINE:
            detach_agent(s, agent, s.conclude_ms + s.timing.agent_grace_span_ms)


def _deadlines_moved(s: ShardState, e: DeadlinesMoved) -> None:
    s.conclude_ms += e.span_ms
    _move_deadlines(s, e.span_ms)


def _move_deadlines(s: ShardState, span_ms: int) -> None:
    """Nothing could be concluded or done for so long: every deadline that runs is later by it."""
    s.deadlines.clear()
    for call_id, call in s.calls.items():
        for kind, name in DUE_OF_CALL.items():
            due_ms = getattr(call, name)
            if due_ms:
                setattr(call, name, due_ms + span_ms)
                s.set_deadline(due_ms + span_ms, kind, call_id)
    for agent_id, agent in s.agents.items():
        for kind, name in DUE_OF_AGENT.items():
            due_ms = getattr(agent, name)
            if due_ms:
                setattr(agent, name, due_ms + span_ms)
                s.set_deadline(due_ms + span_ms, kind, agent_id)
        for call_id, (began_ms, due_ms) in agent.wraps.items():
            agent.wraps[call_id] = (began_ms, due_ms + span_ms)
            s.set_deadline(due_ms + span_ms, "wrap", f"{agent_id}/{call_id}")


def _nothing(s: ShardState, e: Event) -> None:
    """Told to others; the shard itself is as it was."""


_EVOLVE: dict[type, Callable[[ShardState, Any], None]] = {
    ShardOpened: _shard_opened,
    TimingConfigured: configuration.timing_configured,
    DrainingSet: configuration.draining_set,
    QueueConfigured: configuration.queue_configured,
    QueueRemoved: configuration.queue_removed,
    AgentConfigured: configuration.agent_configured,
    AgentRemoved: configuration.agent_removed,
    CallQueued: calls.call_queued,
    CallAttached: calls.call_attached,
    CallDetached: calls.call_detached,
    CallOverflowing: calls.call_overflowing,
    CallResumed: calls.call_resumed,
    CallReprioritized: calls.call_reprioritized,
    CallOffered: calls.call_offered,
    OfferAccepted: calls.offer_accepted,
    OfferEnded: calls.offer_ended,
    CallConnected: calls.call_connected,
    CallEnded: calls.call_ended,
    RecordingNamed: calls.recording_named,
    CallWrappedUp: calls.call_wrapped_up,
    CallsForgotten: calls.calls_forgotten,
    SessionOpened: agents.session_opened,
    SessionDetached: agents.session_detached,
    SessionClosed: agents.session_closed,
    PresenceSet: agents.presence_set,
    AgentRested: agents.agent_rested,
    CallRelaxed: calls.call_relaxed,
    PreferenceEnded: calls.preference_ended,
    CallTransferred: calls.call_transferred,
    CallbackRequested: calls.callback_requested,
    CallbackDue: calls.callback_due,
    CallMonitored: _nothing,
    AgentDraining: agents.agent_draining,
    ActRecorded: _nothing,
    LeadListSet: configuration.lead_list_set,
    DeadlinesMoved: _deadlines_moved,
}
