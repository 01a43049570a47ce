"""How another policy would have done, judged by what was logged, and what offering is worth at all. Pure.

Of each decision is known what came first, with which probability, and what it earned. Estimates:

1. inverse propensity weighting, and its self-normalised form (Swaminathan, Joachims: The self-normalized
   estimator for counterfactual learning, NIPS 2015), whose interval is by the delta method;
2. doubly robust (Dudik, Langford, Li: Doubly robust policy evaluation and learning, ICML 2011): the model's
   own estimate, corrected by the weighted residuals. Right when either the propensities or the model are.

Intervals are normal, 95 %. Where the policy judged does often what was tried rarely, a log of usual length
holds a handful of heavy decisions, and their scatter as observed says too little: it is 0 when none of them
happened to be a success. So the variance is the larger one of the observed and of the one that the model
expects, which is known for every decision, tried or not (`Logged.spread`). Uplift compares customers who were
offered something with those held out; the Qini value is the area between the curve of incremental value and
the straight line, a decision (Radcliffe: Using control groups to target on predicted lift, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Half-width of a 95 % interval in standard errors.
NORMAL_95 = 1.959963984540054
#: Largest weight of one decision; beyond it the estimate would be this decision's alone.
WEIGHT_MAX = 1_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Logged:
    """One decision, as far as it matters for another policy."""

    #: Probability with which the logging policy put first what it put first, in (0, 1].
    chance: float
    #: Probability with which the policy judged would have.
    target: float
    #: What it earned.
    reward: float
    #: What the model expects of what came first.
    expected: float
    #: What the model expects of the policy judged: the mean over what it would put first.
    expected_target: float
    #: Variance that the model expects of the weighted reward: over all that could have come first, the sum of
    #: target^2 / chance x the reward's variance. 0 is not known.
    spread: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How a policy would have done, a decision."""

    inverse_propensity: Estimate
    self_normalised: Estimate
    doubly_robust: Estimate
    logged: Estimate
    #: Effective number of decisions after weighting (Kish).
    effective_count: float


def spread_of(options: Iterable[tuple[float, float, float, float]]) -> float:
    """`Logged.spread` of (chance, target, probability of success, worth) of what could have come first."""
    return math.fsum(
        target**2 / max(chance, target / WEIGHT_MAX) * probability * (1 - probability) * worth**2
        for chance, target, probability, worth in options
        if target > 0 and chance > 0
    )


def mean_estimate(values: Sequence[float], variance_min: float = 0.0) -> Estimate:
    """The mean; the interval takes the values' variance, or `variance_min` where that is larger. Of fewer
    than two values it is the value itself.
    """
    count = len(values)
    if not count:
        return Estimate(value=0.0, lower=0.0, upper=0.0)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(value=mean, lower=mean, upper=mean)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return _interval(mean, math.sqrt(max(variance, variance_min) / count))


def _interval(value: float, error: float) -> Estimate:
    return Estimate(value=value, lower=value - NORMAL_95 * error, upper=value + NORMAL_95 * error)


def compare(log: Sequence[Logged]) -> Comparison:
    """Every estimate for a log. ValueError for an empty one."""
    if not log:
        raise ValueError("there is nothing to judge by")
    weights = [min(WEIGHT_MAX, entry.target / entry.chance) for entry in log]
    rewards = [entry.reward for entry in log]
    total = math.fsum(weights)
    weighted = [weight * reward for weight, reward in zip(weights, rewards, strict=True)]
    normal = math.fsum(weighted) / total if total else 0.0
    residuals = [weight * (reward - normal) for weight, reward in zip(weights, rewards, strict=True)]
    modelled = math.fsum(entry.spread for entry in log)
    scatter = max(math.fsum(value**2 for value in residuals), modelled)
    spread = math.sqrt(scatter) / total if total else 0.0
    robust = [
        entry.expected_target + weight * (entry.reward - entry.expected)
        for weight, entry in zip(weights, log, strict=True)
    ]
    squares = math.fsum(weight**2 for weight in weights)
    return Comparison(
        inverse_propensity=mean_estimate(weighted, modelled / len(log)),
        self_normalised=_interval(normal, spread),
        doubly_robust=mean_estimate(robust, modelled / len(log)),
        logged=mean_estimate(rewards),
        effective_count=total**2 / squares if squares else 0.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Treated:
    """A decision about a customer who was, or by the holdout was not, offered something."""

    #: Who it was about: what one customer does is one piece of evidence, however often they are met. "" is
    #: somebody else each time.
    customer: str = ""
    #: Whether something was offered.
    offered: bool
    #: What the customer was worth afterwards.
    value: float
    #: What the model expected of offering.
    predicted: float


def _arm_estimate(arm: Sequence[Treated]) -> Estimate:
    """The mean value of an arm's decisions; the interval takes those of one customer together (Liang, Zeger:
    Longitudinal data analysis using generalized linear models, Biometrika 1986). Of one customer it is the
    value itself.
    """
    mean = math.fsum(entry.value for entry in arm) / len(arm)
    beside: dict[str | int, float] = {}
    for at, entry in enumerate(arm):
        who = entry.customer or at
        beside[who] = beside.get(who, 0.0) + entry.value - mean
    count = len(beside)
    if count < 2:
        return Estimate(value=mean, lower=mean, upper=mean)
    squares = math.fsum(value**2 for value in beside.values())
    return _interval(mean, math.sqrt(squares * count / (count - 1)) / len(arm))


def uplift(log: Sequence[Treated]) -> Estimate:
    """Mean value with an offer less mean value without (Welch's interval, customers being what was dealt to
    the arms); zeros where an arm is empty.
    """
    arms = [[entry for entry in log if entry.offered is offered] for offered in (True, False)]
    if not all(arms):
        return Estimate(value=0.0, lower=0.0, upper=0.0)
    offered, held = (_arm_estimate(arm) for arm in arms)
    error = math.hypot(offered.upper - offered.value, held.upper - held.value) / NORMAL_95
    return _interval(offered.value - held.value, error)


def qini(log: Sequence[Treated]) -> float:
    """Area between the Qini curve and the straight line to its end, both a decision: above 0 the model puts
    first whom offering moves most. 0 where an arm is empty.
    """
    ordered = sorted(log, key=lambda entry: -entry.predicted)
    count = len(ordered)
    offered = held = 0
    gained = lost = area = 0.0
    curve = 0.0
    for entry in ordered:
        if entry.offered:
            offered, gained = offered + 1, gained + entry.value
        else:
            held, lost = held + 1, lost + entry.value
        before, curve = curve, gained - (lost * offered / held if held else 0.0)
        area += (before + curve) / 2
    if not offered or not held:
        return 0.0
    return (area - curve * count / 2) / count**2
