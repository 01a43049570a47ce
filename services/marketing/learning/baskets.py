"""Which kinds of product a household buys next, learned from its purchases and everybody's.

Two stages. First every household's most promising kinds by a plain smoothed share of its own purchases; then
gradient boosted trees put these in order, from what is known of household, kind and pair: counts, how lately,
how often such things are bought again, and what goes with what (neighbouring kinds and households). The trees
learn from the past itself: the history is cut `SPAN_DAYS` before its end, and again before that, and what was
bought in the span after each cut are the answers. Latent factors (implicit's ALS: Hu, Koren, Volinsky:
Collaborative filtering for implicit feedback datasets, ICDM 2008) are a baseline only: as a feature they made
the order worse in three of four months tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from marketing.learning.metrics import RANKS, Floats, hit_and_recall

#: Days of one span of answers.
SPAN_DAYS = 30
#: Days of history that must be left before a span.
HISTORY_DAYS_MIN = 30
#: Most promising kinds of one household that are put in order.
POOL = 100
#: Neighbouring households asked.
NEIGHBOURS = 50
#: Imagined purchases of an average household beside its own.
SMOOTHING = 100.0
#: Strengths that the smoothed baseline chooses from.
SMOOTHINGS = (10.0, 30.0, 50.0, 80.0, 100.0, 150.0, 200.0, 300.0)
#: Latent factors.
FACTORS = 32
#: Trees are grown so many times with different samples of the features, and averaged.
FORESTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How the trees are grown."""

    #: Most leaves of a tree.
    leaves: int
    #: Step of one tree.
    rate: float
    #: Trees of one forest.
    trees: int
    #: Spans that are learned from, the latest first.
    spans: int


#: What was tried.
SETTINGS = tuple(
    Setting(leaves=leaves, rate=rate, trees=trees, spans=spans)
    for spans in (2, 3)
    for leaves, rate, trees in (
        (4, 0.05, 150),
        (6, 0.04, 80),
        (6, 0.04, 150),
        (6, 0.04, 300),
        (10, 0.04, 150),
        (15, 0.03, 150),
    )
)
#: What did best on the latest month of the training data (`choice`): the highest sum of hit rate and recall
#: on September 2017 after learning to August.
CHOSEN = Setting(leaves=4, rate=0.05, trees=150, spans=3)

#: Larger numbers are not exact as floating-point ones.
ID_NUMBER_MAX = 2**53
#: What a machine writes as a whole number.
NUMBER = r"-?(0|[1-9]\d*)(\.0+)?|[1-9](\.\d+)?e\+\d\d"

#: Kinds in rank order, by household; under "" for one that is not known.
Ranks = Mapping[str, Sequence[str]]
Matrix = np.ndarray[Any, np.dtype[np.float32]]


