"""Regions for placement: the directory with the peers' live figures, and overflow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import call_pb2, directory_pb2, shard_pb2
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from routing.hours import schedule
from routing.peers import PeerTable
from routing.placement import NO_TIES, PlacementRules, Skipped, Ties
from routing.regions import DESERTED_SECONDS, PLACED_SECONDS, RegionConfig, Regions, place_of

BEIJING = RegionConfig(id="beijing", latitude=39.9, longitude=116.4, served_areas=("CN/北京",))
SHANGHAI = RegionConfig(id="shanghai", latitude=31.2, longitude=121.5, served_areas=("CN/上海",))


class World:
    def __init__(self, *regions: RegionConfig, linked: frozenset[str] | None = None) -> None:
        self.clock = FakeClock()
        self.peers = PeerTable(self.clock, 3.0, linked)
        self.regions = Regions(self.peers, self.clock)
        self.regions.configure(regions or (BEIJING, SHANGHAI), {"service": 10_000})

    def hear(self, region: str, draining: bool = False, **load: int) -> None:
        fields: dict[str, Any] = {"agents_logged_in": 2, "expected_wait_ms": -1, **load}
        self.peers.hear(
            shard_pb2.PeerState(
                region=region,
                shard=region,
                epoch=1,
                state=directory_pb2.REGION_STATE_DRAINING if draining else directory_pb2.REGION_STATE_UP,
                queues=[shard_pb2.PeerState.QueueLoad(queue="service", **fields)],
            )
        )

    def overflow(self, waited_ms: int = 10_000, language: str = "") -> str | None:
        return self.regions.find_overflow("service", "beijing", waited_ms, language)


def call(number: str = "+862164000000", **fields: Any) -> call_pb2.CallRequest:
    return call_pb2.CallRequest(call_id="c1", queue="queues/service", caller_number=number, **fields)


def test_a_call_goes_home_while_home_can_take_it() -> None:
    world = World()
    for region in ("beijing", "shanghai"):
        world.hear(region, agents_free=1)
    request = call()
    placed = world.regions.rank(request, place_of(request), "service")
    assert placed.regions[0] == "shanghai" and placed.home == "shanghai"


@pytest.mark.parametrize("why", ["silent", "draining", "configured"])
def test_a_region_that_is_down_or_drains_takes_no_new_call(why: str) -> None:
    away = RegionConfig(id="shanghai", latitude=31.2, longitude=121.5, draining=why == "configured")
    world = World(BEIJING, away)
    world.hear("shanghai", draining=why == "draining", agents_free=5)
    if why == "silent":
        world.clock.advance(3.1)
    world.hear("beijing", agents_free=1)
    request = call()
    assert list(world.regions.rank(request, place_of(request), "service").regions) == ["beijing"]


def test_no_call_goes_to_a_region_that_this_router_was_not_told_of() -> None:
    """A region is added and routers are told so one after another: who backs it up already speaks for it."""
    world = World(linked=frozenset({"beijing"}))
    world.hear("beijing", agents_free=0, waiting=1)
    world.hear("shanghai", agents_free=5)
    request = call()
    placed = world.regions.rank(request, place_of(request), "service")
    assert placed.regions == ("beijing",) and placed.home == "shanghai"
    assert world.overflow() is None


def test_overflow_needs_a_wait_nobody_free_here_and_somebody_free_there() -> None:
    world = World()
    world.hear("beijing", agents_free=0, waiting=1)
    world.hear("shanghai", agents_free=1)
    assert world.overflow(9_999) is None
    assert world.overflow() == "shanghai"
    world.hear("beijing", agents_free=1, waiting=1)
    assert world.overflow() is None, "it is served here at once"
    world.hear("beijing", agents_free=0)
    world.hear("shanghai", agents_free=1, waiting=1)
    assert world.overflow() is None, "those who wait there come first"
    world.hear("shanghai", agents_free=1)
    world.clock.advance(3.1)
    assert world.overflow() is None, "nobody knows what is there"


@pytest.mark.parametrize("more", [{"skilled": True}, {"channel": "chat"}])
def test_who_is_free_here_and_does_not_fit_keeps_no_call(more: dict[str, Any]) -> None:
    """It waits beside them: figures are of voice, and of the queue's own skills."""
    world = World()
    world.hear("beijing", agents_free=5)
    world.hear("shanghai", agents_free=1)
    assert world.overflow() is None

    def overflow(waited_ms: int) -> str | None:
        return world.regions.find_overflow("service", "beijing", waited_ms, "", **more)

    assert (overflow(9_999), overflow(10_000)) == (None, "shanghai")


