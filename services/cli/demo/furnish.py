"""Furnishes a fresh stack for a day: directory, customers, offers and what customers bought before."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.protobuf import duration_pb2

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2, customers_pb2_grpc
from callmesh.marketing.v1 import (
    offers_pb2,
    offers_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
    types_pb2,
)
from callmesh.routing.v1 import directory_pb2, directory_pb2_grpc
from cli.demo.model import Day, RegionPlan
from cli.demo.rpc import facts_of

#: Deadline of a furnishing request, real seconds; batches are large.
FURNISH_SECONDS = 30.0
#: Customers and purchases sent at once (the services' own limits are 500 and 1,000).
CUSTOMERS_AT_ONCE = 250
PURCHASES_AT_ONCE = 500
AGENTS_AT_ONCE = 500

#: The one skill: every agent of the demo takes every type of service, as the bank's did.
SKILL = "banking"
#: Queues by type of service; types that are not listed wait in the first.
QUEUES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("service", "个人业务", ("PS", "PE", "TT")),
    ("new-customers", "新客户", ("NW",)),
    ("stocks", "证券", ("NE",)),
    ("internet", "网上服务", ("IN",)),
)
#: A region with a longer expected wait than this lets another take the call, business seconds.
OVERFLOW_THRESHOLD_SECONDS = 5
#: Chance of each customer having each product before the day.
PRODUCTS: tuple[tuple[str, str, float, int], ...] = (
    ("current-account", "活期账户", 0.95, 0),
    ("debit-card", "借记卡", 0.80, 0),
    ("credit-card", "信用卡", 0.45, 120),
    ("savings-plan", "储蓄计划", 0.35, 200),
    ("home-loan", "住房贷款", 0.15, 900),
    ("brokerage", "证券账户", 0.20, 300),
    ("travel-insurance", "旅行保险", 0.12, 80),
)
#: Who has the first product is so much likelier to have the second: something for association to find.
PAIRS: tuple[tuple[str, str, float], ...] = (
    ("credit-card", "travel-insurance", 0.45),
    ("home-loan", "savings-plan", 0.60),
)
_FAMILY = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
_GIVEN = (
    "伟",
    "芳",
    "娜",
    "敏",
    "静",
    "丽",
    "强",
    "磊",
    "军",
    "洋",
    "勇",
    "艳",
    "杰",
    "娟",
    "涛",
    "明",
    "超",
    "秀英",
    "建国",
    "晓梅",
)
_TIERS = ("TIER_STANDARD", "TIER_SILVER", "TIER_GOLD", "TIER_PLATINUM", "TIER_VIP")


def queue_of(kind: str) -> str:
    """`queues/{queue}` for a type of service."""
    return f"queues/{next((queue for queue, _, kinds in QUEUES if kind in kinds), QUEUES[0][0])}"


async def directory(channel: grpc.aio.Channel, plans: Sequence[RegionPlan], day: Day) -> None:
    """Regions, the skill, queues and the day's agents. Raises grpc.RpcError."""
    stub = directory_pb2_grpc.DirectoryServiceStub(channel)
    for plan in plans:
        await _make(
            stub.CreateRegion, directory_pb2.CreateRegionRequest(region_id=plan.id, region=_region(plan))
        )
    skill = directory_pb2.Skill(display_name="银行业务")
    await _make(stub.CreateSkill, directory_pb2.CreateSkillRequest(skill_id=SKILL, skill=skill))
    for queue_id, name, _ in QUEUES:
        request = directory_pb2.CreateQueueRequest(queue_id=queue_id, queue=_queue(name))
        await _make(stub.CreateQueue, request)
    agents = [
        directory_pb2.CreateAgentRequest(
            agent_id=agent,
            agent=directory_pb2.Agent(
                display_name=agent,
                region=f"regions/{region}",
                skills={SKILL: 3},
                address=f"sip:{agent}@{region}",
            ),
        )
        for agent, region in sorted(day.agent_regions.items())
    ]
    for some in _batches(agents, AGENTS_AT_ONCE):
        await _make(stub.BatchCreateAgents, directory_pb2.BatchCreateAgentsRequest(requests=some))


async def _make(method: Any, request: Any) -> None:
    """Creates one thing; what exists already stays as it is (a stack that was kept)."""
    try:
        await method(request, timeout=FURNISH_SECONDS)
    except grpc.RpcError as error:
        if facts_of(error).code is not grpc.StatusCode.ALREADY_EXISTS:
            raise


def _region(plan: RegionPlan) -> directory_pb2.Region:
    return directory_pb2.Region(
        display_name=plan.display_name,
        location=common_pb2.GeoPoint(latitude=plan.latitude, longitude=plan.longitude),
        served_areas=plan.served_areas,
        languages=["zh-CN"],
        time_zone="Asia/Shanghai",
        weight=100,
        head_office=plan.head_office,
    )


def _queue(name: str) -> directory_pb2.Queue:
    return directory_pb2.Queue(
        display_name=name,
        skills=[{"skill": SKILL, "level_min": 1}],
        service_level_target=duration_pb2.Duration(seconds=20),
        priority_credit=duration_pb2.Duration(seconds=30),
        # The handshake takes real milliseconds, which the fast clock stretches: leave it room.
        ring_timeout=duration_pb2.Duration(seconds=120),
        wrap_up_timeout=duration_pb2.Duration(seconds=120),
        overflow_threshold=duration_pb2.Duration(seconds=OVERFLOW_THRESHOLD_SECONDS),
    )


