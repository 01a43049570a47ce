"""The live dialler: it carries out what the policy says, and nothing that is reserved is lost."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from callmesh.marketing.v1 import outbound_pb2
from chassis.client import Dialer
from chassis.errors import FailedPrecondition, Unavailable
from chassis.testing import FakeClock
from chassis.testing.waiting import eventually
from routing.planning import dialler_main
from routing.planning.ahead import RUNG_AGAIN_MS, TELLINGS_MAX
from routing.planning.blending import BlendingRules, Contacts, ForecastBlending, ThresholdBlending
from routing.planning.calling_hours import CallingHours
from routing.planning.dialler import (
    BLIND_SECONDS,
    ELSEWHERE_MS,
    EMPTY_SECONDS,
    HELD_SECONDS,
    IDLE_SECONDS,
    LEASE_SECONDS,
    LEFT_BEHIND_SECONDS,
    PUT_OFF_MS,
    Dialler,
    _Held,
    attributes_of,
)
from routing.planning.dialler_config import OWN, DiallerSettings, environment_of
from routing.planning.dialler_main import GrpcLists, Outlooks, Peers, call_id_of, hours_of, list_now
from routing.planning.dialler_ports import (
    AgentNow,
    Call,
    FloorNow,
    LineResult,
    Lines,
    ListNow,
    NoLines,
    Person,
    Reserved,
    Results,
)
from routing.planning.erlang import Demand
from routing.planning.left_behind import LOOKED_AT_MAX
from routing.planning.nowcast import Nowcast
from routing.planning.pacing import LINES_PER_AGENT_MAX, Mode, Pacing

#: Eleven in the morning in Shanghai.
START = dt.datetime(2026, 11, 23, 3, tzinfo=dt.UTC)


@dataclass
class FakeFloor:
    clock: FakeClock
    agents: dict[str, bool]
    waiting: int = 0
    offered: int = 0
    away: bool = False
    skills: dict[str, frozenset[str]] = field(default_factory=dict)
    #: Agents of the directory who are not logged in.
    absent: dict[str, frozenset[str]] = field(default_factory=dict)
    calls: dict[str, frozenset[str]] = field(default_factory=dict)
    rung: frozenset[str] = frozenset()
    #: Whether agents were asked for, each time.
    looks: list[bool] = field(default_factory=list)

    async def look(self, *, agents: bool = True) -> FloorNow:
        self.looks.append(agents)
        if self.away:
            raise Unavailable(why="gone", retry_seconds=1.0)
        there = [
            AgentNow(agent=a, free=free, calls=self.calls.get(a, frozenset()), rung=a in self.rung)
            for a, free in self.agents.items()
            if agents
        ]
        return FloorNow(now_ms=self.clock.now_ms(), agents=there, waiting=self.waiting, offered=self.offered)

    async def blended(self) -> dict[str, frozenset[str]]:
        return {agent: self.skills.get(agent, frozenset()) for agent in self.agents} | self.absent


@dataclass
class FakeLists:
    waiting: list[Person]
    returned: list[str] = field(default_factory=list)
    open: bool = True
    asked: int = 0
    mode: Mode = Mode.PREVIEW
    before: Results = field(default_factory=Results)
    recorded: list[tuple[str, LineResult]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    #: Lists besides l that run, contacts that may not be called any more, and renewals that were asked for.
    others: tuple[str, ...] = ()
    refused: set[str] = field(default_factory=set)
    renewed: list[tuple[str, bool, bool]] = field(default_factory=list)
    #: Happens while marketing is asked.
    meanwhile: Callable[[], None] = lambda: None
    lease_ms: int = 0
    away: bool = False
    left: list[Reserved] = field(default_factory=list)
    taken_back: list[tuple[str, str]] = field(default_factory=list)
    #: Contacts that nobody is to have before a time.
    put_off: dict[str, int] = field(default_factory=dict)

    async def running(self) -> Sequence[ListNow]:
        more = [ListNow(name=f"contactLists/{name}") for name in self.others]
        return (*((ListNow(name="contactLists/l", mode=self.mode),) if self.open else ()), *more)

    async def renew(self, contacts: Sequence[str], *, calling: bool, talk: bool = True) -> dict[str, int]:
        if self.away:
            raise Unavailable(why="gone", retry_seconds=1.0)
        self.renewed += [(each, calling, talk) for each in contacts]
        self.meanwhile()
        return {each: self.lease_ms for each in contacts if each not in self.refused}

    async def reserved(self, name: str) -> Sequence[Reserved]:
        return [each for each in self.left if each.person.contact_list == name]

    async def record(self, person: Person, result: LineResult, note: str = "") -> None:
        if self.away:
            raise Unavailable(why="gone", retry_seconds=1.0)
        self.notes |= {person.contact: note} if note else {}
        self.recorded.append((person.contact, result))

    async def results(self, name: str) -> Results:
        return self.before

    async def next(self, count: int, skills: frozenset[str]) -> Sequence[Person]:
        self.asked += 1
        taken = [each for each in self.waiting if each.skills <= skills][:count]
        self.waiting = [each for each in self.waiting if each not in taken]
        return taken

    async def give_back(self, contacts: Sequence[str], holder: str = "", not_before_ms: int = 0) -> None:
        self.put_off |= dict.fromkeys(contacts, not_before_ms) if not_before_ms else {}
        if self.away:
            raise Unavailable(why="gone", retry_seconds=1.0)
        if holder:
            self.taken_back += [(each, holder) for each in contacts]
            self.left = [each for each in self.left if each.person.contact not in contacts]
        else:
            self.returned += contacts


class FakeCall:
    def __init__(self, call_id: str) -> None:
        self.call_id = call_id
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.withdrawn = 0
        self.address = "sip:somebody"

    async def wait_answered(self) -> bool:
        return await asyncio.shield(self.answered)

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
    over: list[str] = field(default_factory=list)
    #: Agents whose desktops accept by themselves who is on a line already; None for all.
    quick: frozenset[str] | None = None
    #: Contacts whose offers have ended, and nobody had accepted.
    unaccepted: set[str] = field(default_factory=set)

    async def unanswered(self, person: Person) -> bool:
        return person.contact in self.unaccepted

    async def begin(self, person: Person, agent: str, line: str = "") -> FakeCall:
        self.begun.append((agent, person.contact))
        call = self.made[agent] = FakeCall(f"call-{len(self.begun)}")
        if line and (self.quick is None or agent in self.quick):
            call.answered.set_result(True)
        return call

    async def end(self, call: Call) -> None:
        self.over.append(call.call_id)
        next(each for each in self.made.values() if each is call).ended.set()


class FakeLine:
    def __init__(self, line_id: str, person: Person) -> None:
        self.line_id, self.person = line_id, person
        self.result: asyncio.Future[LineResult] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.bridged: tuple[str, str] | None = None
        self.dropped: str = ""

    async def wait_result(self) -> LineResult:
        return await asyncio.shield(self.result)

    def bridge(self, call: Call, agent: str) -> None:
        self.bridged = (call.call_id, agent)

    def drop(self, *, abandoned: bool = False) -> None:
        self.dropped = "abandoned" if abandoned else "dropped"
        if not self.result.done():
            self.result.set_result(LineResult.NO_ANSWER)

    async def wait_ended(self) -> None:
        await self.gone.wait()


@dataclass
class FakeLines:
    count: int
    made: list[FakeLine] = field(default_factory=list)
    dialled: int = 0
    #: The gateway has gone, which `room` does not say yet.
    left: bool = False

    def capacity(self) -> int:
        return self.count

    def ringing(self) -> list[FakeLine]:
        return [line for line in self.made if not line.result.done()]

    def room(self) -> int:
        return self.count - len(self.ringing())

    def dial(self, person: Person) -> FakeLine:
        if self.left:
            raise Unavailable(why="no gateway has a line", retry_seconds=1.0)
        self.dialled += 1
        self.made.append(FakeLine(f"line-{self.dialled}", person))
        return self.made[-1]


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

    def __init__(
        self,
        contacts: list[Person],
        agents: int = 6,
        lines: Lines | None = None,
        wait_seconds: float = 2.0,
    ) -> None:
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
            lines=lines or NoLines(),
            answered_wait_seconds=wait_seconds,
        )

    async def step(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        await self.dialler.step()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(12):
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


async def test_who_got_an_inbound_call_first_is_not_asked_about_the_contact_after_it() -> None:
    place = Place(people(20))
    await place.step()
    assert {agent for agent, _ in place.calls.begun} == {"a0", "a1", "a2", "a3"}
    place.floor.agents.update(a0=False, a1=False, a2=False)
    # One speaks to a caller, one has accepted, one has the offer beside a chat.
    place.floor.calls = {"a0": frozenset({"inbound"}), "a1": frozenset({"call-2"}), "a2": frozenset({"chat"})}
    place.floor.rung = frozenset({"a2"})
    await place.step()
    assert not any(call.withdrawn for call in place.calls.made.values()), "what is seen may be a little old"
    await place.step(ELSEWHERE_MS / 1000)
    assert [agent for agent, call in place.calls.made.items() if call.withdrawn] == ["a0"]
    assert place.lists.returned == ["contactLists/l/contacts/0"]


async def test_many_are_taken_back_at_once() -> None:
    """The first one's withdrawal may wait for an answer: nobody else waits for it."""
    place = Place(people(20))
    await place.step()
    first = place.calls.made["a0"]
    answer = asyncio.Event()

    async def slow() -> None:
        first.withdrawn += 1
        await answer.wait()
        first.answered.set_result(False)

    first.withdraw = slow  # type: ignore[method-assign]
    place.lists.open = False
    looking = asyncio.create_task(place.dialler.step())
    await place.settle()
    assert all(call.withdrawn for call in place.calls.made.values()) and not looking.done()
    answer.set()
    async with asyncio.timeout(30):
        await looking


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


