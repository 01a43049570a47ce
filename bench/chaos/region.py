"""Loses a whole region under load, in every way: `python -m bench.chaos.region`.

Four regions as networks of their own, each with two routers, at default settings, with a real MongoDB and
RabbitMQ; callers from all four areas, agents in all four. In turn a region is killed (signal 9 for all of its
processes, its agents gone with it), cut off from its peers, the database and the broker, and cut off from the
database alone; each time just after more callers than it has free agents, so that some wait; each time it is
healed, and comes back. By the books of edges and desktops alone:

  reroute   how long a new caller of the lost area waits for an agent, from the loss to the healing, the worst
  moved     until the calls that waited there when it was lost have a place or an agent elsewhere, the last
  return    from the healing until the area's callers are answered at home and each of its agents has answered

Nothing may be lost or connected twice, and no agent double-booked. Writes build/reports/chaos-region.json and
exits with 1 when a limit is missed. A call needs half a dozen commits one after the other: on a disk that
others keep busy the agents seem slow, and all figures with them; TMPDIR says where the database lies.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT)]

from bench.chaos.floor import carry_out  # noqa: E402
from bench.chaos.parties import ChaosChannels  # noqa: E402
from bench.chaos.region_books import (  # noqa: E402
    answers,
    connected_twice,
    home_again,
    moved_seconds,
    reroute_seconds,
)
from bench.chaos.region_floor import REGIONS, RegionFloor, furnish_regions, name_of  # noqa: E402
from bench.chaos.region_net import Link, move_in  # noqa: E402
from bench.chaos.region_parties import RegionCrowd  # noqa: E402

#: The limits, seconds.
REROUTE_SECONDS_MAX, MOVED_SECONDS_MAX, RETURN_SECONDS_MAX = 5.0, 10.0, 15.0
#: Load before a loss, while the region is lost, and after it was healed.
CALM_SECONDS, LOST_SECONDS, BACK_SECONDS = 5.0, 15.0, 20.0
#: Callers who come at once just before a loss, for each agent of the region; how long before.
BURST_RATIO, BURST_SECONDS = 1.0, 0.4


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to lose a region."""

    name: str
    region: str
    #: What is cut; nothing: the region is killed.
    links: Sequence[Link] = ()


