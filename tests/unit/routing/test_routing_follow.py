"""A router keeps current with the directory, whatever is in it: one entry that this release cannot use is no
reason to have none.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.testing.waiting import eventually
from routing import engine
from routing.directory import Snapshot, follow, queue_config
from routing.leader import Leader
from routing.leader_options import LeaderOptions
from routing.model import ConfigureQueue, Decision, QueueConfig, Strategy
from routing.state import ShardState
from routing.testing import MemoryJournal

DEADLINE_SECONDS = 10


class Reader:
    """A directory of queues."""

    def __init__(self, *queues: str) -> None:
        self.queues = queues

    async def version(self) -> int:
        return len(self.queues)

    async def snapshot(self, region: str) -> Snapshot:
        queues = tuple(QueueConfig(id=queue) for queue in self.queues)
        return Snapshot(version=len(queues), regions=(), queues=queues, skills=frozenset(), agents=())


async def test_an_entry_that_the_engine_fails_on_keeps_no_other_from_its_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure = engine._DECIDE[ConfigureQueue]

    def decide(state: ShardState, command: ConfigureQueue, now_ms: int) -> Decision:
        if command.queue.id == "bad":
            raise ZeroDivisionError("it cannot be")
        return configure(state, command, now_ms)

    monkeypatch.setitem(engine._DECIDE, ConfigureQueue, decide)
    reader: Any = Reader("bad", "good")
    leader = Leader(
        shard="beijing", router="r", store=MemoryJournal(), clock=SystemClock(), options=LeaderOptions()
    )
    applied: list[Snapshot] = []
    tasks = [
        asyncio.create_task(leader.run()),
        asyncio.create_task(follow(reader, leader, "beijing", 0.01, applied.append)),
    ]
    try:
        await eventually(lambda: "good" in leader.state.queues)
        reader.queues = ("bad", "good", "new")
        await eventually(lambda: "new" in leader.state.queues)
        assert "bad" not in leader.state.queues and applied[-1].queues[0].id == "bad"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("stored", "strategy"),
    [
        (None, Strategy.LONGEST_IDLE),
        ("random", Strategy.RANDOM),
        ("of a later release", Strategy.LONGEST_IDLE),
    ],
)
def test_a_strategy_that_a_later_release_has_stored_is_the_default_here(
    stored: str | None, strategy: Strategy
) -> None:
    assert queue_config({"_id": "q", "strategy": stored}).strategy is strategy
