"""Numbering plans with their patterns compiled once.

phonenumbers compiles a pattern anew whenever the interpreter's pattern cache (512) has dropped it, which with
callers of all countries is most of the time: 2,000 lookups a second. Its metadata and its rules are used here
as they are, fifty times faster; what is found here is what `phonenumbers.number_type` and
`region_code_for_number` find, and a test holds the two together.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata
from phonenumbers.phonemetadata import PhoneNumberDesc

from routing.geo.model import NumberKind

#: Country codes whose mobile numbers tell a place.
_GEOGRAPHIC_MOBILES = frozenset({52, 54, 55, 62, 86})
_GEOGRAPHIC_KINDS = frozenset({NumberKind.FIXED, NumberKind.FIXED_OR_MOBILE})


class _Range(NamedTuple):
    """What numbers of one kind look like."""

    kind: NumberKind
    pattern: re.Pattern[str]
    lengths: frozenset[int]


class _Plan:
    """The numbering plan of one country or territory."""

    def __init__(self, country: str, metadata: PhoneMetadata) -> None:
        self.country = country
        self.leading_digits = re.compile(metadata.leading_digits) if metadata.leading_digits else None
        general = _range(NumberKind.UNASSIGNED, metadata.general_desc)
        self._general = general or _Range(NumberKind.UNASSIGNED, re.compile("(?!)"), frozenset())
        special = (
            (NumberKind.PREMIUM, metadata.premium_rate),
            (NumberKind.TOLL_FREE, metadata.toll_free),
            (NumberKind.SHARED_COST, metadata.shared_cost),
            (NumberKind.VOIP, metadata.voip),
            (NumberKind.PERSONAL, metadata.personal_number),
            (NumberKind.PAGER, metadata.pager),
            (NumberKind.COMPANY, metadata.uan),
            (NumberKind.VOICEMAIL, metadata.voicemail),
        )
        self._special = [found for kind, desc in special if (found := _range(kind, desc))]
        self._fixed = _range(NumberKind.FIXED, metadata.fixed_line)
        self._mobile = _range(NumberKind.MOBILE, metadata.mobile)
        self._same = metadata.same_mobile_and_fixed_line_pattern

    def kind(self, national: str) -> NumberKind | None:
        """Of a national number, None when it is in no range."""
        if not _fits(self._general, national):
            return None
        for special in self._special:
            if _fits(special, national):
                return special.kind
        if _fits(self._fixed, national):
            both = self._same or _fits(self._mobile, national)
            return NumberKind.FIXED_OR_MOBILE if both else NumberKind.FIXED
        return NumberKind.MOBILE if not self._same and _fits(self._mobile, national) else None


def _range(kind: NumberKind, desc: PhoneNumberDesc | None) -> _Range | None:
    if desc is None or not desc.national_number_pattern:
        return None
    return _Range(kind, re.compile(desc.national_number_pattern), frozenset(desc.possible_length))


def _fits(found: _Range | None, national: str) -> bool:
    if found is None or (found.lengths and len(national) not in found.lengths):
        return False
    return found.pattern.fullmatch(national) is not None


@functools.cache
def _plans(country_code: int) -> tuple[_Plan, ...]:
    plans = []
    for country in COUNTRY_CODE_TO_REGION_CODE[country_code]:
        if country == "001":
            metadata = PhoneMetadata.metadata_for_nongeo_region(country_code)
        else:
            metadata = PhoneMetadata.metadata_for_region(country)
        if metadata is not None:
            plans.append(_Plan("" if country == "001" else country, metadata))
    return tuple(plans)


def country_code_of(digits: str) -> int | None:
    """The country calling code that an international number without its "+" begins with."""
    for length in (1, 2, 3):
        if digits[:length].isdecimal() and (code := int(digits[:length])) in COUNTRY_CODE_TO_REGION_CODE:
            return code
    return None


def find_kind(country_code: int, national: str) -> tuple[str, NumberKind] | None:
    """Country ("" for a code of no country) and kind of a national number, None when it is in no range."""
    plans = _plans(country_code)
    for plan in plans:
        if len(plans) > 1 and plan.leading_digits is not None:
            if not plan.leading_digits.match(national):
                continue
            kind = plan.kind(national)
            return (plan.country, kind) if kind else None
        kind = plan.kind(national)
        if kind:
            return plan.country, kind
    return None


def is_geographic(kind: NumberKind, country_code: int) -> bool:
    """Whether the plan ties numbers of that kind to a place."""
    return kind in _GEOGRAPHIC_KINDS or (kind is NumberKind.MOBILE and country_code in _GEOGRAPHIC_MOBILES)
