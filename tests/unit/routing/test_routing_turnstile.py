"""The turnstile: nobody without a leader, so many at once, the most urgent first, and no turn is lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from routing.turnstile import NoTurn, Turnstile, Urgency


class Gate:
    """A shard that has a leader or not, and who passed."""

    def __init__(self, at_once: int) -> None:
        self.open = True
        self.turnstile = Turnstile(lambda: self.open, at_once)
        self.inside: set[str] = set()
        self.passed: list[str] = []
        self.worst = 0

    async def pass_(self, name: str, urgency: Urgency, seconds: float | None, stay: asyncio.Event) -> bool:
        try:
            async with self.turnstile.passage(urgency, seconds):
                self.passed.append(name)
                self.inside.add(name)
                self.worst = max(self.worst, len(self.inside))
                try:
                    await stay.wait()
                finally:
                    self.inside.discard(name)
                return True
        except NoTurn:
            return False

    def turn(self, open_: bool) -> None:
        self.open = open_
        self.turnstile.look()


async def test_the_most_urgent_goes_first_and_nobody_without_a_leader() -> None:
    gate, stay = Gate(1), asyncio.Event()
    stay.set()
    gate.turn(False)
    order = [Urgency.TALKING, Urgency.NEW_CALL, Urgency.AGENT, Urgency.CALLER, Urgency.AGENT]
    asked = [asyncio.ensure_future(gate.pass_(f"{n}", u, 5.0, stay)) for n, u in enumerate(order)]
    await asyncio.sleep(0)
    assert not gate.passed and gate.turnstile.waiting == len(order)
    gate.turn(True)
    assert all(await asyncio.gather(*asked))
    assert gate.passed == ["2", "4", "3", "1", "0"] and gate.worst == 1


async def test_who_attaches_again_does_not_wait_for_the_next_leader() -> None:
    gate, stay = Gate(1), asyncio.Event()
    first = asyncio.ensure_future(gate.pass_("first", Urgency.AGENT, None, stay))
    await asyncio.sleep(0)
    again = asyncio.ensure_future(gate.pass_("again", Urgency.AGENT, None, stay))
    patient = asyncio.ensure_future(gate.pass_("patient", Urgency.AGENT, 5.0, stay))
    await asyncio.sleep(0)
    gate.turn(False)
    assert not await again and not await gate.pass_("late", Urgency.AGENT, None, stay)
    stay.set()
    gate.turn(True)
    assert await first and await patient


async def test_a_wait_has_an_end() -> None:
    gate = Gate(1)
    gate.turn(False)
    assert not await gate.pass_("one", Urgency.AGENT, 0.01, asyncio.Event())
    assert gate.turnstile.waiting == 0


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_whatever_befalls_those_who_wait(seed: int) -> None:
    """Whoever is cancelled, late or cut off in whichever moment: in the end all turns are free again."""
    rng, gate = random.Random(seed), Gate(3)
    tasks: list[asyncio.Task[bool]] = []
    for n in range(200):
        stay = asyncio.Event()
        seconds = rng.choice([None, 5.0, 0.0])
        tasks.append(asyncio.create_task(gate.pass_(f"{n}", rng.choice(list(Urgency)), seconds, stay)))
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        if rng.random() < 0.7:
            stay.set()
        if rng.random() < 0.4:
            rng.choice(tasks).cancel()
        if rng.random() < 0.1:
            gate.turn(not gate.open)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gate.turn(True)
    assert gate.worst <= 3 and gate.turnstile.waiting == 0 and not gate.inside
    free = asyncio.Event()
    free.set()
    assert all([await gate.pass_(f"last {n}", Urgency.AGENT, None, free) for n in range(10)])
    assert gate.turnstile._free == 3


async def test_who_has_given_up_takes_nobody_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind somebody more urgent they do not come up, and are neither counted nor kept for ever."""
    monkeypatch.setattr("routing.turnstile.WAITING_MAX", 2)
    monkeypatch.setattr("routing.turnstile.OUTDATED_MAX", 3)
    gate, stay = Gate(1), asyncio.Event()
    stay.set()
    gate.turn(False)
    agent = asyncio.ensure_future(gate.pass_("agent", Urgency.AGENT, 5.0, stay))
    await asyncio.sleep(0)
    for n in range(20):
        assert not await gate.pass_(f"{n}", Urgency.NEW_CALL, 0.0, stay)
        assert len(gate.turnstile._waiting) <= 2 * 2 + 3
    last = asyncio.ensure_future(gate.pass_("last", Urgency.NEW_CALL, 5.0, stay))
    await asyncio.sleep(0)
    assert gate.turnstile.waiting == 2, "there is room for one more"
    assert not await gate.pass_("too many", Urgency.AGENT, 5.0, stay)
    gate.turn(True)
    assert await agent and await last and gate.passed == ["agent", "last"]
