"""What readers said of articles, and what they looked for: counters beside the records, so that neither a
search
nor a rating ever waits for, or conflicts with, an author."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from mongoengine import DateTimeField, Document, IntField, StringField
from pymongo import UpdateOne

#: Searches that wait to be written down; more are not counted.
WAITING_MAX = 10_000
#: How long a search is remembered after it was last made.
REMEMBERED_SECONDS = 400 * 86_400


class SearchDocument(Document):
    """How often something was looked for. `_id` depends on its words alone."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "knowledge_searches",
        "auto_create_index": False,
        "index_cls": False,
        "indexes": [
            {"fields": ["-search_count", "-_id"], "name": "frequent"},
            {"fields": ["last_at"], "name": "forgotten", "expireAfterSeconds": REMEMBERED_SECONDS},
        ],
    }

    id = StringField(primary_key=True)
    query = StringField()
    search_count = IntField()
    empty_count = IntField()
    unhelpful_count = IntField()
    #: Real time.
    last_at = DateTimeField()


class RatingDocument(Document):
    """How often an article helped."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "article_ratings",
        "auto_create_index": False,
        "index_cls": False,
    }

    id = StringField(primary_key=True)
    helpful = IntField()
    unhelpful = IntField()


#: Both collections.
FEEDBACK_DOCUMENTS: tuple[type[Document], ...] = (SearchDocument, RatingDocument)


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """One search."""

    #: Depends on its words alone.
    id: str
    #: As it was typed.
    query: str
    #: Nothing was found.
    empty: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """What was looked for without a good answer."""

    id: str
    query: str
    search_count: int = 0
    empty_count: int = 0
    unhelpful_count: int = 0
    #: When last, real ms.
    last_ms: int = 0


class Feedback(Protocol):
    """Keeps what readers say and do."""

    def searched(self, search: Searched) -> None:
        """Counts a search, soon; never waits."""

    def flush(self) -> None:
        """Writes down what waits. Unavailable, pymongo's errors; then it goes on waiting."""

    def rate(self, article_id: str, helpful: bool, search_id: str) -> None:
        """Counts a rating, and against its search (if known) when it didn't help."""

    def ratings(self, article_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(helpful, unhelpful) of each article that was rated."""

    def gaps(self, since_ms: int, limit: int, after: tuple[int, str] | None) -> list[Gap]:
        """Searches that found nothing, or nothing that helped, most frequent first."""


def _merge(known: Gap | None, search: Searched, now_ms: int) -> Gap:
    gap = known or Gap(id=search.id, query=search.query)
    return replace(
        gap,
        query=search.query,
        search_count=gap.search_count + 1,
        empty_count=gap.empty_count + search.empty,
        last_ms=now_ms,
    )


class MongoFeedback:
    """On MongoDB. Needs `chassis.mongo.connect` first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Gap] = {}

    def searched(self, search: Searched) -> None:
        """As the port says."""
        with self._lock:
            if search.id in self._waiting or len(self._waiting) < WAITING_MAX:
                known = self._waiting.get(search.id)
                self._waiting[search.id] = _merge(known, search, int(time.time() * 1000))

    def flush(self) -> None:
        """As the port says."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        updates = [
            UpdateOne(
                {"_id": gap.id},
                {
                    "$inc": {"search_count": gap.search_count, "empty_count": gap.empty_count},
                    "$set": {"query": gap.query, "last_at": datetime.fromtimestamp(gap.last_ms / 1000, UTC)},
                },
                upsert=True,
            )
            for gap in waiting.values()
        ]
        try:
            SearchDocument._get_collection().bulk_write(updates, ordered=False)
        except Exception:
            with self._lock:  # what was made meanwhile counts more than what fails again and again
                self._waiting = {**waiting, **self._waiting}
            raise

    def rate(self, article_id: str, helpful: bool, search_id: str) -> None:
        """As the port says."""
        counted = {"$inc": {"helpful" if helpful else "unhelpful": 1}}
        RatingDocument._get_collection().update_one({"_id": article_id}, counted, upsert=True)
        if search_id and not helpful:
            self.flush()
            SearchDocument._get_collection().update_one({"_id": search_id}, {"$inc": {"unhelpful_count": 1}})

    def ratings(self, article_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """As the port says."""
        found = RatingDocument._get_collection().find({"_id": {"$in": list(article_ids)}})
        return {raw["_id"]: (raw.get("helpful") or 0, raw.get("unhelpful") or 0) for raw in found}

    def gaps(self, since_ms: int, limit: int, after: tuple[int, str] | None) -> list[Gap]:
        """As the port says."""
        self.flush()
        clauses: list[Mapping[str, Any]] = [
            {"$or": [{"empty_count": {"$gt": 0}}, {"unhelpful_count": {"$gt": 0}}]}
        ]
        if since_ms:
            clauses.append({"last_at": {"$gte": datetime.fromtimestamp(since_ms / 1000, UTC)}})
        if after is not None:
            count, last = after
            more = {"$or": [{"search_count": {"$lt": count}}, {"search_count": count, "_id": {"$lt": last}}]}
            clauses.append(more)
        found = SearchDocument._get_collection().find({"$and": clauses})
        return [
            Gap(
                id=raw["_id"],
                query=raw.get("query") or "",
                search_count=raw.get("search_count") or 0,
                empty_count=raw.get("empty_count") or 0,
                unhelpful_count=raw.get("unhelpful_count") or 0,
            )
            for raw in found.sort([("search_count", -1), ("_id", -1)]).limit(limit)
        ]


class MemoryFeedback:
    """In memory; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._searches: dict[str, Gap] = {}
        self._ratings: dict[str, tuple[int, int]] = {}

    def searched(self, search: Searched) -> None:
        """As the port says."""
        with self._lock:
            known = self._searches.get(search.id)
            self._searches[search.id] = _merge(known, search, int(time.time() * 1000))

    def flush(self) -> None:
        """As the port says."""

    def rate(self, article_id: str, helpful: bool, search_id: str) -> None:
        """As the port says."""
        with self._lock:
            good, bad = self._ratings.get(article_id, (0, 0))
            self._ratings[article_id] = (good + helpful, bad + (not helpful))
            if not helpful and search_id in self._searches:
                gap = self._searches[search_id]
                self._searches[search_id] = replace(gap, unhelpful_count=gap.unhelpful_count + 1)

    def ratings(self, article_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """As the port says."""
        return {id: self._ratings[id] for id in article_ids if id in self._ratings}

    def gaps(self, since_ms: int, limit: int, after: tuple[int, str] | None) -> list[Gap]:
        """As the port says."""
        found = [
            g
            for g in self._searches.values()
            if (g.empty_count or g.unhelpful_count) and g.last_ms >= since_ms
        ]
        found.sort(key=lambda gap: (gap.search_count, gap.id), reverse=True)
        return [gap for gap in found if after is None or (gap.search_count, gap.id) < after][:limit]
