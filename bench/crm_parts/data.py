"""Constructed customers and interactions: names, numbers and places as they are spread in a real file, none
of them anybody's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from crm import documents as docs
from crm import timeline
from crm.model import Entry, Facet, InteractionKind

_FAMILY = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧"
_GIVEN = "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂英华玉萍红建国文辉力"
COLUMNS = [
    *("id", "display_name", "phone_numbers[0].number", "email_addresses[0].address"),
    *("external_ids[0].system", "external_ids[0].id", "addresses[0].city", "addresses[0].district"),
    *("addresses[0].township", "addresses[0].street", "tier", "language", "tags", "birth_date"),
]


def customer_id(index: int) -> str:
    """The id of the n-th customer."""
    return f"c{index:07}"


def number(index: int) -> str:
    """Its number."""
    return f"13{(index * 7_919) % 1_000_000_000:09}"


def lines(count: int, seed: int = 1) -> Iterator[str]:
    """The lines of a CSV file, headings first."""
    rng = random.Random(seed)
    yield ",".join(COLUMNS) + "\n"
    for index in range(count):
        name = rng.choice(_FAMILY) + rng.choice(_GIVEN) + (rng.choice(_GIVEN) if index % 3 else "")
        tier = "GOLD" if index % 10 == 0 else "STANDARD"
        born = f"{1950 + index % 55}-{1 + index % 12:02}-{1 + index % 28:02}"
        tags = "老客户;宽带" if index % 3 else ""
        yield (
            f"{customer_id(index)},{name},{number(index)},user{index}@example.com,billing,B{index:07},深圳,"
            f"福田区,街道{index % 300},路{index % 97}号,{tier},zh-CN,{tags},{born}\n"
        )


def interactions(customer: str, phone: str, count: int, now_ms: int) -> list[dict[str, Any]]:
    """Stored interactions of one customer: calls of the last months, every tenth a ticket, some still
    open.
    """
    made = []
    for index in range(count):
        began_ms = now_ms - index * 36_000_000 - 600_000
        entry = (
            _ticket(customer, index, began_ms) if index % 10 == 5 else _call(phone, customer, index, began_ms)
        )
        shown = timeline.placed(
            entry, timeline.subject_of_customer(customer), timeline.subject_of_customer(customer)
        )
        fields = {name: value for name, value in docs.entry_fields(shown).items() if value is not None}
        made.append({"_id": entry.id, "version": 1, **fields})
    return made


def _call(phone: str, customer: str, index: int, began_ms: int) -> Entry:
    source_id = f"{customer}-{index}"
    common = {"number": "+86" + phone, "channel": "VOICE", "direction": "INBOUND", "queue": "queues/bills"}
    told = {"agent": f"agents/a{index % 40}", "region": "regions/guangzhou"}
    ended = {"state": "COMPLETED", "wait_ms": 9_000, "talk_ms": 180_000, "ended_ms": began_ms + 189_000}
    wrapped = {"disposition": "ANSWERED", "resolved": index % 4 != 0, "contact_reason": "billing/roaming"}
    return Entry(
        id=timeline.entry_id(InteractionKind.CALL, "routing", source_id),
        kind=InteractionKind.CALL,
        source="routing",
        source_id=source_id,
        facets={
            "queued": Facet(stamp=(1, 1, 1, 1), values={**common, "state": "WAITING"}),
            "ended": Facet(stamp=(1, 1, 1, 3), values={**common, **told, **ended}),
            "wrapped": Facet(stamp=(1, 1, 1, 4), values={**common, **told, **wrapped, "notes": "说明" * 40}),
        },
        began_ms=began_ms,
    )


def _ticket(customer: str, index: int, began_ms: int) -> Entry:
    source_id = f"t-{customer}-{index}"
    values = {
        "customer": customer,
        "ticket": f"tickets/{source_id}",
        "kind": "COMPLAINT" if index % 20 == 5 else "REPAIR",
        "state": "IN_PROGRESS" if index < 40 else "CLOSED",
        "priority": "HIGH" if index % 20 == 5 else "NORMAL",
        "subject": "宽带故障",
        "open": index < 40,
        "due_ms": began_ms + 86_400_000,
    }
    return Entry(
        id=timeline.entry_id(InteractionKind.TICKET, "tickets", source_id),
        kind=InteractionKind.TICKET,
        source="tickets",
        source_id=source_id,
        facets={"snapshot": Facet(stamp=(1,), values=values)},
        began_ms=began_ms,
    )
