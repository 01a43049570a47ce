"""The bootstrap of every gRPC process: grpc.aio on uvloop, health, reflection, probes and a graceful end.

async def run(settings: CrmSettings) -> None:
    connect(settings)
    servicer = CrmServicer(...)
    await serve(settings, [ServiceBinding(crm_pb2.DESCRIPTOR..., add_CrmServicer_to_server, servicer)],
    scopes=SCOPES)

def main() -> int:
    return chassis.server.main(CrmSettings, run)
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from chassis import auditservice, auth, garbage, limits, localize, logs, metrics, telemetry, tls
from chassis.acts import Acts
from chassis.callcontext import current_identity, remaining_seconds
from chassis.config import (
    EXIT_BAD_SETTING,
    ServiceSettings,
    SettingsType,
    load_settings,
    unknown_variables,
)
from chassis.errors import StartError
from chassis.httpport import HttpPort
from chassis.probes import Check
from chassis.rpc import Collector, Guard, Handlers, Method

__all__ = [
    "Hook",
    "Server",
    "ServiceBinding",
    "current_identity",
    "main",
    "remaining_seconds",
    "serve",
    "server_options",
]

#: Longest that a new connection may take to be set up, milliseconds.
HANDSHAKE_MS_MAX = 20_000
#: Exit status of a process that Ctrl-C ended before it served, the shell's convention.
EXIT_INTERRUPTED = 130
#: How long a busy thread may keep the interpreter from another one that wants it, seconds. With Python's own
#: 5 ms a thread that waits for the database loses that at each answer while another one computes: a sixth of
#: an import's speed.
SWITCH_SECONDS = 0.0005
#: A step at start or end: called without arguments, awaited if it returns an awaitable.
Hook = Callable[[], Awaitable[None] | None]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_log = logs.get_logger(__name__)


@dataclass(frozen=True, kw_only=False, slots=True)
class ServiceBinding:
    """One gRPC service and what implements it."""

    #: `<file>_pb2.DESCRIPTOR.services_by_name["XService"]`.
    descriptor: Any
    #: The generated `add_XServiceServicer_to_server`.
    add_to_server: Callable[[Any, Any], None]
    #: An instance of a subclass of the generated servicer; RPCs it leaves out answer UNIMPLEMENTED.
    servicer: Any

    @property
    def methods(self) -> list[str]:
        """Full names of the service's RPCs."""
        return [f"/{self.descriptor.full_name}/{method.name}" for method in self.descriptor.methods]


def server_options(settings: ServiceSettings) -> list[tuple[str, int]]:
    """grpc's channel arguments.

    grpc queues calls that the process has not picked up yet and cancels some of them at random above a soft
    limit, all above a hard one. Both must be above what may be open at once, or a burst of calls that are all
    welcome loses a part.
    """
    pending = 2 * max(settings.concurrent_streams_max, settings.concurrent_calls_max)
    return [
        ("grpc.max_receive_message_length", settings.message_bytes_max),
        ("grpc.max_send_message_length", settings.message_bytes_max),
        ("grpc.max_metadata_size", settings.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", settings.metadata_bytes_max),
        ("grpc.max_concurrent_streams", settings.concurrent_streams_max),
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", 2 * pending),
        # Two processes on one port would silently share its calls.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        # Any ping in flight stands in for the keepalive, and waits a minute for its answer by default.
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Who opens a connection and says nothing holds it for no longer than this; two minutes by default.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS_MAX),
        # An edge has to notice a dead router before its place is given up, and asks every two
        # seconds (`client.WATCHFUL_SECONDS`); who is told that it asks too often asks half as often after.
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 4),
    ]


def _hooks(hooks: Hook | Sequence[Hook]) -> list[Hook]:
    return [hooks] if callable(hooks) else list(hooks)


async def _run_hook(hook: Hook) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result


