"""Many tickets at once, written as the service writes them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pymongo

from tickets import engine
from tickets.config import TicketsSettings
from tickets.documents import DOCUMENTS
from tickets.hotstore import NewTicket, document_of
from tickets.model import Channel, Draft, Kind, Priority, Ticket

#: Documents in one insert.
CHUNK = 1_000
#: Business time of the oldest ticket.
ORIGIN_MS = 1_772_452_800_000

_KINDS = (Kind.INQUIRY, Kind.COMPLAINT, Kind.REPAIR, Kind.CARE)
_CATEGORIES = tuple(f"topic-{number}" for number in range(40))


def some_ticket(number: int, rng: random.Random, made_ms: int) -> Ticket:
    """One of many: three of four are over, as in a service that has run for a while."""
    rules = TicketsSettings().rules()
    draft = Draft(
        subject=f"Request {number}",
        description="The line has been dead since this morning. " * 6,
        priority=rng.choice(list(Priority)),
        category=rng.choice(_CATEGORIES),
        customer_id=f"c{rng.randrange(50_000)}",
        caller_number=f"+86138{rng.randrange(100_000):08d}",
        channel=Channel.VOICE,
        tags=(f"t{rng.randrange(20)}",),
    )
    ticket = engine.open_ticket(
        f"t{number:09d}", rng.choice(_KINDS), draft, rules, made_ms, actor="bench"
    ).ticket
    if rng.random() < 0.25:
        return ticket
    act = engine.Act(verb="cancel", actor="bench", reason="done elsewhere")
    return engine.transition(ticket, act, rules, made_ms + 60_000).ticket


def documents(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Documents of `count` tickets, a minute apart, the oldest first."""
    rng, now = random.Random(seed), datetime.now(UTC)
    for number in range(count):
        yield document_of(
            NewTicket(ticket=some_ticket(number, rng, ORIGIN_MS + number * 60_000), events=()), now
        )


def fill(uri: str, database: str, documents_: Iterator[dict[str, Any]]) -> None:
    """Inserts documents of tickets; the service's indexes must exist."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri)
    collection = client[database][DOCUMENTS[0]._get_collection_name()]
    chunk: list[dict[str, Any]] = []
    for document in documents_:
        chunk.append(document)
        if len(chunk) == CHUNK:
            collection.insert_many(chunk, ordered=False)
            chunk = []
    if chunk:
        collection.insert_many(chunk, ordered=False)
    client.close()
