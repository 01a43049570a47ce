"""Aggregates on a real MongoDB: one conditional write, events kept with the data, repeats answered once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import mongoengine
import pytest
from mongoengine import ListField, StringField
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from chassis import metrics, mongo
from chassis.config import ServiceSettings
from chassis.errors import AlreadyExists, Code, EtagMismatch, InvalidArgument, NotFound, StartError, translate
from chassis.idempotency import RequestIdReused
from chassis.mongo import (
    create_once,
    delete_aggregate,
    insert_aggregate,
    outbox_pull,
    retry_conflicts,
    update_aggregate,
)

pytestmark = pytest.mark.integration

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Event:
    id: str

    def to_json(self) -> bytes:
        return f'{{"id":"{self.id}"}}'.encode()


class Thing(mongo.Aggregate):
    meta = {"collection": "things", "indexes": [{"fields": ["number"], "unique": True, "sparse": True}]}  # noqa: RUF012
    resource_collection = "things"

    name = StringField(required=True)
    note = StringField()
    number = StringField()
    tags = ListField(StringField())


def told(id, events):
    """What the relay does once it has published some."""
    Thing._get_collection().update_one({"_id": id}, outbox_pull(events))


@pytest.fixture
def settings(mongo_uri, fresh_database):
    return ServiceSettings(
        service="test", mongo_uri=mongo_uri, mongo_database=fresh_database, mongo_connect_seconds=20
    )


@pytest.fixture(autouse=True)
def things(settings):
    database = mongo.connect(settings)
    mongo.ensure_indexes([Thing])
    yield database["things"]
    mongo.disconnect()


def made(id="t1", **fields) -> Thing:
    return Thing(**{"id": id, "name": "first", **fields})


def test_an_insert_writes_version_one_with_its_events(things):
    thing = made()
    insert_aggregate(thing, [Event("e1"), Event("e2")], now=NOW)
    stored = things.find_one({"_id": "t1"})
    assert stored["version"] == 1 and thing.etag == "v1"
    assert stored["outbox"] == [{"id": "e1", "event": '{"id":"e1"}'}, {"id": "e2", "event": '{"id":"e2"}'}]
    assert stored["created_at"] == stored["updated_at"] == NOW
    assert (datetime.now(UTC) - stored["outbox_since"]).total_seconds() < 60
    assert Thing.objects.get(id="t1").created_at == NOW


def test_without_events_nothing_waits(things):
    insert_aggregate(made())
    stored = things.find_one({"_id": "t1"})
    assert "outbox_since" not in stored and "request_key" not in stored and stored["outbox"] == []


def test_a_taken_id_or_number_is_an_error_that_says_which():
    insert_aggregate(made(number="1"))
    with pytest.raises(AlreadyExists, match="things/t1") as caught:
        insert_aggregate(made())
    assert caught.value.values["conflict"] == "_id"
    with pytest.raises(AlreadyExists) as caught:
        insert_aggregate(made("t2", number="1"))
    assert caught.value.values["conflict"] == "number"
    insert_aggregate(made("t3"))
    third = Thing.objects.get(id="t3")
    third.number = "1"
    with pytest.raises(AlreadyExists):
        update_aggregate(third)


def test_an_update_is_one_write_that_appends_events_and_clears_fields(things):
    insert_aggregate(made(note="n", tags=["a"]), [Event("e1")], now=NOW)
    thing = Thing.objects.get(id="t1")
    since = thing.outbox_since
    thing.name, thing.note, thing.tags = "second", None, []
    update_aggregate(thing, [Event("e2")], mongo.parse_etag("etag", "v1"))
    stored = things.find_one({"_id": "t1"})
    assert stored["version"] == thing.version == 2
    assert stored["name"] == "second" and "note" not in stored
    assert [entry["id"] for entry in stored["outbox"]] == ["e1", "e2"]
    assert stored["outbox_since"] == since
    assert stored["created_at"] == NOW < stored["updated_at"]
    again = Thing.objects.get(id="t1")
    assert (again.tags, again.note) == ([], None)


def test_fields_of_a_newer_release_survive(things):
    insert_aggregate(made())
    things.update_one({"_id": "t1"}, {"$set": {"colour": "red"}})
    thing = Thing.objects.get(id="t1")
    thing.name = "second"
    update_aggregate(thing)
    assert things.find_one({"_id": "t1"})["colour"] == "red"


def test_a_stale_etag_and_a_lost_race_and_a_deleted_one(things):
    insert_aggregate(made())
    mine, theirs = Thing.objects.get(id="t1"), Thing.objects.get(id="t1")
    theirs.name = "theirs"
    update_aggregate(theirs)
    mine.name = "mine"
    with pytest.raises(EtagMismatch, match="things/t1"):
        update_aggregate(mine)
    with pytest.raises(EtagMismatch):
        update_aggregate(theirs, expected_version=1)
    assert things.find_one({"_id": "t1"})["name"] == "theirs"
    things.delete_one({"_id": "t1"})
    with pytest.raises(NotFound):
        update_aggregate(theirs)


def test_writers_at_once_lose_no_change(things):
    insert_aggregate(made())

    def add(tag):
        def use_case():
            thing = Thing.objects.get(id="t1")
            thing.tags.append(tag)
            update_aggregate(thing, [Event(tag)])

        retry_conflicts(use_case, attempts=50)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [f"tag{n}" for n in range(20)]))
    stored = things.find_one({"_id": "t1"})
    assert sorted(stored["tags"]) == sorted(f"tag{n}" for n in range(20))
    assert stored["version"] == 21 and len(stored["outbox"]) == 20


def test_conflicts_are_retried_only_so_often():
    tries = []

    def never():
        tries.append(1)
        raise EtagMismatch(resource="things/t1")

    with pytest.raises(EtagMismatch):
        retry_conflicts(never)
    assert len(tries) == mongo.CONFLICT_ATTEMPTS_MAX


def test_published_events_are_pulled_and_stay_pulled(things):
    insert_aggregate(made(), [Event("e1"), Event("e2")])
    loaded_before = Thing.objects.get(id="t1")
    told("t1", ["e1"])
    stored = things.find_one({"_id": "t1"})
    assert [entry["id"] for entry in stored["outbox"]] == ["e2"] and "outbox_since" in stored
    loaded_before.name = "second"
    update_aggregate(loaded_before, [Event("e3")])
    assert [entry["id"] for entry in things.find_one({"_id": "t1"})["outbox"]] == ["e2", "e3"]
    for _ in range(2):
        told("t1", ["e2", "e3"])
    stored = things.find_one({"_id": "t1"})
    assert stored["outbox"] == [] and "outbox_since" not in stored
    assert stored["version"] == 2  # what the relay does is no change of the aggregate


def test_pending_events_are_found_through_the_index(things):
    insert_aggregate(made("t1"))
    insert_aggregate(made("t2"), [Event("e1")])
    query = {"outbox_since": {"$gt": datetime(1970, 1, 1, tzinfo=UTC)}}
    assert [doc["_id"] for doc in things.find(query).sort("outbox_since")] == ["t2"]
    plan = things.find(query).sort("outbox_since").explain()["executionStats"]
    assert plan["totalDocsExamined"] == 1


def test_a_full_outbox_refuses_until_the_relay_has_caught_up(monkeypatch):
    monkeypatch.setattr(mongo, "OUTBOX_EVENTS_MAX", 3)
    insert_aggregate(made(), [Event("e1"), Event("e2")])
    thing = Thing.objects.get(id="t1")
    update_aggregate(thing, [Event("e3")])
    with pytest.raises(mongo.OutboxFull) as caught:
        update_aggregate(thing, [Event("e4")])
    assert caught.value.details.retry_seconds == 5.0
    update_aggregate(thing)  # a change without events is still welcome
    told("t1", ["e1"])
    update_aggregate(thing, [Event("e4")])


def test_an_outbox_that_is_full_of_large_events_refuses_as_one_full_of_many():
    class Large(Event):
        def to_json(self) -> str:
            return "x" * 6_000_000

    insert_aggregate(made(), [Large("e1"), Large("e2")])
    thing = Thing.objects.get(id="t1")
    with pytest.raises(mongo.OutboxFull):
        update_aggregate(thing, [Large("e3")])
    told("t1", ["e1"])
    update_aggregate(thing, [Large("e3")])


def test_what_is_removed_takes_no_event_along(things, monkeypatch):
    insert_aggregate(made(), [Event("e1")])
    for id, version, refusal in (("t1", 2, EtagMismatch), ("t2", 1, NotFound)):
        with pytest.raises(refusal):
            delete_aggregate(Thing, id, version)
    monkeypatch.setattr(mongo, "TELLING_SECONDS_MAX", 0.0)
    with pytest.raises(mongo.EventsWaiting) as caught:
        delete_aggregate(Thing, "t1", 1)
    assert caught.value.details.retry_seconds == 5.0
    monkeypatch.setattr(mongo, "TELLING_SECONDS_MAX", 60.0)
    # The relay comes by while the removal waits.
    monkeypatch.setattr(mongo.time, "sleep", lambda _: told("t1", ["e1"]))
    delete_aggregate(Thing, "t1", 1)
    assert things.find_one({"_id": "t1"}) is None


def test_a_repeat_returns_the_first_result():
    first, created = create_once(made(), [Event("e1")], request_key="k", fingerprint="f")
    assert created and first.id == "t1"
    again, created = create_once(made("t2"), [Event("e2")], request_key="k", fingerprint="f")
    assert not created and again.id == "t1" and [e["id"] for e in again.outbox] == ["e1"]
    with pytest.raises(RequestIdReused):
        create_once(made("t3"), request_key="k", fingerprint="other")
    assert Thing.objects.count() == 1
    _, created = create_once(made("t4"), request_key=None)
    assert created
    with pytest.raises(AlreadyExists):
        create_once(made("t4"), request_key="another")


def test_repeats_at_once_create_one():
    barrier = threading.Barrier(6)

    def create(number):
        barrier.wait(10)
        return create_once(made(f"t{number}"), [Event(f"e{number}")], request_key="k", fingerprint="f")

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(create, range(6)))
    assert sum(created for _, created in results) == 1
    assert len({thing.id for thing, _ in results}) == 1
    assert Thing.objects.count() == 1


def test_a_document_that_breaks_its_schema_is_not_written(things):
    with pytest.raises(mongoengine.ValidationError):
        insert_aggregate(made(name=None))
    assert things.count_documents({}) == 0


@pytest.mark.parametrize("bad", ["1", "v", "v0", "v-1", "V1", "v1 ", 'W/"v1"', "v" + "9" * 30])
def test_what_is_no_etag(bad):
    with pytest.raises(InvalidArgument):
        mongo.parse_etag("etag", bad)
    assert mongo.parse_etag("etag", "") is None
    assert mongo.parse_etag("etag", mongo.etag(17)) == 17


async def test_hot_reads_see_time_zones_and_the_same_data(settings):
    insert_aggregate(made(), now=NOW)
    database = mongo.async_database(settings)
    found = await database["things"].find_one({"_id": "t1"})
    assert found["created_at"] == NOW and found["created_at"].tzinfo is not None
    await database.client.close()


def test_indexes_that_contradict_stop_the_start(things):
    things.drop_index("request_key")
    things.create_index("request_key", name="request_key")
    with pytest.raises(StartError, match="indexes of things"):
        mongo.ensure_indexes([Thing])


def test_a_server_that_does_not_answer_is_one_clear_error(settings):
    changes = {"mongo_connect_seconds": 0.2, "mongo_operation_seconds": 0.1}
    nobody = settings.model_copy(update={"mongo_uri": "mongodb://user:hunter2@127.0.0.1:1", **changes})
    with pytest.raises(StartError, match=r"did not answer within 0\.2 s") as caught:
        mongo.connect(nobody)
    assert "hunter2" not in str(caught.value)
    for uri in ("mongodb://", "mongodb://a:b:c@x", "mongodb://127.0.0.1:99999"):
        with pytest.raises(StartError):
            mongo.connect(settings.model_copy(update={"mongo_uri": uri, **changes}))


def test_a_database_that_goes_away_is_unavailable_to_callers(settings):
    changes = {"mongo_uri": "mongodb://127.0.0.1:1", "mongo_operation_seconds": 0.1}
    mongoengine.disconnect()
    mongoengine.connect(
        "x", host="mongodb://127.0.0.1:1", **mongo._client_options(settings.model_copy(update=changes))
    )
    with pytest.raises(Exception, match="refused") as caught:
        insert_aggregate(made())
    shown = translate(caught.value)
    assert (shown.code, shown.reason) == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert "127.0.0.1" not in str(shown)


async def test_what_a_server_reads_and_writes_is_counted(settings):
    database = mongo.async_database(settings)
    try:
        things = database.get_collection("counted", write_concern=WriteConcern(w="majority"))
        await things.insert_many([{"_id": n} for n in range(5)])
        assert await database["counted"].find_one({"_id": 3}) == {"_id": 3}
        assert [each["_id"] async for each in things.find().sort("_id", 1).limit(2)] == [0, 1]
        assert len(await things.find({"_id": {"$gt": 1}}).to_list()) == 3
        assert (await things.update_one({"_id": 1}, {"$set": {"a": 1}})).modified_count == 1
        with pytest.raises(DuplicateKeyError):
            await things.insert_one({"_id": 3})
    finally:
        await database.client.drop_database(settings.mongo_database)
        await database.client.close()
    text = metrics.exposition()[1].decode()
    for command, outcome, count in (
        *(("find", "ok", 3), ("insert", "ok", 1)),
        *(("insert", "failed", 1), ("update", "ok", 1)),
    ):
        labels = f'collection="counted",command="{command}",outcome="{outcome}"'
        assert f'callmesh_db_queries_total{{{labels},service="{settings.service}"}} {count}.0' in text
