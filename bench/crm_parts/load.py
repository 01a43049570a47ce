"""What is measured: an import, reads side by side, events at their rate."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from bench.crm_parts import data
from bench.crm_parts.stack import Parts, Side
from grpc_health.v1 import health_pb2, health_pb2_grpc

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import (
    customers_pb2,
    customers_pb2_grpc,
    screen_pop_pb2,
    screen_pop_pb2_grpc,
    timeline_pb2,
    timeline_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from chassis.bus import Event
from chassis.bus.publisher import Outcome, Publisher

#: Bytes of one piece of the imported file.
PIECE_BYTES = 262_144
#: Calls in flight where throughput is measured.
CLIENTS = 32
#: How long the events may take after the last one, before that counts as lost.
DRAIN_SECONDS_MAX = 120.0
#: Customers that have a history.
WITH_HISTORY = 1_000
HISTORY = 100
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 16 << 20)]


def _channel(side: Side) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{side.port}", options=_OPTIONS)


# Import
# ------------------------------------------------------------------------------------------------------


def _pieces(count: int, name: str) -> Iterator[transfer_pb2.UploadImportRequest]:
    offset, held = 0, bytearray()
    for line in data.lines(count):
        held += line.encode()
        if len(held) >= PIECE_BYTES:
            yield transfer_pb2.UploadImportRequest(name=name, offset=offset, data=bytes(held))
            offset += len(held)
            held.clear()
    yield transfer_pb2.UploadImportRequest(name=name, offset=offset, data=bytes(held), last=True)


def run_import(parts: Parts, side: Side, count: int) -> dict[str, float]:
    """Imports so many customers through the API; rate as a whole and of the slowest fifth, memory."""
    marks: list[tuple[float, int]] = []
    memory: list[float] = []
    with grpc.insecure_channel(f"127.0.0.1:{side.port}", options=_OPTIONS) as line:
        stub = transfer_pb2_grpc.ImportServiceStub(line)
        job = transfer_pb2.Import(format=transfer_pb2.FILE_FORMAT_CSV)
        name = stub.CreateImport(transfer_pb2.CreateImportRequest(import_job=job)).name
        cpu_before, mongo_before = parts.cpu_seconds(side), parts.mongo_cpu_seconds()
        started = time.perf_counter()
        for answer in stub.UploadImport(_pieces(count, name)):
            done = answer.import_job.good_rows
            marks.append((time.perf_counter() - started, done))
            if len(marks) % 20 == 1:
                memory.append(parts.rss_mb(side))
        last = stub.GetImport(transfer_pb2.GetImportRequest(name=name))
    cpu = parts.cpu_seconds(side) - cpu_before
    mongo_cpu = parts.mongo_cpu_seconds() - mongo_before
    if last.good_rows != count or last.bad_rows:
        raise ValueError(f"{last.good_rows} rows in and {last.bad_rows} refused, of {count}")
    fifths = [_at(marks, count * n // 5) for n in range(6)]
    rates = [count / 5 / max(b - a, 1e-9) for a, b in itertools.pairwise(fifths)]
    early = memory[min(len(memory) - 1, max(1, len(memory) // 5))]
    return {
        "import_customers_per_second": round(count / marks[-1][0]),
        "import_slowest_fifth_per_second": round(min(rates)),
        "import_server_cpu_microseconds": round(cpu / count * 1e6, 1),
        "import_mongo_cpu_microseconds": round(mongo_cpu / count * 1e6, 1),
        "import_memory_mb": round(memory[-1], 1),
        "import_memory_growth_ratio": round(max(memory[len(memory) // 5 :]) / early, 3),
    }


def _at(marks: Sequence[tuple[float, int]], rows: int) -> float:
    """When so many rows were in."""
    before = (0.0, 0)
    for mark in marks:
        if mark[1] >= rows:
            share = (rows - before[1]) / max(mark[1] - before[1], 1)
            return before[0] + (mark[0] - before[0]) * share
        before = mark
    return marks[-1][0]


def add_history(parts: Parts, side: Side, customers: int) -> None:
    """Gives the first thousand customers a hundred interactions each."""
    now_ms = int(time.time() * 1000)
    collection = parts.client[side.database].interactions
    for index in range(min(WITH_HISTORY, customers)):
        made = data.interactions(data.customer_id(index), data.number(index), HISTORY, now_ms)
        collection.insert_many(made, ordered=False)


# Reads
# -------------------------------------------------------------------------------------------------------


class Asker:
    """The questions, each of a customer drawn at random."""

    def __init__(self, channel: grpc.aio.Channel, customers: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._customers = customers
        self._health = health_pb2_grpc.HealthStub(channel)
        self._stub = customers_pb2_grpc.CustomerServiceStub(channel)
        self._pops = screen_pop_pb2_grpc.ScreenPopServiceStub(channel)
        self._timeline = timeline_pb2_grpc.TimelineServiceStub(channel)

    def _any(self) -> int:
        return self._rng.randrange(self._customers)

    def _rich(self) -> int:
        return self._rng.randrange(min(WITH_HISTORY, self._customers))

    async def empty(self) -> Any:
        """An empty unary call on the same server."""
        return await self._health.Check(health_pb2.HealthCheckRequest())

    async def get(self) -> Any:
        """GetCustomer."""
        name = f"customers/{data.customer_id(self._any())}"
        return await self._stub.GetCustomer(customers_pb2.GetCustomerRequest(name=name))

    async def lookup(self) -> Any:
        """LookupCustomer by number."""
        request = customers_pb2.LookupCustomerRequest(phone_number=data.number(self._any()))
        return await self._stub.LookupCustomer(request)

    async def pop(self) -> Any:
        """GetScreenPop of a customer with a history."""
        number = data.number(self._rich())
        answer = await self._pops.GetScreenPop(
            screen_pop_pb2.GetScreenPopRequest(phone_number=number, call_id="live")
        )
        if not (answer.customer.name and answer.open_ticket_count) or answer.missing:
            raise ValueError(f"a screen pop lacks something: {answer}")
        return answer

    async def timeline(self) -> Any:
        """A page of a timeline."""
        name = f"customers/{data.customer_id(self._rich())}"
        return await self._timeline.ListInteractions(
            timeline_pb2.ListInteractionsRequest(customer=name, page_size=20)
        )

    async def list(self) -> Any:
        """A page of a filtered list."""
        which = customers_pb2.CustomerFilter(tier=customers_pb2.TIER_GOLD)
        return await self._stub.ListCustomers(customers_pb2.ListCustomersRequest(page_size=20, filter=which))

    async def search(self) -> Any:
        """A search by the last digits and more of a number."""
        query = data.number(self._any())[3:]
        return await self._stub.SearchCustomers(customers_pb2.SearchCustomersRequest(query=query))


Question = Callable[[], Awaitable[Any]]


async def _rate(question: Question, calls: int) -> float:
    """Calls a second, `CLIENTS` in flight."""

    async def client() -> None:
        for _ in range(calls // CLIENTS):
            await question()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return calls // CLIENTS * CLIENTS / (time.perf_counter() - started)


async def throughput(parts: Parts, side: Side, customers: int, rounds: int, calls: int) -> dict[str, float]:
    """GetCustomer and LookupCustomer as shares of an empty call's throughput, in turns; and what each costs
    the server, which other work on the machine blurs less.
    """
    async with _channel(side) as channel:
        asker = Asker(channel, customers, 3)
        questions = {"empty": asker.empty, "get": asker.get, "lookup": asker.lookup}
        for question in questions.values():
            await _rate(question, CLIENTS * 10)
        found: dict[str, list[float]] = {name: [] for name in questions}
        cpu = dict.fromkeys(questions, 0.0)
        for _ in range(rounds):
            for name, question in questions.items():
                before = parts.cpu_seconds(side)
                found[name].append(await _rate(question, calls))
                cpu[name] += parts.cpu_seconds(side) - before
    ratios = {
        name: statistics.median(a / b for a, b in zip(found[name], found["empty"], strict=True))
        for name in ("get", "lookup")
    }
    return {
        "empty_calls_per_second": round(statistics.median(found["empty"])),
        "get_calls_per_second": round(statistics.median(found["get"])),
        "lookup_calls_per_second": round(statistics.median(found["lookup"])),
        "get_to_empty_ratio": round(ratios["get"], 3),
        "lookup_to_empty_ratio": round(ratios["lookup"], 3),
        "empty_to_get_cpu_ratio": round(cpu["empty"] / cpu["get"], 3),
        "empty_to_lookup_cpu_ratio": round(cpu["empty"] / cpu["lookup"], 3),
    }


async def _seconds(question: Question) -> float:
    started = time.perf_counter()
    await question()
    return time.perf_counter() - started


def _p(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def pop_latency(side: Side, customers: int, calls: int) -> dict[str, float]:
    """GetScreenPop against GetCustomer, one after the other, so that what else runs falls on both alike."""
    async with _channel(side) as channel:
        asker = Asker(channel, customers, 4)
        for _ in range(200):
            await asker.get()
            await asker.pop()
        gets, pops = [], []
        for _ in range(calls):
            gets.append(await _seconds(asker.get))
            pops.append(await _seconds(asker.pop))
    return {
        "get_p50_ms": round(_p(gets, 50) * 1000, 3),
        "get_p99_ms": round(_p(gets, 99) * 1000, 3),
        "pop_p50_ms": round(_p(pops, 50) * 1000, 3),
        "pop_p99_ms": round(_p(pops, 99) * 1000, 3),
        "pop_to_get_p99_ratio": round(_p(pops, 99) / _p(gets, 99), 3),
    }


async def size_latency(large: Side, small: Side, sizes: tuple[int, int], calls: int) -> dict[str, float]:
    """Each question's median latency with many customers against few, in turns."""
    async with _channel(large) as one, _channel(small) as other:
        askers = (Asker(one, sizes[0], 5), Asker(other, sizes[1], 5))
        ratios = {}
        for name in ("get", "lookup", "pop", "timeline", "list", "search"):
            taken: tuple[list[float], list[float]] = ([], [])
            for turn in range(calls):
                for which in (0, 1) if turn % 2 else (1, 0):
                    taken[which].append(await _seconds(getattr(askers[which], name)))
            ratios[name] = statistics.median(taken[0][20:]) / statistics.median(taken[1][20:])
    figures = {f"size_{name}_ratio": round(ratio, 3) for name, ratio in ratios.items()}
    return {**figures, "size_latency_ratio": round(max(ratios.values()), 3)}


