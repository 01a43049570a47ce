"""How crm lies in MongoDB: mongoengine owns schema, indexes and writes; `*_fields` and `*_from_raw` are the
whole mapping.

Reads go past mongoengine (raw documents), so that the synchronous and the asynchronous path share one
mapping. Every query of `store` has an index below; a new query brings its own. Values equal to the model's
defaults are not stored.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeVar

from mongoengine import (
    BooleanField,
    DateTimeField,
    DictField,
    Document,
    IntField,
    ListField,
    StringField,
)

from chassis.mongo import Aggregate
from crm import engine, timeline
from crm.model import (
    AuditEntry,
    BirthDate,
    CachedOffer,
    Channel,
    Contact,
    Customer,
    EmailAddress,
    Entry,
    ExternalId,
    Facet,
    FieldChange,
    Interaction,
    InteractionKind,
    Kind,
    OfferRanking,
    PhoneNumber,
    PostalAddress,
    QuietWindow,
    State,
    Tier,
    ValueClass,
)

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
    state = StringField(required=True, choices=[s.value for s in State])
    merged_into = StringField()
    delete_time = DateTimeField()
    creator = StringField()
    updater = StringField()
    #: Searched and unique: what the customer owns now, see `engine.claims`.
    claims = ListField(StringField())
    #: The latest changes, oldest first.
    audit = ListField(DictField())


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


#: Everything that has indexes.
DOCUMENTS: tuple[type[Document], ...] = (
    CustomerDocument,
    AuditDocument,
    InteractionDocument,
    RankingDocument,
)
#: Everything that has an outbox.
AGGREGATES: tuple[type[Aggregate], ...] = (CustomerDocument, InteractionDocument)

#: Fields that a reader of customers does not need.
HIDDEN: Mapping[str, int] = {
    "audit": 0,
    "outbox": 0,
    "outbox_since": 0,
    "claims": 0,
    "request_key": 0,
    "request_fingerprint": 0,
}
#: Fields that a reader of interactions does not need.
INTERACTION_HIDDEN: Mapping[str, int] = {
    "outbox": 0,
    "outbox_since": 0,
    "request_key": 0,
    "request_fingerprint": 0,
}

_ITEMS: Mapping[str, type] = {
    "phone_numbers": PhoneNumber,
    "email_addresses": EmailAddress,
    "external_ids": ExternalId,
    "addresses": PostalAddress,
    "contacts": Contact,
    "quiet_windows": QuietWindow,
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


def _pack(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_pack(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: _pack(item) for f, item in pairs if f.default is MISSING or item != f.default}
    return value


def _item(cls: type[Value], raw: Mapping[str, Any]) -> Value:
    # A newer release may have stored more: unknown keys are passed over.
    known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}  # type: ignore[arg-type]
    for name, nested in _ITEMS.items():
        if name in known:
            known[name] = tuple(_item(nested, item) for item in known[name])
    if "weekdays" in known:
        known["weekdays"] = tuple(known["weekdays"])
    if "channels" in known:
        known["channels"] = tuple(Channel(item) for item in known["channels"])
    return cls(**known)


def customer_fields(customer: Customer) -> dict[str, Any]:
    """What of a customer is stored under names of its own; None where there is nothing to store."""
    stored: dict[str, Any] = {}
    for f in fields(Customer):
        if f.name not in _ELSEWHERE:
            value = getattr(customer, f.name)
            stored[f.name] = _pack(value) if value not in ("", (), None, {}) else None
    stored["custom_values"] = {key: _pack(value) for key, value in customer.custom_values.items()} or None
    stored["claims"] = list(engine.claims(customer)) or None
    return stored


def customer_from_raw(raw: Mapping[str, Any]) -> Customer:
    """A stored customer."""
    values: dict[str, Any] = {
        "id": raw["_id"],
        "version": raw.get("version", 1),
        "create_time": raw.get("created_at"),
        "update_time": raw.get("updated_at"),
    }
    for f in fields(Customer):
        stored = raw.get(f.name)
        if f.name in _ELSEWHERE or stored is None or stored == {}:
            continue
        if f.name in _ITEMS:
            values[f.name] = tuple(_item(_ITEMS[f.name], item) for item in stored)
        elif f.name in _ENUMS:
            values[f.name] = _ENUMS[f.name](stored)
        elif f.name == "birth_date":
            values[f.name] = _item(BirthDate, stored)
        else:
            values[f.name] = tuple(stored) if f.name == "tags" else stored
    return Customer(**values)


def audit_fields(entry: AuditEntry) -> dict[str, Any]:
    """An audit entry as it is stored."""
    packed: dict[str, Any] = _pack(entry)
    return packed


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
    return {
        "kind": entry.kind.value,
        "source": entry.source,
        "source_id": entry.source_id,
        "facets": facets,
        "began_ms": entry.began_ms,
        "subject": entry.subject or None,
        "open": timeline.project(entry).open or None,
        "updated_ms": entry.updated_ms,
    }


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
