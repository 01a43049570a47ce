"""How `callmesh --help` lists the commands: by what somebody wants to do, not in the order they were made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperGroup

SECTIONS = {
    "A platform on this machine": ("up", "status", "down", "sandbox", "demo"),
    "Keeping a platform running": (
        *(
            "doctor",
            "runbook",
            "canary",
            "acts",
            "dead",
            "redeliver",
            "backup",
            "restore",
            "drill",
            "migrate",
            "retention",
        ),
        "keys",
    ),
    "What it does": ("calls", "region", "shard", "directory", "config", "menus", "outbound", "marketing"),
    "Planning and reports": ("simulate", "plan", "report", "tickets"),
    "Files and numbers": ("import", "export", "locate"),
}


class Sections(TyperGroup):
    """The commands under headings; one that no heading names comes last, so that none is left out."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands with the first sentence of each."""
        there = self.list_commands(ctx)
        width = max(map(len, there))
        named = {name for names in SECTIONS.values() for name in names}
        rest = {"Other": tuple(name for name in there if name not in named)}
        for title, names in (SECTIONS | rest).items():
            rows = [(name.ljust(width), help) for name, help in self._told(ctx, names)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _told(self, ctx: Any, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for name in names:
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                yield name, command.get_short_help_str(limit=160)
