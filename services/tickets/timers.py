"""The loop that makes due things happen: passed targets, return visits, intents left by a crash.

One worker at a time runs it, under a lease. That is only to save work: what a timer does is exactly once in
effect by itself (`Handlers.fire`), so two loops that overlap for a moment disturb nobody. Between due times
the loop sleeps until the next one, but looks at least every `poll_seconds`, because the server and other
workers set new timers meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pymongo.errors import PyMongoError

from chassis import logs, metrics
from chassis.clock import Clock
from chassis.errors import Unavailable
from chassis.lease import Lease, LeaseLost, run_in_rounds
from tickets.governing import REFRESH_SECONDS, SETTLE_SECONDS, Governor, StateStore
from tickets.handlers import Handlers

#: Waits that many seconds at most, less when the process is to end; whether it is to end.
Stopping = Callable[[float], bool]

#: Pause of a loop that waits for the lease, or for the database, real seconds.
STANDBY_SECONDS = 0.2
#: Open tickets taken over to changed rules between two looks at what is due.
RETIME_BATCH = 50

log = logs.get_logger(__name__)

_fired = metrics.counter("callmesh_tickets_timers_fired_total", "Tickets whose due timers were run.", ())
_failed = metrics.counter("callmesh_tickets_timers_failed_total", "Tickets whose timers failed and wait.", ())
_late = metrics.gauge(
    "callmesh_tickets_timer_late_seconds", "How late the longest due timer was, business seconds.", ()
)


class Governing:
    """What the loop does for the rules: keeps them fresh, and takes open tickets over to changed ones."""

    def __init__(self, governor: Governor, state: StateStore) -> None:
        """Does no I/O."""
        self._governor = governor
        self._state = state
        self._looked = float("-inf")
        self._wanted = 0
        self._wanted_since = 0.0

    def refresh(self) -> None:
        """Looks for changed rules when it is time to."""
        if time.monotonic() - self._looked >= REFRESH_SECONDS:
            self._governor.refresh()
            self._looked = time.monotonic()

    def retime(self, handlers: Handlers) -> bool:
        """Takes the next batch of open tickets over; whether there was one to take. Begins only when no other
        process can still open tickets by the old rules."""
        state = self._state.read()
        if state.wanted == state.done:
            return False
        if state.wanted != self._wanted:
            self._wanted, self._wanted_since = state.wanted, time.monotonic()
        if not state.cursor and time.monotonic() - self._wanted_since < SETTLE_SECONDS:
            return False
        cursor = handlers.retime(state.cursor, RETIME_BATCH)
        self._state.progress(state, cursor)
        return True


class Timers:
    """The loop of one process."""

    def __init__(
        self,
        handlers: Handlers,
        lease: Lease,
        clock: Clock,
        *,
        poll_seconds: float,
        batch_max: int,
        governing: Governing | None = None,
    ) -> None:
        """Does no I/O. `governing`: what keeps the rules fresh; None where they are fixed."""
        self._handlers = handlers
        self._lease = lease
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._batch_max = batch_max
        self._governing = governing

    def run(self, stopping: Stopping) -> None:
        """Fires what is due until `stopping` says True; gives the lease back then. Outages are borne."""
        run_in_rounds(self._lease, self._turn, stopping)

    def _turn(self) -> float:
        """One round under the lease; real seconds to wait before the next."""
        try:
            if self._governing is not None:
                self._governing.refresh()
            if not self._lease.take():
                return STANDBY_SECONDS
            self._erase_again()  # first: what is due may fill every round
            if self.step() >= self._batch_max:
                return 0.0
            if self._governing is not None and self._governing.retime(self._handlers):
                return 0.0
            return self._pause()
        except LeaseLost as error:
            log.warning("timers.lease_lost", error=str(error))
        except (PyMongoError, Unavailable) as error:
            log.warning("timers.database_away", error=repr(error))
        return STANDBY_SECONDS

    def _pause(self) -> float:
        """Real seconds to the next due time, at most the poll interval."""
        due = self._handlers.next_due_ms()
        if due is None:
            return self._poll_seconds
        left = max(0, due - self._clock.now_ms()) / 1000
        return min(self._poll_seconds, self._clock.real_seconds(left))

    def step(self) -> int:
        """Fires one batch of what is due; how many tickets. LeaseLost, Unavailable, pymongo's errors."""
        due = self._handlers.next_due_ms()
        late = 0 if due is None else max(0, self._clock.now_ms() - due)
        _late.set(late / 1000)
        if due is None or due > self._clock.now_ms():
            return 0
        self._lease.keep()
        count, rest = self._handlers.fire_due(self._batch_max)
        _fired.inc(count - len(rest))
        for ticket_id in rest:
            self._lease.keep()
            self._fire(ticket_id)
        return count

    def _erase_again(self) -> None:
        for customer_id in self._handlers.erased_due(self._batch_max):
            self._lease.keep()
            try:
                self._handlers.erase_again(customer_id)
            except (PyMongoError, Unavailable):
                raise
            except Exception:
                # As for one ticket below: it comes back later.
                log.exception("timers.erasure_failed", customer=customer_id)

    def _fire(self, ticket_id: str) -> None:
        try:
            self._handlers.fire(ticket_id)
            _fired.inc()
        except (PyMongoError, Unavailable):
            raise
        except Exception:
            # One ticket that cannot be helped must not keep all others waiting.
            _failed.inc()
            log.exception("timers.failed", ticket=ticket_id)
            self._handlers.postpone(ticket_id)
