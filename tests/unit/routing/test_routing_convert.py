"""Proto <-> model: every field that a client can get wrong is named, and every state has its word."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.routing.v1 import agent_pb2, call_pb2
from chassis.errors import InvalidArgument
from routing import convert, model
from routing.handlers import Handlers
from routing.streams import Desk, Moved, Present, Update
from routing.tokens import PlaceTokens


def call(**fields: Any) -> call_pb2.CallRequest:
    return call_pb2.CallRequest(**{"call_id": "c1", "queue": "queues/service", **fields})


def checked(request: call_pb2.CallRequest, **more: Any) -> model.CallFacts:
    queue = convert.check_call(request)
    return convert.call_facts(request, queue=queue, number="+861064000000", home_region="beijing", **more)


def skills(count: int) -> list[dict[str, Any]]:
    return [{"skill": f"s{n}", "level_min": 1} for n in range(count)]


BAD_CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("no id", {"call_id": ""}, "call.call_id"),
    ("a long id", {"call_id": "x" * 129}, "call.call_id"),
    ("an id with a slash", {"call_id": "a/b"}, "call.call_id"),
    ("an id with a line break", {"call_id": "a\n"}, "call.call_id"),
    ("no queue", {"queue": ""}, "call.queue"),
    ("a bare queue", {"queue": "service"}, "call.queue"),
    ("another collection", {"queue": "agents/a"}, "call.queue"),
    ("too urgent", {"priority": 101}, "call.priority"),
    ("not urgent enough", {"priority": -101}, "call.priority"),
    ("a negative attempt", {"attempt": -1}, "call.attempt"),
    ("too many attempts", {"attempt": 1_001}, "call.attempt"),
    ("an unknown channel", {"channel": 99}, "call.channel"),
    ("an unknown reason", {"reopen_reason": 99}, "call.reopen_reason"),
    ("a long language", {"language": "z" * 36}, "call.language"),
    ("a NUL in the language", {"language": "z\x00"}, "call.language"),
    ("a long number", {"caller_number": "1" * 65}, "call.caller_number"),
    ("too many skills", {"skills": skills(9)}, "call.skills"),
    ("a skill without id", {"skills": [{"skill": ""}]}, "call.skills[0].skill"),
    ("a skill with a long id", {"skills": [*skills(1), {"skill": "x" * 64}]}, "call.skills[1].skill"),
    ("a level too high", {"skills": [{"skill": "s", "level_min": 6}]}, "call.skills[0].level_min"),
    ("a level too low", {"skills": [{"skill": "s", "level_min": -1}]}, "call.skills[0].level_min"),
    ("too many attributes", {"attributes": {f"k{n}": "v" for n in range(17)}}, "call.attributes"),
    ("a long key", {"attributes": {"k" * 65: "v"}}, "call.attributes"),
    ("an empty key", {"attributes": {"": "v"}}, "call.attributes"),
    ("a NUL in a value", {"attributes": {"k": "\x00"}}, "call.attributes[k]"),
    ("too large", {"attributes": {"k": "x" * 20_000}}, "call"),
    ("no such agent name", {"preferred_agent": "ann"}, "call.preferred_agent"),
    (
        "a negative wait for the agent",
        {"preferred_agent_timeout": Duration(seconds=-1)},
        "call.preferred_agent_timeout",
    ),
]


@pytest.mark.parametrize(("fields", "field"), [b[1:] for b in BAD_CALLS], ids=[b[0] for b in BAD_CALLS])
def test_a_bad_call_names_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        checked(call(**fields))
    assert [violation.field for violation in caught.value.details.field_violations] == [field]
    assert len(caught.value.message) <= 300


def test_a_call_at_every_limit_is_taken() -> None:
    facts = checked(
        call(
            call_id="x" * 128,
            attempt=1_000,
            priority=-100,
            language="z" * 35,
            skills=skills(8),
            attributes={f"{n:064}": "v" for n in range(16)},
            preferred_agent="agents/ann",
        )
    )
    assert len(facts.skills) == 8 and facts.channel == "voice" and len(facts.attributes) == 16


def test_skills_are_sorted_and_the_highest_level_of_a_repeated_one_counts() -> None:
    wanted = [
        {"skill": "b"},
        {"skill": "a", "level_min": 2},
        {"skill": "b", "level_min": 4},
        {"skill": "b", "level_min": 3},
    ]
    assert checked(call(skills=wanted)).skills == (("a", 2), ("b", 4))


@pytest.mark.parametrize(
    ("own", "tier", "result"), [(90, 20, 100), (-100, 5, -95), (0, 0, 0), (-90, -50, -100)]
)
def test_points_are_added_within_the_limits(own: int, tier: int, result: int) -> None:
    facts = checked(call(priority=own), extra=(("TIER", tier),))
    assert (facts.priority, facts.priority_parts) == (result, (("TIER", tier),))


SPANS: list[tuple[Duration, int | None]] = [
    (Duration(), 5_000),
    (Duration(seconds=3), 3_000),
    (Duration(nanos=2_000_000), 2),
    (Duration(seconds=60), 60_000),
    (Duration(seconds=60, nanos=1_000_000), None),
    (Duration(seconds=-1), None),
    (Duration(nanos=-1), None),
    (Duration(nanos=100), None),
    (Duration(seconds=1, nanos=-1_000_000), None),
    (Duration(seconds=1, nanos=2_000_000_000), None),
    (Duration(seconds=2**62), None),
]


@pytest.mark.parametrize(("value", "result"), SPANS)
def test_a_span_is_checked(value: Duration, result: int | None) -> None:
    if result is not None:
        assert convert.span_ms("max_wait", value, maximum_ms=60_000, default_ms=5_000) == result
        return
    with pytest.raises(InvalidArgument) as caught:
        convert.span_ms("max_wait", value, maximum_ms=60_000, default_ms=5_000)
    assert caught.value.details.field_violations[0].field == "max_wait"


# --- desktops

DESK = Desk(
    agent="ann",
    session=7,
    command=1,
    region="beijing",
    presence=model.Presence.AVAILABLE,
    pause_reason="",
    calls_held=(),
)


def command(number: int = 2, **kind: Any) -> agent_pb2.AgentCommand:
    return agent_pb2.AgentCommand(command=number, **kind)


WHO: dict[str, Any] = {"agent": "ann", "session": 7}
COMMANDS: list[tuple[dict[str, Any], model.Command | None]] = [
    (
        {"set_state": {"state": agent_pb2.AGENT_STATE_AVAILABLE, "pause_reason": "lunch"}},
        model.SetPresence(**WHO, command=2, presence=model.Presence.AVAILABLE, pause_reason=""),
    ),
    (
        {"set_state": {"state": agent_pb2.AGENT_STATE_PAUSED, "pause_reason": "lunch"}},
        model.SetPresence(**WHO, command=2, presence=model.Presence.PAUSED, pause_reason="lunch"),
    ),
    ({"accept": {"offer_id": "beijing.1.2"}}, model.AcceptOffer(**WHO, offer_id="beijing.1.2")),
    (
        {"decline": {"offer_id": "o", "reason": "busy"}},
        model.DeclineOffer(**WHO, offer_id="o", reason="busy"),
    ),
    ({"end_conversation": {"call_id": "c1"}}, model.EndCall(call_id="c1", agent="ann")),
    ({"wrap_up": {"call_id": "c1"}}, model.FinishWrapUp(**WHO, call_id="c1", disposition=None)),
    ({"close": {}}, None),
]


@pytest.mark.parametrize(("kind", "wanted"), COMMANDS)
def test_a_desktops_command(kind: dict[str, Any], wanted: model.Command | None) -> None:
    assert convert.agent_command(command(**kind), DESK) == wanted


def wrap_up(**fields: Any) -> dict[str, Any]:
    return {"wrap_up": {"call_id": "c1", "disposition": {"code": "done", **fields}}}


def ticket(**fields: Any) -> dict[str, Any]:
    return wrap_up(ticket={"kind": "complaint", "subject": "bill", **fields})


BAD_COMMANDS: list[tuple[dict[str, Any], str]] = [
    ({}, "kind"),
    ({"open": {}}, "open"),
    ({"set_state": {"state": agent_pb2.AGENT_STATE_ON_CALL}}, "set_state.state"),
    ({"set_state": {"state": 77}}, "set_state.state"),
    ({"set_state": {"pause_reason": "x" * 65}}, "set_state.pause_reason"),
    ({"accept": {}}, "accept.offer_id"),
    ({"accept": {"offer_id": "x" * 201}}, "accept.offer_id"),
    ({"decline": {}}, "decline.offer_id"),
    ({"decline": {"offer_id": "o", "reason": "x" * 65}}, "decline.reason"),
    ({"end_conversation": {}}, "end_conversation.call_id"),
    ({"wrap_up": {}}, "wrap_up.call_id"),
    (wrap_up(code=""), "wrap_up.disposition.code"),
    (wrap_up(contact_reason="x" * 201), "wrap_up.disposition.contact_reason"),
    (wrap_up(notes="x" * 4_001), "wrap_up.disposition.notes"),
    (wrap_up(follow_up_time=Timestamp(seconds=2**60)), "wrap_up.disposition.follow_up_time"),
    (ticket(kind=""), "wrap_up.disposition.ticket.kind"),
    (ticket(subject=" "), "wrap_up.disposition.ticket.subject"),
    (ticket(priority="now"), "wrap_up.disposition.ticket.priority"),
    (ticket(category="x" * 101), "wrap_up.disposition.ticket.category"),
    (ticket(description="x" * 4_001), "wrap_up.disposition.ticket.description"),
]


@pytest.mark.parametrize(("kind", "field"), BAD_COMMANDS)
def test_a_bad_command_names_the_field(kind: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.agent_command(command(**kind), DESK)
    assert [violation.field for violation in caught.value.details.field_violations] == [field]


@pytest.mark.parametrize("number", [0, -1])
def test_commands_are_numbered_from_one(number: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert.agent_command(command(number, accept={"offer_id": "o"}), DESK)
    assert caught.value.details.field_violations[0].field == "command"


BAD_OPENINGS: list[tuple[dict[str, Any], int, str]] = [
    ({"agent": "ann"}, 1, "open.agent"),
    ({"session": 0}, 1, "open.session"),
    ({"session": -1}, 1, "open.session"),
    ({}, 0, "command"),
    ({"state": agent_pb2.AGENT_STATE_OFFLINE}, 1, "open.state"),
    ({"pause_reason": "x" * 65}, 1, "open.pause_reason"),
    ({"calls_held": ["c1", ""]}, 1, "open.calls_held[1]"),
    ({"calls_held": [f"c{n}" for n in range(101)]}, 1, "open.calls_held"),
]


@pytest.mark.parametrize(("fields", "number", "field"), BAD_OPENINGS)
def test_a_bad_opening_names_the_field(fields: dict[str, Any], number: int, field: str) -> None:
    opening = command(number, open={"agent": "agents/ann", "session": 1, **fields})
    with pytest.raises(InvalidArgument) as caught:
        convert.desk_of(opening, "beijing")
    assert caught.value.details.field_violations[0].field == field


def test_an_opening() -> None:
    opening = {"agent": "agents/ann", "session": 3, "calls_held": ["c2", "c1", "c2"]}
    desk = convert.desk_of(command(5, open=opening), "beijing")
    assert (desk.agent, desk.session, desk.command, desk.region) == ("ann", 3, 5, "beijing")
    assert desk.calls_held == ("c1", "c2") and desk.presence is model.Presence.AVAILABLE


def test_a_disposition_survives_the_way_there_and_back() -> None:
    said = call_pb2.Disposition(
        code="sold",
        resolved=True,
        contact_reason="tariff",
        notes="n",
        ticket=call_pb2.TicketRequest(kind="complaint", subject="bill", priority="high", category="c"),
        follow_up_time=Timestamp(seconds=1_772_000_000, nanos=1_000_000),
        wants_to_leave=True,
    )
    found = convert.agent_command(
        agent_pb2.AgentCommand(command=1, wrap_up={"call_id": "c1", "disposition": said}), DESK
    )
    assert isinstance(found, model.FinishWrapUp) and found.disposition is not None
    assert found.disposition.follow_up_ms == 1_772_000_000_001
    assert convert.disposition_message(found.disposition) == said


# --- what goes out


def view(state: model.CallState, **more: Any) -> model.CallView:
    fields: dict[str, Any] = {
        "facts": model.CallFacts(call_id="c1", queue="service", home_region="beijing"),
        "attempt": 1,
        "move": 2,
        "state": state,
        "outcome": None,
        "reason": "",
        "queued_ms": 1_000,
        "effective_ms": 1_000,
        "connected_ms": 0,
        "ended_ms": 0,
        "agent": "",
        "agent_address": "",
        "offer_id": "",
        "offer_until_ms": 0,
        "detached": False,
        "position": 3,
        "expected_wait_span_ms": 1_500,
        "recording_uri": "",
        "wrap_up_until_ms": 0,
    }
    return model.CallView(**{**fields, **more})


def update(what: Any) -> Update:
    return Update(shard="beijing", epoch=4, sequence=5, now_ms=6_000, what=what)


RUNG: dict[str, Any] = {"agent": "ann", "offer_id": "o1", "agent_address": "sip:ann", "offer_until_ms": 9_000}
WAITING, OFFERED = model.CallState.WAITING, model.CallState.OFFERED
QUEUED = model.CallQueued(
    facts=model.CallFacts(call_id="c1", queue="service"),
    attempt=1,
    move=2,
    front="f",
    queued_ms=1,
    effective_ms=1,
    waited_span_ms=0,
)
ENDED = {"outcome": model.CallOutcome.ABANDONED}
TOLD: list[tuple[Any, model.CallView, str | None]] = [
    (None, view(WAITING), "queued"),
    (None, view(model.CallState.OVERFLOWING), "queued"),
    (None, view(OFFERED, **RUNG), "offered"),
    (None, view(model.CallState.ACCEPTED, **RUNG), "accepted"),
    (None, view(model.CallState.CONNECTED, **RUNG), "connected"),
    (None, view(model.CallState.ENDED, **ENDED), "ended"),
    (QUEUED, view(WAITING), "queued"),
    # The same command rings somebody at once: the view is ahead, the event comes first.
    (QUEUED, view(OFFERED, **RUNG), "queued"),
    (model.CallAttached(call_id="c1", attempt=1, move=2, front="f"), view(WAITING), "queued"),
    (
        model.CallAttached(call_id="c1", attempt=1, move=2, front="f"),
        view(model.CallState.ACCEPTED, **RUNG),
        "accepted",
    ),
    (
        model.CallOffered(call_id="c1", offer_id="o1", agent="ann", until_ms=9_000),
        view(OFFERED, **RUNG),
        "offered",
    ),
    (
        model.OfferAccepted(call_id="c1", offer_id="o1", agent="ann", until_ms=9_000),
        view(model.CallState.ACCEPTED, **RUNG),
        "accepted",
    ),
    (
        model.OfferEnded(call_id="c1", offer_id="o1", agent="ann", outcome=model.OfferOutcome.EXPIRED),
        view(OFFERED, **{**RUNG, "offer_id": "o2"}),
        "offer_ended",
    ),
    (
        model.CallConnected(call_id="c1", offer_id="o1", agent="ann"),
        view(model.CallState.CONNECTED, **RUNG),
        "connected",
    ),
    (
        model.CallEnded(call_id="c1", outcome=model.CallOutcome.ABANDONED),
        view(model.CallState.ENDED, **ENDED),
        "ended",
    ),
    (
        model.CallEnded(call_id="c1", outcome=model.CallOutcome.MOVED),
        view(model.CallState.ENDED, outcome=model.CallOutcome.MOVED),
        None,
    ),
    (model.CallDetached(call_id="c1", until_ms=1), view(WAITING), None),
    (model.PositionChanged(call_id="c1", position=1, expected_wait_span_ms=-1), view(WAITING), "queued"),
]


@pytest.mark.parametrize("durable", [True, False])
def test_a_place_told_from_memory_is_of_the_time_that_was_told(durable: bool) -> None:
    """This router has last read of the time 1,000 in the journal, which stands still in an outage."""
    rest: Any = None
    handlers = Handlers(
        front=rest,
        regions=rest,
        tokens=PlaceTokens(bytes(32), life_span_ms=60_000),
        profiles=rest,
        agents=rest,
        queues={},
        skills=(),
        shards=frozenset(),
        clock=rest,
        platform_now_ms=lambda: 1_000,
    )
    what = Present(call=view(WAITING))
    told = Update(shard="beijing", epoch=4, sequence=5, now_ms=6_000, what=what, durable=durable)
    (event,) = convert.caller_events(told, handlers._token)
    place = handlers._tokens.read(event.queued.place_token, "c1", 6_000)
    assert (place.made_ms, place.waited_span_ms) == ((1_000, 0) if durable else (6_000, 5_000))


@pytest.mark.parametrize(("event", "seen", "kind"), TOLD)
def test_what_a_caller_is_told(event: Any, seen: model.CallView, kind: str | None) -> None:
    what = Present(call=seen) if event is None else model.Fact(event=event, now_ms=6_000, call=seen)
    told = convert.caller_events(update(what), lambda v, from_: f"{v.facts.call_id}@{from_.shard}")
    assert [each.WhichOneof("event") for each in told] == ([kind] if kind else [])
    for each in told:
        assert (each.shard, each.epoch, each.sequence, each.durable) == ("beijing", 4, 5, True)
        assert (each.version.attempt, each.version.move) == (1, 2)
        if kind == "queued":
            assert each.queued.place_token == "c1@beijing" and each.queued.queue == "queues/service"
        if kind == "connected":
            assert each.connected.place_token == "c1@beijing"
        if kind in ("offered", "accepted"):
            told_offer = getattr(each, kind)
            assert (told_offer.offer_id, told_offer.agent) == ("o1", "agents/ann")
            assert told_offer.expire_time.ToMilliseconds() == 9_000
        if kind == "offer_ended":
            assert each.offer_ended.offer_id == "o1", "the event's offer, not the view's"


def test_a_position_overrides_the_views() -> None:
    event = model.PositionChanged(call_id="c1", position=7, expected_wait_span_ms=2_500)
    fact = model.Fact(event=event, now_ms=1, call=view(WAITING))
    (told,) = convert.caller_events(update(fact), lambda v, shard: "t")
    assert told.queued.position == 7 and told.queued.expected_wait.ToMilliseconds() == 2_500


def test_an_unknown_wait_is_not_told_as_none() -> None:
    (told,) = convert.caller_events(
        update(Present(call=view(WAITING, expected_wait_span_ms=-1))), lambda v, shard: "t"
    )
    assert not told.queued.HasField("expected_wait")


def test_a_move_is_told() -> None:
    (told,) = convert.caller_events(update(Moved(region="shanghai", reason="MOVED")), lambda v, s: "t")
    assert (told.moved.region, told.moved.reason) == ("regions/shanghai", "MOVED")


AGENT = model.AgentView(
    agent="ann",
    state=model.AgentState.ON_CALL,
    pause_reason="",
    session=7,
    command=2,
    calls=("c1",),
    offers=(),
    since_ms=5,
    capacity=(("voice", 1), ("chat", 3)),
)
DESK_TOLD: list[tuple[Any, str]] = [
    (model.CallOffered(call_id="c1", offer_id="o1", agent="ann", until_ms=9_000), "offer"),
    (
        model.OfferEnded(call_id="c1", offer_id="o1", agent="ann", outcome=model.OfferOutcome.CANCELLED),
        "offer_gone",
    ),
    (model.CallConnected(call_id="c1", offer_id="o1", agent="ann"), "connected"),
    (model.CallEnded(call_id="c1", outcome=model.CallOutcome.COMPLETED, wrap_up_until_ms=8_000), "ended"),
    (model.PresenceSet(agent="ann", command=2, presence=model.Presence.AVAILABLE, pause_reason=""), "status"),
    (model.SessionClosed(agent="ann"), "status"),
]


@pytest.mark.parametrize(("event", "kind"), DESK_TOLD)
def test_what_a_desktop_is_told(event: Any, kind: str) -> None:
    fact = model.Fact(event=event, now_ms=1, call=view(OFFERED, **RUNG), agent=AGENT)
    (told,) = convert.agent_events(update(fact))
    assert told.WhichOneof("event") == kind
    if kind == "status":
        assert told.status.load == 0.25 and dict(told.status.capacity) == {"voice": 1, "chat": 3}


def test_every_state_and_outcome_has_a_word() -> None:
    assert len(set(convert.CALL_STATES.values())) == len(model.CallState)
    assert len(set(convert.CALL_OUTCOMES.values())) == len(model.CallOutcome)
    assert len(set(convert.OFFER_OUTCOMES.values())) == len(model.OfferOutcome)
    assert len(set(convert.AGENT_STATES.values())) == len(model.AgentState)
    for numbers in (convert.CALL_STATES, convert.CALL_OUTCOMES, convert.OFFER_OUTCOMES, convert.AGENT_STATES):
        assert 0 not in numbers.values()


def test_times_are_utc_to_the_millisecond() -> None:
    assert convert.timestamp(0) is None
    stamp = convert.timestamp(1_772_000_000_123)
    assert stamp is not None and stamp.ToMilliseconds() == 1_772_000_000_123
    assert convert.moment(1_772_000_000_123).isoformat() == "2026-02-25T06:13:20.123000+00:00"
