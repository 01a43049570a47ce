"""Use cases: load, decide, save with what is to be told. The same for the gRPC server and the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pymongo.errors import PyMongoError

from chassis.clock import Clock
from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, InvalidArgument, NotFound, Unavailable
from chassis.idempotency import check_repeat
from chassis.mongo import retry_conflicts
from tickets import desk, engine
from tickets.filters import Condition, Not, Term
from tickets.model import (
    COMMENTS_MAX,
    CallFacts,
    CareFacts,
    Change,
    Comment,
    Draft,
    Happening,
    Intent,
    IntentKind,
    Kind,
    Link,
    Phase,
    Profile,
    Relation,
    Step,
    Ticket,
)
from tickets.opening import (
    SURVIVORS_MAX,
    Create,
    RulesSource,
    check_create,
    check_free,
    check_kind,
    plan_create,
    rules_of,
)
from tickets.owners import brought, first_customer, guests_with
from tickets.store import Changed, Query, Sifted, TicketStore, sort_key
from tickets.validation import check_draft

if TYPE_CHECKING:
    from chassis.bus import Event

#: How often a call looks for its ticket again while others open and close tickets of the same caller.
CALL_ATTEMPTS_MAX = 5
#: Mean of a survey's scores, 1.0 to 5.0, up to which its caller was not satisfied.
DISSATISFIED_MAX = 2.0
#: The best that a caller can say.
SATISFACTION_MAX = 5.0
#: Tickets taken over at once when a customer becomes known, is merged or erased.
BATCH_MAX = 100
#: Batches of one such change; what is left then comes with the message's next delivery.
BATCHES_MAX = 100
#: Tickets that one such change moves.
MOVES_MAX = BATCH_MAX * BATCHES_MAX
#: Tickets of a team's pile that are tried for one to claim.
PILE_MAX = 200
#: Comments that one split may copy, bytes of UTF-8: all of them are in the new ticket for a moment.
SPLIT_BYTES_MAX = 4_194_304
#: Tickets fetched at once where all that match are wanted.
ALL_PAGE = 1_000
#: A day of business time.
DAY_MS = 86_400_000
#: Latest return visit that a customer may ask for, days after the call.
FOLLOW_UP_DAYS_MAX = 366
#: How long a ticket's timers are held back after one failed, business ms.
POSTPONE_MS = 60_000

#: How long after an erasure its tickets are looked for once more: longer than any call or delivery takes that
#: read the customer before it, real seconds.
LOOK_AGAIN_SECONDS = 900

#: A flow has no such transition, or asks for what only people can give.
LEFT_TO_PEOPLE = (engine.IllegalTransition, engine.TransitionIncomplete, InvalidArgument)

#: Tickets that have no customer.
_NOBODYS = Not(term=Condition(field="customer", op=":*", value=True))

#: Makes the event of what happened to a ticket; `convert.event_of`.
Encode = Callable[[Ticket, Happening], "Event"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Which ticket is to be changed, and on what terms."""

    #: Its id.
    ticket_id: str
    #: The version that the caller read; None: whatever it is now.
    version: int | None = None
    #: Key and content of the request, for repeats; empty: not to be repeated.
    key: str = ""
    fingerprint: str = ""
    #: Check everything, change nothing.
    validate_only: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What a split made."""

    #: The ticket that was split.
    original: Ticket
    #: The new one.
    created: Ticket


class Handlers:
    """The use cases. Safe for threads; holds no state of its own."""

    def __init__(self, store: TicketStore, clock: Clock, rules: RulesSource, encode: Encode) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules_of(rules)
        self._encode = encode

    # ---- for people

    def create(self, command: Create) -> Ticket:
        """Opens a ticket as `Opening.create` does, for callers that may block."""
        parent = self._store.find(command.parent_id) if command.parent_id else None
        check_create(command, parent_exists=parent is not None)
        change = self._planned(command)
        if command.validate_only:
            check_free(command, self._store.find(change.ticket.id))
            return change.ticket
        return self._insert(change, command.request_key, command.fingerprint)[0]

    def _planned(self, command: Create) -> Change:
        path = self._path_of(command.draft.customer_id, command.draft.caller_number)
        return plan_create(command, path, self._rules(), self._clock.now_ms())

    def _path_of(self, customer_id: str, number: str = "") -> list[Profile]:
        """What is known of a customer (or of who owns a number), and of those who took it over, one after
        another."""
        if customer_id:
            found = self._store.profile(customer_id)
        else:
            found = self._store.profile_of_number(number) if number else None
        path: list[Profile] = []
        while found is not None and len(path) <= SURVIVORS_MAX:
            path.append(found)
            found = self._store.profile(found.merged_into) if found.merged_into else None
        return path

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
            change = self._edited(ticket, edit(ticket), actor)
            return change.ticket if validate_only else self._save(change)

        return attempt() if version is not None else retry_conflicts(attempt)

    def _edited(self, ticket: Ticket, draft: Draft, actor: str) -> Change:
        check_draft(draft)
        check_kind(ticket.kind, draft)
        tier, path = None, list[Profile]()
        new_number = draft.caller_number if draft.caller_number != ticket.draft.caller_number else ""
        if draft.customer_id != ticket.draft.customer_id or (new_number and not draft.customer_id):
            path = self._path_of(draft.customer_id, new_number)
            profile = path[-1] if path else None
            engine.check_served(profile)
            if profile is not None:
                draft = replace(draft, customer_id=profile.customer_id)
            tier = profile.tier if profile else ""
        change = engine.update(ticket, draft, self._rules(), self._clock.now_ms(), actor=actor, tier=tier)
        return engine.of_path(change, path)

    def edit_and_move(
        self,
        ticket_id: str,
        edit: Callable[[Ticket], Draft] | None,
        act: engine.Act | None,
        *,
        actor: str,
        validate_only: bool = False,
    ) -> bool:
        """Changes what people fill in and takes the ticket through a transition, in one write: both or
        neither. Whether the ticket changed, or would; a repeat of the transition says that it did.

        NotFound, and what `update` and `transition` raise.
        """

        def attempt() -> tuple[Ticket, bool]:
            ticket = self._store.get(ticket_id)
            if act is not None and _is_repeat(ticket, act):
                return ticket, True
            change = self._edited(ticket, edit(ticket), actor) if edit is not None else Change(ticket=ticket)
            if act is not None:
                moved = engine.transition(change.ticket, act, self._rules(), self._clock.now_ms())
                change = replace(moved, happenings=change.happenings + moved.happenings)
            return (change.ticket if validate_only else self._save(change)), bool(change.happenings)

        ticket, changed = retry_conflicts(attempt)
        if not validate_only:
            self._carry_out_now(ticket)
        return changed

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
            change = engine.transition(ticket, act, self._rules(), self._clock.now_ms())
            return change.ticket if validate_only else self._save(change)

        changed = attempt() if version is not None else retry_conflicts(attempt)
        return changed if validate_only else self._carry_out_now(changed)

    def _carry_out_now(self, ticket: Ticket) -> Ticket:
        """What a ticket means for others is done at once where possible; what fails is stored and done by
        the worker."""
        for intent in ticket.intents:
            try:
                ticket = self._carry_out(ticket, intent)
            except (CallmeshError, PyMongoError):
                return ticket
        return ticket

    def page(self, query: Query, limit: int, after: tuple[int, str] | None) -> list[Ticket]:
        """At most `limit` tickets after a sort key, without texts."""
        return self._store.page(query, limit, after)

    def sift(self, query: Query, limit: int, after: tuple[int, str] | None) -> Sifted:
        """As `page`, with bounded work whatever the filter is."""
        return self._store.sift(query, limit, after)

    def steps(self, ticket_id: str, after: int, limit: int) -> list[Step]:
        """At most `limit` steps of a ticket's history; NotFound."""
        return self._store.steps(ticket_id, after, limit)

    # ---- around the flow

    def get(self, ticket_id: str) -> Ticket:
        """The ticket, whole; NotFound."""
        return self._store.get(ticket_id)

    def exists(self, ticket_id: str) -> bool:
        """Whether there is such a ticket."""
        return self._store.find(ticket_id) is not None

    def count(self, query: Query) -> int:
        """How many tickets match."""
        return self._store.count(query)

    def all_of(self, query: Query, most: int) -> list[Ticket]:
        """The newest tickets that match, without texts, at most `most`."""
        found: list[Ticket] = []
        after: tuple[int, str] | None = None
        while len(found) < most:
            page = self._store.page(query, min(ALL_PAGE, most - len(found)), after)
            found += page
            if len(page) < ALL_PAGE:
                break
            after = sort_key(page[-1], query)
        return found[:most]

    def change(self, request: Request, decide: Callable[[Ticket, int], Change]) -> Ticket:
        """Changes a ticket as `decide(ticket, now)` says; it may run several times. A repeat of the request
        answers the ticket as it is.

        NotFound, EtagMismatch, RequestIdReused, and what `decide` raises.
        """

        def attempt() -> Ticket:
            ticket = self._store.get(request.ticket_id)
            if _was_done(ticket, request):
                return ticket
            _check_version(ticket, request.version)
            change = decide(ticket, self._clock.now_ms())
            if request.validate_only:
                return change.ticket
            known = desk.remembered(change.ticket, request.key, request.fingerprint)
            return self._save(replace(change, ticket=known))

        changed = attempt() if request.version is not None else retry_conflicts(attempt)
        return changed if request.validate_only else self._carry_out_now(changed)

    def claim_next(self, team: str, agent: str, skills: Sequence[str], request: Request) -> Ticket:
        """The best ticket of a team's pile that the agent's skills are enough for, claimed. NotFound when
        there is none, Unavailable when others keep being faster."""
        done = self._store.by_request(request.key) if request.key else None
        if done is not None and _was_done(done, request):
            return done
        for ticket in self._store.pile(team, skills, PILE_MAX):
            mine = replace(request, ticket_id=ticket.id)
            try:
                return self.change(mine, lambda found, now: _claim_of_pile(found, team, agent, now))
            except (desk.AlreadyClaimed, desk.TicketFinal, NotFound):
                continue  # another was faster
        raise NotFound(resource=f"teams/{team}/tickets")

    def comments(self, ticket_id: str, after: int, limit: int) -> list[Comment]:
        """At most `limit` comments of a ticket after a sequence; NotFound."""
        return self._store.comments(ticket_id, after, limit)

    def comment(self, request: Request, said: Comment) -> tuple[Ticket, Comment]:
        """Writes a comment; a repeat answers the one that is there. NotFound for a repeat after a merge: the
        other ticket has it."""
        said = replace(said, request_key=request.key, fingerprint=request.fingerprint)

        def decide(ticket: Ticket, now: int) -> Change:
            unknown = set(said.attachments) - {file.id for file in ticket.attachments}
            if unknown:
                raise InvalidArgument(
                    field="comment.attachment_ids", why=f"{min(unknown)[:64]!r} is not of the ticket"
                )
            return desk.comment(ticket, said, self._rules(), now)

        ticket = self.change(request, decide)
        if not request.key:
            return ticket, ticket.comments[-1]
        # a repeat may come when later comments have moved it out of the ticket
        mine = [c for c in ticket.comments if c.request_key == request.key] or [
            c for c in self._store.comments(ticket.id, 0, COMMENTS_MAX) if c.request_key == request.key
        ]
        if not mine:
            raise NotFound(resource=f"tickets/{ticket.id}/comments of this request")
        return ticket, mine[-1]

    def link(self, request: Request, other_id: str, relation: Relation, wanted: bool, actor: str) -> Ticket:
        """Makes or removes a link, both ways."""
        if other_id == request.ticket_id:
            raise InvalidArgument(field="other", why="must be another ticket")
        other = self._store.find(other_id)
        if other is None and wanted:
            raise NotFound(resource=f"tickets/{other_id}")

        def decide(ticket: Ticket, now: int) -> Change:
            return desk.link(ticket, other or replace(ticket, id=other_id), relation, wanted, actor, now)

        return self.change(request, decide)

    def merge(self, request: Request, source_id: str, actor: str, reason: str) -> Ticket:
        """Makes one ticket of two. The source ends first, with an intent that moves what it has: whatever
        happens in between, it is moved once. TicketFull when the target has no room for all of it."""
        if source_id == request.ticket_id:
            raise InvalidArgument(field="source", why="must be another ticket")
        words = reason or f"merged into tickets/{request.ticket_id}"
        act = engine.Act(verb="merge", actor=actor, reason=words)
        version = request.version

        def attempt() -> Ticket:
            nonlocal version
            target, source = self._store.get(request.ticket_id), self._store.get(source_id)
            if source.merged_into == target.id:
                return target if request.validate_only else source
            _check_version(target, version)
            _check_mergeable(target, source)
            if request.validate_only:
                return desk.absorb(target, source, source.comments, self._clock.now_ms()).ticket
            # Whoever merges the target away at the same moment read it before this write, and meets it: of
            # tickets that are merged into each other, in a ring of any length, one stays.
            touched = self._store.update(target, ())
            version = None if version is None else touched.version
            return self._save(engine.end_merged(source, target.id, act, self._rules(), self._clock.now_ms()))

        changed = retry_conflicts(attempt)
        if request.validate_only:
            return changed
        self._carry_out_now(changed)
        return self._store.get(request.ticket_id)

    def split(
        self, request: Request, command: Create, calls: Sequence[str], comments: Sequence[int]
    ) -> Split:
        """Makes a second ticket out of a part of one: the calls named go over, the comments named are copied.
        The new one comes first, with an intent that takes the calls off the first; a repeat answers it."""
        original = self._store.get(request.ticket_id)
        made = self._store.repeat_of(command.request_key, command.fingerprint)
        if made is not None:
            return self._split_done(request, made)
        _check_parts(original, calls)
        said = [c for c in self._store.comments(original.id, 0, COMMENTS_MAX) if c.sequence in comments]
        if len(said) < len(set(comments)):
            raise InvalidArgument(field="comments", why="names one that the ticket does not have")
        size = sum(len(comment.body.encode()) for comment in said)
        if size > SPLIT_BYTES_MAX:
            why = f"must be at most {SPLIT_BYTES_MAX} bytes in UTF-8, got {size}"
            raise InvalidArgument(field="comments", why=why)
        check_create(command, parent_exists=True)
        change = self._planned(command)
        part = split_off(change.ticket, original, calls, said, self._clock.now_ms())
        if request.validate_only:
            return Split(original=original, created=part)
        change = replace(change, ticket=part)
        created, _ = self._insert(change, command.request_key, command.fingerprint)
        return self._split_done(request, created)

    def _split_done(self, request: Request, created: Ticket) -> Split:
        created = self._carry_out_now(self._store.get(created.id))
        return Split(original=self._store.get(request.ticket_id), created=created)

    def retime(self, after: str, limit: int) -> str:
        """Takes the next open tickets above an id over to the present policies and calendars; the last one's
        id, empty when there are none left. Safe to repeat."""
        last = ""
        for last in self._store.open_after(after, limit):
            self._retime_one(last)
        return last

    def _retime_one(self, ticket_id: str) -> None:
        def attempt() -> None:
            ticket = self._store.find(ticket_id)
            if ticket is not None:
                self._save(engine.retime(ticket, self._rules(), self._clock.now_ms()))

        retry_conflicts(attempt)

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

    def survey_answered(
        self, call_id: str, satisfaction: float, *, actor: str, reason: str, time_ms: int
    ) -> Ticket | None:
        """Keeps what a call's caller said afterwards, 1.0 to 5.0, on its ticket, and opens it again when the
        matter is not settled: up to `DISSATISFIED_MAX`. The ticket that was opened; None when there was none
        to open: no ticket, one that was not resolved by then, or a flow that opens nothing again. Safe to
        repeat: what was resolved since stays so."""

        def attempt() -> Ticket | None:
            ticket = self._store.by_call(call_id)
            if ticket is None or ticket.phase is not Phase.RESOLVED or (ticket.resolved_ms or 0) > time_ms:
                return None
            now = self._clock.now_ms()
            if satisfaction > DISSATISFIED_MAX:
                self._save(engine.rated(ticket, round(satisfaction), now, actor=actor))
                return None
            act = engine.Act(verb="reopen", actor=actor, reason=reason)
            change = engine.transition(ticket, act, self._rules(), now)
            said = replace(change.ticket, satisfaction=max(1, round(satisfaction)))
            return self._save(replace(change, ticket=said))

        if not 0 < satisfaction <= SATISFACTION_MAX:
            return None
        try:
            return retry_conflicts(attempt)
        except LEFT_TO_PEOPLE:
            return None

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
            return self._insert(engine.open_from_call(facts, self._rules()))[0]
        return self._save(engine.attach_call(join, facts, self._rules()))

    # ---- for what crm tells

    def customer_known(self, profile: Profile) -> None:
        """Keeps what is known of a customer, and gives it the open tickets of its numbers that nobody owned.
        Safe to repeat and out of order; Unavailable when there are more than one delivery can move."""
        self._store.save_profile(profile)
        latest = self._store.profile(profile.customer_id)
        if latest is None or latest.version != profile.version:
            if latest is not None and latest.erased:
                # late: the erasure knew nothing of these
                self._erase_older(latest, (*profile.numbers, *profile.former_numbers))
            return  # a newer one came before and has done, or will do, the rest
        for number in latest.numbers:
            self._adopt_all(number, latest)
        if latest.version > 1:  # nobody is born merged
            self._place_all(latest)

    def _adopt_all(self, number: str, profile: Profile) -> None:
        for _ in range(BATCHES_MAX):
            batch = self._store.open_of_number(number, BATCH_MAX)
            for ticket in batch:
                self._adopt(ticket.id, profile)
            if len(batch) < BATCH_MAX:
                return
        raise Unavailable(why=f"customers/{profile.customer_id} has more tickets than one delivery handles")

    def _adopt(self, ticket_id: str, profile: Profile) -> None:
        def attempt() -> None:
            ticket = self._store.get(ticket_id)
            self._save(engine.adopt(ticket, profile, self._rules(), self._clock.now_ms()))

        retry_conflicts(attempt)

    def customers_merged(self, survivor: Profile, absorbed: Sequence[Profile]) -> None:
        """Gives the tickets of absorbed customers to the survivor. An absorbed one without a version (an
        earlier release told none) counts as merged, whatever else is known. Safe to repeat and out of order;
        Unavailable as in `_place_all`."""
        told = {one.customer_id: one.merged_into for one in absorbed if not one.version}
        for profile in (survivor, *absorbed):
            if profile.customer_id in told:
                self._place_all(profile, told)
            else:
                self.customer_known(profile)

    def customers_unmerged(self, survivor: Profile, restored: Sequence[Profile]) -> None:
        """Gives customers back the tickets that were theirs before the merge that is undone. Safe to repeat
        and out of order; Unavailable as in `_place_all`."""
        for profile in (survivor, *restored):
            self.customer_known(profile)

    def _place_all(self, profile: Profile, told: Mapping[str, str] = MappingProxyType({})) -> None:
        """Gives the tickets that are a customer's, or were before merges, to who is to have them by what is
        known now, each by itself, so that no order of news matters. `told`: merges that no profile tells of.
        Unavailable when there are more than one delivery can move (the next goes on)."""
        moved = 0
        for ticket_id in self._ids_of(profile):
            moved += self._place(ticket_id, told)
            if moved >= MOVES_MAX:
                why = f"customers/{profile.customer_id} has more tickets than one delivery handles"
                raise Unavailable(why=why)

    def _ids_of(self, profile: Profile) -> Iterator[str]:
        """Ids of the tickets that were a customer's before merges; of one who was merged or erased also of
        those that are."""
        query = Query(conditions=(Condition(field="customer", op="=", value=profile.customer_id),))
        page = self._store.page(query, BATCH_MAX, None) if profile.merged_into or profile.erased else []
        while page:
            yield from (ticket.id for ticket in page)
            page = self._store.page(query, BATCH_MAX, sort_key(page[-1], query))
        last = ""
        while ids := self._store.were_of(profile.customer_id, last, BATCH_MAX):
            last = ids[-1]
            yield from ids

    def _place(self, ticket_id: str, told: Mapping[str, str]) -> bool:
        """Gives a ticket to who is to have it; whether it changed. It is erased with its first customer: who
        took that one over may be erased first, but what was given back by then is not theirs."""

        def attempt() -> bool:
            ticket = self._store.get(ticket_id)
            if not ticket.draft.customer_id:
                return False
            path = self._path(first_customer(ticket), told)
            if path[0].erased:
                self._erase(ticket_id)
                return True
            change = engine.handed_up(ticket, path, self._rules(), self._clock.now_ms())
            if change.ticket == ticket:
                return False
            events = self._events(change.ticket, change.happenings, ticket.version + 1)
            self._store.update(change.ticket, events)
            return True

        return retry_conflicts(attempt)

    def _path(self, customer_id: str, told: Mapping[str, str]) -> list[Profile]:
        """A customer, who took it over, and so on; nobody of whom nothing may be kept but the first."""
        path = [self._store.profile(customer_id) or Profile(customer_id=customer_id, version=0)]
        for _ in range(SURVIVORS_MAX):
            last = path[-1]
            above = told.get(last.customer_id) or last.merged_into
            if last.erased or not above or any(above == one.customer_id for one in path):
                break
            found = self._store.profile(above) or Profile(customer_id=above, version=0)
            if found.erased:
                break
            path.append(found)
        return path

    def care_wanted(self, facts: CareFacts) -> Ticket | None:
        """Opens the ticket for an occasion to care for a customer, once however often it is told; None when
        there is one, of `facts.once` also one that a call opened on the topic; None when the occasion is
        over by now. Safe to repeat, out of order and against others at the same time."""
        if not facts.once and self._end_over_care(facts.ticket_id):
            return None
        path = self._path_of(facts.customer_id) or self._path_of("", facts.number)
        if path and path[-1].erased:
            return None  # told before the erasure, heard after it
        change = engine.open_for_care(facts, path, self._rules(), self._clock.now_ms())
        ticket = change.ticket
        if facts.once:
            # Besides the unique `open_key`, which a ticket loses when it changes hands.
            of = ticket.draft
            open_ones = self._store.open_like(of.customer_id, of.caller_number, ticket.topic)
            if engine.joinable(ticket.kind, of, open_ones) is not None:
                return None
        try:
            opened = self._insert(change)[0]
        except AlreadyExists:
            return None
        # whoever heard of the end meanwhile found no ticket, and said so before looking for one again
        return None if not facts.once and self._end_over_care(ticket.id) else opened

    def _end_over_care(self, ticket_id: str) -> bool:
        """Whether an occasion is known to be over; its ticket is ended then, where there is one."""
        reason = self._store.care_end(ticket_id)
        if reason is not None and self._store.find(ticket_id) is not None:
            self._cancel_care(ticket_id, reason)
        return reason is not None

    def care_over(self, ticket_id: str, reason: str) -> None:
        """Cancels the ticket of an occasion that is over, unless somebody has ended it or the operator's flow
        leaves that to people. An end heard of before its occasion is remembered. Safe to repeat, out of order
        and against others at the same time."""
        if self._store.find(ticket_id) is None:
            self._store.end_care(ticket_id, reason)
            if self._store.find(ticket_id) is None:
                return
        self._cancel_care(ticket_id, reason)

    def _cancel_care(self, ticket_id: str, reason: str) -> None:
        try:
            self.transition(ticket_id, None, engine.Act(verb="cancel", actor=engine.SYSTEM, reason=reason))
        except LEFT_TO_PEOPLE:
            return

    def customer_erased(self, customer_id: str, version: int) -> None:
        """Removes what is personal from the customer's tickets and profile, and from those tickets of its
        numbers that are nobody's. Safe to repeat."""
        known, now = self._store.profile(customer_id), self._clock.now_ms()
        numbers = (*known.numbers, *known.former_numbers) if known is not None else ()
        # before the profile, which alone tells the numbers
        for number in numbers:
            self._erase_number(number, customer_id)
        erased = Profile(
            customer_id=customer_id,
            version=version,
            former_numbers=numbers,
            erased=True,
            erased_ms=now,
            again_ms=now + round(LOOK_AGAIN_SECONDS * 1000 * self._clock.speed),
        )
        self._store.save_profile(erased)
        self._erase_all(customer_id)

    def _erase_all(self, customer_id: str) -> None:
        self._place_all(Profile(customer_id=customer_id, version=0, erased=True))
        self._forget_guest(customer_id, customer_id)

    def erased_due(self, limit: int) -> list[str]:
        """Ids of erased customers whose tickets are to be looked for once more."""
        return self._store.erased_due(self._clock.now_ms(), limit)

    def erase_again(self, customer_id: str) -> None:
        """Erases what was opened by those who had read the customer before the erasure and wrote after it.
        Comes back later where it fails. Unavailable as in `_place_all`."""
        self._store.look_again(customer_id, self._clock.now_ms() + POSTPONE_MS)
        profile = self._store.profile(customer_id)
        if profile is not None and profile.erased:
            self._erase_older(profile, profile.former_numbers)
        self._erase_all(customer_id)
        self._store.look_again(customer_id, None)

    def _erase_older(self, erased: Profile, numbers: Sequence[str]) -> None:
        """Erases nobody's tickets of an erased customer's numbers, but for what came after the erasure: that
        may be anybody's."""
        if erased.erased_ms is None:
            return
        for number in numbers:
            self._erase_number(number, erased.customer_id, (_opened_by(erased.erased_ms),))

    def _erase_number(self, number: str, customer_id: str, also: tuple[Term, ...] = ()) -> None:
        owner = self._store.profile_of_number(number)
        if owner is None or owner.customer_id == customer_id:
            terms = (Condition(field="caller_number", op="=", value=number), _NOBODYS, *also)
            self._each(terms, self._erase, customer_id)
            self._forget_guest(number, customer_id)

    def _erase(self, ticket_id: str) -> None:
        def attempt() -> None:
            self._blank(ticket_id)
            self._save(engine.erase(self._store.get(ticket_id), self._clock.now_ms()))
            self._blank(ticket_id)  # what was put away between the two

        retry_conflicts(attempt)

    def _blank(self, ticket_id: str) -> None:
        self._store.blank_steps(ticket_id)
        self._store.blank_comments(ticket_id)

    def _forget_guest(self, guest: str, customer_id: str) -> None:
        """Removes what an erased customer, or whoever had its number, said from the tickets of others.
        Unavailable as in `_place_all`: what was done is not found again."""
        last, done = "", 0
        while ids := self._store.hosts_of(guest, last, BATCH_MAX):
            last = ids[-1]
            for ticket_id in ids:
                self._forget_there(ticket_id, guest)
            done += len(ids)
            if done >= MOVES_MAX:
                raise Unavailable(why=f"customers/{customer_id} has more tickets than one delivery handles")

    def _forget_there(self, ticket_id: str, guest: str) -> None:
        def attempt() -> None:
            self._store.blank_comments(ticket_id, guest)
            self._save(engine.forget_guest(self._store.get(ticket_id), guest, self._clock.now_ms()))
            self._store.blank_comments(ticket_id, guest)  # as in `_erase`

        retry_conflicts(attempt)

    def _each(self, terms: tuple[Term, ...], work: Callable[[str], None], customer_id: str) -> None:
        """Does `work` to every ticket that matches; `work` must make that it does not."""
        for _ in range(BATCHES_MAX):
            batch = self._store.page(Query(conditions=terms), BATCH_MAX, None)
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

    def fire_due(self, limit: int) -> tuple[int, list[str]]:
        """Tells what the clocks of the tickets longest due have to tell, all in one trip: (how many tickets
        were due, ids of those that need more than that, for `fire`)."""
        tickets, now = self._store.due_tickets(self._clock.now_ms(), limit), self._clock.now_ms()
        changes, rest = list[Changed](), list[str]()
        for ticket in tickets:
            change = self._told_by_clocks(ticket, now)
            if change is None:
                rest.append(ticket.id)
                continue
            events = self._events(change.ticket, change.happenings, ticket.version + 1)
            changes.append(Changed(before=ticket, after=change.ticket, events=events))
        self._store.update_many(changes)
        return len(tickets), rest

    def _told_by_clocks(self, ticket: Ticket, now: int) -> Change | None:
        """What the clocks have to tell; None when there is more to be done than that, or when it fails."""
        if engine.visit_due(ticket, now) or any(intent.time_ms <= now for intent in ticket.intents):
            return None
        try:
            change = engine.breach(ticket, now)
        except Exception:  # told apart, and put off, where each is fired by itself
            return None
        due = engine.next_timer_ms(change.ticket)
        done = change.happenings and (due is None or due > now)
        if engine.was_silent(change) and change.ticket.team in self._rules().teams:
            return None  # goes to somebody else, one by one: each counts in the next one's choice
        return change if done else None

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
        ticket = self._save(self._handed_on(engine.breach(ticket, now), now))
        if engine.visit_due(ticket, now):
            ticket = self._make_visit(ticket, now)
        for intent in ticket.intents:
            if intent.time_ms <= now:
                ticket = self._carry_out(ticket, intent)
        due = engine.next_timer_ms(read)
        if ticket.version == read.version and (due is None or due > now):
            # The index said that something is due, the ticket says that nothing is: bring the index in line.
            self._store.update(ticket, ())

    def _handed_on(self, change: Change, now: int) -> Change:
        """A ticket whose assignee was silent goes to the member of its team who has the fewest open ones; it
        waits in the pile where nobody else has the skills and room for it."""
        silent = engine.was_silent(change)
        team = self._rules().teams.get(change.ticket.team) if silent else None
        others = [member for member in team.members if member.agent != silent] if team is not None else []
        load = self._store.loads([member.agent for member in others]) if others else {}
        try:
            agent = desk.least_loaded(desk.able(others, change.ticket, load), load).agent if others else ""
        except desk.NobodyFree:
            agent = ""
        return engine.handed_on(change, agent, now) if agent else change

    def _make_visit(self, ticket: Ticket, now: int) -> Ticket:
        profile = self._store.profile(ticket.draft.customer_id) if ticket.draft.customer_id else None
        moved = engine.visit_moved(ticket, profile, self._rules(), now)
        if moved is not None:
            return self._save(moved)
        channel = engine.visit_channel(ticket, profile)
        if channel is None:
            return self._save(engine.without_visit(ticket, now))
        visit = engine.make_visit(ticket, self._rules(), now, channel)
        try:
            self._insert(visit)
        except AlreadyExists:
            pass  # made before a crash; its id depends on the resolution alone
        try:
            return self._save(engine.visit_made(ticket, now))
        except EtagMismatch:
            self._withdraw_unwanted(ticket, now)
            raise

    def _withdraw_unwanted(self, ticket: Ticket, now: int) -> None:
        """Cancels the visit that was just made where its parent was reopened, or ended, meanwhile: that one
        knew of none."""
        plan, parent = ticket.follow_up, self._store.get(ticket.id)
        if plan is None or (parent.follow_up is not None and parent.follow_up.number == plan.number):
            return
        withdrawn = engine.visit_withdrawn(plan, now)
        visit = self._store.get(plan.ticket_id)
        self._save(engine.carry_out(withdrawn, visit, self._rules(), now, cause=ticket.id))

    def _carry_out(self, ticket: Ticket, intent: Intent) -> Ticket:
        """Does to the other ticket what `intent` says, then takes the intent off."""
        absorbs = intent.kind is IntentKind.ABSORB

        def attempt() -> Ticket | None:
            goes_to = intent.ticket_id
            other = self._absorber(goes_to, ticket.id) if absorbs else self._store.find(goes_to)
            return None if other is None else self._save(self._effect(intent, ticket, other))

        other = retry_conflicts(attempt)
        done = engine.without_intent(ticket, intent)
        return self._store.update(desk.emptied(done, other) if absorbs and other is not None else done, ())

    def _absorber(self, target_id: str, source_id: str) -> Ticket | None:
        """The ticket that is to have what an ended one had: the one it was merged into, or the last that took
        that one over since; the one that has it, where one does."""
        found = self._store.find(target_id)
        for _ in range(SURVIVORS_MAX):
            if found is None or not found.merged_into or desk.has_absorbed(found, source_id):
                break
            above = self._store.find(found.merged_into)
            if above is None or above.id == source_id:
                break
            found = above
        return found

    def _effect(self, intent: Intent, ticket: Ticket, other: Ticket) -> Change:
        """What an intent of `ticket` does to `other`."""
        now = self._clock.now_ms()
        if intent.kind in (IntentKind.LINK, IntentKind.UNLINK):
            return desk.carry_out_link(intent, other, now, cause=ticket.id)
        if intent.kind is IntentKind.ABSORB:
            return desk.absorb(other, ticket, self._store.comments(ticket.id, 0, COMMENTS_MAX), now)
        if intent.kind is IntentKind.CEDE:
            return desk.cede(other, {call.call_id for call in ticket.calls}, ticket.id, now)
        return engine.carry_out(intent, other, self._rules(), now, cause=ticket.id)

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


