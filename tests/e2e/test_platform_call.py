"""One real call all the way through four services, and what it leaves behind in each."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import Any

import pymongo
import pytest
from tests.e2e.platform_parties import (
    FOLLOW_UP_SECONDS,
    SOURCES,
    WAIT_SECONDS,
    Caller,
    Desktop,
    EventTap,
    Wire,
    connect,
    eventually,
    settled,
)

import crm.inbound
import marketing.inbound
import routing.inbound
import tickets.inbound
from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2, screen_pop_pb2, timeline_pb2
from callmesh.marketing.v1 import offers_pb2, recommendations_pb2, types_pb2
from callmesh.routing.v1 import call_pb2
from callmesh.tickets.v1 import ticket_pb2, ticket_service_pb2
from chassis.bus import Event
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(240)]

#: One number as three people type it, and as it is.
AS_REGISTERED, AS_DIALLED, AS_TYPED, E164 = (
    "010-6400 1001",
    "+86 10 6400 1001",
    "０１０　６４００－１００１",
    "+861064001001",
)
CUSTOMER = "customers/wang-fang"
#: Has what the customer has.
LIKE_MINDED = "customers/like-minded"
#: Customers who have both products, so that association finds the second from the first.
BASKETS = 12


async def furnish_marketing(wire: Wire) -> None:
    """Two offers, and a history in which who has a card often has the insurance as well."""
    for product, price in (("credit-card", "120.00"), ("travel-insurance", "80.00")):
        offer = offers_pb2.Offer(
            titles=[types_pb2.LocalizedText(language="zh", text=product)],
            product=product,
            price=common_pb2.Money(currency_code="CNY", amount=price),
            price_period=offers_pb2.PRICE_PERIOD_YEARLY,
            scripts=[types_pb2.Script(language="zh", text="推荐您了解一下。")],
        )
        await wire.offers.CreateOffer(offers_pb2.CreateOfferRequest(offer_id=product, offer=offer))
        await wire.offers.PublishOffer(offers_pb2.PublishOfferRequest(name=f"offers/{product}"))
    bought = [
        (f"customers/basket-{n}", p) for n in range(BASKETS) for p in ("credit-card", "travel-insurance")
    ]
    bought += [(f"customers/other-{n}", "current-account") for n in range(BASKETS)]
    bought += [(CUSTOMER, "credit-card"), (LIKE_MINDED, "credit-card")]
    await wire.recommendations.RecordPurchases(
        recommendations_pb2.RecordPurchasesRequest(
            purchases=[
                recommendations_pb2.Purchase(
                    purchase_id=f"{name[10:]}:{product}", customer=name, product=product
                )
                for name, product in bought
            ]
        )
    )


async def create_customer(wire: Wire) -> None:
    customer = customers_pb2.Customer(
        display_name="王芳",
        phone_numbers=[customers_pb2.PhoneNumber(number=AS_REGISTERED, primary=True)],
        tier=customers_pb2.TIER_GOLD,
        language="zh-CN",
        time_zone="Asia/Shanghai",
    )
    made = await wire.customers.CreateCustomer(
        customers_pb2.CreateCustomerRequest(customer_id=CUSTOMER[10:], customer=customer)
    )
    assert made.name == CUSTOMER and made.phone_numbers[0].number == E164


async def pop(wire: Wire, call_id: str) -> Any:
    return await wire.screen_pop.GetScreenPop(
        screen_pop_pb2.GetScreenPopRequest(phone_number=AS_TYPED, call_id=call_id), timeout=WAIT_SECONDS
    )


async def recommend(wire: Wire, customer: str, call_id: str) -> Any:
    """What marketing would offer to a customer in this call."""
    return await wire.recommendations.Recommend(
        recommendations_pb2.RecommendRequest(
            customer=customer,
            max_offers=1,
            context=recommendations_pb2.CallContext(
                call_id=call_id, channel=common_pb2.CHANNEL_VOICE, language="zh"
            ),
        ),
        timeout=WAIT_SECONDS,
    )


async def until_learned(wire: Wire) -> None:
    """Waits until offers are made by association: the worker builds that table from the history. Asked for
    another customer, because every question is logged.
    """

    async def look() -> bool:
        offers = (await recommend(wire, LIKE_MINDED, "learned")).offers
        return bool(offers) and offers[0].reason.code == types_pb2.REASON_CODE_ASSOCIATION

    await eventually(look, "an offer by association")


async def timeline(wire: Wire) -> list[Any]:
    answer = await wire.timeline.ListInteractions(
        timeline_pb2.ListInteractionsRequest(customer=CUSTOMER), timeout=WAIT_SECONDS
    )
    return list(answer.interactions)


async def tickets_of(wire: Wire, *conditions: str) -> list[Any]:
    answer = await wire.tickets.ListTickets(
        ticket_service_pb2.ListTicketsRequest(filter=" AND ".join([f'customer = "{CUSTOMER}"', *conditions])),
        timeout=WAIT_SECONDS,
    )
    return list(answer.tickets)


async def transition(wire: Wire, ticket: str, verb: str, **more: Any) -> Any:
    return await wire.tickets.TransitionTicket(
        ticket_service_pb2.TransitionTicketRequest(name=ticket, transition=verb, **more), timeout=WAIT_SECONDS
    )


async def test_a_call_goes_all_the_way(wire: Wire, event_tap: EventTap) -> None:
    event_tap.events()
    await asyncio.gather(furnish_marketing(wire), create_customer(wire))
    desktop, caller = Desktop(wire, "service-1"), Caller(wire, "way-1", AS_DIALLED, "service")
    try:
        await asyncio.gather(desktop.open(), until_learned(wire))
        decision = await the_call(wire, caller, desktop)
        ticket = await the_ticket(wire)
        await the_timeline(wire, ticket, decision)
        await the_second_call(wire, desktop, ticket)
        await the_return_visit(wire, ticket)
    finally:
        await caller.close()
        await desktop.close()


async def the_call(wire: Wire, caller: Caller, desktop: Desktop) -> Any:
    """Queued to wrapped up, with the agent's screen; the marketing decision made on the way."""
    caller.open("shanghai")
    queued = await caller.until("queued")
    assert queued.durable and queued.queued.region == queued.queued.home_region == "regions/beijing"
    await caller.until("offered")
    await desktop.accept("way-1")
    accepted = await caller.until("accepted")
    answer = await caller.confirm(accepted)
    assert answer.confirmed and answer.agent_address == "sip:service-1@beijing"
    assert (await caller.until("connected")).connected.agent == "agents/service-1"
    assert (await desktop.until("connected")).connected.call.caller_number == E164

    screen = await pop(wire, "way-1")
    assert (screen.customer.name, screen.customer.display_name) == (CUSTOMER, "王芳")
    assert screen.customer.tier == customers_pb2.TIER_GOLD and not screen.missing
    assert screen.call_ordinal_today == 1 and not screen.repeat_call_notice and not screen.open_tickets

    decision = await recommend(wire, CUSTOMER, "way-1")
    (best,) = decision.offers
    assert best.reason.code == types_pb2.REASON_CODE_ASSOCIATION
    assert best.offer == "offers/travel-insurance" and best.reason.because_product == "credit-card"
    assert any(text.language == "zh" and text.text for text in best.reason.texts)
    closed = await wire.recommendations.RecordOutcome(
        recommendations_pb2.RecordOutcomeRequest(
            decision=decision.name, offer=best.offer, result=types_pb2.OUTCOME_RESULT_ACCEPTED
        )
    )
    assert closed.state == recommendations_pb2.DECISION_STATE_CLOSED

    assert (await caller.end()).outcome == call_pb2.CALL_OUTCOME_COMPLETED
    await desktop.wrap_up(
        "way-1",
        code="billing-question",
        contact_reason="billing/roaming",
        ticket={"kind": "inquiry", "priority": "high", "category": "billing", "subject": "漫游费用有疑问"},
    )
    return closed


