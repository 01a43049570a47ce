"""Marketing's processes as partners and the bus meet them."""

from __future__ import annotations

import itertools
import secrets
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.marketing.v1 import (
    leads_pb2,
    leads_pb2_grpc,
    offers_pb2,
    offers_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
    types_pb2,
)
from callmesh.tickets.v1 import events_pb2 as ticket_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event, topology
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.publisher import Outcome, Publisher
from chassis.testing.waiting import wait_until

pytestmark = pytest.mark.integration

pb, rec = offers_pb2, recommendations_pb2
NUMBER = "+8613800138000"
#: Who have broadband.
CUSTOMERS = 51


class Stubs:
    """Marketing's services on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.offers = offers_pb2_grpc.OfferServiceStub(channel)
        self.recommendations = recommendations_pb2_grpc.RecommendationServiceStub(channel)
        self.leads = leads_pb2_grpc.LeadServiceStub(channel)


def connect(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])


@pytest.fixture
def stubs(start_process: Callable[..., Any]) -> Iterator[Stubs]:
    """Of a server that has never ranked anything."""
    _, port = start_process("marketing", "server")
    with connect(port) as channel:
        yield Stubs(channel)


@pytest.fixture
def shared(shared_server: int) -> Iterator[Stubs]:
    """For tests that ask for no recommendation."""
    with connect(shared_server) as channel:
        yield Stubs(channel)


def failure(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, list[str]]:
    """Status, reason and bad fields of a call that must fail, with exactly one ErrorInfo."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    infos, fields = [], []
    for detail in rpc_status.from_call(error.value).details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            infos.append(info)
        elif detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    (info,) = infos
    assert info.domain == "callmesh.marketing"
    return error.value.code(), info.reason, fields


def text(zh: str, en: str) -> list[types_pb2.LocalizedText]:
    return [
        types_pb2.LocalizedText(language="zh", text=zh),
        types_pb2.LocalizedText(language="en", text=en),
    ]


def an_offer(product: str = "tv", **fields: Any) -> pb.Offer:
    return pb.Offer(
        titles=text("家庭电视", "Family TV"),
        product=product,
        price=common_pb2.Money(currency_code="CNY", amount="29.90"),
        scripts=[types_pb2.Script(language="zh", text="要不要试试家庭电视？👩‍👩‍👧")],
        **fields,
    )


def create(stubs: Stubs, offer_id: str, offer: pb.Offer, **fields: Any) -> pb.Offer:
    request = pb.CreateOfferRequest(offer=offer, offer_id=offer_id, **fields)
    return stubs.offers.CreateOffer(request, timeout=30)


def publish(stubs: Stubs, offer_id: str, offer: pb.Offer) -> pb.Offer:
    created = create(stubs, offer_id, offer)
    return stubs.offers.PublishOffer(pb.PublishOfferRequest(name=created.name, etag=created.etag), timeout=30)


