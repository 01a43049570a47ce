"""`callmesh outbound`: the kill switch. One command, and nobody is called, messaged or mailed any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from callmesh.marketing.v1 import campaigns_pb2 as pb
from callmesh.marketing.v1 import campaigns_pb2_grpc
from cli.directory import Refused, asking, stub_at
from cli.options import MarketingAddress, PortBase, service_at
from cli.plan import PORT_BASE_DEFAULT

outbound = typer.Typer(
    name="outbound", help="Stop all outbound within seconds, and let it go on.", no_args_is_help=True
)
Reason = Annotated[str, typer.Option("--reason", help="Why; shown to whoever asks. Must be given.")]
POLICY = "contactPolicy"


def _ask(address: str, port_base: int, what: Callable[[Any], Any]) -> Any:
    at = service_at("marketing", address, port_base)
    with stub_at(at, campaigns_pb2_grpc.CampaignServiceStub) as stub:
        return what(stub)


def _set(address: str, port_base: int, policy: pb.ContactPolicy) -> pb.ContactPolicy:
    request = pb.UpdateContactPolicyRequest(
        contact_policy=policy, update_mask={"paths": ["halted", "halted_reason"]}
    )
    answer: pb.ContactPolicy = _ask(
        address, port_base, lambda stub: stub.UpdateContactPolicy(request, **asking())
    )
    return answer


@outbound.command()
def stop(reason: Reason, address: MarketingAddress = "", port_base: PortBase = PORT_BASE_DEFAULT) -> None:
    """Stop campaigns, diallers and contact lists, whatever state they are in. They keep their state."""
    if not reason.strip():
        raise Refused("--reason must say why")
    _set(address, port_base, pb.ContactPolicy(name=POLICY, halted=True, halted_reason=reason))
    typer.echo("outbound is stopped: nobody is addressed from the next second on")


@outbound.command()
def resume(address: MarketingAddress = "", port_base: PortBase = PORT_BASE_DEFAULT) -> None:
    """Let everything go on where it was stopped."""
    _set(address, port_base, pb.ContactPolicy(name=POLICY, halted=False))
    typer.echo("outbound goes on")


@outbound.command()
def status(address: MarketingAddress = "", port_base: PortBase = PORT_BASE_DEFAULT) -> None:
    """Say whether outbound is stopped, and why. Exit status 1 when it is."""
    request = pb.GetContactPolicyRequest(name=POLICY)
    policy = _ask(address, port_base, lambda stub: stub.GetContactPolicy(request, **asking()))
    typer.echo(f"stopped: {policy.halted_reason}" if policy.halted else "outbound runs")
    raise typer.Exit(1 if policy.halted else 0)
