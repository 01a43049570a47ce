"""What `chaos-region` breaks: four regions of two routers each, a database, a broker, and two workers.

All are real processes in a directory of their own that is gone afterwards. Each region's routers lead its own
shard; the next region's are its backups. Two of the regions have a worker, so that one may be lost.
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
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import amqp
import grpc
from bench.chaos.floor import HOST, POLL_SECONDS, QUEUE, ROOT, SKILL, START_SECONDS_MAX
from bench.chaos.region_net import Link, Namespaces, Network, Proxies, has_own_network

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, directory_pb2, directory_pb2_grpc
from chassis.localstack import MongoNode, RabbitNode, free_ports
from chassis.localstack.group import HttpReady
from chassis.localstack.process import ManagedProcess

#: Region id to latitude, longitude, served area, and the area code of its callers.
PLACES = {
    "beijing": (39.9, 116.4, "CN/北京", "10"),
    "shanghai": (31.2, 121.5, "CN/上海", "21"),
    "guangzhou": (23.1, 113.3, "CN/广东", "20"),
    "chengdu": (30.7, 104.1, "CN/四川", "28"),
}
REGIONS = tuple(PLACES)
ROUTERS_A_REGION = 2
#: Regions that have a worker, and by how much it gives way to routers.
WORKERS = ("beijing", "chengdu")
WORKERS_NICE = 10
#: Takes every event, so that the workers publish; nobody reads it.
SINK_QUEUE, SINK_MESSAGES_MAX = "chaos.sink", 10_000
EVENTS_EXCHANGE = "routing.events"


def name_of(region: str, number: int) -> str:
    """A router's name."""
    return f"{region}-{number}"


class RegionFloor:
    """Four regions. A context manager: what it started ends with it."""

    def __init__(self) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="callmesh-chaos-"))
        count = ROUTERS_A_REGION * len(REGIONS)
        ports = free_ports(50)
        self.mongo = MongoNode(self.run_dir, ports[0])
        self.rabbit = RabbitNode(self.run_dir, ports[1])
        names = [name_of(region, n) for region in REGIONS for n in range(ROUTERS_A_REGION)]
        self._ports = dict(zip(names, ports[4:], strict=False))
        self._http = dict(zip([*names, *WORKERS], ports[4 + count :], strict=False))
        self._spare = ports[4 + 2 * count + len(WORKERS) :]
        self._processes = {name: ManagedProcess(self.run_dir, name) for name in names}
        self._workers = {region: ManagedProcess(self.run_dir, f"worker-{region}") for region in WORKERS}
        self._key = self.run_dir / "place-token.key"
        self._key.write_text(secrets.token_hex(32))
        self.net: Network = self._network()

    def _network(self) -> Network:
        if has_own_network():
            return Namespaces(self.run_dir, REGIONS, self.mongo.uri, self.rabbit.uri, self.rabbit.port)
        known = {region: [self._ports[name] for name in self.routers_of(region)] for region in REGIONS}
        return Proxies(known, self._spare, self.mongo.ports[0], self.rabbit.port, self._region_of)

    def _region_of(self, pid: int) -> str:
        owned = {**self._processes, **self._workers}
        return next((name.partition("-")[0] for name, each in owned.items() if each.pid() == pid), "")

    @staticmethod
    def routers_of(region: str) -> list[str]:
        """Names of a region's routers."""
        return [name_of(region, n) for n in range(ROUTERS_A_REGION)]

    def clients_addresses(self) -> dict[str, str]:
        """Where edges and desktops reach each router."""
        found = {}
        for name, port in self._ports.items():
            host, number = self.net.listen(name.partition("-")[0], port)
            found[name] = f"{host}:{number}"
        return found

    def _advertised(self, name: str) -> str:
        return self.net.advertised(name.partition("-")[0], self._ports[name])

    def lead_list(self, region: str) -> list[str]:
        """Who may lead a region's shard: its own routers, then those of the next region."""
        backup = REGIONS[(REGIONS.index(region) + 1) % len(REGIONS)]
        return [self._advertised(name) for name in (*self.routers_of(region), *self.routers_of(backup))]

    # --- processes

    def start(self) -> None:
        """Everything, the routers ready."""
        self.mongo.start()
        self.rabbit.start()
        self._declare_sink()
        for region in REGIONS:
            self.start_routers(region)
        for region in REGIONS:
            self.wait_ready(region)
            self.start_worker(region)

    def _declare_sink(self) -> None:
        """Before anything is published: what no queue takes stays in the journal."""
        with amqp.Connection(f"{HOST}:{self.rabbit.port}") as connection:
            channel = connection.channel()
            channel.exchange_declare(EVENTS_EXCHANGE, "topic", durable=True, auto_delete=False)
            channel.queue_declare(
                SINK_QUEUE,
                durable=True,
                auto_delete=False,
                arguments={"x-max-length": SINK_MESSAGES_MAX, "x-overflow": "drop-head"},
            )
            channel.queue_bind(SINK_QUEUE, EVENTS_EXCHANGE, "#")

    def start_routers(self, region: str) -> None:
        """At default settings, without waiting for them."""
        for name in self.routers_of(region):
            self._start_router(region, name)

    def start_worker(self, region: str) -> None:
        """The region's worker, if it has one: after its routers, for nobody who calls waits for it."""
        if region in self._workers:
            own = {"ROUTING_ADVERTISE": self._advertised(name_of(region, 0))}
            settings = own | self._http_settings(region, region)
            # On the same cores as the routers, which it would not be in a centre: callers go first.
            self._start("routing.worker", self._workers[region], region, settings, nice=WORKERS_NICE)

    def _start_router(self, region: str, name: str) -> None:
        host, port = self.net.listen(region, self._ports[name])
        own = {
            "ROUTING_ADVERTISE": self._advertised(name),
            "ROUTING_GRPC_HOST": host,
            "ROUTING_GRPC_PORT": str(port),
            "ROUTING_PLACE_TOKEN_KEY_FILE": str(self._key),
        }
        self._start("routing", self._processes[name], region, own | self._http_settings(region, name))

    def _http_settings(self, region: str, name: str) -> dict[str, str]:
        host, _ = self.net.listen(region, self._ports[name_of(region, 0)])
        return {"ROUTING_HTTP_HOST": host, "ROUTING_HTTP_PORT": str(self._http[name])}

    def _start(
        self, module: str, process: ManagedProcess, region: str, own: Mapping[str, str], nice: int = 0
    ) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        peers = ",".join(f"{name.partition('-')[0]}={self._advertised(name)}" for name in self._ports)
        common = {
            "PYTHONPATH": f"{ROOT / 'services'}{os.pathsep}{ROOT}",
            "MONGO_URI": self.net.mongo_uri(region),
            "AMQP_URI": self.net.amqp_uri(region),
            "ROUTING_REGION": region,
            "ROUTING_PEERS": peers,
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "warning"),
        }
        wanted = ["nice", "-n", str(nice), sys.executable, "-m", module]
        command = self.net.command(region, wanted if nice else wanted[3:])
        process.start(command, env=kept | common | dict(own), cwd=ROOT)

    def _url(self, name: str, path: str) -> str:
        host, _ = self.net.listen(name.partition("-")[0], self._ports[name])
        return f"http://{host}:{self._http[name]}/{path}"

    def wait_ready(self, region: str) -> None:
        """Until its routers lead or follow a living leader."""
        for name in self.routers_of(region):
            self._processes[name].wait_ready(HttpReady(url=self._url(name, "readyz")), START_SECONDS_MAX)

    def kill_region(self, region: str) -> None:
        """kill -9 for all of its processes, at once."""
        for process in self._of(region):
            process.send(signal.SIGKILL)

    def bury_region(self, region: str) -> None:
        """Nothing is left of its processes when this returns."""
        for process in self._of(region):
            process.kill()

    def _of(self, region: str) -> list[ManagedProcess]:
        worker = [self._workers[region]] if region in self._workers else []
        return [*(self._processes[name] for name in self.routers_of(region)), *worker]

    def cut(self, region: str, *links: Link) -> None:
        """Nothing goes through these links any more."""
        self.net.cut(region, links)

    def mend(self, region: str) -> None:
        """The links are whole again."""
        self.net.mend(region)

    def __enter__(self) -> RegionFloor:
        try:
            self.start()
        except BaseException:
            print(self.log_tails(), file=sys.stderr)
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every process and removes the directory."""
        for process in (*self._processes.values(), *self._workers.values()):
            process.kill()
        self.rabbit.stop()
        self.mongo.stop()
        self.net.close()
        if not os.environ.get("CALLMESH_CHAOS_KEEP"):
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def log_tails(self) -> str:
        """The ends of the processes' logs, for who looks for a cause."""
        processes = (*self._processes.values(), *self._workers.values())
        return "\n".join(f"--- {each.name}\n{each.log_tail()}" for each in processes)


