"""What people may fill in, and what becomes of texts that cannot be refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from tickets import validation
from tickets.model import Draft

GOOD = Draft(subject="Line is down since 昨天 👩‍🔧")


def fields_of(draft: Draft) -> list[str]:
    with pytest.raises(InvalidArgument) as error:
        validation.check_draft(draft)
    return [violation.field for violation in error.value.details.field_violations]


def test_a_full_draft_passes() -> None:
    validation.check_draft(
        replace(
            GOOD,
            description="a\nb\té" + "x" * 60_000,
            category="billing/roaming",
            customer_id="42",
            caller_number="+8613800138000",
            language="zh-Hans-CN",
            required_skills=("fibre",),
            tags=("重要", "a.b"),
            attributes={"contract.end": "2027"},
            assets=("assets/1",),
            products=("5G 套餐",),
        )
    )


@pytest.mark.parametrize(("changes", "field"), [
    ({"subject": ""}, "ticket.subject"),
    ({"subject": " \u3000"}, "ticket.subject"),
    ({"subject": "x" * 201}, "ticket.subject"),
    ({"subject": "a\nb"}, "ticket.subject"),
    ({"subject": "a\x00b"}, "ticket.subject"),
    ({"description": "é" * 32_769}, "ticket.description"),
    ({"description": "\x1b[31m"}, "ticket.description"),
    ({"category": "x" * 65}, "ticket.category"),
    ({"category": "$ne"}, "ticket.category"),
    ({"customer_id": "a/b"}, "ticket.customer"),
    ({"customer_id": "x" * 129}, "ticket.customer"),
    ({"caller_number": "13800138000"}, "ticket.caller_number"),
    ({"caller_number": "+0123456"}, "ticket.caller_number"),
    ({"caller_number": "+" + "1" * 16}, "ticket.caller_number"),
    ({"caller_number": "+٨٦١٣٨٠٠"}, "ticket.caller_number"),
    ({"language": "klingon!"}, "ticket.language"),
    ({"required_skills": tuple(f"s{n}" for n in range(17))}, "ticket.required_skills"),
    ({"tags": ("a", "a")}, "ticket.tags"),
    ({"tags": ("a", "")}, "ticket.tags[1]"),
    ({"attributes": {f"k{n}": "" for n in range(65)}}, "ticket.attributes"),
    ({"attributes": {"$set": "1"}}, "ticket.attributes"),
    ({"attributes": {"k": "x" * 1025}}, "ticket.attributes[k]"),
    ({"assets": ("1",)}, "ticket.assets[0]"),
    ({"products": ("",)}, "ticket.products[0]"),
])  # fmt: skip
def test_bad_fields_are_named(changes: dict[str, object], field: str) -> None:
    assert fields_of(replace(GOOD, **changes)) == [field]  # type: ignore[arg-type]


def test_all_bad_fields_are_named_at_once() -> None:
    assert fields_of(Draft(subject="", category="$", caller_number="x")) == [
        "ticket.subject",
        "ticket.category",
        "ticket.caller_number",
    ]


@given(st.text(), st.integers(1, 50))
def test_cleaned_lines_are_valid(text: str, maximum: int) -> None:
    line = validation.clean_line(text, maximum)
    assert validation.line_problem(line, maximum) is None


@given(st.text(alphabet=st.characters()), st.integers(0, 40))
def test_cleaned_texts_are_valid_and_within_bounds(text: str, maximum: int) -> None:
    cleaned = validation.clean_text(text, maximum)
    assert len(cleaned.encode()) <= maximum
    assert validation.text_problem(cleaned) is None


@given(st.text())
def test_cleaned_labels_are_valid_or_empty(text: str) -> None:
    label = validation.clean_label(text)
    assert label == "" or validation.label_problem(label) is None


def test_what_is_valid_stays_as_it_is() -> None:
    assert validation.clean_label("billing/roaming") == "billing/roaming"
    assert validation.clean_number("+8613800138000") == "+8613800138000"
    assert validation.clean_number("anonymous") == ""
    assert validation.clean_id("a/b") == ""
