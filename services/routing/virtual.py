"""The engine under virtual time: contacts arrive, agents come and go, and nothing is real but the
decisions. Pure.

1. What decides is `engine.step` over a `ShardState`, one a site, as in a leader; there is no journal, no
   network and no clock. Time goes from event to event, in milliseconds.
2. An agent takes every offer after `ring_ms`, the edge confirms at once. A contact hangs up when its patience
   ends. Both are what the inputs say; nothing is drawn here.
3. An agent who goes off duty finishes the contact in hand first. `Leaving.NAMED` is how people work: the
   agent whose duty ends leaves. `Leaving.FIRST_FREE` counts heads only, as simulators do that know no agents
   by name: whoever is free first leaves in place of the one whose duty ends.
4. At one and the same millisecond duties change first, then conversations end, then come the engine's own
   deadlines, hang-ups and arrivals.
5. With `share`, sites help each other as fronts do: a contact goes to its home site unless nobody is free
   there and somebody is elsewhere, and one that has waited for `overflow_span_ms` of its queue moves
   (OVERFLOWING here, placed there, MOVED here) as soon as another site has a free agent and nobody waiting.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from routing.engine import step
from routing.model import (
    AcceptOffer,
    AgentConfig,
    CallConnected,
    CallEnded,
    CallFacts,
    CallOffered,
    CallOutcome,
    CallWrappedUp,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    EndCall,
    Event,
    FinishWrapUp,
    HangUp,
    OpenSession,
    OverflowCall,
    PlaceCall,
    Presence,
    PresenceSet,
    QueueConfig,
    Requirement,
    SessionClosed,
    SessionOpened,
    SetPresence,
    Tick,
    WithdrawCall,
)
from routing.state import Line, ShardState, next_deadline

#: Steps of the engine at one instant; more means that it turns in a circle.
STEPS_AT_ONCE_MAX = 100_000
#: Name of the front in the engine's commands, and why an agent off duty is paused.
FRONT = "virtual"
OFF_DUTY = "off duty"
#: The one site of a day without regions.
HERE = "here"


class Leaving(StrEnum):
    """Who leaves when a duty ends."""

    NAMED = "named"
    FIRST_FREE = "first_free"


class Fate(StrEnum):
    """What became of a contact."""

    ANSWERED = "answered"
    ABANDONED = "abandoned"
    #: By the queue's rules: full, closed, waited too long, nobody logged in.
    REFUSED = "refused"
    #: Still waiting when the day was over.
    UNSERVED = "unserved"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contact:
    """One caller, as the day brings it."""

    #: Unique in the day.
    id: str
    #: Queue id.
    queue: str
    #: Asks for an agent then.
    arrival_ms: int
    #: Length of the conversation.
    talk_ms: int
    #: After-call work; the queue's own limit may cut it short.
    wrap_up_ms: int = 0
    #: Hangs up after waiting this long; None never, 0 at once.
    patience_ms: int | None = None
    #: Points, -100 to 100.
    priority: int = 0
    #: Lower-case name.
    channel: str = "voice"
    #: Beyond the queue's own, sorted.
    skills: tuple[Requirement, ...] = ()
    #: Site that it belongs to.
    home: str = HERE


@dataclass(frozen=True, kw_only=True, slots=True)
class Duty:
    """An agent is at work: [start, end)."""

    agent: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """Who works, where, with what skills, and by which rules."""

    queues: tuple[QueueConfig, ...]
    agents: tuple[AgentConfig, ...]
    #: Spans of one agent do not overlap.
    duties: tuple[Duty, ...]
    #: Agent to site; those not named are `HERE`.
    sites: Mapping[str, str] = field(default_factory=dict)
    leaving: Leaving = Leaving.NAMED
    #: Sites take each other's contacts.
    share: bool = False
    #: From offer to accept.
    ring_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a contact."""

    contact: Contact
    fate: Fate
    #: From arrival to the connection or the end.
    wait_ms: int
    #: Who answered; empty for nobody.
    agent: str = ""
    #: Where.
    site: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DayResult:
    """A whole day."""

    #: In order of arrival.
    outcomes: tuple[Outcome, ...]
    #: Milliseconds with at least one contact in hand, and milliseconds at work (overtime for the last contact
    #: included), by agent.
    busy_ms: Mapping[str, int]
    duty_ms: Mapping[str, int]
    #: Engine commands carried out.
    commands: int


