"""`callmesh plan`: arrivals to expect, agents and shifts for them, and who kept a roster."""

from __future__ import annotations

import csv
import datetime as dt
import json
import zoneinfo
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import menus_pb2, menus_pb2_grpc, planning_pb2
from cli.directory import ADDRESS_DEFAULT, Address, Refused, asking, stub_at
from cli.view import OUT

#: A forecast takes seconds, a week's shifts longer.
SECONDS_MAX = 200.0
#: Bytes of a roster that are read, and rows.
ROSTER_BYTES_MAX, ROSTER_ROWS_MAX = 8 << 20, 10_000
ROSTER_COLUMNS = ("agent", "from", "until")

plan = typer.Typer(
    name="plan", help="Forecast, staffing and shifts; needs half-hour reports.", no_args_is_help=True
)

Queue = Annotated[str, typer.Argument(help="Queue id.")]
From = Annotated[str, typer.Option("--from", help="First day, 2026-11-23; tomorrow without.")]
Days = Annotated[int, typer.Option("--days", help="Days.", min=1, max=28)]
Zone = Annotated[str, typer.Option("--zone", help="IANA zone of the days.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]
ZONE_DEFAULT = "Asia/Shanghai"


def _ask(address: str, method: str, request: Any) -> Any:
    """Raises Refused with one line for what is not answered."""
    with stub_at(address, menus_pb2_grpc.PlanningServiceStub) as stub:
        return getattr(stub, method)(request, **asking(SECONDS_MAX))


def span(first: str, days: int, zone: str, today: dt.date | None = None) -> common_pb2.Interval:
    """The days as an interval. Raises Refused naming the option."""
    try:
        there = zoneinfo.ZoneInfo(zone)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise Refused('zone: must be an IANA zone such as "Asia/Shanghai"') from None
    try:
        begin = dt.date.fromisoformat(first) if first else (today or dt.datetime.now(there).date())
    except ValueError:
        raise Refused(f"from: must be a day such as 2026-11-23, got {first[:32]!r}") from None
    stamps = [Timestamp(), Timestamp()]
    try:
        begin += dt.timedelta(days=0 if first else 1)
        for stamp, day in zip(stamps, (begin, begin + dt.timedelta(days=days)), strict=True):
            stamp.FromDatetime(dt.datetime.combine(day, dt.time(), there))
    except (ValueError, OverflowError):
        raise Refused(f"from: must lie in the years 1970 to 9998, got {first[:32]!r}") from None
    return common_pb2.Interval(start_time=stamps[0], end_time=stamps[1])


def _clock(stamp: Timestamp, zone: str) -> str:
    return f"{stamp.ToDatetime(tzinfo=dt.UTC).astimezone(zoneinfo.ZoneInfo(zone)):%a %m-%d %H:%M}"


def _shown(message: Any, as_json: bool) -> bool:
    if as_json:
        content = MessageToDict(message, preserving_proto_field_name=True)
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    return as_json


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "group") else "right")
    for row in rows:
        table.add_row(*row)
    OUT.print(table)


