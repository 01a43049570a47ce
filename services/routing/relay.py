"""The relay: publishes what the journals of all shards say. One works at a time, under a lease, in the
worker process.

1. Every read is a majority read, and every block must follow the one before it. At a gap (or at a block
   that this code cannot read) the shard stops, loudly, and is begun again from its first block after a
   while; the others go on.
2. A projection (publish.py) needs the whole journal, or a snapshot at or below the cursor: blocks from there
   to the cursor are applied without a word, those above are published.
3. The cursor of a shard says how far the broker has confirmed everything. It moves by compare-and-set, so a
   relay that slept does not set it back. A crash between the confirms and the cursor publishes the same
   events, with the same ids, once more.
4. What waits for the broker is bounded by `retention_bytes_max`: beyond it the oldest blocks are skipped,
   which the cursor remembers until one EventsSkipped in their place is confirmed.
5. A message that no queue took, or that the broker refused or did not confirm, is not published: the cursor
   stays in front of its block, and no further block of that shard goes out until it is through. It is tried
   again after a growing pause.

Blocking code: it runs in a green thread of the worker, or in a plain one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from chassis import logs, metrics
from chassis.bus import Event, MalformedEvent
from chassis.bus.publisher import Outcome, Outgoing
from chassis.lease import Lease, LeaseLost, run_in_rounds
from chassis.outbox import BatchPublisher
from routing.cursors import move_cursor
from routing.journal import COLLECTION, Block, ChainReader, JournalGap, block_key, from_document
from routing.publish import OPTIONAL, SOURCE, Projection, UnreadableBlock, skipped_event

if TYPE_CHECKING:
    from pymongo.collection import Collection
    from pymongo.database import Database

#: Collection of the cursors (documents.CursorDocument).
CURSORS = "relay_cursors"
#: Events published in one round, over all shards; the last block taken may go beyond it.
ROUND_EVENTS_MAX = 1_000
#: Blocks of one shard read in one round.
READ_BLOCKS_MAX = 500
#: Blocks without a word after which the cursor is moved all the same.
CURSOR_BLOCKS_MAX = 200
#: Shards that one relay serves.
SHARDS_MAX = 1_000
#: Pause after a round that found something, and after one that found nothing, real seconds. A round costs a
#: question and a cursor's move for each shard, however little there is to say.
BUSY_SECONDS, IDLE_SECONDS = 0.1, 0.2
#: Pause of a relay that waits for the lease, or for the database, real seconds.
STANDBY_SECONDS = 0.5
#: How often new shards are looked for, and how often the lag is measured, real seconds.
DISCOVER_SECONDS = 2.0
LAG_SECONDS = 1.0
#: How long one round may take to be confirmed: well below the lease, real seconds.
PUBLISH_SECONDS_MAX = 3.0
#: Lease of the relay, real seconds.
LEASE_SECONDS = 10.0
#: Bytes of blocks that may wait for the broker, by shard; beyond them the oldest are skipped, down to
#: this share. An error is logged from the lower share on.
RETENTION_BYTES_MAX = 8 << 30
RETENTION_KEPT_SHARE, RETENTION_WARN_SHARE = 0.9, 0.8
#: Blocks from one mark of the backlog's size to the next.
MARK_BLOCKS = 1_000
#: First and longest pause of a shard whose events do not get through, real seconds.
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.25, 10.0
#: First and longest pause of a shard whose journal cannot be read, real seconds.
BROKEN_SECONDS_MIN, BROKEN_SECONDS_MAX = 5.0, 300.0

_OPTIONAL = frozenset(kind.DESCRIPTOR.full_name for kind in OPTIONAL)

log = logs.get_logger(__name__)

_lag = metrics.gauge(
    "callmesh_relay_lag_blocks", "Blocks of a shard's journal that are not published.", ("shard",)
)
_backlog = metrics.gauge(
    "callmesh_relay_backlog_bytes", "Bytes of a shard's journal that are not published.", ("shard",)
)
_broken = metrics.gauge(
    "callmesh_relay_shard_stopped",
    "1 while a shard's journal cannot be read on and is not published.",
    ("shard",),
)
_active = metrics.gauge("callmesh_relay_active", "1 where this process publishes the journals.")
# Those of the bus, so that one sum over a label counts every event of the platform.
_published = metrics.counter(
    "callmesh_bus_published_total", "Events that the broker confirmed.", ("service", "type")
)
_unroutable = metrics.counter(
    "callmesh_bus_unroutable_total",
    "Events that came back because no queue is bound for them.",
    ("service", "type"),
)
_unpublished = metrics.counter(
    "callmesh_bus_unpublished_total", "Events that the broker refused or did not confirm.", ("service",)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """How far a shard is published."""

    #: Last block whose events are all confirmed or were skipped; 0 before the first.
    sequence: int = 0
    #: Its nonce.
    nonce: str = ""
    #: First and last block skipped without anybody having been told yet, and that block's business time; 0
    #: for
    #: none.
    skipped_from: int = 0
    skipped_to: int = 0
    skipped_ms: int = 0


class JournalTail(Protocol):
    """Reads journals, by majority reads. Methods raise pymongo's errors when the database does not answer."""

    def shards(self) -> list[str]:
        """Every shard that has a block, at most `SHARDS_MAX`."""

    def read(self, shard: str, after: int, limit: int) -> Iterable[Block]:
        """Blocks above `after` by sequence, at most `limit`. JournalGap for what is no block."""

    def newest(self, shard: str) -> int:
        """Sequence of the newest block, 0 without one."""

    def size(self, shard: str, after: int, upto: int) -> int:
        """Bytes of the blocks above `after`, up to `upto`."""


