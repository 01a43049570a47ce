"""Many callers' single requests, answered by few requests to the database.

While one round trip is under way, what is asked meanwhile waits and goes out together with the next: the
busier the service, the larger the groups, and an idle one waits for nobody (group commit: DeWitt et al.:
Implementation techniques for main memory database systems, SIGMOD 1984). Round trips also keep a pace: one
begins at the earliest so long after the one before, for otherwise a fast database gets them one by one, and
each costs the driver several times what a group's further question costs. And where a crowd is known to be
under way, a small group waits for a share of it, for as long as the pace once more: on a machine that is busy
with other things, questions trickle in, and small groups would make it busier still.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from chassis.errors import Unavailable

Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: Questions in one round trip.
GROUP_MAX = 256
#: Questions that may wait.
WAITING_MAX = 20_000
#: A group waits for one part in so many of the crowd.
CROWD_PARTS = 2


class TooBusy(Unavailable):
    """Too much waits for the database: {why}."""

    reason = "TOO_BUSY"


class Gathered(Generic[Question, Answer]):
    """Groups questions. For one event loop.

    `work` answers a group in its order; an answer that is an exception is raised for its question alone, what
    `work` itself raises is raised for all of the group.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Question]], Awaitable[Sequence[Answer | Exception]]],
        *,
        pace_seconds: float = 0.0,
        crowd: Callable[[], int] = lambda: 0,
    ) -> None:
        """Round trips begin at least `pace_seconds` apart; `crowd` says how many questions are about to come,
        these included.
        """
        self._work = work
        self._pace_seconds = pace_seconds
        self._crowd = crowd
        #: Loop time from which on the next may begin.
        self._next_at = 0.0
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._running: asyncio.Task[None] | None = None
        #: Done when so many wait as a group waits for.
        self._enough: asyncio.Future[None] | None = None
        self._wanted = 0
        #: Questions without an answer yet.
        self.pending = 0

    async def ask(self, question: Question) -> Answer:
        """The answer; TooBusy when too many wait."""
        if len(self._waiting) >= WAITING_MAX:
            raise TooBusy(why="try again", retry_seconds=1.0)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, answer))
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        elif self._enough is not None and len(self._waiting) >= self._wanted:
            _finish(self._enough)
        self.pending += 1
        try:
            return await answer
        finally:
            self.pending -= 1

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            # At least what else becomes ready in this turn of the loop joins the group.
            await asyncio.sleep(max(0.0, self._next_at - loop.time()))
            await self._await_crowd(loop)
            self._next_at = loop.time() + self._pace_seconds
            size = min(GROUP_MAX, len(self._waiting))
            group = [self._waiting.popleft() for _ in range(size)]
            try:
                answers = await self._work([question for question, _ in group])
            except Exception as error:  # told to each who asked
                answers = [error] * len(group)
            for (_, future), answer in zip(group, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
            # Those answered go on first, and what they ask next joins the next group.
            await asyncio.sleep(0)

    async def _await_crowd(self, loop: asyncio.AbstractEventLoop) -> None:
        """Waits until a share of the crowd has come, or the pace is over once more."""
        self._wanted = min(GROUP_MAX, self._crowd() // CROWD_PARTS)
        if len(self._waiting) >= self._wanted or not self._pace_seconds:
            return
        self._enough = loop.create_future()
        timer = loop.call_later(self._pace_seconds, _finish, self._enough)
        try:
            await self._enough
        finally:
            timer.cancel()
            self._enough = None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
