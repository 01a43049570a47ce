"""Reading what became of an unordered bulk write."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.errors import BulkWriteError

from chassis.mongo import DUPLICATE_KEY, DatabaseUnavailable, clashes


def failed(*codes: int, unsure: bool = False) -> BulkWriteError:
    details: dict[str, Any] = {
        "writeErrors": [{"index": 2 * at, "code": code, "errmsg": "no"} for at, code in enumerate(codes)],
        "writeConcernErrors": [{"code": 64, "errmsg": "waiting for replication timed out"}] if unsure else [],
    }
    return BulkWriteError(details)


def test_those_that_met_a_unique_value_are_told_by_their_places() -> None:
    assert list(clashes(failed(DUPLICATE_KEY, DUPLICATE_KEY))) == [0, 2]


def test_anything_else_is_raised() -> None:
    error = failed(DUPLICATE_KEY, 121)
    with pytest.raises(BulkWriteError) as caught:
        clashes(error)
    assert caught.value is error


@pytest.mark.parametrize("codes", [(), (DUPLICATE_KEY,)])
def test_what_a_majority_may_not_have_is_never_taken_for_written(codes: tuple[int, ...]) -> None:
    with pytest.raises(DatabaseUnavailable):
        clashes(failed(*codes, unsure=True))
