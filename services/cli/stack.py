"""A local stack as an object: real MongoDB, real RabbitMQ, Prometheus where installed, and the eleven
processes; a dialler where one is asked for.

    with Stack(StackConfig(run_dir=Path(".run").resolve())) as stack:
        channel = grpc.aio.insecure_channel(stack.address("routing", "shanghai"))
        stack.kill("routing-shanghai")

Order: first the database and the broker, then the workers, which declare their queues, then the servers, so
that no event is published before somebody waits for it, then the dialler, which calls them. Down goes the
other way. Whatever happens on the way
up, what this call started is stopped again before the error reaches the caller.

All processes are started by one thread of the stack's own, which lives as long as the interpreter: the kernel
kills them when that thread ends (`die_with_parent`), whichever way the interpreter ends, kill -9 included.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pymongo.errors import PyMongoError

from chassis.localstack import (
    HttpReady,
    ManagedProcess,
    MongoNode,
    PortInUse,
    ProcessFailed,
    ProcessGroup,
    RabbitNode,
    ServiceSpec,
    TcpReady,
    find_mongod,
    find_rabbitmq_server,
    port_is_free,
)
from cli import parts as part_tools
from cli import plan
from cli.parts import Part, PartStatus
from cli.plan import BadStackConfig, StackConfig
from cli.secret_files import secret_file

#: Between SIGTERM and SIGKILL for database and broker, seconds.
STORE_STOP_SECONDS_MAX = 20.0
#: Longest wait for one process of the platform, seconds: eleven interpreters start side by side on two cores.
SERVICE_START_SECONDS_MAX = 90.0
#: Between SIGTERM and SIGKILL for one stage, seconds; above the servers' own drain time.
SERVICE_STOP_SECONDS_MAX = 15.0
PROMETHEUS_START_SECONDS_MAX = 20.0
#: How long a command waits for another one that works on the same run directory, seconds.
LOCK_SECONDS_MAX = 2.0
#: How long a stop waits for an interrupted start to notice, seconds.
START_ABORT_SECONDS_MAX = 5.0

MARKER = "stack.json"
LOCK = "stack.lock"
PROMETHEUS = "prometheus"
#: Recording rules and alerts, where the platform runs from its own checkout.
RULES = Path(__file__).resolve().parents[2] / "deploy" / "observability" / "rules.yaml"
#: The routers' setting for the file with the key of their place tokens.
PLACE_TOKEN_KEY_FILE = "ROUTING_PLACE_TOKEN_KEY_FILE"

Progress = Callable[[str, str], None]
CommandOf = Callable[[plan.ServiceProcess], Sequence[str]]


class StackError(Exception):
    """The stack cannot be started; the text's first line says why, the rest is the end of a log."""


class StackBusy(StackError):
    """Another command works on the same run directory right now."""


class StackRuns(StackError):
    """A stack runs in this run directory already."""


class StackStopped(StackError):
    """The stack was stopped while it was starting."""


def python_module(process: plan.ServiceProcess) -> list[str]:
    """Runs a process' module in this interpreter's environment."""
    return [sys.executable, "-m", process.module]


def service_environment(config: StackConfig) -> dict[str, str]:
    """The environment that every process of the platform gets, on top of which come its own ports."""
    env = dict(os.environ)
    # A proxy of the machine has no business between two processes on loopback; gRPC would use it.
    for name in ("no_proxy", "NO_PROXY"):
        env[name] = ",".join(filter(None, [env.get(name, ""), plan.HOST, "localhost"]))
    source = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH", "")]))
    env["PYTHONUNBUFFERED"] = "1"
    env.update(config.env)
    return env


