"""A small store for plain resources: contracts, rules, reasons, webhooks, imports. Each is one document with
a version, read and written as a dict; what must hold of one is decided by who calls. Blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pymongo.write_concern import WriteConcern

from chassis.clock import Clock
from chassis.errors import EtagMismatch, NotFound
from chassis.mongo import Aggregate, PendingEvent, create_once, retry_conflicts, update_aggregate

Raw = Mapping[str, Any]


class Records:
    """The documents of one class."""

    def __init__(self, document: type[Aggregate], clock: Clock) -> None:
        self._document = document
        self._clock = clock

    @property
    def collection(self) -> Any:
        """The collection, with majority writes."""
        return self._document._get_collection().with_options(write_concern=WriteConcern(w="majority"))

    def name(self, id: str) -> str:
        """The resource name."""
        return self._document(id=id).resource

    def get(self, id: str) -> Raw:
        """NotFound when there is none."""
        raw: Raw | None = self.collection.find_one({"_id": id})
        if raw is None:
            raise NotFound(resource=self.name(id))
        return raw

    def find(self, query: Mapping[str, Any], sort: Sequence[tuple[str, int]], limit: int) -> list[Raw]:
        """In an order, at most so many."""
        return list(self.collection.find(query).sort(list(sort)).limit(limit))

    def insert(
        self,
        id: str,
        fields: Mapping[str, Any],
        events: Sequence[PendingEvent] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> Raw:
        """Stores, or answers what an earlier call with the request key did. AlreadyExists,
        RequestIdReused.
        """
        doc = self._document(id=id, **{name: value for name, value in fields.items() if value is not None})
        now: datetime = self._clock.now()
        done, _ = create_once(doc, events, request_key=request_key, fingerprint=fingerprint, now=now)
        stored: Raw = done.to_mongo().to_dict()
        return stored

    def update(
        self,
        id: str,
        edit: Callable[[Raw], Mapping[str, Any] | None],
        expected_version: int | None = None,
        events: Callable[[Raw], Sequence[PendingEvent]] = lambda _: (),
    ) -> Raw:
        """`edit` answers the changed fields, None or {} for nothing to change. EtagMismatch, NotFound."""

        def once() -> Raw:
            doc = self._document.objects(id=id).first()
            if doc is None:
                raise NotFound(resource=self.name(id))
            if expected_version is not None and doc.version != expected_version:
                raise EtagMismatch(resource=self.name(id))
            before: Raw = doc.to_mongo().to_dict()
            changes = edit(before)
            if not changes:
                return before
            for name, value in changes.items():
                setattr(doc, name, value)
            update_aggregate(doc, events(doc.to_mongo().to_dict()), now=self._clock.now())
            after: Raw = doc.to_mongo().to_dict()
            return after

        return once() if expected_version is not None else retry_conflicts(once)

    def delete(self, id: str, expected_version: int | None = None) -> Raw:
        """Removes; answers what it was. EtagMismatch, NotFound."""
        query: dict[str, Any] = {"_id": id}
        if expected_version is not None:
            query["version"] = expected_version
        gone: Raw | None = self.collection.find_one_and_delete(query)
        if gone is None:
            self.get(id)
            raise EtagMismatch(resource=self.name(id))
        return gone
