"""Uplift and churn: learned, judged, asked, served, gone back from."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from tests.unit.marketing.marketing_examples import NOW, offer
from typer.testing import CliRunner

from callmesh.marketing.v1 import recommendations_pb2, recommendations_pb2_grpc
from chassis.testing import FakeClock
from cli.directory import Refused
from cli.main import app
from marketing.campaign_store import MemoryTouches
from marketing.config import MarketingSettings
from marketing.effects import Churn, Uplift, churn_from_content, churn_traits, uplift_from_content
from marketing.handlers import ModelNotReady, Recommender
from marketing.kinds import EFFECTS, PROPENSITY, PROPENSITY_MODELS, PROPENSITY_SERVING, UPLIFT
from marketing.learn import learn_churn as learn_and_keep_churn
from marketing.learned import Churns, Propensities, Uplifts
from marketing.learning.effects import Effect, learn_churn, learn_uplift, qini_of
from marketing.memory_store import MemoryStore
from marketing.model import Contact, Decision, ModelState, NoOffer, OfferKind, Profile
from marketing.offline import Treated, comparable, contributions, qini
from marketing.ranker_cache import RankerCache
from marketing.sale_store import Sale
from marketing.scopes import SCOPES
from marketing.server import bindings
from marketing.shelf import Row


def effects(count: int, gold_offered: float, seed: int = 1) -> list[Effect]:
    """Half the customers are gold; of those offered something so many buy, of all others one in five."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        gold, offered = draw.random() < 0.5, draw.random() < 0.7
        rate = gold_offered if gold and offered else 0.2
        traits = (f"tier={'gold' if gold else 'standard'}", f"region={draw.choice('abc')}")
        found.append(Effect(traits=traits, offered=offered, bought=draw.random() < rate))
    return found


def test_uplift_serves_when_it_tells_who_is_moved() -> None:
    inside = 0
    for seed in range(3):
        found = learn_uplift(effects(6_000, 0.5, seed))
        assert not found.failure and found.metrics["qini"] > 0 and found.metrics["qini_orders_beaten"] >= 0.95
        inside += found.metrics["uplift_lower"] < 0.15 < found.metrics["uplift_upper"]
    # A 95 % interval may miss now and then.
    assert inside >= 2
    model = uplift_from_content("uplift-000001", found.content)
    assert model.gain(("tier=gold", "region=a")) == pytest.approx(0.3, abs=0.07)
    assert model.gain(("tier=standard", "region=a")) == pytest.approx(0.0, abs=0.07)
    assert "no more than chance" in learn_uplift(effects(3_000, 0.2, seed=4)).failure
    assert "needs 1000" in learn_uplift(effects(300, 0.5)).failure
    assert "held out" in learn_uplift([Effect(traits=(), offered=True, bought=False)] * 2_000).failure


def test_a_model_is_judged_by_those_too_whom_the_one_before_left_alone() -> None:
    """Where the model before let 15 % of the standard customers through, whom offering does harm."""
    draw = random.Random(4)
    examples = []
    for _ in range(20_000):
        gold = draw.random() < 0.5
        chance = 0.9 * (1.0 if gold else 0.15)
        offered = draw.random() < chance
        rate = 0.4 + (0.0 if not offered else 0.2 if gold else -0.2)
        bought = draw.random() < rate
        traits = ("tier=gold" if gold else "tier=standard",)
        examples.append(Effect(traits=traits, offered=offered, chance=chance, bought=bought))
    found = learn_uplift(examples)
    assert not found.failure
    assert found.metrics["uplift_lower"] < 0.0 < found.metrics["uplift_upper"]
    assert found.metrics["qini"] == pytest.approx(0.05, abs=0.015)
    blind = learn_uplift([replace(one, chance=None) for one in examples])
    assert blind.metrics["uplift_lower"] > 0.05, "what was let through was the better half"


def test_qini_is_the_same_by_either_way() -> None:
    draw = random.Random(3)
    log = [
        Treated(offered=draw.random() < 0.6, value=float(draw.random() < 0.3), predicted=draw.random())
        for _ in range(300)
    ]
    order = np.argsort([-one.predicted for one in log])
    parts = np.array(contributions(comparable(log)))
    assert qini_of(parts, order) == pytest.approx(qini(log)) and parts.sum() == pytest.approx(0)


def customers(count: int, leaving: float) -> list[tuple[tuple[str, ...], bool]]:
    draw = random.Random(2)
    found = []
    for _ in range(count):
        lately = draw.random() < 0.5
        profile = Profile(
            customer="c",
            tier=draw.choice(["gold", "standard"]),
            products=frozenset({"tv"}),
            bought_at={"tv": NOW - timedelta(days=10 if lately else 400)},
        )
        found.append((churn_traits(profile, NOW), draw.random() < (0.05 if lately else leaving)))
    return found


