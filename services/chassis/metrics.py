"""Prometheus metrics, the same way in both kinds of process.

Labels must be bounded: take them from tables of our own (methods, queues, codes), never from what a client
sent. Where a table may grow without end, `LargestFirst` gives the largest a name of their own and adds up the
rest.

What is read from a state rather than counted comes from a `Source`. It is looked at in the thread that owns
the state (`look`), and written out wherever there is time for that (`rendered`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Upper bounds of latency buckets, seconds.
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Label value of all that have no name of their own. No id can be it: ids have no parentheses.
OTHERS = "(other)"
#: How often the largest are looked for anew, real seconds.
RANK_SECONDS = 900.0

# When a series began is one more series each, and nobody asks.
disable_created_metrics()

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


class Source(Protocol):
    """Figures that are read from a state when somebody asks."""

    def look(self) -> None:
        """Reads the state; quick, and in the thread that changes it."""

    def collect(self) -> Iterable[Metric]:
        """What the last look saw; in any thread."""


class _Sources(Collector):
    """All sources of a process, by name: one that is made anew takes the place of the one before."""

    def __init__(self) -> None:
        self.by_name: dict[str, Source] = {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for source in list(self.by_name.values()):
            yield from source.collect()


_sources = _Sources()
REGISTRY.register(_sources)


def use_source(name: str, source: Source) -> None:
    """Shows what `source` sees from now on, in place of an earlier source of that name."""
    _sources.by_name[name] = source


def look() -> None:
    """Lets every source read its state. Call it where states change: on the event loop, or in a green
    thread.
    """
    for source in list(_sources.by_name.values()):
        source.look()


def rendered() -> tuple[str, bytes]:
    """All metrics of this process as they were at the last `look`: (content type, body). In any thread."""
    return CONTENT_TYPE_LATEST, generate_latest(REGISTRY)


def exposition() -> tuple[str, bytes]:
    """All metrics of this process for a scrape: (content type, body)."""
    look()
    return rendered()


Key = TypeVar("Key", bound=Hashable)


class LargestFirst(Generic[Key]):
    """Who gets a name of its own, when there are more than there may be series: the largest.

    Ranks are made every `RANK_SECONDS` at most, so that names do not come and go with every scrape.
    """

    def __init__(self, limit: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`limit`: names at once."""
        self._limit = limit
        self._monotonic = monotonic
        self._ranked_at = float("-inf")
        self.named: frozenset[Key] = frozenset()

    def rank(self, sizes: Mapping[Key, float]) -> frozenset[Key]:
        """The keys that have names, chosen among those of `sizes`; where all fit, all."""
        if len(sizes) <= self._limit:
            self.named = frozenset(sizes)
            return self.named
        now = self._monotonic()
        if now - self._ranked_at >= RANK_SECONDS or not self.named <= sizes.keys():
            self._ranked_at = now
            order = sorted(sizes, key=lambda key: (-sizes[key], str(key)))
            self.named = frozenset(order[: self._limit])
        return self.named


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
            "callmesh_rpc_requests_total",
            "RPCs finished, by status code; FAREWELL of a server that ended as it was told to, OVERLOADED of "
            "one with too many open calls.",
            ("service", "method", "code"),
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