def test_an_offer_from_draft_to_its_end(shared: Stubs) -> None:
    request_id = str(uuid.uuid4())
    offer = create(shared, "family-tv", an_offer(stock=3, tags=["b", "a"]), request_id=request_id)
    assert create(shared, "family-tv", an_offer(stock=3, tags=["b", "a"]), request_id=request_id) == offer
    assert (offer.name, offer.state, offer.stock, list(offer.tags)) == (
        "offers/family-tv",
        pb.OFFER_STATE_DRAFT,
        3,
        ["a", "b"],
    )
    assert shared.offers.GetOffer(pb.GetOfferRequest(name=offer.name), timeout=30) == offer
    patch = pb.Offer(name=offer.name, etag=offer.etag, product="tv.4k", repeatable=True)
    update = pb.UpdateOfferRequest(offer=patch, update_mask=FieldMask(paths=["product", "stock"]))
    changed = shared.offers.UpdateOffer(update, timeout=30)
    assert (changed.product, changed.HasField("stock"), changed.repeatable) == ("tv.4k", False, False)
    assert failure(lambda: shared.offers.UpdateOffer(update, timeout=30))[:2] == (
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    )
    published = shared.offers.PublishOffer(pb.PublishOfferRequest(name=offer.name), timeout=30)
    assert published.state == pb.OFFER_STATE_PUBLISHED and published.HasField("publish_time")
    delete = pb.DeleteOfferRequest(name=offer.name)
    assert failure(lambda: shared.offers.DeleteOffer(delete, timeout=30))[1] == "OFFER_PUBLISHED"
    retired = shared.offers.RetireOffer(pb.RetireOfferRequest(name=offer.name), timeout=30)
    assert retired.state == pb.OFFER_STATE_RETIRED
    page = shared.offers.ListOfferRevisions(
        pb.ListOfferRevisionsRequest(name=offer.name, page_size=3), timeout=10
    )
    assert [o.revision for o in page.offers] == [4, 3, 2] and page.next_page_token
    # That it is retired has to be told first, and no worker runs that could.
    assert failure(lambda: shared.offers.DeleteOffer(delete, timeout=30))[:2] == (
        grpc.StatusCode.UNAVAILABLE,
        "EVENTS_WAITING",
    )
    draft = create(shared, "draft", an_offer())
    shared.offers.DeleteOffer(pb.DeleteOfferRequest(name=draft.name), timeout=30)
    get = pb.GetOfferRequest(name=draft.name)
    assert failure(lambda: shared.offers.GetOffer(get, timeout=30))[:2] == (
        grpc.StatusCode.NOT_FOUND,
        "OFFER_NOT_FOUND",
    )


def test_bad_offers_are_refused_field_by_field(shared: Stubs) -> None:
    bad = an_offer(product="no spaces please", stock=-1, excluded_products=["x/y"])
    bad.price.amount = "1e5"
    bad.titles[1].language = "zh"
    code, _, fields = failure(lambda: create(shared, "bad", bad))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert fields == ["offer.price.amount", "offer.product", "offer.excluded_products[0]"]
    bad = an_offer(product="x", stock=-1, eligibility_rule="")
    bad.price.currency_code = "USD"
    bad.titles[1].language = "zh"
    bad.validity.start_time.FromDatetime(datetime(2025, 1, 2, tzinfo=UTC))
    bad.validity.end_time.FromDatetime(datetime(2025, 1, 1, tzinfo=UTC))
    assert failure(lambda: create(shared, "bad", bad))[2] == [
        "offer.titles[1].language",
        "offer.price.currency_code",
        "offer.validity.end_time",
        "offer.stock",
    ]
    assert failure(lambda: create(shared, "bad", an_offer(eligibility_rule="tear == 'x'")))[2] == [
        "offer.eligibility_rule"
    ]
    assert failure(lambda: create(shared, "x" * 129, an_offer()))[2] == ["offer_id"]
    assert failure(lambda: create(shared, "a/b", an_offer()))[2] == ["offer_id"]
    create(shared, "taken", an_offer())
    assert failure(lambda: create(shared, "taken", an_offer()))[0] == grpc.StatusCode.ALREADY_EXISTS
    listing = pb.ListOffersRequest(page_size=-1)
    assert failure(lambda: shared.offers.ListOffers(listing, timeout=30))[2] == ["page_size"]
    listing = pb.ListOffersRequest(page_token="made up")
    assert failure(lambda: shared.offers.ListOffers(listing, timeout=30))[2] == ["page_token"]
    unknown = pb.UpdateOfferRequest(
        offer=pb.Offer(name="offers/taken"), update_mask=FieldMask(paths=["state"])
    )
    assert failure(lambda: shared.offers.UpdateOffer(unknown, timeout=30))[2] == ["update_mask"]
    etag = pb.PublishOfferRequest(name="offers/taken", etag="mine")
    assert failure(lambda: shared.offers.PublishOffer(etag, timeout=30))[2] == ["etag"]


def test_offers_are_paged_by_id(shared: Stubs) -> None:
    for index in range(5):
        create(shared, f"o{index}", an_offer())
    seen, token = [], ""
    while True:
        page = shared.offers.ListOffers(pb.ListOffersRequest(page_size=2, page_token=token), timeout=30)
        seen += [offer.name for offer in page.offers]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"offers/o{index}" for index in range(5)]


