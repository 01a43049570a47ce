"""Protobuf <-> model. Used by the servicer (requests, answers) and the consumers (events); knows no
transport.

A number of an enumeration that this release does not know is refused with the field's name where a caller
writes it, and read as "not said" where another service's event brings it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date  # type: ignore[import-untyped]

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2, events_pb2, screen_pop_pb2, timeline_pb2
from callmesh.marketing.v1 import events_pb2 as marketing_events
from callmesh.marketing.v1 import types_pb2 as marketing_types
from callmesh.routing.v1 import call_pb2
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.routing.v1 import menu_events_pb2 as menu_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from callmesh.tickets.v1 import ticket_pb2
from chassis.bus.event import Told
from chassis.clock import from_ms
from chassis.errors import InvalidArgument, shorten
from chassis.ids import check_id, parse_name
from chassis.mongo import etag
from crm import churn as churn_words
from crm import engine, identity, timeline
from crm.duplicates import Pair
from crm.model import (
    AuditEntry,
    BirthDate,
    CachedOffer,
    CallState,
    Channel,
    Churn,
    Consent,
    Contact,
    Customer,
    CustomerFilter,
    CustomField,
    Direction,
    EmailAddress,
    ExternalId,
    Fact,
    FieldKind,
    Interaction,
    InteractionKind,
    Kind,
    Merge,
    MergeState,
    Part,
    PhoneNumber,
    PostalAddress,
    Purpose,
    QuietWindow,
    Reminder,
    ScreenPop,
    State,
    Tier,
    TimelineFilter,
    ValueClass,
)

#: Longest notes and descriptions taken from another service's event, characters.
EVENT_TEXT_CHARACTERS_MAX = 10_000
#: Longest title, reason or other line taken from another service's event, characters.
EVENT_LINE_CHARACTERS_MAX = 500
#: Longest resource name or short word taken from another service's event, characters.
NAME_CHARACTERS_MAX = 200
#: Answers of one survey that are kept.
SURVEY_ANSWERS_MAX = 20
#: Most offers of one ranking that are kept.
RANKED_OFFERS_MAX = 20
#: How far a caller's clock may be ahead of ours, ms.
CLOCK_DIFFERENCE_MS_MAX = 300_000
#: Times that callers ask about lie before the year 3000, epoch ms.
ASKED_MS_MAX = 32_503_680_000_000
#: Notes in a screen pop, characters.
POP_NOTES_CHARACTERS_MAX = 500

_EPOCH = from_ms(0)
_E164 = re.compile(r"\+[1-9][0-9]{4,16}")

Member = TypeVar("Member", bound=enum.StrEnum)


def _table(proto_enum: Any, prefix: str, members: type[Member]) -> dict[int, Member]:
    """Proto number -> member, for every member that the proto has by the name `prefix` + name."""
    numbers = dict(proto_enum.items())
    return {numbers[prefix + m.name]: m for m in members if prefix + m.name in numbers}


def _numbers(table: Mapping[int, Member]) -> dict[Member, Any]:
    """Member -> proto number."""
    return {member: number for number, member in table.items()}


_TIERS = _table(customers_pb2.Tier, "TIER_", Tier)
_KINDS = _table(customers_pb2.CustomerKind, "CUSTOMER_KIND_", Kind)
_STATES = _table(customers_pb2.CustomerState, "CUSTOMER_STATE_", State)
_CLASSES = _table(customers_pb2.ValueClass, "VALUE_CLASS_", ValueClass)
_CHANNELS = _table(common_pb2.Channel, "CHANNEL_", Channel)
_INTERACTION_KINDS = _table(timeline_pb2.InteractionKind, "INTERACTION_KIND_", InteractionKind)
_DIRECTIONS = _table(timeline_pb2.Direction, "DIRECTION_", Direction)
_CALL_STATES = _table(timeline_pb2.CallDetail.State, "STATE_", CallState)
_PURPOSES = _table(customers_pb2.Purpose, "PURPOSE_", Purpose)
_FIELD_KINDS = _table(customers_pb2.CustomField.Kind, "KIND_", FieldKind)
_MERGE_STATES = _table(customers_pb2.Merge.State, "STATE_", MergeState)
_PARTS = _table(screen_pop_pb2.ScreenPopPart, "SCREEN_POP_PART_", Part)


def _number(table: Mapping[int, Member], member: Member) -> Any:
    for number, value in table.items():
        if value is member:
            return number
    return 0


def _member(field: str, table: Mapping[int, Member], number: int, default: Member) -> Member:
    if number == 0:
        return default
    found = table.get(number)
    if found is None:
        raise InvalidArgument(field=field, why=f"has no value {number}")
    return found


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment as protobuf has it; None stays None."""
    if moment is None:
        return None
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def ms_timestamp(ms: int | None) -> Timestamp | None:
    """Milliseconds since 1970 as a timestamp; None stays None."""
    return None if ms is None else timestamp(from_ms(ms))


def _ms(message: Any, field: str) -> int | None:
    """The milliseconds of a timestamp or duration field; None where it is not set."""
    return int(getattr(message, field).ToMilliseconds()) if message.HasField(field) else None


# Customers
# -----------------------------------------------------------------------------------------------------------


def _numbers_in(messages: Sequence[Any]) -> tuple[PhoneNumber, ...]:
    return tuple(
        PhoneNumber(number=m.number, label=m.label, primary=m.primary, verified=m.verified) for m in messages
    )


def _emails_in(messages: Sequence[Any]) -> tuple[EmailAddress, ...]:
    return tuple(
        EmailAddress(address=m.address, label=m.label, primary=m.primary, verified=m.verified)
        for m in messages
    )


def _address_in(message: Any) -> PostalAddress:
    placed = message.HasField("location")
    return PostalAddress(
        country=message.country,
        province=message.province,
        city=message.city,
        district=message.district,
        township=message.township,
        street=message.street,
        postal_code=message.postal_code,
        label=message.label,
        latitude=message.location.latitude if placed else None,
        longitude=message.location.longitude if placed else None,
    )


def _contact_in(message: Any) -> Contact:
    return Contact(
        display_name=message.display_name,
        role=message.role,
        phone_numbers=_numbers_in(message.phone_numbers),
        email_addresses=_emails_in(message.email_addresses),
        language=message.language,
    )