CASES = (
    Case(name="killed", region="chengdu"),
    Case(name="cut_off", region="chengdu", links=(Link.PEERS, Link.DATABASE, Link.BROKER)),
    Case(name="no_database", region="shanghai", links=(Link.DATABASE,)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """When a region was lost and healed, by the clock of the books."""

    case: Case
    lost: float
    healed: float
    ended: float


@dataclass(kw_only=True, slots=True)
class Findings:
    """Seconds by call for each case."""

    rerouted: dict[str, dict[str, float]] = field(default_factory=dict)
    moved: dict[str, dict[str, float]] = field(default_factory=dict)
    returned: dict[str, float] = field(default_factory=dict)


async def lose(floor: RegionFloor, crowd: RegionCrowd, case: Case, agents: int) -> Loss:
    """One loss with its healing."""
    await asyncio.sleep(CALM_SECONDS)
    for _ in range(round(agents * BURST_RATIO)):
        crowd.call(region=case.region)
    await asyncio.sleep(BURST_SECONDS)
    if case.links:
        await asyncio.to_thread(floor.cut, case.region, *case.links)
        lost = time.monotonic()
    else:
        floor.kill_region(case.region)
        crowd.media.lose(case.region)
        lost = time.monotonic()
        await asyncio.to_thread(floor.bury_region, case.region)
    await asyncio.sleep(LOST_SECONDS)
    healed = time.monotonic()
    if case.links:
        await asyncio.to_thread(floor.mend, case.region)
    else:
        floor.start_routers(case.region)
        crowd.media.restore(case.region)
        await asyncio.to_thread(floor.wait_ready, case.region)
        floor.start_worker(case.region)
    await asyncio.sleep(max(0.0, healed + BACK_SECONDS - time.monotonic()))
    print(f"{case.name}: {case.region} was lost for {healed - lost:.1f} s", flush=True)
    return Loss(case=case, lost=lost, healed=healed, ended=time.monotonic())


def judge(crowd: RegionCrowd, losses: Sequence[Loss]) -> Findings:
    """What the books say of each loss."""
    findings = Findings()
    for loss in losses:
        region, name = loss.case.region, loss.case.name
        found = [a for a in answers(crowd.ledger, crowd.home_of, region) if a.asked < loss.ended]
        findings.rerouted[name] = reroute_seconds(found, loss.lost, loss.healed)
        findings.moved[name] = moved_seconds(crowd.ledger, region, loss.lost)
        agents = [agent for agent, home in crowd.homes.items() if home == region]
        findings.returned[name] = home_again(found, region, agents, loss.healed)
    return findings


async def _run(floor: RegionFloor, arguments: argparse.Namespace) -> dict[str, Any]:
    addresses = floor.clients_addresses()
    async with ChaosChannels(addresses) as channels:
        homes = await furnish_regions(channels[name_of(REGIONS[0], 0)], floor, arguments.agents)
    crowd = RegionCrowd(addresses, list(homes), homes=homes)
    done = asyncio.Event()
    losses: list[Loss] = []
    try:
        await crowd.open()
        print("all desktops are there", flush=True)
        load = asyncio.ensure_future(crowd.calls(arguments.rate, done))
        for case in CASES:
            if not arguments.case or case.name in arguments.case:
                losses.append(await lose(floor, crowd, case, arguments.agents))
        done.set()
        await load
        await crowd.settle()
    finally:
        await crowd.close()
    if arguments.books:
        rows = [dataclasses.asdict(entry) for entry in crowd.ledger.entries]
        marks = [dataclasses.asdict(loss) for loss in losses]
        arguments.books.write_text(json.dumps({"losses": marks, "entries": rows}, default=str))
    return _result(floor, crowd, losses, arguments)


def _result(
    floor: RegionFloor, crowd: RegionCrowd, losses: Sequence[Loss], arguments: argparse.Namespace
) -> dict[str, Any]:
    findings, verdict = judge(crowd, losses), crowd.verdict([])
    twice = connected_twice(crowd.ledger, crowd.desks_book)
    worst = {
        "reroute": max((s for each in findings.rerouted.values() for s in each.values()), default=0.0),
        "moved": max((s for each in findings.moved.values() for s in each.values()), default=0.0),
        "return": max(findings.returned.values(), default=0.0),
    }
    _explain(crowd, findings, {"lost": verdict.calls_lost, "twice": twice})
    by_case = {}
    for name in findings.rerouted:
        by_case[f"{name}_reroute_seconds"] = _worst(findings.rerouted[name].values())
        by_case[f"{name}_moved_seconds"] = _worst(findings.moved[name].values())
        by_case[f"{name}_return_seconds"] = _worst([findings.returned[name]])
        by_case[f"{name}_calls_waiting"] = len(findings.moved[name])
    ok = (
        worst["reroute"] <= REROUTE_SECONDS_MAX
        and worst["moved"] <= MOVED_SECONDS_MAX
        and worst["return"] <= RETURN_SECONDS_MAX
        and not (verdict.calls_lost or twice or verdict.agents_double_booked)
        and all(findings.moved.values())
    )
    return {
        "worst_reroute_seconds": _worst([worst["reroute"]]),
        "worst_moved_seconds": _worst([worst["moved"]]),
        "worst_return_seconds": _worst([worst["return"]]),
        "calls_lost": len(verdict.calls_lost),
        "calls_connected_twice": len(twice),
        "agents_double_booked": len(verdict.agents_double_booked),
        **by_case,
        "calls": verdict.calls,
        "calls_served": verdict.calls_served,
        "calls_untaken": len(verdict.calls_untaken),
        "calls_reopened": verdict.reopened,
        "calls_per_second": arguments.rate,
        "agents": len(crowd.homes),
        "network": floor.net.kind,
        "reroute_seconds_max": REROUTE_SECONDS_MAX,
        "moved_seconds_max": MOVED_SECONDS_MAX,
        "return_seconds_max": RETURN_SECONDS_MAX,
        "ok": ok,
    }


def _worst(seconds: Any) -> float:
    """For the report, in which there is no endlessness."""
    return round(min(max(seconds, default=0.0), 999.0), 2)


def _explain(crowd: RegionCrowd, findings: Findings, bad: dict[str, list[str]]) -> None:
    """The stories of the slowest and of those that should not be."""
    tops = {}
    for kind in ("rerouted", "moved"):
        for case, seconds in getattr(findings, kind).items():
            slowest = sorted(seconds, key=lambda call: -seconds[call])[:2]
            tops[f"slowest {kind} ({case})"] = slowest
    for name, calls in {**tops, **bad}.items():
        for call in calls[:3]:
            rows = [e for e in crowd.ledger.entries if e.call == call]
            story = ", ".join(
                f"{e.at - rows[0].at:.2f} {e.fact.value} {e.region} {e.why}".strip() for e in rows
            )
            print(f"{name}: {call} of {crowd.home_of[call]}: {story}")


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--agents", type=int, default=64, help="a region")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument(
        "--books", type=Path, help="write the edges' whole book there, for who looks for a cause"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "chaos-region.json")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    move_in()
    return carry_out(RegionFloor(), lambda floor: _run(floor, arguments), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
