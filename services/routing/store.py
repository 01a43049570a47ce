"""What routing keeps of customers: who owns a number, and how soon that caller is served.

Events of customers come twice, late and in another order, and a number moves from one customer to another.
So the newest word on each customer is kept as it came, by version, and a number's profile is worked out from
these: it belongs to the customer whose word on it is the latest. Whatever the order of the events, the end is
the same.

A customer that was deleted, erased or merged leaves its id and version, so that a late event cannot bring it
back, and no number.

Beside the customer a profile holds the number's recent calls, as routing's own events tell them: the newest
few, each with the latest that was said of it. They are forgotten after the longest time that a setting may
look back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Protocol

from mongoengine import DateTimeField, Document, IntField, ListField, StringField
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from chassis.errors import Unavailable
from chassis.mongo import clashes
from routing.callers import PRIORITY_BY_TIER, RECENT_CALLS_MAX, RecentCall, calls_of
from routing.documents import ProfileDocument

#: Tries to write a number's profile while other events change its owner.
PROFILE_TRIES_MAX = 10
#: Tries to write a call into a profile that others are just making.
CALL_TRIES_MAX = 5
#: Numbers of one customer that are looked at.
NUMBERS_MAX = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownCustomer:
    """The newest word on a customer."""

    #: Id.
    id: str
    #: Rises with each change.
    version: int
    #: Business time of the event that says so.
    changed_at: datetime
    #: E.164; empty unless the customer lives.
    numbers: tuple[str, ...] = ()
    #: Lower-case name; "" when not known.
    tier: str = ""
    #: Region that the customer belongs to; "" for none.
    region: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What is known of a number."""

    #: E.164.
    number: str
    #: The customer's id; empty for a number that only called.
    customer: str
    tier: str
    #: Points added to a call's own priority.
    priority: int
    #: Version of the customer that this is from.
    customer_version: int
    #: Of this number, newest first.
    calls: tuple[RecentCall, ...] = ()
    #: Region that the customer belongs to; empty for none.
    region: str = ""


class ProfileStore(Protocol):
    """Keeps customers and their numbers. Methods may be repeated; Unavailable when one has to be, later."""

    def learn(self, customer: KnownCustomer) -> None:
        """Takes in a customer, unless a newer word on it is known, and brings its numbers up to date."""

    def absorb(self, customers: Iterable[str], at: datetime) -> None:
        """These customers were merged into another: what they said up to `at` counts no longer."""

    def remember(self, words: Sequence[tuple[str, RecentCall]]) -> None:
        """Takes in what was heard of calls, each with its number: the latest end and the latest word that it
        is resolved stay.
        """

    def forget_calls(self, before_ms: int) -> None:
        """Numbers whose last call was heard of before that have no calls any more."""

    def forget_calls_of(self, customer: str) -> None:
        """The numbers that the customer has by now have no calls any more."""

    def profile(self, number: str) -> Profile | None:
        """What is known of a number; None for nothing."""


class KnownCustomerDocument(Document):
    """The newest word on a customer, to work the profiles out from."""

    meta: ClassVar = {
        "collection": "profile_customers",
        "auto_create_index": False,
        "strict": False,
        "indexes": ["numbers"],
    }
    id = StringField(primary_key=True)
    version = IntField(default=0)
    changed_at = DateTimeField()
    numbers = ListField(StringField())
    tier = StringField()
    region = StringField()
    #: The latest merge that took it over; a word from before it gives no number.
    merged_at = DateTimeField()


