"""Reads a call-level log in the format of the bank data behind Brown et al. 2005: tab separated, one call
a line.

A line that is torn or malformed is reported with its number and reason, and the rest goes on. A gzip file
that ends in the middle gives the lines before the end. Nothing is kept of the file but what the caller
keeps: it is read as a stream.

Quirks of the data that are not errors: a negative `vru_time` (the caller was queued before the voice
unit's own clock closed the record; the times of day are right), AGENT without a server's name, calls that
pass midnight, a customer id that a spreadsheet has rounded ("6.02701E+11": who it was is lost, so the
caller counts as not identified).
"""

from __future__ import annotations

import datetime
import gzip
import io
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = (
    "vru+line", "call_id", "customer_id", "priority", "type", "date", "vru_entry", "vru_exit", "vru_time",
    "q_start", "q_exit", "q_time", "outcome", "ser_start", "ser_exit", "ser_time", "server",
)  # fmt: skip
#: Longest line taken; real ones have about 130 bytes.
LINE_BYTES_MAX = 4096
#: Longest a call may have waited or been served, by the log.
SPAN_SECONDS_MAX = 86_400
#: Torn lines kept with their reason; beyond, they are only counted.
TORN_LINES_KEPT_MAX = 100
#: Calls of one day that are replayed at most: each is a task of the simulator.
DAY_CALLS_MAX = 100_000
#: Different days in one file at most; more is not a log of calls.
DAYS_MAX = 4000
DAY_SECONDS = 86_400
NO_SERVER = "NO_SERVER"

_ROUNDED = re.compile(r"\d(\.\d+)?E\+\d{1,2}")
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d):([0-5]\d)")
_TYPE = re.compile(r"[A-Z]{1,8}")
_ID = re.compile(r"[0-9A-Za-z_+-]{1,32}")
_SERVER = re.compile(r"[^\t\x00-\x1f]{1,64}")


class CallLogError(ValueError):
    """The log as a whole cannot be used; the message says why in one sentence."""


