"""Thin gRPC of planning."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from callmesh.routing.v1 import menus_pb2, menus_pb2_grpc, planning_pb2

#: (method, request, empty response) to the filled response, worked out elsewhere than on the event loop.
Answer = Callable[[str, Any, Any], Awaitable[Any]]


class PlanningServicer(menus_pb2_grpc.PlanningServiceServicer):
    """For planners."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def ForecastArrivals(
        self, request: menus_pb2.ForecastArrivalsRequest, context: Any
    ) -> menus_pb2.ForecastArrivalsResponse:
        response = menus_pb2.ForecastArrivalsResponse()
        await self._answer("ForecastArrivals", request, response)
        return response

    async def PlanStaffing(
        self, request: menus_pb2.PlanStaffingRequest, context: Any
    ) -> menus_pb2.PlanStaffingResponse:
        response = menus_pb2.PlanStaffingResponse()
        await self._answer("PlanStaffing", request, response)
        return response

    async def GetAdherence(
        self, request: planning_pb2.GetAdherenceRequest, context: Any
    ) -> planning_pb2.GetAdherenceResponse:
        response = planning_pb2.GetAdherenceResponse()
        await self._answer("GetAdherence", request, response)
        return response


def planning_binding(answer: Answer) -> tuple[Any, Any, Any]:
    """(descriptor, add function, servicer)."""
    return (
        menus_pb2.DESCRIPTOR.services_by_name["PlanningService"],
        menus_pb2_grpc.add_PlanningServiceServicer_to_server,
        PlanningServicer(answer),
    )
