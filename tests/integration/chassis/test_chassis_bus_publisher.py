"""The batch publisher against a real broker."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import amqp
import pytest

from chassis.bus import topology
from chassis.bus.connection import await_broker, close_quietly, open_connection
from chassis.bus.publisher import WINDOW_BYTES_MAX, Outcome, Outgoing, Publisher
from chassis.errors import StartError
from chassis.localstack import RabbitNode, free_ports
from chassis.testing.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def source() -> str:
    return f"src{secrets.token_hex(4)}"


@pytest.fixture
def channel(amqp_uri: str) -> Iterator[amqp.Channel]:
    connection = open_connection(amqp_uri)
    yield connection.channel()
    close_quietly(connection)


@pytest.fixture
def publisher(amqp_uri: str) -> Iterator[Publisher]:
    made = Publisher(amqp_uri, service="test")
    yield made
    made.close()


def subscription(source: str) -> topology.Subscription:
    return topology.Subscription(service=source, handler="on_it", source=source, types=("a.B", "a.C"))


def message(source: str, body: bytes = b"x", kind: str = "a.B") -> Outgoing:
    return Outgoing(exchange=f"{source}.events", routing_key=kind, body=body)


def drain(channel: amqp.Channel, queue: str) -> list[bytes]:
    bodies = []
    while (found := channel.basic_get(queue, no_ack=True)) is not None:
        bodies.append(found.body if isinstance(found.body, bytes) else found.body.encode())
    return bodies


def test_a_batch_arrives_in_order_and_every_message_is_confirmed(
    channel: amqp.Channel, publisher: Publisher, source: str
) -> None:
    topology.declare(channel, [subscription(source)])
    bodies = [str(number).encode() for number in range(1200)]
    outcomes = publisher.publish([message(source, body) for body in bodies])
    assert outcomes == [Outcome.PUBLISHED] * 1200
    assert drain(channel, f"{source}.on_it") == bodies


def test_what_no_queue_is_bound_for_comes_back(
    channel: amqp.Channel, publisher: Publisher, source: str
) -> None:
    topology.declare(channel, [subscription(source)])
    kinds = ["a.B", "a.D", "a.C", "a.D"]
    outcomes = publisher.publish([message(source, kind=kind) for kind in kinds])
    assert outcomes == [Outcome.PUBLISHED, Outcome.RETURNED, Outcome.PUBLISHED, Outcome.RETURNED]
    relaxed = Outgoing(exchange=f"{source}.events", routing_key="a.D", body=b"", mandatory=False)
    assert publisher.publish([relaxed]) == [Outcome.PUBLISHED]


def test_large_returned_messages_do_not_block_the_connection(publisher: Publisher, source: str) -> None:
    body = b"x" * 200_000
    assert len(body) * 40 > 4 * WINDOW_BYTES_MAX
    assert publisher.publish([message(source, body)] * 40) == [Outcome.RETURNED] * 40


def test_a_full_queue_refuses_and_nothing_is_lost_silently(
    channel: amqp.Channel, publisher: Publisher, source: str
) -> None:
    arguments = {"x-queue-type": "quorum", "x-max-length": 5, "x-overflow": "reject-publish"}
    channel.queue_declare(source, durable=True, auto_delete=False, arguments=arguments)
    bodies: list[bytes] = []
    outcomes: list[Outcome] = []

    def refused() -> bool:
        # A quorum queue learns of its length with a delay, so the limit is soft.
        batch = [f"{len(bodies) + number}".encode() for number in range(20)]
        bodies.extend(batch)
        outcomes.extend(
            publisher.publish([Outgoing(exchange="", routing_key=source, body=body) for body in batch])
        )
        return Outcome.REFUSED in outcomes

    wait_until(refused)
    assert set(outcomes) == {Outcome.PUBLISHED, Outcome.REFUSED}
    taken = [body for body, outcome in zip(bodies, outcomes, strict=True) if outcome is Outcome.PUBLISHED]
    assert drain(channel, source) == taken


def test_delay_queues_hand_back_to_the_handlers_queue(
    channel: amqp.Channel, publisher: Publisher, source: str
) -> None:
    topology.declare(channel, [subscription(source)], [0.1])
    delayed = Outgoing(
        exchange=topology.retry_name(source, 0.1), routing_key=f"{source}.on_it", body=b"later"
    )
    assert publisher.publish([delayed]) == [Outcome.PUBLISHED]
    assert wait_until(lambda: drain(channel, f"{source}.on_it")) == [b"later"]


def test_a_queue_with_other_arguments_is_not_taken_over(channel: amqp.Channel, source: str) -> None:
    channel.queue_declare(f"{source}.on_it", durable=True, auto_delete=False)
    with pytest.raises(amqp.PreconditionFailed):
        topology.declare(channel, [subscription(source)])


def test_threads_share_a_publisher(channel: amqp.Channel, publisher: Publisher, source: str) -> None:
    topology.declare(channel, [subscription(source)])
    outcomes: list[Outcome] = []

    def publish() -> None:
        outcomes.extend(publisher.publish([message(source)] * 50))

    threads = [threading.Thread(target=publish) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes == [Outcome.PUBLISHED] * 300
    assert len(drain(channel, f"{source}.on_it")) == 300


def test_no_broker_is_an_outcome_not_an_exception(source: str) -> None:
    publisher = Publisher(f"amqp://127.0.0.1:{free_ports(1)[0]}//", service="test")
    assert publisher.publish([message(source)] * 2, seconds_max=0.3) == [Outcome.UNKNOWN] * 2
    with pytest.raises(StartError, match="did not answer"):
        await_broker(f"amqp://127.0.0.1:{free_ports(1)[0]}//", 0.3)


def test_wrong_credentials_end_the_start_at_once(amqp_uri: str) -> None:
    with pytest.raises(StartError, match="refused"):
        await_broker(amqp_uri.replace("guest:guest", "guest:wrong"), 30)


def test_nothing_is_lost_when_the_broker_dies_in_the_middle(source: str, rabbit_node: RabbitNode) -> None:
    connection = open_connection(rabbit_node.uri)
    topology.declare(connection.channel(), [subscription(source)])
    close_quietly(connection)
    rabbit_node.settle()
    publisher = Publisher(rabbit_node.uri, service="test")
    accepted: list[bytes] = []
    enough = threading.Event()
    stop = threading.Event()

    def publish() -> None:
        number = 0
        while not stop.is_set():
            bodies = [str(number + index).encode() for index in range(100)]
            outcomes = publisher.publish([message(source, body) for body in bodies], seconds_max=60)
            accepted.extend(b for b, out in zip(bodies, outcomes, strict=True) if out is Outcome.PUBLISHED)
            number += 100
            if number >= 1000:
                enough.set()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        assert enough.wait(60)
        before = len(accepted)
        rabbit_node.kill()
        rabbit_node.start()
        wait_until(lambda: len(accepted) >= before + 500, 60)
    finally:
        stop.set()
        thread.join(70)
    assert not thread.is_alive()
    connection = open_connection(rabbit_node.uri)
    arrived = drain(connection.channel(), f"{source}.on_it")
    close_quietly(connection)
    publisher.close()
    assert set(accepted) <= set(arrived)
    first_arrivals = list(dict.fromkeys(arrived))
    assert first_arrivals == sorted(first_arrivals, key=int), "order is kept, apart from repetitions"
