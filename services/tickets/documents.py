"""How tickets lie in MongoDB: mongoengine owns schema and indexes; `to_fields` and `from_raw` are the whole
mapping.

Reads go past mongoengine (raw documents, `from_raw`), so that the synchronous and the asynchronous path
share one mapping. Every query of `store` has an index below; a new query brings its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from mongoengine import BooleanField, DateTimeField, DictField, Document, IntField, ListField, StringField

from chassis.mongo import Aggregate
from tickets import sla as clocks
from tickets.engine import next_timer_ms
from tickets.model import (
    PRIORITY_RANK,
    Alarm,
    Attachment,
    CallLink,
    Channel,
    ClockState,
    ClockType,
    Comment,
    Dispatch,
    Draft,
    FeeLine,
    FollowUp,
    Intent,
    IntentKind,
    Kind,
    Level,
    Link,
    PartLine,
    Phase,
    Priority,
    Profile,
    Relation,
    Sla,
    SlaClock,
    Step,
    SurveyAnswer,
    Ticket,
    Visit,
)

Part = TypeVar("Part", Attachment, CallLink, Comment)

#: How long the end of an occasion is remembered whose beginning was not heard of: longer than any delivery
#: takes, a message that somebody sends once more included.
CARE_END_SECONDS = 7 * 86_400
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
                for field in ("state", "phase", "priority", "category", "open", "breached", "tags")
            ),
            *(
                {"fields": [field, *_NEWEST], "name": f"{field}_newest", "sparse": True}
                for field in ("customer_id", "caller_number", "parent_id", "products", "problem")
            ),
            {"fields": ["kind", "open", *_NEWEST], "name": "kind_open_newest"},
            # Only what is open: years of closed tickets of a busy number are not read for each of its calls.
            {
                "fields": ["customer_id", "topic"],
                "name": "customer_open",
                "partialFilterExpression": {"open": True, "customer_id": {"$gt": ""}},
            },
            {
                "fields": ["caller_number", "topic", "customer_id"],
                "name": "number_open",
                "partialFilterExpression": {"open": True, "caller_number": {"$gt": ""}},
            },
            {"fields": ["team", "open", "-rank", "created_ms", "_id"], "name": "team_pile", "sparse": True},
            # A sparse index of several fields holds every ticket; these only those that have the first.
            *(
                {
                    "fields": [field, "open", *_NEWEST],
                    "name": f"{field}_open_newest",
                    "partialFilterExpression": {field: {"$gt": ""}},
                }
                for field in ("team", "assignee")
            ),
            *(
                {
                    "fields": [field, *_NEWEST],
                    "name": f"{field}_newest",
                    "partialFilterExpression": {field: {"$gt": ""}},
                }
                for field in ("assets", "watchers")
            ),
            *(
                {
                    "fields": [field, "due_ms", "_id"],
                    "name": f"{field}_due",
                    "partialFilterExpression": {field: {"$gt": ""}, "due_ms": {"$gt": 0}},
                }
                for field in ("team", "assignee")
            ),
            {"fields": ["request_keys"], "name": "request_keys", "sparse": True},
            {
                "fields": ["merged_from", "_id"],
                "name": "merged_from_id",
                "partialFilterExpression": {"merged_from": {"$gt": ""}},
            },
            {
                "fields": ["guests", "_id"],
                "name": "guests_id",
                "partialFilterExpression": {"guests": {"$gt": ""}},
            },
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
    #: Searched.
    merged_from = ListField(StringField())
    #: Unique while present.
    open_key = StringField()
    #: Searched: `engine.next_timer_ms`; absent when nothing is to be done.
    timer_ms = IntField()
    timer_hold_ms = IntField()
    created_ms = IntField(required=True)
    updated_ms = IntField(required=True)
    resolved_ms = IntField()
    closed_ms = IntField()
    flow_version = IntField()
    assignee = StringField()
    team = StringField()
    #: Sorted by: how urgent, while it lies in a team's pile.
    rank = IntField()
    silent_ms = IntField()
    silent_limit_ms = IntField()
    had_assignee = BooleanField()
    reassign_count = IntField()
    #: Searched: the keys of `requests`.
    request_keys = ListField(StringField())
    #: Pairs of key and content.
    requests = ListField(ListField(StringField()))
    links = ListField(DictField())
    attachments = ListField(DictField())
    watchers = ListField(StringField())
    comments = ListField(DictField())
    comment_count = IntField()
    merged_into = StringField()
    absorbed = ListField(StringField())
    #: Searched.
    guests = ListField(StringField())
    #: `owner` of calls, files and comments: "call", "file" or "comment", the part's key, the owner. Beside
    #: the parts, because the release before this one reads no part with a field that it does not know.
    owners = ListField(ListField())
    problem = StringField()
    fee_approver = StringField()
    fee_paid_ms = IntField()
    satisfaction = IntField()
    dispatch = DictField(null=False, default=None)
    fee = ListField(DictField())
    parts = ListField(DictField())
    survey = ListField(DictField())


class CommentDocument(Document):
    """A comment that no longer fits into its ticket. `_id` is the ticket and the comment's sequence."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "ticket_comments",
        "auto_create_index": False,
        "index_cls": False,
        "indexes": [{"fields": ["ticket_id", "sequence"], "name": "ticket_sequence"}],
    }

    id = StringField(primary_key=True)
    ticket_id = StringField(required=True)
    sequence = IntField(required=True)
    comment = DictField()
    #: The comment's; beside it as in a ticket.
    owner = StringField()


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
        "indexes": [
            {"fields": ["numbers"], "name": "numbers"},
            {"fields": ["again_ms"], "name": "again", "sparse": True},
        ],
    }

    id = StringField(primary_key=True)
    version = IntField(required=True)
    numbers = ListField(StringField())
    former_numbers = ListField(StringField())
    tier = StringField()
    language = StringField()
    merged_into = StringField()
    erased = BooleanField()
    erased_ms = IntField()
    #: Absent when there is nothing to look for.
    again_ms = IntField()
    refused = ListField(StringField())
    preferred = ListField(StringField())
    quiet = ListField(ListField())
    zone = StringField()


