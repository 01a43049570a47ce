"""Errors say one thing to a person and the same thing to a machine."""

from __future__ import annotations

import base64
import pickle
from urllib.parse import quote

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from chassis import errors
from chassis.errors import Code, FieldViolation, InvalidArgument, NotFound, ResourceExhausted, within
from chassis.grpc_status import DETAILS_BYTES_MAX, GRPC_CODES, abort_arguments, rich_status

DOMAIN = "callmesh.crm"


class CustomerNotFound(NotFound):
    """There is no customer {resource}.

    This second paragraph explains the class to its readers and is not part of the message.
    """

    reason = "CUSTOMER_NOT_FOUND"


def unpack(status, kind):
    found = []
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            found.append(kind())
            packed.Unpack(found[-1])
    return found


ONE_OF_EACH = [
    errors.InvalidArgument(field="a", why="is bad"),
    InvalidArgument.many([("a", "is bad"), ("b", "is worse")]),
    errors.MalformedRequest(message="x.Y"),
    errors.NotFound(resource="customers/1"),
    errors.AlreadyExists(resource="customers/1", conflict="_id"),
    errors.FailedPrecondition(subject="tickets/1", why="is closed"),
    errors.EtagMismatch(resource="customers/1"),
    errors.PermissionDenied(scope="crm.read"),
    errors.Unauthenticated(),
    errors.ResourceExhausted(subject="client:x", limit="10 calls", retry_seconds=1.5),
    errors.Unavailable(why="database away", retry_seconds=2),
    errors.DeadlineExceeded(),
    errors.Unimplemented(method="/a/b"),
    errors.Internal(),
]


#: Texts as a caller may choose them, of any length and script.
SAID = st.builds(
    lambda one, times: one * times,
    st.sampled_from(
        ["a", "客", "😀", 'k"%'],
    ),
    st.integers(0, 9_000),
)
MADE = {
    "field": lambda said: InvalidArgument(field=f"customer.custom_values[{said[0]!r}].time", why=said[1]),
    "fields": lambda said: InvalidArgument.many([(f"requests[{i}].{said[0]}", said[1]) for i in range(16)]),
    "condition": lambda said: errors.FailedPrecondition(
        subject=said[0], why=said[1], one=said[1], two=said[0]
    ),
    "quota": lambda said: ResourceExhausted(subject=said[0], limit=said[1], retry_seconds=1.0),
    "values": lambda said: NotFound(resource=said[0], one=said[1], two=said[1], three=said[1], four=said[0]),
}


@given(
    kind=st.sampled_from(sorted(MADE)),
    said=st.tuples(SAID, SAID),
    language=st.sampled_from([None, "zh", "en"]),
)
def test_whatever_a_caller_said_the_error_fits_into_what_clients_take_as_trailers(kind, said, language):
    error = MADE[kind](said)
    _, message, ((name, packed),) = abort_arguments(error, DOMAIN, language)
    values = {"grpc-status": b"13", "grpc-message": quote(message).encode(), name: base64.b64encode(packed)}
    assert sum(len(key) + len(value) + 32 for key, value in values.items()) < 8192 - 256
    (info,) = unpack(rich_status(error, DOMAIN, language), error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, DOMAIN)


def test_an_error_of_usual_texts_keeps_them_whole():
    error = errors.FailedPrecondition(
        subject="tickets/" + "7" * 120, why="客户还没有同意" * 20, rule="x" * 200
    )
    (info,) = unpack(rich_status(error, DOMAIN, "zh"), error_details_pb2.ErrorInfo)
    assert info.metadata == {
        "subject": error.values["subject"],
        "why": error.values["why"],
        "rule": "x" * 200,
    }


def test_what_programs_look_at_is_cut_last():
    long = "客" * 200
    error = errors.FailedPrecondition(subject=long, why=long, one=long, two=long)
    (info,) = unpack(rich_status(error, DOMAIN, "zh"), error_details_pb2.ErrorInfo)
    assert info.metadata == {"subject": long, "why": long, "one": long, "two": long}


def test_the_docstring_is_the_message():
    error = CustomerNotFound(resource="customers/7")
    assert str(error) == "There is no customer customers/7."
    assert error.details.reason == "CUSTOMER_NOT_FOUND"
    assert error.code is Code.NOT_FOUND