async def test_a_list_that_is_paused_while_another_runs_is_taken_back_alone() -> None:
    mine = people(3)
    other = [
        replace(each, contact=f"contactLists/m/contacts/{n}", number=f"+861390013800{n}")
        for n, each in enumerate(people(2))
    ]
    place = Place([*mine, *other], agents=8)
    place.lists.others = ("m",)
    await place.step()
    assert len(place.calls.begun) == 5
    place.lists.open = False
    await place.step()
    withdrawn = {contact for agent, contact in place.calls.begun if place.calls.made[agent].withdrawn}
    assert withdrawn == {each.contact for each in mine} == set(place.lists.returned)
    # The same for lines: those of the paused list are dropped, the others ring on.
    place = Place([*mine, *other], agents=8, lines=FakeLines(9))
    place.lists.mode, place.lists.others = Mode.PREDICTIVE, ("m",)
    await place.step()
    rings = lines_of(place).ringing()
    assert {line.person.contact_list for line in rings} == {"contactLists/l"}
    place.lists.open = False
    await place.step()
    assert all(line.dropped for line in rings)


async def test_before_anybody_is_dialled_the_reservation_is_asked_for_once_more() -> None:
    place = Place(people(6))
    place.lists.refused = {"contactLists/l/contacts/0", "contactLists/l/contacts/2"}
    await place.step()
    begun = [contact for _, contact in place.calls.begun]
    assert begun == [f"contactLists/l/contacts/{n}" for n in (1, 3, 4, 5)]
    assert {(calling, talk) for _, calling, talk in place.lists.renewed} == {(True, True)}
    assert set(place.lists.returned) == place.lists.refused
    # Marketing is away: nobody is dialled, and nobody is lost.
    place = Place(people(6))
    place.lists.away = True
    await place.step()
    assert place.calls.begun == [] and place.lists.returned == []
    place.lists.away = False
    await place.step()
    assert len(place.calls.begun) == 4


