"""Use cases over the memory store: who gets what in a race, whole timelines in any order, configuration."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from callmesh.crm.v1 import customers_pb2
from chassis.bus import Event
from chassis.callcontext import CallContext, Identity, reset_current, set_current
from chassis.config import explain
from chassis.errors import EtagMismatch, InvalidArgument, Unavailable
from chassis.idempotency import RequestIdReused
from chassis.testing import FakeClock
from crm import convert, handlers, timeline
from crm.config import CrmSettings
from crm.handlers import Create, Customers, Memory, Policy, Questions, ScreenPops
from crm.memory_store import MemoryReads, MemoryStore
from crm.model import (
    BirthDate,
    Contact,
    Customer,
    CustomerFilter,
    EmailAddress,
    Entry,
    Fact,
    InteractionKind,
    Kind,
    OfferRanking,
    Part,
    PhoneNumber,
    TimelineFilter,
)
from crm.sagas import Merges, MergeWish

NUMBERS = [f"+8613800{index:06}" for index in range(3)]


def call(id: str, number: str, facet: str = "queued", sequence: int = 1) -> Fact:
    state = {"queued": "WAITING", "connected": "CONNECTED", "ended": "COMPLETED"}[facet]
    return Fact(
        kind=InteractionKind.CALL,
        source="routing",
        source_id=id,
        facet=facet,
        stamp=(1, 1, 1, sequence),
        values={"number": number, "state": state},
        began_ms=1_000,
    )


def customers(store: MemoryStore) -> Customers:
    return Customers(store, FakeClock(), Policy())


def create(store: MemoryStore, id: str, *numbers: str, **more: Any) -> Customer:
    held = tuple(PhoneNumber(number=number) for number in numbers)
    draft = Customer(display_name=id, phone_numbers=held, **more)
    return customers(store).create(Create(draft=draft, id=id), "amy")


class RacingStore(MemoryStore):
    """A customer with the number appears just before an interaction of that number is written."""

    def __init__(self, *, attach_first: bool) -> None:
        super().__init__()
        self.attach_first = attach_first
        self.raced = False

    def save_entry(self, entry: Entry, events: Sequence[Any] = ()) -> bool:
        if not self.raced:
            self.raced = True
            create(self, "li", NUMBERS[0])
            if self.attach_first:
                Memory(self, FakeClock()).attach_numbers("li", [NUMBERS[0]])
        return super().save_entry(entry, events)


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_customer_that_appears_in_between_gets_the_call_all_the_same(attach_first: bool) -> None:
    store = RacingStore(attach_first=attach_first)
    placed = Memory(store, FakeClock()).apply(call("k", NUMBERS[0]))
    stored = store.entry(placed.id)
    assert stored is not None and stored.subject == placed.subject == "c:li"


class ContendedStore(MemoryStore):
    """Somebody else is always faster, a given number of times."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses

    def save_entry(self, entry: Entry, events: Sequence[Any] = ()) -> bool:
        self.losses -= 1
        return False if self.losses >= 0 else super().save_entry(entry, events)

    def save_ranking(self, ranking: OfferRanking) -> bool:
        return False


def test_a_contended_write_is_tried_again_within_a_bound() -> None:
    fine = ContendedStore(5)
    assert fine.entry(Memory(fine, FakeClock()).apply(call("k", NUMBERS[0])).id) is not None
    with pytest.raises(Unavailable):
        Memory(ContendedStore(1_000), FakeClock()).apply(call("k", NUMBERS[0]))
    with pytest.raises(Unavailable):
        Memory(ContendedStore(0), FakeClock()).change_ranking(
            "c:1", lambda known: OfferRanking(subject="c:1")
        )


steps = st.one_of(
    st.tuples(
        st.just("call"),
        st.sampled_from(["k1", "k2", "k3", "k4"]),
        st.sampled_from(["queued", "connected", "ended"]),
        st.integers(1, 4),
    ),
    st.tuples(st.just("create"), st.sampled_from(["a", "b", "c"]), st.just(""), st.just(0)),
)


