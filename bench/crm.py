"""What crm can do at full size, against its limits.

Run as `python -m bench.crm`. Starts a private MongoDB, crm's server and worker and a broker; imports the
customers through the API with every index in place, measures reads as shares of an empty call on the same
server, a screen pop against a plain read, half a million customers against five thousand, events at their
rate, and how well planted hot spots are found in real data where there is some. Asks the database for the
plan of every query. Prints a table, writes build/reports/crm.json and exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
for _folder in (ROOT, ROOT / "services"):
    sys.path.insert(0, str(_folder))

from bench.crm_parts import load, plans, voice  # noqa: E402
from bench.crm_parts.stack import Parts  # noqa: E402
from bench.reporting import show, write_report  # noqa: E402

#: The limits.
IMPORT_PER_SECOND_MIN = 4_000
MEMORY_GROWTH_RATIO_MAX = 1.2
READ_TO_EMPTY_RATIO_MIN = 0.4
POP_TO_GET_P99_RATIO_MAX = 3.0
SIZE_LATENCY_RATIO_MAX = 1.5
EVENTS_PER_MINUTE_MIN = 10_000
BACKLOG_SECONDS_MAX = 2.0
POWER_MIN = 0.9
FALSE_ALARM_RATIO_MAX = 0.05
SMALL = 5_000


def data_folder() -> Path:
    """Where real data lies, if there is any."""
    return Path(os.environ.get("CALLMESH_DATA_DIR") or ROOT.parent / "shared" / "data")


def measured(arguments: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """All figures."""
    if arguments.insights_only:
        return insights(arguments.weeks)
    parts = Parts(run_dir)
    figures: dict[str, Any] = {"customers": arguments.customers}
    try:
        large = parts.server("large")
        figures |= load.run_import(parts, large, arguments.customers)
        load.add_history(parts, large, arguments.customers)
        small = parts.server("small")
        load.run_import(parts, small, SMALL)
        load.add_history(parts, small, SMALL)
        sizes = (arguments.customers, SMALL)
        figures |= asyncio.run(
            load.throughput(parts, large, arguments.customers, arguments.rounds, arguments.calls)
        )
        figures |= asyncio.run(load.pop_latency(large, arguments.customers, arguments.calls))
        figures |= asyncio.run(load.size_latency(large, small, sizes, arguments.calls // 5))
        figures |= plans.checked(parts.client["large"])
        wanted = load.EventLoad(
            batches=arguments.batches, per_minute=EVENTS_PER_MINUTE_MIN, seconds=arguments.event_seconds
        )
        figures |= load.run_worker(parts, large, arguments.customers, wanted)
    finally:
        parts.close()
    return figures | insights(arguments.weeks)


def insights(weeks: int) -> dict[str, Any]:
    """How well planted hot spots and topics are found in real data; {} where there is none. Of hot spots the
    ends of the 95 % intervals are held against the limits, not the shares themselves.
    """
    folder = data_folder()
    figures: dict[str, Any] = {}
    for name, file, read, radius_km, by_day in (
        ("calls", "geolocated_calls_911.csv.gz", voice.townships, 50.0, voice.titles),
        ("complaints", "consumer_complaints.csv.gz", voice.states, 500.0, voice.issues),
    ):
        if not (folder / file).exists():
            print(f"{file}: not there, so nothing is said of hot spots and topics in it")
            continue
        for what, rates in (
            ("hot_spot", voice.rates(read(folder / file), radius_km, weeks)),
            ("hot_topic", voice.topic_rates(by_day(folder / file), weeks)),
        ):
            figures |= {
                f"{what}_{name}_power": round(rates.power, 3),
                f"{what}_{name}_power_low": round(rates.power_low, 3),
                f"{what}_{name}_false_alarm_ratio": round(rates.false_alarms, 3),
                f"{what}_{name}_false_alarm_high": round(rates.false_alarms_high, 3),
            }
    return {**figures, "insight_weeks": weeks} if figures else {}


def limits() -> list[tuple[str, str, float]]:
    """(figure, "min" or "max", limit)."""
    return [
        ("import_customers_per_second", "min", IMPORT_PER_SECOND_MIN),
        ("import_memory_growth_ratio", "max", MEMORY_GROWTH_RATIO_MAX),
        ("get_to_empty_ratio", "min", READ_TO_EMPTY_RATIO_MIN),
        ("lookup_to_empty_ratio", "min", READ_TO_EMPTY_RATIO_MIN),
        ("pop_to_get_p99_ratio", "max", POP_TO_GET_P99_RATIO_MAX),
        ("size_latency_ratio", "max", SIZE_LATENCY_RATIO_MAX),
        ("plans_with_scan", "max", 0),
        ("events_per_minute", "min", EVENTS_PER_MINUTE_MIN * 0.99),
        ("events_backlog_seconds", "max", BACKLOG_SECONDS_MAX),
        ("import_events_lost", "max", 0),
        ("import_events_relayed_per_second", "min", IMPORT_PER_SECOND_MIN / 2),
        ("hot_spot_calls_power_low", "min", POWER_MIN),
        ("hot_spot_calls_false_alarm_high", "max", FALSE_ALARM_RATIO_MAX),
        ("hot_spot_complaints_power_low", "min", POWER_MIN),
        ("hot_spot_complaints_false_alarm_high", "max", FALSE_ALARM_RATIO_MAX),
    ]


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with their limits and whether they are met."""
    done = dict(figures)
    ok = True
    for name, kind, limit in limits():
        if name not in figures:
            continue
        met = figures[name] >= limit if kind == "min" else figures[name] <= limit
        done[f"{name}_{kind}"] = limit
        ok = ok and met
        print(f"{'ok ' if met else 'MISSED'} {name:40} {figures[name]:>12} {kind} {limit}")
    return {**done, "ok": ok and figures.get("events_applied") == figures.get("events_sent")}


def main() -> int:
    """0 when every limit is met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--customers", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3_200)
    parser.add_argument("--event-seconds", type=float, default=60.0)
    parser.add_argument("--batches", type=int, default=60, help="of the import, to be told the others")
    parser.add_argument("--weeks", type=int, default=600, help="with a planted spot, and as many without")
    parser.add_argument("--insights-only", action="store_true", help="only spots and topics")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "crm.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="callmesh-bench-") as folder:
        figures = measured(arguments, Path(folder))
    show(figures)
    return write_report(judged(figures), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
