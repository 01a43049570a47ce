"""How tickets lie in MongoDB: mongoengine owns schema and indexes; `to_fields` and `from_raw` are the whole
mapping.

Reads go past mongoengine (raw documents, `from_raw`), so that the synchronous and the asynchronous path
share one mapping. Every query of `store` has an index below; a new query brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mongoengine import BooleanField, DictField, Document, IntField, ListField, StringField

from chassis.mongo import Aggregate
from tickets import sla as clocks
from tickets.engine import next_timer_ms
from tickets.model import (
    CallLink,
    Channel,
    ClockState,
    Draft,
    FollowUp,
    Intent,
    IntentKind,
    Kind,
    Phase,
    Priority,
    Profile,
    Sla,
    SlaClock,
    Step,
    Ticket,
    Visit,
)

#: What every list is sorted by, newest first.
_NEWEST = ("-created_ms", "-_id")


class TicketDocument(Aggregate):
    """A ticket. Fields named like the model's hold the same; what is only there to be searched says so."""

    resource_collection: ClassVar[str] = "tickets"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "tickets",
        "indexes": [
            {"fields": list(_NEWEST), "name": "newest"},
            *(
                {"fields": [field, *_NEWEST], "name": f"{field}_newest"}
                for field in ("kind", "state", "phase", "priority", "category", "open", "breached", "tags")
            ),
            *(
                {"fields": [field, *_NEWEST], "name": f"{field}_newest", "sparse": True}
                for field in ("customer_id", "caller_number", "parent_id")
            ),
            {"fields": ["kind", "open", *_NEWEST], "name": "kind_open_newest"},
            {"fields": ["customer_id", "open", "topic"], "name": "customer_topic"},
            {"fields": ["caller_number", "open", "topic"], "name": "number_topic"},
            {"fields": ["calls.call_id"], "name": "call", "sparse": True},
            {"fields": ["updated_ms"], "name": "updated"},
            {"fields": ["due_ms", "_id"], "name": "due", "sparse": True},
            {"fields": ["timer_ms", "_id"], "name": "timer", "sparse": True},
            {"fields": ["open_key"], "name": "open_key", "unique": True, "sparse": True},
        ],
    }

    kind = StringField(required=True, choices=[k.value for k in Kind])
    flow = StringField(required=True)
    state = StringField(required=True)
    phase = StringField(required=True, choices=[p.value for p in Phase])
    #: Searched: the phase is one of the open ones.
    open = BooleanField(required=True)
    subject = StringField(required=True)
    description = StringField()
    priority = StringField(required=True, choices=[p.value for p in Priority])
    category = StringField()
    #: Searched: category, or kind where there is none.
    topic = StringField(required=True)
    customer_id = StringField()
    caller_number = StringField()
    language = StringField()
    channel = StringField()
    required_skills = ListField(StringField())
    tags = ListField(StringField())
    #: Pairs of key and value: keys may hold dots.
    attributes = ListField(ListField(StringField()))
    assets = ListField(StringField())
    products = ListField(StringField())
    tier = StringField()
    sla = DictField(required=True)
    #: Searched: a target passed in the present cycle.
    breached = BooleanField(required=True)
    #: Searched and sorted by: when it must be resolved; absent while that clock doesn't run.
    due_ms = IntField()
    calls = ListField(DictField())
    call_count = IntField()
    resolution = StringField()
    parent_id = StringField()
    follow_up = DictField(null=False)
    visit = DictField(null=False)
    history = ListField(DictField())
    step_count = IntField()
    intents = ListField(DictField())
    resolve_count = IntField()
    reopen_count = IntField()
    first_contact_resolved = BooleanField()
    creator = StringField()
    #: Unique while present.
    open_key = StringField()
    #: Searched: `engine.next_timer_ms`; absent when nothing is to be done.
    timer_ms = IntField()
    timer_hold_ms = IntField()
    created_ms = IntField(required=True)
    updated_ms = IntField(required=True)
    resolved_ms = IntField()
    closed_ms = IntField()


