"""OutboundService: call lists, who is to be called next, and what came of it.

A contact is handed out by one conditional write that names the holder, the attempt and the lease's end, so no
two holders have it at once; a lease that ended makes it free again. Abandons are counted over the list's
window from the attempts; above the cap calls are started one an agent only, and none of a predictive list
while it stays above.

Who may not be called may not be called under a bare number either: a contact that names no customer is the
one who owns its number, as far as anybody is known to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import ParseDict
from msgspec import structs

from callmesh.marketing.v1 import campaigns_pb2, events_pb2, outbound_pb2, outbound_pb2_grpc
from chassis import localize
from chassis.auth import current_identity
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import AlreadyExists, EtagMismatch, FailedPrecondition, InvalidArgument, NotFound
from chassis.idempotency import request_key
from chassis.ids import check_id, new_id, parse_name, parse_names, stable_id
from chassis.localize import caller_language
from chassis.mongo import retry_conflicts
from marketing import convert
from marketing.call_counts import CALLS_MAX, begun, free_at, not_begun
from marketing.call_counts import CONTACTS_MAX as SAME_NUMBER_MAX
from marketing.call_lists import NOTE_CHARACTERS_MAX, add_contact, contact_row, forbidden, reopen
from marketing.campaign_engine import AGAIN, CONSENT, Courtesy, StepChannel, capped, consents, touch_id
from marketing.campaign_runner import is_quiet_until, is_zone
from marketing.campaign_store import TouchLog, has_answered
from marketing.campaigns import note_halted, quiet_of, quiet_problems
from marketing.engine import Problem, eligible, script_problems
from marketing.kinds import ATTEMPTS, CAMPAIGNS, CONTACT_LISTS, CONTACTS, FORBIDDEN
from marketing.model import Contact, Offer, Profile
from marketing.resources import Desk, Resource, name_problems, span_problems, text_problems, turn
from marketing.scopes import method
from marketing.shelf import Row, Shelves
from marketing.store import Store

P = outbound_pb2
#: Bounds.
CONTACTS_MAX = 1_000
BATCHES_MAX = 10_000
REJECTED_SHOWN_MAX = 100
NUMBERS_MAX = 10_000
LISTS_MAX = 1_000
QUIET_HOURS_MAX = 50
SKILLS_MAX = 16
#: Characters of a person's name, and of a skill's.
NAME_CHARACTERS_MAX, SKILL_CHARACTERS_MAX = 200, 140
#: Contacts looked at for one that may be called.
LOOKED_AT = 4
DEFAULT_LEASE_SECONDS = 120
DEFAULT_ABANDON_MAX = 0.03
DEFAULT_WINDOW = timedelta(hours=24)
#: Fewest answered calls before a rate means anything.
ANSWERED_MIN = 20
#: Who is given back may be put off so long.
PUT_OFF_MAX = timedelta(days=1)
CALLS_PER_AGENT_MAX = 3.0
RUNNING = campaigns_pb2.CAMPAIGN_STATE_RUNNING
ANSWERED = ("SUCCESS", "DECLINED", "CALL_BACK", "ABANDONED", "OPTED_OUT")
#: List states that a verb leads from and to.
LIST_TRANSITIONS: Mapping[tuple[int, str], int] = {
    (P.CONTACT_LIST_STATE_DRAFT, "start"): P.CONTACT_LIST_STATE_RUNNING,
    (P.CONTACT_LIST_STATE_PAUSED, "start"): P.CONTACT_LIST_STATE_RUNNING,
    (P.CONTACT_LIST_STATE_RUNNING, "pause"): P.CONTACT_LIST_STATE_PAUSED,
    (P.CONTACT_LIST_STATE_DRAFT, "delete"): P.CONTACT_LIST_STATE_COMPLETED,
    (P.CONTACT_LIST_STATE_PAUSED, "delete"): P.CONTACT_LIST_STATE_COMPLETED,
    (P.CONTACT_LIST_STATE_COMPLETED, "delete"): P.CONTACT_LIST_STATE_COMPLETED,
}


class ContactListStateError(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CONTACT_LIST_STATE"


class AttemptClosed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "ATTEMPT_CLOSED"


class LeaseLost(FailedPrecondition):
    """{subject}: {why}."""

    reason = "LEASE_LOST"


def _sells(call_list: Any) -> bool:
    """Whether a list is for marketing."""
    return bool(call_list.campaign or call_list.offer)


def _nobody_said(call_list: Any, contact: Any, profile: Profile | None) -> bool:
    """Whether a list sells to a customer of whom nothing was heard yet: nothing said is no consent, and news
    may be on its way.
    """
    return _sells(call_list) and bool(contact.customer) and profile is None


def _clocked(contact: Any, profile: Profile | None) -> Any:
    """A contact as it is handed out, with the customer's clock where the list says none: the dialler has
    hours of its own. What is stored is left as it is, for the customer may move.
    """
    if not contact.time_zone and profile is not None and is_zone(profile.time_zone):
        contact.time_zone = profile.time_zone
    return contact


def _result(number: int) -> str:
    return P.OutboundResult.Name(number).removeprefix("OUTBOUND_RESULT_")


def _add_note(contact: Any, text: str) -> None:
    """Adds a line to what the agent sees; what is too long loses its beginning."""
    contact.note = f"{contact.note}\n{text}".strip()[-NOTE_CHARACTERS_MAX:]


def _who(contact: Any) -> str:
    """By what a contact's person is known: the customer named, else the number."""
    return str(contact.customer or contact.number)


