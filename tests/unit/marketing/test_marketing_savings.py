"""The savings advisor against a bill written out month by month for every combination."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketing import savings_engine
from marketing.savings_engine import MeterPrice, Tariff, Tier, TooManyCombinations, Usage, cheapest

METERS = ("voice", "data")
quantities = st.integers(0, 12).map(Decimal)
prices = st.integers(0, 5).map(Decimal)


@st.composite
def meter_prices(draw: st.DrawFn, priced: bool) -> MeterPrice:
    tiers: list[Tier] = []
    if priced:
        first = draw(st.integers(1, 6))
        bound = draw(st.sampled_from([None, Decimal(first)]))
        tiers = [Tier(up_to=bound, unit_price=draw(prices))]
        if bound is not None and draw(st.booleans()):
            tiers.append(Tier(up_to=None, unit_price=draw(prices)))
    step = Decimal(draw(st.sampled_from([0, 0, 3])))
    return MeterPrice(included=draw(quantities), tiers=tuple(tiers), step=step)


@st.composite
def tariffs(draw: st.DrawFn) -> list[Tariff]:
    found = []
    for number in range(draw(st.integers(1, 3))):
        meters = {meter: draw(meter_prices(True)) for meter in METERS if draw(st.booleans())}
        found.append(Tariff(id=f"plan{number}", is_plan=True, fee=draw(quantities), meters=meters))
    for number in range(draw(st.integers(0, 4))):
        touched = draw(st.sets(st.sampled_from(METERS), min_size=1))
        found.append(
            Tariff(
                id=f"add{number}",
                is_plan=False,
                fee=draw(prices),
                meters={meter: draw(meter_prices(draw(st.booleans()))) for meter in touched},
                plans=frozenset(draw(st.sets(st.sampled_from(["plan0", "plan1"])))),
                excluded=frozenset(draw(st.sets(st.sampled_from(["add0", "add1", "plan2"]), max_size=1)))
                - {f"add{number}"},
                quantity_max=draw(st.integers(1, 2)),
            )
        )
    return found


usages = st.lists(st.dictionaries(st.sampled_from(METERS), quantities), min_size=1, max_size=3)


HALF_A_CENT = Fraction(1, 200)


def charged(price: MeterPrice, included: int, used: int) -> Fraction | None:
    """A quantity's price, unit by unit."""
    if price.step:
        used = -(-used // int(price.step)) * int(price.step)
    total = Fraction(0)
    for unit in range(1, used - included + 1):
        tier = next((one for one in price.tiers if one.up_to is None or unit <= one.up_to), None)
        if tier is None:
            return None
        total += Fraction(tier.unit_price)
    return total


def bill(plan: Tariff, add_ons: Sequence[Tariff], months: Sequence[Usage]) -> Fraction | None:
    """Mean cost of a month; None where something is not to be had."""
    total = Fraction(0)
    for month in months:
        total += sum(Fraction(one.fee) for one in (plan, *add_ons))
        for meter, used in month.items():
            holders = [one.meters[meter] for one in (plan, *add_ons) if meter in one.meters]
            if not holders and used:
                return None
            included = int(sum(one.included for one in holders))
            priced = [one for one in holders if one.tiers] or holders
            costs = [cost for one in priced if (cost := charged(one, included, int(used))) is not None]
            if priced and not costs:
                return None
            total += min(costs, default=Fraction(0))
    return total / len(months)


def permitted(plan: Tariff, add_ons: Sequence[Tariff]) -> bool:
    ids = {one.id for one in add_ons}
    return not any(
        (one.plans and plan.id not in one.plans)
        or one.excluded & (ids | {plan.id})
        or one.id in plan.excluded
        for one in add_ons
    )


@settings(max_examples=100, deadline=None)
@given(tariffs(), usages)
def test_nothing_permitted_is_cheaper_and_the_bill_is_right(
    offered: list[Tariff], months: list[Usage]
) -> None:
    plans, add_ons = [one for one in offered if one.is_plan], [one for one in offered if not one.is_plan]
    every = []
    for plan in plans:
        for counts in itertools.product(*(range(one.quantity_max + 1) for one in add_ons)):
            taken = [one for one, count in zip(add_ons, counts, strict=True) for _ in range(count)]
            if permitted(plan, taken) and (cost := bill(plan, taken, months)) is not None:
                every.append(cost)
    found, _ = cheapest(offered, months, 3)
    assert bool(found) is bool(every)
    if found:
        assert abs(Fraction(found[0].cost) - min(every)) <= HALF_A_CENT
    by_id = {one.id: one for one in offered}
    for quote in found:
        written_out = bill(by_id[quote.plan], [by_id[id] for id in quote.add_ons], months)
        assert written_out is not None and abs(Fraction(quote.cost) - written_out) <= HALF_A_CENT
        assert quote.cost == sum(line.amount for line in quote.lines)
    assert [quote.cost for quote in found] == sorted(quote.cost for quote in found)


def test_equal_costs_are_equal_and_lines_add_up_where_a_mean_has_no_end() -> None:
    """22 over three months, by one line or by two: 7.33 each (they were unlike, and so out of order)."""
    two = MeterPrice(included=Decimal(1), tiers=(Tier(up_to=None, unit_price=Decimal(2)),))
    one = MeterPrice(included=Decimal(9), tiers=(Tier(up_to=None, unit_price=Decimal(1)),))
    offered = [
        Tariff(id="plan", is_plan=True, fee=Decimal(0), meters={"voice": two}),
        Tariff(id="b", is_plan=False, fee=Decimal(1), meters={"data": one}, quantity_max=2),
        Tariff(id="a", is_plan=False, fee=Decimal(3), meters={"voice": MeterPrice(included=Decimal(4))}),
    ]
    months: list[Usage] = [{}, {"voice": Decimal(9)}, {"data": Decimal(11)}]
    found, _ = cheapest(offered, months, 9)
    assert [quote.cost for quote in found] == sorted(quote.cost for quote in found)
    for quote in found:
        assert quote.cost == sum(line.amount for line in quote.lines)


def test_more_combinations_than_are_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings_engine, "COMBINATIONS_MAX", 7)
    price = {"voice": MeterPrice(included=Decimal(1))}
    plan = Tariff(id="plan", is_plan=True, fee=Decimal(1), meters=price)
    more = [Tariff(id=f"a{number}", is_plan=False, fee=Decimal(1), meters=price) for number in range(3)]
    with pytest.raises(TooManyCombinations):
        cheapest([plan, *more], [{"voice": Decimal(1)}], 3)
