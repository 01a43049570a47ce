"""What of a call can be seen from outside: one trace through the whole platform, and nowhere a person.

This module comes after those that drive the platform (by its name), so that what they left in logs and
metrics is looked at as well.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.e2e.platform_parties import (
    WAIT_SECONDS,
    Caller,
    Desktop,
    Wire,
    connect,
    eventually,
    process_names,
    settled,
)
from tests.e2e.platform_traces import Seen, Spans

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2, screen_pop_pb2, timeline_pb2
from callmesh.marketing.v1 import recommendations_pb2
from callmesh.routing.v1 import call_pb2, routing_pb2
from callmesh.tickets.v1 import ticket_pb2, ticket_service_pb2
from cli.demo.rpc import EventStream, StreamEnded
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(300)]

TRACE_ID, EDGE_SPAN = secrets.token_hex(16), secrets.token_hex(8)
TRACED = (("traceparent", f"00-{TRACE_ID}-{EDGE_SPAN}-01"),)
SERVER, PRODUCER, CONSUMER = 2, 4, 5

#: A person. None of these may be found anywhere but in answers and the database.
NUMBER, NATIONAL = "+8613901239876", "13901239876"
NAME, MAIL, NOTE = "Qiuyue Marker", "qiuyue.marker@example.com", "lives behind the marker gate"
SUBJECT = "the marker's own words"
#: The same as they may be written, and what reveals them in part.
MARKERS = (
    *(NATIONAL, "139 0123 9876", "139-0123-9876", "0123987", NAME, "Qiuyue", "qiuyue.marker", NOTE, SUBJECT),
    *("marker gate", "marker's own"),
)
#: What looks like the number or address of anybody: of all that was called in the tests before.
PERSONS = re.compile(r"\+861[3-9][0-9]{9}|\b1[3-9][0-9]{9}\b|[a-z0-9._+-]+@example\.(?:com|org|net)")


class TracedCaller(Caller):
    """An edge that traces its calls."""

    def open(self, region: str = "beijing", **more: Any) -> None:
        self.attempt += 1
        request = call_pb2.CallRequest(call_id=self.call_id, attempt=self.attempt, **self._fields, **more)
        call = self._wire.routing(region).RouteCall(
            routing_pb2.RouteCallRequest(call=request), metadata=TRACED
        )
        self._stream = EventStream(call)


async def test_a_call_is_one_trace(platform_stack: Stack, wire: Wire, spans: Spans) -> None:
    """The edge's own, through routing and the bus to the ticket and the customer's timeline, and from there
    on to marketing: every span hangs on another one, and all on the edge's.
    """
    await create_person(wire)
    call_id = f"traced-{secrets.token_hex(4)}"
    desktop = Desktop(wire, "service-1")
    caller = TracedCaller(wire, call_id, NUMBER, "service")
    try:
        await desktop.open()
        caller.open("shanghai")
        await connect(caller, desktop)
        await look_at_person(wire, call_id)
        await caller.end()
        await desktop.wrap_up(
            call_id,
            code="billing-question",
            notes=NOTE,
            ticket={"kind": "complaint", "priority": "high", "subject": SUBJECT, "description": NOTE},
        )
        found = await eventually(lambda: complete(spans), "the whole trace at the collector")
    finally:
        await caller.close()
        await desktop.close()
    assert {span.service for span in found} == {
        f"callmesh-{service}" for service in ("routing", "crm", "tickets", "marketing")
    }
    for span in found:
        assert span.attributes.keys() >= ATTRIBUTES[span.kind], span.text
        assert span.attributes.get("rpc.response.status_code", "OK") == "OK", span.text


ATTRIBUTES = {
    SERVER: {"rpc.system.name", "rpc.method", "rpc.response.status_code"},
    PRODUCER: {"messaging.system", "messaging.destination.name", "messaging.message.id"},
    CONSUMER: {"messaging.system", "messaging.destination.name", "messaging.message.id"},
}
#: (service, kind, name) that the call's trace has to have.
PARTS = {
    ("routing", SERVER, "callmesh.routing.v1.RoutingService/RouteCall"),
    ("routing", PRODUCER, "publish routing.events"),
    ("tickets", CONSUMER, "process tickets.on_call_wrapped_up"),
    ("tickets", PRODUCER, "publish tickets.events"),
    ("crm", CONSUMER, "process crm.on_call"),
    ("crm", CONSUMER, "process crm.on_ticket"),
    ("crm", SERVER, "callmesh.crm.v1.ScreenPopService/GetScreenPop"),
    ("marketing", CONSUMER, "process marketing.on_ticket"),
    ("marketing", SERVER, "callmesh.marketing.v1.RecommendationService/Recommend"),
}


async def complete(spans: Spans) -> list[Seen]:
    """The trace once it has all its parts, and of every span the one that it hangs on, else nothing. A span
    may come long before its parent: that ends later, and each process sends its own when it comes to it.
    """
    found = spans.of_trace(TRACE_ID)
    there = {(span.service.removeprefix("callmesh-"), span.kind, span.name) for span in found}
    ids = {span.span_id for span in found} | {EDGE_SPAN}
    return found if there >= PARTS and all(span.parent_id in ids for span in found) else []


async def create_person(wire: Wire) -> None:
    customer = customers_pb2.Customer(
        display_name=NAME,
        phone_numbers=[customers_pb2.PhoneNumber(number=NUMBER, primary=True)],
        email_addresses=[customers_pb2.EmailAddress(address=MAIL)],
    )
    request = customers_pb2.CreateCustomerRequest(customer_id="qm-1", customer=customer)
    await wire.customers.CreateCustomer(request, timeout=WAIT_SECONDS)


async def look_at_person(wire: Wire, call_id: str) -> None:
    """What an agent's desktop asks, in the call's trace."""
    await wire.screen_pop.GetScreenPop(
        screen_pop_pb2.GetScreenPopRequest(phone_number=NUMBER, call_id=call_id),
        timeout=WAIT_SECONDS,
        metadata=TRACED,
    )
    await wire.recommendations.Recommend(
        recommendations_pb2.RecommendRequest(
            customer="customers/qm-1",
            max_offers=1,
            context=recommendations_pb2.CallContext(call_id=call_id, channel=common_pb2.CHANNEL_VOICE),
        ),
        timeout=WAIT_SECONDS,
        metadata=TRACED,
    )


async def test_a_person_is_in_no_log_metric_or_trace(
    platform_stack: Stack, wire: Wire, collected: Any
) -> None:
    """After requests that went well, and after such that were refused for what they say of a person."""
    answers = await asyncio.gather(*refusals(wire), return_exceptions=True)
    refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError | StreamEnded)]
    assert len(refused) >= REFUSED_MIN, answers
    await settled(platform_stack)
    found = {
        **{f"log of {name}": text for name, text in logs(platform_stack).items()},
        **{f"metrics of {name}": text for name, text in expositions(platform_stack).items()},
    }
    if collected.spans is not None:
        found["traces"] = "\n".join(span.text for span in collected.spans.all())
    leaks = [
        f"{where}: {marker!r} in {line[:300]}"
        for where, text in found.items()
        for marker in MARKERS
        if marker in text
        for line in text.splitlines()
        if marker in line
    ]
    leaks += [
        f"{where}: {line[:300]}"
        for where, text in found.items()
        for line in text.splitlines()
        if PERSONS.search(line)
    ]
    assert leaks == []


#: Of those below; the rest may be answered with nothing.
REFUSED_MIN = 8


def refusals(wire: Wire) -> list[Any]:
    """Requests that are wrong because of what they say of the person."""
    traced = {"metadata": TRACED, "timeout": WAIT_SECONDS}
    bad_number = customers_pb2.PhoneNumber(number=f"{NUMBER}x{NATIONAL}")
    again = customers_pb2.Customer(display_name=NAME, phone_numbers=[{"number": NUMBER}])
    return [
        wire.customers.CreateCustomer(
            customers_pb2.CreateCustomerRequest(
                customer=customers_pb2.Customer(display_name=NAME, phone_numbers=[bad_number])
            ),
            **traced,
        ),
        wire.customers.CreateCustomer(
            customers_pb2.CreateCustomerRequest(customer_id="qm-1", customer=again), **traced
        ),
        wire.customers.CreateCustomer(
            customers_pb2.CreateCustomerRequest(
                customer=customers_pb2.Customer(display_name=NAME, email_addresses=[{"address": f"{MAIL}@"}])
            ),
            **traced,
        ),
        wire.customers.GetCustomer(customers_pb2.GetCustomerRequest(name=f"customers/{NAME}"), **traced),
        wire.screen_pop.GetScreenPop(
            screen_pop_pb2.GetScreenPopRequest(phone_number=f"{NUMBER}{NATIONAL}"), **traced
        ),
        wire.timeline.ListInteractions(
            timeline_pb2.ListInteractionsRequest(phone_number=f"{NUMBER}!", customer="customers/qm-1"),
            **traced,
        ),
        wire.tickets.CreateTicket(
            ticket_service_pb2.CreateTicketRequest(
                ticket=ticket_pb2.Ticket(subject=SUBJECT, description=NOTE, caller_number=f"{NUMBER}?")
            ),
            **traced,
        ),
        wire.tickets.ListTickets(
            ticket_service_pb2.ListTicketsRequest(filter=f'caller_number = "{NUMBER}" AND {NAME}'), **traced
        ),
        wire.recommendations.Recommend(
            recommendations_pb2.RecommendRequest(customer=f"customers/{MAIL}", max_offers=1), **traced
        ),
        EventStream(
            wire.routing().RouteCall(
                routing_pb2.RouteCallRequest(
                    call=call_pb2.CallRequest(
                        call_id=NATIONAL, attempt=1, caller_number=f"{NUMBER}x", queue=f"queues/{NAME}"
                    )
                ),
                metadata=TRACED,
            )
        ).next(WAIT_SECONDS),
    ]


def logs(stack: Stack) -> dict[str, str]:
    """What every process of the platform has written. Each line of ours is an object; gRPC's own library
    writes plain ones, and a line may be cut where a process was killed.
    """
    names = set(process_names(stack))
    found = {
        part.name: Path(part.log_path).read_text(errors="replace")
        for part in stack.processes()
        if part.name in names
    }
    assert set(found) == names
    for text in found.values():
        ours = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        assert ours
        for line in ours:
            assert {"event", "level", "service", "timestamp"} <= set(json.loads(line)), line
    return found


def expositions(stack: Stack) -> dict[str, str]:
    """/metrics of every process."""
    found = {}
    for name in process_names(stack):
        with urllib.request.urlopen(f"http://{stack.http_address(name)}/metrics", timeout=WAIT_SECONDS) as a:
            found[name] = a.read().decode()
    return found
