"""What a merge gives a survivor and what its undoing takes back. Pure.

1. The absorbed customer's record stays as it was, in state MERGED: it owns nothing while it is merged, and
   everything it ever said of itself is there for the way back.
2. The survivor gets what it lacks: claims, addresses, tags, contacts, values; of two decisions about consent
   the later one. What it has, it keeps. A *gain* says exactly what it got, and is journaled before it is
   applied.
3. Applying a gain twice changes nothing the second time; taking it back removes only what is still as it
   came, so what people changed since stays with the survivor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from chassis.errors import FailedPrecondition, InvalidArgument
from crm import consent, engine, identity, schema
from crm.model import Contact, Customer, Gain, Merge, MergeState, State

ABSORBED_MAX = 20
REASON_CHARACTERS_MAX = 500
#: Texts and values that a survivor takes over when it has none.
_SINGLE = (
    *("given_name", "family_name", "language", "time_zone", "home_region", "account_manager"),
    *("value_class", "birth_date", "company"),
)
#: Lists of which a survivor takes over what it lacks, with their bounds.
_LISTS: Mapping[str, int] = {
    "phone_numbers": engine.NUMBERS_MAX,
    "email_addresses": engine.EMAILS_MAX,
    "external_ids": engine.EXTERNAL_IDS_MAX,
    "addresses": engine.ADDRESSES_MAX,
    "tags": engine.TAGS_MAX,
    "contacts": engine.CONTACTS_MAX,
    "quiet_windows": engine.QUIET_WINDOWS_MAX,
}
#: What of a survivor must stay within bounds: beyond them it could not be changed any more.
_BOUNDS: Mapping[str, int] = {**_LISTS, "custom_values": schema.VALUES_MAX}
_CLAIMED = ("phone_numbers", "email_addresses", "external_ids")
#: Has nothing of anything.
_NOBODY = Customer()


class CustomerMerged(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CUSTOMER_MERGED"


class MergeRunning(FailedPrecondition):
    """{subject}: {why}."""

    reason = "MERGE_RUNNING"


class MergeNotLast(FailedPrecondition):
    """{subject}: {why}."""

    reason = "MERGE_NOT_LAST"


def check_parties(survivor: str, absorbed: tuple[str, ...], reason: str) -> None:
    """InvalidArgument for nobody or too many, a cycle or a repetition, or a reason too long."""
    problems = engine.Problems()
    if not 1 <= len(absorbed) <= ABSORBED_MAX:
        problems.add("absorbed", f"must hold 1 to {ABSORBED_MAX}, got {len(absorbed)}")
    for index, id in enumerate(absorbed[:ABSORBED_MAX]):
        if id == survivor:
            problems.add(f"absorbed[{index}]", "is the survivor itself")
        if id in absorbed[:index]:
            problems.add(f"absorbed[{index}]", "repeats another")
    problems.text("reason", reason, most=REASON_CHARACTERS_MAX)
    problems.raise_if_any()


def check_mergeable(survivor: Customer, absorbed: Iterable[Customer]) -> None:
    """CustomerMerged, CustomerNotActive, or InvalidArgument for another kind or too much for one record."""
    whole = survivor
    for index, customer in enumerate((survivor, *absorbed)):
        field = "survivor" if index == 0 else f"absorbed[{index - 1}]"
        if customer.state is State.MERGED:
            raise CustomerMerged(
                subject=customer.name, why=f"is merged into customers/{customer.merged_into} already"
            )
        if customer.state is not State.ACTIVE:
            raise engine.CustomerNotActive(subject=customer.name, why=f"is {customer.state}")
        if customer.kind is not survivor.kind:
            raise InvalidArgument(field=field, why=f"is a {customer.kind}, the survivor a {survivor.kind}")
        if index:
            whole = with_gain(whole, gain(whole, customer))
            for name, most in _BOUNDS.items():
                if len(getattr(whole, name)) > most:
                    raise InvalidArgument(
                        field=field, why=f"would give the survivor more than {most} {name.replace('_', ' ')}"
                    )


def gain(survivor: Customer, absorbed: Customer) -> Gain:
    """What the survivor would get (rule 2)."""
    added: dict[str, Any] = {name: _lacking(survivor, absorbed, name) for name in _LISTS}
    for name in _SINGLE:
        value = getattr(absorbed, name)
        if value and not getattr(survivor, name) and not (name == "company" and value == survivor.id):
            added[name] = value
    if absorbed.notes and absorbed.notes not in survivor.notes:
        joined = len(survivor.notes) + len(absorbed.notes) + 2
        added["notes"] = absorbed.notes if joined <= engine.NOTES_CHARACTERS_MAX else ""
    added["custom_values"] = {
        key: value for key, value in absorbed.custom_values.items() if key not in survivor.custom_values
    }
    later = consent_gain(survivor, absorbed)
    keys = {(c.channel, c.purpose) for c in later}
    before = tuple(c for c in survivor.consents if (c.channel, c.purpose) in keys)
    draft = Customer(id=absorbed.id, kind=absorbed.kind, display_name=absorbed.display_name)
    return Gain(customer=absorbed.id, added=replace(draft, **added, consents=later), consents_before=before)


def consent_gain(survivor: Customer, absorbed: Customer) -> tuple[Any, ...]:
    """The absorbed customer's decisions that are later than the survivor's own."""
    return tuple(
        decision
        for decision in absorbed.consents
        if consent.with_decision(survivor, decision) is not survivor
    )


def _lacking(survivor: Customer, absorbed: Customer, name: str) -> tuple[Any, ...]:
    have = {key_of(name, item) for item in getattr(survivor, name)}
    found = [item for item in getattr(absorbed, name) if key_of(name, item) not in have]
    # The survivor's own stays the first to call or write to.
    return tuple(replace(i, primary=False) if hasattr(i, "primary") else i for i in found)


def key_of(name: str, item: Any) -> Any:
    """What makes two items of a customer's list `name` the same."""
    if name == "phone_numbers":
        return identity.claim_of_number(item.number)
    if name == "email_addresses":
        return identity.claim_of_email(item.address)
    if name == "external_ids":
        return identity.claim_of_external(item.system, item.id)
    if isinstance(item, Contact):
        return item.display_name, item.phone_numbers, item.email_addresses
    return item


