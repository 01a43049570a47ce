"""All features at once: whatever is mixed, an explanation says what the engine then does, the first in order
is served first, and nobody waits beside a free agent or for one who is gone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.routing.routing_shards import EngineShard

from routing import image
from routing.explain import explain
from routing.model import (
    AcceptOffer,
    AgentConfig,
    Answer,
    AskExplain,
    AttachCalls,
    CallFacts,
    CallOffered,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    DeclineOffer,
    DetachCall,
    DetachSession,
    EndCall,
    FinishWrapUp,
    ForceLogOut,
    HangUp,
    OfferEnded,
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
    Strategy,
    TransferCall,
)
from routing.state import CallEntry, ShardState, evolve, turn_of

AGENTS = {
    "ann": AgentConfig(id="ann", skills=(("gold", 5),), capacity=(("chat", 2), ("voice", 1))),
    "bob": AgentConfig(id="bob", skills=(("gold", 2),), capacity=(("chat", 3), ("voice", 1))),
    "cid": AgentConfig(id="cid", warm_up_span_ms=500),
    "dan": AgentConfig(id="dan", skills=(("gold", 1),), capacity=(("chat", 2),)),
}
STEPS = (
    RelaxationStep(skills=(("gold", 3),), span_ms=2_000, skip_if_nobody_fits=True),
    RelaxationStep(skills=(("gold", 1),), span_ms=3_000),
    RelaxationStep(without_call_skills=True),
)
SERVICE = QueueConfig(
    id="service",
    wrap_up_span_ms=2_000,
    ring_span_ms=3_000,
    reject_delay_span_ms=1_000,
    missed_offers_max=2,
    preferred_span_ms=4_000,
    wait_span_max_ms=20_000,
    steps=STEPS,
)
SALES = replace(SERVICE, id="sales", weight=1, priority_credit_span_ms=900, steps=(), length_max=3)
#: What a call asks for, one of these.
WISHES: tuple[dict[str, Any], ...] = (
    {"queue": "service"},
    {"queue": "service", "channel": "chat"},
    {"queue": "service", "preferred_agent": "ann", "priority": 3},
    {"queue": "service", "skills": (("gold", 2),)},
    {"queue": "sales"},
    {"queue": "sales", "channel": "chat", "preferred_agent": "bob"},
    {"queue": "sales", "preferred_agent": "ann"},
    {"queue": "sales", "channel": "chat", "preferred_agent": "ann"},
    {"queue": "sales", "channel": "chat"},
)
#: Times what an hour of a centre has of each.
KINDS = (
    *("place",) * 5,
    *("accept", "confirm") * 3,
    *("decline", "end", "hang", "detach", "reopen", "together", "overflow", "wrap", "reprioritize"),
    *("transfer", "transfer_to", "callback", "later", "pause", "ready", "open", "close", "detach_session"),
    *("drain", "force", "reskill", "weight", "relax", "shut", "remove", "restore"),
)


class Mixture(EngineShard):
    """A shard, beside it a reader of its journal that explains each offer as it is made."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.reader = ShardState("beijing")
        self.reader.epoch = 1
        for queue in (SERVICE, SALES):
            self.do(ConfigureQueue(queue=replace(queue, strategy=strategy, refuse_without_agents=True)))
        for config in AGENTS.values():
            self.do(ConfigureAgent(agent=config))
            self.do(OpenSession(agent=config.id, session=1, command=1, front="f"))

    def do(self, command: Command) -> Answer:
        known = len(self.journal)
        answer = super().do(command)
        # Whoever becomes free takes the first call, also one that comes back by the same command.
        freed = any(isinstance(event, OfferEnded) for _, event in self.journal[known:])
        for at_ms, event in self.journal[known:]:
            if isinstance(event, CallOffered) and not freed:
                self._check_explained(event, at_ms)
            evolve(self.reader, event, at_ms)
            self.reader.clear_worklists()
        for _, event in self.journal[known:]:
            if isinstance(event, CallOffered):
                self._check_order(event)
        self._check_waiting()
        return answer

    def place(self, facts: CallFacts) -> None:
        """Places a call that is not there, as it was explained."""
        foreseen = explain(self.state, AskExplain(facts=facts), self.now_ms)
        refusal = self.do(PlaceCall(facts=facts, attempt=1, move=1, front="f")).refusal
        assert (refusal is not None) == ("would be refused" in foreseen.summary), foreseen.summary
        if refusal is None:
            first = {a.agent for a in foreseen.agents if a.rank == 1}
            taker = self.state.calls[facts.call_id].agent
            assert taker in (first or {""}), foreseen

    def _check_explained(self, offer: CallOffered, at_ms: int) -> None:
        told = explain(self.reader, AskExplain(call_id=offer.call_id, limit=1), at_ms)
        lots = self.reader.calls[offer.call_id].line.queue.strategy is Strategy.RANDOM
        assert lots or [(a.agent, a.rank) for a in told.agents] == [(offer.agent, 1)], told

    def _check_order(self, offer: CallOffered) -> None:
        """Nobody who could have had the agent as well is overtaken."""
        taken, agent = self.state.calls[offer.call_id], self.state.agents[offer.agent]
        beside = {*agent.offers, *agent.calls} - {offer.call_id}
        for call_id, other in self.state.calls.items():
            fits = other.line.fits(agent) and (not beside or other.facts.channel == taken.facts.channel)
            rivals = other.ticket and not other.preferred and offer.agent not in other.declined_by and fits
            if rivals and offer.call_id in agent.offers and not self._was_own(offer):
                assert turn_of(taken) < turn_of(other), f"{call_id} is overtaken by {offer.call_id}"

    def _was_own(self, offer: CallOffered) -> bool:
        return self.state.calls[offer.call_id].preferred == offer.agent

    def _check_waiting(self) -> None:
        for call_id, call in self.state.calls.items():
            if call.ticket and not call.preferred:
                free = [a for a, agent in self.state.agents.items() if _is_free_for(agent, call)]
                assert not free, f"{call_id} waits beside {free}"
            if call.preferred:
                agent = self.state.agents[call.preferred]
                assert agent.presence is Presence.AVAILABLE and not agent.draining, "an agent who goes"
                assert call.facts.channel in agent.channels, "an agent who does not take such calls"
                assert not (call.ticket and call.facts.channel in agent.idle), (
                    f"{call_id} waits for who is free"
                )


