"""Questions that come at once are asked at once.

A driver's round trip costs ten times what one more key in it costs. So a question waits for nothing while
there is room for another round trip, and else for the next one, together with all that came meanwhile. Alone,
it is as quick as without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

#: Round trips of one kind of question under way at once.
IN_FLIGHT_MAX = 2

Key = TypeVar("Key")
Value = TypeVar("Value")


class Coalescer(Generic[Key, Value]):
    """Answers single questions by asking for many. For one event loop."""

    def __init__(
        self, ask: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]], batch_max: int
    ) -> None:
        """`ask` answers those of the (different) keys that have an answer; `batch_max` keys at once."""
        self._ask = ask
        self._batch_max = batch_max
        # As long as the calls that wait, which the server bounds.
        self._waiting: dict[Key, list[asyncio.Future[Value | None]]] = {}
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: Key) -> Value | None:
        """The answer, None when there is none. Whatever `ask` raises, for every question of its batch."""
        future: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._in_flight < IN_FLIGHT_MAX:
            self._start()
        return await future

    def _start(self) -> None:
        self._in_flight += 1
        task = asyncio.get_running_loop().create_task(self._run())
        # The loop itself keeps only a weak reference.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        try:
            while self._waiting:
                keys = list(self._waiting)[: self._batch_max]
                batch = [(key, self._waiting.pop(key)) for key in keys]
                await self._answer(batch)
        finally:
            self._in_flight -= 1

    async def _answer(self, batch: list[tuple[Key, list[asyncio.Future[Value | None]]]]) -> None:
        try:
            found = await self._ask([key for key, _ in batch])
        except Exception as error:
            for future in (future for _, waiting in batch for future in waiting):
                if not future.done():
                    future.set_exception(error)
            return
        for key, waiting in batch:
            for future in waiting:
                if not future.done():
                    future.set_result(found.get(key))
