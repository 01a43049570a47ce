"""What people type means the same however they type it."""

from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm import identity
from crm.identity import NotIdentifiable

MOBILES = st.builds(
    lambda head, tail: f"{head}{tail:08d}",
    st.sampled_from(["138", "139", "150", "159", "186", "199"]),
    st.integers(0, 10**8 - 1),
)
SEPARATORS = st.sampled_from(["", " ", "-", ".", "\u3000", "\u200b", "\u2011"])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("138 1234 5678", "+8613812345678"),
        ("+86 138-1234-5678", "+8613812345678"),
        ("0086 13812345678", "+8613812345678"),
        ("+86 0138 12345678", "+8613812345678"),
        ("１３８１２３４５６７８", "+8613812345678"),
        ("（010）6552 9988", "+861065529988"),
        ("\u202d+8613812345678\u202c", "+8613812345678"),
        ("+1 (415) 555-2671", "+14155552671"),
        ("+39 06 1234567", "+39061234567"),
    ],
)
def test_a_number_as_typed_becomes_e164(typed: str, expected: str) -> None:
    assert identity.phone_number(typed, "CN") == expected


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "must not be empty"),
        ("   ", "must not be empty"),
        ("123", "too short"),
        ("10086", "area code"),
        ("+861381234567890", "too long"),
        ("+999 1234567", "not a telephone number"),
        ("13812345678 ext 3", "extension"),
        ("tel:+8613812345678", "extension"),
        ("1-800-FLOWERS", "extension"),
        ('{"$gt": ""}', "extension"),
        ("9" * 10_000, "at most 64"),
        ("+", "not a telephone number"),
        ("138\x0012345678", "extension"),
        ("13812345678.0", "decimals"),
        ("+8613812345678.00", "decimals"),
    ],
)
def test_what_is_no_number_is_refused_with_its_reason(typed: str, why: str) -> None:
    with pytest.raises(NotIdentifiable, match=why):
        identity.phone_number(typed, "CN")


@given(MOBILES, st.lists(SEPARATORS, min_size=10, max_size=10))
def test_every_way_of_typing_a_mobile_number_is_the_same_number(mobile: str, separators: list[str]) -> None:
    spaced = "".join(digit + gap for digit, gap in zip(mobile, [*separators, ""], strict=True))
    forms = {
        identity.phone_number(form, "CN")
        for form in (mobile, spaced, f"+86{mobile}", f"+86 {spaced}", f"0086{mobile}", f"（{mobile}）")
    }
    assert forms == {f"+86{mobile}"}


@given(
    st.one_of(
        st.text(max_size=70),
        st.from_regex(r"\+?[0-9 ()\-]{1,30}", fullmatch=True),
        st.from_regex(r"\+[1-9][0-9]{4,16}", fullmatch=True),
    ),
    st.sampled_from(["CN", "US", "IT", "AR", "MX", "BR"]),
)
def test_a_normalised_number_stays_as_it_is_and_parses_everywhere(typed: str, country: str) -> None:
    try:
        number = identity.phone_number(typed, country)
    except NotIdentifiable:
        return
    assert identity.phone_number(number, "CN") == number == identity.phone_number(number, "US")
    assert number.startswith("+") and number[1:].isascii() and number[1:].isdigit() and len(number) <= 18
    assert phonenumbers.parse(number, None).country_code > 0


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (" Li.Wei@Example.COM ", "Li.Wei@example.com"),
        ("李@例子.中国", "李@例子.中国"),
        ("a+b@x-y.co.uk", "a+b@x-y.co.uk"),
        ("O'Neil@EXAMPLE.ie", "O'Neil@example.ie"),
        ("Li＠Example。com", "Li@example.com"),
        ("ｌｉ．ｗｅｉ＠ｅｘａｍｐｌｅ．ｃｏｍ", "li.wei@example.com"),
        ("li@XN--fsqu00a.xn--fiqs8s", "li@xn--fsqu00a.xn--fiqs8s"),
    ],
)
def test_an_address_as_typed_is_kept_with_its_domain_lowered(typed: str, expected: str) -> None:
    assert identity.email_address(typed) == expected


@pytest.mark.parametrize(
    "typed",
    ["", "a", "a@b", "@x.y", "a b@c.de", "a..b@c.de", ".a@c.de", "a@-b.de", "a@b..de", "a@b.de,c@d.de",
     "a\x00@b.de",
     "x" * 65 + "@b.de", "x@" + "y" * 64 + ".de", "x" * 300 + "@b.de", "a@b.de\r\nBcc: c@d.de"],
)  # fmt: skip
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(NotIdentifiable):
        identity.email_address(typed)


@given(st.text(max_size=80))
def test_an_address_once_normalised_stays_as_it_is(typed: str) -> None:
    for candidate in (typed, f"{typed}@Example.com"):
        try:
            address = identity.email_address(candidate)
        except NotIdentifiable:
            continue
        assert identity.email_address(address) == address


def test_an_address_is_claimed_without_regard_to_case() -> None:
    assert identity.claim_of_email("Li.Wei@example.com") == identity.claim_of_email("li.WEI@example.com")


def test_claims_of_different_kinds_never_meet() -> None:
    claims = {
        identity.claim_of_number("+8613812345678"),
        identity.claim_of_email("a@b.de"),
        identity.claim_of_external("tel", "+8613812345678"),
    }
    assert len(claims) == 3


@pytest.mark.parametrize("text", ["张伟", "Ærøskøbing", "مرحبا", "👩‍👩‍👧", "नमस्ते", "O’Brien", "ไทย", "🏳️‍🌈"])
def test_every_script_is_a_name(text: str) -> None:
    cleaned = identity.clean_text(text, 200)
    assert identity.text_problem(cleaned, least=1, most=200) == ""


@pytest.mark.parametrize(
    "text", ["", "   ", "\u200b\u200b", "\u202e", "a\x00b", "a\nb", "\x1b[31mred", "x" * 201]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    assert identity.text_problem(identity.clean_text(text, 200), least=1, most=200)


def test_two_spellings_of_one_text_are_one() -> None:
    assert identity.clean_text("Cafe\u0301", 10) == identity.clean_text("Caf\u00e9", 10)


def test_a_text_of_ten_megabytes_is_cut_before_it_is_looked_at() -> None:
    cleaned = identity.clean_text("é" * 10_000_000, 10_000)
    assert len(cleaned) == 20_001
    assert "at most 10000" in identity.text_problem(cleaned, least=0, most=10_000, multiline=True)
