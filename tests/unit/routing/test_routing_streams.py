"""What waits for a client's stream."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

from chassis.errors import Unavailable
from routing.streams import UPDATES_UNREAD_MAX, Mailbox


async def test_updates_are_read_in_order_whether_they_were_waited_for_or_not() -> None:
    mailbox = Mailbox()
    mailbox.push(1)
    mailbox.push(2)
    assert [await mailbox.get(), await mailbox.get()] == [1, 2]
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.push(3)
    mailbox.push(4)
    assert [await reader, await mailbox.get()] == [3, 4]


async def test_a_reader_waits_no_longer_than_told() -> None:
    mailbox, loop = Mailbox(), asyncio.get_running_loop()
    assert await mailbox.get(loop.time() + 0.001) is None
    assert await mailbox.get(loop.time() - 1.0) is None
    mailbox.push("here")
    assert await mailbox.get(loop.time() - 1.0) == "here", "what is there is never late"


async def test_a_reader_is_woken_once_by_a_loop_that_calls_its_timers_early() -> None:
    mailbox, loop = Mailbox(), asyncio.get_running_loop()
    # As uvloop does within the millisecond that its clock ticks in: up to so many seconds early.
    loop._clock_resolution = 0.5  # type: ignore[attr-defined]
    reader = asyncio.create_task(mailbox.get(loop.time() + 0.25))
    with patch.object(loop, "call_at", wraps=loop.call_at) as set_timer:
        while not reader.done():
            # A loop that has something to do looks at its timers each time.
            await asyncio.sleep(0)
    assert await reader is None and set_timer.call_count == 1


async def test_after_the_close_what_is_there_is_read_and_nothing_waited_for() -> None:
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.close()
    assert await reader is None
    mailbox.push("last")
    assert [await mailbox.get(), await mailbox.get()] == ["last", None]


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    mailbox = Mailbox()
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    reader.cancel()
    mailbox.push("kept")
    await asyncio.gather(reader, return_exceptions=True)
    assert await mailbox.get() == "kept"


async def test_a_stalled_reader_is_cut_off() -> None:
    mailbox = Mailbox()
    for n in range(UPDATES_UNREAD_MAX + 1):
        mailbox.push(n)
    assert isinstance(await mailbox.get(), Unavailable) and not mailbox.unread
