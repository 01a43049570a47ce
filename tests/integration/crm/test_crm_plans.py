"""No query of crm scans a collection: MongoDB's own plan is asked for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.database import Database

from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from crm import bounded, documents, plans, search, store
from crm.collections import ALL_DOCUMENTS
from crm.config import CrmSettings
from crm.model import CustomerFilter, InteractionKind, Kind, Tier, TimelineFilter, ValueClass

pytestmark = pytest.mark.integration

#: Enough that no planner takes a scan for cheap.
ROWS = 2_000


@pytest.fixture(scope="module")
def database(mongo_uri: str, mongo_client: Any) -> Iterator[Database[dict[str, Any]]]:
    name = "test_crm_plans"
    mongo_client.drop_database(name)
    database = connect(CrmSettings(mongo_uri=mongo_uri, mongo_database=name))
    ensure_indexes(ALL_DOCUMENTS)
    database.customers.insert_many(
        {
            "_id": f"c{index:05}",
            "claims": [f"tel:+86138{index:08}"],
            "state": "ACTIVE" if index % 7 else "DELETED",
            "tier": "VIP" if index % 50 == 0 else "STANDARD",
            "kind": "COMPANY" if index % 40 == 0 else "PERSON",
            **({"tags": ["rare"], "value_class": "A"} if index % 60 == 0 else {}),
            **({"account_manager": "mia", "company": "c0"} if index % 30 == 0 else {}),
            **({"home_region": "regions/chengdu"} if index % 20 == 0 else {}),
        }
        for index in range(ROWS)
    )
    database.interactions.insert_many(
        {
            "_id": f"i{index:05}",
            "subject": f"c:{index % 100}",
            "kind": "TICKET" if index % 3 == 0 else "CALL",
            "began_ms": index,
            **({"open": True} if index % 9 == 0 else {}),
        }
        for index in range(ROWS)
    )
    yield database
    disconnect()
    mongo_client.drop_database(name)


def explained(cursor: Any, *, examined_max: int) -> set[str]:
    """The stages of the plan that ran; asserts that it scanned nothing and looked at few rows."""
    plan = cursor.explain()
    found = plans.stages(plan["queryPlanner"]["winningPlan"])
    assert "COLLSCAN" not in found, found
    looked_at = plan["executionStats"]["totalDocsExamined"]
    assert looked_at <= examined_max, f"{looked_at} rows looked at: {found}"
    return found


def test_a_claim_is_found_by_its_index(database: Database[dict[str, Any]]) -> None:
    one = database.customers.find({"claims": "tel:+8613800000007"}, documents.HIDDEN)
    assert "IXSCAN" in explained(one, examined_max=1)
    many = database.customers.find({"claims": {"$in": ["tel:+8613800000007", "tel:+1"]}}, {"claims": 1})
    assert "IXSCAN" in explained(many, examined_max=1)
    by_id = database.customers.find({"_id": {"$in": ["c00001", "c00002"]}})
    assert "IXSCAN" in explained(by_id, examined_max=2)


@pytest.mark.parametrize(
    ("which", "examined_max"),
    [
        (CustomerFilter(), 60),
        (CustomerFilter(show_deleted=True), 60),
        (CustomerFilter(tier=Tier.VIP), 40),
        (CustomerFilter(kind=Kind.COMPANY), 60),
        (CustomerFilter(tag="rare"), 40),
        (CustomerFilter(value_class=ValueClass.A), 40),
        (CustomerFilter(account_manager="mia"), 80),
        (CustomerFilter(company="c0"), 80),
        (CustomerFilter(home_region="regions/chengdu"), 110),
        (CustomerFilter(tag="rare", tier=Tier.VIP, account_manager="mia"), 40),
    ],
)
def test_a_list_goes_along_an_index(
    database: Database[dict[str, Any]], which: CustomerFilter, examined_max: int
) -> None:
    query = store.customer_query(which, "c00100")
    page = database.customers.find(query, documents.HIDDEN).sort("_id", 1).limit(51)
    assert "SORT" not in explained(page, examined_max=examined_max)


async def test_conditions_that_nobody_fits_together_cost_a_bounded_number_a_page(
    database: Database[dict[str, Any]], mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "PAGE_READ_MAX", 100)
    monkeypatch.setattr(bounded, "PAGE_READ_FIRST", 20)
    database.customers.insert_many(
        {
            "_id": f"p{n:04}",
            "state": "ACTIVE",
            "tier": "GOLD",
            "display_name": "",
            **({"tags": ["left"]} if n % 2 else {"home_region": "regions/right"}),
            **({"home_region": "regions/right"} if n == 901 else {}),
        }
        for n in range(1_000)
    )
    database.interactions.insert_many(
        {
            **{"_id": f"p{n:04}", "kind": "CALL" if n != 901 else "NOTE", "began_ms": 1_000_000 + n // 7},
            **{"source": "test", "source_id": "1", "facets": {"record": {"stamp": [], "values": {}}}},
        }
        for n in range(1_000)
    )
    which = CustomerFilter(tag="left", home_region="regions/right", tier=Tier.GOLD)
    span = TimelineFilter(from_ms=1_000_000, until_ms=2_000_000, kinds=frozenset({InteractionKind.NOTE}))
    reads = store.MongoReads(async_database(CrmSettings(mongo_uri=mongo_uri, mongo_database=database.name)))
    database.command("profile", 2)
    try:
        assert await everything(lambda after: reads.page(which, after, 10)) == ["p0901"]
        assert await everything(lambda after: reads.interactions(span, after, 10)) == ["p0901"]
    finally:
        database.command("profile", 0)
        await reads._database.client.close()
    asked = list(database["system.profile"].find({"op": "query", "ns": {"$regex": "customers|interactions"}}))
    # Seven interactions begin in one instant: those of it before the page and behind it are looked at, too.
    assert asked and max(entry["docsExamined"] for entry in asked) <= 100 + 2 * 6
    assert max(entry["keysExamined"] for entry in asked) <= 100 + 2 * 6
    assert not any(entry.get("hasSortStage") for entry in asked)


async def test_a_page_that_is_soon_full_costs_little_however_many_there_are(
    database: Database[dict[str, Any]], mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a condition that most fit, each page went ten thousand documents along its index."""
    monkeypatch.setattr(bounded, "PAGE_READ_FIRST", 50)
    reads = store.MongoReads(async_database(CrmSettings(mongo_uri=mongo_uri, mongo_database=database.name)))
    database.drop_collection("system.profile")
    database.command("profile", 2)
    try:
        for which in (
            CustomerFilter(tier=Tier.STANDARD),
            CustomerFilter(tier=Tier.STANDARD, kind=Kind.PERSON),
            CustomerFilter(company="c0", companies_below=("c7", "c8")),
        ):
            found, behind = await reads.page(which, None, 10)
            assert len(found) == 10 and behind == found[-1].id
    finally:
        database.command("profile", 0)
        await reads._database.client.close()
    asked = list(database["system.profile"].find({"op": "query", "ns": {"$regex": "customers"}}))
    assert asked and max(entry["keysExamined"] for entry in asked) <= 50 + 3


