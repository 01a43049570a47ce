"""The tables under data/ and the phone package's data, loaded once and kept small.

phonenumbers' own geocoder holds every prefix of the world as a dict of dicts, about 100 MB; the tables here
are derived from it (tools/make_city_data.py) and take a third of that. Chinese mobile numbers are looked up
in two columns of the `phone` package's file, 4 MB.
"""

from __future__ import annotations

import bisect
import csv
import functools
import gzip
import importlib.util
import io
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from chassis.errors import StartError
from routing.geo.model import Place, Precision, distance_km

#: How far callers with a Chinese city's number are from its centre, about.
CITY_RADIUS_KM = 30
#: A point given by the edge is said to be in the nearest known town's province within this distance.
NEAREST_TOWN_KM_MAX = 100


def _rows(name: str) -> Iterator[dict[str, str]]:
    columns, rows = _table(name)
    return (dict(zip(columns, row, strict=True)) for row in rows)


def _table(name: str) -> tuple[list[str], Iterator[list[str]]]:
    """Names of the columns, and the rows."""
    raw = (resources.files(__package__) / "data" / name).read_bytes()
    text = gzip.decompress(raw) if name.endswith(".gz") else raw
    rows = csv.reader(io.StringIO(text.decode("utf-8")))
    return next(rows), rows


def _place(row: Mapping[str, str], country: str) -> Place:
    return Place(
        country=country,
        province=row["province"],
        city=row["city"],
        latitude=float(row["latitude"]),
        longitude=float(row["longitude"]),
        precision=Precision(row.get("precision", "CITY")),
        radius_km=int(row.get("radius_km", CITY_RADIUS_KM)),
    )


class ChinaMobiles:
    """Seven-digit prefixes of Chinese mobile numbers → city, out of `phone.dat`.

    The file: version (4 bytes), offset of the index (int32), records "province|city|post code|area code" each
    ended by a zero byte, then the index: 9 bytes a prefix (int32 prefix, int32 record offset, byte operator),
    ascending. Little-endian.
    """

    _ENTRY_BYTES, _NUMBER_BYTES = 9, 4

    def __init__(self, raw: bytes, cities: Mapping[tuple[str, str], Place]) -> None:
        (self._index_offset,) = struct.unpack_from("<4xi", raw)
        self._prefixes = self._column(raw, 0)
        self._records = self._column(raw, self._NUMBER_BYTES)
        self._places: dict[int, Place] = {}
        start = 8
        while start < self._index_offset:
            end = raw.index(b"\0", start)
            province, name, _, _ = raw[start:end].decode("utf-8").split("|")
            if place := cities.get((province, name)):
                self._places[start] = place
            start = end + 1

    def _column(self, raw: bytes, at: int) -> array[int]:
        """The numbers `at` so many bytes into each entry, taken a byte of all of them at a time."""
        count = (len(raw) - self._index_offset) // self._ENTRY_BYTES
        first, end = self._index_offset + at, self._index_offset + count * self._ENTRY_BYTES
        packed = bytearray(count * self._NUMBER_BYTES)
        for byte in range(self._NUMBER_BYTES):
            packed[byte :: self._NUMBER_BYTES] = raw[first + byte : end : self._ENTRY_BYTES]
        column = array("i", packed)
        if sys.byteorder == "big":
            column.byteswap()
        return column

    def find(self, prefix: int) -> Place | None:
        """The city of a seven-digit prefix (1380013), None when the data does not have it."""
        at = bisect.bisect_left(self._prefixes, prefix)
        if at == len(self._prefixes) or self._prefixes[at] != prefix:
            return None
        return self._places.get(self._records[at])


class World:
    """Prefixes of numbers outside China → place, by the longest one that is known."""

    def __init__(self) -> None:
        self.places = [_place(row, row["country"]) for row in _rows("world_places.csv.gz")]
        columns, rows = _table("world_prefixes.csv.gz")
        prefix, number = columns.index("prefix"), columns.index("place")
        # Every start of a router waits for these hundred thousand rows.
        self._place_numbers = {int(row[prefix]): int(row[number] or -1) for row in rows}
        self._digits_max = max(len(str(each)) for each in self._place_numbers)

    def find(self, digits: str) -> Place | None:
        """The place of an E.164 number without its "+", None when only the country is known."""
        for length in range(min(self._digits_max, len(digits)), 1, -1):
            number = self._place_numbers.get(int(digits[:length]))
            if number is not None:
                return self.places[number] if number >= 0 else None
        return None


