"""A generated day for when there is no log, from published figures, and the same for every run with one seed.

Sources. L. Brown, N. Gans, A. Mandelbaum, A. Sakov, H. Shen, S. Zeltyn, L. Zhao, "Statistical Analysis of
a Telephone Call Center: A Queueing-Science Perspective", JASA 100 (2005) 36-50: arrivals are Poisson with
a rate that changes over the day, up from 7:00, highest before noon, a second rise after lunch, falling
through the evening to midnight; service times are log-normal, with means and medians by type of service;
patience is near exponential but for the first seconds. The square-root staffing rule: S. Halfin, W.
Whitt, Operations Research 29 (1981) 567-588.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Iterable

from cli.demo import staffing
from cli.demo.calls import DAY_SECONDS, busiest_window
from cli.demo.model import OVERTIME_SECONDS, REGIONS, Day, DayCall, Duty, clock_text
from cli.demo.numbers import Geography

#: Calls of an average generated day.
CALLS_PER_DAY = 2000
#: Relative arrival rate of each half hour from midnight (rounded shape of a weekday; the level is
#: CALLS_PER_DAY).
HALF_HOUR_PROFILE = (
    (3, 2, 1) + (0,) * 9 + (1, 4)
    + (16, 25, 36, 55, 52, 58, 62, 62, 58, 54, 48, 50, 58, 57, 58, 58, 57, 57)
    + (56, 52, 46, 42, 43, 40, 35, 33, 30, 32, 28, 27, 26, 25, 24, 18)
)  # fmt: skip
#: Type: share of the calls, mean and median service seconds (PS regular, NW new customers, NE stock exchange,
#: IN internet consulting).
SERVICES: dict[str, tuple[float, float, float]] = {
    "PS": (0.68, 181.0, 117.0),
    "NW": (0.20, 111.0, 64.0),
    "NE": (0.10, 269.0, 169.0),
    "IN": (0.02, 381.0, 196.0),
}
#: Mean patience: the bank data's Kaplan-Meier estimate for February has its median near 300 s, 433 s x ln 2.
PATIENCE_MEAN_SECONDS = 433.0
#: Service is cut here, as the log's outliers are.
SERVICE_SECONDS_MAX = 1800.0
#: Share of callers who have called before, and of those with high priority among them.
KNOWN_SHARE = 0.45
HIGH_PRIORITY_SHARE = 0.3
#: Different known callers of a day.
KNOWN_CALLERS = 600


def generate(*, seed: int, date: datetime.date, hours: float | None = 4.0, agents: int | None = None) -> Day:
    """The busiest `hours` of a generated day; the whole day with None. `agents` overrides the staffing."""
    rng = random.Random(f"day:{seed}")
    everybody = _calls(rng, seed)
    length = DAY_SECONDS if hours is None else round(hours * 3600)
    start = (
        0 if hours is None else busiest_window([round(call.arrival_seconds) for call in everybody], length)
    )
    calls = tuple(_shift(call, start) for call in everybody if start <= call.arrival_seconds < start + length)
    span = length + OVERTIME_SECONDS
    duties = _staff(start, span) if agents is None else staffing.constant_duties(agents, span)
    capacity = staffing.capacity_by_slot(duties, length)
    regions = staffing.deal(capacity, {region.id: region.load_share for region in REGIONS})
    return Day(
        source="generated",
        title=f"generated day (seed {seed}), {clock_text(start)}-{clock_text(start + length)}",
        date=date,
        window_start_seconds=start,
        window_seconds=length,
        calls=calls,
        duties=tuple(duties),
        agent_regions=regions,
        notes=(
            "Arrivals, service times and patience are generated from published figures (Brown et al. 2005).",
            "Callers' numbers are constructed: real city prefixes, made-up subscribers.",
        ),
    )


def _calls(rng: random.Random, seed: int) -> list[DayCall]:
    geography = Geography(seed=seed, shares=[(region.id, region.load_share) for region in REGIONS])
    scale = CALLS_PER_DAY / sum(HALF_HOUR_PROFILE)
    calls: list[DayCall] = []
    for slot, level in enumerate(HALF_HOUR_PROFILE):
        for arrival in _poisson(rng, level * scale, slot * 1800.0, 1800.0):
            calls.append(_one(rng, geography, len(calls) + 1, arrival))
    return calls


def _poisson(rng: random.Random, expected: float, start: float, length: float) -> Iterable[float]:
    """Arrival times of a Poisson process with `expected` arrivals in [start, start + length)."""
    time = start
    while expected > 0:
        time += rng.expovariate(expected / length)
        if time >= start + length:
            return
        yield time


def _one(rng: random.Random, geography: Geography, number: int, arrival: float) -> DayCall:
    kind = rng.choices(list(SERVICES), [share for share, _, _ in SERVICES.values()])[0]
    known = rng.random() < KNOWN_SHARE
    customer = f"g{rng.randrange(KNOWN_CALLERS):05d}" if known else ""
    key = customer or f"anonymous:{number}"
    return DayCall(
        id=f"g{number:05d}",
        arrival_seconds=arrival,
        patience_seconds=rng.expovariate(1.0 / PATIENCE_MEAN_SECONDS),
        service_seconds=_service(rng, kind),
        type=kind,
        priority=2 if known and rng.random() < HIGH_PRIORITY_SHARE else 0,
        customer=customer,
        number=geography.number_of(key),
        home_region=geography.region_of(key),
    )


def _service(rng: random.Random, kind: str) -> float:
    """Log-normal with the type's mean and median: the logarithm's mean is ln(median), its variance 2
    ln(mean/median).
    """
    _, mean, median = SERVICES[kind]
    drawn = rng.lognormvariate(math.log(median), math.sqrt(2.0 * math.log(mean / median)))
    return min(max(drawn, 1.0), SERVICE_SECONDS_MAX)


def _shift(call: DayCall, start: int) -> DayCall:
    fields = {name: getattr(call, name) for name in DayCall.__dataclass_fields__}
    return DayCall(**{**fields, "arrival_seconds": call.arrival_seconds - start})


def _staff(start: int, length: int) -> list[Duty]:
    """Enough agents in each half hour for its expected load over all regions, which help each other out."""
    mean = sum(share * seconds for share, seconds, _ in SERVICES.values())
    scale = CALLS_PER_DAY / sum(HALF_HOUR_PROFILE)
    needed: dict[int, int] = {}
    for slot in range(start // 1800, math.ceil((start + length) / 1800)):
        needed[slot] = staffing.agents_needed(HALF_HOUR_PROFILE[slot % 48] * scale / 1800.0 * mean, mean)
    duties: list[Duty] = []
    for rank in range(1, max(needed.values(), default=0) + 1):
        slots = [slot for slot in sorted(needed) if needed[slot] >= rank]
        duties.extend(_spans(f"agent-{rank:03d}", slots, start, length))
    return duties


def _spans(agent: str, slots: list[int], start: int, length: int) -> Iterable[Duty]:
    """Runs of consecutive half hours as duties."""
    first = 0
    for index, slot in enumerate(slots):
        if index + 1 == len(slots) or slots[index + 1] != slot + 1:
            begin, end = max(slots[first] * 1800 - start, 0), min((slot + 1) * 1800 - start, length)
            yield Duty(agent=agent, start_seconds=float(begin), end_seconds=float(end))
            first = index + 1