def recommend(stubs: Stubs, **fields: Any) -> rec.Decision:
    return stubs.recommendations.Recommend(rec.RecommendRequest(**fields), timeout=30)


def record(stubs: Stubs, decision: rec.Decision, offer: str, result: int, **fields: Any) -> rec.Decision:
    request = rec.RecordOutcomeRequest(decision=decision.name, offer=offer, result=result, **fields)
    return stubs.recommendations.RecordOutcome(request, timeout=30)


def test_recommending_and_closing(stubs: Stubs) -> None:
    publish(stubs, "tv", an_offer(stock=1))
    publish(stubs, "phone", an_offer(product="phone"))
    context = rec.CallContext(call_id="k1", channel=common_pb2.CHANNEL_VOICE, agent="agents/7")
    decision = recommend(stubs, customer="customers/c1", caller_number=NUMBER, context=context, max_offers=1)
    assert [o.offer for o in decision.offers] == ["offers/phone"]
    best = decision.offers[0]
    assert {t.language for t in best.reason.texts} == {"zh", "en"} and 0 < best.acceptance_probability < 1
    assert (
        stubs.recommendations.GetDecision(rec.GetDecisionRequest(name=decision.name), timeout=30) == decision
    )
    accepted = record(stubs, decision, "offers/phone", types_pb2.OUTCOME_RESULT_ACCEPTED)
    assert accepted.state == rec.DECISION_STATE_CLOSED and accepted.outcome.agent == "agents/7"
    assert record(stubs, decision, "offers/phone", types_pb2.OUTCOME_RESULT_ACCEPTED) == accepted
    again = lambda: record(stubs, decision, "offers/phone", types_pb2.OUTCOME_RESULT_DECLINED)  # noqa: E731
    assert failure(again)[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "DECISION_CLOSED")
    profile = stubs.recommendations.GetProfile(rec.GetProfileRequest(name="customers/c1/profile"), timeout=30)
    assert list(profile.products) == ["phone"]
    purchases = stubs.recommendations.ListPurchases(
        rec.ListPurchasesRequest(customer="customers/c1"), timeout=10
    )
    assert [p.product for p in purchases.purchases] == ["phone"]
    assert [o.offer for o in recommend(stubs, customer="customers/c1").offers] == ["offers/tv"]
    listed = stubs.recommendations.ListDecisions(
        rec.ListDecisionsRequest(customer="customers/c1", page_size=1), timeout=10
    )
    assert listed.decisions[0].name > decision.name and listed.next_page_token


def test_many_hands_on_the_last_units(stubs: Stubs) -> None:
    publish(stubs, "tv", an_offer(stock=5))
    decisions = [recommend(stubs, customer=f"customers/c{index}") for index in range(20)]

    def take(decision: rec.Decision) -> str:
        try:
            record(stubs, decision, "offers/tv", types_pb2.OUTCOME_RESULT_ACCEPTED)
            return "OK"
        except grpc.RpcError as error:
            return str(error.code().name)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(take, decisions))
    assert sorted(results) == ["FAILED_PRECONDITION"] * 15 + ["OK"] * 5
    offer = stubs.offers.GetOffer(pb.GetOfferRequest(name="offers/tv"), timeout=30)
    assert (offer.units_used, offer.revision) == (5, 2)
    nothing = types_pb2.NO_OFFER_REASON_NOTHING_ELIGIBLE
    # Somebody else each time: one customer would soon have been asked often enough.
    callers = (f"customers/late-{number}" for number in itertools.count())
    wait_until(
        lambda: recommend(stubs, customer=next(callers)).no_offer_reason == nothing,
        what="a sold-out offer is not suggested any more",
    )


