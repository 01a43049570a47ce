"""The drill: a backup while customers, tickets and calls are being acknowledged, restored into an empty
replica set, on which the services then start. Nothing that was acknowledged before the backup began is
missing.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pymongo
import pytest
from google.protobuf.message import Message
from tests.e2e.platform_parties import WAIT_SECONDS, Wire, eventually

from callmesh.crm.v1 import customers_pb2
from callmesh.routing.v1 import call_pb2, routing_pb2
from callmesh.tickets.v1 import ticket_pb2, ticket_service_pb2
from chassis.localstack import HttpReady, MongoNode, ProcessGroup, ServiceSpec, free_ports
from cli import plan
from cli.stack import PLACE_TOKEN_KEY_FILE, Stack, service_environment

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(420)]

#: Acknowledged before the backup begins; more follow while it runs.
ACKNOWLEDGED_MIN = 8
#: From one acknowledgement to the next request: flat out, the load would take the machine from the backup,
#: and leave thousands of customers and tickets to the tests that come after.
PAUSE_SECONDS = 0.05
#: What is started on the restored data.
SERVERS = ("crm", "tickets", "routing-beijing")
START_SECONDS_MAX = 90.0


class Load:
    """Customers, tickets and calls, one after another, each noted when it is acknowledged."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.names: dict[str, list[str]] = {"customers": [], "tickets": [], "calls": []}
        self._streams: list[Any] = []

    async def customers(self) -> None:
        while True:
            made = await self._wire.customers.CreateCustomer(
                customers_pb2.CreateCustomerRequest(customer=customers_pb2.Customer(display_name="Kept"))
            )
            self.names["customers"].append(made.name)
            await asyncio.sleep(PAUSE_SECONDS)

    async def tickets(self) -> None:
        while True:
            ticket = ticket_pb2.Ticket(kind=ticket_pb2.TICKET_KIND_INQUIRY, subject="Kept")
            made = await self._wire.tickets.CreateTicket(
                ticket_service_pb2.CreateTicketRequest(ticket=ticket)
            )
            self.names["tickets"].append(made.name)
            await asyncio.sleep(PAUSE_SECONDS)

    async def calls(self) -> None:
        # Nobody is there to answer: they wait.
        while True:
            id = f"drill-{len(self.names['calls'])}"
            call = call_pb2.CallRequest(
                call_id=id, attempt=1, caller_number="+8613800138000", queue="queues/standby"
            )
            stream = self._wire.routing().RouteCall(routing_pb2.RouteCallRequest(call=call))
            self._streams.append(stream)
            while (await stream.read()).WhichOneof("event") != "queued":
                continue
            self.names["calls"].append(f"calls/{id}")
            await asyncio.sleep(PAUSE_SECONDS)

    async def close(self) -> None:
        for stream in self._streams:
            stream.cancel()


async def command(*words: str, env: dict[str, str]) -> str:
    """What `callmesh` says; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", *words, env=env, stdout=-1, stderr=-2
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def backed_up(stack: Stack, wire: Wire, target: Path) -> tuple[Path, dict[str, list[str]]]:
    """A backup made under load, and what had been acknowledged when it began."""
    load = Load(wire)
    tasks = [asyncio.create_task(each()) for each in (load.customers, load.tickets, load.calls)]
    try:

        async def enough() -> bool:
            for task in tasks:
                assert not task.done(), task.exception()
            return min(map(len, load.names.values())) >= ACKNOWLEDGED_MIN

        await eventually(enough, "enough of each is acknowledged")
        before = {kind: list(names) for kind, names in load.names.items()}
        env = service_environment(stack.config) | {"RUN_DIR": str(stack.config.run_dir)}
        said = await command("backup", str(target), "--quiet", env=env)
        assert all(len(load.names[kind]) > len(names) for kind, names in before.items()), "there was no load"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await load.close()
    (directory,) = target.iterdir()
    assert said.startswith(str(directory))
    return directory, before


@pytest.fixture
def empty_set() -> Iterator[MongoNode]:
    """A replica set that holds nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="callmesh-drill-") as scratch,
        MongoNode(Path(scratch), free_ports(1)[0]) as node,
    ):
        yield node