async def the_ticket(wire: Wire) -> Any:
    """The ticket that the disposition asked for."""
    (found,) = await eventually(lambda: tickets_of(wire), "a ticket of the call")
    ticket = await wire.tickets.GetTicket(ticket_service_pb2.GetTicketRequest(name=found.name))
    assert (ticket.kind, ticket.priority) == (ticket_pb2.TICKET_KIND_INQUIRY, ticket_pb2.PRIORITY_HIGH)
    assert ticket.customer == CUSTOMER and ticket.caller_number == E164 and ticket.customer_tier == "GOLD"
    assert [(link.call, link.opened_ticket) for link in ticket.calls] == [("calls/way-1", True)]
    assert ticket.due_time.ToMilliseconds() > ticket.create_time.ToMilliseconds()
    assert ticket.due_time == ticket.sla.resolution.due_time
    return ticket


async def the_timeline(wire: Wire, ticket: Any, decision: Any) -> None:
    """Call, ticket and offer, each once."""

    async def look() -> Any:
        entries = await timeline(wire)
        return entries if len(entries) >= 3 and any(e.call.disposition for e in entries) else None

    entries = await eventually(look, "call, ticket and offer in the timeline")
    of = {entry.WhichOneof("detail"): entry for entry in entries}
    assert len(entries) == 3 and set(of) == {"call", "ticket", "offer"}
    assert (of["call"].source_id, of["call"].call.disposition) == ("way-1", "billing-question")
    assert (of["ticket"].ticket.ticket, of["ticket"].ticket.call_id) == (ticket.name, "way-1")
    assert decision.name == f"decisions/{of['offer'].source_id}" and of["offer"].offer.outcome == "ACCEPTED"


