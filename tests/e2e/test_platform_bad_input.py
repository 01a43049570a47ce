"""Bad input at every service: one clear typed error that names the field, and nothing lost.

Each row of the tables is one RPC with one thing wrong.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.e2e.platform_parties import WAIT_SECONDS, Caller, Wire, refusal

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2, screen_pop_pb2, timeline_pb2
from callmesh.marketing.v1 import offers_pb2, recommendations_pb2, types_pb2
from callmesh.routing.v1 import agent_pb2, call_pb2, directory_pb2, routing_pb2
from callmesh.tickets.v1 import ticket_pb2, ticket_service_pb2

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(240)]

BAD = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND
TAKEN = grpc.StatusCode.ALREADY_EXISTS
STALE = grpc.StatusCode.ABORTED
#: Longer than any id may be, and far longer.
LONG, HUGE = "x" * 129, "x" * 1_000_000
NUMBER = "+862164002001"


@dataclass(frozen=True, kw_only=True, slots=True)
class Good:
    """One of each thing, as it was before anything bad was asked."""

    #: Names.
    customer: str
    ticket: str
    offer: str
    agent: str
    #: A call that waits meanwhile.
    call: str
    #: An etag of each thing before its latest change.
    stale: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One bad request, and what is answered."""

    #: Method and what is wrong.
    what: str
    ask: Callable[[Wire, Good], Awaitable[Any]]
    code: grpc.StatusCode
    reason: str = "INVALID_ARGUMENT"
    #: Fields named, in order.
    fields: tuple[str, ...] = ()


def route(wire: Wire, **fields: Any) -> Awaitable[Any]:
    call = {"call_id": "bad", "queue": "queues/service", "caller_number": NUMBER, **fields}
    stream = wire.routing().RouteCall(
        routing_pb2.RouteCallRequest(call=call_pb2.CallRequest(**call)), timeout=WAIT_SECONDS
    )
    read: Awaitable[Any] = stream.read()
    return read


def session(wire: Wire, agent: str) -> Awaitable[Any]:
    async def commands() -> AsyncIterator[agent_pb2.AgentCommand]:
        yield agent_pb2.AgentCommand(command=1, open=agent_pb2.AgentCommand.Open(agent=agent, session=1))

    read: Awaitable[Any] = wire.agents("beijing").Session(commands(), timeout=WAIT_SECONDS).read()
    return read


def new_agent(wire: Wire, agent_id: str, **fields: Any) -> Awaitable[Any]:
    agent = directory_pb2.Agent(**{"region": "regions/beijing", "skills": {"service": 1}, **fields})
    made: Awaitable[Any] = wire.directory.CreateAgent(
        directory_pb2.CreateAgentRequest(agent_id=agent_id, agent=agent)
    )
    return made


