"""Real processes of the tickets service on real parts."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chassis.localstack import free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess
from chassis.testing.waiting import wait_until

#: How long a process gets to become ready on a busy machine, real seconds.
READY_SECONDS_MAX = 60.0

StartProcess = Callable[..., tuple[ManagedProcess, int]]


def _starter(directory: Path, mongo_uri: str, database: str, running: list[ManagedProcess]) -> StartProcess:
    def start(module: str, name: str, **settings: str) -> tuple[ManagedProcess, int]:
        grpc_port, http_port = free_ports(2)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": "services",
            "MONGO_URI": mongo_uri,
            "TICKETS_MONGO_DATABASE": database,
            "TICKETS_GRPC_PORT": str(grpc_port),
            "TICKETS_HTTP_PORT": str(http_port),
            "TICKETS_INSTANCE": name,
            **settings,
        }
        process = ManagedProcess(directory, name)
        running.append(process)
        process.start([sys.executable, "-m", module], env=environment)
        ready = HttpReady(url=f"http://127.0.0.1:{http_port}/readyz")
        wait_until(lambda: ready() or not process.alive(), READY_SECONDS_MAX, what=f"{name} is ready")
        assert process.alive(), process.log_tail()
        return process, grpc_port

    return start


@pytest.fixture
def start_process(tmp_path: Path, mongo_uri: str, mongo_database: str) -> Iterator[StartProcess]:
    """`start(module, name, **settings)` runs `python -m module` until it is ready: (process, gRPC port)."""
    running: list[ManagedProcess] = []
    yield _starter(tmp_path, mongo_uri, mongo_database, running)
    for process in running:
        process.stop()


@pytest.fixture(scope="module")
def shared_server(
    tmp_path_factory: pytest.TempPathFactory, mongo_uri: str, mongo_client: Any
) -> Iterator[tuple[ManagedProcess, int]]:
    """One server for the tests of a module: (process, gRPC port)."""
    database = f"test_{secrets.token_hex(8)}"
    running: list[ManagedProcess] = []
    yield _starter(tmp_path_factory.mktemp("server"), mongo_uri, database, running)("tickets", "server")
    for process in running:
        process.stop()
    mongo_client.drop_database(database)
