"""How well four regions share their load: the product's placement and overflow under virtual time.

Run as `python -m bench.regions` (`make bench-regions`). Four regions of 25 agents, mean service 180 s, 90 %
occupancy of all agents together, load shares 1.2, 1.07, 0.93 and 0.8 that rotate every two hours. Policies in
one table, with the same callers:

1. isolated: every call waits at home, come what may;
2. least_loaded: a call goes where the fewest calls an agent are, wherever its home is;
3. callmesh: `routing.placement` ranks the regions for each arrival, with the expected waits that
   `routing.views` tells and a queue's threshold; a call that has waited for the threshold moves as soon as
   another region has a free agent and nobody waiting (`routing.virtual`, which does what fronts do). The
   threshold is the policy's to choose: a few are tried.

Beside them one group of 100 agents with the same callers, and what Erlang C says of it: where the first is
above the second, the days drawn were busier than the mean. A second part looks at 30 regions of 300 agents.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

from bench.reporting import write_report  # noqa: E402

from cli.demo.staffing import erlang_c  # noqa: E402
from routing import placement  # noqa: E402
from routing.geo.model import Located, Precision  # noqa: E402
from routing.model import AgentConfig, QueueConfig  # noqa: E402
from routing.placement import Caller, PlacementRules, Previous, QueueView, RegionState, RegionView  # noqa: E402
from routing.views import queue_loads  # noqa: E402
from routing.virtual import Contact, Duty, Roster, VirtualDay  # noqa: E402

SERVICE_SECONDS = 180.0
OCCUPANCY = 0.9
SHARES = (1.2, 1.07, 0.93, 0.8)
ROTATE_SECONDS = 2 * 3600
#: Limits of the report.
WAIT_RATIO_MAX = 1.25
HOME_RATIO_MIN = 0.78
QUEUE_ID = "service"
#: Thresholds that the policy may choose from, seconds.
THRESHOLDS = (0.0, 5.0, 20.0)
#: How old a peer's figures are when they are used: a stream sends them when they change.
INFO_AGE_MS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One policy on one day."""

    policy: str
    threshold_seconds: float
    regions: int
    agents: int
    hours: float
    warm_up_hours: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a day showed after its beginning."""

    policy: str
    threshold_seconds: float
    calls: int
    wait_seconds: float
    answered_in_20_ratio: float
    at_home: int
    worst_region_wait_seconds: float


def site(number: int) -> str:
    return f"region-{number:02d}"


def shares(turn: int, regions: int) -> list[float]:
    """Each region's share of the load: the four figures in turn, one place further every two hours."""
    return [SHARES[(region + turn) % len(SHARES)] / regions for region in range(regions)]


