"""What routing knows of customers: a small read model of its own, fed by crm's events, never waited for.

A router keeps the profiles in memory and follows their changes (`ProfileBook`), so that a call costs no
question to the database. While it cannot (they are being read, the database was away for longer than its
change stream can be resumed, there are more than it may hold), callers are looked up together
(`ProfileReader`).

1. Changes are followed from an instant before the reading began, and the reading sees what was done up to
   that instant, or later: nothing falls between the two. What both see does no harm: a change carries the
   profile as it is.
2. A stream that breaks goes on where it was, also at another primary; the driver sees to that. If it cannot,
   because its place is no longer in the database's log, nobody knows what was missed: all is read anew.
3. What is held may be `LOOK_SECONDS` old and a moment more, and what was found is old when the call is
   queued: points, not facts.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import structlog
from bson import Timestamp
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from chassis.metrics import gauge
from routing.callers import FIELDS, STRANGER, KnownCaller, known_of

if TYPE_CHECKING:
    from pymongo.asynchronous.database import AsyncDatabase

#: One document a number: `_id` E.164, `customer`, `tier`, `priority`, `calls` (callers.py reads them).
PROFILES = "profiles"
#: Numbers of one question to the database, and those that may wait for the next.
NUMBERS_AT_ONCE_MAX, NUMBERS_WAITING_MAX = 200, 10_000

#: Profiles, or changes, taken from the database at once; then everything else gets its turn.
ROWS_AT_ONCE = 200
#: Changes are looked for this often, real seconds, and not waited for at the database: it would wake every
#: router's stream at every write of whatever kind, and a busy journal writes hundreds of times a second.
LOOK_SECONDS = 0.5
#: First and longest pause before the profiles are read anew, real seconds.
AGAIN_SECONDS_FIRST, AGAIN_SECONDS_MAX = 0.5, 60.0

log = structlog.get_logger(__name__)
_HELD = gauge("callmesh_profiles_held", "Profiles of callers in memory; -1 while they are looked up.")


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


class TooMany(Exception):
    """There are more profiles than may be held."""


class ProfileBook:
    """All profiles in memory, as long as that is possible; `run` keeps them."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], *, seconds: float, held_max: int) -> None:
        """`seconds` as `ProfileReader`; `held_max`: profiles held in memory at most, 0 for none."""
        self._database = database
        self._profiles = database.get_collection(PROFILES, read_concern=ReadConcern("majority"))
        self._reader = ProfileReader(database, seconds=seconds)
        self._held_max = held_max
        #: By number, those that say something; None while this is not the whole.
        self._held: dict[str, KnownCaller] | None = None
        _HELD.set_function(lambda: -1.0 if self._held is None else float(len(self._held)))

    @property
    def whole(self) -> bool:
        """Whether callers are known without a question to the database."""
        return self._held is not None

    async def caller(self, number: str) -> KnownCaller:
        """What is known of a number."""
        held = self._held
        if held is not None:
            return held.get(number, STRANGER)
        return await self._reader.caller(number)

    async def run(self) -> None:
        """Reads the profiles and follows their changes, and again whenever the changes were lost, until
        cancelled.
        """
        pause = AGAIN_SECONDS_FIRST
        while self._held_max:
            try:
                async with aclosing(self._changes()) as changes:
                    async for change in changes:
                        self._take(change)
                        pause = AGAIN_SECONDS_FIRST
            except TooMany:
                log.warning("profiles_not_held", more_than=self._held_max)
                pause = AGAIN_SECONDS_MAX
            except PyMongoError as error:
                log.warning("profiles_lost", error=str(error)[:200])
            finally:
                self._held = None
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_SECONDS_MAX)

    async def _changes(self) -> AsyncGenerator[Mapping[str, Any], None]:
        """Changes since the profiles were read, which is done first. Ends when there can be no more."""
        async with self._database.client.start_session(causal_consistency=True) as session:
            read_from = (await self._database.command("ping", session=session)).get("operationTime")
            stream = await self._profiles.watch(
                full_document="updateLookup",
                # The next operation's; without one (no replica set) there is no stream either.
                start_at_operation_time=read_from and Timestamp(read_from.time, read_from.inc + 1),
                batch_size=ROWS_AT_ONCE,
                max_await_time_ms=1,
            )
            async with stream:
                # In the session of the ping: what is read is as it was then, or later.
                self._held = await self._read(session)
                while stream.alive:
                    change = await stream.try_next()
                    if change is None:
                        await asyncio.sleep(LOOK_SECONDS)
                    else:
                        yield change

    async def _read(self, session: Any) -> dict[str, KnownCaller]:
        """All profiles that say something. Raises TooMany."""
        held: dict[str, KnownCaller] = {}
        rows = self._profiles.find({}, FIELDS, session=session).batch_size(ROWS_AT_ONCE)
        async for row in rows:
            _hold(held, row["_id"], row)
            if len(held) > self._held_max:
                raise TooMany
        return held

    def _take(self, change: Mapping[str, Any]) -> None:
        """Brings one number up to date: there is no profile of it any more, or this one. Raises TooMany."""
        if self._held is None or "documentKey" not in change:
            # The collection was dropped or renamed: the stream ends, too.
            return
        _hold(self._held, change["documentKey"]["_id"], change.get("fullDocument"))
        if len(self._held) > self._held_max:
            raise TooMany


def _hold(held: dict[str, KnownCaller], number: str, row: Mapping[str, Any] | None) -> None:
    try:
        known = STRANGER if row is None else known_of(row)
    except (KeyError, TypeError, ValueError):
        log.error("profile_unreadable", number_ends=number[-2:])
        known = STRANGER
    if known == STRANGER:
        held.pop(number, None)
    else:
        held[number] = known
