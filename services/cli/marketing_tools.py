"""`callmesh marketing`: the models that recommendations are made by, and the way back to the one before."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from cli.directory import asking, stub_at
from cli.options import MarketingAddress, PortBase, service_at
from cli.plan import PORT_BASE_DEFAULT
from cli.view import OUT

#: Versions shown.
SHOWN_MAX = 20

marketing = typer.Typer(name="marketing", help="Look at the models of recommendations, and go back to one.")


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
    for model in found.models:
        state = recommendations_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_")
        figures = ", ".join(f"{name} {value:.4f}" for name, value in sorted(model.metrics.items()))
        OUT.print(f"{model.name}  {state}  {figures or model.failure}".rstrip())
