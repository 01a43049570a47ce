"""Number → place: known cities of many countries, honest precision, and what the edge says winning."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from routing.geo import (
    InvalidNumber,
    NumberKind,
    PlaceSource,
    Precision,
    check_area,
    checked_point,
    distance_km,
    load,
    locate,
    tables,
    with_point,
)

CITY, PROVINCE, COUNTRY, UNKNOWN = Precision

#: (number, country, province, city, precision, a point, how near to it the answer must lie in km)
KNOWN = [
    ("13800138000", "CN", "北京", "北京", CITY, (39.90, 116.40), 10),
    ("13916123456", "CN", "上海", "上海", CITY, (31.23, 121.47), 10),
    ("18665812345", "CN", "广东", "深圳", CITY, (22.54, 114.06), 15),
    ("010-65551234", "CN", "北京", "北京", CITY, (39.90, 116.40), 10),
    ("020-87654321", "CN", "广东", "广州", CITY, (23.13, 113.26), 10),
    ("0571-87654321", "CN", "浙江", "杭州", CITY, (30.27, 120.15), 20),
    ("0991-2345678", "CN", "新疆", "乌鲁木齐", CITY, (43.8, 87.6), 20),
    ("028-85551234", "CN", "四川", "成都", CITY, (30.57, 104.07), 10),
    ("0898-66554433", "CN", "海南", "", PROVINCE, (19.2, 109.8), 80),
    ("0851-85551234", "CN", "贵州", "", PROVINCE, (26.8, 106.9), 80),
    ("400-812-3123", "CN", "", "", COUNTRY, (33.0, 113.0), 300),
    ("+12127365000", "US", "New York", "New York", CITY, (40.71, -74.01), 20),
    ("+12062155678", "US", "Washington", "Seattle", CITY, (47.61, -122.33), 40),
    ("+12015550123", "US", "New Jersey", "", PROVINCE, (40.2, -74.6), 60),
    ("+18005551234", "US", "", "", COUNTRY, (39.0, -93.0), 600),
    ("+16132345678", "CA", "Ontario", "Ottawa", CITY, (45.42, -75.70), 30),
    ("+442083612345", "GB", "", "London", CITY, (51.51, -0.13), 10),
    ("+447400123456", "GB", "", "", COUNTRY, (53.0, -1.5), 200),
    ("+4989123456", "DE", "", "Munich", CITY, (48.14, 11.58), 10),
    ("+33142685300", "FR", "", "Paris", CITY, (48.85, 2.35), 10),
    ("+390612345678", "IT", "", "Rome", CITY, (41.89, 12.51), 10),
    ("+34932123456", "ES", "Barcelona", "", PROVINCE, (41.39, 2.16), 40),
    ("+81312345678", "JP", "", "Tokyo", CITY, (35.69, 139.69), 20),
    ("+8225551234", "KR", "", "Seoul", CITY, (37.57, 126.98), 10),
    ("+821012345678", "KR", "", "", COUNTRY, (36.6, 127.5), 150),
    ("+911123456789", "IN", "", "New Delhi", CITY, (28.62, 77.21), 20),
    ("+919876543210", "IN", "", "", COUNTRY, (21.0, 78.0), 400),
    ("+5511987654321", "BR", "São Paulo", "", PROVINCE, (-23.2, -47.0), 80),
    ("+5491123456789", "AR", "", "Buenos Aires", CITY, (-34.61, -58.38), 15),
    ("+74951234567", "RU", "", "Moscow", CITY, (55.75, 37.62), 10),
    ("+61291234567", "AU", "", "Sydney", CITY, (-33.87, 151.21), 20),
    ("+31201234567", "NL", "", "Amsterdam", CITY, (52.37, 4.89), 10),
    ("+27110001234", "ZA", "", "Johannesburg", CITY, (-26.20, 28.04), 20),
    ("+842438251234", "VN", "Hanoi", "", PROVINCE, (21.03, 105.85), 20),
    ("+85221234567", "HK", "", "", COUNTRY, (22.3, 114.17), 20),
    ("+6561234567", "SG", "", "", COUNTRY, (1.35, 103.8), 15),
    ("+254712345678", "KE", "", "", COUNTRY, (-0.5, 37.0), 200),
    ("+12423571234", "BS", "", "", COUNTRY, (25.05, -77.4), 150),
]


@pytest.mark.parametrize(("number", "country", "province", "city", "precision", "point", "km"), KNOWN)
def test_known_places(
    number: str,
    country: str,
    province: str,
    city: str,
    precision: Precision,
    point: tuple[float, float],
    km: float,
) -> None:
    place = locate(number)
    assert (place.country, place.province, place.city) == (country, province, city)
    assert place.precision is precision
    assert place.latitude is not None and place.longitude is not None
    assert distance_km(place.latitude, place.longitude, *point) <= km
    assert place.source is PlaceSource.NUMBER


def test_the_table_covers_many_countries() -> None:
    assert len({row[1] for row in KNOWN}) >= 20


def test_a_number_of_no_country_has_no_place() -> None:
    place = locate("+80012345678")
    assert (place.country, place.latitude, place.longitude) == ("", None, None)
    assert place.precision is UNKNOWN
    assert place.area == ""


def test_a_mobile_range_that_the_data_lacks_is_placed_to_the_country_only() -> None:
    mobiles = tables.china_mobiles()
    prefix = next(p for p in range(1960000, 1970000) if mobiles.find(p) is None)
    place = locate(f"{prefix}1234")
    assert place.precision is COUNTRY
    assert (place.province, place.city, place.kind) == ("", "", NumberKind.MOBILE)
    assert place.radius_km > 500


def test_an_unassigned_number_says_the_country_only() -> None:
    place = locate("+12001234567", accept_unassigned=True)
    assert (place.country, place.precision) == ("US", COUNTRY)


def test_a_shared_area_code_covers_the_cities_that_share_it() -> None:
    place = locate("024-23456789")
    assert (place.city, place.precision) == ("沈阳", CITY)
    assert place.radius_km >= 60  # 铁岭 shares it


def test_areas_are_written_as_served_areas_are() -> None:
    assert locate("0755-87654321").area == "CN/广东/深圳"
    assert locate("0851-85551234").area == "CN/贵州"
    assert locate("+12127365000").area == "US/New York/New York"
    assert locate("+442083612345").area == "GB"


def test_a_point_of_the_edge_wins_over_the_number() -> None:
    place = with_point(locate("13800138000"), 22.60, 114.00)
    assert (place.e164, place.area) == ("+8613800138000", "CN/广东/深圳")
    assert (place.latitude, place.longitude, place.precision) == (22.60, 114.00, CITY)
    assert place.source is PlaceSource.EDGE
    assert place.radius_km == 1


def test_a_point_places_a_withheld_number() -> None:
    place = with_point(None, 40.12, -75.34)
    assert place.area.startswith("US/Pennsylvania")
    assert (place.e164, place.kind) == ("", None)


def test_a_point_in_a_city_state_is_not_its_neighbours() -> None:
    assert with_point(None, 22.28, 114.16).country == "HK"


def test_a_point_at_sea_keeps_the_numbers_country() -> None:
    place = with_point(locate("13800138000"), 0.0, -140.0)
    assert (place.country, place.province, place.precision) == ("CN", "", CITY)


@pytest.mark.parametrize(
    ("latitude", "longitude", "fields"),
    [
        (90.1, 0.0, ["latitude"]),
        (-91.0, 0.0, ["latitude"]),
        (0.0, 180.5, ["longitude"]),
        (math.nan, 0.0, ["latitude"]),
        (0.0, math.inf, ["longitude"]),
        (1000.0, -1000.0, ["latitude", "longitude"]),
    ],
)
def test_coordinates_out_of_range_name_the_field(
    latitude: float, longitude: float, fields: list[str]
) -> None:
    for refuse in (checked_point, lambda a, b, field: with_point(None, a, b, field=field)):
        with pytest.raises(InvalidArgument) as raised:
            refuse(latitude, longitude, field="call.location")
        violations = raised.value.details.field_violations
        assert [v.field for v in violations] == [f"call.location.{name}" for name in fields]


def test_every_record_of_the_phone_data_has_a_place() -> None:
    load()
    raw_offsets = {tables.china_mobiles().find(p) is not None for p in range(1300000, 1310000)}
    assert raw_offsets == {True}
    codes = tables.china_area_codes()
    assert len(codes) > 300
    assert {codes[c].city for c in ("10", "21", "22", "23")} == {"北京", "上海", "天津", "重庆"}


def test_tables_hold_sound_facts() -> None:
    places = [
        *tables.china_cities().values(),
        *tables.china_area_codes().values(),
        *tables.world().places,
        *(place for _, place in tables.countries().values()),
    ]
    for place in places:
        assert place.latitude is not None and place.longitude is not None
        checked_point(place.latitude, place.longitude)
        assert place.radius_km > 0
        assert bool(place.city) is (place.precision is CITY)
    assert all(
        3 < place.latitude < 54 and 73 < place.longitude < 136 for place in tables.china_cities().values()
    )  # type: ignore[operator]


def test_lookups_agree_with_the_phone_packages_own() -> None:
    phone = pytest.importorskip("phone").Phone()
    shown = {"江汉": "潜江", "克州": "克孜勒苏", "博州": "博尔塔拉", "巴州": "巴音郭楞"}
    for prefix in range(1300001, 2000000, 997):
        theirs = phone.find(prefix)
        ours = tables.china_mobiles().find(prefix)
        assert (theirs is None) is (ours is None), prefix
        if theirs and ours:
            name = shown.get(theirs["city"], theirs["city"].removesuffix("盟"))
            assert (ours.province, ours.city) == (theirs["province"], name)


@pytest.mark.parametrize(
    ("prefix", "found"), [(0, False), (1299999, False), (1300000, True), (9999999, False)]
)
def test_the_ends_of_the_phone_data(prefix: int, found: bool) -> None:
    assert (tables.china_mobiles().find(prefix) is not None) is found


latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)


@given(latitudes, longitudes, latitudes, longitudes)
def test_distances_are_a_metric_on_the_globe(a: float, b: float, c: float, d: float) -> None:
    km = distance_km(a, b, c, d)
    assert 0 <= km <= 20_016
    assert math.isclose(km, distance_km(c, d, a, b), abs_tol=1e-6)
    assert distance_km(a, b, a, b) == 0


def test_a_distance_known_from_elsewhere() -> None:
    # Beijing - Shanghai, about 1,068 km along the great circle
    assert math.isclose(distance_km(39.904, 116.407, 31.230, 121.474), 1068, abs_tol=5)


@settings(deadline=None)  # the first example loads the tables
@given(latitudes, longitudes)
def test_any_point_is_placed(latitude: float, longitude: float) -> None:
    place = with_point(None, latitude, longitude)
    assert (place.latitude, place.longitude) == (latitude, longitude)
    if place.country:
        near = tables.towns().nearest(latitude, longitude)
        assert near is not None and near.country == place.country


def test_an_invalid_number_is_not_placed() -> None:
    with pytest.raises(InvalidNumber):
        locate("10086")


@pytest.mark.parametrize(
    "area",
    [
        "CN",
        "CN/广东",
        "CN/广东/深圳",
        "CN/北京",
        "US/California",
        "US/New York/New York",
        "DE/Berlin",
        "JP",
        "SG",
        "HK",
    ],
)
def test_areas_that_callers_can_be_in(area: str) -> None:
    check_area("region.served_areas[0]", area)


@pytest.mark.parametrize(
    "area",
    [
        "", "/", "CN/", "/广东", "CN//深圳", " CN", "CN/ 广东", "CN/广东/深圳/福田", "广东", "XX", "cn",
        # Of another province, misspelt, with the word that the tables leave away, in another language.
        "CN/广西/深圳", "CN/广冬", "CN/广东省", "CN/Guangdong", "US/Guangdong", "x" * 1000,
    ],
)  # fmt: skip
def test_an_area_that_nobody_can_be_in_names_the_field(area: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_area("region.served_areas[3]", area)
    assert refused.value.details.field_violations[0].field == "region.served_areas[3]"
    assert len(refused.value.details.field_violations[0].description) < 200


def test_every_place_that_a_number_can_have_is_an_area() -> None:
    """Whatever `locate` says of a caller, a region may serve."""
    for place in (
        *tables.china_cities().values(),
        *tables.china_area_codes().values(),
        *tables.world().places,
    ):
        names = [name for name in (place.country, place.province, place.city) if name]
        check_area("area", "/".join(names))
