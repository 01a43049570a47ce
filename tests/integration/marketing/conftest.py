"""Real processes of the marketing service on real parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chassis.localstack import free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess
from chassis.testing.waiting import wait_until

#: How long a process gets to become ready on a busy machine, real seconds.
READY_SECONDS_MAX = 60.0


@pytest.fixture
def start_process(
    tmp_path: Path, mongo_uri: str, mongo_database: str
) -> Iterator[Callable[..., tuple[ManagedProcess, int]]]:
    """`start(module, name, **settings)` runs `python -m module` until it is ready: (process, gRPC port)."""
    running: list[ManagedProcess] = []

    def start(module: str, name: str, **settings: str) -> tuple[ManagedProcess, int]:
        grpc_port, http_port = free_ports(2)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": "services",
            "MONGO_URI": mongo_uri,
            "MARKETING_MONGO_DATABASE": mongo_database,
            "MARKETING_GRPC_PORT": str(grpc_port),
            "MARKETING_HTTP_PORT": str(http_port),
            "MARKETING_INSTANCE": name,
            **settings,
        }
        process = ManagedProcess(tmp_path, name)
        running.append(process)
        process.start([sys.executable, "-m", module], env=environment)
        ready = HttpReady(url=f"http://127.0.0.1:{http_port}/readyz")
        wait_until(lambda: ready() or not process.alive(), READY_SECONDS_MAX, what=f"{name} is ready")
        assert process.alive(), process.log_path.read_text()[-3000:]
        return process, grpc_port

    yield start
    for process in running:
        process.stop()
