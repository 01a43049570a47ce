"""`callmesh calls`: the live calls of a platform, one call, and why a call goes where it goes.

1. Telephone numbers are masked, here and in what looks like one among a call's attributes: a terminal is
   copied into tickets and chats. `--numbers` shows them.
2. Times are the platform's own, in UTC; how long a call has waited is reckoned by the clock of its shard.
3. `list` goes on without a region that does not answer, and says so: a lost region is when it is wanted most.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Column, Table

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import call_pb2, directory_pb2, directory_pb2_grpc, routing_pb2, routing_pb2_grpc
from cli.directory import ADDRESS_DEFAULT, PAGE_ROWS, Address, Refused, asking, reason_of, stub_at
from cli.view import ERR, OUT, duration

#: Calls shown at most by one command, and unless told.
CALLS_MAX, CALLS_DEFAULT = 10_000, 50
#: Deadline of an explanation: a past decision is looked up in the journal, at most 30 s a request, seconds.
EXPLAIN_SECONDS = 35.0
#: Agents that a server lists, and that are shown unless told.
AGENTS_MAX, AGENTS_DEFAULT = 100, 20
#: A region did not answer; those that did are shown.
EXIT_PARTLY = 1
#: Longest row of a table that is not on a terminal.
LINE_CHARACTERS = 1_000
LIVE_STATES = ("WAITING", "OFFERED", "ACCEPTED", "CONNECTED", "OVERFLOWING")

calls = typer.Typer(
    name="calls", help="Live calls, one call, why a call goes where it goes.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]
Numbers = Annotated[bool, typer.Option("--numbers", help="Show telephone numbers in full.")]


@calls.command("list")
def list_calls(
    region: Annotated[
        list[str] | None, typer.Option("--region", help="A region's id, may be repeated; all if none.")
    ] = None,
    queue: Annotated[str, typer.Option("--queue", help="Only this queue's, by its id.")] = "",
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help=f"Only these: {', '.join(LIVE_STATES).lower()}; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=CALLS_MAX, help="Shown a region.")] = (
        CALLS_DEFAULT
    ),
    numbers: Numbers = False,
    as_json: AsJson = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Show the live calls, oldest first in each region.

    Exit status 1 when a region did not answer; the others are shown.
    """
    request = routing_pb2.ListCallsRequest(
        queue=f"queues/{queue}" if queue else "", states=[_state(name) for name in state or ()]
    )
    found: list[tuple[call_pb2.Call, Timestamp]] = []
    missing: list[str] = []
    cut = False
    for each in region or _regions(address):
        request.region = f"regions/{each}"
        try:
            with stub_at(address, routing_pb2_grpc.RoutingServiceStub) as stub:
                rows, more = _live(stub, request, limit)
        except Refused as error:
            if not isinstance(error.__cause__, grpc.RpcError) or not _may_pass(error.__cause__):
                raise
            missing.append(f"{each}: {error}")
            continue
        found += rows
        cut = cut or more
    if as_json:
        typer.echo(json.dumps([_content(call, numbers) for call, _ in found], indent=1, ensure_ascii=False))
    else:
        _print(_table(found, numbers) if found else "no live calls")
    if cut:
        ERR.print(f"there are more: only {limit} of each region are shown (--limit)", highlight=False)
    for line in missing:
        ERR.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_PARTLY if missing else 0)


def _may_pass(error: Any) -> bool:
    """Nobody leads the region just now: not a mistake of who asks."""
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _state(name: str) -> Any:
    if name.upper() not in LIVE_STATES:
        raise Refused(f"state: must be one of {', '.join(LIVE_STATES).lower()}, got {name[:32]!r}")
    return call_pb2.CallState.Value(f"CALL_STATE_{name.upper()}")


def _regions(address: str) -> list[str]:
    """Every region's id."""
    found: list[str] = []
    with stub_at(address, directory_pb2_grpc.DirectoryServiceStub) as stub:
        request = directory_pb2.ListRegionsRequest(page_size=PAGE_ROWS)
        while True:
            answer = stub.ListRegions(request, **asking())
            found += [each.name.removeprefix("regions/") for each in answer.regions]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found


def _live(
    stub: Any, request: routing_pb2.ListCallsRequest, limit: int
) -> tuple[list[tuple[call_pb2.Call, Timestamp]], bool]:
    """(calls with the instant of their reading, whether there are more)."""
    found: list[tuple[call_pb2.Call, Timestamp]] = []
    request.page_token = ""
    while True:
        request.page_size = min(PAGE_ROWS, limit - len(found))
        answer = stub.ListCalls(request, **asking())
        found += [(call, answer.read_time) for call in answer.calls]
        request.page_token = answer.next_page_token
        if not request.page_token or len(found) >= limit:
            return found, bool(request.page_token)


