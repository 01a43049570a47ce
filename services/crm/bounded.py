"""Pages of lists that are filtered by what hardly anybody fits: each looks at a bounded number of documents.

An index answers one condition. What else must hold is looked at document by document, and where hardly any of
a million fit, one page would look at all of them. So a page goes as far as `PAGE_READ_MAX` documents along an
index, its *edge*, and answers what it found, perhaps nothing, with where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

#: Documents that one page looks at.
PAGE_READ_MAX = 10_000
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
    edge, hint = None, None
    if fields:
        edges = await asyncio.gather(*(_edge(customers, narrowed(query, name), name) for name in fields))
        # Whatever comes to its end, or else farthest, is the rarest.
        best = next((place for place, found in enumerate(edges) if found is None), None)
        if best is None:
            best = max(range(len(edges)), key=lambda place: edges[place] or "")
        edge, hint = edges[best], f"{fields[best]}_id"
    asked = customers.find(within(query, edge), hidden, max_time_ms=READ_MS_MAX, hint=hint)
    found = [raw async for raw in asked.sort(_BY_ID).limit(limit + 1)]
    if len(found) > limit:
        return found[:limit], found[limit - 1]["_id"]
    return found, edge


async def _edge(customers: AsyncCollection[_Raw], query: Mapping[str, Any], field: str) -> str | None:
    """The id as far as one page goes along the index of a condition; None when it comes to the end."""
    asked = customers.find(query, {"_id": 1}, max_time_ms=READ_MS_MAX, hint=f"{field}_id")
    found = [raw["_id"] async for raw in asked.sort(_BY_ID).skip(PAGE_READ_MAX - 1).limit(1)]
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
    edge, wanted = None, dict(query)
    if "kind" in query:
        span = {name: value for name, value in query.items() if name != "kind"}
        asked = interactions.find(span, {"began_ms": 1}, max_time_ms=READ_MS_MAX, hint="began_id")
        for raw in [raw async for raw in asked.sort(_OLDEST).skip(PAGE_READ_MAX - 1).limit(1)]:
            edge = (raw["began_ms"], raw["_id"])
            wanted = until(query, edge)
    found = interactions.find(wanted, hidden, max_time_ms=READ_MS_MAX, hint="began_id")
    page = [raw async for raw in found.sort(_OLDEST).limit(limit + 1)]
    if len(page) > limit:
        return page[:limit], (page[limit - 1]["began_ms"], page[limit - 1]["_id"])
    return page, edge
