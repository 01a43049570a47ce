"""Serves a service's event log (eventlog.py) to partners: `callmesh.common.v1.EventService`.

    events = eventservice.EventSource("crm", lambda: database)
    serve(settings, [..., events.binding()], scopes=SCOPES | scopes("crm"), on_drain=[events.drain])

1. A stream reads a page, writes it, and reads the next: its buffer is one page, and a reader that does not
   read is waited for by the connection's flow control.
2. One look a process finds out how far the log is; streams at its end wait for that, not for the database.
3. A page is looked for in a window of sequences, so that a filter that matches nothing costs a bounded read
   and still moves the cursor.
4. Whether the cursor fell below the floor is asked after the page was read: what was removed meanwhile is
   noticed.
5. The end of the server ends the streams with UNAVAILABLE at once; their readers go on elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from callmesh.common.v1 import event_service_pb2 as pb
from callmesh.common.v1 import event_service_pb2_grpc as stubs
from chassis import logs, metrics
from chassis.callcontext import current_identity
from chassis.errors import InvalidArgument, ResourceExhausted, Unavailable
from chassis.eventlog import (
    CHECKED,
    COLLECTION,
    META,
    META_ID,
    Cursor,
    CursorInvalid,
    EventsExpired,
    check_of,
)
from chassis.ids import new_id
from chassis.privacy import Privacy
from chassis.server import ServiceBinding

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

SERVICE = "callmesh.common.v1.EventService"
#: Streams served at once by a process, and of them to one caller: nobody takes the places of all others.
STREAMS_MAX, STREAMS_EACH_MAX = 200, 20
#: Types that one reader may name.
TYPES_MAX = 50
#: Events of one page of a stream; sequences looked through for it.
PAGE_EVENTS, WINDOW = 100, 2_000
#: Events of one ListEvents.
LIST_EVENTS, LIST_EVENTS_MAX = 100, 1_000
#: Bytes of envelopes in a page, beyond its first: gRPC's clients take no more than 4 MB in a message unless
#: they are told to.
PAGE_BYTES_MAX = 3 * 1024 * 1024
#: Silence after which a stream gives a sign of life, seconds.
HEARTBEAT_SECONDS = 10.0
#: How often a process looks how far the log is while streams wait for it, seconds.
LOOK_SECONDS = 0.2
#: Longest wait for a batch of events from the database, milliseconds.
QUERY_MS_MAX = 5_000
#: When a reader of a server that ends should come again, seconds.
RETRY_SECONDS = 0.5

log = logs.get_logger(__name__)

_streams = metrics.gauge("callmesh_event_streams_open", "Event subscriptions open now.", ("service",))
_sent = metrics.counter("callmesh_event_stream_sent_total", "Events sent to subscribers.", ("service",))
_MESSAGE = re.compile(r"[A-Z][A-Za-z0-9]*")


class TooManySubscriptions(ResourceExhausted):
    """This server serves as many event subscriptions as it can: {subject}{limit}."""

    reason = "TOO_MANY_SUBSCRIPTIONS"


class ServerEnding(Unavailable):
    """This server is being stopped; subscribe again with the newest cursor: {why}."""

    reason = "SERVER_ENDING"
    farewell = True


class _Envelope(msgspec.Struct):
    """An event as the log has it."""

    id: str
    source: str
    type: str
    time: str
    data: msgspec.Raw
    subject: str = ""
    traceparent: str | None = None
    #: Somebody whom it named was forgotten.
    redacted: bool = False


_decoder = msgspec.json.Decoder(_Envelope)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    """What one look into the log found."""

    #: (cursor behind it, envelope).
    events: list[tuple[Cursor, bytes]]
    #: How far it looked.
    end: Cursor


# --- the log as readers see it -----------------------------------------------------------------------------


class Reader:
    """Reads a log; every method raises pymongo's errors."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        majority = ReadConcern("majority")
        self._entries: Any = database.get_collection(COLLECTION, read_concern=majority)
        self._meta: Any = database.get_collection(META, read_concern=majority)

    async def meta(self) -> tuple[str, int]:
        """(the log's id, its floor); makes the log when nothing was ever told."""
        found = await self._meta.find_one({"_id": META_ID})
        if found is None:
            await self._meta.update_one(
                {"_id": META_ID}, {"$setOnInsert": {"log": new_id(), "floor": 0}}, upsert=True
            )
            found = await self._meta.find_one({"_id": META_ID}) or {"log": "", "floor": 0}
        return str(found["log"]), int(found["floor"])

    async def end(self) -> int:
        """The newest sequence."""
        newest = await self._entries.find_one({}, {"_id": 1}, sort=[("_id", -1)])
        return int(newest["_id"]) if newest is not None else (await self.meta())[1]

    async def at(self, name: str, sequence: int) -> Cursor:
        """The cursor behind an event."""
        found = await self._entries.find_one({"_id": sequence}, CHECKED)
        return Cursor(log=name, sequence=sequence, check=check_of(found) if found else 0)

    async def begin(self, text: str, start: int) -> Cursor:
        """Where a reader begins; CursorInvalid, EventsExpired."""
        name, floor = await self.meta()
        if not text:
            return await self.at(name, floor if start == pb.EVENT_START_OLDEST else await self.end())
        cursor = Cursor.parse(text)
        await self._check(cursor, name, floor)
        return cursor

    async def _check(self, cursor: Cursor, name: str, floor: int) -> None:
        """That a cursor is of this log, and everything behind it is still there."""
        oldest = Cursor(log=name, sequence=floor).text()
        if cursor.log != name:
            raise EventsExpired(subject="events", why="the log was set up anew since", oldest_cursor=oldest)
        if cursor.sequence < floor:
            raise EventsExpired(
                subject="events", why="they are older than the retention", oldest_cursor=oldest
            )
        there = await self.at(name, cursor.sequence)
        if cursor.check and there.check != cursor.check and cursor.sequence != floor:
            raise EventsExpired(
                subject="events", why="the log was restored to before the cursor", oldest_cursor=oldest
            )
        if not cursor.check and cursor.sequence > max(floor, await self.end()):
            raise CursorInvalid(field="cursor", why="is ahead of the log")

    async def page(self, cursor: Cursor, types: list[str], limit: int, window: int = WINDOW) -> _Page:
        """The next events behind a cursor; EventsExpired when some of them were removed meanwhile."""
        end = min(await self.end(), cursor.sequence + window)
        if end <= cursor.sequence:
            return _Page(events=[], end=cursor)
        query: dict[str, Any] = {"_id": {"$gt": cursor.sequence, "$lte": end}}
        if types:
            query["type"] = {"$in": types}
        documents, full = await self._read(query, limit)
        name, floor = await self.meta()
        if cursor.sequence < floor or cursor.log != name:
            await self._check(cursor, name, floor)
        events = [
            (Cursor(log=name, sequence=int(each["_id"]), check=check_of(each)), bytes(each["body"]))
            for each in documents
        ]
        return _Page(events=events, end=events[-1][0] if full else await self.at(name, end))

    async def _read(self, query: dict[str, Any], limit: int) -> tuple[list[dict[str, Any]], bool]:
        """(entries in order, whether there may be more): `limit` of them at most, and so many as fit into a
        page.
        """
        documents: list[dict[str, Any]] = []
        found = self._entries.find(query, {"body": 1, **CHECKED}).sort("_id", 1).limit(limit)
        async with found.max_time_ms(QUERY_MS_MAX) as entries:
            left = PAGE_BYTES_MAX
            async for entry in entries:
                left -= len(entry["body"])
                if documents and left < 0:
                    return documents, True
                documents.append(entry)
        return documents, len(documents) == limit


