"""What records.py counts, counted by MongoDB: sums travel, sessions do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from routing.menus.engine import Notice, Outcome
from routing.menus.records import (
    PATHS_MAX,
    REGULAR_ACCESSES,
    REGULAR_SESSIONS,
    Counts,
    NodeCounts,
    Query,
    Totals,
)

if TYPE_CHECKING:
    pass

#: Real milliseconds that one count may take in the database.
COUNT_MS_MAX = 20_000
#: Nodes and leaves of an answer: no menu has more, though all its versions together may.
GROUPS_MAX = 50_000


def _match(query: Query) -> dict[str, Any]:
    where: dict[str, Any] = {"menu": query.menu, "began": {"$gte": query.from_ms, "$lt": query.to_ms}}
    for name in ("version", "number", "customer"):
        if value := getattr(query, name):
            where[name] = value
    return {"$match": where}


def _gone(query: Query) -> dict[str, Any]:
    """1 for a session that was given up."""
    left = {"$and": [{"$eq": ["$outcome", Outcome.OPEN.value]}, {"$lt": ["$last", query.vanished_ms]}]}
    return {"$cond": [{"$or": [{"$eq": ["$outcome", Outcome.GAVE_UP.value]}, left]}, 1, 0]}


async def _rows(sessions: Any, pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = await sessions.aggregate(pipeline, maxTimeMS=COUNT_MS_MAX, allowDiskUse=True)
    rows: list[dict[str, Any]] = await found.to_list()
    return rows


def _sums(query: Query) -> dict[str, Any]:
    done = {"$eq": ["$outcome", Outcome.DONE.value]}

    def over(value: Any) -> dict[str, Any]:
        return {"$sum": {"$cond": [done, value, 0]}}

    return {
        "sessions": {"$sum": 1},
        "completed": over(1),
        "given_up": {"$sum": _gone(query)},
        "fallbacks": {"$sum": {"$cond": [{"$eq": ["$outcome", Outcome.FALLBACK.value]}, 1, 0]}},
        "presses": over("$presses"),
        "presses_squared": over({"$multiply": ["$presses", "$presses"]}),
        "listened_ms": over("$listened"),
        # As numbers with a point: the squares of many go beyond whole ones of 64 bits.
        "listened_ms_squared": over({"$multiply": [{"$toDouble": "$listened"}, "$listened"]}),
    }


def _totals(row: dict[str, Any]) -> Totals:
    return Totals(**{name: row[name] for name in Totals.__dataclass_fields__})


async def totals(sessions: Any, query: Query, versions: Sequence[int]) -> dict[int, Totals]:
    """Sums by version; zeros for one without sessions."""
    among = {"$match": {"version": {"$in": list(versions)}}}
    rows = await _rows(sessions, [_match(query), among, {"$group": {"_id": "$version", **_sums(query)}}])
    return {version: Totals() for version in versions} | {row["_id"]: _totals(row) for row in rows}


async def counts(sessions: Any, query: Query) -> Counts:
    """Everything that is counted of a menu."""
    match = _match(query)
    found = Counts()
    for row in await _rows(sessions, [match, {"$group": {"_id": None, **_sums(query)}}]):
        found.totals = _totals(row)
    await _count_nodes(sessions, query, found)
    path = {"_id": "$way", "n": {"$sum": 1}, "gone": {"$sum": _gone(query)}}
    order: list[dict[str, Any]] = [{"$sort": {"n": -1, "_id": 1}}, {"$limit": PATHS_MAX}]
    rows = await _rows(sessions, [match, {"$group": path}, *order])
    found.paths = [(tuple(row["_id"]), row["n"], row["gone"]) for row in rows]
    known = {"$match": {"number": {"$ne": ""}}}
    numbers: list[dict[str, Any]] = [known, {"$group": {"_id": "$number", "n": {"$sum": 1}}}]
    regular = {"$sum": {"$cond": [{"$gte": ["$n", REGULAR_SESSIONS]}, 1, 0]}}
    both = {"$group": {"_id": None, "callers": {"$sum": 1}, "regular": regular}}
    for row in await _rows(sessions, [match, *numbers, both]):
        found.callers, found.regular_callers = row["callers"], row["regular"]
    return found


async def _count_nodes(sessions: Any, query: Query, found: Counts) -> None:
    match, most = _match(query), {"$limit": GROUPS_MAX}
    once = {
        "$project": {"node": {"$setUnion": ["$way", []]}, "last": {"$last": "$way"}, "gone": _gone(query)}
    }
    lost = {"$sum": {"$cond": [{"$eq": ["$node", "$last"]}, "$gone", 0]}}
    group = {"$group": {"_id": "$node", "accesses": {"$sum": 1}, "given_up": lost}}
    for row in await _rows(sessions, [match, once, {"$unwind": "$node"}, group, most]):
        found.nodes[row["_id"]] = NodeCounts(accesses=row["accesses"], given_up=row["given_up"])
    node, ms, notice = ({"$arrayElemAt": ["$visits", i]} for i in (0, 2, 3))

    def times(which: Notice) -> dict[str, Any]:
        return {"$sum": {"$cond": [{"$eq": ["$notice", which.value]}, 1, 0]}}

    heard: list[dict[str, Any]] = [
        {"$project": {"visits": 1}},
        {"$unwind": "$visits"},
        {"$project": {"node": node, "ms": ms, "notice": notice}},
        {"$match": {"node": {"$ne": ""}}},
        {
            "$group": {
                "_id": "$node",
                "heard": {"$sum": 1},
                "ms": {"$sum": "$ms"},
                "wrong": times(Notice.WRONG_KEY),
                "silent": times(Notice.NO_KEY),
            }
        },
        most,
    ]
    for row in await _rows(sessions, [match, *heard]):
        counts_of = found.nodes.setdefault(row["_id"], NodeCounts())
        counts_of.heard, counts_of.listened_ms = row["heard"], row["ms"]
        counts_of.wrong_keys, counts_of.timeouts = row["wrong"], row["silent"]


async def accesses(sessions: Any, query: Query) -> tuple[dict[str, int], dict[str, int]]:
    """Accesses by leaf, and those of callers who reach it regularly."""
    each = {"$group": {"_id": {"leaf": "$leaf", "number": "$number"}, "n": {"$sum": 1}}}
    loyal = {"$and": [{"$gte": ["$n", REGULAR_ACCESSES]}, {"$ne": ["$_id.number", ""]}]}
    both = {
        "$group": {"_id": "$_id.leaf", "n": {"$sum": "$n"}, "regular": {"$sum": {"$cond": [loyal, "$n", 0]}}}
    }
    reached = {"$match": {"leaf": {"$ne": ""}}}
    passed = {"$setIntersection": ["$way", list(query.links)]}
    through: list[dict[str, Any]] = [
        {"$project": {"number": 1, "leaf": {"$setUnion": [["$leaf"], passed]}}},
        {"$unwind": "$leaf"},
    ]
    rows = await _rows(sessions, [_match(query), reached, *through, each, both, {"$limit": GROUPS_MAX}])
    return {row["_id"]: row["n"] for row in rows}, {
        row["_id"]: row["regular"] for row in rows if row["regular"]
    }
