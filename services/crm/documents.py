"""How crm lies in MongoDB: mongoengine owns schema, indexes and writes; `*_fields` and `*_from_raw` are the
whole mapping.

Reads go past mongoengine (raw documents), so that the synchronous and the asynchronous path share one
mapping. Every query of `store` has an index below; a new query brings its own. Values equal to the model's
defaults are not stored.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

from bson.int64 import Int64
from mongoengine import (
    BinaryField,
    BooleanField,
    DateTimeField,
    DictField,
    Document,
    FloatField,
    IntField,
    ListField,
    StringField,
)

from chassis.mongo import Aggregate
from crm import engine, plain, search, timeline
from crm.model import (
    AuditEntry,
    BirthDate,
    CachedOffer,
    Channel,
    Churn,
    ChurnReason,
    Consent,
    Contact,
    Customer,
    CustomField,
    EmailAddress,
    Entry,
    ExternalId,
    Facet,
    FieldChange,
    FieldKind,
    Gain,
    Interaction,
    InteractionKind,
    Kind,
    Merge,
    MergeState,
    OfferRanking,
    PhoneNumber,
    PostalAddress,
    Purpose,
    QuietWindow,
    Reminder,
    State,
    Tier,
    ValueClass,
)

#: Which form of `wire` this release writes and can hand out as it is; another is made anew from the fields.
WIRE_VERSION = 1
#: Largest answer kept ready in a customer, bytes: what is larger is rare, and made when asked for.
WIRE_BYTES_MAX = 16_384
#: Audit entries kept inside a customer; older ones move to their own collection.
AUDIT_INSIDE_MAX = 20

_PRESENT = {"$gt": ""}


def _partial(field: str, *more: str) -> dict[str, Any]:
    """An index of the documents alone that have `field`, in the order of ids."""
    return {
        "fields": [field, *(more or ("_id",))],
        "name": f"{field}_id",
        "partialFilterExpression": {field: _PRESENT},
    }


class CustomerDocument(Aggregate):
    """A customer. Fields named like the model's hold the same; what is only there to be searched says so."""

    resource_collection: ClassVar[str] = "customers"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "customers",
        "indexes": [
            # Partial, because an empty array would be indexed as one null and so be "taken" by the first.
            {
                "fields": ["claims"],
                "name": "claims",
                "unique": True,
                "partialFilterExpression": {"claims": _PRESENT},
            },
            {"fields": ["state", "_id"], "name": "state_id"},
            {"fields": ["tier", "_id"], "name": "tier_id"},
            {"fields": ["kind", "_id"], "name": "kind_id"},
            _partial("tags"),
            _partial("value_class"),
            _partial("account_manager"),
            _partial("company"),
            _partial("home_region"),
            _partial("merged_into"),
            _partial("birthday"),
            {"fields": ["terms"], "name": "terms"},
            {
                "fields": ["erase_pending"],
                "name": "erase_pending",
                "partialFilterExpression": {"erase_pending": True},
            },
        ],
    }

    kind = StringField(required=True, choices=[k.value for k in Kind])
    display_name = StringField()
    given_name = StringField()
    family_name = StringField()
    phone_numbers = ListField(DictField())
    email_addresses = ListField(DictField())
    external_ids = ListField(DictField())
    addresses = ListField(DictField())
    tier = StringField(required=True, choices=[t.value for t in Tier])
    language = StringField()
    time_zone = StringField()
    home_region = StringField()
    tags = ListField(StringField())
    account_manager = StringField()
    value_class = StringField()
    birth_date = DictField()
    notes = StringField()
    custom_values = DictField()
    company = StringField()
    contacts = ListField(DictField())
    quiet_windows = ListField(DictField())
    consents = ListField(DictField())
    state = StringField(required=True, choices=[s.value for s in State])
    merged_into = StringField()
    delete_time = DateTimeField()
    creator = StringField()
    updater = StringField()
    #: Searched and unique: what the customer owns now, see `engine.claims`.
    claims = ListField(StringField())
    #: Searched: see `search.terms`.
    terms = ListField(StringField())
    #: Searched: "MM-DD"; absent when not known.
    birthday = StringField()
    #: The answer of GetCustomer, ready; absent when larger than `WIRE_BYTES_MAX`.
    wire = BinaryField()
    #: `WIRE_VERSION` of the release that wrote it.
    wire_version = IntField()
    #: Which row of which import made it: "<import>:<line>"; absent for others.
    origin = StringField()
    #: True while personal data of an erased customer may still lie elsewhere.
    erase_pending = BooleanField()
    #: The latest changes, oldest first.
    audit = ListField(DictField())


