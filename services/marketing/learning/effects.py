"""Learning what offering changes, and who is about to leave, with scikit-learn; either is judged on customers
it has not learned before it is let near one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from marketing.effects import Uplift
from marketing.learning.metrics import calibration_error
from marketing.offline import Treated, comparable, contributions, uplift
from marketing.propensity import CONSTANT, FEATURES_MAX

#: Share of the examples, the newest, that a model is judged by.
JUDGED_SHARE = 0.3
#: Inverse strength of the regularisation.
INVERSE_STRENGTH = 0.3
#: Fewest examples, fewest of the smaller arm, and fewest of either answer in an arm.
EXAMPLES_MIN = 1_000
ARM_MIN = 100
ANSWERS_MIN = 20
#: Random orders that the Qini value is compared with, and how many of them it must beat.
ORDERS = 200
BEATEN_MIN = 0.95
#: Least area under the curve of a churn model.
AUC_MIN = 0.55
#: Share of the customers that are counted as about to leave at most, and how many times likelier than the
#: average they must be at least.
AT_RISK_SHARE = 0.1
LIFT_MIN = 1.5
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A customer who was offered something or, by the holdout or an earlier model, was not; what they did."""

    traits: tuple[str, ...]
    offered: bool
    #: Probability with which something was offered, as it was logged; None where it was not.
    chance: float | None = None
    #: Id; "" is somebody else each time.
    customer: str = ""
    #: Whether they bought what would have been offered.
    bought: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A model's content, or why there is none."""

    #: What is stored beside state and metrics; empty for a failure.
    content: dict[str, object]
    #: What validation measured.
    metrics: dict[str, float]
    #: Why it may not serve; "" when it may.
    failure: str = ""


def _fit(rows: Sequence[tuple[str, ...]], labels: np.ndarray) -> dict[str, float]:
    """Weight by trait of a logistic regression."""
    encoder = DictVectorizer()
    table = encoder.fit_transform([dict.fromkeys((CONSTANT, *traits), 1.0) for traits in rows])
    model = LogisticRegression(C=INVERSE_STRENGTH, max_iter=500, fit_intercept=False).fit(table, labels)
    weights = dict(zip(encoder.feature_names_, map(float, model.coef_[0]), strict=True))
    kept = sorted(weights, key=lambda name: (name != CONSTANT, -abs(weights[name]), name))[:FEATURES_MAX]
    return {name: weights[name] for name in kept}


def _pairs(weights: dict[str, float]) -> list[list[object]]:
    return [[name, weight] for name, weight in weights.items()]


def _arms(examples: Sequence[Effect]) -> Uplift:
    weights = []
    for offered in (True, False):
        arm = [example for example in examples if example.offered is offered]
        labels = np.array([example.bought for example in arm], dtype=float)
        weights.append(_fit([example.traits for example in arm], labels))
    return Uplift(model="learned", offered=weights[0], held=weights[1])


def _too_few(examples: Sequence[Effect]) -> str:
    arms = [[e.bought for e in examples if e.offered is offered] for offered in (True, False)]
    if len(examples) < EXAMPLES_MIN or min(map(len, arms)) < ARM_MIN:
        return (
            f"needs {EXAMPLES_MIN} examples, {ARM_MIN} held out; has {len(examples)}, {len(arms[1])} held out"
        )
    if any(min(sum(arm), len(arm) - sum(arm)) < ANSWERS_MIN for arm in arms):
        return f"needs {ANSWERS_MIN} who bought and {ANSWERS_MIN} who did not, offered something and held out"
    return ""


