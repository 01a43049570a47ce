"""Customers who are one: what a survivor of merges knows by those who were merged into it.

1. Nothing of what was said of a merged customer moves. Their document keeps it, and the survivor's document
   holds a copy beside its own words (`brought`, one entry for each of them, theirs among it in turn). So an
   unmerge has nothing to tell apart: it takes the entry away. Histories (purchases, decisions) say under
   whose name they are now, and keep for whom they were made.
2. Of words on leaving the latest counts. A churn score of the survivor's own counts alone once it is as new
   as the others', for crm scores by the whole history then; before that the highest does. Occasions to care
   add up, one that is over anywhere is over. Of opting out and of complaints resolved the latest counts.
3. `reflect` copies again whatever changed, up to the last survivor, until what it copied is what there is.
   So events may come in any order, and a merge may be told before what it merges.
4. Customers remember whom they are, or were, merged into (`kin`), for an erasure alone (erasure.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from marketing.model import CARE_MAX

Raw = Mapping[str, Any]

#: Customers whose words a survivor remembers, the newest.
BROUGHT_MAX = 100
#: Merges followed from one customer to the survivor.
MERGE_HOPS_MAX = 5
#: Survivors that a customer is remembered to have been merged into, the newest.
KIN_MAX = 100
#: Copies that may be overtaken by news before the event is left to be delivered again.
REFLECTIONS_MAX = 20
#: What is said of a customer, by the fields of the profile's document.
WORDS = (
    "wants_to_leave",
    "leave_at",
    "churn_risk",
    "risk_at",
    "care",
    "opted_out_at",
    "complaint_closed_at",
)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def joined(own: Raw) -> dict[str, Any]:
    """The words that hold for a customer, those brought by merged ones included (rule 2)."""
    said: Sequence[Raw] = (own, *own.get("brought", ()))
    leaving = max(said, key=lambda words: words.get("leave_at") or _LONG_AGO)
    scored = own.get("risk_at") or _LONG_AGO
    risks = [own, *(words for words in said[1:] if (words.get("risk_at") or _LONG_AGO) > scored)]
    care: dict[str, str] = {}
    for words in reversed(said):
        for item in words.get("care") or ():
            care[item["task"]] = item["kind"] and care.get(item["task"], item["kind"])
    return {
        "wants_to_leave": bool(leaving.get("wants_to_leave")),
        "leave_at": leaving.get("leave_at"),
        "churn_risk": max(words.get("churn_risk") or 0.0 for words in risks),
        "risk_at": max((words.get("risk_at") or _LONG_AGO for words in risks), default=_LONG_AGO),
        "care": [{"task": task, "kind": kind} for task, kind in list(care.items())[-CARE_MAX:]],
        "opted_out_at": _latest(words.get("opted_out_at") for words in said),
        "complaint_closed_at": _latest(words.get("complaint_closed_at") for words in said),
    }


def _latest(moments: Iterable[datetime | None]) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)


def absorbed(raw: Raw) -> tuple[str, ...]:
    """Everybody whom a profile's document says to be merged into it, directly or through others."""
    return tuple(customer for words in raw.get("brought", ()) for customer in words["all"])


def reflect(profiles: Any, customer: str) -> bool:
    """Copies what is said of a merged customer to the survivor and on (rule 3), in a collection of profiles;
    nothing for one who is not merged. False when news came too fast: repeat it then.
    """
    wanted = {"merged_into": 1, "brought": 1, "erased": 1, **dict.fromkeys(WORDS, 1)}
    known = profiles.find_one({"_id": customer}, wanted) or {}
    for _ in range(REFLECTIONS_MAX):
        into = known.get("merged_into")
        if not into or into == customer or known.get("erased"):
            return True
        entry = {"from": customer, "all": [customer, *absorbed(known)], **joined(known)}
        _bring(profiles, into, entry)
        now = profiles.find_one({"_id": customer}, wanted) or {}
        if now == known:
            customer, known = into, profiles.find_one({"_id": into}, wanted) or {}
            continue
        if now.get("merged_into") != into or now.get("erased"):
            forget(profiles, customer, into)
        known = now
    return False


