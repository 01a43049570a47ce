"""How long callers would have waited: the Kaplan-Meier estimate, and draws from it.

Only those who hung up show their patience. A served caller's patience is known to be longer than the wait
and no more (censored), so a mean over those who left would be far too short (Brown et al. 2005, section
5).
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PatienceCurve:
    """S(t), the share of callers who wait longer than t. Steps at `times`, `survival[i]` holds from
    `times[i]` on.
    """

    #: Seconds at which somebody hung up, ascending.
    times: tuple[float, ...]
    #: S after each of them, descending, within 0 to 1.
    survival: tuple[float, ...]
    #: Hang-ups per second of waiting over all callers: extends the curve beyond the longest wait seen.
    tail_rate: float

    def at(self, seconds: float) -> float:
        """S at that time."""
        index = bisect.bisect_right(self.times, seconds)
        return 1.0 if index == 0 else self.survival[index - 1]

    def draw_beyond(self, waited_seconds: float, rng: random.Random) -> float:
        """A patience longer than `waited_seconds`, by the conditional distribution; infinite if nobody
        ever left.
        """
        level = rng.random() * self.at(waited_seconds)
        index = bisect.bisect_left([-s for s in self.survival], -level)
        if index < len(self.times):
            return max(self.times[index], math.nextafter(waited_seconds, math.inf))
        last = max(self.times[-1] if self.times else 0.0, waited_seconds)
        return last + rng.expovariate(self.tail_rate) if self.tail_rate > 0 else math.inf


def kaplan_meier(left: Mapping[int, int], censored: Mapping[int, int]) -> PatienceCurve:
    """The product-limit estimate from counts by second: of those who left then, and of those served then.

    At equal times the leavers count as before the served, as usual.
    """
    at_risk = sum(left.values()) + sum(censored.values())
    exposure = sum(t * n for counts in (left, censored) for t, n in counts.items())
    times: list[float] = []
    survival: list[float] = []
    share = 1.0
    for time in sorted(left.keys() | censored.keys()):
        leaving = left.get(time, 0)
        if leaving:
            share *= 1.0 - leaving / at_risk
            times.append(float(time))
            survival.append(share)
        at_risk -= leaving + censored.get(time, 0)
    rate = sum(left.values()) / exposure if exposure else 0.0
    return PatienceCurve(times=tuple(times), survival=tuple(survival), tail_rate=rate)