#: (shard, newest block that it may hold) -> a projection with its last block's reader, from the nearest
#: snapshot;
#: None for the journal's beginning. Raises pymongo's errors.
BeginAt = Callable[[str, int], "tuple[Projection, ChainReader] | None"]


class CursorStore(Protocol):
    """Keeps cursors. Methods raise pymongo's errors when the database does not answer."""

    def get(self, shard: str) -> Cursor:
        """The cursor; at 0 for a shard that has none."""

    def move(self, shard: str, old: Cursor, new: Cursor) -> bool:
        """Moves it from `old` to `new`; False, and nothing changed, when it does not stand at `old`."""


class MongoTail:
    """Journals in MongoDB, read blockingly."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._blocks: Collection[dict[str, Any]] = database.get_collection(
            COLLECTION, read_concern=ReadConcern("majority"), read_preference=ReadPreference.PRIMARY
        )

    def shards(self) -> list[str]:
        # From shard to shard along the index: as many lookups as shards, however long the journals are.
        found: list[str] = []
        after = ""
        while len(found) < SHARDS_MAX:
            document = self._blocks.find_one({"_id": {"$gt": after}}, {"_id": 1}, sort=[("_id", 1)])
            if document is None:
                return found
            shard = str(document["_id"]).rpartition(":")[0]
            found.append(shard)
            after = _end_of(shard)
        log.error("relay.too_many_shards", limit=SHARDS_MAX)
        return found

    def read(self, shard: str, after: int, limit: int) -> Iterator[Block]:
        span = {"_id": {"$gt": block_key(shard, after), "$lt": _end_of(shard)}}
        with self._blocks.find(span, limit=limit, sort=[("_id", 1)]) as documents:
            for document in documents:
                yield from_document(document)

    def newest(self, shard: str) -> int:
        span = {"_id": {"$gt": block_key(shard, 0), "$lt": _end_of(shard)}}
        document = self._blocks.find_one(span, {"_id": 1}, sort=[("_id", -1)])
        return 0 if document is None else int(str(document["_id"]).rpartition(":")[2])

    def size(self, shard: str, after: int, upto: int) -> int:
        span = {"_id": {"$gt": block_key(shard, after), "$lte": block_key(shard, upto)}}
        total = {"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}}
        found = next(self._blocks.aggregate([{"$match": span}, total]), None)
        return int(found["bytes"]) if found is not None else 0


def _end_of(shard: str) -> str:
    # ';' follows ':' in ASCII: behind every key of the shard, before any other's.
    return f"{shard};"


_SKIPPED = ("skipped_from", "skipped_to", "skipped_ms")


class MongoCursors:
    """Cursors in MongoDB."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._cursors: Collection[dict[str, Any]] = database.get_collection(
            CURSORS,
            write_concern=WriteConcern(w="majority"),
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )

    def get(self, shard: str) -> Cursor:
        found = self._cursors.find_one({"_id": shard})
        if found is None:
            return Cursor()
        skipped = {name: found.get(name, 0) for name in _SKIPPED}
        return Cursor(sequence=found["sequence"], nonce=found["nonce"], **skipped)

    def move(self, shard: str, old: Cursor, new: Cursor) -> bool:
        values = {name: getattr(new, name) for name in ("sequence", "nonce", *_SKIPPED)}
        return move_cursor(self._cursors, shard, old.sequence, values)


