"""Outbound calls between inbound ones, live: what `blending.py` decides, carried out.

A dialler is a client of routing and marketing like any other, in a process of its own (`dialler_main.py`),
one for a region. Every `LOOK_SECONDS`, and when one of its contacts has ended, it looks at the floor, asks
the policy and does what it says:

1. BEGIN: a contact of the lists is placed as a call of the outbound queue that waits for this one agent. The
   agent sees it as an offer: that is the preview. Accepting it connects, then the seat dials the number. With
   a contact of a predictive list, and a gateway that has lines, the agent waits for somebody to answer
   instead: see `ahead.py`.
2. RECALL: the offer is withdrawn, the agent is free at once and the contact goes back to its list. So
   agents are back within a look. Who has accepted is talking, as far as can be seen from here, and is left
   alone.
3. Contacts are reserved a few at a time, never more than could be begun at once, and each is looked at
   again: who may not be called where they are just now goes back. What is not begun within `HELD_SECONDS`
   goes back too.
4. Kill switch: when none of the lists runs (PauseContactList), outbound is stopped as a whole (`callmesh
   outbound stop`), or `stop` was called, everything unanswered is withdrawn and nothing begun. So it is when
   the floor cannot be seen for `BLIND_SECONDS`: who sees nothing begins nothing.
5. What came of a conversation the desktop reports (RecordResult); the call's context names contact, attempt
   and holder for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from chassis import metrics
from chassis.clock import Clock
from chassis.errors import CallmeshError
from routing.planning.ahead import Ahead
from routing.planning.blended_day import Outlook
from routing.planning.blending import Act, Blending, Look, Order, Phase, Seat
from routing.planning.calling_hours import CallingHours, zones_of
from routing.planning.dialler_ports import (
    AgentNow,
    Call,
    Calls,
    Floor,
    FloorNow,
    Lines,
    ListNow,
    Lists,
    NoLines,
    Person,
)
from routing.planning.pacing import ANSWERED_WAIT_MS_MAX, Pacing

log = structlog.get_logger(__name__)

#: Between two looks, real seconds: at most, and at least where a contact has ended meanwhile.
LOOK_SECONDS, LOOK_AGAIN_SECONDS = 1.0, 0.2
#: Contacts in hand that nobody has begun: beyond those who are free.
SPARE = 2
#: A contact is held so long without being begun, real seconds.
HELD_SECONDS = 60.0
#: Its lease outlasts the offer and the conversation: it may not be called again while somebody speaks to it.
#: What the dialler does not begin it gives back by itself; only one that is killed leaves contacts to this.
LEASE_SECONDS = 3_600
#: Without a look at the floor for so long everything unanswered is withdrawn, real seconds.
BLIND_SECONDS = 5.0
#: Lists that had nobody are asked again after this, and the directory for the blended agents, real seconds.
EMPTY_SECONDS, BLENDED_SECONDS = 15.0, 30.0
#: At the end: how long calls may take to say what became of them, real seconds.
END_SECONDS = 5.0
#: Numbers that are remembered, and for how long: who was called often enough goes back.
NUMBERS_MAX, DAY_MS = 100_000, 86_400_000
#: Arrivals of one look that are told apart.
ARRIVALS_MAX = 10_000

_offers = metrics.counter(
    "callmesh_dialler_offers_total", "Contacts offered to agents, by what came of them.", ("outcome",)
)


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
    #: Lines of gateways, for lists that are dialled predictively.
    lines: Lines = field(default_factory=NoLines)
    #: What a contact of such a list is expected to be like.
    answer_ratio: float = 0.3
    talk_seconds: float = 70.0
    answered_wait_seconds: float = ANSWERED_WAIT_MS_MAX / 1000
    _ahead: Ahead = field(init=False)
    _called: dict[str, list[int]] = field(default_factory=dict)
    _held: list[_Held] = field(default_factory=list)
    _begun: dict[str, _Begun] = field(default_factory=dict)
    #: Who may make outbound calls, with their skills.
    _blended: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _blended_at: float = -1e9
    _running: Sequence[ListNow] = ()
    _looked_at: float = -1e9
    _offered: int | None = None
    _empty_until: float = -1e9
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    #: It is worth looking again.
    _due: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._ahead = Ahead(
            lines=self.lines,
            calls=self.calls,
            lists=self.lists,
            answer_ratio=self.answer_ratio,
            talk_seconds=self.talk_seconds,
            answered_wait_seconds=self.answered_wait_seconds,
            changed=self._due.set,
        )

    def sees(self) -> bool:
        """Whether the floor and the lists were seen lately."""
        return self.clock.monotonic() - self._looked_at <= BLIND_SECONDS

    @property
    def waiting_ahead(self) -> int:
        """Agents for whom lines ring."""
        return self._ahead.waiting

    def pace(self, contact_list: str) -> Pacing | None:
        """Of a list that is dialled predictively."""
        return self._ahead.pace(contact_list)

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended` is set; then everything unanswered is withdrawn and given back."""
        while not ended.is_set():
            self._due.clear()
            await self.step()
            if await _within(LOOK_AGAIN_SECONDS, ended):
                break
            waiting = [asyncio.ensure_future(event.wait()) for event in (ended, self._due)]
            await asyncio.wait(
                waiting, timeout=LOOK_SECONDS - LOOK_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for one in waiting:
                one.cancel()
        self.stopped = True
        await self._withdraw(list(self._begun))
        await self._give_back(self._held)
        self._held = []
        await self._ahead.close()
        # Who talks goes on without this process.
        tasks = list(self._tasks)
        if any(begun.phase is Phase.DIALLING for begun in self._begun.values()):
            await asyncio.wait(tasks, timeout=END_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self) -> None:
        """One look and what follows from it."""
        now = self.clock.monotonic()
        try:
            if now - self._blended_at > BLENDED_SECONDS:
                self._blended, self._blended_at = await self.floor.blended(), now
            seen = await self.floor.look()
            self._running = await self.lists.running()
            await self._ahead.follow(self._running, seen.now_ms)
        except CallmeshError as error:
            log.info("dialler_blind", error=error.reason)
            if now - self._looked_at > BLIND_SECONDS:
                self._ahead.stop()
                await self._withdraw(list(self._begun))
            return
        self._looked_at = now
        self._count(seen)
        self._ahead.settle(seen)
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
        wanted = max(free, self._ahead.wanted(seen.now_ms, free) - self._ahead.ringing)
        missing = wanted + SPARE - len(self._held)
        if self.stopped or not self._running or not free or seen.waiting or missing <= 0:
            return
        if now < self._empty_until:
            return
        try:
            found = await self.lists.next(missing, frozenset().union(*self._blended.values()))
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
        stopped = self.stopped or not self._running
        if stopped:
            self._ahead.stop()
            await self._give_back(self._held)
            self._held = []
        # The head of the list says how the next contacts are begun.
        ahead = self._ahead.waiting + self._ahead.ringing > 0 or (
            bool(self._held) and self._ahead.takes(self._held[0].person)
        )
        look = Look(
            now_ms=seen.now_ms,
            seats=[self._seat(each) for each in seen.agents],
            waiting=seen.waiting,
            demand=self.outlook.demand(seen.now_ms),
            contacts=bool(self._held),
            stopped=stopped,
            like=self._ahead.like if ahead else None,
            stint_min_ms=max((each.stint_min_ms for each in self._running), default=0),
        )
        orders = self.policy.look(look)
        recalled = [order.agent for order in orders if order.act is Act.RECALL]
        await self._withdraw([agent for agent in recalled if not self._ahead.leave(agent)])
        for order in orders:
            if order.act is Act.BEGIN and order.agent not in self._begun:
                await self._begin(order, seen.now_ms)
        if not stopped:
            await self._ahead.ring(seen.now_ms, lambda lines: self._next_line(lines, seen.now_ms))

    async def _begin(self, order: Order, now_ms: int) -> None:
        """An agent is given to outbound: with a contact, or to wait for one who answers."""
        if any(self._ahead.takes(held.person) for held in self._held[:1]):
            self._ahead.join(order.agent, now_ms)
            return
        skills = self._blended.get(order.agent, frozenset())
        person = await self._next_person(
            now_ms, lambda one: not self._ahead.takes(one) and one.skills <= skills
        )
        if person is None:
            return
        begun = self._begun[order.agent] = _Begun(person)
        task = asyncio.create_task(self._through(order.agent, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next_line(self, lines: int, now_ms: int) -> Person | None:
        """Who may be dialled beside so many lines: everybody in the pool must be able to speak to them."""
        pool = self._ahead.pool()
        common = frozenset.intersection(*(self._blended.get(agent, frozenset()) for agent in pool))
        return await self._next_person(
            now_ms, lambda one: one.skills <= common and self._ahead.allows(one, lines, now_ms)
        )

    async def _next_person(self, now_ms: int, fits: Callable[[Person], bool]) -> Person | None:
        """The next who fits and may be called; those met before who were called often enough go back."""
        late = []
        found = None
        for held in list(self._held):
            if not self._allowed(held.person, now_ms):
                late.append(held)
            elif fits(held.person):
                found = held
                break
        self._held = [each for each in self._held if each is not found and each not in late]
        await self._give_back(late)
        if found is None:
            return None
        self._remember(found.person.number, now_ms)
        return found.person

    def _remember(self, number: str, now_ms: int) -> None:
        recent = [ms for ms in self._called.pop(number, ()) if ms > now_ms - DAY_MS]
        self._called[number] = [*recent, now_ms]
        if len(self._called) > NUMBERS_MAX:
            # The one that was called longest ago: a number moves to the end with each call.
            del self._called[next(iter(self._called))]

    def _seat(self, seen: AgentNow) -> Seat:
        begun = self._begun.get(seen.agent)
        phase = Phase.FREE if seen.free else Phase.INBOUND
        phase = begun.phase if begun is not None else self._ahead.phase(seen.agent) or phase
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
            self._due.set()
        outcome = "accepted" if answered else "recalled" if begun.recalled else "not_accepted"
        _offers.labels(outcome).inc()
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


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether the event is set before so many seconds are over."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def attributes_of(person: Person, holder: str, line: str = "") -> Mapping[str, str]:
    """The context with which a desktop dials and reports the result. With a `line` the person is there
    already: the desktop accepts by itself, and dials nothing.
    """
    known = {
        "direction": "outbound",
        "contact": person.contact,
        "attempt": str(person.attempt),
        "holder": holder,
    }
    return known | ({"line": line} if line else {"dial": person.number})