ROUTING: Sequence[Row] = (
    Row(
        what="CreateAgent: unknown region",
        ask=lambda wire, _: new_agent(wire, "bad", region="regions/mars"),
        code=MISSING,
        reason="REGION_NOT_FOUND",
    ),
    Row(
        what="ListCalls: unknown region",
        ask=lambda wire, _: wire.routing().ListCalls(routing_pb2.ListCallsRequest(region="regions/mars")),
        code=MISSING,
        reason="REGION_NOT_FOUND",
    ),
    Row(
        what="GetRegion: no name of a region",
        ask=lambda wire, _: wire.directory.GetRegion(directory_pb2.GetRegionRequest(name="mars")),
        code=BAD,
        fields=("name",),
    ),
    Row(
        what="DrainRegion: unknown region",
        ask=lambda wire, _: wire.directory.DrainRegion(directory_pb2.DrainRegionRequest(name="regions/mars")),
        code=MISSING,
        reason="REGION_NOT_FOUND",
    ),
    Row(
        what="Session: unknown agent",
        ask=lambda wire, _: session(wire, "agents/nobody"),
        code=MISSING,
        reason="AGENT_NOT_FOUND",
    ),
    Row(what="Session: no agent", ask=lambda wire, _: session(wire, ""), code=BAD, fields=("open.agent",)),
    Row(
        what="GetAgentStatus: unknown agent",
        ask=lambda wire, _: wire.agents("chengdu").GetAgentStatus(
            agent_pb2.GetAgentStatusRequest(name="agents/nobody")
        ),
        code=MISSING,
        reason="AGENT_NOT_FOUND",
    ),
    Row(
        what="RouteCall: unknown queue",
        ask=lambda wire, _: route(wire, queue="queues/none"),
        code=MISSING,
        reason="QUEUE_NOT_FOUND",
    ),
    Row(
        what="AssignCall: unknown queue",
        ask=lambda wire, _: wire.routing().AssignCall(
            routing_pb2.AssignCallRequest(
                call=call_pb2.CallRequest(call_id="bad", queue="queues/none", caller_number=NUMBER)
            )
        ),
        code=MISSING,
        reason="QUEUE_NOT_FOUND",
    ),
    Row(
        what="GetQueue: unknown queue",
        ask=lambda wire, _: wire.directory.GetQueue(directory_pb2.GetQueueRequest(name="queues/none")),
        code=MISSING,
        reason="QUEUE_NOT_FOUND",
    ),
    Row(
        what="RouteCall: a number that is none",
        ask=lambda wire, _: route(wire, caller_number="hello"),
        code=BAD,
        reason="INVALID_NUMBER",
        fields=("call.caller_number",),
    ),
    Row(
        what="RouteCall: a foreign number that cannot be",
        ask=lambda wire, _: route(wire, caller_number="+1 212"),
        code=BAD,
        reason="INVALID_NUMBER",
        fields=("call.caller_number",),
    ),
    Row(
        what="LocateNumber: a country that does not exist",
        ask=lambda wire, _: wire.directory.LocateNumber(
            directory_pb2.LocateNumberRequest(number="+999 123 4567")
        ),
        code=BAD,
        reason="INVALID_NUMBER",
        fields=("number",),
    ),
    Row(
        what="RouteCall: empty id",
        ask=lambda wire, _: route(wire, call_id=""),
        code=BAD,
        fields=("call.call_id",),
    ),
    Row(
        what="RouteCall: long id",
        ask=lambda wire, _: route(wire, call_id=LONG),
        code=BAD,
        fields=("call.call_id",),
    ),
    Row(
        what="EndCall: huge id",
        ask=lambda wire, _: wire.routing().EndCall(routing_pb2.EndCallRequest(call_id=HUGE)),
        code=BAD,
        fields=("call_id",),
    ),
    Row(
        what="HangUp: unknown call",
        ask=lambda wire, _: wire.routing().HangUp(routing_pb2.HangUpRequest(call_id="nobody-knows")),
        code=MISSING,
        reason="CALL_NOT_FOUND",
    ),
    Row(
        what="ConfirmCall: unknown shard",
        ask=lambda wire, _: wire.routing().ConfirmCall(
            routing_pb2.ConfirmCallRequest(
                call_id="bad", offer_id="mars.1.1", version={"attempt": 1, "move": 1}, shard="mars"
            )
        ),
        code=BAD,
        fields=("shard",),
    ),
    Row(
        what="CreateAgent: empty id",
        ask=lambda wire, _: new_agent(wire, ""),
        code=BAD,
        fields=("agent_id",),
    ),
    Row(
        what="CreateAgent: huge id",
        ask=lambda wire, _: new_agent(wire, HUGE),
        code=BAD,
        fields=("agent_id",),
    ),
    Row(
        what="BatchCreateAgents: the second has no region",
        ask=lambda wire, _: wire.directory.BatchCreateAgents(
            directory_pb2.BatchCreateAgentsRequest(
                requests=[
                    {"agent_id": "bad-1", "agent": {"region": "regions/beijing"}},
                    {"agent_id": "bad-2", "agent": {}},
                ]
            )
        ),
        code=BAD,
        fields=("requests[1].agent.region",),
    ),
    Row(
        what="CreateAgent: taken id",
        ask=lambda wire, good: new_agent(wire, good.agent.removeprefix("agents/")),
        code=TAKEN,
        reason="ALREADY_EXISTS",
    ),
    Row(
        what="ListCalls: negative page size",
        ask=lambda wire, _: wire.routing().ListCalls(
            routing_pb2.ListCallsRequest(region="regions/beijing", page_size=-1)
        ),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="ListAgents: negative page size",
        ask=lambda wire, _: wire.directory.ListAgents(directory_pb2.ListAgentsRequest(page_size=-1)),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="UpdateAgent: stale etag",
        ask=lambda wire, good: wire.directory.UpdateAgent(
            directory_pb2.UpdateAgentRequest(
                agent=directory_pb2.Agent(name=good.agent, priority=9, etag=good.stale["agent"])
            )
        ),
        code=STALE,
        reason="ETAG_MISMATCH",
    ),
    Row(
        what="DeleteAgent: an etag that is none",
        ask=lambda wire, good: wire.directory.DeleteAgent(
            directory_pb2.DeleteAgentRequest(name=good.agent, etag="nonsense")
        ),
        code=BAD,
        fields=("etag",),
    ),
)


