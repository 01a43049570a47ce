"""What takes a call's whole story: waits, conversations, promises kept, counted from the journal by the
worker that counts the reports, for /metrics.

Only the worker that holds the reports' lease counts, so the sum over workers counts every call once, whatever
becomes of leaders; a change of that worker may count the last seconds twice. Figures are those of reports.py,
by (region, queue); the queues beyond the largest are added up as "(other)". All spans are business time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric

from chassis.metrics import OTHERS, LargestFirst
from routing.reports import WAIT_BOUNDS_MS

#: (Region, queue) pairs with a name of their own.
QUEUES_NAMED_MAX = 120

Pair = tuple[str, str]

_LABELS = ("region", "queue")
WAIT = ("callmesh_calls_answer_wait_seconds", "How long answered calls waited.")
ABANDONED = (
    "callmesh_calls_abandoned_wait_seconds",
    "How long callers waited who went, short waits included.",
)
TALK = ("callmesh_calls_talk_seconds", "Conversations that ended; their sum is talk time.")
#: Counters by figure: (name without "_total", doc, factor).
COUNTERS = {
    "wrap_up_ms": ("callmesh_calls_wrap_up_seconds", "After-call work, added up, seconds.", 0.001),
    "transferred": ("callmesh_calls_transferred", "Conversations handed on.", 1.0),
    "callbacks": ("callmesh_calls_callbacks", "Callers who asked to be called back.", 1.0),
    "interrupted": ("callmesh_calls_interrupted", "Conversations that a loss broke off.", 1.0),
    "missed": ("callmesh_calls_offers_missed", "Offers that an agent let ring out.", 1.0),
    "declined": ("callmesh_calls_offers_declined", "Offers that an agent declined.", 1.0),
    "promised": (
        "callmesh_calls_promised",
        "Answered calls that had been told an expected wait when they began to wait.",
        1.0,
    ),
    "promised_ms": (
        "callmesh_calls_promised_wait_seconds",
        "What those were told, added up, seconds.",
        0.001,
    ),
    "promised_real_ms": (
        "callmesh_calls_promised_real_wait_seconds",
        "What those waited, added up, seconds.",
        0.001,
    ),
    "promised_error_ms": (
        "callmesh_calls_promised_error_seconds",
        "Differences between what those were told and waited, without sign, added up, seconds.",
        0.001,
    ),
}


class JournalMetrics:
    """Figures by region and queue since this process began; a `chassis.metrics.Source`."""

    def __init__(
        self, *, queues_named_max: int = QUEUES_NAMED_MAX, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._queues_named_max = queues_named_max
        self._names: LargestFirst[Pair] = LargestFirst(queues_named_max, monotonic)
        self._figures: dict[Pair, dict[str, int]] = {}
        self._others: dict[str, dict[str, int]] = {}
        #: By shard: the newest block that was counted.
        self._counted_to: dict[str, int] = {}

    def take(self, shard: str, sequence: int) -> bool:
        """Whether a block has not been counted in this process; it is now."""
        if sequence <= self._counted_to.get(shard, 0):
            return False
        self._counted_to[shard] = sequence
        return True

    def add(self, shard: str, queue: str, amounts: Mapping[str, int]) -> None:
        """Adds to a queue's figures."""
        pair = (shard, queue)
        figures = self._figures.get(pair)
        if figures is None:
            figures = self._figures[pair] = {}
            # Beyond that ranks are made when somebody looks: at a start thousands may be new.
            if len(self._figures) <= self._queues_named_max:
                self._rank()
        for name, amount in amounts.items():
            figures[name] = figures.get(name, 0) + amount
        if pair not in self._names.named:
            others = self._others.setdefault(shard, {})
            for name, amount in amounts.items():
                others[name] = others.get(name, 0) + amount

    def _rank(self) -> None:
        self._names.rank({pair: float(f.get("offered", 0)) for pair, f in self._figures.items()})

    def look(self) -> None:
        """Nothing to do but to rank: what is shown is what was counted."""
        self._rank()

    def collect(self) -> Iterable[Metric]:
        """See the module's docstring."""
        rows = [(pair, dict(self._figures[pair])) for pair in sorted(self._names.named)]
        rows += [((shard, OTHERS), dict(figures)) for shard, figures in sorted(self._others.items())]
        waits = HistogramMetricFamily(*WAIT, labels=_LABELS)
        abandoned = SummaryMetricFamily(*ABANDONED, labels=_LABELS)
        talk = SummaryMetricFamily(*TALK, labels=_LABELS)
        for pair, figures in rows:
            waits.add_metric(pair, _buckets(figures), figures.get("wait_ms", 0) / 1000)
            gone = figures.get("abandoned", 0) + figures.get("short_abandoned", 0)
            abandoned.add_metric(pair, gone, figures.get("abandoned_wait_ms", 0) / 1000)
            talk.add_metric(pair, figures.get("handled", 0), figures.get("talk_ms", 0) / 1000)
        yield from (waits, abandoned, talk)
        for figure, (name, doc, factor) in COUNTERS.items():
            family = CounterMetricFamily(name, doc, labels=_LABELS)
            for pair, figures in rows:
                family.add_metric(pair, figures.get(figure, 0) * factor)
            yield family


def _buckets(figures: Mapping[str, int]) -> list[tuple[str, float]]:
    """Classes of waits as a histogram's buckets, each with all below it."""
    total, buckets = 0, []
    bounds = [f"{bound_ms / 1000:.1f}" for bound_ms in WAIT_BOUNDS_MS]
    for place, bound in enumerate((*bounds, "+Inf")):
        total += figures.get(f"answered_class_{place}", 0)
        buckets.append((bound, float(total)))
    return buckets