async def furnish_regions(channel: grpc.aio.Channel, floor: RegionFloor, agents: int) -> dict[str, str]:
    """The directory: regions with their lead lists, one queue, `agents` a region; each agent's region."""
    directory = directory_pb2_grpc.DirectoryServiceStub(channel)
    for region, (latitude, longitude, area, _) in PLACES.items():
        wanted = directory_pb2.Region(
            location={"latitude": latitude, "longitude": longitude},
            served_areas=[area],
            lead_list=floor.lead_list(region),
        )
        await directory.CreateRegion(directory_pb2.CreateRegionRequest(region_id=region, region=wanted))
    await directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=SKILL))
    queue = directory_pb2.Queue(skills=[{"skill": SKILL, "level_min": 1}])
    await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=QUEUE, queue=queue))
    homes: dict[str, str] = {}
    for region in REGIONS:
        requests = []
        for number in range(agents):
            name = f"{region}-agent-{number}"
            agent = directory_pb2.Agent(region=f"regions/{region}", skills={SKILL: 3}, address=f"sip:{name}")
            requests.append(directory_pb2.CreateAgentRequest(agent_id=name, agent=agent))
            homes[name] = region
        await directory.BatchCreateAgents(directory_pb2.BatchCreateAgentsRequest(requests=requests))
    await _all_known(channel, [f"{region}-agent-{agents - 1}" for region in REGIONS])
    return homes


async def _all_known(channel: grpc.aio.Channel, agents: list[str]) -> None:
    """Until the regions' leaders know these agents."""
    stub = agent_pb2_grpc.AgentServiceStub(channel)
    deadline = time.monotonic() + START_SECONDS_MAX
    for agent in agents:
        while True:
            try:
                await stub.GetAgentStatus(agent_pb2.GetAgentStatusRequest(name=f"agents/{agent}"), timeout=5)
                break
            except grpc.aio.AioRpcError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_SECONDS)