class HistoryPageDocument(Document):
    """Steps of a ticket that no longer fit into it. `_id` is the ticket and the first step's sequence."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "ticket_history",
        "auto_create_index": False,
        "index_cls": False,
        "indexes": [{"fields": ["ticket_id", "first"], "name": "ticket_first"}],
    }

    id = StringField(primary_key=True)
    ticket_id = StringField(required=True)
    first = IntField(required=True)
    steps = ListField(DictField())


class ProfileDocument(Document):
    """What tickets knows of a customer."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "customer_profiles",
        "auto_create_index": False,
        "index_cls": False,
        "indexes": [{"fields": ["numbers"], "name": "numbers"}],
    }

    id = StringField(primary_key=True)
    version = IntField(required=True)
    numbers = ListField(StringField())
    tier = StringField()
    language = StringField()
    merged_into = StringField()


#: Every collection of the service.
DOCUMENTS: tuple[type[Document], ...] = (TicketDocument, HistoryPageDocument, ProfileDocument)

#: Left out when one ticket is read: only ListTransitions needs them.
WITHOUT_HISTORY: Mapping[str, int] = {"history": 0, "outbox": 0}
#: Left out in lists besides.
WITHOUT_TEXTS: Mapping[str, int] = {**WITHOUT_HISTORY, "description": 0, "resolution": 0}


def _plain(value: Any) -> dict[str, Any]:
    """A flat dataclass as a dict, without what is None or empty."""
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: item for name, item in fields.items() if item is not None and item != ""}


def _clock(raw: Mapping[str, Any]) -> SlaClock:
    return SlaClock(**{**raw, "state": ClockState(raw["state"])})


def _sla_fields(sla: Sla) -> dict[str, Any]:
    return {
        "policy": sla.policy,
        "rule": sla.rule,
        "explanation": list(sla.explanation),
        "first_response": _plain(sla.first_response),
        "resolution": _plain(sla.resolution),
    }


def _sla(raw: Mapping[str, Any]) -> Sla:
    return Sla(
        policy=raw["policy"],
        rule=raw["rule"],
        explanation=tuple(raw["explanation"]),
        first_response=_clock(raw["first_response"]),
        resolution=_clock(raw["resolution"]),
    )


def step_fields(step: Step) -> dict[str, Any]:
    """A step of the history as it is stored."""
    return _plain(step)


def step_from_raw(raw: Mapping[str, Any]) -> Step:
    """The step that `step_fields` made."""
    return Step(**{"source": "", "reason": "", **raw, "phase": Phase(raw["phase"])})


def _draft_fields(draft: Draft) -> dict[str, Any]:
    return {
        "subject": draft.subject,
        "description": draft.description,
        "priority": draft.priority.value,
        "category": draft.category,
        "customer_id": draft.customer_id or None,
        "caller_number": draft.caller_number or None,
        "language": draft.language,
        "channel": draft.channel.value,
        "required_skills": list(draft.required_skills),
        "tags": list(draft.tags),
        "attributes": [[key, value] for key, value in draft.attributes.items()],
        "assets": list(draft.assets),
        "products": list(draft.products),
    }


def to_fields(ticket: Ticket) -> dict[str, Any]:
    """What a TicketDocument is made of, but for id and what the chassis keeps (version, outbox, request
    key)."""
    clock_states = (ticket.sla.first_response, ticket.sla.resolution)
    return {
        **_draft_fields(ticket.draft),
        "kind": ticket.kind.value,
        "flow": ticket.flow,
        "state": ticket.state,
        "phase": ticket.phase.value,
        "open": ticket.is_open,
        "topic": ticket.topic,
        "tier": ticket.tier,
        "sla": _sla_fields(ticket.sla),
        "breached": any(clock.breached_ms is not None for clock in clock_states),
        "due_ms": clocks.due_ms(ticket.sla.resolution),
        "calls": [_plain(call) for call in ticket.calls],
        "call_count": ticket.call_count,
        "resolution": ticket.resolution,
        "parent_id": ticket.parent_id or None,
        "follow_up": _plain(ticket.follow_up) if ticket.follow_up else None,
        "visit": _plain(ticket.visit) if ticket.visit else None,
        "history": [step_fields(step) for step in ticket.history],
        "step_count": ticket.step_count,
        "intents": [_plain(intent) for intent in ticket.intents],
        "resolve_count": ticket.resolve_count,
        "reopen_count": ticket.reopen_count,
        "first_contact_resolved": ticket.first_contact_resolved,
        "creator": ticket.creator,
        "open_key": ticket.open_key or None,
        "timer_ms": next_timer_ms(ticket),
        "timer_hold_ms": ticket.timer_hold_ms,
        "created_ms": ticket.created_ms,
        "updated_ms": ticket.updated_ms,
        "resolved_ms": ticket.resolved_ms,
        "closed_ms": ticket.closed_ms,
    }


