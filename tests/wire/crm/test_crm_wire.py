"""Payloads as once published: today's code goes on reading them, and they lose nothing on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from crm import engine, identity, inbound, timeline
from crm.handlers import Memory
from crm.memory_store import MemoryStore
from crm.model import CallState, Customer, InteractionKind, PhoneNumber
from crm.store import NewCustomer

PAYLOADS = Path(__file__).parent / "payloads"
NAMES = sorted(path.stem for path in PAYLOADS.glob("*.json"))


def stored(name: str) -> Event:
    return Event.from_json((PAYLOADS / f"{name}.json").read_bytes())


def learned(*names: str) -> MemoryStore:
    store = MemoryStore()
    memory = Memory(store, FakeClock())
    for name in names:
        inbound.learn(memory, stored(name))
    return store


def seen(store: MemoryStore, kind: InteractionKind, source: str, source_id: str) -> Any:
    entry = store.entry(timeline.entry_id(kind, source, source_id))
    assert entry is not None
    return timeline.project(entry)


def taken(store: MemoryStore) -> dict[str, Any]:
    """All that a store holds, but for its lock."""
    return {key: value for key, value in vars(store).items() if key != "_lock"}


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_event_is_taken_in_once_or_passed_over(name: str) -> None:
    once, nothing = taken(learned(name)), taken(MemoryStore())
    assert taken(learned(name, name)) == once
    # crm's own events are about customers that this store has not.
    assert (once == nothing) == stored(name).type.startswith("callmesh.crm.")


def test_a_call_from_stored_events() -> None:
    store = learned("CallWrappedUp", "CallEnded", "CallQueued", "CallConnected", "CallEnded")
    call = seen(store, InteractionKind.CALL, "routing", "call-1")
    assert call.detail["state"] == CallState.COMPLETED and call.detail["talk_ms"] == 112_000
    assert (call.number, call.agent, call.contact_reason) == (
        "+8613800000001",
        "agents/a7",
        "billing/roaming",
    )
    assert call.detail["wants_to_leave"] is True and call.detail["resolved"] is False
    assert call.ended_ms - call.began_ms == 120_000 and call.subject == "n:+8613800000001"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("Ticket") or name in ("CallAttached", "SlaBreached")]
)
def test_a_ticket_from_each_stored_event(name: str) -> None:
    ticket = seen(learned(name), InteractionKind.TICKET, "tickets", "t1")
    assert ticket.subject == "c:li" and ticket.open and ticket.summary == "漫游费用"
    assert {key: ticket.detail[key] for key in ("kind", "state", "priority", "call_id", "breached")} == {
        "kind": "COMPLAINT",
        "state": "in_progress",
        "priority": "HIGH",
        "call_id": "call-1",
        "breached": True,
    }


def test_offers_from_stored_events() -> None:
    store = learned("OfferOutcomeRecorded", "RecommendationMade")
    ranking = store.ranking("c:li")
    assert [offer.offer for offer in ranking.offers] == ["offers/plus", "offers/roam"]
    assert ranking.offers[0].titles == {"zh": "加量包", "en": "Plus"} and set(ranking.answers) == {
        "offers/plus"
    }
    offer = seen(store, InteractionKind.OFFER, "marketing", "d1")
    assert (offer.detail["outcome"], offer.summary, offer.subject) == ("ACCEPTED", "加量包", "c:li")


def test_a_customer_takes_over_what_its_number_did() -> None:
    store = learned("CallQueued")
    clock = FakeClock()
    draft = Customer(id="li", display_name="李伟", phone_numbers=(PhoneNumber(number="13800000001"),))
    born = engine.create(engine.normalise(draft, "CN", clock.now().date()), "li", "amy", clock.now())
    store.insert(NewCustomer(change=born))
    inbound.learn(Memory(store, clock), stored("CustomerCreated"))
    assert seen(store, InteractionKind.CALL, "routing", "call-1").subject == "c:li"
    assert store.owners([identity.claim_of_number("+8613800000001")])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("CallQueued", {"call": {"callId": "x" * 200}}),
        ("CallQueued", {"call": {"callId": "a b"}}),
        ("CallQueued", {"eventTime": None}),
        ("CallQueued", {"eventTime": "yesterday"}),
        ("CallEnded", {"call": 7}),
        ("TicketCreated", {"ticket": {"ticket": "t1", "createTime": "2026-03-02T02:42:00Z"}}),
        ("TicketCreated", {"ticket": {"ticket": "tickets/t1"}}),
        ("OfferOutcomeRecorded", {"customer": "li"}),
        ("CustomerCreated", {"customer": {"customer": "li"}}),
    ],
)
def test_what_can_never_be_understood_is_refused_for_good(name: str, change: dict[str, Any]) -> None:
    envelope = json.loads((PAYLOADS / f"{name}.json").read_text())
    for key, value in change.items():
        envelope["data"].pop(key, None)
        if value is not None:
            envelope["data"][key] = value
    store = MemoryStore()
    with pytest.raises(InvalidArgument):
        inbound.learn(Memory(store, FakeClock()), Event.from_json(json.dumps(envelope)))
    assert not store._entries and not store._rankings, "nothing is half taken in"


def test_fields_that_are_not_known_yet_are_passed_over() -> None:
    envelope = json.loads((PAYLOADS / "CallQueued.json").read_text())
    envelope["data"]["call"]["invented"] = {"later": [1]}
    envelope["extension"] = "x"
    store = MemoryStore()
    inbound.learn(Memory(store, FakeClock()), Event.from_json(json.dumps(envelope)))
    assert seen(store, InteractionKind.CALL, "routing", "call-1").detail["state"] == CallState.WAITING


def test_a_number_that_is_none_is_as_good_as_withheld() -> None:
    envelope = json.loads((PAYLOADS / "CallQueued.json").read_text())
    envelope["data"]["call"]["callerNumber"] = "anonymous"
    store = MemoryStore()
    inbound.learn(Memory(store, FakeClock()), Event.from_json(json.dumps(envelope)))
    call = seen(store, InteractionKind.CALL, "routing", "call-1")
    assert call.number == "" and call.subject == ""
