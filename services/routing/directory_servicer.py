"""Thin gRPC of the directory. Handlers block, so the methods are plain functions run in the thread pool, but
for those that ask the shards too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from google.protobuf.empty_pb2 import Empty

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import directory_pb2 as pb
from callmesh.routing.v1 import directory_pb2_grpc
from chassis.callcontext import current_identity
from chassis.errors import InvalidArgument
from chassis.ids import parse_name, resource_name
from routing.config import RoutingSettings
from routing.directory_file import apply_directory
from routing.directory_handlers import DirectoryHandlers, QueueInUse
from routing.directory_kinds import AGENT, QUEUE, REGION, SKILL
from routing.front import Front
from routing.geo import locate
from routing.model import BEFORE_CONNECTION, AskCalls
from routing.regions import Regions


def _subject() -> str:
    return current_identity().subject


class DirectoryServicer(directory_pb2_grpc.DirectoryServiceServicer):
    """For operators."""

    def __init__(
        self, handlers: DirectoryHandlers, regions: Regions, front: Front, shards: Collection[str]
    ) -> None:
        self._handlers = handlers
        self._regions = regions
        self._front = front
        self._shards = shards

    def CreateRegion(self, request: pb.CreateRegionRequest, context: Any) -> pb.Region:
        return self._handlers.create(REGION, request.region_id, request.region, request, _subject())

    def GetRegion(self, request: pb.GetRegionRequest, context: Any) -> pb.Region:
        return self._handlers.get(REGION, request.name)

    def ListRegions(self, request: pb.ListRegionsRequest, context: Any) -> pb.ListRegionsResponse:
        rows, token = self._handlers.list(REGION, request.page_size, request.page_token)
        return pb.ListRegionsResponse(regions=rows, next_page_token=token)

    def UpdateRegion(self, request: pb.UpdateRegionRequest, context: Any) -> pb.Region:
        return self._handlers.update(REGION, request.region, request.update_mask)

    def DeleteRegion(self, request: pb.DeleteRegionRequest, context: Any) -> Empty:
        self._handlers.delete(REGION, request.name, request.etag)
        return Empty()

    def DrainRegion(self, request: pb.DrainRegionRequest, context: Any) -> pb.Region:
        return self._handlers.set_draining(
            request.name, True, request.reason, move_waiting=request.move_waiting
        )

    def ApplyDirectory(self, request: pb.ApplyDirectoryRequest, context: Any) -> pb.ApplyDirectoryResponse:
        return apply_directory(self._handlers, request)

    def ResumeRegion(self, request: pb.ResumeRegionRequest, context: Any) -> pb.Region:
        return self._handlers.set_draining(request.name, False, request.reason)

    def CreateSkill(self, request: pb.CreateSkillRequest, context: Any) -> pb.Skill:
        return self._handlers.create(SKILL, request.skill_id, request.skill, request, _subject())

    def GetSkill(self, request: pb.GetSkillRequest, context: Any) -> pb.Skill:
        return self._handlers.get(SKILL, request.name)

    def ListSkills(self, request: pb.ListSkillsRequest, context: Any) -> pb.ListSkillsResponse:
        rows, token = self._handlers.list(SKILL, request.page_size, request.page_token)
        return pb.ListSkillsResponse(skills=rows, next_page_token=token)

    def UpdateSkill(self, request: pb.UpdateSkillRequest, context: Any) -> pb.Skill:
        return self._handlers.update(SKILL, request.skill, request.update_mask)

    def DeleteSkill(self, request: pb.DeleteSkillRequest, context: Any) -> Empty:
        self._handlers.delete(SKILL, request.name, request.etag)
        return Empty()

    def CreateQueue(self, request: pb.CreateQueueRequest, context: Any) -> pb.Queue:
        return self._handlers.create(QUEUE, request.queue_id, request.queue, request, _subject())

    def GetQueue(self, request: pb.GetQueueRequest, context: Any) -> pb.Queue:
        return self._handlers.get(QUEUE, request.name)

    def ListQueues(self, request: pb.ListQueuesRequest, context: Any) -> pb.ListQueuesResponse:
        rows, token = self._handlers.list(QUEUE, request.page_size, request.page_token)
        return pb.ListQueuesResponse(queues=rows, next_page_token=token)

    def UpdateQueue(self, request: pb.UpdateQueueRequest, context: Any) -> pb.Queue:
        return self._handlers.update(QUEUE, request.queue, request.update_mask)

    async def DeleteQueue(self, request: pb.DeleteQueueRequest, context: Any) -> Empty:
        await self._check_nobody_waits(request.name)
        await asyncio.to_thread(self._handlers.delete, QUEUE, request.name, request.etag)
        return Empty()

    async def _check_nobody_waits(self, name: str) -> None:
        """Raises QueueInUse, or Unavailable when a region does not say. Who comes in the next moment is
        served all the same: a shard keeps a queue until it is empty.
        """
        queue = parse_name("name", "queues", name)
        question = AskCalls(queue=queue, states=tuple(sorted(BEFORE_CONNECTION)), limit=1)
        for shard in sorted(self._shards):
            if (await self._front.shards.ask(shard, question)).answer.calls:
                why = f"callers wait in it in regions/{shard}; close it (CloseQueue), or wait"
                raise QueueInUse(subject=name, why=why)

    def CreateAgent(self, request: pb.CreateAgentRequest, context: Any) -> pb.Agent:
        return self._handlers.create(AGENT, request.agent_id, request.agent, request, _subject())

    def BatchCreateAgents(
        self, request: pb.BatchCreateAgentsRequest, context: Any
    ) -> pb.BatchCreateAgentsResponse:
        return pb.BatchCreateAgentsResponse(agents=self._handlers.create_agents(request.requests, _subject()))

    def GetAgent(self, request: pb.GetAgentRequest, context: Any) -> pb.Agent:
        return self._handlers.get(AGENT, request.name)

    def ListAgents(self, request: pb.ListAgentsRequest, context: Any) -> pb.ListAgentsResponse:
        where = {"region": parse_name("region", "regions", request.region)} if request.region else {}
        rows, token = self._handlers.list(AGENT, request.page_size, request.page_token, **where)
        return pb.ListAgentsResponse(agents=rows, next_page_token=token)

    def UpdateAgent(self, request: pb.UpdateAgentRequest, context: Any) -> pb.Agent:
        return self._handlers.update(AGENT, request.agent, request.update_mask)

    def DeleteAgent(self, request: pb.DeleteAgentRequest, context: Any) -> Empty:
        self._handlers.delete(AGENT, request.name, request.etag)
        return Empty()

    async def LocateNumber(self, request: pb.LocateNumberRequest, context: Any) -> pb.LocateNumberResponse:
        country = request.default_country or "CN"
        if len(country) != 2 or not country.isascii() or not country.isupper():
            raise InvalidArgument(field="default_country", why='must be an ISO country code such as "CN"')
        found = locate(request.number, default_country=country, field="number")
        home = self._regions.home_of(found)
        point = None
        if found.latitude is not None and found.longitude is not None:
            point = common_pb2.GeoPoint(latitude=found.latitude, longitude=found.longitude)
        return pb.LocateNumberResponse(
            number=found.e164,
            country=found.country,
            province=found.province,
            city=found.city,
            location=point,
            precision=found.precision.value,
            home_region=resource_name("regions", home) if home else "",
        )


def directory_binding(
    settings: RoutingSettings, regions: Regions, front: Front, shards: Collection[str]
) -> tuple[Any, Any, Any]:
    """(descriptor, add function, servicer)."""
    routers = {address for known in settings.routers().values() for address in known}
    return (
        pb.DESCRIPTOR.services_by_name["DirectoryService"],
        directory_pb2_grpc.add_DirectoryServiceServicer_to_server,
        DirectoryServicer(DirectoryHandlers(settings.clock(), routers), regions, front, shards),
    )
