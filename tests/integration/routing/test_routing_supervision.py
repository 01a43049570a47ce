"""Supervision of one router with its real journal and database, over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from mongoengine import get_db
from pymongo.errors import AutoReconnect
from tests.integration.routing.routing_parties import DEADLINE_SECONDS, Seat, consent, until
from tests.integration.routing.routing_platform import RouterPlatform, running_router

from callmesh.routing.v1 import (
    agent_pb2,
    call_pb2,
    directory_pb2,
    routing_pb2,
    supervision_pb2,
    supervision_pb2_grpc,
)
from chassis.bus import Event
from chassis.clock import SystemClock
from chassis.pagination import Page
from chassis.testing.waiting import eventually
from routing.audit_store import MongoAudit
from routing.directory_handlers import DirectoryHandlers
from routing.directory_kinds import QUEUE
from routing.documents import AgentDocument, QueueDocument, RegionDocument, RemovedDocument
from routing.errors import QueueNotFound
from routing.publish import Projection
from routing.relay import MongoTail
from routing.reports_feed import ShardReports
from routing.reports_store import MongoReports
from routing.server import Router

pytestmark = pytest.mark.integration
ACT = "callmesh.routing.v1.AdministrativeAct"


class Platform(RouterPlatform):
    """A running router, its clients, and the worker's work done by hand."""

    def __init__(self, address: str, router: Router) -> None:
        super().__init__(address, router)
        self.supervision = supervision_pb2_grpc.SupervisionServiceStub(self.channel)
        self.reports = ShardReports(
            "beijing", MongoTail(get_db()), MongoReports(get_db()), lambda: time.monotonic() * 10
        )

    async def furnish(self, *agents: str) -> None:
        # Who goes within half a minute was not kept waiting, however slow the machine is.
        short = {"seconds": 30}
        await self.furnish_with(
            agents, announcements={"en": "Try again", "zh": "请稍后"}, short_abandon=short
        )

    async def connected(self, call_id: str, seat: Seat) -> Any:
        stream = self.call(call_id)
        await seat.accept()
        accepted = await until(stream, "accepted")
        assert (await self.routing.ConfirmCall(consent(accepted, call_id))).confirmed
        await until(stream, "connected")
        return stream

    async def count(self) -> None:
        """What the worker does about every second."""
        sequence = self.router.leader.sequence

        def work() -> None:
            while self.reports._chain.sequence < sequence:
                self.reports.step()
            self.reports.write()

        await asyncio.to_thread(work)

    async def keep_acts(self) -> None:
        """What the relays and the worker's consumer do with acts."""

        def work() -> None:
            projection = Projection("beijing")
            events = [e for b in MongoTail(get_db()).read("beijing", 0, 10_000) for e in projection.apply(b)]
            for kind in (AgentDocument, QueueDocument, RegionDocument, RemovedDocument):
                for document in kind.objects:
                    events += [Event.from_json(entry["event"]) for entry in document.outbox]
            for event in [e for e in events if e.type == ACT] * 2:
                MongoAudit().keep(event)

        await asyncio.to_thread(work)

    async def acts(self, **filters: Any) -> list[tuple[str, str, str]]:
        answer = await self.supervision.ListActs(supervision_pb2.ListActsRequest(**filters))
        return [(act.method.rpartition("/")[2], act.resource, act.reason) for act in answer.acts]


