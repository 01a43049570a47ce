"""A legal erasure, in what store.py does not hold: campaigns, call lists, leads, surveys, usage.

What says whom we met, asked or sold to stays as a number: touches, places in campaigns, ended leads and
survey answers lose the customer, texts and numbers, and their ids no longer say whose they were. What could
still reach the person goes: messages that wait, open leads, contacts of call lists, memberships, usage.

Where the customer was one with others by a merge, something of theirs may lie under the others' names: what
was made for a survivor while crm gave the person's numbers to it. So whatever names one of their numbers goes
too, or loses it, unless another customer has the number by now. Events come in any order: numbers that a late
one tells of an erased customer are looked for then.

Repeatable; a crash in between leaves nothing out, for the event comes again. Loads neither grpc nor eventlet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from chassis.eventlog import without_people
from chassis.ids import resource_name, stable_id
from marketing.call_lists import contact_id
from marketing.campaign_store import (
    CampaignContactDocument,
    RunDocument,
    SegmentMemberDocument,
    TouchDocument,
)
from marketing.decision_store import hide_strangers
from marketing.documents import ComplaintDocument, DecisionDocument, ProfileDocument
from marketing.kin import remembered
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
    *("touch_count", "bought_at", "bought_worth", "bought_cost", "bought_agent"),
)
#: What leads and survey responses lose.
_LEAD = ("customer", "contact_number", "contact_name", "note", "call_id", "lost_reason")
_RESPONSE = ("customer", "call_id")


def erase(customer: str, numbers: Iterable[str], kin: Iterable[str] = ()) -> None:
    """Removes a customer and the numbers known to be theirs. `kin` are customers they were merged into at
    some time, beside those that the profile knows of.
    """
    profiles = ProfileDocument._get_collection()
    raw = profiles.find_one({"_id": customer}, {"numbers": 1}) or {}
    theirs = {*numbers, *raw.get("numbers", ())}
    others = profiles.find({"numbers": {"$in": sorted(theirs)}, "_id": {"$ne": customer}}, {"numbers": 1})
    # A number that somebody else has stays theirs.
    for other in others:
        theirs -= set(other["numbers"])
    _named(customer)
    if theirs:
        known = {*kin, *remembered(profiles, [customer, *kin])}
        _numbered(sorted(theirs), sorted(known - {customer}))


def _named(customer: str) -> None:
    """What says the customer's name."""
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
    CONTACTS.document._get_collection().delete_many({"keys.customer": name})
    decisions = DecisionDocument._get_collection()
    for whose in ({"customer": customer, "made_for": {"$exists": False}}, {"made_for": customer}):
        _hush(decisions, whose)
    for kind, fields in ((LEADS, _LEAD), (RESPONSES, _RESPONSE)):
        collection = kind.document._get_collection()
        _hush(collection, {"keys.customer": name})
        gone = {f"content.resource.{field}": "" for field in fields}
        collection.update_many(
            {"keys.customer": name}, {"$unset": {**gone, "keys.customer": ""}, "$inc": {"version": 1}}
        )


def _numbered(numbers: Sequence[str], kin: Sequence[str]) -> None:
    """What names numbers that are nobody else's, under no name or under those of kin."""
    names = [resource_name("customers", one) for one in kin]
    nobodys = {"keys.customer": {"$in": ["", None, *names]}}
    lists = CONTACT_LISTS.document._get_collection().find({}, {"_id": 1})
    ids = [contact_id(one["_id"], number) for one in lists for number in numbers]
    CONTACTS.document._get_collection().delete_many({"_id": {"$in": ids}, **nobodys})
    reached = {"content.resource.contact_number": {"$in": numbers}}
    leads = LEADS.document._get_collection()
    # Of a lead without a customer the number is all there is; another customer's loses it.
    leads.delete_many({**reached, "keys.customer": {"$in": ["", None]}, "keys.open": True})
    theirs = {"content.resource.contact_number": "", "content.resource.contact_name": ""}
    leads.update_many({**reached, **nobodys}, {"$unset": theirs, "$inc": {"version": 1}})
    ComplaintDocument._get_collection().update_many({"number": {"$in": numbers}}, {"$set": {"number": ""}})
    decisions, called = (
        DecisionDocument._get_collection(),
        {"customer": {"$in": kin}, "number": {"$in": numbers}},
    )
    _hush(decisions, called)
    # Calls of theirs in which nobody knew them.
    unknown = {"stranger": True, "number": {"$in": numbers}}
    _hush(decisions, unknown)
    hide_strangers(unknown)
    gone = {"number": "", "outcome.note": ""}
    decisions.update_many(called, {"$unset": gone, "$inc": {"version": 1}})


def _hush(collection: Any, wanted: Mapping[str, Any]) -> None:
    """Takes what is personal out of events that wait to be published."""
    waiting = {**wanted, "outbox.0": {"$exists": True}}
    for raw in list(collection.find(waiting, {"outbox": 1})):
        for entry in raw["outbox"]:
            said = {"_id": raw["_id"], "outbox.id": entry["id"]}
            collection.update_one(said, {"$set": {"outbox.$.event": without_people(entry["event"])}})


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