def new_customer(wire: Wire, customer_id: str, number: str = "") -> Awaitable[Any]:
    numbers = [customers_pb2.PhoneNumber(number=number)] if number else []
    made: Awaitable[Any] = wire.customers.CreateCustomer(
        customers_pb2.CreateCustomerRequest(
            customer_id=customer_id,
            customer=customers_pb2.Customer(display_name="Bad", phone_numbers=numbers),
        )
    )
    return made


CRM: Sequence[Row] = (
    Row(
        what="CreateCustomer: a number that is none",
        ask=lambda wire, _: new_customer(wire, "bad", "hello"),
        code=BAD,
        fields=("customer.phone_numbers[0].number",),
    ),
    Row(
        what="CreateCustomer: a foreign number that cannot be",
        ask=lambda wire, _: new_customer(wire, "bad", "+1 212"),
        code=BAD,
        fields=("customer.phone_numbers[0].number",),
    ),
    Row(
        what="CreateCustomer: another's number",
        ask=lambda wire, _: new_customer(wire, "bad", NUMBER),
        code=TAKEN,
        reason="CLAIM_TAKEN",
    ),
    Row(
        what="CreateCustomer: huge id",
        ask=lambda wire, _: new_customer(wire, HUGE),
        code=BAD,
        fields=("customer_id",),
    ),
    Row(
        what="CreateCustomer: taken id",
        ask=lambda wire, good: new_customer(wire, good.customer.removeprefix("customers/")),
        code=TAKEN,
        reason="ALREADY_EXISTS",
    ),
    Row(
        what="GetCustomer: empty id",
        ask=lambda wire, _: wire.customers.GetCustomer(customers_pb2.GetCustomerRequest(name="customers/")),
        code=BAD,
        fields=("name",),
    ),
    Row(
        what="GetCustomer: unknown",
        ask=lambda wire, _: wire.customers.GetCustomer(
            customers_pb2.GetCustomerRequest(name="customers/nobody")
        ),
        code=MISSING,
        reason="NOT_FOUND",
    ),
    Row(
        what="LookupCustomer: a number that is none",
        ask=lambda wire, _: wire.customers.LookupCustomer(
            customers_pb2.LookupCustomerRequest(phone_number="12")
        ),
        code=BAD,
        fields=("phone_number",),
    ),
    Row(
        what="LookupCustomer: unknown foreign number",
        ask=lambda wire, _: wire.customers.LookupCustomer(
            customers_pb2.LookupCustomerRequest(phone_number="+44 20 7946 0018")
        ),
        code=MISSING,
        reason="NOT_FOUND",
    ),
    Row(
        what="GetScreenPop: a number that is none",
        ask=lambda wire, _: wire.screen_pop.GetScreenPop(
            screen_pop_pb2.GetScreenPopRequest(phone_number="hello")
        ),
        code=BAD,
        fields=("phone_number",),
    ),
    Row(
        what="GetScreenPop: long call id",
        ask=lambda wire, _: wire.screen_pop.GetScreenPop(
            screen_pop_pb2.GetScreenPopRequest(phone_number=NUMBER, call_id=LONG)
        ),
        code=BAD,
        fields=("call_id",),
    ),
    Row(
        what="ListCustomers: negative page size",
        ask=lambda wire, _: wire.customers.ListCustomers(customers_pb2.ListCustomersRequest(page_size=-1)),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="ListInteractions: negative page size",
        ask=lambda wire, good: wire.timeline.ListInteractions(
            timeline_pb2.ListInteractionsRequest(customer=good.customer, page_size=-1)
        ),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="UpdateCustomer: stale etag",
        ask=lambda wire, good: wire.customers.UpdateCustomer(
            customers_pb2.UpdateCustomerRequest(
                customer=customers_pb2.Customer(name=good.customer, notes="bad", etag=good.stale["customer"])
            )
        ),
        code=STALE,
        reason="ETAG_MISMATCH",
    ),
)


def new_ticket(wire: Wire, ticket_id: str, **fields: Any) -> Awaitable[Any]:
    ticket = ticket_pb2.Ticket(**{"kind": ticket_pb2.TICKET_KIND_INQUIRY, "subject": "Bad", **fields})
    made: Awaitable[Any] = wire.tickets.CreateTicket(
        ticket_service_pb2.CreateTicketRequest(ticket_id=ticket_id, ticket=ticket)
    )
    return made