def _window_in(message: Any, path: str) -> QuietWindow:
    channels = [_member(f"{path}.channels", _CHANNELS, number, Channel.NONE) for number in message.channels]
    if Channel.NONE in channels:
        raise InvalidArgument(field=f"{path}.channels", why="must name channels")
    return QuietWindow(
        weekdays=tuple(message.weekdays),
        start_minute=message.start_minute,
        end_minute=message.end_minute,
        channels=tuple(channels),
    )


def _custom_value_in(message: Any) -> Any:
    kind = message.WhichOneof("value")
    if kind == "date":
        return BirthDate(year=message.date.year, month=message.date.month, day=message.date.day)
    if kind == "texts":
        return tuple(message.texts.texts)
    return getattr(message, kind) if kind else ""


def customer_in(message: Any) -> Customer:
    """What a caller wrote, not normalised yet. InvalidArgument for an enumeration's unknown number or a bad
    company name.
    """
    windows = enumerate(message.quiet_windows[: engine.QUIET_WINDOWS_MAX + 1])
    day = message.birth_date
    return Customer(
        kind=_member("customer.kind", _KINDS, message.kind, Kind.PERSON),
        display_name=message.display_name,
        given_name=message.given_name,
        family_name=message.family_name,
        phone_numbers=_numbers_in(message.phone_numbers),
        email_addresses=_emails_in(message.email_addresses),
        external_ids=tuple(ExternalId(system=m.system, id=m.id) for m in message.external_ids),
        addresses=tuple(_address_in(m) for m in message.addresses),
        tier=_member("customer.tier", _TIERS, message.tier, Tier.STANDARD),
        language=message.language,
        time_zone=message.time_zone,
        home_region=message.home_region,
        tags=tuple(message.tags),
        account_manager=message.account_manager,
        value_class=_member("customer.value_class", _CLASSES, message.value_class, ValueClass.NONE),
        birth_date=BirthDate(year=day.year, month=day.month, day=day.day)
        if message.HasField("birth_date")
        else None,
        notes=message.notes,
        custom_values={key: _custom_value_in(value) for key, value in message.custom_values.items()},
        company=parse_name("customer.company", "customers", message.company) if message.company else "",
        contacts=tuple(_contact_in(m) for m in message.contacts),
        quiet_windows=tuple(_window_in(m, f"customer.quiet_windows[{index}]") for index, m in windows),
    )


def customer_of_json(told: Mapping[str, Any]) -> Customer:
    """A customer in protobuf's JSON, as exports write it, not normalised yet; what the service keeps by
    itself is passed over. InvalidArgument for what is no such thing.
    """
    return customer_in(_message_of_json(told))


def fields_of_json(told: Mapping[str, Any]) -> set[str]:
    """The fields that such a customer has. InvalidArgument as `customer_of_json`."""
    return {field.name for field, _ in _message_of_json(told).ListFields()}


#: What protobuf raises for JSON that is no such message.
_UNREADABLE = (ParseError, TypeError, ValueError, OverflowError)


def _message_of_json(told: Mapping[str, Any]) -> Any:
    try:
        return ParseDict(dict(told), customers_pb2.Customer())
    except _UNREADABLE:
        bad = (name for name, value in told.items() if not _is_readable(name, value))
        field = f"customer.{shorten(name)}" if (name := next(bad, "")) else "customer"
        raise InvalidArgument(field=field, why="is not a customer as the API tells it") from None


def _is_readable(name: str, value: Any) -> bool:
    try:
        ParseDict({name: value}, customers_pb2.Customer())
    except _UNREADABLE:
        return False
    return True


# As dicts, from which protobuf makes the messages where they belong: one of their own would be copied there.


def _number_out(number: PhoneNumber) -> Any:
    return {
        "number": number.number,
        "label": number.label,
        "primary": number.primary,
        "verified": number.verified,
    }


def _email_out(email: EmailAddress) -> Any:
    return {
        "address": email.address,
        "label": email.label,
        "primary": email.primary,
        "verified": email.verified,
    }


def _external_out(external: ExternalId) -> Any:
    return {"system": external.system, "id": external.id}


def _address_out(address: PostalAddress) -> Any:
    told: dict[str, Any] = {
        "country": address.country,
        "province": address.province,
        "city": address.city,
        "district": address.district,
        "township": address.township,
        "street": address.street,
        "postal_code": address.postal_code,
        "label": address.label,
    }
    if address.latitude is not None and address.longitude is not None:
        told["location"] = {"latitude": address.latitude, "longitude": address.longitude}
    return told


def _contact_out(contact: Contact) -> customers_pb2.Contact:
    return customers_pb2.Contact(
        display_name=contact.display_name,
        role=contact.role,
        phone_numbers=[_number_out(number) for number in contact.phone_numbers],
        email_addresses=[_email_out(email) for email in contact.email_addresses],
        language=contact.language,
    )


def _window_out(window: QuietWindow) -> customers_pb2.QuietWindow:
    return customers_pb2.QuietWindow(
        weekdays=window.weekdays,
        start_minute=window.start_minute,
        end_minute=window.end_minute,
        channels=[_number(_CHANNELS, channel) for channel in window.channels],
    )


def _custom_value_out(value: Any) -> customers_pb2.CustomValue:
    if isinstance(value, bool):
        return customers_pb2.CustomValue(boolean=value)
    if isinstance(value, int | float):
        return customers_pb2.CustomValue(number=value)
    if isinstance(value, BirthDate):
        return customers_pb2.CustomValue(date=Date(year=value.year, month=value.month, day=value.day))
    if isinstance(value, tuple):
        return customers_pb2.CustomValue(texts=customers_pb2.TextList(texts=value))
    return customers_pb2.CustomValue(text=value)


def _consent_out(consent: Consent) -> customers_pb2.Consent:
    return customers_pb2.Consent(
        channel=_number(_CHANNELS, consent.channel),
        purpose=_number(_PURPOSES, consent.purpose),
        granted=consent.granted,
        decide_time=ms_timestamp(consent.decided_ms),
        expire_time=ms_timestamp(consent.expires_ms),
        evidence=consent.evidence,
        recorder=consent.recorder,
    )


