"""`callmesh up`, `status`, `down` with the real platform: twelve processes that answer, and none left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.localstack import find_mongod, find_rabbitmq_server, free_ports
from chassis.testing.waiting import wait_until
from cli import plan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_mongod() is None, reason="no mongod"),
    pytest.mark.skipif(find_rabbitmq_server() is None, reason="no rabbitmq-server"),
]

ROOT = Path(__file__).resolve().parents[2]
EXTERNAL = ("MONGO_URI", "AMQP_URI", "MEMBERS", "DIALLER")
Callmesh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def base() -> int:
    return free_ports(plan.PORT_OFFSET_MAX + 1)[0]


@pytest.fixture
def callmesh(tmp_path: Path, base: int) -> Iterator[Callmesh]:
    """Runs the command on a stack of the test's own, which is gone afterwards."""
    env = {name: value for name, value in os.environ.items() if name not in EXTERNAL}
    env |= {"RUN_DIR": str(tmp_path / "run"), "PORT_BASE": str(base), "COLUMNS": "200"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "services"), env.get("PYTHONPATH", "")])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    yield run
    run("down")


def parts(callmesh: Callmesh) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in json.loads(callmesh("status", "--json").stdout)}


def all_up(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """The parts, if each answered: a look gives it two seconds, which a busy machine may not have."""
    return found if {part["state"] for part in found.values()} == {"up"} else None


def health(address: str) -> int:
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True).status)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_up_status_and_down(callmesh: Callmesh, base: int) -> None:
    up = callmesh("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "Healthy." in up.stdout
    found = wait_until(lambda: all_up(parts(callmesh)), 60)
    shape = plan.StackConfig(run_dir=Path("/nowhere"), dialler="beijing")
    platform = {p.name for p in plan.scrape_targets(shape)}
    assert platform | {"mongod-0", "rabbitmq", "rabbitmq-epmd"} <= set(found)
    for offset in (20, 21, 22, 23, 40, 50, 60, plan.DIALLER_OFFSET):
        assert health(f"127.0.0.1:{base + offset}") == health_pb2.HealthCheckResponse.SERVING

    again = callmesh("up")
    assert again.returncode == 0, again.stderr
    assert {n: p["pid"] for n, p in parts(callmesh).items()} == {n: p["pid"] for n, p in found.items()}

    down = callmesh("down")
    assert down.returncode == 0, down.stderr
    assert [part["name"] for part in found.values() if alive(part["pid"])] == []
    assert callmesh("status").returncode == 1
    assert "Nothing was running." in callmesh("down").stdout
