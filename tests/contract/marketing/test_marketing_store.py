"""What both stores must do alike."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from msgspec import structs
from tests.unit.marketing.marketing_examples import NOW, cny, moment, offer

from chassis import mongo
from chassis.errors import AlreadyExists, EtagMismatch
from chassis.idempotency import RequestIdReused
from marketing import call_counts, convert
from marketing.association import Counts, Smoothing
from marketing.config import MarketingSettings
from marketing.decision_figures import AGENT, KEYS, OFFER, REASON, REGION, TIME
from marketing.decision_store import DecisionFilter
from marketing.documents import DOCUMENTS, OfferDocument
from marketing.engine import (
    DecisionNotFound,
    ModelNotFound,
    OfferNotFound,
    OfferSoldOut,
    SupplyBelowUsed,
    close,
)
from marketing.kinds import ALL_DOCUMENTS, CONTACTS, RESPONSES
from marketing.memory_store import MemoryStore
from marketing.model import (
    CARE_MAX,
    Channel,
    Complaint,
    Contact,
    Decision,
    ModelInfo,
    ModelState,
    Offer,
    OfferState,
    Outcome,
    Profile,
    Purchase,
    Result,
)
from marketing.model_store import Serving
from marketing.offer_store import Claim, OfferFilter
from marketing.ranking import Ranker
from marketing.reader import MongoReader, Standing
from marketing.shelf import MongoShelves, Row
from marketing.store import MongoStore

REAL = datetime(2025, 6, 1, tzinfo=UTC)


class MongoPair(MongoStore):
    """Both ports on MongoDB, each read through a client of its own loop."""

    def __init__(self, settings: MarketingSettings) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("read_", "log_")):
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            database = mongo.async_database(self._settings)
            try:
                return await getattr(MongoReader(database), name)(*args, **kwargs)
            finally:
                await database.client.close()

        return call


@pytest.fixture(params=["memory", pytest.param("mongo", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "memory":
        yield MemoryStore()
        return
    settings = MarketingSettings(
        mongo_uri=request.getfixturevalue("mongo_uri"),
        mongo_database=request.getfixturevalue("mongo_database"),
    )
    mongo.connect(settings)
    mongo.ensure_indexes(ALL_DOCUMENTS)
    yield MongoPair(settings)
    mongo.disconnect()


def draft(id: str = "o1", **changes: Any) -> Offer:
    return offer(id=id, state=OfferState.DRAFT, **changes)


def add(store: Any, made: Offer) -> Offer:
    stored, created = store.insert_offer(made, (), request_key=None, fingerprint=None)
    assert created
    return stored


def decision(store: Any, id: str = "d1", *offers: Offer, **changes: Any) -> Decision:
    ranked = Ranker([replace(o, state=OfferState.PUBLISHED) for o in offers], Counts().table(model="")).rank(
        Profile(customer="c1"), Contact(), NOW, 10
    )
    made = Decision(
        id=id,
        customer="c1",
        number="+8613800138000",
        contact=Contact(call_id="call-1", channel=Channel.VOICE, agent="agents/7"),
        offers=ranked,
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=30),
    )
    return asyncio.run(
        store.log_decision(structs.replace(made, **changes), (), request_key=None, fingerprint=None)
    )


def standing(store: Any, customer: str, number: str = "", since: datetime | None = None) -> Standing:
    return asyncio.run(store.read_standing(customer, number, since))


def accept(offer_id: str) -> Outcome:
    return Outcome(offer=offer_id, result=Result.ACCEPTED, agent="agents/7", at=NOW)


# offers


def test_offer_comes_back_as_it_was_stored(store: Any) -> None:
    whole = draft(
        value=cny("12.345678"),
        valid_from=NOW,
        valid_until=NOW + timedelta(days=1),
        prerequisites=frozenset({"phone"}),
        exclusions=frozenset({"tv.old"}),
        stock=5,
        budget=cny("100.00"),
        unit_cost=cny("20.00"),
        tags=("a", "b"),
    )
    add(store, whole)
    assert store.offer("o1") == replace(whole, version=1)


def test_offer_ids_are_unique_and_requests_are_repeatable(store: Any) -> None:
    first, created = store.insert_offer(draft(), (), request_key="k1", fingerprint="f1")
    again, created_again = store.insert_offer(draft("other"), (), request_key="k1", fingerprint="f1")
    assert created and not created_again and again == first
    with pytest.raises(RequestIdReused):
        store.insert_offer(draft("other"), (), request_key="k1", fingerprint="f2")
    with pytest.raises(AlreadyExists):
        store.insert_offer(draft(), (), request_key="k2", fingerprint="f1")


def test_offers_are_listed_by_id_and_filtered(store: Any) -> None:
    for index in range(5):
        add(store, draft(f"o{index}", product=f"p{index % 2}", tags=("even",) if index % 2 == 0 else ()))
    assert [o.id for o in store.offers(OfferFilter(), 3, None)] == ["o0", "o1", "o2"]
    assert [o.id for o in store.offers(OfferFilter(), 3, "o2")] == ["o3", "o4"]
    assert [o.id for o in store.offers(OfferFilter(product="p1"), 9, None)] == ["o1", "o3"]
    assert [o.id for o in store.offers(OfferFilter(tag="even"), 9, "o0")] == ["o2", "o4"]
    assert store.offers(OfferFilter(state=OfferState.PUBLISHED), 9, None) == []


def test_update_wants_the_version_it_read_and_keeps_revisions(store: Any) -> None:
    first = add(store, draft())
    later = NOW + timedelta(seconds=5)
    second = store.update_offer(replace(first, product="tv"), (), later)
    assert (second.version, second.product, second.updated_at) == (2, "tv", later)
    with pytest.raises(EtagMismatch):
        store.update_offer(replace(first, product="radio"), (), later)
    with pytest.raises(OfferNotFound):
        store.update_offer(draft("nothing"), (), later)
    assert [(o.version, o.product) for o in store.revisions("o1", 9, None)] == [(2, "tv"), (1, "broadband")]
    assert [o.version for o in store.revisions("o1", 9, 2)] == [1]


def test_delete_wants_the_version_it_read(store: Any) -> None:
    first = add(store, draft())
    second = store.update_offer(replace(first, product="tv"), (), NOW)
    with pytest.raises(EtagMismatch):
        store.delete_offer(first)
    store.delete_offer(second)
    with pytest.raises(OfferNotFound):
        store.offer("o1")
    with pytest.raises(OfferNotFound):
        store.delete_offer(second)


# supply


def claim(token: str, offer_id: str = "o1") -> Claim:
    return Claim(offer=offer_id, token=token, decision=f"d-{token}")


def test_stock_and_budget_bound_the_claims(store: Any) -> None:
    add(store, draft(stock=5, budget=cny("50"), unit_cost=cny("20")))
    store.claim_unit(claim("a"), REAL)
    store.claim_unit(claim("b"), REAL)
    with pytest.raises(OfferSoldOut):
        store.claim_unit(claim("c"), REAL)
    present = store.offer("o1")
    assert (present.units_used, present.budget_used, present.version) == (2, Decimal(40), 1)
    store.release_claim("o1", "a")
    store.release_claim("o1", "a")
    assert (store.offer("o1").units_used, store.offer("o1").budget_used) == (1, Decimal(20))
    store.claim_unit(claim("c"), REAL)
    with pytest.raises(OfferNotFound):
        store.claim_unit(claim("x", "nothing"), REAL)


def test_settled_units_stay_sold_and_stale_claims_are_found(store: Any) -> None:
    add(store, draft(stock=2))
    store.claim_unit(claim("a"), REAL)
    store.claim_unit(claim("b"), REAL + timedelta(minutes=5))
    assert store.stale_claims(REAL + timedelta(minutes=1), 10) == [claim("a")]
    store.settle_claim("o1", "a")
    store.release_claim("o1", "a")
    assert store.offer("o1").units_used == 2
    assert store.stale_claims(REAL + timedelta(minutes=1), 10) == []


def test_supply_never_falls_below_what_is_used(store: Any) -> None:
    present = add(store, draft(stock=3, budget=cny("60"), unit_cost=cny("20")))
    store.claim_unit(claim("a"), REAL)
    store.claim_unit(claim("b"), REAL)
    with pytest.raises(SupplyBelowUsed):
        store.update_offer(replace(present, stock=1), (), NOW)
    with pytest.raises(SupplyBelowUsed):
        store.update_offer(replace(present, budget=cny("39.99")), (), NOW)
    stored = store.update_offer(replace(present, stock=2), (), NOW)
    assert (stored.stock, stored.units_used, stored.sold_out) == (2, 2, True)


def test_stock_is_never_oversold_by_many_at_once(store: Any) -> None:
    add(store, draft(stock=7))
    barrier, won = threading.Barrier(8), []

    def buy(worker: int) -> None:
        barrier.wait()
        for attempt in range(4):
            try:
                store.claim_unit(claim(f"{worker}-{attempt}"), REAL)
                won.append((worker, attempt))
            except OfferSoldOut:
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(buy, range(8)))
    assert len(won) == 7 == store.offer("o1").units_used


# decisions


def test_decision_comes_back_and_closes_once(store: Any) -> None:
    present = add(store, draft())
    made = decision(store, "d1", present)
    assert store.decision("d1") == made
    closed = store.close_decision(close(made, accept("o1"), "token"), ())
    assert store.decision("d1") == closed
    assert (closed.version, closed.claim, closed.unsettled) == (2, "token", True)
    with pytest.raises(EtagMismatch):
        store.close_decision(close(made, accept("o1"), "other"), ())
    assert [d.id for d in store.unsettled(10)] == ["d1"]
    store.mark_settled("d1")
    assert store.unsettled(10) == []
    with pytest.raises(DecisionNotFound):
        store.decision("d2")


def test_touching_fences_off_who_read_before(store: Any) -> None:
    made = decision(store, "d1", add(store, draft()))
    store.touch_decision(made)
    with pytest.raises(EtagMismatch):
        store.close_decision(close(made, accept("o1"), "t"), ())
    with pytest.raises(EtagMismatch):
        store.touch_decision(made)


def test_decisions_are_listed_newest_first_and_filtered(store: Any) -> None:
    present = add(store, draft())
    for index in range(4):
        decision(store, f"d{index}", present, customer=f"c{index % 2}")
    store.close_decision(close(store.decision("d3"), accept("o1"), ""), ())
    assert [d.id for d in store.decisions(DecisionFilter(), 2, None)] == ["d3", "d2"]
    assert [d.id for d in store.decisions(DecisionFilter(), 9, "d2")] == ["d1", "d0"]
    assert [d.id for d in store.decisions(DecisionFilter(customer="c1"), 9, None)] == ["d3", "d1"]
    assert [d.id for d in store.decisions(DecisionFilter(call_id="call-1", open=True), 9, None)] == [
        "d2",
        "d1",
        "d0",
    ]
    assert store.decisions(DecisionFilter(call_id="call-9"), 9, None) == []


def test_figures_of_a_span_count_what_was_offered_and_accepted_in_it(store: Any) -> None:
    one, day = add(store, draft()), timedelta(days=1)
    two = add(store, draft("o2", product="tv", value=cny("12.345678")))
    # The second offer was taken of d1, nothing of d2, the first of d3 a day later and by another agent.
    for index, ago in enumerate((0, 1, 2, 3)):
        offers = (one, two) if index else ()
        where = Contact(agent="agents/7", region="regions/r", reason="billing" if index > 1 else "")
        decision(store, f"d{index}", *offers, created_at=NOW - ago * day, contact=where)
    store.close_decision(close(store.decision("d1"), accept("o2"), ""), ())
    store.close_decision(
        close(store.decision("d2"), Outcome(offer="", result=Result.IGNORED, at=NOW), ""), ()
    )
    late = Outcome(offer="o1", result=Result.ACCEPTED, agent="agents/8", at=NOW - 2 * day)
    store.close_decision(close(store.decision("d3"), late, ""), ())

    def offered(start: datetime, end: datetime, *by: str) -> list[tuple[Any, ...]]:
        found = store.offered(start, end, [key for key in KEYS if key in by])
        return sorted((*each.values.values(), each.at, each.count) for each in found)

    first = store.decision("d2").offers[0].offer
    assert store.made_count(NOW - 3 * day, NOW, 9) == 3 and store.made_count(NOW - 3 * day, NOW, 2) == 2
    assert offered(NOW - 3 * day, NOW + day) == [(None, 3)] and offered(NOW, NOW + day) == []
    counted = Counter({("agents/7", "offers/o2", None): 1, ("agents/8", "offers/o1", None): 1})
    counted["agents/7", f"offers/{first}", None] += 1
    found = {tuple(each[:-1]): each[-1] for each in offered(NOW - 3 * day, NOW, AGENT, OFFER)}
    assert found == dict(counted)
    at = NOW - 2 * day
    assert offered(at, NOW - day, REGION, REASON, TIME) == [("regions/r", "billing", at, 1)]

    pages, after = [], None
    while found := store.accepted(NOW - 2 * day, NOW + day, 1, after):
        pages.append(found[0])
        after = (found[0].at, found[0].decision)
    assert [(a.decision, a.customer, a.made_at, a.at, a.offer, a.revision, a.worth) for a in pages] == [
        ("d1", "c1", NOW - day, NOW, "o2", two.version, Decimal("12.345678")),
        ("d3", "c1", NOW - 3 * day, NOW - 2 * day, "o1", one.version, one.worth.amount),
    ]
    assert pages[1].values == {
        AGENT: "agents/8", REGION: "regions/r", REASON: "billing", OFFER: "offers/o1"
    }  # fmt: skip
    assert store.accepted(NOW - 3 * day, NOW - 2 * day, 9, None) == []


def test_decisions_made_in_a_span_come_newest_first_in_pages(store: Any) -> None:
    present, day = add(store, draft()), timedelta(days=1)
    # Made by the business clock in another order than that of their ids; two at one moment.
    for id, days in (("d1", 1), ("d2", 3), ("d3", 2), ("d4", 2), ("d5", 0)):
        decision(store, id, present, created_at=NOW - days * day)

    def made(start: datetime, end: datetime) -> list[list[str]]:
        pages: list[list[str]] = []
        after = None
        while found := store.decisions_made(start, end, 2, after):
            pages.append([each.id for each in found])
            after = (found[-1].created_at, found[-1].id)
        return pages

    assert made(NOW - 3 * day, NOW) == [["d1", "d4"], ["d3", "d2"]]
    assert made(NOW - 2 * day, NOW - day) == [["d4", "d3"]]
    assert made(NOW, NOW + day) == [["d5"]] and made(NOW + day, NOW + 2 * day) == []


def test_responses_of_a_survey_are_counted(store: Any) -> None:
    shelves = store.shelves if isinstance(store, MemoryStore) else MongoShelves()
    day = timedelta(days=1)

    def respond(id: str, survey: str, ago: int | None, **resource: Any) -> None:
        keys = {"survey": survey, **({} if ago is None else {"completed_at": NOW - ago * day})}
        done = {} if ago is None else {"completed": True}
        shelves.insert(RESPONSES, Row(id=id, content={"resource": {**done, **resource}}, keys=keys), NOW)

    scale, choices = {"question_id": "q1"}, {"question_id": "q2"}
    respond(
        "r1", "s1", 3, satisfaction=0.25, answers=[{**scale, "value": 4}, {**choices, "choice_ids": ["a"]}]
    )
    respond("r2", "s1", 2, answers=[scale, {**choices, "choice_ids": ["a", "b"]}])
    respond("r3", "s1", 1, satisfaction=0.75, answers=[{**scale, "value": 4}])
    respond("r4", "s1", None, answers=[{**scale, "value": 9}])
    respond("r5", "s2", 1, answers=[{**scale, "value": 9}])

    every = store.survey_counts("s1", None, 9)
    assert (every.started, every.completed, every.truncated, every.satisfaction) == (4, 3, False, 0.5)
    assert every.choices == {("q2", "a"): 2, ("q2", "b"): 1}
    assert {key: n for key, n in every.values.items() if key[0] == "q1"} == {("q1", 4): 2, ("q1", 0): 1}
    of_two_days = store.survey_counts("s1", (NOW - 2 * day, NOW), 9)
    assert (of_two_days.started, of_two_days.completed, of_two_days.satisfaction) == (2, 2, 0.75)
    cut = store.survey_counts("s1", None, 2)
    assert (cut.started, cut.completed, cut.truncated) == (2, 1, True)
    assert not store.survey_counts("s1", (NOW - 2 * day, NOW), 2).truncated
    none = store.survey_counts("s3", None, 9)
    assert (none.started, none.completed, none.truncated, none.satisfaction) == (0, 0, False, None)


def test_what_was_offered_lately_is_counted_by_call(store: Any) -> None:
    on_sale = offer(id="o1")
    decision(store, "d1", on_sale)
    decision(store, "d2", on_sale)
    decision(store, "d3", on_sale, contact=Contact())
    decision(store, "d4", on_sale, created_at=NOW - timedelta(days=9), contact=Contact(call_id="old"))
    decision(store, "d5", contact=Contact(call_id="nothing"))
    lately = standing(store, "c1", "", NOW - timedelta(days=7))
    assert set(lately.made) == {"", "call-1"} and lately.profile is None
    assert (lately.contacts("call-1"), lately.contacts("other"), lately.contacts("")) == (1, 2, 2)
    assert not standing(store, "c1").made and not standing(store, "").made


def test_logging_a_decision_is_repeatable(store: Any) -> None:
    made = decision(store, "d1", add(store, draft()))

    async def log(id: str, fingerprint: str) -> Decision:
        return await store.log_decision(
            structs.replace(made, id=id), (), request_key="k1", fingerprint=fingerprint
        )

    first = asyncio.run(log("d2", "f1"))
    assert asyncio.run(log("d3", "f1")).id == first.id == "d2"
    assert asyncio.run(store.read_repeat("k1", "f1")).id == "d2"
    assert asyncio.run(store.read_repeat("k9", "f1")) is None
    with pytest.raises(RequestIdReused):
        asyncio.run(log("d4", "f2"))


# history


def bought(id: str, customer: str = "c1", product: str = "phone", seconds: int = 0) -> Purchase:
    return Purchase(
        id=id, customer=customer, product=product, at=NOW + timedelta(seconds=seconds), amount=cny("9.90")
    )


def test_purchases_count_once_and_make_the_profile(store: Any) -> None:
    assert store.add_purchases([bought("1"), bought("2", product="tv", seconds=1), bought("1")], NOW) == 2
    assert store.add_purchases([bought("1", product="other"), bought("3", "c2")], NOW) == 1
    assert store.profile("c1").products == {"phone", "tv"}
    assert store.history_changes() == 3
    assert sorted(map(sorted, store.baskets())) == [["phone"], ["phone", "tv"]]
    assert [p.id for p in store.purchases("c1", 9, None)] == ["2", "1"]
    assert [p.id for p in store.purchases("c1", 1, None)] == ["2"]
    assert [p.id for p in store.purchases("c1", 9, (NOW + timedelta(seconds=1), "2"))] == ["1"]
    assert store.purchases("c1", 1, None)[0].amount == cny("9.90")
    lately = store.purchases_within(["c1", "c9"], NOW + timedelta(seconds=1), NOW + timedelta(days=1))
    assert list(lately) == [("c1", "tv", NOW + timedelta(seconds=1))]


def test_only_newer_snapshots_count_and_history_stays(store: Any) -> None:
    store.add_purchases([bought("1")], NOW)
    told = Profile(
        customer="c1",
        numbers=("+8613800138000",),
        tier="gold",
        email_addresses=("li@example.net",),
        refused_channels=frozenset({Channel.SMS}),
        consents={Channel.EMAIL: NOW, Channel.VOICE: None},
        crm_version=3,
        updated_at=NOW,
    )
    assert store.save_profile(told)
    assert not store.save_profile(structs.replace(told, tier="silver", crm_version=2))
    assert not store.save_profile(structs.replace(told, tier="silver"))
    known = structs.replace(told, products=frozenset({"phone"}), bought_at={"phone": bought("1").at})
    assert store.profile("c1") == known
    assert standing(store, "c1").profile == store.profile("c1")
    assert asyncio.run(store.read_profile_of_number("+8613800138000")).customer == "c1"
    assert asyncio.run(store.read_profile_of_number("+8613900139000")) is None
    assert store.profile_of_number("+8613800138000").customer == "c1" and store.customer_count() == 1
    assert store.profile_of_number("+8613900139000") is None
    later = structs.replace(told, customer="c2", updated_at=NOW + timedelta(seconds=1))
    assert store.save_profile(later)
    owners = store.owners(["+8613800138000", "+8613900139000"])
    assert {number: one.customer for number, one in owners.items()} == {"+8613800138000": "c2"}
    assert standing(store, "nobody").profile is None


def test_the_latest_word_on_leaving_counts(store: Any) -> None:
    store.save_leave_intent("c1", True, NOW)
    store.save_leave_intent("c1", False, NOW - timedelta(seconds=1))
    assert store.profile("c1").wants_to_leave
    store.save_leave_intent("c1", False, NOW + timedelta(seconds=1))
    assert not store.profile("c1").wants_to_leave


def test_what_crm_sees_of_a_customer_is_kept_in_any_order(store: Any) -> None:
    for score, seconds in ((0.8, 0), (0.2, -1)):
        store.save_churn_risk("c1", score, NOW + timedelta(seconds=seconds))
    for task, kind in (("t1", "BIRTHDAY"), ("t2", ""), ("t2", "SILENCE"), ("t1", "BIRTHDAY")):
        store.save_care("c1", task, kind)
    assert store.save_profile(Profile(customer="c1", crm_version=1, updated_at=NOW))
    found = store.profile("c1")
    assert found.churn_risk == 0.8 and found.may_leave and found.care == {"t1": "BIRTHDAY", "t2": ""}
    store.save_care("c1", "t1", "")
    for n in range(CARE_MAX):
        store.save_care("c1", f"$more-{n}", "SILENCE")
    assert list(store.profile("c1").care) == [f"$more-{n}" for n in range(CARE_MAX)]
    store.erase("c1")
    assert store.profile("c1").care == {} and not store.profile("c1").may_leave


def test_merge_moves_history_and_unmerge_gives_it_back(store: Any) -> None:
    store.add_purchases([bought("1", "a", "phone"), bought("2", "b", "tv")], NOW)
    store.save_complaint(Complaint(ticket="t1", customer="b", number="", open=True, version=1))
    for _ in range(2):
        store.merge("b", "a", moment(5))
    assert store.profile("a").products == {"phone", "tv"}
    assert store.profile("b").products == frozenset() and store.profile("b").merged_into == "a"
    assert standing(store, "b").profile.customer == "a"
    assert standing(store, "a", "").complaining
    store.add_purchases([bought("3", "b", "radio")], NOW)
    assert store.profile("a").products == {"phone", "tv", "radio"}
    for _ in range(2):
        store.unmerge("b", "a", moment(6))
    assert store.profile("a").products == {"phone"}
    assert store.profile("b").products == {"tv", "radio"} and store.profile("b").alive
    store.merge("b", "a", moment(5))
    assert store.profile("b").merged_into == ""


def test_a_snapshot_of_before_a_merge_does_not_undo_it(store: Any) -> None:
    store.save_profile(Profile(customer="a", crm_version=4, updated_at=NOW))
    store.merge("b", "a", moment(4))
    late = Profile(customer="b", numbers=("+8613800138000",), crm_version=9, updated_at=NOW)
    assert store.save_profile(late)
    assert standing(store, "b").profile.customer == "a"
    assert asyncio.run(store.read_profile_of_number("+8613800138000")).customer == "a"
    store.unmerge("b", "a", moment(5))
    assert asyncio.run(store.read_profile_of_number("+8613800138000")).customer == "b"


def test_who_was_merged_is_known_by_the_survivor_and_given_back(store: Any) -> None:
    """a <- b <- c: words, occasions, offers made and fatigue are the survivor's, in any order of events."""
    day = timedelta(days=1)
    store.save_profile(Profile(customer="a", crm_version=1, updated_at=NOW))
    store.save_churn_risk("a", 0.2, NOW)
    store.save_leave_intent("c", True, NOW + day)
    store.save_care("c", "t1", "CONTRACT_EXPIRES")
    store.save_care("b", "t2", "BIRTHDAY")
    offered = add(store, draft())
    decision(store, "d1", offered, customer="c", contact=Contact(call_id="call-7"))
    open_one = decision(store, "d2", offered, customer="b", contact=Contact(call_id="call-8"))
    before = {who: store.profile(who) for who in "abc"}

    def merges() -> None:
        store.merge("b", "a", moment(6))
        store.merge("c", "b", moment(5))  # told late

    merges()
    merges()
    whole = store.profile("a")
    assert whole.wants_to_leave and set(whole.absorbed) == {"b", "c"}
    assert whole.care == {"t1": "CONTRACT_EXPIRES", "t2": "BIRTHDAY"} and whole.churn_risk == 0.2
    assert store.survivors(["c", "x"])["c"] == whole == standing(store, "c").profile
    # Two contacts in which something was offered: the survivor is as tired as both were.
    assert standing(store, "a", since=NOW - day).contacts("") == 2
    assert [d.id for d in store.decisions(DecisionFilter(customer="a"), 9, None)] == ["d2", "d1"]
    no = Outcome(offer="o1", result=Result.DECLINED, at=NOW)
    with pytest.raises(EtagMismatch):
        store.close_decision(close(open_one, no, ""), ())
    closed = close(store.decision("d2"), no, "")
    assert store.close_decision(closed, ()).made_for == "b"
    # What is told of one of them later reaches the survivor.
    store.save_care("c", "t1", "")
    store.save_churn_risk("b", 0.9, NOW + day)
    whole = store.profile("a")
    assert (whole.care, whole.churn_risk) == ({"t1": "", "t2": "BIRTHDAY"}, 0.9)
    store.save_churn_risk("a", 0.3, NOW + 2 * day)
    assert store.profile("a").churn_risk == 0.3
    for _ in range(2):
        store.unmerge("b", "a", moment(7))
    alone = store.profile("a")
    assert (alone.wants_to_leave, alone.care, alone.absorbed, alone.churn_risk) == (False, {}, (), 0.3)
    assert store.profile("b").absorbed == ("c",) and store.profile("b").wants_to_leave
    assert [d.id for d in store.decisions(DecisionFilter(customer="b"), 9, None)] == ["d2", "d1"]
    store.unmerge("c", "b", moment(8))
    assert (store.decision("d1").customer, store.decision("d1").made_for) == ("c", "")
    assert store.profile("c").care == {"t1": ""} and store.profile("c").wants_to_leave
    assert store.profile("b").care == before["b"].care
    store.merge("b", "a", moment(6))  # told again, too late
    assert store.profile("a").absorbed == ()
    store.merge("c", "a", moment(9))
    store.erase("c")
    assert (store.profile("a").absorbed, store.decision("d1").customer) == ((), "")


