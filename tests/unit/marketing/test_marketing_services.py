"""The services on shelves, spoken to as a partner does: over gRPC, on memory stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.unit.marketing.marketing_examples import NOW, moment, offer
from tests.unit.marketing.marketing_examples import cny as cny_of

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import (
    campaigns_pb2,
    campaigns_pb2_grpc,
    leads_pb2,
    leads_pb2_grpc,
    offers_pb2,
    offers_pb2_grpc,
    outbound_pb2,
    outbound_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    savings_pb2,
    savings_pb2_grpc,
    surveys_pb2,
    surveys_pb2_grpc,
    types_pb2,
)
from chassis.errors import Unavailable
from chassis.pagination import Page, request_fingerprint
from chassis.testing import FakeClock
from marketing import reports_servicer, savings_servicer, surveys_servicer
from marketing.call_lists import CallListSender, add_contact, complete_lists
from marketing.campaign_engine import StepChannel
from marketing.campaign_store import MemoryTouches
from marketing.config import MarketingSettings
from marketing.decision_figures import TooLong
from marketing.kinds import ATTEMPTS, CAMPAIGNS, CONTACT_LISTS, CONTACT_POLICY, CONTACTS, TARIFFS
from marketing.memory_store import MemoryStore
from marketing.model import Channel, Complaint, Profile, Purchase
from marketing.outbound_servicer import OutboundServicer
from marketing.sale_store import Sale
from marketing.scopes import SCOPES
from marketing.senders import Message
from marketing.server import bindings
from marketing.shelf import Row

#: 09:00 UTC is 17:00 in Shanghai: nobody's quiet hours.
START = NOW


class World:
    """A server with its clock and stores, and stubs."""

    def __init__(
        self, channel: grpc.aio.Channel, clock: FakeClock, store: MemoryStore, touches: MemoryTouches
    ) -> None:
        self.touches = touches
        self.clock = clock
        self.store = store
        self.offers = offers_pb2_grpc.OfferServiceStub(channel)
        self.recommend = recommendations_pb2_grpc.RecommendationServiceStub(channel)
        self.savings = savings_pb2_grpc.SavingsServiceStub(channel)
        self.leads = leads_pb2_grpc.LeadServiceStub(channel)
        self.outbound = outbound_pb2_grpc.OutboundServiceStub(channel)
        self.campaigns = campaigns_pb2_grpc.CampaignServiceStub(channel)
        self.surveys = surveys_pb2_grpc.SurveyServiceStub(channel)
        self.reports = reports_pb2_grpc.ReportServiceStub(channel)


@pytest_asyncio.fixture
async def world(grpc_server: Any) -> AsyncIterator[World]:
    clock, store, touches = FakeClock(START), MemoryStore(), MemoryTouches()
    services = bindings(MarketingSettings(), store, store, clock, store.shelves, touches)
    server = await grpc_server(services, scopes=SCOPES)
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield World(channel, clock, store, touches)


def cny(amount: str) -> common_pb2.Money:
    return common_pb2.Money(currency_code="CNY", amount=amount)


def words(text: str) -> types_pb2.LocalizedText:
    return types_pb2.LocalizedText(language="en", text=text)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """(code, reason, fields) of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return caught.value.code(), info.reason, [violation.field for violation in bad.field_violations]


async def test_a_rule_is_checked_with_its_place_and_tried_on_customers(world: World) -> None:
    world.store.save_profile(Profile(customer="c1", tier="gold", crm_version=1))
    world.store.save_profile(Profile(customer="c2", tier="vip", crm_version=1))
    ask = offers_pb2.CheckEligibilityRuleRequest
    bad = await world.offers.CheckEligibilityRule(ask(rule='tier == "gold" and tear'))
    assert [(p.code, p.offset) for p in bad.problems] == [("RULE_UNKNOWN_NAME", 19)]
    good = await world.offers.CheckEligibilityRule(ask(rule='tier == "gold"'))
    assert (list(good.problems), good.matched_count, good.sampled_count) == ([], 1, 2)


async def test_the_policy_is_read_changed_and_guarded(world: World) -> None:
    name = "policies/default"
    first = await world.recommend.GetPolicy(recommendations_pb2.GetPolicyRequest(name=name))
    assert first.holdout_ratio > 0
    changed = await world.recommend.UpdatePolicy(
        recommendations_pb2.UpdatePolicyRequest(
            policy=recommendations_pb2.Policy(name=name, exploration_ratio=0.1, etag=first.etag)
        )
    )
    assert changed.exploration_ratio == 0.1
    assert changed.holdout_ratio == first.holdout_ratio
    again = recommendations_pb2.Policy(name=name, exploration_ratio=0.15, etag=changed.etag)
    await world.recommend.UpdatePolicy(recommendations_pb2.UpdatePolicyRequest(policy=again))
    stale = recommendations_pb2.Policy(name=name, exploration_ratio=0.2, etag=changed.etag)
    found = await refused(world.recommend.UpdatePolicy(recommendations_pb2.UpdatePolicyRequest(policy=stale)))
    assert found[:2] == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    wild = recommendations_pb2.Policy(name=name, holdout_ratio=0.9)
    found = await refused(world.recommend.UpdatePolicy(recommendations_pb2.UpdatePolicyRequest(policy=wild)))
    assert found[2] == ["policy.holdout_ratio"]
    few = recommendations_pb2.EvaluatePolicyRequest(policy=first)
    assert (await refused(world.recommend.EvaluatePolicy(few)))[1] == "TOO_FEW_DECISIONS"
    few.interval.start_time.FromDatetime(NOW - timedelta(days=401))
    assert (await refused(world.recommend.EvaluatePolicy(few)))[2] == ["interval"]
    few.interval.start_time.FromDatetime(NOW + timedelta(days=1))
    assert (await refused(world.recommend.EvaluatePolicy(few)))[2] == ["interval.start_time"]


async def test_the_cheapest_plan_is_found_exactly_with_its_saving(world: World) -> None:
    def tariff(kind: int, fee: str, included: str, price: str, **more: Any) -> savings_pb2.Tariff:
        tiers = [savings_pb2.PriceTier(unit_price=cny(price))] if price else []
        meter = savings_pb2.MeterPrice(meter="voice_minutes", included_quantity=included, tiers=tiers)
        return savings_pb2.Tariff(
            titles=[words(f"Plan {fee}")], kind=kind, monthly_fee=cny(fee), meter_prices=[meter], **more
        )

    plan, extra = savings_pb2.TARIFF_KIND_PLAN, savings_pb2.TARIFF_KIND_ADD_ON
    for id, made in (
        ("small", tariff(plan, "10", "100", "0.20")),
        ("large", tariff(plan, "60", "1000", "0.10")),
        ("pack", tariff(extra, "5", "100", "", quantity_max=3)),
    ):
        await world.savings.CreateTariff(savings_pb2.CreateTariffRequest(tariff=made, tariff_id=id))
    usage = [
        savings_pb2.UsageRecord(
            customer="customers/c1", month=month, meter="voice_minutes", quantity=quantity
        )
        for month, quantity in (("2025-04", "300"), ("2025-05", "500"))
    ]
    await world.savings.RecordUsage(savings_pb2.RecordUsageRequest(records=usage))
    found = await world.savings.FindCheapestPlan(
        savings_pb2.FindCheapestPlanRequest(
            customer="customers/c1", present_tariffs=["tariffs/large"], max_results=10
        )
    )
    # small + 3 packs: 10 + 15 + (0 + 100 x 0.20) / 2 = 35; small + 2: 20 + (0 + 200 x 0.20) / 2 = 40.
    best = found.quotes[0]
    assert (best.plan, list(best.add_ons), best.monthly_cost.amount) == (
        "tariffs/small",
        ["tariffs/pack"] * 3,
        "35.00",
    )
    assert best.monthly_saving.amount == "25.00"
    assert "25.00" in best.texts[1].text
    assert found.present.monthly_cost.amount == "60.00"
    nobody = savings_pb2.FindCheapestPlanRequest(customer="customers/c9")
    assert (await refused(world.savings.FindCheapestPlan(nobody)))[1] == "NO_USAGE"


async def test_no_tariff_is_left_out_and_none_spoils_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = savings_pb2.MeterPrice(meter="voice_minutes", included_quantity="100")
    plan = savings_pb2.Tariff(
        titles=[words("Plan")], kind=savings_pb2.TARIFF_KIND_PLAN, meter_prices=[meter], monthly_fee=cny("9")
    )
    made = await world.savings.CreateTariff(
        savings_pb2.CreateTariffRequest(tariff=plan, tariff_id="plan-0000")
    )
    # As an earlier release took it: it ends before it begins.
    row = world.store.shelves.get(TARIFFS, "plan-0000")
    upside_down = {"start_time": "2025-06-02T00:00:00Z", "end_time": "2025-06-01T00:00:00Z"}
    content = {"resource": {**row.content["resource"], "validity": upside_down}}
    world.store.shelves.update(TARIFFS, replace(row, content=content), START)
    for number in range(1, 501):
        world.store.shelves.insert(TARIFFS, replace(row, id=f"plan-{number:04}"), START)
    cheap = changed(plan, "monthly_fee.amount", "8")
    await world.savings.CreateTariff(savings_pb2.CreateTariffRequest(tariff=cheap, tariff_id="z-last"))
    usage = savings_pb2.UsageRecord(month="2025-05", meter="voice_minutes", quantity="50")
    ask = savings_pb2.FindCheapestPlanRequest(usage=[usage])
    found = await world.savings.FindCheapestPlan(ask)
    assert (found.quotes[0].plan, found.combination_count) == ("tariffs/z-last", 501)
    monkeypatch.setattr(savings_servicer, "TARIFFS_MAX", 500)
    assert (await refused(world.savings.FindCheapestPlan(ask)))[1] == "TOO_MANY_COMBINATIONS"
    bad = changed(plan, "validity.start_time.seconds", 2)
    bad.validity.end_time.seconds = 1
    bad.excluded_tariffs.extend([made.name] * 501)
    create = savings_pb2.CreateTariffRequest(tariff=bad)
    assert (await refused(world.savings.CreateTariff(create)))[2] == [
        "tariff.excluded_tariffs",
        "tariff.validity.end_time",
    ]


