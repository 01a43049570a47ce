"""The screen pop that docs/crm.md shows is the one that crm gives, made of events as other services send
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import events_pb2 as marketing_events
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.testing import FakeClock
from crm import convert, inbound
from crm.handlers import Create, Customers, Memory, Policy, ScreenPops
from crm.memory_store import MemoryReads, MemoryStore
from crm.model import BirthDate, Churn, ChurnReason, Customer, PhoneNumber, Reminder, Tier, ValueClass

DOCS = Path(__file__).resolve().parents[3] / "docs" / "crm.md"
NOW = datetime(2026, 3, 2, 6, 30, tzinfo=UTC)
NUMBER = "+8613812345678"


class Reads(MemoryReads):
    """With a reminder that a care rule raised."""

    async def care(self, customer: str) -> tuple[Reminder, ...]:
        due_ms = int((NOW + timedelta(days=1)).timestamp() * 1000)
        return (Reminder(kind="BIRTHDAY", text="3月3日生日", task="birthday-li", due_ms=due_ms),)


def ref(call_id: str, sequence: int) -> routing_events.CallRef:
    return routing_events.CallRef(
        call_id=call_id,
        version=common_pb2.CallVersion(attempt=1, move=1),
        shard="guangzhou",
        epoch=1,
        sequence=sequence,
        caller_number=NUMBER,
        channel=common_pb2.CHANNEL_VOICE,
        queue="queues/bills",
        region="regions/guangzhou",
        agent="agents/mia",
    )


def call(call_id: str, began: datetime) -> Sequence[Any]:
    queued = routing_events.CallQueued(call=ref(call_id, 1))
    ended = routing_events.CallEnded(call=ref(call_id, 2), outcome=call_pb2.CALL_OUTCOME_COMPLETED)
    said = call_pb2.Disposition(code="explained", resolved=False, contact_reason="billing/roaming")
    wrapped = routing_events.CallWrappedUp(call=ref(call_id, 3), disposition=said)
    for minutes, message in ((0, queued), (4, ended), (5, wrapped)):
        message.event_time.FromDatetime(began + timedelta(minutes=minutes))
    return queued, ended, wrapped


def complaint() -> tickets_events.TicketCreated:
    snapshot = tickets_events.TicketSnapshot(
        ticket="tickets/t1",
        version=1,
        kind=ticket_pb2.TICKET_KIND_COMPLAINT,
        state="in_progress",
        phase=ticket_pb2.TICKET_PHASE_ACTIVE,
        priority=ticket_pb2.PRIORITY_HIGH,
        subject="漫游费用争议",
        customer="customers/li",
        caller_number=NUMBER,
    )
    snapshot.create_time.FromDatetime(NOW - timedelta(hours=3))
    snapshot.due_time.FromDatetime(NOW + timedelta(hours=21))
    return tickets_events.TicketCreated(ticket=snapshot)


def recommendation() -> marketing_events.RecommendationMade:
    made = marketing_events.RecommendationMade(decision="decisions/d1", customer="customers/li")
    made.create_time.FromDatetime(NOW - timedelta(hours=1))
    made.expire_time.FromDatetime(NOW + timedelta(days=1))
    offer = made.offers.add(offer="offers/roam", rank=1, score=0.31)
    offer.titles.add(language="zh-CN", text="漫游包")
    offer.titles.add(language="en", text="Roaming pack")
    return made


def remembered() -> MemoryStore:
    store, clock = MemoryStore(), FakeClock(NOW)
    draft = Customer(
        display_name="李伟",
        phone_numbers=(PhoneNumber(number="138 1234 5678"),),
        tier=Tier.GOLD,
        language="zh-CN",
        value_class=ValueClass.A,
        tags=("宽带", "老客户"),
        account_manager="mia",
        birth_date=BirthDate(year=1990, month=3, day=3),
    )
    Customers(store, clock, Policy()).create(Create(draft=draft, id="li"), "amy")
    memory = Memory(store, clock)
    began = (NOW - timedelta(hours=5), NOW - timedelta(hours=3, minutes=48))
    for message in (*call("c-1", began[0]), *call("c-2", began[1]), complaint(), recommendation()):
        inbound.learn_message(memory, message)
    reasons = (ChurnReason(code="REPEATED_COMPLAINTS", weight=0.4, value=1),)
    store.save_churn(Churn(customer="li", score=0.42, reasons=reasons, scored_ms=1), [])
    return store


async def test_the_screen_pop_in_the_docs_is_what_crm_gives() -> None:
    pops = ScreenPops(Reads(remembered()), FakeClock(NOW), Policy(screen_pop_seconds=30))
    pop = await pops.get("138-1234-5678", "c-3")
    given = MessageToDict(convert.screen_pop_out(pop, NOW), preserving_proto_field_name=True)
    assert not pop.missing and given["repeat_call_notice"].startswith("今天第3次来电")
    shown = re.search(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert json.loads(shown[1]) == given, json.dumps(given, ensure_ascii=False, indent=1)
