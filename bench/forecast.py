"""Forecasts of half-hourly arrivals against what came, on the February 1999 call log.

Every day from the second week on is forecast from the days before it alone (a rolling origin), a day ahead
and a week ahead, by the product's model and by what is naive: the same day of the week before (seasonal
naive), and the mean of all such weekdays. One more row shows the next half-hour, with the callers of the
last one seen (nowcast).

The command exits with 1 unless the model's error is below both naive ones', for both horizons.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zoneinfo
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT)]

from bench.reporting import finish  # noqa: E402

from cli.demo import calls as call_log  # noqa: E402
from routing.planning import forecast as model  # noqa: E402
from routing.planning.erlang import Demand  # noqa: E402
from routing.planning.history import SLOT_MS, SLOTS, History, of_days, start_ms  # noqa: E402
from routing.planning.nowcast import Nowcast  # noqa: E402

LOG_NAME = "anonymous_bank_1999_02.tsv.gz"
#: The first week is what the first forecast is made from.
FIRST_DAY = 7
METHODS = {
    "model": model.model_day,
    "seasonal_naive": model.seasonal_naive,
    "weekday_mean": model.weekday_mean,
}


def read(path: Path) -> tuple[History, list[list[int]]]:
    """(calls by day and half-hour, PHANTOM left out; arrivals of each day in milliseconds of it)."""
    rows: dict[Any, list[float]] = {}
    arrivals: dict[Any, list[int]] = {}
    for call in call_log.read_log(path, call_log.TornLines()):
        slot = call.arrival_seconds // 1800
        if call.outcome == "PHANTOM" or slot >= SLOTS:
            continue
        rows.setdefault(call.date, [0.0] * SLOTS)[slot] += 1
        arrivals.setdefault(call.date, []).append(call.arrival_seconds * 1000)
    # The log has its place's clock and no zone: days of 24 hours will do.
    known = of_days({day: tuple(row) for day, row in rows.items()}, zoneinfo.ZoneInfo("UTC"))
    return known, [sorted(arrivals.get(day, [])) for day in known.days]


def interval_held(known: History) -> tuple[float, float]:
    """(share of half-hours with a call inside the 80 % interval, mean width / mean calls), a day ahead."""
    inside = count = 0
    width = calls = 0.0
    for day, before, came in model.rolling(known, first=FIRST_DAY):
        said = model.Seasonal(before).day(day)
        for low, high, here in zip(said.low, said.high, came, strict=True):
            if high > 0:
                inside += low <= here <= high
                count += 1
                width += high - low
                calls += here
    return inside / count, width / calls


def next_half_hour(known: History, arrivals: list[list[int]]) -> tuple[float, float]:
    """(error of the day's forecast, of the same corrected by the callers seen), for the half-hour to come."""
    plain = corrected = calls = 0.0
    for n, (day, before, came) in enumerate(model.rolling(known, first=FIRST_DAY), FIRST_DAY):
        said = model.Seasonal(before).day(day).arrivals
        midnight = start_ms(day, 0, known.zone)

        def rate(ms: int, said: tuple[float, ...] = said, midnight: int = midnight) -> float:
            return said[min(SLOTS - 1, (ms - midnight) // SLOT_MS)] * 1000 / SLOT_MS

        cast = Nowcast(Demand(rate=0.0, handle_seconds=180.0), rate, start_ms=midnight)
        seen = 0
        for slot in range(SLOTS):
            now_ms = slot * SLOT_MS
            while seen < len(arrivals[n]) and arrivals[n][seen] < now_ms:
                cast.arrived(midnight + arrivals[n][seen])
                seen += 1
            plain += abs(said[slot] - came[slot])
            corrected += abs(cast.rate(midnight + now_ms) * SLOT_MS / 1000 - came[slot])
        calls += sum(came)
    return plain / calls, corrected / calls


def run(path: Path) -> dict[str, Any]:
    """Everything; the report."""
    known, arrivals = read(path)
    figures: dict[str, Any] = {"log_days": len(known.days), "log_calls": int(sum(map(sum, known.calls)))}
    ok = True
    for label, ahead in (("day", 1), ("week", 7)):
        found = {}
        for name, method in METHODS.items():
            began = time.process_time()
            found[name] = model.errors(known, method, first=FIRST_DAY, ahead_days=ahead)
            figures[f"{label}_ahead_{name}_wape_ratio"] = round(found[name].wape, 4)
            figures[f"{label}_ahead_{name}_mase_ratio"] = round(found[name].mase, 4)
            figures[f"{label}_ahead_{name}_day_total_wape_ratio"] = round(found[name].day_wape, 4)
            figures[f"{label}_ahead_{name}_cpu_seconds"] = round(time.process_time() - began, 2)
        figures[f"{label}_ahead_days"] = found["model"].days
        best = min(found[name].wape for name in METHODS if name != "model")
        figures[f"{label}_ahead_wape_ratio_to_best_naive"] = round(found["model"].wape / best, 4)
        ok = ok and found["model"].wape < best
    held, width = interval_held(known)
    plain, corrected = next_half_hour(known, arrivals)
    figures |= {
        "interval_80_held_ratio": round(held, 4),
        "interval_80_width_ratio_to_calls": round(width, 4),
        "next_half_hour_model_wape_ratio": round(plain, 4),
        "next_half_hour_nowcast_wape_ratio": round(corrected, 4),
        "wape_ratio_to_best_naive_max": 1.0,
    }
    return figures | {"ok": ok}


def main() -> int:
    """0 when the model beats what is naive, else 1; 0 as well where the log is not here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    data = Path(os.environ.get("CALLMESH_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--log", type=Path, default=data / LOG_NAME)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "forecast.json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"skipped": f"{LOG_NAME} is not here", "ok": True}
    if arguments.log.exists():
        report = run(arguments.log)
    return finish(report, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