def learn_uplift(examples: Sequence[Effect]) -> Found:
    """Learns in the order given. It may serve when, on the newest examples, its order of customers gains more
    than 19 of 20 random orders do (Qini).
    """
    cut = int(len(examples) * (1 - JUDGED_SHARE))
    if failure := _too_few(examples) or _too_few_of_arms(examples[:cut], examples[cut:]):
        return Found(content={}, metrics={}, failure=failure)
    model = _arms(examples[:cut])
    log = [
        Treated(
            customer=one.customer,
            offered=one.offered,
            chance=one.chance,
            value=float(one.bought),
            predicted=model.gain(one.traits),
        )
        for one in examples[cut:]
    ]
    judged = comparable(log)
    parts = np.array(contributions(judged))
    if not len(parts):
        return Found(
            content={}, metrics={}, failure="nobody might have been offered something, and might not"
        )
    draw = np.random.default_rng(SEED)
    # Of customers whom the model cannot tell apart chance decides, as it does for the random orders.
    mixed = draw.permutation(len(parts))
    best = mixed[np.argsort([-judged[at][0].predicted for at in mixed], kind="stable")]
    value = qini_of(parts, best)
    random_ones = [qini_of(parts, draw.permutation(len(parts))) for _ in range(ORDERS)]
    beaten = float(np.mean([other < value for other in random_ones]))
    whole = uplift(log)
    metrics = {
        "qini": value,
        "qini_orders_beaten": beaten,
        "uplift": whole.value,
        "uplift_lower": whole.lower,
        "uplift_upper": whole.upper,
    }
    failure = "" if value > 0 and beaten >= BEATEN_MIN else "its order of customers gains no more than chance"
    learned = _arms(examples)
    content: dict[str, object] = {
        "offered": _pairs(dict(learned.offered)),
        "held": _pairs(dict(learned.held)),
    }
    return Found(content={} if failure else content, metrics=metrics, failure=failure)


def qini_of(parts: np.ndarray, order: np.ndarray) -> float:
    """`offline.qini` of customers in an order, by their `offline.contributions`."""
    return float(np.cumsum(parts[order]).sum()) / len(order) ** 2


def _too_few_of_arms(learned: Sequence[Effect], judged: Sequence[Effect]) -> str:
    for part in (learned, judged):
        for offered in (True, False):
            answers = {example.bought for example in part if example.offered is offered}
            if len(answers) < 2:
                return "the newest examples and those before need both answers, offered and held out"
    return ""


def learn_churn(examples: Sequence[tuple[tuple[str, ...], bool]]) -> Found:
    """Learns (traits, whether they are leaving). It may serve when it tells customers that it has not learned
    apart better than chance, and better than their plain share.
    """
    labels = np.array([leaving for _, leaving in examples], dtype=float)
    yes = int(labels.sum())
    if len(labels) < EXAMPLES_MIN or min(yes, len(labels) - yes) < ANSWERS_MIN:
        wanted = f"needs {EXAMPLES_MIN} customers, {ANSWERS_MIN} leaving and staying"
        return Found(content={}, metrics={}, failure=f"{wanted}; has {len(labels)}, {yes} leaving")
    order = np.random.default_rng(SEED).permutation(len(labels))
    cut = int(len(order) * (1 - JUDGED_SHARE))
    known, asked = order[:cut], order[cut:]
    rows = [traits for traits, _ in examples]
    if not 0 < labels[known].sum() < len(known) or not 0 < labels[asked].sum() < len(asked):
        return Found(content={}, metrics={}, failure="too few customers are leaving")
    weights = _fit([rows[at] for at in known], labels[known])
    risks = _risks(weights, [rows[at] for at in asked])
    share = float(labels[known].mean())
    metrics = {
        "auc": float(roc_auc_score(labels[asked], risks)),
        "log_loss": float(log_loss(labels[asked], risks, labels=[0, 1])),
        "log_loss_share": float(log_loss(labels[asked], np.full(len(asked), share), labels=[0, 1])),
        "calibration_error": calibration_error(labels[asked], risks),
    }
    failure = ""
    if metrics["auc"] < AUC_MIN or metrics["log_loss"] > metrics["log_loss_share"]:
        failure = "on customers it has not learned it tells little"
    learned = _fit(rows, labels)
    risk = np.quantile(_risks(learned, rows), 1 - AT_RISK_SHARE)
    threshold = float(min(1.0, max(risk, LIFT_MIN * labels.mean())))
    content: dict[str, object] = {"weights": _pairs(learned), "threshold": threshold}
    return Found(content={} if failure else content, metrics=metrics, failure=failure)


def _risks(weights: dict[str, float], rows: Sequence[tuple[str, ...]]) -> np.ndarray:
    from marketing.effects import chance

    return np.array([chance(weights, traits) for traits in rows])
