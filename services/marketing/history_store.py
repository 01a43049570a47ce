"""Who bought what: purchases, and the products that profiles have by them. The port and its MongoDB side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from chassis.mongo import clashes
from marketing import kin
from marketing.documents import (
    HistoryDocument,
    ProfileDocument,
    PurchaseDocument,
    key_of,
    purchase_from_raw,
    purchase_raw,
)
from marketing.model import Purchase

#: Most products kept of one customer.
PRODUCTS_OF_CUSTOMER_MAX = 500


class HistoryStore(Protocol):
    """The history, as `store.Store` has it."""

    def add_purchases(self, purchases: Sequence[Purchase], now: datetime) -> int:
        """Adds to the history; how many were new. A known id changes nothing, what an erased customer bought
        is left out. Repeatable after a failure.
        """

    def purchases(self, customer: str, limit: int, after: tuple[datetime, str] | None) -> list[Purchase]:
        """At most `limit` purchases of a customer after a (time, id), newest first."""

    def purchases_within(
        self, customers: Sequence[str], start: datetime, end: datetime
    ) -> Iterator[tuple[str, str, datetime]]:
        """(customer, product, time) of what any of some customers bought from `start` on and before `end`."""

    def history_changes(self) -> int:
        """Rises with every new purchase."""

    def baskets(self) -> Iterator[list[str]]:
        """The products of each customer who has any."""


class MongoHistoryStore:
    """The history in MongoDB."""

    def add_purchases(self, purchases: Sequence[Purchase], now: datetime) -> int:
        """As the port says. Products go to the profile after the purchase is stored, and again on every
        repeat.
        """
        buyers = {purchase.customer for purchase in purchases}
        owners, gone = (
            kin.owners(ProfileDocument._get_collection(), buyers),
            kin.erased(ProfileDocument._get_collection(), sorted(buyers)),
        )
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

    def purchases_within(
        self, customers: Sequence[str], start: datetime, end: datetime
    ) -> Iterator[tuple[str, str, datetime]]:
        """As the port says."""
        wanted = {"customer": {"$in": list(customers)}, "at": {"$gte": start, "$lt": end}}
        shown = {"_id": 0, "customer": 1, "product": 1, "at": 1}
        for raw in PurchaseDocument._get_collection().find(wanted, shown):
            yield raw["customer"], raw["product"], raw["at"]

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

    # products of profiles, as merges move them

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
