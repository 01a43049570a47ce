"""Waiting for a condition with a deadline, in place of a sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

#: How often the condition is looked at, in seconds.
POLL_SECONDS = 0.02
#: And between turns of an event loop, where a look costs little.
TURN_SECONDS = 0.002

T = TypeVar("T")


def wait_until(condition: Callable[[], T], deadline_seconds: float = 30.0, *, what: str = "") -> T:
    """Polls `condition` until it gives something true and returns that; AssertionError after
    `deadline_seconds`.

    `what` says in the error what was waited for; without it the condition's name stands there.
    """
    deadline = time.monotonic() + deadline_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise _still_not(condition, deadline_seconds, what, value)
        time.sleep(POLL_SECONDS)


async def eventually(condition: Callable[[], T], what: str = "", deadline_seconds: float = 60.0) -> T:
    """As `wait_until`, while the other tasks of the event loop go on."""
    deadline = time.monotonic() + deadline_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise _still_not(condition, deadline_seconds, what, value)
        await asyncio.sleep(TURN_SECONDS)


def _still_not(condition: Callable[[], T], seconds: float, what: str, value: T) -> AssertionError:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return AssertionError(f"after {seconds:g} s still not: {name} (last value {value!r})")
