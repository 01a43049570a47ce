"""Whose clock it is, when it is quiet, who is not addressed any more, and what campaigns hear of people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis.strategies import booleans, integers, sampled_from, tuples
from tests.unit.marketing.marketing_examples import NOW, offer

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import campaigns_pb2
from callmesh.marketing.v1 import events_pb2 as own
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from crm import convert as crm_convert
from crm import model as crm_model
from crm.consent import permission
from crm.model import Consent, Purpose
from marketing.campaign_answers import take_result, take_survey
from marketing.campaign_engine import (
    CONSENT,
    Courtesy,
    Held,
    Quiet,
    StepChannel,
    consents,
    held_back,
    own_quiet,
    quiet_until,
)
from marketing.campaign_runner import AGAIN, clock_name, is_quiet_until
from marketing.campaigns import Campaigns, campaign_problems, segment_problems
from marketing.convert import profile_from_snapshot
from marketing.engine import gate
from marketing.handlers import Facts
from marketing.inbound import learn
from marketing.kinds import CAMPAIGNS, CONTACT_LISTS, SEGMENTS
from marketing.memory_store import MemoryStore
from marketing.model import Channel, Complaint, Contact, NoOffer, Profile, QuietWindow
from marketing.rules import CustomerFacts, parse_rule
from marketing.shelf import Row

SHANGHAI = ZoneInfo("Asia/Shanghai")


def local(day: int, hour: int, minute: int = 0) -> datetime:
    """A time of June 2025 in Shanghai; the 2nd is a Monday."""
    return datetime(2025, 6, day, hour, minute, tzinfo=SHANGHAI).astimezone(UTC)


@pytest.mark.parametrize(
    ("at", "until"),
    [
        (local(2, 10), None),
        # Their own evening runs into the night of everybody.
        (local(2, 21), local(3, 8)),
        (local(2, 23), local(3, 8)),
        # Saturday from noon to Sunday noon, then noon's quiet hours.
        (local(7, 15), local(8, 14)),
        (local(8, 9), local(8, 14)),
        (local(9, 9), None),
    ],
)
def test_own_quiet_windows_join_those_of_the_policy(at: datetime, until: datetime | None) -> None:
    profile = Profile(
        customer="c1",
        quiet_windows=(
            QuietWindow(start_minute=20 * 60, end_minute=22 * 60, channels=frozenset({Channel.SMS})),
            QuietWindow(weekdays=frozenset({6}), start_minute=12 * 60 + 30, end_minute=12 * 60),
            # No step goes by chat: it must not mean "all channels".
            QuietWindow(start_minute=0, end_minute=1_440, channels=frozenset({Channel.CHAT})),
        ),
    )
    spans = (*Courtesy().quiet, *own_quiet(profile))
    assert quiet_until(spans, StepChannel.SMS, at, SHANGHAI) == until


@given(
    changes=sampled_from(
        [
            ("America/New_York", datetime(2025, 3, 9), datetime(2025, 11, 2)),
            ("Europe/Berlin", datetime(2025, 3, 30), datetime(2025, 10, 26)),
            # At midnight, and by half an hour.
            ("America/Havana", datetime(2025, 3, 9), datetime(2025, 11, 2)),
            ("Australia/Lord_Howe", datetime(2025, 4, 5), datetime(2025, 10, 4)),
        ]
    ),
    second=booleans(),
    minutes=integers(-1_440, 2 * 1_440),
    # Not the whole day: that has no end.
    span=tuples(integers(0, 1_439), integers(1, 1_440)).filter(lambda s: s[0] != s[1] and s != (0, 1_440)),
)
@example(  # the second 1:10 of the night in which clocks go back: quiet till the second 1:30
    changes=("America/New_York", datetime(2025, 3, 9), datetime(2025, 11, 2)),
    second=True,
    minutes=6 * 60 + 10,
    span=(22 * 60, 90),
)
def test_quiet_ends_later_than_now_whatever_clocks_do(
    changes: tuple[str, datetime, datetime], second: bool, minutes: int, span: tuple[int, int]
) -> None:
    first, end = span
    clock, quiet = ZoneInfo(changes[0]), (Quiet(start_minute=first, end_minute=end),)
    at = (changes[1 + second] + timedelta(minutes=minutes)).replace(tzinfo=UTC)

    def is_quiet(moment: datetime) -> bool:
        there = moment.astimezone(clock)
        minute = there.hour * 60 + there.minute
        return first <= minute < end if first < end else minute >= first or minute < end

    until = quiet_until(quiet, StepChannel.SMS, at, clock)
    assert (until is not None) == is_quiet(at)
    assert until is None or (until > at and not is_quiet(until))


def test_a_week_of_holidays_is_quiet_and_looked_at_daily() -> None:
    def holiday(day: datetime) -> bool:
        return day.month == 6 and 2 <= day.day <= 8

    at = local(2, 10)
    assert quiet_until(Courtesy().quiet, StepChannel.SMS, at, SHANGHAI, holiday=holiday) == local(9, 8)
    strict, person = Courtesy(holidays_quiet=True), Profile(customer="c1")
    assert is_quiet_until(strict, person, StepChannel.SMS, at, holiday) == at + AGAIN
    assert is_quiet_until(Courtesy(), person, StepChannel.SMS, at, holiday) is None


@pytest.mark.parametrize(
    ("known", "number", "zone"),
    [
        ("Europe/Rome", "+8613800138000", "Europe/Rome"),
        ("", "+8613800138000", "Asia/Shanghai"),
        ("", "+12125550123", "America/New_York"),
        ("", "+4930123456", "Europe/Berlin"),
        ("", "+9991", ""),
        ("", "", ""),
    ],
)
def test_the_clock_is_the_persons_or_the_numbers(known: str, number: str, zone: str) -> None:
    assert clock_name(known, number) == zone


def snapshot(version: int, **consent: Any) -> crm.CustomerSnapshot:
    found = crm.CustomerSnapshot(customer="customers/c1", version=version)
    window = found.quiet_windows.add(weekdays=[6, 7], start_minute=0, end_minute=1_440)
    window.channels.append(common_pb2.CHANNEL_VOICE)
    if consent:
        given = found.consents.add(
            channel=common_pb2.CHANNEL_SMS, purpose=customers_pb2.PURPOSE_MARKETING, granted=True
        )
        given.decide_time.FromDatetime(consent["at"])
    return found


def test_opting_out_holds_until_a_later_consent() -> None:
    store = MemoryStore()

    def hears(told: crm.CustomerSnapshot) -> Profile:
        message = crm.CustomerUpdated(customer=told)
        learn(Facts(store), Event.of(message, source="crm", subject=told.customer, time=NOW))
        found = store.profile("c1")
        assert found is not None
        return found

    first = hears(snapshot(1, at=NOW - timedelta(days=9)))
    weekend = QuietWindow(
        weekdays=frozenset({6, 7}), start_minute=0, end_minute=1_440, channels=frozenset({Channel.VOICE})
    )
    assert first.quiet_windows == (weekend,)
    store._profiles["c1"] = Profile(customer="c1", crm_version=1, opted_out_at=NOW)
    again = hears(snapshot(2, at=NOW - timedelta(days=9)))
    assert again.opted_out

    def held(profile: Profile) -> Held | None:
        free = {"has_address": True, "complaining": False, "declined": False, "is_capped": False}
        return held_back(profile, StepChannel.SMS, NOW, **free)

    assert held(again) is Held.DO_NOT_CONTACT
    assert held(hears(snapshot(3, at=NOW + timedelta(days=1)))) is None
    free = {"has_address": True, "complaining": False, "declined": False, "is_capped": False}
    assert held_back(first, StepChannel.SMS, NOW, **free, fits=False) is Held.NOT_ELIGIBLE
    assert set(CONSENT) == set(StepChannel)


DECIDED = {
    "nothing": None,
    "granted": Consent(channel=crm_model.Channel.SMS, purpose=Purpose.MARKETING, granted=True, decided_ms=1),
    "refused": Consent(channel=crm_model.Channel.SMS, purpose=Purpose.MARKETING, granted=False, decided_ms=1),
    "until now": Consent(
        channel=crm_model.Channel.SMS,
        purpose=Purpose.MARKETING,
        granted=True,
        decided_ms=1,
        expires_ms=int(NOW.timestamp() * 1_000),
    ),
    "for a survey": Consent(
        channel=crm_model.Channel.SMS, purpose=Purpose.SURVEY, granted=True, decided_ms=1
    ),
}


@pytest.mark.parametrize("said", DECIDED)
def test_crm_and_campaigns_read_consent_alike(said: str) -> None:
    decision = DECIDED[said]
    customer = crm_model.Customer(
        id="c1", version=1, create_time=NOW, consents=(decision,) if decision is not None else ()
    )
    profile = profile_from_snapshot(crm_convert.snapshot(customer), NOW)
    for channel in (StepChannel.SMS, StepChannel.EMAIL, StepChannel.OUTBOUND_CALL):
        over = crm_model.Channel[CONSENT[channel].name]
        for at in (NOW, NOW - timedelta(seconds=1)):
            asked = permission(customer, over, Purpose.MARKETING, at, "UTC")
            assert consents(profile, channel, at) == asked.allowed, (channel, at, asked)
    # With a person who came of their own accord, only a refusal counts: in a call, at the counter.
    assert consents(profile, StepChannel.TOUCH_POINT, NOW) and consents(profile, StepChannel.SHOP, NOW)
    in_call = gate(profile, Contact(channel=Channel.SMS), 0)
    assert (in_call is NoOffer.NO_CONSENT) == (said == "refused")
    assert consents(profile, StepChannel.WEBHOOK, NOW) == (said == "granted")


def test_rules_know_how_long_ago_a_complaint_was_resolved() -> None:
    store = MemoryStore()
    store.save_profile(Profile(customer="c1", crm_version=1))
    rule = parse_rule("days_since_complaint < 14")

    def holds(days: int) -> bool:
        profile = store.profile("c1")
        assert profile is not None
        return bool(rule.matches(CustomerFacts(profile, Contact(), NOW + timedelta(days=days))))

    store.save_complaint(Complaint(ticket="t1", customer="c1", number="", open=True, version=1, at=NOW))
    assert not holds(1)
    store.save_complaint(Complaint(ticket="t1", customer="c1", number="", open=False, version=2, at=NOW))
    assert [holds(days) for days in (0, 13, 14)] == [True, True, False]


class Answers:
    """What campaigns were told, in memory."""

    def __init__(self, **people: dict[str, str]) -> None:
        self.people = people
        self.sold: dict[str, str] = {}

    def answers(self, campaign: str, customer: str) -> dict[str, str]:
        return self.people.get(customer, {})

    def answer(self, campaign: str, customer: str, phase: str, response: str) -> dict[str, Any] | None:
        if customer not in self.people:
            return None
        self.people[customer][phase] = response
        return {"phase": phase}

    def mark_answered(self, campaign: str, phase: str, customer: str, response: str) -> None:
        assert self.people[customer][phase] == response

    def opt_out(self, customer: str, at: datetime) -> None:
        raise AssertionError("nobody opted out")

    def place(self, campaign: str, customer: str) -> str | None:
        return f"{campaign}/{customer}" if customer in self.people else None

    def has_bought(self, place: str) -> bool:
        return place in self.sold

    def bought(self, place: str, at: datetime, worth: str, cost: str, agent: str, claim: str) -> bool:
        assert self.sold.setdefault(place, claim) == claim
        return True


def test_a_call_that_sells_takes_a_unit_and_the_last_one_is_the_last() -> None:
    store = MemoryStore()
    fibre = offer(id="fibre", product="fibre", stock=1)
    store.insert_offer(fibre, (), request_key=None, fingerprint=None)
    content = {"resource": {"name": "campaigns/k", "offer": "offers/fibre"}}
    store.shelves.insert(CAMPAIGNS, Row(id="k", content=content), NOW)
    listed = {"resource": {"offer": "offers/fibre"}, "origin": {"campaign": "k", "phase": "p", "step": "s"}}
    store.shelves.insert(CONTACT_LISTS, Row(id="k.p.s", content=listed), NOW)
    campaigns = Campaigns(store.shelves, store, FakeClock(NOW), "CNY")
    people = Answers(c1={}, c2={})

    def succeeds(customer: str) -> bool:
        told = own.OutboundResultRecorded(
            contact="contactLists/k.p.s/contacts/x", customer=f"customers/{customer}", result="SUCCESS"
        )
        return take_result(campaigns, people, told)

    assert [succeeds(who) for who in ("c1", "c1", "c2", "c3")] == [True, True, True, False]
    assert people.people == {"c1": {"p": "BOUGHT"}, "c2": {"p": "REGISTERED"}}
    assert set(people.sold) == {"k/c1"} and store.offer("fibre").units_used == 1
    profile = store.profile("c1")
    assert profile is not None and profile.products == {"fibre"} and store.profile("c2") is None
    assert not store.stale_claims(datetime.max.replace(tzinfo=UTC), 9), "the claim is settled"


def test_a_completed_survey_answers_for_its_phase() -> None:
    store = MemoryStore()
    phases = [{"phase_id": "ask", "survey": "surveys/s1"}, {"phase_id": "invite"}]
    keys = {"state": campaigns_pb2.CAMPAIGN_STATE_RUNNING}
    store.shelves.insert(CAMPAIGNS, Row(id="k", content={"resource": {"phases": phases}}, keys=keys), NOW)
    campaigns = Campaigns(store.shelves, store, FakeClock(NOW), "CNY")
    people = Answers(happy={}, angry={}, plain={}, buyer={"ask": "BOUGHT"})

    def completed(customer: str, survey: str = "surveys/s1", **told: float) -> int:
        name = f"customers/{customer}" if customer else ""
        return take_survey(campaigns, people, own.SurveyCompleted(survey=survey, customer=name, **told))

    assert [completed("happy", satisfaction=0.5), completed("angry", satisfaction=0.4)] == [1, 1]
    assert [completed("plain"), completed("buyer"), completed("stranger"), completed("")] == [1, 0, 0, 0]
    assert completed("plain", "surveys/s2") == 0
    assert {who: said["ask"] for who, said in people.people.items()} == {
        "happy": "INTERESTED",
        "angry": "DECLINED",
        "plain": "INTERESTED",
        "buyer": "BOUGHT",
    }


@pytest.mark.parametrize(
    ("rule", "audience"),
    [
        ('contact_reason == "billing"', {}),
        ('asked("tv")', {}),
        ("not known", {}),
        ('tier == "gold"', {"tiers": ["vip"]}),
        ('not tagged("senior")', {"any_tags": ["senior"]}),
    ],
)
def test_a_segment_that_nobody_can_belong_to_is_refused(rule: str, audience: dict[str, list[str]]) -> None:
    made = campaigns_pb2.Segment(display_name="s", rule=rule)
    for field, values in audience.items():
        getattr(made.audience, field).extend(values)
    ((field, why),) = segment_problems(made)
    assert field == "rule" and "RULE_NEVER_MATCHES" in why


def test_a_segments_audience_must_not_contradict_itself() -> None:
    made = campaigns_pb2.Segment(display_name="s")
    made.audience.any_tags.append("a")
    made.audience.no_tags.append("a")
    made.audience.channels.append(common_pb2.CHANNEL_VOICE)
    assert [field for field, _ in segment_problems(made)] == ["audience.no_tags", "audience.channels"]


def test_a_rule_that_an_earlier_release_took_keeps_nobody_from_changing_the_rest() -> None:
    """Rules with a comment, or without a comma, are refused since."""
    store = MemoryStore()
    desk = Campaigns(store.shelves, store, FakeClock(NOW), "CNY").segments
    old = 'tier in ["gold" "vip"]'
    kept = desk.content(campaigns_pb2.Segment(display_name="s", rule=old))
    store.shelves.insert(SEGMENTS, Row(id="s", content=kept), NOW)
    segment = campaigns_pb2.Segment(name="segments/s", display_name="t", rule=old)
    for paths in (["display_name"], ["display_name", "rule"]):
        asked = campaigns_pb2.UpdateSegmentRequest(segment=segment, update_mask={"paths": paths})
        changed = desk.update(asked)
        assert (changed.display_name, changed.rule) == ("t", old)
    segment.rule = f"known and {old}"
    asked = campaigns_pb2.UpdateSegmentRequest(segment=segment, update_mask={"paths": ["rule"]})
    with pytest.raises(InvalidArgument, match="RULE_SYNTAX"):
        desk.update(asked)

    campaign = campaigns_pb2.Campaign(display_name="k", segment="segments/s")
    campaign.phases.add(phase_id="ask", entry_rule=old)
    assert "phases[0].entry_rule" in dict(campaign_problems(campaign, "CNY"))
    assert "phases[0].entry_rule" not in dict(campaign_problems(campaign, "CNY", campaign))


def test_an_entry_rule_asks_for_answers_that_there_can_be() -> None:
    made = campaigns_pb2.Campaign(display_name="k", segment="segments/s")
    for id, rule in (("ask", ""), ("invite", 'response("aks") == "interested"')):
        made.phases.add(phase_id=id, entry_rule=rule)

    def refused() -> bool:
        return "phases[1].entry_rule" in dict(campaign_problems(made, "CNY"))

    assert refused()
    made.phases[1].entry_rule = 'response("ask") == "maybe"'
    assert refused()
    made.phases[1].entry_rule = 'response("ask") == "interested"'
    assert not refused()