@dataclass(kw_only=True, slots=True)
class _Held:
    """A block above the cursor."""

    sequence: int
    nonce: str
    #: Its messages that the broker has not confirmed yet.
    messages: list[Outgoing] = field(default_factory=list)


class Backlog:
    """How many bytes of a shard's journal wait for the broker. Each block is measured once."""

    def __init__(self, shard: str, tail: JournalTail, bytes_max: int) -> None:
        """Does no I/O."""
        self._shard = shard
        self._tail = tail
        self._bytes_max = bytes_max
        #: (sequence, bytes of all blocks measured up to it), rising; the first at or below the cursor.
        self._marks: deque[tuple[int, int]] = deque()
        self._warned = False

    def to_skip(self, cursor: int) -> int:
        """Last block to be skipped so that what waits is within the limit again; 0 for none. Raises pymongo's
        errors.
        """
        self._measure(cursor)
        total = self._marks[-1][1]
        waiting = total - self._marks[0][1]
        _backlog.labels(self._shard).set(waiting)
        alarming = waiting > RETENTION_WARN_SHARE * self._bytes_max
        if alarming and not self._warned:
            log.error("relay.backlog", shard=self._shard, bytes=waiting, bytes_max=self._bytes_max)
        self._warned = alarming
        if waiting <= self._bytes_max:
            return 0
        kept = RETENTION_KEPT_SHARE * self._bytes_max
        return next(sequence for sequence, before in self._marks if total - before <= kept)

    def _measure(self, cursor: int) -> None:
        """Measures what is new, and forgets what is published."""
        marks = self._marks
        if not marks or marks[0][0] > cursor:
            marks.clear()
            marks.append((cursor, 0))
        newest = self._tail.newest(self._shard)
        while marks[-1][0] < newest:
            last, total = marks[-1]
            upto = min(newest, last + MARK_BLOCKS)
            marks.append((upto, total + self._tail.size(self._shard, last, upto)))
            if len(marks) > 2 and marks[-1][0] - marks[-3][0] <= MARK_BLOCKS:
                # However often it is looked at, a stretch has few marks.
                del marks[-2]
        while len(marks) > 1 and marks[1][0] <= cursor:
            marks.popleft()


