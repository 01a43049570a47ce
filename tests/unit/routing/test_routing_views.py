"""What a shard looks like from outside: positions, expected waits, loads, pages."""

from __future__ import annotations

from typing import Any

import pytest

from routing import views
from routing.engine import step
from routing.model import (
    AcceptOffer,
    AgentConfig,
    AskCalls,
    CallFacts,
    CallOutcome,
    CallState,
    CallView,
    CloseSession,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    DetachSession,
    EndCall,
    FinishWrapUp,
    HangUp,
    OpenSession,
    PlaceCall,
    Presence,
    QueueConfig,
    SetPresence,
    ShardOpened,
)
from routing.state import Line, ShardState, Tally, evolve
from routing.views import expected_wait_span_ms, page_of_calls, positions, queue_loads, view_call


class Shard:
    def __init__(self) -> None:
        self.state = ShardState("s")
        self.state.epoch = 1
        self.now_ms = 1_000_000
        self.do(ConfigureQueue(queue=QueueConfig(id="service")))

    def do(self, command: Any) -> None:
        _, answer = step(self.state, command, self.now_ms)
        assert answer.refusal is None, answer

    def agents(self, count: int) -> None:
        for n in range(count):
            self.do(ConfigureAgent(agent=AgentConfig(id=f"a{n}")))
            self.do(OpenSession(agent=f"a{n}", session=1, command=1, front="f"))

    def place(self, call_id: str, queue: str = "service", **facts: Any) -> None:
        facts_ = CallFacts(call_id=call_id, queue=queue, **facts)
        self.do(PlaceCall(facts=facts_, attempt=1, move=1, front="f"))

    @property
    def line(self) -> Line:
        return self.state.lines[("service", "voice", (), 0)]

    def converse(self, call_id: str, talk_ms: int, wrap_up_ms: int) -> None:
        self.place(call_id)
        entry = self.state.calls[call_id]
        self.do(AcceptOffer(agent=entry.agent, session=1, offer_id=entry.offer_id))
        self.do(ConfirmCall(call_id=call_id, offer_id=entry.offer_id, attempt=1, move=1))
        self.now_ms += talk_ms
        self.do(EndCall(call_id=call_id))
        self.now_ms += wrap_up_ms
        self.do(FinishWrapUp(agent=entry.agent, session=1, call_id=call_id))


def test_each_field_of_a_view_is_the_entrys_of_that_name() -> None:
    # A view's fields are given by position: no two values are alike here, so none can be another's.
    shard = Shard()
    shard.place("c", caller_number="+86131")
    entry = shard.state.calls["c"]
    shared = [name for name in CallView.__struct_fields__ if hasattr(entry, name)]
    for number, name in enumerate(shared):
        if isinstance(getattr(entry, name), int | str) and name != "state":
            setattr(entry, name, f"{name}" if isinstance(getattr(entry, name), str) else 7_000 + number)
    entry.state, entry.outcome, entry.attached = CallState.ENDED, CallOutcome.MOVED, False
    view = view_call(shard.state, "c")
    assert len(shared) == 20
    assert {name: getattr(view, name) for name in shared} == {name: getattr(entry, name) for name in shared}
    assert (view.agent_address, view.detached, view.position, view.expected_wait_span_ms) == ("", True, 0, -1)


def test_positions_follow_the_order_of_serving() -> None:
    shard = Shard()
    for call_id in ("c1", "c2", "c3"):
        shard.place(call_id)
        shard.now_ms += 1_000
    shard.place("vip", priority=1)
    shard.do(HangUp(call_id="c2", attempt=1))
    assert [(c, p) for c, p, _ in positions(shard.state, 10)] == [
        ("vip", 1),
        ("c1", 2),
        ("c3", 3),
    ]
    assert len(list(positions(shard.state, 2))) == 2
    assert view_call(shard.state, "c3").position == 3


def test_a_position_is_that_among_all_who_wait_in_the_queue() -> None:
    shard = Shard()
    shard.agents(1)
    shard.converse("c0", 60_000, 0)
    shard.place("busy")
    for call_id, facts in {
        "c1": {},
        "c2": {"skills": (("french", 3),)},
        "c3": {"preferred_agent": "a0"},
        "c4": {"channel": "chat"},
    }.items():
        shard.now_ms += 1_000
        shard.place(call_id, **facts)
    told = {call_id: position for call_id, position, _ in positions(shard.state, 10)}
    assert told == {"c1": 1, "c2": 2, "c3": 3, "c4": 1}, "chat is another queue of people"
    assert view_call(shard.state, "c3").position == 3


def test_the_expected_wait_needs_a_handled_call_and_an_agent() -> None:
    shard = Shard()
    shard.place("c1")
    assert view_call(shard.state, "c1").expected_wait_span_ms == -1
    shard.do(HangUp(call_id="c1", attempt=1))
    shard.agents(2)
    assert expected_wait_span_ms(shard.line, None, 0) == 0, "somebody is free"
    shard.converse("c2", 100_000, 20_000)
    for call_id in ("r1", "r2", "w1", "w2", "w3"):
        shard.place(call_id)
    waits = [wait for _, _, wait in positions(shard.state, 10)]
    # Two agents, two minutes a call: one of them becomes free every minute.
    assert waits == [60_000, 120_000, 180_000]


