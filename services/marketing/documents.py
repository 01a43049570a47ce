"""How marketing lies in MongoDB: mongoengine owns schema and indexes; `*_fields` and `*_from_raw` are the
whole mapping.

Reads go past mongoengine (raw documents), so that blocking and asynchronous code share one mapping. Every
query of the stores has an index here; a new query brings its own. Amounts of money are Decimal128: exact, and
comparable by the database.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

import bson
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128
from bson.raw_bson import RawBSONDocument
from mongoengine import (
    BooleanField,
    DateTimeField,
    Decimal128Field,
    DictField,
    Document,
    FloatField,
    IntField,
    ListField,
    StringField,
)
from msgspec import structs

from chassis.bus.event import Told
from chassis.mongo import Aggregate
from marketing.kin import absorbed, joined
from marketing.model import (
    EVERYBODY,
    Audience,
    Channel,
    Complaint,
    Considered,
    Contact,
    Decision,
    ModelInfo,
    ModelState,
    Money,
    NoOffer,
    Offer,
    OfferKind,
    OfferState,
    Outcome,
    PricePeriod,
    Profile,
    Purchase,
    QuietWindow,
    RankedOffer,
    Reason,
    ReasonCode,
    Result,
    Script,
    Text,
)

Raw = Mapping[str, Any]
#: Parts of decisions that are kept in BSON, of each kind.
_KEPT_MAX = 4_000

_PLAIN: dict[str, Any] = {"auto_create_index": False, "index_cls": False, "strict": False}


class OfferDocument(Aggregate):
    """An offer. `units_used`, `budget_used` and `claims` change without a new version."""

    resource_collection: ClassVar[str] = "offers"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "offers",
        "indexes": [
            {"fields": ["state", "_id"], "name": "state"},
            {"fields": ["product", "_id"], "name": "product"},
            {"fields": ["tags", "_id"], "name": "tags"},
            {"fields": ["claims.at"], "name": "claims", "sparse": True},
        ],
    }

    titles = ListField(DictField(), required=True)
    product = StringField(required=True)
    kind = StringField(required=True, choices=[kind.value for kind in OfferKind])
    tags = ListField(StringField())
    price = DictField(required=True)
    price_period = StringField(required=True, choices=[period.value for period in PricePeriod])
    value = DictField(null=True)
    valid_from = DateTimeField()
    valid_until = DateTimeField()
    audience = DictField()
    rule = StringField()
    prerequisites = ListField(StringField())
    exclusions = ListField(StringField())
    repeatable = BooleanField(default=False)
    stock = IntField()
    budget = DictField(null=True)
    unit_cost = DictField(null=True)
    scripts = ListField(DictField())
    state = StringField(required=True, choices=[state.value for state in OfferState])
    published_at = DateTimeField()
    #: Changed by claims only, never by an update of the offer.
    units_used = IntField(default=0)
    budget_used = Decimal128Field(default=Decimal(0))
    #: Units taken for decisions that are being closed: {"token", "decision", "cost", "at" (real time)}.
    claims = ListField(DictField())


class OfferRevisionDocument(Document):
    """An offer as it was at one of its versions. `_id` is "<offer>@<version>"."""

    meta: ClassVar[dict[str, Any]] = {
        **_PLAIN,
        "collection": "offer_revisions",
        "indexes": [{"fields": ["offer", "-version"], "name": "offer_version"}],
    }

    id = StringField(primary_key=True)
    offer = StringField(required=True)
    version = IntField(required=True)
    content = DictField(required=True)


class DecisionDocument(Aggregate):
    """A logged ranking and what became of it."""

    resource_collection: ClassVar[str] = "decisions"
    meta: ClassVar[dict[str, Any]] = {
        "collection": "decisions",
        "indexes": [
            {"fields": ["customer", "-_id"], "name": "customer", "sparse": True},
            {"fields": ["customer", "made_at", "call_id"], "name": "customer_made", "sparse": True},
            {"fields": ["call_id", "-_id"], "name": "call", "sparse": True},
            {"fields": ["open", "-_id"], "name": "open"},
            # Ids rise with real time, spans are of business time.
            {"fields": ["-created_at", "-_id"], "name": "made"},
            # Paid for by outcomes, not by recommendations.
            {
                "fields": ["-outcome.at", "-_id"],
                "name": "closed_at",
                "partialFilterExpression": {"outcome.at": {"$exists": True}},
            },
            {"fields": ["unsettled", "_id"], "name": "unsettled", "sparse": True},
            {"fields": ["made_for"], "name": "made_for", "sparse": True},
            {"fields": ["number"], "name": "stranger", "partialFilterExpression": {"stranger": True}},
            {"fields": ["created_at"], "name": "stranger_age", "partialFilterExpression": {"stranger": True}},
        ],
    }

    customer = StringField()
    #: For whom it was made, where they were merged into the customer since.
    made_for = StringField()
    number = StringField()
    #: True where there is a number and no customer; else absent.
    stranger = BooleanField()
    call_id = StringField()
    contact = DictField()
    offers = ListField(DictField())
    no_offer = StringField()
    policy = StringField()
    model = StringField()
    holdout = BooleanField()
    propensity = FloatField()
    held_chance = FloatField()
    #: Absent where it is 1.
    leave = FloatField()
    #: Lists [offer, product, base, probability, worth, chance].
    considered = ListField(ListField())
    traits = ListField(StringField())
    open = BooleanField(required=True)
    outcome = DictField(null=True)
    claim = StringField()
    #: True while effects of the closing wait to be applied; else absent.
    unsettled = BooleanField()
    #: When it was made, if anything was offered.
    made_at = DateTimeField()
    expires_at = DateTimeField()


class ProfileDocument(Document):
    """What is known of a customer; `_id` is the customer's."""

    meta: ClassVar[dict[str, Any]] = {
        **_PLAIN,
        "collection": "profiles",
        "indexes": [
            {"fields": ["numbers", "-updated_at"], "name": "numbers", "sparse": True},
            {"fields": ["kin"], "name": "kin", "sparse": True},
        ],
    }

    id = StringField(primary_key=True)
    numbers = ListField(StringField())
    tier = StringField()
    value_class = StringField()
    language = StringField()
    tags = ListField(StringField())
    home_region = StringField()
    display_name = StringField()
    time_zone = StringField()
    products = ListField(StringField())
    #: When each was bought last, by the product's id in the form of `key_of`.
    bought = DictField()
    email_addresses = ListField(StringField())
    refused_channels = ListField(StringField())
    #: Channel -> when the consent ends, null for never.
    consents = DictField()
    quiet_windows = ListField(DictField())
    consented_at = DateTimeField()
    #: Said to campaigns and callers, and not to crm: a snapshot leaves it alone.
    opted_out_at = DateTimeField()
    complaint_closed_at = DateTimeField()
    wants_to_leave = BooleanField()
    alive = BooleanField()
    #: True once the customer was legally erased: nothing is learned of them any more.
    erased = BooleanField()
    merged_into = StringField()
    #: Whom they are, or were, merged into, as heard; the newest last.
    kin = ListField(StringField())
    crm_version = IntField()
    #: crm's business time of the last merge or unmerge that moved this customer.
    moved_at = DateTimeField()
    #: What is said of customers merged into this one (kin.py): {"from", "all", and the words of each}.
    brought = ListField(DictField())
    #: Business time of the last word on leaving.
    leave_at = DateTimeField()
    churn_risk = FloatField()
    #: Business time of the last churn score.
    risk_at = DateTimeField()
    #: [{"task":, "kind":}], the newest last.
    care = ListField(DictField())
    updated_at = DateTimeField()


