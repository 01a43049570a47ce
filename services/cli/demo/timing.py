"""The replay's clock: business seconds since the replay began, on the business clock that the whole stack
shares.
"""

from __future__ import annotations

import asyncio

from chassis.clock import Clock


class ReplayClock:
    """Business time of one replay. Business seconds pass `speed` times as fast as real ones."""

    def __init__(self, clock: Clock, start_business_ms: int) -> None:
        self._clock = clock
        self._start_ms = start_business_ms

    def business(self) -> float:
        """Business seconds since the replay began, to the clock's millisecond."""
        return (self._clock.now_ms() - self._start_ms) / 1000.0

    def monotonic(self) -> float:
        """Real seconds since an arbitrary start."""
        return self._clock.monotonic()

    def real_until(self, business: float) -> float:
        """Real seconds until that business second; 0 if it has passed."""
        return max(0.0, self._clock.real_seconds(business - self.business()))

    def real(self, business_seconds: float) -> float:
        """A business duration in real seconds."""
        return self._clock.real_seconds(business_seconds)

    async def sleep_until(self, business: float) -> None:
        """Returns at that business second or at once if it has passed."""
        remaining = self.real_until(business)
        if remaining > 0:
            await asyncio.sleep(remaining)