class CareEndDocument(Document):
    """The end of an occasion to care for a customer whose ticket there was not yet. `_id` is the ticket's."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "care_ends",
        "auto_create_index": False,
        "index_cls": False,
        "indexes": [{"fields": ["at"], "name": "forgotten", "expireAfterSeconds": CARE_END_SECONDS}],
    }

    id = StringField(primary_key=True)
    reason = StringField(required=True)
    #: Real time.
    at = DateTimeField(required=True)


#: Every collection of the service.
DOCUMENTS: tuple[type[Document], ...] = (
    TicketDocument,
    HistoryPageDocument,
    CommentDocument,
    ProfileDocument,
    CareEndDocument,
)

#: Left out when one ticket is read: only ListTransitions needs them.
WITHOUT_HISTORY: Mapping[str, int] = {"history": 0, "outbox": 0, "comments": 0}
#: Left out in lists besides.
WITHOUT_TEXTS: Mapping[str, int] = {**WITHOUT_HISTORY, "description": 0, "resolution": 0}


def _plain(value: Any) -> dict[str, Any]:
    """A flat dataclass as a dict, without what is None or empty."""
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: item for name, item in fields.items() if item is not None and item != ""}


def _lean(value: Any) -> dict[str, Any]:
    """As `_plain`, with lists for tuples and without anything that is as its class has it by default."""
    found = {}
    for name, definition in value.__dataclass_fields__.items():
        item = getattr(value, name)
        if item is not None and item != definition.default:
            found[name] = list(item) if isinstance(item, tuple) else item
    return found


def _clock_fields(clock: SlaClock) -> dict[str, Any]:
    fields = _plain(clock)
    if not clock.warned:
        del fields["warned"]
    return fields


def _clock(raw: Mapping[str, Any]) -> SlaClock:
    clock = SlaClock(**{**raw, "state": ClockState(raw["state"])})
    if clock.state is ClockState.RUNNING and clock.due_ms is None and clock.since_ms is not None:
        # stored before there were calendars: every hour counted
        return replace(clock, due_ms=clock.since_ms + clock.target_ms + clock.extra_ms - clock.used_ms)
    return clock


def _sla_fields(sla: Sla) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "policy": sla.policy,
        "rule": sla.rule,
        "explanation": list(sla.explanation),
        "first_response": _clock_fields(sla.first_response),
        "resolution": _clock_fields(sla.resolution),
    }
    if sla.next_response is not None:
        fields["next_response"] = _clock_fields(sla.next_response)
    for name in ("next_response_ms", "calendar", "levels_past", "level", "warn_percent"):
        if value := getattr(sla, name):
            fields[name] = value
    if sla.pausing:
        fields["pausing"] = list(sla.pausing)
    if sla.levels:
        fields["levels"] = [_lean(level) for level in sla.levels]
    if sla.alarms:
        fields["alarms"] = [[alarm.at_ms, alarm.clock.value, alarm.level] for alarm in sla.alarms]
    return fields


def _level(raw: Mapping[str, Any]) -> Level:
    priority = raw.get("priority")
    notify = tuple(raw.get("notify") or ())
    return Level(**{**raw, "priority": Priority(priority) if priority else None, "notify": notify})


def _sla(raw: Mapping[str, Any]) -> Sla:
    next_response = raw.get("next_response")
    alarms = (
        Alarm(at_ms=at, clock=ClockType(clock), level=level) for at, clock, level in raw.get("alarms") or ()
    )
    return Sla(
        policy=raw["policy"],
        rule=raw["rule"],
        explanation=tuple(raw["explanation"]),
        first_response=_clock(raw["first_response"]),
        resolution=_clock(raw["resolution"]),
        next_response=_clock(next_response) if next_response else None,
        next_response_ms=raw.get("next_response_ms") or 0,
        calendar=raw.get("calendar") or "",
        pausing=tuple(raw.get("pausing") or ()),
        levels=tuple(_level(level) for level in raw.get("levels") or ()),
        levels_past=raw.get("levels_past") or 0,
        level=raw.get("level") or 0,
        warn_percent=raw.get("warn_percent") or 0,
        alarms=tuple(alarms),
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
        "dispatch": _dispatch_fields(draft.dispatch) if draft.dispatch is not None else None,
        "fee": [_plain(line) for line in draft.fee] or None,
        "parts": [_plain(line) for line in draft.parts] or None,
        "survey": [_plain(answer) for answer in draft.survey] or None,
    }


def _dispatch_fields(dispatch: Dispatch) -> dict[str, Any]:
    return {**_lean(dispatch), "parts": [_plain(line) for line in dispatch.parts]}


def _dispatch(raw: Mapping[str, Any]) -> Dispatch:
    return Dispatch(**{**raw, "parts": tuple(PartLine(**line) for line in raw.get("parts") or ())})


def _part_fields(part: Attachment | CallLink | Comment) -> dict[str, Any]:
    """As `_plain`, without the owner, which is stored beside it."""
    return _plain(replace(part, owner=""))


def _known(kind: type[Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a class has a field for; the rest is of a newer release."""
    return {name: item for name, item in raw.items() if name in kind.__dataclass_fields__}


