"""Contact reasons that rise against their own history. Pure.

A reason's history says how many to expect: with H contacts before, the number in the interval is compared
with the negative binomial distribution that follows from a Poisson rate whose uncertainty is that of H
(Jeffreys' prior). The rate is one by day or one by what the other reasons had on the same days, whichever the
reason departs from more. Days differ by more than chance, so counts are first divided by the reason's own
dispersion. The p-values of all reasons are corrected together after Holm.

Real reasons come in bursts that no month of history shows: one storm, and a reason that never was there has
ten calls. So a topic also has to be stronger than what the same reasons show when the days of interval and
history change places at random, whole, all reasons with them, each measured by its own bursts: the strongest
of each such exchange is what a topic is ranked among (after P. H. Westfall and S. S. Young, "Resampling-Based
Multiple Testing", 1993). That holds the rate of false alarms whatever the bursts are like, as long as days
are alike. It needs whole days and enough ways of exchanging them; where there are too few, the first test
decides alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HISTORY_DAYS_DEFAULT = 28
HISTORY_DAYS_MAX = 366
#: Largest corrected p-value of a topic that is reported unless the caller says otherwise.
P_VALUE_MAX = 0.05
#: Contacts below which nothing is a topic.
OBSERVED_MIN = 5
#: Random exchanges of days.
EXCHANGES = 499
#: Share of the mean day that every day lets expect alike.
EVEN_SHARE = 0.1
#: How often a reason is as strong as what it is measured by.
USUAL = 0.05
#: Numbers worked on at once: days of an exchange, times reasons, times exchanges.
NUMBERS_AT_ONCE_MAX = 1_000_000

#: Reason -> day -> contacts. The interval's days count from 0, the last day before it is -1.
Daily = Mapping[str, Mapping[int, int]]


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


def exposures(whole: Any, lengths: Any) -> tuple[Any, Any]:
    """How much of each reason a day lets expect, shape (days, reasons), in two ways: by its length alone
    (`lengths`, days), and by what the other reasons had that day, for what is everybody's busy day is no news
    of one reason. The second alone would miss a reason that rises on a day when another one does too.
    """
    total = whole.sum(axis=1, keepdims=True)
    even = np.broadcast_to(lengths[:, None], whole.shape)
    return even, total - whole + EVEN_SHARE * max(float(total.mean()), 1.0) * even


def p_values(observed: Any, history: Any, exposed: Any, exposed_before: Any) -> Any:
    """The chance of so many or more, uncorrected. `observed` and its exposure have the shape (…, reasons),
    `history` and its own (…, history days, reasons).
    """
    days = history.shape[-2]
    total, exposed_all = history.sum(axis=-2), exposed_before.sum(axis=-2)
    rate = total / exposed_all
    expected = rate[..., None, :] * exposed_before
    squares = np.divide((history - expected) ** 2, expected, out=np.zeros(history.shape), where=expected > 0)
    factor = np.maximum(squares.sum(axis=-2) / max(days - 1, 1), 1.0)
    # The negative binomial's upper tail, as the incomplete beta function: scipy.stats, which has it by name,
    # takes as long to import as half the server. Even this part is left to who asks for topics.
    from scipy import special

    return special.betainc(
        np.ceil(observed / factor), total / factor + 0.5, exposed / (exposed_all + exposed)
    )


def rising(
    observed: Daily, history: Daily, *, history_days: int, days: float, p_value_max: float, seed: int = 1
) -> list[Topic]:
    """The reasons that rise, strongest first."""
    reasons = sorted(observed)
    before = _matrix(history, reasons, range(-history_days, 0))
    now = _matrix(observed, reasons, range(math.ceil(days)))
    counts = now.sum(axis=0)
    tested = counts >= OBSERVED_MIN
    if not tested.any():
        return []
    whole = np.concatenate([now, before])
    lengths = np.ones(len(whole))
    lengths[len(now) - 1] = days - (len(now) - 1)
    exposed = exposures(whole, lengths)
    raw = np.min(
        [p_values(counts, before, each[: len(now)].sum(axis=0), each[len(now) :]) for each in exposed], axis=0
    )
    # Twice, because each reason has two chances.
    by_model = holm({reasons[i]: min(1.0, 2 * float(raw[i])) for i in np.flatnonzero(tested)})
    by_exchange = _exchanged(whole, exposed, days, p_value_max, seed)
    found = []
    for i in np.flatnonzero(tested):
        expected = float(before[:, i].sum()) / history_days * days
        corrected = max(by_model[reasons[i]], float(by_exchange[i]))
        if corrected <= p_value_max and counts[i] > expected:
            found.append(
                Topic(
                    reason=reasons[i],
                    observed=int(counts[i]),
                    expected=round(expected, 3),
                    p_value=float(f"{corrected:.3g}"),
                )
            )
    return sorted(found, key=lambda t: (t.p_value, -(t.observed - t.expected), t.reason))


def _matrix(daily: Daily, reasons: Sequence[str], days: range) -> Any:
    """Contacts by day and reason."""
    found = np.zeros((len(days), len(reasons)), dtype=np.int64)
    for column, reason in enumerate(reasons):
        for day, count in daily.get(reason, {}).items():
            if day in days:
                found[day - days.start, column] += count
    return found


def _exchanged(whole: Any, exposed: Any, days: float, p_value_max: float, seed: int) -> Any:
    """Each reason's rank among the strongest of exchanges; 0 where there are too few ways of exchanging days
    to say anything. The first `days` rows of `whole` are the interval.
    """
    among = round(days)
    if among != days or not 1 <= among <= len(whole) / 2:
        return np.zeros(whole.shape[1])
    ways = math.comb(len(whole), among)
    if ways * p_value_max < 1:
        return np.zeros(whole.shape[1])
    if ways <= EXCHANGES:
        # The way that it was is one of them, and comes first.
        chosen = [list(each) for each in itertools.combinations(range(len(whole)), among)]
    else:
        random = np.random.default_rng(seed)
        drawn = [random.permutation(len(whole))[:among].tolist() for _ in range(EXCHANGES)]
        chosen = [list(range(among)), *drawn]
    relative = np.zeros((len(chosen), whole.shape[1]))
    for each in exposed:
        strength = -np.log(np.maximum(_all_p_values(whole, each, chosen), 1e-300))
        # What a reason does now and then by itself is no news of it: each is measured by its own bursts.
        usual = np.maximum(np.quantile(strength, 1 - USUAL, axis=0), -math.log(USUAL))
        relative = np.maximum(relative, strength / usual)
    strongest = relative.max(axis=1)
    return (strongest[:, None] >= relative[0] - 1e-9).sum(axis=0) / len(chosen)


def _all_p_values(whole: Any, exposed: Any, chosen: Sequence[Sequence[int]]) -> Any:
    """Every reason's p-value for each choice of days as the interval, shape (choices, reasons)."""
    among = len(chosen[0])
    step = max(1, NUMBERS_AT_ONCE_MAX // whole.size)
    parts = []
    for start in range(0, len(chosen), step):
        inside = np.array(chosen[start : start + step])
        picked = np.zeros((len(inside), len(whole)), dtype=bool)
        np.put_along_axis(picked, inside, True, axis=1)
        outside = np.argsort(picked, axis=1, kind="stable")[:, : len(whole) - among]
        now = whole[inside].sum(axis=1)
        values = np.ones(now.shape)
        enough = (now >= OBSERVED_MIN).any(axis=0)
        seen, exposed_seen = whole[:, enough], exposed[:, enough]
        values[:, enough] = p_values(
            now[:, enough], seen[outside], exposed_seen[inside].sum(axis=1), exposed_seen[outside]
        )
        parts.append(np.where(now >= OBSERVED_MIN, values, 1.0))
    return np.concatenate(parts)


def holm(raw: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being many (Holm's step-down)."""
    corrected: dict[str, float] = {}
    so_far = 0.0
    ordered = sorted(raw.items(), key=lambda item: item[1])
    for rank, (name, value) in enumerate(ordered):
        so_far = max(so_far, min(1.0, value * (len(ordered) - rank)))
        corrected[name] = so_far
    return corrected
