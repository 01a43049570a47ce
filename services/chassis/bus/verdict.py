"""What to do with a message whose handler failed: pure rules.

1. What can never succeed goes to the dead-letter queue at once: a body that is no event, InvalidArgument.
2. When a store or another service is away, the message waits in a delay queue without using up its attempts,
   for as long as `AWAY_SECONDS_MAX`.
3. Anything else gets `ATTEMPTS_MAX` attempts with growing delays, then the dead-letter queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mongoengine.connection
from pymongo.errors import ConnectionFailure, ExecutionTimeout, WTimeoutError

from chassis.errors import CallmeshError, Code, InvalidArgument, shorten
from chassis.mongo import is_passing

#: Attempts made so far.
ATTEMPT_HEADER = "x-callmesh-attempt"
#: Waits so far for a store that is away.
WAITS_HEADER = "x-callmesh-waits"
#: When the first failure was, ms since 1970 of real time.
FAILED_AT_HEADER = "x-callmesh-failed-at"
#: The last error.
ERROR_HEADER = "x-callmesh-error"
#: Why it is in the dead-letter queue: a `Reason`.
REASON_HEADER = "x-callmesh-reason"

#: How long a message waits for a store that is away before it is given to people, seconds: a week.
AWAY_SECONDS_MAX = 7 * 24 * 3600
#: Largest value believed in a header that counts.
COUNT_MAX = 1_000_000

REASON_MALFORMED = "malformed"
REASON_PERMANENT = "permanent"
REASON_ATTEMPTS = "attempts"
REASON_AWAY = "away"

_AWAY = (ConnectionFailure, ExecutionTimeout, WTimeoutError, mongoengine.connection.ConnectionFailure)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the headers say of a message's past failures."""

    #: Attempts that failed on their own account.
    attempts: int = 0
    #: Attempts that failed because something was away.
    waits: int = 0
    #: Real time of the first failure, ms since 1970; 0 without one.
    failed_at_ms: int = 0

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> History:
        """Reads headers; what is not a plausible count is 0."""
        return cls(
            attempts=_count(headers.get(ATTEMPT_HEADER), COUNT_MAX),
            waits=_count(headers.get(WAITS_HEADER), COUNT_MAX),
            failed_at_ms=_count(headers.get(FAILED_AT_HEADER), 2**53),
        )


def _count(value: object, limit: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit:
        return value
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Where a failed message goes."""

    #: Seconds to wait before the next attempt; None for the dead-letter queue.
    delay_seconds: float | None
    #: Set when `delay_seconds` is None.
    reason: str = ""
    #: What the message carries from now on.
    headers: dict[str, str | int]


def is_permanent(error: BaseException) -> bool:
    """Whether a repeat cannot help."""
    return isinstance(error, InvalidArgument)


def is_away(error: BaseException) -> bool:
    """Whether the handler could not even try: a store, or a service that it calls, does not answer."""
    if isinstance(error, CallmeshError):
        return error.code is Code.UNAVAILABLE
    return is_passing(error) or isinstance(error, _AWAY)


def describe(error: BaseException) -> str:
    """An error for a header."""
    return shorten(f"{type(error).__name__}: {error}".replace("\n", " "))


def judge(
    error: BaseException,
    history: History,
    now_ms: int,
    delays_seconds: Sequence[float],
    away_seconds_max: float = AWAY_SECONDS_MAX,
) -> Verdict:
    """Where a message goes after this failure; `now_ms` is real time, `delays_seconds` lists the delays."""
    failed_at_ms = history.failed_at_ms or now_ms
    headers: dict[str, str | int] = {FAILED_AT_HEADER: failed_at_ms, ERROR_HEADER: describe(error)}
    away = is_away(error)
    attempts = history.attempts if away else history.attempts + 1
    waits = history.waits + 1 if away else history.waits
    headers |= {ATTEMPT_HEADER: attempts, WAITS_HEADER: waits}
    if is_permanent(error):
        return Verdict(delay_seconds=None, reason=REASON_PERMANENT, headers=headers)
    if away:
        if now_ms - failed_at_ms > away_seconds_max * 1000:
            return Verdict(delay_seconds=None, reason=REASON_AWAY, headers=headers)
        # Never the longest delays: once the store is back, work should go on soon.
        return Verdict(delay_seconds=delays_seconds[min(waits, len(delays_seconds), 2) - 1], headers=headers)
    if attempts > len(delays_seconds):
        return Verdict(delay_seconds=None, reason=REASON_ATTEMPTS, headers=headers)
    return Verdict(delay_seconds=delays_seconds[attempts - 1], headers=headers)
