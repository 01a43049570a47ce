"""A shard's state as bytes, and back: what snapshots are made of, and digests. Pure.

1. An image holds facts: every field of calls, agents, tallies and the shard that `evolve` writes and reads.
   Heaps, sets of free agents and lines' members are indexes; they are built again. `_DERIVED` names them.
2. Fields are found, not listed: a field that is added to an entry is in the next image, and an image that
   does not have it yet gives it its first value. Only what is no number, text or flag needs its type here; a
   field without one fails when this module is imported.
3. Calls and agents keep their order, so that a digest of a stretch of them is the same for every reader.
4. An image is many parts of about `PART_BYTES`. Making one and taking one in are short pieces of work, so
   that whoever has other things to do can do them between parts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast, get_origin

import msgspec

from routing.model import (
    AgentConfig,
    CallFacts,
    CallOutcome,
    CallState,
    LineKey,
    Presence,
    QueueConfig,
    Timing,
)
from routing.state import (
    AgentEntry,
    CallEntry,
    Crowd,
    Line,
    ShardState,
    Tally,
    adopt_agent,
    adopt_call,
)

#: Format of the images that this code writes; it reads this one and older ones.
FORMAT = 1
#: A part is closed once it is as large as this; the largest row (a queue's or call's) may go beyond it.
PART_BYTES = 1 << 20
#: No part is larger.
PART_BYTES_MAX = 8 << 20
#: Rules by which `evolve` makes a state of events. Raise it when it comes to make another of events that it
#: has known: digests of before and after cannot be compared, though their fields are the same.
RULES = 4
#: Calls and agents that one digest looks at.
DIGEST_ENTRIES = 200

_PRIMITIVES = (int, float, str, bool, type(None))
#: Types of the fields that are neither number, text nor flag.
_TYPES: dict[str, Any] = {
    "facts": CallFacts,
    "state": CallState,
    "outcome": CallOutcome | None,
    "config": AgentConfig,
    "presence": Presence,
    "offers": dict[str, str],
    "calls": set[str],
    "wraps": dict[str, tuple[int, int]],
    "wrap_queues": dict[str, str],
    "lead_list": tuple[str, ...],
    "declined_by": tuple[str, ...],
    "timing": Timing,
    "queues": dict[str, QueueConfig],
}
#: Of them those that images of the first format may lack.
_LATER = frozenset({"idle_since", "lineage", "wrap_queues"})
#: Indexes, and what has rows of its own.
_DERIVED: dict[type, frozenset[str]] = {
    CallEntry: frozenset({"line", "ticket"}),
    AgentEntry: frozenset(
        {
            *("skills", "channels", "counted", "free_in", "idle", "lines", "plain"),
            *("own", "own_count", "wanted_by"),
        }
    ),
    Tally: frozenset(),
    ShardState: frozenset(
        {
            *("agents", "calls", "lines", "tallies", "lines_by_queue", "crowds", "by_state", "in_service"),
            *("lineage", "deadlines", "hot_calls", "hot_agents", "leaving"),
        }
    ),
}


class ImageError(ValueError):
    """The bytes are no image that this code can read."""


class _Kind:
    """How entries of one class become rows and come back."""

    def __init__(self, cls: type, sample: Any, types: Mapping[str, Any], **more: Any) -> None:
        """`sample` is a fresh entry, `more` are fields of the row beside the entry's own."""
        names = getattr(cls, "__slots__", None) or [n for n in vars(sample) if not n.startswith("_")]
        self.names = [name for name in names if name not in _DERIVED[cls]]
        fields: list[Any] = [
            (name, kind, msgspec.field(default_factory=get_origin(kind) or kind))
            if name in _LATER
            else (name, kind)
            for name, kind in more.items()
        ]
        for name in self.names:
            value = getattr(sample, name)
            if name in _LATER:
                fields.append((name, types[name], msgspec.field(default_factory=type(value))))
            elif name in types:
                fields.append((name, types[name]))
            elif isinstance(value, _PRIMITIVES):
                fields.append((name, Any, value))
            else:
                raise TypeError(f"{cls.__name__}.{name} needs a type in image.py")
        fields.sort(key=len)
        self.row = msgspec.defstruct(f"{cls.__name__}Row", fields, omit_defaults=True, kw_only=True)
        self.decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(self.row)

    def encode(self, entry: Any, **more: Any) -> bytes:
        values = {name: getattr(entry, name) for name in self.names}
        if "calls" in values:
            # A set has no order of its own.
            values["calls"] = sorted(values["calls"])
        return _encoder.encode(self.row(**values, **more))

    def fill(self, entry: Any, row: Any) -> None:
        for name in self.names:
            setattr(entry, name, getattr(row, name))


