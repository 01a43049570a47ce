"""How fast numbers are placed, and in how much memory.

Run as `python -m bench.locate`. Five mixes of numbers are located one after the other in this process, by its
own CPU time, so that other work on the machine does not blur the result; the memory is what the process holds
after loading and all lookups, less what it held before it imported anything of routing. Prints a table and,
by country, how finely numbers are placed; writes build/reports/locate.json; exits with 1 when a mix is slower
than `LOOKUPS_PER_SECOND_MIN` or the memory above `MEMORY_MB_MAX`.

`python -m bench.locate --precision docs/numbers.md` writes the page about precision: for every country a
sample of numbers around the numbering plan's own examples, placed one by one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

from bench.reporting import write_report  # noqa: E402

if TYPE_CHECKING:
    from routing.geo import Located

#: The limits.
LOOKUPS_PER_SECOND_MIN = 20_000
MEMORY_MB_MAX = 150
#: Numbers a country for the page about precision, and tries to make one for each kind.
SAMPLE, TRIES = 300, 400
PAGE = """# How finely a number is placed, by country

Written by `python -m bench.locate --precision docs/numbers.md`; do not edit. For each country up to 300
numbers in use, made from the numbering plan's own examples of fixed and mobile numbers with other digits
behind (China's mobile prefixes and area codes as callers have them). `radius` is the median over the sample
of how far, in kilometres, the caller may be from the coordinates given: placement counts distance only beyond
it. Where numbers were ported, the number says where it was issued: an edge that knows better gives the place
itself (`call.location`), which wins.

| country | numbers | city | province | country only | unknown | radius, km |
|---|---|---|---|---|---|---|"""
#: Numbers of each mix; each mix is timed so many times and the median counts.
NUMBERS = 20_000
ROUNDS = 5
SEED = 7


def resident_mb() -> float:
    """Memory that this process holds now, MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def china_mobiles(draw: random.Random) -> list[str]:
    """Of the prefixes in use, as callers have them."""
    prefixes = [
        f"1{x}" for x in (*range(30, 40), *range(50, 54), *range(55, 60), *range(80, 90), 66, 77, 98, 99)
    ]
    return [f"+86{draw.choice(prefixes)}{draw.randrange(10**8):08d}" for _ in range(NUMBERS)]


def china_fixed(draw: random.Random) -> list[str]:
    """National form with separators, the large cities' area codes."""
    codes = (
        "010",
        "020",
        "021",
        "022",
        "023",
        "024",
        "025",
        "027",
        "028",
        "029",
        "0755",
        "0571",
        "0512",
        "0898",
    )
    return [f"{draw.choice(codes)}-{draw.randrange(2, 9)}{draw.randrange(10**7):07d}" for _ in range(NUMBERS)]


def north_america(draw: random.Random) -> list[str]:
    """All area codes of the states; exchanges at random."""
    codes = (201, 202, 206, 212, 213, 214, 303, 305, 312, 404, 415, 416, 512, 604, 617, 702, 713, 808, 907)
    numbers = (
        f"+1{draw.choice(codes)}{draw.randrange(2, 10)}{draw.randrange(10**6):06d}"
        for _ in range(NUMBERS * 2)
    )
    return valid(numbers)


def world(draw: random.Random) -> list[str]:
    """The numbering plans' example numbers, all countries and kinds alike."""
    import phonenumbers

    examples = [
        phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in (0, 1, 3, 4, 6)
        if (number := phonenumbers.example_number_for_type(region, kind))
    ]
    return valid(draw.choices(examples, k=NUMBERS))


def valid(numbers: collections.abc.Iterable[str]) -> list[str]:
    """Those that are numbers in use, at most `NUMBERS`."""
    import phonenumbers

    kept = (n for n in numbers if phonenumbers.is_valid_number(phonenumbers.parse(n)))
    return [n for n, _ in zip(kept, range(NUMBERS), strict=False)]


def speed(numbers: Sequence[str]) -> tuple[float, list[Located]]:
    """Lookups a second (median of the rounds), and what was found."""
    from routing.geo import InvalidNumber, locate

    rates: list[float] = []
    found: list[Located] = []
    for _ in range(ROUNDS):
        found = []
        started = time.process_time()
        for number in numbers:
            try:
                found.append(locate(number))
            except InvalidNumber:
                continue
        rates.append(len(numbers) / (time.process_time() - started))
    return statistics.median(rates), found


def precision_table(found: Sequence[Located]) -> list[str]:
    """Of the countries seen most: shares by precision."""
    by_country: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for place in found:
        by_country[place.country or "none"][place.precision.value] += 1
    largest = sorted(by_country.items(), key=lambda item: (-item[1].total(), item[0]))[:30]
    shares = (
        (
            country,
            counts.total(),
            *(counts[p] / counts.total() for p in ("CITY", "PROVINCE", "COUNTRY", "UNKNOWN")),
        )
        for country, counts in largest
    )
    return [f"{country:8}{n:8}{a:8.0%}{b:10.0%}{c:9.0%}{d:9.0%}" for country, n, a, b, c, d in shares]


def sample_of(country: str, draw: random.Random) -> list[str]:
    """Up to `SAMPLE` numbers in use of one country: the plan's examples of what callers have, with other last
    digits, so that as many ranges are met as there are; of China and North America as callers have them.
    """
    import phonenumbers

    if country == "CN":
        return draw.sample(china_mobiles(draw), SAMPLE * 2 // 3) + draw.sample(china_fixed(draw), SAMPLE // 3)
    found: list[str] = []
    for kind in (0, 1, 2):
        example = phonenumbers.example_number_for_type(country, kind)
        if example is None:
            continue
        digits = phonenumbers.national_significant_number(example)
        for _ in range(TRIES):
            kept = draw.randrange(1, max(2, len(digits) - 3))
            rest = "".join(str(draw.randrange(10)) for _ in digits[kept:])
            found.append(f"+{example.country_code}{digits[:kept]}{rest}")
    numbers = {n for n in found if phonenumbers.region_code_for_number(phonenumbers.parse(n)) == country}
    in_use = valid(sorted(numbers))
    return draw.sample(in_use, min(SAMPLE, len(in_use)))


def precision_page() -> list[str]:
    """The page about precision, by country, in Markdown."""
    import phonenumbers

    from routing.geo import InvalidNumber, locate

    lines = PAGE.splitlines()
    for country in sorted(phonenumbers.SUPPORTED_REGIONS):
        counts: collections.Counter[str] = collections.Counter()
        radius: list[int] = []
        for number in sample_of(country, random.Random(f"{SEED}:{country}")):
            with contextlib.suppress(InvalidNumber):
                place = locate(number)
                counts[place.precision.value] += 1
                radius.append(place.radius_km)
        if counts:
            total = counts.total()
            shares = [f"{counts[p] / total:.0%}" for p in ("CITY", "PROVINCE", "COUNTRY", "UNKNOWN")]
            row = [country, str(total), *shares, f"{statistics.median(radius):.0f}"]
            lines.append(f"| {' | '.join(row)} |")
    return lines


def run() -> dict[str, float | bool]:
    """The figures, by name."""
    before_mb, started = resident_mb(), time.perf_counter()
    from routing import geo

    geo.load()
    figures: dict[str, float | bool] = {"load_seconds": round(time.perf_counter() - started, 3)}
    figures["memory_after_load_mb"] = round(resident_mb() - before_mb, 1)
    mixes = {f.__name__: f(random.Random(SEED)) for f in (china_mobiles, china_fixed, north_america, world)}
    mixed = [number for numbers in zip(*mixes.values(), strict=False) for number in numbers]
    in_numbers_mb = resident_mb()
    everything: list[Located] = []
    for name, numbers in {**mixes, "mixed": mixed[:NUMBERS]}.items():
        rate, found = speed(numbers)
        figures[f"{name}_lookups_per_second"] = round(rate)
        figures[f"{name}_placed_ratio"] = round(len(found) / len(numbers), 4)
        everything += found if name != "mixed" else []
    table = precision_table(everything)
    everything.clear()
    # what the lookups left behind: the numbers made for the bench are not the product's
    figures["memory_mb"] = round(figures["memory_after_load_mb"] + max(0.0, resident_mb() - in_numbers_mb), 1)
    rates = [value for name, value in figures.items() if name.endswith("lookups_per_second")]
    figures["ok"] = min(rates) >= LOOKUPS_PER_SECOND_MIN and figures["memory_mb"] <= MEMORY_MB_MAX
    print("country  numbers    city  province  country  unknown", *table, sep="\n")
    return figures


def main() -> int:
    """Prints and writes the figures; the exit status says whether the limits were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "reports" / "locate.json")
    parser.add_argument("--precision", type=Path, help="write the page about precision there, and end")
    arguments = parser.parse_args()
    if arguments.precision:
        arguments.precision.write_text("\n".join(precision_page()) + "\n")
        return 0
    figures = run()
    print()
    for name, value in figures.items():
        print(f"{name:36}{value:>12}")
    return write_report(figures, arguments.report)


if __name__ == "__main__":
    sys.exit(main())
