"""A router that has just started: what it cannot know yet it does not deny."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from callmesh.routing.v1 import call_pb2
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from routing.config import RoutingSettings
from routing.engine import step
from routing.errors import DirectoryUnread, QueueNotFound
from routing.handlers import Handlers
from routing.model import CallFacts, CallState, ConfigureQueue, PlaceCall, QueueConfig
from routing.peers import PeerTable
from routing.regions import Regions
from routing.server import Router
from routing.state import ShardState
from routing.streams import Present, Update
from routing.tokens import Place, PlaceTokens
from routing.views import view_call

TOKENS = PlaceTokens(bytes(32), life_span_ms=60_000)


def started(**known: Any) -> tuple[Handlers, Regions]:
    """The use cases of a router that has heard of no region yet."""
    clock, unused = FakeClock(), None
    regions = Regions(PeerTable(clock, 3.0), clock)
    rest: Any = unused
    fields: dict[str, Any] = {"queues": {}, "skills": set(), **known}
    handlers = Handlers(
        front=rest,
        regions=regions,
        tokens=TOKENS,
        profiles=rest,
        agents=rest,
        shards=frozenset({"beijing"}),
        clock=clock,
        **fields,
    )
    return handlers, regions


async def test_a_router_shows_its_own_region_as_silent_from_the_start() -> None:
    """Or, where all of a region began anew and nobody may lead, no alert would tell. Another region may be
    named before it has a router.
    """
    router = Router(RoutingSettings(region="kashgar", auth_mode="open", peers="kashgar=a:1,hotan=b:1"))
    try:
        shown = [
            REGISTRY.get_sample_value("callmesh_peer_up", {"region": region})
            for region in ("kashgar", "hotan")
        ]
        assert shown == [0, None]
    finally:
        await router.database.client.close()


async def test_an_unread_directory_lacks_no_queue() -> None:
    """The caller is asked to come again, here or elsewhere, until the directory was read; then the answer is
    final.
    """
    handlers, regions = started()
    request = call_pb2.CallRequest(
        call_id="c1", attempt=1, queue="queues/service", caller_number="+861012345678"
    )
    with pytest.raises(DirectoryUnread) as early:
        await anext(handlers.route_call(request))
    assert early.value.details.retry_seconds
    regions.configure((), {})
    with pytest.raises(QueueNotFound):
        await anext(handlers.route_call(request))


async def test_a_skill_that_nobody_can_have_is_refused_to_a_new_call_and_not_to_one_that_waited() -> None:
    skills = {"english"}
    handlers, regions = started(queues={"service": QueueConfig(id="service")}, skills=skills)
    regions.configure((), {})
    request = call_pb2.CallRequest(call_id="c1", attempt=1, queue="queues/service")
    request.skills.add(skill="english")
    assert (await handlers._caller(request)).facts.skills == (("english", 1),)
    skills.remove("english")
    with pytest.raises(InvalidArgument, match="no skill 'english'") as refused:
        await handlers._caller(request)
    assert refused.value.values["field"] == "call.skills[0].skill"
    place = Place(
        call_id="c1", shard="beijing", attempt=1, move=1, waited_span_ms=5_000, made_ms=FakeClock().now_ms()
    )
    again = call_pb2.CallRequest()
    again.CopyFrom(request)
    again.attempt, again.place_token = 2, TOKENS.make(place)
    assert (await handlers._caller(again)).facts.skills == (("english", 1),)
    again.place_token = ""
    assert (await handlers._caller(again)).attempt == 2, "its edge has lost the token"


async def test_a_call_that_was_queued_goes_on_in_a_queue_that_was_removed_since() -> None:
    """Or whoever waits there, and whoever was handed on from there and talks, is lost with the stream."""
    queues = {"service": QueueConfig(id="service")}
    handlers, regions = started(queues=queues)
    request = call_pb2.CallRequest(call_id="c1", attempt=2, queue="queues/service")
    place = Place(
        call_id="c1", shard="beijing", attempt=1, move=1, waited_span_ms=5_000, made_ms=FakeClock().now_ms()
    )
    kept = call_pb2.CallRequest()
    kept.CopyFrom(request)
    kept.place_token = TOKENS.make(place)
    del queues["service"]
    with pytest.raises(DirectoryUnread):
        await handlers._caller(kept)
    regions.configure((), {})
    caller = await handlers._caller(kept)
    assert (caller.facts.queue, caller.regions) == ("service", ["beijing"]), "where it is"
    with pytest.raises(QueueNotFound):
        await handlers._caller(request)


@pytest.mark.parametrize("credit_ms", [0, 240_000])
async def test_a_place_that_is_kept_anywhere_is_kept_with_its_credit(credit_ms: int) -> None:
    """A supervisor has raised it, or it had waited before a transfer; its shard is lost with its front."""
    handlers, regions = started(queues={"service": QueueConfig(id="service")})
    regions.configure((), {})
    now_ms = FakeClock().now_ms()
    facts = CallFacts(call_id="c1", queue="service", priority=7, credit_span_ms=credit_ms)
    state = ShardState("beijing")
    step(state, ConfigureQueue(queue=QueueConfig(id="service")), now_ms)
    step(state, PlaceCall(facts=facts, attempt=1, move=1, front="f"), now_ms)
    view = view_call(state, "c1")
    told = Update(shard="beijing", epoch=1, sequence=1, now_ms=now_ms, what=Present(call=view))
    again = call_pb2.CallRequest(
        call_id="c1", attempt=2, queue="queues/service", place_token=handlers._token(view, told), priority=2
    )
    kept = (await handlers._caller(again)).facts
    assert (kept.priority, kept.credit_span_ms) == (7, credit_ms)
    again.place_token = TOKENS.make(
        Place(call_id="c1", shard="beijing", attempt=1, move=1, waited_span_ms=0, made_ms=now_ms)
    )
    kept = (await handlers._caller(again)).facts
    assert (kept.priority, kept.credit_span_ms) == (2, 0), "of a release before"


LOST, BROKE_OFF = call_pb2.REOPEN_REASON_STREAM_LOST, call_pb2.REOPEN_REASON_AGENT_LOST


@pytest.mark.parametrize(
    ("state", "reason", "talks"),
    [
        (CallState.CONNECTED, LOST, "beijing"),
        (CallState.CONNECTED, BROKE_OFF, ""),
        (CallState.WAITING, LOST, ""),
    ],
)
async def test_a_token_says_whether_its_call_talks(state: CallState, reason: Any, talks: str) -> None:
    """Until the edge says that the conversation broke off."""
    handlers, regions = started(queues={"service": QueueConfig(id="service")})
    regions.configure((), {})
    now_ms = FakeClock().now_ms()
    shard = ShardState("beijing")
    step(shard, ConfigureQueue(queue=QueueConfig(id="service")), now_ms)
    placed = PlaceCall(facts=CallFacts(call_id="c1", queue="service"), attempt=1, move=1, front="f")
    step(shard, placed, now_ms)
    view = msgspec.structs.replace(view_call(shard, "c1"), state=state)
    told = Update(shard="beijing", epoch=1, sequence=1, now_ms=now_ms, what=Present(call=view))
    again = call_pb2.CallRequest(
        call_id="c1",
        attempt=2,
        queue="queues/service",
        place_token=handlers._token(view, told),
        reopen_reason=reason,
    )
    assert (await handlers._caller(again)).talks == talks


@pytest.mark.parametrize("talked", [True, False])
async def test_after_a_conversation_that_broke_off_the_wait_begins_anew(talked: bool) -> None:
    """Its place counts all that was before, as after a transfer; the longest wait and the figures do not."""
    handlers, regions = started(queues={"service": QueueConfig(id="service")})
    regions.configure((), {})
    now_ms = FakeClock().now_ms()
    kept = {"call_id": "c1", "shard": "beijing", "attempt": 1, "move": 1, "credit_span_ms": 1_000}
    place = Place(waited_span_ms=5_000, made_ms=now_ms - 30_000, talks=talked, **kept)
    again = call_pb2.CallRequest(
        call_id="c1",
        attempt=2,
        queue="queues/service",
        place_token=TOKENS.make(place),
        reopen_reason=BROKE_OFF,
    )
    caller = await handlers._caller(again)
    waited_ms, credit_ms = now_ms - caller.queued_ms, caller.facts.credit_span_ms
    assert (waited_ms, credit_ms) == ((0, 36_000) if talked else (35_000, 1_000))
