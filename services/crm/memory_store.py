"""`Store` and `Reads` in memory, for tests and for trying things out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from chassis.bus.event import Event, Told
from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, NotFound
from chassis.idempotency import check_repeat
from chassis.mongo import PendingEvent
from crm import engine, search, timeline
from crm.import_store import NewRow, ReadyRow
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
    MergeState,
    OfferRanking,
    RecentCalls,
    Reminder,
    State,
    TimelineFilter,
)
from crm.store import COUNT_MAX, OPEN_TICKETS_READ_MAX, GlanceWish, NewCustomer


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
        self._wires: dict[str, bytes] = {}
        self._origins: dict[str, str] = {}
        self._fields: dict[str, CustomField] = {}
        self._merges: dict[str, Merge] = {}
        self._erase_pending: set[str] = set()
        self._churn: dict[str, Churn] = {}
        #: Customers of whom something is to be scored.
        self.marked: set[str] = set()
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
            self._wires[customer.id] = new.wire
            self._origins[customer.id] = new.origin
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

    def created_by_request(self, request_key: str | None, fingerprint: str | None) -> Customer | None:
        if request_key is None or request_key not in self._requests:
            return None
        earlier, stored = self._requests[request_key]
        check_repeat(stored, fingerprint)
        return self._customers[earlier]

    def ready(self, row: NewRow) -> ReadyRow:
        return ReadyRow(id=row.customer.id, told=row.told, origin=row.origin, kept=row)

    def import_many(
        self, rows: Sequence[ReadyRow], again: Callable[[int], NewCustomer]
    ) -> list[CallmeshError | None]:
        outcomes = self.insert_many([again(place) for place in range(len(rows))])
        return [
            outcome
            if isinstance(outcome, CallmeshError) and self._origins.get(row.id) != row.origin
            else None
            for row, outcome in zip(rows, outcomes, strict=True)
        ]

    def finish_imports(self, older_than: datetime) -> int:
        return 0

    def existing(self, ids: Iterable[str]) -> set[str]:
        return {id for id in ids if id in self._customers}

    def save(
        self,
        change: engine.Change,
        events: Sequence[PendingEvent],
        *,
        wire: bytes = b"",
        erase_pending: bool = False,
    ) -> None:
        with self._lock:
            known = self._customers.get(change.customer.id)
            if known is None:
                raise NotFound(resource=change.customer.name)
            if known.version != change.customer.version - 1:
                raise EtagMismatch(resource=change.customer.name)
            self._put(change, events)
            self._wires[change.customer.id] = wire
            if erase_pending:
                self._erase_pending.add(change.customer.id)

    def _put(self, change: engine.Change, events: Sequence[PendingEvent]) -> None:
        customer = change.customer
        taken = engine.claim_taken(customer, self.owners(engine.claims(customer)))
        if taken is not None:
            raise taken
        self._owners = {claim: owner for claim, owner in self._owners.items() if owner != customer.id}
        self._owners.update(dict.fromkeys(engine.claims(customer), customer.id))
        self._customers[customer.id] = customer
        self._audit.setdefault(customer.id, []).append(change.audit)
        # What was written already is read again: tests look inside.
        self.events.extend(Event.from_json(e.to_json()) if isinstance(e, Told) else e for e in events)

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

    def entries(self, ids: Iterable[str]) -> dict[str, Entry]:
        return {id: self._entries[id] for id in ids if id in self._entries}

    def save_entries(self, entries: Sequence[Entry]) -> set[str]:
        return {entry.id for entry in entries if not self.save_entry(entry)}

    def subjects_with_history(self, subjects: Iterable[str]) -> set[str]:
        return {entry.subject for entry in self._entries.values()} & set(subjects)

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

    def forget_ranking(self, subject: str) -> None:
        self._rankings.pop(subject, None)

    # --- custom fields ---

    def custom_fields(self) -> dict[str, CustomField]:
        return dict(self._fields)

    def insert_custom_field(self, field: CustomField) -> None:
        with self._lock:
            if field.id in self._fields:
                raise AlreadyExists(resource=f"customFields/{field.id}")
            self._fields[field.id] = field

    def save_custom_field(self, field: CustomField) -> None:
        with self._lock:
            known = self._fields.get(field.id)
            if known is None:
                raise NotFound(resource=f"customFields/{field.id}")
            if known.version != field.version - 1:
                raise EtagMismatch(resource=f"customFields/{field.id}")
            self._fields[field.id] = field

    # --- whose is what ---

    def standings(self, ids: Iterable[str]) -> dict[str, tuple[State, str]]:
        found = {id: self.standing(id) for id in ids}
        return {id: standing for id, standing in found.items() if standing is not None}

    def standing(self, id: str) -> tuple[State, str] | None:
        known = self._customers.get(id)
        return None if known is None else (known.state, known.merged_into)

    def move_subject(self, from_id: str, to_id: str) -> int:
        before, after = timeline.subject_of_customer(from_id), timeline.subject_of_customer(to_id)
        return self._replace(
            lambda e: e.subject == before, lambda e: timeline.placed(e, e.own or e.subject, after)
        )

    def return_subjects(self, from_id: str, to_id: str, owners: Sequence[str]) -> int:
        before, after = timeline.subject_of_customer(from_id), timeline.subject_of_customer(to_id)
        mine = set(map(timeline.subject_of_customer, owners))
        return self._replace(
            lambda e: e.subject == before and e.own in mine, lambda e: timeline.placed(e, e.own, after)
        )

    def _replace(self, which: Callable[[Entry], bool], change: Callable[[Entry], Entry]) -> int:
        with self._lock:
            found = [entry for entry in self._entries.values() if which(entry)]
            for entry in found:
                self._entries[entry.id] = replace(change(entry), revision=entry.revision + 1)
            return len(found)

    def moved_count(self, survivor: str, owners: Sequence[str]) -> int:
        shown, mine = timeline.subject_of_customer(survivor), set(map(timeline.subject_of_customer, owners))
        return sum(1 for e in self._entries.values() if e.subject == shown and e.own in mine)

    def lineage(self, ids: Sequence[str], limit: int) -> list[str]:
        found: list[str] = []
        level = set(ids)
        while level and len(found) < limit:
            level = {c.id for c in self._customers.values() if c.merged_into in level}
            found += sorted(level)
        return found[:limit]

    # --- merges ---

    def insert_merge(self, merge: Merge, request_key: str | None, fingerprint: str | None) -> Merge:
        with self._lock:
            earlier = self.merge_by_request(request_key, fingerprint)
            if earlier is not None:
                return earlier
            self._check_free(merge)
            self._merges[merge.id] = merge
            if request_key:
                self._requests[request_key] = (merge.id, fingerprint)
            return merge

    def _check_free(self, merge: Merge) -> None:
        if any(
            m.id != merge.id and _running(m) and set(m.parties) & set(merge.parties)
            for m in self._merges.values()
        ):
            raise AlreadyExists(resource=merge.name)

    def merge(self, id: str) -> Merge | None:
        return self._merges.get(id)

    def merge_by_request(self, request_key: str | None, fingerprint: str | None) -> Merge | None:
        if request_key is None or request_key not in self._requests:
            return None
        earlier, stored = self._requests[request_key]
        check_repeat(stored, fingerprint)
        return self._merges[earlier]

    def merges(self, customer: str, before: str | None, limit: int) -> list[Merge]:
        newest = sorted(self._merges.values(), key=lambda merge: merge.id, reverse=True)
        wanted = (m for m in newest if not customer or customer in m.parties)
        return [m for m in wanted if before is None or m.id < before][:limit]

    def merge_running(self, customer: str) -> bool:
        return any(_running(m) and customer in m.parties for m in self._merges.values())

    def save_merge(self, merge: Merge, events: Sequence[PendingEvent]) -> Merge:
        with self._lock:
            known = self._merges.get(merge.id)
            if known is None:
                raise NotFound(resource=merge.name)
            if known.version != merge.version:
                raise EtagMismatch(resource=merge.name)
            if _running(merge):
                self._check_free(merge)
            self._merges[merge.id] = replace(merge, version=merge.version + 1)
            self.events.extend(events)
            return self._merges[merge.id]

    def unfinished_merges(self, limit: int) -> list[Merge]:
        return [merge for merge in self._merges.values() if _running(merge)][:limit]

    # --- erasure ---

    def erase_pending(self, limit: int) -> list[Customer]:
        return [self._customers[id] for id in sorted(self._erase_pending)][:limit]

    def erased(self, id: str) -> None:
        self._erase_pending.discard(id)

    def scrub(self, id: str) -> None:
        subject = timeline.subject_of_customer(id)
        with self._lock:
            self._audit[id] = [_blank(entry) for entry in self._audit.get(id, [])]
            for merge in self._merges.values():
                if id in merge.absorbed:
                    trail = self._audit[merge.survivor]
                    self._audit[merge.survivor] = [_blank(e) if _during(merge, e) else e for e in trail]
            self._replace(lambda e: (e.own or e.subject) == subject, timeline.anonymised)
            self._rankings.pop(subject, None)
            self._churn.pop(id, None)
            for merge in self._merges.values():
                said = merge.reason or merge.undo_reason
                if id in merge.parties and (merge.gains or said or _running(merge)):
                    kept = tuple(g for g in merge.gains if id not in (g.customer, merge.survivor))
                    bare = replace(merge, gains=kept, reason="", undo_reason="")
                    self._merges[merge.id] = replace(bare, version=merge.version + 1)

    # --- churn ---

    def churn(self, customer: str) -> Churn | None:
        return self._churn.get(customer)

    def save_churn(self, churn: Churn, events: Sequence[PendingEvent], *, clean: bool = False) -> bool:
        with self._lock:
            known = self._churn.get(churn.customer)
            if (known.revision if known else 0) != churn.revision:
                return False
            self._churn[churn.customer] = replace(churn, revision=churn.revision + 1)
            self.events.extend(events)
            if clean:
                self.marked.discard(churn.customer)
            return True

    def mark_churn(self, *customers: str) -> None:
        self.marked.update(customers)

    def forget_churn(self, customer: str) -> None:
        self._churn.pop(customer, None)
        self.marked.discard(customer)


def _running(merge: Merge) -> bool:
    return merge.state in (MergeState.MERGING, MergeState.UNMERGING)


def _during(merge: Merge, entry: AuditEntry) -> bool:
    first, last = merge.create_time, merge.update_time
    return first is not None and last is not None and first <= entry.time <= last


def _blank(entry: AuditEntry) -> AuditEntry:
    changes = tuple(c if c.field == "reason" else replace(c, old="", new="") for c in entry.changes)
    return replace(entry, changes=changes)


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

    async def shown(self, id: str) -> bytes | Customer | None:
        return self._store._wires.get(id) or self._store.customer(id)

    async def shown_owner(self, claim: str) -> bytes | Customer | None:
        owner = self._store.owners([claim]).get(claim)
        return None if owner is None else await self.shown(owner)

    async def lineage(self, ids: Sequence[str], limit: int) -> list[str]:
        return self._store.lineage(ids, limit)

    async def search(
        self, starts: Sequence[Sequence[str]], which: CustomerFilter, limit: int
    ) -> list[Customer]:
        def has(customer: Customer) -> bool:
            terms = search.terms(customer)
            return all(any(t.startswith(s) for t in terms for s in group) for group in starts)

        everyone = self._store._customers.values()
        return [c for c in everyone if _fits(c, which) and has(c)][:limit]

    async def sharing(self, terms: Sequence[str], limit: int) -> list[Customer]:
        def shares(customer: Customer) -> bool:
            own = search.terms(customer)
            return any(t in own or (t.endswith("@") and any(o.startswith(t) for o in own)) for t in terms)

        everyone = self._store._customers.values()
        return [c for c in everyone if c.state is State.ACTIVE and shares(c)][:limit]

    async def glance(self, wanted: GlanceWish) -> Glance:
        tickets, count = await self.open_tickets(wanted.subjects)
        return Glance(
            calls=await self.recent_calls(wanted.subjects, wanted.day_start_ms, wanted.live_call),
            tickets=tickets,
            ticket_count=count,
            rankings=await self.rankings(wanted.subjects),
            care=await self.care(wanted.customer),
            churn=await self.churn(wanted.customer),
        )

    async def care(self, customer: str) -> tuple[Reminder, ...]:
        return ()

    async def churn(self, customer: str) -> Churn | None:
        return self._store.churn(customer)

    async def page(
        self, which: CustomerFilter, after: str | None, limit: int
    ) -> tuple[list[Customer], str | None]:
        everyone = sorted(self._store._customers.values(), key=lambda customer: customer.id)
        behind = (c for c in everyone if after is None or c.id > after)
        found = [customer for customer in behind if _fits(customer, which)]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def interaction(self, id: str) -> Interaction | None:
        entry = self._store.entry(id)
        return None if entry is None else timeline.project(entry)

    async def timeline(
        self, subjects: Sequence[str], which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        found = [item for item in self._of(subjects) if _in(item, which)]
        return [item for item in found if after is None or (item.began_ms, item.id) < tuple(after)][:limit]

    async def interactions(
        self, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> tuple[list[Interaction], tuple[int, str] | None]:
        entries = sorted(self._store._entries.values(), key=lambda entry: (entry.began_ms, entry.id))
        found = [item for item in map(timeline.project, entries) if _in(item, which)]
        behind = [i for i in found if after is None or (i.began_ms, i.id) > tuple(after)]
        more = len(behind) > limit
        return behind[:limit], (behind[limit - 1].began_ms, behind[limit - 1].id) if more else None

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
        "company": None if which.companies_below else which.company or None,
        "home_region": which.home_region or None,
        "state": None if which.show_deleted else State.ACTIVE,
    }
    same = all(value is None or getattr(customer, name) == value for name, value in wanted.items())
    if which.companies_below and customer.company not in (which.company, *which.companies_below):
        return False
    return same and (not which.tag or which.tag in customer.tags)


def _in(item: Interaction, which: TimelineFilter) -> bool:
    if which.kinds and item.kind not in which.kinds:
        return False
    if which.from_ms is not None and item.began_ms < which.from_ms:
        return False
    return which.until_ms is None or item.began_ms < which.until_ms