def _content(call: call_pb2.Call, numbers: bool) -> dict[str, Any]:
    """A call as JSON, masked unless numbers are wanted."""
    from chassis.logs import mask_number, mask_text

    content: dict[str, Any] = MessageToDict(call, preserving_proto_field_name=True)
    if not numbers:
        for name in ("caller_number", "callback_number"):
            if name in content:
                content[name] = mask_number(content[name])
        if "attributes" in content:
            content["attributes"] = {key: mask_text(text) for key, text in content["attributes"].items()}
    return content


def _table(found: list[tuple[call_pb2.Call, Timestamp]], numbers: bool) -> Table:
    from chassis.logs import mask_number

    table = Table(
        *(Column("call", overflow="fold"), "state", Column("waited", justify="right")),
        *(Column("talks", justify="right"), "queue", "region", "agent", Column("prio", justify="right")),
        "number",
        box=None,
        pad_edge=False,
    )
    for call, now in found:
        talks = call.HasField("connect_time")
        table.add_row(
            call.call_id,
            _standing(call),
            _span(call.queue_time, call.connect_time if talks else now),
            _span(call.connect_time, now) if talks else "",
            *(_id(call.queue), _id(call.region), _id(call.agent) or "-", str(call.priority)),
            (call.caller_number if numbers else mask_number(call.caller_number)) or "withheld",
        )
    return table


def _standing(call: call_pb2.Call) -> str:
    state = call_pb2.CallState.Name(call.state).removeprefix("CALL_STATE_")
    if call.callback_number:
        return f"{state}, call-back"
    return f"{state}, line lost" if call.detached else state


def _span(since: Timestamp, until: Timestamp) -> str:
    return duration(max(0.0, (until.ToMilliseconds() - since.ToMilliseconds()) / 1000))


def _id(name: str) -> str:
    return name.partition("/")[2]


def _print(what: Table | str) -> None:
    """As wide as the terminal; into a file or a pipe, a row is a line however long it is."""
    out = OUT if OUT.is_terminal else Console(width=LINE_CHARACTERS, markup=False)
    out.print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))


