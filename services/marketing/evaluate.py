"""`python -m marketing.evaluate`: how well propensities and next products are estimated, on data of one's
own.

`telemarketing --train F --test F`: both in the columns of the bank telemarketing set, in the order of the
calls. The test calls are predicted block by block; a block is learned after it was predicted. Prints one JSON
object: `auc`, `log_loss`, `calibration_error`; `auc_static` and `log_loss_static` without learning from test
calls; the same two of plain estimators beside it: `_logistic`, `_boosting` (static), `_logistic_retrained`,
`_base_rate`.

`retail --train F --products F --test F`: purchases to learn from, the products' kinds, purchases to judge by.
Prints `hit_rate_10` and `recall_10`, and the same with `_global`, `_personal`, `_als`, `_smoothed`.

`retail-choice --train F --products F`: how the estimator was set, and may be set anew: each setting learns
what came before the latest month of the purchases and is judged on that month. Prints a list, best first.

Files are tables with a header, separated by commas, semicolons, tabs or bars, gzipped or not, whatever they
are called. Where a value is missing, or no number in a column of numbers, the training data's median takes
its place. A figure that the data do not tell is null: `auc` where all answers are the same.

A file that cannot be read or lacks a column ends the command with status 2 and one line on stderr.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from marketing.learning.metrics import Floats

#: Half-lives, in calls, of the base rates that are tried beside; the best counts.
BASE_RATES = (400.0, 800.0, 1600.0, 3200.0, 6400.0)
#: What may stand between two values.
SEPARATORS = ",;\t|"
#: How gzipped data begin.
GZIP = b"\x1f\x8b"

#: What was measured; None where the data do not tell it.
Figures = dict[str, float | None]


def read(path: Path) -> pd.DataFrame:
    """A table with a header. OSError, EOFError, ValueError for a file that holds none."""
    import pandas as pd

    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data.startswith(GZIP) else data
    except zlib.error as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    header = data.lstrip().partition(b"\n")[0].decode(errors="replace")
    try:
        return pd.read_csv(io.BytesIO(data), sep=max(SEPARATORS, key=header.count))
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is no table of text, nor gzipped") from None


def telemarketing(train: pd.DataFrame, test: pd.DataFrame) -> Figures:
    """The figures of the phone propensity. ValueError for data that cannot be judged."""
    from marketing.learning import phone
    from marketing.learning.metrics import calibration_error

    known, rows = phone.split_label(train), phone.split_label(test)
    if missing := [name for name in known[0] if name not in rows[0]]:
        raise ValueError(f"the test file lacks the columns {', '.join(missing)}")
    for name, labelled in (("training", known), ("test", rows)):
        if not len(labelled[1]):
            raise ValueError(f"the {name} file holds no calls")
    known, (frame, labels) = phone.completed(known[0], known), phone.completed(known[0], rows)
    model = phone.PhonePropensity().fit(*known)
    static = model.predict(frame)
    learned = model.prequential(frame, labels)
    found = {**_scores("", labels, learned), "calibration_error": calibration_error(labels, learned)}
    found |= _scores("_static", labels, static)
    found |= _scores("_logistic", labels, phone.fit_logistic(*known)(frame))
    found |= _scores("_boosting", labels, phone.fit_boosting(*known)(frame))
    retrained = phone.prequential(frame, labels, known, phone.fit_logistic)
    found |= _scores("_logistic_retrained", labels, retrained)
    found |= _scores("_base_rate", labels, base_rates(frame, labels, known))
    return _rounded(found)


def _rounded(figures: Mapping[str, float | None]) -> Figures:
    return {name: None if value is None else round(value, 6) for name, value in figures.items()}


def base_rates(frame: pd.DataFrame, labels: Floats, known: tuple[pd.DataFrame, Floats]) -> Floats:
    """Prequential estimates by the fading base rate that turned out best."""
    import numpy as np

    from marketing.learning import phone

    def flat(half_life: float) -> Floats:
        return phone.prequential(
            frame,
            labels,
            known,
            lambda _, past: lambda rows: np.full(len(rows), phone.base_rate(past, half_life)),
        )

    return min(map(flat, BASE_RATES), key=lambda found: _log_loss(labels, found))


def _log_loss(labels: Floats, estimates: Floats) -> float:
    import numpy as np
    from sklearn.metrics import log_loss

    return float(log_loss(labels, np.clip(estimates, 1e-6, 1 - 1e-6), labels=[0, 1]))


def _scores(suffix: str, labels: Floats, estimates: Floats) -> Figures:
    from sklearn.metrics import roc_auc_score

    # Where all said the same there is no order to be right about.
    told = 0 < labels.sum() < len(labels)
    return {
        f"auc{suffix}": float(roc_auc_score(labels, estimates)) if told else None,
        f"log_loss{suffix}": _log_loss(labels, estimates),
    }


def retail(train: pd.DataFrame, products: pd.DataFrame, test: pd.DataFrame) -> dict[str, float]:
    """The figures of the next kinds of product. ValueError for data that cannot be judged."""
    from marketing.learning import baskets
    from marketing.learning.metrics import hit_and_recall

    history = baskets.purchases(train, products)
    things = baskets.bought(baskets.purchases(test, products))
    if history.empty or not things:
        raise ValueError("both files need purchases of known products")
    found: dict[str, float] = {}
    ranks = {"": baskets.Baskets().fit(history).rank(history)}
    ranks |= {f"_{name}": made for name, made in baskets.baselines(history).items()}
    for suffix, made in ranks.items():
        found[f"hit_rate_10{suffix}"], found[f"recall_10{suffix}"] = hit_and_recall(made, made[""], things)
    return {name: round(value, 6) for name, value in found.items()}


def retail_choice(train: pd.DataFrame, products: pd.DataFrame) -> list[dict[str, float]]:
    """Settings of the estimator by how they do on the latest month. ValueError for unusable data."""
    from marketing.learning import baskets

    found = baskets.choice(baskets.purchases(train, products))
    return [{name: round(value, 6) for name, value in one.items()} for one in found]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m marketing.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, files in (
        ("telemarketing", ("train", "test")),
        ("retail", ("train", "products", "test")),
        ("retail-choice", ("train", "products")),
    ):
        command = kinds.add_parser(kind)
        for name in files:
            command.add_argument(f"--{name}", type=Path, required=True, help="CSV, may be gzipped")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after printing the figures, 2 for data that cannot be judged."""
    given = _parser().parse_args(arguments)
    # Many small products of matrices: more threads only get in each other's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        train = read(given.train)
        found: object
        if given.kind == "telemarketing":
            found = telemarketing(train, read(given.test))
        elif given.kind == "retail":
            found = retail(train, read(given.products), read(given.test))
        else:
            found = retail_choice(train, read(given.products))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
