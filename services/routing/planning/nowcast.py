"""The next minutes: the forecast of the day, corrected by how many have called lately. Pure.

The forecast says r(t) calls a second. Today is f times that, and before anything is seen f is Gamma
distributed with mean 1 and a standard deviation of `spread`. Callers of the last `window_ms` come as a
Poisson process, so that after n of them, where E were forecast, f is Gamma again with mean (k + n) / (k +
E), k = 1 / spread**2 (the gamma-Poisson model; Jongbloed and Koole 2001, "Managing uncertainty in call
centres using Poisson mixtures", https://doi.org/10.1002/asmb.444). Without a forecast the mean of the
window stands, with half a caller added, so that a quiet beginning does not promise that nobody will come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from chassis.errors import InvalidArgument
from routing.planning.erlang import Demand

#: Arrivals remembered, at most: beyond, the window grows shorter.
ARRIVALS_MAX = 100_000
#: Steps in which the forecast is summed over the window.
STEP_MS = 60_000
#: Looks this much ahead: what is begun now is in hand then.
AHEAD_MS = 60_000


class Nowcast:
    """One queue's next minutes."""

    def __init__(
        self,
        usual: Demand,
        forecast: Callable[[int], float | None],
        *,
        window_ms: int = 1_800_000,
        spread: float = 0.3,
        start_ms: int = 0,
    ) -> None:
        """`usual` is how calls are; its rate does not count. `forecast(ms)` is calls a second, None for
        unknown. Nothing was seen before `start_ms`. Raises InvalidArgument naming the field.
        """
        if not 60_000 <= window_ms <= 86_400_000:
            raise InvalidArgument(field="window_ms", why="must be 60000 to 86400000")
        if not 0.01 <= spread <= 10:
            raise InvalidArgument(field="spread", why="must be 0.01 to 10")
        self._usual, self._forecast = usual, forecast
        self._window_ms, self._shape = window_ms, 1.0 / spread**2
        self._start_ms = start_ms
        self._seen: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._summed: tuple[int, float, float] = (-1, 0.0, 0.0)

    def use(self, usual: Demand) -> None:
        """How calls are from now on."""
        self._usual = usual

    def arrived(self, ms: int) -> None:
        """Somebody called."""
        self._seen.append(ms)

    def demand(self, now_ms: int) -> Demand:
        """Of the next minutes."""
        return replace(self._usual, rate=self.rate(now_ms))

    def rate(self, now_ms: int) -> float:
        """Calls a second."""
        while self._seen and self._seen[0] <= now_ms - self._window_ms:
            self._seen.popleft()
        seconds, expected = self._expected(now_ms)
        ahead = self._forecast(now_ms + AHEAD_MS)
        if ahead is None:
            return (len(self._seen) + 0.5) / max(60.0, seconds)
        return ahead * (self._shape + len(self._seen)) / (self._shape + expected)

    def _expected(self, now_ms: int) -> tuple[float, float]:
        """(seconds looked at, callers forecast for them)."""
        last = now_ms // STEP_MS
        if self._summed[0] != last:
            first_ms = max(self._start_ms, now_ms - self._window_ms)
            steps = range(first_ms // STEP_MS, last)
            expected = sum((self._forecast(step * STEP_MS) or 0.0) * STEP_MS / 1000 for step in steps)
            self._summed = (last, max(0.0, (now_ms - first_ms) / 1000), expected)
        return self._summed[1], self._summed[2]
