"""What people type, made comparable: telephone numbers, e-mail addresses, names. Pure.

A *claim* is the comparable form of something that at most one live customer may own: "tel:+8613812345678",
"mail:li@example.com", "ext:billing:4711". Two inputs that mean the same give the same claim.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import phonenumbers

#: Longest text that is looked at as a number; people type spaces, brackets and a country in words at most.
NUMBER_CHARACTERS_MAX = 64
#: RFC 5321's limit for a forward path.
EMAIL_BYTES_MAX = 254
EMAIL_LOCAL_BYTES_MAX = 64
#: How often a number's E.164 form is read again until it stays the same.
READINGS_MAX = 4
#: Typed numbers whose E.164 form is remembered: reading one costs a fifth of a screen pop.
NUMBERS_REMEMBERED_MAX = 20_000

_CHINESE_MOBILE = re.compile(r"1[3-9][0-9]{9}")
_PLAIN_EMAIL = re.compile(r"[a-z0-9]+([._+-][a-z0-9]+)*@[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")
_COUNTRY = re.compile(r"[A-Z]{2}")
_DOMAIN_LABEL = re.compile(r"[^\W_](?:(?:[^\W_]|-)*[^\W_])?")
_SYSTEM = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TYPEABLE = re.compile(
    r"[\d+()\[\]./\-\u2010-\u2015\u2212\u30fc\uff0d\u00b7\u3000\s\u200b\u200e\u200f\u2060]+"
)
# An amount's decimals: "138123456780" would pass for a number, and be another's.
_DECIMALS = re.compile(r"\+?\d{5,}\.0+")
# What an input method for Chinese or Japanese makes of Latin signs: the whole block of full-width ones, and
# its full stops, which are the dots of a domain.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3002: ".", 0xFF61: "."}
# Marks that editors and messengers leave around copied numbers.
_INVISIBLE = dict.fromkeys(
    map(ord, "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff")
)

_WHY_NOT = {
    phonenumbers.ValidationResult.TOO_SHORT: "is too short for a number",
    phonenumbers.ValidationResult.TOO_LONG: "is too long for a number",
    phonenumbers.ValidationResult.INVALID_COUNTRY_CODE: "has a country code that does not exist",
    phonenumbers.ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "lacks its area code",
    phonenumbers.ValidationResult.INVALID_LENGTH: "has a length that no number of its country has",
}


class NotIdentifiable(ValueError):
    """The text cannot be what it should be; the message says why, to follow a field's name."""


def country(text: str) -> str:
    """An ISO 3166-1 alpha-2 code that numbering plans know, in upper case; NotIdentifiable otherwise."""
    code = text.strip().upper()
    if not _COUNTRY.fullmatch(code) or code not in phonenumbers.SUPPORTED_REGIONS:
        raise NotIdentifiable("must be a two-letter country code such as CN")
    return code


def is_typed_number(text: str) -> bool:
    """Whether a text holds nothing but digits and what people write between them."""
    return bool(_TYPEABLE.fullmatch(_readable(text)))


def digit_readings(text: str, default_country: str) -> tuple[str, ...]:
    """The digits of a number, or of a part of one, in every way in which they may be meant: as typed,
    without the prefix for abroad, without the country's code, without the zero before an area code.
    """
    typed = _readable(text)
    digits = "".join(str(unicodedata.digit(c)) for c in typed if c.isdigit())
    code = str(phonenumbers.country_code_for_region(default_country))
    abroad = digits.removeprefix("00") if typed.startswith(("+", "00")) else ""
    if abroad:
        lengths = (n for n in (1, 2, 3) if int(abroad[:n]) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE)
        national = abroad[next(lengths, 0) :]
    else:
        national = digits.removeprefix(code)
    readings = (digits, abroad, national, national.lstrip("0"), digits.lstrip("0"))
    return tuple(dict.fromkeys(filter(None, readings)))


def _readable(text: str) -> str:
    """A typed text without signs that only look different."""
    return unicodedata.normalize("NFKC", text[: NUMBER_CHARACTERS_MAX + 1].translate(_INVISIBLE)).strip()


def phone_number(text: str, default_country: str) -> str:
    """The E.164 form of a number as people type it: national or international, spaces, brackets, full-width
    digits.

    `default_country` is what a number without "+" belongs to. NotIdentifiable for what can be no number:
    letters, an extension, a length that the country does not have, a short code. Numbering plans change
    often, so a number only has to be possible, not known to be given out. The form is stable: put in again,
    it comes out the same.
    """
    # Most numbers of most files; a test holds that the long way says the same.
    if text.isascii():
        if default_country == "CN" and _CHINESE_MOBILE.fullmatch(text):
            return "+86" + text
        if text.startswith("+86") and _CHINESE_MOBILE.fullmatch(text, 3):
            return text
    return _read_number(text, default_country)


