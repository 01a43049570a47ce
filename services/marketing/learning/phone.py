"""How likely a person is to say yes by phone, learned from past calls in the order in which they were made.

Two regimes, told apart block by block, because the world of a campaign drifts (Moro, Cortez, Rita: A
data-driven approach to predict the success of bank telemarketing, Decision Support Systems 62, 2014: the
economy at the time of the call decides more than the person called):

1. The circumstances of nearly all its calls (economic indicators and month) were seen often enough in
   training. Then everything known may speak: gradient boosted trees.
2. They were not. Then what the economy said about other times cannot be carried over: circumstances are left
   out, old calls fade, and several such estimators (fading base rates, fading logistic regressions on the
   person alone) are mixed by how well each did on the latest blocks before it learned them: the exponentially
   weighted forecaster for log loss (Cesa-Bianchi, Lugosi: Prediction, learning, and games, 2006, chapter 3).

The call's own duration is never looked at: it is known only after the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from marketing.learning.metrics import Floats

#: Never used: known only when the answer is known.
LEAKING = ("duration",)
#: The answer.
LABEL = "y"
#: What is the same for everybody called at the time.
CIRCUMSTANCES = ("emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed", "month")
#: Of these, what a person's own estimate leaves out.
ECONOMY = CIRCUMSTANCES[:-1]
#: Rows with the same circumstances from which on they count as known.
SEEN_ROWS_MIN = 5
#: Share of a block's calls in known circumstances from which on the block is of the known kind.
KNOWN_SHARE_MIN = 0.9
#: Calls after which a call counts half, one base rate each.
BASE_HALF_LIVES = (800.0, 1600.0, 3200.0)
#: The same for the logistic regressions.
PERSON_HALF_LIVES = (1600.0, 3200.0, 6400.0)
#: Inverse strength of their regularisation: strong, a few hundred of acceptances carry all.
PERSON_INVERSE_STRENGTH = 0.01
#: Calls that are predicted before any of them is learned.
BLOCK_ROWS = 1_600
#: Latest blocks of the training data by which estimators are weighed before any new data.
WEIGHING_BLOCKS_MAX = 6
#: Share of its weight that each estimator keeps for a change of luck.
SHARE_KEPT = 0.02
#: Acceptances imagined beside those counted, of one call.
PRIOR_YES = 0.1
#: Estimates are kept this far from 0 and 1.
EDGE = 1e-4


def split_label(frame: pd.DataFrame) -> tuple[pd.DataFrame, Floats]:
    """(what may be used, answers as 0 and 1). ValueError when answers are missing or not yes or no."""
    if LABEL not in frame:
        raise ValueError(f"needs a column {LABEL!r}")
    answers = frame[LABEL].astype(str)
    if not set(answers) <= {"yes", "no"}:
        raise ValueError(f"column {LABEL!r} must hold yes and no only")
    used = frame.drop(columns=[LABEL, *(name for name in LEAKING if name in frame)])
    return used.reset_index(drop=True), (answers == "yes").to_numpy(dtype=np.float64)


def completed(known: pd.DataFrame, rows: tuple[pd.DataFrame, Floats]) -> tuple[pd.DataFrame, Floats]:
    """Calls in the columns of known ones, each of the same kind there: a missing word is "", and what is no
    number where numbers were known is the median of these.
    """
    frame, labels = rows
    words, numbers = _columns(known)
    middles = {name: _number(known[name].median()) for name in numbers}
    whole = {name: frame[name].astype(object).where(frame[name].notna(), "").astype(str) for name in words}
    for name in numbers:
        values = pd.to_numeric(frame[name], errors="coerce").replace([np.inf, -np.inf], np.nan)
        whole[name] = values.fillna(middles[name]) if values.hasnans else values
    return pd.DataFrame(whole, index=frame.index)[list(known.columns)], labels


def _number(value: float) -> float:
    """0 for what is none."""
    return float(value) if np.isfinite(value) else 0.0


def _columns(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """(names of the words, names of the numbers)."""
    numbers = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name])]
    return [name for name in frame if name not in numbers], numbers


def logistic(inverse_strength: float = 1.0, words: Sequence[str] = (), numbers: Sequence[str] = ()) -> Any:
    """Plain logistic regression on one-hot words and scaled numbers."""
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), list(words)), (StandardScaler(), list(numbers))
    )
    return make_pipeline(encode, LogisticRegression(max_iter=1_000, C=inverse_strength))


def fit_logistic(frame: pd.DataFrame, labels: Floats) -> Callable[[pd.DataFrame], Floats]:
    """The plain baseline: every column, every call alike."""
    if (flat := _of_one_answer(labels)) is not None:
        return flat
    model = logistic(1.0, *_columns(frame)).fit(frame, labels)
    return lambda rows: np.asarray(model.predict_proba(rows)[:, 1])


def _of_one_answer(labels: Floats) -> Callable[[pd.DataFrame], Floats] | None:
    """What there is to say after calls that were all answered alike; None where they were not."""
    if 0 < labels.sum() < len(labels):
        return None
    rate = base_rate(labels, np.inf)
    return lambda rows: np.full(len(rows), rate)


class _Trees:
    """Gradient boosted trees on a frame of words and numbers."""

    def __init__(self, **options: Any) -> None:
        self._model = HistGradientBoostingClassifier(
            categorical_features="from_dtype", random_state=0, **options
        )
        self._kinds: dict[str, pd.CategoricalDtype] = {}

    def fit(self, frame: pd.DataFrame, labels: Floats) -> _Trees:
        words, _ = _columns(frame)
        self._kinds = {name: pd.CategoricalDtype(sorted(set(frame[name].astype(str)))) for name in words}
        if min(labels.sum(), len(labels) - labels.sum()) < 2:
            # One call cannot be both learned and judged by.
            self._model.set_params(early_stopping=False)
        self._model.fit(self._typed(frame), labels)
        return self

    def predict(self, frame: pd.DataFrame) -> Floats:
        return np.asarray(self._model.predict_proba(self._typed(frame))[:, 1])

    def _typed(self, frame: pd.DataFrame) -> pd.DataFrame:
        typed = {}
        for name, kind in self._kinds.items():
            words = frame[name].astype(str)
            # A word that was not learned is a missing one.
            typed[name] = words.where(words.isin(kind.categories)).astype(kind)
        return frame.assign(**typed)


def fit_boosting(frame: pd.DataFrame, labels: Floats) -> Callable[[pd.DataFrame], Floats]:
    """The plain baseline: boosting as scikit-learn sets it up."""
    if (flat := _of_one_answer(labels)) is not None:
        return flat
    return _Trees().fit(frame, labels).predict


def base_rate(labels: Floats, half_life: float) -> float:
    """Share of yes where a call counts half after so many calls."""
    weights = np.exp2((np.arange(len(labels)) - len(labels) + 1) / half_life)
    return float((weights @ labels + PRIOR_YES) / (weights.sum() + 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Experts:
    """Estimates of the estimators that leave circumstances out."""

    frame: pd.DataFrame
    labels: Floats

    def predict(self, rows: pd.DataFrame) -> Floats:
        """One row an estimator, one column a call."""
        flat = [np.full(len(rows), base_rate(self.labels, half_life)) for half_life in BASE_HALF_LIVES]
        if not 0 < self.labels.sum() < len(self.labels):
            return np.vstack([*flat, *([flat[0]] * len(PERSON_HALF_LIVES))])
        return np.vstack([*flat, *(self._person(half_life, rows) for half_life in PERSON_HALF_LIVES)])

    def _person(self, half_life: float, rows: pd.DataFrame) -> Floats:
        frame = self.frame.drop(columns=[name for name in ECONOMY if name in self.frame])
        weights = np.exp2((np.arange(len(frame)) - len(frame) + 1) / half_life)
        model = logistic(PERSON_INVERSE_STRENGTH, *_columns(frame))
        model.fit(frame, self.labels, logisticregression__sample_weight=weights)
        return np.asarray(model.predict_proba(rows[list(frame.columns)])[:, 1])


def _losses(estimates: Floats, labels: Floats) -> Floats:
    """Log loss of each estimator, summed."""
    kept = np.clip(estimates, EDGE, 1 - EDGE)
    return -np.asarray((labels * np.log(kept) + (1 - labels) * np.log(1 - kept)).sum(axis=1))


class PhonePropensity:
    """Predicts calls block by block, then learns them."""

    def __init__(self) -> None:
        self._frame = pd.DataFrame()
        self._labels: Floats = np.zeros(0)
        estimators = len(BASE_HALF_LIVES) + len(PERSON_HALF_LIVES)
        self._weights: Floats = np.full(estimators, 1.0 / estimators)
        self._trees: _Trees | None = None

    def fit(self, frame: pd.DataFrame, labels: Floats) -> PhonePropensity:
        """Learns calls in the order given, and weighs the estimators on the latest of them."""
        blocks = min(WEIGHING_BLOCKS_MAX, len(frame) // BLOCK_ROWS - 1)
        for number in range(blocks, 0, -1):
            start = len(frame) - number * BLOCK_ROWS
            block = slice(start, start + BLOCK_ROWS)
            experts = _Experts(frame=frame[:start], labels=labels[:start])
            self._weigh(experts.predict(frame[block]), labels[block])
        self._frame, self._labels = frame.reset_index(drop=True), labels
        self._trees = None
        return self

    def _weigh(self, estimates: Floats, labels: Floats) -> None:
        losses = _losses(estimates, labels)
        weights = self._weights * np.exp(-(losses - losses.min()))
        weights /= weights.sum()
        self._weights = (1 - SHARE_KEPT) * weights + SHARE_KEPT / len(weights)

    def predict(self, rows: pd.DataFrame) -> Floats:
        """Probability of yes for each call, in (0, 1)."""
        return self._predict(rows)[0]

    def _predict(self, rows: pd.DataFrame) -> tuple[Floats, Floats]:
        if not len(self._labels):
            return np.full(len(rows), PRIOR_YES), np.zeros((len(self._weights), len(rows)))
        estimates = _Experts(frame=self._frame, labels=self._labels).predict(rows)
        mixed = self._everything().predict(rows) if self._known(rows) else self._weights @ estimates
        return np.clip(mixed, EDGE, 1 - EDGE), estimates

    def _known(self, rows: pd.DataFrame) -> bool:
        """Whether nearly all calls are made in circumstances seen before. Without such columns: yes."""
        names = [name for name in CIRCUMSTANCES if name in rows]
        if not 0 < self._labels.sum() < len(self._labels):
            return False
        if not names or not len(rows):
            return True
        seen = self._frame.groupby(names).size()
        wanted = pd.MultiIndex.from_frame(rows[names]) if len(names) > 1 else pd.Index(rows[names[0]])
        known = seen.reindex(wanted).fillna(0).to_numpy() >= SEEN_ROWS_MIN
        return float(known.mean()) >= KNOWN_SHARE_MIN

    def _everything(self) -> _Trees:
        if self._trees is None:
            options = {"learning_rate": 0.03, "max_iter": 200, "max_leaf_nodes": 15, "min_samples_leaf": 50}
            # Learned from all calls: a tenth kept back to say when to stop would be missed more.
            options |= {"l2_regularization": 5.0, "max_features": 0.5, "early_stopping": False}
            self._trees = _Trees(**options).fit(self._frame, self._labels)
        return self._trees

    def prequential(self, rows: pd.DataFrame, labels: Floats) -> Floats:
        """Estimates of calls in the order given: each block is predicted, and only then learned."""
        found = []
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            answers = labels[start : start + BLOCK_ROWS]
            estimates, each = self._predict(block)
            found.append(estimates)
            if len(self._labels):
                self._weigh(each, answers)
            self._frame = pd.concat([self._frame, block], ignore_index=True)
            self._labels = np.concatenate([self._labels, answers])
            self._trees = None
        return np.concatenate(found) if found else np.zeros(0)


def prequential(
    rows: pd.DataFrame,
    labels: Floats,
    before: tuple[pd.DataFrame, Floats],
    fit: Callable[[pd.DataFrame, Floats], Callable[[pd.DataFrame], Floats]],
) -> Floats:
    """Estimates of a plain estimator that is made anew after each block; `PRIOR_YES` before it can be."""
    frame, known = before
    found = []
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        ready = 0 < known.sum() < len(known)
        found.append(fit(frame, known)(block) if ready else np.full(len(block), PRIOR_YES))
        frame = pd.concat([frame, block], ignore_index=True)
        known = np.concatenate([known, labels[start : start + BLOCK_ROWS]])
    return np.clip(np.concatenate(found), EDGE, 1 - EDGE) if found else np.zeros(0)
