"""The rule language: what it says, what it refuses and where, and that hostile text does no harm."""

from __future__ import annotations

import ast
import math
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.marketing.marketing_examples import NOW, offer

from chassis import localize
from marketing.engine import eligible, offer_problems
from marketing.model import Audience, Channel, Contact, OfferKind, Profile
from marketing.rules import (
    FUNCTIONS,
    PHASE_FUNCTIONS,
    RULE_CHARACTERS_MAX,
    CustomerFacts,
    RuleError,
    _outcomes,
    _tried,
    parse_rule,
    rule_problems,
)

GOLD = Profile(
    customer="c1",
    tier="gold",
    value_class="B",
    language="zh",
    tags=frozenset({"senior"}),
    products=frozenset({"phone", "tv"}),
    bought_at={"phone": NOW - timedelta(days=400)},
    churn_risk=0.8,
    care={"t1": "CONTRACT_EXPIRES", "t2": ""},
)
CALL = Contact(channel=Channel.VOICE, reason="billing", products_asked=("tv",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('tier in ["gold", "platinum"] and not owns("broadband")', True),
        ('months_since_purchase("phone") > 12', True),
        ('months_since_purchase("phone") > 14', False),
        ('months_since_purchase("never") > 1000000', True),
        ('tier == "gold" or tagged("x")', True),
        ('value_class not in ("A", "B")', False),
        ("product_count >= 2 and known", True),
        ('asked("tv") and channel == "VOICE" and contact_reason != "fault"', True),
        ('not (language == "zh")', False),
        ("wants_to_leave == True", False),
        ("churn_risk >= 0.75", True),
        ("churn_risk > 0.8", False),
        ('care("CONTRACT_EXPIRES")', True),
        ('care("BIRTHDAY") or care("SILENCE")', False),
        ('tier ==\n "gold"', True),
    ],
)
def test_a_rule_is_judged_by_the_customer_and_the_contact(text: str, expected: bool) -> None:
    assert bool(parse_rule(text).matches(CustomerFacts(GOLD, CALL, NOW))) is expected


@pytest.mark.parametrize(
    ("text", "code", "offset"),
    [
        ("", "RULE_SYNTAX", 0),
        ('tier == "gold" and', "RULE_SYNTAX", 18),
        ('teir == "gold"', "RULE_UNKNOWN_NAME", 0),
        ('known and has("x")', "RULE_UNKNOWN_NAME", 10),
        ("tier == 3", "RULE_TYPE", 8),
        ('tier < "gold"', "RULE_TYPE", 0),
        ("tier", "RULE_TYPE", 0),
        ("owns", "RULE_TYPE", 0),
        ("owns(tier)", "RULE_TYPE", 0),
        ("known == 3", "RULE_TYPE", 9),
        ("tier and known", "RULE_TYPE", 0),
        ('tier == "gold', "RULE_SYNTAX", 8),
        ("tier in [channel]", "RULE_TYPE", 9),
        ("known == None", "RULE_SYNTAX", 9),
        # The lines are one: a comment would take the rest of the rule with it.
        ('tier == "gold"  # ours\nand owns("phone")', "RULE_SYNTAX", 16),
        ('tier in ["gold" "silver"]', "RULE_SYNTAX", 16),
        ('tier in ["a"\r"b"]', "RULE_SYNTAX", 13),
        ("known and\r\ntier == 3", "RULE_TYPE", 19),
        ('tier in "gold"', "RULE_TYPE", 8),
        ('tier in ["gold", 3]', "RULE_TYPE", 17),
        ("1 < product_count < 3", "RULE_SYNTAX", 0),
        ('__import__("os").system("true")', "RULE_SYNTAX", 0),
        ("(lambda: 1)() == 1", "RULE_SYNTAX", 0),
        ("[x for x in tier] == 1", "RULE_SYNTAX", 0),
        ('tier == "a" and tier == "b"', "RULE_NEVER_MATCHES", 0),
        ("product_count > 3 and product_count < 3", "RULE_NEVER_MATCHES", 0),
        ('value_class == "G"', "RULE_NEVER_MATCHES", 0),
        ("product_count >= 0", "RULE_ALWAYS_MATCHES", 0),
        ('owns("a") or not owns("a")', "RULE_ALWAYS_MATCHES", 0),
        ("x" * (RULE_CHARACTERS_MAX + 1), "RULE_SYNTAX", RULE_CHARACTERS_MAX),
        ("(" * 1000 + ")" * 1000, "RULE_SYNTAX", None),
        ("not " * 600 + "known", "RULE_SYNTAX", None),
    ],
)
def test_a_bad_rule_is_refused_with_its_place(text: str, code: str, offset: int | None) -> None:
    (problem,) = rule_problems(text)
    assert problem.code == code
    assert offset is None or problem.offset == offset
    if not problem.harmless:
        place, why = localize.sentence(problem.told, "marketing").split("：", 1)
        assert f"第 {problem.offset} 个字符" in place and re.search("[\u3000-\u9fff]", why)
        assert not re.search("[a-z]{2} [a-z]{2}", why), "a piece of the English sentence"


