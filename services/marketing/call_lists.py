"""Call lists: putting people on them, and what campaigns have to do with them. Loads no grpc.

A campaign's step of the channel OUTBOUND_CALL hands its people to a list of its own, as another step hands
them to a sender (`CallListSender`). The list's id is made of campaign, phase and step, the contact's of list
and number: whatever is cut off and done again puts nobody on it twice. Who is called when, and by whom, is
decided by those who ask `NextContacts`; what came of it comes back as `OutboundResultRecorded`
(campaign_answers.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict

from callmesh.marketing.v1 import campaigns_pb2, outbound_pb2
from chassis.clock import Clock
from chassis.errors import AlreadyExists, EtagMismatch, NotFound
from chassis.ids import stable_id
from chassis.mongo import retry_conflicts
from marketing import convert
from marketing.kinds import CAMPAIGNS, CONTACT_LISTS, CONTACTS, FORBIDDEN
from marketing.model import Profile
from marketing.senders import Message, SendFailed
from marketing.shelf import Row, Shelves

P = outbound_pb2
#: Lists known to be there; the oldest is looked for again.
KNOWN_LISTS_MAX = 1_000
#: Running lists looked at for their end at once.
LISTS_LOOKED_AT = 1_000
#: Longest note of a contact.
NOTE_CHARACTERS_MAX = 2_000
#: Longest name of a list.
LIST_NAME_CHARACTERS_MAX = 200
#: What a promised call-back counts for beside priorities, which are whole numbers.
PROMISED = 0.5
#: After these results a campaign's list tries again so many times, after so many seconds.
RETRIES: Mapping[int, tuple[int, int]] = {
    P.OUTBOUND_RESULT_NO_ANSWER: (3, 4 * 3_600),
    P.OUTBOUND_RESULT_BUSY: (3, 1_800),
    P.OUTBOUND_RESULT_MACHINE: (2, 24 * 3_600),
    P.OUTBOUND_RESULT_NETWORK_FAILURE: (3, 900),
    P.OUTBOUND_RESULT_ABANDONED: (2, 72 * 3_600),
}


def list_id(campaign: str, phase: str, step: str) -> str:
    """The call list of a campaign's step."""
    return f"{campaign}.{phase}.{step}"


def contact_id(list_id: str, number: str) -> str:
    """The one contact of a number on a list."""
    return stable_id(list_id, number)


def forbidden(shelves: Shelves, number: str) -> bool:
    """Whether a number must not be called."""
    try:
        shelves.get(FORBIDDEN, number.lstrip("+"))
    except NotFound:
        return False
    return True


def _rank(contact: Any) -> float:
    """By priority; of the same, who asked for a time before those whom nobody has promised anything."""
    promised = contact.last_result == P.OUTBOUND_RESULT_CALL_BACK and contact.state != P.CONTACT_STATE_DONE
    return contact.priority + (PROMISED if promised else 0)


def contact_row(row: Row, contact: Any, list_id: str, due: datetime, **beside: Any) -> Row:
    """A row with a changed contact."""
    keys = {
        **row.keys,
        "list": list_id,
        "number": contact.number,
        "customer": contact.customer,
        "state": contact.state,
        "rank": _rank(contact),
        "due": due,
        "skills": list(contact.skills),
        **beside,
    }
    resource = MessageToDict(contact, preserving_proto_field_name=True)
    return replace(row, content={**row.content, "resource": resource}, keys=keys)


def add_contact(shelves: Shelves, list_id: str, contact: Any, now: datetime) -> bool:
    """Puts somebody on a list; False when the number is on it already."""
    id = contact_id(list_id, contact.number)
    kept = P.Contact()
    kept.CopyFrom(contact)
    kept.name = f"contactLists/{list_id}/contacts/{id}"
    kept.state = P.CONTACT_STATE_WAITING
    kept.attempt = 0
    for field in ("last_result", "holder", "lease_expire_time"):
        kept.ClearField(field)
    due = convert.moment(contact.next_attempt_time) if contact.HasField("next_attempt_time") else now
    try:
        shelves.insert(CONTACTS, contact_row(Row(id=id, content={}, keys={}), kept, list_id, due), now)
    except AlreadyExists:
        return False
    return True


