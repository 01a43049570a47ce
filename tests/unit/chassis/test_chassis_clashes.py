"""Reading what the database says of what it did not do."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.errors import BulkWriteError, CursorNotFound, OperationFailure, WriteConcernError

from chassis.bus.verdict import is_away
from chassis.errors import Code, translate
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


def labelled() -> WriteConcernError:
    return WriteConcernError("stepping down", 91, {"errorLabels": ["RetryableWriteError"]})


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (labelled(), True),
        (CursorNotFound("the server with it was started anew", 43), True),
        (OperationFailure("no majority to read from yet", 134), True),
        (OperationFailure("the time was over", 262), True),
        (failed(unsure=True), True),
        (failed(DUPLICATE_KEY, unsure=True), False),
        (failed(121), False),
        (OperationFailure("not in this state of affairs", 2), False),
    ],
)
def test_what_passes_with_a_change_of_primary_is_told_alike_to_callers_and_to_the_bus(
    error: OperationFailure, passing: bool
) -> None:
    shown = translate(error)
    assert (shown.code is Code.UNAVAILABLE, is_away(error)) == (passing, passing)
    assert shown.details.retry_seconds == (1.0 if passing else None)
