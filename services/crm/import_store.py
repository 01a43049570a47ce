"""The part of the MongoDB store that imports need; see `crm.store.Store`.

Half a million customers come in at once, so nothing here is done one by one. What a batch of rows tells the
others does not lie in its customers, from which each event would have to be taken off again by a write of its
own, but together in one document beside them (`ImportedDocument`):

1. It is written first, open: the relay does not see it yet.
2. The customers are inserted in one unordered write.
3. It is closed: without the events of rows that failed, to be relayed and removed.

A process that dies in between leaves it open. Whoever resumes the import writes another for the same rows; if
nobody does, the worker closes it for the customers that exist (`finish_imports`). An event's id follows from
its row, so what is told twice is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError
from pymongo.write_concern import WriteConcern

from chassis.errors import CallmeshError
from chassis.ids import new_id, stable_id
from chassis.mongo import clashes, pending_entry
from crm import documents as docs
from crm.model import Customer, State

if TYPE_CHECKING:
    from crm.store import NewCustomer

#: Largest document of events, bytes; a batch with more makes several.
EVENTS_BYTES_MAX = 4 * 1024 * 1024
#: Batches closed in one round of `finish_imports`.
FINISH_MAX = 50
#: Longest origin that is readable in an event's id.
_ORIGIN_CHARACTERS_MAX = 100

_MAJORITY = WriteConcern(w="majority")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRow:
    """A customer that a row of a file makes: what of a `NewCustomer` is written, and nothing else."""

    #: Its first version.
    customer: Customer
    #: The event of its creation.
    told: str
    #: As of `NewCustomer`.
    wire: bytes
    #: As of `NewCustomer`, never "".
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyRow:
    """A `NewRow` as `Store.ready` leaves it, in the room of a few texts: thousands wait for their writer, and
    objects that wait are what the garbage collector looks at.
    """

    #: The customer's id.
    id: str
    #: As of `NewRow`.
    told: str
    #: As of `NewRow`.
    origin: str
    #: What is stored, in the store's own form.
    kept: Any


def event_id(origin: str) -> str:
    """The id of the event of a row's creation, the same however often the row is applied."""
    return f"import:{origin}" if len(origin) <= _ORIGIN_CHARACTERS_MAX else stable_id("import", origin)


def ready_document(new: NewCustomer) -> dict[str, Any]:
    """A new customer as it lies in MongoDB, made without the mapper's objects: they cost more than all the
    rest of a list of them.
    """
    document = _document(new.change.customer, new.wire, docs.audit_fields(new.change.audit))
    if new.request_key is not None:
        document["request_key"] = new.request_key
        if new.fingerprint is not None:
            document["request_fingerprint"] = new.fingerprint
    if new.origin:
        document["origin"] = new.origin
    if new.events:
        document["outbox"] = [pending_entry(event) for event in new.events]
        document["outbox_since"] = datetime.now(UTC)
    return document


def _document(born: Customer, wire: bytes, audit: dict[str, Any]) -> dict[str, Any]:
    """What every new customer has."""
    document = {
        "_id": born.id,
        "version": 1,
        "created_at": born.create_time,
        "updated_at": born.update_time,
        **docs.customer_present(born),
        "audit": [audit],
    }
    for name, value in docs.wire_fields(wire).items():
        if value is not None:
            document[name] = value
    return document


def insert_ready(documents: Sequence[Mapping[str, Any]]) -> set[int]:
    """Inserts customers; the places of those that met a unique value of another. DatabaseUnavailable and
    pymongo's errors when it is not known what became of them.
    """
    if not documents:
        return set()
    try:
        _customers().insert_many(documents, ordered=False)
    except BulkWriteError as error:
        return set(clashes(error))
    return set()


def _customers() -> Any:
    return docs.CustomerDocument._get_collection().with_options(write_concern=_MAJORITY)


def _imported() -> Any:
    return docs.ImportedDocument._get_collection().with_options(write_concern=_MAJORITY)