class MongoProfiles:
    """In MongoDB, blockingly; mongoengine's default connection, which need not be there yet."""

    @property
    def _customers(self) -> Collection[dict[str, Any]]:
        return _majority(KnownCustomerDocument)

    @property
    def _profiles(self) -> Collection[dict[str, Any]]:
        return _majority(ProfileDocument)

    def learn(self, customer: KnownCustomer) -> None:
        said = {
            "version": customer.version,
            "changed_at": customer.changed_at,
            "numbers": list(customer.numbers[:NUMBERS_MAX]),
            "tier": customer.tier,
            "region": customer.region,
        }
        older = {"_id": customer.id, "version": {"$lt": customer.version}}
        try:
            self._customers.update_one(older, {"$set": said}, upsert=True)
        except DuplicateKeyError:
            # This or a newer word is known. Its numbers are looked at all the same: who heard it may be dead.
            pass
        self._refresh(customer.id, customer.numbers[:NUMBERS_MAX])

    def absorb(self, customers: Iterable[str], at: datetime) -> None:
        nothing = {"version": 0, "numbers": [], "tier": ""}
        for id in customers:
            update = {"$max": {"merged_at": at}, "$setOnInsert": nothing}
            self._customers.update_one({"_id": id}, update, upsert=True)
            self._refresh(id, ())

    def remember(self, words: Sequence[tuple[str, RecentCall]]) -> None:
        merged = _merged(words)
        known = self._known_calls({number for number, _ in merged})
        writes = [
            _add_to(number, call) if (number, call.call_id) in known else _begin(number, call)
            for number, call in merged
        ]
        try:
            result = self._profiles.bulk_write(writes, ordered=False)
            if result.matched_count + result.upserted_count == len(writes):
                return
        except BulkWriteError as error:
            clashes(error)
        # Somebody else wrote of the same calls meanwhile. What went through is as good a second time.
        for number, call in merged:
            self._remember_one(number, call)

    def _known_calls(self, numbers: set[str]) -> set[tuple[str, str]]:
        """(number, call id) of what is remembered of these numbers."""
        rows = self._profiles.find({"_id": {"$in": sorted(numbers)}}, {"calls.id": 1})
        return {(row["_id"], call["id"]) for row in rows for call in row.get("calls", ())}

    def _remember_one(self, number: str, call: RecentCall) -> None:
        for _ in range(CALL_TRIES_MAX):
            if self._profiles.bulk_write([_add_to(number, call)]).matched_count:
                return
            try:
                self._profiles.bulk_write([_begin(number, call)])
                return
            except BulkWriteError as error:
                # Another word on this very call came first: add to that.
                clashes(error)
        raise Unavailable(why="a number's calls change all the time", retry_seconds=1.0)

    def forget_calls(self, before_ms: int) -> None:
        self._drop_calls({"called_ms": {"$lt": before_ms}})

    def forget_calls_of(self, customer: str) -> None:
        had = [
            each["_id"] for each in self._profiles.find({"customer": customer}, {"_id": 1}).limit(NUMBERS_MAX)
        ]
        said = self._customers.find_one({"_id": customer}, {"numbers": 1}) or {}
        self._drop_calls({"_id": {"$in": [*had, *said.get("numbers", ())]}})

    def _drop_calls(self, which: dict[str, Any]) -> None:
        self._profiles.delete_many({**which, "customer": None})
        self._profiles.update_many(which, {"$unset": {"calls": "", "called_ms": ""}})

    def profile(self, number: str) -> Profile | None:
        found = self._profiles.find_one({"_id": number})
        if found is None:
            return None
        return Profile(
            number=number,
            customer=found.get("customer", ""),
            tier=found.get("tier", ""),
            priority=found.get("priority", 0),
            customer_version=found.get("customer_version", 0),
            calls=calls_of(found),
            region=found.get("region") or "",
        )

    def _refresh(self, customer: str, numbers: Iterable[str]) -> None:
        """Works out the customer's numbers anew: those named, those it had, and those it has by now."""
        had = self._profiles.find({"customer": customer}, {"_id": 1}).limit(NUMBERS_MAX)
        now = self._customers.find_one({"_id": customer}, {"numbers": 1}) or {}
        for number in sorted({*numbers, *(each["_id"] for each in had), *now.get("numbers", ())}):
            self._write(number)

    def _write(self, number: str) -> None:
        """Writes a number's profile, again while its owner changes: who writes last saw the last word."""
        owner = self._owner(number)
        for _ in range(PROFILE_TRIES_MAX):
            if owner is None:
                self._profiles.update_one({"_id": number}, {"$unset": dict.fromkeys(_OF_CUSTOMER, "")})
                self._profiles.delete_one({"_id": number, "called_ms": None, "customer": None})
            else:
                self._profiles.update_one({"_id": number}, {"$set": _profile_of(owner)}, upsert=True)
            before, owner = owner, self._owner(number)
            if owner == before:
                return
        raise Unavailable(why="a number's owner changes all the time", retry_seconds=1.0)

    def _owner(self, number: str) -> dict[str, Any] | None:
        alive = {"$expr": {"$gt": ["$changed_at", "$merged_at"]}}
        order = [("changed_at", -1), ("_id", -1)]
        fields = {"version": 1, "changed_at": 1, "tier": 1, "region": 1}
        return self._customers.find_one({"numbers": number, **alive}, fields, sort=order)


def _merged(words: Iterable[tuple[str, RecentCall]]) -> list[tuple[str, RecentCall]]:
    """One word a call: the latest of all that was said."""
    merged: dict[tuple[str, str], RecentCall] = {}
    for number, call in words:
        key = (number, call.call_id)
        before = merged.get(key, call)
        merged[key] = RecentCall(
            call_id=call.call_id,
            ended_ms=max(before.ended_ms, call.ended_ms),
            resolved_ms=max(before.resolved_ms, call.resolved_ms),
            region=call.region or before.region,
        )
    return [(number, call) for (number, _), call in merged.items()]


