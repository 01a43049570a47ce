"""What the other services' events mean to marketing. Every event may come twice, and events of one thing in
another order: versions decide, in the store's conditional writes. Loads neither grpc nor eventlet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.tickets.v1 import events_pb2 as tickets
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name
from marketing import convert
from marketing.handlers import Facts

#: Longest kind of an occasion to care for a customer.
KIND_CHARACTERS_MAX = 64
#: How one kind of message is taken in.
Reading = Callable[[Facts, Any, Event], None]


def _customer(facts: Facts, message: Any, event: Event) -> None:
    facts.customer(convert.profile_from_snapshot(message.customer, event.time))


def _customer_erased(facts: Facts, message: Any, event: Event) -> None:
    facts.erased(convert.profile_from_snapshot(message.customer, event.time))


def _customers_merged(facts: Facts, message: Any, event: Event) -> None:
    absorbed = [parse_name("absorbed", "customers", name) for name in message.absorbed]
    facts.merged(convert.profile_from_snapshot(message.survivor, event.time), absorbed, event.time)


def _customers_unmerged(facts: Facts, message: Any, event: Event) -> None:
    restored = [convert.profile_from_snapshot(snapshot, event.time) for snapshot in message.restored]
    facts.unmerged(convert.profile_from_snapshot(message.survivor, event.time), restored, event.time)


def _leave_intent(facts: Facts, message: Any, event: Event) -> None:
    # Of a caller who is no customer there is nothing to keep.
    if message.customer:
        customer = parse_name("customer", "customers", message.customer)
        facts.leave_intent(customer, message.wants_to_leave, event.time)


def _churn_risk(facts: Facts, message: Any, event: Event) -> None:
    customer = parse_name("customer", "customers", message.customer)
    if not 0 <= message.score <= 1:
        raise InvalidArgument(field="score", why="must be 0 to 1")
    facts.churn_risk(customer, message.score, event.time)


def _care_raised(facts: Facts, message: Any, event: Event) -> None:
    _care(
        facts,
        message.customer.customer,
        message.care_task,
        check_id("kind", message.kind, KIND_CHARACTERS_MAX),
    )


def _care_closed(facts: Facts, message: Any, event: Event) -> None:
    _care(facts, message.customer, message.care_task, "")


def _care(facts: Facts, customer: str, task: str, kind: str) -> None:
    id = parse_name("customer", "customers", customer)
    facts.care(id, parse_name("care_task", "careTasks", task), kind)


def _ticket(facts: Facts, message: Any, event: Event) -> None:
    if message.ticket.kind == ticket_pb2.TICKET_KIND_COMPLAINT:
        facts.complaint(convert.complaint_from_snapshot(message.ticket, event.time))


def _tickets_merged(facts: Facts, message: Any, event: Event) -> None:
    facts.complaint_merged(parse_name("source", "tickets", message.source))
    _ticket(facts, message, event)


#: What is heard of crm.
CUSTOMERS: Mapping[type[Any], Reading] = {
    crm.CustomerCreated: _customer,
    crm.CustomerUpdated: _customer,
    crm.CustomerDeleted: _customer,
    crm.CustomerErased: _customer_erased,
    crm.CustomersMerged: _customers_merged,
    crm.CustomersUnmerged: _customers_unmerged,
    crm.LeaveIntentFlagged: _leave_intent,
    crm.ChurnRiskChanged: _churn_risk,
    crm.CareTaskRaised: _care_raised,
    crm.CareTaskClosed: _care_closed,
}
#: Type of the event of a legal erasure.
ERASED: str = crm.CustomerErased.DESCRIPTOR.full_name

#: What is heard of tickets.
TICKETS: Mapping[type[Any], Reading] = {
    tickets.TicketCreated: _ticket,
    tickets.TicketTransitioned: _ticket,
    tickets.TicketUpdated: _ticket,
    tickets.TicketsMerged: _tickets_merged,
}
#: What of it is about one customer as they are.
_TELLING = (
    crm.CustomerCreated,
    crm.CustomerUpdated,
    crm.CustomerDeleted,
    crm.CustomerErased,
    crm.CareTaskRaised,
)
_BY_NAME = {kind.DESCRIPTOR.full_name: kind for kind in (*CUSTOMERS, *TICKETS)}


def learn(facts: Facts, event: Event) -> None:
    """Takes in one event. MalformedEvent when its data is not what its type says, KeyError for a type that is
    in neither table.
    """
    kind = _BY_NAME[event.type]
    reading = CUSTOMERS.get(kind) or TICKETS[kind]
    reading(facts, event.message(kind), event)


def numbers_told(event: Event) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What an event of crm's says of numbers, by customer id: (their numbers, ids of whom they were merged
    into). MalformedEvent.
    """
    kind = _BY_NAME[event.type]
    message, kin = event.message(kind), ""
    if kind in (crm.CustomersMerged, crm.CustomersUnmerged):
        snapshots, kin = [message.survivor, *getattr(message, "restored", ())], message.survivor.customer
    elif kind in _TELLING:
        snapshots = [message.customer]
    else:
        return {}
    above = (parse_name("survivor", "customers", kin),) if kin else ()
    return {
        parse_name("customer", "customers", one.customer): (tuple(one.numbers), above)
        for one in snapshots
        if one.numbers
    }
