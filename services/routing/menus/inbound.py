"""What tickets' events mean for menus: whether a number has an open ticket. Each event may come again and
in any order: the highest version of a ticket counts.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.ids import parse_name
from routing.menus.documents import OpenTicketDocument
from routing.menus.store import keep_ticket

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


class TicketKeeper(Protocol):
    """Keeps tickets."""

    def keep(self, ticket: str, number: str, version: int, *, open: bool) -> None:
        """Keeps whether a ticket is open, unless a newer word on it is kept. Raises pymongo's errors."""


class MongoTickets:
    """Tickets in MongoDB, blockingly; mongoengine's default connection, which need not be there yet."""

    def keep(self, ticket: str, number: str, version: int, *, open: bool) -> None:
        keep_ticket(OpenTicketDocument._get_collection(), ticket, number, version, open=open)


def hear(use: TicketKeeper, event: Event) -> None:
    """Takes in one of `TICKETS`. InvalidArgument for one that names no ticket."""
    snapshot = event.message(_KINDS[event.type]).ticket
    ticket = parse_name("ticket.ticket", "tickets", snapshot.ticket)
    if snapshot.version < 1:
        raise InvalidArgument(field="ticket.version", why="must be at least 1")
    if _NUMBER.fullmatch(snapshot.caller_number):
        use.keep(ticket, snapshot.caller_number, snapshot.version, open=snapshot.phase in _OPEN)
