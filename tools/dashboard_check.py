"""Asks a Prometheus every query of the dashboards and says which come back empty.

    python tools/dashboard_check.py --prometheus http://127.0.0.1:7170 --minutes 10

A query counts as answered when it has a value, not NaN, at some moment of the last minutes: a demo that is
over has no callers any more. Variables stand for everything, `$__rate_interval` for five minutes. Prints the
empty ones, writes a report with --out, and exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "observability" / "dashboards"
#: What Grafana would put in.
VARIABLES = {
    "$platform": ".*",
    "$region": ".*",
    "$queue": ".*",
    "$service": ".*",
    "$__rate_interval": "5m",
    "$__range": "15m",
}
STEP_SECONDS = 15
ANSWER_SECONDS_MAX = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One query of one panel."""

    dashboard: str
    panel: str
    #: With Grafana's variables filled in.
    expression: str


def queries(folder: Path = FOLDER) -> Iterator[Query]:
    """Every query of every dashboard."""
    for path in sorted(folder.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Query(dashboard=path.stem, panel=panel["title"], expression=filled(target["expr"]))
        for annotation in dashboard["annotations"]["list"]:
            # Marks of something that happened: nothing is right when nothing did.
            expression = f"({filled(annotation['expr'])}) or vector(0)"
            yield Query(dashboard=path.stem, panel=annotation["name"], expression=expression)


def filled(expression: str) -> str:
    """A query as Prometheus takes it."""
    for name, value in sorted(VARIABLES.items(), key=lambda item: -len(item[0])):
        expression = expression.replace(name, value)
    return expression


def ask(prometheus: str, expression: str, minutes: float) -> list[dict[str, Any]]:
    """The series of a range query. RuntimeError with Prometheus' own words when it refuses the query."""
    now = time.time()
    form = {
        "query": expression,
        "start": f"{now - 60 * minutes:.0f}",
        "end": f"{now:.0f}",
        "step": str(STEP_SECONDS),
    }
    data = urllib.parse.urlencode(form).encode()
    try:
        with urllib.request.urlopen(
            f"{prometheus}/api/v1/query_range", data=data, timeout=ANSWER_SECONDS_MAX
        ) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{expression}: {error.read().decode(errors='replace')[:300]}") from None
    series: list[dict[str, Any]] = found["data"]["result"]
    return series


def answered(series: list[dict[str, Any]]) -> bool:
    """Whether any moment of any series has a value."""
    return any(not math.isnan(float(value)) for each in series for _, value in each["values"])


def empty(prometheus: str, minutes: float, folder: Path = FOLDER) -> list[Query]:
    """The queries without a value."""
    return [query for query in queries(folder) if not answered(ask(prometheus, query.expression, minutes))]


def main() -> int:
    """0 when every query has an answer, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prometheus", required=True, help="its address, http://host:port")
    parser.add_argument("--minutes", type=float, default=10.0, help="how far back is looked")
    parser.add_argument("--out", type=Path, help="write a report")
    arguments = parser.parse_args()
    without = empty(arguments.prometheus.rstrip("/"), arguments.minutes)
    count = sum(1 for _ in queries())
    for query in without:
        print(f"{query.dashboard} / {query.panel}: no data: {query.expression}")
    print(f"{count} queries, {len(without)} without an answer")
    if arguments.out is not None:
        report = {"queries": count, "queries_empty": len(without), "ok": not without}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