def test_a_class_without_docstring_speaks_like_its_parent():
    class Quiet(NotFound):
        reason = "QUIET"

    assert str(Quiet(resource="x/1")) == "x/1 was not found."


def test_braces_in_a_value_are_not_a_template():
    assert str(InvalidArgument(field="name", why="{oops} {0}")) == "name: {oops} {0}."


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda e: type(e).__name__)
def test_every_error_has_exactly_one_error_info_and_survives_pickling(error):
    for each in (error, pickle.loads(pickle.dumps(error))):
        status = rich_status(each, DOMAIN)
        (info,) = unpack(status, error_details_pb2.ErrorInfo)
        assert info.domain == DOMAIN
        assert info.reason == error.reason and info.reason.isupper()
        assert status.code == GRPC_CODES[error.code].value[0] != 0
        assert status.message == error.message == str(error) != ""
        assert "{" not in status.message


def test_every_code_of_ours_is_one_of_grpcs():
    assert {code.name for code in Code} | {"OK"} == {code.name for code in type(GRPC_CODES[Code.INTERNAL])}


def test_many_fields_become_one_bad_request():
    status = rich_status(
        InvalidArgument.many([("a", "is bad"), FieldViolation(field="b", description="worse")]), DOMAIN
    )
    (bad,) = unpack(status, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a", "is bad"), ("b", "worse")]
    assert status.message == "a: is bad (and 1 more)."


def test_a_part_of_a_request_is_checked_under_its_path():
    part = InvalidArgument.many([("filter", "is bad"), ("span", "is worse")])
    for found, wanted in (
        (part, {"scope.filter": "is bad", "scope.span": "is worse"}),
        (InvalidArgument(field="filter", why="is bad"), {"scope.filter": "is bad"}),
    ):
        with pytest.raises(InvalidArgument) as caught, within("scope"):
            raise found
        (bad,) = unpack(rich_status(caught.value, DOMAIN), error_details_pb2.BadRequest)
        assert {v.field: v.description for v in bad.field_violations} == wanted
        assert caught.value.message == found.message.replace("filter", "scope.filter")


def test_many_without_a_violation_is_a_programming_error():
    with pytest.raises(ValueError, match="at least one"):
        InvalidArgument.many([])


def test_details_never_outgrow_a_trailer():
    huge = InvalidArgument.many((f"customer.field_{n}" * 10, "错" * 5000) for n in range(1000))
    status = rich_status(huge, DOMAIN)
    (bad,) = unpack(status, error_details_pb2.BadRequest)
    assert 1 <= len(bad.field_violations) <= errors.VIOLATIONS_MAX
    assert sum(len(packed.value) for packed in status.details) <= DETAILS_BYTES_MAX
    assert len(status.message) <= errors.MESSAGE_CHARACTERS_MAX


def test_retry_quota_and_precondition_details():
    status = rich_status(ResourceExhausted(subject="client:x", limit="10 calls", retry_seconds=1.5), DOMAIN)
    assert unpack(status, error_details_pb2.RetryInfo)[0].retry_delay.ToMilliseconds() == 1500
    (quota,) = unpack(status, error_details_pb2.QuotaFailure)
    assert (quota.violations[0].subject, quota.violations[0].description) == ("client:x", "10 calls")
    status = rich_status(errors.FailedPrecondition(subject="tickets/1", why="is closed"), DOMAIN)
    (failure,) = unpack(status, error_details_pb2.PreconditionFailure)
    assert failure.violations[0].subject == "tickets/1"
    assert failure.violations[0].type == "FAILED_PRECONDITION"


def test_an_unknown_exception_says_nothing():
    shown = errors.translate(RuntimeError("password is hunter2"))
    assert type(shown) is errors.Internal
    assert "hunter2" not in str(shown) + repr(shown.details)


def test_a_registered_exception_is_translated_subclasses_included():
    class Foreign(Exception):
        pass

    class Deeper(Foreign):
        pass

    errors.translates(Foreign, lambda error: errors.Unavailable(why="later"))
    assert errors.translate(Deeper("x")).code is Code.UNAVAILABLE
    own = errors.NotFound(resource="a/1")
    assert errors.translate(own) is own
