"""The examples that partners begin with, against the real platform: an edge, a desktop, a follower of events
that is killed and whose server is killed, an edge in Node.js, and the people of a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.platform_parties import (
    CLOCK_SPEED,
    RECOVERY_SECONDS,
    WAIT_SECONDS,
    Wire,
    _create_agent,
    _queue,
    _until_known,
)

from callmesh.crm.v1 import customers_pb2, customers_pb2_grpc
from callmesh.routing.v1 import call_pb2, directory_pb2
from callmesh_sdk import Caller, Client, Desk, FailedPrecondition, InvalidArgument, NotFound, Options
from cli import sandbox_people
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "examples" / "node"
QUEUE = "partner-kit"
#: How long `npm ci` may take on a slow network.
NPM_SECONDS = 120


class Example:
    """A running example; its output is JSON, one object a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []

    async def until(self, wanted: Any, seconds: float = RECOVERY_SECONDS) -> dict[str, Any]:
        """Reads on until a line satisfies `wanted`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            while True:
                line = await self.process.stdout.readline()
                assert line, f"ended after {self.said}"
                self.said.append(json.loads(line))
                if wanted(self.said[-1]):
                    return self.said[-1]

    async def end(self, seconds: float = RECOVERY_SECONDS) -> int:
        """Reads to the end; the exit status."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            while line := await self.process.stdout.readline():
                self.said.append(json.loads(line))
            return await self.process.wait()


