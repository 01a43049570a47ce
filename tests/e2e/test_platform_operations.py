"""What operators and SREs see of a running platform: health, reflection, metrics, `status`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.e2e.platform_parties import (
    SOURCES,
    WAIT_SECONDS,
    Wire,
    eventually,
    process_names,
    scrape,
    settled,
)

from callmesh.crm.v1 import customers_pb2
from callmesh.marketing.v1 import offers_pb2
from callmesh.routing.v1 import routing_pb2
from callmesh.tickets.v1 import ticket_service_pb2
from chassis.testing.waiting import wait_until
from cli import plan
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {f"routing-{region}": "routing" for region in plan.REGIONS} | {
    service: service for service in plan.SERVICES
}
#: What a partner looks for at each service.
SERVICE_NAMES = {
    "routing": ("RoutingService", "AgentService", "DirectoryService"),
    "crm": ("CustomerService", "TimelineService", "ScreenPopService"),
    "tickets": ("TicketService", "FlowService"),
    "marketing": ("OfferService", "RecommendationService"),
}


def channel_to(stack: Stack, server: str) -> grpc.Channel:
    service, _, region = server.partition("-")
    return grpc.insecure_channel(
        stack.address(service, region or None), options=[("grpc.enable_http_proxy", 0)]
    )


@pytest.mark.parametrize("server", SERVERS)
def test_health_and_reflection_answer(server: str, platform_stack: Stack) -> None:
    """Each service is SERVING by its name, and describes itself to somebody who has no protos."""
    service = SERVERS[server]
    with channel_to(platform_stack, server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        database = ProtoReflectionDescriptorDatabase(channel)
        listed = set(database.get_services())
        pool = DescriptorPool(database)
        for name in (f"callmesh.{service}.v1.{short}" for short in SERVICE_NAMES[service]):
            answer = health.Check(
                health_pb2.HealthCheckRequest(service=name), timeout=WAIT_SECONDS, wait_for_ready=True
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert name in listed and pool.FindServiceByName(name).methods
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="callmesh.none.v1.None"), timeout=WAIT_SECONDS)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_every_process_is_alive_and_ready(platform_stack: Stack) -> None:
    for name in process_names(platform_stack):
        for path in ("healthz", "readyz"):
            url = f"http://{platform_stack.http_address(name)}/{path}"
            with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
                assert answer.status == 200, f"{name} {path}"


#: A request that each server refuses, with the method that its metrics name.
REFUSED: dict[str, tuple[str, Callable[[Wire, str], Awaitable[Any]]]] = {
    "routing": (
        "callmesh.routing.v1.RoutingService/GetCall",
        lambda wire, region: wire.routing(region).GetCall(routing_pb2.GetCallRequest(name="calls/unheard")),
    ),
    "crm": (
        "callmesh.crm.v1.CustomerService/GetCustomer",
        lambda wire, _: wire.customers.GetCustomer(
            customers_pb2.GetCustomerRequest(name="customers/unheard")
        ),
    ),
    "tickets": (
        "callmesh.tickets.v1.TicketService/GetTicket",
        lambda wire, _: wire.tickets.GetTicket(ticket_service_pb2.GetTicketRequest(name="tickets/unheard")),
    ),
    "marketing": (
        "callmesh.marketing.v1.OfferService/GetOffer",
        lambda wire, _: wire.offers.GetOffer(offers_pb2.GetOfferRequest(name="offers/unheard")),
    ),
}


@pytest.mark.parametrize("server", SERVERS)
async def test_servers_count_requests_errors_and_duration(
    server: str, platform_stack: Stack, wire: Wire
) -> None:
    service = SERVERS[server]
    method, ask = REFUSED[service]
    labels = {"service": service, "method": method}

    def counted() -> tuple[int, int]:
        samples = scrape(platform_stack, server)
        return (
            samples.total("callmesh_rpc_requests_total", code="NOT_FOUND", **labels),
            samples.total("callmesh_rpc_seconds_count", **labels),
        )

    errors, calls = counted()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(wire, server.partition("-")[2])
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert counted() == (errors + 1, calls + 1)


async def test_workers_count_events_and_duration(platform_stack: Stack, wire: Wire) -> None:
    """A new customer interests every service."""

    def counted() -> dict[str, tuple[int, int]]:
        found = {}
        for service in SOURCES:
            samples = scrape(platform_stack, plan.worker_name(service))
            labels = {"service": service, "handler": "on_customer"}
            found[service] = (
                samples.total("callmesh_consumer_events_total", outcome="ok", **labels),
                samples.total("callmesh_consumer_seconds_count", **labels),
            )
        return found

    before = counted()
    await wire.customers.CreateCustomer(
        customers_pb2.CreateCustomerRequest(customer=customers_pb2.Customer(display_name="Counted"))
    )

    async def look() -> bool:
        now = counted()
        return all(now[s][0] > before[s][0] and now[s][1] > before[s][1] for s in SOURCES)

    await eventually(look, "every worker counted the event")


async def test_nothing_was_given_up(platform_stack: Stack) -> None:
    """After all that the tests did before: no event waits, none is dead."""
    figures = await settled(platform_stack)
    assert (figures.dead, figures.waiting, figures.backlog, figures.unroutable) == (0, 0, 0, 0)


# --- the command line -------------------------------------------------------------------------------------


def callmesh(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, on the run directory of the stack."""
    env = dict(os.environ) | {"RUN_DIR": str(stack.config.run_dir), "COLUMNS": "200"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "services"), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=6 * WAIT_SECONDS,
        check=False,
    )


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


def test_status_shows_each_process(platform_stack: Stack) -> None:
    def all_up() -> subprocess.CompletedProcess[str] | None:
        # A look at a process gives it two seconds, which a busy machine may not have.
        done = callmesh(platform_stack, "status", "--json")
        return done if done.returncode == 0 else None

    status = wait_until(all_up, 2 * WAIT_SECONDS, what="every process answers")
    parts = {part["name"]: part for part in json.loads(status.stdout)}
    assert {*process_names(platform_stack), "mongod-0", "rabbitmq"} <= set(parts)
    for process in plan.scrape_targets(platform_stack.config):
        part = parts[process.name]
        assert part["state"] == "up" and part["ports"] == list(process.ports) and alive(part["pid"])
