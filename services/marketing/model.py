"""What marketing speaks of: offers, customers' profiles, purchases, decisions and their outcomes. Values
only, no behaviour beyond what a value can say of itself.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

import msgspec

#: Digits before the decimal point of an amount.
AMOUNT_INTEGER_DIGITS_MAX = 18
#: Digits after it.
AMOUNT_FRACTION_DIGITS_MAX = 6

_AMOUNT = re.compile(
    rf"-?[0-9]{{1,{AMOUNT_INTEGER_DIGITS_MAX}}}(\.[0-9]{{1,{AMOUNT_FRACTION_DIGITS_MAX}}})?", re.ASCII
)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)


class BadMoney(ValueError):
    """A part of an amount has not its form: `part`, as the API calls it, and what is wrong with it."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(f"{part} {why}")
        self.part, self.why = part, why


@dataclass(frozen=True, kw_only=True, slots=True)
class Money:
    """An exact amount."""

    #: ISO 4217, three upper-case letters.
    currency: str
    #: At most 18 digits before and 6 after the point.
    amount: Decimal

    @classmethod
    def parse(cls, currency: str, amount: str) -> Money:
        """BadMoney unless both parts have their form."""
        if not _CURRENCY.fullmatch(currency):
            raise BadMoney("currency_code", "must be three upper-case letters")
        if not _AMOUNT.fullmatch(amount):
            raise BadMoney(
                "amount",
                f"must be a decimal number with at most {AMOUNT_INTEGER_DIGITS_MAX} digits before and "
                f"{AMOUNT_FRACTION_DIGITS_MAX} after the point",
            )
        return cls(currency=currency, amount=Decimal(amount))

    def text(self) -> str:
        """The amount as a plain decimal number, as it was given ("19.90" stays "19.90")."""
        return f"{self.amount:f}"


class Channel(enum.StrEnum):
    """How a customer is in touch."""

    UNSPECIFIED = "UNSPECIFIED"
    VOICE = "VOICE"
    CHAT = "CHAT"
    SMS = "SMS"
    EMAIL = "EMAIL"
    VISIT = "VISIT"


class OfferState(enum.StrEnum):
    """Where an offer is in its life."""

    DRAFT = "DRAFT"
    PUBLISHED = "PUBLISHED"
    RETIRED = "RETIRED"


class OfferVerb(enum.StrEnum):
    """What moves an offer on."""

    PUBLISH = "publish"
    RETIRE = "retire"


#: The state that a verb leads to; a pair that is missing is refused and changes nothing.
OFFER_TRANSITIONS: Mapping[tuple[OfferState, OfferVerb], OfferState] = {
    (OfferState.DRAFT, OfferVerb.PUBLISH): OfferState.PUBLISHED,
    (OfferState.RETIRED, OfferVerb.PUBLISH): OfferState.PUBLISHED,
    (OfferState.PUBLISHED, OfferVerb.PUBLISH): OfferState.PUBLISHED,
    (OfferState.PUBLISHED, OfferVerb.RETIRE): OfferState.RETIRED,
    (OfferState.RETIRED, OfferVerb.RETIRE): OfferState.RETIRED,
}


class OfferKind(enum.StrEnum):
    """What an offer is for."""

    CROSS_SELL = "CROSS_SELL"
    UP_SELL = "UP_SELL"
    RETENTION = "RETENTION"
    WIN_BACK = "WIN_BACK"
    SAVING = "SAVING"


