"""Every RPC of a running platform against random and hostile messages: `make fuzz RUNS=20 SEED=1`.

RUNS is how many messages each RPC gets. No answer may be INTERNAL or UNKNOWN, every error has exactly one
ErrorInfo, is told in Chinese, as was asked for, and names no field that the request has not, nothing but what
is streamed takes longer than its deadline, and every process is alive and ready afterwards. Figures go to
build/reports/fuzz.json; exits 1 when something is found, each with its message.

Two partners ask, each with a token and words of its own. Nobody is answered without a token. No error tells
one partner the other's words. And where a call may be repeated by its request_id, the other partner's use of
the same id is another call: it neither gets the first one's result nor learns that the id was used.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import sys
import tempfile
import time
import uuid
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
from chassis.testing.tokens import TokenMaker
from cli import plan
from cli.keys import PEER_SCOPE, tokens
from cli.stack import Stack, StackConfig

#: Which service is asked for what all of them serve.
EVERYBODY = "crm"
#: How long an RPC may take, seconds; for a stream, how long it is listened to.
DEADLINE_SECONDS = 10.0
#: What is worked at in a process of its own may take as long as that needs to start on a busy machine.
APART_SECONDS = 90.0
APART = frozenset({"PlanningService", "SimulateDay", "RebuildMenu"})
STREAM_SECONDS = 0.3
#: Answers that are always a defect.
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
#: What grpc.aio says itself when a server ends a stream that is still written to; the status is lost.
WRITING_FAILED = "Internal error from Core"
CHINESE = re.compile("[\u3000-\u9fff]")
#: The partners' words, and how long their tokens last, seconds.
MARKS = ("quokka-words-of-a", "wombat-words-of-b")
TOKEN_SECONDS = 6 * 3600
#: Requests that are as they should be, so that both partners are served; %s is a partner's word.
SERVED = {
    "CustomerService.CreateCustomer": 'customer { display_name: "%s" }',
    "TimelineService.RecordInteraction": (
        'interaction { kind: INTERACTION_KIND_NOTE customer: "customers/c1" summary: "%s"'
        ' note { text: "x" } }'
    ),
    "TicketService.CreateTicket": 'ticket { kind: TICKET_KIND_INQUIRY subject: "%s" }',
    "KnowledgeService.CreateArticle": 'article { title: "%s" body: "x" }',
    "ExpertService.CreateQuestion": 'question { title: "%s" body: "x" }',
    "TeamService.CreateTeam": 'team { display_name: "%s" }',
    "LeadService.CreatePartner": 'partner { display_name: "%s" }',
    "OfferService.CreateOffer": (
        'offer { titles { language: "zh" text: "%s" } product: "p"'
        ' price { currency_code: "CNY" amount: "1.00" }'
        " price_period: PRICE_PERIOD_YEARLY }"
    ),
    "RecommendationService.Recommend": 'customer: "customers/%s" max_offers: 1',
}
#: Of them, how many both partners have to be served at least.
SERVED_MIN = 5
#: Most findings that are kept.
FINDINGS_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Partner:
    """Somebody who asks."""

    #: Written into its messages: long and odd enough to be in nobody else's.
    mark: str
    #: Request metadata with its token.
    header: tuple[tuple[str, str], ...]
    filler: Filler


@dataclass
class Report:
    """What was seen."""

    calls: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    #: Calls that both partners made with one request_id, and both were served.
    twins: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)

    def find(self, method: str, what: str, request: Message) -> None:
        """Keeps a finding with what caused it."""
        if len(self.findings) < FINDINGS_MAX:
            text = text_format.MessageToString(request, as_one_line=True)[:2_000]
            self.findings.append({"method": method, "what": what[:2_000], "request": text})


def methods() -> Iterator[Any]:
    """Descriptors of every RPC of the contract; this stack has no dialler."""
    for found in pkgutil.walk_packages(callmesh.__path__, "callmesh."):
        if found.name.endswith("_pb2") and not found.name.startswith("callmesh.dialler."):
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
    """The address that serves an RPC; of those that every service has, one that does."""
    service = method.full_name.split(".")[1]
    service = EVERYBODY if service == "common" else service
    return stack.address(service, "beijing") if service == "routing" else stack.address(service)


async def _ask(
    channel: grpc.aio.Channel,
    method: Any,
    requests: list[Message],
    header: Any,
    stream_seconds: float = STREAM_SECONDS,
) -> Any:
    """One call; a single answer is returned, streamed ones are dropped after `stream_seconds`. Raises
    AioRpcError.
    """
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
        apart = APART & {method.name, method.containing_service.name}
        call = stub(requests[0], timeout=APART_SECONDS if apart else DEADLINE_SECONDS, metadata=header)
    else:
        call = stub(timeout=DEADLINE_SECONDS, metadata=header)
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.UsageError):  # it has ended already
            for one in requests:
                await call.write(one)
            await call.done_writing()
    if not method.server_streaming:
        return await call
    try:
        async with asyncio.timeout(stream_seconds):
            async for _ in call:
                pass
    except TimeoutError:
        pass  # it goes on: an answer
    finally:
        call.cancel()
    return None


def _details(error: grpc.aio.AioRpcError, kind: Any) -> list[Any]:
    """An error's details of one kind."""
    status = rpc_status.from_call(error)
    details = () if status is None else status.details
    return [kind.FromString(one.value) for one in details if one.Is(kind.DESCRIPTOR)]


