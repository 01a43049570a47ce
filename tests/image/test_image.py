"""What the image is, and that every role of it starts by its command, serves, and ends when told to."""

from __future__ import annotations

import json
import re
import secrets
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.image.conftest import AS_DEPLOYED, PIP_SETTINGS, ROOT, docker

from chassis.localstack import free_ports

pytestmark = pytest.mark.timeout(3600)

SERVICES = ("routing", "crm", "tickets", "marketing")
#: A role may take this long to serve, and to end once told to (its drain and a little), seconds.
START_SECONDS_MAX, END_SECONDS_MAX = 90.0, 20.0
LOOPBACK = "127.0.0.1"


def run_python(image: str, program: str) -> Any:
    """What a program prints as JSON in a container of the image that reaches nothing."""
    return json.loads(docker("run", "--rm", "--network=none", *AS_DEPLOYED, image, "python", "-c", program))


# --- what it is -------------------------------------------------------------------------------------------


def test_who_runs_it_is_nobody_and_can_write_nowhere_but_to_tmp(image: str) -> None:
    """By default and as the chart runs it."""
    config = json.loads(docker("image", "inspect", image))[0]["Config"]
    assert config["User"] == "10001:10001"
    found = run_python(
        image,
        """
import json, os, pathlib
def can_write(folder):
    try:
        (pathlib.Path(folder) / "probe").write_text("x")
        return True
    except OSError:
        return False
folders = ["/", "/opt/callmesh", "/opt/callmesh/services", "/var", "/home", "/tmp"]
ids = [os.getuid(), os.getgid(), os.getgroups()]
print(json.dumps({"ids": ids, "writable": [f for f in folders if can_write(f)]}))
""",
    )
    assert found["ids"][:2] == [10001, 10001] and 0 not in found["ids"][2]
    assert found["writable"] == ["/tmp"]


def test_it_holds_no_tool_that_makes_or_installs_anything(image: str) -> None:
    found = run_python(
        image,
        """
import importlib.util, json, os
path = os.environ["PATH"].split(":") + ["/usr/local/sbin", "/usr/sbin", "/sbin"]
tools = "cc gcc g++ c++ cpp clang ld as make cmake cargo rustc git pip pip3".split()
modules = "pip ensurepip wheel grpc_tools pytest mypy".split()
print(json.dumps({
    "tools": [t for t in tools if any(os.access(os.path.join(p, t), os.X_OK) for p in path)],
    "modules": [m for m in modules if importlib.util.find_spec(m)],
}))
""",
    )
    assert found == {"tools": [], "modules": []}


def test_it_runs_on_exactly_the_locked_requirements(image: str) -> None:
    """Those that are locked for its Python, no other and no other version."""
    found = run_python(
        image,
        """
import importlib.metadata as m, json, platform, re, sys
folders = [p for p in sys.path if "/opt/callmesh/lib" in p]
found = [(d.metadata["Name"], d.version) for d in m.distributions(path=folders)]
installed = {re.sub("[-_.]+", "-", name).lower(): version for name, version in found}
print(json.dumps({"installed": installed, "python": platform.python_version()}))
""",
    )
    environment = {
        "python_full_version": found["python"],
        "python_version": ".".join(found["python"].split(".")[:2]),
    }
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    locked = [Requirement(line.rstrip("\\ ")) for line in lines if re.match(r"[a-z0-9]", line)]
    wanted = {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in locked
        if one.marker is None or one.marker.evaluate(environment)
    }
    assert found["installed"] == wanted


def test_it_says_nothing_of_where_it_was_built(image: str) -> None:
    """Neither an index nor a folder of the builder's is in its history or its settings."""
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    config = docker("image", "inspect", image)
    assert not any(name in history + config for name in PIP_SETTINGS)
    assert str(ROOT) not in history + config


def test_without_a_role_it_explains_itself(image: str) -> None:
    assert "Usage" in docker("run", "--rm", "--network=none", *AS_DEPLOYED, image)


