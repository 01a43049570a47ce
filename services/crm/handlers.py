"""Use cases: load, decide, save with what it tells the others. The blocking ones run in the server's threads
and in the worker, the asynchronous ones on the server's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeVar

from chassis import logs, telemetry
from chassis.bus import Event
from chassis.callcontext import remaining_seconds
from chassis.clock import Clock
from chassis.errors import (
    AlreadyExists,
    CallmeshError,
    EtagMismatch,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    translate,
)
from chassis.ids import new_id
from chassis.mongo import retry_conflicts
from crm import consent, convert, engine, glance, identity, import_store, schema, search, timeline
from crm.duplicates import Pair, probable
from crm.import_store import NewRow, ReadyRow
from crm.model import (
    AuditEntry,
    Channel,
    Consent,
    Customer,
    CustomerFilter,
    CustomField,
    Entry,
    Fact,
    Glance,
    Interaction,
    InteractionKind,
    Kind,
    OfferRanking,
    Part,
    Purpose,
    RecentCalls,
    ScreenPop,
    State,
    TimelineFilter,
)
from crm.sagas import SURVIVORS_MAX, settle
from crm.store import GlanceWish, NewCustomer, Reads, Store
from crm.trial import Ahead

#: Tries of a read-merge-write that other writers get in between of.
MERGE_TRIES_MAX = 20
#: Keys of timelines that one question looks at: a customer's own and those of its numbers.
SUBJECTS_MAX = 64
#: How long a process may go on without another's new declaration of a custom field, real seconds.
FIELDS_SECONDS_MAX = 2.0
#: Share of what is left of a screen pop's time that the one question for everything may take, before its
#: parts are asked one by one.
ONE_QUESTION_SHARE = 0.6
#: Most customers looked at for one search, and as possible duplicates of one.
CANDIDATES_MAX = 200
#: Where there are more: most looked at for what one kind of term, or one term, has in common.
KIND_CANDIDATES_MAX = 50
#: Customers whose duplicates one page of all pairs looks for.
PAIRS_CUSTOMERS_MAX = 1000
#: How long one page of all pairs looks for them, real seconds: callers wait for five as a rule.
PAIRS_SECONDS_MAX = 2.0
#: Share of the caller's own deadline that an answer uses, so that it still arrives.
DEADLINE_SHARE = 0.8
#: Below so many matches a search looks for what only begins alike.
FEW_MATCHES = 5
#: Customers read at once while all pairs of duplicates are looked for.
PAIRS_PAGE = 200
#: Longest free text of a recorded interaction, characters.
TEXT_CHARACTERS_MAX = 10_000

_SOURCE = "crm"
Result = TypeVar("Result")
_log = logs.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What an operator decides."""

    #: Country of numbers without "+".
    default_country: str = "CN"
    #: IANA zone of customers who have none.
    time_zone: str = "Asia/Shanghai"
    #: "zh" or "en", of customers whose language is not known.
    language: str = "zh"
    #: Real seconds after which a screen pop is answered with what there is.
    screen_pop_seconds: float = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Create:
    """One customer to be created."""

    #: As written, not normalised.
    draft: Customer
    #: Chosen by the caller; "" none.
    id: str = ""
    #: Country of numbers without "+"; "" the policy's.
    default_country: str = ""
    #: See `chassis.idempotency`.
    request_key: str | None = None
    #: See `chassis.idempotency`.
    fingerprint: str | None = None
    #: Check everything, the owners of its claims and its id included, and store nothing.
    dry: bool = False
    #: Which row of which import it is; "" none.
    origin: str = ""


def default_country(text: str, policy: Policy) -> str:
    """The country that a request names, or the policy's; InvalidArgument(default_country)."""
    if not text:
        return policy.default_country
    try:
        return identity.country(text)
    except identity.NotIdentifiable as why:
        raise InvalidArgument(field="default_country", why=str(why)) from None


def e164(field: str, text: str, country: str) -> str:
    """A typed number in E.164; InvalidArgument(field)."""
    try:
        return identity.phone_number(text, country)
    except identity.NotIdentifiable as why:
        raise InvalidArgument(field=field, why=str(why)) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """What rows of a file that are decided together have in common."""

    #: Who brings them.
    actor: str
    #: What numbers without a country belong to.
    country: str
    #: Business time.
    now: datetime
    #: The custom fields as declared.
    fields: Mapping[str, CustomField]
    #: The trace that they belong to.
    traceparent: str | None


