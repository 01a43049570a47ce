"""Where customers and interactions are kept: two ports, each with a MongoDB and a memory implementation.

`Store` is blocking (writes, and what writes must see); `Reads` is asynchronous (what agents wait for). Both
say what they do on failure; a store that cannot be reached raises `chassis.mongo.DatabaseUnavailable` through
the chassis's translation, and nothing is half written: every write is one document, or idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from bson.regex import Regex
from pymongo import InsertOne, UpdateOne
from pymongo.errors import AutoReconnect, BulkWriteError, DuplicateKeyError
from pymongo.write_concern import WriteConcern

from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, NotFound, Unavailable
from chassis.mongo import (
    PendingEvent,
    clashes,
    create_once,
    find_repeat,
    pending_entry,
    update_aggregate,
)
from crm import bounded, engine, timeline
from crm import documents as docs
from crm.bounded import READ_MS_MAX
from crm.coalesce import Coalescer
from crm.import_store import MongoImportStore, NewRow, ReadyRow, insert_ready, ready_document
from crm.model import (
    AuditEntry,
    Churn,
    Customer,
    CustomerFilter,
    CustomField,
    Entry,
    Glance,
    Interaction,
    InteractionKind,
    Merge,
    OfferRanking,
    RecentCalls,
    Reminder,
    State,
    TimelineFilter,
)
from crm.saga_store import MongoSagaStore

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: Calls and tickets of one subject are counted no further.
COUNT_MAX = 1000
#: Open tickets that are looked at to find the most urgent.
OPEN_TICKETS_READ_MAX = 200
#: Calls that a screen pop reads to find the last and count today's; only with more is the database asked to
#: count.
POP_CALLS_READ_MAX = 20
#: Reminders of a screen pop.
POP_REMINDERS_MAX = 5
#: Customers looked up in one round trip: by id, by claim (whose owners' other claims come along).
SHOWN_BATCH_MAX, OWNERS_BATCH_MAX = 64, 32
#: Merges below one customer, deep.
LINEAGE_DEPTH_MAX = 20
#: Customers with what was typed that are looked at for what else they must have: a beginning that half of
#: all share would take longer than anybody waits, however few of them fit.
SEARCH_READ_MAX = 50_000
#: Milliseconds that a search may take.
SEARCH_MS_MAX = 1500
#: Tries of an insert whose claim was freed by its owner in the same moment.
CLAIM_TRIES_MAX = 3

_MAJORITY = WriteConcern(w="majority")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewCustomer:
    """One customer to be inserted."""

    #: As decided by `engine.create`.
    change: engine.Change
    #: What it tells the others.
    events: Sequence[PendingEvent] = ()
    #: Of the create call; None when it had no request_id.
    request_key: str | None = None
    #: Digest of what that call asked.
    fingerprint: str | None = None
    #: The answer of GetCustomer, ready; b"" none.
    wire: bytes = b""
    #: Which row of which import made it; "" none.
    origin: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GlanceWish:
    """What a screen pop asks for."""

    #: Keys of the timelines.
    subjects: Sequence[str]
    #: First instant of today, business ms.
    day_start_ms: int
    #: Id of the live call's interaction.
    live_call: str
    #: The customer's id; "" not known.
    customer: str = ""


class Store(Protocol):
    """The blocking side."""

    def customer(self, id: str) -> Customer | None:
        """The customer in whatever state; None when there is none."""

    def owners(self, claims: Iterable[str]) -> dict[str, str]:
        """Claim -> id of the live customer who owns it; claims that nobody owns are left out."""

    def insert(self, new: NewCustomer) -> Customer:
        """Stores a new customer, or answers what an earlier call with its request key created.

        AlreadyExists for a taken id, engine.ClaimTaken for a claim of another, RequestIdReused. Of two at
        once that claim the same, one wins.
        """

    def insert_many(self, new: Sequence[NewCustomer]) -> list[Customer | CallmeshError]:
        """Each as by `insert`, in order, with the error where one failed."""

    def created_by_request(self, request_key: str | None, fingerprint: str | None) -> Customer | None:
        """What an earlier call with this key created. RequestIdReused."""

    def ready(self, row: NewRow) -> ReadyRow:
        """With all that can be done for its `import_many` beforehand: whoever writes has less to do."""

    def import_many(
        self, rows: Sequence[ReadyRow], again: Callable[[int], NewCustomer]
    ) -> list[CallmeshError | None]:
        """As `insert_many`, for rows of a file (`origin`, from which the id of the one event follows): one
        that was stored before counts as stored, and what all of them tell lies together. What is left behind
        by a process that died here is told by `finish_imports`. The fault of each row, None for a good one;
        `again` decides one again, by its place, when it meets another's id or claim.
        """

    def finish_imports(self, older_than: datetime) -> int:
        """Tells the others of customers whose import was broken off before it could; how many batches."""

    def existing(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that are taken."""

    def save(
        self,
        change: engine.Change,
        events: Sequence[PendingEvent],
        *,
        wire: bytes = b"",
        erase_pending: bool = False,
    ) -> None:
        """Stores the next version. EtagMismatch when the stored one is not the version before, NotFound when
        it is gone, engine.ClaimTaken for a claim of another. `erase_pending`: see `Store.erase_pending`.
        """

    def audit(self, id: str, before_version: int | None, limit: int) -> list[AuditEntry]:
        """A customer's changes, newest first, below a version; [] for a customer that does not exist."""

    def entry(self, id: str) -> Entry | None:
        """An interaction; None when there is none."""

    def save_entry(self, entry: Entry, events: Sequence[PendingEvent] = ()) -> bool:
        """Stores an interaction read at `entry.revision` (0: new). False when somebody else wrote meanwhile:
        nothing is stored, read again.
        """

    def entries(self, ids: Iterable[str]) -> dict[str, Entry]:
        """Those of the interactions that exist, by id."""

    def save_entries(self, entries: Sequence[Entry]) -> set[str]:
        """Each as by `save_entry`; the ids of those where it would answer False."""

    def subjects_with_history(self, subjects: Iterable[str]) -> set[str]:
        """Those of the subjects with whom some interaction lies."""

    def attach(self, number: str, customer_id: str) -> int:
        """Moves the interactions that lie with a number to a customer; answers how many. Idempotent."""

    def ranking(self, subject: str) -> OfferRanking:
        """What was last ranked for a subject; an empty ranking when nothing was."""

    def save_ranking(self, ranking: OfferRanking) -> bool:
        """Stores a ranking read at `ranking.revision`. False as in `save_entry`."""

    def forget_ranking(self, subject: str) -> None:
        """Removes what was last ranked for a subject. Idempotent."""

    # Custom fields

    def custom_fields(self) -> dict[str, CustomField]:
        """Every declaration by id, the retired too."""

    def insert_custom_field(self, field: CustomField) -> None:
        """AlreadyExists for a taken id."""

    def save_custom_field(self, field: CustomField) -> None:
        """Stores the next version. EtagMismatch, NotFound."""

    # Merges and erasure

    def standing(self, id: str) -> tuple[State, str] | None:
        """(state, merged_into) of a customer; None when there is none."""

    def standings(self, ids: Iterable[str]) -> dict[str, tuple[State, str]]:
        """As `standing`, of those that exist."""

    def move_subject(self, from_id: str, to_id: str) -> int:
        """Shows everything of one customer with another, remembering whose it is; how many. Idempotent."""

    def return_subjects(self, from_id: str, to_id: str, owners: Sequence[str]) -> int:
        """Shows what is any of the `owners`' with `to_id` again in place of `from_id`; how many.
        Idempotent.
        """

    def moved_count(self, survivor: str, owners: Sequence[str]) -> int:
        """Interactions of the `owners` that are shown with the survivor."""

    def lineage(self, ids: Sequence[str], limit: int) -> list[str]:
        """Everybody who was merged into any of the customers, through however many merges."""

    def insert_merge(self, merge: Merge, request_key: str | None, fingerprint: str | None) -> Merge:
        """Journals a merge, or answers the earlier one of its request key. AlreadyExists when one of its
        customers takes part in a running merge; RequestIdReused.
        """

    def merge(self, id: str) -> Merge | None:
        """A merge; None when there is none."""

    def merge_by_request(self, request_key: str | None, fingerprint: str | None) -> Merge | None:
        """What an earlier call with this key began. RequestIdReused."""

    def merges(self, customer: str, before: str | None, limit: int) -> list[Merge]:
        """Newest first, below an id; of one customer, or of all for ""."""

    def merge_running(self, customer: str) -> bool:
        """Whether the customer takes part in a running merge."""

    def save_merge(self, merge: Merge, events: Sequence[PendingEvent]) -> Merge:
        """Stores a merge read at `merge.version`; answers it with the next. EtagMismatch, NotFound;
        AlreadyExists when it is to run and another runs.
        """

    def unfinished_merges(self, limit: int) -> list[Merge]:
        """Those that run, or whose driver died."""

    def scrub(self, id: str) -> None:
        """Removes what tells of an erased person from everything but the customer's own record: audit values,
        interactions, rankings, merges, care. Idempotent.
        """

    def erased(self, id: str) -> None:
        """Notes that nothing is left to scrub."""

    def erase_pending(self, limit: int) -> list[Customer]:
        """Erased customers of whom something may be left."""

    # Care and churn

    def churn(self, customer: str) -> Churn | None:
        """What is known of a customer's leaving; None when nothing is."""

    def save_churn(self, churn: Churn, events: Sequence[PendingEvent], *, clean: bool = False) -> bool:
        """Stores what was read at `churn.revision`; False as in `save_entry`. `clean`: it was scored now."""

    def mark_churn(self, *customers: str) -> None:
        """Notes that something happened that is to be scored."""

    def forget_churn(self, customer: str) -> None:
        """Removes what is known of a customer's (or, by its subject, a number's) leaving. Idempotent."""


