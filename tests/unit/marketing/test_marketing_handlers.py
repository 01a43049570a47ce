"""The use cases on the memory store: what is decided, what is told, what a crash in between leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.marketing.marketing_examples import NOW, cny, moment, offer

from chassis.errors import EtagMismatch, Unavailable
from chassis.testing import FakeClock
from marketing.association import Smoothing
from marketing.engine import (
    DecisionClosed,
    DecisionNotFound,
    ModelNotFound,
    OfferNotInDecision,
    OfferNotPublishable,
    OfferNotPublished,
    OfferPublished,
    OfferSoldOut,
    ProfileNotFound,
)
from marketing.handlers import (
    Decisions,
    Facts,
    History,
    ModelNotReady,
    Models,
    NoEarlierModel,
    Offers,
    Recommender,
    Upkeep,
    settle,
)
from marketing.kinds import PROPENSITY, PROPENSITY_MODELS, PROPENSITY_SERVING
from marketing.memory_store import MemoryStore
from marketing.model import (
    Channel,
    Complaint,
    Contact,
    Decision,
    ModelState,
    NoOffer,
    OfferState,
    OfferVerb,
    Outcome,
    Profile,
    Purchase,
    ReasonCode,
    Result,
)
from marketing.offer_store import Claim
from marketing.policy import Policy
from marketing.ranker_cache import CatalogueUnavailable, RankerCache
from marketing.shelf import Row


class World:
    """Everything on one memory store and one clock."""

    def __init__(self, store: Any = None) -> None:
        self.clock = FakeClock(NOW)
        self.store = store or MemoryStore()
        self.cache = RankerCache(self.store, self.clock, fresh_seconds=1, stale_seconds=30)
        self.offers = Offers(self.store, self.clock, self.cache.expire)
        self.recommender = Recommender(self.store, self.cache, self.clock, 30)
        self.decisions = Decisions(self.store, self.clock)
        self.history = History(self.store, self.clock)
        self.models = Models(self.store, self.clock, Smoothing(), 3)
        self.upkeep = Upkeep(self.store, self.clock, 60)
        self.facts = Facts(self.store)

    def publish(self, id: str, **changes: Any) -> None:
        self.offers.create(offer(id=id, **changes), request_key=None, fingerprint=None)
        self.offers.move(id, None, OfferVerb.PUBLISH)

    def buy(self, customer: str, *products: str) -> None:
        self.history.record(
            [Purchase(id=f"{customer}-{p}", customer=customer, product=p, at=NOW) for p in products]
        )

    def recommend(
        self, customer: str = "c1", number: str = "", contact: Contact | None = None, limit: int = 3
    ) -> Decision:
        return asyncio.run(self.recommender.recommend(customer, number, contact or Contact(), limit))

    def types(self) -> list[str]:
        return [event.type.rsplit(".", 1)[1] for event in self.store.events]


def outcome(offer_id: str, result: Result = Result.ACCEPTED, **changes: Any) -> Outcome:
    return Outcome(offer=offer_id, result=result, at=NOW, **changes)


# offers


def test_an_offers_life_is_told_once_it_is_public() -> None:
    world = World()
    world.offers.create(offer(id="o1"), request_key=None, fingerprint=None)
    world.offers.update("o1", None, lambda o: replace(o, product="tv"))
    assert world.types() == []
    published = world.offers.move("o1", None, OfferVerb.PUBLISH)
    assert (published.state, published.published_at, published.version) == (OfferState.PUBLISHED, NOW, 3)
    assert world.offers.move("o1", None, OfferVerb.PUBLISH) == published
    world.offers.update("o1", 3, lambda o: replace(o, price=cny("1")))
    world.offers.update("o1", 4, lambda o: o)
    world.offers.move("o1", 4, OfferVerb.RETIRE)
    assert world.types() == ["OfferPublished", "OfferUpdated", "OfferRetired"]
    assert [e.data["offer"]["revision"] for e in world.store.events] == ["3", "4", "5"]
    world.offers.delete("o1", 5)


def test_offers_refuse_what_their_state_forbids() -> None:
    world = World()
    world.publish("o1")
    with pytest.raises(OfferPublished):
        world.offers.delete("o1", None)
    with pytest.raises(EtagMismatch):
        world.offers.move("o1", 1, OfferVerb.RETIRE)
    world.offers.create(
        offer(id="o2", valid_until=NOW - timedelta(days=1), scripts=()), request_key=None, fingerprint=None
    )
    with pytest.raises(OfferNotPublishable, match="validity is over; it has no script"):
        world.offers.move("o2", None, OfferVerb.PUBLISH)
    with pytest.raises(OfferNotPublished):
        world.offers.move("o2", None, OfferVerb.RETIRE)


def test_validate_only_changes_nothing() -> None:
    world = World()
    world.offers.create(offer(id="o1"), request_key=None, fingerprint=None, validate_only=True)
    assert world.store._offers == {}
    world.publish("o1")
    changed = world.offers.update("o1", None, lambda o: replace(o, product="tv"), validate_only=True)
    assert changed.product == "tv" and world.offers.get("o1").product == "broadband"


# recommending


def test_recommendation_is_logged_and_told() -> None:
    world = World()
    world.publish("o1", value=cny("20"))
    made = world.recommend(number="+8613800138000", contact=Contact(call_id="k1", agent="agents/7"))
    assert [entry.offer for entry in made.offers] == ["o1"] and made.no_offer is None
    assert world.decisions.get(made.id) == made
    event = world.store.events[-1]
    assert (event.type, event.subject) == ("callmesh.marketing.v1.RecommendationMade", "customers/c1")
    assert event.data["callId"] == "k1" and event.data["offers"][0]["offer"] == "offers/o1"
    assert made.offers[0].score == pytest.approx(20 * made.offers[0].probability)
    assert made.expires_at - made.created_at == timedelta(minutes=30)


def test_history_speaks_once_a_model_is_built() -> None:
    world = World()
    world.publish("phone-x", product="phone", price=cny("100"))
    world.publish("tv-x", product="tv", price=cny("100"))
    for index in range(60):
        world.buy(f"b{index}", "broadband", *(["tv"] if index < 40 else []))
    for index in range(300):
        world.buy(f"p{index}", "phone")
    world.buy("c1", "broadband")
    assert world.models.due()
    built = world.models.build()
    assert built.state is ModelState.ACTIVE and not world.models.due()
    world.clock.advance(2)
    world.recommend()
    made = world.recommend()
    assert [entry.offer for entry in made.offers] == ["tv-x", "phone-x"] and made.model == built.id
    assert made.offers[0].reason.code is ReasonCode.ASSOCIATION
    assert made.offers[0].reason.because_product == "broadband"
    assert [entry.offer for entry in world.recommend(customer="").offers] == ["phone-x", "tv-x"]


@pytest.mark.parametrize(
    ("contact", "refused", "complaint", "reason"),
    [
        (Contact(), (), True, NoOffer.OPEN_COMPLAINT),
        (Contact(unresolved=True), (), True, NoOffer.OPEN_COMPLAINT),
        (Contact(unresolved=True), (), False, NoOffer.MATTER_UNRESOLVED),
        (Contact(), (Channel.VOICE,), False, NoOffer.NO_CONSENT),
        (Contact(channel=Channel.CHAT), (Channel.VOICE,), False, None),
    ],
)
def test_nothing_is_offered_when_it_would_hurt(
    contact: Contact, refused: Sequence[Channel], complaint: bool, reason: NoOffer | None
) -> None:
    world = World()
    world.publish("o1")
    world.facts.customer(Profile(customer="c1", refused_channels=frozenset(refused), crm_version=1))
    if complaint:
        world.facts.complaint(Complaint(ticket="t1", customer="c1", number="", open=True, version=1))
    made = world.recommend(contact=contact)
    assert made.no_offer is reason and bool(made.offers) is (reason is None)


def test_a_complaint_of_the_number_counts_and_its_end_too() -> None:
    world = World()
    world.publish("o1")
    told = Complaint(ticket="t1", customer="", number="+8613800138000", open=True, version=1)
    world.facts.complaint(told)
    assert world.recommend("", "+8613800138000").no_offer is NoOffer.OPEN_COMPLAINT
    world.facts.complaint(replace(told, open=False, version=2))
    assert world.recommend("", "+8613800138000").no_offer is None


def test_number_finds_the_customer_and_nothing_eligible_is_an_answer() -> None:
    world = World()
    world.publish("o1")
    world.facts.customer(Profile(customer="c1", numbers=("+8613800138000",), crm_version=1, updated_at=NOW))
    world.buy("c1", "broadband")
    made = world.recommend("", "+8613800138000")
    assert (made.customer, made.offers, made.no_offer) == ("c1", (), NoOffer.NOTHING_ELIGIBLE)


def test_a_deleted_customer_is_a_stranger_and_a_merged_one_is_the_survivor() -> None:
    world = World()
    world.publish("o1")
    world.facts.customer(Profile(customer="gone", alive=False, crm_version=1))
    assert world.recommend("gone").customer == ""
    world.facts.merged(Profile(customer="c1", crm_version=4), ["old"], moment(1))
    world.facts.complaint(Complaint(ticket="t1", customer="c1", number="", open=True, version=1))
    made = world.recommend("old")
    assert (made.customer, made.no_offer) == ("c1", NoOffer.OPEN_COMPLAINT)
    given_back = Profile(customer="old", crm_version=7, updated_at=NOW)
    world.facts.unmerged(Profile(customer="c1", crm_version=5), [given_back], moment(2))
    assert world.recommend("old").customer == "old"
    # With another survivor, who has changed less often than the first one had.
    world.facts.merged(Profile(customer="c2", crm_version=1), ["old"], moment(3))
    assert world.recommend("old").customer == "c2"


def test_whom_enough_was_offered_lately_is_left_alone() -> None:
    world = World()
    world.publish("o1")
    world.cache._default_policy = Policy(fatigue_offers_max=2, fatigue_days=7)
    asked = [world.recommend(contact=Contact(call_id=call)) for call in ("k1", "k1", "k1", "k2", "k2")]
    assert all(made.offers for made in asked)
    assert world.recommend(contact=Contact(call_id="k3")).no_offer is NoOffer.FATIGUE
    # The same call does not count against itself, other customers are not tired, and a week is a week.
    assert world.recommend(contact=Contact(call_id="k2")).offers
    assert world.recommend("c2").offers
    world.clock.advance(7 * 86_400 + 1)
    assert world.recommend(contact=Contact(call_id="k4")).offers


def test_repeated_request_gets_the_first_decision() -> None:
    world = World()
    world.publish("o1")

    async def ask() -> tuple[Decision, Decision]:
        call = world.recommender.recommend
        first = await call("c1", "", Contact(), 3, request_key="k", fingerprint="f")
        return first, await call("c1", "", Contact(), 3, request_key="k", fingerprint="f")

    first, again = asyncio.run(ask())
    assert first == again and len(world.types()) == 2


# the cache


class Failing(MemoryStore):
    """Reads fail while `broken`."""

    broken = False

    async def read_published(self) -> Any:
        if self.broken:
            raise Unavailable(why="away")
        return await super().read_published()


def test_the_last_good_catalogue_serves_for_a_while() -> None:
    world = World(Failing())
    world.publish("o1")

    async def story() -> None:
        assert len((await world.recommender.recommend("c1", "", Contact(), 3)).offers) == 1
        world.store.broken = True
        world.clock.advance(20)
        assert len((await world.recommender.recommend("c1", "", Contact(), 3)).offers) == 1
        world.clock.advance(20)
        with pytest.raises(CatalogueUnavailable):
            await world.recommender.recommend("c1", "", Contact(), 3)
        world.store.broken = False
        assert len((await world.recommender.recommend("c1", "", Contact(), 3)).offers) == 1

    asyncio.run(story())


@pytest.mark.parametrize("weights", [[], [["base", float("nan")]], [["base", 1e9]], [["base"]], "none", None])
def test_a_broken_propensity_model_leaves_the_last_good_one(weights: Any) -> None:
    world = World()
    world.publish("o1")

    def serve(id: str, weights: Any, version: int) -> None:
        content = {"state": "READY", "weights": weights}
        world.store.shelves.insert(
            PROPENSITY_MODELS, Row(id=id, content=content, keys={"number": version}), NOW
        )
        row = Row(id=PROPENSITY, content={"model": id}, version=version - 1)
        if version == 1:
            world.store.shelves.insert(PROPENSITY_SERVING, row, NOW)
        else:
            world.store.shelves.update(PROPENSITY_SERVING, row, NOW)
        world.cache.expire()

    plain = world.recommend().offers[0].probability
    serve("propensity-000001", [["constant", -1.0], ["base", 10.0]], 1)
    good = world.recommend()
    assert (good.model, good.offers[0].probability) != (None, plain)
    assert good.model == "propensity-000001" and good.offers[0].probability < plain
    serve("propensity-000002", weights, 2)
    still = world.recommend()
    assert (still.model, still.offers[0].probability) == (good.model, good.offers[0].probability)


def test_a_broken_model_leaves_the_last_good_one() -> None:
    world = World()
    world.publish("tv-x", product="tv")
    world.buy("c2", "tv", "phone")
    good = world.models.build()
    assert world.recommend().model == good.id
    world.buy("c3", "tv")
    broken = world.models.build()
    assert world.models.get(broken.id).state is ModelState.ACTIVE
    del world.store._tables[broken.id]
    world.clock.advance(2)

    async def twice() -> Decision:
        await world.recommender.recommend("c1", "", Contact(), 3)
        await asyncio.sleep(0)
        return await world.recommender.recommend("c1", "", Contact(), 3)

    assert asyncio.run(twice()).model == good.id


# outcomes


def test_acceptance_takes_stock_feeds_history_and_is_told_once() -> None:
    world = World()
    world.publish("o1", stock=1)
    made = world.recommend(contact=Contact(agent="agents/7"))
    closed = world.decisions.record(made.id, outcome("o1"))
    assert closed.outcome is not None and closed.outcome.agent == "agents/7"
    assert world.decisions.record(made.id, outcome("o1")).outcome == closed.outcome
    assert world.store.offer("o1").sold_out and world.store.unsettled(9) == []
    assert world.store.stale_claims(datetime.max.replace(tzinfo=UTC), 9) == []
    assert world.history.profile("c1")[0].products == {"broadband"}
    assert world.types().count("OfferOutcomeRecorded") == 1
    with pytest.raises(DecisionClosed):
        world.decisions.record(made.id, outcome("o1", Result.DECLINED))
    world.clock.advance(31)
    assert world.recommend("c9").no_offer is NoOffer.NOTHING_ELIGIBLE


def test_outcomes_that_cannot_be() -> None:
    world = World()
    world.publish("o1", stock=1)
    first, second = world.recommend("c1"), world.recommend("c2")
    with pytest.raises(DecisionNotFound):
        world.decisions.record("nothing", outcome("o1"))
    with pytest.raises(OfferNotInDecision):
        world.decisions.record(first.id, outcome("o2"))
    with pytest.raises(OfferNotInDecision):
        world.decisions.record(first.id, outcome("o1", Result.DECLINED, declined=("o2",)))
    world.decisions.record(first.id, outcome("o1"))
    with pytest.raises(OfferSoldOut):
        world.decisions.record(second.id, outcome("o1"))
    assert world.decisions.record(second.id, outcome("o1", Result.DECLINED)).claim == ""
    third = world.recommend("c3")
    assert world.decisions.record(third.id, outcome("", Result.IGNORED)).outcome is not None
    with pytest.raises(ProfileNotFound):
        world.history.profile("c3")


@settings(max_examples=40, deadline=None)
@given(stock=st.integers(0, 6), takers=st.integers(1, 8), repeats=st.integers(1, 3))
def test_never_oversold_and_each_taker_once(stock: int, takers: int, repeats: int) -> None:
    world = World()
    world.publish("o1", stock=max(stock, 1))
    made = [world.recommend(f"c{index}") for index in range(takers)]
    world.offers.update("o1", None, lambda o: replace(o, stock=stock))

    def take(decision: Decision) -> bool:
        try:
            return world.decisions.record(decision.id, outcome("o1")).outcome is not None
        except OfferSoldOut:
            return False

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(take, made * repeats))
    # Who was refused while somebody held two units, of which one went back, asks again.
    results += map(take, made)
    closed = [d for d in made if world.decisions.get(d.id).outcome is not None]
    assert len(closed) == min(stock, takers) == world.store.offer("o1").units_used
    assert any(results) or not closed
    assert world.types().count("OfferOutcomeRecorded") == len(closed)


class Crashing(MemoryStore):
    """Stops at a chosen step, as a process that dies there would."""

    at = ""

    def close_decision(self, decision: Decision, events: Any) -> Decision:
        if self.at == "before close":
            raise ConnectionError("died")
        stored = super().close_decision(decision, events)
        if self.at == "after close":
            raise ConnectionError("died")
        return stored

    def add_purchases(self, purchases: Any, now: Any) -> int:
        if self.at == "before history":
            raise ConnectionError("died")
        return super().add_purchases(purchases, now)


@pytest.mark.parametrize(
    ("at", "used", "owned"),
    [("before close", 0, False), ("after close", 1, True), ("before history", 1, True)],
)
def test_the_sweep_finishes_what_a_crash_left(at: str, used: int, owned: bool) -> None:
    world = World(Crashing())
    world.publish("o1", stock=1)
    made = world.recommend()
    world.store.at = at
    try:
        world.decisions.record(made.id, outcome("o1"))
    except ConnectionError:
        assert at != "before history"
    assert world.store.offer("o1").units_used == 1
    world.store.at = ""
    later = datetime.now(UTC) + timedelta(minutes=5)
    world.upkeep.sweep(later)
    assert world.upkeep.sweep(later) == 0
    assert world.store.offer("o1").units_used == used
    profile = world.store.profile("c1")
    assert (profile is not None and "broadband" in profile.products) is owned


def test_a_slow_closing_cannot_keep_a_unit_that_was_given_back() -> None:
    world = World()
    world.publish("o1", stock=1)
    slow, quick = world.recommend("c1"), world.recommend("c2")
    world.store.claim_unit(Claim(offer="o1", token="slow", decision=slow.id), datetime.now(UTC))
    world.upkeep.sweep(datetime.now(UTC) + timedelta(minutes=5))
    world.decisions.record(quick.id, outcome("o1"))
    with pytest.raises(EtagMismatch):
        world.store.close_decision(structs.replace(slow, outcome=outcome("o1"), claim="slow"), ())
    assert world.store.offer("o1").units_used == 1


def test_settling_twice_changes_nothing() -> None:
    world = World()
    world.publish("o1")
    closed = world.decisions.record(world.recommend().id, outcome("o1"))
    changes = world.store.history_changes()
    settle(world.store, closed, NOW)
    assert world.store.history_changes() == changes == 1


# models


def test_models_are_built_asked_for_rolled_back_and_pinned() -> None:
    world = World()
    assert not world.models.due()
    with pytest.raises(NoEarlierModel):
        world.models.rollback()
    world.buy("c1", "phone", "tv")
    first = world.models.build()
    asked = world.models.train()
    assert asked.state is ModelState.TRAINING and world.models.train() == asked and world.models.due()
    with pytest.raises(ModelNotReady):
        world.models.activate(asked.id)
    second = world.models.build()
    assert second.id == asked.id and second.rule_count == 2 and second.customer_count == 1
    assert world.models.rollback().id == first.id
    world.buy("c2", "phone")
    third = world.models.build()
    assert world.store.serving().model == first.id and not world.models.due()
    assert world.models.activate(third.id).state is ModelState.ACTIVE
    world.buy("c3", "phone")
    assert world.store.serving().model == third.id
    assert world.models.build().state is ModelState.ACTIVE
    activated = [e.data for e in world.store.events if e.type.endswith("ModelActivated")]
    assert [a.get("rollback", False) for a in activated] == [False, False, True, False, False]


@pytest.mark.parametrize("broken", [KeyError("products"), TypeError("no list"), ModelNotFound(resource="m")])
def test_a_version_whose_table_cannot_be_read_is_neither_activated_nor_gone_back_to(
    monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    world = World()
    world.buy("c1", "phone", "tv")
    first = world.models.build()
    world.buy("c2", "phone")
    second = world.models.build()

    def table(_: str) -> None:
        raise broken

    monkeypatch.setattr(world.store, "table", table)
    for choose in (lambda: world.models.activate(first.id), world.models.rollback):
        with pytest.raises((ModelNotReady, ModelNotFound)):
            choose()
    assert world.store.serving().model == second.id


def test_a_builder_that_died_is_taken_over() -> None:
    world = World()
    world.buy("c1", "phone")
    begun = world.models.train()
    assert world.models.due()
    assert world.models.build().id == begun.id
    assert len(world.models.list(9, None)) == 1


def test_a_new_offer_is_shown_by_exploration_among_many_better_known() -> None:
    world = World()
    for number in range(20):
        world.publish(f"o{number:02}", product=f"p{number:02}", price=cny("90.00"))
    for number in range(1_200):
        world.buy(f"c{number}", *{f"p{number % 20:02}", f"p{number % 7:02}"})
    world.models.build()
    world.clock.advance(40 * 86_400)
    world.publish("fresh", product="fresh", price=cny("10.00"))
    draws = iter([0.0, 0.999_999])
    world.recommender = Recommender(world.store, world.cache, world.clock, 30, lambda: next(draws))
    usual, explored = world.recommend("stranger", limit=1), world.recommend("stranger", limit=1)
    assert usual.offers[0].offer != "fresh"
    (shown,) = explored.offers
    assert (shown.offer, shown.reason.code) == ("fresh", ReasonCode.EXPLORATION)
    assert shown.propensity == explored.propensity == pytest.approx(0.05 / 6)
    assert explored.considered[-1].offer == "fresh" and explored.considered[-1].base == 0.01
    assert sum(considered.chance for considered in explored.considered) == pytest.approx(1)