async def test_who_is_spoken_to_stays_reserved() -> None:
    place = Place(people(6))
    place.lists.lease_ms = place.clock.now_ms() + LEASE_SECONDS * 1000
    await place.step()
    talked = place.calls.begun[0][1]
    place.calls.made["a0"].answered.set_result(True)
    await place.settle()
    place.lists.renewed.clear()
    await place.step()
    assert place.lists.renewed == []
    await place.step(LEASE_SECONDS / 2 + 1)
    assert (talked, False, True) in place.lists.renewed
    # Somebody on a line is reserved for the ringing alone, and for the conversation once there is one.
    place = ahead()
    await place.step()
    assert {(calling, talk) for _, calling, talk in place.lists.renewed} == {(True, False)}
    line = lines_of(place).ringing()[0]
    line.result.set_result(LineResult.ANSWERED)
    await place.settle()
    await place.step()
    assert (line.person.contact, False, True) in place.lists.renewed


async def test_with_nothing_to_call_it_is_idle() -> None:
    woken: list[bool] = []
    place = Place([])
    place.dialler.woken = lambda: woken.append(True)
    place.lists.open = False
    for _ in range(3):
        await place.step(IDLE_SECONDS)
        assert place.dialler.sees()
    # Totals alone, no directory and no forecast.
    assert place.floor.looks == [False] * 3 and not woken and place.lists.asked == 0
    place.clock.advance(BLIND_SECONDS + IDLE_SECONDS + 1)
    assert not place.dialler.sees()
    place.lists.open = True
    await place.step()
    assert place.floor.looks[-1] and woken


async def test_what_a_killed_dialler_left_on_offer_goes_back_and_what_was_accepted_does_not() -> None:
    ended, talking = (replace(each, lease_ms=7) for each in people(2))
    place = Place([])
    place.lists.left = [Reserved(person=one, holder="dialler-north-1") for one in (ended, talking)]
    place.calls.unaccepted = {ended.contact}
    await place.step()
    assert place.lists.taken_back == []
    await place.step(LEFT_BEHIND_SECONDS)
    assert place.lists.taken_back == [(ended.contact, "dialler-north-1")]
    # One that lives has given it back and has it again: another reservation, which is looked at anew.
    place.lists.left = [Reserved(person=replace(ended, lease_ms=9), holder="dialler-north-1")]
    await place.step(LEFT_BEHIND_SECONDS)
    assert len(place.lists.taken_back) == 1
    first, second = call_id_of(ended), call_id_of(replace(ended, lease_ms=9))
    assert first == call_id_of(ended) != second


async def test_what_is_left_behind_is_looked_at_in_bounds() -> None:
    """Of thousands of lists no more are asked for than are looked at."""
    place = Place([])
    place.lists.others = tuple(f"m{n}" for n in range(9))
    asked: list[str] = []

    async def reserved(name: str) -> Sequence[Reserved]:
        asked.append(name)
        return [Reserved(person=each, holder="dialler-north-1") for each in people(LOOKED_AT_MAX)]

    place.lists.reserved = reserved  # type: ignore[method-assign]
    await place.step()
    assert asked == ["contactLists/l"]


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


async def test_who_may_not_be_called_keeps_nobody_else_from_being_called() -> None:
    """Were they handed out again at once, they would be the first every time; so they are put off."""
    early = people(12, zone="America/New_York")
    later = [replace(each, contact=f"contactLists/l/contacts/l{n}") for n, each in enumerate(people(12))]
    place = Place([*early, *later])
    await place.step()
    await place.step()
    begun = [contact for _, contact in place.calls.begun]
    assert len(begun) == 4 and set(begun) <= {each.contact for each in later}
    again_ms = place.lists.put_off[early[0].contact]
    assert place.clock.now_ms() < again_ms <= place.clock.now_ms() + PUT_OFF_MS
    assert set(place.lists.put_off) == {each.contact for each in early}


@pytest.mark.parametrize(
    ("number", "zone", "why"),
    [
        ("+8610", "", "fits no numbering plan"),
        ("+12", "", "fits no numbering plan"),
        ("+35812345678", "", "fits no numbering plan"),
        # Valid, and of no place: a free call number of all countries, and one of a continent.
        ("+80012345678", "", "tells no place"),
        ("+18005551234", "", "tells no place"),
        ("+8610", "Mars/Olympus", "fits no numbering plan"),
    ],
)
async def test_a_number_that_may_never_be_called_ends_with_a_result_and_a_reason(
    number: str, zone: str, why: str
) -> None:
    """Put off, it would come again for ever."""
    place = Place(people(1, zone=zone, number=number))
    place.lists.away = True
    await place.step()
    place.lists.away = False
    await place.step()
    contact = "contactLists/l/contacts/0"
    assert place.lists.recorded == [(contact, LineResult.WRONG_NUMBER)]
    assert why in place.lists.notes[contact]
    assert place.lists.returned == [] and place.lists.put_off == {}
    assert place.calls.begun == []


async def test_who_says_where_they_are_is_called_whatever_the_number_tells() -> None:
    place = Place(people(1, number="+80012345678"))
    await place.step()
    assert len(place.calls.begun) == 1
    # A zone that is not known here says no more than none: the number's counts.
    place = Place(people(1, zone="Mars/Olympus"))
    await place.step()
    assert len(place.calls.begun) == 1
    assert place.lists.recorded == []


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


async def test_one_number_is_called_once_at_a_time_whichever_lists_it_is_on() -> None:
    """Two agents would ring the same person."""
    twice = [replace(each, contact=f"contactLists/l/contacts/{n}") for n, each in enumerate(people(1) * 2)]
    place = Place(list(twice))
    await place.step()
    assert [contact for _, contact in place.calls.begun] == [twice[0].contact]
    assert place.lists.put_off.keys() == {twice[1].contact}
    # Over, the other list has its turn.
    place.calls.made["a0"].answered.set_result(True)
    place.calls.made["a0"].ended.set()
    await place.settle()
    place.lists.waiting = twice[1:]
    await place.step(EMPTY_SECONDS)
    assert place.calls.begun[-1][1] == twice[1].contact
    # The same of lines, from their ringing to the end of the conversation.
    place = ahead(contacts=0)
    place.lists.waiting = list(twice)
    await place.step()
    (line,) = lines_of(place).made
    line.result.set_result(LineResult.ANSWERED)
    await place.settle()
    place.lists.waiting = twice[1:]
    await place.step(EMPTY_SECONDS)
    assert line.bridged and lines_of(place).made == [line]
    line.gone.set()
    await place.settle()
    place.lists.waiting = twice[1:]
    await place.step(EMPTY_SECONDS)
    assert [each.person for each in lines_of(place).made] == twice


