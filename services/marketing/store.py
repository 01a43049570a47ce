"""Where marketing keeps what it knows: the ports, and the MongoDB store. The memory store is in
memory_store.py; one contract suite holds both.

The unit of work is one document. What spans two is made so that a crash in between is found and finished by
the worker:

* A unit of stock. `claim_unit` takes one atomically under a token, then the decision is closed naming that
  token, then `settle_claim` forgets the token. A claim whose decision does not name its token is given back
  by the worker, which first touches the decision, so that a closing still in flight with that token can only
  fail. So stock is never oversold and no unit is lost.
* History after an acceptance. The closed decision is marked `unsettled` until its purchase is stored under an
  id made of the decision's, so repeating is harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import bson
from bson.decimal128 import Decimal128
from bson.raw_bson import RawBSONDocument
from msgspec import structs
from pymongo import ReturnDocument, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from chassis.bus.event import Told
from chassis.errors import AlreadyExists, EtagMismatch, NotFound, Unavailable
from chassis.idempotency import check_repeat
from chassis.mongo import (
    OUTBOX_EVENTS_MAX,
    OutboxFull,
    clashes,
    create_once,
    delete_aggregate,
    pending_entry,
    update_aggregate,
)
from marketing import kin
from marketing.association import Partners, RuleTable, Smoothing
from marketing.documents import (
    ComplaintDocument,
    DecisionDocument,
    HistoryDocument,
    ModelDocument,
    ModelRowDocument,
    OfferDocument,
    OfferRevisionDocument,
    ProfileDocument,
    PurchaseDocument,
    ServingDocument,
    complaint_from_raw,
    decision_fields,
    decision_from_raw,
    decision_raw,
    key_of,
    model_from_raw,
    offer_fields,
    offer_from_raw,
    profile_fields,
    profile_from_raw,
    purchase_from_raw,
    purchase_raw,
)
from marketing.engine import (
    ClaimsPending,
    DecisionNotFound,
    ModelNotFound,
    OfferNotFound,
    OfferSoldOut,
    check_supply,
)
from marketing.gathered import Gathered
from marketing.kin import MERGE_HOPS_MAX
from marketing.kinds import (
    DEFAULT_POLICY,
    EFFECTS,
    POLICIES,
    PROPENSITY,
    PROPENSITY_MODELS,
    PROPENSITY_SERVING,
    policy_from_content,
    propensity_from_content,
)
from marketing.model import (
    CARE_MAX,
    Complaint,
    Decision,
    ModelInfo,
    ModelState,
    Offer,
    OfferState,
    Profile,
    Purchase,
)

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

    from chassis.bus import Event
    from marketing.policy import Policy
    from marketing.propensity import Propensity

#: An event, or one that is written down already.
Pending: TypeAlias = "Event | Told"

#: Most claims on one offer that may wait to be settled.
CLAIMS_MAX = 1_000
#: Most products kept of one customer.
PRODUCTS_OF_CUSTOMER_MAX = 500
#: Most published offers that a server ranks.
PUBLISHED_MAX = 5_000
#: Rows of a model written at once.
ROWS_BATCH = 500
#: Earlier versions remembered for a rollback.
EARLIER_MAX = 10
#: Offers read at once.
OFFERS_BATCH = 200
#: Least time between the beginnings of two round trips of one kind while recommending, seconds.
PACE_SECONDS = 0.012
#: Decisions of a group of customers that are looked at for what was offered to them lately, and most of one
#: customer outside calls that are counted.
MADE_SCANNED_MAX = 50_000
MADE_COUNTED_MAX = 1_000
#: Documents of one answer about customers' standing.
STANDINGS_BATCH = 5_000
#: What an erasure leaves of a profile: that it was erased, and which news of it would be old.
_STUB = ("erased", "alive", "crm_version", "moved_at", "updated_at")
#: Condition of whatever is learned of a customer.
_NOT_ERASED = {"erased": {"$ne": True}}
#: The one serving document.
ASSOCIATION = "association"

#: What tells an offer's states apart.
_STAMP = {"version": 1, "units_used": 1, "budget_used": 1}


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
class DecisionFilter:
    """Which decisions a list is about; None leaves a field open."""

    customer: str | None = None
    call_id: str | None = None
    open: bool | None = None
    #: Made or closed from the first moment on and before the second.
    within: tuple[datetime, datetime] | None = None

    def holds(self, decision: Decision) -> bool:
        """Whether a decision is meant."""
        return (
            self.customer in (None, decision.customer)
            and self.call_id in (None, decision.contact.call_id)
            and self.open in (None, decision.outcome is None)
            and self._happened(decision)
        )

    def _happened(self, decision: Decision) -> bool:
        if self.within is None:
            return True
        start, end = self.within
        closed = decision.outcome is not None and start <= decision.outcome.at < end
        return closed or start <= decision.created_at < end


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A unit of stock taken for a decision that is being closed."""

    #: Offer id.
    offer: str
    #: Names this claim alone.
    token: str
    #: Decision id.
    decision: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sale:
    """What somebody bought by a campaign."""

    #: Ids, without "campaigns/" and "customers/".
    campaign: str
    customer: str
    #: "regions/…" of the customer, "agents/…" who sold it; "" unknown.
    region: str = ""
    agent: str = ""
    #: What it was worth and cost then; a sale of earlier releases says nothing of its cost.
    worth: Decimal
    cost: Decimal = Decimal(0)
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """Which model version serves."""

    #: Model id, "" while there is none.
    model: str = ""
    #: Versions that served before, newest last.
    earlier: tuple[str, ...] = ()
    #: Business time since when.
    since: datetime | None = None
    #: State of the history that the newest version was made from; None while there is none.
    history: int | None = None
    #: An operator chose the version: newer ones are built, and wait.
    pinned: bool = False
    #: 0 while there is no document.
    version: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What is known of a customer when something might be offered."""

    #: Of the survivor where they were merged; None where nothing is known.
    profile: Profile | None = None
    #: Whether customer or number have an unresolved complaint.
    complaining: bool = False
    #: The calls, "" outside one, in which something was offered lately.
    made: Sequence[str] = ()

    def contacts(self, call_id: str) -> int:
        """In how many contacts, others than this call, something was offered."""
        calls = {call for call in self.made if call and call != call_id}
        return len(calls) + self.made.count("")


class Store(Protocol):
    """Blocking access. Any method may raise Unavailable while the database is away; repeat it then."""

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

    def decision(self, decision_id: str) -> Decision:
        """The decision; DecisionNotFound."""

    def decisions(self, query: DecisionFilter, limit: int, below: str | None) -> list[Decision]:
        """At most `limit` decisions with an id below `below` (None: all), newest first."""

    def closed_count(self) -> int:
        """How many decisions are closed."""

    def close_decision(self, decision: Decision, events: Sequence[Event]) -> Decision:
        """Stores a closed decision if it is still at `decision.version`; answers it as stored. EtagMismatch,
        DecisionNotFound."""

    def touch_decision(self, decision: Decision) -> None:
        """Raises the version alone, so that a writer who read it before fails. EtagMismatch,
        DecisionNotFound.
        """

    def mark_settled(self, decision_id: str) -> None:
        """Notes that the effects of a closing are applied. Repeatable."""

    def unsettled(self, limit: int) -> list[Decision]:
        """Closed decisions whose effects may not all be applied, oldest first."""

    def add_purchases(self, purchases: Sequence[Purchase], now: datetime) -> int:
        """Adds to the history; how many were new. A known id changes nothing, what an erased customer bought
        is left out. Repeatable after a failure.
        """

    def purchases(self, customer: str, limit: int, after: tuple[datetime, str] | None) -> list[Purchase]:
        """At most `limit` purchases of a customer after a (time, id), newest first."""

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

    def forget_strangers(self, before: datetime, limit: int) -> int:
        """Takes number and note out of at most so many decisions of before then that were made for nobody
        known; how many.
        """

    def save_complaint(self, complaint: Complaint) -> bool:
        """Stores it unless a newer one is there; whether it was stored. One of a merged customer is the
        survivor's until they are given back, also where tickets has come to name the survivor.
        """

    def close_complaint(self, ticket: str) -> None:
        """Notes that a complaint is over; nothing for an unknown one."""

    def open_complaints(self, customer: str, limit: int, number: str = "") -> list[Complaint]:
        """Unresolved complaints of a customer, and those made from a number, "" for none."""

    def touch_days(self, prefix: str, start: datetime, end: datetime) -> list[tuple[datetime, str, int]]:
        """(instant of an hour, region of the customers, touches sent or waiting) of a campaign's step, named
        "campaign/phase/step".
        """

    def sales(self, start: datetime, end: datetime, limit: int) -> list[Sale]:
        """At most so many sales of campaigns in a span."""

    def end_sale(self, place: str, token: str) -> datetime | None:
        """When a campaign noted a sale at a place under the token of a claim; where it did not, it cannot any
        more from now on.
        """

    def history_changes(self) -> int:
        """Rises with every new purchase."""

    def baskets(self) -> Iterator[list[str]]:
        """The products of each customer who has any."""

    def model(self, model_id: str) -> ModelInfo:
        """A model version; ModelNotFound."""

    def models(self, limit: int, below: int | None) -> list[ModelInfo]:
        """At most `limit` versions below a version number (None: all), newest first."""

    def save_model(self, info: ModelInfo, smoothing: Smoothing) -> None:
        """Stores or replaces a version's description. AlreadyExists when another has its number."""

    def save_table(self, table: RuleTable) -> None:
        """Stores a version's counts, replacing what a broken attempt left."""

    def table(self, model_id: str) -> RuleTable:
        """A version's counts; ModelNotFound when it is not there as a whole."""

    def drop_models(self, keep: int) -> int:
        """Removes all but the `keep` newest and those that serve or may be rolled back to; how many."""

    def serving(self) -> Serving:
        """Which version serves."""

    def serve_model(self, serving: Serving, events: Sequence[Event], now: datetime) -> Serving:
        """Stores who serves if nobody changed it since `serving.version`. EtagMismatch."""