class ComplaintDocument(Document):
    """A complaint as tickets last told it. `_id` is the ticket."""

    meta: ClassVar[dict[str, Any]] = {
        **_PLAIN,
        "collection": "complaints",
        "indexes": [
            {"fields": ["customer", "open"], "name": "customer"},
            {"fields": ["number", "open"], "name": "number"},
            {"fields": ["made_for"], "name": "made_for", "sparse": True},
        ],
    }

    id = StringField(primary_key=True)
    customer = StringField()
    #: Whose it is, where they were merged into the customer.
    made_for = StringField()
    number = StringField()
    open = BooleanField(required=True)
    version = IntField(required=True)


class PurchaseDocument(Document):
    """Something a customer bought. `_id` was given by the system it comes from."""

    meta: ClassVar[dict[str, Any]] = {
        **_PLAIN,
        "collection": "purchases",
        "indexes": [
            {"fields": ["customer", "-at", "-_id"], "name": "customer_newest"},
            {"fields": ["bought_by"], "name": "bought_by"},
        ],
    }

    id = StringField(primary_key=True)
    #: Whose it is now, after merges.
    customer = StringField(required=True)
    #: Who bought it, whatever was merged since.
    bought_by = StringField(required=True)
    product = StringField(required=True)
    at = DateTimeField(required=True)
    quantity = IntField(required=True)
    amount = DictField(null=True)
    channel = StringField()


