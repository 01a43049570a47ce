"""`callmesh marketing`: the models that recommendations are made by, the way back to the one before, what
offering is worth, and the profit report.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cli.directory import Refused, asking, stub_at
from cli.options import MarketingAddress, PortBase, service_at
from cli.plan import PORT_BASE_DEFAULT
from cli.view import OUT

#: Versions shown.
SHOWN_MAX = 20

#: Rows of a report shown.
ROWS_MAX = 1_000
#: A report over many decisions takes its time, seconds.
REPORT_SECONDS = 60.0

marketing = typer.Typer(
    name="marketing",
    help="Models of recommendations and the way back, what offering is worth, the profit report.",
)


class Kind(enum.StrEnum):
    """What a model is about."""

    association = "association"
    propensity = "propensity"
    uplift = "uplift"
    churn = "churn"


KindArgument = Annotated[Kind, typer.Argument(help="Which kind of model.")]


def _ask(address: str, port_base: int, what: Any) -> Any:
    """What `what(stub)` answers. Raises Refused."""
    from callmesh.marketing.v1 import recommendations_pb2_grpc

    at = service_at("marketing", address, port_base)
    with stub_at(at, recommendations_pb2_grpc.RecommendationServiceStub) as stub:
        return what(stub)


def _number(kind: Kind) -> Any:
    from callmesh.marketing.v1 import recommendations_pb2

    return recommendations_pb2.ModelKind.Value(f"MODEL_KIND_{kind.value.upper()}")


@marketing.command("rollback")
def rollback(
    kind: KindArgument, address: MarketingAddress = "", port_base: PortBase = PORT_BASE_DEFAULT
) -> None:
    """Let the model that served before serve again; it stays until another is activated."""
    from callmesh.marketing.v1 import recommendations_pb2

    request = recommendations_pb2.RollbackModelRequest(kind=_number(kind))
    model = _ask(address, port_base, lambda stub: stub.RollbackModel(request, **asking()))
    OUT.print(f"{model.name} serves")


@marketing.command("models")
def models(
    kind: KindArgument, address: MarketingAddress = "", port_base: PortBase = PORT_BASE_DEFAULT
) -> None:
    """List the newest versions of a model with what validation measured."""
    from callmesh.marketing.v1 import recommendations_pb2

    request = recommendations_pb2.ListModelsRequest(kind=_number(kind), page_size=SHOWN_MAX)
    found = _ask(address, port_base, lambda stub: stub.ListModels(request, **asking()))
    if not found.models:
        OUT.print(f"no version of {kind} yet: the worker learns one when there is enough to learn from")
    for model in found.models:
        state = recommendations_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_")
        figures = ", ".join(f"{name} {value:.4f}" for name, value in sorted(model.metrics.items()))
        OUT.print(f"{model.name}  {state}  {figures or model.failure}".rstrip())


@marketing.command("effect")
def effect(address: MarketingAddress = "", port_base: PortBase = PORT_BASE_DEFAULT) -> None:
    """Say what offering is worth against those held out, and what the log says of the present policy."""
    from callmesh.marketing.v1 import recommendations_pb2 as pb

    def judged(stub: Any) -> Any:
        policy = stub.GetPolicy(pb.GetPolicyRequest(name="policies/default"), **asking())
        return stub.EvaluatePolicy(pb.EvaluatePolicyRequest(policy=policy), **asking(REPORT_SECONDS))

    found = _ask(address, port_base, judged)
    table = Table("value a decision", "estimate", "from", "to", box=None, pad_edge=False)
    for words, estimate in (
        ("earned", found.logged),
        ("uplift against the holdout", found.uplift),
        ("policy, inverse propensity", found.inverse_propensity),
        ("policy, self-normalised", found.self_normalised),
        ("policy, doubly robust", found.doubly_robust),
    ):
        table.add_row(words, *(f"{each:.4f}" for each in (estimate.value, estimate.lower, estimate.upper)))
    OUT.print(table)
    OUT.print(
        f"qini {found.qini:.4f}, decisions {found.decision_count}, effective {found.effective_count:.0f}"
    )
    if found.truncated:
        OUT.print(f"the newest {found.examined_count} decisions were looked at; there are more")


class Dimension(enum.StrEnum):
    """What a report is split by."""

    campaign = "campaign"
    agent = "agent"
    region = "region"
    reason = "reason"
    offer = "offer"
    day = "day"
    month = "month"


def _dimension(one: Dimension) -> Any:
    from callmesh.marketing.v1 import reports_pb2

    name = "CONTACT_REASON" if one is Dimension.reason else one.value.upper()
    return reports_pb2.ReportDimension.Value(f"REPORT_DIMENSION_{name}")


Start = Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day, UTC.")]
End = Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="First day after, UTC.")]
By = Annotated[list[Dimension] | None, typer.Option("--by", help="What to split by; up to three times.")]
Zone = Annotated[str, typer.Option("--time-zone", help="Of days and months, for example Asia/Shanghai.")]
Picture = Annotated[Path | None, typer.Option("--png", help="Draw it into this file as well.")]
Language = Annotated[str, typer.Option("--language", help="Of the picture's labels: zh or en.")]


@marketing.command("report")
def report(
    start: Start,
    end: End,
    by: By = None,
    time_zone: Zone = "",
    png: Picture = None,
    language: Language = "en",
    address: MarketingAddress = "",
    port_base: PortBase = PORT_BASE_DEFAULT,
) -> None:
    """Show revenue, cost and profit by campaign, agent, region, reason, offer, day or month."""
    from callmesh.marketing.v1 import reports_pb2 as pb
    from callmesh.marketing.v1 import reports_pb2_grpc

    request = pb.GetProfitReportRequest(
        dimensions=[_dimension(one) for one in by or ()],
        time_zone=time_zone,
        page_size=ROWS_MAX,
    )
    request.interval.start_time.FromDatetime(start.replace(tzinfo=UTC))
    request.interval.end_time.FromDatetime(end.replace(tzinfo=UTC))
    at = service_at("marketing", address, port_base)
    with stub_at(at, reports_pb2_grpc.ReportServiceStub) as stub:
        found = stub.GetProfitReport(request, **asking(REPORT_SECONDS))
        drawn = b""
        if png is not None and found.rows:
            drawing = pb.RenderProfitChartRequest(report=request, language=language)
            drawn = stub.RenderProfitChart(drawing, **asking(REPORT_SECONDS)).content
    table = Table(*(one.value for one in by or ()), box=None, pad_edge=False)
    for heading in ("offered", "accepted", "revenue", "cost", "profit"):
        table.add_column(heading, justify="right")
    rows = [(row.keys, row) for row in found.rows] if by else []
    for keys, row in (*rows, (["total", *[""] * (len(by) - 1)] if by else [], found.total)):
        figures = (row.revenue.amount, row.cost.amount, row.profit.amount)
        table.add_row(*keys, str(row.offered_count), str(row.accepted_count), *figures)
    OUT.print(table)
    if found.next_page_token:
        OUT.print(f"the {ROWS_MAX} rows with the largest profit are shown")
    if found.HasField("touches_kept_since"):
        day = f"{found.touches_kept_since.ToDatetime():%Y-%m-%d}"
        OUT.print(f"costs of single messages are missing of campaigns that were over before {day}")
    if png is not None:
        if not drawn:
            raise Refused("there is nothing to draw in this span")
        png.write_bytes(drawn)
        OUT.print(f"drawn into {png}")
