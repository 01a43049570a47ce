"""Requests, errors and duration of what a process asks of MongoDB, by collection and command.

pymongo tells a listener of every command; both of its clients and mongoengine are heard. What a query asks
for is never looked at, only its collection and command.
"""

from __future__ import annotations

from typing import Any

from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from chassis import metrics
from chassis.metrics import OTHERS, RedMetrics

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


def query_metrics(service: str, collection: str, command: str) -> RedMetrics:
    """What is counted of one command on one collection; outcomes are "ok" and "failed"."""
    return RedMetrics(
        metrics.counter(
            "callmesh_db_queries_total",
            "Commands that MongoDB answered, or that failed.",
            ("service", "collection", "command", "outcome"),
        ),
        metrics.histogram(
            "callmesh_db_query_seconds",
            "Time from sending a command to its answer.",
            ("service", "collection", "command"),
            BUCKETS,
        ),
        (service, collection, command),
        "ok",
    )


class QueryListener(CommandListener):
    """Counts the commands of the clients that it is given to."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._pairs: dict[tuple[str, str], RedMetrics] = {}
        self._open: dict[int, RedMetrics] = {}

    def started(self, event: CommandStartedEvent) -> None:
        """Remembers what a request is about: its answer does not say."""
        name = event.command_name
        if name in COMMANDS and len(self._open) < OPEN_MAX:
            target: Any = event.command.get("collection" if name == "getMore" else name)
            self._open[event.request_id] = self._pair(str(target), name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Counts an answer."""
        pair = self._open.pop(event.request_id, None)
        if pair is not None:
            pair.record("ok", event.duration_micros / 1e6)

    def failed(self, event: CommandFailedEvent) -> None:
        """Counts a failure: refused by the server, or the connection broke."""
        pair = self._open.pop(event.request_id, None)
        if pair is not None:
            pair.record("failed", event.duration_micros / 1e6)

    def _pair(self, collection: str, command: str) -> RedMetrics:
        found = self._pairs.get((collection, command))
        if found is None:
            key = (collection, command) if len(self._pairs) < PAIRS_MAX else (OTHERS, OTHERS)
            found = self._pairs.get(key)
            if found is None:
                found = self._pairs[key] = query_metrics(self._service, *key)
        return found
