"""What crm learns from events: each kind of event and what it does to the memory. Knows neither broker nor
framework, so that consumers, replays and tests share it. Everything here may be repeated and may come in any
order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.marketing.v1 import events_pb2 as marketing_events
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.routing.v1 import menu_events_pb2 as menu_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from chassis.bus import Event
from crm import convert, glance, timeline
from crm.handlers import Memory
from crm.model import Fact, OfferRanking

_FACTS: Mapping[type[Any], Callable[[Any], Fact | None]] = {
    routing_events.CallQueued: convert.call_queued,
    routing_events.CallConnected: convert.call_connected,
    routing_events.CallEnded: convert.call_ended,
    routing_events.CallWrappedUp: convert.call_wrapped_up,
}
CALLS: tuple[type[Any], ...] = tuple(_FACTS)
#: Events that show a ticket whole.
TICKETS: tuple[type[Any], ...] = (
    tickets_events.TicketCreated,
    tickets_events.TicketTransitioned,
    tickets_events.TicketUpdated,
    tickets_events.TicketAssigned,
    tickets_events.CallAttached,
    tickets_events.SlaBreached,
    tickets_events.TicketsMerged,
    tickets_events.FollowUpCompleted,
)
#: What callers answered after a call.
SURVEYS: tuple[type[Any], ...] = (menu_events.SurveyAnswered,)
OFFERS: tuple[type[Any], ...] = (marketing_events.RecommendationMade, marketing_events.OfferOutcomeRecorded)
#: Events after which a customer may own numbers that it did not own before.
CUSTOMERS: tuple[type[Any], ...] = (crm_events.CustomerCreated, crm_events.CustomerUpdated)

#: What crm tells beside; webhooks pass it on.
TOLD: tuple[type[Any], ...] = (
    crm_events.CustomerDeleted,
    crm_events.CustomerErased,
    crm_events.CustomersMerged,
    crm_events.CustomersUnmerged,
    crm_events.InteractionRecorded,
    crm_events.CareTaskRaised,
    crm_events.CareTaskClosed,
    crm_events.ChurnRiskChanged,
    crm_events.LeaveIntentFlagged,
)
#: Type of the event of a legal erasure.
ERASED: str = crm_events.CustomerErased.DESCRIPTOR.full_name
#: Full names of every event that a webhook can have.
WEBHOOK_TYPES: tuple[str, ...] = tuple(
    kind.DESCRIPTOR.full_name for kind in (*CALLS, *TICKETS, *SURVEYS, *OFFERS, *CUSTOMERS, *TOLD)
)

_TYPES: Mapping[str, type[Any]] = {
    kind.DESCRIPTOR.full_name: kind for kind in (*CALLS, *TICKETS, *SURVEYS, *OFFERS, *CUSTOMERS)
}
#: Types whose events can be learned many at once.
_TOGETHER = frozenset(kind.DESCRIPTOR.full_name for kind in (*CALLS, *TICKETS, *CUSTOMERS))


def learn(use: Memory, event: Event) -> None:
    """Takes in one event; a type that crm does not know is passed over. MalformedEvent, InvalidArgument for
    one that can never be understood, Unavailable and the store's errors for one to be tried again.
    """
    kind = _TYPES.get(event.type)
    if kind is not None:
        learn_message(use, event.message(kind))


def stands_alone(event: Event) -> bool:
    """Whether an event is to be learned by itself: because it tells others something in turn, or because
    little would be won.
    """
    if event.type not in _TOGETHER:
        return True
    said = event.data.get("disposition")
    return bool(said.get("wantsToLeave") or said.get("wants_to_leave")) if isinstance(said, dict) else False


def learn_together(use: Memory, events: Sequence[Event]) -> None:
    """Takes in events none of which `stands_alone`, with few questions to the store; errors as in `learn`, of
    which one event's keeps back the others.
    """
    facts: list[Fact] = []
    owned: list[tuple[str, Sequence[str]]] = []
    for event in events:
        message = event.message(_TYPES[event.type])
        if isinstance(message, CUSTOMERS):
            owned.append(convert.numbers_owned(message.customer))
        else:
            facts += [fact for fact in _facts_of(message) if fact is not None]
    entries = use.apply_many(facts)
    telling = {
        timeline.customer_of(entry.subject)
        for fact, entry in zip(facts, entries, strict=True)
        if fact.facet in _TELLING
    }
    use.mark_churn(*sorted(telling - {""}))
    use.attach_many(owned)


def _facts_of(message: Any) -> tuple[Fact | None, ...]:
    """What a call's or a ticket's event tells the timeline."""
    if type(message) in _FACTS:
        return (_FACTS[type(message)](message),)
    facts = (convert.ticket_fact(message.ticket),)
    if isinstance(message, tickets_events.FollowUpCompleted):
        return (*facts, convert.visit_fact(message))
    return facts


def learn_message(use: Memory, message: Any) -> None:
    """Takes in what an event carries."""
    if type(message) in _FACTS or isinstance(message, TICKETS):
        for fact in _facts_of(message):
            _apply(use, fact)
    elif isinstance(message, menu_events.SurveyAnswered):
        _apply(use, convert.survey_fact(message))
    elif isinstance(message, marketing_events.RecommendationMade):
        _learn_ranking(use, message)
    elif isinstance(message, marketing_events.OfferOutcomeRecorded):
        _learn_outcome(use, message)
    elif isinstance(message, CUSTOMERS):
        use.attach_numbers(*convert.numbers_owned(message.customer))


def _apply(use: Memory, fact: Fact | None) -> None:
    if fact is None:
        return
    entry = use.apply(fact)
    customer = timeline.customer_of(entry.subject)
    if fact.facet in _TELLING:
        if customer:
            use.mark_churn(customer)
        if fact.values.get("wants_to_leave"):
            use.flag_leaving(entry, fact)


#: Sides of an interaction that bear on churn.
_TELLING = frozenset({"wrapped", "snapshot", "record"})


def _learn_ranking(use: Memory, message: marketing_events.RecommendationMade) -> None:
    """Caches a ranking, "no offer" included, until a newer one comes."""
    subject = convert.offer_subject(message)
    if not subject:
        return
    stamp, expires_ms = convert.ranking_stamp(message), convert.ranking_expiry(message)
    offers = convert.ranked_offers(message)
    use.change_ranking(subject, lambda known: glance.with_ranking(known, stamp, offers, expires_ms))


def _learn_outcome(use: Memory, message: marketing_events.OfferOutcomeRecorded) -> None:
    """Takes answered offers off the cached ranking and tells the timeline."""
    _apply(use, convert.offer_fact(message))
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