async def the_second_call(wire: Wire, desktop: Desktop, ticket: Any) -> None:
    """The same person an hour later: the screen says so and names what is open."""
    caller = Caller(wire, "way-2", AS_DIALLED, "service")
    try:
        caller.open()
        await connect(caller, desktop)
        screen = await pop(wire, "way-2")
        assert screen.call_ordinal_today == 2 and screen.earlier_calls_today == 1
        assert "今天第2次来电" in screen.repeat_call_notice and "未解决" in screen.repeat_call_notice
        assert screen.last_call.call_id == "way-1" and screen.last_call.outcome == "COMPLETED"
        assert [open_ticket.ticket for open_ticket in screen.open_tickets] == [ticket.name]
        assert screen.open_tickets[0].due_time == ticket.due_time
        await caller.end()
        await desktop.wrap_up("way-2", code="reassured", resolved=True)
    finally:
        await caller.close()


async def the_return_visit(wire: Wire, ticket: Any) -> None:
    """Resolved, the ticket is asked about after the delay, and only then."""
    await transition(wire, ticket.name, "start")
    resolved = await transition(wire, ticket.name, "resolve", resolution="已退还漫游费用")
    assert resolved.phase == ticket_pb2.TICKET_PHASE_RESOLVED and not resolved.HasField("due_time")
    plan = resolved.follow_up
    assert plan.schedule_time.ToMilliseconds() - resolved.resolve_time.ToMilliseconds() == (
        FOLLOW_UP_SECONDS * 1000
    )
    (visit,) = await eventually(lambda: tickets_of(wire, "kind = RETURN_VISIT"), "a return visit")
    assert visit.name == plan.ticket and visit.parent == ticket.name
    assert visit.create_time.ToMilliseconds() >= plan.schedule_time.ToMilliseconds()

    async def look() -> bool:
        return [open_.ticket for open_ in (await pop(wire, "way-3")).open_tickets] == [visit.name]

    await eventually(look, "the visit on the screen, the resolved ticket gone from it")


# --- events -----------------------------------------------------------------------------------------------


def of_call(events: list[Event], call_id: str) -> dict[str, list[Event]]:
    """A call's events by the last word of their type."""
    found: dict[str, list[Event]] = {}
    for event in events:
        if event.source == "routing" and event.data.get("call", {}).get("callId") == call_id:
            found.setdefault(event.type.rpartition(".")[2], []).append(event)
    return found


def place(event: Event) -> tuple[int, int]:
    """Where the journal has it: the block, and the place in the block."""
    shard, sequence, index = event.id.split(":")
    ref = event.data["call"]
    assert (shard, sequence) == (ref["shard"], ref["sequence"])
    return int(sequence), int(index)