class LineError(ValueError):
    """One line cannot be used; the message says which column and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TornLine:
    """A line that was left out."""

    #: 1 is the first line of the file, the header included.
    number: int
    #: Which column, and what is wrong with it.
    reason: str


@dataclass(kw_only=True, slots=True)
class TornLines:
    """The lines that were left out: all counted, the first `TORN_LINES_KEPT_MAX` kept."""

    #: How many.
    total: int = 0
    #: The first of them.
    kept: list[TornLine] = field(default_factory=list)

    def add(self, number: int, reason: str) -> None:
        self.total += 1
        if len(self.kept) < TORN_LINES_KEPT_MAX:
            self.kept.append(TornLine(number=number, reason=reason))


@dataclass(frozen=True, kw_only=True, slots=True)
class LogCall:
    """One call as the log has it. Clock times are seconds after midnight of `date` and may pass 86,400."""

    #: Line of the file.
    line: int
    #: The log's id, unique together with `unit`.
    call_id: str
    #: Voice unit and line.
    unit: str
    #: Identified customer, or empty.
    customer: str
    #: 0 or 1 regular, 2 high.
    priority: int
    #: Type of service asked.
    type: str
    #: Day of the call's start.
    date: datetime.date
    #: When the caller left the voice unit and asked for an agent.
    arrival_seconds: int
    #: Waited in the queue; 0 if the call did not queue.
    wait_seconds: int
    #: "AGENT" (served), "HANG" (hung up) or "PHANTOM" (to be ignored).
    outcome: str
    #: When service began; 0 if there was none.
    service_start_seconds: int
    #: Length of service; 0 if there was none.
    service_seconds: int
    #: Name of the server, empty where the log has none.
    server: str


@dataclass(kw_only=True, slots=True)
class LogSummary:
    """One pass over the whole file."""

    #: Calls a day, PHANTOM left out.
    calls_by_day: Counter[datetime.date] = field(default_factory=Counter)
    #: Waits of those who hung up after queueing, by second.
    hung_up: Counter[int] = field(default_factory=Counter)
    #: Waits of those who were served, by second: their patience is longer than this.
    served: Counter[int] = field(default_factory=Counter)
    #: PHANTOM lines.
    phantoms: int = 0
    #: Lines left out.
    torn: TornLines = field(default_factory=TornLines)


def _clock(name: str, text: str) -> int:
    match = _CLOCK.fullmatch(text)
    if match is None or int(match[1]) > 23:
        raise LineError(f"{name} is not a time of day: {text[:32]!r}")
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])


def _integer(name: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"-?\d{1,12}", text, re.ASCII):
        raise LineError(f"{name} is not a whole number: {text[:32]!r}")
    value = int(text)
    if not low <= value <= high:
        raise LineError(f"{name} is {value}, outside {low} to {high}")
    return value


def _matched(name: str, text: str, pattern: re.Pattern[str]) -> str:
    if pattern.fullmatch(text) is None:
        raise LineError(f"{name} is not usable: {text[:32]!r}")
    return text


def parse_date(text: str) -> datetime.date:
    """A day as yymmdd or ISO (YYYY-MM-DD). Two-digit years are 1970 to 2069. Raises ValueError."""
    if re.fullmatch(r"\d{6}", text, re.ASCII):
        year = int(text[:2])
        return datetime.date(year + (1900 if year >= 70 else 2000), int(text[2:4]), int(text[4:]))
    return datetime.date.fromisoformat(text)


def _log_date(text: str) -> datetime.date:
    try:
        if len(text) != 6:
            raise ValueError
        return parse_date(text)
    except ValueError:
        raise LineError(f"date is not a day as yymmdd: {text[:32]!r}") from None


def _after(start: int, clock: int) -> int:
    """`clock` on the day of `start`, or on the next if it is more than half a day before it (midnight
    passed).
    """
    return clock + DAY_SECONDS if clock < start - DAY_SECONDS // 2 else clock


def parse_line(number: int, text: str) -> LogCall:
    """One line of the log, without its line end. Raises LineError with the column at fault."""
    cells = text.split("\t")
    if len(cells) != len(COLUMNS):
        raise LineError(f"{len(cells)} columns instead of {len(COLUMNS)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    outcome = row["outcome"]
    if outcome not in ("AGENT", "HANG", "PHANTOM"):
        raise LineError(f"outcome is none of AGENT, HANG, PHANTOM: {outcome[:32]!r}")
    rounded = _ROUNDED.fullmatch(row["customer_id"]) is not None
    customer = 0 if rounded else _integer("customer_id", row["customer_id"], 0, 10**11)
    entry = _clock("vru_entry", row["vru_entry"])
    _integer("vru_time", row["vru_time"], -SPAN_SECONDS_MAX, SPAN_SECONDS_MAX)
    for column in ("q_start", "q_exit", "ser_exit"):
        _clock(column, row[column])
    server = _matched("server", row["server"], _SERVER)
    served = outcome == "AGENT"
    arrival = _after(entry, _clock("vru_exit", row["vru_exit"]))
    return LogCall(
        line=number,
        unit=_matched("vru+line", row["vru+line"], _ID),
        call_id=_matched("call_id", row["call_id"], _ID),
        customer=str(customer) if customer else "",
        priority=_integer("priority", row["priority"], 0, 2),
        type=_matched("type", row["type"], _TYPE),
        date=_log_date(row["date"]),
        arrival_seconds=arrival,
        wait_seconds=_integer("q_time", row["q_time"], 0, SPAN_SECONDS_MAX),
        outcome=outcome,
        service_start_seconds=_after(arrival, _clock("ser_start", row["ser_start"])) if served else 0,
        service_seconds=_integer("ser_time", row["ser_time"], 0, SPAN_SECONDS_MAX) if served else 0,
        server="" if server == NO_SERVER else server,
    )


def _open(path: Path) -> io.BufferedIOBase:
    """The log, plain or gzip by its first bytes. Raises CallLogError."""
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if packed else path.open("rb")
    except OSError as error:
        raise CallLogError(f"the call log {path} cannot be read: {error.strerror or error}") from error


def _lines(source: io.BufferedIOBase, torn: TornLines) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of at most LINE_BYTES_MAX; longer ones are reported and skipped in bounded pieces."""
    number = 0
    while True:
        number += 1
        try:
            line = source.readline(LINE_BYTES_MAX + 1)
            if len(line) > LINE_BYTES_MAX and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = source.readline(LINE_BYTES_MAX)
                torn.add(number, f"longer than {LINE_BYTES_MAX} bytes")
                continue
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            torn.add(number, f"the compressed file is damaged from here on: {error}")
            return
        if not line:
            return
        yield number, line


