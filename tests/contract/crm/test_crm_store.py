"""One suite over both stores: what the ports promise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
import pytest_asyncio

from callmesh.crm.v1 import customers_pb2, events_pb2
from chassis.bus import Event
from chassis.errors import AlreadyExists, CallmeshError, EtagMismatch, InvalidArgument, NotFound
from chassis.idempotency import RequestIdReused
from chassis.lease import Lease
from chassis.mongo import async_database, connect, disconnect, ensure_indexes
from chassis.outbox import OutboxRelay
from chassis.testing import FakeClock
from crm import convert, documents, engine, glance, import_store, plans, schema, timeline, webhooks
from crm.care_handlers import Contracts
from crm.collections import ALL_DOCUMENTS
from crm.config import CrmSettings
from crm.handlers import Create, Customers, Memory, Policy
from crm.import_store import NewRow, ReadyRow
from crm.memory_store import MemoryReads, MemoryStore
from crm.model import (
    BirthDate,
    CachedOffer,
    Channel,
    Churn,
    ChurnReason,
    Consent,
    Contact,
    Customer,
    CustomerFilter,
    CustomField,
    EmailAddress,
    ExternalId,
    Fact,
    FieldKind,
    InteractionKind,
    Kind,
    PhoneNumber,
    PostalAddress,
    Purpose,
    QuietWindow,
    State,
    Tier,
    TimelineFilter,
    ValueClass,
)
from crm.sagas import Erasures, Merges, MergeWish
from crm.store import MongoReads, MongoStore, NewCustomer, Reads, Store
from crm.webhooks import Webhooks

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


@pytest.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.integration)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    if kind == "memory":
        yield MemoryStore()
        return
    settings = mongo_settings(request)
    database = connect(settings)
    ensure_indexes(documents.DOCUMENTS)
    with plans.profiled(database):
        yield MongoStore()
    scans = plans.scans_profiled(database)
    disconnect()
    assert not scans


@pytest_asyncio.fixture
async def reads(kind: str, store: Store, request: pytest.FixtureRequest) -> AsyncIterator[Reads]:
    if isinstance(store, MemoryStore):
        yield MemoryReads(store)
        return
    database = async_database(mongo_settings(request))
    yield MongoReads(database)
    await database.client.close()


def mongo_settings(request: pytest.FixtureRequest) -> CrmSettings:
    return CrmSettings(
        mongo_uri=request.getfixturevalue("mongo_uri"),
        mongo_database=request.getfixturevalue("mongo_database"),
    )


def draft(id: str, number: str = "", **more: Any) -> Customer:
    numbers = (PhoneNumber(number=number),) if number else ()
    return engine.normalise(
        Customer(id=id, display_name=f"名 {id}", phone_numbers=numbers, **more), "CN", NOW.date()
    )


def event(id: str) -> Event:
    return Event.of(
        events_pb2.CustomerCreated(actor="amy"), source="crm", subject=f"customers/{id}", time=NOW
    )


def new(
    id: str, number: str = "", *, key: str | None = None, fingerprint: str | None = None, **more: Any
) -> NewCustomer:
    change = engine.create(draft(id, number, **more), id, "amy", NOW)
    return NewCustomer(change=change, events=[event(id)], request_key=key, fingerprint=fingerprint)


def updated(store: Store, customer: Customer, **more: Any) -> Customer:
    change = engine.update(customer, replace(customer, **more), "bob", NOW + timedelta(minutes=1))
    assert change is not None
    store.save(change, [event(customer.id)])
    return change.customer


async def test_what_is_stored_comes_back_whole(store: Store, reads: Reads) -> None:
    full = new(
        "full",
        "13800000001",
        kind=Kind.PERSON,
        given_name="伟",
        family_name="张",
        email_addresses=(EmailAddress(address="z@example.com", label="home", verified=True),),
        external_ids=(ExternalId(system="billing", id="a:b/c"),),
        addresses=(PostalAddress(country="CN", township="福田街道", latitude=22.5, longitude=114.0),),
        tier=Tier.VIP,
        language="zh-CN",
        time_zone="Asia/Shanghai",
        home_region="regions/guangzhou",
        tags=("b", "a"),
        account_manager="mia",
        value_class=ValueClass.A,
        birth_date=BirthDate(month=2, day=29),
        notes="a\nb",
        quiet_windows=(
            QuietWindow(weekdays=(6, 7), start_minute=0, end_minute=600, channels=(Channel.SMS,)),
        ),
    )
    stored = store.insert(full)
    assert stored == full.change.customer == store.customer("full") == await reads.customer("full")
    company = new(
        "co",
        kind=Kind.COMPANY,
        contacts=(
            Contact(
                display_name="Wu",
                phone_numbers=(PhoneNumber(number="13800000002", label="x"),),
                email_addresses=(EmailAddress(address="wu@example.com"),),
                language="en",
            ),
        ),
    )
    store.insert(company)
    assert await reads.customer("co") == company.change.customer
    assert (await reads.owner("tel:+8613800000002")) == company.change.customer
    assert await reads.owner("mail:wu@example.com") == company.change.customer


async def test_what_does_not_exist(store: Store, reads: Reads) -> None:
    assert store.customer("x") is None and await reads.customer("x") is None
    assert await reads.owner("tel:+1") is None and store.owners(["tel:+1"]) == {} == store.owners([])
    assert await reads.customers(["x"]) == {} and await reads.page(CustomerFilter(), None, 10) == ([], None)
    assert store.entry("x") is None and await reads.interaction("x") is None
    assert store.audit("x", None, 10) == [] and store.attach("+1", "x") == 0
    assert await reads.rankings(["c:x"]) == () and (await reads.recent_calls(["c:x"], 0, "")).last is None
    assert await reads.open_tickets([]) == ((), 0)
    change = engine.delete(replace(draft("x"), version=1), "bob", NOW)
    assert change is not None
    with pytest.raises(NotFound):
        store.save(change, [])


def test_an_id_is_given_once(store: Store) -> None:
    store.insert(new("a"))
    with pytest.raises(AlreadyExists) as caught:
        store.insert(new("a", "13800000001"))
    assert caught.value.values["resource"] == "customers/a"
    assert store.owners(["tel:+8613800000001"]) == {}, "nothing of the refused one is left"


def test_many_customers_may_have_no_claim_at_all(store: Store) -> None:
    for id in ("a", "b", "c"):
        store.insert(new(id))
    for id in ("a", "b"):
        known = store.customer(id)
        assert known is not None
        deletion = engine.delete(known, "bob", NOW)
        assert deletion is not None
        store.save(deletion, [])
    found = [store.customer(id) for id in ("a", "b", "c")]
    assert [each and each.state for each in found] == [State.DELETED, State.DELETED, State.ACTIVE]


def test_a_number_has_one_owner_and_the_error_names_him(store: Store) -> None:
    store.insert(new("a", "13800000001"))
    with pytest.raises(engine.ClaimTaken) as caught:
        store.insert(new("b", "+86 138 0000 0001"))
    assert caught.value.values["owner"] == "customers/a"
    assert caught.value.values["field"] == "customer.phone_numbers[0].number"
    assert store.customer("b") is None
    other = store.insert(new("c", "13800000003"))
    with pytest.raises(engine.ClaimTaken):
        updated(store, other, phone_numbers=(PhoneNumber(number="+8613800000001", primary=True),))
    assert store.customer("c") == other, "nothing is half written"


def test_of_many_at_once_that_claim_one_number_one_wins(store: Store) -> None:
    def attempt(index: int) -> Customer | CallmeshError:
        try:
            return store.insert(new(f"c{index}", "13800000001"))
        except CallmeshError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(16)))
    winners = [outcome for outcome in outcomes if isinstance(outcome, Customer)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, engine.ClaimTaken)]
    assert len(winners) == 1 and len(losers) == 15
    assert {loser.values["owner"] for loser in losers} == {winners[0].name}


def test_a_released_number_is_free(store: Store) -> None:
    first = store.insert(new("a", "13800000001"))
    deletion = engine.delete(first, "bob", NOW)
    assert deletion is not None
    store.save(deletion, [])
    store.insert(new("b", "13800000001"))
    assert store.owners(["tel:+8613800000001"]) == {"tel:+8613800000001": "b"}
    with pytest.raises(engine.ClaimTaken):
        store.save(engine.undelete(deletion.customer, "bob", NOW), [])
    assert store.customer("a") == deletion.customer


def test_a_repeated_request_gets_the_first_result(store: Store) -> None:
    first = store.insert(new("a", "13800000001", key="k1", fingerprint="f"))
    again = store.insert(new("b", "13800000001", key="k1", fingerprint="f"))
    assert again == first and store.customer("b") is None
    with pytest.raises(RequestIdReused):
        store.insert(new("d", "13800000009", key="k1", fingerprint="other"))


def test_many_at_once_with_one_request_make_one_customer(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(
            pool.map(
                lambda i: store.insert(new(f"c{i}", "13800000001", key="k", fingerprint="f")).id, range(12)
            )
        )
    assert len(set(outcomes)) == 1


def test_a_batch_stores_the_good_and_tells_the_bad_in_order(store: Store) -> None:
    store.insert(new("a", "13800000001", key="k1", fingerprint="f"))
    outcomes = store.insert_many(
        [
            new("b", "13800000002", key="k2", fingerprint="f"),
            new("a", "13800000003"),
            new("c", "13800000001"),
            new("d", "13800000002"),
            new("e", "13800000001", key="k1", fingerprint="f"),
            new("f"),
        ]
    )
    told = [outcome.id if isinstance(outcome, Customer) else type(outcome).__name__ for outcome in outcomes]
    assert told == ["b", "AlreadyExists", "ClaimTaken", "ClaimTaken", "a", "f"]
    taken = outcomes[3]
    assert isinstance(taken, engine.ClaimTaken) and taken.values["owner"] == "customers/b"
    assert store.customer("b") == outcomes[0] and store.customer("d") is None
    assert store.insert_many([]) == []


def row(line: int, id: str, number: str = "") -> NewCustomer:
    made = new(id, number)
    told = convert.customer_created_told(made.change, import_store.event_id(f"i1:{line}"), None)
    return replace(made, events=[told], origin=f"i1:{line}")


def made_ready(store: Store, rows: Sequence[NewCustomer]) -> list[ReadyRow]:
    return [
        store.ready(
            NewRow(customer=r.change.customer, told=r.events[0].to_json(), wire=r.wire, origin=r.origin)
        )
        for r in rows
    ]


def brought(store: Store, rows: Sequence[NewCustomer]) -> list[str]:
    """What becomes of rows of a file: "" or the fault."""
    faults = store.import_many(made_ready(store, rows), rows.__getitem__)
    return ["" if fault is None else type(fault).__name__ for fault in faults]


def test_an_import_applied_again_comes_out_the_same(store: Store) -> None:
    store.insert(new("a", "13800000001"))
    rows = [row(1, "b", "13800000002"), row(2, "a", "13800000009"), row(3, "c", "13800000001"), row(4, "d")]
    # Two of its rows name the same id: the first has it, however often they come.
    rows.append(row(5, "b", "13800000005"))
    for _ in range(2):
        assert brought(store, rows) == ["", "AlreadyExists", "ClaimTaken", "", "AlreadyExists"]
    assert store.existing(["a", "b", "c", "d"]) == {"a", "b", "d"}
    # Another line of the same file is another customer.
    assert brought(store, [row(9, "b", "13800000002")]) == ["AlreadyExists"]


@pytest.mark.integration
class TestImportsInMongo:
    """What imported rows tell the others lies beside them."""

    @pytest.fixture
    def kind(self) -> str:
        return "mongo"

    def waiting(self) -> list[str]:
        found = documents.ImportedDocument._get_collection().find({"outbox_since": {"$exists": True}})
        return sorted(entry["id"] for batch in found for entry in batch["outbox"])

    def test_is_told_of_the_good_rows_alone(self, store: Store) -> None:
        store.insert(new("a", "13800000001"))
        brought(store, [row(1, "b"), row(2, "c", "13800000001"), row(3, "d")])
        assert self.waiting() == ["import:i1:1", "import:i1:3"]
        stored = documents.CustomerDocument._get_collection().find_one({"_id": "b"})
        assert stored["origin"] == "i1:1" and "outbox" not in stored
        brought(store, [row(2, "c", "13800000001")])
        assert documents.ImportedDocument._get_collection().count_documents({}) == 1

    def test_a_process_that_died_in_between_is_made_up_for(
        self, store: MongoStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [row(1, "b"), row(2, "c"), row(3, "d")]
        with monkeypatch.context() as patched, pytest.raises(ConnectionError):
            patched.setattr(import_store._Batch, "close", _dies)
            brought(store, rows[:2])
        documents.ImportedDocument._get_collection().update_one(
            {}, {"$push": {"outbox": {"id": "import:i1:3", "event": "{}", "customer": "d"}}}
        )
        assert self.waiting() == []
        assert store.finish_imports(datetime.now(UTC) - timedelta(hours=1)) == 0, "it may still be running"
        assert store.finish_imports(datetime.now(UTC) + timedelta(hours=1)) == 1
        assert self.waiting() == ["import:i1:1", "import:i1:2"], "of those that exist"

    def test_what_can_no_longer_be_decided_is_refused_alone(self, store: MongoStore) -> None:
        def again(place: int) -> NewCustomer:
            raise InvalidArgument(field="customer.custom_values.colour", why="is retired")

        store.insert(new("a"))
        rows = [row(1, "b"), row(2, "a"), row(3, "c")]
        faults = store.import_many(made_ready(store, rows), again)
        assert [type(fault) for fault in faults] == [type(None), InvalidArgument, type(None)]
        assert self.waiting() == ["import:i1:1", "import:i1:3"]

    def test_whoever_finishes_late_tells_everything(
        self, store: MongoStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        insert_ready = import_store.insert_ready

        def slowly(made: Any) -> set[int]:
            store.finish_imports(datetime.now(UTC) + timedelta(hours=1))
            return insert_ready(made)

        monkeypatch.setattr(import_store, "insert_ready", slowly)
        brought(store, [row(1, "b"), row(2, "c")])
        assert self.waiting() == ["import:i1:1", "import:i1:2"]

    def test_nothing_is_told_of_an_erased_customer(self, store: Store) -> None:
        brought(store, [row(1, "b"), row(2, "c")])
        found = store.customer("b")
        assert found is not None
        change = engine.erase(found, "asked for", "amy", NOW)
        assert change is not None
        store.save(change, [event("b")], erase_pending=True)
        store.scrub("b")
        assert self.waiting() == ["import:i1:2"]
        brought(store, [row(1, "b")])
        assert self.waiting() == ["import:i1:2"], "nor when its row is applied again"

    def test_a_batch_emptied_by_an_erasure_while_it_is_open_is_not_told(
        self, store: MongoStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        insert_ready = import_store.insert_ready

        def erased_at_once(made: Any) -> set[int]:
            clashes = insert_ready(made)
            store._scrub_imported("i1:1")
            return clashes

        monkeypatch.setattr(import_store, "insert_ready", erased_at_once)
        brought(store, [row(1, "b")])
        assert self.waiting() == [] and documents.ImportedDocument._get_collection().count_documents({}) == 1
        relay = OutboxRelay(
            [documents.ImportedDocument],
            cast(Any, None),
            Lease(documents.ImportedDocument._get_collection().database["leases"], "relay", "me", 10),
            service="crm",
        )
        assert relay.step() == 0, "there is nothing to publish"
        assert documents.ImportedDocument._get_collection().count_documents({}) == 0

    def test_large_batches_are_cut(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(import_store, "EVENTS_BYTES_MAX", 1500)
        brought(store, [row(line, f"b{line}") for line in range(10)])
        assert len(self.waiting()) == 10
        assert documents.ImportedDocument._get_collection().count_documents({}) >= 3


def _dies(*_: Any) -> None:
    raise ConnectionError("killed")


def test_a_stale_version_is_refused_and_changes_nothing(store: Store) -> None:
    first = store.insert(new("a"))
    second = updated(store, first, tier=Tier.GOLD)
    with pytest.raises(EtagMismatch):
        updated(store, first, tier=Tier.VIP)
    assert store.customer("a") == second
    assert second.version == 2


def test_of_two_writers_at_one_version_one_wins(store: Store) -> None:
    first = store.insert(new("a"))

    def attempt(index: int) -> bool:
        try:
            updated(store, first, notes=f"writer {index}")
            return True
        except EtagMismatch:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1
    assert [entry.version for entry in store.audit("a", None, 10)] == [2, 1]


def test_the_audit_trail_has_no_gap_however_long(store: Store) -> None:
    customer = store.insert(new("a"))
    for index in range(55):
        customer = updated(store, customer, notes=f"n{index}")
    every = store.audit("a", None, 100)
    assert [entry.version for entry in every] == list(range(56, 0, -1))
    assert every[0].changes[0].new == '"n54"' and every[-1].action == "CREATE" and every[-1].actor == "amy"
    assert [entry.version for entry in store.audit("a", 40, 5)] == [39, 38, 37, 36, 35]


async def test_a_list_is_in_the_order_of_ids_filtered_and_continued(store: Store, reads: Reads) -> None:
    for index in range(12):
        store.insert(
            new(
                f"c{index:02}",
                tier=Tier.VIP if index % 3 == 0 else Tier.STANDARD,
                tags=("even",) if index % 2 == 0 else (),
                value_class=ValueClass.B if index == 5 else ValueClass.NONE,
                account_manager="mia" if index > 9 else "",
                home_region="regions/chengdu" if index == 7 else "",
                kind=Kind.COMPANY if index == 1 else Kind.PERSON,
            )
        )
    gone = store.customer("c04")
    assert gone is not None
    deletion = engine.delete(gone, "bob", NOW)
    assert deletion is not None
    store.save(deletion, [])

    async def ids(after: str | None = None, limit: int = 99, **conditions: Any) -> list[str]:
        found, behind = await reads.page(CustomerFilter(**conditions), after, limit)
        assert behind == (found[-1].id if limit < 99 else None)
        return [customer.id for customer in found]

    assert await ids(limit=4) == ["c00", "c01", "c02", "c03"]
    assert await ids("c03", 2) == ["c05", "c06"]
    assert await ids("c03", 2, show_deleted=True) == ["c04", "c05"]
    assert await ids(tier=Tier.VIP) == ["c00", "c03", "c06", "c09"]
    assert await ids(tier=Tier.VIP, tag="even") == ["c00", "c06"]
    assert await ids(value_class=ValueClass.B) == ["c05"]
    assert await ids(account_manager="mia") == ["c10", "c11"]
    assert await ids(home_region="regions/chengdu") == ["c07"]
    assert await ids(kind=Kind.COMPANY) == ["c01"]
    assert await ids(tag="$ne") == await ids(tag="nobody") == []
    assert set(await reads.customers(["c01", "c04", "nobody"])) == {"c01", "c04"}


def call(id: str, began_ms: int, *, number: str = "+8613800000001", **values: Any) -> Fact:
    return Fact(
        kind=InteractionKind.CALL,
        source="routing",
        source_id=id,
        facet="ended",
        stamp=(1, 1, 1, 1),
        values={"state": "COMPLETED", "number": number, **values},
        began_ms=began_ms,
    )


def ticket(id: str, version: int, *, open: bool, began_ms: int = 1) -> Fact:
    values = {"ticket": f"tickets/{id}", "open": open, "priority": "HIGH", "number": "+8613800000001"}
    return Fact(
        kind=InteractionKind.TICKET, source="tickets", source_id=id, facet="snapshot", stamp=(version,),
        values=values, began_ms=began_ms,
    )  # fmt: skip


def put(store: Store, fact: Fact, subject: str) -> str:
    id = timeline.entry_id(fact.kind, fact.source, fact.source_id)
    known = store.entry(id)
    merged = timeline.entry_of(fact) if known is None else timeline.merge(known, fact)
    assert store.save_entry(replace(merged, subject=subject))
    return id


def test_an_interaction_is_written_only_over_what_was_read(store: Store) -> None:
    fresh = replace(timeline.entry_of(call("a", 5)), subject="n:+8613800000001")
    assert store.save_entry(fresh)
    assert not store.save_entry(fresh), "it exists"
    read = store.entry(fresh.id)
    assert read is not None and read.revision == 1 and read.facets == fresh.facets
    assert store.save_entry(replace(read, subject="c:1"))
    assert not store.save_entry(replace(read, subject="c:2")), "somebody was faster"
    again = store.entry(fresh.id)
    assert again is not None and again.subject == "c:1" and again.revision == 2


async def test_a_timeline_is_newest_first_over_all_its_subjects(store: Store, reads: Reads) -> None:
    ids = [
        put(store, call(f"k{i:02}", 1_000 + i // 3), "c:1" if i % 2 else "n:+8613800000001")
        for i in range(10)
    ]
    put(store, ticket("t", 1, open=True, began_ms=1_001), "c:1")
    put(store, call("other", 9_999), "c:2")
    subjects = ["c:1", "n:+8613800000001"]
    every = await reads.timeline(subjects, TimelineFilter(), None, 99)
    keys = [(item.began_ms, item.id) for item in every]
    assert keys == sorted(keys, reverse=True) and len(every) == 11
    pages = []
    after = None
    while page := await reads.timeline(subjects, TimelineFilter(), after, 2):
        pages += page
        after = (page[-1].began_ms, page[-1].id)
    assert pages == every, "paging neither repeats nor leaves out, also among entries of one instant"
    calls = await reads.timeline(subjects, TimelineFilter(kinds=frozenset({InteractionKind.CALL})), None, 99)
    assert {item.id for item in calls} == set(ids)
    some = await reads.timeline(subjects, TimelineFilter(from_ms=1_001, until_ms=1_003), None, 99)
    assert {item.began_ms for item in some} == {1_001, 1_002}
    cut = await reads.timeline(subjects, TimelineFilter(until_ms=1_003), (1_002, "zzz"), 99)
    assert cut[0].began_ms == 1_002
    assert await reads.timeline([], TimelineFilter(), None, 9) == []


async def test_calls_of_today_are_counted_without_the_live_one(store: Store, reads: Reads) -> None:
    subject = "c:1"
    for name, began_ms in (("yesterday", 50), ("first", 110), ("second", 120), ("live", 130)):
        put(store, call(name, began_ms, resolved=False), subject)
    live = timeline.entry_id(InteractionKind.CALL, "routing", "live")
    seen = await reads.recent_calls([subject], 100, live)
    assert seen.today == 2 and seen.last is not None and seen.last.source_id == "second"
    assert (await reads.recent_calls([subject], 100, "none")).today == 3
    later = await reads.recent_calls([subject], 125, live)
    assert later.today == 0 and later.last is not None and later.last.source_id == "second"


async def test_open_tickets_are_those_whose_newest_word_is_open(store: Store, reads: Reads) -> None:
    put(store, ticket("a", 1, open=True), "c:1")
    put(store, ticket("b", 1, open=True), "c:1")
    put(store, ticket("b", 2, open=False), "c:1")
    put(store, ticket("c", 1, open=False), "c:1")
    put(store, ticket("c", 2, open=True), "c:1")
    found, count = await reads.open_tickets(["c:1", "n:+1"])
    assert sorted(item.source_id for item in found) == ["a", "c"] and count == 2


async def test_a_numbers_interactions_move_to_its_customer_once(store: Store, reads: Reads) -> None:
    for name in ("a", "b"):
        put(store, call(name, 5), "n:+8613800000001")
    put(store, call("c", 5, number="+8613800000002"), "n:+8613800000002")
    assert store.attach("+8613800000001", "1") == 2
    assert store.attach("+8613800000001", "1") == 0
    assert len(await reads.timeline(["c:1"], TimelineFilter(), None, 9)) == 2
    stale = store.entry(timeline.entry_id(InteractionKind.CALL, "routing", "a"))
    assert stale is not None and stale.revision == 2, "a writer that read before the move is refused"


async def test_rankings(store: Store, reads: Reads) -> None:
    offers = (CachedOffer(offer="offers/a.b$c", titles={"zh": "甲"}, reasons={"en": "because"}, score=1.5),)
    first = glance.with_ranking(store.ranking("c:1"), (5, "d"), offers, 99)
    assert store.save_ranking(first) and not store.save_ranking(first)
    answered = glance.with_answer(store.ranking("c:1"), "offers/a.b$c", 7)
    assert store.save_ranking(answered) and not store.save_ranking(answered)
    (seen,) = await reads.rankings(["c:1", "n:+1"])
    assert (seen.offers, seen.expires_ms, seen.answers, seen.stamp) == (
        offers,
        99,
        {"offers/a.b$c": 7},
        (5, "d"),
    )


async def test_merge_unmerge_and_erase_are_alike_in_both_stores(store: Store, reads: Reads) -> None:
    clock, policy = FakeClock(NOW), Policy()
    customers, merges, memory = (
        Customers(store, clock, policy),
        Merges(store, clock),
        Memory(store, clock),
    )
    for id, number in (("a", "13800000001"), ("b", "13800000002"), ("c", "13800000003")):
        written = Customer(display_name=f"名 {id}", phone_numbers=(PhoneNumber(number=number),), notes=id)
        customers.create(Create(draft=written, id=id), "amy")
        memory.apply(call(f"call-{id}", 5, number=f"+86{number}"))
    before = {
        id: replace(store.customer(id) or Customer(), version=0, update_time=None, updater="") for id in "abc"
    }
    merge = merges.request(
        MergeWish(survivor="a", absorbed=("b", "c"), request_key="k", fingerprint="f"), "amy"
    )
    assert merge.moved == 2 and merges.request(
        MergeWish(survivor="a", absorbed=("b", "c"), request_key="k", fingerprint="f"), "amy"
    ) == merges.get(merge.id)
    assert set(store.owners([f"tel:+861380000000{n}" for n in (1, 2, 3)]).values()) == {"a"}
    shown = await reads.timeline(["c:a"], TimelineFilter(), None, 10)
    assert {item.source_id for item in shown} == {"call-a", "call-b", "call-c"}
    assert await reads.lineage(["a"], 9) == store.lineage(["a"], 9) and sorted(store.lineage(["a"], 9)) == [
        "b",
        "c",
    ]
    assert [m.id for m in store.merges("b", None, 5)] == [merge.id] and not store.unfinished_merges(5)
    answer = await reads.shown("a")
    assert isinstance(answer, bytes) and customers_pb2.Customer.FromString(answer).etag
    assert answer == await reads.shown_owner("tel:+8613800000003")
    merges.undo(merge.id, "b is 李薇", "bob")
    after = {
        id: replace(store.customer(id) or Customer(), version=0, update_time=None, updater="") for id in "abc"
    }
    assert after == before
    assert [i.source_id for i in await reads.timeline(["c:b"], TimelineFilter(), None, 9)] == ["call-b"]
    found = await reads.search([["w名"], ["wb"]], CustomerFilter(), 5)
    assert [customer.id for customer in found] == ["b"]
    assert {
        c.id for c in await reads.sharing(["d00000000138", "d00000001138", "d" + "0000000" + "1238"], 9)
    } <= {"a", "b", "c"}
    Erasures(store, clock).erase("b", "asked for it", "dpo")
    gone = store.customer("b")
    assert gone is not None and gone.display_name == "" and not store.erase_pending(5)
    assert merges.get(merge.id).undo_reason == ""
    trail = store.audit("b", None, 50)
    assert {c.field for e in trail for c in e.changes if c.new} == {"reason"} and trail[0].action == "ERASE"
    [left] = await reads.timeline(["c:b"], TimelineFilter(), None, 9)
    assert left.number == "" and left.source_id == "call-b"
    assert await reads.search([["wb"]], CustomerFilter(), 5) == []


def test_whoever_has_consented_is_changed_merged_given_back_and_erased_like_anybody(store: Store) -> None:
    """Times of decisions are numbers of 64 bits, which come back from MongoDB as a kind of their own."""
    customers, merges = Customers(store, FakeClock(NOW), Policy()), Merges(store, FakeClock(NOW))
    decided_ms = int(NOW.timestamp() * 1_000)
    mail = Consent(
        channel=Channel.EMAIL, purpose=Purpose.MARKETING, decided_ms=decided_ms, expires_ms=2 * decided_ms
    )
    for id in "ab":
        customers.create(Create(draft=Customer(display_name=id), id=id), "amy")
        customers.decide_consent(id, replace(mail, granted=True), "amy")
    customers.decide_consent("a", replace(mail, decided_ms=decided_ms + 1), "amy")
    customers.decide_consent("a", replace(mail, channel=Channel.SMS, granted=True), "amy")
    customers.decide_consent("b", replace(mail, channel=Channel.VOICE, granted=True), "amy")
    customers.update("a", lambda known: replace(known, notes="n"), "amy")
    customers.delete("a", "amy")
    customers.undelete("a", "amy")
    merge = merges.request(MergeWish(survivor="a", absorbed=("b",)), "amy")
    merges.undo(merge.id, "", "amy")
    held = store.customer("a")
    assert held is not None and held.notes == "n"
    assert [(one.channel, one.granted) for one in held.consents] == [("EMAIL", False), ("SMS", True)]
    numbers = [number for one in held.consents for number in (one.decided_ms, one.expires_ms)]
    assert {type(number) for number in numbers} == {int}
    Erasures(store, FakeClock(NOW)).erase("a", "asked for it", "dpo")
    assert [entry.action for entry in store.audit("a", None, 50)][:2] == ["ERASE", "UNMERGE"]


def test_a_custom_field_is_changed_by_one_at_a_time(store: Store) -> None:
    field = schema.declared(CustomField(id="", label="颜色", kind=FieldKind.TEXT), "colour", NOW)
    store.insert_custom_field(field)
    with pytest.raises(AlreadyExists):
        store.insert_custom_field(field)
    renamed = schema.changed(field, replace(field, label="Farbe"))
    assert renamed is not None
    store.save_custom_field(renamed)
    with pytest.raises(EtagMismatch):
        store.save_custom_field(renamed)
    with pytest.raises(NotFound):
        store.save_custom_field(replace(renamed, id="nobody"))
    assert store.custom_fields() == {"colour": renamed}


def test_a_churn_score_is_changed_by_one_at_a_time(store: Store) -> None:
    assert store.churn("a") is None
    first = Churn(customer="a", score=0.5, reasons=(ChurnReason(code="X", weight=0.5),))
    assert store.save_churn(first, []) and not store.save_churn(first, [])
    known = store.churn("a")
    assert known is not None and known.score == 0.5 and known.revision == 1 and known.reasons == first.reasons
    assert store.save_churn(replace(known, wants_to_leave=True), [], clean=True)


@pytest.mark.integration
def test_a_merge_is_not_undone_by_who_read_before_it(mongo_uri: str, mongo_database: str) -> None:
    connect(CrmSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(ALL_DOCUMENTS)
    store = MongoStore()
    for id in "ab":
        store.insert(new(id))
    contracts = Contracts(store, FakeClock(NOW))
    contracts.create("b", "k1", {"product": "fibre", "state": "ACTIVE"})

    def edit(raw: Any) -> dict[str, Any]:
        store.move_subject("b", "a")
        return {**raw, "title": "Fibre"}

    assert contracts.update("b", "k1", edit, None)["customer"] == "a"
    assert [held["title"] for held in contracts.page("a", None, 9)] == ["Fibre"]
    assert store.return_subjects("a", "b", ["b"]) == 0 and contracts.page("b", None, 9)
    store.move_subject("b", "a")
    store.scrub("a")
    assert contracts.page("a", None, 9), "what is shown with the erased one and not its own"
    disconnect()


@pytest.mark.integration
def test_deliveries_tell_nothing_of_an_erased_customer(mongo_uri: str, mongo_database: str) -> None:
    database = connect(CrmSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    ensure_indexes(ALL_DOCUMENTS)
    merged = engine.create(draft("b", "+8613800000001"), "b", "amy", NOW).customer
    message = events_pb2.CustomersUnmerged(
        survivor=convert.snapshot(draft("a")), restored=[convert.snapshot(merged)]
    )
    told = Event.of(message, source="crm", subject="customers/a", time=NOW)
    database.webhooks.insert_one(
        {"_id": "w", "version": 1, "enabled": True, "event_types": [told.type], "url": "https://x.example"}
    )
    hooks = Webhooks(FakeClock(NOW), cast(Any, None), known_types=[told.type], private=False)
    hooks.offer_all([told])
    webhooks.forget("customers/b", keep="")
    [left] = database.webhook_deliveries.find()
    assert "+8613800000001" not in left["body"] and '"redacted":true' in left["body"] and "about" not in left
    disconnect()


def test_what_a_request_created_is_found_by_its_key(store: Store) -> None:
    made = store.insert(new("li", "13800000001", key="k", fingerprint="f"))
    assert store.created_by_request("k", "f") == made
    assert store.created_by_request("other", "f") is None and store.created_by_request(None, None) is None
    with pytest.raises(RequestIdReused):
        store.created_by_request("k", "other")
