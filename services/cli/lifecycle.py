"""`callmesh migrate`, `callmesh retention` and `callmesh acts`: what services keep, and what was done to
them.

What a service's tables say only the service's own code knows: each is asked in a process of its own
(`python -m chassis.lifecycle <service>`), with this command's address of the database.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from chassis.errors import shorten
from cli.dead import actor
from cli.directory import Refused
from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.stores import SERVICES, database_name, mongo_client, mongo_uri
from cli.view import OUT

#: How long one service may take to say or do what it is asked for, seconds.
ASK_SECONDS_MAX, APPLY_SECONDS_MAX = 60.0, 6 * 3600.0
#: What `chassis.lifecycle` says with its exit status.
FINE, SOMETHING = 0, 1
#: Acts shown.
ACTS_MAX = 1_000

Apply = Annotated[bool, typer.Option("--apply", help="Do it; without, it is only told.")]


def ask(service: str, uri: str, *flags: str, seconds: float = ASK_SECONDS_MAX) -> Any:
    """What a service's own code says of its database. Raises Refused."""
    env = os.environ | {"MONGO_URI": uri}
    source = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "chassis.lifecycle", service, *flags, f"--actor={actor()}"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Refused(f"{service} did not say what it keeps within {seconds:g} s") from None
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        # A setting that it does not take: it says so in its last line, which names no value.
        why = ["", *done.stderr.strip().splitlines()][-1]
        raise Refused(f"{service} did not say what it keeps: {shorten(why)}") from None
    if done.returncode not in (FINE, SOMETHING):
        raise Refused(f"{service}: {said.get('error', 'it could not look')}")
    return said


def migrate(apply: Apply = False, run_dir: RunDir = RUN_DIR_DEFAULT) -> None:
    """Bring the databases to what this release wants: missing indexes, migrations of documents.

    Without --apply it tells what it would do, and what belongs to no release; exit status 1 when there is
    something. Harmless when run twice, and while processes of this release and of the one before run.
    """
    uri = mongo_uri(run_dir)
    count = 0
    for service in SERVICES:
        if apply:
            lines = ask(service, uri, "--apply", seconds=APPLY_SECONDS_MAX)
        else:
            lines = [f"{finding['what']}: {finding['do']}" for finding in ask(service, uri)]
        count += len(lines)
        for line in lines:
            typer.echo(f"{service}: {line}")
    if not count:
        typer.echo("nothing to do")
    raise typer.Exit(1 if count and not apply else 0)


def retention(
    apply: Apply = False,
    table: Annotated[bool, typer.Option("--table", help="Only show the table of classes.")] = False,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Count what is older than its class allows; with --apply remove it."""
    if table:
        shown = Table("service", "collection", "class", "ends", "days", box=None, pad_edge=False)
        for service in SERVICES:
            for row in ask(service, "mongodb://none.invalid", "--table"):
                days = "" if row["days"] is None else f"{row['days']:g}"
                shown.add_row(service, row["collection"], row["class"], row["ends"], days)
        OUT.print(shown)
        return
    uri = mongo_uri(run_dir)
    for service in SERVICES:
        found = ask(service, uri, "--prune" if apply else "--aged", seconds=APPLY_SECONDS_MAX)
        for collection, count in found.items():
            typer.echo(f"{service}.{collection}: {count} {'removed' if apply else 'too old'}")


def acts(
    by: Annotated[str, typer.Option("--actor", help="Only this caller's.")] = "",
    resource: Annotated[str, typer.Option("--resource", help="Only those on this resource.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=ACTS_MAX, help="Newest shown.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
    run_dir: RunDir = RUN_DIR_DEFAULT,
) -> None:
    """Show the audit log of all services, newest first: who did what to which resource, and what became of
    it.
    """
    from chassis.acts import COLLECTION

    where = {name: value for name, value in (("actor", by), ("resource", resource)) if value}
    found: list[dict[str, Any]] = []
    with mongo_client(mongo_uri(run_dir)) as client:
        for service in SERVICES:
            rows = client[database_name(service)][COLLECTION].find(where).sort([("at", -1)]).limit(limit)
            found += [{**row, "service": service} for row in rows]
    found.sort(key=lambda row: -row["at"])
    for row in found[:limit]:
        row["time"] = datetime.fromtimestamp(row.pop("at") / 1000, UTC).isoformat(timespec="milliseconds")
    if as_json:
        typer.echo(json.dumps(found[:limit], indent=1))
        return
    shown = Table(
        Column("time", no_wrap=True), "actor", "method", "resource", "outcome", box=None, pad_edge=False
    )
    for row in found[:limit]:
        method = row["method"].rsplit("/", 1)[-1]
        shown.add_row(row["time"], row["actor"], method, row.get("resource", ""), row.get("outcome", ""))
    OUT.print(shown)