TICKETS: Sequence[Row] = (
    Row(
        what="CreateTicket: a number that is none",
        ask=lambda wire, _: new_ticket(wire, "bad", caller_number="hello"),
        code=BAD,
        fields=("ticket.caller_number",),
    ),
    Row(
        what="CreateTicket: huge id",
        ask=lambda wire, _: new_ticket(wire, HUGE),
        code=BAD,
        fields=("ticket_id",),
    ),
    Row(
        what="CreateTicket: taken id",
        ask=lambda wire, good: new_ticket(wire, good.ticket.removeprefix("tickets/")),
        code=TAKEN,
        reason="ALREADY_EXISTS",
    ),
    Row(
        what="CreateTicket: no subject",
        ask=lambda wire, _: new_ticket(wire, "bad", subject=""),
        code=BAD,
        fields=("ticket.subject",),
    ),
    Row(
        what="GetTicket: empty id",
        ask=lambda wire, _: wire.tickets.GetTicket(ticket_service_pb2.GetTicketRequest(name="tickets/")),
        code=BAD,
        fields=("name",),
    ),
    Row(
        what="GetTicket: unknown",
        ask=lambda wire, _: wire.tickets.GetTicket(
            ticket_service_pb2.GetTicketRequest(name="tickets/nobody")
        ),
        code=MISSING,
        reason="NOT_FOUND",
    ),
    Row(
        what="ListTickets: negative page size",
        ask=lambda wire, _: wire.tickets.ListTickets(ticket_service_pb2.ListTicketsRequest(page_size=-1)),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="ListTickets: a filter that is none",
        ask=lambda wire, _: wire.tickets.ListTickets(ticket_service_pb2.ListTicketsRequest(filter="((")),
        code=BAD,
        fields=("filter",),
    ),
    Row(
        what="UpdateTicket: stale etag",
        ask=lambda wire, good: wire.tickets.UpdateTicket(
            ticket_service_pb2.UpdateTicketRequest(
                ticket=ticket_pb2.Ticket(name=good.ticket, subject="bad", etag=good.stale["ticket"])
            )
        ),
        code=STALE,
        reason="ETAG_MISMATCH",
    ),
    Row(
        what="TransitionTicket: a verb that its flow does not have now",
        ask=lambda wire, good: wire.tickets.TransitionTicket(
            ticket_service_pb2.TransitionTicketRequest(name=good.ticket, transition="close")
        ),
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="ILLEGAL_TRANSITION",
    ),
)


def new_offer(wire: Wire, offer_id: str, **fields: Any) -> Awaitable[Any]:
    offer = offers_pb2.Offer(
        **{
            "titles": [types_pb2.LocalizedText(language="en", text="Bad")],
            "product": "bad",
            "price": common_pb2.Money(currency_code="CNY", amount="1.00"),
            **fields,
        }
    )
    made: Awaitable[Any] = wire.offers.CreateOffer(
        offers_pb2.CreateOfferRequest(offer_id=offer_id, offer=offer)
    )
    return made


