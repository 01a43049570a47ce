"""What-if: figures, estimates and policies over a past day."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.errors import InvalidArgument
from routing.model import AgentConfig, QueueConfig
from routing.virtual import Contact, Duty, Fate, Roster
from routing.whatif import (
    Past,
    Policy,
    Seen,
    apply,
    constant_staff,
    estimate,
    figures,
    happened,
    patience_of,
    report,
    scaled_staff,
    simulate,
    simulate_day,
)

HOUR_MS = 3_600_000
QUEUE = QueueConfig(id="service", service_level_span_ms=20_000, short_abandon_span_ms=5_000)


def seen(number: int, arrival: int, fate: str, wait: int, talk: int = 0, **more: Any) -> Seen:
    """Times in seconds."""
    contact = Contact(
        id=f"c{number}", queue="service", arrival_ms=arrival * 1000, talk_ms=talk * 1000, **more
    )
    return Seen(contact=contact, fate=Fate(fate), wait_ms=wait * 1000, agent="ann" if talk else "")


def past(*rows: Seen, agents: int = 1) -> Past:
    names = ["ann", "bob", "eve"][:agents]
    roster = Roster(
        queues=(QUEUE,),
        agents=tuple(AgentConfig(id=name, skills=(("english", 3),)) for name in names),
        duties=tuple(Duty(agent=name, start_ms=0, end_ms=HOUR_MS) for name in names),
    )
    return Past(title="a day", origin_ms=0, seen=rows, roster=roster, busy_ms={"ann": HOUR_MS // 2})


def test_figures_by_the_fields_definitions() -> None:
    day = past(
        seen(1, 0, "answered", 20, 60),
        seen(2, 1, "answered", 21, 120),
        seen(3, 2, "abandoned", 6),
        seen(4, 3, "abandoned", 5),
        seen(5, 4, "refused", 0),
        seen(6, 1800, "unserved", 9),
    )
    total = figures(happened(day).outcomes, {"service": QUEUE})
    assert (total.offered, total.answered, total.answered_in_target) == (6, 2, 1)
    assert (total.abandoned, total.short_abandoned, total.refused, total.unserved) == (1, 1, 1, 1)
    assert total.service_level_ratio == pytest.approx(1 / 3)
    assert total.asa_seconds == pytest.approx(20.5) and total.handle_seconds == pytest.approx(90)
    assert total.abandoned_ratio == pytest.approx(2 / 6)
    whole = report(happened(day), day.roster)
    assert whole.occupancy_ratio == pytest.approx(0.5) and whole.staffed_hours == pytest.approx(1)
    assert [(row.start_ms, row.figures.offered) for row in whole.intervals] == [(0, 5), (1_800_000, 1)]


def test_nothing_offered_is_not_a_missed_target() -> None:
    nothing = figures([], {})
    assert (nothing.service_level_ratio, nothing.asa_seconds, nothing.abandoned_ratio) == (1.0, 0.0, 0.0)


def test_patience_is_censored_for_those_who_were_served() -> None:
    # Of ten who waited, two left after 10 s; five were served before that.
    rows = [seen(n, n, "answered", 5, 60) for n in range(5)]
    rows += [seen(n, n, "abandoned", 10) for n in (5, 6)] + [
        seen(n, n, "answered", 20, 60) for n in (7, 8, 9)
    ]
    assert patience_of(rows).at(10) == pytest.approx(3 / 5)


def test_what_was_seen_is_kept_and_the_rest_is_drawn_beyond_it() -> None:
    rows = [seen(n, n, "answered", 5, 60 + n) for n in range(20)]
    rows += [seen(n, n, "abandoned", n) for n in range(20, 40)]
    day = past(*rows)
    contacts = estimate(day, seed=1)
    for row, contact in zip(rows, contacts, strict=True):
        if row.fate is Fate.ANSWERED:
            assert contact.talk_ms == row.contact.talk_ms
            assert contact.patience_ms is None or contact.patience_ms > row.wait_ms
        else:
            assert contact.patience_ms == row.wait_ms and 60_000 <= contact.talk_ms < 80_000
    assert estimate(day, seed=1) == contacts and estimate(day, seed=2) != contacts


def test_more_agents_answer_more() -> None:
    day = past(*[seen(n, 10 * n, "answered", 0, 60) for n in range(30)])
    compared = simulate(day, constant_staff(day, 6))
    assert compared.proposed.total.asa_seconds < compared.as_it_was.total.asa_seconds
    assert compared.proposed.total.service_level_ratio == 1.0
    assert compared.happened.total.asa_seconds == 0.0


def test_an_unchanged_policy_is_the_day_as_it_was() -> None:
    day = past(*[seen(n, 30 * n, "answered", n % 7, 60) for n in range(30)], agents=2)
    compared = simulate(day, Policy())
    assert compared.proposed == compared.as_it_was


@pytest.mark.parametrize(("factor", "count"), [(0.5, 2), (1.0, 3), (2.0, 6), (1.34, 4)])
def test_scaling_keeps_the_shape_of_the_day(factor: float, count: int) -> None:
    day = past(seen(1, 0, "answered", 0, 60), agents=3)
    roster = apply(day.roster, scaled_staff(day, factor))
    assert len(roster.agents) == count == len(roster.duties)
    assert {agent.skills for agent in roster.agents} == {(("english", 3),)}


def test_agents_who_are_gone_take_their_duties_with_them() -> None:
    day = past(seen(1, 0, "answered", 0, 60), agents=2)
    roster = apply(day.roster, Policy(agents=(AgentConfig(id="bob"),)))
    assert [duty.agent for duty in roster.duties] == ["bob"]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda day: constant_staff(day, 0), "agents"),
        (lambda day: scaled_staff(day, 0.0), "scale"),
        (lambda day: apply(day.roster, Policy(duties=(Duty(agent="zoe", start_ms=0, end_ms=1),))), "shifts"),
        (
            lambda day: simulate(past(seen(1, 0, "answered", 0, 1), seen(1, 1, "refused", 0)), Policy()),
            "queues",
        ),
    ],
)
def test_what_does_not_fit_is_named(make: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(past(seen(1, 0, "answered", 0, 60)))
    assert caught.value.values["field"] == field


def test_simulate_day_keeps_hours_and_brings_new_people_for_the_whole_span() -> None:
    day = past(*[seen(n, 10 * n, "answered", 30, 60) for n in range(30)])
    actual, same = simulate_day(day, [], [], seed=0)
    assert actual["service"].asa_seconds == pytest.approx(30) and same["service"].offered == 30
    people = [AgentConfig(id=name) for name in ("ann", "new-1", "new-2", "new-3", "new-4", "new-5")]
    _, more = simulate_day(day, people, [QueueConfig(id="service", service_level_span_ms=1)], seed=3)
    assert more["service"].answered == 30 and more["service"].asa_seconds < same["service"].asa_seconds
