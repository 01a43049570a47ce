"""Progressive and predictive dialling, live: lines ring ahead for the agents whom blending has given to
outbound.

1. An agent given to outbound joins the pool: nothing is offered yet, the agent stays free for inbound as
   ever, and leaves the pool with an inbound call or a recall.
2. For the pool lines ring, as many as the list's pacing allows (`pacing.py`): of a progressive list one an
   agent, and of a predictive one no more either over the abandon cap, and until enough answers are known.
   Agents with the contact's skills count. When the pool shrinks, the newest lines are dropped, and those that
   nobody left can speak to. An agent for whom nothing can ring leaves.
3. Whoever answers is connected to the agent who has waited longest, among those whose skills the fewest other
   lines need: a call is placed for that agent, whose desktop accepts by itself (`attributes["line"]`). Not
   accepted within half of what is left of two seconds (`answered_wait_seconds`), the next is tried; with
   nobody left the call is abandoned, the person is told so, and it is counted. So it is when the person hangs
   up before an agent is there.
4. A dropped line that had just been answered counts as abandoned, too: the person heard it.
5. What comes of a line that no agent has spoken on is reported from here; what comes of a conversation, by
   the desktop. A report that marketing could not take is told again at the next looks, and nobody else is
   reserved before: whose result is not known is free again soon, and would be called again. What a list's
   attempts came to before this process began counts from its first look on.
6. Whose line was dropped or lost while it rang has heard it ring: they go back to their list for
   `RUNG_AGAIN_MS`, or the next look would ring them again. Nobody is rung on two lines at a time.
7. An agent whose call is to end is not left in it: routing is asked until it answers (`_insist`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from chassis import metrics
from chassis.errors import CallmeshError, Unavailable
from routing.planning.blending import Contacts, Phase
from routing.planning.dialler_ports import (
    Call,
    Calls,
    FloorNow,
    Line,
    LineResult,
    Lines,
    ListNow,
    Lists,
    NoLines,
    Person,
)
from routing.planning.pacing import ANSWERED_WAIT_MS_MAX, Mode, Pacing

log = structlog.get_logger(__name__)

#: Attempts that the share of answers is taken from, and how many the expected share counts for beside them.
ATTEMPTS_SEEN, ATTEMPTS_EXPECTED = 500, 20
#: At the end: how long lines may take to say what became of them, real seconds.
END_SECONDS = 5.0
#: Looks at which a result is told again.
TELLINGS_MAX = 30
#: Who was rung in vain is rung again so much later, business milliseconds.
RUNG_AGAIN_MS = 1_800_000
#: How often routing is asked to end a call, and how soon again while it does not answer, real seconds: a
#: change of leader is over long before the last.
ENDING_ASKS_MAX, ENDING_AGAIN_SECONDS = 60, 0.5

_lines = metrics.counter(
    "callmesh_dialler_lines_total", "Lines rung for agents, by what came of them.", ("result",)
)


@dataclass(eq=False, slots=True)
class _Ring:
    """A line that rings."""

    person: Person
    line: Line
    dropped: bool = False


@dataclass(eq=False, slots=True)
class _Owed:
    """A result that marketing has not heard of."""

    person: Person
    result: LineResult
    note: str = ""
    tellings: int = 0


@dataclass(kw_only=True, slots=True)
class Ahead:
    """One a dialler. Belongs to one event loop."""

    lines: Lines = field(default_factory=NoLines)
    calls: Calls
    lists: Lists
    #: Share of attempts that somebody answers, as far as nothing is known.
    answer_ratio: float = 0.3
    #: Mean conversation and work after it.
    talk_seconds: float = 70.0
    #: How long somebody who has answered waits for an agent, real seconds.
    answered_wait_seconds: float = ANSWERED_WAIT_MS_MAX / 1000
    #: Called when it is worth looking again.
    changed: Callable[[], None] = lambda: None
    #: Agents who wait with their skills, the first first.
    _pool: dict[str, frozenset[str]] = field(default_factory=dict)
    _ringing: dict[str, _Ring] = field(default_factory=dict)
    #: Agents with somebody who has answered.
    _busy: dict[str, Phase] = field(default_factory=dict)
    #: Contacts that are spoken to.
    _talks: set[str] = field(default_factory=set)
    #: Numbers of lines, from their ringing to the end of the conversation.
    _numbers: set[str] = field(default_factory=set)
    #: What is not left half done: one a line, until it is known and told what came of it (a result, or
    #: somebody who speaks to an agent), and one a call that is to end.
    _unsettled: set[asyncio.Future[None]] = field(default_factory=set)
    #: Results to be told again, by contact: of lines, so no more than there are, and of one asking for
    #: contacts: while a result is owed nobody else is asked for.
    _owed: dict[str, _Owed] = field(default_factory=dict)
    _paces: dict[str, Pacing] = field(default_factory=dict)
    _answers: deque[bool] = field(default_factory=lambda: deque(maxlen=ATTEMPTS_SEEN))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    #: Business time of the last look.
    _now_ms: int = 0

    @property
    def like(self) -> Contacts:
        """What a contact costs an agent: nothing until somebody has answered."""
        return Contacts(answer_ratio=1.0, dial_seconds=0.0, talk_seconds=self.talk_seconds)

    @property
    def ringing(self) -> int:
        """Lines, those given up left out."""
        return sum(not ring.dropped for ring in self._ringing.values())

    @property
    def waiting(self) -> int:
        """Agents in the pool."""
        return len(self._pool)

    @property
    def busy(self) -> bool:
        """Whether anything is in hand."""
        return bool(self._pool or self._ringing or self._busy or self._owed)

    @property
    def owes(self) -> bool:
        """Whether a result is still to be told."""
        return bool(self._owed)

    def has(self, contact: str) -> bool:
        """Whether somebody is rung, spoken to or owed a result."""
        rings = any(ring.person.contact == contact for ring in self._ringing.values())
        return rings or contact in self._talks or contact in self._owed

    def talking(self) -> Sequence[str]:
        """Contacts that are spoken to."""
        return sorted(self._talks)

    def calls_number(self, number: str) -> bool:
        """Whether it is rung or spoken to."""
        return number in self._numbers

    def _able(self, person: Person) -> list[str]:
        """Agents of the pool who can speak to somebody."""
        return [agent for agent, skills in self._pool.items() if person.skills <= skills]

    def phase(self, agent: str) -> Phase | None:
        """What an agent does here; None for who is not here."""
        return Phase.DIALLING if agent in self._pool else self._busy.get(agent)

    def takes(self, person: Person) -> bool:
        """Whether lines are dialled for this contact; else it is offered to an agent."""
        return person.contact_list in self._paces and self.lines.capacity() > 0

    def pace(self, contact_list: str) -> Pacing | None:
        """Of a list that runs and whose lines ring ahead."""
        return self._paces.get(contact_list)

    # --- agents

    def join(self, agent: str, skills: frozenset[str]) -> None:
        """The agent waits for somebody to answer."""
        self._pool.setdefault(agent, skills)

    def leave(self, agent: str) -> bool:
        """The agent waits no more; whether they did."""
        return self._pool.pop(agent, None) is not None

    def settle(self, seen: FloorNow) -> None:
        """Who is not free any more has left."""
        free = {each.agent for each in seen.agents if each.free}
        for agent in [each for each in self._pool if each not in free]:
            del self._pool[agent]

    def release(self, held: Sequence[Person]) -> None:
        """Those for whom nothing rings, and nobody `held` may be rung, have nothing to wait for."""
        rings = [ring.person for ring in self._ringing.values() if not ring.dropped]
        wanted = {person.skills for person in (*rings, *filter(self.takes, held))}
        for agent, skills in list(self._pool.items()):
            if not any(needed <= skills for needed in wanted):
                del self._pool[agent]

    # --- lists

    async def follow(self, running: Sequence[ListNow], now_ms: int) -> None:
        """Keeps a pace for every list whose lines ring ahead; a new one begins with what was before."""
        self._now_ms = now_ms
        wanted = {each.name: each for each in running if each.mode is not Mode.PREVIEW}
        held = {ring.person.contact_list for ring in self._ringing.values()}
        for name in [each for each in self._paces if each not in wanted and each not in held]:
            del self._paces[name]
        if not self.lines.capacity():
            return
        for name, each in wanted.items():
            pace = self._paces.get(name)
            if pace is not None and (pace.mode, pace.window_ms) == (each.mode, each.abandon_window_ms):
                pace.abandon_ratio_max = each.abandon_ratio_max
                continue
            try:
                self._paces[name] = await self._begun(each, now_ms)
            except Unavailable:
                raise
            except CallmeshError as error:
                # A list that cannot be paced keeps no other from being called: it is called as it was, or as
                # without a gateway.
                log.info("list_not_paced", contact_list=name, error=error.reason)

    def only(self, names: Collection[str]) -> None:
        """Drops what rings for other lists."""
        for ring in self._ringing.values():
            if ring.person.contact_list not in names and not ring.dropped:
                ring.dropped = True
                ring.line.drop()

    async def _begun(self, one: ListNow, now_ms: int) -> Pacing:
        pace = Pacing(one.mode, abandon_ratio_max=one.abandon_ratio_max, window_ms=one.abandon_window_ms)
        before = await self.lists.results(one.name)
        pace.remember(now_ms, answered=before.answered, abandoned=before.abandoned)
        return pace

    def ratio(self) -> float:
        """Share of attempts that a person answers, by what was seen and expected."""
        expected = self.answer_ratio * ATTEMPTS_EXPECTED
        return (sum(self._answers) + expected) / (len(self._answers) + ATTEMPTS_EXPECTED)

    def wanted(self, now_ms: int, agents: int) -> int:
        """Lines for so many agents, by the list that allows the most."""
        ratio = self.ratio()
        return max((pace.lines(now_ms, agents, ratio) for pace in self._paces.values()), default=0)

    # --- lines

    async def ring(self, now_ms: int, take: Callable[[int], Awaitable[Person | None]]) -> None:
        """As many lines as allowed. `take(lines)` is the next contact that may be dialled with so many lines
        ringing already, or None.
        """
        wanted = self.wanted(now_ms, len(self._pool)) if self._pool else 0
        kinds, kept = frozenset(self._pool.values()), 0
        for ring in [each for each in self._ringing.values() if not each.dropped]:
            if kept < wanted and any(ring.person.skills <= skills for skills in kinds):
                kept += 1
            else:
                ring.dropped = True
                ring.line.drop()
        while self._pool and self.ringing < wanted and self.lines.room() > 0:
            person = await take(self.ringing)
            if person is None or not await self._dial(person):
                return

    def allows(self, person: Person, lines: int, now_ms: int) -> bool:
        """Whether this contact's list allows one more than so many lines, for those who can speak to them."""
        pace = self._paces.get(person.contact_list)
        return pace is not None and lines < pace.lines(now_ms, len(self._able(person)), self.ratio())

    async def _dial(self, person: Person) -> bool:
        """Whether a line rings: the agents or the gateway may have gone while the contact was asked for."""
        try:
            line = self.lines.dial(person) if self._able(person) else None
        except CallmeshError as error:
            log.info("line_not_dialled", error=error.reason)
            line = None
        if line is None:
            await self._safely(self.lists.give_back([person.contact]))
            return False
        ring = self._ringing[line.line_id] = _Ring(person, line)
        self._numbers.add(person.number)
        self._spawn(self._through(ring))
        return True

    async def _through(self, ring: _Ring) -> None:
        """One line from its beginning to its end."""
        try:
            with self._unsettled_until() as settled:
                found = await self._decided(ring)
                if found is not None:
                    await self._talk(ring, *found, settled)
        finally:
            self._numbers.discard(ring.person.number)

    @contextlib.contextmanager
    def _unsettled_until(self) -> Iterator[Callable[[], None]]:
        """Something that the end of this process waits for, until the block ends or says it is settled."""
        mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unsettled.add(mark)

        def settled() -> None:
            self._unsettled.discard(mark)
            mark.cancel()

        try:
            yield settled
        finally:
            settled()

    async def _decided(self, ring: _Ring) -> tuple[str, Call] | None:
        """What came of ringing, told where it is told from here; else the agent for who has answered."""
        try:
            result = await ring.line.wait_result()
        finally:
            self._ringing.pop(ring.line.line_id, None)
            self.changed()
        answered = result is LineResult.ANSWERED
        if result is LineResult.LOST or (ring.dropped and not answered):
            _lines.labels("GIVEN_UP").inc()
            again_ms = self._now_ms + RUNG_AGAIN_MS
            await self._safely(self.lists.give_back([ring.person.contact], not_before_ms=again_ms))
            return None
        self._answers.append(answered)
        if answered:
            return await self._answered(ring)
        await self._report(ring.person, result)
        return None

    async def _report(self, person: Person, result: LineResult) -> None:
        _lines.labels(result.value).inc()
        await self._tell(_Owed(person, result))

    async def unreachable(self, person: Person, why: str) -> None:
        """Ends a contact that can never be rung, and says why."""
        await self._tell(_Owed(person, LineResult.WRONG_NUMBER, why))

    async def _tell(self, owed: _Owed) -> None:
        contact = owed.person.contact
        try:
            await self.lists.record(owed.person, owed.result, owed.note)
        except CallmeshError as error:
            log.info("outbound_result_not_told", contact=contact, error=error.reason)
            owed.tellings += 1
            if isinstance(error, Unavailable) and owed.tellings <= TELLINGS_MAX:
                self._owed[contact] = owed
                return
        self._owed.pop(contact, None)

    async def tell_owed(self) -> None:
        """Tells what could not be told before."""
        await asyncio.gather(*map(self._tell, list(self._owed.values())))

    async def _safely(self, asking: Awaitable[object]) -> None:
        """What cannot be told now ends with the contact's lease."""
        try:
            await asking
        except CallmeshError as error:
            log.info("outbound_result_not_told", error=error.reason)

    async def _answered(self, ring: _Ring) -> tuple[str, Call] | None:
        """The agent for the person; None for who is told that nobody is there."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.answered_wait_seconds
        found: tuple[str, Call] | None = None
        gone = asyncio.ensure_future(ring.line.wait_ended())
        try:
            while found is None and not (ring.dropped or gone.done() or loop.time() >= until):
                able = self._able(ring.person)
                if not able:
                    break
                left = until - loop.time()
                # The last one may have all the time there is.
                wait = left if len(able) == 1 else left / 2
                found = await self._connect(self._least_needed(able), ring, gone, wait)
        finally:
            gone.cancel()
        pace = self._paces.get(ring.person.contact_list)
        if pace is not None:
            pace.answered(self._now_ms, abandoned=found is None)
        if found is None:
            ring.line.drop(abandoned=True)
            await self._report(ring.person, LineResult.ABANDONED)
            return None
        _lines.labels(LineResult.ANSWERED.value).inc()
        return found

    # --- agents and people

    def _least_needed(self, able: Sequence[str]) -> str:
        """The first of those whose skills the fewest other lines ask for."""
        rings = Counter(ring.person.skills for ring in self._ringing.values() if not ring.dropped)
        asked = [(skills, lines) for skills, lines in rings.items() if skills]
        return min(able, key=lambda agent: sum(n for skills, n in asked if skills <= self._pool[agent]))

    async def _connect(
        self, agent: str, ring: _Ring, gone: asyncio.Future[None], seconds: float
    ) -> tuple[str, Call] | None:
        """The agent with a call that they have accepted in time, and before the person was `gone`."""
        del self._pool[agent]
        self._busy[agent] = Phase.DIALLING
        try:
            call = await self.calls.begin(ring.person, agent, ring.line.line_id)
            if await self._accepted(call, gone, seconds):
                self._busy[agent] = Phase.TALKING
                return agent, call
        except CallmeshError as error:
            log.info("outbound_call_failed", agent=agent, error=error.reason)
        self._busy.pop(agent, None)
        return None

    async def _accepted(self, call: Call, gone: asyncio.Future[None], seconds: float) -> bool:
        """Whether the agent accepts while somebody is there to speak to; else the call is taken back."""
        accepted = asyncio.ensure_future(call.wait_answered())
        either: set[asyncio.Future[Any]] = {accepted, gone}
        try:
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if accepted.done() and not gone.done():
                return accepted.result()
        finally:
            accepted.cancel()
        self._spawn(self._take_back(call))
        return False

    async def _take_back(self, call: Call) -> None:
        """An agent who was too late; one who accepts just now speaks to nobody and is free again."""
        with self._unsettled_until():
            if await self._insist(call, call.withdraw) and await call.wait_answered():
                await self._insist(call, lambda: self.calls.end(call))

    async def _insist(self, call: Call, ask: Callable[[], Awaitable[None]]) -> bool:
        """Asks routing until it answers, for there is nobody on the agent's line; whether it did what was
        asked.
        """
        for _ in range(ENDING_ASKS_MAX):
            try:
                await ask()
            except Unavailable as error:
                log.info("call_not_ended", call=call.call_id, error=error.reason)
                await asyncio.sleep(ENDING_AGAIN_SECONDS)
            except CallmeshError as error:
                # It is over already, or nobody's.
                log.info("call_not_ended", call=call.call_id, error=error.reason)
                return False
            else:
                return True
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _talk(self, ring: _Ring, agent: str, call: Call, settled: Callable[[], None]) -> None:
        """The conversation, until either side ends it."""
        self._talks.add(ring.person.contact)
        ring.line.bridge(call, agent)
        over = asyncio.ensure_future(call.wait_ended())
        gone = asyncio.ensure_future(ring.line.wait_ended())
        try:
            # Reserved for the ringing alone: the conversation outlasts that, and may outlast this process.
            await self._safely(self.lists.renew([ring.person.contact], calling=False))
            settled()
            await asyncio.wait({over, gone}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                ring.line.drop()
            else:
                with self._unsettled_until():
                    await self._insist(call, lambda: self.calls.end(call))
        finally:
            over.cancel()
            gone.cancel()
            self._busy.pop(agent, None)
            self._talks.discard(ring.person.contact)
            self.changed()

    # --- ends

    def stop(self) -> None:
        """The kill switch: nobody is rung any more, and the agents are free."""
        self._pool.clear()
        for ring in self._ringing.values():
            ring.dropped = True
            ring.line.drop()

    async def close(self) -> None:
        """Stops, and waits for what becomes of the lines, those that somebody has answered just now included,
        and of agents who are to be freed. Conversations go on without this process.
        """
        self.stop()
        loop = asyncio.get_running_loop()
        until = loop.time() + END_SECONDS + self.answered_wait_seconds
        while self._unsettled and (left := until - loop.time()) > 0:
            await asyncio.wait(self._unsettled, timeout=left)
        waiting = {task for task in self._tasks if not task.done()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self.tell_owed()
