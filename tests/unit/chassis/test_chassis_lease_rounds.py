"""What a round of work asks of its lease: nothing while it is held and not due."""

from __future__ import annotations

import pytest

from chassis.lease import LeaseLost
from chassis.testing.lease import ScriptedLease


@pytest.mark.parametrize(
    ("held", "due", "granted", "taken"),
    [
        (False, False, True, True),
        (False, False, False, False),
        (True, False, False, True),
        (True, True, True, True),
        (True, True, False, False),
    ],
)
def test_a_lease_is_taken_where_it_is_not_held_or_due(
    held: bool, due: bool, granted: bool, taken: bool
) -> None:
    lease = ScriptedLease()
    lease.held, lease.renewal_due, lease.granted = held, due, granted
    assert lease.take() is taken
    assert lease.held is taken


def test_a_lease_is_prolonged_where_that_is_due() -> None:
    lease = ScriptedLease()
    assert lease.take()
    lease.keep()
    assert lease.renewals == 0
    lease.renewal_due = True
    lease.keep()
    assert lease.renewals == 1 and not lease.renewal_due
    lease.granted, lease.renewal_due = False, True
    with pytest.raises(LeaseLost):
        lease.keep()
    assert not lease.held
