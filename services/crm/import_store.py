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
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

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


def event_id(origin: str) -> str:
    """The id of the event of a row's creation, the same however often the row is applied."""
    return f"import:{origin}" if len(origin) <= _ORIGIN_CHARACTERS_MAX else stable_id("import", origin)


def ready_document(new: NewCustomer, *, told: bool = True) -> dict[str, Any]:
    """A new customer as it lies in MongoDB, made without the mapper's objects: they cost more than all the
    rest of an import together. `told` False: its events lie elsewhere.
    """
    customer = new.change.customer
    values: dict[str, Any] = {
        "_id": customer.id,
        "version": 1,
        "request_key": new.request_key,
        "request_fingerprint": new.fingerprint if new.request_key else None,
        "created_at": customer.create_time,
        "updated_at": customer.update_time,
        **docs.customer_fields(customer),
        **docs.wire_fields(new.wire),
        "origin": new.origin or None,
        "audit": [docs.audit_fields(new.change.audit)],
    }
    if told and new.events:
        values["outbox"] = [pending_entry(event) for event in new.events]
        values["outbox_since"] = datetime.now(UTC)
    return {name: value for name, value in values.items() if value is not None}


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

    def ready(self, new: NewCustomer) -> NewCustomer:
        return replace(new, ready=ready_document(new, told=False))

    def import_many(self, new: Sequence[NewCustomer]) -> list[Customer | CallmeshError]:
        batches = [_Batch(entries) for entries in _entries(new)]
        for batch in batches:
            batch.open()
        clashed = insert_ready([item.ready or ready_document(item, told=False) for item in new])
        before = self._stored_before([new[index] for index in clashed])
        outcomes: list[Customer | CallmeshError] = [
            self._outcome(item)
            if index in clashed and item.change.customer.id not in before
            else item.change.customer
            for index, item in enumerate(new)
        ]
        failed = {
            event_id(item.origin)
            for item, outcome in zip(new, outcomes, strict=True)
            if isinstance(outcome, CallmeshError) or before.get(item.change.customer.id) is State.ERASED
        }
        for batch in batches:
            batch.close(failed)
        return outcomes

    def _stored_before(self, met: Sequence[NewCustomer]) -> dict[str, State]:
        """Customers that the same row made, when it was applied before, and how they stand."""
        if not met:
            return {}
        origins = {item.change.customer.id: item.origin for item in met}
        found = _customers().find({"_id": {"$in": list(origins)}}, {"origin": 1, "state": 1})
        return {raw["_id"]: State(raw["state"]) for raw in found if raw.get("origin") == origins[raw["_id"]]}

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


def _entries(new: Sequence[NewCustomer]) -> Iterator[list[dict[str, Any]]]:
    """What the rows tell, in documents that are not too large."""
    entries: list[dict[str, Any]] = []
    size = 0
    for item in new:
        for event in item.events:
            entry = {**pending_entry(event), "customer": item.change.customer.id}
            size += len(entry["event"].encode())
            if size > EVENTS_BYTES_MAX and entries:
                yield entries
                entries, size = [], len(entry["event"].encode())
            entries.append(entry)
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
