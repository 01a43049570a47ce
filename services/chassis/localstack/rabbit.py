"""A private RabbitMQ node: its own data, log, Erlang cookie, port mapper and ports, beside any other on the
machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import amqp

from chassis.localstack.ports import LOOPBACK, require_free
from chassis.localstack.process import ManagedProcess, ProcessFailed

#: The same in every run directory: quorum queues remember the node's name, and the private port mapper keeps
#: names apart.
NODE_NAME = "callmesh@localhost"
START_SECONDS_MAX = 90.0
EPMD_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 20.0
#: How long a command to a running node may take: each starts an Erlang of its own, which on a busy machine
#: takes as long as the node's.
CONTROL_SECONDS_MAX = 90.0
#: Memory above which the node blocks publishers; absolute, because a share of a small machine is below its
#: idle need.
MEMORY_BYTES_MAX = 768 * 1024 * 1024
#: Free disk below which it blocks publishers.
DISK_FREE_BYTES_MIN = 50 * 1024 * 1024
#: Size of a quorum queue's write-ahead log file; the default of 512 MiB is also held in memory.
WAL_BYTES_MAX = 32 * 1024 * 1024

#: Where the server's own script lies. The wrappers that distributions put on the PATH change the user when
#: run by root.
_SCRIPTS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/opt/rabbitmq/sbin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
)

_CONFIG = """\
listeners.tcp.1 = {host}:{port}
num_acceptors.tcp = 4
loopback_users.guest = true
vm_memory_high_watermark.absolute = {memory}
disk_free_limit.absolute = {disk}
raft.wal_max_size_bytes = {wal}
log.file = rabbitmq.log
log.file.level = info
"""


def find_rabbitmq_server() -> str | None:
    """Path of RabbitMQ's own start script; None when it or Erlang is not installed."""
    candidates = list(_SCRIPTS)
    on_path = shutil.which("rabbitmq-server")
    if on_path:
        script = os.path.realpath(on_path)
        if not script.endswith("-wrapper"):
            candidates.append(script)
    if shutil.which("erl") is None or shutil.which("epmd") is None:
        return None
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


