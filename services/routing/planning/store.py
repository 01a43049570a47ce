"""What planning reads, blockingly, in a process of its own: half-hour reports and a little of the
directory.
"""

from __future__ import annotations

import zoneinfo
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from chassis.ids import resource_name
from routing.directory import QUEUES, REGIONS, queue_config
from routing.errors import QueueNotFound
from routing.model import QueueConfig
from routing.planning.history import zone_named
from routing.reports import AGENT, QUEUE
from routing.reports_store import REPORTS

if TYPE_CHECKING:
    from pymongo.database import Database

#: States in which an agent keeps a roster.
THERE = ("time_available_ms", "time_reserved_ms", "time_on_call_ms", "time_wrap_up_ms")
#: Agents asked for at once.
AGENTS_ASKED_MAX = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueRow:
    """Half an hour of a queue, all regions together."""

    start_ms: int
    #: Callers, each once though a region passed it on.
    calls: int
    #: Conversations and after-call work that ended.
    handled: int
    handle_ms: int
    #: Hung up while waiting, and all that was waited.
    left: int
    waited_ms: int


class PlanningStore(Protocol):
    """Methods raise pymongo's errors when the database does not answer."""

    def queue(self, queue: str) -> QueueConfig:
        """As the directory has it. Raises QueueNotFound."""

    def home_zone(self, region: str) -> zoneinfo.ZoneInfo:
        """That of the head office, else of a region, else UTC."""

    def queue_rows(self, queue: str, from_ms: int, to_ms: int) -> Sequence[QueueRow]:
        """Half-hours that begin in the span, in order."""

    def times_there(self, agents: Iterable[str], from_ms: int, to_ms: int) -> dict[str, dict[int, int]]:
        """Agent to half-hour to milliseconds ready or at a contact."""


class MongoPlanning:
    """The reports and the directory in MongoDB."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._database = database

    def queue(self, queue: str) -> QueueConfig:
        document = self._database[QUEUES].find_one({"_id": queue})
        if document is None:
            raise QueueNotFound(resource=resource_name("queues", queue))
        return queue_config(document)

    def home_zone(self, region: str) -> zoneinfo.ZoneInfo:
        found = self._database[REGIONS].find_one({"head_office": True}, sort=[("_id", 1)])
        found = found or self._database[REGIONS].find_one({"_id": region}) or {}
        return zone_named("time_zone", found.get("time_zone") or "")

    def queue_rows(self, queue: str, from_ms: int, to_ms: int) -> Sequence[QueueRow]:
        wanted = {"kind": QUEUE, "subject": queue, "start": {"$gte": from_ms, "$lt": to_ms}}
        sums: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for document in self._database[REPORTS].find(wanted, {"start": 1, "figures": 1}):
            row = sums[int(document["start"])]
            for name, amount in document["figures"].items():
                row[name] += int(amount)
        return [queue_row(start_ms, sums[start_ms]) for start_ms in sorted(sums)]

    def times_there(self, agents: Iterable[str], from_ms: int, to_ms: int) -> dict[str, dict[int, int]]:
        wanted = sorted(set(agents))
        found: dict[str, dict[int, int]] = {agent: {} for agent in wanted}
        span = {"$gte": from_ms, "$lt": to_ms}
        for first in range(0, len(wanted), AGENTS_ASKED_MAX):
            some = {"$in": wanted[first : first + AGENTS_ASKED_MAX]}
            for document in self._database[REPORTS].find({"kind": AGENT, "start": span, "subject": some}):
                row, start_ms = found[document["subject"]], int(document["start"])
                row[start_ms] = row.get(start_ms, 0) + time_there(document["figures"])
        return found


def queue_row(start_ms: int, figures: dict[str, int]) -> QueueRow:
    """A row of figures by their names in the reports."""
    return QueueRow(
        start_ms=start_ms,
        calls=max(0, figures.get("offered", 0) - figures.get("moved", 0)),
        handled=figures.get("handled", 0),
        handle_ms=figures.get("talk_ms", 0) + figures.get("wrap_up_ms", 0),
        left=figures.get("abandoned", 0) + figures.get("short_abandoned", 0),
        waited_ms=figures.get("wait_ms", 0) + figures.get("abandoned_wait_ms", 0),
    )


def time_there(figures: dict[str, int]) -> int:
    """Milliseconds ready or at a contact."""
    return sum(int(figures.get(name, 0)) for name in THERE)


@dataclass(eq=False, slots=True)
class MemoryPlanning:
    """In memory, for tests."""

    queues: dict[str, QueueConfig]
    rows: dict[str, list[QueueRow]]
    there: dict[str, dict[int, int]]
    zone: zoneinfo.ZoneInfo

    def queue(self, queue: str) -> QueueConfig:
        if queue not in self.queues:
            raise QueueNotFound(resource=resource_name("queues", queue))
        return self.queues[queue]

    def home_zone(self, region: str) -> zoneinfo.ZoneInfo:
        return self.zone

    def queue_rows(self, queue: str, from_ms: int, to_ms: int) -> Sequence[QueueRow]:
        return [row for row in self.rows.get(queue, []) if from_ms <= row.start_ms < to_ms]

    def times_there(self, agents: Iterable[str], from_ms: int, to_ms: int) -> dict[str, dict[int, int]]:
        return {
            agent: {ms: n for ms, n in self.there.get(agent, {}).items() if from_ms <= ms < to_ms}
            for agent in agents
        }
