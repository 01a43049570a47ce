"""The engine's rules, one test each, and its laws under random histories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.routing.routing_shards import START_MS, EngineShard

from routing import codec
from routing.engine import decide
from routing.model import (
    STEP_ENTRIES_MAX,
    AcceptOffer,
    AgentConfig,
    AgentState,
    Answer,
    AskCall,
    AskStats,
    AttachCalls,
    CallConnected,
    CallEnded,
    CallFacts,
    CallOffered,
    CallOutcome,
    CallQueued,
    CallState,
    CallWrappedUp,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    DeclineOffer,
    DetachCall,
    DetachCalls,
    DetachFront,
    DetachSession,
    Disposition,
    EndCall,
    Event,
    FinishWrapUp,
    ForceLogOut,
    HangUp,
    MoveDeadlines,
    OfferEnded,
    OfferOutcome,
    OpenSession,
    OverflowCall,
    PauseAgent,
    PlaceCall,
    Presence,
    QueueConfig,
    RelaxationStep,
    RemoveAgent,
    Reprioritize,
    RequestCallback,
    SessionClosed,
    SetPresence,
    ShardOpened,
    Strategy,
    Tick,
    TransferCall,
    WithdrawCall,
)
from routing.state import ShardState, due_together, evolve, next_deadline
from routing.stats import shard_stats
from routing.views import queue_loads, view_agent, view_call


class Shard(EngineShard):
    """An engine under test with a clock and its own journal."""

    def __init__(self, **queue: Any) -> None:
        super().__init__()
        self.do(ConfigureQueue(queue=QueueConfig(id="service", **queue)))

    def events(self, command: Command) -> list[Event]:
        before = len(self.journal)
        self.do(command)
        return [event for _, event in self.journal[before:]]

    def place(self, call_id: str, *, attempt: int = 1, move: int = 1, **more: Any) -> Answer:
        facts = CallFacts(call_id=call_id, queue="service", **more.pop("facts", {}))
        return self.do(
            PlaceCall(facts=facts, attempt=attempt, move=move, front=more.pop("front", "f"), **more)
        )


def test_a_free_agent_is_offered_the_call_at_once() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    assert (shard.call("c1").state, shard.call("c1").agent) == (CallState.OFFERED, "ann")


def test_who_becomes_free_takes_the_call_that_has_waited_longest() -> None:
    shard = Shard()
    for call_id in ("c1", "c2"):
        shard.place(call_id)
        shard.wait(1_000)
    shard.agent("ann")
    assert shard.call("c1").state is CallState.OFFERED and shard.call("c2").state is CallState.WAITING


def test_priority_is_a_head_start_in_time() -> None:
    shard = Shard(priority_credit_span_ms=30_000)
    shard.place("early")
    shard.wait(20_000)
    shard.place("important", facts={"priority": 1})
    shard.agent("ann")
    assert shard.call("important").state is CallState.OFFERED


def test_a_head_start_is_not_for_ever() -> None:
    shard = Shard(priority_credit_span_ms=30_000)
    shard.place("early")
    shard.wait(40_000)
    shard.place("important", facts={"priority": 1})
    shard.agent("ann")
    assert shard.call("early").state is CallState.OFFERED


def test_priority_may_change_while_waiting() -> None:
    shard = Shard()
    shard.place("c1")
    shard.place("c2")
    shard.do(Reprioritize(call_id="c2", priority=5))
    shard.do(Reprioritize(call_id="c2", priority=5))
    shard.agent("ann")
    assert shard.call("c2").state is CallState.OFFERED
    shard.do(Reprioritize(call_id="c2", priority=4))
    assert shard.call("c2").facts.priority == 4, "as long as nobody talks"


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("trouble", [{"length_max": 1}, {"closed": True}, {"refuse_without_agents": True}])
def test_an_edge_that_comes_back_while_its_call_rings_keeps_the_place(
    trouble: dict[str, Any], accepted: bool
) -> None:
    """As one whose call waits, and without its token, too: what a queue refuses to newcomers is no matter."""
    shard = Shard()
    shard.place("c1")
    came_ms = shard.now_ms
    shard.wait(60_000)
    shard.agent("ann")
    shard.place("c2")
    shard.do(Reprioritize(call_id="c1", priority=3))
    if accepted:
        shard.accept("c1")
    shard.do(ConfigureQueue(queue=QueueConfig(id="service", **trouble)))
    answer = shard.place("c1", attempt=2)
    assert answer.refusal is None and answer.call is not None
    assert answer.call.attempt == 2
    assert (answer.call.queued_ms, answer.call.facts.priority) == (came_ms, 3)


def test_a_conversation_has_no_priority_to_change() -> None:
    shard = Shard()
    shard.place("c1")
    shard.agent("ann")
    shard.connect("c1")
    for _ in range(2):
        answer = shard.do(Reprioritize(call_id="c1", priority=5))
        assert answer.refusal is not None and answer.refusal.reason == "ILLEGAL_STATE"
        shard.do(EndCall(call_id="c1"))
    assert shard.call("c1").facts.priority == 0


@pytest.mark.parametrize(
    ("skills", "fits"),
    [
        ((), False),
        ((("english", 2),), False),
        ((("english", 3),), True),
        ((("english", 5), ("french", 1)), True),
    ],
)
def test_skills_have_levels(skills: tuple[tuple[str, int], ...], fits: bool) -> None:
    shard = Shard(skills=(("english", 3),))
    shard.agent("ann", skills=skills)
    shard.place("c1")
    assert (shard.call("c1").state is CallState.OFFERED) is fits


def test_a_call_may_ask_for_more_than_its_queue() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1", facts={"skills": (("french", 2),)})
    assert shard.call("c1").state is CallState.WAITING
    shard.agent("bob", skills=(("french", 2),))
    assert shard.call("c1").agent == "bob"


STRATEGIES = [
    (Strategy.LONGEST_IDLE, "ann"),
    (Strategy.PRIORITY_ORDER, "bob"),
    (Strategy.BEST_PROFICIENCY, "cid"),
]


@pytest.mark.parametrize(("strategy", "chosen"), STRATEGIES)
def test_strategies(strategy: Strategy, chosen: str) -> None:
    shard = Shard(strategy=strategy, skills=(("chinese", 1),))
    shard.agent("ann", skills=(("chinese", 1),), priority=2)
    shard.wait(1_000)
    shard.agent("bob", skills=(("chinese", 2),), priority=1)
    shard.wait(1_000)
    shard.agent("cid", skills=(("chinese", 5),), priority=3)
    shard.place("c1")
    assert shard.call("c1").agent == chosen


def test_accepting_is_not_connecting() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.accept("c1")
    assert shard.call("c1").state is CallState.ACCEPTED
    assert view_agent(shard.state, "ann").state is AgentState.RESERVED


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"offer_id": "beijing.1.99"}, "OFFER_ENDED"),
        ({"attempt": 2}, "STALE_VERSION"),
        ({"move": 2}, "STALE_VERSION"),
        ({"call_id": "other"}, "CALL_NOT_FOUND"),
    ],
)
def test_a_confirmation_names_call_offer_and_version(change: dict[str, Any], refusal: str) -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.accept("c1")
    right = {"call_id": "c1", "offer_id": shard.call("c1").offer_id, "attempt": 1, "move": 1}
    answer = shard.do(ConfirmCall(**{**right, **change}))
    assert answer.refusal is not None and answer.refusal.reason == refusal
    assert shard.call("c1").state is CallState.ACCEPTED


def test_confirming_twice_answers_yes_twice_and_connects_once() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    assert shard.connect("c1").refusal is None
    call = shard.call("c1")
    again = ConfirmCall(call_id="c1", offer_id=call.offer_id, attempt=1, move=1)
    assert shard.do(again).refusal is None
    assert sum(isinstance(event, CallConnected) for _, event in shard.journal) == 1


def test_an_unanswered_offer_goes_on_and_the_call_keeps_its_place() -> None:
    shard = Shard(ring_span_ms=10_000, reject_delay_span_ms=60_000)
    shard.place("c1")
    shard.agent("ann")
    shard.place("c2")
    shard.wait(10_000)
    assert shard.call("c1").state is CallState.WAITING
    shard.agent("bob")
    assert shard.call("c1").agent == "bob", "c1 was first and stays first"
    shard.wait(10_000)
    assert view_agent(shard.state, "ann").state is AgentState.AVAILABLE, "no one stays reserved"


def test_an_unconfirmed_offer_frees_the_agent() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.accept("c1")
    shard.do(DetachCall(call_id="c1", attempt=1, move=1))
    shard.wait(shard.state.timing.confirm_span_ms)
    assert view_agent(shard.state, "ann").state is AgentState.AVAILABLE


def test_a_call_that_nobody_confirms_is_offered_again_only_when_its_edge_is_back() -> None:
    """An edge that stalled with its stream open would take one agent after the other, first in line."""
    shard = Shard()
    shard.agent("ann")
    shard.place("stalled")
    shard.place("next")
    shard.accept("stalled")
    shard.wait(shard.state.timing.confirm_span_ms)
    assert shard.call("next").agent == "ann", "the agent is for the next one"
    shard.agent("bob")
    assert shard.call("stalled").state is CallState.WAITING
    shard.place("stalled", attempt=2)
    assert shard.call("stalled").agent == "bob"


def test_a_call_that_is_never_confirmed_ends_with_its_grace() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.accept("c1")
    shard.wait(shard.state.timing.confirm_span_ms)
    shard.wait(shard.state.timing.grace_span_ms)
    assert shard.call("c1").state is CallState.ENDED


def test_missed_offers_pause_the_agent() -> None:
    shard = Shard(missed_offers_max=2, ring_span_ms=1_000)
    shard.agent("ann")
    shard.place("c1")
    shard.wait(2_500)
    view = view_agent(shard.state, "ann")
    assert (view.state, view.pause_reason) == (AgentState.PAUSED, "missed offers")
    assert shard.call("c1").state is CallState.WAITING


def test_a_caller_who_hangs_up_is_no_offer_missed() -> None:
    """Agents miss two offers of a patient queue; in one that pauses them after two they have missed none."""
    shard = Shard(missed_offers_max=9, ring_span_ms=1_000, reject_delay_span_ms=0)
    shard.do(ConfigureQueue(queue=QueueConfig(id="strict", missed_offers_max=2)))
    shard.agent("ann")
    shard.place("c1")
    shard.wait(2_500)
    shard.do(HangUp(call_id="c1", attempt=1))
    shard.do(PlaceCall(facts=CallFacts(call_id="c2", queue="strict"), attempt=1, move=1, front="f"))
    assert shard.call("c2").agent == "ann"
    shard.do(HangUp(call_id="c2", attempt=1))
    assert view_agent(shard.state, "ann").state is AgentState.AVAILABLE


def test_who_is_paused_for_missing_offers_is_waited_for_no_longer() -> None:
    shard = Shard(missed_offers_max=1, ring_span_ms=1_000, preferred_span_ms=60_000)
    for agent in ("ann", "bob"):
        shard.agent(agent)
    shard.place("c1", facts={"preferred_agent": "ann"})
    shard.place("c2", facts={"preferred_agent": "ann"})
    assert (shard.call("c1").agent, shard.call("c2").agent) == ("ann", "")
    shard.wait(1_000)
    assert view_agent(shard.state, "ann").state is AgentState.PAUSED
    assert sorted([shard.call("c1").agent, shard.call("c2").agent]) == ["", "bob"]
    assert [shard.call(call_id).preferred for call_id in ("c1", "c2")] == ["", ""]


def test_a_chat_whose_customer_leaves_does_not_end_the_rest_after_another_was_declined() -> None:
    shard = Shard(reject_delay_span_ms=5_000)
    shard.agent("ann", capacity=(("chat", 2),))
    for call_id in ("c1", "c2"):
        shard.place(call_id, facts={"channel": "chat"})
    offer_id = shard.call("c1").offer_id
    shard.do(DeclineOffer(agent="ann", session=1, offer_id=offer_id))
    shard.do(HangUp(call_id="c2", attempt=1))
    assert shard.call("c1").state is CallState.WAITING
    shard.wait(5_000)
    assert shard.call("c1").agent == "ann"


def test_a_call_back_is_cancelled_while_it_rings_at_an_agent_too() -> None:
    shard = Shard()
    shard.place("c1")
    shard.do(RequestCallback(call_id="c1", number="+8613800138000"))
    shard.agent("ann")
    assert shard.call("c1").state is CallState.OFFERED
    shard.do(EndCall(call_id="c1"))
    assert (shard.call("c1").outcome, shard.call("c1").reason) == (
        CallOutcome.ABANDONED,
        "CALLBACK_CANCELLED",
    )
    assert view_agent(shard.state, "ann").state is AgentState.AVAILABLE


def test_ending_twice_frees_once() -> None:
    """The agent takes the next call after the first EndCall; the second must not free it again."""
    shard = Shard(wrap_up_span_ms=0)
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    shard.place("c2")
    shard.do(EndCall(call_id="c1"))
    assert shard.call("c2").agent == "ann"
    shard.place("c3")
    shard.do(EndCall(call_id="c1"))
    assert shard.call("c3").state is CallState.WAITING


def test_after_call_work_ends_by_itself_or_with_a_word() -> None:
    shard = Shard(wrap_up_span_ms=30_000)
    shard.agent("ann")
    finish = FinishWrapUp(agent="ann", session=1, call_id="c2")
    for call_id, ends in (("c1", lambda: shard.wait(30_000)), ("c2", lambda: shard.do(finish))):
        shard.place(call_id)
        shard.connect(call_id)
        shard.do(EndCall(call_id=call_id))
        assert view_agent(shard.state, "ann").state is AgentState.WRAP_UP
        ends()
        assert view_agent(shard.state, "ann").state is AgentState.AVAILABLE


def test_a_late_word_on_a_call_is_not_lost() -> None:
    """After-call work ran out before the agent said what came of it: the word still counts, once."""
    shard = Shard(wrap_up_span_ms=1_000)
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    shard.do(EndCall(call_id="c1"))
    shard.wait(1_000)
    said = FinishWrapUp(agent="ann", session=1, call_id="c1", disposition=Disposition(code="sold"))
    assert [e.disposition for e in shard.events(said) if isinstance(e, CallWrappedUp)] == [said.disposition]
    assert shard.events(said) == []


def test_a_broken_stream_is_not_a_hang_up() -> None:
    shard = Shard()
    shard.place("c1")
    shard.place("c2")
    shard.do(DetachCall(call_id="c1", attempt=1, move=1))
    shard.agent("ann")
    assert shard.call("c2").state is CallState.OFFERED, "an unattached call is not offered"
    shard.place("c1", attempt=2)
    shard.do(DeclineOffer(agent="ann", session=1, offer_id=shard.call("c2").offer_id))
    assert shard.call("c1").state is CallState.OFFERED, "back in its place, before c2"


def test_streams_that_end_together_leave_in_one_command_and_their_calls_end_in_one_step() -> None:
    one_by_one, together = Shard(), Shard()
    calls = [f"c{n}" for n in range(5)]
    for shard in (one_by_one, together):
        for call_id in calls:
            shard.place(call_id)
    for call_id in calls:
        one_by_one.do(DetachCall(call_id=call_id, attempt=1, move=1, front="f"))
    stale = [("c0", 1, 1), ("c9", 1, 1), ("c1", 2, 1)]
    together.do(DetachCalls(front="f", calls=tuple(stale + [(call_id, 1, 1) for call_id in calls])))
    assert together.journal == one_by_one.journal
    for shard in (one_by_one, together):
        shard.now_ms += shard.state.timing.grace_span_ms
    ended = together.events(Tick())
    assert [event.call_id for event in ended if isinstance(event, CallEnded)] == calls and len(ended) == 5
    one_by_one.wait(0)
    assert together.journal == one_by_one.journal


@pytest.mark.parametrize("kind", [AttachCalls, DetachCalls])
def test_too_many_streams_at_once_are_refused(kind: Any) -> None:
    shard = Shard()
    calls = tuple((f"c{n}", 1, 1) for n in range(STEP_ENTRIES_MAX + 1))
    refusal = shard.do(kind(front="f", calls=calls)).refusal
    assert refusal is not None and (refusal.reason, refusal.field) == ("OUT_OF_RANGE", "calls")


def test_calls_that_wait_attach_together_as_they_would_one_by_one_and_no_others() -> None:
    one_by_one, together = Shard(), Shard()
    calls = [f"c{n}" for n in range(5)]
    for shard in (one_by_one, together):
        for call_id in calls:
            shard.place(call_id)
        shard.do(HangUp(call_id="c2", attempt=1))
        evolve(shard.state, ShardOpened(router="next", leaderless_span_ms=0), shard.now_ms)
    for call_id in ("c0", "c1", "c4"):
        one_by_one.place(call_id)
    asked = [(call_id, 1, 1) for call_id in calls]
    asked[3] = ("c3", 1, 2)
    answer = together.do(AttachCalls(front="f", calls=(*asked, ("c9", 1, 1), asked[0])))
    assert answer.apart == ("c2", "c3", "c9")
    assert together.journal == one_by_one.journal


def test_ended_calls_are_forgotten_many_at_once_and_nothing_else_goes_before_its_time() -> None:
    shard = Shard()
    count = STEP_ENTRIES_MAX + 3
    for n in range(count):
        shard.place(f"c{n}")
        shard.do(HangUp(call_id=f"c{n}", attempt=1))
    shard.now_ms += 1
    shard.place("late")
    shard.do(HangUp(call_id="late", attempt=1))
    shard.now_ms += shard.state.timing.memory_span_ms - 1
    forgotten = [shard.events(Tick()) for _ in range(3)]
    sizes = [len(event.call_ids) for events in forgotten for event in events]
    assert sizes == [STEP_ENTRIES_MAX, 3], "one event a step"
    assert list(shard.state.calls) == ["late"]


@given(st.lists(st.tuples(st.sampled_from(["detached", "forget"]), st.integers(0, 9)), max_size=40))
def test_what_is_due_together_is_what_would_be_due_one_after_another(rows: list[tuple[str, int]]) -> None:
    shard = Shard()
    for n, (kind, ms) in enumerate(rows):
        shard.place(f"c{n}")
        entry = shard.state.calls[f"c{n}"]
        name = {"detached": "detached_until_ms", "forget": "forget_ms"}[kind]
        for due_ms in (ms + 5, ms):  # the first is outdated by the second
            setattr(entry, name, due_ms)
            shard.state.set_deadline(due_ms, kind, f"c{n}")
    before = next_deadline(shard.state)
    found = {kind: due_together(shard.state, kind, 5, 7) for kind in ("detached", "forget")}
    assert next_deadline(shard.state) == before, "only looked at"
    expected: list[str] = []
    first = next_deadline(shard.state)
    while (due := next_deadline(shard.state)) and due[0] <= 5 and first and due[1] == first[1]:
        expected.append(due[2])
        setattr(shard.state.calls[due[2]], "detached_until_ms" if due[1] == "detached" else "forget_ms", 0)
    kind = first[1] if first is not None and first[0] <= 5 else "detached"
    assert list(found[kind]) == expected[:7]


def test_a_stream_gone_for_longer_than_the_grace_period_is_abandoned() -> None:
    shard = Shard()
    shard.place("c1")
    shard.do(DetachCall(call_id="c1", attempt=1, move=1))
    shard.wait(shard.state.timing.grace_span_ms - 1)
    assert shard.call("c1").state is CallState.WAITING
    shard.wait(1)
    assert shard.call("c1").outcome is CallOutcome.ABANDONED


VERSIONS = [((1, 1), (1, 1), None), ((1, 2), (1, 1), "STALE_ATTEMPT"), ((2, 1), (1, 9), "STALE_ATTEMPT")]


@pytest.mark.parametrize(("first", "then", "refusal"), VERSIONS)
def test_versions_only_rise(first: tuple[int, int], then: tuple[int, int], refusal: str | None) -> None:
    shard = Shard()
    shard.place("c1", attempt=first[0], move=first[1])
    answer = shard.place("c1", attempt=then[0], move=then[1])
    assert (answer.refusal.reason if answer.refusal else None) == refusal


def test_a_connected_call_is_offered_again_only_if_its_edge_says_the_agent_is_lost() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    shard.place("c1", attempt=2)
    assert shard.call("c1").state is CallState.CONNECTED
    shard.place("c1", attempt=3, agent_lost=True)
    assert shard.call("c1").state is not CallState.CONNECTED


@pytest.mark.parametrize("ended", [False, True])
def test_a_conversation_that_broke_off_is_no_wait(ended: bool) -> None:
    """It has a place by all that time, and neither the longest wait nor the figures know of it."""
    shard = Shard(wait_span_max_ms=60_000)
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    shard.wait(600_000)
    shard.do(CloseSession(agent="ann", session=1) if ended else PauseAgent(agent="ann", paused=True))
    came_ms = shard.now_ms
    shard.place("c1", attempt=2, agent_lost=True, waited_span_ms=600_000)
    shard.wait(59_999)
    view = shard.call("c1")
    assert (view.state, view.queued_ms, view.effective_ms) == (CallState.WAITING, came_ms, came_ms - 600_000)
    shard.wait(1)
    assert shard.call("c1").reason == "WAIT_TOO_LONG"


def test_a_call_that_its_edge_opens_for_another_queue_has_moved_there() -> None:
    shard = Shard()
    shard.do(ConfigureQueue(queue=QueueConfig(id="sales")))
    shard.place("c1")
    shard.do(PlaceCall(facts=CallFacts(call_id="c1", queue="sales"), attempt=2, move=1, front="f"))
    assert {q: (t.offered, t.moved) for q, t in shard.state.tallies.items()} == {
        "service": (1, 1),
        "sales": (1, 0),
    }


def _log_out(shard: Shard) -> None:
    shard.do(CloseSession(agent="ann", session=1))


#: What became of a conversation before its edge opens it again, and what it is told.
TALKING: dict[str, tuple[Callable[[Shard], Any], CallState, CallOutcome | None]] = {
    "goes on": (lambda shard: None, CallState.CONNECTED, None),
    "handed on": (
        lambda shard: shard.do(TransferCall(call_id="c1", queue="service")),
        CallState.WAITING,
        None,
    ),
    "over": (lambda shard: shard.do(EndCall(call_id="c1")), CallState.ENDED, CallOutcome.COMPLETED),
    "broken off": (_log_out, CallState.ENDED, CallOutcome.INTERRUPTED),
}


@pytest.mark.parametrize("calls", [2, 5])
def test_all_who_attach_together_are_offered_to_who_is_free(calls: int) -> None:
    """After a change of leader agents may be back before the calls: none but the first was offered."""
    shard = Shard()
    names = [f"c{n}" for n in range(calls)]
    for call_id in names:
        shard.place(call_id)
    shard.do(DetachCalls(front="f", calls=tuple((call_id, 1, 1) for call_id in names)))
    for call_id in names:
        shard.agent(f"agent-of-{call_id}")
    shard.do(AttachCalls(front="f", calls=tuple((call_id, 1, 1) for call_id in names)))
    assert [shard.call(call_id).state for call_id in names] == [CallState.OFFERED] * calls


@pytest.mark.parametrize("became", TALKING)
def test_whoever_talks_is_found_or_told_the_end_and_never_queued_for_it(became: str) -> None:
    happens, state, outcome = TALKING[became]
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.connect("c1")
    happens(shard)
    answer = shard.place("c1", attempt=2, talks=True)
    assert answer.call is not None and (answer.call.state, answer.call.outcome) == (state, outcome)
    shard.place("c1", attempt=3, agent_lost=True)
    over = outcome is CallOutcome.COMPLETED
    assert (shard.call("c1").state is CallState.ENDED) is over, "who says that it broke off is queued anew"


def test_a_conversation_that_no_shard_knows_is_not_queued() -> None:
    shard = Shard()
    answer = shard.place("c1", attempt=2, talks=True)
    assert answer.refusal is not None and answer.refusal.reason == "CALL_NOT_FOUND"
    assert "c1" not in shard.state.calls


def test_overflow_holds_the_call_until_it_is_withdrawn_or_comes_back() -> None:
    shard = Shard()
    shard.place("c1")
    shard.do(OverflowCall(call_id="c1", attempt=1, move=1))
    shard.agent("ann")
    assert shard.call("c1").state is CallState.OVERFLOWING, "no offers meanwhile"
    shard.wait(shard.state.timing.move_span_ms)
    assert shard.call("c1").state is CallState.OFFERED, "and after the move time it is offered here again"


def test_an_outnumbered_entry_ends_as_moved() -> None:
    shard = Shard()
    shard.place("c1")
    shard.do(OverflowCall(call_id="c1", attempt=1, move=1))
    shard.do(WithdrawCall(call_id="c1", attempt=1, move=1))
    assert shard.call("c1").state is CallState.OVERFLOWING, "the same number does not outnumber"
    shard.do(WithdrawCall(call_id="c1", attempt=1, move=2))
    assert shard.call("c1").outcome is CallOutcome.MOVED


def test_the_newest_session_wins() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.do(OpenSession(agent="ann", session=2, command=1, front="g"))
    shard.place("c1")
    offer = shard.call("c1").offer_id
    answer = shard.do(AcceptOffer(agent="ann", session=1, offer_id=offer))
    assert answer.refusal is not None and answer.refusal.reason == "NEWER_SESSION"


@pytest.mark.parametrize(
    ("command", "front", "refused"),
    [
        pytest.param(4, "f", True, id="an older stream's router"),
        pytest.param(4, "g", False, id="its own router, which has not heard of its last command"),
        pytest.param(5, "f", False, id="as new as any"),
        pytest.param(6, "f", False, id="newer"),
    ],
)
@pytest.mark.parametrize("seat", [None, DetachSession, CloseSession])
def test_of_one_session_the_newest_stream_wins(
    command: int, front: str, refused: bool, seat: type[DetachSession] | type[CloseSession] | None
) -> None:
    shard = Shard()
    shard.agent("ann")
    shard.do(OpenSession(agent="ann", session=1, command=3, front="g"))
    shard.do(SetPresence(agent="ann", session=1, command=5, presence=Presence.AVAILABLE))
    if seat is not None:
        shard.do(seat(agent="ann", session=1))
    answer = shard.do(OpenSession(agent="ann", session=1, command=command, front=front))
    assert (answer.refusal is not None and answer.refusal.reason == "NEWER_SESSION") is refused
    ann = shard.state.agents["ann"]
    assert ann.attached is (not refused or seat is None) and ann.front == ("g" if refused else front)


def test_an_accept_that_is_repeated_after_the_consent_is_no_news() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    offer = shard.call("c1").offer_id
    shard.connect("c1")
    accept = AcceptOffer(agent="ann", session=1, offer_id=offer)
    answer = shard.do(accept)
    assert answer.refusal is None and shard.call("c1").state is CallState.CONNECTED
    shard.do(EndCall(call_id="c1"))
    assert shard.do(accept).refusal is not None, "it is over"


def test_reordered_states_keep_the_newest() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.do(SetPresence(agent="ann", session=1, command=3, presence=Presence.PAUSED, pause_reason="lunch"))
    shard.do(SetPresence(agent="ann", session=1, command=2, presence=Presence.AVAILABLE))
    assert view_agent(shard.state, "ann").state is AgentState.PAUSED


def test_a_lost_session_interrupts_the_conversation_and_never_reoffers_it() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.agent("bob")
    shard.place("c1")
    shard.connect("c1")
    agent = shard.call("c1").agent
    shard.do(DetachSession(agent=agent, session=1))
    shard.wait(shard.state.timing.agent_grace_span_ms)
    assert shard.call("c1").outcome is CallOutcome.INTERRUPTED
    assert view_agent(shard.state, agent).state is AgentState.OFFLINE


REFUSING = [
    ({"length_max": 1}, "QUEUE_FULL"),
    ({"refuse_without_agents": True, "length_max": 10}, "NO_AGENT_LOGGED_IN"),
]


@pytest.mark.parametrize(("queue", "reason"), REFUSING)
def test_refusals_take_nothing(queue: dict[str, Any], reason: str) -> None:
    shard = Shard(**queue)
    shard.place("c1")
    answer = shard.place("c2")
    assert answer.refusal is not None and answer.refusal.reason == reason
    assert "c2" not in shard.state.calls


@pytest.mark.parametrize("facts", [{"channel": "chat"}, {"skills": (("english", 2),)}])
def test_the_first_contact_of_its_kind_finds_who_is_logged_in(facts: dict[str, Any]) -> None:
    shard = Shard(refuse_without_agents=True)
    shard.agent("ann", skills=(("english", 3),), capacity=(("voice", 1), ("chat", 2)))
    answer = shard.place("c1", facts=facts)
    assert answer.refusal is None and shard.call("c1").agent == "ann"


def test_the_longest_wait_is_bounded() -> None:
    shard = Shard(wait_span_max_ms=60_000)
    shard.place("c1", waited_span_ms=50_000)
    shard.wait(10_000)
    assert (shard.call("c1").outcome, shard.call("c1").reason) == (CallOutcome.REFUSED, "WAIT_TOO_LONG")


def test_nothing_is_concluded_from_absence_after_an_opening() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    shard.wait(2_000)
    leaderless_ms = 30_000
    shard.now_ms += leaderless_ms
    evolve(shard.state, ShardOpened(router="r2", leaderless_span_ms=leaderless_ms), shard.now_ms)
    shard.wait(shard.state.timing.reattach_span_ms)
    assert shard.call("c1").state is CallState.OFFERED, "ringing time moved with the leaderless time"
    assert view_agent(shard.state, "ann").state is AgentState.RESERVED
    shard.place("c1", front="g")
    assert not shard.call("c1").detached


def test_a_decision_that_fails_changes_nothing() -> None:
    shard = Shard()
    shard.place("c1")
    before = shard.state.ordinal
    with pytest.raises(KeyError):
        decide(shard.state, "no command", shard.now_ms)  # type: ignore[arg-type]
    assert shard.state.ordinal == before


def test_ended_calls_are_remembered_and_then_forgotten() -> None:
    shard = Shard()
    shard.place("c1")
    shard.do(HangUp(call_id="c1", attempt=1))
    assert shard.do(AskCall(call_id="c1")).call is not None
    shard.wait(shard.state.timing.memory_span_ms)
    answer = shard.do(AskCall(call_id="c1"))
    assert answer.refusal is not None and answer.refusal.reason == "CALL_NOT_FOUND"


# --- laws under random histories ----------------------------------------------------------------

AGENTS = ("ann", "bob", "cid")
CALLS = ("c1", "c2", "c3", "c4", "c5")
KINDS = (
    *("place", "reopen", "lost", "detach", "overflow", "withdraw", "hang", "end", "confirm", "accept"),
    *("decline", "open", "detach_session", "close", "pause", "ready", "wrap", "tick", "opened", "front"),
    *("remove", "hopeful", "transfer", "transfer_to", "transfer_away", "callback", "callback_later"),
    *("drain", "force", "forced_pause", "unpause", "moved_on", "close_queue", "open_queue"),
)
#: What random histories happen in: everything is on.
STEPS = (
    RelaxationStep(skills=(("gold", 3),), span_ms=2_000, skip_if_nobody_fits=True),
    RelaxationStep(skills=(("gold", 1),), span_ms=3_000),
    RelaxationStep(),
)
SKILLS: dict[str, tuple[tuple[str, int], ...]] = {"ann": (("gold", 5),), "bob": (("gold", 1),), "cid": ()}


def commands() -> st.SearchStrategy[tuple[str, ...]]:
    """A step of a random history: what happens, to whom, and how much time passes before."""
    kinds = st.sampled_from(KINDS)
    return st.tuples(
        kinds, st.sampled_from(CALLS), st.sampled_from(AGENTS), st.sampled_from(["0", "1", "700", "6000"])
    )


def carry_out(shard: Shard, kind: str, call_id: str, agent: str) -> None:
    """One step of a random history."""
    call = shard.state.calls.get(call_id)
    attempt, move = (call.attempt, call.move) if call is not None else (1, 1)
    held = shard.state.agents.get(agent)
    session = held.session if held is not None else 1
    number = held.command + 1 if held is not None else 1
    facts = CallFacts(call_id=call_id, queue="service")
    simple: dict[str, Command] = {
        "place": PlaceCall(facts=facts, attempt=attempt, move=move, front="f"),
        "reopen": PlaceCall(facts=facts, attempt=attempt + 1, move=1, front="g"),
        "lost": PlaceCall(facts=facts, attempt=attempt + 1, move=1, front="g", agent_lost=True),
        "detach": DetachCall(call_id=call_id, attempt=attempt, move=move),
        "overflow": OverflowCall(call_id=call_id, attempt=attempt, move=move),
        "withdraw": WithdrawCall(call_id=call_id, attempt=attempt, move=move + 1),
        "hang": HangUp(call_id=call_id, attempt=attempt),
        "end": EndCall(call_id=call_id),
        "open": OpenSession(agent=agent, session=session + 1, command=1, front="f"),
        "detach_session": DetachSession(agent=agent, session=session),
        "close": CloseSession(agent=agent, session=session),
        "pause": SetPresence(agent=agent, session=session, command=number, presence=Presence.PAUSED),
        "ready": SetPresence(agent=agent, session=session, command=number, presence=Presence.AVAILABLE),
        "wrap": FinishWrapUp(agent=agent, session=session, call_id=call_id),
        "tick": Tick(),
        "front": DetachFront(front="g"),
        "remove": RemoveAgent(agent=agent),
        "hopeful": PlaceCall(
            facts=CallFacts(call_id=call_id, queue="service", preferred_agent=agent),
            attempt=attempt,
            move=move,
            front="f",
        ),
        "transfer": TransferCall(call_id=call_id, attributes=(("why", "billing"),)),
        "transfer_to": TransferCall(call_id=call_id, agent=agent),
        "transfer_away": TransferCall(call_id=call_id, agent=agent, elsewhere=True),
        "callback": RequestCallback(call_id=call_id, number="+8613800138000"),
        "callback_later": RequestCallback(
            call_id=call_id, number="+8613800138000", not_before_ms=shard.now_ms + 5_000
        ),
        "drain": ForceLogOut(agent=agent),
        "force": ForceLogOut(agent=agent, interrupt=True),
        "forced_pause": PauseAgent(agent=agent, paused=True, reason="meeting"),
        "unpause": PauseAgent(agent=agent, paused=False),
        "moved_on": MoveDeadlines(span_ms=700),
        "close_queue": ConfigureQueue(queue=replace(shard.state.queues["service"], closed=True)),
        "open_queue": ConfigureQueue(queue=replace(shard.state.queues["service"], closed=False)),
    }
    if kind in simple:
        shard.do(simple[kind])
        if kind == "remove":
            shard.do(ConfigureAgent(agent=AgentConfig(id=agent, skills=SKILLS[agent])))
    elif kind == "opened":
        opened = ShardOpened(router="r", leaderless_span_ms=500)
        evolve(shard.state, opened, shard.now_ms)
        shard.journal.append((shard.now_ms, opened))
    elif call is not None and call.offer_id:
        known = shard.state.agents.get(call.agent)
        offer = {"agent": call.agent, "session": known.session if known is not None else 1}
        if kind == "confirm":
            shard.do(ConfirmCall(call_id=call_id, offer_id=call.offer_id, attempt=attempt, move=move))
        elif kind == "accept":
            shard.do(AcceptOffer(**offer, offer_id=call.offer_id))
        elif kind == "decline":
            shard.do(DeclineOffer(**offer, offer_id=call.offer_id))


def check_invariants(shard: Shard) -> None:
    """What must hold after every step."""
    state = shard.state
    for agent_id, agent in state.agents.items():
        held = list(agent.holds())
        assert len(held) == len(set(held)) <= 1, f"{agent_id} holds {held}"
        for call_id in (*agent.offers, *agent.calls):
            assert state.calls[call_id].agent == agent_id
            assert state.calls[call_id].state is not CallState.ENDED, "nobody is held by an ended call"
        free = (
            agent.presence is Presence.AVAILABLE
            and agent.attached
            and not held
            and not agent.rest_until_ms
            and not agent.draining
        )
        assert ("voice" in agent.idle) is free
    for call_id, call in state.calls.items():
        if call.state in (CallState.OFFERED, CallState.ACCEPTED):
            assert state.agents[call.agent].offers[call_id] == call.offer_id
        if call.state is CallState.CONNECTED:
            assert call_id in state.agents[call.agent].calls
        assert bool(call.ticket) is call.offerable
        if call.preferred:
            assert call.preferred in state.agents, "nobody waits for an agent who is gone"
    stats = shard_stats(state, AskStats(), state.now_ms)
    assert dict(stats.agents_by_state) == Counter(a.state for a in state.agents.values()), "a running total"
    served = [state.calls[c].facts.queue for a in state.agents.values() for c in (*a.offers, *a.calls)]
    assert {q.queue: q.in_service for q in stats.queues if q.in_service} == Counter(served), "another"
    assert not state.unpaired
    load = queue_loads(state)[0]
    assert load.waiting == sum(bool(c.ticket) for c in state.calls.values())
    for line in state.lines.values():
        fitting = [a for a in state.agents.values() if line.fits(a)]
        assert line.idle_count == sum("voice" in a.idle for a in fitting)
        assert line.logged_in == sum(a.presence is not Presence.OFFLINE for a in fitting)
        assert line.serving == sum(a.attached and a.presence is Presence.AVAILABLE for a in fitting)
        waiting = [c for c in state.calls.values() if c.ticket and c.line is line and not c.preferred]
        assert not (waiting and line.idle_count), "an attached call waits while a fitting agent is free"
    for agent_id, agent in state.agents.items():
        own = sum(bool(c.ticket) and c.preferred == agent_id for c in state.calls.values())
        assert agent.own_count == own
        assert not (own and "voice" in agent.idle), "a call waits for an agent who is free"


def facts_of(state: ShardState) -> dict[str, Any]:
    """All that a state says, without its indexes."""
    return {
        "calls": {c: (view_call(state, c), state.calls[c].forget_ms) for c in sorted(state.calls)},
        "agents": {a: view_agent(state, a) for a in sorted(state.agents)},
        "loads": queue_loads(state),
        "deadline": next_deadline(state),
        "offers": state.offers_made,
    }


def check_history(journal: list[tuple[int, Event]]) -> None:
    """Offers end exactly once; a call is connected only by a live offer; nothing queued is lost."""
    live: dict[str, str] = {}
    for _, event in journal:
        if isinstance(event, CallOffered):
            assert event.offer_id not in live
            live[event.offer_id] = "live"
        elif isinstance(event, OfferEnded):
            assert live[event.offer_id] == "live", f"{event.offer_id} ended twice"
            live[event.offer_id] = event.outcome
        elif isinstance(event, CallConnected):
            assert live[event.offer_id] == "live"
            live[event.offer_id] = OfferOutcome.CONFIRMED


def staffed(strategy: Strategy) -> Shard:
    """With every agent logged in, and each rule of the queue in use."""
    shard = Shard(
        wrap_up_span_ms=2_000,
        ring_span_ms=3_000,
        reject_delay_span_ms=1_000,
        preferred_span_ms=2_500,
        steps=STEPS,
        strategy=strategy,
    )
    for agent in AGENTS:
        shard.agent(agent, skills=SKILLS[agent])
    return shard


@settings(max_examples=300, deadline=None)
@given(st.lists(commands(), min_size=5, max_size=60), st.sampled_from(Strategy))
def test_laws_hold_after_every_step_of_any_history(
    history: list[tuple[str, ...]], strategy: Strategy
) -> None:
    shard = staffed(strategy)
    for kind, call_id, agent, pause in history:
        shard.wait(int(pause))
        carry_out(shard, kind, call_id, agent)
        check_invariants(shard)
    shard.wait(1_000_000)
    check_invariants(shard)
    check_history(shard.journal)
    queued = {e.facts.call_id for _, e in shard.journal if isinstance(e, CallQueued)}
    ended = {e.call_id for _, e in shard.journal if isinstance(e, CallEnded)}
    connected = {c for c, e in shard.state.calls.items() if e.state is CallState.CONNECTED}
    attached = {c for c, e in shard.state.calls.items() if e.attached or e.callback_number}
    assert queued <= ended | connected | attached, "an acknowledged call has vanished"


@settings(max_examples=150, deadline=None)
@given(st.lists(commands(), min_size=5, max_size=40), st.sampled_from(Strategy))
def test_the_state_is_a_function_of_the_journal(history: list[tuple[str, ...]], strategy: Strategy) -> None:
    shard = staffed(strategy)
    for kind, call_id, agent, pause in history:
        shard.wait(int(pause))
        carry_out(shard, kind, call_id, agent)
    copy = ShardState("beijing")
    copy.epoch = 1
    stored = codec.encode_events(shard.journal, START_MS)
    for at_ms, event in codec.decode_events(stored, START_MS):
        evolve(copy, event, at_ms)
    assert facts_of(copy) == facts_of(shard.state)


def test_log_out_frees_everything() -> None:
    shard = Shard()
    shard.agent("ann")
    shard.place("c1")
    events = shard.events(CloseSession(agent="ann", session=1))
    assert [type(e) for e in events] == [SessionClosed, OfferEnded]
    assert shard.call("c1").state is CallState.WAITING
