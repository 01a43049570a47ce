"""Public holidays, by the calendars of the `holidays` library."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import holidays


def holidays_of(country: str) -> Callable[[datetime], bool]:
    """Whether a local time falls on a public holiday of a country ("CN") or a part of one ("US-CA"), moved
    days off included. ValueError for one that is not known.
    """
    name, _, part = country.partition("-")
    try:
        known = holidays.country_holidays(name, subdiv=part or None)
    except NotImplementedError:
        raise ValueError(f"there is no calendar of public holidays for {country!r}") from None
    return lambda local: local.date() in known
