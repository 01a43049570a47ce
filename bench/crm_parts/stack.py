"""The parts that the benchmark runs against: MongoDB, crm's server (twice, on two databases), the broker and
the worker.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo

from chassis.localstack import ProcessGroup, free_ports
from chassis.localstack import mongo as local_mongo
from chassis.localstack.group import GrpcReady, HttpReady, ServiceSpec
from chassis.localstack.mongo import MongoNode
from chassis.localstack.rabbit import RabbitNode

SERVICES = Path(__file__).resolve().parents[2] / "services"
#: A database server of its own for half a million customers: a laptop's stack takes the least that there is.
CACHE_GB = 1.0


@dataclass(frozen=True)
class Side:
    """One crm server and its database."""

    database: str
    port: int
    process: str


class Parts:
    """What runs."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        local_mongo.CACHE_GB = CACHE_GB
        self.mongo = MongoNode(run_dir, free_ports(1)[0])
        self.mongo.start()
        self.client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(self.mongo.uri, tz_aware=True)
        self.groups: list[ProcessGroup] = []
        self._worker: ProcessGroup | None = None

    def _env(self, database: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SERVICES),
            "PYTHONWARNINGS": "ignore",
            "MONGO_URI": self.mongo.uri,
            "CRM_MONGO_DATABASE": database,
            # Whole answers are compared, also on a machine that has something else to do.
            "CRM_SCREEN_POP_MS": "5000",
            "LOG_LEVEL": "warning",
        }

    def server(self, database: str) -> Side:
        """Starts `python -m crm` on a database."""
        port, http_port = free_ports(2)
        ready = GrpcReady(address=f"127.0.0.1:{port}", service="callmesh.crm.v1.CustomerService")
        env = {"CRM_GRPC_PORT": str(port), "CRM_HTTP_PORT": str(http_port)}
        spec = ServiceSpec(
            name=f"server-{database}", command=[sys.executable, "-m", "crm"], env=env, ready=ready
        )
        group = ProcessGroup(self.run_dir / database, [spec], env=self._env(database))
        self.groups.append(group)
        group.start_all()
        return Side(database=database, port=port, process=spec.name)

    @contextlib.contextmanager
    def worker(self, database: str) -> Iterator[str]:
        """Runs a broker and `python -m crm.worker` on a database; the broker's address."""
        rabbit = RabbitNode(self.run_dir / "rabbit", free_ports(3)[0])
        [http_port] = free_ports(1)
        rabbit.start()
        try:
            ready = HttpReady(url=f"http://127.0.0.1:{http_port}/readyz")
            env = {"CRM_HTTP_PORT": str(http_port), "AMQP_URI": rabbit.uri}
            spec = ServiceSpec(
                name="worker", command=[sys.executable, "-m", "crm.worker"], env=env, ready=ready
            )
            with ProcessGroup(self.run_dir / "worker", [spec], env=self._env(database)) as group:
                group.start_all()
                self._worker = group
                yield rabbit.uri
        finally:
            self._worker = None
            rabbit.stop()

    def rss_mb(self, side: Side) -> float:
        """Memory that a server holds, MB."""
        pid = self._pid(side)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1000
        raise ValueError("the process has no memory")

    def cpu_seconds(self, side: Side) -> float:
        """Processor time that a server has used so far."""
        return _cpu_seconds(self._pid(side))

    def mongo_cpu_seconds(self) -> float:
        """Processor time that the database has used so far."""
        return _cpu_seconds(int(self.client.admin.command("serverStatus")["pid"]))

    def worker_cpu_seconds(self) -> float:
        """Processor time that the worker has used so far."""
        pid = self._worker.process("worker").pid() if self._worker is not None else None
        if pid is None:
            raise ValueError("the worker is not running")
        return _cpu_seconds(pid)

    def _pid(self, side: Side) -> int:
        marker = f"CRM_GRPC_PORT={side.port}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if marker in (entry / "environ").read_bytes().split(b"\0"):
                        return int(entry.name)
        raise ValueError("the server is not running")

    def close(self) -> None:
        """Stops everything."""
        self.client.close()
        for group in self.groups:
            group.stop_all()
        self.mongo.stop()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