def servers_on(stack: Stack, node: MongoNode) -> tuple[ProcessGroup, plan.StackConfig]:
    """The servers of a platform on other data, at the clock of the running one."""
    config = replace(
        stack.config,
        run_dir=node.run_dir,
        port_base=free_ports(plan.PORT_OFFSET_MAX + 1)[0],
        mongo_uri=node.uri,
    )
    key = stack.config.run_dir / "secrets"
    env = service_environment(config) | {
        "MONGO_URI": node.uri,
        PLACE_TOKEN_KEY_FILE: str(next(path for path in key.iterdir() if "place" in path.name)),
    }
    specs = [
        ServiceSpec(
            name=process.name,
            command=[sys.executable, "-m", process.module],
            env=process.env,
            ready=HttpReady(url=process.ready_url),
            start_seconds_max=START_SECONDS_MAX,
        )
        for process in plan.servers(config)
        if process.name in SERVERS
    ]
    return ProcessGroup(node.run_dir, specs, env=env, die_with_parent=True), config


def _last_opening(uri: str, shard: str) -> int:
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        (last,) = (
            client["callmesh_routing"]["journal"]
            .find({"_id": {"$regex": f"^{shard}:"}})
            .sort("_id", -1)
            .limit(1)
        )
    return int(last["epoch"])


async def still_there(wire: Wire, names: dict[str, list[str]]) -> list[str]:
    """What the restored services do not know."""
    # Calls first: whose caller does not come back is remembered for a quarter of an hour, at this speed 15 s.
    ask = {
        "calls": (wire.routing().GetCall, routing_pb2.GetCallRequest),
        "customers": (wire.customers.GetCustomer, customers_pb2.GetCustomerRequest),
        "tickets": (wire.tickets.GetTicket, ticket_service_pb2.GetTicketRequest),
    }
    assert ask.keys() == names.keys()
    missing = []
    for kind, (method, request) in ask.items():
        for name in names[kind]:
            try:
                found: Message = await method(request(name=name), timeout=WAIT_SECONDS)
            except grpc.aio.AioRpcError as error:
                missing.append(f"{name}: {error.code().name}")
            else:
                assert getattr(found, "name", name) == name
    return missing


async def test_nothing_acknowledged_before_a_backup_is_missing_after_its_restore(
    platform_stack: Stack, wire: Wire, empty_set: MongoNode, tmp_path: Path
) -> None:
    directory, acknowledged = await backed_up(platform_stack, wire, tmp_path / "backups")
    env = dict(os.environ) | {
        "MONGO_URI": empty_set.uri,
        "PYTHONPATH": service_environment(platform_stack.config)["PYTHONPATH"],
    }
    said = await command("restore", str(directory), "--quiet", env=env)
    assert re.search(r"\d+ documents of .* restored", said)
    epoch = _last_opening(empty_set.uri, "beijing")

    group, config = servers_on(platform_stack, empty_set)
    try:
        await asyncio.to_thread(group.start_all)
        async with Wire(Stack(config)) as restored:
            assert await still_there(restored, acknowledged) == []

            async def placed() -> bool:
                call = call_pb2.CallRequest(
                    call_id="after", attempt=1, caller_number="+8613800138000", queue="queues/standby"
                )
                stream = restored.routing().RouteCall(routing_pb2.RouteCallRequest(call=call))
                with suppress(grpc.aio.AioRpcError):
                    return (await stream.read()) is not grpc.aio.EOF
                return False

            await eventually(placed, "the restored platform takes calls")
        # Its own opening block stands above the restored journal: the old leader's blocks fit nowhere.
        assert _last_opening(empty_set.uri, "beijing") > epoch
    finally:
        await asyncio.to_thread(group.stop_all)
