"""The event log: what a service told the bus lately, in one order, for partners who read it with a cursor.

Rules:
1. The relays of the worker write an event here before they publish it (`Recorded`), so the log knows whatever
   the bus knows, and the outbox or the journal knows it until both do. What a relay publishes again is found
   by its id and written once.
2. `_id` is the sequence: 1, 2, 3, ... without a gap. A writer puts its events behind the last one that a
   majority has; two writers at once (a relay that stood still) meet at the unique `_id`, and the later one
   looks anew. Inserts are ordered, so whoever sees an event sees all before it.
3. Readers read what a majority has, hence never an event that a failover takes back.
4. The log is bounded by age and by number. Pruning first raises the floor (majority), then removes what is
   below: a reader whose cursor is below the floor is told, and nobody passes over a hole in silence.
5. A cursor names log, sequence and event. A log that was set up anew, or restored to before the cursor, is
   another log, and says so. After a restore ids of events may be given out again, so the time at which an
   event was written counts as well.
6. An entry knows which people its event names (of the service's collection of people), until they are
   forgotten (`forget`): then what is personal is overwritten, for every reader, and the entry stays where it
   is. What a relay brings only after that is overwritten by nobody; it leaves with its age.

Free of grpc: the worker writes. Blocking code; it runs in green threads.
"""

from __future__ import annotations

import base64
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from chassis import logs, metrics
from chassis.bus import topology
from chassis.bus.publisher import Outcome, Outgoing
from chassis.clock import to_ms
from chassis.errors import FailedPrecondition, InvalidArgument, Unavailable
from chassis.ids import new_id
from chassis.mongo import DUPLICATE_KEY
from chassis.privacy import Privacy

if TYPE_CHECKING:
    from pymongo.database import Database

    from chassis.config import ServiceSettings
    from chassis.outbox import BatchPublisher

COLLECTION, META = "event_log", "event_log_meta"
#: What of an entry a cursor's check is made of.
CHECKED = {"event": 1, "at": 1}
#: The one document of `META`: {"_id", "log": id of this log, "floor": highest sequence that was removed}.
META_ID = "log"
#: How long events are kept, and how many at most, unless the settings say otherwise.
HOURS, ENTRIES_MAX = 72.0, 1_000_000
#: Pause between two prunings, real seconds.
PRUNE_SECONDS = 60.0
#: How often a batch is begun anew after meeting another writer, and the first pause, seconds.
TRIES_MAX, PAUSE_SECONDS = 20, 0.005
#: Longest cursor, characters.
CURSOR_CHARACTERS_MAX = 200
#: Entries that are overwritten at once for a person who is forgotten.
FORGET_AT_ONCE = 500

_envelope_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

log = logs.get_logger(__name__)

_written = metrics.counter("callmesh_event_log_total", "Events written to the event log.", ("service",))
_pruned = metrics.counter("callmesh_event_log_pruned_total", "Events that grew too old.", ("service",))


class CursorInvalid(InvalidArgument):
    """{field}: {why}."""

    reason = "CURSOR_INVALID"


class EventsExpired(FailedPrecondition):
    """Events behind this cursor are not kept any more: {why}."""

    reason = "EVENTS_EXPIRED"


