"""The figures come out for any split of the same columns, however the files are written."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from marketing import evaluate
from marketing.learning import baskets, phone


def calls(count: int, **columns: Any) -> pd.DataFrame:
    chance = np.random.default_rng(3)
    made = pd.DataFrame(
        {
            "age": chance.integers(20, 70, count),
            "job": chance.choice(["admin.", "student"], count),
            "month": "may",
            "duration": chance.integers(0, 900, count),
            "euribor3m": 4.857,
            "y": chance.choice(["no", "yes"], count, p=[0.7, 0.3]),
        }
    )
    return made.assign(**columns)


KNOWN, ASKED = calls(60), calls(30)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Of so few calls nothing is gained by more, and much waiting lost."""
    with threadpool_limits(1):
        yield


def text(frame: pd.DataFrame, **how: Any) -> bytes:
    return frame.to_csv(index=False, **how).encode()


@pytest.mark.parametrize(
    "data",
    [
        text(ASKED, sep=";", quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n"),
        b"\xef\xbb\xbf" + text(ASKED, sep="\t"),
        gzip.compress(text(ASKED, sep="|")),
    ],
)
def test_a_file_is_read_however_it_is_written(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "calls"
    path.write_bytes(data)
    pd.testing.assert_frame_equal(evaluate.read(path), ASKED)


def test_calls_are_judged_in_the_kinds_of_the_known_ones() -> None:
    known = phone.split_label(calls(4, age=[20, 30, 40, 90], job=["student", None, "admin.", None]))
    asked = phone.split_label(calls(4, age=["unknown", None, "50", 60], job=None, month=[1, 2, None, 3]))
    frame, _ = phone.completed(known[0], (asked[0][asked[0].columns[::-1]], asked[1]))
    assert list(frame.columns) == list(known[0].columns) and "duration" not in frame
    assert frame.age.tolist() == [35.0, 35.0, 50.0, 60.0] and frame.job.tolist() == [""] * 4
    assert frame.month.tolist() == ["1.0", "2.0", "", "3.0"]
    nobody, _ = phone.completed(known[0].assign(age=np.nan), asked)
    assert nobody.age.tolist() == [0.0, 0.0, 50.0, 60.0]


def test_what_the_calls_do_not_tell_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_bytes(text(calls(60, age=[None, *range(59)], job=[None] * 30 + ["student"] * 30)))
    test.write_bytes(text(calls(10, age=[None, "unknown", *range(8)], job="astronaut", month="dec", y="no")))
    assert evaluate.main(["telemarketing", "--train", str(train), "--test", str(test)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name for name in found if found[name] is None} == {name for name in found if "auc" in name}
    assert {"log_loss", "log_loss_logistic", "log_loss_base_rate", "calibration_error"} <= found.keys()
    for known, asked in ((KNOWN[:0], ASKED), (KNOWN, ASKED[:0])):
        with pytest.raises(ValueError, match="holds no calls"):
            evaluate.telemarketing(known, asked)


@pytest.mark.parametrize("fit", [phone.fit_logistic, phone.fit_boosting])
def test_after_calls_of_one_answer_there_is_one_estimate(fit: Any) -> None:
    frame, labels = phone.split_label(calls(60, y="no"))
    assert set(fit(frame, labels)(frame[:2])) == {phone.base_rate(labels, np.inf)}


def test_one_acceptance_among_many_calls_can_be_learned() -> None:
    """More than 10,000 calls are cut into those learned and those that say when to stop."""
    frame = pd.DataFrame({"age": np.arange(10_002) % 40})
    assert phone.fit_boosting(frame, np.eye(1, 10_002)[0])(frame[:2]).shape == (2,)


def test_damaged_data_end_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = bytearray(gzip.compress(text(KNOWN)))
    packed[12:40] = b"\xff" * 28
    path = tmp_path / "broken.csv"
    path.write_bytes(packed)
    assert evaluate.main(["telemarketing", "--train", str(path), "--test", str(path)]) == 2
    assert capsys.readouterr().err.startswith("evaluate: ")


def test_data_of_another_kind_end_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "bank.zip"
    path.write_bytes(b"PK\x03\x04\xff\xfe,\n1,2\n")
    with pytest.raises(ValueError, match=r"bank\.zip is no table of text, nor gzipped"):
        evaluate.read(path)


def test_empty_lines_may_stand_before_the_header(tmp_path: Path) -> None:
    path = tmp_path / "bank.csv"
    path.write_bytes(b"\n\r\nage;job\n31;student\n")
    assert evaluate.read(path).to_dict("list") == {"age": [31], "job": ["student"]}


def test_one_product_and_household_may_be_written_in_several_ways() -> None:
    products = pd.DataFrame(
        {
            "product_id": ["9e+05", "7.0", "X9", "9E5", "007"],
            "product_type": ["A", "B", "C", "D", "E"],
            "product_category": None,
        }
    )
    bought = pd.DataFrame(
        {
            "household_id": ["1.0", "1", None, "H", "12E5", "1200000"],
            "basket_id": ["4.0128e+10", "40128000000", "3", "4", "05", "5"],
            "product_id": [900000, 7, 7, "X9", "9E5", "007"],
            "transaction_timestamp": [
                "2017-01-28 19:06:53",
                "2017-01-29",
                "2017-01-29 00:00:01",
                "2017-01-30T00:00:00Z",
                "2017-01-31",
                "2017-02-01",
            ],
        }
    )
    rows = baskets.purchases(bought, products)
    assert rows[["household", "kind", "basket"]].values.tolist() == [
        ["1", "A", "40128000000"],
        ["1", "B", "40128000000"],
        ["H", "C", "4"],
        ["12E5", "D", "05"],
        ["1200000", "E", "5"],
    ]
