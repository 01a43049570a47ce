"""Merging and its undoing lose nothing, in whatever order things happen; the same for erasure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.clock import to_ms
from chassis.errors import CallmeshError, InvalidArgument, Unavailable
from chassis.testing import FakeClock
from crm import engine, merging, schema, timeline
from crm.care_handlers import Retention
from crm.handlers import Create, Customers, Memory, Policy, Recorder, Recording
from crm.memory_store import MemoryStore
from crm.model import (
    BirthDate,
    Channel,
    Churn,
    Consent,
    Customer,
    CustomField,
    EmailAddress,
    ExternalId,
    Fact,
    FieldKind,
    Interaction,
    InteractionKind,
    Merge,
    MergeState,
    OfferRanking,
    PhoneNumber,
    PostalAddress,
    Purpose,
    QuietWindow,
    State,
    ValueClass,
)
from crm.sagas import Erasures, Merges, MergeWish

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


class World:
    """A store with everything on it."""

    def __init__(self) -> None:
        self.clock, policy = FakeClock(NOW), Policy()
        clock = self.clock
        self.store = MemoryStore()
        self.customers = Customers(self.store, clock, policy)
        self.merges = Merges(self.store, clock)
        self.erasures = Erasures(self.store, clock)
        self.memory = Memory(self.store, clock)

    def create(self, id: str, number: str = "", **more: object) -> Customer:
        numbers = (PhoneNumber(number=number),) if number else ()
        draft = Customer(display_name=f"名 {id}", phone_numbers=numbers, **more)  # type: ignore[arg-type]
        return self.customers.create(Create(draft=draft, id=id), "amy")

    def merge(self, survivor: str, *absorbed: str) -> str:
        return self.merges.request(MergeWish(survivor=survivor, absorbed=absorbed), "amy").id

    def call(self, number: str, n: int, customer: str = "") -> None:
        values = {"state": "COMPLETED", "number": number, "customer": customer, "notes": "secret"}
        self.memory.apply(
            Fact(
                kind=InteractionKind.CALL,
                source="routing",
                source_id=f"call-{n}",
                facet="ended",
                stamp=(1, 1, 1, n),
                values=values,
                began_ms=n,
            )
        )

    def shown(self, id: str) -> set[str]:
        return {i.source_id for i in self._all() if timeline.customer_of(i.subject) == id}

    def _all(self) -> list[Interaction]:
        return [timeline.project(entry) for entry in self.store._entries.values()]

    def owner(self, number: str) -> str | None:
        return self.store.owners([f"tel:{number}"]).get(f"tel:{number}")

    def content(self, id: str) -> Customer:
        """Without what every change changes."""
        found = self.store.customer(id)
        assert found is not None
        return replace(found, version=0, update_time=None, updater="", delete_time=None)


A, B, C = "+8613800000001", "+8613800000002", "+8613800000003"


def three() -> World:
    world = World()
    world.create("a", A, tags=("x",), notes="甲")
    world.create("b", B, tags=("x", "y"), notes="乙", given_name="伟")
    world.create("c", C, email_addresses=(EmailAddress(address="c@example.com"),))
    for n, number in enumerate((A, B, B, C)):
        world.call(number, n)
    return world


def test_a_merge_moves_everything_and_tells_it() -> None:
    world = three()
    merge = world.merges.get(world.merge("a", "b", "c"))
    assert merge.state is MergeState.MERGED and merge.moved == 3
    assert world.shown("a") == {"call-0", "call-1", "call-2", "call-3"}
    assert {world.owner(number) for number in (A, B, C)} == {"a"}
    survivor = world.content("a")
    assert survivor.tags == ("x", "y") and survivor.notes == "甲\n\n乙" and survivor.given_name == "伟"
    gone = world.content("b")
    assert gone.state is State.MERGED and gone.merged_into == "a" and gone.notes == "乙"
    types = [event.type.rpartition(".")[2] for event in world.store.events]  # type: ignore[attr-defined]
    assert types[-1] == "CustomersMerged" and types.count("CustomerUpdated") == 4


def test_an_erasure_takes_what_came_on_a_deleted_customers_number() -> None:
    world = three()
    world.customers.delete("a", "amy")
    world.customers.delete("b", "amy")
    world.call(A, 7)
    world.create("next", B)
    world.call(B, 8)
    world.store.mark_churn(timeline.subject_of_number(A))
    for id in "ab":
        world.erasures.erase(id, "asked for it", "dpo")
    told = {i.source_id: (i.subject, i.number) for i in world._all()}
    assert told["call-7"] == ("c:a", "")
    assert told["call-8"] == ("c:next", B), "by now the number is somebody else's"
    assert not world.store.churn(timeline.subject_of_number(A)) and not world.store.erase_pending(5)


def test_an_erasure_that_is_resumed_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    world = three()
    world.merge("a", "b")
    with monkeypatch.context() as dying, pytest.raises(Unavailable):
        dying.setattr(world.erasures, "finish", lambda *_: (_ for _ in ()).throw(Unavailable(why="dies")))
        world.erasures.erase("a", 'asked for "it"', "dpo")
    assert world.erasures.resume() == 1
    for id in "ab":
        (told, *_) = world.store.audit(id, None, 1)
        assert told.action == "ERASE" and told.changes[-1].new == '"asked for \\"it\\""'


def test_words_of_a_caller_nobody_knows_are_found_by_the_call() -> None:
    store = MemoryStore()
    Retention(store, FakeClock(NOW)).flag("n:+8613800000001", True, 5, call=("+8613800000001", "k1", "VOICE"))
    assert [event.subject for event in store.events] == ["calls/k1"]  # type: ignore[attr-defined]


def test_nothing_ends_before_it_begins() -> None:
    world = three()
    recorder = Recorder(world.store, FakeClock(NOW), Policy())
    asked = Recording(
        kind=InteractionKind.VISIT, source="shop", source_id="1", values={"ended_ms": 4},
        customer="a", number="", began_ms=5,
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match="end_time"):
        recorder.record(asked, "shop")
    recorder.record(replace(asked, began_ms=4), "shop")


def test_who_was_erased_wants_nothing_any_more() -> None:
    world = three()
    retention = Retention(world.store, FakeClock(NOW))
    memory = Memory(world.store, FakeClock(NOW), retention.heard_in_call)
    world.erasures.erase("a", "asked for it", "dpo")
    told = len(world.store.events)
    wrapped = Fact(
        kind=InteractionKind.CALL, source="routing", source_id="call-0", facet="wrapped",
        stamp=(1, 1, 1, 9), values={"number": A, "wants_to_leave": True}, began_ms=0,
    )  # fmt: skip
    entry = memory.apply(wrapped)
    assert entry.subject == "c:a"
    memory.flag_leaving(entry, wrapped)
    with pytest.raises(engine.CustomerNotActive):
        retention.flag("a", True, 5, comment="by hand")
    assert world.store.churn("a") is None and len(world.store.events) == told


def test_what_is_recorded_bears_on_churn_also_after_a_crash() -> None:
    world = three()
    recorder = Recorder(world.store, FakeClock(NOW), Policy())
    asked = Recording(
        kind=InteractionKind.SURVEY, source="sms", source_id="1", values={"satisfaction": 1},
        customer="a", number="", began_ms=5,
    )  # fmt: skip
    for marked in ((), ("a",), ("a",)):
        world.store.marked.clear()
        recorder.record(asked, "sms", dry=not marked)
        assert world.store.marked == set(marked)


def test_what_comes_after_a_merge_stays_with_the_survivor() -> None:
    world = three()
    before = {id: world.content(id) for id in "abc"}
    merge = world.merge("a", "b", "c")
    world.call(B, 9)
    assert world.shown("a") >= {"call-9"}
    assert world.merges.undo(merge, "mistake", "bob").state is MergeState.UNMERGED
    assert {id: world.content(id) for id in "abc"} == before
    assert world.shown("a") == {"call-0", "call-9"} and world.shown("b") == {"call-1", "call-2"}
    assert world.merges.undo(merge, "again", "bob").state is MergeState.UNMERGED, "repeating is harmless"


def test_a_late_event_that_names_an_absorbed_customer_goes_to_the_survivor() -> None:
    world = three()
    merge = world.merge("a", "b")
    world.call("", 20, customer="b")
    assert "call-20" in world.shown("a")
    world.merges.undo(merge, "", "bob")
    assert "call-20" in world.shown("b"), "its source says whose it is"


def test_merges_are_undone_last_first() -> None:
    world = three()
    first, second = world.merge("a", "b"), world.merge("c", "a")
    with pytest.raises(CallmeshError) as caught:
        world.merges.undo(first, "", "bob")
    assert caught.value.reason in ("MERGE_NOT_LAST",)
    world.merges.undo(second, "", "bob")
    assert world.shown("a") == {"call-0", "call-1", "call-2"}, "a still holds what it took over of b"
    world.merges.undo(first, "", "bob")
    assert world.shown("b") == {"call-1", "call-2"}


@pytest.mark.parametrize(
    ("absorbed", "reason"),
    [((), "INVALID_ARGUMENT"), (("a",), "INVALID_ARGUMENT"), (("b", "b"), "INVALID_ARGUMENT")],
)
def test_cycles_and_nobody_are_refused(absorbed: tuple[str, ...], reason: str) -> None:
    world = three()
    with pytest.raises(InvalidArgument) as caught:
        world.merge("a", *absorbed)
    assert caught.value.reason == reason


def test_a_merge_of_a_merged_customer_is_refused_and_changes_nothing() -> None:
    world = three()
    world.merge("a", "b")
    events = len(world.store.events)
    for survivor, absorbed in (("b", "c"), ("c", "b")):
        with pytest.raises(merging.CustomerMerged):
            world.merge(survivor, absorbed)
    assert len(world.store.events) == events


def test_a_merge_leaves_a_customer_that_can_be_changed() -> None:
    world = World()
    for n in range(schema.VALUES_MAX + 1):
        field = CustomField(id=f"f{n}", label="x", kind=FieldKind.TEXT, version=1)
        world.store.insert_custom_field(field)
    world.create("a", A, custom_values={f"f{n}": "x" for n in range(schema.VALUES_MAX)})
    world.create("b", B, custom_values={f"f{schema.VALUES_MAX}": "x"})
    with pytest.raises(InvalidArgument, match=r"absorbed\[0\].*custom values"):
        world.merge("a", "b")
    world.create("c", custom_values={"f0": "x"})
    world.merge("c", "b")
    survivor = world.content("c")
    assert [number.primary for number in survivor.phone_numbers] == [True], "as of every customer"
    world.customers.update("c", lambda c: replace(c, notes="更多"), "amy")
    [entry] = world.store.audit("c", None, 1)
    assert [change.field for change in entry.changes] == ["notes"]


def test_what_was_said_of_a_merge_goes_with_whoever_is_erased() -> None:
    world = three()
    merges = []
    for one, other in (("a", "b"), ("b", "c")):
        wish = MergeWish(survivor=one, absorbed=(other,), reason="both are 李伟")
        merges.append(world.merges.request(wish, "amy").id)
        world.merges.undo(merges[-1], "one is 李薇", "bob")
    world.erasures.erase("a", "asked for it", "dpo")
    [first, second] = [world.merges.get(id) for id in merges]
    assert (first.reason, first.undo_reason) == ("", "") and (first.requester, first.undoer) == ("amy", "bob")
    assert (second.reason, second.undo_reason) == ("both are 李伟", "one is 李薇")


def test_whatever_a_survivor_lacked_is_given_and_given_back() -> None:
    world = World()
    full = {
        "given_name": "伟",
        "family_name": "李",
        "language": "zh-CN",
        "time_zone": "Asia/Shanghai",
        "home_region": "regions/x",
        "account_manager": "mia",
        "value_class": ValueClass.A,
        "birth_date": BirthDate(month=2, day=29),
        "addresses": (PostalAddress(city="深圳"),),
        "quiet_windows": (QuietWindow(start_minute=1, end_minute=2),),
        "external_ids": (ExternalId(system="billing", id="1"),),
    }
    world.create("a", A)
    world.create("b", B, **full)
    before = {id: world.content(id) for id in "ab"}
    merge = world.merge("a", "b")
    survivor = world.content("a")
    assert {name: getattr(survivor, name) for name in full} == full
    assert world.merges.undo(merge, "", "bob").state is MergeState.UNMERGED
    assert {id: world.content(id) for id in "ab"} == before


def test_a_source_that_heard_of_the_merge_does_not_keep_what_goes_back() -> None:
    world = three()
    ticket = Fact(
        kind=InteractionKind.TICKET,
        source="tickets",
        source_id="t1",
        facet="snapshot",
        stamp=(1,),
        values={"customer": "b", "subject": "no signal", "open": True},
        began_ms=50,
    )
    world.memory.apply(ticket)
    first, second = world.merge("a", "b"), world.merge("c", "a")
    told = [
        replace(ticket, stamp=(n,), values={**ticket.values, "customer": id})
        for n, id in ((2, "a"), (3, "c"))
    ]
    world.memory.apply(told[0])
    world.memory.apply_many(told)
    assert "t1" in world.shown("c")
    world.merges.undo(second, "", "bob")
    assert "t1" in world.shown("a"), "with whom it was before"
    world.merges.undo(first, "", "bob")
    assert "t1" in world.shown("b"), "and with whose it was"
    moved = replace(ticket, stamp=(4,), values={**ticket.values, "customer": "c"})
    world.memory.apply(moved)
    assert "t1" in world.shown("c"), "who names another, of whom nobody took over, means it"


def test_a_word_on_leaving_counts_with_whoever_holds_the_history() -> None:
    world = three()
    retention = Retention(world.store, FakeClock(NOW))
    now_ms = to_ms(NOW)
    flagged = Churn(customer="b", wants_to_leave=True, intent_ms=now_ms - 1)
    assert world.store.save_churn(flagged, [])
    merge = world.merge("a", "b")
    assert world.store.marked >= {"a", "b"}, "both are to be scored"
    assert retention._intent_ms("a", Churn(customer="a")) == now_ms - 1
    later = Churn(customer="a", wants_to_leave=False, intent_ms=now_ms)
    assert retention._intent_ms("a", later) == 0, "the last word counts"
    world.merges.undo(merge, "", "bob")
    assert retention._intent_ms("a", Churn(customer="a")) == 0
    world.erasures.erase("b", "4711", "dpo")
    assert world.store.save_churn(Churn(customer="b", score=0.5), [])
    assert retention.score("b").score == 0 and world.store.churn("b") is None


def test_who_said_on_an_unknown_number_that_he_leaves_is_known_later() -> None:
    world = World()
    heard: list[tuple[str, int, tuple[str, str, str]]] = []
    memory = Memory(world.store, FakeClock(NOW), lambda *said: heard.append(said))
    subject = timeline.subject_of_number(A)
    assert world.store.save_churn(Churn(customer=subject, wants_to_leave=True, intent_ms=7), [])
    world.create("a", A)
    for _ in range(2):
        memory.attach_numbers("a", [A])
    assert heard == [("a", 7, (A, "", ""))] and world.store.churn(subject) is None


def test_a_later_decision_about_consent_wins_and_comes_back() -> None:
    world = three()
    for id, at, granted in (("a", 5, True), ("b", 9, False)):
        decision = Consent(channel=Channel.SMS, purpose=Purpose.MARKETING, granted=granted, decided_ms=at)
        world.customers.decide_consent(id, decision, "amy")
    merge = world.merge("a", "b")
    assert [c.granted for c in world.content("a").consents] == [False]
    world.merges.undo(merge, "", "bob")
    assert [c.granted for c in world.content("a").consents] == [True]


class Dies(Exception):
    """A process that ends in the middle."""


@pytest.mark.parametrize("step", range(1, 9))
def test_a_saga_that_dies_after_any_write_is_finished_by_the_worker(step: int) -> None:
    world = three()
    before = {id: world.content(id) for id in "abc"}
    left = step

    def dying(name: str) -> None:
        original = getattr(world.store, name)

        def run(*args: object, **more: object) -> object:
            nonlocal left
            done = original(*args, **more)
            left -= 1
            if left == 0:
                raise Dies
            return done

        setattr(world.store, name, run)

    for name in ("save", "save_merge", "move_subject", "return_subjects"):
        dying(name)
    try:
        world.merge("a", "b", "c")
    except Dies:
        assert world.merges.resume() == 1 or not world.store.unfinished_merges(9)
    merge = world.store.merges("", None, 1)[0]
    assert merge.state is MergeState.MERGED and world.shown("a") == {f"call-{n}" for n in range(4)}
    assert {world.owner(number) for number in (A, B, C)} == {"a"}
    left = step
    try:
        world.merges.undo(merge.id, "", "bob")
    except Dies:
        world.merges.resume()
    assert {id: world.content(id) for id in "abc"} == before
    assert world.shown("b") == {"call-1", "call-2"} and world.owner(B) == "b"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("merge"), st.sampled_from("abcd"), st.sampled_from("abcd")),
        st.tuples(st.just("undo"), st.integers(0, 5), st.just("")),
        st.tuples(st.just("call"), st.integers(0, 30), st.integers(1, 4)),
        st.tuples(st.just("named"), st.integers(31, 50), st.sampled_from("abcd")),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(STEPS)
def test_whatever_happens_nothing_is_lost_or_doubled(steps: list[tuple[str, object, object]]) -> None:
    world = World()
    numbers = {n: f"+861380000000{n}" for n in range(1, 5)}
    for n, id in enumerate("abcd", start=1):
        world.create(id, numbers[n])
    before = {id: world.content(id) for id in "abcd"}
    told: set[str] = set()
    done: list[str] = []
    for kind, first, second in steps:
        try:
            if kind == "merge":
                done.append(world.merge(str(first), str(second)))
            elif kind == "undo" and done:
                world.merges.undo(done[int(str(first)) % len(done)], "", "bob")
            elif kind == "call":
                world.call(numbers[int(str(second))], int(str(first)))
                told.add(f"call-{first}")
            elif kind == "named":
                world.call("", int(str(first)), customer=str(second))
                told.add(f"call-{first}")
        except CallmeshError as error:
            assert error.reason in (
                *("INVALID_ARGUMENT", "CUSTOMER_MERGED", "MERGE_NOT_LAST", "CUSTOMER_NOT_ACTIVE"),
            )
        live = [id for id in "abcd" if world.content(id).state is State.ACTIVE]
        owners = [world.owner(number) for number in numbers.values()]
        assert set(owners) <= set(live) and None not in owners, "every number has one live owner"
        assert set().union(*(world.shown(id) for id in live)) == told, "all is shown with somebody live"
    for merge in reversed(done):
        world.merges.undo(merge, "", "bob")
    assert {id: world.content(id) for id in "abcd"} == before, "all undone: everybody is as before"


def test_erasure_leaves_a_stub_and_nothing_else() -> None:
    world = three()
    world.customers.update("b", lambda b: replace(b, notes="更多"), "amy")
    world.merge("a", "b")
    erased = world.erasures.erase("a", "ticket 4711", "dpo")
    assert erased.state is State.ERASED and erased.display_name == "" and not engine.claims(erased)
    assert world.owner(A) is None and world.content("b").display_name == ""
    texts = [str(e.facets) for e in world.store._entries.values() if e.subject == "c:a"]
    assert len(texts) == 3 and not any("secret" in text or "1380000" in text for text in texts)
    trail = world.customers.audit("a", None, 50)
    assert trail[0].action == "ERASE" and trail[0].actor == "dpo"
    assert [c.new for c in trail[0].changes if c.field == "reason"] == ['"ticket 4711"']
    assert all(not c.old and (c.field == "reason" or not c.new) for e in trail for c in e.changes)
    with pytest.raises(engine.CustomerNotActive):
        world.customers.update("a", lambda a: replace(a, notes="更多"), "amy")
    world.call(A, 30, customer="a")
    late = world.store.entry(timeline.entry_id(InteractionKind.CALL, "routing", "call-30"))
    assert late is not None and "secret" not in str(late.facets), "a late event brings nothing back"
    assert world.erasures.erase("a", "again", "dpo").version == erased.version
    assert not world.store.erase_pending(9)


def test_who_was_given_back_and_erased_stands_in_nobodys_trail() -> None:
    world = three()
    world.clock.advance(60)
    merge = world.merge("a", "b")
    world.clock.advance(60)
    world.merges.undo(merge, "", "bob")
    world.clock.advance(60)
    world.customers.update("a", lambda a: replace(a, notes="新的"), "amy")
    world.erasures.erase("b", "asked for it", "dpo")
    trail = world.customers.audit("a", None, 50)
    assert B not in str(trail) and "乙" not in str(trail)
    assert "新的" in str(trail[0].changes) and A in str(trail[-1].changes), "what is a's own stays"


def test_what_still_lies_with_a_number_is_erased_with_its_owner() -> None:
    world = World()
    world.call(A, 1)
    subject = timeline.subject_of_number(A)
    world.store.save_ranking(OfferRanking(subject=subject, stamp=(1, "d")))
    world.store.save_churn(Churn(customer=subject, wants_to_leave=True, intent_ms=1, comment="secret"), [])
    world.create("a", A)
    # The worker, which gives the customer what its number did before, is away.
    world.erasures.erase("a", "asked for it", "dpo")
    [entry] = world.store._entries.values()
    assert entry.subject == "c:a" and "secret" not in str(entry.facets) and A not in str(entry.facets)
    assert world.store.churn(subject) is None and not world.store.ranking(subject).stamp[0]


@pytest.mark.parametrize("step", range(1, 9))
def test_a_survivor_erased_while_it_merges_takes_nobody_into_nothing(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    world = three()
    before = {id: world.content(id) for id in "bc"}
    # The erasure looks for running merges before this one is journaled, and goes on in the midst of it.
    monkeypatch.setattr(world.store, "merge_running", lambda id: False)
    written = 0

    def in_between(name: str) -> None:
        real = getattr(world.store, name)

        def write(*args: Any, **options: Any) -> Any:
            nonlocal written
            written += 1
            if written == step:
                world.erasures.erase("a", "asked for it", "dpo")
            return real(*args, **options)

        monkeypatch.setattr(world.store, name, write)

    for name in ("insert_merge", "save", "save_merge"):
        in_between(name)
    merge = world.merges.get(world.merge("a", "b", "c"))
    stub = world.content("a")
    assert stub.state is State.ERASED and not stub.phone_numbers and not stub.notes and not stub.tags
    assert merge.state in (MergeState.MERGED, MergeState.UNMERGED) and not merge.gains
    for id, own in before.items():
        now = world.content(id)
        assert now == own or now.state is State.ERASED, f"{id} is neither alive nor erased: {now}"


def test_an_erasure_that_cannot_be_finished_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    world = three()
    scrub = world.store.scrub

    def failing(*ids: str) -> None:
        def scrubbed(id: str) -> None:
            if id in ids:
                raise Unavailable(why="a customer is changed by too many at once")
            scrub(id)

        monkeypatch.setattr(world.store, "scrub", scrubbed)

    failing("a", "b")
    for id in "ab":
        with pytest.raises(Unavailable):
            world.erasures.erase(id, "asked for it", "dpo")
    failing("a")
    assert world.erasures.resume() == 1
    assert [customer.id for customer in world.store.erase_pending(9)] == ["a"]


def test_a_repeated_merge_that_comes_in_between_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world = three()
    wish = MergeWish(survivor="a", absorbed=("b",), request_key="key", fingerprint="same")
    first: list[Merge] = []

    def before(name: str, act: Callable[[], Merge]) -> None:
        """The other call goes through right before the next of this name."""
        real = getattr(world.store, name)

        def late(*args: Any) -> Any:
            monkeypatch.setattr(world.store, name, real)
            first.append(act())
            return real(*args)

        monkeypatch.setattr(world.store, name, late)

    before("customer", lambda: world.merges.request(wish, "amy"))
    assert world.merges.request(wish, "amy") == first[0] and first[0].state is MergeState.MERGED
    before("save_merge", lambda: world.merges.undo(first[0].id, "mistake", "bob"))
    assert world.merges.undo(first[0].id, "mistake", "bob") == first[1]
    assert first[1].state is MergeState.UNMERGED and world.shown("b") == {"call-1", "call-2"}


def test_nothing_is_recorded_of_an_erased_customer() -> None:
    world = three()
    world.erasures.erase("a", "asked for it", "dpo")
    recorder = Recorder(world.store, FakeClock(NOW), Policy())
    note = Recording(
        kind=InteractionKind.NOTE,
        source="",
        source_id="",
        values={"text": "secret"},
        customer="a",
        number="",
        began_ms=None,
    )
    with pytest.raises(engine.CustomerNotActive):
        recorder.record(note, "amy")


def begun(world: World, *parties: str, key: str = "key") -> Merge:
    """A merge whose driver died before its first step."""
    merge = Merge(
        id="m", survivor=parties[0], absorbed=parties[1:], reason="", requester="amy",
        state=MergeState.MERGING, version=1, create_time=NOW, update_time=NOW,
    )  # fmt: skip
    return world.store.insert_merge(merge, key, "print")


def test_a_trial_of_a_merge_finds_one_that_runs() -> None:
    world = three()
    begun(world, "a", "b")
    for survivor, absorbed in (("a", "c"), ("c", "b"), ("b", "c")):
        for dry in (True, False):
            with pytest.raises(merging.MergeRunning):
                world.merges.request(MergeWish(survivor=survivor, absorbed=(absorbed,), dry=dry), "amy")


def test_a_trial_of_a_merge_that_was_begun_answers_it_and_drives_nothing() -> None:
    world = three()
    running = begun(world, "a", "b")
    before = {id: world.store.customer(id) for id in "abc"}
    wish = MergeWish(survivor="a", absorbed=("b",), request_key="key", fingerprint="print", dry=True)
    assert world.merges.request(wish, "amy") == running
    assert {id: world.store.customer(id) for id in "abc"} == before
    assert world.merges.request(replace(wish, dry=False), "amy").state is MergeState.MERGED
    assert world.merges.request(wish, "amy").state is MergeState.MERGED
