"""Two regions' routers: calls go home, overflow, outlive a lost region and a router's restart."""

from __future__ import annotations

import asyncio
import functools
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.integration.routing.routing_parties import DEADLINE_SECONDS, Seat, consent, until
from typer.testing import CliRunner

from callmesh.routing.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    call_pb2,
    directory_pb2,
    directory_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from chassis.localstack import free_ports
from chassis.mongo import connect, disconnect
from chassis.server import Server
from chassis.testing.grpc import loopback_settings
from chassis.testing.waiting import eventually
from cli.directory import Refused
from cli.main import app
from routing.config import RoutingSettings
from routing.scopes import SCOPES
from routing.server import Router

pytestmark = pytest.mark.integration
#: A router that is silent for longer than this is lost: far more than a busy machine holds up a process, but
#: where a test waits for it.
SILENT_SECONDS, SOON_SILENT_SECONDS = 3.0, 1.0
soon_silent = pytest.mark.parametrize("centres", [SOON_SILENT_SECONDS], indirect=True)
NUMBERS = {"beijing": "+861064000000", "shanghai": "+862164000000"}
PLACES = {"beijing": (39.9, 116.4, "CN/北京"), "shanghai": (31.2, 121.5, "CN/上海")}


class Centre:
    """A region's router, its server and a client of it."""

    def __init__(self, settings: RoutingSettings) -> None:
        self.settings = settings
        self.region = settings.region
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{settings.grpc_port}", options=[("grpc.max_reconnect_backoff_ms", 200)]
        )
        self.routing = routing_pb2_grpc.RoutingServiceStub(self.channel)
        self.agents = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.directory = directory_pb2_grpc.DirectoryServiceStub(self.channel)
        self.router: Router
        self.server: Server | None = None

    async def start(self) -> None:
        self.router = Router(self.settings)
        self.server = Server(self.settings, self.router.services(), scopes=SCOPES)
        await self.server.start(self.router.start)
        await asyncio.wait_for(self.router.leader.wait_until_leading(), DEADLINE_SECONDS)

    async def stop(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            await server.stop(None)
            await self.router.stop()

    def call(self, call_id: str, home: str, **fields: Any) -> Any:
        request = call_pb2.CallRequest(
            call_id=call_id, queue="queues/service", caller_number=NUMBERS[home], **fields
        )
        return self.routing.RouteCall(routing_pb2.RouteCallRequest(call=request))

    def seat(self, agent: str) -> Seat:
        return Seat(self.agents, agent)


async def furnish(centres: dict[str, Centre]) -> None:
    """Both regions, one queue, one agent each."""
    directory = centres["beijing"].directory
    for region, (latitude, longitude, area) in PLACES.items():
        await directory.CreateRegion(
            directory_pb2.CreateRegionRequest(
                region_id=region,
                region=directory_pb2.Region(
                    location={"latitude": latitude, "longitude": longitude}, served_areas=[area]
                ),
            )
        )
    await directory.CreateQueue(
        directory_pb2.CreateQueueRequest(
            queue_id="service", queue=directory_pb2.Queue(overflow_threshold={"nanos": 200_000_000})
        )
    )
    for region in PLACES:
        await directory.CreateAgent(
            directory_pb2.CreateAgentRequest(
                agent_id=f"{region}-a", agent=directory_pb2.Agent(region=f"regions/{region}")
            )
        )
    for centre in centres.values():
        router = centre.router
        await eventually(lambda router=router: len(router.leader.state.agents) == 1 and bool(router.queues))
        await eventually(lambda router=router: all(router.peers.load(r, "service") for r in PLACES))


@pytest_asyncio.fixture
async def centres(
    mongo_uri: str, mongo_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[dict[str, Centre]]:
    key = tmp_path / "place-token.key"
    key.write_bytes(secrets.token_hex(32).encode())
    ports = dict(zip(PLACES, free_ports(len(PLACES)), strict=True))
    peers = ",".join(f"{region}=127.0.0.1:{port}" for region, port in ports.items())
    found: dict[str, Centre] = {}
    for region, port in ports.items():
        base = RoutingSettings(
            region=region,
            peers=peers,
            mongo_uri=mongo_uri,
            mongo_database=mongo_database,
            place_token_key_file=str(key),
            heartbeat_seconds=0.1,
            takeover_seconds=0.3,
            silent_seconds=getattr(request, "param", SILENT_SECONDS),
            # A busy machine's disk takes a while now and then, which is no outage.
            outage_seconds=10.0,
            grace_seconds=2.0,
            reattach_seconds=0.5,
        )
        found[region] = Centre(loopback_settings(base, grpc_port=port))
    connect(found["beijing"].settings)
    for centre in found.values():
        await centre.start()
    await furnish(found)
    yield found
    for centre in found.values():
        await centre.stop()
        await centre.channel.close()
    disconnect()


async def known_everywhere(centres: dict[str, Centre]) -> None:
    """Every router has heard of both regions' free agent: until then it may place a call elsewhere."""
    for centre in centres.values():
        peers = centre.router.peers
        await eventually(
            lambda peers=peers: all(
                (load := peers.load(region, "service")) is not None and load.agents_free == 1
                for region in PLACES
            )
        )


async def test_a_call_goes_home_through_any_router(centres: dict[str, Centre]) -> None:
    seat = centres["shanghai"].seat("shanghai-a")
    await until(seat.stream, "status")
    stream = centres["beijing"].call("c1", "shanghai")
    queued = await until(stream, "queued")
    assert (queued.shard, queued.queued.home_region) == ("shanghai", "regions/shanghai")
    seat.send(accept={"offer_id": (await until(seat.stream, "offer")).offer.offer_id})
    event = await until(stream, "accepted")
    request = routing_pb2.ConfirmCallRequest(
        call_id="c1", offer_id=event.accepted.offer_id, version=event.version, shard=event.shard
    )
    assert (await centres["beijing"].routing.ConfirmCall(request)).confirmed
    call = await centres["beijing"].routing.GetCall(routing_pb2.GetCallRequest(name="calls/c1"))
    assert call.state == call_pb2.CALL_STATE_CONNECTED and call.region == "regions/shanghai"
    stream.cancel()


async def test_a_drained_region_gets_no_call_until_it_is_resumed(centres: dict[str, Centre]) -> None:
    here, region = centres["beijing"], "regions/shanghai"
    for seat in (here.seat("beijing-a"), centres["shanghai"].seat("shanghai-a")):
        await seat.until("status")
    await known_everywhere(centres)
    numbers = itertools.count()

    async def place_until(shard: str) -> None:
        """Places one call of Shanghai after the other until one is placed there."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            placed = ""
            while placed != shard:
                stream = here.call(f"c{next(numbers)}", "shanghai")
                placed = (await until(stream, "queued")).shard
                stream.cancel()

    await place_until("shanghai")
    assert next(numbers) == 1, "the first goes home"
    drain = directory_pb2.DrainRegionRequest(name=region, reason="power works")
    assert (await here.directory.DrainRegion(drain)).state == directory_pb2.REGION_STATE_DRAINING
    await place_until("beijing")
    assert (await here.directory.ResumeRegion(directory_pb2.ResumeRegionRequest(name=region))).name == region
    await place_until("shanghai")


async def test_an_operator_drains_resumes_and_shifts_by_command(centres: dict[str, Centre]) -> None:
    here = centres["beijing"]
    address = f"127.0.0.1:{here.settings.grpc_port}"
    stream = here.call("c1", "shanghai")
    assert (await until(stream, "queued")).shard == "shanghai"
    # Somebody is there, in a pause: no reason to overflow.
    seat = Seat(here.agents, "beijing-a", state=agent_pb2.AGENT_STATE_PAUSED)
    await seat.until("status")

    async def callmesh(*words: str) -> str:
        run = functools.partial(CliRunner().invoke, app, ["region", *words, "--address", address])
        result = await asyncio.to_thread(run, env={"COLUMNS": "200"})
        if result.exception is not None:
            raise result.exception
        return result.output

    assert await callmesh("drain", "shanghai", "--move-waiting", "--reason", "power") == "shanghai drains.\n"
    moved = (await until(stream, "moved")).moved
    assert (moved.region, moved.reason) == ("regions/beijing", "DRAINING")
    listed = await callmesh("list")
    # How wide the table is, is the terminal's affair.
    assert "DRAINING with its waiting" in listed and "CN/北京" in listed
    assert await callmesh("resume", "shanghai") == "shanghai takes calls.\n"
    assert await callmesh("shift", "shanghai", "60") == "shanghai has weight 60.\n"
    rows = [line.split()[:3] for line in (await callmesh("list")).splitlines()]
    assert ["shanghai", "UP", "60"] in rows and ["beijing", "UP", "100"] in rows
    with pytest.raises(Refused, match="regions/mars"):
        await callmesh("drain", "mars")
    with pytest.raises(SystemExit):
        await callmesh("shift", "shanghai", "0")
    stream.cancel()


async def test_a_waiting_call_moves_to_a_region_with_a_free_agent(centres: dict[str, Centre]) -> None:
    """Shanghai has nobody: its call waits past the threshold, then Beijing's agent logs in and gets it."""
    stream = centres["shanghai"].call("c1", "shanghai")
    queued = await until(stream, "queued")
    assert queued.shard == "shanghai"
    seat = centres["beijing"].seat("beijing-a")
    offer = (await until(seat.stream, "offer")).offer
    assert offer.call.call_id == "c1" and offer.call.home_region == "regions/shanghai"
    moved = await until(stream, "moved")
    assert moved.moved.region == "regions/beijing"
    source = centres["shanghai"].router.leader.state
    await eventually(lambda: source.calls["c1"].outcome is not None)
    assert source.calls["c1"].outcome == "moved", "the source must let it go"
    stream.cancel()


@soon_silent
async def test_waiting_calls_of_a_lost_region_are_placed_elsewhere(centres: dict[str, Centre]) -> None:
    stream = centres["beijing"].call("c1", "shanghai")
    assert (await until(stream, "queued")).shard == "shanghai"
    await centres["shanghai"].stop()
    moved = await until(stream, "moved")
    assert moved.moved.region == "regions/beijing"
    queued = await until(stream, "queued")
    assert queued.shard == "beijing" and queued.version.move == 2
    again = centres["beijing"].call("c2", "shanghai")
    assert (await until(again, "queued")).shard == "beijing", "a region that is down takes no new calls"
    again.cancel()
    stream.cancel()


@soon_silent
async def test_a_restarted_leader_forgets_nothing(centres: dict[str, Centre]) -> None:
    """A call waits in Shanghai, fronted by Beijing; Shanghai's router comes back and the stream goes on."""
    stream = centres["beijing"].call("c1", "shanghai")
    first = await until(stream, "queued")
    await centres["shanghai"].stop()
    await centres["shanghai"].start()
    leader = centres["shanghai"].router.leader
    assert leader.epoch > first.epoch
    # Its caller is told nothing: nothing has happened to it.
    await eventually(lambda: "c1" in leader.state.calls and leader.state.calls["c1"].attached)
    seat = centres["shanghai"].seat("shanghai-a")
    async with asyncio.timeout(DEADLINE_SECONDS):
        offer = None
        while offer is None:
            event = await seat.stream.read()
            offer = event.offer if event.WhichOneof("event") == "offer" else None
    assert offer.call.call_id == "c1"
    stream.cancel()


@soon_silent
async def test_an_edge_reopens_anywhere_and_connects_once(centres: dict[str, Centre]) -> None:
    """Its front dies: the edge opens the call at the other router with the token, and keeps its place."""
    stream = centres["shanghai"].call("c1", "shanghai")
    token = (await until(stream, "queued")).queued.place_token
    await centres["shanghai"].stop()
    again = centres["beijing"].call("c1", "shanghai", attempt=2, place_token=token)
    queued = await until(again, "queued")
    assert queued.version.attempt == 2 and queued.shard == "beijing"
    waited = centres["beijing"].router.leader.state.calls["c1"]
    assert waited.queued_ms <= queued.event_time.ToMilliseconds()
    again.cancel()


async def test_a_placement_whose_answer_was_lost_connects_nowhere(
    centres: dict[str, Centre], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beijing takes the call and nobody hears of it; its agent accepts. The front tries the next region."""
    here, there = (centres[region].seat(f"{region}-a") for region in ("beijing", "shanghai"))
    for seat in (here, there):
        await seat.until("status")
    await known_everywhere(centres)
    router = centres["shanghai"].router
    monkeypatch.setattr(router.front, "_options", replace(router.front._options, place_seconds=0.3))
    monkeypatch.setattr(router.links["beijing"], "_take", lambda message: None)
    stream = centres["shanghai"].call("c1", "beijing")
    stale = (await here.until("offer")).offer
    here.send(accept={"offer_id": stale.offer_id})
    assert (await until(stream, "queued")).shard == "shanghai"
    assert (await there.accept()).call_id == "c1"
    accepted = await until(stream, "accepted")
    assert (await centres["shanghai"].routing.ConfirmCall(consent(accepted, "c1"))).confirmed
    assert (await here.until("offer_gone")).offer_gone.offer_id == stale.offer_id
    left_behind = centres["beijing"].router.leader.state
    assert left_behind.calls["c1"].outcome == "moved" and not left_behind.agents["beijing-a"].calls
    late = routing_pb2.ConfirmCallRequest(
        call_id="c1", offer_id=stale.offer_id, version={"attempt": 1, "move": 1}, shard="beijing"
    )
    answer = await centres["beijing"].routing.ConfirmCall(late)
    assert not answer.confirmed and answer.refusal
    stream.cancel()


async def test_a_conversation_is_handed_on_to_another_regions_agent(centres: dict[str, Centre]) -> None:
    here, there = (centres[region].seat(f"{region}-a") for region in ("beijing", "shanghai"))
    for seat in (here, there):
        await seat.until("status")
    await known_everywhere(centres)
    stream = centres["shanghai"].call("c1", "beijing")
    await here.accept()
    event = await until(stream, "accepted")
    assert (await centres["shanghai"].routing.ConfirmCall(consent(event, "c1"))).confirmed
    await until(stream, "connected")
    await centres["beijing"].routing.TransferCall(
        routing_pb2.TransferCallRequest(name="calls/c1", agent="agents/shanghai-a")
    )
    assert (await here.until("ended")).ended.call_id == "c1"
    assert (await there.accept()).call_id == "c1"
    event = await until(stream, "accepted")
    assert event.shard == "shanghai"
    assert (await centres["shanghai"].routing.ConfirmCall(consent(event, "c1"))).agent == "agents/shanghai-a"
    stream.cancel()


async def test_a_preferred_agent_of_another_region_is_tried_first(centres: dict[str, Centre]) -> None:
    here, there = (centres[region].seat(f"{region}-a") for region in ("beijing", "shanghai"))
    for seat in (here, there):
        await seat.until("status")
    await known_everywhere(centres)
    asked = call_pb2.CallRequest(
        queue="queues/service", caller_number=NUMBERS["beijing"], preferred_agent="agents/shanghai-a"
    )
    told = await centres["beijing"].routing.ExplainRoute(routing_pb2.ExplainRouteRequest(call=asked))
    assert told.region == "regions/shanghai", "as the call itself goes"
    assert told.summary.startswith("The agent asked for, shanghai-a, is logged in at shanghai. ")
    stream = centres["beijing"].call("c1", "beijing", preferred_agent="agents/shanghai-a")
    assert (await there.accept()).home_region == "regions/beijing"
    stream.cancel()
