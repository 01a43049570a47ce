"""Text → number. What an edge sends as the caller's number is checked here, and nowhere else.

Rules:
1. A SIP or tel URI is reduced to its user part; an extension is dropped, in China also one behind a dash
   ("010-65551234-8001").
2. What holds anything but digits and the usual separators is garbage. Error texts never repeat a number: it
   is personal. They do name emergency numbers and short codes, which are nobody's.
3. National numbers are read by the default country, "+" and international prefixes win over it.
4. A number that no range of its numbering plan holds is refused, or with `accept_unassigned` taken as one of
   unknown kind: numbering plans grow faster than the data about them.
5. A ported number keeps the place of its range: portability lists are not public. In China only the operator
   changes with porting, not the city.
"""

from __future__ import annotations

import functools
import re

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, ValidationResult
from phonenumbers.shortnumberinfo import connects_to_emergency_number, is_valid_short_number_for_region

from chassis.errors import InvalidArgument
from routing.geo.model import InvalidNumber, NumberFault, NumberKind, ParsedNumber
from routing.geo.plans import country_code_of, find_kind, is_geographic
from routing.geo.tables import china_mobiles

#: Longest text looked at, in characters: a SIP URI with a long host.
TEXT_CHARACTERS_MAX = 256
#: Longest number taken without the full parser, in characters.
PLAIN_CHARACTERS_MAX = 40
#: Prefixes of Chinese mobile numbers of which is remembered what they tell; there are about half a million.
CHINA_PREFIXES_MAX = 100_000
#: By a short name: each number is compared with it.
_UNASSIGNED = NumberKind.UNASSIGNED
#: Numbers of at most so many digits are short codes if anything.
SHORT_CODE_DIGITS_MAX = 6