class Stack:
    """One local stack in one run directory. Its methods may be called from any thread."""

    def __init__(
        self,
        config: StackConfig,
        *,
        die_with_parent: bool = True,
        on_progress: Progress | None = None,
        command_of: CommandOf = python_module,
    ) -> None:
        """`die_with_parent`: nothing outlives this interpreter. `on_progress(part, state)` gets called from
        another thread with the states "starting", "up" and "failed". `command_of`: how a process is run.
        """
        self.config = config
        self._die = die_with_parent
        self._command_of = command_of
        self._on_progress = on_progress or (lambda name, state: None)
        run, base = config.run_dir, config.port_base
        self._mongo = MongoNode(run, base + plan.MONGO_OFFSET, members=config.members)
        self._rabbit = RabbitNode(run, base + plan.RABBIT_OFFSET)
        self.mongo_uri = config.mongo_uri or self._mongo.uri
        self.amqp_uri = config.amqp_uri or self._rabbit.uri
        env = service_environment(config) | {"MONGO_URI": self.mongo_uri, "AMQP_URI": self.amqp_uri}
        self._specs: dict[str, ServiceSpec] = {}
        self._workers = self._group(env, plan.workers(config))
        self._servers = self._group(env, plan.servers(config))
        self._clients = self._group(env, plan.clients(config))
        self._specs[PROMETHEUS] = self._prometheus_spec()
        self._tools = ProcessGroup(run, [self._specs[PROMETHEUS]], env=env, die_with_parent=die_with_parent)
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="stack-starter")
        self._starting: Future[None] | None = None
        self._stopping = threading.Event()
        self._started: list[str] = []

    def _group(self, env: dict[str, str], processes: list[plan.ServiceProcess]) -> ProcessGroup:
        specs = [
            ServiceSpec(
                name=process.name,
                command=self._command_of(process),
                env=process.env,
                ready=HttpReady(url=process.ready_url),
                start_seconds_max=SERVICE_START_SECONDS_MAX,
                stop_seconds_max=SERVICE_STOP_SECONDS_MAX,
            )
            for process in processes
        ]
        self._specs.update((spec.name, spec) for spec in specs)
        return ProcessGroup(self.config.run_dir, specs, env=env, die_with_parent=self._die)

    def _prometheus_spec(self) -> ServiceSpec:
        run, address = self.config.run_dir, f"{plan.HOST}:{self.config.port_base + plan.PROMETHEUS_OFFSET}"
        return ServiceSpec(
            name=PROMETHEUS,
            command=[
                shutil.which(PROMETHEUS) or PROMETHEUS,
                f"--config.file={run / 'prometheus.yml'}",
                f"--storage.tsdb.path={run / 'prometheus-data'}",
                "--storage.tsdb.retention.time=2d",
                f"--web.listen-address={address}",
            ],
            ready=HttpReady(url=f"http://{address}/-/ready"),
            start_seconds_max=PROMETHEUS_START_SECONDS_MAX,
        )

    # --- what there is --------------------------------------------------------------------------------

    def address(self, service: str, region: str | None = None) -> str:
        """ "host:port" of a service's gRPC; routing needs a region.

        Raises:
            KeyError: no such server.
        """
        wanted = plan.server_name(service, region)
        served = [*plan.servers(self.config), *plan.clients(self.config)]
        ports = {process.name: process.grpc_port for process in served}
        return f"{plan.HOST}:{ports[wanted]}"

    def http_address(self, name: str) -> str:
        """ "host:port" of a process' /metrics, /healthz and /readyz.

        Raises:
            KeyError: no such process.
        """
        ports = {process.name: process.http_port for process in plan.scrape_targets(self.config)}
        return f"{plan.HOST}:{ports[name]}"

    def parts(self) -> list[Part]:
        """Every process that this stack may consist of, in the order in which they start."""
        config = self.config
        found: list[Part] = []
        if not config.mongo_uri:
            pairs = zip(self._mongo.ports, self._mongo.members, strict=True)
            found += [_store_part(member, (port,)) for port, member in pairs]
        if not config.amqp_uri:
            node = self._rabbit
            found.append(_store_part(node.epmd, (node.epmd_port,)))
            found.append(_store_part(node.server, (node.port, node.distribution_port)))
        if self._has_prometheus():
            port = config.port_base + plan.PROMETHEUS_OFFSET
            found.append(self._group_part(self._tools, PROMETHEUS, (port,)))
        for group, planned in (
            (self._workers, plan.workers(config)),
            (self._servers, plan.servers(config)),
            (self._clients, plan.clients(config)),
        ):
            found += [self._group_part(group, service.name, service.ports) for service in planned]
        return found

    def _has_prometheus(self) -> bool:
        return shutil.which(PROMETHEUS) is not None or self._tools.process(PROMETHEUS).alive()

    def _group_part(self, group: ProcessGroup, name: str, ports: tuple[int, ...]) -> Part:
        spec = self._specs[name]
        return Part(
            name=name,
            process=group.process(name),
            ports=ports,
            ready=spec.ready,
            stop_seconds_max=spec.stop_seconds_max,
        )

    def processes(self) -> list[PartStatus]:
        """What every part is doing now."""
        return [part_tools.describe(part) for part in self.parts()]

    def running(self) -> bool:
        """Whether any process of this run directory lives."""
        return any(part.process.alive() for part in self.parts())

    # --- up -------------------------------------------------------------------------------------------

    def start(self, *, fresh: bool = False) -> None:
        """Starts what does not run yet and returns when everything is healthy; harmless when all of it is.

        `fresh` first forgets what an earlier stack kept in the run directory.

        Raises:
            StackError: a part did not come up; what this call started is stopped again.
            StackBusy: another command works on this run directory.
            StackRuns: `fresh` was asked for and a stack runs here.
            PortInUse: a port is taken; nothing was started.
            BadStackConfig: a stack with other ports or members runs here.
        """
        self._stopping.clear()
        self._started = []
        future = self._starting = self._starter.submit(self._start_locked, fresh)
        try:
            future.result()
        except BaseException:
            self._stop_parts(set(self._started), discard=False)
            raise

    def _start_locked(self, fresh: bool) -> None:
        config = self.config
        config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.lock():
            self._refuse_another_shape()
            if fresh:
                self._forget()
            self._check_tools_and_ports()
            self._mark()
            self._hand_out_secrets()
            try:
                self._start_infrastructure()
                self._start_group(self._workers)
                self._start_group(self._servers)
                self._start_group(self._clients)
            except (ProcessFailed, PyMongoError, OSError) as error:
                raise StackError(str(error)) from error

    def _start_infrastructure(self) -> None:
        """The broker takes longest, so it starts first and is waited for last."""
        if not self.config.amqp_uri:
            self._begin(self._rabbit.epmd.name, self._rabbit.server.name)
            self._rabbit.start(wait=False, die_with_parent=self._die)
        if not self.config.mongo_uri:
            self._begin(*(member.name for member in self._mongo.members))
            self._mongo.start(die_with_parent=self._die)
            self._up(*(member.name for member in self._mongo.members))
        self._start_prometheus()
        if not self.config.amqp_uri:
            self._rabbit.wait_ready()
            self._up(self._rabbit.epmd.name, self._rabbit.server.name)

    def _start_prometheus(self) -> None:
        """Welcome, not needed: a Prometheus that does not start keeps nothing else from starting."""
        if not self._has_prometheus():
            return
        run = self.config.run_dir
        if RULES.is_file():
            # A local stack's day takes minutes: what is recorded once a minute would hardly be seen.
            (run / "rules.yaml").write_text(re.sub(r"(?m)^( +interval:) .*$", r"\1 5s", RULES.read_text()))
        rules = "rules.yaml" if RULES.is_file() else ""
        (run / "prometheus.yml").write_text(plan.prometheus_config(self.config, rules))
        self._begin(PROMETHEUS)
        try:
            self._tools.start(PROMETHEUS)
        except ProcessFailed:
            self._on_progress(PROMETHEUS, "failed")
        else:
            self._up(PROMETHEUS)

    def _start_group(self, group: ProcessGroup) -> None:
        for name in group.names:
            self._begin(name)
            group.start(name, wait=False)
        for name in group.names:
            group.wait_ready(name)
            self._up(name)

    def _begin(self, *names: str) -> None:
        """Notes what is about to be started by this call, unless a stop has overtaken it."""
        if self._stopping.is_set():
            raise StackStopped(StackStopped.__doc__)
        living = {part.name for part in self.parts() if part.process.alive()}
        self._started += [name for name in names if name not in living]
        for name in names:
            self._on_progress(name, "starting")

    def _up(self, *names: str) -> None:
        for name in names:
            self._on_progress(name, "up")

    def _check_tools_and_ports(self) -> None:
        """Says what is missing or taken before anything is started."""
        if not self.config.mongo_uri and find_mongod() is None:
            raise StackError("there is no mongod: run `make setup`, put one on the PATH, or set MONGO_URI")
        if not self.config.amqp_uri and find_rabbitmq_server() is None:
            raise StackError("there is no rabbitmq-server: install that package, or set AMQP_URI")
        for part in self.parts():
            if part.process.alive():
                continue
            # A crashed predecessor's children may hold its ports; they are ours to end.
            part.process.kill()
            for port in part.ports:
                if not port_is_free(port):
                    raise PortInUse(
                        f"{part.name} needs port {port} on {plan.HOST}, which another process holds"
                    )

    # --- down -----------------------------------------------------------------------------------------

    def stop(self, *, discard: bool = False) -> None:
        """Stops, in reverse order, just what was started in this run directory; harmless when nothing runs.

        `discard`: the data will not be used again, so database and broker are killed rather than asked.
        Bounded: what does not end when asked is killed. An interrupt on the way kills the rest at once.
        """
        self._stop_parts({part.name for part in self.parts()}, discard=discard)

    def _stop_parts(self, names: set[str], *, discard: bool) -> None:
        self._stopping.set()
        try:
            self._stop_in_order(names, discard)
            self._await_starter()
            # What a start that was being interrupted had just begun.
            self._kill(names | set(self._started))
        except BaseException:
            self._kill(names | set(self._started))
            raise

    def _stop_in_order(self, names: set[str], discard: bool) -> None:
        # Unwinds from the last to the first, and goes on when one of them fails.
        with contextlib.ExitStack() as undo:
            for stage in self._stages():
                chosen = [part for part in stage if part.name in names]
                is_store = stage and stage[0].name.startswith(("mongod", "rabbitmq"))
                undo.callback(part_tools.kill if discard and is_store else part_tools.end, chosen)

    def _stages(self) -> list[list[Part]]:
        """The parts that may end side by side, in the order of their start."""
        parts = {part.name: part for part in self.parts()}
        mongo = [part for name, part in parts.items() if name.startswith("mongod-")]
        broker = [[parts[n]] for n in (self._rabbit.epmd.name, self._rabbit.server.name) if n in parts]
        tools = [parts[n] for n in self._tools.names if n in parts]
        workers = [parts[n] for n in self._workers.names]
        servers, clients = ([parts[n] for n in group.names] for group in (self._servers, self._clients))
        return [mongo, *broker, tools, workers, servers, clients]

    def _await_starter(self) -> None:
        future = self._starting
        if future is None or threading.current_thread().name.startswith("stack-starter"):
            return
        with contextlib.suppress(Exception):
            future.exception(START_ABORT_SECONDS_MAX)

    def _kill(self, names: set[str]) -> None:
        part_tools.kill([part for part in self.parts() if part.name in names])

    # --- one process ----------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash would: a process of the platform, "rabbitmq", "mongod-0" or "prometheus".

        Raises:
            KeyError: no such process.
        """
        self._part(name).process.kill()

    def restart(self, name: str) -> None:
        """Stops the process if it runs, starts it and waits until it is healthy.

        Raises:
            KeyError: no such process.
            StackError: it did not come up.
        """
        part = self._part(name)
        self._starter.submit(self._restart, part).result()

    def _restart(self, part: Part) -> None:
        part_tools.end([part])
        try:
            if part.process in self._mongo.members:
                self._mongo.start(die_with_parent=self._die)
            elif part.process in (self._rabbit.server, self._rabbit.epmd):
                self._rabbit.start(die_with_parent=self._die)
            else:
                groups = (self._tools, self._workers, self._servers, self._clients)
                next(group for group in groups if part.name in group.names).start(part.name)
        except (ProcessFailed, PyMongoError, OSError) as error:
            raise StackError(str(error)) from error

    def _part(self, name: str) -> Part:
        return {part.name: part for part in self.parts()}[name]

    # --- the run directory ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds off other commands on this run directory (`start` does so by itself).

        Raises:
            StackBusy: another command is at work, and was still after `LOCK_SECONDS_MAX`.
        """
        with (self.config.run_dir / LOCK).open("w") as file:
            if not _flock(file.fileno()):
                raise StackBusy(f"another callmesh command is at work in {self.config.run_dir}: wait for it")
            yield

    def _mark(self) -> None:
        """Leaves what `down` and `status` need to find this stack again; no address of a server, for it may
        hold a password.
        """
        text = json.dumps(_shape(self.config), indent=1)
        (self.config.run_dir / MARKER).write_text(text + "\n")

    def _hand_out_secrets(self) -> None:
        """Every router must sign place tokens with the same key; one that was given wins."""
        if not self._servers.env.get(PLACE_TOKEN_KEY_FILE):
            path = secret_file(self.config.run_dir / "secrets", "place-token-key")
            self._servers.env[PLACE_TOKEN_KEY_FILE] = str(path)

    def _refuse_another_shape(self) -> None:
        kept = {"routers": 1, "dialler": "", **(_read_marker(self.config.run_dir) or {})}
        if not kept["dialler"]:
            # A dialler may join a stack that runs without one.
            kept["dialler"] = self.config.dialler
        recorded = recorded_stack(self.config.run_dir)
        if recorded and kept != _shape(self.config) and recorded.running():
            was = ", ".join(f"{key}={value}" for key, value in kept.items())
            raise BadStackConfig(
                f"a stack of another shape runs in {self.config.run_dir} ({was}): stop it first"
            )

    def _forget(self) -> None:
        """Empties the run directory; StackRuns while in use, BadStackConfig when it is not a stack's."""
        run = self.config.run_dir
        if self.running():
            raise StackRuns(f"a stack runs in {run}: stop it first (callmesh down), or give another RUN_DIR")
        entries = [path for path in run.iterdir() if path.name != LOCK]
        if entries and not (run / MARKER).exists():
            raise BadStackConfig(f"{run} holds other files than a stack's: give another RUN_DIR")
        for path in entries:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    # --- with -----------------------------------------------------------------------------------------

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Stack:
        try:
            await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))


