"""Where complaints are out of line with their neighbourhood: a spatial scan statistic. Pure.

Kulldorff's scan statistic with Bernoulli counts (M. Kulldorff, "A spatial scan statistic", Communications in
Statistics - Theory and Methods 26, 1997): every circle around every place, up to a radius and to half of all
contacts, is compared with the rest by its likelihood ratio; the largest one's p-value is its rank among the
largest ones of random labellings. Here a labelling draws the observed number of complaints out of all
contacts without replacement, so that the noise of the background counts is accounted for and the test is
exact when complaints fall on contacts by chance. Further circles that do not overlap a reported one get their
p-value from the same simulation, which is conservative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Places looked at; of more, the ones with the fewest contacts are left out.
PLACES_MAX = 600
#: Places of one circle.
CIRCLE_PLACES_MAX = 80
SIMULATIONS_DEFAULT = 999
#: Share of all contacts that a circle may hold.
SHARE_MAX = 0.5
#: Complaints below which a circle is no cluster.
CASES_MIN = 5
SPOTS_MAX = 20
#: Largest p-value of a spot that is reported unless the caller says otherwise. Without any spot one is cried
#: in so many of all intervals: well below the one in twenty that is allowed, so that it is below for certain.
P_VALUE_MAX = 0.02
#: Numbers of one step of the simulation: what a labelling takes, times labellings.
NUMBERS_AT_ONCE_MAX = 100_000
_EARTH_KM = 6371.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Contacts of one place."""

    #: What people call it.
    name: str
    #: Degrees.
    latitude: float
    longitude: float
    #: Complaints.
    cases: int
    #: All contacts, complaints included.
    contacts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A circle out of line with the rest."""

    #: Index of the place in the middle.
    centre: int
    #: Kilometres to the farthest of its places.
    radius_km: float
    #: Indexes of its places.
    places: tuple[int, ...]
    #: Complaints in it.
    observed: int
    #: Complaints that its share of contacts lets expect.
    expected: float
    #: Rate inside over the rate outside.
    relative_risk: float
    #: Rank among the simulated ones, 1/(simulations + 1) at least.
    p_value: float


def distances_km(latitudes: Any, longitudes: Any) -> Any:
    """Great-circle distances between all places, kilometres, shape (n, n); degrees in."""
    lat, lon = np.radians(latitudes), np.radians(longitudes)
    half = (
        np.sin((lat[:, None] - lat[None, :]) / 2) ** 2
        + np.cos(lat[:, None]) * np.cos(lat[None, :]) * np.sin((lon[:, None] - lon[None, :]) / 2) ** 2
    )
    return 2 * _EARTH_KM * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0)))


class _Circles:
    """All circles of one set of places."""

    def __init__(self, places: Sequence[Place], radius_max_km: float) -> None:
        self.contacts = np.array([place.contacts for place in places], dtype=np.int64)
        distances = distances_km(
            np.array([place.latitude for place in places]), np.array([place.longitude for place in places])
        )
        width = min(len(places), CIRCLE_PLACES_MAX)
        self.order = np.argsort(distances, axis=1, kind="stable")[:, :width]
        self.reach = np.take_along_axis(distances, self.order, axis=1)
        self.inside = np.cumsum(self.contacts[self.order], axis=1)
        total = int(self.contacts.sum())
        self.allowed = (self.reach <= radius_max_km) & (self.inside <= total * SHARE_MAX)
        # x log x for every count there can be: logarithms by the million would take most of the time.
        counts = np.arange(total + 1, dtype=np.float64)
        counts[1:] *= np.log(counts[1:])
        self.table = counts
        self.total = total
        #: The circles that are allowed, as places of the flattened arrays, and the contacts of each.
        self.flat = np.flatnonzero(self.allowed)
        self.flat_contacts = self.inside.ravel()[self.flat]
        #: What of each one's ratio does not depend on the cases in it.
        self.fixed = counts[self.flat_contacts] + counts[total - self.flat_contacts]

    def log_ratios(self, cases: Any) -> Any:
        """Each circle's log likelihood ratio, shape (n, width); 0 where its rate is not the higher one."""
        ratios = np.zeros(self.order.size)
        ratios[self.flat] = self._flat_ratios(cases[None, :])[0]
        return ratios.reshape(self.order.shape)

    def largest(self, drawn: Any) -> Any:
        """The largest log likelihood ratio of each labelling, shape (m,); cases of shape (m, n) in."""
        if not self.flat.size:
            return np.zeros(len(drawn))
        step = max(1, NUMBERS_AT_ONCE_MAX // self.order.size)
        parts = [self._flat_ratios(drawn[i : i + step]).max(axis=1) for i in range(0, len(drawn), step)]
        return np.concatenate(parts)

    def _flat_ratios(self, drawn: Any) -> Any:
        """The ratios of the circles that are allowed, shape (m, circles)."""
        c = np.cumsum(drawn[:, self.order], axis=2).reshape(len(drawn), -1)[:, self.flat]
        n, big_n, big_c = self.flat_contacts, self.total, int(drawn[0].sum())
        t = self.table
        null = t[big_c] + t[big_n - big_c] - t[big_n]
        higher = (c * big_n > big_c * n) & (c >= CASES_MIN)
        ratios = np.zeros(c.shape)
        # Logarithms are looked up for the circles alone whose rate is the higher one: less than half.
        c, where = c[higher], np.nonzero(higher)[1]
        n = n[where]
        found = t[c] + t[n - c] + t[big_c - c] + t[big_n - n - big_c + c] - self.fixed[where] - null
        ratios[higher] = found
        return ratios


def hot_spots(
    places: Sequence[Place],
    *,
    radius_max_km: float = 50.0,
    simulations: int = SIMULATIONS_DEFAULT,
    seed: int = 1,
    limit: int = SPOTS_MAX,
) -> list[Spot]:
    """The circles out of line, least p-value first, no two overlapping. [] where nothing can be said."""
    usable = [place for place in places if place.contacts > 0]
    if len(usable) < 3:
        return []
    index = sorted(range(len(places)), key=lambda i: -places[i].contacts)[:PLACES_MAX]
    index = sorted(i for i in index if places[i].contacts > 0)
    chosen = [places[i] for i in index]
    circles = _Circles(chosen, radius_max_km)
    cases = np.array([place.cases for place in chosen], dtype=np.int64)
    cases_all = int(cases.sum())
    if not CASES_MIN <= cases_all < circles.total:
        return []
    ratios = circles.log_ratios(cases)
    largest = _simulated(circles, cases_all, simulations, seed)
    return _reported(circles, cases, ratios, largest, index, limit)


def _simulated(circles: _Circles, cases_all: int, simulations: int, seed: int) -> Any:
    """The largest log ratio of each random labelling."""
    random = np.random.default_rng(seed)
    drawn = random.multivariate_hypergeometric(
        circles.contacts, cases_all, size=simulations, method="marginals"
    )
    # Narrow numbers: the simulation is as fast as memory.
    return circles.largest(drawn.astype(np.int32))


def _reported(
    circles: _Circles, cases: Any, ratios: Any, largest: Any, index: Sequence[int], limit: int
) -> list[Spot]:
    found: list[Spot] = []
    left = ratios.copy()
    taken = np.zeros(len(index), dtype=bool)
    while len(found) < limit:
        centre, size = np.unravel_index(int(left.argmax()), left.shape)
        best = float(left[centre, size])
        if best <= 0.0:
            break
        members = circles.order[centre, : size + 1]
        if taken[members].any():
            left[centre, size] = 0.0
            continue
        taken[members] = True
        # Circles through a reported place are no finding of their own.
        left[np.maximum.accumulate(taken[circles.order], axis=1)] = 0.0
        found.append(_spot(circles, cases, int(centre), int(size), best, largest, index))
    return found


def _spot(
    circles: _Circles, cases: Any, centre: int, size: int, best: float, largest: Any, index: Sequence[int]
) -> Spot:
    members = circles.order[centre, : size + 1]
    observed, inside = int(cases[members].sum()), int(circles.inside[centre, size])
    cases_all, total = int(cases.sum()), circles.total
    outside_rate = (cases_all - observed) / max(total - inside, 1)
    return Spot(
        centre=index[centre],
        radius_km=round(float(circles.reach[centre, size]), 3),
        places=tuple(index[int(i)] for i in members),
        observed=observed,
        expected=round(cases_all * inside / total, 3),
        relative_risk=round((observed / inside) / outside_rate, 3) if outside_rate else 1e9,
        p_value=round((1 + int((largest >= best - 1e-9).sum())) / (len(largest) + 1), 5),
    )
