"""What the enterprise hears of a journal: scripted ones, then whatever the engine makes of any commands."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.routing.routing_journals import Journal as Shard

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import agent_pb2, call_pb2, events_pb2
from chassis.bus import Event
from chassis.clock import from_ms
from routing import codec, convert, model
from routing.engine import step
from routing.journal import Block
from routing.publish import OPTIONAL, SLOTS, Projection, UnreadableBlock
from routing.state import ShardState, evolve
from routing.testing import block_of

T0 = 1_772_000_000_000
FACTS = model.CallFacts(
    call_id="c1", queue="support", caller_number="+8613800138000", home_region="shanghai", priority=2
)
QUEUE = model.QueueConfig(id="support", skills=(("chinese", 1),))
AMY = model.AgentConfig(id="amy", skills=(("chinese", 3),), address="sip:amy")


class Journal:
    """Writes blocks as a leader would."""

    def __init__(self, shard: str = "beijing") -> None:
        self.shard = shard
        self.blocks: list[Block] = []
        self.epoch = 0

    def block(self, *events: tuple[int, model.Event], now_ms: int | None = None) -> Block:
        sequence = len(self.blocks) + 1
        if events and isinstance(events[0][1], model.ShardOpened):
            self.epoch = sequence
        base_ms = now_ms if now_ms is not None else events[0][0] if events else T0
        block = block_of(events, sequence, base_ms, shard=self.shard, epoch=self.epoch)
        self.blocks.append(block)
        return block

    def configured(self) -> Journal:
        """Opened, with one queue and one agent logged in."""
        self.block((T0, model.ShardOpened(router="beijing-1", leaderless_span_ms=0)))
        self.block(
            (T0, model.QueueConfigured(queue=QUEUE)),
            (T0, model.AgentConfigured(agent=AMY)),
            (
                T0,
                model.SessionOpened(
                    agent="amy",
                    session=1,
                    command=1,
                    front="beijing-1",
                    presence=model.Presence.AVAILABLE,
                    pause_reason="",
                ),
            ),
        )
        return self

    def published(self, after: int = 0) -> list[Event]:
        projection = Projection(self.shard)
        told: list[Event] = []
        for block in self.blocks:
            if block.sequence <= after:
                projection.skip(block)
            else:
                told += projection.apply(block)
        return told


def queued(facts: model.CallFacts = FACTS, **more: Any) -> model.CallQueued:
    values: dict[str, Any] = {
        "facts": facts,
        "attempt": 1,
        "move": 1,
        "front": "beijing-1",
        "queued_ms": T0,
        "effective_ms": T0,
        "waited_span_ms": 0,
    }
    return model.CallQueued(**{**values, **more})


OFFERED = model.CallOffered(call_id="c1", offer_id="beijing.1.1", agent="amy", until_ms=T0 + 15_000)
ACCEPTED = model.OfferAccepted(call_id="c1", offer_id="beijing.1.1", agent="amy", until_ms=T0 + 9_000)
CONNECTED = model.CallConnected(call_id="c1", offer_id="beijing.1.1", agent="amy")


def names(events: list[Event]) -> list[str]:
    return [event.type.rpartition(".")[2] for event in events]


def seconds(span: Duration) -> float:
    return span.seconds + span.nanos / 1e9


def the(kind: Any, events: list[Event]) -> Any:
    """The only event of a kind, as its message."""
    found = [event for event in events if event.type == kind.DESCRIPTOR.full_name]
    assert len(found) == 1, names(events)
    return found[0].message(kind)


def whole_call() -> Journal:
    journal = Journal().configured()
    journal.block((T0 + 1_000, queued(queued_ms=T0 - 4_000, waited_span_ms=5_000)), (T0 + 1_000, OFFERED))
    journal.block((T0 + 3_000, ACCEPTED))
    journal.block()
    journal.block((T0 + 3_500, CONNECTED))
    ended = model.CallEnded(
        call_id="c1", outcome=model.CallOutcome.COMPLETED, wrap_up_until_ms=T0 + 93_500, reason=""
    )
    journal.block((T0 + 63_500, ended))
    said = model.Disposition(
        code="billing",
        resolved=True,
        contact_reason="billing/roaming",
        notes="谢谢",
        ticket=model.TicketWish(kind="complaint", subject="bill", priority="high", category="a"),
        follow_up_ms=T0 + 86_400_000,
        wants_to_leave=True,
    )
    journal.block((T0 + 71_000, model.CallWrappedUp(call_id="c1", agent="amy", disposition=said)))
    journal.block((T0 + 900_000, model.CallsForgotten(call_ids=("c1",))))
    return journal


def test_a_whole_call_is_told_in_order() -> None:
    assert names(whole_call().published()) == [
        *("LeaderChanged", "AgentStateChanged", "CallQueued", "CallOffered", "AgentStateChanged"),
        *("CallConnected", "AgentStateChanged", "CallEnded", "AgentStateChanged"),
        *("CallWrappedUp", "AgentStateChanged"),
    ]


def test_ids_name_shard_block_and_place() -> None:
    ids = [event.id for event in whole_call().published()]
    assert ids[:5] == ["beijing:1:0", "beijing:2:9", "beijing:3:0", "beijing:3:4", "beijing:3:5"]
    assert len(set(ids)) == len(ids)
    assert all(int(id.rpartition(":")[2]) % SLOTS in (0, 1) for id in ids)


def test_every_event_of_a_call_names_it_whole() -> None:
    events = whole_call().published()
    expected = events_pb2.CallRef(
        call_id="c1",
        version=common_pb2.CallVersion(attempt=1, move=1),
        shard="beijing",
        epoch=1,
        sequence=7,
        caller_number="+8613800138000",
        channel=common_pb2.CHANNEL_VOICE,
        queue="queues/support",
        region="regions/beijing",
        home_region="regions/shanghai",
        agent="agents/amy",
    )
    assert the(events_pb2.CallEnded, events).call == expected
    for kind, sequence, agent in [
        (events_pb2.CallQueued, 3, ""),
        (events_pb2.CallOffered, 3, "agents/amy"),
        (events_pb2.CallConnected, 6, "agents/amy"),
        (events_pb2.CallWrappedUp, 8, "agents/amy"),
    ]:
        copy = events_pb2.CallRef()
        copy.CopyFrom(expected)
        copy.sequence, copy.agent = sequence, agent
        assert the(kind, events).call == copy
    assert {event.subject for event in events if "call" in event.data} == {"calls/c1"}
    assert {event.source for event in events} == {"routing"}


def test_times_and_durations_of_a_call() -> None:
    events = whole_call().published()
    waiting = the(events_pb2.CallQueued, events)
    assert (waiting.priority, seconds(waiting.waited_before)) == (2, 5.0)
    connected = the(events_pb2.CallConnected, events)
    assert (seconds(connected.wait), connected.offer_id) == (7.5, "beijing.1.1")
    ended = the(events_pb2.CallEnded, events)
    assert (seconds(ended.wait), seconds(ended.talk)) == (7.5, 60.0)
    assert ended.queue_time.ToMilliseconds() == T0 - 4_000
    assert ended.connect_time.ToMilliseconds() == T0 + 3_500
    assert ended.event_time.ToMilliseconds() == T0 + 63_500
    wrapped = the(events_pb2.CallWrappedUp, events)
    assert seconds(wrapped.wrap_up) == 7.5
    by_type = {event.type.rpartition(".")[2]: event.time for event in events}
    assert by_type["CallEnded"] == from_ms(T0 + 63_500)


def test_what_the_agent_said_is_told_whole() -> None:
    said = the(events_pb2.CallWrappedUp, whole_call().published()).disposition
    assert said == call_pb2.Disposition(
        code="billing",
        resolved=True,
        contact_reason="billing/roaming",
        notes="谢谢",
        ticket=call_pb2.TicketRequest(kind="complaint", subject="bill", priority="high", category="a"),
        follow_up_time=convert.timestamp(T0 + 86_400_000),
        wants_to_leave=True,
    )


def test_after_call_work_of_who_handed_on_is_told_with_the_queue_that_was_served() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    shard.do(model.TransferCall(call_id="c1", queue="sales"))
    shard.do(model.FinishWrapUp(agent="ann", session=1, call_id="c1"))
    shard.block()
    projection = Projection("beijing")
    events = [event for block in shard.blocks.of("beijing") for event in projection.apply(block)]
    assert the(events_pb2.CallTransferred, events).call.queue == "queues/sales"
    assert the(events_pb2.CallWrappedUp, events).call.queue == "queues/service"


def test_a_wrap_up_that_ran_out_says_nothing() -> None:
    journal = Journal().configured()
    journal.block((T0, queued()), (T0, OFFERED), (T0, ACCEPTED), (T0 + 1, CONNECTED))
    ended = model.CallEnded(call_id="c1", outcome=model.CallOutcome.COMPLETED, wrap_up_until_ms=T0 + 30_002)
    journal.block((T0 + 2, ended))
    journal.block((T0 + 30_002, model.CallWrappedUp(call_id="c1", agent="amy", disposition=None)))
    assert not the(events_pb2.CallWrappedUp, journal.published()).HasField("disposition")


@pytest.mark.parametrize(
    ("outcome", "reason", "number"),
    [
        (model.CallOutcome.ABANDONED, "", call_pb2.CALL_OUTCOME_ABANDONED),
        (model.CallOutcome.ABANDONED, "STREAM_LOST", call_pb2.CALL_OUTCOME_ABANDONED),
        (model.CallOutcome.MOVED, "OVERFLOW", call_pb2.CALL_OUTCOME_MOVED),
        (model.CallOutcome.REFUSED, "WAIT_TOO_LONG", call_pb2.CALL_OUTCOME_REFUSED),
    ],
)
def test_a_call_that_never_connected(outcome: model.CallOutcome, reason: str, number: int) -> None:
    journal = Journal().configured()
    journal.block((T0, queued()), (T0, OFFERED))
    gone = model.OfferEnded(
        call_id="c1", offer_id="beijing.1.1", agent="amy", outcome=model.OfferOutcome.CANCELLED
    )
    ended = model.CallEnded(call_id="c1", outcome=outcome, reason=reason)
    journal.block((T0 + 8_250, gone), (T0 + 8_250, ended))
    events = journal.published()
    offer = the(events_pb2.OfferEnded, events)
    assert (offer.call.agent, offer.outcome) == ("agents/amy", call_pb2.OFFER_OUTCOME_CANCELLED)
    message = the(events_pb2.CallEnded, events)
    assert (message.outcome, message.reason, message.call.agent) == (number, reason, "")
    assert seconds(message.wait) == 8.25
    assert not message.HasField("talk") and not message.HasField("connect_time")


@pytest.mark.parametrize("connected", [False, True])
def test_the_end_of_a_call_back_that_was_not_made_says_whom_it_was_promised_to(connected: bool) -> None:
    journal = Journal().configured()
    promised = model.CallbackRequested(
        call_id="c1", number="+8613800138000", not_before_ms=0, expire_ms=T0 + 86_400_000
    )
    journal.block((T0, queued()), (T0, promised))
    if connected:
        journal.block((T0 + 1, OFFERED), (T0 + 1, ACCEPTED), (T0 + 1, CONNECTED))
    reason = "CALLBACK_QUEUE_CLOSED"
    ended = model.CallEnded(call_id="c1", outcome=model.CallOutcome.REFUSED, reason=reason)
    journal.block((T0 + 2, ended))
    message = the(events_pb2.CallEnded, journal.published())
    assert (message.reason, message.callback_number) == (reason, "" if connected else "+8613800138000")


def test_a_clock_that_a_token_overtook_gives_no_negative_wait() -> None:
    journal = Journal().configured()
    journal.block((T0, queued(queued_ms=T0 + 60_000)))
    journal.block((T0 + 1, model.CallEnded(call_id="c1", outcome=model.CallOutcome.ABANDONED)))
    assert seconds(the(events_pb2.CallEnded, journal.published()).wait) == 0.0


@pytest.mark.parametrize(
    "event",
    [
        model.CallAttached(call_id="c1", attempt=1, move=1, front="b"),
        model.CallDetached(call_id="c1", until_ms=T0 + 5_000),
        model.CallOverflowing(call_id="c1", until_ms=T0 + 5_000),
        model.CallResumed(call_id="c1"),
        model.CallReprioritized(call_id="c1", priority=7, effective_ms=T0),
        model.TimingConfigured(timing=model.Timing()),
        model.DrainingSet(draining=True),
        model.QueueConfigured(queue=replace(QUEUE, weight=3)),
        model.AgentConfigured(agent=replace(AMY, priority=3)),
        model.AgentConfigured(agent=replace(AMY, id="ben")),
        model.SessionDetached(agent="amy", until_ms=T0 + 5_000),
        model.AgentRested(agent="amy"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_interests_nobody_is_not_told(event: model.Event) -> None:
    journal = Journal().configured()
    journal.block((T0, queued()))
    before = len(journal.published())
    journal.block((T0 + 1, event))
    assert len(journal.published()) == before


def test_a_version_raised_while_waiting_is_the_version_of_the_end() -> None:
    journal = Journal().configured()
    journal.block((T0, queued()))
    journal.block((T0 + 1, model.CallAttached(call_id="c1", attempt=2, move=3, front="b")))
    journal.block((T0 + 2, model.CallEnded(call_id="c1", outcome=model.CallOutcome.ABANDONED)))
    version = the(events_pb2.CallEnded, journal.published()).call.version
    assert (version.attempt, version.move) == (2, 3)


def agent_states(events: list[Event]) -> list[tuple[int, str]]:
    found = [e for e in events if e.type == "callmesh.routing.v1.AgentStateChanged"]
    messages = [event.message(events_pb2.AgentStateChanged) for event in found]
    assert all((m.agent, m.region, m.shard) == ("agents/amy", "regions/beijing", "beijing") for m in messages)
    assert all(event.subject == "agents/amy" for event in found)
    return [(m.state, m.pause_reason) for m in messages]


def test_an_agents_states_are_told_when_they_change() -> None:
    journal = Journal().configured()

    def presence(command: int, presence: model.Presence, reason: str = "") -> model.PresenceSet:
        return model.PresenceSet(agent="amy", command=command, presence=presence, pause_reason=reason)

    journal.block((T0 + 1, presence(2, model.Presence.PAUSED, "lunch")))
    journal.block((T0 + 2, presence(3, model.Presence.PAUSED, "lunch")))
    journal.block((T0 + 3, presence(4, model.Presence.PAUSED, "training")))
    journal.block((T0 + 4, presence(5, model.Presence.AVAILABLE)))
    journal.block((T0 + 5, model.SessionDetached(agent="amy", until_ms=T0 + 10)))
    journal.block((T0 + 10, model.SessionClosed(agent="amy")))
    journal.block((T0 + 11, model.AgentRemoved(agent="amy")))
    assert agent_states(journal.published()) == [
        (agent_pb2.AGENT_STATE_AVAILABLE, ""),
        (agent_pb2.AGENT_STATE_PAUSED, "lunch"),
        (agent_pb2.AGENT_STATE_PAUSED, "training"),
        (agent_pb2.AGENT_STATE_AVAILABLE, ""),
        (agent_pb2.AGENT_STATE_OFFLINE, ""),
    ]


def test_a_removed_agent_that_was_there_is_told_offline() -> None:
    journal = Journal().configured()
    journal.block((T0 + 1, model.AgentRemoved(agent="amy")))
    assert agent_states(journal.published())[-1] == (agent_pb2.AGENT_STATE_OFFLINE, "")


def test_a_new_leader_is_told_with_its_epoch() -> None:
    journal = Journal().configured()
    journal.block((T0 + 9_000, model.ShardOpened(router="chengdu-1", leaderless_span_ms=3_000)))
    journal.block((T0 + 9_001, queued()))
    events = journal.published()
    last = [e for e in events if e.type.endswith("LeaderChanged")][-1]
    message = last.message(events_pb2.LeaderChanged)
    assert (message.shard, message.epoch, message.router) == ("beijing", 3, "chengdu-1")
    assert (last.subject, message.event_time.ToMilliseconds()) == ("regions/beijing", T0 + 9_000)
    assert the(events_pb2.CallQueued, events).call.epoch == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: replace(block, format=codec.FORMAT + 1),
        lambda block: replace(block, body=b"\xc1"),
        lambda block: replace(
            block,
            body=codec.encode_events(
                [(T0, model.CallEnded(call_id="nobody", outcome=model.CallOutcome.ABANDONED))], T0
            ),
        ),
    ],
    ids=["newer format", "damaged", "at odds with the state"],
)
@pytest.mark.parametrize("way", ["apply", "skip"])
def test_a_block_that_cannot_be_applied_is_refused(spoil: Any, way: str) -> None:
    journal = Journal().configured()
    projection = Projection("beijing")
    for block in journal.blocks:
        projection.skip(block)
    with pytest.raises(UnreadableBlock):
        getattr(projection, way)(spoil(journal.block((T0, queued()))))


def test_the_projections_indexes_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routing.publish.TIDY_BLOCKS", 50)
    journal = Journal().configured()
    for n in range(400):
        at = T0 + n * 1_000
        call_id = f"c{n}"
        gone = model.CallEnded(call_id=call_id, outcome=model.CallOutcome.ABANDONED)
        journal.block(
            (
                at,
                queued(
                    msgspec.structs.replace(FACTS, call_id=call_id),
                    queued_ms=at,
                    effective_ms=at,
                    refuse_ms=at + 99,
                ),
            ),
            (at, model.CallDetached(call_id=call_id, until_ms=at + 5_000)),
            (at + 1, gone),
            (at + 2, model.CallsForgotten(call_ids=(call_id,))),
        )
    projection = Projection("beijing")
    for block in journal.blocks:
        projection.skip(block)
    state = projection.state
    assert not state.calls and not state.hot_calls and not state.hot_agents
    assert len(state.deadlines) <= 3 * 50
    assert sum(len(line.waiting) for line in state.lines.values()) <= 2 * 50


def test_optional_types_are_types_of_routing() -> None:
    assert {kind.DESCRIPTOR.file.package for kind in OPTIONAL} == {"callmesh.routing.v1"}


# --- whatever the engine does ---

CALLS = st.sampled_from(["c1", "c2", "c3", "c4"])
AGENTS = st.sampled_from(["amy", "ben"])
VERSION = {"attempt": st.integers(1, 3), "move": st.integers(1, 2)}
OFFER = st.integers(1, 12).map(lambda n: f"beijing.1.{n}")
SESSION = {"agent": AGENTS, "session": st.integers(1, 3)}

COMMANDS = st.one_of(
    st.builds(
        model.PlaceCall,
        facts=CALLS.map(lambda call_id: msgspec.structs.replace(FACTS, call_id=call_id)),
        front=st.just("f"),
        waited_span_ms=st.sampled_from([0, 3_000]),
        agent_lost=st.booleans(),
        **VERSION,
    ),
    st.builds(model.DetachCall, call_id=CALLS, **VERSION),
    st.builds(model.OverflowCall, call_id=CALLS, **VERSION),
    st.builds(model.WithdrawCall, call_id=CALLS, **VERSION),
    st.builds(model.HangUp, call_id=CALLS, attempt=st.integers(0, 3)),
    st.builds(model.EndCall, call_id=CALLS),
    st.builds(model.ConfirmCall, call_id=CALLS, offer_id=OFFER, **VERSION),
    st.builds(model.Reprioritize, call_id=CALLS, priority=st.integers(-5, 5)),
    st.builds(
        model.OpenSession,
        command=st.integers(1, 3),
        front=st.just("f"),
        calls_held=st.just(()),
        **SESSION,
    ),
    st.builds(model.DetachSession, **SESSION),
    st.builds(model.CloseSession, **SESSION),
    st.builds(
        model.SetPresence,
        command=st.integers(1, 9),
        presence=st.sampled_from([model.Presence.AVAILABLE, model.Presence.PAUSED]),
        pause_reason=st.sampled_from(["", "lunch"]),
        **SESSION,
    ),
    st.builds(model.AcceptOffer, offer_id=OFFER, **SESSION),
    st.builds(model.DeclineOffer, offer_id=OFFER, **SESSION),
    st.builds(model.FinishWrapUp, call_id=CALLS, disposition=st.none(), **SESSION),
    st.builds(model.DetachFront, front=st.just("f")),
    st.builds(model.RemoveAgent, agent=AGENTS),
    st.builds(model.ConfigureAgent, agent=AGENTS.map(lambda id: replace(AMY, id=id))),
    st.just(model.Tick()),
)
#: A call that ended longer ago than this may be placed anew under its old version.
FORGOTTEN = timedelta(milliseconds=model.Timing().memory_span_ms)
#: A command that fits the state is drawn often: without it few scripts get beyond an offer.
FITTING = st.sampled_from(["accept", "confirm", "end", "wrap"])
STEPS = st.tuples(st.sampled_from([0, 1, 800, 20_000]), COMMANDS | FITTING)


def fitting(state: ShardState, wish: str) -> model.Command:
    """The command that the first call that can will take; a Tick for none."""
    for call_id, entry in sorted(state.calls.items()):
        agent = state.agents.get(entry.agent)
        if agent is None:
            continue
        who: dict[str, Any] = {"agent": entry.agent, "session": agent.session}
        if wish == "accept" and entry.state is model.CallState.OFFERED:
            return model.AcceptOffer(offer_id=entry.offer_id, **who)
        if wish == "confirm" and entry.state is model.CallState.ACCEPTED:
            return model.ConfirmCall(
                call_id=call_id, offer_id=entry.offer_id, attempt=entry.attempt, move=entry.move
            )
        if wish == "end" and entry.state is model.CallState.CONNECTED:
            return model.EndCall(call_id=call_id)
        if wish == "wrap" and entry.wrap_up_until_ms:
            return model.FinishWrapUp(call_id=call_id, disposition=model.Disposition(code="done"), **who)
    return model.Tick()


def write(steps: list[tuple[int, model.Command | str]]) -> tuple[Journal, ShardState]:
    """A journal as a leader writes it, a block a command, with a change of leader in the middle."""
    journal, state = Journal(), ShardState("beijing")
    now_ms = T0

    def open_shard() -> None:
        opened = model.ShardOpened(router="r", leaderless_span_ms=1_000 if journal.blocks else 0)
        block = journal.block((now_ms, opened))
        state.epoch = block.epoch
        evolve(state, opened, now_ms)

    open_shard()
    setup: list[model.Command | str] = [model.ConfigureQueue(queue=QUEUE)]
    setup += [model.ConfigureAgent(agent=replace(AMY, id=id)) for id in ("amy", "ben")]
    setup += [model.OpenSession(agent=id, session=1, command=1, front="f") for id in ("amy", "ben")]
    script = [(0, command) for command in setup] + steps
    for number, (span_ms, command) in enumerate(script):
        now_ms += span_ms
        if number == len(setup) + len(steps) // 2:
            open_shard()
        wanted = fitting(state, command) if isinstance(command, str) else command
        events, _ = step(state, wanted, now_ms)
        journal.block(*((now_ms, event) for event in events), now_ms=now_ms)
    return journal, state


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=60), data=st.data())
def test_whatever_happens_is_told_once_and_the_same_again(
    steps: list[tuple[int, model.Command | str]], data: st.DataObject
) -> None:
    journal, state = write(steps)
    events = journal.published()
    ids = [event.id for event in events]
    assert len(set(ids)) == len(ids)
    # From any cursor, the same events in the same bytes.
    after = data.draw(st.integers(0, len(journal.blocks)))
    rest = [e for e in events if int(e.id.split(":")[1]) > after]
    assert [e.to_json() for e in journal.published(after)] == [e.to_json() for e in rest]
    # Every event is one that a consumer would take.
    assert [Event.from_json(e.to_json()) for e in events] == events
    times = [event.time for event in events]
    assert times == sorted(times)
    check_calls(events, state)
    check_agents(events, state)


def version_of(event: Event) -> tuple[int, int]:
    version = event.data["call"]["version"]
    return version["attempt"], version["move"]


def check_calls(events: list[Event], state: ShardState) -> None:
    """Each entry that was queued ends once, if it ended; the words of a call are in order."""
    live: dict[str, str] = {}
    ended: dict[str, tuple[int, int]] = {}
    ended_at: dict[str, datetime] = {}
    for event in events:
        kind = event.type.rpartition(".")[2]
        if "call" not in event.data:
            continue
        call_id = event.data["call"]["callId"]
        if kind == "CallQueued":
            live[call_id] = "waiting"
            if call_id in ended and version_of(event) <= ended.pop(call_id):
                assert event.time >= ended_at[call_id] + FORGOTTEN, "a version ends once"
        elif kind == "CallOffered":
            assert live[call_id] == "waiting"
            live[call_id] = "offered"
        elif kind == "OfferEnded":
            assert live[call_id] == "offered"
            live[call_id] = "waiting"
        elif kind == "CallConnected":
            assert live[call_id] == "offered"
            live[call_id] = "connected"
        elif kind == "CallEnded":
            assert live[call_id] in ("waiting", "connected")
            message = event.message(events_pb2.CallEnded)
            assert message.HasField("talk") == (live[call_id] == "connected")
            assert bool(message.call.agent) == (live[call_id] == "connected")
            ended[call_id], ended_at[call_id] = version_of(event), event.time
            live[call_id] = "ended"
        elif kind == "CallWrappedUp":
            assert live[call_id] == "ended"
    for call_id, entry in state.calls.items():
        over = entry.state is model.CallState.ENDED
        assert (live[call_id] == "ended") == over
        assert ended.get(call_id) == ((entry.attempt, entry.move) if over else None)


def check_agents(events: list[Event], state: ShardState) -> None:
    """The last told state of each agent is the state that it has."""
    told: dict[str, int] = {}
    for event in events:
        if event.type.endswith("AgentStateChanged"):
            message = event.message(events_pb2.AgentStateChanged)
            told[message.agent.removeprefix("agents/")] = message.state
    for agent_id, agent in state.agents.items():
        assert told.get(agent_id, agent_pb2.AGENT_STATE_OFFLINE) == convert.AGENT_STATES[agent.state]
