"""Where customers and interactions are kept: two ports, each with a MongoDB and a memory implementation.

`Store` is blocking (writes, and what writes must see); `Reads` is asynchronous (what agents wait for). Both
say what they do on failure; a store that cannot be reached raises `chassis.mongo.DatabaseUnavailable` through
the chassis's translation, and nothing is half written: every write is one document, or idempotent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.write_concern import WriteConcern

from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, NotFound, Unavailable
from chassis.idempotency import check_repeat
from chassis.mongo import (
    DatabaseUnavailable,
    PendingEvent,
    create_once,
    insert_aggregate,
    pending_entry,
    update_aggregate,
)
from crm import documents as docs
from crm import engine, timeline
from crm.model import (
    AuditEntry,
    Customer,
    CustomerFilter,
    Entry,
    Interaction,
    InteractionKind,
    OfferRanking,
    RecentCalls,
    State,
    TimelineFilter,
)

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: Calls and tickets of one subject are counted no further.
COUNT_MAX = 1000
#: Open tickets that are looked at to find the most urgent.
OPEN_TICKETS_READ_MAX = 200
#: Milliseconds that the database may spend on one read, so that a bad plan cannot pile up.
READ_MS_MAX = 5000
#: Tries of an insert whose claim was freed by its owner in the same moment.
CLAIM_TRIES_MAX = 3

_MAJORITY = WriteConcern(w="majority")
_DUPLICATE_KEY = 11000


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

    def save(self, change: engine.Change, events: Sequence[PendingEvent]) -> None:
        """Stores the next version. EtagMismatch when the stored one is not the version before, NotFound when
        it is gone, engine.ClaimTaken for a claim of another.
        """

    def audit(self, id: str, before_version: int | None, limit: int) -> list[AuditEntry]:
        """A customer's changes, newest first, below a version; [] for a customer that does not exist."""

    def entry(self, id: str) -> Entry | None:
        """An interaction; None when there is none."""

    def save_entry(self, entry: Entry, events: Sequence[PendingEvent] = ()) -> bool:
        """Stores an interaction read at `entry.revision` (0: new). False when somebody else wrote meanwhile:
        nothing is stored, read again.
        """

    def attach(self, number: str, customer_id: str) -> int:
        """Moves the interactions that lie with a number to a customer; answers how many. Idempotent."""

    def ranking(self, subject: str) -> OfferRanking:
        """What was last ranked for a subject; an empty ranking when nothing was."""

    def save_ranking(self, ranking: OfferRanking) -> bool:
        """Stores a ranking read at `ranking.revision`. False as in `save_entry`."""


class Reads(Protocol):
    """The asynchronous side."""

    async def customer(self, id: str) -> Customer | None:
        """The customer in whatever state; None when there is none."""

    async def customers(self, ids: Sequence[str]) -> dict[str, Customer]:
        """Those of the customers that exist, by id."""

    async def owner(self, claim: str) -> Customer | None:
        """The live customer who owns a claim; None when nobody does."""

    async def page(self, which: CustomerFilter, after: str | None, limit: int) -> list[Customer]:
        """Customers in the order of ids, behind `after`."""

    async def interaction(self, id: str) -> Interaction | None:
        """An interaction; None when there is none."""

    async def timeline(
        self, subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        """Interactions of any of the subjects, newest first by (began_ms, id), behind the key `after`."""

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
        audit=[docs.audit_fields(new.change.audit)],
        **docs.customer_fields(customer),
    )


class MongoStore:
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

    def insert_many(self, new: Sequence[NewCustomer]) -> list[Customer | CallmeshError]:
        failed: set[int] = set()
        try:
            if new:
                self._customers().insert_many([self._ready(item) for item in new], ordered=False)
        except BulkWriteError as error:
            problems = error.details.get("writeErrors", [])
            if error.details.get("writeConcernErrors"):
                raise DatabaseUnavailable(why="try again", retry_seconds=1.0) from None
            if any(problem.get("code") != _DUPLICATE_KEY for problem in problems):
                raise
            failed = {problem["index"] for problem in problems}
        # What met another's id, claim or request key goes the long way, which finds out which of them it was.
        return [self._outcome(item) if i in failed else item.change.customer for i, item in enumerate(new)]

    def _ready(self, new: NewCustomer) -> dict[str, Any]:
        doc = _document(new)
        doc.request_key = new.request_key
        doc.request_fingerprint = new.fingerprint if new.request_key else None
        doc.updated_at = new.change.customer.update_time
        doc.outbox = [pending_entry(event) for event in new.events]
        doc.outbox_since = datetime.now(UTC) if new.events else None
        ready: dict[str, Any] = doc.to_mongo().to_dict()
        return ready

    def _outcome(self, new: NewCustomer) -> Customer | CallmeshError:
        try:
            return self.insert(new)
        except CallmeshError as error:
            return error

    def save(self, change: engine.Change, events: Sequence[PendingEvent]) -> None:
        customer = change.customer
        doc = docs.CustomerDocument.objects(id=customer.id).first()
        if doc is None:
            raise NotFound(resource=customer.name)
        if doc.version != customer.version - 1:
            raise EtagMismatch(resource=customer.name)
        for name, value in docs.customer_fields(customer).items():
            setattr(doc, name, value)
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

    def save_entry(self, entry: Entry, events: Sequence[PendingEvent] = ()) -> bool:
        doc = docs.InteractionDocument(id=entry.id, **docs.entry_fields(entry))
        try:
            if entry.revision == 0:
                insert_aggregate(doc, events)
            else:
                doc.version = entry.revision
                update_aggregate(doc, events)
        except (AlreadyExists, EtagMismatch, NotFound):
            return False
        return True

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
        "company": which.company,
        "home_region": which.home_region,
    }
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


