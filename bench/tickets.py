"""What tickets cost: opening and reading one against an empty unary call, lists on a full database against a
small one, timers across a kill -9, and the search in the knowledge.

Run as `python -m bench.tickets` (add `--part calls` and so on for one part). Needs a mongod, on the PATH, in
the development requirements or at MONGO_URI. Writes build/reports/tickets.json and exits with 1 when a limit
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

from bench.reporting import finish  # noqa: E402
from bench.tickets_parts import calls, knowledge, lists, timers  # noqa: E402

from chassis.localstack import MongoNode, free_ports  # noqa: E402

#: Every part by name, in the order in which they run.
PARTS = {
    "calls": calls.measure,
    "lists": lists.measure,
    "timers": timers.measure,
    "knowledge": knowledge.measure,
}


def _verdict(figures: dict[str, Any]) -> bool:
    """Whether every figure with a limit beside it (`x_min`, `x_max`) keeps it."""
    kept = True
    for name, limit in figures.items():
        if name.endswith("_min"):
            kept &= figures[name.removesuffix("_min")] >= limit
        elif name.endswith("_max"):
            kept &= figures[name.removesuffix("_max")] <= limit
    return kept


def _run(parts: list[str], scale: float) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="callmesh-bench-") as directory:
        node = MongoNode(Path(directory), free_ports(1)[0])
        node.start()
        try:
            for part in parts:
                figures |= asyncio.run(PARTS[part](node.uri, scale))
        finally:
            node.stop()
    return figures


def main() -> int:
    """0 when every limit is kept, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; repeatable")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full amount of data, 0.01 to 1"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "tickets.json")
    arguments = parser.parse_args()
    figures = _run(arguments.part or list(PARTS), min(1.0, max(0.01, arguments.scale)))
    figures["ok"] = _verdict(figures)
    return finish(figures, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