class Reader(Protocol):
    """The path of a recommendation, on the event loop. Any method may raise Unavailable while the database is
    away.
    """

    async def read_profile_of_number(self, number: str) -> Profile | None:
        """The customer who owns a number, or the survivor where they were merged; of several the one heard of
        last.
        """

    async def read_standing(self, customer: str, number: str, since: datetime | None) -> Standing:
        """What stands for and against offering something to a customer ("" unknown) who calls from a number
        ("" not said); `since` is when "lately" began, None leaves `made` empty.
        """

    async def read_published(self) -> list[Offer]:
        """Published offers by id, at most `PUBLISHED_MAX`."""

    async def read_serving(self) -> Serving:
        """Which model version serves."""

    async def read_table(self, model_id: str) -> RuleTable:
        """A version's counts; ModelNotFound when it is not there as a whole."""

    async def read_policy(self) -> Policy | None:
        """The policy in force; None while nobody set one."""

    async def read_propensity(self, known: str) -> Propensity | None:
        """The propensity model that serves; None when it is the one known. ValueError for a broken one."""

    async def read_effect(self, name: str, known: str) -> tuple[str, dict[str, Any]] | None:
        """(id, content) of the model of a name in `kinds.EFFECTS` that serves, ("", {}) for none; None when
        it is the one known.
        """

    async def read_repeat(self, request_key: str, fingerprint: str) -> Decision | None:
        """What an earlier call with this key made; RequestIdReused when it asked for something else."""

    async def log_decision(
        self,
        decision: Decision,
        events: Sequence[Pending],
        *,
        request_key: str | None,
        fingerprint: str | None,
    ) -> Decision:
        """Stores a new decision with its events; answers the one of an earlier call with this key where there
        is one. RequestIdReused.
        """


