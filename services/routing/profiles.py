"""What routing knows of customers: a small read model of its own, fed by crm's events, never waited for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from pymongo.errors import PyMongoError

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: One document a number: `_id` E.164, `customer`, `tier`, `priority`.
PROFILES = "profiles"
#: Priority points by tier; a point is worth the queue's priority credit of waiting.
PRIORITY_BY_TIER = {"vip": 4, "platinum": 3, "gold": 2, "silver": 1}

log = structlog.get_logger(__name__)


class ProfileReader:
    """Looks up callers by number."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], *, seconds: float) -> None:
        """`seconds`: how long a lookup may take (real) before the call is routed without it."""
        self._profiles = database[PROFILES]
        self._seconds = seconds

    async def priority_of(self, number: str) -> int:
        """Extra priority by tier; 0 for an unknown number and whenever the database is away or slow."""
        try:
            async with asyncio.timeout(self._seconds):
                found = await self._profiles.find_one({"_id": number}, {"priority": 1})
        except (TimeoutError, PyMongoError):
            log.info("profile_skipped")
            return 0
        return int(found.get("priority", 0)) if found else 0