@pytest_asyncio.fixture
async def platform(mongo_uri: str, mongo_database: str) -> AsyncIterator[Platform]:
    async with running_router(mongo_uri, mongo_database) as (address, router):
        platform = Platform(address, router)
        yield platform
        await platform.channel.close()


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str], list[str]]:
    """Code, reason, metadata and named fields of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status, info = rpc_status.from_call(caught.value), error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    assert status is not None
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(bad)
    fields = [violation.field for violation in bad.field_violations]
    return caught.value.code(), info.reason, dict(info.metadata), fields


async def test_figures_live_and_by_the_half_hour(platform: Platform) -> None:
    await platform.furnish("a0", "a1")
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    stream = await platform.connected("c1", seat)
    waiting = platform.call("c2")
    await until(waiting, "queued")
    await platform.count()
    stats = await platform.supervision.GetStats(
        supervision_pb2.GetStatsRequest(region="regions/beijing", with_agents=True)
    )
    (queue,) = stats.queues
    assert (queue.queue, queue.waiting, queue.in_service) == ("queues/service", 1, 1)
    assert (queue.offered, queue.answered, queue.agents_logged_in, queue.agents_free) == (2, 1, 1, 0)
    assert dict(stats.agents_by_state) == {"on_call": 1, "offline": 1}
    assert [a.agent for a in stats.agents] == ["agents/a0"]
    assert stats.sequence and stats.epoch and stats.HasField("counted_time")
    watch = platform.supervision.WatchStats(supervision_pb2.WatchStatsRequest())
    first = await asyncio.wait_for(watch.read(), DEADLINE_SECONDS)
    assert first.region == "regions/beijing" and first.queues[0].waiting == 1
    await platform.routing.HangUp(routing_pb2.HangUpRequest(call_id="c2"))
    await until(waiting, "ended")
    async with asyncio.timeout(DEADLINE_SECONDS):
        # What was on its way by then said otherwise.
        while (await watch.read()).queues[0].waiting:
            continue
    watch.cancel()
    await platform.routing.EndCall(
        routing_pb2.EndCallRequest(call_id="c1", recording_uri="s3://recordings/c1.wav")
    )
    call = await platform.routing.GetCall(routing_pb2.GetCallRequest(name="calls/c1"))
    assert call.recording_uri == "s3://recordings/c1.wav"
    await until(stream, "ended")
    await platform.count()
    await check_reports(platform)


async def check_reports(platform: Platform) -> None:
    """Half-hours by queue and by agent, a row a page."""
    now = int(time.time())
    span = {"start_time": {"seconds": now - 86_400}, "end_time": {"seconds": now + 86_400}}
    answer = await platform.supervision.ListIntervalReports(
        supervision_pb2.ListIntervalReportsRequest(interval=span, region="regions/beijing")
    )
    totals = [sum(getattr(r.stats, n) for r in answer.reports) for n in ("offered", "answered")]
    assert totals == [2, 1] and sum(r.stats.short_abandoned for r in answer.reports) == 1
    assert sum(r.handled for r in answer.reports) == 1
    assert sum(c.abandoned for r in answer.reports for c in r.wait_classes) == 1
    seen, token = [], ""
    while True:
        page = await platform.supervision.ListIntervalReports(
            supervision_pb2.ListIntervalReportsRequest(
                interval=span, by_agent=True, page_size=1, page_token=token
            )
        )
        seen += [(r.start_time.seconds, r.subject) for r in page.reports]
        assert all(r.time_by_state for r in page.reports)
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(seen) and {subject for _, subject in seen} == {"agents/a0"}


async def test_acts_are_done_and_kept(platform: Platform) -> None:
    await platform.furnish("a0", "a1")
    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    stream = await platform.connected("c1", seat)
    monitored = await platform.supervision.MonitorCall(
        supervision_pb2.MonitorCallRequest(
            name="calls/c1", mode=supervision_pb2.MONITOR_MODE_WHISPER, supervisor_address="sip:boss@hq"
        )
    )
    assert monitored.call.call_id == "c1"
    heard = (await until(stream, "monitored")).monitored
    assert (heard.mode, heard.supervisor_address) == ("WHISPER", "sip:boss@hq")
    code, reason, _, _ = await refused(
        platform.supervision.PauseAgent(supervision_pb2.PauseAgentRequest(name="agents/a1", paused=True))
    )
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_STATE"), "nobody is logged in"
    waiting = platform.call("c2")
    await until(waiting, "queued")
    code, reason, _, _ = await refused(
        platform.supervision.MonitorCall(
            supervision_pb2.MonitorCallRequest(name="calls/c2", mode=4, reason="too early")
        )
    )
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_STATE")
    await platform.routing.ReprioritizeCall(routing_pb2.ReprioritizeCallRequest(name="calls/c2", priority=5))
    status = await platform.supervision.PauseAgent(
        supervision_pb2.PauseAgentRequest(name="agents/a0", paused=True, reason="coaching")
    )
    assert status.state == agent_pb2.AGENT_STATE_ON_CALL
    status = await platform.supervision.LogOutAgent(
        supervision_pb2.LogOutAgentRequest(name="agents/a0", interrupt=True, reason="fire alarm")
    )
    assert status.state == agent_pb2.AGENT_STATE_OFFLINE
    await platform.directory.DrainRegion(
        directory_pb2.DrainRegionRequest(name="regions/beijing", reason="maintenance")
    )
    await platform.keep_acts()
    kept = await platform.acts()
    assert ("LogOutAgent", "agents/a0", "fire alarm") in kept and len(kept) == len(set(kept)) + 2
    assert sorted(kept) == [
        ("DrainRegion", "regions/beijing", "maintenance"),
        ("LogOutAgent", "agents/a0", "fire alarm"),
        ("MonitorCall", "calls/c1", ""),
        ("MonitorCall", "calls/c2", "too early"),
        ("MonitorCall", "calls/c2", "too early"),
        ("PauseAgent", "agents/a0", "coaching"),
        ("PauseAgent", "agents/a1", ""),
        ("PauseAgent", "agents/a1", ""),
        ("ReprioritizeCall", "calls/c2", ""),
    ], "what came to nothing is told a second time, with its result"
    assert await platform.acts(resource="agents/a0", page_size=1) == [kept[1]]
    assert await platform.acts(actor="nobody") == []
    waiting.cancel()


async def test_a_closed_queue_refuses_with_its_words_and_opens_again(platform: Platform) -> None:
    await platform.furnish("a0")
    waiting = platform.call("c1", language="zh-CN")
    await until(waiting, "queued")
    await until(platform.call("c0"), "queued")
    await platform.routing.RequestCallback(routing_pb2.RequestCallbackRequest(name="calls/c0"))
    closing = supervision_pb2.CloseQueueRequest(
        name="queues/service", announcements={"en": "Closed by fire" * 35}, reason="fire"
    )
    queue = await platform.supervision.CloseQueue(closing)
    assert queue.closed and (await platform.supervision.CloseQueue(closing)).etag == queue.etag
    ended = (await until(waiting, "ended")).ended
    assert (ended.outcome, ended.reason) == (call_pb2.CALL_OUTCOME_REFUSED, "QUEUE_CLOSED")
    assert ended.announcement == "请稍后"
    code, reason, metadata, _ = await refused(platform.call("c2", language="en-GB").read())
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "QUEUE_CLOSED")
    assert metadata["announcement"] == "Closed by fire" * 35, "whole"
    await platform.supervision.ReopenQueue(supervision_pb2.ReopenQueueRequest(name="queues/service"))
    state = platform.router.leader.state
    await eventually(
        lambda: not state.queues["service"].closed and not platform.router.queues["service"].closed
    )
    again = platform.call("c3")
    await until(again, "queued")
    again.cancel()
    await platform.keep_acts()
    acts = [(act[0], act[1]) for act in await platform.acts()]
    queue, promised = "queues/service", "calls/c0"
    assert acts == [("ReopenQueue", queue), ("CloseQueue", promised), ("CloseQueue", queue)]
    call = await platform.routing.GetCall(routing_pb2.GetCallRequest(name=promised))
    assert (call.end_reason, call.callback_number) == ("CALLBACK_QUEUE_CLOSED", "+861064000000")


async def test_calls_that_are_refused_before_they_wait_are_in_the_reports(platform: Platform) -> None:
    await platform.furnish("a0")
    waiting = platform.call("c1")
    await until(waiting, "queued")
    await platform.supervision.CloseQueue(supervision_pb2.CloseQueueRequest(name="queues/service"))
    await until(waiting, "ended")

    def assigning(id: str, **more: Any) -> Any:
        call = call_pb2.CallRequest(call_id=id, **{"queue": "queues/service", **more})
        return platform.routing.AssignCall(routing_pb2.AssignCallRequest(call=call))

    for asked in (platform.call("c2").read(), platform.call("c3").read(), assigning("c4")):
        assert (await refused(asked))[1] == "QUEUE_CLOSED"
    with patch.object(platform.router.blocked._rows, "bulk_write", side_effect=AutoReconnect("away")):
        assert not await platform.router.blocked.write(), "kept for the next time"
    assert await platform.router.blocked.write() and await platform.router.blocked.write()
    assert (await refused(assigning("c5")))[1] == "QUEUE_CLOSED"
    assert (await refused(assigning("c6", queue="queues/nowhere")))[1] == "QUEUE_NOT_FOUND"
    assert await platform.router.blocked.write()
    await platform.count()
    now = int(time.time())
    span = {"start_time": {"seconds": now - 86_400}, "end_time": {"seconds": now + 86_400}}
    reports: list[Any] = []
    token = ""
    while token or not reports:
        page = await platform.supervision.ListIntervalReports(
            supervision_pb2.ListIntervalReportsRequest(interval=span, page_size=1, page_token=token)
        )
        reports += page.reports
        token = page.next_page_token
    keys = [(r.start_time.seconds, r.subject, r.region) for r in reports]
    assert keys == sorted(set(keys)) and {key[1:] for key in keys} == {("queues/service", "regions/beijing")}
    assert sum(r.blocked["QUEUE_CLOSED"] for r in reports) == 4
    assert sum(r.stats.offered for r in reports) == 1 and sum(r.stats.refused for r in reports) == 1


async def test_what_was_done_to_a_queue_is_told_when_the_queue_is_no_more(platform: Platform) -> None:
    await platform.furnish("a0")
    name = "queues/service"
    await platform.supervision.CloseQueue(supervision_pb2.CloseQueueRequest(name=name, reason="moved away"))
    use, user_of = DirectoryHandlers(SystemClock(), ()), DirectoryHandlers._user_of

    def changed_meanwhile(self: Any, kind: Any, id: str) -> str:
        QueueDocument.objects(id=id, version__lt=3).update_one(inc__version=1)
        return user_of(self, kind, id)

    with patch.object(DirectoryHandlers, "_user_of", changed_meanwhile):
        await asyncio.to_thread(use.delete, QUEUE, name, "")
    with pytest.raises(QueueNotFound):
        await asyncio.to_thread(use.get, QUEUE, name)
    await platform.keep_acts()
    assert await platform.acts() == [("CloseQueue", name, "moved away")]


async def test_outside_all_business_hours_a_call_is_refused_until_a_region_opens(platform: Platform) -> None:
    await platform.furnish("a0")
    held = platform.call("c0")
    await until(held, "queued")
    another_day = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"][(datetime.now(UTC).weekday() + 3) % 7]
    region = directory_pb2.Region(
        name="regions/beijing", business_hours=[f"{another_day} 08:00-20:00"], time_zone="UTC"
    )
    mask = {"paths": ["business_hours", "time_zone"]}
    await platform.directory.UpdateRegion(directory_pb2.UpdateRegionRequest(region=region, update_mask=mask))
    await eventually(lambda: platform.router.regions.closed_until_ms() is not None)
    code, reason, metadata, _ = await refused(platform.call("c1", language="zh-TW").read())
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REGION_CLOSED")
    assert metadata["announcement"] == "请稍后" and metadata["opens_time"].endswith("T08:00:00+00:00")
    assert (await platform.routing.GetCall(routing_pb2.GetCallRequest(name="calls/c0"))).state == (
        call_pb2.CALL_STATE_WAITING
    ), "who waits already is served"
    region.business_hours[:] = ["24/7"]
    await platform.directory.UpdateRegion(directory_pb2.UpdateRegionRequest(region=region, update_mask=mask))
    await eventually(lambda: platform.router.regions.closed_until_ms() is None)
    again = platform.call("c1")
    await until(again, "queued")
    again.cancel()
    held.cancel()


async def test_agents_are_reskilled_all_or_none(platform: Platform) -> None:
    await platform.furnish("a0", "a1")
    request = supervision_pb2.ReskillAgentsRequest(
        names=["agents/a0", "agents/a1"], set={"english": 4}, remove=["chinese"], validate_only=True
    )
    shown = await platform.supervision.ReskillAgents(request)
    assert [dict(a.skills) for a in shown.agents] == [{"english": 4}] * 2

    async def stored() -> list[dict[str, int]]:
        answer = await platform.directory.ListAgents(directory_pb2.ListAgentsRequest())
        return [dict(agent.skills) for agent in answer.agents]

    assert await stored() == [{"chinese": 3}] * 2, "it was only asked"
    missing = supervision_pb2.ReskillAgentsRequest(names=["agents/a0", "agents/zz"], set={"english": 4})
    code, reason, _, _ = await refused(platform.supervision.ReskillAgents(missing))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND")
    assert await stored() == [{"chinese": 3}] * 2
    request.validate_only = False
    done = await platform.supervision.ReskillAgents(request)
    assert [a.etag for a in done.agents] == ["v2", "v2"] and await stored() == [{"english": 4}] * 2
    again = await platform.supervision.ReskillAgents(request)
    assert [a.etag for a in again.agents] == ["v2", "v2"], "nothing was different"
    agents = platform.router.leader.state.agents
    await eventually(lambda: agents["a0"].skills == {"english": 4})
    await platform.keep_acts()
    assert [act[0] for act in await platform.acts()] == ["ReskillAgents"] * 2


async def test_calls_are_explained(platform: Platform) -> None:
    await platform.furnish("a0", "a1")

    def ask(**subject: Any) -> Any:
        return platform.routing.ExplainRoute(routing_pb2.ExplainRouteRequest(**subject))

    seat = Seat(platform.agents, "a0")
    await seat.until("status")
    wanted = call_pb2.CallRequest(queue="queues/service", caller_number="+861064000000")
    maybe = await ask(call=wanted)
    assert maybe.place.startswith("CN/北京") and maybe.region == maybe.home_region == "regions/beijing"
    assert "wait" in maybe.regions[0].cost_parts and maybe.regions[0].distance_km >= 0
    assert [(a.agent, a.rank, a.skipped_reason) for a in maybe.agents] == [
        ("agents/a0", 1, ""),
        ("agents/a1", 0, "OFFLINE"),
    ]
    assert "offered to a0 at once" in maybe.summary
    stream = await platform.connected("c1", seat)
    waiting = platform.call("c2")
    await until(waiting, "queued")
    live = await ask(name="calls/c2")
    assert not live.replayed and {a.agent: a.skipped_reason for a in live.agents}["agents/a0"] == "BUSY"
    past = await ask(name="calls/c1")
    assert past.replayed and past.offered_agent == "agents/a0" and past.agents[0].rank == 1
    assert past.summary.startswith("Was offered to a0. Just before: Waits 0 s in queue service")
    await platform.routing.EndCall(routing_pb2.EndCallRequest(call_id="c1"))
    await until(stream, "ended")
    platform.router.leader.state.calls.pop("c1")
    forgotten = await ask(name="calls/c1")
    assert forgotten.replayed and forgotten.decision_time == past.decision_time
    around = await ask(name="calls/c1", region="regions/beijing", around_time=past.decision_time)
    for one in (around, forgotten):  # regions are told as they are now, and what they cost moves
        del one.regions[:]
    assert around == forgotten
    for subject, reason in (
        ({"name": "calls/nobody"}, "CALL_NOT_FOUND"),
        ({}, "INVALID_ARGUMENT"),
        ({"name": "c1"}, "INVALID_ARGUMENT"),
        ({"call": {"queue": "queues/none"}}, "QUEUE_NOT_FOUND"),
        ({"name": "calls/c1", "region": "regions/mars"}, "REGION_NOT_FOUND"),
    ):
        assert (await refused(ask(**subject)))[1] == reason
    waiting.cancel()


#: A token with the right checksum, of a key that is none.
FORGED = Page(limit=1, fingerprint="0|0||").next_token("x")
BAD: list[tuple[str, Any, str]] = [
    ("GetStats", supervision_pb2.GetStatsRequest(), "region"),
    ("WatchStats", supervision_pb2.WatchStatsRequest(interval={"nanos": 200_000_000}), "interval"),
    ("WatchStats", supervision_pb2.WatchStatsRequest(interval={"seconds": 61}), "interval"),
    ("ListIntervalReports", supervision_pb2.ListIntervalReportsRequest(), "interval.start_time"),
    (
        "ListIntervalReports",
        supervision_pb2.ListIntervalReportsRequest(
            interval={"start_time": {"seconds": 9}, "end_time": {"seconds": 9}}
        ),
        "interval.end_time",
    ),
    ("LogOutAgent", supervision_pb2.LogOutAgentRequest(name="a0"), "name"),
    ("LogOutAgent", supervision_pb2.LogOutAgentRequest(name="agents/a0", reason="x" * 501), "reason"),
    ("PauseAgent", supervision_pb2.PauseAgentRequest(name="agents/a0", reason="x" * 65), "reason"),
    ("ReskillAgents", supervision_pb2.ReskillAgentsRequest(), "names"),
    ("ReskillAgents", supervision_pb2.ReskillAgentsRequest(names=["agents/a"]), "set"),
    (
        "ReskillAgents",
        supervision_pb2.ReskillAgentsRequest(names=["agents/a"], set={"english": 6}),
        "set['english']",
    ),
    (
        "ReskillAgents",
        supervision_pb2.ReskillAgentsRequest(names=["agents/a"], set={"english": 1}, remove=["english"]),
        "remove",
    ),
    ("CloseQueue", supervision_pb2.CloseQueueRequest(name="service"), "name"),
    (
        "CloseQueue",
        supervision_pb2.CloseQueueRequest(name="queues/service", announcements={"en": "x" * 501}),
        "announcements[en]",
    ),
    ("MonitorCall", supervision_pb2.MonitorCallRequest(name="calls/c"), "mode"),
    ("MonitorCall", supervision_pb2.MonitorCallRequest(name="calls/c", mode=1), "supervisor_address"),
    ("SimulateDay", supervision_pb2.SimulateDayRequest(), "interval.start_time"),
    ("ListActs", supervision_pb2.ListActsRequest(page_size=-1), "page_size"),
    ("ListActs", supervision_pb2.ListActsRequest(page_token="x"), "page_token"),
    ("ListActs", supervision_pb2.ListActsRequest(page_token=FORGED), "page_token"),
]


async def test_bad_requests_name_the_field(platform: Platform) -> None:
    for method, request, field in BAD:
        call = getattr(platform.supervision, method)(request)
        code, _, _, fields = await refused(call.read() if method == "WatchStats" else call)
        assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field]), method


async def test_regions_are_checked_when_written(platform: Platform) -> None:
    for fields, field in (
        ({"business_hours": ["Mo-Fr 8-20"], "time_zone": "Asia/Shanghai"}, "region.business_hours[0]"),
        ({"business_hours": ["Mo-Fr 08:00-20:00"]}, "region.time_zone"),
        ({"holiday_calendar": "XX"}, "region.holiday_calendar"),
    ):
        region = directory_pb2.Region(location={"latitude": 1, "longitude": 1}, **fields)
        request = directory_pb2.CreateRegionRequest(region_id="r", region=region)
        _, _, _, fields_named = await refused(platform.directory.CreateRegion(request))
        assert fields_named == [field]
