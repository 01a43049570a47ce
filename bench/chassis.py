"""What the chassis costs: an empty unary call through the full wrapper against the same call on a bare
grpc.aio server.

Run as `python -m bench.chassis`. One process serves both, another calls them in turn; compared is the CPU
time that the serving process spends on a call, in many short rounds, so that other work on the machine does
not blur the result.
Writes build/reports/chassis.json and exits with 1 when the wrapper costs more than `COST_RATIO_MAX` of the
bare call.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

import grpc  # noqa: E402
import uvloop  # noqa: E402
from bench.reporting import finish  # noqa: E402
from google.protobuf.wrappers_pb2 import StringValue  # noqa: E402
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult  # noqa: E402

from chassis import garbage, metrics, telemetry  # noqa: E402
from chassis.config import ServiceSettings  # noqa: E402
from chassis.grpc_status import error_info  # noqa: E402
from chassis.server import Server, server_options  # noqa: E402
from chassis.testing.echo import ECHO_SERVICE, EchoStub, add_echo_to_server, echo_binding  # noqa: E402
from chassis.testing.grpc import loopback_settings  # noqa: E402
from chassis.testing.tokens import TokenMaker  # noqa: E402

#: The limit: share of an empty call that the wrapper may add.
COST_RATIO_MAX = 0.25
#: What a caller without a token hears, and one beyond its limit.
REFUSALS = "TOKEN_MISSING QUOTA_EXCEEDED"
#: Calls in flight at once.
CLIENTS = 16
#: Calls before the first that counts.
WARM_UP_CALLS = 500


#: Share of calls that start a trace.
TRACE_RATIO = 0.01
#: Every kind of limit that a unary call can meet; none is reached. A caller whom nobody named is refused.
LIMITS = """
default: {rates: {all: [{calls: 1, seconds: 86400}]}}
subjects:
  partner:
    rates:
      all: [{calls: 1000000}]
      write: [{calls: 1000000}, {calls: 1000000000, seconds: 86400}]
    calls_open_max: 10000
    streams_open_max: 10000
