"""What the worker listens to: crm's customers, so that a known caller is served by its tier.

Every handler may be repeated and may get its events in any order: see store.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from chassis.errors import InvalidArgument
from chassis.ids import parse_name
from routing.store import KnownCustomer, ProfileStore

_NUMBER = re.compile(r"\+[1-9][0-9]{1,14}")
#: Customers that one merge takes over.
ABSORBED_MAX = 1_000


class RoutingConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "routing"
    use: ClassVar[ProfileStore]

    @subscribe(
        "crm",
        crm_events.CustomerCreated,
        crm_events.CustomerUpdated,
        crm_events.CustomerDeleted,
        crm_events.CustomerErased,
        crm_events.CustomersMerged,
        crm_events.CustomersUnmerged,
    )
    def on_customer(self, event: Event) -> None:
        """Keeps the read model of customers. InvalidArgument for an event that names none."""
        _HANDLERS[event.type](self.use, event)


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


_HANDLERS: dict[str, Callable[[ProfileStore, Event], None]] = {
    crm_events.CustomerCreated.DESCRIPTOR.full_name: _created,
    crm_events.CustomerUpdated.DESCRIPTOR.full_name: _updated,
    crm_events.CustomerDeleted.DESCRIPTOR.full_name: _deleted,
    crm_events.CustomerErased.DESCRIPTOR.full_name: _erased,
    crm_events.CustomersMerged.DESCRIPTOR.full_name: _merged,
    crm_events.CustomersUnmerged.DESCRIPTOR.full_name: _unmerged,
}
