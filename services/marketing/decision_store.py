"""The log of decisions: what was recommended to whom, and what became of it. The port and its MongoDB side;
a new decision is written by the path of a recommendation (reader.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import structs

from chassis.errors import EtagMismatch, NotFound
from chassis.mongo import update_aggregate
from marketing.documents import DecisionDocument, decision_fields, decision_from_raw
from marketing.engine import DecisionNotFound
from marketing.model import Decision

if TYPE_CHECKING:
    from chassis.bus import Event


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionFilter:
    """Which decisions a list is about; None leaves a field open."""

    customer: str | None = None
    call_id: str | None = None
    open: bool | None = None

    def holds(self, decision: Decision) -> bool:
        """Whether a decision is meant."""
        return (
            self.customer in (None, decision.customer)
            and self.call_id in (None, decision.contact.call_id)
            and self.open in (None, decision.outcome is None)
        )


class DecisionStore(Protocol):
    """Decisions, as `store.Store` has them."""

    def decision(self, decision_id: str) -> Decision:
        """The decision; DecisionNotFound."""

    def decisions(self, query: DecisionFilter, limit: int, below: str | None) -> list[Decision]:
        """At most `limit` decisions with an id below `below` (None: all), newest first."""

    def decisions_made(
        self, start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
    ) -> list[Decision]:
        """At most `limit` decisions made from `start` on and before `end`, newest first, beyond one of (time,
        id).
        """

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

    def forget_strangers(self, before: datetime, limit: int) -> int:
        """Takes number and note out of at most so many decisions of before then that were made for nobody
        known; how many.
        """


def hide_strangers(wanted: Mapping[str, Any]) -> int:
    """Takes what is personal out of decisions that were made for nobody known; how many."""
    gone = {"number": "", "outcome.note": "", "stranger": ""}
    # A closing in flight meets another version, and is done again without the number.
    change = {"$unset": gone, "$inc": {"version": 1}}
    strangers = {**wanted, "stranger": True}
    return DecisionDocument._get_collection().update_many(strangers, change).modified_count


#: The order of the index over when decisions were made.
NEWEST = [("created_at", -1), ("_id", -1)]


def made_within(start: datetime, end: datetime, after: tuple[datetime, str] | None) -> dict[str, Any]:
    """Which decisions `decisions_made` asks for."""
    if after is None:
        return {"created_at": {"$gte": start, "$lt": end}}
    at, id = after
    # Together with the bound on both: the scan begins at the place, and not at the end of the span.
    beyond = [{"created_at": {"$lt": at}}, {"_id": {"$lt": id}}]
    return {"created_at": {"$gte": start, "$lte": at}, "$or": beyond}


class MongoDecisionStore:
    """Decisions in MongoDB."""

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
        found = DecisionDocument._get_collection().find(condition, {"outbox": 0})
        return [decision_from_raw(raw) for raw in found.sort("_id", -1).limit(limit)]

    def decisions_made(
        self, start: datetime, end: datetime, limit: int, after: tuple[datetime, str] | None
    ) -> list[Decision]:
        """As the port says."""
        found = DecisionDocument._get_collection().find(made_within(start, end, after), {"outbox": 0})
        return [decision_from_raw(raw) for raw in found.sort(NEWEST).limit(limit)]

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

    def forget_strangers(self, before: datetime, limit: int) -> int:
        """As the port says."""
        decisions = DecisionDocument._get_collection()
        old = decisions.find({"stranger": True, "created_at": {"$lt": before}}, {"_id": 1}).limit(limit)
        return hide_strangers({"_id": {"$in": [raw["_id"] for raw in old]}})
