"""`callmesh down`: stop just what was started in the run directory."""

from __future__ import annotations

from cli.options import RUN_DIR_DEFAULT, RunDir
from cli.stack import recorded_stack
from cli.view import OUT


def down(run_dir: RunDir = RUN_DIR_DEFAULT) -> None:
    """Stop the local stack: in reverse order, and nothing that it did not start. The data stay."""
    stack = recorded_stack(run_dir.expanduser().resolve())
    if stack is None:
        OUT.print(f"No stack was ever started in {run_dir}.")
        return
    with stack.lock():
        living = [part.name for part in stack.parts() if part.process.alive()]
        with OUT.status(f"stopping {len(living)} processes"):
            stack.stop()
    OUT.print(f"Stopped {len(living)} processes." if living else "Nothing was running.")
