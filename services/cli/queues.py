"""The queues of the platform's handlers, by service: what the broker itself cannot be asked for over AMQP."""

from __future__ import annotations

from collections.abc import Mapping

#: Handlers of each service's worker; a test compares them with the workers' own.
HANDLERS: Mapping[str, tuple[str, ...]] = {
    "crm": ("on_call", "on_customer", "on_offer", "on_survey", "on_ticket", "on_told"),
    "marketing": ("on_call", "on_customer", "on_own", "on_ticket"),
    "routing": ("on_act", "on_call", "on_customer", "on_ticket"),
    "tickets": ("on_call_wrapped_up", "on_customer", "on_survey"),
}


def handler_queues() -> list[str]:
    """`<service>.<handler>`, in order."""
    return [f"{service}.{handler}" for service, names in sorted(HANDLERS.items()) for handler in names]
