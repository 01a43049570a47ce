"""Versions of the association model: what they were made from, their counts, and which of them serves. The
port and its MongoDB side. (Models of other kinds lie on shelves: kinds.py.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from pymongo.errors import DuplicateKeyError

from chassis.errors import AlreadyExists, EtagMismatch
from chassis.mongo import create_once, update_aggregate
from marketing.association import Partners, RuleTable, Smoothing
from marketing.documents import ModelDocument, ModelRowDocument, ServingDocument, model_from_raw
from marketing.engine import ModelNotFound
from marketing.model import ModelInfo, ModelState

if TYPE_CHECKING:
    from chassis.bus import Event

#: Rows of a model written at once.
ROWS_BATCH = 500
#: Earlier versions remembered for a rollback.
EARLIER_MAX = 10
#: The one serving document.
ASSOCIATION = "association"


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


class ModelStore(Protocol):
    """Models, as `store.Store` has them."""

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


def serving_from_raw(raw: dict[str, Any] | None) -> Serving:
    """Which version serves, as read."""
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


def table_from_raw(model: dict[str, Any] | None, model_id: str, rows: Iterable[dict[str, Any]]) -> RuleTable:
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


class MongoModelStore:
    """Models in MongoDB."""

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
        return table_from_raw(model, model_id, ModelRowDocument._get_collection().find({"model": model_id}))

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
        return serving_from_raw(ServingDocument._get_collection().find_one({"_id": ASSOCIATION}))

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