class EventLogBusy(Unavailable):
    """The event log could not be written: {why}."""

    reason = "EVENT_LOG_BUSY"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One event of the log."""

    #: The event's id.
    id: str
    #: Full name of its message.
    type: str
    #: The envelope, JSON.
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """A place in a log: behind the event `sequence`."""

    #: Which log.
    log: str
    #: 0 before the first event.
    sequence: int
    #: Check of the event there; 0 when not known (the log's beginning).
    check: int = 0

    def text(self) -> str:
        """As partners store it."""
        plain = f"{self.log}.{self.sequence}.{self.check}".encode()
        return base64.urlsafe_b64encode(plain).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """CursorInvalid for anything that `text` never gave."""
        try:
            if len(text) > CURSOR_CHARACTERS_MAX or not text.isascii():
                raise ValueError
            padded = text + "=" * (-len(text) % 4)
            name, sequence, check = base64.urlsafe_b64decode(padded).decode("ascii").split(".")
            found = cls(log=name, sequence=int(sequence), check=int(check))
            if found.text() != text or not 0 <= found.sequence < 1 << 63:
                raise ValueError
        except ValueError:
            raise CursorInvalid(field="cursor", why="is not a cursor that this service gave out") from None
        return found


def check_of(entry: Mapping[str, Any]) -> int:
    """What a cursor remembers of an entry of `CHECKED` fields: enough to see that another one stands there
    now.
    """
    written_ms = to_ms(entry["at"].replace(tzinfo=UTC))
    return zlib.crc32(f"{entry['event']} {written_ms}".encode())


class EventLog:
    """A service's log, as its workers write it."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        *,
        service: str,
        hours: float = HOURS,
        entries_max: int = ENTRIES_MAX,
        people: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Does no I/O. `people` is the collection, as in resource names, whose members can be forgotten."""
        safe, seen = WriteConcern(w="majority"), ReadConcern("majority")
        self._entries: Any = database.get_collection(COLLECTION, write_concern=safe, read_concern=seen)
        self._latest: Any = database[COLLECTION]
        self._meta: Any = database.get_collection(META, write_concern=safe, read_concern=seen)
        self._service = service
        self._hours = hours
        self._entries_max = entries_max
        self._now = now
        self._person = re.compile(rf'"({people}/[A-Za-z0-9._~:\-]+)"'.encode()) if people else None
        self._tail: int | None = None

    @classmethod
    def of(cls, settings: ServiceSettings, database: Database[dict[str, Any]], people: str = "") -> EventLog:
        """The log of a process's own service."""
        return cls(
            database,
            service=settings.service,
            hours=settings.event_log_hours,
            entries_max=settings.event_log_entries_max,
            people=people,
        )

    def ensure(self) -> None:
        """Makes the log, if it is not there; repeatable. pymongo's errors."""
        self._latest.create_index("event", unique=True, name="event")
        self._latest.create_index("about", sparse=True, name="about")
        self._meta.update_one({"_id": META_ID}, {"$setOnInsert": {"log": new_id(), "floor": 0}}, upsert=True)

    def append(self, entries: Sequence[Entry]) -> None:
        """Writes events behind all others, those that are there already not again. pymongo's errors, and
        EventLogBusy when other writers were always faster; what was written by then stays.
        """
        waiting = list({entry.id: entry for entry in entries}.values())
        for attempt in range(TRIES_MAX):
            if not waiting:
                return
            waiting = self._insert(waiting)
            if waiting and attempt:
                # Another writer's events are seen once a majority has them.
                time.sleep(PAUSE_SECONDS * attempt)
        if waiting:
            raise EventLogBusy(why="others write it at the same time", retry_seconds=1.0)

    def _insert(self, waiting: list[Entry]) -> list[Entry]:
        """One try; what is still to be written."""
        tail, at = self._read_tail() if self._tail is None else self._tail, self._now()
        self._tail = None
        documents = [
            {"_id": tail + n, "event": entry.id, "type": entry.type, "at": at, "body": entry.body}
            | self._about(entry.body)
            for n, entry in enumerate(waiting, 1)
        ]
        try:
            self._entries.insert_many(documents, ordered=True)
        except BulkWriteError as error:
            faults = error.details.get("writeErrors", ())
            unsure = error.details.get("writeConcernErrors")
            if unsure or not faults or any(fault.get("code") != DUPLICATE_KEY for fault in faults):
                raise
            count = int(error.details.get("nInserted", 0))
            _written.labels(self._service).inc(count)
            return self._unknown(waiting[count:])
        self._tail = tail + len(documents)
        _written.labels(self._service).inc(len(documents))
        return []

    def _about(self, body: bytes) -> dict[str, list[str]]:
        """The people that an envelope names; empty for none, so that the index stays small."""
        names = set(self._person.findall(body)) if self._person is not None else ()
        return {"about": sorted(name.decode() for name in names)} if names else {}

    def _unknown(self, waiting: list[Entry]) -> list[Entry]:
        """Those that are not in the log."""
        ids = [entry.id for entry in waiting]
        known = {found["event"] for found in self._latest.find({"event": {"$in": ids}}, {"event": 1})}
        return [entry for entry in waiting if entry.id not in known]

    def _read_tail(self) -> int:
        newest = self._entries.find_one({}, {"_id": 1}, sort=[("_id", -1)])
        return max(self.floor(), 0 if newest is None else int(newest["_id"]))

    def floor(self) -> int:
        """The highest sequence that was removed."""
        found = self._meta.find_one({"_id": META_ID})
        return 0 if found is None else int(found["floor"])

    def prune(self) -> int:
        """Removes what is too old or too much; how many that were. pymongo's errors."""
        floor, cutoff = self.floor(), self._now() - timedelta(hours=self._hours)
        newest = self._entries.find_one({}, {"_id": 1}, sort=[("_id", -1)])
        if newest is None:
            return 0
        fresh = self._entries.find_one(
            {"_id": {"$gt": floor}, "at": {"$gte": cutoff}}, {"_id": 1}, sort=[("_id", 1)]
        )
        last = int(newest["_id"])
        target = max(last if fresh is None else int(fresh["_id"]) - 1, last - self._entries_max)
        if target <= floor:
            return 0
        self._meta.update_one({"_id": META_ID}, {"$max": {"floor": target}})
        removed = int(self._entries.delete_many({"_id": {"$lte": target}}).deleted_count)
        _pruned.labels(self._service).inc(removed)
        return removed


