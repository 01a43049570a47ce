"""An engine by itself, with a clock that is moved by hand: for tests of decisions, and of what reads them."""

from __future__ import annotations

from typing import Any

from routing.engine import step
from routing.model import (
    AcceptOffer,
    AgentConfig,
    Answer,
    Command,
    ConfigureAgent,
    ConfirmCall,
    Event,
    OpenSession,
    Tick,
)
from routing.state import ShardState, next_deadline
from routing.views import view_agent, view_call

START_MS = 1_000_000


class EngineShard:
    """A shard's state, its time, and all that was decided, with when."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.state = ShardState("beijing")
        self.state.epoch = 1
        self.now_ms = now_ms
        self.journal: list[tuple[int, Event]] = []

    def do(self, command: Command) -> Answer:
        """What is answered to a command."""
        events, answer = step(self.state, command, self.now_ms)
        self.journal += [(self.now_ms, event) for event in events]
        return answer

    def wait(self, ms: int) -> None:
        """Lets time pass; everything due happens at its time."""
        until = self.now_ms + ms
        while (due := next_deadline(self.state)) is not None and due[0] <= until:
            self.now_ms = max(self.now_ms, due[0])
            self.do(Tick())
        self.now_ms = until

    def agent(self, agent: str, session: int = 1, **config: Any) -> None:
        """Configures an agent and logs it in."""
        self.do(ConfigureAgent(agent=AgentConfig(id=agent, **config)))
        self.do(OpenSession(agent=agent, session=session, command=1, front="f"))

    def call(self, call_id: str) -> Any:
        return view_call(self.state, call_id)

    def seat(self, agent: str) -> Any:
        return view_agent(self.state, agent)

    def accept(self, call_id: str) -> Answer:
        call = self.call(call_id)
        return self.do(AcceptOffer(agent=call.agent, session=1, offer_id=call.offer_id))

    def connect(self, call_id: str) -> Answer:
        """The agent accepts, the edge consents."""
        self.accept(call_id)
        call = self.call(call_id)
        return self.do(
            ConfirmCall(call_id=call_id, offer_id=call.offer_id, attempt=call.attempt, move=call.move)
        )
