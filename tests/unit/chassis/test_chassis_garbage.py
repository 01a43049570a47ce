"""When a serving process looks for garbage."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from chassis import garbage
from chassis.testing.waiting import eventually


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


async def test_what_lives_at_the_start_is_set_aside_and_growth_alone_brings_no_full_look() -> None:
    garbage.settle()
    assert gc.get_freeze_count() > 0
    full_before = gc.get_stats()[2]["collections"]
    kept = [[n] for n in range(20 * garbage.YOUNG_OBJECTS)]
    stats = gc.get_stats()
    assert stats[2]["collections"] == full_before and len(kept) == 20 * garbage.YOUNG_OBJECTS


async def test_old_rings_are_found_in_the_end() -> None:
    garbage.settle()
    ring = Ring()
    gone = weakref.ref(ring)
    gc.collect(1)
    del ring
    gc.collect(1)
    assert gone() is not None, "old by now: a look at the young does not find it"
    looking = asyncio.create_task(garbage.collect_at_times(0.0))
    await eventually(lambda: gone() is None)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
