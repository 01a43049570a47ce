"""Half-hour figures by queue and agent, counted from a shard's journal. Pure.

1. A figure belongs to the half-hour in which it happened: an answer to that of the connection, a
   conversation to that of its end. Half-hours begin at whole ones of UTC, so they fit every zone whose
   offset is a multiple of thirty minutes.
2. Counting runs the leader's own `evolve`, and looks at each event just before it is applied: what it ends is
   still there to be seen.
3. **Exactly once in effect.** A row carries the sequence of the last block that changed it, and what a block
   adds to a row depends on the journal alone. So a row that is counted again from an earlier block takes
   nothing twice, whatever was written when the counting broke off.
4. An agent's time in a state is added when the state changes and when a half-hour ends. Its row carries the
   instant up to which it is counted, so a second look at the same span adds nothing either.
5. Somebody may listen to the figures of queues as they are counted (a `Meter`): each block once, by its
   sequence. What an answered call was told when it began to wait is remembered for that alone.
6. A call that goes on in another region is offered here and there, and `moved` here: sums over regions
   subtract it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from routing import codec, model
from routing.journal import Block
from routing.model import AgentState, CallOutcome, CallState, OfferOutcome
from routing.publish import Projection, UnreadableBlock, agent_of
from routing.state import CallEntry, evolve
from routing.views import calls_ahead, expected_wait_span_ms

#: Length of a half-hour.
SLOT_MS = 1_800_000
#: Upper bounds of the classes of waiting times, milliseconds; the last class has none.
WAIT_BOUNDS_MS = (5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000)
#: Half-hours that one silence of the journal may span; of a longer one the agents' time is not counted.
SLOTS_ACROSS_MAX = 96

#: Kinds of rows; the third is counted by routers (blocked.py), and told with the first.
QUEUE, AGENT, BLOCKED = "queue", "agent", "blocked"
#: (kind, queue or agent id, beginning of the half-hour in milliseconds).
RowKey = tuple[str, str, int]


@dataclass(slots=True)
class Row:
    """One half-hour of a queue or an agent."""

    kind: str
    #: Queue or agent id.
    subject: str
    #: Beginning of the half-hour.
    start_ms: int
    #: Figures by name; one that is missing is 0.
    figures: dict[str, int] = field(default_factory=dict)
    #: Last block that changed it.
    counted_to: int = 0
    #: Of agents: up to here the time in states is counted; 0 for not at all.
    timed_to_ms: int = 0
    #: Writes of the stored row; 0 for one that is not stored yet.
    version: int = 0
    #: Changed since it was read or written.
    dirty: bool = False

    @property
    def key(self) -> RowKey:
        return self.kind, self.subject, self.start_ms


class Rows:
    """Rows in memory, read from the store a half-hour at a time."""

    def __init__(self, load: Callable[[int], Iterable[Row]]) -> None:
        """`load(start_ms)` gives the stored rows of one half-hour."""
        self._load = load
        self._slots: dict[int, dict[tuple[str, str], Row]] = {}

    def at(self, kind: str, subject: str, start_ms: int) -> Row:
        """A row, a new one if there was none."""
        rows = self._slots.get(start_ms)
        if rows is None:
            rows = self._slots[start_ms] = {(row.kind, row.subject): row for row in self._load(start_ms)}
        row = rows.get((kind, subject))
        if row is None:
            row = rows[(kind, subject)] = Row(kind, subject, start_ms)
        return row

    def changed(self) -> list[Row]:
        """Rows to be written, by their keys."""
        return sorted(
            (row for rows in self._slots.values() for row in rows.values() if row.dirty), key=lambda r: r.key
        )

    def forget_before(self, start_ms: int) -> None:
        """Half-hours that are over need no memory; what is not written stays."""
        for slot in [each for each in self._slots if each < start_ms]:
            if not any(row.dirty for row in self._slots[slot].values()):
                del self._slots[slot]


def slot_of(ms: int) -> int:
    """Beginning of the half-hour that an instant lies in."""
    return ms - ms % SLOT_MS


def wait_class(wait_ms: int) -> int:
    """Which class a wait is in, from 0."""
    return sum(wait_ms >= bound for bound in WAIT_BOUNDS_MS)


class Meter(Protocol):
    """Who listens to the counting."""

    def take(self, shard: str, sequence: int) -> bool:
        """Whether this block's figures are wanted: those of a block that was taken before are not."""

    def add(self, shard: str, queue: str, amounts: Mapping[str, int]) -> None:
        """Figures of a queue; names as in `Row.figures`, and those of the promise."""


