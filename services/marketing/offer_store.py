"""The catalogue and its supply: offers, what they were like before, and units of stock on their way to a
decision. The port and its MongoDB side; store.py says how a unit stays exact through crashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from bson.decimal128 import Decimal128
from pymongo import ReturnDocument

from chassis.errors import EtagMismatch, NotFound
from chassis.mongo import OUTBOX_EVENTS_MAX, OutboxFull, create_once, delete_aggregate, pending_entry
from marketing.documents import OfferDocument, OfferRevisionDocument, offer_fields, offer_from_raw
from marketing.engine import ClaimsPending, OfferNotFound, OfferSoldOut, check_supply
from marketing.model import Offer, OfferState

if TYPE_CHECKING:
    from chassis.bus import Event

#: Most claims on one offer that may wait to be settled.
CLAIMS_MAX = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferFilter:
    """Which offers a list is about; None leaves a field open."""

    state: OfferState | None = None
    product: str | None = None
    tag: str | None = None

    def holds(self, offer: Offer) -> bool:
        """Whether an offer is meant."""
        return (
            self.state in (None, offer.state)
            and self.product in (None, offer.product)
            and (self.tag is None or self.tag in offer.tags)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A unit of stock taken for a decision that is being closed."""

    #: Offer id.
    offer: str
    #: Names this claim alone.
    token: str
    #: Decision id.
    decision: str


class OfferStore(Protocol):
    """Offers and their supply, as `store.Store` has them."""

    def insert_offer(
        self, offer: Offer, events: Sequence[Event], *, request_key: str | None, fingerprint: str | None
    ) -> tuple[Offer, bool]:
        """Stores a new offer as version 1: (offer, True), or what an earlier call with this key made: (that,
        False). AlreadyExists when the id is taken, RequestIdReused when the key came with other content.
        """

    def offer(self, offer_id: str) -> Offer:
        """The offer; OfferNotFound."""

    def offers(self, query: OfferFilter, limit: int, after: str | None) -> list[Offer]:
        """At most `limit` offers with an id above `after`, by id."""

    def update_offer(self, offer: Offer, events: Sequence[Event], now: datetime) -> Offer:
        """Stores changed content if the offer is still at `offer.version`; answers it as stored, with the
        current use of its supply. EtagMismatch, OfferNotFound, SupplyBelowUsed (judged in the same write).
        """

    def delete_offer(self, offer: Offer) -> None:
        """Removes an offer still at `offer.version`, its revisions too, once its events are published.
        EtagMismatch, OfferNotFound, EventsWaiting.
        """

    def revisions(self, offer_id: str, limit: int, below: int | None) -> list[Offer]:
        """At most `limit` versions of an offer below a version (None: all), newest first, the present one
        included; OfferNotFound.
        """

    def claim_unit(self, claim: Claim, real_now: datetime) -> None:
        """Takes one unit of stock and its cost of the budget, atomically. OfferNotFound, OfferSoldOut,
        ClaimsPending.
        """

    def settle_claim(self, offer_id: str, token: str) -> None:
        """Forgets a claim whose unit is sold. Repeatable."""

    def release_claim(self, offer_id: str, token: str) -> None:
        """Gives the unit of a claim back; nothing for an unknown token. Repeatable."""

    def stale_claims(self, before: datetime, limit: int) -> list[Claim]:
        """Claims taken before a real time, at most `limit` offers' worth."""


#: Whether one more unit fits into stock and budget.
_ROOM: dict[str, Any] = {
    "$and": [
        {"$or": [{"$eq": [{"$ifNull": ["$stock", None]}, None]}, {"$lt": ["$units_used", "$stock"]}]},
        {
            "$or": [
                {"$eq": [{"$ifNull": ["$budget", None]}, None]},
                {"$lte": [{"$add": ["$budget_used", "$unit_cost.amount"]}, "$budget.amount"]},
            ]
        },
    ]
}


