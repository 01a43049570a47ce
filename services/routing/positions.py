"""What waiting callers hear of their place in the queue and of the wait that is expected."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from routing.model import Fact, PositionChanged
from routing.views import Places, positions, view_call

if TYPE_CHECKING:
    from routing.leader import Leader

#: The next so many of a queue hear of every change of their position.
POSITIONS_EXACT = 5
#: Positions are told this often, real seconds, to this many callers of a queue.
POSITIONS_SECONDS = 1.0
POSITIONS_PER_QUEUE_MAX = 1_000
#: Further back a caller hears of a change at most this often, real seconds: a crowd that grows changes the
#: expected wait of everybody in it, and who is told that each second keeps the router from its work.
POSITIONS_FAR_SECONDS = 5.0
#: So many at once; then everything else gets its turn.
POSITIONS_AT_ONCE = 20


def noticeable(before: tuple[int, int], after: tuple[int, int], seconds: float) -> bool:
    """Whether a caller who was told a (position, expected wait in milliseconds, -1 unknown) so long ago is to
    hear of a new one: always among the next few, further back now and then when it changed by a tenth. In a
    queue of thousands everybody's place changes every second, and telling all of them would be most of a
    router's work.
    """
    if before[0] <= POSITIONS_EXACT or after[0] <= POSITIONS_EXACT:
        return before != after
    if seconds < POSITIONS_FAR_SECONDS:
        return False
    if (before[1] < 0) != (after[1] < 0):
        return True
    return any(abs(now - then) * 10 >= max(then, 1) for then, now in zip(before, after, strict=True))


class Positions:
    """Tells waiting callers their place and expected wait when these have changed; one a leader."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    async def run(self) -> None:
        """Tells for ever."""
        #: By call id: what it was told, and when.
        told: dict[str, tuple[tuple[int, int], float]] = {}
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(POSITIONS_SECONDS)
            now, at = self._places(), loop.time()
            changed = [
                call_id
                for call_id, place in now.items()
                if (before := told.get(call_id)) is None or noticeable(before[0], place, at - before[1])
            ]
            told = {call_id: told[call_id] for call_id in now if call_id in told}
            told |= {call_id: (now[call_id], at) for call_id in changed}
            slices = [changed[i : i + POSITIONS_AT_ONCE] for i in range(0, len(changed), POSITIONS_AT_ONCE)]
            for part in slices:
                self._tell([(call_id, *now[call_id]) for call_id in part])
                # Over half of the time, so that no offer waits behind a thousand positions.
                await asyncio.sleep(POSITIONS_SECONDS / 2 / len(slices))

    def _places(self) -> dict[str, tuple[int, int]]:
        """(position, expected wait in milliseconds) of the waiting calls, by id. A place in the queue is an
        acknowledgement: only a committed call has one.
        """
        leader = self._leader
        return {
            call_id: (position, wait_ms)
            for call_id, position, wait_ms in positions(leader.state, POSITIONS_PER_QUEUE_MAX)
            if leader.state.calls[call_id].ordinal <= leader.told.ordinal
        }

    def _tell(self, places: Sequence[tuple[str, int, int]]) -> None:
        """(call id, position, expected wait in milliseconds) to the fronts, one message each."""
        leader = self._leader
        by_front: dict[str, list[Fact]] = {}
        known = Places()
        for call_id, position, wait_ms in places:
            entry = leader.state.calls.get(call_id)
            if entry is not None and entry.ticket and entry.front in leader.outlets:
                event = PositionChanged(call_id=call_id, position=position, expected_wait_span_ms=wait_ms)
                view = view_call(leader.state, call_id, known)
                fact = Fact(event=event, now_ms=leader.state.now_ms, call=view)
                by_front.setdefault(entry.front, []).append(fact)
        # In the order of what was told, from memory or not.
        told = max(leader.sequence, leader.told.sequence)
        leader.told.durable = told == leader.sequence
        try:
            for front, facts in by_front.items():
                leader.outlets[front](facts, leader.state.epoch, told, leader.state.now_ms)
        finally:
            leader.told.durable = True