def _draft(raw: Mapping[str, Any]) -> Draft:
    return Draft(
        subject=raw["subject"],
        description=raw.get("description") or "",
        priority=Priority(raw["priority"]),
        category=raw.get("category") or "",
        customer_id=raw.get("customer_id") or "",
        caller_number=raw.get("caller_number") or "",
        language=raw.get("language") or "",
        channel=Channel(raw.get("channel") or Channel.UNKNOWN),
        required_skills=tuple(raw.get("required_skills") or ()),
        tags=tuple(raw.get("tags") or ()),
        attributes={key: value for key, value in raw.get("attributes") or ()},
        assets=tuple(raw.get("assets") or ()),
        products=tuple(raw.get("products") or ()),
    )


def _intent(raw: Mapping[str, Any]) -> Intent:
    return Intent(**{"reason": "", **raw, "kind": IntentKind(raw["kind"])})


def from_raw(raw: Mapping[str, Any]) -> Ticket:
    """The ticket in a raw document; parts that a projection left out are empty."""
    follow_up, visit = raw.get("follow_up"), raw.get("visit")
    return Ticket(
        id=raw["_id"],
        kind=Kind(raw["kind"]),
        flow=raw["flow"],
        state=raw["state"],
        phase=Phase(raw["phase"]),
        draft=_draft(raw),
        sla=_sla(raw["sla"]),
        tier=raw.get("tier") or "",
        calls=tuple(CallLink(**call) for call in raw.get("calls") or ()),
        call_count=raw.get("call_count") or 0,
        resolution=raw.get("resolution") or "",
        parent_id=raw.get("parent_id") or "",
        follow_up=FollowUp(**follow_up) if follow_up else None,
        visit=Visit(**visit) if visit else None,
        history=tuple(step_from_raw(step) for step in raw.get("history") or ()),
        step_count=raw.get("step_count") or 0,
        intents=tuple(_intent(intent) for intent in raw.get("intents") or ()),
        resolve_count=raw.get("resolve_count") or 0,
        reopen_count=raw.get("reopen_count") or 0,
        first_contact_resolved=bool(raw.get("first_contact_resolved")),
        creator=raw.get("creator") or "",
        open_key=raw.get("open_key") or "",
        timer_hold_ms=raw.get("timer_hold_ms") or 0,
        created_ms=raw["created_ms"],
        updated_ms=raw["updated_ms"],
        resolved_ms=raw.get("resolved_ms"),
        closed_ms=raw.get("closed_ms"),
        version=raw["version"],
    )


def profile_fields(profile: Profile) -> dict[str, Any]:
    """What a profile is stored as, but for its id."""
    return {
        "version": profile.version,
        "numbers": list(profile.numbers),
        "tier": profile.tier,
        "language": profile.language,
        "merged_into": profile.merged_into,
    }


def profile_from_raw(raw: Mapping[str, Any]) -> Profile:
    """The profile in a raw document."""
    return Profile(
        customer_id=raw["_id"],
        version=raw["version"],
        numbers=tuple(raw.get("numbers") or ()),
        tier=raw.get("tier") or "",
        language=raw.get("language") or "",
        merged_into=raw.get("merged_into") or "",
    )