def comment_fields(comment: Comment) -> dict[str, Any]:
    """A comment as it is stored, but for its owner."""
    return {**_part_fields(comment), "attachments": list(comment.attachments)}


def comment_from_raw(raw: Mapping[str, Any], owner: str = "") -> Comment:
    """The comment that `comment_fields` made, and whose it is."""
    files = tuple(raw.get("attachments") or ())
    return Comment(**{"body": "", "author": "", **_known(Comment, raw), "attachments": files, "owner": owner})


def _keyed(part: Attachment | CallLink | Comment) -> tuple[str, Any]:
    """The kind and the key of what may have an owner."""
    match part:
        case CallLink():
            return "call", part.call_id
        case Attachment():
            return "file", part.id
        case Comment():
            return "comment", part.sequence


def _owners(ticket: Ticket) -> Iterator[list[Any]]:
    parts: tuple[Attachment | CallLink | Comment, ...] = (
        *ticket.calls,
        *ticket.attachments,
        *ticket.comments,
    )
    for part in parts:
        if part.owner:
            yield [*_keyed(part), part.owner]


def _owned(part: Part, owners: Mapping[tuple[str, Any], str]) -> Part:
    owner = owners.get(_keyed(part))
    return replace(part, owner=owner) if owner else part


def _parts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The calls, files and comments of a ticket, with whose they are."""
    owners = {(kind, key): owner for kind, key, owner in raw.get("owners") or ()}
    calls = (CallLink(**_known(CallLink, call)) for call in raw.get("calls") or ())
    files = (Attachment(**_known(Attachment, file)) for file in raw.get("attachments") or ())
    comments = map(comment_from_raw, raw.get("comments") or ())
    return {
        "calls": tuple(_owned(call, owners) for call in calls),
        "attachments": tuple(_owned(file, owners) for file in files),
        "comments": tuple(_owned(comment, owners) for comment in comments),
    }


def _visit_fields(visit: Visit) -> dict[str, Any]:
    fields = _plain(visit)
    if visit.channel is Channel.UNKNOWN:
        del fields["channel"]
    return fields


def _is_waiting(ticket: Ticket) -> bool:
    """Whether it lies in a team's pile."""
    return bool(ticket.team) and ticket.is_open and not ticket.assignee


