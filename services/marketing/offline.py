"""How another policy would have done, judged by what was logged, and what offering is worth at all. Pure.

Of each decision is known what came first, with which probability, and what it earned. Estimates:

1. inverse propensity weighting, and its self-normalised form (Swaminathan, Joachims: The self-normalized
   estimator for counterfactual learning, NIPS 2015), whose interval is by the delta method;
2. doubly robust (Dudik, Langford, Li: Doubly robust policy evaluation and learning, ICML 2011): the model's
   own estimate, corrected by the weighted residuals. Right when either the propensities or the model are.

Intervals are normal, 95 %. Where the policy judged does often what was tried rarely, a log of usual length
holds a handful of heavy decisions, and their scatter as observed says too little: it is 0 when none of them
happened to be a success. So the variance is the larger one of the observed and of the one that the model
expects, which is known for every decision, tried or not (`Logged.spread`).

Uplift compares customers who were offered something with those who were not. Where a model decides whom to
leave alone, those offered something are mostly those it thinks well of; so each counts by the inverse of the
probability with which they came into their arm, as it was logged (Horvitz, Thompson: A generalization of
sampling without replacement from a finite universe, JASA 1952; self-normalised in each arm). The Qini value
is the area between the curve of incremental value and the straight line, a decision (Radcliffe: Using control
groups to target on predicted lift, 2007): what each decision adds to the curve beyond the mean effect is its
weighted distance from its own arm's mean, whose expectation is the effect on this customer less the mean one,
whatever the arms' shares. Nobody can be compared with customers who are never, or always, offered something:
they are left out of both.
"""

from __future__ import annotations

import itertools
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
    """A decision about a customer who was, or was not, offered something."""

    #: Who it was about: what one customer does is one piece of evidence, however often they are met. "" is
    #: somebody else each time.
    customer: str = ""
    #: Whether something was offered.
    offered: bool
    #: Probability with which something was offered, [0, 1]. None where it was not logged: then the share of
    #: those offered something, among all of whom it was not, stands for it.
    chance: float | None = None
    #: What the customer was worth afterwards.
    value: float
    #: What the model expected of offering.
    predicted: float


#: A decision, and by how much it counts.
_Weighted = tuple[Treated, float]


def comparable(log: Sequence[Treated]) -> list[_Weighted]:
    """Decisions about customers who might have been, and might not have been, offered something, in the order
    given; each with the inverse of the probability of what happened.
    """
    unknown = [entry.offered for entry in log if entry.chance is None]
    share = sum(unknown) / len(unknown) if unknown else 0.0
    found = []
    for entry in log:
        chance = share if entry.chance is None else entry.chance
        if min(chance, 1 - chance) * WEIGHT_MAX >= 1:
            found.append((entry, 1 / chance if entry.offered else 1 / (1 - chance)))
    return found


def _mean(arm: Sequence[_Weighted]) -> float:
    return math.fsum(weight * entry.value for entry, weight in arm) / math.fsum(weight for _, weight in arm)


def _arm_estimate(arm: Sequence[_Weighted]) -> Estimate:
    """The mean value of an arm's decisions; the interval takes those of one customer together (Liang, Zeger:
    Longitudinal data analysis using generalized linear models, Biometrika 1986). Of one customer it is the
    value itself.
    """
    mean = _mean(arm)
    beside: dict[str | int, float] = {}
    for at, (entry, weight) in enumerate(arm):
        who = entry.customer or at
        beside[who] = beside.get(who, 0.0) + weight * (entry.value - mean)
    count = len(beside)
    if count < 2:
        return Estimate(value=mean, lower=mean, upper=mean)
    squares = math.fsum(value**2 for value in beside.values())
    return _interval(mean, math.sqrt(squares * count / (count - 1)) / math.fsum(weight for _, weight in arm))


def _arms(log: Sequence[_Weighted]) -> tuple[list[_Weighted], list[_Weighted]]:
    return [one for one in log if one[0].offered], [one for one in log if not one[0].offered]


def uplift(log: Sequence[Treated]) -> Estimate:
    """Mean value with an offer less mean value without (Welch's interval, customers being what was dealt to
    the arms); zeros where an arm is empty.
    """
    arms = _arms(comparable(log))
    if not all(arms):
        return Estimate(value=0.0, lower=0.0, upper=0.0)
    offered, held = (_arm_estimate(arm) for arm in arms)
    error = math.hypot(offered.upper - offered.value, held.upper - held.value) / NORMAL_95
    return _interval(offered.value - held.value, error)


def contributions(log: Sequence[_Weighted]) -> list[float]:
    """What each decision adds to the Qini curve beyond the mean effect; they sum up to 0. Empty where an arm
    is.
    """
    arms = _arms(log)
    if not all(arms):
        return []
    offered, held = map(_mean, arms)
    return [
        weight * (entry.value - offered) if entry.offered else weight * (held - entry.value)
        for entry, weight in log
    ]


def qini(log: Sequence[Treated]) -> float:
    """Area between the Qini curve and the straight line to its end, both a decision: above 0 the model puts
    first whom offering moves most. 0 where an arm is empty.
    """
    ordered = sorted(comparable(log), key=lambda one: -one[0].predicted)
    parts = contributions(ordered)
    return math.fsum(itertools.accumulate(parts)) / len(parts) ** 2 if parts else 0.0