class Towns:
    """All towns of the tables by where they are; only needed for places given by the edge."""

    def __init__(self, places: list[Place]) -> None:
        self._places = [p for p in places if p.precision is Precision.CITY and p.latitude is not None]
        self._cells: dict[tuple[int, int], array[int]] = {}
        for index, place in enumerate(self._places):
            assert place.latitude is not None and place.longitude is not None
            self._cells.setdefault(_cell(place.latitude, place.longitude), array("i")).append(index)

    def nearest(self, latitude: float, longitude: float) -> Place | None:
        """The town nearest to a point, None when none is known within `NEAREST_TOWN_KM_MAX`."""
        row, column = _cell(latitude, longitude)
        # a degree of longitude shrinks towards the poles: look at more columns there
        reach = 1 if abs(latitude) < 60 else 3
        best: tuple[float, int] | None = None
        for near_row in (row - 1, row, row + 1):
            for near_column in range(column - reach, column + reach + 1):
                for index in self._cells.get((near_row, (near_column + 180) % 360 - 180), ()):
                    place = self._places[index]
                    assert place.latitude is not None and place.longitude is not None
                    km = distance_km(latitude, longitude, place.latitude, place.longitude)
                    if best is None or (km, index) < best:
                        best = km, index
        return self._places[best[1]] if best and best[0] <= NEAREST_TOWN_KM_MAX else None


def _cell(latitude: float, longitude: float) -> tuple[int, int]:
    return int(latitude // 1), int(longitude // 1)


@functools.cache
def china_cities() -> dict[tuple[str, str], Place]:
    """(province, name in the phone data) → city."""
    return {(row["province"], row["name"]): _place(row, "CN") for row in _rows("china_cities.csv")}


@functools.cache
def china_area_codes() -> dict[str, Place]:
    """Area code without its 0 ("10", "755") → city, or province where distant cities share it."""
    return {row["area_code"][1:]: _place(row, "CN") for row in _rows("china_area_codes.csv")}


@functools.cache
def china_mobiles() -> ChinaMobiles:
    """Raises StartError when the phone package's data file is not there."""
    spec = importlib.util.find_spec("phone")
    path = Path(spec.origin).with_name("phone.dat") if spec and spec.origin else None
    if path is None or not path.is_file():
        raise StartError("the package 'phone' with its data file phone.dat is not installed")
    return ChinaMobiles(path.read_bytes(), china_cities())


@functools.cache
def world() -> World:
    """The world outside China."""
    return World()


@functools.cache
def countries() -> dict[str, tuple[str, Place]]:
    """ISO code → name in English, and the town nearest to the centre of the country's population."""
    return {
        row["country"]: (
            row["name"],
            _place({"province": "", "city": "", "precision": "COUNTRY", **row}, row["country"]),
        )
        for row in _rows("countries.csv")
    }


@functools.cache
def areas() -> frozenset[str]:
    """Every area that the tables can say a caller is in: "CN", "CN/广东", "CN/广东/深圳"."""
    found = set(countries())
    for place in (*china_cities().values(), *china_area_codes().values(), *world().places):
        names = [name for name in (place.country, place.province, place.city) if name]
        found.update("/".join(names[:depth]) for depth in range(1, len(names) + 1))
    return frozenset(found)


@functools.cache
def towns() -> Towns:
    """For places given by the edge."""
    # a city state is its own town: without these a point in Hong Kong would be said to lie in Shenzhen
    states = [
        Place(
            country=code, province="", city=name, latitude=place.latitude, longitude=place.longitude,
            precision=Precision.CITY, radius_km=CITY_RADIUS_KM,
        )
        for code, (name, place) in countries().items()
        if place.radius_km <= CITY_RADIUS_KM
    ]  # fmt: skip
    return Towns([*china_cities().values(), *world().places, *states])
