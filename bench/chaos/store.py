"""Takes the database and the broker away under load: `python -m bench.chaos.store`.

Two routers of one region at default settings, a replica set of three, RabbitMQ, routing's worker, a consumer.
The primary is killed with signal 9 three times: measured is the longest time without an assignment. Then all
members are away for half a minute: new calls must be refused with UNAVAILABLE at once, conversations go on,
and afterwards nothing is lost or forgotten. Then the broker is away for a minute, which routing must not
notice; afterwards every event of the journal must have been applied by the consumer, once.

What became of the calls is counted from the books of the edges and the desktops; what should have been
published from the journal itself. Writes build/reports/chaos-store.json.

Then the same half minute without members once more, for three routers with `ROUTING_ON_OUTAGE=continue`:
assignments must go on, and afterwards everything that was told from memory must be in the journal, without a
gap or an orphan. Writes build/reports/chaos-store-continue.json.

`--only` runs one of the two. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT)]

import grpc  # noqa: E402
import pymongo  # noqa: E402
from bench.chaos.counter import EFFECTS, SERVICE  # noqa: E402
from bench.chaos.floor import QUEUE, REGION, Floor, carry_out, eventually, furnish  # noqa: E402
from bench.chaos.parties import ChaosChannels, Crowd, under_load  # noqa: E402

from callmesh.routing.v1 import call_pb2, events_pb2, routing_pb2, routing_pb2_grpc  # noqa: E402
from cli.demo.ledger import Fact  # noqa: E402
from cli.demo.rpc import facts_of  # noqa: E402
from routing.journal import COLLECTION, ORPHANS, ChainReader, block_key, from_document  # noqa: E402
from routing.publish import Projection  # noqa: E402

#: The limits, seconds; nothing may be lost, double-booked, missing or doubled.
PAUSE_SECONDS_MAX = 3.0
#: A new call is refused within this once an outage has begun.
REFUSAL_SECONDS_MAX = 1.5
#: The broker's absence may not make a pause longer than this.
BROKER_PAUSE_SECONDS_MAX = 1.0
#: With `continue`: the longest time without an assignment from the loss of all members until well after their
#: return. A block is unknown for a second, the holds take another; when the members are back they elect.
CONTINUE_PAUSE_SECONDS_MAX = 5.0
PRIMARY_KILLS = 3
MEMBERS_AWAY_SECONDS, BROKER_AWAY_SECONDS = 30.0, 60.0
#: Load before the first loss, and between two.
CALM_SECONDS = 4.0
#: Conversations that begin before all members go, and last beyond their absence.
LONG_CALLS, LONG_SECONDS = 10, 45.0
#: All events are applied within this after the broker is back.
CATCH_UP_SECONDS = 240.0
#: New calls a second while none can be taken: each of them asks again once a second.
OUTAGE_RATE = 10.0
#: Events that are not for boards alone: the consumer subscribes to them.
TYPES = frozenset(
    kind.DESCRIPTOR.full_name
    for kind in (
        events_pb2.CallQueued,
        events_pb2.CallConnected,
        events_pb2.CallEnded,
        events_pb2.CallWrappedUp,
    )
)


@dataclass(kw_only=True, slots=True)
class Findings:
    """What the run measured beside the books."""

    pauses: list[float] = field(default_factory=list)
    broker_pause: float = 0.0
    refusals: list[float] = field(default_factory=list)
    #: Answers to new calls in the outage that were no clear refusal.
    unclear: list[str] = field(default_factory=list)
    long_calls_broken: int = 0
    after_outage_seconds: float = 0.0
    missing: int = 0
    #: From the end of the load until everything was applied.
    catch_up_seconds: float = 0.0
    doubled: int = 0
    events: int = 0


class Load:
    """Callers at a rate that can be changed."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._done = asyncio.Event()
        self._task: asyncio.Future[None] | None = None

    async def at(self, per_second: float) -> None:
        """From now on; 0 ends it."""
        self._done.set()
        if self._task is not None:
            await self._task
        self._done, self._task = asyncio.Event(), None
        if per_second:
            self._task = asyncio.ensure_future(self._crowd.calls(per_second, self._done))