async def everything(page: Callable[[Any], Any]) -> list[str]:
    """The ids of all pages, one after another."""
    ids: list[str] = []
    after = None
    for _ in range(50):
        found, after = await page(after)
        ids += [item.id for item in found]
        if after is None:
            return ids
    raise AssertionError("no end")


@pytest.mark.parametrize("after", [None, (1500, "i01500")])
@pytest.mark.parametrize("kinds", [frozenset(), frozenset({InteractionKind.CALL})])
@pytest.mark.parametrize("subjects", [["c:7"], ["c:7", "n:+8613800000001", "n:+8613800000002"]])
def test_a_timeline_goes_along_an_index(
    database: Database[dict[str, Any]],
    after: tuple[int, str] | None,
    kinds: frozenset[InteractionKind],
    subjects: list[str],
) -> None:
    which = TimelineFilter(kinds=kinds, from_ms=10, until_ms=1_900)
    page = database.interactions.find(store.timeline_query(subjects, which, after))
    assert "SORT" not in explained(page.sort(store.NEWEST).limit(11), examined_max=25)


def test_a_screen_pop_looks_at_what_it_shows(database: Database[dict[str, Any]]) -> None:
    subjects = ["c:7", "n:+8613800000001"]
    latest = database.interactions.find(store.calls_query(subjects, "i00007"))
    assert "SORT" not in explained(latest.sort(store.NEWEST).limit(1), examined_max=3)
    counted = database.interactions.find(store.calls_query(subjects, "i00007", 1_000), {"_id": 1})
    explained(counted.limit(store.COUNT_MAX), examined_max=10)
    tickets = database.interactions.find(store.tickets_query(["c:9", "n:+8613800000001"]))
    explained(tickets.limit(store.OPEN_TICKETS_READ_MAX), examined_max=10)
    explained(database.interactions.find({"subject": "n:+8613800000001"}), examined_max=0)
    explained(database.offer_rankings.find({"_id": {"$in": subjects}}), examined_max=2)


