"""A clock that moves when told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from chassis.clock import to_ms

#: Where a FakeClock starts when the test does not care.
DEFAULT_START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


class FakeClock:
    """Implements `chassis.clock.Clock`; stands still between calls of `advance`."""

    def __init__(self, start: datetime = DEFAULT_START, speed: float = 1.0) -> None:
        """`start` is business time and must have a time zone."""
        to_ms(start)
        self._now = start
        self._monotonic = 0.0
        self._speed = speed

    @property
    def speed(self) -> float:
        """Business seconds in one real second."""
        return self._speed

    def now(self) -> datetime:
        """Business time."""
        return self._now

    def now_ms(self) -> int:
        """Business time in milliseconds since 1970."""
        return to_ms(self._now)

    def monotonic(self) -> float:
        """Real seconds advanced so far."""
        return self._monotonic

    def real_seconds(self, business_seconds: float) -> float:
        """How long, in real seconds, a business duration takes."""
        return business_seconds / self._speed

    def advance(self, seconds: float) -> datetime:
        """Moves business time on by `seconds` (>= 0) and real time accordingly; returns the new business
        time.
        """
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds / self._speed
        return self._now
