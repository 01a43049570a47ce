"""Shelves: where resources lie that are read and written whole, in the form in which the API speaks of them.

Tariffs, partners, leads, surveys, call lists, campaigns and the like are kept as the JSON form of their
message (`content`), and beside it what they are looked up by (`keys`, indexed). One store holds all kinds; a
new kind brings its name and its indexes. Offers, decisions and what is counted in millions have documents of
their own.

Every write is one document with its events, under optimistic concurrency, as everywhere (chassis.mongo).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from mongoengine import DictField

from chassis.errors import AlreadyExists, EtagMismatch, NotFound
from chassis.idempotency import check_repeat
from chassis.mongo import Aggregate, EventsWaiting, create_once, delete_aggregate, update_aggregate

if TYPE_CHECKING:
    from chassis.bus import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One resource on a shelf."""

    #: Id, without the collection's name.
    id: str
    #: The resource in the JSON form of its message, or whatever else the kind keeps.
    content: dict[str, Any]
    #: What it is looked up by: texts, numbers, truths, aware datetimes, lists of these.
    keys: dict[str, Any] = field(default_factory=dict)
    #: +1 with every change; 0 before it is stored.
    version: int = 0
    #: Business times.
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Kind:
    """One kind of resource: its collection, its words for "there is none", and its indexes over `keys`."""

    def __init__(
        self, collection: str, absent: type[NotFound], *indexes: Sequence[str], resource: str = ""
    ) -> None:
        """`indexes` are lists of keys, "-" before one that falls; `resource` begins the name."""
        self.collection = collection
        self.absent = absent
        self.resource = resource or collection
        self.document = _document(collection, self.resource, indexes)

    def name(self, id: str) -> str:
        """The resource name."""
        return f"{self.resource}/{id}"

    def missing(self, id: str) -> NotFound:
        """The error for an unknown id."""
        return self.absent(resource=self.name(id))


def _document(collection: str, resource: str, indexes: Sequence[Sequence[str]]) -> type[Aggregate]:
    def path(key: str) -> str:
        falls, name = key.startswith("-"), key.removeprefix("-")
        return f"{'-' if falls else ''}{name if name == '_id' else f'keys.{name}'}"

    meta = {
        "collection": collection,
        "indexes": [
            {"fields": [path(key) for key in keys], "name": "_".join(key.strip("-_") for key in keys)}
            for keys in indexes
        ],
    }
    name = "".join(part.capitalize() for part in collection.split("_")) + "Document"
    made: type[Aggregate] = type(
        name,
        (Aggregate,),
        {
            "__module__": __name__,
            "__doc__": f"Documents of the shelf {collection!r}.",
            "resource_collection": resource,
            "content": DictField(),
            "keys": DictField(),
            "meta": meta,
        },
    )
    return made


class Shelves(Protocol):
    """Blocking access to all shelves. Any method may raise Unavailable while the database is away."""

    def insert(
        self,
        kind: Kind,
        row: Row,
        now: datetime,
        events: Sequence[Event] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Row, bool]:
        """Stores a new row: (row, True), or what an earlier call with this key made: (that, False).
        AlreadyExists when the id is taken, RequestIdReused when the key came with other content.
        """

    def get(self, kind: Kind, id: str) -> Row:
        """The row; the kind's NotFound."""

    def find(
        self,
        kind: Kind,
        condition: Mapping[str, Any],
        limit: int,
        *,
        after: Any = None,
        order: str = "_id",
    ) -> list[Row]:
        """At most `limit` rows whose keys fit a condition ({key: value}, or {key: {"$lte": value}} with $in,
        $nin, $lt, $lte, $gt, $gte, $ne, $not, $elemMatch), by id rising ("_id") or falling ("-_id"), after an
        id, or by a key ("-score") and id, after (key's value, id); or by several keys ("-rank,due") alone, in
        the order of an index, after nothing.
        """

    def count(self, kind: Kind, condition: Mapping[str, Any]) -> int:
        """How many rows fit."""

    def tally(self, kind: Kind, condition: Mapping[str, Any], key: str) -> dict[Any, int]:
        """How many rows that fit have each value of `key`, all at one moment: a row that changes meanwhile
        counts once, before or after.
        """

    def update(self, kind: Kind, row: Row, now: datetime, events: Sequence[Event] = ()) -> Row:
        """Stores a changed row if it is still at `row.version`. EtagMismatch, the kind's NotFound."""

    def delete(self, kind: Kind, row: Row) -> None:
        """Removes a row still at `row.version`, once its events are published. EtagMismatch, the kind's
        NotFound, EventsWaiting.
        """

    def clear(self, kind: Kind, condition: Mapping[str, Any]) -> None:
        """Removes all rows that fit; EventsWaiting, and those alone left, while events of some are not
        published. Repeatable.
        """


