"""Contact reasons that rise against their own history. Pure.

A reason's history says how many to expect: with H contacts in D days before, the number in d days is compared
with the negative binomial distribution that follows from a Poisson rate whose uncertainty is that of H
(Jeffreys' prior: Gamma with H + 1/2 and D). Days differ by more than chance, so counts are first divided by
the reason's own dispersion, the variance of its daily counts over their mean where that is above 1. The
p-values of all reasons are corrected together after Holm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

HISTORY_DAYS_DEFAULT = 28
HISTORY_DAYS_MAX = 366
#: Contacts below which nothing is a topic.
OBSERVED_MIN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A reason that rises."""

    #: Path.
    reason: str
    #: In the interval.
    observed: int
    #: What its history lets expect.
    expected: float
    #: Corrected.
    p_value: float


def dispersion(daily: Sequence[int], days: int) -> float:
    """Variance of the daily counts over their mean, at least 1; days that are missing count nothing."""
    total = sum(daily)
    if days < 2 or not total:
        return 1.0
    mean = total / days
    squares = sum((n - mean) ** 2 for n in daily) + (days - len(daily)) * mean**2
    return max(1.0, squares / (days - 1) / mean)


def p_value(observed: int, history: Sequence[int], history_days: int, days: float) -> float:
    """The chance of so many or more in `days` days, uncorrected."""
    factor = dispersion(history, history_days)
    shape = sum(history) / factor + 0.5
    successes = history_days / (history_days + days)
    return float(stats.nbinom.sf(math.ceil(observed / factor) - 1, shape, successes))


def rising(
    observed: Mapping[str, int],
    history: Mapping[str, Sequence[int]],
    *,
    history_days: int,
    days: float,
    p_value_max: float,
) -> list[Topic]:
    """The reasons that rise, strongest first. `history` has each reason's daily counts, days with none left
    out.
    """
    tested = [(reason, count) for reason, count in observed.items() if count >= OBSERVED_MIN]
    raw = {r: p_value(n, history.get(r, ()), history_days, days) for r, n in tested}
    found = []
    for reason, corrected in holm(raw).items():
        expected = sum(history.get(reason, ())) / history_days * days
        if corrected <= p_value_max and observed[reason] > expected:
            found.append(
                Topic(
                    reason=reason,
                    observed=observed[reason],
                    expected=round(expected, 3),
                    p_value=float(f"{corrected:.3g}"),
                )
            )
    return sorted(found, key=lambda t: (t.p_value, -(t.observed - t.expected), t.reason))


def holm(raw: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being many (Holm's step-down)."""
    corrected: dict[str, float] = {}
    so_far = 0.0
    ordered = sorted(raw.items(), key=lambda item: item[1])
    for rank, (name, value) in enumerate(ordered):
        so_far = max(so_far, min(1.0, value * (len(ordered) - rank)))
        corrected[name] = so_far
    return corrected