async def kill_primaries(floor: Floor, crowd: Crowd, findings: Findings) -> None:
    """kill -9 for whoever is primary, three times."""
    for _ in range(PRIMARY_KILLS):
        primary = await asyncio.to_thread(floor.mongo.primary)
        assert primary is not None, "the replica set has no primary"
        began = time.monotonic()
        floor.mongo.kill(primary)
        await asyncio.sleep(2 * PAUSE_SECONDS_MAX)
        findings.pauses.append(crowd.longest_silence(began, time.monotonic()))
        print(f"killed primary {primary}: longest pause {findings.pauses[-1]:.2f} s", flush=True)
        floor.mongo.start_member(primary)
        await eventually(floor.mongo.is_complete, 20.0)
        await asyncio.sleep(CALM_SECONDS)


async def probe(channel: grpc.aio.Channel, number: int, findings: Findings) -> None:
    """A new call in the outage: refused at once, with the reason and when to try again."""
    call = call_pb2.CallRequest(call_id=f"probe-{number}", queue=f"queues/{QUEUE}")
    stub = routing_pb2_grpc.RoutingServiceStub(channel)
    began = time.monotonic()
    try:
        await stub.AssignCall(routing_pb2.AssignCallRequest(call=call), timeout=5.0)
        findings.unclear.append("taken")
    except grpc.aio.AioRpcError as error:
        facts = facts_of(error)
        if facts.code is not grpc.StatusCode.UNAVAILABLE or not facts.retry_seconds:
            findings.unclear.append(f"{facts.code.name} {facts.reason} {facts.text}")
    findings.refusals.append(time.monotonic() - began)


async def lose_all_members(floor: Floor, crowd: Crowd, load: Load, rate: float, findings: Findings) -> None:
    """No member for half a minute."""
    long_calls = {crowd.call(service_seconds=LONG_SECONDS) for _ in range(LONG_CALLS)}
    await asyncio.sleep(2 * CALM_SECONDS)
    await load.at(OUTAGE_RATE)
    for index in range(3):
        floor.mongo.kill(index)
    began, number = time.monotonic(), 0
    async with ChaosChannels(floor.addresses) as channels:
        # From the default time on after which an unknown block is an outage.
        await asyncio.sleep(3.0)
        while time.monotonic() - began < MEMBERS_AWAY_SECONDS:
            for name in floor.addresses:
                number += 1
                await probe(channels[name], number, findings)
            await asyncio.sleep(2.0)
    for index in range(3):
        floor.mongo.start_member(index)
    back, epoch = time.monotonic(), 0
    await eventually(lambda: crowd.first_assignment(back, epoch) is not None, 60.0)
    findings.after_outage_seconds = crowd.first_assignment(back, epoch) or 60.0
    print(f"all members away: first assignment {findings.after_outage_seconds:.2f} s after their return")
    await load.at(rate)
    await eventually(floor.mongo.is_complete, 30.0)
    await asyncio.sleep(2 * CALM_SECONDS)
    broken = {e.call for e in crowd.ledger.entries if e.fact in (Fact.BROKEN, Fact.DROPPED)}
    findings.long_calls_broken = len(broken & long_calls)


async def lose_broker(floor: Floor, crowd: Crowd, findings: Findings) -> None:
    """No broker for a minute."""
    assert floor.rabbit is not None
    # A node that is killed sooner may forget queues that were declared a moment ago.
    await asyncio.to_thread(floor.rabbit.settle)
    began = time.monotonic()
    floor.rabbit.kill()
    await asyncio.sleep(BROKER_AWAY_SECONDS)
    findings.broker_pause = crowd.longest_silence(began, time.monotonic())
    print(f"broker away: longest pause {findings.broker_pause:.2f} s", flush=True)
    await asyncio.to_thread(floor.rabbit.start)