async def test_a_lead_goes_to_the_partner_with_room_and_is_won_once(world: World) -> None:
    for id, capacity in (("busy", 1), ("free", 5)):
        partner = leads_pb2.Partner(display_name=id, products=["broadband"], capacity=capacity)
        await world.leads.CreatePartner(leads_pb2.CreatePartnerRequest(partner=partner, partner_id=id))
    made = leads_pb2.Lead(customer="customers/c1", product="broadband", call_id="call-1")
    lead = await world.leads.CreateLead(leads_pb2.CreateLeadRequest(lead=made, lead_id="l1"))
    assert (lead.state, 0 < lead.score < 1) == (leads_pb2.LEAD_STATE_ASSIGNED, True)
    assert lead.partner in ("partners/busy", "partners/free")
    deletion = world.leads.DeletePartner(leads_pb2.DeletePartnerRequest(name=lead.partner))
    assert (await refused(deletion))[1] == "PARTNER_HAS_LEADS"
    won = await world.leads.WinLead(leads_pb2.WinLeadRequest(name=lead.name, value=cny("500")))
    assert won.state == leads_pb2.LEAD_STATE_WON
    again = world.leads.LoseLead(leads_pb2.LoseLeadRequest(name=lead.name, reason="price"))
    assert (await refused(again))[1] == "LEAD_STATE"
    assert [event.type.rpartition(".")[2] for event in world.store.shelves.events] == [
        "LeadCreated",
        "LeadTransitioned",
        "LeadTransitioned",
    ]
    nobody = leads_pb2.CreateLeadRequest(lead=leads_pb2.Lead(product="broadband"))
    assert (await refused(world.leads.CreateLead(nobody)))[2] == ["lead.customer"]


async def outbound_list(
    world: World, *people: str | outbound_pb2.Contact, id: str = "autumn", offer: str = ""
) -> str:
    """A list of these, each a number or a whole contact; its name."""
    rule = outbound_pb2.RetryRule(
        result=outbound_pb2.OUTBOUND_RESULT_NO_ANSWER, wait=Duration(seconds=3_600), attempts_max=2
    )
    created = await world.outbound.CreateContactList(
        outbound_pb2.CreateContactListRequest(
            contact_list=outbound_pb2.ContactList(display_name=id, retry_rules=[rule], offer=offer),
            contact_list_id=id,
        )
    )
    contacts = [outbound_pb2.Contact(number=each) if isinstance(each, str) else each for each in people]

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent=created.name, contacts=contacts)

    await world.outbound.ImportContacts(batches())
    await world.outbound.StartContactList(outbound_pb2.StartContactListRequest(name=created.name))
    return str(created.name)


async def test_overdue_leads_are_those_whose_partner_let_them_lie(world: World) -> None:
    async def asked(**more: Any) -> list[str]:
        answer = await world.leads.ListLeads(leads_pb2.ListLeadsRequest(overdue=True, **more))
        return [lead.name for lead in answer.leads]

    partner = leads_pb2.Partner(display_name="p", capacity=9)
    await world.leads.CreatePartner(leads_pb2.CreatePartnerRequest(partner=partner, partner_id="p"))
    for id in ("l1", "l2"):
        made = leads_pb2.Lead(customer="customers/c1", product="tv")
        await world.leads.CreateLead(leads_pb2.CreateLeadRequest(lead=made, lead_id=id))
    assert await asked() == []
    due = (await world.leads.GetLead(leads_pb2.GetLeadRequest(name="leads/l1"))).due_time
    world.clock.advance((due.ToDatetime(UTC) - START).total_seconds())
    assert await asked() == []
    await world.leads.ContactLead(leads_pb2.ContactLeadRequest(name="leads/l2", note="rang"))
    world.clock.advance(1)
    assert await asked() == await asked(state=leads_pb2.LEAD_STATE_ASSIGNED) == ["leads/l1"]
    assert await asked(partner="partners/other") == []
    won = leads_pb2.ListLeadsRequest(overdue=True, state=leads_pb2.LEAD_STATE_WON)
    assert (await refused(world.leads.ListLeads(won)))[2] == ["state"]


async def test_what_is_kept_of_merged_customers_is_found_by_the_survivor(world: World) -> None:
    made = leads_pb2.Lead(customer="customers/c2", product="tv")
    await world.leads.CreateLead(leads_pb2.CreateLeadRequest(lead=made, lead_id="l1"))
    price = savings_pb2.MeterPrice(meter="mb", tiers=[savings_pb2.PriceTier(unit_price=cny("1"))])
    kind = savings_pb2.TARIFF_KIND_PLAN
    plan = savings_pb2.Tariff(titles=[words("Plain")], kind=kind, monthly_fee=cny("9"), meter_prices=[price])
    await world.savings.CreateTariff(savings_pb2.CreateTariffRequest(tariff=plan, tariff_id="plain"))
    records = [
        savings_pb2.UsageRecord(customer=f"customers/{who}", month="2025-05", meter="mb", quantity="10")
        for who in ("c1", "c2")
    ]
    await world.savings.RecordUsage(savings_pb2.RecordUsageRequest(records=records))
    world.store.save_churn_risk("c2", 0.8, START)
    world.store.save_care("c2", "t1", "BIRTHDAY")
    world.store.save_profile(
        Profile(customer="c1", crm_version=1, consents={Channel.SMS: None, Channel.EMAIL: START})
    )
    world.store.merge("c2", "c1", moment(2))
    found = await world.leads.ListLeads(leads_pb2.ListLeadsRequest(customer="customers/c1"))
    assert [lead.name for lead in found.leads] == ["leads/l1"]
    ask_plan = savings_pb2.FindCheapestPlanRequest(customer="customers/c1")
    best = await world.savings.FindCheapestPlan(ask_plan)
    assert best.quotes[0].monthly_cost.amount == "29.00", "what both used is paid for"
    ask = recommendations_pb2.GetProfileRequest
    known = await world.recommend.GetProfile(ask(name="customers/c1/profile"))
    assert (known.churn_risk, list(known.merged_customers)) == (0.8, ["customers/c2"])
    assert [(care.care_task, care.kind) for care in known.care_occasions] == [("careTasks/t1", "BIRTHDAY")]
    assert list(known.consented_channels) == [common_pb2.CHANNEL_SMS]
    gone = await world.recommend.GetProfile(ask(name="customers/c2/profile"))
    assert gone.merged_into == "customers/c1"


async def test_contacts_are_leased_once_retried_by_rule_and_forbidden_for_good(world: World) -> None:
    name = await outbound_list(world, "+8613800138000", "+8613800138001", "+8613800138001", "nonsense")
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    first = (await world.outbound.NextContacts(ask)).contacts
    assert sorted(contact.number for contact in first) == ["+8613800138000", "+8613800138001"]
    other = outbound_pb2.NextContactsRequest(holder="agent-2", max_contacts=10)
    assert not (await world.outbound.NextContacts(other)).contacts

    def report(contact: Any, result: int, holder: str = "agent-1") -> Any:
        return world.outbound.RecordResult(
            outbound_pb2.RecordResultRequest(
                contact=contact.name, holder=holder, attempt=contact.attempt, result=result
            )
        )

    assert (await refused(report(first[0], outbound_pb2.OUTBOUND_RESULT_SUCCESS, "agent-2")))[
        1
    ] == "LEASE_LOST"
    missed = await report(first[0], outbound_pb2.OUTBOUND_RESULT_NO_ANSWER)
    assert missed.state == outbound_pb2.CONTACT_STATE_WAITING
    assert await report(first[0], outbound_pb2.OUTBOUND_RESULT_NO_ANSWER) == missed
    assert (await refused(report(first[0], outbound_pb2.OUTBOUND_RESULT_SUCCESS)))[1] == "ATTEMPT_CLOSED"
    left = await report(first[1], outbound_pb2.OUTBOUND_RESULT_OPTED_OUT)
    assert left.state == outbound_pb2.CONTACT_STATE_DONE
    world.clock.advance(3_700)
    second = (await world.outbound.NextContacts(ask)).contacts
    assert [(contact.number, contact.attempt) for contact in second] == [(first[0].number, 2)]
    done = await report(second[0], outbound_pb2.OUTBOUND_RESULT_NO_ANSWER)
    assert done.state == outbound_pb2.CONTACT_STATE_DONE
    statistics = await world.outbound.GetDialStatistics(
        outbound_pb2.GetDialStatisticsRequest(contact_list=name)
    )
    assert dict(statistics.results) == {"NO_ANSWER": 2, "OPTED_OUT": 1}
    removed = outbound_pb2.RemoveForbiddenNumberRequest(number=first[1].number)
    await world.outbound.RemoveForbiddenNumber(removed)
    assert (await refused(world.outbound.RemoveForbiddenNumber(removed)))[1] == "NUMBER_NOT_FORBIDDEN"


async def test_who_was_promised_a_time_is_called_then_and_not_after_all_others(world: World) -> None:
    numbers = [f"+86138{n:08d}" for n in range(40)]
    urgent = outbound_pb2.Contact(number="+8613900139000", priority=1)
    await outbound_list(world, *numbers, urgent)
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=20)
    handed = (await world.outbound.NextContacts(ask)).contacts
    result = outbound_pb2.RecordResultRequest(
        contact=handed[-1].name, holder="agent-1", attempt=1, result=outbound_pb2.OUTBOUND_RESULT_CALL_BACK
    )
    result.call_back_time.FromDatetime(world.clock.now() + timedelta(hours=1))
    await world.outbound.RecordResult(result)
    await world.outbound.ReturnContacts(outbound_pb2.ReturnContactsRequest(holder="agent-1"))
    world.clock.advance(3_600)
    ask.max_contacts = 2
    again = [contact.name for contact in (await world.outbound.NextContacts(ask)).contacts]
    assert again == [handed[0].name, handed[-1].name] and handed[0].priority == 1
    # So it stays when nobody got round to it.
    await world.outbound.ReturnContacts(outbound_pb2.ReturnContactsRequest(holder="agent-1"))
    assert [contact.name for contact in (await world.outbound.NextContacts(ask)).contacts] == again


