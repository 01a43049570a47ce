"""Which events a handler has taken already.

The mark is written after the handler succeeded, so a crash in between repeats the handler: it must bear that.
Marks are kept longer than any message can wait, then the database removes them by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pymongo
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.write_concern import WriteConcern

from chassis.mongo import clashes

COLLECTION = "inbox"
#: How long a mark is kept, seconds: two weeks.
MARK_SECONDS = 14 * 24 * 3600


class Inbox:
    """Marks of one service, in its own database."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._collection: Collection[dict[str, Any]] = database.get_collection(
            COLLECTION, write_concern=WriteConcern(w="majority")
        )

    def ensure_index(self) -> None:
        """Lets the database remove old marks; repeatable."""
        self._collection.create_index([("at", pymongo.ASCENDING)], name="at", expireAfterSeconds=MARK_SECONDS)

    def seen(self, handler: str, event_id: str) -> bool:
        """Whether `handler` took that event. pymongo's errors when the store is away."""
        return self._collection.find_one({"_id": f"{handler}:{event_id}"}, {"_id": 1}) is not None

    def seen_of(self, handler: str, event_ids: Sequence[str]) -> set[str]:
        """Those of the events that `handler` took, in one question. pymongo's errors as above."""
        marks = [f"{handler}:{event_id}" for event_id in event_ids]
        found = self._collection.find({"_id": {"$in": marks}}, {"_id": 1})
        return {mark["_id"][len(handler) + 1 :] for mark in found}

    def mark_all(self, handler: str, event_ids: Sequence[str]) -> None:
        """As `mark`, for several in one write."""
        now = datetime.now(UTC)
        marks = [{"_id": f"{handler}:{event_id}", "at": now} for event_id in event_ids]
        try:
            self._collection.insert_many(marks, ordered=False)
        except BulkWriteError as error:
            # Marks that are there already are marks.
            clashes(error)

    def mark(self, handler: str, event_id: str) -> None:
        """Remembers that `handler` took the event; repeatable. pymongo's errors when the store is away."""
        try:
            self._collection.insert_one({"_id": f"{handler}:{event_id}", "at": datetime.now(UTC)})
        except DuplicateKeyError:
            # It was marked by another worker that got the same message after a lost connection.
            return
