"""Opening and reading a ticket against an empty unary call on the same server."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from typing import Any

from bench.tickets_parts.serving import per_second, server
from google.protobuf.wrappers_pb2 import StringValue

from callmesh.tickets.v1 import ticket_pb2 as pb
from callmesh.tickets.v1 import ticket_service_pb2 as rpc
from callmesh.tickets.v1 import ticket_service_pb2_grpc
from chassis.testing.echo import EchoStub

#: Limits, as shares of the empty call's throughput.
CREATE_RATIO_MIN, GET_RATIO_MIN = 0.2, 0.4
#: Calls in flight at once.
CLIENTS = 32
#: Rounds; the median of their ratios counts.
ROUNDS = 7

Call = Callable[[int], Awaitable[Any]]


def new_ticket(number: int) -> pb.Ticket:
    """What an agent's desktop sends."""
    return pb.Ticket(
        kind=pb.TICKET_KIND_REPAIR if number % 3 else pb.TICKET_KIND_COMPLAINT,
        subject=f"No signal at home {number}",
        description="The line has been dead since this morning; the modem's lamp blinks red. " * 4,
        priority=pb.PRIORITY_HIGH,
        category="network",
        caller_number=f"+86138{number % 100_000_000:08d}",
        tags=["fibre"],
    )


async def _rounds(calls: dict[str, Call], count: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS):
        names = list(calls) if turn % 2 else list(reversed(calls))
        for name in names:  # the order changes, so that a drift of the machine falls on all alike
            found[name].append(await per_second(calls[name], count, CLIENTS))
    return found


async def measure(uri: str, scale: float) -> dict[str, Any]:
    """The figures of this part."""
    count = max(320, int(2_000 * scale))
    async with server(uri, "bench_calls") as channel:
        stub = ticket_service_pb2_grpc.TicketServiceStub(channel)
        echo, empty = EchoStub(channel), StringValue()
        made = [
            (await stub.CreateTicket(rpc.CreateTicketRequest(ticket=new_ticket(n)))).name for n in range(200)
        ]
        calls: dict[str, Call] = {
            "empty": lambda number: echo.Unary(empty),
            "create": lambda number: stub.CreateTicket(rpc.CreateTicketRequest(ticket=new_ticket(number))),
            "get": lambda number: stub.GetTicket(rpc.GetTicketRequest(name=made[number % len(made)])),
        }
        for call in calls.values():
            await per_second(call, 320, CLIENTS)
        found = await _rounds(calls, count)
    rates = {name: statistics.median(values) for name, values in found.items()}

    def ratio(name: str) -> float:
        pairs = zip(found[name], found["empty"], strict=True)
        return round(statistics.median(rate / empty for rate, empty in pairs), 3)

    return {
        "empty_calls_per_second": round(rates["empty"]),
        "create_calls_per_second": round(rates["create"]),
        "get_calls_per_second": round(rates["get"]),
        "create_ratio": ratio("create"),
        "create_ratio_min": CREATE_RATIO_MIN,
        "get_ratio": ratio("get"),
        "get_ratio_min": GET_RATIO_MIN,
    }