@given(st.lists(steps, max_size=14), st.randoms(use_true_random=False))
def test_every_call_ends_up_once_with_the_owner_of_its_number(
    story: list[tuple[str, str, str, int]], chance: random.Random
) -> None:
    """Customers a, b, c own one number each; call k4 comes from a number that nobody ever owns."""
    told = [*story, *chance.choices(story, k=len(story))] if story else []
    chance.shuffle(told)
    store = MemoryStore()
    memory = Memory(store, FakeClock())
    facts = []
    for what, id, facet, sequence in told:
        if what == "call":
            number = dict(zip(["k1", "k2", "k3"], NUMBERS, strict=True)).get(id, "+8613999999999")
            facts.append(call(id, number, facet, sequence))
            memory.apply(facts[-1])
        elif store.customer(id) is None:
            number = NUMBERS["abc".index(id)]
            create(store, id, number)
            memory.attach_numbers(id, [number])
    whole = asyncio.run(everything(store))
    assert len(whole) == len({fact.source_id for fact in facts}), "one entry a call, no gap and no double"
    for interaction in whole:
        owner = store.owners([f"tel:{interaction.number}"]).get(f"tel:{interaction.number}")
        assert interaction.subject == (f"c:{owner}" if owner else f"n:{interaction.number}")
        mine = [fact for fact in facts if fact.source_id == interaction.source_id]
        alone = timeline.entry_of(mine[0])
        for fact in mine[1:]:
            alone = timeline.merge(alone, fact)
        assert interaction.detail == timeline.project(alone).detail


async def everything(store: MemoryStore) -> list[Any]:
    subjects = [*(f"c:{id}" for id in "abc"), *(f"n:{number}" for number in [*NUMBERS, "+8613999999999"])]
    return await MemoryReads(store).timeline(subjects, TimelineFilter(), None, 100)


def test_an_update_without_an_etag_is_decided_again_on_what_is_there() -> None:
    store = MemoryStore()
    create(store, "li", NUMBERS[0])
    runs: list[int] = []

    def edit(current: Customer) -> Customer:
        runs.append(current.version)
        if len(runs) == 1:
            customers(store).update("li", lambda c: _with(c, notes="faster"), "bob")
        return _with(current, display_name="Li Wei")

    changed = customers(store).update("li", edit, "amy")
    assert runs == [1, 2] and (changed.notes, changed.display_name, changed.version) == (
        "faster",
        "Li Wei",
        3,
    )
    with pytest.raises(EtagMismatch):
        customers(store).update("li", lambda c: _with(c, notes="x"), "amy", expected_version=1)


def _with(customer: Customer, **more: Any) -> Customer:
    return replace(customer, **more)


def test_a_person_belongs_to_a_company_that_exists() -> None:
    store = MemoryStore()
    create(store, "acme", kind=Kind.COMPANY)
    assert create(store, "li", company="acme").company == "acme"
    for company in ("none", "li"):
        with pytest.raises(InvalidArgument, match=r"customer\.company"):
            create(store, "wang", company=company)


def wish(id: str, number: str, key: str = "", *, dry: bool) -> Create:
    draft = Customer(display_name="x", phone_numbers=(PhoneNumber(number=number),))
    return Create(draft=draft, id=id, request_key=key or None, fingerprint=key or None, dry=dry)


@pytest.mark.parametrize("dry", [True, False])
def test_a_trial_of_a_batch_finds_what_its_entries_do_to_each_other(dry: bool) -> None:
    store = MemoryStore()
    create(store, "old", NUMBERS[0])
    batch = [
        wish("a", NUMBERS[1], "k", dry=dry),
        wish("b", NUMBERS[1], dry=dry),
        wish("a", NUMBERS[2], dry=dry),
        wish("", NUMBERS[1], "k", dry=dry),
        wish("c", NUMBERS[0], dry=dry),
        wish("c", NUMBERS[2], dry=dry),
    ]
    told = customers(store).create_many(batch, "amy")
    reasons = [one.id if isinstance(one, Customer) else one.reason for one in told]
    assert reasons == ["a", "CLAIM_TAKEN", "ALREADY_EXISTS", "a", "CLAIM_TAKEN", "c"]
    assert set(store._customers) == ({"old"} if dry else {"old", "a", "c"})


