"""Whom marketing knows: profiles as crm tells them, what is said of customers, complaints, and what a merge
or an erasure does to all of it and to the history (kin.py has the rules). The port and its MongoDB side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from chassis.errors import Unavailable
from marketing import kin
from marketing.documents import (
    ComplaintDocument,
    DecisionDocument,
    ProfileDocument,
    PurchaseDocument,
    complaint_from_raw,
    profile_fields,
    profile_from_raw,
)
from marketing.history_store import MongoHistoryStore
from marketing.model import CARE_MAX, Complaint, Profile

#: What an erasure leaves of a profile: that it was erased, and which news of it would be old.
_STUB = ("erased", "alive", "crm_version", "moved_at", "updated_at")
#: Condition of whatever is learned of a customer.
_NOT_ERASED = {"erased": {"$ne": True}}


class CustomerStore(Protocol):
    """Customers and their complaints, as `store.Store` has them."""

    def profile(self, customer: str) -> Profile | None:
        """What is known of a customer."""

    def survivors(self, customers: Sequence[str]) -> dict[str, Profile]:
        """The same of several, by the id asked for, and of whom they were merged into where they were."""

    def profile_of_number(self, number: str) -> Profile | None:
        """The living customer who owns a number; of several the one heard of last."""

    def owners(self, numbers: Sequence[str]) -> dict[str, Profile]:
        """The same of several numbers; those that nobody owns are left out."""

    def customer_count(self) -> int:
        """About how many customers are known."""

    def sample(self, limit: int) -> list[Profile]:
        """At most so many living customers, at random where the store can."""

    def save_profile(self, profile: Profile) -> bool:
        """Stores what crm says unless newer is there; whether it was stored. History is left alone, and a
        merge that was heard of stays.
        """

    def save_leave_intent(self, customer: str, wants_to_leave: bool, at: datetime) -> None:
        """Stores the latest word on leaving."""

    def save_churn_risk(self, customer: str, score: float, at: datetime) -> None:
        """Stores the latest churn score."""

    def save_care(self, customer: str, task: str, kind: str) -> None:
        """Stores an occasion, or with kind "" that it is over, in whichever order they come; the newest
        `CARE_MAX` stay.
        """

    def merge(self, absorbed: str, survivor: str, at: datetime) -> None:
        """Gives history, decisions, complaints and what is said of a customer (kin.py) to the survivor,
        unless a later merge or unmerge of `absorbed` was seen: by crm's time, for the versions of two
        survivors say nothing of their order. Repeatable.
        """

    def unmerge(self, restored: str, survivor: str, at: datetime) -> None:
        """Gives all of it back, unless a later merge or unmerge of `restored` was seen. Repeatable."""

    def erase(self, customer: str) -> None:
        """Removes what is personal: purchases, profile content, the customer in decisions and complaints, and
        what survivors of merges have of it. Who was merged into the customer keeps what is theirs. Nothing
        that is told of the customer from then on is kept. Repeatable.
        """

    def erased(self, customers: Sequence[str]) -> set[str]:
        """Those of some customers who were erased."""

    def save_complaint(self, complaint: Complaint) -> bool:
        """Stores it unless a newer one is there; whether it was stored. One of a merged customer is the
        survivor's until they are given back, also where tickets has come to name the survivor.
        """

    def close_complaint(self, ticket: str) -> None:
        """Notes that a complaint is over; nothing for an unknown one."""

    def open_complaints(self, customer: str, limit: int, number: str = "") -> list[Complaint]:
        """Unresolved complaints of a customer, and those made from a number, "" for none."""


def _made_for(customer: str) -> tuple[dict[str, Any], ...]:
    """What was made for a customer, whoever they are merged into."""
    return {"customer": customer, "made_for": {"$exists": False}}, {"made_for": customer}


def _place(
    collection: Collection[dict[str, Any]], owner: str, below: Sequence[str], change: Mapping[str, Any]
) -> None:
    """Puts what was made for customers under whose it is now, and notes for whom it was made."""
    theirs = {"$in": list(below)}
    moved: dict[str, Any] = {"customer": {"$literal": owner}, **change}
    mine = {"customer": {**theirs, "$ne": owner}, "made_for": {"$exists": False}}
    collection.update_many(mine, [{"$set": {"made_for": "$customer", **moved}}])
    collection.update_many({"made_for": theirs, "customer": {"$ne": owner}}, [{"$set": moved}])
    collection.update_many({"made_for": owner, "customer": owner}, {"$unset": {"made_for": ""}})


def _disown_complaints(customer: str) -> None:
    """Takes an erased customer out of their complaints; those of who was merged into them stay theirs."""
    for whose in _made_for(customer):
        nobodys = {"$set": {"customer": "", "number": ""}, "$unset": {"made_for": ""}}
        ComplaintDocument._get_collection().update_many(whose, nobodys)


class MongoCustomerStore(MongoHistoryStore):
    """Customers and their complaints in MongoDB, with the history that goes with them."""

    # profiles

    def profile(self, customer: str) -> Profile | None:
        """As the port says."""
        raw = ProfileDocument._get_collection().find_one({"_id": customer})
        return profile_from_raw(raw) if raw is not None else None

    def survivors(self, customers: Sequence[str]) -> dict[str, Profile]:
        """As the port says."""
        raws = kin.survivors(ProfileDocument._get_collection(), customers)
        return {customer: profile_from_raw(raw) for customer, raw in raws.items()}

    def profile_of_number(self, number: str) -> Profile | None:
        """As the port says."""
        living = {"numbers": number, "alive": {"$ne": False}}
        raw = ProfileDocument._get_collection().find_one(living, sort=[("updated_at", -1)])
        return profile_from_raw(raw) if raw is not None else None

    def owners(self, numbers: Sequence[str]) -> dict[str, Profile]:
        """As the port says."""
        living = {"numbers": {"$in": list(numbers)}, "alive": {"$ne": False}}
        asked, found = frozenset(numbers), dict[str, Profile]()
        for raw in ProfileDocument._get_collection().find(living).sort("updated_at", 1):
            found |= dict.fromkeys(asked.intersection(raw["numbers"]), profile_from_raw(raw))
        return found

    def customer_count(self) -> int:
        """As the port says."""
        return int(ProfileDocument._get_collection().estimated_document_count())

    def sample(self, limit: int) -> list[Profile]:
        """As the port says."""
        found = ProfileDocument._get_collection().aggregate([{"$sample": {"size": limit}}])
        return [profile for raw in found if (profile := profile_from_raw(raw)).alive]

    def save_profile(self, profile: Profile) -> bool:
        """As the port says. The unique `_id` turns an older or repeated snapshot away."""
        older = {"_id": profile.customer, "crm_version": {"$not": {"$gte": profile.crm_version}}}
        older |= _NOT_ERASED
        fields = profile_fields(profile)
        if not profile.merged_into:
            # A snapshot of before a merge may come after it; only an unmerge takes that back.
            del fields["merged_into"]
        try:
            ProfileDocument._get_collection().update_one(older, {"$set": fields}, upsert=True)
        except DuplicateKeyError:
            return False
        return True

    # what is said of them

    def save_leave_intent(self, customer: str, wants_to_leave: bool, at: datetime) -> None:
        """As the port says."""
        self._save_newest(customer, "leave_at", at, {"wants_to_leave": wants_to_leave})

    def save_churn_risk(self, customer: str, score: float, at: datetime) -> None:
        """As the port says."""
        self._save_newest(customer, "risk_at", at, {"churn_risk": score})

    def _save_newest(self, customer: str, since: str, at: datetime, said: Mapping[str, Any]) -> None:
        """Keeps what is said of a customer unless something newer, by the field `since`, is known."""
        older = {"_id": customer, since: {"$not": {"$gt": at}}, **_NOT_ERASED}
        try:
            ProfileDocument._get_collection().update_one(older, {"$set": {**said, since: at}}, upsert=True)
        except DuplicateKeyError:
            return
        self._reflect(customer)

    def save_care(self, customer: str, task: str, kind: str) -> None:
        """As the port says. One atomic write: what is known of the task decides."""
        known: dict[str, Any] = {"$ifNull": ["$care", []]}
        new = {"task": {"$literal": task}, "kind": {"$literal": kind}}
        others = {"$filter": {"input": known, "cond": {"$ne": ["$$this.task", {"$literal": task}]}}}
        told = {"$slice": [{"$concatArrays": [others, [new]]}, -CARE_MAX]}
        if kind:
            told = {"$cond": [{"$eq": [{"$size": known}, {"$size": others}]}, told, known]}
        wanted = {"_id": customer, **_NOT_ERASED}
        try:
            ProfileDocument._get_collection().update_one(wanted, [{"$set": {"care": told}}], upsert=True)
        except DuplicateKeyError:
            return
        self._reflect(customer)

    # merges

    def _move(self, customer: str, at: datetime, change: dict[str, Any]) -> str | None:
        """Notes a merge or an unmerge of a customer: whom they were merged into before, "" nobody; None when
        a later merge or unmerge was seen, or the customer was erased.
        """
        not_newer = {"_id": customer, "moved_at": {"$not": {"$gt": at}}, **_NOT_ERASED}
        try:
            before = ProfileDocument._get_collection().find_one_and_update(
                not_newer,
                {"$set": {**change, "moved_at": at}},
                projection={"merged_into": 1},
                upsert=True,
            )
        except DuplicateKeyError:
            return None
        return str((before or {}).get("merged_into") or "")

    def merge(self, absorbed: str, survivor: str, at: datetime) -> None:
        """As the port says."""
        # The numbers are crm's to take back and to give back: of both it tells by a snapshot.
        change = {"merged_into": survivor, "alive": False, "products": [], "bought": {}}
        profiles = ProfileDocument._get_collection()
        before = self._move(absorbed, at, change)
        kin.remember(profiles, [absorbed], survivor)
        if before is None:
            return
        if before != survivor:
            kin.forget(profiles, absorbed, before)
        self._reflect(absorbed)
        owner = self._settle_owner(absorbed)
        self._give_products(owner, self._bought(owner))

    def unmerge(self, restored: str, survivor: str, at: datetime) -> None:
        """As the port says."""
        profiles = ProfileDocument._get_collection()
        before = self._move(restored, at, {"merged_into": "", "alive": True})
        kin.remember(profiles, [restored], survivor)
        if before is None:
            return
        kin.forget(profiles, restored, before, survivor)
        self._settle_owner(restored)
        own = self._bought(restored)
        self._give_products(restored, own)
        holder, _ = kin.lineage(profiles, survivor)
        self._take_products(holder, own)

    def _reflect(self, customer: str) -> None:
        """Tells the survivor what is said of a merged customer now. Unavailable when news came too fast."""
        if not kin.reflect(ProfileDocument._get_collection(), customer):
            raise Unavailable(why="a customer is told of by too many at once", retry_seconds=1.0)

    def _settle_owner(self, customer: str) -> str:
        """Puts purchases, decisions and complaints of a customer, and of all merged into them, under whose
        they are now: that customer.
        """
        owner, below = kin.lineage(ProfileDocument._get_collection(), customer)
        self._settle(owner, below)
        return owner

    def _settle(self, owner: str, below: Sequence[str]) -> None:
        theirs = {"$in": list(below)}
        PurchaseDocument._get_collection().update_many({"bought_by": theirs}, {"$set": {"customer": owner}})
        # A closing in flight meets another version and is done again, for whoever it is then.
        newer = {"version": {"$add": ["$version", 1]}}
        _place(DecisionDocument._get_collection(), owner, below, newer)
        # A complaint's version is tickets' own.
        _place(ComplaintDocument._get_collection(), owner, below, {})

    # erasure

    def erase(self, customer: str) -> None:
        """As the port says."""
        profiles, decisions = ProfileDocument._get_collection(), DecisionDocument._get_collection()
        # From here on nothing new is learned; whom they were merged into stays known until all is done.
        known = profiles.find_one_and_update(
            {"_id": customer}, {"$set": {"erased": True, "alive": False}}, projection={"merged_into": 1}
        )
        holder, below = kin.lineage(profiles, customer)
        self._settle(customer, below)
        own = {"bought_by": customer}
        if holder != customer:
            self._take_products(holder, self._bought(customer))
        PurchaseDocument._get_collection().delete_many(own)
        # A closing in flight meets another version, and is done again for nobody.
        nobodys = {"customer": "", "number": "", "outcome.note": "", "made_for": ""}
        for whose in _made_for(customer):
            decisions.update_many(whose, {"$unset": nobodys, "$inc": {"version": 1}})
        _disown_complaints(customer)
        kin.forget(profiles, customer, (known or {}).get("merged_into") or "")
        kin.leave_memory(profiles, customer)
        stub = {field: f"${field}" for field in ("_id", *_STUB)}
        profiles.update_one({"_id": customer}, [{"$replaceWith": stub}])

    def erased(self, customers: Sequence[str]) -> set[str]:
        """As the port says."""
        return kin.erased(ProfileDocument._get_collection(), customers)

    # complaints

    def save_complaint(self, complaint: Complaint) -> bool:
        """As the port says. Stored as it is told, and then put under whose it is: a merge or an erasure of
        meanwhile either finds it or is found. A repeat finishes what a crash left.
        """
        if complaint.customer and self.erased([complaint.customer]):
            complaint = replace(complaint, customer="", number="")
        told: dict[str, Any] = {"$literal": complaint.customer}
        # News in the survivor's name do not say that it was never the merged one's.
        content = {
            "customer": told,
            "made_for": {"$cond": [{"$eq": ["$customer", told]}, "$made_for", "$$REMOVE"]},
            # Offers are held back by it; a complaint that is over holds back none.
            "number": {"$literal": complaint.number if complaint.open else ""},
            "open": complaint.open,
            "version": complaint.version,
        }
        older = {"_id": complaint.ticket, "version": {"$lt": complaint.version}}
        stored = True
        try:
            ComplaintDocument._get_collection().update_one(older, [{"$set": content}], upsert=True)
        except DuplicateKeyError:
            stored = False
        known = self._settle_complaint(complaint.ticket)
        news = known.version == complaint.version and not complaint.open
        if news and known.whose and complaint.at is not None:
            closed = {"$max": {"complaint_closed_at": complaint.at}}
            ProfileDocument._get_collection().update_one({"_id": known.whose, **_NOT_ERASED}, closed)
            self._reflect(known.whose)
        return stored

    def _settle_complaint(self, ticket: str) -> Complaint:
        """Puts a complaint under whose it is now; nobody's where they were erased."""
        complaints = ComplaintDocument._get_collection()
        raw: Any = complaints.find_one({"_id": ticket})
        known = complaint_from_raw(raw)
        if known.whose and self.erased([known.whose]):
            _disown_complaints(known.whose)
            return replace(known, customer="", made_for="", number="")
        placed = known.customer
        for _ in range(kin.REFLECTIONS_MAX if known.whose else 0):
            owner, _below = kin.lineage(ProfileDocument._get_collection(), known.whose)
            if owner == placed:
                break
            _place(complaints, owner, [known.whose], {})
            # Who was merged or given back meanwhile is looked at again.
            placed = owner
        return known

    def close_complaint(self, ticket: str) -> None:
        """As the port says."""
        ComplaintDocument._get_collection().update_one(
            {"_id": ticket}, {"$set": {"open": False, "number": ""}}
        )

    def open_complaints(self, customer: str, limit: int, number: str = "") -> list[Complaint]:
        """As the port says."""
        known = {field: value for field, value in (("customer", customer), ("number", number)) if value}
        if not known:
            return []
        either = [{field: value, "open": True} for field, value in known.items()]
        found = ComplaintDocument._get_collection().find({"$or": either})
        return [complaint_from_raw(raw) for raw in found.limit(limit)]
