"""The lease, against the real database's clock."""

from __future__ import annotations

import threading
from typing import Any

import pymongo
import pytest

from chassis.lease import Lease, LeaseLost
from chassis.testing.waiting import wait_until

pytestmark = pytest.mark.integration


class Stopwatch:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def leases(
    mongo_client: pymongo.MongoClient[dict[str, Any]], mongo_database: str
) -> pymongo.collection.Collection[dict[str, Any]]:
    return mongo_client[mongo_database]["leases"]


def test_one_holder_until_released(leases: Any) -> None:
    first, second = Lease(leases, "l", "a", 5), Lease(leases, "l", "b", 5)
    assert first.acquire() and first.held and first.epoch == 1
    assert first.acquire() and first.epoch == 1
    assert not second.acquire() and not second.held
    second.release()
    assert not second.acquire(), "releasing what is another's changes nothing"
    first.release()
    assert not first.held
    assert second.acquire() and second.epoch == 2


def test_names_are_independent(leases: Any) -> None:
    assert Lease(leases, "x", "a", 5).acquire()
    assert Lease(leases, "y", "b", 5).acquire()


def test_an_expired_lease_goes_to_another_and_the_old_holder_learns_it(leases: Any) -> None:
    watch = Stopwatch()
    first, second = Lease(leases, "l", "a", 0.5, watch), Lease(leases, "l", "b", 5)
    assert first.acquire()
    wait_until(second.acquire)
    assert first.held, "its own stopwatch stands still, as in a paused process"
    with pytest.raises(LeaseLost, match="another holder"):
        first.renew()
    assert not first.held


def test_renewal_prolongs_and_comes_due_in_time(leases: Any) -> None:
    watch = Stopwatch()
    lease = Lease(leases, "l", "a", 9, watch)
    with pytest.raises(LeaseLost):
        lease.renew()
    assert lease.acquire()
    watch.seconds += 2.9
    assert not lease.renewal_due
    watch.seconds += 0.2
    assert lease.renewal_due
    lease.renew()
    assert not lease.renewal_due
    watch.seconds += 9
    assert not lease.held
    with pytest.raises(LeaseLost, match="in time"):
        lease.renew()


def test_of_many_at_once_one_wins(leases: Any) -> None:
    barrier = threading.Barrier(8)
    won: list[str] = []

    def compete(holder: str) -> None:
        lease = Lease(leases, "l", holder, 30)
        barrier.wait(30)
        if lease.acquire():
            won.append(holder)

    threads = [threading.Thread(target=compete, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1


def test_a_lease_that_no_pause_survives_is_refused(leases: Any) -> None:
    with pytest.raises(ValueError, match="at least"):
        Lease(leases, "l", "a", 0.1)
