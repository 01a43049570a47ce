"""The local stack starts real parts, finds them again, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import amqp
import pymongo
import pytest

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
    free_ports,
    ports,
)
from chassis.localstack.process import carriers, start_ticks, thread_states
from chassis.testing.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

needs_mongod = pytest.mark.skipif(find_mongod() is None, reason="no mongod")
needs_rabbit = pytest.mark.skipif(find_rabbitmq_server() is None, reason="no rabbitmq-server")

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()",
]
HTTP = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


def token_of(process: ManagedProcess) -> str:
    record = process.record()
    assert record is not None
    return record.token


@needs_mongod
def test_a_member_restarts_with_its_data_on_another_port(tmp_path: Path) -> None:
    with MongoNode(tmp_path, free_ports(3)[0]) as node, pymongo.MongoClient(node.uri) as client:
        client.test.things.insert_one({"_id": 1})
        token = token_of(node.members[0])
    assert list(carriers(token)) == []
    with MongoNode(tmp_path, free_ports(3)[0]) as node, pymongo.MongoClient(node.uri) as client:
        assert client.test.things.count_documents({}) == 1


@needs_mongod
def test_three_members_elect_another_after_kill_9(tmp_path: Path) -> None:
    with MongoNode(tmp_path, free_ports(3)[0], members=3) as node:
        first = node.primary()
        assert first is not None
        node.kill(first)
        wait_until(lambda: node.primary() not in (None, first), 60, what="another one leads")
        node.start_member(first)
        wait_until(node.is_complete, 60)


def test_a_set_of_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or 3"):
        MongoNode(tmp_path, 1, members=2)


@needs_rabbit
def test_a_broker_beside_another_keeps_its_queues_over_kill_9_and_stops_completely(
    tmp_path: Path, rabbit_node: RabbitNode
) -> None:
    with RabbitNode(tmp_path, free_ports(3)[0]) as other:
        with amqp.Connection(f"127.0.0.1:{other.port}") as connection:
            connection.channel().queue_declare(
                "kept", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
            )
        other.kill()
        assert not other.alive()
        other.start()
        with amqp.Connection(f"127.0.0.1:{other.port}") as connection:
            assert connection.channel().queue_declare("kept", passive=True).queue == "kept"
        tokens = [token_of(other.server), token_of(other.epmd)]
        descendants = list(carriers(tokens[0]))
        assert len(descendants) > 1, "Erlang's helper processes carry the token too"
    assert [list(carriers(token)) for token in tokens] == [[], []]
    assert all(start_ticks(pid) is None for pid in descendants)
    assert rabbit_node.accepts()


def test_a_second_instance_finds_and_stops_what_the_first_left(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from chassis.localstack import ProcessGroup, ServiceSpec\n"
        "specs = [ServiceSpec(name='one', command=sys.argv[2:])]\n"
        "group = ProcessGroup(Path(sys.argv[1]), specs, die_with_parent=False)\n"
        "group.start_all()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *SLEEPER], check=True, env=_environment())
    group = ProcessGroup(tmp_path, [ServiceSpec(name="one", command=SLEEPER)])
    pid = group.status()[0].pid
    assert pid is not None and start_ticks(pid) is not None
    group.stop_all()
    assert start_ticks(pid) is None
    assert group.status()[0].pid is None


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, signal; from pathlib import Path; from chassis.localstack import ManagedProcess\n"
        "import os; ManagedProcess(Path(sys.argv[1]), 'child').start(sys.argv[2:], env=dict(os.environ))\n"
        "print('started', flush=True); signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), *SLEEPER], env=_environment(), stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        child = ManagedProcess(tmp_path, "child")
        pid = child.pid()
        assert pid is not None
        parent.kill()
        wait_until(lambda: start_ticks(pid) is None)
    child.kill()


def test_a_port_is_given_to_one_process_as_long_as_it_lives() -> None:
    script = (
        "import signal; from chassis.localstack import free_ports\n"
        "print(free_ports(3)[1], flush=True); signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=_environment(), stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert ports.port_is_free(port) and not ports._claim(port, 1) and not ports._claim(port - 5, 9)
        other.kill()
        other.wait()
        assert ports._claim(port, 1)


def test_a_process_is_not_given_a_port_twice_before_it_can_listen() -> None:
    given = [port for _ in range(ports.RECENT_MAX) for port in free_ports(70)]
    assert len(given) == len(set(given))


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    bystander = ManagedProcess(tmp_path, "bystander")
    bystander.start(SLEEPER, env=_environment())
    record = json.loads(bystander.record_path.read_text())
    # As it looks when the program died long ago and its id went to somebody else.
    stale: dict[str, Any] = {**record, "start_ticks": record["start_ticks"] - 1, "token": "0" * 32}
    process = ManagedProcess(tmp_path, "gone")
    process.record_path.write_text(json.dumps(stale))
    assert not process.alive()
    process.stop()
    assert bystander.alive()
    bystander.stop()
    assert not bystander.alive()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_damaged_record_means_not_running(tmp_path: Path, content: str) -> None:
    process = ManagedProcess(tmp_path, "p")
    process.record_path.write_text(content)
    assert not process.alive()
    process.kill()
    assert not process.record_path.exists()


def test_one_whose_start_is_interrupted_before_it_is_recorded_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def interrupted(process: ManagedProcess, record: Any) -> None:
        started.append(record.pid)
        raise KeyboardInterrupt

    process = ManagedProcess(tmp_path, "sleeper")
    monkeypatch.setattr(ManagedProcess, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.start(SLEEPER, env=_environment())
    assert start_ticks(started[0]) is not None
    process.stop()
    assert start_ticks(started[0]) is None


def test_one_that_no_look_finds_is_stopped_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before it was recorded, and just becoming another program, which hides its environment."""
    process = ManagedProcess(tmp_path, "sleeper")
    process.start(SLEEPER, env=_environment())
    process.record_path.unlink()
    monkeypatch.setattr("chassis.localstack.process.carriers", lambda token: iter(()))
    process.kill()
    assert process.exit_code() == -signal.SIGKILL


