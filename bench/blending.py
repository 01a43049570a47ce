"""Blended agents on the February 1999 call log: how much busier, and at what price for who calls.

Every day of the log goes through the real engine under virtual time: without outbound, with the product's
policy, and with fixed thresholds ("outbound while more than n agents are free"). Real are the arrivals, the
conversations and the patience (Kaplan-Meier beyond the waits seen). Made up are the outbound list and the
people: inbound is staffed for each half-hour by Erlang-A for 80 % in 20 s, from that half-hour's own number
of calls. The policy does not know these numbers: its forecast of the next minutes comes from the days
before and the callers seen so far.

The list: an agent looks at a contact for 10 s, then the line rings for up to 20 s; 30 % answer and talk for
a minute on average (log-normal), 10 s of after-call work follow; calls begin from 9 to 20 o'clock.
Occupancy counts all of that as work, as the engine does; what was conversation alone is told beside it.
Further rows, which have no limit: the same list predictively dialled (the agents wait, lines ring ahead
under an abandon cap of 3 %), and lists of longer conversations, 75 s and two minutes.

Limits: occupancy up by at least 10 points, the service level of inbound down by at most 1 point, and more
occupancy than the thresholds would give at the same loss. `--days 7` is a quick look.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import sys
import time
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT)]

from bench.reporting import finish  # noqa: E402

from cli.demo import calls as call_log  # noqa: E402
from cli.demo.edge import PRIORITY_POINTS  # noqa: E402
from routing.model import AgentConfig, QueueConfig  # noqa: E402
from routing.planning.blended_day import Attempt, BlendedDay  # noqa: E402
from routing.planning.blending import (  # noqa: E402
    Blending,
    BlendingRules,
    Contacts,
    ForecastBlending,
    ThresholdBlending,
)
from routing.planning.erlang import Demand, agents_needed  # noqa: E402
from routing.planning.forecast import HistoryTooShort, Seasonal  # noqa: E402
from routing.planning.history import SLOT_MS, SLOTS, of_days  # noqa: E402
from routing.planning.nowcast import Nowcast  # noqa: E402
from routing.planning.pacing import Mode, Pacing  # noqa: E402
from routing.virtual import Contact, Duty, Fate, Roster, VirtualDay  # noqa: E402
from routing.whatif import Past, Seen, estimate, figures  # noqa: E402

LOG_NAME = "anonymous_bank_1999_02.tsv.gz"
GAIN_POINTS_MIN, LOSS_POINTS_MAX = 10.0, 1.0
SERVICE_LEVEL, SHARE = 0.8, 0.7
INBOUND = QueueConfig(id="service", wrap_up_span_ms=0)
OUTBOUND = QueueConfig(id="outbound", wrap_up_span_ms=0, skills=(("outbound", 1),))
#: Calls of the list begin between these hours.
HOURS = (9, 20)
PREVIEW_SECONDS, RING_SECONDS, WRAP_UP_SECONDS, ANSWER_RATIO = 10.0, 20.0, 10.0, 0.3
#: The shape of conversations, and the contacts of a day: more than can be called.
TALK_SIGMA, CONTACTS = 0.6, 20_000
#: After the last call everything that is in hand comes to its end.
TAIL_MS = 7_200_000
THRESHOLDS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way of doing it."""

    name: str
    #: None for no outbound, a number for a threshold, "forecast" for the product's policy.
    policy: str | int | None
    talk_seconds: float = 60.0
    predictive: bool = False


