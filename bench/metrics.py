"""What a scrape of a busy router costs, and how many series it brings: the shards' figures, RED of every RPC
with several outcomes, queries, everything that such a process has.

Run as `python -m bench.metrics`. A centre of 60 queues, one of 600, and four regions of 60 queues each that
one router leads after a disaster are filled by the simulation of bench.engine; then each is scraped as
Prometheus would. Timed is the process's own CPU time, the look at the state (which holds up the event loop)
apart from the rest. The worker that counts the journal is scraped with as many queues.

Writes build/reports/metrics.json and exits with 1 when a scrape takes more than `SCRAPE_MS_MAX` or brings
more than `SERIES_MAX` series.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

from bench.engine import MEMORY_MS, QUEUES_PER_SKILL, Day, Size  # noqa: E402
from bench.reporting import finish  # noqa: E402

from chassis import metrics  # noqa: E402
from chassis.metrics_queries import BUCKETS, PAIRS_MAX, TALLIES  # noqa: E402
from routing import leader, metrics_journal, metrics_shard  # noqa: E402, F401
from routing.documents import DOCUMENTS  # noqa: E402
from routing.reports import WAIT_BOUNDS_MS  # noqa: E402
from routing.scopes import SCOPES  # noqa: E402
from routing.state import ShardState  # noqa: E402

#: The limits.
SERIES_MAX = 5_000
SCRAPE_MS_MAX = 200.0
#: (regions, queues of each), by name.
CENTRES = {"q60": (1, 60), "q600": (1, 600), "regions4_q60": (4, 60)}
#: Outcomes that every RPC has had.
CODES = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED")
#: Scrapes that are timed; the median counts.
SCRAPES = 7
#: Business time that a centre works before it is looked at.
WORK_MS = 4 * MEMORY_MS
SEED = 3


@dataclass
class FixedLeader:
    """A leader as /metrics sees it, of a state that stands still."""

    shard: str
    state: ShardState
    clock_ms: int
    leading: bool = True
    stalled: bool = False
    epoch: int = 7
    sequence: int = 1_000_000

    def now_ms(self) -> int:
        """The state's time."""
        return self.clock_ms


def centre(shard: str, agents: int, queues: int, commands: int) -> tuple[ShardState, Day]:
    """A centre at work."""
    day = Day(Size(agents=agents, queues=queues, skills=max(5, queues // QUEUES_PER_SKILL)), SEED)
    day.state.shard = shard
    day.run(WORK_MS, len(day.log) + commands)
    return day.state, day


def fill_common() -> None:
    """What every router has besides its shards: all its RPCs in use, all its queries."""
    for method in SCOPES:
        red = metrics.rpc_metrics("routing", method.lstrip("/"))
        for code in CODES:
            red.record(code, 0.01)
    collections = [document._get_collection_name() for document in DOCUMENTS]
    pairs = [
        (c, command) for c in (*collections, "journal") for command in ("find", "update", "insert", "getMore")
    ]
    for collection, command in pairs[:PAIRS_MAX]:
        TALLIES.of("routing", collection, command).record(BUCKETS[0])


def scraped() -> dict[str, float]:
    """Median CPU times of a look and of a whole scrape, milliseconds; series."""
    looks, wholes, body = [], [], b""
    for _ in range(SCRAPES):
        began = time.process_time()
        metrics.look()
        looks.append(time.process_time() - began)
        _, body = metrics.rendered()
        wholes.append(time.process_time() - began)
    series = sum(1 for line in body.splitlines() if line and not line.startswith(b"#"))
    return {
        "look_cpu_ms": round(statistics.median(looks) * 1000, 2),
        "scrape_cpu_ms": round(statistics.median(wholes) * 1000, 2),
        "series": series,
        "bytes": len(body),
    }


def router(regions: int, queues: int, agents: int, commands: int) -> dict[str, float]:
    """A scrape of a router that leads so many regions."""
    leaders: dict[str, metrics_shard.Led] = {}
    calls = 0
    for number in range(regions):
        state, day = centre(f"region-{number}", agents, queues, commands)
        leaders[state.shard] = FixedLeader(state.shard, state, day.now_ms)
        calls += sum(1 for call in state.calls.values() if call.outcome is None)
    figures = metrics_shard.ShardMetrics(lambda: leaders)
    metrics.use_source("shards", figures)
    # A whole walk every time: the dearest scrape.
    metrics_shard.WALK_SECONDS = 0.0
    return {"live_calls": calls, **scraped()}


def worker(regions: int, queues: int) -> dict[str, float]:
    """A scrape of the worker that counts the journals of so many regions."""
    meter = metrics_journal.JournalMetrics()
    figures = dict.fromkeys(("offered", "handled", "talk_ms", "wrap_up_ms", "promised", "promised_ms"), 5)
    figures |= {f"answered_class_{place}": 1 for place in range(len(WAIT_BOUNDS_MS) + 1)}
    for region in range(regions):
        for queue in range(queues):
            meter.add(f"region-{region}", f"queue-{queue}", figures)
    metrics.use_source("shards", meter)
    return scraped()


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, default=2_500, help="in each region")
    parser.add_argument("--commands", type=int, default=20_000, help="before the scrapes, in each region")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "metrics.json")
    arguments = parser.parse_args()
    fill_common()
    result: dict[str, Any] = {"agents_per_region": arguments.agents}
    for name, (regions, queues) in CENTRES.items():
        found = router(regions, queues, arguments.agents, arguments.commands)
        result |= {f"{name}_{figure}": value for figure, value in found.items()}
        if name == "q60":
            kept = found
    result |= {f"worker_{figure}": value for figure, value in worker(4, 60).items()}
    series = max(value for name, value in result.items() if name.endswith("_series"))
    slowest = max(value for name, value in result.items() if name.endswith("_scrape_cpu_ms"))
    result |= {"series": kept["series"], "scrape_cpu_ms": kept["scrape_cpu_ms"]}
    result |= {"series_max": SERIES_MAX, "scrape_ms_max": SCRAPE_MS_MAX}
    result["ok"] = series <= SERIES_MAX and slowest <= SCRAPE_MS_MAX
    return finish(result, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
