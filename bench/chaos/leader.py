"""Kills the leading router under load, again and again: `python -m bench.chaos.leader`.

Three routers of one region at default settings, a real MongoDB, edges and desktops spread over all three.
The router that leads is stopped for ten seconds and wakes up deposed; then, ten times, it is killed with
signal 9 and started again once the next one leads. `--stop-last` stops it after the kills, when the desktops
that had to leave are back at their own routers: then its figure is also one of how much the two cores that
all share have left to do by then. Measured is the time from each to the first assignment that an edge hears
of from a later leader. What became of the calls is counted from the books of the edges and
the desktops, and whether an agent is stuck by a roll call: as many callers at once as there are agents.

Writes build/reports/chaos-leader.json and exits with 1 when a limit is missed.
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
from bench.chaos.parties import Crowd, under_load  # noqa: E402

#: The limit, seconds; nothing may be lost, nobody double-booked or stuck.
RECOVERY_SECONDS_MAX = 3.0
#: How long a stopped router sleeps.
STOPPED_SECONDS = 10.0
#: Waited for an assignment by the next leader before the run is given up.
GIVE_UP_SECONDS = 30.0
#: Load between a recovery and the next kill.
CALM_SECONDS = 3.0
#: For the last desktop to be back at its own router before the leader is stopped: who sits at a router
#: that sleeps cannot be rung. Those that are not back by then are counted.
SPREAD_SECONDS = 15.0
WARM_UP_SECONDS = 5.0


class Chaos:
    """One run."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self.recoveries: list[float] = []
        self.stopped_recovery = 0.0
        self.desks_away = 0

    async def _leader(self) -> str:
        name = ""

        def known() -> bool:
            nonlocal name
            name = self._floor.leading()
            return bool(name)

        await eventually(known, GIVE_UP_SECONDS)
        return name

    async def _recovered(self, crowd: Crowd, since: float, epoch: int) -> float:
        await eventually(lambda: crowd.first_assignment(since, epoch) is not None, GIVE_UP_SECONDS)
        return crowd.first_assignment(since, epoch) or GIVE_UP_SECONDS

    async def kill_once(self, crowd: Crowd) -> None:
        """kill -9 for whoever leads; it comes back as a standby."""
        name, epoch = await self._leader(), crowd.epoch
        self._floor.send(name, signal.SIGKILL)
        seconds = await self._recovered(crowd, time.monotonic(), epoch)
        self.recoveries.append(seconds)
        print(f"killed {name}: first assignment by the next leader after {seconds:.2f} s", flush=True)
        self._floor.kill(name)
        self._floor.start_router(name)
        await asyncio.to_thread(self._floor.wait_ready, name)
        await asyncio.sleep(CALM_SECONDS)

    async def stop_once(self, crowd: Crowd) -> None:
        """The leader sleeps, is replaced, and wakes."""
        began = time.monotonic()
        away = await crowd.spread(SPREAD_SECONDS)
        self.desks_away = len(away)
        waited = time.monotonic() - began
        print(
            f"{self.desks_away} desks away from their own routers after {waited:.1f} s more",
            *away,
            sep="\n  ",
            flush=True,
        )
        name, epoch = await self._leader(), crowd.epoch
        self._floor.send(name, signal.SIGSTOP)
        began = time.monotonic()
        self.stopped_recovery = await self._recovered(crowd, began, epoch)
        print(f"stopped {name}: first assignment after {self.stopped_recovery:.2f} s", flush=True)
        await asyncio.sleep(max(0.0, began + STOPPED_SECONDS - time.monotonic()))
        self._floor.send(name, signal.SIGCONT)
        await asyncio.to_thread(self._floor.wait_ready, name)
        await asyncio.sleep(2 * CALM_SECONDS)


async def _run(floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    chaos = Chaos(floor)

    async def kill_and_stop(crowd: Crowd) -> None:
        if not arguments.stop_last:
            await chaos.stop_once(crowd)
        for _ in range(arguments.kills):
            await chaos.kill_once(crowd)
        if arguments.stop_last:
            await chaos.stop_once(crowd)

    crowd, _, verdict = await under_load(
        floor, arguments.agents, arguments.rate, WARM_UP_SECONDS, kill_and_stop
    )
    worst = max([*chaos.recoveries, chaos.stopped_recovery])
    for name in ("calls_lost", "calls_untaken", "agents_double_booked", "agents_stuck"):
        found = getattr(verdict, name)
        if found:
            print(f"{name}: {list(found)[:10]}")
            print(*crowd.story(list(found)[:3]), sep="\n")
    return {
        "kills": len(chaos.recoveries),
        "worst_recovery_seconds": round(worst, 2),
        "stopped_recovery_seconds": round(chaos.stopped_recovery, 2),
        "desks_away_when_stopped": chaos.desks_away,
        "calls_lost": len(verdict.calls_lost),
        "agents_double_booked": len(verdict.agents_double_booked),
        "agents_stuck": len(verdict.agents_stuck),
        "calls_untaken": len(verdict.calls_untaken),
        "calls": verdict.calls,
        "calls_served": verdict.calls_served,
        "calls_reopened": verdict.reopened,
        "calls_per_second": arguments.rate,
        "agents": len(crowd.agents),
        "recovery_seconds_max": RECOVERY_SECONDS_MAX,
        "ok": worst <= RECOVERY_SECONDS_MAX
        and not (verdict.calls_lost or verdict.agents_double_booked or verdict.agents_stuck),
    }


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stop-last", action="store_true", help="after the kills, not before them")
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second")
    parser.add_argument("--agents", type=int, default=400)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "chaos-leader.json")
    arguments = parser.parse_args()
    return carry_out(Floor(routers=3), lambda floor: _run(floor, arguments), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