@pytest.mark.parametrize(("channel", "target"), [("voice", "shanghai"), ("chat", None)])
def test_a_queue_that_nobody_answers_by_voice_is_not_left_by_chats(channel: str, target: str | None) -> None:
    world = World()
    for _ in range(2):
        world.hear("beijing", agents_logged_in=0)
        world.hear("shanghai")
        found = world.regions.find_overflow("service", "beijing", 0, "", channel=channel)
        world.clock.advance(3)
    world.hear("beijing", agents_logged_in=0)
    world.hear("shanghai")
    found = world.regions.find_overflow("service", "beijing", 0, "", channel=channel)
    assert found == target


def test_an_agent_there_is_promised_once_until_the_figures_show_it() -> None:
    world = World()
    world.hear("beijing", agents_free=0)
    world.hear("shanghai", agents_free=1)
    world.regions.note_placed("shanghai", "service")
    assert world.overflow() is None
    world.clock.advance(PLACED_SECONDS)
    assert world.overflow() == "shanghai"


def test_the_region_with_most_to_spare_is_chosen_and_never_a_draining_one() -> None:
    away = RegionConfig(id="chengdu", latitude=30.6, longitude=104.1, draining=True)
    world = World(BEIJING, SHANGHAI, RegionConfig(id="guangzhou", latitude=23.1, longitude=113.3), away)
    world.hear("beijing", agents_free=0)
    for region, free in (("shanghai", 1), ("guangzhou", 3), ("chengdu", 9)):
        world.hear(region, agents_free=free)
    assert world.overflow() == "guangzhou"


@pytest.mark.parametrize("draining", [False, True])
def test_a_waiting_caller_goes_where_the_language_is_spoken(draining: bool) -> None:
    """Another language costs as much as when a call is placed; where it is not spoken here, nothing."""
    here = replace(BEIJING, languages=("zh", "en"), draining=draining, move_waiting=draining)
    world = World(
        here,
        replace(SHANGHAI, languages=("en",)),
        RegionConfig(id="guangzhou", latitude=23.1, longitude=113.3, languages=("zh-Hans",)),
    )
    world.hear("beijing", agents_free=0, waiting=1)
    world.hear("shanghai", agents_free=9)
    world.hear("guangzhou", agents_free=1)
    assert [world.overflow(language=each) for each in ("zh-CN", "en", "", "fr")] == [
        "guangzhou", "shanghai", "shanghai", "shanghai"
    ]  # fmt: skip
    world.hear("guangzhou", agents_logged_in=0)
    later_ms = 10_000 + round(PlacementRules().language_seconds * 1000)
    assert world.overflow(later_ms - 1, "zh") == ("shanghai" if draining else None)
    assert world.overflow(later_ms, "zh") == world.overflow(10_000, "fr") == "shanghai"


def test_an_unknown_queue_has_the_default_threshold() -> None:
    world = World()
    world.hear("shanghai", agents_free=1)
    assert world.regions.find_overflow("service", "beijing", 10_000, "") == "shanghai"
    assert world.regions.find_overflow("other", "beijing", 19_999, "") is None