def test_churn_serves_when_it_tells_who_leaves() -> None:
    found = learn_churn(customers(4_000, 0.3))
    assert not found.failure and found.metrics["auc"] > 0.6
    assert found.metrics["log_loss"] < found.metrics["log_loss_share"]
    model = churn_from_content("churn-000001", found.content)
    long_ago = Profile(customer="c", products=frozenset({"tv"}), bought_at={"tv": NOW - timedelta(days=500)})
    lately = Profile(customer="c", products=frozenset({"tv"}), bought_at={"tv": NOW})
    assert model.at_risk(long_ago, NOW) and not model.at_risk(lately, NOW)
    assert "tells little" in learn_churn(customers(3_000, 0.05)).failure
    assert "needs 1000" in learn_churn(customers(100, 0.3)).failure


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"offered": [], "held": []},
        {"offered": [["a", 1.0]]},
        {"offered": [["a", float("nan")]], "held": [["a", 1.0]]},
        {"offered": [["a", 1e9]], "held": [["a", 1.0]]},
        {"weights": [["a", 1.0]]},
        {"weights": [["a", 1.0]], "threshold": 7.0},
    ],
)
def test_broken_models_are_none(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model|weight|threshold"):
        uplift_from_content("m", content)
    with pytest.raises(ValueError, match=r"model|weight|threshold"):
        churn_from_content("m", content)
    assert uplift_from_content("", content) == Uplift() and churn_from_content("", content) == Churn()
    assert Uplift().gain(("a",)) == 0.0 and not Churn().at_risk(Profile(customer="c"), NOW)


def serve(store: MemoryStore, name: str, version: int, content: dict[str, Any]) -> None:
    models, serving = EFFECTS[name]
    id = f"{name}-{version:06}"
    row = Row(id=id, content={"state": "READY", **content}, keys={"number": version})
    store.shelves.insert(models, row, NOW)
    chosen = Row(
        id=name, content={"model": id, "earlier": [f"{name}-000001"][: version - 1]}, version=version - 1
    )
    if version == 1:
        store.shelves.insert(serving, chosen, NOW)
    else:
        store.shelves.update(serving, chosen, NOW)


def test_nothing_is_offered_where_it_does_harm_and_retention_to_those_at_risk() -> None:
    store = MemoryStore()
    cache = RankerCache(store, FakeClock(NOW), fresh_seconds=1, stale_seconds=30)
    recommender = Recommender(store, cache, FakeClock(NOW), 30, draw=lambda: 0.0)
    for made in (offer("stay", product="stay", kind=OfferKind.RETENTION), offer("tv", product="tv")):
        store.insert_offer(made, (), request_key=None, fingerprint=None)
    store.save_profile(Profile(customer="gold-2", tier="gold", crm_version=1))

    def ask(customer: str) -> Decision:
        cache.expire()
        return asyncio.run(recommender.recommend(customer, "", Contact(), 3))

    assert [line.offer for line in ask("gold-2").offers] == ["tv"]
    store.save_churn_risk("told", 0.75, NOW)
    assert {line.offer for line in ask("told").offers} == {"tv", "stay"}, "crm's score says so"
    serve(store, "churn", 1, {"weights": [["tier=gold", 5.0], ["constant", -1.0]], "threshold": 0.9})
    assert {line.offer for line in ask("gold-2").offers} == {"tv", "stay"}
    harm = {"offered": [["tier=gold", -2.0]], "held": [["tier=gold", 2.0]]}
    serve(store, UPLIFT, 1, harm)
    refused = ask("gold-2")
    assert refused.no_offer is NoOffer.NOT_WORTHWHILE and refused.considered
    assert (refused.held_chance, refused.leave) == (0.0, cache.policy.exploration_ratio)
    assert ask("nobody").offers and ask("nobody").leave == 1.0
    # Of as many gold customers one is asked all the same, with the chance that is logged.
    golden = [f"gold-{number}" for number in range(200)]
    for customer in golden:
        store.save_profile(Profile(customer=customer, tier="gold", crm_version=1))
    asked = [made for made in map(ask, golden) if made.offers]
    assert 1 <= len(asked) <= 30 and {made.leave for made in asked} == {cache.policy.exploration_ratio}
    # A version that cannot be read leaves the last good one.
    serve(store, UPLIFT, 2, {"offered": "broken"})
    assert ask("gold-2").no_offer is NoOffer.NOT_WORTHWHILE and cache.uplift.model == "uplift-000001"


@pytest.mark.parametrize("content", ["broken", None, 7, ["weights"]])
def test_a_model_document_of_another_shape_stops_nobody(content: Any) -> None:
    store = MemoryStore()
    cache = RankerCache(store, FakeClock(NOW), fresh_seconds=1, stale_seconds=30)
    recommender = Recommender(store, cache, FakeClock(NOW), 30, draw=lambda: 0.0)
    store.insert_offer(offer("tv", product="tv"), (), request_key=None, fingerprint=None)
    kinds = {**EFFECTS, PROPENSITY: (PROPENSITY_MODELS, PROPENSITY_SERVING)}
    for name, (models, serving) in kinds.items():
        broken = Row(id=f"{name}-000001", content=content, keys={"number": 1})
        store.shelves.insert(models, broken, NOW)
        store.shelves.insert(serving, Row(id=name, content={"model": broken.id}), NOW)
    assert asyncio.run(recommender.recommend("c1", "", Contact(), 3)).offers
    for versions in (
        kind(store.shelves, store, FakeClock(NOW), 5) for kind in (Propensities, Uplifts, Churns)
    ):
        # Nor is it listed as another, chosen, or in the way of the next one.
        (listed,) = versions.list(9, None)
        assert (listed.state, listed.failure) == (ModelState.ACTIVE, "it cannot be read")
        with pytest.raises(ModelNotReady, match="FAILED"):
            versions.activate(listed.id)
        assert not versions.asked_for() and versions.train().version == 2 and versions.due()


@pytest_asyncio.fixture
async def address(grpc_server: Any) -> AsyncIterator[tuple[str, MemoryStore]]:
    store = MemoryStore()
    serve(store, UPLIFT, 1, {"offered": [["a", 1.0]], "held": [["a", 0.5]], "metrics": {"qini": 0.25}})
    serve(store, UPLIFT, 2, {"offered": [["a", 1.0]], "held": [["a", 0.5]]})
    services = bindings(MarketingSettings(), store, store, FakeClock(NOW), store.shelves, MemoryTouches())
    server = await grpc_server(services, scopes=SCOPES)
    yield server.address, store


async def test_the_command_goes_back_to_the_model_before(address: tuple[str, MemoryStore]) -> None:
    place, store = address

    async def command(*words: str) -> Any:
        arguments = ["marketing", *words, "--address", place]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments))

    listed = await command("models", "uplift")
    assert "models/uplift-000002  ACTIVE" in listed.stdout and "qini 0.2500" in listed.stdout
    done = await command("rollback", "uplift")
    assert (done.exit_code, done.stdout) == (0, "models/uplift-000001 serves\n")
    refused = await command("rollback", "uplift")
    assert isinstance(refused.exception, Refused) and "FAILED_PRECONDITION" in str(refused.exception)
    # What no server could read is not chosen, for the one that serves would go on in silence.
    models, serving = EFFECTS[UPLIFT]
    broken = replace(store.shelves.get(models, "uplift-000002"), content={"state": "READY", "offered": 7})
    store.shelves.update(models, broken, NOW)
    chosen = store.shelves.get(serving, UPLIFT)
    back = {**chosen.content, "earlier": ["uplift-000002"]}
    store.shelves.update(serving, replace(chosen, content=back), NOW)
    refused = await command("rollback", "uplift")
    assert "has no weights" in str(refused.exception)
    async with grpc.aio.insecure_channel(place) as channel:
        stub = recommendations_pb2_grpc.RecommendationServiceStub(channel)
        kind = recommendations_pb2.MODEL_KIND_CHURN
        asked = await stub.TrainModel(recommendations_pb2.TrainModelRequest(kind=kind))
        assert (asked.name, asked.kind) == ("models/churn-000001", kind)
    churns = Churns(store.shelves, store, FakeClock(NOW), 5)
    assert churns.due() and not Uplifts(store.shelves, store, FakeClock(NOW), 5).due()
    info = learn_and_keep_churn(churns)
    assert info.id == "churn-000001" and info.state is ModelState.FAILED and "needs 1000" in info.failure
    assert not churns.due()


