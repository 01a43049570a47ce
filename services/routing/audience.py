"""Who hears of an event: the fronts that hold the call's and the agent's streams."""

from __future__ import annotations

from routing.model import (
    AgentDraining,
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
from routing.views import view_agent, view_call

#: Not CallDetached: whoever let go of the call knows, and nobody else has a stream that it is about.
_OF_CALL = (
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
)
_OF_AGENT = (
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
)


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

    @classmethod
    def of(cls, state: ShardState) -> Audience:
        """As it stands after a journal was read."""
        audience = cls()
        audience._calls = {call_id: entry.front for call_id, entry in state.calls.items()}
        audience._agent_of = {call_id: entry.agent for call_id, entry in state.calls.items() if entry.agent}
        audience._agents = {agent_id: agent.front for agent_id, agent in state.agents.items() if agent.front}
        return audience

    def facts(self, state: ShardState, events: list[Event], now_ms: int) -> list[tuple[str, Fact]]:
        """(front, fact) of each event, in order; views are of the state as it is now."""
        facts: list[tuple[str, Fact]] = []
        for event in events:
            if isinstance(event, CallsForgotten):
                for forgotten in event.call_ids:
                    self._calls.pop(forgotten, None)
                    self._agent_of.pop(forgotten, None)
                continue
            call_id, agent_id = self._subjects(event)
            fronts = self._fronts(state, call_id, agent_id)
            if not fronts:
                continue
            fact = Fact(
                event=event,
                now_ms=now_ms,
                call=view_call(state, call_id) if call_id in state.calls else None,
                agent=view_agent(state, agent_id) if agent_id in state.agents else None,
            )
            facts.extend((front, fact) for front in fronts)
        return facts

    def _fronts(self, state: ShardState, call_id: str, agent_id: str) -> list[str]:
        """Those that hold the call or the agent, or did until now; each once, in order."""
        fronts = [*self._fronts_of_call(state, call_id), *self._fronts_of_agent(state, agent_id)]
        first = fronts[0]
        if fronts.count(first) == len(fronts):
            # As nearly always: one router has held both all the time.
            return [first] if first else []
        return sorted({*fronts} - {""})

    def _subjects(self, event: Event) -> tuple[str, str]:
        """(call id, agent id) that an event is about; "" for none."""
        if isinstance(event, CallQueued):
            return event.facts.call_id, ""
        if isinstance(event, CallTransferred):
            self._agent_of.pop(event.facts.call_id, None)
            return event.facts.call_id, event.agent
        call_id = event.call_id if isinstance(event, _OF_CALL) else ""
        if isinstance(event, CallEnded):
            return call_id, self._agent_of.pop(call_id, "")
        if isinstance(event, CallOffered):
            self._agent_of[call_id] = event.agent
        elif isinstance(event, OfferEnded):
            self._agent_of.pop(call_id, None)
        return call_id, event.agent if isinstance(event, _OF_AGENT) else ""

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
        return [before or entry.front, entry.front]

    def _fronts_of_agent(self, state: ShardState, agent_id: str) -> list[str]:
        """As `_fronts_of_call`."""
        agent = state.agents.get(agent_id) if agent_id else None
        before = self._agents.get(agent_id, "") if agent_id else ""
        if agent is None:
            self._agents.pop(agent_id, None)
            return [before] if before else []
        if agent.front:
            self._agents[agent_id] = agent.front
        return [front for front in (before, agent.front) if front]