#: Which types each service takes.
TAKEN: dict[str, frozenset[str]] = {
    service: frozenset(kind.DESCRIPTOR.full_name for kind in kinds)
    for service, kinds in {
        "crm": (
            *crm.inbound.CALLS,
            *crm.inbound.TICKETS,
            *crm.inbound.OFFERS,
            *crm.inbound.CUSTOMERS,
            *crm.inbound.TOLD,
        ),
        "tickets": (*tickets.inbound.CALLS, *tickets.inbound.CUSTOMERS),
        "marketing": (*marketing.inbound.CUSTOMERS, *marketing.inbound.TICKETS),
        "routing": routing.inbound.CUSTOMERS,
    }.items()
}


def marked(mongo: pymongo.MongoClient[dict[str, Any]], service: str) -> set[str]:
    """Ids of the events that a service's handlers have taken."""
    inbox = mongo[f"callmesh_{service}"]["inbox"]
    return {str(mark["_id"]).partition(":")[2] for mark in inbox.find({}, {"_id": 1})}


async def test_what_was_published_was_consumed(
    platform_stack: Stack, wire: Wire, event_tap: EventTap
) -> None:
    """Every event of the bus so far, at every service that wants it; none given up, none told twice."""
    await wire.customers.CreateCustomer(
        customers_pb2.CreateCustomerRequest(customer=customers_pb2.Customer(display_name="Consumed"))
    )
    figures = await settled(platform_stack)
    assert figures.dead == 0 and figures.retried == 0 and figures.unroutable == 0
    events = event_tap.events()
    assert set(figures.published) == set(SOURCES) and sum(figures.published.values()) >= len(events) > 0
    assert len({event.id for event in events}) == len(events)
    with pymongo.MongoClient[dict[str, Any]](platform_stack.mongo_uri) as mongo:
        for service, types in TAKEN.items():
            wanted = {event.id for event in events if event.type in types}
            assert wanted

            async def all_taken(service: str = service, wanted: frozenset[str] = frozenset(wanted)) -> bool:
                return wanted <= marked(mongo, service)

            # What came since the bus was still, and what a handler has in hand, is counted nowhere.
            await eventually(all_taken, f"{service} takes everything")


async def test_a_call_is_told_in_order_and_once(wire: Wire, event_tap: EventTap) -> None:
    """The words of one call, from its first to its last, with what a consumer needs to order them."""
    call_id = f"told-{secrets.token_hex(4)}"
    desktop, caller = Desktop(wire, "service-1"), Caller(wire, call_id, AS_DIALLED, "service")
    try:
        await desktop.open()
        caller.open()
        await connect(caller, desktop)
        await caller.end()
        await desktop.wrap_up(call_id, code="done", resolved=True)
        words = ("CallQueued", "CallOffered", "CallConnected", "CallEnded", "CallWrappedUp")

        async def look() -> Any:
            told = of_call(event_tap.events(), call_id)
            return told if set(words) <= set(told) else None

        told = await eventually(look, "all words of the call")
        assert set(told) == set(words) and all(len(events) == 1 for events in told.values())
        order = [place(told[word][0]) for word in words]
        assert order == sorted(set(order))
        assert all(told[word][0].time <= told[after][0].time for word, after in itertools.pairwise(words))
    finally:
        await caller.close()
        await desktop.close()


async def test_a_trace_crosses_the_services(wire: Wire, event_tap: EventTap) -> None:
    """crm's event carries the trace of the call that caused it, and so does what tickets does about it."""
    trace = secrets.token_hex(16)
    number = "+862164001002"
    ticket = await wire.tickets.CreateTicket(
        ticket_service_pb2.CreateTicketRequest(
            ticket=ticket_pb2.Ticket(
                kind=ticket_pb2.TICKET_KIND_INQUIRY, subject="Traced", caller_number=number
            )
        )
    )
    customer = await wire.customers.CreateCustomer(
        customers_pb2.CreateCustomerRequest(
            customer=customers_pb2.Customer(
                display_name="Traced", phone_numbers=[customers_pb2.PhoneNumber(number=number)]
            )
        ),
        metadata=(("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01"),),
    )

    async def look() -> Any:
        told = {e.type.rpartition(".")[2]: e for e in event_tap.events() if trace in (e.traceparent or "")}
        return told if {"CustomerCreated", "TicketUpdated"} <= set(told) else None

    told = await eventually(look, "both services' events in the trace")
    assert told["CustomerCreated"].subject == customer.name and told["TicketUpdated"].subject == ticket.name
