"""MongoDB: connecting, and the unit of work.

The unit of work is one document. An `Aggregate` carries its version (the etag) and the events that nobody has
published yet; both are saved in one conditional write, acknowledged by a majority. The relay in the worker
(`chassis.outbox`) finds aggregates with pending events through the sparse index on `outbox_since`, publishes
the events and takes them off (`outbox_pull`).

mongoengine owns schema, indexes and writes (blocking, so in plain `def` handlers); `async_database` is for
hot reads in `async def` handlers. It has no sessions, so nothing here spans two documents.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import mongoengine
import pymongo
from mongoengine import DateTimeField, DictField, IntField, ListField, StringField
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WriteError,
    WTimeoutError,
)
from pymongo.write_concern import WriteConcern

from chassis.clock import Clock, SystemClock
from chassis.counted import CountedDatabase
from chassis.credentials import REFUSED, Renewal
from chassis.errors import (
    AlreadyExists,
    EtagMismatch,
    Internal,
    InvalidArgument,
    NotFound,
    StartError,
    Unavailable,
    shorten,
    translates,
)
from chassis.idempotency import check_repeat
from chassis.metrics_queries import QueryListener
from chassis.release import app_name

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase
    from pymongo.collection import Collection
    from pymongo.database import Database

    from chassis.config import ServiceSettings

#: Most unpublished events one aggregate may hold; further changes wait until the broker is back.
OUTBOX_EVENTS_MAX = 500
#: How long a removal waits until the relay has published what the aggregate has to tell, and how often it
#: looks, seconds.
TELLING_SECONDS_MAX = 2.0
TELLING_LOOK_SECONDS = 0.05
#: How often `retry_conflicts` runs its function.
CONFLICT_ATTEMPTS_MAX = 5

#: Collection that is there while a database is being restored: nothing starts on it then.
RESTORING = "callmesh_restoring"

#: MongoDB's code of a write that met a unique value of another document.
DUPLICATE_KEY = 11000
#: Its codes of what will do later: no majority to read from yet, a time of the server's that was over, a
#: cursor or a plan that is gone with a change of primary.
PASSING = frozenset({43, 134, 175, 262})
#: Its codes of a write after which a document would be larger than any may be.
TOO_LARGE = frozenset({10334, 17419, 17420})

_MAJORITY = WriteConcern(w="majority")
_MANAGED = frozenset(
    {"_id", "version", "outbox", "outbox_since", "request_key", "request_fingerprint", "created_at"}
)
_ETAG = re.compile(r"v([1-9][0-9]{0,17})")

_clock: Clock = SystemClock()


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached just now: {why}."""

    reason = "DATABASE_UNAVAILABLE"


class OutboxFull(Unavailable):
    """{resource} holds too many events that are not published yet: {why}."""

    reason = "OUTBOX_FULL"


class EventsWaiting(Unavailable):
    """{resource} has events that are not published yet, and would take them along: {why}."""

    reason = "EVENTS_WAITING"


def _unavailable(error: BaseException) -> DatabaseUnavailable:
    # The driver's text names hosts and may be long: callers learn only that a repeat makes sense.
    return DatabaseUnavailable(why="try again", retry_seconds=1.0)


for _transient in (ConnectionFailure, ExecutionTimeout, WTimeoutError, mongoengine.ConnectionFailure):
    translates(_transient, _unavailable)


def is_refused(error: BaseException) -> bool:
    """Whether the database did not take our user or password: somebody is changing it just now."""
    return isinstance(error, OperationFailure) and error.code == REFUSED


def is_passing(error: BaseException) -> bool:
    """Whether the database said no for reasons of its own that pass: a new password, a change of primary, the
    end of a server with an answer's cursor, or a bulk write that perhaps no majority has.
    """
    if not isinstance(error, OperationFailure):
        return False
    if is_refused(error) or error.code in PASSING or error.has_error_label("RetryableWriteError"):
        return True
    details = error.details or {}
    return bool(details.get("writeConcernErrors") and not details.get("writeErrors"))


