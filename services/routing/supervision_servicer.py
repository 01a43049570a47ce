"""Thin gRPC of supervision. What changes the directory blocks, so those methods are plain functions run in
the thread pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from callmesh.routing.v1 import agent_pb2, directory_pb2, supervision_pb2_grpc
from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.callcontext import current_identity, remaining_seconds
from chassis.errors import ResourceExhausted, Unimplemented
from routing.seizure import SEIZE_SECONDS_MAX, Seizer
from routing.supervision_directory import SupervisionDirectory
from routing.supervision_handlers import SupervisionHandlers

#: Goes through a past day, somewhere else than on the event loop.
SimulateDay = Callable[[pb.SimulateDayRequest], Awaitable[pb.SimulateDayResponse]]
#: A reader who leaves a message unread this long is cut off, real seconds.
STALL_SECONDS = 10.0


class StreamStalled(ResourceExhausted):
    """The stream was left unread; open it again."""

    reason = "STREAM_STALLED"


class SupervisionServicer(supervision_pb2_grpc.SupervisionServiceServicer):
    """For supervisors."""

    def __init__(
        self,
        handlers: SupervisionHandlers,
        directory: SupervisionDirectory,
        simulate: SimulateDay | None = None,
        *,
        seizer: Seizer | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._handlers = handlers
        self._directory = directory
        self._simulate = simulate
        self._seizer = seizer
        self._stall_seconds = stall_seconds

    async def GetStats(self, request: pb.GetStatsRequest, context: Any) -> pb.Stats:
        return await self._handlers.get_stats(request)

    async def WatchStats(self, request: pb.WatchStatsRequest, context: Any) -> None:
        # Written by hand: a generator could not be woken while its reader stalls.
        async with aclosing(self._handlers.watch_stats(request)) as stream:
            async for message in stream:
                try:
                    async with asyncio.timeout(self._stall_seconds):
                        await context.write(message)
                except TimeoutError:
                    raise StreamStalled(
                        subject="stream", limit=f"unread for {self._stall_seconds:g} s", retry_seconds=1.0
                    ) from None

    async def ListIntervalReports(
        self, request: pb.ListIntervalReportsRequest, context: Any
    ) -> pb.ListIntervalReportsResponse:
        return await self._handlers.list_interval_reports(request)

    async def LogOutAgent(self, request: pb.LogOutAgentRequest, context: Any) -> agent_pb2.AgentStatus:
        return await self._handlers.log_out_agent(request)

    async def PauseAgent(self, request: pb.PauseAgentRequest, context: Any) -> agent_pb2.AgentStatus:
        return await self._handlers.pause_agent(request)

    def ReskillAgents(self, request: pb.ReskillAgentsRequest, context: Any) -> pb.ReskillAgentsResponse:
        return pb.ReskillAgentsResponse(agents=self._directory.reskill(request, current_identity().subject))

    def CloseQueue(self, request: pb.CloseQueueRequest, context: Any) -> directory_pb2.Queue:
        return self._directory.close_queue(request, current_identity().subject)

    def ReopenQueue(self, request: pb.ReopenQueueRequest, context: Any) -> directory_pb2.Queue:
        return self._directory.reopen_queue(request, current_identity().subject)

    async def MonitorCall(self, request: pb.MonitorCallRequest, context: Any) -> pb.MonitorCallResponse:
        return await self._handlers.monitor_call(request)

    async def SeizeShard(self, request: pb.SeizeShardRequest, context: Any) -> pb.SeizeShardResponse:
        if self._seizer is None:
            raise Unimplemented(method="SeizeShard")
        return await self._seizer.seize(request, remaining_seconds(SEIZE_SECONDS_MAX) or 0.0)

    async def SimulateDay(self, request: pb.SimulateDayRequest, context: Any) -> pb.SimulateDayResponse:
        if self._simulate is None:
            raise Unimplemented(method="SimulateDay")
        return await self._simulate(request)

    async def ListActs(self, request: pb.ListActsRequest, context: Any) -> pb.ListActsResponse:
        return await self._handlers.list_acts(request)


def supervision_binding(
    handlers: SupervisionHandlers,
    directory: SupervisionDirectory,
    simulate: SimulateDay | None = None,
    seizer: Seizer | None = None,
) -> tuple[Any, Any, Any]:
    """(descriptor, add function, servicer). Without `simulate`, SimulateDay is not offered, without `seizer`
    SeizeShard.
    """
    return (
        pb.DESCRIPTOR.services_by_name["SupervisionService"],
        supervision_pb2_grpc.add_SupervisionServiceServicer_to_server,
        SupervisionServicer(handlers, directory, simulate, seizer=seizer),
    )
