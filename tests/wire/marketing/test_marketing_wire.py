"""Stored payloads: what other services sent in the past is still understood, what marketing sends has not
changed by accident.

Rewrite the sent ones with `UPDATE_WIRE=1 pytest tests/wire/marketing` and read the difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec import structs
from tests.unit.marketing.marketing_examples import NOW, cny, offer

from callmesh.marketing.v1 import events_pb2
from chassis.bus import Event, MalformedEvent
from chassis.errors import InvalidArgument
from marketing import convert, wire
from marketing.association import Counts
from marketing.engine import close
from marketing.handlers import Facts
from marketing.inbound import learn
from marketing.kinds import SEGMENTS
from marketing.memory_store import MemoryStore
from marketing.model import (
    Channel,
    Complaint,
    Contact,
    Decision,
    NoOffer,
    OfferState,
    Outcome,
    Profile,
    Result,
)
from marketing.ranking import Ranker
from marketing.segments import Segments
from marketing.shelf import Row

FIXTURES = Path(__file__).parent / "fixtures"


def received(name: str) -> Event:
    return Event.from_json((FIXTURES / f"received_{name}.json").read_bytes())


def hear(store: MemoryStore, *names: str) -> None:
    for name in names:
        learn(Facts(store), received(name))


def test_a_customer_of_crm() -> None:
    store = MemoryStore()
    hear(store, "customer_updated")
    assert store.profile("c1") == Profile(
        customer="c1",
        numbers=("+8613800138000",),
        tier="platinum",
        value_class="B",
        language="zh",
        tags=frozenset({"senior"}),
        home_region="regions/beijing",
        display_name="王小明",
        refused_channels=frozenset({Channel.SMS}),
        consents={Channel.VOICE: None},
        crm_version=7,
        updated_at=datetime(2025, 6, 1, 9, tzinfo=UTC),
    )


def test_addresses_and_consents_that_end_of_crm() -> None:
    store = MemoryStore()
    hear(store, "customer_updated", "customer_with_addresses")
    profile = store.profile("c1")
    assert profile is not None and profile.email_addresses == ("li@example.net", "wang@example.com")
    ends = datetime(2025, 7, 1, tzinfo=UTC)
    assert profile.consents == {Channel.EMAIL: ends, Channel.VOICE: None}
    assert profile.consented(Channel.EMAIL, NOW) and not profile.consented(Channel.EMAIL, ends)
    # Withdrawn: the addresses go with the leave to use them. Erased: they are not in the stub.
    with_leave = received("customer_with_addresses")
    customer = {**with_leave.data["customer"], "version": "9", "consents": []}
    learn(Facts(store), replace(with_leave, id="later", data={"customer": customer}))
    profile = store.profile("c1")
    assert profile is not None and (profile.email_addresses, profile.consents) == ((), {})
    learn(Facts(store), replace(with_leave, id="again", data={"customer": {**customer, "version": "9"}}))
    back = {**with_leave.data["customer"], "version": "10"}
    learn(Facts(store), replace(with_leave, id="back", data={"customer": back}))
    store.erase("c1")
    profile = store.profile("c1")
    assert profile is not None and (profile.email_addresses, profile.consents) == ((), {})


def test_merging_leaving_and_erasing_of_crm() -> None:
    store = MemoryStore()
    hear(store, "customer_updated", "customers_merged", "leave_intent_flagged")
    merged, profile = store.profile("c0"), store.profile("c1")
    assert merged is not None and (merged.merged_into, merged.alive) == ("c1", False)
    assert profile is not None and profile.wants_to_leave and profile.crm_version == 8
    hear(store, "customers_unmerged")
    restored = store.profile("c0")
    assert restored is not None and (restored.merged_into, restored.alive) == ("", True)
    hear(store, "customer_erased")
    erased = store.profile("c1")
    assert erased is not None and (erased.numbers, erased.alive) == ((), False)


def test_complaints_of_tickets() -> None:
    store = MemoryStore()
    hear(store, "ticket_created")
    (heard,) = store.open_complaints("c1", 9)
    assert replace(heard, at=None) == Complaint(
        ticket="t1", customer="c1", number="+8613800138000", open=True, version=1
    )
    hear(store, "ticket_transitioned", "ticket_created")
    assert store.open_complaints("c1", 9) == []
    hear(store, "tickets_merged")
    assert [c.ticket for c in store.open_complaints("c1", 9)] == ["t2"]


def test_an_event_that_is_none_is_refused() -> None:
    broken = replace(received("ticket_created"), data={"ticket": {"ticket": "people/1", "kind": 2}})
    with pytest.raises(InvalidArgument):
        learn(Facts(MemoryStore()), broken)
    with pytest.raises(MalformedEvent):
        learn(Facts(MemoryStore()), replace(broken, data={"ticket": 7}))


def sent() -> dict[str, Event]:
    counts = Counts()
    for index in range(50):
        counts.add({"phone", "broadband"} if index < 20 else {"phone"})
    on_sale = offer(state=OfferState.PUBLISHED, published_at=NOW, version=2, tags=("fast",))
    ranked = Ranker([on_sale], counts.table(model="association-000001")).rank(
        Profile(customer="c1", products=frozenset({"phone"})), Contact(), NOW, 3
    )
    made = Decision(
        id="d1",
        customer="c1",
        number="+8613800138000",
        contact=Contact(call_id="k1", agent="agents/7", region="regions/beijing"),
        offers=ranked,
        model="association-000001",
        created_at=NOW,
        expires_at=NOW + timedelta(minutes=30),
    )
    none = structs.replace(made, customer="", offers=(), no_offer=NoOffer.OPEN_COMPLAINT)
    accepted = Outcome(offer=on_sale.id, result=Result.ACCEPTED, agent="agents/7", at=NOW)
    return {
        "offer_published": convert.offer_event(on_sale, NOW, True),
        "offer_updated": convert.offer_event(replace(on_sale, valid_until=NOW, version=3), NOW, False),
        "offer_retired": convert.offer_event(replace(on_sale, state=OfferState.RETIRED), NOW, False),
        "recommendation_made": Event.from_json(wire.recommendation_told(made).body),
        "recommendation_none": Event.from_json(wire.recommendation_told(none).body),
        "offer_outcome_recorded": convert.outcome_event(close(made, accepted, "token")),
        "model_activated": convert.model_event("association-000002", "association-000001", True, NOW),
    }


def test_segments_follow_a_stored_leave_intent_and_a_wrapped_up_call() -> None:
    class Members:
        joined: ClassVar[list[tuple[str, str]]] = []

        def join(self, segment: str, customer: str, at: datetime) -> bool:
            self.joined.append((segment, customer))
            return True

        def leave(self, segment: str, customer: str) -> bool:
            return False

    store = MemoryStore()
    hear(store, "customer_updated", "leave_intent_flagged")
    for id, name in (("a", "crm.v1.LeaveIntentFlagged"), ("b", "routing.v1.CallWrappedUp")):
        names = [f"callmesh.{name}"]
        content = {"resource": {"trigger_event_types": names}}
        store.shelves.insert(SEGMENTS, Row(id=id, content=content, keys={"triggers": names}), NOW)
    segments = Segments(store.shelves, store, Members())
    for name in ("leave_intent_flagged", "call_wrapped_up"):
        assert segments.heard(received(name)) == 1
    assert Members.joined == [("a", "c1"), ("b", "c1")]


@pytest.mark.parametrize("name", sorted(sent()))
def test_what_marketing_sends(name: str) -> None:
    event = replace(sent()[name], id="fixed", traceparent=None)
    path = FIXTURES / f"sent_{name}.json"
    present = json.loads(event.to_json())
    if os.environ.get("UPDATE_WIRE"):
        path.write_text(json.dumps(present, indent=2, ensure_ascii=False) + "\n")
    assert json.loads(path.read_text()) == present


def test_what_marketing_sent_is_read_back() -> None:
    event = Event.from_json((FIXTURES / "sent_offer_outcome_recorded.json").read_bytes())
    message: Any = event.message(events_pb2.OfferOutcomeRecorded)
    assert (message.offer, message.price.amount, message.value.amount) == (
        "offers/broadband-100",
        cny("59.90").text(),
        "59.90",
    )
