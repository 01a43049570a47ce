"""What `chassis.worker.run_worker` runs. Imported under eventlet only: the standard library is green here."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import amqp
import eventlet
import eventlet.greenthread
import eventlet.wsgi
from eventlet.event import Event as Signal
from eventlet.hubs import trampoline
from nameko.runners import ServiceRunner
from pymongo.errors import PyMongoError

from chassis import logs, metrics, mongo, probes, telemetry
from chassis.bus import topology
from chassis.bus.connection import CONNECTION_ERRORS, await_broker, close_quietly
from chassis.bus.entrypoint import BROKER_KEY, OPTIONS_KEY, BusConsumer, BusOptions, subscriptions_of
from chassis.bus.inbox import Inbox
from chassis.bus.metrics_queues import QueueDepths
from chassis.bus.publisher import Publisher
from chassis.config import EXIT_BAD_SETTING, ServiceSettings, unknown_variables
from chassis.errors import StartError, shorten
from chassis.eventlog import PRUNE_SECONDS, EventLog, Recorded
from chassis.ids import new_id
from chassis.lease import Lease
from chassis.mongo import Aggregate
from chassis.outbox import LEASE_SECONDS, OutboxRelay
from chassis.worker import Background, Stopping, periodic

#: Interval of heartbeats on the consumers' connection, seconds; the broker gives up after two.
HEARTBEAT_SECONDS = 20
#: Handlers running at once in a process, over all queues.
HANDLERS_MAX = 20
#: First and longest pause before a background loop that broke is started again, seconds.
RESTART_SECONDS_MIN = 0.5
RESTART_SECONDS_MAX = 30.0
#: How long a loop has to run well for its next failure to count as its first, seconds.
RESTART_FORGIVEN_SECONDS = 60.0
#: How often the database is asked whether it is there, for /readyz, seconds.
PING_SECONDS = 2.0
#: On top of `drain_seconds`: how long nameko may take to stop before it is killed, seconds.
STOP_SECONDS_SPARE = 5.0
#: Connections served at once by the HTTP port, and how long one may dawdle, seconds.
HTTP_CONNECTIONS_MAX = 32
HTTP_SECONDS_MAX = 10.0

EXIT_BROKEN = 1

log = logs.get_logger(__name__)

_crashes = metrics.counter(
    "callmesh_background_crashes_total",
    "Background loops that broke and were started again.",
    ("service", "loop"),
)


class WorkerProcess:
    """One worker: made, run, gone."""

    def __init__(
        self,
        settings: ServiceSettings,
        service_class: type,
        *,
        documents: Sequence[type[Aggregate]],
        background: Sequence[Background],
        optional: frozenset[str],
        people: str,
        options: BusOptions | None,
    ) -> None:
        self._settings = settings
        self._service_class = service_class
        self._documents = list(documents)
        self._optional = optional
        self._people = people
        self._options = options or BusOptions(drain_seconds=settings.drain_seconds)
        self._background = list(background)
        self._stop = Signal()
        self._signals = 0
        self._broken: BaseException | None = None
        self._started = False
        self._database_answers = False
        self._runner: ServiceRunner | None = None
        self._loops: list[Any] = []
        self._broker = settings.broker()
        self._publisher = Publisher(self._broker, service=settings.service)

    # --- the two things it can do ---

    def declare(self) -> int:
        """Declares the queues of all handlers and ends."""
        with self._reporting():
            self._declare()
            print(f"callmesh-{self._settings.service}: queues declared", file=sys.stderr)
            return 0
        return EXIT_BAD_SETTING

    def run(self) -> int:
        """Runs until told to stop and ends the process; returns only when it could not start."""
        logs.setup(self._settings)
        for name in unknown_variables(type(self._settings)):
            log.warning("setting.unknown", variable=name)
        telemetry.setup(self._settings)
        self._handle_signals()
        listener = None
        with self._reporting():
            listener = self._listen()
            self._start()
        if not self._started:
            return EXIT_BAD_SETTING
        log.info("worker.started", handlers=[s.handler for s in subscriptions_of(self._service_class)])
        self._stop.wait()
        self._shut_down()
        assert listener is not None
        listener.close()
        if self._broken is not None:
            log.critical("worker.broken", error=repr(self._broken))
            leave(EXIT_BROKEN)
        log.info("worker.stopped")
        leave(0)

    # --- start ---

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except StartError as error:
            print(f"callmesh-{self._settings.service}: {error}", file=sys.stderr)

    def _start(self) -> None:
        database = mongo.connect(self._settings)
        mongo.ensure_indexes(self._documents)
        events = EventLog.of(self._settings, database, self._people)
        try:
            Inbox(database).ensure_index()
            events.ensure()
        except PyMongoError as error:
            raise StartError(f"MongoDB: index of inbox or event log: {shorten(str(error))}") from None
        self._database_answers = True
        self._declare()
        self._runner = self._make_runner()
        self._runner.start()
        eventlet.spawn(self._watch_runner)
        self._spawn(Background(name="ping", run=lambda stopping: self._ping(database, stopping)))
        depths = QueueDepths(self._broker, subscriptions_of(self._service_class))
        self._spawn(Background(name="depths", run=depths.run))
        if self._documents:
            self._spawn(Background(name="outbox", run=self._relay(database, events).run))
        self._spawn(periodic("event_log", PRUNE_SECONDS, events.prune))
        for loop in self._background:
            self._spawn(loop)
        self._started = True

    def _declare(self) -> None:
        """Before anything consumes, and before our own relay publishes. StartError."""
        connection = await_broker(self._broker, self._options.connect_seconds)
        try:
            channel = connection.channel()
            topology.declare_exchange(channel, self._settings.service)
            topology.declare(
                channel,
                subscriptions_of(self._service_class),
                self._options.retry_delays_seconds,
                self._options.deliveries_max,
            )
        except amqp.PreconditionFailed as error:
            raise StartError(f"RabbitMQ has a queue with other settings: {shorten(str(error))}") from None
        except CONNECTION_ERRORS as error:
            raise StartError(f"RabbitMQ did not take the queues: {shorten(str(error))}") from None
        finally:
            close_quietly(connection)

    def _make_runner(self) -> ServiceRunner:
        runner = ServiceRunner(
            {
                "AMQP_URI": self._settings.amqp_uri,
                "HEARTBEAT": HEARTBEAT_SECONDS,
                "max_workers": HANDLERS_MAX,
                OPTIONS_KEY: self._options,
                BROKER_KEY: self._broker,
            }
        )
        runner.add_service(self._service_class)
        # nameko logs each failing handler with its traceback; the entrypoint's own line says more in less.
        logging.getLogger("nameko.containers").setLevel(logging.ERROR)
        return runner

    def _relay(self, database: Any, events: EventLog) -> OutboxRelay:
        holder = f"{self._settings.instance_name()}-{new_id()}"
        return OutboxRelay(
            self._documents,
            Recorded(self._publisher, events, self._settings.service),
            Lease(database["leases"], "outbox", holder, LEASE_SECONDS),
            service=self._settings.service,
            optional=self._optional,
        )

    # --- while it runs ---

    def _stopping(self, seconds: float) -> bool:
        with eventlet.Timeout(seconds, False):
            self._stop.wait()
        return bool(self._stop.ready())

    def _spawn(self, loop: Background) -> None:
        self._loops.append(eventlet.spawn(supervise, loop, self._settings.service, self._stopping))

    def _watch_runner(self) -> None:
        assert self._runner is not None
        try:
            self._runner.wait()
        except Exception as error:
            self._broken = error
        if not self._stop.ready():
            self._broken = self._broken or RuntimeError("nameko stopped by itself")
            self._stop.send(None)

    def _ping(self, database: Any, stopping: Stopping) -> None:
        while not stopping(PING_SECONDS):
            try:
                database.client.admin.command("ping")
                self._database_answers = True
            except PyMongoError:
                self._database_answers = False

    def _consumes(self) -> bool:
        """Whether the consumers' connection stands; a service without handlers needs none."""
        assert self._runner is not None
        consumers = [
            extension
            for container in self._runner.containers
            for extension in container.shared_extensions.values()
            if isinstance(extension, BusConsumer)
        ]
        return all(consumer.connected for consumer in consumers)

    def _checks(self) -> dict[str, probes.Check]:
        return {
            "started": lambda: self._started and not self._stop.ready(),
            "mongo": lambda: self._database_answers,
            "bus": self._consumes,
        }

    def _listen(self) -> Any:
        address = (self._settings.http_host, self._settings.http_port)
        try:
            listener = eventlet.listen(address, reuse_port=False)
        except OSError as error:
            raise StartError(f"HTTP cannot listen on {address[0]}:{address[1]}: {error.strerror}") from None
        eventlet.spawn(
            eventlet.wsgi.server,
            listener,
            wsgi_application(self._checks()),
            max_size=HTTP_CONNECTIONS_MAX,
            keepalive=False,
            socket_timeout=HTTP_SECONDS_MAX,
            log_output=False,
        )
        return listener

    # --- end ---

    def _handle_signals(self) -> None:
        # A Python signal handler does not wake the hub; the byte that the interpreter writes does.
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        eventlet.spawn(self._await_signals, reader)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals > 1 or not self._started:
            # The second one, or one before there is anything to end in order.
            os._exit(128 + number)

    def _await_signals(self, reader: int) -> None:
        while not self._signals:
            trampoline(reader, read=True)
            os.read(reader, 64)
        if not self._stop.ready():
            self._stop.send(None)

    def _shut_down(self) -> None:
        """Finishes what is in hand, each part within its bound."""
        limit, began = self._options.drain_seconds + STOP_SECONDS_SPARE, time.monotonic()
        finished = False
        with eventlet.Timeout(limit, False):
            assert self._runner is not None
            self._runner.stop()
            finished = True
        if not finished:
            log.error("worker.stop_overdue", seconds=limit)
            self._broken = self._broken or TimeoutError("handlers did not end in time")
        # They were told at the same time. Both together end before the grace period of the chart does.
        spare = max(STOP_SECONDS_SPARE, limit - (time.monotonic() - began))
        with eventlet.Timeout(spare, False):
            for loop in self._loops:
                loop.wait()
        self._publisher.close()
        telemetry.shutdown()
        if finished:
            # A handler that was given up keeps its database: without it, it would fail, and be tried again,
            # while the broker has handed its event to the next worker already.
            mongo.disconnect()


