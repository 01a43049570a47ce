"""Outbound calls between inbound ones, live: what `blending.py` decides, carried out.

A dialler is a client of routing and marketing like any other, in a process of its own (`dialler_main.py`),
one for a region. Every `LOOK_SECONDS`, and when one of its contacts has ended, it looks at the floor, asks
the policy and does what it says:

1. BEGIN: a contact of the lists is placed as a call of the outbound queue that waits for this one agent. The
   agent sees it as an offer: that is the preview. Accepting it connects, then the seat dials the number. With
   a contact of a progressive or predictive list, and a gateway that has lines, the agent waits for somebody
   to answer instead: see `ahead.py`.
2. RECALL: the offer is withdrawn, the agent is free at once and the contact goes back to its list. So
   agents are back within a look. Who has accepted is talking, as far as can be seen from here, and is left
   alone.
3. Contacts are reserved a few at a time, never more than could be begun at once, and each is looked at
   again: who may not be called where they are just now goes back, for `PUT_OFF_MS`, and so does who needs
   skills that nobody who is there has all of: handed out again at once they would keep the others of their
   list from being called. Whose number fits no numbering plan, or tells no place whose hours would be known,
   ends as WRONG_NUMBER with the reason: put off, they would come again for ever. What is not begun within
   `HELD_SECONDS` goes back too.
4. Nobody is called twice at a time: of a number that is just being called, the contacts of other lists are
   put off like those who may not be called, and so is an offer on which the hours close.
5. A reservation is short until its contact is begun: what a killed dialler held is free again soon, without
   it. Just before a contact is begun marketing is asked to renew it, for a conversation; it does so only for
   who holds the contact, and only if it may still be called. So nobody is dialled twice, whatever diallers
   there are, and of a list or campaign that was paused a moment ago nobody is dialled any more. Who is spoken
   to is renewed on and on. Offers that a killed dialler left go back, too: see `left_behind.py`.
6. Kill switch: when a list does not run any more (PauseContactList, its campaign is paused), its contacts are
   withdrawn, whether other lists run or not. When none does, outbound is stopped as a whole (`callmesh
   outbound stop`), or `stop` was called, everything unanswered is withdrawn and nothing begun. So it is when
   the floor cannot be seen for `BLIND_SECONDS`: who sees nothing begins nothing.
7. With nothing to call and nothing in hand it is idle: it looks every `IDLE_SECONDS`, at totals alone, and
   asks for no forecast.
8. What came of a conversation the desktop reports (RecordResult); the call's context names contact, attempt
   and holder for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from chassis import metrics
from chassis.clock import Clock
from chassis.errors import CallmeshError, InvalidArgument, Unavailable
from routing.planning.ahead import Ahead
from routing.planning.blended_day import Outlook
from routing.planning.blending import Act, Blending, Look, Order, Phase, Seat
from routing.planning.calling_hours import CallingHours, never_why, zones_of
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
from routing.planning.left_behind import LeftBehind
from routing.planning.pacing import ANSWERED_WAIT_MS_MAX, Pacing

log = structlog.get_logger(__name__)

#: Between two looks, real seconds: at most, and at least where a contact has ended meanwhile.
LOOK_SECONDS, LOOK_AGAIN_SECONDS = 1.0, 0.2
#: Contacts in hand that nobody has begun: beyond those who are free.
SPARE = 2
#: A contact is held so long without being begun, real seconds.
HELD_SECONDS = 60.0
#: And reserved so long, seconds: beyond `HELD_SECONDS`, and what is left when a dialler is killed.
HELD_LEASE_SECONDS = 90.0
#: The lease of who is called outlasts the offer and the conversation, business seconds: nobody is called
#: again while somebody speaks to them. Renewed when so much is left.
LEASE_SECONDS, LEASE_LEFT_MS = 3_600, 1_800_000
#: Between two looks while there is nothing to do, and between two at what others left behind, real seconds.
IDLE_SECONDS, LEFT_BEHIND_SECONDS = 4.0, 20.0
#: Without a look at the floor for so long everything unanswered is withdrawn, real seconds.
BLIND_SECONDS = 5.0
#: Lists that had nobody are asked again after this, and the directory for the blended agents, real seconds.
EMPTY_SECONDS, BLENDED_SECONDS = 15.0, 30.0
#: At the end: how long calls may take to say what became of them, real seconds.
END_SECONDS = 5.0
#: Numbers that are remembered, and for how long: who was called often enough goes back.
NUMBERS_MAX, DAY_MS = 100_000, 86_400_000
#: Who may not be called just now is looked at again so much later, business milliseconds.
PUT_OFF_MS = 1_800_000
#: Contacts that could not be given back are remembered so many; the lease of others ends by itself.
UNRETURNED_MAX = 1_000
#: A contact is taken back whose agent has had other calls since so long, business milliseconds: what is seen
#: of an agent may be a second old.
ELSEWHERE_MS = 3_000
#: Arrivals of one look that are told apart.
ARRIVALS_MAX = 10_000

_offers = metrics.counter(
    "callmesh_dialler_offers_total", "Contacts offered to agents, by what came of them.", ("outcome",)
)


@dataclass(eq=False, slots=True)
class _Begun:
    """A contact in an agent's hands."""

    person: Person
    #: When it counted as a call of the number.
    counted_ms: int
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
    #: Lines of gateways, for lists that are dialled progressively or predictively.
    lines: Lines = field(default_factory=NoLines)
    #: What a contact of such a list is expected to be like.
    answer_ratio: float = 0.3
    talk_seconds: float = 70.0
    answered_wait_seconds: float = ANSWERED_WAIT_MS_MAX / 1000
    #: Called at each look while there is something to call.
    woken: Callable[[], None] = lambda: None
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
    #: Contacts that are begun, to the end of their reservation.
    _until: dict[str, int] = field(default_factory=dict)
    #: Contacts that are to be given back once marketing answers.
    _unreturned: list[str] = field(default_factory=list)
    _idle: bool = False
    _left_behind: LeftBehind = field(init=False)
    _left_behind_at: float = -1e9
    _sweeping: asyncio.Task[None] | None = None
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
        self._left_behind = LeftBehind(lists=self.lists, calls=self.calls)

    def sees(self) -> bool:
        """Whether the floor and the lists were seen lately."""
        return self.clock.monotonic() - self._looked_at <= BLIND_SECONDS + IDLE_SECONDS * self._idle

    @property
    def waiting_ahead(self) -> int:
        """Agents for whom lines ring."""
        return self._ahead.waiting

    def pace(self, contact_list: str) -> Pacing | None:
        """Of a list whose lines ring ahead."""
        return self._ahead.pace(contact_list)

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended` is set; then everything unanswered is withdrawn and given back."""
        while not ended.is_set():
            self._due.clear()
            await self.step()
            if await _within(LOOK_AGAIN_SECONDS, ended):
                break
            waiting = [asyncio.ensure_future(event.wait()) for event in (ended, self._due)]
            between = IDLE_SECONDS if self._idle else LOOK_SECONDS - LOOK_AGAIN_SECONDS
            await asyncio.wait(waiting, timeout=between, return_when=asyncio.FIRST_COMPLETED)
            for one in waiting:
                one.cancel()
        self.stopped = True
        await self._withdraw(list(self._begun))
        await self._give_back(self._held)
        self._held = []
        await self._ahead.close()
        await self._make_up()
        # Who talks goes on without this process.
        tasks = list(self._tasks) + ([self._sweeping] if self._sweeping else [])
        if any(begun.phase is Phase.DIALLING for begun in self._begun.values()):
            await asyncio.wait(tasks, timeout=END_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self) -> None:
        """One look and what follows from it."""
        now = self.clock.monotonic()
        try:
            self._running = await self.lists.running()
            self._idle = self._has_nothing_to_do()
            if self._idle:
                self._count(await self.floor.look(agents=False))
                self._looked_at = now
                return
            self.woken()
            if now - self._blended_at > BLENDED_SECONDS:
                self._blended, self._blended_at = await self.floor.blended(), now
            seen = await self.floor.look()
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
        await self._make_up()
        await self._tidy(seen, now)
        await self._keep(seen.now_ms)
        await self._stock(seen, now)
        await self._decide(seen)
        self._sweep(now)

    def _has_nothing_to_do(self) -> bool:
        in_hand = self._begun or self._held or self._unreturned or self._ahead.busy
        return not (self._running or in_hand)

    def _sweep(self, now: float) -> None:
        """Looks after what other diallers left behind, beside everything else."""
        if now - self._left_behind_at < LEFT_BEHIND_SECONDS or (self._sweeping and not self._sweeping.done()):
            return
        self._left_behind_at = now
        self._sweeping = asyncio.create_task(self._left_behind.look([each.name for each in self._running]))

    async def _keep(self, now_ms: int) -> None:
        """Who is spoken to stays reserved."""
        talks = {b.person.contact for b in self._begun.values() if b.phase is Phase.TALKING}
        talks.update(self._ahead.talking())
        begun = talks | {b.person.contact for b in self._begun.values()}
        self._until = {contact: ms for contact, ms in self._until.items() if contact in begun}
        due = sorted(each for each in talks if self._until.get(each, 0) - now_ms < LEASE_LEFT_MS)
        if not due:
            return
        try:
            kept = await self.lists.renew(due, calling=False)
        except CallmeshError as error:
            # The next look asks again.
            log.info("contacts_not_renewed", count=len(due), error=error.reason)
            return
        # Whose reservation is lost is nobody's to renew: not asked for again.
        self._until.update({each: kept.get(each, now_ms + LEASE_SECONDS * 1000) for each in due})

    def _count(self, seen: FloorNow) -> None:
        """A day's counter begins again at nothing."""
        if self._offered is not None:
            new = seen.offered - self._offered if seen.offered >= self._offered else seen.offered
            for _ in range(min(new, ARRIVALS_MAX)):
                self.outlook.arrived(seen.now_ms)
        self._offered = seen.offered

    async def _make_up(self) -> None:
        """Says what marketing could not be told before."""
        await self._ahead.tell_owed()
        in_hand = {held.person.contact for held in self._held}
        in_hand |= {begun.person.contact for begun in self._begun.values()}
        late, self._unreturned = self._unreturned, []
        # One that has been reserved anew is no business of the old reservation.
        await self._return([each for each in late if each not in in_hand and not self._ahead.has(each)])

    async def _tidy(self, seen: FloorNow, now: float) -> None:
        """Held contacts that are too old, or may not be called any more, or to whom nobody who is there can
        speak, go back; what is on its way for a list that does not run any more, or to whom it is too late by
        now, is withdrawn.
        """
        now_ms = seen.now_ms
        names = {each.name for each in self._running}
        late = [h for h in self._held if now - h.since > HELD_SECONDS or h.person.contact_list not in names]
        barred = [
            h
            for h in self._held
            if h not in late and not (self._anybody_for(h.person, seen) and self._allowed(h.person, now_ms))
        ]
        self._held = [h for h in self._held if h not in late and h not in barred]
        await self._give_back(late)
        await self._give_back(barred, now_ms + PUT_OFF_MS)
        self._ahead.only(names)
        offered = [(agent, b.person) for agent, b in self._begun.items() if b.phase is Phase.DIALLING]
        await self._withdraw(
            [a for a, p in offered if p.contact_list not in names or not self._in_hours(p, now_ms)]
        )

    def _allowed(self, person: Person, now_ms: int) -> bool:
        recent = [ms for ms in self._called.get(person.number, ()) if ms > now_ms - DAY_MS]
        if len(recent) >= self.calls_a_day_max or self._ahead.calls_number(person.number):
            return False
        if any(begun.person.number == person.number for begun in self._begun.values()):
            return False
        return self._in_hours(person, now_ms)

    def _anybody_for(self, person: Person, seen: FloorNow) -> bool:
        """Whether some agent who is there can speak to somebody, free just now or not."""
        there = (each.agent for each in seen.agents)
        return any(person.skills <= self._blended[agent] for agent in there if agent in self._blended)

    def _in_hours(self, person: Person, now_ms: int) -> bool:
        try:
            return self.hours.allows(now_ms, zones_of(person.number, person.zone))
        except InvalidArgument:
            # A zone that this machine does not know says no more than none.
            return self.hours.allows(now_ms, zones_of(person.number))

    @staticmethod
    def _never_why(person: Person) -> str:
        try:
            return never_why(person.number, person.zone)
        except InvalidArgument:
            return never_why(person.number)

    async def _stock(self, seen: FloorNow, now: float) -> None:
        able = [
            self._blended[each.agent] for each in seen.agents if each.free and each.agent in self._blended
        ]
        free, kinds = len(able), frozenset(able)
        wanted = max(free, self._ahead.wanted(seen.now_ms, free) - self._ahead.ringing)
        # Those to whom none of them can speak wait for somebody else, and keep nobody from being called.
        fitting = sum(any(held.person.skills <= skills for skills in kinds) for held in self._held)
        missing = wanted + SPARE - fitting
        if self.stopped or not self._running or not free or seen.waiting or missing <= 0:
            return
        if self._ahead.owes:
            return
        if now < self._empty_until:
            return
        try:
            found = await self.lists.next(missing, frozenset().union(*kinds))
        except CallmeshError as error:
            log.info("dialler_without_contacts", error=error.reason)
            self._empty_until = now + EMPTY_SECONDS
            return
        if not await self._sort(found, seen, now) and len(found) < missing:
            self._empty_until = now + EMPTY_SECONDS

    async def _sort(self, found: Sequence[Person], seen: FloorNow, now: float) -> bool:
        """Of those handed out, who may be called is held, who may later goes back, who never may is ended.
        Whether any is held.
        """
        never = {each.contact: why for each in found if (why := self._never_why(each))}
        rest = [each for each in found if each.contact not in never]
        allowed = [
            each for each in rest if self._anybody_for(each, seen) and self._allowed(each, seen.now_ms)
        ]
        self._held += [_Held(person, now) for person in allowed]
        barred = [_Held(person, now) for person in rest if person not in allowed]
        await self._give_back(barred, seen.now_ms + PUT_OFF_MS)
        ended = [each for each in found if each.contact in never]
        _offers.labels("unreachable").inc(len(ended))
        await asyncio.gather(*(self._ahead.unreachable(each, never[each.contact]) for each in ended))
        return bool(allowed)

    async def _decide(self, seen: FloorNow) -> None:
        stopped = self.stopped or not self._running
        if stopped:
            self._ahead.stop()
            await self._give_back(self._held)
            self._held = []
        self._ahead.release([held.person for held in self._held])
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
        await self._withdraw(self._elsewhere(seen))
        orders = self.policy.look(look)
        recalled = [order.agent for order in orders if order.act is Act.RECALL]
        await self._withdraw([agent for agent in recalled if not self._ahead.leave(agent)])
        for order in orders:
            if order.act is Act.BEGIN and order.agent not in self._begun:
                await self._begin(order, seen.now_ms)
        if not stopped:
            await self._ahead.ring(seen.now_ms, lambda lines: self._next_line(lines, seen.now_ms))

    def _elsewhere(self, seen: FloorNow) -> list[str]:
        """Agents who got an inbound call before the contact could be offered: once they are free again, the
        policy says anew what they do.
        """
        found = []
        for each in seen.agents:
            begun = self._begun.get(each.agent)
            call = begun.call if begun is not None else None
            if begun is None or call is None or begun.counted_ms > seen.now_ms - ELSEWHERE_MS:
                continue
            if each.calls and not each.rung and call.call_id not in each.calls:
                found.append(each.agent)
        return found

    async def _begin(self, order: Order, now_ms: int) -> None:
        """An agent is given to outbound: with a contact, or to wait for one who answers."""
        skills = self._blended.get(order.agent, frozenset())
        # The first to whom the agent can speak says how.
        first = next((held.person for held in self._held if held.person.skills <= skills), None)
        if first is not None and self._ahead.takes(first):
            self._ahead.join(order.agent, skills)
            return
        person = await self._next_person(
            now_ms, lambda one: not self._ahead.takes(one) and one.skills <= skills
        )
        if person is None:
            return
        begun = self._begun[order.agent] = _Begun(person, now_ms)
        self._until[person.contact] = person.lease_ms
        task = asyncio.create_task(self._through(order.agent, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _next_line(self, lines: int, now_ms: int) -> Person | None:
        """Who may be dialled beside so many lines."""
        return await self._next_person(now_ms, lambda one: self._ahead.allows(one, lines, now_ms), talk=False)

    async def _next_person(
        self, now_ms: int, fits: Callable[[Person], bool], *, talk: bool = True
    ) -> Person | None:
        """The next who fits and may be called, reserved for a `talk` or for a line's ringing; those met
        before who may not be called any more go back.
        """
        late, barred = [], []
        found: Person | None = None
        try:
            for held in list(self._held):
                if not self._allowed(held.person, now_ms):
                    barred.append(held)
                elif fits(held.person):
                    found = await self._confirmed(held.person, talk=talk)
                    late += [] if found else [held]
                if found is not None:
                    self._held.remove(held)
                    self._remember(found.number, now_ms)
                    break
        except CallmeshError as error:
            # Held on to: the next look asks again.
            log.info("contact_not_renewed", error=error.reason)
        self._held = [each for each in self._held if each not in late and each not in barred]
        await self._give_back(late)
        await self._give_back(barred, now_ms + PUT_OFF_MS)
        return found

    async def _confirmed(self, person: Person, *, talk: bool) -> Person | None:
        """Who is about to be called, if nothing has become of that meanwhile. Raises CallmeshError."""
        kept = await self.lists.renew([person.contact], calling=True, talk=talk)
        until_ms = kept.get(person.contact)
        return None if until_ms is None else replace(person, lease_ms=until_ms)

    def _remember(self, number: str, now_ms: int) -> None:
        recent = [ms for ms in self._called.pop(number, ()) if ms > now_ms - DAY_MS]
        self._called[number] = [*recent, now_ms]
        if len(self._called) > NUMBERS_MAX:
            # The one that was called longest ago: a number moves to the end with each call.
            del self._called[next(iter(self._called))]

    def _forget(self, number: str, ms: int) -> None:
        recent = self._called.get(number, [])
        if ms in recent:
            recent.remove(ms)

    def _seat(self, seen: AgentNow) -> Seat:
        begun = self._begun.get(seen.agent)
        phase = Phase.FREE if seen.free else Phase.INBOUND
        phase = begun.phase if begun is not None else self._ahead.phase(seen.agent) or phase
        blended = seen.agent in self._blended
        return Seat(agent=seen.agent, phase=phase, since_ms=seen.since_ms, blended=blended)

    async def _through(self, agent: str, begun: _Begun) -> None:
        """One contact from its beginning to its end."""
        answered = unknown = False
        try:
            begun.call = await self.calls.begin(begun.person, agent)
            if begun.recalled:
                await begun.call.withdraw()
            answered = await begun.call.wait_answered()
            if answered:
                begun.phase = Phase.TALKING
                await begun.call.wait_ended()
        except CallmeshError as error:
            # Where a call was placed they may be talking: its reservation ends by itself.
            unknown = begun.call is not None
            log.info("outbound_call_failed", agent=agent, error=error.reason)
        finally:
            if self._begun.get(agent) is begun:
                del self._begun[agent]
            self._due.set()
        outcome = "accepted" if answered else "recalled" if begun.recalled else "not_accepted"
        _offers.labels("unknown" if unknown else outcome).inc()
        if not answered and not unknown:
            # Nobody was called.
            self._forget(begun.person.number, begun.counted_ms)
            await self._give_back([_Held(begun.person, 0.0)])

    async def _withdraw(self, agents: Sequence[str]) -> None:
        """All at once: the last of many is needed as soon as the first."""
        await asyncio.gather(*(self._withdraw_one(agent) for agent in agents))

    async def _withdraw_one(self, agent: str) -> None:
        begun = self._begun.get(agent)
        if begun is None or begun.phase is not Phase.DIALLING:
            return
        begun.recalled = True
        if begun.call is None:
            return
        try:
            await begun.call.withdraw()
        except CallmeshError as error:
            # The next look asks again.
            log.info("recall_failed", agent=agent, error=error.reason)

    async def _give_back(self, held: Sequence[_Held], not_before_ms: int = 0) -> None:
        await self._return([each.person.contact for each in held], not_before_ms)

    async def _return(self, contacts: Sequence[str], not_before_ms: int = 0) -> None:
        if not contacts:
            return
        try:
            await self.lists.give_back(contacts, not_before_ms=not_before_ms)
        except CallmeshError as error:
            log.info("contacts_not_returned", count=len(contacts), error=error.reason)
            if isinstance(error, Unavailable):
                self._unreturned = [*self._unreturned, *contacts][-UNRETURNED_MAX:]


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
