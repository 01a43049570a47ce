"""`callmesh tickets`: what can be done with tickets' files without a server."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

#: The file cannot be used.
EXIT_REFUSED = 1
#: Read at once, bytes.
CHUNK_BYTES = 1_000_000

tickets = typer.Typer(name="tickets", help="Look at tickets' files: setups and other systems' logs.")

LogFile = Annotated[
    Path, typer.Argument(help="Comma-separated rows with a header, .gz or plain.", exists=True)
]
SetupFile = Annotated[Path, typer.Argument(help="JSON: teams, flows, calendars, slaPolicies.", exists=True)]
Picture = Annotated[
    Path | None,
    typer.Option("--picture", help="Write the process map here, .svg or .dot.", show_default=False),
]
Share = Annotated[
    float, typer.Option("--minimum-share", min=0, max=1, help="Leave out steps rarer than this share.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _refuse(error: Exception) -> typer.Exit:
    print(f"callmesh: {error}", file=sys.stderr)
    return typer.Exit(EXIT_REFUSED)


def _chunks(path: Path) -> Iterator[bytes]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _figures(log: Any, found: Any) -> dict[str, Any]:
    day = 86_400_000
    return {
        "tickets": found.count,
        "rows": log.rows,
        "bad_rows": len(log.bad),
        "sla_met_ratio": round(found.sla_met, 6),
        "sla_met_ratio_of_rows": round(log.rows_met / log.rows_judged, 6) if log.rows_judged else 0.0,
        "reassignments_mean": round(found.reassigned_mean, 6),
        "reassigned_ratio": 0.0,
        "reopened_ratio": round(found.reopened, 6),
        "resolution_median_days": round(found.resolution_median_ms / day, 3),
        "resolution_p90_days": round(found.resolution_p90_ms / day, 3),
    }


@tickets.command("log")
def log(
    file: LogFile, picture: Picture = None, minimum_share: Share = 0.005, as_json: AsJson = False
) -> None:
    """Report another system's ticket log: service levels, reassignments, reopenings, and what really followed
    what, as figures and, with --picture, as a picture."""
    from chassis.errors import CallmeshError
    from tickets import imports, pictures, reports

    try:
        found = imports.read_log(imports.decoded(_chunks(file)))
    except (CallmeshError, OSError) as error:
        raise _refuse(error) from None
    cases = list(found.cases())
    chart = reports.process_map(cases, minimum_share)
    figures = _figures(found, reports.performance(cases))
    figures["reassigned_ratio"] = round(sum(1 for c in cases if c.reassigned) / max(1, len(cases)), 6)
    if picture is not None:
        drawn = pictures.dot(chart) if picture.suffix == ".dot" else pictures.svg(chart)
        picture.write_text(drawn, encoding="utf-8")
    steps = [{"from": edge.source, "to": edge.target, "count": edge.count} for edge in chart.edges]
    if as_json:
        print(json.dumps({**figures, "steps": steps}, ensure_ascii=False, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:28} {value}")
    for step in steps:
        print(f"{step['count']:>9}  {step['from'] or '(begin)'} -> {step['to'] or '(end)'}")


@tickets.command("check-setup")
def check_setup(file: SetupFile) -> None:
    """Check a setup file (TICKETS_SETUP_FILE) as the server does at its start: the first thing that is wrong
    is named, and the exit status is 1.
    """
    from chassis.clock import SystemClock
    from chassis.errors import CallmeshError
    from tickets import convert, sla
    from tickets.configuring import Configuring, apply_file
    from tickets.governing import Governor, MemoryState
    from tickets.handlers import Handlers
    from tickets.model import Rules
    from tickets.records import MemoryRecords
    from tickets.store import MemoryStore

    clock, records = SystemClock(), MemoryRecords()
    base = Rules(sla=sla.DEFAULT_POLICY, follow_up_delay_ms=86_400_000)
    governor = Governor(base, records, MemoryState(), clock)
    handlers = Handlers(MemoryStore(), clock, governor.rules, convert.event_of)
    try:
        names = apply_file(Configuring(records, governor, handlers, clock), json.loads(file.read_bytes()))
    except json.JSONDecodeError as error:
        raise _refuse(ValueError(f"{file} is no JSON: {error}")) from None
    except (CallmeshError, ValueError, OSError) as error:
        raise _refuse(error) from None
    print("\n".join(["sound:", *names]) if names else "sound, and empty")
