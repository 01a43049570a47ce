"""Consent, custom fields, search, duplicates, rows, topics, scans and the fast ways: all pure."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callmesh.crm.v1 import transfer_pb2
from callmesh.routing.v1 import menu_events_pb2 as menu_events
from callmesh.tickets.v1 import events_pb2 as tickets_events
from chassis.bus import Event
from chassis.errors import InvalidArgument
from chassis.testing import FakeClock
from crm import (
    care,
    care_handlers,
    churn,
    consent,
    convert,
    engine,
    identity,
    imports,
    insights_servicer,
    rows,
    scan,
    schema,
    search,
    timeline,
    topics,
    transfer_servicer,
    voice,
    webhooks,
)
from crm.care import Rule
from crm.coalesce import Coalescer
from crm.duplicates import compared, probable
from crm.model import (
    BirthDate,
    Channel,
    Consent,
    Contact,
    Customer,
    CustomField,
    EmailAddress,
    ExternalId,
    Fact,
    FieldKind,
    Interaction,
    InteractionKind,
    Kind,
    PhoneNumber,
    PostalAddress,
    Purpose,
    QuietWindow,
    State,
    Tier,
    ValueClass,
)

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def person(id: str = "a", name: str = "王小明", number: str = "+8613812345678", **more: object) -> Customer:
    numbers = (PhoneNumber(number=number),) if number else ()
    return Customer(id=id, display_name=name, phone_numbers=numbers, **more)  # type: ignore[arg-type]


# Consent

DECISIONS = st.builds(
    Consent,
    channel=st.sampled_from([Channel.SMS, Channel.VOICE]),
    purpose=st.sampled_from([Purpose.MARKETING, Purpose.SERVICE]),
    granted=st.booleans(),
    decided_ms=st.integers(0, 5),
)


@settings(max_examples=60)
@given(st.lists(DECISIONS, max_size=6), st.randoms())
def test_decisions_about_consent_may_come_in_any_order(decisions: list[Consent], random: object) -> None:
    def after(order: Sequence[Consent]) -> Customer:
        customer = person()
        for decision in order:
            customer = consent.with_decision(customer, decision)
        return customer

    shuffled = list(decisions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert after(decisions) == after(shuffled) == after([*shuffled, *decisions])


def test_permission_says_why_not_and_when() -> None:
    night = QuietWindow(start_minute=22 * 60, end_minute=8 * 60)
    customer = person(time_zone="Asia/Shanghai", quiet_windows=(night,))
    late = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
    found = consent.permission(customer, Channel.VOICE, Purpose.SERVICE, late, "UTC")
    assert found.reasons == ("QUIET_WINDOW",)
    assert found.next_allowed == datetime(2026, 3, 3, 0, 0, tzinfo=UTC), "eight in Shanghai"
    assert consent.permission(customer, Channel.VOICE, Purpose.SERVICE, NOW, "UTC").allowed
    to_sell = consent.permission(customer, Channel.SMS, Purpose.MARKETING, NOW, "UTC")
    assert to_sell.reasons == ("CONSENT_MISSING",)
    given_ = Consent(channel=Channel.SMS, purpose=Purpose.MARKETING, granted=True, decided_ms=1, expires_ms=2)
    expired = consent.with_decision(customer, given_)
    ended = consent.permission(expired, Channel.SMS, Purpose.MARKETING, NOW, "UTC")
    assert ended.reasons == ("CONSENT_EXPIRED",) and ended.next_allowed is None


# Custom fields


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (FieldKind.TEXT, "蓝", 3.0),
        (FieldKind.NUMBER, 3.5, float("nan")),
        (FieldKind.BOOLEAN, True, "yes"),
        (FieldKind.DATE, BirthDate(year=2020, month=2, day=29), BirthDate(year=2021, month=2, day=29)),
        (FieldKind.CHOICE, "red", "green"),
        (FieldKind.CHOICES, ("red", "blue"), ("red", "green")),
    ],
)
def test_a_value_fits_its_field_or_is_named(kind: FieldKind, good: object, bad: object) -> None:
    field = CustomField(id="x", label="X", kind=kind, choices=("red", "blue"), version=1)
    done = engine.normalise(person(custom_values={"x": good}), "CN", NOW.date(), {"x": field})
    assert done.custom_values == {"x": good}
    for values, why in (({"x": bad}, "customer.custom_values.x"), ({"y": 1.0}, "customer.custom_values.y")):
        with pytest.raises(InvalidArgument) as caught:
            engine.normalise(person(custom_values=values), "CN", NOW.date(), {"x": field})
        assert [v.field for v in caught.value.details.field_violations] == [why]


@pytest.mark.parametrize(
    ("kind", "held", "new"), [(FieldKind.BOOLEAN, True, 1.0), (FieldKind.NUMBER, 1.0, True)]
)
def test_a_value_of_another_type_is_not_the_one_that_was_held(
    kind: FieldKind, held: object, new: object
) -> None:
    field = CustomField(id="x", label="X", kind=kind, version=1)
    with pytest.raises(InvalidArgument):
        engine.normalise(person(custom_values={"x": new}), "CN", NOW.date(), {"x": field}, {"x": held})


def test_retired_and_required_fields() -> None:
    field = CustomField(id="x", label="X", kind=FieldKind.TEXT, required=True, version=1)
    with pytest.raises(InvalidArgument, match="required"):
        engine.normalise(person(), "CN", NOW.date(), {"x": field})
    engine.normalise(person(), "CN", NOW.date(), {"x": field}, {}), "an old customer need not have it"
    gone = schema.retired(field)
    assert gone is not None
    kept = engine.normalise(person(custom_values={"x": "a"}), "CN", NOW.date(), {"x": gone}, {"x": "a"})
    assert kept.custom_values == {"x": "a"}
    with pytest.raises(InvalidArgument, match="retired"):
        engine.normalise(person(custom_values={"x": "b"}), "CN", NOW.date(), {"x": gone}, {"x": "a"})


# Search and duplicates


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ("小明", "display_name"),
        ("王", "display_name"),
        ("5678", "phone_numbers"),
        ("138 1234", "phone_numbers"),
        ("+86 138 1234 5678", "phone_numbers"),
        ("Wang.X", "email_addresses"),
        ("wang.x@ex", "email_addresses"),
        ("b-4711", "external_ids"),
    ],
)
def test_what_people_type_finds_the_customer(typed: str, field: str) -> None:
    customer = person(
        email_addresses=(EmailAddress(address="wang.x@example.com"),),
        external_ids=(ExternalId(system="billing", id="B-4711"),),
    )
    query = search.understood(typed, "CN")
    assert query is not None
    terms = search.terms(customer)
    assert all(any(t.startswith(s) for t in terms for s in group) for group in query.strict), (query, terms)
    match = search.scored(customer, query)
    assert field in match.fields and match.score >= search.SCORE_MIN


@pytest.mark.parametrize(
    ("number", "typed"),
    [
        ("+8613812345678", "138–1234–5678"),
        ("+8613812345678", "（138）12345678"),
        ("+8613812345678", "１３８ 1234 5678"),
        ("+8613812345678", "0086 138 1234"),
        ("+14155552671", "+1 415 555 2671"),
        ("+14155552671", "001 (415) 555"),
        ("+85223456789", "+852 2345 6789"),
        ("+442079460958", "+44 (0)20 7946 0958"),
        ("+390669812345", "+39 06 698 12345"),
        ("+864008008888", "400-800-8888"),
    ],
)
def test_a_number_is_found_in_whatever_form_it_is_typed(number: str, typed: str) -> None:
    customer = person(number=number)
    query = search.understood(typed, "CN")
    assert query is not None
    assert all(any(t.startswith(s) for t in search.terms(customer) for s in group) for group in query.strict)
    match = search.scored(customer, query)
    assert match.fields == ("phone_numbers",) and match.score > 0.8, match


def test_a_company_is_found_however_many_people_it_has() -> None:
    people = tuple(
        Contact(display_name=f"王小明 {n:02}", phone_numbers=(PhoneNumber(number=f"+86139{n:08}"),))
        for n in range(50)
    )
    company = person(name="广东电力", kind=Kind.COMPANY, contacts=people)
    found = search.terms(company)
    assert {"w广东电力", "n13812345678", "f广东电力"} <= set(found) and search.blocks(company)
    assert "n13900000049" in found, "its last contact, too"


def test_duplicates_have_reasons() -> None:
    one = person(birth_date=BirthDate(year=1990, month=2, day=3), number="+8613812345678")
    slip = replace(one, id="b", phone_numbers=(PhoneNumber(number="+8613812345687"),))
    pair = compared(one, slip)
    assert pair.score > 0.9
    assert [(r.field, r.kind) for r in pair.reasons] == [
        ("phone_numbers", "TRANSPOSED"),
        ("display_name", "EXACT"),
        ("birth_date", "EXACT"),
    ]
    stranger = person("c", "赵六", "+8613999999999")
    assert probable(one, [one, slip, stranger], 0.8) == [pair]
    elder = replace(slip, birth_date=BirthDate(year=1960, month=1, day=1))
    assert compared(one, elder).score < pair.score * 0.7, "another birthday speaks against it"
    assert set(search.blocks(one)) & set(search.terms(slip))


NAMES = st.text(alphabet="王李明华 abcXY", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=80)
@given(NAMES, NAMES)
def test_comparing_is_symmetric(first: str, second: str) -> None:
    one, other = person("a", first), person("b", second, "+8613800000000")
    assert compared(one, other).score == compared(other, one).score
    assert compared(one, replace(one, id="b")).score >= compared(one, other).score


# The fast ways say what the slow ones say


@settings(max_examples=150)
@given(st.text(alphabet="0123456789+ 86", max_size=14), st.sampled_from(["CN", "US"]))
def test_a_number_read_fast_is_the_number_read_slowly(text: str, country: str) -> None:
    def read(way: object) -> str:
        try:
            return way(text, country)  # type: ignore[operator, no-any-return]
        except identity.NotIdentifiable as why:
            return f"! {why}"

    assert read(identity.phone_number) == read(identity._read_number)


CREATED = st.builds(
    Customer,
    display_name=st.text(min_size=1, max_size=5),
    tier=st.sampled_from(Tier),
    value_class=st.sampled_from(ValueClass),
    tags=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
    language=st.sampled_from(["", "zh-CN"]),
    email_addresses=st.sampled_from([(), (EmailAddress(address="li@example.net", primary=True),)]),
    phone_numbers=st.just((PhoneNumber(number="+8613800000001", primary=True),)),
    quiet_windows=st.sampled_from([(), (QuietWindow(start_minute=1, end_minute=2),)]),
)


@settings(max_examples=60)
@given(CREATED, st.integers(0, 999_999))
def test_the_event_written_by_hand_is_protobufs(customer: Customer, microseconds: int) -> None:
    change = engine.create(customer, "c1", "amy", NOW.replace(microsecond=microseconds))
    told = Event.from_json(convert.customer_created_told(change, "e1", None).body)
    assert told.data == MessageToDict(
        convert.customer_created(change.customer, change.audit.actor, change.audit.time)
    )


def test_a_snapshot_tells_the_addresses_the_primary_first_and_none_of_who_is_gone() -> None:
    mails = (EmailAddress(address="a@x.net"), EmailAddress(address="b@x.net", primary=True))
    others = (EmailAddress(address="c@x.net"), EmailAddress(address="a@x.net"))
    contact = Contact(display_name="Li", email_addresses=others)
    living = Customer(id="c1", email_addresses=mails, contacts=(contact,), create_time=NOW)
    assert list(convert.snapshot(living).email_addresses) == ["b@x.net", "a@x.net", "c@x.net"]
    for state in State:
        told = convert.snapshot(replace(living, state=state)).email_addresses
        assert bool(told) == (state is State.ACTIVE)


# Rows


@settings(max_examples=200)
@given(
    st.lists(st.text(alphabet='ab,"\n\r', max_size=6), min_size=1, max_size=5),
    st.integers(1, 20),
    st.sampled_from(["\n", "\r\n"]),
)
# A piece ends behind the quotes that hold a line end.
@example(["", "a\nb"], 14, "\n")
# A doubled quote, then a line end, and the quotes are not closed yet.
@example(['"\n'], 8, "\n")
# Lines within a value that end in CR alone: the next piece's records have other lines.
@example(["a\rb\rc", "", ""], 18, "\n")
def test_records_and_their_lines_are_the_same_however_the_file_is_cut(
    values: list[str], piece: int, end: str
) -> None:
    """Each piece is read by itself, as an import does it."""
    quoted = ('"' + value.replace('"', '""') + '"' for value in values)
    data = "".join([f"v,w{end}", *(f"{value},x{end}" for value in quoted)]).encode()
    found: list[rows.Record] = []
    cutter, line = rows.Cutter(csv=True), 1
    for start in range(0, len(data), piece):
        for span in cutter.cut(data[start : start + piece], start + piece >= len(data)):
            assert span.data is not None
            found += rows.csv_records(span.data.decode(), ["v", "w"], line)
            line += span.lines
    assert found == list(rows.csv_records(data.decode(), ["v", "w"], 1))
    assert [record.values for record in found[1:]] == [{"v": value, "w": "x"} for value in values]


def test_a_quote_within_a_value_holds_no_lines_together() -> None:
    cutter, line = rows.Cutter(csv=True), b'wu,5" disk\n'

    def cut(data: bytes, last: bool) -> bytes:
        return b"".join(span.data or b"" for span in cutter.cut(data, last))

    assert cut(b"name,note\n" + line, False).endswith(line)
    assert cut(b'li,"a ""b""\nc"\nan,"d', False) == b'li,"a ""b""\nc"\n'
    assert cut(b'"\n', True) == b'an,"d"\n'


#: Bytes of a record in the tests below.
SHORT = 12


def spans_of(data: bytes, pieces: Sequence[int], *, csv: bool) -> list[tuple[int, str]]:
    """Each record's line and bytes, or how many bytes it has where it is too long; sound spans side by side
    are one.
    """
    cutter, line, at = rows.Cutter(csv=csv, record_bytes_max=SHORT), 1, 0
    found: list[tuple[int, str]] = []
    joined = False
    for number, piece in enumerate(pieces):
        for span in cutter.cut(data[at : at + piece], number == len(pieces) - 1):
            told = f"{span.size} bytes" if span.data is None else span.data.decode()
            if span.data is not None and joined:
                found[-1] = (found[-1][0], found[-1][1] + told)
            else:
                found.append((line, told))
            joined = span.data is not None
            line += span.lines
        at += piece
    assert at == len(data) and line == 1 + rows.lines_of(data, csv=csv)
    return found


@settings(max_examples=600)
@given(st.text(alphabet='aaa,""\n\r', max_size=60), st.lists(st.integers(0, 25), max_size=40), st.booleans())
# A quote that was let go to its last byte closes, or is one of two.
@example('"aaaaaaaaaaaaaa""\na"\na\n', [16, 1], True)
@example('"aaaaaaaaaaaaaa"\na\n', [16, 0], True)
# What was let go ends within a value: a quote there opens nothing.
@example('aaaaaaaaaaaaaaa"\na\n', [15, 1], True)
# It ends with a comma: a quote there opens a value.
@example('aaaaaaaaaaaaaa,"\n"\na\n', [15, 1], True)
# Lines that end in CR alone, and one that is cut before its LF.
@example("aaaaaaaaaaaaaaa\r\na\ra\r", [16, 1, 4], True)
def test_what_is_too_long_does_not_depend_on_how_the_file_is_cut(
    text: str, sizes: list[int], csv: bool
) -> None:
    data = text.encode()
    pieces: list[int] = []
    for size in sizes:
        pieces.append(min(size, len(data) - sum(pieces)))
    pieces.append(len(data) - sum(pieces))
    assert spans_of(data, pieces, csv=csv) == spans_of(data, [len(data)], csv=csv)


QUOTED = st.text(alphabet='ab,"\n\r', max_size=20).map(lambda text: '"' + text.replace('"', '""') + '"')


@given(
    st.lists(st.one_of(QUOTED, st.text(alphabet="ab,", min_size=1, max_size=20)), max_size=8),
    st.integers(1, 30),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_record_that_is_too_long_costs_itself_alone(values: list[str], piece: int, end: str) -> None:
    wanted: list[tuple[int, str]] = []
    data, line, sound = "", 1, False
    for value in values:
        record = value + end
        long = len(record) > SHORT
        if sound and not long:
            wanted[-1] = (wanted[-1][0], wanted[-1][1] + record)
        else:
            wanted.append((line, f"{len(record)} bytes" if long else record))
        sound = not long
        data, line = data + record, line + rows.lines_of(record.encode(), csv=True)
    pieces = [piece] * (len(data) // piece) + [len(data) % piece]
    assert spans_of(data.encode(), pieces, csv=True) == wanted


def test_what_is_refused_of_a_record_is_no_record() -> None:
    note = "line\n" * 60_000
    text = rows.csv_line(["li", note]) + "wu,ok\n"
    assert [record.values for record in rows.csv_records(text, ["v", "w"], 1)] == [
        {"v": "li", "w": note},
        {"v": "wu", "w": "ok"},
    ]
    text = b'li,"one\ntwo"\nb\xff,"three\nfour"\nwu,ok\n'.decode(errors="surrogateescape")
    found = list(rows.csv_records(text, ["v", "w"], 2))
    assert [(record.line, record.fault) for record in found] == [(2, ""), (4, "is not UTF-8"), (6, "")]
    with pytest.raises(InvalidArgument, match="UTF-8"):
        rows.headings("姓名,手机\n".encode("gbk").decode(errors="surrogateescape"))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"company": "\\ud800"}', "half of a character"),
        ('{"\\udfff": "a"}', "half of a character"),
        ('{"display_name": "\udcff"}', "UTF-8"),
        ('{"display_name": ["x"]}', "must be a text"),
        ('{"phone_numbers": [{"number": true}]}', "must be a text"),
        ('{"custom_values": {"note": ["x"]}}', ""),
        ('{"addresses": [{"latitude": 1' + "0" * 400 + "}]}", "must be a number"),
        ('{"addresses": [{"latitude": "nan"}]}', "finite"),
        ('{"display_name": "\\ud83d\\ude00", "tags": [7]}', ""),
    ],
)
def test_a_json_row_of_wrong_things_says_why(row: str, why: str) -> None:
    [record] = rows.json_records(row, 1)
    if record.values is not None:
        try:
            rows.customer_of(record.values, {})
        except rows.BadRow as error:
            record = replace(record, fault=str(error))
    assert why in record.fault and bool(why) == bool(record.fault)


def test_a_row_that_changes_a_customer_adds_nothing_in_another_case() -> None:
    current = person(email_addresses=(EmailAddress(address="li@example.com", primary=True),))
    wanted = person(email_addresses=(EmailAddress(address="Li@example.com", primary=True),))
    updated = imports._updated(current, wanted, {"email_addresses"})
    assert updated.email_addresses == current.email_addresses


def test_a_row_that_leaves_out_what_is_known_of_an_item_adds_none() -> None:
    home = PostalAddress(city="深圳", street="路 1", label="home", latitude=22.5, longitude=114.0)
    current = person(addresses=(home,))
    for said in (PostalAddress(city="深圳", street="路 1"), home):
        assert imports._updated(current, person(addresses=(said,)), {"addresses"}).addresses == (home,)
    other = PostalAddress(city="深圳", street="路 2")
    updated = imports._updated(current, person(addresses=(other,)), {"addresses"})
    assert updated.addresses == (home, other)


def test_a_row_of_an_export_is_read_as_the_api_tells_customers() -> None:
    [record] = rows.json_records('{"name": "customers/a", "displayName": "王", "tier": "TIER_STANDARD"}', 1)
    job = {"_id": "i"}
    assert imports._drafted(job, record, (), {}) == ("a", Customer(display_name="王"))
    assert imports._fields_said(job, record) == {"name", "display_name", "tier"}
    for field, value in (("colour", "1"), ("phone_numbers", "7"), ("birth_date", '{"year": "x"}')):
        [record] = rows.json_records(f'{{"name": "customers/a", "tags": ["x"], "{field}": {value}}}', 1)
        with pytest.raises(InvalidArgument, match="as the API tells it") as refused:
            imports._drafted(job, record, (), {})
        assert [told.field for told in refused.value.details.field_violations] == [f"customer.{field}"]


def test_a_list_that_is_too_long_is_refused_and_not_cut() -> None:
    row = {"display_name": "x", "contacts": [{"display_name": f"王 {n}"} for n in range(51)]}
    _, draft = rows.customer_of(rows.flat(row), {})
    with pytest.raises(InvalidArgument, match="at most 50"):
        engine.normalise(replace(draft, kind=Kind.COMPANY), "CN", NOW.date())


@pytest.mark.parametrize("text", ["=1+1", "'=1+1", "''@x", "'t Hooft", "-3.5", "'", "+86 138", "@", "\t=1"])
def test_what_is_made_safe_for_spreadsheets_is_read_as_it_was(text: str) -> None:
    line = rows.csv_line([rows.safe(text), "x"])
    [record] = rows.csv_records(line, ["notes", "display_name"], 2)
    assert record.values == {"notes": text, "display_name": "x"}


def test_a_row_that_says_what_a_new_customer_would_have_anyway_says_it() -> None:
    current = person(tier=Tier.VIP, notes="kept")
    said = rows.fields_of(rows.by_path({"display_name": "王", "tier": "standard", "notes": ""}, ()))
    _, draft = rows.customer_of({"display_name": "王", "tier": "standard"}, {})
    updated = imports._updated(current, draft, said)
    assert (updated.tier, updated.notes, updated.display_name) == (Tier.STANDARD, "kept", "王")
    _, silent = rows.customer_of({"display_name": "王"}, {})
    assert imports._updated(current, silent, {"display_name"}).tier is Tier.VIP


@pytest.mark.parametrize(
    ("notes", "told"),
    [("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("-2+a1", "'-2+a1"),
     ("+86 138 1234-5678", "+86 138 1234-5678"), ("-3.5", "-3.5"), ("a=b", "a=b")],
)  # fmt: skip
def test_an_export_holds_no_formula(notes: str, told: str) -> None:
    assert rows.safe(notes) == told
    assert rows.value_at(person(notes=notes), "notes") == notes, (
        "what is no CSV file is read by no spreadsheet"
    )


def test_an_interactions_words_are_no_formula_either() -> None:
    values = {"summary": "=cmd|' /C calc'!A0", "number": "+8613812345678", "channel": "EMAIL"}
    fact = Fact(
        kind=InteractionKind.MESSAGE, source="mail", source_id="=1+1", facet="record", stamp=(0,),
        values=values, began_ms=0,
    )  # fmt: skip
    said = timeline.project(timeline.entry_of(fact))
    row = dict(
        zip(transfer_servicer._INTERACTION_COLUMNS, transfer_servicer._interaction_row(said), strict=True)
    )
    assert (row["source_id"], row["summary"]) == ("'=1+1", "'=cmd|' /C calc'!A0")
    assert row["phone_number"] == "+8613812345678"


@pytest.mark.parametrize("key", ["a", 5, ["a", "b"], [5], [5.5, "a"], [1, "a", "b"]])
def test_an_export_goes_on_from_its_own_tokens_alone(key: Any) -> None:
    for request, kinds in (
        (transfer_pb2.ExportCustomersRequest(), (str,)),
        (transfer_pb2.ExportInteractionsRequest(), (int, str)),
    ):
        page, first = transfer_servicer._resumed(request, *kinds)
        assert first is None
        request.resume_token = page.next_token(key)
        good = [type(each) for each in (key if isinstance(key, list) else [key])] == list(kinds)
        if good:
            assert transfer_servicer._resumed(request, *kinds)[1] is not None
            continue
        with pytest.raises(InvalidArgument, match="resume_token"):
            transfer_servicer._resumed(request, *kinds)


@pytest.mark.parametrize("seconds", [-62_135_596_800, -1, 32_503_680_000, 253_402_300_799])
def test_nobody_is_asked_about_the_edges_of_the_calendar(seconds: int) -> None:
    with pytest.raises(InvalidArgument, match="contact_time"):
        convert.moment_in("contact_time", Timestamp(seconds=seconds))


def test_times_that_may_be_asked_about_have_days_around_them() -> None:
    rule = Rule(id="b", title="", trigger="BIRTHDAY", days_before=3)
    born = person(birth_date=BirthDate(month=6, day=1), quiet_windows=(
        QuietWindow(weekdays=(), start_minute=0, end_minute=1_439, channels=()),))  # fmt: skip
    for seconds in (0, 32_503_679_999):
        at = convert.moment_in("contact_time", Timestamp(seconds=seconds))
        for zone in ("America/Anchorage", "Pacific/Kiritimati"):
            assert care.birthday(rule, born, at, zone) is None, "it is in June"
            told = consent.permission(born, Channel.SMS, Purpose.SERVICE, at, zone)
            assert told.reasons == (consent.QUIET,) and told.next_allowed is not None
            assert timedelta() < told.next_allowed - at < timedelta(days=1)


@pytest.mark.parametrize("amount", ["١٢", "１２.５", "12.٥"])
def test_an_amount_is_written_in_plain_digits(amount: str) -> None:
    with pytest.raises(InvalidArgument, match="decimal number"):
        care_handlers.checked_money("balance", "CNY", amount)


def test_costs_of_several_currencies_have_no_sum() -> None:
    costs = {"a": ("CNY", Decimal("0.6")), "a/b": ("USD", Decimal("1"))}
    figure = voice.ReasonFigures(reason="a")
    for reason in ("a", "a/c"):
        voice._count(figure, {"reason": reason, "talk_ms": 60_000}, False, costs)
    assert insights_servicer.figures_out(figure).cost.amount == "1.20"
    voice._count(figure, {"reason": "a/b", "talk_ms": 60_000}, False, costs)
    told = insights_servicer.figures_out(figure)
    assert not told.HasField("cost") and not told.HasField("cost_per_call") and told.calls == 3


def test_a_row_becomes_a_customer_and_back() -> None:
    paths = {
        "id": "c1",
        "display_name": "王小明",
        "phone_numbers[0].number": "13800000001",
        "phone_numbers[1].number": "13800000002",
        "addresses[0].city": "深圳",
        "tags": "老客户; 宽带",
        "tier": "gold",
        "birth_date": "1990-02-28",
    }
    id, draft = rows.customer_of(paths, {})
    assert id == "c1" and draft.tier is Tier.GOLD and draft.tags == ("老客户", "宽带")
    assert [n.number for n in draft.phone_numbers] == ["13800000001", "13800000002"]
    assert rows.value_at(draft, "birth_date") == "1990-02-28"
    assert rows.value_at(draft, "addresses[0].city") == "深圳"


@pytest.mark.parametrize(
    "path", ["", "nope", "phone_numbers[0].x", "custom_values", "a.b.c", "$where", "__class__"]
)
def test_a_path_that_no_customer_has_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rows.check_paths([path])
    assert caught.value.values["field"] == "mappings[0].field"


def test_what_is_wrong_is_named_where_the_request_has_it() -> None:
    opening = imports.Opening(
        id="",
        format="CSV",
        row_kind="CUSTOMER",
        mappings=(rows.Mapped(column="x", field="nope", default=""),),
        dry_run=True,
        update_existing=False,
        default_country="",
        error_count_max=0,
        request_key=None,
        fingerprint=None,
    )
    clock, nobody = FakeClock(NOW), cast(Any, None)
    with pytest.raises(InvalidArgument) as caught:
        imports.Imports(nobody, clock, {}).open(opening, "amy")
    assert caught.value.values["field"] == "import_job.mappings[0].field"
    priced = {"product": "p", "state": "ACTIVE", "price": {"currency": "yuan", "amount": "1"}}
    with pytest.raises(InvalidArgument) as caught:
        care_handlers.Contracts(nobody, clock)._clean(priced)
    assert caught.value.values["field"] == "contract.monthly_price.currency_code"


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"a": NaN}', '{"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}', "null"]
)
def test_a_bad_json_line_is_one_bad_row(line: str) -> None:
    good = '{"display_name": "a", "phone_numbers": [{"number": "1"}]}'
    found = list(rows.json_records(f"{good}\n{line}\n{good}\n", 1))
    assert [record.values is None for record in found] == [False, True, False] and found[1].fault
    assert found[2].values == {"display_name": "a", "phone_numbers[0].number": "1"}


# Care and churn


def test_birthdays_are_kept_where_the_customer_lives() -> None:
    rule = care.Rule(id="b", title="x", trigger="BIRTHDAY", days_before=3)
    leap = person(birth_date=BirthDate(year=1992, month=2, day=29), time_zone="Asia/Shanghai")
    eve = datetime(2026, 2, 27, 20, 0, tzinfo=UTC)
    found = care.birthday(rule, leap, eve, "UTC")
    assert found is not None and found.key == "2026-02-28"
    assert care.birthday(rule, leap, datetime(2026, 3, 5, tzinfo=UTC), "UTC") is None
    assert "02-29" in care.birthdays(eve, 3)
    text = care.words(rule, found, leap, "zh", "UTC")
    assert "王小明" in text and "2026-02-28" in text


def test_more_reasons_never_lower_the_score() -> None:
    now_ms = 1_800_000_000_000

    def call(**detail: object) -> Interaction:
        return Interaction(
            id="i", kind=InteractionKind.CALL, source="routing", source_id="c", subject="c:a", number="",
            channel=Channel.VOICE, direction=convert.Direction.INBOUND, began_ms=now_ms, ended_ms=None,
            summary="", contact_reason="", agent="", region="", open=False, product="", partner="",
            detail=detail,
        )  # fmt: skip

    scores = []
    signs = churn.Signs()
    for more in (
        {},
        {"interactions": [call(resolved=False)]},
        {"contract_days": 10.0},
        {"usage_ratio": 0.3},
        {"intent_ms": now_ms - 1},
    ):
        signs = replace(signs, **more)  # type: ignore[arg-type]
        score, reasons = churn.scored(signs, now_ms)
        scores.append(score)
        assert all(churn.text(reason, "zh") and churn.text(reason, "en") for reason in reasons)
    assert scores == sorted(scores) and scores[0] == 0.0 and 0.8 < scores[-1] < 1.0


# Voice of the customer


def by_day(*counts: int, first: int = 0) -> dict[int, int]:
    return {first + day: count for day, count in enumerate(counts)}


def test_a_topic_rises_against_its_own_history_only() -> None:
    history = {
        "steady": by_day(*[10] * 28, first=-28),
        "rising": by_day(*[2] * 28, first=-28),
        "wild": by_day(*[0, 60] * 14, first=-28),
    }
    now = {"steady": by_day(12), "rising": by_day(14), "wild": by_day(70), "rare": by_day(3)}
    found = topics.rising(now, history, history_days=28, days=1.0, p_value_max=0.05)
    assert [topic.reason for topic in found] == ["rising"]
    # One day among 29: no exchange of days says more.
    assert found[0].expected == 2.0 and found[0].p_value == pytest.approx(1 / 29, abs=1e-4)
    assert topics.rising({}, history, history_days=28, days=1.0, p_value_max=0.05) == []


def test_with_few_days_the_model_alone_decides() -> None:
    history = {"a": by_day(*[2] * 7, first=-7), "b": by_day(*[9] * 7, first=-7)}
    now = {"a": by_day(15), "b": by_day(9)}
    found = topics.rising(now, history, history_days=7, days=1.0, p_value_max=0.05)
    assert [topic.reason for topic in found] == ["a"] and found[0].p_value < 0.001
    half = topics.rising(now, history, history_days=7, days=0.5, p_value_max=0.05)
    assert half[0].reason == "a" and half[0].expected == 1.0
    alone = topics.rising({"a": now["a"]}, {"a": history["a"]}, history_days=7, days=1.0, p_value_max=0.05)
    assert [topic.reason for topic in alone] == ["a"], "a reason with no others beside it"


def test_a_reason_that_has_busy_days_is_no_topic_on_one_more() -> None:
    busy = {day: 30 if day % 7 == 0 else 6 for day in range(-28, 1)}
    reasons = [f"r{n}" for n in range(8)]
    history = {reason: {day: n for day, n in busy.items() if day < 0} for reason in reasons}
    now = {reason: {0: busy[0]} for reason in reasons}
    assert topics.rising(now, history, history_days=28, days=1.0, p_value_max=0.05) == []
    now["r3"] = {0: 90}
    found = topics.rising(now, history, history_days=28, days=1.0, p_value_max=0.05)
    assert [topic.reason for topic in found] == ["r3"]


@pytest.mark.parametrize("observed", [0, 1, 5, 15, 60])
def test_the_chance_of_so_many_is_the_negative_binomials_tail(observed: int) -> None:
    history, days = np.full((7, 1), 2.0), np.ones((7, 1))
    found = topics.p_values(np.array([observed]), history, np.array([1.0]), days)
    size, success = 14.5, 7 / 8
    terms = (
        math.exp(math.lgamma(k + size) - math.lgamma(k + 1) - math.lgamma(size))
        * success**size
        * (1 - success) ** k
        for k in range(observed, observed + 400)
    )
    assert found[0] == pytest.approx(sum(terms), rel=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_days_that_are_alike_rarely_make_a_topic(seed: int) -> None:
    random = np.random.default_rng(seed)
    days = random.negative_binomial(1, 0.2, size=(29, 6))
    cried = 0
    for today in (0, 14, 28):
        others = [d for d in range(29) if d != today]
        now = {str(i): {0: int(days[today, i])} for i in range(6)}
        history = {str(i): {-28 + k: int(days[d, i]) for k, d in enumerate(others)} for i in range(6)}
        cried += bool(topics.rising(now, history, history_days=28, days=1.0, p_value_max=1 / 28.5))
    assert cried <= 1, "one day of all can be the strongest"


def places(extra: int) -> list[scan.Place]:
    """A grid of 6 x 6 with 100 contacts and 5 complaints each, and more complaints in one."""
    return [
        scan.Place(
            name=f"{x},{y}",
            latitude=22.0 + x * 0.1,
            longitude=114.0 + y * 0.1,
            cases=5 + (extra if (x, y) == (2, 3) else 0),
            contacts=100 + (extra if (x, y) == (2, 3) else 0),
        )
        for x in range(6)
        for y in range(6)
    ]


def test_a_planted_spot_is_found_and_an_even_map_is_silent() -> None:
    [spot] = scan.hot_spots(places(25), simulations=199)
    assert spot.places == (15,) and spot.observed == 30 and spot.p_value <= 0.01
    assert spot.relative_risk > 4
    assert all(s.p_value > 0.5 for s in scan.hot_spots(places(0), simulations=199))
    assert scan.hot_spots([], simulations=9) == [] == scan.hot_spots(places(0)[:2], simulations=9)


# Webhooks


@pytest.mark.parametrize(
    "url",
    ["", "http://example.com", "https://", "https://u:p@x.example", "https://127.0.0.1/x", "https://[::1]/",
     "https://10.1.2.3", "https://169.254.169.254/latest", "https://a b", "ftp://x.example",
     # What a translator makes of an IPv6 address: 10.0.0.1, 169.254.169.254, 10.0.0.1, 10.0.0.1.
     "https://[64:ff9b::a00:1]", "https://[64:ff9b::a9fe:a9fe]", "https://[2002:a00:1::]", "https://[::a00:1]",
     "https://[64:ff9b:1::1]", "https://[fec0::1]", "https://224.0.0.1", "https://[ff0e::1]"],
)  # fmt: skip
def test_a_webhook_goes_to_public_addresses_alone(url: str) -> None:
    with pytest.raises(InvalidArgument):
        webhooks.check_url(url, private=False)


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "[64:ff9b::808:808]", "x.example"])
def test_public_addresses_and_names_are_taken(host: str) -> None:
    assert webhooks.check_url(f"https://{host}/x", private=False)


def test_a_host_that_resolves_to_a_private_address_is_not_called() -> None:
    answer = webhooks.Sender(private=False).post("https://localhost/x", b"{}", {})
    assert answer.status == 0 and "private" in answer.error


@pytest.mark.parametrize(
    ("first", "status", "error"),
    [
        (b"HTTP/1.1 200 ", 0, "no answer within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", 200, ""),
    ],
)
def test_a_partner_who_answers_a_byte_at_a_time_is_not_waited_for(
    first: bytes, status: int, error: str
) -> None:
    over = threading.Event()

    def drip(line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            line.recv(65_536)
            line.sendall(first)
            while not over.wait(0.05):
                line.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=lambda: drip(listening.accept()[0]))
        serving.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        answer = webhooks.Sender(private=True, seconds=0.3).post(url, b"{}", {})
        over.set()
        serving.join()
    assert answer.status == status and error in answer.error and bool(error) == bool(answer.error)


def test_pauses_grow_to_a_bound() -> None:
    assert [webhooks.retry_seconds(n) for n in (1, 2, 3, 30)] == [10, 20, 40, webhooks.RETRY_SECONDS_MAX]


# Coalescing


async def test_questions_at_once_are_asked_at_once() -> None:
    asked: list[list[int]] = []
    free = asyncio.Event()

    async def ask(keys: Sequence[int]) -> Mapping[int, int]:
        asked.append(list(keys))
        await free.wait()
        if 13 in keys:
            raise ValueError("thirteen")
        return {key: key * 2 for key in keys if key}

    coalescer = Coalescer(ask, batch_max=3)
    first = [asyncio.create_task(coalescer.get(key)) for key in (1, 2, 2, 0)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(coalescer.get(key)) for key in range(3, 10)]
    later[0].cancel()
    await asyncio.sleep(0)
    free.set()
    assert [await task for task in first] == [2, 4, 4, None]
    assert [await task for task in later[1:]] == [8, 10, 12, 14, 16, 18]
    assert max(map(len, asked)) <= 3 and len(asked) < 8
    with pytest.raises(ValueError, match="thirteen"):
        await coalescer.get(13)
    assert await coalescer.get(21) == 42, "one failure is no end"


def test_quiet_windows_look_ahead_over_a_change_of_the_clock() -> None:
    window = QuietWindow(start_minute=0, end_minute=1440)
    always = person(time_zone="Europe/Berlin", quiet_windows=(window,))
    found = consent.permission(always, Channel.SMS, Purpose.SERVICE, NOW, "UTC")
    assert found.reasons == ("QUIET_WINDOW",) and found.next_allowed is None
    sunday = replace(window, weekdays=(7,))
    spring = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
    found = consent.permission(
        person(time_zone="Europe/Berlin", quiet_windows=(sunday,)),
        Channel.SMS,
        Purpose.SERVICE,
        spring,
        "UTC",
    )
    assert found.next_allowed == datetime(2026, 3, 29, 22, 0, tzinfo=UTC)
    assert date(2026, 3, 30) - date(2026, 3, 29) == timedelta(days=1)


def test_addresses_speak_for_duplicates() -> None:
    home = PostalAddress(city="深圳", district="福田区", street="深南大道1号")
    one, other = person(addresses=(home,)), person("b", "王晓明", "", addresses=(home,))
    assert "addresses" in [reason.field for reason in compared(one, other).reasons]


def test_an_answered_visit_is_a_survey() -> None:
    message = tickets_events.FollowUpCompleted(parent="tickets/t1")
    message.ticket.ticket, message.ticket.version, message.ticket.customer = "tickets/v1", 3, "customers/a"
    message.ticket.update_time.FromDatetime(NOW)
    assert convert.visit_fact(message) is None, "nobody answered"
    message.visit.answered, message.visit.satisfied, message.visit.comment = True, True, "好"
    fact = convert.visit_fact(message)
    assert fact is not None and fact.kind is InteractionKind.SURVEY
    assert fact.values["satisfaction"] == 5 and fact.values["survey"] == "follow-up of tickets/t1"
    message.visit.satisfaction_score = 2
    again = convert.visit_fact(message)
    assert again is not None and again.values["satisfaction"] == 2 and again.source_id == fact.source_id


@pytest.mark.parametrize(
    ("mean", "kept"), [(0.0, 0), (3.6, 4), (7.0, 5), (-1.0, 0), (float("inf"), 5), (float("nan"), 0)]
)
def test_a_survey_after_a_call_is_kept_on_the_whole_scale(mean: float, kept: int) -> None:
    message = menu_events.SurveyAnswered(session="s1", satisfaction=mean, caller_number="+8613812345678")
    message.event_time.FromDatetime(NOW)
    assert convert.survey_fact(message) is None, "nobody answered"
    message.answers.add(question="q1", score=4)
    fact = convert.survey_fact(message)
    assert fact is not None and fact.values["satisfaction"] == kept and fact.values["comment"] == "q1: 4"


@settings(max_examples=30)
@given(CREATED, st.text(max_size=3))
def test_a_customer_evolves_as_by_replace(customer: Customer, notes: str) -> None:
    assert engine.evolved(customer, notes=notes, version=3) == replace(customer, notes=notes, version=3)
    with pytest.raises(TypeError):
        engine.evolved(customer, nope=1)