def leave(status: int) -> NoReturn:
    """Ends the process here and now, after everything has been closed.

    On the interpreter's own way out libraries wait for their threads, and green threads run on meanwhile, the
    handlers that were given up among them; and taking the modules apart is a quarter of what a start costs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def supervise(loop: Background, service: str, stopping: Stopping) -> None:
    """Runs a background loop, again and again when it breaks, until it returns or the process ends."""
    pause = RESTART_SECONDS_MIN
    # There before anything happens: a first time is an increase as well.
    crashes = _crashes.labels(service, loop.name)
    while True:
        started = time.monotonic()
        try:
            loop.run(stopping)
            return
        except Exception:
            crashes.inc()
            log.exception("worker.loop_broke", loop=loop.name)
        if time.monotonic() - started > RESTART_FORGIVEN_SECONDS:
            pause = RESTART_SECONDS_MIN
        if stopping(pause):
            return
        pause = min(2 * pause, RESTART_SECONDS_MAX)


def wsgi_application(checks: dict[str, probes.Check]) -> Callable[[dict[str, Any], Any], list[bytes]]:
    """`chassis.probes` as a WSGI application."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        found = probes.answer(environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/"), checks)
        headers = [("Content-Type", found.content_type), ("Content-Length", str(len(found.body)))]
        start_response(f"{found.status} {'OK' if found.status == 200 else 'ERROR'}", headers)
        return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [found.body]

    return application
