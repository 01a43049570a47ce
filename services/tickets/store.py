"""Where tickets are kept: the port, its MongoDB store and its memory store (one contract suite holds
both)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.write_concern import WriteConcern

from chassis import logs
from chassis.errors import AlreadyExists, EtagMismatch, NotFound
from chassis.idempotency import check_repeat
from chassis.mongo import OUTBOX_EVENTS_MAX, TOO_LARGE, create_once, pending_entry, update_aggregate
from tickets import sla as clocks
from tickets.desk import pile_order
from tickets.documents import (
    WITHOUT_TEXTS,
    CareEndDocument,
    CommentDocument,
    HistoryPageDocument,
    ProfileDocument,
    TicketDocument,
    comment_fields,
    comment_from_raw,
    from_raw,
    profile_fields,
    profile_from_raw,
    step_fields,
    step_from_raw,
    to_fields,
)
from tickets.engine import next_timer_ms
from tickets.filters import holds, stored_name, to_mongo
from tickets.listing import SIFTED_FIRST, SIFTED_MAX, Key, Query, changed_since, mongo_query, order_of, split
from tickets.model import (
    COMMENTS_INLINE_KEPT,
    COMMENTS_INLINE_MAX,
    HISTORY_INLINE_KEPT,
    HISTORY_INLINE_MAX,
    Comment,
    Profile,
    Step,
    Ticket,
)

if TYPE_CHECKING:
    from chassis.bus import Event

log = logs.get_logger(__name__)

#: How long the timers of a ticket that cannot be read are put off, business ms.
UNREADABLE_HOLD_MS = 60_000
#: Most open tickets of one caller and topic that are looked at when a call might join one.
CANDIDATES_MAX = 50


def sort_key(ticket: Ticket, query: Query) -> tuple[int, str]:
    """What a page continues after."""
    due = clocks.due_ms(ticket.sla.resolution)
    return (due or 0, ticket.id) if query.by_due else (ticket.created_ms, ticket.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sifted:
    """A page of a list whose filter no index serves."""

    #: In the list's order; fewer than asked for, even none, does not mean that there are no more.
    tickets: Sequence[Ticket]
    #: What the next page continues after; None: there is none.
    more: Key | None


def _cut(found: Sequence[Ticket], limit: int, query: Query, reached: Key | None) -> Sifted:
    """A page of what was found, one more than asked for where there were as many; `reached`: where looking
    ended, None at the end."""
    shown = found[:limit]
    return Sifted(tickets=shown, more=sort_key(shown[-1], query) if len(found) > limit else reached)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A change of one of many tickets; history and comments must not grow by it."""

    #: As it was read.
    before: Ticket
    #: As it is to be, still with the version that was read.
    after: Ticket
    events: Sequence[Event]


def _update_of(change: Changed) -> UpdateOne:
    old, new = to_fields(change.before), to_fields(change.after)
    changed = {name for name in new if new[name] != old[name]}
    values = {name: new[name] for name in changed if new[name] is not None}
    gone = dict.fromkeys((name for name in changed if new[name] is None), "")
    version, room = change.before.version, OUTBOX_EVENTS_MAX - len(change.events)
    update: dict[str, Any] = {"$set": {**values, "version": version + 1}}
    if gone:
        update["$unset"] = gone
    if change.events:
        update["$push"] = {"outbox": {"$each": [pending_entry(event) for event in change.events]}}
        update["$min"] = {"outbox_since": datetime.now(UTC)}
    condition = {"_id": change.before.id, "version": version, f"outbox.{room}": {"$exists": False}}
    return UpdateOne(condition, update)


