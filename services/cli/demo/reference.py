"""What a public discrete-event simulator says of the same day: `ciw`, one pooled queue in order of
(credited) arrival.

The same arrivals, service times, patience, priorities and agents on duty as the demo replays, with
nothing in between: no regions, no network, no commits. ciw's own shift schedules replace every server at
a shift's end, also one who stays, so breaks are modelled as work of the highest priority instead: whoever
goes off duty finishes the call in hand and is then taken until the break ends, and the number of servers
is the number of agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cli.demo.figures import ServiceFigures, service_figures
from cli.demo.model import Day, DayCall, Duty

#: The simulation is let run for this long after the window, for the last calls to end.
TAIL_SECONDS = 20_000.0
#: Larger days are not simulated: ciw looks at every waiting caller at every event.
CALLS_MAX = 20_000
#: Calls logged in the same second are told apart by this much.
TICK_SECONDS = 1e-3


class ReferenceMissing(RuntimeError):
    """There is no reference to compare with; the text says why."""


def breaks_of(duties: Sequence[Duty], horizon: float) -> list[tuple[float, float]]:
    """Spans in which an agent is away, over all agents that have a duty, by start."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for duty in duties:
        spans.setdefault(duty.agent, []).append((duty.start_seconds, duty.end_seconds))
    away = []
    for rows in spans.values():
        free_from = 0.0
        for start, end in sorted(rows):
            if start > free_from:
                away.append((free_from, start))
            free_from = max(free_from, end)
        if free_from < horizon:
            away.append((free_from, horizon))
    return sorted(away)


def distinct_ticks(times: Sequence[float]) -> list[int]:
    """Ascending times in ticks, equal ones moved on by a tick each."""
    ticks: list[int] = []
    for time in times:
        tick = round(time / TICK_SECONDS) + 1
        ticks.append(max(tick, ticks[-1] + 1) if ticks else tick)
    return ticks


def run(day: Day, *, credit_seconds_of: dict[int, float]) -> ServiceFigures:
    """The day through ciw. `credit_seconds_of` gives each priority's credit of waiting. Raises
    ReferenceMissing.
    """
    seen = waits(day, credit_seconds_of=credit_seconds_of)
    answered = [wait for was_answered, wait in seen.values() if was_answered]
    abandoned = [wait for was_answered, wait in seen.values() if not was_answered]
    at_once = sum(call.patience_seconds <= 0 for call in day.calls)
    return service_figures(answered, abandoned + [0.0] * at_once)


def waits(day: Day, *, credit_seconds_of: dict[int, float]) -> dict[str, tuple[bool, float]]:
    """Each call's (answered or not, wait in seconds) by its id, of those that queued at all. Raises
    ReferenceMissing.
    """
    if len(day.calls) > CALLS_MAX:
        raise ReferenceMissing(f"the day has more than {CALLS_MAX} calls")
    queued = [call for call in day.calls if call.patience_seconds > 0]
    ticks = dict(zip(distinct_ticks([call.arrival_seconds for call in queued]), queued, strict=True))
    records = _simulate(ticks, day.duties, day.window_seconds + TAIL_SECONDS, credit_seconds_of)
    return {
        ticks[round(record.arrival_date / TICK_SECONDS)].id: (
            record.record_type == "service",
            float(record.waiting_time),
        )
        for record in records
        if record.record_type in ("service", "renege")
    }


def _simulate(
    calls: dict[int, DayCall], duties: Sequence[Duty], horizon: float, credit: dict[int, float]
) -> list[Any]:
    """ciw's records of the callers, who are given by the tick of their arrival. A break's agent is back when
    the break ends, however late it could begin.
    """
    try:
        import ciw
    except ImportError as error:
        raise ReferenceMissing("ciw is not installed: it is among the development requirements") from error
    away = breaks_of(duties, horizon)
    break_ticks = distinct_ticks([start for start, _ in away])
    ends = dict(zip(break_ticks, [end for _, end in away], strict=True))

    def key(individual: Any) -> int:
        return round(individual.arrival_date / TICK_SECONDS)

    class Service(ciw.dists.Distribution):
        def sample(self, t: float | None = None, ind: Any = None) -> float:
            return calls[key(ind)].service_seconds

    class Patience(ciw.dists.Distribution):
        def sample(self, t: float | None = None, ind: Any = None) -> float:
            return calls[key(ind)].patience_seconds

    class UntilBack(ciw.dists.Distribution):
        def sample(self, t: float | None = None, ind: Any = None) -> float:
            return max(0.0, ends[key(ind)] - float(t or 0.0))

    def first_credited(individuals: list[Any], _now: float) -> Any:
        if individuals[0].customer_class == "Break":
            return individuals[0]
        return min(individuals, key=lambda i: key(i) * TICK_SECONDS - credit.get(calls[key(i)].priority, 0.0))

    network = ciw.create_network(
        arrival_distributions={
            "Break": [_arrivals(ciw, break_ticks)],
            "Caller": [_arrivals(ciw, list(calls))],
        },
        service_distributions={"Break": [UntilBack()], "Caller": [Service()]},
        reneging_time_distributions={"Break": [None], "Caller": [Patience()]},
        priority_classes={"Break": 0, "Caller": 1},
        service_disciplines=[first_credited],
        number_of_servers=[len({duty.agent for duty in duties})],
    )
    ciw.seed(1)
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_time(horizon)
    return [r for r in simulation.get_all_records() if r.original_customer_class == "Caller"]


def _arrivals(ciw: Any, ticks: Sequence[int]) -> Any:
    gaps = [(b - a) * TICK_SECONDS for a, b in zip([0, *ticks], ticks, strict=False)]
    return ciw.dists.Sequential([*gaps, 1e12])