class ModelDocument(Document):
    """One version of the association table; its counts are in `model_rows`."""

    meta: ClassVar[dict[str, Any]] = {
        **_PLAIN,
        "collection": "models",
        "indexes": [{"fields": ["-number"], "name": "number", "unique": True}],
    }

    id = StringField(primary_key=True)
    number = IntField(required=True)
    state = StringField(required=True)
    failure = StringField()
    customers = IntField()
    facts = IntField()
    rules = IntField()
    metrics = DictField()
    strength = FloatField()
    rate = FloatField()
    created_at = DateTimeField()


class ModelRowDocument(Document):
    """The counts of one product in one model version. `_id` is "<model>/<product>"."""

    meta: ClassVar[dict[str, Any]] = {
        **_PLAIN,
        "collection": "model_rows",
        "indexes": [{"fields": ["model", "product"], "name": "model_product"}],
    }

    id = StringField(primary_key=True)
    model = StringField(required=True)
    product = StringField(required=True)
    customers = IntField(required=True)
    #: Pairs [product, count]: products may hold dots, which keys must not.
    together = ListField(ListField())
    complete = BooleanField(required=True)


class ServingDocument(Aggregate):
    """Which model version serves. One document, `_id` is the model's kind."""

    resource_collection: ClassVar[str] = "serving"
    meta: ClassVar[dict[str, Any]] = {"collection": "serving"}

    model = StringField(required=True)
    #: Versions that served before, newest last.
    earlier = ListField(StringField())
    #: Business time since when.
    since = DateTimeField()
    #: State of the history that the newest version was made from.
    history = IntField()
    #: An operator chose the version.
    pinned = BooleanField()


class HistoryDocument(Document):
    """Counts changes of the history, so that a builder knows when to build. One document, `_id` "history"."""

    meta: ClassVar[dict[str, Any]] = {**_PLAIN, "collection": "history_state"}

    id = StringField(primary_key=True)
    changes = IntField()


#: Everything whose indexes a process ensures at its start.
DOCUMENTS: tuple[type[Document], ...] = (
    OfferDocument,
    OfferRevisionDocument,
    DecisionDocument,
    ProfileDocument,
    ComplaintDocument,
    PurchaseDocument,
    ModelDocument,
    ModelRowDocument,
    ServingDocument,
    HistoryDocument,
)

#: What the outbox relay looks through.
OUTBOX_DOCUMENTS: tuple[type[Aggregate], ...] = (OfferDocument, DecisionDocument, ServingDocument)


# --- mapping: small values ----------------------------------------------------------------------------


def money_fields(money: Money | None) -> dict[str, Any] | None:
    """An amount as stored."""
    return None if money is None else {"currency": money.currency, "amount": _amount(str(money.amount))}


@functools.lru_cache(maxsize=_KEPT_MAX)
def _amount(digits: str) -> Decimal128:
    # By the digits: equal decimals may differ in them.
    return Decimal128(digits)


def money_from_raw(raw: Raw | None) -> Money | None:
    """An amount as read."""
    return None if raw is None else Money(currency=raw["currency"], amount=raw["amount"].to_decimal())


def _price(raw: Raw) -> Money:
    return Money(currency=raw["currency"], amount=raw["amount"].to_decimal())


def _texts(texts: tuple[Text, ...]) -> list[dict[str, str]]:
    return [{"language": text.language, "text": text.text} for text in texts]


