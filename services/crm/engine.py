"""The decisions of the customer memory. Pure: stdlib, the model and the readers of `crm.identity`; time is
passed in.

Customers
1. What a caller writes is normalised as a whole and every fault is told at once, by the path of its field.
2. A live customer owns its *claims* (numbers, e-mail addresses, ids elsewhere); a deleted one owns none.
3. A change that changes nothing is no change: no version, no event, no audit entry.
4. Every change makes exactly one version and one audit entry that names who did it and which fields changed
   how.
"""

from __future__ import annotations

import json
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from functools import cache, lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import Any, TypeVar

from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from crm import consent, identity, plain, schema
from crm.model import (
    AuditEntry,
    BirthDate,
    Channel,
    Consent,
    Contact,
    Customer,
    CustomField,
    EmailAddress,
    ExternalId,
    FieldChange,
    Kind,
    PhoneNumber,
    PostalAddress,
    QuietWindow,
    State,
)

NAME_CHARACTERS_MAX = 200
PART_NAME_CHARACTERS_MAX = 100
LABEL_CHARACTERS_MAX = 64
STREET_CHARACTERS_MAX = 300
NOTES_CHARACTERS_MAX = 10_000
SUBJECT_CHARACTERS_MAX = 128
NUMBERS_MAX = 20
EMAILS_MAX = 20
EXTERNAL_IDS_MAX = 20
ADDRESSES_MAX = 10
TAGS_MAX = 50
CONTACTS_MAX = 50
CONTACT_CLAIMS_MAX = 10
QUIET_WINDOWS_MAX = 20
MINUTES_OF_DAY = 1440
#: Longest JSON of one value in an audit entry, characters.
AUDIT_VALUE_CHARACTERS_MAX = 1000

#: What the service keeps by itself; callers write all else.
_KEPT = {
    *("id", "state", "merged_into", "version", "creator", "updater", "consents"),
    *("create_time", "update_time", "delete_time"),
}
#: What callers may write, in the order of the model.
WRITABLE = tuple(f.name for f in fields(Customer) if f.name not in _KEPT)

Way = TypeVar("Way", PhoneNumber, EmailAddress)

_REGION = re.compile(r"regions/[A-Za-z0-9._~:\-]{1,128}")
LANGUAGE_CHARACTERS_MAX = 39
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}")
_FIRST_BIRTH_YEAR = 1850


class ClaimTaken(AlreadyExists):
    """{field}: belongs to {owner} already."""

    reason = "CLAIM_TAKEN"

    def __init__(self, field: str = "", owner: str = "", **values: Any) -> None:
        """`field` is the path in the request, `owner` the resource name of the customer who owns it."""
        values.setdefault("resource", owner)
        super().__init__(field=field, owner=owner, **values)


