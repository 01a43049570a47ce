"""What an event says about a person is marked in the protos, so that it can be kept from those without the
scope.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from callmesh.common.v1 import privacy_pb2
from chassis.privacy import ANY, plan_of, redact

MODULES = (
    "routing.v1.events",
    "routing.v1.menu_events",
    "crm.v1.events",
    "tickets.v1.events",
    "marketing.v1.events",
)
#: Names of fields that tend to hold what is a person's own.
TELLING = re.compile(
    r"(^|_)(numbers?|name|notes?|text|body|comment|subject|description|summary|evidence|uri|email|address|company)$"
)
#: Fields with such a name that are nobody's own: resource names and what the operator wrote.
HARMLESS = {
    "callmesh.crm.v1.Interaction.name",
    "callmesh.tickets.v1.Comment.name",
    "callmesh.marketing.v1.LocalizedText.text",
}


def fields_of(descriptor: Any, seen: set[str], marked: bool = False) -> Iterator[tuple[Any, bool]]:
    """(field, whether it is left out) of a message and everything in it."""
    if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        own = marked or bool(field.GetOptions().Extensions[privacy_pb2.personal])
        yield field, own
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen, own)


@pytest.mark.parametrize("module", MODULES)
def test_every_field_that_tells_of_a_person_is_marked(module: str) -> None:
    events = importlib.import_module(f"callmesh.{module}_pb2").DESCRIPTOR.message_types_by_name
    seen: set[str] = set()
    open_ = [
        field.full_name
        for event in events.values()
        for field, marked in fields_of(event, seen)
        if field.type == field.TYPE_STRING and not marked and TELLING.search(field.name)
    ]
    assert set(open_) - HARMLESS == set(), "mark them (callmesh.common.v1.personal), or say why not"


def test_what_is_marked_is_left_out_at_every_depth() -> None:
    from callmesh.crm.v1 import events_pb2

    plan = plan_of(events_pb2.CustomersUnmerged.DESCRIPTOR)
    snapshot = {"customer": "customers/1", "displayName": "王芳", "numbers": ["+86138"], "tags": ["a"]}
    data = {"merge": "merges/1", "survivor": dict(snapshot), "restored": [dict(snapshot), {"customer": "c"}]}
    assert redact(data, plan)
    left = {"customer": "customers/1", "tags": ["a"]}
    assert data == {"merge": "merges/1", "survivor": left, "restored": [left, {"customer": "c"}]}
    assert not redact(data, plan), "there is nothing more to leave out"
    for odd in ("text", 1, None, [[]], {"survivor": "text", "restored": None}):
        before = json.dumps(odd)
        assert not redact(odd, plan) and json.dumps(odd) == before


def test_members_of_a_map_are_cleaned_one_by_one() -> None:
    data = {"by_id": {"a": {"name": "n", "id": 1}, "b": {"id": 2}}}
    assert redact(data, {"by_id": {ANY: {"name": None}}})
    assert data == {"by_id": {"a": {"id": 1}, "b": {"id": 2}}}
