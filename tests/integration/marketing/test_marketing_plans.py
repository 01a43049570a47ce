"""What looks at a span reads that span alone: MongoDB's own plan is asked, on so many rows that no planner
takes a scan for cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo.database import Database
from tests.unit.marketing.marketing_examples import NOW

from callmesh.marketing.v1.leads_pb2 import LEAD_STATE_WON
from chassis.mongo import connect, disconnect, ensure_indexes
from marketing import decision_figures, decision_store, survey_store
from marketing.config import MarketingSettings
from marketing.kinds import ALL_DOCUMENTS, COSTS, LEADS
from marketing.lifecycle import _date_won_leads
from marketing.shelf import Kind, MongoShelves

pytestmark = pytest.mark.integration

#: Decisions, one an hour.
ROWS = 4_800
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ACCEPTED = {"offer": "o1", "result": "ACCEPTED"}


@pytest.fixture(scope="module")
def database(mongo_uri: str, mongo_client: Any) -> Iterator[Database[dict[str, Any]]]:
    name = "test_marketing_plans"
    mongo_client.drop_database(name)
    database = connect(MarketingSettings(mongo_uri=mongo_uri, mongo_database=name))
    ensure_indexes(ALL_DOCUMENTS)
    database.decisions.insert_many(
        {
            "_id": f"d{index:05}",
            "version": 1,
            "customer": f"c{index % 100}",
            "open": True,
            "created_at": NOW - index * HOUR,
            "offers": [{"offer": "o1"}],
            **({"outcome": ACCEPTED | {"at": NOW - index * HOUR}} if index % 3 == 0 else {}),
        }
        for index in range(ROWS)
    )
    for collection, key in (("leads", "won_at"), ("costs", "at")):
        database[collection].insert_many(
            {"_id": f"r{index:05}", "version": 1, "keys": {"state": LEAD_STATE_WON, key: NOW - index * HOUR}}
            for index in range(ROWS)
        )
    database.survey_responses.insert_many(
        {
            "_id": f"r{index:05}",
            "version": 1,
            "keys": {"survey": f"s{index % 2}", "completed_at": NOW - index * HOUR},
        }
        for index in range(ROWS)
    )
    yield database
    disconnect()
    mongo_client.drop_database(name)


def stages(plan: Any) -> set[str]:
    """The names of all stages of a plan."""
    if isinstance(plan, list):
        return {name for each in plan for name in stages(each)}
    if not isinstance(plan, dict):
        return set()
    own = {plan["stage"]} if isinstance(plan.get("stage"), str) else set()
    return own | {name for each in plan.values() for name in stages(each)}


def looked_at(plan: dict[str, Any]) -> int:
    """Documents read; asserts that they were found by an index, in its order."""
    found = stages(plan["queryPlanner"]["winningPlan"])
    assert "IXSCAN" in found and not found & {"COLLSCAN", "SORT"}, found
    return int(plan["executionStats"]["totalDocsExamined"])


@pytest.mark.parametrize(("after", "most"), [(None, 24), ((NOW - 90 * DAY, "d02160"), 25)])
def test_the_decisions_of_a_day_are_read_and_no_others(
    database: Database[dict[str, Any]], after: Any, most: int
) -> None:
    wanted = decision_store.made_within(NOW - 91 * DAY, NOW - 90 * DAY, None)
    if after is not None:
        wanted = decision_store.made_within(NOW - 91 * DAY, NOW, after)
    found = database.decisions.find(wanted).sort(decision_store.NEWEST)
    assert 20 <= looked_at(found.explain()) <= most


def explained(
    database: Database[dict[str, Any]], pipeline: list[dict[str, Any]], of: str = "decisions"
) -> dict[str, Any]:
    """What an aggregation does before its groups, or as a whole."""
    asked = {"aggregate": of, "pipeline": pipeline, "cursor": {}}
    plan = database.command("explain", asked, verbosity="executionStats")
    return plan["stages"][0]["$cursor"] if "stages" in plan else plan


@pytest.mark.parametrize("by", [[], [decision_figures.OFFER, decision_figures.TIME]])
def test_a_report_counts_the_offers_of_its_days_by_their_index(
    database: Database[dict[str, Any]], by: list[str]
) -> None:
    pipeline = decision_figures.offered_pipeline(NOW - 91 * DAY, NOW - 90 * DAY, by)
    assert looked_at(explained(database, pipeline)) == 24


def test_a_report_reads_the_acceptances_of_its_days_by_their_index(
    database: Database[dict[str, Any]],
) -> None:
    first = decision_figures.accepted_pipeline(NOW - 91 * DAY, NOW - 90 * DAY, 100, None)
    assert looked_at(explained(database, first)) == 8
    place = (NOW - 90 * DAY, "d02160")
    rest = decision_figures.accepted_pipeline(NOW - 91 * DAY, NOW, 100, place)
    assert looked_at(explained(database, rest)) <= 9


@pytest.mark.parametrize(
    ("span", "most", "read"),
    [(None, 50, 50), ((NOW - 91 * DAY, NOW - 90 * DAY), 50, 12), ((NOW - 91 * DAY, NOW), 50, 50)],
)
def test_responses_are_counted_by_their_survey_and_day(
    database: Database[dict[str, Any]], span: Any, most: int, read: int
) -> None:
    pipeline = survey_store.counts_pipeline("s1", span, most)
    assert looked_at(explained(database, pipeline, "survey_responses")) == read


@pytest.mark.parametrize(
    ("kind", "key", "also"),
    [(LEADS, "won_at", {"state": LEAD_STATE_WON}), (COSTS, "at", {})],
    ids=["leads", "costs"],
)
def test_what_was_won_or_spent_in_a_span_is_found_by_its_day(
    database: Database[dict[str, Any]], kind: Kind, key: str, also: dict[str, Any]
) -> None:
    """The question that the shelves ask, as the database was really asked."""
    span = {"$gte": NOW - 91 * DAY, "$lt": NOW - 90 * DAY}
    database.command("profile", 2, filter={"ns": f"{database.name}.{kind.collection}", "op": "query"})
    try:
        for after in (None, (NOW - 91 * DAY, "r02184")):
            MongoShelves().find(kind, {key: span, **also}, 100, after=after, order=key)
    finally:
        database.command("profile", 0)
    asked = list(database["system.profile"].find({"ns": f"{database.name}.{kind.collection}"}))
    assert len(asked) == 2
    for each in asked:
        assert "COLLSCAN" not in each["planSummary"] and not each.get("hasSortStage"), each["planSummary"]
        assert each["docsExamined"] <= 24


def test_leads_won_under_an_earlier_release_are_dated(database: Database[dict[str, Any]]) -> None:
    won = {"version": 1, "updated_at": NOW, "keys": {"state": LEAD_STATE_WON}}
    database.leads.insert_many(
        [
            {"_id": "noted", **won, "content": {"won_at": NOW - DAY}},
            {"_id": "not-noted", **won, "content": {}},
        ]
    )
    assert [_date_won_leads(database, apply) for apply in (False, True, True)] == [2, 2, 0]
    found = database.leads.find({"_id": {"$in": ["noted", "not-noted"]}})
    dates = {each["_id"]: each["keys"]["won_at"] for each in found}
    assert dates == {"noted": NOW - DAY, "not-noted": NOW}