async def test_an_offer_on_which_the_hours_close_is_taken_back() -> None:
    """Accepting it is dialling, and it may lie on the screen for two minutes."""
    place = Place(people(1), agents=3)
    place.clock.advance(10 * 3_600 - 2)  # two seconds to nine in the evening
    await place.step()
    call = place.calls.made["a0"]
    assert not call.withdrawn
    await place.step()
    assert call.withdrawn and place.lists.returned == [people(1)[0].contact]


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


def test_the_context_says_what_the_desktop_needs_and_options_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = people(1)[0]
    context = attributes_of(person, "dialler-x")
    assert context["contact"] == person.contact
    assert context["dial"] == person.number
    there = attributes_of(person, "dialler-x", "line-1")
    assert there["line"] == "line-1" and "dial" not in there
    needed = ["--region", "r", "--inbound", "i", "--outbound", "o"]
    for option, value, named in (
        ("--share", "0.95", "share"),
        ("--calls-a-day", "0", "calls_a_day"),
        ("--answer-ratio", "0", "answer_ratio"),
        ("--until-hour", "5", "until_hour"),
        ("--region", "", "region"),
    ):
        for name, text in environment_of([*needed, option, value]).items():
            monkeypatch.setenv(name, text)
        with pytest.raises(ValidationError, match=named):
            DiallerSettings()
        monkeypatch.undo()
    monkeypatch.setenv("DIALLER_SHARE", "0.5")
    for name, text in environment_of(["--region", "north", "--from-hour", "9"]).items():
        monkeypatch.setenv(name, text)
    settings = DiallerSettings()
    assert (settings.region, settings.from_hour, settings.share) == ("north", 9, 0.5)
    assert hours_of(settings).legal[6] == ((540, 1_260),)
    assert set(OWN) <= set(DiallerSettings.model_fields)


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
    outlooks.wanted.clear = lambda: None  # type: ignore[method-assign]
    outlooks.wanted.set()
    running = asyncio.create_task(outlooks.run(lambda: 7))
    try:
        await eventually(lambda: len(asked) >= 2)
        # The second time it was made: now it is good for half an hour.
        done, _ = await asyncio.wait({running}, timeout=0.05)
        assert not done and asked == [7, 7]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await dialer.close()


async def test_what_it_asks_of_marketing() -> None:
    """Lists that run, as their campaign does; reservations in marketing's time; other diallers' contacts."""
    asked: list[Any] = []
    held = outbound_pb2.Contact(
        name="contactLists/l/contacts/c", number="+8613800138000", attempt=2, holder="dialler-north-1",
        lease_expire_time=Timestamp(seconds=7),
    )  # fmt: skip

    class Stub:
        async def ReturnContacts(self, request: Any, **_: Any) -> Any:
            asked.append(request)
            return outbound_pb2.ReturnContactsResponse()

        async def ListContactLists(self, request: Any, **_: Any) -> Any:
            assert request.state == outbound_pb2.CONTACT_LIST_STATE_RUNNING, "those that are over add up"
            common: dict[str, Any] = {
                "state": outbound_pb2.CONTACT_LIST_STATE_RUNNING,
                "queue": "queues/callout",
            }
            kinds: list[dict[str, Any]] = [
                {"name": "runs"}, {"name": "held", "campaign_holds": True},
                {"name": "other", "queue": "queues/x"},
                {"name": "paused", "state": outbound_pb2.CONTACT_LIST_STATE_PAUSED},
            ]  # fmt: skip
            lists = [outbound_pb2.ContactList(**(common | kind)) for kind in kinds]
            return outbound_pb2.ListContactListsResponse(contact_lists=lists)

        async def NextContacts(self, request: Any, **_: Any) -> Any:
            asked.append(request)
            return outbound_pb2.NextContactsResponse(contacts=[held])

        async def RenewContacts(self, request: Any, **_: Any) -> Any:
            asked.append(request)
            return outbound_pb2.RenewContactsResponse(contacts=[held])

        async def ListContacts(self, request: Any, **_: Any) -> Any:
            mine = outbound_pb2.Contact(holder="dialler-north-2")
            elsewhere = outbound_pb2.Contact(holder="dialler-northern-1")
            return outbound_pb2.ListContactsResponse(contacts=[held, mine, elsewhere])

    class Place(Peers):
        @property
        def lists(self) -> Any:
            return Stub()

    lists = GrpcLists(Place(Dialer(), "127.0.0.1:1", "127.0.0.1:1"), "callout", "dialler-north-2", 10.0, 3)
    assert [each.name for each in await lists.running()] == ["runs"]
    (person,) = await lists.next(3, frozenset())
    assert (person.lease_ms, person.attempt, asked[-1].lease_seconds) == (7_000, 2, 900)
    assert await lists.renew([person.contact], calling=True) == {person.contact: 7_000}
    assert asked[-1].calls_in_day_max == 3
    assert (asked[-1].lease_seconds, asked[-1].calling) == (LEASE_SECONDS, True)
    await lists.renew([person.contact], calling=True, talk=False)
    assert asked[-1].lease_seconds == 900
    assert await lists.reserved("contactLists/l") == [Reserved(person=person, holder="dialler-north-1")]
    # Of a large region more than marketing takes at a time.
    many = [f"contactLists/l/contacts/{n}" for n in range(2_001)]
    asked.clear()
    await lists.next(2_001, frozenset())
    await lists.renew(many, calling=False)
    await lists.give_back(many, not_before_ms=5_000)
    assert asked[-1].not_before_time == Timestamp(seconds=5)
    assert asked[0].max_contacts == 1_000
    assert [len(each.contacts) for each in asked[1:]] == 2 * [1_000, 1_000, 1]