def _task_fields(ticket: Ticket) -> dict[str, Any]:
    """What tickets have since there were tasks, comments and links; absent where there is none of it."""
    return {
        "flow_version": ticket.flow_version if ticket.flow_version != 1 else None,
        "assignee": ticket.assignee or None,
        "team": ticket.team or None,
        "rank": PRIORITY_RANK[ticket.draft.priority] if _is_waiting(ticket) else None,
        "silent_ms": ticket.silent_ms,
        "silent_limit_ms": ticket.silent_limit_ms,
        "had_assignee": ticket.had_assignee or None,
        "reassign_count": ticket.reassign_count or None,
        "request_keys": [key for key, _ in ticket.requests] or None,
        "requests": [list(request) for request in ticket.requests] or None,
        "links": [_plain(link) for link in ticket.links] or None,
        "attachments": [_part_fields(file) for file in ticket.attachments] or None,
        "watchers": list(ticket.watchers) or None,
        "comments": [comment_fields(comment) for comment in ticket.comments] or None,
        "comment_count": ticket.comment_count or None,
        "merged_into": ticket.merged_into or None,
        "absorbed": list(ticket.absorbed) or None,
        "guests": list(ticket.guests) or None,
        "owners": list(_owners(ticket)) or None,
        "problem": ticket.problem or None,
        "fee_approver": ticket.fee_approver or None,
        "fee_paid_ms": ticket.fee_paid_ms,
        "satisfaction": ticket.satisfaction or None,
    }


def _task_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "flow_version": raw.get("flow_version") or 1,
        "had_assignee": bool(raw.get("had_assignee")),
        "silent_ms": raw.get("silent_ms"),
        "silent_limit_ms": raw.get("silent_limit_ms"),
        "fee_paid_ms": raw.get("fee_paid_ms"),
        "links": tuple(
            Link(**{**link, "relation": Relation(link["relation"])}) for link in raw.get("links") or ()
        ),
        "watchers": tuple(raw.get("watchers") or ()),
        "absorbed": tuple(raw.get("absorbed") or ()),
        "guests": tuple(raw.get("guests") or ()),
        "requests": tuple((key, content) for key, content in raw.get("requests") or ()),
        **{
            name: raw.get(name) or ""
            for name in ("assignee", "team", "merged_into", "problem", "fee_approver")
        },
        **{name: raw.get(name) or 0 for name in ("reassign_count", "comment_count", "satisfaction")},
    }


def is_breached(sla: Sla) -> bool:
    """Whether a target passed in the present cycle."""
    three = (sla.first_response, sla.next_response, sla.resolution)
    return any(clock is not None and clock.breached_ms is not None for clock in three)