class MongoReads:
    """`Reads` on an `AsyncMongoClient`'s database; see `chassis.mongo.async_database`."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._customers = database[docs.CustomerDocument._get_collection_name()]
        self._interactions = database[docs.InteractionDocument._get_collection_name()]
        self._rankings = database[docs.RankingDocument._get_collection_name()]

    async def customer(self, id: str) -> Customer | None:
        raw = await self._customers.find_one({"_id": id}, docs.HIDDEN)
        return None if raw is None else docs.customer_from_raw(raw)

    async def customers(self, ids: Sequence[str]) -> dict[str, Customer]:
        found = self._customers.find({"_id": {"$in": list(ids)}}, docs.HIDDEN, max_time_ms=READ_MS_MAX)
        return {raw["_id"]: docs.customer_from_raw(raw) async for raw in found}

    async def owner(self, claim: str) -> Customer | None:
        raw = await self._customers.find_one({"claims": claim}, docs.HIDDEN)
        return None if raw is None else docs.customer_from_raw(raw)

    async def page(self, which: CustomerFilter, after: str | None, limit: int) -> list[Customer]:
        found = self._customers.find(customer_query(which, after), docs.HIDDEN, max_time_ms=READ_MS_MAX)
        return [docs.customer_from_raw(raw) async for raw in found.sort("_id", 1).limit(limit)]

    async def interaction(self, id: str) -> Interaction | None:
        raw = await self._interactions.find_one({"_id": id}, docs.INTERACTION_HIDDEN)
        return None if raw is None else docs.interaction_from_raw(raw)

    async def timeline(
        self, subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        query = timeline_query(subjects, which, after)
        found = self._interactions.find(query, docs.INTERACTION_HIDDEN, max_time_ms=READ_MS_MAX)
        return [docs.interaction_from_raw(raw) async for raw in found.sort(NEWEST).limit(limit)]

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
        count = len(tickets)
        if count == OPEN_TICKETS_READ_MAX:
            count = await self._interactions.count_documents(query, limit=COUNT_MAX)
        return tuple(tickets), count

    async def rankings(self, subjects: Sequence[str]) -> tuple[OfferRanking, ...]:
        found = self._rankings.find({"_id": {"$in": list(subjects)}}, max_time_ms=READ_MS_MAX)
        return tuple([docs.ranking_from_raw(raw) async for raw in found])


# Memory -----------------------------------------------------------------------------------------------------
# ---------


class MemoryStore:
    """`Store` in memory, for tests and for trying things out; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._customers: dict[str, Customer] = {}
        self._owners: dict[str, str] = {}
        self._requests: dict[str, tuple[str, str | None]] = {}
        self._audit: dict[str, list[AuditEntry]] = {}
        self._entries: dict[str, Entry] = {}
        self._rankings: dict[str, OfferRanking] = {}
        #: Everything that was told, in order.
        self.events: list[PendingEvent] = []

    def customer(self, id: str) -> Customer | None:
        return self._customers.get(id)

    def owners(self, claims: Iterable[str]) -> dict[str, str]:
        return {claim: self._owners[claim] for claim in claims if claim in self._owners}

    def insert(self, new: NewCustomer) -> Customer:
        customer = new.change.customer
        with self._lock:
            if new.request_key in self._requests:
                earlier, fingerprint = self._requests[new.request_key or ""]
                check_repeat(fingerprint, new.fingerprint)
                return self._customers[earlier]
            if customer.id in self._customers:
                raise AlreadyExists(resource=customer.name)
            self._put(new.change, new.events)
            if new.request_key:
                self._requests[new.request_key] = (customer.id, new.fingerprint)
        return customer

    def insert_many(self, new: Sequence[NewCustomer]) -> list[Customer | CallmeshError]:
        done: list[Customer | CallmeshError] = []
        for item in new:
            try:
                done.append(self.insert(item))
            except CallmeshError as error:
                done.append(error)
        return done

    def save(self, change: engine.Change, events: Sequence[PendingEvent]) -> None:
        with self._lock:
            known = self._customers.get(change.customer.id)
            if known is None:
                raise NotFound(resource=change.customer.name)
            if known.version != change.customer.version - 1:
                raise EtagMismatch(resource=change.customer.name)
            self._put(change, events)

    def _put(self, change: engine.Change, events: Sequence[PendingEvent]) -> None:
        customer = change.customer
        taken = engine.claim_taken(customer, self.owners(engine.claims(customer)))
        if taken is not None:
            raise taken
        self._owners = {claim: owner for claim, owner in self._owners.items() if owner != customer.id}
        self._owners.update(dict.fromkeys(engine.claims(customer), customer.id))
        self._customers[customer.id] = customer
        self._audit.setdefault(customer.id, []).append(change.audit)
        self.events.extend(events)

    def audit(self, id: str, before_version: int | None, limit: int) -> list[AuditEntry]:
        newest = reversed(self._audit.get(id, []))
        return [e for e in newest if before_version is None or e.version < before_version][:limit]

    def entry(self, id: str) -> Entry | None:
        return self._entries.get(id)

    def save_entry(self, entry: Entry, events: Sequence[PendingEvent] = ()) -> bool:
        with self._lock:
            known = self._entries.get(entry.id)
            if (known.revision if known else 0) != entry.revision:
                return False
            self._entries[entry.id] = replace(entry, revision=entry.revision + 1)
            self.events.extend(events)
            return True

    def attach(self, number: str, customer_id: str) -> int:
        subject = timeline.subject_of_customer(customer_id)
        with self._lock:
            moved = [e for e in self._entries.values() if e.subject == timeline.subject_of_number(number)]
            for entry in moved:
                self._entries[entry.id] = replace(entry, subject=subject, revision=entry.revision + 1)
            return len(moved)

    def ranking(self, subject: str) -> OfferRanking:
        return self._rankings.get(subject, OfferRanking(subject=subject))

    def save_ranking(self, ranking: OfferRanking) -> bool:
        with self._lock:
            if self.ranking(ranking.subject).revision != ranking.revision:
                return False
            self._rankings[ranking.subject] = replace(ranking, revision=ranking.revision + 1)
            return True


