"""Profiles in memory: what the database says, whatever happens to the stream of its changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from chassis.testing.waiting import eventually
from routing import profiles
from routing.callers import STRANGER
from routing.profiles import PROFILES, ProfileBook

pytestmark = pytest.mark.integration
DEADLINE_SECONDS = 30.0
#: What MongoDB answers when the place of a change stream is no longer in its log.
HISTORY_LOST = 286


@asynccontextmanager
async def following(book: ProfileBook) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(book.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def database(mongo_uri: str, mongo_database: str) -> AsyncIterator[Any]:
    # Polling: the driver leaks the socket of its round-trip probe when a client closes while it connects.
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_uri, serverMonitoringMode="poll")
    try:
        yield client[mongo_database]
    finally:
        await client.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "AGAIN_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(profiles, "AGAIN_SECONDS_MAX", 0.05)


async def put(database: Any, number: str, points: int) -> None:
    await database[PROFILES].replace_one({"_id": number}, {"priority": points}, upsert=True)


async def points_of(book: ProfileBook, number: str) -> int:
    return (await book.caller(number)).tier_points


async def until_points(book: ProfileBook, number: str, points: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not book.whole or await points_of(book, number) != points:
            await asyncio.sleep(0.01)


async def test_changes_are_followed(database: Any) -> None:
    await put(database, "+861", 3)
    book = ProfileBook(database, seconds=DEADLINE_SECONDS, held_max=10)
    assert await points_of(book, "+861") == 3, "looked up until all is held"
    async with following(book):
        await until_points(book, "+861", 3)
        await put(database, "+862", 2)
        await until_points(book, "+862", 2)
        await database[PROFILES].update_one({"_id": "+861"}, {"$set": {"priority": 4}})
        await until_points(book, "+861", 4)
        await database[PROFILES].delete_one({"_id": "+861"})
        await until_points(book, "+861", 0)
        await database[PROFILES].insert_one({"_id": "+863", "priority": 1, "calls": 5})
        await put(database, "+864", 1)
        await until_points(book, "+864", 1)
        assert await book.caller("+863") == STRANGER, "what cannot be read stops nobody"


class Forgetful(ProfileBook):
    """The place of its first stream is lost after the change of +862."""

    streams = 0
    missed = asyncio.Event()

    async def _changes(self) -> AsyncGenerator[Mapping[str, Any], None]:
        self.streams += 1
        async for change in super()._changes():
            yield change
            if self.streams == 1 and change["documentKey"]["_id"] == "+862":
                await self.missed.wait()
                raise OperationFailure("Resume of change stream was not possible", HISTORY_LOST)


async def test_a_stream_whose_place_is_lost_is_begun_anew_with_everything_read(database: Any) -> None:
    await put(database, "+861", 3)
    book = Forgetful(database, seconds=DEADLINE_SECONDS, held_max=10)
    book.missed = asyncio.Event()
    async with following(book):
        await until_points(book, "+861", 3)
        await put(database, "+862", 1)
        await until_points(book, "+862", 1)
        for number, points in (("+861", 4), ("+863", 2)):
            await put(database, number, points)
        await database[PROFILES].delete_one({"_id": "+862"})
        book.missed.set()
        for number, points in (("+861", 4), ("+862", 0), ("+863", 2)):
            await until_points(book, number, points)
        assert book.streams == 2


async def test_a_collection_that_is_dropped_leaves_nobody_known_and_is_followed_again(database: Any) -> None:
    await put(database, "+861", 3)
    book = ProfileBook(database, seconds=DEADLINE_SECONDS, held_max=10)
    async with following(book):
        await until_points(book, "+861", 3)
        await database[PROFILES].drop()
        await until_points(book, "+861", 0)
        assert await book.caller("+861") == STRANGER
        await put(database, "+861", 2)
        await until_points(book, "+861", 2)


async def test_more_profiles_than_may_be_held_are_looked_up(database: Any) -> None:
    for n in range(3):
        await put(database, f"+86{n}", 1 + n)
    book = ProfileBook(database, seconds=DEADLINE_SECONDS, held_max=3)
    async with following(book):
        await until_points(book, "+862", 3)
        await put(database, "+863", 4)
        await eventually(lambda: not book.whole)
        assert await points_of(book, "+863") == 4 and not book.whole
        await database[PROFILES].delete_one({"_id": "+860"})
        await until_points(book, "+863", 4)