class MongoOfferStore:
    """Offers and their supply in MongoDB."""

    # offers

    def insert_offer(
        self, offer: Offer, events: Sequence[Event], *, request_key: str | None, fingerprint: str | None
    ) -> tuple[Offer, bool]:
        """As the port says."""
        document = OfferDocument(id=offer.id, created_at=offer.created_at, **offer_fields(offer))
        stored, created = create_once(document, events, request_key=request_key, fingerprint=fingerprint)
        return offer_from_raw(stored.to_mongo()), created

    def offer(self, offer_id: str) -> Offer:
        """As the port says."""
        raw = OfferDocument._get_collection().find_one({"_id": offer_id}, {"outbox": 0, "claims": 0})
        if raw is None:
            raise OfferNotFound(resource=f"offers/{offer_id}")
        return offer_from_raw(raw)

    def offers(self, query: OfferFilter, limit: int, after: str | None) -> list[Offer]:
        """As the port says."""
        condition: dict[str, Any] = {}
        if query.state is not None:
            condition["state"] = query.state.value
        if query.product is not None:
            condition["product"] = query.product
        if query.tag is not None:
            condition["tags"] = query.tag
        if after is not None:
            condition["_id"] = {"$gt": after}
        found = OfferDocument._get_collection().find(condition, {"outbox": 0, "claims": 0})
        return [offer_from_raw(raw) for raw in found.sort("_id", 1).limit(limit)]

    def update_offer(self, offer: Offer, events: Sequence[Event], now: datetime) -> Offer:
        """As the port says. Not by `update_aggregate`: the use of the supply must be judged in the same
        write, and left alone.
        """
        self._archive(offer.id)
        condition: dict[str, Any] = {"_id": offer.id, "version": offer.version}
        if events:
            condition[f"outbox.{OUTBOX_EVENTS_MAX - len(events)}"] = {"$exists": False}
        if offer.stock is not None:
            condition["units_used"] = {"$lte": offer.stock}
        if offer.budget is not None:
            condition["budget_used"] = {"$lte": Decimal128(offer.budget.amount)}
        change: dict[str, Any] = {
            "$set": {**offer_fields(offer), "version": offer.version + 1, "updated_at": now}
        }
        if events:
            change["$push"] = {"outbox": {"$each": [pending_entry(event) for event in events]}}
            change["$min"] = {"outbox_since": datetime.now(UTC)}
        raw = OfferDocument._get_collection().find_one_and_update(
            condition, change, projection={"outbox": 0, "claims": 0}, return_document=ReturnDocument.AFTER
        )
        if raw is None:
            self._explain_refusal(offer)
        return offer_from_raw(raw)

    def _explain_refusal(self, offer: Offer) -> None:
        present = self.offer(offer.id)
        if present.version != offer.version:
            raise EtagMismatch(resource=f"offers/{offer.id}")
        check_supply(replace(offer, units_used=present.units_used, budget_used=present.budget_used))
        raise OutboxFull(resource=f"offers/{offer.id}", why="the message broker is behind", retry_seconds=5.0)

    def _archive(self, offer_id: str) -> None:
        """Keeps the present version as a revision before it is overwritten; harmless when the overwriting
        then fails.
        """
        raw = OfferDocument._get_collection().find_one({"_id": offer_id}, {"outbox": 0, "claims": 0})
        if raw is not None:
            revision = {"offer": offer_id, "version": raw["version"], "content": raw}
            OfferRevisionDocument._get_collection().replace_one(
                {"_id": f"{offer_id}@{raw['version']}"}, revision, upsert=True
            )

    def delete_offer(self, offer: Offer) -> None:
        """As the port says."""
        try:
            delete_aggregate(OfferDocument, offer.id, offer.version)
        except NotFound:
            raise OfferNotFound(resource=f"offers/{offer.id}") from None
        OfferRevisionDocument._get_collection().delete_many({"offer": offer.id})

    def revisions(self, offer_id: str, limit: int, below: int | None) -> list[Offer]:
        """As the port says."""
        present = self.offer(offer_id)
        found = [present] if below is None or present.version < below else []
        bound = present.version if below is None else min(below, present.version)
        rows = OfferRevisionDocument._get_collection().find({"offer": offer_id, "version": {"$lt": bound}})
        past = [offer_from_raw(row["content"]) for row in rows.sort("version", -1).limit(limit)]
        return (found + past)[:limit]

    # supply

    def claim_unit(self, claim: Claim, real_now: datetime) -> None:
        """As the port says."""
        offers = OfferDocument._get_collection()
        cost = {"$ifNull": ["$unit_cost.amount", Decimal128("0")]}
        entry = {"token": claim.token, "decision": claim.decision, "cost": cost, "at": real_now}
        taken = offers.update_one(
            {"_id": claim.offer, f"claims.{CLAIMS_MAX - 1}": {"$exists": False}, "$expr": _ROOM},
            [
                {
                    "$set": {
                        "units_used": {"$add": ["$units_used", 1]},
                        "budget_used": {"$add": ["$budget_used", cost]},
                        "claims": {"$concatArrays": [{"$ifNull": ["$claims", []]}, [entry]]},
                    }
                }
            ],
        )
        if taken.modified_count == 0:
            name = f"offers/{claim.offer}"
            if self.offer(claim.offer).sold_out:
                raise OfferSoldOut(subject=name, why="its stock or budget is used up")
            raise ClaimsPending(subject=name, retry_seconds=1.0)

    def settle_claim(self, offer_id: str, token: str) -> None:
        """As the port says."""
        OfferDocument._get_collection().update_one({"_id": offer_id}, {"$pull": {"claims": {"token": token}}})

    def release_claim(self, offer_id: str, token: str) -> None:
        """As the port says."""
        mine = {"$filter": {"input": "$claims", "cond": {"$eq": ["$$this.token", token]}}}
        others = {"$filter": {"input": "$claims", "cond": {"$ne": ["$$this.token", token]}}}
        cost = {"$first": {"$map": {"input": mine, "in": "$$this.cost"}}}
        OfferDocument._get_collection().update_one(
            {"_id": offer_id, "claims.token": token},
            [
                {
                    "$set": {
                        "units_used": {"$subtract": ["$units_used", 1]},
                        "budget_used": {"$subtract": ["$budget_used", cost]},
                        "claims": others,
                    }
                }
            ],
        )

    def stale_claims(self, before: datetime, limit: int) -> list[Claim]:
        """As the port says."""
        found = (
            OfferDocument._get_collection().find({"claims.at": {"$lt": before}}, {"claims": 1}).limit(limit)
        )
        return [
            Claim(offer=raw["_id"], token=entry["token"], decision=entry["decision"])
            for raw in found
            for entry in raw["claims"]
            if entry["at"] < before
        ]
