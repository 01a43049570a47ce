"""Who talks to whom: the pure core of routing.

Words: a *shard* is one region's calls and agents, decided here. An *edge* (telephone exchange, chat front
end) holds the caller, a *desktop* is the agent's; each has a stream to some router, its *front*, and is
*attached* while that is open. Calls that ask the same of agents wait in one *line*. More in docs/glossary.md.

A *command* is one thing that somebody said (an edge, a desktop, a front, the directory, a supervisor), or
that time has passed. *Events* are what follows from it: results, never wishes. Both are values of `model`.

To read: this file from top to bottom. `step` is the whole engine for one command: decide, evolve, pair; it
returns the events in order and the answer. `decide` looks its function up in `_DECIDE`, at the end. What is
behind that, in the order of a call's life:

    state/                      what a shard knows; `evolve`, which alone changes it (with a map of its own)
    deciders/calls.py           edges and their fronts: a call is placed, attached, moved, confirmed, ended
    deciders/waiting.py         … whether and how it can wait: its place, its step of relaxation, for whom
    deciders/matching.py        … whom it gets, and which call an agent gets who becomes free
    deciders/agents.py          desktops and their fronts: sessions, presence, offers, after-call work
    deciders/transfers.py       a call that waits anew: handed on, or called back
    deciders/endings.py         what ends with what: an offer, a call, a stream, a session
    deciders/timers.py          what a deadline does when it passes
    deciders/supervision.py     supervisors' commands
    deciders/configuration.py   the directory's and operators' commands
    deciders/questions.py       questions; the answer to every command

The rules, in prose (what each is for, and its test: docs/routing.md):

1. A command comes in, `decide` looks at the state and says which events follow, `evolve` applies them. No
   clock, no randomness, no I/O: `now_ms` is passed in. A command that makes `decide` raise has changed
   nothing.
2. A call waits in the line of its queue, channel and extra skills, ordered by effective arrival: when it
   first came, less the credit of its priority. It keeps that place for ever: an offer that fails puts it back
   where it was.
3. Whoever becomes free takes first the call that waits for this very agent, then the one that has waited
   longest over all lines that fit (weights are head starts, so no queue starves another); a call that
   arrives takes the best free agent by its queue's strategy. `pair` does both, right after each command, in
   steps of bounded size.
4. Only an attached call is offered, to an attached agent. A call whose stream broke keeps its place,
   unoffered, for the grace period; after a leader change nothing is concluded from absence for the re-attach
   period. A caller who asked to be called back needs no stream: accepting connects.
5. An offer is ringing (OFFERED) until the agent accepts, then held (ACCEPTED) until the edge confirms
   exactly this offer. Only the edge's confirmation connects. Every offer ends exactly once. Who declined a
   call, or let it ring, gets it again only while nobody else is free for it.
6. (attempt, move) is a call's version. A lower one is refused, the same one attaches again, a higher one
   takes over. Whoever talks is queued by none of them, until the edge says that the conversation broke off.
7. What an agent holds is a set of call ids; ending twice frees once.
8. A deadline is state. `Tick` does what is due, in steps of bounded size.
9. A queue may ask less of agents the longer a call waits (steps of relaxation). A step is another line; the
   place among the others is the same. A preferred agent is waited for as long as the queue allows, and only
   while there is hope.
10. A transfer ends the agent's part of a conversation and lets the call wait again: its wait begins anew,
   its place counts what it had waited before, here and wherever it moves. An agent who drains finishes
   what is held, then leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routing.deciders import (
    agents,
    calls,
    configuration,
    questions,
    supervision,
    timers,
    transfers,
)
from routing.deciders.endings import leave
from routing.deciders.matching import agent_for, call_for, offer
from routing.deciders.questions import answer
from routing.model import (
    PAIRS_PER_STEP_MAX,
    AcceptOffer,
    Answer,
    AskAgent,
    AskCall,
    AskCalls,
    AskExplain,
    AskStats,
    AttachCalls,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfigureTiming,
    ConfirmCall,
    Decision,
    DeclineOffer,
    DetachCall,
    DetachCalls,
    DetachFront,
    DetachSession,
    EndCall,
    Event,
    FinishWrapUp,
    ForceLogOut,
    HangUp,
    MonitorCall,
    MoveDeadlines,
    OpenSession,
    OverflowCall,
    PauseAgent,
    PlaceCall,
    RecordAct,
    RemoveAgent,
    RemoveQueue,
    Reprioritize,
    RequestCallback,
    SetDraining,
    SetLeadList,
    SetPresence,
    Tick,
    TransferCall,
    WithdrawCall,
)
from routing.state import ShardState, evolve


def step(state: ShardState, command: Command, now_ms: int) -> tuple[list[Event], Answer]:
    """Decides `command` at `now_ms`, applies what follows and pairs calls with agents; returns all events
    and the answer.

    Raises whatever `decide` raises, in which case nothing has changed.
    """
    if now_ms < state.now_ms:
        now_ms = state.now_ms
    decision = decide(state, command, now_ms)
    events = decision.events
    for event in events:
        evolve(state, event, now_ms)
    if state.hot_calls or state.hot_agents or state.leaving:
        events.extend(pair(state, now_ms))
    return events, answer(state, command, decision, now_ms)


def decide(state: ShardState, command: Command, now_ms: int) -> Decision:
    """What follows from a command; changes nothing."""
    return _DECIDE[type(command)](state, command, now_ms)


def pair(state: ShardState, now_ms: int) -> list[Event]:
    """Lets drained agents go and offers calls to free agents until no worklist has a match left, applying
    each event as it is made. Stops after PAIRS_PER_STEP_MAX of them; `state.unpaired` then says that more is
    to do.
    """
    events: list[Event] = []
    while state.leaving and len(events) < PAIRS_PER_STEP_MAX:
        for event in leave(state, state.leaving.pop()):
            evolve(state, event, now_ms)
            events.append(event)
    if len(state.hot_calls) > 1:
        state.put_in_order()
    while (state.hot_agents or state.hot_calls) and len(events) < PAIRS_PER_STEP_MAX:
        for event in _next_pairing(state, now_ms):
            evolve(state, event, now_ms)
            events.append(event)
    return events


def _next_pairing(state: ShardState, now_ms: int) -> list[Event]:
    if state.hot_agents:
        agent_id = state.hot_agents.pop()
        match = call_for(state, agent_id)
        if match is not None and match[1] != agent_id:
            # The call is better with another; this one may yet take the next.
            state.hot_agents.append(agent_id)
    else:
        call_id = state.hot_calls.pop()
        match = agent_for(state, call_id)
        if match is not None and match[0] != call_id:
            # An older one of its line goes first; this one may yet get the next.
            state.hot_calls.append(call_id)
    return [] if match is None else [offer(state, match[0], match[1], now_ms)]


_DECIDE: dict[type, Callable[[ShardState, Any, int], Decision]] = {
    PlaceCall: calls.place,
    AttachCalls: calls.attach_calls,
    DetachCall: calls.detach,
    DetachCalls: calls.detach_calls,
    OverflowCall: calls.overflow,
    WithdrawCall: calls.withdraw,
    HangUp: calls.hang_up,
    EndCall: calls.end_call,
    ConfirmCall: calls.confirm,
    Reprioritize: calls.reprioritize,
    DetachFront: agents.detach_front,
    AcceptOffer: agents.accept,
    DeclineOffer: agents.decline,
    OpenSession: agents.open_session,
    DetachSession: agents.detach_session,
    CloseSession: agents.close_session,
    SetPresence: agents.set_presence,
    FinishWrapUp: agents.finish_wrap_up,
    TransferCall: transfers.transfer,
    RequestCallback: transfers.request_callback,
    ForceLogOut: supervision.force_log_out,
    PauseAgent: supervision.pause_agent,
    MonitorCall: supervision.monitor,
    RecordAct: supervision.record_act,
    SetLeadList: configuration.set_lead_list,
    MoveDeadlines: configuration.move_deadlines,
    ConfigureTiming: configuration.configure_timing,
    ConfigureQueue: configuration.configure_queue,
    RemoveQueue: configuration.remove_queue,
    ConfigureAgent: configuration.configure_agent,
    RemoveAgent: configuration.remove_agent,
    SetDraining: configuration.set_draining,
    AskExplain: questions.ask_explain,
    AskStats: questions.ask_stats,
    AskCall: questions.ask_call,
    AskAgent: questions.ask_agent,
    AskCalls: questions.ask_calls,
    Tick: timers.tick,
}
