"""Learning against baselines on the real data, everything recomputed in the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
#: The limit of the calibration error.
CALIBRATION_ERROR_MAX = 0.03
FOLDS = 5
SEED = 0
#: First day of the month that retail rankings are judged by.
TEST_FROM = "2017-10-01"


def data(name: str) -> Path | None:
    """A data file; None where it is not there."""
    directory = Path(os.environ.get("MARKETING_DATA", ROOT.parent / "shared" / "data"))
    path = directory / name
    return path if path.exists() else None


def telemarketing() -> tuple[dict[str, Any], bool]:
    """(figures, whether every limit holds)."""
    path = data("bank_telemarketing_first80.csv.gz")
    if path is None:
        return {"telemarketing_skipped": "the data are not there"}, True
    import numpy as np
    import pandas as pd
    from sklearn.metrics import log_loss, roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    from marketing import evaluate
    from marketing.learning import phone
    from marketing.learning.metrics import calibration_error

    frame, labels = phone.split_label(pd.read_csv(path))
    out = {name: np.zeros(len(labels)) for name in ("ours", "logistic", "boosting")}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    for known, asked in folds.split(frame, labels):
        before, rows = (frame.iloc[known], labels[known]), frame.iloc[asked]
        out["ours"][asked] = phone.PhonePropensity().fit(*before).predict(rows)
        out["logistic"][asked] = phone.fit_logistic(*before)(rows)
        out["boosting"][asked] = phone.fit_boosting(*before)(rows)
    nothing = (frame[:0], labels[:0])
    ours = phone.PhonePropensity().prequential(frame, labels)
    retrained = phone.prequential(frame, labels, nothing, phone.fit_logistic)
    base = evaluate.base_rates(frame, labels, nothing)
    figures = {f"telemarketing_auc_{name}": float(roc_auc_score(labels, out[name])) for name in out}
    figures |= {
        "telemarketing_log_loss": float(log_loss(labels, ours)),
        "telemarketing_log_loss_base_rate": float(log_loss(labels, base)),
        "telemarketing_log_loss_logistic_retrained": float(log_loss(labels, retrained)),
        "telemarketing_calibration_error": calibration_error(labels, ours),
        "telemarketing_auc_prequential": float(roc_auc_score(labels, ours)),
        "telemarketing_auc_inside_blocks": _inside(labels, ours, phone.BLOCK_ROWS),
    }
    ok = figures["telemarketing_auc_ours"] >= max(
        figures["telemarketing_auc_logistic"], figures["telemarketing_auc_boosting"]
    )
    ok &= figures["telemarketing_log_loss"] <= min(
        figures["telemarketing_log_loss_base_rate"], figures["telemarketing_log_loss_logistic_retrained"]
    )
    ok &= figures["telemarketing_calibration_error"] <= CALIBRATION_ERROR_MAX
    rounded: dict[str, Any] = {name: round(value, 5) for name, value in figures.items()}
    return rounded | {"telemarketing_calibration_error_max": CALIBRATION_ERROR_MAX}, ok


def _inside(labels: Any, estimates: Any, rows: int) -> float:
    """Mean AUC inside blocks: reported, and judged by nobody, because it is mostly noise."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    starts = range(rows, len(labels), rows)
    pairs = [(labels[start : start + rows], estimates[start : start + rows]) for start in starts]
    return float(np.mean([roc_auc_score(*pair) for pair in pairs if 0 < pair[0].sum() < len(pair[0])]))


def retail() -> tuple[dict[str, Any], bool]:
    """(figures, whether every limit holds)."""
    purchases, products = data("retail_transactions_2017_01_10.csv.gz"), data("retail_products.csv.gz")
    if purchases is None or products is None:
        return {"retail_skipped": "the data are not there"}, True
    import pandas as pd

    from marketing import evaluate

    rows = pd.read_csv(purchases)
    later = pd.to_datetime(rows.transaction_timestamp) >= pd.Timestamp(TEST_FROM)
    found = evaluate.retail(rows[~later], pd.read_csv(products), rows[later])
    ok = all(
        found[figure] > found[f"{figure}_{baseline}"]
        for figure in ("hit_rate_10", "recall_10")
        for baseline in ("global", "personal", "als", "smoothed")
    )
    return {f"retail_{name}": value for name, value in found.items()}, ok