def test_bad_requests_name_their_fields(shared: Stubs) -> None:
    ask = shared.recommendations
    request = rec.RecommendRequest(
        customer="people/1", caller_number="13800138000", max_offers=99, context=rec.CallContext(agent="7")
    )
    assert failure(lambda: ask.Recommend(request, timeout=30))[2] == [
        "customer",
        "caller_number",
        "max_offers",
        "context.agent",
    ]
    outcome = rec.RecordOutcomeRequest(decision="decisions/none", result=types_pb2.OUTCOME_RESULT_ACCEPTED)
    assert failure(lambda: ask.RecordOutcome(outcome, timeout=30))[2] == ["offer"]
    outcome.offer = "offers/tv"
    assert failure(lambda: ask.RecordOutcome(outcome, timeout=30))[1] == "DECISION_NOT_FOUND"
    purchases = [rec.Purchase(purchase_id="1", customer="customers/c1", product="tv")]
    purchases.append(rec.Purchase(purchase_id="2", customer="customers/c1", product="t v"))
    purchases.append(rec.Purchase(purchase_id="3", product="tv"))
    batch = rec.RecordPurchasesRequest(purchases=purchases)
    assert failure(lambda: ask.RecordPurchases(batch, timeout=30))[2] == [
        "purchases[1].product",
        "purchases[2].customer",
    ]
    profile = rec.GetProfileRequest(name="customers/c1/profile")
    assert failure(lambda: ask.GetProfile(profile, timeout=30))[1] == "PROFILE_NOT_FOUND"
    imported = ask.ImportPurchases(iter([rec.ImportPurchasesRequest(purchases=purchases)] * 2), timeout=30)
    assert (imported.recorded_count, imported.duplicate_count, imported.rejected_count) == (1, 1, 4)
    assert [item.index for item in imported.rejected] == [1, 2, 4, 5]
    unknown = leads_pb2.GetLeadRequest(name="leads/none")
    assert failure(lambda: shared.leads.GetLead(unknown, timeout=30))[:2] == (
        grpc.StatusCode.NOT_FOUND,
        "LEAD_NOT_FOUND",
    )


# the worker


class Bus:
    """What the other services would say, and an ear for what marketing says."""

    def __init__(self, amqp_uri: str) -> None:
        self._connection = open_connection(amqp_uri)
        self.channel = self._connection.channel()
        self.queue = f"test.{secrets.token_hex(6)}"
        self.channel.queue_declare(self.queue, exclusive=True)
        topology.declare_exchange(self.channel, "marketing")
        self.channel.queue_bind(self.queue, "marketing.events", "callmesh.marketing.v1.#")
        self.publisher = Publisher(amqp_uri, service="test")

    def say(self, message: Any, source: str, subject: str) -> None:
        event = Event.of(message, source=source, subject=subject, time=datetime.now(UTC))
        assert self.publisher.publish_events([event]) == [Outcome.PUBLISHED]

    def heard(self) -> list[Event]:
        found = []
        while (message := self.channel.basic_get(self.queue, no_ack=True)) is not None:
            found.append(Event.from_json(message.body))
        return found

    def close(self) -> None:
        self.publisher.close()
        close_quietly(self._connection)


@pytest.fixture
def bus(amqp_uri: str) -> Iterator[Bus]:
    made = Bus(amqp_uri)
    yield made
    made.close()


def complaint(phase: int, version: int) -> ticket_events.TicketSnapshot:
    return ticket_events.TicketSnapshot(
        ticket="tickets/t1",
        kind=ticket_pb2.TICKET_KIND_COMPLAINT,
        phase=phase,
        customer="customers/c1",
        version=version,
    )


def purchases() -> list[rec.Purchase]:
    """`CUSTOMERS` have broadband, 30 of them TV; 100 others have a phone."""
    counted = (("a", "x", "broadband", 50), ("b", "x", "tv", 30), ("c", "y", "phone", 100))
    found = [
        rec.Purchase(purchase_id=f"{kind}{index}", customer=f"customers/{who}{index}", product=product)
        for kind, who, product, count in counted
        for index in range(count)
    ]
    return [*found, rec.Purchase(purchase_id="own", customer="customers/c1", product="broadband")]


def customer_created() -> crm_events.CustomerCreated:
    snapshot = crm_events.CustomerSnapshot(
        customer="customers/c1",
        version=1,
        state=customers_pb2.CUSTOMER_STATE_ACTIVE,
        numbers=[NUMBER],
        tier=customers_pb2.TIER_GOLD,
        language="zh-CN",
    )
    return crm_events.CustomerCreated(customer=snapshot)


