"""Arrivals to expect, by half-hour: a Poisson regression with seasonal terms, and what is naive beside it.

1. Weekdays are of one kind when they are alike: open at the same hours and about as busy (`kinds`). What is
   sparse is so put together: a month has four Mondays, but twenty working days.
2. Within a kind the logarithm of a half-hour's calls is a cubic spline of the time of day, plus a deviation
   of each half-hour and, where the history is long enough to tell, a level of each weekday, both shrunk
   towards nothing. Days count less the longer ago they are.
3. Half-hours before the first and after the last that ever had a call on such a day are closed and forecast
   as such. So are those in between (a break at noon, a night with a lone caller in it) that never had one
   beside a half-hour that had many: they say nothing of the curve, and the curve nothing of them.
4. The 80 % interval is that of the gamma-Poisson mixture whose spread the residuals of the fit ask for: calls
   vary more than Poisson (Jongbloed and Koole 2001). How often it holds is measured by `make bench-forecast`.
5. Whether weekdays get levels is decided by what would have been right on the last days of the history.

The regression is scikit-learn's (PoissonRegressor, SplineTransformer), the quantiles SciPy's; both are
imported when they are needed, for no router needs them. The seasonal naive forecast is the same day of the
week before (Hyndman and Athanasopoulos, Forecasting: principles and practice, 3rd ed., section 5.2). WAPE =
sum of absolute errors / sum of calls. MASE = mean absolute error / that of the seasonal naive forecast
inside the history (Hyndman and Koehler 2006, https://doi.org/10.1016/j.ijforecast.2006.03.001).
"""

from __future__ import annotations

import datetime as dt
import itertools
import zoneinfo
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chassis.errors import FailedPrecondition, InvalidArgument
from routing.planning.history import CLOCKS_BACK_MS, SLOT_MS, SLOTS, History, slot_of, start_ms

#: Longest span that is forecast.
DAYS_AHEAD_MAX = 28
#: What a day counts for, against the day after it.
DECAY = 0.96
#: Size of the terms that are shrunk: the smaller, the more.
SLOT_SCALE, WEEKDAY_SCALE = 0.1, 0.3
#: Knots of the spline, at most; one for two open half-hours else.
KNOTS_MAX = 12
#: Days with which the two ways of a model are compared, and days of history that this takes.
JUDGED_DAYS, JUDGED_FROM_DAYS = 7, 28
#: Weekdays are alike if their calls differ by at most this ratio, and as many of their open half-hours are
#: the same.
ALIKE_RATIO, ALIKE_HOURS = 0.5, 0.8
#: Half-hours without a call are closed beside one that had so many in all: a queue that is open does not fall
#: from that to nothing.
CLOSED_BESIDE = 20.0
#: The interval holds with this probability.
INTERVAL = 0.8
WEEK = dt.timedelta(days=7)


class HistoryTooShort(FailedPrecondition):
    """{subject}: {why}."""

    reason = "HISTORY_TOO_SHORT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """One half-hour."""

    start_ms: int
    arrivals: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DayForecast:
    """One day: three rows of 48."""

    arrivals: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """How a way of forecasting did."""

    #: Sum of absolute errors / sum of calls, by half-hour and of whole days.
    wape: float
    day_wape: float
    #: Mean absolute error / that of the seasonal naive forecast over the whole history; 0 for a short one.
    mase: float
    days: int


#: Forecasts a day from what was before it; None when it cannot.
Method = Callable[[History, dt.date], Sequence[float] | None]


def forecast(history: History, from_ms: int, to_ms: int) -> list[Expected]:
    """Every half-hour of [from_ms, to_ms) from days before that. Raises InvalidArgument naming the field and
    HistoryTooShort.
    """
    if not from_ms < to_ms <= from_ms + DAYS_AHEAD_MAX * SLOTS * SLOT_MS + CLOCKS_BACK_MS:
        raise InvalidArgument(
            field="interval", why=f"must be longer than nothing, {DAYS_AHEAD_MAX} days at most"
        )
    known = history.before(slot_of(from_ms, history.zone)[0])
    model = Seasonal(known)
    days: dict[dt.date, DayForecast] = {}
    found = []
    for ms in range(from_ms - from_ms % SLOT_MS, to_ms, SLOT_MS):
        day, slot = slot_of(ms, history.zone)
        if day not in days:
            days[day] = model.day(day)
        row = days[day]
        found.append(
            Expected(start_ms=ms, arrivals=row.arrivals[slot], low=row.low[slot], high=row.high[slot])
        )
    return found


class Seasonal:
    """The model, fitted once for each kind of day that is asked for."""

    def __init__(self, known: History, *, weekday_levels: bool | None = None) -> None:
        """Without `weekday_levels` the history decides. Raises HistoryTooShort."""
        if not _has_calls(known):
            raise HistoryTooShort(subject="reports", why="there is no whole day with a call yet")
        self._known = known
        self._kind_of = kinds(known)
        if weekday_levels is None:
            weekday_levels = _levels_help(known)
        self._levels = weekday_levels
        self._fits: dict[int, _Fit | None] = {}

    def day(self, day: dt.date) -> DayForecast:
        """One day's half-hours."""
        kind = self._kind_of.get(day.weekday(), day.weekday())
        if kind not in self._fits:
            self._fits[kind] = _fit(self._known, self._kind_of, kind, levels=self._levels)
        fit = self._fits[kind]
        if fit is None:
            closed = (0.0,) * SLOTS
            return DayForecast(arrivals=closed, low=closed, high=closed)
        return fit.day(day.weekday())


