"""The filter language: what it reads, and that nothing hostile gets through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from tickets import filters
from tickets.filters import AnyOf, Condition, Not, Term, parse


def test_a_time_without_quotes_is_told_to_take_them() -> None:
    with pytest.raises(InvalidArgument, match="double quotes"):
        parse("create_time > 2026-01-01T00:00:00Z")


def test_an_empty_filter_holds_for_all() -> None:
    assert parse("") == parse("  ") == ()


@pytest.mark.parametrize(("text", "conditions"), [
    ("kind = COMPLAINT", [("kind", "=", "complaint")]),
    ("kind=TICKET_KIND_RETURN_VISIT", [("kind", "=", "return_visit")]),
    ("phase != closed AND open = TRUE", [("phase", "!=", "closed"), ("open", "=", True)]),
    ('customer = "customers/a:b-1"', [("customer", "=", "a:b-1")]),
    ("customer = customers/42 AND caller_number = +8613800138000",
     [("customer", "=", "42"), ("caller_number", "=", "+8613800138000")]),
    ('category = "AND"', [("category", "=", "AND")]),
    ("category = AND AND category = x", [("category", "=", "AND"), ("category", "=", "x")]),
    (r'category = "a\"b\\c"', [("category", "=", 'a"b\\c')]),
    ("tags:vip", [("tags", ":", "vip")]),
    ("channel = CHANNEL_VOICE AND customer_tier = vip",
     [("channel", "=", "voice"), ("customer_tier", "=", "vip")]),
    ("language = zh-CN required_skills:fibre",
     [("language", "=", "zh-CN"), ("required_skills", ":", "fibre")]),
    ("call = calls/c1", [("call", "=", "c1")]),
    ('create_time >= "1970-01-01T00:00:01Z"', [("create_time", ">=", 1000)]),
    ('due_time < "1970-01-01T01:00:01+01:00"', [("due_time", "<", 1000)]),
    ('state = "$where"', [("state", "=", "$where")]),
])  # fmt: skip
def test_comparisons_are_read(text: str, conditions: list[tuple[str, str, object]]) -> None:
    assert [(c.field, c.op, c.value) for c in parse(text)] == conditions


@pytest.mark.parametrize("text", [
    "kind", "kind =", "= COMPLAINT", "kind = A = B", "kind = NONSENSE", "AND", "kind = CARE AND",
    "kind = CARE OR", "a:b:c", "NOT", "(kind = CARE", "kind = CARE)", "()", "kind : CARE", "state = (x)",
    "(" * 9 + "open = true" + ")" * 9, " OR ".join(["open = true"] * 17), "secret = 1",
    "open = maybe", "kind > CARE",
    "tags != a", 'create_time > "0001-01-01T00:00:00+14:00"', 'due_time < "9999-12-31T23:59:59-10:00"',
    "customer = 42", "customer = tickets/42", 'customer = "customers/a/b"', "create_time = yesterday",
    'create_time > "2026-01-01T00:00:00"', 'category = "open', 'category = ""', "kind = CARE,OTHER AND",
    'state = "' + "x" * 201 + '"', "x" * 2049, " AND ".join(["open = true"] * 17), "outbox = a", "_id = a",
    '{"$where": "1"}', "category = \x00", 'category = "\x00"',
])  # fmt: skip
def test_everything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse(text)
    assert error.value.values["field"] == "filter"


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except InvalidArgument:
        return
    assert sum(1 for _ in comparisons(found)) <= filters.CONDITIONS_MAX
    for condition in comparisons(found):
        assert isinstance(condition.value, str | int | bool)


def comparisons(terms: Iterable[Term]) -> Iterator[Condition]:
    for term in terms:
        if isinstance(term, Condition):
            yield term
        else:
            yield from comparisons([term.term] if isinstance(term, Not) else term.terms)


@pytest.mark.parametrize(("text", "shape"), [
    ("state = a OR state = b AND state = c", "(a|b)&c"),
    ("state = a AND (state = b OR NOT state = c)", "a&(b|!c)"),
    ("state = a state = b", "a&b"),
    ("-state = a", "!a"),
    ("NOT (state = a AND state = b) OR state = c", "(!(a&b)|c)"),
    ("-assignee:* team:*", "!assignee&team"),
    ("NOT = 1 OR state = a", None),
    ('state = "OR" OR state = NOT', "(OR|NOT)"),
])  # fmt: skip
def test_and_or_and_not_bind_as_aip_160_says(text: str, shape: str | None) -> None:
    def drawn(term: Term) -> str:
        if isinstance(term, Condition):
            return term.field if term.op == ":*" else str(term.value)
        if isinstance(term, Not):
            return "!" + drawn(term.term)
        joint = "|" if isinstance(term, AnyOf) else "&"
        return "(" + joint.join(drawn(one) for one in term.terms) + ")"

    if shape is None:
        with pytest.raises(InvalidArgument):
            parse(text)
        return
    assert "&".join(drawn(term) for term in parse(text)) == shape