def test_erasing_leaves_nothing_personal(store: Any) -> None:
    store.add_purchases([bought("1")], NOW)
    known = Profile(customer="c1", numbers=("+8613800138000",), crm_version=1, updated_at=NOW)
    mail = {"email_addresses": ("li@example.net",), "consents": {Channel.EMAIL: None}}
    store.save_profile(structs.replace(known, **mail))
    made = decision(store, "d1", add(store, draft()))
    outcome = Outcome(offer="o1", result=Result.DECLINED, note="is moving to Chengdu", at=NOW)
    store.close_decision(close(made, outcome, ""), ())
    store.save_complaint(Complaint(ticket="t1", customer="c1", number="+8613800138000", open=True, version=1))
    for _ in range(2):
        store.erase("c1")
    assert store.purchases("c1", 9, None) == []
    gone = store.profile("c1")
    assert (gone.products, gone.email_addresses, gone.consents, gone.alive) == (frozenset(), (), {}, False)
    kept = store.decision("d1")
    assert (kept.customer, kept.number, kept.outcome.note) == ("", "", "")
    assert not standing(store, "c1", "+8613800138000").complaining


def test_who_was_erased_stays_so_whatever_is_told_later(store: Any) -> None:
    """a <- b, of whom a stays: it keeps what is its own, and nothing of b's."""
    day = timedelta(days=1)
    store.save_profile(Profile(customer="a", crm_version=1, updated_at=NOW))
    mine = replace(bought("1", "a", "phone"), at=NOW - day)
    store.add_purchases([mine, bought("2", "b", "tv"), bought("3", "b", "phone")], NOW)
    store.save_leave_intent("b", True, NOW)
    decision(store, "d1", add(store, draft()), customer="b")
    store.merge("b", "a", moment(5))
    store.save_profile(Profile(customer="b", crm_version=9, alive=False, merged_into="a", updated_at=NOW))
    assert store.profile("a").products == {"phone", "tv"} and store.erased(["a", "b"]) == set()
    for _ in range(2):
        store.erase("b")
    assert store.erased(["a", "b"]) == {"b"}
    late = Profile(customer="b", crm_version=10, display_name="Bela", updated_at=NOW)
    assert not store.save_profile(late)
    for told in (
        lambda: store.merge("b", "a", moment(5)),
        lambda: store.save_leave_intent("b", True, NOW + day),
        lambda: store.save_churn_risk("b", 0.9, NOW + day),
        lambda: store.save_care("b", "t1", "BIRTHDAY"),
        lambda: store.add_purchases([bought("4", "b", "radio")], NOW),
        lambda: store.save_complaint(
            Complaint(ticket="t1", customer="b", number="+8613800138000", open=True, version=1)
        ),
        lambda: store.unmerge("b", "a", moment(6)),
    ):
        told()
        gone, stays = store.profile("b"), store.profile("a")
        assert gone == Profile(customer="b", alive=False, crm_version=9, updated_at=NOW)
        assert (stays.products, stays.bought_at) == ({"phone"}, {"phone": NOW - day})
        assert (stays.absorbed, stays.wants_to_leave, stays.churn_risk, stays.care) == ((), False, 0.0, {})
    assert [purchase.id for purchase in store.purchases("a", 9, None)] == ["1"]
    assert not store.purchases("b", 9, None) and not standing(store, "b", "+8613800138000").complaining
    assert (store.decision("d1").customer, store.decision("d1").made_for) == ("", "")