class MongoShelves:
    """Shelves in MongoDB. Needs `chassis.mongo.connect` first."""

    def insert(
        self,
        kind: Kind,
        row: Row,
        now: datetime,
        events: Sequence[Event] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Row, bool]:
        """As the port says."""
        document = kind.document(id=row.id, content=row.content, keys=row.keys)
        stored, created = create_once(
            document, events, request_key=request_key, fingerprint=fingerprint, now=now
        )
        return _row(stored.to_mongo().to_dict()), created

    def get(self, kind: Kind, id: str) -> Row:
        """As the port says."""
        raw = kind.document._get_collection().find_one({"_id": id}, {"outbox": 0})
        if raw is None:
            raise kind.missing(id)
        return _row(raw)

    def find(
        self,
        kind: Kind,
        condition: Mapping[str, Any],
        limit: int,
        *,
        after: Any = None,
        order: str = "_id",
    ) -> list[Row]:
        """As the port says."""
        wanted: dict[str, Any] = {f"keys.{key}": value for key, value in condition.items()}
        direction, name = (-1 if order.startswith("-") else 1), order.removeprefix("-")
        beyond = "$lt" if direction < 0 else "$gt"
        sort = [("_id", direction)]
        if "," in order:
            # With the id behind them all that fit would be read, and sorted.
            sort = [(f"keys.{key.removeprefix('-')}", -1 if key[0] == "-" else 1) for key in order.split(",")]
        elif name != "_id":
            sort.insert(0, (f"keys.{name}", direction))
            if after is not None:
                value, id = after
                wanted["$or"] = [
                    {f"keys.{name}": {beyond: value}},
                    {f"keys.{name}": value, "_id": {beyond: id}},
                ]
        elif after is not None:
            wanted["_id"] = {beyond: after}
        found = kind.document._get_collection().find(wanted, {"outbox": 0})
        return [_row(raw) for raw in found.sort(sort).limit(limit)]

    def count(self, kind: Kind, condition: Mapping[str, Any]) -> int:
        """As the port says."""
        wanted = {f"keys.{key}": value for key, value in condition.items()}
        return int(kind.document._get_collection().count_documents(wanted))

    def tally(self, kind: Kind, condition: Mapping[str, Any], key: str) -> dict[Any, int]:
        """As the port says."""
        wanted = {f"keys.{name}": value for name, value in condition.items()}
        collection = kind.document._get_collection()
        counted = [{"$match": wanted}, {"$group": {"_id": f"$keys.{key}", "rows": {"$sum": 1}}}]
        # Without a snapshot a row that moves in the index during the scan is met twice, or never.
        with collection.database.client.start_session(snapshot=True) as session:
            return {one["_id"]: one["rows"] for one in collection.aggregate(counted, session=session)}

    def update(self, kind: Kind, row: Row, now: datetime, events: Sequence[Event] = ()) -> Row:
        """As the port says."""
        document = kind.document(id=row.id, version=row.version, content=row.content, keys=row.keys)
        document.created_at = row.created_at
        try:
            update_aggregate(document, events, row.version, now=now)
        except NotFound:
            raise kind.missing(row.id) from None
        return replace(row, version=document.version, updated_at=now)

    def delete(self, kind: Kind, row: Row) -> None:
        """As the port says."""
        try:
            delete_aggregate(kind.document, row.id, row.version)
        except NotFound:
            raise kind.missing(row.id) from None

    def clear(self, kind: Kind, condition: Mapping[str, Any]) -> None:
        """As the port says."""
        wanted = {f"keys.{key}": value for key, value in condition.items()}
        collection = kind.document._get_collection()
        collection.delete_many({**wanted, "outbox.0": {"$exists": False}})
        telling = collection.find_one({**wanted, "outbox.0": {"$exists": True}}, {"_id": 1})
        if telling is not None:
            raise EventsWaiting(
                resource=kind.name(telling["_id"]), why="the message broker is behind", retry_seconds=5.0
            )


def _row(raw: Mapping[str, Any]) -> Row:
    return Row(
        id=raw["_id"],
        content=raw.get("content") or {},
        keys=raw.get("keys") or {},
        version=raw["version"],
        created_at=_aware(raw.get("created_at")),
        updated_at=_aware(raw.get("updated_at")),
    )


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


