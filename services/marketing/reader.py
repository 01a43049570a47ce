"""The path of a recommendation through the database, on the event loop: what the ranking is made from, what
stands for and against offering something just now, and the new decision. The port and its MongoDB side, by
the asynchronous driver on the collections of store.py; reads and writes go out in groups (gathered.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError, DuplicateKeyError

from chassis.bus.event import Told
from chassis.errors import AlreadyExists
from chassis.idempotency import check_repeat
from chassis.mongo import clashes
from marketing.association import RuleTable
from marketing.documents import (
    ComplaintDocument,
    DecisionDocument,
    ModelDocument,
    ModelRowDocument,
    OfferDocument,
    ProfileDocument,
    ServingDocument,
    decision_from_raw,
    decision_raw,
    offer_from_raw,
    profile_from_raw,
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
from marketing.model import Decision, Offer, OfferState, Profile
from marketing.model_store import ASSOCIATION, Serving, serving_from_raw, table_from_raw

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

    from chassis.bus import Event
    from marketing.policy import Policy
    from marketing.propensity import Propensity

#: An event, or one that is written down already.
Pending: TypeAlias = "Event | Told"

#: Most published offers that a server ranks.
PUBLISHED_MAX = 5_000
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

#: What tells an offer's states apart.
_STAMP = {"version": 1, "units_used": 1, "budget_used": 1}


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
        return serving_from_raw(await self._serving.find_one({"_id": ASSOCIATION}))

    async def read_table(self, model_id: str) -> RuleTable:
        """As the port says."""
        model = await self._models.find_one({"_id": model_id})
        return table_from_raw(model, model_id, [row async for row in self._rows.find({"model": model_id})])

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
