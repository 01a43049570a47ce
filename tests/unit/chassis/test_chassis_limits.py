"""How much one caller may ask for."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis import limits, metrics
from chassis.config import ServiceSettings
from chassis.errors import StartError
from chassis.limits import Kind, Limits, Policy, Rate

READ, WRITE = Kind("crm.customers.read", False), Kind("crm.customers.write", False)
STREAM = Kind("routing.calls.route", True)


def limited(subjects_max: int = 10, **policy) -> Limits:
    return Limits("test", Policy(**policy), subjects_max)


def test_a_bucket_empties_and_fills_again():
    subject = limited(rates={"all": [Rate(calls=2, burst=3)]})
    for _ in range(3):
        subject.enter("a", READ, 0.0)
    with pytest.raises(limits.RateLimited) as caught:
        subject.enter("a", READ, 0.25)
    assert caught.value.details.retry_seconds == pytest.approx(0.25)
    assert caught.value.details.quota[0].subject == "client:a"
    assert caught.value.details.quota[0].description == "2 in 1 s are allowed"
    subject.enter("b", READ, 0.25)
    subject.enter("a", READ, 0.5)
    with pytest.raises(limits.RateLimited):
        subject.enter("a", READ, 0.5)


@pytest.mark.parametrize(
    ("key", "hit", "spared"),
    [
        ("read", READ, WRITE),
        ("write", WRITE, READ),
        ("write", STREAM, READ),
        ("stream", STREAM, WRITE),
        ("crm.customers.write", WRITE, READ),
        ("routing.calls.route", STREAM, WRITE),
    ],
)
def test_a_rate_measures_its_class_of_methods(key, hit, spared):
    subject = limited(rates={key: [Rate(calls=1)]})
    subject.enter("a", hit, 0.0)
    with pytest.raises(limits.RateLimited):
        subject.enter("a", hit, 0.0)
    subject.enter("a", spared, 0.0)


def test_who_is_refused_by_one_bucket_keeps_the_tokens_of_the_others():
    subject = limited(
        rates={"all": [Rate(calls=10)], "write": [Rate(calls=1), Rate(calls=5, seconds=86_400)]}
    )
    subject.enter("a", WRITE, 0.0)
    for _ in range(50):
        with pytest.raises(limits.RateLimited):
            subject.enter("a", WRITE, 0.0)
    for _ in range(9):
        subject.enter("a", READ, 0.0)
    with pytest.raises(limits.RateLimited):
        subject.enter("a", READ, 0.0)


def test_a_quota_says_so_and_when_there_is_more():
    subject = limited(rates={"all": [Rate(calls=2, seconds=86_400)]})
    for _ in range(2):
        subject.enter("a", READ, 0.0)
    with pytest.raises(limits.QuotaExceeded) as caught:
        subject.enter("a", READ, 43_000.0)
    assert caught.value.details.retry_seconds == pytest.approx(200.0)
    subject.enter("a", READ, 43_200.0)


@pytest.mark.parametrize(
    ("policy", "kind", "other", "error"),
    [
        ({"calls_open_max": 2}, READ, STREAM, limits.TooManyOpenCalls),
        ({"streams_open_max": 2}, STREAM, READ, limits.TooManyOpenStreams),
    ],
)
def test_what_is_open_at_once_is_counted(policy, kind, other, error):
    subject = limited(**policy)
    open_ = [subject.enter("a", kind, 0.0) for _ in range(2)]
    with pytest.raises(error) as caught:
        subject.enter("a", kind, 0.0)
    assert caught.value.details.retry_seconds == 1.0 and caught.value.details.quota
    subject.enter("a", other, 0.0)
    subject.enter("b", kind, 0.0)
    open_[0].leave(kind)
    subject.enter("a", kind, 0.0)


def test_the_table_of_callers_is_bounded_and_keeps_who_has_calls_open():
    subject = limited(subjects_max=2, rates={"all": [Rate(calls=1)]})
    held = subject.enter("a", READ, 0.0)
    for name in "bcd":
        subject.enter(name, READ, 0.0).leave(READ)
    assert len(subject) == 2
    with pytest.raises(limits.RateLimited):
        subject.enter("a", READ, 0.0)
    held.leave(READ)
    subject.enter("b", READ, 0.0).leave(READ)  # forgotten, so full again


def test_a_stream_is_slowed_down_and_not_ended():
    pace = limits.Pace(Rate(calls=10, burst=2), 0.0)
    assert [pace.next(0.0) for _ in range(4)] == [0.0, 0.0, pytest.approx(0.1), pytest.approx(0.2)]
    assert pace.next(10.0) == 0.0
    assert limits.Pace(Rate(calls=1, seconds=86_400), 0.0).next(0.0) == 0.0


@given(
    st.floats(0.01, 1e4),
    st.integers(1, 50),
    st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=60),
)
def test_never_more_than_the_burst_and_what_has_flowed_in(calls, burst, pauses):
    subject, now, taken = limited(rates={"all": [Rate(calls=calls, burst=burst)]}), 0.0, 0
    for pause in pauses:
        now += pause
        try:
            subject.enter("a", READ, now)
            taken += 1
        except limits.RateLimited as error:
            assert error.details.retry_seconds > 0
    assert taken <= burst + now * calls + 1e-6


# --- the file ---------------------------------------------------------------------------------------------

FILE = """
default:
  rates:
    all: [{calls: 1}]
    crm.export.read: [{calls: 1, seconds: 3600}]
  streams_open_max: 1
