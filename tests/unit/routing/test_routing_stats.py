"""Supervision without a database: shared questions, regions that do not answer, readers that stall."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymongo.errors import AutoReconnect
from tests.unit.routing.routing_shards import EngineShard

from callmesh.routing.v1 import directory_pb2
from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.errors import Unavailable
from chassis.testing import FakeClock
from routing import model, stats, supervision_handlers
from routing.acts import acting
from routing.audit import METHODS, Act
from routing.committed import Committed
from routing.engine import step
from routing.errors import IllegalState
from routing.model import Answer, QueueFigures, RecordAct, ShardStats
from routing.peers import PeerTable
from routing.reports import AGENT, QUEUE, Row
from routing.scopes import SCOPES
from routing.state import ShardState
from routing.stats import shard_stats
from routing.supervision_convert import occupancy, report_message, service_level
from routing.supervision_handlers import SupervisionHandlers, TooManyWatchers
from routing.supervision_servicer import StreamStalled, SupervisionServicer

NOW_MS = 1_780_279_200_000  # 2026-06-01 10:00 in Shanghai
HALF_HOUR = 1_800_000


class ScriptedFront:
    """Shards that answer, and one that does not."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.asked: list[tuple[str, Any]] = []
        self.silent: set[str] = set()
        self.shards = self

    async def ask(self, region: str, command: Any, seconds: float | None = None) -> Committed:
        self.asked.append((region, command))
        await asyncio.sleep(0)
        if region in self.silent:
            raise Unavailable(why="nobody leads it", retry_seconds=1.0)
        queue = QueueFigures(
            queue="service",
            waiting=3,
            longest_wait_span_ms=4_000,
            expected_wait_span_ms=-1,
            agents_logged_in=2,
            agents_free=0,
            in_service=2,
        )
        stats = ShardStats(
            now_ms=self.now_ms, draining=True, queues=(queue,), agents_by_state=(("paused", 1),)
        )
        return Committed(answer=Answer(stats=stats), shard=region, epoch=7, sequence=9, now_ms=NOW_MS)


class ScriptedReports:
    def __init__(self) -> None:
        self.since: list[int] = []
        self.away = False

    async def day(self, shard: str, since_ms: int) -> tuple[dict[str, dict[str, int]], int]:
        self.since.append(since_ms)
        if self.away:
            raise AutoReconnect("away")
        return {"service": {"offered": 5, "answered": 4, "wait_ms": 8_000}}, NOW_MS - 500


class World:
    def __init__(self, zone: str = "Asia/Shanghai") -> None:
        self.front, self.reports, self.clock = ScriptedFront(), ScriptedReports(), FakeClock()
        fakes: dict[str, Any] = {"front": self.front, "agents": None, "reports": self.reports, "audit": None}
        self.handlers = SupervisionHandlers(
            **fakes,
            peers=PeerTable(self.clock, 3.0),
            shards=frozenset({"beijing", "shanghai"}),
            zone_of=lambda region: zone,
            clock=self.clock,
        )

    async def get(self, region: str = "beijing") -> pb.Stats:
        return await self.handlers.get_stats(pb.GetStatsRequest(region=f"regions/{region}"))


async def test_figures_of_the_moment_and_of_the_day() -> None:
    world = World()
    stats = await world.get()
    assert stats.state == directory_pb2.REGION_STATE_DRAINING and (stats.epoch, stats.sequence) == (7, 9)
    (queue,) = stats.queues
    assert (queue.waiting, queue.in_service, queue.offered, queue.answered) == (3, 2, 5, 4)
    assert queue.longest_wait.seconds == 4 and not queue.HasField("expected_wait")
    assert queue.average_speed_of_answer.seconds == 2
    assert world.reports.since == [NOW_MS - 10 * 3_600_000], "its day began at midnight in Shanghai"
    assert stats.counted_time.seconds == NOW_MS // 1000 - 1


@pytest.mark.parametrize(("zone", "hours"), [("", 2), ("Asia/Kathmandu", 7.5), ("America/New_York", 22)])
async def test_the_day_begins_at_the_regions_midnight(zone: str, hours: float) -> None:
    world = World(zone)
    await world.get()
    assert world.reports.since == [NOW_MS - int(hours * 3_600_000)]


@pytest.mark.parametrize("minutes", [30, 90, 600])
async def test_the_day_begins_once_where_the_clock_goes_back_over_midnight(minutes: int) -> None:
    world = World("America/Havana")
    midnight_ms = 1_793_505_600_000  # 2026-11-01 00:00, which comes again an hour later
    world.front.now_ms = midnight_ms + minutes * 60_000
    await world.get()
    assert world.reports.since == [midnight_ms]


