"""What routing knows of customers: a small read model of its own, fed by crm's events, never waited for."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import structlog
from pymongo.errors import PyMongoError

from routing.callers import FIELDS, STRANGER, KnownCaller, known_of

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: One document a number: `_id` E.164, `customer`, `tier`, `priority`, `calls` (callers.py reads them).
PROFILES = "profiles"
#: Numbers of one question to the database, and those that may wait for the next.
NUMBERS_AT_ONCE_MAX, NUMBERS_WAITING_MAX = 200, 10_000

log = structlog.get_logger(__name__)


class ProfileReader:
    """Looks up callers by number: one question at a time for all who ask, so that a lookup costs a call next
    to nothing when many come at once.
    """

    def __init__(self, database: AsyncDatabase[dict[str, Any]], *, seconds: float) -> None:
        """`seconds`: how long a lookup may take (real) before the call is routed without it."""
        self._profiles = database[PROFILES]
        self._seconds = seconds
        #: Numbers that the next question is about.
        self._wanted: dict[str, asyncio.Future[KnownCaller]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def caller(self, number: str) -> KnownCaller:
        """What is known of a number; STRANGER whenever the database is away or slow."""
        found = self._wanted.get(number)
        if found is None:
            if len(self._wanted) >= NUMBERS_WAITING_MAX:
                return STRANGER
            found = self._wanted[number] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        # Others may wait for the same number: who gives up does so alone.
        return await asyncio.shield(found)

    async def _ask(self) -> None:
        """Asks until nobody waits."""
        while self._wanted:
            asked = dict(itertools.islice(self._wanted.items(), NUMBERS_AT_ONCE_MAX))
            for number in asked:
                del self._wanted[number]
            known = await self._find(list(asked))
            for number, future in asked.items():
                if not future.done():
                    future.set_result(known.get(number, STRANGER))
        self._asking = None

    async def _find(self, numbers: list[str]) -> dict[str, KnownCaller]:
        """Those that are known."""
        try:
            async with asyncio.timeout(self._seconds):
                rows = await self._profiles.find({"_id": {"$in": numbers}}, FIELDS).to_list()
        except (TimeoutError, PyMongoError):
            log.info("profiles_skipped", numbers=len(numbers))
            return {}
        return {row["_id"]: known_of(row) for row in rows}