translates(OperationFailure, lambda error: _unavailable(error) if is_passing(error) else Internal())


class PendingEvent(Protocol):
    """What an aggregate needs of a `chassis.bus.Event`."""

    @property
    def id(self) -> str:
        """Unique id of the event."""

    def to_json(self) -> Any:
        """The CloudEvents envelope in JSON."""


def _client_options(settings: ServiceSettings) -> dict[str, Any]:
    return {
        "tz_aware": True,
        "tzinfo": UTC,
        "uuidRepresentation": "standard",
        "w": "majority",
        "appname": app_name(settings.service),
        "maxPoolSize": settings.mongo_pool_max,
        "serverSelectionTimeoutMS": int(settings.mongo_operation_seconds * 1000),
        "connectTimeoutMS": int(settings.mongo_operation_seconds * 1000),
        "waitQueueTimeoutMS": int(settings.mongo_operation_seconds * 1000),
    }


def _await_server(client: pymongo.MongoClient[dict[str, Any]], seconds: float, choices: int) -> None:
    """Pings until answered or `seconds` are over; each ping itself waits for a server to appear, so this
    never spins. `choices`: how many users and passwords there are to try, one for each refusal.
    """
    give_up = time.monotonic() + seconds
    while True:
        try:
            client.admin.command("ping")
            return
        except AutoReconnect as error:
            if time.monotonic() >= give_up:
                raise StartError(
                    f"MongoDB did not answer within {seconds:g} s: {shorten(str(error).split(',')[0])}"
                ) from None
        except OperationFailure as error:
            choices -= 1
            if choices and is_refused(error):
                # A password that is announced and not in force yet: the next connection takes the other one.
                continue
            raise StartError(
                f"MongoDB refused the connection: {shorten(str(error.details or error))}"
            ) from None


def connect(settings: ServiceSettings) -> Database[dict[str, Any]]:
    """Makes mongoengine's default connection and waits until the server answers.

    StartError, in words for the operator, after `mongo_connect_seconds` or at once when the address or the
    credentials are wrong. Also takes the settings' clock for `created_at` and `updated_at`.
    """
    global _clock
    _clock = settings.clock()
    disconnect()
    renewal = Renewal(settings.mongo_uri_file)
    try:
        # The hot reads' client counts more cheaply (chassis/counted.py).
        options = _client_options(settings) | {"event_listeners": [QueryListener(settings.service)]}
        client = mongoengine.connect(
            settings.mongo_database, host=settings.mongo_uri, **renewal.options(options)
        )
        renewal.attach(client)
    except (ConfigurationError, ValueError, mongoengine.ConnectionFailure, PyMongoError) as error:
        raise StartError(f"MongoDB's address cannot be used: {shorten(str(error))}") from None
    try:
        _await_server(client, settings.mongo_connect_seconds, renewal.choices)
        _refuse_half_restored(client[settings.mongo_database])
    except StartError:
        disconnect()
        raise
    return client[settings.mongo_database]


def _refuse_half_restored(database: Database[dict[str, Any]]) -> None:
    try:
        found = database[RESTORING].find_one({})
    except PyMongoError as error:
        raise StartError(f"MongoDB cannot be read: {shorten(str(error))}") from None
    if found is not None:
        raise StartError(f"database {database.name} is being restored, or was left half restored")


def disconnect() -> None:
    """Closes mongoengine's default connection; safe without one."""
    mongoengine.disconnect()
    _forget_collections(mongoengine.Document)


def _forget_collections(document: type[mongoengine.Document]) -> None:
    # mongoengine itself finds only one document of a name, and two services loaded together (in tests) may
    # have given theirs the same: the other would go on using the closed connection.
    for each in document.__subclasses__():
        each._disconnect()
        _forget_collections(each)


