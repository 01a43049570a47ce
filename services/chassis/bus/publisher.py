"""Publishing in batches, with the broker's word for every message.

A message counts as published when the broker confirmed it: every quorum queue that it was routed to has it on
a majority of its members. A mandatory message that no queue is bound for comes back as RETURNED; one that a
full queue refused as REFUSED; when the connection breaks or the time is over before the broker's word, the
outcome is UNKNOWN, and publishing again may make a duplicate, which consumers recognise by the event's id.

Works in plain threads and in eventlet's green ones; one publisher may be shared, batches go one after
another.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import amqp
from opentelemetry.trace import Span, SpanKind

from chassis import logs, metrics, telemetry
from chassis.bus import topology
from chassis.bus.connection import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    CONNECTION_ERRORS,
    Broker,
    close_quietly,
    open_connection,
)
from chassis.bus.event import CONTENT_TYPE, Event, Told

#: Messages sent before their confirms are waited for.
WINDOW_MESSAGES_MAX = 500
#: Bytes sent before confirms are waited for. Returned messages come back whole while we are still writing, so
#: what is under way has to fit the socket's buffers on both sides.
WINDOW_BYTES_MAX = 512 * 1024
#: How long the broker may take to confirm a window, seconds.
CONFIRM_SECONDS_MAX = 10.0
#: Age at which an idle connection is replaced instead of trusted: nobody has kept it alive meanwhile,
#: seconds.
IDLE_SECONDS_MAX = 30.0

log = logs.get_logger(__name__)

_reconnects = metrics.counter(
    "callmesh_bus_publisher_reconnects_total", "Connections that a publisher opened.", ("service",)
)


#: When a message was given to the broker, ms since 1970 of real time.
SENT_HEADER = "x-callmesh-sent-ms"


class Outcome(enum.Enum):
    """What became of one message."""

    PUBLISHED = "published"
    RETURNED = "returned"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """One message to publish."""

    #: Empty for the default exchange, which routes to the queue named by `routing_key`.
    exchange: str
    routing_key: str
    body: bytes
    #: Values must be str, int, float or bool.
    headers: Mapping[str, Any] = field(default_factory=dict)
    #: The event's id, for people looking at a queue.
    message_id: str = ""
    #: False: unroutable messages count as published.
    mandatory: bool = True

    @classmethod
    def event(cls, event: Event, *, mandatory: bool = True) -> Outgoing:
        """An event on its way to its service's exchange."""
        headers = {} if event.traceparent is None else {"traceparent": event.traceparent}
        return cls(
            exchange=topology.events_exchange(event.source),
            routing_key=event.type,
            body=event.to_json().encode(),
            headers=headers,
            message_id=event.id,
            mandatory=mandatory,
        )

    @classmethod
    def told(cls, event: Told, *, mandatory: bool = True) -> Outgoing:
        """An envelope that is written already, on its way to its service's exchange."""
        return cls(
            exchange=topology.events_exchange(event.source),
            routing_key=event.type,
            body=event.body,
            headers={} if event.traceparent is None else {"traceparent": event.traceparent},
            message_id=event.id,
            mandatory=mandatory,
        )


class _Window:
    """The messages under way on one channel, and the broker's answers to them as they come in."""

    def __init__(self, channel: amqp.Channel) -> None:
        self.channel = channel
        self.next_tag = 1
        self.waiting: dict[int, int] = {}
        self.outcomes: dict[int, Outcome] = {}
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def send(self, index: int, message: Outgoing) -> None:
        tag = self.next_tag
        self.next_tag += 1
        self.waiting[tag] = index
        content = amqp.Message(
            message.body,
            content_type=CONTENT_TYPE,
            delivery_mode=2,
            message_id=message.message_id or None,
            # A returned message carries no delivery tag; this one comes back with it.
            correlation_id=str(tag),
            application_headers={**message.headers, SENT_HEADER: time.time_ns() // 1_000_000},
        )
        self.channel.basic_publish(
            content, exchange=message.exchange, routing_key=message.routing_key, mandatory=message.mandatory
        )

    def _settle(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        tags = [t for t in self.waiting if t <= tag] if multiple else [tag]
        for each in tags:
            index = self.waiting.pop(each, None)
            if index is not None:
                # A return arrives before the confirm of the same message.
                self.outcomes.setdefault(index, outcome)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple, Outcome.PUBLISHED)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple, Outcome.REFUSED)

    def _on_return(self, _error: Any, _exchange: str, _key: str, message: amqp.Message) -> None:
        tag = str(message.properties.get("correlation_id", ""))
        index = self.waiting.get(int(tag)) if tag.isdigit() else None
        if index is not None:
            self.outcomes[index] = Outcome.RETURNED


