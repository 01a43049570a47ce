"""What `subscribe` makes of a method, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import eventlet
import pytest
from eventlet.event import Event as Signal
from google.protobuf.type_pb2 import EnumValue
from google.protobuf.type_pb2 import Field as ProtoField

from chassis.bus import Event, entrypoint
from chassis.bus.entrypoint import BusConsumer, subscribe, subscriptions_of
from chassis.bus.publisher import Outcome, Outgoing
from chassis.bus.topology import Subscription
from chassis.callcontext import current, current_identity
from chassis.telemetry import current_traceparent

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"


class Consumers:
    name = "tickets"

    @subscribe("routing", ProtoField, EnumValue)
    def on_call(self, event: Event) -> tuple[str | None, str, str]:
        """Says what it sees."""
        call = current()
        assert call is not None
        return current_traceparent(), current_identity().subject, call.method

    @subscribe("crm", "callmesh.crm.v1.CustomerUpdated", name="customers")
    def on_customer(self, event: Event) -> None:
        raise KeyError(event.id)

    def helper(self) -> None:
        """No handler."""


def event() -> Event:
    return Event.of(
        ProtoField(name="x"), source="routing", subject="", time=datetime.now(UTC), traceparent=TRACE
    )


def test_subscriptions_are_read_off_the_class() -> None:
    assert subscriptions_of(Consumers) == [
        Subscription(
            service="tickets", handler="customers", source="crm", types=("callmesh.crm.v1.CustomerUpdated",)
        ),
        Subscription(
            service="tickets",
            handler="on_call",
            source="routing",
            types=("google.protobuf.Field", "google.protobuf.EnumValue"),
        ),
    ]


def test_a_handler_runs_under_the_events_trace_as_the_worker() -> None:
    assert Consumers().on_call(event()) == (TRACE, "worker", "tickets.on_call")
    assert current() is None
    assert Consumers.on_call.__doc__ == "Says what it sees."


def test_the_context_ends_with_a_failing_handler_too() -> None:
    with pytest.raises(KeyError):
        Consumers().on_customer(event())
    assert current() is None


def test_a_subscription_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        subscribe("routing")


class Queues:
    """A publisher that notes what it is given."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.published: list[Outgoing] = []

    def publish(self, messages: list[Outgoing], _seconds_max: float) -> list[Outcome]:
        """Answers each as told."""
        self.published += messages
        return [self.outcome] * len(messages)


@pytest.mark.parametrize(
    ("connected", "outcome", "expected"),
    [
        (True, Outcome.PUBLISHED, (True, 1, ["ack"])),
        (True, Outcome.UNKNOWN, (False, 1, [])),
        # Its connection was lost: the broker delivers it again, and a copy would be a second one.
        (False, Outcome.PUBLISHED, (False, 0, [])),
    ],
)
def test_a_message_is_moved_only_by_who_still_has_it(
    connected: bool, outcome: Outcome, expected: tuple[bool, int, list[str]]
) -> None:
    consumer, queues, answers = BusConsumer(), Queues(outcome), []
    consumer.__dict__["publisher"] = queues
    message: Any = SimpleNamespace(
        channel=SimpleNamespace(connection="open" if connected else None),
        ack=lambda: answers.append("ack"),
    )
    moved = consumer.put(message, Outgoing(exchange="x", routing_key="", body=b"{}"))
    assert (moved, len(queues.published), answers) == expected


def test_a_connection_that_breaks_under_a_message_does_not_end_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Consumer(BusConsumer):
        inbox: Any = SimpleNamespace(seen=lambda *_: True)

    asked = []

    def broken() -> None:
        asked.append("broker")
        raise ConnectionResetError("the broker has gone")

    @subscribe("routing", ProtoField)
    def on_call(self: Any, event: Event) -> None:
        """Never called: the event was taken already, and just its acknowledgement is lost."""

    (handler,) = on_call.nameko_entrypoints
    handler.queue_consumer = Consumer()
    handler.subscription = handler.of_service("tickets")
    handler._labels = ("tickets", "on_call")
    monkeypatch.setattr(entrypoint.eventlet, "sleep", asked.append)
    message = SimpleNamespace(
        body=event().to_json(),
        headers={},
        channel=SimpleNamespace(connection="open"),
        ack=broken,
        requeue=broken,
    )
    handler.take(message)
    assert asked == ["broker", entrypoint.GIVE_BACK_SECONDS, "broker"]


def test_an_event_of_a_list_in_hand_that_comes_again_waits_for_the_list() -> None:
    """The broker went while the handler was busy: what it delivers again is handled by itself, and not beside
    the list.
    """
    marks: set[str] = set()
    taken: list[list[str]] = []
    going_on, acked = Signal(), []

    class Consumer(BusConsumer):
        inbox: Any = SimpleNamespace(
            seen=lambda _, id: id in marks,
            seen_of=lambda _, ids: marks & set(ids),
            mark=lambda _, id: marks.add(id),
            mark_all=lambda _, ids: marks.update(ids),
        )

    @subscribe("routing", ProtoField, together_max=10)
    def on_call(self: Any, events: list[Event]) -> None:
        """Stands in for a handler; what is asked of nameko is answered below."""

    def run(_entrypoint: Any, args: Any, _kwargs: Any, *, handle_result: Any, **_: Any) -> None:
        taken.append([each.id for each in args[0]])
        if len(taken) == 1:
            going_on.wait()
        handle_result(None)

    (handler,) = on_call.nameko_entrypoints
    handler.queue_consumer = Consumer()
    handler.container = SimpleNamespace(spawn_worker=run)
    handler.subscription = handler.of_service("tickets")
    handler._labels = ("tickets", "on_call")
    handler._red, handler._waited = SimpleNamespace(record=lambda *_: None), None
    first, second = event(), event()

    def message(of: Event) -> Any:
        channel = SimpleNamespace(connection="open")
        return SimpleNamespace(
            body=of.to_json(), headers={}, channel=channel, ack=lambda: acked.append(of.id)
        )

    together = eventlet.spawn(handler._take_together, [message(first), message(second)])
    eventlet.sleep(0)
    again = eventlet.spawn(handler.take, message(second))
    eventlet.sleep(0)
    assert taken == [[first.id, second.id]], "not beside the list"
    going_on.send(None)
    together.wait()
    again.wait()
    assert taken == [[first.id, second.id]], "done already"
    assert sorted(acked) == sorted([first.id, second.id, second.id])
    assert not handler.queue_consumer._handling
