"""Events learned in lists leave the memory as events learned one by one do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.testing import FakeClock
from crm import inbound
from crm.handlers import Create, Customers, Memory, Policy
from crm.memory_store import MemoryStore
from crm.model import Customer, Entry, PhoneNumber
from crm.sagas import Erasures, Merges, MergeWish

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
NUMBERS = [f"+861380000000{n}" for n in range(4)]


def call(id: int, what: int) -> Event:
    ref = routing_events.CallRef(
        call_id=f"call-{id}",
        version=common_pb2.CallVersion(attempt=1, move=1),
        shard="beijing",
        epoch=1,
        sequence=what + 1,
        caller_number=NUMBERS[id % 4],
        channel=common_pb2.CHANNEL_VOICE,
    )
    message = [
        routing_events.CallQueued(call=ref),
        routing_events.CallEnded(call=ref, outcome=call_pb2.CALL_OUTCOME_COMPLETED),
        routing_events.CallWrappedUp(call=ref, disposition=call_pb2.Disposition(code="ok", resolved=True)),
    ][what]
    message.event_time.FromDatetime(NOW + timedelta(minutes=what))
    return Event.of(message, source="routing", subject=f"calls/call-{id}", time=NOW)


def ticket(id: int, version: int) -> Event:
    snapshot = tickets_events.TicketSnapshot(
        ticket=f"tickets/t{id}",
        version=version,
        kind=ticket_pb2.TICKET_KIND_COMPLAINT,
        state="open" if version < 3 else "closed",
        customer=f"customers/c{id % 3}",
    )
    snapshot.create_time.FromDatetime(NOW)
    message = tickets_events.TicketUpdated(ticket=snapshot)
    return Event.of(message, source="tickets", subject=f"tickets/t{id}", time=NOW)


def known(customer: int) -> Event:
    snapshot = crm_events.CustomerSnapshot(
        customer=f"customers/c{customer}",
        numbers=[NUMBERS[customer]],
        state=customers_pb2.CUSTOMER_STATE_ACTIVE,
    )
    message = crm_events.CustomerCreated(customer=snapshot)
    return Event.of(message, source="crm", subject=f"customers/c{customer}", time=NOW)


EVENTS = st.one_of(
    st.builds(call, st.integers(0, 7), st.integers(0, 2)),
    st.builds(ticket, st.integers(0, 5), st.integers(1, 4)),
    st.builds(known, st.integers(0, 2)),
)


def world() -> tuple[MemoryStore, Memory]:
    """c0 lives, c1 is merged into it, c2 is erased; the fourth number is nobody's."""
    store, clock = MemoryStore(), FakeClock(NOW)
    customers = Customers(store, clock, Policy())
    for n in range(3):
        numbers = (PhoneNumber(number=NUMBERS[n]),)
        customers.create(
            Create(draft=Customer(display_name=f"客户{n}", phone_numbers=numbers), id=f"c{n}"), "amy"
        )
    Merges(store, clock).request(MergeWish(survivor="c0", absorbed=("c1",)), "amy")
    Erasures(store, clock).erase("c2", "asked for", "amy")
    return store, Memory(store, clock)


def seen(store: MemoryStore) -> dict[str, Entry]:
    """Without what counts writes."""
    return {id: replace(entry, revision=0, updated_ms=0) for id, entry in store._entries.items()}


@settings(max_examples=30, deadline=None)
@given(st.lists(EVENTS, max_size=25), st.lists(st.integers(1, 6), min_size=1, max_size=6), st.randoms())
def test_lists_and_single_events_come_out_the_same(
    events: list[Event], sizes: list[int], random: object
) -> None:
    one_by_one, alone = world()
    for event in events:
        inbound.learn(alone, event)
    in_lists, together = world()
    # Redelivered and in another order as well.
    again = [*events, *events[::2]]
    random.shuffle(again)  # type: ignore[attr-defined]
    while again:
        size = sizes[len(again) % len(sizes)]
        inbound.learn_together(together, again[:size])
        again = again[size:]
    assert seen(in_lists) == seen(one_by_one)
    assert in_lists.marked == one_by_one.marked


def test_who_wants_to_leave_is_told_by_himself() -> None:
    said = call_pb2.Disposition(code="x", wants_to_leave=True)
    ref = routing_events.CallRef(call_id="c", caller_number=NUMBERS[0])
    message = routing_events.CallWrappedUp(call=ref, disposition=said)
    event = Event.of(message, source="routing", subject="calls/c", time=NOW)
    assert inbound.stands_alone(event) and not inbound.stands_alone(call(1, 2))
