"""Segments that follow events: a customer of whom such an event tells joins at once where the segment's rule
holds, and leaves where it does not any more.

Where customers are merged, or given back, all of them are looked at anew in each segment in which one of them
is.

Events may come twice and in another order: what counts is the customer as marketing knows them by then
(inbound.py has taken the event in before), so the last word is always that of the latest state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.json_format import ParseDict

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import campaigns_pb2
from callmesh.marketing.v1 import events_pb2 as own
from callmesh.routing.v1 import events_pb2 as routing
from callmesh.tickets.v1 import events_pb2 as tickets
from chassis.bus import Event
from chassis.errors import NotFound
from marketing import convert
from marketing.campaign_store import Members
from marketing.engine import audience_fits
from marketing.kinds import SEGMENTS
from marketing.model import Contact, Profile
from marketing.rules import CustomerFacts, compiled
from marketing.shelf import Row, Shelves
from marketing.store import Store

#: Segments that one event may concern.
SEGMENTS_MAX = 1_000

#: (name of the customer, E.164 number) that a message is about, either may be "".
Whom = Callable[[Any], tuple[str, str]]

#: What may make a customer join or leave, and whom it is about.
TRIGGERS: Mapping[type[Any], Whom] = {
    crm.CustomerCreated: lambda message: (message.customer.customer, ""),
    crm.CustomerUpdated: lambda message: (message.customer.customer, ""),
    crm.LeaveIntentFlagged: lambda message: (message.customer, ""),
    crm.ChurnRiskChanged: lambda message: (message.customer, ""),
    crm.CareTaskRaised: lambda message: (message.customer.customer, ""),
    crm.CareTaskClosed: lambda message: (message.customer, ""),
    tickets.TicketCreated: lambda message: (message.ticket.customer, message.ticket.caller_number),
    tickets.TicketTransitioned: lambda message: (message.ticket.customer, message.ticket.caller_number),
    tickets.TicketUpdated: lambda message: (message.ticket.customer, message.ticket.caller_number),
    routing.CallWrappedUp: lambda message: ("", message.call.caller_number),
    own.OfferOutcomeRecorded: lambda message: (message.customer, message.caller_number),
    own.SurveyCompleted: lambda message: (message.customer, ""),
    own.OutboundResultRecorded: lambda message: (message.customer, message.number),
    own.LeadTransitioned: lambda message: (message.customer, ""),
}
#: The same by the message's full name.
TRIGGERS_BY_NAME: Mapping[str, tuple[type[Any], Whom]] = {
    kind.DESCRIPTOR.full_name: (kind, whom) for kind, whom in TRIGGERS.items()
}

#: What makes several customers one, or one several again, and who they are.
TOGETHER: Mapping[type[Any], Callable[[Any], Sequence[str]]] = {
    crm.CustomersMerged: lambda message: (message.survivor.customer, *message.absorbed),
    crm.CustomersUnmerged: lambda message: (
        message.survivor.customer,
        *(restored.customer for restored in message.restored),
    ),
}
TOGETHER_BY_NAME: Mapping[str, tuple[type[Any], Callable[[Any], Sequence[str]]]] = {
    kind.DESCRIPTOR.full_name: (kind, whom) for kind, whom in TOGETHER.items()
}

_NOWHERE = Contact()


def belongs(audience: Any, rule: str, profile: Profile, now: datetime) -> bool:
    """Whether a customer belongs to an audience for whom a rule holds."""
    if not profile.alive or not audience_fits(audience, profile, _NOWHERE):
        return False
    return not rule or bool(compiled(rule).matches(CustomerFacts(profile, _NOWHERE, now)))


class Segments:
    """Takes customers into segments and out of them."""

    def __init__(self, shelves: Shelves, store: Store, members: Members) -> None:
        self._shelves = shelves
        self._store = store
        self._members = members

    def heard(self, event: Event) -> int:
        """Looks at whom an event is about, for each segment that listens for it; how many joined or left.
        MalformedEvent.
        """
        if (one_now := TOGETHER_BY_NAME.get(event.type)) is not None:
            kind, whom = one_now
            return self._anew(whom(event.message(kind)), event.time)
        found = TRIGGERS_BY_NAME.get(event.type)
        if found is None:
            return 0
        listening = self._shelves.find(SEGMENTS, {"triggers": event.type}, SEGMENTS_MAX)
        if not listening:
            return 0
        kind, whom = found
        profile = self._profile(*whom(event.message(kind)))
        if profile is None:
            return 0
        return sum(self._look(row, profile, event.time) for row in listening)

    def _look(self, row: Row, profile: Profile, at: datetime) -> bool:
        """Takes a customer into a segment or out of it; whether that changed anything."""
        segment = campaigns_pb2.Segment()
        ParseDict(row.content["resource"], segment, ignore_unknown_fields=True)
        audience = convert.audience_from_proto("audience", segment.audience, [])
        if belongs(audience, segment.rule, profile, at):
            return self._members.join(row.id, profile.customer, at)
        return self._members.leave(row.id, profile.customer)

    def _anew(self, names: Sequence[str], at: datetime) -> int:
        """Looks at customers for each segment in which one of them is."""
        customers = [name.removeprefix("customers/") for name in names if name]
        moved = 0
        for id in self._members.segments_of(customers) if customers else ():
            try:
                row = self._shelves.get(SEGMENTS, id)
            except NotFound:
                continue
            for customer in customers:
                if (profile := self._store.profile(customer)) is not None:
                    moved += self._look(row, profile, at)
        return moved

    def _profile(self, customer: str, number: str) -> Profile | None:
        if customer:
            return self._store.profile(customer.removeprefix("customers/"))
        return self._store.profile_of_number(number) if number else None