def test_an_erased_survivor_takes_nothing_of_who_is_given_back_late(store: Any) -> None:
    store.add_purchases([bought("1", "a", "phone"), bought("2", "b", "tv")], NOW)
    decision(store, "d1", add(store, draft()), customer="b")
    store.merge("b", "a", moment(5))
    store.erase("a")
    store.unmerge("b", "a", moment(6))
    back = store.profile("b")
    assert (back.products, back.alive, back.merged_into) == ({"tv"}, True, "")
    assert store.decision("d1").customer == "b" and not store.profile("a").products


def test_numbers_of_callers_who_are_no_customers_grow_old(store: Any) -> None:
    offered = add(store, draft())
    for id, customer, age in (("d1", "", 31), ("d2", "", 29), ("d3", "c1", 31), ("d4", "", 32)):
        made = decision(store, id, offered, customer=customer, created_at=NOW - timedelta(days=age))
        outcome = Outcome(offer="o1", result=Result.DECLINED, note="is moving to Chengdu", at=NOW)
        if id != "d4":
            store.close_decision(close(made, outcome, ""), ())
    in_flight = store.decision("d4")
    before = NOW - timedelta(days=30)
    assert [store.forget_strangers(before, 1) for _ in range(3)] == [1, 1, 0]
    assert [bool(store.decision(f"d{n}").number) for n in (1, 2, 3, 4)] == [False, True, True, False]
    kept = store.decision("d1")
    assert (kept.outcome.result, kept.outcome.note, kept.offers) == (Result.DECLINED, "", in_flight.offers)
    # A closing that read the number before does not bring it back.
    with pytest.raises(EtagMismatch):
        store.close_decision(close(in_flight, accept("o1"), ""), ())
    store.close_decision(close(store.decision("d4"), accept("o1"), ""), ())
    assert store.forget_strangers(NOW, 9) == 1 and not store.decision("d4").number


