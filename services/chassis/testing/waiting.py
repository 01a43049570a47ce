"""Waiting for a condition with a deadline, in place of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

#: How often the condition is looked at, in seconds.
POLL_SECONDS = 0.02

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
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"after {deadline_seconds:g} s still not: {name} (last value {value!r})")
        time.sleep(POLL_SECONDS)