MARKETING: Sequence[Row] = (
    Row(
        what="Recommend: a number that is none",
        ask=lambda wire, _: wire.recommendations.Recommend(
            recommendations_pb2.RecommendRequest(caller_number="hello")
        ),
        code=BAD,
        fields=("caller_number",),
    ),
    Row(
        what="Recommend: fewer than no offers",
        ask=lambda wire, good: wire.recommendations.Recommend(
            recommendations_pb2.RecommendRequest(customer=good.customer, max_offers=-1)
        ),
        code=BAD,
        fields=("max_offers",),
    ),
    Row(
        what="RecordPurchases: empty and repeated ids",
        ask=lambda wire, good: wire.recommendations.RecordPurchases(
            recommendations_pb2.RecordPurchasesRequest(
                purchases=[
                    recommendations_pb2.Purchase(purchase_id="", customer=good.customer, product="bad")
                ]
            )
        ),
        code=BAD,
        fields=("purchases[0].purchase_id",),
    ),
    Row(
        what="RecordOutcome: unknown decision",
        ask=lambda wire, good: wire.recommendations.RecordOutcome(
            recommendations_pb2.RecordOutcomeRequest(
                decision="decisions/nobody",
                offer=good.offer,
                result=types_pb2.OUTCOME_RESULT_ACCEPTED,
            )
        ),
        code=MISSING,
        reason="DECISION_NOT_FOUND",
    ),
    Row(
        what="CreateOffer: huge id",
        ask=lambda wire, _: new_offer(wire, HUGE),
        code=BAD,
        fields=("offer_id",),
    ),
    Row(
        what="CreateOffer: taken id",
        ask=lambda wire, good: new_offer(wire, good.offer.removeprefix("offers/")),
        code=TAKEN,
        reason="ALREADY_EXISTS",
    ),
    Row(
        what="CreateOffer: no product",
        ask=lambda wire, _: new_offer(wire, "bad", product=""),
        code=BAD,
        fields=("offer.product",),
    ),
    Row(
        what="GetOffer: empty id",
        ask=lambda wire, _: wire.offers.GetOffer(offers_pb2.GetOfferRequest(name="offers/")),
        code=BAD,
        fields=("name",),
    ),
    Row(
        what="ListOffers: negative page size",
        ask=lambda wire, _: wire.offers.ListOffers(offers_pb2.ListOffersRequest(page_size=-1)),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="ListDecisions: negative page size",
        ask=lambda wire, _: wire.recommendations.ListDecisions(
            recommendations_pb2.ListDecisionsRequest(page_size=-1)
        ),
        code=BAD,
        fields=("page_size",),
    ),
    Row(
        what="UpdateOffer: stale etag",
        ask=lambda wire, good: wire.offers.UpdateOffer(
            offers_pb2.UpdateOfferRequest(
                offer=offers_pb2.Offer(name=good.offer, tags=["bad"], etag=good.stale["offer"])
            )
        ),
        code=STALE,
        reason="ETAG_MISMATCH",
    ),
)

TABLES = {"routing": ROUTING, "crm": CRM, "tickets": TICKETS, "marketing": MARKETING}


# --- what must not be lost --------------------------------------------------------------------------------


async def make_good(wire: Wire, key: str) -> Good:
    """One of each thing, changed once so that there is a stale etag; the caller opens the call."""
    customer = await new_customer(wire, f"good-{key}", NUMBER)
    # Without a number: tickets would give it to the customer as soon as it hears of one.
    ticket = await new_ticket(wire, f"good-{key}")
    offer = await new_offer(wire, f"good-{key}")
    agent = await new_agent(wire, f"good-{key}")
    stale = {"customer": customer.etag, "ticket": ticket.etag, "offer": offer.etag, "agent": agent.etag}
    customer.notes, ticket.subject, agent.priority = "changed", "Changed", 3
    offer.tags.append("changed")
    await wire.customers.UpdateCustomer(
        customers_pb2.UpdateCustomerRequest(customer=customer, update_mask={"paths": ["notes"]})
    )
    await wire.tickets.UpdateTicket(
        ticket_service_pb2.UpdateTicketRequest(
            ticket=ticket_pb2.Ticket(name=ticket.name, subject="Changed"), update_mask={"paths": ["subject"]}
        )
    )
    await wire.offers.UpdateOffer(offers_pb2.UpdateOfferRequest(offer=offer, update_mask={"paths": ["tags"]}))
    await wire.directory.UpdateAgent(
        directory_pb2.UpdateAgentRequest(agent=agent, update_mask={"paths": ["priority"]})
    )
    return Good(
        customer=customer.name,
        ticket=ticket.name,
        offer=offer.name,
        agent=agent.name,
        call=f"good-{key}",
        stale=stale,
    )


async def all_of(method: Any, request: Any, field: str) -> list[Any]:
    """Every page of a listing."""
    request.page_size = 1000
    found: list[Any] = []
    while True:
        answer = await method(request)
        found += getattr(answer, field)
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found


async def everything(wire: Wire) -> dict[str, Any]:
    """All that the services hold, by its name: what bad input must leave as it is."""
    regions = await all_of(wire.directory.ListRegions, directory_pb2.ListRegionsRequest(), "regions")
    things = [
        *await all_of(wire.customers.ListCustomers, customers_pb2.ListCustomersRequest(), "customers"),
        *await all_of(wire.tickets.ListTickets, ticket_service_pb2.ListTicketsRequest(), "tickets"),
        *await all_of(wire.offers.ListOffers, offers_pb2.ListOffersRequest(), "offers"),
        *await all_of(wire.directory.ListAgents, directory_pb2.ListAgentsRequest(), "agents"),
        *regions,
    ]
    held = {thing.name: thing.SerializeToString(deterministic=True) for thing in things}
    for region in regions:
        live = routing_pb2.ListCallsRequest(region=region.name)
        calls = await all_of(wire.routing().ListCalls, live, "calls")
        held |= {call.name: (call.state, call.version.attempt, call.queue_time) for call in calls}
    return held


