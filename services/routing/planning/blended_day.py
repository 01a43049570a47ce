"""A day of inbound calls with outbound contacts between them, through the real engine under virtual time.
Pure.

1. Outbound contacts are calls of a queue of their own, placed for one agent (`preferred_agent`), which the
   dialler confirms as an edge does. To the engine an agent who dials or talks is in a conversation.
2. The policy looks `react_ms` after anything happened, as a dialler that follows the floor from outside does,
   and again every `LOOK_MS`; and at once when one of its own contacts ends.
3. Preview and progressive: a contact is dialled for its `dial_ms`. Somebody answers, then it goes on for
   `talk_ms`, or nobody, then it is over. What is recalled before is over at once and goes back to the list.
4. Predictive: agents given to outbound wait together, free for inbound as ever, while lines ring for them, as
   many as the pacing allows. Whoever answers speaks to the one who has waited longest, or, with nobody left,
   is abandoned. Lines that ring are dropped when their agents are gone.
5. A contact is taken from the list only while the list's hours allow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from routing.model import (
    CallConnected,
    CallFacts,
    EndCall,
    FinishWrapUp,
    HangUp,
    PlaceCall,
)
from routing.planning.blending import Act, Blending, Look, Order, Phase, Seat
from routing.planning.erlang import Demand
from routing.planning.pacing import Mode, Pacing
from routing.virtual import FRONT, Contact, Roster, VirtualDay, _Live

#: The policy looks at least this often while anybody is there.
LOOK_MS = 5_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Somebody on the list, and what will come of it."""

    id: str
    #: Until somebody answers, or the attempt is given up.
    dial_ms: int
    #: Conversation and after-call work; 0 when nobody answers.
    talk_ms: int
    #: May be called from then until then.
    from_ms: int = 0
    until_ms: int = 1 << 62


@dataclass(kw_only=True, slots=True)
class OutboundFigures:
    """What came of the list."""

    attempts: int = 0
    answered: int = 0
    recalled: int = 0
    #: Answered, and nobody was there.
    abandoned: int = 0
    dial_ms: int = 0
    talk_ms: int = 0


@dataclass(slots=True)
class _Dial:
    """A contact in hand."""

    attempt: Attempt
    agent: str
    since_ms: int
    phase: Phase = Phase.DIALLING


class Outlook(Protocol):
    """What is to be expected of inbound; see `nowcast.Nowcast`."""

    def arrived(self, ms: int) -> None:
        """Somebody called."""

    def demand(self, now_ms: int) -> Demand:
        """Of the next minutes."""


