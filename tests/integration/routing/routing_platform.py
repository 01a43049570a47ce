"""One router with its real journal, and clients of it: what these tests run against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tests.integration.routing.routing_parties import DEADLINE_SECONDS

from callmesh.routing.v1 import (
    agent_pb2_grpc,
    call_pb2,
    directory_pb2,
    directory_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from chassis.mongo import connect, disconnect
from chassis.server import Server
from chassis.testing.grpc import loopback_settings
from chassis.testing.waiting import eventually
from routing.config import RoutingSettings
from routing.scopes import SCOPES
from routing.server import Router

REGION, QUEUE, SKILLS = "beijing", "service", ("chinese", "english")


class Clients:
    """Stubs at an address."""

    def __init__(self, address: str, options: Sequence[tuple[str, int]] = ()) -> None:
        self.channel = grpc.aio.insecure_channel(address, options)
        self.routing = routing_pb2_grpc.RoutingServiceStub(self.channel)
        self.agents = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.directory = directory_pb2_grpc.DirectoryServiceStub(self.channel)

    def call(self, call_id: str, **fields: Any) -> Any:
        """The stream of a caller."""
        request = call_pb2.CallRequest(
            **{"call_id": call_id, "queue": f"queues/{QUEUE}", "caller_number": "+861064000000", **fields}
        )
        return self.routing.RouteCall(routing_pb2.RouteCallRequest(call=request))


class RouterPlatform(Clients):
    """A running router and its clients."""

    def __init__(self, address: str, router: Router) -> None:
        super().__init__(address)
        self.address, self.router = address, router

    async def furnish_with(self, agents: Iterable[str], **queue: Any) -> None:
        """A region, two skills, a queue and agents; returns once the shard knows them."""
        place = {"latitude": 39.9, "longitude": 116.4}
        region = directory_pb2.Region(location=place, served_areas=["CN/北京"])
        await self.directory.CreateRegion(directory_pb2.CreateRegionRequest(region_id=REGION, region=region))
        for skill in SKILLS:
            await self.directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=skill))
        wanted = directory_pb2.Queue(skills=[{"skill": SKILLS[0], "level_min": 2}], **queue)
        await self.directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=QUEUE, queue=wanted))
        for agent in (names := list(agents)):
            seat = directory_pb2.Agent(
                region=f"regions/{REGION}", skills={SKILLS[0]: 3}, address=f"sip:{agent}@{REGION}"
            )
            await self.directory.CreateAgent(directory_pb2.CreateAgentRequest(agent_id=agent, agent=seat))
        known = self.router.leader.state.agents
        await eventually(lambda: len(known) == len(names) and QUEUE in self.router.queues)


@asynccontextmanager
async def running_router(
    mongo_uri: str, mongo_database: str, **settings: Any
) -> AsyncIterator[tuple[str, Router]]:
    """(address, router) of a router that leads its shard; `settings` differ from the default."""
    # A busy machine's disk takes a while now and then, which is no outage.
    settings = {"outage_seconds": 10.0, **settings}
    used = loopback_settings(
        RoutingSettings(region=REGION, mongo_uri=mongo_uri, mongo_database=mongo_database, **settings)
    )
    connect(used)
    router = Router(used)
    server = Server(used, router.services(), scopes=SCOPES)
    await server.start(router.start)
    try:
        await asyncio.wait_for(router.leader.wait_until_leading(), DEADLINE_SECONDS)
        yield server.address, router
    finally:
        await server.stop(None)
        await router.stop()
        disconnect()
