"""Words for the rest of the enterprise: a shard's journal as events of `callmesh.routing.v1`. Pure.

1. Journal events are terse (the end of a call names only the call), so the words need what was before. A
   `Projection` runs the leader's own `evolve` over the journal and reads from the state what an event leaves
   out: the projection is a function of the journal, and so are the words.
2. An event's id is `shard:sequence:index`, index being `SLOTS` times the place of the journal's event in its
   block, plus a slot: 0 for what the event says itself, 1 for the state that it gave an agent. So an id never
   depends on what else a release chooses to tell, and a block published again is the same events again.
3. Time is the shard's business time at which the event was decided, never behind an event before it.
4. What interests nobody outside (streams, positions, configuration) is not told.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.clock import from_ms
from chassis.ids import resource_name
from routing import codec, convert, digests, model
from routing.audit import act_message
from routing.journal import Block
from routing.state import AgentEntry, CallEntry, ShardState, evolve

#: Service that says all this; names the exchange.
SOURCE = "routing"
#: Ids set aside for each event of the journal.
SLOTS = 4
SLOT_OWN, SLOT_AGENT = 0, 1
#: Blocks after which outdated entries are taken out of the projection's heaps.
TIDY_BLOCKS = 4_096

#: Types that nobody has to subscribe to: for boards, reports and partners.
OPTIONAL: tuple[type[Message], ...] = (
    events_pb2.CallOffered,
    events_pb2.OfferEnded,
    events_pb2.CallTransferred,
    events_pb2.CallRecorded,
    events_pb2.CallbackRequested,
    events_pb2.AgentStateChanged,
    events_pb2.RegionStateChanged,
    events_pb2.LeaderChanged,
    events_pb2.EventsSkipped,
    events_pb2.AdministrativeAct,
)


class UnreadableBlock(Exception):
    """A block that this code cannot apply: of a newer format, damaged, or at odds with those before it."""


def skipped_event(shard: str, first: int, last: int, now_ms: int) -> Event:
    """In place of everything that the blocks from `first` to `last` had to say."""
    message = events_pb2.EventsSkipped(
        shard=shard, first_sequence=first, last_sequence=last, event_time=convert.timestamp(now_ms)
    )
    return Event.of(
        message,
        source=SOURCE,
        subject=resource_name("regions", shard),
        time=from_ms(now_ms),
        id=f"{shard}:{last}:skipped",
    )


class Projection:
    """A shard as its journal tells it, block by block, from the first or from a snapshot's state on."""

    def __init__(self, shard: str, state: ShardState | None = None) -> None:
        self.state = state if state is not None else ShardState(shard)
        #: A block's digest was not that of this state: nothing may begin from it.
        self.diverged = False
        self._until_tidy = TIDY_BLOCKS

    def skip(self, block: Block) -> None:
        """Applies a block without a word. Raises as `apply`."""
        for _ in self._run(block, tell=False):
            raise AssertionError("nothing is told of a block that is skipped")

    def apply(self, block: Block) -> list[Event]:
        """Applies the next block and says what happened in it, in order.

        Raises UnreadableBlock; the projection is then of no further use.
        """
        return list(self._run(block, tell=True))

    def _run(self, block: Block, *, tell: bool) -> Iterator[Event]:
        if block.format > codec.FORMAT:
            raise UnreadableBlock(f"{block.key} has format {block.format}, this code reads {codec.FORMAT}")
        state = self.state
        try:
            if block.opening:
                state.epoch = block.epoch
            for place, (at_ms, event) in enumerate(codec.decode_events(block.body, block.now_ms)):
                told = _Teller(state, block, place) if tell and type(event) in _INTERESTING else None
                if told is not None:
                    told.before(event)
                evolve(state, event, at_ms)
                if told is not None:
                    yield from told.after(event)
        except Exception as error:
            # Whatever it is, a repeat ends the same way: the journal and this code do not fit.
            raise UnreadableBlock(f"{block.key}: {type(error).__name__}: {error}") from error
        state.now_ms = max(state.now_ms, block.now_ms)
        self.diverged = self.diverged or not digests.agrees(state, block)
        self._tidy()

    def _tidy(self) -> None:
        """Nobody pairs here, so nobody else empties the worklists and heaps."""
        state = self.state
        state.clear_worklists()
        self._until_tidy -= 1
        if self._until_tidy:
            return
        self._until_tidy = TIDY_BLOCKS
        state.deadlines.tidy()
        for line in state.lines.values():
            line.waiting = [w for w in line.waiting if (c := state.calls.get(w[2])) and c.ticket == w[3]]
            heapq.heapify(line.waiting)


