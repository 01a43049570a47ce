"""Time as the business sees it, and time as a stopwatch sees it.

Business time may run faster than real time (a demo replays a day in minutes). Leases, peers, retries and
protocol deadlines stay real: they use `monotonic()`.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

#: Fastest business clock; beyond it a second of real time is more than an hour.
SPEED_MAX = 3600.0
#: Seconds whose text is kept.
SECONDS_KEPT_MAX = 256

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_ms(epoch_ms: int) -> datetime:
    """Milliseconds since 1970 as a UTC datetime, exact."""
    return _EPOCH + timedelta(milliseconds=epoch_ms)


def to_ms(moment: datetime) -> int:
    """A timezone-aware datetime as milliseconds since 1970, rounded down; ValueError for a naive one."""
    if moment.tzinfo is None:
        raise ValueError("a datetime without a time zone has no instant")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def to_text(moment: datetime) -> str:
    """A timezone-aware datetime in UTC, cut to the millisecond: "2026-11-23T09:20:31.042Z". TypeError for a
    naive one.
    """
    past = moment - _EPOCH
    return f"{_second_text(past.days, past.seconds)}.{past.microseconds // 1000:03d}Z"


@lru_cache(maxsize=SECONDS_KEPT_MAX)
def _second_text(days: int, seconds: int) -> str:
    # `isoformat` takes as long as the rest of a small event, and many moments are of the same second.
    return (_EPOCH + timedelta(days, seconds)).isoformat()[:19]


class Clock(Protocol):
    """What every process is given instead of the time module."""

    @property
    def speed(self) -> float:
        """Business seconds in one real second, > 0."""

    def now(self) -> datetime:
        """Business time, timezone-aware UTC."""

    def now_ms(self) -> int:
        """Business time in milliseconds since 1970."""

    def monotonic(self) -> float:
        """Real seconds since an arbitrary start; never goes back."""

    def real_seconds(self, business_seconds: float) -> float:
        """How long to wait, in real seconds, for a business duration to pass."""


class SystemClock:
    """Business now = origin_business + (real now - origin_real) x speed.

    Real now is the wall clock at construction plus the monotonic clock since, so a step of the machine's
    clock cannot move business time. Processes that share the origins and the speed agree on business time to
    within their machines' clock difference times the speed; processes of one machine that share
    origin_monotonic_ms too agree to the millisecond, even if the wall clock was stepped between their starts.
    """

    def __init__(
        self,
        speed: float = 1.0,
        origin_real_ms: int | None = None,
        origin_business_ms: int | None = None,
        origin_monotonic_ms: int | None = None,
    ) -> None:
        """Without origins business time starts at real time. `origin_monotonic_ms`: this machine's monotonic
        clock at the origin. ValueError for a speed not in (0, SPEED_MAX], or for a monotonic origin that is
        still to come (of another machine, or from before a restart of this one).
        """
        if not (math.isfinite(speed) and 0 < speed <= SPEED_MAX):
            raise ValueError(f"clock speed must be above 0 and at most {SPEED_MAX:g}, got {speed!r}")
        self._speed = float(speed)
        start_real_ms = time.time_ns() / 1e6
        origin_real = start_real_ms if origin_real_ms is None else float(origin_real_ms)
        origin_business = origin_real if origin_business_ms is None else float(origin_business_ms)
        if origin_monotonic_ms is not None:
            self._start_monotonic = origin_monotonic_ms / 1000.0
            self._start_business_ms = origin_business
            if self._start_monotonic > time.monotonic():
                raise ValueError("the monotonic origin is of another machine or from before its restart")
            return
        self._start_monotonic = time.monotonic()
        self._start_business_ms = origin_business + (start_real_ms - origin_real) * self._speed

    @property
    def speed(self) -> float:
        """Business seconds in one real second."""
        return self._speed

    def now_ms(self) -> int:
        """Business time in milliseconds since 1970."""
        elapsed_ms = (time.monotonic() - self._start_monotonic) * 1000.0
        return int(self._start_business_ms + elapsed_ms * self._speed)

    def now(self) -> datetime:
        """Business time, timezone-aware UTC, to the millisecond (what MongoDB keeps)."""
        return from_ms(self.now_ms())

    def monotonic(self) -> float:
        """Real seconds since an arbitrary start; never goes back."""
        return time.monotonic()

    def real_seconds(self, business_seconds: float) -> float:
        """How long to wait, in real seconds, for a business duration to pass."""
        return business_seconds / self._speed
