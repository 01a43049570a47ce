"""One router with its real journal: calls from the edge's first word to wrapped up, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.integration.routing.routing_parties import DEADLINE_SECONDS, Seat, consent, until
from tests.integration.routing.routing_platform import RouterPlatform, running_router

from callmesh.routing.v1 import (
    agent_pb2,
    call_pb2,
    directory_pb2,
    routing_pb2,
)
from chassis.grpc_status import detail_messages

pytestmark = pytest.mark.integration


class Platform(RouterPlatform):
    """A running router and its clients."""

    async def furnish(self, agents: int = 1, **queue: Any) -> None:
        """As `furnish_with`, of agents a0, a1, ..."""
        await self.furnish_with((f"a{n}" for n in range(agents)), **queue)


@pytest_asyncio.fixture
async def platform(mongo_uri: str, mongo_database: str) -> AsyncIterator[Platform]:
    async with running_router(mongo_uri, mongo_database) as (address, router):
        platform = Platform(address, router)
        yield platform
        await platform.channel.close()


async def accepted(platform: Platform, call_id: str, seat: Seat) -> tuple[Any, Any]:
    """Takes a call as far as the agent's accept: (its stream, the ACCEPTED event)."""
    stream = platform.call(call_id)
    offer = (await seat.until("offer")).offer
    assert offer.call.call_id == call_id
    seat.send(accept={"offer_id": offer.offer_id})
    return stream, await until(stream, "accepted")


async def test_a_call_goes_all_the_way(platform: Platform) -> None:
    await platform.furnish()
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    stream = platform.call("c1")
    queued = await until(stream, "queued")
    assert queued.durable and queued.queued.region == "regions/beijing" and queued.queued.place_token
    assert queued.queued.home_region == "regions/beijing"
    offer = (await seat.until("offer")).offer
    seat.send(accept={"offer_id": offer.offer_id})
    event = await until(stream, "accepted")
    answer = await platform.routing.ConfirmCall(consent(event, "c1"))
    assert answer.confirmed and answer.agent == "agents/a0" and answer.agent_address == "sip:a0@beijing"
    assert (await until(stream, "connected")).connected.agent == "agents/a0"
    assert (await seat.until("connected")).connected.call.caller_number == "+861064000000"
    again = await platform.routing.ConfirmCall(consent(event, "c1"))
    assert again.confirmed, "repeating the confirmation must repeat the yes"
    stream.cancel()
    stream = platform.call("c1", attempt=2, place_token=again.place_token)
    found = (await asyncio.wait_for(stream.read(), DEADLINE_SECONDS)).connected
    assert found.offer_id == event.accepted.offer_id and found.place_token, "the conversation is found again"
    ended = await platform.routing.EndCall(routing_pb2.EndCallRequest(call_id="c1"))
    assert ended.outcome == call_pb2.CALL_OUTCOME_COMPLETED
    assert (await until(stream, "ended")).ended.outcome == call_pb2.CALL_OUTCOME_COMPLETED
    await seat.until("ended")
    seat.send(wrap_up={"call_id": "c1", "disposition": {"code": "done", "resolved": True}})
    status = (await seat.until("status")).status
    assert status.state == agent_pb2.AGENT_STATE_AVAILABLE


async def test_accepting_is_not_connecting(platform: Platform) -> None:
    """An offer that the edge refuses to confirm ends; a confirmation of another offer's id is refused."""
    await platform.furnish()
    seat = Seat(platform.agents, "a0")
    stream, event = await accepted(platform, "c1", seat)
    wrong = consent(event, "c1")
    wrong.offer_id = "beijing.1.999"
    answer = await platform.routing.ConfirmCall(wrong)
    assert not answer.confirmed and answer.refusal == "OFFER_ENDED"
    call = await platform.routing.GetCall(routing_pb2.GetCallRequest(name="calls/c1"))
    assert call.state == call_pb2.CALL_STATE_ACCEPTED
    stream.cancel()


