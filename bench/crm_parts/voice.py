"""Planted hot spots in real background data: how often the scan finds them, and how often it cries wolf."""

from __future__ import annotations

import csv
import gzip
import random
from collections import Counter
from pathlib import Path

from crm import scan

#: Of the background, the share that is this week's.
WEEK_SHARE = 0.08
RELATIVE_RISK = 3.0
EXTRA_MIN = 20
P_VALUE_MAX = 0.05
SIMULATIONS = 199

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


def _centres(events: list[tuple[str, float, float]]) -> dict[str, tuple[float, float]]:
    sums: dict[str, list[float]] = {}
    for name, latitude, longitude in events:
        row = sums.setdefault(name, [0.0, 0.0, 0.0])
        row[0] += latitude
        row[1] += longitude
        row[2] += 1
    return {name: (row[0] / row[2], row[1] / row[2]) for name, row in sums.items()}


def rates(
    events: list[tuple[str, float, float]], radius_km: float, runs: int, seed: int = 11
) -> tuple[float, float]:
    """(power, false alarm rate): of `runs` weeks with a planted spot and `runs` without."""
    rng = random.Random(seed)
    centres = _centres(events)
    names = sorted(centres)
    hits = sum(_week(events, names, centres, radius_km, rng, plant=True) for _ in range(runs))
    alarms = sum(_week(events, names, centres, radius_km, rng, plant=False) for _ in range(runs))
    return hits / runs, alarms / runs


def _week(
    events: list[tuple[str, float, float]],
    names: list[str],
    centres: dict[str, tuple[float, float]],
    radius_km: float,
    rng: random.Random,
    *,
    plant: bool,
) -> bool:
    """Whether the planted spot was found; without one, whether any was."""
    contacts = Counter(name for name, _, _ in events)
    cases = Counter(name for name, _, _ in events if rng.random() < WEEK_SHARE)
    where = ""
    if plant:
        # Where a relative risk of three means at least twenty complaints more.
        able = [n for n in names if contacts[n] * WEEK_SHARE * (RELATIVE_RISK - 1) >= EXTRA_MIN]
        where = rng.choice(able)
        extra = max(EXTRA_MIN, round((RELATIVE_RISK - 1) * cases[where]))
        cases[where] += extra
        contacts[where] += extra
    places = [
        scan.Place(
            name=name,
            latitude=centres[name][0],
            longitude=centres[name][1],
            cases=cases[name],
            contacts=contacts[name],
        )
        for name in names
    ]
    spots = scan.hot_spots(
        places, radius_max_km=radius_km, simulations=SIMULATIONS, seed=rng.randrange(1 << 30)
    )
    found = [spot for spot in spots if spot.p_value <= P_VALUE_MAX]
    if not plant:
        return bool(found)
    return any(names[index] == where for spot in found for index in spot.places)
