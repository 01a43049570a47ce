"""Whatever happens in the midst of a saga or an event, between any two of its looks and writes: nothing is
lost, nobody's history lies with somebody else, of the erased nothing remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

import pytest

from chassis.errors import CallmeshError
from chassis.testing import FakeClock
from crm import identity, timeline
from crm.handlers import Create, Customers, Memory, Policy
from crm.memory_store import MemoryStore
from crm.model import Customer, Entry, Fact, InteractionKind, MergeState, PhoneNumber, State
from crm.sagas import Erasures, Merges, MergeWish

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
#: Of customers a, b and c, and one that b gets later.
A, B, C, LATER = (f"+861380000000{n}" for n in range(4))


class Interrupted:
    """A store; before its call number `at` something else happens, whole."""

    def __init__(self, store: MemoryStore, at: int, act: Callable[[], object]) -> None:
        self._store = store
        self._left = at
        self._act = act

    @property
    def happened(self) -> bool:
        """Whether there were so many calls."""
        return self._left <= 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)

        def call(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                tried(self._act)
            return real(*args, **more)

        return call


class Earlier:
    """A store as an erasure sees it that asked for running merges before there was one."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return (lambda id: False) if name == "merge_running" else getattr(self._store, name)


def tried(act: Callable[[], object]) -> None:
    try:
        act()
    except CallmeshError:
        pass  # refused, which is one way to keep in order


class World:
    """Everything that moves customers and their history."""

    def __init__(self, store: Any) -> None:
        self.store = store
        clock = FakeClock(NOW)
        self.customers = Customers(store, clock, Policy())
        self.merges = Merges(store, clock)
        self.erasures = Erasures(store, clock)
        self.memory = Memory(store, clock)

    def merge(self, *absorbed: str) -> None:
        self.merges.request(MergeWish(survivor="a", absorbed=absorbed), "amy")

    def undo(self) -> None:
        for merge in self.store.merges("", None, 9):
            self.merges.undo(merge.id, "", "amy")

    def resume(self) -> None:
        self.merges.resume()
        self.erasures.resume()

    def number(self) -> None:
        numbers = (PhoneNumber(number=B), PhoneNumber(number=LATER))
        self.customers.update("b", lambda b: replace(b, phone_numbers=numbers), "amy")

    def attach(self) -> None:
        """What the worker does with the events of everybody's numbers."""
        for id, numbers in (("a", [A, B, C, LATER]), ("b", [B, LATER]), ("c", [C])):
            self.memory.attach_numbers(id, numbers)


def call(n: int, number: str = "", customer: str = "") -> Fact:
    return Fact(
        kind=InteractionKind.CALL, source="routing", source_id=f"call-{n}", facet="ended", stamp=(1, 1, 1, n),
        values={"state": "COMPLETED", "number": number, "customer": customer, "notes": "secret"}, began_ms=n,
    )  # fmt: skip


ACTS: dict[str, Callable[[World], object]] = {
    "merge": lambda world: world.merge("b"),
    "merge two": lambda world: world.merge("b", "c"),
    "undo": World.undo,
    "undo, merge anew": lambda world: (world.undo(), world.merge("b")),
    "erase a": lambda world: World(Earlier(world.store)).erasures.erase("a", "law", "dpo"),
    "erase b": lambda world: World(Earlier(world.store)).erasures.erase("b", "law", "dpo"),
    "delete b": lambda world: world.customers.delete("b", "amy"),
    "resume": World.resume,
    "number": World.number,
    "attach": World.attach,
    "call of b": lambda world: world.memory.apply(call(11, customer="b")),
    "call from b's": lambda world: world.memory.apply(call(12, B)),
    "calls": lambda world: world.memory.apply_many([call(13, B), call(14, customer="b"), call(15, LATER)]),
}


def copied(store: MemoryStore) -> MemoryStore:
    """Its values never change, but for lists."""
    copy = MemoryStore()
    for name, held in vars(store).items():
        if isinstance(held, dict | set | list):
            setattr(copy, name, type(held)(held))
    copy._audit = {id: list(trail) for id, trail in store._audit.items()}
    return copy


@cache
def begun(start: str) -> MemoryStore:
    store = MemoryStore()
    world = World(store)
    for id, number in zip("abc", (A, B, C), strict=True):
        numbers = (PhoneNumber(number=number),)
        draft = Customer(display_name=f"名 {id}", phone_numbers=numbers, notes="secret", tags=(id,))
        world.customers.create(Create(draft=draft, id=id), "amy")
    for n, number in enumerate((A, B, C, LATER)):
        world.memory.apply(call(n, number))
    for act in filter(None, start.split(",")):
        ACTS[act](world)
    return store


def faults(store: MemoryStore) -> Iterator[str]:
    people = store._customers
    for one in people.values():
        if one.state is State.MERGED and people[one.merged_into].state is State.ERASED:
            yield f"{one.id} went with nobody"
        told = [c for entry in store._audit[one.id] for c in entry.changes if c.field != "reason"]
        if one.state is State.ERASED and any(c.old or c.new for c in told):
            yield f"the trail of {one.id} tells"
    for merge in store._merges.values():
        if merge.state not in (MergeState.MERGED, MergeState.UNMERGED):
            yield f"a merge is {merge.state} for ever"
        if any(people[gain.customer].state is State.ERASED for gain in merge.gains):
            yield "a merge tells of one who is erased"
    latest = {id: merge.state for _, merge in sorted(store._merges.items()) for id in merge.absorbed}
    for id, state in latest.items():
        if people[id].state is (State.ACTIVE if state is MergeState.MERGED else State.MERGED):
            yield f"{id} is {people[id].state}, its merge {state}"
    for entry in store._entries.values():
        yield from _misplaced(store, entry)


def _misplaced(store: MemoryStore, entry: Entry) -> Iterator[str]:
    own = entry.own or entry.subject
    personal = "secret" in str(entry.facets)
    if not timeline.is_customers(own):
        if store.owners([identity.claim_of_number(timeline.number_of(entry))]):
            yield f"{entry.source_id} lies with a number that is somebody's"
        return
    owner = shown = store._customers[timeline.customer_of(own)]
    while shown.state is State.MERGED:
        shown = store._customers[shown.merged_into]
    if owner.state is not State.ERASED and entry.subject != timeline.subject_of_customer(shown.id):
        yield f"{entry.source_id} of {owner.id} is shown with {entry.subject} and not {shown.id}"
    if personal is (owner.state is State.ERASED):
        yield f"{entry.source_id} of {owner.id}, {owner.state}, tells: {personal}"


#: How it stands, what is under way, what comes in its midst. All but two went wrong once; any others may be
#: asked.
PAIRS = [
    ("", "merge two", "erase b"),
    ("", "merge two", "delete b"),
    ("", "merge", "erase a"),
    ("", "merge", "undo"),
    ("", "call of b", "erase b"),
    ("merge", "undo", "undo, merge anew"),
    ("number", "attach", "merge"),
    ("number", "erase b", "merge"),
]


@pytest.mark.parametrize(("start", "first", "second"), PAIRS)
def test_one_may_happen_in_the_midst_of_the_other(start: str, first: str, second: str) -> None:
    wrong, at, happened = [], 0, True
    while happened:
        at += 1
        store = copied(begun(start))
        through = Interrupted(store, at, partial(ACTS[second], World(store)))
        tried(partial(ACTS[first], World(through)))
        happened = through.happened
        after = World(store)
        after.resume()
        after.attach()
        wrong += [f"{second} before call {at}: {fault}" for fault in faults(store)]
    assert not wrong, "\n".join(wrong)