def _batches(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


async def customers(channel: grpc.aio.Channel, day: Day, seed: int) -> list[str]:
    """The identified callers, one customer each; their resource names. Raises grpc.RpcError or ValueError.

    Two constructed numbers may be equal: the second customer is then not loaded, as in life nobody shares a
    number.
    """
    stub = customers_pb2_grpc.CustomerServiceStub(channel)
    requests, taken = [], set()
    for call in day.calls:
        if call.customer and call.number not in taken:
            taken.add(call.number)
            requests.append(_customer(call.customer, call.number, call.home_region, call.priority, seed))
    unique = list({request.customer_id: request for request in requests}.values())
    names: list[str] = []
    for some in _batches(unique, CUSTOMERS_AT_ONCE):
        answer = await stub.BatchCreateCustomers(
            customers_pb2.BatchCreateCustomersRequest(requests=some), timeout=FURNISH_SECONDS
        )
        names += [customer.name for customer in answer.customers]
        already = grpc.StatusCode.ALREADY_EXISTS.value[0]
        bad = [failure for failure in answer.failures if failure.status.code != already]
        if bad:
            raise ValueError(f"crm refused a customer of the demo: {bad[0].status.message}")
    return names


def _customer(
    key: str, number: str, region: str, priority: int, seed: int
) -> customers_pb2.CreateCustomerRequest:
    rng = random.Random(f"{seed}:customer:{key}")
    family, given = rng.choice(_FAMILY), rng.choice(_GIVEN)
    tier = rng.choice(_TIERS[2:]) if priority == 2 else rng.choice(_TIERS[:2])
    return customers_pb2.CreateCustomerRequest(
        customer_id=f"demo-{key}",
        customer=customers_pb2.Customer(
            display_name=family + given,
            family_name=family,
            given_name=given,
            phone_numbers=[customers_pb2.PhoneNumber(number=number, primary=True)],
            tier=tier,
            language="zh-CN",
            time_zone="Asia/Shanghai",
            home_region=f"regions/{region}",
            value_class=f"VALUE_CLASS_{rng.choice('ABCDEF')}",
        ),
    )


async def offers(channel: grpc.aio.Channel) -> None:
    """The catalogue: one published offer for each product that costs something. Raises grpc.RpcError."""
    stub = offers_pb2_grpc.OfferServiceStub(channel)
    for product, title, _, price in PRODUCTS:
        if price == 0:
            continue
        offer_id = f"demo-{product}"
        await _make(
            stub.CreateOffer,
            offers_pb2.CreateOfferRequest(offer_id=offer_id, offer=_offer(product, title, price)),
        )
        await stub.PublishOffer(
            offers_pb2.PublishOfferRequest(name=f"offers/{offer_id}"), timeout=FURNISH_SECONDS
        )


def _offer(product: str, title: str, price: int) -> offers_pb2.Offer:
    return offers_pb2.Offer(
        titles=[types_pb2.LocalizedText(language="zh", text=title)],
        product=product,
        price=common_pb2.Money(currency_code="CNY", amount=f"{price}.00"),
        price_period=offers_pb2.PRICE_PERIOD_YEARLY,
        scripts=[types_pb2.Script(language="zh", text=f"根据您的使用情况，推荐您了解一下{title}。")],
    )


async def purchases(channel: grpc.aio.Channel, names: Sequence[str], seed: int) -> int:
    """What the customers bought before the day, seeded. Raises grpc.RpcError."""
    stub = recommendations_pb2_grpc.RecommendationServiceStub(channel)
    rows = list(itertools.chain.from_iterable(_bought(name, seed) for name in names))
    for some in _batches(rows, PURCHASES_AT_ONCE):
        await stub.RecordPurchases(
            recommendations_pb2.RecordPurchasesRequest(purchases=some), timeout=FURNISH_SECONDS
        )
    return len(rows)


def _bought(name: str, seed: int) -> Iterable[recommendations_pb2.Purchase]:
    rng = random.Random(f"{seed}:purchases:{name}")
    has = {product for product, _, chance, _ in PRODUCTS if rng.random() < chance}
    has |= {second for first, second, chance in PAIRS if first in has and rng.random() < chance}
    for product in sorted(has):
        yield recommendations_pb2.Purchase(
            purchase_id=f"demo:{name.rpartition('/')[2]}:{product}", customer=name, product=product
        )


async def everything(
    *,
    routing: grpc.aio.Channel,
    crm: grpc.aio.Channel,
    marketing: grpc.aio.Channel,
    plans: Sequence[RegionPlan],
    day: Day,
    seed: int,
) -> int:
    """All of it, side by side where nothing waits for the other; the number of customers. Raises
    grpc.RpcError.
    """
    _, names, _ = await asyncio.gather(
        directory(routing, plans, day), customers(crm, day, seed), offers(marketing)
    )
    await purchases(marketing, names, seed)
    return len(names)
