"""How soon a router is back, and what a snapshot costs those who route meanwhile.

Run as `python -m bench.recovery` (`make bench-recovery`), with a MongoDB of its own. A journal of `EVENTS`
events is written by the engine itself (whole calls, several hundred at a time, with agents and queues), and
the worker's snapshotter follows it as it grows. Then

1. a router (`python -m routing`, default settings) is started on it, after its leader was lost: counted are
the
   seconds from the start of the process until it leads and is ready, the silence included that it must wait
   out; for comparison, how long a reader takes for the tail behind the newest snapshot and for the whole
   journal;
2. a leader routes in this process while another process makes snapshots of the same state, as the worker
does:
   counted is the longest time for which the leader's loop stood still. Other work on the machine delays it as
   well, so there are several rounds, and the best counts: what a snapshot itself did would be in all of them.

Prints a table, writes build/reports/recovery.json and exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

import pymongo  # noqa: E402
import structlog  # noqa: E402
from bench.reporting import write_report  # noqa: E402

from chassis.clock import SystemClock  # noqa: E402
from chassis.localstack import MongoNode, free_ports  # noqa: E402
from routing import codec, model  # noqa: E402
from routing.engine import step  # noqa: E402
from routing.journal import COLLECTION, Block, ChainReader, MongoJournal, to_document  # noqa: E402
from routing.leader import Leader  # noqa: E402
from routing.leader_options import LeaderOptions  # noqa: E402
from routing.publish import Projection  # noqa: E402
from routing.relay import MongoTail  # noqa: E402
from routing.snapshots import MongoSnapshots, ShardSnapshots, SnapshotOptions, nearest_start  # noqa: E402
from routing.state import ShardState, evolve  # noqa: E402

#: The limits.
COLD_START_SECONDS_MAX = 5.0
SNAPSHOT_PAUSE_MS_MAX = 20.0
#: Events of the journal, and how many one block has about.
EVENTS, EVENTS_PER_BLOCK = 1_000_000, 100
SHARD = "beijing"
AGENTS, QUEUES, TALKING = 1_000, 20, 500
#: Calls a second of business time: some 45,000 are remembered at a time.
CALLS_PER_SECOND = 50
#: Rounds of the second part, how long each lasts at least, and how often the loop looks at its watch,
#: seconds.
ROUNDS, ROUND_SECONDS, LOOK_SECONDS = 5, 1.0, 0.001
#: Calls a second placed at the leader in the second part.
LOAD_PER_SECOND = 50
DATABASE = "bench_recovery"
START_SECONDS_MAX = 120.0


class Writer:
    """Decides as a leader does, and writes the blocks without waiting for each."""

    def __init__(self, blocks: Any) -> None:
        self._blocks = blocks
        self.state = ShardState(SHARD)
        # The newest block is as old as now, as after a leader that has just died.
        self.now_ms = time.time_ns() // 1_000_000 - EVENTS * 1000 // (6 * CALLS_PER_SECOND)
        self.events = self._sequence = 0
        self._prev = ""
        self._open: list[tuple[int, codec.Packed]] = []
        self._documents: list[dict[str, Any]] = []
        opened = model.ShardOpened(router="lost", leaderless_span_ms=0)
        self.state.epoch = 1
        evolve(self.state, opened, self.now_ms)
        self._add([opened])
        self._close_block()

    def do(self, command: model.Command) -> model.Answer:
        events, answer = step(self.state, command, self.now_ms)
        self._add(events)
        return answer

    def _add(self, events: list[Any]) -> None:
        self._open += [(self.now_ms, codec.pack(event)) for event in events]
        self.events += len(events)
        if len(self._open) >= EVENTS_PER_BLOCK:
            self._close_block()

    def _close_block(self) -> None:
        self._sequence += 1
        base_ms = self._open[0][0] if self._open else self.now_ms
        block = Block(
            shard=SHARD,
            sequence=self._sequence,
            epoch=1,
            nonce=f"{self._sequence:x}",
            prev=self._prev,
            now_ms=base_ms,
            format=codec.FORMAT,
            count=len(self._open),
            body=codec.join_events(self._open, base_ms),
        )
        self._prev, self._open = block.nonce, []
        self._documents.append(to_document(block))
        if len(self._documents) >= 500:
            self.flush()

    def flush(self) -> None:
        if self._documents:
            self._blocks.insert_many(self._documents)
            self._documents = []


def furnish(writer: Writer) -> None:
    """Queues, and agents who are logged in."""
    writer.do(model.ConfigureTiming(timing=model.Timing()))
    for number in range(QUEUES):
        needed = ((f"s{number}", 1),)
        writer.do(model.ConfigureQueue(queue=model.QueueConfig(id=f"q{number}", skills=needed)))
    for number in range(AGENTS):
        skills = tuple(sorted((f"s{(number + n) % QUEUES}", 3) for n in range(5)))
        writer.do(model.ConfigureAgent(agent=model.AgentConfig(id=f"a{number}", skills=skills)))
        writer.do(model.OpenSession(agent=f"a{number}", session=1, command=1, front="f"))


def converse(writer: Writer, events: int) -> Iterator[int]:
    """Whole calls until there are so many events; yields how many there are, now and then."""
    talking: deque[tuple[str, str]] = deque()
    number = 0
    while writer.events < events:
        number += 1
        writer.now_ms += 1000 // CALLS_PER_SECOND
        call_id = f"call-{number:08d}"
        facts = model.CallFacts(
            call_id=call_id, queue=f"q{number % QUEUES}", caller_number=f"+861390{number % 10**6:07d}"
        )
        call = writer.do(model.PlaceCall(facts=facts, attempt=1, move=1, front="f")).call
        assert call is not None and call.agent, "there is always somebody free"
        writer.do(model.AcceptOffer(agent=call.agent, session=1, offer_id=call.offer_id))
        writer.do(model.ConfirmCall(call_id=call_id, offer_id=call.offer_id, attempt=1, move=1))
        talking.append((call_id, call.agent))
        if len(talking) > TALKING:
            ended, agent = talking.popleft()
            writer.do(model.EndCall(call_id=ended))
            writer.do(model.FinishWrapUp(agent=agent, session=1, call_id=ended))
        if number % 500 == 0:
            while writer.do(model.Tick()).more:
                pass
            yield writer.events
    writer._close_block()
    writer.flush()


def write_journal(database: Any, events: int) -> tuple[Writer, int]:
    """The journal with its snapshots, as the worker makes them; (its writer, how many were made)."""
    writer = Writer(database[COLLECTION])
    maker = ShardSnapshots(
        SHARD, MongoTail(database), MongoSnapshots(database), SnapshotOptions(), lambda shard: 0
    )
    furnish(writer)
    for _ in converse(writer, events):
        while maker.step():
            pass
    return writer, len(MongoSnapshots(database).manifests(SHARD))


# --- a cold start


def read_seconds(database: Any, *, from_snapshot: bool) -> tuple[float, int]:
    """How long a reader takes to the tail, and how many events it reads."""
    began = time.perf_counter()
    start = nearest_start(MongoSnapshots(database), SHARD, 2**53) if from_snapshot else None
    projection, chain = start or (Projection(SHARD), ChainReader())
    events = 0
    while True:
        before = chain.sequence
        for block in MongoTail(database).read(SHARD, chain.sequence, 1_000):
            chain.accept(block)
            projection.skip(block)
            events += block.count
        if chain.sequence == before:
            return time.perf_counter() - began, events


def cold_start_seconds(uri: str, run_dir: Path) -> tuple[float, float]:
    """From the start of a router's process until it leads and is ready, and the process's own CPU time."""
    grpc_port, http_port = free_ports(2)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "services"),
        "MONGO_URI": uri,
        "ROUTING_MONGO_DATABASE": DATABASE,
        "ROUTING_REGION": SHARD,
        "AUTH_MODE": "open",
        "ROUTING_GRPC_PORT": str(grpc_port),
        "ROUTING_HTTP_PORT": str(http_port),
    }
    with (run_dir / "router.log").open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "routing"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while not _is_ready(http_port):
                if process.poll() is not None or time.perf_counter() - began > START_SECONDS_MAX:
                    raise SystemExit(f"the router does not start:\n{(run_dir / 'router.log').read_text()}")
                time.sleep(0.01)
            return time.perf_counter() - began, _cpu_seconds(process.pid)
        finally:
            process.kill()
            process.wait()


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process, its threads together (proc(5): utime and stime follow the name in brackets)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# --- what a snapshot costs the leader


def make_on_request(uri: str) -> None:
    """The other process: one snapshot for each line that comes in, its seconds as a line back."""
    database = pymongo.MongoClient[dict[str, Any]](uri)[DATABASE]
    maker = ShardSnapshots(
        SHARD,
        MongoTail(database),
        MongoSnapshots(database),
        SnapshotOptions(events=2**53, blocks=2**53),
        lambda shard: 0,
    )
    while maker.step():
        pass
    print("ready", flush=True)
    for _ in sys.stdin:
        while maker.step():
            pass
        began = time.perf_counter()
        made = maker.make()
        print(f"{time.perf_counter() - began if made is not None else -1.0:.4f}", flush=True)


class Watch:
    """Looks how long the loop stands still."""

    def __init__(self) -> None:
        self.worst_seconds = 0.0

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LOOK_SECONDS)
            self.worst_seconds = max(self.worst_seconds, time.perf_counter() - began - LOOK_SECONDS)


async def route(leader: Leader) -> None:
    """Calls come and hang up again, as long as it lasts."""
    number = 0
    while True:
        number += 1
        facts = model.CallFacts(call_id=f"load-{number}", queue=f"q{number % QUEUES}")
        placed = leader.submit(model.PlaceCall(facts=facts, attempt=1, move=1, front="f"))
        await asyncio.sleep(1 / LOAD_PER_SECOND)
        await placed
        leader.carry_out(model.HangUp(call_id=f"load-{number}", attempt=1))


async def pauses(uri: str) -> list[tuple[float, float, float]]:
    """By round: the loop's longest stand-still without and with a snapshot, and the snapshot's seconds."""
    client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(uri)
    leader = Leader(
        shard=SHARD,
        router="bench",
        store=MongoJournal(client[DATABASE]),
        clock=SystemClock(),
        options=LeaderOptions(takeover_seconds=0.1),
    )
    maker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.recovery", "--maker", uri),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert maker.stdin is not None and maker.stdout is not None
    # As in the router's process.
    leader.on_lead.append(gc.freeze)
    tasks = [asyncio.create_task(leader.run())]
    try:
        await asyncio.wait_for(leader.wait_until_leading(), START_SECONDS_MAX)
        await asyncio.wait_for(maker.stdout.readline(), START_SECONDS_MAX)
        watch = Watch()
        tasks += [asyncio.create_task(watch.run()), asyncio.create_task(route(leader))]
        rounds = []
        for _ in range(ROUNDS):
            watch.worst_seconds = 0.0
            await asyncio.sleep(ROUND_SECONDS)
            quiet, watch.worst_seconds = watch.worst_seconds, 0.0
            maker.stdin.write(b"\n")
            seconds = float(await asyncio.wait_for(maker.stdout.readline(), START_SECONDS_MAX))
            assert seconds >= 0, "no snapshot was made"
            rounds.append((quiet, watch.worst_seconds, seconds))
        return rounds
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        maker.stdin.close()
        await maker.wait()
        await client.close()


def measure(events: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="callmesh-recovery-") as name:
        run_dir = Path(name)
        with MongoNode(run_dir / "mongo", free_ports(1)[0]) as mongo:
            database = pymongo.MongoClient[dict[str, Any]](mongo.uri)[DATABASE]
            began = time.perf_counter()
            writer, snapshots = write_journal(database, events)
            print(f"written: {writer.events:,} events in {time.perf_counter() - began:.0f} s")
            tail_seconds, tail_events = read_seconds(database, from_snapshot=True)
            whole_seconds, whole_events = read_seconds(database, from_snapshot=False)
            cold, cold_cpu = cold_start_seconds(mongo.uri, run_dir)
            rounds = asyncio.run(pauses(mongo.uri))
            size = sum(
                d["size"]
                for d in database["journal_snapshot_parts"].aggregate(
                    [{"$group": {"_id": None, "size": {"$sum": {"$bsonSize": "$$ROOT"}}}}]
                )
            )
    return {
        "journal_events": whole_events,
        "calls_remembered": len(writer.state.calls),
        "snapshots_kept": snapshots,
        "snapshots_mb": round(size / 1e6, 1),
        "tail_events": tail_events,
        "from_snapshot_seconds": round(tail_seconds, 2),
        "whole_journal_seconds": round(whole_seconds, 2),
        "cold_start_seconds": round(cold, 2),
        "cold_start_cpu_seconds": round(cold_cpu, 2),
        "snapshot_seconds": round(min(seconds for _, _, seconds in rounds), 2),
        "quiet_pause_ms": round(min(quiet for quiet, _, _ in rounds) * 1000, 1),
        "snapshot_pause_ms": round(min(worst for _, worst, _ in rounds) * 1000, 1),
        "snapshot_pause_worst_round_ms": round(max(worst for _, worst, _ in rounds) * 1000, 1),
    }


def report(figures: dict[str, Any]) -> int:
    """Prints and writes the figures; the exit status."""
    limits = {"cold_start_seconds": COLD_START_SECONDS_MAX, "snapshot_pause_ms": SNAPSHOT_PAUSE_MS_MAX}
    missed = [name for name, limit in limits.items() if figures[name] > limit]
    if figures["journal_events"] < EVENTS:
        missed.append("journal_events")
    for name, value in figures.items():
        limit = f"  (at most {limits[name]})" if name in limits else ""
        print(f"{name:32} {value:>12}{limit}{'  MISSED' if name in missed else ''}")
    path = ROOT / "build" / "reports" / "recovery.json"
    print(path.relative_to(ROOT))
    return write_report({**figures, "ok": not missed}, path)


def main() -> int:
    """Returns the process's exit status."""
    parser = argparse.ArgumentParser(description="Recovery of a shard's leader, and the price of snapshots.")
    parser.add_argument("--events", type=int, default=EVENTS, help="of the journal; fewer miss a limit")
    parser.add_argument("--maker", metavar="URI", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if arguments.maker:
        make_on_request(arguments.maker)
        return 0
    return report(measure(arguments.events))


if __name__ == "__main__":
    sys.exit(main())