class RabbitNode:
    """One node on three consecutive ports from `port`: AMQP, Erlang distribution, port mapper. Data survive a
    restart.
    """

    def __init__(self, run_dir: Path, port: int) -> None:
        self.run_dir = Path(run_dir)
        self.port = port
        self.distribution_port = port + 1
        self.epmd_port = port + 2
        self.server = ManagedProcess(self.run_dir, "rabbitmq")
        self.epmd = ManagedProcess(self.run_dir, "rabbitmq-epmd")
        self._came_back = False

    @property
    def uri(self) -> str:
        """AMQP URI, virtual host "/"."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    def start(self, *, wait: bool = True, die_with_parent: bool = True) -> None:
        """Starts the node unless it runs; with `wait` until clients can connect (about 5 to 10 s).

        Raises ProcessFailed (not installed, or it ended), PortInUse.
        """
        if not self.server.alive():
            script = find_rabbitmq_server()
            if script is None:
                raise ProcessFailed("there is no rabbitmq-server: install it (with Erlang), or set AMQP_URI")
            self._start_epmd(die_with_parent)
            require_free([self.port, self.distribution_port], "rabbitmq")
            self._write_files()
            self._came_back = (self.run_dir / "rabbitmq-data").exists()
            # Erlang leaves some of its dumps in the directory that it was started in.
            home = (self.run_dir / "rabbitmq-home").resolve()
            self.server.start([script], env=self._environment(), cwd=home, die_with_parent=die_with_parent)
        if wait:
            self.wait_ready()

    def settle(self) -> None:
        """Has the node write down the queues and bindings declared so far.

        By itself it does so about a second after the declaration; a kill -9 before that loses them, and
        confirmed messages with them. ProcessFailed when the node does not answer.
        """
        self.evaluate("mnesia:sync_log(), [dets:sync(T) || T <- dets:all()].")

    def wake_queues(self) -> None:
        """Has every quorum queue elect itself a leader, which after kill -9 some forget to do in old
        releases.

        Harmless for a queue that has one. ProcessFailed when the node does not answer.
        """
        self.evaluate(
            "[ra:trigger_election({Name, node()}) || Queue <- rabbit_amqqueue:list(),"
            " amqqueue:get_type(Queue) == rabbit_quorum_queue, {Name, _} <- [amqqueue:get_pid(Queue)]]."
        )

    def evaluate(self, expression: str) -> None:
        """Has the node evaluate an Erlang expression, whose result is dropped. ProcessFailed when it does
        not.
        """
        script = find_rabbitmq_server()
        assert script is not None, "the node was started with it"
        command = [str(Path(script).with_name("rabbitmqctl")), "eval", expression]
        environment = {
            **self._environment(),
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=CONTROL_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProcessFailed(
                f"rabbitmqctl had no answer from the node within {CONTROL_SECONDS_MAX:g} s: the machine has"
                f" too much to do, or the node hangs (its log: {self.server.log_path})"
            ) from None
        if done.returncode != 0:
            raise ProcessFailed(f"rabbitmqctl eval failed: {done.stdout}{done.stderr}")

    def wait_ready(self) -> None:
        """Waits until a client can open a connection; ProcessFailed when the node ends or takes too long."""
        self.server.wait_ready(self.accepts, START_SECONDS_MAX)
        if self._came_back:
            self.wake_queues()
            self._came_back = False

    def _start_epmd(self, die_with_parent: bool) -> None:
        # Started by us and in the foreground: one that the node starts would become a daemon and outlive it.
        if self.epmd.alive():
            return
        require_free([self.epmd_port], "rabbitmq's port mapper")
        epmd = shutil.which("epmd")
        assert epmd is not None, "find_rabbitmq_server looked for it"
        command = [epmd, "-port", str(self.epmd_port), "-address", LOOPBACK]
        self.epmd.start(command, env=self._environment(), die_with_parent=die_with_parent)
        self.epmd.wait_ready(lambda: _listens(self.epmd_port), EPMD_SECONDS_MAX)

    def _write_files(self) -> None:
        home = self.run_dir / "rabbitmq-home"
        home.mkdir(parents=True, exist_ok=True)
        config = _CONFIG.format(
            host=LOOPBACK,
            port=self.port,
            memory=MEMORY_BYTES_MAX,
            disk=DISK_FREE_BYTES_MIN,
            wal=WAL_BYTES_MAX,
        )
        (self.run_dir / "rabbitmq.conf").write_text(config)
        (self.run_dir / "rabbitmq-plugins").write_text("[].\n")
        # An empty one of our own, or the machine's /etc/rabbitmq/rabbitmq-env.conf would be read.
        (self.run_dir / "rabbitmq-env.conf").write_text("")

    def _environment(self) -> dict[str, str]:
        run = self.run_dir.resolve()
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            # Erlang keeps its cookie in the home directory.
            "HOME": str(run / "rabbitmq-home"),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_CRASH_DUMP": str(run / "erl_crash.dump"),
            "RABBITMQ_NODENAME": NODE_NAME,
            "RABBITMQ_MNESIA_BASE": str(run / "rabbitmq-data"),
            "RABBITMQ_LOG_BASE": str(run / "rabbitmq-log"),
            "RABBITMQ_CONFIG_FILE": str(run / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(run / "rabbitmq-advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(run / "rabbitmq-generated"),
            "RABBITMQ_CONF_ENV_FILE": str(run / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(run / "rabbitmq-plugins"),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            # Distribution on loopback, no port mapper of its own, deaf to the terminal's Ctrl-C.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +B i +sbwt none +S 2:2"
            ),
            # The start script then becomes the server instead of staying as its parent.
            "detached": "true",
        }

    def accepts(self) -> bool:
        """Whether a client can open a connection now."""
        try:
            connection = amqp.Connection(
                f"{LOOPBACK}:{self.port}", connect_timeout=2, read_timeout=5, write_timeout=5
            )
            connection.connect()
            connection.close()
        except (OSError, amqp.AMQPError):
            return False
        return True

    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self.server.alive()

    def kill(self) -> None:
        """kill -9 for the server; the port mapper stays for the next start."""
        self.server.kill()

    def stop(self) -> None:
        """Stops the server in order, then its port mapper; the data stay."""
        try:
            self.server.stop(STOP_SECONDS_MAX, signal.SIGTERM)
        finally:
            self.epmd.kill()

    def __enter__(self) -> RabbitNode:
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