def test_what_is_only_tried_meets_who_is_ahead_of_it_alone() -> None:
    store = MemoryStore()
    batch = [
        wish("a", NUMBERS[0], dry=True),
        wish("b", NUMBERS[0], dry=False),
        wish("c", NUMBERS[0], dry=True),
    ]
    told = customers(store).create_many(batch, "amy")
    assert [isinstance(one, Customer) for one in told] == [True, True, False]


def test_a_trial_with_the_request_id_of_what_is_there_answers_that() -> None:
    store = MemoryStore()
    made = customers(store).create(wish("a", NUMBERS[0], "k", dry=False), "amy")
    assert customers(store).create(wish("a", NUMBERS[0], "k", dry=True), "amy") == made
    other = replace(wish("b", NUMBERS[1], "k", dry=True), fingerprint="other")
    with pytest.raises(RequestIdReused):
        customers(store).create(other, "amy")


def test_events_tell_who_owns_what_now() -> None:
    store = MemoryStore()
    create(store, "li", *NUMBERS[:2])
    customers(store).update(
        "li", lambda c: _with(c, phone_numbers=(PhoneNumber(number=NUMBERS[1], primary=True),)), "amy"
    )
    customers(store).delete("li", "amy")
    types = [str(event.type).rpartition(".")[2] for event in _events(store)]
    assert types == ["CustomerCreated", "CustomerUpdated", "CustomerDeleted"]
    numbers = [event.data["customer"].get("numbers", []) for event in _events(store)]
    assert numbers == [NUMBERS[:2], [NUMBERS[1]], []]
    assert [event.data["customer"]["version"] for event in _events(store)] == ["1", "2", "3"]


def _events(store: MemoryStore) -> Iterable[Event]:
    return [event for event in store.events if isinstance(event, Event)]


async def test_a_contact_of_a_company_is_called_by_name() -> None:
    store = MemoryStore()
    wu = Contact(display_name="Wu", phone_numbers=(PhoneNumber(number=NUMBERS[1]),), language="en")
    create(store, "acme", NUMBERS[0], kind=Kind.COMPANY, language="zh", contacts=(wu,))
    pops = ScreenPops(MemoryReads(store), FakeClock(), Policy())
    seen = await pops.get(NUMBERS[1], "live")
    assert seen.contact_name == "Wu" and seen.language == "en" and "Wu" in seen.greeting
    assert (await pops.get(NUMBERS[0], "live")).contact_name == ""


class StuckReads(MemoryReads):
    """Never answers."""

    async def owner(self, claim: str) -> Customer | None:
        await asyncio.Event().wait()
        return None


@pytest.mark.parametrize("left_seconds", [None, 0.02])
async def test_a_screen_pop_is_never_later_than_its_own_or_its_callers_deadline(
    left_seconds: float | None,
) -> None:
    loop = asyncio.get_running_loop()
    policy = Policy(screen_pop_seconds=0.05 if left_seconds is None else 30.0)
    deadline = None if left_seconds is None else loop.time() + left_seconds
    token = set_current(CallContext("test", Identity(subject="amy"), deadline, None))
    started = loop.time()
    seen = await ScreenPops(StuckReads(MemoryStore()), FakeClock(), policy).get(NUMBERS[0], "live")
    reset_current(token)
    assert loop.time() - started < 2.0
    assert seen.missing == tuple(Part) and seen.number == NUMBERS[0] and seen.greeting


