"""Exports go on where they were broken off."""

from __future__ import annotations

from typing import Any

import pytest

from callmesh.crm.v1 import transfer_pb2
from chassis.errors import InvalidArgument
from crm import transfer_servicer


def test_an_export_goes_on_after_the_row_that_its_token_names() -> None:
    request = transfer_pb2.ExportInteractionsRequest(format=transfer_pb2.FILE_FORMAT_CSV)
    page, after = transfer_servicer._resumed(request, int, str)
    assert after is None
    request.resume_token = page.next_token((7, "x"))
    assert transfer_servicer._resumed(request, int, str)[1] == (7, "x")


@pytest.mark.parametrize("key", ["x", 5, ["x"], ["x", "y"], [1, 2]])
def test_a_resume_token_with_a_key_of_another_shape_is_refused(key: Any) -> None:
    request = transfer_pb2.ExportInteractionsRequest(format=transfer_pb2.FILE_FORMAT_CSV)
    request.resume_token = transfer_servicer._resumed(request, int, str)[0].next_token(key)
    with pytest.raises(InvalidArgument) as caught:
        transfer_servicer._resumed(request, int, str)
    assert [violation.field for violation in caught.value.details.field_violations] == ["resume_token"]
