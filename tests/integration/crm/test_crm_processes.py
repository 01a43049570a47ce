"""Both processes of crm on real MongoDB and RabbitMQ: what other services tell reaches the agent."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import (
    customers_pb2,
    customers_pb2_grpc,
    screen_pop_pb2,
    screen_pop_pb2_grpc,
    timeline_pb2,
    timeline_pb2_grpc,
)
from callmesh.marketing.v1 import events_pb2 as marketing_events
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.bus.publisher import Outcome, Publisher
from chassis.localstack import ProcessGroup, free_ports
from chassis.localstack.group import GrpcReady, HttpReady, ServiceSpec
from chassis.testing.waiting import wait_until

pytestmark = pytest.mark.integration

SERVICES = Path(__file__).parents[3] / "services"
WAIT_SECONDS = 30.0
#: When both processes begin, by their own clock: at ten in China, so that no "today" ends in the middle.
MORNING = datetime.now(UTC).replace(hour=2, minute=0, second=0, microsecond=0)


@dataclass
class Running:
    """The two processes, and what a test drives them with."""

    group: ProcessGroup
    customers: customers_pb2_grpc.CustomerServiceStub
    timeline: timeline_pb2_grpc.TimelineServiceStub
    pops: screen_pop_pb2_grpc.ScreenPopServiceStub
    publisher: Publisher
    database: Any

    def tell(self, *events: Event) -> None:
        assert set(self.publisher.publish_events(events)) <= {Outcome.PUBLISHED}

    def listed(self, **subject: str) -> list[timeline_pb2.Interaction]:
        request = timeline_pb2.ListInteractionsRequest(**subject)
        return list(self.timeline.ListInteractions(request, timeout=30).interactions)


@pytest.fixture(scope="module")
def running(
    mongo_uri: str, amqp_uri: str, mongo_client: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    port, http_port, worker_port = free_ports(3)
    name = f"test_crm_{os.getpid()}"
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SERVICES),
        "PYTHONWARNINGS": "ignore",
        "MONGO_URI": mongo_uri,
        "AMQP_URI": amqp_uri,
        "CRM_MONGO_DATABASE": name,
        "CRM_GRPC_PORT": str(port),
        "CLOCK_ORIGIN_MONOTONIC_MS": str(int(time.monotonic() * 1000)),
        "CLOCK_ORIGIN_BUSINESS_MS": str(int(MORNING.timestamp() * 1000)),
    }
    specs = [
        ServiceSpec(
            name="crm",
            command=[sys.executable, "-m", "crm"],
            env={"CRM_HTTP_PORT": str(http_port)},
            ready=GrpcReady(address=f"127.0.0.1:{port}", service="callmesh.crm.v1.ScreenPopService"),
            start_seconds_max=90,
        ),
        ServiceSpec(
            name="crm-worker",
            command=[sys.executable, "-m", "crm.worker"],
            env={"CRM_HTTP_PORT": str(worker_port)},
            ready=HttpReady(url=f"http://127.0.0.1:{worker_port}/readyz"),
            start_seconds_max=90,
        ),
    ]
    publisher = Publisher(amqp_uri, service="test")
    with (
        ProcessGroup(tmp_path_factory.mktemp("crm"), specs, env=env) as group,
        grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as line,
    ):
        group.start_all()
        yield Running(
            group=group,
            customers=customers_pb2_grpc.CustomerServiceStub(line),
            timeline=timeline_pb2_grpc.TimelineServiceStub(line),
            pops=screen_pop_pb2_grpc.ScreenPopServiceStub(line),
            publisher=publisher,
            database=mongo_client[name],
        )
    publisher.close()
    mongo_client.drop_database(name)


def call_story(call_id: str, number: str, began: datetime) -> list[Event]:
    """A call that is moved once, answered and wrapped up."""

    def event(message: Any, move: int, sequence: int, seconds: int) -> Event:
        message.call.CopyFrom(
            routing_events.CallRef(
                call_id=call_id,
                version=common_pb2.CallVersion(attempt=1, move=move),
                shard="beijing" if move == 1 else "chengdu",
                epoch=10 - move,
                sequence=sequence,
                caller_number=number,
                channel=common_pb2.CHANNEL_VOICE,
                queue="queues/bills",
                region="regions/beijing" if move == 1 else "regions/chengdu",
            )
        )
        at = began + timedelta(seconds=seconds)
        message.event_time.FromDatetime(at)
        id = f"{call_id}:{move}:{sequence}"
        return Event.of(message, source="routing", subject=f"calls/{call_id}", time=at, id=id)

    ended = routing_events.CallEnded(outcome=call_pb2.CALL_OUTCOME_COMPLETED)
    ended.queue_time.FromDatetime(began)
    ended.talk.FromSeconds(60)
    wrapped = routing_events.CallWrappedUp(
        disposition=call_pb2.Disposition(code="explained", contact_reason="billing", resolved=False)
    )
    return [
        event(routing_events.CallQueued(), 1, 1, 0),
        event(routing_events.CallEnded(outcome=call_pb2.CALL_OUTCOME_MOVED), 1, 7, 5),
        event(routing_events.CallQueued(), 2, 1, 5),
        event(routing_events.CallConnected(), 2, 2, 10),
        event(ended, 2, 3, 70),
        event(wrapped, 2, 4, 90),
    ]


def told(message: Message, source: str, subject: str) -> Event:
    return Event.of(message, source=source, subject=subject, time=datetime.now(UTC))


def test_what_others_tell_reaches_the_screen(running: Running) -> None:
    number = "+8613900000001"
    began = MORNING
    story = call_story("call-1", number, began)
    chance = random.Random(7)
    mixed = [*story, *story]
    chance.shuffle(mixed)
    running.tell(*mixed)

    def settled() -> list[timeline_pb2.Interaction]:
        found = running.listed(phone_number=number)
        whole = found and found[0].call.disposition and found[0].call.HasField("talk_duration")
        return found if whole else []

    (seen,) = wait_until(settled, WAIT_SECONDS)
    assert seen.call.state == timeline_pb2.CallDetail.STATE_COMPLETED and seen.region == "regions/chengdu"
    assert seen.start_time.ToDatetime(UTC) == began and seen.call.talk_duration.seconds == 60

    customer = customers_pb2.Customer(display_name="李伟", language="zh-CN", tier=customers_pb2.TIER_GOLD)
    customer.phone_numbers.add(number=number)
    request = customers_pb2.CreateCustomerRequest(customer=customer, customer_id="li")
    running.customers.CreateCustomer(request, timeout=30)
    # The relay publishes CustomerCreated, the worker hears it and moves the call over.
    wait_until(lambda: running.database.interactions.find_one({"subject": "c:li"}), WAIT_SECONDS)
    wait_until(lambda: running.database.customers.find_one({"_id": "li", "outbox_since": None}), WAIT_SECONDS)

    snapshot = tickets_events.TicketSnapshot(
        ticket="tickets/t1",
        kind=ticket_pb2.TICKET_KIND_COMPLAINT,
        phase=ticket_pb2.TICKET_PHASE_NEW,
        subject="no signal",
        customer="customers/li",
        version=1,
    )
    snapshot.create_time.FromDatetime(began)
    ranking = marketing_events.RecommendationMade(decision="decisions/d", customer="customers/li")
    ranking.offers.add(offer="offers/plus", rank=1).titles.add(language="zh", text="加量包")
    ranking.create_time.FromDatetime(began)
    running.tell(
        told(tickets_events.TicketCreated(ticket=snapshot), "tickets", "tickets/t1"),
        told(ranking, "marketing", "customers/li"),
    )

    def pop() -> screen_pop_pb2.ScreenPop | None:
        wanted = screen_pop_pb2.GetScreenPopRequest(phone_number="139 0000 0001", call_id="live")
        answer = running.pops.GetScreenPop(wanted, timeout=30)
        return answer if answer.open_tickets and answer.offers else None

    shown = wait_until(pop, WAIT_SECONDS)
    assert shown is not None and not shown.missing
    assert shown.customer.name == "customers/li" and shown.customer.tier == customers_pb2.TIER_GOLD
    assert shown.call_ordinal_today == 2 and shown.last_call.call_id == "call-1"
    assert shown.repeat_call_notice.startswith("今天第2次来电") and "未解决" in shown.repeat_call_notice
    assert shown.open_tickets[0].ticket == "tickets/t1" and shown.offers[0].title == "加量包"


def test_a_killed_worker_loses_nothing(running: Running) -> None:
    number = "+8613900000002"
    began = MORNING
    stories = [call_story(f"kill-{index}", number, began) for index in range(30)]
    events = [event for story in stories for event in story]
    random.Random(3).shuffle(events)
    running.tell(*events[:90])
    running.group.kill("crm-worker")
    running.tell(*events[90:])
    running.group.start("crm-worker")

    def complete() -> bool:
        found = running.listed(phone_number=number)
        return len(found) == 30 and all(
            item.call.state == timeline_pb2.CallDetail.STATE_COMPLETED and item.call.disposition
            for item in found
        )

    wait_until(complete, 60.0)
    assert {item.start_time.ToDatetime(UTC) for item in running.listed(phone_number=number)} == {began}


def test_the_processes_keep_apart_what_must_not_meet(running: Running) -> None:
    for module, absent in (("crm.server", "eventlet"), ("crm.worker", "grpc"), ("crm.inbound", "grpc")):
        program = f"import sys, {module}; sys.exit('{absent}' in sys.modules)"
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SERVICES)}
        assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", program], env) == 0, module
