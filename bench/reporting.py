"""How a benchmark ends: a table to read, a report for machines, and an exit status that says whether it
kept its own limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finish(figures: Mapping[str, Any], out: Path) -> int:
    """Shows the figures and writes them, as `write_report` does."""
    show(figures)
    return write_report(figures, out)


def show(figures: Mapping[str, Any]) -> None:
    """Prints the figures, one a line."""
    for name, value in figures.items():
        print(f"{name:44} {value}")


def write_report(figures: Mapping[str, Any], out: Path) -> int:
    """Writes the figures as JSON to `out`; the exit status: 1 when the one named "ok" is false, else 0, also
    for a part of the benchmark that has no limits of its own.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if figures.get("ok", True) else 1