class TicketStore(Protocol):
    """Keeps tickets. Any method may raise Unavailable while the database is away; then nothing has
    changed."""

    def insert(
        self,
        ticket: Ticket,
        events: Sequence[Event],
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Ticket, bool]:
        """Stores a new ticket as version 1 with its events: (ticket, True), or what an earlier call with
        this key made: (that ticket, False). AlreadyExists when the id or the open key is taken,
        RequestIdReused when the key came with other content."""

    def repeat_of(self, request_key: str | None, fingerprint: str | None) -> Ticket | None:
        """What an earlier call with this key made; None for none. RequestIdReused as in `insert`."""

    def update(self, ticket: Ticket, events: Sequence[Event]) -> Ticket:
        """Stores a changed ticket with its events if it is still at `ticket.version`; answers it as stored.
        EtagMismatch when somebody else wrote in between, NotFound when it is gone, ValueError for a ticket
        that was read in part (by `page` or a reader)."""

    def get(self, ticket_id: str) -> Ticket:
        """The ticket with its inline history; NotFound."""

    def find(self, ticket_id: str) -> Ticket | None:
        """As `get`; None when there is none."""

    def page(self, query: Query, limit: int, after: tuple[int, str] | None) -> list[Ticket]:
        """At most `limit` tickets after a sort key, without texts and history."""

    def sift(self, query: Query, limit: int, after: Key | None) -> Sifted:
        """As `page`, for any filter with bounded work: what no index serves is looked for among at most
        `SIFTED_MAX` tickets."""

    def count(self, query: Query) -> int:
        """How many tickets match."""

    def whole(self, query: Query, most: int) -> Iterator[Ticket]:
        """Tickets that match with their inline history, without texts and comments, the newest first, at most
        `most`."""

    def by_call(self, call_id: str) -> Ticket | None:
        """The ticket that a call is linked with; None for none."""

    def open_like(self, customer_id: str, number: str, topic: str) -> list[Ticket]:
        """Open tickets of a topic that belong to the customer or came from the number, at most
        `CANDIDATES_MAX`."""

    def open_of_number(self, number: str, limit: int) -> list[Ticket]:
        """Open tickets from a number that have no customer yet."""

    def due(self, now_ms: int, limit: int) -> list[str]:
        """Ids of tickets with a timer due, longest due first."""

    def due_tickets(self, now_ms: int, limit: int) -> list[Ticket]:
        """Tickets with a timer due, whole, longest due first. One that cannot be read is put off, and does
        not keep the others waiting."""

    def update_many(self, changes: Sequence[Changed]) -> None:
        """As `update` for many in one trip; a ticket that somebody else wrote in between, or that has no room
        for more events, is left as it is."""

    def next_due_ms(self) -> int | None:
        """When the next timer is due; None when there is none."""

    def steps(self, ticket_id: str, after: int, limit: int) -> list[Step]:
        """At most `limit` steps of the history with a sequence above `after`, oldest first; NotFound."""

    def blank_steps(self, ticket_id: str) -> None:
        """Removes the reasons from the part of the history that no longer lies in the ticket."""

    def comments(self, ticket_id: str, after: int, limit: int) -> list[Comment]:
        """At most `limit` comments with a sequence above `after`, oldest first; NotFound."""

    def blank_comments(self, ticket_id: str, owner: str = "") -> None:
        """Removes texts and owners of the comments (with an owner: of that one's) that no longer lie in the
        ticket."""

    def loads(self, agents: Sequence[str]) -> dict[str, int]:
        """How many open tickets each of these agents has; none: left out."""

    def pile(self, team: str, skills: Sequence[str], limit: int) -> list[Ticket]:
        """Open tickets of a team that nobody has and that need none but these skills, the most urgent and
        then the oldest first, without texts."""

    def by_request(self, request_key: str) -> Ticket | None:
        """The ticket that remembers a request; None for none."""

    def open_after(self, ticket_id: str, limit: int) -> list[str]:
        """Ids of open tickets above an id, in order."""

    def were_of(self, customer_id: str, after: str, limit: int) -> list[str]:
        """Ids above an id, in order, of tickets that were a customer's before it was merged."""

    def hosts_of(self, guest: str, after: str, limit: int) -> list[str]:
        """Ids above an id, in order, of tickets that hold another's words."""

    def profile(self, customer_id: str) -> Profile | None:
        """What is known of a customer."""

    def profile_of_number(self, number: str) -> Profile | None:
        """The customer that a number belongs to, as far as known."""

    def save_profile(self, profile: Profile) -> bool:
        """Stores a profile unless a newer one is there; whether it was stored."""

    def end_care(self, ticket_id: str, reason: str) -> None:
        """Remembers for a while that an occasion is over whose ticket is not there yet; the first reason
        stays."""

    def care_end(self, ticket_id: str) -> str | None:
        """Why the occasion of a ticket is over, as `end_care` was told; None where it was not."""

    def erased_due(self, now_ms: int, limit: int) -> list[str]:
        """Ids of erased customers whose tickets are to be looked for once more, the longest due first."""

    def look_again(self, customer_id: str, at_ms: int | None) -> None:
        """Sets when an erased customer's tickets are looked for once more; None: not any more, and its former
        numbers are forgotten."""


def check_whole(ticket: Ticket) -> None:
    """ValueError for a ticket that was read without its history or texts: storing it would lose them."""
    if not ticket.history:
        raise ValueError(f"tickets/{ticket.id} was read in part and cannot be stored")


