"""Snapshots of shards' states, and what they allow: a quick start, and a journal that does not grow for ever.

1. A snapshot is made in the worker, of committed blocks only, under a lease: parts first (image.py), then the
   manifest, which makes them count. The newest two are kept, and the newest that a reader of the journal
   (relay, reports) still needs to begin again from its cursor.
2. A reader takes the newest snapshot whose parts are all there and unchanged, and whose format it knows;
   failing that an older one; failing that the journal's beginning.
3. Pruned are blocks below every kept snapshot, published and counted, older than the retention, and not
   openings: an opening is what a leader that wakes runs into.
4. Two makers at once (a lease may overlap) make two snapshots of the same states. Parts carry their maker's
   name, so they do not mix; parts without a manifest are swept up once a newer snapshot stands.

Blocking code: it runs in a green thread of the worker, or in a plain one.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bson import Binary
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from chassis import logs, metrics
from chassis.lease import Lease, LeaseLost, run_in_rounds
from routing import image
from routing.journal import (
    COLLECTION,
    SNAPSHOT_PARTS,
    SNAPSHOTS,
    ChainReader,
    JournalGap,
    Manifest,
    block_key,
    end_of,
    manifest_from_document,
    manifest_key,
    manifest_to_document,
)
from routing.publish import Projection, UnreadableBlock

if TYPE_CHECKING:
    from pymongo.collection import Collection
    from pymongo.database import Database

    from routing.relay import JournalTail

#: Snapshots kept beside those that a reader's cursor needs.
KEPT = 2
#: Blocks of one shard read in one round.
READ_BLOCKS_MAX = 500
#: Blocks pruned at once, and after one snapshot.
PRUNE_BLOCKS, PRUNE_BLOCKS_MAX = 1_000, 100_000
#: Pauses of a round that found much, of one that found little, and of one that waits for lease or database,
#: real seconds.
BUSY_SECONDS, IDLE_SECONDS, STANDBY_SECONDS = 0.02, 1.0, 1.0
#: How often new shards are looked for, real seconds.
DISCOVER_SECONDS = 5.0
#: Lease of the maker, real seconds.
LEASE_SECONDS = 15.0
#: First and longest pause of a shard whose journal cannot be read, real seconds.
BROKEN_SECONDS_MIN, BROKEN_SECONDS_MAX = 5.0, 300.0

log = logs.get_logger(__name__)
_made = metrics.counter("callmesh_snapshots_total", "Snapshots made.", ("shard",))
_seconds = metrics.histogram("callmesh_snapshot_seconds", "Time to make a snapshot and write it.", ("shard",))
_bytes = metrics.gauge("callmesh_snapshot_bytes", "Size of the newest snapshot made here.", ("shard",))
_pruned = metrics.counter("callmesh_journal_pruned_blocks_total", "Blocks pruned.", ("shard",))
_broken = metrics.gauge(
    "callmesh_snapshot_shard_stopped", "1 while no snapshot of a shard can be made.", ("shard",)
)


class SnapshotStore(Protocol):
    """Keeps snapshots and prunes journals. Methods raise pymongo's errors when the database does not
    answer.
    """

    def manifests(self, shard: str) -> list[Manifest]:
        """The shard's manifests, newest first."""

    def parts(self, manifest: Manifest) -> Iterator[bytes]:
        """The parts that are there, in order; fewer than the manifest says when some are gone."""

    def put_part(self, shard: str, sequence: int, maker: str, number: int, part: bytes) -> None:
        """Writes one part; counts for nothing until its manifest stands."""

    def put_manifest(self, manifest: Manifest) -> bool:
        """Makes the parts count; False when there is a snapshot of that sequence already."""

    def drop(self, manifest: Manifest) -> None:
        """Removes a snapshot, its manifest first."""

    def sweep(self, shard: str, below: int, kept: Sequence[Manifest]) -> None:
        """Removes parts of snapshots below a sequence that belong to none that is kept."""

    def prune(self, shard: str, below: int, before_ms: int, limit: int) -> int:
        """Removes at most `limit` blocks below a sequence and older than a time (business milliseconds), no
        openings; how many.
        """