class Feed:
    """One shard on its way to the broker."""

    def __init__(
        self,
        shard: str,
        tail: JournalTail,
        cursors: CursorStore,
        monotonic: Callable[[], float],
        begin_at: BeginAt = lambda shard, at_most: None,
        retention_bytes_max: int = RETENTION_BYTES_MAX,
    ) -> None:
        """Does no I/O."""
        self.shard = shard
        self._begin_at = begin_at
        self._backlog = Backlog(shard, tail, retention_bytes_max)
        self._tail = tail
        self._cursors = cursors
        self._monotonic = monotonic
        #: None: to be read from the store.
        self._cursor: Cursor | None = None
        #: Whether something was confirmed that the cursor does not say yet.
        self._owing = False
        #: No work before this.
        self._rest_until = float("-inf")
        self._retry_seconds = RETRY_SECONDS_MIN
        self._broken_seconds = BROKEN_SECONDS_MIN
        #: Last good block before the last failure.
        self._broken_after = -1
        self._published = 0
        self._lag_at = float("-inf")
        #: Whether the last read left blocks behind.
        self.behind = False
        self._restart()

    def _restart(self) -> None:
        self._projection = Projection(self.shard)
        self._chain = ChainReader()
        self._held: deque[_Held] = deque()
        self._owing = False

    def recheck(self) -> None:
        """The cursor may have been moved by another relay: look before the next block."""
        self._cursor = None

    def gather(self, messages_max: int) -> list[Outgoing] | None:
        """What to publish next: the same again until `settle` has said that it is through; None for a pause.

        Raises pymongo's errors.
        """
        self.behind = False
        if self._monotonic() < self._rest_until:
            return None
        try:
            cursor = self._cursor or self._adopt(self._cursors.get(self.shard))
            begun = bool(cursor.skipped_to) and self._say_skipped(cursor)
            if begun or not any(held.messages for held in self._held):
                self._fill(cursor, messages_max)
        except (JournalGap, UnreadableBlock, MalformedEvent) as error:
            self._stop(error)
            return None
        return [message for held in self._held for message in held.messages]

    def _adopt(self, stored: Cursor) -> Cursor:
        """Takes the stored cursor for ours: what it covers is done; when it was set back, all begins anew."""
        known = self._held[0].sequence - 1 if self._held else self._chain.sequence
        if stored.sequence < known:
            self._restart()
        while self._held and self._held[0].sequence <= stored.sequence:
            held = self._held.popleft()
            _check(self.shard, held.sequence, held.nonce, stored)
        self._cursor = stored
        return stored

    def _say_skipped(self, cursor: Cursor) -> bool:
        """What was skipped is said before anything else; whether that is new."""
        if self._held and self._held[0].sequence == cursor.sequence:
            return False
        event = skipped_event(self.shard, cursor.skipped_from, cursor.skipped_to, cursor.skipped_ms)
        held = _Held(sequence=cursor.sequence, nonce=cursor.nonce, messages=[_outgoing(event)])
        self._held.appendleft(held)
        return True

    def _skip_if_too_much(self) -> None:
        """Gives up the oldest blocks when too much waits: a full disk would stop routing itself."""
        cursor = self._cursor
        if cursor is None:
            return
        upto = self._backlog.to_skip(cursor.sequence)
        block = next(iter(self._tail.read(self.shard, upto - 1, 1)), None) if upto else None
        if block is None or block.sequence != upto:
            return
        first = cursor.skipped_from or cursor.sequence + 1
        new = Cursor(
            sequence=upto, nonce=block.nonce, skipped_from=first, skipped_to=upto, skipped_ms=block.now_ms
        )
        log.error("relay.events_skipped", shard=self.shard, first_sequence=first, last_sequence=upto)
        moved = self._cursors.move(self.shard, cursor, new)
        # What is held is below it by now.
        self._restart()
        self._cursor = new if moved else None

    def _fill(self, cursor: Cursor, messages_max: int) -> None:
        """Reads on, until there is enough to publish or there are no more blocks."""
        if not self._chain.sequence and cursor.sequence:
            start = self._begin_at(self.shard, cursor.sequence)
            self._projection, self._chain = start or (self._projection, self._chain)
            _check(self.shard, self._chain.sequence, self._chain.nonce, cursor)
        count = blocks = 0
        for block in self._tail.read(self.shard, self._chain.sequence, READ_BLOCKS_MAX):
            self._chain.accept(block)
            blocks += 1
            if block.sequence <= cursor.sequence:
                self._projection.skip(block)
                _check(self.shard, block.sequence, block.nonce, cursor)
                continue
            messages = [_outgoing(event) for event in self._projection.apply(block)]
            self._held.append(_Held(sequence=block.sequence, nonce=block.nonce, messages=messages))
            count += len(messages)
            if count >= messages_max:
                break
        self.behind = count >= messages_max or blocks == READ_BLOCKS_MAX
        if not self.behind and self._chain.sequence < cursor.sequence:
            raise JournalGap(
                f"{self.shard}: ends at {self._chain.sequence}, but was published up to {cursor.sequence}"
            )
        if not self.behind or self._chain.sequence > self._broken_after:
            self._broken_seconds = BROKEN_SECONDS_MIN
            _broken.labels(self.shard).set(0)

    def _stop(self, error: Exception) -> None:
        """Nothing is published over a gap. Read anew later: an operator, or a new primary, may mend it."""
        self._broken_after = self._chain.sequence
        self._restart()
        self._cursor = None
        self._rest_until = self._monotonic() + self._broken_seconds
        _broken.labels(self.shard).set(1)
        log.error(
            "relay.shard_stopped", shard=self.shard, error=str(error), retry_seconds=self._broken_seconds
        )
        self._broken_seconds = min(2 * self._broken_seconds, BROKEN_SECONDS_MAX)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """The broker's word for each message of `gather`; moves the cursor. Raises pymongo's errors."""
        words = iter(outcomes)
        for held in self._held:
            held.messages = [message for message in held.messages if not _count(message, next(words))]
        done = next((i for i, held in enumerate(self._held) if held.messages), len(self._held))
        self._owing = self._owing or bool(outcomes)
        if done:
            self._published = self._held[done - 1].sequence
            if self._owing or done >= CURSOR_BLOCKS_MAX:
                self._move(done)
        if any(held.messages for held in self._held):
            self._rest_until = self._monotonic() + self._retry_seconds
            log.warning("relay.unpublished", shard=self.shard, retry_seconds=self._retry_seconds)
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_SECONDS_MAX)
        else:
            self._retry_seconds = RETRY_SECONDS_MIN

    def _move(self, done: int) -> None:
        """Moves the cursor over the first `done` blocks held."""
        assert self._cursor is not None
        last = self._held[done - 1]
        cursor = Cursor(sequence=last.sequence, nonce=last.nonce)
        if not self._cursors.move(self.shard, self._cursor, cursor):
            # Another relay was here meanwhile. What both published has the same ids.
            log.warning("relay.cursor_moved", shard=self.shard, sequence=last.sequence)
            self._cursor = None
            return
        self._cursor = cursor
        self._owing = False
        for _ in range(done):
            self._held.popleft()

    def measure(self) -> None:
        """Sets the shard's lag, now and then. Raises pymongo's errors."""
        now = self._monotonic()
        if now - self._lag_at < LAG_SECONDS:
            return
        self._lag_at = now
        if self._cursor is not None:
            self._published = max(self._published, self._cursor.sequence)
        _lag.labels(self.shard).set(max(0, self._tail.newest(self.shard) - self._published))
        self._skip_if_too_much()

    def forget_metrics(self) -> None:
        """This process speaks for the shard no longer."""
        for each in (_lag, _broken, _backlog):
            each.labels(self.shard)
            each.remove(self.shard)


