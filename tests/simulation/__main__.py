"""`make sim`: many seeds, in as many processes as there are cores.

    make sim RUNS=1000            # seeds 1 to 1000
    make sim SEED=17 RUNS=1       # one again; a failure is shrunk to a short history
    make sim ON_OUTAGE=continue   # the same seeds with leaders that go on from memory, and more outages

Writes build/reports/sim.json, or sim-continue.json, and exits with 1 when an invariant was violated or a
limit missed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "build" / "reports"
#: Whether leaders go on from memory; the report is another then.
CONTINUE = os.environ.get("ON_OUTAGE") == "continue"
#: Each run has at least that many steps, faults and kinds of faults.
STEPS_MIN, FAULTS_MIN, KINDS_MIN = 2_000, 5, 3
#: A thousand runs take at most that long on two cores, seconds.
SECONDS_MAX, RUNS_TIMED = 600.0, 1_000
PROCESSES = 2
#: A line is printed after so many runs.
PROGRESS_RUNS = 50


def drawn(seed: int) -> Any:
    """A seed's plan, in the mixture that is asked for."""
    from tests.simulation.plan import draw, through_outages

    plan = draw(seed)
    return through_outages(plan) if CONTINUE else plan


def one(seed: int) -> dict[str, Any]:
    """One seed's figures."""
    from tests.simulation.world import simulate

    started = time.process_time()
    world = simulate(drawn(seed))
    return {
        "seed": seed,
        "failure": world.failure,
        "steps": world.steps,
        "faults": sum(world.struck.values()),
        "kinds": len(world.struck),
        "blocks": world.auditor.counts["blocks"],
        "openings": world.auditor.counts["openings"],
        "connected": world.auditor.counts["connected"],
        "told_from_memory": world.auditor.counts["told from memory"],
        "orphaned": world.auditor.counts["orphaned"],
        "cpu_seconds": time.process_time() - started,
    }


def explain_failure(seed: int) -> None:
    """Prints a failing seed's short history and how to see it again."""
    from tests.simulation.shrinking import Shrinker, explain

    try:
        print(explain(Shrinker(drawn(seed)).shrink()))
    except AssertionError as error:
        # The product has changed since this run began.
        print(f"seed {seed}: {error}")
    mixture = " ON_OUTAGE=continue" if CONTINUE else ""
    print(f"replay: make sim SEED={seed} RUNS=1{mixture}", flush=True)


def run_all(first: int, runs: int) -> list[dict[str, Any]]:
    """The figures of all seeds; each failure is told as soon as it is known."""
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(PROCESSES) as pool:
        results: Iterable[dict[str, Any]] = pool.map(one, range(first, first + runs), chunksize=4)
        for row in results:
            rows.append(row)
            if row["failure"]:
                print(f"seed {row['seed']}: {row['failure']}", flush=True)
            if len(rows) % PROGRESS_RUNS == 0:
                bad = sum(bool(each["failure"]) for each in rows)
                print(
                    f"{len(rows):6} runs {sum(r['steps'] for r in rows):10} steps {bad:4} violations",
                    flush=True,
                )
    return rows


def report(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What the report holds."""
    held = [row for row in rows if not row["failure"]]
    # A run that was cut short by a violation is not measured.
    least = {name: min((row[name] for row in held), default=0) for name in ("steps", "faults", "kinds")}
    full = not held or (
        least["steps"] >= STEPS_MIN and least["faults"] >= FAULTS_MIN and least["kinds"] >= KINDS_MIN
    )
    violations = len(rows) - len(held)
    in_time = len(rows) < RUNS_TIMED or seconds <= SECONDS_MAX * len(rows) / RUNS_TIMED
    return {
        "ok": not violations and full and in_time,
        "runs": len(rows),
        "violations": violations,
        "steps": sum(row["steps"] for row in rows),
        "faults": sum(row["faults"] for row in rows),
        "steps_per_run_min": least["steps"],
        "faults_per_run_min": least["faults"],
        "fault_kinds_per_run_min": least["kinds"],
        "blocks": sum(row["blocks"] for row in rows),
        "openings": sum(row["openings"] for row in rows),
        "connected": sum(row["connected"] for row in rows),
        "told_from_memory": sum(row["told_from_memory"] for row in rows),
        "orphaned": sum(row["orphaned"] for row in rows),
        "seed_first": rows[0]["seed"],
        "seed_last": rows[-1]["seed"],
        "seconds": round(seconds, 1),
        "cpu_seconds_per_run": round(sum(row["cpu_seconds"] for row in rows) / len(rows), 3),
        "seeds_failed": [row["seed"] for row in rows if row["failure"]][:20],
    }


def main() -> int:
    """Returns the exit status."""
    first, runs = int(os.environ.get("SEED") or 1), int(os.environ.get("RUNS") or 100)
    started = time.monotonic()
    rows = run_all(first, runs)
    result = report(rows, time.monotonic() - started)
    for seed in result["seeds_failed"][:1]:
        explain_failure(seed)
    REPORTS.mkdir(parents=True, exist_ok=True)
    name = "sim-continue.json" if CONTINUE else "sim.json"
    (REPORTS / name).write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:26} {value}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of a history.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    # Some installed library brings a package named `tests`, which would hide ours.
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package
    sys.path[:0] = [str(ROOT / "services")]
    sys.exit(main())
