"""Every query that crm makes, one example of each shape, and whether the database scans for it. For tests and
the benchmark: a new query brings its example here. What was forgotten is found by `scans_profiled`: the
database says what was really asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pymongo.database import Database

from crm import care, care_handlers, documents, saga_store, search, store, voice, webhooks
from crm.model import CustomerFilter, InteractionKind, Tier, TimelineFilter

#: (collection, filter, order, hint).
Query = tuple[str, dict[str, Any], list[tuple[str, int]], str | None]


def queries() -> Iterator[Query]:
    """(collection, filter, order, hint) of each."""
    yield from _of_customers()
    yield from _of_interactions()
    yield from _of_care()
    yield from _of_the_rest()


def _of_customers() -> Iterator[Query]:
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


def _of_interactions() -> Iterator[Query]:
    newest = store.NEWEST
    subjects = ["c:c0000001", "n:+8613800000001"]
    span = TimelineFilter(from_ms=1, until_ms=2_000_000_000_000, kinds=frozenset({InteractionKind.CALL}))
    yield "interactions", store.timeline_query(subjects, TimelineFilter(), None), newest, None
    yield "interactions", store.timeline_query(subjects, span, (1_700_000_000_000, "x")), newest, None
    yield "interactions", store.calls_query(subjects, "x"), newest, None
    yield "interactions", store.tickets_query(subjects), [], None
    yield "interactions", {"subject": {"$in": subjects}}, [], None
    yield "interactions", {"subject": "n:+8613800000001"}, [], None
    yield "interactions", {"own": "c:a"}, [], None
    yield "interactions", {"subject": "c:a", "own": {"$exists": False}}, [], None
    oldest = [("began_ms", 1), ("_id", 1)]
    yield "interactions", store.interactions_query(span, (1_700_000_000_000, "x")), oldest, None
    span_of_region = voice.span_query(voice.Span(from_ms=1, until_ms=2, region="regions/x"))
    yield "interactions", span_of_region, oldest, voice.BEGAN
    yield "interactions", voice.known_query(span_of_region), [], voice.BEGAN
    yield "interactions", voice.spot_query(span_of_region, ["c:a", "c:b"]), [], None
    yield "contracts", voice.contracts_query(["c1", "c2"]), [], None
    yield "interactions", {"own": {"$in": ["c:a"]}, "subject": "c:b"}, [], None
    yield "offer_rankings", {"_id": {"$in": subjects}}, [], None


def _of_care() -> Iterator[Query]:
    due = [("due_ms", 1), ("_id", 1)]
    yield "care_tasks", store.care_query("c0000001"), due, None
    yield "care_tasks", {"state": {"$in": ["OPEN"]}}, due, None
    yield "care_tasks", {"customer": "c1", "state": {"$in": ["DONE", "OPEN"]}}, [], None
    yield "care_tasks", care_handlers.snoozed_query(5), [("snooze_ms", 1)], None
    yield "care_tasks", care_handlers.stale_query(5), [("ends_ms", 1)], None
    for name in saga_store.MOVED:
        yield name, {"own": {"$in": ["c1"]}, "customer": "c2"}, [], None
        yield name, {"own": "c1"}, [], None
        yield name, {"customer": "c1"}, [], None
        yield name, {"customer": "c1", "own": {"$exists": False}}, [], None
    yield "churn", {"score": {"$gte": 0.5}}, [("score", -1), ("_id", 1)], None
    yield "churn", {"score": {"$gte": 0.5}, "wants_to_leave": True}, [("score", -1), ("_id", 1)], None
    for failed in ((), ("c1",)):
        yield "churn", care_handlers.dirty_query(failed), [("dirty_ms", 1)], None
    by_id = [("contract", 1), ("_id", 1)]
    yield "contracts", {"customer": "c1", "contract": "k1"}, by_id, None
    yield "contracts", {"customer": "c1", "contract": {"$gte": "a"}}, by_id, None
    yield "contracts", {"end_ms": {"$gte": 1, "$lte": care.DAYS_MAX}}, [], None
    yield "contracts", {"balance_value": {"$lt": 10.0, "$gt": -1e18}}, [], None
    yield "usage", {"customer": "c1"}, [("end_ms", -1), ("_id", -1)], None
    yield "usage", {"customer": "c1", "metric": "data_mb"}, [("end_ms", -1), ("_id", -1)], None
    yield "usage", {"end_ms": {"$gte": 1, "$lte": 2}}, [], None


def _of_the_rest() -> Iterator[Query]:
    yield "merges", {"parties": "c1"}, [("_id", -1)], None
    yield "merges", {"busy": {"$gt": ""}}, [], None
    yield "merges", {**saga_store.noted_query("c1"), "survivor": "c1"}, [], None
    yield "merges", saga_store.explained_query("c1"), [], None
    yield "import_errors", {"import_id": "i1", "line": {"$gt": 5}}, [("line", 1)], None
    yield "contact_reasons", {"path": {"$gte": "a", "$lt": "b"}}, [("path", 1)], None
    delivered = [("created_ms", -1), ("_id", -1)]
    yield "webhook_deliveries", {"webhook": "w1"}, delivered, None
    yield "webhook_deliveries", {"webhook": "w1", "state": "FAILED"}, delivered, None
    yield "webhook_deliveries", webhooks.due_query("w1", 5), [("next_ms", 1)], None
    replayed = {"webhook": "w1", "created_ms": {"$gte": 1}, "state": {"$in": ["DELIVERED", "FAILED"]}}
    yield "webhook_deliveries", replayed, [("created_ms", 1), ("_id", 1)], None
    yield "webhook_deliveries", {"subject": "customers/c1"}, [], None
    yield "webhook_deliveries", {"about": "customers/c1"}, [], None
    yield "webhook_deliveries", {"subject": {"$in": ["calls/1", "tickets/2"]}}, [], None
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


#: Room for what the profiler sees, bytes.
PROFILE_BYTES = 64 * 1024 * 1024
#: Collections that are read whole where they are read: an operator's declarations, all of them bounded.
WHOLE = frozenset({"custom_fields", "care_rules", "contact_reasons", "webhooks"})


@contextmanager
def profiled(database: Database[dict[str, Any]]) -> Iterator[None]:
    """Has the database's profiler note everything that is asked meanwhile, for `scans_profiled`."""
    database.create_collection("system.profile", capped=True, size=PROFILE_BYTES)
    database.command("profile", 2)
    try:
        yield
    finally:
        database.command("profile", 0)


def scans_profiled(database: Database[dict[str, Any]]) -> list[str]:
    """What the profiler has seen scan a collection for something, but for collections that are read whole.
    Who asks for everything, as tests do that look at what is there, means it.
    """
    found = []
    for seen in database["system.profile"].find({"planSummary": {"$regex": "COLLSCAN"}}):
        collection = seen["ns"].partition(".")[2]
        wanted = _wanted(seen["command"])
        if wanted and collection not in WHOLE and not collection.startswith("system."):
            found.append(f"{collection} {seen['op']}: {wanted}")
    return found


def _wanted(command: Mapping[str, Any]) -> Any:
    """The filter of a command; {} when it asks for everything."""
    if "pipeline" in command:
        first: Mapping[str, Any] = next(iter(command["pipeline"]), {})
        return first.get("$match", command["pipeline"])
    return command.get("filter", command.get("query", command.get("q", {})))


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
