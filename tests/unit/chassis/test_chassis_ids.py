"""Ids sort, resource names are read strictly."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis import ids
from chassis.errors import InvalidArgument
from chassis.ids import check_id, new_id, parse_name, parse_names, resource_name, stable_id

VALID = st.from_regex(r"[A-Za-z0-9._~:\-]{1,128}", fullmatch=True)


def test_new_ids_have_one_form_and_rise():
    made = [new_id() for _ in range(5000)]
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{26}", one) for one in made)
    assert made == sorted(made) and len(set(made)) == len(made)
    assert new_id("call-").startswith("call-")


def test_ids_rise_even_when_the_machines_clock_steps_back(monkeypatch):
    before = new_id()
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_000_000_000)
    assert new_id() > before


def test_ids_of_one_millisecond_follow_one_another(monkeypatch):
    monkeypatch.setattr(ids.time, "time_ns", lambda: 2**62)
    # Random digits that a few more steps carry over, and a clock that stands.
    monkeypatch.setattr(ids.os, "urandom", lambda count: b"\x00" * (count - 2) + b"\x03\xfe")
    made = [ids._Ulids().next()]
    maker = ids._Ulids()
    made += [maker.next() for _ in range(3000)]
    first = 2**62 // 1_000_000 << 80 | 0x3FE
    assert made[0] == ids._encode(first)
    assert made[1:] == [ids._encode(first + at) for at in range(3000)]


def test_threads_never_share_an_id():
    with ThreadPoolExecutor(8) as pool:
        made = [
            one for batch in pool.map(lambda _: [new_id() for _ in range(500)], range(8)) for one in batch
        ]
    assert len(set(made)) == 4000


@given(st.lists(st.text(max_size=20), max_size=4), st.lists(st.text(max_size=20), max_size=4))
def test_a_stable_id_depends_on_its_parts_alone(one, other):
    assert stable_id(*one) == stable_id(*one)
    assert (stable_id(*one) == stable_id(*other)) == (one == other)
    assert len(stable_id(*one)) == 26


def test_a_stable_id_never_changes_between_releases():
    # Consumers that ran before an upgrade must find what they wrote.
    assert stable_id("call-1", "ticket") == stable_id("call-1", "ticket")
    assert stable_id("a", 1) == "1te32nncd55gg4k9wxhhve8gvy"


@given(VALID)
def test_a_good_id_is_returned_and_makes_a_name_that_reads_back(value):
    assert check_id("id", value) == value
    assert parse_name("name", "customers", resource_name("customers", value)) == value


@given(st.text(max_size=200))
def test_any_text_is_either_an_id_or_an_error_that_names_the_field(value):
    try:
        assert check_id("call_id", value) == value
    except InvalidArgument as error:
        assert error.details.field_violations[0].field == "call_id"
    else:
        assert re.fullmatch(r"[A-Za-z0-9._~:\-]{1,128}", value)


@pytest.mark.parametrize("value", ["", "a b", "a/b", "é", "x" * 129, "a\n", "{$ne:1}"])
def test_bad_ids(value):
    with pytest.raises(InvalidArgument):
        check_id("id", value)


def test_the_longest_id_can_be_set():
    assert check_id("id", "x" * 200, max_length=200)
    with pytest.raises(InvalidArgument, match="at most 5 characters, got 6"):
        check_id("id", "x" * 6, max_length=5)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "customers",
        "customers/",
        "customers//",
        "customers/a/b",
        "tickets/a",
        "/customers/a",
        "x" * 100000,
    ],
)
def test_names_of_another_form_are_refused(name):
    with pytest.raises(InvalidArgument) as caught:
        parse_name("customer", "customers", name)
    assert caught.value.details.field_violations[0].field == "customer"


def test_nested_names():
    assert parse_names("name", ("tickets", "notes"), "tickets/7/notes/2") == ("7", "2")
    with pytest.raises(InvalidArgument, match=r"tickets/\{id\}/notes/\{id\}"):
        parse_names("name", ("tickets", "notes"), "tickets/7")
