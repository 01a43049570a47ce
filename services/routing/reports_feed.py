"""Counts the journals of all shards into half-hour reports, in the worker, under a lease.

1. A shard's blocks are read in order by majority reads; those up to the stored cursor are applied without
   being counted, those above are counted, and their rows are written about once a second.
2. The cursor moves after the rows. A crash between the two counts the same blocks once more, which adds
   nothing (reports.py, rule 3).
3. Whoever finds that another has written forgets everything and begins again from what is stored.
4. A journal that cannot be read on stops its shard, loudly, and is tried again after a growing pause; the
   others go on.

Blocking code: it runs in a green thread of the worker, or in a plain one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pymongo.errors import PyMongoError

from chassis import logs, metrics
from chassis.lease import Lease, LeaseLost, run_in_rounds
from routing.journal import ChainReader, JournalGap
from routing.publish import UnreadableBlock
from routing.relay import BeginAt, JournalTail
from routing.reports import SLOT_MS, Counter, Meter, Rows, slot_of
from routing.reports_store import Counted, ReportStore

#: Blocks of one shard read in one round.
READ_BLOCKS_MAX = 500
#: Rows are written, and the cursor of a quiet shard is moved, this often, real seconds.
WRITE_SECONDS = 1.0
CURSOR_SECONDS = 2.0
#: Blocks counted before their rows are written whatever the time.
UNWRITTEN_BLOCKS_MAX = 2_000
#: Days, in business time, that reports are kept.
DAYS_KEPT = 400
DAY_MS = 86_400_000
#: Pauses of a round with work, of one without, and of one that waits for lease or database, real seconds.
BUSY_SECONDS, IDLE_SECONDS, STANDBY_SECONDS = 0.02, 0.5, 1.0
#: How often new shards are looked for, real seconds.
DISCOVER_SECONDS = 2.0
#: Lease of who counts, real seconds.
LEASE_SECONDS = 10.0
#: First and longest pause of a shard whose journal cannot be counted, real seconds.
BROKEN_SECONDS_MIN, BROKEN_SECONDS_MAX = 5.0, 300.0

log = logs.get_logger(__name__)
_counted = metrics.counter("callmesh_reports_blocks_total", "Blocks counted into reports.", ("shard",))
_broken = metrics.gauge(
    "callmesh_reports_shard_stopped", "1 while a shard's journal cannot be counted.", ("shard",)
)


class Overtaken(Exception):
    """Another process counts this shard too."""


class ShardReports:
    """One shard on its way into rows."""

    def __init__(
        self,
        shard: str,
        tail: JournalTail,
        store: ReportStore,
        monotonic: Callable[[], float],
        begin_at: BeginAt = lambda shard, at_most: None,
        meter: Meter | None = None,
    ) -> None:
        """Does no I/O."""
        self.shard = shard
        self._meter = meter
        self._begin_at = begin_at
        self._tail = tail
        self._store = store
        self._monotonic = monotonic
        self._rest_until = float("-inf")
        self._broken_seconds = BROKEN_SECONDS_MIN
        self.restart()

    def restart(self) -> None:
        """Forgets what is in memory: the next step begins with what is stored."""
        self._rows = Rows(lambda start_ms: self._store.load(self.shard, start_ms))
        self._counter = Counter(self.shard, self._rows, self._meter)
        self._chain = ChainReader()
        self._cursor: Counted | None = None
        self._seen = Counted()
        self._unwritten = 0
        self._written_at = self._monotonic()
        self._pruned_day = 0

    def step(self) -> int:
        """One round: how many blocks it read. Raises pymongo's errors."""
        if self._monotonic() < self._rest_until:
            return 0
        try:
            blocks = self._read()
            self._write_if_due(more=blocks == READ_BLOCKS_MAX)
        except Overtaken:
            log.warning("reports.overtaken", shard=self.shard)
            self.restart()
            self._rest_until = self._monotonic() + STANDBY_SECONDS
            return 0
        except (JournalGap, UnreadableBlock) as error:
            self._stop(error)
            return 0
        if blocks:
            self._broken_seconds = BROKEN_SECONDS_MIN
            _broken.labels(self.shard).set(0)
        return blocks

    def _read(self) -> int:
        cursor = self._cursor = self._cursor or self._store.counted(self.shard)
        if not self._chain.sequence and cursor.sequence:
            start = self._begin_at(self.shard, cursor.sequence)
            if start is not None:
                self._counter.state, self._chain = start[0].state, start[1]
        blocks = 0
        for block in self._tail.read(self.shard, self._chain.sequence, READ_BLOCKS_MAX):
            self._chain.accept(block)
            blocks += 1
            if block.sequence <= cursor.sequence:
                if block.sequence == cursor.sequence and block.nonce != cursor.nonce:
                    raise JournalGap(f"{self.shard}: block {block.sequence} is not the one that was counted")
                self._counter.skip(block)
                continue
            self._counter.count(block)
            self._unwritten += 1
            self._seen = Counted(
                sequence=block.sequence, nonce=block.nonce, now_ms=self._counter.state.now_ms
            )
        _counted.labels(self.shard).inc(blocks)
        return blocks

    def _write_if_due(self, *, more: bool) -> None:
        waited = self._monotonic() - self._written_at
        if not self._unwritten or (waited < WRITE_SECONDS and self._unwritten < UNWRITTEN_BLOCKS_MAX):
            return
        changed = self._rows.changed()
        if changed or waited >= CURSOR_SECONDS or more:
            self.write()

    def write(self) -> None:
        """Writes the changed rows, then moves the cursor over them. Raises Overtaken, pymongo's errors."""
        assert self._cursor is not None
        changed = self._rows.changed()
        if not self._store.write(self.shard, changed):
            raise Overtaken(self.shard)
        for row in changed:
            row.version, row.dirty = row.version + 1, False
        if not self._store.move(self.shard, self._cursor, self._seen):
            raise Overtaken(self.shard)
        self._cursor, self._unwritten, self._written_at = self._seen, 0, self._monotonic()
        self._rows.forget_before(slot_of(self._seen.now_ms) - SLOT_MS)
        self._prune()

    def _prune(self) -> None:
        day = self._seen.now_ms // DAY_MS
        if day > self._pruned_day:
            self._store.prune(self.shard, (day - DAYS_KEPT) * DAY_MS)
            self._pruned_day = day

    def _stop(self, error: Exception) -> None:
        """Nothing is counted over a gap. Read anew later."""
        self.restart()
        self._rest_until = self._monotonic() + self._broken_seconds
        _broken.labels(self.shard).set(1)
        log.error("reports.shard_stopped", shard=self.shard, error=str(error), seconds=self._broken_seconds)
        self._broken_seconds = min(2 * self._broken_seconds, BROKEN_SECONDS_MAX)


