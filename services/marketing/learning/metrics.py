"""How estimates and rankings are judged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Bins of equal count in the calibration error.
CALIBRATION_BINS = 10
#: Length of a ranking that is judged.
RANKS = 10


def calibration_error(labels: Floats, estimates: Floats, bins: int = CALIBRATION_BINS) -> float:
    """Weighted mean gap between the mean estimate and the share of ones, over bins of equal count in the
    order of the estimates (Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian
    binning, AAAI 2015, with equal counts in place of equal widths). 0 for no data.
    """
    if not len(labels):
        return 0.0
    order = np.argsort(estimates, kind="stable")
    gaps = [
        len(part) * abs(float(labels[part].mean() - estimates[part].mean()))
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return sum(gaps) / len(labels)


def hit_and_recall(
    ranks: Mapping[str, Sequence[str]], fallback: Sequence[str], bought: Mapping[str, Collection[str]]
) -> tuple[float, float]:
    """(share of the buyers with at least one hit among `RANKS`, hits divided by distinct things bought).

    `fallback` is the ranking of a buyer who has none of their own. Zeros where nobody bought.
    """
    hits = {
        buyer: len(set(ranks.get(buyer, fallback)[:RANKS]) & set(things)) for buyer, things in bought.items()
    }
    wanted = sum(len(set(things)) for things in bought.values())
    if not wanted:
        return 0.0, 0.0
    return sum(count > 0 for count in hits.values()) / len(bought), sum(hits.values()) / wanted
