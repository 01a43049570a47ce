"""What waits for a client's stream."""

from __future__ import annotations

import asyncio

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
