"""A legal erasure, in what store.py does not hold: campaigns, call lists, leads, surveys, usage.

What says whom we met, asked or sold to stays as a number: touches, places in campaigns, ended leads and
survey answers lose the customer, texts and numbers, and their ids no longer say whose they were. What could
still reach the person goes: messages that wait, open leads, contacts of call lists, memberships, usage.
Repeatable; a crash in between leaves nothing out, for the event comes again. Loads neither grpc nor eventlet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chassis.ids import resource_name, stable_id
from marketing.call_lists import contact_id
from marketing.campaign_store import (
    CampaignContactDocument,
    RunDocument,
    SegmentMemberDocument,
    TouchDocument,
)
from marketing.kinds import CONTACT_LISTS, CONTACTS, LEADS, RESPONSES, USAGE

#: Documents made anonymous at once.
BATCH = 500
#: States of touches that are over.
_OVER = frozenset({"SENT", "FAILED"})
#: What a touch and a place in a campaign keep.
_TOUCH = (
    *("version", "campaign", "phase", "step", "variant", "region", "channel", "sender", "state", "at"),
    "answered",
)
_PLACE = (
    *("campaign", "region", "value_class", "phase", "step", "response", "answers", "touched", "failed"),
    *("touch_count", "bought_at", "bought_worth", "bought_agent"),
)
#: What leads and survey responses lose.
_LEAD = ("customer", "contact_number", "contact_name", "note", "call_id", "lost_reason")
_RESPONSE = ("customer", "call_id")


def erase(customer: str, numbers: Sequence[str]) -> None:
    """Removes a customer and the numbers known to be theirs."""
    campaigns = {raw["_id"].partition("/")[0] for raw in RunDocument._get_collection().find({}, {"_id": 1})}
    places = {"_id": {"$in": [f"{campaign}/{customer}" for campaign in sorted(campaigns)]}}
    _nobodys(CampaignContactDocument._get_collection(), places, _PLACE, lambda raw: True)
    touches = TouchDocument._get_collection()
    _nobodys(touches, {"customer": customer}, _TOUCH, lambda raw: raw["campaign"] and raw["state"] in _OVER)
    SegmentMemberDocument._get_collection().delete_many({"customer": customer})
    USAGE.document._get_collection().delete_many({"keys.customer": customer})
    name = resource_name("customers", customer)
    # Nobody is left whom a partner could speak to.
    LEADS.document._get_collection().delete_many({"keys.customer": name, "keys.open": True})
    contacts = CONTACTS.document._get_collection()
    contacts.delete_many({"keys.customer": name})
    lists = CONTACT_LISTS.document._get_collection().find({}, {"_id": 1})
    ids = [contact_id(one["_id"], number) for one in lists for number in numbers]
    # A number that somebody else has meanwhile stays theirs.
    contacts.delete_many({"_id": {"$in": ids}, "keys.customer": {"$in": [name, "", None]}})
    for kind, fields in ((LEADS, _LEAD), (RESPONSES, _RESPONSE)):
        gone = {f"content.resource.{field}": "" for field in fields}
        kind.document._get_collection().update_many(
            {"keys.customer": name}, {"$unset": {**gone, "keys.customer": ""}, "$inc": {"version": 1}}
        )


def _nobodys(
    collection: Any,
    wanted: Mapping[str, Any],
    kept: Sequence[str],
    counts: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Puts what still counts of documents under ids that say nobody's name, and removes them."""
    while rows := list(collection.find(wanted).limit(BATCH)):
        for raw in rows:
            if counts(raw):
                beginning = raw["_id"].rpartition("/")[0]
                anonymous = {field: raw[field] for field in kept if field in raw}
                anonymous |= {"_id": f"{beginning}/erased-{stable_id('erased', raw['_id'])}", "customer": ""}
                collection.replace_one({"_id": anonymous["_id"]}, anonymous, upsert=True)
        collection.delete_many({"_id": {"$in": [raw["_id"] for raw in rows]}})