class ImportedDocument(Aggregate):
    """What a batch of imported rows tells the others, until it is told; see `crm.import_store`."""

    resource_collection: ClassVar[str] = "imported"
    outbox_ordered: ClassVar[bool] = False
    outbox_only: ClassVar[bool] = True
    meta: ClassVar[dict[str, Any]] = {
        "collection": "imported",
        "indexes": [{"fields": ["opened"], "name": "opened", "sparse": True}],
    }

    #: Real time at which its customers began to be written; absent when that is done.
    opened = DateTimeField()


class AuditDocument(Document):
    """An audit entry that no longer fits into its customer. `_id` is "customer:version", so moving it twice
    is harmless.
    """

    meta: ClassVar[dict[str, Any]] = {
        "collection": "audit",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [{"fields": ["customer", "-version"], "name": "customer_version", "unique": True}],
    }

    id = StringField(primary_key=True)
    customer = StringField(required=True)
    version = IntField(required=True)
    entry = DictField()


class InteractionDocument(Aggregate):
    """One interaction: what its facts told (`facets`), and what of it is searched."""

    resource_collection: ClassVar[str] = "interactions"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "interactions",
        "indexes": [
            {"fields": ["subject", "-began_ms", "-_id"], "name": "subject_newest"},
            {"fields": ["subject", "kind", "-began_ms", "-_id"], "name": "subject_kind_newest"},
            {
                "fields": ["subject", "kind"],
                "name": "subject_open",
                "partialFilterExpression": {"open": True},
            },
            {"fields": ["began_ms", "_id"], "name": "began_id"},
            {"fields": ["own"], "name": "own", "partialFilterExpression": {"own": _PRESENT}},
        ],
    }

    kind = StringField(required=True, choices=[k.value for k in InteractionKind])
    source = StringField(required=True)
    source_id = StringField(required=True)
    #: Side -> {"stamp": [...], "values": {...}}.
    facets = DictField()
    began_ms = IntField(required=True)
    #: Whose timeline; absent when nobody's.
    subject = StringField()
    #: Whose it would be had nobody been merged; absent when that is `subject`.
    own = StringField()
    #: What insights count, flat: see `voice_fields`.
    voice = DictField()
    #: Searched: see `Interaction.open`; absent when not.
    open = BooleanField()
    updated_ms = IntField()


class RankingDocument(Document):
    """What marketing last ranked for a subject; `_id` is the subject."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "offer_rankings",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
    }

    id = StringField(primary_key=True)
    stamp_ms = IntField()
    stamp_id = StringField()
    offers = ListField(DictField())
    expires_ms = IntField()
    answers = ListField(DictField())
    revision = IntField()


class CustomFieldDocument(Document):
    """The declaration of a custom field."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "custom_fields",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
    }

    id = StringField(primary_key=True)
    label = StringField()
    kind = StringField(required=True, choices=[k.value for k in FieldKind])
    choices = ListField(StringField())
    required = BooleanField()
    retired = BooleanField()
    version = IntField()
    create_time = DateTimeField()


class MergeDocument(Aggregate):
    """A merge: the journaled intent, what moved, and what it told the others."""

    resource_collection: ClassVar[str] = "merges"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "merges",
        "indexes": [
            # A customer takes part in one running merge at most.
            {
                "fields": ["busy"],
                "name": "busy",
                "unique": True,
                "partialFilterExpression": {"busy": _PRESENT},
            },
            {"fields": ["parties", "-_id"], "name": "parties_newest"},
        ],
    }

    survivor = StringField(required=True)
    absorbed = ListField(StringField())
    #: Searched: the survivor and the absorbed.
    parties = ListField(StringField())
    #: Searched and unique: the parties while it runs; absent afterwards.
    busy = ListField(StringField())
    state = StringField(required=True)
    reason = StringField()
    requester = StringField()
    undo_reason = StringField()
    undoer = StringField()
    moved = IntField()
    #: Absorbed id -> {"added": customer's fields, "consents_before": [...]}, as [{"id":, ...}].
    gains = ListField(DictField())