def test_places() -> None:
    assert place_of(call("")) is None
    located = place_of(call())
    assert located is not None and located.e164 == "+862164000000"
    point = common_pb2.GeoPoint(latitude=39.9, longitude=116.4)
    moved = place_of(call(location=point))
    assert moved is not None and (moved.latitude, moved.longitude) == (39.9, 116.4)
    assert moved.e164 == "+862164000000"
    assert place_of(call("", location=point)) is not None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"number": "12"}, "call.caller_number"),
        ({"number": "hello"}, "call.caller_number"),
        ({"location": {"latitude": 91.0}}, "call.location.latitude"),
        ({"location": {"longitude": float("nan")}}, "call.location.longitude"),
    ],
)
def test_a_bad_place_names_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        place_of(call(**fields))
    assert caught.value.details.field_violations[0].field == field


def test_a_closed_region_is_skipped_and_opens_by_itself() -> None:
    clock_start = 1_780_279_200_000  # Monday 2026-06-01 10:00 in Shanghai
    office = schedule(["Mo-Fr 08:00-20:00"], "Asia/Shanghai", "CN")
    late = schedule(["Mo-Su 09:00-22:00"], "Asia/Shanghai", "CN")
    world = World(replace(SHANGHAI, schedule=office), replace(BEIJING, schedule=late))
    world.clock.advance(clock_start / 1000 - world.clock.now_ms() / 1000)
    request = call()

    def ranked() -> dict[str, object]:
        for region in ("beijing", "shanghai"):
            world.hear(region, agents_free=1)
        return {
            c.region: c.skipped for c in world.regions.rank(request, place_of(request), "service").candidates
        }

    assert ranked() == {"beijing": None, "shanghai": None}
    world.clock.advance(10 * 3600)
    assert ranked() == {"beijing": None, "shanghai": Skipped.CLOSED}
    world.hear("beijing", agents_free=0)
    assert world.regions.find_overflow("service", "beijing", 60_000, "") is None
    assert world.regions.closed_until_ms() is None
    world.clock.advance(2 * 3600)
    assert set(ranked().values()) == {Skipped.CLOSED}
    assert world.regions.closed_until_ms() == clock_start + 22 * 3_600_000, "Shanghai opens at eight"
    world.clock.advance(10 * 3600)
    assert ranked() == {"beijing": Skipped.CLOSED, "shanghai": None}


def test_known_regions() -> None:
    world = World()
    assert world.regions.known("beijing") and not world.regions.known("mars")
    located = place_of(call("+861064000000"))
    assert located is not None and world.regions.home_of(located) == "beijing"


def test_a_region_drained_of_its_waiting_calls_sends_them_where_they_wait_least() -> None:
    leaving = replace(BEIJING, draining=True, move_waiting=True)
    canton = RegionConfig(id="guangzhou", latitude=23.1, longitude=113.3)
    world = World(leaving, SHANGHAI, canton)
    world.hear("beijing", waiting=5)
    world.hear("shanghai", waiting=3, expected_wait_ms=60_000)
    world.hear("guangzhou", waiting=1, expected_wait_ms=20_000)
    assert world.regions.leaves("beijing") and not world.regions.leaves("shanghai")
    assert world.overflow(0) == "guangzhou", "nobody is free, so the shorter wait"
    world.hear("shanghai", agents_free=1, expected_wait_ms=0)
    assert world.overflow(0) == "shanghai"
    for region in ("shanghai", "guangzhou"):
        world.hear(region, agents_logged_in=0)
    assert world.overflow(0) is None, "nobody else is there: its own agents finish them"


def test_lines_that_cost_more_are_taken_later() -> None:
    dear = replace(SHANGHAI, trunk_seconds=600.0)
    world = World(dear, RegionConfig(id="guangzhou", latitude=23.1, longitude=113.3))
    for region in ("shanghai", "guangzhou"):
        world.hear(region, agents_free=1)
    request = call(number="+86755" + "28888888")
    ranked = world.regions.rank(request, place_of(request), "service")
    parts = {c.region: dict(c.cost_parts) for c in ranked.candidates}
    assert parts["shanghai"]["trunk"] == 600.0 and parts["guangzhou"]["trunk"] == 0.0