def _texts_from_raw(raw: Any) -> tuple[Text, ...]:
    return tuple(Text(language=item["language"], text=item["text"]) for item in raw or ())


# --- mapping: offers ----------------------------------------------------------------------------------


def offer_fields(offer: Offer) -> dict[str, Any]:
    """The content of an offer as stored: all that an update may change."""
    audience = offer.audience
    return {
        "titles": _texts(offer.titles),
        "product": offer.product,
        "kind": offer.kind.value,
        "tags": list(offer.tags),
        "price": money_fields(offer.price),
        "price_period": offer.price_period.value,
        "value": money_fields(offer.value),
        "valid_from": offer.valid_from,
        "valid_until": offer.valid_until,
        "audience": {
            "tiers": sorted(audience.tiers),
            "value_classes": sorted(audience.value_classes),
            "languages": sorted(audience.languages),
            "any_tags": sorted(audience.any_tags),
            "no_tags": sorted(audience.no_tags),
            "regions": sorted(audience.regions),
            "channels": sorted(channel.value for channel in audience.channels),
        },
        "rule": offer.rule,
        "prerequisites": sorted(offer.prerequisites),
        "exclusions": sorted(offer.exclusions),
        "repeatable": offer.repeatable,
        "stock": offer.stock,
        "budget": money_fields(offer.budget),
        "unit_cost": money_fields(offer.unit_cost),
        "scripts": [{"audience": s.audience, "language": s.language, "text": s.text} for s in offer.scripts],
        "state": offer.state.value,
        "published_at": offer.published_at,
    }


def offer_from_raw(raw: Raw) -> Offer:
    """An offer as read."""
    used = raw.get("budget_used")
    return Offer(
        id=raw["_id"],
        titles=_texts_from_raw(raw["titles"]),
        product=raw["product"],
        kind=OfferKind(raw["kind"]),
        tags=tuple(raw.get("tags", ())),
        price=_price(raw["price"]),
        price_period=PricePeriod(raw["price_period"]),
        value=money_from_raw(raw.get("value")),
        valid_from=raw.get("valid_from"),
        valid_until=raw.get("valid_until"),
        audience=_audience_from_raw(raw.get("audience") or {}),
        rule=raw.get("rule") or "",
        prerequisites=frozenset(raw.get("prerequisites", ())),
        exclusions=frozenset(raw.get("exclusions", ())),
        repeatable=bool(raw.get("repeatable")),
        stock=raw.get("stock"),
        units_used=raw.get("units_used", 0),
        budget=money_from_raw(raw.get("budget")),
        unit_cost=money_from_raw(raw.get("unit_cost")),
        budget_used=used.to_decimal() if used is not None else Decimal(0),
        scripts=tuple(
            Script(audience=s["audience"], language=s["language"], text=s["text"])
            for s in raw.get("scripts", ())
        ),
        state=OfferState(raw["state"]),
        version=raw["version"],
        created_at=raw.get("created_at"),
        updated_at=raw.get("updated_at"),
        published_at=raw.get("published_at"),
    )


def _audience_from_raw(raw: Raw) -> Audience:
    if not any(raw.values()):
        return EVERYBODY
    return Audience(
        tiers=frozenset(raw.get("tiers", ())),
        value_classes=frozenset(raw.get("value_classes", ())),
        languages=frozenset(raw.get("languages", ())),
        any_tags=frozenset(raw.get("any_tags", ())),
        no_tags=frozenset(raw.get("no_tags", ())),
        regions=frozenset(raw.get("regions", ())),
        channels=frozenset(Channel(value) for value in raw.get("channels", ())),
    )


# --- mapping: decisions -------------------------------------------------------------------------------


def decision_fields(decision: Decision) -> dict[str, Any]:
    """The content of a decision as stored; what is absent from it has no value."""
    return {
        **_head_fields(decision),
        "offers": [_ranked_fields(entry) for entry in decision.offers],
    }