def split_comments(ticket: Ticket) -> tuple[tuple[Comment, ...], Ticket]:
    """The oldest comments that no longer fit into a ticket, and the ticket with the rest."""
    if len(ticket.comments) <= COMMENTS_INLINE_MAX:
        return (), ticket
    gone, kept = ticket.comments[:-COMMENTS_INLINE_KEPT], ticket.comments[-COMMENTS_INLINE_KEPT:]
    return gone, replace(ticket, comments=kept)


def split_history(ticket: Ticket) -> tuple[tuple[Step, ...], Ticket]:
    """The oldest steps that no longer fit into a ticket, and the ticket with the rest."""
    if len(ticket.history) <= HISTORY_INLINE_MAX:
        return (), ticket
    gone, kept = ticket.history[:-HISTORY_INLINE_KEPT], ticket.history[-HISTORY_INLINE_KEPT:]
    return gone, replace(ticket, history=kept)


# ---- MongoDB


def _comment_id(ticket_id: str, sequence: int) -> str:
    return f"{ticket_id}/{sequence:06d}"


class MongoStore:
    """The store on MongoDB. Needs `chassis.mongo.connect` first."""

    def _tickets(self) -> Any:
        return TicketDocument._get_collection()

    def insert(
        self,
        ticket: Ticket,
        events: Sequence[Event],
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Ticket, bool]:
        """As the port says."""
        document = TicketDocument(id=ticket.id, **to_fields(ticket))
        stored, created = create_once(document, events, request_key=request_key, fingerprint=fingerprint)
        return (replace(ticket, version=1), True) if created else (from_raw(stored.to_mongo()), False)

    def repeat_of(self, request_key: str | None, fingerprint: str | None) -> Ticket | None:
        """As the port says."""
        if request_key is None:
            return None
        raw = self._tickets().find_one({"request_key": request_key})
        if raw is None:
            return None
        check_repeat(raw.get("request_fingerprint"), fingerprint)
        return from_raw(raw)

    def update(self, ticket: Ticket, events: Sequence[Event]) -> Ticket:
        """As the port says. Old history and comments go to their own documents first: a crash in between
        leaves them in both places, which readers tolerate."""
        check_whole(ticket)
        said, ticket = split_comments(ticket)
        gone, ticket = split_history(ticket)
        mine: Sequence[str] = ()
        if said or gone:
            ticket, mine = self._reserved(ticket, said)
            self._put_comments_away(ticket.id, said)
            self._put_steps_away(ticket.id, gone)
        document = TicketDocument(id=ticket.id, version=ticket.version, **to_fields(ticket))
        try:
            update_aggregate(document, events, ticket.version)
        except EtagMismatch:
            if mine:
                CommentDocument._get_collection().delete_many({"_id": {"$in": list(mine)}})
            raise
        return replace(ticket, version=document.version)

    def _reserved(self, ticket: Ticket, said: Sequence[Comment]) -> tuple[Ticket, Sequence[str]]:
        """(the ticket, ids of comments that are new and put away with it). Nobody else may have their places:
        they are taken by a write of its own. EtagMismatch before anything is put away that comes too late,
        over what others put there since, or after an erasure."""
        stored = self._tickets().find_one({"_id": ticket.id}, {"version": 1, "comment_count": 1})
        if stored is None:
            raise NotFound(resource=f"tickets/{ticket.id}")
        known = stored.get("comment_count") or 0
        new = [_comment_id(ticket.id, one.sequence) for one in said if one.sequence > known]
        version = ticket.version
        if stored["version"] == version and not new:
            return ticket, ()
        taken = {"$set": {"comment_count": ticket.comment_count, "version": version + 1}}
        collection = self._tickets().with_options(write_concern=WriteConcern(w="majority"))
        condition = {"_id": ticket.id, "version": version}
        if stored["version"] != version or not collection.update_one(condition, taken).matched_count:
            raise EtagMismatch(resource=f"tickets/{ticket.id}")
        return replace(ticket, version=version + 1), new

    def _put_comments_away(self, ticket_id: str, gone: Sequence[Comment]) -> None:
        collection = CommentDocument._get_collection()
        for said in gone:
            raw = {"ticket_id": ticket_id, "sequence": said.sequence, "comment": comment_fields(said)}
            raw |= {"owner": said.owner} if said.owner else {}
            collection.replace_one({"_id": _comment_id(ticket_id, said.sequence)}, raw, upsert=True)

    def _put_steps_away(self, ticket_id: str, gone: Sequence[Step]) -> None:
        if gone:
            first = gone[0].sequence
            page = {"ticket_id": ticket_id, "first": first, "steps": [step_fields(s) for s in gone]}
            pages = HistoryPageDocument._get_collection()
            pages.replace_one({"_id": f"{ticket_id}/{first:09d}"}, page, upsert=True)

    def comments(self, ticket_id: str, after: int, limit: int) -> list[Comment]:
        """As the port says."""
        inline = self.get(ticket_id).comments
        query = {"ticket_id": ticket_id, "sequence": {"$gt": after}}
        stored = CommentDocument._get_collection().find(query).sort("sequence", 1).limit(limit)
        found = {raw["sequence"]: comment_from_raw(raw["comment"], raw.get("owner") or "") for raw in stored}
        found |= {said.sequence: said for said in inline}
        return [found[sequence] for sequence in sorted(found) if sequence > after][:limit]

    def blank_comments(self, ticket_id: str, owner: str = "") -> None:
        """As the port says."""
        which = {"ticket_id": ticket_id, **({"owner": owner} if owner else {})}
        blank = {"$set": {"comment.body": ""}, "$unset": {"owner": ""}}
        CommentDocument._get_collection().update_many(which, blank)

    def loads(self, agents: Sequence[str]) -> dict[str, int]:
        """As the port says."""
        match = {"$match": {"assignee": {"$in": list(agents)}, "open": True}}
        counted = self._tickets().aggregate([match, {"$group": {"_id": "$assignee", "count": {"$sum": 1}}}])
        return {raw["_id"]: raw["count"] for raw in counted}

    def pile(self, team: str, skills: Sequence[str], limit: int) -> list[Ticket]:
        """As the port says."""
        enough = {"$not": {"$elemMatch": {"$nin": list(skills)}}}
        # only what nobody has has a rank (an earlier release: whatever lies with a team)
        waits = {"assignee": None, "rank": {"$gte": 0}}
        query = {"team": team, "open": True, **waits, "required_skills": enough}
        order = [("rank", -1), ("created_ms", 1), ("_id", 1)]
        found = self._tickets().find(query, WITHOUT_TEXTS).sort(order).limit(limit)
        return [from_raw(raw) for raw in found]

    def by_request(self, request_key: str) -> Ticket | None:
        """As the port says."""
        return self._one({"request_keys": request_key})

    def open_after(self, ticket_id: str, limit: int) -> list[str]:
        """As the port says."""
        return self._ids({"_id": {"$gt": ticket_id}, "open": True}, limit)

    def were_of(self, customer_id: str, after: str, limit: int) -> list[str]:
        """As the port says."""
        return self._ids({"merged_from": customer_id, "_id": {"$gt": after}}, limit)

    def hosts_of(self, guest: str, after: str, limit: int) -> list[str]:
        """As the port says."""
        return self._ids({"guests": guest, "_id": {"$gt": after}}, limit)

    def _ids(self, query: Mapping[str, Any], limit: int) -> list[str]:
        return [raw["_id"] for raw in self._tickets().find(query, {"_id": 1}).sort("_id", 1).limit(limit)]

    def get(self, ticket_id: str) -> Ticket:
        """As the port says."""
        found = self.find(ticket_id)
        if found is None:
            raise NotFound(resource=f"tickets/{ticket_id}")
        return found

    def find(self, ticket_id: str) -> Ticket | None:
        """As the port says."""
        return self._one({"_id": ticket_id})

    def _one(self, query: Mapping[str, Any]) -> Ticket | None:
        raw = self._tickets().find_one(query, {"outbox": 0})
        return from_raw(raw) if raw is not None else None

    def _many(self, query: Mapping[str, Any], limit: int) -> list[Ticket]:
        return [from_raw(raw) for raw in self._tickets().find(query, {"outbox": 0}).limit(limit)]

    def page(self, query: Query, limit: int, after: tuple[int, str] | None) -> list[Ticket]:
        """As the port says."""
        return self._listed(query, limit, after, None)

    def _listed(
        self, query: Query, limit: int, after: Key | None, last: Key | None, hint: str | None = None
    ) -> list[Ticket]:
        found = self._tickets().find(mongo_query(query, after, last), WITHOUT_TEXTS, hint=hint)
        return [from_raw(raw) for raw in found.sort(order_of(query)).limit(limit)]

    def sift(self, query: Query, limit: int, after: Key | None) -> Sifted:
        """As the port says."""
        served, rest = split(query)
        if not rest:
            return _cut(self.page(query, limit + 1, after), limit, query, None)
        recent = changed_since(query)
        if recent is not None and self._are_few(to_mongo(recent)):
            return _cut(self._listed(query, limit + 1, after, None, "updated"), limit, query, None)
        found, last = list[Ticket](), after
        for window in (max(SIFTED_FIRST, limit), SIFTED_MAX):
            last = self._key_at(replace(query, conditions=served), after, window)
            found = self._listed(query, limit + 1, after, last)
            if last is None or len(found) > limit:
                break
        return _cut(found, limit, query, last)

    def _are_few(self, updated: Mapping[str, Any]) -> bool:
        counted = self._tickets().count_documents(updated, limit=SIFTED_MAX + 1, hint="updated")
        return bool(counted <= SIFTED_MAX)

    def _key_at(self, query: Query, after: Key | None, place: int) -> Key | None:
        """The sort key of the ticket at a place of a list, counted from a key; None where there are fewer."""
        order = order_of(query)
        field = order[0][0]
        found = self._tickets().find(mongo_query(query, after), {field: 1}).sort(order)
        last = next(iter(found.skip(place - 1).limit(1)), None)
        return (last[field], last["_id"]) if last is not None else None

    def whole(self, query: Query, most: int) -> Iterator[Ticket]:
        """As the port says."""
        without = {"outbox": 0, "comments": 0, "description": 0, "resolution": 0}
        found = self._tickets().find(mongo_query(query, None), without)
        for raw in found.sort([("created_ms", -1), ("_id", -1)]).limit(most):
            yield from_raw(raw)

    def count(self, query: Query) -> int:
        """As the port says."""
        return int(self._tickets().count_documents(mongo_query(query, None)))

    def by_call(self, call_id: str) -> Ticket | None:
        """As the port says."""
        return self._one({"calls.call_id": call_id})

    def open_like(self, customer_id: str, number: str, topic: str) -> list[Ticket]:
        """As the port says."""
        found: dict[str, Ticket] = {}
        for field, value in (("customer_id", customer_id), ("caller_number", number)):
            if value:
                same = self._many({field: value, "open": True, "topic": topic}, CANDIDATES_MAX)
                found |= {ticket.id: ticket for ticket in same}
        return list(found.values())[:CANDIDATES_MAX]

    def open_of_number(self, number: str, limit: int) -> list[Ticket]:
        """As the port says."""
        return self._many({"caller_number": number, "open": True, "customer_id": None}, limit)

    def due(self, now_ms: int, limit: int) -> list[str]:
        """As the port says."""
        found = self._tickets().find({"timer_ms": {"$lte": now_ms}}, {"_id": 1})
        return [raw["_id"] for raw in found.sort([("timer_ms", 1), ("_id", 1)]).limit(limit)]

    def due_tickets(self, now_ms: int, limit: int) -> list[Ticket]:
        """As the port says."""
        query = {"timer_ms": {"$lte": now_ms}}
        found = []
        for raw in (
            self._tickets().find(query, {"outbox": 0}).sort([("timer_ms", 1), ("_id", 1)]).limit(limit)
        ):
            try:
                found.append(from_raw(raw))
            except (KeyError, TypeError, ValueError):
                # of a newer release, say, that was rolled back
                log.exception("store.unreadable", ticket=raw["_id"])
                later = {"$set": {"timer_ms": now_ms + UNREADABLE_HOLD_MS}}
                self._tickets().update_one({"_id": raw["_id"], "version": raw["version"]}, later)
        return found

    def update_many(self, changes: Sequence[Changed]) -> None:
        """As the port says. Only what changed is written."""
        if changes:
            collection = self._tickets().with_options(write_concern=WriteConcern(w="majority"))
            try:
                collection.bulk_write([_update_of(change) for change in changes], ordered=False)
            except BulkWriteError as error:
                failed = error.details.get("writeErrors", ())
                if error.details.get("writeConcernErrors") or any(f["code"] not in TOO_LARGE for f in failed):
                    raise
                # no room for more events, if by their size: one must not keep all others waiting
                log.warning("store.too_large", tickets=[changes[f["index"]].before.id for f in failed])

    def next_due_ms(self) -> int | None:
        """As the port says."""
        query = {"timer_ms": {"$gt": 0}}
        raw = self._tickets().find_one(query, {"timer_ms": 1}, sort=[("timer_ms", 1), ("_id", 1)])
        return raw["timer_ms"] if raw is not None else None

    def steps(self, ticket_id: str, after: int, limit: int) -> list[Step]:
        """As the port says."""
        inline = self.get(ticket_id).history
        pages = HistoryPageDocument._get_collection()
        found: dict[int, Step] = {}
        first_inline = inline[0].sequence if inline else 1
        if after + 1 < first_inline:
            # pages hold at least one step each, so `limit` pages are enough; those wholly before `after` are
            # skipped
            start = pages.find_one(
                {"ticket_id": ticket_id, "first": {"$lte": after + 1}}, {"first": 1}, sort=[("first", -1)]
            )
            least = start["first"] if start is not None else 1
            query = {"ticket_id": ticket_id, "first": {"$gte": least}}
            for page in pages.find(query).sort("first", 1).limit(limit):
                found |= {raw["sequence"]: step_from_raw(raw) for raw in page["steps"]}
        found |= {step.sequence: step for step in inline}
        return [found[sequence] for sequence in sorted(found) if sequence > after][:limit]

    def blank_steps(self, ticket_id: str) -> None:
        """As the port says."""
        pages = HistoryPageDocument._get_collection()
        pages.update_many({"ticket_id": ticket_id}, {"$unset": {"steps.$[].reason": ""}})

    def profile(self, customer_id: str) -> Profile | None:
        """As the port says."""
        raw = ProfileDocument._get_collection().find_one({"_id": customer_id})
        return profile_from_raw(raw) if raw is not None else None

    def profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        raw = ProfileDocument._get_collection().find_one({"numbers": number}, sort=[("_id", 1)])
        return profile_from_raw(raw) if raw is not None else None

    def save_profile(self, profile: Profile) -> bool:
        """As the port says. The unique `_id` turns an older or repeated snapshot away."""
        collection = ProfileDocument._get_collection()
        older = {"_id": profile.customer_id, "version": {"$lt": profile.version}}
        try:
            collection.update_one(older, {"$set": profile_fields(profile)}, upsert=True)
        except DuplicateKeyError:
            return False
        return True

    def end_care(self, ticket_id: str, reason: str) -> None:
        """As the port says."""
        collection = CareEndDocument._get_collection().with_options(write_concern=WriteConcern(w="majority"))
        first = {"$setOnInsert": {"reason": reason, "at": datetime.now(UTC)}}
        with suppress(DuplicateKeyError):  # another tells it at the same moment
            collection.update_one({"_id": ticket_id}, first, upsert=True)

    def care_end(self, ticket_id: str) -> str | None:
        """As the port says."""
        raw = CareEndDocument._get_collection().find_one({"_id": ticket_id})
        return raw["reason"] if raw is not None else None

    def erased_due(self, now_ms: int, limit: int) -> list[str]:
        """As the port says."""
        found = ProfileDocument._get_collection().find({"again_ms": {"$lte": now_ms}}, {"_id": 1})
        return [raw["_id"] for raw in found.sort("again_ms", 1).limit(limit)]

    def look_again(self, customer_id: str, at_ms: int | None) -> None:
        """As the port says."""
        never: dict[str, Any] = {"$unset": {"again_ms": ""}, "$set": {"former_numbers": []}}
        change = {"$set": {"again_ms": at_ms}} if at_ms is not None else never
        ProfileDocument._get_collection().update_one({"_id": customer_id}, change)


