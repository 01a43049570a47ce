"""One suite over both stores of customers: whatever the order of the events, the end is the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from chassis.clock import to_ms
from chassis.mongo import connect, disconnect, ensure_indexes
from routing.callers import RECENT_CALLS_MAX, RecentCall
from routing.config import RoutingSettings
from routing.documents import ProfileDocument
from routing.store import (
    KnownCustomer,
    KnownCustomerDocument,
    MemoryProfiles,
    MongoProfiles,
    Profile,
    ProfileStore,
)

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
N1, N2 = "+8613800138001", "+8613800138002"

Act = Callable[[ProfileStore], None]


@pytest.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.integration)])
def make_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], ProfileStore]]:
    """Makes an empty store each time."""
    if request.param == "memory":
        yield MemoryProfiles
        return
    settings = RoutingSettings(
        mongo_uri=request.getfixturevalue("mongo_uri"),
        mongo_database=request.getfixturevalue("mongo_database"),
    )
    connect(settings)
    ensure_indexes((ProfileDocument, KnownCustomerDocument))

    def empty() -> ProfileStore:
        for document in (ProfileDocument, KnownCustomerDocument):
            document._get_collection().delete_many({})
        return MongoProfiles()

    yield empty
    disconnect()


def customer(id: str, version: int, at: int, *numbers: str, tier: str = "gold") -> KnownCustomer:
    return KnownCustomer(
        id=id, version=version, changed_at=NOW + timedelta(seconds=at), numbers=numbers, tier=tier
    )


def says(id: str, version: int, at: int, *numbers: str, tier: str = "gold") -> Act:
    word = customer(id, version, at, *numbers, tier=tier)
    return lambda store: store.learn(word)


def merges(at: int, *ids: str) -> Act:
    return lambda store: store.absorb(ids, NOW + timedelta(seconds=at))


def owners(store: ProfileStore) -> list[str | None]:
    found = [store.profile(number) for number in (N1, N2)]
    return [None if each is None else f"{each.customer} v{each.customer_version}" for each in found]


def test_a_customers_number_has_its_tiers_priority(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    store.learn(customer("ann", 1, 0, N1, N2, tier="platinum"))
    assert store.profile(N1) == Profile(
        number=N1, customer="ann", tier="platinum", priority=3, customer_version=1
    )
    assert store.profile(N2) is not None
    assert store.profile("+8613800138999") is None
    store.learn(customer("ann", 2, 1, N1, tier="standard"))
    found = store.profile(N1)
    assert found is not None and (found.tier, found.priority) == ("standard", 0)
    assert store.profile(N2) is None


#: What happens, in the order it happened, and what is so afterwards.
STORIES: dict[str, tuple[list[Act], list[str | None]]] = {
    "a number comes and goes": (
        [says("ann", 1, 0, N1), says("ann", 2, 1, N1, N2), says("ann", 3, 2, N2)],
        [None, "ann v3"],
    ),
    "a number moves to another": (
        [says("ann", 1, 0, N1), says("ann", 2, 1), says("bob", 1, 2, N1)],
        ["bob v1", None],
    ),
    "a number moves there and back": (
        [
            says("ann", 1, 0, N1),
            says("ann", 2, 1),
            says("bob", 1, 2, N1),
            says("bob", 2, 3),
            says("ann", 3, 4, N1),
        ],
        ["ann v3", None],
    ),
    "deleted": ([says("ann", 1, 0, N1, N2), says("ann", 2, 1, N1), says("ann", 3, 2)], [None, None]),
    "deleted and undeleted": (
        [says("ann", 1, 0, N1), says("ann", 2, 1), says("ann", 3, 2, N1)],
        ["ann v3", None],
    ),
    "merged": (
        [says("ann", 1, 0, N1), says("bob", 1, 1, N2), says("ann", 2, 2, N1, N2), merges(2, "bob")],
        ["ann v2", "ann v2"],
    ),
    "merged without the number": (
        [says("ann", 1, 0, N1), says("bob", 1, 1, N2), says("ann", 2, 2, N1), merges(2, "bob")],
        ["ann v2", None],
    ),
    "merged and unmerged": (
        [
            says("ann", 1, 0, N1),
            says("bob", 1, 1, N2),
            merges(2, "bob"),
            says("ann", 3, 3, N1),
            says("bob", 2, 3, N2),
        ],
        ["ann v3", "bob v2"],
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_every_order_of_events_ends_the_same(make_store: Callable[[], ProfileStore], story: str) -> None:
    acts, expected = STORIES[story]
    orders = list(itertools.permutations(acts))
    # Every order in memory; of many, some with the database, the last and the first among them.
    stride = 1 if make_store is MemoryProfiles else max(1, len(orders) // 12)
    for order in (*orders[::stride], orders[-1]):
        store = make_store()
        for act in order:
            act(store)
        assert owners(store) == expected
    # And again, all of it.
    for act in acts:
        act(store)
    assert owners(store) == expected


def test_a_tier_of_the_same_customer_follows_its_version(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    store.learn(customer("ann", 3, 5, N1, tier="platinum"))
    store.learn(customer("ann", 2, 9, N1, tier="silver"))
    found = store.profile(N1)
    assert found is not None and found.tier == "platinum"


@pytest.mark.integration
@pytest.mark.parametrize("make_store", ["mongo"], indirect=True)
def test_a_crash_after_the_word_and_before_the_numbers_is_made_good(
    make_store: Callable[[], ProfileStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    store.learn(customer("ann", 1, 0, N1))

    def crash(number: str) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(store, "_write", crash)
        with pytest.raises(SystemExit):
            store.learn(customer("ann", 2, 1, N2))
    assert owners(store) == ["ann v1", None]
    store.learn(customer("ann", 2, 1, N2))
    assert owners(store) == [None, "ann v2"]


@pytest.mark.integration
@pytest.mark.parametrize("make_store", ["mongo"], indirect=True)
def test_handlers_side_by_side_end_the_same(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    for round in range(10):
        at = round * 100
        words = [customer("ann", round * 10 + n, at + n, *((N1,) if n % 2 else (N2,))) for n in range(1, 8)]
        words += [
            customer("bob", round * 10 + n, at + 50 + n, *((N2,) if n % 2 else ())) for n in range(1, 8)
        ]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(store.learn, words))
        assert owners(store) == [f"ann v{round * 10 + 7}", f"bob v{round * 10 + 7}"]


# --- recent calls ---


def ended(call_id: str, at: int) -> RecentCall:
    return RecentCall(call_id=call_id, ended_ms=to_ms(NOW) + at)


def settled(call_id: str, at: int) -> RecentCall:
    return RecentCall(call_id=call_id, resolved_ms=to_ms(NOW) + at)


def calls(store: ProfileStore) -> list[tuple[str, int, bool]]:
    found = store.profile(N1)
    return [(c.call_id, c.at_ms - to_ms(NOW), c.resolved) for c in found.calls] if found is not None else []


def test_the_newest_calls_are_kept_once_each(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    heard = [ended("a", 1), settled("a", 4), ended("b", 2), ended("b", 3), ended("a", 0)]
    for each in (*heard, *reversed(heard)):
        store.remember([(N1, each)])
    assert calls(store) == [("a", 4, True), ("b", 3, False)]
    # The same at once, known calls and new ones among them, of two numbers.
    store.remember([(number, each) for number in (N1, N2) for each in (*heard, ended("d", 2))])
    assert calls(store) == [("a", 4, True), ("b", 3, False), ("d", 2, False)]
    other = store.profile(N2)
    assert other is not None and [call.call_id for call in other.calls] == ["a", "b", "d"]
    for n in range(RECENT_CALLS_MAX):
        store.remember([(N1, ended(f"c{n}", 10 + n))])
    assert [call for call, _, _ in calls(store)] == [f"c{n}" for n in reversed(range(RECENT_CALLS_MAX))]


def test_where_a_caller_was_served_and_belongs_is_kept(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    for word in (replace(ended("a", 1), region="beijing"), settled("a", 4)):
        store.remember([(N1, word)])
    for word in (settled("b", 5), replace(ended("b", 2), region="chengdu"), ended("c", 0)):
        store.remember([(N1, word)])
    found = store.profile(N1)
    assert found is not None and found.region == ""
    assert [(call.call_id, call.region) for call in found.calls] == [
        ("b", "chengdu"), ("a", "beijing"), ("c", "")
    ]  # fmt: skip
    for version, region in ((1, "shanghai"), (2, "")):
        store.learn(replace(customer("ann", version, version, N1), region=region))
        found = store.profile(N1)
        assert found is not None and found.region == region


def test_calls_and_customers_of_a_number_come_and_go_apart(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    store.remember([(N1, ended("a", 1))])
    assert owners(store) == [" v0", None]
    store.learn(customer("ann", 1, 0, N1))
    assert (owners(store), calls(store)) == (["ann v1", None], [("a", 1, False)])
    store.learn(customer("ann", 2, 1))
    assert (owners(store), calls(store)) == ([" v0", None], [("a", 1, False)])
    store.learn(customer("ann", 3, 2, N1))
    store.forget_calls(to_ms(NOW) + 1)
    assert calls(store) == [("a", 1, False)]
    store.forget_calls(to_ms(NOW) + 2)
    assert (owners(store), calls(store)) == (["ann v3", None], [])
    store.learn(customer("ann", 4, 3))
    assert store.profile(N1) is None
    store.remember([(N1, ended("b", 5))])
    store.forget_calls(to_ms(NOW) + 9)
    assert store.profile(N1) is None


def test_only_the_calls_of_one_customer_are_forgotten(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    for id, number in (("ann", N1), ("bob", N2)):
        store.learn(customer(id, 1, 0, number))
        store.remember([(number, ended("a", 1))])
    store.forget_calls_of("bob")
    found = store.profile(N2)
    assert calls(store) == [("a", 1, False)]
    assert found is not None and (found.customer, found.calls) == ("bob", ())


@pytest.mark.integration
@pytest.mark.parametrize("make_store", ["mongo"], indirect=True)
def test_calls_heard_side_by_side_are_all_kept(make_store: Callable[[], ProfileStore]) -> None:
    store = make_store()
    words = [word for n in range(RECENT_CALLS_MAX) for word in (ended(f"c{n}", n), settled(f"c{n}", 20 + n))]
    with ThreadPoolExecutor(8) as pool:
        # Lists that overlap, so that the same words meet.
        lists = [[(N1, word) for word in words[at : at + 3]] for at in range(len(words))]
        list(pool.map(store.remember, lists))
    assert calls(store) == [(f"c{n}", 20 + n, True) for n in reversed(range(RECENT_CALLS_MAX))]