async def test_the_share_abandoned_is_told_before_it_is_gone_by(world: World) -> None:
    name = await outbound_list(world, "+8613800138000", "+8613800138001")
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=2)
    for contact, result in zip(
        (await world.outbound.NextContacts(ask)).contacts,
        (outbound_pb2.OUTBOUND_RESULT_ABANDONED, outbound_pb2.OUTBOUND_RESULT_DECLINED),
        strict=True,
    ):
        await world.outbound.RecordResult(
            outbound_pb2.RecordResultRequest(contact=contact.name, holder="agent-1", attempt=1, result=result)
        )
    found = await world.outbound.GetDialStatistics(outbound_pb2.GetDialStatisticsRequest(contact_list=name))
    assert found.abandon_ratio == 0.5


async def test_who_is_given_back_is_put_off_as_asked_for(world: World) -> None:
    await outbound_list(world, "+8613800138000")
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    (handed,) = (await world.outbound.NextContacts(ask)).contacts

    def back(seconds: int) -> Any:
        request = outbound_pb2.ReturnContactsRequest(holder="agent-1", contacts=[handed.name])
        request.not_before_time.FromDatetime(world.clock.now() + timedelta(seconds=seconds))
        return world.outbound.ReturnContacts(request)

    assert (await refused(back(86_401)))[2] == ["not_before_time"]
    assert (await back(1_800)).returned_count == 1
    assert not (await world.outbound.NextContacts(ask)).contacts
    world.clock.advance(1_800)
    (again,) = (await world.outbound.NextContacts(ask)).contacts
    assert (again.name, again.attempt) == (handed.name, 1)
    # A time that is over is no time at all.
    assert (await back(-60)).returned_count == 1
    assert (await world.outbound.NextContacts(ask)).contacts


async def test_who_needs_a_skill_that_nobody_has_keeps_nobody_else_from_being_called(world: World) -> None:
    name = await outbound_list(world)

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        rare = [
            outbound_pb2.Contact(number=f"+8613800{n:06d}", priority=9, skills=["thai", "chinese"])
            for n in range(60)
        ]
        plain = outbound_pb2.Contact(number="+8613900139000", skills=["chinese"])
        yield outbound_pb2.ImportContactsRequest(parent=name, contacts=[*rare, plain])

    await world.outbound.ImportContacts(batches())
    for skills, number in ((["chinese"], "+8613900139000"), (["thai", "chinese"], "+8613800")):
        ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=1, skills=skills)
        (handed,) = (await world.outbound.NextContacts(ask)).contacts
        assert handed.number.startswith(number)


async def test_a_lease_is_renewed_by_its_holder_while_it_holds(world: World) -> None:
    name = await outbound_list(world, "+8613800138000", "+8613800138001")
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10, lease_seconds=60)
    first = (await world.outbound.NextContacts(ask)).contacts

    def renew(calling: bool = False, holder: str = "agent-1", seconds: int = 600) -> Any:
        names = [contact.name for contact in first]
        return world.outbound.RenewContacts(
            outbound_pb2.RenewContactsRequest(
                holder=holder, contacts=[*names, f"{name}/contacts/nobody"], calling=calling,
                lease_seconds=seconds,
            )
        )  # fmt: skip

    assert not (await renew(holder="agent-2")).contacts
    kept = (await renew(calling=True)).contacts
    assert [contact.name for contact in kept] == [contact.name for contact in first]
    assert kept[0].lease_expire_time.ToDatetime(UTC) == world.clock.now() + timedelta(seconds=600)
    assert kept[0].attempt == 1
    world.clock.advance(120)
    other = outbound_pb2.NextContactsRequest(holder="agent-2", max_contacts=10)
    assert not (await world.outbound.NextContacts(other)).contacts
    # A list that does not run is not called any more, and who is spoken to stays reserved.
    await world.outbound.PauseContactList(outbound_pb2.PauseContactListRequest(name=name))
    assert not (await renew(calling=True)).contacts
    assert len((await renew()).contacts) == 2
    await world.outbound.StartContactList(outbound_pb2.StartContactListRequest(name=name))
    forbidden = outbound_pb2.AddForbiddenNumbersRequest(numbers=[kept[0].number])
    await world.outbound.AddForbiddenNumbers(forbidden)
    assert [one.number for one in (await renew(calling=True)).contacts] == [kept[1].number]
    await halted(world, True)
    assert not (await renew(calling=True)).contacts
    await halted(world, False)
    # What has ended is nobody's, and another may have it by now.
    world.clock.advance(601)
    assert not (await renew()).contacts
    # Not even where it was put off till the morning when another asked in the night.
    world.clock.advance(9 * 3_600)
    assert not (await world.outbound.NextContacts(other)).contacts
    assert not (await renew()).contacts
    for seconds in (9, 3_601, -1):
        assert (await refused(renew(seconds=seconds)))[2] == ["lease_seconds"]
    empty = outbound_pb2.RenewContactsRequest(holder="agent-1")
    assert (await refused(world.outbound.RenewContacts(empty)))[2] == ["contacts"]


async def test_who_refuses_calls_after_being_handed_out_is_not_called(world: World) -> None:
    world.store.save_profile(Profile(customer="c1", crm_version=1))
    contact = outbound_pb2.Contact(number="+8613800138000", customer="customers/c1")
    name = await outbound_list(world)

    async def batch() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent=name, contacts=[contact])

    await world.outbound.ImportContacts(batch())
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    (handed,) = (await world.outbound.NextContacts(ask)).contacts
    calling = outbound_pb2.RenewContactsRequest(holder="agent-1", contacts=[handed.name], calling=True)
    assert len((await world.outbound.RenewContacts(calling)).contacts) == 1
    refusing = frozenset({Channel.VOICE})
    world.store.save_profile(Profile(customer="c1", refused_channels=refusing, crm_version=2))
    assert not (await world.outbound.RenewContacts(calling)).contacts


async def imported(world: World, name: str, *contacts: outbound_pb2.Contact, language: str = "en") -> Any:
    async def batch() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent=name, contacts=contacts)

    return await world.outbound.ImportContacts(batch(), metadata=(("accept-language", language),))


@pytest.mark.parametrize(
    ("language", "said", "of_purchase"),
    [
        ("en", "must be an E.164 number", "must not be empty"),
        ("zh-Hans-CN,en;q=0.5", "必须是 E.164 号码", "不能为空"),
    ],
)
async def test_a_bulk_load_says_in_its_callers_language_what_it_refused(
    world: World, language: str, said: str, of_purchase: str
) -> None:
    name = await outbound_list(world)
    found = await imported(world, name, outbound_pb2.Contact(number="1"), language=language)
    assert [one.description for one in found.rejected] == [said]

    async def batch() -> AsyncIterator[recommendations_pb2.ImportPurchasesRequest]:
        yield recommendations_pb2.ImportPurchasesRequest(purchases=[recommendations_pb2.Purchase()])

    told = await world.recommend.ImportPurchases(batch(), metadata=(("accept-language", language),))
    assert [one.description for one in told.rejected] == [of_purchase]


async def test_who_must_not_be_called_is_not_called_by_a_bare_number(world: World) -> None:
    """A list of numbers alone would get round every refusal."""
    numbers = [f"+861380013800{n}" for n in range(4)]
    refusing = frozenset({Channel.VOICE})
    world.store.save_profile(
        Profile(customer="c0", numbers=(numbers[0],), refused_channels=refusing, crm_version=1)
    )
    world.store.save_profile(Profile(customer="c1", numbers=(numbers[1],), crm_version=1))
    world.store.save_profile(
        Profile(customer="c2", numbers=(numbers[2],), time_zone="America/New_York", crm_version=1)
    )
    await outbound_list(world, *numbers)
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    found = (await world.outbound.NextContacts(ask)).contacts
    assert sorted(one.number for one in found) == [numbers[1], numbers[3]], "05:00 in New York"
    world.store.save_profile(
        Profile(customer="c1", numbers=(numbers[1],), refused_channels=refusing, crm_version=2)
    )
    calling = outbound_pb2.RenewContactsRequest(
        holder="agent-1", contacts=[one.name for one in found], calling=True
    )
    kept = (await world.outbound.RenewContacts(calling)).contacts
    assert [one.number for one in kept] == [numbers[3]]
    # A list that sells calls customers who have consented: whose number it is is a customer.
    world.store.save_profile(Profile(customer="c3", numbers=(numbers[3],), crm_version=1))
    await outbound_list(world, numbers[3], "+8613900139000", id="sells", offer="offers/tv")
    ask.contact_lists[:] = ["contactLists/sells"]
    assert [one.number for one in (await world.outbound.NextContacts(ask)).contacts] == ["+8613900139000"]


async def test_of_whom_nothing_was_heard_has_not_consented(world: World) -> None:
    name = await outbound_list(world, id="sells", offer="offers/tv")
    await imported(world, name, outbound_pb2.Contact(number="+8613800138000", customer="customers/new"))
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    assert not (await world.outbound.NextContacts(ask)).contacts
    world.store.save_profile(Profile(customer="new", consents={Channel.VOICE: None}, crm_version=1))
    world.clock.advance(86_400)
    assert len((await world.outbound.NextContacts(ask)).contacts) == 1, "the news was on its way"


