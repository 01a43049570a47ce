"""The search in the knowledge, through gRPC."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Any

import pymongo
from bench.tickets_parts.serving import milliseconds, p99, server, settings_of

from callmesh.tickets.v1 import knowledge_pb2 as pb
from callmesh.tickets.v1 import knowledge_pb2_grpc
from tickets.records import RECORDS
from tickets.resources import dump

#: The limits.
SEARCH_P99_MS_MAX, FRESH_SECONDS_MAX = 20.0, 2.0
#: How many articles are published, and searches made in a round; the best round counts.
ARTICLES, SEARCHES, ROUNDS = 50_000, 500, 4
DATABASE = "bench_knowledge"

_ENGLISH = [
    "router",
    "modem",
    "signal",
    "invoice",
    "contract",
    "password",
    "refund",
    "roaming",
    "speed",
    "fibre",
    "antenna",
    "upgrade",
    "card",
    "device",
    "portal",
    "account",
    "payment",
    "outage",
    "technician",
    "appointment",
    "warranty",
    "delivery",
    "cable",
    "channel",
    "filter",
    "plan",
    "data",
    "voice",
    "mail",
]
_CHINESE = [
    "宽带",
    "光猫",
    "信号",
    "账单",
    "合同",
    "密码",
    "退款",
    "漫游",
    "网速",
    "光纤",
    "天线",
    "升级",
    "电话卡",
    "设备",
    "门户",
    "账户",
    "缴费",
    "故障",
    "工程师",
    "预约",
    "保修",
    "配送",
    "线路",
    "频道",
    "套餐",
    "流量",
    "语音",
    "邮件",
    "指示灯",
    "重启",
    "路由器",
    "客服",
    "投诉",
    "安装",
    "检测",
    "恢复",
    "登录",
    "短信",
    "验证码",
    "余额",
]


def _article(number: int, rng: random.Random) -> pb.Article:
    chinese = number % 2 == 0
    words, gap = (_CHINESE, "") if chinese else (_ENGLISH, " ")
    text = gap.join(rng.choices(words, k=60))
    return pb.Article(
        title=gap.join(rng.choices(words, k=4)) + f" {number}",
        body=text + ("。" if chinese else ". ") + gap.join(rng.choices(words, k=60)),
        language="zh-CN" if chinese else "en",
        audience=pb.AUDIENCE_CUSTOMERS if number % 3 else pb.AUDIENCE_AGENTS,
        category=f"topic-{number % 50}",
        state=pb.Article.STATE_PUBLISHED,
        version=1,
        author="bench",
    )


def _fill(uri: str, count: int) -> None:
    from chassis.mongo import connect, disconnect, ensure_indexes

    connect(settings_of(uri, DATABASE))
    ensure_indexes(RECORDS.values())
    disconnect()
    rng, now = random.Random(3), datetime.now(UTC)
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri)
    drafts, versions = client[DATABASE]["articles"], client[DATABASE]["article_versions"]
    for start in range(0, count, 1_000):
        batch = []
        for number in range(start, min(count, start + 1_000)):
            batch.append((f"a{number}", dump(_article(number, rng))))
        base = {"version": 1, "created_ms": 1, "updated_ms": 1, "created_at": now, "updated_at": now}
        found = {"published": 1, "indexed_ms": int(time.time() * 1000), "state": "PUBLISHED"}
        drafts.insert_many([{"_id": id, "body": body, "search": found, **base} for id, body in batch])
        versions.insert_many(
            [{"_id": f"{id}@1", "body": body, "search": {"article": id}, **base} for id, body in batch]
        )
    client.close()


def _query(number: int) -> pb.SearchArticlesRequest:
    rng = random.Random(number)
    words = _CHINESE if number % 2 == 0 else _ENGLISH
    text = ("" if number % 2 == 0 else " ").join(rng.choices(words, k=1 + number % 4))
    return pb.SearchArticlesRequest(query=text, page_size=10)


async def _freshness(one: Any, other: Any) -> float:
    """How long after its publication at one replica another finds an article, seconds."""
    article = pb.Article(title="Zanzibar roaming", body="Nothing else says zanzibar.", language="en")
    name = (await one.CreateArticle(pb.CreateArticleRequest(article=article))).name
    await one.SubmitArticle(pb.SubmitArticleRequest(name=name))
    await one.ReviewArticle(pb.ReviewArticleRequest(name=name, approve=True))
    published = time.perf_counter()
    while not (await other.SearchArticles(pb.SearchArticlesRequest(query="zanzibar"))).hits:
        if time.perf_counter() - published > 10 * FRESH_SECONDS_MAX:
            break
    return time.perf_counter() - published


async def measure(uri: str, scale: float) -> dict[str, Any]:
    """The figures of this part."""
    count = max(1_000, int(ARTICLES * scale))
    _fill(uri, count)
    started = time.perf_counter()
    async with server(uri, DATABASE) as channel, server(uri, DATABASE) as second:
        ready = time.perf_counter() - started
        stub = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
        other = knowledge_pb2_grpc.KnowledgeServiceStub(second)
        fresh = await _freshness(stub, other)
        await milliseconds(lambda number: stub.SearchArticles(_query(number)), 100)
        rounds = [
            p99(await milliseconds(lambda number: stub.SearchArticles(_query(number)), SEARCHES))
            for _ in range(ROUNDS)
        ]
    return {
        "knowledge_articles": count,
        "knowledge_two_servers_ready_seconds": round(ready, 1),
        "knowledge_search_p99_ms": round(min(rounds), 2),
        "knowledge_search_p99_ms_max": SEARCH_P99_MS_MAX,
        "knowledge_fresh_seconds": round(fresh, 2),
        "knowledge_fresh_seconds_max": FRESH_SECONDS_MAX,
    }
