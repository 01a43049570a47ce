"""Starting and stopping a stack: order, failures, interrupts, and that nothing is left behind.

The platform's processes are stand-ins here; the database and the broker are real where a test says so. Which
processes live is read from the kernel, not from the stack.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chassis.localstack import PortInUse, find_mongod, find_rabbitmq_server, free_ports
from chassis.testing.waiting import wait_until
from cli import plan
from cli.parts import State
from cli.plan import BadStackConfig, ServiceProcess, StackConfig
from cli.stack import SERVICE_STOP_SECONDS_MAX, Stack, StackBusy, StackError, StackRuns, recorded_stack

pytestmark = pytest.mark.integration

FAKE = Path(__file__).with_name("cli_fake_service.py")
ROOT = Path(__file__).resolve().parents[3]
PLATFORM = [p.name for p in plan.scrape_targets(StackConfig(run_dir=Path("/nowhere")))]
WAIT_SECONDS_MAX = 60.0


def fake(process: ServiceProcess) -> list[str]:
    return [sys.executable, "-S", str(FAKE), process.name, str(process.http_port)]


def living(run_dir: Path) -> set[int]:
    """Process ids whose environment or command line names the run directory, our own apart."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(run_dir).encode() in told:
                found.add(int(entry.name))
    return found


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    """A stack of stand-ins alone, on ports of its own."""
    return StackConfig(
        run_dir=tmp_path / "run",
        port_base=free_ports(plan.PORT_OFFSET_MAX + 1)[0],
        mongo_uri="mongodb://given.invalid",
        amqp_uri="amqp://given.invalid",
        env={"MARK": str(tmp_path / "run")},
    )


@pytest.fixture
def stack(config: StackConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setattr(Stack, "_has_prometheus", lambda self: False)
    stack = Stack(config, command_of=fake)
    yield stack
    stack.stop()
    assert living(config.run_dir) == set()


def states(stack: Stack) -> dict[str, State]:
    return {part.name: part.state for part in stack.processes()}


def test_start_brings_everything_up_and_stop_takes_all_of_it_down(stack: Stack) -> None:
    stack.start()
    assert states(stack) == dict.fromkeys(PLATFORM, State.UP)
    assert len({part.pid for part in stack.processes()}) == len(PLATFORM)
    stack.stop()
    assert states(stack) == dict.fromkeys(PLATFORM, State.DOWN)
    assert living(stack.config.run_dir) == set()
    stack.stop()


def test_workers_are_ready_before_the_first_server_starts(stack: Stack) -> None:
    seen: list[tuple[str, str]] = []
    stack._on_progress = lambda name, state: seen.append((name, state))
    stack.start()
    first_server = min(i for i, (name, _) in enumerate(seen) if not name.endswith("-worker"))
    ready = {name for name, state in seen[:first_server] if state == "up"}
    assert ready == {"routing-worker", "crm-worker", "tickets-worker", "marketing-worker"}


def test_starting_twice_changes_nothing(stack: Stack, config: StackConfig) -> None:
    stack.start()
    before = [part.pid for part in stack.processes()]
    stack.start()
    Stack(config, command_of=fake).start()
    assert [part.pid for part in stack.processes()] == before


def test_a_second_look_finds_the_stack_by_its_run_directory(stack: Stack) -> None:
    stack.start()
    found = recorded_stack(stack.config.run_dir)
    assert found is not None
    assert [p.pid for p in found.processes()] == [p.pid for p in stack.processes()]
    found.stop()
    assert not stack.running()


def test_no_stack_is_found_where_none_was(tmp_path: Path) -> None:
    assert recorded_stack(tmp_path) is None
    (tmp_path / "stack.json").write_text('{"port_base": "x"')
    assert recorded_stack(tmp_path) is None


def test_a_killed_process_shows_as_crashed_and_the_next_start_brings_it_back(stack: Stack) -> None:
    stack.start()
    (pid,) = [part.pid for part in stack.processes() if part.name == "crm"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: states(stack)["crm"] is State.CRASHED, WAIT_SECONDS_MAX, what="crm crashed")
    stack.start()
    assert states(stack)["crm"] is State.UP


def test_kill_and_restart_of_one_process_leave_the_others_alone(stack: Stack) -> None:
    stack.start()
    others = {p.name: p.pid for p in stack.processes() if p.name != "routing-shanghai"}
    stack.kill("routing-shanghai")
    assert states(stack)["routing-shanghai"] is State.DOWN
    stack.restart("routing-shanghai")
    assert states(stack)["routing-shanghai"] is State.UP
    assert {p.name: p.pid for p in stack.processes() if p.name != "routing-shanghai"} == others


def test_a_dialler_starts_last_joins_a_running_stack_and_is_not_forgotten(
    stack: Stack, config: StackConfig
) -> None:
    stack.start()
    others = {p.name: p.pid for p in stack.processes()}
    seen: list[tuple[str, str]] = []
    with_it = Stack(
        replace(config, dialler="chengdu"), command_of=fake, on_progress=lambda *told: seen.append(told)
    )
    with_it.start()
    assert states(with_it) == dict.fromkeys([*PLATFORM, "dialler"], State.UP)
    assert {p.name: p.pid for p in with_it.processes() if p.name != "dialler"} == others
    assert [name for name, state in seen if state == "starting"][-1] == "dialler"
    assert with_it.address("dialler") == f"127.0.0.1:{config.port_base + 65}"
    # Who knows of no dialler would leave it behind.
    with pytest.raises(BadStackConfig, match="dialler=chengdu"):
        stack.start()
    found = recorded_stack(config.run_dir)
    assert found is not None and states(found) == states(with_it)
    with_it.stop()
    assert living(config.run_dir) == set()


def test_an_unknown_process_or_server_is_a_key_error(stack: Stack) -> None:
    for call in (stack.kill, stack.restart, stack.address, stack.http_address):
        with pytest.raises(KeyError):
            call("billing")
    with pytest.raises(KeyError):
        stack.address("routing", "atlantis")


def test_addresses_are_those_of_the_plan(stack: Stack) -> None:
    base = stack.config.port_base
    assert stack.address("routing", "shanghai") == f"127.0.0.1:{base + 21}"
    assert stack.address("crm") == f"127.0.0.1:{base + 40}"
    assert stack.http_address("routing-worker") == f"127.0.0.1:{base + 34}"


def test_a_taken_port_is_named_with_who_wants_it_and_nothing_is_started(stack: Stack) -> None:
    port = stack.config.port_base + 50
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortInUse) as caught:
        stack.start()
    assert str(caught.value) == f"tickets needs port {port} on 127.0.0.1, which another process holds"
    assert living(stack.config.run_dir) == set()