def complete_lists(shelves: Shelves, now: datetime) -> int:
    """Ends running lists on which everybody has a final result; how many. One that its campaign may still
    fill, or on which nobody stands yet, runs on. Repeatable, beside imports: who is added meanwhile lets the
    list run again.
    """
    ended = 0
    for row in shelves.find(CONTACT_LISTS, {"state": P.CONTACT_LIST_STATE_RUNNING}, LISTS_LOOKED_AT):
        if (
            _fillable(shelves, row)
            or _open(shelves, row.id)
            or not shelves.find(CONTACTS, {"list": row.id}, 1)
        ):
            continue
        try:
            shelves.update(CONTACT_LISTS, _in_state(row, P.CONTACT_LIST_STATE_COMPLETED), now)
        except (EtagMismatch, NotFound):
            continue  # somebody changed it meanwhile: the next look decides
        ended += 1
        if _open(shelves, row.id):
            reopen(shelves, row.id, now)
    return ended


def reopen(shelves: Shelves, list_id: str, now: datetime) -> None:
    """Lets a list that was over run again, for somebody was added."""

    def attempt() -> None:
        row = shelves.get(CONTACT_LISTS, list_id)
        if row.keys["state"] == P.CONTACT_LIST_STATE_COMPLETED:
            shelves.update(CONTACT_LISTS, _in_state(row, P.CONTACT_LIST_STATE_RUNNING), now)

    retry_conflicts(attempt)


def _open(shelves: Shelves, list_id: str) -> bool:
    """Whether somebody on a list has no final result."""
    unfinished = {"state": {"$in": [P.CONTACT_STATE_WAITING, P.CONTACT_STATE_LEASED]}, "list": list_id}
    return bool(shelves.find(CONTACTS, unfinished, 1))


def _fillable(shelves: Shelves, row: Row) -> bool:
    """Whether the campaign of a list may put more people on it."""
    if "origin" not in row.content:
        return False
    try:
        state = shelves.get(CAMPAIGNS, row.content["origin"]["campaign"]).keys["state"]
    except NotFound:
        return False
    return state in (campaigns_pb2.CAMPAIGN_STATE_RUNNING, campaigns_pb2.CAMPAIGN_STATE_PAUSED)


def _in_state(row: Row, state: int) -> Row:
    resource = {**row.content["resource"], "state": P.ContactListState.Name(state)}
    return replace(row, content={**row.content, "resource": resource}, keys={**row.keys, "state": state})


class CallListSender:
    """The sender of the channel OUTBOUND_CALL: "sent" is who stands on the list."""

    def __init__(self, shelves: Shelves, clock: Clock, queue: str = "") -> None:
        """Lists are for the agents of `queue`, an id; empty leaves that open."""
        self._shelves = shelves
        self._clock = clock
        self._queue = f"queues/{queue}" if queue else ""
        self._known: dict[str, None] = {}

    def reaches(self, profile: Profile) -> bool:
        """As the port says."""
        return bool(profile.numbers)

    def send(self, message: Message) -> None:
        """As the port says. A forbidden number is final."""
        profile, origin = message.profile, message.origin
        if not profile.numbers:
            raise SendFailed("there is no number", final=True)
        if forbidden(self._shelves, profile.numbers[0]):
            raise SendFailed("the number is forbidden", final=True)
        id = list_id(origin["campaign"], origin["phase"], origin["step"])
        self._ensure(id, origin)
        contact = P.Contact(
            number=profile.numbers[0],
            customer=f"customers/{profile.customer}",
            display_name=profile.display_name,
            time_zone=profile.time_zone,
            note=message.body[:NOTE_CHARACTERS_MAX],
        )
        add_contact(self._shelves, id, contact, self._clock.now())

    def _ensure(self, id: str, origin: Mapping[str, str]) -> None:
        """The list is there, and runs."""
        if id in self._known:
            return
        made = P.ContactList(
            display_name=f"{origin['campaign']}: {origin['phase']}/{origin['step']}"[
                :LIST_NAME_CHARACTERS_MAX
            ],
            campaign=f"campaigns/{origin['campaign']}",
            offer=origin.get("offer", ""),
            queue=self._queue,
            state=P.CONTACT_LIST_STATE_RUNNING,
        )
        for result, (attempts, seconds) in RETRIES.items():
            rule = made.retry_rules.add(result=result, attempts_max=attempts)
            rule.wait.FromSeconds(seconds)
        resource = MessageToDict(made, preserving_proto_field_name=True)
        place = {key: origin[key] for key in ("campaign", "phase", "step")}
        row = Row(id=id, content={"resource": resource, "origin": place}, keys={"state": made.state})
        try:
            self._shelves.insert(CONTACT_LISTS, row, self._clock.now())
        except AlreadyExists:
            pass
        if len(self._known) >= KNOWN_LISTS_MAX:
            del self._known[next(iter(self._known))]
        self._known[id] = None
