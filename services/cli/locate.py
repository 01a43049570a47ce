"""`callmesh locate`: where telephone numbers belong, as CSV. Needs no server."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, TextIO

import typer

#: Columns of the output, in order.
HEADER = ("number", "country", "province", "city", "latitude", "longitude", "precision")
#: A longer line of standard input is not read whole; it cannot be a number. Characters.
LINE_CHARACTERS_MAX = 1024
#: Of a text that is no number, so much is repeated in its row. Characters.
SHOWN_CHARACTERS_MAX = 64
#: At least one number was refused.
EXIT_REFUSED = 1

Numbers = Annotated[
    list[str] | None,
    typer.Argument(
        help="Telephone numbers; none, or -, reads one a line from standard input.", show_default=False
    ),
]
Country = Annotated[
    str, typer.Option("--country", help="National numbers are of this country (ISO 3166-1 alpha-2).")
]


def locate(numbers: Numbers = None, country: Country = "CN") -> None:
    """Print where telephone numbers belong: country, province, city, coordinates, and how finely it is known.

    A number that cannot be a caller's gives a row of precision UNKNOWN and a line on standard error; the rest
    goes on, and the exit status is 1.
    """
    # the tables take a third of a second to load: not at the cost of every other command
    from chassis.errors import InvalidArgument, shorten
    from routing.geo import locate as locate_number

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Chinese names are UTF-8 whatever the locale; a lone surrogate from the shell must not end it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        locate_number("13800138000", default_country=country)
    except InvalidArgument as error:
        if error.values["field"] == "default_country":
            raise typer.BadParameter(
                "must be an ISO 3166-1 alpha-2 code such as CN", param_hint="--country"
            ) from None
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    refused = False
    for line, number in _inputs(numbers):
        try:
            place = locate_number(number, default_country=country)
        except InvalidArgument as error:
            refused = True
            print(f"line {line}: {error}", file=sys.stderr)
            writer.writerow((shorten(number, SHOWN_CHARACTERS_MAX), "", "", "", "", "", "UNKNOWN"))
            continue
        latitude, longitude = _degrees(place.latitude), _degrees(place.longitude)
        row = (
            place.e164,
            place.country,
            place.province,
            place.city,
            latitude,
            longitude,
            place.precision.value,
        )
        writer.writerow(row)
    if refused:
        raise typer.Exit(EXIT_REFUSED)


def _inputs(numbers: list[str] | None) -> Iterator[tuple[int, str]]:
    """(line or position from 1, text); blank lines are passed over but counted."""
    from_arguments = numbers and numbers != ["-"]
    lines: Iterable[str] = numbers if numbers and from_arguments else _lines(sys.stdin)
    for line, text in enumerate(lines, 1):
        stripped = text.strip()
        if stripped or from_arguments:
            yield line, stripped


def _lines(source: TextIO) -> Iterator[str]:
    """Lines of the input, each cut at `LINE_CHARACTERS_MAX`; bytes that are no UTF-8 do not end the run."""
    if hasattr(source, "reconfigure"):
        source.reconfigure(encoding="utf-8-sig", errors="replace")
    while text := source.readline(LINE_CHARACTERS_MAX):
        rest = text
        while rest and not rest.endswith("\n"):
            rest = source.readline(LINE_CHARACTERS_MAX)
        yield text


def _degrees(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