def told(client: pymongo.MongoClient[dict[str, Any]]) -> set[str]:
    """Ids of the events that the journal has for consumers."""
    projection, ids = Projection(REGION), set()
    blocks = client["callmesh_routing"][COLLECTION]
    span = {"_id": {"$gt": block_key(REGION, 0), "$lt": f"{REGION};"}}
    for document in blocks.find(span).sort("_id", 1):
        ids |= {event.id for event in projection.apply(from_document(document)) if event.type in TYPES}
    return ids


def applied(client: pymongo.MongoClient[dict[str, Any]]) -> tuple[set[str], int]:
    """(ids of the events that the consumer has applied, how many of them more than once)."""
    ids: list[str] = []
    count = 0
    for row in client[f"callmesh_{SERVICE}"][EFFECTS].find():
        ids += row["events"]
        count += row["applied"]
    return set(ids), max(count, len(ids)) - len(set(ids))


async def compare_events(floor: Floor, findings: Findings) -> None:
    """Every event of the journal, applied once."""
    client: pymongo.MongoClient[dict[str, Any]]
    with pymongo.MongoClient(floor.mongo.uri) as client:
        expected = await asyncio.to_thread(told, client)
        began = time.monotonic()
        deadline = began + CATCH_UP_SECONDS
        while True:
            found, findings.doubled = await asyncio.to_thread(applied, client)
            findings.missing = len(expected - found)
            findings.catch_up_seconds = time.monotonic() - began
            if not findings.missing or time.monotonic() > deadline:
                break
            await asyncio.sleep(1.0)
    findings.events = len(expected)


