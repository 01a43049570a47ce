"""Bytes of the journal and of the link between routers: msgpack of (milliseconds, type name, fields), by
msgspec.

Type names are part of the stored format: renaming a class needs a new `FORMAT` and a reader of the old one.
Fields may be added with a default.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec

from routing import model

#: Format of journal blocks and link messages that this code writes; it reads this one and older ones.
FORMAT = 1

_EVENTS: dict[str, type] = {cls.__name__: cls for cls in typing.get_args(model.Event)}
_FACTS: dict[str, type] = {**_EVENTS, "PositionChanged": model.PositionChanged}
_COMMANDS: dict[str, type] = {cls.__name__: cls for cls in typing.get_args(model.Command)}
_encoder = msgspec.msgpack.Encoder()
_raw = msgspec.msgpack.Decoder(list[tuple[int, str, msgspec.Raw]])
#: What bytes of somebody else's can do to a decoder; text that is not UTF-8 is an error of its own kind.
_UNREADABLE = (KeyError, UnicodeDecodeError, msgspec.MsgspecError)


class CodecError(ValueError):
    """The bytes are not what this code writes."""


@cache
def _decoder(cls: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(cls)


class Packed(msgspec.Struct, frozen=True):
    """An encoded event, so that a block's size is known before it is made."""

    name: str
    raw: msgspec.Raw


def size_of(packed: Sequence[Packed]) -> int:
    """Bytes of events in a block, at most: the fields, the types' names, the offsets and their frames."""
    size = 0
    for event in packed:
        size += len(event.raw) + len(event.name) + 16
    return size


def pack(event: model.Event) -> Packed:
    """Encodes one event."""
    return Packed(type(event).__name__, msgspec.Raw(_encoder.encode(event)))


def join_events(events: Iterable[tuple[int, Packed]], base_ms: int) -> bytes:
    """Packed events with the instant each was decided at, as offsets from the block's time."""
    return _encoder.encode([(at_ms - base_ms, event.name, event.raw) for at_ms, event in events])


def encode_events(events: Iterable[tuple[int, model.Event]], base_ms: int) -> bytes:
    """Events with the instant each was decided at."""
    return join_events([(at_ms, pack(event)) for at_ms, event in events], base_ms)


def decode_events(body: bytes, base_ms: int) -> list[tuple[int, model.Event]]:
    """The inverse of `encode_events`. Raises CodecError."""
    try:
        return [
            (base_ms + offset_ms, _decoder(_EVENTS[name]).decode(raw))
            for offset_ms, name, raw in _raw.decode(body)
        ]
    except _UNREADABLE as error:
        raise CodecError(f"unreadable events: {error}") from error


def encode_command(command: model.Command) -> bytes:
    """One command."""
    return _encoder.encode((0, type(command).__name__, command))


def decode_command(body: bytes) -> model.Command:
    """The inverse of `encode_command`. Raises CodecError."""
    try:
        _, name, raw = _decoder(tuple[int, str, msgspec.Raw]).decode(body)
        command: model.Command = _decoder(_COMMANDS[name]).decode(raw)
        return command
    except _UNREADABLE as error:
        raise CodecError(f"unreadable command: {error}") from error


def encode_answer(answer: model.Answer) -> bytes:
    """One answer."""
    return _encoder.encode(answer)


def decode_answer(body: bytes) -> model.Answer:
    """The inverse of `encode_answer`. Raises CodecError."""
    try:
        answer: model.Answer = _decoder(model.Answer).decode(body)
        return answer
    except _UNREADABLE as error:
        raise CodecError(f"unreadable answer: {error}") from error


def encode_facts(facts: Sequence[model.Fact]) -> bytes:
    """Facts for a front."""
    rows = [(fact.now_ms, type(fact.event).__name__, fact.event, fact.call, fact.agent) for fact in facts]
    return _encoder.encode(rows)


_Row = tuple[int, str, msgspec.Raw, model.CallView | None, model.AgentView | None]


def decode_facts(body: bytes) -> list[model.Fact]:
    """The inverse of `encode_facts`. Raises CodecError."""
    try:
        rows = _decoder(list[_Row]).decode(body)
        return [
            model.Fact(event=_decoder(_FACTS[name]).decode(raw), now_ms=now_ms, call=call, agent=agent)
            for now_ms, name, raw, call, agent in rows
        ]
    except _UNREADABLE as error:
        raise CodecError(f"unreadable facts: {error}") from error