class MongoSnapshots:
    """Snapshots in MongoDB."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        majority: dict[str, Any] = {
            "write_concern": WriteConcern(w="majority", j=True),
            "read_concern": ReadConcern("majority"),
            "read_preference": ReadPreference.PRIMARY,
        }
        self._manifests: Collection[dict[str, Any]] = database.get_collection(SNAPSHOTS, **majority)
        self._parts: Collection[dict[str, Any]] = database.get_collection(SNAPSHOT_PARTS, **majority)
        self._blocks: Collection[dict[str, Any]] = database.get_collection(COLLECTION, **majority)

    def manifests(self, shard: str) -> list[Manifest]:
        found = self._manifests.find({"_id": {"$gt": f"{shard}:", "$lt": end_of(shard)}}).sort("_id", -1)
        return [manifest_from_document(document) for document in found]

    def parts(self, manifest: Manifest) -> Iterator[bytes]:
        for document in self._parts.find(manifest.span).sort("_id", 1).batch_size(4):
            yield bytes(document["body"])

    def put_part(self, shard: str, sequence: int, maker: str, number: int, part: bytes) -> None:
        key = f"{manifest_key(shard, sequence)}:{maker}:{number:06d}"
        self._parts.insert_one({"_id": key, "body": Binary(part)})

    def put_manifest(self, manifest: Manifest) -> bool:
        try:
            self._manifests.insert_one(manifest_to_document(manifest))
        except DuplicateKeyError:
            return False
        return True

    def drop(self, manifest: Manifest) -> None:
        self._manifests.delete_one({"_id": manifest.key})
        self._parts.delete_many(manifest.span)

    def sweep(self, shard: str, below: int, kept: Sequence[Manifest]) -> None:
        span = {"_id": {"$gt": f"{shard}:", "$lt": manifest_key(shard, below)}}
        self._parts.delete_many({"$and": [span, {"$nor": [manifest.span for manifest in kept]}]})

    def prune(self, shard: str, below: int, before_ms: int, limit: int) -> int:
        old = {
            "_id": {"$gt": block_key(shard, 0), "$lt": block_key(shard, below)},
            "opening": False,
            "now": {"$lt": before_ms},
        }
        found = [row["_id"] for row in self._blocks.find(old, {"_id": 1}).sort("_id", 1).limit(limit)]
        return self._blocks.delete_many({"_id": {"$in": found}}).deleted_count if found else 0


def seal(parts: Iterable[bytes]) -> str:
    """What a manifest says of its parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def nearest_start(store: SnapshotStore, shard: str, at_most: int) -> tuple[Projection, ChainReader] | None:
    """The newest usable snapshot at or below a sequence, ready to read on from; None for the journal's
    beginning. Raises pymongo's errors.
    """
    for manifest in store.manifests(shard):
        if manifest.sequence > at_most or manifest.format > image.FORMAT:
            continue
        parts = list(store.parts(manifest))
        if len(parts) != manifest.parts or seal(parts) != manifest.seal:
            log.error("snapshot.incomplete", shard=shard, sequence=manifest.sequence)
            continue
        try:
            projection = Projection(shard, image.restore(shard, parts))
        except image.ImageError as error:
            log.error("snapshot.unreadable", shard=shard, sequence=manifest.sequence, error=str(error))
            continue
        return projection, ChainReader(manifest.sequence, manifest.nonce)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotOptions:
    """When snapshots are made and what is kept."""

    #: Events after which one is made.
    events: int = 50_000
    #: Blocks after which one is made.
    blocks: int = 20_000
    #: Blocks younger than this are kept, business milliseconds.
    retention_ms: int = 86_400_000


#: How far everybody who must read a shard's journal has come: (shard) -> sequence.
ReadTo = Callable[[str], int]


class ShardSnapshots:
    """One shard: follows its journal and makes a snapshot now and then."""

    def __init__(
        self, shard: str, tail: JournalTail, store: SnapshotStore, options: SnapshotOptions, read_to: ReadTo
    ) -> None:
        """Does no I/O."""
        self.shard = shard
        self._tail = tail
        self._store = store
        self._options = options
        self._read_to = read_to
        self.restart()

    def restart(self) -> None:
        """Forgets what is in memory; the next step begins with the newest snapshot."""
        self._projection: Projection | None = None
        self._chain = ChainReader()
        self._events = self._blocks = 0

    def step(self) -> int:
        """Reads on, and makes a snapshot when one is due; blocks read. Raises JournalGap, UnreadableBlock,
        pymongo's errors.
        """
        projection = self._projection
        if projection is None:
            newest = self._tail.newest(self.shard)
            start = nearest_start(self._store, self.shard, newest)
            projection, self._chain = start or (Projection(self.shard), ChainReader())
            self._projection = projection
        count = 0
        for block in self._tail.read(self.shard, self._chain.sequence, READ_BLOCKS_MAX):
            self._chain.accept(block)
            projection.skip(block)
            count += 1
            self._events += block.count
        self._blocks += count
        if projection.diverged:
            raise UnreadableBlock(f"{self.shard}: the state is not the leader's at {self._chain.sequence}")
        if self._events >= self._options.events or self._blocks >= self._options.blocks:
            self.make()
        return count

    def make(self) -> Manifest | None:
        """Makes a snapshot of what was read so far, drops old ones and prunes; None when there is one already
        or nothing to make one of.
        """
        if self._projection is None or not self._chain.sequence:
            return None
        self._events = self._blocks = 0
        began = time.monotonic()
        manifest = self._write(self._projection)
        _seconds.labels(self.shard).observe(time.monotonic() - began)
        self._tidy(self._projection.state.now_ms)
        return manifest

    def _write(self, projection: Projection) -> Manifest | None:
        state, sequence = projection.state, self._chain.sequence
        newer = next(iter(self._store.manifests(self.shard)), None)
        if newer is not None and newer.sequence >= sequence:
            return None
        maker, found, number, size = secrets.token_hex(6), hashlib.sha256(), 0, 0
        for part in image.dump(state):
            assert len(part) <= image.PART_BYTES_MAX, "a part holds many rows of bounded size"
            found.update(part)
            self._store.put_part(self.shard, sequence, maker, number, part)
            number, size = number + 1, size + len(part)
        manifest = Manifest(
            shard=self.shard,
            sequence=sequence,
            nonce=self._chain.nonce,
            epoch=state.epoch,
            ordinal=state.ordinal,
            now_ms=state.now_ms,
            format=image.FORMAT,
            parts=number,
            maker=maker,
            seal=found.hexdigest(),
        )
        if not self._store.put_manifest(manifest):
            return None
        _made.labels(self.shard).inc()
        _bytes.labels(self.shard).set(size)
        log.info("snapshot.made", shard=self.shard, sequence=sequence, parts=number, bytes=size)
        return manifest

    def _tidy(self, now_ms: int) -> None:
        """Drops snapshots that nobody needs, then blocks that nobody needs."""
        manifests = self._store.manifests(self.shard)
        read_to = self._read_to(self.shard)
        needed = next((m for m in manifests if m.sequence <= read_to), None)
        kept = [m for n, m in enumerate(manifests) if n < KEPT or m is needed]
        for manifest in manifests:
            if manifest not in kept:
                self._store.drop(manifest)
        if not manifests:
            return
        self._store.sweep(self.shard, manifests[0].sequence, kept)
        if len(kept) < KEPT or needed is None:
            return
        below = min(kept[-1].sequence, read_to)
        self._prune(below, now_ms - self._options.retention_ms)

    def _prune(self, below: int, before_ms: int) -> None:
        pruned = 0
        while pruned < PRUNE_BLOCKS_MAX:
            count = self._store.prune(self.shard, below, before_ms, PRUNE_BLOCKS)
            pruned += count
            if count < PRUNE_BLOCKS:
                break
        if pruned:
            _pruned.labels(self.shard).inc(pruned)
            log.info("journal.pruned", shard=self.shard, blocks=pruned, below=below)


