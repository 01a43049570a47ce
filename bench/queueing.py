"""Queueing truth: the product's engine under virtual time against theory and against another simulator.

Run as `python -m bench.queueing` (`make bench-queueing`). Nothing real is started: what decides is the engine
(`routing.engine.step`), time is virtual (`routing.virtual`), seeds are fixed.

1. Theory. Poisson arrivals, exponential service of mean 1 min, 50 agents, 48 calls/min: without abandonment
   the mean wait is Erlang C's, with exponential patience of mean 2 min wait and abandonment are Erlang A's.
   Two such sites pooled are two shards that help each other (an arrival goes to the site with a free agent,
   a waiting call moves to the site where an agent becomes free): no agent is idle while a call waits, so
   they are one system of 100 agents and 96 calls/min. Each system is run in independent replications, their
   beginning is thrown away, and the exact value must lie within the 95 % confidence interval of the
   replications' means. The interval is made narrower by what is known of each replication's own arrivals
   and services (control variates: S. Lavenberg, P. Welch, Management Science 27 (1981) 322-335), and it
   must be narrow, else it would prove nothing.
2. One by one. In one shard, first come first served, each call's wait follows from the times alone (J.
   Kiefer, J. Wolfowitz, Trans. AMS 78 (1955) 1-18, with callers who leave): the engine must give the same,
   call by call.
3. Another simulator. The call log's real arrivals, services and (Kaplan-Meier) patience, day by day,
   through the engine and through `ciw` (the demo's reference): same waits. Where two things happen in the
   same second the two may take turns the other way, so a few calls differ.

Formulas: A. K. Erlang 1917; C. Palm 1957 (Erlang A), here by the birth-death chain itself.
"""

from __future__ import annotations

import argparse
import heapq
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

import numpy  # noqa: E402
from bench.reporting import finish  # noqa: E402
from scipy import stats  # noqa: E402

from cli.demo import calls as call_log  # noqa: E402
from cli.demo import reference, replay  # noqa: E402
from cli.demo.edge import PRIORITY_POINTS  # noqa: E402
from cli.demo.model import Day  # noqa: E402
from cli.demo.staffing import erlang_c  # noqa: E402
from routing.model import AgentConfig, QueueConfig  # noqa: E402
from routing.virtual import Contact, DayResult, Duty, Fate, Leaving, Roster, run_day  # noqa: E402

