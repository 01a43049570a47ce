"""What waiting callers are told, against what becomes of it: whole days of the engine in virtual time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.engine import step
from routing.model import (
    AgentConfig,
    AskCalls,
    CallConnected,
    CallFacts,
    CallQueued,
    CallState,
    ConfigureQueue,
    Event,
    PauseAgent,
    PlaceCall,
    QueueConfig,
    Reprioritize,
)
from routing.state import ShardState, expected_span_ms
from routing.views import page_of_calls, positions, view_call
from routing.virtual import HERE, Contact, Duty, Roster, VirtualDay

TALK_MS = 60_000
#: Calls of a day, and those at its beginning from which the router learns how its agents work.
CALLS, LEARNING = 1_500, 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A call that waited behind others and was answered."""

    #: What it was told when it came, what the agents alone would make of it, and what it came to.
    told_ms: int
    alone_ms: int
    wait_ms: int


class ToldDay(VirtualDay):
    """A day on which somebody notes what callers are told. `paused` agents are, the whole day."""

    def __init__(self, roster: Roster, contacts: Sequence[Contact], paused: int = 0) -> None:
        super().__init__(roster, contacts, self._hear)
        self._paused = paused
        self._came: dict[str, tuple[int, int, int]] = {}
        self.told: list[Told] = []

    def _on_duty(self, agent: str) -> None:
        super()._on_duty(agent)
        if int(agent[1:]) < self._paused:
            self._do(HERE, PauseAgent(agent=agent, paused=True, reason="training"))

    def _hear(self, site: str, event: Event, now_ms: int) -> None:
        state = self._sites[site]
        if isinstance(event, CallQueued):
            call_id = event.facts.call_id
            view, entry = view_call(state, call_id), state.calls[call_id]
            if view.state is CallState.WAITING and view.expected_wait_span_ms > 0:
                alone = expected_span_ms(entry.line, state.tallies[view.facts.queue], view.position - 1)
                self._came[call_id] = (now_ms, view.expected_wait_span_ms, alone)
        elif isinstance(event, CallConnected) and event.call_id in self._came:
            came_ms, told_ms, alone_ms = self._came[event.call_id]
            if int(event.call_id[1:]) >= LEARNING:
                self.told.append(Told(told_ms=told_ms, alone_ms=alone_ms, wait_ms=now_ms - came_ms))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a day is."""

    queues: int = 1
    agents: int = 20
    paused: int = 0
    #: Calls offered, of what all agents who work can take.
    load: float = 0.97
    patience_ms: int = 0
    channel: str = "voice"
    capacity: int = 1
    #: Of each hundred callers so many have a head start of a minute.
    urgent: int = 0
    ring_ms: int = 0
    #: What agents alone would be wrong by: the estimate without what earlier waits came to.
    alone: tuple[float, float] = (0.0, 100.0)


DAYS = {
    "one queue": Setting(alone=(0.8, 1.25)),
    "three queues share all agents": Setting(queues=3, alone=(0.3, 0.65)),
    "half of the agents are in a pause": Setting(agents=40, paused=20, alone=(0.8, 1.25)),
    "callers leave": Setting(load=1.1, patience_ms=90_000),
    "three chats at once": Setting(agents=7, channel="chat", capacity=3, alone=(2.0, 4.0)),
    "some have a head start": Setting(urgent=20),
    "agents take long to accept": Setting(ring_ms=10_000, load=0.83),
}


def whole_day(setting: Setting) -> list[Told]:
    rng = random.Random(f"told:{setting}")
    at_once = (setting.agents - setting.paused) * setting.capacity
    queues = tuple(
        QueueConfig(id=f"q{n}", wrap_up_span_ms=0, priority_credit_span_ms=60_000)
        for n in range(setting.queues)
    )
    contacts, now_ms = [], 0.0
    for number in range(CALLS):
        now_ms += rng.expovariate(at_once * setting.load / TALK_MS)
        contacts.append(
            Contact(
                id=f"c{number}",
                queue=rng.choice(queues).id,
                arrival_ms=round(now_ms),
                talk_ms=max(1, round(rng.expovariate(1 / TALK_MS))),
                patience_ms=round(rng.expovariate(1 / setting.patience_ms)) if setting.patience_ms else None,
                priority=int(rng.randrange(100) < setting.urgent),
                channel=setting.channel,
            )
        )
    agents = [f"a{n}" for n in range(setting.agents)]
    capacity = ((setting.channel, setting.capacity),)
    roster = Roster(
        queues=queues,
        agents=tuple(AgentConfig(id=agent, capacity=capacity) for agent in agents),
        duties=tuple(Duty(agent=agent, start_ms=0, end_ms=round(now_ms) * 2) for agent in agents),
        ring_ms=setting.ring_ms,
    )
    day = ToldDay(roster, contacts, setting.paused)
    day.run(until_ms=round(now_ms) * 2)
    return day.told


@pytest.mark.parametrize("name", DAYS)
def test_waits_are_what_callers_are_told(name: str) -> None:
    setting = DAYS[name]
    told = whole_day(setting)
    assert len(told) > 200, "enough callers had to wait"
    wait_ms = sum(each.wait_ms for each in told)
    ratio = sum(each.told_ms for each in told) / wait_ms
    alone = sum(each.alone_ms for each in told) / wait_ms
    error = sum(abs(each.told_ms - each.wait_ms) for each in told) / wait_ms
    print(f"{name}: {len(told)} told, {ratio:.2f} of the waits, agents alone {alone:.2f}, error {error:.2f}")
    assert 0.8 <= ratio <= 1.25
    assert error < 0.6, "each of them, not only the mean"
    assert setting.alone[0] <= alone <= setting.alone[1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.integers(0, 20_000), st.sampled_from(["", "french"])), max_size=30
    ),
    st.integers(0, 4),
)
def test_everybody_is_told_the_place_at_which_it_will_be_served(
    calls: list[tuple[int, int, str]], weight: int
) -> None:
    """Whenever it is asked for: also of a call with a head start, and of one that is opened again."""
    state, now_ms = ShardState("s"), 1_000_000
    state.epoch = 1
    step(
        state,
        ConfigureQueue(queue=QueueConfig(id="q", weight=weight, priority_credit_span_ms=10_000)),
        now_ms,
    )
    for number, (priority, pause_ms, skill) in enumerate(calls):
        now_ms += pause_ms + 1
        skills = ((skill, 1),) if skill else ()
        facts = CallFacts(call_id=f"c{number}", queue="q", priority=max(0, priority), skills=skills)
        step(state, PlaceCall(facts=facts, attempt=1, move=1, front="f"), now_ms)
        if priority < 0:
            step(state, Reprioritize(call_id=f"c{number // 2}", priority=-priority), now_ms)
        told = view_call(state, f"c{number}").position
        assert told == {call: place for call, place, _ in positions(state, 100)}[f"c{number}"]
    now_ms += 1
    step(state, PlaceCall(facts=CallFacts(call_id="last", queue="q"), attempt=1, move=1, front="f"), now_ms)
    for call_id, place, _ in positions(state, 100):
        assert view_call(state, call_id).position == place
    for view in page_of_calls(state, AskCalls(limit=100))[0]:
        assert view == view_call(state, view.facts.call_id), "a page looks once for all of them"