def consent_in(message: Any, now_ms: int) -> Consent:
    """A decision as a caller wrote it; decided now when it does not say when. InvalidArgument for an
    enumeration's unknown number or a decision of the future.
    """
    decided_ms = _ms(message, "decide_time")
    if decided_ms is not None and decided_ms > now_ms + CLOCK_DIFFERENCE_MS_MAX:
        raise InvalidArgument(field="consent.decide_time", why="must not lie in the future")
    return Consent(
        channel=_member("consent.channel", _CHANNELS, message.channel, Channel.NONE),
        purpose=_member("consent.purpose", _PURPOSES, message.purpose, Purpose.NONE),
        granted=message.granted,
        decided_ms=now_ms if decided_ms is None else decided_ms,
        expires_ms=_ms(message, "expire_time"),
        evidence=message.evidence,
    )


def channel_number(name: str) -> Any:
    """The proto's number of a channel by our name; 0 for ""."""
    return _number(_CHANNELS, Channel(name))


def channel_in(field: str, number: int) -> Channel:
    """A channel that must be said."""
    found = _member(field, _CHANNELS, number, Channel.NONE)
    if found is Channel.NONE:
        raise InvalidArgument(field=field, why="must be set")
    return found


def purpose_in(field: str, number: int) -> Purpose:
    """A purpose that must be said."""
    found = _member(field, _PURPOSES, number, Purpose.NONE)
    if found is Purpose.NONE:
        raise InvalidArgument(field=field, why="must be set")
    return found


def customer_wire(customer: Customer) -> bytes:
    """The answer of GetCustomer, ready to be kept and sent."""
    return bytes(customer_out(customer).SerializeToString())


def shown_customer(found: bytes | Customer) -> customers_pb2.Customer:
    """What `Reads.shown` answers, as callers see it."""
    return customers_pb2.Customer.FromString(found) if isinstance(found, bytes) else customer_out(found)


_TIER_NUMBERS, _KIND_NUMBERS = _numbers(_TIERS), _numbers(_KINDS)
_STATE_NUMBERS, _CLASS_NUMBERS = _numbers(_STATES), _numbers(_CLASSES)

# What is imported together has the same times. Not to be changed, only to be copied from.
_moment = lru_cache(maxsize=64)(timestamp)


def customer_out(customer: Customer) -> customers_pb2.Customer:
    """A customer as callers see it; an unsaved one (version 0) has no name and no etag."""
    day = customer.birth_date
    message = customers_pb2.Customer(
        name=customer.name if customer.id else "",
        kind=_KIND_NUMBERS.get(customer.kind, 0),
        display_name=customer.display_name,
        phone_numbers=[_number_out(number) for number in customer.phone_numbers],
        email_addresses=[_email_out(email) for email in customer.email_addresses],
        external_ids=[_external_out(external) for external in customer.external_ids],
        addresses=[_address_out(address) for address in customer.addresses],
        tier=_TIER_NUMBERS.get(customer.tier, 0),
        language=customer.language,
        tags=customer.tags,
        value_class=_CLASS_NUMBERS.get(customer.value_class, 0),
        birth_date=Date(year=day.year, month=day.month, day=day.day) if day else None,
        state=_STATE_NUMBERS.get(customer.state, 0),
        create_time=_moment(customer.create_time),
        update_time=_moment(customer.update_time),
        creator=customer.creator,
        updater=customer.updater,
        etag=etag(customer.version) if customer.version else "",
    )
    _add_rare(message, customer)
    return message


def _add_rare(message: customers_pb2.Customer, customer: Customer) -> None:
    """What few customers have: looked at only where it is, since this runs for every row of an import."""
    for name, value in zip(_RARE_TEXTS, _rare_texts_of(customer), strict=True):
        if value:
            setattr(message, name, value)
    if customer.custom_values:
        for key, value in customer.custom_values.items():
            message.custom_values[key].CopyFrom(_custom_value_out(value))
    if customer.consents:
        message.consents.extend(_consent_out(consent) for consent in customer.consents)
    if customer.contacts:
        message.contacts.extend(_contact_out(contact) for contact in customer.contacts)
    if customer.quiet_windows:
        message.quiet_windows.extend(_window_out(window) for window in customer.quiet_windows)
    if customer.company:
        message.company = f"customers/{customer.company}"
    if customer.merged_into:
        message.merged_into = f"customers/{customer.merged_into}"
    if (deleted := _moment(customer.delete_time)) is not None:
        message.delete_time.CopyFrom(deleted)


_RARE_TEXTS = ("given_name", "family_name", "time_zone", "home_region", "account_manager", "notes")
_rare_texts_of = attrgetter(*_RARE_TEXTS)


def filter_in(message: Any, show_deleted: bool) -> CustomerFilter:
    """Which customers a list asks for. InvalidArgument naming the bad condition."""
    for field in ("tag", "account_manager", "home_region"):
        if len(getattr(message, field)) > engine.SUBJECT_CHARACTERS_MAX + 8:
            raise InvalidArgument(field=f"filter.{field}", why="is too long")
    return CustomerFilter(
        tier=_member("filter.tier", _TIERS, message.tier, Tier.STANDARD) if message.tier else None,
        value_class=_member("filter.value_class", _CLASSES, message.value_class, ValueClass.NONE)
        if message.value_class
        else None,
        # As they are kept: the same letters may be written in two ways.
        tag=identity.clean_text(message.tag, engine.SUBJECT_CHARACTERS_MAX),
        account_manager=identity.clean_text(message.account_manager, engine.SUBJECT_CHARACTERS_MAX),
        company=parse_name("filter.company", "customers", message.company) if message.company else "",
        home_region=message.home_region,
        kind=_member("filter.kind", _KINDS, message.kind, Kind.PERSON) if message.kind else None,
        show_deleted=show_deleted,
    )


def moment_in(field: str, message: Any) -> datetime:
    """A time that a caller asks about; InvalidArgument for one near the calendar's edges: days before and
    after it are looked at, by the clocks of all zones.
    """
    ms = message.ToMilliseconds()
    if not 0 <= ms < ASKED_MS_MAX:
        raise InvalidArgument(field=field, why="must be of the years 1970 to 2999")
    return from_ms(ms)


def duplicate_out(pair: Pair) -> customers_pb2.Duplicate:
    """Two customers who are probably one, as callers see them."""
    return customers_pb2.Duplicate(
        customer=f"customers/{pair.customer}",
        other=f"customers/{pair.other}",
        score=pair.score,
        reasons=[
            customers_pb2.DuplicateReason(field=r.field, kind=r.kind, similarity=r.similarity)
            for r in pair.reasons
        ],
    )


