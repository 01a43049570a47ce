"""Outbound calls between inbound ones, live: what `blending.py` decides, carried out.

A dialler is a client of routing and marketing like any other, in a process of its own (`dialler_main.py`),
one for a region. Every `LOOK_SECONDS` it looks at the floor, asks the policy and does what it says:

1. BEGIN: a contact of the lists is placed as a call of the outbound queue that waits for this one agent. The
   agent sees it as an offer: that is the preview. Accepting it connects, then the seat dials the number.
2. RECALL: the offer is withdrawn, the agent is free at once and the contact goes back to its list. So
   agents are back within a look. Who has accepted is talking, as far as can be seen from here, and is left
   alone.
3. Contacts are reserved a few at a time, never more than could be begun at once, and each is looked at
   again: who may not be called where they are just now goes back. What is not begun within `HELD_SECONDS`
   goes back too.
4. Kill switch: when none of the lists runs (PauseContactList), or `stop` was called, everything unanswered
   is withdrawn and nothing begun. So it is when the floor cannot be seen for `BLIND_SECONDS`: who sees
   nothing begins nothing.
5. What came of a conversation the desktop reports (RecordResult); the call's context names contact, attempt
   and holder for it.

Lists that are to be dialled predictively are dialled one line an agent: dialling ahead takes a telephone
line that reports who answered, which no seat does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from chassis.clock import Clock
from chassis.errors import CallmeshError
from routing.planning.blended_day import Outlook
from routing.planning.blending import Act, Blending, Look, Phase, Seat
from routing.planning.calling_hours import CallingHours, zones_of

log = structlog.get_logger(__name__)

#: Between two looks, real seconds.
LOOK_SECONDS = 1.0
#: Contacts in hand that nobody has begun: beyond those who are free.
SPARE = 2
#: A contact is held so long without being begun, real seconds; its lease is longer.
HELD_SECONDS, LEASE_SECONDS = 60.0, 180
#: Without a look at the floor for so long everything unanswered is withdrawn, real seconds.
BLIND_SECONDS = 5.0
#: Lists that had nobody are asked again after this, real seconds.
EMPTY_SECONDS = 15.0
#: Numbers that are remembered, and for how long: who was called often enough goes back.
NUMBERS_MAX, DAY_MS = 100_000, 86_400_000
#: Arrivals of one look that are told apart.
ARRIVALS_MAX = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody to call, reserved for this dialler."""

    #: `contactLists/{contact_list}/contacts/{contact}`.
    contact: str
    #: E.164.
    number: str
    attempt: int
    #: IANA; empty for that of the number.
    zone: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentNow:
    """An agent who is logged in and not paused."""

    agent: str
    free: bool
    #: Calls held.
    calls: frozenset[str] = frozenset()
    since_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FloorNow:
    """A region at one moment."""

    now_ms: int
    agents: Sequence[AgentNow]
    #: Inbound callers who wait.
    waiting: int
    #: Inbound calls since a moment that does not change within a day.
    offered: int


class Floor(Protocol):
    """Routing, looked at. Methods raise CallmeshError."""

    async def look(self) -> FloorNow:
        """The region now."""

    async def blended(self) -> frozenset[str]:
        """Who may make outbound calls."""


class Lists(Protocol):
    """Marketing's call lists. Methods raise CallmeshError."""

    async def running(self) -> bool:
        """Whether any list may be called."""

    async def next(self, count: int) -> Sequence[Person]:
        """Reserves contacts, those to be called next first."""

    async def give_back(self, contacts: Sequence[str]) -> None:
        """Contacts that were not called."""


class Call(Protocol):
    """An outbound call on its way."""

    #: Routing's id.
    call_id: str

    async def wait_answered(self) -> bool:
        """True when the agent has accepted, False when the call ended before."""

    async def wait_ended(self) -> None:
        """When the conversation is over for routing."""

    async def withdraw(self) -> None:
        """Ends a call that nobody has accepted; one that has been stays."""


class Calls(Protocol):
    """Routing's calls. Raises CallmeshError."""

    async def begin(self, person: Person, agent: str) -> Call:
        """Places a call that waits for this agent."""


@dataclass(eq=False, slots=True)
class _Begun:
    """A contact in an agent's hands."""

    person: Person
    phase: Phase = Phase.DIALLING
    call: Call | None = None
    recalled: bool = False


@dataclass(slots=True)
class _Held:
    """A contact that nobody has begun."""

    person: Person
    since: float


