"""Where menus are kept: the port, MongoDB, and memory for tests.

What an IVR waits for is read through the hot client; what operators change is written by mongoengine in a
thread. Sessions are written behind the answers (recorder.py): a token carries the session, so none is lost
with an unwritten record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from chassis.bus import Event
from chassis.errors import AlreadyExists, EtagMismatch, ResourceExhausted
from chassis.idempotency import check_repeat
from chassis.mongo import create_once, insert_aggregate, update_aggregate
from routing.menus import counting
from routing.menus.documents import MenuDocument, MenuVersionDocument, SurveyDocument
from routing.menus.engine import SHORTCUTS_MAX
from routing.menus.model import VERSIONS_MAX
from routing.menus.predict import HISTORY_MAX, Use
from routing.menus.records import Counts, Query, Record, Totals, accesses, count

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

SESSIONS, CALLERS, TICKETS, VERSIONS, MENUS = (
    "menu_sessions",
    "menu_callers",
    "menu_tickets",
    "menu_versions",
    "menus",
)
#: MongoDB's code for a taken key.
_DUPLICATE_KEY = 11_000
#: Tries to take the next free number of a version.
NUMBER_TRIES_MAX = 5


class TooManyVersions(ResourceExhausted):
    """{subject} has as many versions as are kept."""

    reason = "TOO_MANY_VERSIONS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What of a menu is in service."""

    menu: str
    #: 0: nothing.
    version: int = 0
    trial: int = 0
    share: float = 0.0
    #: Of the document, for the etag.
    revision: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A version as it is stored."""

    menu: str
    number: int
    content: bytes
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcut:
    """An own short cut."""

    menu: str
    number: str
    key: str
    node: str
    source: int = 0
    at_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CallerFacts:
    """What is known of a caller in one menu."""

    own: tuple[Shortcut, ...] = ()
    uses: tuple[Use, ...] = ()
    has_open_ticket: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """A survey's answers to be kept and told."""

    session: str
    menu: str
    call_id: str
    satisfaction: float
    completed: bool


class MenuStore(Protocol):
    """Keeps menus and what callers did in them. Methods raise pymongo's errors when the database does not
    answer.
    """

    async def add_version(
        self, menu: str, content: bytes, key: str | None, fingerprint: str, now: datetime
    ) -> Stored:
        """A new version, or the one that the same request made before. Raises RequestIdReused,
        TooManyVersions.
        """

    async def version(self, menu: str, number: int) -> Stored | None:
        """A version; number 0 for the newest. None when there is none."""

    async def published(self, menu: str) -> Published | None:
        """What is in service; None for a menu that is not known."""

    async def page(self, after: str, limit: int) -> list[Published]:
        """Menus by id above `after`."""

    async def publish(self, wanted: Published, expected: int, event: Event, now: datetime) -> Published:
        """Puts versions in service, over the revision expected. Raises EtagMismatch, NotFound."""

    async def caller(self, menu: str, number: str, *, tickets: bool) -> CallerFacts:
        """What is known of a caller; of open tickets only if it is asked."""

    async def set_shortcut(self, shortcut: Shortcut) -> None:
        """Sets a short cut, or with an empty node removes it. Raises TooManyShortcuts."""

    async def shortcuts(self, number: str, menu: str) -> list[Shortcut]:
        """A caller's, by menu and key; of all menus when `menu` is empty."""

    async def record(self, rows: Sequence[tuple[Record, bytes]], expires: datetime) -> None:
        """Keeps sessions (with their tokens' bodies), each unless a later step of it is kept; repeatable."""

    async def session(self, id: str) -> bytes | None:
        """The body of a session's newest kept step."""

    async def counts(self, query: Query) -> Counts:
        """What is counted."""

    async def totals(self, query: Query, versions: Sequence[int]) -> dict[int, Totals]:
        """Sums by version."""

    async def accesses(self, query: Query) -> tuple[dict[str, int], dict[str, int]]:
        """Accesses by leaf, and those of regular callers."""

    async def keep_survey(self, survey: Survey, event: Event, now: datetime) -> None:
        """Keeps a survey's answers with their event, once a session."""

    async def queues(self, ids: Sequence[str]) -> set[str]:
        """Those of these queues that exist."""


class TooManyShortcuts(ResourceExhausted):
    """{subject} has as many short cuts in this menu as there may be."""

    reason = "TOO_MANY_SHORTCUTS"


def caller_key(menu: str, number: str) -> str:
    """Key of what one number does in one menu."""
    return f"{menu}|{number}"


