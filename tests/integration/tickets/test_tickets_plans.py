"""What tickets' queries look at among 20,000 documents: MongoDB's own plan is asked for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pymongo.database import Database

from chassis.mongo import connect, disconnect, ensure_indexes
from tickets import engine
from tickets import sla as clocks
from tickets.config import TicketsSettings
from tickets.documents import DOCUMENTS, to_fields
from tickets.filters import holds, parse
from tickets.listing import SIFTED_FIRST, SIFTED_MAX, Query
from tickets.model import Draft, Kind, Rules, Ticket
from tickets.store import MongoStore, sort_key, value_reader

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


#: Tickets of the database for lists, and one of how many is rare.
MANY, RARE = 20_000, 4_000


def nth(n: int) -> Ticket:
    """One of them: every one is of some team, assignee and language, most are closed."""
    rare = n % RARE == RARE - 1
    made = ticket(
        f"t{n:05}",
        at=NOW + n,
        category="rare" if rare else "usual",
        customer_id="rare" if rare else f"c{n}",
        language="fr" if rare else "zh-CN",
        required_skills=("welding",) if rare else (),
        assets=("assets/rare",) if rare else (),
        products=("rare",) if rare else (),
    )
    made = replace(made, watchers=("rare",) if rare else (), tier="vip" if rare else "")
    if n % 20 == 0 or rare:
        return replace(made, team="rare" if rare else "usual", assignee="rare" if rare else f"a{n % 7}")
    return replace(over(made), team="usual", assignee=f"a{n % 7}")


@pytest.fixture(scope="module")
def many(mongo_uri: str, mongo_client: Any) -> Iterator[dict[str, Ticket]]:
    """What a database holds."""
    name = "test_tickets_many"
    mongo_client.drop_database(name)
    database = connected(mongo_uri, name)
    ensure_indexes(DOCUMENTS)
    tickets = {one.id: replace(one, version=1) for one in map(nth, range(MANY))}
    database.tickets.insert_many(raw(one) for one in tickets.values())
    yield tickets
    disconnect()
    mongo_client.drop_database(name)


def walked(query: Query, size: int) -> tuple[list[str], int]:
    """(ids of all pages of a list, how many pages they are)."""
    found, after, pages = list[str](), None, 0
    while True:
        page = MongoStore().sift(query, size, after)
        assert len(page.tickets) <= size
        found, pages, after = found + [one.id for one in page.tickets], pages + 1, page.more
        if after is None:
            return found, pages


#: A filter, whether by due time, and how many tickets a page of ten looks at at most.
LISTS = [
    ("", False, 11),
    ("", True, 11),
    ("open = true", False, 11),
    ("team = teams/rare", False, 11),
    ("team = teams/rare AND open = true", False, 11),
    ("team = teams/usual AND open = true", False, 11),
    ("team = teams/rare", True, 11),
    ("assignee = agents/a3 AND open = true", False, 11),
    ("assignee = agents/a3", False, 12),
    ("assignee = agents/a3", True, 11),
    ("category = rare", False, 11),
    ("customer = customers/rare", False, 11),
    ("assets:assets/rare", False, 11),
    ("products:rare", False, 11),
    ("watchers:rare", False, 11),
    ("category = rare AND language = fr", False, 16),
    ("language = fr", False, SIFTED_MAX),
    ("customer_tier = vip", False, SIFTED_MAX),
    ("required_skills:welding AND open = true", False, SIFTED_MAX),
    ("flow = flows/none", False, SIFTED_MAX),
    ("category != usual", False, SIFTED_MAX),
    ("NOT category = usual", False, SIFTED_MAX),
    ("category = rare OR category = none", False, SIFTED_MAX),
    ("language = zh-CN AND open = true", False, SIFTED_FIRST),
    ("language = fr", True, SIFTED_MAX),
    ('update_time >= "2026-03-02T12:00:19.990Z"', False, 11),
    ('update_time >= "2026-03-02T12:00:00Z" AND language = fr', False, SIFTED_MAX),
    ('create_time < "2026-03-02T12:00:04Z" AND language = fr', False, SIFTED_MAX),
]


@pytest.mark.parametrize(("text", "by_due", "documents_max"), LISTS)
def test_a_page_of_any_list_looks_at_a_bounded_number(
    many: dict[str, Ticket], text: str, by_due: bool, documents_max: int
) -> None:
    database = MongoStore()._tickets().database
    query = Query(conditions=parse(text), by_due=by_due)
    MongoStore().sift(query, 10, None)
    keys, documents = looked_at(database, lambda: MongoStore().sift(query, 10, None))
    # besides the page's own tickets, keys that tell how far to look: of a few, then of `SIFTED_MAX`
    few = documents_max + SIFTED_FIRST + 20
    assert documents <= (documents_max if documents_max < SIFTED_MAX else SIFTED_MAX + SIFTED_FIRST), (
        documents
    )
    assert keys <= (2 * few if documents_max < SIFTED_MAX else 2 * SIFTED_MAX + 2 * few), keys


@pytest.mark.parametrize("size", [3, 700])
@pytest.mark.parametrize(("text", "by_due", "documents_max"), LISTS)
def test_the_pages_of_any_list_hold_what_matches_once_and_in_order(
    many: dict[str, Ticket], text: str, by_due: bool, documents_max: int, size: int
) -> None:
    query = Query(conditions=parse(text), by_due=by_due)
    if size == 3:  # a few of the oldest
        query = replace(
            query, conditions=(*query.conditions, *parse('create_time < "2026-03-02T12:00:00.500Z"'))
        )
    wanted = [
        one
        for one in many.values()
        if all(holds(term, value_reader(one)) for term in query.conditions)
        and (not by_due or clocks.due_ms(one.sla.resolution) is not None)
    ]
    wanted.sort(key=lambda one: sort_key(one, query), reverse=not by_due)
    found, pages = walked(query, size)
    assert found == [one.id for one in wanted]
    assert pages <= len(wanted) // size + MANY // SIFTED_MAX + 2