@dataclass(slots=True)
class _Pause:
    """Of a shard whose journal cannot be read."""

    until: float = float("-inf")
    seconds: float = BROKEN_SECONDS_MIN


class Snapshotter:
    """Makes snapshots of all shards. One works at a time, under a lease."""

    def __init__(
        self,
        tail: JournalTail,
        store: SnapshotStore,
        lease: Lease,
        options: SnapshotOptions,
        read_to: ReadTo,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Does no I/O."""
        self._tail = tail
        self._store = store
        self._lease = lease
        self._options = options
        self._read_to = read_to
        self._monotonic = monotonic
        self._shards: dict[str, ShardSnapshots] = {}
        self._pauses: dict[str, _Pause] = {}
        self._discover_at = float("-inf")

    @property
    def shards(self) -> Mapping[str, ShardSnapshots]:
        """Those that were found, by id."""
        return self._shards

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Works until `stopping(seconds)`, which waits that long at most, says True, then frees the lease."""
        run_in_rounds(self._lease, self._turn, stopping)

    def _turn(self) -> float:
        """One round under the lease; seconds to wait before the next."""
        try:
            if not self._lease.take():
                self._forget()
                return STANDBY_SECONDS
            return BUSY_SECONDS if self.step() >= READ_BLOCKS_MAX else IDLE_SECONDS
        except LeaseLost as error:
            log.warning("snapshot.lease_lost", error=str(error))
            self._forget()
        except PyMongoError as error:
            log.warning("snapshot.database_away", error=repr(error))
        return STANDBY_SECONDS

    def _forget(self) -> None:
        """Somebody else's word counts, or nobody's: a stop of ours would be alerted for ever."""
        for name, shard in self._shards.items():
            shard.restart()
            _broken.labels(name).set(0)

    def step(self) -> int:
        """One round over all shards; the most blocks that one of them read. Raises LeaseLost, pymongo's
        errors.
        """
        now = self._monotonic()
        if now - self._discover_at >= DISCOVER_SECONDS:
            self._discover_at = now
            for shard in self._tail.shards():
                if shard not in self._shards:
                    self._shards[shard] = ShardSnapshots(
                        shard, self._tail, self._store, self._options, self._read_to
                    )
        most = 0
        for name, each in self._shards.items():
            self._lease.keep()
            pause = self._pauses.setdefault(name, _Pause())
            if now < pause.until:
                continue
            try:
                most = max(most, each.step())
            except (JournalGap, UnreadableBlock) as error:
                self._stop(each, pause, error)
            else:
                pause.seconds = BROKEN_SECONDS_MIN
                _broken.labels(name).set(0)
        return most

    def _stop(self, shard: ShardSnapshots, pause: _Pause, error: Exception) -> None:
        """Begun again later, from the newest snapshot: this reader may only have been left behind."""
        shard.restart()
        pause.until = self._monotonic() + pause.seconds
        pause.seconds = min(2 * pause.seconds, BROKEN_SECONDS_MAX)
        _broken.labels(shard.shard).set(1)
        log.error("snapshot.shard_stopped", shard=shard.shard, error=str(error), retry_seconds=pause.seconds)