# complaints


def test_complaints_are_found_by_customer_and_number_in_any_order_of_events(store: Any) -> None:
    opened = Complaint(ticket="t1", customer="c1", number="+8613800138000", open=True, version=1)
    assert store.save_complaint(opened)
    assert standing(store, "c1", "").complaining
    assert standing(store, "", "+8613800138000").complaining
    assert not standing(store, "c2", "+8613900139000").complaining
    assert not standing(store, "", "").complaining
    assert [c.ticket for c in store.open_complaints("c1", 9)] == ["t1"]
    assert store.save_complaint(replace(opened, open=False, version=3))
    assert not store.save_complaint(replace(opened, version=2))
    assert not standing(store, "c1", "+8613800138000").complaining
    store.save_complaint(replace(opened, version=4))
    assert [c.number for c in store.open_complaints("c1", 9)] == ["+8613800138000"]
    assert [c.ticket for c in store.open_complaints("", 9, "+8613800138000")] == ["t1"]
    assert store.open_complaints("", 9) == store.open_complaints("c2", 9, "+8613900139000") == []
    store.close_complaint("t1")
    store.close_complaint("unknown")
    assert store.open_complaints("c1", 9) == []


def test_an_undone_merge_gives_complaints_back(store: Any) -> None:
    """Complaints of customers who were one for a while, by the order in which both services are heard: "a"
    and "b" are tickets' word on whose it is, b is merged into a and given back.
    """
    stories = {
        "b merge": "a",
        "merge b": "a",
        "b merge unmerge": "b",
        "merge b unmerge": "b",
        # Tickets' words of a merge and of its end, before either is heard of crm, or in between.
        "b a b merge": "a",
        "b a b merge unmerge": "b",
        "b merge a unmerge": "b",
        "b merge a unmerge b": "b",
        "b merge a b unmerge": "b",
        "a merge b unmerge": "b",
        "b merge unmerge a": "a",
        "b merge unmerge a b": "b",
        "a merge unmerge": "a",
        "b merge unmerge merge": "b",
    }
    for number, (story, whose) in enumerate(stories.items()):
        people = {who: f"{who}{number}" for who in "ab"}
        told = Complaint(ticket=f"t{number}", customer="", number="", open=True, version=0)
        for version, act in enumerate(story.split(), 1):
            if act in people:
                assert store.save_complaint(replace(told, customer=people[act], version=version))
            else:
                # Each is told again, too late.
                move, at = getattr(store, act), moment(5 if act == "merge" else 6)
                for _ in range(2):
                    move(people["b"], people["a"], at)
        for who, customer in people.items():
            mine = [told.ticket] if who == whose else []
            assert [c.ticket for c in store.open_complaints(customer, 9)] == mine, story
            assert standing(store, customer).complaining == (who == whose), story


