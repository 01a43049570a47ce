"""The audit log of administrative acts: who did what, when, to which resource, and what that changed.

1. An act is recorded before it is done; when it cannot be recorded, it is refused (UNAVAILABLE). What
   became of it is added afterwards: a record without an outcome is one whose process died in the middle, or
   whose caller did not wait for the answer; whether it was done is then seen at the resource alone.
2. A record has no personal data: the caller's name, the method, the resource's name, the request's digest.
   What the act changed is said by two digests of the resource: `before`, as the last recorded act left it,
   and `after`. Whoever has a resource in hand can tell whether it is the one that was recorded, and nobody
   else learns anything.
3. Which RPCs are acts is said by scopes, in each service's `lifecycle.py`. One whose request is a stream is
   one act, recorded with its first message, before the handler sees that.
4. What a command does to the databases themselves is an act as well (`noted`).
5. Everybody with the scope `<service>.acts.read` may read them (auditservice.py).
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
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
    from pymongo.database import Database

#: Collection of the records, in each service's database.
COLLECTION = "acts"
#: How long they are kept, days: six years.
KEPT_DAYS = 6 * 365
#: Longest name of a resource that is kept, characters.
NAME_CHARACTERS_MAX = 300
#: Outcome of an act that was begun.
BEGUN = "BEGUN"
#: Fields of requests that name what an act is about, the first that is there.
_NAMES = ("name", "parent", "region", "queue", "agent", "import_id")

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
            {"fields": ["actor", "-at", "-id"], "name": "actor_at_id"},
            {"fields": ["resource", "-at", "-id"], "name": "resource_at_id"},
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
    #: SHA-256 of the request (of a stream's messages one after another), and of the resource before and
    #: after; empty where it is not known.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ActQuery:
    """One page of acts, newest first."""

    #: Recorded from (inclusive) to (exclusive), milliseconds since 1970; None for no bound.
    from_ms: int | None = None
    to_ms: int | None = None
    #: Empty for anybody's, and for any resource.
    actor: str = ""
    resource: str = ""
    #: (when, id) of the last act of the page before.
    after: tuple[int, str] | None = None
    limit: int = 50

    def where(self) -> dict[str, Any]:
        """As MongoDB takes it."""
        at = {
            sign: bound for sign, bound in (("$gte", self.from_ms), ("$lt", self.to_ms)) if bound is not None
        }
        found: dict[str, Any] = {"at": at} if at else {}
        found |= {name: said for name in ("actor", "resource") if (said := getattr(self, name))}
        if self.after is not None:
            when, id = self.after
            found["$or"] = [{"at": {"$lt": when}}, {"at": when, "_id": {"$lt": id}}]
        return found


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

    def recorded(self, method: str, handler: Handler, *, stream: bool = False) -> Handler:
        """A handler whose calls are recorded; those that only validate are none. `stream`: it gets an
        iterator of messages in place of a request.
        """

        async def record(request: Any, context: Any) -> Any:
            entry = _Entry(self, callcontext.current_identity().subject, method)
            if stream:
                request = entry.heard(request)
            else:
                await entry.hear(request)
            try:
                answer = await handler(request, context)
            except Exception as error:
                await entry.end(translate(error).code.value)
                raise
            await entry.end("OK", answer)
            return answer

        return record

    async def page(self, query: ActQuery) -> list[dict[str, Any]]:
        """Acts as they are kept. Pymongo's errors."""
        found = self._acts.find(query.where()).sort([("at", -1), ("_id", -1)]).limit(query.limit)
        rows: list[dict[str, Any]] = await found.to_list(query.limit)
        return rows

    async def begin(self, actor: str, method: str, request: Any) -> Act:
        """Records that an act begins. Raises ActNotRecorded."""
        act = Act(id=new_id(), resource=resource_of(request))
        record = _begun(act, actor, method) | {"request": digest(_bytes(request))}
        try:
            await self._acts.insert_one(record)
        except PyMongoError as error:
            _log.warning("acts.unrecorded", method=method, error=type(error).__name__)
            raise ActNotRecorded(why="the database does not answer", retry_seconds=1.0) from None
        return act

    async def end(self, act: Act, outcome: str, answer: Any = None, request: str = "") -> None:
        """Adds what became of it, and the `request`'s digest where that was not known before; what cannot be
        added is logged, for the act is done.
        """
        _acts.labels(self._service, outcome).inc()
        change: dict[str, Any] = {"outcome": outcome} | ({"request": request} if request else {})
        named = "" if answer is None else resource_of(answer)
        try:
            if named:
                change |= {"resource": named, "after": digest(_bytes(answer))}
                last = await self._acts.find_one(
                    {"resource": named, "after": {"$exists": True}},
                    {"after": 1},
                    sort=[("at", -1), ("_id", -1)],
                )
                change["before"] = last["after"] if last else ""
            await self._acts.update_one({"_id": act.id}, {"$set": change})
        except PyMongoError as error:
            _log.warning("acts.outcome_lost", act=act.id, outcome=outcome, error=type(error).__name__)


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _begun(act: Act, actor: str, method: str) -> dict[str, Any]:
    """A record of an act that begins."""
    return {
        "_id": act.id,
        "at": time.time_ns() // 1_000_000,
        "actor": actor,
        "method": method,
        "resource": act.resource,
        "outcome": BEGUN,
    }


class _Entry:
    """One call on its way into the audit log."""

    def __init__(self, acts: Acts, actor: str, method: str) -> None:
        self._acts, self._actor, self._method = acts, actor, method
        self._act: Act | None = None
        self._messages = 0
        self._digest = hashlib.sha256()

    async def hear(self, message: Any) -> None:
        """Records the act with its first message. Raises ActNotRecorded."""
        self._messages += 1
        if self._messages == 1 and not getattr(message, "validate_only", False):
            self._act = await self._acts.begin(self._actor, self._method, message)
        if self._act is not None:
            self._digest.update(_bytes(message))

    async def heard(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The same messages, each heard before it is handed on."""
        async for message in messages:
            await self.hear(message)
            yield message

    async def end(self, outcome: str, answer: Any = None) -> None:
        """Adds what became of it; of a stream, what was asked in all."""
        if self._act is not None:
            whole = self._digest.hexdigest() if self._messages > 1 else ""
            await self._acts.end(self._act, outcome, answer, whole)


@contextmanager
def noted(database: Database[dict[str, Any]], *, actor: str, method: str, resource: str) -> Iterator[None]:
    """Records what a command does to a service's database: before it is done, and what became of it.
    Pymongo's errors when it cannot be recorded: then it is not done.
    """
    records = database.get_collection(COLLECTION, write_concern=WriteConcern(w="majority"))
    act = Act(id=new_id(), resource=resource[:NAME_CHARACTERS_MAX])
    records.insert_one(_begun(act, actor, method))
    outcome = "OK"
    try:
        yield
    except BaseException as error:
        outcome = translate(error).code.value if isinstance(error, Exception) else "CANCELLED"
        raise
    finally:
        try:
            records.update_one({"_id": act.id}, {"$set": {"outcome": outcome}})
        except PyMongoError as error:
            _log.warning("acts.outcome_lost", act=act.id, outcome=outcome, error=type(error).__name__)