# Events
# ------------------------------------------------------------------------------------------------------


def _story(index: int, customers: int, now: datetime) -> list[Event]:
    """Two events of one call."""
    call_id = f"bench-{index}"
    ref = routing_events.CallRef(
        call_id=call_id,
        version=common_pb2.CallVersion(attempt=1, move=1),
        shard="beijing",
        epoch=1,
        sequence=index,
        caller_number="+86" + data.number(index % customers),
        channel=common_pb2.CHANNEL_VOICE,
        queue="queues/bills",
        region="regions/beijing",
        agent="agents/a1",
    )
    queued = routing_events.CallQueued(call=ref)
    queued.event_time.FromDatetime(now)
    ended = routing_events.CallEnded(call=ref, outcome=call_pb2.CALL_OUTCOME_COMPLETED)
    ended.event_time.FromDatetime(now + timedelta(minutes=3))
    ended.call.sequence += 1
    return [
        Event.of(message, source="routing", subject=f"calls/{call_id}", time=now)
        for message in (queued, ended)
    ]


@dataclass(frozen=True)
class EventLoad:
    """What the worker is given."""

    #: Batches of the import to be told; the others are forgotten, so that they are in nobody's way.
    batches: int
    #: Rate of other services' events, and for how long.
    per_minute: int
    seconds: float


