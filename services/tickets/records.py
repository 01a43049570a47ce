"""Where everything but tickets is kept: flows, policies, calendars, teams, articles, questions, problems,
reviews
and assets. Each is one protobuf message of the API, stored whole in its JSON form beside the few values
that it
is searched by; so what the API can say can be stored, and the wire's rules of compatibility hold for it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mongoengine import DictField, IntField, StringField

from chassis.errors import AlreadyExists, EtagMismatch, NotFound, Unavailable
from chassis.idempotency import check_repeat
from chassis.mongo import Aggregate, create_once, update_aggregate
from tickets import filters
from tickets.filters import Condition, Field, Term

if TYPE_CHECKING:
    from chassis.bus import Event

#: Records read at once where all of a kind are wanted.
ALL_PAGE = 1_000
#: Assets of an erased customer removed at once, and how often.
FORGET_BATCH, FORGET_BATCHES_MAX = 100, 100


class RecordDocument(Aggregate):
    """A record: the message's JSON, and what it is searched by."""

    meta: ClassVar[dict[str, Any]] = {"abstract": True}

    body = StringField(required=True)
    search = DictField()
    created_ms = IntField(required=True)
    updated_ms = IntField(required=True)


def _indexes(*names: str) -> list[dict[str, Any]]:
    newest = ["-created_ms", "-_id"]
    found: list[dict[str, Any]] = [{"fields": newest, "name": "newest"}]
    for name in names:
        found.append({"fields": [f"search.{name}", *newest], "name": f"{name}_newest", "sparse": True})
    return found


class FlowDocument(RecordDocument):
    """A version of an operator's flow, `_id` `{flow}@{version}`, or under its bare id the latest."""

    resource_collection: ClassVar[str] = "flows"
    meta: ClassVar[dict[str, Any]] = {"collection": "flows", "indexes": _indexes()}


class PolicyDocument(RecordDocument):
    """A service-level policy."""

    resource_collection: ClassVar[str] = "slaPolicies"
    meta: ClassVar[dict[str, Any]] = {"collection": "sla_policies", "indexes": _indexes()}


class CalendarDocument(RecordDocument):
    """A version of a calendar, `_id` `{calendar}@{version}`, or under its bare id the latest."""

    resource_collection: ClassVar[str] = "calendars"
    meta: ClassVar[dict[str, Any]] = {"collection": "calendars", "indexes": _indexes()}


class TeamDocument(RecordDocument):
    """A team."""

    resource_collection: ClassVar[str] = "teams"
    meta: ClassVar[dict[str, Any]] = {"collection": "teams", "indexes": _indexes()}


class ArticleDocument(RecordDocument):
    """An article's draft, its state and what of it is published."""

    resource_collection: ClassVar[str] = "articles"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "articles",
        "indexes": [
            *_indexes("state", "language", "audience", "category", "author", "tags"),
            {"fields": ["search.indexed_ms"], "name": "indexed", "sparse": True},
        ],
    }


class ArticleVersionDocument(RecordDocument):
    """A published version of an article, `_id` `{article}@{version}`."""

    resource_collection: ClassVar[str] = "articles"
    meta: ClassVar[dict[str, Any]] = {"collection": "article_versions", "indexes": _indexes("article")}


class QuestionDocument(RecordDocument):
    """A question to the experts."""

    resource_collection: ClassVar[str] = "questions"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "questions",
        "indexes": _indexes("state", "category", "author", "ticket"),
    }


class ProblemDocument(RecordDocument):
    """A problem."""

    resource_collection: ClassVar[str] = "problems"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "problems",
        "indexes": _indexes("state", "products", "owner"),
    }


class ReviewDocument(RecordDocument):
    """A review."""

    resource_collection: ClassVar[str] = "reviews"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "reviews",
        "indexes": _indexes("product", "stage", "verdict"),
    }


class AssetDocument(RecordDocument):
    """An asset."""

    resource_collection: ClassVar[str] = "assets"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "assets",
        "indexes": [
            *_indexes("customer", "product", "model", "serial_number", "contract"),
            {"fields": ["search.serial_key"], "name": "serial_key", "unique": True, "sparse": True},
        ],
    }