def to_fields(ticket: Ticket) -> dict[str, Any]:
    """What a TicketDocument is made of, but for id and what the chassis keeps (version, outbox, request
    key)."""
    return {
        **_draft_fields(ticket.draft),
        **_task_fields(ticket),
        "kind": ticket.kind.value,
        "flow": ticket.flow,
        "state": ticket.state,
        "phase": ticket.phase.value,
        "open": ticket.is_open,
        "topic": ticket.topic,
        "tier": ticket.tier,
        "sla": _sla_fields(ticket.sla),
        "breached": is_breached(ticket.sla),
        "due_ms": clocks.due_ms(ticket.sla.resolution),
        "calls": [_part_fields(call) for call in ticket.calls],
        "call_count": ticket.call_count,
        "resolution": ticket.resolution,
        "parent_id": ticket.parent_id or None,
        "follow_up": _plain(ticket.follow_up) if ticket.follow_up else None,
        "visit": _visit_fields(ticket.visit) if ticket.visit else None,
        "history": [step_fields(step) for step in ticket.history],
        "step_count": ticket.step_count,
        "intents": [_intent_fields(intent) for intent in ticket.intents],
        "resolve_count": ticket.resolve_count,
        "reopen_count": ticket.reopen_count,
        "first_contact_resolved": ticket.first_contact_resolved,
        "creator": ticket.creator,
        "merged_from": list(ticket.merged_from) or None,
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
        dispatch=_dispatch(raw["dispatch"]) if raw.get("dispatch") else None,
        fee=tuple(FeeLine(**{"description": "", **line}) for line in raw.get("fee") or ()),
        parts=tuple(PartLine(**line) for line in raw.get("parts") or ()),
        survey=tuple(SurveyAnswer(**answer) for answer in raw.get("survey") or ()),
    )


def _intent_fields(intent: Intent) -> dict[str, Any]:
    fields = _plain(intent)
    if not intent.score:
        del fields["score"]
    return fields


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
        call_count=raw.get("call_count") or 0,
        resolution=raw.get("resolution") or "",
        parent_id=raw.get("parent_id") or "",
        follow_up=FollowUp(**follow_up) if follow_up else None,
        visit=Visit(**{**visit, "channel": Channel(visit.get("channel") or "unknown")}) if visit else None,
        history=tuple(step_from_raw(step) for step in raw.get("history") or ()),
        step_count=raw.get("step_count") or 0,
        intents=tuple(_intent(intent) for intent in raw.get("intents") or ()),
        resolve_count=raw.get("resolve_count") or 0,
        reopen_count=raw.get("reopen_count") or 0,
        first_contact_resolved=bool(raw.get("first_contact_resolved")),
        creator=raw.get("creator") or "",
        merged_from=tuple(raw.get("merged_from") or ()),
        open_key=raw.get("open_key") or "",
        timer_hold_ms=raw.get("timer_hold_ms") or 0,
        created_ms=raw["created_ms"],
        updated_ms=raw["updated_ms"],
        resolved_ms=raw.get("resolved_ms"),
        closed_ms=raw.get("closed_ms"),
        version=raw["version"],
        **_parts(raw),
        **_task_values(raw),
    )


def profile_fields(profile: Profile) -> dict[str, Any]:
    """What a profile is stored as, but for its id."""
    return {
        "version": profile.version,
        "numbers": list(profile.numbers),
        "former_numbers": list(profile.former_numbers),
        "tier": profile.tier,
        "language": profile.language,
        "merged_into": profile.merged_into,
        "erased": profile.erased,
        "refused": sorted(profile.refused),
        "preferred": [channel.value for channel in profile.preferred],
        "quiet": [[list(days), start, end] for days, start, end in profile.quiet],
        "zone": profile.zone,
        **({"again_ms": profile.again_ms} if profile.again_ms is not None else {}),
        **({"erased_ms": profile.erased_ms} if profile.erased_ms is not None else {}),
    }


def profile_from_raw(raw: Mapping[str, Any]) -> Profile:
    """The profile in a raw document."""
    return Profile(
        customer_id=raw["_id"],
        version=raw["version"],
        numbers=tuple(raw.get("numbers") or ()),
        former_numbers=tuple(raw.get("former_numbers") or ()),
        tier=raw.get("tier") or "",
        language=raw.get("language") or "",
        merged_into=raw.get("merged_into") or "",
        erased=bool(raw.get("erased")),
        refused=frozenset(Channel(channel) for channel in raw.get("refused") or ()),
        preferred=tuple(Channel(channel) for channel in raw.get("preferred") or ()),
        quiet=tuple((tuple(days), start, end) for days, start, end in raw.get("quiet") or ()),
        zone=raw.get("zone") or "",
        again_ms=raw.get("again_ms"),
        erased_ms=raw.get("erased_ms"),
    )