@pytest.mark.parametrize(
    ("handled", "logged_in", "ahead", "expected"),
    [(0, 3, 0, -1), (1, 0, 0, -1), (1, 1, 0, 30_000), (1, 3, 2, 30_000), (1, 4, 0, 7_500)],
)
def test_the_expected_wait_is_that_of_poisson_departures(
    handled: int, logged_in: int, ahead: int, expected: int
) -> None:
    shard = Shard()
    line, tally = shard.line, Tally()
    tally.handled, tally.handle_span_ms, tally.wrap_up_span_ms = handled, 20_000.0, 10_000.0
    line.logged_in = logged_in
    assert expected_wait_span_ms(line, tally, ahead) == expected


def test_loads_count_all_lines_of_a_queue() -> None:
    shard = Shard()
    shard.do(ConfigureQueue(queue=QueueConfig(id="other")))
    shard.agents(2)
    shard.do(SetPresence(agent="a1", session=1, command=2, presence=Presence.PAUSED))
    shard.place("c1", skills=(("french", 2),))
    shard.place("c2", channel="chat")
    loads = {load.queue: load for load in queue_loads(shard.state)}
    assert list(loads) == ["other", "service"]
    service = loads["service"]
    assert (service.waiting, service.agents_logged_in, service.agents_free) == (2, 2, 1)
    assert loads["other"].waiting == 0


def test_pages_hold_live_calls_in_order_and_miss_none() -> None:
    shard = Shard()
    shard.do(ConfigureQueue(queue=QueueConfig(id="other")))
    for n in range(7):
        shard.place(f"c{n}", queue="other" if n % 2 else "service")
        shard.now_ms += n % 3
    shard.do(HangUp(call_id="c3", attempt=1))
    found: list[str] = []
    after = (0, "")
    more = True
    while more:
        page, more = page_of_calls(shard.state, AskCalls(after=after, limit=2))
        found += [view.facts.call_id for view in page]
        after = (page[-1].queued_ms, page[-1].facts.call_id)
    assert found == ["c0", "c1", "c2", "c4", "c5", "c6"]
    other, more = page_of_calls(shard.state, AskCalls(queue="other"))
    assert [view.facts.call_id for view in other] == ["c1", "c5"] and not more
    assert page_of_calls(shard.state, AskCalls(states=(CallState.CONNECTED,))) == ((), False)


@pytest.mark.parametrize(("bytes_max", "pages"), [(1 << 20, [5]), (2_500, [2, 2, 1]), (10, [1] * 5)])
def test_a_page_is_as_large_as_a_message_may_be(
    bytes_max: int, pages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call at least, whatever it carries, or the next page would begin where this one did."""
    monkeypatch.setattr(views, "PAGE_BYTES_MAX", bytes_max)
    shard, after, found, more = Shard(), (0, ""), [], True
    for n in range(5):
        shard.place(f"c{n}", attributes=(("history", "x" * 1_000),))
    while more:
        page, more = page_of_calls(shard.state, AskCalls(after=after))
        found.append(len(page))
        after = (page[-1].queued_ms, page[-1].facts.call_id)
    assert found == pages


def test_agents_who_have_not_come_back_after_a_change_of_leader_are_not_present() -> None:
    shard = Shard()
    shard.agents(3)
    shard.do(SetPresence(agent="a2", session=1, command=2, presence=Presence.PAUSED))
    assert _seats(shard) == (3, 3, 2)
    evolve(shard.state, ShardOpened(router="other", leaderless_span_ms=0), shard.now_ms)
    assert _seats(shard) == (3, 0, 0)
    shard.do(OpenSession(agent="a0", session=1, command=3, front="f"))
    assert _seats(shard) == (3, 1, 1)
    shard.do(DetachSession(agent="a0", session=1, front="f"))
    shard.do(CloseSession(agent="a1", session=1))
    assert _seats(shard) == (2, 0, 0)
    shard.do(ConfigureQueue(queue=QueueConfig(id="service", weight=1)))
    assert _seats(shard) == (2, 0, 0)
    shard.do(OpenSession(agent="a0", session=2, command=1, front="f"))
    shard.do(ConfigureQueue(queue=QueueConfig(id="service", weight=2)))
    assert _seats(shard) == (2, 1, 1)


def _seats(shard: Shard) -> tuple[int, int, int]:
    """Agents logged in, present and free, counted in the line as the agents themselves say."""
    load = queue_loads(shard.state)[0]
    assert load.agents_present == sum(agent.is_present for agent in shard.state.agents.values())
    return load.agents_logged_in, load.agents_present, load.agents_free
