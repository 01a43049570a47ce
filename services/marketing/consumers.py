"""The worker's ears: one queue for crm, one for tickets. What the events mean stands in inbound.py."""

from __future__ import annotations

from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from marketing import inbound
from marketing.handlers import Facts
from marketing.store import MongoStore


class MarketingConsumers:
    """The worker's service."""

    name = "marketing"

    facts = Facts(MongoStore())

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """A customer was created, changed, merged, erased, or spoke of leaving."""
        inbound.learn(self.facts, event)

    @subscribe("tickets", *inbound.TICKETS)
    def on_ticket(self, event: Event) -> None:
        """A ticket was made or moved on; complaints are kept."""
        inbound.learn(self.facts, event)
