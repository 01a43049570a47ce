"""The search in the knowledge, through gRPC."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from datetime import UTC, datetime
from typing import Any

import grpc
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
#: How long a replica may take to read them all, seconds.
LOAD_SECONDS_MAX = 300
DATABASE = "bench_knowledge"

#: Different words of each language; the n-th is as frequent as 1/n, as in real texts.
WORDS = 6_000


def _vocabulary() -> tuple[list[str], list[str]]:
    rng = random.Random(5)
    heads, tails = (
        ["rou", "sig", "con", "pas", "fi", "ant", "por", "tech", "mo", "bill", "dev", "roam"],
        ["ter", "nal", "tract", "word", "bre", "enna", "tal"],
    )
    english = ["".join(rng.choices(heads, k=2)) + rng.choice(tails) + str(n % 7) for n in range(WORDS)]
    chinese = [chr(rng.randrange(0x4E00, 0x5600)) + chr(rng.randrange(0x4E00, 0x5600)) for _ in range(WORDS)]
    return english, chinese


_ENGLISH, _CHINESE = _vocabulary()
_WEIGHTS = list(itertools.accumulate(1 / rank for rank in range(1, WORDS + 1)))


def _text(words: list[str], rng: random.Random, count: int) -> str:
    gap = "" if words is _CHINESE else " "
    return gap.join(rng.choices(words, cum_weights=_WEIGHTS, k=count))


def _article(number: int, rng: random.Random) -> pb.Article:
    chinese = number % 2 == 0
    words = _CHINESE if chinese else _ENGLISH
    return pb.Article(
        title=f"{_text(words, rng, 4)} {number}",
        body=_text(words, rng, 120),
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
    return pb.SearchArticlesRequest(query=_text(words, rng, 1 + number % 4), page_size=10)


async def _loaded(stub: Any) -> None:
    """Waits until a replica has read the articles."""
    give_up = time.monotonic() + LOAD_SECONDS_MAX
    while time.monotonic() < give_up:
        try:
            await stub.SearchArticles(_query(0))
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.5)
    raise RuntimeError("the articles were not read in time")


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
        stub = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
        other = knowledge_pb2_grpc.KnowledgeServiceStub(second)
        await _loaded(stub)
        await _loaded(other)
        ready = time.perf_counter() - started
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