def _has_calls(known: History) -> bool:
    return any(sum(row) for row in known.calls)


def kinds(known: History) -> dict[int, int]:
    """Weekday (0 is Monday) to kind: the first weekday that it is like. Closed days are a kind of their
    own.
    """
    sums: dict[int, list[float]] = {}
    count: dict[int, int] = defaultdict(int)
    for day, row in zip(known.days, known.calls, strict=True):
        have = sums.setdefault(day.weekday(), [0.0] * SLOTS)
        count[day.weekday()] += 1
        for slot, calls in enumerate(row):
            have[slot] += calls
    means = {weekday: [x / count[weekday] for x in row] for weekday, row in sums.items()}
    found: dict[int, int] = {}
    for weekday in sorted(means):
        like = (w for w in sorted(set(found.values())) if _alike(means[w], means[weekday]))
        found[weekday] = next(like, weekday)
    return found


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    total, less = max(sum(one), sum(other)), min(sum(one), sum(other))
    if total == 0:
        return True
    # Hours count when they matter: a lone caller at night opens nothing.
    open_one = {slot for slot, calls in enumerate(one) if calls > 0.01 * total}
    open_other = {slot for slot, calls in enumerate(other) if calls > 0.01 * total}
    either = open_one | open_other
    return less >= ALIKE_RATIO * total and len(open_one & open_other) >= ALIKE_HOURS * len(either)


@dataclass(slots=True)
class _Fit:
    """A fitted kind of day."""

    model: Any
    rows: dict[int, Any]
    first: int
    last: int
    #: Which half-hours from the first to the last are open.
    open: Any
    #: Variance of a half-hour = mean + spread * mean ** 2.
    spread: float

    def day(self, weekday: int) -> DayForecast:
        import numpy
        from scipy import stats

        design = self.rows.get(weekday)
        if design is None:
            design = next(iter(self.rows.values()))
        mean = numpy.maximum(self.model.predict(design), 1e-9)
        size = 1.0 / max(self.spread, 1e-6)
        tail = (1.0 - INTERVAL) / 2
        bounds = [stats.nbinom.ppf(p, size, size / (size + mean)) for p in (tail, 1.0 - tail)]
        arrivals, low, high = (numpy.where(self.open, row, 0.0) for row in (mean, *bounds))
        return DayForecast(arrivals=self._padded(arrivals), low=self._padded(low), high=self._padded(high))

    def _padded(self, values: Any) -> tuple[float, ...]:
        row = [0.0] * SLOTS
        row[self.first : self.last + 1] = [float(value) for value in values]
        return tuple(row)


def _fit(known: History, kind_of: dict[int, int], kind: int, *, levels: bool) -> _Fit | None:
    """None for a kind of day that never had a call."""
    import numpy
    from sklearn.linear_model import PoissonRegressor
    from threadpoolctl import threadpool_limits

    places = [n for n, day in enumerate(known.days) if kind_of.get(day.weekday()) == kind]
    # A weekday that was never seen is taken for any.
    places = places or list(range(len(known.days)))
    table = numpy.array([known.calls[n] for n in places])
    open_slots = numpy.flatnonzero(table.sum(axis=0))
    if not len(open_slots):
        return None
    first, last = int(open_slots[0]), int(open_slots[-1])
    weekdays = sorted({known.days[n].weekday() for n in places})
    rows = {w: _design(last - first + 1, weekdays.index(w), len(weekdays) if levels else 0) for w in weekdays}
    opened = ~_closed(table.sum(axis=0)[first : last + 1])
    design = numpy.vstack([rows[known.days[n].weekday()][opened] for n in places])
    calls = table[:, first : last + 1][:, opened].ravel()
    weight = numpy.repeat([DECAY ** (len(known.days) - n) for n in places], int(opened.sum()))
    model = PoissonRegressor(alpha=1.0 / weight.sum(), solver="newton-cholesky", max_iter=300)
    # Threads that wait for each other cost more than such small sums.
    with threadpool_limits(limits=1):
        model.fit(design, calls, sample_weight=weight)
    mean = numpy.maximum(model.predict(design), 1e-9)
    return _Fit(model, rows, first, last, opened, _spread(calls, mean))


def _closed(totals: Any) -> Any:
    """Which half-hours from the first to the last are closed (rule 3), by the calls that each had in all."""
    import numpy

    closed = numpy.zeros(len(totals), dtype=bool)
    calls = numpy.flatnonzero(totals)
    for before, after in itertools.pairwise(calls):
        closed[before + 1 : after] = max(totals[before], totals[after]) >= CLOSED_BESIDE
    return closed


