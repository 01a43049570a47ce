"""How a local stack is shown on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.parts import PartStatus, State

#: One for results, one for what goes wrong. Names and notes are shown as they are: what looks like markup in
#: them, "[red]" or "[/]", is data.
OUT = Console(markup=False)
ERR = Console(stderr=True, markup=False)

_STYLES = {State.UP: "green", State.STARTING: "yellow", State.CRASHED: "bold red", State.DOWN: "dim"}


def duration(seconds: float) -> str:
    """ "42 s", "3 min 5 s", "2 h 4 min", "3 d 2 h": the two largest units."""
    whole = int(seconds)
    for size, name, smaller_size, smaller in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"


def status_table(parts: Sequence[PartStatus]) -> Table:
    """One line a process: name, state, ports, process id, uptime."""
    table = Table(box=None, pad_edge=False)
    for heading in ("process", "state", "port", "http", "pid", "up for"):
        table.add_column(heading, justify="right" if heading in ("port", "http", "pid") else "left")
    for part in parts:
        http = str(part.ports[-1]) if len(part.ports) > 1 and not part.name.startswith("rabbitmq") else ""
        table.add_row(
            part.name,
            Text(part.state, style=_STYLES[part.state]),
            str(part.ports[0]),
            http,
            str(part.pid or "-"),
            "-" if part.uptime_seconds is None else duration(part.uptime_seconds),
        )
    return table


def print_error(error: BaseException | str) -> None:
    """The first line stands out; what follows (the end of a log) is shown as it is."""
    first, _, rest = str(error).partition("\n")
    ERR.print(f"callmesh: {first}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if rest:
        ERR.print(rest, markup=False, highlight=False, soft_wrap=True)
