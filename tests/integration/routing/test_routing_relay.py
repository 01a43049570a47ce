"""The relay with the real database and the real broker."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import amqp
import pymongo
import pytest

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event, topology
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.publisher import Outcome, Outgoing, Publisher
from chassis.lease import Lease
from chassis.testing.waiting import wait_until
from routing import model, publish, relay
from routing.journal import COLLECTION, to_document
from routing.relay import Cursor, MongoCursors, MongoTail, Relay
from routing.testing import block_of

pytestmark = pytest.mark.integration
T0 = 1_772_000_000_000
#: What somebody has to subscribe to.
MANDATORY = (
    events_pb2.CallQueued,
    events_pb2.CallConnected,
    events_pb2.CallEnded,
    events_pb2.CallWrappedUp,
)


class Bench:
    """One database, one exchange of its own, one queue that takes what is bound."""

    def __init__(self, database: Any, amqp_uri: str, source: str) -> None:
        self.database = database
        self.amqp_uri = amqp_uri
        self.source = source
        self.cursors = MongoCursors(database)
        self.connection = open_connection(amqp_uri)
        self.channel = self.connection.channel()
        self.publishers: list[Publisher] = []

    def subscribe(self, *types: Any) -> None:
        names = tuple(kind.DESCRIPTOR.full_name for kind in types)
        topology.declare(
            self.channel,
            [topology.Subscription(service=self.source, handler="h", source=self.source, types=names)],
        )

    def relay(self, publisher: Any = None, ttl_seconds: float = 10.0) -> Relay:
        if publisher is None:
            publisher = Publisher(self.amqp_uri, service="routing")
            self.publishers.append(publisher)
        lease = Lease(self.database["leases"], "journal", secrets.token_hex(4), ttl_seconds)
        return Relay(MongoTail(self.database), self.cursors, publisher, lease)

    def write(self, *events: model.Event, shard: str = "beijing") -> None:
        blocks = self.database[COLLECTION].with_options(
            write_concern=pymongo.WriteConcern(w="majority")  # type: ignore[attr-defined]
        )
        sequence = MongoTail(self.database).newest(shard) + 1
        at = T0 + sequence
        block = block_of([(at, event) for event in events], sequence, at, shard=shard)
        blocks.insert_one(to_document(block))

    def open(self, shard: str = "beijing") -> None:
        opened = model.ShardOpened(router="r", leaderless_span_ms=0)
        self.write(opened, model.QueueConfigured(queue=model.QueueConfig(id="q")), shard=shard)

    def call(self, call_id: str, shard: str = "beijing") -> None:
        facts = model.CallFacts(call_id=call_id, queue="q", caller_number="+8613800138000")
        queued = model.CallQueued(
            facts=facts, attempt=1, move=1, front="f", queued_ms=T0, effective_ms=T0, waited_span_ms=0
        )
        self.write(queued, shard=shard)

    def taken(self) -> list[Event]:
        """Everything in the queue."""
        found: list[Event] = []
        while (message := self.channel.basic_get(f"{self.source}.h", no_ack=True)) is not None:
            found.append(Event.from_json(message.body))
        return found

    def close(self) -> None:
        for publisher in self.publishers:
            publisher.close()
        for queue in (f"{self.source}.h", f"{self.source}.h.dead"):
            self.channel.queue_delete(queue)
        close_quietly(self.connection)


@pytest.fixture
def bench(
    mongo_client: Any, mongo_database: str, amqp_uri: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    source = f"src{secrets.token_hex(4)}"
    # An exchange that nobody else in this broker has bound a queue to.
    monkeypatch.setattr(publish, "SOURCE", source)
    made = Bench(mongo_client[mongo_database], amqp_uri, source)
    yield made
    made.close()


def run(one: Relay, until: Callable[[], Any], deadline_seconds: float = 60.0) -> None:
    """Runs a relay in a thread until a condition holds."""
    done = threading.Event()
    thread = threading.Thread(target=one.run, args=(done.wait,))
    thread.start()
    try:
        wait_until(until, deadline_seconds, what="the relay has done it")
    finally:
        done.set()
        thread.join()


def test_journals_reach_the_queue_whole_and_in_order(bench: Bench) -> None:
    bench.subscribe(*MANDATORY)
    for shard in ("beijing", "chengdu"):
        bench.open(shard)
        for n in range(50):
            bench.call(f"{shard}-{n}", shard)
    run(bench.relay(), lambda: bench.cursors.get("chengdu").sequence == 51)
    taken = bench.taken()
    assert bench.cursors.get("beijing") == Cursor(sequence=51, nonce="n51")
    for shard in ("beijing", "chengdu"):
        mine = [event for event in taken if event.id.startswith(shard)]
        assert [event.id for event in mine] == [f"{shard}:{n}:0" for n in range(2, 52)]
        assert [e.message(events_pb2.CallQueued).call.call_id for e in mine] == [
            f"{shard}-{n}" for n in range(50)
        ]


def test_killed_between_publish_and_cursor_the_same_ids_come_again_and_nothing_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.subscribe(*MANDATORY)
    bench.open()
    for n in range(20):
        bench.call(f"c{n}")

    class Killed(BaseException):
        pass

    def die(*_: Any) -> bool:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(MongoCursors, "move", die)
        first = bench.relay()
        first._lead()
        with pytest.raises(Killed):
            first.step()
        first._lease.release()
    assert bench.cursors.get("beijing") == Cursor()
    before = bench.taken()
    bench.call("late")
    run(bench.relay(), lambda: bench.cursors.get("beijing").sequence == 22)
    again = bench.taken()
    assert again[: len(before)] == before, "the very same events"
    assert [event.id for event in again] == [f"beijing:{n}:0" for n in range(2, 23)]


def test_what_no_queue_takes_stays_until_one_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "RETRY_SECONDS_MAX", 0.3)
    bench.open()
    bench.call("a")
    one = bench.relay()
    one._lead()
    assert one.step() == 1, "only who leads, which nobody has to hear"
    assert bench.cursors.get("beijing").sequence == 1
    bench.call("b")
    assert one.step() == 0
    bench.subscribe(*MANDATORY)
    run(one, lambda: bench.cursors.get("beijing").sequence == 3)
    assert [event.id for event in bench.taken()] == ["beijing:2:0", "beijing:3:0"]


def test_a_second_relay_waits_for_the_first_and_goes_on_where_it_was(bench: Bench) -> None:
    bench.subscribe(*MANDATORY)
    bench.open()
    bench.call("a")
    first, second = bench.relay(), bench.relay()

    def hand_over() -> bool:
        if bench.cursors.get("beijing").sequence < 2:
            return False
        assert second._turn() == relay.STANDBY_SECONDS
        return True

    run(first, hand_over)
    bench.call("b")
    run(second, lambda: bench.cursors.get("beijing").sequence == 3)
    assert [event.id for event in bench.taken()] == ["beijing:2:0", "beijing:3:0"]


def test_two_relays_at_once_publish_twice_at_worst_and_never_move_the_cursor_back(bench: Bench) -> None:
    bench.subscribe(*MANDATORY)
    bench.open()
    seen: list[int] = []
    stop = threading.Event()
    # Each with a lease of its own: as if one had slept through the end of its lease, for ever.
    relays = [bench.relay() for _ in range(2)]
    for number, one in enumerate(relays):
        one._lease.name = f"journal-{number}"
    threads = [threading.Thread(target=one.run, args=(stop.wait,)) for one in relays]
    for thread in threads:
        thread.start()
    try:
        for n in range(100):
            bench.call(f"c{n}")
            seen.append(bench.cursors.get("beijing").sequence)
        wait_until(lambda: bench.cursors.get("beijing").sequence == 101, 60, what="all is published")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen == sorted(seen)
    ids = [event.id for event in bench.taken()]
    assert set(ids) == {f"beijing:{n}:0" for n in range(2, 102)}
    assert all(ids.count(id) <= 2 for id in set(ids))


def test_a_broker_that_comes_and_goes_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "RETRY_SECONDS_MAX", 0.1)
    bench.subscribe(*MANDATORY)
    bench.open()

    class Flaky:
        """Breaks the connection under every other batch."""

        def __init__(self, real: Publisher) -> None:
            self.real = real
            self.batches = 0

        def publish(self, messages: Sequence[Outgoing], seconds_max: float = 0) -> list[Outcome]:
            self.batches += 1
            if self.batches % 2:
                half = self.real.publish(messages[: len(messages) // 2], seconds_max)
                self.real.close()
                return half + [Outcome.UNKNOWN] * (len(messages) - len(half))
            return self.real.publish(messages, seconds_max)

    real = Publisher(bench.amqp_uri, service="routing")
    bench.publishers.append(real)
    for n in range(30):
        bench.call(f"c{n}")
    run(bench.relay(Flaky(real)), lambda: bench.cursors.get("beijing").sequence == 31)
    assert sorted({event.id for event in bench.taken()}) == sorted(f"beijing:{n}:0" for n in range(2, 32))


def test_the_cursor_moves_only_from_where_it_stands(bench: Bench) -> None:
    cursors = bench.cursors
    one, two, three = (Cursor(sequence=n, nonce=f"n{n}") for n in (1, 2, 3))
    assert cursors.get("x") == Cursor()
    assert cursors.move("x", Cursor(), two)
    assert not cursors.move("x", Cursor(), three), "made by somebody else meanwhile"
    assert not cursors.move("x", one, three)
    assert cursors.get("x") == two
    assert cursors.move("x", two, three)
    assert cursors.get("x") == three
    assert cursors.get("y") == Cursor()


def test_a_document_that_is_no_block_stops_its_shard(bench: Bench) -> None:
    bench.subscribe(*MANDATORY)
    bench.open()
    bench.open("chengdu")
    bench.call("a", "chengdu")
    bench.database[COLLECTION].insert_one({"_id": "beijing:0000000000000002", "body": 7})
    run(bench.relay(), lambda: bench.cursors.get("chengdu").sequence == 2)
    assert bench.cursors.get("beijing").sequence == 0
    assert {event.id.partition(":")[0] for event in bench.taken()} == {"chengdu"}


def test_queues_of_the_test_are_its_own(bench: Bench) -> None:
    with pytest.raises(amqp.NotFound):
        bench.connection.channel().queue_declare(f"{bench.source}.h", passive=True)