async def test_a_renewed_certificate_counts_from_the_next_call_on() -> None:
    channels = [object()]

    class Renewed(Dialer):
        def channel(self, target: str) -> Any:
            return channels[-1]

    peers = Peers(Renewed(), "127.0.0.1:1", "127.0.0.1:1")
    made: list[Any] = []

    def make(channel: Any) -> str:
        made.append(channel)
        return f"stub-{len(made)}"

    assert [peers._stub(make, "a"), peers._stub(make, "a")] == ["stub-1", "stub-1"]
    channels.append(object())
    assert peers._stub(make, "a") == "stub-2" and made == channels


async def test_what_is_refused_for_good_is_not_asked_for_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refresh(self: Outlooks, now_ms: int) -> None:
        raise FailedPrecondition(subject="asked", why="HISTORY_TOO_SHORT")

    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(Outlooks, "refresh", refresh)
    monkeypatch.setattr(dialler_main.asyncio, "sleep", sleep)
    dialer = Dialer()
    outlooks = Outlooks(Peers(dialer, "127.0.0.1:1", "127.0.0.1:1"), "north", "service")
    outlooks.wanted.set()
    with pytest.raises(asyncio.CancelledError):
        await outlooks.run(lambda: 7)
    assert waits == [dialler_main.FORECAST_SECONDS]
    await dialer.close()


async def test_contacts_go_to_those_who_can_speak_to_them() -> None:
    able = Person(
        contact="contactLists/l/contacts/x", number="+8613800138000", attempt=1, zone="Asia/Shanghai"
    )
    place = Place([replace(able, skills=frozenset({"tibetan"}))])
    place.floor.skills = {"a3": frozenset({"tibetan", "chinese"})}
    await place.step()
    assert [agent for agent, _ in place.calls.begun] == ["a3"]


async def test_contacts_for_whom_nobody_is_there_keep_nobody_else_from_being_called() -> None:
    """Reserved are those to whom somebody who is free just now can speak."""
    rare = [replace(each, skills=frozenset({"tibetan"})) for each in people(12)]
    plain = [replace(each, contact=f"contactLists/l/contacts/p{n}") for n, each in enumerate(people(12))]
    place = Place([*rare, *plain])
    place.floor.skills = {"a5": frozenset({"tibetan"})}
    place.floor.agents["a5"] = False
    await place.step()
    assert len(place.calls.begun) == 3
    assert {contact for _, contact in place.calls.begun} <= {each.contact for each in plain}
    # Those that were reserved while the agent was there do not fill the store either.
    place.dialler._held = [_Held(each, place.clock.monotonic()) for each in rare]
    for call in place.calls.made.values():
        call.answered.set_result(True)
        call.ended.set()
    await place.settle()
    await place.step()
    assert len(place.calls.begun) == 6


async def test_an_agent_who_is_not_there_speaks_to_nobody() -> None:
    """The only one with both skills has gone home: those who need both go back, also those in hand."""
    both = [replace(each, skills=frozenset({"tibetan", "english"})) for each in people(9)]
    plain = [replace(each, contact=f"contactLists/l/contacts/p{n}") for n, each in enumerate(people(3))]
    place = Place([*both, *plain])
    place.floor.skills = {"a0": frozenset({"tibetan"}), "a1": frozenset({"english"}), "a2": frozenset()}
    place.floor.absent = {"gone": frozenset({"tibetan", "english"})}
    held = replace(
        people(1)[0], contact="contactLists/l/contacts/held", skills=frozenset({"tibetan", "english"})
    )
    place.dialler._held = [_Held(held, place.clock.monotonic())]
    for _ in range(4):
        place.clock.advance(EMPTY_SECONDS)
        await place.step()
    assert {contact for _, contact in place.calls.begun} == {each.contact for each in plain}
    assert place.lists.put_off.keys() == {each.contact for each in [*both, held]}


async def test_who_needs_skills_that_nobody_has_all_of_does_not_come_back_at_once() -> None:
    """Marketing is asked by all the skills that there are; those of two agents are nobody's."""
    both = [replace(each, skills=frozenset({"tibetan", "english"})) for each in people(9)]
    plain = [replace(each, contact=f"contactLists/l/contacts/p{n}") for n, each in enumerate(people(3))]
    place = Place([*both, *plain])
    place.floor.skills = {"a0": frozenset({"tibetan"}), "a1": frozenset({"english"}), "a2": frozenset()}
    for _ in range(4):
        place.clock.advance(EMPTY_SECONDS)
        await place.step()
    assert {contact for _, contact in place.calls.begun} == {each.contact for each in plain}
    assert place.lists.put_off.keys() == {each.contact for each in both}


async def test_an_offer_that_came_to_nothing_is_no_call_of_the_number() -> None:
    place = Place(people(1), agents=3)
    place.dialler.calls_a_day_max = 1
    for _ in range(3):
        await place.step()
        place.floor.waiting = 1
        place.floor.agents.update(a1=False, a2=False)
        await place.step()
        place.floor.waiting = 0
        place.floor.agents.update(a1=True, a2=True)
        place.lists.waiting = people(1)
    assert len(place.calls.begun) == 3
    assert all(call.withdrawn for call in place.calls.made.values())
    # Once somebody has accepted it is one.
    await place.step()
    place.calls.made["a0"].answered.set_result(True)
    place.calls.made["a0"].ended.set()
    await place.settle()
    place.lists.waiting = people(1)
    place.clock.advance(EMPTY_SECONDS)
    await place.step()
    assert len(place.calls.begun) == 4


async def test_a_talk_does_not_hold_up_the_end() -> None:
    place = Place(people(3), agents=3)
    await place.step()
    place.calls.made["a0"].answered.set_result(True)
    await place.settle()
    ended = asyncio.Event()
    ended.set()
    async with asyncio.timeout(10):
        await place.dialler.run(ended)
    # Its contact is still reserved for the result that the desktop will tell.
    assert place.calls.begun[0][1] not in place.lists.returned
    assert not place.calls.made["a0"].withdrawn


