"""The savings advisor: the cheapest plan with add-ons for what a customer uses. Pure and exact.

1. Money and quantities are decimal numbers; nothing is rounded before the end, so equal costs are equal.
   The means of a quote are rounded once, to `PLACES`; what its lines lose by that is in the dearest of them,
   so that they add up to the cost.
2. A combination is one plan and any of the add-ons that fit it, each up to its quantity, none excluded by
   another. Its cost in a month is the fees and, meter by meter, the tiers above the included quantity,
   quantity rounded up to the charging step first. Add-ons add their included quantities; the tiers are the
   plan's, or an add-on's where it brings its own.
3. A plan that lacks a meter which the customer uses is no answer, unless an add-on brings that meter.
4. Every permitted combination is compared. Before that add-ons that touch no meter used are left out: they
   only cost more. More combinations than `COMBINATIONS_MAX` are refused, not sampled: the answer is exact or
   none.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal

from chassis.errors import FailedPrecondition

#: Most combinations compared.
COMBINATIONS_MAX = 200_000
#: To what means are rounded, half to even: hundredths, as a quote shows them.
PLACES = Decimal("0.01")


class TooManyCombinations(FailedPrecondition):
    """{subject}: {why}."""

    reason = "TOO_MANY_COMBINATIONS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One tier of a price."""

    #: The tier ends at this quantity above the included one; None for the last.
    up_to: Decimal | None
    #: Price of one unit inside it.
    unit_price: Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterPrice:
    """What one meter costs."""

    included: Decimal = Decimal(0)
    #: Charges above that; none for an add-on that only adds to what is included.
    tiers: tuple[Tier, ...] = ()
    #: Charged in whole multiples of it; 0 is exact.
    step: Decimal = Decimal(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """A price list."""

    id: str
    is_plan: bool
    fee: Decimal
    meters: Mapping[str, MeterPrice]
    #: Add-ons: plans it may be added to; empty is all.
    plans: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    quantity_max: int = 1


#: What was used in one month, by meter.
Usage = Mapping[str, Decimal]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a bill, as monthly means."""

    tariff: str
    #: "" for the fee.
    meter: str
    quantity: Decimal
    amount: Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """A combination and what it would have cost."""

    plan: str
    add_ons: tuple[str, ...]
    #: Mean cost a month.
    cost: Decimal
    lines: tuple[Line, ...]


def charge(price: MeterPrice, included: Decimal, quantity: Decimal) -> Decimal | None:
    """What a quantity costs above what is included; None when it is not to be had at any price."""
    if price.step > 0:
        quantity = (quantity / price.step).to_integral_value(ROUND_CEILING) * price.step
    left = quantity - included
    if left <= 0:
        return Decimal(0)
    if not price.tiers:
        return None
    total, below = Decimal(0), Decimal(0)
    for tier in price.tiers:
        top = left if tier.up_to is None else min(left, tier.up_to)
        if top > below:
            total += (top - below) * tier.unit_price
            below = top
        if tier.up_to is None or left <= tier.up_to:
            return total
    return None


#: What a meter costs over all months under some tariffs; None where they do not serve it.
Charges = dict[tuple[str, tuple[str, ...]], Decimal | None]


def quote(plan: Tariff, add_ons: Sequence[Tariff], months: Sequence[Usage]) -> Quote | None:
    """What a combination would have cost, a month; None where it does not serve what was used."""
    count, known, total = Decimal(len(months)), Charges(), Decimal(0)
    lines = []
    for one in (plan, *add_ons):
        lines.append(Line(tariff=one.id, meter="", quantity=Decimal(1), amount=one.fee.quantize(PLACES)))
        total += one.fee * count
    for meter in _meters(months):
        holders = [one for one in (plan, *add_ons) if meter in one.meters]
        amount = _charged(meter, holders, months, known)
        if amount is None:
            return None
        if not holders:
            continue
        quantity = sum((month.get(meter, Decimal(0)) for month in months), Decimal(0))
        at = next((one for one in holders if one.meters[meter].tiers), holders[0]).id
        mean = (amount / count).quantize(PLACES)
        lines.append(Line(tariff=at, meter=meter, quantity=quantity / count, amount=mean))
        total += amount
    cost = (total / count).quantize(PLACES)
    return Quote(
        plan=plan.id,
        add_ons=tuple(one.id for one in add_ons),
        cost=cost,
        lines=_adding_up(lines, cost),
    )


def _adding_up(lines: Sequence[Line], cost: Decimal) -> tuple[Line, ...]:
    dearest = max(range(len(lines)), key=lambda at: lines[at].amount)
    lost = cost - sum((line.amount for line in lines), Decimal(0))
    return tuple(
        replace(line, amount=line.amount + lost) if at == dearest else line for at, line in enumerate(lines)
    )


def _meters(months: Sequence[Usage]) -> list[str]:
    return sorted({meter for month in months for meter in month})


def _charged(
    meter: str, holders: Sequence[Tariff], months: Sequence[Usage], known: Charges
) -> Decimal | None:
    """What a meter costs over all months under the tariffs that hold it; None where they do not serve it.
    `known` keeps it for further combinations of the same months.
    """
    key = (meter, tuple(one.id for one in holders))
    if key not in known:
        known[key] = _charge_of(meter, [one.meters[meter] for one in holders], months)
    return known[key]


def _charge_of(meter: str, prices: Sequence[MeterPrice], months: Sequence[Usage]) -> Decimal | None:
    if not prices:
        return None if any(month.get(meter) for month in months) else Decimal(0)
    included = sum((price.included for price in prices), Decimal(0))
    priced, total = [price for price in prices if price.tiers] or prices, Decimal(0)
    for month in months:
        amount = _cheapest(priced, included, month.get(meter))
        if amount is None:
            return None
        total += amount
    return total


def _total(
    plan: Tariff, add_ons: Sequence[Tariff], months: Sequence[Usage], meters: Sequence[str], known: Charges
) -> Decimal | None:
    """What a combination would have cost over all months; None where it does not serve what was used."""
    total = sum((one.fee for one in add_ons), plan.fee) * len(months)
    for meter in meters:
        holders = [one for one in (plan, *add_ons) if meter in one.meters]
        amount = _charged(meter, holders, months, known)
        if amount is None:
            return None
        total += amount
    return total


def _cheapest(prices: Sequence[MeterPrice], included: Decimal, quantity: Decimal | None) -> Decimal | None:
    found = [charge(price, included, quantity or Decimal(0)) for price in prices]
    served = [amount for amount in found if amount is not None]
    return min(served) if served else None


def _fitting(plan: Tariff, add_ons: Sequence[Tariff], used: frozenset[str]) -> list[Tariff]:
    return [
        one
        for one in add_ons
        if (not one.plans or plan.id in one.plans)
        and one.id not in plan.excluded
        and plan.id not in one.excluded
        and used & one.meters.keys()
    ]


def _combinations(fitting: Sequence[Tariff]) -> Iterator[tuple[Tariff, ...]]:
    for counts in itertools.product(*(range(one.quantity_max + 1) for one in fitting)):
        taken = [one for one, count in zip(fitting, counts, strict=True) if count]
        ids = {one.id for one in taken}
        if any(one.excluded & ids for one in taken):
            continue
        yield tuple(one for one, count in zip(fitting, counts, strict=True) for _ in range(count))


def cheapest(tariffs: Sequence[Tariff], months: Sequence[Usage], limit: int) -> tuple[list[Quote], int]:
    """(the cheapest combinations, cheapest first; how many were compared). Equal costs go by fewer add-ons,
    then by ids. TooManyCombinations.
    """
    used = frozenset(meter for month in months for meter, quantity in month.items() if quantity > 0)
    plans = sorted((one for one in tariffs if one.is_plan), key=lambda one: one.id)
    add_ons = sorted((one for one in tariffs if not one.is_plan), key=lambda one: one.id)
    fitting = {plan.id: _fitting(plan, add_ons, used) for plan in plans}
    total = sum(math.prod(one.quantity_max + 1 for one in fitting[plan.id]) for plan in plans)
    if total > COMBINATIONS_MAX:
        raise TooManyCombinations(
            subject="tariffs", why=f"{total} combinations, at most {COMBINATIONS_MAX} are compared"
        )
    meters, known = _meters(months), Charges()
    served = (
        ((cost, len(taken), plan.id, tuple(one.id for one in taken)), plan, taken)
        for plan in plans
        for taken in _combinations(fitting[plan.id])
        if (cost := _total(plan, taken, months, meters, known)) is not None
    )
    best = heapq.nsmallest(limit, served, key=lambda one: one[0])
    found = [quote(plan, taken, months) for _, plan, taken in best]
    return [made for made in found if made is not None], total