@pytest_asyncio.fixture
async def good(wire: Wire) -> AsyncIterator[Good]:
    """One of each thing, and a caller who waits all the while."""
    made = await make_good(wire, secrets.token_hex(4))
    caller = Caller(wire, made.call, NUMBER, "standby")
    try:
        caller.open()
        await caller.until("queued")
        yield made
        hung_up = await wire.routing().HangUp(routing_pb2.HangUpRequest(call_id=made.call))
        assert hung_up.outcome == call_pb2.CALL_OUTCOME_ABANDONED, "the caller had lost the place"
    finally:
        await caller.close()
        await wire.customers.DeleteCustomer(customers_pb2.DeleteCustomerRequest(name=made.customer))


async def problem_of(row: Row, service: str, wire: Wire, good: Good) -> str:
    """What is wrong with the answer to a bad request; "" when nothing is."""
    try:
        await row.ask(wire, good)
    except grpc.aio.AioRpcError as error:
        try:
            found = refusal(error)
        except AssertionError as problem:
            return f"{row.what}: {problem}"
        told = (found.domain, found.code, found.reason, tuple(found.fields))
        wanted = (f"callmesh.{service}", row.code, row.reason, row.fields)
        return "" if told == wanted else f"{row.what}: {told}, not {wanted}"
    return f"{row.what}: was taken"


@pytest.mark.parametrize("service", TABLES)
async def test_bad_input_is_refused_and_nothing_lost(service: str, wire: Wire, good: Good) -> None:
    before = await everything(wire)
    assert {good.customer, good.ticket, good.offer, good.agent, f"calls/{good.call}"} <= set(before)
    problems = [await problem_of(row, service, wire, good) for row in TABLES[service]]
    assert [problem for problem in problems if problem] == []
    assert await everything(wire) == before


async def test_one_bad_purchase_keeps_the_others_out(wire: Wire, good: Good) -> None:
    """All or none, and the bad one is named by its index."""
    fine = recommendations_pb2.Purchase(
        purchase_id=f"fine-{good.call}", customer=good.customer, product="fine"
    )
    bad = recommendations_pb2.Purchase(purchase_id="bad", customer="nobody", product="fine")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.recommendations.RecordPurchases(
            recommendations_pb2.RecordPurchasesRequest(purchases=[fine, bad])
        )
    assert refusal(caught.value).fields == ["purchases[1].customer"]
    answer = await wire.recommendations.ListPurchases(
        recommendations_pb2.ListPurchasesRequest(customer=good.customer)
    )
    assert not answer.purchases


async def test_a_foreign_caller_is_welcome(wire: Wire) -> None:
    """A number of another country is placed by its country and waits like any other."""
    place = await wire.directory.LocateNumber(directory_pb2.LocateNumberRequest(number="+44 20 7946 0018"))
    assert (place.number, place.country) == ("+442079460018", "GB")
    caller = Caller(wire, f"foreign-{secrets.token_hex(4)}", "+44 20 7946 0018", "standby")
    try:
        caller.open("chengdu")
        queued = await caller.until("queued")
        assert queued.durable and queued.queued.region
        call = await wire.routing().GetCall(routing_pb2.GetCallRequest(name=f"calls/{caller.call_id}"))
        assert call.caller_number == "+442079460018" and call.state == call_pb2.CALL_STATE_WAITING
        await wire.routing().HangUp(routing_pb2.HangUpRequest(call_id=caller.call_id))
    finally:
        await caller.close()


async def test_malformed_bytes_are_refused(wire: Wire) -> None:
    """What is no protobuf message at all: an error like any other, at each service."""
    for service in TABLES:
        name = {
            "routing": "callmesh.routing.v1.RoutingService/GetCall",
            "crm": "callmesh.crm.v1.CustomerService/GetCustomer",
            "tickets": "callmesh.tickets.v1.TicketService/GetTicket",
            "marketing": "callmesh.marketing.v1.OfferService/GetOffer",
        }[service]
        ask = wire.channel("beijing" if service == "routing" else service).unary_unary(
            f"/{name}", request_serializer=None, response_deserializer=None
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(b"\xff" * 64)
        found = refusal(caught.value)
        assert (found.code, found.reason) == (BAD, "MALFORMED_REQUEST")
        assert found.domain == f"callmesh.{service}"
