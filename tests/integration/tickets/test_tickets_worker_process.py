"""The worker on a real broker: calls become tickets, timers fire once though a worker is killed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2
from chassis.bus import Event
from chassis.bus.connection import open_connection
from chassis.bus.publisher import Outcome, Publisher
from chassis.clock import SystemClock
from chassis.ids import new_id
from chassis.mongo import connect, disconnect, ensure_indexes
from chassis.testing.waiting import wait_until
from tickets import convert, engine
from tickets import sla as clocks
from tickets.config import TicketsSettings
from tickets.documents import DOCUMENTS, TicketDocument
from tickets.handlers import Create, Handlers
from tickets.model import Draft, Kind, Phase, Rules
from tickets.records import MongoRecords, Record
from tickets.store import MongoStore

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

#: Tickets of each sort in the test of the timers.
MANY = 150


class Listener:
    """Keeps every event that tickets tells, by id: the bus may tell one twice."""

    def __init__(self, amqp_uri: str) -> None:
        self._connection = open_connection(amqp_uri)
        self._channel = self._connection.channel()
        self._channel.exchange_declare("tickets.events", "topic", durable=True, auto_delete=False)
        self._queue = self._channel.queue_declare("", exclusive=True).queue
        self._channel.queue_bind(self._queue, "tickets.events", "#")
        self.events: dict[str, Event] = {}

    def of(self, message: type[Any]) -> list[Any]:
        """All messages of a type told so far."""
        while (got := self._channel.basic_get(self._queue, no_ack=True)) is not None:
            event = Event.from_json(got.body)
            self.events[event.id] = event
        name = message.DESCRIPTOR.full_name
        return [event.message(message) for event in self.events.values() if event.type == name]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def listener(amqp_uri: str) -> Iterator[Listener]:
    listener = Listener(amqp_uri)
    yield listener
    listener.close()


@pytest.fixture
def publish(amqp_uri: str) -> Iterator[Callable[..., None]]:
    publisher = Publisher(amqp_uri, service="test")

    def send(source: str, *messages: Message, times: int = 1) -> None:
        now = SystemClock().now()
        events = [Event.of(message, source=source, subject="", time=now, id=new_id()) for message in messages]
        assert set(publisher.publish_events(events * times)) == {Outcome.PUBLISHED}

    yield send
    publisher.close()


@pytest.fixture
def store(mongo_uri: str, mongo_database: str) -> Iterator[MongoStore]:
    connect(TicketsSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(DOCUMENTS)
    yield MongoStore()
    disconnect()


def wrapped_up(call_id: str, number: str, **disposition: Any) -> routing_events.CallWrappedUp:
    message = routing_events.CallWrappedUp(
        call=routing_events.CallRef(
            call_id=call_id, caller_number=number, agent="agents/7", channel=common_pb2.CHANNEL_VOICE
        ),
        disposition=call_pb2.Disposition(
            code="billing",
            ticket=call_pb2.TicketRequest(kind="inquiry", category="billing", subject="Bill too high"),
            **disposition,
        ),
    )
    message.event_time.FromMilliseconds(SystemClock().now_ms())
    return message


def test_calls_become_tickets_and_tickets_become_news(
    start_process: Callable[..., Any],
    amqp_uri: str,
    store: MongoStore,
    listener: Listener,
    publish: Callable[..., None],
) -> None:
    start_process("tickets.worker", "worker", AMQP_URI=amqp_uri)
    mark = new_id()
    known, unknown, number = f"{mark}-a", f"{mark}-b", "+8613800138001"
    snapshot = crm_events.CustomerSnapshot(
        customer=f"customers/{mark}", version=1, numbers=[number], tier=customers_pb2.TIER_VIP
    )
    publish("crm", crm_events.CustomerCreated(customer=snapshot), times=2)
    wait_until(lambda: store.profile(mark), 30, what="the customer is known")

    publish("routing", wrapped_up(known, number), times=3)
    publish("routing", wrapped_up(unknown, "+8613800138002", resolved=True))
    wait_until(lambda: store.by_call(known) and store.by_call(unknown), 30, what="both tickets are open")
    publish("routing", wrapped_up(f"{mark}-c", number), wrapped_up(known, number))
    wait_until(lambda: store.by_call(f"{mark}-c"), 30, what="the repeat call is linked")

    first, other = store.by_call(known), store.by_call(unknown)
    assert first is not None and other is not None
    assert first.draft.customer_id == mark and first.tier == "vip" and first.call_count == 2
    assert other.first_contact_resolved and other.phase is Phase.RESOLVED
    assert TicketDocument.objects.count() == 2

    def told() -> bool:
        return len(listener.of(events_pb2.TicketCreated)) == 2 and bool(listener.of(events_pb2.CallAttached))

    wait_until(told, 30, what="everything is told")
    created = {message.ticket.ticket: message for message in listener.of(events_pb2.TicketCreated)}
    assert created[f"tickets/{first.id}"].ticket.customer_tier == "VIP"
    assert created[f"tickets/{first.id}"].ticket.call == f"calls/{known}"
    (attached,) = listener.of(events_pb2.CallAttached)
    assert attached.ticket.version == 2 and attached.call.call == f"calls/{mark}-c"
    check_care(store, publish, snapshot)


def check_care(
    store: MongoStore, publish: Callable[..., None], customer: crm_events.CustomerSnapshot
) -> None:
    task = f"careTasks/{new_id()}"
    raised = crm_events.CareTaskRaised(care_task=task, customer=customer, kind="SILENCE", text="quiet")
    leaving = crm_events.LeaveIntentFlagged(customer=customer.customer, wants_to_leave=True)
    risk = crm_events.ChurnRiskChanged(customer=customer.customer, score=0.9)
    publish("crm", raised, leaving, risk, times=2)
    mine = customer.customer.removeprefix("customers/")

    def care() -> set[tuple[str, Phase]]:
        found = TicketDocument.objects(customer_id=mine, kind="care").only("category", "phase")
        return {(ticket.category, Phase(ticket.phase)) for ticket in found}

    wait_until(lambda: len(care()) == 2, 30, what="both occasions are somebody's work")
    publish("crm", crm_events.CareTaskClosed(care_task=task, customer=customer.customer, state="DONE"))
    over = {("silence", Phase.CANCELLED), ("retention", Phase.NEW)}
    wait_until(lambda: care() == over, 30, what="the one that is over is cancelled")
    assert TicketDocument.objects(customer_id=mine, kind="care").count() == 2
    records = MongoRecords()
    records.insert(Record(kind="assets", id=mine, body="{}", search={"customer": mine}))
    gone = crm_events.CustomerSnapshot(customer=customer.customer, version=customer.version + 1)
    publish("crm", crm_events.CustomerErased(customer=gone))
    wait_until(lambda: records.find("assets", mine) is None, 30, what="the erased customer's asset is gone")
    assert TicketDocument.objects(customer_id=mine).count() == 0


def seed(store: MongoStore) -> None:
    """`MANY` tickets whose first-response target passes, and `MANY` whose return visit is due, now."""
    opened = SystemClock().now_ms() - 3_600_000
    rules = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=3_600_000)
    for n in range(MANY):
        waiting = engine.open_ticket(
            f"w{n}", Kind.INQUIRY, Draft(subject="w"), rules, opened, actor="a"
        ).ticket
        done = engine.open_ticket(f"r{n}", Kind.INQUIRY, Draft(subject="r"), rules, opened, actor="a").ticket
        act = engine.Act(verb="resolve", actor="a")
        done = engine.transition(done, act, rules, opened).ticket
        for ticket in (waiting, done):
            store.insert(ticket, ())


def test_timers_fire_once_though_their_worker_is_killed(
    start_process: Callable[..., Any], amqp_uri: str, store: MongoStore, listener: Listener
) -> None:
    workers = {
        name: start_process("tickets.worker", name, AMQP_URI=amqp_uri, TICKETS_TIMER_LEASE_SECONDS="1")[0]
        for name in ("one", "two")
    }
    leases = TicketDocument._get_collection().database["leases"]

    def holder() -> str:
        found = leases.find_one({"_id": "timers"})
        return found["holder"].rpartition("-")[0] if found else ""

    wait_until(lambda: holder() in workers, 30, what="a worker runs the timers")
    # They stand still meanwhile: on a slow machine the first would be long done before the last is there.
    for worker in workers.values():
        worker.halt()
    seed(store)
    for worker in workers.values():
        worker.send(signal.SIGCONT)
    tickets = TicketDocument._get_collection()

    def fired() -> int:
        return int(tickets.count_documents({"parent_id": {"$exists": True}}))

    wait_until(lambda: 0 < fired() < MANY, 30, what="some of the timers have fired")
    victim = workers[holder()]
    victim.kill()
    killed_at = fired()
    assert killed_at < MANY, "the kill came too late to show anything"
    # Nor soon: the workers' clocks may be behind this one, or it may have been set back since they began.
    wait_until(lambda: not store.due(SystemClock().now_ms() + 60_000, 1), 60, what="every timer has fired")

    assert fired() == MANY
    assert tickets.count_documents({"breached": True}) == MANY
    assert all(store.get(f"r{n}").follow_up == expected_plan(store, n) for n in range(MANY))

    def told() -> bool:
        return (
            len(listener.of(events_pb2.TicketCreated)) >= MANY
            and len(listener.of(events_pb2.SlaBreached)) >= MANY
        )

    wait_until(told, 40, what="everything is told")
    time_to_be_told_twice = time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() > time_to_be_told_twice and listener.of(events_pb2.SlaBreached))
    visits = Counter(message.ticket.parent for message in listener.of(events_pb2.TicketCreated))
    breaches = Counter(message.ticket.ticket for message in listener.of(events_pb2.SlaBreached))
    assert visits == {f"tickets/r{n}": 1 for n in range(MANY)}
    assert breaches == {f"tickets/w{n}": 1 for n in range(MANY)}
    assert not victim.alive()


def expected_plan(store: MongoStore, n: int) -> Any:
    """The plan of a resolved ticket once its visit exists."""
    visit = store.get(f"r{n}.visit-1")
    plan = store.get(f"r{n}").follow_up
    assert plan is not None and visit.created_ms >= plan.schedule_ms
    return replace(plan, created=True, ticket_id=visit.id)


def test_a_verdict_left_by_a_crashed_server_is_carried_out(
    start_process: Callable[..., Any], amqp_uri: str, store: MongoStore
) -> None:
    rules = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=1)
    clock = SystemClock()
    use = Handlers(store, clock, rules, convert.event_of)
    parent = use.create(Create(kind=Kind.INQUIRY, draft=Draft(subject="x"), actor="a", ticket_id="p"))
    use.transition(parent.id, None, engine.Act(verb="resolve", actor="a"))
    wait_until(lambda: clock.now_ms() > parent.created_ms + 1_000 or use.due(1))
    use.fire("p")
    # The server died between storing the verdict and telling the parent: only the visit was written.
    act = engine.Act(verb="dissatisfied", actor="a", reason="still broken")
    visit = engine.transition(store.get("p.visit-1"), act, rules, clock.now_ms()).ticket
    store.update(visit, ())
    worker, _ = start_process("tickets.worker", "worker", AMQP_URI=amqp_uri)
    wait_until(lambda: store.get("p").phase is Phase.ACTIVE, 60, what="the parent is reopened")
    assert store.get("p").reopen_count == 1
    wait_until(lambda: store.get("p.visit-1").intents == (), 30, what="the intent is taken off")
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.exit_code() is not None, 30, what="the worker has ended")
    assert worker.exit_code() == 0