def decision_raw(decision: Decision, events: Sequence[Told], about: Mapping[str, Any]) -> RawBSONDocument:
    """A new decision as a whole document: what `decision_fields` says, its events, and what else is noted
    `about` it. Already in BSON, for most of a line was the same for somebody else before.
    """
    parts = (
        bson.encode({"_id": decision.id, **about, **_whose_fields(decision)})[4:-1],
        _contact_raw(decision.contact),
        _how_raw(
            decision.no_offer,
            decision.policy,
            decision.model,
            decision.holdout,
            decision.propensity,
            decision.held_chance,
            decision.leave,
            decision.outcome is None,
        ),
        _list(b"considered", 0x04, [_considered_raw(one) for one in decision.considered]),
        _traits_raw(decision.traits),
        bson.encode(_closing_fields(decision))[4:-1],
        _list(b"offers", 0x03, [ranked_raw(entry) for entry in decision.offers]),
        _list(b"outbox", 0x03, [pending_raw(told) for told in events]),
    )
    return RawBSONDocument(_whole(*parts), _RAW_OPTIONS)


_length = struct.Struct("<i").pack


def _whole(*parts: bytes) -> bytes:
    """A document of elements that are in BSON already."""
    content = b"".join(parts)
    return b"".join((_length(len(content) + 5), content, b"\0"))


def _list(name: bytes, kind: int, items: Sequence[bytes]) -> bytes:
    """An element that is a list of documents or of lists."""
    parts: list[bytes] = []
    for at, item in enumerate(items):
        parts += (_item_name(kind, at), item)
    return b"\x04%b\0%b" % (name, _whole(*parts))


@functools.lru_cache(maxsize=_KEPT_MAX)
def _item_name(kind: int, at: int) -> bytes:
    return b"%c%d\0" % (kind, at)


def _considered_raw(considered: Considered) -> bytes:
    """The same as `_considered_fields`, in BSON."""
    forms = considered.forms
    if not forms.document:
        values = enumerate(_considered_fields(considered))
        forms.document = bson.encode({str(at): value for at, value in values})
    return forms.document


@functools.lru_cache(maxsize=_KEPT_MAX)
def _traits_raw(traits: tuple[str, ...]) -> bytes:
    return bson.encode({"traits": list(traits)})[4:-1]


@functools.lru_cache(maxsize=_KEPT_MAX)
def _how_raw(*how: Any) -> bytes:
    """The same as `_how_fields`, in BSON."""
    return bson.encode(_how_fields(*how))[4:-1]


def _contact_raw(contact: Contact) -> bytes:
    """The same as `_contact_fields`, in BSON."""
    return b"\x03contact\0" + _whole(
        _text_raw(b"call_id", contact.call_id.encode()) if contact.call_id else b"",
        _place_raw(contact.channel, contact.queue, contact.region),
        _text_raw(b"agent", contact.agent.encode()) if contact.agent else b"",
        _matter_raw(
            contact.reason,
            contact.language,
            contact.products_asked,
            contact.unresolved,
            contact.wants_to_leave,
        ),
    )


@functools.lru_cache(maxsize=_KEPT_MAX)
def _place_raw(channel: Channel, queue: str, region: str) -> bytes:
    return bson.encode(_contact_fields(Contact(channel=channel, queue=queue, region=region)))[4:-1]


@functools.lru_cache(maxsize=_KEPT_MAX)
def _matter_raw(
    reason: str, language: str, products_asked: tuple[str, ...], unresolved: bool, wants_to_leave: bool
) -> bytes:
    contact = Contact(
        reason=reason,
        language=language,
        products_asked=products_asked,
        unresolved=unresolved,
        wants_to_leave=wants_to_leave,
    )
    fields = _contact_fields(contact)
    # A contact always has a channel, which is said before.
    del fields["channel"]
    return bson.encode(fields)[4:-1]


def _head_fields(decision: Decision) -> dict[str, Any]:
    """All but the lines of the ranking."""
    return {
        **_whose_fields(decision),
        "contact": _contact_fields(decision.contact),
        **_how_fields(
            decision.no_offer,
            decision.policy,
            decision.model,
            decision.holdout,
            decision.propensity,
            decision.held_chance,
            decision.leave,
            decision.outcome is None,
        ),
        "considered": [_considered_fields(one) for one in decision.considered],
        "traits": list(decision.traits),
        **_closing_fields(decision),
    }


