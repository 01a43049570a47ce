"""Pages of lists that are filtered by what hardly anybody fits: each looks at a bounded number of documents.

An index answers one condition. What else must hold is looked at document by document, and where hardly any of
a million fit, one page would look at all of them. So a page goes as far as `PAGE_READ_MAX` documents along an
index, its *edge*, and answers what it found, perhaps nothing, with where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

#: Documents that one page looks at.
PAGE_READ_MAX = 10_000
#: Documents that are tried before them: they mostly hold a whole page.
PAGE_READ_FIRST = 256
#: Milliseconds that the database may spend on one read, so that a bad plan cannot pile up.
READ_MS_MAX = 5000
#: Conditions on customers that have an index of their own, in the order of ids: "<field>_id".
_INDEXED = ("tags", "account_manager", "company", "value_class", "home_region", "tier", "kind")
_BY_ID = [("_id", 1)]
_OLDEST = [("began_ms", 1), ("_id", 1)]

_Raw = dict[str, Any]


def narrowed(query: Mapping[str, Any], field: str) -> dict[str, Any]:
    """What the index of one condition answers of a query."""
    return {name: query[name] for name in (field, "_id") if name in query}


def within(query: Mapping[str, Any], edge: str | None) -> dict[str, Any]:
    """A query of customers up to an edge."""
    return dict(query) if edge is None else {**query, "_id": {**query.get("_id", {}), "$lte": edge}}


async def customers_page(
    customers: AsyncCollection[_Raw], query: Mapping[str, Any], hidden: Mapping[str, int], limit: int
) -> tuple[list[_Raw], str | None]:
    """(customers in the order of ids, the id to go on behind or None at the end), for a `customer_query`."""
    fields = [name for name in _INDEXED if name in query]
    found, edge, hint = list[_Raw](), None, None
    for window in (max(PAGE_READ_FIRST, limit), PAGE_READ_MAX):
        if fields:
            edge, hint = await _farthest(customers, query, fields, window)
        asked = customers.find(within(query, edge), hidden, max_time_ms=READ_MS_MAX, hint=hint)
        found = [raw async for raw in asked.sort(_BY_ID).limit(limit + 1)]
        if len(found) > limit:
            return found[:limit], found[limit - 1]["_id"]
        if edge is None:
            break
    return found, edge


async def _farthest(
    customers: AsyncCollection[_Raw], query: Mapping[str, Any], fields: Sequence[str], window: int
) -> tuple[str | None, str]:
    """(the edge of so many documents along the index of the rarest condition, None at its end; the index)."""
    edges = await asyncio.gather(*(_edge(customers, narrowed(query, name), name, window) for name in fields))
    # Whatever comes to its end, or else farthest, is the rarest.
    best = next((place for place, found in enumerate(edges) if found is None), None)
    if best is None:
        best = max(range(len(edges)), key=lambda place: edges[place] or "")
    return edges[best], f"{fields[best]}_id"


async def _edge(
    customers: AsyncCollection[_Raw], query: Mapping[str, Any], field: str, window: int
) -> str | None:
    """The id as far as so many documents go along the index of a condition; None when it comes to the end."""
    asked = customers.find(query, {"_id": 1}, max_time_ms=READ_MS_MAX, hint=f"{field}_id")
    found = [raw["_id"] async for raw in asked.sort(_BY_ID).skip(window - 1).limit(1)]
    return found[0] if found else None


def until(query: Mapping[str, Any], edge: tuple[int, str]) -> dict[str, Any]:
    """A query of everybody's interactions up to an edge."""
    began = {name: value for name, value in query["began_ms"].items() if name != "$lt"}
    beyond = {"began_ms": edge[0], "_id": {"$gt": edge[1]}}
    return {**query, "began_ms": {**began, "$lte": edge[0]}, "$nor": [beyond]}


async def interactions_page(
    interactions: AsyncCollection[_Raw], query: Mapping[str, Any], hidden: Mapping[str, int], limit: int
) -> tuple[list[_Raw], tuple[int, str] | None]:
    """As `customers_page`, for an `interactions_query`: oldest first."""
    page, edge, wanted = list[_Raw](), None, dict(query)
    for window in (max(PAGE_READ_FIRST, limit), PAGE_READ_MAX):
        if "kind" in query:
            edge = await _latest(interactions, query, window)
            wanted = dict(query) if edge is None else until(query, edge)
        found = interactions.find(wanted, hidden, max_time_ms=READ_MS_MAX, hint="began_id")
        page = [raw async for raw in found.sort(_OLDEST).limit(limit + 1)]
        if len(page) > limit:
            return page[:limit], (page[limit - 1]["began_ms"], page[limit - 1]["_id"])
        if edge is None:
            break
    return page, edge


async def _latest(
    interactions: AsyncCollection[_Raw], query: Mapping[str, Any], window: int
) -> tuple[int, str] | None:
    """The key as far as so many interactions of any kind go; None when it comes to the end."""
    span = {name: value for name, value in query.items() if name != "kind"}
    asked = interactions.find(span, {"began_ms": 1}, max_time_ms=READ_MS_MAX, hint="began_id")
    found = [raw async for raw in asked.sort(_OLDEST).skip(window - 1).limit(1)]
    return (found[0]["began_ms"], found[0]["_id"]) if found else None