def _said(call: RecentCall) -> dict[str, int]:
    return {"ended_ms": call.ended_ms, "resolved_ms": call.resolved_ms, "at_ms": call.at_ms}


def _add_to(number: str, call: RecentCall) -> UpdateOne:
    """One more word on a call that is remembered; finds nothing when it is not."""
    latest = {f"calls.$.{name}": value for name, value in _said(call).items()}
    served = {"$set": {"calls.$.region": call.region}} if call.region else {}
    update = {"$max": latest | {"called_ms": call.at_ms}, **served}
    return UpdateOne({"_id": number, "calls.id": call.call_id}, update)


def _begin(number: str, call: RecentCall) -> UpdateOne:
    """The first word on a call; clashes when it is not the first."""
    entry = {"id": call.call_id, **_said(call), **({"region": call.region} if call.region else {})}
    fresh = {"$each": [entry], "$sort": {"at_ms": -1}, "$slice": RECENT_CALLS_MAX}
    update = {"$push": {"calls": fresh}, "$max": {"called_ms": call.at_ms}}
    return UpdateOne({"_id": number, "calls.id": {"$ne": call.call_id}}, update, upsert=True)


def _majority(document: type[Document]) -> Collection[dict[str, Any]]:
    collection: Collection[dict[str, Any]] = document._get_collection()
    return collection.with_options(
        write_concern=WriteConcern(w="majority"), read_concern=ReadConcern("majority")
    )


def _profile_of(owner: dict[str, Any]) -> dict[str, Any]:
    return {
        "customer": owner["_id"],
        "tier": owner["tier"],
        "region": owner.get("region", ""),
        "priority": PRIORITY_BY_TIER.get(owner["tier"], 0),
        "customer_version": owner["version"],
        "changed_at": owner["changed_at"],
    }


#: Fields of a profile that `_profile_of` writes.
_OF_CUSTOMER = ("customer", "tier", "region", "priority", "customer_version", "changed_at")


class MemoryProfiles:
    """In memory, for unit tests."""

    def __init__(self) -> None:
        self._customers: dict[str, KnownCustomer] = {}
        self._merged: dict[str, datetime] = {}
        self._calls: dict[str, tuple[RecentCall, ...]] = {}

    def learn(self, customer: KnownCustomer) -> None:
        known = self._customers.get(customer.id)
        if known is None or known.version < customer.version:
            self._customers[customer.id] = customer

    def absorb(self, customers: Iterable[str], at: datetime) -> None:
        for id in customers:
            self._merged[id] = max(at, self._merged.get(id, at))

    def remember(self, words: Sequence[tuple[str, RecentCall]]) -> None:
        for number, call in words:
            self._remember_one(number, call)

    def _remember_one(self, number: str, call: RecentCall) -> None:
        others = [each for each in self._calls.get(number, ()) if each.call_id != call.call_id]
        same = [each for each in (*self._calls.get(number, ()), call) if each.call_id == call.call_id]
        latest = RecentCall(
            call_id=call.call_id,
            ended_ms=max(each.ended_ms for each in same),
            resolved_ms=max(each.resolved_ms for each in same),
            region=next((each.region for each in reversed(same) if each.region), ""),
        )
        newest = sorted([*others, latest], key=lambda each: each.at_ms, reverse=True)
        self._calls[number] = tuple(newest[:RECENT_CALLS_MAX])

    def forget_calls(self, before_ms: int) -> None:
        self._calls = {n: calls for n, calls in self._calls.items() if calls[0].at_ms >= before_ms}

    def forget_calls_of(self, customer: str) -> None:
        for number in list(self._calls):
            owner = self._owner(number)
            if owner is not None and owner.id == customer:
                del self._calls[number]

    def profile(self, number: str) -> Profile | None:
        owner, calls = self._owner(number), self._calls.get(number, ())
        if owner is None and not calls:
            return None
        tier = owner.tier if owner is not None else ""
        return Profile(
            number=number,
            customer=owner.id if owner is not None else "",
            tier=tier,
            priority=PRIORITY_BY_TIER.get(tier, 0),
            customer_version=owner.version if owner is not None else 0,
            calls=calls,
            region=owner.region if owner is not None else "",
        )

    def _owner(self, number: str) -> KnownCustomer | None:
        owners = [
            c
            for c in self._customers.values()
            if number in c.numbers and (c.id not in self._merged or c.changed_at > self._merged[c.id])
        ]
        return max(owners, key=lambda c: (c.changed_at, c.id), default=None)
