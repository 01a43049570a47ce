"""Exchanges and queues: what they are called, how they are declared, and why.

    <source>.events             topic exchange of a service; routing key = event type
    <service>.<handler>         quorum queue of one handler, bound to all the types that it takes
    <service>.<handler>.dead    where its messages end that it could not take
    <service>.retry.<ms>        delay queue of a service: holds a message for <ms>, then sends it back
                                to the handler's queue; its exchange has the same name

A delay queue hands a message back by its routing key, the name of the handler's queue, through the default
exchange, so one set of delay queues serves all handlers of a service. All queues are quorum queues that
dead-letter at least once, and refuse a publish when full: the refused event stays where it was.

A consumer's queue must exist before the first event that it needs is published, because a topic exchange
forgets what nobody is bound to. Workers declare everything before they consume; a deployment declares the
topology of all services (`python -m <service>.worker --declare`) before it starts the first publisher.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from amqp import Channel

#: Delays before the second, third, ... attempt, in seconds.
RETRY_DELAYS_SECONDS = (1.0, 5.0, 30.0, 120.0)
#: Attempts that a handler gets, the first included.
ATTEMPTS_MAX = len(RETRY_DELAYS_SECONDS) + 1
#: Deliveries that end without an answer (the worker died each time) before the broker dead-letters a message.
DELIVERIES_MAX = 20
#: Messages waiting for one handler before publishers are refused, about a day's events of a large centre.
QUEUE_MESSAGES_MAX = 2_000_000
#: Messages in a dead-letter queue before further ones stay with the handler.
DEAD_MESSAGES_MAX = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscription:
    """What one handler of a consuming service wants."""

    #: The consuming service: "tickets".
    service: str
    #: Name of the handler within it.
    handler: str
    #: The publishing service: "routing".
    source: str
    #: Event types, full message names.
    types: tuple[str, ...]

    @property
    def queue(self) -> str:
        """The handler's queue."""
        return f"{self.service}.{self.handler}"

    @property
    def dead_queue(self) -> str:
        """Where its messages end that it could not take."""
        return dead_queue(self.queue)


def events_exchange(source: str) -> str:
    """The exchange that a service publishes to."""
    return f"{source}.events"


def dead_queue(queue: str) -> str:
    """The dead-letter queue that belongs to a handler's queue."""
    return f"{queue}.dead"


def retry_name(service: str, delay_seconds: float) -> str:
    """Delay queue and exchange of a service for one delay."""
    return f"{service}.retry.{round(delay_seconds * 1000)}"


def _quorum(messages_max: int, **more: Any) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-max-length": messages_max,
        "x-dead-letter-strategy": "at-least-once",
        **more,
    }


def declare_exchange(channel: Channel, source: str) -> None:
    """A service's exchange; repeatable."""
    channel.exchange_declare(events_exchange(source), "topic", durable=True, auto_delete=False)


def declare_retry(channel: Channel, service: str, delays_seconds: Iterable[float]) -> None:
    """A service's delay queues; repeatable."""
    for delay_seconds in delays_seconds:
        name = retry_name(service, delay_seconds)
        arguments = _quorum(
            QUEUE_MESSAGES_MAX,
            **{"x-message-ttl": round(delay_seconds * 1000), "x-dead-letter-exchange": ""},
        )
        channel.exchange_declare(name, "fanout", durable=True, auto_delete=False)
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
        channel.queue_bind(name, name)


def declare_subscription(
    channel: Channel, subscription: Subscription, deliveries_max: int = DELIVERIES_MAX
) -> None:
    """A handler's queue with its bindings and its dead-letter queue; repeatable.

    amqp.PreconditionFailed when the queue exists with other arguments: an operator has to move its messages.
    """
    dead = _quorum(DEAD_MESSAGES_MAX)
    del dead["x-dead-letter-strategy"]
    channel.queue_declare(subscription.dead_queue, durable=True, auto_delete=False, arguments=dead)
    arguments = _quorum(
        QUEUE_MESSAGES_MAX,
        **{
            "x-delivery-limit": deliveries_max,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": subscription.dead_queue,
        },
    )
    channel.queue_declare(subscription.queue, durable=True, auto_delete=False, arguments=arguments)
    declare_exchange(channel, subscription.source)
    for kind in subscription.types:
        channel.queue_bind(subscription.queue, events_exchange(subscription.source), kind)


def declare(
    channel: Channel,
    subscriptions: Sequence[Subscription],
    delays_seconds: Sequence[float] = RETRY_DELAYS_SECONDS,
    deliveries_max: int = DELIVERIES_MAX,
) -> None:
    """Everything that the given handlers need; repeatable."""
    for service in sorted({subscription.service for subscription in subscriptions}):
        declare_retry(channel, service, delays_seconds)
    for subscription in subscriptions:
        declare_subscription(channel, subscription, deliveries_max)