def test_phases_may_ask_for_responses_and_offers_may_not() -> None:
    text = 'response("survey") == "interested"'
    rule = parse_rule(text, PHASE_FUNCTIONS)
    assert rule.matches(CustomerFacts(GOLD, CALL, NOW, {"survey": "interested"}))
    assert not rule.matches(CustomerFacts(GOLD, CALL, NOW))
    assert rule_problems(text)[0].code == "RULE_UNKNOWN_NAME"


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": Audience(tiers=frozenset({"vip"})), "rule": 'tier == "gold"'},
        {"prerequisites": frozenset({"phone"}), "rule": 'not owns("phone")'},
        {"exclusions": frozenset({"phone"}), "rule": 'owns("phone")'},
        {"rule": 'owns("broadband")'},
        {"kind": OfferKind.WIN_BACK, "rule": 'not tagged("lost")'},
        {"audience": Audience(any_tags=frozenset({"senior"})), "rule": 'not tagged("senior")'},
    ],
)
def test_a_rule_that_contradicts_the_conditions_beside_it_is_refused(changes: Any) -> None:
    problems = offer_problems(offer(**changes), "CNY")
    assert [field for field, _ in problems] == ["eligibility_rule"]
    assert "RULE_NEVER_MATCHES" in problems[0][1]


def test_a_rule_that_an_earlier_release_took_stays_as_it_was() -> None:
    stored = offer(rule="known # all whom we know")
    assert [field for field, _ in offer_problems(stored, "CNY")] == ["eligibility_rule"]
    assert offer_problems(stored, "CNY", stored) == []
    assert offer_problems(offer(rule="known # all"), "CNY", stored), "another one"


def test_an_offer_is_made_to_those_whom_its_rule_matches() -> None:
    made = offer(rule='tier == "gold" and months_since_purchase("phone") > 12')
    assert offer_problems(made, "CNY") == []
    assert eligible(made, GOLD, CALL, NOW)
    assert not eligible(made, Profile(customer="c2", tier="gold", bought_at={"phone": NOW}), CALL, NOW)


@settings(max_examples=60)
@given(st.text(alphabet="()[]\"' andortierownsknw=<>!,.0123456789\n\\{}:*_", max_size=60))
def test_any_text_is_a_rule_that_never_fails_or_a_rule_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except RuleError as error:
        assert error.problem.message
        return
    for profile in (GOLD, Profile(customer="")):
        assert bool(rule.matches(CustomerFacts(profile, CALL, NOW))) in (True, False)


numbers = st.integers(0, 4)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers), min_size=1, max_size=3)
)
def test_rules_found_never_or_always_true_are_so(parts: list[tuple[str, int]]) -> None:
    text = " and ".join(f"product_count {operator} {number}" for operator, number in parts)
    rule = parse_rule(text)
    values = [*range(8), 0.5, 1.5, 2.5, 3.5, math.inf]

    class Counted:
        def __init__(self, count: float) -> None:
            self._count = count

        def value(self, name: str) -> float:
            return self._count

        def call(self, name: str, argument: str) -> bool:
            return False

    seen = {bool(rule.matches(Counted(value))) for value in values}
    codes = {problem.code for problem in rule_problems(text)}
    assert ("RULE_NEVER_MATCHES" in codes) is (seen == {False})
    assert ("RULE_ALWAYS_MATCHES" in codes) is (seen == {True})


def test_a_churn_score_is_known_to_lie_between_0_and_1() -> None:
    codes = {"churn_risk > 1": ["RULE_NEVER_MATCHES"], "churn_risk <= 1": ["RULE_ALWAYS_MATCHES"]}
    codes |= {"churn_risk > 0.75 and churn_risk < 1": [], "churn_risk == 1": [], "churn_risk == 0": []}
    assert {text: [problem.code for problem in rule_problems(text)] for text in codes} == codes


ATOMS = [
    'tier == "a"',
    'tier != "a"',
    'owns("p")',
    "known",
    'not owns("p")',
    "product_count > 1",
    'owns("q")',
]


def joined(one: str, other: str, both: bool) -> str:
    return f"({one} {'and' if both else 'or'} {other})"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        # Each of these has more combinations than can be tried at once.
        ('tier == "a" and tier == "b"', "RULE_NEVER_MATCHES"),
        ('not (tier != "a" or tier != "b")', "RULE_NEVER_MATCHES"),
        ('tier == "a" or tier != "a"', "RULE_ALWAYS_MATCHES"),
    ],
)
def test_a_contradiction_is_found_in_a_long_rule(text: str, code: str) -> None:
    others = [f'owns("p{number}")' for number in range(40)]
    joint = " and " if code == "RULE_NEVER_MATCHES" else " or "
    assert [problem.code for problem in rule_problems(joint.join([*others, f"({text})"]))] == [code]
    assert rule_problems(" and ".join(others)) == []


@settings(max_examples=60)
@given(st.recursive(st.sampled_from(ATOMS), lambda inner: st.builds(joined, inner, inner, st.booleans())))
def test_outcomes_found_by_parts_are_those_of_all_combinations(text: str) -> None:
    tree = ast.parse(text, mode="eval").body
    assert _outcomes(tree, FUNCTIONS, {}) == _tried(tree, FUNCTIONS, {})


def test_a_rule_may_have_lines_of_any_system_and_what_was_stored_is_read() -> None:
    assert rule_problems('tier == "gold"\r\nand owns("phone")') == []
    assert parse_rule('tier in ["gold" "silver"] # of an earlier release').constants