def test_operators_have_the_command_and_the_runbooks(image: str) -> None:
    """`callmesh` is on the PATH, and the page of an alert is there to be read."""
    for words in (("--help",), ("runbook", "CallmeshCallsLost")):
        said = docker("run", "--rm", "--network=none", *AS_DEPLOYED, image, "callmesh", *words)
        assert ("Usage: callmesh" if words == ("--help",) else "# CallmeshCallsLost") in said


# --- its roles --------------------------------------------------------------------------------------------


def started(containers: list[str], image: str, module: str, env: Mapping[str, str]) -> str:
    """A role in a container on this machine's loopback."""
    name = f"callmesh-image-test-{secrets.token_hex(4)}"
    containers.append(name)
    variables = [f"--env={key}={value}" for key, value in env.items()]
    docker(
        "run",
        "--detach",
        "--network=host",
        f"--name={name}",
        *AS_DEPLOYED,
        *variables,
        image,
        "python",
        "-m",
        module,
    )
    return name


def wait_ready(name: str, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError as error:
            running = docker("inspect", "--format", "{{.State.Running}}", name).strip() == "true"
            assert running and time.monotonic() < deadline, f"{error}\n{docker('logs', name)}"
            time.sleep(0.2)


def assert_ends_in_time(name: str) -> None:
    """SIGTERM, as a cluster sends it: the process ends by itself, with 0."""
    began = time.monotonic()
    docker("stop", f"--time={int(END_SECONDS_MAX) + 10}", name, seconds=END_SECONDS_MAX + 60)
    assert time.monotonic() - began < END_SECONDS_MAX
    assert docker("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0", docker("logs", name)


def serving(containers: list[str], image: str, service: str, mongo_uri: str) -> tuple[str, str, int]:
    """A server that is started: its container, its gRPC address, its HTTP port."""
    grpc_port, http_port = free_ports(2)
    prefix = service.upper()
    name = started(containers, image, service, {
        "MONGO_URI": mongo_uri,
        f"{prefix}_MONGO_DATABASE": f"image_{service}",
        f"{prefix}_GRPC_PORT": str(grpc_port),
        f"{prefix}_HTTP_PORT": str(http_port),
        **({"ROUTING_REGION": "beijing"} if service == "routing" else {}),
    })  # fmt: skip
    return name, f"{LOOPBACK}:{grpc_port}", http_port


@pytest.mark.integration
@pytest.mark.parametrize("service", SERVICES)
def test_a_server_serves_and_ends(service: str, image: str, containers: list[str], mongo_uri: str) -> None:
    name, address, http_port = serving(containers, image, service, mongo_uri)
    wait_ready(name, http_port)
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert_ends_in_time(name)


@pytest.mark.integration
def test_a_dialler_sees_its_floor_and_ends(image: str, containers: list[str], mongo_uri: str) -> None:
    """Ready is who sees the agents of its region and the lists."""
    others = {service: serving(containers, image, service, mongo_uri) for service in ("routing", "marketing")}
    for name, _, http_port in others.values():
        wait_ready(name, http_port)
    grpc_port, http_port = free_ports(2)
    name = started(containers, image, "routing.planning.dialler_main", {
        "DIALLER_REGION": "beijing",
        "DIALLER_ROUTING": others["routing"][1],
        "DIALLER_MARKETING": others["marketing"][1],
        "DIALLER_GRPC_PORT": str(grpc_port),
        "DIALLER_HTTP_PORT": str(http_port),
    })  # fmt: skip
    wait_ready(name, http_port)
    assert_ends_in_time(name)


@pytest.mark.integration
@pytest.mark.parametrize("service", SERVICES)
def test_a_worker_is_ready_and_ends(
    service: str, image: str, containers: list[str], mongo_uri: str, amqp_uri: str
) -> None:
    (http_port,) = free_ports(1)
    prefix = service.upper()
    name = started(containers, image, f"{service}.worker", {
        "MONGO_URI": mongo_uri,
        "AMQP_URI": amqp_uri,
        f"{prefix}_MONGO_DATABASE": f"image_{service}",
        f"{prefix}_HTTP_PORT": str(http_port),
    })  # fmt: skip
    wait_ready(name, http_port)
    assert_ends_in_time(name)
