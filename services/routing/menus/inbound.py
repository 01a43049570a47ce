"""What other services' events mean for menus: whether a number has an open ticket (tickets), whom to forget
(crm). Each event may come again and in any order: the highest version of a ticket counts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pymongo.errors import DuplicateKeyError

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.ids import parse_name, resource_name
from routing.menus.documents import MenuCallerDocument, MenuSessionDocument, OpenTicketDocument
from routing.store import KnownCustomerDocument

#: Days after which a ticket is forgotten that nothing was heard of.
TICKET_DAYS_OPEN, TICKET_DAYS_CLOSED = 365, 30
#: Type of the event of a legal erasure.
ERASED: str = crm_events.CustomerErased.DESCRIPTOR.full_name
_NUMBER = re.compile(r"\+[1-9][0-9]{1,14}")
#: Events after which a ticket may be open that was not, or no longer.
TICKETS: tuple[type[Any], ...] = (
    tickets_events.TicketCreated,
    tickets_events.TicketTransitioned,
    tickets_events.TicketUpdated,
    tickets_events.TicketsMerged,
)
_KINDS = {kind.DESCRIPTOR.full_name: kind for kind in TICKETS}
_OPEN = frozenset(
    {
        ticket_pb2.TICKET_PHASE_NEW,
        ticket_pb2.TICKET_PHASE_ACTIVE,
        ticket_pb2.TICKET_PHASE_WAITING,
    }
)


class CallerKeeper(Protocol):
    """Keeps what other services tell of callers. Methods raise pymongo's errors, and may be repeated."""

    def keep(self, ticket: str, number: str, version: int, *, open: bool) -> None:
        """Keeps whether a number's ticket is open, unless a newer word on it is kept."""

    def forget(self, customer: str) -> None:
        """Takes a customer, and the numbers that it has, out of everything that menus keep."""


class MongoCallers:
    """In MongoDB, blockingly; mongoengine's default connection, which need not be there yet."""

    def keep(self, ticket: str, number: str, version: int, *, open: bool) -> None:
        values: dict[str, Any] = {"number": number, "open": open, "version": version}
        days = timedelta(days=TICKET_DAYS_OPEN if open else TICKET_DAYS_CLOSED)
        values["expires"] = datetime.now(UTC) + days
        older = {"_id": ticket, "version": {"$lt": version}}
        tickets = OpenTicketDocument._get_collection()
        try:
            tickets.update_one(older, {"$set": values}, upsert=True)
        except DuplicateKeyError:
            # This or a newer word is kept; or an older one that came first at the same moment.
            tickets.update_one(older, {"$set": values})

    def forget(self, customer: str) -> None:
        known = KnownCustomerDocument._get_collection().find_one({"_id": customer}, {"numbers": 1}) or {}
        numbers = {"number": {"$in": list(known.get("numbers", ()))}}
        for document in (MenuCallerDocument, OpenTicketDocument):
            document._get_collection().delete_many(numbers)
        theirs = {"$or": [numbers, {"customer": resource_name("customers", customer)}]}
        # Where the caller went stays, for the statistics; who it was does not.
        nameless = {"$set": {"number": "", "customer": ""}, "$unset": {"body": ""}}
        MenuSessionDocument._get_collection().update_many(theirs, nameless)


def hear_erased(use: CallerKeeper, event: Event) -> None:
    """Forgets a customer of whom a CustomerErased tells; before its numbers are forgotten. InvalidArgument
    for one that names none.
    """
    snapshot = event.message(crm_events.CustomerErased).customer
    use.forget(parse_name("customer.customer", "customers", snapshot.customer))


def hear(use: CallerKeeper, event: Event) -> None:
    """Takes in one of `TICKETS`. InvalidArgument for one that names no ticket."""
    snapshot = event.message(_KINDS[event.type]).ticket
    ticket = parse_name("ticket.ticket", "tickets", snapshot.ticket)
    if snapshot.version < 1:
        raise InvalidArgument(field="ticket.version", why="must be at least 1")
    if _NUMBER.fullmatch(snapshot.caller_number):
        use.keep(ticket, snapshot.caller_number, snapshot.version, open=snapshot.phase in _OPEN)
