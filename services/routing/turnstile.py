"""Who may ask a shard, when many want to at once.

After a change of leader every stream of a router has something for the new one: sessions and callers to
attach again, calls that came while nobody led, commands without an answer. If all ask at once, the new leader
and its fronts are busy for longer than the leader may stay silent, and answers come too late to be of use.
So they go through here: nobody while the shard has no leader, then so many at once, the most urgent first,
among equals whoever came first.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

#: Passages at once. With a commit of ten milliseconds that is thousands a second; with a slow one it is no
#: more than the leader can take.
AT_ONCE_MAX = 64
#: Who may wait for a turn; the next is turned away at once.
WAITING_MAX = 20_000
#: Those who have given up are dropped when they outnumber the others by this.
OUTDATED_MAX = 64


class Urgency(enum.IntEnum):
    """Who goes first. An assignment needs an agent and a call, so both come before those who already talk."""

    #: Sessions of agents, and commands that somebody waits for.
    AGENT = 0
    #: Calls that wait for an agent.
    CALLER = 1
    #: Calls that no leader knows yet.
    NEW_CALL = 2
    #: Conversations: they go on by themselves.
    TALKING = 3


class NoTurn(Exception):
    """No leader came in time, the leader went, or too many wait."""


class Turnstile:
    """One a shard and router. Belongs to one event loop."""

    def __init__(self, is_open: Callable[[], bool], at_once: int = AT_ONCE_MAX) -> None:
        """`is_open` says whether the shard has a leader just now; call `look` when that changes."""
        self._is_open = is_open
        self._free = at_once
        #: How many wait for a turn.
        self.waiting = 0
        #: (urgency, number, its turn, whether it waits for a leader too); who has given up is still in it.
        self._waiting: list[tuple[Urgency, int, asyncio.Future[None], bool]] = []
        self._numbers = itertools.count()

    def look(self) -> None:
        """A leader came or went. Who attaches again has no business with the next one: another change,
        another attempt.
        """
        if not self._is_open():
            staying = []
            for entry in self._waiting:
                _, _, turn, patient = entry
                if patient:
                    staying.append(entry)
                elif not turn.done():
                    turn.set_exception(NoTurn())
            heapq.heapify(staying)
            self._waiting = staying
        self._admit()

    @asynccontextmanager
    async def passage(self, urgency: Urgency, seconds: float | None = None) -> AsyncIterator[None]:
        """A turn, given back at the end. With `seconds` (real) a leader is waited for, too; without, the turn
        is lost when the present one goes. Raises NoTurn.
        """
        await self._enter(urgency, seconds)
        try:
            yield
        finally:
            self._free += 1
            self._admit()

    async def _enter(self, urgency: Urgency, seconds: float | None) -> None:
        is_open = self._is_open()
        if is_open and self._free and not self._waiting:
            self._free -= 1
            return
        if self.waiting >= WAITING_MAX or (seconds is None and not is_open):
            raise NoTurn
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, next(self._numbers), turn, seconds is not None))
        self.waiting += 1
        self._admit()
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It came in the same moment.
                self._free += 1
                self._admit()
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise NoTurn from None
            raise
        finally:
            self.waiting -= 1
            self._tidy()

    def _tidy(self) -> None:
        """Drops those who have given up once they outnumber the others: behind somebody more urgent they
        would never come up.
        """
        if len(self._waiting) > 2 * self.waiting + OUTDATED_MAX:
            self._waiting = [entry for entry in self._waiting if not entry[2].done()]
            heapq.heapify(self._waiting)

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][2].done() or (self._free and self._is_open())):
            _, _, turn, _ = heapq.heappop(self._waiting)
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