# --- MongoDB ------------------------------------------------------------------------------------------


def _new_decision(
    decision: Decision, events: Sequence[Pending], request_key: str | None, fingerprint: str | None
) -> RawBSONDocument:
    """A decision as a whole document, in the form that `chassis.mongo` gives an aggregate."""
    about: dict[str, Any] = {
        "version": 1,
        "created_at": decision.created_at,
        "updated_at": decision.created_at,
    }
    if events:
        about["outbox_since"] = datetime.now(UTC)
    if request_key is not None:
        about |= {"request_key": request_key, "request_fingerprint": fingerprint}
    told = [event if isinstance(event, Told) else event.told() for event in events]
    return decision_raw(decision, told, about)


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


def hide_strangers(wanted: Mapping[str, Any]) -> int:
    """Takes what is personal out of decisions that were made for nobody known; how many."""
    gone = {"number": "", "outcome.note": "", "stranger": ""}
    # A closing in flight meets another version, and is done again without the number.
    change = {"$unset": gone, "$inc": {"version": 1}}
    strangers = {**wanted, "stranger": True}
    return DecisionDocument._get_collection().update_many(strangers, change).modified_count


def _disown_complaints(customer: str) -> None:
    """Takes an erased customer out of their complaints; those of who was merged into them stay theirs."""
    for whose in _made_for(customer):
        nobodys = {"$set": {"customer": "", "number": ""}, "$unset": {"made_for": ""}}
        ComplaintDocument._get_collection().update_many(whose, nobodys)


def _serving_from_raw(raw: dict[str, Any] | None) -> Serving:
    if raw is None:
        return Serving()
    return Serving(
        model=raw["model"],
        earlier=tuple(raw.get("earlier", ())),
        since=raw.get("since"),
        history=raw.get("history"),
        pinned=bool(raw.get("pinned")),
        version=raw["version"],
    )


def _table_from_raw(model: dict[str, Any] | None, model_id: str, rows: Iterable[dict[str, Any]]) -> RuleTable:
    """A table put together again; ModelNotFound when rows are missing, so that a half-written one never
    serves.
    """
    partners = {
        row["product"]: Partners(
            customers=row["customers"], together=dict(row["together"]), complete=row["complete"]
        )
        for row in rows
    }
    if model is None:
        raise ModelNotFound(resource=f"models/{model_id}")
    table = RuleTable(
        model=model_id,
        customers=model["customers"],
        having={product: entry.customers for product, entry in partners.items()},
        partners=partners,
        smoothing=Smoothing(strength=model["strength"], rate=model["rate"]),
    )
    if (table.facts, table.rules) != (model["facts"], model["rules"]):
        raise ModelNotFound(resource=f"models/{model_id}")
    return table


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


