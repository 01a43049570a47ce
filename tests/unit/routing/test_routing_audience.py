"""Who hears of an event: the fronts of its call and its agent, and a front that has just lost either."""

from __future__ import annotations

from typing import Any

import pytest

from routing.audience import MANY_EVENTS, Audience
from routing.engine import step
from routing.model import (
    AcceptOffer,
    AgentConfig,
    AgentState,
    AttachCalls,
    CallAttached,
    CallConnected,
    CallEnded,
    CallFacts,
    CallOffered,
    CallQueued,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    EndCall,
    Fact,
    ForceLogOut,
    HangUp,
    OfferEnded,
    OpenSession,
    PlaceCall,
    QueueConfig,
    RemoveAgent,
    SessionClosed,
    SessionOpened,
    ShardOpened,
    Tick,
)
from routing.state import ShardState, evolve, next_deadline
from routing.views import view_call


class Shard:
    def __init__(self) -> None:
        self.state = ShardState("beijing")
        self.state.epoch = 1
        self.now_ms = 1_000_000
        self.audience = Audience()
        self.do(ConfigureQueue(queue=QueueConfig(id="service", wrap_up_span_ms=0)))

    def do(self, command: Command) -> list[tuple[str, Fact]]:
        events, answer = step(self.state, command, self.now_ms)
        return self.audience.facts(self.state, events, answer, self.now_ms)

    def agent(self, agent: str, front: str, session: int = 1) -> list[tuple[str, Fact]]:
        self.do(ConfigureAgent(agent=AgentConfig(id=agent)))
        return self.do(OpenSession(agent=agent, session=session, command=session, front=front))

    def place(self, call_id: str = "c1", attempt: int = 1, front: str = "edge", **more: Any) -> Any:
        facts = CallFacts(call_id=call_id, queue="service")
        return self.do(PlaceCall(facts=facts, attempt=attempt, move=1, front=front, **more))

    def connect(self, call_id: str = "c1") -> list[tuple[str, Fact]]:
        entry = self.state.calls[call_id]
        self.do(AcceptOffer(agent=entry.agent, session=1, offer_id=entry.offer_id))
        return self.do(
            ConfirmCall(call_id=call_id, offer_id=entry.offer_id, attempt=entry.attempt, move=entry.move)
        )


def heard(facts: list[tuple[str, Fact]], kind: type) -> list[tuple[str, str]]:
    """(front, agent) of each fact of a kind."""
    return [
        (front, fact.agent.agent if fact.agent is not None else "")
        for front, fact in facts
        if isinstance(fact.event, kind)
    ]


def test_the_callers_and_the_agents_front_hear_of_an_offer() -> None:
    shard = Shard()
    shard.agent("ann", "desks")
    facts = shard.place()
    assert heard(facts, CallQueued) == [("edge", "")]
    assert heard(facts, CallOffered) == [("desks", "ann"), ("edge", "ann")]


def test_a_front_that_holds_both_hears_once() -> None:
    shard = Shard()
    shard.agent("ann", "edge")
    assert heard(shard.place(), CallOffered) == [("edge", "ann")]


def test_a_front_that_loses_a_call_or_an_agent_hears_of_that_once() -> None:
    shard = Shard()
    shard.place()
    assert heard(shard.place(attempt=2, front="other"), CallAttached) == [("edge", ""), ("other", "")]
    assert heard(shard.do(HangUp(call_id="c1", attempt=2)), CallEnded) == [("other", "")]
    shard.agent("ann", "desks")
    assert heard(shard.agent("ann", "others", 2), SessionOpened) == [("desks", "ann"), ("others", "ann")]
    shard.place("c2")
    assert ("desks", "ann") not in heard(shard.place("c2", attempt=2), OfferEnded)


def test_the_desk_hears_of_the_end_of_its_conversation() -> None:
    shard = Shard()
    shard.agent("ann", "desks")
    shard.place()
    assert heard(shard.connect(), CallConnected) == [("desks", "ann"), ("edge", "ann")]
    assert heard(shard.do(EndCall(call_id="c1")), CallEnded) == [("desks", "ann"), ("edge", "ann")]


