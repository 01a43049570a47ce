"""The nameko entrypoint for events: acknowledgement, retry, dead letters and duplicates are decided here.

nameko's own consumer acknowledges a message whose handler raised. This one acknowledges only what was done
with: the handler succeeded and its mark is in the inbox, or the broker confirmed that the message lies in a
delay queue or in the dead-letter queue. Anything else goes back to the queue, by itself when the process
dies.

    class CrmConsumers:
        name = "crm"

        @subscribe("routing", CallEnded, CallWrappedUp)
        def on_call_end(self, event: Event) -> None: ...

Handlers run side by side (`BusOptions.prefetch` a handler, `max_workers` a process), so they see events of
one aggregate in another order now and then, and one event twice when a process dies between effect and mark.

A handler may take events together instead (`subscribe(…, together_max=100)`): then it gets a list, whatever
came while the list before was being handled, one list at a time. What an event costs in round trips is shared
by the list: one question to the inbox, one write of marks, and whatever the handler itself can ask at once.
When such a handler raises, each event of the list is handled again by itself, so one bad event costs only
itself; and what the broker delivers again is handled by itself, because it may be what killed a process.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import amqp
import eventlet
import kombu
import mongoengine
from eventlet.event import Event as Signal
from google.protobuf.message import Message
from nameko.constants import DEFAULT_HEARTBEAT, DEFAULT_TRANSPORT_OPTIONS, HEARTBEAT_CONFIG_KEY
from nameko.exceptions import ContainerBeingKilled
from nameko.extensions import ENTRYPOINT_EXTENSIONS_ATTR, Entrypoint, register_entrypoint
from nameko.messaging import QueueConsumer
from opentelemetry.trace import SpanKind

from chassis import callcontext, logs, metrics, telemetry
from chassis.bus import topology, verdict
from chassis.bus.connection import CONNECTION_ERRORS, Broker, candidates, without_tls
from chassis.bus.event import Event, MalformedEvent
from chassis.bus.inbox import Inbox
from chassis.bus.publisher import SENT_HEADER, Outcome, Outgoing, Publisher

#: Keys of the `BusOptions` and of the `Broker` in nameko's configuration.
OPTIONS_KEY, BROKER_KEY = "CALLMESH_BUS", "CALLMESH_BROKER"
#: How long a message that could not be put anywhere is kept before it goes back to its queue, seconds.
GIVE_BACK_SECONDS = 1.0
#: Longest turn of the consumers' loop, in which it looks whether it shall end, seconds.
LOOP_SECONDS = 0.2
#: How long a retry or a dead letter may take to be confirmed, seconds.
PUT_SECONDS_MAX = 15.0

log = logs.get_logger(__name__)

_LABELS = ("service", "handler")
_consumed = metrics.counter("callmesh_bus_consumed_total", "Events that a handler took.", _LABELS)
_retried = metrics.counter("callmesh_bus_retried_total", "Events put off after a failure.", _LABELS)
_dead = metrics.counter("callmesh_bus_dead_total", "Events put into a dead-letter queue.", _LABELS)
_duplicates = metrics.counter("callmesh_bus_duplicate_total", "Events that came again.", _LABELS)

_lag = metrics.histogram(
    "callmesh_consumer_lag_seconds",
    "Time from giving an event to the broker to the end of its handling, real seconds.",
    _LABELS,
    (0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0),
)

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class BusOptions:
    """How a worker consumes."""

    #: Delays before the second, third, ... attempt, seconds; attempts are one more.
    retry_delays_seconds: tuple[float, ...] = topology.RETRY_DELAYS_SECONDS
    #: Messages of one handler in hand at once.
    prefetch: int = 10
    #: Deliveries without an answer before the broker dead-letters a message.
    deliveries_max: int = topology.DELIVERIES_MAX
    #: How long a message waits for a store that is away before it is dead-lettered, seconds.
    away_seconds_max: float = verdict.AWAY_SECONDS_MAX
    #: How long a stop waits for the messages in hand, seconds.
    drain_seconds: float = 10.0
    #: How long a start waits for the broker before it gives up, seconds.
    connect_seconds: float = 30.0


class BusConsumer(QueueConsumer):
    """One connection for all handlers of a service, and what they share."""

    def __init__(self) -> None:
        super().__init__()
        self._leaving: set[Subscribe] = set()
        self._leave_by: float | None = None
        self._handling: dict[tuple[str, str], Signal] = {}
        self._in_hand = 0
        self._refused = 0
        self.connected = False

    @property
    def broker(self) -> Broker:
        """Where the broker is; nameko's own setting where the process gave none."""
        return cast(Broker, self.container.config.get(BROKER_KEY) or self.container.config["AMQP_URI"])

    @property
    def amqp_uri(self) -> str:
        """Connection string of the next connection: kombu asks for it before each."""
        found = candidates(self.broker)
        return found[self._refused % len(found)]

    @property
    def connection(self) -> kombu.Connection:
        """What kombu opens next; nameko's own takes TLS from a setting and not from the connection string."""
        bare, tls = without_tls(self.amqp_uri)
        heartbeat = self.container.config.get(HEARTBEAT_CONFIG_KEY, DEFAULT_HEARTBEAT)
        return kombu.Connection(
            bare, ssl=tls, heartbeat=heartbeat, transport_options=DEFAULT_TRANSPORT_OPTIONS
        )

    @contextmanager
    def establish_connection(self) -> Iterator[Any]:
        """kombu's, which comes again after an error: then with the other password, if there is one."""
        standing = False
        try:
            with super().establish_connection() as connection:
                standing = True
                yield connection
        except amqp.AccessRefused:
            self._refused += not standing
            raise

    @functools.cached_property
    def options(self) -> BusOptions:
        """The process's options."""
        return cast(BusOptions, self.container.config.get(OPTIONS_KEY) or BusOptions())

    @functools.cached_property
    def inbox(self) -> Inbox:
        """Marks in the service's own database (mongoengine's default connection)."""
        return Inbox(mongoengine.get_db())

    @functools.cached_property
    def publisher(self) -> Publisher:
        """For delay queues and dead letters."""
        return Publisher(self.broker, service=self.container.service_name)

    def consume(
        self, limit: Any = None, timeout: Any = None, safety_interval: float = LOOP_SECONDS, **kwargs: Any
    ) -> Any:
        """kombu's loop, with a shorter turn."""
        return super().consume(limit, timeout, safety_interval, **kwargs)

    def get_consumers(self, consumer_cls: Any, channel: Any) -> Any:
        """Declares everything anew after each (re)connection, then consumes with a limit a consumer."""
        subscriptions = [provider.subscription for provider in self._providers]
        topology.declare(
            channel, subscriptions, self.options.retry_delays_seconds, self.options.deliveries_max
        )
        self._consumers = {}
        for provider in self._providers - self._leaving:
            consumer = consumer_cls(
                queues=[kombu.Queue(provider.subscription.queue, no_declare=True)],
                on_message=functools.partial(self._on_message, provider),
                auto_declare=False,
            )
            # Not global: quorum queues know only limits of a single consumer. The next list gathers while
            # one is handled.
            consumer.qos(prefetch_count=max(self.options.prefetch, 2 * provider.together_max))
            self._consumers[provider] = consumer
        return self._consumers.values()

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **kwargs: Any) -> None:
        """Called after each (re)connection."""
        self.connected = True
        super().on_consume_ready(connection, channel, consumers, **kwargs)

    def on_consume_end(self, connection: Any, channel: Any) -> None:
        """Called when consumers were cancelled in order."""
        self.connected = False

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Called for each failed attempt to connect; kombu waits `interval` seconds, then tries again."""
        self.connected = False
        log.warning("bus.unreachable", error=repr(exc), retry_seconds=interval)

    def unregister_provider(self, provider: Subscribe) -> None:
        """Stops taking messages for one handler; those in hand are finished."""
        self._leaving.add(provider)
        super().unregister_provider(provider)

    def on_iteration(self) -> None:
        """Ends the loop when nothing is consumed any more and nothing is in hand, or the time for that is
        over.
        """
        self._cancel_consumers_if_requested()
        if self._consumers:
            return
        if self._leave_by is None:
            self._leave_by = time.monotonic() + self.options.drain_seconds
            log.info("bus.draining", in_hand=self._in_hand)
        if self._in_hand == 0 or time.monotonic() >= self._leave_by:
            self.should_stop = True

    def _on_message(self, provider: Subscribe, message: Any) -> None:
        # Counted here, not in the thread: the loop must not end between the two.
        self._in_hand += 1
        if provider.together_max and not message.delivery_info.get("redelivered"):
            provider.gathered.append(message)
            if not provider.gathering:
                provider.gathering = True
                self._spawn(provider, provider.take_gathered)
            return

        def handle() -> None:
            try:
                provider.take(message)
            finally:
                self.settled(1)

        self._spawn(provider, handle)

    def _spawn(self, provider: Subscribe, work: Callable[[], None]) -> None:
        self.container.spawn_managed_thread(work, identifier=provider.subscription.queue)

    def settled(self, count: int) -> None:
        """So many messages are no longer in hand."""
        self._in_hand -= count

    @contextmanager
    def alone(self, handler: str, event_ids: Iterable[str]) -> Iterator[None]:
        """Waits while this process handles one of these events already: after a lost connection they come
        again, while a handler is still busy with the list that they were in. All are taken at once, so two
        lists never wait for each other. The ids are different.
        """
        keys = [(handler, event_id) for event_id in event_ids]
        while busy := next((self._handling[key] for key in keys if key in self._handling), None):
            busy.wait()
        done = Signal()
        self._handling.update(dict.fromkeys(keys, done))
        try:
            yield
        finally:
            for key in keys:
                del self._handling[key]
            done.send(None)

    def put(self, message: Any, outgoing: Outgoing) -> bool:
        """Moves a message: published elsewhere with the broker's confirm, then acknowledged. False: not
        moved.
        """
        if not message.channel.connection:
            # The broker took it back with the lost connection and hands it out anew: there would be two.
            return False
        if self.publisher.publish([outgoing], PUT_SECONDS_MAX) != [Outcome.PUBLISHED]:
            return False
        self.ack_message(message)
        return True

    def give_back(self, message: Any) -> None:
        """Returns a message to its queue, slowly, so that it does not spin."""
        eventlet.sleep(GIVE_BACK_SECONDS)
        # With a connection that breaks in this very moment the broker takes it back by itself.
        with suppress(*CONNECTION_ERRORS):
            self.requeue_message(message)


class Subscribe(Entrypoint):
    """One handler's subscription; made by `subscribe`."""

    queue_consumer = BusConsumer()

    def __init__(self, source: str, types: tuple[str, ...], handler: str, together_max: int = 0) -> None:
        """`together_max`: how many events the handler takes at once; 0 it takes one."""
        super().__init__(expected_exceptions=(Exception,))
        self.source = source
        self.types = types
        self.handler = handler
        self.together_max = together_max
        #: Messages for the next list, and whether somebody is working them off.
        self.gathered: deque[Any] = deque()
        self.gathering = False

    def of_service(self, service: str) -> topology.Subscription:
        """The subscription as the topology knows it."""
        return topology.Subscription(
            service=service, handler=self.handler, source=self.source, types=self.types
        )

    def setup(self) -> None:
        """nameko: before anything starts."""
        self.subscription = self.of_service(self.container.service_name)
        self._labels = (self.subscription.service, self.handler)
        self._red = metrics.consumer_metrics(*self._labels)
        self._waited = _lag.labels(*self._labels)
        for counted in (_consumed, _retried, _dead, _duplicates):
            # There before anything happens: a first time is an increase as well.
            counted.labels(*self._labels)
        self.queue_consumer.register_provider(self)

    def stop(self) -> None:
        """nameko: no new messages from here on."""
        self.queue_consumer.unregister_provider(self)

    def take(self, message: Any) -> None:
        """Brings one delivered message to an end; raises nothing, or nameko would end the process."""
        started = time.monotonic()
        try:
            outcome = self._outcome(message)
        except ContainerBeingKilled:
            return
        except Exception:
            log.exception("bus.unsettled", queue=self.subscription.queue)
            self.queue_consumer.give_back(message)
            return
        self._record(message, outcome, time.monotonic() - started)

    def take_gathered(self) -> None:
        """Works off what has gathered, and what gathers meanwhile, list by list."""
        try:
            while self.gathered:
                count = min(len(self.gathered), self.together_max)
                messages = [self.gathered.popleft() for _ in range(count)]
                try:
                    self._take_together(messages)
                finally:
                    self.queue_consumer.settled(count)
        finally:
            self.gathering = False

    def _take_together(self, messages: list[Any]) -> None:
        started = time.monotonic()
        try:
            done = self._together(messages)
        except ContainerBeingKilled:
            return
        except Exception as error:
            log.info(
                "bus.one_by_one",
                queue=self.subscription.queue,
                count=len(messages),
                error=verdict.describe(error),
            )
            done = {}
        for message in messages:
            outcome = done.get(id(message))
            if outcome is None:
                self.take(message)
            else:
                self._acknowledge(message, outcome, time.monotonic() - started)

    def _together(self, messages: list[Any]) -> dict[int, str]:
        """Outcomes of the messages by identity; those left out are to be handled by themselves."""
        events: dict[str, Event] = {}
        ids: dict[int, str] = {}
        for message in messages:
            # What is no event is for the other way to bury.
            with suppress(MalformedEvent):
                event = Event.from_json(message.body)
                ids[id(message)] = event.id
                events.setdefault(event.id, event)
        if not events:
            return {}
        with self.queue_consumer.alone(self.handler, events):
            seen = self.queue_consumer.inbox.seen_of(self.handler, list(events))
            fresh = [event for event in events.values() if event.id not in seen]
            if fresh:
                failure = self._run(fresh)
                if failure is not None:
                    raise failure
                self.queue_consumer.inbox.mark_all(self.handler, [event.id for event in fresh])
        outcomes = {}
        for key, event_id in ids.items():
            outcomes[key] = "duplicate" if event_id in seen else "ok"
            seen.add(event_id)
        return outcomes

    def _acknowledge(self, message: Any, outcome: str, seconds: float) -> None:
        try:
            self.queue_consumer.ack_message(message)
        except Exception:
            # It comes again over the next connection, and is known then.
            log.exception("bus.unsettled", queue=self.subscription.queue)
            return
        (_consumed if outcome == "ok" else _duplicates).labels(*self._labels).inc()
        self._record(message, outcome, seconds)

    def _record(self, message: Any, outcome: str, seconds: float) -> None:
        self._red.record(outcome, seconds)
        sent_ms = (message.headers or {}).get(SENT_HEADER)
        if isinstance(sent_ms, int):
            self._waited.observe(max(0.0, time.time_ns() / 1e9 - sent_ms / 1000))

    def _outcome(self, message: Any) -> str:
        try:
            event = Event.from_json(message.body)
        except MalformedEvent as error:
            return self._bury(
                message, verdict.REASON_MALFORMED, {verdict.ERROR_HEADER: verdict.describe(error)}
            )
        with self.queue_consumer.alone(self.handler, [event.id]):
            try:
                if self.queue_consumer.inbox.seen(self.handler, event.id):
                    return self._duplicate(message)
                failure = self._run([event] if self.together_max else event)
                if failure is None:
                    self.queue_consumer.inbox.mark(self.handler, event.id)
            except Exception as error:
                failure = error
        if failure is not None:
            return self._failed(message, event, failure)
        self.queue_consumer.ack_message(message)
        _consumed.labels(*self._labels).inc()
        return "ok"

    def _run(self, taken: Event | list[Event]) -> BaseException | None:
        """Lets nameko run the handler with its dependencies; what it raised."""
        done = Signal()

        def handle_result(_context: Any, result: Any = None, exc_info: Any = None) -> tuple[Any, Any]:
            done.send(exc_info[1] if exc_info is not None else None)
            return result, exc_info

        self.container.spawn_worker(self, (taken,), {}, context_data={}, handle_result=handle_result)
        return cast(BaseException | None, done.wait())

    def _duplicate(self, message: Any) -> str:
        _duplicates.labels(*self._labels).inc()
        self.queue_consumer.ack_message(message)
        return "duplicate"

    def _failed(self, message: Any, event: Event, error: BaseException) -> str:
        options = self.queue_consumer.options
        judged = verdict.judge(
            error,
            verdict.History.of(message.headers),
            time.time_ns() // 1_000_000,
            options.retry_delays_seconds,
            options.away_seconds_max,
        )
        log.warning(
            "bus.handler_failed",
            queue=self.subscription.queue,
            event_id=event.id,
            type=event.type,
            error=verdict.describe(error),
            attempt=judged.headers[verdict.ATTEMPT_HEADER],
            delay_seconds=judged.delay_seconds,
            reason=judged.reason or None,
            trace_id=event.traceparent[3:35] if event.traceparent else None,
        )
        if judged.delay_seconds is None:
            return self._bury(message, judged.reason, judged.headers)
        return self._put_off(message, judged.delay_seconds, judged.headers)

    def _put_off(self, message: Any, delay_seconds: float, headers: dict[str, str | int]) -> str:
        exchange = topology.retry_name(self.subscription.service, delay_seconds)
        return self._move(message, exchange, self.subscription.queue, headers, "retried")

    def _bury(self, message: Any, reason: str, headers: dict[str, str | int]) -> str:
        log.error(
            "bus.dead_letter",
            queue=self.subscription.queue,
            reason=reason,
            error=headers[verdict.ERROR_HEADER],
        )
        marked: dict[str, str | int] = {**headers, verdict.REASON_HEADER: reason}
        return self._move(message, "", self.subscription.dead_queue, marked, "dead")

    def _move(
        self, message: Any, exchange: str, routing_key: str, headers: dict[str, str | int], outcome: str
    ) -> str:
        body = message.body
        outgoing = Outgoing(
            exchange=exchange,
            routing_key=routing_key,
            body=body.encode() if isinstance(body, str) else bytes(body),
            headers=headers,
            message_id=str(message.properties.get("message_id") or "")[:255],
        )
        if not self.queue_consumer.put(message, outgoing):
            self.queue_consumer.give_back(message)
            return "returned"
        (_dead if outcome == "dead" else _retried).labels(*self._labels).inc()
        return outcome