async def test_the_report_is_printed_and_drawn_by_a_command(
    address: tuple[str, MemoryStore], tmp_path: Path
) -> None:
    place, store = address
    for number in range(2):
        made = Sale(campaign=f"k{number}", customer="c1", agent="agents/a1", worth=Decimal(70), at=NOW)
        store.campaign_sales.append(made)

    async def command(*words: str) -> Any:
        arguments = ["marketing", *words, "--address", place]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments))

    span = ["--from", "2025-06-01", "--to", "2025-06-02"]
    picture = tmp_path / "june.png"
    done = await command("report", *span, "--by", "campaign", "--by", "agent", "--png", str(picture))
    assert done.exit_code == 0, done.exception
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["campaigns/k1", "agents/a1", "0", "1", "70", "0", "70"] in lines
    assert ["total", "0", "2", "140", "0", "140"] in lines
    assert picture.read_bytes().startswith(b"\x89PNG")
    whole = await command("report", *span)
    assert whole.stdout.split()[-5:] == ["0", "2", "140", "0", "140"]
    empty = await command("report", "--from", "2024-01-01", "--to", "2024-01-02", "--png", str(picture))
    assert isinstance(empty.exception, Refused)
    few = await command("effect")
    assert isinstance(few.exception, Refused) and "needs 50 closed decisions" in str(few.exception)
