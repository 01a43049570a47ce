"""Values of the number → place step: what is known of a caller's number, and how well."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import msgspec

from chassis.errors import InvalidArgument

#: Mean radius of the earth (IUGG), kilometres.
EARTH_RADIUS_KM = 6371.0088


class Precision(enum.StrEnum):
    """How finely a caller's coordinates are known. Never finer than the data behind them."""

    #: To a town (in China a prefecture-level city), or better.
    CITY = "CITY"
    #: To a province or state.
    PROVINCE = "PROVINCE"
    #: To a country or territory: a mobile number in most countries.
    COUNTRY = "COUNTRY"
    #: Not at all: a satellite telephone, an international service number.
    UNKNOWN = "UNKNOWN"


class NumberKind(enum.StrEnum):
    """What a number is used for, by the numbering plan."""

    MOBILE = "MOBILE"
    FIXED = "FIXED"
    #: The plan does not tell the two apart (North America).
    FIXED_OR_MOBILE = "FIXED_OR_MOBILE"
    TOLL_FREE = "TOLL_FREE"
    PREMIUM = "PREMIUM"
    SHARED_COST = "SHARED_COST"
    VOIP = "VOIP"
    PERSONAL = "PERSONAL"
    PAGER = "PAGER"
    #: One number for a whole company.
    COMPANY = "COMPANY"
    VOICEMAIL = "VOICEMAIL"
    #: Long enough to be a number, in no range that the plan is known to have given out.
    UNASSIGNED = "UNASSIGNED"


class PlaceSource(enum.StrEnum):
    """Who said where the caller is."""

    NUMBER = "NUMBER"
    #: The edge: SIP header, application. Wins over the number.
    EDGE = "EDGE"


class NumberFault(enum.StrEnum):
    """Why a text is no caller's number; the `fault` in the metadata of an INVALID_NUMBER error."""

    EMPTY = "EMPTY"
    GARBAGE = "GARBAGE"
    TOO_SHORT = "TOO_SHORT"
    TOO_LONG = "TOO_LONG"
    NO_COUNTRY = "NO_COUNTRY"
    NO_AREA_CODE = "NO_AREA_CODE"
    EMERGENCY = "EMERGENCY"
    SHORT_CODE = "SHORT_CODE"
    #: The length is right, but the numbering plan has no such range.
    UNASSIGNED = "UNASSIGNED"


class InvalidNumber(InvalidArgument):
    """{field}: {why}."""

    reason = "INVALID_NUMBER"

    @property
    def fault(self) -> NumberFault:
        """What is wrong, for machines."""
        return NumberFault(self.values["fault"])


@dataclass(frozen=True, kw_only=True, slots=True)
class GeoPoint:
    """A point on the earth, WGS 84. See `checked_point` for values from outside."""

    #: Degrees north, -90 to 90.
    latitude: float
    #: Degrees east, -180 to 180.
    longitude: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Somewhere callers come from."""

    #: ISO 3166-1 alpha-2, for example "CN"; empty when not known.
    country: str
    #: Province or state, in Chinese for China ("广东"), else as commonly written in English; may be empty.
    province: str
    #: City, in Chinese for China ("广州"); empty unless the precision is CITY.
    city: str
    #: Degrees north; None when not known.
    latitude: float | None
    #: Degrees east; None when not known.
    longitude: float | None
    #: How finely the coordinates are known.
    precision: Precision
    #: About how far callers of this place are from its coordinates.
    radius_km: int


class ParsedNumber(msgspec.Struct, frozen=True, kw_only=True):
    """A number that can be a caller's."""

    #: E.164: "+8613800138000".
    e164: str
    #: ISO 3166-1 alpha-2 of country or territory; empty for numbers of no country (+800, +870).
    country: str
    #: What the number is used for.
    kind: NumberKind
    #: Country calling code.
    country_code: int
    #: The numbering plan ties it to a place.
    is_geographic: bool


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's number and place."""

    #: E.164; empty when the number is withheld and the edge gave the place.
    e164: str
    #: ISO 3166-1 alpha-2; empty when not known.
    country: str
    #: Province or state, in Chinese for China; may be empty.
    province: str
    #: City, in Chinese for China; empty unless the precision is CITY.
    city: str
    #: Degrees north; None when not known.
    latitude: float | None
    #: Degrees east; None when not known.
    longitude: float | None
    #: How finely the coordinates are known.
    precision: Precision
    #: What the number is used for; None without a number.
    kind: NumberKind | None
    #: About how far the caller is from the coordinates.
    radius_km: int
    #: Who said so.
    source: PlaceSource = PlaceSource.NUMBER

    @property
    def area(self) -> str:
        """The place as served areas are written: "CN/广东/深圳", "US/California", "JP", "" when not known."""
        parts = (self.country, self.province, self.city)
        known = parts[: parts.index("")] if "" in parts else parts
        return "/".join(known)


def checked_point(latitude: float, longitude: float, *, field: str = "location") -> GeoPoint:
    """A point from outside. Raises InvalidArgument naming `<field>.latitude` or `<field>.longitude` where a
    value is out of range or no finite number.
    """
    bounds = (("latitude", latitude, 90), ("longitude", longitude, 180))
    wrong = [
        (f"{field}.{name}", f"must be a number of degrees from -{limit} to {limit}")
        for name, value, limit in bounds
        if isinstance(value, bool) or not isinstance(value, int | float) or not -limit <= value <= limit
    ]
    if wrong:
        raise InvalidArgument.many(wrong)
    return GeoPoint(latitude=float(latitude), longitude=float(longitude))


def distance_km(latitude_a: float, longitude_a: float, latitude_b: float, longitude_b: float) -> float:
    """Great-circle distance of two points given in degrees (haversine; at most 0.6 % off the ellipsoid's)."""
    north_a, north_b = math.radians(latitude_a), math.radians(latitude_b)
    half_east = math.radians(longitude_b - longitude_a) / 2
    h = (
        math.sin((north_b - north_a) / 2) ** 2
        + math.cos(north_a) * math.cos(north_b) * math.sin(half_east) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(h)))
