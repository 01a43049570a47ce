"""Requests, errors and duration of what a process asks of MongoDB, by collection and command.

pymongo tells a listener of every command of mongoengine's client; the servers' hot reads are timed around
(counted.py). What a query asks for is never looked at, only its collection and command.

A hot read pays for this with every answer, so as little as possible is done then: numbers of our own are
raised, and Prometheus' families are made of them when somebody scrapes.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from chassis import metrics
from chassis.metrics import OTHERS

#: Commands that are counted; the driver's own conversation with the server is not.
COMMANDS = frozenset(
    {"aggregate", "count", "delete", "distinct", "find", "findAndModify", "getMore", "insert", "update"}
)
#: Pairs of collection and command with series of their own; the rest is one pair.
PAIRS_MAX = 64
#: Commands under way at once that are followed; more than any pool of connections.
OPEN_MAX = 10_000
#: Upper bounds of the latency buckets, seconds.
BUCKETS = (0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0)

_LABELS = ("service", "collection", "command")
_BOUNDS = [floatToGoString(bound) for bound in (*BUCKETS, float("inf"))]


class Tally:
    """What is counted of one command on one collection."""

    __slots__ = ("_buckets", "_failed", "_lock", "_seconds", "labels")

    def __init__(self, labels: tuple[str, str, str]) -> None:
        #: (service, collection, command).
        self.labels = labels
        self._lock = threading.Lock()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._failed = 0
        self._seconds = 0.0

    def record(self, seconds: float, *, failed: bool = False) -> None:
        """Counts one command; in any thread."""
        index = bisect_left(BUCKETS, seconds)
        with self._lock:
            self._buckets[index] += 1
            self._seconds += seconds
            self._failed += failed

    def seen(self) -> tuple[list[int], int, float]:
        """(commands by bucket, failed ones among them, seconds in all)."""
        with self._lock:
            return list(self._buckets), self._failed, self._seconds


class Tallies:
    """The tallies of a process, and their families for a scrape."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], Tally] = {}

    def of(self, service: str, collection: str, command: str) -> Tally:
        """The tally of a command on a collection; those beyond `PAIRS_MAX` share one."""
        key = (service, collection, command)
        found = self._known.get(key)
        if found is None:
            with self._lock:
                named = sum(known[0] == service for known in self._known)
                if key not in self._known and named >= PAIRS_MAX:
                    key = (service, OTHERS, OTHERS)
                found = self._known.setdefault(key, Tally(key))
        return found

    def look(self) -> None:
        """Nothing: a tally may be read in any thread."""

    def collect(self) -> Iterable[Metric]:
        """Both families."""
        counted = CounterMetricFamily(
            "callmesh_db_queries",
            "Commands that MongoDB answered, or that failed.",
            labels=(*_LABELS, "outcome"),
        )
        timed = HistogramMetricFamily(
            "callmesh_db_query_seconds", "Time from sending a command to its answer.", labels=_LABELS
        )
        for tally in list(self._known.values()):
            buckets, failed, seconds = tally.seen()
            counted.add_metric((*tally.labels, "ok"), sum(buckets) - failed)
            if failed:
                counted.add_metric((*tally.labels, "failed"), failed)
            upto, rising = 0, []
            for bound, count in zip(_BOUNDS, buckets, strict=True):
                upto += count
                rising.append((bound, upto))
            timed.add_metric(tally.labels, rising, seconds)
        yield counted
        yield timed


#: Of this process.
TALLIES = Tallies()
metrics.use_source("queries", TALLIES)


class QueryListener(CommandListener):
    """Counts the commands of the clients that it is given to."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._pairs: dict[tuple[str, str], Tally] = {}
        self._open: dict[int, Tally] = {}

    def started(self, event: CommandStartedEvent) -> None:
        """Remembers what a request is about: its answer does not say."""
        name = event.command_name
        if name in COMMANDS and len(self._open) < OPEN_MAX:
            target: Any = event.command.get("collection" if name == "getMore" else name)
            pair = self._pairs.get((target, name))
            self._open[event.request_id] = pair or self._pair(str(target), name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Counts an answer."""
        tally = self._open.pop(event.request_id, None)
        if tally is not None:
            tally.record(event.duration_micros / 1e6)

    def failed(self, event: CommandFailedEvent) -> None:
        """Counts a failure: refused by the server, or the connection broke."""
        tally = self._open.pop(event.request_id, None)
        if tally is not None:
            tally.record(event.duration_micros / 1e6, failed=True)

    def _pair(self, collection: str, command: str) -> Tally:
        tally = TALLIES.of(self._service, collection, command)
        if len(self._pairs) < PAIRS_MAX:
            self._pairs[collection, command] = tally
        return tally
