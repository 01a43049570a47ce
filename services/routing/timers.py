"""A leader's timers: whatever is due is carried out as a Tick, a command like any other."""

from __future__ import annotations

import asyncio
import contextlib
from math import inf
from typing import TYPE_CHECKING

import structlog

from routing.committed import PoisonCommand
from routing.model import Tick
from routing.silence import STALL_SECONDS
from routing.state import next_deadline

if TYPE_CHECKING:
    from routing.leader import Leader

#: Events of timers in a row before other work gets its turn.
TIMER_EVENTS_IN_A_ROW_MAX = 200

log = structlog.get_logger(__name__)


class Timers:
    """One a leader. A timer that wakes late lets the inbox go first."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    async def run(self) -> None:
        """Carries out a Tick whenever a deadline passes."""
        leader = self._leader
        while True:
            leader.timer.clear()
            due = next_deadline(leader.state)
            leader.timer_ms = inf if due is None else due[0]
            delay = None if due is None else leader.clock.real_seconds((due[0] - leader.now_ms()) / 1000.0)
            if leader.state.unpaired:
                # A command offered as much as one may; the rest follows at once.
                delay = 0.0
            if delay is None or delay > 0:
                await self._wait(delay)
            elif leader.outage:
                # Deadlines stand still while nothing can be committed.
                await asyncio.sleep(leader.options.outage_seconds / 4)
            else:
                await self._tick()

    async def _wait(self, delay: float | None) -> None:
        """Until something may have changed, or `delay` real seconds are over."""
        leader = self._leader
        started = leader.clock.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await leader.timer.wait()
        if delay is not None and leader.clock.monotonic() - started - delay > STALL_SECONDS:
            # This process slept. What came in meanwhile (accepts, streams) is read before time is concluded
            # from.
            await asyncio.sleep(STALL_SECONDS)

    async def _tick(self) -> None:
        leader = self._leader
        made = 0
        while made < TIMER_EVENTS_IN_A_ROW_MAX:
            try:
                pending = leader.decide(Tick())
            except PoisonCommand:
                self._park()
                return
            if not pending.answer.more:
                return
            made += 1 + len(pending.events)
            leader.enqueue(pending)
        await asyncio.sleep(0)

    def _park(self) -> None:
        """A timer that the engine fails on is set aside, so that the others go on."""
        leader = self._leader
        parked = leader.state.deadlines.drop_first()
        if parked is not None:
            _, kind, owner = parked
            log.error("timer_parked", shard=leader.shard, kind=kind, owner=owner)