def test_who_solved_a_complaint_while_merged_takes_that_along(store: Any) -> None:
    told = Complaint(ticket="t1", customer="b", number="", open=True, version=1, at=NOW)
    store.save_profile(Profile(customer="a", crm_version=1, updated_at=NOW))
    store.save_profile(Profile(customer="b", crm_version=1, updated_at=NOW))
    store.save_complaint(told)
    store.merge("b", "a", moment(5))
    store.save_complaint(replace(told, customer="a", open=False, version=2))
    assert store.profile("a").complaint_closed_at == NOW
    store.unmerge("b", "a", moment(6))
    assert [store.profile(who).complaint_closed_at for who in "ab"] == [None, NOW]


def test_an_erased_survivor_leaves_complaints_of_who_is_given_back(store: Any) -> None:
    told = Complaint(ticket="t1", customer="b", number="+8613800138000", open=True, version=1)
    store.save_complaint(told)
    store.save_complaint(replace(told, ticket="t2", customer="a"))
    store.merge("b", "a", moment(5))
    for _ in range(2):
        store.erase("a")
    store.unmerge("b", "a", moment(6))
    assert [c.ticket for c in store.open_complaints("b", 9)] == ["t1"]
    store.merge("b", "c", moment(7))
    store.erase("b")
    assert not any(store.open_complaints(who, 9) for who in "abc")
    assert not standing(store, "c", "+8613800138000").complaining


