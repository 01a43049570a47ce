"""What a durable decision costs, and how fast an offer reaches both streams.

Run as `python -m bench.routing`. One router with a real MongoDB (one member, majority writes) and, beside it
on the same server behind the same wrapper, a method that does nothing. Clients are processes of their own.

1. AssignCall against the empty call, in turns, at 32 and at 256 calls in flight. A call is placed in a queue
   where nobody works, and answered once its place is in the journal of a majority: the decision alone. What
   follows from that call later (its stream ends, its grace runs out) is waited for before the next turn.
2. 5,000 callers arrive at once and wait on RouteCall streams: each must be queued, or refused with RetryInfo.
3. 1,000 agents with open sessions, the 5,000 callers waiting: 100 agents a second become free. Measured is
   the time from an agent's word to the later of OFFERED on the agent's and on the caller's stream.

Prints a table, writes build/reports/routing.json and exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "services"), str(ROOT)]

import grpc  # noqa: E402
from bench.reporting import finish  # noqa: E402
from bench.routing_parts.load import Helper  # noqa: E402

from callmesh.routing.v1 import agent_pb2, agent_pb2_grpc, directory_pb2, directory_pb2_grpc  # noqa: E402
from chassis.localstack import MongoNode, free_ports  # noqa: E402
from chassis.localstack.group import HttpReady  # noqa: E402
from chassis.localstack.process import ManagedProcess  # noqa: E402

#: The limits.
ASSIGN_RATIO_MIN = 0.7
ASSIGN_P99_RATIO_MAX = 3.0
OFFER_P99_MS_MAX = 50.0
#: Processes that call; one alone would be busier than the router.
HELPERS = 2
IN_FLIGHT = (32, 256)
CALLERS, AGENTS, OFFERS_PER_SECOND = 5_000, 1_000, 100.0
#: Waited for at most, seconds.
SECONDS_MAX = 90.0
#: The router's grace period for calls without a stream, seconds; it ends what a turn leaves behind.
GRACE_SECONDS = 0.5


class Place:
    """A MongoDB, a router beside an empty service, and its directory. A context manager."""

    def __init__(self) -> None:
        self._run_dir = Path(tempfile.mkdtemp(prefix="callmesh-bench-"))
        ports = free_ports(6)
        self.mongo = MongoNode(self._run_dir, ports[0])
        self.address = f"127.0.0.1:{ports[3]}"
        self.router = ManagedProcess(self._run_dir, "router")
        key = self._run_dir / "place-token.key"
        key.write_text(secrets.token_hex(32))
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._env = kept | {
            "PYTHONPATH": f"{ROOT / 'services'}{os.pathsep}{ROOT}",
            "MONGO_URI": self.mongo.uri,
            "LOG_LEVEL": "warning",
            "ROUTING_REGION": "beijing",
            "ROUTING_GRPC_PORT": str(ports[3]),
            "ROUTING_HTTP_PORT": str(ports[4]),
            "ROUTING_PLACE_TOKEN_KEY_FILE": str(key),
            "ROUTING_GRACE_SECONDS": str(GRACE_SECONDS),
        }
        self._ready = HttpReady(url=f"http://127.0.0.1:{ports[4]}/readyz")

    def __enter__(self) -> Place:
        try:
            self.mongo.start()
            command = [sys.executable, "-m", "bench.routing_parts.server"]
            self.router.start(command, env=self._env, cwd=ROOT)
            self.router.wait_ready(self._ready, SECONDS_MAX)
            asyncio.run(self._furnish())
        except BaseException:
            print(self.router.log_tail(), file=sys.stderr)
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.router.stop()
        self.mongo.stop()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    async def _furnish(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            directory = directory_pb2_grpc.DirectoryServiceStub(channel)
            region = directory_pb2.Region(
                location={"latitude": 39.9, "longitude": 116.4}, served_areas=["CN"]
            )
            await directory.CreateRegion(
                directory_pb2.CreateRegionRequest(region_id="beijing", region=region)
            )
            for name in ("serve", "decide"):
                await directory.CreateSkill(directory_pb2.CreateSkillRequest(skill_id=name))
                queue = directory_pb2.Queue(skills=[{"skill": name, "level_min": 1}], length_max=1_000_000)
                await directory.CreateQueue(directory_pb2.CreateQueueRequest(queue_id=name, queue=queue))
            for name in agent_ids():
                agent = directory_pb2.Agent(region="regions/beijing", skills={"serve": 3})
                await directory.CreateAgent(directory_pb2.CreateAgentRequest(agent_id=name, agent=agent))
            question = agent_pb2.GetAgentStatusRequest(name=f"agents/{agent_ids()[-1]}")
            deadline = time.monotonic() + SECONDS_MAX
            while True:
                try:
                    await agent_pb2_grpc.AgentServiceStub(channel).GetAgentStatus(question)
                    return
                except grpc.aio.AioRpcError:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.1)

    def cpu_seconds(self) -> float:
        """CPU time that the router has used."""
        fields = Path(f"/proc/{self.router.pid()}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def agent_ids() -> list[str]:
    return [f"agent-{n}" for n in range(AGENTS)]


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else float("inf")


class Comparison:
    """AssignCall and the empty call, in turns."""

    def __init__(self, place: Place, helpers: list[Helper]) -> None:
        self._place = place
        self._helpers = helpers

    def turn(self, kind: str, in_flight: int, seconds: float) -> tuple[float, float, float]:
        """(calls a second, their p99 in seconds, the router's CPU time a call in seconds)."""
        cpu, began = self._place.cpu_seconds(), time.monotonic()
        for helper in self._helpers:
            helper.order("hammer", kind, in_flight // len(self._helpers), seconds)
        times = [each for helper in self._helpers for each in helper.result()]
        elapsed = time.monotonic() - began
        return len(times) / elapsed, p99(times), (self._place.cpu_seconds() - cpu) / len(times)

    def calm(self) -> None:
        """Until what was left behind is over: the router does next to nothing."""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            before = self._place.cpu_seconds()
            time.sleep(2 * GRACE_SECONDS)
            if self._place.cpu_seconds() - before < 0.2 * GRACE_SECONDS:
                break

    def run(self, in_flight: int, turns: int, seconds: float) -> dict[str, float]:
        found: dict[str, list[tuple[float, float, float]]] = {"empty": [], "assign": []}
        for number in range(turns + 1):
            # The order changes from turn to turn, so that a drift of the machine falls on both alike.
            for kind in sorted(found, reverse=number % 2 == 1):
                self.calm()
                row = self.turn(kind, in_flight, seconds)
                if number:
                    found[kind].append(row)
        middle = {
            kind: [statistics.median(each) for each in zip(*rows, strict=True)]
            for kind, rows in found.items()
        }
        ratios = [a[0] / e[0] for a, e in zip(found["assign"], found["empty"], strict=True)]
        return {
            f"assign_ratio_{in_flight}": round(statistics.median(ratios), 3),
            f"p99_ratio_{in_flight}": round(middle["assign"][1] / middle["empty"][1], 2),
            f"assigns_per_second_{in_flight}": round(middle["assign"][0]),
            f"empty_calls_per_second_{in_flight}": round(middle["empty"][0]),
            f"assign_p99_ms_{in_flight}": round(middle["assign"][1] * 1e3, 1),
            f"empty_p99_ms_{in_flight}": round(middle["empty"][1] * 1e3, 1),
            f"assign_cpu_microseconds_{in_flight}": round(middle["assign"][2] * 1e6),
            f"empty_cpu_microseconds_{in_flight}": round(middle["empty"][2] * 1e6),
        }


def arrivals(helpers: list[Helper]) -> dict[str, Any]:
    """All callers at once."""
    began = time.monotonic()
    for helper in helpers:
        helper.order("callers", CALLERS // len(helpers))
    outcomes = sum((Counter(helper.result()) for helper in helpers), Counter())
    bare = {kind: n for kind, n in outcomes.items() if kind not in ("queued", "refused")}
    for kind, count in bare.items():
        print(f"arrivals: {count} {kind}")
    return {
        "arrivals": CALLERS,
        "arrivals_queued": outcomes["queued"],
        "arrivals_refused": outcomes["refused"],
        "arrivals_bare": CALLERS - outcomes["queued"] - outcomes["refused"],
        "arrivals_seconds": round(time.monotonic() - began, 1),
    }


def sessions(helpers: list[Helper]) -> dict[str, Any]:
    """All agents log in, paused."""
    names = agent_ids()
    share = len(names) // len(helpers)
    for number, helper in enumerate(helpers):
        helper.order("desks", names[number * share : (number + 1) * share])
    return {"sessions": sum(helper.result() for helper in helpers)}


def offers(helpers: list[Helper], seconds: float) -> dict[str, Any]:
    """Agents become free, and both sides are told."""
    for helper in helpers:
        helper.order("free", OFFERS_PER_SECOND / len(helpers), seconds)
    agents_told: dict[str, tuple[float, float]] = {}
    callers_told: dict[str, float] = {}
    for helper in helpers:
        agents, callers = helper.result()
        agents_told |= agents
        callers_told |= callers
    both = [
        max(told, callers_told[offer]) - free_at
        for offer, (free_at, told) in agents_told.items()
        if offer in callers_told
    ]
    return {
        "offer_p99_ms": round(p99(both) * 1e3, 1) if both else float("inf"),
        "offer_p50_ms": round(statistics.median(both) * 1e3, 1) if both else float("inf"),
        "offers": len(both),
        "offers_per_second": round(len(both) / seconds, 1),
    }


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--offer-seconds", type=float, default=20.0)
    parser.add_argument("--assign-only", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "routing.json")
    arguments = parser.parse_args()
    # Told to end, it still ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result: dict[str, Any] = {}
    with Place() as place:
        helpers = [Helper(f"h{n}", place.address) for n in range(HELPERS)]
        try:
            comparison = Comparison(place, helpers)
            for in_flight in IN_FLIGHT:
                result |= comparison.run(in_flight, arguments.turns, arguments.seconds)
            comparison.calm()
            if not arguments.assign_only:
                result |= sessions(helpers)
                result |= arrivals(helpers)
                comparison.calm()
                result |= offers(helpers, arguments.offer_seconds)
        finally:
            for helper in helpers:
                helper.end()
    result["assign_p99_ratio"] = max(result[f"p99_ratio_{n}"] for n in IN_FLIGHT)
    result |= {
        "assign_ratio_min": ASSIGN_RATIO_MIN,
        "assign_p99_ratio_max": ASSIGN_P99_RATIO_MAX,
        "offer_p99_ms_max": OFFER_P99_MS_MAX,
    }
    result["ok"] = bool(
        all(result[f"assign_ratio_{n}"] >= ASSIGN_RATIO_MIN for n in IN_FLIGHT)
        and result["assign_p99_ratio"] <= ASSIGN_P99_RATIO_MAX
        and result.get("arrivals_bare") == 0
        and result.get("offer_p99_ms", float("inf")) <= OFFER_P99_MS_MAX
        and result.get("sessions") == AGENTS
        and result.get("offers_per_second", 0.0) >= 0.95 * OFFERS_PER_SECOND
    )
    return finish(result, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
