"""What the shelves promise on real MongoDB, where others write at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callmesh.marketing.v1 import events_pb2
from chassis import mongo
from chassis.bus import Event
from marketing.campaign_store import CampaignStore
from marketing.config import MarketingSettings
from marketing.kinds import ALL_DOCUMENTS, CONTACTS
from marketing.shelf import MemoryShelves, MongoShelves, Row

pytestmark = pytest.mark.integration

NOW = datetime(2025, 6, 2, 2, 0, tzinfo=UTC)
ROWS = 20
WAITING, LEASED = 1, 2


@pytest.fixture
def shelves(mongo_uri: str, mongo_database: str) -> Iterator[MongoShelves]:
    mongo.connect(MarketingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    mongo.ensure_indexes((CONTACTS.document,))
    yield MongoShelves()
    mongo.disconnect()


def test_a_tally_counts_every_row_once_while_they_move(shelves: MongoShelves) -> None:
    for number in range(ROWS):
        state = WAITING if number % 2 else LEASED
        shelves.insert(CONTACTS, Row(id=f"c{number}", content={}, keys={"list": "l", "state": state}), NOW)
    shelves.insert(CONTACTS, Row(id="other", content={}, keys={"list": "m", "state": WAITING}), NOW)
    moved = threading.Event()

    def move() -> None:
        for _ in range(5):
            for number in range(ROWS):
                row = shelves.get(CONTACTS, f"c{number}")
                state = LEASED if row.keys["state"] == WAITING else WAITING
                shelves.update(CONTACTS, replace(row, keys={**row.keys, "state": state}), NOW)
        moved.set()

    mover = threading.Thread(target=move)
    mover.start()
    condition = {"list": "l", "state": {"$in": [WAITING, LEASED]}}
    counted = []
    while mover.is_alive():
        counted.append(sum(shelves.tally(CONTACTS, condition, "state").values()))
    mover.join()
    assert moved.is_set() and set(counted) == {ROWS}


def test_a_list_is_cleared_but_for_what_is_not_told_yet(shelves: MongoShelves) -> None:
    told = Event.of(
        events_pb2.OutboundResultRecorded(contact="c2"), source="marketing", subject="c2", time=NOW, id="e"
    )
    for id, events in (("c1", ()), ("c2", (told,)), ("c3", ())):
        keys = {"list": "m" if id == "c3" else "l"}
        shelves.insert(CONTACTS, Row(id=id, content={}, keys=keys), NOW, events)
    with pytest.raises(mongo.EventsWaiting):
        shelves.clear(CONTACTS, {"list": "l"})
    assert [row.id for row in shelves.find(CONTACTS, {}, 9)] == ["c2", "c3"]
    CONTACTS.document._get_collection().update_many({}, {"$set": {"outbox": []}})
    shelves.clear(CONTACTS, {"list": "l"})
    shelves.clear(CONTACTS, {"list": "l"})
    assert [row.id for row in shelves.find(CONTACTS, {}, 9)] == ["c3"]


def test_members_of_a_list_are_told_apart_as_in_memory(shelves: MongoShelves) -> None:
    """Who needs no skill beyond those that are there."""
    needed = {"none": [], "one": ["thai"], "both": ["chinese", "thai"], "other": ["lao"], "unsaid": None}
    found = []
    for place in (shelves, MemoryShelves()):
        for id, skills in needed.items():
            keys = {"list": "l"} | ({} if skills is None else {"skills": skills})
            place.insert(CONTACTS, Row(id=id, content={}, keys=keys), NOW)
        for there in ([], ["thai"], ["thai", "chinese"]):
            condition = {"skills": {"$not": {"$elemMatch": {"$nin": there}}}}
            found.append({row.id for row in place.find(CONTACTS, condition, 10)})
    assert found[:3] == found[3:]
    assert found[:3] == [{"none", "unsaid"}, {"none", "unsaid", "one"}, {"none", "unsaid", "one", "both"}]


def test_what_campaigns_and_lists_look_for_they_find_without_looking_at_others(
    shelves: MongoShelves, mongo_client: Any, mongo_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mongo.ensure_indexes(ALL_DOCUMENTS)
    store, database = CampaignStore(), mongo_client[mongo_database]
    for campaign in ("a-paused", "b-other", "runs"):
        for number in range(ROWS):
            customer = f"p{number:03}"
            place = {"campaign": campaign, "customer": customer, "touched": {"invite": 1}}
            store.contacts.insert_one({"_id": f"{campaign}/{customer}", **place})
            due = {"state": "QUEUED", "channel": "SMS", "sender": "", "at": NOW, "due_at": NOW}
            id = f"{campaign}/invite/sms/{customer}"
            store.touches.insert_one({"_id": id, "campaign": campaign, "customer": customer, **due})
            keys = {"list": campaign, "state": WAITING, "rank": number % 2, "due": NOW, "skills": []}
            shelves.insert(CONTACTS, Row(id=f"{campaign}{number:03}", content={}, keys=keys), NOW)
    database.command("profile", 2)
    try:
        condition = {"state": {"$in": [WAITING, LEASED]}, "list": "runs", "due": {"$lte": NOW}}
        called = shelves.find(CONTACTS, condition, 3, order="-rank,due")
        shown = store.listed("runs", None, None, 3) + store.listed("runs", None, "runs/p002", 3)
        claimed = store._first_due({"state": "QUEUED", "channel": "SMS"}, ["runs"], 3)
        counted = store.funnel("runs", "invite")
    finally:
        database.command("profile", 0)
    assert [row.keys["rank"] for row in called] == [1, 1, 1]
    assert [raw["_id"] for raw in shown] == [f"runs/p{number:03}" for number in range(6)]
    assert len(claimed) == 3 and counted[0]["entered"] == ROWS
    looked_at = [
        (one["ns"].rpartition(".")[2], one["docsExamined"], one.get("hasSortStage", False))
        for one in database["system.profile"].find(
            {"op": {"$in": ["query", "command"]}, "docsExamined": {"$gt": 0}}
        )
    ]
    assert sorted(looked_at) == [
        ("campaign_contacts", 3, False),
        ("campaign_contacts", 3, False),
        ("campaign_contacts", ROWS, True),
        ("contacts", 3, False),
        ("touches", 3, False),
    ]
    monkeypatch.setattr("marketing.campaign_store.CAMPAIGNS_AT_ONCE", 1)
    sooner = {"$set": {"due_at": NOW - timedelta(minutes=1)}}
    store.touches.update_many({"_id": {"$in": ["a-paused/invite/sms/p001", "runs/invite/sms/p002"]}}, sooner)
    soonest = {"$set": {"due_at": NOW - timedelta(minutes=2)}}
    store.touches.update_one({"_id": "runs/invite/sms/p005"}, soonest)
    first = store._first_due({"state": "QUEUED", "channel": "SMS"}, ["a-paused", "runs"], 3)
    assert first == ["runs/invite/sms/p005", "a-paused/invite/sms/p001", "runs/invite/sms/p002"]
    assert store.backlog(["runs"], "SMS") == (ROWS, False) and store.backlog([], "SMS") == (0, False)
