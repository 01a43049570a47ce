"""`callmesh up`: start the local stack and wait until it is healthy."""

from __future__ import annotations

from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from cli.options import RUN_DIR_DEFAULT, Dialler, Members, PortBase, Routers, RunDir, stack_config
from cli.plan import PORT_BASE_DEFAULT, REGIONS
from cli.stack import Stack
from cli.view import OUT, status_table


class StartProgress:
    """A progress line over the parts of a stack; `note` is a Stack's `on_progress`."""

    def __init__(self) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("starting"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=OUT,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._waiting: dict[str, None] = {}

    def note(self, name: str, state: str) -> None:
        """Takes "starting", "up" or "failed" for a part."""
        if state == "starting":
            self._waiting[name] = None
        else:
            self._waiting.pop(name, None)
            self._bar.advance(self._task)
            if state == "failed":
                self._bar.console.print(f"{name} did not start; the stack runs without it")
        self._bar.update(self._task, description="waiting for " + ", ".join(self._waiting))

    def run(self, stack: Stack, *, fresh: bool = False) -> None:
        """Starts the stack under the progress line; raises what `Stack.start` raises."""
        self._bar.update(self._task, total=len(stack.parts()))
        with self._bar:
            stack.start(fresh=fresh)


def up(
    run_dir: RunDir = RUN_DIR_DEFAULT,
    port_base: PortBase = PORT_BASE_DEFAULT,
    members: Members = 1,
    routers: Routers = 1,
    dialler: Dialler = REGIONS[0],
) -> None:
    """Start the local stack: MongoDB, RabbitMQ, Prometheus where installed, and the eleven processes (fifteen
    with two routers a region), with a dialler, idle until a contact list runs.

    Harmless when it runs already: what is missing is started. MONGO_URI and AMQP_URI put real servers in
    place of the local ones.
    """
    config = stack_config(
        run_dir, port_base, members, routers=routers, dialler="" if dialler == "none" else dialler
    )
    progress = StartProgress()
    stack = Stack(config, die_with_parent=False, on_progress=progress.note)
    progress.run(stack)
    OUT.print(status_table(stack.processes()))
    where = Path(run_dir)
    OUT.print(
        f"\nHealthy. Logs and data: {where}/. gRPC: routing {stack.address('routing', 'beijing')}, ", end=""
    )
    served = ["crm", "tickets", "marketing", *(["dialler"] if config.dialler else [])]
    OUT.print(", ".join(f"{name} {stack.address(name)}" for name in served))
    OUT.print("`callmesh status` looks again, `callmesh down` stops it.")