def _shape(config: StackConfig) -> dict[str, Any]:
    return {
        "port_base": config.port_base,
        "members": config.members,
        "routers": config.routers,
        "dialler": config.dialler,
        "external_mongo": bool(config.mongo_uri),
        "external_amqp": bool(config.amqp_uri),
    }


def _store_part(process: ManagedProcess, ports: tuple[int, ...]) -> Part:
    return Part(
        name=process.name,
        process=process,
        ports=ports,
        ready=TcpReady(address=f"{plan.HOST}:{ports[0]}"),
        stop_seconds_max=STORE_STOP_SECONDS_MAX,
    )


def _flock(descriptor: int) -> bool:
    """Takes the lock, or gives up after `LOCK_SECONDS_MAX`."""
    deadline = time.monotonic() + LOCK_SECONDS_MAX
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            # There is no wait with a deadline for a file lock.
            time.sleep(part_tools.POLL_SECONDS)
        else:
            return True


def _read_marker(run_dir: Path) -> dict[str, Any] | None:
    """The shape of the stack that was last started in a run directory; None where there was none."""
    try:
        kept = json.loads((run_dir / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def recorded_stack(run_dir: Path) -> Stack | None:
    """The stack that was last started in a run directory, running or not; None where there was none.

    Good for `processes`, `stop` and `kill`; it does not know the addresses of servers that were given.
    """
    kept = _read_marker(run_dir)
    try:
        return (
            None
            if kept is None
            else Stack(
                StackConfig(
                    run_dir=run_dir,
                    port_base=int(kept["port_base"]),
                    members=int(kept["members"]),
                    # A stack of an earlier release says nothing of them.
                    routers=int(kept.get("routers", 1)),
                    dialler=str(kept.get("dialler", "")),
                    mongo_uri="mongodb://given.invalid" if kept["external_mongo"] else "",
                    amqp_uri="amqp://given.invalid" if kept["external_amqp"] else "",
                ),
                die_with_parent=False,
            )
        )
    except (KeyError, TypeError, ValueError):
        return None