def _is_free_for(agent: Any, call: CallEntry) -> bool:
    return call.facts.channel in agent.idle and call.line.fits(agent)


def carry_out(shard: Mixture, kind: str, call_id: str, agent: str, wish: int) -> None:
    """One step of a history."""
    state = shard.state
    call, seat = state.calls.get(call_id), state.agents.get(agent)
    if kind == "place":
        if call is None:
            shard.place(CallFacts(call_id=call_id, **WISHES[wish]))
        return
    if kind == "restore":
        # A new leader has it from a snapshot.
        shard.state = image.restore("beijing", image.dump(state))
        shard.reader = image.restore("beijing", image.dump(state))
        return
    commands = _of_agent(shard, agent, wish) if seat is not None else {}
    if seat is None:
        commands["remove"] = ConfigureAgent(agent=AGENTS[agent])
    if call is not None:
        commands |= _of_call(shard, call, agent)
    commands |= _of_queue(state, wish)
    if kind in commands:
        shard.do(commands[kind])


def _of_call(shard: Mixture, call: CallEntry, agent: str) -> dict[str, Command]:
    call_id, attempt, move = call.facts.call_id, call.attempt, call.move
    held = shard.state.agents.get(call.agent)
    session = held.session if held is not None else 1
    again = PlaceCall(facts=call.facts, attempt=attempt, move=move, front="g")
    waiting = tuple((c, e.attempt, e.move) for c, e in shard.state.calls.items())
    return {
        "accept": AcceptOffer(agent=call.agent, session=session, offer_id=call.offer_id),
        "confirm": ConfirmCall(call_id=call_id, offer_id=call.offer_id, attempt=attempt, move=move),
        "decline": DeclineOffer(agent=call.agent, session=session, offer_id=call.offer_id),
        "end": EndCall(call_id=call_id),
        "hang": HangUp(call_id=call_id, attempt=attempt),
        "detach": DetachCall(call_id=call_id, attempt=attempt, move=move),
        "reopen": again,
        "together": AttachCalls(front="g", calls=waiting),
        "overflow": OverflowCall(call_id=call_id, attempt=attempt, move=move),
        "wrap": FinishWrapUp(agent=call.agent, session=session, call_id=call_id),
        "reprioritize": Reprioritize(call_id=call_id, priority=len(agent) * (attempt + move)),
        "transfer": TransferCall(call_id=call_id, queue="sales"),
        "transfer_to": TransferCall(call_id=call_id, queue="service", agent=agent),
        "callback": RequestCallback(call_id=call_id, number="+8613800138000"),
        "later": RequestCallback(
            call_id=call_id, number="+8613800138000", not_before_ms=shard.now_ms + 5_000
        ),
    }


def _of_agent(shard: Mixture, agent: str, wish: int) -> dict[str, Command]:
    seat, config = shard.state.agents[agent], AGENTS[agent]
    skills = ((), (("gold", 1),), (("gold", 4),))[wish % 3]
    return {
        "pause": PauseAgent(agent=agent, paused=True, reason="lunch"),
        "ready": PauseAgent(agent=agent, paused=False),
        "open": OpenSession(
            agent=agent,
            session=seat.session + 1,
            command=1,
            front="f",
            presence=Presence.PAUSED if wish == 0 else Presence.AVAILABLE,
            calls_held=tuple(sorted(seat.calls)),
        ),
        "close": CloseSession(agent=agent, session=seat.session),
        "detach_session": DetachSession(agent=agent, session=seat.session),
        "drain": ForceLogOut(agent=agent),
        "force": ForceLogOut(agent=agent, interrupt=True),
        "reskill": ConfigureAgent(
            agent=replace(config, skills=skills, capacity=config.capacity[: 1 + wish % 2])
        ),
        "remove": RemoveAgent(agent=agent),
    }


def _of_queue(state: ShardState, wish: int) -> dict[str, Command]:
    service, sales = state.queues["service"], state.queues["sales"]
    return {
        "weight": ConfigureQueue(queue=replace(sales, weight=wish)),
        "relax": ConfigureQueue(queue=replace(service, steps=STEPS if wish % 2 else STEPS[1:])),
        "shut": ConfigureQueue(queue=replace(sales, closed=not sales.closed)),
    }


HISTORIES = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from([f"c{number}" for number in range(12)]),
        st.sampled_from(sorted(AGENTS)),
        st.integers(0, len(WISHES) - 1),
        st.sampled_from([0, 1, 700, 2_500]),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.sampled_from(Strategy))
def test_whatever_is_mixed_is_explained_as_it_happens(
    history: list[tuple[str, str, str, int, int]], strategy: Strategy
) -> None:
    shard = Mixture(strategy)
    for kind, call_id, agent, wish, pause_ms in history:
        shard.wait(pause_ms)
        carry_out(shard, kind, call_id, agent, wish)
    shard.wait(100_000)
