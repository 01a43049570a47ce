"""`callmesh status`: each process with its ports, process id, state and uptime."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.parts import PartStatus, State
from cli.stack import recorded_stack
from cli.view import OUT, status_table


def _as_json(parts: list[PartStatus]) -> str:
    rows = [asdict(part) | {"log_path": str(part.log_path)} for part in parts]
    return json.dumps(rows, indent=1)


def status(
    run_dir: RunDir = RUN_DIR_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Show each process of the local stack. Exit status 1 unless all of them are up."""
    stack = recorded_stack(run_dir.expanduser().resolve())
    if stack is None:
        OUT.print("[]" if as_json else f"No stack was ever started in {run_dir}.")
        raise typer.Exit(1)
    parts = stack.processes()
    if as_json:
        typer.echo(_as_json(parts))
    else:
        OUT.print(status_table(parts))
    raise typer.Exit(0 if all(part.state is State.UP for part in parts) else 1)
