"""The timeline: how reports become interactions. Pure.

1. A source reports *facts*; each is about one side (*facet*) of one interaction and carries a *stamp* that
   orders reports about that side. Of two reports the higher stamp stays; of two with one stamp the greater
   content. So merging is commutative, associative and idempotent: redelivery and reordering cannot matter.
2. What people see (`project`) is computed from the facets alone. A call stands as its newest (attempt, move),
   then (epoch, sequence), says; being moved is not the end of a call.
3. An interaction lies in the timeline (*subject*) of the customer whom its source names, else of the owner of
   its number, else of the number itself, until a customer with that number appears. Once with a customer it
   does not go back to a number: numbers change hands, history does not.
4. After a merge an interaction is shown with the survivor and remembers whose it is (`own`), so that it can
   go back. A source that heard of the merge names the survivor: that alone does not make it the survivor's.
5. Of an erased customer's interactions only what says nothing of the person remains (`anonymous`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from crm.model import CallState, Channel, Direction, Entry, Facet, Fact, Interaction, InteractionKind

#: Longest one-line summary of an interaction, characters.
SUMMARY_CHARACTERS_MAX = 500


def subject_of_customer(id: str) -> str:
    """The key of a customer's timeline."""
    return f"c:{id}"


def subject_of_number(number: str) -> str:
    """The key of the timeline of a number that nobody owns yet."""
    return f"n:{number}"


def is_customers(subject: str) -> bool:
    """Whether a subject is a customer's."""
    return subject.startswith("c:")


def customer_of(subject: str) -> str:
    """The customer's id in a subject; "" in another."""
    return subject[2:] if is_customers(subject) else ""


