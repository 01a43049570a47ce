"""What a local stack consists of: names, ports and environment of its processes. Pure: nothing is started
here.

Ports are fixed offsets from one base, so that a stack can be told from another by its base alone:

    +0 +1 +2    mongod members              +40 +41 +42    crm: gRPC, HTTP, worker's HTTP
    +10 +11 +12 RabbitMQ: AMQP, distribution, port mapper
    +20..+23    routing gRPC, one a region  +50 +51 +52    tickets
    +24..+27    the regions' second routers +60 +61 +62    marketing
    +30..+33    routing HTTP, one a region  +70            Prometheus
    +34         routing worker's HTTP       +65 +66        the dialler: gRPC, HTTP
    +35..+38    the second routers' HTTP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

HOST = "127.0.0.1"
#: Region ids of the local stack, the head office first.
REGIONS = ("beijing", "shanghai", "guangzhou", "chengdu")
#: The services besides routing, with the offset of their first port.
SERVICES = {"crm": 40, "tickets": 50, "marketing": 60}

PORT_BASE_DEFAULT = 7100
#: The last offset in use.
PORT_OFFSET_MAX = 70
MEMBERS_ALLOWED = (1, 3)
ROUTERS_ALLOWED = (1, 2)

#: A local stack's servers wait no longer for open calls when they are told to end, seconds.
DRAIN_SECONDS = 3

MONGO_OFFSET = 0
RABBIT_OFFSET = 10
ROUTING_GRPC_OFFSET = 20
ROUTING_HTTP_OFFSET = 30
ROUTING_WORKER_OFFSET = 34
#: Offsets of gRPC and HTTP of a region's first router, then of its second.
_ROUTER_OFFSETS = ((ROUTING_GRPC_OFFSET, ROUTING_HTTP_OFFSET), (24, 35))
DIALLER, DIALLER_OFFSET = "dialler", 65
PROMETHEUS_OFFSET = 70


class BadStackConfig(ValueError):
    """A stack cannot be planned from what was given; the text is one line for the operator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StackConfig:
    """What tells one local stack from another."""

    #: Data, logs, records and secrets; absolute.
    run_dir: Path
    #: First port, see the module's table.
    port_base: int = PORT_BASE_DEFAULT
    #: Members of the local replica set, 1 or 3; of no meaning with `mongo_uri`.
    members: int = 1
    #: Routers a region, 1 or 2: the second is a warm standby and another door for clients.
    routers: int = 1
    #: Region whose blended agents call between calls; "" starts no dialler.
    dialler: str = ""
    #: A MongoDB to use in place of a local one; "" starts one.
    mongo_uri: str = ""
    #: A RabbitMQ to use in place of a local one; "" starts one.
    amqp_uri: str = ""
    #: Added to the environment of every service process, for example CLOCK_SPEED.
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1024 <= self.port_base <= 65535 - PORT_OFFSET_MAX:
            raise BadStackConfig(
                f"PORT_BASE must be between 1024 and {65535 - PORT_OFFSET_MAX}, got {self.port_base}"
            )
        if self.members not in MEMBERS_ALLOWED:
            raise BadStackConfig(f"MEMBERS must be 1 or 3, got {self.members}")
        if self.routers not in ROUTERS_ALLOWED:
            raise BadStackConfig(f"ROUTERS must be 1 or 2, got {self.routers}")
        if self.dialler and self.dialler not in REGIONS:
            raise BadStackConfig(
                f"DIALLER must be none or one of {', '.join(REGIONS)}, got {self.dialler!r:.40}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceProcess:
    """One process of the platform."""

    #: "crm", "crm-worker", "routing-beijing": names its log, its record and its line in `status`.
    name: str
    #: Run as `python -m <module>`.
    module: str
    #: "crm": prefix of its settings in lower case.
    service: str
    #: None for a worker.
    grpc_port: int | None
    #: /metrics, /healthz, /readyz.
    http_port: int
    #: Its own settings, beside those that every process of the stack gets.
    env: Mapping[str, str]

    @property
    def ports(self) -> tuple[int, ...]:
        """What it listens on, the main one first."""
        return (self.http_port,) if self.grpc_port is None else (self.grpc_port, self.http_port)

    @property
    def ready_url(self) -> str:
        """Answers 200 once the process serves."""
        return f"http://{HOST}:{self.http_port}/readyz"


def server_name(service: str, region: str | None = None, number: int = 1) -> str:
    """Name of the process that serves a service's gRPC; routing has one or two a region."""
    name = f"{service}-{region}" if region else service
    return name if number == 1 else f"{name}-{number}"


def worker_name(service: str) -> str:
    """Name of the process that consumes the bus for a service."""
    return f"{service}-worker"


def _server(service: str, name: str, grpc_port: int, http_port: int, **env: str) -> ServiceProcess:
    prefix = service.upper()
    own = {
        f"{prefix}_GRPC_PORT": str(grpc_port),
        f"{prefix}_HTTP_PORT": str(http_port),
        f"{prefix}_DRAIN_SECONDS": str(DRAIN_SECONDS),
        **env,
    }
    return ServiceProcess(
        name=name, module=service, service=service, grpc_port=grpc_port, http_port=http_port, env=own
    )


def _worker(service: str, http_port: int, **env: str) -> ServiceProcess:
    own = {f"{service.upper()}_HTTP_PORT": str(http_port), **env}
    return ServiceProcess(
        name=worker_name(service),
        module=f"{service}.worker",
        service=service,
        grpc_port=None,
        http_port=http_port,
        env=own,
    )


def routing_peers(port_base: int, routers: int = 1) -> str:
    """Every region's routers, as ROUTING_PEERS wants it: "beijing=127.0.0.1:7120,shanghai=..."."""
    return ",".join(
        f"{region}={HOST}:{port_base + grpc + index}"
        for index, region in enumerate(REGIONS)
        for grpc, _ in _ROUTER_OFFSETS[:routers]
    )


def workers(config: StackConfig) -> list[ServiceProcess]:
    """The four bus consumers."""
    base = config.port_base
    peers = routing_peers(base, config.routers)
    routing = _worker("routing", base + ROUTING_WORKER_OFFSET, ROUTING_PEERS=peers)
    return [routing, *(_worker(service, base + offset + 2) for service, offset in SERVICES.items())]


def servers(config: StackConfig) -> list[ServiceProcess]:
    """The gRPC servers: the routers of each region, the first ones before the second, and one for each other
    service.
    """
    base = config.port_base
    peers = routing_peers(base, config.routers)
    routers = [
        _server(
            "routing",
            server_name("routing", region, number),
            base + grpc + index,
            base + http + index,
            ROUTING_REGION=region,
            ROUTING_PEERS=peers,
            ROUTING_ADVERTISE=f"{HOST}:{base + grpc + index}",
        )
        for number, (grpc, http) in enumerate(_ROUTER_OFFSETS[: config.routers], 1)
        for index, region in enumerate(REGIONS)
    ]
    others = [_server(s, server_name(s), base + offset, base + offset + 1) for s, offset in SERVICES.items()]
    return [*others, *routers]


def clients(config: StackConfig) -> list[ServiceProcess]:
    """What calls the servers, and so starts after them: the dialler, where there is one."""
    if not config.dialler:
        return []
    base, region = config.port_base, REGIONS.index(config.dialler)
    server = _server(
        DIALLER,
        DIALLER,
        base + DIALLER_OFFSET,
        base + DIALLER_OFFSET + 1,
        DIALLER_REGION=config.dialler,
        DIALLER_ROUTING=f"{HOST}:{base + ROUTING_GRPC_OFFSET + region}",
        DIALLER_MARKETING=f"{HOST}:{base + SERVICES['marketing']}",
    )
    return [replace(server, module="routing.planning.dialler_main")]


def scrape_targets(config: StackConfig) -> list[ServiceProcess]:
    """Every process that has /metrics."""
    return [*workers(config), *servers(config), *clients(config)]


def prometheus_config(config: StackConfig, rules: str = "") -> str:
    """Prometheus' configuration: one job a service, the process' name as a label; `rules` is a file of
    recording rules and alerts, "" for none.
    """
    lines = ["global:", "  scrape_interval: 5s", "  scrape_timeout: 4s", "  evaluation_interval: 5s"]
    lines += [f'rule_files: ["{rules}"]'] if rules else []
    lines += ["scrape_configs:"]
    for service in dict.fromkeys(process.service for process in scrape_targets(config)):
        lines += [f"  - job_name: {service}", "    static_configs:"]
        for process in scrape_targets(config):
            if process.service == service:
                lines += [
                    f'      - targets: ["{HOST}:{process.http_port}"]',
                    f"        labels: {{process: {process.name}}}",
                ]
    return "\n".join(lines) + "\n"
