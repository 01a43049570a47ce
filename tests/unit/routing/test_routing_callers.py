"""What a caller's history is worth."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from routing.callers import (
    REPEAT_CALLS_COUNTED_MAX,
    STRANGER,
    KnownCaller,
    RecentCall,
    known_of,
    points,
    unsettled,
    usual_region,
)
from routing.profiles import PROFILES, ProfileReader

T = 1_000_000


def ended(call_id: str, ms: int) -> RecentCall:
    return RecentCall(call_id=call_id, ended_ms=T + ms)


def resolved(call_id: str, ms: int) -> RecentCall:
    return RecentCall(call_id=call_id, ended_ms=T + ms, resolved_ms=T + ms + 10)


@pytest.mark.parametrize(
    ("calls", "count"),
    [
        ((), 0),
        ((ended("a", 0),), 1),
        ((ended("b", 5), ended("a", 0)), 2),
        # Settled by then: what came before does not count either.
        ((resolved("b", 5), ended("a", 0)), 0),
        ((ended("c", 9), resolved("b", 5), ended("a", 0)), 1),
        # Too long ago.
        ((ended("b", 5), ended("a", -1)), 1),
        # The call itself, opened again.
        ((ended("this", 5), ended("a", 0)), 1),
        (tuple(ended(f"c{n}", 20 - n) for n in range(10)), REPEAT_CALLS_COUNTED_MAX),
        # Whoever handed the call on said so before it ended; the last one did not.
        ((RecentCall(call_id="a", ended_ms=T + 9, resolved_ms=T + 5),), 1),
        # Only the word has come so far, the end is on its way.
        ((RecentCall(call_id="a", resolved_ms=T + 5),), 0),
    ],
)
def test_calls_count_up_to_the_last_one_resolved(calls: tuple[RecentCall, ...], count: int) -> None:
    assert unsettled(KnownCaller(calls=calls), "this", T) == count


def test_points_say_where_they_come_from() -> None:
    known = KnownCaller(tier_points=2, calls=(ended("b", 5), ended("a", 0)))
    assert points(known, "this", T, 3) == (("REPEAT_CALLER", 6), ("TIER", 2))
    assert points(known, "this", T, 0) == (("TIER", 2),)
    assert points(KnownCaller(), "this", T, 3) == ()


def test_a_stored_profile_is_read_newest_first_whatever_its_order() -> None:
    rows = [{"id": "a", "ended_ms": 1, "resolved_ms": 7}, {"id": "b", "ended_ms": 9}, {"id": "c"}]
    known = known_of({"_id": "+861", "priority": 4, "calls": rows})
    assert known.tier_points == 4
    assert [(call.call_id, call.at_ms, call.resolved) for call in known.calls] == [
        ("b", 9, False),
        ("a", 7, True),
        ("c", 0, False),
    ]
    # As they were stored before calls were kept.
    assert known_of({"_id": "+861", "priority": 1}) == KnownCaller(tier_points=1)


@pytest.mark.parametrize(
    ("served", "usual"),
    [
        # Regions that answered, newest first; "-" is a call that nobody answered.
        ("", ""),
        ("bb", ""),
        ("bbb", "b"),
        ("b-b-b", "b"),
        ("sbbb", "b"),
        ("ssbbb", "b"),
        # It was the usual one, and no other is yet.
        ("ssggbbb", "b"),
        ("ggsbsbb", "b"),
        ("ggsbsb", ""),
        ("sgsbbbb", "b"),
        ("sssbbbb", "s"),
        ("sgsgsbbbbb", "s"),
    ],
)
def test_who_usually_serves_a_caller_changes_late(served: str, usual: str) -> None:
    calls = tuple(
        RecentCall(call_id=str(n), ended_ms=T - n, region="" if region == "-" else region)
        for n, region in enumerate(served)
    )
    assert usual_region(KnownCaller(calls=calls)) == usual


class Slow:
    """A collection that answers when told to, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[list[str]] = []
        self.answers = asyncio.Event()
        self._error = error

    def find(self, query: dict[str, Any], fields: object) -> Slow:
        self.asked.append(query["_id"]["$in"])
        return self

    async def to_list(self) -> list[dict[str, Any]]:
        if self._error is not None:
            raise self._error
        numbers = self.asked[-1]
        await self.answers.wait()
        return [{"_id": number, "priority": 4} for number in numbers]


async def test_a_call_does_not_wait_for_who_calls() -> None:
    slow, broken = Slow(), Slow(AutoReconnect("away"))
    for collection in (slow, broken):
        reader = ProfileReader({PROFILES: collection}, seconds=0.05)  # type: ignore[arg-type]
        assert await reader.caller("+861064000000") == STRANGER
    reader = ProfileReader({PROFILES: slow}, seconds=30.0)  # type: ignore[arg-type]
    numbers = [f"+86106400000{n}" for n in range(3)]
    known = asyncio.gather(*(reader.caller(number) for number in numbers))
    await asyncio.sleep(0)
    slow.answers.set()
    assert [each.tier_points for each in await known] == [4, 4, 4]
    assert sum(len(asked) for asked in slow.asked) == 4 and len(slow.asked) <= 3, "asked together"
