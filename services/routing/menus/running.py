"""Menus in service, held in memory: what runs goes on running while the database is away or refuses."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from pymongo.errors import PyMongoError

from callmesh.routing.v1 import menus_pb2 as pb
from chassis.clock import Clock
from chassis.errors import FailedPrecondition, NotFound, ResourceExhausted
from routing.menus import convert
from routing.menus.model import Index
from routing.menus.store import MenuStore, Published, Stored

#: Versions held ready, and menus whose publication is held.
VERSIONS_HELD_MAX = 64
MENUS_HELD_MAX = 1_000
#: Versions that are read at a time, and how soon another try makes sense, real seconds.
READINGS_MAX, RETRY_SECONDS = 64, 1.0
#: A newer word on what is in service is waited for so long, real seconds: a caller is on the line.
WORD_SECONDS = 0.5


class MenuNotFound(NotFound):
    """There is no menu {resource}."""

    reason = "MENU_NOT_FOUND"


class MenuNotPublished(FailedPrecondition):
    """{subject}: {why}."""

    reason = "MENU_NOT_PUBLISHED"


def in_trial(published: Published, caller: str) -> bool:
    """Whether a caller belongs to the trial's share; always the same callers of one menu."""
    drawn = int.from_bytes(hashlib.sha256(f"{published.menu}|{caller}".encode()).digest()[:6])
    return bool(published.trial) and drawn < published.share * 2**48


def _index(menu: str, stored: Stored) -> Index:
    return Index.of(convert.read_menu(menu, pb.Menu.FromString(stored.content), stored.number))


class Running:
    """What is in service. Versions never change, so they are kept as long as there is room."""

    def __init__(self, store: MenuStore, clock: Clock, *, seconds: float) -> None:
        """`seconds` (real): how old a publication may be before it is looked at again."""
        self._store = store
        self._clock = clock
        self._seconds = seconds
        self._published: OrderedDict[str, tuple[float, Published]] = OrderedDict()
        self._indexes: OrderedDict[tuple[str, int], Index] = OrderedDict()
        #: Versions that are being read: whoever else wants one waits for the same reading.
        self._readings: dict[tuple[str, int], asyncio.Task[Index]] = {}

    async def published(self, menu: str) -> Published:
        """What is in service. Raises MenuNotFound, MenuNotPublished; pymongo's errors when nothing is
        held.
        """
        held = self._published.get(menu)
        if held is None or self._clock.monotonic() - held[0] > self._seconds:
            found: Published | None
            try:
                async with asyncio.timeout(WORD_SECONDS if held is not None else None):
                    found = await self._store.published(menu)
            except (TimeoutError, PyMongoError):
                if held is None:
                    raise
                # The old word stands, and not everybody who comes waits for another.
                found = held[1]
            if found is None:
                raise MenuNotFound(resource=f"menus/{menu}")
            held = (self._clock.monotonic(), found)
            self._published[menu] = held
            self._published.move_to_end(menu)
            while len(self._published) > MENUS_HELD_MAX:
                self._published.popitem(last=False)
        if not held[1].version:
            raise MenuNotPublished(subject=f"menus/{menu}", why="no version of it is in service yet")
        return held[1]

    def forget(self, menu: str) -> None:
        """Looks anew next time."""
        self._published.pop(menu, None)

    async def index(self, menu: str, version: int) -> Index:
        """A version. Raises MenuNotFound, ResourceExhausted; pymongo's errors when it is not held."""
        held = self._indexes.get((menu, version))
        if held is not None:
            self._indexes.move_to_end((menu, version))
            return held
        reading = self._readings.get((menu, version))
        if reading is None:
            if len(self._readings) >= READINGS_MAX:
                raise ResourceExhausted(
                    "server", RETRY_SECONDS, limit=f"{READINGS_MAX} menus are read at a time"
                )
            reading = asyncio.create_task(self._read(menu, version))
            self._readings[menu, version] = reading
            reading.add_done_callback(lambda done: self._read_ended((menu, version), done))
        # Who gives up does not end it for the others.
        return await asyncio.shield(reading)

    def _read_ended(self, key: tuple[str, int], reading: asyncio.Task[Index]) -> None:
        del self._readings[key]
        # An error is told to those who wait; nobody may be left.
        if not reading.cancelled():
            reading.exception()

    async def _read(self, menu: str, version: int) -> Index:
        stored = await self._store.version(menu, version)
        if stored is None:
            raise MenuNotFound(resource=f"menus/{menu}@{version}")
        # A large tree takes a moment to read, and calls are routed meanwhile.
        index = await asyncio.to_thread(_index, menu, stored)
        self._indexes[menu, version] = index
        while len(self._indexes) > VERSIONS_HELD_MAX:
            self._indexes.popitem(last=False)
        return index