@dataclass(kw_only=True, slots=True)
class Dialler:
    """One a region. Belongs to one event loop."""

    floor: Floor
    lists: Lists
    calls: Calls
    policy: Blending
    outlook: Outlook
    hours: CallingHours
    clock: Clock
    stopped: bool = False
    #: One number is called at most so often in 24 hours, whichever lists it is on.
    calls_a_day_max: int = 3
    _called: dict[str, list[int]] = field(default_factory=dict)
    _held: list[_Held] = field(default_factory=list)
    _begun: dict[str, _Begun] = field(default_factory=dict)
    _blended: frozenset[str] = frozenset()
    _blended_at: float = -1e9
    _running: bool = False
    _looked_at: float = -1e9
    _offered: int | None = None
    _empty_until: float = -1e9
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended` is set; then everything unanswered is withdrawn and given back."""
        while not ended.is_set():
            await self.step()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await ended.wait()
            except TimeoutError:
                continue
        self.stopped = True
        await self._withdraw(list(self._begun))
        await self._give_back(self._held)
        await asyncio.gather(*self._tasks)

    async def step(self) -> None:
        """One look and what follows from it."""
        now = self.clock.monotonic()
        try:
            seen = await self.floor.look()
            self._running = await self.lists.running()
            if now - self._blended_at > 30.0:
                self._blended, self._blended_at = await self.floor.blended(), now
        except CallmeshError as error:
            log.info("dialler_blind", error=error.reason)
            if now - self._looked_at > BLIND_SECONDS:
                await self._withdraw(list(self._begun))
            return
        self._looked_at = now
        self._count(seen)
        await self._tidy(seen.now_ms, now)
        await self._stock(seen, now)
        await self._decide(seen)

    def _count(self, seen: FloorNow) -> None:
        """A day's counter begins again at nothing."""
        if self._offered is not None:
            new = seen.offered - self._offered if seen.offered >= self._offered else seen.offered
            for _ in range(min(new, ARRIVALS_MAX)):
                self.outlook.arrived(seen.now_ms)
        self._offered = seen.offered

    async def _tidy(self, now_ms: int, now: float) -> None:
        """Held contacts that are too old, or may not be called any more, go back."""
        late = [h for h in self._held if now - h.since > HELD_SECONDS or not self._allowed(h.person, now_ms)]
        self._held = [h for h in self._held if h not in late]
        await self._give_back(late)

    def _allowed(self, person: Person, now_ms: int) -> bool:
        recent = [ms for ms in self._called.get(person.number, ()) if ms > now_ms - DAY_MS]
        if len(recent) >= self.calls_a_day_max:
            return False
        try:
            return self.hours.allows(now_ms, zones_of(person.number, person.zone))
        except CallmeshError:
            return False

    async def _stock(self, seen: FloorNow, now: float) -> None:
        free = sum(each.free and each.agent in self._blended for each in seen.agents)
        missing = min(free, len(self._blended)) + SPARE - len(self._held)
        if self.stopped or not self._running or not free or seen.waiting or missing <= 0:
            return
        if now < self._empty_until:
            return
        try:
            found = await self.lists.next(missing)
        except CallmeshError as error:
            log.info("dialler_without_contacts", error=error.reason)
            self._empty_until = now + EMPTY_SECONDS
            return
        allowed = [person for person in found if self._allowed(person, seen.now_ms)]
        self._held += [_Held(person, now) for person in allowed]
        if not allowed:
            self._empty_until = now + EMPTY_SECONDS
        await self._give_back([_Held(person, now) for person in found if person not in allowed])

    async def _decide(self, seen: FloorNow) -> None:
        look = Look(
            now_ms=seen.now_ms,
            seats=[self._seat(each) for each in seen.agents],
            waiting=seen.waiting,
            demand=self.outlook.demand(seen.now_ms),
            contacts=bool(self._held),
            stopped=self.stopped or not self._running,
        )
        orders = self.policy.look(look)
        await self._withdraw([order.agent for order in orders if order.act is Act.RECALL])
        for order in orders:
            if order.act is Act.BEGIN and order.agent not in self._begun:
                person = await self._next_person(seen.now_ms)
                if person is None:
                    break
                begun = self._begun[order.agent] = _Begun(person)
                task = asyncio.create_task(self._through(order.agent, begun))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _next_person(self, now_ms: int) -> Person | None:
        """The next who may be called; those before, called often enough meanwhile, go back."""
        late = []
        found = None
        while self._held and found is None:
            held = self._held.pop(0)
            if self._allowed(held.person, now_ms):
                found = held.person
            else:
                late.append(held)
        await self._give_back(late)
        if found is not None:
            self._remember(found.number, now_ms)
        return found

    def _remember(self, number: str, now_ms: int) -> None:
        recent = [ms for ms in self._called.pop(number, ()) if ms > now_ms - DAY_MS]
        self._called[number] = [*recent, now_ms]
        if len(self._called) > NUMBERS_MAX:
            # The one that was called longest ago: a number moves to the end with each call.
            del self._called[next(iter(self._called))]

    def _seat(self, seen: AgentNow) -> Seat:
        begun = self._begun.get(seen.agent)
        phase = Phase.FREE if seen.free else Phase.INBOUND
        if begun is not None:
            phase = begun.phase
        blended = seen.agent in self._blended
        return Seat(agent=seen.agent, phase=phase, since_ms=seen.since_ms, blended=blended)

    async def _through(self, agent: str, begun: _Begun) -> None:
        """One contact from its beginning to its end."""
        answered = False
        try:
            begun.call = await self.calls.begin(begun.person, agent)
            if begun.recalled:
                await begun.call.withdraw()
            answered = await begun.call.wait_answered()
            if answered:
                begun.phase = Phase.TALKING
                await begun.call.wait_ended()
        except CallmeshError as error:
            log.info("outbound_call_failed", agent=agent, error=error.reason)
        finally:
            if self._begun.get(agent) is begun:
                del self._begun[agent]
        if not answered:
            await self._give_back([_Held(begun.person, 0.0)])

    async def _withdraw(self, agents: Sequence[str]) -> None:
        for agent in agents:
            begun = self._begun.get(agent)
            if begun is None or begun.phase is not Phase.DIALLING:
                continue
            begun.recalled = True
            if begun.call is not None:
                try:
                    await begun.call.withdraw()
                except CallmeshError as error:
                    # The next look asks again.
                    log.info("recall_failed", agent=agent, error=error.reason)

    async def _give_back(self, held: Sequence[_Held]) -> None:
        if not held:
            return
        try:
            await self.lists.give_back([each.person.contact for each in held])
        except CallmeshError as error:
            # Their lease ends by itself.
            log.info("contacts_not_returned", count=len(held), error=error.reason)


def attributes_of(person: Person, holder: str) -> Mapping[str, str]:
    """The context with which a desktop dials and reports the result."""
    return {
        "direction": "outbound",
        "contact": person.contact,
        "attempt": str(person.attempt),
        "holder": holder,
        "dial": person.number,
    }
