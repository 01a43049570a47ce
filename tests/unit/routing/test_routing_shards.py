"""How a router asks shards: patiently, and until it has got through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import pytest

from chassis.clock import SystemClock
from routing import shards as shards_module
from routing.committed import Committed, NotLeading, ShardBusy
from routing.errors import CallNotFound
from routing.model import Answer, AskCall, Command
from routing.shards import Shards, regions_of

ASKED = AskCall(call_id="c1")
SAID = Committed(answer=Answer(), shard="a", epoch=1, sequence=1, now_ms=0)


class Port:
    """A shard that answers with one thing after the other, the last one again and again."""

    def __init__(self, *answers: Any, up: bool = True) -> None:
        self._answers = list(answers)
        self.up = up
        self.asked = 0

    def ask(self, command: Command, seconds: float) -> Awaitable[Committed]:
        async def answer() -> Committed:
            self.asked += 1
            given = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            if isinstance(given, Exception):
                raise given
            return cast(Committed, given)

        return answer()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(shards_module, "RETRY_SECONDS_MAX", 0.002)


def asking(**ports: Port) -> Shards:
    return Shards(cast(Any, ports), SystemClock(), 1.0)


BUSY, AWAY = ShardBusy(shard="a", retry_seconds=1.0), NotLeading(shard="a", retry_seconds=1.0)


async def test_a_patient_question_is_asked_until_it_is_answered() -> None:
    port = Port(BUSY, AWAY, SAID)
    assert await asking(a=port).ask_patiently("a", ASKED, 5.0) is SAID and port.asked == 3


async def test_a_patient_question_waits_for_a_leader() -> None:
    port = Port(AWAY, SAID, up=False)
    shards = asking(a=port)
    asked = asyncio.ensure_future(shards.ask_patiently("a", ASKED, 5.0))
    while not shards.turnstiles["a"].waiting:
        await asyncio.sleep(0)
    port.up = True
    shards.turnstiles["a"].look()
    assert await asked is SAID and port.asked == 2


async def test_what_must_get_through_is_given_up_when_the_shard_is_away_or_there_is_nothing_to_say() -> None:
    port = Port(AWAY, up=False)
    assert await asking(a=port).get_through("a", lambda: ASKED, 0.01) is None
    busy = Port(*[BUSY] * 20, SAID)
    assert await asking(a=busy).get_through("a", lambda: ASKED, 0.01) is SAID, "however long that is"
    asked = busy.asked
    assert await asking(a=busy).get_through("a", lambda: None, 0.01) is None
    assert busy.asked == asked


async def test_nobody_knows_a_call_only_when_all_have_answered() -> None:
    with pytest.raises(CallNotFound):
        await asking(a=Port(SAID), b=Port(SAID)).newest("c1", ["a", "b"])
    with pytest.raises(NotLeading):
        await asking(a=Port(SAID), b=Port(AWAY)).newest("c1", ["a", "b"])


async def test_closing_ends_what_runs() -> None:
    shards = asking()
    task = shards.spawn(asyncio.Event().wait())
    await shards.close()
    assert task.cancelled()


def test_regions_are_named_once() -> None:
    assert regions_of("b", "", "a", "b", "c", besides="c") == ["b", "a"]