class MemoryReads:
    """`Reads` of what a `MemoryStore` holds."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def customer(self, id: str) -> Customer | None:
        return self._store.customer(id)

    async def customers(self, ids: Sequence[str]) -> dict[str, Customer]:
        found = ((id, self._store.customer(id)) for id in ids)
        return {id: customer for id, customer in found if customer is not None}

    async def owner(self, claim: str) -> Customer | None:
        owner = self._store.owners([claim]).get(claim)
        return None if owner is None else self._store.customer(owner)

    async def page(self, which: CustomerFilter, after: str | None, limit: int) -> list[Customer]:
        everyone = sorted(self._store._customers.values(), key=lambda customer: customer.id)
        behind = (c for c in everyone if after is None or c.id > after)
        return [customer for customer in behind if _fits(customer, which)][:limit]

    async def interaction(self, id: str) -> Interaction | None:
        entry = self._store.entry(id)
        return None if entry is None else timeline.project(entry)

    async def timeline(
        self, subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        found = [item for item in self._of(subjects) if _in(item, which)]
        return [item for item in found if after is None or (item.began_ms, item.id) < tuple(after)][:limit]

    async def recent_calls(self, subjects: Sequence[str], day_start_ms: int, live_call: str) -> RecentCalls:
        calls = [i for i in self._of(subjects) if i.kind is InteractionKind.CALL and i.id != live_call]
        today = sum(1 for call in calls if call.began_ms >= day_start_ms)
        return RecentCalls(today=min(today, COUNT_MAX), last=calls[0] if calls else None)

    async def open_tickets(self, subjects: Sequence[str]) -> tuple[tuple[Interaction, ...], int]:
        found = [i for i in self._of(subjects) if i.kind is InteractionKind.TICKET and i.open]
        return tuple(found[:OPEN_TICKETS_READ_MAX]), min(len(found), COUNT_MAX)

    async def rankings(self, subjects: Sequence[str]) -> tuple[OfferRanking, ...]:
        return tuple(self._store._rankings[s] for s in subjects if s in self._store._rankings)

    def _of(self, subjects: Sequence[str]) -> list[Interaction]:
        entries = [entry for entry in self._store._entries.values() if entry.subject in subjects]
        newest = sorted(entries, key=lambda entry: (entry.began_ms, entry.id), reverse=True)
        return [timeline.project(entry) for entry in newest]


def _fits(customer: Customer, which: CustomerFilter) -> bool:
    wanted: Mapping[str, Any] = {
        "tier": which.tier,
        "value_class": which.value_class,
        "kind": which.kind,
        "account_manager": which.account_manager or None,
        "company": which.company or None,
        "home_region": which.home_region or None,
        "state": None if which.show_deleted else State.ACTIVE,
    }
    same = all(value is None or getattr(customer, name) == value for name, value in wanted.items())
    return same and (not which.tag or which.tag in customer.tags)


def _in(item: Interaction, which: TimelineFilter) -> bool:
    if which.kinds and item.kind not in which.kinds:
        return False
    if which.from_ms is not None and item.began_ms < which.from_ms:
        return False
    return which.until_ms is None or item.began_ms < which.until_ms
