"""One metric a name, bounded outcomes, and what a probe answers."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from prometheus_client.core import GaugeMetricFamily
from pymongo.monitoring import CommandFailedEvent, CommandStartedEvent, CommandSucceededEvent

from chassis import metrics, metrics_queries, probes


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


class Tank:
    """A state with a level; only whoever looks may read it."""

    def __init__(self, level: float) -> None:
        self.level, self.seen = level, -1.0

    def look(self):
        self.seen = self.level

    def collect(self):
        family = GaugeMetricFamily("test_tank_level", "Level.")
        family.add_metric((), self.seen)
        yield family


def test_a_source_shows_what_it_saw_when_it_looked():
    tank = Tank(3)
    metrics.use_source("test_tank", Tank(1))
    metrics.use_source("test_tank", tank)
    assert b"test_tank_level 3.0" in metrics.exposition()[1]
    tank.level = 5
    assert b"test_tank_level 3.0" in metrics.rendered()[1], "not looked at yet"
    metrics.look()
    assert metrics.rendered()[1].count(b"test_tank_level 5.0") == 1


def test_the_largest_have_names_and_keep_them_for_a_while():
    now = [0.0]
    largest = metrics.LargestFirst(2, lambda: now[0])
    assert largest.rank({"a": 0, "b": 0}) == {"a", "b"}
    assert largest.rank({"a": 1, "b": 2, "c": 3}) == {"b", "c"}
    assert largest.rank({"a": 9, "b": 2, "c": 3}) == {"b", "c"}
    now[0] += metrics.RANK_SECONDS
    assert largest.rank({"a": 9, "b": 2, "c": 3}) == {"a", "c"}
    assert largest.rank({"a": 9, "d": 1, "b": 2}) == {"a", "b"}, "one that is gone makes room at once"


def asked(command, request_id, **body):
    return CommandStartedEvent({command: "cats", **body}, "db", request_id, ("h", 1), request_id)


def answered(command, request_id, kind=CommandSucceededEvent):
    return kind(timedelta(milliseconds=3), {}, command, request_id, ("h", 1), request_id, database_name="db")


def test_queries_are_counted_by_collection_and_command():
    listener = metrics_queries.QueryListener("asking")
    listener.started(asked("find", 1, filter={"secret": "+8613800000000"}))
    listener.started(asked("getMore", 2, collection="dogs"))
    listener.started(asked("hello", 3))
    listener.succeeded(answered("find", 1))
    listener.failed(answered("getMore", 2, CommandFailedEvent))
    listener.succeeded(answered("hello", 3))
    for number in range(metrics_queries.PAIRS_MAX + 5):
        listener.started(CommandStartedEvent({"insert": f"c{number}"}, "db", number, ("h", 1), number))
        listener.succeeded(answered("insert", number))
    text = metrics.exposition()[1].decode()
    ok = 'callmesh_db_queries_total{collection="cats",command="find",outcome="ok",service="asking"} 1.0'
    failed = (
        'callmesh_db_queries_total{collection="dogs",command="getMore",outcome="failed",service="asking"} 1.0'
    )
    rest = (
        'callmesh_db_queries_total{collection="(other)",command="(other)",outcome="ok",service="asking"} 7.0'
    )
    assert ok in text and failed in text and rest in text
    assert 'callmesh_db_query_seconds_sum{collection="cats",command="find",service="asking"} 0.003' in text
    # Ours alone: what other tests have counted in this process holds times, in which any digits may be.
    ours = "\n".join(line for line in text.splitlines() if 'service="asking"' in line)
    assert "hello" not in ours and "13800000000" not in ours