@lru_cache(maxsize=NUMBERS_REMEMBERED_MAX)
def _read_number(text: str, default_country: str) -> str:
    typed = _readable(text)
    if not typed:
        raise NotIdentifiable("must not be empty")
    if len(text) > NUMBER_CHARACTERS_MAX:
        raise NotIdentifiable(f"must be at most {NUMBER_CHARACTERS_MAX} characters, got {len(text)}")
    if not _TYPEABLE.fullmatch(typed):
        raise NotIdentifiable("may hold only digits, + and separators; an extension does not belong here")
    if _DECIMALS.fullmatch(typed):
        raise NotIdentifiable("ends in decimals, as spreadsheets write amounts: format its column as text")
    try:
        parsed = phonenumbers.parse(typed, default_country)
    except phonenumbers.NumberParseException:
        raise NotIdentifiable("is not a telephone number") from None
    result = phonenumbers.is_possible_number_with_reason(parsed)
    if result != phonenumbers.ValidationResult.IS_POSSIBLE:
        raise NotIdentifiable(_WHY_NOT.get(result, "is not a telephone number"))
    return _settled(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))


def _settled(e164: str) -> str:
    # A national prefix typed after the country code ("+86 0138…") goes only when the result is read again.
    for _ in range(READINGS_MAX):
        parsed = phonenumbers.parse(e164, None)
        if phonenumbers.is_possible_number_with_reason(parsed) != phonenumbers.ValidationResult.IS_POSSIBLE:
            break
        again = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
        if again == e164:
            return e164
        e164 = again
    raise NotIdentifiable("is not a telephone number")


def email_address(text: str) -> str:
    """The address in NFC with its domain in lower case; NotIdentifiable for what can be no address."""
    if len(text) <= EMAIL_LOCAL_BYTES_MAX and _PLAIN_EMAIL.fullmatch(text):
        # Most addresses of most files; a test holds that the long way says the same.
        return text
    read = text[: EMAIL_BYTES_MAX + 1].translate(_INVISIBLE).translate(_NARROW)
    typed = unicodedata.normalize("NFC", read).strip()
    if not typed:
        raise NotIdentifiable("must not be empty")
    if len(text) > EMAIL_BYTES_MAX or len(typed.encode()) > EMAIL_BYTES_MAX:
        raise NotIdentifiable(f"must be at most {EMAIL_BYTES_MAX} bytes")
    local, at, domain = typed.rpartition("@")
    domain = unicodedata.normalize("NFKC", domain).lower()
    if not at or not local or "." not in domain:
        raise NotIdentifiable("must have the form name@domain")
    if len(local.encode()) > EMAIL_LOCAL_BYTES_MAX or not _is_local(local):
        raise NotIdentifiable("has a part before the @ that no address has")
    if not all(len(label) <= 63 and _DOMAIN_LABEL.fullmatch(label) for label in domain.split(".")):
        raise NotIdentifiable("has a domain that cannot exist")
    return f"{local}@{domain}"


def _is_local(local: str) -> bool:
    if local.startswith(".") or local.endswith(".") or ".." in local:
        return False
    return not any(c in '@()<>[]:;,\\"' or unicodedata.category(c)[0] in "CZ" for c in local)


def external_system(text: str) -> str:
    """The name of another system; NotIdentifiable otherwise."""
    if not _SYSTEM.fullmatch(text):
        raise NotIdentifiable("must be 1 to 64 of a-z, 0-9, '.', '_' and '-'")
    return text


def claim_of_number(e164: str) -> str:
    """The claim that a normalised number is."""
    return f"tel:{e164}"


def claim_of_email(address: str) -> str:
    """The claim that a normalised address is; whole in casefold, because nobody runs case-sensitive
    mailboxes.
    """
    if address.isascii():
        return f"mail:{address.lower()}"
    return f"mail:{unicodedata.normalize('NFC', address.casefold())}"


def claim_of_external(system: str, id: str) -> str:
    """The claim that an id in another system is."""
    return f"ext:{system}:{id}"


def text_problem(text: str, *, least: int, most: int, multiline: bool = False) -> str:
    """Why a (cleaned) text cannot be taken; "" when it can. Lengths in characters."""
    if not text:
        return "must not be empty" if least else ""
    if len(text) < least:
        return "must not be empty" if not text else f"must be at least {least} characters"
    if len(text) > most:
        return f"must be at most {most} characters, got {len(text)}"
    if text.isprintable() and text[0].isalnum():
        # What nearly every text is: nothing to look for letter by letter.
        return ""
    allowed = "\n\t" if multiline else ""
    for character in text:
        if character not in allowed and unicodedata.category(character) in ("Cc", "Cs"):
            return f"must not hold the control character U+{ord(character):04X}"
    if least and not any(unicodedata.category(c)[0] in "LNPS" for c in text):
        return "must hold at least one visible character"
    return ""


def is_clean(text: str, most: int) -> bool:
    """Whether a text (not empty) is of the kind that nearly all are: `clean_text` would leave it as it is and
    `text_problem` find nothing. False says nothing.
    """
    return (
        len(text) <= most
        and text.isprintable()
        and text[0].isalnum()
        and not text[-1].isspace()
        and (text.isascii() or unicodedata.is_normalized("NFC", text))
    )


def clean_text(text: str, most: int) -> str:
    """NFC, without surrounding white space. A text far beyond `most` is cut first, so that a hostile one
    costs little; the cut one is still too long for `text_problem`.
    """
    if not text:
        return ""
    if text.isascii() and text.isprintable() and len(text) <= most:
        return text.strip()
    return unicodedata.normalize("NFC", text[: 2 * most + 1]).replace("\r\n", "\n").strip()
