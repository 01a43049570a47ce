"""How much waits at the broker for the handlers of a worker, and how much they gave up, asked now and then.

Every replica of a worker shows the same queues: aggregate with `max by (service, handler)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import amqp

from chassis import logs, metrics
from chassis.bus.connection import CONNECTION_ERRORS, Broker, close_quietly, open_connection
from chassis.bus.topology import Subscription

#: How often the broker is asked, seconds.
ASK_SECONDS = 10.0

log = logs.get_logger(__name__)

_LABELS = ("service", "handler")
_waiting = metrics.gauge(
    "callmesh_bus_queue_messages", "Events ready at the broker that no handler has taken yet.", _LABELS
)
_dead = metrics.gauge(
    "callmesh_bus_dead_letters", "Events that lie in a handler's dead-letter queue now.", _LABELS
)


class QueueDepths:
    """Asks for the depths of a service's queues, over a connection of its own."""

    def __init__(self, broker: Broker, subscriptions: Sequence[Subscription]) -> None:
        """Does no I/O."""
        self._broker = broker
        self._subscriptions = list(subscriptions)
        self._connection: amqp.Connection | None = None

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Asks until `stopping(seconds)`, which waits that long at most, says True."""
        try:
            while True:
                self.ask()
                if stopping(ASK_SECONDS):
                    return
        finally:
            self._close()

    def ask(self) -> None:
        """Sets the gauges; where the broker does not answer they stay as they are."""
        try:
            if self._connection is None:
                self._connection = open_connection(self._broker)
            channel = self._connection.channel()
            for each in self._subscriptions:
                labels = (each.service, each.handler)
                _waiting.labels(*labels).set(_depth(channel, each.queue))
                _dead.labels(*labels).set(_depth(channel, each.dead_queue))
            channel.close()
        except CONNECTION_ERRORS as error:
            log.debug("bus.depths_unknown", error=repr(error))
            self._close()

    def _close(self) -> None:
        close_quietly(self._connection)
        self._connection = None


def _depth(channel: amqp.Channel, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).message_count
    return count