class Customers:
    """Writing customers. Everything here blocks."""

    def __init__(self, store: Store, clock: Clock, policy: Policy) -> None:
        self._store = store
        self._clock = clock
        self._policy = policy
        self._fields = FieldCache(store, clock)

    def create(self, wanted: Create, actor: str) -> Customer:
        """Creates, or answers what an earlier call with the same request key created."""
        new = self._decide_new(wanted, actor)
        return self._checked(new) if wanted.dry else self._store.insert(new)

    def create_many(self, wanted: Sequence[Create], actor: str) -> list[Customer | CallmeshError]:
        """Each as by `create`, in order; one's fault does not touch another. What is only tried meets what
        is stored and what is ahead of it.
        """
        decided = [self._try_new(item, actor) for item in wanted]
        tried = {
            place: self._try_checked(item)
            for place, item in enumerate(decided)
            if isinstance(item, NewCustomer) and wanted[place].dry
        }
        good = [item for place, item in enumerate(decided) if place not in tried]
        stored = iter(self._store.insert_many([item for item in good if isinstance(item, NewCustomer)]))
        ahead, outcomes = Ahead(), list[Customer | CallmeshError]()
        for place, item in enumerate(decided):
            if isinstance(item, CallmeshError):
                outcomes.append(item)
                continue
            outcome = ahead.meet(item, tried[place]) if place in tried else next(stored)
            ahead.take(item, outcome)
            outcomes.append(outcome)
        return outcomes

    def decide(self, wanted: Create, actor: str) -> NewCustomer:
        """What is to be stored, decided and not stored yet."""
        return self._decide_new(wanted, actor)

    def occasion(self, actor: str, country: str) -> Occasion:
        """For rows that are decided together, here and now."""
        return Occasion(
            actor=actor,
            country=default_country(country, self._policy),
            now=self._clock.now(),
            fields=self._fields.of({}),
            traceparent=telemetry.current_traceparent(),
        )

    def ready(self, draft: Customer, id: str, origin: str, occasion: Occasion) -> ReadyRow:
        """What `import_many` is to store of a row: the same as `decide` makes, in one go and for a third."""
        now, actor = occasion.now, occasion.actor
        fields = self._fields.of(draft.custom_values) if draft.custom_values else occasion.fields
        kept = engine.birth(actor, now)
        born = engine.normalise(draft, occasion.country, now.date(), fields, id=id, kept=kept)
        self._check_company(born)
        event_id = import_store.event_id(origin)
        told = convert.created_told(born, actor, now, event_id, occasion.traceparent)
        wire = convert.customer_wire(born)
        return self._store.ready(NewRow(customer=born, told=told.to_json(), wire=wire, origin=origin))

    def import_many(
        self, rows: Sequence[ReadyRow], again: Callable[[int], NewCustomer]
    ) -> list[CallmeshError | None]:
        """Stores rows of a file, in order; the fault of each, None for a good one. `again` decides one again,
        by its place.
        """
        return self._store.import_many(rows, again)

    def check_many(self, new: Sequence[NewCustomer]) -> list[Customer | CallmeshError]:
        """What `import_many` would answer, each for itself; nothing is stored."""
        customers = [item.change.customer for item in new]
        taken = self._store.existing([customer.id for customer in customers])
        owners = self._store.owners([claim for c in customers for claim in engine.claims(c)])
        outcomes: list[Customer | CallmeshError] = []
        for customer in customers:
            error = engine.claim_taken(customer, owners)
            exists = AlreadyExists(resource=customer.name) if customer.id in taken else None
            outcomes.append(exists or error or customer)
        return outcomes

    def taken(self, customer: Customer) -> CallmeshError | None:
        """The error when any claim of the customer's belongs to somebody who is stored."""
        return engine.claim_taken(customer, self._store.owners(engine.claims(customer)))

    def declared_fields(self) -> Mapping[str, CustomField]:
        """The custom fields as declared now."""
        return self._fields.of({})

    def _try_new(self, wanted: Create, actor: str) -> NewCustomer | CallmeshError:
        try:
            return self._decide_new(wanted, actor)
        except CallmeshError as error:
            return error

    def _try_checked(self, new: NewCustomer) -> Customer | CallmeshError:
        try:
            return self._checked(new)
        except CallmeshError as error:
            return error

    def _checked(self, new: NewCustomer) -> Customer:
        """What inserting it would answer."""
        earlier = self._store.created_by_request(new.request_key, new.fingerprint)
        if earlier is not None:
            return earlier
        customer = new.change.customer
        if self._store.customer(customer.id) is not None:
            raise AlreadyExists(resource=customer.name)
        self._check_claims(customer)
        return customer

    def _decide_new(self, wanted: Create, actor: str) -> NewCustomer:
        now = self._clock.now()
        id = wanted.id or new_id()
        country = default_country(wanted.default_country, self._policy)
        fields = self._fields.of(wanted.draft.custom_values)
        customer = engine.normalise(wanted.draft, country, now.date(), fields, id=id)
        self._check_company(customer)
        change = engine.create(customer, id, actor, now)
        event_id = import_store.event_id(wanted.origin) if wanted.origin else new_id()
        return NewCustomer(
            change=change,
            events=[convert.customer_created_told(change, event_id, telemetry.current_traceparent())],
            request_key=wanted.request_key,
            fingerprint=wanted.fingerprint,
            wire=convert.customer_wire(change.customer),
            origin=wanted.origin,
        )

    def update(
        self,
        id: str,
        edit: Callable[[Customer], Customer],
        actor: str,
        *,
        expected_version: int | None = None,
        country: str = "",
        dry: bool = False,
    ) -> Customer:
        """`edit` answers the wanted customer from the present one. Without an expected version it is run
        again when another writer gets in between. `dry` checks everything and stores nothing.
        """
        place = default_country(country, self._policy)

        def once() -> Customer:
            current = self._expect(id, expected_version)
            # First: a stub has no name, which would be told as the caller's fault.
            engine.require_active(current)
            now = self._clock.now()
            draft = edit(current)
            fields = self._fields.of(draft.custom_values)
            wanted = engine.normalise(draft, place, now.date(), fields, current.custom_values)
            change = engine.update(current, wanted, actor, now)
            if change is None:
                return current
            if wanted.company != current.company:
                self._check_company(change.customer)
            if dry:
                self._check_claims(change.customer)
                return change.customer
            return self._save(change, convert.customer_updated(change))

        return self._again(once, expected_version)

    def delete(
        self, id: str, actor: str, *, expected_version: int | None = None, allow_missing: bool = False
    ) -> Customer | None:
        """Deletes softly; None when there is none and that is allowed."""

        def once() -> Customer | None:
            if allow_missing and self._store.customer(id) is None:
                return None
            current = self._expect(id, expected_version)
            change = engine.delete(current, actor, self._clock.now())
            return current if change is None else self._save(change, convert.customer_deleted(change))

        return self._again(once, expected_version)

    def undelete(self, id: str, actor: str, *, expected_version: int | None = None) -> Customer:
        """Brings a deleted customer back."""

        def once() -> Customer:
            change = engine.undelete(self._expect(id, expected_version), actor, self._clock.now())
            return self._save(change, convert.customer_updated(change))

        return self._again(once, expected_version)

    def decide_consent(self, id: str, decision: Consent, actor: str) -> Customer:
        """Records a decision about consent; an older one than is known changes nothing."""

        def once() -> Customer:
            current = self._expect(id, None)
            change = engine.decide_consent(current, decision, actor, self._clock.now())
            return current if change is None else self._save(change, convert.customer_updated(change))

        return self._again(once, None)

    def audit(self, id: str, before_version: int | None, limit: int) -> list[AuditEntry]:
        """Who changed what, newest first. NotFound for a customer that does not exist."""
        if self._store.customer(id) is None:
            raise NotFound(resource=f"customers/{id}")
        return self._store.audit(id, before_version, limit)

    def _expect(self, id: str, version: int | None) -> Customer:
        current = self._store.customer(id)
        if current is None:
            raise NotFound(resource=f"customers/{id}")
        if version is not None and current.version != version:
            raise EtagMismatch(resource=current.name)
        return current

    def _save(self, change: engine.Change, message: Any) -> Customer:
        self._store.save(change, [self._event(change, message)], wire=convert.customer_wire(change.customer))
        return change.customer

    def _event(self, change: engine.Change, message: Any) -> Event:
        return Event.of(message, source=_SOURCE, subject=change.customer.name, time=change.audit.time)

    def _check_company(self, customer: Customer) -> None:
        if not customer.company:
            return
        company = self._store.customer(customer.company)
        if company is None or company.kind is not Kind.COMPANY or company.state is not State.ACTIVE:
            raise InvalidArgument(field="customer.company", why="is not a company that exists")

    def _check_claims(self, customer: Customer) -> None:
        taken = self.taken(customer)
        if taken is not None:
            raise taken

    def _again(self, once: Callable[[], Result], expected_version: int | None) -> Result:
        return retry_conflicts(once) if expected_version is None else once()


