"""Two further learned models, as they are asked: what offering changes (uplift), and who is about to leave
(churn). Pure; learned in learning/effects.py.

Uplift: two logistic regressions on the same traits, one learned from customers who were offered something,
one from those held out (a "two-model" or T-learner: Kunzel, Sekhon, Bickel, Yu: Metalearners for estimating
heterogeneous treatment effects, PNAS 2019). What offering changes is the difference of both.

Churn: one logistic regression on what is known of the customer beside the word on leaving itself. Whoever is
above the threshold is treated like one who spoke of leaving, as far as retention offers go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from marketing.model import Profile
from marketing.propensity import CONSTANT, FEATURES_MAX, WEIGHT_MAX

#: Length of a month for counting, days.
MONTH = timedelta(days=30)
#: Bounds of the bins of months since the last purchase.
MONTHS = (1, 3, 6, 12)
#: Products counted one by one up to this.
PRODUCTS_COUNTED_MAX = 5


def _sound(weights: Mapping[str, float]) -> None:
    if len(weights) > FEATURES_MAX:
        raise ValueError(f"a model has at most {FEATURES_MAX} features")
    if not all(abs(weight) <= WEIGHT_MAX for weight in weights.values()):
        raise ValueError("a weight is no number of a usable size")


def chance(weights: Mapping[str, float], traits: Iterable[str]) -> float:
    """Probability by a logistic regression on traits that are there or not."""
    total = weights.get(CONSTANT, 0.0) + math.fsum(weights.get(trait, 0.0) for trait in traits)
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Uplift:
    """What offering changes."""

    #: Its id, "" for none.
    model: str = ""
    #: Weight by trait of a purchase by those who were offered something, and by those held out.
    offered: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for what cannot be a model."""
        _sound(self.offered)
        _sound(self.held)

    def gain(self, traits: Iterable[str]) -> float:
        """By how much offering raises the probability of a purchase; 0 without a model."""
        known = tuple(traits)
        return chance(self.offered, known) - chance(self.held, known) if self.model else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Churn:
    """Who is about to leave."""

    #: Its id, "" for none.
    model: str = ""
    #: Weight by trait.
    weights: Mapping[str, float] = field(default_factory=dict)
    #: Risk from which on a customer counts as about to leave, in (0, 1].
    threshold: float = 1.0

    def __post_init__(self) -> None:
        """ValueError for what cannot be a model."""
        _sound(self.weights)
        if not 0 < self.threshold <= 1:
            raise ValueError("a threshold is between 0 and 1")

    def at_risk(self, profile: Profile, now: datetime) -> bool:
        """Whether a customer counts as about to leave; False without a model."""
        return bool(self.model) and chance(self.weights, churn_traits(profile, now)) >= self.threshold


def churn_traits(profile: Profile, now: datetime) -> tuple[str, ...]:
    """What the churn model knows of a customer."""
    latest = max(profile.bought_at.values(), default=None)
    months = "never" if latest is None else str(sum((now - latest) / MONTH >= bound for bound in MONTHS))
    return (
        f"tier={profile.tier}",
        f"class={profile.value_class}",
        f"language={profile.language}",
        f"region={profile.home_region}",
        f"products={min(len(profile.products), PRODUCTS_COUNTED_MAX)}",
        f"last={months}",
        *(f"refuses={channel.value}" for channel in sorted(profile.refused_channels)),
    )


def uplift_from_content(model: str, content: Mapping[str, object]) -> Uplift:
    """An uplift model as read; ValueError for one that cannot serve. No id is no model."""
    if not model:
        return Uplift()
    return Uplift(
        model=model, offered=_weights(model, content, "offered"), held=_weights(model, content, "held")
    )


def churn_from_content(model: str, content: Mapping[str, object]) -> Churn:
    """A churn model as read; ValueError for one that cannot serve. No id is no model."""
    if not model:
        return Churn()
    threshold = content.get("threshold")
    if not isinstance(threshold, float):
        raise ValueError(f"models/{model} has no threshold")
    return Churn(model=model, weights=_weights(model, content, "weights"), threshold=threshold)


def _weights(model: str, content: Mapping[str, object], name: str) -> dict[str, float]:
    pairs = content.get(name)
    if not isinstance(pairs, list) or not pairs:
        raise ValueError(f"models/{model} has no weights")
    weights = {str(feature): float(weight) for feature, weight in pairs}
    if not all(map(math.isfinite, weights.values())):
        raise ValueError(f"models/{model} has weights that are no numbers")
    return weights
