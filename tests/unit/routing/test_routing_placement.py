"""Placement: home, overflow, hysteresis, old information, shifts; rules by example, all by properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.geo import Located, locate, with_point
from routing.placement import (
    NO_TIES,
    Caller,
    HomeBy,
    Placement,
    PlacementRules,
    Previous,
    QueueView,
    RegionState,
    RegionView,
    Skipped,
    Step,
    Ties,
    find_home,
    place,
)

QUEUE = "support"
RULES = PlacementRules()
CENTRES = {
    "beijing": (39.904, 116.407, ("CN/北京", "CN/河北")),
    "shanghai": (31.230, 121.474, ("CN/上海", "CN/江苏")),
    "guangzhou": (23.129, 113.264, ("CN/广东",)),
    "chengdu": (30.573, 104.067, ("CN/四川",)),
}


def idle(free: int = 5) -> QueueView:
    return QueueView(agents_logged_in=10, agents_free=free, waiting=0, ewt_seconds=0.0)


def busy(ewt_seconds: float | None, waiting: int = 5) -> QueueView:
    return QueueView(agents_logged_in=10, agents_free=0, waiting=waiting, ewt_seconds=ewt_seconds)


NOBODY = QueueView(agents_logged_in=0, agents_free=0, waiting=0, ewt_seconds=None)

Change = Callable[[RegionView], RegionView]


def regions(**queues: QueueView | None) -> list[RegionView]:
    """The four centres, idle but for those named."""
    return [
        RegionView(
            id=name,
            state=RegionState.UP,
            latitude=latitude,
            longitude=longitude,
            served_areas=areas,
            languages=("zh-CN",),
            queues={QUEUE: info} if (info := queues.get(name, idle())) else {},
        )
        for name, (latitude, longitude, areas) in CENTRES.items()
    ]


def with_region(views: list[RegionView], name: str, **changes: object) -> list[RegionView]:
    return [replace(view, **changes) if view.id == name else view for view in views]  # type: ignore[arg-type]


def caller(number: str = "0755-87654321", **changes: object) -> Caller:
    return replace(Caller(place=locate(number), language="zh-CN"), **changes)  # type: ignore[arg-type]


def placed(views: list[RegionView], who: Caller | None = None, previous: Previous | None = None) -> Placement:
    return place(who or caller(), views, QUEUE, RULES, previous)


@pytest.mark.parametrize(
    ("number", "home", "by"),
    [
        ("0755-87654321", "guangzhou", HomeBy.AREA),
        ("0311-87654321", "beijing", HomeBy.AREA),
        ("0851-85551234", "chengdu", HomeBy.DISTANCE),
        ("0571-87654321", "shanghai", HomeBy.DISTANCE),
        ("400-812-3123", "", HomeBy.NONE),
        ("+80012345678", "", HomeBy.NONE),
    ],
)
def test_home_is_by_area_else_by_distance_if_the_place_is_known_finely_enough(
    number: str, home: str, by: HomeBy
) -> None:
    result = placed(regions(), caller(number))
    assert (result.home, result.home_by) == (home, by)
    assert find_home(caller(number), regions()) == (home, by)
    if home:
        assert result.regions[0] == home
        assert result.step is Step.HOME


def test_a_withheld_number_without_a_place_goes_where_it_costs_least() -> None:
    result = placed(regions(chengdu=idle(9)), Caller(place=None))
    assert (result.home, result.step, result.regions[0]) == ("", Step.NO_HOME, "chengdu")
    assert all(c.distance_km is None for c in result.candidates)


def test_the_longest_prefix_rule_wins_over_area_and_distance() -> None:
    views = with_region(regions(), "chengdu", served_prefixes=("+86755",))
    views = with_region(views, "shanghai", served_prefixes=("+867558765", "+86"))
    result = placed(views)
    assert (result.home, result.home_by) == ("shanghai", HomeBy.PREFIX)


def test_the_finer_served_area_wins() -> None:
    views = with_region(regions(), "chengdu", served_areas=("CN", "CN/广东/深圳"))
    assert placed(views).home == "chengdu"
    assert placed(views, caller("020-87654321")).home == "guangzhou"
    assert placed(views, caller("0571-87654321")).home == "chengdu"


def test_a_served_area_is_whole_names() -> None:
    views = with_region(regions(), "chengdu", served_areas=("CN/广",))
    assert placed(views).home == "guangzhou"


def test_a_point_of_the_edge_decides_not_the_number() -> None:
    who = caller(place=with_point(locate("13800138000"), 22.60, 114.00))
    assert placed(regions(), who).home == "guangzhou"


def test_home_is_kept_until_its_wait_passes_the_threshold() -> None:
    assert placed(regions(guangzhou=busy(20.0))).regions[0] == "guangzhou"
    result = placed(regions(guangzhou=busy(20.1)))
    assert result.step is Step.OVERFLOW
    assert result.regions[0] != "guangzhou"
    assert result.home == "guangzhou"


def test_a_free_agent_elsewhere_beats_a_queue_at_home() -> None:
    views = regions(guangzhou=busy(30.0), beijing=busy(1.0), shanghai=busy(1.0), chengdu=idle(1))
    assert placed(views).regions[0] == "chengdu"


def test_a_call_leaves_a_queue_only_for_a_better_one() -> None:
    views = regions(guangzhou=busy(60.0), beijing=busy(300.0), shanghai=busy(300.0), chengdu=busy(300.0))
    result = placed(views)
    assert (result.step, result.regions[0]) == (Step.OVERFLOW, "guangzhou")


def test_a_queue_elsewhere_is_joined_only_for_a_great_gain() -> None:
    """Whoever waits at home moves as soon as somebody elsewhere is free: little is won by leaving at once."""
    everywhere = {name: busy(5.0) for name in CENTRES}
    assert placed(regions(**{**everywhere, "guangzhou": busy(50.0)})).regions[0] == "guangzhou"
    assert placed(regions(**{**everywhere, "guangzhou": busy(150.0)})).regions[0] != "guangzhou"


def test_a_free_agent_at_home_means_no_overflow_whatever_the_estimate() -> None:
    views = regions(guangzhou=replace(idle(1), ewt_seconds=500.0))
    assert placed(views).step is Step.HOME


def test_a_home_with_nobody_logged_in_overflows_if_somebody_is_elsewhere() -> None:
    assert placed(regions(guangzhou=NOBODY)).regions[0] != "guangzhou"
    nobody = dict.fromkeys(CENTRES, NOBODY)
    result = placed(regions(**nobody))
    assert (result.step, result.regions[0]) == (Step.HOME, "guangzhou")


def test_overflow_goes_on_until_home_is_well_below_the_threshold() -> None:
    overflowing = placed(regions(guangzhou=busy(21.0))).previous
    assert overflowing.overflowing
    still = placed(regions(guangzhou=busy(16.0)), previous=overflowing)
    assert still.step is Step.OVERFLOW
    assert placed(regions(guangzhou=busy(16.0))).step is Step.HOME
    assert placed(regions(guangzhou=busy(15.0)), previous=still.previous).step is Step.HOME


def test_the_target_of_overflow_changes_only_for_a_gain() -> None:
    views = regions(guangzhou=busy(200.0), beijing=busy(20.0), shanghai=busy(20.0), chengdu=busy(20.0))
    first = placed(views)
    other = next(name for name in first.regions if name not in (first.regions[0], "guangzhou"))
    before = Previous(overflowing=True, target=other)
    assert placed(views, previous=before).regions[0] == other
    much_better = [replace(v, queues={QUEUE: busy(5.0)}) if v.id == first.regions[0] else v for v in views]
    assert placed(much_better, previous=before).regions[0] == first.regions[0]


def test_a_shifted_call_does_not_end_overflow() -> None:
    views = with_region(regions(guangzhou=busy(16.0)), "guangzhou", weight=50)
    before = Previous(overflowing=True, target="beijing")
    assert placed(views, caller(draw=0.9), before).previous.overflowing


def test_old_information_is_unknown_not_free() -> None:
    old = replace(idle(9), age_ms=3001)
    views = regions(guangzhou=busy(60.0), beijing=old, shanghai=old, chengdu=idle(1))
    result = placed(views)
    assert result.regions[0] == "chengdu"
    beijing = next(c for c in result.candidates if c.region == "beijing")
    assert (beijing.agents_free, beijing.ewt_seconds) == (None, None)
    assert "last heard 3.0 s ago" in beijing.why


def test_old_information_of_home_is_no_evidence_of_a_queue() -> None:
    assert placed(regions(guangzhou=replace(busy(500.0), age_ms=10_000))).regions[0] == "guangzhou"
    assert placed(regions(guangzhou=None)).regions[0] == "guangzhou"


def test_an_agent_already_filled_by_this_router_is_not_free() -> None:
    views = regions(
        guangzhou=busy(60.0),
        beijing=replace(idle(1), placed_since=1),
        shanghai=replace(idle(2), placed_since=2),
        chengdu=replace(idle(3), placed_since=2),
    )
    result = placed(views)
    assert result.regions[0] == "chengdu"
    assert {c.region: c.agents_free for c in result.candidates}["beijing"] == 0


@pytest.mark.parametrize(
    ("changes", "skipped"),
    [
        ({"state": RegionState.DOWN}, Skipped.DOWN),
        ({"state": RegionState.DRAINING}, Skipped.DRAINING),
        ({"is_open": False}, Skipped.CLOSED),
        ({"serves": frozenset({"sales"})}, Skipped.NO_QUEUE),
        ({"weight": 0}, Skipped.SHIFTED_AWAY),
    ],
)
def test_a_home_that_takes_no_calls_is_skipped_with_the_reason(
    changes: dict[str, object], skipped: Skipped
) -> None:
    result = placed(with_region(regions(), "guangzhou", **changes))
    last = result.candidates[-1]
    assert (last.region, last.skipped, last.rank) == ("guangzhou", skipped, 0)
    assert result.home == "guangzhou"
    assert result.regions == ("shanghai", "chengdu", "beijing")  # 1,210, 1,330 and 1,940 km from Shenzhen
    assert result.step is (Step.SHIFTED if skipped is Skipped.SHIFTED_AWAY else Step.HOME_SKIPPED)


def test_no_region_at_all() -> None:
    views = [replace(view, state=RegionState.DOWN) for view in regions()]
    result = placed(views)
    assert (result.step, result.regions) == (Step.NOWHERE, ())
    assert len(result.candidates) == 4
    assert place(caller(), [], QUEUE, RULES).step is Step.NOWHERE


def test_a_home_without_the_callers_language_gives_way_to_one_that_speaks_it() -> None:
    views = with_region(regions(), "chengdu", languages=("zh-CN", "en-GB"))
    result = placed(views, caller(language="en-US"))
    assert (result.step, result.regions[0]) == (Step.LANGUAGE, "chengdu")
    nobody_speaks = placed(regions(), caller(language="fr"))
    assert (nobody_speaks.step, nobody_speaks.regions[0]) == (Step.HOME, "guangzhou")


def test_affinity_draws_a_caller_without_home() -> None:
    for ties in (Ties(own="shanghai"), Ties(usual="shanghai")):
        assert placed(regions(), Caller(place=None, ties=ties)).regions[0] == "shanghai"


@pytest.mark.parametrize(
    ("ties", "views", "first", "step"),
    [
        (Ties(own="shanghai"), {}, "shanghai", Step.AFFINITY),
        (Ties(own="guangzhou"), {}, "guangzhou", Step.HOME),
        # Nobody is free there; nobody is there at all; there is no such region any more.
        (Ties(own="shanghai"), {"shanghai": busy(5.0)}, "guangzhou", Step.HOME),
        (Ties(own="shanghai"), {"shanghai": NOBODY}, "guangzhou", Step.HOME),
        (Ties(own="gone"), {}, "guangzhou", Step.HOME),
        # Being served somewhere now and then draws nobody away from home, and decides where home does not.
        (Ties(usual="shanghai"), {}, "guangzhou", Step.HOME),
        (Ties(usual="beijing"), {"guangzhou": busy(60.0)}, "beijing", Step.OVERFLOW),
        (NO_TIES, {"guangzhou": busy(60.0)}, "shanghai", Step.OVERFLOW),
        (Ties(own="chengdu", usual="beijing"), {"guangzhou": busy(60.0)}, "chengdu", Step.OVERFLOW),
    ],
)
def test_where_a_customer_belongs(ties: Ties, views: dict[str, QueueView], first: str, step: Step) -> None:
    before = Previous(overflowing=False, target="guangzhou")
    result = placed(regions(**views), caller(ties=ties), before)
    assert (result.regions[0], result.step) == (first, step)
    worth = {ties.usual: -RULES.usual_seconds} | {ties.own: -RULES.affinity_seconds}
    for candidate in result.candidates:
        assert dict(candidate.cost_parts)["affinity"] == worth.get(candidate.region, 0.0)
    if step is Step.AFFINITY:
        assert result.regions[:2] == ("shanghai", "guangzhou"), "home comes next"
        assert "belongs to shanghai" in result.summary
        assert result.previous == before, "the next caller of this home is another"


def test_a_tie_is_worth_so_many_seconds_and_no_more() -> None:
    rules = replace(RULES, seconds_per_1000_km=0.0)
    for trunk, step in ((11.9, Step.AFFINITY), (12.1, Step.HOME)):
        views = with_region(regions(), "shanghai", trunk_seconds=trunk)
        assert place(caller(ties=Ties(own="shanghai")), views, QUEUE, rules).step is step, "15 less 3 s"
    views = with_region(regions(), "shanghai", languages=("en",))
    assert placed(views, caller(language="zh", ties=Ties(own="shanghai"))).step is Step.HOME


def test_trunk_costs_push_away() -> None:
    views = with_region(regions(), "beijing", trunk_seconds=30.0)
    assert placed(views, Caller(place=None)).regions[-1] == "beijing"


def test_ties_go_to_the_smaller_id_whatever_the_order_given() -> None:
    result = placed(regions(), Caller(place=None))
    assert result.regions == tuple(sorted(CENTRES))
    assert placed(regions()[::-1], Caller(place=None)) == result


@pytest.mark.parametrize("weight", [0, 10, 50, 90, 100, 300])
def test_a_weight_keeps_its_share_of_home_calls(weight: int) -> None:
    views = with_region(regions(), "guangzhou", weight=weight)
    draws = [i / 1000 for i in range(1000)]
    at_home = sum(placed(views, caller(draw=draw)).regions[0] == "guangzhou" for draw in draws)
    assert at_home == min(1000, weight * 10)


def test_a_shift_has_somewhere_to_go() -> None:
    views = with_region(regions(), "guangzhou", weight=10)
    alone = [view if view.id == "guangzhou" else replace(view, state=RegionState.DOWN) for view in views]
    assert placed(alone, caller(draw=0.99)).regions == ("guangzhou",)


def test_every_decision_explains_itself() -> None:
    result = placed(regions(guangzhou=busy(60.0)))
    assert result.summary.startswith("guangzhou is home by area but its wait is past the threshold")
    first = result.candidates[0]
    assert math.isclose(sum(seconds for _, seconds in first.cost_parts), first.cost_seconds)
    assert [c.rank for c in result.candidates] == [1, 2, 3, 4]
    home = next(c for c in result.candidates if c.region == "guangzhou")
    assert home.why == "104 km, 0 of 10 agents free, 5 waiting, wait 60 s"


def test_two_regions_of_one_id_are_an_error() -> None:
    with pytest.raises(ValueError, match="same id"):
        placed([*regions(), regions()[0]])


@pytest.mark.parametrize(
    "changes",
    [{"agents_free": -1}, {"waiting": -1}, {"age_ms": -1}, {"ewt_seconds": -1.0}, {"ewt_seconds": math.nan}],
)
def test_impossible_figures_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="negative"):
        replace(idle(), **changes)


counts = st.integers(0, 50)
queue_views = st.builds(
    QueueView,
    agents_logged_in=counts,
    agents_free=counts,
    waiting=counts,
    ewt_seconds=st.none() | st.floats(0, allow_nan=False),
    age_ms=st.integers(0, 10_000),
    placed_since=counts,
)


def region_views(ids: list[str]) -> st.SearchStrategy[list[RegionView]]:
    def one(name: str) -> st.SearchStrategy[RegionView]:
        return st.builds(
            RegionView,
            id=st.just(name),
            state=st.sampled_from(RegionState),
            latitude=st.floats(-90, 90),
            longitude=st.floats(-180, 180),
            served_areas=st.sampled_from([(), ("CN",), ("CN/广东",), ("US/California", "CN/广东/深圳")]),
            served_prefixes=st.sampled_from([(), ("+86",), ("+86755",)]),
            languages=st.sampled_from([(), ("zh",), ("en-US",)]),
            queues=st.fixed_dictionaries({}, optional={QUEUE: queue_views}),
            weight=st.integers(0, 1000),
            is_open=st.booleans(),
            trunk_seconds=st.floats(0, 100),
        )

    return st.tuples(*map(one, ids)).map(list)


NUMBERS: list[Located | None] = [
    None,
    *(locate(n) for n in ("0755-87654321", "400-812-3123", "+12127365000", "+80012345678")),
]
callers = st.builds(
    Caller,
    place=st.sampled_from(NUMBERS),
    language=st.sampled_from(["", "zh-CN", "en", "-"]),
    ties=st.builds(Ties, st.sampled_from(["", "a", "nowhere"]), st.sampled_from(["", "a", "b"])),
    draw=st.floats(0, 1, exclude_max=True),
)
previous_ones = st.builds(Previous, overflowing=st.booleans(), target=st.sampled_from(["", "a", "b", "gone"]))


@settings(deadline=None)
@given(
    st.integers(0, 6).flatmap(lambda n: region_views(list("abcdef")[:n])),
    callers,
    previous_ones,
    st.randoms(),
)
def test_what_holds_of_every_placement(
    views: list[RegionView], who: Caller, previous: Previous, shuffle: object
) -> None:
    result = place(who, views, QUEUE, RULES, previous)
    assert sorted(c.region for c in result.candidates) == sorted(v.id for v in views)
    by_id = {view.id: view for view in views}
    for candidate in result.candidates:
        view = by_id[candidate.region]
        takes = view.state is RegionState.UP and view.is_open and view.weight > 0
        assert (candidate.skipped is None) is takes
        assert math.isfinite(candidate.cost_seconds)
        info = view.queues.get(QUEUE)
        if info is None or info.age_ms > RULES.info_age_ms_max:
            assert candidate.agents_free is None
    ranked = [c for c in result.candidates if c.skipped is None]
    assert [c.rank for c in ranked] == list(range(1, len(ranked) + 1))
    assert (result.step is Step.NOWHERE) is (not ranked)
    if result.step is Step.HOME:
        assert ranked[0].region == result.home
    if result.step is Step.OVERFLOW and not ranked[0].agents_free:
        # nobody who fits is free anywhere, else they would come first
        speaking = any(c.speaks for c in ranked)
        assert not any(c.agents_free and (c.speaks or not speaking) for c in ranked)
    shuffle.shuffle(views)  # type: ignore[attr-defined]
    assert place(who, views, QUEUE, RULES, previous) == result


@settings(deadline=None)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=60))
def test_hysteresis_lets_a_wandering_wait_flip_only_across_the_whole_band(waits: list[float]) -> None:
    previous, overflowing, flips = Previous(), False, []
    for wait in waits:
        previous = placed(regions(guangzhou=busy(wait)), previous=previous).previous
        if previous.overflowing is not overflowing:
            overflowing = previous.overflowing
            flips.append(wait)
    begun, ended = flips[::2], flips[1::2]
    assert all(wait > 20 for wait in begun)
    assert all(wait <= 15 for wait in ended)
