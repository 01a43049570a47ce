"""What events mean for routing's own knowledge of callers: crm's customers, so that a known caller is served
by its tier; routing's own ends of calls, so that who calls again is known to.

Apart from consumers.py, so that it is usable without nameko. Each event may come again and in any order: see
store.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import call_pb2, events_pb2
from chassis.bus import Event
from chassis.clock import to_ms
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name
from routing.callers import RecentCall
from routing.store import KnownCustomer, ProfileStore

_NUMBER = re.compile(r"\+[1-9][0-9]{1,14}")
#: Customers that one merge takes over.
ABSORBED_MAX = 1_000
#: Hung up sooner than this is no call worth counting: or else hanging up and calling again led to the front.
SHORT_ABANDON_MS = 5_000


def hear(use: ProfileStore, event: Event) -> None:
    """Takes in one of `CUSTOMERS`. InvalidArgument for one that names no customer; the store's errors."""
    _MEANING[event.type](use, event)


def customer_of(snapshot: crm_events.CustomerSnapshot, event: Event) -> KnownCustomer:
    """A snapshot as routing keeps it. Raises InvalidArgument without a usable name and version."""
    if snapshot.version < 1:
        raise InvalidArgument(field="customer.version", why="must be at least 1")
    # Only one that lives is served by its number; a producer that does not say is believed to mean one.
    lives = snapshot.state in (
        customers_pb2.CUSTOMER_STATE_UNSPECIFIED,
        customers_pb2.CUSTOMER_STATE_ACTIVE,
    )
    return KnownCustomer(
        id=parse_name("customer.customer", "customers", snapshot.customer),
        version=snapshot.version,
        changed_at=event.time,
        numbers=tuple(n for n in snapshot.numbers if _NUMBER.fullmatch(n)) if lives else (),
        tier=_TIERS.get(snapshot.tier, "") if lives else "",
        region=_region_of(snapshot.home_region) if lives else "",
    )


def _region_of(name: str) -> str:
    """The id in `regions/{id}`; empty for none and for what is none: a wish that cannot be read is no reason
    to forget the customer.
    """
    try:
        return parse_name("customer.home_region", "regions", name) if name else ""
    except InvalidArgument:
        return ""


_TIERS: dict[int, str] = {
    number: name.removeprefix("TIER_").lower() for name, number in customers_pb2.Tier.items() if number
}


def _created(use: ProfileStore, event: Event) -> None:
    use.learn(customer_of(event.message(crm_events.CustomerCreated).customer, event))


def _updated(use: ProfileStore, event: Event) -> None:
    use.learn(customer_of(event.message(crm_events.CustomerUpdated).customer, event))


def _deleted(use: ProfileStore, event: Event) -> None:
    use.learn(customer_of(event.message(crm_events.CustomerDeleted).customer, event))


def _erased(use: ProfileStore, event: Event) -> None:
    erased = customer_of(event.message(crm_events.CustomerErased).customer, event)
    # First, while it is known which numbers were theirs.
    use.forget_calls_of(erased.id)
    use.learn(erased)


def _merged(use: ProfileStore, event: Event) -> None:
    message = event.message(crm_events.CustomersMerged)
    if len(message.absorbed) > ABSORBED_MAX:
        raise InvalidArgument(field="absorbed", why=f"must have at most {ABSORBED_MAX} customers")
    survivor = customer_of(message.survivor, event)
    absorbed = [parse_name("absorbed", "customers", name) for name in message.absorbed]
    use.learn(survivor)
    use.absorb(absorbed, event.time)


def _unmerged(use: ProfileStore, event: Event) -> None:
    message = event.message(crm_events.CustomersUnmerged)
    for customer in [customer_of(s, event) for s in (message.survivor, *message.restored)]:
        use.learn(customer)


_BY_TYPE: dict[type[Any], Callable[[ProfileStore, Event], None]] = {
    crm_events.CustomerCreated: _created,
    crm_events.CustomerUpdated: _updated,
    crm_events.CustomerDeleted: _deleted,
    crm_events.CustomerErased: _erased,
    crm_events.CustomersMerged: _merged,
    crm_events.CustomersUnmerged: _unmerged,
}
#: Types that `hear` takes.
CUSTOMERS: tuple[type[Any], ...] = tuple(_BY_TYPE)
_MEANING = {kind.DESCRIPTOR.full_name: meaning for kind, meaning in _BY_TYPE.items()}


# --- calls


def hear_calls(use: ProfileStore, events: Sequence[Event]) -> None:
    """Takes in some of `CALLS`. InvalidArgument for one that names no call; the store's errors."""
    words = [word for event in events if (word := _WORDS[event.type](event)) is not None]
    if words:
        use.remember(words)


#: What an event says of a call, and the caller's number; None for nothing worth remembering.
Word = tuple[str, RecentCall] | None


def _ended(event: Event) -> Word:
    message = event.message(events_pb2.CallEnded)
    if message.outcome == call_pb2.CALL_OUTCOME_MOVED:
        # Only this entry's end, not the call's.
        return None
    abandoned = message.outcome == call_pb2.CALL_OUTCOME_ABANDONED
    if abandoned and message.wait.ToMilliseconds() < SHORT_ABANDON_MS:
        return None
    call_id = check_id("call.call_id", message.call.call_id)
    talked = message.outcome == call_pb2.CALL_OUTCOME_COMPLETED
    region = _region_of(message.call.region) if talked else ""
    return _of_number(message.call, RecentCall(call_id=call_id, ended_ms=to_ms(event.time), region=region))


def _wrapped_up(event: Event) -> Word:
    message = event.message(events_pb2.CallWrappedUp)
    if not message.disposition.resolved:
        return None
    call_id = check_id("call.call_id", message.call.call_id)
    return _of_number(message.call, RecentCall(call_id=call_id, resolved_ms=to_ms(event.time)))


def _of_number(ref: events_pb2.CallRef, call: RecentCall) -> Word:
    """Whose number is withheld or unusable is nobody who calls again."""
    return (ref.caller_number, call) if _NUMBER.fullmatch(ref.caller_number) else None


#: Types that `hear_calls` takes.
CALLS: tuple[type[Any], ...] = (events_pb2.CallEnded, events_pb2.CallWrappedUp)
_WORDS: dict[str, Callable[[Event], Word]] = {
    events_pb2.CallEnded.DESCRIPTOR.full_name: _ended,
    events_pb2.CallWrappedUp.DESCRIPTOR.full_name: _wrapped_up,
}
