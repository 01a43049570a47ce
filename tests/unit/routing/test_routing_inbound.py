"""What routing's worker makes of crm's events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from chassis.bus import Event
from chassis.errors import InvalidArgument
from routing import inbound
from routing.callers import PRIORITY_BY_TIER
from routing.store import MemoryProfiles, Profile

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
NUMBER = "+8613800138000"


class Listener:
    """A store that hears events as the bus delivers them."""

    def __init__(self) -> None:
        self.profiles = MemoryProfiles()

    def profile(self, number: str) -> Profile | None:
        return self.profiles.profile(number)

    def hear(self, message: Any, second: int = 0) -> None:
        event = Event.of(message, source="crm", subject="customers/ann", time=NOW.replace(second=second))
        inbound.hear(self.profiles, Event.from_json(event.to_json()))


@pytest.fixture
def store() -> Listener:
    return Listener()


def snapshot(**fields: Any) -> crm_events.CustomerSnapshot:
    values: dict[str, Any] = {
        "customer": "customers/ann",
        "version": 1,
        "state": customers_pb2.CUSTOMER_STATE_ACTIVE,
        "numbers": [NUMBER],
        "tier": customers_pb2.TIER_GOLD,
    }
    return crm_events.CustomerSnapshot(**{**values, **fields})


@pytest.mark.parametrize("tier", [t for t in customers_pb2.Tier.values() if t])
def test_a_tier_gives_its_priority(store: Listener, tier: int) -> None:
    store.hear(crm_events.CustomerCreated(customer=snapshot(tier=tier)))
    name = customers_pb2.Tier.Name(tier).removeprefix("TIER_").lower()
    assert store.profile(NUMBER) == Profile(
        number=NUMBER,
        customer="ann",
        tier=name,
        priority=PRIORITY_BY_TIER.get(name, 0),
        customer_version=1,
    )


def test_a_known_customer_changes_and_goes(store: Listener) -> None:
    store.hear(crm_events.CustomerCreated(customer=snapshot()))
    store.hear(crm_events.CustomerUpdated(customer=snapshot(version=2, tier=customers_pb2.TIER_SILVER)), 1)
    found = store.profile(NUMBER)
    assert found is not None and found.tier == "silver"
    store.hear(
        crm_events.CustomerDeleted(
            customer=snapshot(version=3, state=customers_pb2.CUSTOMER_STATE_DELETED, numbers=[])
        ),
        2,
    )
    assert store.profile(NUMBER) is None


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (crm_events.CustomerDeleted, customers_pb2.CUSTOMER_STATE_DELETED),
        (crm_events.CustomerErased, customers_pb2.CUSTOMER_STATE_ERASED),
        (crm_events.CustomerUpdated, customers_pb2.CUSTOMER_STATE_MERGED),
    ],
)
def test_one_that_does_not_live_has_no_number_whatever_is_said(
    store: Listener, kind: Any, state: Any
) -> None:
    store.hear(crm_events.CustomerCreated(customer=snapshot()))
    store.hear(kind(customer=snapshot(version=2, state=state)), 1)
    assert store.profile(NUMBER) is None


def test_a_merge_and_its_undoing(store: Listener) -> None:
    store.hear(crm_events.CustomerCreated(customer=snapshot()))
    bob = snapshot(customer="customers/bob", numbers=["+8613900139000"])
    store.hear(crm_events.CustomerCreated(customer=bob))
    survivor = snapshot(version=2, numbers=[NUMBER, "+8613900139000"])
    store.hear(
        crm_events.CustomersMerged(merge="merges/m", survivor=survivor, absorbed=["customers/bob"]), second=1
    )
    found = store.profile("+8613900139000")
    assert found is not None and found.customer == "ann"
    back = crm_events.CustomersUnmerged(
        merge="merges/m",
        survivor=snapshot(version=3),
        restored=[snapshot(customer="customers/bob", version=3, numbers=["+8613900139000"])],
    )
    store.hear(back, second=2)
    found = store.profile("+8613900139000")
    assert found is not None and found.customer == "bob"


def test_what_is_no_number_is_left_out(store: Listener) -> None:
    odd = ["13800138000", "", "+0123", "+86 138", "+" + "1" * 16, NUMBER]
    store.hear(crm_events.CustomerCreated(customer=snapshot(numbers=odd)))
    assert store.profile(NUMBER) is not None
    assert [store.profile(number) for number in odd[:-1]] == [None] * 5


@pytest.mark.parametrize(
    "message",
    [
        crm_events.CustomerCreated(),
        crm_events.CustomerUpdated(customer=snapshot(customer="ann")),
        crm_events.CustomerUpdated(customer=snapshot(version=0)),
        crm_events.CustomersMerged(survivor=snapshot(), absorbed=["bob"]),
        crm_events.CustomersMerged(survivor=snapshot(), absorbed=["customers/b"] * 1_001),
    ],
)
def test_an_event_that_names_no_customer_is_refused_for_good(store: Listener, message: Any) -> None:
    with pytest.raises(InvalidArgument):
        store.hear(message)
    assert store.profile(NUMBER) is None


def test_everything_that_changes_a_customer_is_heard() -> None:
    assert {kind.DESCRIPTOR.name for kind in inbound.CUSTOMERS} == {
        *("CustomerCreated", "CustomerUpdated", "CustomerDeleted", "CustomerErased"),
        *("CustomersMerged", "CustomersUnmerged"),
    }
