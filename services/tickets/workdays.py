"""Public holidays and weekend days that were made workdays, from the holidays library."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import lru_cache

import holidays

#: Years around the present for which they are computed; later ones are not announced yet anyway.
YEARS_BACK, YEARS_AHEAD = 5, 3


def is_known(country: str) -> bool:
    """Whether the library knows a country, ISO 3166."""
    return country in holidays.list_supported_countries()


@lru_cache(maxsize=64)
def public_days(country: str, year: int) -> tuple[Mapping[date, str], frozenset[date]]:
    """(holidays with their names, weekend days that are workdays) of the years around `year`. KeyError for a
    country that the library doesn't know."""
    if not is_known(country):
        raise KeyError(country)
    years = range(year - YEARS_BACK, year + YEARS_AHEAD + 1)
    found = holidays.country_holidays(country, years=years)
    named = dict(found)  # asking `found` itself for a day would make it add that day's year
    return named, frozenset(day for day in found.weekend_workdays if day not in named)
