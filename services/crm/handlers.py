"""Use cases: load, decide, save with what it tells the others. The blocking ones run in the server's threads
and in the worker, the asynchronous ones on the server's loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from chassis import logs
from chassis.bus import Event
from chassis.callcontext import remaining_seconds
from chassis.clock import Clock
from chassis.errors import (
    AlreadyExists,
    CallmeshError,
    EtagMismatch,
    InvalidArgument,
    NotFound,
    Unavailable,
    translate,
)
from chassis.ids import new_id
from chassis.mongo import retry_conflicts
from crm import convert, engine, glance, identity, timeline
from crm.model import (
    AuditEntry,
    Customer,
    CustomerFilter,
    Entry,
    Fact,
    Interaction,
    InteractionKind,
    Kind,
    OfferRanking,
    Part,
    ScreenPop,
    State,
    TimelineFilter,
)
from crm.store import NewCustomer, Reads, Store

#: Tries of a read-merge-write that other writers get in between of.
MERGE_TRIES_MAX = 20
#: Keys of timelines that one question looks at: a customer's own and those of its numbers.
SUBJECTS_MAX = 64
#: Share of the caller's own deadline that a screen pop uses, so that the answer still arrives.
DEADLINE_SHARE = 0.8
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


class Customers:
    """Writing customers. Everything here blocks."""

    def __init__(self, store: Store, clock: Clock, policy: Policy) -> None:
        self._store = store
        self._clock = clock
        self._policy = policy

    def create(self, wanted: Create, actor: str) -> Customer:
        """Creates, or answers what an earlier call with the same request key created."""
        new = self._decide_new(wanted, actor)
        return self._checked(new) if wanted.dry else self._store.insert(new)

    def create_many(self, wanted: Sequence[Create], actor: str) -> list[Customer | CallmeshError]:
        """Each as by `create`, in order; one's fault does not touch another."""
        decided = [self._try_new(item, actor) for item in wanted]
        good = [item for item in decided if isinstance(item, NewCustomer)]
        stored = iter(self._store.insert_many(good))
        return [next(stored) if isinstance(item, NewCustomer) else item for item in decided]

    def _try_new(self, wanted: Create, actor: str) -> NewCustomer | Customer | CallmeshError:
        """What is to be stored; for a dry one what would be."""
        try:
            new = self._decide_new(wanted, actor)
            return self._checked(new) if wanted.dry else new
        except CallmeshError as error:
            return error

    def _checked(self, new: NewCustomer) -> Customer:
        customer = new.change.customer
        if self._store.customer(customer.id) is not None:
            raise AlreadyExists(resource=customer.name)
        self._check_claims(customer)
        return customer

    def _decide_new(self, wanted: Create, actor: str) -> NewCustomer:
        now = self._clock.now()
        id = wanted.id or new_id()
        country = default_country(wanted.default_country, self._policy)
        customer = engine.normalise(replace(wanted.draft, id=id), country, now.date())
        self._check_company(customer)
        change = engine.create(customer, id, actor, now)
        event = self._event(change, convert.customer_created(change))
        return NewCustomer(
            change=change, events=[event], request_key=wanted.request_key, fingerprint=wanted.fingerprint
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
            now = self._clock.now()
            wanted = engine.normalise(edit(current), place, now.date())
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
        self._store.save(change, [self._event(change, message)])
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
        taken = engine.claim_taken(customer, self._store.owners(engine.claims(customer)))
        if taken is not None:
            raise taken

    def _again(self, once: Callable[[], Result], expected_version: int | None) -> Result:
        return retry_conflicts(once) if expected_version is None else once()


class Memory:
    """Growing the timeline and the cached offers from what other services tell. Everything here blocks and
    may be repeated.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def apply(self, fact: Fact, events: Sequence[Event] = ()) -> Entry:
        """Merges one report into its interaction; what it tells the others goes out with the first report
        alone.
        """
        id = timeline.entry_id(fact.kind, fact.source, fact.source_id)
        for _ in range(MERGE_TRIES_MAX):
            known = self._store.entry(id)
            merged = timeline.entry_of(fact) if known is None else timeline.merge(known, fact)
            placed = replace(merged, subject=timeline.subject_for(merged, self._owner(merged)))
            if placed == known:
                return placed
            placed = replace(placed, updated_ms=self._clock.now_ms())
            if self._store.save_entry(placed, events if known is None else ()):
                return self._settle(placed)
        raise Unavailable(why="an interaction is changed by too many at once", retry_seconds=1.0)

    def _owner(self, entry: Entry) -> str | None:
        if timeline.named_customer(entry) or timeline.is_customers(entry.subject):
            return None
        number = timeline.number_of(entry)
        return self._owner_of(number) if number else None

    def _owner_of(self, number: str) -> str | None:
        claim = identity.claim_of_number(number)
        return self._store.owners([claim]).get(claim)

    def _settle(self, entry: Entry) -> Entry:
        # A customer with this number may have appeared between our look and our write; then either its
        # `attach` saw the
        # interaction, or this second look sees the customer.
        if not entry.subject or timeline.is_customers(entry.subject):
            return entry
        number = timeline.number_of(entry)
        owner = self._owner_of(number)
        if owner is None:
            return entry
        self._store.attach(number, owner)
        return replace(entry, subject=timeline.subject_of_customer(owner))

    def attach_numbers(self, customer_id: str, numbers: Sequence[str]) -> int:
        """Gives a customer what its numbers did before it was known: only of numbers that it owns now,
        whatever the event said that caused this. Answers how many interactions moved.
        """
        owners = self._store.owners(identity.claim_of_number(number) for number in numbers)
        own = [n for n in numbers if owners.get(identity.claim_of_number(n)) == customer_id]
        return sum(self._store.attach(number, customer_id) for number in own)

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

    def record(self, wanted: Recording, actor: str) -> Interaction:
        """Records, or answers what was recorded before under the same source and id."""
        problems = engine.Problems()
        source = self._source(wanted, problems)
        source_id = problems.text("interaction.source_id", wanted.source_id, most=128) or new_id()
        values = self._clean(wanted, problems)
        problems.raise_if_any()
        known = self._store.entry(timeline.entry_id(wanted.kind, source, source_id))
        if known is not None:
            return timeline.project(known)
        fact = Fact(
            kind=wanted.kind,
            source=source,
            source_id=source_id,
            facet="record",
            stamp=(0,),
            values={**values, **self._whose(wanted)},
            began_ms=self._clock.now_ms() if wanted.began_ms is None else wanted.began_ms,
        )
        return timeline.project(self._memory.apply(fact, [self._event(fact, actor)]))

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
        if not 0 <= cleaned.get("satisfaction", 0) <= 5:
            problems.add("interaction.survey.satisfaction", "must be 1 to 5, or 0 when not asked")
        if not 0 <= (cleaned.get("recommend_score") or 0) <= 10:
            problems.add("interaction.survey.recommend_score", "must be 0 to 10")
        return cleaned

    def _whose(self, wanted: Recording) -> dict[str, str]:
        number = ""
        if wanted.number:
            number = e164("interaction.phone_number", wanted.number, self._policy.default_country)
        if wanted.customer and self._store.customer(wanted.customer) is None:
            raise NotFound(resource=f"customers/{wanted.customer}")
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

    async def customers(self, ids: Sequence[str]) -> list[Customer]:
        """In the order asked; NotFound for the first that does not exist."""
        found = await self._reads.customers(list(dict.fromkeys(ids)))
        for id in ids:
            if id not in found:
                raise NotFound(resource=f"customers/{id}")
        return [found[id] for id in ids]

    async def by_number(self, typed: str, country: str) -> Customer:
        """The owner of a number; NotFound when nobody owns it."""
        number = e164("phone_number", typed, default_country(country, self._policy))
        return await self._owner(identity.claim_of_number(number), "phone number")

    async def by_email(self, typed: str) -> Customer:
        """The owner of an address; NotFound when nobody owns it."""
        try:
            address = identity.email_address(typed)
        except identity.NotIdentifiable as why:
            raise InvalidArgument(field="email_address", why=str(why)) from None
        return await self._owner(identity.claim_of_email(address), "email address")

    async def by_external_id(self, system: str, id: str) -> Customer:
        """The owner of an id elsewhere; NotFound when nobody owns it."""
        problems = engine.Problems()
        try:
            identity.external_system(system)
        except identity.NotIdentifiable as why:
            problems.add("external_id.system", str(why))
        cleaned = problems.text("external_id.id", id, least=1, most=128)
        problems.raise_if_any()
        return await self._owner(identity.claim_of_external(system, cleaned), f"external id of {system}")

    async def _owner(self, claim: str, what: str) -> Customer:
        found = await self._reads.owner(claim)
        if found is None:
            raise NotFound(resource=f"customer with this {what}")
        return found

    async def page(self, which: CustomerFilter, after: str | None, limit: int) -> list[Customer]:
        """Customers in the order of ids."""
        return await self._reads.page(which, after, limit)

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
        subjects = subjects_of(await self.customer(id))
        return await self._reads.timeline(subjects, which, after, limit)

    async def numbers_timeline(
        self, typed: str, which: TimelineFilter, after: tuple[int, str] | None, limit: int
    ) -> list[Interaction]:
        """Newest first, of a number that nobody owned at the time."""
        number = e164("phone_number", typed, self._policy.default_country)
        return await self._reads.timeline([timeline.subject_of_number(number)], which, after, limit)


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
        subjects = _pop_subjects(pop.number, pop.customer)
        live = timeline.entry_id(InteractionKind.CALL, "routing", call_id)
        day_start_ms = glance.day_start_ms(self._clock.now(), pop.time_zone)
        calls, (tickets, count), rankings = await asyncio.gather(
            race.get(Part.CALLS, self._reads.recent_calls(subjects, day_start_ms, live), None),
            race.get(Part.TICKETS, self._reads.open_tickets(subjects), ((), 0)),
            race.get(Part.OFFERS, self._reads.rankings(subjects), ()),
        )
        return replace(
            pop,
            calls=calls,
            tickets=glance.most_urgent(tickets),
            ticket_count=count,
            offers=glance.offers_to_show(rankings, self._clock.now_ms()),
            missing=tuple(part for part in Part if part in race.missing),
        )

    def _seconds(self) -> float:
        left = remaining_seconds()
        mine = self._policy.screen_pop_seconds
        return mine if left is None else min(mine, left * DEADLINE_SHARE)

    async def _who(self, number: str, customer_id: str) -> Customer | None:
        if customer_id:
            found = await self._reads.customer(customer_id)
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