def _whose_fields(decision: Decision) -> dict[str, Any]:
    return _present(
        {
            "customer": decision.customer or None,
            "number": decision.number or None,
            "stranger": True if decision.number and not decision.customer else None,
            "call_id": decision.contact.call_id or None,
        }
    )


def _how_fields(
    no_offer: NoOffer | None,
    policy: str,
    model: str,
    holdout: bool,
    propensity: float,
    held_chance: float | None,
    leave: float,
    open: bool,
) -> dict[str, Any]:
    """How it was decided."""
    return _present(
        {
            "no_offer": no_offer.value if no_offer else None,
            "policy": policy,
            "model": model or None,
            "holdout": holdout,
            "propensity": propensity,
            "held_chance": held_chance,
            "leave": leave if leave != 1 else None,
            "open": open,
        }
    )


def _considered_fields(considered: Considered) -> list[Any]:
    return list(structs.astuple(considered)[:-1])


def _closing_fields(decision: Decision) -> dict[str, Any]:
    return _present(
        {
            "outcome": _outcome_fields(decision.outcome) if decision.outcome else None,
            "claim": decision.claim or None,
            "unsettled": True if decision.unsettled else None,
            "made_for": decision.made_for or None,
            "made_at": decision.created_at if decision.offers and decision.customer else None,
            "expires_at": decision.expires_at,
        }
    )


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def decision_from_raw(raw: Raw) -> Decision:
    """A decision as read."""
    outcome, no_offer = raw.get("outcome"), raw.get("no_offer")
    return Decision(
        id=raw["_id"],
        customer=raw.get("customer", ""),
        number=raw.get("number", ""),
        contact=_contact_from_raw(raw.get("contact") or {}),
        offers=tuple(_ranked_from_raw(entry) for entry in raw.get("offers", ())),
        no_offer=NoOffer(no_offer) if no_offer else None,
        policy=raw.get("policy", "default"),
        model=raw.get("model", ""),
        holdout=bool(raw.get("holdout")),
        propensity=raw.get("propensity", 1.0),
        held_chance=raw.get("held_chance"),
        leave=raw.get("leave", 1.0),
        considered=tuple(
            Considered(offer=c[0], product=c[1], base=c[2], probability=c[3], worth=c[4], chance=c[5])
            for c in raw.get("considered", ())
        ),
        traits=tuple(raw.get("traits", ())),
        outcome=_outcome_from_raw(outcome) if outcome else None,
        claim=raw.get("claim", ""),
        unsettled=bool(raw.get("unsettled")),
        made_for=raw.get("made_for", ""),
        version=raw["version"],
        created_at=raw["created_at"],
        expires_at=raw["expires_at"],
    )


def _contact_fields(contact: Contact) -> dict[str, Any]:
    fields = {
        "call_id": contact.call_id,
        "channel": contact.channel.value,
        "queue": contact.queue,
        "region": contact.region,
        "agent": contact.agent,
        "reason": contact.reason,
        "language": contact.language,
        "products_asked": list(contact.products_asked),
        "unresolved": contact.unresolved,
        "wants_to_leave": contact.wants_to_leave,
    }
    return {key: value for key, value in fields.items() if value}


def _contact_from_raw(raw: Raw) -> Contact:
    return Contact(
        call_id=raw.get("call_id", ""),
        channel=Channel(raw.get("channel", Channel.UNSPECIFIED)),
        queue=raw.get("queue", ""),
        region=raw.get("region", ""),
        agent=raw.get("agent", ""),
        reason=raw.get("reason", ""),
        language=raw.get("language", ""),
        products_asked=tuple(raw.get("products_asked", ())),
        unresolved=bool(raw.get("unresolved")),
        wants_to_leave=bool(raw.get("wants_to_leave")),
    )


def _ranked_fields(entry: RankedOffer) -> dict[str, Any]:
    return {
        **_still_fields(entry),
        "rank": entry.rank,
        "score": entry.score,
        "probability": entry.probability,
        "propensity": entry.propensity,
    }


#: The changing part of a line in BSON (bsonspec.org): rank as int32, then three doubles.
_CHANGING = struct.Struct("<B5siB6sdB12sdB11sd")