def await_model(stubs: Stubs) -> rec.Decision:
    """The recommendation once the model speaks for the customer, who is found by number."""
    # One call, however often it asks: each asking outside a call would be a contact, and tire the customer.
    context = rec.CallContext(call_id="k1")

    def spoken() -> Any:
        decision = recommend(stubs, caller_number=NUMBER, context=context)
        best = decision.offers[0] if decision.offers else None
        # One that was built while purchases were still coming in counts fewer.
        counted = best.reason.customer_count if best and best.reason.because_product == "broadband" else 0
        return decision if counted == CUSTOMERS else None

    return wait_until(spoken, 60, what="the model speaks for the customer found by number")


def check_complaint_silences(stubs: Stubs, bus: Bus) -> None:
    opened = ticket_events.TicketCreated(ticket=complaint(ticket_pb2.TICKET_PHASE_NEW, 1))
    bus.say(opened, "tickets", "tickets/t1")
    reason = types_pb2.NO_OFFER_REASON_OPEN_COMPLAINT
    context = rec.CallContext(call_id="k2")
    ask = lambda: recommend(stubs, customer="customers/c1", context=context)  # noqa: E731
    wait_until(
        lambda: ask().no_offer_reason == reason,
        30,
        what="nothing is offered while a complaint is open",
    )
    solved = ticket_events.TicketTransitioned(ticket=complaint(ticket_pb2.TICKET_PHASE_RESOLVED, 2))
    bus.say(solved, "tickets", "tickets/t1")
    wait_until(lambda: ask().offers, 30, what="offers after it")


def check_told(bus: Bus) -> None:
    events: list[Event] = []

    def told() -> bool:
        events.extend(bus.heard())
        kinds = {event.type.rsplit(".", 1)[1] for event in events}
        return kinds >= {"OfferPublished", "ModelActivated", "RecommendationMade", "OfferOutcomeRecorded"}

    wait_until(told, 30, what="the outcome is published, and what came before it")
    (outcome,) = [event for event in events if event.type.endswith("OfferOutcomeRecorded")]
    assert outcome.data["result"] == "OUTCOME_RESULT_ACCEPTED" and outcome.data["product"] == "tv"
    assert outcome.subject == "customers/c1"


def test_the_worker_hears_counts_and_tells(
    start_process: Callable[..., Any], amqp_uri: str, bus: Bus
) -> None:
    quick = {"AMQP_URI": amqp_uri, "MARKETING_BUILD_SECONDS": "0.2", "MARKETING_SWEEP_SECONDS": "0.2"}
    start_process("marketing.worker", "worker", **quick)
    server, port = start_process("marketing", "server")
    with connect(port) as channel:
        stubs = Stubs(channel)
        publish(stubs, "tv", an_offer())
        publish(stubs, "phone", an_offer(product="phone"))
        batch = rec.RecordPurchasesRequest(purchases=purchases())
        stubs.recommendations.RecordPurchases(batch, timeout=30)
        bus.say(customer_created(), "crm", "customers/c1")

        decision = await_model(stubs)
        assert decision.customer == "customers/c1" and decision.model.startswith("models/association-")
        reason = decision.offers[0].reason
        assert reason.customer_count == CUSTOMERS
        words = {t.language: t.text for t in reason.texts}
        assert words["en"] == "Customers with broadband often take Family TV: 59 % of 51."
        record(stubs, decision, "offers/tv", types_pb2.OUTCOME_RESULT_ACCEPTED)
        check_complaint_silences(stubs, bus)
        check_told(bus)
        server.send(signal.SIGTERM)
        wait_until(lambda: server.exit_code() is not None, 60, what="the server ends when told to")
        assert server.exit_code() == 0


def test_now_is_not_the_future(shared: Stubs) -> None:
    future = Timestamp()
    future.FromSeconds(int(time.time()) + 86_400)
    purchase = rec.Purchase(purchase_id="1", customer="customers/c1", product="tv", purchase_time=future)
    batch = rec.RecordPurchasesRequest(purchases=[purchase])
    assert failure(lambda: shared.recommendations.RecordPurchases(batch, timeout=30))[2] == [
        "purchases[0].purchase_time"
    ]
