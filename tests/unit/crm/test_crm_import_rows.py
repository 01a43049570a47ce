"""Rows of files are decided the short way; what comes out is what the long way makes."""

from __future__ import annotations

import enum
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import Any

import bson
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from crm import documents, import_store, plain
from crm.handlers import Create, Customers, Policy
from crm.memory_store import MemoryStore
from crm.model import (
    BirthDate,
    Channel,
    Consent,
    Contact,
    Customer,
    CustomField,
    EmailAddress,
    ExternalId,
    FieldKind,
    Kind,
    PhoneNumber,
    PostalAddress,
    Purpose,
    QuietWindow,
    State,
    Tier,
    ValueClass,
)

TEXT = st.one_of(
    st.sampled_from(["", "", "李小明", "Anna  Maria", ' "q"\\ ', "a\u2028b", "é"]), st.text(max_size=4)
)
FLAG = st.booleans()
NUMBER = st.builds(
    PhoneNumber,
    number=st.sampled_from(["13812345678", "+8613912345678", "010 6552 9988", "0044 20 7946 0018", "12"]),
    label=TEXT,
    primary=FLAG,
    verified=FLAG,
)
EMAIL = st.builds(
    EmailAddress,
    address=st.sampled_from(["li@example.com", "Li@Example.COM", "ü@exämple.net", "no"]),
    label=TEXT,
    primary=FLAG,
)
FEW: dict[str, int] = {"max_size": 2}
DRAFT = st.builds(
    Customer,
    kind=st.sampled_from(Kind),
    display_name=st.one_of(st.just("王小明"), TEXT),
    given_name=TEXT,
    family_name=TEXT,
    phone_numbers=st.lists(NUMBER, **FEW).map(tuple),
    email_addresses=st.lists(EMAIL, **FEW).map(tuple),
    external_ids=st.lists(
        st.builds(ExternalId, system=st.just("billing"), id=st.sampled_from(["1", "x y"])), **FEW
    ).map(tuple),
    addresses=st.lists(
        st.builds(
            PostalAddress,
            country=st.sampled_from(["", "cn", "CN"]),
            city=TEXT,
            street=TEXT,
            latitude=st.sampled_from([None, 0.0, 31.5]),
            longitude=st.sampled_from([None, 0.0, 121.5]),
        ),
        **FEW,
    ).map(tuple),
    tier=st.sampled_from(Tier),
    language=st.sampled_from(["", "zh-cn", "EN"]),
    time_zone=st.sampled_from(["", "Asia/Shanghai"]),
    tags=st.lists(st.sampled_from(["a", "b", "宽带"]), max_size=3).map(tuple),
    account_manager=TEXT,
    value_class=st.sampled_from(ValueClass),
    birth_date=st.sampled_from([None, BirthDate(month=2, day=29), BirthDate(year=1990, month=3, day=4)]),
    notes=TEXT,
    custom_values=st.sampled_from(
        [
            {},
            {"colour": "red"},
            {"born": BirthDate(year=2000, month=1, day=1)},
            {"likes": ("a", "b"), "size": 0.0},
        ]
    ),
    contacts=st.lists(
        st.builds(
            Contact,
            display_name=st.just("Wu"),
            role=TEXT,
            phone_numbers=st.lists(NUMBER, max_size=1).map(tuple),
        ),
        max_size=1,
    ).map(tuple),
    quiet_windows=st.sampled_from(
        [(), (QuietWindow(weekdays=(7, 1), start_minute=0, end_minute=60, channels=(Channel.SMS,)),)]
    ),
)


def declaring() -> MemoryStore:
    """A store with a custom field of each sort."""
    store = MemoryStore()
    for id, kind in {"colour": FieldKind.TEXT, "born": FieldKind.DATE, "size": FieldKind.NUMBER}.items():
        store.insert_custom_field(CustomField(id=id, label=id, kind=kind))
    store.insert_custom_field(
        CustomField(id="likes", label="likes", kind=FieldKind.CHOICES, choices=("a", "b", "c"))
    )
    return store


@settings(max_examples=80, deadline=None)
@given(DRAFT)
def test_a_row_decided_fast_is_the_row_decided_slowly(draft: Customer) -> None:
    customers = Customers(declaring(), FakeClock(), Policy())
    occasion = customers.occasion("amy", "CN")
    wanted = Create(draft=draft, id="c1", default_country="CN", origin="i1:7")
    try:
        slow = customers.decide(wanted, "amy")
    except InvalidArgument as error:
        slow, fault = None, error.details
    try:
        fast = customers.ready(draft, "c1", "i1:7", occasion)
    except InvalidArgument as error:
        assert slow is None and error.details == fault
        return
    assert slow is not None
    document = import_store.ready_document(slow)
    [told] = document.pop("outbox")
    document.pop("outbox_since")
    ready = import_store.MongoImportStore().ready(fast.kept)
    assert bson.decode(ready.kept) == bson.decode(bson.encode(document))
    assert {"id": import_store.event_id(ready.origin), "event": ready.told} == told
    assert (ready.id, ready.origin) == ("c1", "i1:7")


def pruned(value: Any) -> Any:
    """An object without what is as by default, inside too: in so many words."""
    if is_dataclass(value):
        items = ((f.name, getattr(value, f.name), f.default) for f in fields(value))
        return {name: pruned(own) for name, own, default in items if own != default}
    if isinstance(value, tuple):
        return [pruned(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


CONSENTS = st.builds(
    Consent,
    channel=st.sampled_from(Channel),
    purpose=st.sampled_from(Purpose),
    granted=FLAG,
    expires_ms=st.sampled_from([None, 0, 2**40]),
)


@settings(max_examples=40, deadline=None)
@given(DRAFT, st.lists(CONSENTS, max_size=2).map(tuple), st.sampled_from(State))
def test_what_is_stored_of_a_customer_is_what_is_not_as_by_default(
    draft: Customer, consents: tuple[Consent, ...], state: State
) -> None:
    customer = replace(
        draft, consents=consents, state=state, id="c1", version=3, create_time=datetime.now(UTC)
    )
    stored = documents.customer_present(customer)
    for name in ("claims", "terms", "birthday", "custom_values"):
        stored.pop(name, None)
    wanted = pruned(customer)
    for name in ("id", "version", "create_time", "custom_values"):
        wanted.pop(name, None)
    assert stored == {"kind": draft.kind.value, "tier": draft.tier.value, "state": state.value, **wanted}
    assert (
        documents.customer_from_raw({"_id": "c1", **documents.customer_present(customer)}).contacts
        == draft.contacts
    )


@settings(max_examples=40)
@given(st.lists(st.one_of(st.text(), st.integers(), st.lists(st.text(), max_size=2)), max_size=4))
def test_the_json_of_several_values_is_that_of_each(values: list[Any]) -> None:
    assert plain.json_texts(values) == [plain.json_text(value) for value in values]