async def test_without_reports_the_moment_is_told_all_the_same() -> None:
    world = World()
    world.reports.away = True
    stats = await world.get()
    assert stats.queues[0].waiting == 3 and not stats.HasField("counted_time")


async def test_who_asks_at_the_same_time_shares_a_question() -> None:
    world = World()
    await asyncio.gather(*(world.get() for _ in range(20)))
    assert len(world.front.asked) == 1
    world.clock.advance(1)
    await world.get()
    assert len(world.front.asked) == 2


def test_agents_who_are_left_out_are_counted_and_told_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "AGENTS_TOLD_MAX", 2)
    state = ShardState("beijing")
    for agent in ("eve", "ann", "bob", "dan", "cy"):
        step(state, model.ConfigureAgent(agent=model.AgentConfig(id=agent)), NOW_MS)
        if agent != "dan":
            step(state, model.OpenSession(agent=agent, session=1, command=1, front="f"), NOW_MS)
    told, after = [], ""
    while not told or told[-1][1]:
        figures = shard_stats(state, model.AskStats(agents=True, after=after), NOW_MS)
        told.append(([view.agent for view in figures.agents], figures.agents_left_out))
        after = figures.agents[-1].agent
    assert told == [(["ann", "bob"], 2), (["cy", "eve"], 0)], "dan is not logged in"
    assert shard_stats(state, model.AskStats(), NOW_MS).agents_left_out == 0, "nobody has asked"


async def test_the_rest_of_the_agents_is_asked_for_by_whoever_wants_it() -> None:
    world = World()
    request = pb.GetStatsRequest(region="regions/beijing", with_agents=True, agents_after="agents/bob")
    await asyncio.gather(*(world.handlers.get_stats(request) for _ in range(2)))
    asked = model.AskStats(agents=True, after="bob")
    assert [command for _, command in world.front.asked] == [asked, asked], "no two ask for the same"


async def test_a_region_that_does_not_answer_is_down() -> None:
    world = World()
    world.front.silent = {"shanghai"}
    with pytest.raises(Unavailable):
        await world.get("shanghai")
    stream = world.handlers.watch_stats(pb.WatchStatsRequest())
    told = [await anext(stream) for _ in range(2)]
    assert [(s.region, s.state) for s in told] == [
        ("regions/beijing", directory_pb2.REGION_STATE_DRAINING),
        ("regions/shanghai", directory_pb2.REGION_STATE_DOWN),
    ]
    await stream.aclose()


async def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(supervision_handlers, "WATCHERS_MAX", 1)
    first = world.handlers.watch_stats(pb.WatchStatsRequest())
    await anext(first)
    with pytest.raises(TooManyWatchers):
        await anext(world.handlers.watch_stats(pb.WatchStatsRequest()))
    await first.aclose()
    again = world.handlers.watch_stats(pb.WatchStatsRequest())
    await anext(again)
    await again.aclose()


class StalledReader:
    """Takes one message and no more."""

    def __init__(self) -> None:
        self.messages: list[pb.Stats] = []

    async def write(self, message: pb.Stats) -> None:
        if self.messages:
            await asyncio.Event().wait()
        self.messages.append(message)


async def test_a_reader_who_stalls_is_cut_off() -> None:
    world = World()
    directory: Any = None
    servicer = SupervisionServicer(world.handlers, directory, stall_seconds=0.01)
    reader = StalledReader()
    with pytest.raises(StreamStalled):
        await servicer.WatchStats(pb.WatchStatsRequest(), reader)
    assert len(reader.messages) == 1


async def test_an_act_is_recorded_before_and_when_it_comes_to_nothing() -> None:
    front: Any = ScriptedFront()
    async with acting(front, "beijing", Act.PAUSE_AGENT, "agents/a", reason="lunch"):
        assert len(front.asked) == 1, "recorded before it is done"
    with pytest.raises(IllegalState):
        async with acting(front, "beijing", Act.MONITOR_CALL, "calls/c", details={"mode": "barge"}):
            raise IllegalState(subject="calls/c", why="it is over")
    recorded = [command for _, command in front.asked]
    assert recorded[0] == RecordAct(actor="anonymous", act="PAUSE_AGENT", subject="agents/a", reason="lunch")
    assert recorded[2].details == (("mode", "barge"), ("result", "ILLEGAL_STATE"))
    front.silent = {"beijing"}
    with pytest.raises(Unavailable):
        async with acting(front, "beijing", Act.PAUSE_AGENT, "agents/a"):
            raise AssertionError("what cannot be recorded is not done")


