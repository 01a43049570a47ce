"""What the worker listens to: calls, tickets and offers for the timeline, and crm's own customers for what
came before them.

Every handler may be repeated and may get its events in any order (see `crm.timeline`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.marketing.v1 import events_pb2 as marketing_events
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from crm import convert, glance
from crm.handlers import Memory
from crm.model import Fact, OfferRanking

CALLS: Mapping[type[Any], Callable[[Any], Fact | None]] = {
    routing_events.CallQueued: convert.call_queued,
    routing_events.CallConnected: convert.call_connected,
    routing_events.CallEnded: convert.call_ended,
    routing_events.CallWrappedUp: convert.call_wrapped_up,
}
#: Events that show a ticket whole.
TICKETS: tuple[type[Any], ...] = (
    tickets_events.TicketCreated,
    tickets_events.TicketTransitioned,
    tickets_events.TicketUpdated,
    tickets_events.TicketAssigned,
    tickets_events.CallAttached,
    tickets_events.SlaBreached,
    tickets_events.TicketsMerged,
)
OFFERS: tuple[type[Any], ...] = (marketing_events.RecommendationMade, marketing_events.OfferOutcomeRecorded)
#: Events after which a customer may own numbers that it did not own before.
CUSTOMERS: tuple[type[Any], ...] = (crm_events.CustomerCreated, crm_events.CustomerUpdated)

_TYPES: Mapping[str, type[Any]] = {
    kind.DESCRIPTOR.full_name: kind for kind in (*CALLS, *TICKETS, *OFFERS, *CUSTOMERS)
}


class CrmConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "crm"
    use: ClassVar[Memory]

    @subscribe("routing", *CALLS)
    def on_call(self, event: Event) -> None:
        """Grows a call's interaction."""
        kind = _TYPES[event.type]
        _apply(self.use, CALLS[kind](event.message(kind)))

    @subscribe("tickets", *TICKETS)
    def on_ticket(self, event: Event) -> None:
        """Keeps a ticket's interaction as its newest event shows it."""
        _apply(self.use, convert.ticket_fact(event.message(_TYPES[event.type]).ticket))

    @subscribe("marketing", *OFFERS)
    def on_offer(self, event: Event) -> None:
        """Caches the best offers; what the customer said to one goes into the timeline."""
        message = event.message(_TYPES[event.type])
        if isinstance(message, marketing_events.RecommendationMade):
            remember_ranking(self.use, message)
        else:
            remember_outcome(self.use, message)

    @subscribe("crm", *CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """Gives a customer what its numbers did before it was known."""
        id, numbers = convert.numbers_owned(event.message(_TYPES[event.type]).customer)
        self.use.attach_numbers(id, numbers)


def _apply(use: Memory, fact: Fact | None) -> None:
    if fact is not None:
        use.apply(fact)


def remember_ranking(use: Memory, message: marketing_events.RecommendationMade) -> None:
    """Caches a ranking, "no offer" included, until a newer one comes."""
    subject = convert.offer_subject(message)
    if not subject:
        return
    stamp, expires_ms = convert.ranking_stamp(message), convert.ranking_expiry(message)
    offers = convert.ranked_offers(message)
    use.change_ranking(subject, lambda known: glance.with_ranking(known, stamp, offers, expires_ms))


def remember_outcome(use: Memory, message: marketing_events.OfferOutcomeRecorded) -> None:
    """Takes answered offers off the cached ranking and tells the timeline."""
    fact = convert.offer_fact(message)
    _apply(use, fact)
    subject = convert.offer_subject(message)
    answered = convert.answered_offers(message)
    if not subject or not answered:
        return
    at_ms = convert.outcome_ms(message)

    def answer(known: OfferRanking) -> OfferRanking:
        for offer in answered:
            known = glance.with_answer(known, offer, at_ms)
        return known

    use.change_ranking(subject, answer)
