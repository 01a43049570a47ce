"""The propensity model of the offers: logistic regression (scikit-learn) over the features of propensity.py,
judged on the newest outcomes before it is let near a customer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from marketing.learning.metrics import calibration_error
from marketing.propensity import BASE, BASE_SCALE, CONSTANT, FEATURES_MAX, features

#: Share of the outcomes, the newest, that a model is judged by before it learns them too.
JUDGED_SHARE = 0.2
#: Fewest outcomes, and fewest of either answer, to learn from.
EXAMPLES_MIN = 200
ANSWERS_MIN = 20
#: Inverse strength of the regularisation.
INVERSE_STRENGTH = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An offer that was put to a customer."""

    #: Offer id.
    offer: str
    #: What was known of customer and contact.
    traits: tuple[str, ...]
    #: Estimate from the history.
    base: float
    #: Whether the customer took it.
    accepted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """A model, or why there is none."""

    #: Weight by feature; empty for a failure.
    weights: dict[str, float]
    #: What validation measured.
    metrics: dict[str, float]
    #: Why it may not serve; "" when it may.
    failure: str = ""


def learn(examples: Sequence[Example]) -> Learned:
    """Learns outcomes in the order in which they came. It may serve when its log loss on the newest,
    predicted before they were learned, is no worse than that of the plain estimates.
    """
    labels = np.array([example.accepted for example in examples], dtype=float)
    yes = int(labels.sum())
    if len(labels) < EXAMPLES_MIN or min(yes, len(labels) - yes) < ANSWERS_MIN:
        return Learned(
            weights={},
            metrics={},
            failure=f"needs {EXAMPLES_MIN} outcomes, {ANSWERS_MIN} of either; has {len(labels)}, {yes} yes",
        )
    rows = [features(example.offer, example.traits, example.base) for example in examples]
    cut = int(len(rows) * (1 - JUDGED_SHARE))
    metrics = _judge(rows, labels, cut)
    failure = ""
    if metrics["log_loss"] > metrics["log_loss_base"]:
        failure = "on the newest outcomes it does worse than the plain estimates"
    return Learned(weights=_weights(*_fit(rows, labels)), metrics=metrics, failure=failure)


def _fit(rows: Sequence[dict[str, float]], labels: np.ndarray) -> tuple[DictVectorizer, LogisticRegression]:
    encoder = DictVectorizer()
    # The constant is among the features, so that a server needs the weights alone.
    model = LogisticRegression(C=INVERSE_STRENGTH, max_iter=500, fit_intercept=False)
    return encoder, model.fit(encoder.fit_transform(rows), labels)


def _judge(rows: Sequence[dict[str, float]], labels: np.ndarray, cut: int) -> dict[str, float]:
    newest = labels[cut:]
    base = np.array([1 / (1 + np.exp(-row[BASE] * BASE_SCALE)) for row in rows[cut:]])
    if 0 < labels[:cut].sum() < cut:
        encoder, model = _fit(rows[:cut], labels[:cut])
        found = model.predict_proba(encoder.transform(rows[cut:]))[:, 1]
    else:
        found = base
    metrics = {
        "log_loss": float(log_loss(newest, found, labels=[0, 1])),
        "log_loss_base": float(log_loss(newest, base, labels=[0, 1])),
        "calibration_error": calibration_error(newest, found),
    }
    if 0 < newest.sum() < len(newest):
        metrics["auc"] = float(roc_auc_score(newest, found))
    return metrics


def _weights(encoder: DictVectorizer, model: LogisticRegression) -> dict[str, float]:
    """The largest weights, the constant and the estimate's always among them."""
    every = dict(zip(encoder.feature_names_, map(float, model.coef_[0]), strict=True))
    kept = sorted(every, key=lambda name: (name not in (CONSTANT, BASE), -abs(every[name]), name))
    return {name: every[name] for name in kept[:FEATURES_MAX]}