async def test_a_broken_stream_keeps_its_place(platform: Platform) -> None:
    await platform.furnish(agents=0)
    first, second = platform.call("c1"), None
    token = (await until(first, "queued")).queued.place_token
    second = platform.call("c2")
    await until(second, "queued")
    first.cancel()
    again = platform.call("c1", attempt=2, place_token=token)
    queued = await until(again, "queued")
    assert queued.version.attempt == 2
    calls = await platform.routing.ListCalls(routing_pb2.ListCallsRequest(region="regions/beijing"))
    assert [c.call_id for c in calls.calls] == ["c1", "c2"], "c1 must still be first"
    second.cancel()
    again.cancel()


async def test_hanging_up_ends_the_offer(platform: Platform) -> None:
    await platform.furnish()
    seat = Seat(platform.agents, "a0")
    stream = platform.call("c1")
    await seat.until("offer")
    call = await platform.routing.HangUp(routing_pb2.HangUpRequest(call_id="c1"))
    assert call.outcome == call_pb2.CALL_OUTCOME_ABANDONED
    gone = (await seat.until("offer_gone")).offer_gone
    assert gone.outcome == call_pb2.OFFER_OUTCOME_CANCELLED
    assert (await until(stream, "ended")).ended.outcome == call_pb2.CALL_OUTCOME_ABANDONED


async def test_assign_call_is_confirmed_the_same_way(platform: Platform) -> None:
    await platform.furnish()
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    request = routing_pb2.AssignCallRequest(
        call=call_pb2.CallRequest(call_id="c1", queue="queues/service", caller_number="01064000000")
    )
    asking = asyncio.ensure_future(platform.routing.AssignCall(request))
    seat.send(accept={"offer_id": (await seat.until("offer")).offer.offer_id})
    answer = await asking
    assert answer.state == call_pb2.CALL_STATE_ACCEPTED and answer.durable
    confirmed = await platform.routing.ConfirmCall(
        routing_pb2.ConfirmCallRequest(
            call_id="c1", offer_id=answer.offer_id, version=answer.version, shard=answer.shard
        )
    )
    assert confirmed.confirmed


