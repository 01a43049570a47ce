"""What people named things is shown as they named them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from cli import view
from cli.parts import PartStatus, State


@pytest.mark.parametrize("console", [view.OUT, view.ERR])
def test_what_looks_like_markup_is_data(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "_file", written)
    table = Table("name", box=None)
    table.add_row("[red]ACME[/red] [/]")
    console.print(table)
    console.print("[bold]x[/]")
    assert "[red]ACME[/red] [/]" in written.getvalue() and "[bold]x[/]" in written.getvalue()


def test_a_state_stands_in_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(view.OUT, "_file", written)
    part = PartStatus(
        name="crm", state=State.UP, ports=(7_100,), pid=1, uptime_seconds=61.0, log_path=Path("crm.log")
    )
    view.OUT.print(view.status_table([part]))
    assert f"crm      {State.UP}" in written.getvalue() and "[" not in written.getvalue()
