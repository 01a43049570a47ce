"""Logs of other systems' tickets: comma-separated rows with a header, one a change, made cases.

Columns are known by the names that service desks' exports have (`_COLUMNS`); which ticket, which state and
when are needed, all else is taken where it is there. A row that cannot be read is told by its number and left
out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chassis.errors import InvalidArgument
from tickets.reports import Case

#: Most rows of a log, tickets in it, and bad rows that are told one by one.
ROWS_MAX, CASES_MAX, BAD_ROWS_MAX = 2_000_000, 500_000, 1_000
#: Most changes of one ticket.
STEPS_MAX = 2_000
#: Largest piece of a file, bytes; longest line and value, characters.
CHUNK_BYTES_MAX, LINE_CHARACTERS_MAX, VALUE_CHARACTERS_MAX = 1_048_576, 65_536, 256

#: What a column is -> the names that it may have.
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "case": ("number", "ticket", "case", "case_id", "incident", "id"),
    "state": ("incident_state", "ident_state", "state", "activity", "status"),
    "time": ("sys_updated_at", "time", "timestamp", "updated_at"),
    "opened": ("opened_at", "created_at", "open_time"),
    "resolved": ("resolved_at", "resolve_time"),
    "closed": ("closed_at", "close_time"),
    "sla": ("made_sla", "sla_met"),
    "reassigned": ("reassignment_count",),
    "reopened": ("reopen_count",),
    "priority": ("priority",),
    "category": ("category",),
    "team": ("assignment_group", "team"),
    "assignee": ("assigned_to", "assignee"),
    "channel": ("contact_type", "channel"),
    "kind": ("kind", "type"),
    "product": ("product", "cmdb_ci"),
    "customer_tier": ("customer_tier", "tier"),
}
_NEEDED = ("case", "state", "time")
#: What stands for nothing.
_NOTHING = frozenset({"", "?", "null", "none", "n/a"})
_FORMATS = ("%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")
#: States in which nobody works: waiting for somebody, or over.
_IDLE_WORDS = ("await", "wait", "hold", "pending", "resolved", "closed", "cancel", "new")
#: States after which a ticket is over.
_OVER_WORDS = ("resolved", "closed", "cancel")


def read_time(text: str) -> int:
    """A time in epoch ms: ISO 8601, or day/month/year; without a zone it is taken as UTC. ValueError."""
    for pattern in _FORMATS:
        try:
            return int(datetime.strptime(text, pattern).replace(tzinfo=UTC).timestamp() * 1000)
        except ValueError:
            continue
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a file that comes in pieces. InvalidArgument(chunk) for a piece too large, for what is not
    UTF-8 and for a line without end."""
    rest = b""
    for chunk in chunks:
        if len(chunk) > CHUNK_BYTES_MAX:
            raise InvalidArgument(field="chunk", why=f"must be at most {CHUNK_BYTES_MAX} bytes")
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > 4 * LINE_CHARACTERS_MAX:
            raise InvalidArgument(field="chunk", why="holds a line that is too long")
        for line in lines:
            yield _text(line)
    if rest.strip():
        yield _text(rest)


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        raise InvalidArgument(field="chunk", why="must be UTF-8") from None


@dataclass(kw_only=True, slots=True)
class _Life:
    """One ticket while its rows come in."""

    opened: int | None = None
    resolved: int | None = None
    closed: int | None = None
    sla: bool | None = None
    reassigned: int = 0
    reopened: int = 0
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    steps: list[tuple[str, int]] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Log:
    """What an import found."""

    rows: int = 0
    #: Rows whose service level the log says was kept, and rows that say either.
    rows_met: int = 0
    rows_judged: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    lives: dict[str, _Life] = field(default_factory=dict)

    def cases(self) -> Iterator[Case]:
        """The tickets of the log."""
        for id, life in self.lives.items():
            yield _case(id, life)