async def test_a_list_goes_with_its_contacts(world: World) -> None:
    """They would be called from the next list of the name; and an erasure finds numbers by lists."""
    name = await outbound_list(world, "+8613800138000", "+8613800138001")
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=1)
    (taken,) = (await world.outbound.NextContacts(ask)).contacts
    await world.outbound.RecordResult(
        outbound_pb2.RecordResultRequest(
            contact=taken.name, holder="agent-1", attempt=1, result=outbound_pb2.OUTBOUND_RESULT_BUSY
        )
    )
    delete = outbound_pb2.DeleteContactListRequest(name=name)
    assert (await refused(world.outbound.DeleteContactList(delete)))[1] == "CONTACT_LIST_STATE"
    assert world.store.shelves.count(CONTACTS, {"list": "autumn"}) == 2
    await world.outbound.PauseContactList(outbound_pb2.PauseContactListRequest(name=name))
    await world.outbound.DeleteContactList(delete)
    assert world.store.shelves.count(CONTACTS, {}) == world.store.shelves.count(ATTEMPTS, {}) == 0
    # One that an earlier release left behind.
    left = outbound_pb2.Contact(number="+8613800138009")
    assert add_contact(world.store.shelves, "autumn", left, world.clock.now())
    await outbound_list(world, "+8613800138001")
    ask.max_contacts = 9
    assert [one.number for one in (await world.outbound.NextContacts(ask)).contacts] == ["+8613800138001"]
    # Who asks to create it again takes nobody off it.
    again = outbound_pb2.ContactList(display_name="autumn")
    create = outbound_pb2.CreateContactListRequest(contact_list=again, contact_list_id="autumn")
    assert (await refused(world.outbound.CreateContactList(create)))[0] is grpc.StatusCode.ALREADY_EXISTS
    assert world.store.shelves.count(CONTACTS, {"list": "autumn"}) == 1


async def test_a_list_is_not_started_while_it_is_removed(world: World, monkeypatch: Any) -> None:
    name = await outbound_list(world, "+8613800138000")
    await world.outbound.PauseContactList(outbound_pb2.PauseContactListRequest(name=name))
    clear, loop = world.store.shelves.clear, asyncio.get_running_loop()
    told: list[Any] = []

    async def start() -> None:
        call = world.outbound.StartContactList(outbound_pb2.StartContactListRequest(name=name))
        told.append(await refused(call))

    def clear_and_start(kind: Any, condition: Any) -> None:
        clear(kind, condition)
        asyncio.run_coroutine_threadsafe(start(), loop).result(30)

    monkeypatch.setattr(world.store.shelves, "clear", clear_and_start)
    await world.outbound.DeleteContactList(outbound_pb2.DeleteContactListRequest(name=name))
    assert [reason for _, reason, *_ in told] == ["CONTACT_LIST_STATE"] * 2
    assert world.store.shelves.count(CONTACTS, {}) == world.store.shelves.count(CONTACT_LISTS, {}) == 0


async def test_lists_are_asked_for_by_states_that_there_are(world: World) -> None:
    for ask, request in (
        (world.outbound.ListContactLists, outbound_pb2.ListContactListsRequest(state=99)),
        (world.leads.ListLeads, leads_pb2.ListLeadsRequest(state=99)),
    ):
        code, _, fields = await refused(ask(request))
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["state"])


async def test_who_is_handed_out_has_the_clock_that_quiet_hours_go_by(world: World) -> None:
    """The dialler keeps hours of its own, and knows the number alone."""
    name = await outbound_list(world)
    world.store.save_profile(Profile(customer="c1", time_zone="Asia/Tokyo", crm_version=1))
    world.store.save_profile(Profile(customer="c2", time_zone="Asia/Tokyou", crm_version=1))
    contacts = [outbound_pb2.Contact(number=f"+861380013800{n}", customer=f"customers/c{n}") for n in (1, 2)]
    own = outbound_pb2.Contact(number="+8613800138003", customer="customers/c1", time_zone="Asia/Seoul")
    await imported(world, name, *contacts, own)
    ask = outbound_pb2.NextContactsRequest(
        holder="agent-1", max_contacts=10, request_id="6f1c1c5e-5c0f-4c5b-9a57-0d2f0f4f7a12"
    )
    found = (await world.outbound.NextContacts(ask)).contacts
    assert {one.name: one for one in (await world.outbound.NextContacts(ask)).contacts} == {
        one.name: one for one in found
    }
    assert {one.number[-1]: one.time_zone for one in found} == {"1": "Asia/Tokyo", "2": "", "3": "Asia/Seoul"}
    tokyo = next(one for one in found if one.time_zone == "Asia/Tokyo")
    kept = await world.outbound.GetContact(outbound_pb2.GetContactRequest(name=tokyo.name))
    assert kept.time_zone == "", "it is the customer's, and may change"


async def test_who_is_about_to_be_called_is_not_when_quiet_hours_have_begun(world: World) -> None:
    await outbound_list(world, "+8613800138000")
    world.clock.advance(5 * 3_600 - 30)  # half a minute to ten in the evening
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    (handed,) = (await world.outbound.NextContacts(ask)).contacts
    calling = outbound_pb2.RenewContactsRequest(holder="agent-1", contacts=[handed.name], calling=True)
    assert len((await world.outbound.RenewContacts(calling)).contacts) == 1
    world.clock.advance(30)
    assert not (await world.outbound.RenewContacts(calling)).contacts
    calling.calling = False
    assert len((await world.outbound.RenewContacts(calling)).contacts) == 1, "a conversation goes on"


async def test_a_number_is_called_so_often_a_day_whoever_calls_and_whichever_its_list(world: World) -> None:
    """No dialler needs to remember: a restart forgot it, and two of them counted each for itself."""
    number = "+8613800138000"
    for id in ("one", "two"):
        await outbound_list(world, number, id=id)

    async def handed(list_id: str) -> Any:
        ask = outbound_pb2.NextContactsRequest(
            holder="agent-1", max_contacts=1, contact_lists=[f"contactLists/{list_id}"]
        )
        return next(iter((await world.outbound.NextContacts(ask)).contacts), None)

    async def begins(contact: Any, most: int = 2) -> bool:
        request = outbound_pb2.RenewContactsRequest(
            holder="agent-1", contacts=[contact.name], calling=True, calls_in_day_max=most
        )
        return bool((await world.outbound.RenewContacts(request)).contacts)

    async def nobody_answers(contact: Any) -> None:
        result = {"result": outbound_pb2.OUTBOUND_RESULT_NO_ANSWER, "attempt": contact.attempt}
        await world.outbound.RecordResult(
            outbound_pb2.RecordResultRequest(contact=contact.name, holder="agent-1", **result)
        )

    first = await handed("one")
    assert await begins(first) and await begins(first), "told twice, an attempt counts once"
    await nobody_answers(first)
    other = await handed("two")
    assert await begins(other)
    back = outbound_pb2.ReturnContactsRequest(holder="agent-1", contacts=[other.name])
    assert (await world.outbound.ReturnContacts(back)).returned_count == 1, "nobody was called after all"
    other = await handed("two")
    assert await begins(other)
    await nobody_answers(other)
    world.clock.advance(3_600)
    again = await handed("one")
    assert again.attempt == 2
    assert await begins(again, most=3)
    assert not await begins(await handed("two"), most=3), "three times by now"
    assert await handed("two") is None, "it waits"
    world.clock.advance(23 * 3_600)
    rested = await handed("two")
    assert rested.attempt == 2 and await begins(rested, most=3), "a day after the first"
    assert (await refused(begins(rested, most=21)))[2] == ["calls_in_day_max"]