async def test_today_is_counted_where_the_customer_lives() -> None:
    store = MemoryStore()
    clock = FakeClock(datetime(2026, 3, 2, 20, 0, tzinfo=UTC))
    create(store, "home", NUMBERS[0])
    create(store, "abroad", NUMBERS[1], time_zone="America/New_York")
    at = int(datetime(2026, 3, 2, 10, 0, tzinfo=UTC).timestamp() * 1000)
    for index, number in enumerate(NUMBERS[:2]):
        Memory(store, clock).apply(replace(call(f"k{index}", number), began_ms=at))
    pops = ScreenPops(MemoryReads(store), clock, Policy())
    shanghai, new_york = [await pops.get(number, "live") for number in NUMBERS[:2]]
    assert shanghai.calls is not None and shanghai.calls.today == 0, "in Shanghai it is the third of March"
    assert new_york.calls is not None and new_york.calls.today == 1


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("default_country", "ZZ", "two-letter country code"),
        ("time_zone", "Mars/Olympus", "IANA time zone"),
        ("language", "fr", "zh, en"),
        ("screen_pop_ms", "5", "between 10 and 10000"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CRM_{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        CrmSettings()
    line = explain(CrmSettings, caught.value)
    assert f"CRM_{name.upper()}" in line and why in line and "\n" not in line


def test_settings_make_the_policy() -> None:
    policy = CrmSettings(default_country="us", time_zone="UTC", language="en", screen_pop_ms=200).policy()
    assert policy == Policy(default_country="US", time_zone="UTC", language="en", screen_pop_seconds=0.2)


async def test_many_of_one_kind_crowd_out_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "CANDIDATES_MAX", 10)
    monkeypatch.setattr(handlers, "KIND_CANDIDATES_MAX", 5)
    store = MemoryStore()
    customers, questions = Customers(store, FakeClock(), Policy()), Questions(MemoryReads(store), Policy())
    unknown = BirthDate(year=1900, month=1, day=1)
    for n in range(20):
        mail = (EmailAddress(address=f"li.{n}@example.com"),)
        draft = Customer(display_name=f"赵 {n}", email_addresses=mail, birth_date=unknown)
        customers.create(Create(draft=draft, id=f"a{n:02}"), "amy")
    for id, number in (("x", "+8613812345678"), ("y", "+8613812345687")):
        numbers = (PhoneNumber(number=number),)
        draft = Customer(display_name="Li", phone_numbers=numbers, birth_date=unknown)
        customers.create(Create(draft=draft, id=id), "amy")
    found = await questions.search("Li", CustomerFilter())
    assert {match.customer.id for match in found[:2]} == {"x", "y"}, "those whose name it is come first"
    assert [pair.other for pair in await questions.duplicates("x", 0.8)] == ["y"]


async def test_whoever_belonged_to_a_merged_company_is_listed_and_searched_with_its_survivor() -> None:
    store = MemoryStore()
    for id in ("acme", "acme2"):
        create(store, id, kind=Kind.COMPANY)
    create(store, "li", company="acme2")
    Merges(store, FakeClock()).request(MergeWish(survivor="acme", absorbed=("acme2",)), "amy")
    questions, which = Questions(MemoryReads(store), Policy()), CustomerFilter(company="acme")
    assert [customer.id for customer in (await questions.page(which, None, 9))[0]] == ["li"]
    assert [match.customer.id for match in await questions.search("li", which)] == ["li"]


def test_a_tag_is_asked_for_as_it_is_kept() -> None:
    which = convert.filter_in(customers_pb2.CustomerFilter(tag=" Cafe\u0301 "), show_deleted=False)
    assert which.tag == "Caf\u00e9"


async def every_pair(questions: Questions, limit: int) -> tuple[list[str], int]:
    """All pairs in the order of pages of at most `limit`, and how many pages there were."""
    found: list[str] = []
    after, pages = None, 0
    while pages == 0 or after is not None:
        pairs, after = await questions.pairs(after, 0.8, limit)
        assert len(pairs) <= limit
        found += [pair.customer + pair.other for pair in pairs]
        pages += 1
    return found, pages


async def test_pages_of_pairs_hold_what_was_asked_for_and_end_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    customers, questions = Customers(store, FakeClock(), Policy()), Questions(MemoryReads(store), Policy())
    for id in "abcd":
        draft = Customer(display_name="王小明", birth_date=BirthDate(year=1990, month=2, day=28))
        customers.create(Create(draft=draft, id=id), "amy")
    everyone = ["ab", "ac", "ad", "bc", "bd", "cd"]
    for limit in (1, 2, 4, 9):
        found, _ = await every_pair(questions, limit)
        assert sorted(found) == everyone, f"each once, in pages of {limit}"
    monkeypatch.setattr(handlers, "PAIRS_SECONDS_MAX", 0.0)
    found, pages = await every_pair(questions, 9)
    assert sorted(found) == everyone and pages == 5, "one customer a page, when there is no time"
