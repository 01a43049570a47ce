"""What a process answers over plain HTTP: /metrics, /healthz (the process works), /readyz (it may be given
work).

Both kinds of process put a server of their own around `answer`; a server that has an event loop to keep free
lets `metrics.look` run on it and `answer_metrics` elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chassis import metrics

METRICS = "/metrics"

#: True when that part is ready; must return at once.
Check = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One HTTP response."""

    #: HTTP status code.
    status: int
    content_type: str
    body: bytes


def _passes(check: Check) -> bool:
    # A check that fails in an unexpected way is a part that is not ready, not a probe without an answer.
    try:
        return bool(check())
    except Exception:
        return False


def _readiness(checks: Mapping[str, Check]) -> Answer:
    found = {name: _passes(check) for name, check in checks.items()}
    status = 200 if all(found.values()) else 503
    return Answer(status=status, content_type="application/json", body=json.dumps(found).encode() + b"\n")


def is_metrics(method: str, path: str) -> bool:
    """Whether `answer` would answer with all metrics."""
    return method in ("GET", "HEAD") and path.partition("?")[0] == METRICS


def answer_metrics() -> Answer:
    """The response to /metrics as of the last `metrics.look`; in any thread."""
    content_type, body = metrics.rendered()
    return Answer(status=200, content_type=content_type, body=body)


def answer(method: str, path: str, checks: Mapping[str, Check]) -> Answer:
    """The response to one request; `checks` are what /readyz asks, by name."""
    if method not in ("GET", "HEAD"):
        return Answer(status=405, content_type="text/plain", body=b"only GET\n")
    route = path.partition("?")[0]
    if route == METRICS:
        metrics.look()
        return answer_metrics()
    if route == "/healthz":
        return Answer(status=200, content_type="text/plain", body=b"ok\n")
    if route == "/readyz":
        return _readiness(checks)
    return Answer(status=404, content_type="text/plain", body=b"not found\n")
