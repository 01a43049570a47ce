"""What the worker listens to: finished calls from routing, customers from crm."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import events_pb2 as routing_events
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from tickets import convert
from tickets.handlers import Handlers


class TicketsConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "tickets"
    use: ClassVar[Handlers]

    @subscribe("routing", routing_events.CallWrappedUp)
    def on_call_wrapped_up(self, event: Event) -> None:
        """Opens a ticket from a call's disposition, or attaches the call to an open one."""
        facts = convert.call_facts(event.message(routing_events.CallWrappedUp))
        if facts is not None:
            self.use.call_wrapped_up(facts)

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
        """Keeps the read model of customers."""
        _CUSTOMER_EVENTS[event.type](self.use, event)


def _known(use: Handlers, snapshot: crm_events.CustomerSnapshot) -> None:
    profile = convert.profile_of(snapshot)
    if profile is not None:
        use.customer_known(profile)


def _created(use: Handlers, event: Event) -> None:
    _known(use, event.message(crm_events.CustomerCreated).customer)


def _updated(use: Handlers, event: Event) -> None:
    _known(use, event.message(crm_events.CustomerUpdated).customer)


def _deleted(use: Handlers, event: Event) -> None:
    _known(use, event.message(crm_events.CustomerDeleted).customer)


def _erased(use: Handlers, event: Event) -> None:
    profile = convert.profile_of(event.message(crm_events.CustomerErased).customer)
    if profile is not None:
        use.customer_erased(profile.customer_id, profile.version)


def _merged(use: Handlers, event: Event) -> None:
    message = event.message(crm_events.CustomersMerged)
    survivor = convert.profile_of(message.survivor)
    if survivor is not None:
        use.customers_merged(survivor, convert.read_customer_ids(message.absorbed))


def _unmerged(use: Handlers, event: Event) -> None:
    message = event.message(crm_events.CustomersUnmerged)
    for snapshot in (message.survivor, *message.restored):
        _known(use, snapshot)


_CUSTOMER_EVENTS: dict[str, Callable[[Handlers, Event], None]] = {
    crm_events.CustomerCreated.DESCRIPTOR.full_name: _created,
    crm_events.CustomerUpdated.DESCRIPTOR.full_name: _updated,
    crm_events.CustomerDeleted.DESCRIPTOR.full_name: _deleted,
    crm_events.CustomerErased.DESCRIPTOR.full_name: _erased,
    crm_events.CustomersMerged.DESCRIPTOR.full_name: _merged,
    crm_events.CustomersUnmerged.DESCRIPTOR.full_name: _unmerged,
}