@contextlib.asynccontextmanager
async def started(*command: str) -> AsyncIterator[Example]:
    """An example as a process of its own, gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "services")},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Example(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def python(name: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, f"examples/{name}.py", *arguments


async def furnish(wire: Wire, agent: str) -> str:
    """A queue of the test's own with one agent; the agent's name."""
    directory = wire.directory
    await directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=agent))
    await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=agent, queue=_queue(agent)))
    await _create_agent(directory, agent, agent, "beijing")
    await _until_known(wire, agent, "beijing")
    return f"agents/{agent}"


async def test_an_edge_and_a_desktop_made_with_the_sdk(platform_stack: Stack, wire: Wire) -> None:
    routing = platform_stack.address("routing", "beijing")
    agent = await furnish(wire, f"{QUEUE}-python")
    desk = python("desktop", "--routing", routing, "--agent", agent, "--calls", "1")
    edge = python(
        *("edge", "--routing", routing, "--queue", f"queues/{QUEUE}-python", "--number", "+861064001777")
    )
    # The call is there before the agent, so that its stream breaks while it waits.
    async with started(*edge) as caller, started(*desk) as desktop:
        assert await caller.end() == 0, caller.said
        assert await desktop.end() == 0, desktop.said
    kinds = [said.get("event") for said in caller.said]
    assert kinds[0] == "queued" and kinds.index("accepted") < kinds.index("confirmation")
    assert caller.said[-1]["outcome"] == "CALL_OUTCOME_COMPLETED" and caller.said[-1]["attempts"] == 2
    ended = next(said for said in desktop.said if said.get("event") == "ended")
    assert ended["call"] == caller.said[-1]["call"]


async def test_a_follower_of_events_misses_nothing_when_it_or_the_server_is_killed(
    platform_stack: Stack, tmp_path: Path
) -> None:
    address, key = platform_stack.address("crm"), secrets.token_hex(3)
    options = Options(addresses={"crm": [address]}, language="zh-CN")
    follow = python(
        *("follower", "--service", "crm", "--address", address, "--cursor-file", str(tmp_path / "cursor")),
        *("--types", "callmesh.crm.v1.CustomerCreated"),
    )
    wanted = [f"customers/kit-{key}-{n}" for n in range(6)]

    def is_(subject: str) -> Any:
        return lambda said: said["subject"] == subject

    async with Client(options) as client:
        customers: Any = client.stub(customers_pb2_grpc.CustomerServiceStub)

        async def create(*subjects: str) -> None:
            for subject in subjects:
                request = customers_pb2.CreateCustomerRequest(
                    customer_id=subject[10:], customer=customers_pb2.Customer(display_name="客户")
                )
                # A request_id is filled in, so this is repeated while the server is away.
                await customers.CreateCustomer(request, timeout=WAIT_SECONDS)

        async with started(*follow) as first:
            await create(*wanted[:2])
            await first.until(is_(wanted[1]))
            first.process.kill()
            await first.process.wait()
        await create(wanted[2])
        async with started(*follow) as second:
            await second.until(is_(wanted[2]))
            await asyncio.to_thread(platform_stack.kill, "crm")
            back = asyncio.create_task(asyncio.to_thread(platform_stack.restart, "crm"))
            await back
            await create(*wanted[3:])
            await second.until(is_(wanted[5]))
        with pytest.raises(NotFound) as missing:
            await customers.GetCustomer(customers_pb2.GetCustomerRequest(name="customers/nobody"))
        assert str(missing.value).startswith("未找到") and missing.value.domain == "callmesh.crm"
        with pytest.raises(InvalidArgument) as bad:
            await customers.ListCustomers(customers_pb2.ListCustomersRequest(page_size=-1))
        assert bad.value.fields == {"page_size": "不能为负数，收到 -1"}
    seen = [said["subject"] for said in first.said + second.said if said["subject"] in wanted]
    # The event that the first was at when it died may come again; nothing else does, and nothing is left out.
    assert list(dict.fromkeys(seen)) == wanted and len(seen) <= len(wanted) + 1
    ids = [said["id"] for said in second.said]
    assert len(set(ids)) == len(ids)


def node_modules() -> None:
    """Installs what the lock names, once for one lock; skips where that cannot be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    digest = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()
    stamp = NODE / "node_modules" / ".of-lock"
    if stamp.exists() and stamp.read_text() == digest:
        return
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    try:
        done = subprocess.run(
            command, cwd=NODE, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm cannot install the example's packages: not within {NPM_SECONDS} s")
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the example's packages: {done.stderr.strip()[-200:]}")
    stamp.write_text(digest)


async def test_an_edge_in_node_js_works_from_the_contract_alone(platform_stack: Stack, wire: Wire) -> None:
    await asyncio.to_thread(node_modules)
    subprocess.run([sys.executable, "tools/make_proto_deps.py"], cwd=ROOT, check=True, capture_output=True)
    routing = platform_stack.address("routing", "beijing")
    agent = await furnish(wire, f"{QUEUE}-node")
    desk = python("desktop", "--routing", routing, "--agent", agent, "--calls", "1")
    edge = (
        *("node", "examples/node/edge.js", "--routing", routing, "--queue", f"queues/{QUEUE}-node"),
        *("--number", "+861064001778", "--protos", "proto", "--protos", "build/proto-deps"),
    )
    async with started(*edge) as caller, started(*desk) as desktop:
        assert await caller.end() == 0, caller.said
        assert await desktop.end() == 0, desktop.said
    refused = caller.said[0]["refused"]
    assert refused["code"] == "INVALID_ARGUMENT" and refused["fields"] == ["name"]
    assert any("\u4e00" <= letter <= "\u9fff" for letter in refused["text"]), refused
    assert {"type": "callmesh.routing.v1.CallEnded"}.items() <= caller.said[-2]["told"].items()
    assert caller.said[-1]["outcome"] == "CALL_OUTCOME_COMPLETED"


def test_the_lock_of_the_node_example_names_no_place() -> None:
    lock = json.loads((NODE / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages and all("integrity" in package for package in packages.values())
    assert not any("resolved" in package for package in packages.values())


async def outcome(client: Client, number: str, queue: str = sandbox_people.QUEUE) -> tuple[list[str], str]:
    """(what a caller saw, how the call ended) of one call; the edge ends what the agent does not."""
    call = call_pb2.CallRequest(
        call_id=f"sandbox-{secrets.token_hex(6)}", caller_number=number, queue=f"queues/{queue}"
    )
    caller, kinds = Caller(client, call), []
    async for event in caller.events():
        kinds.append(event.WhichOneof("event"))
        if kinds[-1] == "accepted":
            await caller.confirm(event)
        elif kinds[-1] == "connected" and not number.endswith("5"):
            return kinds, call_pb2.CallOutcome.Name((await caller.end()).outcome)
        elif kinds[-1] == "ended":
            return kinds, call_pb2.CallOutcome.Name(event.ended.outcome)
    raise AssertionError(kinds)


async def test_the_people_of_a_sandbox_do_what_the_number_says(
    platform_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_people, "TALK_SECONDS", 0.2)
    options = Options(addresses={"routing": [platform_stack.address("routing", "beijing")]})
    async with Client(options) as client, asyncio.timeout(RECOVERY_SECONDS):
        await sandbox_people.furnish(client, scale=CLOCK_SPEED)
        people = asyncio.create_task(sandbox_people.on_duty(client))
        try:
            numbers = ("+861064000000", "+861064000005", "+861064000006", "+861064000009")
            seen = await asyncio.gather(*(outcome(client, number) for number in numbers))
            assert {how for _, how in seen} == {"CALL_OUTCOME_COMPLETED"}
            assert "offer_ended" in seen[2][0] and "ended" in seen[1][0]
            with pytest.raises(FailedPrecondition) as refused:
                await outcome(client, "", sandbox_people.UNSTAFFED)
            assert refused.value.reason == "NO_AGENT_LOGGED_IN"
            # A partner's own desktop is called as soon as it is there.
            desk = Desk(client, f"agents/{sandbox_people.PARTNER}")
            async for event in desk.events():
                if event.WhichOneof("event") == "offer":
                    await desk.accept(event.offer.offer_id)
                elif event.WhichOneof("event") == "ended":
                    break
        finally:
            people.cancel()
            ends = await asyncio.gather(people, return_exceptions=True)
        assert isinstance(ends[0], asyncio.CancelledError), ends
