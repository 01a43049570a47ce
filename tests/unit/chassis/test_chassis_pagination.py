"""Page tokens are opaque, checked and bound to their request."""

from __future__ import annotations

import base64
import json

import pytest
from google.protobuf import field_mask_pb2
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from chassis import pagination
from chassis.errors import InvalidArgument
from chassis.pagination import Page, fingerprint

SCALARS = st.one_of(
    st.text(max_size=40), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)
)
KEYS = st.one_of(SCALARS, st.lists(SCALARS, min_size=1, max_size=8))


@given(KEYS, st.text(max_size=30))
def test_a_token_gives_back_its_key(key, bound):
    first = Page.parse(10, "", fingerprint=bound)
    assert first.after is None
    again = Page.parse(10, first.next_token(key), fingerprint=bound)
    assert again.after == key


@given(KEYS, st.data())
def test_a_token_with_any_character_changed_is_refused(key, data):
    token = Page.parse(10, "", fingerprint="f").next_token(key)
    position = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCabc019-_=+/ é").filter(lambda c: c != token[position]))
    changed = token[:position] + letter + token[position + 1 :]
    try:
        after = Page.parse(10, changed, fingerprint="f").after
    except InvalidArgument as error:
        assert error.details.field_violations[0].field == "page_token"
    else:
        # base64 ignores some bits of the last character: such a token is the same one.
        assert after == key


@given(st.text(max_size=300))
def test_any_text_is_refused_and_nothing_else_happens(text):
    if text:
        with pytest.raises(InvalidArgument):
            Page.parse(10, text, fingerprint="f")


def test_a_token_of_another_request_is_refused():
    token = Page.parse(10, "", fingerprint=fingerprint("tier=gold")).next_token("a")
    with pytest.raises(InvalidArgument, match="other fields"):
        Page.parse(10, token, fingerprint=fingerprint("tier=silver"))


@pytest.mark.parametrize(
    "key",
    [
        *({"$gt": ""}, None, [], [{"$ne": 1}], [[1]], True, ["a"] * 9),
        # What a database can't write would fail far from here, as if it were our fault.
        *(1 << 63, -(1 << 63) - 1, [1 << 63, "x"], "\ud800", ["x", "\udfff"], float("inf")),
    ],
)
def test_a_forged_token_cannot_carry_what_a_database_does_not_take(key):
    body = json.dumps([1, "f", key]).encode()
    forged = base64.urlsafe_b64encode(pagination._short_hash(body).encode() + body).decode().rstrip("=")
    with pytest.raises(InvalidArgument, match="page_token"):
        Page.parse(10, forged, fingerprint="f")


@pytest.mark.parametrize("key", ["x", 1, [1], ["1", "x"], [1, 2], [1, "x", "y"], [1.5, "x"]])
def test_a_forged_token_cannot_carry_a_key_of_another_shape(key):
    page = Page.parse(5, Page(limit=5, fingerprint="f").next_token(key), fingerprint="f")
    with pytest.raises(InvalidArgument, match="page_token"):
        page.key(int, str)


def test_a_key_has_the_shape_that_it_was_given():
    first = Page.parse(5, "", fingerprint="f")
    assert first.key(int, str) is None
    assert Page.parse(5, first.next_token((7, "x")), fingerprint="f").key(int, str) == (7, "x")


@pytest.mark.parametrize("key", ["x", 1.5, ["x"], [1, 2]])
def test_a_forged_token_cannot_carry_a_value_of_another_kind(key):
    page = Page.parse(5, Page(limit=5, fingerprint="f").next_token(key), fingerprint="f")
    with pytest.raises(InvalidArgument, match="page_token"):
        page.value(int)


@given(st.lists(st.integers(0, 99), unique=True, max_size=12).map(sorted), st.booleans())
def test_pages_together_are_the_list(rows, ranked):
    told, sizes, token = [], [], ""
    while not sizes or token:
        page = Page.parse(3, token, fingerprint="f")
        after = page.value(int)
        behind = [row for row in rows if after is None or row > after]
        shown, token = page.part(rows) if ranked else page.cut(behind[: page.limit + 1], int)
        told += shown
        sizes.append(len(shown))
    assert told == rows and 0 not in sizes[1:]


def test_a_place_before_the_first_row_is_refused():
    page = Page.parse(5, Page(limit=5, fingerprint="f").next_token(-1), fingerprint="f")
    with pytest.raises(InvalidArgument, match="page_token"):
        page.part(["x"])


def test_huge_and_deep_tokens_are_refused():
    for token in ("A" * 1_000_000, base64.urlsafe_b64encode(b"[" * 1500).decode()):
        with pytest.raises(InvalidArgument):
            Page.parse(10, token, fingerprint="f")


def test_page_sizes():
    assert Page.parse(0, "", fingerprint="f").limit == 50
    assert Page.parse(7, "", fingerprint="f").limit == 7
    assert Page.parse(10**9, "", fingerprint="f", maximum=200).limit == 200
    with pytest.raises(InvalidArgument) as caught:
        Page.parse(-1, "", fingerprint="f")
    assert caught.value.details.field_violations[0].field == "page_size"


def test_the_last_page_has_no_token_and_bad_keys_are_programming_errors():
    page = Page.parse(1, "", fingerprint="f")
    assert page.next_token(None) == ""
    for key in ({"a": 1}, float("nan"), b"x", True, 1 << 63):
        with pytest.raises(ValueError, match="page key"):
            page.next_token(key)
    with pytest.raises(ValueError, match="too long"):
        page.next_token("x" * 4000)


def test_a_requests_fingerprint_leaves_out_nothing_it_lacks():
    one = error_details_pb2.ErrorInfo(reason="A", metadata={"b": "1", "a": "2"})
    same = error_details_pb2.ErrorInfo(reason="A", metadata={"a": "2", "b": "1"})
    other = error_details_pb2.ErrorInfo(reason="B")
    assert pagination.request_fingerprint(one) == pagination.request_fingerprint(same)
    assert pagination.request_fingerprint(one) != pagination.request_fingerprint(other)
    assert pagination.request_fingerprint(field_mask_pb2.FieldMask()) != ""
    # Two lists that are asked alike.
    assert pagination.request_fingerprint(field_mask_pb2.FieldMask()) != pagination.request_fingerprint(
        error_details_pb2.ErrorInfo()
    )