# models


def info(number: int, state: ModelState = ModelState.READY, **changes: Any) -> ModelInfo:
    return ModelInfo(id=f"m{number}", version=number, state=state, created_at=NOW, **changes)


def test_table_is_read_back_whole_or_not_at_all(store: Any) -> None:
    counts = Counts()
    for basket in [{"a.b", "c"}, {"a.b"}, {"d"}]:
        counts.add(basket)
    table = counts.table(model="m1", smoothing=Smoothing(strength=7, rate=0.2))
    made = info(1, customer_count=3, example_count=table.facts, rule_count=table.rules)
    store.save_model(made, table.smoothing)
    with pytest.raises(ModelNotFound):
        store.table("m1")
    store.save_table(table)
    store.save_table(table)
    assert store.table("m1") == table == asyncio.run(store.read_table("m1"))
    store.save_model(replace(made, rule_count=99), table.smoothing)
    with pytest.raises(ModelNotFound):
        asyncio.run(store.read_table("m1"))


def test_serving_changes_by_version_and_shows_in_the_list(store: Any) -> None:
    for number in (1, 2):
        store.save_model(info(number), Smoothing())
    with pytest.raises(AlreadyExists):
        store.save_model(replace(info(2), id="other"), Smoothing())
    assert store.serving() == Serving() == asyncio.run(store.read_serving())
    first = store.serve_model(Serving(model="m1", since=NOW, history=3), (), NOW)
    with pytest.raises(EtagMismatch):
        store.serve_model(Serving(model="m2"), (), NOW)
    event = convert.model_event("m2", "m1", False, NOW)
    second = store.serve_model(replace(first, model="m2", earlier=("m1",)), (event,), NOW)
    assert store.serving() == second == asyncio.run(store.read_serving())
    with pytest.raises(EtagMismatch):
        store.serve_model(first, (), NOW)
    assert [(m.version, m.state) for m in store.models(9, None)] == [
        (2, ModelState.ACTIVE),
        (1, ModelState.READY),
    ]
    assert [m.version for m in store.models(9, 2)] == [1]
    assert store.model("m2").activated_at == NOW


