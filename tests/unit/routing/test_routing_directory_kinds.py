"""What may be written to the directory: every fault names its field, what is at a limit is taken."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from callmesh.routing.v1 import directory_pb2 as pb
from chassis.errors import InvalidArgument
from routing.directory import queue_config
from routing.directory_kinds import AGENT, ENTRIES_MAX, QUEUE, REGION, Kind, resource_id
from routing.model import QueueConfig

DAY = 86_400
PLACE = {"latitude": 39.9, "longitude": 116.4}


def many(count: int) -> list[str]:
    return [f"n{index}" for index in range(count)]


BAD: list[tuple[Kind, dict[str, Any], str]] = [
    (REGION, {"location": None}, "region.location"),
    (REGION, {"location": {"latitude": 90.1, "longitude": 0.0}}, "region.location.latitude"),
    (REGION, {"location": {"latitude": float("nan"), "longitude": 0.0}}, "region.location.latitude"),
    (REGION, {"display_name": "x" * 201}, "region.display_name"),
    (REGION, {"served_areas": ["CN/Atlantis"]}, "region.served_areas[0]"),
    (REGION, {"served_prefixes": ["8610"]}, "region.served_prefixes[0]"),
    (REGION, {"served_prefixes": ["+8610", "+8610"]}, "region.served_prefixes"),
    (REGION, {"served_prefixes": ["+1", "+86１０"]}, "region.served_prefixes[1]"),
    (REGION, {"served_prefixes": ["+86010"]}, "region.served_prefixes[0]"),
    (REGION, {"languages": [""]}, "region.languages[0]"),
    (REGION, {"languages": ["zh-CN", "speaks chinese"]}, "region.languages[1]"),
    (REGION, {"time_zone": "Mars/Olympus"}, "region.time_zone"),
    (REGION, {"weight": 1_001}, "region.weight"),
    (REGION, {"weight": -1}, "region.weight"),
    (REGION, {"lead_list": ["router"]}, "region.lead_list[0]"),
    (REGION, {"business_hours": ["Mo-Fr 08:00-20:00"]}, "region.time_zone"),
    (REGION, {"business_hours": ["Mo 8-20"], "time_zone": "UTC"}, "region.business_hours[0]"),
    (REGION, {"holiday_calendar": "Atlantis"}, "region.holiday_calendar"),
    (REGION, {"trunk_cost": Duration(seconds=-1)}, "region.trunk_cost"),
    (QUEUE, {"skills": [{"skill": ""}]}, "queue.skills[0].skill"),
    (QUEUE, {"skills": [{"skill": "a", "level_min": 6}]}, "queue.skills[0].level_min"),
    (QUEUE, {"skills": [{"skill": "a", "level_min": -1}]}, "queue.skills[0].level_min"),
    (QUEUE, {"strategy": 99}, "queue.strategy"),
    (QUEUE, {"weight": 101}, "queue.weight"),
    (QUEUE, {"weight": -1}, "queue.weight"),
    (QUEUE, {"length_max": -1}, "queue.length_max"),
    (QUEUE, {"length_max": 1_000_001}, "queue.length_max"),
    (QUEUE, {"missed_offers_max": -1}, "queue.missed_offers_max"),
    (QUEUE, {"repeat_caller_points": 21}, "queue.repeat_caller_points"),
    (QUEUE, {"seed": -1}, "queue.seed"),
    (QUEUE, {"ring_timeout": Duration()}, "queue.ring_timeout"),
    (QUEUE, {"ring_timeout": Duration(nanos=1)}, "queue.ring_timeout"),
    (QUEUE, {"announcements": {"zh": "x" * 501}}, "queue.announcements"),
    (QUEUE, {"announcements": {"in chinese": "x"}}, "queue.announcements key"),
    (QUEUE, {"announcements": {"": "x"}}, "queue.announcements key"),
    (QUEUE, {"relaxation_steps": [{}] * 11}, "queue.relaxation_steps"),
    (AGENT, {"region": "beijing"}, "agent.region"),
    (AGENT, {"skills": {"chinese": 6}}, "agent.skills['chinese']"),
    (AGENT, {"skills": {"chinese": 0}}, "agent.skills['chinese']"),
    (AGENT, {"skills": dict.fromkeys(many(ENTRIES_MAX + 1), 1)}, "agent.skills"),
    (AGENT, {"capacity": {"pigeon": 1}}, "agent.capacity"),
    (AGENT, {"capacity": {"chat": -1}}, "agent.capacity[chat]"),
    (AGENT, {"address": "x" * 256}, "agent.address"),
    (AGENT, {"address": "sip:\x00"}, "agent.address"),
    (AGENT, {"priority": 1_000_001}, "agent.priority"),
    (AGENT, {"warm_up": Duration(seconds=DAY + 1)}, "agent.warm_up"),
]
_SPANS = [field.name for field in pb.Queue.DESCRIPTOR.fields if field.message_type is Duration.DESCRIPTOR]
BAD += [(QUEUE, {name: Duration(seconds=DAY, nanos=1_000_000)}, f"queue.{name}") for name in _SPANS]
BAD += [(QUEUE, {name: Duration(seconds=-1)}, f"queue.{name}") for name in _SPANS]
GOOD: dict[str, dict[str, Any]] = {
    "region": {"location": PLACE},
    "queue": {},
    "agent": {"region": "regions/beijing"},
}


def document(kind: Kind, fields: dict[str, Any]) -> Any:
    said = {name: value for name, value in {**GOOD[kind.field], **fields}.items() if value is not None}
    return kind.to_document("one", kind.message(**said))


@pytest.mark.parametrize(("kind", "fields", "field"), BAD)
def test_a_fault_names_its_field(kind: Kind, fields: dict[str, Any], field: str) -> None:
    document(kind, {})
    with pytest.raises(InvalidArgument) as caught:
        document(kind, fields)
    assert [violation.field for violation in caught.value.details.field_violations] == [field]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (QUEUE, {name: Duration(seconds=DAY) for name in _SPANS}),
        (QUEUE, {name: Duration() for name in _SPANS if name != "ring_timeout"}),
        (QUEUE, {"announcements": {"zh-Hans-CN": "x" * 500, "en": ""}, "length_max": 1_000_000}),
        (REGION, {"languages": ["zh", "zh-Hant-HK", "en-US"], "weight": 1_000}),
        (AGENT, {"skills": dict.fromkeys(many(ENTRIES_MAX), 5), "capacity": {"voice": 1, "chat": 3}}),
    ],
)
def test_what_is_at_its_limit_is_taken(kind: Kind, fields: dict[str, Any]) -> None:
    shown = kind.to_message(document(kind, fields))
    for name in fields:
        assert getattr(shown, name) == getattr(kind.message(**fields), name)


@pytest.mark.parametrize("id", ["", "-a", "a-", "A", "a b", "a/b", "x" * 64])
def test_an_id_that_cannot_be_is_named(id: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resource_id("queue_id", id)
    assert caught.value.details.field_violations[0].field == "queue_id"


@pytest.mark.parametrize(("stored", "rings_ms"), [(None, 15_000), (0, 15_000), (3_000, 3_000)])
def test_a_queue_stored_without_a_ringing_time_rings_as_one_that_says_none(
    stored: int | None, rings_ms: int
) -> None:
    assert queue_config({"_id": "q", "ring_span_ms": stored}).ring_span_ms == rings_ms
    assert QueueConfig(id="q").ring_span_ms == 15_000
