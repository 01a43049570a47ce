"""A lease that is granted as a test says."""

from __future__ import annotations

from collections.abc import Callable

from chassis.lease import Lease, LeaseLost


class ScriptedLease(Lease):
    """`Lease` without a database."""

    held = False
    renewal_due = False

    def __init__(self) -> None:
        self.name = "scripted"
        self.epoch = 1
        #: Whether the database would give it to us.
        self.granted = True
        #: How often it was prolonged, and given up.
        self.renewals = self.released = 0
        #: Called when it is to be prolonged.
        self.on_renew: Callable[[], None] = lambda: None

    def acquire(self) -> bool:
        self.held = self.granted
        return self.granted

    def renew(self) -> None:
        self.on_renew()
        if not self.granted:
            self.held = False
            raise LeaseLost("another has it")
        self.renewals += 1
        self.renewal_due = False

    def release(self) -> None:
        self.released += 1
        self.held = False