class Server:
    """One gRPC server with its HTTP port. `serve` runs one for the life of a process; tests start and stop
    it.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        services: Sequence[ServiceBinding],
        *,
        scopes: Mapping[str, str],
        checks: Mapping[str, Check] | None = None,
        acts: Acts | None = None,
    ) -> None:
        """StartError when a scope is missing or the keys cannot be used. Needs a running event loop."""
        self._settings = settings
        if acts is not None:
            # Who records acts shows them.
            shown = auditservice.AuditServicer(acts)
            audit = ServiceBinding(auditservice.DESCRIPTOR, auditservice.add_to_server, shown)
            services = [*services, audit]
            scopes = {**scopes, **auditservice.scopes(settings.service)}
        auth.check_scope_table([method for service in services for method in service.methods], scopes)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix=f"{settings.service}-handler")
        self._acts = acts
        self._names = [service.descriptor.full_name for service in services]
        self._guard = self._make_guard(scopes)
        self._health = HealthServicer()
        self._server = grpc.aio.server(
            migration_thread_pool=self._pool,
            handlers=[self._handlers(services, scopes)],
            options=server_options(settings),
        )
        self._serving = False
        self._http = HttpPort(
            settings.http_host, settings.http_port, {"serving": lambda: self._serving, **(checks or {})}
        )
        open_calls = metrics.gauge("callmesh_rpc_open", "RPCs open now.", ("service",))
        open_calls.labels(settings.service).set_function(lambda: float(self._guard.open_calls))
        #: The port that gRPC listens on, known after `start`.
        self.port = settings.grpc_port

    def _make_guard(self, scopes: Mapping[str, str]) -> Guard:
        settings = self._settings
        return Guard(
            service=settings.service,
            package=localize.package_of(type(settings)),
            callers=limits.of_settings(settings, frozenset(scopes.values())),
            binding=auth.Binding(settings.auth_binding),
            authenticator=auth.authenticator(settings),
            pool=self._pool,
            calls_max=settings.concurrent_calls_max,
            default_deadline_seconds=settings.default_deadline_seconds,
            stream_grace_seconds=settings.auth_stream_grace_seconds,
            acts=self._acts,
        )

    def _handlers(self, services: Sequence[ServiceBinding], scopes: Mapping[str, str]) -> Handlers:
        own, common = Collector(), Collector()
        for service in services:
            service.add_to_server(service.servicer, own)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, common)
        health_methods = set(common.handlers)
        if self._settings.reflection:
            names = [*self._names, *(d.full_name for d in _common_services())]
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), common)
        handlers = Handlers(self._guard)
        for name, handler in own.handlers.items():
            handlers.add(Method(self._guard, name, scopes[name], handler))
        for name, handler in common.handlers.items():
            scope = auth.PUBLIC if name in health_methods else auth.AUTHENTICATED
            handlers.add(Method(self._guard, name, scope, handler))
        return handlers

    @property
    def address(self) -> str:
        """Where gRPC listens, "host:port"."""
        host = self._settings.grpc_host
        return f"[{host}]:{self.port}" if ":" in host and not host.startswith("[") else f"{host}:{self.port}"

    @property
    def http_port(self) -> int:
        """The HTTP port, known after `start`."""
        return self._http.port

    async def start(self, on_start: Hook | Sequence[Hook] = ()) -> None:
        """Listens, runs the hooks, then reports SERVING; StartError when a port cannot be used."""
        await self._http.start()
        try:
            self.port = self._listen()
        except RuntimeError:
            await self._http.stop()
            raise StartError(
                f"gRPC cannot listen on {self.address}: the address is in use or not ours"
            ) from None
        await self._set_health(_NOT_SERVING)
        for hook in _hooks(on_start):
            await _run_hook(hook)
        await self._server.start()
        await self._set_health(_SERVING)
        self._serving = True

    def _listen(self) -> int:
        found = tls.certificates(self._settings)
        if found is None:
            return self._server.add_insecure_port(self.address)
        certified = self._settings.tls_clients == "certified"
        return self._server.add_secure_port(self.address, tls.server_credentials(found, certified=certified))

    async def _set_health(self, status: Any) -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def announce_end(self) -> None:
        """Reports NOT_SERVING from now on while still answering."""
        self._serving = False
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Takes no new calls, lets open ones end for `grace_seconds`, cuts the rest; safe to repeat."""
        await self.announce_end()
        await self._server.stop(grace_seconds)
        await self._http.stop()
        self._guard.authenticator.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _common_services() -> list[Any]:
    return [
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    ]


class _Signals:
    """SIGTERM and SIGINT as events: the first asks for a graceful end, a second for an end at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _unless(event: asyncio.Event, work: Awaitable[None]) -> None:
    """Awaits `work`, but no longer than until `event`."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    if task.done():
        await task
    else:
        task.cancel()


async def _drain(server: Server, settings: ServiceSettings, signals: _Signals) -> None:
    await server.announce_end()
    _log.info("server.draining", seconds=settings.drain_seconds)
    if settings.drain_notice_seconds:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(signals.second.wait(), settings.drain_notice_seconds)
    await _unless(signals.second, server.stop(settings.drain_seconds))
    await server.stop(None)


async def serve(
    settings: ServiceSettings,
    services: Sequence[ServiceBinding],
    *,
    scopes: Mapping[str, str],
    on_start: Hook | Sequence[Hook] = (),
    on_drain: Hook | Sequence[Hook] = (),
    on_stop: Hook | Sequence[Hook] = (),
    checks: Mapping[str, Check] | None = None,
    acts: Acts | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains: NOT_SERVING, no new calls, `drain_seconds` for the open
    ones.

    `scopes` maps every full method name ("/pkg.Service/Method") to the scope it needs. `on_start` hooks run
    before the first call is taken, `on_drain` hooks when the end is announced (leaders step down here),
    `on_stop` hooks after the last call, each even if one before failed. `checks` are further parts of
    /readyz, `acts` records administrative acts. StartError when the start fails.
    """
    signals = _Signals()
    server = Server(settings, services, scopes=scopes, checks=checks, acts=acts)
    async with contextlib.AsyncExitStack() as ending:
        for hook in reversed(_hooks(on_stop)):
            ending.push_async_callback(_run_hook, hook)
        ending.push_async_callback(server.stop, None)
        await server.start(on_start if acts is None else [*_hooks(on_start), acts.prepare])
        garbage.settle()
        collecting = asyncio.create_task(garbage.collect_at_times())
        ending.callback(collecting.cancel)
        _log.info("server.started", address=server.address, http_port=server.http_port)
        await signals.first.wait()
        for hook in _hooks(on_drain):
            await _run_hook(hook)
        await _drain(server, settings, signals)
    _log.info("server.stopped")


def main(settings_class: type[SettingsType], run: Callable[[SettingsType], Awaitable[None]]) -> int:
    """The whole life of a gRPC process: settings, logs, traces, then `run(settings)` on uvloop; the exit
    status.

    A start that fails prints one line and gives 2.
    """
    settings = load_settings(settings_class)
    logs.setup(settings)
    for name in unknown_variables(settings_class):
        _log.warning("setting.unknown", variable=name)
    telemetry.setup(settings)
    sys.setswitchinterval(SWITCH_SECONDS)

    async def entry() -> None:
        await run(settings)

    try:
        uvloop.run(entry())
    except StartError as error:
        print(f"callmesh-{settings.service}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTING
    except KeyboardInterrupt:
        # Ctrl-C before the server had begun to listen for it.
        return EXIT_INTERRUPTED
    finally:
        telemetry.shutdown()
    return 0