async def _run(floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    async with ChaosChannels(floor.addresses) as channels:
        agents = await furnish(channels["r0"], arguments.agents, {})
    crowd, findings = Crowd(floor.addresses, agents), Findings()
    load = Load(crowd)
    try:
        await crowd.open()
        await load.at(arguments.rate)
        await asyncio.sleep(CALM_SECONDS)
        await kill_primaries(floor, crowd, findings)
        await lose_all_members(floor, crowd, load, arguments.rate, findings)
        await lose_broker(floor, crowd, findings)
        await load.at(0)
        await crowd.settle()
    finally:
        await crowd.close()
    await compare_events(floor, findings)
    return _result(crowd, findings, arguments)


async def _go_on(floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    """No member for half a minute, with leaders that go on from memory."""

    spans: list[float] = []

    async def lose_members(crowd: Crowd) -> None:
        spans.append(time.monotonic())
        for index in range(3):
            floor.mongo.kill(index)
        await asyncio.sleep(MEMBERS_AWAY_SECONDS)
        spans.append(time.monotonic())
        for index in range(3):
            floor.mongo.start_member(index)
        await eventually(floor.mongo.is_complete, 30.0)
        # Whatever follows from the return has followed.
        await asyncio.sleep(MEMBERS_AWAY_SECONDS / 2)
        spans.append(time.monotonic())

    crowd, _, verdict = await under_load(
        floor, arguments.agents, arguments.rate, 2 * CALM_SECONDS, lose_members
    )
    client: pymongo.MongoClient[dict[str, Any]]
    with pymongo.MongoClient(floor.mongo.uri) as client:
        blocks, orphans = await asyncio.to_thread(_chain, client)
    lost, returned, over = spans
    pause = crowd.longest_silence(lost, over)
    for name in ("calls_lost", "agents_double_booked", "agents_stuck"):
        if found := list(getattr(verdict, name)):
            print(f"{name}: {found[:10]}", *crowd.story(found[:3]), sep="\n")
    return {
        "calls_lost": len(verdict.calls_lost),
        "agents_double_booked": len(verdict.agents_double_booked),
        "agents_stuck": len(verdict.agents_stuck),
        "assignments_from_memory": len(crowd.from_memory),
        "blocks_orphaned": orphans,
        "blocks": blocks,
        "longest_pause_seconds": round(pause, 2),
        "pause_while_away_seconds": round(crowd.longest_silence(lost, returned), 2),
        "pause_after_return_seconds": round(crowd.longest_silence(returned, over), 2),
        "members_away_seconds": MEMBERS_AWAY_SECONDS,
        "calls": verdict.calls,
        "calls_served": verdict.calls_served,
        "calls_untaken": len(verdict.calls_untaken),
        "calls_per_second": arguments.rate,
        "pause_seconds_max": CONTINUE_PAUSE_SECONDS_MAX,
        "ok": not (verdict.calls_lost or verdict.agents_double_booked or verdict.agents_stuck or orphans)
        and len(crowd.from_memory) > 0
        and pause <= CONTINUE_PAUSE_SECONDS_MAX,
    }


def _chain(client: pymongo.MongoClient[dict[str, Any]]) -> tuple[int, int]:
    """(blocks of the journal, orphans). Raises JournalGap for a gap."""
    database, chain = client["callmesh_routing"], ChainReader()
    span = {"_id": {"$gt": block_key(REGION, 0), "$lt": f"{REGION};"}}
    for document in database[COLLECTION].find(span).sort("_id", 1):
        chain.accept(from_document(document))
    return chain.sequence, database[ORPHANS].count_documents({})


def _result(crowd: Crowd, findings: Findings, arguments: argparse.Namespace) -> dict[str, Any]:
    verdict = crowd.verdict([])
    for call in verdict.calls_lost[:5]:
        print(
            "lost:", [(e.fact.value, e.why, round(e.at, 2)) for e in crowd.ledger.entries if e.call == call]
        )
    for unclear in sorted(set(findings.unclear)):
        print("unclear refusal:", unclear)
    ok = (
        max(findings.pauses) <= PAUSE_SECONDS_MAX
        and findings.broker_pause <= BROKER_PAUSE_SECONDS_MAX
        and max(findings.refusals) <= REFUSAL_SECONDS_MAX
        and not findings.unclear
        and not findings.long_calls_broken
        and not verdict.calls_lost
        and not verdict.agents_double_booked
        and not findings.missing
        and not findings.doubled
        and findings.events > 0
    )
    return {
        "calls_lost": len(verdict.calls_lost),
        "agents_double_booked": len(verdict.agents_double_booked),
        "worst_pause_seconds": round(max(findings.pauses), 2),
        "events_missing": findings.missing,
        "events_catch_up_seconds": round(findings.catch_up_seconds, 1),
        "events_doubled": findings.doubled,
        "events": findings.events,
        "broker_pause_seconds": round(findings.broker_pause, 2),
        "refusals_in_outage": len(findings.refusals),
        "worst_refusal_seconds": round(max(findings.refusals), 2),
        "unclear_refusals": len(findings.unclear),
        "long_conversations_broken": findings.long_calls_broken,
        "first_assignment_after_outage_seconds": round(findings.after_outage_seconds, 2),
        "calls": verdict.calls,
        "calls_served": verdict.calls_served,
        "calls_untaken": len(verdict.calls_untaken),
        "calls_per_second": arguments.rate,
        "primary_kills": len(findings.pauses),
        "pause_seconds_max": PAUSE_SECONDS_MAX,
        "refusal_seconds_max": REFUSAL_SECONDS_MAX,
        "broker_pause_seconds_max": BROKER_PAUSE_SECONDS_MAX,
        "ok": ok,
    }


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--agents", type=int, default=220)
    parser.add_argument("--only", choices=("reject", "continue"), help="one of the two runs")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "chaos-store.json")
    arguments = parser.parse_args()
    status = 0
    if arguments.only != "continue":
        floor = Floor(routers=2, members=3, broker=True)
        status |= carry_out(floor, lambda floor: _run(floor, arguments), arguments.out)
    if arguments.only != "reject":
        floor = Floor(routers=3, members=3, settings={"ROUTING_ON_OUTAGE": "continue"})
        out = arguments.out.with_stem(f"{arguments.out.stem}-continue")
        status |= carry_out(floor, lambda floor: _go_on(floor, arguments), out)
    return status


if __name__ == "__main__":
    sys.exit(main())