def draw(setting: Setting) -> list[Contact]:
    """The day's callers: one Poisson stream, homes by the shares of the moment."""
    rng = random.Random(f"regions:{setting.regions}:{setting.seed}")
    per_second = setting.regions * setting.agents * OCCUPANCY / SERVICE_SECONDS
    now = 0.0
    contacts: list[Contact] = []
    weights: dict[int, list[float]] = {}
    while now < setting.hours * 3600:
        now += rng.expovariate(per_second)
        turn = int(now // ROTATE_SECONDS)
        if turn not in weights:
            weights[turn] = shares(turn, setting.regions)
        contacts.append(
            Contact(
                id=f"c{len(contacts):07d}",
                queue=QUEUE_ID,
                arrival_ms=round(now * 1000),
                talk_ms=max(1, round(rng.expovariate(1 / SERVICE_SECONDS) * 1000)),
                home=site(rng.choices(range(setting.regions), weights[turn])[0]),
            )
        )
    return contacts


class Placed(VirtualDay):
    """A day on which the product's placement chooses where a call begins to wait."""

    def __init__(self, roster: Roster, contacts: Sequence[Contact], threshold_seconds: float) -> None:
        super().__init__(roster, contacts)
        self._rules = PlacementRules(overflow_seconds=threshold_seconds)
        self._previous: dict[str, Previous] = {}

    def _site_for(self, contact: Contact) -> str:
        # The prefix says whose caller this is; nobody is nearer than another.
        number = contact.home.removeprefix("region-")
        place = Located(
            e164=f"+1{number}5550000",
            country="US",
            province="",
            city="",
            latitude=None,
            longitude=None,
            precision=Precision.COUNTRY,
            kind=None,
            radius_km=2_000,
        )
        caller = Caller(place=place, draw=0.5)
        views = [self._view(name) for name in self._site_names]
        found = placement.place(caller, views, QUEUE_ID, self._rules, self._previous.get(contact.home))
        self._previous[contact.home] = found.previous
        return found.regions[0]

    def _view(self, name: str) -> RegionView:
        load = queue_loads(self._sites[name])[0]
        wait_ms = load.own_wait_span_ms
        return RegionView(
            id=name,
            state=RegionState.UP,
            latitude=0.0,
            longitude=0.0,
            served_prefixes=(f"+1{name.removeprefix('region-')}",),
            queues={
                QUEUE_ID: QueueView(
                    agents_logged_in=load.agents_logged_in,
                    agents_free=load.agents_free,
                    waiting=load.waiting,
                    ewt_seconds=wait_ms / 1000 if wait_ms >= 0 else None,
                    age_ms=INFO_AGE_MS,
                )
            },
        )


class LeastLoaded(VirtualDay):
    """A day on which every call goes where the fewest calls an agent are."""

    def _site_for(self, contact: Contact) -> str:
        def load(name: str) -> tuple[int, str]:
            state = self._sites[name]
            figures = queue_loads(state)[0]
            return figures.waiting + figures.agents_logged_in - figures.agents_free, name

        return min(map(load, self._site_names))[1]


def look(setting: Setting) -> Seen:
    """One day under one policy."""
    contacts = draw(setting)
    pooled = setting.policy == "pooled"
    if pooled:
        contacts = [replace(contact, home=site(0)) for contact in contacts]
    queue = QueueConfig(
        id=QUEUE_ID, wrap_up_span_ms=0, overflow_span_ms=round(setting.threshold_seconds * 1000)
    )
    count = setting.regions * setting.agents
    agents = tuple(AgentConfig(id=f"agent-{n:05d}") for n in range(count))
    end_ms = contacts[-1].arrival_ms + 24 * 3_600_000
    roster = Roster(
        queues=(queue,),
        agents=agents,
        duties=tuple(Duty(agent=a.id, start_ms=0, end_ms=end_ms) for a in agents),
        sites={a.id: site(0 if pooled else n % setting.regions) for n, a in enumerate(agents)},
        share=setting.policy == "callmesh",
    )
    day: VirtualDay
    if setting.policy == "callmesh":
        day = Placed(roster, contacts, setting.threshold_seconds)
    elif setting.policy == "least_loaded":
        day = LeastLoaded(roster, contacts)
    else:
        day = VirtualDay(roster, contacts)
    result = day.run(until_ms=end_ms - 1)
    seen = [o for o in result.outcomes if o.contact.arrival_ms >= setting.warm_up_hours * 3_600_000]
    by_home: dict[str, list[int]] = {}
    for outcome in seen:
        by_home.setdefault(outcome.contact.home, []).append(outcome.wait_ms)
    return Seen(
        policy=setting.policy,
        threshold_seconds=setting.threshold_seconds,
        calls=len(seen),
        wait_seconds=sum(o.wait_ms for o in seen) / len(seen) / 1000,
        answered_in_20_ratio=sum(o.wait_ms <= 20_000 for o in seen) / len(seen),
        at_home=sum(o.site == o.contact.home for o in seen),
        worst_region_wait_seconds=max(sum(waits) / len(waits) for waits in by_home.values()) / 1000,
    )


def mean(rows: Sequence[Seen]) -> dict[str, Any]:
    """Several days as one."""
    calls = sum(row.calls for row in rows)
    return {
        "calls": calls,
        "wait_seconds": round(sum(row.wait_seconds * row.calls for row in rows) / calls, 3),
        "answered_in_20_ratio": round(sum(r.answered_in_20_ratio * r.calls for r in rows) / calls, 4),
        "answered_at_home_ratio": round(sum(row.at_home for row in rows) / calls, 4),
        "worst_region_wait_seconds": round(max(row.worst_region_wait_seconds for row in rows), 2),
    }


def pooled_wait_seconds(agents: int) -> float:
    """Erlang C's mean wait of all agents as one group."""
    load = agents * OCCUPANCY
    return SERVICE_SECONDS * erlang_c(agents, load) / (agents - load)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything; the report."""
    started = time.monotonic()
    four = {"regions": 4, "agents": 25, "hours": arguments.hours, "warm_up_hours": 2}
    many = {"regions": 30, "agents": 300, "hours": arguments.large_hours, "warm_up_hours": 0.4}
    policies = [("pooled", 0.0), ("isolated", 0.0), ("least_loaded", 0.0)]
    policies += [("callmesh", threshold) for threshold in THRESHOLDS]
    tasks = [
        Setting(policy=policy, threshold_seconds=threshold, seed=arguments.seed + n, **four)
        for policy, threshold in policies
        for n in range(arguments.days)
    ]
    large = [Setting(policy="callmesh", threshold_seconds=0.0, seed=arguments.seed, **many)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        rows = pool.map(look, [*large, *tasks] if arguments.large_hours else tasks, chunksize=1)
    huge = rows.pop(0) if arguments.large_hours else None
    table = {
        f"{policy}_{threshold:g}s" if policy == "callmesh" else policy: mean(
            [r for r in rows if (r.policy, r.threshold_seconds) == (policy, threshold)]
        )
        for policy, threshold in policies
    }
    pooled = pooled_wait_seconds(100)
    for row in table.values():
        row["mean_wait_ratio_to_pooled"] = round(row["wait_seconds"] / pooled, 3)
        row["same_callers_ratio"] = round(row["wait_seconds"] / table["pooled"]["wait_seconds"], 3)
    ours = [row for name, row in table.items() if name.startswith("callmesh")]
    fit = [row for row in ours if row["answered_at_home_ratio"] >= HOME_RATIO_MIN]
    best = min(fit or ours, key=lambda row: row["mean_wait_ratio_to_pooled"])
    report: dict[str, Any] = {
        "mean_wait_ratio_to_pooled": best["mean_wait_ratio_to_pooled"],
        "mean_wait_ratio_to_pooled_max": WAIT_RATIO_MAX,
        "answered_at_home_ratio": best["answered_at_home_ratio"],
        "answered_at_home_ratio_min": HOME_RATIO_MIN,
        "pooled_wait_seconds": round(pooled, 3),
        "policies": table,
        "chosen": next(name for name, row in table.items() if row is best),
    }
    if huge is not None:
        report["thirty_regions"] = mean([huge]) | {"pooled_wait_seconds": round(pooled_wait_seconds(9000), 4)}
    ok = (
        best["mean_wait_ratio_to_pooled"] <= WAIT_RATIO_MAX
        and best["answered_at_home_ratio"] >= HOME_RATIO_MIN
    )
    return report | {"seed": arguments.seed, "real_seconds": round(time.monotonic() - started, 1), "ok": ok}


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=int, default=6, help="days a policy")
    parser.add_argument("--hours", type=int, default=18, help="hours a day, two of them thrown away")
    parser.add_argument("--large-hours", type=float, default=1.0, help="hours of the 30 regions; 0 for none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "regions.json")
    arguments = parser.parse_args()
    report = run(arguments)
    for name, value in report.items():
        if name == "policies":
            for policy, row in value.items():
                print(f"  {policy:16} " + "  ".join(f"{key} {figure}" for key, figure in row.items()))
        else:
            print(f"{name:32} {value}")
    return write_report(report, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