def test_a_process_that_cannot_start_takes_the_started_ones_down_again(
    stack: Stack, config: StackConfig
) -> None:
    failing = StackConfig(
        **{name: getattr(config, name) for name in config.__slots__} | {"env": _failing(config)}
    )
    with pytest.raises(StackError, match=r"routing-chengdu ended .*\n.*routing-chengdu was told to fail"):
        Stack(failing, command_of=fake).start()
    assert living(config.run_dir) == set()


def test_a_failed_start_leaves_alone_what_ran_before_it(stack: Stack, config: StackConfig) -> None:
    stack.start()
    stack.kill("routing-chengdu")
    failing = StackConfig(
        **{name: getattr(config, name) for name in config.__slots__} | {"env": _failing(config)}
    )
    with pytest.raises(StackError, match="routing-chengdu"):
        Stack(failing, command_of=fake).start()
    assert states(stack) == dict.fromkeys(PLATFORM, State.UP) | {"routing-chengdu": State.DOWN}


def _failing(config: StackConfig) -> dict[str, str]:
    return {**config.env, "FAIL": "routing-chengdu"}


def test_a_stack_of_another_shape_in_the_same_place_is_refused(stack: Stack, config: StackConfig) -> None:
    stack.start()
    other = StackConfig(run_dir=config.run_dir, port_base=free_ports(plan.PORT_OFFSET_MAX + 1)[0])
    with pytest.raises(BadStackConfig, match=f"port_base={config.port_base}.*stop it first"):
        Stack(other, command_of=fake).start()
    assert states(stack) == dict.fromkeys(PLATFORM, State.UP)


def test_fresh_forgets_the_old_data_but_never_a_running_stack_s(stack: Stack) -> None:
    stack.start()
    run = stack.config.run_dir
    (run / "old-data").mkdir()
    with pytest.raises(StackRuns, match="stop it first"):
        stack.start(fresh=True)
    assert (run / "old-data").exists()
    assert states(stack) == dict.fromkeys(PLATFORM, State.UP)
    stack.stop()
    stack.start(fresh=True)
    assert not (run / "old-data").exists()


def test_fresh_never_empties_a_folder_that_is_not_a_stack_s(stack: Stack) -> None:
    run = stack.config.run_dir
    run.mkdir()
    (run / "thesis.txt").write_text("years of work")
    with pytest.raises(BadStackConfig, match="other files"):
        stack.start(fresh=True)
    assert (run / "thesis.txt").read_text() == "years of work"


def test_two_commands_at_once_in_one_place_do_not_mix(stack: Stack, config: StackConfig) -> None:
    config.run_dir.mkdir()
    with stack.lock(), pytest.raises(StackBusy, match="another callmesh command"):
        Stack(config, command_of=fake).start()


def test_two_stacks_beside_each_other(stack: Stack, tmp_path: Path) -> None:
    other_dir = tmp_path / "other"
    other = Stack(
        StackConfig(
            run_dir=other_dir,
            port_base=free_ports(plan.PORT_OFFSET_MAX + 1)[0],
            mongo_uri="mongodb://given.invalid",
            amqp_uri="amqp://given.invalid",
            env={"MARK": str(other_dir)},
        ),
        command_of=fake,
    )
    stack.start()
    with other:
        assert states(other) == states(stack) == dict.fromkeys(PLATFORM, State.UP)
    assert living(other_dir) == set()
    assert states(stack) == dict.fromkeys(PLATFORM, State.UP)