CASES = (
    Case(name="no_outbound", policy=None),
    Case(name="policy", policy="forecast"),
    *(Case(name=f"threshold_{n}", policy=n) for n in THRESHOLDS),
    Case(name="policy_predictive", policy="forecast", predictive=True),
    Case(name="policy_talk_75", policy="forecast", talk_seconds=75.0),
    Case(name="policy_long_talk", policy="forecast", talk_seconds=120.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """A day of the log, ready to be gone through."""

    number: int
    contacts: tuple[Contact, ...]
    roster: Roster
    blended: frozenset[str]
    #: How calls are, by the whole log.
    usual: Demand
    #: Calls of each half-hour by the days before; None while there are none.
    forecast: tuple[float, ...] | None


def read(path: Path, days_max: int, seed: int) -> list[Day]:
    """All days."""
    seen: dict[Any, list[Seen]] = defaultdict(list)
    for row in call_log.read_log(path, call_log.TornLines()):
        if row.outcome != "PHANTOM":
            seen[row.date].append(seen_of(row))
    dates = sorted(seen)[:days_max]
    empty = Roster(queues=(INBOUND,), agents=(), duties=())
    pasts = [
        Past(title=date.isoformat(), origin_ms=0, seen=tuple(seen[date]), roster=empty, busy_ms={})
        for date in dates
    ]
    usual = usual_calls(pasts)
    contacts = [tuple(estimate(past, seed)) for past in pasts]
    counts = {date: by_half_hour(each) for date, each in zip(dates, contacts, strict=True)}
    known = of_days(counts, zoneinfo.ZoneInfo("UTC"))
    found = []
    for number, date in enumerate(dates):
        roster, blended = staffed(counts[date], usual)
        try:
            forecast = Seasonal(known.before(date)).day(date).arrivals
        except HistoryTooShort:
            forecast = None
        found.append(
            Day(
                number=number,
                contacts=contacts[number],
                roster=roster,
                blended=blended,
                usual=usual,
                forecast=forecast,
            )
        )
    return found


def seen_of(row: call_log.LogCall) -> Seen:
    """A call of the log."""
    contact = Contact(
        id=f"l{row.line:06d}",
        queue=INBOUND.id,
        arrival_ms=row.arrival_seconds * 1000,
        talk_ms=row.service_seconds * 1000,
        priority=PRIORITY_POINTS.get(row.priority, 0),
    )
    fate = Fate.ANSWERED if row.outcome == "AGENT" else Fate.ABANDONED
    return Seen(contact=contact, fate=fate, wait_ms=row.wait_seconds * 1000)


def usual_calls(pasts: Sequence[Past]) -> Demand:
    """Mean conversation, and mean patience as for exponential patience of which the served show only a
    part.
    """
    waited = left = 0
    talks = []
    for past in pasts:
        for seen in past.seen:
            waited += seen.wait_ms
            left += seen.fate is Fate.ABANDONED and seen.wait_ms > 0
            if seen.fate is Fate.ANSWERED:
                talks.append(seen.contact.talk_ms)
    return Demand(
        rate=0.0, handle_seconds=sum(talks) / len(talks) / 1000, patience_seconds=waited / left / 1000
    )


def by_half_hour(contacts: Sequence[Contact]) -> tuple[float, ...]:
    """Callers who wait at all; those of after midnight count for the last half-hour."""
    counts = Counter(min(SLOTS - 1, c.arrival_ms // SLOT_MS) for c in contacts if c.patience_ms != 0)
    return tuple(float(counts[slot]) for slot in range(SLOTS))


def staffed(counts: Sequence[float], usual: Demand) -> tuple[Roster, frozenset[str]]:
    """(people for every half-hour by Erlang-A, the blended ones): from the first call's half-hour to the
    last's.
    """
    open_slots = [slot for slot, calls in enumerate(counts) if calls]
    needed = {}
    for slot in range(open_slots[0], open_slots[-1] + 1):
        demand = replace(usual, rate=counts[slot] * 1000 / SLOT_MS)
        needed[slot] = max(1, agents_needed(demand, SERVICE_LEVEL))
    names = [f"agent-{n:02d}" for n in range(1, max(needed.values()) + 1)]
    duties = []
    for place, name in enumerate(names):
        began = None
        for slot in range(open_slots[0], open_slots[-1] + 2):
            on = needed.get(slot, 0) > place
            if on and began is None:
                began = slot
            elif not on and began is not None:
                duties.append(Duty(agent=name, start_ms=began * SLOT_MS, end_ms=slot * SLOT_MS))
                began = None
    blended = {name for n, name in enumerate(names) if int((n + 1) * SHARE) > int(n * SHARE)}
    roster = Roster(
        queues=(INBOUND, OUTBOUND), agents=tuple(AgentConfig(id=n) for n in names), duties=tuple(duties)
    )
    return roster, frozenset(blended)


def contacts_of(case: Case, seed: int) -> Iterator[Attempt]:
    """The list, in its order."""
    rng = random.Random(f"{case.talk_seconds}:{seed}")
    first, last = (hour * 3_600_000 for hour in HOURS)
    mean = math.log(case.talk_seconds) - TALK_SIGMA**2 / 2
    preview = 0.0 if case.predictive else PREVIEW_SECONDS
    for number in range(CONTACTS):
        answered = rng.random() < ANSWER_RATIO
        # Who answers does it sooner than a line is given up.
        rings = min(RING_SECONDS, rng.expovariate(2 / RING_SECONDS)) if answered else RING_SECONDS
        talk = rng.lognormvariate(mean, TALK_SIGMA) + WRAP_UP_SECONDS
        yield Attempt(
            id=str(number),
            dial_ms=round((preview + rings) * 1000),
            talk_ms=round(talk * 1000) if answered else 0,
            from_ms=first,
            until_ms=last,
        )


def policy_of(case: Case) -> Blending:
    """A fresh one for each day."""
    if isinstance(case.policy, int):
        return ThresholdBlending(reserve=case.policy, share=SHARE)
    rings = RING_SECONDS * (1 - ANSWER_RATIO) + RING_SECONDS / 2 * (1 - math.exp(-2)) * ANSWER_RATIO
    contacts = Contacts(
        answer_ratio=1.0 if case.predictive else ANSWER_RATIO,
        dial_seconds=0.0 if case.predictive else PREVIEW_SECONDS + rings,
        talk_seconds=case.talk_seconds + WRAP_UP_SECONDS,
    )
    return ForecastBlending(rules=BlendingRules(share=SHARE), contacts=contacts)


def go_through(task: tuple[Day, Case]) -> Counter[str]:
    """One day in one way: sums."""
    day, case = task
    last_ms = max(c.arrival_ms for c in day.contacts) + TAIL_MS
    began = time.process_time()
    sums: Counter[str] = Counter()
    if case.policy is None:
        result = VirtualDay(day.roster, day.contacts).run(last_ms)
    else:
        blended = BlendedDay(
            day.roster,
            day.contacts,
            policy=policy_of(case),
            attempts=contacts_of(case, day.number),
            queue=OUTBOUND.id,
            blended=day.blended,
            outlook=outlook_of(day),
            pacing=Pacing(Mode.PREDICTIVE) if case.predictive else None,
            answer_ratio=ANSWER_RATIO,
        )
        result, out = blended.run(last_ms), blended.outbound
        sums.update(attempts=out.attempts, answered=out.answered, recalled=out.recalled)
        sums.update(abandoned_outbound=out.abandoned, talk_ms=out.talk_ms, dial_ms=out.dial_ms)
    found = figures(result.outcomes, {queue.id: queue for queue in day.roster.queues})
    sums.update(
        calls=found.offered,
        in_target=found.answered_in_target,
        counted=found.answered + found.abandoned,
        left=found.abandoned + found.short_abandoned,
        wait_ms=sum(outcome.wait_ms for outcome in result.outcomes),
        busy_ms=sum(result.busy_ms.values()),
        duty_ms=sum(result.duty_ms.values()),
        cpu_ms=round((time.process_time() - began) * 1000),
    )
    return sums


def outlook_of(day: Day) -> Nowcast:
    """What the policy may know: the days before, and the callers so far."""
    rows = day.forecast

    def rate(ms: int) -> float | None:
        return None if rows is None else rows[min(SLOTS - 1, max(0, ms // SLOT_MS))] * 1000 / SLOT_MS

    return Nowcast(day.usual, rate, start_ms=min(c.arrival_ms for c in day.contacts))


def judge(sums: dict[str, Counter[str]]) -> dict[str, Any]:
    """The table and the verdict."""
    report: dict[str, Any] = {}
    base = sums["no_outbound"]
    for name, each in sums.items():
        hours = each["duty_ms"] / 3_600_000
        rows = {
            "service_level_ratio": each["in_target"] / each["counted"],
            "occupancy_ratio": each["busy_ms"] / each["duty_ms"],
            "abandoned_ratio": each["left"] / each["calls"],
            "wait_seconds": each["wait_ms"] / each["calls"] / 1000,
        }
        if name != "no_outbound":
            rows |= {
                "gain_points": gain(each, base),
                "loss_points": loss(each, base),
                "talk_gain_points": 100 * each["talk_ms"] / each["duty_ms"],
                "attempts_per_staffed_hour": each["attempts"] / hours,
                "conversations_per_staffed_hour": (each["answered"] - each["abandoned_outbound"]) / hours,
                "recalled_ratio": each["recalled"] / max(1, each["attempts"]),
                "outbound_abandoned_ratio": each["abandoned_outbound"] / max(1, each["answered"]),
            }
        report |= {f"{name}_{key}": round(value, 4) for key, value in rows.items()}
    report["days_calls"] = base["calls"]
    report["staffed_hours"] = round(base["duty_ms"] / 3_600_000, 1)
    report["cpu_seconds"] = round(sum(each["cpu_ms"] for each in sums.values()) / 1000, 1)
    if "policy" in sums:
        report |= verdict(sums, base)
    return report


def gain(one: Counter[str], base: Counter[str]) -> float:
    """Occupancy, points more."""
    return 100 * (one["busy_ms"] / one["duty_ms"] - base["busy_ms"] / base["duty_ms"])


def loss(one: Counter[str], base: Counter[str]) -> float:
    """Service level, points less."""
    return 100 * (base["in_target"] / base["counted"] - one["in_target"] / one["counted"])


def verdict(sums: dict[str, Counter[str]], base: Counter[str]) -> dict[str, Any]:
    """The limits, and whether they hold."""
    gained, lost = gain(sums["policy"], base), loss(sums["policy"], base)
    others = sorted(
        (loss(each, base), gain(each, base)) for name, each in sums.items() if name.startswith("threshold")
    )
    usual = at_loss(others, lost)
    return {
        "occupancy_gain_points": round(gained, 3),
        "occupancy_gain_points_min": GAIN_POINTS_MIN,
        "service_level_loss_points": round(lost, 3),
        "service_level_loss_points_max": LOSS_POINTS_MAX,
        "threshold_gain_points_at_same_loss": round(usual, 3),
        "ok": gained >= GAIN_POINTS_MIN and lost <= LOSS_POINTS_MAX and gained > usual,
    }


def at_loss(points: Sequence[tuple[float, float]], lost: float) -> float:
    """What the thresholds gain at that loss, mixing the two nearest of them."""
    before = (0.0, 0.0)
    for each in points:
        if each[0] >= lost:
            share = (lost - before[0]) / (each[0] - before[0]) if each[0] > before[0] else 1.0
            return before[1] + share * (each[1] - before[1])
        before = each
    return before[1]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything; the report."""
    days = read(arguments.log, arguments.days, arguments.seed)
    chosen = [case for case in CASES if not arguments.only or case.name in ("no_outbound", *arguments.only)]
    tasks = [(day, case) for case in chosen for day in days]
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for (_, case), found in zip(tasks, pool.imap(go_through, tasks, chunksize=4), strict=True):
            sums[case.name] += found
    return {"log_days": len(days), "seed": arguments.seed, **judge(sums)}


def main() -> int:
    """0 when the limits hold, else 1; 0 as well where the log is not here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    data = Path(os.environ.get("CALLMESH_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("--days", type=int, default=31, help="days of the log, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=[c.name for c in CASES], help="these rows alone")
    parser.add_argument("--processes", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    parser.add_argument("--log", type=Path, default=data / LOG_NAME)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "blending.json")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"skipped": f"{LOG_NAME} is not here", "ok": True}
    if arguments.log.exists():
        report = run(arguments)
    return finish(report, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