def with_gain(survivor: Customer, got: Gain) -> Customer:
    """The survivor with a gain (rule 3)."""
    wanted: dict[str, Any] = {}
    for name in _LISTS:
        have = {key_of(name, item) for item in getattr(survivor, name)}
        more = [item for item in getattr(got.added, name) if key_of(name, item) not in have]
        wanted[name] = _with_primary((*getattr(survivor, name), *more))
    wanted["tags"] = tuple(sorted(wanted["tags"]))
    for name in _SINGLE:
        wanted[name] = getattr(survivor, name) or getattr(got.added, name)
    if got.added.notes and got.added.notes not in survivor.notes:
        wanted["notes"] = "\n\n".join(filter(None, (survivor.notes, got.added.notes)))
    wanted["custom_values"] = {**got.added.custom_values, **survivor.custom_values}
    whole = replace(survivor, **wanted)
    for decision in got.added.consents:
        whole = consent.with_decision(whole, decision)
    return whole


def without_gain(survivor: Customer, got: Gain) -> Customer:
    """The survivor without what is left of a gain as it came (rule 3)."""
    wanted: dict[str, Any] = {}
    for name in _LISTS:
        gone = {key_of(name, item) for item in getattr(got.added, name)}
        kept = tuple(item for item in getattr(survivor, name) if key_of(name, item) not in gone)
        wanted[name] = _with_primary(kept)
    for name in _SINGLE:
        value = getattr(got.added, name)
        if value and getattr(survivor, name) == value:
            wanted[name] = getattr(_NOBODY, name)
    if got.added.notes:
        wanted["notes"] = _without_notes(survivor.notes, got.added.notes)
    wanted["custom_values"] = {
        key: value
        for key, value in survivor.custom_values.items()
        if key not in got.added.custom_values or got.added.custom_values[key] != value
    }
    ours = [c for c in survivor.consents if c not in got.added.consents]
    whole = replace(survivor, **wanted, consents=tuple(ours))
    for decision in got.consents_before:
        whole = consent.with_decision(whole, decision)
    return whole


def _with_primary(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of which one is the first to call or write to, if it is of such."""
    if not items or not hasattr(items[0], "primary") or any(item.primary for item in items):
        return items
    return (replace(items[0], primary=True), *items[1:])


def _without_notes(notes: str, block: str) -> str:
    if notes == block:
        return ""
    return notes.removesuffix("\n\n" + block) if notes.endswith("\n\n" + block) else notes


def without_claims(customer: Customer, claims: Iterable[str]) -> Customer:
    """The customer without numbers, addresses and ids that others own meanwhile."""
    taken = set(claims)
    wanted: dict[str, Any] = {}
    for name in _CLAIMED:
        kept = tuple(item for item in getattr(customer, name) if key_of(name, item) not in taken)
        wanted[name] = _with_primary(kept)
    contacts = []
    for contact in customer.contacts:
        numbers = tuple(n for n in contact.phone_numbers if key_of("phone_numbers", n) not in taken)
        emails = tuple(e for e in contact.email_addresses if key_of("email_addresses", e) not in taken)
        ways: dict[str, Any] = {
            "phone_numbers": _with_primary(numbers),
            "email_addresses": _with_primary(emails),
        }
        contacts.append(replace(contact, **ways))
    done = replace(customer, **wanted, contacts=tuple(contacts))
    return customer if done == customer else done


def journaled(merge: Merge, got: Gain) -> Merge:
    """The merge with one customer's gain noted, in place of an earlier note."""
    others = tuple(g for g in merge.gains if g.customer != got.customer)
    return replace(merge, gains=(*others, got))


def unjournaled(merge: Merge, customer: str) -> Merge:
    """The merge without the note of what one customer was to give: it never came to that."""
    return replace(merge, gains=tuple(g for g in merge.gains if g.customer != customer))


def gain_of(merge: Merge, customer: str) -> Gain | None:
    """What the survivor got of a customer; None when it never came to that."""
    return next((g for g in merge.gains if g.customer == customer), None)


def check_undoable(merge: Merge, later: Iterable[Merge]) -> None:
    """MergeNotLast when a later merge of the survivor still stands, MergeRunning while it runs."""
    if merge.state is MergeState.MERGING:
        raise MergeRunning(subject=merge.name, why="is still running")
    for other in later:
        if other.id != merge.id and other.state in (MergeState.MERGING, MergeState.MERGED):
            raise MergeNotLast(subject=merge.name, why=f"undo {other.name} first")
