"""What a worker's modules load, seen in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def loaded_by(code: str) -> set[str]:
    done = run(f"{code}\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_bootstrap_loads_next_to_nothing() -> None:
    loaded = loaded_by("import chassis.worker")
    heavy = {
        "eventlet",
        "pymongo",
        "amqp",
        "kombu",
        "nameko",
        "prometheus_client",
        "structlog",
        "socket",
        "ssl",
    }
    assert loaded & heavy == set()


def test_nothing_of_the_worker_loads_grpc() -> None:
    loaded = loaded_by(
        "from chassis import worker; worker.patch(); import chassis.workerprocess, chassis.testing.bus"
    )
    assert {name for name in loaded if name.split(".")[0].startswith("grpc")} == set()
    assert "eventlet" in loaded


@pytest.mark.parametrize(
    "module", ["bus", "bus.publisher", "bus.topology", "outbox", "lease", "localstack", "bus.verdict"]
)
def test_what_a_grpc_process_may_import_loads_neither_eventlet_nor_grpc(module: str) -> None:
    loaded = loaded_by(f"import chassis.{module}")
    assert loaded & {"eventlet", "nameko", "grpc"} == set()


def test_patching_too_late_is_refused() -> None:
    done = run("import pymongo\nfrom chassis import worker\nworker.patch()")
    assert done.returncode == 1
    assert "must come before the import of pymongo" in done.stderr


def test_a_worker_with_grpc_is_refused() -> None:
    done = run("import grpc\nfrom chassis import worker\nworker.patch()")
    assert done.returncode == 1
    assert "grpc is loaded" in done.stderr


def test_running_without_patching_is_refused() -> None:
    done = run("from chassis import worker\nworker.run_worker(None, object)")
    assert done.returncode == 1
    assert "call chassis.worker.patch() before" in done.stderr


def test_patching_twice_is_fine_and_silent() -> None:
    done = run("from chassis import worker\nworker.patch(); import pymongo; worker.patch()")
    assert (done.returncode, done.stderr) == (0, "")
