"""Planted hot spots and hot topics in real background data: how often they are found, and how often the
service cries wolf.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from crm import scan, topics

#: Of the background, the share that is this week's.
WEEK_SHARE = 0.08
RELATIVE_RISK = 3.0
EXTRA_MIN = 20
#: Random labellings a week: enough that a p-value at the cut is told from one beside it.
SIMULATIONS = 499
#: Days of an interval in which topics rise.
TOPIC_DAYS = 7

#: Centres of the states of the USA, degrees north and east: where complaints of a state are put.
_STATES = {
    **{"AL": (32.8, -86.8), "AZ": (34.3, -111.7), "AR": (34.8, -92.4), "CA": (37.2, -119.3)},
    **{"CO": (39.0, -105.5), "CT": (41.6, -72.7), "DE": (39.0, -75.5), "FL": (28.6, -82.4)},
    **{"GA": (32.6, -83.4), "ID": (44.4, -114.6), "IL": (40.0, -89.2), "IN": (39.9, -86.3)},
    **{"IA": (42.1, -93.5), "KS": (38.5, -98.4), "KY": (37.5, -85.3), "LA": (31.1, -92.0)},
    **{"ME": (45.4, -69.2), "MD": (39.0, -76.8), "MA": (42.3, -71.8), "MI": (44.3, -85.4)},
    **{"MN": (46.3, -94.3), "MS": (32.7, -89.7), "MO": (38.4, -92.5), "MT": (47.0, -109.6)},
    **{"NE": (41.5, -99.8), "NV": (39.3, -116.6), "NH": (43.7, -71.6), "NJ": (40.2, -74.7)},
    **{"NM": (34.4, -106.1), "NY": (42.9, -75.5), "NC": (35.6, -79.4), "ND": (47.4, -100.5)},
    **{"OH": (40.3, -82.8), "OK": (35.6, -97.5), "OR": (43.9, -120.6), "PA": (40.9, -77.8)},
    **{"RI": (41.7, -71.6), "SC": (33.9, -80.9), "SD": (44.4, -100.2), "TN": (35.9, -86.4)},
    **{"TX": (31.5, -99.3), "UT": (39.3, -111.7), "VT": (44.1, -72.7), "VA": (37.5, -78.9)},
    **{"WA": (47.4, -120.4), "WV": (38.6, -80.6), "WI": (44.6, -89.9), "WY": (43.0, -107.5)},
}


def townships(path: Path) -> list[tuple[str, float, float]]:
    """(township, latitude, longitude) of every emergency call with a plausible place."""
    found = []
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            try:
                latitude, longitude = float(row["lat"]), float(row["lng"])
            except (TypeError, ValueError):
                continue
            if row["twp"] and 39.8 < latitude < 40.6 and -76.0 < longitude < -74.8:
                found.append((row["twp"], latitude, longitude))
    return found


def states(path: Path) -> list[tuple[str, float, float]]:
    """(state, latitude, longitude) of every complaint whose state is known."""
    with gzip.open(path, "rt") as file:
        return [
            (row["State"], *_STATES[row["State"]]) for row in csv.DictReader(file) if row["State"] in _STATES
        ]


@dataclass(frozen=True)
class Rates:
    """How often planted spots were found, and how often one was cried without any, of so many weeks each."""

    weeks: int
    found: int
    alarms: int

    @property
    def power(self) -> float:
        """Share of the planted spots that were found."""
        return self.found / self.weeks

    @property
    def false_alarms(self) -> float:
        """Share of the weeks without a planted spot in which one was cried."""
        return self.alarms / self.weeks

    @property
    def power_low(self) -> float:
        """Lower end of the 95 % interval of the power, one-sided (Clopper and Pearson, 1934)."""
        return float(stats.beta.ppf(0.05, self.found, self.weeks - self.found + 1)) if self.found else 0.0

    @property
    def false_alarms_high(self) -> float:
        """Upper end of the 95 % interval of the false alarm rate, one-sided."""
        return float(stats.beta.ppf(0.95, self.alarms + 1, self.weeks - self.alarms))


class Background:
    """Real contacts by place, of which a week's complaints are a random share."""

    def __init__(self, events: list[tuple[str, float, float]]) -> None:
        sums: dict[str, list[float]] = {}
        for name, latitude, longitude in events:
            row = sums.setdefault(name, [0.0, 0.0, 0.0])
            row[0] += latitude
            row[1] += longitude
            row[2] += 1
        self.names = sorted(sums)
        self.contacts = np.array([int(sums[name][2]) for name in self.names])
        self.centres = [(sums[n][0] / sums[n][2], sums[n][1] / sums[n][2]) for n in self.names]
        expected_more = self.contacts * WEEK_SHARE * (RELATIVE_RISK - 1)
        #: Where a relative risk of three means at least twenty complaints more.
        self.able = np.flatnonzero(expected_more >= EXTRA_MIN)

    def week(self, random: np.random.Generator, where: int | None) -> list[scan.Place]:
        """The places with this week's complaints; with a planted spot at the place `where`."""
        cases, contacts = random.binomial(self.contacts, WEEK_SHARE), self.contacts.copy()
        if where is not None:
            extra = max(EXTRA_MIN, round((RELATIVE_RISK - 1) * int(cases[where])))
            cases[where] += extra
            contacts[where] += extra
        return [
            scan.Place(
                name=name,
                latitude=self.centres[i][0],
                longitude=self.centres[i][1],
                cases=int(cases[i]),
                contacts=int(contacts[i]),
            )
            for i, name in enumerate(self.names)
        ]


