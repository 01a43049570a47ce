"""What routing's worker makes of crm's events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import call_pb2, events_pb2
from chassis.bus import Event
from chassis.clock import to_ms
from chassis.errors import InvalidArgument
from routing import inbound
from routing.callers import PRIORITY_BY_TIER, RecentCall
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

    def hear_call(self, message: Any, second: int = 0) -> None:
        event = Event.of(message, source="routing", subject="calls/a", time=NOW.replace(second=second))
        inbound.hear_calls(self.profiles, [Event.from_json(event.to_json())])

    def calls(self, number: str = NUMBER) -> list[tuple[str, int, bool]]:
        """(call id, second it was last heard of, resolved), newest first."""
        found = self.profile(number)
        seen = found.calls if found is not None else ()
        return [(c.call_id, (c.at_ms - to_ms(NOW)) // 1000, c.resolved) for c in seen]


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


# --- calls ---


def ref(call_id: str = "a", number: str = NUMBER) -> events_pb2.CallRef:
    return events_pb2.CallRef(call_id=call_id, caller_number=number)


def ended(call_id: str = "a", outcome: str = "COMPLETED", *, wait: int = 20, number: str = NUMBER) -> Any:
    value = call_pb2.CallOutcome.Value(f"CALL_OUTCOME_{outcome}")
    message = events_pb2.CallEnded(call=ref(call_id, number), outcome=value)
    message.wait.FromSeconds(wait)
    return message


def wrapped_up(call_id: str = "a", *, resolved: bool) -> Any:
    return events_pb2.CallWrappedUp(call=ref(call_id), disposition=call_pb2.Disposition(resolved=resolved))


@pytest.mark.parametrize(
    ("outcome", "wait", "kept"),
    [
        ("COMPLETED", 0, True),
        ("INTERRUPTED", 0, True),
        ("REFUSED", 0, True),
        ("ABANDONED", 5, True),
        # A slip of the finger, or somebody who tries to get ahead.
        ("ABANDONED", 4, False),
        ("MOVED", 60, False),
    ],
)
def test_which_calls_are_remembered(store: Listener, outcome: str, wait: int, kept: bool) -> None:
    store.hear_call(ended("a", outcome, wait=wait))
    assert store.calls() == ([("a", 0, False)] if kept else [])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0, 1, 2)])
def test_what_was_heard_of_a_call_is_the_same_in_any_order(store: Listener, order: tuple[int, ...]) -> None:
    heard = [(ended("a"), 1), (wrapped_up("a", resolved=True), 3), (ended("b"), 2)]
    for place in order:
        store.hear_call(*heard[place])
    assert store.calls() == [("a", 3, True), ("b", 2, False)]


def test_an_unresolved_end_adds_nothing_and_a_withheld_number_is_nobody(store: Listener) -> None:
    store.hear_call(wrapped_up("a", resolved=False))
    store.hear_call(ended("b", number=""))
    store.hear_call(ended("c", number="4711"))
    assert store.calls() == store.calls("") == store.calls("4711") == []


def test_the_tier_and_the_calls_of_a_number_are_one_profile(store: Listener) -> None:
    store.hear_call(ended("a"))
    assert store.profile(NUMBER) == Profile(
        number=NUMBER,
        customer="",
        tier="",
        priority=0,
        customer_version=0,
        calls=(RecentCall(call_id="a", ended_ms=to_ms(NOW)),),
    )
    store.hear(crm_events.CustomerCreated(customer=snapshot()))
    found = store.profile(NUMBER)
    assert found is not None and (found.priority, len(found.calls)) == (2, 1)


def test_who_is_erased_leaves_no_calls(store: Listener) -> None:
    store.hear(crm_events.CustomerCreated(customer=snapshot()))
    store.hear_call(ended("a"))
    erased = snapshot(version=2, state=customers_pb2.CUSTOMER_STATE_ERASED, numbers=[])
    store.hear(crm_events.CustomerErased(customer=erased), 1)
    assert store.profile(NUMBER) is None


def test_an_end_without_a_call_is_refused_for_good(store: Listener) -> None:
    with pytest.raises(InvalidArgument):
        store.hear_call(ended(""))


@pytest.mark.parametrize(
    ("region", "outcome", "kept"),
    [
        ("regions/beijing", "COMPLETED", "beijing"),
        ("", "COMPLETED", ""),
        ("beijing", "COMPLETED", ""),
        # Nobody talked with the caller there.
        ("regions/beijing", "ABANDONED", ""),
    ],
)
def test_where_a_caller_was_served(store: Listener, region: str, outcome: str, kept: str) -> None:
    message = ended("a", outcome)
    message.call.region = region
    store.hear_call(message)
    found = store.profile(NUMBER)
    assert found is not None and [call.region for call in found.calls] == [kept]


@pytest.mark.parametrize(("name", "kept"), [("regions/beijing", "beijing"), ("", ""), ("nonsense", "")])
def test_where_a_customer_belongs(store: Listener, name: str, kept: str) -> None:
    store.hear(crm_events.CustomerCreated(customer=snapshot(home_region=name)))
    found = store.profile(NUMBER)
    assert found is not None and found.region == kept
