"""Timers across a kill -9: many due in one minute, two workers, the one that holds the lease is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pymongo
from bench.tickets_parts.filling import fill, some_ticket
from bench.tickets_parts.serving import settings_of

from callmesh.tickets.v1 import events_pb2
from chassis.bus import Event
from tickets.documents import from_raw
from tickets.hotstore import NewTicket, document_of
from tickets.model import ClockState, SlaClock

#: The limits.
LATE_SECONDS_MAX, TWICE_MAX, MISSED_MAX = 2.0, 0, 0
#: Timers due, and within how many seconds.
TIMERS, SPAN_SECONDS = 10_000, 60
#: When the holder of the lease is killed, seconds after the first is due.
KILL_AFTER_SECONDS = 25
#: How long the rest may take, seconds.
PATIENCE_SECONDS = 60
DATABASE = "bench_timers"


def _work(uri: str) -> None:
    """One worker: the loop of `tickets.worker`, without a broker, so that what it told stays where it is."""
    from mongoengine import get_db

    from chassis.ids import new_id
    from chassis.lease import Lease
    from chassis.mongo import connect
    from tickets.convert import event_of
    from tickets.handlers import Handlers
    from tickets.store import MongoStore
    from tickets.timers import Timers

    settings = settings_of(uri, DATABASE)
    connect(settings)
    clock = settings.clock()
    handlers = Handlers(MongoStore(), clock, settings.rules(), event_of)
    lease = Lease(get_db()["leases"], "timers", new_id(), settings.timer_lease_seconds)
    loop = Timers(
        handlers, lease, clock, poll_seconds=settings.timer_poll_seconds, batch_max=settings.timer_batch_max
    )

    def stopping(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    loop.run(stopping)


def _due(number: int, rng: random.Random, due_ms: int) -> dict[str, Any]:
    """A ticket whose resolution is due then, and nothing else of it."""
    ticket = some_ticket(number, rng, due_ms - 3_600_000)
    running = SlaClock(
        state=ClockState.RUNNING, target_ms=3_600_000, since_ms=due_ms - 3_600_000, due_ms=due_ms
    )
    done = SlaClock(state=ClockState.MET, target_ms=3_600_000, stopped_ms=due_ms - 3_500_000)
    ticket = replace(ticket, sla=replace(ticket.sla, first_response=done, resolution=running, alarms=()))
    return document_of(NewTicket(ticket=ticket, events=()), datetime.now(UTC))


def _documents(count: int, first_ms: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(2)
    for number in range(count):
        yield _due(number, rng, first_ms + number * SPAN_SECONDS * 1000 // count)


def _told(raw: dict[str, Any]) -> list[Event]:
    name = events_pb2.SlaBreached.DESCRIPTOR.full_name
    events = (Event.from_json(entry["event"]) for entry in raw.get("outbox") or ())
    return [event for event in events if event.type == name]


def _figures(collection: Any, count: int) -> dict[str, Any]:
    times, late = Counter[int](), [0.0]
    for raw in collection.find():
        times[len(_told(raw))] += 1
        breached = from_raw(raw).sla.resolution.breached_ms
        if breached is not None:
            late.append((raw["updated_ms"] - breached) / 1000)
    return {
        "timers_due": count,
        "timers_due_within_seconds": SPAN_SECONDS,
        "timers_late_seconds": round(max(late), 2),
        "timers_late_seconds_max": LATE_SECONDS_MAX,
        "timers_twice": sum(number for often, number in times.items() if often > 1),
        "timers_twice_max": TWICE_MAX,
        "timers_missed": times[0],
        "timers_missed_max": MISSED_MAX,
    }


def _holder(leases: Any, before: str) -> str:
    """Waits until the lease has another holder than `before`."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        found = leases.find_one({"_id": "timers"})
        if found is not None and found["holder"] not in ("", before):
            return str(found["holder"])
        time.sleep(0.05)
    raise RuntimeError("nobody took the lease")


def _measure(uri: str, scale: float) -> dict[str, Any]:
    from chassis.mongo import connect, disconnect, ensure_indexes
    from tickets.documents import DOCUMENTS

    connect(settings_of(uri, DATABASE))
    ensure_indexes(DOCUMENTS)
    disconnect()
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri)
    database, count = client[DATABASE], int(TIMERS * scale)
    spawn = multiprocessing.get_context("spawn")
    first = spawn.Process(target=_work, args=(uri,))
    first.start()
    holder = _holder(database["leases"], "")
    second = spawn.Process(target=_work, args=(uri,))
    second.start()
    try:
        start_ms = int(time.time() * 1000) + 15_000
        fill(uri, DATABASE, _documents(count, start_ms))
        time.sleep(max(0.0, start_ms / 1000 + KILL_AFTER_SECONDS - time.time()))
        first.kill()
        _holder(database["leases"], holder)
        tickets, give_up = database["tickets"], time.monotonic() + SPAN_SECONDS + PATIENCE_SECONDS
        while tickets.find_one({"timer_ms": {"$exists": True}}) is not None and time.monotonic() < give_up:
            time.sleep(0.25)
        return _figures(tickets, count)
    finally:
        first.kill()
        second.kill()
        client.close()


async def measure(uri: str, scale: float) -> dict[str, Any]:
    """The figures of this part."""
    return await asyncio.to_thread(_measure, uri, scale)
