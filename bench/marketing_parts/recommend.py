"""Recommend against an empty unary call, on one server, at 50 and at 1,000 offers.

One process serves marketing and an echo on real MongoDB; this one calls both in turn, so that all figures
come from one run and are compared as ratios. The server writes every decision with its event, as it does in
production.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.connection import Connection
from typing import Any

#: The limits.
THROUGHPUT_RATIO_MIN = 0.3
P99_RATIO_MAX = 3.0
CATALOGUE_RATIO_MAX = 3.0
CUSTOMERS = 200_000
CATALOGUES = (50, 1_000)
PRODUCTS = 1_000
#: Calls in flight at once.
CLIENTS = 64
CALLS = 2_000
ROUNDS = 7
SEED = 11


def _profiles(count: int) -> list[dict[str, Any]]:
    draw = random.Random(SEED)
    now = datetime.now(UTC)
    # Popularity falls off as in a real shop.
    weights = [1 / (rank + 5) for rank in range(PRODUCTS)]
    picks = draw.choices(range(PRODUCTS), weights, k=count * 4)
    return [
        {
            "_id": f"c{index}",
            "numbers": [f"+86138{index:08d}"],
            "tier": draw.choice(["standard", "silver", "gold", "vip"]),
            "value_class": draw.choice("ABCDEF"),
            "language": "zh",
            "tags": [],
            "home_region": "regions/beijing",
            "products": sorted({f"p{pick:04}" for pick in picks[index * 4 : index * 4 + 4]}),
            "alive": True,
            "crm_version": 1,
            "updated_at": now,
        }
        for index in range(count)
    ]


def _offers(count: int) -> list[Any]:
    from marketing.model import Money, Offer, OfferState, Script, Text

    draw = random.Random(SEED)
    now = datetime.now(UTC)
    return [
        Offer(
            id=f"offer-{index:04}",
            titles=(Text(language="zh", text=f"产品{index}"), Text(language="en", text=f"Product {index}")),
            product=f"p{index * (PRODUCTS // count):04}",
            price=Money(currency="CNY", amount=Decimal(draw.randrange(5, 200))),
            rule='tier in ["gold", "vip"] or not tagged("minor")' if index % 4 == 0 else "",
            scripts=(
                Script(audience="", language="zh", text=f"您需要产品{index}吗？"),
                Script(audience="vip", language="zh", text=f"尊敬的贵宾，您需要产品{index}吗？"),
                Script(audience="", language="en", text=f"Would you like product {index}?"),
            ),
            state=OfferState.PUBLISHED,
            valid_until=now + timedelta(days=30),
            created_at=now,
        )
        for index in range(count)
    ]


def furnish(settings: Any, offers: int) -> None:
    """Customers (once), catalogue and rule table in a fresh state."""
    from chassis import mongo
    from marketing.association import Smoothing
    from marketing.documents import DOCUMENTS, OfferDocument, ProfileDocument
    from marketing.handlers import Models
    from marketing.store import MongoStore

    mongo.connect(settings)
    mongo.ensure_indexes(DOCUMENTS)
    store = MongoStore()
    if ProfileDocument._get_collection().estimated_document_count() == 0:
        rows = _profiles(CUSTOMERS)
        for start in range(0, len(rows), 10_000):
            ProfileDocument._get_collection().insert_many(rows[start : start + 10_000], ordered=False)
        Models(store, settings.clock(), Smoothing(), 5).build()
    OfferDocument._get_collection().delete_many({})
    for offer in _offers(offers):
        store.insert_offer(offer, (), request_key=None, fingerprint=None)
    mongo.disconnect()


class _Empty:
    async def Unary(self, request: Any, context: Any) -> Any:
        return request


async def _serve(settings: Any, pipe: Connection) -> None:
    from chassis import garbage, mongo
    from chassis.server import Server
    from chassis.testing.echo import echo_binding
    from marketing.reader import MongoReader
    from marketing.scopes import SCOPES
    from marketing.server import bindings
    from marketing.store import MongoStore

    mongo.connect(settings)
    database = mongo.async_database(settings)
    echo = echo_binding(_Empty())
    services = [*bindings(settings, MongoStore(), MongoReader(database), settings.clock()), echo]
    server = Server(settings, services, scopes={**SCOPES, **dict.fromkeys(echo.methods, "test")})
    await server.start()
    garbage.settle()
    pipe.send(server.port)
    loop = asyncio.get_running_loop()
    # Any question but None is for the CPU seconds used so far.
    while await loop.run_in_executor(None, pipe.recv) is not None:
        pipe.send(time.process_time())
    await server.stop(None)
    await database.client.close()
    mongo.disconnect()


def _serve_process(settings: Any, pipe: Connection) -> None:
    import uvloop

    uvloop.run(_serve(settings, pipe))


async def _round(
    call: Callable[[int], Awaitable[Any]], count: int, pipe: Connection
) -> tuple[float, list[float], float]:
    """(calls a second, seconds of each call, CPU seconds of the server a call)."""
    times: list[float] = []
    pipe.send("cpu")
    cpu = pipe.recv()

    async def client(first: int) -> None:
        for number in range(first, count, CLIENTS):
            started = time.perf_counter()
            await call(number)
            times.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client(first) for first in range(CLIENTS)))
    elapsed = time.perf_counter() - started
    pipe.send("cpu")
    return count / elapsed, times, (pipe.recv() - cpu) / count


def _p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def _measure(port: int, pipe: Connection) -> dict[str, float]:
    import grpc
    from google.protobuf.wrappers_pb2 import StringValue

    from callmesh.common.v1 import common_pb2
    from callmesh.marketing.v1 import recommendations_pb2, recommendations_pb2_grpc
    from chassis import garbage
    from chassis.testing.echo import EchoStub

    # What furnishing left here is not looked through in the middle of a round.
    garbage.settle()
    draw = random.Random(SEED)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub, echo = recommendations_pb2_grpc.RecommendationServiceStub(channel), EchoStub(channel)
        empty = StringValue()

        def recommend(number: int) -> Awaitable[Any]:
            customer = f"customers/c{draw.randrange(CUSTOMERS)}"
            contact = recommendations_pb2.CallContext(
                call_id=f"call-{number}",
                channel=common_pb2.CHANNEL_VOICE,
                region="regions/beijing",
                agent="agents/a1",
            )
            return stub.Recommend(
                recommendations_pb2.RecommendRequest(customer=customer, context=contact), timeout=30
            )

        def nothing(_: int) -> Awaitable[Any]:
            return echo.Unary(empty, timeout=30)

        await _round(nothing, CALLS, pipe)
        await _round(recommend, CALLS, pipe)
        rounds = []
        for number in range(ROUNDS):
            order = (nothing, recommend) if number % 2 else (recommend, nothing)
            found = {call.__name__: await _round(call, CALLS, pipe) for call in order}
            rounds.append((found["nothing"], found["recommend"]))
    return {
        "empty_calls_per_second": statistics.median(empty[0] for empty, _ in rounds),
        "calls_per_second": statistics.median(ours[0] for _, ours in rounds),
        "throughput_ratio": statistics.median(ours[0] / empty[0] for empty, ours in rounds),
        "empty_p99_ms": 1e3 * statistics.median(_p99(empty[1]) for empty, _ in rounds),
        "p99_ms": 1e3 * statistics.median(_p99(ours[1]) for _, ours in rounds),
        "p99_ratio": statistics.median(_p99(ours[1]) / _p99(empty[1]) for empty, ours in rounds),
        "empty_cpu_us": 1e6 * statistics.median(empty[2] for empty, _ in rounds),
        "cpu_us": 1e6 * statistics.median(ours[2] for _, ours in rounds),
        "mean_ms": 1e3 * statistics.median(statistics.fmean(ours[1]) for _, ours in rounds),
    }


def run(mongo_uri: str) -> tuple[dict[str, Any], bool]:
    """(figures, whether every limit holds)."""
    from chassis.testing.grpc import loopback_settings
    from marketing.config import MarketingSettings

    settings = loopback_settings(
        MarketingSettings(mongo_uri=mongo_uri, mongo_database="bench_recommend"),
        rate_limit_per_second=1e6,
        rate_limit_burst=1_000_000,
    )
    by_size: dict[int, dict[str, float]] = {}
    for size in CATALOGUES:
        furnish(settings, size)
        ours, theirs = multiprocessing.Pipe()
        serving = multiprocessing.get_context("spawn").Process(target=_serve_process, args=(settings, theirs))
        serving.start()
        try:
            by_size[size] = asyncio.run(_measure(ours.recv(), ours))
            ours.send(None)
            serving.join(10)
        finally:
            serving.kill()
    few, many = (by_size[size] for size in CATALOGUES)
    grown = many["mean_ms"] / few["mean_ms"]
    figures: dict[str, Any] = {f"recommend_{name}": round(value, 4) for name, value in many.items()}
    figures |= {
        "recommend_offers": CATALOGUES[1],
        "recommend_customers": CUSTOMERS,
        "recommend_catalogue_ratio": round(grown, 3),
        "recommend_throughput_ratio_min": THROUGHPUT_RATIO_MIN,
        "recommend_p99_ratio_max": P99_RATIO_MAX,
        "recommend_catalogue_ratio_max": CATALOGUE_RATIO_MAX,
    }
    ok = many["throughput_ratio"] >= THROUGHPUT_RATIO_MIN and many["p99_ratio"] <= P99_RATIO_MAX
    return figures, ok and grown <= CATALOGUE_RATIO_MAX
