"""What the worker listens to: calls, tickets and offers for the timeline, and crm's own customers for what
came before them. What an event does stands in `crm.inbound`.
"""

from __future__ import annotations

from typing import ClassVar

from mongoengine import get_db

from chassis import eventlog
from chassis.bus import Event
from chassis.bus.entrypoint import handling, subscribe
from crm import inbound
from crm.handlers import Memory
from crm.webhooks import Webhooks, forget

#: Events that are learned at once, when so many wait.
TOGETHER_MAX = 100


class CrmConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "crm"
    use: ClassVar[Memory]
    webhooks: ClassVar[Webhooks]

    def _learn(self, events: list[Event]) -> None:
        together = [event for event in events if not inbound.stands_alone(event)]
        inbound.learn_together(self.use, together)
        for event in events:
            if inbound.stands_alone(event):
                with handling(self.name, event):
                    inbound.learn(self.use, event)
        self.webhooks.offer_all(events)

    @subscribe("routing", *inbound.CALLS, together_max=TOGETHER_MAX)
    def on_call(self, events: list[Event]) -> None:
        """Grows calls' interactions."""
        self._learn(events)

    @subscribe("routing", *inbound.SURVEYS)
    def on_survey(self, event: Event) -> None:
        """Puts what a caller answered after a call into the timeline."""
        inbound.learn(self.use, event)
        self.webhooks.offer_all([event])

    @subscribe("tickets", *inbound.TICKETS, together_max=TOGETHER_MAX)
    def on_ticket(self, events: list[Event]) -> None:
        """Keeps tickets' interactions as their newest events show them."""
        self._learn(events)

    @subscribe("marketing", *inbound.OFFERS)
    def on_offer(self, event: Event) -> None:
        """Caches the best offers; what the customer said to one goes into the timeline."""
        inbound.learn(self.use, event)
        self.webhooks.offer_all([event])

    @subscribe("crm", *inbound.CUSTOMERS, together_max=TOGETHER_MAX)
    def on_customer(self, events: list[Event]) -> None:
        """Gives customers what their numbers did before they were known."""
        self._learn(events)

    @subscribe("crm", *inbound.TOLD)
    def on_told(self, event: Event) -> None:
        """What crm itself tells goes to partners' webhooks; of an erased customer deliveries are removed and
        the events in the log overwritten: those that were told before its erasure are in it by now.
        """
        self.webhooks.offer_all([event])
        if event.type == inbound.ERASED:
            forget(event.subject, keep=event.id)
            eventlog.forget(get_db(), event.subject)