class Reads(Protocol):
    """The asynchronous side."""

    async def customer(self, id: str) -> Customer | None:
        """The customer in whatever state; None when there is none."""

    async def customers(self, ids: Sequence[str]) -> dict[str, Customer]:
        """Those of the customers that exist, by id."""

    async def owner(self, claim: str) -> Customer | None:
        """The live customer who owns a claim; None when nobody does."""

    async def shown(self, id: str) -> bytes | Customer | None:
        """The customer as an answer that is ready, or as it is kept; None when there is none."""

    async def shown_owner(self, claim: str) -> bytes | Customer | None:
        """As `shown`, of the live customer who owns a claim."""

    async def lineage(self, ids: Sequence[str], limit: int) -> list[str]:
        """As `Store.lineage`."""

    async def search(
        self, starts: Sequence[Sequence[str]], which: CustomerFilter, limit: int
    ) -> list[Customer]:
        """Customers that have, for each group, a term that begins with one of it; in no order."""

    async def sharing(self, terms: Sequence[str], limit: int) -> list[Customer]:
        """Live customers that have one of the terms (or one that begins with it, where it ends with "@")."""

    async def glance(self, wanted: GlanceWish) -> Glance:
        """Everything of a screen pop below the customer, in one question."""

    async def care(self, customer: str) -> tuple[Reminder, ...]:
        """Open reminders, the earliest first."""

    async def churn(self, customer: str) -> Churn | None:
        """What is known of a customer's leaving; None when nothing is."""

    async def page(
        self, which: CustomerFilter, after: str | None, limit: int
    ) -> tuple[list[Customer], str | None]:
        """(customers in the order of ids, behind `after`; what to go on behind, None at the end): fewer than
        the limit, or none, where hardly anybody fits.
        """

    async def interaction(self, id: str) -> Interaction | None:
        """An interaction; None when there is none."""

    async def timeline(
        self, subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        """Interactions of any of the subjects, newest first by (began_ms, id), behind the key `after`."""

    async def interactions(
        self, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> tuple[list[Interaction], tuple[int, str] | None]:
        """As `page`, of everybody's interactions: oldest first by (began_ms, id), behind the key `after`."""

    async def recent_calls(self, subjects: Sequence[str], day_start_ms: int, live_call: str) -> RecentCalls:
        """How many calls began since `day_start_ms` (counted to `COUNT_MAX`) and the latest; the interaction
        with the id `live_call` is not among them.
        """

    async def open_tickets(self, subjects: Sequence[str]) -> tuple[tuple[Interaction, ...], int]:
        """The most urgent open tickets, and how many are open (counted to `COUNT_MAX`)."""

    async def rankings(self, subjects: Sequence[str]) -> tuple[OfferRanking, ...]:
        """What was last ranked for the subjects."""


# MongoDB ----------------------------------------------------------------------------------------------------
# ---------


def _document(new: NewCustomer) -> docs.CustomerDocument:
    customer = new.change.customer
    return docs.CustomerDocument(
        id=customer.id,
        created_at=customer.create_time,
        origin=new.origin or None,
        audit=[docs.audit_fields(new.change.audit)],
        **docs.customer_fields(customer),
        **docs.wire_fields(new.wire),
    )


def _interactions() -> Any:
    return docs.InteractionDocument._get_collection().with_options(write_concern=_MAJORITY)


def _entry_document(entry: Entry, events: Sequence[PendingEvent], now: datetime) -> dict[str, Any]:
    """A new interaction as it lies in MongoDB. Without the mapper's objects, as below: checking every facet
    of every event would take most of the worker's time.
    """
    kept = {name: value for name, value in docs.entry_fields(entry).items() if value is not None}
    whole = {"_id": entry.id, "version": 1, **kept, "created_at": now, "updated_at": now}
    waiting = [pending_entry(event) for event in events]
    return whole | ({"outbox": waiting, "outbox_since": now} if waiting else {})


def _entry_change(
    entry: Entry, events: Sequence[PendingEvent], now: datetime
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(filter, update) of an interaction read at its revision."""
    fields = docs.entry_fields(entry)
    kept = {name: value for name, value in fields.items() if value is not None}
    change: dict[str, Any] = {"$set": {**kept, "version": entry.revision + 1, "updated_at": now}}
    if gone := [name for name in fields if name not in kept]:
        change["$unset"] = dict.fromkeys(gone, "")
    if events:
        waiting = [pending_entry(event) for event in events]
        change |= {"$push": {"outbox": {"$each": waiting}}, "$min": {"outbox_since": now}}
    return {"_id": entry.id, "version": entry.revision}, change


class MongoStore(MongoSagaStore, MongoImportStore):
    """`Store` on mongoengine's default connection; see `chassis.mongo.connect`."""

    def customer(self, id: str) -> Customer | None:
        raw = self._customers().find_one({"_id": id}, docs.HIDDEN)
        return None if raw is None else docs.customer_from_raw(raw)

    def owners(self, claims: Iterable[str]) -> dict[str, str]:
        wanted = list(claims)
        if not wanted:
            return {}
        found = self._customers().find({"claims": {"$in": wanted}}, {"claims": 1})
        asked = set(wanted)
        return {claim: raw["_id"] for raw in found for claim in raw["claims"] if claim in asked}

    def insert(self, new: NewCustomer) -> Customer:
        for _ in range(CLAIM_TRIES_MAX):
            try:
                doc, _ = create_once(
                    _document(new),
                    new.events,
                    request_key=new.request_key,
                    fingerprint=new.fingerprint,
                    now=new.change.customer.create_time,
                )
                return docs.customer_from_raw(doc.to_mongo())
            except AlreadyExists as error:
                if error.values.get("conflict") != "claims":
                    raise AlreadyExists(resource=new.change.customer.name) from None
                self._raise_claim_taken(new.change.customer)
        raise Unavailable(why="the owner of a claim changes hands", retry_seconds=0.1)

    def created_by_request(self, request_key: str | None, fingerprint: str | None) -> Customer | None:
        found = find_repeat(docs.CustomerDocument, request_key, fingerprint)
        return None if found is None else docs.customer_from_raw(found.to_mongo())

    def insert_many(self, new: Sequence[NewCustomer]) -> list[Customer | CallmeshError]:
        failed = insert_ready([ready_document(item) for item in new])
        # What met another's id, claim or request key goes the long way, which finds out which of them it was.
        return [self._outcome(item) if i in failed else item.change.customer for i, item in enumerate(new)]

    def _outcome(self, new: NewCustomer) -> Customer | CallmeshError:
        try:
            return self.insert(new)
        except CallmeshError as error:
            return error

    def save(
        self,
        change: engine.Change,
        events: Sequence[PendingEvent],
        *,
        wire: bytes = b"",
        erase_pending: bool = False,
    ) -> None:
        customer = change.customer
        doc = docs.CustomerDocument.objects(id=customer.id).first()
        if doc is None:
            raise NotFound(resource=customer.name)
        if doc.version != customer.version - 1:
            raise EtagMismatch(resource=customer.name)
        for name, value in {**docs.customer_fields(customer), **docs.wire_fields(wire)}.items():
            setattr(doc, name, value)
        if erase_pending:
            doc.erase_pending = True
        doc.audit = [*self._make_room(doc), docs.audit_fields(change.audit)]
        try:
            update_aggregate(doc, events, now=customer.update_time)
        except AlreadyExists:
            self._raise_claim_taken(customer)
            raise EtagMismatch(resource=customer.name) from None

    def _make_room(self, doc: docs.CustomerDocument) -> list[dict[str, Any]]:
        """Copies the older half of a full audit trail to its own collection, repeatably, and answers the
        rest. Copied first and dropped by the conditional write after it: a crash between leaves an entry
        twice, never nowhere.
        """
        kept = [dict(item) for item in doc.audit]
        if len(kept) < docs.AUDIT_INSIDE_MAX:
            return kept
        cut = len(kept) // 2
        audit = docs.AuditDocument._get_collection().with_options(write_concern=_MAJORITY)
        for item in kept[:cut]:
            values = {"customer": doc.id, "version": item["version"], "entry": item}
            audit.replace_one({"_id": f"{doc.id}:{item['version']}"}, values, upsert=True)
        return kept[cut:]

    def _raise_claim_taken(self, customer: Customer) -> None:
        error = engine.claim_taken(customer, self.owners(engine.claims(customer)))
        if error is not None:
            raise error

    def existing(self, ids: Iterable[str]) -> set[str]:
        return {raw["_id"] for raw in self._customers().find({"_id": {"$in": list(ids)}}, {"_id": 1})}

    def audit(self, id: str, before_version: int | None, limit: int) -> list[AuditEntry]:
        raw = self._customers().find_one({"_id": id}, {"audit": 1})
        if raw is None:
            return []
        found = {item["version"]: item for item in raw.get("audit", ())}
        below = {} if before_version is None else {"version": {"$lt": before_version}}
        older = docs.AuditDocument._get_collection().find({"customer": id, **below})
        for item in older.sort("version", -1).limit(limit):
            found.setdefault(item["version"], item["entry"])
        wanted = [v for v in sorted(found, reverse=True) if before_version is None or v < before_version]
        return [docs.audit_from_raw(found[version]) for version in wanted[:limit]]

    def entry(self, id: str) -> Entry | None:
        raw = docs.InteractionDocument._get_collection().find_one({"_id": id}, docs.INTERACTION_HIDDEN)
        return None if raw is None else docs.entry_from_raw(raw)

    def entries(self, ids: Iterable[str]) -> dict[str, Entry]:
        wanted = list(ids)
        if not wanted:
            return {}
        found = _interactions().find({"_id": {"$in": wanted}}, docs.INTERACTION_HIDDEN)
        return {raw["_id"]: docs.entry_from_raw(raw) for raw in found}

    def save_entry(self, entry: Entry, events: Sequence[PendingEvent] = ()) -> bool:
        now = datetime.now(UTC)
        if entry.revision:
            return bool(_interactions().update_one(*_entry_change(entry, events, now)).matched_count)
        try:
            _interactions().insert_one(_entry_document(entry, events, now))
        except DuplicateKeyError:
            return False
        return True

    def save_entries(self, entries: Sequence[Entry]) -> set[str]:
        if not entries:
            return set()
        now = datetime.now(UTC)
        # One of another revision than was read does not match, is to be inserted instead, and meets its own
        # id: that tells which it was, as the count of those that matched would not.
        writes = [
            UpdateOne(*_entry_change(entry, (), now), upsert=True)
            if entry.revision
            else InsertOne(_entry_document(entry, (), now))
            for entry in entries
        ]
        try:
            _interactions().bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            return {entries[index].id for index in clashes(error)}
        return set()

    def subjects_with_history(self, subjects: Iterable[str]) -> set[str]:
        wanted = list(subjects)
        return set(_interactions().distinct("subject", {"subject": {"$in": wanted}})) if wanted else set()

    def attach(self, number: str, customer_id: str) -> int:
        collection = docs.InteractionDocument._get_collection().with_options(write_concern=_MAJORITY)
        result = collection.update_many(
            {"subject": timeline.subject_of_number(number)},
            {"$set": {"subject": timeline.subject_of_customer(customer_id)}, "$inc": {"version": 1}},
        )
        return int(result.modified_count)

    def ranking(self, subject: str) -> OfferRanking:
        raw = docs.RankingDocument._get_collection().find_one({"_id": subject})
        return OfferRanking(subject=subject) if raw is None else docs.ranking_from_raw(raw)

    def save_ranking(self, ranking: OfferRanking) -> bool:
        collection = docs.RankingDocument._get_collection().with_options(write_concern=_MAJORITY)
        stored = {**docs.ranking_fields(ranking), "revision": ranking.revision + 1}
        try:
            result = collection.update_one(
                {"_id": ranking.subject, "revision": ranking.revision},
                {"$set": stored},
                upsert=ranking.revision == 0,
            )
        except DuplicateKeyError:
            return False
        return bool(result.matched_count or result.upserted_id is not None)

    def forget_ranking(self, subject: str) -> None:
        collection = docs.RankingDocument._get_collection().with_options(write_concern=_MAJORITY)
        collection.delete_one({"_id": subject})

    def _customers(self) -> Any:
        return docs.CustomerDocument._get_collection().with_options(write_concern=_MAJORITY)


def customer_query(which: CustomerFilter, after: str | None) -> dict[str, Any]:
    """The filter document of a list. Values reach it only as plain strings and enums' own values."""
    query: dict[str, Any] = {} if which.show_deleted else {"state": State.ACTIVE.value}
    if which.tier is not None:
        query["tier"] = which.tier.value
    if which.value_class is not None:
        query["value_class"] = which.value_class.value
    if which.kind is not None:
        query["kind"] = which.kind.value
    plain = {
        "tags": which.tag,
        "account_manager": which.account_manager,
        "company": "" if which.companies_below else which.company,
        "home_region": which.home_region,
    }
    if which.companies_below:
        query["company"] = {"$in": [which.company, *which.companies_below]}
    query.update({name: {"$eq": value} for name, value in plain.items() if value})
    if after is not None:
        query["_id"] = {"$gt": after}
    return query


def timeline_query(
    subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None
) -> dict[str, Any]:
    """The filter document of a timeline's page."""
    query: dict[str, Any] = {"subject": {"$in": list(subjects)}}
    if which.kinds:
        query["kind"] = {"$in": sorted(kind.value for kind in which.kinds)}
    began: dict[str, int] = {}
    if which.from_ms is not None:
        began["$gte"] = which.from_ms
    if which.until_ms is not None:
        began["$lt"] = which.until_ms
    if after is not None:
        # One range that the index can start at, then the rows of the same instant cut by id.
        began["$lte"] = min(after[0], began.get("$lt", after[0]))
        query["$or"] = [{"began_ms": {"$lt": after[0]}}, {"_id": {"$lt": after[1]}}]
    if began:
        query["began_ms"] = began
    return query


def interactions_query(which: TimelineFilter, after: tuple[int, str] | None) -> dict[str, Any]:
    """The filter document of a span of everybody's interactions."""
    began: dict[str, int] = {"$gte": which.from_ms or 0}
    if which.until_ms is not None:
        began["$lt"] = which.until_ms
    query: dict[str, Any] = {"began_ms": began}
    if which.kinds:
        query["kind"] = {"$in": sorted(kind.value for kind in which.kinds)}
    if after is not None:
        began["$gte"] = after[0]
        query["$or"] = [{"began_ms": {"$gt": after[0]}}, {"_id": {"$gt": after[1]}}]
    return query


def calls_query(subjects: Sequence[str], live_call: str, since_ms: int | None = None) -> dict[str, Any]:
    """The filter document of the calls but the live one."""
    query: dict[str, Any] = {
        "subject": {"$in": list(subjects)},
        "kind": InteractionKind.CALL.value,
        "_id": {"$ne": live_call},
    }
    if since_ms is not None:
        query["began_ms"] = {"$gte": since_ms}
    return query


def tickets_query(subjects: Sequence[str]) -> dict[str, Any]:
    """The filter document of the open tickets."""
    return {"subject": {"$in": list(subjects)}, "kind": InteractionKind.TICKET.value, "open": True}


NEWEST = [("began_ms", -1), ("_id", -1)]
_EARLIEST = [("due_ms", 1), ("_id", 1)]
_PARTS = ("calls", "tickets", "rankings", "care", "churn")


def glance_pipeline(wanted: GlanceWish) -> list[dict[str, Any]]:
    """One question for all that a screen pop shows; every part goes along the index that it would alone."""
    subjects = list(wanted.subjects)
    shown: dict[str, Any] = {"$project": dict(docs.POP_HIDDEN)}
    parts: list[dict[str, Any]] = [
        {"$match": calls_query(subjects, wanted.live_call)},
        {"$sort": dict(NEWEST)},
        {"$limit": POP_CALLS_READ_MAX},
        shown,
        {"$set": {"part": "calls"}},
        _union(
            docs.InteractionDocument,
            "tickets",
            [{"$match": tickets_query(subjects)}, {"$limit": OPEN_TICKETS_READ_MAX}, shown],
        ),
        _union(docs.RankingDocument, "rankings", [{"$match": {"_id": {"$in": subjects}}}]),
    ]
    if wanted.customer:
        reminders: list[dict[str, Any]] = [
            {"$match": care_query(wanted.customer)},
            {"$sort": dict(_EARLIEST)},
            {"$limit": POP_REMINDERS_MAX},
        ]
        parts.append(_union(docs.CareTaskDocument, "care", reminders))
        parts.append(_union(docs.ChurnDocument, "churn", [{"$match": {"_id": wanted.customer}}]))
    return parts


def _union(document: Any, part: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    named = [*pipeline, {"$set": {"part": part}}]
    return {"$unionWith": {"coll": document._get_collection_name(), "pipeline": named}}


def _ready_answer(raw: Mapping[str, Any]) -> bytes:
    """The answer kept ready; b"" where there is none, or one of another release."""
    return bytes(raw.get("wire") or b"") if raw.get("wire_version") == docs.WIRE_VERSION else b""


def search_query(starts: Sequence[Sequence[str]], which: CustomerFilter) -> dict[str, Any]:
    """The filter document of a search: for each group a term within the range of one of its beginnings."""
    query = customer_query(which, None)
    query["$and"] = [{"terms": {"$in": [_begins(start) for start in group]}} for group in starts]
    return query


def search_pipeline(
    starts: Sequence[Sequence[str]], which: CustomerFilter, limit: int
) -> list[dict[str, Any]]:
    """A search that looks at a bounded number of customers, along the first group of beginnings."""
    query = search_query(starts, which)
    return [
        {"$match": query["$and"][0]},
        {"$limit": SEARCH_READ_MAX},
        {"$match": query},
        {"$limit": limit},
        {"$project": dict(docs.HIDDEN)},
    ]


def _begins(start: str) -> Regex[str]:
    # As members of one $in, beginnings become ranges of the index; as branches of an $or they would not.
    return Regex("^" + "".join("\\" + c if c in _REGEX_SIGNS else c for c in start))


_REGEX_SIGNS = frozenset(r".^$*+?()[]{}|\\/-#&~ ")


def sharing_query(terms: Sequence[str]) -> dict[str, Any]:
    """The filter document of possible duplicates."""
    alike = {"$in": [_begins(term) if term.endswith("@") else term for term in terms]}
    return {"terms": alike, "state": State.ACTIVE.value}


def care_query(customer: str) -> dict[str, Any]:
    """The filter document of a customer's open reminders."""
    return {"customer": customer, "state": "OPEN"}


class MongoReads:
    """`Reads` on an `AsyncMongoClient`'s database; see `chassis.mongo.async_database`."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._database = database
        self._customers = database[docs.CustomerDocument._get_collection_name()]
        self._interactions = database[docs.InteractionDocument._get_collection_name()]
        self._rankings = database[docs.RankingDocument._get_collection_name()]
        self._tasks = database[docs.CareTaskDocument._get_collection_name()]
        self._churn = database[docs.ChurnDocument._get_collection_name()]
        self._by_id = Coalescer(self._shown_by_id, SHOWN_BATCH_MAX)
        self._by_claim = Coalescer(self._shown_by_claim, OWNERS_BATCH_MAX)

    async def customer(self, id: str) -> Customer | None:
        raw = await self._customers.find_one({"_id": id}, docs.HIDDEN)
        return None if raw is None else docs.customer_from_raw(raw)

    async def customers(self, ids: Sequence[str]) -> dict[str, Customer]:
        found = self._customers.find({"_id": {"$in": list(ids)}}, docs.HIDDEN, max_time_ms=READ_MS_MAX)
        return {raw["_id"]: docs.customer_from_raw(raw) async for raw in found}

    async def owner(self, claim: str) -> Customer | None:
        found = await self._found({"claims": claim}, docs.HIDDEN, 1)
        return docs.customer_from_raw(found[0]) if found else None

    async def shown(self, id: str) -> bytes | Customer | None:
        found = await self._by_id.get(id)
        return await self.customer(id) if found == b"" else found

    async def shown_owner(self, claim: str) -> bytes | Customer | None:
        found = await self._by_claim.get(claim)
        return await self.owner(claim) if found == b"" else found

    async def _shown_by_id(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The ready answers; b"" for a customer that has none."""
        query = {"_id": {"$in": list(ids)}} if len(ids) > 1 else {"_id": ids[0]}
        found = await self._found(query, {"wire": 1, "wire_version": 1}, len(ids))
        return {raw["_id"]: _ready_answer(raw) for raw in found}

    async def _shown_by_claim(self, claims: Sequence[str]) -> dict[str, bytes]:
        query = {"claims": {"$in": list(claims)}} if len(claims) > 1 else {"claims": claims[0]}
        found = await self._found(query, {"wire": 1, "wire_version": 1, "claims": 1}, len(claims))
        asked = set(claims)
        return {claim: _ready_answer(raw) for raw in found for claim in raw["claims"] if claim in asked}

    async def _found(
        self, query: dict[str, Any], projection: Mapping[str, int], limit: int
    ) -> list[dict[str, Any]]:
        """Few customers in one reply. Past the driver's cursors, which cost as much as the question
        itself.
        """
        command = {
            "find": self._customers.name,
            "filter": query,
            "projection": projection,
            "limit": limit,
            "singleBatch": True,
            "batchSize": limit,
            "maxTimeMS": READ_MS_MAX,
        }
        reply = await self._command(command)
        batch: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
        return batch

    async def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        codec = self._customers.codec_options
        try:
            return await self._database.command(command, codec_options=codec)
        except AutoReconnect:
            # A bare command is not repeated by the driver itself, as a find is, when the primary changes.
            return await self._database.command(command, codec_options=codec)

    async def lineage(self, ids: Sequence[str], limit: int) -> list[str]:
        found: list[str] = []
        level = list(ids)
        for _ in range(LINEAGE_DEPTH_MAX):
            below = self._customers.find({"merged_into": {"$in": level}}, {"_id": 1}).limit(limit)
            level = [raw["_id"] async for raw in below]
            found += level
            if not level or len(found) >= limit:
                break
        return found[:limit]

    async def search(
        self, starts: Sequence[Sequence[str]], which: CustomerFilter, limit: int
    ) -> list[Customer]:
        pipeline = search_pipeline(starts, which, limit)
        found = await self._customers.aggregate(pipeline, hint="terms", maxTimeMS=SEARCH_MS_MAX)
        return [docs.customer_from_raw(raw) async for raw in found]

    async def sharing(self, terms: Sequence[str], limit: int) -> list[Customer]:
        if not terms:
            return []
        query = sharing_query(terms)
        found = self._customers.find(query, docs.HIDDEN, max_time_ms=SEARCH_MS_MAX).hint("terms")
        return [docs.customer_from_raw(raw) async for raw in found.limit(limit)]

    async def glance(self, wanted: GlanceWish) -> Glance:
        reply = await self._command(
            {
                "aggregate": self._interactions.name,
                "pipeline": glance_pipeline(wanted),
                "cursor": {"batchSize": 1000},
                "maxTimeMS": READ_MS_MAX,
            }
        )
        parts: dict[str, list[dict[str, Any]]] = {name: [] for name in _PARTS}
        for raw in reply["cursor"]["firstBatch"]:
            parts[raw["part"]].append(raw)
        calls = [docs.interaction_from_raw(raw) for raw in parts["calls"]]
        tickets = [docs.interaction_from_raw(raw) for raw in parts["tickets"]]
        return Glance(
            calls=await self._counted(calls, wanted),
            tickets=tuple(tickets),
            ticket_count=await self._tickets_counted(wanted.subjects, len(tickets)),
            rankings=tuple(docs.ranking_from_raw(raw) for raw in parts["rankings"]),
            care=tuple(docs.reminder_from_raw(raw) for raw in parts["care"]),
            churn=docs.churn_from_raw(parts["churn"][0]) if parts["churn"] else None,
        )

    async def _counted(self, calls: list[Interaction], wanted: GlanceWish) -> RecentCalls:
        today = sum(1 for call in calls if call.began_ms >= wanted.day_start_ms)
        if today == POP_CALLS_READ_MAX:
            query = calls_query(wanted.subjects, wanted.live_call, wanted.day_start_ms)
            today = await self._interactions.count_documents(query, limit=COUNT_MAX)
        return RecentCalls(today=today, last=calls[0] if calls else None)

    async def care(self, customer: str) -> tuple[Reminder, ...]:
        found = self._tasks.find(care_query(customer), max_time_ms=READ_MS_MAX).sort(_EARLIEST)
        return tuple([docs.reminder_from_raw(raw) async for raw in found.limit(POP_REMINDERS_MAX)])

    async def churn(self, customer: str) -> Churn | None:
        raw = await self._churn.find_one({"_id": customer})
        return None if raw is None else docs.churn_from_raw(raw)

    async def page(
        self, which: CustomerFilter, after: str | None, limit: int
    ) -> tuple[list[Customer], str | None]:
        query = customer_query(which, after)
        found, behind = await bounded.customers_page(self._customers, query, docs.HIDDEN, limit)
        return [docs.customer_from_raw(raw) for raw in found], behind

    async def interaction(self, id: str) -> Interaction | None:
        raw = await self._interactions.find_one({"_id": id}, docs.INTERACTION_HIDDEN)
        return None if raw is None else docs.interaction_from_raw(raw)

    async def timeline(
        self, subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        query = timeline_query(subjects, which, after)
        found = self._interactions.find(query, docs.INTERACTION_HIDDEN, max_time_ms=READ_MS_MAX)
        return [docs.interaction_from_raw(raw) async for raw in found.sort(NEWEST).limit(limit)]

    async def interactions(
        self, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> tuple[list[Interaction], tuple[int, str] | None]:
        query, hidden = interactions_query(which, after), docs.INTERACTION_HIDDEN
        found, behind = await bounded.interactions_page(self._interactions, query, hidden, limit)
        return [docs.interaction_from_raw(raw) for raw in found], behind

    async def recent_calls(self, subjects: Sequence[str], day_start_ms: int, live_call: str) -> RecentCalls:
        query = calls_query(subjects, live_call)
        found = self._interactions.find(query, docs.INTERACTION_HIDDEN, max_time_ms=READ_MS_MAX)
        latest = [docs.interaction_from_raw(raw) async for raw in found.sort(NEWEST).limit(1)]
        if not latest or latest[0].began_ms < day_start_ms:
            return RecentCalls(today=0, last=latest[0] if latest else None)
        today = await self._interactions.count_documents(
            calls_query(subjects, live_call, day_start_ms), limit=COUNT_MAX
        )
        return RecentCalls(today=today, last=latest[0])

    async def open_tickets(self, subjects: Sequence[str]) -> tuple[tuple[Interaction, ...], int]:
        query = tickets_query(subjects)
        found = self._interactions.find(query, docs.INTERACTION_HIDDEN, max_time_ms=READ_MS_MAX)
        tickets = [docs.interaction_from_raw(raw) async for raw in found.limit(OPEN_TICKETS_READ_MAX)]
        return tuple(tickets), await self._tickets_counted(subjects, len(tickets))

    async def _tickets_counted(self, subjects: Sequence[str], read: int) -> int:
        if read < OPEN_TICKETS_READ_MAX:
            return read
        return int(await self._interactions.count_documents(tickets_query(subjects), limit=COUNT_MAX))

    async def rankings(self, subjects: Sequence[str]) -> tuple[OfferRanking, ...]:
        found = self._rankings.find({"_id": {"$in": list(subjects)}}, max_time_ms=READ_MS_MAX)
        return tuple([docs.ranking_from_raw(raw) async for raw in found])