class ChurnDocument(Aggregate):
    """How likely a customer is to leave; `_id` is the customer's."""

    resource_collection: ClassVar[str] = "churn"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "churn",
        "indexes": [
            {"fields": ["-score", "_id"], "name": "score_id"},
            {
                "fields": ["-score", "_id"],
                "name": "leaving_score_id",
                "partialFilterExpression": {"wants_to_leave": True},
            },
            {"fields": ["dirty_ms"], "name": "dirty", "sparse": True},
        ],
    }

    score = FloatField()
    reasons = ListField(DictField())
    wants_to_leave = BooleanField()
    intent_ms = IntField()
    comment = StringField()
    scored_ms = IntField()
    #: Real ms since something happened that was not scored yet; absent when all is scored.
    dirty_ms = IntField()


class CareTaskDocument(Aggregate):
    """Something to do for a customer; `_id` follows from rule, customer and occasion."""

    resource_collection: ClassVar[str] = "careTasks"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "care_tasks",
        "indexes": [
            {"fields": ["customer", "state", "due_ms", "_id"], "name": "customer_state_due"},
            {"fields": ["state", "due_ms", "_id"], "name": "state_due"},
            {"fields": ["state", "ends_ms"], "name": "state_ends"},
            {
                "fields": ["snooze_ms"],
                "name": "snoozed",
                "partialFilterExpression": {"snooze_ms": {"$gt": 0}},
            },
            {"fields": ["own"], "name": "own", "partialFilterExpression": {"own": _PRESENT}},
        ],
    }

    customer = StringField(required=True)
    own = StringField()
    rule = StringField()
    kind = StringField()
    text = StringField()
    state = StringField(required=True)
    due_ms = IntField()
    ends_ms = IntField()
    snooze_ms = IntField()
    outcome = StringField()
    closer = StringField()


#: Everything that has indexes; capabilities add theirs in `crm.collections`.
DOCUMENTS: tuple[type[Document], ...] = (
    CustomerDocument,
    ImportedDocument,
    AuditDocument,
    InteractionDocument,
    RankingDocument,
    CustomFieldDocument,
    MergeDocument,
    ChurnDocument,
    CareTaskDocument,
)
#: Everything that has an outbox.
AGGREGATES: tuple[type[Aggregate], ...] = (
    # First, so that who was imported is told before what became of them since.
    ImportedDocument,
    CustomerDocument,
    InteractionDocument,
    MergeDocument,
    ChurnDocument,
    CareTaskDocument,
)

#: Fields that a reader of customers does not need.
HIDDEN: Mapping[str, int] = {
    "audit": 0,
    "outbox": 0,
    "outbox_since": 0,
    "claims": 0,
    "terms": 0,
    "wire": 0,
    "request_key": 0,
    "request_fingerprint": 0,
}
#: Fields that a reader of interactions does not need.
INTERACTION_HIDDEN: Mapping[str, int] = {
    "outbox": 0,
    "outbox_since": 0,
    "voice": 0,
    "request_key": 0,
    "request_fingerprint": 0,
}
#: What a screen pop does not need of an interaction: long texts above all.
POP_HIDDEN: Mapping[str, int] = {**INTERACTION_HIDDEN, "facets.wrapped.values.notes": 0}

_ITEMS: Mapping[str, type] = {
    "phone_numbers": PhoneNumber,
    "email_addresses": EmailAddress,
    "external_ids": ExternalId,
    "addresses": PostalAddress,
    "contacts": Contact,
    "quiet_windows": QuietWindow,
    "consents": Consent,
}
_ENUMS: Mapping[str, type[enum.StrEnum]] = {
    "kind": Kind,
    "tier": Tier,
    "value_class": ValueClass,
    "state": State,
}
#: Kept by `Aggregate` under other names, or not stored at all.
_ELSEWHERE = frozenset({"id", "version", "create_time", "update_time"})

Value = TypeVar("Value")


