"""What the worker listens to: crm's customers. What they mean is in inbound.py."""

from __future__ import annotations

from typing import ClassVar

from chassis.bus import Event
from chassis.bus.entrypoint import subscribe
from routing import inbound
from routing.store import ProfileStore


class RoutingConsumers:
    """The nameko service. `use` is set once by the composition root; nameko makes an instance a message."""

    name = "routing"
    use: ClassVar[ProfileStore]

    @subscribe("crm", *inbound.CUSTOMERS)
    def on_customer(self, event: Event) -> None:
        """Keeps the read model of customers."""
        inbound.hear(self.use, event)
