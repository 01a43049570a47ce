"""Who hears of an event: the fronts that hold the call's and the agent's streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routing.model import (
    AgentDraining,
    AgentRemoved,
    AgentState,
    AgentView,
    Answer,
    CallAttached,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallEnded,
    CallMonitored,
    CallOffered,
    CallOverflowing,
    CallQueued,
    CallReprioritized,
    CallResumed,
    CallsForgotten,
    CallTransferred,
    CallView,
    CallWrappedUp,
    Event,
    Fact,
    OfferAccepted,
    OfferEnded,
    PresenceSet,
    SessionClosed,
    SessionDetached,
    SessionOpened,
)
from routing.state import ShardState
from routing.views import Places, view_agent, view_call

#: Of one command; fewer are looked at one by one.
MANY_EVENTS = 8

#: Not CallDetached: whoever let go of the call knows, and nobody else has a stream that it is about.
_OF_CALL = frozenset(
    {
        CallAttached,
        CallConnected,
        CallEnded,
        CallOffered,
        CallOverflowing,
        CallReprioritized,
        CallResumed,
        CallWrappedUp,
        CallbackDue,
        CallbackRequested,
        CallMonitored,
        OfferAccepted,
        OfferEnded,
    }
)
_OF_AGENT = frozenset(
    {
        AgentDraining,
        CallConnected,
        CallOffered,
        CallWrappedUp,
        OfferAccepted,
        OfferEnded,
        PresenceSet,
        SessionClosed,
        SessionDetached,
        SessionOpened,
    }
)
_HEARD = _OF_CALL | _OF_AGENT | {CallQueued, CallTransferred}


class _Views:
    """Calls and agents as they are after one command, each looked at once."""

    __slots__ = ("_agents", "_calls", "_now_ms", "_places", "_state")

    def __init__(self, state: ShardState, answer: Answer, now_ms: int, *, many: bool) -> None:
        """`many`: it pays to put those who wait in order once, and not to count them for each view."""
        self._state = state
        self._now_ms = now_ms
        self._places: Places | None = {} if many else None
        call, agent = answer.call, answer.agent
        self._calls: dict[str, CallView] = {call.facts.call_id: call} if call is not None else {}
        self._agents: dict[str, AgentView] = {agent.agent: agent} if agent is not None else {}

    def call(self, call_id: str) -> CallView | None:
        """None for an unknown call."""
        view = self._calls.get(call_id)
        if view is None and call_id in self._state.calls:
            view = self._calls[call_id] = view_call(self._state, call_id, self._places)
        return view

    def agent(self, agent_id: str) -> AgentView | None:
        """None for no agent. One whom this command removes is logged out: the desktop is to hear it."""
        view = self._agents.get(agent_id)
        if view is None and agent_id:
            known = agent_id in self._state.agents
            view = view_agent(self._state, agent_id) if known else _removed(agent_id, self._now_ms)
            self._agents[agent_id] = view
        return view


def _removed(agent_id: str, now_ms: int) -> AgentView:
    return AgentView(
        agent=agent_id,
        state=AgentState.OFFLINE,
        pause_reason="",
        session=0,
        command=0,
        calls=(),
        offers=(),
        since_ms=now_ms,
        capacity=(),
    )


#: Whether a front holds the stream of a call, by its id.
Holds = Callable[[str], bool]


class Audience:
    """Remembers which front last heard of a call or agent, so that a front that lost one to another hears
    of that too.
    """

    def __init__(self) -> None:
        self._calls: dict[str, str] = {}
        self._agents: dict[str, str] = {}
        #: Agent that a call was last with. The state does not say: an entry that ended may have been queued
        #: anew by the same command.
        self._agent_of: dict[str, str] = {}
        #: Fronts that can be asked whether they hold a call's stream just now: those of this process.
        self.holders: dict[str, Holds] = {}

    @classmethod
    def of(cls, state: ShardState) -> Audience:
        """As it stands after a journal was read."""
        audience = cls()
        audience._calls = {call_id: entry.front for call_id, entry in state.calls.items()}
        audience._agent_of = {call_id: entry.agent for call_id, entry in state.calls.items() if entry.agent}
        audience._agents = {agent_id: agent.front for agent_id, agent in state.agents.items() if agent.front}
        return audience

    def facts(
        self, state: ShardState, events: list[Event], answer: Answer, now_ms: int
    ) -> list[tuple[str, Fact]]:
        """(front, fact) of each event, in order; views are of the state as it is now, which those of the
        `answer` to the same command show too.
        """
        facts: list[tuple[str, Fact]] = []
        views: _Views | None = None
        for event in events:
            if type(event) not in _HEARD:
                self._forget(event)
                continue
            call_id, agent_id = self._subjects(event)
            fronts = self._fronts(state, call_id, agent_id)
            if not fronts or (type(event) is CallEnded and self._nobody_hears(fronts, call_id, agent_id)):
                continue
            views = views or _Views(state, answer, now_ms, many=len(events) >= MANY_EVENTS)
            call = views.call(call_id) if call_id else None
            agent = views.agent(agent_id) if agent_id else None
            fact = Fact(event=event, now_ms=now_ms, call=call, agent=agent)
            for front in fronts:
                facts.append((front, fact))
        return facts

    def _forget(self, event: Event) -> None:
        """Whoever is gone: an agent not before all that the same command did has been told."""
        if isinstance(event, AgentRemoved):
            self._agents.pop(event.agent, None)
        elif isinstance(event, CallsForgotten):
            for call_id in event.call_ids:
                self._calls.pop(call_id, None)
                self._agent_of.pop(call_id, None)

    def _fronts(self, state: ShardState, call_id: str, agent_id: str) -> list[str]:
        """Those that hold the call or the agent, or did until now; each once, in order."""
        fronts = self._fronts_of_call(state, call_id)
        if agent_id:
            fronts += self._fronts_of_agent(state, agent_id)
        first = fronts[0]
        if len(fronts) == 1:
            return fronts if first else []
        if fronts.count(first) == len(fronts):
            # As nearly always: one router has held both all the time.
            return [first] if first else []
        return sorted({*fronts} - {""})

    def _nobody_hears(self, fronts: list[str], call_id: str, agent_id: str) -> bool:
        """Whether a call's end is news to nobody: no agent is in it, and its front holds no stream of it. A
        stream that is opened meanwhile learns it from the answer to its placement.
        """
        holds = self.holders.get(fronts[0])
        return not agent_id and len(fronts) == 1 and holds is not None and not holds(call_id)

    def _subjects(self, event: Any) -> tuple[str, str]:
        """(call id, agent id) that an event is about; "" for none."""
        kind = type(event)
        if kind is CallQueued:
            return event.facts.call_id, ""
        if kind is CallTransferred:
            self._agent_of.pop(event.facts.call_id, None)
            return event.facts.call_id, event.agent
        call_id = event.call_id if kind in _OF_CALL else ""
        if kind is CallEnded:
            return call_id, self._agent_of.pop(call_id, "")
        if kind is CallOffered:
            self._agent_of[call_id] = event.agent
        elif kind is OfferEnded:
            self._agent_of.pop(call_id, None)
        return call_id, event.agent if kind in _OF_AGENT else ""

    def _fronts_of_call(self, state: ShardState, call_id: str) -> list[str]:
        """The call's front before and now; "" for none. Nothing for no call."""
        if not call_id:
            return [""]
        entry = state.calls.get(call_id)
        before = self._calls.get(call_id, "")
        if entry is None:
            self._calls.pop(call_id, None)
            return [before]
        if entry.front == before:
            return [before]
        self._calls[call_id] = entry.front
        return [before, entry.front] if before else [entry.front]

    def _fronts_of_agent(self, state: ShardState, agent_id: str) -> list[str]:
        """As `_fronts_of_call`."""
        agent = state.agents.get(agent_id) if agent_id else None
        before = self._agents.get(agent_id, "") if agent_id else ""
        if agent is None:
            return [before] if before else []
        if agent.front:
            self._agents[agent_id] = agent.front
        return [front for front in (before, agent.front) if front]