def audit_out(customer: str, entry: AuditEntry) -> customers_pb2.AuditEntry:
    """A change as callers see it; `customer` is the resource name."""
    changes = [
        customers_pb2.FieldChange(field=change.field, old_value=change.old, new_value=change.new)
        for change in entry.changes
    ]
    return customers_pb2.AuditEntry(
        customer=customer,
        version=entry.version,
        actor=entry.actor,
        action=entry.action,
        time=timestamp(entry.time),
        changes=changes,
    )


# Events of crm
# -------------------------------------------------------------------------------------------------------


def snapshot(customer: Customer) -> events_pb2.CustomerSnapshot:
    """The essentials of a customer for other services."""
    return events_pb2.CustomerSnapshot(
        customer=customer.name,
        version=customer.version,
        state=_number(_STATES, customer.state),
        kind=_number(_KINDS, customer.kind),
        numbers=engine.owned_numbers(customer),
        tier=_number(_TIERS, customer.tier),
        language=customer.language,
        display_name=customer.display_name,
        value_class=_number(_CLASSES, customer.value_class),
        tags=customer.tags,
        account_manager=customer.account_manager,
        home_region=customer.home_region,
        time_zone=customer.time_zone,
        consents=[_consent_out(consent) for consent in customer.consents],
        quiet_windows=[_window_out(window) for window in customer.quiet_windows],
        merged_into=f"customers/{customer.merged_into}" if customer.merged_into else "",
        company=f"customers/{customer.company}" if customer.company else "",
        create_time=timestamp(customer.create_time),
        email_addresses=engine.owned_emails(customer),
    )


def customer_created(customer: Customer, actor: str, time: datetime) -> events_pb2.CustomerCreated:
    """The event of a creation; how it goes out is written by `created_told`."""
    return events_pb2.CustomerCreated(customer=snapshot(customer), actor=actor, event_time=timestamp(time))


#: Type of the event of a creation.
CUSTOMER_CREATED: str = events_pb2.CustomerCreated.DESCRIPTOR.full_name

_TIER_NAMES = {tier: customers_pb2.Tier.Name(number) for number, tier in _TIERS.items()}
_KIND_NAMES = {kind: customers_pb2.CustomerKind.Name(number) for number, kind in _KINDS.items()}
_STATE_NAMES = {state: customers_pb2.CustomerState.Name(number) for number, state in _STATES.items()}
_CLASS_NAMES = {c: customers_pb2.ValueClass.Name(number) for number, c in _CLASSES.items()}


# What is imported together has the same times.
@lru_cache(maxsize=64)
def _json_time(moment: datetime | None) -> str:
    """As protobuf writes a timestamp in JSON."""
    if moment is None:
        return ""
    # Ours are in UTC: isoformat ends with "+00:00", after 0 or 6 digits of a second.
    return moment.isoformat()[:-6].removesuffix("000") + "Z"