# --- dialling ahead


def ahead(
    agents: int = 6,
    contacts: int = 60,
    lines: int = 100,
    before: Results | None = None,
    wait_seconds: float = 2.0,
) -> Place:
    """A place whose list is dialled predictively."""
    place = Place(
        [replace(each, number=f"+861380013{n:04d}") for n, each in enumerate(people(contacts))],
        agents,
        FakeLines(lines),
        wait_seconds,
    )
    place.lists.mode = Mode.PREDICTIVE
    place.lists.before = before or Results()
    return place


def lines_of(place: Place) -> FakeLines:
    assert isinstance(place.dialler.lines, FakeLines)
    return place.dialler.lines


async def test_lines_ring_for_agents_who_stay_free_until_somebody_answers() -> None:
    place = ahead()
    await place.step()
    # Nothing is known yet of this list: a line for each of the four agents given to outbound, and no offer.
    lines = lines_of(place).ringing()
    assert len(lines) == 4 and place.calls.begun == []
    lines[0].result.set_result(LineResult.BUSY)
    lines[1].result.set_result(LineResult.MACHINE)
    lines[2].result.set_result(LineResult.ANSWERED)
    await place.settle()
    assert place.calls.begun == [("a0", lines[2].person.contact)]
    assert lines[2].bridged == ("call-1", "a0")
    results = {(lines[0].person.contact, LineResult.BUSY), (lines[1].person.contact, LineResult.MACHINE)}
    assert set(place.lists.recorded) == results
    # The person hangs up: routing is told, and the agent is done.
    lines[2].gone.set()
    await place.settle()
    assert place.calls.over == ["call-1"]
    # Of another conversation the agent's desktop says the end: the line is dropped.
    place.floor.agents["a0"] = False
    lines[3].result.set_result(LineResult.ANSWERED)
    await place.settle()
    assert lines[3].bridged == ("call-2", "a1")
    place.calls.made["a1"].ended.set()
    await place.settle()
    assert lines[3].dropped == "dropped" and place.calls.over == ["call-1"]


async def test_with_answers_known_lines_ring_ahead_under_the_cap_and_over_it_they_do_not() -> None:
    place = ahead(before=Results(attempts=3_000, answered=900, abandoned=9))
    await place.step()
    assert 4 < len(lines_of(place).ringing()) <= 4 * LINES_PER_AGENT_MAX
    place = ahead(before=Results(attempts=3_000, answered=900, abandoned=27))
    await place.step()
    assert len(lines_of(place).ringing()) == 4
    # No more than the gateways hold.
    place = ahead(lines=3)
    await place.step()
    assert len(lines_of(place).ringing()) == 3


async def test_who_finds_nobody_is_told_so_and_counted() -> None:
    place = ahead(agents=3, wait_seconds=0.05)
    place.calls.quick = frozenset()
    await place.step()
    (line,) = lines_of(place).ringing()
    line.result.set_result(LineResult.ANSWERED)
    await eventually(lambda: place.lists.recorded and place.calls.made["a0"].withdrawn)
    assert line.dropped == "abandoned" and line.bridged is None
    assert place.lists.recorded == [(line.person.contact, LineResult.ABANDONED)]
    pace = place.dialler.pace("contactLists/l")
    assert pace is not None and pace.abandon_ratio(place.clock.now_ms()) == 1.0


async def test_the_next_agent_is_tried_when_one_does_not_accept() -> None:
    place = ahead(wait_seconds=0.2)
    place.calls.quick = frozenset({"a1"})
    await place.step()
    line = lines_of(place).ringing()[0]
    line.result.set_result(LineResult.ANSWERED)
    await eventually(lambda: line.bridged is not None and place.calls.made["a0"].withdrawn)
    assert line.bridged == ("call-2", "a1")
    assert not place.lists.recorded


async def test_who_hangs_up_before_an_agent_is_there_calls_nobody_to_an_empty_line() -> None:
    place = ahead(agents=3, wait_seconds=30.0)
    place.calls.quick = frozenset()
    await place.step()
    (line,) = lines_of(place).ringing()
    line.result.set_result(LineResult.ANSWERED)
    await place.settle()
    line.gone.set()
    await place.settle()
    assert place.calls.made["a0"].withdrawn and line.bridged is None
    assert place.lists.recorded == [(line.person.contact, LineResult.ABANDONED)]


async def test_a_result_is_told_when_marketing_is_back_and_nobody_is_reserved_before() -> None:
    """Unknown, the contact would be free again soon, and called a second time."""
    place = ahead(agents=3, contacts=60)
    await place.step()
    (line,) = lines_of(place).ringing()
    place.lists.away = True
    line.result.set_result(LineResult.WRONG_NUMBER)
    await place.settle()
    asked = place.lists.asked
    await place.step()
    assert not place.lists.recorded and place.lists.asked == asked
    place.lists.away = False
    await place.step()
    assert place.lists.recorded == [(line.person.contact, LineResult.WRONG_NUMBER)]
    # What marketing refuses to hear for good, or goes on failing at, holds nobody up for ever.
    for error in (FailedPrecondition(), Unavailable(why="gone", retry_seconds=1.0)):
        place = ahead(agents=3)

        async def record(person: Person, result: LineResult, error: Exception = error) -> None:
            raise error

        place.lists.record = record  # type: ignore[method-assign]
        await place.step()
        (line,) = lines_of(place).ringing()
        line.result.set_result(LineResult.BUSY)
        await place.settle()
        for _ in range(TELLINGS_MAX):
            await place.step()
        assert not place.dialler._ahead.owes


