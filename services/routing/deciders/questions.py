"""Questions, and what every command is answered: how its call and agent are now. Reads only."""

from __future__ import annotations

from typing import Any, get_args

from routing.deciders.refusals import refuse
from routing.explain import explain
from routing.model import (
    Answer,
    AskAgent,
    AskCall,
    AskCalls,
    AskExplain,
    AskStats,
    CallView,
    Command,
    Decision,
    OpenSession,
    PlaceCall,
)
from routing.state import ShardState
from routing.stats import shard_stats
from routing.views import page_of_calls, view_agent, view_call


def ask_call(s: ShardState, c: AskCall, now_ms: int) -> Decision:
    return Decision() if c.call_id in s.calls else refuse("CALL_NOT_FOUND", "call_id")


def ask_explain(s: ShardState, c: AskExplain, now_ms: int) -> Decision:
    if c.facts is not None:
        return Decision() if c.facts.queue in s.queues else refuse("QUEUE_NOT_FOUND", "queue")
    return Decision() if c.call_id in s.calls else refuse("CALL_NOT_FOUND", "call_id")


def ask_agent(s: ShardState, c: AskAgent, now_ms: int) -> Decision:
    return Decision() if c.agent in s.agents else refuse("AGENT_NOT_FOUND", "agent")


def ask_calls(s: ShardState, c: AskCalls, now_ms: int) -> Decision:
    return Decision() if not c.queue or c.queue in s.queues else refuse("QUEUE_NOT_FOUND", "queue")


def ask_stats(s: ShardState, c: AskStats, now_ms: int) -> Decision:
    return Decision()


def answer(state: ShardState, command: Any, decision: Decision, now_ms: int) -> Answer:
    kind = type(command)
    call, agent = None, None
    if kind is PlaceCall or kind in _OF_CALL:
        call_id = command.facts.call_id if kind is PlaceCall else command.call_id
        call = view_call(state, call_id) if call_id in state.calls else None
    if kind in _OF_AGENT:
        agent = view_agent(state, command.agent) if command.agent in state.agents else None
    if kind not in _QUESTIONS:
        return Answer(
            refusal=decision.refusal, call=call, agent=agent, more=decision.more, apart=decision.apart
        )
    calls, more = page_of_calls(state, command) if kind is AskCalls else (_views(state, command), False)
    return Answer(
        refusal=decision.refusal,
        call=call,
        agent=agent,
        calls=calls,
        more=more,
        explanation=explain(state, command, now_ms)
        if isinstance(command, AskExplain) and decision.refusal is None
        else None,
        stats=shard_stats(state, command, now_ms) if isinstance(command, AskStats) else None,
    )


def _views(state: ShardState, command: Any) -> tuple[CallView, ...]:
    """With a session that is opened, its agent's conversations and offers."""
    agent = state.agents.get(command.agent) if isinstance(command, OpenSession) else None
    if agent is None:
        return ()
    return tuple(view_call(state, call_id) for call_id in sorted({*agent.calls, *agent.offers}))


#: Commands whose answer has more than how a call and an agent are now.
_QUESTIONS = frozenset({AskCalls, AskExplain, AskStats, OpenSession})


#: Commands that name a call, or an agent, in a field of that name.
_OF_CALL = frozenset(kind for kind in get_args(Command) if "call_id" in kind.__annotations__)
_OF_AGENT = frozenset(kind for kind in get_args(Command) if kind.__annotations__.get("agent") == "str")