#: Every collection of records, by what resources are called.
RECORDS: Mapping[str, type[RecordDocument]] = {
    "flows": FlowDocument,
    "slaPolicies": PolicyDocument,
    "calendars": CalendarDocument,
    "teams": TeamDocument,
    "articles": ArticleDocument,
    "articleVersions": ArticleVersionDocument,
    "questions": QuestionDocument,
    "problems": ProblemDocument,
    "reviews": ReviewDocument,
    "assets": AssetDocument,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record."""

    #: A key of `RECORDS`.
    kind: str
    #: Last part of its name.
    id: str
    #: The message in JSON.
    body: str
    #: What it is searched by.
    search: Mapping[str, Any] = field(default_factory=dict)
    #: Business time, ms.
    created_ms: int = 0
    updated_ms: int = 0
    #: 0 before it is stored, then +1 with every write.
    version: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordQuery:
    """Which records a list is about, newest first, or by id."""

    kind: str
    terms: tuple[Term, ...] = ()
    fields: Mapping[str, Field] = field(default_factory=dict)
    by_id: bool = False


#: What a page of records continues after.
After = tuple[int, str] | None


class Records(Protocol):
    """Keeps records. Any method may raise Unavailable; then nothing has changed."""

    def insert(
        self,
        record: Record,
        events: Sequence[Event] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Record, bool]:
        """Stores a new record as version 1: (record, True), or what an earlier call with this key made.
        AlreadyExists when the id, or a value that only one may have, is taken."""

    def find(self, kind: str, id: str) -> Record | None:
        """The record; None when there is none."""

    def update(self, record: Record, events: Sequence[Event] = ()) -> Record:
        """Stores a changed record if it is still at `record.version`. EtagMismatch, NotFound."""

    def delete(self, record: Record) -> None:
        """Removes a record if it is still at `record.version`. EtagMismatch."""

    def page(self, query: RecordQuery, limit: int, after: After) -> list[Record]:
        """At most `limit` records after a key."""

    def count(self, kind: str) -> int:
        """How many records of a kind there are, about."""

    def since(self, kind: str, name: str, value: int, limit: int) -> list[tuple[str, int]]:
        """(id, version) of records with a searched number of at least `value`, the lowest first."""

    def many(self, kind: str, ids: Sequence[str]) -> list[Record]:
        """The records of these ids that there are."""


def get(records: Records, kind: str, id: str) -> Record:
    """The record; NotFound."""
    found = records.find(kind, id)
    if found is None:
        raise NotFound(resource=f"{RECORDS[kind].resource_collection}/{id}")
    return found


def all_of(records: Records, kind: str) -> list[Record]:
    """Every record of a kind by id; of kinds whose number is bounded (`resources.Resource.most`)."""
    query, found = RecordQuery(kind=kind, by_id=True), list[Record]()
    after: After = None
    while True:
        page = records.page(query, ALL_PAGE, after)
        found += page
        if len(page) < ALL_PAGE:
            return found
        after = key_of(page[-1], query)


def forget_assets(records: Records, customer_id: str) -> None:
    """Removes what an erased customer owned: where it stands is where somebody lives. Safe to repeat;
    Unavailable when there is more than one delivery removes (the next goes on)."""
    owner = Condition(field="customer", op="=", value=customer_id)
    query = RecordQuery(kind="assets", terms=(owner,), fields={"customer": filters.name_field("customers")})
    for _ in range(FORGET_BATCHES_MAX):
        found = records.page(query, FORGET_BATCH, None)
        if not found:
            return
        for asset in found:
            with suppress(EtagMismatch, NotFound):  # changed meanwhile: it is read again
                records.delete(asset)
    raise Unavailable(why=f"customers/{customer_id} has more assets than one delivery removes")


def key_of(record: Record, query: RecordQuery) -> tuple[int, str]:
    """What a page continues after."""
    return (0 if query.by_id else record.created_ms), record.id


class MongoRecords:
    """The records on MongoDB. Needs `chassis.mongo.connect` first."""

    def _document(self, record: Record) -> RecordDocument:
        return RECORDS[record.kind](
            id=record.id,
            version=max(1, record.version),
            body=record.body,
            search=dict(record.search),
            created_ms=record.created_ms,
            updated_ms=record.updated_ms,
        )

    def _record(self, kind: str, raw: Mapping[str, Any]) -> Record:
        return Record(
            kind=kind,
            id=raw["_id"],
            body=raw["body"],
            search=raw.get("search") or {},
            created_ms=raw["created_ms"],
            updated_ms=raw["updated_ms"],
            version=raw["version"],
        )

    def insert(
        self,
        record: Record,
        events: Sequence[Event] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Record, bool]:
        """As the port says."""
        document = self._document(record)
        stored, created = create_once(document, events, request_key=request_key, fingerprint=fingerprint)
        found = replace(record, version=1) if created else self._record(record.kind, stored.to_mongo())
        return found, created

    def find(self, kind: str, id: str) -> Record | None:
        """As the port says."""
        raw = RECORDS[kind]._get_collection().find_one({"_id": id}, {"outbox": 0})
        return self._record(kind, raw) if raw is not None else None

    def update(self, record: Record, events: Sequence[Event] = ()) -> Record:
        """As the port says."""
        document = self._document(record)
        update_aggregate(document, events, record.version)
        return replace(record, version=document.version)

    def delete(self, record: Record) -> None:
        """As the port says."""
        query = {"_id": record.id, "version": record.version}
        if not RECORDS[record.kind]._get_collection().delete_one(query).deleted_count:
            raise EtagMismatch(resource=f"{RECORDS[record.kind].resource_collection}/{record.id}")

    def page(self, query: RecordQuery, limit: int, after: After) -> list[Record]:
        """As the port says."""
        clauses = [filters.to_mongo(term, query.fields, "search.") for term in query.terms]
        if query.by_id:
            order = [("_id", 1)]
            clauses += [{"_id": {"$gt": after[1]}}] if after is not None else []
        else:
            order = [("created_ms", -1), ("_id", -1)]
            if after is not None:
                key, last = after
                clauses.append({"created_ms": {"$lte": key}})
                clauses.append(
                    {"$or": [{"created_ms": {"$lt": key}}, {"created_ms": key, "_id": {"$lt": last}}]}
                )
        found = (
            RECORDS[query.kind]._get_collection().find({"$and": clauses} if clauses else {}, {"outbox": 0})
        )
        return [self._record(query.kind, raw) for raw in found.sort(order).limit(limit)]

    def count(self, kind: str) -> int:
        """As the port says."""
        return int(RECORDS[kind]._get_collection().estimated_document_count())

    def since(self, kind: str, name: str, value: int, limit: int) -> list[tuple[str, int]]:
        """As the port says."""
        stored = f"search.{name}"
        found = RECORDS[kind]._get_collection().find({stored: {"$gte": value}}, {"version": 1})
        return [(raw["_id"], raw["version"]) for raw in found.sort([(stored, 1)]).limit(limit)]

    def many(self, kind: str, ids: Sequence[str]) -> list[Record]:
        """As the port says."""
        found = RECORDS[kind]._get_collection().find({"_id": {"$in": list(ids)}}, {"outbox": 0})
        return [self._record(kind, raw) for raw in found]


class MemoryRecords:
    """The records in memory; safe for threads. `events` holds what was told, in order."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._records: dict[tuple[str, str], Record] = {}
        self._requests: dict[str, tuple[tuple[str, str], str | None]] = {}
        #: Everything that was stored to be published.
        self.events: list[Event] = []

    def _check_unique(self, record: Record) -> None:
        serial = record.search.get("serial_key")
        for other in self._records.values():
            same = other.kind == record.kind and other.id != record.id
            if serial and same and other.search.get("serial_key") == serial:
                raise AlreadyExists(resource=f"{record.kind}/{record.id}", conflict="search.serial_key")

    def insert(
        self,
        record: Record,
        events: Sequence[Event] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Record, bool]:
        """As the port says."""
        with self._lock:
            if request_key and request_key in self._requests:
                place, earlier = self._requests[request_key]
                check_repeat(earlier, fingerprint)
                return self._records[place], False
            place = (record.kind, record.id)
            if place in self._records:
                raise AlreadyExists(resource=f"{RECORDS[record.kind].resource_collection}/{record.id}")
            self._check_unique(record)
            self._records[place] = replace(record, version=1)
            if request_key:
                self._requests[request_key] = (place, fingerprint)
            self.events.extend(events)
            return self._records[place], True

    def find(self, kind: str, id: str) -> Record | None:
        """As the port says."""
        with self._lock:
            return self._records.get((kind, id))

    def _held(self, record: Record) -> Record:
        held = self._records.get((record.kind, record.id))
        if held is None:
            raise NotFound(resource=f"{RECORDS[record.kind].resource_collection}/{record.id}")
        if held.version != record.version:
            raise EtagMismatch(resource=f"{RECORDS[record.kind].resource_collection}/{record.id}")
        return held

    def update(self, record: Record, events: Sequence[Event] = ()) -> Record:
        """As the port says."""
        with self._lock:
            self._held(record)
            self._check_unique(record)
            stored = replace(record, version=record.version + 1)
            self._records[record.kind, record.id] = stored
            self.events.extend(events)
            return stored

    def delete(self, record: Record) -> None:
        """As the port says."""
        with self._lock:
            self._held(record)
            del self._records[record.kind, record.id]

    def _where(self, kind: str, test: Callable[[Record], bool]) -> Iterable[Record]:
        with self._lock:
            return [record for record in self._records.values() if record.kind == kind and test(record)]

    def page(self, query: RecordQuery, limit: int, after: After) -> list[Record]:
        """As the port says."""

        def test(record: Record) -> bool:
            def value_of(name: str) -> Any:
                return record.search.get(filters.stored_name(name, query.fields))

            key = key_of(record, query)
            beyond = after is None or (key > after if query.by_id else key < after)
            return beyond and all(filters.holds(term, value_of) for term in query.terms)

        found = sorted(
            self._where(query.kind, test), key=lambda one: key_of(one, query), reverse=not query.by_id
        )
        return found[:limit]

    def count(self, kind: str) -> int:
        """As the port says."""
        with self._lock:
            return sum(1 for held, _ in self._records if held == kind)

    def since(self, kind: str, name: str, value: int, limit: int) -> list[tuple[str, int]]:
        """As the port says."""
        found = [(r.search.get(name) or 0, r.id, r.version) for r in self._where(kind, lambda r: True)]
        return [(id, version) for number, id, version in sorted(found) if number >= value][:limit]

    def many(self, kind: str, ids: Sequence[str]) -> list[Record]:
        """As the port says."""
        return list(self._where(kind, lambda record: record.id in ids))