BAD_CALLS: list[tuple[dict[str, Any], grpc.StatusCode, str, str]] = [
    ({"call_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call.call_id"),
    ({"call_id": "x" * 129}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call.call_id"),
    ({"caller_number": "12"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NUMBER", "call.caller_number"),
    ({"caller_number": "hello"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NUMBER", "call.caller_number"),
    ({"queue": "queues/none"}, grpc.StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND", ""),
    ({"queue": "nonsense"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call.queue"),
    ({"priority": 101}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call.priority"),
    ({"attempt": -1}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call.attempt"),
    (
        {"skills": [{"skill": "english"}, {"skill": "klingon"}]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        "call.skills[1].skill",
    ),
    ({"channel": 99}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call.channel"),
    (
        {"location": {"latitude": 91.0, "longitude": 0.0}},
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        "call.location.latitude",
    ),
    ({"place_token": "forged"}, grpc.StatusCode.FAILED_PRECONDITION, "INVALID_PLACE_TOKEN", ""),
    ({"attributes": {"k": "x" * 20_000}}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "call"),
]


def details(error: grpc.aio.AioRpcError) -> tuple[str, list[str]]:
    """(reason, fields) of an error's details; there must be exactly one ErrorInfo."""
    status = rpc_status.from_call(error)
    assert status is not None
    infos, fields = [], []
    for packed in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if packed.Unpack(info):
            infos.append(info)
        elif packed.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    assert [info.domain for info in infos] == ["callmesh.routing"]
    return infos[0].reason, fields


async def test_bad_calls_name_the_field_and_lose_nothing(platform: Platform) -> None:
    await platform.furnish(agents=0)
    good = platform.call("good")
    await until(good, "queued")
    for fields, code, reason, field in BAD_CALLS:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            request = call_pb2.CallRequest(
                **{"call_id": "bad", "queue": "queues/service", "caller_number": "+861064000000", **fields}
            )
            await platform.routing.RouteCall(routing_pb2.RouteCallRequest(call=request)).read()
        assert caught.value.code() is code, fields
        found, named = details(caught.value)
        assert (found, named) == (reason, [field] if field else []), fields
    calls = await platform.routing.ListCalls(routing_pb2.ListCallsRequest(region="regions/beijing"))
    assert [c.call_id for c in calls.calls] == ["good"]
    good.cancel()


def told(error: grpc.aio.AioRpcError) -> tuple[str, str, str]:
    """(reason, announcement, message in the caller's language) of an error."""
    (info,) = detail_messages(error, error_details_pb2.ErrorInfo)
    (message,) = detail_messages(error, error_details_pb2.LocalizedMessage)
    return info.reason, info.metadata.get("announcement", ""), message.message


@pytest.mark.parametrize(
    ("tag", "words", "say"), [("zh-CN", "请稍后再拨", "通话"), ("en", "Try later", "conversation")]
)
async def test_a_refusal_has_words_for_the_caller_and_for_who_reads_it(
    platform: Platform, tag: str, words: str, say: str
) -> None:
    await platform.furnish(length_max=1, announcements={"zh": "请稍后再拨", "en": "Try later"})
    header = (("accept-language", tag),)
    waiting = platform.call("c1")
    await until(waiting, "queued")
    wanted = call_pb2.CallRequest(call_id="c2", queue="queues/service", language=tag)
    asked = [
        platform.routing.RouteCall(routing_pb2.RouteCallRequest(call=wanted), metadata=header).read(),
        platform.routing.AssignCall(routing_pb2.AssignCallRequest(call=wanted), metadata=header),
    ]
    for call in asked:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert told(caught.value)[:2] == ("QUEUE_FULL", words)
    transfer = routing_pb2.TransferCallRequest(name="calls/c1", agent="agents/a0")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.routing.TransferCall(transfer, metadata=header)
    assert told(caught.value)[0] == "ILLEGAL_STATE" and say in told(caught.value)[2]
    transfer.attributes.update({"notes": "x" * 9_000, "more": "x" * 9_000})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.routing.TransferCall(transfer, metadata=header)
    assert details(caught.value) == ("INVALID_ARGUMENT", ["attributes"])
    waiting.cancel()


async def test_unknown_agents_and_stale_etags(platform: Platform) -> None:
    await platform.furnish()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Seat(platform.agents, "nobody").stream.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND and details(caught.value)[0] == "AGENT_NOT_FOUND"
    queue = await platform.directory.GetQueue(directory_pb2.GetQueueRequest(name="queues/service"))
    queue.weight = 3
    await platform.directory.UpdateQueue(directory_pb2.UpdateQueueRequest(queue=queue))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.directory.UpdateQueue(directory_pb2.UpdateQueueRequest(queue=queue))
    assert caught.value.code() is grpc.StatusCode.ABORTED and details(caught.value)[0] == "ETAG_MISMATCH"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.directory.ListAgents(directory_pb2.ListAgentsRequest(page_size=-1))
    assert details(caught.value) == ("INVALID_ARGUMENT", ["page_size"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await platform.directory.CreateAgent(
            directory_pb2.CreateAgentRequest(
                agent_id="b", agent=directory_pb2.Agent(region="regions/mars", skills={"chinese": 1})
            )
        )
    assert details(caught.value)[0] == "REGION_NOT_FOUND"


async def connected(platform: Platform, call_id: str, seat: Seat) -> Any:
    """Takes a call as far as the conversation; its stream."""
    stream, event = await accepted(platform, call_id, seat)
    assert (await platform.routing.ConfirmCall(consent(event, call_id))).confirmed
    await until(stream, "connected")
    await seat.until("connected")
    return stream


async def test_a_conversation_is_handed_on_with_its_context(platform: Platform) -> None:
    await platform.furnish(agents=2)
    first = Seat(platform.agents, "a0")
    await first.until("status")
    stream = await connected(platform, "c1", first)
    second = Seat(platform.agents, "a1")
    await second.until("status")
    request = routing_pb2.TransferCallRequest(
        name="calls/c1", agent="agents/a1", attributes={"product": "fibre"}
    )
    await platform.routing.TransferCall(request)
    handed_on = (await until(stream, "transferred")).transferred
    assert (handed_on.from_agent, handed_on.to_agent) == ("agents/a0", "agents/a1")
    assert handed_on.place_token
    assert (await first.until("ended")).ended.call_id == "c1"
    call = await second.accept()
    assert dict(call.attributes) == {"product": "fibre", "transferred_from": "a0"} and call.transfers == 1
    event = await until(stream, "accepted")
    assert (await platform.routing.ConfirmCall(consent(event, "c1"))).agent == "agents/a1"
    again = platform.routing.TransferCall(request)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await again
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, "it has the call already"
    stream.cancel()


async def test_a_caller_hangs_up_and_is_called_back_in_turn(platform: Platform) -> None:
    await platform.furnish()
    stream = platform.call("c1")
    await until(stream, "queued")
    asked = await platform.routing.RequestCallback(
        routing_pb2.RequestCallbackRequest(name="calls/c1", number="13800138000")
    )
    assert asked.callback_number == "+8613800138000"
    assert (await until(stream, "callback_scheduled")).callback_scheduled.number == "+8613800138000"
    assert await stream.read() is grpc.aio.EOF, "the caller may hang up"
    await platform.routing.HangUp(routing_pb2.HangUpRequest(call_id="c1", attempt=1))
    seat = Seat(platform.agents, "a0")
    call = await seat.accept()
    assert (call.call_id, call.callback_number) == ("c1", "+8613800138000")
    assert (await seat.until("connected")).connected.call.call_id == "c1"
    seat.send(end_conversation={"call_id": "c1"})
    assert (await seat.until("ended")).ended.outcome == call_pb2.CALL_OUTCOME_COMPLETED


async def test_who_calls_again_unsettled_is_ahead_and_it_is_explained(platform: Platform) -> None:
    assert platform.router is not None
    await platform.furnish(repeat_caller_points=3)
    shown = await platform.directory.GetQueue(directory_pb2.GetQueueRequest(name="queues/service"))
    assert shown.repeat_caller_points == 3
    number, now_ms = "+8613800138000", platform.router.leader.now_ms()
    known = {
        "customer": "ann",
        "tier": "gold",
        "priority": 2,
        "calls": [{"id": f"old-{n}", "at_ms": now_ms - n, "ended_ms": now_ms - n} for n in (1, 2)],
    }
    await platform.router.database["profiles"].insert_one({"_id": number, **known})

    async def explained() -> dict[str, int]:
        call = call_pb2.CallRequest(queue="queues/service", caller_number=number, priority=1)
        answer = await platform.routing.ExplainRoute(routing_pb2.ExplainRouteRequest(call=call))
        return dict(answer.priority_parts)

    parts = {"REQUEST": 1, "TIER": 2, "REPEAT_CALLER": 6}
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await explained() != parts:
            await asyncio.sleep(0.05)
    stream = platform.call("c1", caller_number=number, priority=1)
    await until(stream, "queued")
    assert (await platform.routing.GetCall(routing_pb2.GetCallRequest(name="calls/c1"))).priority == 9
    waiting = await platform.routing.ExplainRoute(routing_pb2.ExplainRouteRequest(name="calls/c1"))
    assert dict(waiting.priority_parts) == parts
    await platform.routing.ReprioritizeCall(routing_pb2.ReprioritizeCallRequest(name="calls/c1", priority=4))
    changed = await platform.routing.ExplainRoute(routing_pb2.ExplainRouteRequest(name="calls/c1"))
    assert dict(changed.priority_parts) == {"REQUEST": 4}
    stream.cancel()
    none = directory_pb2.UpdateQueueRequest(queue={"name": "queues/service", "repeat_caller_points": 0})
    none.update_mask.paths.append("repeat_caller_points")
    changed_queue = await platform.directory.UpdateQueue(none)
    assert changed_queue.HasField("repeat_caller_points") and changed_queue.repeat_caller_points == 0
    too_many = directory_pb2.UpdateQueueRequest(queue={"name": "queues/service", "repeat_caller_points": 21})
    with pytest.raises(grpc.aio.AioRpcError, match="repeat_caller_points"):
        await platform.directory.UpdateQueue(too_many)


async def test_a_queue_says_how_it_relaxes_and_does_so(platform: Platform) -> None:
    steps = [
        {"skills": [{"skill": "chinese", "level_min": 5}], "timeout": {"nanos": 300_000_000}},
        {"skills": [{"skill": "chinese", "level_min": 1}]},
    ]
    await platform.furnish(relaxation_steps=steps)
    shown = await platform.directory.GetQueue(directory_pb2.GetQueueRequest(name="queues/service"))
    assert [s.skills[0].level_min for s in shown.relaxation_steps] == [5, 1]
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    stream = platform.call("c1")
    offer = (await seat.until("offer")).offer
    assert offer.call.relaxation_step == 1, "a level of 3 is enough only in the second step"
    stream.cancel()


async def test_what_is_named_or_waited_in_is_not_removed(platform: Platform) -> None:
    await platform.furnish()
    waiting = platform.call("c1")
    await until(waiting, "queued")
    stub, name = platform.directory, "queues/service"
    refused = [
        (stub.DeleteRegion, directory_pb2.DeleteRegionRequest(name="regions/beijing"), "REGION_IN_USE"),
        (stub.DeleteSkill, directory_pb2.DeleteSkillRequest(name="skills/chinese"), "SKILL_IN_USE"),
        (stub.DeleteQueue, directory_pb2.DeleteQueueRequest(name=name), "QUEUE_IN_USE"),
        (stub.DeleteQueue, directory_pb2.DeleteQueueRequest(name="queues/none"), "QUEUE_NOT_FOUND"),
        (stub.DeleteQueue, directory_pb2.DeleteQueueRequest(name=""), "INVALID_ARGUMENT"),
    ]
    for method, request, reason in refused:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request)
        assert details(caught.value)[0] == reason
    await platform.routing.HangUp(routing_pb2.HangUpRequest(call_id="c1"))
    await stub.DeleteQueue(directory_pb2.DeleteQueueRequest(name=name))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetQueue(directory_pb2.GetQueueRequest(name=name))
    assert details(caught.value)[0] == "QUEUE_NOT_FOUND"


BAD_STEPS: list[tuple[list[dict[str, Any]], str]] = [
    ([{"timeout": {"seconds": 1}}], "queue.relaxation_steps[0].timeout"),
    ([{}, {}], "queue.relaxation_steps[0].timeout"),
    ([{"timeout": {"seconds": 1}}] * 10 + [{}], "queue.relaxation_steps"),
    (
        [{"skills": [{"skill": "chinese", "level_min": 6}]}],
        "queue.relaxation_steps[0].skills[0].level_min",
    ),
]


@pytest.mark.parametrize(("steps", "field"), BAD_STEPS)
async def test_bad_steps_are_refused_by_name(
    platform: Platform, steps: list[dict[str, Any]], field: str
) -> None:
    request = directory_pb2.CreateQueueRequest(
        queue_id="service", queue=directory_pb2.Queue(relaxation_steps=steps)
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await platform.directory.CreateQueue(request)
    status = rpc_status.from_call(refused.value)
    named = [
        violation.field
        for detail in status.details
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR)
        for violation in error_details_pb2.BadRequest.FromString(detail.value).field_violations
    ]
    assert named == [field]
