"""Stored and sent bytes: everything comes back as it went, and nothing else does more than be refused."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routing import codec, model
from routing.engine import step
from routing.state import ShardState
from routing.views import view_agent, view_call

EVENTS: list[type] = list(typing.get_args(model.Event))
COMMANDS: list[type] = list(typing.get_args(model.Command))


def is_struct(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)


def filled(annotation: Any) -> Any:
    """A value of a type that is not its default."""
    if dataclasses.is_dataclass(annotation) or is_struct(annotation):
        hints = typing.get_type_hints(annotation)
        return annotation(**{name: filled(hint) for name, hint in hints.items() if not name.startswith("_")})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return filled(arguments[0])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return (filled(arguments[0]),)
        return tuple(filled(each) for each in arguments)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)[-1]
    return {str: "词", int: 2**62, bool: True}[annotation]


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_comes_back_as_it_went(kind: type) -> None:
    event = filled(kind)
    assert codec.decode_events(codec.encode_events([(1_005, event)], 1_000), 1_000) == [(1_005, event)]


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_a_command_comes_back_as_it_went(kind: type) -> None:
    command = filled(kind)
    assert codec.decode_command(codec.encode_command(command)) == command


def test_facts_and_answers_come_back_as_they_went() -> None:
    state = ShardState("s")
    for command in (
        model.ConfigureQueue(queue=model.QueueConfig(id="q")),
        model.ConfigureAgent(agent=model.AgentConfig(id="a")),
        model.OpenSession(agent="a", session=1, command=1, front="f"),
    ):
        step(state, command, 1_000)
    placing = model.PlaceCall(facts=model.CallFacts(call_id="c", queue="q"), attempt=1, move=1, front="f")
    events, answer = step(state, placing, 1_000)
    call, agent = view_call(state, "c"), view_agent(state, "a")
    position = model.PositionChanged(call_id="c", position=1, expected_wait_span_ms=-1)
    facts = [model.Fact(event=e, now_ms=1_000, call=call, agent=agent) for e in (*events, position)]
    facts.append(model.Fact(event=events[0], now_ms=2_000))
    assert codec.decode_facts(codec.encode_facts(facts)) == facts
    assert codec.decode_answer(codec.encode_answer(answer)) == answer


def test_a_packed_event_knows_its_size_and_is_the_same_in_a_block() -> None:
    events = [(1_000 + n, filled(kind)) for n, kind in enumerate(EVENTS)]
    packed = [(at_ms, codec.pack(event)) for at_ms, event in events]
    body = codec.join_events(packed, 1_000)
    assert body == codec.encode_events(events, 1_000)
    assert len(body) <= codec.size_of([each for _, each in packed]) + 5


DECODERS = [
    lambda data: codec.decode_events(data, 0),
    codec.decode_command,
    codec.decode_facts,
    codec.decode_answer,
]
ENCODERS = [
    lambda events: codec.encode_events(events, 0),
    codec.encode_command,
    codec.encode_facts,
    codec.encode_answer,
]
FOREIGN = [
    b"",
    b"\xc1",
    b"\x91",
    codec._encoder.encode([(0, "NoSuchThing", {})]),
    codec._encoder.encode((0, "NoSuchThing", {})),
    codec._encoder.encode([(0, "CallQueued", {})]),
    codec._encoder.encode((0, "PlaceCall", {"attempt": "one"})),
    codec._encoder.encode("text"),
    codec._encoder.encode({"refusal": 5}),
]


@pytest.mark.parametrize("decode", DECODERS, ids=["events", "command", "facts", "answer"])
@pytest.mark.parametrize("data", FOREIGN)
def test_foreign_bytes_are_refused(decode: Any, data: bytes) -> None:
    with pytest.raises(codec.CodecError):
        decode(data)


@pytest.mark.parametrize(
    ("decode", "encode"),
    list(zip(DECODERS, ENCODERS, strict=True)),
    ids=["events", "command", "facts", "answer"],
)
@settings(max_examples=200)
@given(data=st.binary(max_size=64))
@example(data=b"\x93\x00\xa3\x00\x00\x80")
@example(data=b"\x90")
@example(data=b"\x80")
def test_bytes_are_refused_or_say_something(decode: Any, encode: Any, data: bytes) -> None:
    """What was made of any bytes is a value of the model: it can be written and read again."""
    try:
        read = decode(data)
    except codec.CodecError:
        return
    assert decode(encode(read)) == read


def test_an_older_writers_event_without_a_newer_field_is_read() -> None:
    body = codec._encoder.encode([(0, "CallEnded", {"call_id": "c", "outcome": "moved"})])
    (pair,) = codec.decode_events(body, 7)
    assert pair == (7, model.CallEnded(call_id="c", outcome=model.CallOutcome.MOVED))


def test_a_newer_writers_field_is_passed_over() -> None:
    body = codec._encoder.encode([(0, "CallResumed", {"call_id": "c", "mood": "good"})])
    assert codec.decode_events(body, 0) == [(0, model.CallResumed(call_id="c"))]
