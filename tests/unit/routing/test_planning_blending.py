"""Blended agents: the laws of the policy, pacing under the abandon cap, calling hours, days in the engine."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import zoneinfo
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from routing.hours import Schedule, schedule
from routing.menus.predict import callback_times
from routing.model import AgentConfig, QueueConfig
from routing.planning.blended_day import Attempt, BlendedDay
from routing.planning.blending import (
    Act,
    BlendingRules,
    Contacts,
    ForecastBlending,
    Look,
    Order,
    Phase,
    Seat,
    ThresholdBlending,
)
from routing.planning.calling_hours import CallingHours, zones_of
from routing.planning.erlang import Demand
from routing.planning.nowcast import Nowcast
from routing.planning.pacing import LINES_PER_AGENT_MAX, Mode, Pacing, expected_lost
from routing.virtual import Contact, Duty, Fate, Roster

QUIET = Demand(rate=0.002, handle_seconds=150, patience_seconds=300)
BUSY = Demand(rate=0.05, handle_seconds=150, patience_seconds=300)
LIST = Contacts(answer_ratio=0.3, dial_seconds=25, talk_seconds=70)


def seats(**phases: Phase) -> list[Seat]:
    return [Seat(agent=a, phase=p, since_ms=n, blended=True) for n, (a, p) in enumerate(phases.items())]


def free(count: int) -> list[Seat]:
    return seats(**{f"a{n:02d}": Phase.FREE for n in range(count)})


def policy(**rules: Any) -> ForecastBlending:
    return ForecastBlending(rules=BlendingRules(**rules), contacts=LIST, account=100.0)


def look(floor: list[Seat], now_ms: int = 1_000_000, **more: Any) -> Look:
    return Look(**{"now_ms": now_ms, "seats": floor, "waiting": 0, "demand": QUIET, **more})


def begun(orders: list[Order]) -> list[str]:
    return [order.agent for order in orders if order.act is Act.BEGIN]


def recalled(orders: list[Order]) -> list[str]:
    return [order.agent for order in orders if order.act is Act.RECALL]


def test_a_valley_is_used_and_a_peak_is_not() -> None:
    assert len(begun(policy().look(look(free(10))))) > 0
    peak = [*free(3), *seats(**{f"i{n}": Phase.INBOUND for n in range(7)})]
    assert begun(policy().look(look(peak, demand=BUSY))) == []
    assert begun(policy().look(look(free(10), waiting=1))) == []
    assert begun(policy().look(look(free(10), contacts=False))) == []


def test_no_more_than_the_share_and_only_blended_agents() -> None:
    floor = [replace(seat, blended=n < 9) for n, seat in enumerate(free(10))]
    chosen = begun(policy(share=0.5, price=1_000.0).look(look(floor, demand=replace(QUIET, rate=0.0))))
    assert chosen == [f"a{n:02d}" for n in range(5)]
    one = [replace(seat, blended=n == 3) for n, seat in enumerate(free(10))]
    assert begun(policy().look(look(one))) == ["a03"]


def test_nobody_begins_who_is_about_to_leave() -> None:
    floor = [replace(seat, leaves_ms=1_060_000) for seat in free(10)]
    assert begun(policy().look(look(floor))) == []
    assert begun(policy().look(look([replace(seat, leaves_ms=9_000_000) for seat in free(10)])))


def test_who_waits_recalls_as_many_as_it_takes_the_latest_first() -> None:
    floor = [
        *seats(i0=Phase.INBOUND, i1=Phase.INBOUND),
        Seat(agent="early", phase=Phase.DIALLING, since_ms=10, blended=True),
        Seat(agent="late", phase=Phase.DIALLING, since_ms=20, blended=True),
        Seat(agent="talks", phase=Phase.TALKING, since_ms=5, blended=True),
    ]
    assert recalled(policy().look(look(floor, waiting=1))) == ["late"]
    assert recalled(policy().look(look(floor, waiting=2))) == ["late", "early"]
    assert recalled(policy().look(look(floor, waiting=5))) == ["late", "early"]


def test_the_kill_switch_recalls_everybody_and_begins_nothing() -> None:
    floor = [*free(8), *seats(d=Phase.DIALLING, t=Phase.TALKING)]
    for each in (policy(), ThresholdBlending(reserve=1)):
        assert each.look(look(floor, stopped=True)) == [Order(act=Act.RECALL, agent="d")]


def test_an_agent_in_a_stint_goes_on_first() -> None:
    one = policy(share=0.5)
    lone = [replace(seat, blended=seat.agent == "a05") for seat in free(10)]
    assert begun(one.look(look(lone))) == ["a05"]
    # It is free again, later than all others, and still the first to go on.
    later = [replace(seat, since_ms=900_000) if seat.agent == "a05" else seat for seat in free(10)]
    assert begun(one.look(look(later, now_ms=1_060_000)))[0] == "a05"
    assert one.stint_ends_ms("a05") == 1_000_000 + 300_000
    # After the stint it queues behind the others.
    assert begun(one.look(look(later, now_ms=1_400_000)))[0] == "a00"


def test_an_empty_account_ends_it_and_calls_fill_it() -> None:
    one = ForecastBlending(rules=BlendingRules(loss_ratio_max=0.01), contacts=LIST)
    assert begun(one.look(look(free(10)))) == []
    assert begun(one.look(look(free(10), now_ms=1_600_000)))
    before = one.account
    talking = [*free(1), *seats(t=Phase.TALKING, i=Phase.INBOUND)]
    one.look(look(talking, now_ms=1_600_001))
    assert one.account < before


@settings(max_examples=60, deadline=None)
@given(
    phases=st.lists(st.sampled_from(Phase), max_size=14),
    waiting=st.integers(0, 5),
    rate=st.floats(0, 0.1),
    share=st.floats(0.5, 0.8),
    price=st.floats(0, 50),
)
def test_orders_make_sense(
    phases: list[Phase], waiting: int, rate: float, share: float, price: float
) -> None:
    floor = [Seat(agent=f"a{n}", phase=p, since_ms=n, blended=n % 3 > 0) for n, p in enumerate(phases)]
    orders = policy(share=share, price=price).look(
        look(floor, waiting=waiting, demand=replace(QUIET, rate=rate))
    )
    by_agent = {seat.agent: seat for seat in floor}
    assert len({order.agent for order in orders}) == len(orders)
    for order in orders:
        wanted = Phase.FREE if order.act is Act.BEGIN else Phase.DIALLING
        assert by_agent[order.agent].phase is wanted
        assert order.act is Act.RECALL or by_agent[order.agent].blended
    if begun(orders):
        outbound = sum(p in (Phase.DIALLING, Phase.TALKING) for p in phases) + len(begun(orders))
        assert waiting == 0
        assert not recalled(orders)
        assert outbound <= share * len(floor) + 1e-6


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"share": 0.4}, "share"),
        ({"share": 0.9}, "share"),
        ({"stint_min_ms": -1}, "stint_min_ms"),
        ({"loss_ratio_max": 0.2}, "loss_ratio_max"),
        ({"price": -1.0}, "price"),
        ({"stay_factor": 0.5}, "stay_factor"),
        ({"recall_factor": 0.5}, "recall_factor"),
    ],
)
def test_rules_out_of_range_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        BlendingRules(**values)
    assert caught.value.values["field"] == field


# --- a day through the engine

AGENTS = tuple(AgentConfig(id=f"a{n}") for n in range(6))
ROSTER = Roster(
    queues=(
        QueueConfig(id="in", wrap_up_span_ms=0),
        QueueConfig(id="out", wrap_up_span_ms=0, skills=(("outbound", 1),)),
    ),
    agents=AGENTS,
    duties=tuple(Duty(agent=a.id, start_ms=0, end_ms=3_600_000) for a in AGENTS),
)


def calls(*at_ms: int, talk_ms: int = 120_000) -> list[Contact]:
    return [Contact(id=f"c{n}", queue="in", arrival_ms=ms, talk_ms=talk_ms) for n, ms in enumerate(at_ms)]


def day(contacts: list[Contact], attempts: list[Attempt], each: Any = None, **more: Any) -> BlendedDay:
    return BlendedDay(
        ROSTER,
        contacts,
        policy=each or ThresholdBlending(reserve=1, share=0.8),
        attempts=attempts,
        queue="out",
        blended=frozenset(a.id for a in AGENTS),
        outlook=Nowcast(QUIET, lambda _: 0.002),
        **more,
    )


def test_a_rising_inbound_has_its_agents_back_within_seconds() -> None:
    never = [Attempt(id=str(n), dial_ms=600_000, talk_ms=0) for n in range(50)]
    peak = calls(*[60_000] * 6)
    ran = day(peak, never)
    outcomes = ran.run(600_000).outcomes
    assert ran.outbound.recalled >= 3
    assert [o.fate for o in outcomes] == [Fate.ANSWERED] * 6
    # It looks a second after a caller came whom nobody took, and takes what rings back at once.
    assert max(o.wait_ms for o in outcomes) <= 2_000


def test_what_is_answered_is_talked_to_its_end_and_counts_as_work() -> None:
    some = [Attempt(id=str(n), dial_ms=10_000, talk_ms=50_000) for n in range(3)]
    ran = BlendedDay(
        ROSTER,
        calls(3_000_000),
        policy=ThresholdBlending(reserve=1, share=0.8),
        attempts=some,
        queue="out",
        blended=frozenset({"a0"}),
        outlook=Nowcast(QUIET, lambda _: 0.002),
    )
    result, out = ran.run(), ran.outbound
    assert (out.attempts, out.answered, out.recalled, out.talk_ms, out.dial_ms) == (3, 3, 0, 150_000, 30_000)
    assert result.busy_ms["a0"] >= 180_000
    assert [o.contact.id for o in result.outcomes] == ["c0"]


def test_the_list_is_only_called_in_its_hours() -> None:
    early = [Attempt(id=str(n), dial_ms=1_000, talk_ms=0, from_ms=1_800_000) for n in range(2)]
    ran = day(calls(10_000), early)
    ran.run(1_790_000)
    assert ran.outbound.attempts == 0
    ran = day(calls(10_000), early)
    ran.run()
    assert ran.outbound.attempts == 2


def test_predictive_abandons_no_more_than_its_cap() -> None:
    many = [Attempt(id=str(n), dial_ms=8_000, talk_ms=20_000 if n % 3 == 0 else 0) for n in range(2_000)]
    pacing = Pacing(Mode.PREDICTIVE, abandon_ratio_max=0.05)
    ran = day(calls(10_000), many, pacing=pacing, answer_ratio=1 / 3)
    ran.run()
    out = ran.outbound
    assert out.answered > 100
    assert out.abandoned / out.answered <= 0.05
    progressive = day(calls(10_000), many)
    progressive.run()
    # The same agents talk more when lines ring ahead of them.
    assert out.talk_ms > 1.1 * progressive.outbound.talk_ms


# --- pacing


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 60), st.floats(0, 1), st.floats(0, 0.1), st.integers(0, 200), st.floats(0, 0.2))
@example(agents=1, answer=5e-324, cap=0.0625, known=30, abandoned=0.0)
def test_lines_keep_the_cap(agents: int, answer: float, cap: float, known: int, abandoned: float) -> None:
    pacing = Pacing(Mode.PREDICTIVE, abandon_ratio_max=cap)
    for n in range(known):
        pacing.answered(n, abandoned=n < known * abandoned)
    lines = pacing.lines(1_000, agents, answer)
    assert agents <= lines <= LINES_PER_AGENT_MAX * agents
    if lines > agents:
        lost = expected_lost(lines, agents, answer)
        assert pacing.abandon_ratio(1_000) * known + lost <= cap * (known + lines * answer) + 1e-9
    assert Pacing(Mode.PROGRESSIVE).lines(1_000, agents, answer) == agents


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 1), st.floats(0.005, 0.1), st.integers(30, 200))
def test_no_more_lines_would_keep_the_cap(agents: int, answer: float, cap: float, known: int) -> None:
    pacing = Pacing(Mode.PREDICTIVE, abandon_ratio_max=cap)
    pacing.remember(0, answered=known, abandoned=int(known * cap / 2))

    def kept(lines: int) -> bool:
        return pacing._allow(lines, agents, answer)

    allowed = [*itertools.takewhile(kept, range(agents + 1, int(LINES_PER_AGENT_MAX * agents) + 1))]
    assert pacing.lines(1_000, agents, answer) == agents + len(allowed)


def test_what_is_expected_to_be_lost_by_the_binomial_itself() -> None:
    def by_hand(lines: int, agents: int, answer: float) -> float:
        chances = (math.comb(lines, k) * answer**k * (1 - answer) ** (lines - k) for k in range(lines + 1))
        return sum(max(0, k - agents) * chance for k, chance in enumerate(chances))

    for lines, agents, answer in ((2, 1, 0.5), (40, 10, 0.3), (64, 20, 0.3), (9, 8, 0.99), (400, 100, 0.2)):
        assert expected_lost(lines, agents, answer) == pytest.approx(by_hand(lines, agents, answer), rel=1e-9)


def test_the_pace_of_many_agents_takes_a_few_sums() -> None:
    """It is asked for with every line, while people who have answered wait for the same process."""
    pacing = Pacing(Mode.PREDICTIVE)
    pacing.remember(0, answered=2_000, abandoned=20)
    expected_lost.cache_clear()
    assert 900 < pacing.lines(1, 300, 0.3) < 1_100
    assert expected_lost.cache_info().misses <= 12


def test_the_window_forgets_and_bad_caps_are_named() -> None:
    pacing = Pacing(Mode.PREDICTIVE, window_ms=60_000)
    for n in range(40):
        pacing.answered(n, abandoned=True)
    assert pacing.abandon_ratio(100) == 1.0
    assert pacing.lines(100, 5, 0.3) == 5
    assert pacing.abandon_ratio(70_000) == 0.0
    assert expected_lost(3, 1, 1.0) == 2.0
    assert expected_lost(2, 1, 0.5) == pytest.approx(0.25)
    for values, field in (({"abandon_ratio_max": 0.2}, "abandon_ratio_max"), ({"window_ms": 0}, "window_ms")):
        with pytest.raises(InvalidArgument) as caught:
            Pacing(Mode.PREVIEW, **values)
        assert caught.value.values["field"] == field


# --- calling hours


def at(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def test_legal_and_quiet_hours_hold_where_the_customer_is() -> None:
    hours = CallingHours(quiet=((720, 840), (1_320, 420)))
    china = ["Asia/Shanghai"]
    assert hours.allows(at("2026-11-23T08:00:00+08:00"), china)
    assert not hours.allows(at("2026-11-23T07:59:59+08:00"), china)
    assert not hours.allows(at("2026-11-23T21:00:00+08:00"), china)
    assert not hours.allows(at("2026-11-23T12:30:00+08:00"), china)
    # Somebody who may be in either of two zones is called when both allow it.
    both = ["America/New_York", "America/Los_Angeles"]
    assert not hours.allows(at("2026-11-23T09:00:00-05:00"), both)
    assert hours.allows(at("2026-11-23T11:00:00-05:00"), both)
    assert not hours.allows(at("2026-11-23T10:00:00+08:00"), [])
    closed = CallingHours(legal=((),) * 7)
    assert not closed.allows(at("2026-11-23T10:00:00+08:00"), china)


@pytest.mark.parametrize(
    ("number", "zone", "offset"),
    [
        ("+912227782183", "Asia/Kolkata", "+05:30"),
        ("+97714123456", "Asia/Kathmandu", "+05:45"),
        ("", "Australia/Eucla", "+08:45"),
        ("", "Asia/Yangon", "+06:30"),
    ],
)
def test_hours_hold_where_the_offset_is_no_whole_hour(number: str, zone: str, offset: str) -> None:
    hours = CallingHours(quiet=((1_305, 465), (765, 840)))
    where = zones_of(number) if number else (zone,)
    assert where in ((zone,), ("Asia/Calcutta",), ("Asia/Katmandu",))
    opening = made_schedule(["Mo-Su 08:00-12:45"], zone)
    for clock, open_ in (("07:59:59", False), ("08:00:00", True), ("12:44:59", True), ("12:45:00", False)):
        ms = at(f"2026-11-23T{clock}{offset}")
        assert hours.allows(ms, where) is open_
        assert opening.is_open(ms) is open_
    assert hours.allows(at(f"2026-11-23T14:00:00{offset}"), where)
    assert not hours.allows(at(f"2026-11-23T21:45:00{offset}"), where)
    night = at(f"2026-11-23T23:10:00{offset}")
    assert opening.next_opening_ms(night) == at(f"2026-11-24T08:00:00{offset}")
    # A call-back is offered on the caller's full hours.
    local = dt.datetime.fromtimestamp(night / 1000, zoneinfo.ZoneInfo(zone))
    assert callback_times(local)[0] == at(f"2026-11-24T09:00:00{offset}")


def made_schedule(rules: list[str], zone: str) -> Schedule:
    made = schedule(rules, zone)
    assert made is not None
    return made


def test_holidays_have_the_hours_of_sundays() -> None:
    windows = (*(((480, 1_260),),) * 6, ((600, 1_080),))
    hours = CallingHours(legal=windows, is_holiday=lambda day: day == dt.date(2026, 10, 1))
    assert not hours.allows(at("2026-10-01T09:00:00+08:00"), ["Asia/Shanghai"])
    assert hours.allows(at("2026-10-02T09:00:00+08:00"), ["Asia/Shanghai"])


def test_where_a_number_may_be() -> None:
    assert zones_of("+8613800138000") == ("Asia/Shanghai",)
    assert zones_of("+8613800138000", "Europe/Paris") == ("Europe/Paris",)
    assert "Europe/London" in zones_of("+447911123456")
    assert zones_of("+12") == zones_of("nonsense") == ()
    with pytest.raises(InvalidArgument):
        zones_of("+8613800138000", "Mars/Olympus")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"legal": (((0, 60),),)}, "legal"),
        ({"legal": (((60, 60),), *((),) * 6)}, "legal[0][0]"),
        ({"quiet": ((0, 60), (-1, 5))}, "quiet[1]"),
    ],
)
def test_windows_that_are_none_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        CallingHours(**values)
    assert caught.value.values["field"] == field


# --- the next minutes


def test_the_nowcast_follows_what_is_seen() -> None:
    cast = Nowcast(QUIET, lambda _: 0.01, spread=0.3)
    assert cast.rate(0) == pytest.approx(0.01)
    for n in range(36):
        cast.arrived(n * 50_000)
    # Twice as many as forecast: between the forecast and what is seen.
    assert 0.011 < cast.rate(1_800_000) < 0.02
    assert cast.rate(9_000_000) < 0.01
    blind = Nowcast(QUIET, lambda _: None)
    assert blind.rate(60_000) > 0
    blind.arrived(60_000)
    assert blind.demand(600_000).rate == pytest.approx(1.5 / 600)
    for values, field in (({"window_ms": 1}, "window_ms"), ({"spread": 0}, "spread")):
        with pytest.raises(InvalidArgument) as caught:
            Nowcast(QUIET, lambda _: None, **values)
        assert caught.value.values["field"] == field
