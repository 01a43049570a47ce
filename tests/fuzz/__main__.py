"""Every RPC of a running platform against random and hostile messages: `make fuzz RUNS=20 SEED=1`.

RUNS is how many messages each RPC gets. No answer may be INTERNAL or UNKNOWN, every error has exactly one
ErrorInfo, nothing but what is streamed takes longer than its deadline, and every process is alive and ready
afterwards. Figures go to build/reports/fuzz.json; exits 1 when something is found, each with its message.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.api import resource_pb2  # type: ignore[import-untyped]
from google.protobuf import message_factory, text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status
from hostile_messages import Filler

import callmesh
from chassis.localstack import free_ports
from cli import plan
from cli.stack import Stack, StackConfig

#: How long an RPC may take, seconds; for a stream, how long it is listened to.
DEADLINE_SECONDS = 10.0
STREAM_SECONDS = 0.3
#: Answers that are always a defect.
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
#: What grpc.aio says itself when a server ends a stream that is still written to; the status is lost.
WRITING_FAILED = "Internal error from Core"
#: Most findings that are kept.
FINDINGS_MAX = 100


@dataclass
class Report:
    """What was seen."""

    calls: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, str]] = field(default_factory=list)

    def find(self, method: str, what: str, request: Message) -> None:
        """Keeps a finding with what caused it."""
        if len(self.findings) < FINDINGS_MAX:
            text = text_format.MessageToString(request, as_one_line=True)[:2_000]
            self.findings.append({"method": method, "what": what[:2_000], "request": text})


def methods() -> Iterator[Any]:
    """Descriptors of every RPC of the contract."""
    for found in pkgutil.walk_packages(callmesh.__path__, "callmesh."):
        if found.name.endswith("_pb2"):
            module = importlib.import_module(found.name)
            for service in module.DESCRIPTOR.services_by_name.values():
                yield from service.methods


def patterns() -> dict[str, str]:
    """Type of resource -> what its names look like, from the contract's own annotations."""
    found: dict[str, str] = {}
    for one in {
        method.containing_service.file.name: method.containing_service.file for method in methods()
    }.values():
        for file in (one, *one.dependencies):
            for message in file.message_types_by_name.values():
                resource = message.GetOptions().Extensions[resource_pb2.resource]
                if resource.pattern:
                    found[resource.type] = resource.pattern[0]
    return found


def channel_of(stack: Stack, method: Any) -> str:
    """The address that serves an RPC."""
    service = method.full_name.split(".")[1]
    return stack.address(service, "beijing") if service == "routing" else stack.address(service)


async def _ask(channel: grpc.aio.Channel, method: Any, requests: list[Message]) -> None:
    """One call; what it answers is dropped. Raises AioRpcError."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    read = message_factory.GetMessageClass(method.output_type).FromString
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    stub = kinds[method.client_streaming, method.server_streaming](
        path, request_serializer=lambda one: one.SerializeToString(), response_deserializer=read
    )
    if not method.client_streaming:
        call = stub(requests[0], timeout=DEADLINE_SECONDS)
    else:
        call = stub(timeout=DEADLINE_SECONDS)
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.UsageError):  # it has ended already
            for one in requests:
                await call.write(one)
            await call.done_writing()
    if not method.server_streaming:
        await call
        return
    try:
        async with asyncio.timeout(STREAM_SECONDS):
            async for _ in call:
                pass
    except TimeoutError:
        pass  # it goes on: an answer
    finally:
        call.cancel()


def _error_infos(error: grpc.aio.AioRpcError) -> int:
    status = rpc_status.from_call(error)
    details = () if status is None else status.details
    return sum(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in details)


async def _try(report: Report, channel: grpc.aio.Channel, method: Any, requests: list[Message]) -> None:
    name = f"{method.containing_service.full_name}.{method.name}"
    report.calls[name] += 1
    try:
        await _ask(channel, method, requests)
        report.codes["OK"] += 1
    except grpc.aio.AioRpcError as error:
        code = error.code()
        if method.client_streaming and error.details() == WRITING_FAILED:
            report.codes["ended while writing"] += 1
            return
        report.codes[code.name] += 1
        if code in DEFECTS or code is grpc.StatusCode.DEADLINE_EXCEEDED:
            report.find(name, f"{code.name}: {error.details()}", requests[0])
        elif _error_infos(error) != 1:
            report.find(
                name, f"{code.name} with {_error_infos(error)} ErrorInfo: {error.details()}", requests[0]
            )


async def fuzz(stack: Stack, runs: int, seed: int) -> Report:
    """Every RPC `runs` times, in an order of its own each round."""
    report, rng = Report(), random.Random(seed)
    filler = Filler(rng, patterns())
    all_methods = sorted(methods(), key=lambda one: one.full_name)
    channels = {a: grpc.aio.insecure_channel(a) for a in {channel_of(stack, one) for one in all_methods}}
    try:
        for _ in range(runs):
            rng.shuffle(all_methods)
            for method in all_methods:
                kind = message_factory.GetMessageClass(method.input_type)
                many = rng.randint(1, 4) if method.client_streaming else 1
                requests = [filler.message(kind()) for _ in range(many)]
                await _try(report, channels[channel_of(stack, method)], method, requests)
    finally:
        for channel in channels.values():
            await channel.close()
    return report


def _tracebacks(stack: Stack) -> list[str]:
    """Where handlers failed: the ends of the tracebacks in the processes' logs, each once."""
    found: dict[str, None] = {}
    for process in stack.processes():
        for line in Path(process.log_path).read_text(errors="replace").splitlines():
            if "Traceback" in line and '"exception"' in line:
                found[f"{process.name}: " + json.loads(line)["exception"][-900:]] = None
    return list(found)[:FINDINGS_MAX]


def main() -> int:
    """0 when nothing was found."""
    runs, seed = int(os.environ.get("RUNS") or 20), int(os.environ.get("SEED") or 1)
    folder = Path(tempfile.mkdtemp(prefix="callmesh-fuzz-"))
    try:
        stack = Stack(StackConfig(run_dir=folder, port_base=free_ports(plan.PORT_OFFSET_MAX + 1)[0]))
        try:
            stack.start()
            report = asyncio.run(fuzz(stack, runs, seed))
            tracebacks = _tracebacks(stack)
            down = [s.name for s in stack.processes() if s.state != "up"]
        finally:
            stack.stop(discard=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = {
        "seed": seed,
        "rpcs": len(report.calls),
        "calls": sum(report.calls.values()),
        "codes": dict(report.codes.most_common()),
        "processes_down": down,
        "findings": report.findings,
        "tracebacks": tracebacks,
        "ok": not report.findings and not down,
    }
    out = Path(__file__).parents[2] / "build" / "reports" / "fuzz.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({**figures, "findings": len(report.findings), "tracebacks": len(tracebacks)}, indent=1))
    for one in report.findings[:20]:
        print(f"{one['method']}: {one['what'][:300]}\n    {one['request'][:300]}")
    for text in tracebacks:
        print(text)
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