@pytest.mark.parametrize(
    ("asked", "holds", "with_agent", "told"),
    [
        ("edge", False, False, []),
        ("edge", True, False, [("edge", "")]),
        ("other", False, False, [("edge", "")]),
        ("edge", False, True, [("desks", "ann"), ("edge", "ann")]),
    ],
    ids=["gone", "held", "a front elsewhere", "an agent was in it"],
)
def test_an_end_is_not_told_where_nobody_holds_the_stream(
    asked: str, holds: bool, with_agent: bool, told: list[tuple[str, str]]
) -> None:
    shard = Shard()
    shard.audience.holders[asked] = lambda call_id: holds
    if with_agent:
        shard.agent("ann", "desks")
    shard.place()
    if with_agent:
        shard.connect()
    assert heard(shard.do(HangUp(call_id="c1", attempt=1)), CallEnded) == told


def test_an_end_is_told_to_the_agent_who_had_the_call_and_not_to_the_next() -> None:
    """One command ends a broken conversation and queues the call anew, which rings somebody else at once."""
    shard = Shard()
    shard.agent("ann", "desks")
    shard.place()
    shard.connect()
    shard.agent("bob", "others")
    facts = shard.place(attempt=2, agent_lost=True)
    assert ("others", "bob") in heard(facts, CallOffered) or ("desks", "ann") in heard(facts, CallOffered)
    assert {agent for _, agent in heard(facts, CallEnded)} == {"ann"}
    assert "others" not in {front for front, _ in heard(facts, CallEnded)}


@pytest.mark.parametrize("talks", [False, True])
def test_a_desktop_hears_that_its_agent_is_removed(talks: bool) -> None:
    shard = Shard()
    shard.agent("ann", "desks")
    if talks:
        shard.place()
        shard.connect()
        assert heard(shard.do(RemoveAgent(agent="ann")), SessionClosed) == [], "not before it is over"
        facts = shard.do(ForceLogOut(agent="ann", interrupt=True))
        assert ("desks", "ann") in heard(facts, CallEnded)
    else:
        facts = shard.do(RemoveAgent(agent="ann"))
    assert heard(facts, SessionClosed) == [("desks", "ann")]
    [agent] = {fact.agent for _, fact in facts}
    assert agent is not None and (agent.state, agent.calls) == (AgentState.OFFLINE, ())
    assert "ann" not in shard.state.agents
    assert heard(shard.agent("ann", "others"), SessionOpened) == [("others", "ann")], "a stranger"


def test_after_a_change_of_leader_the_audience_is_read_from_the_state() -> None:
    shard = Shard()
    shard.agent("ann", "desks")
    shard.place()
    shard.connect()
    shard.audience = Audience.of(shard.state)
    assert heard(shard.do(EndCall(call_id="c1")), CallEnded) == [("desks", "ann"), ("edge", "ann")]


def test_what_is_forgotten_is_forgotten_here_too() -> None:
    shard = Shard()
    shard.agent("ann", "desks")
    shard.place()
    shard.connect()
    shard.do(EndCall(call_id="c1"))
    while (due := next_deadline(shard.state)) is not None:
        shard.now_ms = max(shard.now_ms, due[0])
        shard.do(Tick())
    assert not shard.state.calls and not shard.audience._calls and not shard.audience._agent_of


@pytest.mark.parametrize("count", [MANY_EVENTS - 1, 3 * MANY_EVENTS], ids=["few", "many"])
def test_each_of_many_that_attach_together_is_told_its_own_place(count: int) -> None:
    shard = Shard()
    for n in range(count):
        shard.place(f"c{n}", waited_span_ms=7 * n % 5)
    evolve(shard.state, ShardOpened(router="next", leaderless_span_ms=0), shard.now_ms)
    shard.now_ms += 1_000
    facts = shard.do(AttachCalls(front="edge", calls=tuple((f"c{n}", 1, 1) for n in range(count))))
    views = [fact.call for _, fact in facts]
    assert views == [view_call(shard.state, f"c{n}") for n in range(count)]
    assert sorted(view.position for view in views if view is not None) == list(range(1, count + 1))
