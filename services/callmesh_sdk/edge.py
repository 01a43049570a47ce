"""A caller on an edge's line: the place in the queue is a stream, and it is kept through its breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from callmesh.routing.v1 import call_pb2, routing_pb2, routing_pb2_grpc
from callmesh_sdk.client import Client
from callmesh_sdk.streams import Reopening

#: Shards whose newest event is remembered, to leave out what comes late.
SHARDS_MAX = 64


class Caller:
    """One call from RouteCall to its end.

        caller = Caller(client, call_pb2.CallRequest(call_id="c-1", caller_number="+8613800138000",
        queue="queues/q"))
        async for event in caller.events():
            match event.WhichOneof("event"):
                case "accepted":
                    await caller.confirm(event)
                case "connected":
                    ...  # bridge, and caller.end() when the conversation is over

    Each call has its own order of routers. When the stream breaks, the call is opened again at another router
    with `attempt` + 1 and the newest place token: the place is kept, and so is a conversation. Leaving
    `events` early drops the stream but not the place; `hang_up` ends the call. When a conversation broke off,
    a new `Caller` with `REOPEN_REASON_AGENT_LOST` opens the call again.
    """

    def __init__(self, client: Client, call: call_pb2.CallRequest) -> None:
        self._client = client
        self._call = call_pb2.CallRequest()
        self._call.CopyFrom(call)
        self._call.attempt = max(1, call.attempt)
        self._routing = client.stub(routing_pb2_grpc.RoutingServiceStub)
        self._newest: dict[str, tuple[int, int]] = {}
        self._shard = ""
        self._opened = False
        #: Its conversation broke off, which no router has acknowledged yet.
        self._broke_off = call.reopen_reason == call_pb2.REOPEN_REASON_AGENT_LOST
        #: The newest token; with it and `attempt` + 1 any process may take the call over.
        self.place_token = call.place_token

    @property
    def call_id(self) -> str:
        """The call's id."""
        return self._call.call_id

    @property
    def attempt(self) -> int:
        """Which opening of the call this is."""
        return self._call.attempt

    async def events(self) -> AsyncIterator[routing_pb2.RouteCallEvent]:
        """What happens to the call, until it has ended or the server has nothing more to say. `CallError`
        when it was refused, or no router took it for `Options.give_up_seconds`.
        """
        again = Reopening(self._client, "routing", self.call_id)
        while True:
            if self._opened:
                self._call.attempt += 1
                self._call.place_token = self.place_token
                if not self._broke_off:
                    self._call.reopen_reason = call_pb2.REOPEN_REASON_STREAM_LOST
            self._opened = True
            # The generated stub wants a synchronous channel's type; grpc.aio's is as good.
            stub: Any = routing_pb2_grpc.RoutingServiceStub(self._client.channel(again.address))
            stream = stub.RouteCall(
                routing_pb2.RouteCallRequest(call=self._call), metadata=self._client.metadata()
            )
            try:
                async for event in stream:
                    again.well()
                    if self._is_new(event):
                        yield event
                return
            except grpc.aio.AioRpcError as error:
                await again.after(error)
            finally:
                stream.cancel()

    def _is_new(self, event: Any) -> bool:
        """Whether an event is not older than one that was seen from the same shard."""
        at = (event.epoch, event.sequence)
        if at < self._newest.get(event.shard, (0, 0)):
            return False
        if len(self._newest) < SHARDS_MAX or event.shard in self._newest:
            self._newest[event.shard] = at
        self._shard = event.shard
        kind = event.WhichOneof("event")
        if kind in ("queued", "transferred", "connected"):
            self.place_token = getattr(event, kind).place_token or self.place_token
            self._broke_off = False
        if kind in ("queued", "transferred"):
            # Where it was handed to, a stream that is opened again has to name too.
            self._call.queue = getattr(event, kind).queue or self._call.queue
        return True

    async def confirm(self, accepted: routing_pb2.RouteCallEvent) -> routing_pb2.ConfirmCallResponse:
        """Consents to the offer that an `accepted` event names; repeated until there is a yes or a no."""
        answer: routing_pb2.ConfirmCallResponse = await self._routing.ConfirmCall(
            routing_pb2.ConfirmCallRequest(
                call_id=self.call_id,
                offer_id=accepted.accepted.offer_id,
                version=accepted.version,
                shard=accepted.shard,
            )
        )
        # The stream may have told more than this answer, and earlier: its token is the newer one then.
        if (answer.epoch, answer.sequence) >= self._newest.get(accepted.shard, (0, 0)):
            self.place_token = answer.place_token or self.place_token
        return answer

    async def hang_up(self) -> call_pb2.Call:
        """The caller has gone."""
        request = routing_pb2.HangUpRequest(call_id=self.call_id, attempt=self.attempt, shard=self._shard)
        call: call_pb2.Call = await self._routing.HangUp(request)
        return call

    async def end(self, recording_uri: str = "") -> call_pb2.Call:
        """The conversation is over."""
        request = routing_pb2.EndCallRequest(
            call_id=self.call_id, shard=self._shard, attempt=self.attempt, recording_uri=recording_uri
        )
        call: call_pb2.Call = await self._routing.EndCall(request)
        return call
