"""Offers, profiles and hypothesis strategies shared by marketing's tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from marketing.association import Rule, RuleTable, popularity, rule
from marketing.model import Audience, Channel, Money, Offer, OfferKind, OfferState, Profile, Script, Text

NOW = datetime(2025, 6, 1, 9, 0, tzinfo=UTC)


def moment(number: int) -> datetime:
    """Moments in order."""
    return NOW + timedelta(seconds=number)


PRODUCTS = [f"p{i}" for i in range(8)]


def cny(amount: str) -> Money:
    return Money.parse("CNY", amount)


def offer(id: str = "broadband-100", **changes: Any) -> Offer:
    base = Offer(
        id=id,
        titles=(Text(language="zh", text="百兆宽带"), Text(language="en", text="Broadband 100")),
        product="broadband",
        price=cny("59.90"),
        scripts=(
            Script(audience="", language="zh", text="您需要更快的宽带吗？"),
            Script(audience="", language="en", text="Would you like faster broadband?"),
        ),
        state=OfferState.PUBLISHED,
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(base, **changes)


def best_rule(table: RuleTable, owned: Iterable[str], consequent: str) -> Rule:
    """The rule that speaks loudest for `consequent`, given what a customer has; popularity where none can
    judge.

    Of equally loud ones the one whose antecedent sorts first.
    """
    found = [r for x in sorted(set(owned)) if (r := rule(table, x, consequent)) is not None]
    if not found:
        return popularity(table, consequent)
    return max(found, key=lambda r: r.probability)


baskets = st.lists(st.sets(st.sampled_from(PRODUCTS), max_size=6), max_size=40)


_few_products = st.frozensets(st.sampled_from(PRODUCTS), max_size=1)
_edges = st.sampled_from([None, NOW - timedelta(days=1), NOW, NOW + timedelta(days=1)])

# Made once: most of an example's time went into making the strategies of each of its offers.
_terms = st.fixed_dictionaries(
    {
        "product": st.sampled_from(PRODUCTS),
        "price": st.builds(Money, currency=st.just("CNY"), amount=st.integers(0, 500).map(Decimal)),
        "kind": st.sampled_from(list(OfferKind)),
        "state": st.sampled_from([OfferState.PUBLISHED] * 4 + list(OfferState)),
        "valid_from": _edges,
        "valid_until": _edges,
        "stock": st.sampled_from([None, None, 0, 3]),
        "units_used": st.sampled_from([0, 3]),
        "repeatable": st.booleans(),
        "rule": st.sampled_from(["", "", 'tier == "gold" or owns("p2")', 'not tagged("senior")']),
        "prerequisites": _few_products,
        "exclusions": _few_products,
        "audience": st.builds(
            Audience,
            tiers=st.frozensets(st.sampled_from(["gold", "vip"]), max_size=1),
            no_tags=st.frozensets(st.just("senior"), max_size=1),
            channels=st.frozensets(st.just(Channel.SMS), max_size=1),
        ),
    }
)


@st.composite
def offers(draw: st.DrawFn) -> list[Offer]:
    return [offer(id=f"o{index:02}", **draw(_terms)) for index in range(draw(st.integers(0, 12)))]


profiles = st.builds(
    Profile,
    customer=st.just("c1"),
    products=st.frozensets(st.sampled_from([*PRODUCTS, "unknown"]), max_size=5),
    tier=st.sampled_from(["", "gold"]),
    tags=st.frozensets(st.sampled_from(["senior", "lost"]), max_size=2),
    wants_to_leave=st.booleans(),
    churn_risk=st.sampled_from([0.0, 0.74, 0.75]),
)
