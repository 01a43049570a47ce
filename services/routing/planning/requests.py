"""Planning's requests, checked, and its responses, worded. No gRPC here, and nothing that loads a statistics
library: a router checks a request before it starts the process that works it out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import menus_pb2, planning_pb2
from chassis.errors import InvalidArgument
from chassis.ids import parse_name, resource_name
from routing.convert import duration, moment_ms, text, timestamp
from routing.planning import adherence, shifts
from routing.planning.forecast import DAYS_AHEAD_MAX, Expected
from routing.planning.history import CLOCKS_BACK_MS, SLOT_MS, SLOTS, start_ms, zone_named
from routing.planning.staffing import SERVICE_LEVEL, Needed

DAY_MS = 86_400_000
#: Longest span that shifts are planned for.
SHIFT_DAYS_MAX = 7
#: First instant of 1970 and of 9999: days of a zone and of the history are counted around a span.
EARLIEST_MS, LATEST_MS = 0, 253_370_764_800_000
QUEUES_MAX = shifts.QUEUES_MAX
AGENTS_MAX = shifts.AGENTS_MAX


@dataclass(frozen=True, kw_only=True, slots=True)
class StaffingQuestion:
    """A checked PlanStaffingRequest."""

    queues: tuple[str, ...]
    from_ms: int
    to_ms: int
    service_level: float
    occupancy_max: float
    shrinkage: float
    zone: str
    rules: shifts.ShiftRules
    groups: tuple[shifts.Group, ...]
    #: (queue, beginning of the half-hour) to agents; empty for what the forecast asks for.
    given: dict[tuple[str, int], int]
    with_shifts: bool


def interval(field: str, value: common_pb2.Interval, days_max: int, spare_ms: int = 0) -> tuple[int, int]:
    """(first instant, first after), `spare_ms` beyond so many days of 24 hours at most. Raises
    InvalidArgument.
    """
    for name in ("start_time", "end_time"):
        if not value.HasField(name):
            raise InvalidArgument(field=f"{field}.{name}", why="must be set")
    from_ms = moment_ms(f"{field}.start_time", value.start_time)
    to_ms = moment_ms(f"{field}.end_time", value.end_time)
    if not from_ms < to_ms <= from_ms + days_max * DAY_MS + spare_ms:
        raise InvalidArgument(field=field, why=f"must end after it begins, {days_max} days later at most")
    if not EARLIEST_MS <= from_ms < to_ms <= LATEST_MS:
        raise InvalidArgument(field=field, why="must lie in the years 1970 to 9998")
    return from_ms, to_ms


def forecast_question(request: menus_pb2.ForecastArrivalsRequest) -> tuple[str, int, int, str]:
    """(queue id, first instant, first after, zone). Raises InvalidArgument."""
    queue = parse_name("queue", "queues", request.queue)
    from_ms, to_ms = interval("interval", request.interval, DAYS_AHEAD_MAX, CLOCKS_BACK_MS)
    return queue, from_ms, to_ms, _zone(request.time_zone)


def _zone(name: str) -> str:
    if name:
        zone_named("time_zone", text("time_zone", name, 64))
    return name


def staffing_question(request: menus_pb2.PlanStaffingRequest) -> StaffingQuestion:
    """Raises InvalidArgument naming the field."""
    queues = [parse_name("queue", "queues", request.queue)]
    _at_most("more_queues", request.more_queues, QUEUES_MAX - 1)
    for place, name in enumerate(request.more_queues):
        queues.append(parse_name(f"more_queues[{place}]", "queues", name))
    if len(set(queues)) != len(queues):
        raise InvalidArgument(field="more_queues", why="must name each queue once, and not `queue`")
    days = DAYS_AHEAD_MAX if request.without_shifts else SHIFT_DAYS_MAX
    from_ms, to_ms = interval("interval", request.interval, days, CLOCKS_BACK_MS)
    _share("service_level", request.service_level, 0.0, 0.9999)
    _share("shrinkage", request.shrinkage, 0.0, 0.9)
    if request.occupancy_max:
        _share("occupancy_max", request.occupancy_max, 0.1, 1.0)
    rules = shift_rules(request.shift_rules)
    if not request.without_shifts:
        shifts.patterns(rules)
    return StaffingQuestion(
        queues=tuple(queues),
        from_ms=from_ms,
        to_ms=to_ms,
        service_level=request.service_level or SERVICE_LEVEL,
        occupancy_max=request.occupancy_max or 1.0,
        shrinkage=request.shrinkage,
        zone=_zone(request.time_zone),
        rules=rules,
        groups=_groups(request.groups, queues),
        given=_given(request.requirements, queues, from_ms, to_ms),
        with_shifts=not request.without_shifts,
    )


def _at_most(field: str, entries: Sequence[Any], most: int) -> None:
    """Before the entries are looked at one by one."""
    if len(entries) > most:
        raise InvalidArgument(field=field, why=f"must have at most {most} entries, got {len(entries)}")


def _share(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidArgument(field=field, why=f"must be {low:g} to {high:g}, got {value!r}")


def _half_hours(field: str, value: Duration) -> int:
    slots, rest = divmod(value.seconds, 1_800)
    if rest or value.nanos or not 0 <= slots <= SLOTS:
        raise InvalidArgument(field=field, why="must be a multiple of half an hour, 0 to 24 hours")
    return slots


def shift_rules(message: planning_pb2.ShiftRules) -> shifts.ShiftRules:
    """Raises InvalidArgument naming the field."""
    plain = shifts.ShiftRules()
    _at_most("shift_rules.lengths", message.lengths, shifts.LENGTHS_MAX)
    lengths = [_half_hours(f"shift_rules.lengths[{n}]", each) for n, each in enumerate(message.lengths)]
    found = {
        name: _half_hours(f"shift_rules.{field}", getattr(message, field))
        for name, field in (
            ("work_max", "work_max"),
            ("break_length", "break_length"),
            ("earliest", "earliest_start"),
            ("latest", "latest_end"),
        )
        if message.HasField(field)
    }
    return shifts.ShiftRules(lengths=tuple(lengths) or plain.lengths, **found)


def _groups(messages: Sequence[planning_pb2.StaffGroup], queues: Sequence[str]) -> tuple[shifts.Group, ...]:
    _at_most("groups", messages, shifts.GROUPS_MAX)
    found = []
    for place, message in enumerate(messages):
        at = f"groups[{place}]"
        _at_most(f"{at}.queues", message.queues, QUEUES_MAX)
        names = [parse_name(f"{at}.queues[{n}]", "queues", q) for n, q in enumerate(message.queues)]
        found.append(
            shifts.Group(
                name=text(f"{at}.name", message.name, 64, required=True),
                queues=frozenset(names),
                agents_max=message.agents_max or None,
            )
        )
    shifts.check(dict.fromkeys(queues, (0.0,) * SLOTS), found)
    return tuple(found)


def _given(
    messages: Sequence[planning_pb2.StaffRequirement], queues: Sequence[str], from_ms: int, to_ms: int
) -> dict[tuple[str, int], int]:
    _at_most("requirements", messages, QUEUES_MAX * SHIFT_DAYS_MAX * SLOTS)
    found: dict[tuple[str, int], int] = {}
    for place, message in enumerate(messages):
        at = f"requirements[{place}]"
        queue = parse_name(f"{at}.queue", "queues", message.queue)
        if queue not in queues:
            raise InvalidArgument(field=f"{at}.queue", why="is none of the queues planned")
        if not 0 <= message.agents <= AGENTS_MAX:
            why = f"must be 0 to {AGENTS_MAX}, got {message.agents}"
            raise InvalidArgument(field=f"{at}.agents", why=why)
        begins_ms = (
            moment_ms(f"{at}.start_time", message.start_time) if message.HasField("start_time") else -1
        )
        if begins_ms % SLOT_MS or not from_ms - SLOT_MS < begins_ms < to_ms:
            raise InvalidArgument(field=f"{at}.start_time", why="must be a half-hour of the interval")
        if (queue, begins_ms) in found:
            raise InvalidArgument(field=at, why="names a half-hour of a queue twice")
        found[queue, begins_ms] = message.agents
    return found


def roster(messages: Sequence[planning_pb2.RosterEntry]) -> list[adherence.Entry]:
    """Raises InvalidArgument naming the entry."""
    _at_most("roster", messages, adherence.ENTRIES_MAX)
    found = []
    for place, message in enumerate(messages):
        at = f"roster[{place}]"
        begins_ms, ends_ms = interval(f"{at}.interval", message.interval, 1)
        _at_most(f"{at}.breaks", message.breaks, adherence.BREAKS_MAX)
        breaks = tuple(interval(f"{at}.breaks[{n}]", each, 1) for n, each in enumerate(message.breaks))
        agent = parse_name(f"{at}.agent", "agents", message.agent)
        found.append(adherence.Entry(agent=agent, start_ms=begins_ms, end_ms=ends_ms, breaks=breaks))
    adherence.check(found)
    return found


#: Method to what checks its requests, raising InvalidArgument that names the field.
CHECKS: Mapping[str, Callable[[Any], object]] = {
    "ForecastArrivals": forecast_question,
    "PlanStaffing": staffing_question,
    "GetAdherence": lambda request: roster(request.roster),
}


# --- responses


def forecast_message(row: Expected) -> menus_pb2.ForecastArrivalsResponse.Forecast:
    return menus_pb2.ForecastArrivalsResponse.Forecast(
        start_time=timestamp(row.start_ms),
        arrivals=row.arrivals,
        arrivals_low=row.low,
        arrivals_high=row.high,
    )


def requirement_message(
    queue: str, row: Needed, missing: float
) -> menus_pb2.PlanStaffingResponse.Requirement:
    return menus_pb2.PlanStaffingResponse.Requirement(
        start_time=timestamp(row.start_ms),
        agents=row.agents,
        queue=resource_name("queues", queue),
        arrivals=row.arrivals,
        service_level=row.performance.service_level,
        occupancy=row.performance.occupancy,
        abandoned_ratio=row.performance.abandoned_ratio,
        missing=missing,
    )


def shift_message(day: dt.date, zone: str, shift: shifts.Chosen) -> menus_pb2.PlanStaffingResponse.Shift:
    there = zone_named("time_zone", zone)

    def at(slot: int) -> int:
        following = day + dt.timedelta(days=slot // SLOTS)
        return start_ms(following, slot % SLOTS, there)

    pattern = shift.pattern
    return menus_pb2.PlanStaffingResponse.Shift(
        start_time=timestamp(at(pattern.start)),
        end_time=timestamp(at(pattern.end)),
        breaks=[
            common_pb2.Interval(start_time=timestamp(at(a)), end_time=timestamp(at(b)))
            for a, b in pattern.breaks
        ],
        agents=shift.agents,
        group=shift.group,
    )


def adherence_message(agent: str, kept: adherence.Kept) -> planning_pb2.GetAdherenceResponse.Adherence:
    return planning_pb2.GetAdherenceResponse.Adherence(
        agent=resource_name("agents", agent),
        planned=duration(kept.planned_ms),
        kept=duration(kept.kept_ms),
        beyond=duration(kept.beyond_ms),
        adherence=kept.adherence,
        conformance=kept.conformance,
    )