_URI = re.compile(r"(?:tel|sips?|callto):([^@;?]*)(?:[@;?].*)?", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(
    r"(?P<number>[\d\s()（）\[\].．/~\-‐-―−ー－+＋\u00ad\u200b\u2060]+)"
    r"(?:(?:;?\s*(?:ext?|extn|x|ｘ|#|转|轉)[.:=：]?\s*)\d{1,8}#?)?",
    re.IGNORECASE,
)
#: A Chinese fixed line with an extension behind a dash.
_CHINA_EXTENDED = re.compile(
    r"(?P<number>(?:(?:[+＋]|00)86[\s\-－]*[(（]?0?|[(（]?0)(?:10|[2-9][0-9]{1,2})[)）]?[\s\-－]*[2-8][0-9]{6,7})"
    r"\s*[\-－]\s*[0-9]{1,6}"
)
#: The commonest case, taken without a parser's detour. [0-9]: \d would take any script's digits.
_CHINA_MOBILE = re.compile(r"(?:\+|00)?(86)?(1[3-9][0-9]{9})")
_E164 = re.compile(r"\+[1-9][0-9]{5,14}")
#: What people write between digits.
_SEPARATORS = str.maketrans("", "", " -()./\t\n\r")
#: Ranges of mobile numbers that the numbering plan has given out.
_CHINA_MOBILE_RANGES = re.compile(
    r"1740[0-5][0-9]{6}|1(?:[38][0-9]|4[57]|[59][0-35-9]|6[25-7]|7[0-35-8])[0-9]{8}"
)
#: Service numbers of China that the library does not list one by one.
_CHINA_SHORT_CODE = re.compile(r"9[56][0-9]{3,4}|1[0-2][0-9]{1,3}")
#: Lengths of China's numbers, which the library takes loosely: what is wrong with a national number.
_CHINA_FAULTS = (
    (
        re.compile(r"1[3-9][0-9]{0,8}"),
        (NumberFault.TOO_SHORT, "is too short: a Chinese mobile number has 11 digits"),
    ),
    (
        re.compile(r"1[3-9][0-9]{10,}"),
        (NumberFault.TOO_LONG, "is too long: a Chinese mobile number has 11 digits"),
    ),
    (re.compile(r"[2-8][0-9]{6,7}"), (NumberFault.NO_AREA_CODE, "is a local number without its area code")),
)
#: Emergency numbers that are called so by people in other countries too.
_EMERGENCY = frozenset({"110", "112", "119", "120", "122", "911", "999"})

_PARSE_FAULTS = {
    NumberParseException.INVALID_COUNTRY_CODE: (NumberFault.NO_COUNTRY, "has no known country calling code"),
    NumberParseException.NOT_A_NUMBER: (NumberFault.GARBAGE, "is not a telephone number"),
    NumberParseException.TOO_SHORT_AFTER_IDD: (NumberFault.TOO_SHORT, "ends after its international prefix"),
    NumberParseException.TOO_SHORT_NSN: (NumberFault.TOO_SHORT, "is too short to be a telephone number"),
    NumberParseException.TOO_LONG: (NumberFault.TOO_LONG, "is too long to be a telephone number"),
}
_LENGTH_FAULTS = {
    ValidationResult.TOO_SHORT: (NumberFault.TOO_SHORT, "is too short for its country's numbering plan"),
    ValidationResult.TOO_LONG: (NumberFault.TOO_LONG, "is too long for its country's numbering plan"),
    ValidationResult.INVALID_LENGTH: (
        NumberFault.TOO_SHORT,
        "has a length that its country's plan does not have",
    ),
    ValidationResult.IS_POSSIBLE_LOCAL_ONLY: (
        NumberFault.NO_AREA_CODE,
        "is a local number without its area code",
    ),
    ValidationResult.INVALID_COUNTRY_CODE: (NumberFault.NO_COUNTRY, "has no known country calling code"),
}


def parse_number(
    text: str, *, default_country: str = "CN", field: str = "number", accept_unassigned: bool = False
) -> ParsedNumber:
    """The number that `text` means, national numbers read as of `default_country` (ISO 3166-1 alpha-2, or ""
    to take international ones only).

    Raises InvalidNumber naming `field`, with a `NumberFault`; InvalidArgument for an unknown default country.
    """
    china = _CHINA_MOBILE.fullmatch(text)
    if china and (china[1] or (default_country == "CN" and text[:2] != "00" and text[0] != "+")):
        return _china_mobile(china[2], field, accept_unassigned)
    quick = _quick(text, default_country)
    if quick:
        return quick
    number = _cleaned(text, default_country, field)
    if number[0] not in "+＋":
        _refuse_short_code(number, default_country, field)
    try:
        parsed = phonenumbers.parse(number, _checked_country(default_country))
    except NumberParseException as error:
        raise _invalid(field, *_PARSE_FAULTS[error.error_type]) from None
    return _checked(parsed, field, accept_unassigned)


def _quick(text: str, default_country: str) -> ParsedNumber | None:
    """Plainly written numbers that are in a range of their plan: nearly all. None leaves it to the parser."""
    if len(text) > PLAIN_CHARACTERS_MAX:
        return None
    dialled = text.translate(_SEPARATORS)
    if default_country == "CN" and dialled[:1] == "0":
        dialled = "+" + dialled[2:] if dialled[:2] == "00" else "+86" + dialled[1:]
    if not _E164.fullmatch(dialled):
        return None
    code = country_code_of(dialled[1:5])
    found = find_kind(code, dialled[1 + len(str(code)) :]) if code else None
    return _parsed(dialled, code, *found) if code and found else None


def _parsed(e164: str, country_code: int, country: str, kind: NumberKind) -> ParsedNumber:
    return ParsedNumber(
        e164=e164,
        country=country,
        kind=kind,
        country_code=country_code,
        is_geographic=is_geographic(kind, country_code),
    )


def _china_mobile(national: str, field: str, accept_unassigned: bool) -> ParsedNumber:
    kind, geographic = _china_range(national[:7])
    if kind is _UNASSIGNED and not accept_unassigned:
        raise _invalid(field, NumberFault.UNASSIGNED, "is in no range of China's mobile numbers")
    return ParsedNumber(
        e164="+86" + national, country="CN", kind=kind, country_code=86, is_geographic=geographic
    )


@functools.lru_cache(maxsize=CHINA_PREFIXES_MAX)
def _china_range(prefix: str) -> tuple[NumberKind, bool]:
    """What a Chinese mobile number of these seven digits is, and whether that tells where: ranges are given
    out by ten thousand numbers or more.
    """
    assigned = _CHINA_MOBILE_RANGES.fullmatch(prefix + "0000") or china_mobiles().find(int(prefix))
    kind = NumberKind.MOBILE if assigned else _UNASSIGNED
    return kind, is_geographic(kind, 86)


def _cleaned(text: str, default_country: str, field: str) -> str:
    """The part of the text that is dialled."""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise _invalid(field, NumberFault.TOO_LONG, f"is longer than {TEXT_CHARACTERS_MAX} characters")
    uri = _URI.fullmatch(text.strip())
    number = (uri[1] if uri else text).strip()
    if not number:
        raise _invalid(field, NumberFault.EMPTY, "is empty")
    extended = _CHINA_EXTENDED.fullmatch(number)
    if extended and (default_country == "CN" or number[0] in "+＋"):
        return extended["number"]
    match = _NUMBER.fullmatch(number)
    if not match:
        raise _invalid(field, NumberFault.GARBAGE, "holds characters that no telephone number has")
    return match["number"].strip()


def _refuse_short_code(number: str, country: str, field: str) -> None:
    """Raises InvalidNumber for emergency numbers and service numbers: nobody calls from one."""
    digits = phonenumbers.normalize_digits_only(number)
    if len(digits) > SHORT_CODE_DIGITS_MAX:
        return
    if digits in _EMERGENCY or (country and connects_to_emergency_number(digits, country)):
        raise _invalid(field, NumberFault.EMERGENCY, f"{digits} is an emergency number, not a caller's")
    if _is_short_code(digits, country):
        raise _invalid(field, NumberFault.SHORT_CODE, f"{digits} is a short code, not a caller's number")


def _is_short_code(digits: str, country: str) -> bool:
    if country == "CN" and _CHINA_SHORT_CODE.fullmatch(digits):
        return True
    if not country or not digits:
        return False
    code = phonenumbers.country_code_for_region(country)
    short = PhoneNumber(country_code=code, national_number=int(digits))
    return bool(is_valid_short_number_for_region(short, country))


@functools.lru_cache(maxsize=512)
def _checked_country(country: str) -> str | None:
    if country and country not in phonenumbers.SUPPORTED_REGIONS:
        raise InvalidArgument(
            field="default_country", why="must be an ISO 3166-1 alpha-2 code such as CN, or empty"
        )
    return country or None


def _checked(parsed: PhoneNumber, field: str, accept_unassigned: bool) -> ParsedNumber:
    code = parsed.country_code or 0
    national = phonenumbers.national_significant_number(parsed)
    found = find_kind(code, national)
    if found is None:
        _refuse_invalid(parsed, field)
        if code == 86 and _CHINA_MOBILE.fullmatch(national):
            return _china_mobile(national, field, accept_unassigned)
        if not accept_unassigned:
            raise _invalid(field, NumberFault.UNASSIGNED, "is in no range of its country's numbering plan")
        region = phonenumbers.region_code_for_country_code(code)
        found = "" if region in ("001", "ZZ") else region, NumberKind.UNASSIGNED
    return _parsed(f"+{code}{national}", code, *found)


def _refuse_invalid(parsed: PhoneNumber, field: str) -> None:
    """Raises InvalidNumber if it is a short code behind a country code, or has a length that cannot be."""
    region = phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    national = phonenumbers.national_significant_number(parsed)
    _refuse_short_code(national, "" if region in ("001", "ZZ") else region, field)
    if region == "CN":
        for pattern, fault in _CHINA_FAULTS:
            if pattern.fullmatch(national):
                raise _invalid(field, *fault)
    length_fault = _LENGTH_FAULTS.get(phonenumbers.is_possible_number_with_reason(parsed))
    if length_fault:
        raise _invalid(field, *length_fault)


def _invalid(field: str, fault: NumberFault, why: str) -> InvalidNumber:
    return InvalidNumber(field=field, why=why, fault=fault.value)