# ---- memory


def value_reader(ticket: Ticket) -> Callable[[str], Any]:
    """Gives a ticket's values by the names of filters."""
    fields: dict[str, Any] = {}

    def value_of(name: str) -> Any:
        if name == "call":
            return [link.call_id for link in ticket.calls] or None
        if not fields:
            fields.update(to_fields(ticket))
        return fields[stored_name(name)]

    return value_of


def _bare(ticket: Ticket) -> Ticket:
    """A ticket as lists have it."""
    draft = replace(ticket.draft, description="")
    return replace(ticket, history=(), comments=(), resolution="", draft=draft)


class MemoryStore:
    """The store in memory, for tests and for trying things out; safe for threads. `events` holds what was
    told, in order."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tickets: dict[str, Ticket] = {}
        self._requests: dict[str, tuple[str, str | None]] = {}
        self._old_steps: dict[str, dict[int, Step]] = {}
        self._old_comments: dict[str, dict[int, Comment]] = {}
        self._profiles: dict[str, Profile] = {}
        self._care_ends: dict[str, str] = {}
        #: Everything that was stored to be published.
        self.events: list[Event] = []

    def _check_open_key(self, ticket: Ticket) -> None:
        if ticket.open_key and any(
            other.open_key == ticket.open_key and other.id != ticket.id for other in self._tickets.values()
        ):
            raise AlreadyExists(resource=f"tickets/{ticket.id}", conflict="open_key")

    def insert(
        self,
        ticket: Ticket,
        events: Sequence[Event],
        *,
        request_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[Ticket, bool]:
        """As the port says."""
        with self._lock:
            earlier = self.repeat_of(request_key, fingerprint)
            if earlier is not None:
                return earlier, False
            if ticket.id in self._tickets:
                raise AlreadyExists(resource=f"tickets/{ticket.id}", conflict="_id")
            self._check_open_key(ticket)
            stored = replace(ticket, version=1)
            self._tickets[ticket.id] = stored
            if request_key:
                self._requests[request_key] = (ticket.id, fingerprint)
            self.events.extend(events)
            return stored, True

    def repeat_of(self, request_key: str | None, fingerprint: str | None) -> Ticket | None:
        """As the port says."""
        with self._lock:
            if request_key is None or request_key not in self._requests:
                return None
            ticket_id, earlier = self._requests[request_key]
            check_repeat(earlier, fingerprint)
            return self._tickets[ticket_id]

    def update(self, ticket: Ticket, events: Sequence[Event]) -> Ticket:
        """As the port says."""
        check_whole(ticket)
        with self._lock:
            if ticket.id not in self._tickets:
                raise NotFound(resource=f"tickets/{ticket.id}")
            if self._tickets[ticket.id].version != ticket.version:
                raise EtagMismatch(resource=f"tickets/{ticket.id}")
            self._check_open_key(ticket)
            old, ticket = split_comments(ticket)
            self._old_comments.setdefault(ticket.id, {}).update({said.sequence: said for said in old})
            gone, ticket = split_history(ticket)
            self._old_steps.setdefault(ticket.id, {}).update({step.sequence: step for step in gone})
            stored = replace(ticket, version=ticket.version + 1)
            self._tickets[ticket.id] = stored
            self.events.extend(events)
            return stored

    def get(self, ticket_id: str) -> Ticket:
        """As the port says."""
        found = self.find(ticket_id)
        if found is None:
            raise NotFound(resource=f"tickets/{ticket_id}")
        return found

    def find(self, ticket_id: str) -> Ticket | None:
        """As the port says."""
        with self._lock:
            return self._tickets.get(ticket_id)

    def versions(self) -> dict[str, int]:
        """Every ticket's version."""
        with self._lock:
            return {id: ticket.version for id, ticket in self._tickets.items()}

    def _where(self, test: Callable[[Ticket], bool]) -> list[Ticket]:
        with self._lock:
            return [ticket for ticket in self._tickets.values() if test(ticket)]

    def page(self, query: Query, limit: int, after: tuple[int, str] | None) -> list[Ticket]:
        """As the port says."""

        def beyond(ticket: Ticket) -> bool:
            key = sort_key(ticket, query)
            return after is None or (key > after if query.by_due else key < after)

        found = self._where(
            lambda t: (
                all(holds(term, value_reader(t)) for term in query.conditions)
                and (not query.by_due or clocks.due_ms(t.sla.resolution) is not None)
                and beyond(t)
            )
        )
        found.sort(key=lambda ticket: sort_key(ticket, query), reverse=not query.by_due)
        return [_bare(ticket) for ticket in found[:limit]]

    def whole(self, query: Query, most: int) -> Iterator[Ticket]:
        """As the port says."""
        for ticket in self.page(query, most, None):
            yield self.get(ticket.id)

    def sift(self, query: Query, limit: int, after: Key | None) -> Sifted:
        """As the port says; nothing here is too much to look at."""
        return _cut(self.page(query, limit + 1, after), limit, query, None)

    def count(self, query: Query) -> int:
        """As the port says."""
        return len(self.page(query, len(self._tickets) + 1, None))

    def by_call(self, call_id: str) -> Ticket | None:
        """As the port says."""
        found = self._where(lambda t: any(link.call_id == call_id for link in t.calls))
        return found[0] if found else None

    def open_like(self, customer_id: str, number: str, topic: str) -> list[Ticket]:
        """As the port says."""
        return self._where(
            lambda t: (
                t.is_open
                and t.topic == topic
                and (
                    bool(customer_id and t.draft.customer_id == customer_id)
                    or bool(number and t.draft.caller_number == number)
                )
            )
        )[:CANDIDATES_MAX]

    def open_of_number(self, number: str, limit: int) -> list[Ticket]:
        """As the port says."""
        return self._where(
            lambda t: t.is_open and t.draft.caller_number == number and not t.draft.customer_id
        )[:limit]

    def _timers(self) -> list[tuple[int, str]]:
        with self._lock:
            dues = [(next_timer_ms(ticket), ticket.id) for ticket in self._tickets.values()]
            return sorted((due, id) for due, id in dues if due is not None)

    def due(self, now_ms: int, limit: int) -> list[str]:
        """As the port says."""
        return [id for due, id in self._timers() if due <= now_ms][:limit]

    def due_tickets(self, now_ms: int, limit: int) -> list[Ticket]:
        """As the port says."""
        return [self.get(id) for id in self.due(now_ms, limit)]

    def update_many(self, changes: Sequence[Changed]) -> None:
        """As the port says."""
        for change in changes:
            try:
                self.update(change.after, change.events)
            except (EtagMismatch, NotFound):
                continue

    def next_due_ms(self) -> int | None:
        """As the port says."""
        timers = self._timers()
        return timers[0][0] if timers else None

    def steps(self, ticket_id: str, after: int, limit: int) -> list[Step]:
        """As the port says."""
        with self._lock:
            ticket = self.get(ticket_id)
            found = {**self._old_steps.get(ticket_id, {}), **{s.sequence: s for s in ticket.history}}
            return [found[sequence] for sequence in sorted(found) if sequence > after][:limit]

    def blank_steps(self, ticket_id: str) -> None:
        """As the port says."""
        with self._lock:
            old = self._old_steps.get(ticket_id, {})
            old.update({sequence: replace(step, reason="") for sequence, step in old.items()})

    def profile(self, customer_id: str) -> Profile | None:
        """As the port says."""
        with self._lock:
            return self._profiles.get(customer_id)

    def profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        with self._lock:
            owners = [p for p in self._profiles.values() if number in p.numbers]
            return min(owners, key=lambda profile: profile.customer_id, default=None)

    def save_profile(self, profile: Profile) -> bool:
        """As the port says."""
        with self._lock:
            known = self._profiles.get(profile.customer_id)
            if known is not None and known.version >= profile.version:
                return False
            self._profiles[profile.customer_id] = profile
            return True

    def end_care(self, ticket_id: str, reason: str) -> None:
        """As the port says."""
        with self._lock:
            self._care_ends.setdefault(ticket_id, reason)

    def care_end(self, ticket_id: str) -> str | None:
        """As the port says."""
        with self._lock:
            return self._care_ends.get(ticket_id)

    def erased_due(self, now_ms: int, limit: int) -> list[str]:
        """As the port says."""
        with self._lock:
            again = [(p.again_ms, id) for id, p in self._profiles.items() if p.again_ms is not None]
            return [id for at, id in sorted(again) if at <= now_ms][:limit]

    def look_again(self, customer_id: str, at_ms: int | None) -> None:
        """As the port says."""
        with self._lock:
            profile = replace(self._profiles[customer_id], again_ms=at_ms)
            forgotten = profile if at_ms is not None else replace(profile, former_numbers=())
            self._profiles[customer_id] = forgotten

    def comments(self, ticket_id: str, after: int, limit: int) -> list[Comment]:
        """As the port says."""
        with self._lock:
            found = {
                **self._old_comments.get(ticket_id, {}),
                **{c.sequence: c for c in self.get(ticket_id).comments},
            }
            return [found[sequence] for sequence in sorted(found) if sequence > after][:limit]

    def blank_comments(self, ticket_id: str, owner: str = "") -> None:
        """As the port says."""
        with self._lock:
            old = self._old_comments.get(ticket_id, {})
            gone = {sequence: said for sequence, said in old.items() if owner in ("", said.owner)}
            old.update({sequence: replace(said, body="", owner="") for sequence, said in gone.items()})

    def loads(self, agents: Sequence[str]) -> dict[str, int]:
        """As the port says."""
        mine = self._where(lambda t: t.is_open and t.assignee in agents)
        return dict(Counter(ticket.assignee for ticket in mine))

    def pile(self, team: str, skills: Sequence[str], limit: int) -> list[Ticket]:
        """As the port says."""
        enough = set(skills)
        found = self._where(
            lambda t: (
                t.is_open and t.team == team and not t.assignee and enough.issuperset(t.draft.required_skills)
            )
        )
        return [_bare(ticket) for ticket in sorted(found, key=pile_order)[:limit]]

    def by_request(self, request_key: str) -> Ticket | None:
        """As the port says."""
        found = self._where(lambda t: any(key == request_key for key, _ in t.requests))
        return found[0] if found else None

    def open_after(self, ticket_id: str, limit: int) -> list[str]:
        """As the port says."""
        return sorted(ticket.id for ticket in self._where(lambda t: t.is_open and t.id > ticket_id))[:limit]

    def were_of(self, customer_id: str, after: str, limit: int) -> list[str]:
        """As the port says."""
        found = self._where(lambda t: customer_id in t.merged_from and t.id > after)
        return sorted(ticket.id for ticket in found)[:limit]

    def hosts_of(self, guest: str, after: str, limit: int) -> list[str]:
        """As the port says."""
        found = self._where(lambda t: guest in t.guests and t.id > after)
        return sorted(ticket.id for ticket in found)[:limit]
