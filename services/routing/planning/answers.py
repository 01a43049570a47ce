"""Planning's use cases, from a checked request to its response. They take seconds of computing: see
process.py.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from callmesh.routing.v1 import menus_pb2, planning_pb2
from routing.planning import adherence, forecast, history, requests, shifts, staffing
from routing.planning.history import SLOT_MS, SLOTS, History, slot_of
from routing.planning.requests import DAY_MS, StaffingQuestion
from routing.planning.staffing import Needed
from routing.planning.store import PlanningStore, QueueRow

#: Days of history that a forecast is made from, and that calls' lengths are taken from.
HISTORY_DAYS, CALLS_DAYS = 182, 28
#: Errors are told from the last days of a history, if it has as many beside them.
ERROR_DAYS, ERROR_FROM_DAYS = 7, 14


class Planner:
    """One request's worth of planning. `now_ms` is business time; what is later has not happened."""

    def __init__(self, store: PlanningStore, region: str, now_ms: int) -> None:
        self._store, self._region, self._now_ms = store, region, now_ms

    def forecast_arrivals(
        self, request: menus_pb2.ForecastArrivalsRequest
    ) -> menus_pb2.ForecastArrivalsResponse:
        """Raises InvalidArgument, QueueNotFound, HistoryTooShort."""
        queue, from_ms, to_ms, zone = requests.forecast_question(request)
        self._store.queue(queue)
        known, _ = self._history(queue, from_ms, self._zone(zone))
        rows = forecast.forecast(known, from_ms, to_ms)
        response = menus_pb2.ForecastArrivalsResponse(
            forecasts=[requests.forecast_message(row) for row in rows], days=len(known.days)
        )
        if len(known.days) >= ERROR_FROM_DAYS:
            first = len(known.days) - ERROR_DAYS
            response.error_ratio = forecast.errors(known, forecast.model_day, first=first).wape
            response.naive_error_ratio = forecast.errors(known, forecast.seasonal_naive, first=first).wape
        return response

    def plan_staffing(self, request: menus_pb2.PlanStaffingRequest) -> menus_pb2.PlanStaffingResponse:
        """Raises InvalidArgument, QueueNotFound, HistoryTooShort, NoShiftPlan."""
        question = requests.staffing_question(request)
        zone = self._zone(question.zone)
        rows = {queue: self._needed(queue, question, zone) for queue in question.queues}
        missing: dict[tuple[str, int], float] = {}
        response = menus_pb2.PlanStaffingResponse()
        if question.with_shifts:
            for day, chosen, wanting in _shifts(rows, question, zone):
                response.shifts.extend(requests.shift_message(day, zone.key, each) for each in chosen)
                missing |= wanting
        for queue, halves in rows.items():
            for row in halves:
                wanting_here = missing.get((queue, row.start_ms), 0.0)
                response.requirements.append(requests.requirement_message(queue, row, wanting_here))
        return response

    def get_adherence(self, request: planning_pb2.GetAdherenceRequest) -> planning_pb2.GetAdherenceResponse:
        """Raises InvalidArgument."""
        entries = requests.roster(request.roster)
        first_ms, last_ms = adherence.check(entries)
        agents = {entry.agent for entry in entries}
        there = self._store.times_there(agents, first_ms - first_ms % SLOT_MS, last_ms)
        kept = adherence.adherence(entries, there, self._now_ms)
        return planning_pb2.GetAdherenceResponse(
            agents=[requests.adherence_message(agent, each) for agent, each in kept.items()]
        )

    def _zone(self, name: str) -> zoneinfo.ZoneInfo:
        return history.zone_named("time_zone", name) if name else self._store.home_zone(self._region)

    def _history(
        self, queue: str, from_ms: int, zone: zoneinfo.ZoneInfo
    ) -> tuple[History, Sequence[QueueRow]]:
        """What was known when the span began, and no later than now."""
        until_ms = min(from_ms, self._now_ms)
        rows = self._store.queue_rows(queue, until_ms - HISTORY_DAYS * DAY_MS, until_ms)
        calls = ((row.start_ms, float(row.calls)) for row in rows)
        return history.history(calls, zone, until_ms=until_ms), rows

    def _needed(self, queue: str, question: StaffingQuestion, zone: zoneinfo.ZoneInfo) -> list[Needed]:
        config = self._store.queue(queue)
        known, rows = self._history(queue, question.from_ms, zone)
        newest_ms = rows[-1].start_ms if rows else 0
        recent = [row for row in rows if row.start_ms >= newest_ms - CALLS_DAYS * DAY_MS]
        if question.given:
            return _given(queue, question, known, recent, config)
        calls = staffing.usual(recent, config)
        expected = forecast.forecast(known, question.from_ms, question.to_ms)
        return staffing.needed(
            ((row.start_ms, row.arrivals) for row in expected),
            calls,
            service_level=question.service_level,
            occupancy_max=question.occupancy_max,
        )


def _given(
    queue: str, question: StaffingQuestion, known: History, recent: Sequence[QueueRow], config: Any
) -> list[Needed]:
    """Agents as asked for; what they would do with the calls forecast, where that can be told."""
    first_ms = question.from_ms - question.from_ms % SLOT_MS
    halves = range(first_ms, question.to_ms, SLOT_MS)
    try:
        calls = staffing.usual(recent, config)
        expected = {
            row.start_ms: row.arrivals for row in forecast.forecast(known, question.from_ms, question.to_ms)
        }
    except forecast.HistoryTooShort:
        calls, expected = staffing.Demand(rate=0.0, handle_seconds=1.0), {}
    return [
        staffing.shown(ms, expected.get(ms, 0.0), question.given.get((queue, ms), 0), calls) for ms in halves
    ]


def _shifts(
    rows: Mapping[str, Sequence[Needed]], question: StaffingQuestion, zone: zoneinfo.ZoneInfo
) -> list[tuple[Any, tuple[shifts.Chosen, ...], dict[tuple[str, int], float]]]:
    """(day, shifts, agents wanting) of each local day."""
    found = []
    for day, _, _ in forecast.days_of(question.from_ms, question.to_ms, zone):
        tables = {queue: [0.0] * SLOTS for queue in rows}
        places: dict[tuple[str, int], int] = {}
        for queue, halves in rows.items():
            for row in halves:
                on, slot = slot_of(row.start_ms, zone)
                if on == day:
                    # A half-hour that comes twice in a night asks for the more of both.
                    wanted = row.agents / (1.0 - question.shrinkage)
                    tables[queue][slot] = max(tables[queue][slot], wanted)
                    places[queue, row.start_ms] = slot
        plan = shifts.plan_day(tables, question.rules, question.groups)
        wanting = {key: plan.missing[key[0]][slot] for key, slot in places.items()}
        found.append((day, plan.shifts, wanting))
    return found


#: Method to (request, what answers it).
METHODS: dict[str, tuple[Any, Callable[[Planner], Callable[[Any], Any]]]] = {
    "ForecastArrivals": (menus_pb2.ForecastArrivalsRequest, lambda planner: planner.forecast_arrivals),
    "PlanStaffing": (menus_pb2.PlanStaffingRequest, lambda planner: planner.plan_staffing),
    "GetAdherence": (planning_pb2.GetAdherenceRequest, lambda planner: planner.get_adherence),
}
