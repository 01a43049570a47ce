"""Text → number: real shapes of many countries, every fault by name, and agreement with phonenumbers."""

from __future__ import annotations

import random

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from chassis.errors import Code, InvalidArgument
from routing.geo import InvalidNumber, NumberFault, NumberKind, locate, parse_number
from routing.geo.plans import country_code_of, find_kind, is_geographic

KINDS = {
    PhoneNumberType.FIXED_LINE: NumberKind.FIXED,
    PhoneNumberType.MOBILE: NumberKind.MOBILE,
    PhoneNumberType.FIXED_LINE_OR_MOBILE: NumberKind.FIXED_OR_MOBILE,
    PhoneNumberType.TOLL_FREE: NumberKind.TOLL_FREE,
    PhoneNumberType.PREMIUM_RATE: NumberKind.PREMIUM,
    PhoneNumberType.SHARED_COST: NumberKind.SHARED_COST,
    PhoneNumberType.VOIP: NumberKind.VOIP,
    PhoneNumberType.PERSONAL_NUMBER: NumberKind.PERSONAL,
    PhoneNumberType.PAGER: NumberKind.PAGER,
    PhoneNumberType.UAN: NumberKind.COMPANY,
    PhoneNumberType.VOICEMAIL: NumberKind.VOICEMAIL,
}


@pytest.mark.parametrize(
    ("text", "e164"),
    [
        ("13800138000", "+8613800138000"),
        ("138-0013-8000", "+8613800138000"),
        ("+86 138 0013 8000", "+8613800138000"),
        ("8613800138000", "+8613800138000"),
        ("008613800138000", "+8613800138000"),
        ("(010) 6555-1234", "+861065551234"),
        ("0755-87654321", "+8675587654321"),
        ("+86 (0)10 6555 1234", "+861065551234"),
        ("010-65551234转8001", "+861065551234"),
        ("010-65551234 ext. 12", "+861065551234"),
        ("010-65551234-8001", "+861065551234"),
        ("（0755）28888888－1", "+8675528888888"),
        ("+86-10-65551234-801", "+861065551234"),
        ("0086 0371 65551234 - 12", "+8637165551234"),
        ("＋８６１３８００１３８０００", "+8613800138000"),
        ("sip:+8613800138000@pbx.example.com;transport=tls", "+8613800138000"),
        ("sips:13800138000@10.0.0.1:5061", "+8613800138000"),
        ("tel:+86-10-6555-1234;ext=12", "+861065551234"),
        ("TEL:+442083612345", "+442083612345"),
        ("0044 20 8361 2345", "+442083612345"),
        ("+44 (0)20 8361 2345", "+442083612345"),
        ("+1 (212) 736-5000", "+12127365000"),
        ("+39 06 1234 5678", "+390612345678"),
        ("13800138000\r\n", "+8613800138000"),
    ],
)
def test_what_people_and_switches_write(text: str, e164: str) -> None:
    assert parse_number(text).e164 == e164


@pytest.mark.parametrize(
    ("text", "country", "e164"),
    [
        ("(212) 736-5000", "US", "+12127365000"),
        ("020 8361 2345", "GB", "+442083612345"),
        ("03-1234-5678", "JP", "+81312345678"),
        ("13800138000", "", None),
        ("+8613800138000", "", "+8613800138000"),
        ("+8613800138000", "US", "+8613800138000"),
        ("13800138000", "US", None),
    ],
)
def test_national_numbers_are_read_by_the_default_country(text: str, country: str, e164: str | None) -> None:
    if e164 is None:
        with pytest.raises(InvalidNumber):
            parse_number(text, default_country=country)
    else:
        assert parse_number(text, default_country=country).e164 == e164


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("13800138000", NumberKind.MOBILE),
        ("010-65551234", NumberKind.FIXED),
        ("800-810-1234", NumberKind.TOLL_FREE),
        ("+18005551234", NumberKind.TOLL_FREE),
        ("+19002345678", NumberKind.PREMIUM),
        ("+449012345678", NumberKind.PREMIUM),
        ("+12127365000", NumberKind.FIXED_OR_MOBILE),
        ("+80012345678", NumberKind.TOLL_FREE),
        ("+447012345678", NumberKind.PERSONAL),
    ],
)
def test_kinds_are_told_apart(text: str, kind: NumberKind) -> None:
    assert parse_number(text).kind is kind


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", NumberFault.EMPTY),
        (" \t", NumberFault.EMPTY),
        ("sip:@example.com", NumberFault.EMPTY),
        ("anonymous", NumberFault.GARBAGE),
        ("hello 13800138000", NumberFault.GARBAGE),
        ("138;DROP TABLE", NumberFault.GARBAGE),
        ("\0", NumberFault.GARBAGE),
        ("+", NumberFault.GARBAGE),
        ("1", NumberFault.GARBAGE),
        ("12", NumberFault.TOO_SHORT),
        ("138001380", NumberFault.TOO_SHORT),
        ("+8613800", NumberFault.TOO_SHORT),
        ("+1212", NumberFault.TOO_SHORT),
        ("138001380001", NumberFault.TOO_LONG),
        ("+121273650001234", NumberFault.TOO_LONG),
        ("1" * 40, NumberFault.TOO_LONG),
        ("1" * 100_000, NumberFault.TOO_LONG),
        ("+999123456789", NumberFault.NO_COUNTRY),
        ("65551234", NumberFault.NO_AREA_CODE),
        ("110", NumberFault.EMERGENCY),
        ("119", NumberFault.EMERGENCY),
        ("120", NumberFault.EMERGENCY),
        ("112", NumberFault.EMERGENCY),
        ("911", NumberFault.EMERGENCY),
        ("+86110", NumberFault.EMERGENCY),
        ("10086", NumberFault.SHORT_CODE),
        ("95588", NumberFault.SHORT_CODE),
        ("12315", NumberFault.SHORT_CODE),
        ("15412345678", NumberFault.UNASSIGNED),
        ("+12001234567", NumberFault.UNASSIGNED),
    ],
)
def test_what_cannot_be_a_callers_number_is_refused_by_name(text: str, fault: NumberFault) -> None:
    with pytest.raises(InvalidNumber) as raised:
        parse_number(text, field="call.caller_number")
    error = raised.value
    assert error.fault is fault
    assert error.code is Code.INVALID_ARGUMENT
    assert error.details.reason == "INVALID_NUMBER"
    assert [v.field for v in error.details.field_violations] == ["call.caller_number"]
    assert error.details.metadata["fault"] == fault.value


