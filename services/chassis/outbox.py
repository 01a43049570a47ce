"""The relay: publishes what aggregates carry in their outbox, and takes it off again.

It runs in the worker under a lease, so one relay a service works at a time; when two overlap for a moment
(a process stood still), events come twice, which consumers recognise.

1. Aggregates are found by `outbox_since`, oldest first.
2. Events of one aggregate go out one after another, each after the broker's confirm of the one before, so
   their order is kept; events of different aggregates go out together.
   Where a class says that its events stand for themselves (`Aggregate.outbox_ordered`), they all go out
   together: a document that carries the events of many aggregates written in bulk is relayed in bulk.
3. What was confirmed is pulled off by id in one conditional write, so appends of meanwhile stay. A document
   that is nothing but its outbox (`Aggregate.outbox_only`) is removed when that is empty, whoever emptied it.
4. An event that no queue is bound for stays in its outbox and its type is left alone for a while, longer each
   time. The aggregate's other events pass it by: nobody receives that type, so nobody sees another order.
5. After any other failure the aggregate waits for the next round. Where the broker refused events, because
   a consumer's queue is full, the next round begins behind them: the events of other types go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from chassis import logs, metrics
from chassis.bus.event import MalformedEvent, Told
from chassis.bus.publisher import Outcome, Outgoing
from chassis.lease import Lease, LeaseLost, run_in_rounds
from chassis.mongo import Aggregate, outbox_pull

#: Aggregates worked on at once.
BATCH_MAX = 500
#: Aggregates looked at to find that many: those whose events must wait are passed over.
#: The next round goes on behind them.
SCAN_MAX = 1_000
#: Pause after a round that published something, seconds.
BUSY_SECONDS = 0.05
#: Pause when there was nothing, seconds: what an event waits at most before it is seen.
IDLE_SECONDS = 0.2
#: Pause of a relay that waits for the lease, or for the database, seconds.
STANDBY_SECONDS = 1.0
#: How long one batch may take to be confirmed: well below the lease, seconds.
PUBLISH_SECONDS_MAX = 3.0
#: Lease of the relay, seconds.
LEASE_SECONDS = 10.0
#: First and longest time that a type without subscribers is left alone, seconds.
UNROUTABLE_SECONDS_MIN = 1.0
UNROUTABLE_SECONDS_MAX = 60.0

log = logs.get_logger(__name__)

_TYPE_LABELS = ("service", "type")
_published = metrics.counter(
    "callmesh_bus_published_total", "Events that the broker confirmed.", _TYPE_LABELS
)
_unroutable = metrics.counter(
    "callmesh_bus_unroutable_total", "Events that came back because no queue is bound for them.", _TYPE_LABELS
)
_unpublished = metrics.counter(
    "callmesh_bus_unpublished_total", "Events that the broker refused or did not confirm.", ("service",)
)
_lag = metrics.gauge(
    "callmesh_outbox_oldest_seconds", "Age of the longest waiting outbox, seconds.", ("service",)
)
_leading = metrics.gauge("callmesh_outbox_relay_active", "1 where this process relays events.", ("service",))


class BatchPublisher(Protocol):
    """What the relay needs of `chassis.bus.publisher.Publisher`."""

    def publish(self, messages: Sequence[Outgoing], seconds_max: float = ...) -> list[Outcome]:
        """One outcome a message; raises nothing when the broker is away."""


@dataclass(kw_only=True, slots=True)
class _Pending:
    """One aggregate in hand."""

    collection: Collection[dict[str, Any]]
    id: Any
    #: Events yet to publish in this round, oldest first.
    events: list[Told]
    #: Ids to pull off.
    done: list[str] = field(default_factory=list)
    #: Whether the broker refused one.
    refused: bool = False


@dataclass(kw_only=True, slots=True)
class _Silence:
    """A type that nobody subscribes to."""

    until: float
    seconds: float


class OutboxRelay:
    """Publishes the events of the given aggregate classes."""

    def __init__(
        self,
        documents: Sequence[type[Aggregate]],
        publisher: BatchPublisher,
        lease: Lease,
        *,
        service: str,
        optional: frozenset[str] = frozenset(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`optional` are event types that need no subscriber: unroutable ones count as published."""
        self._documents = {document._get_collection_name(): document for document in documents}
        self._collections = [
            document._get_collection().with_options(write_concern=WriteConcern(w="majority"))
            for document in documents
        ]
        self._publisher = publisher
        self._lease = lease
        self._service = service
        self._optional = optional
        self._monotonic = monotonic
        self._silent: dict[str, _Silence] = {}
        #: Where the next round's search starts in a collection, after one that ended at SCAN_MAX, or at
        #: BATCH_MAX with refusals; and since when the oldest waited that it passes over.
        self._resume: dict[str, datetime] = {}
        self._oldest: dict[str, datetime | None] = {}

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Relays until `stopping(seconds)`, which waits that long at most, says True; gives the lease back
        then.

        Outages of the database are borne; anything unexpected is raised.
        """
        try:
            run_in_rounds(self._lease, self._turn, stopping)
        finally:
            self._stand_down()

    def _turn(self) -> float:
        """One round under the lease; seconds to wait before the next."""
        try:
            if not self._lease.take():
                self._stand_down()
                return STANDBY_SECONDS
            _leading.labels(self._service).set(1)
            count = self.step()
            # More than fits into a round is waiting: the pause would be most of the time.
            return 0.0 if count >= BATCH_MAX else BUSY_SECONDS if count else IDLE_SECONDS
        except LeaseLost as error:
            log.warning("outbox.lease_lost", error=str(error))
        except PyMongoError as error:
            log.warning("outbox.database_away", error=repr(error))
        if not self._lease.held:
            self._stand_down()
        return STANDBY_SECONDS

    def _stand_down(self) -> None:
        """Somebody else's word counts from now on: an age of ours would be alerted for ever."""
        _leading.labels(self._service).set(0)
        _lag.labels(self._service).set(0)

    def step(self) -> int:
        """One round over all classes; how many events were published. LeaseLost, pymongo's errors."""
        count = 0
        oldest: datetime | None = None
        for collection in self._collections:
            pending, full_at = self._find(collection)
            oldest = min(filter(None, (oldest, self._oldest[collection.name])), default=None)
            count += self._publish(pending)
            if full_at is not None and any(item.refused for item in pending):
                self._resume[collection.name] = full_at
        age = 0.0 if oldest is None else (datetime.now(UTC) - oldest).total_seconds()
        _lag.labels(self._service).set(max(0.0, age))
        return count

    def _find(self, collection: Collection[dict[str, Any]]) -> tuple[list[_Pending], datetime | None]:
        """Up to `BATCH_MAX` aggregates with something to publish, and since when the last of them waits if
        there may be more.
        """
        found: list[_Pending] = []
        start = self._resume.pop(collection.name, None)
        since: dict[str, Any] = {"$exists": True} if start is None else {"$gte": start}
        if start is None:
            self._oldest[collection.name] = None
        full_at: datetime | None = None
        scanned = 0
        empty: list[Any] = []
        cursor = collection.find({"outbox_since": since}, {"outbox": 1, "outbox_since": 1})
        ordered = self._documents[collection.name].outbox_ordered
        # A document with the events of many aggregates fills a round by itself, and is large.
        size = BATCH_MAX if ordered else 2
        with cursor.sort("outbox_since", 1).limit(SCAN_MAX).batch_size(size) as documents:
            for document in documents:
                scanned += 1
                self._oldest[collection.name] = self._oldest[collection.name] or document["outbox_since"]
                if scanned == SCAN_MAX:
                    self._resume[collection.name] = document["outbox_since"]
                if not document.get("outbox"):
                    empty.append(document["_id"])
                events = self._publishable(collection.name, document)
                for together in [events] if ordered else [[event] for event in events]:
                    if together:
                        found.append(_Pending(collection=collection, id=document["_id"], events=together))
                if len(found) >= BATCH_MAX:
                    full_at = document["outbox_since"]
                    break
        self._remove_empty(collection, empty)
        return found, full_at

    def _publishable(self, collection: str, document: dict[str, Any]) -> list[Told]:
        now = self._monotonic()
        events = []
        for entry in document.get("outbox", ()):
            try:
                event = Told.of(entry["event"])
            except (MalformedEvent, KeyError, TypeError) as error:
                # Only a defect of ours writes such an entry. It stays, for people to see.
                log.error("outbox.malformed", collection=collection, id=document["_id"], error=repr(error))
                continue
            silence = self._silent.get(event.type)
            if silence is None or silence.until <= now:
                events.append(event)
        return events

    def _publish(self, pending: list[_Pending]) -> int:
        """Publishes wave by wave, one event an aggregate in each."""
        active = pending
        count = 0
        while active:
            self._lease.keep()
            messages = [self._outgoing(item.events[0]) for item in active]
            outcomes = self._publisher.publish(messages, PUBLISH_SECONDS_MAX)
            going_on = [
                item for item, outcome in zip(active, outcomes, strict=True) if self._settle(item, outcome)
            ]
            count += outcomes.count(Outcome.PUBLISHED)
            active = [item for item in going_on if item.events]
            # Pulled off after each wave: a crash then repeats one wave at most.
            self._pull(pending)
        return count

    def _outgoing(self, event: Told) -> Outgoing:
        return Outgoing.told(event, mandatory=event.type not in self._optional)

    def _settle(self, item: _Pending, outcome: Outcome) -> bool:
        """Notes one event's outcome; whether the aggregate's next event may go out now."""
        event = item.events.pop(0)
        if outcome is Outcome.PUBLISHED:
            item.done.append(event.id)
            self._silent.pop(event.type, None)
            _published.labels(self._service, event.type).inc()
            return True
        if outcome is Outcome.RETURNED:
            self._silence(event.type)
            item.events = [other for other in item.events if other.type != event.type]
            return True
        _unpublished.labels(self._service).inc()
        item.refused = outcome is Outcome.REFUSED
        return False

    def _silence(self, kind: str) -> None:
        """Leaves a type alone for a while; once for all events of it that come back in one wave."""
        _unroutable.labels(self._service, kind).inc()
        now = self._monotonic()
        silence = self._silent.get(kind)
        if silence is not None and silence.until > now:
            return
        seconds = (
            UNROUTABLE_SECONDS_MIN if silence is None else min(silence.seconds * 2, UNROUTABLE_SECONDS_MAX)
        )
        self._silent[kind] = _Silence(until=now + seconds, seconds=seconds)
        log.error("outbox.unroutable", type=kind, retry_seconds=seconds)

    def _pull(self, pending: list[_Pending]) -> None:
        by_collection: dict[str, dict[Any, list[str]]] = {}
        for item in pending:
            if item.done:
                by_collection.setdefault(item.collection.name, {}).setdefault(item.id, []).extend(item.done)
                item.done = []
        for collection in self._collections:
            if done := by_collection.get(collection.name):
                updates = [UpdateOne({"_id": id}, outbox_pull(ids)) for id, ids in done.items()]
                collection.bulk_write(updates, ordered=False)
                self._remove_empty(collection, list(done))

    def _remove_empty(self, collection: Collection[dict[str, Any]], ids: list[Any]) -> None:
        """Removes those of the documents that are nothing but their outbox and have told everything."""
        if ids and self._documents[collection.name].outbox_only:
            collection.delete_many({"_id": {"$in": ids}, "outbox": []})
