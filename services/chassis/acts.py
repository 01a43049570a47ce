"""The audit log of administrative acts: who did what, when, to which resource, and what that changed.

1. An act is recorded before it is done; when it cannot be recorded, it is refused (UNAVAILABLE). What
   became of it is added afterwards: a record without an outcome is one whose process died in the middle, or
   whose caller did not wait for the answer; whether it was done is then seen at the resource alone.
2. A record has no personal data: the caller's name, the method, the resource's name, the request's digest.
   What the act changed is said by two digests of the resource: `before`, as the last recorded act left it,
   and `after`. Whoever has a resource in hand can tell whether it is the one that was recorded, and nobody
   else learns anything.
3. Which RPCs are acts is said by scopes, in each service's `lifecycle.py`.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mongoengine import Document, IntField, StringField
from pymongo import IndexModel
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from chassis import callcontext, logs, metrics
from chassis.errors import Unavailable, translate
from chassis.ids import new_id

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: Collection of the records, in each service's database.
COLLECTION = "acts"
#: How long they are kept, days: six years.
KEPT_DAYS = 6 * 365
#: Longest name of a resource that is kept, characters.
NAME_CHARACTERS_MAX = 300
#: Outcome of an act that was begun.
BEGUN = "BEGUN"
#: Fields of requests that name what an act is about, the first that is there.
_NAMES = ("name", "parent", "region", "queue", "agent")

Handler = Callable[[Any, Any], Awaitable[Any]]

_log = logs.get_logger(__name__)
_acts = metrics.counter(
    "callmesh_acts_total", "Administrative acts by what became of them.", ("service", "outcome")
)


class ActNotRecorded(Unavailable):
    """The audit log cannot be written, so nothing was done: {why}."""

    reason = "ACT_NOT_RECORDED"


class ActDocument(Document):
    """One act."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": COLLECTION,
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [
            {"fields": ["-at", "-id"], "name": "at"},
            {"fields": ["actor", "-at"], "name": "actor_at"},
            {"fields": ["resource", "-at"], "name": "resource_at"},
        ],
    }
    id = StringField(primary_key=True)
    #: Real time, milliseconds since 1970.
    at = IntField()
    actor = StringField()
    method = StringField()
    resource = StringField()
    #: BEGUN, OK, or the code of the error.
    outcome = StringField()
    #: SHA-256 of the request, and of the resource before and after; empty where it is not known.
    request = StringField()
    before = StringField()
    after = StringField()


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def resource_of(message: Any) -> str:
    """The resource that a request or an answer names; empty where it names none."""
    for name in _NAMES:
        value = getattr(message, name, "")
        if isinstance(value, str) and value:
            return value[:NAME_CHARACTERS_MAX]
    return ""


@dataclass(kw_only=True, slots=True)
class Act:
    """One that was begun."""

    id: str
    resource: str


class Acts:
    """Records acts in a service's database. Needs a running event loop."""

    def __init__(
        self, service: str, database: Callable[[], AsyncDatabase[dict[str, Any]]], scopes: frozenset[str]
    ) -> None:
        """`database` is asked for with the first act; `scopes` are those whose RPCs are acts."""
        self._service = service
        self._database = database
        self.scopes = scopes

    @functools.cached_property
    def _acts(self) -> Any:
        return self._database().get_collection(COLLECTION, write_concern=WriteConcern(w="majority"))

    async def prepare(self) -> None:
        """Makes the indexes that readers need. Pymongo's errors."""
        specs = ActDocument._meta["index_specs"]
        await self._acts.create_indexes([IndexModel(spec["fields"], name=spec["name"]) for spec in specs])

    def recorded(self, method: str, handler: Handler) -> Handler:
        """A handler whose calls are recorded; those that only validate are none."""

        async def record(request: Any, context: Any) -> Any:
            if getattr(request, "validate_only", False):
                return await handler(request, context)
            act = await self.begin(callcontext.current_identity().subject, method, request)
            try:
                answer = await handler(request, context)
            except Exception as error:
                await self.end(act, translate(error).code.value)
                raise
            await self.end(act, "OK", answer)
            return answer

        return record

    async def begin(self, actor: str, method: str, request: Any) -> Act:
        """Records that an act begins. Raises ActNotRecorded."""
        act = Act(id=new_id(), resource=resource_of(request))
        record = {
            "_id": act.id,
            "at": time.time_ns() // 1_000_000,
            "actor": actor,
            "method": method,
            "resource": act.resource,
            "outcome": BEGUN,
            "request": digest(request.SerializeToString(deterministic=True)),
        }
        try:
            await self._acts.insert_one(record)
        except PyMongoError as error:
            _log.warning("acts.unrecorded", method=method, error=type(error).__name__)
            raise ActNotRecorded(why="the database does not answer", retry_seconds=1.0) from None
        return act

    async def end(self, act: Act, outcome: str, answer: Any = None) -> None:
        """Adds what became of it; what cannot be added is logged, for the act is done."""
        _acts.labels(self._service, outcome).inc()
        change: dict[str, Any] = {"outcome": outcome}
        named = "" if answer is None else resource_of(answer)
        try:
            if named:
                change |= {"resource": named, "after": digest(answer.SerializeToString(deterministic=True))}
                last = await self._acts.find_one(
                    {"resource": named, "after": {"$exists": True}}, {"after": 1}, sort=[("at", -1)]
                )
                change["before"] = last["after"] if last else ""
            await self._acts.update_one({"_id": act.id}, {"$set": change})
        except PyMongoError as error:
            _log.warning("acts.outcome_lost", act=act.id, outcome=outcome, error=type(error).__name__)