@plan.command()
def forecast(
    queue: Queue,
    first: From = "",
    days: Days = 1,
    zone: Zone = ZONE_DEFAULT,
    as_json: AsJson = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Calls to expect in each half-hour."""
    request = menus_pb2.ForecastArrivalsRequest(
        queue=f"queues/{queue}", interval=span(first, days, zone), time_zone=zone
    )
    answer = _ask(address, "ForecastArrivals", request)
    if _shown(answer, as_json):
        return
    rows = (
        (
            _clock(row.start_time, zone),
            f"{row.arrivals:.1f}",
            f"{row.arrivals_low:.0f} - {row.arrivals_high:.0f}",
        )
        for row in answer.forecasts
        if row.arrivals_high > 0
    )
    _table(("", "calls", "80 %"), rows)
    OUT.print(f"From {answer.days} days.", style="dim")
    if answer.HasField("error_ratio"):
        missed = f"On the last days it missed {answer.error_ratio:.1%}"
        OUT.print(f"{missed}, the week before {answer.naive_error_ratio:.1%}.", style="dim")


@plan.command()
def staff(
    queue: Queue,
    first: From = "",
    days: Annotated[int, typer.Option("--days", help="Days.", min=1, max=28)] = 1,
    service_level: Annotated[float, typer.Option(help="Share answered in the queue's target.")] = 0.8,
    shrinkage: Annotated[float, typer.Option(help="Share of paid time that agents are not there for.")] = 0.0,
    occupancy_max: Annotated[float, typer.Option(help="Agents are busy at most this share.")] = 0.0,
    without_shifts: Annotated[bool, typer.Option("--without-shifts", help="Only the agents.")] = False,
    policy: Annotated[
        Path | None, typer.Option(help="Write the day's shifts as a policy for `callmesh simulate`.")
    ] = None,
    zone: Zone = ZONE_DEFAULT,
    as_json: AsJson = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Agents for each half-hour and shifts that cover them (up to seven days with shifts)."""
    if policy is not None and (days != 1 or without_shifts):
        raise Refused("policy: is of the shifts of one day")
    request = menus_pb2.PlanStaffingRequest(
        queue=f"queues/{queue}",
        interval=span(first, days, zone),
        service_level=service_level,
        shrinkage=shrinkage,
        occupancy_max=occupancy_max,
        without_shifts=without_shifts,
        time_zone=zone,
    )
    answer = _ask(address, "PlanStaffing", request)
    if policy is not None:
        text = json.dumps(policy_of(answer.shifts, request.interval.start_time), indent=2)
        try:
            policy.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise Refused(f"policy: {policy} cannot be written: {error.strerror}") from None
    if _shown(answer, as_json):
        return
    rows = (
        (
            _clock(row.start_time, zone),
            f"{row.arrivals:.1f}",
            str(row.agents),
            f"{row.service_level:.0%}",
            f"{row.occupancy:.0%}",
            f"{row.missing:.1f}" if row.missing else "",
        )
        for row in answer.requirements
        if row.agents
    )
    _table(("", "calls", "agents", "service level", "occupancy", "missing"), rows)
    if answer.shifts:
        OUT.print()
        shifts = (
            (
                f"{_clock(each.start_time, zone)} to {_clock(each.end_time, zone)[-5:]}",
                str(each.agents),
                ", ".join(_clock(one.start_time, zone)[-5:] for one in each.breaks),
            )
            for each in answer.shifts
        )
        _table(("", "agents", "breaks"), shifts)


def policy_of(shifts: Iterable[Any], midnight: Timestamp) -> dict[str, Any]:
    """Shifts as `callmesh simulate --policy` reads them: a person each, breaks left out."""
    rows = []
    for number, shift in enumerate(
        (each for each in shifts for _ in range(each.agents)),
        start=1,
    ):
        edges = [shift.start_time, *(t for b in shift.breaks for t in (b.start_time, b.end_time))]
        edges.append(shift.end_time)
        minutes = [(edge.seconds - midnight.seconds) // 60 for edge in edges]
        clock = [f"{each // 60:02d}:{each % 60:02d}" for each in minutes]
        rows += [
            {"agent": f"planned-{number:04d}", "from": begin, "until": end}
            for begin, end in zip(clock[::2], clock[1::2], strict=True)
        ]
    return {"shifts": rows}


@plan.command()
def adherence(
    roster: Annotated[Path, typer.Argument(help="CSV with agent, from, until (ISO 8601 with an offset).")],
    as_json: AsJson = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Who was there when they were to be."""
    answer = _ask(address, "GetAdherence", planning_pb2.GetAdherenceRequest(roster=read_roster(roster)))
    if _shown(answer, as_json):
        return
    rows = (
        (
            each.agent.removeprefix("agents/"),
            f"{each.planned.seconds / 3600:.1f} h",
            f"{each.kept.seconds / 3600:.1f} h",
            f"{each.adherence:.1%}",
            f"{each.conformance:.1%}",
        )
        for each in answer.agents
    )
    _table(("", "planned", "kept", "adherence", "conformance"), rows)


def read_roster(path: Path) -> list[planning_pb2.RosterEntry]:
    """Raises Refused naming the line."""
    try:
        with path.open("rb") as file:
            raw = file.read(ROSTER_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or type(error).__name__}") from None
    if len(raw) > ROSTER_BYTES_MAX:
        raise Refused(f"{path}: at most {ROSTER_BYTES_MAX} bytes are read")
    lines = csv.DictReader(raw.decode("utf-8-sig", errors="replace").splitlines())
    found: list[planning_pb2.RosterEntry] = []
    try:
        if not set(ROSTER_COLUMNS) <= set(lines.fieldnames or ()):
            raise Refused(f"{path}: line 1: must name the columns {', '.join(ROSTER_COLUMNS)}")
        for row in lines:
            if len(found) >= ROSTER_ROWS_MAX:
                raise Refused(f"{path}: at most {ROSTER_ROWS_MAX} rows are read")
            found.append(_entry(f"{path}: line {lines.line_num}", row))
    except csv.Error as error:
        raise Refused(f"{path}: line {lines.line_num + 1}: {error}") from None
    return found


def _entry(at: str, row: Mapping[str, str | None]) -> planning_pb2.RosterEntry:
    if not row["agent"]:
        raise Refused(f"{at}: agent: must not be empty")
    interval = common_pb2.Interval(
        start_time=_moment(at, "from", row["from"]), end_time=_moment(at, "until", row["until"])
    )
    return planning_pb2.RosterEntry(agent=f"agents/{row['agent']}", interval=interval)


def _moment(at: str, column: str, value: str | None) -> Timestamp:
    try:
        moment = dt.datetime.fromisoformat(value or "")
        if moment.tzinfo is None:
            raise ValueError
        stamp = Timestamp()
        stamp.FromDatetime(moment.astimezone(dt.UTC))
    except (ValueError, OverflowError):
        why = f"must be a time with its offset, such as 2026-11-23T09:00+08:00, got {(value or '')[:40]!r}"
        raise Refused(f"{at}: {column}: {why}") from None
    return stamp
