"""Prometheus metrics, the same way in both kinds of process.

Labels must be bounded: take them from tables of our own (methods, queues, codes), never from what a client
sent.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

#: Upper bounds of latency buckets, seconds.
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_lock = threading.Lock()
_known: dict[str, Any] = {}

MetricType = TypeVar("MetricType", Counter, Gauge, Histogram)


def _once(kind: type[MetricType], name: str, doc: str, labels: Sequence[str], **options: Any) -> MetricType:
    with _lock:
        found = _known.get(name)
        if found is None:
            found = _known[name] = kind(name, doc, tuple(labels), **options)
    if type(found) is not kind or tuple(found._labelnames) != tuple(labels):
        raise ValueError(f"metric {name} was made before as something else")
    made: MetricType = found
    return made


def counter(name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
    """The counter of this name, made at the first call; ValueError when it exists with other labels."""
    return _once(Counter, name, doc, labels)


def gauge(name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
    """The gauge of this name, made at the first call; ValueError when it exists with other labels."""
    return _once(Gauge, name, doc, labels)


def histogram(
    name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS_BUCKETS
) -> Histogram:
    """The histogram of this name, made at the first call; ValueError when it exists with other labels."""
    return _once(Histogram, name, doc, labels, buckets=tuple(buckets))


def exposition() -> tuple[str, bytes]:
    """All metrics of this process for a scrape: (content type, body)."""
    return CONTENT_TYPE_LATEST, generate_latest(REGISTRY)


class RedMetrics:
    """Requests, errors and duration of one operation, with the label values looked up beforehand."""

    __slots__ = ("_by_code", "_labels", "_ok", "_requests", "_seconds")

    def __init__(self, requests: Counter, seconds: Histogram, labels: Sequence[str], ok: str) -> None:
        """`requests` has one label more than `seconds`, the outcome; `ok` is the outcome of most."""
        self._requests = requests
        self._labels = tuple(labels)
        self._seconds = seconds.labels(*labels)
        self._ok = ok
        self._by_code: dict[str, Any] = {ok: requests.labels(*labels, ok)}

    def record(self, outcome: str, seconds: float) -> None:
        """Counts one operation. `outcome` must come from a fixed table."""
        child = self._by_code.get(outcome)
        if child is None:
            child = self._by_code[outcome] = self._requests.labels(*self._labels, outcome)
        child.inc()
        self._seconds.observe(seconds)


def rpc_metrics(service: str, method: str) -> RedMetrics:
    """What is counted of one RPC; outcomes are gRPC's code names."""
    return RedMetrics(
        counter(
            "callmesh_rpc_requests_total", "RPCs finished, by status code.", ("service", "method", "code")
        ),
        histogram("callmesh_rpc_seconds", "Time from the start of an RPC to its end.", ("service", "method")),
        (service, method),
        "OK",
    )


def consumer_metrics(service: str, handler: str) -> RedMetrics:
    """What is counted of one consumer; outcomes are the entrypoint's: "ok", "duplicate", "retried",
    "dead".
    """
    return RedMetrics(
        counter(
            "callmesh_consumer_events_total", "Events handled, by outcome.", ("service", "handler", "outcome")
        ),
        histogram("callmesh_consumer_seconds", "Time spent on one event.", ("service", "handler")),
        (service, handler),
        "ok",
    )
