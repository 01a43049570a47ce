"""Where administrative acts are kept: written by the worker as they come on the bus, read by supervisors.

An act's key is its event's id, so one that comes twice is kept once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mongoengine import DictField, Document, IntField, StringField
from pymongo.write_concern import WriteConcern

from callmesh.routing.v1 import events_pb2
from chassis.bus import Event
from chassis.clock import to_ms
from routing.convert import timestamp

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: Collection of the acts.
AUDIT = "audit"


class AuditDocument(Document):
    """One act."""

    meta: ClassVar = {
        "collection": AUDIT,
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [("-at", "-id"), ("actor", "-at", "-id"), ("resource", "-at", "-id")],
    }
    #: Id of the event that told it.
    id = StringField(primary_key=True)
    #: Business time, milliseconds since 1970.
    at = IntField()
    actor = StringField()
    method = StringField()
    resource = StringField()
    reason = StringField()
    details = DictField()


class ActKeeper(Protocol):
    """Keeps acts."""

    def keep(self, event: Event) -> None:
        """Keeps one, if it is not kept yet. Raises pymongo's errors."""


class MongoAudit:
    """Acts in MongoDB, blockingly; mongoengine's default connection, which need not be there yet."""

    def keep(self, event: Event) -> None:
        act = event.message(events_pb2.AdministrativeAct)
        values = {
            "at": to_ms(event.time),
            "actor": act.actor,
            "method": act.method,
            "resource": act.resource,
            "reason": act.reason,
            # A map's keys may have dots, which MongoDB's paths do not: kept as pairs.
            "details": {"pairs": sorted(act.details.items())},
        }
        collection = AuditDocument._get_collection().with_options(write_concern=WriteConcern(w="majority"))
        collection.update_one({"_id": event.id}, {"$setOnInsert": values}, upsert=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActQuery:
    """One page of acts, newest first."""

    #: From (inclusive) to (exclusive), milliseconds; 0 for no bound.
    from_ms: int = 0
    to_ms: int = 0
    actor: str = ""
    resource: str = ""
    #: (when, id) of the last act of the page before.
    after: tuple[int, str] | None = None
    limit: int = 50


class AuditReader:
    """Reads through the hot client. Raises pymongo's errors when the database does not answer."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._acts = database[AUDIT]

    async def page(self, query: ActQuery) -> list[tuple[tuple[int, str], events_pb2.AdministrativeAct]]:
        """(key, act) of a page."""
        where: dict[str, Any] = {}
        if query.from_ms or query.to_ms:
            where["at"] = {"$gte": query.from_ms, **({"$lt": query.to_ms} if query.to_ms else {})}
        for name in ("actor", "resource"):
            if getattr(query, name):
                where[name] = getattr(query, name)
        if query.after is not None:
            at, key = query.after
            where["$or"] = [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": key}}]
        found = self._acts.find(where).sort([("at", -1), ("_id", -1)]).limit(query.limit)
        return [((row["at"], row["_id"]), _act(row)) async for row in found]


def _act(row: dict[str, Any]) -> events_pb2.AdministrativeAct:
    return events_pb2.AdministrativeAct(
        actor=row["actor"],
        method=row["method"],
        resource=row["resource"],
        event_time=timestamp(row["at"]),
        reason=row["reason"],
        details=dict(row["details"].get("pairs", ())),
    )