def test_old_models_go_but_not_the_one_that_serves(store: Any) -> None:
    for number in range(1, 6):
        store.save_model(info(number), Smoothing())
    store.serve_model(Serving(model="m1"), (), NOW)
    assert store.drop_models(2) == 2
    assert [m.id for m in store.models(9, None)] == ["m5", "m4", "m1"]
    with pytest.raises(ModelNotFound):
        store.model("m2")


def test_published_offers_are_read_for_ranking(store: Any) -> None:
    add(store, draft("o1"))
    present = add(store, draft("o2"))
    store.update_offer(replace(present, state=OfferState.PUBLISHED, published_at=NOW), (), NOW)
    assert [o.id for o in asyncio.run(store.read_published())] == ["o2"]


@pytest.mark.integration
async def test_a_reader_sees_each_change_of_the_catalogue(mongo_uri: str, mongo_database: str) -> None:
    settings = MarketingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database)
    mongo.connect(settings)
    mongo.ensure_indexes(DOCUMENTS)
    database = mongo.async_database(settings)
    store, reader = MongoStore(), MongoReader(database)

    async def told() -> list[tuple[str, int, bool]]:
        first = [(o.id, o.units_used, o.sold_out) for o in await reader.read_published()]
        # What nobody changed is the same a second time.
        assert first == [(o.id, o.units_used, o.sold_out) for o in await reader.read_published()]
        return first

    def publish(id: str) -> Offer:
        return store.update_offer(
            replace(add(store, draft(id, stock=1)), state=OfferState.PUBLISHED), (), NOW
        )

    try:
        assert await told() == []
        published = publish("o2")
        assert await told() == [("o2", 0, False)]
        store.claim_unit(Claim(offer="o2", token="t", decision="d"), REAL)
        assert await told() == [("o2", 1, True)]
        publish("o1")
        assert await told() == [("o1", 0, False), ("o2", 1, True)]
        store.update_offer(replace(published, state=OfferState.RETIRED), (), NOW)
        assert await told() == [("o1", 0, False)]
    finally:
        await database.client.close()
        mongo.disconnect()


