"""Following a service's events with a cursor, through any break of server, network or partner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from callmesh.common.v1 import event_service_pb2, event_service_pb2_grpc
from callmesh_sdk.client import Client
from callmesh_sdk.streams import Reopening


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One event."""

    #: Store it once the event is dealt with: `follow(cursor=...)` goes on behind it.
    cursor: str
    #: As the server sent it: id, type, subject, time, data (JSON).
    event: event_service_pb2.Event
    #: `event.data` as the message of `event.type`; None when this release does not know the type.
    message: Message | None


def parsed(event: event_service_pb2.Event) -> Message | None:
    """The message in an event. Unknown fields are ignored; the types are known once their `events_pb2` module
    was imported.
    """
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(event.type)
    except KeyError:
        return None
    message: Message = message_factory.GetMessageClass(descriptor)()
    return json_format.Parse(event.data, message, ignore_unknown_fields=True)


async def follow(
    client: Client,
    service: str,
    *,
    types: Sequence[type[Message] | str] = (),
    cursor: str = "",
    oldest: bool = False,
) -> AsyncIterator[Received]:
    """The events of a service as they happen: behind `cursor`, or from now on, or (`oldest`) from the oldest
    kept.

    Whatever breaks is opened again behind the last event that was given out, so none is left out and none
    comes twice in one run; a partner that stores cursors after the work gets the unfinished one again.
    `CallError`: FailedPrecondition with reason EVENTS_EXPIRED when the cursor is too old, others when the
    server refuses, or was away for `Options.give_up_seconds`.
    """
    names = [kind if isinstance(kind, str) else kind.DESCRIPTOR.full_name for kind in types]
    start = event_service_pb2.EVENT_START_OLDEST if oldest else event_service_pb2.EVENT_START_NOW
    again = Reopening(client, service)
    while True:
        request = event_service_pb2.SubscribeRequest(types=names, cursor=cursor, start=start)
        # The generated stub wants a synchronous channel's type; grpc.aio's is as good.
        stub: Any = event_service_pb2_grpc.EventServiceStub(client.channel(again.address))
        call = stub.Subscribe(request, metadata=client.metadata(service))
        broken: grpc.aio.AioRpcError | None = None
        greeted = False
        try:
            async for message in call:
                is_event = message.WhichOneof("message") == "event"
                # Every stream begins with a heartbeat, also one that breaks right behind it, time after time.
                if greeted or is_event:
                    again.well()
                greeted = True
                cursor = message.cursor
                if is_event:
                    yield Received(cursor=cursor, event=message.event, message=parsed(message.event))
        except grpc.aio.AioRpcError as error:
            broken = error
        finally:
            call.cancel()
        await again.after(broken)