def forget(database: Database[dict[str, Any]], person: str) -> int:
    """Overwrites what is personal in the events of a log that name `person` ("customers/1"); how many those
    were. To be repeated after pymongo's errors.
    """
    entries = database.get_collection(COLLECTION, write_concern=WriteConcern(w="majority"))
    privacy, count = Privacy(), 0
    while found := list(entries.find({"about": person}, {"type": 1, "body": 1}).limit(FORGET_AT_ONCE)):
        # Nothing personal is left of the others whom such an event names either.
        changes = [
            UpdateOne(
                {"_id": entry["_id"]},
                {
                    "$set": {"body": _without_people(entry["body"], entry["type"], privacy)},
                    "$unset": {"about": ""},
                },
            )
            for entry in found
        ]
        entries.bulk_write(changes, ordered=False)
        count += len(found)
    return count


def without_people(event: str) -> str:
    """The envelope of an event that waits in an outbox, without what is personal."""
    kind = msgspec.json.decode(event)["type"]
    return _without_people(event.encode(), kind, Privacy()).decode()


def _without_people(body: bytes, kind: str, privacy: Privacy) -> bytes:
    """An event's envelope without what is personal; it says that something is missing."""
    envelope = _envelope_decoder.decode(body)
    data, redacted = privacy.cleaned(kind, bytes(envelope["data"]))
    if redacted:
        envelope |= {"data": msgspec.Raw(data.encode()), "redacted": msgspec.Raw(b"true")}
    return msgspec.json.encode(envelope)


class Recorded:
    """A publisher that writes a service's own events into its log first."""

    def __init__(self, publisher: BatchPublisher, events: EventLog, service: str) -> None:
        self._publisher = publisher
        self._events = events
        self._exchange = topology.events_exchange(service)

    def publish(self, messages: Sequence[Outgoing], seconds_max: float = 30.0) -> list[Outcome]:
        """As the publisher's. pymongo's errors when the log cannot be written: then nothing was published."""
        own = [
            Entry(id=message.message_id, type=message.routing_key, body=message.body)
            for message in messages
            if message.exchange == self._exchange
        ]
        try:
            self._events.append(own)
        except EventLogBusy as error:
            log.warning("event_log.busy", error=str(error))
            return [Outcome.UNKNOWN] * len(messages)
        return self._publisher.publish(messages, seconds_max)
