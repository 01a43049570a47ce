"""`callmesh report voc`: the voice of the customer of one day, as Markdown with charts. Asks crm over
gRPC.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.directory import asking, stub_at
from cli.options import CrmAddress, PortBase, service_at
from cli.plan import PORT_BASE_DEFAULT
from cli.view import OUT, print_error

if TYPE_CHECKING:
    from callmesh.crm.v1.insights_pb2 import VoiceReport

#: How long the report may take to compute, seconds.
REPORT_SECONDS_MAX = 120.0
#: Longest span of one report, days.
DAYS_MAX = 366
#: Rows of a chart.
CHART_ROWS = 12

Day = Annotated[str, typer.Option("--day", help="Last day of the report, YYYY-MM-DD; yesterday if empty.")]
Days = Annotated[int, typer.Option("--days", min=1, max=DAYS_MAX, help="How many days it covers.")]
Zone = Annotated[str, typer.Option("--time-zone", envvar="CRM_TIME_ZONE", help="Zone of the days (IANA).")]
Out = Annotated[Path, typer.Option("--out", help="Folder that gets voc.md and its charts.")]
Region = Annotated[str, typer.Option("--region", help="Only this region, regions/{id}.")]

report = typer.Typer(name="report", help="Reports of a running platform.", no_args_is_help=True)


@report.callback()
def _reports() -> None:
    """Reports of a running platform."""


@report.command("voc")
def voc(
    day: Day = "",
    days: Days = 1,
    out: Out = Path("build/reports/voc"),
    address: CrmAddress = "",
    region: Region = "",
    time_zone: Zone = "Asia/Shanghai",
    port_base: PortBase = PORT_BASE_DEFAULT,
) -> None:
    """Write the voice-of-the-customer report: hot topics, hot spots, resolution, cost, praise and
    complaint.
    """
    try:
        begin, end = span(day, days, time_zone)
    except (ValueError, zoneinfo.ZoneInfoNotFoundError) as error:
        print_error(error)
        raise typer.Exit(2) from None
    found = ask(service_at("crm", address, port_base), begin, end, region)
    written = write(found, out, zoneinfo.ZoneInfo(time_zone))
    OUT.print(f"{found.interactions} interactions; wrote {', '.join(str(path) for path in written)}")


def span(day: str, days: int, time_zone: str) -> tuple[datetime, datetime]:
    """The first instant of the report and the first after it. ValueError for a day that is none."""
    zone = zoneinfo.ZoneInfo(time_zone)
    last = date.fromisoformat(day) if day else datetime.now(zone).date() - timedelta(days=1)
    begin = datetime.combine(last - timedelta(days=days - 1), datetime.min.time(), tzinfo=zone)
    end = datetime.combine(last + timedelta(days=1), datetime.min.time(), tzinfo=zone)
    return begin.astimezone(UTC), end.astimezone(UTC)


def ask(address: str, begin: datetime, end: datetime, region: str = "") -> VoiceReport:
    """The report from crm. Raises Refused when it does not answer."""
    from callmesh.crm.v1 import insights_pb2, insights_pb2_grpc

    scope = insights_pb2.InsightScope(region=region)
    scope.interval.start_time.FromDatetime(begin)
    scope.interval.end_time.FromDatetime(end)
    request = insights_pb2.GetVoiceReportRequest(scope=scope)
    with stub_at(address, insights_pb2_grpc.InsightsServiceStub) as stub:
        found: VoiceReport = stub.GetVoiceReport(request, **asking(REPORT_SECONDS_MAX))
    return found


def write(found: VoiceReport, out: Path, zone: zoneinfo.ZoneInfo) -> list[Path]:
    """Writes voc.md and the charts that have something to show; the files."""
    out.mkdir(parents=True, exist_ok=True)
    charts = [path for path in (_topics_chart(found, out), _reasons_chart(found, out)) if path is not None]
    path = out / "voc.md"
    path.write_text(markdown(found, zone, [chart.name for chart in charts]), encoding="utf-8")
    return [path, *charts]


def markdown(found: VoiceReport, zone: zoneinfo.ZoneInfo, charts: Sequence[str]) -> str:
    """The report as Markdown."""
    interval = found.scope.interval
    begin = interval.start_time.ToDatetime(tzinfo=UTC).astimezone(zone)
    end = interval.end_time.ToDatetime(tzinfo=UTC).astimezone(zone) - timedelta(microseconds=1)
    lines = [
        "# Voice of the customer",
        "",
        f"{begin:%Y-%m-%d} to {end:%Y-%m-%d} ({zone.key}), {found.interactions} interactions"
        + (f", {found.scope.region}" if found.scope.region else ""),
        "",
        *(f"![{name}]({name})" for name in charts),
        "",
        "## Rising against their own history",
        "",
        *_table(
            ("reason", "observed", "expected", "p", "products", "partners"),
            [
                (
                    t.contact_reason,
                    t.observed,
                    f"{t.expected:.1f}",
                    f"{t.p_value:.2g}",
                    ", ".join(t.products),
                    ", ".join(t.partners),
                )
                for t in found.hot_topics
            ],
        ),
        "## Places out of line with their neighbours",
        "",
        *_table(
            (
                *("places", "complaints", "expected", "relative risk", "p", "radius km"),
                *("reasons", "products", "partners"),
            ),
            [
                (
                    ", ".join(list(s.places)[:5]),
                    s.observed,
                    f"{s.expected:.1f}",
                    f"{s.relative_risk:.1f}",
                    f"{s.p_value:.2g}",
                    f"{s.radius_km:.1f}",
                    ", ".join(s.contact_reasons),
                    ", ".join(s.products),
                    ", ".join(s.partners),
                )
                for s in found.hot_spots
            ],
        ),
        *_calls_and_agents(found),
    ]
    return "\n".join(lines) + "\n"


def _calls_and_agents(found: VoiceReport) -> list[str]:
    return [
        "## How calls go, by reason",
        "",
        *_table(
            ("reason", "calls", "resolved at first", "repeated", "mean handle s", "cost", "cost per call"),
            [
                (
                    r.contact_reason,
                    r.calls,
                    f"{r.first_call_resolution_ratio:.0%}",
                    f"{r.repeat_call_ratio:.0%}",
                    f"{r.handle_seconds_mean:.0f}",
                    f"{r.cost.amount} {r.cost.currency_code}" if r.HasField("cost") else "",
                    f"{r.cost_per_call.amount} {r.cost_per_call.currency_code}"
                    if r.HasField("cost_per_call")
                    else "",
                )
                for r in found.reason_stats
            ],
        ),
        "## Praise and complaint, by agent",
        "",
        *_table(
            ("agent", "calls", "praise", "complaints", "satisfaction"),
            [
                (
                    a.agent,
                    a.interactions,
                    a.praises,
                    a.complaints,
                    f"{a.satisfaction_mean:.1f}" if a.satisfaction_mean else "",
                )
                for a in found.agent_feedback
            ],
        ),
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    if not rows:
        return ["Nothing.", ""]

    def line(cells: Sequence[object]) -> str:
        # A reason or a place is somebody's text: it must not break the table.
        clean = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(clean)} |"

    return [line(headings), line(["---"] * len(headings)), *map(line, rows), ""]


def _topics_chart(found: VoiceReport, out: Path) -> Path | None:
    topics = list(found.hot_topics)[:CHART_ROWS]
    if not topics:
        return None
    bars = {
        "observed": [float(topic.observed) for topic in topics],
        "expected": [topic.expected for topic in topics],
    }
    names = [topic.contact_reason for topic in topics]
    return _chart(out / "voc-topics.png", "Rising reasons", names, bars)


def _reasons_chart(found: VoiceReport, out: Path) -> Path | None:
    rows = list(found.reason_stats)[:CHART_ROWS]
    if not rows:
        return None
    bars = {
        "calls": [float(row.calls) for row in rows],
        "repeated": [row.calls * row.repeat_call_ratio for row in rows],
    }
    return _chart(out / "voc-reasons.png", "Calls by reason", [row.contact_reason for row in rows], bars)


def _chart(path: Path, title: str, names: Sequence[str], bars: dict[str, list[float]]) -> Path:
    """Horizontal bars, the first row on top."""
    # The library takes a second to load: not at the cost of every other command.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.45 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.8 / len(bars)
    for number, (label, values) in enumerate(bars.items()):
        places = [row + number * height for row in range(len(names))]
        axes.barh(places, values, height=height, label=label)
    axes.set_yticks([row + height * (len(bars) - 1) / 2 for row in range(len(names))], list(names))
    axes.invert_yaxis()
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