class PricePeriod(enum.StrEnum):
    """How often a price is paid."""

    ONE_OFF = "ONE_OFF"
    MONTHLY = "MONTHLY"
    YEARLY = "YEARLY"


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One text in one language."""

    #: Primary language subtag, "zh".
    language: str
    #: The words.
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """What an agent says to one audience in one language."""

    #: "" for everybody, else a tier or a tag.
    audience: str
    #: Primary language subtag.
    language: str
    #: The words.
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Audience:
    """Whom an offer is meant for; an empty set leaves that trait open."""

    #: Tiers, lower-case.
    tiers: frozenset[str] = frozenset()
    #: "A" to "F".
    value_classes: frozenset[str] = frozenset()
    #: Primary language subtags.
    languages: frozenset[str] = frozenset()
    #: The customer must carry one of these.
    any_tags: frozenset[str] = frozenset()
    #: The customer must carry none of these.
    no_tags: frozenset[str] = frozenset()
    #: Region names, "regions/beijing".
    regions: frozenset[str] = frozenset()
    #: Channels of the contact.
    channels: frozenset[Channel] = frozenset()


EVERYBODY = Audience()


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Something that can be suggested to a customer."""

    #: Id, without "offers/".
    id: str
    #: At most one a language, at least one.
    titles: tuple[Text, ...]
    #: Id of the product that it sells.
    product: str
    #: What it is for.
    kind: OfferKind = OfferKind.CROSS_SELL
    #: Free labels.
    tags: tuple[str, ...] = ()
    #: What the customer pays.
    price: Money
    #: How often.
    price_period: PricePeriod = PricePeriod.ONE_OFF
    #: What an acceptance is worth; None means the price.
    value: Money | None = None
    #: First instant at which it may be made; None is open.
    valid_from: datetime | None = None
    #: First instant at which it may not be made any more; None is open.
    valid_until: datetime | None = None
    #: Whom it is meant for.
    audience: Audience = EVERYBODY
    #: Further condition in the language of rules.py; "" for none.
    rule: str = ""
    #: Products that the customer must have.
    prerequisites: frozenset[str] = frozenset()
    #: Products that rule it out.
    exclusions: frozenset[str] = frozenset()
    #: May be made to one who has the product.
    repeatable: bool = False
    #: Acceptances allowed in all; None is without limit.
    stock: int | None = None
    #: Acceptances so far, claims in flight included.
    units_used: int = 0
    #: What all acceptances may cost; None is without limit.
    budget: Money | None = None
    #: What one acceptance takes from the budget.
    unit_cost: Money | None = None
    #: Taken so far.
    budget_used: Decimal = Decimal(0)
    #: Words for the agent.
    scripts: tuple[Script, ...] = ()
    #: Where it is in its life.
    state: OfferState = OfferState.DRAFT
    #: +1 with every change; claims on the stock do not count.
    version: int = 1
    #: Business times.
    created_at: datetime | None = None
    updated_at: datetime | None = None
    published_at: datetime | None = None

    @property
    def worth(self) -> Money:
        """What an acceptance is worth to the enterprise."""
        return self.value or self.price

    @property
    def sold_out(self) -> bool:
        """Whether stock or budget leave no room for another acceptance."""
        if self.stock is not None and self.units_used >= self.stock:
            return True
        if self.budget is None or self.unit_cost is None:
            return False
        return self.budget_used + self.unit_cost.amount > self.budget.amount

    def title(self, language: str) -> str:
        """The title in a language, else in the first language given."""
        return best_text(self.titles, language)


def best_text(texts: tuple[Text, ...], language: str) -> str:
    """The text in a language, else the first; "" for none."""
    for text in texts:
        if text.language == language:
            return text.text
    return texts[0].text if texts else ""


def primary_language(tag: str) -> str:
    """The primary subtag of a BCP 47 tag, lower-case: "zh" of "zh-CN"."""
    return tag.replace("_", "-").split("-", 1)[0].lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class QuietWindow:
    """A part of every week in which a customer wants no contact, on the customer's own clock."""

    #: 1 Monday to 7 Sunday; empty is every day.
    weekdays: frozenset[int] = frozenset()
    #: Minutes from midnight; an end that is not above the start lies on the next day.
    start_minute: int
    end_minute: int
    #: Empty is all.
    channels: frozenset[Channel] = frozenset()


