"""What the worker listens to: crm's customers and the ends of calls (what they mean is in inbound.py),
tickets (menus/inbound.py), and administrative acts.
"""

from __future__ import annotations

from typing import ClassVar

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from routing import inbound
from routing.audit_store import ActKeeper
from routing.menus import inbound as menus_inbound
from routing.store import ProfileStore

#: Ends of calls taken at once: there are two of every call, and each by itself cost four questions to the
#: database.
CALLS_TOGETHER_MAX = 200


class RoutingConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "routing"
    use: ClassVar[ProfileStore]
    acts: ClassVar[ActKeeper]
    callers: ClassVar[menus_inbound.CallerKeeper]

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """Keeps the read model of customers; menus forget an erased one while its numbers are known."""
        if event.type == menus_inbound.ERASED:
            menus_inbound.hear_erased(self.callers, event)
        inbound.hear(self.use, event)

    @subscribe("routing", *inbound.CALLS, together_max=CALLS_TOGETHER_MAX)
    def on_call(self, events: list[Event]) -> None:
        """Keeps who called of late."""
        inbound.hear_calls(self.use, events)

    @subscribe("tickets", *menus_inbound.TICKETS)
    def on_ticket(self, event: Event) -> None:
        """Keeps who has an open ticket: menus offer the way to it."""
        menus_inbound.hear(self.callers, event)

    @subscribe("routing", events_pb2.AdministrativeAct)
    def on_act(self, event: Event) -> None:
        """Keeps the audit log."""
        self.acts.keep(event)
