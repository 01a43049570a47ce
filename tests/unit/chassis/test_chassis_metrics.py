"""One metric a name, bounded outcomes, and what a probe answers."""

from __future__ import annotations

import json

import pytest

from chassis import metrics, probes


def test_a_metric_is_made_once():
    first = metrics.counter("test_once_total", "Once.", ("a",))
    assert metrics.counter("test_once_total", "Once.", ("a",)) is first
    with pytest.raises(ValueError, match="something else"):
        metrics.counter("test_once_total", "Once.", ("b",))
    with pytest.raises(ValueError, match="something else"):
        metrics.gauge("test_once_total", "Once.", ("a",))


def test_red_metrics_count_by_outcome_and_time():
    red = metrics.rpc_metrics("test", "x.Y/Z")
    red.record("OK", 0.2)
    red.record("OK", 0.2)
    red.record("NOT_FOUND", 7)
    _, body = metrics.exposition()
    text = body.decode()
    assert 'callmesh_rpc_requests_total{code="OK",method="x.Y/Z",service="test"} 2.0' in text
    assert 'callmesh_rpc_requests_total{code="NOT_FOUND",method="x.Y/Z",service="test"} 1.0' in text
    assert 'callmesh_rpc_seconds_bucket{le="0.25",method="x.Y/Z",service="test"} 2.0' in text
    assert 'callmesh_rpc_seconds_count{method="x.Y/Z",service="test"} 3.0' in text


def test_consumers_are_counted_the_same_way():
    metrics.consumer_metrics("test", "on_call_ended").record("dead", 0.1)
    assert (
        b'callmesh_consumer_events_total{handler="on_call_ended",outcome="dead",service="test"} 1.0'
        in (metrics.exposition()[1])
    )


def failing() -> bool:
    raise RuntimeError("no database")


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ({}, 200),
        ({"a": lambda: True}, 200),
        ({"a": lambda: True, "b": lambda: False}, 503),
        ({"a": failing}, 503),
    ],
)
def test_readiness_is_every_check(checks, status):
    answer = probes.answer("GET", "/readyz?x=1", checks)
    assert answer.status == status
    assert set(json.loads(answer.body)) == set(checks)


def test_other_paths_and_methods():
    assert probes.answer("GET", "/healthz", {"a": failing}).status == 200
    assert probes.answer("GET", "/metrics", {}).content_type.startswith("text/plain")
    assert probes.answer("GET", "/", {}).status == 404
    assert probes.answer("POST", "/metrics", {}).status == 405