class CustomerNotActive(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CUSTOMER_NOT_ACTIVE"


class CustomerNotDeleted(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CUSTOMER_NOT_DELETED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A decided change of one customer."""

    #: The customer after it.
    customer: Customer
    #: What to remember of it.
    audit: AuditEntry
    #: Numbers that the customer no longer owns, E.164.
    released: tuple[str, ...] = ()

    @property
    def changed_fields(self) -> tuple[str, ...]:
        """Names of the fields that changed, sorted."""
        return tuple(sorted(change.field for change in self.audit.changes))


class Problems:
    """Collects every fault of one input, to be told at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, field: str, why: str) -> None:
        """One fault; `why` follows the field's name in a sentence."""
        self._found.append((field, why))

    def text(self, field: str, value: str, *, least: int = 0, most: int, multiline: bool = False) -> str:
        """The cleaned text; a fault is noted."""
        if not value:
            if least:
                self.add(field, "must not be empty")
            return ""
        if len(value) >= least and identity.is_clean(value, most):
            return value
        cleaned = identity.clean_text(value, most)
        why = identity.text_problem(cleaned, least=least, most=most, multiline=multiline)
        if why:
            self.add(field, why)
        return cleaned

    def few(self, field: str, values: Sequence[Any], most: int) -> Sequence[Any]:
        """At most `most` of the values; more is a fault, and the rest costs nothing."""
        if len(values) > most:
            self.add(field, f"must hold at most {most}, got {len(values)}")
        return values[:most]

    def raise_if_any(self) -> None:
        """InvalidArgument with every fault."""
        if self._found:
            raise InvalidArgument.many(self._found)


def normalise(
    draft: Customer,
    default_country: str,
    today: date,
    fields: Mapping[str, CustomField] = MappingProxyType({}),
    before: Mapping[str, Any] | None = None,
    id: str = "",
    kept: Mapping[str, Any] = MappingProxyType({}),
) -> Customer:
    """The customer as it is kept. InvalidArgument naming every bad field as "customer.…" (rule 1).

    `fields` are the declared custom fields, `before` the values that the customer holds of them so far
    (None for a new one), `id` the id that it is to have; "" the draft's. `kept` is what the service itself
    says of it.
    """
    problems = Problems()
    done = evolved(
        draft,
        id=id or draft.id,
        **_names(draft, problems),
        phone_numbers=_numbers(
            "customer.phone_numbers", draft.phone_numbers, NUMBERS_MAX, default_country, problems
        ),
        email_addresses=_emails("customer.email_addresses", draft.email_addresses, EMAILS_MAX, problems),
        external_ids=_external_ids(draft.external_ids, problems),
        addresses=_addresses(draft.addresses, problems),
        tags=_tags(draft.tags, problems),
        birth_date=_birth_date(draft, today, problems),
        contacts=_contacts(draft, default_country, problems),
        quiet_windows=_quiet_windows(draft.quiet_windows, problems),
        custom_values=schema.check_values(draft.custom_values, before, fields, problems)
        if draft.custom_values or fields
        else {},
        **kept,
    )
    _check_company_fields(done, problems)
    _check_repeats(done, problems)
    problems.raise_if_any()
    return done


def _names(draft: Customer, problems: Problems) -> dict[str, Any]:
    p = problems
    return {
        "display_name": p.text(
            "customer.display_name", draft.display_name, least=1, most=NAME_CHARACTERS_MAX
        ),
        "given_name": p.text("customer.given_name", draft.given_name, most=PART_NAME_CHARACTERS_MAX),
        "family_name": p.text("customer.family_name", draft.family_name, most=PART_NAME_CHARACTERS_MAX),
        "language": _language("customer.language", draft.language, p),
        "time_zone": _time_zone(draft.time_zone, p),
        "home_region": _home_region(draft.home_region, p),
        "account_manager": p.text(
            "customer.account_manager", draft.account_manager, most=SUBJECT_CHARACTERS_MAX
        ),
        "notes": p.text("customer.notes", draft.notes, most=NOTES_CHARACTERS_MAX, multiline=True),
    }


def _language(field: str, tag: str, problems: Problems) -> str:
    if not tag:
        return ""
    # What is longer can be no tag, and is not remembered.
    cased = _cased_language(tag) if len(tag) <= LANGUAGE_CHARACTERS_MAX else ""
    if not cased:
        problems.add(field, "must be a BCP 47 tag such as zh-CN")
    return cased


@lru_cache(maxsize=256)
def _cased_language(tag: str) -> str:
    """The tag as it is written; "" for none."""
    if not _LANGUAGE.fullmatch(tag):
        return ""
    primary, *rest = tag.split("-")
    cased = [
        part.upper() if len(part) == 2 else part.title() if len(part) == 4 else part.lower() for part in rest
    ]
    return "-".join([primary.lower(), *cased])


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def is_time_zone(name: str) -> bool:
    """Whether it is an IANA time zone that this process knows."""
    return name in _zones()


def _time_zone(name: str, problems: Problems) -> str:
    if name and not is_time_zone(name):
        problems.add("customer.time_zone", "must be an IANA time zone such as Asia/Shanghai")
        return ""
    return name


def _home_region(name: str, problems: Problems) -> str:
    if name and not _REGION.fullmatch(name):
        problems.add("customer.home_region", "must have the form regions/{id}")
        return ""
    return name


def _numbers(
    field: str, drafts: Sequence[PhoneNumber], most: int, default_country: str, problems: Problems
) -> tuple[PhoneNumber, ...]:
    def identify(number: str) -> str:
        return identity.phone_number(number, default_country)

    return _ways(PhoneNumber, "number", identify, field, drafts, most, problems)


def _emails(
    field: str, drafts: Sequence[EmailAddress], most: int, problems: Problems
) -> tuple[EmailAddress, ...]:
    return _ways(EmailAddress, "address", identity.email_address, field, drafts, most, problems)


def _ways(
    kind: type[Way],
    value: str,
    identify: Callable[[str], str],
    field: str,
    drafts: Sequence[Way],
    most: int,
    problems: Problems,
) -> tuple[Way, ...]:
    """Ways to reach somebody, each by its `value` as it is identified."""
    done: list[Way] = []
    marked = _one_primary(field, drafts, problems)
    for index, draft in enumerate(problems.few(field, drafts, most)):
        path = f"{field}[{index}]"
        try:
            known = identify(getattr(draft, value))
        except identity.NotIdentifiable as why:
            problems.add(f"{path}.{value}", str(why))
            continue
        label = problems.text(f"{path}.label", draft.label, most=LABEL_CHARACTERS_MAX)
        primary = draft.primary if marked else not done
        done.append(kind(**{value: known}, label=label, primary=primary, verified=draft.verified))
    return tuple(done)


def _one_primary(field: str, drafts: Sequence[PhoneNumber | EmailAddress], problems: Problems) -> bool:
    """Whether one is marked as the first to use; more than one is a fault."""
    marked = [index for index, draft in enumerate(drafts) if draft.primary]
    if len(marked) > 1:
        problems.add(f"{field}[{marked[1]}].primary", "must be set for one only")
    return bool(marked)


def _external_ids(drafts: Sequence[ExternalId], problems: Problems) -> tuple[ExternalId, ...]:
    done = []
    for index, draft in enumerate(problems.few("customer.external_ids", drafts, EXTERNAL_IDS_MAX)):
        path = f"customer.external_ids[{index}]"
        try:
            system = identity.external_system(draft.system)
        except identity.NotIdentifiable as why:
            problems.add(f"{path}.system", str(why))
            continue
        done.append(ExternalId(system=system, id=problems.text(f"{path}.id", draft.id, least=1, most=128)))
    return tuple(done)


def _addresses(drafts: Sequence[PostalAddress], problems: Problems) -> tuple[PostalAddress, ...]:
    done = []
    for index, draft in enumerate(problems.few("customer.addresses", drafts, ADDRESSES_MAX)):
        path = f"customer.addresses[{index}]"
        texts = {}
        for key, most in _ADDRESS_LIMITS.items():
            own = getattr(draft, key)
            if own and not identity.is_clean(own, most):
                texts[key] = problems.text(f"{path}.{key}", own, most=most)
        country = draft.country
        if country:
            try:
                country = identity.country(country)
            except identity.NotIdentifiable as why:
                problems.add(f"{path}.country", str(why))
        if not _is_place(draft.latitude, draft.longitude):
            problems.add(f"{path}.location", _NO_PLACE)
        changed = texts or country != draft.country
        done.append(replace(draft, country=country, **texts) if changed else draft)
    return tuple(done)


_NO_PLACE = "must have both, within 90 degrees of latitude and 180 of longitude"
_ADDRESS_LIMITS = {
    **dict.fromkeys(("province", "city", "district", "township"), PART_NAME_CHARACTERS_MAX),
    "street": STREET_CHARACTERS_MAX,
    "postal_code": 20,
    "label": LABEL_CHARACTERS_MAX,
}


def _is_place(latitude: float | None, longitude: float | None) -> bool:
    if latitude is None or longitude is None:
        return latitude is longitude
    return -90.0 <= latitude <= 90.0 and -180.0 <= longitude <= 180.0


def _tags(drafts: Sequence[str], problems: Problems) -> tuple[str, ...]:
    done = set()
    for index, draft in enumerate(problems.few("customer.tags", drafts, TAGS_MAX)):
        done.add(problems.text(f"customer.tags[{index}]", draft, least=1, most=LABEL_CHARACTERS_MAX))
    return tuple(sorted(done))


def _birth_date(draft: Customer, today: date, problems: Problems) -> BirthDate | None:
    day = draft.birth_date
    if day is None or day == BirthDate():
        return None
    field = "customer.birth_date"
    if draft.kind is Kind.COMPANY:
        problems.add(field, "is for persons only")
        return None
    try:
        # A leap day may stand without its year.
        exact = date(day.year or 2000, day.month, day.day)
    except (ValueError, OverflowError):
        problems.add(field, "must be a day of the calendar, with month and day")
        return None
    if day.year and not (day.year >= _FIRST_BIRTH_YEAR and exact <= today):
        problems.add(field, f"must lie between {_FIRST_BIRTH_YEAR} and today")
    return day


def _contacts(draft: Customer, default_country: str, problems: Problems) -> tuple[Contact, ...]:
    done = []
    for index, contact in enumerate(problems.few("customer.contacts", draft.contacts, CONTACTS_MAX)):
        path = f"customer.contacts[{index}]"
        name = problems.text(f"{path}.display_name", contact.display_name, least=1, most=NAME_CHARACTERS_MAX)
        done.append(
            Contact(
                display_name=name,
                role=problems.text(f"{path}.role", contact.role, most=PART_NAME_CHARACTERS_MAX),
                phone_numbers=_numbers(
                    f"{path}.phone_numbers",
                    contact.phone_numbers,
                    CONTACT_CLAIMS_MAX,
                    default_country,
                    problems,
                ),
                email_addresses=_emails(
                    f"{path}.email_addresses", contact.email_addresses, CONTACT_CLAIMS_MAX, problems
                ),
                language=_language(f"{path}.language", contact.language, problems),
            )
        )
    return tuple(done)


def _quiet_windows(drafts: Sequence[QuietWindow], problems: Problems) -> tuple[QuietWindow, ...]:
    done = []
    for index, draft in enumerate(problems.few("customer.quiet_windows", drafts, QUIET_WINDOWS_MAX)):
        path = f"customer.quiet_windows[{index}]"
        if not all(1 <= day <= 7 for day in draft.weekdays[:7]) or len(draft.weekdays) > 7:
            problems.add(f"{path}.weekdays", "must be at most seven days, 1 Monday to 7 Sunday")
        if not 0 <= draft.start_minute < MINUTES_OF_DAY:
            problems.add(f"{path}.start_minute", f"must be 0 to {MINUTES_OF_DAY - 1}")
        if not 1 <= draft.end_minute <= MINUTES_OF_DAY or draft.end_minute == draft.start_minute:
            problems.add(f"{path}.end_minute", f"must be 1 to {MINUTES_OF_DAY} and not the start")
        days = tuple(sorted(set(draft.weekdays[:7])))
        done.append(replace(draft, weekdays=days, channels=tuple(sorted(set(draft.channels)))))
    return tuple(done)


def _check_company_fields(done: Customer, problems: Problems) -> None:
    if done.kind is Kind.PERSON and done.contacts:
        problems.add("customer.contacts", "are for companies only")
    if done.kind is Kind.COMPANY and done.company:
        problems.add("customer.company", "is for persons only")
    if done.company and done.company == done.id:
        problems.add("customer.company", "must be another customer")


def _check_repeats(done: Customer, problems: Problems) -> None:
    made = _claims_made(done)
    if len(set(made)) == len(made):
        return
    seen: dict[str, str] = {}
    for path, claim in claim_paths(done):
        if claim in seen:
            problems.add(path, f"repeats {seen[claim]}")
        seen.setdefault(claim, path)


def claim_paths(customer: Customer) -> Iterable[tuple[str, str]]:
    """(path of the field, claim) for everything that makes a claim, live or not, repeats included."""

    def of(prefix: str, holder: Customer | Contact) -> Iterable[tuple[str, str]]:
        for index, number in enumerate(holder.phone_numbers):
            yield f"{prefix}.phone_numbers[{index}].number", identity.claim_of_number(number.number)
        for index, email in enumerate(holder.email_addresses):
            yield f"{prefix}.email_addresses[{index}].address", identity.claim_of_email(email.address)

    yield from of("customer", customer)
    for index, external in enumerate(customer.external_ids):
        yield f"customer.external_ids[{index}]", identity.claim_of_external(external.system, external.id)
    for index, contact in enumerate(customer.contacts):
        yield from of(f"customer.contacts[{index}]", contact)


def _claims_made(customer: Customer) -> list[str]:
    """The claims of `claim_paths`: without the paths, which cost more than they do."""
    made: list[str] = []
    holders: tuple[Customer | Contact, ...] = (customer, *customer.contacts)
    for holder in holders:
        made += [identity.claim_of_number(number.number) for number in holder.phone_numbers]
        made += [identity.claim_of_email(email.address) for email in holder.email_addresses]
    made += [identity.claim_of_external(external.system, external.id) for external in customer.external_ids]
    return made


def claims(customer: Customer) -> tuple[str, ...]:
    """What the customer owns now (rule 2), sorted."""
    if customer.state is not State.ACTIVE:
        return ()
    return tuple(sorted(set(_claims_made(customer))))


def owned_numbers(customer: Customer) -> tuple[str, ...]:
    """The numbers that the customer owns now, E.164: the primary one first, contacts' last."""
    if customer.state is not State.ACTIVE:
        return ()
    own = sorted(customer.phone_numbers, key=lambda number: not number.primary)
    others = [number for contact in customer.contacts for number in contact.phone_numbers]
    return tuple(dict.fromkeys(number.number for number in [*own, *others]))


def recorded_numbers(customer: Customer) -> tuple[str, ...]:
    """The numbers that stand in the customer's record, whether it owns them or not, E.164."""
    return owned_numbers(replace(customer, state=State.ACTIVE))


def owned_emails(customer: Customer) -> tuple[str, ...]:
    """The e-mail addresses that the customer owns now: the primary one first, contacts' last."""
    if customer.state is not State.ACTIVE:
        return ()
    own = sorted(customer.email_addresses, key=lambda email: not email.primary)
    others = [email for contact in customer.contacts for email in contact.email_addresses]
    return tuple(dict.fromkeys(email.address for email in [*own, *others]))


def claim_taken(customer: Customer, owners: Mapping[str, str]) -> ClaimTaken | None:
    """The error when any claim belongs to another customer; `owners` maps claims to customers' ids."""
    for path, claim in claim_paths(customer):
        owner = owners.get(claim)
        if owner is not None and owner != customer.id:
            return ClaimTaken(field=path, owner=f"customers/{owner}")
    return None


#: What creating a customer is called in its audit trail.
CREATE = "CREATE"
#: What a customer was before it was created.
_NOBODY = Customer()


_FIELDS = tuple(f.name for f in fields(Customer))
_FIELD_SET = frozenset(_FIELDS)
_values_of = attrgetter(*_FIELDS)
# The slots themselves: a frozen object's own `__setattr__` refuses, `object`'s looks each one up again.
_SLOTS = tuple(getattr(Customer, name).__set__ for name in _FIELDS)


def evolved(customer: Customer, **changes: Any) -> Customer:
    """`dataclasses.replace`, which takes ten times as long for something with so many fields; twice a row of
    an import. TypeError for a field that a customer does not have.
    """
    if not changes.keys() <= _FIELD_SET:
        raise TypeError(f"a customer has no {sorted(changes.keys() - _FIELD_SET)}")
    values = dict(zip(_FIELDS, _values_of(customer), strict=True))
    values.update(changes)
    new = object.__new__(Customer)
    for put, value in zip(_SLOTS, values.values(), strict=True):
        put(new, value)
    return new


def birth(actor: str, now: datetime) -> dict[str, Any]:
    """What the service says of a customer's first version."""
    return {
        "state": State.ACTIVE,
        "version": 1,
        "create_time": now,
        "update_time": now,
        "creator": actor,
        "updater": actor,
    }


def create(customer: Customer, id: str, actor: str, now: datetime) -> Change:
    """The first version of a normalised customer."""
    born = evolved(customer, id=id, **birth(actor, now))
    changes = tuple(FieldChange(field=name, old=old, new=new) for name, old, new in first_values(born))
    audit = AuditEntry(version=1, actor=actor, action=CREATE, time=now, changes=changes)
    return Change(customer=born, audit=audit)


def update(current: Customer, desired: Customer, actor: str, now: datetime) -> Change | None:
    """The next version with what callers may write taken from `desired` (normalised); None when nothing
    differs (rule 3).

    CustomerNotActive for a customer that does not live. The kind cannot change: InvalidArgument.
    """
    require_active(current)
    if desired.kind is not current.kind:
        raise InvalidArgument(field="customer.kind", why="cannot be changed")
    wanted = {name: getattr(desired, name) for name in WRITABLE}
    changed = _next(replace(current, **wanted), actor, now)
    change = _change(current, changed, "UPDATE", actor, now)
    return change if change.audit.changes else None


def delete(current: Customer, actor: str, now: datetime) -> Change | None:
    """Softly deleted; None when it is already. CustomerNotActive for an erased or merged one."""
    if current.state is State.DELETED:
        return None
    require_active(current)
    gone = _next(replace(current, state=State.DELETED, delete_time=now), actor, now)
    return _change(current, gone, "DELETE", actor, now)


def undelete(current: Customer, actor: str, now: datetime) -> Change:
    """Live again with its claims. CustomerNotDeleted unless it is deleted."""
    if current.state is not State.DELETED:
        raise CustomerNotDeleted(subject=current.name, why=f"is {current.state}, not DELETED")
    back = _next(replace(current, state=State.ACTIVE, delete_time=None), actor, now)
    return _change(current, back, "UNDELETE", actor, now)


def decide_consent(current: Customer, decision: Consent, actor: str, now: datetime) -> Change | None:
    """With a decision about consent; None when a later one is known. CustomerNotActive, InvalidArgument."""
    require_active(current)
    problems = Problems()
    if decision.channel is Channel.NONE:
        problems.add("consent.channel", "must be set")
    if not decision.purpose:
        problems.add("consent.purpose", "must be set")
    evidence = problems.text("consent.evidence", decision.evidence, most=consent.EVIDENCE_CHARACTERS_MAX)
    if decision.expires_ms is not None and decision.expires_ms <= decision.decided_ms:
        problems.add("consent.expire_time", "must lie after decide_time")
    problems.raise_if_any()
    decided = consent.with_decision(current, replace(decision, evidence=evidence, recorder=actor))
    if decided is current:
        return None
    return _change(current, _next(decided, actor, now), "CONSENT", actor, now)


def erase(current: Customer, reason: str, actor: str, now: datetime) -> Change | None:
    """The stub that remains of a customer: who, when and why; None when it is erased already.

    CustomerNotActive for one that was merged away: its survivor is to be erased, and takes it along.
    """
    if current.state is State.ERASED:
        return None
    if current.state is State.MERGED:
        raise CustomerNotActive(subject=current.name, why=f"is merged into customers/{current.merged_into}")
    return erase_stub(current, reason, actor, now)


def erase_stub(current: Customer, reason: str, actor: str, now: datetime) -> Change:
    """What remains of a customer whatever its state."""
    stub = Customer(
        id=current.id,
        kind=current.kind,
        state=State.ERASED,
        version=current.version + 1,
        create_time=current.create_time,
        update_time=now,
        delete_time=now,
        creator=current.creator,
        updater=actor,
        merged_into=current.merged_into,
    )
    gone = [
        FieldChange(field=name)
        for name in (*WRITABLE, "consents")
        if getattr(current, name) != getattr(stub, name)
    ]
    why = FieldChange(field="reason", new=json.dumps(reason, ensure_ascii=False))
    audit = AuditEntry(version=stub.version, actor=actor, action="ERASE", time=now, changes=(*gone, why))
    return Change(customer=stub, audit=audit, released=owned_numbers(current))


def merged_away(current: Customer, survivor: str, actor: str, now: datetime) -> Change:
    """Taken over by `survivor`: it owns nothing, and keeps everything that was its own for the way back."""
    require_active(current)
    gone = replace(current, state=State.MERGED, merged_into=survivor, delete_time=now)
    return _change(current, _next(gone, actor, now), "MERGE", actor, now)


def given_back(current: Customer, desired: Customer, actor: str, now: datetime) -> Change:
    """A merged customer alive again, `desired` being it without what others have taken meanwhile."""
    back = replace(desired, state=State.ACTIVE, merged_into="", delete_time=None)
    return _change(current, _next(back, actor, now), "UNMERGE", actor, now)


def enriched(current: Customer, desired: Customer, action: str, actor: str, now: datetime) -> Change | None:
    """A survivor with what a merge adds or takes; None when that is nothing."""
    if desired == current:
        return None
    return _change(current, _next(desired, actor, now), action, actor, now)


def require_active(customer: Customer) -> None:
    """CustomerNotActive for one that does not live."""
    if customer.state is not State.ACTIVE:
        raise CustomerNotActive(subject=customer.name, why=f"is {customer.state}")


def _next(customer: Customer, actor: str, now: datetime) -> Customer:
    return replace(customer, version=customer.version + 1, update_time=now, updater=actor)


def _change(before: Customer, after: Customer, action: str, actor: str, now: datetime) -> Change:
    kept = set(owned_numbers(after))
    released = tuple(number for number in owned_numbers(before) if number not in kept)
    return Change(customer=after, audit=_audit(after, before, action, actor, now), released=released)


_AUDITED = (*WRITABLE, "consents", "state", "merged_into")
_audited_of = attrgetter(*_AUDITED)
_audited_of_nobody = _audited_of(_NOBODY)


def first_values(born: Customer) -> list[tuple[str, str, str]]:
    """(field, JSON before, JSON after) of everything that makes a new customer another than nobody."""
    names: list[tuple[str, Any]] = []
    values: list[Any] = []
    for name, old, new in zip(_AUDITED, _audited_of_nobody, _audited_of(born), strict=True):
        if old is not new and old != new:
            names.append((name, old))
            values.append(new)
    told = plain.json_texts(values)
    return [
        (name, _value_json(old) if old else "", text[:AUDIT_VALUE_CHARACTERS_MAX])
        for (name, old), text in zip(names, told, strict=True)
    ]


def _audit(after: Customer, before: Customer, action: str, actor: str, now: datetime) -> AuditEntry:
    changes = []
    for name, old, new in zip(_AUDITED, _audited_of(before), _audited_of(after), strict=True):
        if old is not new and old != new:
            changes.append(FieldChange(field=name, old=_value_json(old), new=_value_json(new)))
    return AuditEntry(version=after.version, actor=actor, action=action, time=now, changes=tuple(changes))


def _value_json(value: Any) -> str:
    if value in ("", (), None, {}):
        return ""
    return plain.json_text(value)[:AUDIT_VALUE_CHARACTERS_MAX]
