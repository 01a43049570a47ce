"""Keys of repeated create calls."""

from __future__ import annotations

import uuid

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import RequestInfo
from hypothesis import given
from hypothesis import strategies as st

from chassis.callcontext import Identity
from chassis.errors import InvalidArgument
from chassis.idempotency import RequestIdReused, check_repeat, content_fingerprint, request_key

ID = "6f1c1c5e-5c0f-4c5b-9a57-0d2f0f4f7a11"


def test_the_key_belongs_to_caller_method_and_id():
    key = request_key(Identity(subject="a"), "/s/Create", ID)
    assert key == request_key("a", "/s/Create", ID.upper())
    assert len({key, request_key("b", "/s/Create", ID), request_key("a", "/s/Other", ID), None}) == 4
    assert request_key("a", "/s/Create", "") is None


@given(st.uuids())
def test_every_uuid_is_taken(value):
    if value == uuid.UUID(int=0):
        return
    assert request_key("a", "m", str(value))


@pytest.mark.parametrize(
    "bad", ["x", "0" * 36, str(uuid.UUID(int=0)), ID + "\n", "{" + ID + "}", "x" * 100000]
)
def test_anything_else_is_refused(bad):
    with pytest.raises(InvalidArgument) as caught:
        request_key("a", "m", bad)
    assert caught.value.details.field_violations[0].field == "request_id"


def test_the_fingerprint_covers_the_content_without_the_id():
    one = content_fingerprint(RequestInfo(request_id=ID, serving_data="x"))
    assert one == content_fingerprint(RequestInfo(request_id="other", serving_data="x"))
    assert one != content_fingerprint(RequestInfo(request_id=ID, serving_data="y"))
    assert content_fingerprint(StringValue(value="a")) != content_fingerprint(StringValue(value="b"))


def test_a_repeat_with_other_content_is_refused():
    check_repeat("a", "a")
    check_repeat(None, "a")
    with pytest.raises(RequestIdReused) as caught:
        check_repeat("a", "b")
    assert caught.value.details.reason == "REQUEST_ID_REUSED"
    assert caught.value.details.field_violations[0].field == "request_id"
