"""How MongoDB finds the tickets of a list, with an index for the order and bounded work for a page.

A filter's terms are of two sorts. What an index serves in the list's order (a value of one field that has an
index, and the times that the order goes by) finds its tickets without looking at others. All other terms are
looked for among those: a page of such a list is sifted from at most `SIFTED_MAX` of them, and goes on there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tickets.filters import Condition, Term, to_mongo

#: Tickets that one page of a list is sifted from at most.
SIFTED_MAX = 5_000
#: Tickets that are tried before them: they mostly hold a whole page.
SIFTED_FIRST = 256

#: Fields with an index in the order of creation, those that fewer tickets share first.
INDEXED = (
    "call",
    "parent",
    "customer",
    "caller_number",
    "problem",
    "assets",
    "watchers",
    "assignee",
    "products",
    "tags",
    "team",
    "category",
    "state",
    "kind",
    "breached",
    "priority",
    "phase",
    "open",
)
#: Of these, where the index has `open` after the field.
INDEXED_OPEN = frozenset({"kind", "team", "assignee"})
#: Fields with an index in the order of due times.
INDEXED_DUE = ("assignee", "team")

#: What a page continues after.
Key = tuple[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which tickets a list is about."""

    #: All must hold.
    conditions: tuple[Term, ...] = ()
    #: Soonest due first instead of newest first; only tickets that are due at all.
    by_due: bool = False


def split(query: Query) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """(what an index serves in order, what has to be looked for among that)."""
    plain = [term for term in query.conditions if isinstance(term, Condition)]
    exact = {term.field: term for term in reversed(plain) if term.op in ("=", ":")}
    indexed = INDEXED_DUE if query.by_due else INDEXED
    served = [exact[name] for name in indexed if name in exact][:1]
    if served and not query.by_due and served[0].field in INDEXED_OPEN and "open" in exact:
        served.append(exact["open"])
    served += [term for term in plain if term.field == ("due_time" if query.by_due else "create_time")]
    return tuple(served), tuple(term for term in query.conditions if term not in served)


def changed_since(query: Query) -> Condition | None:
    """The term that asks for what was changed lately, where nothing else has an index."""
    if query.by_due:
        return None
    served, rest = split(query)
    if any(isinstance(term, Condition) and term.field in INDEXED for term in served):
        return None
    plain = (term for term in rest if isinstance(term, Condition) and term.field == "update_time")
    return next((term for term in plain if term.op in ("=", ">", ">=")), None)


def order_of(query: Query) -> list[tuple[str, int]]:
    """What a list is sorted by."""
    return [("due_ms", 1), ("_id", 1)] if query.by_due else [("created_ms", -1), ("_id", -1)]


def mongo_query(query: Query, after: Key | None, last: Key | None = None) -> dict[str, Any]:
    """Finds a list's tickets after a sort key, up to and with another."""
    clauses: list[dict[str, Any]] = [to_mongo(term) for term in query.conditions]
    named = {term.field for term in query.conditions if isinstance(term, Condition)}
    if named & INDEXED_OPEN and "open" not in named and not query.by_due:
        clauses.append({"open": {"$in": [False, True]}})  # lets an index with `open` serve it, sorted
    field, beyond, before = ("due_ms", "$gt", "$lt") if query.by_due else ("created_ms", "$lt", "$gt")
    if query.by_due:
        clauses.append({"due_ms": {"$gt": 0}})  # and not `$exists`: see `filters.Field.below`
    if after is not None:
        clauses += _reaching(field, beyond, after, with_it=False)
    if last is not None:
        clauses += _reaching(field, before, last, with_it=True)
    return {"$and": clauses} if clauses else {}


def _reaching(field: str, op: str, key: Key, *, with_it: bool) -> list[dict[str, Any]]:
    value, id = key
    same = {field: value, "_id": {op + "e" if with_it else op: id}}
    # the first bounds the index scan; the second alone wouldn't
    return [{field: {op + "e": value}}, {"$or": [{field: {op: value}}, same]}]