class _Tail:
    """How far the log is, looked up for all streams together while there are any."""

    def __init__(self, reader: Callable[[], Reader]) -> None:
        self._reader = reader
        self._end = 0
        self._moved = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._callers: Counter[str] = Counter()
        self.ending = False

    def enter(self, source: str, caller: str) -> None:
        """One more stream; TooManySubscriptions."""
        for streams, most, whose in (
            (self._callers[caller], STREAMS_EACH_MAX, f"client:{caller}"),
            (self._callers.total(), STREAMS_MAX, source),
        ):
            if streams >= most:
                raise TooManySubscriptions(
                    subject=whose, limit=f"at most {most}", retry_seconds=RETRY_SECONDS
                )
        self._callers[caller] += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())

    def leave(self, caller: str) -> None:
        """One stream less."""
        self._callers[caller] -= 1
        # Callers come and go for as long as the process runs.
        self._callers += Counter()
        if not self._callers and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def finish(self) -> None:
        """The server ends."""
        self.ending = True
        self._wake()

    async def beyond(self, sequence: int, seconds: float) -> None:
        """Waits until the log is further than `sequence`, the server ends, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._end <= sequence and not self.ending:
                    await self._moved.wait()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _look(self) -> None:
        while True:
            try:
                end = await self._reader().end()
                if end != self._end:
                    self._end = end
                    self._wake()
            except PyMongoError as error:
                log.info("event_log.unread", error=type(error).__name__)
            except Exception as error:
                # Nobody else looks: without this task every stream would be as late as its heartbeats.
                log.error("event_log.look_failed", exc_info=error)
            await asyncio.sleep(LOOK_SECONDS)


# --- the servicer ------------------------------------------------------------------------------------------


class EventServicer(stubs.EventServiceServicer):
    """`EventService` over one log."""

    def __init__(self, source: str, database: Callable[[], AsyncDatabase[dict[str, Any]]]) -> None:
        self._source = source
        self._database = database
        self._made: Reader | None = None
        self._privacy = Privacy()
        self._open: _Tail | None = None

    def _reader(self) -> Reader:
        if self._made is None:
            self._made = Reader(self._database())
        return self._made

    @property
    def _tail(self) -> _Tail:
        if self._open is None:
            self._open = _Tail(self._reader)
        return self._open

    def drain(self) -> None:
        """Ends every stream, and refuses new ones."""
        self._tail.finish()

    def _types(self, names: Any) -> list[str]:
        """The types asked for; InvalidArgument for one that this service cannot tell."""
        if len(names) > TYPES_MAX:
            raise InvalidArgument(field="types", why=f"must have at most {TYPES_MAX} entries")
        prefix = f"callmesh.{self._source}.v1."
        for index, name in enumerate(names):
            if not name.startswith(prefix) or not _MESSAGE.fullmatch(name.removeprefix(prefix)):
                raise InvalidArgument(
                    field=f"types[{index}]", why=f"must be the full name of a message of {prefix[:-1]}"
                )
        return sorted(set(names))

    def _event(self, body: bytes, personal: bool) -> pb.Event:
        envelope = _decoder.decode(body)
        raw = bytes(envelope.data)
        data, left_out = (raw.decode(), False) if personal else self._privacy.cleaned(envelope.type, raw)
        event = pb.Event(
            id=envelope.id,
            source=envelope.source,
            type=envelope.type,
            subject=envelope.subject,
            data=data,
            traceparent=envelope.traceparent or "",
            redacted=left_out or envelope.redacted,
        )
        event.time.FromJsonString(envelope.time)
        return event

    def _personal(self) -> bool:
        return current_identity().has(f"{self._source}.events.personal")

    async def ListEvents(self, request: Any, context: Any) -> pb.ListEventsResponse:
        """One page."""
        types = self._types(request.types)
        if request.page_size < 0:
            raise InvalidArgument(field="page_size", why=f"must not be negative, got {request.page_size}")
        limit = min(request.page_size or LIST_EVENTS, LIST_EVENTS_MAX)
        reader, personal = self._reader(), self._personal()
        cursor = await reader.begin(request.cursor, request.start)
        page = await reader.page(cursor, types, limit)
        return pb.ListEventsResponse(
            events=[self._event(body, personal) for _, body in page.events],
            next_cursor=page.end.text(),
            at_end=page.end.sequence >= await reader.end(),
        )

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[pb.SubscribeMessage]:
        """Events as they come."""
        types, tail, personal = self._types(request.types), self._tail, self._personal()
        caller = current_identity().subject
        tail.enter(self._source, caller)
        _streams.labels(self._source).inc()
        try:
            async for message in self._messages(request, types, personal, tail):
                yield message
        finally:
            tail.leave(caller)
            _streams.labels(self._source).dec()

    async def _messages(
        self, request: Any, types: list[str], personal: bool, tail: _Tail
    ) -> AsyncIterator[pb.SubscribeMessage]:
        reader = self._reader()
        cursor = await reader.begin(request.cursor, request.start)
        yield _heartbeat(cursor)
        loop = asyncio.get_running_loop()
        said_at = loop.time()
        while not tail.ending:
            page = await reader.page(cursor, types, PAGE_EVENTS)
            for here, body in page.events:
                yield pb.SubscribeMessage(cursor=here.text(), event=self._event(body, personal))
            _sent.labels(self._source).inc(len(page.events))
            if page.events:
                said_at = loop.time()
            at_end, cursor = page.end == cursor, page.end
            if at_end:
                await tail.beyond(cursor.sequence, max(0.0, said_at + HEARTBEAT_SECONDS - loop.time()))
            if loop.time() >= said_at + HEARTBEAT_SECONDS:
                yield _heartbeat(cursor)
                said_at = loop.time()
        raise ServerEnding(why="nothing is lost", retry_seconds=RETRY_SECONDS)


def _heartbeat(cursor: Cursor) -> pb.SubscribeMessage:
    message = pb.SubscribeMessage(cursor=cursor.text())
    message.heartbeat.time.GetCurrentTime()
    return message


class EventSource:
    """What a service's server needs to serve its log."""

    def __init__(self, source: str, database: Callable[[], AsyncDatabase[dict[str, Any]]]) -> None:
        """`database` is asked for when the first reader comes."""
        self._source = source
        self._servicer = EventServicer(source, database)

    def binding(self) -> ServiceBinding:
        """The service, to be served beside the others."""
        descriptor = pb.DESCRIPTOR.services_by_name["EventService"]
        return ServiceBinding(descriptor, stubs.add_EventServiceServicer_to_server, self._servicer)

    def drain(self) -> None:
        """For `serve(on_drain=...)`."""
        self._servicer.drain()


def scopes(source: str) -> dict[str, str]:
    """The scope table of a service's EventService."""
    return {f"/{SERVICE}/{method}": f"{source}.events.read" for method in ("ListEvents", "Subscribe")}
