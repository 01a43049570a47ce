"""What an event says about a person, by the marks in the protos (`callmesh.common.v1.personal`), and how it
is left out: for readers without the scope, and for everybody once the person was erased.

Free of grpc: servers and workers use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf import descriptor_pool

from callmesh.common.v1 import privacy_pb2

#: Stands for every member of a map.
ANY = "*"
#: JSON name -> None for a field that is left out, or the plan of the message in it.
Plan = Mapping[str, "Plan | None"]


def plan_of(descriptor: Any, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Which fields of a message, at whatever depth, are a person's own."""
    plan: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.GetOptions().Extensions[privacy_pb2.personal]:
            plan[field.json_name] = None
        elif field.message_type is not None and field.message_type.full_name not in above:
            inner = plan_of(field.message_type, (*above, descriptor.full_name))
            if inner and field.message_type.GetOptions().map_entry:
                # In JSON a map's entries are its members: what holds for the value holds for each of them.
                inner = {ANY: inner["value"]}
            if inner:
                plan[field.json_name] = inner
    return plan


def redact(data: Any, plan: Mapping[str, Any]) -> bool:
    """Leaves out what `plan` names, in place; whether there was any."""
    if isinstance(data, list):
        return any([redact(item, plan) for item in data])
    if not isinstance(data, dict):
        return False
    if ANY in plan:
        return any([redact(member, plan[ANY]) for member in data.values()])
    found = False
    for name in plan.keys() & data.keys():
        if plan[name] is None:
            del data[name]
            found = True
        else:
            found = redact(data[name], plan[name]) or found
    return found


class Privacy:
    """The plans of a service's event types, made as they are met."""

    def __init__(self) -> None:
        self._plans: dict[str, Mapping[str, Any] | None] = {}

    def cleaned(self, kind: str, raw: bytes) -> tuple[str, bool]:
        """An event's data without personal fields; nothing of a type that this server does not know."""
        if kind not in self._plans:
            try:
                self._plans[kind] = plan_of(descriptor_pool.Default().FindMessageTypeByName(kind))
            except KeyError:
                self._plans[kind] = None
        plan = self._plans[kind]
        if plan is None:
            return "{}", True
        if not plan:
            return raw.decode(), False
        data = msgspec.json.decode(raw)
        redacted = redact(data, plan)
        return (msgspec.json.encode(data).decode() if redacted else raw.decode()), redacted