#: Confidence of the intervals.
CONFIDENCE = 0.95
#: An interval may be at most this share of the exact value to either side.
HALF_WIDTH_RATIO_MAX = 0.25
#: Calls of a log's day whose wait or fate is another than ciw's, and the difference of the mean waits, at
#: most.
DIFFERING_RATIO_MAX = 0.02
LOG_WAIT_RATIO_MAX = 0.01
#: Waits that differ by no more than this are the same: ciw counts in floating point.
SAME_WAIT_MS = 2
MINUTE_MS = 60_000
CREDIT_SECONDS = {priority: points * 30.0 for priority, points in PRIORITY_POINTS.items()}
LOG_NAME = "anonymous_bank_1999_02.tsv.gz"
QUEUE = QueueConfig(id="service", overflow_span_ms=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """A queueing system with a known answer."""

    name: str
    #: Sites of 50 agents and 48 calls a minute each.
    sites: int
    #: Mean patience in minutes; None for callers who never leave.
    patience_minutes: float | None

    @property
    def agents(self) -> int:
        return 50 * self.sites

    @property
    def calls_per_minute(self) -> float:
        return 48.0 * self.sites

    def exact(self) -> tuple[float, float]:
        """(mean wait of all calls in seconds, share that abandons)."""
        if self.patience_minutes is None:
            delayed = erlang_c(self.agents, self.calls_per_minute)
            return 60.0 * delayed / (self.agents - self.calls_per_minute), 0.0
        return erlang_a(self.agents, self.calls_per_minute, 1.0, self.patience_minutes)


SYSTEMS = (
    System(name="erlang_c", sites=1, patience_minutes=None),
    System(name="erlang_a", sites=1, patience_minutes=2.0),
    System(name="pooled_c", sites=2, patience_minutes=None),
    System(name="pooled_a", sites=2, patience_minutes=2.0),
)


def erlang_a(agents: int, rate: float, mean_service: float, mean_patience: float) -> tuple[float, float]:
    """(mean wait in seconds, share abandoning) of M/M/n+M; times in minutes. By the stationary chain: a
    state is left upwards at `rate`, downwards at the rate of those in service and of those who lose
    patience.
    """
    weight, total, waiting, n = 1.0, 1.0, 0.0, 0
    while n <= agents or weight > 1e-16 * total:
        n += 1
        weight *= rate / (min(n, agents) / mean_service + max(0, n - agents) / mean_patience)
        total += weight
        waiting += max(0, n - agents) * weight
    mean_wait = waiting / total / rate
    return 60.0 * mean_wait, mean_wait / mean_patience


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One replication."""

    system: System
    seed: int
    calls: int
    warm_up: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Replication:
    """What one replication showed, its beginning left out."""

    name: str
    wait_seconds: float
    abandoned_ratio: float
    #: What this replication drew, for the control variates; expectations are known.
    gap_ms: float
    talk_ms: float
    calls: int
    commands: int
    #: Calls whose wait is not the one that follows from the times; -1 where sites share.
    wrong_calls: int


def draw(task: Task) -> list[Contact]:
    """The replication's callers, homes in turn at random."""
    rng = random.Random(f"{task.system.name}:{task.seed}")
    per_ms = task.system.calls_per_minute / MINUTE_MS
    patience = task.system.patience_minutes
    now, contacts = 0.0, []
    for number in range(task.warm_up + task.calls):
        now += rng.expovariate(per_ms)
        leaves = None if patience is None else max(1, round(rng.expovariate(1 / (patience * MINUTE_MS))))
        contacts.append(
            Contact(
                id=f"c{number:07d}",
                queue=QUEUE.id,
                arrival_ms=round(now),
                talk_ms=max(1, round(rng.expovariate(1 / MINUTE_MS))),
                patience_ms=leaves,
                home=f"site-{rng.randrange(task.system.sites)}",
            )
        )
    return contacts


def replicate(task: Task) -> Replication:
    """One replication through the engine."""
    contacts = draw(task)
    agents = tuple(AgentConfig(id=f"agent-{n:03d}") for n in range(task.system.agents))
    end_ms = contacts[-1].arrival_ms + 1_000 * MINUTE_MS
    roster = Roster(
        queues=(QUEUE,),
        agents=agents,
        duties=tuple(Duty(agent=a.id, start_ms=0, end_ms=end_ms) for a in agents),
        sites={a.id: f"site-{n % task.system.sites}" for n, a in enumerate(agents)},
        share=task.system.sites > 1,
    )
    result = run_day(roster, contacts, until_ms=end_ms - 1)
    seen = [o for o in result.outcomes if o.contact.id >= contacts[task.warm_up].id]
    first, last = contacts[task.warm_up - 1], contacts[-1]
    return Replication(
        name=task.system.name,
        wait_seconds=sum(o.wait_ms for o in seen) / len(seen) / 1000,
        abandoned_ratio=sum(o.fate is Fate.ABANDONED for o in seen) / len(seen),
        gap_ms=(last.arrival_ms - first.arrival_ms) / task.calls,
        talk_ms=sum(c.talk_ms for c in contacts[task.warm_up :]) / task.calls,
        calls=len(seen),
        commands=result.commands,
        wrong_calls=wrong_calls(result, len(agents)) if task.system.sites == 1 else -1,
    )


def wrong_calls(result: DayResult, agents: int) -> int:
    """Calls that waited otherwise than first come, first served says: an agent free at the earliest takes the
    caller, unless the caller has left by then.
    """
    free = [0] * agents
    wrong = 0
    for outcome in result.outcomes:
        contact = outcome.contact
        wait_ms = max(0, free[0] - contact.arrival_ms)
        if contact.patience_ms is not None and wait_ms > contact.patience_ms:
            expected = (Fate.ABANDONED, contact.patience_ms)
        else:
            expected = (Fate.ANSWERED, wait_ms)
            heapq.heapreplace(free, contact.arrival_ms + wait_ms + contact.talk_ms)
        wrong += (outcome.fate, outcome.wait_ms) != expected
    return wrong


def interval(values: Sequence[float], controls: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(estimate, half width of its confidence interval) from replications' values and their controls, each
    control less its expectation: the intercept of the regression on them.
    """
    y = numpy.array(values)
    x = numpy.column_stack([numpy.ones(len(y)), numpy.array(controls)])
    beta, *_ = numpy.linalg.lstsq(x, y, rcond=None)
    degrees = len(y) - x.shape[1]
    spread = float((y - x @ beta) @ (y - x @ beta)) / degrees
    half = stats.t.ppf((1 + CONFIDENCE) / 2, degrees) * math.sqrt(spread * numpy.linalg.inv(x.T @ x)[0, 0])
    return float(beta[0]), float(half)


def judge(system: System, runs: Sequence[Replication]) -> tuple[dict[str, Any], bool]:
    """The system's figures, and whether they are theory's."""
    gap_ms = MINUTE_MS / system.calls_per_minute
    # As shares of their expectations: the regression's numbers are then of one size.
    controls = [(run.gap_ms / gap_ms - 1, run.talk_ms / MINUTE_MS - 1) for run in runs]
    exact_wait, exact_abandoned = system.exact()
    figures: dict[str, Any] = {}
    ok = True
    rows = [("wait_seconds", [run.wait_seconds for run in runs], exact_wait)]
    if system.patience_minutes is not None:
        rows.append(("abandoned_ratio", [run.abandoned_ratio for run in runs], exact_abandoned))
    for name, values, exact in rows:
        mean, half = interval(values, controls)
        within = abs(mean - exact) <= half and half <= HALF_WIDTH_RATIO_MAX * exact
        ok = ok and within
        figures |= {
            f"{system.name}_{name}": round(mean, 4),
            f"{system.name}_{name}_half_width": round(half, 4),
            f"{system.name}_{name}_exact": round(exact, 4),
            f"{system.name}_{name}_within": within,
        }
    figures[f"{system.name}_calls"] = sum(run.calls for run in runs)
    return figures, ok


# --- the log's days


@dataclass(frozen=True, kw_only=True, slots=True)
class LogDay:
    """One day of the log through both."""

    calls: int
    engine_wait_seconds: float
    ciw_wait_seconds: float
    #: Calls whose wait or fate is another.
    differing: int


def roster_of(day: Day) -> Roster:
    """The day's agents on duty, counted by heads as ciw counts them."""
    names = sorted({duty.agent for duty in day.duties})
    return Roster(
        queues=(QueueConfig(id=QUEUE.id, priority_credit_span_ms=30_000),),
        agents=tuple(AgentConfig(id=name) for name in names),
        duties=tuple(
            Duty(
                agent=duty.agent,
                start_ms=round(duty.start_seconds * 1000),
                end_ms=round(duty.end_seconds * 1000),
            )
            for duty in day.duties
        ),
        leaving=Leaving.FIRST_FREE,
    )


def contacts_of(day: Day) -> list[Contact]:
    """The day's callers who queued, at ciw's own ticks (a millisecond each)."""
    queued = [call for call in day.calls if call.patience_seconds > 0]
    ticks = reference.distinct_ticks([call.arrival_seconds for call in queued])
    return [
        Contact(
            id=call.id,
            queue=QUEUE.id,
            arrival_ms=tick,
            talk_ms=round(call.service_seconds * 1000),
            patience_ms=None if math.isinf(call.patience_seconds) else round(call.patience_seconds * 1000),
            priority=PRIORITY_POINTS.get(call.priority, 0),
        )
        for call, tick in zip(queued, ticks, strict=True)
    ]


def compare_day(task: tuple[Path, str, int]) -> LogDay:
    """One day through the engine and through ciw."""
    path, date, seed = task
    day = replay.load(path, wanted=date, hours=None, seed=seed, agents=None).day
    theirs = reference.waits(day, credit_seconds_of=CREDIT_SECONDS)
    ours = run_day(roster_of(day), contacts_of(day)).outcomes
    differing = 0
    for outcome in ours:
        answered, wait = theirs.get(outcome.contact.id, (False, math.inf))
        same = answered == (outcome.fate is Fate.ANSWERED)
        differing += not same or abs(wait * 1000 - outcome.wait_ms) > SAME_WAIT_MS
    return LogDay(
        calls=len(ours),
        engine_wait_seconds=sum(o.wait_ms for o in ours) / len(ours) / 1000,
        ciw_wait_seconds=sum(wait for _, wait in theirs.values()) / len(theirs),
        differing=differing,
    )


def judge_log(days: Sequence[LogDay]) -> tuple[dict[str, Any], bool]:
    """The figures over all days, each weighing as many calls as it has, and whether they are ciw's."""
    calls = sum(day.calls for day in days)
    ours = sum(day.engine_wait_seconds * day.calls for day in days) / calls
    theirs = sum(day.ciw_wait_seconds * day.calls for day in days) / calls
    worst = max(abs(day.engine_wait_seconds / day.ciw_wait_seconds - 1) for day in days)
    differing = sum(day.differing for day in days) / calls
    figures = {
        "log_days": len(days),
        "log_calls": calls,
        "log_wait_seconds": round(ours, 3),
        "log_wait_ciw_seconds": round(theirs, 3),
        "log_wait_ratio_to_ciw": round(ours / theirs, 5),
        "log_worst_day_difference_ratio": round(worst, 5),
        "log_differing_ratio": round(differing, 5),
        "log_differing_ratio_max": DIFFERING_RATIO_MAX,
        "log_wait_difference_ratio_max": LOG_WAIT_RATIO_MAX,
    }
    ok = abs(ours / theirs - 1) <= LOG_WAIT_RATIO_MAX and differing <= DIFFERING_RATIO_MAX
    return figures, ok


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything; the report."""
    started = time.monotonic()
    chosen = [s for s in SYSTEMS if not arguments.only or s.name in arguments.only]
    tasks = [
        Task(
            system=system,
            seed=arguments.seed + n,
            # Callers who leave keep the queue short, so its mean is known sooner.
            calls=arguments.calls if system.patience_minutes is None else arguments.calls // 2,
            warm_up=arguments.warm_up,
        )
        for n in range(arguments.replications)
        for system in chosen
    ]
    figures: dict[str, Any] = {}
    ok = True
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        runs = pool.map(replicate, tasks, chunksize=1)
        for system in chosen:
            more, good = judge(system, [each for each in runs if each.name == system.name])
            figures |= more
            ok = ok and good
        wrong = sum(max(0, each.wrong_calls) for each in runs)
        figures["one_by_one_calls"] = sum(each.calls for each in runs if each.wrong_calls >= 0)
        figures["one_by_one_wrong"] = wrong
        if arguments.log.exists():
            dates = sorted(call_log.summarise(arguments.log).calls_by_day)[: arguments.days]
            days = [(arguments.log, date.isoformat(), arguments.seed) for date in dates]
            more, good = judge_log(pool.map(compare_day, days, chunksize=1))
            figures |= more
            ok = ok and good
        else:
            figures["log_skipped"] = f"{LOG_NAME} is not here"
    figures |= {
        "replications": arguments.replications,
        "warm_up_calls": arguments.warm_up,
        "seed": arguments.seed,
        "half_width_ratio_max": HALF_WIDTH_RATIO_MAX,
        "engine_commands": sum(each.commands for each in runs),
        "real_seconds": round(time.monotonic() - started, 1),
    }
    return figures | {"ok": ok and wrong == 0}


def main() -> int:
    """0 when theory and ciw agree with the engine, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    data = Path(os.environ.get("CALLMESH_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--replications", type=int, default=12)
    parser.add_argument("--calls", type=int, default=40_000, help="a replication, after the warm-up")
    parser.add_argument("--warm-up", type=int, default=8_000, help="calls thrown away at the beginning")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=31, help="days of the log, at most")
    parser.add_argument("--only", nargs="*", choices=[s.name for s in SYSTEMS], help="these systems alone")
    parser.add_argument("--processes", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    parser.add_argument("--log", type=Path, default=data / LOG_NAME)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "queueing.json")
    arguments = parser.parse_args()
    report = run(arguments)
    return finish(report, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