def _opened_by(at_ms: int) -> Term:
    return Condition(field="create_time", op="<=", value=at_ms)


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


def _was_done(ticket: Ticket, request: Request) -> bool:
    """Whether this very request was carried out before; RequestIdReused when it asked for something else."""
    for key, content in ticket.requests:
        if request.key and key == request.key:
            check_repeat(content, request.fingerprint)
            return True
    return False


def _claim_of_pile(ticket: Ticket, team: str, agent: str, now: int) -> Change:
    if ticket.assignee or ticket.team != team:
        raise desk.AlreadyClaimed(subject=f"tickets/{ticket.id}", why="somebody was faster")
    return desk.claim(ticket, agent, None, now)


def _check_mergeable(target: Ticket, source: Ticket) -> None:
    """TicketFinal, TicketFull; InvalidArgument for what is never merged."""
    desk.check_open(target)
    desk.check_open(source)
    if Kind.RETURN_VISIT in (target.kind, source.kind):
        raise InvalidArgument(field="source", why="return visits are not merged")
    desk.check_room(target, source)


def _check_parts(original: Ticket, calls: Sequence[str]) -> None:
    known = {call.call_id for call in original.calls}
    unknown = [call for call in calls if call not in known]
    if unknown:
        raise InvalidArgument(field="calls", why=f"calls/{unknown[0]} is not of the ticket")


