"""The engine under virtual time: what days come out as, and the law of first come, first served."""

from __future__ import annotations

import heapq
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.model import AgentConfig, QueueConfig
from routing.virtual import Contact, DayResult, Duty, Fate, Leaving, Roster, VirtualDay, run_day

HOUR_MS = 3_600_000


def contact(number: int, arrival: int, talk: int, **more: Any) -> Contact:
    """Times in seconds."""
    for name in ("wrap_up", "patience"):
        if name in more:
            more[f"{name}_ms"] = more.pop(name) * 1000
    values = {"queue": "service", "arrival_ms": arrival * 1000, "talk_ms": talk * 1000, **more}
    return Contact(id=f"c{number}", **values)


def roster(*agents: str, queue: dict[str, Any] | None = None, **more: Any) -> Roster:
    """All agents on duty for an hour, unless `duties` says otherwise."""
    more.setdefault("duties", tuple(Duty(agent=a, start_ms=0, end_ms=HOUR_MS) for a in agents))
    config = QueueConfig(id="service", **{"overflow_span_ms": 0, **(queue or {})})
    return Roster(queues=(config,), agents=tuple(AgentConfig(id=a) for a in agents), **more)


def told(result: DayResult) -> list[tuple[str, int, str]]:
    """(fate, wait in seconds, agent), by arrival."""
    return [(o.fate.value, o.wait_ms // 1000, o.agent) for o in result.outcomes]


def test_one_agent_serves_one_after_the_other() -> None:
    result = run_day(roster("ann"), [contact(1, 0, 60), contact(2, 10, 60), contact(3, 200, 5)])
    assert told(result) == [("answered", 0, "ann"), ("answered", 50, "ann"), ("answered", 0, "ann")]
    assert result.busy_ms == {"ann": 125_000} and result.duty_ms == {"ann": HOUR_MS}


def test_after_call_work_keeps_the_agent_for_as_long_as_it_takes_but_not_longer_than_the_queue_allows() -> (
    None
):
    calls = [contact(1, 0, 60, wrap_up=20), contact(2, 0, 60, wrap_up=90), contact(3, 0, 60)]
    result = run_day(roster("ann", queue={"wrap_up_span_ms": 30_000}), calls)
    assert [wait for _, wait, _ in told(result)] == [0, 80, 170]
    assert result.busy_ms["ann"] == (60 + 20 + 60 + 30 + 60) * 1000


def test_patience_ends_a_wait_and_nobody_is_served_after_it() -> None:
    calls = [
        contact(1, 0, 60),
        contact(2, 1, 60, patience=20),
        contact(3, 2, 60),
        contact(4, 3, 9, patience=0),
    ]
    result = run_day(roster("ann"), calls)
    fates = [("answered", 0, "ann"), ("abandoned", 20, ""), ("answered", 58, "ann"), ("abandoned", 0, "")]
    assert told(result) == fates


def test_who_is_answered_at_the_very_end_of_the_patience_is_answered() -> None:
    result = run_day(roster("ann"), [contact(1, 0, 60), contact(2, 0, 60, patience=60)])
    assert told(result)[1] == ("answered", 60, "ann")


def test_ringing_takes_time_and_a_caller_may_leave_during_it() -> None:
    calls = [contact(1, 0, 60), contact(2, 300, 60, patience=4)]
    result = run_day(roster("ann", ring_ms=5_000), calls)
    assert told(result) == [("answered", 5, "ann"), ("abandoned", 4, "")]


def test_what_nobody_takes_is_unserved_or_refused_by_the_queue() -> None:
    calls = [contact(1, 0, 7200), contact(2, 1, 60)]
    assert told(run_day(roster("ann"), calls, until_ms=HOUR_MS))[1][0] == "unserved"
    full = run_day(roster("ann", queue={"length_max": 1}), [*calls, contact(3, 2, 60)])
    assert told(full)[2] == ("refused", 0, "")
    limited = run_day(roster("ann", queue={"wait_span_max_ms": 30_000}), calls)
    assert told(limited)[1] == ("refused", 30, "")


def test_an_agent_goes_home_after_the_contact_in_hand() -> None:
    duties = (Duty(agent="ann", start_ms=0, end_ms=30_000), Duty(agent="bob", start_ms=0, end_ms=HOUR_MS))
    calls = [contact(1, 0, 60), contact(2, 0, 100), contact(3, 5, 10)]
    result = run_day(roster("ann", "bob", duties=duties), calls)
    assert told(result) == [("answered", 0, "ann"), ("answered", 0, "bob"), ("answered", 95, "bob")]
    assert result.duty_ms["ann"] == 60_000


def test_counted_by_heads_whoever_is_free_first_goes_home_instead() -> None:
    duties = (Duty(agent="ann", start_ms=0, end_ms=30_000), Duty(agent="bob", start_ms=0, end_ms=HOUR_MS))
    calls = [contact(1, 0, 60), contact(2, 0, 40), contact(3, 5, 10)]
    result = run_day(roster("ann", "bob", duties=duties, leaving=Leaving.FIRST_FREE), calls)
    assert told(result)[2] == ("answered", 55, "ann")


def test_who_comes_back_while_still_talking_simply_stays() -> None:
    duties = (
        Duty(agent="ann", start_ms=0, end_ms=10_000),
        Duty(agent="ann", start_ms=20_000, end_ms=HOUR_MS),
    )
    result = run_day(roster("ann", duties=duties), [contact(1, 0, 60), contact(2, 5, 60)])
    assert told(result)[1] == ("answered", 55, "ann") and result.duty_ms["ann"] == HOUR_MS


@pytest.mark.parametrize("share", [False, True])
def test_sites_that_share_take_what_waits_elsewhere(share: bool) -> None:
    team = roster("ann", "bob", sites={"ann": "north", "bob": "south"}, share=share)
    calls = [contact(n, n, 100, home="north") for n in (1, 2, 3)]
    waits = [(o.wait_ms // 1000, o.site) for o in run_day(team, calls).outcomes]
    assert waits == (
        [(0, "north"), (0, "south"), (98, "north")]
        if share
        else [(0, "north"), (99, "north"), (198, "north")]
    )


def test_a_waiting_contact_moves_once_it_has_waited_long_enough() -> None:
    team = roster(
        *("ann", "bob"),
        queue={"overflow_span_ms": 20_000},
        sites={"ann": "north", "bob": "south"},
        share=True,
    )
    calls = [
        contact(1, 0, 500, home="north"),
        contact(2, 1, 30, home="south"),
        contact(3, 2, 9, home="north"),
    ]
    # the south is free at 31 s, and by then the third has waited for more than 20 s
    assert [(o.wait_ms // 1000, o.site) for o in run_day(team, calls).outcomes][2] == (29, "south")
    calls[2] = contact(3, 20, 9, home="north")
    # free at 31 s, but waited for 20 s only at 40 s
    assert [(o.wait_ms // 1000, o.site) for o in run_day(team, calls).outcomes][2] == (20, "south")


@settings(max_examples=40)
@given(
    agents=st.integers(1, 4),
    rows=st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 60), st.none() | st.integers(1, 50)),
        min_size=1,
        max_size=40,
    ),
    sites=st.integers(1, 2),
)
def test_first_come_first_served(agents: int, rows: list[tuple[int, int, int | None]], sites: int) -> None:
    """One site: each wait is the one that follows from the times. Two that share: no agent is idle while a
    contact waits, so as much work is done as in one.
    """
    now, calls = 0, []
    for number, (gap, talk, patience) in enumerate(rows):
        now += gap
        values = {} if patience is None else {"patience": patience}
        calls.append(contact(number + 1_000, now, talk, home=f"site-{number % sites}", **values))
    names = [f"agent-{n}" for n in range(agents)]
    team = roster(*names, sites={a: f"site-{n % sites}" for n, a in enumerate(names)}, share=sites > 1)
    result = run_day(team, calls, until_ms=HOUR_MS - 1)
    assert len(result.outcomes) == len(calls)
    if sites > 1:
        assert all(o.fate in (Fate.ANSWERED, Fate.ABANDONED) for o in result.outcomes)
        assert sum(result.busy_ms.values()) == sum(
            o.contact.talk_ms for o in result.outcomes if o.fate is Fate.ANSWERED
        )
        return
    free = [0] * agents
    for outcome in result.outcomes:
        c = outcome.contact
        wait = max(0, free[0] - c.arrival_ms)
        if c.patience_ms is not None and wait > c.patience_ms:
            assert (outcome.fate, outcome.wait_ms) == (Fate.ABANDONED, c.patience_ms)
        else:
            assert (outcome.fate, outcome.wait_ms) == (Fate.ANSWERED, wait)
            heapq.heapreplace(free, c.arrival_ms + wait + c.talk_ms)


@pytest.mark.parametrize(
    ("calls", "duties", "why"),
    [
        ([contact(1, 0, 1), contact(1, 2, 1)], (), "two contacts have the same id"),
        ([contact(1, 0, 1, queue="sales")], (), "contact c1 waits in 'sales', which is no queue"),
        ([], (Duty(agent="zoe", start_ms=0, end_ms=1),), "a duty names 'zoe', who is no agent"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(calls: list[Contact], duties: tuple[Duty, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        VirtualDay(roster("ann", duties=duties), calls)


def test_an_empty_day_is_a_day() -> None:
    result = run_day(roster("ann"), [])
    assert result.outcomes == () and result.busy_ms == {"ann": 0}