class MongoStore:
    """The store on MongoDB. Needs `chassis.mongo.connect` first."""

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

    # decisions

    def decision(self, decision_id: str) -> Decision:
        """As the port says."""
        raw = DecisionDocument._get_collection().find_one({"_id": decision_id}, {"outbox": 0})
        if raw is None:
            raise DecisionNotFound(resource=f"decisions/{decision_id}")
        return decision_from_raw(raw)

    def decisions(self, query: DecisionFilter, limit: int, below: str | None) -> list[Decision]:
        """As the port says."""
        wanted = {"customer": query.customer, "call_id": query.call_id, "open": query.open}
        condition: dict[str, Any] = {field: value for field, value in wanted.items() if value is not None}
        if below is not None:
            condition["_id"] = {"$lt": below}
        if query.within is not None:
            # No index of its own: every recommendation would pay for what a report asks for now and then.
            span = dict(zip(("$gte", "$lt"), query.within, strict=True))
            condition["$or"] = [{"created_at": span}, {"outcome.at": span}]
        found = DecisionDocument._get_collection().find(condition, {"outbox": 0})
        return [decision_from_raw(raw) for raw in found.sort("_id", -1).limit(limit)]

    def closed_count(self) -> int:
        """As the port says."""
        return int(DecisionDocument._get_collection().count_documents({"open": False}))

    def close_decision(self, decision: Decision, events: Sequence[Event]) -> Decision:
        """As the port says."""
        document = DecisionDocument(id=decision.id, version=decision.version, **decision_fields(decision))
        try:
            update_aggregate(document, events, decision.version)
        except NotFound:
            raise DecisionNotFound(resource=f"decisions/{decision.id}") from None
        return structs.replace(decision, version=document.version)

    def touch_decision(self, decision: Decision) -> None:
        """As the port says."""
        touched = DecisionDocument._get_collection().update_one(
            {"_id": decision.id, "version": decision.version}, {"$inc": {"version": 1}}
        )
        if touched.modified_count == 0:
            self.decision(decision.id)
            raise EtagMismatch(resource=f"decisions/{decision.id}")

    def mark_settled(self, decision_id: str) -> None:
        """As the port says."""
        DecisionDocument._get_collection().update_one({"_id": decision_id}, {"$unset": {"unsettled": ""}})

    def unsettled(self, limit: int) -> list[Decision]:
        """As the port says."""
        found = DecisionDocument._get_collection().find({"unsettled": True}, {"outbox": 0})
        return [decision_from_raw(raw) for raw in found.sort("_id", 1).limit(limit)]

    # history

    def add_purchases(self, purchases: Sequence[Purchase], now: datetime) -> int:
        """As the port says. Products go to the profile after the purchase is stored, and again on every
        repeat.
        """
        buyers = {purchase.customer for purchase in purchases}
        owners, gone = self._owners(buyers), self.erased(sorted(buyers))
        purchases = [purchase for purchase in purchases if purchase.customer not in gone]
        if not purchases:
            return 0
        rows = [purchase_raw(purchase, owners[purchase.customer]) for purchase in purchases]
        unique = {row["_id"]: row for row in reversed(rows)}
        known = self._insert_new(list(unique.values()))
        facts = [row for id, row in unique.items() if id not in known]
        if known:
            facts += PurchaseDocument._get_collection().find({"_id": {"$in": sorted(known)}})
        self._add_products([(row["customer"], row["product"], row["at"]) for row in facts], now)
        new = len(unique) - len(known)
        if new:
            HistoryDocument._get_collection().update_one(
                {"_id": "history"}, {"$inc": {"changes": new}}, upsert=True
            )
        return new

    def _owners(self, customers: set[str]) -> dict[str, str]:
        """Whose a purchase is now, by who bought it."""
        owners = {customer: customer for customer in customers}
        for _ in range(MERGE_HOPS_MAX):
            merged = ProfileDocument._get_collection().find(
                {"_id": {"$in": sorted(set(owners.values()))}}, {"merged_into": 1}
            )
            hops = {raw["_id"]: raw["merged_into"] for raw in merged if raw.get("merged_into")}
            if not hops:
                break
            owners = {customer: hops.get(owner, owner) for customer, owner in owners.items()}
        return owners

    def _insert_new(self, rows: list[dict[str, Any]]) -> set[str]:
        """Inserts; the ids that were there already."""
        try:
            PurchaseDocument._get_collection().insert_many(rows, ordered=False)
        except BulkWriteError as error:
            return {rows[index]["_id"] for index in clashes(error)}
        return set()

    def _add_products(self, facts: Sequence[tuple[str, str, datetime]], now: datetime) -> None:
        by_customer: dict[str, dict[str, datetime]] = {}
        for customer, product, at in facts:
            latest = by_customer.setdefault(customer, {})
            latest[product] = max(at, latest.get(product, at))
        updates = [
            UpdateOne(
                # A full profile does not match, and the insert that then follows meets its id: it stays as it
                # is.
                {"_id": customer, f"products.{PRODUCTS_OF_CUSTOMER_MAX - 1}": {"$exists": False}},
                {
                    "$addToSet": {"products": {"$each": sorted(products)}},
                    "$max": {f"bought.{key_of(product)}": at for product, at in products.items()},
                    "$set": {"updated_at": now},
                },
                upsert=True,
            )
            for customer, products in sorted(by_customer.items())
        ]
        if not updates:
            return
        try:
            ProfileDocument._get_collection().bulk_write(updates, ordered=False)
        except BulkWriteError as error:
            # Full profiles; see above.
            clashes(error)

    def purchases(self, customer: str, limit: int, after: tuple[datetime, str] | None) -> list[Purchase]:
        """As the port says."""
        condition: dict[str, Any] = {"customer": customer}
        if after is not None:
            at, id = after
            condition["at"] = {"$lte": at}
            condition["$or"] = [{"at": {"$lt": at}}, {"_id": {"$lt": id}}]
        found = PurchaseDocument._get_collection().find(condition)
        return [purchase_from_raw(raw) for raw in found.sort([("at", -1), ("_id", -1)]).limit(limit)]

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

    def _give_products(self, customer: str, products: dict[str, datetime]) -> None:
        if products:
            change = {
                "$addToSet": {"products": {"$each": sorted(products)}},
                "$max": {f"bought.{key_of(product)}": at for product, at in products.items()},
            }
            ProfileDocument._get_collection().update_one({"_id": customer}, change, upsert=True)

    def _take_products(self, holder: str, products: Iterable[str]) -> None:
        """Leaves of these products what purchases of the holder's tell."""
        asked = sorted(products)
        left = self._bought(holder, {"product": {"$in": asked}}) if asked else {}
        change: dict[str, Any] = {}
        if lost := [product for product in asked if product not in left]:
            change["$pullAll"] = {"products": lost}
            change["$unset"] = {f"bought.{key_of(product)}": "" for product in lost}
        if left:
            change["$set"] = {f"bought.{key_of(product)}": at for product, at in left.items()}
        if change:
            ProfileDocument._get_collection().update_one({"_id": holder}, change)

    def _bought(self, customer: str, wanted: Mapping[str, Any] | None = None) -> dict[str, datetime]:
        """When each product was bought last, of the first `PRODUCTS_OF_CUSTOMER_MAX` by id; `wanted` says of
        which purchases.
        """
        found = PurchaseDocument._get_collection().aggregate(
            [
                {"$match": {"customer": customer, **(wanted or {})}},
                {"$group": {"_id": "$product", "at": {"$max": "$at"}}},
                {"$sort": {"_id": 1}},
                {"$limit": PRODUCTS_OF_CUSTOMER_MAX},
            ]
        )
        return {raw["_id"]: raw["at"] for raw in found}

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
        wanted = {"_id": {"$in": list(customers)}, "erased": True}
        return {raw["_id"] for raw in ProfileDocument._get_collection().find(wanted, {"_id": 1})}

    def forget_strangers(self, before: datetime, limit: int) -> int:
        """As the port says."""
        decisions = DecisionDocument._get_collection()
        old = decisions.find({"stranger": True, "created_at": {"$lt": before}}, {"_id": 1}).limit(limit)
        return hide_strangers({"_id": {"$in": [raw["_id"] for raw in old]}})

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

    # models

    def touch_days(self, prefix: str, start: datetime, end: datetime) -> list[tuple[datetime, str, int]]:
        """As the port says."""
        wanted = {
            "_id": {"$gt": f"{prefix}/", "$lt": f"{prefix}0"},
            "at": {"$gte": start, "$lt": end},
            "state": {"$ne": "FAILED"},
        }
        hour = {"at": {"$dateTrunc": {"date": "$at", "unit": "hour"}}, "region": "$region"}
        grouped = DecisionDocument._get_db()["touches"].aggregate(
            [{"$match": wanted}, {"$group": {"_id": hour, "count": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
        )
        return [(raw["_id"]["at"], raw["_id"].get("region") or "", raw["count"]) for raw in grouped]

    def sales(self, start: datetime, end: datetime, limit: int) -> list[Sale]:
        """As the port says."""
        everybody = DecisionDocument._get_db()["campaign_contacts"]
        found = list(everybody.find({"bought_at": {"$gte": start, "$lt": end}}).limit(limit))
        owners = self._owners({raw["customer"] for raw in found})
        return [
            Sale(
                campaign=raw["campaign"],
                customer=owners[raw["customer"]],
                region=raw.get("region") or "",
                agent=raw.get("bought_agent") or "",
                worth=Decimal(raw.get("bought_worth") or 0),
                cost=Decimal(raw.get("bought_cost") or 0),
                at=raw["bought_at"],
            )
            for raw in found
        ]

    def end_sale(self, place: str, token: str) -> datetime | None:
        """As the port says."""
        everybody = DecisionDocument._get_db()["campaign_contacts"]
        mine = {"_id": place, "bought_claim": {"$ne": token}}
        everybody.update_one(mine, {"$addToSet": {"ended_claims": token}})
        found = everybody.find_one({"_id": place, "bought_claim": token}, {"bought_at": 1})
        return None if found is None else found["bought_at"]

    def history_changes(self) -> int:
        """As the port says."""
        raw = HistoryDocument._get_collection().find_one({"_id": "history"})
        return int(raw["changes"]) if raw is not None else 0

    def baskets(self) -> Iterator[list[str]]:
        """As the port says: the one deliberate pass over a whole collection, in the order of its ids."""
        found = ProfileDocument._get_collection().find({}, {"products": 1}, batch_size=2_000).sort("_id", 1)
        for raw in found:
            if raw.get("products"):
                yield raw["products"]

    def model(self, model_id: str) -> ModelInfo:
        """As the port says."""
        raw = ModelDocument._get_collection().find_one({"_id": model_id})
        if raw is None:
            raise ModelNotFound(resource=f"models/{model_id}")
        serving = self.serving()
        return model_from_raw(raw, serving.model, serving.since)

    def models(self, limit: int, below: int | None) -> list[ModelInfo]:
        """As the port says."""
        serving = self.serving()
        condition = {"number": {"$lt": below}} if below is not None else {}
        found = ModelDocument._get_collection().find(condition).sort("number", -1).limit(limit)
        return [model_from_raw(raw, serving.model, serving.since) for raw in found]

    def save_model(self, info: ModelInfo, smoothing: Smoothing) -> None:
        """As the port says."""
        state = ModelState.READY if info.state is ModelState.ACTIVE else info.state
        raw = {
            "_id": info.id,
            "number": info.version,
            "state": state.value,
            "failure": info.failure,
            "customers": info.customer_count,
            "facts": info.example_count,
            "rules": info.rule_count,
            "metrics": dict(info.metrics),
            "strength": smoothing.strength,
            "rate": smoothing.rate,
            "created_at": info.created_at,
        }
        try:
            ModelDocument._get_collection().replace_one({"_id": info.id}, raw, upsert=True)
        except DuplicateKeyError:
            raise AlreadyExists(resource=f"models/{info.id}", conflict="number") from None

    def save_table(self, table: RuleTable) -> None:
        """As the port says."""
        rows = ModelRowDocument._get_collection()
        rows.delete_many({"model": table.model})
        batch: list[dict[str, Any]] = []
        for product, entry in table.partners.items():
            batch.append(
                {
                    "_id": f"{table.model}/{product}",
                    "model": table.model,
                    "product": product,
                    "customers": entry.customers,
                    "together": [[partner, count] for partner, count in entry.together.items()],
                    "complete": entry.complete,
                }
            )
            if len(batch) >= ROWS_BATCH:
                rows.insert_many(batch)
                batch = []
        if batch:
            rows.insert_many(batch)

    def table(self, model_id: str) -> RuleTable:
        """As the port says."""
        model = ModelDocument._get_collection().find_one({"_id": model_id})
        return _table_from_raw(model, model_id, ModelRowDocument._get_collection().find({"model": model_id}))

    def drop_models(self, keep: int) -> int:
        """As the port says."""
        serving = self.serving()
        wanted = {serving.model, *serving.earlier[-keep:]}
        newest = ModelDocument._get_collection().find({}, {"_id": 1}).sort("number", -1)
        ids = [raw["_id"] for raw in newest.skip(keep).limit(100)]
        gone = [id for id in ids if id not in wanted]
        if gone:
            ModelRowDocument._get_collection().delete_many({"model": {"$in": gone}})
            ModelDocument._get_collection().delete_many({"_id": {"$in": gone}})
        return len(gone)

    def serving(self) -> Serving:
        """As the port says."""
        return _serving_from_raw(ServingDocument._get_collection().find_one({"_id": ASSOCIATION}))

    def serve_model(self, serving: Serving, events: Sequence[Event], now: datetime) -> Serving:
        """As the port says."""
        fields = {
            "model": serving.model,
            "earlier": list(serving.earlier[-EARLIER_MAX:]),
            "since": serving.since,
            "history": serving.history,
            "pinned": serving.pinned,
        }
        document = ServingDocument(id=ASSOCIATION, **fields)
        if serving.version:
            document.version = serving.version
            update_aggregate(document, events, serving.version, now=now)
            return replace(serving, version=document.version)
        try:
            create_once(document, events, request_key=None, now=now)
        except AlreadyExists:
            raise EtagMismatch(resource=f"serving/{ASSOCIATION}") from None
        return replace(serving, version=1)


#: (customer, number, since when).
_Asked = tuple[str, str, datetime | None]
#: (profile, whether there is a complaint, calls with offers).
_Found = tuple[dict[str, Any] | None, bool, Sequence[str]]


def _standings(
    complaints: str, decisions: str, customers: list[str], numbers: list[str], earliest: datetime | None
) -> list[dict[str, Any]]:
    """A pipeline over profiles: those of the customers, then {customer, number} of open complaints, then
    {customer, call, at, count} of what was offered.
    """
    either = [
        {field: {"$in": values}, "open": True}
        for field, values in (("customer", customers), ("number", numbers))
        if values
    ]
    open_ones = [{"$match": {"$or": either}}, {"$project": {"_id": 0, "customer": 1, "number": 1}}]
    stages: list[dict[str, Any]] = [
        {"$match": {"_id": {"$in": customers}}},
        {"$unionWith": {"coll": complaints, "pipeline": open_ones}},
    ]
    if earliest is not None and customers:
        lately = {"customer": {"$in": customers}, "made_at": {"$gte": earliest}}
        call = {"customer": "$customer", "call": "$call_id"}
        made: list[dict[str, Any]] = [
            {"$match": lately},
            {"$limit": MADE_SCANNED_MAX},
            # One call counts once, however often it asked: so one line a call at most.
            {"$group": {"_id": call, "at": {"$max": "$made_at"}, "count": {"$sum": 1}}},
            {"$project": {"_id": 0, "customer": "$_id.customer", "call": "$_id.call", "at": 1, "count": 1}},
        ]
        stages.append({"$unionWith": {"coll": decisions, "pipeline": made}})
    return stages


class MongoReader:
    """The path of a recommendation through the asynchronous driver, on the same collections."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._database = database
        self._offers = database[OfferDocument._get_collection_name()]
        self._profiles = database[ProfileDocument._get_collection_name()]
        self._complaints = database[ComplaintDocument._get_collection_name()]
        self._decisions = database[DecisionDocument._get_collection_name()]
        self._serving = database[ServingDocument._get_collection_name()]
        self._models = database[ModelDocument._get_collection_name()]
        self._rows = database[ModelRowDocument._get_collection_name()]
        self._policies = database[POLICIES.collection]
        self._propensity_serving = database[PROPENSITY_SERVING.collection]
        self._propensity_models = database[PROPENSITY_MODELS.collection]
        #: Stamp and offer by id, as read last.
        self._seen: dict[str, tuple[dict[str, Any], Offer]] = {}
        #: The stamps of the published offers as the database told them, and these offers.
        self._stamps = b""
        self._published: list[Offer] = []
        self._ask_standing = Gathered(self._find_standings, pace_seconds=PACE_SECONDS, crowd=self._under_way)
        self._insert = Gathered(self._insert_decisions, pace_seconds=PACE_SECONDS, crowd=self._under_way)

    def _under_way(self) -> int:
        """Recommendations that wait for the database at either end."""
        return self._ask_standing.pending + self._insert.pending

    async def read_standing(self, customer: str, number: str, since: datetime | None) -> Standing:
        """As the port says."""
        if not customer and not number:
            return Standing()
        raw, complaining, made = await self._ask_standing.ask((customer, number, since))
        profile = await self._survivor(raw)
        return Standing(profile=profile, complaining=complaining, made=made)

    async def _survivor(self, raw: dict[str, Any] | None) -> Profile | None:
        for _ in range(MERGE_HOPS_MAX):
            if raw is None or not raw.get("merged_into"):
                break
            raw = await self._profiles.find_one({"_id": raw["merged_into"]})
        return profile_from_raw(raw) if raw is not None else None

    async def read_profile_of_number(self, number: str) -> Profile | None:
        """As the port says. crm empties the numbers of a customer who no longer lives."""
        return await self._survivor(
            await self._profiles.find_one({"numbers": number}, sort=[("updated_at", -1)])
        )

    async def _find_standings(self, asked: Sequence[_Asked]) -> list[_Found | Exception]:
        """One round trip for all that is asked of profiles, complaints and decisions."""
        customers = sorted({customer for customer, _, _ in asked} - {""})
        numbers = sorted({number for _, number, _ in asked} - {""})
        earliest = min((since for _, _, since in asked if since is not None), default=None)
        found = await self._profiles.aggregate(
            _standings(self._complaints.name, self._decisions.name, customers, numbers, earliest),
            batchSize=STANDINGS_BATCH,
        )
        profiles: dict[str, dict[str, Any]] = {}
        complaining: set[tuple[str, str]] = set()
        made: dict[str, list[tuple[datetime, str]]] = {}
        for raw in await found.to_list():
            if "_id" in raw:
                profiles[raw["_id"]] = raw
            elif "at" in raw:
                call = raw.get("call") or ""
                times = 1 if call else min(raw["count"], MADE_COUNTED_MAX)
                made.setdefault(raw["customer"], []).extend([(raw["at"], call)] * times)
            else:
                complaining |= {("customer", raw.get("customer") or ""), ("number", raw.get("number") or "")}
        complaining -= {("customer", ""), ("number", "")}
        return [
            (
                profiles.get(customer),
                ("customer", customer) in complaining or ("number", number) in complaining,
                [call for at, call in made.get(customer, ()) if since is not None and at >= since],
            )
            for customer, number, since in asked
        ]

    async def read_published(self) -> list[Offer]:
        """As the port says. Reads a stamp of each, and the whole of those that are new or changed.

        Of a catalogue that nobody changed the stamps are the same bytes as before, and not taken apart: the
        calls of meanwhile would wait for that every second.
        """
        stamps = self._offers.find_raw_batches(
            {"state": OfferState.PUBLISHED.value},
            _STAMP,
            sort=[("_id", 1)],
            limit=PUBLISHED_MAX,
            batch_size=PUBLISHED_MAX,
        )
        batches: list[Any] = [batch async for batch in stamps]
        raw = b"".join(batches)
        if raw == self._stamps:
            return self._published
        now = {stamp["_id"]: stamp for stamp in bson.decode_all(raw)}
        await self._read_changed(now)
        # Of an offer changed between both readings the newer state counts, which may be no longer published.
        found = [offer for _, offer in self._seen.values() if offer.state is OfferState.PUBLISHED]
        if all(id in self._seen and self._seen[id][0] == stamp for id, stamp in now.items()):
            self._stamps, self._published = raw, found
        return found

    async def _read_changed(self, now: Mapping[str, dict[str, Any]]) -> None:
        """Brings what was seen of the offers up to these stamps, by id."""
        changed = [id for id, stamp in now.items() if id not in self._seen or self._seen[id][0] != stamp]
        for start in range(0, len(changed), OFFERS_BATCH):
            batch = changed[start : start + OFFERS_BATCH]
            found = self._offers.find({"_id": {"$in": batch}}, {"outbox": 0, "claims": 0})
            async for raw in found:
                self._seen[raw["_id"]] = (
                    {field: raw.get(field) for field in now[raw["_id"]]},
                    offer_from_raw(raw),
                )
        self._seen = {id: self._seen[id] for id in now if id in self._seen}

    async def read_serving(self) -> Serving:
        """As the port says."""
        return _serving_from_raw(await self._serving.find_one({"_id": ASSOCIATION}))

    async def read_table(self, model_id: str) -> RuleTable:
        """As the port says."""
        model = await self._models.find_one({"_id": model_id})
        return _table_from_raw(model, model_id, [row async for row in self._rows.find({"model": model_id})])

    async def read_policy(self) -> Policy | None:
        """As the port says."""
        raw = await self._policies.find_one({"_id": DEFAULT_POLICY}, {"outbox": 0})
        return policy_from_content(raw["content"], raw["version"]) if raw is not None else None

    async def read_propensity(self, known: str) -> Propensity | None:
        """As the port says."""
        serving = await self._propensity_serving.find_one({"_id": PROPENSITY}, {"content": 1})
        model = serving["content"].get("model", "") if serving is not None else ""
        if model == known:
            return None
        raw = await self._propensity_models.find_one({"_id": model}, {"content": 1})
        return propensity_from_content(model, raw["content"] if raw is not None else {})

    async def read_effect(self, name: str, known: str) -> tuple[str, dict[str, Any]] | None:
        """As the port says."""
        models, serving = EFFECTS[name]
        raw = await self._database[serving.collection].find_one({"_id": name}, {"content": 1})
        model = raw["content"].get("model", "") if raw is not None else ""
        if model == known:
            return None
        found = await self._database[models.collection].find_one({"_id": model}, {"content": 1})
        return model, found["content"] if found is not None else {}

    async def read_repeat(self, request_key: str, fingerprint: str) -> Decision | None:
        """As the port says."""
        raw = await self._decisions.find_one({"request_key": request_key}, {"outbox": 0})
        if raw is None:
            return None
        check_repeat(raw.get("request_fingerprint"), fingerprint)
        return decision_from_raw(raw)

    async def log_decision(
        self,
        decision: Decision,
        events: Sequence[Pending],
        *,
        request_key: str | None,
        fingerprint: str | None,
    ) -> Decision:
        """As the port says."""
        try:
            await self._insert.ask(_new_decision(decision, events, request_key, fingerprint))
        except DuplicateKeyError:
            earlier = await self.read_repeat(request_key or "", fingerprint or "")
            if earlier is None:
                raise AlreadyExists(resource=f"decisions/{decision.id}") from None
            return earlier
        return decision

    async def _insert_decisions(self, rows: Sequence[RawBSONDocument]) -> list[Exception | None]:
        answers: list[Exception | None] = [None] * len(rows)
        try:
            await self._decisions.insert_many(rows, ordered=False)
        except BulkWriteError as error:
            for index, failure in clashes(error).items():
                answers[index] = DuplicateKeyError(failure["errmsg"], failure["code"], failure)
        return answers
