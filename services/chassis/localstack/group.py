"""The project's own processes as a group: start, wait until healthy, stop."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from chassis.localstack.process import ManagedProcess, ProcessFailed, wait_for

#: One look at a process that may not answer, in seconds.
PROBE_SECONDS = 2.0


class Ready(Protocol):
    """Tells whether a process is ready to serve."""

    def __call__(self) -> bool:
        """True when ready; must not raise for a process that is merely not there yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpReady:
    """Ready when a GET answers 200."""

    #: For example "http://127.0.0.1:7134/readyz".
    url: str

    def __call__(self) -> bool:
        # A proxy from the environment has no business between two processes on loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url, timeout=PROBE_SECONDS) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False


@dataclass(frozen=True, kw_only=True, slots=True)
class TcpReady:
    """Ready when a connection is accepted."""

    #: "host:port".
    address: str

    def __call__(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=PROBE_SECONDS):
                return True
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpcReady:
    """Ready when the standard health service says SERVING. Loads grpc when called, so not for workers."""

    #: "host:port", plaintext.
    address: str
    #: Service to ask for; empty for the server as a whole.
    service: str = ""

    def __call__(self) -> bool:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        with grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=self.service), timeout=PROBE_SECONDS
                )
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """How to start one process and how to know that it serves."""

    #: Unique in the group; names its log and pid files. Letters, digits, "-", "_" and ".".
    name: str
    #: Program and arguments.
    command: Sequence[str]
    #: Added to (and winning over) the group's environment.
    env: Mapping[str, str] = field(default_factory=dict)
    #: None: ready as soon as it was started.
    ready: Ready | None = None
    #: Working directory; None for the caller's.
    cwd: Path | None = None
    #: Longest wait for readiness, seconds.
    start_seconds_max: float = 30.0
    #: Between SIGTERM and SIGKILL, seconds.
    stop_seconds_max: float = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessStatus:
    """What a process of the group is doing."""

    name: str
    #: None when it does not run.
    pid: int | None
    #: Whether it runs and its readiness check passes now.
    ready: bool
    log_path: Path


class ProcessGroup:
    """Processes that share a run directory and an environment.

    A second instance made with the same specs on the same directory finds the processes that the first one
    left running: so `callmesh down` stops what `callmesh up` started.
    """

    def __init__(
        self,
        run_dir: Path,
        specs: Sequence[ServiceSpec] = (),
        *,
        env: Mapping[str, str] | None = None,
        die_with_parent: bool = True,
    ) -> None:
        """`env` is the whole environment of the processes; None means a copy of the caller's."""
        self.run_dir = Path(run_dir)
        self.env = dict(os.environ if env is None else env)
        self.die_with_parent = die_with_parent
        self._specs: dict[str, ServiceSpec] = {}
        self._processes: dict[str, ManagedProcess] = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec: ServiceSpec) -> None:
        """Makes a process known without starting it; ValueError for a name used twice or unfit for a file."""
        if (
            spec.name in self._specs
            or not spec.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        ):
            raise ValueError(f"process name {spec.name!r} is used already or not a plain name")
        self._specs[spec.name] = spec
        self._processes[spec.name] = ManagedProcess(self.run_dir, spec.name)

    def process(self, name: str) -> ManagedProcess:
        """The process of that name; KeyError for an unknown one."""
        return self._processes[name]

    @property
    def names(self) -> list[str]:
        """Names in the order in which they were added."""
        return list(self._specs)

    def start(self, name: str, *, wait: bool = True) -> None:
        """Starts one process unless it runs; with `wait` until it is ready. Raises ProcessFailed."""
        spec, process = self._specs[name], self._processes[name]
        if not process.alive():
            # What a killed predecessor left behind would hold its ports.
            process.kill()
            process.start(
                spec.command, env={**self.env, **spec.env}, cwd=spec.cwd, die_with_parent=self.die_with_parent
            )
        if wait:
            self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        """Waits for one started process; ProcessFailed when it ends or takes too long."""
        spec = self._specs[name]
        if spec.ready is not None:
            self._processes[name].wait_ready(spec.ready, spec.start_seconds_max)

    def start_all(self) -> None:
        """Starts all, side by side, then waits for each. On a failure all are stopped and ProcessFailed is
        raised.
        """
        try:
            for name in self._specs:
                self.start(name, wait=False)
            for name in self._specs:
                self.wait_ready(name)
        except BaseException:
            self.stop_all()
            raise

    def stop(self, name: str) -> None:
        """SIGTERM, after `stop_seconds_max` SIGKILL, then the same for what it left behind."""
        self._processes[name].stop(self._specs[name].stop_seconds_max)

    def kill(self, name: str) -> None:
        """kill -9, as a crash would."""
        self._processes[name].kill()

    def restart(self, name: str) -> None:
        """Stops and starts one process and waits until it is ready."""
        self.stop(name)
        self.start(name)

    def stop_all(self) -> None:
        """Asks all at once, gives each its time, kills the rest. Raises the first ProcessFailed after trying
        all.
        """
        started = time.monotonic()
        for process in self._processes.values():
            process.send(signal.SIGTERM)
        failures: list[ProcessFailed] = []
        for name, process in self._processes.items():
            left = self._specs[name].stop_seconds_max - (time.monotonic() - started)
            wait_for(lambda process=process: not process.alive(), max(0.0, left))  # type: ignore[misc]
            try:
                process.kill()
            except ProcessFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def status(self) -> list[ProcessStatus]:
        """One line a process, in the order in which they were added."""
        return [self._status(name) for name in self._specs]

    def _status(self, name: str) -> ProcessStatus:
        process, ready = self._processes[name], self._specs[name].ready
        pid = process.pid()
        is_ready = pid is not None and (ready is None or ready())
        return ProcessStatus(name=name, pid=pid, ready=is_ready, log_path=process.log_path)

    def __enter__(self) -> ProcessGroup:
        self.start_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()