def test_one_whose_look_was_interrupted_is_stopped_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between subprocess' taking of its lock and the look that gives it back: it looks no more."""
    process = ManagedProcess(tmp_path, "sleeper")
    process.start(SLEEPER, env=_environment())
    child = process._child
    monkeypatch.setattr("chassis.localstack.process.KILL_SECONDS_MAX", 1.0)
    assert child is not None and child._waitpid_lock.acquire(blocking=False)
    process.kill()
    assert start_ticks(child.pid) is None and not process.record_path.exists()
    child._waitpid_lock.release()


def test_one_that_ignores_sigterm_is_killed_with_its_daemons(tmp_path: Path) -> None:
    daemon = (
        "import os, subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = ManagedProcess(tmp_path, "stubborn")
    process.start([sys.executable, "-c", daemon, *STUBBORN], env=_environment())
    wait_until(lambda: process.log_path.read_text().count("up") == 2)
    token = token_of(process)
    assert len(list(carriers(token))) == 2
    process.stop(seconds=0.2)
    assert list(carriers(token)) == []
    assert process.exit_code() == -signal.SIGKILL


def test_one_that_is_halted_stands_still_with_all_its_threads(tmp_path: Path) -> None:
    """After a mere SIGSTOP a thread may still answer for a moment."""
    loop = "lambda: [0 for _ in iter(int, 1)]"
    busy = f"import threading; [threading.Thread(target={loop}).start() for _ in 'abc']"
    process = ManagedProcess(tmp_path, "busy")
    process.start([sys.executable, "-c", f"{busy}; print('up', flush=True)"], env={})
    try:
        process.wait_ready(lambda: "up" in process.log_tail(), 30)
        pid = process.pid()
        assert pid is not None and "T" not in thread_states(pid)
        process.halt()
        assert thread_states(pid) == {"T"}
        assert process.send(signal.SIGCONT)
        wait_until(lambda: "T" not in thread_states(pid), 30)
    finally:
        process.kill()
    with pytest.raises(ProcessFailed, match="busy does not run"):
        process.halt()


def test_a_group_waits_for_readiness_and_restarts(tmp_path: Path) -> None:
    ports = free_ports(2)
    specs = [
        ServiceSpec(
            name="http", command=[*HTTP, str(ports[0])], ready=HttpReady(url=f"http://127.0.0.1:{ports[0]}/")
        ),
        ServiceSpec(
            name="tcp", command=[*HTTP, str(ports[1])], ready=TcpReady(address=f"127.0.0.1:{ports[1]}")
        ),
    ]
    with ProcessGroup(tmp_path, specs) as group:
        before = {status.name: status.pid for status in group.status()}
        assert all(status.ready for status in group.status())
        group.kill("http")
        assert [status.ready for status in group.status()] == [False, True]
        group.start("http")
        after = {status.name: status.pid for status in group.status()}
        assert after["tcp"] == before["tcp"] and after["http"] != before["http"]
    assert [status.pid for status in group.status()] == [None, None]


def test_a_group_that_cannot_start_stops_all_and_shows_the_log(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    failing = [sys.executable, "-c", "raise SystemExit('no such setting')"]
    group = ProcessGroup(
        tmp_path,
        [
            ServiceSpec(name="good", command=SLEEPER),
            ServiceSpec(name="bad", command=failing, ready=TcpReady(address=f"127.0.0.1:{port}")),
        ],
    )
    with pytest.raises(ProcessFailed, match="no such setting"):
        group.start_all()
    assert [status.pid for status in group.status()] == [None, None]


@needs_mongod
def test_a_taken_port_is_named(tmp_path: Path, mongo_node: MongoNode) -> None:
    node = MongoNode(tmp_path, mongo_node.ports[0])
    with pytest.raises(PortInUse, match=str(mongo_node.ports[0])):
        node.start()


def test_names_that_do_not_fit_a_file_are_refused(tmp_path: Path) -> None:
    for name in ["", "a/b", "../x"]:
        with pytest.raises(ValueError, match="plain name"):
            ProcessGroup(tmp_path, [ServiceSpec(name=name, command=SLEEPER)])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
