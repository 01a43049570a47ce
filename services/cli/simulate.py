"""`callmesh simulate`: a proposed staffing or routing policy on a past day, against what happened."""

from __future__ import annotations

import datetime
import json
import os
import zoneinfo
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.view import ERR, OUT, print_error

if TYPE_CHECKING:
    from routing.whatif import Comparison, Figures, Past, Policy, Report

REPORT = Path("build/reports/simulate.json")
DATABASE = "callmesh_routing"
ZONE = "Asia/Shanghai"
#: The database must answer within this, real milliseconds.
ANSWER_MS_MAX = 5_000
#: Torn lines of a log that are shown.
TORN_SHOWN_MAX = 5
EXIT_FAILED, EXIT_USAGE = 1, 2


class CannotReadJournal(RuntimeError):
    """The journal could not be read; the text is one line for the user."""


def simulate(
    calls: Annotated[
        str, typer.Option(envvar="CALLS", help="Call log (tab separated, .gz or plain); the journal without.")
    ] = "",
    day: Annotated[
        str, typer.Option(envvar="DAY", help="Day, 1999-02-01 or 990201; a log's first weekday without.")
    ] = "",
    zone: Annotated[str, typer.Option(help="Time zone that the journal's days are in.")] = ZONE,
    region: Annotated[
        list[str] | None, typer.Option(help="Region of the journal; may be repeated; all without.")
    ] = None,
    database: Annotated[str, typer.Option(help="Database that routing's journal is in.")] = DATABASE,
    policy: Annotated[
        Path | None, typer.Option(help="JSON file with the policy to try (see docs/queueing.md).")
    ] = None,
    agents: Annotated[
        int | None, typer.Option(envvar="AGENTS", help="Try so many agents at work all day long.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Try so many times the agents of the day.")] = None,
    by_type: Annotated[
        bool, typer.Option("--by-type", help="A queue for each type of service in the log.")
    ] = False,
    seed: Annotated[int, typer.Option(envvar="SEED", help="Decides what has to be drawn.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    out: Annotated[Path, typer.Option(help="Where the report is written.")] = REPORT,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Try a staffing or routing policy on a past day and compare it with what happened.

    The day comes from a call log or from routing's journal (MONGO_URI, else the local stack of RUN_DIR); the
    decisions are made by the real engine, under virtual time.
    """
    # much is imported here: not at the cost of every other command
    from chassis.errors import InvalidArgument
    from cli.demo.calls import CallLogError
    from routing.whatif import simulate as compare

    try:
        if calls:
            past = _from_log(Path(calls), day, by_type, quiet=as_json)
        else:
            past = _from_journal(day, zone, region or [], database, run_dir)
        tried = _policy(past, policy, agents, scale)
        compared = compare(past, tried, seed)
    except InvalidArgument as error:
        print_error(error)
        raise typer.Exit(EXIT_USAGE) from None
    except CallLogError as error:
        print_error(CallLogError(f"calls: {error}"))
        raise typer.Exit(EXIT_USAGE) from None
    except CannotReadJournal as error:
        print_error(error)
        raise typer.Exit(EXIT_FAILED) from None
    text = json.dumps(as_document(past, compared, seed), indent=2, ensure_ascii=False)
    if as_json:
        typer.echo(text)
    else:
        _show(past, compared)
    # Shown first: a day takes a while, and what came of it is not to be lost with a folder that is none.
    _write(out, text, quiet=as_json)


def _write(out: Path, text: str, *, quiet: bool) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        print_error(f"out: {out} cannot be written: {error.strerror or type(error).__name__}")
        raise typer.Exit(EXIT_FAILED) from None
    if not quiet:
        OUT.print(f"report: {out}", highlight=False)


def _from_log(path: Path, day: str, by_type: bool, *, quiet: bool) -> Past:
    from cli.simulate_log import past_from_log

    past, torn = past_from_log(path, day or None, by_type=by_type)
    if not quiet:
        for line in torn.kept[:TORN_SHOWN_MAX]:
            ERR.print(f"line {line.number} left out: {line.reason}", markup=False, highlight=False)
        if torn.total:
            ERR.print(f"{torn.total} lines of the log were left out", highlight=False)
    return past


def _from_journal(day: str, zone: str, regions: list[str], database: str, run_dir: Path) -> Past:
    from pymongo import MongoClient
    from pymongo.errors import InvalidName, PyMongoError

    from chassis.errors import InvalidArgument
    from cli.stack import recorded_stack
    from routing.codec import CodecError
    from routing.journal import JournalGap
    from routing.past import read_past

    start_ms, end_ms, title = span_of_day(day, zone)
    uri = os.environ.get("MONGO_URI", "")
    if not uri:
        stack = recorded_stack(run_dir.expanduser().resolve())
        if stack is None:
            raise InvalidArgument(field="calls", why="give a call log, set MONGO_URI, or start a stack")
        uri = stack.mongo_uri
    try:
        client: MongoClient[dict[str, Any]]
        with MongoClient(uri, serverSelectionTimeoutMS=ANSWER_MS_MAX, tz_aware=True) as client:
            return read_past(client[database], start_ms, end_ms, regions=regions, title=title)
    except InvalidName as error:
        raise InvalidArgument(field="database", why=str(error)) from None
    except (PyMongoError, JournalGap, CodecError) as error:
        # An address may hold a password, and a driver's text may hold the address.
        raise CannotReadJournal(f"the journal cannot be read: {type(error).__name__}") from None


def span_of_day(day: str, zone: str) -> tuple[int, int, str]:
    """(first and last business millisecond, title) of a day in a time zone. Raises InvalidArgument."""
    from chassis.errors import InvalidArgument
    from cli.demo.calls import parse_date

    try:
        there = zoneinfo.ZoneInfo(zone)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise InvalidArgument(field="zone", why='must be an IANA zone such as "Asia/Shanghai"') from None
    if not day:
        raise InvalidArgument(field="day", why="must be given for the journal, such as 2026-11-22")
    try:
        date = parse_date(day)
        start = datetime.datetime.combine(date, datetime.time(), there)
        end = datetime.datetime.combine(date + datetime.timedelta(days=1), datetime.time(), there)
        start_ms = int(start.timestamp() * 1000)
        # Where clocks are put back the day has 25 hours; the last of them is left out.
        end_ms = min(int(end.timestamp() * 1000), start_ms + 86_400_000)
    except (ValueError, OverflowError):
        why = f"must be a day such as 2026-11-22, got {day[:32]!r}"
        raise InvalidArgument(field="day", why=why) from None
    return start_ms, end_ms, f"journal, {date:%a %Y-%m-%d} ({zone})"


def _policy(past: Past, path: Path | None, agents: int | None, scale: float | None) -> Policy:
    """The policy file with the options put over it."""
    from chassis.errors import InvalidArgument
    from cli.simulate_policy import POLICY_BYTES_MAX, PolicyFile, parse, policy_for

    read = PolicyFile()
    if path is not None:
        try:
            with path.open("rb") as file:
                read = parse(file.read(POLICY_BYTES_MAX + 1))
        except OSError as error:
            why = f"cannot be read: {error.strerror or type(error).__name__}"
            raise InvalidArgument(field="policy", why=f"{path} {why}") from None
    for name, value in (("agents", agents), ("scale", scale)):
        if value is None:
            continue
        taken = [f for f in ("agents", "scale", "shifts") if getattr(read, f) is not None]
        if taken:
            raise InvalidArgument(field=name, why=f"cannot be given together with {taken[0]}")
        setattr(read, name, value)
    return policy_for(past, read)


# --- what is shown

#: Label, attribute of the figures, factor and unit.
_ROWS = (
    ("calls", "offered", 1, ""),
    ("answered", "answered", 1, ""),
    ("service level", "service_level_ratio", 100, " %"),
    ("ASA", "asa_seconds", 1, " s"),
    ("abandoned", "abandoned_ratio", 100, " %"),
    ("refused", "refused", 1, ""),
    ("unserved", "unserved", 1, ""),
    ("handle time", "handle_seconds", 1, " s"),
)


def as_document(past: Past, compared: Comparison, seed: int) -> dict[str, Any]:
    """The report for machines: units in the names, three reports of one shape."""
    return {
        "title": past.title,
        "seed": seed,
        "happened": _document(compared.happened),
        "as_it_was": _document(compared.as_it_was),
        "proposed": _document(compared.proposed),
        "notes": list(past.notes),
    }


def _document(report: Report) -> dict[str, Any]:
    return {
        **_rounded(report.total),
        "occupancy_ratio": round(report.occupancy_ratio, 4),
        "staffed_hours": round(report.staffed_hours, 2),
        "agents": report.agents,
        "queues": {queue: _rounded(figures) for queue, figures in report.queues.items()},
        "half_hours": [{"start_ms": row.start_ms, **_rounded(row.figures)} for row in report.intervals],
    }


def _rounded(figures: Figures) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(figures).items()}


def _show(past: Past, compared: Comparison) -> None:
    from rich.table import Table

    reports = (compared.happened, compared.as_it_was, compared.proposed)
    table = Table(title=past.title, box=None, pad_edge=False, title_justify="left")
    for heading in ("", "happened", "as it was", "proposed", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, name, factor, unit in _ROWS:
        _row(table, label, [getattr(report.total, name) * factor for report in reports], unit)
    _row(table, "occupancy", [report.occupancy_ratio * 100 for report in reports], " %")
    _row(table, "agents", [report.agents for report in reports], "")
    _row(table, "hours at work", [report.staffed_hours for report in reports], " h")
    if len(compared.proposed.queues) > 1:
        for queue, figures in compared.proposed.queues.items():
            before = compared.as_it_was.queues.get(queue, replace(figures, offered=0))
            then = compared.happened.queues.get(queue, before)
            for label, name, factor, unit in (_ROWS[0], *_ROWS[2:5]):
                row = [getattr(each, name) * factor for each in (then, before, figures)]
                _row(table, f"{queue}: {label}", row, unit)
    OUT.print(table)
    for note in past.notes:
        OUT.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
    OUT.print(
        "As it was: the day through the engine with nothing changed. Change: against that.", style="dim"
    )


def _row(table: Any, label: str, values: list[float], unit: str) -> None:
    happened, before, after = values
    digits = 0 if isinstance(after, int) else 1
    table.add_row(
        label,
        *(f"{value:,.{digits}f}{unit}" for value in (happened, before, after)),
        f"{after - before:+,.{digits}f}{unit}",
    )
