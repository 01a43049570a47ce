"""Thin gRPC of planning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from callmesh.routing.v1 import menus_pb2, menus_pb2_grpc, planning_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

Filled = TypeVar("Filled", bound="Message")


class Answer(Protocol):
    """Works requests out, elsewhere than on the event loop."""

    async def __call__(self, method: str, request: Message, response: Filled) -> Filled:
        """The response, filled in."""


class PlanningServicer(menus_pb2_grpc.PlanningServiceServicer):
    """For planners."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def ForecastArrivals(
        self, request: menus_pb2.ForecastArrivalsRequest, context: Any
    ) -> menus_pb2.ForecastArrivalsResponse:
        return await self._answer("ForecastArrivals", request, menus_pb2.ForecastArrivalsResponse())

    async def PlanStaffing(
        self, request: menus_pb2.PlanStaffingRequest, context: Any
    ) -> menus_pb2.PlanStaffingResponse:
        return await self._answer("PlanStaffing", request, menus_pb2.PlanStaffingResponse())

    async def GetAdherence(
        self, request: planning_pb2.GetAdherenceRequest, context: Any
    ) -> planning_pb2.GetAdherenceResponse:
        return await self._answer("GetAdherence", request, planning_pb2.GetAdherenceResponse())


def planning_binding(answer: Answer) -> tuple[Any, Any, Any]:
    """(descriptor, add function, servicer)."""
    return (
        menus_pb2.DESCRIPTOR.services_by_name["PlanningService"],
        menus_pb2_grpc.add_PlanningServiceServicer_to_server,
        PlanningServicer(answer),
    )