class BlendedDay(VirtualDay):
    """One day with a policy and a list."""

    def __init__(
        self,
        roster: Roster,
        contacts: Iterable[Contact],
        *,
        policy: Blending,
        attempts: Iterable[Attempt],
        queue: str,
        blended: frozenset[str],
        outlook: Outlook,
        react_ms: int = 1_000,
        pacing: Pacing | None = None,
        answer_ratio: float = 0.0,
    ) -> None:
        """`queue` is that of the outbound calls. A predictive `pacing` needs to know the `answer_ratio`.
        Raises ValueError as VirtualDay.
        """
        super().__init__(roster, contacts)
        self._policy, self._queue, self._blended = policy, queue, blended
        self._attempts = iter(attempts)
        self._next_attempt = next(self._attempts, None)
        self._outlook, self._react_ms = outlook, react_ms
        self._dials: dict[str, _Dial] = {}
        self._by_agent: dict[str, str] = {}
        self._phases: dict[str, tuple[Phase, int]] = {}
        self._leaves: dict[str, int] = {}
        self._look_due_ms = -1
        self._attempts_begun = 0
        self._pacing = pacing if pacing is not None and pacing.mode is Mode.PREDICTIVE else None
        self._answer_ratio = answer_ratio
        #: Predictive: agents who wait for somebody to answer, and since when; lines that ring.
        self._pool: dict[str, int] = {}
        self._ringing: set[int] = set()
        self.outbound = OutboundFigures()
        for duty in sorted(roster.duties, key=lambda d: d.start_ms):
            self.wake(duty.start_ms, self._duty_begins(duty.agent, duty.end_ms))

    def _duty_begins(self, agent: str, end_ms: int) -> Callable[[], None]:
        def begin() -> None:
            self._leaves[agent] = max(end_ms, self._leaves.get(agent, 0))
            self._look_soon(self._react_ms)

        return begin

    def _arrive(self, contact: Contact) -> None:
        # Who hangs up at once, before any agent could be meant, is no demand.
        if contact.patience_ms != 0:
            self._outlook.arrived(self._now_ms)
        super()._arrive(contact)

    # --- looking ---

    def _happen(self, what: object, subject: object) -> None:
        before = self._commands
        super()._happen(what, subject)  # type: ignore[arg-type]
        if self._commands != before:
            self._look_soon(self._react_ms)

    def _look_soon(self, after_ms: int) -> None:
        due_ms = self._now_ms + after_ms
        if self._look_due_ms < self._now_ms or due_ms < self._look_due_ms:
            self._look_due_ms = due_ms
            self.wake(due_ms, self._looked)

    def _looked(self) -> None:
        if self._look_due_ms != self._now_ms:
            return
        self._look_due_ms = -1
        for order in self._policy.look(self._view()):
            self._carry_out(order)
        if self._pacing is not None:
            self._ring()
        if any(seat.present for seat in self._seats.values()):
            self._look_soon(LOOK_MS)

    def _view(self) -> Look:
        seats = []
        for agent, seat in self._seats.items():
            if not seat.on:
                self._phases.pop(agent, None)
                self._pool.pop(agent, None)
                continue
            phase = Phase.FREE
            if agent in self._by_agent:
                phase = self._dials[self._by_agent[agent]].phase
            elif seat.holds:
                phase = Phase.INBOUND
                self._pool.pop(agent, None)
            elif agent in self._pool:
                phase = Phase.DIALLING
            known = self._phases.get(agent)
            if known is None or known[0] is not phase:
                known = self._phases[agent] = (phase, self._now_ms)
            seats.append(
                Seat(
                    agent=agent,
                    phase=phase,
                    since_ms=known[1],
                    blended=agent in self._blended,
                    leaves_ms=self._leaves.get(agent, 0),
                )
            )
        waiting = sum(
            line.waiting_count
            for name in self._site_names
            for line in self._sites[name].lines.values()
            if line.queue.id != self._queue
        )
        return Look(
            now_ms=self._now_ms,
            seats=seats,
            waiting=waiting,
            demand=self._outlook.demand(self._now_ms),
            contacts=self._attempt_now() is not None,
        )

    # --- the list ---

    def _attempt_now(self) -> Attempt | None:
        attempt = self._next_attempt
        if attempt is None or not attempt.from_ms <= self._now_ms < attempt.until_ms:
            return None
        return attempt

    def _carry_out(self, order: Order) -> None:
        if self._pacing is not None:
            if order.act is Act.BEGIN:
                self._pool[order.agent] = self._now_ms
            elif self._pool.pop(order.agent, None) is not None:
                self.outbound.recalled += 1
        elif order.act is Act.RECALL:
            self._recall(order.agent)
        elif (attempt := self._attempt_now()) is not None:
            self._next_attempt = next(self._attempts, None)
            self._begin(order.agent, attempt)

    # --- predictive ---

    def _ring(self) -> None:
        """As many lines as the pacing allows for those who wait; those too many are dropped."""
        assert self._pacing is not None
        wanted = self._pacing.lines(self._now_ms, len(self._pool), self._answer_ratio)
        while len(self._ringing) > wanted:
            self._ringing.remove(max(self._ringing))
        while len(self._ringing) < wanted and (attempt := self._attempt_now()) is not None:
            self._next_attempt = next(self._attempts, None)
            self._attempts_begun += 1
            self.outbound.attempts += 1
            line = self._attempts_begun
            self._ringing.add(line)
            self.wake(self._now_ms + attempt.dial_ms, self._line_ends(line, attempt))

    def _line_ends(self, line: int, attempt: Attempt) -> Callable[[], None]:
        def end() -> None:
            if line not in self._ringing:
                return
            self._ringing.remove(line)
            if attempt.talk_ms:
                self._line_answered(attempt)
            self._look_soon(0)

        return end

    def _line_answered(self, attempt: Attempt) -> None:
        assert self._pacing is not None
        free = [a for a in self._pool if self._seats[a].on and not self._seats[a].holds]
        self._pacing.answered(self._now_ms, abandoned=not free)
        self.outbound.answered += 1
        if not free:
            self.outbound.abandoned += 1
            return
        agent = min(free, key=lambda a: (self._pool[a], a))
        del self._pool[agent]
        # The line has rung already.
        self._begin(agent, replace(attempt, dial_ms=0))

    # --- one contact ---

    def _begin(self, agent: str, attempt: Attempt) -> None:
        self._attempts_begun += 1
        call_id = f"out-{self._attempts_begun}-{attempt.id}"
        site = self._seats[agent].site
        self._dials[call_id] = _Dial(attempt, agent, self._now_ms)
        self._by_agent[agent] = call_id
        # Its own end is scheduled when it is connected.
        contact = Contact(id=call_id, queue=self._queue, arrival_ms=self._now_ms, talk_ms=0, home=site)
        self._live[call_id] = _Live(contact, site)
        facts = CallFacts(
            call_id=call_id, queue=self._queue, preferred_agent=agent, priority=-100, home_region=site
        )
        if not self._do(site, PlaceCall(facts=facts, attempt=1, move=1, front=FRONT)):
            self._forget(call_id)

    def _connected(self, event: CallConnected) -> None:
        dial = self._dials.get(event.call_id)
        if dial is None:
            super()._connected(event)
            return
        live, seat = self._live[event.call_id], self._seats[event.agent]
        live.connected_ms, live.agent = self._now_ms, event.agent
        if not seat.holds:
            seat.busy_since_ms = self._now_ms
        seat.holds.add(event.call_id)
        dial.since_ms = self._now_ms
        if self._pacing is not None:
            dial.phase = Phase.TALKING
            self.outbound.talk_ms += dial.attempt.talk_ms
            self.wake(self._now_ms + dial.attempt.talk_ms, lambda: self._end(event.call_id))
            return
        self.outbound.attempts += 1
        self.wake(self._now_ms + dial.attempt.dial_ms, lambda: self._dialled(event.call_id))

    def _dialled(self, call_id: str) -> None:
        dial = self._dials.get(call_id)
        if dial is None:
            return
        self.outbound.dial_ms += dial.attempt.dial_ms
        if not dial.attempt.talk_ms:
            self._end(call_id)
            return
        dial.phase = Phase.TALKING
        self.outbound.answered += 1
        self.outbound.talk_ms += dial.attempt.talk_ms
        self.wake(self._now_ms + dial.attempt.talk_ms, lambda: self._end(call_id))

    def _recall(self, agent: str) -> None:
        call_id = self._by_agent.get(agent)
        if call_id is None or self._dials[call_id].phase is not Phase.DIALLING:
            return
        dial = self._dials[call_id]
        self.outbound.recalled += 1
        self.outbound.dial_ms += self._now_ms - dial.since_ms
        self._end(call_id)

    def _end(self, call_id: str) -> None:
        """The contact is over, answered or not; the agent is free, and the policy looks at once."""
        live, dial = self._live.get(call_id), self._dials[call_id]
        if live is None:
            self._forget(call_id)
        elif live.connected_ms < 0:
            self._do(live.site, HangUp(call_id=call_id, attempt=1))
            self._forget(call_id)
        else:
            seat = self._seats[dial.agent]
            self._forget(call_id, keep_live=True)
            self._do(live.site, EndCall(call_id=call_id, agent=dial.agent))
            self._do(live.site, FinishWrapUp(agent=dial.agent, session=seat.session, call_id=call_id))
        self._look_soon(0)

    def _forget(self, call_id: str, *, keep_live: bool = False) -> None:
        dial = self._dials.pop(call_id)
        self._by_agent.pop(dial.agent, None)
        if not keep_live:
            self._live.pop(call_id, None)