class Profile(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What marketing knows of a customer."""

    #: Id, without "customers/".
    customer: str
    #: E.164.
    numbers: tuple[str, ...] = ()
    #: Lower-case, "" unknown.
    tier: str = ""
    #: "A" to "F", "" unknown.
    value_class: str = ""
    #: Primary subtag, "" unknown.
    language: str = ""
    #: Labels.
    tags: frozenset[str] = frozenset()
    #: "regions/…", "" unknown.
    home_region: str = ""
    #: What to call them, "" unknown.
    display_name: str = ""
    #: IANA name, "" unknown.
    time_zone: str = ""
    #: Products in the history.
    products: frozenset[str] = frozenset()
    #: When each of these was bought last, as far as known.
    bought_at: Mapping[str, datetime] = msgspec.field(default_factory=dict)
    #: E-mail addresses, the primary one first; known only while marketing by mail is consented to.
    email_addresses: tuple[str, ...] = ()
    #: Channels on which the customer does not want to be marketed to.
    refused_channels: frozenset[Channel] = frozenset()
    #: Channels on which the customer consented to marketing, and when each consent ends, None never.
    consents: Mapping[Channel, datetime | None] = msgspec.field(default_factory=dict)
    #: When the customer wants no contact, as crm says.
    quiet_windows: tuple[QuietWindow, ...] = ()
    #: When crm last noted a consent to marketing.
    consented_at: datetime | None = None
    #: When the customer last said, to a campaign or in an outbound call, not to be addressed again.
    opted_out_at: datetime | None = None
    #: When a complaint of the customer's was last resolved.
    complaint_closed_at: datetime | None = None
    #: The customer said they would leave.
    wants_to_leave: bool = False
    #: How likely the customer is to leave, 0 to 1, as crm told last.
    churn_risk: float = 0.0
    #: Occasions to care for the customer: crm's task -> its kind ("CONTRACT_EXPIRES"), "" once it is over.
    care: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: False once crm says deleted, erased or merged.
    alive: bool = True
    #: The customer that took this one over, "" none.
    merged_into: str = ""
    #: Customers who were merged into this one, directly or through others.
    absorbed: tuple[str, ...] = ()
    #: crm's version of the customer; 0 while crm has said nothing.
    crm_version: int = 0
    #: Business time.
    updated_at: datetime | None = None

    def consented(self, channel: Channel, now: datetime) -> bool:
        """Whether a consent to marketing by this channel stands; for UNSPECIFIED, by any."""
        over = self.consents if channel is Channel.UNSPECIFIED else self.consents.keys() & {channel}
        ends = (self.consents[one] for one in over)
        return any(end is None or now < end for end in ends)

    @property
    def opted_out(self) -> bool:
        """Whether the customer is not to be addressed any more; a consent given later takes it back."""
        if self.opted_out_at is None:
            return False
        return self.consented_at is None or self.consented_at <= self.opted_out_at

    @property
    def may_leave(self) -> bool:
        """Whether the customer said so, or crm's score says so."""
        return self.wants_to_leave or self.churn_risk >= CHURN_RISK_MIN


#: Churn score of crm's from which on a customer is to be held.
CHURN_RISK_MIN = 0.75
#: Occasions remembered of one customer, the newest, those that are over included.
CARE_MAX = 20
#: Stands for a caller of whom nothing is known.
STRANGER = Profile(customer="")


@dataclass(frozen=True, kw_only=True, slots=True)
class Complaint:
    """A complaint as tickets last told it."""

    #: Id, without "tickets/".
    ticket: str
    #: Customer id, "" unknown.
    customer: str
    #: E.164, "" unknown.
    number: str
    #: Whether it is unresolved.
    open: bool
    #: tickets' version: the higher is the newer.
    version: int
    #: When tickets said so.
    at: datetime | None = None
    #: Whose it is, where they were merged into the customer; "" the customer's own.
    made_for: str = ""

    @property
    def whose(self) -> str:
        """Whose it is, whatever was merged."""
        return self.made_for or self.customer


@dataclass(frozen=True, kw_only=True, slots=True)
class Purchase:
    """Something a customer bought or took."""

    #: Given by the system it comes from, unique.
    id: str
    #: Customer id.
    customer: str
    #: Product id.
    product: str
    #: When.
    at: datetime
    #: How many, >= 1.
    quantity: int = 1
    #: What was paid in all; None unknown.
    amount: Money | None = None
    #: Where.
    channel: Channel = Channel.UNSPECIFIED


class Contact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The contact in which something would be offered."""

    #: Id of the call, "" outside one.
    call_id: str = ""
    #: How the customer is in touch.
    channel: Channel = Channel.UNSPECIFIED
    #: Resource names, "" not said.
    queue: str = ""
    region: str = ""
    agent: str = ""
    #: Why the customer called.
    reason: str = ""
    #: Language of the conversation, primary subtag.
    language: str = ""
    #: Products asked about.
    products_asked: tuple[str, ...] = ()
    #: What the customer called for is still unsolved.
    unresolved: bool = False
    #: The customer said they would leave.
    wants_to_leave: bool = False


class ReasonCode(enum.StrEnum):
    """Why an offer is recommended."""

    ASSOCIATION = "ASSOCIATION"
    POPULARITY = "POPULARITY"
    PROPENSITY = "PROPENSITY"
    SAVING = "SAVING"
    RETENTION = "RETENTION"
    WIN_BACK = "WIN_BACK"
    EXPLORATION = "EXPLORATION"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """A reason, its figures, and the words for it."""

    #: Kind of reason.
    code: ReasonCode
    #: What the agent can say aloud.
    texts: tuple[Text, ...]
    #: The customer's own product it starts from; "" for popularity.
    because_product: str = ""
    #: Share of the customers counted who have the recommended product, as counted.
    share: float
    #: How many customers were counted.
    customer_count: int
    #: Smoothed confidence over smoothed base rate.
    lift: float


class Forms(msgspec.Struct, eq=False):
    """What was made of a line's unchanging parts before, b"" while nothing. Says nothing of the line: all are
    equal.
    """

    #: For the log, in BSON.
    document: bytes = b""
    #: For the answer, as a message: what stands before the changing fields, and what behind them.
    wire: bytes = b""
    wire_behind: bytes = b""
    #: For the event, in JSON.
    text: bytes = b""
    #: Score and probability of a line that were told last, and how, in JSON.
    score: float = math.nan
    probability: float = math.nan
    figures: bytes = b""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Forms)

    __hash__ = None  # type: ignore[assignment]


class RankedOffer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An offer as it stood when it was ranked for a customer."""

    #: Offer id.
    offer: str
    #: Its version then.
    revision: int
    #: What it sells.
    product: str
    #: Titles then.
    titles: tuple[Text, ...]
    #: Price then.
    price: Money
    #: Worth then.
    worth: Money
    #: 1 for the best.
    rank: int
    #: probability x worth, in the worth's currency.
    score: float
    #: Estimated probability of acceptance.
    probability: float
    #: Probability with which the policy put it at this rank.
    propensity: float
    #: Why.
    reason: Reason
    #: Words for this customer, by language.
    scripts: tuple[Text, ...] = ()
    #: What was made of its unchanging parts before, by whom it is for; copies share it.
    forms: Forms = msgspec.field(default_factory=Forms)


class NoOffer(enum.StrEnum):
    """Why nothing is suggested."""

    OPEN_COMPLAINT = "OPEN_COMPLAINT"
    NOTHING_ELIGIBLE = "NOTHING_ELIGIBLE"
    NO_CONSENT = "NO_CONSENT"
    MATTER_UNRESOLVED = "MATTER_UNRESOLVED"
    FATIGUE = "FATIGUE"
    HOLDOUT = "HOLDOUT"
    NOT_WORTHWHILE = "NOT_WORTHWHILE"


class Result(enum.StrEnum):
    """What became of an offer."""

    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    IGNORED = "IGNORED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a decision."""

    #: Offer id; "" when none was put to the customer.
    offer: str
    #: What the customer said.
    result: Result
    #: Offers put to the customer before and declined, sorted.
    declined: tuple[str, ...] = ()
    #: Agent name, "" unknown.
    agent: str = ""
    #: Anything worth keeping.
    note: str = ""
    #: When it was recorded.
    at: datetime

    def same_content(self, other: Outcome) -> bool:
        """Whether both say the same, whenever they said it."""
        mine = (self.offer, self.result, self.declined, self.agent, self.note)
        return mine == (other.offer, other.result, other.declined, other.agent, other.note)


class Considered(msgspec.Struct, frozen=True, gc=False):
    """An offer that was looked at for a decision, shown or not: what comparing policies afterwards needs. Its
    fields but the last are stored in this order.
    """

    #: Offer id.
    offer: str
    #: What it sells.
    product: str
    #: Estimate from the history alone.
    base: float
    #: Estimated probability of acceptance.
    probability: float
    #: What an acceptance is worth.
    worth: float
    #: Probability with which it came first.
    chance: float
    #: What was made of it before.
    forms: Forms = msgspec.field(default_factory=Forms)


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A logged ranking and what became of it."""

    #: Id, without "decisions/".
    id: str
    #: Customer id, "" for an unknown caller.
    customer: str
    #: E.164, "" not said.
    number: str
    #: The contact.
    contact: Contact
    #: Best first.
    offers: tuple[RankedOffer, ...]
    #: Set when `offers` is empty.
    no_offer: NoOffer | None = None
    #: Id of the policy that decided.
    policy: str = "default"
    #: Id of the model asked, "" when none was ready.
    model: str = ""
    #: The customer is in the holdout group.
    holdout: bool = False
    #: Probability with which the policy came to this list.
    propensity: float = 1.0
    #: Probability with which the customer was held out; None where it was not noted (earlier releases).
    held_chance: float | None = None
    #: Probability with which the uplift model lets such a customer be offered something.
    leave: float = 1.0
    #: What was looked at, best first; of a customer held out as well.
    considered: tuple[Considered, ...] = ()
    #: What the propensity model knew of the customer in the contact.
    traits: tuple[str, ...] = ()
    #: None while open.
    outcome: Outcome | None = None
    #: Token of the stock unit that a closed, accepted decision took; "" none.
    claim: str = ""
    #: Effects of the closing that are still to be applied (history, settled stock).
    unsettled: bool = False
    #: For whom it was made, where they were merged into `customer` since; else "".
    made_for: str = ""
    #: +1 with every change.
    version: int = 1
    #: Business times.
    created_at: datetime
    expires_at: datetime

    def find(self, offer: str) -> RankedOffer | None:
        """The decision's entry for an offer id."""
        return next((entry for entry in self.offers if entry.offer == offer), None)


class ModelState(enum.StrEnum):
    """Where a model version is in its life."""

    TRAINING = "TRAINING"
    READY = "READY"
    ACTIVE = "ACTIVE"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """One version of a model: the association table, or the propensity model."""

    #: Id, without "models/".
    id: str
    #: +1 with every version.
    version: int
    #: Where it is in its life.
    state: ModelState
    #: Why it failed.
    failure: str = ""
    #: Customers counted.
    customer_count: int = 0
    #: (customer, product) facts counted.
    example_count: int = 0
    #: Pairs kept.
    rule_count: int = 0
    #: What validation measured.
    metrics: Mapping[str, float] = field(default_factory=dict)
    #: Business times.
    created_at: datetime
    activated_at: datetime | None = None