def _leased(contact: Any, now: datetime) -> bool:
    """Whether somebody has a contact. One whose lease has ended may be due later: it was put off since."""
    return contact.state == P.CONTACT_STATE_LEASED and convert.moment(contact.lease_expire_time) > now


def _lease_seconds(request: Any) -> int:
    """How long contacts are reserved. Raises InvalidArgument."""
    if request.lease_seconds and not 10 <= request.lease_seconds <= 3_600:
        raise InvalidArgument(field="lease_seconds", why="must be 10 to 3600, or 0")
    return int(request.lease_seconds or DEFAULT_LEASE_SECONDS)


def list_problems(message: Any) -> list[Problem]:
    """Everything wrong with a call list."""
    found = text_problems("display_name", message.display_name, 200, required=True)
    for field, collection in (("campaign", "campaigns"), ("offer", "offers"), ("queue", "queues")):
        found += name_problems(field, collection, getattr(message, field))
    if not -100 <= message.priority <= 100:
        found.append(("priority", "must be -100 to 100"))
    if not 0 <= message.abandon_ratio_max <= 0.1:
        found.append(("abandon_ratio_max", "must be 0 to 0.1"))
    found += span_problems("abandon_window", message.abandon_window)
    found += span_problems("stint_min", message.stint_min)
    seen = set()
    for at, rule in enumerate(message.retry_rules):
        if not rule.result or rule.result in seen:
            found.append((f"retry_rules[{at}].result", "must be set, each once"))
        if not 1 <= rule.attempts_max <= 20:
            found.append((f"retry_rules[{at}].attempts_max", "must be 1 to 20"))
        found += span_problems(f"retry_rules[{at}].wait", rule.wait)
        seen.add(rule.result)
    return found + quiet_problems(message.quiet_hours, QUIET_HOURS_MAX) + script_problems(message.scripts)


def contact_problems(contact: Any) -> list[Problem]:
    """What is wrong with a contact to be imported, its number apart."""
    found = name_problems("customer", "customers", contact.customer)
    found += text_problems("display_name", contact.display_name, NAME_CHARACTERS_MAX)
    found += text_problems("note", contact.note, NOTE_CHARACTERS_MAX)
    if contact.time_zone and not is_zone(contact.time_zone):
        found.append(("time_zone", "is not an IANA time zone"))
    if not -100 <= contact.priority <= 100:
        found.append(("priority", "must be -100 to 100"))
    if len(contact.skills) > SKILLS_MAX:
        found.append(("skills", f"at most {SKILLS_MAX} are allowed"))
    for at, skill in enumerate(contact.skills[:SKILLS_MAX]):
        found += text_problems(f"skills[{at}]", skill, SKILL_CHARACTERS_MAX, required=True)
    return found


