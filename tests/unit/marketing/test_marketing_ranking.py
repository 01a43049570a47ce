"""Laws of the ranking, against a reference that scores every offer."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.unit.marketing.marketing_examples import NOW, baskets, best_rule, cny, offer, offers, profiles

from marketing import ranking
from marketing.association import Counts, RuleTable
from marketing.engine import eligible
from marketing.model import Contact, Money, Offer, Profile, ReasonCode, Script, Text
from marketing.propensity import Propensity, corrected, traits
from marketing.ranking import Ranker

contacts = st.builds(
    Contact,
    products_asked=st.sampled_from([(), ("p1",), ("p1", "p7")]),
    wants_to_leave=st.booleans(),
)


def table_of(histories: list[set[str]]) -> RuleTable:
    counts = Counts()
    for history in histories:
        counts.add(history)
    return counts.table(model="m1")


def by_scoring_all(
    catalogue: list[Offer], table: RuleTable, profile: Profile, contact: Contact, limit: int
) -> list[tuple[str, float]]:
    owned = profile.products | set(contact.products_asked)
    scored = []
    for o in catalogue:
        if eligible(o, profile, contact, NOW):
            scored.append(
                (-best_rule(table, owned, o.product).probability * float(o.worth.amount), o.id, o.product)
            )
    chosen: list[tuple[str, float]] = []
    products: set[str] = set()
    for score, id, product in sorted(scored):
        if product not in products:
            products.add(product)
            chosen.append((id, -score))
    return chosen[:limit]


@settings(max_examples=150)
@given(offers(), baskets, profiles, contacts, st.integers(1, 5), st.sampled_from([(32, 4), (32, 0), (4, 0)]))
def test_ranking_is_that_of_scoring_every_offer(
    catalogue: list[Offer],
    histories: list[set[str]],
    profile: Profile,
    contact: Contact,
    limit: int,
    heights: tuple[int, int],
) -> None:
    table = table_of(histories)
    with pytest.MonkeyPatch.context() as patch:
        # With little to spare the highest scores of single products are enough for a small catalogue, too.
        patch.setattr(ranking, "HEIGHTS_MAX", heights[0])
        patch.setattr(ranking, "SPARE_HEIGHTS", heights[1])
        ranked = Ranker(catalogue, table).rank(profile, contact, NOW, limit)
    assert [(r.offer, r.score) for r in ranked] == by_scoring_all(catalogue, table, profile, contact, limit)
    assert [r.rank for r in ranked] == list(range(1, len(ranked) + 1))


@given(offers(), baskets, profiles, contacts)
def test_never_ineligible_never_two_of_a_product(
    catalogue: list[Offer], histories: list[set[str]], profile: Profile, contact: Contact
) -> None:
    by_id = {o.id: o for o in catalogue}
    ranked = Ranker(catalogue, table_of(histories)).rank(profile, contact, NOW, 10)
    assert all(eligible(by_id[r.offer], profile, contact, NOW) for r in ranked)
    assert len({r.product for r in ranked}) == len(ranked)
    assert all(r.propensity == 1.0 and 0 < r.probability < 1 for r in ranked)


@given(offers(), baskets, profiles, st.randoms(use_true_random=False))
def test_same_input_same_ranking_in_any_order(
    catalogue: list[Offer], histories: list[set[str]], profile: Profile, random: object
) -> None:
    table = table_of(histories)
    first = Ranker(catalogue, table).rank(profile, Contact(), NOW, 10)
    shuffled = list(catalogue)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = Ranker(shuffled, table)
    assert [r.offer for r in again.rank(profile, Contact(), NOW, 10)] == [r.offer for r in first]
    assert again.rank(profile, Contact(), NOW, 10) == again.rank(profile, Contact(), NOW, 10)


@given(offers(), baskets, profiles, st.data())
def test_more_worth_never_ranks_lower(
    catalogue: list[Offer], histories: list[set[str]], profile: Profile, data: st.DataObject
) -> None:
    table = table_of(histories)
    before = [r.offer for r in Ranker(catalogue, table).rank(profile, Contact(), NOW, 20)]
    if not before:
        return
    lifted = data.draw(st.sampled_from(before))
    raised = [
        replace(o, value=Money(currency="CNY", amount=o.worth.amount + Decimal(100))) if o.id == lifted else o
        for o in catalogue
    ]
    after = [r.offer for r in Ranker(raised, table).rank(profile, Contact(), NOW, 20)]
    assert after.index(lifted) <= before.index(lifted)


def test_rows_are_bounded_and_forgotten_ones_are_made_again(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(ranking, "ROWS_MAX", 1)
    table = table_of([{"p1", "p2"}] * 9 + [{"p3"}] * 3)
    ranker = Ranker([offer(id="a", product="p2"), offer(id="b", product="p3")], table)
    profile = Profile(customer="c", products=frozenset({"p1"}))
    first = ranker.rank(profile, Contact(), NOW, 3)
    ranker.rank(Profile(customer="d", products=frozenset({"p3"})), Contact(), NOW, 3)
    assert ranker.rank(profile, Contact(), NOW, 3) == first
    assert len(ranker._rows) == 1


def test_reason_can_be_said_aloud() -> None:
    table = table_of([{"phone", "broadband"}] * 34 + [{"phone"}] * 66 + [{"tv"}] * 900)
    catalogue = [
        offer(),
        offer(id="phone-5g", product="phone", titles=(Text(language="en", text="Phone 5G"),)),
    ]
    profile = Profile(customer="c", products=frozenset({"phone"}))
    (best,) = Ranker(catalogue, table).rank(profile, Contact(), NOW, 3)
    assert best.reason.code is ReasonCode.ASSOCIATION
    assert (best.reason.because_product, best.reason.share, best.reason.customer_count) == (
        "phone",
        0.34,
        100,
    )
    words = {text.language: text.text for text in best.reason.texts}
    assert words["en"] == "Customers with Phone 5G often take Broadband 100: 34 % of 100."
    assert words["zh"] == "使用Phone 5G的客户常常选择百兆宽带：100位客户中有34%。"
    assert best.reason.lift > 1


def test_unknown_caller_gets_what_is_popular() -> None:
    table = table_of([{"broadband"}] * 60 + [{"tv"}] * 40)
    catalogue = [offer(), offer(id="tv-box", product="tv"), offer(id="new", product="never-sold")]
    ranked = Ranker(catalogue, table).rank(Profile(customer=""), Contact(), NOW, 3)
    assert [r.offer for r in ranked] == ["broadband-100", "tv-box", "new"]
    assert ranked[0].reason.code is ReasonCode.POPULARITY
    assert ranked[0].reason.texts[1].text == "Many customers choose Broadband 100: 60 % of 100."
    assert ranked[2].reason.texts[1].text == "Broadband 100 is new in our range."


def test_a_pair_of_few_customers_is_not_spoken_of() -> None:
    table = table_of([{"phone", "broadband"}] * 2 + [{"broadband"}] * 50)
    (best,) = Ranker([offer()], table).rank(
        Profile(customer="c", products=frozenset({"phone"})), Contact(), NOW, 3
    )
    assert best.reason.code is ReasonCode.POPULARITY and best.reason.because_product == ""


def test_nearest_script_wins_in_each_language() -> None:
    scripts = (
        Script(audience="", language="zh", text="大家"),
        Script(audience="gold", language="zh", text="金卡"),
        Script(audience="senior", language="zh", text="长者"),
        Script(audience="", language="en", text="all"),
        Script(audience="vip", language="en", text="vip"),
    )
    profile = Profile(customer="c", tier="gold", tags=frozenset({"senior"}))
    (best,) = Ranker([offer(scripts=scripts, price=cny("1"))], RuleTable()).rank(profile, Contact(), NOW, 1)
    assert [(t.language, t.text) for t in best.scripts] == [("en", "all"), ("zh", "长者")]


@settings(max_examples=60)
@given(offers(), baskets, profiles, contacts, st.lists(st.floats(-3, 3), min_size=8, max_size=8))
def test_ranking_by_a_propensity_model_is_that_of_correcting_every_offer(
    catalogue: list[Offer],
    histories: list[set[str]],
    profile: Profile,
    contact: Contact,
    weights: list[float],
) -> None:
    table = table_of(histories)
    names = [
        "constant",
        "base",
        "tier=gold",
        "tier=gold|o01",
        "leaving=True",
        *(f"offer=o0{n}" for n in (0, 2, 3)),
    ]
    model = Propensity(model="m", weights=dict(zip(names, weights, strict=True)))
    known, owned = traits(profile, contact), profile.products | set(contact.products_asked)
    wanted = {
        o.id: corrected(model, o.id, known, best_rule(table, owned, o.product).probability)
        * float(o.worth.amount)
        for o in catalogue
        if eligible(o, profile, contact, NOW)
    }
    found = Ranker(catalogue, table).candidates(profile, contact, NOW, 3, model)
    assert [candidate.score for candidate in found] == pytest.approx(
        [wanted[candidate.offer.id] for candidate in found]
    )
    # Of each product the best one, and none better was left out.
    shown = {candidate.offer.product for candidate in found}
    best = {
        o.product: max(wanted.get(p.id, -1) for p in catalogue if p.product == o.product) for o in catalogue
    }
    for candidate in found:
        assert candidate.score == pytest.approx(best[candidate.offer.product])
    left = [score for product, score in best.items() if product not in shown and score >= 0]
    if left and len(found) == 3:
        assert max(left) <= found[-1].score + 1e-9
    assert len(found) == min(3, sum(score >= 0 for score in best.values()))


def test_a_new_offer_is_estimated_like_one_of_which_nothing_is_known() -> None:
    table = table_of([{f"p{number % 7}", "phone"} for number in range(2_000)])
    old = [offer(id=f"o{n}", product=f"p{n}", published_at=NOW - timedelta(days=90)) for n in range(7)]
    fresh = [offer(id=f"n{n}", product=f"n{n}", published_at=NOW - timedelta(days=n)) for n in range(40)]
    profile = Profile(customer="c1", products=frozenset({"phone"}))
    ranker = Ranker([*old, *fresh], table, NOW)
    beside = ranker.candidates(profile, Contact(), NOW, 7)
    assert {candidate.offer.id for candidate in beside} == {one.id for one in old}
    tried = ranker.newcomers(profile, Contact(), NOW, beside)
    assert [(one.probability, one.rule.probability) for one in tried] == [(0.01, 0.01)] * 2
    assert ranker.newcomers(profile, Contact(), NOW, [*beside, *tried]) != tried
    met = {
        candidate.offer.id
        for number in range(200)
        for candidate in ranker.newcomers(
            structs.replace(profile, customer=f"c{number}"), Contact(), NOW, beside
        )
    }
    # Those published more than thirty days ago are not new, and every other one is met by somebody.
    assert met == {f"n{number}" for number in range(30)}
    assert not Ranker([*old, *fresh], table).newcomers(profile, Contact(), NOW, beside)


def test_what_a_new_offers_first_customers_have_speaks_for_it() -> None:
    table = table_of([{"phone", "case"}] * 12 + [{"lamp"}] * 2_000)
    fresh = offer(id="n1", product="case", published_at=NOW - timedelta(days=1))
    ranker = Ranker([fresh], table, NOW)
    [with_phone] = ranker.candidates(Profile(customer="c1", products=frozenset({"phone"})), Contact(), NOW, 1)
    assert with_phone.rule.antecedent == "phone" and with_phone.probability > 0.05
    assert with_phone.probability == pytest.approx(with_phone.rule.probability)
    # That no owner of a lamp has one yet does not speak against it.
    [with_lamp] = ranker.candidates(Profile(customer="c2", products=frozenset({"lamp"})), Contact(), NOW, 1)
    assert (with_lamp.rule.antecedent, with_lamp.probability) == ("", 0.01)
