"""Thin gRPC of the dialler's lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from callmesh.dialler.v1 import lines_pb2 as pb
from callmesh.dialler.v1 import lines_pb2_grpc
from chassis.errors import InvalidArgument, ResourceExhausted
from routing.planning.lines import ORDERS_MAX, RETRY_SECONDS, Gateway, Gateways

#: A gateway says who it is within this, real seconds.
OPEN_SECONDS = 10.0


class LineServicer(lines_pb2_grpc.LineServiceServicer):
    """For gateways."""

    def __init__(self, gateways: Gateways) -> None:
        self._gateways = gateways

    async def ServeLines(
        self, request_iterator: AsyncIterator[pb.ServeLinesRequest], context: Any
    ) -> AsyncIterator[pb.ServeLinesResponse]:
        gateway = self._gateways.open(await _first(request_iterator))
        hearing = asyncio.ensure_future(_hear(request_iterator, gateway))
        try:
            while (order := await gateway.orders.get()) is not None:
                yield order
            if gateway.slow:
                raise ResourceExhausted(
                    subject=gateway.id, limit=f"{ORDERS_MAX} orders unread", retry_seconds=RETRY_SECONDS
                )
            if hearing.done():
                # What was wrong with the last report is the stream's end.
                await hearing
        finally:
            # Before anything is awaited: a stream's end may be told to this task more than once.
            self._gateways.close(gateway)
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)


async def _first(reports: AsyncIterator[pb.ServeLinesRequest]) -> pb.ServeLinesRequest:
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await anext(reports)
    except (TimeoutError, StopAsyncIteration):
        raise InvalidArgument(field="open", why=f"must come within {OPEN_SECONDS:g} s") from None


async def _hear(reports: AsyncIterator[pb.ServeLinesRequest], gateway: Gateway) -> None:
    """Everything that the gateway says; its last word ends the stream."""
    try:
        async for report in reports:
            gateway.heard(report)
    finally:
        gateway.leave()


def lines_binding(gateways: Gateways) -> tuple[Any, Any, Any]:
    """(descriptor, add function, servicer)."""
    return (
        pb.DESCRIPTOR.services_by_name["LineService"],
        lines_pb2_grpc.add_LineServiceServicer_to_server,
        LineServicer(gateways),
    )