class _LineRow(msgspec.Struct, frozen=True):
    """A line: of its queue as it is, or, for calls that outlived it, as it was."""

    key: LineKey
    queue: QueueConfig | None = None


def _plain(value: Any) -> Any:
    """A number of a kind of its own (a database's) as a number."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no place in an image")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_CALLS = _Kind(
    CallEntry,
    CallEntry(CallFacts(call_id="", queue=""), cast(Line, None)),
    _TYPES,
    line_number=int,
    listed=bool,
)
_AGENTS = _Kind(
    AgentEntry, AgentEntry(AgentConfig(id="")), _TYPES, idle_channels=list[str], idle_since=dict[str, int]
)
_TALLIES = _Kind(Tally, Tally(), {}, queue_id=str)
_SHARD = _Kind(ShardState, ShardState(""), _TYPES, lineage=str)
_LINES: msgspec.msgpack.Decoder[_LineRow] = msgspec.msgpack.Decoder(_LineRow)
_parts = msgspec.msgpack.Decoder(tuple[str, list[msgspec.Raw]])

#: What the rows look like: digests of other fields, or of states of another lineage, cannot be compared.
_LAYOUT = hashlib.sha256(
    repr([kind.names for kind in (_CALLS, _AGENTS, _TALLIES, _SHARD)]).encode()
).hexdigest()[:8]


def dump(state: ShardState) -> Iterator[bytes]:
    """The parts of the state's image, in order. The state must not change until the last one is made."""
    yield from _pack("shard", [_SHARD.encode(state, lineage=_lineage(state))])
    yield from _pack("tallies", (_TALLIES.encode(t, queue_id=q) for q, t in state.tallies.items()))
    yield from _pack("agents", map(_agent_row, state.agents.values()))
    lines = list(state.lines.values())
    numbers = {id(line): number for number, line in enumerate(lines)}
    for entry in state.calls.values():
        if id(entry.line) not in numbers:
            numbers[id(entry.line)] = len(lines)
            lines.append(entry.line)
    live = len(state.lines)
    yield from _pack(
        "lines",
        (_encoder.encode(_LineRow(li.key, None if n < live else li.queue)) for n, li in enumerate(lines)),
    )
    yield from _pack(
        "calls",
        (
            _CALLS.encode(c, line_number=numbers[id(c.line)], listed=bool(c.ticket))
            for c in state.calls.values()
        ),
    )


def _lineage(state: ShardState) -> str:
    """By which rules a state was made, and from which event on: rules of another release, by which an image
    was made, may have left something in it that these would not.
    """
    return state.lineage or f"{RULES}@0"


def _agent_row(agent: AgentEntry) -> bytes:
    since = {c: place.since_ms for c, place in agent.idle.items() if place.since_ms != agent.since_ms}
    return _AGENTS.encode(agent, idle_channels=list(agent.idle), idle_since=since)


def _pack(kind: str, rows: Iterable[bytes]) -> Iterator[bytes]:
    size, held = 0, []
    for row in rows:
        held.append(msgspec.Raw(row))
        size += len(row)
        if size >= PART_BYTES:
            yield _encoder.encode((kind, held))
            size, held = 0, []
    if held:
        yield _encoder.encode((kind, held))