subjects:
  routers: {}
  pbx-1: {rates: {all: [{calls: 3}]}, stream_messages: {calls: 5, burst: 10}}
"""
SCOPES = frozenset({"test.things.read"})


def of_file(path) -> Limits:
    return Limits("test", Policy(), 10, str(path), SCOPES)


def taken(subject: Limits, name: str, now: float, at_most: int = 10) -> int:
    for count in range(at_most):
        try:
            subject.enter(name, READ, now).leave(READ)
        except limits.RateLimited:
            return count
    return at_most


def refusals(subject: str) -> float:
    counter = metrics.counter("callmesh_limited_total", "", ("service", "subject", "limit"))
    return float(counter.labels("test", subject, "rate")._value.get())


def test_the_file_names_subjects_and_their_limits(tmp_path):
    (tmp_path / "limits.yaml").write_text(FILE)
    subject = of_file(tmp_path / "limits.yaml")
    before = refusals("pbx-1"), refusals("other"), refusals("nobody")
    assert [taken(subject, name, 0.0) for name in ("nobody", "pbx-1", "routers")] == [1, 3, 10]
    assert (refusals("pbx-1"), refusals("other"), refusals("nobody")) == (before[0] + 1, before[1] + 1, 0.0)


def test_a_changed_file_counts_without_a_restart_and_a_broken_one_does_not(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text(FILE)
    subject = of_file(path)
    held = subject.enter("pbx-1", STREAM, 0.0)
    assert taken(subject, "pbx-1", 0.0) == 2
    replace(path, FILE.replace("calls: 3}", "calls: 7}"))
    assert taken(subject, "pbx-1", 0.5) == 1, "looked at a moment ago"
    assert taken(subject, "pbx-1", 2.0) == 7
    assert subject.enter("pbx-1", STREAM, 4.0) is held, "what is open stays counted"
    replace(path, "default: {rates: {all: [{calls: -1}]}}")
    assert taken(subject, "pbx-1", 6.0) == 7
    usable = metrics.gauge("callmesh_limits_file_usable", "", ("service",)).labels("test")
    assert usable._value.get() == 0
    path.unlink()
    assert taken(subject, "pbx-1", 8.0) == 7
    path.write_text(FILE)
    assert taken(subject, "pbx-1", 10.0) == 3 and usable._value.get() == 1


def test_without_a_file_nothing_is_said_of_one(tmp_path):
    Limits("fileless", Policy(), 10)
    (tmp_path / "limits.yaml").write_text("default: {}")
    Limits("filed", Policy(), 10, str(tmp_path / "limits.yaml"))
    told = {
        sample.labels["service"]: sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == "callmesh_limits_file_usable"
    }
    assert "fileless" not in told and told["filed"] == 1


def replace(path, text: str) -> None:
    """As a mounted config map is renewed: all at once."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expected `object`"),
        ("[", "flow"),
        ("defaults: {}", "unknown field `defaults`"),
        ("default: {rates: {al: [{calls: 1}]}}", "'al', which is no class of methods and no scope"),
        ("default: {rates: {test.thing.read: [{calls: 1}]}}", "no class of methods and no scope"),
        ("default: {rates: {all: [{calls: 0}]}}", "calls"),
        ("default: {rates: {all: [{calls: .nan}]}}", "calls"),
        ("default: {rates: {all: [{calls: 1, seconds: 0}]}}", "seconds"),
        ("default: {rates: {all: [{calls: 1, burst: 0}]}}", "burst"),
        ("subjects: {a: {streams_open_max: -1}}", "streams_open_max"),
        ("subjects: [a]", "subjects"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path, text, why):
    (tmp_path / "limits.yaml").write_text(text)
    with pytest.raises(StartError, match="file of limits cannot be used") as caught:
        of_file(tmp_path / "limits.yaml")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_settings_ask_for(tmp_path):
    assert limits.of_settings(ServiceSettings(service="test"), ()) is None
    settings = ServiceSettings(service="test", rate_limit_per_second=2, rate_limit_burst=4)
    found = limits.of_settings(settings, ())
    assert found is not None and taken(found, "a", 0.0) == 4
    with pytest.raises(StartError, match="cannot be read"):
        limits.of_settings(ServiceSettings(limits_file=str(tmp_path / "none.yaml")), ())
