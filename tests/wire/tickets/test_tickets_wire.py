"""Payloads as they were once sent and stored: what reads them today must go on reading them.

`fixtures/` holds what tickets reads of others and what it once stored. They never change. What it sends is in
`events/` (tests/wire/test_sent_events.py).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2, ticket_pb2
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from tickets import convert, inbound
from tickets import sla as clocks
from tickets.documents import comment_fields, from_raw, to_fields
from tickets.handlers import Handlers
from tickets.model import (
    Attachment,
    CallLink,
    Channel,
    Comment,
    Kind,
    Phase,
    Priority,
    Profile,
    Rules,
)
from tickets.reporting import _case_of, _case_text
from tickets.reports import Case
from tickets.store import MemoryStore, Query

FIXTURES = Path(__file__).parent / "fixtures"
RULES = Rules(sla=clocks.DEFAULT_POLICY, follow_up_delay_ms=86_400_000)


def stored(name: str) -> Event:
    return Event.from_json((FIXTURES / f"{name}.json").read_bytes())


def test_a_finished_call_is_understood() -> None:
    facts = convert.call_facts(stored("routing_call_wrapped_up").message(routing_events.CallWrappedUp))
    assert facts is not None and facts.request is not None
    assert (facts.call_id, facts.number, facts.agent) == ("edge1-7", "+8613800138000", "agents/7")
    assert (facts.channel, facts.code, facts.resolved) == (Channel.VOICE, "billing", False)
    assert (facts.reason, facts.notes) == ("billing/roaming", "答应核查")
    assert facts.time_ms == 1_772_452_800_000 and facts.follow_up_ms == 1_772_586_000_000
    assert (facts.request.kind, facts.request.priority, facts.request.subject) == (
        "complaint",
        "high",
        "话费过高",
    )
    assert facts.ticket_id == "call-gfsaat9ec0t9e82hbwhavjdcqv", (
        "redeliveries over a release find their ticket"
    )


@pytest.mark.parametrize("name", ["created", "updated"])
def test_a_customer_is_understood(name: str) -> None:
    kinds = {"created": crm_events.CustomerCreated, "updated": crm_events.CustomerUpdated}
    message = stored(f"crm_customer_{name}").message(kinds[name])
    assert convert.profile_of(message.customer) == Profile(
        customer_id="42", version=3, numbers=("+8613800138000", "+862112345678"), tier="vip", language="zh-CN"
    )


def test_customers_events_do_what_they_say() -> None:
    store = MemoryStore()
    use = Handlers(store, FakeClock(), RULES, convert.event_of)
    inbound.take(use, stored("crm_customer_created"))
    inbound.take(use, stored("routing_call_wrapped_up"))
    (ticket,) = (store.get(found.id) for found in store.page(Query(), 10, None))
    assert ticket.draft.customer_id == "42"
    assert (ticket.kind, ticket.tier, ticket.draft.priority) == (Kind.COMPLAINT, "vip", Priority.HIGH)
    inbound.take(use, stored("crm_customers_merged"))
    assert store.get(ticket.id).draft.customer_id == "43"
    inbound.take(use, stored("crm_customer_deleted"))
    inbound.take(use, stored("crm_customer_updated"))
    assert store.profile("42") == Profile(customer_id="42", version=4), "the older snapshot came last"
    inbound.take(use, stored("crm_customer_erased"))
    erased = store.profile("42")
    assert erased is not None
    assert erased.erased_ms == use._clock.now_ms()
    assert replace(erased, again_ms=None, erased_ms=None) == Profile(customer_id="42", version=5, erased=True)


def test_what_has_no_call_id_is_refused_and_what_asks_for_no_ticket_is_passed_over() -> None:
    message = stored("routing_call_wrapped_up").message(routing_events.CallWrappedUp)
    message.call.call_id = ""
    with pytest.raises(InvalidArgument, match="call_id"):
        convert.call_facts(message)
    message.disposition.ClearField("ticket")
    assert convert.call_facts(message) is None
    message.ClearField("disposition")
    assert convert.call_facts(message) is None


@pytest.mark.parametrize(("name", "message"), [
    ("tickets_ticket_created", events_pb2.TicketCreated),
    ("tickets_ticket_transitioned", events_pb2.TicketTransitioned),
])  # fmt: skip
def test_our_own_events_of_the_past_are_still_whole(name: str, message: Any) -> None:
    event = stored(name)
    read = event.message(message)
    assert Event.of(read, source=event.source, subject=event.subject, time=event.time).data == event.data
    assert read.ticket.kind == ticket_pb2.TICKET_KIND_COMPLAINT and read.ticket.subject == "话费过高"


def test_a_document_of_the_past_is_still_a_ticket() -> None:
    raw = json.loads((FIXTURES / "ticket_document.json").read_text())
    ticket = from_raw(raw)
    assert ticket.phase is Phase.RESOLVED and ticket.follow_up is not None and len(ticket.history) == 3
    again = {key: value for key, value in to_fields(ticket).items() if value is not None}
    assert again == {key: value for key, value in raw.items() if key not in ("_id", "version")}


def test_whose_a_part_is_lies_beside_it_where_the_release_before_passes_it_over() -> None:
    """That one reads calls, files and comments with exactly the fields of its own."""
    raw = json.loads((FIXTURES / "ticket_document.json").read_text())
    said = Comment(sequence=1, body="b", public=True, author="a", from_customer=True, time_ms=1, owner="42")
    file = Attachment(id="f", uri="https://f", file_name="f", owner="42")
    call = CallLink(call_id="c", time_ms=1, owner="+8613800138000")
    ticket = replace(from_raw(raw), calls=(call,), attachments=(file,), comments=(said,))
    document = {"_id": ticket.id, "version": 3, **to_fields(ticket)}
    parts = [*document["calls"], *document["attachments"], *document["comments"]]
    assert len(parts) == 3 and not any("owner" in part for part in parts)
    assert "owner" not in comment_fields(said)
    assert from_raw(document) == ticket
    before = from_raw({key: value for key, value in document.items() if key != "owners"})
    assert (before.calls, before.comments) == ((replace(call, owner=""),), (replace(said, owner=""),))


def test_an_imported_case_says_no_later_field_that_is_empty() -> None:
    """The release before reads a case with exactly the fields of its own."""
    bare = Case(id="a", opened_ms=1, steps=(("new", 1, True),), open=True)
    assert not {"breached_ms", "turns"} & set(json.loads(_case_text(bare)))
    for case in (bare, replace(bare, breached_ms=0, turns=((1, True),)), replace(bare, breached_ms=5)):
        assert _case_of(_case_text(case)) == case


def test_parts_of_a_newer_release_are_read_without_what_it_added() -> None:
    raw = json.loads((FIXTURES / "ticket_document.json").read_text())
    said = {"sequence": 1, "public": True, "from_customer": True, "time_ms": 1, "later": 1}
    file = {"id": "f", "uri": "https://f", "file_name": "f", "later": 1}
    added = from_raw(
        {
            **raw,
            "calls": [{**call, "later": 1} for call in raw["calls"]],
            "attachments": [file],
            "comments": [said],
        }
    )
    assert added.calls == from_raw(raw).calls != () and added.attachments[0].id == "f"
    assert added.comments[0].sequence == 1


def test_a_document_without_later_fields_is_still_a_ticket() -> None:
    raw = json.loads((FIXTURES / "ticket_document.json").read_text())
    needed = {
        "_id",
        "version",
        "kind",
        "flow",
        "state",
        "phase",
        "subject",
        "priority",
        "sla",
        "created_ms",
        "updated_ms",
    }
    ticket = from_raw({key: value for key, value in raw.items() if key in needed})
    assert ticket.draft.subject == "话费过高" and ticket.calls == () and ticket.version == 3