class Restorer:
    """Takes in the parts of one image, in order."""

    def __init__(self, shard: str) -> None:
        #: What the image says; of use once all parts are in.
        self.state = ShardState(shard)
        self._lines: list[Line] = []
        self._take = {
            "shard": self._shard,
            "tallies": self._tally,
            "agents": self._agent,
            "lines": self._line,
            "calls": self._call,
        }

    def add(self, part: bytes) -> None:
        """Raises ImageError; what was restored so far is then of no use."""
        try:
            kind, rows = _parts.decode(part)
            take = self._take[kind]
            for row in rows:
                take(row)
        except (msgspec.MsgspecError, KeyError, IndexError, ValueError) as error:
            raise ImageError(f"{self.state.shard}: {error!r}") from error
        self.state.clear_worklists()

    def _shard(self, raw: Any) -> None:
        row, shard = _SHARD.decoder.decode(raw), self.state.shard
        _SHARD.fill(self.state, row)
        same_rules = row.lineage.partition("@")[0] == str(RULES)
        self.state.lineage = row.lineage if same_rules else f"{RULES}@{self.state.ordinal}"
        if self.state.shard != shard:
            raise ValueError(f"an image of shard {self.state.shard}")

    def _tally(self, raw: Any) -> None:
        row, tally = _TALLIES.decoder.decode(raw), Tally()
        _TALLIES.fill(tally, row)
        self.state.tallies[row.queue_id] = tally

    def _agent(self, raw: Any) -> None:
        row = _AGENTS.decoder.decode(raw)
        agent = AgentEntry(row.config)
        _AGENTS.fill(agent, row)
        free_since = {c: row.idle_since.get(c, agent.since_ms) for c in row.idle_channels}
        adopt_agent(self.state, agent, free_since)

    def _line(self, raw: Any) -> None:
        row = _LINES.decode(raw)
        if row.queue is None:
            self._lines.append(self.state.line_of(row.key))
        else:
            self._lines.append(Line(row.key, row.queue, Crowd()))

    def _call(self, raw: Any) -> None:
        row = _CALLS.decoder.decode(raw)
        entry = CallEntry(row.facts, self._lines[row.line_number])
        _CALLS.fill(entry, row)
        adopt_call(self.state, entry, listed=row.listed)


def restore(shard: str, parts: Iterable[bytes]) -> ShardState:
    """The state of an image. Raises ImageError."""
    restorer = Restorer(shard)
    for part in parts:
        restorer.add(part)
    return restorer.state


def digest(state: ShardState, sequence: int) -> str:
    """A digest of a stretch of the state, another one at each `sequence`: some of its calls, agents and
    tallies, and the shard's own fields but for the time, which a reader knows a little later.
    """
    found = hashlib.sha256()
    for field in ("ordinal", "offers_made", "conclude_ms", "draining", "lead_list", "epoch"):
        found.update(repr(getattr(state, field)).encode())
    found.update(repr((len(state.calls), len(state.agents), len(state.queues))).encode())
    for entry in _stretch(state.calls, sequence):
        found.update(_CALLS.encode(entry, line_number=0, listed=bool(entry.ticket)))
        found.update(repr(entry.line.key).encode())
    for agent in _stretch(state.agents, sequence):
        found.update(_AGENTS.encode(agent, idle_channels=sorted(agent.idle)))
    for tally in _stretch(state.tallies, sequence):
        found.update(_TALLIES.encode(tally, queue_id=""))
    return f"{_LAYOUT}-{_lineage(state)}:{found.hexdigest()[:16]}"


def _stretch(entries: dict[str, Any], sequence: int) -> Iterator[Any]:
    """`DIGEST_ENTRIES` of them, from a place that moves on with the sequence."""
    start = sequence * DIGEST_ENTRIES % len(entries) if entries else 0
    return itertools.islice(entries.values(), start, start + DIGEST_ENTRIES)


def comparable(one: str, other: str) -> bool:
    """Whether two digests are of the same fields and rules: releases differ while one replaces the other."""
    return one.partition(":")[0] == other.partition(":")[0]
