"""Number → place, and what the edge says of the place, which wins.

Rules:
1. Chinese mobile numbers: city by the first seven digits. Fixed lines: city by area code; an area code shared
   by cities far apart says the province only.
2. Elsewhere: the longest prefix known of numbers that the plan ties to a place. Mobile numbers of most
   countries, toll-free and premium numbers say the country only.
3. A point given by the edge replaces the place; the number stays. The province of a point is that of
   the nearest known town, which near a border can be the neighbour's.
"""

from __future__ import annotations

import functools

import msgspec

from chassis.errors import InvalidArgument
from routing.geo import tables
from routing.geo.model import (
    GeoPoint,
    Located,
    NumberKind,
    ParsedNumber,
    Place,
    PlaceSource,
    Precision,
    checked_point,
)
from routing.geo.numbers import CHINA_PREFIXES_MAX, parse_number
from routing.geo.plans import is_geographic

#: A point given by the edge is where the caller is, to about this.
POINT_RADIUS_KM = 1
#: By a short name: each number is compared with it.
_MOBILE = NumberKind.MOBILE

_NOWHERE = Place(
    country="",
    province="",
    city="",
    latitude=None,
    longitude=None,
    precision=Precision.UNKNOWN,
    radius_km=20_038,
)


def load() -> None:
    """Loads every table that `locate` needs (about a third of a second), so that no call waits for it."""
    tables.china_mobiles()
    tables.china_area_codes()
    tables.world()
    tables.countries()


def locate(
    number: str, *, default_country: str = "CN", field: str = "number", accept_unassigned: bool = False
) -> Located:
    """Where the holder of a number is, as far as the number tells. Pure but for loading tables once.

    Raises InvalidNumber naming `field` (reason INVALID_NUMBER, metadata `fault`), see `parse_number`.
    """
    parsed = parse_number(
        number, default_country=default_country, field=field, accept_unassigned=accept_unassigned
    )
    if parsed.country == "CN" and parsed.kind is _MOBILE:
        # As nearly always: all that it says beside the number is the same for ten thousand numbers.
        return msgspec.structs.replace(_china_mobile(parsed.e164[:10]), e164=parsed.e164)
    return _located(_place_of(parsed), parsed.country, parsed.e164, parsed.kind)


@functools.lru_cache(maxsize=CHINA_PREFIXES_MAX)
def _china_mobile(prefix: str) -> Located:
    """The holder of a mobile number that begins so: "+86" and seven digits."""
    parsed = ParsedNumber(
        e164=prefix, country="CN", kind=_MOBILE, country_code=86, is_geographic=is_geographic(_MOBILE, 86)
    )
    return _located(_place_of(parsed), parsed.country, parsed.e164, parsed.kind)


def check_area(field: str, area: str) -> None:
    """Whether callers can be of a served area: a country ("CN"), a part of one ("CN/广东", "US/California")
    or a city ("CN/广东/深圳"), as the tables name them. Raises InvalidArgument naming `field`: nobody would
    ever be at home in an area that is not.
    """
    known = tables.areas()
    if area in known:
        return
    country, _, _ = area.partition("/")
    if country not in known:
        raise InvalidArgument(field=field, why=f"there is no country {country[:40]!r} (ISO 3166-1 alpha-2)")
    raise InvalidArgument(field=field, why=f"no caller is known to be in {area[:60]!r}")


def with_point(
    number: Located | None, latitude: float, longitude: float, *, field: str = "location"
) -> Located:
    """The caller at a point that the edge gave; `number` None when withheld. Raises InvalidArgument naming
    `<field>.latitude` or `<field>.longitude` when out of range.
    """
    point = checked_point(latitude, longitude, field=field)
    place = _place_at(point, number)
    e164, kind = (number.e164, number.kind) if number else ("", None)
    return _located(place, place.country, e164, kind, PlaceSource.EDGE)


def _place_of(parsed: ParsedNumber) -> Place:
    country = tables.countries().get(parsed.country)
    place = _finer_place(parsed) if parsed.is_geographic else None
    if place is not None and place.country == parsed.country:
        return place
    return country[1] if country else _NOWHERE


def _finer_place(parsed: ParsedNumber) -> Place | None:
    digits = parsed.e164[1:]
    if parsed.country_code != 86:
        if digits.startswith("549") and parsed.kind is _MOBILE:
            digits = "54" + digits[3:]  # Argentina's mark of a mobile number stands before the area code
        return tables.world().find(digits)
    national = digits[2:]
    if parsed.kind is _MOBILE:
        return tables.china_mobiles().find(int(national[:7]))
    codes = tables.china_area_codes()
    return codes.get(national[:2]) or codes.get(national[:3])


def _place_at(point: GeoPoint, number: Located | None) -> Place:
    near = tables.towns().nearest(point.latitude, point.longitude)
    country = near.country if near else number.country if number else ""
    return Place(
        country=country,
        province=near.province if near else "",
        city=near.city if near else "",
        latitude=point.latitude,
        longitude=point.longitude,
        precision=Precision.CITY,
        radius_km=POINT_RADIUS_KM,
    )


def _located(
    place: Place, country: str, e164: str, kind: NumberKind | None, source: PlaceSource = PlaceSource.NUMBER
) -> Located:
    return Located(
        e164=e164,
        country=country,
        province=place.province,
        city=place.city,
        latitude=place.latitude,
        longitude=place.longitude,
        precision=place.precision,
        kind=kind,
        radius_km=place.radius_km,
        source=source,
    )
