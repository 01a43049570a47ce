"""Thin gRPC: each method hands its request to a use case and its errors to the chassis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import structlog

from callmesh.routing.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    call_pb2,
    routing_pb2,
    routing_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
)
from chassis import localize
from chassis.callcontext import remaining_seconds
from chassis.errors import CallmeshError, InvalidArgument, Unimplemented
from chassis.localize import accepted_language
from routing import convert
from routing.errors import error_of
from routing.explain_handlers import Explainer
from routing.front import Front
from routing.handlers import Handlers
from routing.model import Command, SetPresence
from routing.shard_servicer import ShardServicer
from routing.streams import Desk, Update

#: A desktop's command is tried for this long while its shard changes leader, real seconds.
COMMAND_SECONDS_MAX = 10.0
#: Taken when a caller sets no deadline, real seconds.
DEADLINE_SECONDS = 5.0

log = structlog.get_logger(__name__)


def _left() -> float:
    return remaining_seconds(DEADLINE_SECONDS) or 0.0


class RoutingServicer(routing_pb2_grpc.RoutingServiceServicer):
    """For edges."""

    def __init__(self, handlers: Handlers, explainer: Explainer | None = None) -> None:
        """Without an explainer, ExplainRoute is not offered."""
        self._handlers = handlers
        self._explainer = explainer

    async def RouteCall(
        self, request: routing_pb2.RouteCallRequest, context: Any
    ) -> AsyncIterator[routing_pb2.RouteCallEvent]:
        async with aclosing(self._handlers.route_call(request.call)) as events:
            async for event in events:
                yield event

    async def AssignCall(
        self, request: routing_pb2.AssignCallRequest, context: Any
    ) -> routing_pb2.AssignCallResponse:
        return await self._handlers.assign_call(request, _left())

    async def ConfirmCall(
        self, request: routing_pb2.ConfirmCallRequest, context: Any
    ) -> routing_pb2.ConfirmCallResponse:
        return await self._handlers.confirm_call(request, _left())

    async def HangUp(self, request: routing_pb2.HangUpRequest, context: Any) -> call_pb2.Call:
        return await self._handlers.hang_up(request, _left())

    async def EndCall(self, request: routing_pb2.EndCallRequest, context: Any) -> call_pb2.Call:
        return await self._handlers.end_call(request, _left())

    async def GetCall(self, request: routing_pb2.GetCallRequest, context: Any) -> call_pb2.Call:
        return await self._handlers.get_call(request)

    async def ListCalls(
        self, request: routing_pb2.ListCallsRequest, context: Any
    ) -> routing_pb2.ListCallsResponse:
        return await self._handlers.list_calls(request)

    async def ReprioritizeCall(
        self, request: routing_pb2.ReprioritizeCallRequest, context: Any
    ) -> call_pb2.Call:
        return await self._handlers.reprioritize(request)

    async def TransferCall(self, request: routing_pb2.TransferCallRequest, context: Any) -> call_pb2.Call:
        return await self._handlers.transfer_call(request, _left())

    async def RequestCallback(
        self, request: routing_pb2.RequestCallbackRequest, context: Any
    ) -> call_pb2.Call:
        return await self._handlers.request_callback(request, _left())

    async def ExplainRoute(
        self, request: routing_pb2.ExplainRouteRequest, context: Any
    ) -> routing_pb2.ExplainRouteResponse:
        if self._explainer is None:
            raise Unimplemented(method="ExplainRoute")
        return await self._explainer.explain(request, _left())


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """For agents' desktops."""

    def __init__(self, handlers: Handlers, front: Front) -> None:
        self._handlers = handlers
        self._front = front

    async def GetAgentStatus(
        self, request: agent_pb2.GetAgentStatusRequest, context: Any
    ) -> agent_pb2.AgentStatus:
        return await self._handlers.agent_status(request)

    async def Session(
        self, request_iterator: AsyncIterator[agent_pb2.AgentCommand], context: Any
    ) -> AsyncIterator[agent_pb2.AgentEvent]:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise InvalidArgument(field="open", why="must be the first command of a stream")
        desk = await self._handlers.desk(first)
        session = _Session(self._front, desk, localize.preferred(accepted_language(context)) or "en")
        try:
            await self._front.desks.open(desk)
            reader = asyncio.create_task(session.read(request_iterator))
            try:
                async with aclosing(session.events(reader)) as events:
                    async for event in events:
                        yield event
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
        finally:
            self._front.shards.spawn(self._front.desks.close(desk, log_out=session.closed))


class _Session:
    """One desktop's stream: commands in, one after another; events out."""

    def __init__(self, front: Front, desk: Desk, language: str = "en") -> None:
        """`language`, "en" or "zh", is what the desktop is told refusals in."""
        self._front = front
        self._desk = desk
        self._language = language
        #: The desktop said `close`.
        self.closed = False

    async def read(self, commands: AsyncIterator[agent_pb2.AgentCommand]) -> None:
        """Carries out commands until the stream ends, or its answers are not read."""
        async for command in commands:
            try:
                wanted = convert.agent_command(command, self._desk)
                if wanted is None:
                    self.closed = True
                    return
                await self._carry_out(command.command, wanted)
            except CallmeshError as error:
                field = str(error.values.get("field", ""))
                self._refuse(command.command, error.reason, field, error)
            if self._desk.updates.cut_off:
                return

    async def _carry_out(self, number: int, wanted: Command) -> None:
        committed = await self._front.shards.ask_patiently(self._desk.region, wanted, COMMAND_SECONDS_MAX)
        refusal = committed.answer.refusal
        if refusal is not None:
            call_id = getattr(wanted, "call_id", "")
            error = error_of(refusal, call_id, agent=self._desk.agent, command=wanted)
            self._refuse(number, refusal.reason, refusal.field, error)
        elif isinstance(wanted, SetPresence):
            # What a re-attached session names as its newest command; the journal knows the rest.
            self._desk.command = max(self._desk.command, number)

    def _refuse(self, number: int, reason: str, field: str, error: CallmeshError) -> None:
        refused = agent_pb2.AgentEvent.CommandRefused(
            command=number,
            reason=reason,
            field=field,
            message=localize.message(error, self._language, "routing"),
        )
        self._front.desks.tell(self._desk, agent_pb2.AgentEvent(shard=self._desk.region, refused=refused))

    async def events(self, reader: asyncio.Task[None]) -> AsyncGenerator[agent_pb2.AgentEvent, None]:
        """Events for the desktop until either side ends."""
        reader.add_done_callback(lambda _: self._desk.updates.close())
        while (update := await self._desk.updates.get()) is not None:
            if isinstance(update, CallmeshError):
                raise update
            if isinstance(update, Update):
                for event in convert.agent_events(update):
                    yield event
            else:
                yield update


BindingParts = tuple[Any, Any, Any]


def bindings(
    handlers: Handlers, front: Front, shard_servicer: ShardServicer, explainer: Explainer | None = None
) -> list[BindingParts]:
    """(descriptor, add function, servicer) of RoutingService, AgentService and ShardService."""
    return [
        (
            routing_pb2.DESCRIPTOR.services_by_name["RoutingService"],
            routing_pb2_grpc.add_RoutingServiceServicer_to_server,
            RoutingServicer(handlers, explainer),
        ),
        (
            agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
            agent_pb2_grpc.add_AgentServiceServicer_to_server,
            AgentServicer(handlers, front),
        ),
        (
            shard_pb2.DESCRIPTOR.services_by_name["ShardService"],
            shard_pb2_grpc.add_ShardServiceServicer_to_server,
            shard_servicer,
        ),
    ]
