"""Many callers' single requests, answered by few requests to the database.

While one round trip is under way, what is asked meanwhile waits and goes out together with the next: the
busier the service, the larger the groups, and an idle one waits for nobody (group commit: DeWitt et al.:
Implementation techniques for main memory database systems, SIGMOD 1984).

A group is half of the crowd, of all who were known to be under way lately: it waits for as many, and takes no
more. In one group of everybody all would wait for the database together, then for the processor together, and
each would stand idle while the other works; and such a group never parts again. In halves, one is read or
written while the other is decided. For the same reason the next group leaves before the answers of the one
before are worked on. To wait for fewer makes groups that are smaller still.

Answers are given a few in a turn of the loop, for gRPC's server lets one new call in a turn: were all of a
group worked on in one, those who come meanwhile would stand outside, and be missed in the next group.

A group too small to be worth a round trip leaves no sooner than a pace after the one before, for each trip
costs the driver several times what a further question costs. And nobody waits for others longer than a pace.
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
#: A group waits for one part in so many of the crowd, and takes no more.
CROWD_PARTS = 2
#: A crowd is remembered for one to two such spans, seconds.
CROWD_SECONDS = 0.05
#: So many questions are worth a round trip: they wait for no pace, and are not divided further.
WORTH_QUESTIONS = 8
#: Answers given in one turn of the loop.
TURN_ANSWERS = 2


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
        crowd: Callable[[], int] | None = None,
    ) -> None:
        """`crowd` says how many questions are about to come, these included; without it a group is whatever
        waits. Small groups leave at least `pace_seconds` apart.
        """
        self._work = work
        self._pace_seconds = pace_seconds
        self._crowd = crowd
        #: The largest crowds seen in the present span and in the one before, and when the present one ends.
        self._present = self._before = 0
        self._span_ends = float("-inf")
        #: Questions, where their answers go, and when they were asked by the loop's clock.
        self._waiting: deque[tuple[Question, asyncio.Future[Answer], float]] = deque()
        #: The round trip under way, and when the last one began.
        self._trip: asyncio.Task[None] | None = None
        self._begun_at = float("-inf")
        #: Whether what waits is looked at in the next turn of the loop, and what does it at a later time.
        self._look_soon = False
        self._look_later: asyncio.TimerHandle | None = None
        #: Questions without an answer yet.
        self.pending = 0

    async def ask(self, question: Question) -> Answer:
        """The answer; TooBusy when too many wait."""
        if len(self._waiting) >= WAITING_MAX:
            raise TooBusy(why="try again", retry_seconds=1.0)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, answer, loop.time()))
        if not self._look_soon and not self._under_way():
            # What else becomes ready in this turn of the loop joins the group.
            self._look_soon = True
            loop.call_soon(self._look, loop)
        self.pending += 1
        try:
            return await answer
        finally:
            self.pending -= 1

    def _under_way(self) -> bool:
        return self._trip is not None and not self._trip.done()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins a round trip if one is due, or sees to the next look."""
        self._look_soon = False
        if self._look_later is not None:
            self._look_later.cancel()
            self._look_later = None
        if self._under_way() or not self._waiting:
            return
        now, most = loop.time(), GROUP_MAX
        if self._crowd is not None:
            crowd = self._lately(self._crowd(), now)
            share = min(GROUP_MAX, crowd // CROWD_PARTS)
            most, due = max(share, WORTH_QUESTIONS), self._due_at(share)
            if due > now:
                self._look_later = loop.call_at(due, self._look, loop)
                return
        group = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._begun_at = now
        self._trip = loop.create_task(self._travel(group, loop))

    def _lately(self, seen: int, now: float) -> int:
        """The largest crowd of lately, `seen` being the one of now."""
        if now >= self._span_ends:
            self._before = self._present if now < self._span_ends + CROWD_SECONDS else 0
            self._present, self._span_ends = seen, now + CROWD_SECONDS
        self._present = max(self._present, seen)
        return max(self._present, self._before)

    def _due_at(self, share: int) -> float:
        """The loop's time at which what waits may leave, where a group waits for a `share`."""
        waiting = len(self._waiting)
        if waiting >= max(share, WORTH_QUESTIONS):
            return 0.0
        paced = self._begun_at + self._pace_seconds
        return paced if waiting >= share else max(paced, self._waiting[0][2] + self._pace_seconds)

    async def _travel(
        self, group: Sequence[tuple[Question, asyncio.Future[Answer], float]], loop: asyncio.AbstractEventLoop
    ) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._work([question for question, _, _ in group])
        except Exception as error:  # told to each who asked
            answers = [error] * len(group)
        # The next leaves first, and is under way while these answers are worked on.
        self._trip = None
        self._look(loop)
        for at, ((_, future, _), answer) in enumerate(zip(group, answers, strict=True)):
            if at % TURN_ANSWERS == 0 and at:
                await asyncio.sleep(0)
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
