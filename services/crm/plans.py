"""Every query that crm makes, one example of each shape, and whether the database scans for it. For tests and
the benchmark: a new query brings its example here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pymongo.database import Database

from crm import care, documents, search, store, voice
from crm.model import CustomerFilter, InteractionKind, Tier, TimelineFilter


def queries() -> Iterator[tuple[str, dict[str, Any], list[tuple[str, int]], str | None]]:
    """(collection, filter, order, hint) of each."""
    newest = store.NEWEST
    subjects = ["c:c0000001", "n:+8613800000001"]
    span = TimelineFilter(from_ms=1, until_ms=2_000_000_000_000, kinds=frozenset({InteractionKind.CALL}))
    by_id = [("_id", 1)]
    which = [
        CustomerFilter(),
        CustomerFilter(tier=Tier.GOLD, tag="宽带"),
        CustomerFilter(company="c1", companies_below=("c2",)),
        CustomerFilter(account_manager="mia"),
        CustomerFilter(home_region="regions/x"),
    ]
    for each in which:
        yield "customers", store.customer_query(each, "c0000005"), by_id, None
    yield "customers", {"claims": {"$in": ["tel:+8613800000001", "tel:+1"]}}, [], None
    yield "customers", {"merged_into": {"$in": ["c1", "c2"]}}, [], None
    yield "customers", {"erase_pending": True}, [], None
    yield "customers", {"birthday": {"$in": ["02-28", "03-01"]}}, [], None
    query = search.understood("王小明", "CN")
    assert query is not None
    yield "customers", store.search_query(query.strict, CustomerFilter()), [], "terms"
    yield "customers", store.sharing_query(["f王小明", "d01233", "euser1@"]), [], "terms"
    yield "imported", {"opened": {"$lt": datetime(2026, 1, 1, tzinfo=UTC)}}, [("opened", 1)], None
    yield "imported", {"outbox_since": {"$exists": True}, "outbox.id": "import:i1:1"}, [], None
    yield "imported", {"opened": {"$exists": True}, "outbox.id": "import:i1:1"}, [], None
    yield "interactions", store.timeline_query(subjects, TimelineFilter(), None), newest, None
    yield "interactions", store.timeline_query(subjects, span, (1_700_000_000_000, "x")), newest, None
    yield "interactions", store.calls_query(subjects, "x"), newest, None
    yield "interactions", store.tickets_query(subjects), [], None
    oldest = [("began_ms", 1), ("_id", 1)]
    yield "interactions", store.interactions_query(span, (1_700_000_000_000, "x")), oldest, None
    span_of_region = voice.span_query(voice.Span(from_ms=1, until_ms=2, region="regions/x"))
    yield "interactions", span_of_region, oldest, None
    yield "interactions", {"own": {"$in": ["c:a"]}, "subject": "c:b"}, [], None
    yield "offer_rankings", {"_id": {"$in": subjects}}, [], None
    due = [("due_ms", 1), ("_id", 1)]
    yield "care_tasks", store.care_query("c0000001"), due, None
    yield "care_tasks", {"state": {"$in": ["OPEN"]}}, due, None
    yield "care_tasks", {"own": {"$in": ["c1"]}, "customer": "c2"}, [], None
    yield "churn", {"score": {"$gte": 0.5}}, [("score", -1), ("_id", 1)], None
    yield "churn", {"score": {"$gte": 0.5}, "wants_to_leave": True}, [("score", -1), ("_id", 1)], None
    yield "churn", {"dirty_ms": {"$exists": True}}, [("dirty_ms", 1)], None
    yield "contracts", {"customer": "c1", "contract": {"$gt": "a"}}, [("contract", 1)], None
    yield "contracts", {"end_ms": {"$gte": 1, "$lte": care.DAYS_MAX}}, [], None
    yield "contracts", {"balance_value": {"$lt": 10.0, "$gt": -1e18}}, [], None
    yield "usage", {"customer": "c1"}, [("end_ms", -1), ("_id", -1)], None
    yield "usage", {"customer": "c1", "metric": "data_mb"}, [("end_ms", -1), ("_id", -1)], None
    yield "usage", {"end_ms": {"$gte": 1, "$lte": 2}}, [], None
    yield "merges", {"parties": "c1"}, [("_id", -1)], None
    yield "merges", {"busy": {"$gt": ""}}, [], None
    yield "import_errors", {"import_id": "i1", "line": {"$gt": 5}}, [("line", 1)], None
    yield "contact_reasons", {"path": {"$gte": "a", "$lt": "b"}}, [("path", 1)], None
    delivered = [("created_ms", -1), ("_id", -1)]
    yield "webhook_deliveries", {"webhook": "w1"}, delivered, None
    yield "webhook_deliveries", {"webhook": "w1", "state": "FAILED"}, delivered, None
    yield "webhook_deliveries", {"state": "PENDING", "next_ms": {"$lte": 5}}, [("next_ms", 1)], None
    yield "webhook_deliveries", {"subject": "customers/c1"}, [], None
    yield "audit", {"customer": "c1", "version": {"$lt": 9}}, [("version", -1)], None


def stages(plan: Any) -> set[str]:
    """Every stage's name in a plan, however deep."""
    if isinstance(plan, list):
        return set().union(*map(stages, plan)) if plan else set()
    if not isinstance(plan, dict):
        return set()
    own = {plan["stage"]} if isinstance(plan.get("stage"), str) else set()
    return own.union(*(stages(value) for value in plan.values())) if plan else own


def _unbounded(plan: Any) -> bool:
    """Whether some index is walked from end to end; a partial or sparse one holds
    nothing but what is asked for."""
    if isinstance(plan, list):
        return any(map(_unbounded, plan))
    if not isinstance(plan, dict):
        return False
    if plan.get("stage") == "IXSCAN" and not (plan.get("isPartial") or plan.get("isSparse")):
        first = next(iter(plan["indexBounds"].values()))
        if first in (["[MinKey, MaxKey]"], ["[MaxKey, MinKey]"]):
            return True
    return any(map(_unbounded, plan.values()))


def scanning(database: Database[dict[str, Any]]) -> list[str]:
    """The queries that scan a collection or a whole index, or sort in memory what an index should order."""
    found = []
    for name, query, order, hint in queries():
        cursor = database[name].find(query, documents.HIDDEN if name == "customers" else None)
        cursor = cursor.sort(order) if order else cursor
        cursor = cursor.hint(hint) if hint else cursor
        plan = cursor.limit(51).explain()["queryPlanner"]["winningPlan"]
        used = stages(plan)
        if used & {"COLLSCAN", "SORT"} or _unbounded(plan):
            found.append(f"{name} {query}: {sorted(used)}")
    return found