class Reports:
    """Counts the journals of all shards."""

    def __init__(
        self,
        tail: JournalTail,
        store: ReportStore,
        lease: Lease,
        *,
        begin_at: BeginAt = lambda shard, at_most: None,
        monotonic: Callable[[], float] = time.monotonic,
        meter: Meter | None = None,
    ) -> None:
        """Does no I/O. `begin_at` spares it the journal's beginning; `meter` hears what is counted."""
        self._meter = meter
        self._begin_at = begin_at
        self._tail = tail
        self._store = store
        self._lease = lease
        self._monotonic = monotonic
        self._shards: dict[str, ShardReports] = {}
        self._discover_at = float("-inf")

    def run(self, stopping: Callable[[float], bool]) -> None:
        """Counts until `stopping(seconds)`, which waits that long at most, says True, then frees the lease.

        Outages of the database are borne; anything unexpected is raised.
        """
        run_in_rounds(self._lease, self._turn, stopping)

    def _turn(self) -> float:
        """One round under the lease; seconds to wait before the next."""
        try:
            if not self._lease.take():
                self._forget()
                return STANDBY_SECONDS
            return BUSY_SECONDS if self.step() else IDLE_SECONDS
        except LeaseLost as error:
            log.warning("reports.lease_lost", error=str(error))
        except PyMongoError as error:
            log.warning("reports.database_away", error=repr(error))
        # Whether the last write took place is unknown.
        self._forget()
        return STANDBY_SECONDS

    def _forget(self) -> None:
        """Somebody else's word counts, or nobody's: a stop of ours would be alerted for ever."""
        for name, each in self._shards.items():
            each.restart()
            _broken.labels(name).set(0)

    def step(self) -> int:
        """One round over all shards; the most blocks that one of them read. LeaseLost, pymongo's errors."""
        now = self._monotonic()
        if now - self._discover_at >= DISCOVER_SECONDS:
            for shard in self._tail.shards():
                if shard not in self._shards:
                    self._shards[shard] = ShardReports(
                        shard, self._tail, self._store, self._monotonic, self._begin_at, self._meter
                    )
            self._discover_at = now
        most = 0
        for each in list(self._shards.values()):
            self._lease.keep()
            most = max(most, each.step())
        # A heartbeat's block or two are no reason to hurry.
        return most if most >= READ_BLOCKS_MAX else 0