def test_a_region_whose_agents_have_not_come_back_gets_no_new_call_while_others_have_some() -> None:
    world = World()
    world.hear("shanghai", agents_logged_in=0, agents_free=0)
    world.hear("beijing", agents_free=0, waiting=3)
    request = call()
    assert world.regions.rank(request, place_of(request), "service").regions[0] == "beijing"


def test_who_waits_where_nobody_is_any_more_goes_where_somebody_is() -> None:
    world = World()
    world.hear("beijing", agents_logged_in=0, agents_free=0, waiting=5)
    world.hear("shanghai", agents_free=0, waiting=9)
    assert world.overflow(0) is None, "they may come back, as after any change of leader"
    world.clock.advance(DESERTED_SECONDS - 0.1)
    world.hear("beijing", agents_logged_in=1, agents_free=0, waiting=5)
    assert world.overflow(0) is None
    for seconds, target in ((0.0, None), (DESERTED_SECONDS, "shanghai")):
        world.clock.advance(seconds)
        world.hear("beijing", agents_logged_in=0, agents_free=0, waiting=5)
        world.hear("shanghai", agents_free=0, waiting=9)
        assert world.overflow(0) == target
    world.hear("shanghai", agents_logged_in=0, agents_free=0)
    assert world.overflow(0) is None, "there is nobody anywhere"


WIDE = replace(SHANGHAI, served_prefixes=("+8610",), languages=("zh",), weight=40)
TIES = (NO_TIES, Ties(own="beijing"), Ties(usual="guangzhou"), Ties(own="guangzhou", usual="beijing"))
NUMBERS = ("+861064000000", "+862164000000", "+8613810000000", "+4930123456", "")


def test_a_call_is_placed_where_the_explained_ranking_says() -> None:
    world = World(BEIJING, WIDE, RegionConfig(id="guangzhou", latitude=23.1, longitude=113.3))
    seen: set[tuple[str, ...]] = set()
    for free in (0, 1, 5):
        for busy in ("beijing", "shanghai", "guangzhou"):
            for region in ("beijing", "shanghai", "guangzhou"):
                wait_ms = 60_000 if region == busy else 0
                world.hear(region, agents_free=free * (region != busy), expected_wait_ms=wait_ms)
            for number in NUMBERS:
                for n, language in enumerate(("", "zh-CN", "en", "en")):
                    request = call(number, language=language)
                    request.call_id = f"c{n}"
                    ties = TIES[n]
                    # Two of one place: the second goes by what was worked out for the first.
                    for _ in range(2):
                        explained = world.regions.rank(request, place_of(request), "service", ties)
                        placed = world.regions.order(request, place_of(request), "service", ties)
                        assert (placed.home, tuple(placed.regions)) == (explained.home, explained.regions)
                        seen.add(explained.regions)
    assert len(seen) > 3


def test_what_is_remembered_of_the_regions_is_never_older_than_their_figures() -> None:
    world = World()
    world.hear("shanghai", agents_free=1, expected_wait_ms=60_000)
    world.hear("beijing", agents_free=1)
    request = call()

    def first() -> str:
        return world.regions.order(request, place_of(request), "service").regions[0]

    assert first() == "shanghai"
    world.regions.note_placed("shanghai", "service")
    assert first() == "beijing", "the one free agent at home is filled"
    world.hear("beijing", agents_free=0, expected_wait_ms=300_000)
    world.clock.advance(PLACED_SECONDS)
    assert first() == "shanghai", "told at once"
    world.clock.advance(3.1)
    assert world.regions.order(request, place_of(request), "service").regions == [], "silence is noticed"


def test_a_place_is_not_kept_where_nobody_is_left_to_answer() -> None:
    world = World()
    assert world.regions.serves("beijing", "service"), "nothing is known of it"
    world.hear("beijing", agents_logged_in=1)
    assert world.regions.serves("beijing", "service")
    world.hear("beijing", agents_logged_in=0)
    assert not world.regions.serves("beijing", "service")
