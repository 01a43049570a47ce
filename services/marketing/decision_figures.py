"""What reports count of the log of decisions, for a span and by its indexes: offers made are counted in the
database, acceptances come one by one and bare. The port, and its MongoDB side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

from pymongo.errors import ExecutionTimeout

from marketing.documents import DecisionDocument
from marketing.model import Decision, Result

#: Longest time that the database counts for one report, milliseconds.
COUNTING_MS_MAX = 60_000
#: What offers made can be told apart by; TIME is the quarter of an hour, for days begin at each somewhere.
AGENT, REGION, REASON, OFFER, TIME = KEYS = ("AGENT", "REGION", "CONTACT_REASON", "OFFER", "TIME")
QUARTER = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offered:
    """Decisions with offers that are alike."""

    #: Begin of the quarter of an hour in which they were made; None where it was not asked for.
    at: datetime | None
    #: What was asked for of agent, region, reason and offer.
    values: Mapping[str, str]
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """An offer that was taken."""

    #: Id of the decision.
    decision: str
    customer: str
    made_at: datetime
    at: datetime
    #: Id and version of the offer, and what it was worth.
    offer: str
    revision: int
    worth: Decimal
    #: Agent, region, reason and offer.
    values: Mapping[str, str]


class TooLong(Exception):
    """The database took longer to count than a report may take."""


class DecisionFigures(Protocol):
    """Figures of decisions, as `store.Store` has them."""

    def made_count(self, start: datetime, end: datetime, most: int) -> int:
        """How many decisions were made from `start` on and before `end`, counted up to `most`."""

    def offered(self, start: datetime, end: datetime, by: Collection[str]) -> Iterator[Offered]:
        """How many of those offered something, by some of `KEYS`. TooLong."""

    def accepted(
        self, start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
    ) -> list[Acceptance]:
        """At most `limit` acceptances from `start` on and before `end`, newest first, beyond one of (time,
        decision). TooLong.
        """


def quarter(at: datetime) -> datetime:
    """The begin of the quarter of an hour."""
    return at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)


def values_of(decision: Decision) -> dict[str, str]:
    """What a decision counts for: the offer that its outcome is about, else the one that came first."""
    outcome = decision.outcome
    entry = decision.find(outcome.offer) if outcome else None
    shown = entry or (decision.offers[0] if decision.offers else None)
    return {
        AGENT: (outcome.agent if outcome else "") or decision.contact.agent,
        REGION: decision.contact.region,
        REASON: decision.contact.reason,
        OFFER: f"offers/{shown.offer}" if shown else "",
    }


def acceptance_of(decision: Decision) -> Acceptance | None:
    """What was taken by a decision's outcome, if anything."""
    outcome = decision.outcome
    entry = decision.find(outcome.offer) if outcome is not None else None
    if outcome is None or entry is None or outcome.result is not Result.ACCEPTED:
        return None
    return Acceptance(
        decision=decision.id,
        customer=decision.customer,
        made_at=decision.created_at,
        at=outcome.at,
        offer=entry.offer,
        revision=entry.revision,
        worth=entry.worth.amount,
        values=values_of(decision),
    )


def _text(path: str) -> dict[str, Any]:
    return {"$ifNull": [path, ""]}


#: The same as `values_of` says, for the database.
_VALUES: Mapping[str, Any] = {
    AGENT: {"$cond": [{"$gt": ["$outcome.agent", ""]}, "$outcome.agent", _text("$contact.agent")]},
    REGION: _text("$contact.region"),
    REASON: _text("$contact.reason"),
    OFFER: {
        "$concat": [
            "offers/",
            {
                "$cond": [
                    {"$in": ["$outcome.offer", "$offers.offer"]},
                    "$outcome.offer",
                    {"$first": "$offers.offer"},
                ]
            },
        ]
    },
    TIME: {"$dateTrunc": {"date": "$created_at", "unit": "minute", "binSize": 15}},
}


def offered_pipeline(start: datetime, end: datetime, by: Collection[str]) -> list[dict[str, Any]]:
    """What `offered` asks the database."""
    return [
        {"$match": {"created_at": {"$gte": start, "$lt": end}, "offers.0": {"$exists": True}}},
        {"$group": {"_id": {key: _VALUES[key] for key in by}, "count": {"$sum": 1}}},
    ]


def accepted_pipeline(
    start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
) -> list[dict[str, Any]]:
    """What `accepted` asks the database."""
    wanted: dict[str, Any] = {
        "outcome.at": {"$gte": start, "$lt": end},
        "outcome.result": Result.ACCEPTED.value,
        "$expr": {"$in": ["$outcome.offer", "$offers.offer"]},
    }
    if after is not None:
        at, id = after
        wanted["outcome.at"] = {"$gte": start, "$lte": at}
        wanted["$or"] = [{"outcome.at": {"$lt": at}}, {"_id": {"$lt": id}}]
    taken = {
        "$filter": {
            "input": "$offers",
            "as": "each",
            "cond": {"$eq": ["$$each.offer", "$outcome.offer"]},
        }
    }
    return [
        {"$match": wanted},
        {"$sort": {"outcome.at": -1, "_id": -1}},
        {"$limit": limit},
        {
            "$project": {
                "customer": _text("$customer"),
                "created_at": 1,
                "at": "$outcome.at",
                "taken": {"$first": taken},
                "values": {key: _VALUES[key] for key in KEYS if key != TIME},
            }
        },
        {"$project": {"customer": 1, "created_at": 1, "at": 1, "values": 1, **_TAKEN}},
    ]


_TAKEN = {f"taken.{name}": 1 for name in ("offer", "revision", "worth")}


class MongoDecisionFigures:
    """Figures of decisions in MongoDB."""

    def made_count(self, start: datetime, end: datetime, most: int) -> int:
        """As the port says."""
        wanted = {"created_at": {"$gte": start, "$lt": end}}
        return int(DecisionDocument._get_collection().count_documents(wanted, limit=most))

    def offered(self, start: datetime, end: datetime, by: Collection[str]) -> Iterator[Offered]:
        """As the port says."""
        for raw in _counted(offered_pipeline(start, end, by)):
            values = dict(raw["_id"])
            at = values.pop(TIME, None)
            yield Offered(at=at, values=values, count=raw["count"])

    def accepted(
        self, start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
    ) -> list[Acceptance]:
        """As the port says."""
        return [
            Acceptance(
                decision=raw["_id"],
                customer=raw["customer"],
                made_at=raw["created_at"],
                at=raw["at"],
                offer=raw["taken"]["offer"],
                revision=raw["taken"]["revision"],
                worth=raw["taken"]["worth"]["amount"].to_decimal(),
                values=raw["values"],
            )
            for raw in _counted(accepted_pipeline(start, end, limit, after))
        ]


def _counted(pipeline: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    decisions = DecisionDocument._get_collection()
    try:
        yield from decisions.aggregate(pipeline, allowDiskUse=True, maxTimeMS=COUNTING_MS_MAX)
    except ExecutionTimeout as error:
        raise TooLong from error