class FieldCache:
    """The declared custom fields, read again when old, or when a value names one that is not known."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._fields: Mapping[str, CustomField] = {}
        self._until = float("-inf")

    def of(self, values: Mapping[str, Any]) -> Mapping[str, CustomField]:
        """The declarations that hold for a customer with these values."""
        now = self._clock.monotonic()
        if now >= self._until or any(key not in self._fields for key in values):
            self._fields = self._store.custom_fields()
            self._until = now + FIELDS_SECONDS_MAX
        return self._fields


class CustomFields:
    """Declaring custom fields. Blocks."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def create(self, draft: CustomField, id: str) -> CustomField:
        """AlreadyExists for a taken id; InvalidArgument."""
        problems = engine.Problems()
        if not schema.is_field_id(id):
            problems.add("custom_field_id", "must be 1 to 64 of a-z, 0-9 and _, starting with a letter")
        checked = schema.checked(draft, problems)
        problems.raise_if_any()
        if len(self._store.custom_fields()) >= schema.FIELDS_MAX:
            raise ResourceExhausted(subject="customFields", limit=f"at most {schema.FIELDS_MAX}")
        field = schema.declared(checked, id, self._clock.now())
        self._store.insert_custom_field(field)
        return field

    def get(self, id: str) -> CustomField:
        """NotFound when there is none."""
        found = self._store.custom_fields().get(id)
        if found is None:
            raise NotFound(resource=f"customFields/{id}")
        return found

    def page(self, retired: bool, after: str | None, limit: int) -> list[CustomField]:
        """By id, behind `after`."""
        fields = sorted(self._store.custom_fields().values(), key=lambda field: field.id)
        behind = [f for f in fields if (retired or not f.retired) and (after is None or f.id > after)]
        return behind[:limit]

    def update(
        self, id: str, edit: Callable[[CustomField], CustomField], expected_version: int | None
    ) -> CustomField:
        """`edit` answers the wanted declaration from the present one."""

        def once() -> CustomField:
            current = self._expect(id, expected_version)
            problems = engine.Problems()
            desired = schema.checked(edit(current), problems)
            problems.raise_if_any()
            return self._store_next(current, schema.changed(current, desired))

        return once() if expected_version is not None else retry_conflicts(once)

    def retire(self, id: str, expected_version: int | None) -> CustomField:
        """Retires; repeating it is harmless."""

        def once() -> CustomField:
            current = self._expect(id, expected_version)
            return self._store_next(current, schema.retired(current))

        return once() if expected_version is not None else retry_conflicts(once)

    def _expect(self, id: str, version: int | None) -> CustomField:
        current = self.get(id)
        if version is not None and current.version != version:
            raise EtagMismatch(resource=f"customFields/{id}")
        return current

    def _store_next(self, current: CustomField, changed: CustomField | None) -> CustomField:
        if changed is None:
            return current
        self._store.save_custom_field(changed)
        return changed


#: (customer's id or a number's subject, business ms, (number, call's id, channel)).
Leaving = Callable[[str, int, tuple[str, str, str]], None]


