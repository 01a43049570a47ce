"""Restarts every router under load, in turn, as an upgrade does and a rollback again:
`python -m bench.chaos.rollout`.

Three routers of one region at default settings, a real MongoDB, edges and desktops spread over all three.
Each router in turn is told to end with SIGTERM, ends by itself, and is started again; the next one follows
when it is ready, as a StatefulSet's rolling update does it. Everybody who calls meanwhile must be answered:
what became of the calls is counted from the books of the edges and the desktops, and a roll call finds an
agent that is stuck. Measured is how long each router takes to end, and the longest time in which no caller
anywhere was given an agent.

Writes build/reports/chaos-rollout.json and exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT)]

from bench.chaos.floor import Floor, carry_out, eventually  # noqa: E402
from bench.chaos.parties import Crowd, Verdict, under_load  # noqa: E402

#: Limits, seconds: an end within the time that the chart's pods are given, and no longer silence than a
#: crash makes.
END_SECONDS_MAX = 30.0
SILENCE_SECONDS_MAX = 3.0
#: Load before the first restart, between two, and after the last.
WARM_UP_SECONDS = 3.0
CALM_SECONDS = 2.0
#: Calls told of one by one when something went wrong with them.
STORIES_MAX = 6


class Rollout:
    """One run."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        #: Seconds from SIGTERM to the end of the process, by restart.
        self.ends: list[float] = []
        #: What the routers ended with, where that is not 0 or they did not end at all.
        self.bad_ends: list[str] = []
        #: How many of those restarted led at that moment.
        self.leaders = 0

    async def restart(self, name: str) -> None:
        """SIGTERM, the end, a new start, ready."""
        floor, began = self._floor, time.monotonic()
        self.leaders += floor.leading() == name
        floor.send(name, signal.SIGTERM)
        ended = await eventually(lambda: floor.exit_code(name) is not None, END_SECONDS_MAX)
        self.ends.append(time.monotonic() - began)
        if not ended or floor.exit_code(name) != 0:
            self.bad_ends.append(f"{name}: {floor.exit_code(name) if ended else 'did not end'}")
        print(f"{name} ended after {self.ends[-1]:.2f} s", flush=True)
        floor.kill(name)
        floor.start_router(name)
        await asyncio.to_thread(floor.wait_ready, name)
        await asyncio.sleep(CALM_SECONDS)


def _figures(
    rollout: Rollout, verdict: Verdict, unserved: int, silence: float, rate: float
) -> dict[str, Any]:
    lost = len(verdict.calls_lost) + len(verdict.calls_untaken)
    return {
        "restarts": len(rollout.ends),
        "leaders_restarted": rollout.leaders,
        "worst_end_seconds": round(max(rollout.ends), 2),
        "bad_ends": len(rollout.bad_ends),
        "worst_silence_seconds": round(silence, 2),
        "calls_lost": len(verdict.calls_lost),
        "calls_untaken": len(verdict.calls_untaken),
        "calls_unserved": unserved,
        "agents_double_booked": len(verdict.agents_double_booked),
        "agents_stuck": len(verdict.agents_stuck),
        "calls": verdict.calls,
        "calls_reopened": verdict.reopened,
        "calls_per_second": rate,
        "end_seconds_max": END_SECONDS_MAX,
        "silence_seconds_max": SILENCE_SECONDS_MAX,
        "ok": not (rollout.bad_ends or lost or verdict.agents_double_booked or verdict.agents_stuck)
        and not unserved
        and max(rollout.ends) <= END_SECONDS_MAX
        and silence <= SILENCE_SECONDS_MAX,
    }


async def _run(floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    rollout, silence = Rollout(floor), 0.0

    async def restart_all(crowd: Crowd) -> None:
        nonlocal silence
        began = time.monotonic()
        for _ in ("upgrade", "rollback"):
            for name in floor.addresses:
                await rollout.restart(name)
        silence = crowd.longest_silence(began, time.monotonic())

    crowd, unserved, verdict = await under_load(
        floor, arguments.agents, arguments.rate, WARM_UP_SECONDS, restart_all
    )
    for line in (*rollout.bad_ends, *crowd.story([*verdict.calls_lost, *unserved][:STORIES_MAX])):
        print(line)
    return _figures(rollout, verdict, len(unserved), silence, arguments.rate)


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--agents", type=int, default=250)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "chaos-rollout.json")
    arguments = parser.parse_args()
    return carry_out(Floor(routers=3), lambda floor: _run(floor, arguments), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