def test_an_error_does_not_repeat_the_number() -> None:
    with pytest.raises(InvalidNumber) as raised:
        parse_number("15412345678")
    assert "1541" not in str(raised.value)
    assert "1541" not in str(raised.value.details)


def test_an_unknown_default_country_is_named() -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_number("123", default_country="XX")
    assert raised.value.details.field_violations[0].field == "default_country"


def test_a_number_in_no_known_range_can_be_accepted() -> None:
    number = parse_number("15412345678", accept_unassigned=True)
    assert (number.e164, number.kind) == ("+8615412345678", NumberKind.UNASSIGNED)
    foreign = parse_number("+12001234567", accept_unassigned=True)
    assert (foreign.e164, foreign.country, foreign.kind) == ("+12001234567", "US", NumberKind.UNASSIGNED)
    with pytest.raises(InvalidNumber):
        parse_number("+1200", accept_unassigned=True)


def by_the_library(number: phonenumbers.PhoneNumber) -> tuple[str, NumberKind] | None:
    kind = KINDS.get(phonenumbers.number_type(number))
    country = phonenumbers.region_code_for_number(number)
    return ("" if country == "001" else country, kind) if kind and country else None


def example_numbers() -> list[phonenumbers.PhoneNumber]:
    kinds = [k for k in KINDS if k is not PhoneNumberType.FIXED_LINE_OR_MOBILE]
    found = [
        phonenumbers.example_number_for_type(country, kind)
        for country in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in kinds
    ]
    found += [
        phonenumbers.example_number_for_non_geo_entity(c)
        for c in sorted(phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS)
    ]
    return [number for number in found if number is not None]


def test_plans_agree_with_the_library_on_every_countrys_examples_and_their_neighbours() -> None:
    draw = random.Random(11)
    for number in example_numbers():
        national = phonenumbers.national_significant_number(number)
        changed = "".join(draw.choice("0123456789") if draw.random() < 0.3 else digit for digit in national)
        for digits in (national, changed, national[:-1], national + "1"):
            code = number.country_code or 0
            variant = phonenumbers.PhoneNumber(
                country_code=code,
                national_number=int(digits),
                italian_leading_zero=digits.startswith("0") or None,
                number_of_leading_zeros=len(digits) - len(digits.lstrip("0")) or None,
            )
            if phonenumbers.national_significant_number(variant) != digits:
                continue
            found = find_kind(code, digits)
            assert found == by_the_library(variant), (code, digits)
            if found:
                kind = phonenumbers.number_type(variant)
                assert is_geographic(found[1], code) == phonenumbers.is_number_type_geographical(kind, code)


def test_the_short_way_reads_examples_as_the_library_does() -> None:
    for number in example_numbers():
        e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
        parsed = phonenumbers.parse(e164)
        found = parse_number(e164)
        assert found.e164 == phonenumbers.format_number(parsed, PhoneNumberFormat.E164)
        assert (found.country, found.kind) == by_the_library(parsed)


@pytest.mark.parametrize(
    ("digits", "code"), [("8613", 86), ("1212", 1), ("3531", 353), ("9990", None), ("", None)]
)
def test_country_codes(digits: str, code: int | None) -> None:
    assert country_code_of(digits) == code


numberish = st.text(alphabet="0123456789+-() ;=extsip:@.#转＋０９", max_size=40)


@settings(deadline=None)  # the first example loads the tables
@given(st.text(max_size=300) | numberish, st.sampled_from(["CN", "US", "GB", "IT", "AR", ""]), st.booleans())
@example("+" * 250, "CN", False)
@example("tel:", "CN", False)
@example("²", "CN", False)
@example("0", "CN", True)
@example("\ud800", "CN", True)
def test_any_text_is_a_number_or_a_typed_error(text: str, country: str, accept: bool) -> None:
    try:
        found = locate(text, default_country=country, accept_unassigned=accept)
    except InvalidNumber as error:
        assert error.fault in NumberFault
        assert error.details.field_violations[0].field == "number"
        return
    assert found.e164.startswith("+")
    assert found.e164[1:].isascii() and found.e164[1:].isdecimal()
    assert locate(found.e164, default_country=country, accept_unassigned=accept) == found
    assert locate(found.e164, default_country="", accept_unassigned=accept) == found


@settings(deadline=None)
@given(st.sampled_from(sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)), st.integers(0, 10**12))
def test_e164_is_a_fixed_point(code: int, national: int) -> None:
    try:
        found = locate(f"+{code}{national}", accept_unassigned=True)
    except InvalidNumber:
        return
    assert locate(found.e164, accept_unassigned=True) == found
