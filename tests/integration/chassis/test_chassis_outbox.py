"""The relay against the real database, with a publisher that answers as told."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import mongoengine
import pymongo
import pytest
from google.protobuf.type_pb2 import Enum, EnumValue
from google.protobuf.type_pb2 import Field as ProtoField
from mongoengine import StringField
from prometheus_client import REGISTRY

from chassis import mongo, outbox
from chassis.bus import Event, topology
from chassis.bus.connection import close_quietly, open_connection
from chassis.bus.publisher import Outcome, Outgoing, Publisher
from chassis.config import ServiceSettings
from chassis.lease import Lease
from chassis.mongo import Aggregate, insert_aggregate, update_aggregate
from chassis.outbox import OutboxRelay

pytestmark = pytest.mark.integration
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class OutboxThing(Aggregate):
    meta = {"collection": "things"}  # noqa: RUF012
    name = StringField()


class OutboxOther(Aggregate):
    meta = {"collection": "others"}  # noqa: RUF012


class OutboxBulk(Aggregate):
    outbox_ordered = False
    outbox_only = True
    meta = {"collection": "bulk"}  # noqa: RUF012


class ScriptedPublisher:
    """Confirms everything but what `answer` says otherwise."""

    def __init__(self) -> None:
        self.batches: list[list[Outgoing]] = []
        self.answer: Callable[[Event], Outcome] = lambda event: Outcome.PUBLISHED
        self.before: Callable[[], None] = lambda: None

    def publish(self, messages: Sequence[Outgoing], seconds_max: float = 0) -> list[Outcome]:
        self.before()
        self.batches.append(list(messages))
        return [self.answer(Event.from_json(message.body)) for message in messages]

    @property
    def ids(self) -> list[str]:
        return [message.message_id for batch in self.batches for message in batch]


class Stopwatch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def database(mongo_uri: str, mongo_database: str) -> Iterator[Any]:
    settings = ServiceSettings(service="maker", mongo_uri=mongo_uri, mongo_database=mongo_database)
    yield mongo.connect(settings)
    mongo.disconnect()


@pytest.fixture
def publisher() -> ScriptedPublisher:
    return ScriptedPublisher()


def make_relay(database: Any, publisher: Any, watch: Stopwatch | None = None, **more: Any) -> OutboxRelay:
    lease = Lease(database["leases"], secrets.token_hex(4), "me", 10)
    assert lease.acquire()
    documents = [OutboxThing, OutboxOther, OutboxBulk]
    return OutboxRelay(documents, publisher, lease, service="maker", monotonic=watch or Stopwatch(), **more)


def pending_count(*documents: type[Aggregate]) -> int:
    """How many aggregates have events that are not published yet."""
    pending = {"outbox_since": {"$exists": True}}
    return sum(document._get_collection().count_documents(pending) for document in documents)


def event(id: str, message: Any = None) -> Event:
    return Event.of(message or ProtoField(name="n"), source="maker", subject="", time=NOW, id=id)


def entries(document: type[Aggregate], id: str) -> list[str]:
    found = document._get_collection().find_one({"_id": id})
    assert found is not None
    assert ("outbox_since" in found) == bool(found["outbox"])
    return [entry["id"] for entry in found["outbox"]]


def test_events_of_all_classes_go_out_and_come_off(database: Any, publisher: ScriptedPublisher) -> None:
    insert_aggregate(OutboxThing(id="a", name="x"), [event("e1"), event("e2")])
    insert_aggregate(OutboxOther(id="b"), [event("e3")])
    insert_aggregate(OutboxOther(id="c"))
    assert pending_count(OutboxThing, OutboxOther) == 2
    assert make_relay(database, publisher).step() == 3
    assert sorted(publisher.ids) == ["e1", "e2", "e3"]
    assert pending_count(OutboxThing, OutboxOther) == 0
    assert entries(OutboxThing, "a") == []
    first = publisher.batches[0][0]
    assert (first.exchange, first.routing_key) == ("maker.events", "google.protobuf.Field")
    assert first.mandatory


def test_bulk_goes_out_together_and_is_removed_when_all_is_told(
    database: Any, publisher: ScriptedPublisher
) -> None:
    insert_aggregate(OutboxBulk(id="a"), [event(f"e{n}") for n in range(5)])
    insert_aggregate(OutboxBulk(id="b"), [event("f1")])
    publisher.answer = lambda event: Outcome.UNKNOWN if event.id == "e3" else Outcome.PUBLISHED
    relay = make_relay(database, publisher)
    assert relay.step() == 5 and len(publisher.batches) == 1
    assert entries(OutboxBulk, "a") == ["e3"] and pending_count(OutboxBulk) == 1
    assert OutboxBulk._get_collection().count_documents({}) == 1, "the told one is gone"
    publisher.answer = lambda event: Outcome.PUBLISHED
    assert relay.step() == 1 and publisher.ids.count("e3") == 2
    assert OutboxBulk._get_collection().count_documents({}) == 0


def test_what_somebody_else_emptied_is_removed_where_it_is_nothing_but_an_outbox(
    database: Any, publisher: ScriptedPublisher
) -> None:
    for document in (OutboxBulk, OutboxThing):
        insert_aggregate(document(id="a"), [event("e1")])
        document._get_collection().update_one({"_id": "a"}, {"$pull": {"outbox": {"id": "e1"}}})
    insert_aggregate(OutboxBulk(id="b"), [event("e2")])
    assert make_relay(database, publisher).step() == 1 and publisher.ids == ["e2"]
    assert OutboxBulk._get_collection().count_documents({}) == 0
    assert OutboxThing._get_collection().count_documents({}) == 1


def test_order_within_an_aggregate_is_kept_through_a_refusal(
    database: Any, publisher: ScriptedPublisher
) -> None:
    insert_aggregate(OutboxThing(id="a"), [event("a1"), event("a2"), event("a3")])
    insert_aggregate(OutboxThing(id="b"), [event("b1"), event("b2")])
    publisher.answer = lambda e: Outcome.REFUSED if e.id == "a2" else Outcome.PUBLISHED
    relay = make_relay(database, publisher)
    assert relay.step() == 3
    assert "a3" not in publisher.ids
    assert entries(OutboxThing, "a") == ["a2", "a3"]
    assert entries(OutboxThing, "b") == []
    publisher.answer = lambda e: Outcome.PUBLISHED
    assert relay.step() == 2
    assert [id for id in publisher.ids if id.startswith("a")] == ["a1", "a2", "a2", "a3"]


def test_what_is_appended_meanwhile_stays(database: Any, publisher: ScriptedPublisher) -> None:
    insert_aggregate(OutboxThing(id="a"), [event("e1")])

    def append() -> None:
        document = OutboxThing.objects(id="a").first()
        document.name = "changed"
        update_aggregate(document, [event(f"late{document.version}")])

    publisher.before = append
    relay = make_relay(database, publisher)
    assert relay.step() == 1
    assert entries(OutboxThing, "a") == ["late1"]
    publisher.before = lambda: None
    assert relay.step() == 1
    assert entries(OutboxThing, "a") == []
    assert OutboxThing.objects(id="a").first().name == "changed"


def test_a_crash_between_publish_and_pull_repeats_the_same_id(
    database: Any, publisher: ScriptedPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_aggregate(OutboxThing(id="a"), [event("e1")])
    relay = make_relay(database, publisher)

    def crash(*_: Any) -> None:
        raise pymongo.errors.AutoReconnect("gone")

    with monkeypatch.context() as patched:
        patched.setattr(relay, "_pull", crash)
        with pytest.raises(pymongo.errors.AutoReconnect):
            relay.step()
    assert entries(OutboxThing, "a") == ["e1"]
    assert make_relay(database, publisher).step() == 1
    assert publisher.ids == ["e1", "e1"]
    assert publisher.batches[0][0].body == publisher.batches[1][0].body


def test_the_unroutable_stays_and_the_others_pass_it(database: Any, publisher: ScriptedPublisher) -> None:
    watch = Stopwatch()
    insert_aggregate(
        OutboxThing(id="a"), [event("u1", Enum(name="x")), event("e1"), event("u2", Enum(name="y"))]
    )
    publisher.answer = lambda e: Outcome.RETURNED if e.id.startswith("u") else Outcome.PUBLISHED
    relay = make_relay(database, publisher, watch)
    assert relay.step() == 1
    assert publisher.ids == ["u1", "e1"]
    assert entries(OutboxThing, "a") == ["u1", "u2"]
    assert relay.step() == 0
    assert publisher.ids == ["u1", "e1"], "its type is left alone"
    tried = []
    for second in range(1, 200):
        watch.seconds = float(second)
        before = len(publisher.ids)
        relay.step()
        if len(publisher.ids) > before:
            tried.append(second)
    assert tried == [1, 3, 7, 15, 31, 63, 123, 183]
    publisher.answer = lambda e: Outcome.PUBLISHED
    watch.seconds = 1000.0
    assert relay.step() == 2
    assert entries(OutboxThing, "a") == []


def test_types_that_need_no_subscriber_are_not_mandatory(database: Any, publisher: ScriptedPublisher) -> None:
    insert_aggregate(OutboxThing(id="a"), [event("e1"), event("e2", Enum(name="x"))])
    make_relay(database, publisher, optional=frozenset({"google.protobuf.Enum"})).step()
    assert [(m.message_id, m.mandatory) for batch in publisher.batches for m in batch] == [
        ("e1", True),
        ("e2", False),
    ]


@pytest.mark.parametrize(("outcome", "rounds"), [(Outcome.RETURNED, 6), (Outcome.REFUSED, 26)])
def test_many_that_wait_do_not_hide_the_ones_behind(
    database: Any,
    publisher: ScriptedPublisher,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    rounds: int,
) -> None:
    monkeypatch.setattr(outbox, "SCAN_MAX", 10)
    monkeypatch.setattr(outbox, "BATCH_MAX", 4)
    for number in range(25):
        insert_aggregate(OutboxThing(id=f"u{number:02}"), [event(f"u{number:02}", Enum(name="x"))])
    insert_aggregate(OutboxThing(id="good"), [event("good")])
    publisher.answer = lambda e: outcome if e.id.startswith("u") else Outcome.PUBLISHED
    relay = make_relay(database, publisher)
    counts = [relay.step() for _ in range(rounds)]
    assert sum(counts) == 1
    assert entries(OutboxThing, "good") == []
    assert pending_count(OutboxThing) == 25


def test_an_entry_that_is_no_event_does_not_stop_the_rest(
    database: Any, publisher: ScriptedPublisher
) -> None:
    insert_aggregate(OutboxThing(id="a"), [event("e1")])
    OutboxThing._get_collection().update_one(
        {"_id": "a"},
        {"$push": {"outbox": {"$each": [{"id": "bad", "event": "{"}, {"id": "worse"}], "$position": 0}}},
    )
    assert make_relay(database, publisher).step() == 1
    assert entries(OutboxThing, "a") == ["bad", "worse"]


def test_one_relay_works_at_a_time(database: Any, publisher: ScriptedPublisher) -> None:
    insert_aggregate(OutboxThing(id="a"), [event("e1")])
    holder = Lease(database["leases"], "outbox", "other", 30)
    assert holder.acquire()
    waiting = OutboxRelay(
        [OutboxThing], publisher, Lease(database["leases"], "outbox", "me", 10), service="maker"
    )
    turns = iter([False, False, True])
    waiting.run(lambda seconds: next(turns))
    assert publisher.ids == []
    holder.release()
    turns = iter([False, True])
    waiting.run(lambda seconds: next(turns))
    assert publisher.ids == ["e1"]
    assert holder.acquire(), "given back at the end"


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"service": "maker"})


@pytest.mark.parametrize("how", ["taken", "away"])
def test_an_age_is_told_by_the_relay_that_works(
    database: Any, publisher: ScriptedPublisher, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that lost its lease, to another or with the database, would be alerted for ever."""
    insert_aggregate(OutboxThing(id="a"), [event("e1")])
    minutes_ago = datetime.now(UTC) - timedelta(minutes=10)
    OutboxThing._get_collection().update_one({"_id": "a"}, {"$set": {"outbox_since": minutes_ago}})
    publisher.answer = lambda event: Outcome.UNKNOWN
    watch = Stopwatch()
    lease = Lease(database["leases"], "outbox", "me", 10, monotonic=watch)
    relay = OutboxRelay([OutboxThing], publisher, lease, service="maker", monotonic=watch)
    seen: list[tuple[float | None, float | None]] = []

    def next_turn(_: float) -> bool:
        age = gauge("callmesh_outbox_oldest_seconds")
        seen.append((gauge("callmesh_outbox_relay_active"), age))
        watch.seconds += 20.0
        if how == "taken":
            database["leases"].update_one(
                {"_id": "outbox"},
                {"$set": {"holder": "other", "expires_at": datetime.now(UTC) + timedelta(hours=1)}},
            )
        else:
            monkeypatch.setattr(lease, "acquire", refuse)
        return len(seen) == 2

    def refuse() -> bool:
        raise pymongo.errors.AutoReconnect("gone")

    relay.run(next_turn)
    (active, age), after = seen
    assert active == 1 and age is not None and age > 500
    assert after == (0, 0)


def test_with_the_real_broker_the_unroutable_stays_until_somebody_subscribes(
    database: Any, amqp_uri: str
) -> None:
    source = f"src{secrets.token_hex(4)}"
    publisher = Publisher(amqp_uri, service="maker")
    watch = Stopwatch()
    relay = make_relay(database, publisher, watch)
    made = Event.of(EnumValue(name="v"), source=source, subject="", time=NOW, id="e1")
    insert_aggregate(OutboxThing(id="a"), [made])
    assert relay.step() == 0
    assert entries(OutboxThing, "a") == ["e1"]
    connection = open_connection(amqp_uri)
    subscription = topology.Subscription(
        service=source, handler="h", source=source, types=("google.protobuf.EnumValue",)
    )
    topology.declare(connection.channel(), [subscription])
    watch.seconds = 60.0
    assert relay.step() == 1
    found = connection.channel().basic_get(f"{source}.h", no_ack=True)
    assert found is not None and Event.from_json(found.body) == made
    assert entries(OutboxThing, "a") == []
    close_quietly(connection)
    publisher.close()


def test_mongoengine_knows_no_default_connection_afterwards() -> None:
    with pytest.raises(mongoengine.connection.ConnectionFailure):
        mongoengine.get_connection()
