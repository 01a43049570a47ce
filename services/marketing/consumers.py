"""What marketing hears from the other services. Every handler may see an event twice, and events of one thing
in another order: versions decide, in the store's conditional writes.
"""

from __future__ import annotations

from typing import Any

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.tickets.v1 import events_pb2 as tickets
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from chassis.ids import parse_name
from marketing import convert
from marketing.handlers import Facts
from marketing.store import MongoStore

#: The parts of tickets' events that carry a whole ticket.
TICKET_EVENTS: dict[str, Any] = {
    message.DESCRIPTOR.full_name: message
    for message in (
        tickets.TicketCreated,
        tickets.TicketTransitioned,
        tickets.TicketUpdated,
    )
}
CUSTOMER_EVENTS: dict[str, Any] = {
    message.DESCRIPTOR.full_name: message
    for message in (crm.CustomerCreated, crm.CustomerUpdated, crm.CustomerDeleted)
}


class MarketingConsumers:
    """The worker's service."""

    name = "marketing"

    facts = Facts(MongoStore())

    @subscribe("crm", *CUSTOMER_EVENTS)
    def on_customer(self, event: Event) -> None:
        """A customer as it is now."""
        message = event.message(CUSTOMER_EVENTS[event.type])
        self.facts.customer(convert.profile_from_snapshot(message.customer, event.time))

    @subscribe("crm", crm.CustomerErased)
    def on_customer_erased(self, event: Event) -> None:
        """Personal data must go."""
        message = event.message(crm.CustomerErased)
        self.facts.erased(convert.profile_from_snapshot(message.customer, event.time))

    @subscribe("crm", crm.CustomersMerged)
    def on_customers_merged(self, event: Event) -> None:
        """Several are one."""
        message = event.message(crm.CustomersMerged)
        absorbed = [parse_name("absorbed", "customers", name) for name in message.absorbed]
        self.facts.merged(convert.profile_from_snapshot(message.survivor, event.time), absorbed)

    @subscribe("crm", crm.CustomersUnmerged)
    def on_customers_unmerged(self, event: Event) -> None:
        """One is several again."""
        message = event.message(crm.CustomersUnmerged)
        restored = [convert.profile_from_snapshot(snapshot, event.time) for snapshot in message.restored]
        self.facts.unmerged(convert.profile_from_snapshot(message.survivor, event.time), restored)

    @subscribe("crm", crm.LeaveIntentFlagged)
    def on_leave_intent(self, event: Event) -> None:
        """A word on leaving; of a caller who is no customer there is nothing to keep."""
        message = event.message(crm.LeaveIntentFlagged)
        if message.customer:
            customer = parse_name("customer", "customers", message.customer)
            self.facts.leave_intent(customer, message.wants_to_leave, event.time)

    @subscribe("tickets", *TICKET_EVENTS)
    def on_ticket(self, event: Event) -> None:
        """A complaint was made, or moved on."""
        snapshot = event.message(TICKET_EVENTS[event.type]).ticket
        if snapshot.kind == ticket_pb2.TICKET_KIND_COMPLAINT:
            self.facts.complaint(convert.complaint_from_snapshot(snapshot))

    @subscribe("tickets", tickets.TicketsMerged)
    def on_tickets_merged(self, event: Event) -> None:
        """A complaint goes on in another ticket."""
        message = event.message(tickets.TicketsMerged)
        self.facts.complaint_merged(parse_name("source", "tickets", message.source))
        if message.ticket.kind == ticket_pb2.TICKET_KIND_COMPLAINT:
            self.facts.complaint(convert.complaint_from_snapshot(message.ticket))
