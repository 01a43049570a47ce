"""A shard's journal in memory, made by the engine itself: for whoever reads journals."""

from __future__ import annotations

import random

from tests.unit.routing.routing_shards import EngineShard

from routing.model import (
    CallFacts,
    CloseSession,
    ConfigureQueue,
    EndCall,
    HangUp,
    OpenSession,
    PauseAgent,
    PlaceCall,
    QueueConfig,
    ShardOpened,
)
from routing.state import evolve
from routing.testing import MemoryBlocks, block_of
from routing.views import view_call

#: A whole half-hour.
T0 = 1_771_999_200_000
MINUTE = 60_000


class Journal(EngineShard):
    """A shard whose events are cut into blocks."""

    def __init__(self) -> None:
        super().__init__(T0)
        self.blocks = MemoryBlocks()
        opened = ShardOpened(router="r", leaderless_span_ms=0)
        evolve(self.state, opened, T0)
        self.journal.append((T0, opened))
        self.block()
        self.do(
            ConfigureQueue(
                queue=QueueConfig(id="service", wrap_up_span_ms=30_000, reject_delay_span_ms=60_000)
            )
        )
        self.do(ConfigureQueue(queue=QueueConfig(id="sales", wrap_up_span_ms=0, reject_delay_span_ms=60_000)))

    def place(self, call_id: str, queue: str = "service", attempt: int = 1, move: int = 1) -> None:
        facts = CallFacts(call_id=call_id, queue=queue)
        self.do(PlaceCall(facts=facts, attempt=attempt, move=move, front="f"))

    def block(self) -> None:
        """Commits what has happened since the last block."""
        sequence = self.blocks.newest("beijing") + 1
        previous = self.blocks.at("beijing", sequence - 1)
        base = self.journal[0][0] if self.journal else self.now_ms
        prev = previous.nonce if previous else ""
        self.blocks.put(block_of(self.journal, sequence, base, prev=prev))
        self.journal = []


def busy_day(seed: int, steps: int = 120) -> Journal:
    """A random history of two queues and three agents over some hours, in blocks of random size."""
    rng, journal = random.Random(seed), Journal()
    sessions = {"ann": 1, "bob": 1, "eve": 1}
    for agent in sessions:
        journal.agent(agent)
    for number in range(steps):
        call_id = f"c{rng.randrange(number // 2, number + 1)}"
        live = call_id in journal.state.calls
        agent = rng.choice(list(sessions))
        match rng.randrange(10):
            case 0 | 1 | 2:
                journal.place(f"c{number}", rng.choice(("service", "sales")))
            case 3 | 4 | 5 if live and view_call(journal.state, call_id).offer_id:
                journal.connect(call_id)
            case 6 if live:
                journal.do(EndCall(call_id=call_id))
            case 7 if live:
                journal.do(HangUp(call_id=call_id, attempt=1))
            case 8:
                journal.do(PauseAgent(agent=agent, paused=rng.random() < 0.5))
            case 9:
                if rng.random() < 0.5:
                    journal.do(CloseSession(agent=agent, session=1))
                else:
                    journal.do(OpenSession(agent=agent, session=1, command=number, front="f"))
        journal.wait(rng.choice((0, 900, 14_000, 3 * MINUTE, 40 * MINUTE)))
        if rng.random() < 0.4:
            journal.block()
    return journal