def _bring(profiles: Any, survivor: str, entry: Raw) -> None:
    """One atomic write, so that two merged customers do not overwrite each other's words."""
    known: dict[str, Any] = {"$ifNull": ["$brought", []]}
    others = {"$filter": {"input": known, "cond": {"$ne": ["$$this.from", {"$literal": entry["from"]}]}}}
    told = {"$slice": [{"$concatArrays": [others, [{"$literal": dict(entry)}]]}, -BROUGHT_MAX]}
    profiles.update_one({"_id": survivor}, [{"$set": {"brought": told}}], upsert=True)


def forget(profiles: Any, customer: str, *survivors: str) -> None:
    """Takes back what a customer brought to survivors."""
    for survivor in {one for one in survivors if one}:
        profiles.update_one({"_id": survivor}, {"$pull": {"brought": {"from": customer}}})
        reflect(profiles, survivor)


def remember(profiles: Any, customers: Sequence[str], survivor: str) -> None:
    """Notes at customers that they are, or were, merged into a survivor: what is made in the survivor's name
    may still be theirs (a number), which an erasure has to know. Who was erased is not named. Repeatable.
    """
    if profiles.find_one({"_id": survivor, "erased": True}, {"_id": 1}) is None:
        note = {"kin": {"$each": [survivor], "$slice": -KIN_MAX}}
        news = {"_id": {"$in": list(customers)}, "kin": {"$ne": survivor}, "erased": {"$ne": True}}
        profiles.update_many(news, {"$push": note})


def remembered(profiles: Any, customers: Iterable[str]) -> set[str]:
    """Whom customers are, or were, merged into, directly or through others."""
    found: set[str] = set()
    news = set(customers)
    for _ in range(MERGE_HOPS_MAX):
        raws = profiles.find({"_id": {"$in": sorted(news)}}, {"kin": 1})
        news = {one for raw in raws for one in raw.get("kin", ())} - found
        if not news:
            break
        found |= news
    return found


def leave_memory(profiles: Any, customer: str) -> None:
    """Takes a customer who is erased out of what others remember; whom that one remembers they remember
    instead. Repeatable.
    """
    others = [raw["_id"] for raw in profiles.find({"kin": customer}, {"_id": 1})]
    for survivor in sorted(remembered(profiles, [customer])):
        remember(profiles, others, survivor)
    profiles.update_many({"_id": {"$in": others}}, {"$pull": {"kin": customer}})


def lineage(profiles: Any, customer: str) -> tuple[str, list[str]]:
    """(whose everything is now, the customer and all who are merged into it), in a collection of profiles."""
    raw = profiles.find_one({"_id": customer}, {"merged_into": 1, "brought": 1}) or {}
    below = [customer, *absorbed(raw)]
    for _ in range(MERGE_HOPS_MAX):
        if not raw.get("merged_into"):
            break
        customer = raw["merged_into"]
        raw = profiles.find_one({"_id": customer}, {"merged_into": 1}) or {}
    return customer, below


def survivors(profiles: Any, customers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Documents of customers by the id asked for, of whom they were merged into where they were."""
    found = {raw["_id"]: raw for raw in profiles.find({"_id": {"$in": list(customers)}})}
    for _ in range(MERGE_HOPS_MAX):
        onward = {id: raw["merged_into"] for id, raw in found.items() if raw.get("merged_into")}
        if not onward:
            break
        known = {raw["_id"]: raw for raw in profiles.find({"_id": {"$in": sorted(set(onward.values()))}})}
        found |= {id: known[into] for id, into in onward.items() if into in known}
        if not known:
            break
    return found


def owners(profiles: Any, customers: set[str]) -> dict[str, str]:
    """Whose something is now, by the customer for whom it was made, in a collection of profiles."""
    found = {customer: customer for customer in customers}
    for _ in range(MERGE_HOPS_MAX):
        merged = profiles.find({"_id": {"$in": sorted(set(found.values()))}}, {"merged_into": 1})
        hops = {raw["_id"]: raw["merged_into"] for raw in merged if raw.get("merged_into")}
        if not hops:
            break
        found = {customer: hops.get(owner, owner) for customer, owner in found.items()}
    return found


def erased(profiles: Any, customers: Sequence[str]) -> set[str]:
    """Those of some customers who were erased, in a collection of profiles."""
    wanted = {"_id": {"$in": list(customers)}, "erased": True}
    return {raw["_id"] for raw in profiles.find(wanted, {"_id": 1})}
