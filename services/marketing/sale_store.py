"""What campaigns did that reports count and a claim on stock asks for: touches, and sales beside what each
person answered (campaign_store.py keeps both). The port and its MongoDB side.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from marketing import kin
from marketing.documents import DecisionDocument, ProfileDocument


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


class SaleStore(Protocol):
    """Touches and sales of campaigns, as `store.Store` has them."""

    def touch_days(self, prefix: str, start: datetime, end: datetime) -> list[tuple[datetime, str, int]]:
        """(beginning of a quarter of an hour, region of the customers, touches that left or wait for the
        person to come) of a campaign's step, named "campaign/phase/step".
        """

    def sales(self, start: datetime, end: datetime, limit: int) -> list[Sale]:
        """At most so many sales of campaigns in a span."""

    def end_sale(self, place: str, token: str) -> datetime | None:
        """When a campaign noted a sale at a place under the token of a claim; where it did not, it cannot any
        more from now on.
        """


class MongoSaleStore:
    """Touches and sales of campaigns in MongoDB."""

    def touch_days(self, prefix: str, start: datetime, end: datetime) -> list[tuple[datetime, str, int]]:
        """As the port says."""
        wanted = {
            "_id": {"$gt": f"{prefix}/", "$lt": f"{prefix}0"},
            "at": {"$gte": start, "$lt": end},
            # What failed or has not left cost nothing, and may never leave: its campaign may be stopped.
            "state": {"$in": ["SENT", "WAITING"]},
        }
        # Days begin at each quarter of an hour somewhere.
        quarter = {"$dateTrunc": {"date": "$at", "unit": "minute", "binSize": 15}}
        place = {"at": quarter, "region": "$region"}
        grouped = DecisionDocument._get_db()["touches"].aggregate(
            [{"$match": wanted}, {"$group": {"_id": place, "count": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
        )
        return [(raw["_id"]["at"], raw["_id"].get("region") or "", raw["count"]) for raw in grouped]

    def sales(self, start: datetime, end: datetime, limit: int) -> list[Sale]:
        """As the port says."""
        everybody = DecisionDocument._get_db()["campaign_contacts"]
        found = list(everybody.find({"bought_at": {"$gte": start, "$lt": end}}).limit(limit))
        owners = kin.owners(ProfileDocument._get_collection(), {raw["customer"] for raw in found})
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
