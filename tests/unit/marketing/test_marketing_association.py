"""The association counts and estimates, against a reference that counts each pair by looking at every
customer again.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.marketing.marketing_examples import PRODUCTS, baskets, best_rule

from marketing import association
from marketing.association import Counts, RuleTable, Smoothing, base_rate, popularity, rule

smoothings = st.builds(Smoothing, strength=st.floats(0.1, 100), rate=st.floats(0.001, 0.5))


def counted(histories: list[set[str]], smoothing: Smoothing | None = None) -> RuleTable:
    counts = Counts()
    for history in histories:
        counts.add(history)
    return counts.table(model="m1", smoothing=smoothing)


@given(baskets, smoothings)
def test_table_says_what_counting_by_hand_says(histories: list[set[str]], smoothing: Smoothing) -> None:
    table = counted(histories, smoothing)
    filled = [h for h in histories if h]
    assert table.customers == len(filled)
    for x in PRODUCTS:
        n_x = sum(x in h for h in filled)
        assert table.having.get(x, 0) == n_x
        base = (n_x + smoothing.strength * smoothing.rate) / (len(filled) + smoothing.strength)
        assert base_rate(table, x) == pytest.approx(base)
        for y in PRODUCTS:
            found = rule(table, x, y)
            if x == y or n_x == 0:
                assert found is None
                continue
            n_xy = sum(x in h and y in h for h in filled)
            p_y = base_rate(table, y)
            assert found is not None
            assert (found.together, found.customers) == (n_xy, n_x)
            assert found.share == pytest.approx(n_xy / n_x)
            assert found.probability == pytest.approx(
                (n_xy + smoothing.strength * p_y) / (n_x + smoothing.strength)
            )
            assert found.lift == pytest.approx(found.probability / p_y)


@given(baskets, smoothings, st.sets(st.sampled_from(PRODUCTS)), st.sampled_from(PRODUCTS))
def test_estimates_are_probabilities_and_best_is_the_loudest(
    histories: list[set[str]], smoothing: Smoothing, owned: set[str], y: str
) -> None:
    table = counted(histories, smoothing)
    best = best_rule(table, owned, y)
    assert 0 < best.base < 1 and 0 < best.probability < 1
    judging = [r for x in owned if (r := rule(table, x, y)) is not None]
    if judging:
        assert best.probability == max(r.probability for r in judging)
    else:
        assert best == popularity(table, y)


@given(baskets, st.randoms(use_true_random=False))
def test_order_of_customers_does_not_matter(histories: list[set[str]], random: object) -> None:
    shuffled = list(histories)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counted(shuffled) == counted(histories)


def test_few_customers_are_pulled_to_the_base_rate_and_many_are_not() -> None:
    few = counted([{"x", "y"}] * 2 + [{"z"}] * 998)
    many = counted([{"x", "y"}] * 500 + [{"z"}] * 500)
    from_few, from_many = rule(few, "x", "y"), rule(many, "x", "y")
    assert from_few is not None and from_few.share == 1.0 and from_few.probability < 0.15
    assert from_many is not None and from_many.probability > 0.97


def test_empty_history_knows_only_the_prior() -> None:
    table = counted([])
    assert table.customers == table.facts == table.rules == 0
    assert best_rule(table, {"x"}, "y").probability == pytest.approx(0.01)
    assert popularity(table, "y").share == 0.0


def test_cut_lists_do_not_judge_what_they_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association, "PARTNERS_MAX", 1)
    monkeypatch.setattr(association, "PRODUCTS_MAX", 3)
    table = counted([{"x", "a"}, {"x", "a", "b"}, {"x", "rare"}])
    assert set(table.having) == {"x", "a", "b"}
    assert table.partners["x"].together == {"a": 2} and not table.partners["x"].complete
    assert rule(table, "x", "b") is None
    assert best_rule(table, {"x"}, "b") == popularity(table, "b")
    # Nobody has b without a, so the whole list of b is short enough to be kept, and judges.
    assert rule(table, "a", "x") is not None


def test_a_reseller_counts_for_a_bounded_number_of_products() -> None:
    table = counted([{f"q{i:04}" for i in range(5_000)}])
    assert table.facts == association.PRODUCTS_PER_CUSTOMER_MAX


@pytest.mark.parametrize(("strength", "rate"), [(0, 0.5), (-1, 0.5), (1, 0), (1, 1)])
def test_bad_smoothing_is_refused(strength: float, rate: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        Smoothing(strength=strength, rate=rate)