async def test_of_two_who_call_a_number_at_one_moment_one_is_let(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each had looked before the other one began: both called."""
    number, loop, find = "+8613800138000", asyncio.get_running_loop(), world.store.shelves.find
    contacts = []
    for holder in ("one", "two"):
        await outbound_list(world, number, id=holder)
        ask = outbound_pb2.NextContactsRequest(
            holder=holder, max_contacts=1, contact_lists=[f"contactLists/{holder}"]
        )
        contacts += (await world.outbound.NextContacts(ask)).contacts

    async def begins(contact: Any) -> bool:
        request = outbound_pb2.RenewContactsRequest(
            holder=contact.holder, contacts=[contact.name], calling=True, calls_in_day_max=1
        )
        return bool((await world.outbound.RenewContacts(request)).contacts)

    meanwhile: list[bool] = []

    def looked(kind: Any, condition: Any, *more: Any, **how: Any) -> Any:
        seen = find(kind, condition, *more, **how)
        if condition == {"number": number}:
            monkeypatch.setattr(world.store.shelves, "find", find)
            meanwhile.append(asyncio.run_coroutine_threadsafe(begins(contacts[1]), loop).result(30))
        return seen

    monkeypatch.setattr(world.store.shelves, "find", looked)
    assert [await begins(contacts[0]), *meanwhile] == [True, False]


async def test_a_contact_that_nobody_could_read_is_refused_with_its_field(world: World) -> None:
    """One that is larger than an answer may be would be handed out for ever, and nobody else with it."""
    name = await outbound_list(world)
    found = await imported(
        world,
        name,
        outbound_pb2.Contact(number="+8613800138000", display_name="x" * 201),
        outbound_pb2.Contact(number="+8613800138001", skills=[f"s{n}" for n in range(17)]),
        outbound_pb2.Contact(number="+8613800138002", skills=["chinese", "x" * 141]),
        outbound_pb2.Contact(
            number="+8613800138003", display_name="x" * 200, skills=["skills/chinese"], holder="me", attempt=7
        ),
    )
    (kept,) = (await world.outbound.ListContacts(outbound_pb2.ListContactsRequest(parent=name))).contacts
    assert (kept.holder, kept.attempt) == ("", 0), "the server says who has it"
    assert [(one.index, one.field, one.code) for one in found.rejected] == [
        (0, "display_name", "INVALID_FIELD"),
        (1, "skills", "INVALID_FIELD"),
        (2, "skills[1]", "INVALID_FIELD"),
    ]


async def test_lists_are_listed_by_their_state(world: World) -> None:
    runs = await outbound_list(world)
    drafted = outbound_pb2.ContactList(display_name="draft")
    draft = await world.outbound.CreateContactList(
        outbound_pb2.CreateContactListRequest(contact_list=drafted)
    )
    ask = outbound_pb2.ListContactListsRequest
    for state, names in (
        (outbound_pb2.CONTACT_LIST_STATE_RUNNING, {runs}),
        (outbound_pb2.CONTACT_LIST_STATE_DRAFT, {draft.name}),
        (outbound_pb2.CONTACT_LIST_STATE_UNSPECIFIED, {runs, draft.name}),
    ):
        found = await world.outbound.ListContactLists(ask(state=state))
        assert {one.name for one in found.contact_lists} == names


async def halted(world: World, stop: bool) -> None:
    policy = campaigns_pb2.ContactPolicy(name="contactPolicy", halted=stop, halted_reason="a test")
    mask = FieldMask(paths=["halted", "halted_reason"])
    request = campaigns_pb2.UpdateContactPolicyRequest(contact_policy=policy, update_mask=mask)
    await world.campaigns.UpdateContactPolicy(request)


async def test_nobody_is_called_in_quiet_hours_or_against_their_will(world: World) -> None:
    world.store.save_profile(
        Profile(customer="c1", refused_channels=frozenset({Channel.VOICE}), crm_version=1)
    )
    await outbound_list(world, "+8613800138000")
    contact = outbound_pb2.Contact(number="+8613800138009", customer="customers/c1")

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent="contactLists/autumn", contacts=[contact])

    await world.outbound.ImportContacts(batches())
    world.clock.advance(6 * 3_600)  # 23:00 in Shanghai
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    assert not (await world.outbound.NextContacts(ask)).contacts
    world.clock.advance(10 * 3_600)  # 09:00
    found = (await world.outbound.NextContacts(ask)).contacts
    assert [one.number for one in found] == ["+8613800138000"]


async def test_a_list_is_over_when_everybody_has_a_final_result(world: World) -> None:
    name = await outbound_list(world)
    running, done = outbound_pb2.CONTACT_LIST_STATE_RUNNING, outbound_pb2.CONTACT_LIST_STATE_COMPLETED

    async def state() -> int:
        complete_lists(world.store.shelves, world.clock.now())
        return (await world.outbound.GetContactList(outbound_pb2.GetContactListRequest(name=name))).state

    async def adds(number: str) -> None:
        async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
            contact = outbound_pb2.Contact(number=number)
            yield outbound_pb2.ImportContactsRequest(parent=name, contacts=[contact])

        await world.outbound.ImportContacts(batches())

    assert await state() == running, "nobody stands on it yet"
    await adds("+8613800138000")
    assert await state() == running
    ask = outbound_pb2.NextContactsRequest(holder="a", max_contacts=1)
    (taken,) = (await world.outbound.NextContacts(ask)).contacts
    assert await state() == running
    told = outbound_pb2.RecordResultRequest(
        contact=taken.name, holder="a", attempt=1, result=outbound_pb2.OUTBOUND_RESULT_SUCCESS
    )
    await world.outbound.RecordResult(told)
    assert await state() == done == await state()
    await adds("+8613800138000")  # known: nobody is added
    assert await state() == done
    await adds("+8613800138001")
    assert [one.number for one in (await world.outbound.NextContacts(ask)).contacts] == ["+8613800138001"]
    assert await state() == running


async def test_lists_that_sell_need_a_consent_and_follow_merges(world: World) -> None:
    voice = {Channel.VOICE: START + timedelta(days=1)}
    for who, consents in (("c1", voice), ("c2", {}), ("c3", {})):
        world.store.save_profile(Profile(customer=who, consents=consents, crm_version=1))
    await outbound_list(world)
    sells = outbound_pb2.ContactList(display_name="sells", offer="offers/tv")
    await world.outbound.CreateContactList(
        outbound_pb2.CreateContactListRequest(contact_list=sells, contact_list_id="sells")
    )
    await world.outbound.StartContactList(outbound_pb2.StartContactListRequest(name="contactLists/sells"))

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        for at, parent in enumerate(("autumn", "sells")):
            contacts = [
                outbound_pb2.Contact(number=f"+86138001{at}800{n}", customer=f"customers/c{n}")
                for n in (1, 2, 3)
            ]
            yield outbound_pb2.ImportContactsRequest(parent=f"contactLists/{parent}", contacts=contacts)

    await world.outbound.ImportContacts(batches())
    world.store.merge("c3", "c1", moment(2))  # the survivor's consent is that of both names
    ask = outbound_pb2.NextContactsRequest(
        holder="agent-1", max_contacts=10, contact_lists=["contactLists/sells"]
    )
    found = (await world.outbound.NextContacts(ask)).contacts
    assert sorted(one.customer for one in found) == ["customers/c1", "customers/c3"]
    ask.contact_lists[:] = ["contactLists/autumn"]
    assert len((await world.outbound.NextContacts(ask)).contacts) == 3, "to serve needs no consent"


async def test_who_answered_a_campaign_otherwise_or_may_not_buy_is_not_called_for_it(world: World) -> None:
    state = {"state": campaigns_pb2.CAMPAIGN_STATE_RUNNING}
    world.store.shelves.insert(CAMPAIGNS, Row(id="spring", content={"resource": {}}, keys=state), START)
    place = {"campaign": "spring", "phase": "invite", "step": "call", "offer": "offers/tv"}
    world.store.insert_offer(offer(id="tv", product="tv"), (), request_key=None, fingerprint=None)
    calls = CallListSender(world.store.shelves, world.clock)
    for number in range(6):
        who = Profile(
            customer=f"c{number}",
            numbers=(f"+861380013800{number}",),
            consents={Channel.VOICE: None},
            crm_version=1,
        )
        world.store.save_profile(who)
        message = Message(
            id=f"m{number}",
            profile=who,
            channel=StepChannel.OUTBOUND_CALL,
            subject="",
            body="",
            origin=place,
        )
        calls.send(message)
    owned = Purchase(id="p1", customer="c5", product="tv", at=START)
    world.store.add_purchases((owned,), START)
    stands = world.touches.stands["spring"] = {
        "c0": {"response": "BOUGHT", "answers": {"invite": "BOUGHT"}},
        "c1": {"response": "DECLINED", "answers": {"survey": "DECLINED"}},
        "c2": {"response": "INTERESTED", "answers": {"survey": "INTERESTED"}},
    }
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    found = (await world.outbound.NextContacts(ask)).contacts
    assert sorted(one.customer for one in found) == ["customers/c2", "customers/c3", "customers/c4"]
    stands["c3"] = {"response": "REGISTERED", "answers": {"invite": "REGISTERED"}}
    renew = outbound_pb2.RenewContactsRequest(
        holder="agent-1", contacts=[one.name for one in found], calling=True
    )
    left = (await world.outbound.RenewContacts(renew)).contacts
    assert sorted(one.customer for one in left) == ["customers/c2", "customers/c4"]
    await world.offers.RetireOffer(offers_pb2.RetireOfferRequest(name="offers/tv"))
    assert not (await world.outbound.RenewContacts(renew)).contacts, "nobody may take it any more"


async def test_abandoned_calls_hold_a_predictive_list_at_its_cap(world: World) -> None:
    predictive = outbound_pb2.ContactList(
        display_name="winter", pacing_mode=outbound_pb2.PACING_MODE_PREDICTIVE, abandon_ratio_max=0.05
    )
    create = outbound_pb2.CreateContactListRequest(contact_list=predictive, contact_list_id="winter")
    name = (await world.outbound.CreateContactList(create)).name
    contacts = [outbound_pb2.Contact(number=f"+86138001381{number:02}") for number in range(60)]

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent=name, contacts=contacts)

    await world.outbound.ImportContacts(batches())
    await world.outbound.StartContactList(outbound_pb2.StartContactListRequest(name=name))

    async def call(count: int, abandoned: int) -> outbound_pb2.NextContactsResponse:
        """Calls so many, of whom so many find no agent; what is handed out after them."""
        ask = outbound_pb2.NextContactsRequest(holder="router", max_contacts=count)
        for at, contact in enumerate((await world.outbound.NextContacts(ask)).contacts):
            met = outbound_pb2.OUTBOUND_RESULT_DECLINED
            await world.outbound.RecordResult(
                outbound_pb2.RecordResultRequest(
                    contact=contact.name,
                    holder="router",
                    attempt=contact.attempt,
                    result=outbound_pb2.OUTBOUND_RESULT_ABANDONED if at < abandoned else met,
                )
            )
        return await world.outbound.NextContacts(
            outbound_pb2.NextContactsRequest(holder="look", max_contacts=1, lease_seconds=10)
        )

    # Too few calls to tell; then 1 of 20 is at the cap: one call an agent; then 2 of 26 are above it.
    assert (await call(10, 0)).calls_per_agent == 3.0
    world.clock.advance(11)
    at_cap = await call(10, 1)
    assert (len(at_cap.contacts), at_cap.calls_per_agent) == (1, 1.0)
    world.clock.advance(11)
    assert not (await call(6, 1)).contacts
    asked = outbound_pb2.GetDialStatisticsRequest(contact_list=name)
    assert (await world.outbound.GetDialStatistics(asked)).abandon_ratio == pytest.approx(2 / 26)
    # The window is a day: after it they count no more.
    world.clock.advance(24 * 3_600)
    again = outbound_pb2.NextContactsRequest(holder="router", max_contacts=1)
    assert len((await world.outbound.NextContacts(again)).contacts) == 1


async def test_every_attempt_of_a_busy_list_counts(world: World) -> None:
    name = await outbound_list(world)
    now, list_id = world.clock.now(), name.removeprefix("contactLists/")
    for result, count in (("DECLINED", 20_000), ("ABANDONED", 2_000)):
        for number in range(count):
            keys = {"list": list_id, "at": now, "result": result}
            world.store.shelves.insert(ATTEMPTS, Row(id=f"{result}-{number}", content={}, keys=keys), now)
    found = await world.outbound.GetDialStatistics(outbound_pb2.GetDialStatisticsRequest(contact_list=name))
    assert found.abandon_ratio == pytest.approx(2_000 / 22_000)


@pytest.mark.parametrize("named", [True, False])
async def test_calls_count_against_the_caps_of_all_channels(world: World, named: bool) -> None:
    for n in (1, 2):
        world.store.save_profile(Profile(customer=f"c{n}", numbers=(f"+861380013800{n}",), crm_version=1))
    for number in range(4):  # four in thirty days, by whatever channel, are enough
        world.touches.note(f"t{number}", "c1", "SMS" if number % 2 else "EMAIL", START - timedelta(days=8))
    contacts = [
        outbound_pb2.Contact(number=f"+861380013800{n}", customer=f"customers/c{n}" if named else "")
        for n in (1, 2)
    ]
    await outbound_list(world, *contacts)
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    (found,) = (await world.outbound.NextContacts(ask)).contacts
    assert found.number == contacts[1].number
    done = outbound_pb2.RecordResultRequest(
        contact=found.name,
        holder="agent-1",
        attempt=1,
        result=outbound_pb2.OUTBOUND_RESULT_DECLINED,
    )
    for _ in range(2):
        await world.outbound.RecordResult(done)
    (noted,) = world.touches.touched(["c2"], START - timedelta(days=1), START)["c2"]
    assert noted[1] == "OUTBOUND_CALL"
    # When the old ones are thirty days ago the first may be called as well.
    world.clock.advance(23 * 86_400)
    (later,) = (await world.outbound.NextContacts(ask)).contacts
    assert later.number == contacts[0].number


async def test_a_result_told_again_is_counted_though_the_first_telling_died(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.store.save_profile(Profile(customer="c1", crm_version=1))
    contact = outbound_pb2.Contact(number="+8613800138001", customer="customers/c1")
    name = await outbound_list(world, contact)
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=1)
    (found,) = (await world.outbound.NextContacts(ask)).contacts
    done = outbound_pb2.RecordResultRequest(
        contact=found.name, holder="agent-1", attempt=1, result=outbound_pb2.OUTBOUND_RESULT_DECLINED
    )

    def away(*_: Any, **__: Any) -> None:
        raise Unavailable(why="away", retry_seconds=1.0)

    with monkeypatch.context() as patched:
        patched.setattr(OutboundServicer, "_count", away)
        assert (await refused(world.outbound.RecordResult(done)))[0] is grpc.StatusCode.UNAVAILABLE
    assert not world.touches.touched(["c1"], START - timedelta(days=1), START)
    for _ in range(2):
        assert (await world.outbound.RecordResult(done)).state == outbound_pb2.CONTACT_STATE_DONE
    assert len(world.touches.touched(["c1"], START - timedelta(days=1), START)["c1"]) == 1
    asked = outbound_pb2.GetDialStatisticsRequest(contact_list=name)
    assert dict((await world.outbound.GetDialStatistics(asked)).results) == {"DECLINED": 1}


async def test_asking_again_under_one_id_answers_the_same_contacts(world: World) -> None:
    await outbound_list(world, "+8613800138000", "+8613800138001")
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=1, request_id="x")
    assert (await refused(world.outbound.NextContacts(ask)))[2] == ["request_id"]
    ask.request_id = "6f1c1c5e-5c0f-4c5b-9a57-0d2f0f4f7a11"
    first, again = [(await world.outbound.NextContacts(ask)).contacts for _ in range(2)]
    assert len(first) == 1 and list(first) == list(again)


AGES = Duration(seconds=315_576_000_000)


def changed(message: Any, path: str, value: Any) -> Any:
    """A copy of a message with one field changed: "phases.0.steps.0.channel"."""
    made = type(message)()
    made.CopyFrom(message)
    *above, last = path.split(".")
    inner = made
    for part in above:
        inner = inner[int(part)] if part.isdecimal() else getattr(inner, part)
    if last.isdecimal():
        inner[int(last)] = value
    elif isinstance(value, Duration):
        getattr(inner, last).CopyFrom(value)
    else:
        setattr(inner, last, value)
    return made


def field_of(path: str) -> str:
    """How an error names a path: "phases[0].steps[0].channel"."""
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split("."))[1:]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *((f"phases.0.{name}", 99) for name in ("kind", "steps.0.channel", "steps.0.stopping_rule.metric")),
        ("goals.0.metric", 99),
        *(("phases.0.steps.0.wait", wait) for wait in (AGES, Duration(seconds=-1))),
    ],
)
async def test_what_would_stop_all_campaigns_is_refused_of_one(world: World, path: str, value: Any) -> None:
    bodies = [types_pb2.Script(language="en", text="Hello")]
    step = campaigns_pb2.Step(step_id="sms", channel=campaigns_pb2.STEP_CHANNEL_SMS)
    step.variants.add(variant_id="a", bodies=bodies)
    phase = campaigns_pb2.Phase(phase_id="invite", kind=campaigns_pb2.PHASE_KIND_INVITE, steps=[step])
    phase.period.start_time.seconds, phase.period.end_time.seconds = 1, 2
    goal = campaigns_pb2.Goal(phase_id="invite", metric=campaigns_pb2.GOAL_METRIC_BOUGHT, target=1)
    sound = campaigns_pb2.Campaign(display_name="s", segment="segments/s", phases=[phase], goals=[goal])
    ask = campaigns_pb2.CreateCampaignRequest(campaign=sound, validate_only=True)
    await world.campaigns.CreateCampaign(ask)
    found = await refused(world.campaigns.CreateCampaign(changed(ask, f"campaign.{path}", value)))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", [f"campaign.{field_of(path)}"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pacing_mode", 99),
        ("retry_rules.0.result", 99),
        ("quiet_hours.0.channels.0", 99),
        ("retry_rules.0.wait", AGES),
        ("scripts.0.text", "x" * 2_001),
        *(("abandon_window", span) for span in (AGES, Duration(seconds=-60))),
    ],
)
async def test_what_would_stop_all_calls_is_refused_of_one_list(world: World, path: str, value: Any) -> None:
    sound = outbound_pb2.ContactList(display_name="spring", scripts=[{"language": "en", "text": "Hello"}])
    sound.retry_rules.add(result=outbound_pb2.OUTBOUND_RESULT_BUSY, attempts_max=2)
    sound.quiet_hours.add(start_minute=1, end_minute=2, channels=[campaigns_pb2.STEP_CHANNEL_OUTBOUND_CALL])
    ask = outbound_pb2.CreateContactListRequest(contact_list=sound)
    await world.outbound.CreateContactList(ask)
    found = await refused(world.outbound.CreateContactList(changed(ask, f"contact_list.{path}", value)))
    assert found == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        [f"contact_list.{field_of(path)}"],
    )


async def test_values_of_other_releases_are_refused_by_name(world: World) -> None:
    policy = campaigns_pb2.ContactPolicy(name="contactPolicy")
    policy.frequency_caps.add(channel=99, touches_max=1, days=1)  # type: ignore[arg-type]
    policy.quiet_hours.add(start_minute=1, end_minute=2, channels=[99])  # type: ignore[list-item]
    change = campaigns_pb2.UpdateContactPolicyRequest(contact_policy=policy)
    assert (await refused(world.campaigns.UpdateContactPolicy(change)))[2] == [
        "contact_policy.frequency_caps[0].channel",
        "contact_policy.quiet_hours[0].channels[0]",
    ]
    row = Row(id="spring", content={"resource": {}}, keys={"state": 1})
    world.store.shelves.insert(CAMPAIGNS, row, START)
    answer = campaigns_pb2.RecordCampaignResponseRequest(
        campaign="campaigns/spring",
        customer="customers/c1",
        response=99,  # type: ignore[arg-type]
    )
    assert (await refused(world.campaigns.RecordCampaignResponse(answer)))[2] == ["response"]
    listed = campaigns_pb2.ListCampaignContactsRequest(
        parent="campaigns/spring",
        response=99,  # type: ignore[arg-type]
    )
    assert (await refused(world.campaigns.ListCampaignContacts(listed)))[2] == ["response"]
    report = reports_pb2.GetProfitReportRequest(dimensions=[99])  # type: ignore[list-item]
    report.interval.start_time.seconds, report.interval.end_time.seconds = 1, 2
    assert (await refused(world.reports.GetProfitReport(report)))[2] == ["dimensions"]
    question = surveys_pb2.Question(
        question_id="q", texts=[words("?")], kind=surveys_pb2.QUESTION_KIND_SCALE, scale_max=5
    )
    endless = surveys_pb2.Survey(display_name="s", questions=[question], time_limit=AGES)
    create = surveys_pb2.CreateSurveyRequest(survey=endless)
    assert (await refused(world.surveys.CreateSurvey(create)))[2] == ["survey.time_limit"]


async def test_who_was_put_off_since_is_nobodys_though_asked_for_again(world: World) -> None:
    await outbound_list(world, "+8613800138000")
    ask = outbound_pb2.NextContactsRequest(
        holder="agent-1", max_contacts=1, request_id="6f1c1c5e-5c0f-4c5b-9a57-0d2f0f4f7a11"
    )
    assert (await world.outbound.NextContacts(ask)).contacts
    world.clock.advance(5.5 * 3_600)  # 22:30 there, and the lease is over
    other = outbound_pb2.NextContactsRequest(holder="agent-2", max_contacts=1)
    assert not (await world.outbound.NextContacts(other)).contacts
    assert not (await world.outbound.NextContacts(ask)).contacts


async def test_a_clock_that_there_is_not_is_refused_and_never_anothers(world: World) -> None:
    name = await outbound_list(world)
    contacts = [
        outbound_pb2.Contact(number="+12125550123", time_zone="America/NewYork"),
        outbound_pb2.Contact(number="+12125550124", time_zone="America/New_York"),
        outbound_pb2.Contact(number="+12125550125", customer="customers/c1"),
    ]
    world.store.save_profile(Profile(customer="c1", time_zone="America/NewYork", crm_version=1))

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent=name, contacts=contacts)

    found = await world.outbound.ImportContacts(batches())
    assert [(one.index, one.field, one.code) for one in found.rejected] == [(0, "time_zone", "INVALID_FIELD")]
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=9)
    assert not (await world.outbound.NextContacts(ask)).contacts, "05:00 in New York, 17:00 in Shanghai"


@pytest.mark.parametrize(("attempts", "called"), [(0, 4), (2, 2)])
async def test_who_asks_to_be_called_back_is_so_often_as_the_rule_says(
    world: World, attempts: int, called: int
) -> None:
    name = await outbound_list(world, "+8613800138000")
    if attempts:
        changed_list = outbound_pb2.ContactList(name=name)
        changed_list.retry_rules.add(result=outbound_pb2.OUTBOUND_RESULT_CALL_BACK, attempts_max=attempts)
        await world.outbound.UpdateContactList(
            outbound_pb2.UpdateContactListRequest(contact_list=changed_list)
        )
    ask, calls = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=1), 0
    for _ in range(4):
        for contact in (await world.outbound.NextContacts(ask)).contacts:
            calls += 1
            done = outbound_pb2.RecordResultRequest(
                contact=contact.name,
                holder="agent-1",
                attempt=contact.attempt,
                result=outbound_pb2.OUTBOUND_RESULT_CALL_BACK,
                call_back_time=Timestamp(seconds=1),
            )
            await world.outbound.RecordResult(done)
    assert calls == called


async def test_what_was_noted_of_a_call_is_seen_by_who_calls_next(world: World) -> None:
    contact = outbound_pb2.Contact(number="+8613800138000", note="Speaks slowly")
    await outbound_list(world, contact)
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=1)
    (found,) = (await world.outbound.NextContacts(ask)).contacts
    done = outbound_pb2.RecordResultRequest(
        contact=found.name,
        holder="agent-1",
        attempt=1,
        result=outbound_pb2.OUTBOUND_RESULT_CALL_BACK,
        call_back_time=Timestamp(seconds=1),
        note="Wants the blue one",
    )
    for _ in range(2):
        await world.outbound.RecordResult(done)
    (again,) = (await world.outbound.NextContacts(ask)).contacts
    assert again.note == "Speaks slowly\nWants the blue one"


async def test_quiet_hours_are_so_many_at_most_and_say_when(world: World) -> None:
    never = outbound_pb2.ContactList(display_name="all day, or never?")
    never.quiet_hours.add(start_minute=60, end_minute=60)
    create = outbound_pb2.CreateContactListRequest(contact_list=never)
    unsaid = (await refused(world.outbound.CreateContactList(create)))[2]
    policy = campaigns_pb2.ContactPolicy(name="contactPolicy", quiet_hours=never.quiet_hours)
    change = campaigns_pb2.UpdateContactPolicyRequest(contact_policy=policy)
    assert [unsaid, (await refused(world.campaigns.UpdateContactPolicy(change)))[2]] == [
        ["contact_list.quiet_hours[0].end_minute"],
        ["contact_policy.quiet_hours[0].end_minute"],
    ]
    # Where an earlier release took it, everything can be stopped all the same.
    kept = {"resource": {"quiet_hours": [{"start_minute": 60, "end_minute": 60}]}}
    world.store.shelves.insert(CONTACT_POLICY, Row(id="contactPolicy", content=kept), START)
    stop = campaigns_pb2.ContactPolicy(name="contactPolicy", halted=True)
    halted = campaigns_pb2.UpdateContactPolicyRequest(contact_policy=stop)
    assert (await world.campaigns.UpdateContactPolicy(halted)).halted
    many = outbound_pb2.ContactList(display_name="many")
    for minute in range(51):
        many.quiet_hours.add(start_minute=minute, end_minute=minute + 1)
    create = outbound_pb2.CreateContactListRequest(contact_list=many)
    assert (await refused(world.outbound.CreateContactList(create)))[2] == ["contact_list.quiet_hours"]


async def test_public_holidays_are_quiet_where_the_policy_says_so(grpc_server: Any) -> None:
    # 10:00 on National Day in Shanghai.
    clock, store = FakeClock(datetime(2025, 10, 1, 2, tzinfo=UTC)), MemoryStore()
    services = bindings(MarketingSettings(), store, store, clock, store.shelves, MemoryTouches())
    server = await grpc_server(services, scopes=SCOPES)
    async with grpc.aio.insecure_channel(server.address) as channel:
        world = World(channel, clock, store, MemoryTouches())
        await outbound_list(world, "+8613800138000")
        campaigns = campaigns_pb2_grpc.CampaignServiceStub(channel)
        quiet = campaigns_pb2.ContactPolicy(name="contactPolicy", holidays_quiet=True)
        await campaigns.UpdateContactPolicy(campaigns_pb2.UpdateContactPolicyRequest(contact_policy=quiet))
        ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
        assert not (await world.outbound.NextContacts(ask)).contacts
        quiet.holidays_quiet = False
        mask = FieldMask(paths=["holidays_quiet"])
        request = campaigns_pb2.UpdateContactPolicyRequest(contact_policy=quiet, update_mask=mask)
        await campaigns.UpdateContactPolicy(request)
        world.clock.advance(24 * 3_600)
        assert len((await world.outbound.NextContacts(ask)).contacts) == 1


def test_choices_and_tariffs_are_held_to_their_limits() -> None:
    long = "x" * 300_000
    choice = surveys_pb2.Choice(choice_id="a/b", texts=[words(long)], score=2)
    question = surveys_pb2.Question(
        question_id="q1",
        texts=[words("Which?")],
        kind=surveys_pb2.QUESTION_KIND_SINGLE_CHOICE,
        choices=[surveys_pb2.Choice(choice_id="a", texts=[words("yes")]), choice],
    )
    survey = surveys_pb2.Survey(display_name="after the call", questions=[question])
    at = "questions[0].choices[1]"
    fields = {field for field, _ in surveys_servicer.survey_problems(survey)}
    assert fields == {f"{at}.choice_id", f"{at}.texts[0].text", f"{at}.score"}
    tariff = savings_pb2.Tariff(
        titles=[words("Plan")],
        kind=savings_pb2.TARIFF_KIND_PLAN,
        monthly_fee=cny("10"),
        product="a\0b",
        audience=types_pb2.Audience(tiers=[long]),
    )
    problems = savings_servicer.tariff_problems(tariff, "CNY")
    assert {field.partition("[")[0] for field, _ in problems} == {"product", "audience.tiers"}


async def test_a_survey_takes_closed_answers_inside_its_time_limit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = surveys_pb2.Question(
        question_id="q1",
        texts=[words("How was it?")],
        kind=surveys_pb2.QUESTION_KIND_SCALE,
        scale_min=1,
        scale_max=5,
        required=True,
        scored=True,
    )
    survey = surveys_pb2.Survey(
        display_name="after the call", questions=[question], time_limit=Duration(seconds=60)
    )
    made = await world.surveys.CreateSurvey(surveys_pb2.CreateSurveyRequest(survey=survey, survey_id="s1"))
    start = surveys_pb2.StartSurveyResponseRequest(survey=made.name, customer="customers/c1")
    assert (await refused(world.surveys.StartSurveyResponse(start)))[1] == "SURVEY_STATE"
    await world.surveys.OpenSurvey(surveys_pb2.OpenSurveyRequest(name=made.name))
    first, late = [await world.surveys.StartSurveyResponse(start) for _ in range(2)]

    def answer(name: str, value: int) -> Any:
        answers = [surveys_pb2.Answer(question_id="q1", value=value)]
        return world.surveys.AnswerSurvey(surveys_pb2.AnswerSurveyRequest(name=name, answers=answers))

    assert (await refused(answer(first.name, 6)))[2] == ["answers[0].value"]
    done = await answer(first.name, 4)
    assert (done.completed, done.satisfaction) == (True, 0.75)
    assert (await refused(answer(first.name, 5)))[1] == "RESPONSE_COMPLETED"
    world.clock.advance(61)
    assert (await refused(answer(late.name, 5)))[1] == "TIME_LIMIT_PASSED"
    results = await world.surveys.GetSurveyResults(surveys_pb2.GetSurveyResultsRequest(survey=made.name))
    assert (results.started_count, results.completed_count, results.satisfaction) == (2, 1, 0.75)
    assert dict(results.questions[0].counts) == {"4": 1} and results.questions[0].mean == 4
    assert not results.truncated
    monkeypatch.setattr(surveys_servicer, "COUNTED_MAX", 1)
    asked = surveys_pb2.GetSurveyResultsRequest(survey=made.name)
    cut = await world.surveys.GetSurveyResults(asked)
    assert (cut.started_count, cut.truncated) == (1, True)
    asked.interval.end_time.FromDatetime(START + timedelta(seconds=60))
    whole = await world.surveys.GetSurveyResults(asked)
    assert (whole.started_count, whole.completed_count, whole.truncated) == (1, 1, False)
    asked.interval.end_time.FromDatetime(START)
    assert (await world.surveys.GetSurveyResults(asked)).started_count == 0
    asked.interval.start_time.FromDatetime(START - timedelta(days=401))
    assert (await refused(world.surveys.GetSurveyResults(asked)))[2] == ["interval"]


async def test_the_profit_report_adds_up_and_can_be_drawn(world: World) -> None:
    made = leads_pb2.Lead(customer="customers/c1", product="tv", region="regions/beijing")
    partner = leads_pb2.Partner(display_name="p", capacity=9)
    await world.leads.CreatePartner(leads_pb2.CreatePartnerRequest(partner=partner, partner_id="p"))
    lead = await world.leads.CreateLead(leads_pb2.CreateLeadRequest(lead=made))
    await world.leads.WinLead(leads_pb2.WinLeadRequest(name=lead.name, value=cny("500")))
    cost = reports_pb2.Cost(cost_id="k1", amount=cny("120.50"), region="regions/beijing")
    for _ in range(2):
        await world.reports.RecordCost(reports_pb2.RecordCostRequest(cost=cost))
    interval = common_pb2.Interval(start_time=Timestamp(), end_time=Timestamp())
    interval.start_time.FromDatetime(START - timedelta(days=1))
    interval.end_time.FromDatetime(START + timedelta(days=1))
    request = reports_pb2.GetProfitReportRequest(
        interval=interval,
        dimensions=[reports_pb2.REPORT_DIMENSION_REGION, reports_pb2.REPORT_DIMENSION_MONTH],
        time_zone="Asia/Shanghai",
    )
    report = await world.reports.GetProfitReport(request)
    assert [(list(row.keys), row.profit.amount) for row in report.rows] == [
        (["regions/beijing", "2025-06"], "379.50")
    ]
    assert (report.total.revenue.amount, report.total.cost.amount) == ("500", "120.50")
    assert report.examined_count == 2
    chart = await world.reports.RenderProfitChart(
        reports_pb2.RenderProfitChartRequest(report=request, width_pixels=400, height_pixels=300)
    )
    assert chart.content.startswith(b"\x89PNG\r\n") and chart.content_type == "image/png"
    early = reports_pb2.GetProfitReportRequest(interval=common_pb2.Interval(end_time=interval.start_time))
    early.interval.start_time.FromDatetime(START - timedelta(days=2))
    empty = reports_pb2.RenderProfitChartRequest(report=early)
    assert (await refused(world.reports.RenderProfitChart(empty)))[1] == "NOTHING_TO_DRAW"
    for bad, field in (
        (reports_pb2.RenderProfitChartRequest(), "report.interval"),
        (reports_pb2.RenderProfitChartRequest(report=request, height_pixels=1), "height_pixels"),
        (reports_pb2.RenderProfitChartRequest(report=request, width_pixels=1), "width_pixels"),
    ):
        assert (await refused(world.reports.RenderProfitChart(bad)))[2] == [field]
    euro = reports_pb2.Cost(cost_id="k2", amount=common_pb2.Money(currency_code="eur", amount="1"))
    told = await refused(world.reports.RecordCost(reports_pb2.RecordCostRequest(cost=euro)))
    assert told[2] == ["cost.amount.currency_code"]


async def test_a_page_token_with_a_key_of_another_shape_is_refused(world: World) -> None:
    report = reports_pb2.GetProfitReportRequest()
    report.interval.start_time.seconds, report.interval.end_time.seconds = 1, 2
    for call, request, keys in (
        (world.leads.ListLeads, leads_pb2.ListLeadsRequest(), ("x", 7, ["x", 0.5], [0.5, "x", "y"])),
        (world.leads.ListPartners, leads_pb2.ListPartnersRequest(), (7, ["x", "y"])),
        (world.reports.GetProfitReport, report, ("x", 0.5, [7, "x"])),
    ):
        page = Page(limit=1, fingerprint=request_fingerprint(request))
        for key in keys:
            request.page_token = page.next_token(key)
            assert (await refused(call(request)))[1:] == ("INVALID_ARGUMENT", ["page_token"]), key


@pytest.mark.parametrize("paid", [True, False])
async def test_a_report_over_touches_that_are_not_kept_says_so(world: World, paid: bool) -> None:
    over = START - timedelta(days=401)
    step = {"step_id": "sms", **({"unit_cost": {"currency_code": "CNY", "amount": "1"}} if paid else {})}
    phase = {"phase_id": "invite", "period": {"end_time": f"{over:%Y-%m-%dT%H:%M:%SZ}"}, "steps": [step]}
    for id, state in (
        ("spring", campaigns_pb2.CAMPAIGN_STATE_COMPLETED),
        ("summer", campaigns_pb2.CAMPAIGN_STATE_RUNNING),
    ):
        row = Row(id=id, content={"resource": {"phases": [phase]}}, keys={"state": state})
        world.store.shelves.insert(CAMPAIGNS, row, START)
    since = (START - timedelta(days=400)).replace(tzinfo=None)
    for days, missing in ((402, paid), (401, paid), (400.5, False), (399, False)):
        request = reports_pb2.GetProfitReportRequest()
        request.interval.start_time.FromDatetime(START - timedelta(days=days))
        request.interval.end_time.FromDatetime(START - timedelta(days=days - 300))
        report = await world.reports.GetProfitReport(request)
        assert report.HasField("touches_kept_since") == missing, days
        assert not missing or report.touches_kept_since.ToDatetime() == since


async def test_a_campaigns_row_shows_what_it_earned_and_cost(world: World) -> None:
    fibre = offer(id="fibre", product="fibre", value=cny_of("300"), unit_cost=cny_of("40"))
    world.store.insert_offer(fibre, (), request_key=None, fingerprint=None)
    content = {"resource": {"offer": "offers/fibre"}}
    world.store.shelves.insert(CAMPAIGNS, Row(id="spring", content=content, keys={"state": 1}), START)
    for number in range(2):
        world.store.campaign_sales.append(
            Sale(
                campaign="spring",
                customer=f"c{number}",
                region="regions/beijing",
                worth=Decimal(300),
                cost=Decimal(40),
                at=START,
            )
        )
    # The first of them took it in a call: one sale, which is the campaign's.
    asked = recommendations_pb2.RecommendRequest(customer="customers/c0")
    asked.context.agent, asked.context.contact_reason = "agents/a1", "billing"
    decision = await world.recommend.Recommend(asked)
    taken = recommendations_pb2.RecordOutcomeRequest(
        decision=decision.name, offer="offers/fibre", result=types_pb2.OUTCOME_RESULT_ACCEPTED
    )
    await world.recommend.RecordOutcome(taken)
    request = reports_pb2.GetProfitReportRequest(
        dimensions=[reports_pb2.REPORT_DIMENSION_CAMPAIGN, reports_pb2.REPORT_DIMENSION_CONTACT_REASON]
    )
    request.interval.start_time.FromDatetime(START - timedelta(days=1))
    request.interval.end_time.FromDatetime(START + timedelta(days=1))
    report = await world.reports.GetProfitReport(request)
    rows = [(list(row.keys), row.accepted_count, row.revenue.amount, row.cost.amount) for row in report.rows]
    assert rows == [
        (["campaigns/spring", ""], 1, "300", "40"),
        (["campaigns/spring", "billing"], 1, "300", "40"),
    ]


async def test_a_report_is_as_large_as_its_span(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fibre = offer(id="fibre", product="fibre")
    world.store.insert_offer(fibre, (), request_key=None, fingerprint=None)
    for number in range(6):
        asked = recommendations_pb2.RecommendRequest(customer=f"customers/c{number}")
        await world.recommend.Recommend(asked)
        world.clock.advance(86_400)
    monkeypatch.setattr(reports_servicer, "PAGE", 2)
    monkeypatch.setattr(reports_servicer, "DECISIONS_MAX", 3)
    request = reports_pb2.GetProfitReportRequest()
    request.interval.start_time.FromDatetime(START + timedelta(hours=12))
    request.interval.end_time.FromDatetime(START + timedelta(days=3, hours=12))
    assert (await world.reports.GetProfitReport(request)).total.offered_count == 3
    request.interval.end_time.FromDatetime(START + timedelta(days=4, hours=12))
    assert (await refused(world.reports.GetProfitReport(request)))[1] == "TOO_MUCH_TO_REPORT"
    monkeypatch.setattr(reports_servicer, "DECISIONS_MAX", 4)
    assert (await world.reports.GetProfitReport(request)).examined_count == 4

    def slow(*_: Any) -> Any:
        raise TooLong

    monkeypatch.setattr(world.store, "offered", slow)
    assert (await refused(world.reports.GetProfitReport(request)))[1] == "TOO_MUCH_TO_REPORT"


async def test_nobody_with_an_open_complaint_is_called_and_the_number_tells_the_clock(world: World) -> None:
    world.store.save_profile(Profile(customer="c1", crm_version=1))
    world.store.save_complaint(Complaint(ticket="t1", customer="c1", number="", open=True, version=1))
    await outbound_list(world)
    contacts = [
        outbound_pb2.Contact(number="+8613800138001", customer="customers/c1"),
        outbound_pb2.Contact(number="+12125550123"),  # 05:00 in New York
        # Complained as a caller whom nobody knew.
        outbound_pb2.Contact(number="+8613800138009"),
    ]
    unknown = Complaint(ticket="t2", customer="", number="+8613800138009", open=True, version=1)
    world.store.save_complaint(unknown)

    async def batches() -> AsyncIterator[outbound_pb2.ImportContactsRequest]:
        yield outbound_pb2.ImportContactsRequest(parent="contactLists/autumn", contacts=contacts)

    await world.outbound.ImportContacts(batches())
    ask = outbound_pb2.NextContactsRequest(holder="agent-1", max_contacts=10)
    assert not (await world.outbound.NextContacts(ask)).contacts
    world.clock.advance(4 * 3_600)  # 21:00 in Shanghai, 09:00 in New York
    (found,) = (await world.outbound.NextContacts(ask)).contacts
    assert found.number == "+12125550123"
    world.store.save_complaint(Complaint(ticket="t1", customer="c1", number="", open=False, version=2))
    world.clock.advance(20 * 3_600)  # 17:00 in Shanghai, a day later
    numbers = {one.number for one in (await world.outbound.NextContacts(ask)).contacts}
    assert "+8613800138001" in numbers
