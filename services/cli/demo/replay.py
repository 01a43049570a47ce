"""Turns a day of a call log into a day to be replayed: arrivals and service as logged, patience real or
estimated.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.demo import calls as log
from cli.demo import staffing
from cli.demo.day import SERVICE_SECONDS_MAX
from cli.demo.model import OVERTIME_SECONDS, REGIONS, Day, DayCall, Duty, clock_text
from cli.demo.numbers import Geography
from routing.patience import PatienceCurve, kaplan_meier


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A log's day and what was left out of the file."""

    #: Ready to be replayed.
    day: Day
    #: Lines that could not be read, of the whole file.
    torn: log.TornLines


def load(path: Path, *, wanted: str | None, hours: float | None, seed: int, agents: int | None) -> Loaded:
    """The day's busiest `hours` (None: the whole day) of the log. Raises CallLogError."""
    summary = log.summarise(path)
    date = log.choose_day(summary, wanted)
    rows = log.calls_of_day(path, date)
    length = log.DAY_SECONDS if hours is None else round(hours * 3600)
    start = 0 if hours is None else log.busiest_window([row.arrival_seconds for row in rows], length)
    window = [row for row in rows if start <= row.arrival_seconds < start + length]
    if not window:
        raise log.CallLogError(f"no call on {date} in the window chosen")
    curve = kaplan_meier(summary.hung_up, summary.served)
    geography = Geography(seed=seed, shares=[(region.id, region.load_share) for region in REGIONS])
    made = _Maker(seed=seed, start=start, curve=curve, rows=rows, geography=geography)
    calls = tuple(made.call(row) for row in window)
    duties, regions = _staff(rows, start, length, agents)
    day = Day(
        source="log",
        title=f"{path.name}, {date:%a %Y-%m-%d}, {clock_text(start)}-{clock_text(start + length)}",
        date=date,
        window_start_seconds=start,
        window_seconds=length,
        calls=calls,
        duties=tuple(duties),
        agent_regions=regions,
        notes=_notes(window, agents),
    )
    return Loaded(day=day, torn=summary.torn)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    """Makes calls of log rows; what is drawn for a row depends on the seed and the row's line alone."""

    #: Decides all draws.
    seed: int
    #: Start of the window, seconds after midnight.
    start: int
    #: Patience of those who were served.
    curve: PatienceCurve
    #: All calls of the day.
    rows: Sequence[log.LogCall]
    #: Where callers live.
    geography: Geography

    def call(self, row: log.LogCall) -> DayCall:
        rng = random.Random(f"{self.seed}:{row.line}")
        key = row.customer or f"anonymous:{row.line}"
        served = row.outcome == "AGENT"
        patience = self.curve.draw_beyond(row.wait_seconds, rng) if served else float(row.wait_seconds)
        service = float(row.service_seconds) if served else self._service(row, rng)
        return DayCall(
            id=f"l{row.line}",
            arrival_seconds=float(row.arrival_seconds - self.start),
            patience_seconds=patience,
            service_seconds=min(max(service, 1.0), SERVICE_SECONDS_MAX),
            type=row.type,
            priority=row.priority,
            customer=row.customer,
            number=self.geography.number_of(key),
            home_region=self.geography.region_of(key),
        )

    def _service(self, row: log.LogCall, rng: random.Random) -> float:
        """What a caller who hung up would have needed: drawn from the day's served calls of the same type."""
        like = [r.service_seconds for r in self.rows if r.outcome == "AGENT" and r.type == row.type]
        return float(
            rng.choice(like or [r.service_seconds for r in self.rows if r.outcome == "AGENT"] or [120])
        )


def _staff(
    rows: Sequence[log.LogCall], start: int, length: int, agents: int | None
) -> tuple[list[Duty], dict[str, str]]:
    if agents is not None:
        duties = staffing.constant_duties(agents, length + OVERTIME_SECONDS)
    else:
        spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            if row.server and row.outcome == "AGENT":
                spans[agent_id(row.server)].append(
                    (row.service_start_seconds, row.service_start_seconds + row.service_seconds)
                )
        duties = staffing.duties_from_services(spans, start, start + length + OVERTIME_SECONDS)
    if not duties:
        raise log.CallLogError("the log names no server at work in the window: say AGENTS=<number>")
    capacity = staffing.capacity_by_slot(duties, length)
    return duties, staffing.deal(capacity, {region.id: region.load_share for region in REGIONS})


def agent_id(server: str) -> str:
    """A directory id from a server's name: lower case, other characters as hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", server.lower()).strip("-") or "agent"


def _notes(window: Sequence[log.LogCall], agents: int | None) -> tuple[str, ...]:
    at_once = sum(row.outcome == "HANG" and row.wait_seconds == 0 for row in window)
    cut = sum(row.service_seconds > SERVICE_SECONDS_MAX for row in window)
    staff = (
        f"Agents are on duty where the log shows them serving, gaps up to {staffing.GAP_SECONDS} s included."
        if agents is None
        else f"{agents} agents on duty all the time (AGENTS={agents})."
    )
    return (
        "Real arrivals and service times; patience is the caller's own wait if the caller hung up, "
        "else drawn from the Kaplan-Meier estimate beyond the wait.",
        f"{at_once} callers hung up without waiting at all; {cut} service times were cut at "
        f"{SERVICE_SECONDS_MAX:g} s.",
        staff,
        "Constructed geography, real traffic: callers' numbers have real city prefixes and made-up "
        "subscribers.",
    )
