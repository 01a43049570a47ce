"""What crm's events mean for routing: customers, so that a known caller is served by its tier.

Apart from consumers.py, so that it is usable without nameko. Each event may come again and in any order: see
store.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.ids import parse_name
from routing.store import KnownCustomer, ProfileStore

_NUMBER = re.compile(r"\+[1-9][0-9]{1,14}")
#: Customers that one merge takes over.
ABSORBED_MAX = 1_000


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
    )


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
    use.learn(customer_of(event.message(crm_events.CustomerErased).customer, event))


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
