"""Who was there when they were to be, from half-hourly times at work. Pure.

Planned is the time that a roster asks for, its breaks left out. Of what an agent was ready or at a contact
in a half-hour, at most what was planned there counts as kept, the rest as beyond. Adherence = kept / planned;
conformance = (kept + beyond) / planned. Half-hours are told apart, not minutes: who comes ten minutes late
and stays ten minutes longer inside the same half-hour has kept the roster. Only half-hours that are over, and
counted, are looked at: what is to come is no absence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chassis.errors import InvalidArgument
from routing.planning.history import SLOT_MS

#: Entries of one roster, and the time that it may span.
ENTRIES_MAX = 10_000
SPAN_MS_MAX = 31 * 86_400_000
#: Longest shift, and breaks of one.
SHIFT_MS_MAX = 86_400_000
BREAKS_MAX = 20

#: A half-hour counts so long after its end: its figures are written down a moment after it.
SETTLED_MS = 60_000

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An agent is to be there, [start, end) without the breaks."""

    agent: str
    start_ms: int
    end_ms: int
    breaks: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """One agent, milliseconds."""

    planned_ms: int
    kept_ms: int
    beyond_ms: int

    @property
    def adherence(self) -> float:
        return self.kept_ms / self.planned_ms if self.planned_ms else 1.0

    @property
    def conformance(self) -> float:
        return (self.kept_ms + self.beyond_ms) / self.planned_ms if self.planned_ms else 1.0


def check(roster: Sequence[Entry]) -> Span:
    """(first, last instant) of a roster. Raises InvalidArgument naming the entry."""
    if not 1 <= len(roster) <= ENTRIES_MAX:
        raise InvalidArgument(field="roster", why=f"must have 1 to {ENTRIES_MAX} entries")
    for place, entry in enumerate(roster):
        field = f"roster[{place}]"
        if not entry.start_ms < entry.end_ms <= entry.start_ms + SHIFT_MS_MAX:
            raise InvalidArgument(
                field=f"{field}.interval", why="must end after it begins, a day later at most"
            )
        if len(entry.breaks) > BREAKS_MAX:
            raise InvalidArgument(field=f"{field}.breaks", why=f"at most {BREAKS_MAX} are allowed")
        at_ms = entry.start_ms
        for n, (begin_ms, end_ms) in enumerate(entry.breaks):
            if not at_ms <= begin_ms < end_ms <= entry.end_ms:
                why = "must lie inside the interval, in order, without overlap"
                raise InvalidArgument(field=f"{field}.breaks[{n}]", why=why)
            at_ms = end_ms
    _apart(roster)
    first, last = min(e.start_ms for e in roster), max(e.end_ms for e in roster)
    if last - first > SPAN_MS_MAX:
        raise InvalidArgument(field="roster", why="must span at most 31 days")
    return first, last


def _apart(roster: Sequence[Entry]) -> None:
    """Nobody is to be there twice at a time."""
    until: dict[str, int] = {}
    for place in sorted(range(len(roster)), key=lambda n: (roster[n].agent, roster[n].start_ms)):
        entry = roster[place]
        if entry.start_ms < until.get(entry.agent, entry.start_ms):
            raise InvalidArgument(field=f"roster[{place}].interval", why=f"overlaps another of {entry.agent}")
        until[entry.agent] = entry.end_ms


def planned(roster: Iterable[Entry]) -> dict[str, dict[int, int]]:
    """Agent to half-hour (its beginning) to milliseconds that the roster asks for."""
    table: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for entry in roster:
        row = table[entry.agent]
        for slot, ms in _by_slot(entry.start_ms, entry.end_ms):
            row[slot] += ms
        for begin_ms, end_ms in entry.breaks:
            for slot, ms in _by_slot(begin_ms, end_ms):
                row[slot] -= ms
    return {agent: dict(row) for agent, row in table.items()}


def _by_slot(start_ms: int, end_ms: int) -> Iterable[tuple[int, int]]:
    at_ms = start_ms
    while at_ms < end_ms:
        slot = at_ms - at_ms % SLOT_MS
        until_ms = min(end_ms, slot + SLOT_MS)
        yield slot, until_ms - at_ms
        at_ms = until_ms


def adherence(
    roster: Sequence[Entry], there: Mapping[str, Mapping[int, int]], now_ms: int
) -> dict[str, Kept]:
    """Agent to what was kept by now. `there` is agent to half-hour to milliseconds ready or at a contact.
    Raises InvalidArgument.
    """
    check(roster)
    over_ms = now_ms - SETTLED_MS - SLOT_MS
    found = {}
    for agent, row in sorted(planned(roster).items()):
        wanted = {slot: ms for slot, ms in row.items() if slot <= over_ms}
        was = {slot: ms for slot, ms in there.get(agent, {}).items() if slot <= over_ms}
        kept = {slot: min(wanted.get(slot, 0), ms) for slot, ms in was.items()}
        found[agent] = Kept(
            planned_ms=sum(wanted.values()),
            kept_ms=sum(kept.values()),
            beyond_ms=sum(was.values()) - sum(kept.values()),
        )
    return found
