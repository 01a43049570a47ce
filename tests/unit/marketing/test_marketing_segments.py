"""Segments that follow events, call lists filled by campaigns, senders that are slow or down."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.marketing.marketing_examples import NOW

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import campaigns_pb2, outbound_pb2
from callmesh.marketing.v1 import events_pb2 as own
from callmesh.routing.v1 import events_pb2 as routing
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from marketing import senders
from marketing.call_lists import CallListSender, contact_id
from marketing.campaign_answers import take_result
from marketing.campaign_engine import StepChannel
from marketing.campaigns import Campaigns, campaign_problems, segment_problems
from marketing.handlers import Facts
from marketing.holiday import holidays_of
from marketing.inbound import learn
from marketing.kinds import CONTACT_LISTS, CONTACTS, FORBIDDEN, SEGMENTS
from marketing.memory_store import MemoryStore
from marketing.model import Profile
from marketing.segments import Segments
from marketing.senders import Message, SenderConfig, Senders, SendFailed, SmtpSender, WebhookSender
from marketing.shelf import Row


class People:
    """Members and answers in memory."""

    def __init__(self) -> None:
        self.members: set[tuple[str, str]] = set()
        self.answers: list[tuple[str, str, str, str]] = []

    def segments_of(self, customers: Sequence[str]) -> list[str]:
        return sorted({segment for segment, customer in self.members if customer in customers})

    def join(self, segment: str, customer: str, at: datetime) -> bool:
        new = (segment, customer) not in self.members
        self.members.add((segment, customer))
        return new

    def leave(self, segment: str, customer: str) -> bool:
        known = (segment, customer) in self.members
        self.members.discard((segment, customer))
        return known

    def answer(self, campaign: str, customer: str, phase: str, response: str) -> dict[str, Any] | None:
        if customer == "stranger":
            return None
        self.answers.append((campaign, customer, phase, response))
        return {}

    def mark_answered(self, campaign: str, phase: str, customer: str, response: str) -> None:
        assert self.answers[-1] == (campaign, customer, phase, response)


def told(message: Any, source: str = "crm") -> Event:
    return Event.of(message, source=source, subject="customers/c1", time=NOW)


def segment(store: MemoryStore, id: str, rule: str, *kinds: Any) -> None:
    names = [kind.DESCRIPTOR.full_name for kind in kinds]
    content = {"resource": {"display_name": id, "rule": rule, "trigger_event_types": names}}
    store.shelves.insert(SEGMENTS, Row(id=id, content=content, keys={"triggers": names}), NOW)


def test_customers_join_and_leave_as_events_tell_of_them() -> None:
    store, people = MemoryStore(), People()
    store.save_profile(Profile(customer="c1", tier="gold", numbers=("+8613800138000",), crm_version=1))
    segment(store, "leaving", 'wants_to_leave and tier == "gold"', crm.LeaveIntentFlagged)
    segment(store, "callers", "", routing.CallWrappedUp)
    segments = Segments(store.shelves, store, people)

    def hear(wants: bool) -> int:
        event = told(crm.LeaveIntentFlagged(customer="customers/c1", wants_to_leave=wants))
        learn(Facts(store), event)
        return segments.heard(event)

    assert [hear(wants) for wants in (True, True, False, False)] == [1, 0, 1, 0]
    assert not people.members
    call = routing.CallWrappedUp(call=routing.CallRef(call_id="k1", caller_number="+8613800138000"))
    assert segments.heard(told(call, "routing")) == 1
    assert people.members == {("callers", "c1")}
    # Nobody knows the caller, nobody listens for the event, nobody knows the event.
    call.call.caller_number = "+8613800138009"
    assert segments.heard(told(call, "routing")) == 0
    assert segments.heard(told(crm.CustomerUpdated(), "crm")) == 0
    assert segments.heard(told(crm.CustomersMerged(), "crm")) == 0


def test_who_was_merged_is_in_segments_as_the_survivor() -> None:
    store, people = MemoryStore(), People()
    store.save_profile(Profile(customer="c1", crm_version=1))
    store.save_profile(Profile(customer="c2", crm_version=1))
    segment(store, "leaving", "wants_to_leave", crm.LeaveIntentFlagged)
    segments = Segments(store.shelves, store, people)

    def hear(message: Any) -> int:
        learn(Facts(store), told(message))
        return segments.heard(told(message))

    assert hear(crm.LeaveIntentFlagged(customer="customers/c2", wants_to_leave=True)) == 1
    survivor = crm.CustomerSnapshot(customer="customers/c1", version=2)
    merged = crm.CustomersMerged(survivor=survivor, absorbed=["customers/c2"])
    assert [hear(merged), hear(merged)] == [2, 0]
    assert people.members == {("leaving", "c1")}
    back = crm.CustomerSnapshot(customer="customers/c2", version=3)
    survivor.version = 3
    unmerged = crm.CustomersUnmerged(survivor=survivor, restored=[back])
    assert [hear(unmerged), hear(unmerged)] == [2, 0]
    assert people.members == {("leaving", "c2")}


def test_customers_join_by_what_crm_sees() -> None:
    store, people = MemoryStore(), People()
    store.save_profile(Profile(customer="c1", crm_version=1))
    segment(store, "risky", "churn_risk >= 0.75", crm.ChurnRiskChanged)
    segment(store, "ending", 'care("CONTRACT_EXPIRES")', crm.CareTaskRaised, crm.CareTaskClosed)
    segments = Segments(store.shelves, store, people)

    def hear(message: Any) -> int:
        event = told(message, "crm")
        learn(Facts(store), event)
        return segments.heard(event)

    raised = crm.CareTaskRaised(care_task="careTasks/1", kind="CONTRACT_EXPIRES")
    raised.customer.customer = "customers/c1"
    closed = crm.CareTaskClosed(care_task="careTasks/1", customer="customers/c1", state="DONE")
    risk = crm.ChurnRiskChanged(customer="customers/c1", score=0.9)
    assert [hear(message) for message in (raised, raised, risk)] == [1, 0, 1]
    assert people.members == {("ending", "c1"), ("risky", "c1")}
    risk.score = 0.1
    assert [hear(message) for message in (closed, risk, raised)] == [1, 1, 0]
    assert not people.members, "what is over is over, in whichever order it is told"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("score", crm.ChurnRiskChanged(customer="customers/c1", score=math.nan)),
        ("score", crm.ChurnRiskChanged(customer="customers/c1", score=1.5)),
        ("customer", crm.ChurnRiskChanged(score=0.5)),
        ("care_task", crm.CareTaskClosed(customer="customers/c1")),
        ("customer", crm.CareTaskRaised(care_task="careTasks/1", kind="CHURN")),
        ("kind", crm.CareTaskRaised(care_task="careTasks/1")),
    ],
)
def test_what_crm_cannot_mean_is_refused(field: str, message: Any) -> None:
    store = MemoryStore()
    with pytest.raises(InvalidArgument) as refused:
        learn(Facts(store), told(message, "crm"))
    assert [violation.field for violation in refused.value.details.field_violations] == [field]
    assert store.profile("c1") is None


def test_a_segment_names_events_that_there_are() -> None:
    good = campaigns_pb2.Segment(display_name="s", trigger_event_types=["callmesh.crm.v1.CustomerUpdated"])
    assert not segment_problems(good)
    good.trigger_event_types.append("callmesh.crm.v1.Sunrise")
    assert [field for field, _ in segment_problems(good)] == ["trigger_event_types[1]"]


def test_a_segments_audience_is_bounded_as_an_offers() -> None:
    wide = campaigns_pb2.Segment(display_name="s", audience={"value_classes": ["Z"], "tiers": ["x" * 999]})
    wide.audience.any_tags.extend(str(number) for number in range(33))
    assert [field for field, _ in segment_problems(wide)] == [
        "audience.tiers",
        "audience.any_tags",
        "audience.value_classes",
    ]


def test_the_words_of_a_message_are_judged_where_they_stand() -> None:
    variant = campaigns_pb2.Variant(variant_id="v", bodies=[{"language": "zh", "text": "{{offer}}"}])
    variant.subjects.add(language="Chinese", text="x")
    variant.bodies.add(language="en", text="x", audience="a" * 65)
    step = campaigns_pb2.Step(step_id="s", channel=campaigns_pb2.STEP_CHANNEL_EMAIL, variants=[variant])
    phase = campaigns_pb2.Phase(phase_id="p", kind=campaigns_pb2.PHASE_KIND_INVITE, steps=[step])
    phase.period.start_time.FromDatetime(NOW)
    phase.period.end_time.FromDatetime(NOW + timedelta(days=1))
    campaign = campaigns_pb2.Campaign(display_name="c", segment="segments/s", phases=[phase])
    at = "phases[0].steps[0].variants[0]."
    assert [field.removeprefix(at) for field, _ in campaign_problems(campaign, "CNY")] == [
        "subjects[0].language",
        "bodies[0].text",
        "bodies[1].audience",
    ]


def message(customer: str, number: str, offer: str = "") -> Message:
    origin = {"campaign": "spring", "phase": "invite", "step": "call", "variant": "a"}
    return Message(
        id=f"spring/invite/call/{customer}",
        profile=Profile(customer=customer, numbers=(number,) if number else (), display_name="Li"),
        channel=StepChannel.OUTBOUND_CALL,
        subject="",
        body="Tell them about fibre",
        origin=origin | ({"offer": offer} if offer else {}),
    )


def result(customer: str, number: str, what: str) -> Any:
    name = f"contactLists/spring.invite.call/contacts/{contact_id('spring.invite.call', number)}"
    return own.OutboundResultRecorded(contact=name, customer=f"customers/{customer}", result=what)


def test_a_step_puts_people_on_its_list_once_and_hears_what_came_of_it() -> None:
    store, people = MemoryStore(), People()
    sender = CallListSender(store.shelves, FakeClock(NOW), "callout")
    campaigns = Campaigns(store.shelves, store, FakeClock(NOW), "CNY")
    for _ in range(2):
        sender.send(message("c1", "+8613800138000", "offers/fibre"))
        sender.send(message("c2", "+8613800138001", "offers/fibre"))
    (made,) = store.shelves.find(CONTACT_LISTS, {}, 9)
    assert (made.id, made.keys["state"]) == (
        "spring.invite.call",
        outbound_pb2.CONTACT_LIST_STATE_RUNNING,
    )
    assert made.content["resource"]["campaign"] == "campaigns/spring"
    assert made.content["resource"]["queue"] == "queues/callout"
    contacts = store.shelves.find(CONTACTS, {"list": made.id}, 9)
    assert sorted(row.content["resource"]["customer"] for row in contacts) == ["customers/c1", "customers/c2"]
    assert contacts[0].content["resource"]["note"] == "Tell them about fibre"
    assert take_result(campaigns, people, result("c1", "+8613800138000", "SUCCESS"))
    assert take_result(campaigns, people, result("c2", "+8613800138001", "DECLINED"))
    assert not take_result(campaigns, people, result("c2", "+8613800138001", "NO_ANSWER"))
    assert not take_result(campaigns, people, result("stranger", "+8613800138001", "SUCCESS"))
    assert people.answers == [("spring", "c1", "invite", "BOUGHT"), ("spring", "c2", "invite", "DECLINED")]
    elsewhere = own.OutboundResultRecorded(
        contact="contactLists/own/contacts/x", customer="customers/c1", result="SUCCESS"
    )
    assert not take_result(campaigns, people, elsewhere)


def test_a_forbidden_number_fails_for_good() -> None:
    store = MemoryStore()
    store.shelves.insert(FORBIDDEN, Row(id="8613800138000", content={}), NOW)
    sender = CallListSender(store.shelves, FakeClock(NOW))
    assert sender.reaches(message("c1", "+8613800138000").profile)
    for number in ("+8613800138000", ""):
        with pytest.raises(SendFailed) as failed:
            sender.send(message("c1", number))
        assert failed.value.final
    assert Senders((), {StepChannel.OUTBOUND_CALL: sender}).of(StepChannel.OUTBOUND_CALL) is not None


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_sender_that_is_slow_or_away_fails_for_now(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for port in (silent, closed):
        hook = SenderConfig(
            id="w", channel=StepChannel.SMS, adapter="webhook", target=f"http://127.0.0.1:{port}/"
        )
        mail = SenderConfig(
            id="m",
            channel=StepChannel.EMAIL,
            adapter="smtp",
            target=f"127.0.0.1:{port}",
            sender="a@example.net",
            address="b@example.net",
        )
        for sender in (WebhookSender(hook), SmtpSender(mail)):
            with pytest.raises(SendFailed) as failed:
                sender.send(message("c1", "+8613800138000"))
            assert not failed.value.final


def test_holidays_are_those_of_the_country() -> None:
    holiday = holidays_of("CN")
    assert holiday(datetime(2025, 10, 1, 9, tzinfo=UTC))
    assert not holiday(datetime(2025, 6, 3, 9, tzinfo=UTC) + timedelta(days=1))
    with pytest.raises(ValueError, match="no calendar"):
        holidays_of("Atlantis")
