"""What the worker listens to: calls, tickets and offers for the timeline, and crm's own customers for what
came before them. What an event does stands in `crm.inbound`.
"""

from __future__ import annotations

from typing import ClassVar

from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from crm import inbound
from crm.handlers import Memory


class CrmConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "crm"
    use: ClassVar[Memory]

    @subscribe("routing", *inbound.CALLS)
    def on_call(self, event: Event) -> None:
        """Grows a call's interaction."""
        inbound.learn(self.use, event)

    @subscribe("tickets", *inbound.TICKETS)
    def on_ticket(self, event: Event) -> None:
        """Keeps a ticket's interaction as its newest event shows it."""
        inbound.learn(self.use, event)

    @subscribe("marketing", *inbound.OFFERS)
    def on_offer(self, event: Event) -> None:
        """Caches the best offers; what the customer said to one goes into the timeline."""
        inbound.learn(self.use, event)

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """Gives a customer what its numbers did before it was known."""
        inbound.learn(self.use, event)
