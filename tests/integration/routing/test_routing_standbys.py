"""Two routers of one region over a real journal: both serve, one leads, and the other takes over."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.integration.routing.routing_parties import DEADLINE_SECONDS, until

from callmesh.routing.v1 import (
    agent_pb2_grpc,
    call_pb2,
    directory_pb2,
    directory_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from callmesh_sdk import Client, Desk, Homing, Options
from chassis.localstack import free_ports
from chassis.mongo import connect, disconnect
from chassis.server import Server
from chassis.testing.grpc import loopback_settings
from chassis.testing.waiting import eventually
from routing import image
from routing.config import RoutingSettings
from routing.relay import MongoTail
from routing.scopes import SCOPES
from routing.server import Router
from routing.snapshots import MongoSnapshots, ShardSnapshots, SnapshotOptions

pytestmark = pytest.mark.integration


class Seat:
    """A desktop that takes whatever it is offered. Its own router is `home`, `other` while that is away."""

    def __init__(self, home: Node, other: Node) -> None:
        soon = Homing(
            ask_seconds=0.1, trust_seconds=0.2, spread_seconds=0.1, idle_seconds=0.05, look_seconds=0.05
        )
        addresses, backups = {"routing": [home.address]}, {"routing": [other.address]}
        self._client = Client(Options(addresses=addresses, backups=backups, homing=soon))
        self.desk = Desk(self._client, "agents/ann")
        #: Calls offered, connected and ended, in order, each with the router where the desk sat.
        self.told: list[tuple[str, str, str]] = []
        self._working = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        async for event in self.desk.events():
            match event.WhichOneof("event"):
                case "offer":
                    self._note("offer", event.offer.call.call_id)
                    await self.desk.accept(event.offer.offer_id)
                case "connected":
                    self._note("connected", event.connected.call.call_id)
                case "ended":
                    self._note("ended", event.ended.call_id)
                    await self.desk.wrap_up(event.ended.call_id, call_pb2.Disposition(code="done"))

    def _note(self, kind: str, call_id: str) -> None:
        self.told.append((kind, call_id, self.desk.address))

    async def until(self, condition: Any) -> None:
        """Waits for something, and fails with what the desk failed with."""
        await eventually(lambda: self._working.done() or condition())
        assert not self._working.done() or self._working.result()

    async def __aenter__(self) -> Seat:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._working.cancel()
        await asyncio.gather(self._working, return_exceptions=True)
        await self._client.close()


class Node:
    """A router with its server and a client of it."""

    def __init__(self, settings: RoutingSettings) -> None:
        self.settings = settings
        self.address = f"127.0.0.1:{settings.grpc_port}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.routing = routing_pb2_grpc.RoutingServiceStub(self.channel)
        self.agents = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.directory = directory_pb2_grpc.DirectoryServiceStub(self.channel)
        self.router: Router
        self.server: Server | None = None

    async def start(self) -> None:
        self.router = Router(self.settings)
        self.server = Server(self.settings, self.router.services(), scopes=SCOPES)
        await self.server.start(self.router.start)
        await eventually(lambda: self.router.leader.ready)

    async def stop(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            await server.stop(None)
            await self.router.stop()

    def call(self, call_id: str, **fields: Any) -> Any:
        request = call_pb2.CallRequest(call_id=call_id, queue="queues/service", **fields)
        return self.routing.RouteCall(routing_pb2.RouteCallRequest(call=request))


@pytest_asyncio.fixture
async def nodes(mongo_uri: str, mongo_database: str, tmp_path: Path) -> AsyncIterator[list[Node]]:
    key = tmp_path / "place-token.key"
    key.write_bytes(secrets.token_hex(32).encode())
    ports = free_ports(2)
    peers = ",".join(f"beijing=127.0.0.1:{port}" for port in ports)
    found = []
    for number, port in enumerate(ports):
        settings = RoutingSettings(
            region="beijing",
            instance=f"r{number}",
            peers=peers,
            advertise=f"127.0.0.1:{port}",
            mongo_uri=mongo_uri,
            mongo_database=mongo_database,
            place_token_key_file=str(key),
            heartbeat_seconds=0.15,
            # Both are one process: what holds up the one for a moment is not to make the other lead.
            takeover_seconds=1.5,
            outage_seconds=10.0,
            reattach_seconds=0.5,
        )
        found.append(Node(loopback_settings(settings, grpc_port=port)))
    connect(found[0].settings)
    for node in found:
        await node.start()
    directory = found[1].directory
    place = {"latitude": 39.9, "longitude": 116.4}
    await directory.CreateRegion(
        directory_pb2.CreateRegionRequest(region_id="beijing", region=directory_pb2.Region(location=place))
    )
    await directory.CreateQueue(
        directory_pb2.CreateQueueRequest(queue_id="service", queue=directory_pb2.Queue())
    )
    await directory.CreateAgent(
        directory_pb2.CreateAgentRequest(
            agent_id="ann", agent=directory_pb2.Agent(region="regions/beijing", address="sip:ann")
        )
    )
    await eventually(lambda: all("ann" in node.router.leader.state.agents for node in found))
    await eventually(lambda: all(node.router.queues and node.router.links["beijing"].up for node in found))
    await eventually(lambda: all(node.router.peers.load("beijing", "service") for node in found))
    yield found
    for node in found:
        await node.stop()
        await node.channel.close()
    disconnect()


async def test_a_call_at_the_standbys_front_outlives_the_leader(
    nodes: list[Node], mongo_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream goes on; the agent, whose router is the lost one, comes through the other, stays for the
    conversation, and goes home to her own router when she is free.
    """
    monkeypatch.setattr("callmesh_sdk.desk.MOVE_SECONDS_MAX", DEADLINE_SECONDS)
    leader, standby = nodes
    assert leader.router.leader.leading and not standby.router.leader.leading
    assert standby.router.who_leads("beijing") == leader.router.address
    stream = standby.call("c1", caller_number="+861064000000")
    queued = await until(stream, "queued")
    assert queued.shard == "beijing" and queued.epoch == leader.router.leader.epoch
    # The worker's part, while they run: a snapshot of what was committed.
    database = mongo_client[standby.settings.mongo_database]
    maker = ShardSnapshots(
        "beijing",
        MongoTail(database),
        MongoSnapshots(database),
        SnapshotOptions(events=1),
        lambda shard: 0,
    )
    await asyncio.to_thread(maker.step)
    made = MongoSnapshots(database).manifests("beijing")
    assert made and "c1" in image.restore("beijing", MongoSnapshots(database).parts(made[0])).calls
    await leader.stop()
    await eventually(lambda: standby.router.leader.leading)
    async with Seat(leader, standby) as seat:
        accepted = await until(stream, "accepted")
        assert seat.told == [("offer", "c1", standby.address)]
        assert accepted.epoch == standby.router.leader.epoch > queued.epoch
        request = routing_pb2.ConfirmCallRequest(
            call_id="c1",
            offer_id=accepted.accepted.offer_id,
            version=accepted.version,
            shard=accepted.shard,
        )
        # The other one is back, begins at the snapshot, and is a front for the call as well.
        await leader.start()
        assert not leader.router.leader.leading and "c1" in leader.router.leader.state.calls
        await eventually(lambda: leader.router.links["beijing"].up)
        assert (await leader.routing.ConfirmCall(request)).confirmed
        await seat.until(lambda: len(seat.told) == 2)
        # Her router is well again, but she has a call in hand.
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert seat.desk.address == standby.address
        first = seat.desk.session
        await leader.routing.EndCall(routing_pb2.EndCallRequest(call_id="c1", shard="beijing", attempt=1))
        await seat.until(lambda: seat.desk.address == leader.address)
        assert seat.desk.session > first
        later = standby.call("c2", caller_number="+861064000000")
        accepted = await until(later, "accepted")
        assert seat.told[-1] == ("offer", "c2", leader.address)
        assert [kind for kind, call, _ in seat.told if call == "c1"] == ["offer", "connected", "ended"]
        request = routing_pb2.ConfirmCallRequest(
            call_id="c2", offer_id=accepted.accepted.offer_id, version=accepted.version, shard=accepted.shard
        )
        assert (await standby.routing.ConfirmCall(request)).confirmed
        await seat.until(lambda: seat.told[-1] == ("connected", "c2", leader.address))
    stream.cancel()
    later.cancel()