async def test_what_could_not_be_given_back_is_when_marketing_is_back() -> None:
    place = Place(people(4), agents=3)
    await place.step()
    ((agent, contact),) = place.calls.begun
    place.lists.away = True
    place.calls.made[agent].answered.set_result(False)
    await place.settle()
    assert place.lists.returned == []
    place.floor.waiting, place.lists.away = 1, False
    await place.step()
    assert place.lists.returned == [contact]
    # With its lease over it may have been reserved anew meanwhile: then it stays with who has it.
    place = Place(people(1), agents=3)
    await place.step()
    place.lists.away = True
    place.calls.made["a0"].answered.set_result(False)
    await place.settle()
    place.lists.waiting, place.lists.away = people(1), False
    place.dialler._held = [_Held(people(1)[0], 0.0)]
    await place.dialler._make_up()
    assert place.lists.returned == []


@pytest.mark.parametrize("loss", ["the agents", "the gateway"])
async def test_what_goes_while_a_contact_is_asked_for_takes_nobody_along(loss: str) -> None:
    place = ahead(lines=2)

    def lost() -> None:
        if loss == "the agents":
            # As when each is connected to somebody who has answered just now.
            for agent in list(place.dialler._ahead._pool):
                place.dialler._ahead.leave(agent)
        else:
            lines_of(place).left = True

    place.lists.meanwhile = lost
    await place.step()
    assert not lines_of(place).made and len(place.lists.renewed) == 1
    assert place.lists.renewed[0][0] in place.lists.returned


@pytest.mark.parametrize("cause", ["inbound", "waiting", "paused", "blind", "end"])
async def test_lines_are_dropped_when_their_agents_are_gone(cause: str) -> None:
    place = ahead()
    await place.step()
    lines = lines_of(place).ringing()
    if cause == "inbound":
        place.floor.agents.update(a0=False, a1=False)
    elif cause == "waiting":
        place.floor.agents.update(a4=False, a5=False)
        place.floor.waiting = 2
    elif cause == "paused":
        place.lists.open = False
    elif cause == "blind":
        place.floor.away = True
    if cause == "end":
        ended = asyncio.Event()
        ended.set()
        async with asyncio.timeout(10):
            await place.dialler.run(ended)
    else:
        await place.step(BLIND_SECONDS + 1 if cause == "blind" else 1)
    dropped = [line for line in lines if line.dropped]
    # The newest first; whoever was about to be called goes back to the list.
    assert dropped == (lines[2:] if cause in ("inbound", "waiting") else lines)
    await place.settle()
    assert {line.person.contact for line in dropped} <= set(place.lists.returned)
    assert not place.lists.recorded
    # They have heard it ring, and the next look would ring them again.
    again_ms = {place.lists.put_off.get(line.person.contact, 0) for line in dropped}
    assert min(again_ms) >= START.timestamp() * 1000 + RUNG_AGAIN_MS


async def test_a_line_of_which_nothing_is_known_is_not_rung_again_at_once() -> None:
    place = ahead()
    await place.step()
    line = lines_of(place).ringing()[0]
    line.result.set_result(LineResult.LOST)
    await place.settle()
    assert place.lists.put_off[line.person.contact] >= place.clock.now_ms() + RUNG_AGAIN_MS


@pytest.mark.parametrize("there", [True, False])
async def test_who_has_answered_as_the_dialler_ends_is_not_forgotten(there: bool) -> None:
    place = ahead(agents=3, wait_seconds=0.05)
    place.calls.quick = frozenset()
    await place.step()
    (line,) = lines_of(place).ringing()
    line.result.set_result(LineResult.ANSWERED)
    await place.settle()
    ended = asyncio.Event()
    ended.set()
    ending = asyncio.create_task(place.dialler.run(ended))
    if there:
        while not place.dialler.stopped:
            await asyncio.sleep(0)
        place.calls.made["a0"].answered.set_result(True)
    async with asyncio.timeout(30):
        await ending
    if there:
        # The conversation outlasts the process, and the reservation for the ringing.
        assert line.bridged == ("call-1", "a0") and not line.dropped and not place.lists.recorded
        assert (line.person.contact, False, True) in place.lists.renewed
    else:
        assert line.dropped == "abandoned" and not line.bridged
        assert place.lists.recorded == [(line.person.contact, LineResult.ABANDONED)]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("when", ["accepts too late", "has spoken"])
async def test_an_agent_is_not_left_on_an_empty_line_while_the_leader_changes(
    monkeypatch: pytest.MonkeyPatch, when: str, ends: bool
) -> None:
    monkeypatch.setattr("routing.planning.ahead.ENDING_AGAIN_SECONDS", 0.0)
    place = ahead(agents=3, wait_seconds=0.05)
    place.calls.quick = frozenset({"a0"} if when == "has spoken" else ())
    await place.step()
    (line,) = lines_of(place).ringing()
    asked: list[str] = []
    plainly = place.calls.end

    async def end(call: Call) -> None:
        asked.append("end")
        if asked.count("end") < 3:
            raise Unavailable(why="no leader", retry_seconds=1.0)
        await plainly(call)

    monkeypatch.setattr(place.calls, "end", end)
    line.result.set_result(LineResult.ANSWERED)
    await place.settle()
    call = place.calls.made["a0"]

    async def withdraw() -> None:
        asked.append("withdraw")
        if asked.count("withdraw") < 3:
            raise Unavailable(why="no leader", retry_seconds=1.0)
        if not call.answered.done():
            call.answered.set_result(True)

    monkeypatch.setattr(call, "withdraw", withdraw)
    if when == "has spoken":
        line.gone.set()
    async with asyncio.timeout(30):
        while not asked:
            await asyncio.sleep(0)
        if ends:
            # Not even where the dialler ends meanwhile.
            await place.dialler._ahead.close()
            assert call.ended.is_set()
        await call.ended.wait()
    assert place.calls.over == [call.call_id] and asked.count("end") == 3


async def test_a_list_that_cannot_be_paced_keeps_no_other_from_being_called() -> None:
    place = ahead(agents=4)
    odd = ListNow(name="contactLists/odd", mode=Mode.PREDICTIVE, abandon_window_ms=1)

    async def running() -> Sequence[ListNow]:
        return odd, ListNow(name="contactLists/l", mode=Mode.PREDICTIVE)

    place.lists.running = running  # type: ignore[method-assign]
    await place.step()
    assert place.dialler.sees() and len(lines_of(place).ringing()) == 2
    # What marketing takes is none: its lists count abandons over up to 400 days, or over seconds.
    for days, seconds in ((400, 0), (0, 1), (1, 0)):
        window = Duration(seconds=days * 86_400 + seconds)
        told = list_now(outbound_pb2.ContactList(name="contactLists/l", abandon_window=window))
        Pacing(Mode.PREDICTIVE, window_ms=told.abandon_window_ms)


