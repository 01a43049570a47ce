"""What callers may send and should not: refused with the field's name, or kept as it can be read again; never
half-written, never an error of ours.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import CallmeshError, InvalidArgument
from chassis.testing import FakeClock
from crm import search, store
from crm.handlers import Create, Customers, Policy
from crm.memory_store import MemoryStore
from crm.model import (
    Customer,
    CustomerFilter,
    EmailAddress,
    ExternalId,
    PhoneNumber,
    PostalAddress,
    TimelineFilter,
)
from crm.sagas import Merges, MergeWish

A, B = "+8613800000001", "+8613800000002"


def number(text: str) -> Customer:
    return Customer(display_name="x", phone_numbers=(PhoneNumber(number=text),))


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (number("12"), "customer.phone_numbers[0].number"),
        (number("1380000000x"), "customer.phone_numbers[0].number"),
        (number("{$ne: 1}"), "customer.phone_numbers[0].number"),
        (number("9" * 10_000), "customer.phone_numbers[0].number"),
        (number("\u202e13800000009" + "\u0661" * 20), "customer.phone_numbers[0].number"),
        (number(A), "customer.phone_numbers[0].number"),
        (Customer(display_name=""), "customer.display_name"),
        (Customer(display_name="\u200b\u200b"), "customer.display_name"),
        (Customer(display_name="a\x00b"), "customer.display_name"),
        (Customer(display_name="\ud800"), "customer.display_name"),
        (Customer(display_name="n" * 201), "customer.display_name"),
        (Customer(display_name="x", notes="é" * 5_000_000), "customer.notes"),
        (Customer(display_name="x", custom_values={"colour": "red"}), "customer.custom_values.colour"),
        (Customer(display_name="x", custom_values={"$where": "1"}), "customer.custom_values.$where"),
        (Customer(display_name="x", tags=("",)), "customer.tags[0]"),
        (Customer(display_name="x", company="nobody"), "customer.company"),
        (
            Customer(display_name="x", external_ids=(ExternalId(system="$gt", id="1"),)),
            "customer.external_ids[0].system",
        ),
        (
            Customer(display_name="x", email_addresses=(EmailAddress(address="a@b@c"),)),
            "customer.email_addresses[0].address",
        ),
        (
            Customer(display_name="x", addresses=(PostalAddress(latitude=91.0, longitude=0.0),)),
            "customer.addresses[0].location",
        ),
        (
            Customer(display_name="x", addresses=(PostalAddress(city="深圳", latitude=22.5),)),
            "customer.addresses[0].location",
        ),
    ],
)
def test_bad_input_names_its_field_and_leaves_nothing(draft: Customer, field: str) -> None:
    kept = MemoryStore()
    customers = Customers(kept, FakeClock(), Policy())
    customers.create(Create(draft=number(A), id="owner"), "amy")
    with pytest.raises(CallmeshError) as caught:
        customers.create(Create(draft=draft, id="new"), "amy")
    named = [violation.field for violation in caught.value.details.field_violations]
    assert field in (named or [caught.value.values["field"]])
    assert kept.existing(["owner", "new"]) == {"owner"} and len(kept.events) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=260), st.text(st.characters(), max_size=40))
def test_any_text_is_kept_as_it_reads_or_refused(name: str, tag: str) -> None:
    kept = MemoryStore()
    customers = Customers(kept, FakeClock(), Policy())
    try:
        made = customers.create(Create(draft=Customer(display_name=name, tags=(tag,)), id="a"), "amy")
    except InvalidArgument as error:
        told = {violation.field for violation in error.details.field_violations}
        assert told and told <= {"customer.display_name", "customer.tags[0]"}
        assert kept.existing(["a"]) == set()
        return
    assert made.display_name == unicodedata.normalize("NFC", name).replace("\r\n", "\n").strip()
    made.display_name.encode()
    # Once more through the same door changes nothing.
    again = customers.create(
        Create(draft=Customer(display_name=made.display_name, tags=made.tags), id="b"), "x"
    )
    assert (again.display_name, again.tags) == (made.display_name, made.tags)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=40))
def test_no_text_in_a_filter_becomes_an_operator(text: str) -> None:
    which = CustomerFilter(tag=text, account_manager=text, company=text, home_region=text)
    queries: list[Any] = [
        store.customer_query(which, text),
        store.timeline_query([text], TimelineFilter(), (1, text)),
        store.calls_query([text], text),
        store.care_query(text),
    ]
    try:
        understood = search.understood(text, "CN")
    except InvalidArgument:
        understood = None
    if understood is not None:
        queries.append(store.search_query(understood.strict, which))
    for query in queries:
        assert operators(query) <= {"$eq", "$gt", "$in", "$lt", "$lte", "$ne", "$or", "$and"}


def operators(query: Any) -> set[str]:
    if isinstance(query, dict):
        own = {key for key in query if key.startswith("$")}
        return own.union(*(operators(value) for value in query.values()))
    if isinstance(query, list):
        return set().union(*map(operators, query)) if query else set()
    return set()


def test_merges_that_cannot_be() -> None:
    kept, clock = MemoryStore(), FakeClock()
    customers, merges = Customers(kept, clock, Policy()), Merges(kept, clock)
    for id, owned in (("a", A), ("b", B)):
        customers.create(Create(draft=number(owned), id=id), "amy")
    merges.request(MergeWish(survivor="a", absorbed=("b",)), "amy")
    before = (kept.customer("a"), kept.customer("b"))
    for survivor, absorbed, reason in (
        ("a", ("a",), "INVALID_ARGUMENT"),
        ("a", ("b",), "CUSTOMER_MERGED"),
        ("b", ("a",), "CUSTOMER_MERGED"),
        ("a", (), "INVALID_ARGUMENT"),
        ("a", ("none",), "NOT_FOUND"),
    ):
        with pytest.raises(CallmeshError) as caught:
            merges.request(MergeWish(survivor=survivor, absorbed=absorbed), "amy")
        assert caught.value.reason == reason, (survivor, absorbed)
    assert (kept.customer("a"), kept.customer("b")) == before
