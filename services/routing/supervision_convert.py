"""Proto <-> model of supervision: live figures, reports, acts. No gRPC here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import directory_pb2
from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.clock import to_ms
from chassis.errors import InvalidArgument
from chassis.ids import resource_name
from routing import model
from routing.convert import duration, status_message, timestamp
from routing.reports import BLOCKED, QUEUE, WAIT_BOUNDS_MS, Row

#: Half-hour figures that are told under the names of QueueStats.
_COUNTS = ("offered", "answered", "abandoned", "short_abandoned", "refused", "answered_in_target")
MONITOR_MODES = {
    pb.MONITOR_MODE_LISTEN: model.MonitorMode.LISTEN,
    pb.MONITOR_MODE_WHISPER: model.MonitorMode.WHISPER,
    pb.MONITOR_MODE_BARGE: model.MonitorMode.BARGE,
    pb.MONITOR_MODE_STOP: model.MonitorMode.STOP,
}


def interval_ms(field: str, interval: common_pb2.Interval) -> tuple[int, int]:
    """(first instant inside, first after), milliseconds; 0 for one that is not set. Raises
    InvalidArgument.
    """
    found = []
    for name in ("start_time", "end_time"):
        if not interval.HasField(name):
            found.append(0)
            continue
        try:
            found.append(max(1, to_ms(getattr(interval, name).ToDatetime(tzinfo=UTC))))
        except (ValueError, OverflowError):
            raise InvalidArgument(field=f"{field}.{name}", why="is not a point in time") from None
    if found[1] and found[1] <= found[0]:
        raise InvalidArgument(field=f"{field}.end_time", why="must be after start_time")
    return found[0], found[1]


def stats_message(
    stats: model.ShardStats, region: str, day: Mapping[str, Mapping[str, int]], counted_ms: int
) -> pb.Stats:
    """A region's live figures, with what happened since its day began."""
    state = directory_pb2.REGION_STATE_DRAINING if stats.draining else directory_pb2.REGION_STATE_UP
    message = pb.Stats(
        region=resource_name("regions", region),
        event_time=timestamp(stats.now_ms),
        agents_by_state=dict(stats.agents_by_state),
        state=state,
        shard=region,
        agents=[status_message(agent, region) for agent in stats.agents],
        agents_left_out=stats.agents_left_out,
        counted_time=timestamp(counted_ms),
    )
    for queue in stats.queues:
        each = _figures(day.get(queue.queue, {}))
        each.queue = resource_name("queues", queue.queue)
        each.waiting = queue.waiting
        each.longest_wait.CopyFrom(duration(queue.longest_wait_span_ms))
        if queue.expected_wait_span_ms >= 0:
            each.expected_wait.CopyFrom(duration(queue.expected_wait_span_ms))
        each.agents_logged_in, each.agents_free = queue.agents_logged_in, queue.agents_free
        each.in_service = queue.in_service
        message.queues.append(each)
    return message


def down_message(region: str, now_ms: int) -> pb.Stats:
    """A region that does not answer."""
    return pb.Stats(
        region=resource_name("regions", region),
        event_time=timestamp(now_ms),
        state=directory_pb2.REGION_STATE_DOWN,
        shard=region,
    )


def _figures(figures: Mapping[str, int]) -> pb.QueueStats:
    """Counts and means of a span."""
    counts: dict[str, Any] = {name: figures.get(name, 0) for name in _COUNTS}
    stats = pb.QueueStats(**counts)
    if stats.answered:
        mean_ms = round(figures.get("wait_ms", 0) / stats.answered)
        stats.average_speed_of_answer.CopyFrom(duration(mean_ms))
    handled = figures.get("handled", 0)
    if handled:
        total_ms = figures.get("talk_ms", 0) + figures.get("wrap_up_ms", 0)
        stats.average_handle_time.CopyFrom(duration(round(total_ms / handled)))
    return stats


def report_message(row: Row, region: str) -> pb.IntervalReport:
    """One half-hour of a queue or agent."""
    figures = row.figures
    stats = _figures(figures)
    stats.longest_wait.CopyFrom(duration(figures.get("wait_max_ms", 0)))
    message = pb.IntervalReport(
        start_time=timestamp(row.start_ms),
        subject=resource_name("queues" if row.kind == QUEUE else "agents", row.subject),
        region=resource_name("regions", region),
        stats=stats,
        moved=figures.get("moved", 0),
        transferred=figures.get("transferred", 0),
        callbacks=figures.get("callbacks", 0),
        offers_missed=figures.get("missed", 0),
        offers_declined=figures.get("declined", 0),
        interrupted=figures.get("interrupted", 0),
        handled=figures.get("handled", 0),
        talk_time=duration(figures.get("talk_ms", 0)),
        wrap_up_time=duration(figures.get("wrap_up_ms", 0)),
    )
    if row.kind == QUEUE:
        message.stats.queue = message.subject
        for name, count in figures.items():
            if name.startswith(f"{BLOCKED}_"):
                message.blocked[name.removeprefix(f"{BLOCKED}_")] = count
        message.service_level = service_level(figures)
        message.wait_classes.extend(_wait_classes(figures))
    else:
        message.occupancy = occupancy(figures)
        for state in model.AgentState:
            span_ms = figures.get(f"time_{state.value}_ms", 0)
            if span_ms:
                message.time_by_state[state.value].CopyFrom(duration(span_ms))
    return message


def service_level(figures: Mapping[str, int]) -> float:
    """Answered within the target ÷ (answered + abandoned after more than the short-abandon time); 1.0
    of none.
    """
    counted = figures.get("answered", 0) + figures.get("abandoned", 0)
    return figures.get("answered_in_target", 0) / counted if counted else 1.0


def occupancy(figures: Mapping[str, int]) -> float:
    """Share of the logged-in time spent in conversation and after-call work; 0.0 of no time."""
    spans = {state: figures.get(f"time_{state.value}_ms", 0) for state in model.AgentState}
    busy = spans[model.AgentState.ON_CALL] + spans[model.AgentState.WRAP_UP]
    logged_in = sum(spans.values())
    return busy / logged_in if logged_in else 0.0


def _wait_classes(figures: Mapping[str, int]) -> list[pb.IntervalReport.WaitClass]:
    bounds = (0, *WAIT_BOUNDS_MS)
    return [
        pb.IntervalReport.WaitClass(
            wait_from=duration(bound),
            wait_to=duration(bounds[place + 1]) if place + 1 < len(bounds) else None,
            answered=figures.get(f"answered_class_{place}", 0),
            abandoned=figures.get(f"abandoned_class_{place}", 0),
        )
        for place, bound in enumerate(bounds)
    ]