def test_every_act_is_a_method_of_ours() -> None:
    assert set(METHODS) == set(Act) and set(METHODS.values()) <= set(SCOPES)


def test_shares() -> None:
    assert service_level({}) == 1.0
    assert service_level({"answered": 3, "answered_in_target": 2, "abandoned": 1}) == 0.5
    assert occupancy({}) == 0.0
    spans = {"time_on_call_ms": 30, "time_wrap_up_ms": 10, "time_available_ms": 40, "time_paused_ms": 20}
    assert occupancy(spans) == 0.4


def test_a_half_hour_of_a_queue_and_of_an_agent() -> None:
    figures = {"answered": 2, "wait_ms": 3_000, "handled": 2, "talk_ms": 60_000, "wrap_up_ms": 20_000}
    queue = report_message(Row(QUEUE, "service", HALF_HOUR, {**figures, "abandoned_class_7": 3}), "beijing")
    assert (queue.subject, queue.stats.queue, queue.region) == (
        "queues/service",
        "queues/service",
        "regions/beijing",
    )
    assert queue.stats.average_handle_time.seconds == 40
    assert queue.stats.average_speed_of_answer.ToMilliseconds() == 1_500
    last = queue.wait_classes[-1]
    assert last.abandoned == 3 and last.wait_from.seconds == 300 and not last.HasField("wait_to")
    agent = report_message(Row(AGENT, "ann", HALF_HOUR, {"time_on_call_ms": 900_000}), "beijing")
    assert agent.subject == "agents/ann" and agent.occupancy == 1.0
    assert {name: span.seconds for name, span in agent.time_by_state.items()} == {"on_call": 900}
    assert model.AgentState.OFFLINE.value not in agent.time_by_state


@pytest.mark.parametrize(
    ("agents", "wanted"),
    [
        pytest.param({"cat": {"chat": 2}}, (1, 1), id="chat alone"),
        pytest.param({"cat": {"chat": 2}, "uma": {"chat": 2, "voice": 1}}, (2, 2), id="both channels once"),
        pytest.param({"cat": {"chat": 2}, "vic": {"voice": 1}}, (2, 2), id="two teams"),
        pytest.param({"cat": {"chat": 1}, "eve": {"email": 1}}, (1, 1), id="a channel nobody came by"),
        pytest.param({}, (0, 0), id="nobody"),
    ],
)
def test_who_is_there_for_a_queue_is_counted_on_every_channel_that_comes(
    agents: dict[str, dict[str, int]], wanted: tuple[int, int]
) -> None:
    """A queue of chats alone had nobody, and was alerted for it while it was served."""
    shard = EngineShard()
    shard.do(model.ConfigureQueue(queue=model.QueueConfig(id="service", wrap_up_span_ms=0)))
    shard.agent("off", capacity=(("chat", 1),))
    for agent, capacity in agents.items():
        shard.agent(agent, capacity=tuple(sorted(capacity.items())))
    facts = model.CallFacts(call_id="c1", queue="service", channel="chat")
    shard.do(model.CloseSession(agent="off", session=1))
    shard.do(model.PlaceCall(facts=facts, attempt=1, move=1, front="f"))
    shard.do(model.HangUp(call_id="c1", attempt=1))
    (queue,) = shard_stats(shard.state, model.AskStats(), shard.now_ms).queues
    assert (queue.agents_logged_in, queue.agents_free) == wanted


def test_the_wait_that_is_expected_for_a_queue_of_chats_is_that_of_its_chats() -> None:
    shard = EngineShard()
    shard.do(model.ConfigureQueue(queue=model.QueueConfig(id="service", wrap_up_span_ms=0)))
    shard.agent("cat", capacity=(("chat", 1),))
    for call_id in ("c1", "c2", "c3"):
        facts = model.CallFacts(call_id=call_id, queue="service", channel="chat")
        shard.do(model.PlaceCall(facts=facts, attempt=1, move=1, front="f"))
        if call_id == "c1":
            shard.connect("c1")
            shard.wait(60_000)
            shard.do(model.EndCall(call_id="c1"))
    (queue,) = shard_stats(shard.state, model.AskStats(), shard.now_ms).queues
    assert (queue.waiting, queue.expected_wait_span_ms) == (1, 120_000)