class Memory:
    """Growing the timeline and the cached offers from what other services tell. Everything here blocks and
    may be repeated.
    """

    def __init__(self, store: Store, clock: Clock, leaving: Leaving | None = None) -> None:
        """`leaving` is told when a customer said that he wants to leave."""
        self._store = store
        self._clock = clock
        self._leaving = leaving

    def mark_churn(self, *customers: str) -> None:
        """Notes that something happened that bears on churn."""
        self._store.mark_churn(*customers)

    def flag_leaving(self, entry: Entry, fact: Fact) -> None:
        """Passes on that a customer said in a call that he wants to leave."""
        if self._leaving is None:
            return
        whose = timeline.customer_of(entry.subject) or entry.subject
        if whose:
            call = (timeline.number_of(entry), entry.source_id, str(fact.values.get("channel") or ""))
            self._leaving(whose, entry.began_ms, call)

    def apply(self, fact: Fact, events: Sequence[Event] = ()) -> Entry:
        """Merges one report into its interaction; what it tells the others goes out with the first report
        alone.
        """
        id = timeline.entry_id(fact.kind, fact.source, fact.source_id)
        for _ in range(MERGE_TRIES_MAX):
            known = self._store.entry(id)
            merged = timeline.entry_of(fact) if known is None else timeline.merge(known, fact)
            placed = self._placed(known, merged)
            if placed == known:
                return placed
            placed = replace(placed, updated_ms=self._clock.now_ms())
            # A customer with this number may have appeared, or been merged or erased, between our look and
            # our write; then either the other's own move saw the interaction, or a second look sees what
            # became of it.
            if (
                self._store.save_entry(placed, events if known is None else ())
                and self._placed(placed, placed) == placed
            ):
                return placed
        raise Unavailable(why="an interaction is changed by too many at once", retry_seconds=1.0)

    def _placed(self, known: Entry | None, merged: Entry) -> Entry:
        """An interaction where it belongs now, without what must not be kept; `known` is how it lies so
        far."""
        owner = self._owner(merged)
        own = self._kept(known, timeline.subject_for(merged, owner))
        # Who owns a number is live: there is nothing to look up.
        shown, erased = (own, False) if owner else self._standing(own)
        return timeline.placed(timeline.anonymised(merged) if erased else merged, own, shown)

    def apply_many(self, facts: Sequence[Fact]) -> list[Entry]:
        """As `apply`, for reports of which none tells the others anything: what all of them need is asked and
        written at once. What somebody else changes meanwhile goes the long way.
        """
        ids = [timeline.entry_id(fact.kind, fact.source, fact.source_id) for fact in facts]
        known = self._store.entries(set(ids))
        merged: dict[str, Entry] = {}
        for id, fact in zip(ids, facts, strict=True):
            before = merged.get(id) or known.get(id)
            merged[id] = timeline.entry_of(fact) if before is None else timeline.merge(before, fact)
        placed = self._placed_together(known, merged)
        changed = [entry for id, entry in placed.items() if entry != known.get(id)]
        now_ms = self._clock.now_ms()
        missed = self._store.save_entries([replace(entry, updated_ms=now_ms) for entry in changed])
        settled = self._settle_together([entry for entry in changed if entry.id not in missed])
        again = {
            id: self.apply(fact) for id, fact in zip(ids, facts, strict=True) if id in missed or id in settled
        }
        return [again.get(id) or placed[id] for id in ids]

    def _placed_together(self, known: Mapping[str, Entry], merged: Mapping[str, Entry]) -> dict[str, Entry]:
        """Each where it belongs, as `apply` places it."""
        numbers = {
            id: timeline.number_of(entry)
            for id, entry in merged.items()
            if not timeline.named_customer(entry) and not timeline.is_customers(entry.subject)
        }
        owners = self._owners_of(numbers.values())
        own = {
            id: self._kept(known.get(id), timeline.subject_for(e, owners.get(numbers.get(id, ""))))
            for id, e in merged.items()
        }
        # Who owns a number is live: there is nothing to look up.
        unsure = {subject for id, subject in own.items() if not owners.get(numbers.get(id, ""))}
        standing = self._standing_together(unsure)
        placed = {}
        for id, entry in merged.items():
            shown, erased = standing.get(own[id], (own[id], False))
            placed[id] = timeline.placed(timeline.anonymised(entry) if erased else entry, own[id], shown)
        return placed

    def _owners_of(self, numbers: Iterable[str]) -> dict[str, str]:
        """Number -> id of the customer who owns it."""
        claims = {identity.claim_of_number(number): number for number in numbers if number}
        return {claims[claim]: owner for claim, owner in self._store.owners(claims).items()}

    def _standing_together(self, subjects: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """As `_standing`, by subject; most customers are where they were, and one question tells."""
        ids = {timeline.customer_of(subject): subject for subject in subjects if subject}
        found = self._store.standings(ids.keys() - {""})
        gone = [id for id, (state, _) in found.items() if state in (State.MERGED, State.ERASED)]
        return {ids[id]: self._standing(ids[id]) for id in gone}

    def _settle_together(self, written: Sequence[Entry]) -> set[str]:
        """The ids of those that a second look finds elsewhere, for the long way."""
        with_number = [e for e in written if e.subject and not timeline.is_customers(e.own or e.subject)]
        owners = self._owners_of(timeline.number_of(entry) for entry in with_number)
        found = {entry.id for entry in with_number if timeline.number_of(entry) in owners}
        with_customer = [e for e in written if timeline.is_customers(e.own or e.subject)]
        standing = self._standing_together({entry.own or entry.subject for entry in with_customer})
        for entry in with_customer:
            own = entry.own or entry.subject
            if standing.get(own, (own, False)) != (entry.subject, False):
                found.add(entry.id)
        return found

    def _standing(self, own: str) -> tuple[str, bool]:
        """(where what is `own`'s is shown, whether that customer was erased). With an erased survivor it is
        erased by name, unless the merge that met the erasure gives it back."""
        if not timeline.is_customers(own):
            return own, False
        way = list(self._upwards(own))
        return way[-1][0], way[0][1] is State.ERASED

    def _upwards(self, subject: str) -> Iterator[tuple[str, State | None]]:
        """(subject, state) of a customer, of whoever took it over, and so on."""
        id = timeline.customer_of(subject)
        for _ in range(SURVIVORS_MAX):
            found = self._store.standing(id)
            yield timeline.subject_of_customer(id), None if found is None else found[0]
            if found is None or found[0] is not State.MERGED:
                return
            id = found[1]
        yield timeline.subject_of_customer(id), None

    def _kept(self, known: Entry | None, named: str) -> str:
        """Whose an interaction is, of whom it was so far and whom its reports name now (timeline, rule 4)."""
        before = (known.own or known.subject) if known else ""
        if before == named or not timeline.is_customers(before):
            return named
        above = [subject for subject, _ in self._upwards(before)]
        return before if named in above else named

    def _owner(self, entry: Entry) -> str | None:
        if timeline.named_customer(entry) or timeline.is_customers(entry.subject):
            return None
        number = timeline.number_of(entry)
        return self._owner_of(number) if number else None

    def _owner_of(self, number: str) -> str | None:
        claim = identity.claim_of_number(number)
        return self._store.owners([claim]).get(claim)

    def attach_numbers(self, customer_id: str, numbers: Sequence[str]) -> int:
        """Gives a customer what its numbers did before it was known: only of numbers that it owns now,
        whatever the event said that caused this. Answers how many interactions moved.
        """
        owners = self._store.owners(identity.claim_of_number(number) for number in numbers)
        own = [n for n in numbers if owners.get(identity.claim_of_number(n)) == customer_id]
        moved = sum(self._store.attach(number, customer_id) for number in own)
        if moved:
            # Its own merge or erasure may have been through since we asked who owns them.
            settle(self._store, [customer_id])
        if own and self._leaving is not None:
            self._take_over_words(customer_id, own)
        return moved

    def _take_over_words(self, customer_id: str, numbers: Sequence[str]) -> None:
        """Who said on a number, before it was known whose it is, that he wants to leave is this customer."""
        for number in numbers:
            said = self._store.churn(timeline.subject_of_number(number))
            if said is None:
                continue
            if said.wants_to_leave and self._leaving is not None:
                self._leaving(customer_id, said.intent_ms, (number, "", ""))
            self._store.forget_churn(said.customer)

    def attach_many(self, owned: Sequence[tuple[str, Sequence[str]]]) -> int:
        """As `attach_numbers`, of several (customer's id, numbers): most numbers have never called."""
        subjects = {timeline.subject_of_number(number) for _, numbers in owned for number in numbers}
        waiting = self._store.subjects_with_history(subjects)
        moved = 0
        for customer_id, numbers in owned:
            mine = [number for number in numbers if timeline.subject_of_number(number) in waiting]
            moved += self.attach_numbers(customer_id, mine) if mine else 0
        return moved

    def change_ranking(self, subject: str, change: Callable[[OfferRanking], OfferRanking]) -> None:
        """Applies a commutative change to what was last ranked for a subject."""
        for _ in range(MERGE_TRIES_MAX):
            known = self._store.ranking(subject)
            changed = change(known)
            if changed is known or self._store.save_ranking(changed):
                return
        raise Unavailable(why="a ranking is changed by too many at once", retry_seconds=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One interaction to be recorded."""

    #: MESSAGE, SURVEY, VISIT or NOTE.
    kind: InteractionKind
    #: The system that knows it; "" the API.
    source: str
    #: Its id there; "" one is made.
    source_id: str
    #: As `convert.recorded_values` reads it.
    values: Mapping[str, Any]
    #: Id of the customer; "" by number.
    customer: str
    #: As typed; "" by customer.
    number: str
    #: When it began, business ms; None: now.
    began_ms: int | None


class Recorder:
    """Recording what no other service tells of. Blocks."""

    def __init__(self, store: Store, clock: Clock, policy: Policy) -> None:
        self._store = store
        self._memory = Memory(store, clock)
        self._clock = clock
        self._policy = policy

    def record(self, wanted: Recording, actor: str, *, dry: bool = False) -> Interaction:
        """Records, or answers what was recorded before under the same source and id. `dry` checks and stores
        nothing.
        """
        problems = engine.Problems()
        source = self._source(wanted, problems)
        source_id = problems.text("interaction.source_id", wanted.source_id, most=128) or new_id()
        values = self._clean(wanted, problems)
        problems.raise_if_any()
        known = self._store.entry(timeline.entry_id(wanted.kind, source, source_id))
        if known is not None:
            # Also of one whose writer died before it could say so.
            return self._told_of(known, dry=dry)
        fact = Fact(
            kind=wanted.kind,
            source=source,
            source_id=source_id,
            facet="record",
            stamp=(0,),
            values={**values, **self._whose(wanted)},
            began_ms=self._clock.now_ms() if wanted.began_ms is None else wanted.began_ms,
        )
        if dry:
            return timeline.project(timeline.entry_of(fact))
        return self._told_of(self._memory.apply(fact, [self._event(fact, actor)]))

    def _told_of(self, entry: Entry, *, dry: bool = False) -> Interaction:
        """What was recorded, which may bear on churn."""
        customer = timeline.customer_of(entry.subject)
        if customer and not dry:
            self._store.mark_churn(customer)
        return timeline.project(entry)

    def _source(self, wanted: Recording, problems: engine.Problems) -> str:
        try:
            return identity.external_system(wanted.source or "api")
        except identity.NotIdentifiable as why:
            problems.add("interaction.source", str(why))
            return ""

    def _clean(self, wanted: Recording, problems: engine.Problems) -> dict[str, Any]:
        detail = {InteractionKind.MESSAGE: "message", InteractionKind.SURVEY: "survey"}.get(
            wanted.kind, "note"
        )
        cleaned = dict(wanted.values)
        for key, (path, most) in _RECORD_TEXTS.items():
            if key in cleaned:
                field = f"interaction.{path.format(detail=detail)}"
                cleaned[key] = problems.text(field, cleaned[key], most=most, multiline=True)
        began_ms, ended_ms = wanted.began_ms, cleaned.get("ended_ms")
        if began_ms is not None and ended_ms is not None and ended_ms < began_ms:
            problems.add("interaction.end_time", "must not be before start_time")
        if not 0 <= cleaned.get("satisfaction", 0) <= 5:
            problems.add("interaction.survey.satisfaction", "must be 1 to 5, or 0 when not asked")
        if not 0 <= (cleaned.get("recommend_score") or 0) <= 10:
            problems.add("interaction.survey.recommend_score", "must be 0 to 10")
        return cleaned

    def _whose(self, wanted: Recording) -> dict[str, str]:
        number = ""
        if wanted.number:
            number = e164("interaction.phone_number", wanted.number, self._policy.default_country)
        standing = self._store.standing(wanted.customer) if wanted.customer else (State.ACTIVE, "")
        if standing is None:
            raise NotFound(resource=f"customers/{wanted.customer}")
        if standing[0] is State.ERASED:
            # What late events tell of such a person is stripped; who writes now is to know.
            raise engine.CustomerNotActive(subject=f"customers/{wanted.customer}", why="is ERASED")
        if not (number or wanted.customer):
            raise InvalidArgument(field="interaction.customer", why="or phone_number must be set")
        return {"customer": wanted.customer, "number": number}

    def _event(self, fact: Fact, actor: str) -> Event:
        entry = timeline.entry_of(fact)
        entry = replace(entry, subject=timeline.subject_for(entry, None))
        now = self._clock.now()
        message = convert.interaction_recorded(timeline.project(entry), actor, now)
        return Event.of(message, source=_SOURCE, subject=f"interactions/{entry.id}", time=now)


_RECORD_TEXTS = {
    "summary": ("summary", timeline.SUMMARY_CHARACTERS_MAX),
    "contact_reason": ("contact_reason", 200),
    "agent": ("agent", 160),
    "region": ("region", 160),
    "product": ("product", 128),
    "partner": ("partner", 128),
    "subject": ("{detail}.subject", timeline.SUMMARY_CHARACTERS_MAX),
    "text": ("{detail}.text", TEXT_CHARACTERS_MAX),
    "comment": ("{detail}.comment", TEXT_CHARACTERS_MAX),
    "survey": ("{detail}.survey", 128),
    "call_id": ("{detail}.call_id", 128),
}


class Questions:
    """Reading. Everything here is asynchronous."""

    def __init__(self, reads: Reads, policy: Policy) -> None:
        self._reads = reads
        self._policy = policy

    async def customer(self, id: str) -> Customer:
        """NotFound when there is none."""
        found = await self._reads.customer(id)
        if found is None:
            raise NotFound(resource=f"customers/{id}")
        return found

    async def shown(self, id: str) -> bytes | Customer:
        """The customer as `Reads.shown` has it; NotFound when there is none."""
        found = await self._reads.shown(id)
        if found is None:
            raise NotFound(resource=f"customers/{id}")
        return found

    async def customers(self, ids: Sequence[str]) -> list[Customer]:
        """In the order asked; NotFound for the first that does not exist."""
        found = await self._reads.customers(list(dict.fromkeys(ids)))
        for id in ids:
            if id not in found:
                raise NotFound(resource=f"customers/{id}")
        return [found[id] for id in ids]

    async def by_number(self, typed: str, country: str) -> bytes | Customer:
        """The owner of a number; NotFound when nobody owns it."""
        number = e164("phone_number", typed, default_country(country, self._policy))
        return await self._owner(identity.claim_of_number(number), "phone number")

    async def by_email(self, typed: str) -> bytes | Customer:
        """The owner of an address; NotFound when nobody owns it."""
        try:
            address = identity.email_address(typed)
        except identity.NotIdentifiable as why:
            raise InvalidArgument(field="email_address", why=str(why)) from None
        return await self._owner(identity.claim_of_email(address), "email address")

    async def by_external_id(self, system: str, id: str) -> bytes | Customer:
        """The owner of an id elsewhere; NotFound when nobody owns it."""
        problems = engine.Problems()
        try:
            identity.external_system(system)
        except identity.NotIdentifiable as why:
            problems.add("external_id.system", str(why))
        cleaned = problems.text("external_id.id", id, least=1, most=128)
        problems.raise_if_any()
        return await self._owner(identity.claim_of_external(system, cleaned), f"external id of {system}")

    async def _owner(self, claim: str, what: str) -> bytes | Customer:
        found = await self._reads.shown_owner(claim)
        if found is None:
            raise NotFound(resource=f"customer with this {what}")
        return found

    async def page(
        self, which: CustomerFilter, after: str | None, limit: int
    ) -> tuple[list[Customer], str | None]:
        """As `Reads.page`."""
        return await self._reads.page(await self._with_lineage(which), after, limit)

    async def _with_lineage(self, which: CustomerFilter) -> CustomerFilter:
        """With the companies that were merged into the one that is asked for."""
        if not which.company:
            return which
        below = await self._reads.lineage([which.company], SUBJECTS_MAX)
        return replace(which, companies_below=tuple(below))

    async def search(self, text: str, which: CustomerFilter, country: str = "") -> Sequence[search.Match]:
        """Those that resemble what was typed, best first. InvalidArgument(query)."""
        problems = engine.Problems()
        typed = problems.text(
            "query", text, least=search.QUERY_CHARACTERS_MIN, most=search.QUERY_CHARACTERS_MAX
        )
        problems.raise_if_any()
        query = search.understood(typed, default_country(country, self._policy))
        if query is None:
            raise InvalidArgument(field="query", why="must hold a letter or a digit")
        which = await self._with_lineage(which)
        found = {c.id: c for c in await self._reads.search(query.strict, which, CANDIDATES_MAX)}
        if len(found) >= CANDIDATES_MAX:
            for groups in query.by_kind:
                found |= {c.id: c for c in await self._reads.search(groups, which, KIND_CANDIDATES_MAX)}
        if len(found) < FEW_MATCHES and query.loose:
            # Few fit as typed: those that begin alike may have been meant.
            for customer in await self._reads.search([query.loose], which, CANDIDATES_MAX):
                found.setdefault(customer.id, customer)
        return search.ranked(found.values(), query, CANDIDATES_MAX)

    async def duplicates(self, id: str, score_min: float) -> list[Pair]:
        """Who is probably the same as one customer, highest score first. NotFound."""
        customer = await self.customer(id)
        return await self._duplicates_of(customer, score_min)

    async def _duplicates_of(self, customer: Customer, score_min: float) -> list[Pair]:
        if customer.state is not State.ACTIVE:
            return []
        terms = search.blocks(customer)
        candidates = {c.id: c for c in await self._reads.sharing(terms, CANDIDATES_MAX)}
        if len(candidates) >= CANDIDATES_MAX:
            # A day of birth that stands for "not known" is shared by thousands: they must not crowd out the
            # others.
            for term in terms:
                candidates |= {c.id: c for c in await self._reads.sharing([term], KIND_CANDIDATES_MAX)}
        return probable(customer, candidates.values(), score_min)

    async def pairs(
        self, after: tuple[str, str] | None, score_min: float, limit: int
    ) -> tuple[list[Pair], tuple[str, str] | None]:
        """(probable pairs among the next customers by id, what to go on behind or None at the end): a
        customer of whom all is told and "", or a pair. As many as there is time for, one at least.
        """
        found: list[Pair] = []
        looked, ends = 0, asyncio.get_running_loop().time() + _pairs_seconds()
        async with aclosing(self._people_behind(after)) as people:
            async for customer, told in people:
                pairs = await self._duplicates_of(customer, score_min)
                # Each pair once: with the lower id.
                behind = max(customer.id, told)
                mine = sorted((p for p in pairs if p.other > behind), key=attrgetter("other"))
                room, looked = limit - len(found), looked + 1
                found += mine[:room]
                if len(mine) > room:
                    return _highest(found), (customer.id, mine[room - 1].other)
                late = asyncio.get_running_loop().time() >= ends
                if late or len(found) >= limit or looked >= PAIRS_CUSTOMERS_MAX:
                    return _highest(found), (customer.id, "")
        return _highest(found), None

    async def _people_behind(
        self, after: tuple[str, str] | None
    ) -> AsyncGenerator[tuple[Customer, str], None]:
        """(live customers by id, whom of their duplicates the pages before ended with or "")."""
        id, told = after or (None, "")
        if id is not None and told and (begun := await self._reads.customer(id)) is not None:
            yield begun, told
        while True:
            page, id = await self._reads.page(CustomerFilter(), id, PAIRS_PAGE)
            for customer in page:
                yield customer, ""
            if id is None:
                return

    async def permission(
        self, id: str, channel: Channel, purpose: Purpose, at: datetime
    ) -> consent.Permission:
        """May the customer be contacted? NotFound."""
        return consent.permission(await self.customer(id), channel, purpose, at, self._policy.time_zone)

    async def interaction(self, id: str) -> Interaction:
        """NotFound when there is none."""
        found = await self._reads.interaction(id)
        if found is None:
            raise NotFound(resource=f"interactions/{id}")
        return found

    async def customers_timeline(
        self, id: str, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        """Newest first. NotFound for a customer that does not exist."""
        customer = await self.customer(id)
        for _ in range(SURVIVORS_MAX):
            if customer.state is not State.MERGED:
                break
            # What named a customer that was merged away means its survivor now.
            customer = await self.customer(customer.merged_into)
        return await self._reads.timeline(subjects_of(customer), which, after, limit)

    async def interactions(
        self, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> tuple[list[Interaction], tuple[int, str] | None]:
        """As `Reads.interactions`."""
        return await self._reads.interactions(which, after, limit)

    async def numbers_timeline(
        self, typed: str, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        """Newest first, of a number that nobody owned at the time."""
        number = e164("phone_number", typed, self._policy.default_country)
        return await self._reads.timeline([timeline.subject_of_number(number)], which, after, limit)


def _pairs_seconds() -> float:
    """How long a page of pairs may be looked for, real seconds."""
    left = remaining_seconds()
    return PAIRS_SECONDS_MAX if left is None else min(PAIRS_SECONDS_MAX, left * DEADLINE_SHARE)


def _highest(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (-pair.score, pair.customer, pair.other))


def subjects_of(customer: Customer) -> list[str]:
    """The timelines that are a customer's: its own, and those of its numbers from before it was known (the
    worker moves them over; until then they are found here).
    """
    numbers = engine.owned_numbers(customer)[: SUBJECTS_MAX - 1]
    return [timeline.subject_of_customer(customer.id), *map(timeline.subject_of_number, numbers)]


class ScreenPops:
    """The customer in one glance: never late, whatever the database does."""

    def __init__(self, reads: Reads, clock: Clock, policy: Policy) -> None:
        self._reads = reads
        self._clock = clock
        self._policy = policy

    async def get(self, typed: str, call_id: str, customer_id: str = "", country: str = "") -> ScreenPop:
        """Everything that could be had in time; what could not is named. InvalidArgument for a number that is
        none.
        """
        place = default_country(country, self._policy)
        number = e164("phone_number", typed, place) if typed.strip() else ""
        race = _Race(self._seconds())
        customer = await race.get(Part.CUSTOMER, self._who(number, customer_id), None)
        zone = self._zone(customer)
        pop = ScreenPop(number=number, customer=customer, time_zone=zone)
        if race.missing:
            # Whose calls, tickets and offers these are is not known: the number's alone would be too few.
            pop = replace(pop, missing=tuple(Part))
        else:
            pop = await self._filled(pop, race, call_id)
        return self._worded(pop)

    async def _filled(self, pop: ScreenPop, race: _Race, call_id: str) -> ScreenPop:
        wanted = GlanceWish(
            subjects=_pop_subjects(pop.number, pop.customer),
            day_start_ms=glance.day_start_ms(self._clock.now(), pop.time_zone),
            live_call=timeline.entry_id(InteractionKind.CALL, "routing", call_id),
            customer=pop.customer.id if pop.customer else "",
        )
        found = await race.early(self._reads.glance(wanted), ONE_QUESTION_SHARE)
        if found is None:
            # What keeps one part back must not cost the others.
            found = await self._part_by_part(wanted, race)
        return replace(
            pop,
            calls=None if Part.CALLS in race.missing else found.calls,
            tickets=glance.most_urgent(found.tickets),
            ticket_count=found.ticket_count,
            offers=glance.offers_to_show(found.rankings, self._clock.now_ms()),
            care=found.care,
            churn=found.churn,
            missing=tuple(part for part in Part if part in race.missing),
        )

    async def _part_by_part(self, wanted: GlanceWish, race: _Race) -> Glance:
        reads, subjects = self._reads, wanted.subjects
        calls = reads.recent_calls(subjects, wanted.day_start_ms, wanted.live_call)
        got = await asyncio.gather(
            race.get(Part.CALLS, calls, RecentCalls(today=0, last=None)),
            race.get(Part.TICKETS, reads.open_tickets(subjects), ((), 0)),
            race.get(Part.OFFERS, reads.rankings(subjects), ()),
            race.get(Part.CARE, reads.care(wanted.customer), ()),
            race.get(Part.CHURN, reads.churn(wanted.customer), None),
        )
        recent, (tickets, count), rankings, care, churn = got
        return Glance(
            calls=recent, tickets=tickets, ticket_count=count, rankings=rankings, care=care, churn=churn
        )

    def _seconds(self) -> float:
        left = remaining_seconds()
        mine = self._policy.screen_pop_seconds
        return mine if left is None else min(mine, left * DEADLINE_SHARE)

    async def _who(self, number: str, customer_id: str) -> Customer | None:
        if customer_id:
            found = await self._reads.customer(customer_id)
            for _ in range(SURVIVORS_MAX):
                if found is None or found.state is not State.MERGED:
                    break
                found = await self._reads.customer(found.merged_into)
            return found if found is not None and found.state is State.ACTIVE else None
        return await self._reads.owner(identity.claim_of_number(number)) if number else None

    def _zone(self, customer: Customer | None) -> str:
        own = customer.time_zone if customer else ""
        return own if own and engine.is_time_zone(own) else self._policy.time_zone

    def _worded(self, pop: ScreenPop) -> ScreenPop:
        """With what is to be said, in the customer's language."""
        contact = next((c for c in _contacts(pop) if _has_number(c, pop.number)), None)
        tag = (contact.language if contact else "") or (pop.customer.language if pop.customer else "")
        language = glance.pop_language(tag, self._policy.language)
        name = contact.display_name if contact else pop.customer.display_name if pop.customer else ""
        again = pop.calls is not None and pop.calls.today > 0
        return replace(
            pop,
            contact_name=contact.display_name if contact else "",
            language=language,
            greeting=glance.greeting(language, name, self._clock.now(), pop.time_zone, again=again),
            repeat_notice=glance.repeat_notice(language, pop.calls, pop.time_zone) if pop.calls else "",
        )


def _contacts(pop: ScreenPop) -> Sequence[Any]:
    return pop.customer.contacts if pop.customer else ()


def _has_number(contact: Any, number: str) -> bool:
    return any(held.number == number for held in contact.phone_numbers)


def _pop_subjects(number: str, customer: Customer | None) -> list[str]:
    if customer is not None:
        return subjects_of(customer)
    return [timeline.subject_of_number(number)] if number else []


class _Race:
    """Several questions against one deadline."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds
        #: The parts that lost.
        self.missing: set[Part] = set()

    async def early(self, question: Awaitable[Result], share: float) -> Result | None:
        """The answer, or None when it fails or takes more than its share of the time that is left."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + (self._end - now) * share):
                return await question
        except TimeoutError:
            return None
        except Exception as error:
            _log.warning("screen_pop.glance_failed", error=translate(error).reason)
            return None

    async def get(self, part: Part, question: Awaitable[Result], instead: Result) -> Result:
        """The answer, or `instead` when it is late or fails; then the part is missing."""
        try:
            async with asyncio.timeout_at(self._end):
                return await question
        except TimeoutError:
            self.missing.add(part)
        except Exception as error:
            # One part's failure, of whatever kind, must not cost the agent the others.
            self.missing.add(part)
            _log.warning("screen_pop.part_failed", part=part.value, error=translate(error).reason)
        return instead
