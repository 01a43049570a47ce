"""The store's hot paths on the event loop: opening and reading a ticket, on the same collections as `store`.

mongoengine owns schema and indexes; its documents cost more here than everything else together, so these two
paths write and read the same documents through the asynchronous driver, many calls' worth in one trip. That
both ways write alike is held by the contract suite.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pymongo.errors import BulkWriteError, OperationFailure

from chassis.clock import from_ms
from chassis.errors import AlreadyExists, InvalidArgument, NotFound
from chassis.idempotency import check_repeat
from chassis.mongo import pending_entry
from tickets.batching import Batcher
from tickets.documents import (
    WITHOUT_HISTORY,
    ProfileDocument,
    TicketDocument,
    from_raw,
    profile_from_raw,
    to_fields,
)
from tickets.filters import Term, holds, to_mongo
from tickets.model import Profile, Ticket
from tickets.store import value_reader

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.database import AsyncDatabase

    from chassis.bus import Event
    from tickets.store import MemoryStore

#: Longest resume token.
TOKEN_CHARACTERS_MAX = 2_048
#: MongoDB's code for a unique value that is taken.
_DUPLICATE_KEY = 11000

Raw = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTicket:
    """A ticket to be stored as version 1 with its events."""

    ticket: Ticket
    events: Sequence[Event]
    request_key: str | None = None
    fingerprint: str | None = None


class AsyncStore(Protocol):
    """What opening and reading need. Any method may raise Unavailable; then nothing has changed."""

    async def get(self, ticket_id: str) -> Ticket:
        """The ticket without its history; NotFound."""

    async def find(self, ticket_id: str) -> Ticket | None:
        """As `get`; None when there is none."""

    async def profile(self, customer_id: str) -> Profile | None:
        """What is known of a customer."""

    async def profile_of_number(self, number: str) -> Profile | None:
        """The customer that a number belongs to, as far as known."""

    async def insert(self, new: NewTicket) -> tuple[Ticket, bool]:
        """As `TicketStore.insert`."""

    def watch(self, terms: Sequence[Term], resume_token: str) -> AsyncIterator[Watched]:
        """Changes of tickets that match afterwards, from a token on or from now on, without end.
        InvalidArgument(resume_token) for a token that is none, or too old."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A change of a ticket."""

    #: As it is after it, without its history.
    ticket: Ticket
    #: Continue here after a break.
    resume_token: str


def document_of(new: NewTicket, now: datetime) -> Raw:
    """The very document that mongoengine would write for a new ticket; `now` is real time."""
    ticket = new.ticket
    opened = from_ms(ticket.created_ms)
    raw: Raw = {"_id": ticket.id, "version": 1, "created_at": opened, "updated_at": opened}
    if new.events:
        raw["outbox"] = [pending_entry(event) for event in new.events]
        raw["outbox_since"] = now
    if new.request_key:
        raw["request_key"] = new.request_key
        raw["request_fingerprint"] = new.fingerprint
    raw |= {name: value for name, value in to_fields(ticket).items() if value is not None}
    return raw


