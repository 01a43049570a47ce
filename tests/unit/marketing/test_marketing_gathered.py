"""Questions in groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from marketing import gathered
from marketing.gathered import Gathered, TooBusy


class Work:
    """Doubles numbers; refuses 13 by itself and 99 with all that came along."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    async def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(numbers))
        await asyncio.sleep(0)
        if 99 in numbers:
            raise ConnectionError("away")
        return [ValueError("13") if number == 13 else 2 * number for number in numbers]


async def test_what_is_asked_at_once_is_answered_together_and_each_by_its_own() -> None:
    work = Work()
    ask = Gathered(work).ask
    found = await asyncio.gather(*(ask(number) for number in (1, 13, 3)), return_exceptions=True)
    assert (found[0], type(found[1]), found[2]) == (2, ValueError, 6) and work.groups == [[1, 13, 3]]
    broken = await asyncio.gather(ask(1), ask(99), return_exceptions=True)
    assert [type(each) for each in broken] == [ConnectionError] * 2
    assert await ask(4) == 8


async def test_groups_and_queues_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "GROUP_MAX", 2)
    monkeypatch.setattr(gathered, "WAITING_MAX", 5)
    work = Work()
    made = Gathered(work)
    found = await asyncio.gather(*(made.ask(number) for number in range(7)), return_exceptions=True)
    assert [type(each) for each in found[5:]] == [TooBusy] * 2 and found[:5] == [0, 2, 4, 6, 8]
    assert [len(group) for group in work.groups] == [2, 2, 1] and not made.pending


async def test_a_group_waits_for_a_share_of_the_crowd_but_not_for_ever() -> None:
    work, crowd = Work(), 6
    made = Gathered(work, pace_seconds=0.05, crowd=lambda: crowd)
    asked = [asyncio.create_task(made.ask(number)) for number in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not work.groups
    assert await made.ask(2) == 4  # the third of six
    await asyncio.gather(*asked)
    assert work.groups == [[0, 1, 2]]
    assert await made.ask(7) == 14  # nobody else comes


async def test_one_who_gives_up_stops_nobody() -> None:
    made = Gathered(Work(), pace_seconds=0.01)
    gone = asyncio.create_task(made.ask(1))
    others = [asyncio.create_task(made.ask(number)) for number in (2, 3)]
    await asyncio.sleep(0)
    gone.cancel()
    assert await asyncio.gather(*others) == [4, 6] and not made.pending


async def test_a_crowd_goes_in_halves_and_the_second_leaves_before_the_first_is_answered() -> None:
    left: list[int] = []
    answered: list[int] = []

    async def work(numbers: Sequence[int]) -> list[int]:
        left.append(len(numbers))
        await asyncio.sleep(0)
        return list(numbers)

    async def caller(number: int) -> None:
        await made.ask(number)
        answered.append(len(left))

    made = Gathered(work, pace_seconds=60.0, crowd=lambda: made.pending)
    await asyncio.gather(*(caller(number) for number in range(40)))
    assert left == [20, 20], "neither waits for a pace"
    assert set(answered) == {2}


async def test_a_crowd_is_remembered_for_a_while_and_then_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = 40
    made = Gathered(Work(), pace_seconds=0.02, crowd=lambda: crowd)
    loop = asyncio.get_running_loop()
    await made.ask(1)
    crowd, asked_at = 1, loop.time()
    await made.ask(2)
    assert loop.time() - asked_at >= 0.019, "alone, but there were others a moment ago"
    monkeypatch.setattr(gathered, "CROWD_SECONDS", 0.0)
    monkeypatch.setattr(made, "_span_ends", loop.time())
    monkeypatch.setattr(made, "_begun_at", float("-inf"))
    monkeypatch.setattr(made, "_pace_seconds", 3600.0)
    assert await asyncio.wait_for(made.ask(3), 30) == 6, "alone, and waits for nobody"


async def test_answers_leave_room_for_others_between_them() -> None:
    heard: list[int] = []
    made = Gathered(Work())

    async def caller(number: int) -> None:
        await made.ask(number)
        heard.append(number)

    size = 3 * gathered.TURN_ANSWERS
    numbers = range(100, 100 + size)
    asked = asyncio.gather(*map(caller, numbers))
    seen = {0}
    while not asked.done():
        await asyncio.sleep(0)
        seen.add(len(heard))
    assert sorted(seen) == list(range(0, size + 1, gathered.TURN_ANSWERS)) and heard == [*numbers]
