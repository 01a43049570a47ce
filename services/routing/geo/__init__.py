"""Number → place: E.164 parsing and validity, and where a number's holder is, with a stated precision."""

from routing.geo.model import (
    GeoPoint,
    InvalidNumber,
    Located,
    NumberFault,
    NumberKind,
    PlaceSource,
    Precision,
    checked_point,
    distance_km,
)
from routing.geo.numbers import parse_number
from routing.geo.places import check_area, load, locate, with_point

__all__ = [
    "GeoPoint",
    "InvalidNumber",
    "Located",
    "NumberFault",
    "NumberKind",
    "PlaceSource",
    "Precision",
    "check_area",
    "checked_point",
    "distance_km",
    "load",
    "locate",
    "parse_number",
    "with_point",
]
