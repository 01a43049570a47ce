"""What the worker listens to: calls, tickets and offers for the timeline, and crm's own customers for what
came before them. What an event does stands in `crm.inbound`.
"""

from __future__ import annotations

from typing import ClassVar

from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from crm import inbound
from crm.handlers import Memory
from crm.webhooks import Webhooks, forget


class CrmConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "crm"
    use: ClassVar[Memory]
    webhooks: ClassVar[Webhooks]

    def _learn(self, event: Event) -> None:
        inbound.learn(self.use, event)
        self.webhooks.offer(event)

    @subscribe("routing", *inbound.CALLS)
    def on_call(self, event: Event) -> None:
        """Grows a call's interaction."""
        self._learn(event)

    @subscribe("tickets", *inbound.TICKETS)
    def on_ticket(self, event: Event) -> None:
        """Keeps a ticket's interaction as its newest event shows it."""
        self._learn(event)

    @subscribe("marketing", *inbound.OFFERS)
    def on_offer(self, event: Event) -> None:
        """Caches the best offers; what the customer said to one goes into the timeline."""
        self._learn(event)

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """Gives a customer what its numbers did before it was known."""
        self._learn(event)

    @subscribe("crm", *inbound.TOLD)
    def on_told(self, event: Event) -> None:
        """What crm itself tells goes to partners' webhooks; an erased customer's deliveries are removed."""
        self.webhooks.offer(event)
        if event.type == inbound.ERASED:
            forget(event.subject, keep=event.id)