class _Teller:
    """One event of the journal, on its way into words."""

    __slots__ = ("_agent", "_block", "_place", "_queue", "_since_ms", "_state", "_was")

    def __init__(self, state: ShardState, block: Block, place: int) -> None:
        self._state = state
        self._block = block
        self._place = place
        self._agent = ""
        #: When what the event ends began (a conversation, after-call work); 0 when it ends neither.
        self._since_ms = 0
        #: Queue of what it ends, where the call waits in another meanwhile.
        self._queue = ""
        self._was: tuple[model.AgentState, str] | None = None

    def before(self, event: model.Event) -> None:
        """Remembers what `evolve` is about to change."""
        self._agent = agent_of(self._state, event)
        self._since_ms = _since_ms(self._state, event)
        self._queue = _queue_before(self._state, event)
        self._was = _standing(self._state.agents.get(self._agent))

    def after(self, event: model.Event) -> Iterator[Event]:
        """What the event says itself, then the agent's new state."""
        word = _WORDS.get(type(event))
        said = word(self, event) if word is not None else None
        if said is not None:
            yield self._event(*said, slot=SLOT_OWN)
        # One that was removed is as good as logged out.
        now = _standing(self._state.agents.get(self._agent)) or (model.AgentState.OFFLINE, "")
        if self._was is not None and now != self._was:
            yield self._agent_changed(*now)

    @property
    def _now_ms(self) -> int:
        return self._state.now_ms

    def _event(self, message: Message, subject: str, *, slot: int) -> Event:
        index = self._place * SLOTS + slot
        return Event.of(
            message,
            source=SOURCE,
            subject=subject,
            time=from_ms(self._now_ms),
            id=f"{self._state.shard}:{self._block.sequence}:{index}",
            traceparent=self._traceparent(subject),
        )

    def _traceparent(self, subject: str) -> str | None:
        """The trace of the request that placed the call that an event is about."""
        entry = self._state.calls.get(subject.removeprefix("calls/"))
        return entry.facts.traceparent or None if entry is not None else None

    def _agent_changed(self, state: model.AgentState, pause_reason: str) -> Event:
        agent = resource_name("agents", self._agent)
        message = events_pb2.AgentStateChanged(
            agent=agent,
            region=resource_name("regions", self._state.shard),
            event_time=convert.timestamp(self._now_ms),
            state=convert.AGENT_STATES[state],
            pause_reason=pause_reason,
            shard=self._state.shard,
            epoch=self._block.epoch,
            sequence=self._block.sequence,
        )
        return self._event(message, agent, slot=SLOT_AGENT)

    def _common(self, entry: CallEntry, agent: str) -> dict[str, Any]:
        """The fields that every event of a call begins with."""
        facts = entry.facts
        ref = events_pb2.CallRef(
            call_id=facts.call_id,
            version=convert.version(entry.attempt, entry.move),
            shard=self._state.shard,
            epoch=self._block.epoch,
            sequence=self._block.sequence,
            caller_number=facts.caller_number,
            channel=_CHANNELS.get(facts.channel, common_pb2.CHANNEL_UNSPECIFIED),
            queue=resource_name("queues", self._queue or facts.queue),
            region=resource_name("regions", self._state.shard),
            home_region=resource_name("regions", facts.home_region) if facts.home_region else "",
            agent=resource_name("agents", agent) if agent else "",
        )
        return {"call": ref, "event_time": convert.timestamp(self._now_ms)}

    # --- words ---

    def leader_changed(self, event: model.ShardOpened) -> tuple[Message, str]:
        message = events_pb2.LeaderChanged(
            shard=self._state.shard,
            epoch=self._block.epoch,
            router=event.router,
            event_time=convert.timestamp(self._now_ms),
        )
        return message, resource_name("regions", self._state.shard)

    def queued(self, event: model.CallQueued) -> tuple[Message, str]:
        message = events_pb2.CallQueued(
            **self._common(self._state.calls[event.facts.call_id], ""),
            priority=event.facts.priority,
            waited_before=convert.duration(event.waited_span_ms),
        )
        return message, _subject(event.facts.call_id)

    def offered(self, event: model.CallOffered) -> tuple[Message, str]:
        entry = self._state.calls[event.call_id]
        message = events_pb2.CallOffered(**self._common(entry, event.agent), offer_id=event.offer_id)
        return message, _subject(event.call_id)

    def offer_ended(self, event: model.OfferEnded) -> tuple[Message, str]:
        entry = self._state.calls[event.call_id]
        message = events_pb2.OfferEnded(
            **self._common(entry, event.agent),
            offer_id=event.offer_id,
            outcome=convert.OFFER_OUTCOMES[event.outcome],
        )
        return message, _subject(event.call_id)

    def connected(self, event: model.CallConnected) -> tuple[Message, str]:
        entry = self._state.calls[event.call_id]
        message = events_pb2.CallConnected(
            **self._common(entry, event.agent),
            offer_id=event.offer_id,
            wait=_span(entry.queued_ms, entry.connected_ms),
        )
        return message, _subject(event.call_id)

    def ended(self, event: model.CallEnded) -> tuple[Message, str]:
        entry = self._state.calls[event.call_id]
        connected_ms = entry.connected_ms
        message = events_pb2.CallEnded(
            **self._common(entry, entry.agent),
            outcome=convert.CALL_OUTCOMES[event.outcome],
            reason=event.reason,
            wait=_span(entry.queued_ms, connected_ms or entry.ended_ms),
            talk=_span(connected_ms, entry.ended_ms) if connected_ms else None,
            queue_time=convert.timestamp(entry.queued_ms),
            connect_time=convert.timestamp(connected_ms),
            recording_uri=event.recording_uri,
            callback_number="" if connected_ms else entry.callback_number,
        )
        return message, _subject(event.call_id)

    def recorded(self, event: model.RecordingNamed) -> tuple[Message, str]:
        entry = self._state.calls[event.call_id]
        message = events_pb2.CallRecorded(
            **self._common(entry, entry.agent), recording_uri=event.recording_uri
        )
        return message, _subject(event.call_id)

    def acted(self, event: model.ActRecorded) -> tuple[Message, str]:
        message = act_message(
            event.act,
            actor=event.actor,
            resource=event.subject,
            time=convert.timestamp(self._now_ms),
            reason=event.reason,
            details=dict(event.details),
        )
        return message, event.subject

    def transferred(self, event: model.CallTransferred) -> tuple[Message, str]:
        facts = event.facts
        message = events_pb2.CallTransferred(
            **self._common(self._state.calls[facts.call_id], event.agent),
            talk=_span(self._since_ms, self._now_ms) if self._since_ms else None,
            to_agent=resource_name("agents", event.to_agent) if event.to_agent else "",
        )
        return message, _subject(facts.call_id)

    def callback_requested(self, event: model.CallbackRequested) -> tuple[Message, str]:
        message = events_pb2.CallbackRequested(
            **self._common(self._state.calls[event.call_id], ""),
            number=event.number,
            not_before_time=convert.timestamp(event.not_before_ms),
        )
        return message, _subject(event.call_id)

    def wrapped_up(self, event: model.CallWrappedUp) -> tuple[Message, str] | None:
        entry = self._state.calls.get(event.call_id)
        if entry is None:
            return None
        said = event.disposition
        message = events_pb2.CallWrappedUp(
            **self._common(entry, event.agent),
            disposition=convert.disposition_message(said) if said is not None else None,
            wrap_up=_span(self._since_ms or entry.ended_ms or self._now_ms, self._now_ms),
        )
        return message, _subject(event.call_id)