def ranked_raw(entry: RankedOffer) -> bytes:
    """The same as `_ranked_fields`, in BSON."""
    still = entry.forms.document
    if not still:
        still = entry.forms.document = bson.encode(_still_fields(entry))[4:-1]
    changing = _CHANGING.pack(
        0x10, b"rank", entry.rank,
        0x01, b"score", entry.score,
        0x01, b"probability", entry.probability,
        0x01, b"propensity", entry.propensity,
    )  # fmt: skip
    return _whole(still, changing)


def pending_raw(told: Told) -> bytes:
    """The same as `chassis.mongo.pending_entry`, in BSON: the envelope is copied and not taken for text in
    between.
    """
    return _whole(_text_raw(b"id", told.id.encode()), _text_raw(b"event", told.body))


def _text_raw(name: bytes, text: bytes) -> bytes:
    return b"".join((b"\x02", name, b"\0", _length(len(text) + 1), text, b"\0"))


_RAW_OPTIONS: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument, tz_aware=True)


def _still_fields(entry: RankedOffer) -> dict[str, Any]:
    """What is the same whenever this offer is made for this reason in these words."""
    reason = entry.reason
    return {
        "offer": entry.offer,
        "revision": entry.revision,
        "product": entry.product,
        "titles": _texts(entry.titles),
        "price": money_fields(entry.price),
        "worth": money_fields(entry.worth),
        "reason": {
            "code": reason.code.value,
            "texts": _texts(reason.texts),
            "because_product": reason.because_product,
            "share": reason.share,
            "customer_count": reason.customer_count,
            "lift": reason.lift,
        },
        "scripts": _texts(entry.scripts),
    }


def _ranked_from_raw(raw: Raw) -> RankedOffer:
    reason = raw["reason"]
    return RankedOffer(
        offer=raw["offer"],
        revision=raw["revision"],
        product=raw["product"],
        titles=_texts_from_raw(raw["titles"]),
        price=_price(raw["price"]),
        worth=_price(raw["worth"]),
        rank=raw["rank"],
        score=raw["score"],
        probability=raw["probability"],
        propensity=raw["propensity"],
        reason=Reason(
            code=ReasonCode(reason["code"]),
            texts=_texts_from_raw(reason["texts"]),
            because_product=reason.get("because_product", ""),
            share=reason["share"],
            customer_count=reason["customer_count"],
            lift=reason["lift"],
        ),
        scripts=_texts_from_raw(raw.get("scripts")),
    )


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    return {
        "offer": outcome.offer,
        "result": outcome.result.value,
        "declined": list(outcome.declined),
        "agent": outcome.agent,
        "note": outcome.note,
        "at": outcome.at,
    }


def _outcome_from_raw(raw: Raw) -> Outcome:
    return Outcome(
        offer=raw.get("offer", ""),
        result=Result(raw["result"]),
        declined=tuple(raw.get("declined", ())),
        agent=raw.get("agent", ""),
        note=raw.get("note", ""),
        at=raw["at"],
    )


# --- mapping: customers -------------------------------------------------------------------------------


def profile_fields(profile: Profile) -> dict[str, Any]:
    """What crm says of a customer, as stored; products and the word on leaving are kept apart."""
    return {
        "numbers": list(profile.numbers),
        "tier": profile.tier,
        "value_class": profile.value_class,
        "language": profile.language,
        "tags": sorted(profile.tags),
        "home_region": profile.home_region,
        "display_name": profile.display_name,
        "time_zone": profile.time_zone,
        "email_addresses": list(profile.email_addresses),
        "refused_channels": sorted(channel.value for channel in profile.refused_channels),
        "consents": {str(channel): ends for channel, ends in profile.consents.items()},
        "quiet_windows": [_window_raw(window) for window in profile.quiet_windows],
        "consented_at": profile.consented_at,
        "alive": profile.alive,
        "merged_into": profile.merged_into,
        "crm_version": profile.crm_version,
        "updated_at": profile.updated_at,
    }


def _window_raw(window: QuietWindow) -> dict[str, Any]:
    return {
        "weekdays": sorted(window.weekdays),
        "start": window.start_minute,
        "end": window.end_minute,
        "channels": sorted(channel.value for channel in window.channels),
    }