class _Told(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A new customer in the event of its creation, in the order and in the form of protobuf's JSON."""

    customer: str
    version: str
    state: str
    kind: str
    numbers: list[str] = []
    tier: str
    language: str = ""
    display_name: str = ""
    value_class: str = ""
    tags: list[str] = []
    account_manager: str = ""
    home_region: str = ""
    time_zone: str = ""
    merged_into: str = ""
    company: str = ""
    create_time: str = ""
    email_addresses: list[str] = []


class _Created(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The data of that event."""

    customer: Any
    actor: str = ""
    event_time: str = ""


def _created(customer: Customer, actor: str, time: datetime) -> Any:
    """The data of the event of a creation: what protobuf's JSON printer makes of `customer_created`, a
    hundred times as fast. A new customer has no consents; one with quiet windows goes the long way.
    """
    if customer.quiet_windows or customer.consents:
        return MessageToDict(customer_created(customer, actor, time))
    told = _Told(
        customer=customer.name,
        version=str(customer.version),
        state=_STATE_NAMES[customer.state],
        kind=_KIND_NAMES[customer.kind],
        numbers=list(engine.owned_numbers(customer)),
        tier=_TIER_NAMES[customer.tier],
        language=customer.language,
        display_name=customer.display_name,
        value_class=_CLASS_NAMES.get(customer.value_class, ""),
        tags=list(customer.tags),
        account_manager=customer.account_manager,
        home_region=customer.home_region,
        time_zone=customer.time_zone,
        merged_into=f"customers/{customer.merged_into}" if customer.merged_into else "",
        company=f"customers/{customer.company}" if customer.company else "",
        create_time=_json_time(customer.create_time),
        email_addresses=list(engine.owned_emails(customer)),
    )
    return _Created(customer=told, actor=actor, event_time=_json_time(time))


def created_told(customer: Customer, actor: str, time: datetime, id: str, traceparent: str | None) -> Told:
    """The event of a creation, written at once: an import makes thousands a second."""
    return Told.written(
        _created(customer, actor, time),
        id=id,
        source="crm",
        type=CUSTOMER_CREATED,
        subject=customer.name,
        time=time,
        traceparent=traceparent,
    )


def customer_created_told(change: engine.Change, id: str, traceparent: str | None) -> Told:
    """The event of a creation."""
    return created_told(change.customer, change.audit.actor, change.audit.time, id, traceparent)


def customer_updated(change: engine.Change) -> events_pb2.CustomerUpdated:
    """The event of an update or undeletion."""
    return events_pb2.CustomerUpdated(
        customer=snapshot(change.customer),
        changed_fields=change.changed_fields,
        released_numbers=change.released,
        actor=change.audit.actor,
        event_time=timestamp(change.audit.time),
    )


def customer_deleted(change: engine.Change) -> events_pb2.CustomerDeleted:
    """The event of a soft deletion."""
    return events_pb2.CustomerDeleted(
        customer=snapshot(change.customer),
        released_numbers=change.released,
        actor=change.audit.actor,
        event_time=timestamp(change.audit.time),
    )


def customer_erased(change: engine.Change) -> events_pb2.CustomerErased:
    """The event of a legal erasure."""
    return events_pb2.CustomerErased(
        customer=snapshot(change.customer),
        actor=change.audit.actor,
        event_time=timestamp(change.audit.time),
    )


def customers_merged(
    merge: Merge, survivor: Customer, absorbed: Sequence[Customer], now: datetime
) -> events_pb2.CustomersMerged:
    """The event of a finished merge."""
    return events_pb2.CustomersMerged(
        merge=merge.name,
        survivor=snapshot(survivor),
        absorbed=[customer.name for customer in absorbed],
        absorbed_versions=[customer.version for customer in absorbed],
        actor=merge.requester,
        event_time=timestamp(now),
    )


def customers_unmerged(
    merge: Merge, survivor: Customer, restored: Sequence[Customer], now: datetime
) -> events_pb2.CustomersUnmerged:
    """The event of an undone merge."""
    return events_pb2.CustomersUnmerged(
        merge=merge.name,
        survivor=snapshot(survivor),
        restored=[snapshot(customer) for customer in restored],
        actor=merge.undoer,
        event_time=timestamp(now),
    )


def merge_out(merge: Merge) -> customers_pb2.Merge:
    """A merge as callers see it."""
    return customers_pb2.Merge(
        name=merge.name if merge.id else "",
        survivor=f"customers/{merge.survivor}",
        absorbed=[f"customers/{id}" for id in merge.absorbed],
        state=_number(_MERGE_STATES, merge.state),
        reason=merge.reason,
        requester=merge.requester,
        moved_interactions=merge.moved,
        create_time=timestamp(merge.create_time),
        update_time=timestamp(merge.update_time),
    )


def custom_field_in(message: Any) -> CustomField:
    """A declaration as a caller wrote it, not checked yet."""
    if not message.kind:
        raise InvalidArgument(field="custom_field.kind", why="must be set")
    return CustomField(
        id="",
        label=message.label,
        kind=_member("custom_field.kind", _FIELD_KINDS, message.kind, FieldKind.TEXT),
        choices=tuple(message.choices),
        required=message.required,
    )


def custom_field_out(field: CustomField) -> customers_pb2.CustomField:
    """A declaration as callers see it."""
    return customers_pb2.CustomField(
        name=f"customFields/{field.id}",
        label=field.label,
        kind=_number(_FIELD_KINDS, field.kind),
        choices=field.choices,
        required=field.required,
        retired=field.retired,
        etag=etag(field.version),
        create_time=timestamp(field.create_time),
    )


def interaction_recorded(
    interaction: Interaction, actor: str, now: datetime
) -> events_pb2.InteractionRecorded:
    """The event of a recorded interaction, without its free texts."""
    message = interaction_out(interaction)
    message.ClearField("summary")
    for detail, texts in (("message", ("subject", "text")), ("survey", ("comment",)), ("note", ("text",))):
        if message.HasField(detail):
            for text in texts:
                getattr(message, detail).ClearField(text)
    return events_pb2.InteractionRecorded(interaction=message, actor=actor, event_time=timestamp(now))


# Timeline
# ------------------------------------------------------------------------------------------------------------


def interaction_out(interaction: Interaction) -> timeline_pb2.Interaction:
    """An interaction as callers see it."""
    owner = timeline.customer_of(interaction.subject)
    message = timeline_pb2.Interaction(
        name=f"interactions/{interaction.id}",
        kind=_number(_INTERACTION_KINDS, interaction.kind),
        source=interaction.source,
        source_id=interaction.source_id,
        customer=f"customers/{owner}" if owner else "",
        phone_number=interaction.number,
        channel=_number(_CHANNELS, interaction.channel),
        direction=_number(_DIRECTIONS, interaction.direction),
        start_time=ms_timestamp(interaction.began_ms),
        end_time=ms_timestamp(interaction.ended_ms),
        summary=interaction.summary,
        contact_reason=interaction.contact_reason,
        agent=interaction.agent,
        region=interaction.region,
        product=interaction.product,
        partner=interaction.partner,
        update_time=ms_timestamp(interaction.updated_ms),
    )
    _DETAILS_OUT.get(interaction.kind, _note_out)(message, interaction.detail)
    return message


def _call_out(message: timeline_pb2.Interaction, detail: Mapping[str, Any]) -> None:
    call = message.call
    call.state = _number(_CALL_STATES, CallState(detail["state"]))
    call.version.attempt, call.version.move = detail["attempt"], detail["move"]
    call.queue = detail["queue"]
    call.disposition = detail["disposition"]
    call.notes = detail["notes"]
    call.wants_to_leave = detail["wants_to_leave"]
    if detail["resolved"] is not None:
        call.resolved = detail["resolved"]
    if detail["wait_ms"] is not None:
        call.wait_duration.FromMilliseconds(detail["wait_ms"])
    if detail["talk_ms"] is not None:
        call.talk_duration.FromMilliseconds(detail["talk_ms"])
    if detail["connect_ms"] is not None:
        call.connect_time.FromMilliseconds(detail["connect_ms"])


def _ticket_out(message: timeline_pb2.Interaction, detail: Mapping[str, Any]) -> None:
    ticket = message.ticket
    for field in ("ticket", "kind", "state", "priority", "subject", "call_id"):
        setattr(ticket, field, detail.get(field, ""))
    ticket.open = bool(detail.get("open"))
    ticket.breached = bool(detail.get("breached"))
    if detail.get("due_ms") is not None:
        ticket.due_time.FromMilliseconds(detail["due_ms"])


def _offer_out(message: timeline_pb2.Interaction, detail: Mapping[str, Any]) -> None:
    for field in ("offer", "title", "outcome", "call_id"):
        setattr(message.offer, field, detail.get(field, ""))


def _message_out(message: timeline_pb2.Interaction, detail: Mapping[str, Any]) -> None:
    message.message.subject = detail.get("subject", "")
    message.message.text = detail.get("text", "")


def _survey_out(message: timeline_pb2.Interaction, detail: Mapping[str, Any]) -> None:
    message.survey.survey = detail.get("survey", "")
    message.survey.satisfaction = detail.get("satisfaction", 0)
    message.survey.comment = detail.get("comment", "")
    message.survey.call_id = detail.get("call_id", "")
    if detail.get("recommend_score") is not None:
        message.survey.recommend_score = detail["recommend_score"]


def _note_out(message: timeline_pb2.Interaction, detail: Mapping[str, Any]) -> None:
    message.note.text = detail.get("text", "")


_DETAILS_OUT = {
    InteractionKind.CALL: _call_out,
    InteractionKind.TICKET: _ticket_out,
    InteractionKind.OFFER: _offer_out,
    InteractionKind.MESSAGE: _message_out,
    InteractionKind.SURVEY: _survey_out,
}


def timeline_filter_in(message: Any) -> TimelineFilter:
    """Which interactions a list asks for. InvalidArgument naming the bad condition."""
    kinds = [
        _member(f"kinds[{index}]", _INTERACTION_KINDS, number, InteractionKind.NOTE)
        for index, number in enumerate(message.kinds[: len(_INTERACTION_KINDS) + 1])
    ]
    if 0 in message.kinds:
        raise InvalidArgument(field="kinds", why="must name kinds")
    interval = message.interval
    from_ms, until_ms = _ms(interval, "start_time"), _ms(interval, "end_time")
    if from_ms is not None and until_ms is not None and until_ms < from_ms:
        raise InvalidArgument(field="interval.end_time", why="must not be before start_time")
    return TimelineFilter(kinds=frozenset(kinds), from_ms=from_ms, until_ms=until_ms)


def recorded_kind(message: Any) -> InteractionKind:
    """The kind of an interaction to be recorded; InvalidArgument for a kind that only other services tell."""
    kind = _member("interaction.kind", _INTERACTION_KINDS, message.kind, InteractionKind.CALL)
    if kind in (InteractionKind.CALL, InteractionKind.TICKET, InteractionKind.OFFER):
        raise InvalidArgument(
            field="interaction.kind",
            why="must be MESSAGE, SURVEY, VISIT or NOTE; other services tell of the rest by themselves",
        )
    return kind


def recorded_values(message: Any, kind: InteractionKind) -> dict[str, Any]:
    """What a caller wrote of an interaction, by field, not cleaned yet. InvalidArgument for a detail of
    another kind.
    """
    wanted = {InteractionKind.MESSAGE: "message", InteractionKind.SURVEY: "survey"}.get(kind, "note")
    told = message.WhichOneof("detail")
    if told not in (None, wanted):
        raise InvalidArgument(field=f"interaction.{told}", why=f"does not belong to kind {kind}")
    values: dict[str, Any] = {
        "channel": _member("interaction.channel", _CHANNELS, message.channel, Channel.NONE).value,
        "direction": _member("interaction.direction", _DIRECTIONS, message.direction, Direction.NONE).value,
        "summary": message.summary,
        "contact_reason": message.contact_reason,
        "agent": message.agent,
        "region": message.region,
        "product": message.product,
        "partner": message.partner,
        "ended_ms": _ms(message, "end_time"),
    }
    if wanted == "message":
        values.update(subject=message.message.subject, text=message.message.text)
    elif wanted == "survey":
        survey = message.survey
        score = survey.recommend_score if survey.HasField("recommend_score") else None
        values.update(survey=survey.survey, satisfaction=survey.satisfaction, recommend_score=score)
        values.update(comment=survey.comment, call_id=survey.call_id)
    else:
        values["text"] = message.note.text
    return values


# Screen pop
# ----------------------------------------------------------------------------------------------------------


def screen_pop_out(pop: ScreenPop, now: datetime) -> screen_pop_pb2.ScreenPop:
    """The answer of GetScreenPop."""
    message = screen_pop_pb2.ScreenPop(
        phone_number=pop.number,
        greeting=pop.greeting,
        repeat_call_notice=pop.repeat_notice,
        language=pop.language,
        missing=[_number(_PARTS, part) for part in pop.missing],
        open_tickets=[_open_ticket(ticket, now) for ticket in pop.tickets],
        open_ticket_count=pop.ticket_count,
        offers=[_pop_offer(offer, pop.language) for offer in pop.offers],
    )
    message.care.extend(_care_out(reminder) for reminder in pop.care)
    if pop.churn is not None:
        message.churn.CopyFrom(_churn_out(pop.churn, pop.language))
    if pop.customer is not None:
        message.customer.CopyFrom(_pop_customer(pop))
    if pop.calls is not None:
        message.earlier_calls_today = pop.calls.today
        message.call_ordinal_today = pop.calls.today + 1
        if pop.calls.last is not None:
            message.last_call.CopyFrom(_past_call(pop.calls.last))
    return message


def _care_out(reminder: Reminder) -> screen_pop_pb2.CareReminder:
    return screen_pop_pb2.CareReminder(
        kind=reminder.kind,
        text=reminder.text,
        care_task=f"careTasks/{reminder.task}" if reminder.task else "",
        due_time=ms_timestamp(reminder.due_ms),
    )


def _churn_out(churn: Churn, language: str) -> screen_pop_pb2.PopChurn:
    return screen_pop_pb2.PopChurn(
        score=churn.score,
        reasons=[churn_words.text(reason, language) for reason in churn.reasons],
        wants_to_leave=churn.wants_to_leave,
    )


def _pop_customer(pop: ScreenPop) -> screen_pop_pb2.PopCustomer:
    customer = pop.customer
    assert customer is not None
    return screen_pop_pb2.PopCustomer(
        name=customer.name,
        kind=_number(_KINDS, customer.kind),
        display_name=customer.display_name,
        contact_name=pop.contact_name,
        tier=_number(_TIERS, customer.tier),
        language=customer.language,
        value_class=_number(_CLASSES, customer.value_class),
        tags=customer.tags,
        account_manager=customer.account_manager,
        home_region=customer.home_region,
        notes=customer.notes[:POP_NOTES_CHARACTERS_MAX],
        time_zone=pop.time_zone,
        create_time=timestamp(customer.create_time),
    )


def _past_call(call: Interaction) -> screen_pop_pb2.PastCall:
    message = screen_pop_pb2.PastCall(
        interaction=f"interactions/{call.id}",
        call_id=call.source_id,
        start_time=ms_timestamp(call.began_ms),
        outcome=call.detail["state"],
        contact_reason=call.contact_reason,
        agent=call.agent,
        queue=call.detail["queue"],
    )
    if call.detail["resolved"] is not None:
        message.resolved = call.detail["resolved"]
    if call.detail["talk_ms"] is not None:
        message.talk_duration.FromMilliseconds(call.detail["talk_ms"])
    return message


def _open_ticket(ticket: Interaction, now: datetime) -> screen_pop_pb2.OpenTicket:
    detail = ticket.detail
    due_ms = detail.get("due_ms")
    return screen_pop_pb2.OpenTicket(
        ticket=detail.get("ticket", ""),
        kind=detail.get("kind", ""),
        state=detail.get("state", ""),
        priority=detail.get("priority", ""),
        subject=detail.get("subject", ""),
        due_time=ms_timestamp(due_ms),
        overdue=due_ms is not None and from_ms(due_ms) < now,
    )


def _pop_offer(offer: CachedOffer, language: str) -> screen_pop_pb2.PopOffer:
    return screen_pop_pb2.PopOffer(
        offer=offer.offer,
        title=in_language(offer.titles, language),
        reason=in_language(offer.reasons, language),
        score=offer.score,
    )


def in_language(texts: Mapping[str, str], language: str) -> str:
    """The text in a language, else in English, else any; "" for none."""
    return texts.get(language) or texts.get("en") or next(iter(texts.values()), "")


# Events of other services
# --------------------------------------------------------------------------------------------

_OUTCOMES = {
    call_pb2.CALL_OUTCOME_COMPLETED: CallState.COMPLETED,
    call_pb2.CALL_OUTCOME_ABANDONED: CallState.ABANDONED,
    call_pb2.CALL_OUTCOME_MOVED: CallState.MOVING,
    call_pb2.CALL_OUTCOME_REFUSED: CallState.REFUSED,
    call_pb2.CALL_OUTCOME_INTERRUPTED: CallState.INTERRUPTED,
}
_OPEN_PHASES = {
    ticket_pb2.TICKET_PHASE_NEW,
    ticket_pb2.TICKET_PHASE_ACTIVE,
    ticket_pb2.TICKET_PHASE_WAITING,
}
_ANSWERED = {
    marketing_types.OUTCOME_RESULT_ACCEPTED: "ACCEPTED",
    marketing_types.OUTCOME_RESULT_DECLINED: "DECLINED",
}


def _enum_name(proto_enum: Any, number: int, prefix: str) -> str:
    """The name without its prefix; "" for UNSPECIFIED and for a number that this release does not know."""
    name = next((name for name, value in proto_enum.items() if value == number), "")
    return "" if name.endswith("_UNSPECIFIED") else name.removeprefix(prefix)


def _id_of(field: str, collection: str, name: str) -> str:
    """The id in a name that an event brings; "" stays "". InvalidArgument (the dead-letter queue) for any
    other form.
    """
    return parse_name(field, collection, name) if name else ""


def _event_number(text: str) -> str:
    """A number as an event brings it; what is no E.164 number is as good as withheld."""
    return text if _E164.fullmatch(text) else ""


def _event_ms(field: str, message: Any) -> int:
    """A time that an event must have, business ms. InvalidArgument when it has none."""
    if not message.HasField(field):
        raise InvalidArgument(field=field, why="must be set")
    return int(getattr(message, field).ToMilliseconds())


def _call_fact(
    message: Any, facet: str, values: Mapping[str, Any], began_ms: int | None = None
) -> Fact | None:
    ref = message.call
    if not ref.call_id:
        return None
    check_id("call.call_id", ref.call_id)
    event_ms = _event_ms("event_time", message)
    common = {
        "number": _event_number(ref.caller_number),
        "channel": _CHANNELS.get(ref.channel, Channel.NONE).value,
        "direction": Direction.INBOUND.value,
        "queue": ref.queue[:NAME_CHARACTERS_MAX],
        "region": ref.region[:NAME_CHARACTERS_MAX],
        "agent": ref.agent[:NAME_CHARACTERS_MAX],
    }
    return Fact(
        kind=InteractionKind.CALL,
        source="routing",
        source_id=ref.call_id,
        facet=facet,
        stamp=(ref.version.attempt, ref.version.move, ref.epoch, ref.sequence),
        values={**common, **values},
        began_ms=event_ms if began_ms is None else began_ms,
    )


def call_queued(message: routing_events.CallQueued) -> Fact | None:
    """None for an event that names no call; so in all of these."""
    began_ms = _event_ms("event_time", message) - (_ms(message, "waited_before") or 0)
    return _call_fact(message, "queued", {"state": CallState.WAITING.value}, began_ms)


def call_connected(message: routing_events.CallConnected) -> Fact | None:
    """Caller and agent are talking."""
    event_ms, wait_ms = _event_ms("event_time", message), _ms(message, "wait")
    values = {"state": CallState.CONNECTED.value, "connect_ms": event_ms, "wait_ms": wait_ms}
    return _call_fact(message, "connected", values, event_ms - (wait_ms or 0))


def call_ended(message: routing_events.CallEnded) -> Fact | None:
    """An entry of the call ended; MOVED is on its way elsewhere."""
    event_ms = _event_ms("event_time", message)
    values = {
        "state": _OUTCOMES.get(message.outcome, CallState.COMPLETED).value,
        "wait_ms": _ms(message, "wait"),
        "talk_ms": _ms(message, "talk"),
        "connect_ms": _ms(message, "connect_time"),
        "ended_ms": event_ms,
        "reason": message.reason[:EVENT_LINE_CHARACTERS_MAX],
    }
    return _call_fact(message, "ended", values, _ms(message, "queue_time"))


def call_wrapped_up(message: routing_events.CallWrappedUp) -> Fact | None:
    """The agent finished; without a disposition the time ran out and only the agent is told."""
    said = message.disposition
    told = message.HasField("disposition")
    values = {
        "disposition": said.code[:EVENT_LINE_CHARACTERS_MAX],
        "resolved": said.resolved if told else None,
        "contact_reason": said.contact_reason[:EVENT_LINE_CHARACTERS_MAX],
        "notes": said.notes[:EVENT_TEXT_CHARACTERS_MAX],
        "wants_to_leave": said.wants_to_leave,
    }
    return _call_fact(message, "wrapped", values)


def ticket_fact(snapshot: tickets_events.TicketSnapshot) -> Fact | None:
    """A ticket as any of its events shows it."""
    if not snapshot.ticket:
        return None
    values = {
        "number": _event_number(snapshot.caller_number),
        "customer": _id_of("ticket.customer", "customers", snapshot.customer),
        "channel": _CHANNELS.get(snapshot.channel, Channel.NONE).value,
        "agent": snapshot.assignee[:NAME_CHARACTERS_MAX],
        "ticket": snapshot.ticket,
        "kind": _enum_name(ticket_pb2.TicketKind, snapshot.kind, "TICKET_KIND_"),
        "state": snapshot.state[:NAME_CHARACTERS_MAX],
        "priority": _enum_name(ticket_pb2.Priority, snapshot.priority, "PRIORITY_"),
        "subject": snapshot.subject[:EVENT_LINE_CHARACTERS_MAX],
        "contact_reason": snapshot.category[:NAME_CHARACTERS_MAX],
        "product": snapshot.products[0][:NAME_CHARACTERS_MAX] if snapshot.products else "",
        "open": snapshot.phase in _OPEN_PHASES,
        "due_ms": _ms(snapshot, "due_time"),
        "changed_ms": _ms(snapshot, "update_time"),
        "call_id": _id_of("ticket.call", "calls", snapshot.call),
        "breached": snapshot.breached,
    }
    return Fact(
        kind=InteractionKind.TICKET,
        source="tickets",
        source_id=_id_of("ticket.ticket", "tickets", snapshot.ticket),
        facet="snapshot",
        stamp=(snapshot.version,),
        values=values,
        began_ms=_event_ms("create_time", snapshot),
    )


def visit_fact(message: tickets_events.FollowUpCompleted) -> Fact | None:
    """What the customer said when asked how it was: a survey; None when there was no answer."""
    snapshot, visit = message.ticket, message.visit
    if not snapshot.ticket or not visit.answered:
        return None
    score = visit.satisfaction_score if 1 <= visit.satisfaction_score <= 5 else 0
    values = {
        "number": _event_number(snapshot.caller_number),
        "customer": _id_of("ticket.customer", "customers", snapshot.customer),
        "channel": _CHANNELS.get(snapshot.channel, Channel.NONE).value,
        "agent": snapshot.assignee[:NAME_CHARACTERS_MAX],
        "contact_reason": snapshot.category[:NAME_CHARACTERS_MAX],
        "survey": f"follow-up of {message.parent[:NAME_CHARACTERS_MAX]}",
        # A verdict without a score still says whether all was well.
        "satisfaction": score or (5 if visit.satisfied else 1),
        "comment": visit.comment[:EVENT_TEXT_CHARACTERS_MAX],
    }
    return Fact(
        kind=InteractionKind.SURVEY,
        source="tickets",
        source_id=_id_of("ticket.ticket", "tickets", snapshot.ticket),
        facet="record",
        stamp=(snapshot.version,),
        values=values,
        began_ms=_event_ms("update_time", snapshot),
    )


def survey_fact(message: menu_events.SurveyAnswered) -> Fact | None:
    """What a caller answered after a call; None when nothing was."""
    if not message.session or not message.answers:
        return None
    said = ", ".join(
        f"{a.question}: {a.score}" if a.score else f"{a.question}: {a.node}"
        for a in message.answers[:SURVEY_ANSWERS_MAX]
    )
    values = {
        "number": _event_number(message.caller_number),
        "customer": _id_of("customer", "customers", message.customer),
        "channel": Channel.VOICE.value,
        "survey": message.survey[:NAME_CHARACTERS_MAX],
        # The scale of the timeline is whole; 0: nothing was scored, or by no number.
        "satisfaction": round(min(5.0, max(0.0, message.satisfaction))),
        "comment": said[:EVENT_TEXT_CHARACTERS_MAX],
        "call_id": message.call_id[:NAME_CHARACTERS_MAX],
    }
    return Fact(
        kind=InteractionKind.SURVEY,
        source="routing",
        source_id=check_id("session", message.session),
        facet="record",
        stamp=(message.version, len(message.answers)),
        values=values,
        began_ms=_event_ms("event_time", message),
    )


def texts_in(messages: Sequence[Any]) -> dict[str, str]:
    """Texts by primary language, whether the other service says "zh" or "zh-CN"; of several the first."""
    texts: dict[str, str] = {}
    for message in messages[:RANKED_OFFERS_MAX]:
        primary = message.language.partition("-")[0].lower()
        texts.setdefault(primary, message.text[:EVENT_LINE_CHARACTERS_MAX])
    return texts


def offer_fact(message: marketing_events.OfferOutcomeRecorded) -> Fact | None:
    """What the customer said to an offer; None when nothing was put to him."""
    outcome = _ANSWERED.get(message.result)
    if outcome is None or not message.offer or not message.decision:
        return None
    titles = texts_in(message.titles)
    at_ms = _event_ms("outcome_time", message)
    values = {
        "number": _event_number(message.caller_number),
        "customer": _id_of("customer", "customers", message.customer),
        "agent": message.agent[:NAME_CHARACTERS_MAX],
        "region": message.region[:NAME_CHARACTERS_MAX],
        "offer": message.offer[:NAME_CHARACTERS_MAX],
        "title": in_language(titles, "zh"),
        "outcome": outcome,
        "call_id": message.call_id[:NAME_CHARACTERS_MAX],
    }
    return Fact(
        kind=InteractionKind.OFFER,
        source="marketing",
        source_id=_id_of("decision", "decisions", message.decision),
        facet="outcome",
        stamp=(at_ms,),
        values=values,
        began_ms=at_ms,
    )


def answered_offers(message: marketing_events.OfferOutcomeRecorded) -> list[str]:
    """The offers that the customer has said something to."""
    said = [message.offer] if message.offer and message.result in _ANSWERED else []
    return [*said, *message.declined_offers[:RANKED_OFFERS_MAX]]


def ranked_offers(message: marketing_events.RecommendationMade) -> tuple[CachedOffer, ...]:
    """The offers of a ranking, best first."""
    best = sorted(message.offers, key=lambda offer: offer.rank)[:RANKED_OFFERS_MAX]
    return tuple(
        CachedOffer(
            offer=offer.offer,
            titles=texts_in(offer.titles),
            reasons=texts_in(offer.reason.texts),
            score=offer.score,
        )
        for offer in best
    )


def offer_subject(message: Any) -> str:
    """Whose an event of marketing is: the customer, else the number; "" when it names neither."""
    if message.customer:
        return timeline.subject_of_customer(_id_of("customer", "customers", message.customer))
    number = _event_number(message.caller_number)
    return timeline.subject_of_number(number) if number else ""


def ranking_stamp(message: marketing_events.RecommendationMade) -> tuple[int, str]:
    """Orders rankings."""
    return _event_ms("create_time", message), message.decision[:NAME_CHARACTERS_MAX]


def ranking_expiry(message: marketing_events.RecommendationMade) -> int | None:
    """When a ranking is stale, business ms; None: never."""
    return _ms(message, "expire_time")


def numbers_owned(snapshot: events_pb2.CustomerSnapshot) -> tuple[str, list[str]]:
    """(customer's id, the numbers it owned then) in a snapshot of our own."""
    return _id_of("customer.customer", "customers", snapshot.customer), list(snapshot.numbers)


def outcome_ms(message: marketing_events.OfferOutcomeRecorded) -> int:
    """When the customer answered, business ms. InvalidArgument when the event does not say."""
    return _event_ms("outcome_time", message)
