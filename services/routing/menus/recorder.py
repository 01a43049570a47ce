"""Writes sessions down behind the answers: a step never waits for the database.

A session's token carries everything, so a record that is not written yet is written by the next step
wherever that is taken; what a router that dies had not written of a last step is missing from the
statistics and nowhere else. Records that wait are bounded by `pending_max`, the newest step of a session
replacing the one before; beyond that they are counted as dropped.
"""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

from pymongo.errors import PyMongoError

from chassis import logs, metrics
from routing.menus.engine import State
from routing.menus.records import Record
from routing.menus.store import MenuStore

#: How often records are written, and how soon again when the database was away, real seconds.
WRITE_SECONDS, AWAY_SECONDS = 0.2, 1.0
#: Sessions of one write.
WRITE_SESSIONS_MAX = 200

log = logs.get_logger(__name__)
_dropped = metrics.counter(
    "callmesh_menu_records_dropped_total", "Menu sessions that could not be written down."
)
_waiting = metrics.gauge("callmesh_menu_records_waiting", "Menu sessions that wait to be written down.")


class Recorder:
    """One a router."""

    def __init__(self, store: MenuStore, *, days: int, pending_max: int) -> None:
        """`days`: how long records are kept (real time)."""
        self._store = store
        self._kept = timedelta(days=days)
        self._pending_max = pending_max
        self._pending: dict[str, tuple[State, bytes]] = {}
        self._writing: dict[str, tuple[State, bytes]] = {}

    def note(self, state: State, body: bytes) -> None:
        """Takes a session's newest step."""
        if state.id not in self._pending and len(self._pending) >= self._pending_max:
            _dropped.inc()
            return
        known = self._pending.get(state.id)
        if known is None or known[0].step <= state.step:
            self._pending[state.id] = (state, body)

    def find(self, id: str) -> bytes | None:
        """The body of a session that waits to be written."""
        found = self._pending.get(id) or self._writing.get(id)
        return found[1] if found is not None else None

    async def run(self) -> None:
        """Writes for ever."""
        while True:
            await asyncio.sleep(WRITE_SECONDS if await self.write() else AWAY_SECONDS)

    def _wait_on(self) -> None:
        self._pending = {**self._writing, **self._pending}

    async def write(self) -> bool:
        """Writes what waits; False when the database did not answer, and everything waits on."""
        while self._pending:
            self._writing = dict(itertools.islice(self._pending.items(), WRITE_SESSIONS_MAX))
            for id in self._writing:
                del self._pending[id]
            rows = [(Record.of(state), body) for state, body in self._writing.values()]
            try:
                await self._store.record(rows, datetime.now(UTC) + self._kept)
            except PyMongoError as error:
                log.warning("menus.records_wait", sessions=len(rows), error=repr(error))
                self._wait_on()
                return False
            except asyncio.CancelledError:
                self._wait_on()
                raise
            finally:
                self._writing = {}
                _waiting.set(len(self._pending))
        return True
