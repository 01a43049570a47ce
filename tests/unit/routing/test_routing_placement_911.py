"""Nearest-centre choice on 20,000 real caller coordinates (emergency calls of a county in Pennsylvania),
judged by another formula than the one used."""

from __future__ import annotations

import csv
import gzip
import math
import os
from pathlib import Path

import pytest

from routing.geo import Located, NumberKind, PlaceSource, Precision, distance_km, with_point
from routing.placement import Caller, HomeBy, PlacementRules, RegionState, RegionView, place

ROOT = Path(__file__).resolve().parents[3]
DATA = (
    Path(os.environ.get("CALLMESH_DATA") or ROOT.parent / "shared" / "data") / "geolocated_calls_911.csv.gz"
)
#: Towns of the county, as if each had a centre.
CENTRES = {
    "ambler": (40.1546, -75.2216),
    "king-of-prussia": (40.0893, -75.3960),
    "lansdale": (40.2415, -75.2838),
    "norristown": (40.1215, -75.3399),
    "pottstown": (40.2454, -75.6496),
    "willow-grove": (40.1440, -75.1157),
}


def vector(latitude: float, longitude: float) -> tuple[float, float, float]:
    north, east = math.radians(latitude), math.radians(longitude)
    return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)


def calls() -> list[tuple[float, float]]:
    if not DATA.is_file():
        pytest.skip(f"{DATA.name} is not in {DATA.parent}; set CALLMESH_DATA to the folder that has it")
    with gzip.open(DATA, "rt", encoding="utf-8", newline="") as source:
        return [(float(row["lat"]), float(row["lng"])) for row in csv.DictReader(source)]


def test_every_real_caller_is_at_home_at_the_nearest_centre() -> None:
    regions = [
        RegionView(id=name, state=RegionState.UP, latitude=at[0], longitude=at[1])
        for name, at in CENTRES.items()
    ]
    rules, homes = PlacementRules(), dict.fromkeys(CENTRES, 0)
    points = calls()
    for latitude, longitude in points:
        caller = Caller(place=at_point(latitude, longitude))
        result = place(caller, regions, "emergency", rules)
        here = vector(latitude, longitude)
        # the shortest chord through the earth, with no haversine in it
        chords = {name: math.dist(here, vector(*at)) for name, at in CENTRES.items()}
        assert chords[result.home] <= min(chords.values()) + 1e-12
        assert result.home_by is HomeBy.DISTANCE
        homes[result.home] += 1
    assert len(points) == 20_000
    assert min(homes.values()) > 500, homes  # each centre has work: the test tells centres apart


def test_real_coordinates_are_placed_in_their_state() -> None:
    points = calls()[::20]
    areas = [with_point(None, *point).area for point in points]
    inside = sum(area.startswith("US/Pennsylvania") for area in areas)
    assert inside / len(points) > 0.99


def test_distances_agree_with_the_chord_through_the_earth() -> None:
    centre = CENTRES["norristown"]
    for point in calls()[::50]:
        chord = math.dist(vector(*point), vector(*centre))
        arc = 2 * 6371.0088 * math.asin(chord / 2)
        assert math.isclose(distance_km(*point, *centre), arc, rel_tol=1e-6, abs_tol=1e-6)


def at_point(latitude: float, longitude: float) -> Located:
    """A place of coordinates alone, so that nothing but distance can decide."""
    return Located(
        e164="",
        country="",
        province="",
        city="",
        latitude=latitude,
        longitude=longitude,
        precision=Precision.CITY,
        kind=NumberKind.MOBILE,
        radius_km=1,
        source=PlaceSource.EDGE,
    )