def _ill_told(error: grpc.aio.AioRpcError, request: Any) -> str:
    """What is wrong with how an error is told: to whom it may concern, of which field, in which language. ""
    for nothing.
    """
    infos = _details(error, error_details_pb2.ErrorInfo)
    if len(infos) != 1:
        return f"{error.code().name} with {len(infos)} ErrorInfo"
    for bad in _details(error, error_details_pb2.BadRequest):
        for one in bad.field_violations:
            if one.field and not _leads(request, one.field):
                return f"names {one.field}, which is no field of the request"
            if not CHINESE.search(one.localized_message.message):
                return f"{one.field} is not told in Chinese"
    told = _details(error, error_details_pb2.LocalizedMessage)
    return "" if told and CHINESE.search(told[0].message) else "is not told in Chinese"


def _leads(kind: Any, path: str) -> bool:
    """Whether a path such as `customer.phone_numbers[0].number` leads through fields of a message. What
    follows the name of a map is a key, in whatever letters.
    """
    for name in re.findall(r"(?:^|\.)(\w+)", re.sub(r"\[[^]]*\]", "", path)):
        found = kind.fields_by_name.get(name) if kind is not None else None
        if found is None:
            return kind is not None and name in kind.oneofs_by_name
        kind = found.message_type
        if kind is not None and kind.GetOptions().map_entry:
            return True
    return True


def _said(error: grpc.aio.AioRpcError) -> str:
    """All that an error says."""
    status = rpc_status.from_call(error)
    return f"{error.details()} {'' if status is None else [one.value for one in status.details]}"


@dataclass(frozen=True, kw_only=True)
class Round:
    """What every call needs."""

    report: Report
    channels: dict[str, grpc.aio.Channel]
    stack: Stack

    def channel(self, method: Any) -> grpc.aio.Channel:
        """Where an RPC is served."""
        return self.channels[channel_of(self.stack, method)]

    async def ask(
        self, method: Any, requests: list[Message], partner: Partner, other: Partner
    ) -> tuple[Any, str]:
        """One call: (the answer, the reason of an error). What is wrong with it goes into the report."""
        report, name = self.report, f"{method.containing_service.full_name}.{method.name}"
        report.calls[name] += 1
        try:
            answer = await _ask(self.channel(method), method, requests, partner.header)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if method.client_streaming and error.details() == WRITING_FAILED:
                report.codes["ended while writing"] += 1
                return None, ""
            report.codes[code.name] += 1
            if code in DEFECTS or code is grpc.StatusCode.DEADLINE_EXCEEDED:
                report.find(name, f"{code.name}: {error.details()}", requests[0])
            elif what := _ill_told(error, method.input_type):
                report.find(name, f"{what}: {error.details()}", requests[0])
            if other.mark in _said(error):
                report.find(name, f"an error tells another partner's words: {error.details()}", requests[0])
            return None, _reason(error)
        report.codes["OK"] += 1
        return answer, ""

    async def ask_twice(self, method: Any, first: Message, partner: Partner, other: Partner) -> None:
        """The same request_id by both, each with its own words: two calls that know nothing of each other."""
        for one in first.DESCRIPTOR.fields:
            if one.name.endswith("_id") and one.type == one.TYPE_STRING:
                first.ClearField(one.name)  # the server shall choose names, or both would want the same
        first.request_id = str(uuid.UUID(int=partner.filler.bits(128) | 1, version=4))
        words = text_format.MessageToString(first).replace(partner.mark, other.mark)
        second = text_format.Parse(words, type(first)())
        mine, _ = await self.ask(method, [first], partner, other)
        theirs, reason = await self.ask(method, [second], other, partner)
        name = f"{method.containing_service.full_name}.{method.name}"
        if reason == "REQUEST_ID_REUSED":
            self.report.find(name, "a request_id of another partner is known", second)
        if mine is None or theirs is None:
            return
        self.report.twins += 1
        asked = {value for one in (first, second) for value in _texts(one)}
        made = [_name(one) for one in (mine, theirs)]
        if made[0] and made[0] == made[1] and not any(made[0].endswith(one) for one in asked if one):
            self.report.find(name, f"both partners got {made[0]} for one request_id", second)