_NUMBER, _EMAIL = plain.shape(PhoneNumber, {}), plain.shape(EmailAddress, {})
_HELD = {"phone_numbers": plain.several(_NUMBER), "email_addresses": plain.several(_EMAIL)}
_WINDOW = {"weekdays": plain.several(Any), "channels": plain.several(Any)}
#: What of a customer is stored under names of its own, but for the values of custom fields.
_lean_customer = plain.lean(
    plain.shape(
        Customer,
        {
            **_HELD,
            "external_ids": plain.several(plain.shape(ExternalId, {})),
            "addresses": plain.several(plain.shape(PostalAddress, {})),
            "birth_date": plain.shape(BirthDate, {}),
            "contacts": plain.several(plain.shape(Contact, _HELD)),
            "quiet_windows": plain.several(plain.shape(QuietWindow, _WINDOW)),
            "consents": plain.several(plain.shape(Consent, {})),
            "tags": plain.several(Any),
        },
        always=_ENUMS.keys() - {"value_class"},
        never=_ELSEWHERE,
    )
)


def _pack(value: Any) -> Any:
    """An object, or several, as stored: plain, without what is as by default."""
    if isinstance(value, tuple):
        return [_pack(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return plain.builtin(value)
    return plain.without_defaults(type(value), plain.builtin(value))


def _native(value: Any) -> Any:
    """Numbers of 64 bits, as all times are, come as a class of their own, which msgspec takes for none."""
    return int(value) if type(value) is Int64 else value


def _item(cls: type[Value], raw: Mapping[str, Any]) -> Value:
    # A newer release may have stored more: unknown keys are passed over.
    known = {f.name: _native(raw[f.name]) for f in fields(cls) if f.name in raw}  # type: ignore[arg-type]
    for name, nested in _ITEMS.items():
        if name in known:
            known[name] = tuple(_item(nested, item) for item in known[name])
    if "weekdays" in known:
        known["weekdays"] = tuple(known["weekdays"])
    if "channel" in known:
        known["channel"] = Channel(known["channel"])
    if "purpose" in known:
        known["purpose"] = Purpose(known["purpose"])
    if "channels" in known:
        known["channels"] = tuple(Channel(item) for item in known["channels"])
    return cls(**known)


_STORED = tuple(f.name for f in fields(Customer) if f.name not in _ELSEWHERE)
_NOTHING = dict.fromkeys((*_STORED, "claims", "terms", "birthday"))


def customer_present(customer: Customer) -> dict[str, Any]:
    """What of a customer is stored under names of its own, its searched fields too."""
    stored = _lean_customer(customer)
    if customer.custom_values:
        stored["custom_values"] = {k: _custom_out(v) for k, v in customer.custom_values.items()}
    if claims := engine.claims(customer):
        stored["claims"] = list(claims)
    if terms := search.terms(customer):
        stored["terms"] = list(terms)
    day = customer.birth_date
    if day is not None:
        stored["birthday"] = f"{day.month:02}-{day.day:02}"
    return stored


def customer_fields(customer: Customer) -> dict[str, Any]:
    """As `customer_present`, with None where there is nothing to store."""
    return {**_NOTHING, **customer_present(customer)}


def wire_fields(wire: bytes) -> dict[str, Any]:
    """The ready answer as it is stored."""
    keep = 0 < len(wire) <= WIRE_BYTES_MAX
    return {"wire": wire if keep else None, "wire_version": WIRE_VERSION if keep else None}


def _custom_out(value: Any) -> Any:
    # A date lies as an object, several texts as an array: the two that are no plain values.
    return {"date": _pack(value)} if isinstance(value, BirthDate) else _pack(value)


def _custom_in(stored: Any) -> Any:
    if isinstance(stored, Mapping):
        return _item(BirthDate, stored["date"])
    return tuple(stored) if isinstance(stored, list) else stored


def customer_from_raw(raw: Mapping[str, Any]) -> Customer:
    """A stored customer."""
    values: dict[str, Any] = {
        "id": raw["_id"],
        "version": raw.get("version", 1),
        "create_time": raw.get("created_at"),
        "update_time": raw.get("updated_at"),
    }
    for name in _STORED:
        stored = raw.get(name)
        if stored is None or stored == {}:
            continue
        if name in _ITEMS:
            values[name] = tuple(_item(_ITEMS[name], item) for item in stored)
        elif name in _ENUMS:
            values[name] = _ENUMS[name](stored)
        elif name == "birth_date":
            values[name] = _item(BirthDate, stored)
        elif name == "custom_values":
            values[name] = {key: _custom_in(value) for key, value in stored.items()}
        else:
            values[name] = tuple(stored) if name == "tags" else stored
    return Customer(**values)


def custom_field_from_raw(raw: Mapping[str, Any]) -> CustomField:
    """A stored declaration."""
    return CustomField(
        id=raw["_id"],
        label=raw.get("label") or "",
        kind=FieldKind(raw["kind"]),
        choices=tuple(raw.get("choices") or ()),
        required=bool(raw.get("required")),
        retired=bool(raw.get("retired")),
        version=raw.get("version", 1),
        create_time=raw.get("create_time"),
    )


def custom_field_fields(field: CustomField) -> dict[str, Any]:
    """A declaration as it is stored, without its key."""
    return {
        "label": field.label,
        "kind": field.kind.value,
        "choices": list(field.choices),
        "required": field.required,
        "retired": field.retired,
        "version": field.version,
        "create_time": field.create_time,
    }


def audit_fields(entry: AuditEntry) -> dict[str, Any]:
    """An audit entry as it is stored."""
    changes = []
    for change in entry.changes:
        told = {"field": change.field, "old": change.old, "new": change.new}
        changes.append({name: value for name, value in told.items() if value})
    stored = {"version": entry.version, "actor": entry.actor, "action": entry.action, "time": entry.time}
    return {**stored, "changes": changes} if changes else stored


def first_audit(born: Customer) -> dict[str, Any]:
    """The audit entry of a customer's creation as it is stored: `audit_fields` of what `engine.create` makes,
    without making it.
    """
    changes = [
        {"field": name, "old": old, "new": new} if old else {"field": name, "new": new}
        for name, old, new in engine.first_values(born)
    ]
    entry = {"version": 1, "actor": born.creator, "action": engine.CREATE, "time": born.create_time}
    return {**entry, "changes": changes} if changes else entry


def audit_from_raw(raw: Mapping[str, Any]) -> AuditEntry:
    """A stored audit entry."""
    changes = tuple(_item(FieldChange, change) for change in raw.get("changes", ()))
    return AuditEntry(
        version=raw["version"], actor=raw["actor"], action=raw["action"], time=raw["time"], changes=changes
    )


def entry_fields(entry: Entry) -> dict[str, Any]:
    """What of an interaction is stored, its searched fields too; None where nothing is to be stored."""
    facets = {
        name: {"stamp": list(facet.stamp), "values": dict(facet.values)}
        for name, facet in entry.facets.items()
    }
    shown = timeline.project(entry)
    return {
        "kind": entry.kind.value,
        "source": entry.source,
        "source_id": entry.source_id,
        "facets": facets,
        "began_ms": entry.began_ms,
        "subject": entry.subject or None,
        "own": entry.own or None,
        "open": shown.open or None,
        "voice": voice_fields(shown) or None,
        "updated_ms": entry.updated_ms,
    }


def voice_fields(shown: Interaction) -> dict[str, Any]:
    """What insights count of an interaction; what is not known is left out."""
    detail = shown.detail
    values = {
        "reason": shown.contact_reason,
        "agent": shown.agent,
        "region": shown.region,
        "product": shown.product,
        "partner": shown.partner,
        "state": detail.get("state") if shown.kind is InteractionKind.CALL else None,
        "resolved": detail.get("resolved"),
        "talk_ms": detail.get("talk_ms"),
        "ticket_kind": detail.get("kind") if shown.kind is InteractionKind.TICKET else None,
        "satisfaction": detail.get("satisfaction") or None,
        "call_id": detail.get("call_id"),
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


def entry_from_raw(raw: Mapping[str, Any]) -> Entry:
    """A stored interaction."""
    facets = {
        name: Facet(stamp=tuple(facet["stamp"]), values=facet["values"])
        for name, facet in raw.get("facets", {}).items()
    }
    return Entry(
        id=raw["_id"],
        kind=InteractionKind(raw["kind"]),
        source=raw["source"],
        source_id=raw["source_id"],
        facets=facets,
        began_ms=raw["began_ms"],
        subject=raw.get("subject") or "",
        own=raw.get("own") or "",
        revision=raw.get("version", 1),
        updated_ms=raw.get("updated_ms", 0),
    )


def interaction_from_raw(raw: Mapping[str, Any]) -> Interaction:
    """A stored interaction as people see it."""
    return timeline.project(entry_from_raw(raw))


def ranking_fields(ranking: OfferRanking) -> dict[str, Any]:
    """A ranking as it is stored, without its key and revision. Answers lie in a list: an offer's name is no
    key of a document.
    """
    offers = [
        {
            "offer": o.offer,
            "score": o.score,
            "titles": dict(o.titles),
            "reasons": dict(o.reasons),
        }
        for o in ranking.offers
    ]
    return {
        "stamp_ms": ranking.stamp[0],
        "stamp_id": ranking.stamp[1],
        "offers": offers,
        "expires_ms": ranking.expires_ms,
        "answers": [{"offer": offer, "ms": at_ms} for offer, at_ms in ranking.answers.items()],
    }


def ranking_from_raw(raw: Mapping[str, Any]) -> OfferRanking:
    """A stored ranking."""
    return OfferRanking(
        subject=raw["_id"],
        stamp=(raw.get("stamp_ms") or 0, raw.get("stamp_id") or ""),
        offers=tuple(_item(CachedOffer, offer) for offer in raw.get("offers") or ()),
        expires_ms=raw.get("expires_ms"),
        answers={item["offer"]: item["ms"] for item in raw.get("answers") or ()},
        revision=raw.get("revision", 0),
    )


def merge_fields(merge: Merge) -> dict[str, Any]:
    """A merge as it is stored, its searched fields too, without its key and version."""
    gains = [
        {
            "id": gain.customer,
            "added": _gain_out(gain.added),
            "consents_before": _pack(gain.consents_before),
        }
        for gain in merge.gains
    ]
    running = merge.state in (MergeState.MERGING, MergeState.UNMERGING)
    return {
        "survivor": merge.survivor,
        "absorbed": list(merge.absorbed),
        "parties": list(merge.parties),
        "busy": list(merge.parties) if running else None,
        "state": merge.state.value,
        "reason": merge.reason or None,
        "requester": merge.requester,
        "undo_reason": merge.undo_reason or None,
        "undoer": merge.undoer or None,
        "moved": merge.moved,
        "gains": gains or None,
    }


def _gain_out(added: Customer) -> dict[str, Any]:
    stored = customer_fields(added)
    # What is searched belongs to customers, not to the note of a merge.
    return {k: v for k, v in stored.items() if v is not None and k not in ("claims", "terms", "birthday")}


def merge_from_raw(raw: Mapping[str, Any]) -> Merge:
    """A stored merge."""
    gains = tuple(
        Gain(
            customer=item["id"],
            added=customer_from_raw({"_id": item["id"], **item["added"]}),
            consents_before=tuple(_item(Consent, c) for c in item.get("consents_before") or ()),
        )
        for item in raw.get("gains") or ()
    )
    return Merge(
        id=raw["_id"],
        survivor=raw["survivor"],
        absorbed=tuple(raw["absorbed"]),
        state=MergeState(raw["state"]),
        reason=raw.get("reason") or "",
        requester=raw.get("requester") or "",
        undo_reason=raw.get("undo_reason") or "",
        undoer=raw.get("undoer") or "",
        moved=raw.get("moved") or 0,
        gains=gains,
        create_time=raw.get("created_at"),
        update_time=raw.get("updated_at"),
        version=raw["version"],
    )


def churn_fields(churn: Churn) -> dict[str, Any]:
    """A churn score as it is stored, without its key and version."""
    return {
        "score": float(churn.score),
        "reasons": _pack(churn.reasons) or None,
        "wants_to_leave": churn.wants_to_leave or None,
        "intent_ms": churn.intent_ms or None,
        "comment": churn.comment or None,
        "scored_ms": churn.scored_ms or None,
    }


def churn_from_raw(raw: Mapping[str, Any]) -> Churn:
    """A stored churn score; one that was only marked scores 0."""
    return Churn(
        customer=raw["_id"],
        score=raw.get("score") or 0.0,
        reasons=tuple(_item(ChurnReason, item) for item in raw.get("reasons") or ()),
        wants_to_leave=bool(raw.get("wants_to_leave")),
        intent_ms=raw.get("intent_ms") or 0,
        comment=raw.get("comment") or "",
        scored_ms=raw.get("scored_ms") or 0,
        revision=raw.get("version", 1),
    )


def reminder_from_raw(raw: Mapping[str, Any]) -> Reminder:
    """A stored care task as something to mention."""
    return Reminder(
        kind=raw.get("kind") or "", text=raw.get("text") or "", task=raw["_id"], due_ms=raw.get("due_ms")
    )
