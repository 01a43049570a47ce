"""Use cases: load, decide, save with what is to be told. The same for the gRPC server and the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chassis.clock import Clock
from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, InvalidArgument, Unavailable
from chassis.idempotency import check_repeat
from chassis.ids import new_id
from chassis.mongo import retry_conflicts
from tickets import engine
from tickets.filters import Condition
from tickets.flows import FLOWS
from tickets.model import CallFacts, Change, Draft, Happening, Intent, Kind, Profile, Rules, Step, Ticket
from tickets.store import Query, TicketStore
from tickets.validation import check_draft

if TYPE_CHECKING:
    from chassis.bus import Event

#: How often a call looks for its ticket again while others open and close tickets of the same caller.
CALL_ATTEMPTS_MAX = 5
#: Tickets taken over at once when a customer becomes known, is merged or erased.
BATCH_MAX = 100
#: Batches of one such change; what is left then comes with the message's next delivery.
BATCHES_MAX = 100
#: A day of business time.
DAY_MS = 86_400_000
#: Latest return visit that a customer may ask for, days after the call.
FOLLOW_UP_DAYS_MAX = 366
#: How long a ticket's timers are held back after one failed, business ms.
POSTPONE_MS = 60_000

#: Makes the event of what happened to a ticket; `convert.event_of`.
Encode = Callable[[Ticket, Happening], "Event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Create:
    """A ticket to be opened by hand."""

    kind: Kind
    draft: Draft
    actor: str
    #: Chosen by the client; empty: chosen here.
    ticket_id: str = ""
    #: Id of a flow; empty: the kind's own.
    flow: str = ""
    parent_id: str = ""
    request_key: str | None = None
    fingerprint: str | None = None
    validate_only: bool = False


class Handlers:
    """The use cases. Safe for threads; holds no state of its own."""

    def __init__(self, store: TicketStore, clock: Clock, rules: Rules, encode: Encode) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules
        self._encode = encode

    # ---- for people

    def create(self, command: Create) -> Ticket:
        """Opens a ticket; a repeat with the same request key answers the first one's. InvalidArgument naming
        each bad field, AlreadyExists when the chosen id is taken."""
        self._check_create(command)
        draft, tier = self._with_customer(command.draft)
        change = engine.open_ticket(
            command.ticket_id or new_id(),
            command.kind,
            draft,
            self._rules,
            self._clock.now_ms(),
            actor=command.actor,
            flow=command.flow,
            tier=tier,
            parent_id=command.parent_id,
        )
        if command.validate_only:
            return change.ticket
        return self._insert(change, command.request_key, command.fingerprint)[0]

    def _check_create(self, command: Create) -> None:
        check_draft(command.draft)
        found: list[tuple[str, str]] = []
        if command.kind is Kind.RETURN_VISIT:
            found.append(("ticket.kind", "return visits are made by the service, after a resolution"))
        flow = FLOWS.get(command.flow or command.kind.value)
        if flow is None or flow.kind is not command.kind:
            found.append(("ticket.flow", "must be a flow of the ticket's kind, or empty"))
        if engine.VISIT_MARK in command.ticket_id or command.ticket_id.startswith(engine.CALL_PREFIX):
            found.append(("ticket_id", "has a form that the service keeps for itself"))
        if len(command.ticket_id) > engine.TICKET_ID_CHARACTERS_MAX:
            found.append(("ticket_id", f"must be at most {engine.TICKET_ID_CHARACTERS_MAX} characters"))
        if command.parent_id and self._store.find(command.parent_id) is None:
            found.append(("ticket.parent", "does not exist"))
        if found:
            raise InvalidArgument.many(found)

    def _with_customer(self, draft: Draft) -> tuple[Draft, str]:
        """The draft with the customer that its number belongs to, and the customer's tier."""
        if draft.customer_id:
            profile = self._store.profile(draft.customer_id)
        else:
            profile = self._store.profile_of_number(draft.caller_number) if draft.caller_number else None
        if profile is None:
            return draft, ""
        language = draft.language or profile.language
        return replace(draft, customer_id=profile.customer_id, language=language), profile.tier

    def update(
        self,
        ticket_id: str,
        version: int | None,
        edit: Callable[[Ticket], Draft],
        *,
        actor: str,
        validate_only: bool = False,
    ) -> Ticket:
        """Changes what people fill in. `edit` makes the new draft of the ticket as it is; it may run several
        times.

        NotFound, EtagMismatch when `version` is given and not the ticket's, InvalidArgument naming each bad
        field.
        """

        def attempt() -> Ticket:
            ticket = self._store.get(ticket_id)
            _check_version(ticket, version)
            draft = edit(ticket)
            check_draft(draft)
            tier = None
            if draft.customer_id != ticket.draft.customer_id:
                profile = self._store.profile(draft.customer_id) if draft.customer_id else None
                tier = profile.tier if profile else ""
            change = engine.update(ticket, draft, self._rules, self._clock.now_ms(), actor=actor, tier=tier)
            return change.ticket if validate_only else self._save(change)

        return attempt() if version is not None else retry_conflicts(attempt)

    def transition(
        self, ticket_id: str, version: int | None, act: engine.Act, *, validate_only: bool = False
    ) -> Ticket:
        """Takes a ticket through a transition; a repeat with the same request key answers the ticket as it
        is.

        NotFound, EtagMismatch, IllegalTransition, InvalidArgument naming each missing text.
        """

        def attempt() -> Ticket:
            ticket = self._store.get(ticket_id)
            if _is_repeat(ticket, act):
                return ticket
            _check_version(ticket, version)
            change = engine.transition(ticket, act, self._rules, self._clock.now_ms())
            return change.ticket if validate_only else self._save(change)

        changed = attempt() if version is not None else retry_conflicts(attempt)
        return changed if validate_only else self._carry_out_now(changed)

    def _carry_out_now(self, ticket: Ticket) -> Ticket:
        """What a ticket means for others is done at once where possible; what fails is stored and done by
        the worker."""
        for intent in ticket.intents:
            try:
                ticket = self._carry_out(ticket, intent)
            except CallmeshError:
                return ticket
        return ticket

    def page(self, query: Query, limit: int, after: tuple[int, str] | None) -> list[Ticket]:
        """At most `limit` tickets after a sort key, without texts."""
        return self._store.page(query, limit, after)

    def steps(self, ticket_id: str, after: int, limit: int) -> list[Step]:
        """At most `limit` steps of a ticket's history; NotFound."""
        return self._store.steps(ticket_id, after, limit)

    # ---- for calls

    def call_wrapped_up(self, facts: CallFacts) -> Ticket | None:
        """The one ticket that a finished call has to do with: its own, or an open one that it joins; None
        when its agent asked for none. Safe to repeat and against others at the same time. Unavailable when
        others keep getting in between."""
        if facts.request is None:
            return None
        facts = self._believable(facts)
        for _ in range(CALL_ATTEMPTS_MAX):
            known = self._store.by_call(facts.call_id)
            if known is not None:
                return known
            try:
                return self._link_call(facts)
            except (EtagMismatch, AlreadyExists):
                continue  # somebody opened, changed or closed the ticket that was to be joined: look again
        raise Unavailable(why="the caller's tickets are changing too fast")

    def _believable(self, facts: CallFacts) -> CallFacts:
        """The facts with the customer, and with times that cannot be right replaced."""
        now = self._clock.now_ms()
        time_ms = facts.time_ms if 0 < facts.time_ms <= now + DAY_MS else now
        again = facts.follow_up_ms
        if again is not None and not time_ms <= again <= time_ms + FOLLOW_UP_DAYS_MAX * DAY_MS:
            again = None
        profile = self._store.profile_of_number(facts.number) if facts.number else None
        return replace(facts, time_ms=time_ms, follow_up_ms=again, profile=profile)

    def _link_call(self, facts: CallFacts) -> Ticket:
        kind, draft = engine.call_draft(facts)
        topic = engine.topic_of(kind, draft)
        open_ones = self._store.open_like(draft.customer_id, draft.caller_number, topic)
        join = engine.joinable(kind, draft, open_ones)
        if join is None:
            return self._insert(engine.open_from_call(facts, self._rules))[0]
        return self._save(engine.attach_call(join, facts, self._rules))

    # ---- for what crm tells

    def customer_known(self, profile: Profile) -> None:
        """Keeps what is known of a customer, and gives it the open tickets of its numbers that nobody owned.
        Safe to repeat and out of order."""
        self._store.save_profile(profile)
        latest = self._store.profile(profile.customer_id)
        if latest is None or latest.version != profile.version:
            return  # a newer one came before and has done, or will do, the rest
        for number in latest.numbers:
            for ticket in self._store.open_of_number(number, BATCH_MAX):
                self._adopt(ticket.id, latest)

    def _adopt(self, ticket_id: str, profile: Profile) -> None:
        def attempt() -> None:
            ticket = self._store.get(ticket_id)
            self._save(engine.adopt(ticket, profile, self._rules, self._clock.now_ms()))

        retry_conflicts(attempt)

    def customers_merged(self, survivor: Profile, absorbed: Sequence[str]) -> None:
        """Gives the tickets of absorbed customers to the survivor. Safe to repeat; Unavailable when there
        are more than one delivery can move (the next goes on)."""
        self.customer_known(survivor)
        for customer_id in absorbed:
            if customer_id != survivor.customer_id:
                self._each_of(customer_id, lambda ticket_id: self._adopt(ticket_id, survivor))

    def customer_erased(self, customer_id: str, version: int) -> None:
        """Removes what is personal from the customer's tickets and profile. Safe to repeat."""
        self._store.save_profile(Profile(customer_id=customer_id, version=version))

        def erase(ticket_id: str) -> None:
            def attempt() -> None:
                self._store.blank_steps(ticket_id)
                self._save(engine.erase(self._store.get(ticket_id), self._clock.now_ms()))

            retry_conflicts(attempt)

        self._each_of(customer_id, erase)

    def _each_of(self, customer_id: str, work: Callable[[str], None]) -> None:
        """Does `work` to every ticket of a customer; `work` must make it somebody else's (or nobody's)."""
        query = Query(conditions=(Condition(field="customer", op="=", value=customer_id),))
        for _ in range(BATCHES_MAX):
            batch = self._store.page(query, BATCH_MAX, None)
            if not batch:
                return
            for ticket in batch:
                work(ticket.id)
        raise Unavailable(why=f"customers/{customer_id} has more tickets than one delivery handles")

    # ---- for timers

    def due(self, limit: int) -> list[str]:
        """Ids of tickets with a timer due, longest due first."""
        return self._store.due(self._clock.now_ms(), limit)

    def next_due_ms(self) -> int | None:
        """When the next timer is due, business time; None when there is none."""
        return self._store.next_due_ms()

    def fire(self, ticket_id: str) -> None:
        """Does what is due because of a ticket: tells passed targets, makes a planned return visit, carries
        out intents.

        Exactly once in effect: each is one conditional write that also takes the timer away; what lies in
        another ticket has an id or a condition that makes a repeat harmless. NotFound is no error: then
        nothing is due.
        """
        retry_conflicts(lambda: self._fire(ticket_id))

    def _fire(self, ticket_id: str) -> None:
        ticket, now = self._store.find(ticket_id), self._clock.now_ms()
        if ticket is None:
            return
        read = ticket
        ticket = self._save(engine.breach(ticket, now))
        if engine.visit_due(ticket, now):
            ticket = self._make_visit(ticket, now)
        for intent in ticket.intents:
            if intent.time_ms <= now:
                ticket = self._carry_out(ticket, intent)
        due = engine.next_timer_ms(read)
        if ticket.version == read.version and (due is None or due > now):
            # The index said that something is due, the ticket says that nothing is: bring the index in line.
            self._store.update(ticket, ())

    def _make_visit(self, ticket: Ticket, now: int) -> Ticket:
        visit = engine.make_visit(ticket, self._rules, now)
        try:
            self._insert(visit)
        except AlreadyExists:
            pass  # made before a crash; its id depends on the resolution alone
        return self._save(engine.visit_made(ticket, now))

    def _carry_out(self, ticket: Ticket, intent: Intent) -> Ticket:
        """Does to the other ticket what `intent` says, then takes the intent off."""

        def attempt() -> None:
            other = self._store.find(intent.ticket_id)
            if other is not None:
                now = self._clock.now_ms()
                self._save(engine.carry_out(intent, other, self._rules, now, cause=ticket.id))

        retry_conflicts(attempt)
        return self._store.update(engine.without_intent(ticket, intent), ())

    def postpone(self, ticket_id: str) -> None:
        """Holds a ticket's timers back after one failed, so that it doesn't keep others waiting."""

        def attempt() -> None:
            ticket = self._store.find(ticket_id)
            if ticket is not None:
                self._store.update(engine.postponed(ticket, self._clock.now_ms() + POSTPONE_MS), ())

        retry_conflicts(attempt)

    # ---- saving

    def _events(self, ticket: Ticket, happenings: Sequence[Happening], version: int) -> list[Event]:
        stored = replace(ticket, version=version)
        return [self._encode(stored, happening) for happening in happenings]

    def _insert(
        self, change: Change, request_key: str | None = None, fingerprint: str | None = None
    ) -> tuple[Ticket, bool]:
        events = self._events(change.ticket, change.happenings, 1)
        return self._store.insert(change.ticket, events, request_key=request_key, fingerprint=fingerprint)

    def _save(self, change: Change) -> Ticket:
        """Stores a change; one without happenings changes nothing and is not stored."""
        if not change.happenings:
            return change.ticket
        events = self._events(change.ticket, change.happenings, change.ticket.version + 1)
        return self._store.update(change.ticket, events)


def _check_version(ticket: Ticket, version: int | None) -> None:
    if version is not None and version != ticket.version:
        raise EtagMismatch(resource=f"tickets/{ticket.id}")


def _is_repeat(ticket: Ticket, act: engine.Act) -> bool:
    """Whether this very request was carried out before; RequestIdReused when it asked for something else
    then."""
    if not act.request_key:
        return False
    for step in ticket.history:
        if step.request_key == act.request_key:
            check_repeat(step.fingerprint, act.fingerprint)
            return True
    return False
