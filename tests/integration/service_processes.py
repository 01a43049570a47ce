"""A service's processes as they run in production, on the tests' real parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chassis.localstack import free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess
from chassis.testing.waiting import wait_until

#: How long a process gets to become ready on a busy machine, real seconds.
READY_SECONDS_MAX = 60.0

StartProcess = Callable[..., tuple[ManagedProcess, int]]


@contextmanager
def processes(service: str, directory: Path, mongo_uri: str, database: str) -> Iterator[StartProcess]:
    """`start(module, name, **settings)` runs `python -m module` until it is ready: (process, gRPC port). All
    of them are stopped in the end.
    """
    running: list[ManagedProcess] = []
    prefix = service.upper()

    def start(module: str, name: str, **settings: str) -> tuple[ManagedProcess, int]:
        grpc_port, http_port = free_ports(2)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": "services",
            "MONGO_URI": mongo_uri,
            f"{prefix}_MONGO_DATABASE": database,
            f"{prefix}_GRPC_PORT": str(grpc_port),
            f"{prefix}_HTTP_PORT": str(http_port),
            f"{prefix}_INSTANCE": name,
            **settings,
        }
        process = ManagedProcess(directory, name)
        running.append(process)
        process.start([sys.executable, "-m", module], env=environment)
        ready = HttpReady(url=f"http://127.0.0.1:{http_port}/readyz")
        wait_until(lambda: ready() or not process.alive(), READY_SECONDS_MAX, what=f"{name} is ready")
        assert process.alive(), process.log_tail()
        return process, grpc_port

    try:
        yield start
    finally:
        for process in running:
            process.stop()
