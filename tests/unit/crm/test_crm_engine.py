"""Decisions about one customer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from chassis.errors import InvalidArgument
from crm import engine
from crm.model import (
    BirthDate,
    Contact,
    Customer,
    EmailAddress,
    ExternalId,
    Kind,
    PhoneNumber,
    PostalAddress,
    QuietWindow,
    State,
    Tier,
)

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
TODAY = NOW.date()


def normal(draft: Customer) -> Customer:
    return engine.normalise(draft, "CN", TODAY)


def li(**more: object) -> Customer:
    draft = Customer(
        display_name="李伟",
        phone_numbers=(
            PhoneNumber(number="138 0000 0001"),
            PhoneNumber(number="+86 10 6552 9988", label="办公室"),
        ),
        email_addresses=(EmailAddress(address="Li@Example.COM"),),
        external_ids=(ExternalId(system="billing", id="4711"),),
    )  # fmt: skip
    return replace(draft, **more)  # type: ignore[arg-type]


def born(**more: object) -> Customer:
    return engine.create(normal(li(**more)), "c1", "amy", NOW).customer


def faults(draft: Customer) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        normal(draft)
    return {v.field: v.description for v in caught.value.details.field_violations}


def test_what_is_written_is_normalised() -> None:
    done = normal(li(language="ZH-hans-cn", tags=(" vip ", "vip", "新客户"), time_zone="Asia/Shanghai"))
    assert [n.number for n in done.phone_numbers] == ["+8613800000001", "+861065529988"]
    assert [n.primary for n in done.phone_numbers] == [True, False]
    assert done.email_addresses[0].address == "Li@example.com"
    assert done.language == "zh-Hans-CN"
    assert done.tags == ("vip", "新客户")


def test_normalising_twice_changes_nothing() -> None:
    once = normal(li(tags=("b", "a"), language="EN-us"))
    assert normal(once) == once


def test_every_fault_is_told_at_once_by_its_field() -> None:
    bad = Customer(
        display_name=" ",
        phone_numbers=tuple(PhoneNumber(number=n) for n in ("12", "13800000001", "+8613800000001")),
        email_addresses=(EmailAddress(address="nobody"),),
        external_ids=(ExternalId(system="Bad System", id="1"),),
        addresses=(PostalAddress(country="XX", latitude=91.0, longitude=0.0),),
        language="chinese!",
        time_zone="Mars/Olympus",
        home_region="beijing",
        tags=("",),
        birth_date=BirthDate(year=2025, month=2, day=29),
        quiet_windows=(QuietWindow(weekdays=(8,), start_minute=1440, end_minute=0),),
        custom_values={"colour": "red"},
    )  # fmt: skip
    assert faults(bad).keys() == {
        "customer.display_name",
        "customer.phone_numbers[0].number",
        "customer.email_addresses[0].address",
        "customer.external_ids[0].system",
        "customer.addresses[0].country",
        "customer.addresses[0].location",
        "customer.language",
        "customer.time_zone",
        "customer.home_region",
        "customer.tags[0]",
        "customer.birth_date",
        "customer.quiet_windows[0].weekdays",
        "customer.quiet_windows[0].start_minute",
        "customer.quiet_windows[0].end_minute",
        "customer.custom_values.colour",
        "customer.phone_numbers[1].number",
    }


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"display_name": "x" * 201}, "customer.display_name"),
        ({"display_name": "a\x00b"}, "customer.display_name"),
        ({"notes": "n" * 10_001}, "customer.notes"),
        ({"notes": "é" * 10_000_000}, "customer.notes"),
        ({"tags": tuple(str(i) for i in range(51))}, "customer.tags"),
        ({"tags": ("x" * 65,)}, "customer.tags[0]"),
        ({"phone_numbers": (PhoneNumber(number="+1415555000"),) * 21}, "customer.phone_numbers"),
        ({"company": "c1", "id": "c1"}, "customer.company"),
        ({"birth_date": BirthDate(year=2027, month=1, day=1)}, "customer.birth_date"),
        ({"birth_date": BirthDate(year=1, month=1, day=1)}, "customer.birth_date"),
        ({"kind": Kind.COMPANY, "company": "c2"}, "customer.company"),
        ({"contacts": (Contact(display_name="A"),)}, "customer.contacts"),
    ],
)
def test_a_limit_that_is_passed_names_its_field(more: dict[str, object], field: str) -> None:
    assert field in faults(li(**more))


def test_a_number_twice_in_one_customer_is_refused_wherever_it_stands() -> None:
    contact = Contact(display_name="Wu", phone_numbers=(PhoneNumber(number="013800000001"),))
    company = li(kind=Kind.COMPANY, contacts=(contact,))
    assert faults(company) == {
        "customer.contacts[0].phone_numbers[0].number": "repeats customer.phone_numbers[0].number"
    }


def test_two_primary_numbers_are_refused() -> None:
    two = (PhoneNumber(number="13800000001", primary=True), PhoneNumber(number="13800000002", primary=True))
    assert "customer.phone_numbers[1].primary" in faults(li(phone_numbers=two))


def test_a_birthday_may_stand_without_its_year() -> None:
    assert normal(li(birth_date=BirthDate(month=2, day=29))).birth_date == BirthDate(month=2, day=29)
    assert normal(li(birth_date=BirthDate())).birth_date is None
    assert engine.normalise(li(birth_date=BirthDate(year=2026, month=3, day=2)), "CN", date(2026, 3, 2))


def test_a_creation_is_version_one_with_an_audit_entry() -> None:
    change = engine.create(normal(li()), "c1", "amy", NOW)
    assert (change.customer.version, change.customer.creator, change.customer.state) == (
        1,
        "amy",
        State.ACTIVE,
    )
    assert change.audit.action == "CREATE" and change.audit.actor == "amy" and change.audit.version == 1
    assert set(change.changed_fields) == {
        "display_name",
        "phone_numbers",
        "email_addresses",
        "external_ids",
    }


def test_a_live_customer_owns_its_claims_and_a_deleted_one_none() -> None:
    customer = born()
    assert engine.claims(customer) == (
        "ext:billing:4711",
        "mail:li@example.com",
        "tel:+861065529988",
        "tel:+8613800000001",
    )
    deleted = engine.delete(customer, "bob", NOW)
    assert deleted is not None
    assert engine.claims(deleted.customer) == () and engine.owned_numbers(deleted.customer) == ()
    assert deleted.released == ("+8613800000001", "+861065529988")
    assert deleted.customer.delete_time == NOW


def test_an_update_takes_what_callers_may_write_and_says_what_changed() -> None:
    customer = born()
    later = NOW + timedelta(hours=1)
    wanted = replace(
        customer, tier=Tier.VIP, phone_numbers=customer.phone_numbers[:1], creator="mallory", version=99
    )
    change = engine.update(customer, wanted, "bob", later)
    assert change is not None
    assert change.changed_fields == ("phone_numbers", "tier")
    assert change.released == ("+861065529988",)
    assert (change.customer.version, change.customer.creator, change.customer.updater) == (2, "amy", "bob")
    assert change.customer.update_time == later
    tier = next(c for c in change.audit.changes if c.field == "tier")
    assert (tier.old, tier.new) == ('"STANDARD"', '"VIP"')


def test_an_update_that_changes_nothing_is_no_change() -> None:
    customer = born()
    assert engine.update(customer, customer, "bob", NOW) is None


def test_deleting_twice_is_harmless_and_undeleting_gives_everything_back() -> None:
    customer = born()
    deleted = engine.delete(customer, "bob", NOW)
    assert deleted is not None
    assert engine.delete(deleted.customer, "bob", NOW) is None
    back = engine.undelete(deleted.customer, "bob", NOW)
    assert engine.claims(back.customer) == engine.claims(customer)
    assert back.customer.version == 3 and back.customer.delete_time is None
    with pytest.raises(engine.CustomerNotDeleted):
        engine.undelete(back.customer, "bob", NOW)


@pytest.mark.parametrize("state", [State.DELETED, State.ERASED, State.MERGED])
def test_a_customer_that_does_not_live_is_not_changed(state: State) -> None:
    gone = replace(born(), state=state)
    with pytest.raises(engine.CustomerNotActive) as caught:
        engine.update(gone, replace(gone, tier=Tier.VIP), "bob", NOW)
    assert caught.value.details.precondition_violations[0].subject == "customers/c1"


def test_the_kind_is_fixed() -> None:
    with pytest.raises(InvalidArgument, match="kind"):
        engine.update(born(), replace(born(), kind=Kind.COMPANY), "bob", NOW)


def test_a_taken_claim_names_the_field_and_the_owner() -> None:
    error = engine.claim_taken(born(), {"tel:+861065529988": "c9", "mail:li@example.com": "c1"})
    assert error is not None
    assert error.values["field"] == "customer.phone_numbers[1].number"
    assert error.details.metadata["owner"] == "customers/c9"
    assert "customers/c9" in error.message
    assert engine.claim_taken(born(), {"mail:li@example.com": "c1"}) is None


def test_an_audit_value_is_cut() -> None:
    change = engine.create(normal(li(notes="n" * 9_000)), "c1", "amy", NOW)
    notes = next(c for c in change.audit.changes if c.field == "notes")
    assert len(notes.new) == engine.AUDIT_VALUE_CHARACTERS_MAX
