"""Where half-hour figures are kept: the port, MongoDB, and memory for tests.

A row is written only over the version that it was read as. So of two that count (one slept through the end
of its lease) the slower one notices, and begins again from what is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mongoengine import DictField, Document, IntField, StringField
from pymongo import ReplaceOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from routing.cursors import move_cursor
from routing.reports import AGENT, BLOCKED, QUEUE, Row, slot_of

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase
    from pymongo.collection import Collection
    from pymongo.database import Database

#: Collections; the documents below own their schema.
REPORTS, CURSORS = "interval_reports", "report_cursors"
#: Rows of one write.
WRITE_ROWS_MAX = 1_000
#: MongoDB's code for a taken key.
_DUPLICATE_KEY = 11_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """How far a shard's journal is counted."""

    #: Last block that is in the rows; 0 before the first.
    sequence: int = 0
    nonce: str = ""
    #: Its business time.
    now_ms: int = 0


class ReportStore(Protocol):
    """Keeps rows and cursors. Methods raise pymongo's errors when the database does not answer."""

    def counted(self, shard: str) -> Counted:
        """How far a shard is counted; at 0 for one that is not."""

    def load(self, shard: str, start_ms: int) -> Iterable[Row]:
        """The rows of one half-hour."""

    def write(self, shard: str, rows: Sequence[Row]) -> bool:
        """Writes changed rows over the versions that they were read as; False when another has written one of
        them since, and then any of them may have been written or not.
        """

    def move(self, shard: str, old: Counted, new: Counted) -> bool:
        """Moves the cursor; False, and nothing changed, when it does not stand at `old`."""

    def prune(self, shard: str, before_ms: int) -> None:
        """Forgets half-hours that began before."""


class IntervalReportDocument(Document):
    """One half-hour of a queue or agent; see reports.Row."""

    meta: ClassVar = {
        "collection": REPORTS,
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [("kind", "start", "shard", "subject"), ("shard", "kind", "start", "subject")],
    }
    #: "shard|kind|subject|start".
    id = StringField(primary_key=True)
    shard = StringField()
    kind = StringField()
    subject = StringField()
    #: Milliseconds since 1970.
    start = IntField()
    figures = DictField()
    counted_to = IntField()
    timed_to = IntField()
    version = IntField()
    #: Of kind "blocked" alone, in place of figures: process -> reason -> calls; see blocked.py.
    parts = DictField()


class ReportCursorDocument(Document):
    """How far a shard's journal is counted."""

    meta: ClassVar = {"collection": CURSORS, "auto_create_index": False, "strict": False}
    #: Shard.
    id = StringField(primary_key=True)
    sequence = IntField()
    nonce = StringField()
    now = IntField()


def _key(shard: str, row: Row) -> str:
    return f"{shard}|{row.kind}|{row.subject}|{row.start_ms}"


def _document(shard: str, row: Row) -> dict[str, Any]:
    return {
        "shard": shard,
        "kind": row.kind,
        "subject": row.subject,
        "start": row.start_ms,
        "figures": row.figures,
        "counted_to": row.counted_to,
        "timed_to": row.timed_to_ms,
        "version": row.version + 1,
    }


def _blocked(document: Mapping[str, Any]) -> dict[str, int]:
    """The figures of calls refused before they waited, by `BLOCKED` and the reason, of all processes."""
    found: Counter[str] = Counter()
    for part in document.get("parts", {}).values():
        for reason, count in part.items():
            found[f"{BLOCKED}_{reason}"] += int(count)
    return dict(found)


def row_of(document: dict[str, Any]) -> Row:
    """A stored row."""
    if document["kind"] == BLOCKED:
        return Row(
            kind=BLOCKED,
            subject=document["subject"],
            start_ms=document["start"],
            figures=_blocked(document),
        )
    return Row(
        kind=document["kind"],
        subject=document["subject"],
        start_ms=document["start"],
        figures=dict(document["figures"]),
        counted_to=document["counted_to"],
        timed_to_ms=document["timed_to"],
        version=document["version"],
    )