def async_database(settings: ServiceSettings) -> AsyncDatabase[dict[str, Any]]:
    """The service's database through a client of its own for the running event loop; connects at first use.

    Close it with `await database.client.close()`.
    """
    renewal = Renewal(settings.mongo_uri_file)
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
        settings.mongo_uri, **renewal.options(_client_options(settings))
    )
    renewal.attach(client)
    return CountedDatabase(client, settings.mongo_database, service=settings.service)


class Aggregate(mongoengine.Document):
    """A document that is changed as a whole, under optimistic concurrency, together with the events it
    causes.

    Subclasses add fields, `resource_collection` for error messages, and indexes in `meta` (these are added to
    ours). Write only through `insert_aggregate`, `create_once`, `update_aggregate` and `delete_aggregate`:
    `save()` and `delete()` would bypass version and outbox.
    """

    meta: ClassVar[dict[str, Any]] = {
        "abstract": True,
        "auto_create_index": False,
        "index_cls": False,
        # A newer release may have added fields: they are kept, not refused.
        "strict": False,
        "indexes": [
            {"fields": ["request_key"], "unique": True, "sparse": True, "name": "request_key"},
            {"fields": ["outbox_since"], "sparse": True, "name": "outbox_since"},
        ],
    }
    #: First part of the resource name: "customers".
    resource_collection: ClassVar[str] = ""
    #: Whether the events of one aggregate go out one after another; False where each stands for itself, as in
    #: a document that carries those of many aggregates written in bulk.
    outbox_ordered: ClassVar[bool] = True
    #: Whether the document is nothing but its outbox: the relay removes it when that is empty, whoever
    #: emptied it.
    outbox_only: ClassVar[bool] = False

    id = StringField(primary_key=True, max_length=128)
    #: Starts at 1, +1 with every write; the etag.
    version = IntField(min_value=1, default=1)
    #: Events not published yet, oldest first: {"id": event id, "event": the envelope in JSON}.
    outbox = ListField(DictField())
    #: Real time of the oldest pending event; absent when there is none.
    outbox_since = DateTimeField()
    #: Key of the create call that made this; absent when it had no request_id.
    request_key = StringField()
    #: Digest of what that call asked.
    request_fingerprint = StringField()
    #: Business time.
    created_at = DateTimeField()
    updated_at = DateTimeField()

    @property
    def resource(self) -> str:
        """The full resource name, for errors."""
        return f"{self.resource_collection or self._get_collection_name()}/{self.id}"

    @property
    def etag(self) -> str:
        """The etag of the version held in memory."""
        return etag(self.version)


AggregateType = TypeVar("AggregateType", bound=Aggregate)


def etag(version: int) -> str:
    """A version as clients see it."""
    return f"v{version}"


def parse_etag(field: str, etag: str) -> int | None:
    """The version in an etag, None for "" (no condition); InvalidArgument(field) for anything else."""
    if not etag:
        return None
    match = _ETAG.fullmatch(etag)
    if match is None:
        raise InvalidArgument(field=field, why="is not an etag that this service gave out")
    return int(match.group(1))


def pending_entry(event: PendingEvent) -> dict[str, Any]:
    """An event as it waits in `outbox`."""
    body = event.to_json()
    return {"id": event.id, "event": body.decode() if isinstance(body, bytes) else body}


def _collection(doc_or_class: Any) -> Collection[dict[str, Any]]:
    collection: Collection[dict[str, Any]] = doc_or_class._get_collection()
    return collection.with_options(write_concern=_MAJORITY)


def _already_exists(doc: Aggregate, error: DuplicateKeyError) -> AlreadyExists:
    pattern = (error.details or {}).get("keyPattern") or {}
    return AlreadyExists(resource=doc.resource, conflict=",".join(pattern) or "_id")


