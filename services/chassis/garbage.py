"""When a serving process looks for garbage.

Python frees an object when nothing refers to it any more; the collector is only for rings of objects that
refer to one another. It looks at young objects often, which takes a millisecond, and by its own rule at
everything whenever a quarter more lives than before. With some thousand open streams that is a million
objects and a third of a second in which nobody is answered, every few seconds while streams come and go.

So here: what the start has made is set aside for good; the young are looked at as always, a little less
often; everything is looked at every `FULL_SECONDS`, whatever has grown meanwhile. Rings that live for long
are few, and their memory can wait.
"""

from __future__ import annotations

import asyncio
import gc
import time

from chassis import logs

#: Objects made, less those freed, after which the youngest are looked at; and after how many such looks those
#: that survived one. Together at most 10,000 objects, one or two milliseconds. What a group of calls holds
#: while it is worked on together should be fewer than the first number, or every group is looked at in vain.
YOUNG_OBJECTS, YOUNG_LOOKS = 5_000, 1
#: Looks at survivors after which Python would look at everything by itself: in no process's life.
NEVER = 1_000_000_000
#: Everything is looked at this often, real seconds.
FULL_SECONDS = 600.0

_log = logs.get_logger(__name__)


def settle() -> None:
    """The start is over: what lives now stays, and is looked at no more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS, NEVER)


async def collect_at_times(seconds: float = FULL_SECONDS) -> None:
    """Looks at everything every so often, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        began = time.perf_counter()
        found = gc.collect()
        _log.info("garbage.collected", objects=found, seconds=round(time.perf_counter() - began, 3))