class OutboundServicer(outbound_pb2_grpc.OutboundServiceServicer):
    """OutboundService."""

    def __init__(
        self,
        shelves: Shelves,
        store: Store,
        clock: Clock,
        courtesy: Callable[[], Courtesy],
        touches: Callable[[], TouchLog],
        holiday: Callable[[datetime], bool] = lambda _: False,
    ) -> None:
        """`courtesy()` answers the contact policy in force; `touches` is asked for with the first use: the
        database is connected by then; `holiday` says whether a local time is one.
        """
        self._touches = touches
        self._holiday = holiday
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._courtesy = courtesy
        self._lists = Desk(
            Resource(
                service="OutboundService",
                field="contact_list",
                kind=CONTACT_LISTS,
                message=P.ContactList,
                problems=lambda message, _: list_problems(message),
                keys=lambda m: {"state": m.state},
                fixed=frozenset({"state"}),
            ),
            shelves,
            clock,
            self._told,
        )

    # lists

    def CreateContactList(self, request: P.CreateContactListRequest, context: Any) -> P.ContactList:
        """Adds a draft."""

        def prepare(message: Any) -> Sequence[Event]:
            message.state = P.CONTACT_LIST_STATE_DRAFT
            id = message.name.removeprefix("contactLists/")
            try:
                self._shelves.get(CONTACT_LISTS, id)
            except NotFound:
                # A list of the name may have been removed in the middle of an import, or by an earlier
                # release, which left its contacts: they are none of this one's.
                self._empty(id)
            return ()

        return self._lists.create(request, prepare)

    def _empty(self, list_id: str) -> None:
        """Takes everybody off a list. EventsWaiting while a result is not told yet."""
        self._shelves.clear(CONTACTS, {"list": list_id})
        self._shelves.clear(ATTEMPTS, {"list": list_id})

    def GetContactList(self, request: P.GetContactListRequest, context: Any) -> P.ContactList:
        """Reads one."""
        return self._lists.get(request)

    def ListContactLists(
        self, request: P.ListContactListsRequest, context: Any
    ) -> P.ListContactListsResponse:
        """A page by id."""
        rows, token = self._lists.list(request, {"state": request.state} if request.state else {})
        halted = self._courtesy().halted
        return P.ListContactListsResponse(contact_lists=rows, next_page_token=token, halted=halted)

    def _told(self, row: Row) -> P.ContactList:
        """A list, with what its campaign has to say."""
        message: P.ContactList = self._lists.plain(row)
        message.campaign_holds = not self._campaign_lets(row)
        return message

    def UpdateContactList(self, request: P.UpdateContactListRequest, context: Any) -> P.ContactList:
        """Changes one."""
        return self._lists.update(request)

    def DeleteContactList(self, request: P.DeleteContactListRequest, context: Any) -> Empty:
        """Removes one that does not run. Its contacts go first: left behind they would be called from the
        next list of the name, and an erasure would not find them. Before that it is completed, so that nobody
        starts it while it loses them.
        """
        done = self._go(request, "delete")
        self._empty(done.name.removeprefix("contactLists/"))
        self._lists.delete(P.DeleteContactListRequest(name=done.name, etag=done.etag))
        return Empty()

    def StartContactList(self, request: P.StartContactListRequest, context: Any) -> P.ContactList:
        """Lets it be called."""
        return self._go(request, "start")

    def PauseContactList(self, request: P.PauseContactListRequest, context: Any) -> P.ContactList:
        """Holds it."""
        return self._go(request, "pause")

    def _go(self, request: Any, verb: str) -> Any:
        def change(message: Any) -> Sequence[Event]:
            turn(message, verb, LIST_TRANSITIONS, ContactListStateError)
            return ()

        return self._lists.move(request, change)

    # contacts

    async def ImportContacts(
        self, request_iterator: AsyncIterator[P.ImportContactsRequest], context: Any
    ) -> P.ImportContactsResponse:
        """A stream of batches; each is stored before the next is read."""
        response, language = P.ImportContactsResponse(), caller_language(context)
        offset = batches = 0
        async for request in request_iterator:
            batches += 1
            if batches > BATCHES_MAX or len(request.contacts) > CONTACTS_MAX:
                raise InvalidArgument(
                    field="contacts", why=f"at most {BATCHES_MAX} batches of {CONTACTS_MAX} contacts"
                )
            parent = await asyncio.to_thread(self._lists.row, request.parent, "parent")
            bad = await asyncio.to_thread(self._import, parent.id, request.contacts)
            response.added_count += len(request.contacts) - len(bad)
            response.rejected_count += len(bad)
            if len(bad) < len(request.contacts):
                await asyncio.to_thread(reopen, self._shelves, parent.id, self._clock.now())
            for index, field, code, why in bad[: REJECTED_SHOWN_MAX - len(response.rejected)]:
                said = localize.description(why, language, "marketing")
                response.rejected.add(index=offset + index, field=field, code=code, description=said)
            offset += len(request.contacts)
        return response

    def _import(self, list_id: str, contacts: Sequence[Any]) -> list[tuple[int, str, str, str]]:
        """The refused ones: (index, field, code, why)."""
        bad = []
        for index, contact in enumerate(contacts):
            if not convert.is_e164(contact.number):
                bad.append((index, "number", "INVALID_NUMBER", "must be an E.164 number"))
                continue
            if problems := contact_problems(contact):
                bad.append((index, problems[0][0], "INVALID_FIELD", problems[0][1]))
            elif forbidden(self._shelves, contact.number):
                bad.append((index, "number", "FORBIDDEN_NUMBER", "must not be called"))
            elif not add_contact(self._shelves, list_id, contact, self._clock.now()):
                bad.append((index, "number", "DUPLICATE_NUMBER", "is on the list already"))
        return bad

    def _contact(self, row: Row) -> Any:
        message = P.Contact()
        ParseDict(row.content["resource"], message, ignore_unknown_fields=True)
        return message

    def _row(self, field: str, name: str) -> Row:
        list_id, id = parse_names(field, ("contactLists", "contacts"), name)
        row = self._shelves.get(CONTACTS, id)
        if row.keys["list"] != list_id:
            raise CONTACTS.missing(id)
        return row

    def GetContact(self, request: P.GetContactRequest, context: Any) -> P.Contact:
        """Reads one."""
        return self._contact(self._row("name", request.name))

    def ListContacts(self, request: P.ListContactsRequest, context: Any) -> P.ListContactsResponse:
        """A page by id."""
        parent = self._lists.row(request.parent, "parent")
        condition: dict[str, Any] = {"list": parent.id}
        if request.state:
            condition["state"] = request.state
        contacts = replace(self._lists.resource, kind=CONTACTS)
        desk = Desk(contacts, self._shelves, self._clock, self._contact)
        rows, token = desk.list(request, condition)
        return P.ListContactsResponse(contacts=rows, next_page_token=token)

    # calling

    def NextContacts(self, request: P.NextContactsRequest, context: Any) -> P.NextContactsResponse:
        """Reserves the contacts to be called next."""
        holder = check_id("holder", request.holder)
        if not 1 <= request.max_contacts <= CONTACTS_MAX:
            raise InvalidArgument(field="max_contacts", why=f"must be 1 to {CONTACTS_MAX}")
        lease_seconds = _lease_seconds(request)
        now = self._clock.now()
        key = request_key(current_identity(), method("OutboundService", "NextContacts"), request.request_id)
        token = key or new_id()
        held = [
            contact
            for row in self._shelves.find(CONTACTS, {"token": f"{holder}/{token}"}, CONTACTS_MAX)
            if _leased(contact := self._contact(row), now)
        ]
        response = P.NextContactsResponse(calls_per_agent=1.0)
        if held:
            people = self._people(held)
            response.contacts.extend(_clocked(contact, people.get(_who(contact))) for contact in held)
            return response
        until = now + timedelta(seconds=lease_seconds)
        halted = self._courtesy().halted
        note_halted(halted)
        allowed: list[float] = []
        for row in () if halted else self._running(request):
            call_list, per_agent = self._lists.shown(row), 1.0
            rate = self._known_rate(call_list, now)
            limit = call_list.abandon_ratio_max or DEFAULT_ABANDON_MAX
            if call_list.pacing_mode == P.PACING_MODE_PREDICTIVE:
                if rate > limit:
                    continue
                per_agent = 1 + (CALLS_PER_AGENT_MAX - 1) * (1 - rate / limit)
            left = request.max_contacts - len(response.contacts)
            if left <= 0:
                break
            taken = self._take(row, call_list, request, f"{holder}/{token}", now, until, left)
            response.contacts.extend(taken)
            if taken:
                allowed.append(per_agent)
        # Contacts of several lists are called alike: what the most careful one allows.
        response.calls_per_agent = min(allowed, default=1.0)
        if len(response.contacts) < request.max_contacts:
            response.retry_time.FromDatetime(now + timedelta(seconds=30))
        return response

    def _running(self, request: Any) -> list[Row]:
        """Running lists, highest priority first."""
        rows = self._shelves.find(CONTACT_LISTS, {"state": P.CONTACT_LIST_STATE_RUNNING}, LISTS_MAX)
        wanted = {parse_name("contact_lists", "contactLists", name) for name in request.contact_lists}
        chosen = []
        for row in rows:
            resource = row.content["resource"]
            if (wanted and row.id not in wanted) or request.queue not in ("", resource.get("queue", "")):
                continue
            if not self._campaign_lets(row):
                continue
            chosen.append((-resource.get("priority", 0), row.id, row))
        return [row for _, _, row in sorted(chosen, key=lambda item: item[:2])]

    def _campaign_lets(self, row: Row) -> bool:
        """Whether no campaign filled the list, or one that runs: a paused one calls nobody."""
        if "origin" not in row.content:
            return True
        try:
            return bool(
                self._shelves.get(CAMPAIGNS, row.content["origin"]["campaign"]).keys["state"] == RUNNING
            )
        except NotFound:
            return False

    def _take(
        self,
        listed: Row,
        call_list: Any,
        request: Any,
        token: str,
        now: datetime,
        until: datetime,
        count: int,
    ) -> list[Any]:
        list_id, courtesy = listed.id, self._courtesy()
        states = [P.CONTACT_STATE_WAITING, P.CONTACT_STATE_LEASED]
        # Not looked at: however many there are, they keep nobody else from being called.
        beyond = {"$elemMatch": {"$nin": list(request.skills)}}
        condition = {
            "state": {"$in": states},
            "list": list_id,
            "due": {"$lte": now},
            "skills": {"$not": beyond},
        }
        rows = self._shelves.find(CONTACTS, condition, count * LOOKED_AT + 50, order="-rank,due")
        contacts = [self._contact(row) for row in rows]
        people = self._people(contacts)
        over = self._over(listed, people, now)
        tired = self._tired(listed, contacts, people, courtesy, now)
        taken: list[Any] = []
        for row, contact in zip(rows, contacts, strict=True):
            if len(taken) >= count:
                break
            profile = people.get(_who(contact))
            if blocked := self._blocked(call_list, contact, profile, over, now):
                contact.state = P.CONTACT_STATE_BLOCKED
                _add_note(contact, blocked)
                self._try(contact_row(row, contact, list_id, now))
                continue
            later = self._quiet(courtesy, call_list, contact, profile, now)
            if later is None and self._waits(call_list, contact, profile, tired):
                later = now + AGAIN
            if later is not None:
                # A holder whose lease has ended may still report, but not renew.
                self._try(contact_row(row, contact, list_id, later))
                continue
            contact.state = P.CONTACT_STATE_LEASED
            contact.attempt += 1
            contact.holder = request.holder
            contact.lease_expire_time.FromDatetime(until)
            # A lease that ends is simply due again.
            if self._try(contact_row(row, contact, list_id, until, token=token, holder=request.holder)):
                taken.append(_clocked(contact, profile))
        return taken

    def _waits(self, call_list: Any, contact: Any, profile: Profile | None, tired: frozenset[str]) -> bool:
        """Whether somebody is looked at again a day later."""
        return (
            _who(contact) in tired
            or self._complains(contact, profile)
            or _nobody_said(call_list, contact, profile)
        )

    def _try(self, row: Row) -> bool:
        try:
            self._shelves.update(CONTACTS, row, self._clock.now())
        except (EtagMismatch, NotFound):
            return False
        return True

    def _people(self, contacts: Sequence[Any]) -> dict[str, Profile]:
        """What is known of them, by the name on the list or the number: of whom they were merged into where
        they were.
        """
        ids = sorted({contact.customer.removeprefix("customers/") for contact in contacts} - {""})
        found = self._store.survivors(ids) if ids else {}
        numbers = sorted({contact.number for contact in contacts if not contact.customer})
        owners = self._store.owners(numbers) if numbers else {}
        return {f"customers/{id}": profile for id, profile in found.items()} | owners

    def _over(self, listed: Row, people: Mapping[str, Profile], now: datetime) -> dict[str, str]:
        """For whom of them, by the names on the list, the campaign that filled it is over, and why: who has
        answered its phase (by a message, say, while they waited to be called) or declined, and who may not
        take what it promotes (any more).
        """
        origin = listed.content.get("origin")
        if not origin or not people:
            return {}
        over: dict[str, str] = {}
        if name := listed.content["resource"].get("offer"):
            offer, contact = self._offer(name), Contact(channel=CONSENT[StepChannel.OUTBOUND_CALL])
            for who, profile in people.items():
                if offer is None or not eligible(offer, profile, contact, now):
                    over[who] = "the customer may not take the offer"
        stands = self._touches().standing_people(origin["campaign"], list(people.values()))
        for who, profile in people.items():
            if has_answered(stands.get(profile.customer, {}), origin["phase"]):
                over[who] = "the customer has answered the campaign"
        return over

    def _offer(self, name: str) -> Offer | None:
        try:
            return self._store.offer(name.removeprefix("offers/"))
        except NotFound:
            return None

    def _blocked(
        self, call_list: Any, contact: Any, profile: Profile | None, over: Mapping[str, str], now: datetime
    ) -> str:
        if forbidden(self._shelves, contact.number):
            return "the number is forbidden"
        if (who := _who(contact)) in over:
            return over[who]
        if profile is not None and (
            not profile.alive
            or profile.opted_out
            or CONSENT[StepChannel.OUTBOUND_CALL] in profile.refused_channels
        ):
            return "the customer does not want to be called"
        if (
            _sells(call_list)
            and profile is not None
            and not consents(profile, StepChannel.OUTBOUND_CALL, now)
        ):
            return "the customer has not consented to calls for marketing"
        return ""

    def _complains(self, contact: Any, profile: Profile | None) -> bool:
        """Whether a complaint of the person's, or one made from the number, waits to be resolved: nobody
        sells to them before.
        """
        customer = profile.customer if profile else contact.customer.removeprefix("customers/")
        return bool(self._store.open_complaints(customer, 1, contact.number))

    def _quiet(
        self, courtesy: Courtesy, call_list: Any, contact: Any, profile: Profile | None, now: datetime
    ) -> datetime | None:
        """When quiet ends that holds on the person's clock; None when none does."""
        person = profile or Profile(customer="")
        zone = contact.time_zone or person.time_zone
        person = structs.replace(person, numbers=(contact.number,), time_zone=zone)
        whole = replace(courtesy, quiet=(*courtesy.quiet, *quiet_of(call_list.quiet_hours)))
        return is_quiet_until(whole, person, StepChannel.OUTBOUND_CALL, now, self._holiday)

    def _tired(
        self,
        listed: Row,
        contacts: Sequence[Any],
        people: Mapping[str, Profile],
        courtesy: Courtesy,
        now: datetime,
    ) -> frozenset[str]:
        """The customers among them who were addressed often enough, by whatever channel. The step of a
        campaign that filled this list does not count against its own call.
        """
        origin = listed.content.get("origin") or {}
        place = (origin.get("campaign", ""), origin.get("phase", ""), origin.get("step", ""))
        names = {contact.customer for contact in contacts} - {""}
        kin = {name: [name.removeprefix("customers/")] for name in names}
        for name, profile in people.items():
            # Merged since the list was made: what they met by their other names counts.
            kin[name] = sorted({*kin.get(name, ()), profile.customer, *profile.absorbed})
        since = now - timedelta(days=courtesy.days_max)
        everybody = sorted({customer for customers in kin.values() for customer in customers})
        touched = self._touches().touched(everybody, since, now) if everybody else {}
        tired = set()
        for name, customers in kin.items():
            own = {touch_id(*place, customer) for customer in customers}
            met = [touch for customer in customers for touch in touched.get(customer, ())]
            touches = [(at, over) for at, over, id in met if id not in own]
            if capped(courtesy, touches, StepChannel.OUTBOUND_CALL, now):
                tired.add(name)
        return frozenset(tired)

    def RenewContacts(self, request: P.RenewContactsRequest, context: Any) -> P.RenewContactsResponse:
        """Reserves for longer what the holder has."""
        holder = check_id("holder", request.holder)
        if not 1 <= len(request.contacts) <= CONTACTS_MAX:
            raise InvalidArgument(field="contacts", why=f"must hold 1 to {CONTACTS_MAX}")
        seconds, most = _lease_seconds(request), request.calls_in_day_max
        if not 0 <= most <= CALLS_MAX:
            raise InvalidArgument(field="calls_in_day_max", why=f"must be 0 to {CALLS_MAX}")
        names = [parse_names("contacts", ("contactLists", "contacts"), name) for name in request.contacts]
        now = self._clock.now()
        until = now + timedelta(seconds=seconds)
        response = P.RenewContactsResponse()
        called: dict[str, Row | None] = {}
        for list_id, id in names:
            if request.calling and list_id not in called:
                called[list_id] = self._called(list_id)
            row = self._held(list_id, id, holder, now)
            if row is None:
                continue
            contact = self._contact(row)
            if request.calling:
                if not self._may_call(called[list_id], contact, now):
                    continue
                row = begun(row, contact.attempt, now)
            contact.lease_expire_time.FromDatetime(until)
            if not self._try(contact_row(row, contact, list_id, until)):
                continue
            if request.calling and most and self._called_enough(id, contact, most, now):
                continue
            response.contacts.append(contact)
        return response

    def _called(self, list_id: str) -> Row | None:
        """A list that is called just now, else None."""
        if self._courtesy().halted:
            return None
        try:
            row = self._shelves.get(CONTACT_LISTS, list_id)
        except NotFound:
            return None
        runs = row.keys["state"] == P.CONTACT_LIST_STATE_RUNNING and self._campaign_lets(row)
        return row if runs else None

    def _may_call(self, listed: Row | None, contact: Any, now: datetime) -> bool:
        """Whether somebody who was handed out may still be called: what may have changed within a minute."""
        if listed is None:
            return False
        people, call_list = self._people([contact]), self._lists.plain(listed)
        profile, over = people.get(_who(contact)), self._over(listed, people, now)
        if self._blocked(call_list, contact, profile, over, now):
            return False
        if _nobody_said(call_list, contact, profile):
            return False
        return self._quiet(self._courtesy(), call_list, contact, profile, now) is None

    def _called_enough(self, id: str, contact: Any, most: int, now: datetime) -> bool:
        """Whether a number was called so often lately; its contact waits until that is over. Looked at after
        it has begun: of two who begin at one moment, on two lists, the later one sees both.
        """
        rows = self._shelves.find(CONTACTS, {"number": contact.number}, SAME_NUMBER_MAX)
        due = free_at(rows, id, contact.attempt, most, now)
        if due <= now:
            return False
        self._hand_back(self._shelves.get(CONTACTS, id), contact, due)
        return True

    def _hand_back(self, row: Row, contact: Any, due: datetime) -> bool:
        """A contact that was not called waits again, until `due`."""
        row = not_begun(row, contact.attempt)
        contact.state = P.CONTACT_STATE_WAITING
        contact.attempt -= 1
        contact.ClearField("holder")
        contact.ClearField("lease_expire_time")
        return self._try(contact_row(row, contact, row.keys["list"], due, token="", holder=""))

    def _held(self, list_id: str, id: str, holder: str, now: datetime) -> Row | None:
        """A contact that the holder has; None where another has it, or nobody."""
        try:
            row = self._shelves.get(CONTACTS, id)
        except NotFound:
            return None
        contact = self._contact(row)
        held = contact.holder == holder and _leased(contact, now) and row.keys["list"] == list_id
        return row if held else None

    def ReturnContacts(self, request: P.ReturnContactsRequest, context: Any) -> P.ReturnContactsResponse:
        """Gives contacts back uncalled."""
        holder, now = check_id("holder", request.holder), self._clock.now()
        if len(request.contacts) > CONTACTS_MAX:
            raise InvalidArgument(field="contacts", why=f"at most {CONTACTS_MAX} are allowed")
        due = now
        if request.HasField("not_before_time"):
            due = max(now, convert.moment(request.not_before_time))
            if due > now + PUT_OFF_MAX:
                raise InvalidArgument(field="not_before_time", why="must be at most a day ahead")
        leased = {"holder": holder, "state": P.CONTACT_STATE_LEASED}
        wanted = {parse_names("contacts", ("contactLists", "contacts"), name)[1] for name in request.contacts}
        returned = 0
        for row in self._shelves.find(CONTACTS, leased, 10_000):
            if wanted and row.id not in wanted:
                continue
            returned += self._hand_back(row, self._contact(row), due)
        return P.ReturnContactsResponse(returned_count=returned)

    def RecordResult(self, request: P.RecordResultRequest, context: Any) -> P.Contact:
        """What came of an attempt; the retry rule decides about the next."""
        holder = check_id("holder", request.holder)
        if request.result not in P.OutboundResult.values() or not request.result:
            raise InvalidArgument(field="result", why="must be set")
        if request.result == P.OUTBOUND_RESULT_CALL_BACK and not request.HasField("call_back_time"):
            raise InvalidArgument(field="call_back_time", why="must be set for CALL_BACK")
        problems = text_problems("note", request.note, 1_000) + name_problems(
            "agent", "agents", request.agent
        )
        if problems:
            raise InvalidArgument.many(problems)
        return retry_conflicts(lambda: self._record(request, holder))

    def _record(self, request: Any, holder: str) -> Any:
        row = self._row("contact", request.contact)
        contact, now = self._contact(row), self._clock.now()
        said = f"{request.attempt}/{holder}/{_result(request.result)}"
        listed = self._shelves.get(CONTACT_LISTS, row.keys["list"])
        if row.content.get("said") == said:
            # What came first may have died before it was counted.
            self._count(row, request, contact, now)
            self._note(listed, request, contact, now)
            return contact
        if request.attempt != contact.attempt or row.content.get("closed") == contact.attempt:
            raise AttemptClosed(subject=request.contact, why=f"attempt {request.attempt} is not open")
        if contact.state != P.CONTACT_STATE_LEASED or contact.holder != holder:
            raise LeaseLost(subject=request.contact, why="another has it, or nobody")
        again = self._again(self._lists.shown(listed), request, row, now)
        contact.last_result = request.result
        if request.note:
            _add_note(contact, request.note)
        contact.ClearField("holder")
        contact.ClearField("lease_expire_time")
        contact.state = P.CONTACT_STATE_WAITING if again else P.CONTACT_STATE_DONE
        contact.ClearField("next_attempt_time")
        if again:
            contact.next_attempt_time.FromDatetime(again)
        if request.result == P.OUTBOUND_RESULT_OPTED_OUT:
            self._forbid(contact.number, "the person said so")
        results = [*row.content.get("results", ()), _result(request.result)]
        changed = contact_row(row, contact, row.keys["list"], again or now, token="", holder="")
        changed = replace(
            changed,
            content={**changed.content, "said": said, "closed": contact.attempt, "results": results},
        )
        self._shelves.update(CONTACTS, changed, now, [self._event(request, contact, again, now)])
        self._count(row, request, contact, now)
        self._note(listed, request, contact, now)
        return contact

    def _note(self, listed: Row, request: Any, contact: Any, now: datetime) -> None:
        """A call that was answered counts against the caps, unless its campaign's step did already."""
        if _result(request.result) not in ANSWERED:
            return
        if request.attempt == 1 and contact.customer and "origin" in listed.content:
            return
        customer = contact.customer.removeprefix("customers/")
        if not customer and (owner := self._store.profile_of_number(contact.number)) is not None:
            customer = owner.customer
        if customer:
            id = f"call/{contact.name}/{request.attempt}"
            self._touches().note(id, customer, StepChannel.OUTBOUND_CALL.value, now)

    def _again(self, call_list: Any, request: Any, row: Row, now: datetime) -> datetime | None:
        """When the next attempt is due; None for a final result."""
        if request.result == P.OUTBOUND_RESULT_OPTED_OUT:
            return None
        rule = next((one for one in call_list.retry_rules if one.result == request.result), None)
        before = list(row.content.get("results", ())).count(_result(request.result))
        if rule is not None and before + 1 >= rule.attempts_max:
            return None
        if request.result == P.OUTBOUND_RESULT_CALL_BACK:
            return max(now, convert.moment(request.call_back_time))
        return None if rule is None else now + rule.wait.ToTimedelta()

    def _event(self, request: Any, contact: Any, again: datetime | None, now: datetime) -> Event:
        message = events_pb2.OutboundResultRecorded(
            contact=contact.name,
            customer=contact.customer,
            number=contact.number,
            call_id=request.call_id,
            agent=request.agent,
            result=_result(request.result),
            attempt=request.attempt,
            next_attempt_time=convert.timestamp(again),
            record_time=convert.timestamp(now),
        )
        id = stable_id(contact.name, request.attempt)
        subject = contact.customer or contact.name
        return Event.of(message, source=convert.SOURCE, subject=subject, time=now, id=f"result:{id}")

    def _count(self, row: Row, request: Any, contact: Any, now: datetime) -> None:
        keys = {"list": row.keys["list"], "at": now, "result": _result(request.result)}
        attempt = Row(id=stable_id(contact.name, request.attempt), content={}, keys=keys)
        try:
            self._shelves.insert(ATTEMPTS, attempt, now)
        except AlreadyExists:
            return

    def _known_rate(self, call_list: Any, now: datetime) -> float:
        """The abandon ratio, as far as there are enough answers to go by it."""
        abandoned, _, results = self._rates(call_list, now)
        enough = sum(results.get(name, 0) for name in ANSWERED) >= ANSWERED_MIN
        return abandoned if enough else 0.0

    def _rates(self, call_list: Any, now: datetime) -> tuple[float, float, dict[str, int]]:
        """(abandon ratio, answer ratio, results) over the list's window."""
        window = call_list.abandon_window.ToTimedelta() or DEFAULT_WINDOW
        id = call_list.name.removeprefix("contactLists/")
        results = self._shelves.tally(ATTEMPTS, {"list": id, "at": {"$gte": now - window}}, "result")
        answered = sum(results.get(name, 0) for name in ANSWERED)
        abandoned = results.get("ABANDONED", 0) / answered if answered else 0.0
        return abandoned, answered / sum(results.values()) if results else 0.0, results

    def GetDialStatistics(self, request: P.GetDialStatisticsRequest, context: Any) -> P.DialStatistics:
        """How a list is doing."""
        row, now = self._lists.row(request.contact_list, "contact_list"), self._clock.now()
        abandoned, answered, results = self._rates(self._lists.shown(row), now)
        known = [state for state in P.ContactState.values() if state]
        counted = self._shelves.tally(CONTACTS, {"state": {"$in": known}, "list": row.id}, "state")
        states = {
            P.ContactState.Name(state).removeprefix("CONTACT_STATE_"): counted.get(state, 0)
            for state in known
        }
        return P.DialStatistics(
            contact_list=request.contact_list,
            contacts=states,
            results=results,
            abandon_ratio=abandoned,
            answer_ratio=answered,
            read_time=convert.timestamp(now),
        )

    # forbidden numbers

    def _forbid(self, number: str, reason: str) -> bool:
        row = Row(id=number.lstrip("+"), content={"reason": reason})
        try:
            self._shelves.insert(FORBIDDEN, row, self._clock.now())
        except AlreadyExists:
            return False
        return True

    def AddForbiddenNumbers(
        self, request: P.AddForbiddenNumbersRequest, context: Any
    ) -> P.AddForbiddenNumbersResponse:
        """Forbids numbers for good."""
        if not 1 <= len(request.numbers) <= NUMBERS_MAX:
            raise InvalidArgument(field="numbers", why=f"must hold 1 to {NUMBERS_MAX} numbers")
        problems: list[Problem] = [
            (f"numbers[{at}]", "must be an E.164 number")
            for at, number in enumerate(request.numbers)
            if not convert.is_e164(number)
        ]
        problems += text_problems("reason", request.reason, 200)
        if problems:
            raise InvalidArgument.many(problems)
        added = sum(self._forbid(number, request.reason) for number in request.numbers)
        return P.AddForbiddenNumbersResponse(added_count=added)

    def RemoveForbiddenNumber(self, request: P.RemoveForbiddenNumberRequest, context: Any) -> Empty:
        """Allows a number again."""
        if not convert.is_e164(request.number):
            raise InvalidArgument(field="number", why="must be an E.164 number")
        self._shelves.delete(FORBIDDEN, self._shelves.get(FORBIDDEN, request.number.lstrip("+")))
        return Empty()
