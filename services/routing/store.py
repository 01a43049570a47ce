"""What routing keeps of customers: who owns a number, and how soon that caller is served.

Events of customers come twice, late and in another order, and a number moves from one customer to another.
So the newest word on each customer is kept as it came, by version, and a number's profile is worked out from
these: it belongs to the customer whose word on it is the latest. Whatever the order of the events, the end is
the same.

A customer that was deleted, erased or merged leaves its id and version, so that a late event cannot bring it
back, and no number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Protocol

from mongoengine import DateTimeField, Document, IntField, ListField, StringField
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from chassis.errors import Unavailable
from routing.callers import PRIORITY_BY_TIER
from routing.documents import ProfileDocument

#: Tries to write a number's profile while other events change its owner.
PROFILE_TRIES_MAX = 10
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What is known of a number."""

    #: E.164.
    number: str
    #: The customer's id.
    customer: str
    tier: str
    #: Points added to a call's own priority.
    priority: int
    #: Version of the customer that this is from.
    customer_version: int


class ProfileStore(Protocol):
    """Keeps customers and their numbers. Methods may be repeated; Unavailable when one has to be, later."""

    def learn(self, customer: KnownCustomer) -> None:
        """Takes in a customer, unless a newer word on it is known, and brings its numbers up to date."""

    def absorb(self, customers: Iterable[str], at: datetime) -> None:
        """These customers were merged into another: what they said up to `at` counts no longer."""

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

    def profile(self, number: str) -> Profile | None:
        found = self._profiles.find_one({"_id": number})
        if found is None:
            return None
        return Profile(
            number=number,
            customer=found["customer"],
            tier=found["tier"],
            priority=found["priority"],
            customer_version=found["customer_version"],
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
                self._profiles.delete_one({"_id": number})
            else:
                self._profiles.replace_one({"_id": number}, _profile_of(owner), upsert=True)
            before, owner = owner, self._owner(number)
            if owner == before:
                return
        raise Unavailable(why="a number's owner changes all the time", retry_seconds=1.0)

    def _owner(self, number: str) -> dict[str, Any] | None:
        alive = {"$expr": {"$gt": ["$changed_at", "$merged_at"]}}
        order = [("changed_at", -1), ("_id", -1)]
        fields = {"version": 1, "changed_at": 1, "tier": 1}
        return self._customers.find_one({"numbers": number, **alive}, fields, sort=order)


def _majority(document: type[Document]) -> Collection[dict[str, Any]]:
    collection: Collection[dict[str, Any]] = document._get_collection()
    return collection.with_options(
        write_concern=WriteConcern(w="majority"), read_concern=ReadConcern("majority")
    )


def _profile_of(owner: dict[str, Any]) -> dict[str, Any]:
    return {
        "customer": owner["_id"],
        "tier": owner["tier"],
        "priority": PRIORITY_BY_TIER.get(owner["tier"], 0),
        "customer_version": owner["version"],
        "changed_at": owner["changed_at"],
    }


class MemoryProfiles:
    """In memory, for unit tests."""

    def __init__(self) -> None:
        self._customers: dict[str, KnownCustomer] = {}
        self._merged: dict[str, datetime] = {}

    def learn(self, customer: KnownCustomer) -> None:
        known = self._customers.get(customer.id)
        if known is None or known.version < customer.version:
            self._customers[customer.id] = customer

    def absorb(self, customers: Iterable[str], at: datetime) -> None:
        for id in customers:
            self._merged[id] = max(at, self._merged.get(id, at))

    def profile(self, number: str) -> Profile | None:
        owners = [
            c
            for c in self._customers.values()
            if number in c.numbers and (c.id not in self._merged or c.changed_at > self._merged[c.id])
        ]
        if not owners:
            return None
        owner = max(owners, key=lambda c: (c.changed_at, c.id))
        return Profile(
            number=number,
            customer=owner.id,
            tier=owner.tier,
            priority=PRIORITY_BY_TIER.get(owner.tier, 0),
            customer_version=owner.version,
        )