async def test_an_answer_that_met_the_drop_counts_as_abandoned() -> None:
    place = ahead()
    await place.step()
    line = lines_of(place).ringing()[0]
    line.drop = lambda *, abandoned=False: None  # type: ignore[method-assign]
    place.lists.open = False
    await place.step()
    line.result.set_result(LineResult.ANSWERED)
    await place.settle()
    assert place.lists.recorded == [(line.person.contact, LineResult.ABANDONED)]
    assert place.calls.begun == []


@pytest.mark.parametrize("mode", [Mode.PREDICTIVE, Mode.PROGRESSIVE])
async def test_without_a_gateway_such_a_list_is_offered_to_agents(mode: Mode) -> None:
    place = ahead(lines=0)
    place.lists.mode = mode
    await place.step()
    assert [agent for agent, _ in place.calls.begun] == ["a0", "a1", "a2", "a3"]


async def test_a_progressive_list_rings_one_line_an_agent_however_much_is_known() -> None:
    place = ahead(before=Results(attempts=3_000, answered=900, abandoned=9))
    place.lists.mode = Mode.PROGRESSIVE
    await place.step()
    assert len(lines_of(place).ringing()) == 4 and place.calls.begun == []
    # Its pacing is changed while it runs: in force with the next look.
    place.lists.mode = Mode.PREDICTIVE
    await place.step()
    assert len(lines_of(place).ringing()) > 4


async def test_lines_ring_for_those_who_can_speak_to_them_beside_others() -> None:
    """Of two in the pool one has the skill: the line is theirs, and an agent without it stops nobody's."""
    place = ahead(agents=4, contacts=0)
    wanted = replace(people(1)[0], contact="contactLists/l/contacts/x", skills=frozenset({"tibetan"}))
    plain = replace(people(2)[1], contact="contactLists/l/contacts/y")
    place.floor.skills = {"a0": frozenset({"tibetan"}), "a1": frozenset()}
    place.lists.waiting = [wanted, plain]
    await place.step()
    rings = {line.person.contact: line for line in lines_of(place).ringing()}
    assert set(rings) == {wanted.contact, plain.contact}
    # Who can speak to either is kept for whom nobody else can.
    rings[plain.contact].result.set_result(LineResult.ANSWERED)
    await place.settle()
    assert rings[plain.contact].bridged == ("call-1", "a1")
    rings[wanted.contact].result.set_result(LineResult.ANSWERED)
    await place.settle()
    assert rings[wanted.contact].bridged == ("call-2", "a0")


async def test_a_line_that_nobody_left_can_speak_to_is_dropped() -> None:
    place = ahead(agents=4, contacts=0)
    place.floor.skills = {"a0": frozenset({"tibetan"})}
    wanted = replace(people(1)[0], skills=frozenset({"tibetan"}))
    place.lists.waiting = [wanted, *people(4)[1:]]
    await place.step()
    (line,) = [each for each in lines_of(place).ringing() if each.person == wanted]
    place.floor.agents["a0"] = False
    await place.step()
    assert line.dropped == "dropped" and wanted.contact in place.lists.returned
    assert lines_of(place).ringing()


async def test_agents_with_nothing_to_wait_for_call_for_another_list() -> None:
    place = ahead(agents=4, contacts=2)
    place.lists.others = ("m",)
    await place.step()
    assert len(lines_of(place).ringing()) == 2
    for line in lines_of(place).ringing():
        line.result.set_result(LineResult.NO_ANSWER)
    await place.settle()
    # The list that is dialled has nobody any more: its agents are offered the other one's contacts.
    place.lists.waiting = [
        replace(each, contact=f"contactLists/m/contacts/{n}") for n, each in enumerate(people(2))
    ]
    await place.step()
    assert len(place.calls.begun) == 2


async def test_a_day_of_lines_keeps_the_cap_and_saves_waiting() -> None:
    """Looks of a second, rings of up to twenty, talks of a minute, 30 % answer: live, the cap holds, and more
    than one line an agent rings once answers are known.
    """
    rng = random.Random(5)
    place = ahead(agents=10, contacts=4_000)
    talks: list[tuple[int, FakeLine, str]] = []
    rings: dict[str, tuple[int, LineResult]] = {}
    most = 0.0
    for second in range(2_500):
        for line in lines_of(place).ringing():
            due, result = rings.setdefault(line.line_id, drawn(rng, second))
            if second >= due:
                line.result.set_result(result)
        await place.settle()
        for line in [each for each in lines_of(place).made if each.bridged and each.line_id in rings]:
            assert line.bridged is not None
            talks.append((second + 60, line, line.bridged[1]))
            place.floor.agents[line.bridged[1]] = False
            del rings[line.line_id]
        for talk in [each for each in talks if each[0] <= second]:
            talks.remove(talk)
            talk[1].gone.set()
            place.floor.agents[talk[2]] = True
        lines_of(place).made = [
            each for each in lines_of(place).made if not each.gone.is_set() and not each.dropped
        ]
        await place.step()
        waiting = place.dialler.waiting_ahead
        if waiting:
            most = max(most, len(lines_of(place).ringing()) / waiting)
    abandoned = sum(result is LineResult.ABANDONED for _, result in place.lists.recorded)
    answered = len(place.calls.begun) + abandoned
    assert answered > 150 and most > 1.5
    assert abandoned / answered <= 0.03


def drawn(rng: random.Random, second: int) -> tuple[int, LineResult]:
    """When a line that rings from now on ends, and how."""
    if rng.random() < 0.3:
        return second + rng.randint(2, 18), LineResult.ANSWERED
    return second + 20, LineResult.NO_ANSWER