def insert_aggregate(
    doc: Aggregate,
    events: Sequence[PendingEvent] = (),
    request_key: str | None = None,
    *,
    fingerprint: str | None = None,
    now: datetime | None = None,
) -> None:
    """Writes a new aggregate as version 1 with its events. `now` is business time; the process's clock by
    default.

    AlreadyExists when its id or another unique value is taken; the error's `values["conflict"]` names the
    index's fields ("_id", "request_key", ...). mongoengine.ValidationError for a document that breaks its own
    schema.
    """
    doc.version = 1
    doc.request_key = request_key
    doc.request_fingerprint = fingerprint if request_key else None
    doc.created_at = doc.created_at or now or _clock.now()
    doc.updated_at = doc.created_at
    doc.outbox = [pending_entry(event) for event in events]
    doc.outbox_since = datetime.now(UTC) if events else None
    doc.validate()
    try:
        _collection(doc).insert_one(doc.to_mongo())
    except DuplicateKeyError as error:
        raise _already_exists(doc, error) from None
    doc._created = False


def find_repeat(
    cls: type[AggregateType], request_key: str | None, fingerprint: str | None
) -> AggregateType | None:
    """What an earlier call with this key created, if any; RequestIdReused when that call asked for something
    else.
    """
    if request_key is None:
        return None
    found: AggregateType | None = cls.objects(request_key=request_key).first()
    if found is not None:
        check_repeat(found.request_fingerprint, fingerprint)
    return found


def create_once(
    doc: AggregateType,
    events: Sequence[PendingEvent] = (),
    *,
    request_key: str | None,
    fingerprint: str | None = None,
    now: datetime | None = None,
) -> tuple[AggregateType, bool]:
    """Inserts, or returns what an earlier call with this request key created: (document, whether it was
    created now).

    Two calls at once with one key create one aggregate. AlreadyExists and RequestIdReused as above.
    """
    earlier = find_repeat(type(doc), request_key, fingerprint)
    if earlier is not None:
        return earlier, False
    try:
        insert_aggregate(doc, events, request_key, fingerprint=fingerprint, now=now)
        return doc, True
    except AlreadyExists:
        # The repeat may have won on any unique index, its own id included.
        earlier = find_repeat(type(doc), request_key, fingerprint)
        if earlier is None:
            raise
        return earlier, False


def _change(doc: Aggregate, events: Sequence[PendingEvent], version: int) -> dict[str, Any]:
    """The update that turns the stored document into `doc`: events are appended, so the relay's pulls are
    never undone.
    """
    data = doc.to_mongo()
    declared = set(type(doc)._db_field_map.values())
    values = {key: value for key, value in data.items() if key not in _MANAGED}
    update: dict[str, Any] = {"$set": {**values, "version": version}}
    if gone := declared - set(data) - _MANAGED:
        update["$unset"] = dict.fromkeys(sorted(gone), "")
    if events:
        update["$push"] = {"outbox": {"$each": [pending_entry(event) for event in events]}}
        update["$min"] = {"outbox_since": datetime.now(UTC)}
    return update


def update_aggregate(
    doc: Aggregate,
    events: Sequence[PendingEvent] = (),
    expected_version: int | None = None,
    *,
    now: datetime | None = None,
) -> None:
    """Saves a changed aggregate with its events in one write, if nobody changed it since it was loaded.

    `expected_version` is the caller's etag (None when it gave none) and must be the loaded version. On
    success `doc.version` is the new one. EtagMismatch when it was changed meanwhile (reload and repeat, see
    `retry_conflicts`), NotFound when it is gone, AlreadyExists when a unique value is taken, OutboxFull when
    the relay is far behind.
    """
    if expected_version is not None and expected_version != doc.version:
        raise EtagMismatch(resource=doc.resource)
    loaded = doc.version
    doc.updated_at = now or _clock.now()
    doc.validate()
    condition: dict[str, Any] = {"_id": doc.id, "version": loaded}
    if events:
        condition[f"outbox.{max(0, OUTBOX_EVENTS_MAX - len(events))}"] = {"$exists": False}
    try:
        result = _collection(doc).update_one(condition, _change(doc, events, loaded + 1))
    except DuplicateKeyError as error:
        raise _already_exists(doc, error) from None
    except WriteError as error:
        if error.code in TOO_LARGE and _collection(doc).find_one(
            {"_id": doc.id, "outbox.0": {"$exists": True}}
        ):
            # Fewer events than it may hold, and larger ones: it is they that take the room.
            raise _outbox_full(doc) from None
        raise
    if result.matched_count == 0:
        raise _missed(doc, loaded)
    doc.version = loaded + 1