_TESTS: Mapping[str, Any] = {
    "$in": lambda held, given: held in given,
    "$ne": lambda held, given: held != given,
    "$lt": lambda held, given: held is not None and held < given,
    "$lte": lambda held, given: held is not None and held <= given,
    "$gt": lambda held, given: held is not None and held > given,
    "$gte": lambda held, given: held is not None and held >= given,
    "$nin": lambda held, given: held not in given,
    "$not": lambda held, given: not _passes(held, given),
    "$elemMatch": lambda held, given: any(_passes(each, given) for each in held or ()),
}


def _passes(held: Any, tests: Mapping[str, Any]) -> bool:
    return all(_TESTS[test](held, value) for test, value in tests.items())


def _fits(keys: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    for key, wanted in condition.items():
        held = keys.get(key)
        if isinstance(wanted, Mapping):
            if not _passes(held, wanted):
                return False
        elif held != wanted and not (isinstance(held, list) and wanted in held):
            return False
    return True


def _under(key: str) -> Callable[[Row], Any]:
    return lambda row: row.keys[key]


class MemoryShelves:
    """Shelves in memory, for tests and trials; `events` holds all that was told."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Row]] = {}
        self._requests: dict[tuple[str, str], tuple[str, str | None]] = {}
        self._lock = threading.RLock()
        self.events: list[Event] = []

    def insert(
        self,
        kind: Kind,
        row: Row,
        now: datetime,
        events: Sequence[Event] = (),
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Row, bool]:
        """As the port says."""
        with self._lock:
            shelf = self._rows.setdefault(kind.collection, {})
            if request_key is not None and (kind.collection, request_key) in self._requests:
                id, earlier = self._requests[kind.collection, request_key]
                check_repeat(earlier, fingerprint)
                return shelf[id], False
            if row.id in shelf:
                raise AlreadyExists(resource=kind.name(row.id))
            shelf[row.id] = replace(row, version=1, created_at=row.created_at or now, updated_at=now)
            if request_key is not None:
                self._requests[kind.collection, request_key] = (row.id, fingerprint)
            self.events.extend(events)
            return shelf[row.id], True

    def get(self, kind: Kind, id: str) -> Row:
        """As the port says."""
        with self._lock:
            row = self._rows.get(kind.collection, {}).get(id)
            if row is None:
                raise kind.missing(id)
            return row

    def find(
        self,
        kind: Kind,
        condition: Mapping[str, Any],
        limit: int,
        *,
        after: Any = None,
        order: str = "_id",
    ) -> list[Row]:
        """As the port says."""
        name, falls = order.removeprefix("-"), order.startswith("-")

        def place(row: Row) -> Any:
            return row.id if name == "_id" else (row.keys.get(name), row.id)

        with self._lock:
            rows = [row for row in self._rows.get(kind.collection, {}).values() if _fits(row.keys, condition)]
        if "," in order:
            for key in reversed(order.split(",")):
                rows.sort(key=_under(key.removeprefix("-")), reverse=key[0] == "-")
            return rows[:limit]
        rows.sort(key=place, reverse=falls)
        if after is not None:
            bound = after if name == "_id" else tuple(after)
            rows = [row for row in rows if (place(row) < bound if falls else place(row) > bound)]
        return rows[:limit]

    def count(self, kind: Kind, condition: Mapping[str, Any]) -> int:
        """As the port says."""
        with self._lock:
            return sum(_fits(row.keys, condition) for row in self._rows.get(kind.collection, {}).values())

    def tally(self, kind: Kind, condition: Mapping[str, Any], key: str) -> dict[Any, int]:
        """As the port says."""
        with self._lock:
            rows = self._rows.get(kind.collection, {}).values()
            return dict(Counter(row.keys.get(key) for row in rows if _fits(row.keys, condition)))

    def update(self, kind: Kind, row: Row, now: datetime, events: Sequence[Event] = ()) -> Row:
        """As the port says."""
        with self._lock:
            if self.get(kind, row.id).version != row.version:
                raise EtagMismatch(resource=kind.name(row.id))
            stored = replace(row, version=row.version + 1, updated_at=now)
            self._rows[kind.collection][row.id] = stored
            self.events.extend(events)
            return stored

    def delete(self, kind: Kind, row: Row) -> None:
        """As the port says."""
        with self._lock:
            if self.get(kind, row.id).version != row.version:
                raise EtagMismatch(resource=kind.name(row.id))
            del self._rows[kind.collection][row.id]

    def clear(self, kind: Kind, condition: Mapping[str, Any]) -> None:
        """As the port says."""
        with self._lock:
            rows = self._rows.get(kind.collection, {})
            for id in [id for id, row in rows.items() if _fits(row.keys, condition)]:
                del rows[id]
