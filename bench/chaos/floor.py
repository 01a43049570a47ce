"""What the chaos commands break: a replica set, several routers of one region, and its directory, all real
processes in a directory of their own that is gone afterwards.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc
import uvloop
from bench.chaos.counter import SERVICE
from bench.reporting import finish

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, directory_pb2, directory_pb2_grpc
from chassis import garbage
from chassis.localstack import MongoNode, RabbitNode, free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess
from cli.demo.events import read_samples

ROOT = Path(__file__).resolve().parent.parent.parent
HOST = "127.0.0.1"
REGION, QUEUE, SKILL = "beijing", "service", "service"
#: How long a process may take to serve, seconds.
START_SECONDS_MAX = 60.0
#: Between two looks at a condition.
POLL_SECONDS = 0.05


class Floor:
    """One region with several routers. A context manager: what it started ends with it."""

    def __init__(
        self,
        *,
        routers: int = 3,
        members: int = 1,
        broker: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` are the routers', beside the defaults, by name of the environment's variable."""
        self.run_dir = Path(tempfile.mkdtemp(prefix="callmesh-chaos-"))
        ports = free_ports(2 * routers + 14)
        self.mongo = MongoNode(self.run_dir, ports[0], members=members)
        self.rabbit = RabbitNode(self.run_dir, ports[4]) if broker else None
        self._settings = dict(settings or {})
        self.addresses = {f"r{n}": f"{HOST}:{ports[10 + n]}" for n in range(routers)}
        self._http = {f"r{n}": ports[10 + routers + n] for n in range(routers)}
        self._worker_http = ports[10 + 2 * routers]
        self._processes = {name: ManagedProcess(self.run_dir, name) for name in self.addresses}
        self.worker = ManagedProcess(self.run_dir, "worker")
        self.counter = ManagedProcess(self.run_dir, "counter")
        self._counter_http = ports[11 + 2 * routers]
        self._key = self.run_dir / "place-token.key"
        self._key.write_text(secrets.token_hex(32))

    # --- processes

    def start(self) -> None:
        """Everything, the routers ready."""
        self.mongo.start()
        if self.rabbit is not None:
            self.rabbit.start()
        for name in self.addresses:
            self.start_router(name)
        for name in self.addresses:
            self.wait_ready(name)
        if self.rabbit is not None:
            self.start_counter()
            self.start_worker()

    def start_router(self, name: str) -> None:
        """A router, without waiting for it; at default settings but for this floor's own."""
        port = self.addresses[name].rpartition(":")[2]
        own = {
            "ROUTING_REGION": REGION,
            "ROUTING_PEERS": ",".join(f"{REGION}={address}" for address in self.addresses.values()),
            "ROUTING_ADVERTISE": self.addresses[name],
            "ROUTING_GRPC_PORT": port,
            "ROUTING_HTTP_PORT": str(self._http[name]),
            "ROUTING_PLACE_TOKEN_KEY_FILE": str(self._key),
            **self._settings,
        }
        self._processes[name].start([sys.executable, "-m", "routing"], env=self._environment(own), cwd=ROOT)

    def start_worker(self) -> None:
        """The worker that publishes the journal."""
        own = {"ROUTING_HTTP_PORT": str(self._worker_http), "ROUTING_REGION": REGION}
        self.worker.start([sys.executable, "-m", "routing.worker"], env=self._environment(own), cwd=ROOT)
        ready = HttpReady(url=f"http://{HOST}:{self._worker_http}/readyz")
        self.worker.wait_ready(ready, START_SECONDS_MAX)

    def start_counter(self) -> None:
        """The consumer of routing's events; before anything is published, for nobody else takes them."""
        own = {"CALLMESH_SERVICE": SERVICE, "CALLMESH_HTTP_PORT": str(self._counter_http)}
        command = [sys.executable, "-m", "bench.chaos.counter"]
        self.counter.start(command, env=self._environment(own), cwd=ROOT)
        ready = HttpReady(url=f"http://{HOST}:{self._counter_http}/readyz")
        self.counter.wait_ready(ready, START_SECONDS_MAX)

    def _environment(self, own: Mapping[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        broker = {"AMQP_URI": self.rabbit.uri} if self.rabbit is not None else {}
        common = {
            "PYTHONPATH": f"{ROOT / 'services'}{os.pathsep}{ROOT}",
            "MONGO_URI": self.mongo.uri,
            "LOG_LEVEL": "warning",
        }
        return kept | common | broker | dict(own)

    def wait_ready(self, name: str) -> None:
        """Until a router leads or follows a living leader."""
        ready = HttpReady(url=f"http://{HOST}:{self._http[name]}/readyz")
        self._processes[name].wait_ready(ready, START_SECONDS_MAX)

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal to a router."""
        self._processes[name].send(number)

    def exit_code(self, name: str) -> int | None:
        """What a router ended with, negative for a signal; None while it runs."""
        return self._processes[name].exit_code()

    def kill(self, name: str) -> None:
        """kill -9, and nothing of the process is left when this returns."""
        self._processes[name].kill()

    def leading(self) -> str:
        """The router that leads, by its own metrics; empty while none says so."""
        for name, port in self._http.items():
            try:
                with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=1.0) as answer:
                    samples = read_samples([answer.read().decode()])
            except OSError:
                continue
            if any(key[0] == "callmesh_shard_leads" and value == 1 for key, value in samples.values.items()):
                return name
        return ""

    def __enter__(self) -> Floor:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every process and removes the directory."""
        for process in (*self._processes.values(), self.worker, self.counter):
            # A stopped process hears nothing but this.
            process.kill()
        if self.rabbit is not None:
            self.rabbit.stop()
        self.mongo.stop()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def log_tails(self) -> str:
        """The ends of the processes' logs, for who looks for a cause."""
        processes = (*self._processes.values(), self.worker, self.counter)
        return "\n".join(f"--- {each.name}\n{each.log_tail()}" for each in processes)


async def furnish(channel: grpc.aio.Channel, agents: int, queue: Mapping[str, Any]) -> list[str]:
    """A region, a queue and its agents; their ids, when the router at `channel` knows the last of them."""
    directory = directory_pb2_grpc.DirectoryServiceStub(channel)
    region = directory_pb2.Region(location={"latitude": 39.9, "longitude": 116.4}, served_areas=["CN"])
    await directory.CreateRegion(directory_pb2.CreateRegionRequest(region_id=REGION, region=region))
    await directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=SKILL))
    wanted = directory_pb2.Queue(skills=[{"skill": SKILL, "level_min": 1}], **queue)
    await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=QUEUE, queue=wanted))
    names = [f"agent-{n}" for n in range(agents)]
    for name in names:
        agent = directory_pb2.Agent(region=f"regions/{REGION}", skills={SKILL: 3}, address=f"sip:{name}")
        await directory.CreateAgent(directory_pb2.CreateAgentRequest(agent_id=name, agent=agent))
    deadline = time.monotonic() + START_SECONDS_MAX
    question = agent_pb2.GetAgentStatusRequest(name=f"agents/{names[-1]}")
    while True:
        try:
            await agent_pb2_grpc.AgentServiceStub(channel).GetAgentStatus(question, timeout=5)
            return names
        except grpc.aio.AioRpcError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_SECONDS)


async def eventually(condition: Any, seconds: float) -> bool:
    """Whether a condition came to hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


__all__ = ["POLL_SECONDS", "Floor", "eventually", "furnish"]


class Breakable(Protocol):
    """What a chaos command breaks: it begins and ends with a `with`."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def log_tails(self) -> str:
        """The ends of the processes' logs."""


FloorT = TypeVar("FloorT", bound=Breakable)


def carry_out(floor: FloorT, run: Callable[[FloorT], Coroutine[Any, Any, dict[str, Any]]], out: Path) -> int:
    """Runs a chaos command on its floor, prints and writes its report; 0 when its limits are met, else 1.
    The ends of
    the logs are shown when they are not.
    """
    # Told to end, it still ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # One process is all edges and desktops: with some ten thousand of their streams, to look at everything
    # for garbage took two seconds of every five, in which nobody answered and routers seemed to be dead.
    garbage.settle()
    with floor:
        try:
            result = uvloop.run(run(floor))
        except BaseException:
            print(floor.log_tails(), file=sys.stderr)
            raise
        if not result["ok"]:
            print(floor.log_tails(), file=sys.stderr)
    return finish(result, out)