def _outbox_full(doc: Aggregate) -> OutboxFull:
    return OutboxFull(resource=doc.resource, why="the message broker is behind", retry_seconds=5.0)


def _missed(doc: Aggregate, loaded: int) -> Exception:
    """Why a conditional write met no document."""
    found = _collection(doc).find_one({"_id": doc.id}, {"version": 1})
    if found is None:
        return NotFound(resource=doc.resource)
    if found.get("version") != loaded:
        return EtagMismatch(resource=doc.resource)
    return _outbox_full(doc)


def delete_aggregate(cls: type[Aggregate], id: str, version: int) -> None:
    """Removes an aggregate as it was loaded, once its events are published: with it they would be lost.

    EtagMismatch when it was changed meanwhile, NotFound when it is gone, EventsWaiting when the relay is far
    behind.
    """
    collection, give_up = _collection(cls), time.monotonic() + TELLING_SECONDS_MAX
    silent = {"_id": id, "version": version, "outbox.0": {"$exists": False}}
    resource = f"{cls.resource_collection or cls._get_collection_name()}/{id}"
    while not collection.delete_one(silent).deleted_count:
        found = collection.find_one({"_id": id}, {"version": 1})
        if found is None:
            raise NotFound(resource=resource)
        if found.get("version") != version:
            raise EtagMismatch(resource=resource)
        if time.monotonic() >= give_up:
            raise EventsWaiting(resource=resource, why="the message broker is behind", retry_seconds=5.0)
        time.sleep(TELLING_LOOK_SECONDS)


Result = TypeVar("Result")


def retry_conflicts(use_case: Callable[[], Result], attempts: int = CONFLICT_ATTEMPTS_MAX) -> Result:
    """Runs a load-decide-save function again while another writer gets in between; for calls without an etag.

    The last EtagMismatch is raised after `attempts` runs.
    """
    for _ in range(attempts - 1):
        try:
            return use_case()
        except EtagMismatch:
            continue
    return use_case()


def clashes(error: BulkWriteError) -> dict[int, dict[str, Any]]:
    """Of an unordered bulk write, those that met a unique value of another: place -> what the server said.
    Raises the error when anything else went wrong, and DatabaseUnavailable when it is not known whether a
    majority has the others.
    """
    if error.details.get("writeConcernErrors"):
        raise _unavailable(error) from None
    failures = error.details.get("writeErrors", [])
    if any(failure.get("code") != DUPLICATE_KEY for failure in failures):
        raise error
    return {failure["index"]: failure for failure in failures}


def outbox_pull(event_ids: Iterable[str]) -> list[dict[str, Any]]:
    """The update that removes published events from an outbox; the last one takes `outbox_since` along.
    Repeatable, and what was appended meanwhile stays.
    """
    left = {"$filter": {"input": "$outbox", "cond": {"$not": {"$in": ["$$this.id", list(event_ids)]}}}}
    since = {"$cond": [{"$eq": [{"$size": "$outbox"}, 0]}, "$$REMOVE", "$outbox_since"]}
    return [{"$set": {"outbox": left}}, {"$set": {"outbox_since": since}}]


def ensure_indexes(documents: Iterable[type[mongoengine.Document]]) -> None:
    """Creates missing indexes; StartError when one exists with other options, or of what there may be one
    there are two.
    """
    for document in documents:
        try:
            document.ensure_indexes()
        except OperationFailure as error:
            why = shorten(str(error))
            if error.code == DUPLICATE_KEY:
                # Of which value is not said: it may be a person's.
                fields = ", ".join((error.details or {}).get("keyPattern") or ())
                why = f"two documents have the same {fields}: change one of them"
            raise StartError(f"MongoDB: indexes of {document._get_collection_name()}: {why}") from None