def run_worker(parts: Parts, side: Side, customers: int, wanted: EventLoad) -> dict[str, float]:
    """What the import left to be told, then other services' events at their rate."""
    database = parts.client[side.database]
    kept = [row["_id"] for row in database.imported.find({}, {"_id": 1}).sort("_id", 1).limit(wanted.batches)]
    database.imported.delete_many({"_id": {"$nin": kept}})
    told = sum(len(row["outbox"]) for row in database.imported.find({}, {"outbox.id": 1}))
    with parts.worker(side.database) as amqp_uri:
        figures = run_relay(database, told)
        return figures | run_events(parts, database, customers, wanted, amqp_uri)


def run_relay(database: Any, told: int) -> dict[str, float]:
    """How fast the worker tells what was imported, and takes in what it hears of it itself."""
    started = time.perf_counter()
    _await(lambda: database.imported.count_documents({}) == 0)
    relayed = time.perf_counter()
    _await(lambda: _marks(database, "on_customer") >= told)
    applied = time.perf_counter()
    return {
        "import_events_told": told,
        "import_events_lost": told - _marks(database, "on_customer"),
        "import_events_relayed_per_second": round(told / (relayed - started)),
        "import_events_applied_per_second": round(told / (applied - started)),
    }


def _await(done: Callable[[], bool]) -> None:
    give_up = time.perf_counter() + DRAIN_SECONDS_MAX
    while not done() and time.perf_counter() < give_up:
        time.sleep(0.05)


def _marks(database: Any, handler: str) -> int:
    """Events that a handler has taken: its marks lie together in the index."""
    taken = {"_id": {"$gte": f"{handler}:", "$lt": f"{handler};"}}
    return int(database.inbox.count_documents(taken))


def run_events(
    parts: Parts, database: Any, customers: int, wanted: EventLoad, amqp_uri: str
) -> dict[str, float]:
    """Publishes at a rate; how many seconds after the last event everything was applied."""
    per_second = wanted.per_minute / 60
    total = int(per_second * wanted.seconds) // 2 * 2
    publisher = Publisher(amqp_uri, service="bench")
    before = parts.worker_cpu_seconds()
    started = time.perf_counter()
    sent = 0
    while sent < total:
        due = min(total, int((time.perf_counter() - started) * per_second) + 1)
        batch = [
            event
            for index in range(sent // 2, (due + 1) // 2)
            for event in _story(index, customers, datetime.now(UTC))
        ]
        if batch:
            assert set(publisher.publish_events(batch)) == {Outcome.PUBLISHED}
            sent += len(batch)
        else:
            time.sleep(0.01)
    published = time.perf_counter()
    _await(lambda: _marks(database, "on_call") >= sent)
    drained = time.perf_counter()
    cpu = parts.worker_cpu_seconds() - before
    publisher.close()
    return {
        "events_per_minute": round(sent / (published - started) * 60),
        "events_sent": sent,
        "events_applied": _applied(database),
        "events_backlog_seconds": round(drained - published, 2),
        "event_worker_cpu_microseconds": round(cpu / sent * 1e6),
    }


def _applied(database: Any) -> int:
    """Events of the stories that the timeline holds."""
    ours = {"source": "routing", "source_id": {"$gte": "bench-", "$lt": "bench."}}
    return sum(
        int(database.interactions.count_documents({**ours, f"facets.{side}": {"$exists": True}}))
        for side in ("queued", "ended")
    )
