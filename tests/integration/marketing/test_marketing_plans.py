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

from chassis.mongo import connect, disconnect, ensure_indexes
from marketing import decision_store
from marketing.config import MarketingSettings
from marketing.kinds import ALL_DOCUMENTS

pytestmark = pytest.mark.integration

#: Decisions, one an hour.
ROWS = 4_800
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


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