def _outgoing(event: Event) -> Outgoing:
    return Outgoing.event(event, mandatory=event.type not in _OPTIONAL)


def _check(shard: str, sequence: int, nonce: str, cursor: Cursor) -> None:
    """What the cursor says was published must be what stands in the journal."""
    if sequence == cursor.sequence and nonce != cursor.nonce:
        raise JournalGap(f"{shard}: block {sequence} is not the one that was published")


def _count(message: Outgoing, outcome: Outcome) -> bool:
    """Counts an outcome; whether the message is published."""
    kind = message.routing_key
    if outcome is Outcome.PUBLISHED:
        _published.labels(SOURCE, kind).inc()
        return True
    if outcome is Outcome.RETURNED:
        _unroutable.labels(SOURCE, kind).inc()
        log.error("relay.unroutable", type=kind, event_id=message.message_id)
    else:
        _unpublished.labels(SOURCE).inc()
    return False


class Relay:
    """Publishes the journals of all shards."""

    def __init__(
        self,
        tail: JournalTail,
        cursors: CursorStore,
        publisher: BatchPublisher,
        lease: Lease,
        *,
        begin_at: BeginAt = lambda shard, at_most: None,
        retention_bytes_max: int = RETENTION_BYTES_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Does no I/O. `begin_at` spares it the journal's beginning."""
        self._begin_at = begin_at
        self._retention_bytes_max = retention_bytes_max
        self._tail = tail
        self._cursors = cursors
        self._publisher = publisher
        self._lease = lease
        self._monotonic = monotonic
        self._feeds: dict[str, Feed] = {}
        self._first = 0
        self._epoch = -1
        self._discover_at = float("-inf")

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Relays until `stopping(seconds)`, which waits that long at most, says True, then frees the lease.

        Outages of database and broker are borne; anything unexpected is raised.
        """
        try:
            run_in_rounds(self._lease, self._turn, stopping)
        finally:
            self._stand_down()

    def _turn(self) -> float:
        """One round under the lease; seconds to wait before the next."""
        try:
            if not self._lead():
                self._stand_down()
                return STANDBY_SECONDS
            count = self.step()
            if any(feed.behind for feed in self._feeds.values()):
                return 0.0
            return BUSY_SECONDS if count else IDLE_SECONDS
        except LeaseLost as error:
            log.warning("relay.lease_lost", error=str(error))
            self._stand_down()
        except PyMongoError as error:
            log.warning("relay.database_away", error=repr(error))
            self._recheck()
            if not self._lease.held:
                # Whoever still reaches the database has it.
                self._stand_down()
        return STANDBY_SECONDS

    def _lead(self) -> bool:
        """Whether this relay is the one that works."""
        if not self._lease.take():
            return False
        if self._lease.epoch != self._epoch:
            self._epoch = self._lease.epoch
            self._recheck()
        _active.set(1)
        return True

    def _recheck(self) -> None:
        for feed in self._feeds.values():
            feed.recheck()

    def _stand_down(self) -> None:
        _active.set(0)
        for feed in self._feeds.values():
            feed.recheck()
            feed.forget_metrics()

    def step(self) -> int:
        """One round over all shards; how many events were published. LeaseLost, pymongo's errors."""
        self._discover()
        batch = self._gather()
        messages = [message for _, part in batch for message in part]
        self._lease.keep()
        outcomes = self._publisher.publish(messages, PUBLISH_SECONDS_MAX) if messages else []
        start = 0
        for feed, part in batch:
            feed.settle(outcomes[start : start + len(part)])
            start += len(part)
        for feed in self._feeds.values():
            feed.measure()
        return outcomes.count(Outcome.PUBLISHED)

    def _discover(self) -> None:
        now = self._monotonic()
        if now - self._discover_at < DISCOVER_SECONDS:
            return
        for shard in self._tail.shards():
            if shard not in self._feeds:
                self._feeds[shard] = Feed(
                    shard,
                    self._tail,
                    self._cursors,
                    self._monotonic,
                    self._begin_at,
                    self._retention_bytes_max,
                )
        self._discover_at = now

    def _gather(self) -> list[tuple[Feed, list[Outgoing]]]:
        """What each shard has to say; another one begins each time, so that none waits for ever."""
        feeds = list(self._feeds.values())
        self._first = (self._first + 1) % max(1, len(feeds))
        batch: list[tuple[Feed, list[Outgoing]]] = []
        room = ROUND_EVENTS_MAX
        for feed in feeds[self._first :] + feeds[: self._first]:
            if room <= 0:
                break
            self._lease.keep()
            messages = feed.gather(room)
            if messages is not None:
                room -= len(messages)
                batch.append((feed, messages))
        return batch