def read_log(path: Path, torn: TornLines) -> Iterator[LogCall]:
    """All calls of the file, PHANTOM included, in the file's order. Raises CallLogError if it cannot be
    opened.
    """
    with _open(path) as source:
        for number, raw in _lines(source, torn):
            text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
            if not text or (number == 1 and text.startswith(COLUMNS[0])):
                continue
            try:
                call = parse_line(number, text)
            except LineError as error:
                torn.add(number, str(error))
            else:
                yield call


def summarise(path: Path) -> LogSummary:
    """Days, patience and torn lines of the whole file. Raises CallLogError when no call is in it."""
    summary = LogSummary()
    for call in read_log(path, summary.torn):
        if call.outcome == "PHANTOM":
            summary.phantoms += 1
            continue
        summary.calls_by_day[call.date] += 1
        if len(summary.calls_by_day) > DAYS_MAX:
            raise CallLogError(f"more than {DAYS_MAX} different days in {path}: this is no call log")
        if call.outcome == "AGENT":
            summary.served[call.wait_seconds] += 1
        elif call.wait_seconds > 0:
            summary.hung_up[call.wait_seconds] += 1
    if not summary.calls_by_day:
        why = "".join(f" (line {torn.number}: {torn.reason})" for torn in summary.torn.kept[:1])
        raise CallLogError(f"no call could be read from {path}{why}")
    return summary


def choose_day(summary: LogSummary, wanted: str | None) -> datetime.date:
    """The day asked for (yymmdd or ISO), by default the first Monday-to-Friday of the file. Raises
    CallLogError.
    """
    days = sorted(summary.calls_by_day)
    if wanted is None:
        return next((day for day in days if day.weekday() < 5), days[0])
    try:
        day = parse_date(wanted)
    except ValueError:
        raise CallLogError(f"DAY={wanted[:32]!r} is no day; write 990201 or 1999-02-01") from None
    if day not in summary.calls_by_day:
        raise CallLogError(f"the log has no call on {day}; its days are {days[0]} to {days[-1]}")
    return day


def calls_of_day(path: Path, day: datetime.date) -> list[LogCall]:
    """The day's calls, PHANTOM left out, by arrival. Torn lines were reported by `summarise`. Raises
    CallLogError
    for a day with more than DAY_CALLS_MAX.
    """
    wanted = (c for c in read_log(path, TornLines()) if c.date == day and c.outcome != "PHANTOM")
    calls = list(itertools.islice(wanted, DAY_CALLS_MAX + 1))
    if len(calls) > DAY_CALLS_MAX:
        raise CallLogError(f"{day} has more than {DAY_CALLS_MAX} calls, more than the demo replays")
    return sorted(calls, key=lambda call: (call.arrival_seconds, call.line))


def busiest_window(arrivals: list[int], length_seconds: int, grid_seconds: int = 900) -> int:
    """Start of the busiest window of that length, on a grid; the earliest of equals. Seconds after
    midnight.
    """
    best, best_count = 0, -1
    for start in range(0, max(DAY_SECONDS - length_seconds, 0) + 1, grid_seconds):
        count = sum(start <= arrival < start + length_seconds for arrival in arrivals)
        if count > best_count:
            best, best_count = start, count
    return best