def _header(line: str) -> dict[str, int]:
    names = [name.strip().lower() for name in next(csv.reader([line]), [])]
    found = {}
    for what, aliases in _COLUMNS.items():
        place = next((names.index(alias) for alias in aliases if alias in names), None)
        if place is not None:
            found[what] = place
    missing = [f"{what} ({', '.join(_COLUMNS[what])})" for what in _NEEDED if what not in found]
    if missing:
        raise InvalidArgument(field="chunk", why=f"the header has no column for {' and '.join(missing)}")
    return found


def read_log(lines: Iterable[str]) -> Log:
    """The tickets of a log. InvalidArgument(chunk) without a usable header or with too much in it."""
    source, log = iter(lines), Log()
    first = next(source, None)
    if first is None:
        raise InvalidArgument(field="chunk", why="the log is empty")
    columns = _header(first)
    for number, line in enumerate(source, start=2):
        if not line.strip():
            continue
        log.rows += 1
        if log.rows > ROWS_MAX:
            raise InvalidArgument(field="chunk", why=f"holds more than {ROWS_MAX} rows")
        try:
            _take_row(log, columns, next(csv.reader(io.StringIO(line))))
        except (ValueError, StopIteration, csv.Error) as error:
            if len(log.bad) < BAD_ROWS_MAX:
                log.bad.append((number, str(error)[:200]))
    return log


def _take_row(log: Log, columns: Mapping[str, int], row: list[str]) -> None:
    """Takes one row into its ticket; ValueError saying what is wrong with it, then nothing is taken."""

    def value(what: str) -> str:
        place = columns.get(what)
        if place is None:
            return ""
        if place >= len(row):
            raise ValueError(f"has {len(row)} values, {what} would be number {place + 1}")
        text = row[place].strip()
        return "" if text.lower() in _NOTHING else text[:VALUE_CHARACTERS_MAX]

    case, state, when = value("case"), value("state"), value("time")
    for name, text in (("case", case), ("state", state), ("time", when)):
        if not text:
            raise ValueError(f"has no {name}")
    times = {name: read_time(text) for name in ("opened", "resolved", "closed") if (text := value(name))}
    moment = read_time(when)
    counts = {name: int(text) for name in ("reassigned", "reopened") if (text := value(name))}
    if case not in log.lives and len(log.lives) >= CASES_MAX:
        raise InvalidArgument(field="chunk", why=f"holds more than {CASES_MAX} tickets")
    life = log.lives.setdefault(case, _Life())
    met = value("sla").lower()
    if met in ("true", "false", "1", "0", "yes", "no"):
        life.sla = met in ("true", "1", "yes")
        log.rows_judged += 1
        log.rows_met += life.sla
    life.opened = times.get("opened", life.opened)
    life.resolved = times.get("resolved", life.resolved)
    life.closed = times.get("closed", life.closed)
    life.reassigned = max(life.reassigned, counts.get("reassigned", 0))
    life.reopened = max(life.reopened, counts.get("reopened", 0))
    for name in ("priority", "category", "team", "assignee", "channel", "kind", "product", "customer_tier"):
        if text := value(name):
            life.values[name] = (text,)
    if len(life.steps) < STEPS_MAX:
        life.steps.append((state, moment))


def _case(id: str, life: _Life) -> Case:
    """A ticket's life as a case: rows that don't change the state are part of the one before."""
    ordered = sorted(life.steps, key=lambda step: step[1])
    steps: list[tuple[str, int, bool]] = []
    for state, moment in ordered:
        if not steps or steps[-1][0] != state:
            low = state.lower()
            steps.append((state, moment, not any(word in low for word in _IDLE_WORDS)))
    opened = life.opened if life.opened is not None else ordered[0][1]
    over = any(word in ordered[-1][0].lower() for word in _OVER_WORDS)
    return Case(
        id=id,
        opened_ms=opened,
        steps=tuple(steps),
        open=not over,
        resolved_ms=life.resolved,
        closed_ms=life.closed if over else None,
        sla_met=life.sla,
        reassigned=life.reassigned,
        reopened=life.reopened,
        values={**life.values, "state": (ordered[-1][0],)},
    )
