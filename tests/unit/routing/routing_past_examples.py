"""A day that the engine lived through, and its journal, for tests of what is read from journals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from routing.journal import Block
from routing.model import AgentConfig, Event, QueueConfig
from routing.testing import block_of
from routing.virtual import Contact, DayResult, Duty, Roster, VirtualDay

START_MS = 1_772_000_000_000
HOUR_MS = 3_600_000
QUEUES = (QueueConfig(id="service", skills=(("english", 2),)), QueueConfig(id="sales"))


def a_day() -> tuple[Roster, list[Contact]]:
    """Two regions of two agents, three hours, some callers who leave and some after-call work."""
    agents = tuple(AgentConfig(id=name, skills=(("english", 3),)) for name in ("ann", "bob", "cay", "dan"))
    duties = [Duty(agent=a.id, start_ms=START_MS, end_ms=START_MS + 3 * HOUR_MS) for a in agents[:3]]
    duties.append(Duty(agent="dan", start_ms=START_MS + HOUR_MS, end_ms=START_MS + 2 * HOUR_MS))
    contacts = [
        Contact(
            id=f"c{n:03d}",
            queue="sales" if n % 5 == 0 else "service",
            arrival_ms=START_MS + 60_000 + n * 40_000,
            talk_ms=90_000 + (n * 7_919) % 60_000,
            wrap_up_ms=(n % 3) * 10_000,
            patience_ms=30_000 if n % 4 == 0 else None,
            priority=n % 2,
            home="north" if n % 3 else "south",
        )
        for n in range(200)
    ]
    sites = {"ann": "north", "bob": "north", "cay": "south", "dan": "south"}
    roster = Roster(
        queues=QUEUES, agents=agents, duties=tuple(duties), sites=sites, share=True, ring_ms=2_000
    )
    return roster, contacts


def lived(roster: Roster, contacts: list[Contact]) -> tuple[DayResult, dict[str, list[tuple[int, Event]]]]:
    """What came of the day, and its events by shard with their instants."""
    events: dict[str, list[tuple[int, Event]]] = defaultdict(list)
    day = VirtualDay(roster, contacts, lambda site, event, at_ms: events[site].append((at_ms, event)))
    return day.run(), events


def blocks_of(shard: str, events: list[tuple[int, Event]], size: int = 50) -> Iterator[Block]:
    """The events as a journal keeps them, with an empty block after each full one."""
    for sequence, start in enumerate(range(0, 2 * len(events), size), 1):
        part = events[start // 2 : start // 2 + size] if sequence % 2 else []
        now_ms = part[0][0] if part else events[min(start // 2, len(events) - 1)][0]
        yield block_of(part, sequence, now_ms, shard=shard)