def _name(answer: Message) -> str:
    """The resource that an answer names; empty for none."""
    return str(getattr(answer, "name", ""))


def _texts(message: Message) -> Iterator[str]:
    """The texts on the first two levels of a message."""
    for field_, value in message.ListFields():
        if isinstance(value, str):
            yield value
        elif isinstance(value, Message) and not field_.is_repeated:
            yield from (inner for _, inner in value.ListFields() if isinstance(inner, str))


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    for detail in () if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


async def _refused_without_token(round_: Round, all_methods: list[Any]) -> None:
    """Every RPC once, as nobody."""
    for method in all_methods:
        request = message_factory.GetMessageClass(method.input_type)()
        try:
            await _ask(round_.channel(method), method, [request], (), DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED or error.details() == WRITING_FAILED:
                continue
            round_.report.find(method.full_name, f"without a token: {error.code().name}", request)
        else:
            round_.report.find(method.full_name, "answered without a token", request)


async def fuzz(stack: Stack, runs: int, seed: int, headers: list[Any]) -> Report:
    """Every RPC `runs` times, in an order of its own each round."""
    rng, known = random.Random(seed), patterns()
    partners = [
        Partner(mark=mark, header=header, filler=Filler(rng, known, mark))
        for mark, header in zip(MARKS, headers, strict=True)
    ]
    all_methods = sorted(methods(), key=lambda one: one.full_name)
    channels = {a: grpc.aio.insecure_channel(a) for a in {channel_of(stack, one) for one in all_methods}}
    round_ = Round(report=Report(), channels=channels, stack=stack)
    try:
        await _refused_without_token(round_, all_methods)
        for _ in range(runs):
            rng.shuffle(all_methods)
            for method in all_methods:
                partner, other = rng.sample(partners, 2)
                kind = message_factory.GetMessageClass(method.input_type)
                many = rng.randint(1, 4) if method.client_streaming else 1
                requests = [partner.filler.message(kind()) for _ in range(many)]
                await round_.ask(method, requests, partner, other)
                if _repeatable(method):
                    await round_.ask_twice(method, partner.filler.message(kind()), partner, other)
            await _served_twins(round_, all_methods, *partners)
    finally:
        for channel in channels.values():
            await channel.close()
    return round_.report


async def _served_twins(round_: Round, all_methods: list[Any], one: Partner, other: Partner) -> None:
    """`SERVED` by both partners."""
    for method in all_methods:
        words = SERVED.get(f"{method.containing_service.name}.{method.name}")
        if words is not None:
            kind = message_factory.GetMessageClass(method.input_type)
            await round_.ask_twice(method, text_format.Parse(words % one.mark, kind()), one, other)


def _repeatable(method: Any) -> bool:
    """Whether an RPC knows repetitions by a request_id."""
    streams = method.client_streaming or method.server_streaming
    return not streams and "request_id" in method.input_type.fields_by_name


def guarded(folder: Path) -> tuple[dict[str, str], list[Any]]:
    """(settings of a platform that wants tokens, the partners' metadata)."""
    folder.mkdir()
    maker, until = TokenMaker(), int(time.time()) + TOKEN_SECONDS
    peer = folder / "peer.token"
    peer.write_text(maker.token(subject="routers", scope=PEER_SCOPE, exp=until))
    settings = {
        "AUTH_MODE": "jwt",
        "AUTH_JWKS_FILE": str(maker.write_jwks(folder / "jwks.json")),
        "ROUTING_PEER_TOKEN_FILE": str(peer),
    }
    # Peers' RPCs are fuzzed as well: a router's token may be stolen.
    scopes = f"{tokens()['admin.token'][1]} {PEER_SCOPE}"
    headers = [maker.header(subject=mark, scope=scopes, exp=until) for mark in MARKS]
    return settings, [(*header, ("accept-language", "zh-CN")) for header in headers]


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
        settings, headers = guarded(folder / "keys")
        base = free_ports(plan.PORT_OFFSET_MAX + 1)[0]
        stack = Stack(StackConfig(run_dir=folder / "run", port_base=base, env=settings))
        try:
            stack.start()
            report = asyncio.run(fuzz(stack, runs, seed, headers))
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
        "served_twins": report.twins,
        "codes": dict(report.codes.most_common()),
        "processes_down": down,
        "findings": report.findings,
        "tracebacks": tracebacks,
        "ok": not report.findings and not down and report.twins >= SERVED_MIN,
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