def split_off(
    ticket: Ticket, original: Ticket, calls: Sequence[str], said: Sequence[Comment], now: int
) -> Ticket:
    """A new ticket with what it gets of the one it is split off, and the intent that completes the split."""
    going = brought([call for call in original.calls if call.call_id in calls], original, ticket)
    moved = tuple(replace(call, opened=False) for call in going)
    copied = tuple(
        replace(comment, sequence=place, request_key="", fingerprint="")
        for place, comment in enumerate(brought(said, original, ticket), start=1)
    )
    named = {file for comment in said for file in comment.attachments}
    files = brought([file for file in original.attachments if file.id in named], original, ticket)
    same_customer = ticket.draft.customer_id == original.draft.customer_id
    intent = Intent(
        kind=IntentKind.CEDE, ticket_id=original.id, number=0, reason="split", time_ms=ticket.created_ms
    )
    return replace(
        ticket,
        calls=moved,
        call_count=len(moved),
        comments=copied,
        comment_count=len(copied),
        attachments=files,
        guests=guests_with(ticket, (*moved, *copied, *files)),
        links=(Link(ticket_id=original.id, relation=Relation.PARENT, time_ms=now),),
        intents=(intent,),
        team=ticket.team or original.team,
        merged_from=original.merged_from if same_customer else ticket.merged_from,
    )
