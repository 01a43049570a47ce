"""Values of the customer memory: frozen, with no behaviour but what follows from their own fields.

Times are timezone-aware UTC datetimes where people see them and integer milliseconds (`_ms`) where they are
compared.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


class Kind(enum.StrEnum):
    """Person or company."""

    PERSON = "PERSON"
    COMPANY = "COMPANY"


class State(enum.StrEnum):
    """Whether a record lives."""

    ACTIVE = "ACTIVE"
    DELETED = "DELETED"
    ERASED = "ERASED"
    MERGED = "MERGED"


class Tier(enum.StrEnum):
    """Service tier, in rising order of care."""

    STANDARD = "STANDARD"
    SILVER = "SILVER"
    GOLD = "GOLD"
    PLATINUM = "PLATINUM"
    VIP = "VIP"


class ValueClass(enum.StrEnum):
    """Purchase horizon; NONE is "not classed", F is "none foreseen"."""

    NONE = ""
    A = "A"
    B = "B"
    C = "C"
    D = "D"
    E = "E"
    F = "F"


class Channel(enum.StrEnum):
    """By which means; NONE is "not said"."""

    NONE = ""
    VOICE = "VOICE"
    CHAT = "CHAT"
    SMS = "SMS"
    EMAIL = "EMAIL"
    VISIT = "VISIT"


class InteractionKind(enum.StrEnum):
    """What sort of thing happened."""

    CALL = "CALL"
    TICKET = "TICKET"
    OFFER = "OFFER"
    MESSAGE = "MESSAGE"
    SURVEY = "SURVEY"
    VISIT = "VISIT"
    NOTE = "NOTE"


class Direction(enum.StrEnum):
    """Who began it; NONE is "not known"."""

    NONE = ""
    INBOUND = "INBOUND"
    OUTBOUND = "OUTBOUND"


class CallState(enum.StrEnum):
    """Where a call stands; NONE while only a later part of its story has arrived."""

    NONE = ""
    WAITING = "WAITING"
    CONNECTED = "CONNECTED"
    COMPLETED = "COMPLETED"
    ABANDONED = "ABANDONED"
    REFUSED = "REFUSED"
    MOVING = "MOVING"
    INTERRUPTED = "INTERRUPTED"


class Part(enum.StrEnum):
    """A part of a screen pop."""

    CUSTOMER = "CUSTOMER"
    CALLS = "CALLS"
    TICKETS = "TICKETS"
    OFFERS = "OFFERS"
    CARE = "CARE"
    CHURN = "CHURN"


class Purpose(enum.StrEnum):
    """What a contact is for; NONE is "not said"."""

    NONE = ""
    SERVICE = "SERVICE"
    MARKETING = "MARKETING"
    SURVEY = "SURVEY"
    RECORDING = "RECORDING"


class FieldKind(enum.StrEnum):
    """What values a custom field takes."""

    TEXT = "TEXT"
    NUMBER = "NUMBER"
    BOOLEAN = "BOOLEAN"
    DATE = "DATE"
    CHOICE = "CHOICE"
    CHOICES = "CHOICES"


@dataclass(frozen=True, kw_only=True, slots=True)
class PhoneNumber:
    """A telephone number of a customer."""

    #: E.164 once normalised.
    number: str
    #: What it is for.
    label: str = ""
    #: The one to call first.
    primary: bool = False
    #: Somebody proved that it is the customer's.
    verified: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EmailAddress:
    """An e-mail address of a customer."""

    #: Domain in lower case once normalised.
    address: str
    #: What it is for.
    label: str = ""
    #: The one to write to first.
    primary: bool = False
    #: Somebody proved that it is the customer's.
    verified: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ExternalId:
    """The customer's id in another system."""

    #: The system.
    system: str
    #: The id there.
    id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PostalAddress:
    """Where a customer lives or works."""

    #: ISO 3166-1 alpha-2.
    country: str = ""
    #: Province or state.
    province: str = ""
    #: City or prefecture.
    city: str = ""
    #: District or county.
    district: str = ""
    #: Township or street office.
    township: str = ""
    #: Everything finer.
    street: str = ""
    #: Postal code.
    postal_code: str = ""
    #: What it is for.
    label: str = ""
    #: Degrees north; None when the place is not known.
    latitude: float | None = None
    #: Degrees east; None when the place is not known.
    longitude: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contact:
    """A person to talk to at a company."""

    #: What to call the person.
    display_name: str
    #: For example "finance".
    role: str = ""
    #: The person's numbers, claims of the company.
    phone_numbers: tuple[PhoneNumber, ...] = ()
    #: The person's addresses, claims of the company.
    email_addresses: tuple[EmailAddress, ...] = ()
    #: BCP 47.
    language: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BirthDate:
    """A day of birth."""

    #: 0 when not known.
    year: int = 0
    #: 1 to 12.
    month: int = 0
    #: 1 to 31.
    day: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuietWindow:
    """A part of every week without contact."""

    #: 1 Monday to 7 Sunday; empty: every day.
    weekdays: tuple[int, ...] = ()
    #: Minutes from midnight, 0 to 1439.
    start_minute: int = 0
    #: First minute after, 1 to 1440; below the start it goes past midnight.
    end_minute: int = 0
    #: Empty: all channels.
    channels: tuple[Channel, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Consent:
    """One decision about contact by one channel for one purpose."""

    #: By which channel.
    channel: Channel
    #: For what.
    purpose: Purpose
    #: Given, or refused.
    granted: bool = False
    #: When it was decided, business ms.
    decided_ms: int = 0
    #: When it ends by itself, business ms; None: never.
    expires_ms: int | None = None
    #: Where it is proved.
    evidence: str = ""
    #: Who recorded it.
    recorder: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomField:
    """The declaration of a custom field."""

    #: Last part of the resource name.
    id: str
    #: What people see.
    label: str
    #: What values it takes.
    kind: FieldKind
    #: For kinds CHOICE and CHOICES.
    choices: tuple[str, ...] = ()
    #: Every new customer must have it.
    required: bool = False
    #: No new values.
    retired: bool = False
    #: 1 at the declaration, +1 with every change.
    version: int = 0
    #: Business time of the declaration.
    create_time: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Customer:
    """A person or a company. The first block is what callers write, the second what the service keeps."""

    #: Last part of the resource name; "" before one is chosen.
    id: str = ""
    #: Person or company.
    kind: Kind = Kind.PERSON
    #: What an agent calls the customer.
    display_name: str = ""
    #: Given name.
    given_name: str = ""
    #: Family name.
    family_name: str = ""
    #: Numbers, the primary one marked.
    phone_numbers: tuple[PhoneNumber, ...] = ()
    #: Addresses, the primary one marked.
    email_addresses: tuple[EmailAddress, ...] = ()
    #: Ids in other systems.
    external_ids: tuple[ExternalId, ...] = ()
    #: Postal addresses.
    addresses: tuple[PostalAddress, ...] = ()
    #: Service tier.
    tier: Tier = Tier.STANDARD
    #: BCP 47; "" not known.
    language: str = ""
    #: IANA; "" the service's own.
    time_zone: str = ""
    #: "regions/{id}"; "" by number.
    home_region: str = ""
    #: Sorted, without repetition.
    tags: tuple[str, ...] = ()
    #: An identity's subject.
    account_manager: str = ""
    #: Purchase horizon.
    value_class: ValueClass = ValueClass.NONE
    #: Persons only.
    birth_date: BirthDate | None = None
    #: Free text.
    notes: str = ""
    #: Values of declared custom fields: str, float, bool, BirthDate or a tuple of str.
    custom_values: Mapping[str, Any] = field(default_factory=dict)
    #: Id of the company that a person belongs to.
    company: str = ""
    #: People to talk to at a company.
    contacts: tuple[Contact, ...] = ()
    #: Spans without contact.
    quiet_windows: tuple[QuietWindow, ...] = ()

    #: The latest decision for each channel and purpose, in that order.
    consents: tuple[Consent, ...] = ()
    #: Whether the record lives.
    state: State = State.ACTIVE
    #: Id of the customer that took this one over.
    merged_into: str = ""
    #: 1 at the creation, +1 with every change.
    version: int = 0
    #: Business time of the creation.
    create_time: datetime | None = None
    #: Business time of the last change.
    update_time: datetime | None = None
    #: Business time of the deletion.
    delete_time: datetime | None = None
    #: Who created it.
    creator: str = ""
    #: Who changed it last.
    updater: str = ""

    @property
    def name(self) -> str:
        """The resource name."""
        return f"customers/{self.id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomerFilter:
    """Conditions that hold together; an empty one holds for everyone."""

    #: Of this tier.
    tier: Tier | None = None
    #: Of this value class.
    value_class: ValueClass | None = None
    #: Has this tag.
    tag: str = ""
    #: Looked after by this subject.
    account_manager: str = ""
    #: Id of the company.
    company: str = ""
    #: Ids of companies that were merged into it: who belonged to one belongs to it.
    companies_below: tuple[str, ...] = ()
    #: "regions/{id}".
    home_region: str = ""
    #: Person or company.
    kind: Kind | None = None
    #: Also deleted, erased and merged ones.
    show_deleted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldChange:
    """One changed field."""

    #: Its path in the proto's Customer.
    field: str
    #: JSON before; "" none.
    old: str = ""
    #: JSON after; "" none.
    new: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One change of one customer."""

    #: Version that the change made.
    version: int
    #: Who did it.
    actor: str
    #: CREATE, UPDATE, DELETE, UNDELETE …
    action: str
    #: When, business time.
    time: datetime
    #: What changed.
    changes: tuple[FieldChange, ...] = ()


#: What orders two reports about the same facet: compared as tuples, the higher one is the newer.
Stamp = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facet:
    """The newest report about one side of an interaction."""

    #: Its order.
    stamp: Stamp
    #: Plain values: str, int, float, bool or None.
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One report about one interaction, as an event brings it."""

    #: What sort of interaction.
    kind: InteractionKind
    #: The system that knows it.
    source: str
    #: Its id there.
    source_id: str
    #: Which side is reported: "queued", "ended", "snapshot" …
    facet: str
    #: Orders reports about this side.
    stamp: Stamp
    #: What is reported, plain values; "number" (E.164) and "customer" (an id) say whose it is, where known.
    values: Mapping[str, Any]
    #: When the interaction began, as far as this report knows, business ms.
    began_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One interaction as it is stored: what its facts have told so far. Grows by `timeline.merge` alone."""

    #: Follows from kind, source and source id.
    id: str
    #: What sort.
    kind: InteractionKind
    #: The system that knows it.
    source: str
    #: Its id there.
    source_id: str
    #: Newest report of each side.
    facets: Mapping[str, Facet]
    #: The least `began_ms` told.
    began_ms: int
    #: Whose timeline it is in: see `timeline.subject_of_customer` and `timeline.subject_of_number`; ""
    #: nobody's.
    subject: str = ""
    #: Whose it would be had nobody been merged; "" when that is `subject`.
    own: str = ""
    #: +1 with every write, for optimistic concurrency.
    revision: int = 0
    #: Business ms of the last write.
    updated_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """One interaction as people see it: derived from an `Entry` by `timeline.project`."""

    #: Last part of the resource name.
    id: str
    #: What sort.
    kind: InteractionKind
    #: The system that knows it.
    source: str
    #: Its id there.
    source_id: str
    #: Whose timeline it is in.
    subject: str
    #: E.164; "" not known.
    number: str
    #: By which means.
    channel: Channel
    #: Who began it.
    direction: Direction
    #: When it began, business ms.
    began_ms: int
    #: When it ended, business ms; None while it goes on.
    ended_ms: int | None
    #: One line for people.
    summary: str
    #: Path in the tree of contact reasons.
    contact_reason: str
    #: "agents/{id}" or a subject.
    agent: str
    #: "regions/{id}".
    region: str
    #: A ticket that is not closed, a call that goes on.
    open: bool
    #: The enterprise's product that it was about; "" not known.
    product: str
    #: The partner behind it; "" not known.
    partner: str
    #: By kind; the keys are those of the proto's detail messages.
    detail: Mapping[str, Any]
    #: Last write, business ms.
    updated_ms: int = 0


class MergeState(enum.StrEnum):
    """How far a merge is; PREVIEW is only told, never kept."""

    PREVIEW = ""
    MERGING = "MERGING"
    MERGED = "MERGED"
    UNMERGING = "UNMERGING"
    UNMERGED = "UNMERGED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """What a survivor got of one absorbed customer."""

    #: The absorbed customer's id.
    customer: str
    #: Only what the survivor lacked, field by field.
    added: Customer
    #: The survivor's own decisions that a later one of the absorbed replaced.
    consents_before: tuple[Consent, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """Customers taken over by one."""

    #: Last part of the resource name.
    id: str
    #: Id of who stays.
    survivor: str
    #: Ids of who was taken over, in this order.
    absorbed: tuple[str, ...]
    #: How far it is.
    state: MergeState = MergeState.PREVIEW
    #: Why.
    reason: str = ""
    #: Who asked for it.
    requester: str = ""
    #: Why it was undone.
    undo_reason: str = ""
    #: Who undid it.
    undoer: str = ""
    #: Interactions moved.
    moved: int = 0
    #: By absorbed customer, as far as it got.
    gains: tuple[Gain, ...] = ()
    #: Business times.
    create_time: datetime | None = None
    update_time: datetime | None = None
    #: +1 with every step.
    version: int = 0

    @property
    def name(self) -> str:
        """The resource name."""
        return f"merges/{self.id}"

    @property
    def parties(self) -> tuple[str, ...]:
        """Everybody who takes part."""
        return (self.survivor, *self.absorbed)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineFilter:
    """Which interactions of a timeline."""

    #: Empty: all.
    kinds: frozenset[InteractionKind] = frozenset()
    #: Began at or after, business ms.
    from_ms: int | None = None
    #: Began before, business ms.
    until_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedOffer:
    """Something worth offering, as marketing ranked it."""

    #: "offers/{id}".
    offer: str
    #: Title by primary language.
    titles: Mapping[str, str]
    #: Reason by primary language.
    reasons: Mapping[str, str]
    #: Higher is better.
    score: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferRanking:
    """The newest ranking for one subject, and what the customer has said to it since."""

    #: Whose.
    subject: str
    #: (business ms of the decision, its id): the higher is the newer. (0, "") before the first.
    stamp: tuple[int, str] = (0, "")
    #: Best first.
    offers: tuple[CachedOffer, ...] = ()
    #: Not to be shown from here on, business ms; None: no end.
    expires_ms: int | None = None
    #: Offer -> business ms of the customer's latest answer, none older than the ranking.
    answers: Mapping[str, int] = field(default_factory=dict)
    #: +1 with every write.
    revision: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecentCalls:
    """What a screen pop says of calls."""

    #: Calls that began today before the live one.
    today: int
    #: The latest call but the live one.
    last: Interaction | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reminder:
    """Something worth mentioning in a call."""

    #: BIRTHDAY, CONTRACT_EXPIRES …
    kind: str
    #: One line in the customer's language.
    text: str
    #: Id of the care task behind it; "" none.
    task: str = ""
    #: When it falls due, business ms.
    due_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChurnReason:
    """One thing that speaks for leaving."""

    #: For example REPEATED_COMPLAINTS.
    code: str
    #: How much of the score it explains, 0 to 1.
    weight: float
    #: What the text is filled with: a count, a number of days.
    value: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Churn:
    """How likely a customer is to leave."""

    #: Whose, a customer's id.
    customer: str
    #: 0 to 1.
    score: float = 0.0
    #: Strongest first.
    reasons: tuple[ChurnReason, ...] = ()
    #: The customer said so.
    wants_to_leave: bool = False
    #: When the customer said so (or no longer), business ms; 0 never.
    intent_ms: int = 0
    #: What was said.
    comment: str = ""
    #: When it was scored, business ms; 0 never.
    scored_ms: int = 0
    #: +1 with every write.
    revision: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Glance:
    """Everything of a screen pop that lies under a customer's or number's subjects, read in one go."""

    #: The calls but the live one.
    calls: RecentCalls
    #: Open tickets.
    tickets: tuple[Interaction, ...]
    #: Open tickets in all.
    ticket_count: int
    #: What marketing last ranked.
    rankings: tuple[OfferRanking, ...]
    #: Open reminders, the earliest first.
    care: tuple[Reminder, ...]
    #: None when nothing was scored or said yet.
    churn: Churn | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenPop:
    """The customer in one glance."""

    #: E.164; "" withheld.
    number: str
    #: Who it is; None not known.
    customer: Customer | None = None
    #: The contact whose number it is, at a company.
    contact_name: str = ""
    #: Earlier calls; None when they could not be had.
    calls: RecentCalls | None = None
    #: Most urgent first.
    tickets: tuple[Interaction, ...] = ()
    #: Open tickets in all.
    ticket_count: int = 0
    #: Best first, not expired, not answered.
    offers: tuple[CachedOffer, ...] = ()
    #: What to mention, most urgent first.
    care: tuple[Reminder, ...] = ()
    #: How likely the customer is to leave; None when nothing is known.
    churn: Churn | None = None
    #: What could not be had, in order.
    missing: tuple[Part, ...] = ()
    #: "zh" or "en".
    language: str = "zh"
    #: One line to say first.
    greeting: str = ""
    #: One line about repeated calls; "" at the first.
    repeat_notice: str = ""
    #: IANA zone that "today" was counted in.
    time_zone: str = ""
