"""Explanations and live figures: what they say of a shard, and that they change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import codec
from routing.engine import step
from routing.model import (
    AcceptOffer,
    AgentConfig,
    Answer,
    AskExplain,
    AskStats,
    CallFacts,
    CallOffered,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    DeclineOffer,
    DetachCall,
    DetachSession,
    EndCall,
    Event,
    ForceLogOut,
    OpenSession,
    PauseAgent,
    PlaceCall,
    QueueConfig,
    RelaxationStep,
    RequestCallback,
    Strategy,
)
from routing.state import ShardState
from routing.views import view_call

START_MS = 1_000_000


class Shard:
    """A shard with one queue that asks for chinese at level 3."""

    def __init__(self, **queue: Any) -> None:
        self.state = ShardState("beijing")
        self.state.epoch = 1
        self.now_ms = START_MS
        self.do(ConfigureQueue(queue=QueueConfig(id="service", **{"skills": (("chinese", 3),), **queue})))

    def do(self, command: Command) -> Answer:
        return self.events(command)[1]

    def events(self, command: Command) -> tuple[list[Event], Answer]:
        return step(self.state, command, self.now_ms)

    def agent(self, agent: str, *, log_in: bool = True, **config: Any) -> None:
        config.setdefault("skills", (("chinese", 4),))
        self.do(ConfigureAgent(agent=AgentConfig(id=agent, **config)))
        if log_in:
            self.do(OpenSession(agent=agent, session=1, command=1, front="f"))
        self.now_ms += 1_000

    def place(self, call_id: str, **facts: Any) -> None:
        self.do(
            PlaceCall(
                facts=CallFacts(call_id=call_id, queue="service", **facts), attempt=1, move=1, front="f"
            )
        )

    def connect(self, call_id: str) -> None:
        call = view_call(self.state, call_id)
        self.do(AcceptOffer(agent=call.agent, session=1, offer_id=call.offer_id))
        self.do(ConfirmCall(call_id=call_id, offer_id=call.offer_id, attempt=1, move=1))

    def ask(self, call_id: str = "", limit: int = 100, **facts: Any) -> Any:
        wanted = None if call_id else CallFacts(call_id="h", queue="service", **facts)
        answer = self.do(AskExplain(call_id=call_id, facts=wanted, limit=limit))
        assert answer.refusal is None
        return answer.explanation

    def reasons(self, call_id: str = "", **facts: Any) -> dict[str, str]:
        return {a.agent: a.skipped_reason for a in self.ask(call_id, **facts).agents}


def crowd() -> Shard:
    """Agents of every kind."""
    shard = Shard(reject_delay_span_ms=60_000)
    shard.agent("busy")
    shard.place("c1")
    shard.connect("c1")
    shard.agent("wrapping")
    shard.place("c2")
    shard.connect("c2")
    shard.do(EndCall(call_id="c2"))
    shard.agent("resting")
    shard.place("c3")
    shard.do(DeclineOffer(agent="resting", session=1, offer_id=view_call(shard.state, "c3").offer_id))
    shard.agent("rung")
    shard.agent("paused")
    shard.do(PauseAgent(agent="paused", paused=True, reason="lunch"))
    shard.agent("offline", log_in=False)
    shard.agent("unskilled", skills=(("english", 5),))
    shard.agent("low", skills=(("chinese", 2),))
    shard.agent("mute", capacity=(("chat", 2),))
    shard.agent("away")
    shard.do(DetachSession(agent="away", session=1))
    shard.agent("warm", warm_up_span_ms=60_000)
    shard.agent("leaving")
    shard.place("c4")
    shard.connect("c4")
    shard.do(ForceLogOut(agent="leaving"))
    shard.agent("free2")
    shard.agent("free3")
    return shard


def test_every_agent_has_a_reason_and_the_free_ones_a_rank() -> None:
    shard = crowd()
    found = shard.ask()
    assert {a.agent: a.skipped_reason for a in found.agents} == {
        "free2": "",
        "free3": "",
        "busy": "BUSY",
        "wrapping": "WRAP_UP",
        "resting": "REJECT_DELAY",
        "rung": "RESERVED",
        "paused": "PAUSED",
        "offline": "OFFLINE",
        "unskilled": "SKILL_MISSING",
        "low": "LEVEL_TOO_LOW",
        "mute": "NO_CHANNEL",
        "away": "NO_STREAM",
        "warm": "WARMING_UP",
        "leaving": "DRAINING",
    }
    assert [(a.agent, a.rank) for a in found.agents[:2]] == [("free2", 1), ("free3", 2)]
    assert found.summary == "It would be offered to free2 at once in queue service, longest idle first."
    assert [a.agent for a in shard.ask(limit=1).agents] == ["free2"]


def test_what_is_explained_is_what_happens() -> None:
    for strategy in (s for s in Strategy if s is not Strategy.RANDOM):
        shard = Shard(strategy=strategy)
        for number, agent in enumerate(("ann", "bob", "eve")):
            shard.agent(agent, priority=3 - number, skills=(("chinese", 3 + number),))
        expected = next(a.agent for a in shard.ask().agents if a.rank == 1)
        offers = [
            e
            for e in shard.events(
                PlaceCall(facts=CallFacts(call_id="c", queue="service"), attempt=1, move=1, front="f")
            )[0]
            if isinstance(e, CallOffered)
        ]
        assert [o.agent for o in offers] == [expected], strategy


def test_a_set_of_skills_that_nobody_asked_for_yet_is_explained_as_it_will_be() -> None:
    shard = Shard()
    for number in range(40):
        levels = {"chinese": 3 + number % 3, "french": number % 4, "fibre": number % 5}
        shard.agent(f"a{number:02d}", skills=tuple((s, n) for s, n in sorted(levels.items()) if n))
    wanted = (("fibre", 3), ("french", 2))
    found = shard.ask(skills=wanted)
    ranked = [a.agent for a in found.agents if a.rank]
    fit = [f"a{n:02d}" for n in range(40) if n % 4 >= 2 and n % 5 >= 3]
    assert ranked == fit, "who is free for longest comes first"
    assert {a.skipped_reason for a in found.agents if not a.rank} == {"SKILL_MISSING", "LEVEL_TOO_LOW"}
    shard.place("c1", skills=wanted)
    again = shard.ask(skills=wanted)
    assert [a.agent for a in again.agents if a.rank] == ranked[1:], "now that there is such a line"
    assert shard.ask("c1").summary.startswith(f"Rings at {ranked[0]}")


def test_lots_make_nobody_better() -> None:
    shard = Shard(strategy=Strategy.RANDOM)
    for agent in ("ann", "bob"):
        shard.agent(agent)
    assert [a.rank for a in shard.ask().agents] == [1, 1]
    assert shard.ask().summary == (
        "It would be offered to one of 2 who are free at once in queue service, by lot, each as likely."
    )


def test_who_let_it_ring_in_vain_is_not_the_best_of_a_short_list() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.agent("bob")
    shard.place("c1")
    shard.do(DeclineOffer(agent="ann", session=1, offer_id=view_call(shard.state, "c1").offer_id))
    shard.do(DetachCall(call_id="c1", attempt=1, move=1))
    assert [a.agent for a in shard.ask().agents] == ["ann", "bob"], "as for anybody else"
    assert [a.agent for a in shard.ask("c1").agents] == ["bob", "ann"]
    assert [a.agent for a in shard.ask("c1", limit=1).agents] == ["bob"]


def test_a_call_that_has_waited_elsewhere_is_looked_at_in_its_step() -> None:
    steps = (
        RelaxationStep(skills=(("chinese", 5),), span_ms=10_000),
        RelaxationStep(skills=(("chinese", 3),)),
    )
    shard = Shard(steps=steps)
    shard.agent("ann")
    facts = CallFacts(call_id="h", queue="service")
    for waited_ms, found in ((9_999, (0, "")), (10_000, (1, "ann"))):
        told = shard.do(AskExplain(facts=facts, limit=1, waited_span_ms=waited_ms)).explanation
        assert told is not None
        assert (told.step, "".join(a.agent for a in told.agents if a.rank)) == found


def test_a_live_call_is_explained_as_it_stands() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    assert shard.ask("c1").summary == "Rings at ann in queue service; of 1 who fit, 1 reserved."
    shard.connect("c1")
    assert shard.ask("c1").summary.startswith("Talks with ann")
    shard.place("c2")
    shard.now_ms += 7_000
    assert shard.ask("c2").summary == "Waits 7 s in queue service with 0 others; of 1 who fit, 1 busy."
    shard.do(DetachCall(call_id="c2", attempt=1, move=1))
    assert "not offered because nobody holds its stream" in shard.ask("c2").summary
    shard.do(EndCall(call_id="c1"))
    assert shard.ask("c1").summary.startswith("Ended completed")
    assert shard.do(AskExplain(call_id="c9")).refusal is not None


def test_a_call_that_waits_for_one_agent() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.agent("bob")
    shard.place("c1", preferred_agent="ann")
    shard.place("c2", preferred_agent="ann")
    assert shard.reasons("c2") == {"ann": "RESERVED", "bob": "NOT_PREFERRED"}
    assert "Waits 0 s for ann" in shard.ask("c2").summary


def test_the_step_of_relaxation_in_force() -> None:
    steps = (
        RelaxationStep(skills=(("chinese", 5),), span_ms=10_000, skip_if_nobody_fits=True),
        RelaxationStep(skills=(("chinese", 3),)),
    )
    shard = Shard(steps=steps)
    shard.agent("ann", skills=(("chinese", 4),))
    assert shard.ask().step == 1
    shard.agent("pro", skills=(("chinese", 5),))
    found = shard.ask()
    assert found.step == 0 and found.agents[0].agent == "pro" and "step 1" in found.summary
    assert {a.agent: a.skipped_reason for a in found.agents}["ann"] == "LEVEL_TOO_LOW"


def test_a_second_contact_beside_the_first() -> None:
    shard = Shard()
    shard.agent("chatty", capacity=(("chat", 2), ("voice", 1)))
    shard.place("c1", channel="chat")
    shard.connect("c1")
    assert shard.reasons(channel="chat") == {"chatty": ""}
    assert shard.reasons(channel="voice") == {"chatty": "BUSY"}
    shard.place("c2", channel="chat")
    shard.connect("c2")
    assert shard.reasons(channel="chat") == {"chatty": "CHANNEL_FULL"}
    assert shard.reasons(channel="voice") == {"chatty": "BUSY"}, "with chats, not with voice"


@pytest.mark.parametrize(
    ("queue", "facts", "said"),
    [
        ({}, {"preferred_agent": "bob"}, "offered to bob at once in queue service, the agent asked for"),
        ({}, {"preferred_agent": "cid"}, "would wait for cid in queue service"),
        ({}, {"preferred_agent": "dan"}, "offered to ann at once in queue service, longest idle first"),
        ({}, {"preferred_agent": "nobody"}, "offered to ann at once"),
        (
            {"preferred_span_ms": 0},
            {"preferred_agent": "cid"},
            "offered to bob at once in queue service, longest",
        ),
        ({"length_max": 1}, {}, "refused: queue service is full"),
        ({"refuse_without_agents": True}, {}, "offered to ann at once"),
        ({"refuse_without_agents": True}, {"channel": "chat"}, "offered to ann at once"),
        ({"refuse_without_agents": True}, {"channel": "sms"}, "refused: nobody who fits is logged in"),
        ({"refuse_without_agents": True}, {"skills": (("skating", 1),)}, "refused: nobody who fits"),
    ],
)
def test_a_hypothetical_call_is_told_what_a_real_one_meets(
    queue: dict[str, Any], facts: dict[str, Any], said: str
) -> None:
    shard = Shard(**queue)
    both = (("voice", 1), ("chat", 2))
    for agent in ("ann", "bob", "cid", "dan", "eve"):
        shard.agent(agent, capacity=both)
    shard.agent("skater", skills=(("skating", 2),), log_in=False)
    shard.place("c0", preferred_agent="cid")
    shard.connect("c0")
    shard.place("waits", skills=(("juggling", 1),)) if queue.get("length_max") else None
    shard.do(PauseAgent(agent="dan", paused=True))
    assert said in shard.ask(**facts).summary
    shard.place("c1", **facts)
    real = shard.state.calls.get("c1")
    ringing = next((agent for agent in ("ann", "bob") if f"offered to {agent}" in said), "")
    assert (real is None) == ("refused" in said) and (real is None or real.agent == ringing)


def test_a_closed_queue_is_said_to_refuse() -> None:
    shard = Shard(closed=True)
    shard.agent("ann")
    assert shard.ask().summary == "It would be refused: queue service is closed."


def test_live_figures() -> None:
    shard = crowd()
    for agent in ("free2", "free3"):
        shard.do(PauseAgent(agent=agent, paused=True))
    shard.place("c5")
    shard.now_ms += 30_000
    shard.place("c6")
    stats = shard.do(AskStats(agents=True)).stats
    assert stats is not None
    (queue,) = stats.queues
    assert (queue.queue, queue.waiting, queue.longest_wait_span_ms) == ("service", 2, 30_000)
    assert (queue.in_service, queue.agents_free) == (3, 0)
    assert dict(stats.agents_by_state) == {
        "offline": 1,
        "available": 6,
        "paused": 3,
        "on_call": 2,
        "reserved": 1,
        "wrap_up": 1,
    }
    assert "offline" not in {a.agent for a in stats.agents} and len(stats.agents) == 13
    assert codec.decode_answer(codec.encode_answer(shard.do(AskStats()))).stats is not None


def test_whoever_is_to_be_called_back_holds_no_line() -> None:
    """In the morning they would have waited for a night."""
    shard = Shard()
    shard.place("c1")
    shard.do(RequestCallback(call_id="c1", number="+861012345678"))
    shard.now_ms += 60_000
    shard.place("c2")
    shard.now_ms += 5_000
    stats = shard.do(AskStats()).stats
    assert stats is not None
    assert (stats.queues[0].waiting, stats.queues[0].longest_wait_span_ms) == (2, 5_000)


def test_who_wished_to_be_called_back_later_does_not_wait_until_then() -> None:
    shard = Shard()
    shard.place("c1")
    shard.now_ms += 5_000
    later_ms = shard.now_ms + 3_600_000
    shard.do(RequestCallback(call_id="c1", number="+861012345678", not_before_ms=later_ms))
    shard.now_ms += 60_000
    assert "after 5 s, not offered until it is time to call back" in shard.ask(call_id="c1").summary


def test_whoever_waits_for_an_agent_of_their_own_waits_too() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1", preferred_agent="ann")
    shard.place("c2", preferred_agent="ann")
    shard.now_ms += 5_000
    stats = shard.do(AskStats()).stats
    assert stats is not None and stats.queues[0].longest_wait_span_ms == 5_000


@given(seed=st.lists(st.integers(0, 5), max_size=20))
@settings(max_examples=20, deadline=None)
def test_questions_change_nothing(seed: list[int]) -> None:
    asked, silent = crowd(), crowd()
    for number, choice in enumerate(seed):
        commands: list[Command] = [
            PlaceCall(facts=CallFacts(call_id=f"n{number}", queue="service"), attempt=1, move=1, front="f"),
            PauseAgent(agent="free2", paused=bool(number % 2)),
            EndCall(call_id="c1"),
            OpenSession(agent="offline", session=number + 1, command=1, front="f"),
            ForceLogOut(agent="free3", interrupt=True),
            DetachCall(call_id=f"n{number - 1}", attempt=1, move=1),
        ]
        asked.ask()
        asked.ask(skills=(("english", 1),))
        asked.do(AskStats(agents=True))
        assert asked.events(commands[choice])[0] == silent.events(commands[choice])[0]


@pytest.mark.parametrize("limit", [0, 1, 5, 1_000])
def test_a_limit_holds(limit: int) -> None:
    assert len(crowd().ask(limit=limit).agents) == min(limit, 14)
