"""Calls that are refused before they wait: no shard has them, so no journal tells of them. The router that
refused counts, and writes its counts down as wholes: writing them twice adds nothing.

One document a queue and half-hour of the router's region, with a part for each router process. A router that
dies takes what it refused within the last `WRITE_SECONDS` with it, from the reports and from nowhere else.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from chassis import logs, metrics
from chassis.clock import Clock
from chassis.ids import new_id
from routing.reports import BLOCKED, SLOT_MS
from routing.reports_store import REPORTS

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: How often counts are written, and how soon again when the database was away, real seconds.
WRITE_SECONDS, AWAY_SECONDS = 1.0, 2.0
#: Documents of one write.
WRITE_ROWS_MAX = 200
#: Queues and half-hours whose counts are kept here at once; those of others are told by the metric alone.
KEPT_MAX = 20_000

#: (queue, beginning of the half-hour, milliseconds).
Key = tuple[str, int]

log = logs.get_logger(__name__)
_blocked = metrics.counter(
    "callmesh_calls_blocked_total", "Calls refused before they waited, by the error's reason.", ("reason",)
)
_uncounted = metrics.counter(
    "callmesh_calls_blocked_uncounted_total", "Of these, calls that are missing from the reports."
)


class BlockedCalls:
    """One a router."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], region: str, clock: Clock) -> None:
        self._rows: Any = database.get_collection(REPORTS, write_concern=WriteConcern(w="majority"))
        self._region = region
        self._clock = clock
        #: This process's part of a document.
        self._part = f"parts.{new_id()}"
        #: What is not in the database yet, or still of the present half-hour.
        self._counts: dict[Key, Counter[str]] = {}
        self._unwritten: dict[Key, None] = {}

    def note(self, queue: str, reason: str) -> None:
        """A call of a queue that is in the directory was refused."""
        _blocked.labels(reason).inc()
        now_ms = self._clock.now_ms()
        key = (queue, now_ms - now_ms % SLOT_MS)
        if key not in self._counts and len(self._counts) >= KEPT_MAX:
            _uncounted.inc()
            return
        self._counts.setdefault(key, Counter())[reason] += 1
        self._unwritten[key] = None

    async def run(self) -> None:
        """Writes for ever."""
        while True:
            await asyncio.sleep(WRITE_SECONDS if await self.write() else AWAY_SECONDS)

    async def write(self) -> bool:
        """Writes what was counted since; False when the database did not answer: it is written later."""
        while self._unwritten:
            keys = list(itertools.islice(self._unwritten, WRITE_ROWS_MAX))
            for key in keys:
                del self._unwritten[key]
            try:
                await self._rows.bulk_write([self._operation(key) for key in keys], ordered=False)
            except PyMongoError as error:
                log.warning("blocked_calls.wait", rows=len(keys), error=type(error).__name__)
                self._wait_on(keys)
                return False
            except asyncio.CancelledError:
                self._wait_on(keys)
                raise
        self._forget()
        return True

    def _wait_on(self, keys: Sequence[Key]) -> None:
        self._unwritten.update(dict.fromkeys(keys))

    def _operation(self, key: Key) -> UpdateOne:
        queue, start_ms = key
        values = {
            "shard": self._region,
            "kind": BLOCKED,
            "subject": queue,
            "start": start_ms,
            self._part: dict(self._counts[key]),
        }
        id = f"{self._region}|{BLOCKED}|{queue}|{start_ms}"
        return UpdateOne({"_id": id}, {"$set": values}, upsert=True)

    def _forget(self) -> None:
        """Half-hours that are over and written."""
        present_ms = self._clock.now_ms() - SLOT_MS
        for key in [key for key in self._counts if key[1] < present_ms and key not in self._unwritten]:
            del self._counts[key]