def _spread(calls: Any, mean: Any) -> float:
    """Such that `INTERVAL` of the residuals lie within what mean + spread * mean ** 2 allows for; a few wild
    half-hours, which would rule a variance, do not matter. Half-hours with next to no calls say nothing of
    it.
    """
    import numpy
    from scipy import stats

    busy = mean >= 1.0
    if not busy.any():
        return 0.0
    reach = float(stats.norm.ppf((1.0 + INTERVAL) / 2))
    needed = (((calls - mean) / reach) ** 2 - mean)[busy] / mean[busy] ** 2
    return max(0.0, float(numpy.quantile(needed, INTERVAL)))


def _design(slots: int, weekday: int, weekdays: int) -> Any:
    """Rows of one day: spline, deviations of half-hours, level of the weekday."""
    import numpy
    from sklearn.preprocessing import SplineTransformer

    knots = max(2, min(KNOTS_MAX, slots // 2))
    spline = SplineTransformer(n_knots=knots, degree=min(3, max(1, slots - 1)))
    times = numpy.arange(slots, dtype=float)[:, None] if slots > 1 else numpy.array([[0.0], [1.0]])
    parts = [spline.fit_transform(times)[:slots], SLOT_SCALE * numpy.eye(slots)]
    if weekdays > 1:
        parts.append(numpy.tile(WEEKDAY_SCALE * numpy.eye(weekdays)[weekday], (slots, 1)))
    return numpy.hstack(parts)


def _levels_help(known: History) -> bool:
    """Whether levels of weekdays would have made the last days' forecasts better."""
    if len(known.days) < JUDGED_FROM_DAYS:
        return False
    days = known.days[-JUDGED_DAYS:]
    before = known.before(days[0])
    if not _has_calls(before):
        return False
    missed = {}
    for levels in (False, True):
        model = Seasonal(before, weekday_levels=levels)
        missed[levels] = sum(
            abs(expected - calls)
            for day in days
            for expected, calls in zip(model.day(day).arrivals, known.on(day) or (), strict=False)
        )
    return missed[True] < missed[False]


# --- what is naive, and how all of them did


def seasonal_naive(known: History, day: dt.date) -> Sequence[float] | None:
    """The same day of the newest week known."""
    back = day - WEEK
    while known.days and back > known.days[-1]:
        back -= WEEK
    return known.on(back)


def weekday_mean(known: History, day: dt.date) -> Sequence[float] | None:
    """The mean of all such weekdays."""
    rows = [r for d, r in zip(known.days, known.calls, strict=True) if d.weekday() == day.weekday()]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else None


def model_day(known: History, day: dt.date) -> Sequence[float] | None:
    """The model above."""
    return Seasonal(known).day(day).arrivals if _has_calls(known) else None


def rolling(
    history: History, *, first: int, ahead_days: int = 1
) -> Iterator[tuple[dt.date, History, tuple[float, ...]]]:
    """(day, what was known `ahead_days` before, what came), from the day of that index on: a rolling
    origin.
    """
    for n in range(first, len(history.days)):
        day = history.days[n]
        origin = day - dt.timedelta(days=ahead_days - 1)
        yield day, history.before(origin), history.calls[n]


def errors(history: History, method: Method, *, first: int, ahead_days: int = 1) -> Errors:
    """How a method would have done from the day of index `first` on. Days that it cannot forecast count as
    forecast with nothing.
    """
    missed = missed_days = calls = 0.0
    halves = days = 0
    for day, known, came in rolling(history, first=first, ahead_days=ahead_days):
        said = method(known, day) or (0.0,) * SLOTS
        missed += sum(abs(a - b) for a, b in zip(said, came, strict=True))
        missed_days += abs(sum(said) - sum(came))
        calls += sum(came)
        halves += SLOTS
        days += 1
    scale = _naive_error(history)
    return Errors(
        wape=missed / calls if calls else 0.0,
        day_wape=missed_days / calls if calls else 0.0,
        mase=missed / halves / scale if halves and scale else 0.0,
        days=days,
    )


def _naive_error(known: History) -> float:
    """Mean absolute error of the seasonal naive forecast inside a history; 0 for less than eight days."""
    lag = 7
    gaps = [
        abs(a - b)
        for n in range(lag, len(known.days))
        for a, b in zip(known.calls[n], known.calls[n - lag], strict=True)
    ]
    return sum(gaps) / len(gaps) if gaps else 0.0


def days_of(from_ms: int, to_ms: int, zone: zoneinfo.ZoneInfo) -> list[tuple[dt.date, int, int]]:
    """The local days that a span touches, each with its first and last millisecond (exclusive)."""
    day, _ = slot_of(from_ms, zone)
    last, _ = slot_of(to_ms - 1, zone)
    found = []
    while day <= last:
        following = day + dt.timedelta(days=1)
        found.append((day, start_ms(day, 0, zone), start_ms(following, 0, zone)))
        day = following
    return found
