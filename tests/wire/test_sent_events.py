"""Every event that a service has sent once is still the same event.

Each type has an envelope as it went to the bus, with every field of its day, in its service's folder. They
never change: a new type needs a new one, a field that is younger than they are a line in `YOUNGER`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import events_pb2 as marketing
from callmesh.routing.v1 import events_pb2 as routing
from callmesh.routing.v1 import menu_events_pb2 as menus
from callmesh.tickets.v1 import events_pb2 as tickets
from chassis.bus import Event

HERE = Path(__file__).parent
#: What a service sends: (its messages, where the envelopes lie).
SENT = (
    (routing, "routing/events/*.json"),
    (menus, "routing/menu_events/*.json"),
    (tickets, "tickets/events/*.json"),
    (crm, "crm/payloads/*.json"),
    (marketing, "marketing/fixtures/sent_*.json"),
)
#: Messages that are parts of events.
PARTS = {"CallRef", "SurveyAnswer", "TicketSnapshot", "CustomerSnapshot", "OfferSnapshot"}
#: Fields that are younger than the envelopes, or that none of them happened to have.
YOUNGER: dict[str, set[str]] = {
    "callmesh.routing.v1.AdministrativeAct": {"details"},
    "callmesh.routing.v1.CallEnded": {"recording_uri", "callback_number"},
    "callmesh.crm.v1.CustomersMerged": {"absorbed_versions"},
    "callmesh.marketing.v1.OfferOutcomeRecorded": {"declined_offers"},
}


def _kinds() -> dict[str, Any]:
    """Full name of every event -> its class."""
    return {
        descriptor.full_name: getattr(module, name)
        for module, _ in SENT
        for name, descriptor in module.DESCRIPTOR.message_types_by_name.items()
        if name not in PARTS
    }


KINDS = _kinds()


def _stored() -> dict[str, list[Event]]:
    found = defaultdict(list)
    for module, pattern in SENT:
        package = module.DESCRIPTOR.package
        for path in sorted(HERE.glob(pattern)):
            event = Event.from_json(path.read_bytes())
            if event.type.startswith(f"{package}."):  # crm keeps what it receives in the same folder
                found[event.type].append(event)
    return found


STORED = _stored()


def test_every_event_is_kept() -> None:
    assert sorted(STORED) == sorted(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kept_event_is_read_without_loss(kind: str) -> None:
    cls, seen = KINDS[kind], set()
    for event in STORED[kind]:
        assert event.source == kind.split(".")[1]
        message = event.message(cls)
        # Strictly: no field of it has become unknown, and none has changed its meaning or its form.
        assert ParseDict(event.data, cls()) == message
        assert MessageToDict(message) == event.data
        seen |= {field.name for field, _ in message.ListFields()}
    missing = {field.name for field in cls.DESCRIPTOR.fields} - seen
    assert missing <= YOUNGER.get(kind, set()), "an envelope has every field of its day"
