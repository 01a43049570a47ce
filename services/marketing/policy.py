"""How estimates become decisions, so that they can be compared afterwards. Pure: chance comes in as numbers.

Rules 1 and 3 are experiments; they begin when there are enough customers to tell anything by them
(`EXPERIMENT_CUSTOMERS_MIN`).

1. Holdout. A fixed share of the customers, told by a digest of their id, is left alone, for as long as the
   share does not change: what offering is worth is the difference.
2. Fatigue. A customer to whom enough was offered lately is offered nothing; one call counts once, and not
   against itself.
3. Exploration. With probability e one of the K best candidates, each alike, comes first, and the others
   follow in their order; else the ranking stands. So every candidate's probability of every rank is known,
   and logged: what inverse propensity weighting needs (Langford, Strehl, Wortman: Exploration scavenging,
   ICML 2008).
4. What is not expected to earn `expected_value_min` is not offered.
5. Whom the uplift model expects to be put off is offered nothing, all but the share e of them, told by a
   digest as well. Both shares are logged with each decision: they say with which probability this customer
   was offered something, without which those let through could not be compared with anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from marketing.model import Money

#: Customers in the history from which on experiments are made.
EXPERIMENT_CUSTOMERS_MIN = 1_000
#: Candidates looked at beside those to be shown.
CANDIDATES_MORE = 4
#: Largest shares.
HOLDOUT_MAX = 0.5
EXPLORATION_MAX = 0.5
#: The holdout group is always on: the smallest share.
HOLDOUT_MIN = 0.001
FATIGUE_DAYS_MAX = 365
FATIGUE_OFFERS_MAX = 1_000
#: Lists of chances and of places kept: they are the same for most decisions under one policy.
KEPT_MAX = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How decisions are made."""

    #: Id, without "policies/".
    id: str = "default"
    #: Share of the customers that is left alone.
    holdout_ratio: float = 0.02
    #: Share of the decisions spent on learning.
    exploration_ratio: float = 0.05
    #: Decisions with offers for one customer in `fatigue_days`; 0 is without limit.
    fatigue_offers_max: int = 10
    #: Days looked back.
    fatigue_days: int = 7
    #: Least expected value of an offer; None is none.
    expected_value_min: Money | None = None
    #: +1 with every change, 0 while nobody changed it.
    version: int = 0
    #: Business time.
    updated_at: datetime | None = None


def share_of(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone, evenly spread."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def holdout_chance(policy: Policy, customer: str, customers_known: int) -> float:
    """Probability with which a customer is left alone."""
    return policy.holdout_ratio if customer and customers_known >= EXPERIMENT_CUSTOMERS_MIN else 0.0


def held_out(policy: Policy, customer: str, customers_known: int) -> bool:
    """Whether a customer belongs to the group that is left alone."""
    chance = holdout_chance(policy, customer, customers_known)
    return chance > 0 and share_of("holdout", customer) < chance


def worthwhile(policy: Policy, expected_value: float) -> bool:
    """Whether an offer is expected to be worth making."""
    return policy.expected_value_min is None or expected_value >= float(policy.expected_value_min.amount)


class Place(NamedTuple):
    """Which candidate comes to a place of the list."""

    #: Its place among the candidates by expected value, from 0.
    candidate: int
    #: Probability with which it comes to this place.
    propensity: float
    #: It is first because it was drawn, and not because it is the best.
    explored: bool = False


def explores(policy: Policy, customers_known: int) -> bool:
    """Whether some decisions are spent on learning."""
    return policy.exploration_ratio > 0 and customers_known >= EXPERIMENT_CUSTOMERS_MIN


def first_chances(policy: Policy, count: int, customers_known: int) -> tuple[float, ...]:
    """Probability with which each of `count` candidates comes first."""
    ratio = policy.exploration_ratio if explores(policy, customers_known) else 0.0
    return _first_chances(ratio, count)


@lru_cache(maxsize=KEPT_MAX)
def _first_chances(ratio: float, count: int) -> tuple[float, ...]:
    if not count:
        return ()
    if ratio <= 0 or count == 1:
        return (1.0, *[0.0] * (count - 1))
    return (1 - ratio + ratio / count, *[ratio / count] * (count - 1))


def arrange(chances: tuple[float, ...], limit: int, draw: float) -> tuple[tuple[Place, ...], float]:
    """(the list to show, the propensity of the list as a whole), candidates being in the order of their
    expected value and coming first with these chances.

    `draw` is evenly spread over [0, 1) and says which candidate comes first.
    """
    if not chances:
        return (), 1.0
    first, left = 0, draw - chances[0]
    while left >= 0 and first + 1 < len(chances) and chances[first + 1] > 0:
        first += 1
        left -= chances[first]
    return _places(chances, limit, first), chances[first]


@lru_cache(maxsize=KEPT_MAX)
def _places(chances: tuple[float, ...], limit: int, first: int) -> tuple[Place, ...]:
    order = list(range(len(chances)))
    order.insert(0, order.pop(first))
    return tuple(
        Place(index, _propensity(index, at, chances), at == 0 and index > 0)
        for at, index in enumerate(order[:limit])
    )


def _propensity(index: int, at: int, chances: Sequence[float]) -> float:
    """Probability that a candidate comes to a place, both from 0."""
    if at == 0:
        return chances[index]
    # With one ahead of it drawn, or itself at the head, it keeps its place; with one behind it, it moves
    # down.
    return sum(chances[:index]) if at == index else sum(chances[index + 1 :])
