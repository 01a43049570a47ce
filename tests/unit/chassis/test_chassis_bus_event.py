"""The envelope accepts what it wrote and refuses everything else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.type_pb2 import EnumValue
from google.protobuf.type_pb2 import Field as ProtoField
from hypothesis import given
from hypothesis import strategies as st

from chassis.bus import EVENT_BYTES_MAX, Event, MalformedEvent
from chassis.bus.event import DATA_DEPTH_MAX
from chassis.errors import InvalidArgument
from chassis.testing.bus import MemoryBus

NOW = datetime(2026, 3, 1, 8, 30, 15, 123456, tzinfo=UTC)
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def make(**values: Any) -> Event:
    message = ProtoField(name="n", json_name="j", type_url="u", number=7)
    return Event.of(message, **{"source": "crm", "subject": "customers/1", "time": NOW, **values})


def envelope(**changes: Any) -> bytes:
    whole = {**json.loads(make(id="e1").to_json()), **changes}
    return json.dumps({key: value for key, value in whole.items() if value is not ...}).encode()


def test_the_envelope_is_cloudevents_json() -> None:
    assert json.loads(make(id="e1", traceparent=TRACE).to_json()) == {
        "specversion": "1.0",
        "id": "e1",
        "source": "crm",
        "type": "google.protobuf.Field",
        "subject": "customers/1",
        "time": "2026-03-01T08:30:15.123Z",
        "datacontenttype": "application/json",
        "traceparent": TRACE,
        "data": {"name": "n", "jsonName": "j", "typeUrl": "u", "number": 7},
    }


def test_an_event_survives_the_journey() -> None:
    event = make(traceparent=TRACE)
    again = Event.from_json(event.to_json().encode())
    assert again == event
    assert again.message(ProtoField) == ProtoField(name="n", json_name="j", type_url="u", number=7)
    assert again.time == NOW.replace(microsecond=123000)


def test_ids_are_fresh_and_other_zones_become_utc() -> None:
    assert make().id != make().id
    shanghai = datetime(2026, 3, 1, 16, 30, tzinfo=timezone(timedelta(hours=8)))
    assert make(time=shanghai).time == datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
    with pytest.raises(ValueError, match="time zone"):
        make(time=datetime(2026, 3, 1))


def test_a_newer_producer_may_add_attributes_and_fields() -> None:
    body = envelope(sequence="1", data={"name": "n", "notYetKnown": {"a": [1]}})
    assert Event.from_json(body).message(ProtoField) == ProtoField(name="n")


def test_a_wrong_traceparent_is_dropped_not_dead_lettered() -> None:
    assert Event.from_json(envelope(traceparent="00-zz")).traceparent is None


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("envelope", b""),
        ("envelope", b"null"),
        ("envelope", b"[]"),
        ("envelope", b"{"),
        ("envelope", b'{"specversion": "1.0"}'),
        ("envelope", b"\xff\xfe{}"),
        ("envelope", b'{"specversion":"1.0","id":"\xed\xa0\x80"}'),
        ("envelope", b"[" * 100_000),
        ("envelope", b'{"data":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001),
        ("envelope", b" " * (EVENT_BYTES_MAX + 1)),
        ("envelope", envelope(id=7)),
        ("envelope", envelope(data=[1])),
        ("envelope", envelope(data=...)),
        ("envelope", envelope(data={"n": float("nan")})),
        ("envelope", envelope(type=None)),
        ("envelope", envelope(traceparent=5)),
        ("specversion", envelope(specversion="0.3")),
        ("datacontenttype", envelope(datacontenttype="text/xml")),
        ("id", envelope(id="")),
        ("id", envelope(id="a" * 129)),
        ("id", envelope(id="a b")),
        ("id", envelope(id="a\u0000")),
        ("source", envelope(source="")),
        ("source", envelope(source="crm.events")),
        ("source", envelope(source="CRM")),
        ("source", envelope(source="crm\n")),
        ("type", envelope(type="")),
        ("type", envelope(type="a..b")),
        ("type", envelope(type="#")),
        ("type", envelope(type="a" * 300)),
        ("subject", envelope(subject="a b")),
        ("subject", envelope(subject="x" * 256)),
        ("time", envelope(time="")),
        ("time", envelope(time="2026-03-01T08:30:15")),
        ("time", envelope(time="2026-02-30T08:30:15Z")),
        ("time", envelope(time="0001-01-01T00:00:00+14:00")),
        ("time", envelope(time="٢٠٢٦-03-01T08:30:15Z")),
        ("time", envelope(time="2026-03-01T08:30:15+99:99")),
    ],
)
def test_hostile_bodies_are_refused_by_name(field: str, body: bytes) -> None:
    with pytest.raises(MalformedEvent) as caught:
        Event.from_json(body)
    assert caught.value.values["field"] == field
    assert isinstance(caught.value, InvalidArgument)


def test_depth_is_bounded_below_the_parsers_own_limit() -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(levels - 1):
            value = {"a": value}
        return value

    assert Event.from_json(envelope(data=nested(DATA_DEPTH_MAX))).data
    with pytest.raises(MalformedEvent, match="deeper"):
        Event.from_json(envelope(data=nested(DATA_DEPTH_MAX + 1)))


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_bytes_either_parse_or_are_malformed(body: bytes | str) -> None:
    with pytest.raises(MalformedEvent):
        Event.from_json(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ATTRIBUTES = ["id", "source", "type", "subject", "time", "data", "specversion", "traceparent"]


@given(st.dictionaries(st.sampled_from(ATTRIBUTES), json_values, max_size=3))
def test_any_attribute_values_either_parse_or_are_malformed(changes: dict[str, Any]) -> None:
    body = json.dumps({**json.loads(make(id="e1").to_json()), **changes})
    try:
        event = Event.from_json(body)
    except MalformedEvent:
        return
    assert Event.from_json(event.to_json()) == event


def test_data_that_does_not_fit_the_message() -> None:
    event = Event.from_json(envelope(data={"number": "many"}))
    with pytest.raises(MalformedEvent) as caught:
        event.message(ProtoField)
    assert caught.value.values["field"] == "data"
    with pytest.raises(MalformedEvent) as caught:
        event.message(Duration)
    assert caught.value.values["field"] == "type"


def test_what_would_not_be_accepted_is_not_made_either() -> None:
    for bad in ({"source": "CRM"}, {"subject": "a b"}, {"id": "x/y"}):
        with pytest.raises(MalformedEvent):
            make(**bad)
    with pytest.raises(MalformedEvent, match="well-known"):
        Event.of(Duration(seconds=3), source="crm", subject="", time=NOW)
    big = Struct()
    big["a"] = "x" * EVENT_BYTES_MAX
    with pytest.raises(MalformedEvent, match="bytes"):
        Event.of(big, source="crm", subject="", time=NOW).to_json()


def test_the_memory_bus_delivers_in_order_and_again() -> None:
    bus = MemoryBus()
    seen: list[str] = []

    def handler(event: Event) -> None:
        seen.append(event.id)
        if event.id == "e1":
            bus.publish([make(id="e2")])

    bus.subscribe(handler, ProtoField)
    bus.publish([make(id="e1"), Event.of(EnumValue(name="v"), source="crm", subject="", time=NOW)])
    assert bus.deliver() == 3
    assert seen == ["e1", "e2"]
    bus.deliver_again(bus.published[0])
    assert seen == ["e1", "e2", "e1"]
    assert bus.messages(EnumValue) == [EnumValue(name="v")]
    assert bus.deliver() == 1
