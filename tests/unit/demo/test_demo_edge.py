"""The simulated edge against a scripted router: consent, reopening, patience, and an honest book."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from callmesh.routing.v1 import call_pb2, routing_pb2
from chassis.testing.waiting import eventually
from cli.demo import edge as edge_module
from cli.demo.ledger import Fact, conversations, lost_calls, tally

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def script_of(*events: Any, forever: Any = None) -> Any:
    """A RouteCall that says these events, then ends or stays."""

    async def route(request: routing_pb2.RouteCallRequest) -> Any:
        for event in events:
            yield event
        if forever is not None:
            await forever()

    return route


async def test_a_call_from_ringing_to_the_end(rig: Any, say: Any, forever: Any) -> None:
    rig.near.route = script_of(say.queued(), say.accepted(), forever=forever)
    await rig.edge().run()
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.BRIDGED, Fact.TALKED]
    request = rig.near.routed[0]
    assert (request.call_id, request.attempt, request.place_token) == ("t-one", 1, "")
    assert (request.queue, request.priority) == ("queues/ps", 3)
    (confirmation,) = rig.near.confirmed
    assert (confirmation.offer_id, confirmation.shard) == ("o1", "near")
    assert (confirmation.version.attempt, confirmation.version.move) == (1, 1)
    assert rig.near.ended[0].call_id == "t-one"
    (talk,) = conversations(rig.ledger)
    assert (talk.end - talk.start) * 600 >= edge_module.talk_seconds(60.0) - 1.0


async def test_the_same_confirmation_is_repeated_until_there_is_an_answer(
    rig: Any, say: Any, forever: Any, abort: Any
) -> None:
    answers = iter([abort(UNAVAILABLE, "NO_LEADER"), abort(grpc.StatusCode.DEADLINE_EXCEEDED, "LATE")])

    async def confirm(request: Any) -> Any:
        trouble = next(answers, None)
        if trouble is not None:
            raise trouble
        return routing_pb2.ConfirmCallResponse(confirmed=True)

    rig.near.route = script_of(say.queued(), say.accepted(), forever=forever)
    rig.near.confirm = rig.far.confirm = confirm
    await rig.edge().run()
    asked = rig.near.confirmed + rig.far.confirmed
    assert len(asked) == 3
    assert len({request.SerializeToString() for request in asked}) == 1
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.BRIDGED, Fact.TALKED]


async def test_after_a_refusal_the_next_offer_is_confirmed(rig: Any, say: Any, forever: Any) -> None:
    async def confirm(request: Any) -> Any:
        return routing_pb2.ConfirmCallResponse(confirmed=request.offer_id == "o2", refusal="OFFER_ENDED")

    rig.near.route = script_of(
        say.queued(),
        say.accepted(offer="o1"),
        say.queued(token="token-2"),
        say.accepted(offer="o2"),
        forever=forever,
    )
    rig.near.confirm = confirm
    await rig.edge().run()
    assert [request.offer_id for request in rig.near.confirmed] == ["o1", "o2"]
    assert rig.facts().count(Fact.BRIDGED) == 1


async def test_a_lost_answer_may_come_by_the_stream(rig: Any, say: Any, forever: Any) -> None:
    rig.near.route = script_of(say.queued(), say.connected(), forever=forever)
    await rig.edge().run()
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.BRIDGED, Fact.TALKED]
    assert rig.near.confirmed == []


async def test_a_broken_stream_is_reopened_elsewhere_with_the_place_token(
    rig: Any, say: Any, forever: Any, abort: Any
) -> None:
    async def breaks(request: Any) -> Any:
        yield say.queued(token="newest")
        raise abort(UNAVAILABLE, "GOING_AWAY")

    rig.near.route = breaks
    rig.far.route = script_of(say.queued(2), say.accepted(2), forever=forever)
    await rig.edge().run()
    again = rig.far.routed[0]
    assert (again.call_id, again.attempt, again.place_token) == ("t-one", 2, "newest")
    assert again.reopen_reason == call_pb2.REOPEN_REASON_STREAM_LOST
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.REOPENED, Fact.QUEUED, Fact.BRIDGED, Fact.TALKED]
    assert rig.ledger.entries[4].attempt == 2


async def test_a_dead_router_is_passed_over(rig: Any, say: Any, forever: Any) -> None:
    await rig.stop["near"]()
    rig.far.route = script_of(say.queued(2), say.accepted(2), forever=forever)
    await rig.edge().run()
    assert rig.last().fact is Fact.TALKED
    assert rig.far.routed[0].attempt == 2
    found = tally(rig.ledger, {})
    assert (found.reopened_why, found.unacknowledged) == ({"UNAVAILABLE": 1}, 0)


async def test_a_caller_whom_nobody_acknowledged_is_told_apart(rig: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(edge_module, "REPEAT_SECONDS_MAX", 0.3)
    await rig.stop["near"]()
    await rig.stop["far"]()
    await rig.edge(patience_seconds=0.0).run()
    assert rig.last().fact is Fact.HUNG_UP
    assert tally(rig.ledger, {}).unacknowledged == 1


async def test_retry_info_is_honoured_when_no_router_takes_the_call(
    rig: Any, say: Any, forever: Any, abort: Any
) -> None:
    times: list[float] = []
    loop = asyncio.get_running_loop()

    async def route(request: Any) -> Any:
        times.append(loop.time())
        if len(times) <= 2:
            raise abort(UNAVAILABLE, "OVERLOADED", 0.2)
        yield say.queued(request.call.attempt)
        yield say.accepted(request.call.attempt)
        await forever()

    rig.near.route = rig.far.route = route
    await rig.edge().run()
    assert rig.last().fact is Fact.TALKED
    assert times[1] - times[0] >= 0.19
    assert times[2] - times[1] >= 0.19


async def test_a_place_token_that_is_refused_is_given_up(
    rig: Any, say: Any, forever: Any, abort: Any
) -> None:
    async def breaks(request: Any) -> Any:
        yield say.queued(token="of-another-key")

    async def choosy(request: Any) -> Any:
        if request.call.place_token:
            raise abort(grpc.StatusCode.FAILED_PRECONDITION, "INVALID_PLACE_TOKEN")
        yield say.queued(request.call.attempt)
        yield say.accepted(request.call.attempt)
        await forever()

    rig.near.route = breaks
    rig.far.route = choosy
    first = rig.edge()

    async def near_later(request: Any) -> Any:
        async for event in choosy(request):
            yield event

    async def once(request: Any) -> Any:
        rig.near.route = near_later
        async for event in breaks(request):
            yield event

    rig.near.route = once
    await first.run()
    assert rig.last().fact is Fact.TALKED
    assert rig.near.routed[-1].place_token == ""


async def test_patience_ends_with_a_hang_up(rig: Any, say: Any, forever: Any) -> None:
    rig.near.route = script_of(say.queued(), forever=forever)
    await rig.edge(patience_seconds=60.0).run()
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.HUNG_UP]
    assert (rig.near.hung_up[0].call_id, rig.near.hung_up[0].attempt) == ("t-one", 1)
    # Patience counts from the call's arrival, at 0, and not from when the machine came to ask.
    assert rig.ledger.entries[-1].business >= 59.0


async def test_who_hangs_up_at_once_is_acknowledged_first(rig: Any, say: Any, forever: Any) -> None:
    rig.near.route = script_of(say.queued(), forever=forever)
    await rig.edge(patience_seconds=0.0).run()
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.HUNG_UP]


async def test_a_platform_that_forgot_an_acknowledged_call_has_lost_it(
    rig: Any, say: Any, forever: Any, abort: Any
) -> None:
    async def forgot(request: Any) -> Any:
        raise abort(grpc.StatusCode.NOT_FOUND, "CALL_NOT_FOUND")

    rig.near.route = script_of(say.queued(), forever=forever)
    rig.near.hang_up = forgot
    await rig.edge(patience_seconds=30.0).run()
    assert rig.last().fact is Fact.DROPPED
    assert lost_calls(rig.ledger) == ["t-one"]


async def test_a_platform_that_ends_a_waiting_call_by_itself_has_lost_it(rig: Any, say: Any) -> None:
    rig.near.route = script_of(say.queued(), say.ended("ABANDONED"))
    await rig.edge().run()
    assert lost_calls(rig.ledger) == ["t-one"]


async def test_a_refusal_is_told_and_not_lost(rig: Any, say: Any) -> None:
    rig.near.route = script_of(say.queued(), say.ended("REFUSED", "QUEUE_FULL"))
    await rig.edge().run()
    assert (rig.last().fact, rig.last().why) == (Fact.REFUSED, "QUEUE_FULL")
    assert lost_calls(rig.ledger) == []


async def test_an_error_that_is_final_ends_the_call_with_its_reason(rig: Any, abort: Any) -> None:
    async def refuses(request: Any) -> Any:
        raise abort(grpc.StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")
        yield

    rig.near.route = refuses
    await rig.edge().run()
    assert rig.facts() == [Fact.ASKED, Fact.REFUSED]
    assert rig.last().why == "QUEUE_NOT_FOUND"


async def test_a_lost_region_breaks_the_conversation_and_the_call_is_taken_up_elsewhere(
    rig: Any, say: Any, forever: Any
) -> None:
    async def near(request: Any) -> Any:
        yield say.queued()
        yield say.accepted()
        await eventually(lambda: Fact.BRIDGED in rig.facts())
        rig.media.lose("near")
        await forever()

    async def again(request: Any) -> Any:
        if request.call.attempt == 1:
            async for event in near(request):
                yield event
        yield say.queued(2, region="far")
        yield say.accepted(2, offer="o9", agent="bob")
        await forever()

    rig.near.route = again
    await rig.edge(service_seconds=600.0).run()
    assert rig.facts() == [
        Fact.ASKED, Fact.QUEUED, Fact.BRIDGED, Fact.BROKEN,
        Fact.REOPENED, Fact.QUEUED, Fact.BRIDGED, Fact.TALKED,
    ]  # fmt: skip
    assert rig.near.routed[1].reopen_reason == call_pb2.REOPEN_REASON_AGENT_LOST
    assert [span.agent for span in conversations(rig.ledger)] == ["amy", "bob"]
    assert rig.context.service_due["t-one"] < 600.0


async def test_a_confirmation_without_answer_is_given_up_when_the_agents_region_is_gone(
    rig: Any, say: Any, forever: Any, abort: Any
) -> None:
    async def no_leader(request: Any) -> Any:
        rig.media.lose("near")
        raise abort(UNAVAILABLE, "NO_LEADER")

    async def route(request: Any) -> Any:
        if request.call.attempt == 1:
            yield say.queued()
            yield say.accepted()
            await forever()
        yield say.queued(2, region="far")
        yield say.connected(2, agent="bob")
        await forever()

    rig.near.route = route
    rig.near.confirm = no_leader
    await rig.edge().run()
    assert rig.near.routed[1].reopen_reason == call_pb2.REOPEN_REASON_AGENT_LOST
    assert [entry.agent for entry in rig.ledger.entries if entry.fact is Fact.BRIDGED] == ["bob"]


async def test_a_stream_that_breaks_in_conversation_changes_nothing(rig: Any, say: Any, abort: Any) -> None:
    async def breaks(request: Any) -> Any:
        yield say.queued()
        yield say.accepted()
        await eventually(lambda: Fact.BRIDGED in rig.facts())
        raise abort(UNAVAILABLE, "GOING_AWAY")

    rig.near.route = breaks
    await rig.edge(service_seconds=120.0).run()
    assert rig.facts() == [Fact.ASKED, Fact.QUEUED, Fact.BRIDGED, Fact.TALKED]
    assert len(rig.near.ended) == 1


async def test_ending_is_repeated_until_it_is_answered(rig: Any, say: Any, forever: Any, abort: Any) -> None:
    async def later(request: Any) -> Any:
        if len(rig.near.ended) + len(rig.far.ended) < 3:
            raise abort(UNAVAILABLE, "NO_LEADER")
        return call_pb2.Call()

    rig.near.route = script_of(say.queued(), say.accepted(), forever=forever)
    rig.near.end_call = rig.far.end_call = later
    await rig.edge().run()
    assert len(rig.near.ended) + len(rig.far.ended) == 3


async def test_a_demo_broken_off_leaves_a_waiting_call_waiting(rig: Any, say: Any, forever: Any) -> None:
    rig.near.route = script_of(say.queued(), forever=forever)
    task = asyncio.ensure_future(rig.edge().run())
    await eventually(lambda: Fact.QUEUED in rig.facts())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.last().fact is Fact.STILL_WAITING
    assert lost_calls(rig.ledger) == []


async def test_an_edge_gives_up_a_call_that_nobody_takes(rig: Any, abort: Any, monkeypatch: Any) -> None:
    async def refuses(request: Any) -> Any:
        raise abort(UNAVAILABLE, "NO_LEADER")
        yield

    monkeypatch.setattr(edge_module, "GIVE_UP_SECONDS", 0.3)
    rig.near.route = rig.far.route = refuses
    await rig.edge(patience_seconds=1e6).run()
    assert rig.last().fact is Fact.GAVE_UP
    assert lost_calls(rig.ledger) == []
