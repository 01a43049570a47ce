"""What the worker listens to: finished calls from routing, customers and their care from crm."""

from __future__ import annotations

from typing import ClassVar

from mongoengine import get_db

from chassis import eventlog
from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from tickets import inbound
from tickets.handlers import Handlers
from tickets.records import MongoRecords, forget_assets


class TicketsConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "tickets"
    use: ClassVar[Handlers]

    @subscribe("routing", *inbound.CALLS)
    def on_call_wrapped_up(self, event: Event) -> None:
        """Opens a ticket from a call's disposition, or attaches the call to an open one."""
        inbound.take(self.use, event)

    @subscribe("routing", *inbound.SURVEYS)
    def on_survey(self, event: Event) -> None:
        """Keeps what a caller said afterwards, and opens the resolved ticket of one who was not satisfied."""
        inbound.take(self.use, event)

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """Keeps the read model of customers, and the tickets that belong to them, and opens tickets for
        occasions to care for them; of an erased one it forgets also the assets, and what the event log says.
        """
        inbound.take(self.use, event)
        if gone := inbound.erased_customer(event):
            forget_assets(MongoRecords(), gone)
        if event.type == inbound.ERASED:
            eventlog.forget(get_db(), event.subject)
