"""Where a failed message goes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import AutoReconnect, OperationFailure, ServerSelectionTimeoutError

from chassis.bus import MalformedEvent, verdict
from chassis.bus.topology import Subscription, dead_queue, events_exchange, retry_name
from chassis.bus.verdict import History, judge
from chassis.errors import EtagMismatch, InvalidArgument, NotFound, Unavailable

DELAYS = (1.0, 5.0, 30.0)
NOW_MS = 1_000_000_000


def test_attempts_grow_with_their_delays_and_end() -> None:
    history = History()
    delays = []
    while True:
        judged = judge(RuntimeError("x"), history, NOW_MS, DELAYS)
        history = History.of(judged.headers)
        if judged.delay_seconds is None:
            break
        delays.append(judged.delay_seconds)
    assert delays == [1.0, 5.0, 30.0]
    assert history == History(attempts=4, waits=0, failed_at_ms=NOW_MS)
    assert judged.reason == verdict.REASON_ATTEMPTS


@pytest.mark.parametrize("error", [InvalidArgument(field="a"), MalformedEvent(field="b", why="c")])
def test_what_cannot_succeed_is_not_tried_again(error: Exception) -> None:
    judged = judge(error, History(), NOW_MS, DELAYS)
    assert (judged.delay_seconds, judged.reason) == (None, verdict.REASON_PERMANENT)


@pytest.mark.parametrize(
    "error", [NotFound(resource="a"), EtagMismatch(resource="a"), KeyError("x"), OperationFailure("x")]
)
def test_others_use_up_an_attempt(error: Exception) -> None:
    assert judge(error, History(), NOW_MS, DELAYS).headers[verdict.ATTEMPT_HEADER] == 1


@pytest.mark.parametrize(
    "error", [AutoReconnect("x"), ServerSelectionTimeoutError("x"), Unavailable(why="x")]
)
def test_an_outage_waits_without_using_up_attempts_for_a_bounded_time(error: Exception) -> None:
    history = History(attempts=2)
    for _ in range(50):
        judged = judge(error, history, NOW_MS, DELAYS, away_seconds_max=60)
        history = History.of(judged.headers)
        assert judged.delay_seconds in (1.0, 5.0)
    assert (history.attempts, history.waits) == (2, 50)
    assert judge(error, history, NOW_MS + 60_000, DELAYS, away_seconds_max=60).delay_seconds == 5.0
    late = judge(error, history, NOW_MS + 60_001, DELAYS, away_seconds_max=60)
    assert (late.delay_seconds, late.reason) == (None, verdict.REASON_AWAY)


def test_a_single_delay_is_enough() -> None:
    assert judge(AutoReconnect("x"), History(waits=9), NOW_MS, (0.5,)).delay_seconds == 0.5


hostile = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(
    st.dictionaries(
        st.sampled_from([verdict.ATTEMPT_HEADER, verdict.WAITS_HEADER, verdict.FAILED_AT_HEADER]), hostile
    )
)
def test_any_headers_give_a_verdict(headers: dict[str, Any]) -> None:
    history = History.of(headers)
    assert 0 <= history.attempts <= verdict.COUNT_MAX and history.failed_at_ms >= 0
    for error in (RuntimeError("x"), AutoReconnect("x")):
        judged = judge(error, history, NOW_MS, DELAYS)
        assert judged.delay_seconds in DELAYS or judged.reason


def test_errors_are_short_single_lines_in_headers() -> None:
    text = verdict.describe(RuntimeError("a\nb" * 5000))
    assert "\n" not in text and len(text) <= 200


def test_names() -> None:
    subscription = Subscription(service="crm", handler="on_call", source="routing", types=("a.B",))
    assert (subscription.queue, subscription.dead_queue) == ("crm.on_call", "crm.on_call.dead")
    assert dead_queue("q") == "q.dead"
    assert events_exchange("routing") == "routing.events"
    assert retry_name("crm", 0.25) == "crm.retry.250"