class MongoReports:
    """Rows in MongoDB, blockingly: for the worker."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        options: dict[str, Any] = {
            "write_concern": WriteConcern(w="majority"),
            "read_concern": ReadConcern("majority"),
            "read_preference": ReadPreference.PRIMARY,
        }
        self._rows: Collection[dict[str, Any]] = database.get_collection(REPORTS, **options)
        self._cursors: Collection[dict[str, Any]] = database.get_collection(CURSORS, **options)

    def counted(self, shard: str) -> Counted:
        found = self._cursors.find_one({"_id": shard})
        if found is None:
            return Counted()
        return Counted(sequence=found["sequence"], nonce=found["nonce"], now_ms=found["now"])

    def load(self, shard: str, start_ms: int) -> Iterator[Row]:
        for kind in (QUEUE, AGENT):
            for document in self._rows.find({"shard": shard, "kind": kind, "start": start_ms}):
                yield row_of(document)

    def write(self, shard: str, rows: Sequence[Row]) -> bool:
        for first in range(0, len(rows), WRITE_ROWS_MAX):
            if not self._write_part(shard, rows[first : first + WRITE_ROWS_MAX]):
                return False
        return True

    def _write_part(self, shard: str, rows: Sequence[Row]) -> bool:
        # A new row's version is 0, which no stored one has: if it is there by now, its key is taken.
        operations = [
            ReplaceOne(
                {"_id": _key(shard, row), "version": row.version},
                _document(shard, row),
                upsert=row.version == 0,
            )
            for row in rows
        ]
        try:
            result = self._rows.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            codes = {each.get("code") for each in error.details.get("writeErrors", ())}
            if codes == {_DUPLICATE_KEY}:
                return False
            raise
        return result.matched_count + result.upserted_count == len(rows)

    def move(self, shard: str, old: Counted, new: Counted) -> bool:
        values = {"sequence": new.sequence, "nonce": new.nonce, "now": new.now_ms}
        return move_cursor(self._cursors, shard, old.sequence, values)

    def prune(self, shard: str, before_ms: int) -> None:
        for kind in (QUEUE, AGENT, BLOCKED):
            self._rows.delete_many({"shard": shard, "kind": kind, "start": {"$lt": before_ms}})


@dataclass(eq=False, slots=True)
class MemoryReports:
    """A `ReportStore` in memory."""

    rows: dict[tuple[str, str, str, int], Row] = field(default_factory=dict)
    cursors: dict[str, Counted] = field(default_factory=dict)
    #: So many rows are written before a writer breaks off with ConnectionError; None: never.
    breaks_after: int | None = None

    def counted(self, shard: str) -> Counted:
        return self.cursors.get(shard, Counted())

    def load(self, shard: str, start_ms: int) -> Iterator[Row]:
        for key, row in self.rows.items():
            if key[0] == shard and row.start_ms == start_ms:
                yield replace(row, figures=dict(row.figures))

    def write(self, shard: str, rows: Sequence[Row]) -> bool:
        for row in rows:
            if self.breaks_after is not None:
                if self.breaks_after == 0:
                    raise ConnectionError("the writer died")
                self.breaks_after -= 1
            stored = self.rows.get((shard, *row.key))
            if (stored.version if stored is not None else 0) != row.version:
                return False
            self.rows[(shard, *row.key)] = replace(
                row, figures=dict(row.figures), version=row.version + 1, dirty=False
            )
        return True

    def move(self, shard: str, old: Counted, new: Counted) -> bool:
        if self.counted(shard).sequence != old.sequence:
            return False
        self.cursors[shard] = new
        return True

    def prune(self, shard: str, before_ms: int) -> None:
        for key in [k for k in self.rows if k[0] == shard and k[3] < before_ms]:
            del self.rows[key]


# --- reading, for the gRPC process ---


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportQuery:
    """One page of rows, ordered by half-hour, region and subject."""

    kind: str
    from_ms: int
    #: Exclusive.
    to_ms: int
    #: Empty for all.
    shard: str = ""
    #: (start, shard, subject) of the last row of the page before.
    after: tuple[int, str, str] | None = None
    limit: int = 50


@dataclass(slots=True)
class _Day:
    """What is over of a shard's day."""

    since_ms: int
    #: Half-hours before this one are in `sums`.
    upto_ms: int
    sums: dict[str, dict[str, int]] = field(default_factory=dict)


class ReportReader:
    """Reads through the hot client. Methods raise pymongo's errors when the database does not answer."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._rows = database[REPORTS]
        self._cursors = database[CURSORS]
        self._days: dict[str, _Day] = {}

    async def page(self, query: ReportQuery) -> list[tuple[str, Row]]:
        """(shard, row) of a page."""
        found = {(row.start_ms, shard, row.subject): row for shard, row in await self._page(query)}
        if query.kind == QUEUE:
            for shard, row in await self._page(replace(query, kind=BLOCKED)):
                key = (row.start_ms, shard, row.subject)
                counted = found.setdefault(key, replace(row, kind=QUEUE, figures={}))
                counted.figures.update(row.figures)
        return [(key[1], found[key]) for key in sorted(found)[: query.limit]]

    async def _page(self, query: ReportQuery) -> list[tuple[str, Row]]:
        where: dict[str, Any] = {"kind": query.kind, "start": {"$gte": query.from_ms, "$lt": query.to_ms}}
        if query.shard:
            where["shard"] = query.shard
        if query.after is not None:
            start, shard, subject = query.after
            where["$or"] = [
                {"start": {"$gt": start}},
                {"start": start, "shard": {"$gt": shard}},
                {"start": start, "shard": shard, "subject": {"$gt": subject}},
            ]
        found = self._rows.find(where).sort([("start", 1), ("shard", 1), ("subject", 1)]).limit(query.limit)
        return [(str(document["shard"]), row_of(document)) async for document in found]

    async def day(self, shard: str, since_ms: int) -> tuple[dict[str, dict[str, int]], int]:
        """(figures of each queue since an instant, business time up to which they are counted; 0 for never).

        Half-hours that are over are read once.
        """
        cursor = await self._cursors.find_one({"_id": shard})
        counted_ms = int(cursor["now"]) if cursor is not None else 0
        day = self._days.get(shard)
        if day is None or day.since_ms != since_ms or day.upto_ms > counted_ms:
            day = self._days[shard] = _Day(since_ms, since_ms)
        present_ms = max(slot_of(counted_ms), since_ms)
        if present_ms > day.upto_ms:
            await self._add(day.sums, shard, day.upto_ms, present_ms)
            day.upto_ms = present_ms
        sums = {queue: dict(figures) for queue, figures in day.sums.items()}
        await self._add(sums, shard, present_ms, None)
        return sums, counted_ms

    async def _add(
        self, sums: dict[str, dict[str, int]], shard: str, from_ms: int, to_ms: int | None
    ) -> None:
        span = {"$gte": from_ms} if to_ms is None else {"$gte": from_ms, "$lt": to_ms}
        where = {"shard": shard, "kind": QUEUE, "start": span}
        async for document in self._rows.find(where, {"subject": 1, "figures": 1}):
            figures = sums.setdefault(document["subject"], {})
            for name, amount in document["figures"].items():
                figures[name] = figures.get(name, 0) + amount