def purchases(transactions: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Transactions with the kind of product bought (`product_type`); those without a kind are left out.
    ValueError for a missing column.
    """
    for frame, names in (
        (transactions, ("household_id", "basket_id", "product_id", "transaction_timestamp")),
        (products, ("product_id", "product_type", "product_category")),
    ):
        if missing := [name for name in names if name not in frame]:
            raise ValueError(f"needs the columns {', '.join(missing)}")
    kinds = products[["product_type", "product_category"]].assign(product=_ids(products.product_id))
    joined = transactions.assign(product=_ids(transactions.product_id)).merge(
        kinds.drop_duplicates("product"), on="product", how="left"
    )
    # Nobody, and no product, is not one of a name.
    joined = joined[joined.product_type.notna() & joined.household_id.notna() & joined["product"].ne("")]
    return pd.DataFrame(
        {
            "household": _ids(joined.household_id),
            "kind": joined.product_type.astype(str),
            "group": joined.product_category.fillna("").astype(str),
            "basket": _ids(joined.basket_id),
            "at": _times(joined.transaction_timestamp),
        }
    ).sort_values("at", kind="stable", ignore_index=True)


def _ids(column: pd.Series) -> pd.Series:
    """Ids as texts, "" for none. A number may be written 7, 7.0 (where some are missing), 9e+05 (by R); what
    no machine writes as a number ("007", "12E5") is a name.
    """
    texts = column.astype(object).where(column.notna(), "").astype(str)
    numbers = pd.to_numeric(texts.where(texts.str.fullmatch(NUMBER)), errors="coerce")
    whole = numbers.notna() & (numbers.abs() < ID_NUMBER_MAX) & (numbers % 1 == 0)
    texts[whole] = numbers[whole].astype(np.int64).astype(str)
    return texts


def _times(column: pd.Series) -> pd.Series:
    """Times in UTC, however each is written. ValueError."""
    try:
        return pd.to_datetime(column, utc=True)
    except ValueError:
        # Midnight may stand there as a date.
        return pd.to_datetime(column, utc=True, format="mixed")


def bought(rows: pd.DataFrame) -> dict[str, set[str]]:
    """Distinct kinds bought, by household."""
    return {str(household): set(kinds) for household, kinds in rows.groupby("household").kind}


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How often each household bought each kind."""

    households: list[str]
    kinds: list[str]
    #: Households by kinds.
    table: Matrix

    @classmethod
    def of(cls, history: pd.DataFrame) -> Counts:
        """Counts rows."""
        households, kinds = sorted(set(history.household)), sorted(set(history.kind))
        table = np.zeros((len(households), len(kinds)), np.float32)
        np.add.at(table, (_codes(history.household, households), _codes(history.kind, kinds)), 1)
        return cls(households=households, kinds=kinds, table=table)

    def best(self, scores: Floats | Matrix) -> Ranks:
        """The kinds with the highest scores; equal ones in the order of their names."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :RANKS]
        named = {
            household: [self.kinds[index] for index in row]
            for household, row in zip(self.households, order, strict=True)
        }
        return {**named, "": self.popular()}

    def share(self) -> Floats:
        """Each kind's share of all purchases."""
        counts = self.table.sum(axis=0, dtype=np.float64)
        return np.asarray(counts / max(1.0, float(counts.sum())))

    def popular(self) -> list[str]:
        """The commonest kinds."""
        return [self.kinds[index] for index in np.argsort(-self.share(), kind="stable")[:RANKS]]


def _codes(values: pd.Series, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(pd.Categorical(values, categories=names).codes, dtype=np.int64)


def latent(table: Matrix) -> Matrix:
    """Scores by latent factors, households by kinds."""
    # Many small products of matrices: more threads only get in each other's way, and implicit says so aloud.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=FACTORS, regularization=0.05, iterations=15, random_state=1, num_threads=1
        )
        model.fit(sp.csr_matrix(table), show_progress=False)
    return np.asarray(np.asarray(model.user_factors) @ np.asarray(model.item_factors).T)


def baselines(history: pd.DataFrame) -> dict[str, Ranks]:
    """What any ranking must beat: global popularity, personal popularity (filled up by the global one), ALS,
    and personal popularity smoothed by the strength that did best on the latest span.
    """
    counts = Counts.of(history)
    share = counts.share()
    strength = _strength(history)
    return {
        "global": {"": counts.popular()},
        "personal": counts.best(counts.table + 1e-3 * share),
        "als": counts.best(latent(counts.table)),
        "smoothed": counts.best(counts.table + strength * share),
    }


def _strength(history: pd.DataFrame) -> float:
    cut = history["at"].max() - pd.Timedelta(days=SPAN_DAYS)
    before, answers = history[history["at"] < cut], bought(history[history["at"] >= cut])
    if before.empty:
        return SMOOTHING
    counts = Counts.of(before)

    def hits(strength: float) -> int:
        ranks = counts.best(counts.table + strength * counts.share())
        return sum(len(set(ranks.get(one, ranks[""])) & things) for one, things in answers.items())

    return max(SMOOTHINGS, key=hits)


class Baskets:
    """Ranks kinds of product for every household of a history."""

    def __init__(self, setting: Setting = CHOSEN) -> None:
        self._setting = setting
        self._forests: list[HistGradientBoostingClassifier] = []

    def fit(self, history: pd.DataFrame) -> Baskets:
        """Learns from the spans at the end of a history; one too short to be cut leaves the plain ranking."""
        spans = range(self._setting.spans)
        examples = [found for span in spans if (found := _examples(history, span)) is not None]
        if not examples:
            return self
        features = np.vstack([table for table, _ in examples])
        answers = np.concatenate([labels for _, labels in examples])
        if not 0 < answers.sum() < len(answers):
            return self
        for seed in range(FORESTS):
            forest = HistGradientBoostingClassifier(
                learning_rate=self._setting.rate,
                max_iter=self._setting.trees,
                max_leaf_nodes=self._setting.leaves,
                min_samples_leaf=300,
                l2_regularization=20.0,
                max_features=0.5,
                random_state=seed,
            )
            self._forests.append(forest.fit(features, answers))
        return self

    def rank(self, history: pd.DataFrame) -> Ranks:
        """The best `RANKS` kinds for each household after a history."""
        counts = Counts.of(history)
        if not self._forests:
            return counts.best(counts.table + SMOOTHING * counts.share())
        features, pool = _features(history, history["at"].max(), counts)
        scores = np.mean([forest.decision_function(features) for forest in self._forests], axis=0)
        # What the trees do not tell apart stays in the order in which it was pooled.
        scores = scores - 1e-9 * np.tile(np.arange(pool.shape[1]), len(pool))
        by_household = np.full(counts.table.shape, -np.inf)
        np.put_along_axis(by_household, pool, scores.reshape(pool.shape), axis=1)
        return counts.best(by_household)


def choice(history: pd.DataFrame, settings: Sequence[Setting] = SETTINGS) -> list[dict[str, float]]:
    """How each setting does on the latest `SPAN_DAYS` of a history after learning what came before: its
    values, `hit_rate_10` and `recall_10`, best first by the sum of both. ValueError for too short a history.
    """
    cut = history["at"].max() - pd.Timedelta(days=SPAN_DAYS)
    before, things = history[history["at"] < cut], bought(history[history["at"] >= cut])
    if before.empty or not things:
        raise ValueError(f"needs more than {SPAN_DAYS} days of purchases")
    found = []
    for setting in settings:
        ranks = Baskets(setting).fit(before).rank(before)
        hit, recall = hit_and_recall(ranks, ranks[""], things)
        found.append({**asdict(setting), "hit_rate_10": hit, "recall_10": recall})
    return sorted(found, key=lambda one: -(one["hit_rate_10"] + one["recall_10"]))


def _examples(history: pd.DataFrame, span: int) -> tuple[Matrix, Floats] | None:
    """(features, answers) of one span counted from the end; None where too little history is left."""
    end = history["at"].max() - pd.Timedelta(days=SPAN_DAYS * span)
    cut = end - pd.Timedelta(days=SPAN_DAYS)
    if (cut - history["at"].min()).days < HISTORY_DAYS_MIN:
        return None
    before = history[history["at"] < cut]
    answers = bought(history[(history["at"] >= cut) & (history["at"] < end)])
    counts = Counts.of(before)
    features, pool = _features(before, cut, counts)
    labels = np.array(
        [
            [counts.kinds[index] in answers.get(household, ()) for index in row]
            for household, row in zip(counts.households, pool, strict=True)
        ]
    )
    # Households that stayed away altogether say nothing about what they would have bought.
    came = np.array([household in answers for household in counts.households]).repeat(pool.shape[1])
    return features[came], labels.ravel()[came].astype(np.float64)


def _features(
    history: pd.DataFrame, end: pd.Timestamp, counts: Counts
) -> tuple[Matrix, np.ndarray[Any, np.dtype[np.int64]]]:
    """(one row for each household and pooled kind, the pool: kinds' indexes by household)."""
    rows, columns = _codes(history.household, counts.households), _codes(history.kind, counts.kinds)
    age = (end - history["at"]).dt.total_seconds().to_numpy() / 86_400

    def summed(weights: Any) -> Matrix:
        table = np.zeros_like(counts.table)
        np.add.at(table, (rows, columns), weights)
        return table

    count, month, quarter = counts.table, summed(np.exp2(-age / 30)), summed(np.exp2(-age / 90))
    last = np.full_like(count, 999.0)
    np.minimum.at(last, (rows, columns), age.astype(np.float32))
    once = history.assign(r=rows, c=columns).drop_duplicates(["r", "c", "basket"])
    visits = np.zeros_like(count)
    np.add.at(visits, (once.r.to_numpy(), once.c.to_numpy()), 1)
    total, lately = count.sum(axis=1, keepdims=True), month.sum(axis=1, keepdims=True)
    share, share_lately = counts.share(), month.sum(axis=0) / max(float(month.sum()), 1e-9)
    again = ((count > 1).sum(axis=0) + 1) / ((count > 0).sum(axis=0) + 5)
    smoothed = (count + SMOOTHING * share) / (total + SMOOTHING)
    fresh = (quarter + SMOOTHING * share_lately) / (quarter.sum(axis=1, keepdims=True) + SMOOTHING)
    neighbours = _neighbours(count, quarter)
    tables = [count, month, quarter, last, visits, share, share_lately, (count > 0).mean(axis=0), again]
    tables += [total, lately, _group_counts(history, counts), _together(count), neighbours]
    tables += [smoothed, fresh, total * share, lately * share_lately]
    width = min(POOL, count.shape[1])
    promise = smoothed + 0.3 * fresh + 0.02 * neighbours
    pool = np.argsort(-promise, axis=1, kind="stable")[:, :width]
    at = np.arange(len(pool)).repeat(width)
    columns_of = [np.broadcast_to(table, count.shape)[at, pool.ravel()] for table in tables]
    return np.column_stack(columns_of).astype(np.float32), pool


def _group_counts(history: pd.DataFrame, counts: Counts) -> Matrix:
    """How often each household bought from the group of each kind."""
    group_of: Mapping[str, str] = dict(zip(history.kind, history.group, strict=True))
    groups = sorted(set(group_of.values()))
    place = np.array([groups.index(group_of[kind]) for kind in counts.kinds])
    table = np.zeros((len(groups), len(counts.households)), np.float32)
    np.add.at(table, place, counts.table.T)
    return np.asarray(table.T[:, place])


def _together(count: Matrix) -> Matrix:
    """How well each kind goes with what a household bought, by cosines of kinds."""
    weight = np.log1p(count)
    length = np.sqrt((weight**2).sum(axis=0)) + 1e-9
    alike = (weight.T @ weight) / np.outer(length, length)
    np.fill_diagonal(alike, 0)
    return np.asarray(weight @ alike / (alike.sum(axis=0) + 5))


def _neighbours(count: Matrix, lately: Matrix) -> Matrix:
    """What the households most alike buy."""
    rarity = np.log(len(count) / (1 + (count > 0).sum(axis=0))).clip(min=0)
    vectors = np.log1p(count) * rarity
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, 0)
    if len(alike) > NEIGHBOURS:
        bound = -np.partition(-alike, NEIGHBOURS, axis=1)[:, NEIGHBOURS : NEIGHBOURS + 1]
        alike[alike < bound] = 0
    return np.asarray(alike @ np.minimum(lately, 3) / (alike.sum(axis=1, keepdims=True) + 1e-9))