class MongoImportStore:
    """Mixed into `crm.store.MongoStore`."""

    #: Inserts one customer the long way, which finds out what is in its way.
    _outcome: Callable[[NewCustomer], Customer | CallmeshError]

    def ready(self, row: NewRow) -> ReadyRow:
        document = _document(row.customer, row.wire, docs.first_audit(row.customer))
        document["origin"] = row.origin
        # As bytes at once, while all of it is at hand in the processor.
        return ReadyRow(id=row.customer.id, told=row.told, origin=row.origin, kept=bson.encode(document))

    def import_many(
        self, rows: Sequence[ReadyRow], again: Callable[[int], NewCustomer]
    ) -> list[CallmeshError | None]:
        batches = [_Batch(entries) for entries in _entries(rows)]
        for batch in batches:
            batch.open()
        clashed = insert_ready([RawBSONDocument(row.kept) for row in rows])
        before = self._stored_before([rows[place] for place in clashed])
        faults: list[CallmeshError | None] = [None] * len(rows)
        for place in sorted(clashed):
            if rows[place].origin not in before:
                faults[place] = self._fault(place, again)
        failed = {
            event_id(row.origin)
            for row, fault in zip(rows, faults, strict=True)
            if fault is not None or before.get(row.origin) is State.ERASED
        }
        for batch in batches:
            batch.close(failed)
        return faults

    def _fault(self, place: int, again: Callable[[int], NewCustomer]) -> CallmeshError | None:
        """What is in the way of a row; None when it is no longer there, and the row is stored."""
        try:
            outcome = self._outcome(again(place))
        except CallmeshError as error:
            # What is declared may have changed since.
            return error
        return outcome if isinstance(outcome, CallmeshError) else None

    def _stored_before(self, met: Sequence[ReadyRow]) -> dict[str, State]:
        """Rows that were stored when they were applied before, by their origin, and how their customers
        stand.
        """
        if not met:
            return {}
        origins = {row.origin for row in met}
        found = _customers().find({"_id": {"$in": list({row.id for row in met})}}, {"origin": 1, "state": 1})
        return {raw["origin"]: State(raw["state"]) for raw in found if raw.get("origin") in origins}

    def finish_imports(self, older_than: datetime) -> int:
        left = list(_imported().find({"opened": {"$lt": older_than}}).sort("opened", 1).limit(FINISH_MAX))
        for raw in left:
            entries = raw["outbox"]
            found = _customers().find(
                {"_id": {"$in": [entry["customer"] for entry in entries]}}, {"origin": 1, "state": 1}
            )
            told = {
                event_id(customer["origin"])
                for customer in found
                if customer.get("origin") and customer["state"] != State.ERASED.value
            }
            _Batch(entries, raw["_id"]).close({entry["id"] for entry in entries} - told, again=False)
        return len(left)

    def _scrub_imported(self, origin: str) -> None:
        """Takes what is not told yet of an erased customer out of the batch that it came in. A batch that is
        empty then is removed by the relay, or where it is open by whoever finishes it.
        """
        id = event_id(origin)
        for waits in ("outbox_since", "opened"):
            _imported().update_many(
                {waits: {"$exists": True}, "outbox.id": id}, {"$pull": {"outbox": {"id": id}}}
            )


def _entries(rows: Sequence[ReadyRow]) -> Iterator[list[dict[str, Any]]]:
    """What the rows tell, in documents that are not too large."""
    entries: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        more = len(row.told.encode())
        size += more
        if size > EVENTS_BYTES_MAX and entries:
            yield entries
            entries, size = [], more
        entries.append({"id": event_id(row.origin), "event": row.told, "customer": row.id})
    if entries:
        yield entries


class _Batch:
    """What a batch of rows tells the others."""

    def __init__(self, entries: list[dict[str, Any]], id: str = "") -> None:
        self._entries = entries
        self._id = id or new_id()

    def open(self) -> None:
        """Written down, and not told yet."""
        _imported().insert_one(
            {"_id": self._id, "version": 1, "outbox": self._entries, "opened": datetime.now(UTC)}
        )

    def close(self, failed: set[str], *, again: bool = True) -> None:
        """To be told, but for the events of rows that failed. `again`: if somebody else has closed it in
        between, who may not have seen all of its customers, everything is told once more.
        """
        mine = [entry["id"] for entry in self._entries]
        gone = [id for id in mine if id in failed]
        still_open = {"_id": self._id, "opened": {"$exists": True}}
        if len(gone) == len(mine):
            _imported().delete_one(still_open)
            return
        change: dict[str, Any] = {"$set": {"outbox_since": datetime.now(UTC)}, "$unset": {"opened": ""}}
        if gone:
            change["$pull"] = {"outbox": {"id": {"$in": gone}}}
        if not _imported().update_one(still_open, change).matched_count and again:
            told = [entry for entry in self._entries if entry["id"] not in failed]
            _imported().insert_one(
                {"_id": new_id(), "version": 1, "outbox": told, "outbox_since": datetime.now(UTC)}
            )