def entry_id(kind: InteractionKind, source: str, source_id: str) -> str:
    """The id of an interaction, 32 hexadecimal characters: the same for every report about it (rule 1)."""
    text = json.dumps([kind.value, source, source_id], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def entry_of(fact: Fact) -> Entry:
    """The interaction as one report tells it."""
    return Entry(
        id=entry_id(fact.kind, fact.source, fact.source_id),
        kind=fact.kind,
        source=fact.source,
        source_id=fact.source_id,
        facets={fact.facet: Facet(stamp=fact.stamp, values=dict(fact.values))},
        began_ms=fact.began_ms,
    )


def merge(entry: Entry, fact: Fact) -> Entry:
    """The interaction with one more report: commutative, associative, idempotent (rule 1). The same object
    when it tells nothing new.
    """
    report = Facet(stamp=fact.stamp, values=dict(fact.values))
    known = entry.facets.get(fact.facet)
    newest = report if known is None or _order(report) > _order(known) else known
    began_ms = min(entry.began_ms, fact.began_ms)
    if newest is known and began_ms == entry.began_ms:
        return entry
    return replace(entry, facets={**entry.facets, fact.facet: newest}, began_ms=began_ms)


def _order(facet: Facet) -> tuple[tuple[int, ...], str]:
    return facet.stamp, json.dumps(facet.values, sort_keys=True, ensure_ascii=False, default=str)


def _told(entry: Entry, key: str) -> Any:
    """The newest report's value under `key`, of those that tell one; None when none does."""
    told = [
        (facet.stamp, name, facet.values[key])
        for name, facet in entry.facets.items()
        if facet.values.get(key) not in (None, "")
    ]
    return max(told, key=lambda item: item[:2])[2] if told else None


def number_of(entry: Entry) -> str:
    """The number that the interaction was carried on, E.164; "" not known."""
    return _told(entry, "number") or ""


def named_customer(entry: Entry) -> str:
    """The id of the customer whom its source names; "" none."""
    return _told(entry, "customer") or ""


def subject_for(entry: Entry, number_owner: str | None) -> str:
    """Whose it is (rule 3), whoever was merged; `number_owner` is the id of the present owner of its
    number.
    """
    named = named_customer(entry)
    if named:
        return subject_of_customer(named)
    before = entry.own or entry.subject
    if is_customers(before):
        return before
    if number_owner:
        return subject_of_customer(number_owner)
    number = number_of(entry)
    return subject_of_number(number) if number else ""


def placed(entry: Entry, own: str, shown: str) -> Entry:
    """In the timeline `shown`, being `own`'s (rule 4)."""
    return replace(entry, subject=shown, own="" if own == shown else own)


#: What may tell who somebody is, or repeats what somebody said.
_PERSONAL = ("number", "notes", "subject", "text", "comment", "summary")


def anonymous(fact: Fact) -> Fact:
    """The report without what tells of the person (rule 5)."""
    return replace(fact, values={k: v for k, v in fact.values.items() if k not in _PERSONAL})


def anonymised(entry: Entry) -> Entry:
    """The interaction without what tells of the person (rule 5); the same object when nothing does."""
    if not any(key in facet.values for facet in entry.facets.values() for key in _PERSONAL):
        return entry
    facets = {
        name: Facet(stamp=facet.stamp, values={k: v for k, v in facet.values.items() if k not in _PERSONAL})
        for name, facet in entry.facets.items()
    }
    return replace(entry, facets=facets)


def project(entry: Entry) -> Interaction:
    """What people see of an interaction (rule 2)."""
    builder = _PROJECTIONS.get(entry.kind, _project_record)
    detail = builder(entry)
    return Interaction(
        id=entry.id,
        kind=entry.kind,
        source=entry.source,
        source_id=entry.source_id,
        subject=entry.subject,
        number=number_of(entry),
        channel=Channel(_told(entry, "channel") or ""),
        direction=Direction(_told(entry, "direction") or ""),
        began_ms=entry.began_ms,
        ended_ms=detail.pop("ended_ms", None),
        summary=str(detail.pop("summary", "") or "")[:SUMMARY_CHARACTERS_MAX],
        contact_reason=_told(entry, "contact_reason") or "",
        agent=_told(entry, "agent") or "",
        region=_told(entry, "region") or "",
        product=_told(entry, "product") or "",
        partner=_told(entry, "partner") or "",
        open=bool(detail.get("open", False)),
        detail=detail,
        updated_ms=entry.updated_ms,
    )


#: Of two reports with one (attempt, move, epoch, sequence), the later side of a call.
_CALL_PHASES = {"queued": 0, "connected": 1, "ended": 2}
_ENDED = {CallState.COMPLETED, CallState.ABANDONED, CallState.REFUSED, CallState.INTERRUPTED}


def _project_call(entry: Entry) -> dict[str, Any]:
    sides = [
        (entry.facets[name].stamp, phase, name)
        for name, phase in _CALL_PHASES.items()
        if name in entry.facets
    ]
    newest = max(sides)[2] if sides else ""
    wrapped = dict(entry.facets["wrapped"].values) if "wrapped" in entry.facets else {}
    state = CallState(entry.facets[newest].values["state"]) if newest else CallState.NONE
    if "wrapped" in entry.facets and state not in _ENDED and _wrap_is_newest(entry):
        # The word of its end is late, but there is no after-call work without one.
        state = CallState.COMPLETED
    ended = entry.facets["ended"].values if newest == "ended" and state in _ENDED else {}
    version = max(facet.stamp for facet in entry.facets.values())
    return {
        "state": state.value,
        "attempt": version[0],
        "move": version[1],
        "queue": _told(entry, "queue") or "",
        "wait_ms": _told(entry, "wait_ms"),
        "talk_ms": ended.get("talk_ms"),
        "connect_ms": _told(entry, "connect_ms"),
        "disposition": wrapped.get("disposition", ""),
        "resolved": wrapped.get("resolved"),
        "notes": wrapped.get("notes", ""),
        "wants_to_leave": bool(wrapped.get("wants_to_leave", False)),
        "ended_ms": ended.get("ended_ms"),
        "summary": wrapped.get("disposition", ""),
        "open": state in (CallState.WAITING, CallState.CONNECTED, CallState.MOVING),
    }


def _wrap_is_newest(entry: Entry) -> bool:
    wrapped = entry.facets["wrapped"].stamp
    return all(entry.facets[name].stamp <= wrapped for name in _CALL_PHASES if name in entry.facets)


def _project_ticket(entry: Entry) -> dict[str, Any]:
    values = dict(entry.facets["snapshot"].values)
    return {
        **values,
        "ended_ms": None if values.get("open") else values.get("changed_ms"),
        "summary": values.get("subject"),
    }


def _project_offer(entry: Entry) -> dict[str, Any]:
    values = dict(entry.facets["outcome"].values)
    return {**values, "ended_ms": entry.began_ms, "summary": values.get("title")}


def _project_record(entry: Entry) -> dict[str, Any]:
    values = dict(entry.facets["record"].values)
    return {**values, "open": False}


_PROJECTIONS = {
    InteractionKind.CALL: _project_call,
    InteractionKind.TICKET: _project_ticket,
    InteractionKind.OFFER: _project_offer,
}