class AsyncMongoStore:
    """The hot paths on MongoDB."""

    def __init__(self, database: AsyncDatabase[Raw]) -> None:
        self._tickets = database[TicketDocument._get_collection_name()]
        self._profiles = database[ProfileDocument._get_collection_name()]
        self._reads: Batcher[str, Raw | None] = Batcher(self._read_trip)
        self._numbers: Batcher[str, Profile | None] = Batcher(self._number_trip)
        self._customers: Batcher[str, Profile | None] = Batcher(self._customer_trip)
        self._inserts: Batcher[Raw, bool] = Batcher(self._insert_trip)

    async def _by_id(
        self, collection: AsyncCollection[Raw], ids: Sequence[str], projection: Mapping[str, int] | None
    ) -> dict[str, Raw]:
        query = {"_id": ids[0]} if len(ids) == 1 else {"_id": {"$in": list(set(ids))}}
        return {raw["_id"]: raw async for raw in collection.find(query, projection)}

    async def _read_trip(self, ids: Sequence[str]) -> Sequence[Raw | None]:
        found = await self._by_id(self._tickets, ids, WITHOUT_HISTORY)
        return [found.get(id) for id in ids]

    async def _customer_trip(self, ids: Sequence[str]) -> Sequence[Profile | None]:
        found = await self._by_id(self._profiles, ids, None)
        return [profile_from_raw(found[id]) if id in found else None for id in ids]

    async def _number_trip(self, numbers: Sequence[str]) -> Sequence[Profile | None]:
        owners: dict[str, Profile] = {}
        query = {"numbers": {"$in": list(set(numbers))}}
        async for raw in self._profiles.find(query).sort("_id", -1):  # the lowest id wins, as elsewhere
            profile = profile_from_raw(raw)
            owners |= dict.fromkeys(profile.numbers, profile)
        return [owners.get(number) for number in numbers]

    async def _insert_trip(self, documents: Sequence[Raw]) -> Sequence[bool | Exception]:
        outcomes: list[bool | Exception] = [True] * len(documents)
        try:
            await self._tickets.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if error.details.get("writeConcernErrors"):
                raise
            for failure in error.details["writeErrors"]:
                if failure["code"] != _DUPLICATE_KEY:
                    raise
                index = failure["index"]
                conflict = ",".join(failure.get("keyPattern") or {}) or "_id"
                resource = f"tickets/{documents[index]['_id']}"
                outcomes[index] = AlreadyExists(resource=resource, conflict=conflict)
        return outcomes

    async def find(self, ticket_id: str) -> Ticket | None:
        """As the port says."""
        raw = await self._reads.ask(ticket_id)
        return from_raw(raw) if raw is not None else None

    async def get(self, ticket_id: str) -> Ticket:
        """As the port says."""
        found = await self.find(ticket_id)
        if found is None:
            raise NotFound(resource=f"tickets/{ticket_id}")
        return found

    async def profile(self, customer_id: str) -> Profile | None:
        """As the port says."""
        return await self._customers.ask(customer_id)

    async def profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        return await self._numbers.ask(number)

    async def insert(self, new: NewTicket) -> tuple[Ticket, bool]:
        """As the port says. A repeat shows itself by the unique request key, so none is looked for before."""
        try:
            await self._inserts.ask(document_of(new, datetime.now(UTC)))
        except AlreadyExists:
            if new.request_key is None:
                raise
            raw = await self._tickets.find_one({"request_key": new.request_key}, {"outbox": 0})
            if raw is None:
                raise
            check_repeat(raw.get("request_fingerprint"), new.fingerprint)
            return from_raw(raw), False
        return replace(new.ticket, version=1), True

    async def watch(self, terms: Sequence[Term], resume_token: str) -> AsyncIterator[Watched]:
        """As the port says, from the database's own stream of changes. What only took published events off
        is no
        change."""
        written: list[Raw] = [
            {"operationType": {"$in": ["insert", "replace"]}},
            {"updateDescription.updatedFields.version": {"$exists": True}},
        ]
        match = {"$and": [{"$or": written}, *(to_mongo(term, prefix="fullDocument.") for term in terms)]}
        after = _token_of(resume_token) if resume_token else None
        try:
            stream = await self._tickets.watch(
                [{"$match": match}], full_document="updateLookup", resume_after=after
            )
            async with stream:
                async for change in stream:
                    if change.get("fullDocument"):
                        ticket = replace(from_raw(change["fullDocument"]), history=(), comments=())
                        yield Watched(ticket=ticket, resume_token=_text_of(change["_id"]))
        except OperationFailure as error:
            if resume_token:
                raise InvalidArgument(field="resume_token", why="is none, or too old") from None
            raise error


def _text_of(token: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(token, default=str).encode()).decode()


def _token_of(text: str) -> Any:
    try:
        token = json.loads(base64.urlsafe_b64decode(text[:TOKEN_CHARACTERS_MAX]))
    except (ValueError, RecursionError):
        token = None
    data = token.get("_data") if isinstance(token, dict) and len(token) == 1 else None
    # half of a character of two, say, can be said in JSON and not be sent
    if not isinstance(data, str) or not data.isascii():
        raise InvalidArgument(field="resume_token", why="is not one that this service gave out")
    return token


class AsyncMemoryStore:
    """The hot paths on a memory store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def find(self, ticket_id: str) -> Ticket | None:
        """As the port says."""
        await asyncio.sleep(0)
        found = self._store.find(ticket_id)
        return replace(found, history=()) if found is not None else None

    async def get(self, ticket_id: str) -> Ticket:
        """As the port says."""
        return replace(self._store.get(ticket_id), history=())

    async def profile(self, customer_id: str) -> Profile | None:
        """As the port says."""
        return self._store.profile(customer_id)

    async def profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        return self._store.profile_of_number(number)

    async def insert(self, new: NewTicket) -> tuple[Ticket, bool]:
        """As the port says."""
        key, fingerprint = new.request_key, new.fingerprint
        return self._store.insert(new.ticket, new.events, request_key=key, fingerprint=fingerprint)

    async def watch(self, terms: Sequence[Term], resume_token: str) -> AsyncIterator[Watched]:
        """As the port says, by looking again and again."""
        seen = json.loads(resume_token) if resume_token else self._store.versions()
        while True:
            for id, version in self._store.versions().items():
                ticket = replace(self._store.get(id), history=(), comments=())
                if seen.get(id, 0) < version and all(holds(t, value_reader(ticket)) for t in terms):
                    seen = {**seen, id: version}
                    yield Watched(ticket=ticket, resume_token=json.dumps(seen))
            await asyncio.sleep(0)