def rates(events: list[tuple[str, float, float]], radius_km: float, weeks: int, seed: int = 11) -> Rates:
    """Of `weeks` weeks with a planted spot and `weeks` without, at the service's own cut."""
    background, random = Background(events), np.random.default_rng(seed)
    found = alarms = 0
    for _ in range(weeks):
        where = int(random.choice(background.able))
        found += where in _cried(background.week(random, where), radius_km, random)
        alarms += bool(_cried(background.week(random, None), radius_km, random))
    return Rates(weeks=weeks, found=found, alarms=alarms)


def _cried(places: list[scan.Place], radius_km: float, random: np.random.Generator) -> set[int]:
    """The places of every spot that the service would report."""
    spots = scan.hot_spots(
        places, radius_max_km=radius_km, simulations=SIMULATIONS, seed=int(random.integers(1 << 30))
    )
    return {index for spot in spots if spot.p_value <= scan.P_VALUE_MAX for index in spot.places}


class DayBook:
    """Real contacts by day and reason. Days are drawn from it at random, whole: a day's reasons stay
    together, busy days stay busy, and what one interval has beyond the days before it is chance alone.
    """

    def __init__(self, contacts: list[tuple[str, str]]) -> None:
        days, self.reasons = sorted({d for d, _ in contacts}), sorted({r for _, r in contacts})
        column = {reason: i for i, reason in enumerate(self.reasons)}
        row = {day: i for i, day in enumerate(days)}
        counts = np.zeros((len(days), len(self.reasons)), dtype=np.int64)
        for day, reason in contacts:
            counts[row[day], column[reason]] += 1
        # The fringes of a file, with a few contacts a day, are no history of anything.
        busy = counts.sum(axis=1)
        self.counts = counts[busy >= np.median(busy[busy > 0]) / 2]
        #: Where a relative risk of three means at least twenty contacts more in the interval.
        more = self.counts.mean(axis=0) * TOPIC_DAYS * (RELATIVE_RISK - 1)
        self.able = np.flatnonzero(more >= EXTRA_MIN)

    def cried(self, random: np.random.Generator, planted: int | None) -> set[str]:
        """The reasons that the service would report; with contacts planted for one of them."""
        drawn = random.permutation(len(self.counts))[: TOPIC_DAYS + topics.HISTORY_DAYS_DEFAULT]
        days = self.counts[drawn]
        if planted is not None:
            extra = max(EXTRA_MIN, round((RELATIVE_RISK - 1) * int(days[:TOPIC_DAYS, planted].sum())))
            days[:TOPIC_DAYS, planted] += random.multinomial(extra, [1 / TOPIC_DAYS] * TOPIC_DAYS)
        rising = topics.rising(
            self._daily(days[:TOPIC_DAYS], 0),
            self._daily(days[TOPIC_DAYS:], -topics.HISTORY_DAYS_DEFAULT),
            history_days=topics.HISTORY_DAYS_DEFAULT,
            days=TOPIC_DAYS,
            p_value_max=topics.P_VALUE_MAX,
        )
        return {topic.reason for topic in rising}

    def _daily(self, days: np.ndarray, first: int) -> topics.Daily:
        return {
            reason: {first + day: int(n) for day, n in enumerate(days[:, i]) if n}
            for i, reason in enumerate(self.reasons)
        }


def topic_rates(contacts: list[tuple[str, str]], weeks: int, seed: int = 12) -> Rates:
    """As `rates`, for reasons that rise against the 28 days before."""
    book, random = DayBook(contacts), np.random.default_rng(seed)
    found = alarms = 0
    for _ in range(weeks):
        planted = int(random.choice(book.able))
        found += book.reasons[planted] in book.cried(random, planted)
        alarms += bool(book.cried(random, None))
    return Rates(weeks=weeks, found=found, alarms=alarms)


def issues(path: Path) -> list[tuple[str, str]]:
    """(day, issue) of every complaint."""
    with gzip.open(path, "rt") as file:
        return [(row["Date received"], row["Issue"]) for row in csv.DictReader(file)]


def titles(path: Path) -> list[tuple[str, str]]:
    """(day, title) of every emergency call."""
    with gzip.open(path, "rt") as file:
        return [(row["timeStamp"][:10], row["title"]) for row in csv.DictReader(file)]