"""


class _Empty:
    async def Unary(self, request: Any, context: Any) -> Any:
        return request


class _DropSpans(SpanExporter):
    """Takes spans and forgets them."""

    #: How many there were.
    count = 0

    def export(self, spans: Any) -> SpanExportResult:
        _DropSpans.count += len(spans)
        return SpanExportResult.SUCCESS


async def _start_bare(settings: ServiceSettings) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=server_options(settings))
    add_echo_to_server(_Empty(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def _start_full(directory: Path, maker: TokenMaker) -> Server:
    """With everything on: signed tokens, scopes, limits of each caller, traces at 1 %; metrics always are."""
    (directory / "limits.yaml").write_text(LIMITS)
    settings = loopback_settings(
        auth_mode="jwt",
        auth_jwks_file=str(maker.write_jwks(directory / "jwks.json")),
        limits_file=str(directory / "limits.yaml"),
        trace_ratio=TRACE_RATIO,
    )
    telemetry.setup(settings, exporter=_DropSpans())
    binding = echo_binding(_Empty())
    server = Server(settings, [binding], scopes=dict.fromkeys(binding.methods, "test"))
    await server.start()
    return server


async def _serve(pipe: Connection) -> None:
    """Serves both kinds; on the pipe "cpu" asks for the CPU seconds used so far, "seen" for the calls that
    metrics counted and the spans recorded, None ends.
    """
    maker = TokenMaker()
    with tempfile.TemporaryDirectory() as directory:
        bare, bare_port = await _start_bare(loopback_settings())
        full = await _start_full(Path(directory), maker)
        pipe.send((bare_port, full.port, maker.token(), maker.token(subject="stranger")))
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def asked() -> None:
            question = pipe.recv()
            if question == "cpu":
                pipe.send(time.process_time())
            elif question == "seen":
                pipe.send((_counted(), _DropSpans.count))
            else:
                loop.remove_reader(pipe.fileno())
                done.set()

        loop.add_reader(pipe.fileno(), asked)
        await done.wait()
        await bare.stop(None)
        await full.stop(None)


def _counted() -> int:
    """Calls of the full server that metrics counted as OK; the bare one has none."""
    name, labels = "callmesh_rpc_requests_total", ("service", "method", "code")
    counter = metrics.counter(name, "RPCs finished, by status code.", labels)
    return int(counter.labels("test", f"{ECHO_SERVICE}/Unary", "OK")._value.get())


def _serve_process(pipe: Connection) -> None:
    uvloop.run(_serve(pipe))


async def _calls(stub: Any, count: int, token: str) -> None:
    request = StringValue()
    metadata = (("authorization", f"Bearer {token}"),)

    async def client(share: int) -> None:
        for _ in range(share):
            await stub.Unary(request, timeout=30, metadata=metadata)

    await asyncio.gather(*(client(count // CLIENTS) for _ in range(CLIENTS)))


async def _round(stub: Any, pipe: Connection, count: int, token: str) -> tuple[float, float]:
    """(CPU microseconds of the server a call, calls a second)."""
    pipe.send("cpu")
    cpu_before, started = pipe.recv(), time.perf_counter()
    await _calls(stub, count, token)
    elapsed = time.perf_counter() - started
    pipe.send("cpu")
    made = count // CLIENTS * CLIENTS
    return (pipe.recv() - cpu_before) / made * 1e6, made / elapsed


async def _refusals(stub: Any, stranger: str) -> str:
    """What the full server says to somebody without a token, and to a stranger beyond the limit."""
    found = []
    for metadata in ((), *[(("authorization", f"Bearer {stranger}"),)] * 2):
        try:
            await stub.Unary(StringValue(), timeout=30, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            info = error_info(error)
            found.append(str(info.reason) if info is not None else "")
    return " ".join(found)


async def _measure(pipe: Connection, rounds: int, calls: int) -> dict[str, Any]:
    bare_port, full_port, token, stranger = pipe.recv()
    garbage.settle()
    found: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{bare_port}") as bare,
        grpc.aio.insecure_channel(f"127.0.0.1:{full_port}") as full,
    ):
        stubs = [EchoStub(bare), EchoStub(full)]
        for stub in stubs:
            await _calls(stub, WARM_UP_CALLS, token)
        refusals = await _refusals(stubs[1], stranger)
        for number in range(rounds):
            # The order changes from round to round, so that a drift of the machine falls on both alike.
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                found[which].append(await _round(stubs[which], pipe, calls, token))
    pipe.send("seen")
    counted, spans = pipe.recv()
    ratios = [full_[0] / bare_[0] - 1 for bare_, full_ in zip(found[0], found[1], strict=True)]
    cost = statistics.median(ratios)
    return {
        "bare_cpu_microseconds": round(statistics.median(cpu for cpu, _ in found[0]), 1),
        "full_cpu_microseconds": round(statistics.median(cpu for cpu, _ in found[1]), 1),
        "bare_calls_per_second": round(statistics.median(rate for _, rate in found[0])),
        "full_calls_per_second": round(statistics.median(rate for _, rate in found[1])),
        "interceptor_cost_ratio": round(cost, 3),
        "interceptor_cost_ratio_max": COST_RATIO_MAX,
        "rounds": rounds,
        "calls_per_round": calls,
        # What shows that everything was on.
        "refused_without": refusals,
        "calls_counted": counted,
        "spans_recorded": spans,
        "ok": cost <= COST_RATIO_MAX and refusals == REFUSALS and counted > rounds * calls // 2 and spans > 0,
    }


def main() -> int:
    """0 when the limit is met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--calls", type=int, default=320)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "chassis.json")
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    serving = multiprocessing.get_context("spawn").Process(target=_serve_process, args=(theirs,))
    serving.start()
    try:
        result = asyncio.run(_measure(ours, arguments.rounds, arguments.calls))
        ours.send(None)
        serving.join(10)
    finally:
        serving.kill()
    return finish(result, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