class Counter(Projection):
    """A shard as its journal tells it, counted into rows."""

    def __init__(self, shard: str, rows: Rows, meter: Meter | None = None) -> None:
        super().__init__(shard)
        self._rows = rows
        self._meter = meter
        self._metered = False
        #: Expected wait that calls were told when they began to wait, by id, milliseconds.
        self._promised: dict[str, int] = {}
        self._sequence = 0
        self._touched: dict[RowKey, Row] = {}
        #: Half-hour that is being counted; None before the first block.
        self._slot: int | None = None

    def count(self, block: Block) -> None:
        """Applies the next block and counts it. Raises UnreadableBlock; the rows are then of no further
        use.
        """
        if block.format > codec.FORMAT:
            raise UnreadableBlock(f"{block.key} has format {block.format}, this code reads {codec.FORMAT}")
        state = self.state
        self._sequence = block.sequence
        self._metered = self._meter is not None and self._meter.take(self.state.shard, block.sequence)
        try:
            if block.opening:
                state.epoch = block.epoch
            for at_ms, event in codec.decode_events(block.body, block.now_ms):
                self._apply_one(event, max(state.now_ms, at_ms))
            now_ms = max(state.now_ms, block.now_ms)
            self._cross(now_ms)
        except Exception as error:
            raise UnreadableBlock(f"{block.key}: {type(error).__name__}: {error}") from error
        state.now_ms = now_ms
        for row in self._touched.values():
            row.counted_to, row.dirty = block.sequence, True
        self._touched.clear()
        self._tidy()

    def _apply_one(self, event: model.Event, now_ms: int) -> None:
        self._cross(now_ms)
        agent_id = agent_of(self.state, event)
        before = self._standing(agent_id)
        counted = _COUNTS.get(type(event))
        if counted is not None:
            counted(self, event, now_ms)
        evolve(self.state, event, now_ms)
        if self._metered and isinstance(event, model.CallQueued | model.CallTransferred):
            self._promise(event.facts.call_id)
        if self._standing(agent_id) is not before:
            self._time(agent_id, before, now_ms)

    def _standing(self, agent_id: str) -> AgentState:
        agent = self.state.agents.get(agent_id)
        return agent.state if agent is not None else AgentState.OFFLINE

    # --- time ---

    def _cross(self, now_ms: int) -> None:
        """Ends the half-hours that are over by `now_ms`."""
        if self._slot is None:
            self._slot = slot_of(self.state.now_ms or now_ms)
        if now_ms - self._slot >= SLOTS_ACROSS_MAX * SLOT_MS:
            self._slot = slot_of(now_ms)
        while now_ms >= self._slot + SLOT_MS:
            end_ms = self._slot + SLOT_MS
            for agent_id, agent in self.state.agents.items():
                if agent.state is not AgentState.OFFLINE:
                    self._add_time(agent_id, agent.state, self._slot, end_ms)
            self._slot = end_ms

    def _time(self, agent_id: str, state: AgentState, now_ms: int) -> None:
        """An agent was in a state until now: counted in the half-hour that now lies in; those before it
        are.
        """
        self._add_time(agent_id, state, slot_of(now_ms), now_ms)

    def _add_time(self, agent_id: str, state: AgentState, slot_ms: int, until_ms: int) -> None:
        row = self._rows.at(AGENT, agent_id, slot_ms)
        since_ms = max(slot_ms, row.timed_to_ms)
        if until_ms <= row.timed_to_ms:
            return
        if state is not AgentState.OFFLINE and until_ms > since_ms:
            name = f"time_{state.value}_ms"
            row.figures[name] = row.figures.get(name, 0) + until_ms - since_ms
        row.timed_to_ms, row.dirty = until_ms, True

    # --- counts ---

    def _add(self, kind: str, subject: str, now_ms: int, **amounts: int) -> None:
        """Adds to the figures of the half-hour that `now_ms` lies in, unless the row has this block
        already.
        """
        if self._metered and kind == QUEUE and self._meter is not None:
            self._meter.add(self.state.shard, subject, amounts)
        row = self._rows.at(kind, subject, slot_of(now_ms))
        if row.counted_to >= self._sequence:
            return
        self._touched[row.key] = row
        for name, amount in amounts.items():
            row.figures[name] = row.figures.get(name, 0) + amount

    def _queue_wait(self, entry: CallEntry, now_ms: int, outcome: str) -> int:
        """Counts a wait's class and length; returns the length."""
        wait_ms = max(0, entry.waited_span_ms(now_ms))
        queue = entry.facts.queue
        self._add(QUEUE, queue, now_ms, **{f"{outcome}_class_{wait_class(wait_ms)}": 1})
        row = self._rows.at(QUEUE, queue, slot_of(now_ms))
        if row.counted_to < self._sequence:
            row.figures["wait_max_ms"] = max(wait_ms, row.figures.get("wait_max_ms", 0))
        return wait_ms

    def _promise(self, call_id: str) -> None:
        """Remembers the expected wait that a call was told which has just begun to wait, if there is one."""
        entry = self.state.calls[call_id]
        if entry.state is not CallState.WAITING or call_id in self._promised:
            return
        tally = self.state.tallies.get(entry.facts.queue)
        span_ms = expected_wait_span_ms(entry.line, tally, calls_ahead(self.state, entry))
        if span_ms > 0:
            self._promised[call_id] = span_ms

    def _keep_promise(self, entry: CallEntry, wait_ms: int) -> None:
        told_ms = self._promised.pop(entry.facts.call_id, None)
        if told_ms is not None and self._metered and self._meter is not None:
            figures = {"promised": 1, "promised_ms": told_ms, "promised_real_ms": wait_ms}
            figures["promised_error_ms"] = abs(told_ms - wait_ms)
            self._meter.add(self.state.shard, entry.facts.queue, figures)

    def queued(self, event: model.CallQueued, now_ms: int) -> None:
        old = self.state.calls.get(event.facts.call_id)
        goes_on = old is not None and old.state is not CallState.ENDED
        if old is None or not goes_on or old.facts.queue != event.facts.queue:
            self._add(QUEUE, event.facts.queue, now_ms, offered=1)
            if old is not None and goes_on:
                self._add(QUEUE, old.facts.queue, now_ms, moved=1)

    def transferred(self, event: model.CallTransferred, now_ms: int) -> None:
        entry = self.state.calls[event.facts.call_id]
        self._conversation(entry, now_ms)
        self._add(QUEUE, entry.facts.queue, now_ms, transferred=1)
        self._add(AGENT, event.agent, now_ms, transferred=1)
        self._add(QUEUE, event.facts.queue, now_ms, offered=1)

    def _conversation(self, entry: CallEntry, now_ms: int) -> None:
        talk_ms = max(0, now_ms - entry.connected_ms)
        self._add(QUEUE, entry.facts.queue, now_ms, handled=1, talk_ms=talk_ms)
        if entry.agent:
            self._add(AGENT, entry.agent, now_ms, handled=1, talk_ms=talk_ms)

    def offered(self, event: model.CallOffered, now_ms: int) -> None:
        self._add(AGENT, event.agent, now_ms, offered=1)

    def offer_ended(self, event: model.OfferEnded, now_ms: int) -> None:
        name = {OfferOutcome.EXPIRED: "missed", OfferOutcome.DECLINED: "declined"}.get(event.outcome)
        if name is not None:
            self._add(QUEUE, self.state.calls[event.call_id].facts.queue, now_ms, **{name: 1})
            self._add(AGENT, event.agent, now_ms, **{name: 1})

    def connected(self, event: model.CallConnected, now_ms: int) -> None:
        entry = self.state.calls[event.call_id]
        wait_ms = self._queue_wait(entry, now_ms, "answered")
        in_target = wait_ms <= entry.line.queue.service_level_span_ms
        self._keep_promise(entry, wait_ms)
        figures = {"answered": 1, "answered_in_target": int(in_target), "wait_ms": wait_ms}
        self._add(QUEUE, entry.facts.queue, now_ms, **figures)
        self._add(AGENT, event.agent, now_ms, **figures)

    def ended(self, event: model.CallEnded, now_ms: int) -> None:
        entry = self.state.calls[event.call_id]
        queue = entry.facts.queue
        self._promised.pop(event.call_id, None)
        if entry.state is CallState.CONNECTED:
            self._conversation(entry, now_ms)
        if event.outcome is CallOutcome.ABANDONED:
            wait_ms = self._queue_wait(entry, now_ms, "abandoned")
            short = wait_ms <= entry.line.queue.short_abandon_span_ms
            name = "short_abandoned" if short else "abandoned"
            self._add(QUEUE, queue, now_ms, **{name: 1, "abandoned_wait_ms": wait_ms})
        elif event.outcome in _OUTCOMES:
            self._add(QUEUE, queue, now_ms, **{event.outcome.value: 1})
            if event.outcome is CallOutcome.INTERRUPTED and entry.agent:
                self._add(AGENT, entry.agent, now_ms, interrupted=1)

    def wrapped_up(self, event: model.CallWrappedUp, now_ms: int) -> None:
        agent, entry = self.state.agents.get(event.agent), self.state.calls.get(event.call_id)
        began_ms = agent.wraps.get(event.call_id, (0, 0))[0] if agent is not None else 0
        if agent is not None and began_ms:
            span_ms = max(0, now_ms - began_ms)
            self._add(AGENT, event.agent, now_ms, wrap_up_ms=span_ms)
            if entry is not None:
                queue = agent.wrap_queues.get(event.call_id, entry.facts.queue)
                self._add(QUEUE, queue, now_ms, wrap_up_ms=span_ms)

    def callback_requested(self, event: model.CallbackRequested, now_ms: int) -> None:
        entry = self.state.calls[event.call_id]
        if not entry.callback_number:
            # Else another number or time of the one that was promised before.
            self._add(QUEUE, entry.facts.queue, now_ms, callbacks=1)


#: Ends that are counted under their own names.
_OUTCOMES = (CallOutcome.MOVED, CallOutcome.REFUSED, CallOutcome.INTERRUPTED)
_COUNTS: dict[type, Callable[[Counter, Any, int], None]] = {
    model.CallQueued: Counter.queued,
    model.CallTransferred: Counter.transferred,
    model.CallOffered: Counter.offered,
    model.OfferEnded: Counter.offer_ended,
    model.CallConnected: Counter.connected,
    model.CallEnded: Counter.ended,
    model.CallWrappedUp: Counter.wrapped_up,
    model.CallbackRequested: Counter.callback_requested,
}