#: Hears (site, event, the millisecond it was decided at).
Tell = Callable[[str, Event, int], None]


class _What(IntEnum):
    """Kinds of scheduled happenings, in their order within a millisecond."""

    ON_DUTY = 0
    OFF_DUTY = 1
    TALK_ENDS = 2
    WRAP_UP_ENDS = 3
    LOG_OUT = 4
    DEADLINE = 5
    ANSWER = 6
    HANG_UP = 7
    ARRIVAL = 8
    LOOK_ELSEWHERE = 9
    #: Asked for from outside with `wake`.
    WAKE = 10


@dataclass(slots=True)
class _Live:
    """A contact on its way."""

    contact: Contact
    site: str
    move: int = 1
    connected_ms: int = -1
    agent: str = ""


@dataclass(slots=True)
class _Seat:
    """An agent's day so far."""

    site: str
    on: bool = False
    #: Logged in, if only to finish what is in hand.
    present: bool = False
    session: int = 0
    command: int = 0
    holds: set[str] = field(default_factory=set)
    busy_since_ms: int = 0
    present_since_ms: int = 0
    busy_ms: int = 0
    duty_ms: int = 0


class VirtualDay:
    """One day, from its inputs to its outcomes."""

    def __init__(self, roster: Roster, contacts: Iterable[Contact], tell: Tell | None = None) -> None:
        """`tell` hears of every event of the engine. Raises ValueError for a queue or an agent that the
        roster does not know, and for an id used twice.
        """
        self._tell = tell
        self._roster = roster
        self._queues = {queue.id: queue for queue in roster.queues}
        self._seats = {a.id: _Seat(roster.sites.get(a.id, HERE)) for a in roster.agents}
        self._contacts = sorted(contacts, key=lambda c: (c.arrival_ms, c.id))
        self._check()
        self._sites: dict[str, ShardState] = {}
        self._agenda: list[tuple[int, int, int, Any]] = []
        self._scheduled = 0
        self._now_ms = 0
        self._live: dict[str, _Live] = {}
        #: Waiting contacts by queue, oldest first: only kept where sites share.
        self._waiting: dict[str, dict[str, None]] = {queue: {} for queue in self._queues}
        self._outcomes: dict[str, Outcome] = {}
        #: Heads that are to leave as soon as somebody is free.
        self._owed: dict[str, int] = {}
        self._freed = False
        self._commands = 0

    def _check(self) -> None:
        sites = {*(seat.site for seat in self._seats.values()), *(c.home for c in self._contacts)}
        if len({c.id for c in self._contacts}) != len(self._contacts):
            raise ValueError("two contacts have the same id")
        for contact in self._contacts:
            if contact.queue not in self._queues:
                raise ValueError(f"contact {contact.id} waits in {contact.queue!r}, which is no queue")
        for duty in self._roster.duties:
            if duty.agent not in self._seats:
                raise ValueError(f"a duty names {duty.agent!r}, who is no agent")
        self._site_names = sorted(sites)

    def run(self, until_ms: int | None = None) -> DayResult:
        """Lets the day pass, to its end or to `until_ms`; what still waits then is UNSERVED."""
        self._set_up()
        while (at := self._next()) is not None and (until_ms is None or at[0] <= until_ms):
            self._now_ms = at[0]
            self._happen(*at[1:])
        return self._result()

    def wake(self, ms: int, call: Callable[[], None]) -> None:
        """Has `call` done at an instant, after all else that happens then."""
        self._schedule(ms, _What.WAKE, call)

    # --- setting up and closing the day ---

    def _set_up(self) -> None:
        first = min((c.arrival_ms for c in self._contacts), default=0)
        first = min([first, *(duty.start_ms for duty in self._roster.duties)])
        self._now_ms = first
        for name in self._site_names:
            state = self._sites[name] = ShardState(name)
            state.epoch = 1
            self._owed[name] = 0
            for queue in self._roster.queues:
                self._do(name, ConfigureQueue(queue=queue))
        for agent in self._roster.agents:
            self._do(self._seats[agent.id].site, ConfigureAgent(agent=agent))
        for duty in self._roster.duties:
            if duty.end_ms > duty.start_ms:
                self._schedule(duty.start_ms, _What.ON_DUTY, duty.agent)
                self._schedule(duty.end_ms, _What.OFF_DUTY, duty.agent)
        for contact in self._contacts:
            self._schedule(contact.arrival_ms, _What.ARRIVAL, contact)

    def _result(self) -> DayResult:
        for live in self._live.values():
            waited = self._now_ms - live.contact.arrival_ms
            if live.connected_ms < 0:
                self._close(live, Fate.UNSERVED, waited)
        for agent in sorted(self._seats):
            seat = self._seats[agent]
            if seat.present:
                seat.duty_ms += self._now_ms - seat.present_since_ms
            if seat.holds:
                seat.busy_ms += self._now_ms - seat.busy_since_ms
        return DayResult(
            outcomes=tuple(self._outcomes[c.id] for c in self._contacts if c.id in self._outcomes),
            busy_ms={agent: seat.busy_ms for agent, seat in self._seats.items()},
            duty_ms={agent: seat.duty_ms for agent, seat in self._seats.items()},
            commands=self._commands,
        )

    # --- time ---

    def _schedule(self, ms: int, what: _What, subject: Any) -> None:
        self._scheduled += 1
        heapq.heappush(self._agenda, (ms, what, self._scheduled, subject))

    def _next(self) -> tuple[int, _What, Any] | None:
        """The earliest happening; None when the day is over."""
        own = self._agenda[0] if self._agenda else None
        if own is None and not self._live:
            return None
        due = None
        for name in self._site_names:
            deadline = next_deadline(self._sites[name])
            if deadline is not None and (due is None or deadline[0] < due[0]):
                due = (deadline[0], name)
        if due is not None and (own is None or (due[0], _What.DEADLINE) < own[:2]):
            return max(due[0], self._now_ms), _What.DEADLINE, due[1]
        if own is None:
            return None
        heapq.heappop(self._agenda)
        return own[0], _What(own[1]), own[3]

    def _happen(self, what: _What, subject: Any) -> None:
        self._freed = False
        match what:
            case _What.ARRIVAL:
                self._arrive(subject)
            case _What.HANG_UP:
                self._hang_up(subject)
            case _What.ANSWER:
                self._answer(*subject)
            case _What.TALK_ENDS:
                self._talk_ends(subject)
            case _What.WRAP_UP_ENDS:
                self._wrap_up_ends(subject)
            case _What.ON_DUTY:
                self._on_duty(subject)
            case _What.OFF_DUTY:
                self._off_duty(subject)
            case _What.LOG_OUT:
                self._log_out(subject)
            case _What.DEADLINE:
                self._do(subject, Tick())
            case _What.LOOK_ELSEWHERE:
                self._freed = True
            case _What.WAKE:
                subject()
        if self._roster.share and self._freed:
            self._move_waiting()

    # --- the engine ---

    def _do(self, site: str, command: Command) -> bool:
        """Carries a command out, with all that follows from it at once; whether it was taken."""
        state = self._sites[site]
        events, answer = step(state, command, self._now_ms)
        self._commands += 1
        for _ in range(STEPS_AT_ONCE_MAX):
            for event in events:
                self._note(site, event)
            if not state.unpaired:
                return answer.refusal is None
            events, _ = step(state, Tick(), self._now_ms)
            self._commands += 1
        raise RuntimeError(f"the engine of {site} does not come to rest at {self._now_ms}")

    def _note(self, site: str, event: Event) -> None:
        if self._tell is not None:
            self._tell(site, event, self._now_ms)
        if isinstance(event, CallOffered):
            self._schedule(self._now_ms + self._roster.ring_ms, _What.ANSWER, (site, event))
        elif isinstance(event, CallConnected):
            self._connected(event)
        elif isinstance(event, CallEnded):
            self._ended(site, event)
        elif isinstance(event, CallWrappedUp):
            self._release(event.agent, event.call_id)
        elif isinstance(event, SessionOpened | PresenceSet | SessionClosed):
            self._freed = True

    # --- contacts ---

    def _arrive(self, contact: Contact) -> None:
        live = _Live(contact, self._site_for(contact))
        self._live[contact.id] = live
        if contact.patience_ms == 0:
            self._close(live, Fate.ABANDONED, 0)
            return
        if self._roster.share:
            self._waiting[contact.queue][contact.id] = None
            overflow_ms = contact.arrival_ms + self._queues[contact.queue].overflow_span_ms
            self._schedule(overflow_ms, _What.LOOK_ELSEWHERE, None)
        if not self._do(live.site, _place(contact, 1, 0)):
            self._close(live, Fate.REFUSED, 0)
        elif contact.patience_ms is not None:
            self._schedule(contact.arrival_ms + contact.patience_ms, _What.HANG_UP, contact.id)

    def _hang_up(self, call_id: str) -> None:
        live = self._live.get(call_id)
        if live is not None and live.connected_ms < 0:
            self._do(live.site, HangUp(call_id=call_id, attempt=1))

    def _answer(self, site: str, offer: CallOffered) -> None:
        """The agent accepts and the edge consents, unless the offer has ended meanwhile."""
        live, seat = self._live.get(offer.call_id), self._seats[offer.agent]
        if live is None or live.site != site:
            return
        accept = AcceptOffer(agent=offer.agent, session=seat.session, offer_id=offer.offer_id)
        if self._do(site, accept):
            confirm = ConfirmCall(call_id=offer.call_id, offer_id=offer.offer_id, attempt=1, move=live.move)
            self._do(site, confirm)

    def _connected(self, event: CallConnected) -> None:
        live, seat = self._live[event.call_id], self._seats[event.agent]
        live.connected_ms, live.agent = self._now_ms, event.agent
        self._waiting[live.contact.queue].pop(event.call_id, None)
        if not seat.holds:
            seat.busy_since_ms = self._now_ms
        seat.holds.add(event.call_id)
        self._schedule(self._now_ms + live.contact.talk_ms, _What.TALK_ENDS, event.call_id)
        self._record(live, Fate.ANSWERED, self._now_ms - live.contact.arrival_ms)

    def _talk_ends(self, call_id: str) -> None:
        live = self._live[call_id]
        seat = self._seats[live.agent]
        self._leave_instead(live.agent)
        if live.contact.wrap_up_ms:
            self._schedule(self._now_ms + live.contact.wrap_up_ms, _What.WRAP_UP_ENDS, call_id)
            self._do(live.site, EndCall(call_id=call_id, agent=live.agent))
        else:
            self._do(live.site, FinishWrapUp(agent=live.agent, session=seat.session, call_id=call_id))

    def _wrap_up_ends(self, call_id: str) -> None:
        live = self._live.get(call_id)
        if live is not None:
            seat = self._seats[live.agent]
            self._do(live.site, FinishWrapUp(agent=live.agent, session=seat.session, call_id=call_id))

    def _ended(self, site: str, event: CallEnded) -> None:
        live = self._live.get(event.call_id)
        if live is None or event.outcome is CallOutcome.MOVED or live.site != site:
            return
        if live.connected_ms >= 0:
            if not event.wrap_up_until_ms:
                self._release(live.agent, event.call_id)
            return
        fate = Fate.ABANDONED if event.outcome is CallOutcome.ABANDONED else Fate.REFUSED
        self._close(live, fate, self._now_ms - live.contact.arrival_ms)

    def _record(self, live: _Live, fate: Fate, wait_ms: int) -> None:
        self._outcomes[live.contact.id] = Outcome(
            contact=live.contact, fate=fate, wait_ms=wait_ms, agent=live.agent, site=live.site
        )

    def _close(self, live: _Live, fate: Fate, wait_ms: int) -> None:
        """Ends a contact that was not answered."""
        self._record(live, fate, wait_ms)
        self._waiting[live.contact.queue].pop(live.contact.id, None)
        if fate is not Fate.UNSERVED:
            del self._live[live.contact.id]

    # --- agents ---

    def _release(self, agent: str, call_id: str) -> None:
        """The agent is done with a contact."""
        seat = self._seats[agent]
        if call_id not in seat.holds:
            return
        seat.holds.discard(call_id)
        self._live.pop(call_id, None)
        self._freed = True
        if not seat.holds:
            seat.busy_ms += self._now_ms - seat.busy_since_ms
            if not seat.on and seat.present:
                # Later in this instant: the engine is in the middle of a step.
                self._schedule(self._now_ms, _What.LOG_OUT, agent)

    def _on_duty(self, agent: str) -> None:
        seat = self._seats[agent]
        if self._roster.leaving is Leaving.FIRST_FREE:
            if self._owed[seat.site]:
                self._owed[seat.site] -= 1
                return
            if seat.on:
                agent = next(a for a, s in self._seats.items() if s.site == seat.site and not s.on)
                seat = self._seats[agent]
        self._come(agent)

    def _come(self, agent: str) -> None:
        seat = self._seats[agent]
        seat.on = True
        seat.command += 1
        if seat.present:
            back = SetPresence(
                agent=agent, session=seat.session, command=seat.command, presence=Presence.AVAILABLE
            )
            self._do(seat.site, back)
            return
        seat.present, seat.present_since_ms = True, self._now_ms
        seat.session += 1
        self._do(
            seat.site,
            OpenSession(
                agent=agent,
                session=seat.session,
                command=seat.command,
                front=FRONT,
                presence=Presence.AVAILABLE,
            ),
        )

    def _off_duty(self, agent: str) -> None:
        if self._roster.leaving is Leaving.NAMED:
            self._leave(agent)
            return
        site = self._seats[agent].site
        seats = self._seats.items()
        free = next((a for a, seat in seats if seat.site == site and seat.on and not seat.holds), None)
        if free is None:
            self._owed[site] += 1
        else:
            self._leave(free)

    def _leave_instead(self, agent: str) -> None:
        """Whoever is free first leaves for the one whose duty has ended."""
        seat = self._seats[agent]
        if self._owed[seat.site] and len(seat.holds) == 1:
            self._owed[seat.site] -= 1
            self._leave(agent)

    def _leave(self, agent: str) -> None:
        """Off duty: at once if nothing is in hand, else after it."""
        seat = self._seats[agent]
        seat.on = False
        if not seat.present:
            return
        if seat.holds:
            seat.command += 1
            pause = SetPresence(
                agent=agent,
                session=seat.session,
                command=seat.command,
                presence=Presence.PAUSED,
                pause_reason=OFF_DUTY,
            )
            self._do(seat.site, pause)
        else:
            self._log_out(agent)

    def _log_out(self, agent: str) -> None:
        seat = self._seats[agent]
        if seat.on or seat.holds or not seat.present:
            return
        seat.present = False
        seat.duty_ms += self._now_ms - seat.present_since_ms
        self._do(seat.site, CloseSession(agent=agent, session=seat.session))

    # --- sites that help each other ---

    def _site_for(self, contact: Contact) -> str:
        home = contact.home
        if not self._roster.share or self._spare(home, contact):
            return home
        free = [(-spare, name) for name in self._site_names if (spare := self._spare(name, contact)) > 0]
        return min(free)[1] if free else home

    def _line(self, site: str, contact: Contact) -> Line | None:
        """The line that a contact begins to wait in; the queue's plain one if it would be the first in it."""
        lines = self._sites[site].lines
        key = (contact.queue, contact.channel, contact.skills, 0)
        return lines.get(key) or lines.get((contact.queue, contact.channel, (), 0))

    def _spare(self, site: str, contact: Contact) -> int:
        """Free agents that nobody there waits for."""
        line = self._line(site, contact)
        return 0 if line is None or line.waiting_count else line.idle_count

    def _move_waiting(self) -> None:
        """Contacts that have waited long enough go where somebody is free, the oldest first."""
        for queue, waiting in self._waiting.items():
            threshold_ms = self._queues[queue].overflow_span_ms
            for call_id in list(waiting):
                live = self._live[call_id]
                if self._now_ms - live.contact.arrival_ms < threshold_ms:
                    break
                if not self._move(live):
                    break

    def _move(self, live: _Live) -> bool:
        """Moves a contact to the site with most free agents; False when there is none."""
        contact = live.contact
        free = [
            (-spare, name)
            for name in self._site_names
            if name != live.site and (spare := self._spare(name, contact)) > 0
        ]
        if not free:
            return False
        source, target = live.site, min(free)[1]
        if not self._do(source, OverflowCall(call_id=contact.id, attempt=1, move=live.move)):
            # It is being rung: that is no waiting.
            return True
        live.site, live.move = target, live.move + 1
        placed = self._do(target, _place(contact, live.move, self._now_ms - contact.arrival_ms))
        if placed:
            self._do(source, WithdrawCall(call_id=contact.id, attempt=1, move=live.move))
        else:
            live.site = source
            self._do(source, _place(contact, live.move, 0))
        return True


def _place(contact: Contact, move: int, waited_ms: int) -> PlaceCall:
    facts = CallFacts(
        call_id=contact.id,
        queue=contact.queue,
        channel=contact.channel,
        skills=contact.skills,
        priority=contact.priority,
        home_region=contact.home,
    )
    return PlaceCall(facts=facts, attempt=1, move=move, front=FRONT, waited_span_ms=waited_ms)


def run_day(roster: Roster, contacts: Sequence[Contact], until_ms: int | None = None) -> DayResult:
    """One day through the engine. Raises ValueError as VirtualDay."""
    return VirtualDay(roster, contacts).run(until_ms)
