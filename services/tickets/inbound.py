"""What other services' events mean here. Free of nameko, so that it can be tried without a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.routing.v1 import menu_events_pb2 as menu_events
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.ids import check_id
from tickets import convert
from tickets.handlers import Handlers

#: Of routing.
CALLS: tuple[type[Any], ...] = (routing_events.CallWrappedUp,)
SURVEYS: tuple[type[Any], ...] = (menu_events.SurveyAnswered,)


def take(use: Handlers, event: Event) -> None:
    """Does what an event of `CALLS`, `SURVEYS` or `CUSTOMERS` asks for. Safe to repeat and out of order.

    MalformedEvent, InvalidArgument for one that no repetition will mend; Unavailable for one to be repeated.
    """
    _TAKE[event.type](use, event)


def _wrapped_up(use: Handlers, event: Event) -> None:
    facts = convert.call_facts(event.message(routing_events.CallWrappedUp))
    if facts is not None:
        use.call_wrapped_up(facts)


def _surveyed(use: Handlers, event: Event) -> None:
    message = event.message(menu_events.SurveyAnswered)
    if not message.call_id:
        return
    if not message.HasField("event_time"):
        raise InvalidArgument(field="event_time", why="must be set")
    use.survey_answered(
        check_id("call_id", message.call_id),
        message.satisfaction,
        actor="surveys",
        reason=f"the caller gave {message.satisfaction:.1f} of 5 in {message.survey[:200]}",
        time_ms=message.event_time.ToMilliseconds(),
    )


def _known(use: Handlers, snapshot: crm_events.CustomerSnapshot) -> None:
    profile = convert.profile_of(snapshot)
    if profile is not None:
        use.customer_known(profile)


def _created(use: Handlers, event: Event) -> None:
    _known(use, event.message(crm_events.CustomerCreated).customer)


def _updated(use: Handlers, event: Event) -> None:
    _known(use, event.message(crm_events.CustomerUpdated).customer)


def _deleted(use: Handlers, event: Event) -> None:
    profile = convert.deleted_profile(event.message(crm_events.CustomerDeleted))
    if profile is not None:
        use.customer_known(profile)


def _erased(use: Handlers, event: Event) -> None:
    profile = convert.profile_of(event.message(crm_events.CustomerErased).customer)
    if profile is not None:
        use.customer_erased(profile.customer_id, profile.version)


def _merged(use: Handlers, event: Event) -> None:
    message = event.message(crm_events.CustomersMerged)
    survivor = convert.profile_of(message.survivor)
    if survivor is not None:
        use.customers_merged(survivor, convert.absorbed_profiles(message, survivor.customer_id))


def _unmerged(use: Handlers, event: Event) -> None:
    message = event.message(crm_events.CustomersUnmerged)
    survivor = convert.profile_of(message.survivor)
    restored = [profile for profile in map(convert.profile_of, message.restored) if profile is not None]
    if survivor is not None:
        use.customers_unmerged(survivor, restored)


def _care_raised(use: Handlers, event: Event) -> None:
    facts = convert.care_facts(event.message(crm_events.CareTaskRaised))
    if facts is not None:
        use.care_wanted(facts)


def _care_closed(use: Handlers, event: Event) -> None:
    message = event.message(crm_events.CareTaskClosed)
    if message.care_task:
        use.care_over(
            convert.care_ticket_id(message.care_task), f"{message.care_task} is {message.state}"[:200]
        )


def _leaving(use: Handlers, event: Event) -> None:
    facts = convert.leaving_facts(event.message(crm_events.LeaveIntentFlagged))
    if facts is not None:
        use.care_wanted(facts)


def _risk_changed(use: Handlers, event: Event) -> None:
    facts = convert.risk_facts(event.message(crm_events.ChurnRiskChanged))
    if facts is not None:
        use.care_wanted(facts)


def erased_customer(event: Event) -> str:
    """The id of the customer that an event says is erased; empty for any other event."""
    if event.type != ERASED:
        return ""
    profile = convert.profile_of(event.message(crm_events.CustomerErased).customer)
    return profile.customer_id if profile is not None else ""


_CUSTOMER_EVENTS: Mapping[type[Any], Callable[[Handlers, Event], None]] = {
    crm_events.CustomerCreated: _created,
    crm_events.CustomerUpdated: _updated,
    crm_events.CustomerDeleted: _deleted,
    crm_events.CustomerErased: _erased,
    crm_events.CustomersMerged: _merged,
    crm_events.CustomersUnmerged: _unmerged,
    crm_events.CareTaskRaised: _care_raised,
    crm_events.CareTaskClosed: _care_closed,
    crm_events.LeaveIntentFlagged: _leaving,
    crm_events.ChurnRiskChanged: _risk_changed,
}

#: Type of the event of a legal erasure.
ERASED: str = crm_events.CustomerErased.DESCRIPTOR.full_name
#: Of crm.
CUSTOMERS: tuple[type[Any], ...] = tuple(_CUSTOMER_EVENTS)

_TAKE: Mapping[str, Callable[[Handlers, Event], None]] = {
    routing_events.CallWrappedUp.DESCRIPTOR.full_name: _wrapped_up,
    menu_events.SurveyAnswered.DESCRIPTOR.full_name: _surveyed,
    **{kind.DESCRIPTOR.full_name: take_one for kind, take_one in _CUSTOMER_EVENTS.items()},
}