_CHANNELS: dict[str, Any] = {
    name.removeprefix("CHANNEL_").lower(): number for name, number in common_pb2.Channel.items()
}


def _subject(call_id: str) -> str:
    return resource_name("calls", call_id)


def _span(from_ms: int, until_ms: int) -> Duration:
    """Never negative: a place token may say that a call came before the shard's own clock began."""
    return convert.duration(max(0, until_ms - from_ms))


def _standing(agent: AgentEntry | None) -> tuple[model.AgentState, str] | None:
    """What the world sees of an agent: its state and, while paused, why."""
    if agent is None:
        return None
    state = agent.state
    return state, agent.pause_reason if state is model.AgentState.PAUSED else ""


def _since_ms(state: ShardState, event: model.Event) -> int:
    if isinstance(event, model.CallTransferred):
        entry = state.calls.get(event.facts.call_id)
        return entry.connected_ms if entry is not None else 0
    if isinstance(event, model.CallWrappedUp):
        agent = state.agents.get(event.agent)
        return agent.wraps.get(event.call_id, (0, 0))[0] if agent is not None else 0
    return 0


def _queue_before(state: ShardState, event: model.Event) -> str:
    """The queue of after-call work whose call was handed on; "" else."""
    if not isinstance(event, model.CallWrappedUp) or event.agent not in state.agents:
        return ""
    return state.agents[event.agent].wrap_queues.get(event.call_id, "")


def agent_of(state: ShardState, event: Any) -> str:
    """The agent whose state an event may change; "" for none."""
    if isinstance(event, model.CallEnded):
        entry = state.calls.get(event.call_id)
        return entry.agent if entry is not None else ""
    agent = getattr(event, "agent", "")
    return agent if isinstance(agent, str) else ""


_WORDS: dict[type, Callable[[_Teller, Any], tuple[Message, str] | None]] = {
    model.ShardOpened: _Teller.leader_changed,
    model.CallQueued: _Teller.queued,
    model.CallOffered: _Teller.offered,
    model.OfferEnded: _Teller.offer_ended,
    model.CallConnected: _Teller.connected,
    model.CallEnded: _Teller.ended,
    model.RecordingNamed: _Teller.recorded,
    model.CallWrappedUp: _Teller.wrapped_up,
    model.ActRecorded: _Teller.acted,
    model.CallTransferred: _Teller.transferred,
    model.CallbackRequested: _Teller.callback_requested,
}
#: Without words of their own, these change what an agent is to the world.
_OF_AGENTS: tuple[type, ...] = (
    model.SessionOpened,
    model.SessionClosed,
    model.PresenceSet,
    model.AgentRemoved,
)
_INTERESTING = frozenset((*_WORDS, *_OF_AGENTS))