@pytest.mark.integration
def test_every_query_uses_an_index(mongo_uri: str, mongo_database: str) -> None:
    mongo.connect(MarketingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    try:
        mongo.ensure_indexes(DOCUMENTS)
        database = OfferDocument._get_db()
        queries: list[tuple[str, dict[str, Any], list[tuple[str, int]]]] = [
            ("offers", {"state": "PUBLISHED"}, [("_id", 1)]),
            ("offers", {"product": "p", "_id": {"$gt": "a"}}, [("_id", 1)]),
            ("offers", {"tags": "t"}, [("_id", 1)]),
            ("offers", {"claims.at": {"$lt": REAL}}, []),
            ("offer_revisions", {"offer": "o", "version": {"$lt": 3}}, [("version", -1)]),
            ("decisions", {"customer": "c"}, [("_id", -1)]),
            ("decisions", {"call_id": "c", "_id": {"$lt": "z"}}, [("_id", -1)]),
            ("decisions", {"open": True}, [("_id", -1)]),
            ("decisions", {"unsettled": True}, [("_id", 1)]),
            ("decisions", {"made_for": {"$in": ["c", "d"]}}, []),
            ("decisions", {"request_key": "k"}, []),
            ("decisions", {"stranger": True, "number": {"$in": ["n"]}}, []),
            ("decisions", {"stranger": True, "created_at": {"$lt": REAL}}, []),
            ("profiles", {"numbers": "+1"}, [("updated_at", -1)]),
            ("complaints", {"$or": [{"customer": "c", "open": True}, {"number": "n", "open": True}]}, []),
            ("complaints", {"made_for": {"$in": ["c", "d"]}}, []),
            ("purchases", {"customer": "c"}, [("at", -1), ("_id", -1)]),
            ("purchases", {"bought_by": "c"}, []),
            ("models", {"number": {"$lt": 9}}, [("number", -1)]),
            ("model_rows", {"model": "m"}, []),
        ]
        for collection, condition, order in queries:
            cursor = database[collection].find(condition)
            plan = str((cursor.sort(order) if order else cursor).explain()["queryPlanner"]["winningPlan"])
            assert "IXSCAN" in plan and "COLLSCAN" not in plan and "'SORT'" not in plan, (
                collection,
                condition,
            )
    finally:
        mongo.disconnect()


def test_how_often_a_number_was_called_is_kept_with_its_contacts(store: Any) -> None:
    shelves = store.shelves if isinstance(store, MemoryStore) else MongoShelves()
    number, day = {"number": "+8613800138000"}, timedelta(days=1)
    for id, minutes in (("a", (0, 10)), ("b", (20,))):
        shelves.insert(CONTACTS, Row(id=id, content={}, keys=number), NOW)
        for attempt, minute in enumerate(minutes):
            row = call_counts.begun(shelves.get(CONTACTS, id), attempt, NOW + timedelta(minutes=minute))
            shelves.update(CONTACTS, row, NOW)
    rows = shelves.find(CONTACTS, number, 9)
    now, mine = NOW + timedelta(hours=1), shelves.get(CONTACTS, "b")
    free = [call_counts.free_at(rows, "b", 1, most, now) for most in (1, 2, 3, 4)]
    assert free == [NOW + day + timedelta(minutes=minute) for minute in (20, 10, 0)] + [now]
    assert call_counts.free_at(rows, "b", 0, 3, now) == now, "the attempt itself is not one before it"
    later = NOW + day + timedelta(minutes=1)
    assert call_counts.free_at(rows, "b", 1, 3, later) == later, "the first is a day ago"
    undone = call_counts.not_begun(mine, 0)
    assert call_counts.free_at([*rows[:1], undone], "b", 1, 3, now) == now
