"""An asynchronous database whose collections count what is asked of them, at a price that hot reads can pay.

pymongo's own listeners make a find a fifth dearer. Here the public methods are timed around, which costs
about a hundredth: a command is counted from its call to its answer, a find to its first batch (later batches
are not counted). What watches a collection is not counted: it waits by design.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.cursor import AsyncCursor
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from chassis.metrics_queries import TALLIES, Tally

#: Methods by the command that they send.
_COMMANDS = {
    "aggregate": "aggregate",
    "bulk_write": "update",
    "count_documents": "aggregate",
    "delete_many": "delete",
    "delete_one": "delete",
    "distinct": "distinct",
    "find_one_and_delete": "findAndModify",
    "find_one_and_replace": "findAndModify",
    "find_one_and_update": "findAndModify",
    "insert_many": "insert",
    "insert_one": "insert",
    "replace_one": "update",
    "update_many": "update",
    "update_one": "update",
}


async def _timed(tally: Tally, asked: Awaitable[Any]) -> Any:
    began = time.perf_counter()
    try:
        answer = await asked
    except PyMongoError:
        tally.record(time.perf_counter() - began, failed=True)
        raise
    tally.record(time.perf_counter() - began)
    return answer


class _CountedCursor(AsyncCursor[dict[str, Any]]):
    """Counts its first batch."""

    _tally: Tally | None = None

    async def next(self) -> dict[str, Any]:
        """The next document; StopAsyncIteration behind the last."""
        tally = self._tally
        if tally is None:
            return await super().next()
        self._tally = None
        began = time.perf_counter()
        failed = False
        try:
            return await super().next()
        except PyMongoError:
            failed = True
            raise
        finally:
            tally.record(time.perf_counter() - began, failed=failed)

    __anext__ = next

    async def to_list(self, length: int | None = None) -> list[dict[str, Any]]:
        """All documents, or so many."""
        tally, self._tally = self._tally, None
        read = super().to_list(length)
        found: list[dict[str, Any]] = await (read if tally is None else _timed(tally, read))
        return found


class CountedCollection(AsyncCollection[dict[str, Any]]):
    """A collection whose commands are counted."""

    def with_options(self, *args: Any, **options: Any) -> Any:
        """The same with other options, counted too."""
        return _counted(super().with_options(*args, **options))

    def _tally_of(self, command: str) -> Tally:
        database: Any = self.database
        return TALLIES.of(database._counted_service, self.name, command)

    def find(self, *args: Any, **options: Any) -> Any:
        """A cursor that counts."""
        cursor: Any = _CountedCursor(self, *args, **options)
        cursor._tally = self._tally_of("find")
        return cursor


def _method(name: str, command: str) -> Callable[..., Any]:
    plain = getattr(AsyncCollection, name)

    @functools.wraps(plain)
    def counted(self: CountedCollection, *args: Any, **options: Any) -> Awaitable[Any]:
        return _timed(self._tally_of(command), plain(self, *args, **options))

    return counted


for _name, _command in _COMMANDS.items():
    setattr(CountedCollection, _name, _method(_name, _command))


def _counted(plain: Any) -> Any:
    return CountedCollection(
        plain.database,
        plain.name,
        codec_options=plain.codec_options,
        read_preference=plain.read_preference,
        write_concern=plain.write_concern,
        read_concern=plain.read_concern,
    )


class CountedDatabase(AsyncDatabase[dict[str, Any]]):
    """A database whose collections are counted under the name of its service."""

    def __init__(self, client: Any, name: str, *, service: str) -> None:
        super().__init__(client, name)
        self._counted_service = service

    def __getitem__(self, name: str) -> Any:
        return CountedCollection(self, name)

    def get_collection(self, name: str, *args: Any, **options: Any) -> Any:
        """A collection with options."""
        return _counted(super().get_collection(name, *args, **options))
