"""The live dialler: it carries out what the policy says, and nothing that is reserved is lost."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from chassis.client import Dialer
from chassis.errors import InvalidArgument, Unavailable
from chassis.testing import FakeClock
from routing.planning import dialler_main
from routing.planning.blending import BlendingRules, Contacts, ForecastBlending, ThresholdBlending
from routing.planning.calling_hours import CallingHours
from routing.planning.dialler import (
    BLIND_SECONDS,
    EMPTY_SECONDS,
    HELD_SECONDS,
    AgentNow,
    Dialler,
    FloorNow,
    Person,
    attributes_of,
)
from routing.planning.dialler_main import Outlooks, Peers, arguments_of, serve
from routing.planning.erlang import Demand
from routing.planning.nowcast import Nowcast

#: Eleven in the morning in Shanghai.
START = dt.datetime(2026, 11, 23, 3, tzinfo=dt.UTC)


@dataclass
class FakeFloor:
    clock: FakeClock
    agents: dict[str, bool]
    waiting: int = 0
    offered: int = 0
    away: bool = False

    async def look(self) -> FloorNow:
        if self.away:
            raise Unavailable(why="gone", retry_seconds=1.0)
        agents = [AgentNow(agent=a, free=free) for a, free in self.agents.items()]
        return FloorNow(now_ms=self.clock.now_ms(), agents=agents, waiting=self.waiting, offered=self.offered)

    async def blended(self) -> frozenset[str]:
        return frozenset(self.agents)


@dataclass
class FakeLists:
    waiting: list[Person]
    returned: list[str] = field(default_factory=list)
    open: bool = True
    asked: int = 0

    async def running(self) -> bool:
        return self.open

    async def next(self, count: int) -> Sequence[Person]:
        self.asked += 1
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    async def give_back(self, contacts: Sequence[str]) -> None:
        self.returned += contacts


class FakeCall:
    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.withdrawn = 0

    async def wait_answered(self) -> bool:
        return await self.answered

    async def wait_ended(self) -> None:
        await self.ended.wait()

    async def withdraw(self) -> None:
        self.withdrawn += 1
        if not self.answered.done():
            self.answered.set_result(False)


@dataclass
class FakeCalls:
    made: dict[str, FakeCall] = field(default_factory=dict)
    begun: list[tuple[str, str]] = field(default_factory=list)

    async def begin(self, person: Person, agent: str) -> FakeCall:
        self.begun.append((agent, person.contact))
        self.made[agent] = FakeCall(f"call-{len(self.begun)}")
        return self.made[agent]


def people(count: int, zone: str = "Asia/Shanghai", number: str = "") -> list[Person]:
    return [
        Person(
            contact=f"contactLists/l/contacts/{n}",
            number=number or f"+86138001380{n:02d}",
            attempt=1,
            zone=zone,
        )
        for n in range(count)
    ]


class Place:
    """A dialler with all around it."""

    def __init__(self, contacts: list[Person], agents: int = 6) -> None:
        self.clock = FakeClock(START)
        self.floor = FakeFloor(self.clock, {f"a{n}": True for n in range(agents)})
        self.lists, self.calls = FakeLists(contacts), FakeCalls()
        self.outlook = Nowcast(Demand(rate=0.0, handle_seconds=150, patience_seconds=300), lambda _: 0.002)
        self.dialler = Dialler(
            floor=self.floor,
            lists=self.lists,
            calls=self.calls,
            policy=ThresholdBlending(reserve=2, share=0.8),
            outlook=self.outlook,
            hours=CallingHours(),
            clock=self.clock,
        )

    async def step(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        await self.dialler.step()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_who_is_free_gets_a_contact_and_is_back_when_somebody_waits() -> None:
    place = Place(people(20))
    await place.step()
    assert [agent for agent, _ in place.calls.begun] == ["a0", "a1", "a2", "a3"]
    place.calls.made["a0"].answered.set_result(True)
    await place.settle()
    place.floor.agents.update(a4=False, a5=False)
    place.floor.waiting = 2
    await place.step()
    # Who has accepted talks on, two others are taken back, and their contacts with them.
    withdrawn = {agent for agent, call in place.calls.made.items() if call.withdrawn}
    assert len(withdrawn) == 2
    assert "a0" not in withdrawn
    assert sorted(place.lists.returned) == sorted(c for a, c in place.calls.begun if a in withdrawn)


async def test_a_paused_list_or_a_blind_dialler_withdraws_what_is_unanswered() -> None:
    for cause in ("paused", "blind"):
        place = Place(people(20))
        await place.step()
        if cause == "paused":
            place.lists.open = False
            await place.step()
        else:
            place.floor.away = True
            await place.step(1.0)
            assert not any(call.withdrawn for call in place.calls.made.values())
            await place.step(BLIND_SECONDS)
        assert all(call.withdrawn for call in place.calls.made.values())
        begun = len(place.calls.begun)
        await place.step()
        assert len(place.calls.begun) == begun


async def test_nobody_is_called_out_of_hours_and_contacts_go_back() -> None:
    place = Place(people(3, zone="America/New_York"))
    await place.step()
    assert place.calls.begun == []
    assert len(place.lists.returned) == 3
    asked = place.lists.asked
    await place.step()
    assert place.lists.asked == asked
    await place.step(EMPTY_SECONDS)
    assert place.lists.asked == asked + 1


async def test_one_number_is_called_so_often_a_day_and_no_more() -> None:
    place = Place(people(9, number="+8613800138000"))
    place.dialler.calls_a_day_max = 2
    for _ in range(4):
        await place.step()
        for call in place.calls.made.values():
            if not call.answered.done():
                call.answered.set_result(True)
                call.ended.set()
        await place.settle()
    assert len(place.calls.begun) == 2
    assert len(place.lists.returned) + len(place.lists.waiting) == 7


async def test_contacts_that_nobody_begins_go_back_in_time() -> None:
    place = Place(people(20))
    await place.step()
    place.floor.waiting = 1
    await place.step(HELD_SECONDS + 1)
    begun = {contact for _, contact in place.calls.begun}
    handed_out = {person.contact for person in people(20)} - {p.contact for p in place.lists.waiting}
    assert handed_out - begun <= set(place.lists.returned)


async def test_arrivals_reach_the_forecast_and_a_new_day_is_no_fall() -> None:
    place = Place([])
    place.floor.offered = 10
    await place.step()
    before = place.outlook.rate(place.clock.now_ms())
    place.floor.offered = 40
    await place.step()
    place.floor.offered = 2
    await place.step()
    assert place.outlook.rate(place.clock.now_ms()) > before


async def test_at_the_end_everything_unanswered_goes_back() -> None:
    place = Place(people(20))
    await place.step()
    place.calls.made["a1"].answered.set_result(True)
    await place.settle()
    place.calls.made["a1"].ended.set()
    ended = asyncio.Event()
    ended.set()
    async with asyncio.timeout(10):
        await place.dialler.run(ended)
    talked = next(contact for agent, contact in place.calls.begun if agent == "a1")
    handed_out = {person.contact for person in people(20)} - {p.contact for p in place.lists.waiting}
    assert set(place.lists.returned) == handed_out - {talked}


async def test_the_same_policy_as_in_virtual_time() -> None:
    place = Place(people(20))
    place.dialler.policy = ForecastBlending(
        rules=BlendingRules(), contacts=Contacts(answer_ratio=0.3, dial_seconds=25, talk_seconds=70)
    )
    await place.step()
    assert place.calls.begun == []  # the account is empty yet
    await place.step(300)
    assert 1 <= len(place.calls.begun) <= 4


async def test_the_context_says_what_the_desktop_needs_and_options_are_checked() -> None:
    person = people(1)[0]
    context = attributes_of(person, "dialler-x")
    assert context["contact"] == person.contact
    assert context["dial"] == person.number
    needed = ["--region", "r", "--inbound", "i", "--outbound", "o"]
    needed += ["--routing", "127.0.0.1:1", "--marketing", "127.0.0.1:1"]
    for option, value, named in (
        ("--share", "0.95", "share"),
        ("--calls-a-day", "0", "calls_a_day"),
        ("--until-hour", "5", "legal"),
    ):
        with pytest.raises(InvalidArgument, match=named):
            await serve(arguments_of([*needed, option, value]))


async def test_a_forecast_that_was_not_made_is_asked_for_sooner_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    async def refresh(self: Outlooks, now_ms: int) -> None:
        asked.append(now_ms)
        if len(asked) == 1:
            raise Unavailable(why="RESOURCE_EXHAUSTED: one plan at a time", retry_seconds=1.0)

    monkeypatch.setattr(Outlooks, "refresh", refresh)
    monkeypatch.setattr(dialler_main, "FORECAST_AGAIN_SECONDS", 0.0)
    dialer = Dialer()
    outlooks = Outlooks(Peers(dialer, "127.0.0.1:1", "127.0.0.1:1"), "north", "service")
    running = asyncio.create_task(outlooks.run(lambda: 7))
    try:
        async with asyncio.timeout(10):
            while len(asked) < 2:
                await asyncio.sleep(0)
        # The second time it was made: now it is good for half an hour.
        done, _ = await asyncio.wait({running}, timeout=0.05)
        assert not done and asked == [7, 7]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await dialer.close()
