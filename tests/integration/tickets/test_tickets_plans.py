"""What tickets' queries look at among 20,000 documents: MongoDB's own plan is asked for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.database import Database

from chassis.mongo import connect, disconnect, ensure_indexes
from tickets import engine
from tickets import sla as clocks
from tickets.config import TicketsSettings
from tickets.documents import DOCUMENTS, to_fields
from tickets.model import Draft, Kind, Rules, Ticket
from tickets.store import MongoStore

pytestmark = pytest.mark.integration

NOW = 1_772_452_800_000
RULES = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=86_400_000)
#: Closed tickets of one number and customer, and what besides them is open.
CLOSED, OPEN = 20_000, 3
#: Open tickets of others.
OTHERS = 5_000
NUMBER = "+8613800138000"


def ticket(id: str, at: int = NOW, **draft: Any) -> Ticket:
    return engine.open_ticket(id, Kind.INQUIRY, Draft(subject="Bill", **draft), RULES, at, actor="ann").ticket


def over(of: Ticket) -> Ticket:
    act = engine.Act(verb="cancel", actor="ann", reason="because")
    return engine.transition(of, act, RULES, NOW).ticket


def raw(of: Ticket) -> dict[str, Any]:
    """As the store writes it."""
    fields = {name: value for name, value in to_fields(of).items() if value is not None}
    return {"_id": of.id, "version": 1, **fields}


def connected(uri: str, name: str) -> Database[dict[str, Any]]:
    return connect(TicketsSettings(mongo_uri=uri, mongo_database=name))


@pytest.fixture(scope="module")
def one_caller(mongo_uri: str, mongo_client: Any) -> Iterator[Database[dict[str, Any]]]:
    """A database in which nearly all is closed and of one caller, as an earlier release left it."""
    name = "test_tickets_one_caller"
    mongo_client.drop_database(name)
    database = connected(mongo_uri, name)
    whose = {"caller_number": NUMBER, "customer_id": "42"}
    closed = raw(over(ticket("c", **whose)))
    nobodys = raw(over(ticket("n", caller_number=NUMBER)))
    database.tickets.insert_many(
        {**(nobodys if n % 2 else closed), "_id": f"c{n:05}", "created_ms": NOW - n} for n in range(CLOSED)
    )
    database.tickets.insert_many(raw(ticket(f"o{n}", **whose)) for n in range(OPEN))
    database.tickets.insert_many(raw(ticket(f"u{n}", caller_number=NUMBER)) for n in range(OPEN))
    database.tickets.insert_many(raw(ticket(f"x{n}", category="network", **whose)) for n in range(OPEN))
    other = raw(ticket("a", customer_id="7", caller_number="+4930123456"))
    database.tickets.insert_many(
        {**other, "_id": f"a{n:04}", "customer_id": f"7{n}", "caller_number": f"+49301{n:06}"}
        for n in range(OTHERS)
    )
    for field in ("customer_id", "caller_number"):
        order = [(field, 1), ("created_ms", -1), ("_id", -1)]
        database.tickets.create_index(order, name=f"{field}_newest", sparse=True)
    ensure_indexes(DOCUMENTS)
    yield database
    disconnect()
    mongo_client.drop_database(name)


def looked_at(database: Database[dict[str, Any]], work: Any) -> tuple[int, int]:
    """(keys, documents) that the queries of `work` examined."""
    database.command("profile", 2)
    try:
        work()
    finally:
        database.command("profile", 0)
    reads = list(database["system.profile"].find({"ns": f"{database.name}.tickets"}))
    database.drop_collection("system.profile")
    assert reads and all("COLLSCAN" not in read.get("planSummary", "") for read in reads)
    return sum(read["keysExamined"] for read in reads), sum(read["docsExamined"] for read in reads)


@pytest.mark.parametrize(
    ("customer", "number", "found"),
    [("42", "", OPEN), ("", NUMBER, 2 * OPEN), ("42", NUMBER, 2 * OPEN), ("43", "+4930123456", 0)],
)
def test_a_call_looks_at_open_tickets_only(
    one_caller: Database[dict[str, Any]], customer: str, number: str, found: int
) -> None:
    """A caller's closed tickets, years of them, were read for every call."""
    store = MongoStore()
    for n in range(9):  # plans are remembered by shape: here of callers for whom either would do
        store.open_like(f"7{n}", f"+49301{n:06}", "inquiry")
    assert len(store.open_like(customer, number, "inquiry")) == found
    keys, documents = looked_at(one_caller, lambda: store.open_like(customer, number, "inquiry"))
    assert keys <= 3 * OPEN + 2 and documents <= 3 * OPEN


def test_a_number_that_becomes_known_looks_at_open_tickets_only(
    one_caller: Database[dict[str, Any]],
) -> None:
    store = MongoStore()
    for n in range(9):
        store.open_of_number(f"+49301{n:06}", 100)
    assert {one.id for one in store.open_of_number(NUMBER, 100)} == {"u0", "u1", "u2"}
    keys, documents = looked_at(one_caller, lambda: store.open_of_number(NUMBER, 100))
    assert keys <= OPEN + 4 and documents <= OPEN
