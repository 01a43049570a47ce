"""Lists and filters on a full database against the same on a small one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.tickets_parts.filling import documents, fill
from bench.tickets_parts.serving import milliseconds, p99, server

from callmesh.tickets.v1 import ticket_service_pb2 as rpc
from callmesh.tickets.v1 import ticket_service_pb2_grpc

#: The limit: p99 with the many tickets over p99 with the few.
LIST_P99_RATIO_MAX = 1.5
#: How many are few, and many.
FEW, MANY = 2_000, 200_000
#: Calls of each database in a round, and rounds; the best round's p99 counts, so that a busy neighbour
#: does not.
CALLS, ROUNDS = 300, 4

#: What people ask for: (filter, order).
QUERIES: Sequence[tuple[Callable[[int], str], str]] = (
    (lambda n: "", ""),
    (lambda n: "open = true", ""),
    (lambda n: "kind = COMPLAINT AND open = true", ""),
    (lambda n: f"category = topic-{n % 40}", ""),
    (lambda n: f"customer = customers/c{n % 50_000}", ""),
    (lambda n: f"caller_number = +86138{n % 100_000:08d} AND open = true", ""),
    (lambda n: f"tags:t{n % 20}", ""),
    (lambda n: "priority = URGENT AND open = true", ""),
    (lambda n: "kind = REPAIR OR kind = COMPLAINT", ""),
    (lambda n: "open = true", "due_time"),
)


async def _rounds(stubs: Sequence[Any]) -> list[list[float]]:
    """p99 of each round for each stub."""
    found: list[list[float]] = [[] for _ in stubs]

    def call_of(stub: Any) -> Callable[[int], Any]:
        def call(number: int) -> Any:
            text, order = QUERIES[number % len(QUERIES)]
            return stub.ListTickets(rpc.ListTicketsRequest(filter=text(number), order_by=order, page_size=25))

        return call

    for stub in stubs:
        await milliseconds(call_of(stub), 100)
    for turn in range(ROUNDS):
        order = list(enumerate(stubs))
        for index, stub in order if turn % 2 else reversed(order):
            found[index].append(p99(await milliseconds(call_of(stub), CALLS)))
    return found


async def measure(uri: str, scale: float) -> dict[str, Any]:
    """The figures of this part."""
    counts = (int(FEW * scale) or 1, int(MANY * scale))
    async with server(uri, "bench_few") as few, server(uri, "bench_many") as many:
        for database, count in zip(("bench_few", "bench_many"), counts, strict=True):
            fill(uri, database, documents(count, seed=1))
        stubs = [ticket_service_pb2_grpc.TicketServiceStub(channel) for channel in (few, many)]
        small, large = (min(values) for values in await _rounds(stubs))
    return {
        "list_tickets_few": counts[0],
        "list_tickets_many": counts[1],
        "list_p99_few_ms": round(small, 2),
        "list_p99_many_ms": round(large, 2),
        "list_p99_ratio": round(large / small, 2),
        "list_p99_ratio_max": LIST_P99_RATIO_MAX,
    }