def test_stop_from_another_thread_overtakes_a_start(stack: Stack) -> None:
    begun = threading.Event()

    def note(name: str, state: str) -> None:
        if name == "crm":
            begun.set()

    stack._on_progress = note
    problems: list[BaseException] = []

    def start() -> None:
        try:
            stack.start()
        except StackError as error:
            problems.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert begun.wait(WAIT_SECONDS_MAX)
    stack.stop()
    thread.join(WAIT_SECONDS_MAX)
    assert problems and not thread.is_alive()
    assert living(stack.config.run_dir) == set()


async def test_as_an_async_context(stack: Stack) -> None:
    async with stack:
        assert states(stack) == dict.fromkeys(PLATFORM, State.UP)
    assert living(stack.config.run_dir) == set()


async def test_a_cancelled_async_start_leaves_nothing(stack: Stack) -> None:
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def note(name: str, state: str) -> None:
        loop.call_soon_threadsafe(begun.set)

    stack._on_progress = note

    async def use() -> None:
        async with stack:
            pytest.fail("the start was cancelled")

    task = asyncio.create_task(use())
    await asyncio.wait_for(begun.wait(), WAIT_SECONDS_MAX)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert living(stack.config.run_dir) == set()


OWNER = """
import sys
from pathlib import Path
sys.path[:0] = [{services!r}, {here!r}]
from cli.plan import StackConfig
from cli.stack import Stack
from test_cli_stack import fake
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
Stack._has_prometheus = lambda self: False
config = StackConfig(run_dir=Path({run!r}), port_base={base}, mongo_uri="mongodb://given.invalid",
                     amqp_uri="amqp://given.invalid", env={{"MARK": {run!r}, "STUBBORN": {stubborn!r}}})
with Stack(config, command_of=fake, on_progress=lambda *seen: print(*seen, flush=True)):
    print("all up", flush=True)
    signal.pause()
"""


def owner(config: StackConfig, until: str, stubborn: str = "") -> subprocess.Popen[str]:
    """A program that owns a stack, running up to the line `until` of its progress."""
    code = OWNER.format(
        services=str(ROOT / "services"),
        here=str(FAKE.parent),
        run=str(config.run_dir),
        base=config.port_base,
        stubborn=stubborn,
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == until:
            return child
    raise AssertionError(f"the owner ended before {until!r}")


@pytest.mark.parametrize(
    "moment", ["routing-worker starting", "crm starting", "routing-chengdu up", "all up"]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_owner_however_that_ends(
    config: StackConfig, moment: str, number: signal.Signals
) -> None:
    child = owner(config, moment)
    assert child.pid in living(config.run_dir)
    child.send_signal(number)
    child.communicate(timeout=WAIT_SECONDS_MAX)
    assert child.returncode == {signal.SIGTERM: 128 + signal.SIGTERM}.get(number, -number)
    wait_until(lambda: not living(config.run_dir), WAIT_SECONDS_MAX, what="everything ended")


def test_a_second_interrupt_does_not_wait_for_a_process_that_will_not_end(config: StackConfig) -> None:
    child = owner(config, "all up", stubborn="crm")
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    wait_until(
        lambda: len(living(config.run_dir) - {child.pid}) < len(PLATFORM),
        WAIT_SECONDS_MAX,
        what="it is stopping",
    )
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=WAIT_SECONDS_MAX)
    wait_until(lambda: not living(config.run_dir), WAIT_SECONDS_MAX, what="everything ended")
    assert time.monotonic() - started < SERVICE_STOP_SECONDS_MAX


@pytest.mark.skipif(find_mongod() is None, reason="no mongod")
@pytest.mark.skipif(find_rabbitmq_server() is None, reason="no rabbitmq-server")
def test_with_a_real_database_broker_and_prometheus(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = StackConfig(
        run_dir=run, port_base=free_ports(plan.PORT_OFFSET_MAX + 1)[0], env={"MARK": str(run)}
    )
    stack = Stack(config, command_of=fake)
    with stack:
        wait_until(
            lambda: set(states(stack).values()) == {State.UP},
            WAIT_SECONDS_MAX,
            what="all of it answers at once",
        )
        assert {"mongod-0", "rabbitmq", "rabbitmq-epmd"} <= set(states(stack))
        assert stack.mongo_uri in (run / "crm.log").read_text()
        stack.kill("rabbitmq")
        assert states(stack)["rabbitmq"] is State.DOWN
        stack.restart("rabbitmq")
        stack.restart("mongod-0")
        wait_until(
            lambda: set(states(stack).values()) == {State.UP},
            WAIT_SECONDS_MAX,
            what="all of it answers again",
        )
    assert living(run) == set()
    assert json.loads((run / "stack.json").read_text())["port_base"] == config.port_base