def _window_from_raw(raw: Raw) -> QuietWindow:
    return QuietWindow(
        weekdays=frozenset(raw.get("weekdays", ())),
        start_minute=raw["start"],
        end_minute=raw["end"],
        channels=frozenset(map(Channel, raw.get("channels", ()))),
    )


def key_of(product: str) -> str:
    """A product's id as the key of an embedded document, which holds no dots ("%" occurs in no id)."""
    return product.replace(".", "%")


def profile_from_raw(raw: Raw) -> Profile:
    """A profile as read, with what is said of those who were merged into it."""
    others: tuple[str, ...] = ()
    if raw.get("brought"):
        others, raw = absorbed(raw), {**raw, **joined(raw)}
    # One is read for each recommendation, and most have none of these: nothing is made of nothing.
    bought, refused = raw.get("bought"), raw.get("refused_channels")
    quiet, care = raw.get("quiet_windows"), raw.get("care")
    return Profile(
        customer=raw["_id"],
        numbers=tuple(raw.get("numbers", ())),
        tier=raw.get("tier", ""),
        value_class=raw.get("value_class", ""),
        language=raw.get("language", ""),
        tags=frozenset(raw.get("tags", ())),
        home_region=raw.get("home_region", ""),
        display_name=raw.get("display_name", ""),
        time_zone=raw.get("time_zone", ""),
        products=frozenset(raw.get("products", ())),
        bought_at={key.replace("%", "."): at for key, at in bought.items()} if bought else {},
        email_addresses=tuple(raw.get("email_addresses", ())),
        refused_channels=frozenset(map(Channel, refused)) if refused else frozenset(),
        # A channel is its name: nothing to be made anew for each recommendation.
        consents=raw.get("consents") or {},
        quiet_windows=tuple(map(_window_from_raw, quiet)) if quiet else (),
        consented_at=raw.get("consented_at"),
        opted_out_at=raw.get("opted_out_at"),
        complaint_closed_at=raw.get("complaint_closed_at"),
        wants_to_leave=bool(raw.get("wants_to_leave")),
        churn_risk=raw.get("churn_risk") or 0.0,
        care={item["task"]: item["kind"] for item in care} if care else {},
        alive=raw.get("alive", True),
        merged_into=raw.get("merged_into", ""),
        absorbed=others,
        crm_version=raw.get("crm_version", 0),
        updated_at=raw.get("updated_at"),
    )


def complaint_from_raw(raw: Raw) -> Complaint:
    """A complaint as read."""
    return Complaint(
        ticket=raw["_id"],
        customer=raw.get("customer", ""),
        number=raw.get("number", ""),
        open=raw["open"],
        version=raw["version"],
        made_for=raw.get("made_for", ""),
    )


def purchase_raw(purchase: Purchase, owner: str) -> dict[str, Any]:
    """A purchase as a whole document; `owner` is whose it is now."""
    return {
        "_id": purchase.id,
        "customer": owner,
        "bought_by": purchase.customer,
        "product": purchase.product,
        "at": purchase.at,
        "quantity": purchase.quantity,
        "amount": money_fields(purchase.amount),
        "channel": purchase.channel.value,
    }


def purchase_from_raw(raw: Raw) -> Purchase:
    """A purchase as read, under the customer whose it is now."""
    return Purchase(
        id=raw["_id"],
        customer=raw["customer"],
        product=raw["product"],
        at=raw["at"],
        quantity=raw["quantity"],
        amount=money_from_raw(raw.get("amount")),
        channel=Channel(raw.get("channel", Channel.UNSPECIFIED)),
    )


def model_from_raw(raw: Raw, serving: str, since: datetime | None) -> ModelInfo:
    """A model version as read; `serving` is the id of the one that serves."""
    active = raw["_id"] == serving
    return ModelInfo(
        id=raw["_id"],
        version=raw["number"],
        state=ModelState.ACTIVE if active else ModelState(raw["state"]),
        failure=raw.get("failure", ""),
        customer_count=raw.get("customers", 0),
        example_count=raw.get("facts", 0),
        rule_count=raw.get("rules", 0),
        metrics=dict(raw.get("metrics") or {}),
        created_at=raw["created_at"],
        activated_at=since if active else None,
    )