class MongoMenus:
    """Menus in MongoDB."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._database = database

    # --- versions ---

    async def add_version(
        self, menu: str, content: bytes, key: str | None, fingerprint: str, now: datetime
    ) -> Stored:
        return await asyncio.to_thread(self._add_version, menu, content, key, fingerprint, now)

    def _add_version(
        self, menu: str, content: bytes, key: str | None, fingerprint: str, now: datetime
    ) -> Stored:
        for _ in range(NUMBER_TRIES_MAX):
            newest = MenuVersionDocument.objects(menu=menu).order_by("-number").only("number").first()
            number = newest.number + 1 if newest is not None else 1
            if number > VERSIONS_MAX:
                raise TooManyVersions(subject=f"menus/{menu}", limit=f"{VERSIONS_MAX} versions")
            document = MenuVersionDocument(id=f"{menu}@{number}", menu=menu, number=number, content=content)
            try:
                made, _ = create_once(document, request_key=key, fingerprint=fingerprint, now=now)
            except AlreadyExists:
                # Somebody else took the number: the next one.
                continue
            self._know(menu, now)
            return _stored(made.to_mongo())
        raise AlreadyExists(resource=f"menus/{menu}")

    @staticmethod
    def _know(menu: str, now: datetime) -> None:
        try:
            insert_aggregate(MenuDocument(id=menu), now=now)
        except AlreadyExists:
            pass

    async def version(self, menu: str, number: int) -> Stored | None:
        where: dict[str, Any] = {"_id": f"{menu}@{number}"} if number else {"menu": menu}
        found = await self._database[VERSIONS].find_one(where, sort=[("number", -1)])
        return _stored(found) if found is not None else None

    async def published(self, menu: str) -> Published | None:
        found = await self._database[MENUS].find_one({"_id": menu})
        return _published(found) if found is not None else None

    async def page(self, after: str, limit: int) -> list[Published]:
        found = self._database[MENUS].find({"_id": {"$gt": after}}).sort("_id", 1).limit(limit)
        return [_published(row) async for row in found]

    async def publish(self, wanted: Published, expected: int, event: Event, now: datetime) -> Published:
        return await asyncio.to_thread(self._publish, wanted, expected, event, now)

    @staticmethod
    def _publish(wanted: Published, expected: int, event: Event, now: datetime) -> Published:
        document = MenuDocument.objects(id=wanted.menu).first()
        document.published, document.trial, document.share = wanted.version, wanted.trial, wanted.share
        update_aggregate(document, [event], expected_version=expected, now=now)
        return _published(document.to_mongo())

    # --- callers ---

    async def caller(self, menu: str, number: str, *, tickets: bool) -> CallerFacts:
        looked = self._database[CALLERS].find_one({"_id": caller_key(menu, number)})
        open_ticket = None
        if tickets:
            theirs = self._database[TICKETS].find_one({"number": number, "open": True}, {"_id": 1})
            found, open_ticket = await asyncio.gather(looked, theirs)
        else:
            found = await looked
        row = found or {}
        return CallerFacts(
            own=_shortcuts(row),
            uses=tuple(Use(leaf=use["leaf"], at_ms=use["at"]) for use in row.get("uses", ())),
            has_open_ticket=open_ticket is not None,
        )

    async def set_shortcut(self, shortcut: Shortcut) -> None:
        new = [] if not shortcut.node else [_own_row(shortcut)]
        others = {
            "$filter": {"input": {"$ifNull": ["$own", []]}, "cond": {"$ne": ["$$this.key", shortcut.key]}}
        }
        own = {"$slice": [{"$concatArrays": [others, new]}, -SHORTCUTS_MAX]}
        values = {
            "menu": {"$literal": shortcut.menu},
            "number": {"$literal": shortcut.number},
            "own": own,
            "used": datetime.now(UTC),
        }
        where = {"_id": caller_key(shortcut.menu, shortcut.number)}
        full = {**where, "$expr": {"$gte": [{"$size": others}, SHORTCUTS_MAX]}}
        if shortcut.node and await self._database[CALLERS].find_one(full, {"_id": 1}) is not None:
            raise TooManyShortcuts(subject="the caller", limit=f"{SHORTCUTS_MAX} short cuts")
        await self._database[CALLERS].update_one(where, [{"$set": values}], upsert=True)

    async def shortcuts(self, number: str, menu: str) -> list[Shortcut]:
        where = {"number": number, **({"menu": menu} if menu else {})}
        found = self._database[CALLERS].find(where).sort("_id", 1).limit(1_000)
        return [shortcut async for row in found for shortcut in _shortcuts(row)]

    # --- sessions ---

    async def record(self, rows: Sequence[tuple[Record, bytes]], expires: datetime) -> None:
        if not rows:
            return
        wanted = [
            (
                {"_id": record.id, "step": {"$lt": record.step}},
                {"$set": {**_session_row(record), "body": body, "expires": expires}},
            )
            for record, body in rows
        ]
        writes = [UpdateOne(*each, upsert=True) for each in wanted]
        try:
            await self._database[SESSIONS].bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            taken = error.details.get("writeErrors", ())
            if {each.get("code") for each in taken} != {_DUPLICATE_KEY}:
                raise
            # This or a later step of the session is kept already; or an earlier one that another router wrote
            # at the same moment.
            again = [UpdateOne(*wanted[each["index"]]) for each in taken]
            await self._database[SESSIONS].bulk_write(again, ordered=False)
        uses = [_use_of(record) for record, _ in rows if record.leaf and record.number]
        if uses:
            await self._database[CALLERS].bulk_write(uses, ordered=False)

    async def session(self, id: str) -> bytes | None:
        found = await self._database[SESSIONS].find_one({"_id": id}, {"body": 1})
        # One of an erased customer has none.
        return bytes(found["body"]) if found is not None and found.get("body") else None

    async def counts(self, query: Query) -> Counts:
        return await counting.counts(self._database[SESSIONS], query)

    async def totals(self, query: Query, versions: Sequence[int]) -> dict[int, Totals]:
        return await counting.totals(self._database[SESSIONS], query, versions)

    async def accesses(self, query: Query) -> tuple[dict[str, int], dict[str, int]]:
        return await counting.accesses(self._database[SESSIONS], query)

    async def keep_survey(self, survey: Survey, event: Event, now: datetime) -> None:
        document = SurveyDocument(
            id=survey.session,
            menu=survey.menu,
            call_id=survey.call_id,
            satisfaction=survey.satisfaction,
            completed=survey.completed,
        )
        try:
            await asyncio.to_thread(insert_aggregate, document, [event], now=now)
        except AlreadyExists:
            # A repeated step: it was told.
            pass

    async def queues(self, ids: Sequence[str]) -> set[str]:
        found = self._database["queues"].find({"_id": {"$in": list(ids)}}, {"_id": 1})
        return {row["_id"] async for row in found}


def _stored(row: Any) -> Stored:
    return Stored(
        menu=row["menu"],
        number=row["number"],
        content=bytes(row["content"]),
        created_at=row.get("created_at"),
    )


def _published(row: Any) -> Published:
    return Published(
        menu=row["_id"],
        version=row.get("published") or 0,
        trial=row.get("trial") or 0,
        share=row.get("share") or 0.0,
        revision=row["version"],
    )


def _shortcuts(row: dict[str, Any]) -> tuple[Shortcut, ...]:
    return tuple(
        Shortcut(
            menu=row["menu"],
            number=row["number"],
            key=o["key"],
            node=o["node"],
            source=o["source"],
            at_ms=o["at"],
        )
        for o in sorted(row.get("own", ()), key=lambda own: own["key"])
    )


def _own_row(shortcut: Shortcut) -> dict[str, Any]:
    values = {"key": shortcut.key, "node": shortcut.node, "source": shortcut.source, "at": shortcut.at_ms}
    # What a client said is a value, never an expression.
    return {name: {"$literal": value} for name, value in values.items()}


def _session_row(record: Record) -> dict[str, Any]:
    return {
        "menu": record.menu,
        "version": record.version,
        "number": record.number,
        "customer": record.customer,
        "began": record.began_ms,
        "last": record.last_ms,
        "step": record.step,
        "outcome": record.outcome.value,
        "way": list(record.way),
        "leaf": record.leaf,
        "presses": record.presses,
        "listened": record.listened_ms,
        "visits": [list(visit) for visit in record.visits],
    }


def _use_of(record: Record) -> UpdateOne:
    """The newest uses of a caller with this one among them, once."""
    use = {
        "session": {"$literal": record.id},
        "leaf": {"$literal": record.leaf},
        "at": {"$literal": record.last_ms},
    }
    others = {
        "$filter": {"input": {"$ifNull": ["$uses", []]}, "cond": {"$ne": ["$$this.session", record.id]}}
    }
    values = {
        "menu": {"$literal": record.menu},
        "number": {"$literal": record.number},
        "uses": {"$slice": [{"$concatArrays": [others, [use]]}, -HISTORY_MAX]},
        "used": datetime.now(UTC),
    }
    return UpdateOne({"_id": caller_key(record.menu, record.number)}, [{"$set": values}], upsert=True)


@dataclass(eq=False, slots=True)
class MemoryMenus:
    """A `MenuStore` in memory."""

    versions: dict[tuple[str, int], Stored] = field(default_factory=dict)
    requests: dict[str, tuple[str, Stored]] = field(default_factory=dict)
    menus: dict[str, Published] = field(default_factory=dict)
    own: dict[tuple[str, str, str], Shortcut] = field(default_factory=dict)
    uses: dict[tuple[str, str], list[tuple[str, Use]]] = field(default_factory=dict)
    #: Numbers with an open ticket.
    tickets: set[str] = field(default_factory=set)
    rows: dict[str, tuple[Record, bytes]] = field(default_factory=dict)
    surveys: dict[str, tuple[Survey, Event]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    known_queues: set[str] = field(default_factory=set)

    async def add_version(
        self, menu: str, content: bytes, key: str | None, fingerprint: str, now: datetime
    ) -> Stored:
        if key is not None and key in self.requests:
            check_repeat(self.requests[key][0], fingerprint)
            return self.requests[key][1]
        number = 1 + max((n for id, n in self.versions if id == menu), default=0)
        stored = Stored(menu=menu, number=number, content=content, created_at=now)
        self.versions[menu, number] = stored
        self.menus.setdefault(menu, Published(menu=menu))
        if key is not None:
            self.requests[key] = (fingerprint, stored)
        return stored

    async def version(self, menu: str, number: int) -> Stored | None:
        newest = max((n for id, n in self.versions if id == menu), default=0)
        return self.versions.get((menu, number or newest))

    async def published(self, menu: str) -> Published | None:
        return self.menus.get(menu)

    async def page(self, after: str, limit: int) -> list[Published]:
        return [self.menus[id] for id in sorted(self.menus) if id > after][:limit]

    async def publish(self, wanted: Published, expected: int, event: Event, now: datetime) -> Published:
        known = self.menus[wanted.menu]
        if expected != known.revision:
            raise EtagMismatch(resource=f"menus/{wanted.menu}")
        self.menus[wanted.menu] = replace(wanted, revision=known.revision + 1)
        self.events.append(event)
        return self.menus[wanted.menu]

    async def caller(self, menu: str, number: str, *, tickets: bool) -> CallerFacts:
        return CallerFacts(
            own=tuple(await self.shortcuts(number, menu)),
            uses=tuple(use for _, use in self.uses.get((menu, number), ())),
            has_open_ticket=tickets and number in self.tickets,
        )

    async def set_shortcut(self, shortcut: Shortcut) -> None:
        key = (shortcut.menu, shortcut.number, shortcut.key)
        if not shortcut.node:
            self.own.pop(key, None)
            return
        others = [k for k in self.own if k[:2] == key[:2] and k != key]
        if len(others) >= SHORTCUTS_MAX:
            raise TooManyShortcuts(subject="the caller", limit=f"{SHORTCUTS_MAX} short cuts")
        self.own[key] = shortcut

    async def shortcuts(self, number: str, menu: str) -> list[Shortcut]:
        mine = [key for key in sorted(self.own) if key[1] == number and menu in ("", key[0])]
        return [self.own[key] for key in mine]

    async def record(self, rows: Sequence[tuple[Record, bytes]], expires: datetime) -> None:
        for record, body in rows:
            known = self.rows.get(record.id)
            if known is None or known[0].step < record.step:
                self.rows[record.id] = (record, body)
            if record.leaf and record.number:
                uses = self.uses.setdefault((record.menu, record.number), [])
                uses[:] = [use for use in uses if use[0] != record.id]
                uses.append((record.id, Use(leaf=record.leaf, at_ms=record.last_ms)))
                del uses[:-HISTORY_MAX]

    async def session(self, id: str) -> bytes | None:
        return self.rows[id][1] if id in self.rows else None

    def _records(self) -> Iterable[Record]:
        return [record for record, _ in self.rows.values()]

    async def counts(self, query: Query) -> Counts:
        return count(self._records(), query)

    async def totals(self, query: Query, versions: Sequence[int]) -> dict[int, Totals]:
        by_version = {v: [r for r in self._records() if r.version == v] for v in versions}
        return {v: count(records, query).totals for v, records in by_version.items()}

    async def accesses(self, query: Query) -> tuple[dict[str, int], dict[str, int]]:
        return accesses(self._records(), query)

    async def keep_survey(self, survey: Survey, event: Event, now: datetime) -> None:
        self.surveys.setdefault(survey.session, (survey, event))

    async def queues(self, ids: Sequence[str]) -> set[str]:
        return set(ids) & self.known_queues