@calls.command()
def show(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    numbers: Numbers = False,
    as_json: AsJson = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Show one call, live or ended not long ago. What led an older one to its agent: `calls explain`."""
    try:
        with stub_at(address, routing_pb2_grpc.RoutingServiceStub) as stub:
            found = stub.GetCall(routing_pb2.GetCallRequest(name=f"calls/{call}"), **asking())
    except Refused as error:
        if reason_of(error.__cause__) == "CALL_NOT_FOUND":
            raise Refused(f"{error} `callmesh calls explain` looks in the journal, too.") from None
        raise
    content = _content(found, numbers)
    if as_json:
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    table = Table(Column(no_wrap=True), "", box=None, pad_edge=False, show_header=False)
    for name, value in content.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {said}" for key, said in value.items())
        said = str(value).removeprefix("CALL_STATE_").removeprefix("CALL_OUTCOME_").removeprefix("CHANNEL_")
        table.add_row(name.replace("_", " "), said)
    _print(table)


@calls.command()
def explain(
    call: Annotated[str, typer.Argument(help="A live or past call's id; none with --queue.")] = "",
    region: Annotated[str, typer.Option("--region", help="Where a past call was; spares a search.")] = "",
    around: Annotated[
        str, typer.Option("--around", help="About when it was offered: 2026-11-22T10:00:00+08:00.")
    ] = "",
    queue: Annotated[str, typer.Option("--queue", help="As if a call came for this queue, by its id.")] = "",
    number: Annotated[str, typer.Option("--number", help="The caller's number.")] = "",
    skill: Annotated[
        list[str] | None, typer.Option("--skill", help="Wanted beyond the queue's, english or english:3.")
    ] = None,
    channel: Annotated[str, typer.Option("--channel", help="voice, chat, sms ...")] = "voice",
    language: Annotated[str, typer.Option("--language", help="The caller's, zh-CN.")] = "",
    priority: Annotated[int, typer.Option("--priority", min=-100, max=100, help="Of the call.")] = 0,
    agents: Annotated[int, typer.Option("--agents", min=0, max=AGENTS_MAX, help="Agents shown.")] = (
        AGENTS_DEFAULT
    ),
    as_json: AsJson = False,
    address: Address = ADDRESS_DEFAULT,
) -> None:
    """Say why a live or past call goes where it goes, or where one would go that came now.

    `calls explain CALL` looks a past call up in the journal; `calls explain --queue service --number NUMBER`
    asks as if a call came, and changes nothing.
    """
    if bool(call) == bool(queue):
        raise Refused("say which: a call's id, or --queue (with --number) for a call that might come")
    request = routing_pb2.ExplainRouteRequest(region=f"regions/{region}" if region else "")
    if around:
        request.around_time.FromDatetime(_instant(around))
    if call:
        request.name = f"calls/{call}"
    else:
        request.call.CopyFrom(
            call_pb2.CallRequest(
                queue=f"queues/{queue}",
                caller_number=number,
                channel=_channel(channel),
                language=language,
                priority=priority,
                skills=[_skill(text) for text in skill or ()],
            )
        )
    with stub_at(address, routing_pb2_grpc.RoutingServiceStub) as stub:
        found = stub.ExplainRoute(request, **asking(EXPLAIN_SECONDS))
    if as_json:
        typer.echo(
            json.dumps(MessageToDict(found, preserving_proto_field_name=True), indent=1, ensure_ascii=False)
        )
        return
    shown: tuple[Table | str, ...] = (*_said(found), _regions_table(found), "", _agents_table(found, agents))
    for part in shown:
        _print(part)
    if len(found.agents) > agents:
        _print(f"... and {len(found.agents) - agents} more (--agents)")


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise Refused(f"around: must be a time with its zone, 2026-11-22T10:00:00+08:00, got {text[:40]!r}")
    return instant.astimezone(UTC)


def _channel(name: str) -> Any:
    wanted = f"CHANNEL_{name.upper()}"
    known = [each for each, value in common_pb2.Channel.items() if value]
    if wanted not in known:
        names = ", ".join(each.removeprefix("CHANNEL_").lower() for each in known)
        raise Refused(f"channel: must be one of {names}, got {name[:32]!r}")
    return common_pb2.Channel.Value(wanted)


def _skill(text: str) -> call_pb2.SkillRequirement:
    name, colon, level = text.partition(":")
    if colon and not (level.isascii() and level.isdecimal() and 1 <= int(level) <= 5):
        raise Refused(f"skill: must be a skill or skill:level with a level of 1 to 5, got {text[:64]!r}")
    return call_pb2.SkillRequirement(skill=name, level_min=int(level or 0))


def _said(found: routing_pb2.ExplainRouteResponse) -> Iterator[str]:
    """The explanation in sentences."""
    when = found.decision_time.ToDatetime(tzinfo=UTC).isoformat(timespec="seconds")
    yield found.summary
    if found.offered_agent:
        yield f"Offered to {_id(found.offered_agent)} at {when}, replayed from the journal."
    elif found.replayed:
        yield f"Replayed from the journal as of {when}."
    yield f"Caller's place: {found.place}; home region: {_id(found.home_region) or 'none'}."
    parts = ", ".join(f"{name} {points}" for name, points in sorted(found.priority_parts.items()) if points)
    yield f"Points of priority: {parts or 'none'}."
    yield "Regions, as they stand now:" if found.replayed else "Regions:"


def _regions_table(found: routing_pb2.ExplainRouteResponse) -> Table:
    table = Table(
        *("region", Column("km", justify="right"), Column("cost", justify="right"), "made up of, or why not"),
        box=None,
        pad_edge=False,
    )
    for each in found.regions:
        parts = ", ".join(
            f"{name} {seconds:.1f}"
            for name, seconds in sorted(each.cost_parts.items())
            if abs(seconds) >= 0.05
        )
        table.add_row(
            _id(each.region),
            f"{each.distance_km:.0f}" if each.distance_km >= 0 else "?",
            "" if each.skipped_reason else f"{each.cost:.1f}",
            each.skipped_reason or parts,
        )
    return table


def _agents_table(found: routing_pb2.ExplainRouteResponse, shown: int) -> Table:
    where = f"agents of {_id(found.region)}" if found.region else "agents"
    table = Table(where, Column("rank", justify="right"), "why not", box=None, pad_edge=False)
    for each in found.agents[:shown]:
        table.add_row(_id(each.agent), str(each.rank) if each.rank else "-", each.skipped_reason)
    return table