class Publisher:
    """Publishes batches over one connection, opened at first use and again after a failure."""

    def __init__(
        self, broker: Broker, *, service: str, confirm_seconds_max: float = CONFIRM_SECONDS_MAX
    ) -> None:
        """`service` is the label in metrics."""
        self._broker = broker
        self._service = service
        self._confirm_seconds_max = confirm_seconds_max
        self._lock = threading.RLock()
        self._connection: amqp.Connection | None = None
        self._window: _Window | None = None
        self._used_at = 0.0
        self._exchanges: set[str] = set()

    def publish(self, messages: Sequence[Outgoing], seconds_max: float = 30.0) -> list[Outcome]:
        """Publishes in order; one outcome a message. Raises nothing when the broker is away.

        What the connection lost is sent again over a new one, with growing pauses, until `seconds_max` are
        over; messages without the broker's word by then are UNKNOWN.
        """
        outcomes: dict[int, Outcome] = {}
        spans = _start_spans(messages) if telemetry.exporting() else {}
        deadline = time.monotonic() + seconds_max
        pause = BACKOFF_SECONDS_MIN
        with self._lock:
            while True:
                before = len(outcomes)
                self._attempt(messages, outcomes, deadline)
                if len(outcomes) == len(messages):
                    break
                pause = BACKOFF_SECONDS_MIN if len(outcomes) > before else pause
                if time.monotonic() + pause >= deadline:
                    break
                time.sleep(pause)
                pause = min(2 * pause, BACKOFF_SECONDS_MAX)
        for index, span in spans.items():
            outcome = outcomes.get(index, Outcome.UNKNOWN)
            telemetry.end_span(span, "" if outcome is Outcome.PUBLISHED else outcome.value)
        return [outcomes.get(index, Outcome.UNKNOWN) for index in range(len(messages))]

    def publish_events(
        self, events: Sequence[Event], *, mandatory: bool = True, seconds_max: float = 30.0
    ) -> list[Outcome]:
        """`publish` for events, to their services' exchanges."""
        return self.publish([Outgoing.event(event, mandatory=mandatory) for event in events], seconds_max)

    def _attempt(self, messages: Sequence[Outgoing], outcomes: dict[int, Outcome], deadline: float) -> None:
        """Sends what has no outcome yet, until the connection fails."""
        try:
            for indexes in _windows(messages, outcomes):
                window = self._ready([messages[index].exchange for index in indexes])
                for index in indexes:
                    window.send(index, messages[index])
                self._await(window, deadline)
                outcomes.update(window.outcomes)
        except CONNECTION_ERRORS as error:
            if self._window is not None:
                outcomes.update(self._window.outcomes)
            log.warning("bus.publish_interrupted", error=repr(error))
            self.close()

    def _ready(self, exchanges: Sequence[str]) -> _Window:
        now = time.monotonic()
        if self._window is not None and now - self._used_at > IDLE_SECONDS_MAX:
            self.close()
        if self._connection is None or self._window is None:
            _reconnects.labels(self._service).inc()
            self._connection = open_connection(self._broker)
            self._window = _Window(self._connection.channel())
        self._used_at = now
        self._window.outcomes.clear()
        for exchange in set(exchanges) - self._exchanges:
            # Ours may be the first process to name it. Delay and default exchanges exist or are no business
            # of ours.
            if exchange.endswith(".events"):
                topology.declare_exchange(self._window.channel, exchange.removesuffix(".events"))
            self._exchanges.add(exchange)
        return self._window

    def _await(self, window: _Window, deadline: float) -> None:
        assert self._connection is not None
        end = min(deadline, time.monotonic() + self._confirm_seconds_max)
        while window.waiting:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError("the broker did not confirm in time")
            self._connection.drain_events(timeout=left)

    def connected(self) -> bool:
        """Whether a connection was open when last used."""
        return self._connection is not None

    def close(self) -> None:
        """Closes the connection; the next batch opens another."""
        with self._lock:
            connection, self._connection, self._window = self._connection, None, None
            self._exchanges.clear()
            close_quietly(connection)


def _start_spans(messages: Sequence[Outgoing]) -> dict[int, Span]:
    """Spans of the messages whose trace is sampled, by index; they end with the broker's word."""
    spans = {}
    for index, message in enumerate(messages):
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": f"{message.exchange}:{message.routing_key}",
            "messaging.rabbitmq.destination.routing_key": message.routing_key,
            "messaging.message.id": message.message_id,
        }
        name = f"publish {message.exchange}"
        span = telemetry.start_span(name, telemetry.extract(message.headers), SpanKind.PRODUCER, attributes)
        if span is not None:
            spans[index] = span
    return spans


def _windows(messages: Sequence[Outgoing], outcomes: Mapping[int, Outcome]) -> list[list[int]]:
    """Indexes without an outcome, in order, cut into windows."""
    windows: list[list[int]] = []
    size = 0
    for index, message in enumerate(messages):
        if index in outcomes:
            continue
        full = windows and (
            len(windows[-1]) >= WINDOW_MESSAGES_MAX or size + len(message.body) > WINDOW_BYTES_MAX
        )
        if not windows or full:
            windows.append([])
            size = 0
        windows[-1].append(index)
        size += len(message.body)
    return windows
