"""Group commit for the event loop: what many calls want of the database at one moment goes there in one trip.

A batch leaves at once when none is under way; what arrives meanwhile leaves together when one comes back. A
caller who is alone waits no longer than without it. Where the batch before held several, the next waits
`LINGER_SECONDS` for company: under load the cost of a trip is shared by more, and calls wait less in sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

#: Most items in one trip.
BATCH_ITEMS_MAX = 64
#: How long a batch waits for company under load, real seconds.
LINGER_SECONDS = 0.002

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Batcher(Generic[Item, Outcome]):
    """Collects items for `trip`, which answers one outcome or exception for each, in their order. How many
    wait is bounded by the server's limit of open calls: each call waits for its own item."""

    def __init__(self, trip: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]]) -> None:
        self._trip = trip
        self._waiting: list[tuple[Item, asyncio.Future[Outcome]]] = []
        #: The trip under way, or the timer of the next; at most one of both.
        self._next: asyncio.Task[None] | asyncio.TimerHandle | None = None

    async def ask(self, item: Item) -> Outcome:
        """The outcome of one item; raises what its trip had for it, or the trip's own failure."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._next is None:
            self._leave()
        return await future

    def _leave(self) -> None:
        batch, self._waiting = self._waiting[:BATCH_ITEMS_MAX], self._waiting[BATCH_ITEMS_MAX:]
        task = asyncio.get_running_loop().create_task(self._make(batch))
        self._next = task
        task.add_done_callback(lambda _: self._back(len(batch)))

    def _back(self, size: int) -> None:
        self._next = None
        if len(self._waiting) >= BATCH_ITEMS_MAX:
            self._leave()
        elif size > 1:
            self._next = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._after_linger)
        elif self._waiting:
            self._leave()

    def _after_linger(self) -> None:
        self._next = None
        if self._waiting:
            self._leave()

    async def _make(self, batch: list[tuple[Item, asyncio.Future[Outcome]]]) -> None:
        try:
            outcomes = await self._trip([item for item, _ in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():  # its call was given up meanwhile
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