def subscribe(
    source: str, *types: type[Message] | str, name: str | None = None, together_max: int = 0
) -> Callable[[Handler], Handler]:
    """Makes a method the handler of a service's events: `def on_x(self, event: Event) -> None`; with
    `together_max`, `def on_x(self, events: list[Event]) -> None`, for at least one and at most so many.

    One queue for all given types, called `<consumer-service>.<name or method name>`. The name is part of the
    stored marks and of the queue: renaming a handler makes a new queue and leaves the old one behind.
    ValueError without types.
    """
    if not types:
        raise ValueError("subscribe needs at least one event type")
    names = tuple(kind if isinstance(kind, str) else kind.DESCRIPTOR.full_name for kind in types)

    def register(method: Handler) -> Handler:
        handler = name or method.__name__

        @functools.wraps(method)
        def traced(self: Any, taken: Event | list[Event]) -> Any:
            with handling(f"{getattr(self, 'name', '')}.{handler}", taken):
                return method(self, taken)

        register_entrypoint(traced, Subscribe(source, names, handler, together_max))
        return cast(Handler, traced)

    return register


@contextmanager
def handling(queue: str, taken: Event | list[Event]) -> Iterator[None]:
    """The call context and, for each event whose trace is sampled, a span around a handler. What a handler of
    a list tells because of one of its events it tells inside a `handling` of that one, or the others' traces
    get mixed up in it.
    """
    events = taken if isinstance(taken, list) else [taken]
    spans = [
        span
        for event in events
        if telemetry.exporting()
        and (
            span := telemetry.start_call(
                f"process {queue}", event.traceparent, _span_attributes(queue, event), SpanKind.CONSUMER
            )
        )
    ]
    traceparent = None
    if len(events) == 1:
        traceparent = spans[0].traceparent if spans else events[0].traceparent
    identity = callcontext.Identity(subject="worker", scopes=frozenset({"*"}))
    token = callcontext.set_current(callcontext.CallContext(queue, identity, None, traceparent))
    failure = ""
    try:
        yield
    except BaseException as error:
        failure = type(error).__name__
        raise
    finally:
        callcontext.reset_current(token)
        for span in reversed(spans):
            span.end(failure)


def _span_attributes(queue: str, event: Event) -> dict[str, str]:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": f"{topology.events_exchange(event.source)}:{event.type}:{queue}",
        "messaging.rabbitmq.destination.routing_key": event.type,
        "messaging.message.id": event.id,
    }


def subscriptions_of(service_class: type) -> list[topology.Subscription]:
    """What the handlers of a nameko service class want, sorted by queue."""
    found = []
    for _, method in inspect.getmembers(service_class, inspect.isfunction):
        for entrypoint in getattr(method, ENTRYPOINT_EXTENSIONS_ATTR, ()):
            if isinstance(entrypoint, Subscribe):
                found.append(entrypoint.of_service(service_class.name))  # type: ignore[attr-defined]
    return sorted(found, key=lambda subscription: subscription.queue)