def test_an_audit_trail_goes_along_its_index(database: Database[dict[str, Any]]) -> None:
    older = database.audit.find({"customer": "c1", "version": {"$lt": 9}}).sort("version", -1).limit(5)
    assert "SORT" not in explained(older, examined_max=5)


def test_no_query_of_the_service_scans_or_sorts_in_memory(database: Database[dict[str, Any]]) -> None:
    assert plans.scanning(database) == []


def test_a_glance_looks_at_what_it_shows(database: Database[dict[str, Any]]) -> None:
    wanted = store.GlanceWish(
        subjects=["c:7", "n:+8613800000001"], day_start_ms=1_500, live_call="i00007", customer="7"
    )
    plan = database.command(
        "explain",
        {"aggregate": "interactions", "pipeline": store.glance_pipeline(wanted), "cursor": {}},
        verbosity="executionStats",
    )
    assert "COLLSCAN" not in plans.stages(plan)
    found = database.interactions.aggregate(store.glance_pipeline(wanted))
    parts = [row["part"] for row in found]
    assert parts.count("calls") == 13 and parts.count("tickets") == 2


def test_a_search_looks_at_what_it_finds(database: Database[dict[str, Any]]) -> None:
    database.customers.insert_many(
        {"_id": f"s{n}", "state": "ACTIVE", "terms": [f"w客户{n % 500:03}", f"n138{n:08}", f"r{n:08}831"]}
        for n in range(2_000)
    )
    for typed, keys_max in (("13800000007", 20), ("客户007", 20), ("a.b-c (d) [e] $^|?*+\\", 40)):
        query = search.understood(typed, "CN")
        assert query is not None
        cursor = database.customers.find(store.search_query(query.strict, CustomerFilter())).hint("terms")
        stats = cursor.limit(20).explain()["executionStats"]
        assert stats["totalKeysExamined"] <= keys_max, (typed, stats["totalKeysExamined"])


def test_a_search_that_hardly_anybody_fits_looks_at_a_bounded_number(
    database: Database[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    database.customers.insert_many(
        {"_id": f"u{n}", "state": "ACTIVE", "tier": "STANDARD", "terms": [f"euser{n:04}", f"wuser{n:04}"]}
        for n in range(600)
    )
    monkeypatch.setattr(store, "SEARCH_READ_MAX", 100)
    query = search.understood("user", "CN")
    assert query is not None
    for which, fitting in ((CustomerFilter(), 20), (CustomerFilter(tier=Tier.VIP), 0)):
        pipeline = store.search_pipeline(query.strict, which, 20)
        assert len(list(database.customers.aggregate(pipeline, hint="terms"))) == fitting
        asked = {"aggregate": "customers", "pipeline": pipeline, "hint": "terms", "cursor": {}}
        plan = database.command("explain", asked, verbosity="executionStats")
        [looked_at] = [s["$cursor"]["executionStats"] for s in plan["stages"] if "$cursor" in s]
        assert looked_at["totalDocsExamined"] <= 100 and looked_at["totalKeysExamined"] <= 110
