"""What the learned propensity model looks at, and how it is asked. Pure; learned in learning/offers.py.

The model corrects the estimate from the history (association.py) by what became of offers: a logistic
regression on that estimate's log-odds and on who was offered what in which contact. A feature that was never
seen weighs nothing, so a new offer starts from its estimate, and a new customer from what is usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from marketing.model import Channel, Contact, Profile

#: The estimate's own weight is learned; it is scaled up so that regularisation leaves it alone.
BASE = "base"
BASE_SCALE = 10.0
#: Always there.
CONSTANT = "constant"
#: Most features of a model.
FEATURES_MAX = 20_000
#: Largest weight; a larger one is no model.
WEIGHT_MAX = 1e4
#: Sets of traits kept: many customers have the same.
TRAITS_KEPT_MAX = 4_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Propensity:
    """A learned model."""

    #: Its id, "" for none: estimates stay as they are.
    model: str = ""
    #: Weight by feature.
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for what cannot be a model."""
        if len(self.weights) > FEATURES_MAX:
            raise ValueError(f"a model has at most {FEATURES_MAX} features")
        if not all(abs(weight) <= WEIGHT_MAX for weight in self.weights.values()):
            raise ValueError("a weight is no number of a usable size")


def traits(profile: Profile, contact: Contact) -> tuple[str, ...]:
    """What the model knows of a customer in a contact."""
    return _traits(
        profile.tier,
        profile.value_class,
        contact.channel,
        contact.reason,
        contact.region or profile.home_region,
        contact.wants_to_leave or profile.wants_to_leave,
    )


@lru_cache(maxsize=TRAITS_KEPT_MAX)
def _traits(
    tier: str, value_class: str, channel: Channel, reason: str, region: str, leaving: bool
) -> tuple[str, ...]:
    return (
        f"tier={tier}",
        f"class={value_class}",
        f"channel={channel.value}",
        f"reason={reason}",
        f"region={region}",
        f"leaving={leaving}",
    )


def features(offer: str, known: Iterable[str], probability: float) -> dict[str, float]:
    """What the model looks at for one offer; `probability` is the estimate from the history."""
    found = {CONSTANT: 1.0, BASE: log_odds(probability) / BASE_SCALE, f"offer={offer}": 1.0}
    for trait in known:
        found[trait] = 1.0
        found[f"{trait}|{offer}"] = 1.0
    return found


def log_odds(probability: float) -> float:
    """Natural log-odds, kept within those of 10^-6 and 1 - 10^-6."""
    kept = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(kept / (1 - kept))


def corrected(model: Propensity, offer: str, known: tuple[str, ...], probability: float) -> float:
    """The probability of acceptance by the model; the estimate itself without one."""
    weights = model.weights
    if not weights:
        return probability
    total = weights.get(CONSTANT, 0.0) + weights.get(BASE, 0.0) * log_odds(probability) / BASE_SCALE
    total += weights.get(f"offer={offer}", 0.0)
    for trait in known:
        total += weights.get(trait, 0.0) + weights.get(f"{trait}|{offer}", 0.0)
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))
