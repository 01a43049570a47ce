"""What routing has stored or sent once, it and its consumers go on reading.

`events/` holds an envelope of every event type, as it went to the bus (tests/wire/test_sent_events.py);
`journal_format_1.json` every event of the journal in the bytes of format 1. They never change. A new type
needs a new fixture; a change that breaks one of these tests breaks consumers, or a journal on a disk.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from crm import convert as crm_convert
from crm import inbound as crm_inbound
from routing import codec, model
from tickets import convert as tickets_convert

HERE = Path(__file__).parent
EVENTS = {path.stem: path for path in sorted((HERE / "events").glob("*.json"))}
T0 = 1_772_000_000_000


def stored(name: str) -> Event:
    return Event.from_json(EVENTS[name].read_bytes())


def test_values_of_a_stored_end_of_a_call() -> None:
    message = stored("CallEnded").message(events_pb2.CallEnded)
    assert (message.call.call_id, message.call.version.attempt, message.call.version.move) == (
        "pbx:7f3a",
        2,
        3,
    )
    assert (message.wait.ToMilliseconds(), message.talk.ToMilliseconds()) == (7_500, 60_000)
    assert message.connect_time.ToMilliseconds() == T0 + 3_500


@pytest.mark.parametrize("name", [kind.DESCRIPTOR.name for kind in crm_inbound.CALLS])
def test_crm_reads_stored_calls(name: str) -> None:
    words: dict[str, Any] = {
        "CallQueued": crm_convert.call_queued,
        "CallConnected": crm_convert.call_connected,
        "CallEnded": crm_convert.call_ended,
        "CallWrappedUp": crm_convert.call_wrapped_up,
    }
    fact = words[name](stored(name).message(getattr(events_pb2, name)))
    assert fact is not None
    assert fact.source_id == "pbx:7f3a"
    assert fact.values["number"] == "+8613800138000"


def test_tickets_reads_a_stored_wish_for_a_ticket() -> None:
    facts = tickets_convert.call_facts(stored("CallWrappedUp").message(events_pb2.CallWrappedUp))
    assert facts is not None
    assert (facts.call_id, facts.number, facts.agent) == ("pbx:7f3a", "+8613800138000", "agents/amy")
    assert (facts.request.kind, facts.request.subject) == ("complaint", "漫游账单")


# --- the journal ---

FACTS = model.CallFacts(
    call_id="pbx:7f3a",
    queue="service",
    channel="chat",
    caller_number="+8613800138000",
    skills=(("english", 2),),
    priority=3,
    home_region="shanghai",
    language="zh-CN",
    attributes=(("menu", "2"),),
)
QUEUE = model.QueueConfig(
    id="service",
    skills=(("chinese", 1),),
    service_level_span_ms=1,
    short_abandon_span_ms=2,
    strategy=model.Strategy.BEST_PROFICIENCY,
    weight=3,
    priority_credit_span_ms=4,
    ring_span_ms=5,
    wrap_up_span_ms=6,
    length_max=7,
    wait_span_max_ms=8,
    overflow_span_ms=9,
    refuse_without_agents=True,
    reject_delay_span_ms=10,
    missed_offers_max=11,
)
AGENT = model.AgentConfig(
    id="amy", skills=(("chinese", 5),), capacity=(("chat", 3), ("voice", 1)), priority=2, address="sip:amy"
)
SAID = model.Disposition(
    code="billing",
    resolved=True,
    contact_reason="billing/roaming",
    notes="谢谢",
    ticket=model.TicketWish(
        kind="complaint", subject="漫游账单", priority="high", category="roaming", description="…"
    ),
    follow_up_ms=T0 + 86_400_000,
    wants_to_leave=True,
)
OFFER: dict[str, Any] = {"call_id": "pbx:7f3a", "offer_id": "beijing.1.7", "agent": "amy"}
JOURNAL: list[model.Event] = [
    model.ShardOpened(router="beijing-1", leaderless_span_ms=1_500),
    model.TimingConfigured(
        timing=model.Timing(
            confirm_span_ms=1,
            grace_span_ms=2,
            reattach_span_ms=3,
            agent_grace_span_ms=4,
            move_span_ms=5,
            memory_span_ms=6,
        )
    ),
    model.QueueConfigured(queue=QUEUE),
    model.QueueRemoved(queue="old"),
    model.AgentConfigured(agent=AGENT),
    model.AgentRemoved(agent="ben"),
    model.DrainingSet(draining=True),
    model.CallQueued(
        facts=FACTS,
        attempt=2,
        move=3,
        front="beijing-1",
        queued_ms=T0,
        effective_ms=T0 - 90_000,
        waited_span_ms=4_000,
        refuse_ms=T0 + 600_000,
    ),
    model.CallAttached(call_id="pbx:7f3a", attempt=2, move=3, front="beijing-1"),
    model.CallDetached(call_id="pbx:7f3a", until_ms=T0 + 5_000),
    model.CallOverflowing(call_id="pbx:7f3a", until_ms=T0 + 5_000),
    model.CallResumed(call_id="pbx:7f3a"),
    model.CallReprioritized(call_id="pbx:7f3a", priority=-5, effective_ms=T0 + 150_000),
    model.CallOffered(**OFFER, until_ms=T0 + 15_000),
    model.OfferAccepted(**OFFER, until_ms=T0 + 9_000),
    model.OfferEnded(**OFFER, outcome=model.OfferOutcome.UNCONFIRMED, rest_until_ms=T0 + 20_000, missed=2),
    model.CallConnected(**OFFER),
    model.CallEnded(
        call_id="pbx:7f3a",
        outcome=model.CallOutcome.INTERRUPTED,
        reason="AGENT_LOST",
        wrap_up_until_ms=T0 + 30_000,
        recording_uri="rec:1",
    ),
    model.RecordingNamed(call_id="pbx:7f3a", recording_uri="rec:1"),
    model.CallWrappedUp(call_id="pbx:7f3a", agent="amy", disposition=SAID),
    model.CallsForgotten(call_ids=("pbx:7f3a", "pbx:7f3b")),
    model.SessionOpened(
        agent="amy",
        session=2**53,
        command=7,
        front="beijing-1",
        presence=model.Presence.PAUSED,
        pause_reason="lunch",
    ),
    model.SessionDetached(agent="amy", until_ms=T0 + 5_000),
    model.SessionClosed(agent="amy"),
    model.PresenceSet(agent="amy", command=8, presence=model.Presence.AVAILABLE, pause_reason=""),
    model.AgentRested(agent="amy"),
    model.CallRelaxed(call_id="pbx:7f3a", step=2, relax_ms=T0 + 40_000),
    model.PreferenceEnded(call_id="pbx:7f3a"),
    model.CallTransferred(
        facts=FACTS,
        agent="amy",
        wrap_up_until_ms=T0 + 30_000,
        queued_ms=T0,
        effective_ms=T0 - 90_000,
        refuse_ms=T0 + 600_000,
        step=1,
        relax_ms=T0 + 20_000,
        preferred="ben",
        preferred_until_ms=T0 + 10_000,
    ),
    model.CallbackRequested(
        call_id="pbx:7f3a", number="+8613800138000", not_before_ms=T0 + 1, expire_ms=T0 + 2
    ),
    model.CallbackDue(call_id="pbx:7f3a"),
    model.CallMonitored(call_id="pbx:7f3a", mode=model.MonitorMode.WHISPER, address="sip:boss"),
    model.AgentDraining(agent="amy", draining=True, remove=True),
    model.ActRecorded(
        actor="partners/desk",
        act="LOG_OUT_AGENT",
        subject="agents/amy",
        reason="end of shift",
        details=(("interrupt", "true"),),
    ),
    model.LeadListSet(routers=("beijing-1:7120", "beijing-2:7120", "shanghai-1:7120")),
    model.DeadlinesMoved(span_ms=4_000),
]
FORMAT_1: dict[str, str] = json.loads((HERE / "journal_format_1.json").read_text())


def test_every_event_of_the_journal_has_its_fixture() -> None:
    known = {cls.__name__ for cls in typing.get_args(model.Event)}
    assert {type(event).__name__ for event in JOURNAL} == known == set(FORMAT_1)


@pytest.mark.parametrize("event", JOURNAL, ids=lambda event: type(event).__name__)
def test_a_stored_event_of_the_journal_is_read_as_it_was(event: model.Event) -> None:
    body = bytes.fromhex(FORMAT_1[type(event).__name__])
    assert codec.decode_events(body, T0) == [(T0 + 250, event)]


def test_stored_outcomes_and_states_have_kept_their_names() -> None:
    assert {each.value for each in model.CallOutcome} >= {
        *("completed", "abandoned", "moved", "refused", "interrupted"),
    }
    assert {each.value for each in model.OfferOutcome} >= {
        *("confirmed", "declined", "expired", "cancelled", "unconfirmed", "agent_lost"),
    }
    assert {each.value for each in model.Presence} >= {"offline", "available", "paused"}
