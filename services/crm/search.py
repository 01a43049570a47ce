"""What of a customer can be found, and how well something found fits what was typed. Pure.

Every customer carries a few *terms* under one index; each begins with a letter that says what it is:
  w  a word of a name, folded; of a word in Chinese characters also every tail of two characters and more, so
     that any part of a name is the beginning of a term
  n  a number's digits without the country's, r the same backwards (people remember the last four)
  e  an e-mail address, x an id in another system
  f  a whole name, its words in order of the alphabet; b a day of birth; d the digits of a number, sorted
The last three are what probable duplicates share; the others are searched by their beginning.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers
from rapidfuzz import fuzz

from crm import identity
from crm.model import Contact, Customer, State

QUERY_CHARACTERS_MIN, QUERY_CHARACTERS_MAX = 2, 200
WORDS_MAX = 8
WORD_CHARACTERS_MAX = 32
TERMS_MAX = 400
#: Fewest digits that are searched as the beginning or end of a number.
DIGITS_MIN = 3
#: Beginnings that a second, forgiving look keeps of each word: Latin, Chinese.
LOOSE_LATIN, LOOSE_HAN = 2, 1
#: Least score of a match that only resembles.
SCORE_MIN = 0.55

_WORD = re.compile(r"[^\W_]+")
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]+")


def folded(text: str) -> str:
    """A text without case, width and accents, for comparison."""
    if text.isascii():
        return text.lower()
    wide = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in wide if unicodedata.category(c) != "Mn")


@lru_cache(maxsize=4_096)
def words(text: str) -> tuple[str, ...]:
    """The folded words of a name; runs of Chinese characters are words of their own."""
    if _HAN.fullmatch(text):
        return (unicodedata.normalize("NFKD", text)[:WORD_CHARACTERS_MAX],)
    found: list[str] = []
    for word in _WORD.findall(folded(text)):
        start = 0
        for run in _HAN.finditer(word):
            found += [word[start : run.start()], run[0]]
            start = run.end()
        found.append(word[start:])
    return tuple(word[:WORD_CHARACTERS_MAX] for word in found if word)


def name_key(text: str) -> str:
    """A whole name whatever the order of its words."""
    return " ".join(sorted(words(text)))


def national(e164: str) -> str:
    """A number's digits without its country's."""
    return e164[3:] if e164.startswith("+86") else _national(e164)


@lru_cache(maxsize=20_000)
def _national(e164: str) -> str:
    try:
        return str(phonenumbers.national_significant_number(phonenumbers.parse(e164, None)))
    except phonenumbers.NumberParseException:
        return e164.lstrip("+")


def _tails(word: str) -> Iterable[str]:
    yield word
    if _HAN.fullmatch(word):
        for start in range(1, len(word) - 1):
            yield word[start:]


def terms(customer: Customer) -> tuple[str, ...]:
    """What the customer is found by; () for one that was erased or merged away."""
    if customer.state in (State.ERASED, State.MERGED):
        return ()
    found = list(_name_terms(customer.display_name))
    if customer.given_name or customer.family_name:
        found += _name_terms(f"{customer.given_name} {customer.family_name}")
    found += _numbers_and_emails(customer)
    found += ["x" + folded(external.id)[:64] for external in customer.external_ids]
    found += _shared(customer)
    # Last: however many there are, the company itself is found.
    for contact in customer.contacts:
        found += _name_terms(contact.display_name)
        found += _numbers_and_emails(contact)
    return tuple(dict.fromkeys(found))[:TERMS_MAX]


@lru_cache(maxsize=4_096)
def _name_terms(name: str) -> tuple[str, ...]:
    return tuple("w" + tail for word in words(name) for tail in _tails(word))


def _holders(customer: Customer) -> tuple[Customer | Contact, ...]:
    return (customer, *customer.contacts)


def _numbers_and_emails(holder: Customer | Contact) -> list[str]:
    found: list[str] = []
    for number in holder.phone_numbers:
        digits = national(number.number)
        found += ("n" + digits, "r" + digits[::-1])
    found += ["e" + folded(email.address)[:128] for email in holder.email_addresses]
    return found


def _shared(customer: Customer) -> list[str]:
    key = name_key(customer.display_name)
    found = ["f" + key[:64]] if key else []
    found += ["d" + "".join(sorted(national(number.number))) for number in customer.phone_numbers]
    day = customer.birth_date
    if day is not None and day.year:
        found.append(f"b{day.year:04}-{day.month:02}-{day.day:02}")
    return found


def blocks(customer: Customer) -> list[str]:
    """Terms that a duplicate of the customer probably has too."""
    same = [term for term in terms(customer) if term[0] in "fdb"]
    local = [f"e{folded(e.address).partition('@')[0]}@" for e in customer.email_addresses]
    return same + local


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What was typed, understood."""

    #: The text as a whole, folded.
    text: str
    #: Beginnings of terms of which a customer must have one each, the most telling group first.
    strict: tuple[tuple[str, ...], ...]
    #: Beginnings of which a customer that only resembles has one.
    loose: tuple[str, ...]
    #: The digits in the text, in every way in which they may be meant; () for too few.
    digits: tuple[str, ...] = ()

    @property
    def by_kind(self) -> Iterator[tuple[tuple[str, ...], ...]]:
        """`strict` once for each kind of term that the first group may begin, and the whole name: where more
        customers fit than are looked at, those of one kind must not crowd out the others.
        """
        first, *others = self.strict
        for kind in dict.fromkeys(start[0] for start in first):
            yield (tuple(start for start in first if start[0] == kind), *others)
        if key := name_key(self.text):
            yield (("f" + key[:64],),)


def understood(text: str, default_country: str) -> Query | None:
    """None for a text without a letter or a digit."""
    cleaned = identity.clean_text(text, QUERY_CHARACTERS_MAX)
    if identity.is_typed_number(cleaned) and sum(c.isdigit() for c in cleaned) >= DIGITS_MIN:
        readings = identity.digit_readings(cleaned, default_country)
        return Query(text=folded(cleaned), strict=(_number_starts(readings),), loose=(), digits=readings)
    if "@" in cleaned:
        address = folded(cleaned.replace(" ", ""))[:128]
        return Query(text=address, strict=(("e" + address,),), loose=())
    tokens = [token for token in folded(cleaned).split() if words(token)][:WORDS_MAX]
    if not tokens:
        return None
    found = [word for token in tokens for word in words(token)][:WORDS_MAX]
    groups = [_token_starts(token) for token in sorted(tokens, key=len, reverse=True)]
    loose = [f"w{word[: LOOSE_HAN if _HAN.match(word) else LOOSE_LATIN]}" for word in found]
    said, digits = " ".join(tokens), "".join(c for c in cleaned if c.isdigit())
    readings = (digits,) if len(digits) >= DIGITS_MIN else ()
    return Query(text=said, strict=tuple(groups), loose=tuple(dict.fromkeys(loose)), digits=readings)


def _token_starts(token: str) -> tuple[str, ...]:
    """Of a token with signs in it ("b-4711", "o'brien") as it stands, and its longest word."""
    longest = max(words(token), key=len)
    starts = _word_starts(longest)
    return starts if longest == token else ("e" + token, "x" + token, *starts)


def _word_starts(word: str) -> tuple[str, ...]:
    starts = ["w" + word, "x" + word]
    if word.isdigit() and len(word) >= DIGITS_MIN:
        starts += ["n" + word, "r" + word[::-1]]
    if not _HAN.match(word):
        starts.append("e" + word)
    return tuple(starts)


def _number_starts(readings: Sequence[str]) -> tuple[str, ...]:
    as_typed = readings[0]
    starts = [
        "n" + as_typed,
        "r" + as_typed[::-1],
        "x" + as_typed,
        *("n" + digits for digits in readings[1:]),
    ]
    return tuple(dict.fromkeys(start for start in starts if len(start) > DIGITS_MIN))


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A customer that was found."""

    #: Who.
    customer: Customer
    #: 0 to 1.
    score: float
    #: What matched, strongest first.
    fields: tuple[str, ...]


def scored(customer: Customer, query: Query) -> Match:
    """How well a customer fits."""
    found: dict[str, float] = {"display_name": _name_score(customer.display_name, query.text)}
    for contact in customer.contacts:
        found["contacts"] = max(found.get("contacts", 0.0), _name_score(contact.display_name, query.text))
    numbers = [n.number for holder in _holders(customer) for n in holder.phone_numbers]
    if query.digits:
        alike = (_digits_score(national(n), n, digits) for n in numbers for digits in query.digits)
        found["phone_numbers"] = max(alike, default=0.0)
    for email in (e for holder in _holders(customer) for e in holder.email_addresses):
        found["email_addresses"] = max(
            found.get("email_addresses", 0.0), _start_score(folded(email.address), query.text)
        )
    for external in customer.external_ids:
        found["external_ids"] = max(
            found.get("external_ids", 0.0), _start_score(folded(external.id), query.text)
        )
    hits = sorted(((s, name) for name, s in found.items() if s >= SCORE_MIN), key=lambda h: (-h[0], h[1]))
    best = hits[0][0] if hits else max(found.values())
    return Match(customer=customer, score=round(min(best, 1.0), 4), fields=tuple(name for _, name in hits))


def _name_score(name: str, text: str) -> float:
    have, want = name_key(name), name_key(text)
    if not have or not want:
        return 0.0
    if have == want:
        return 1.0
    compact_have, compact_want = have.replace(" ", ""), want.replace(" ", "")
    if compact_want in compact_have:
        return 0.7 + 0.25 * len(compact_want) / len(compact_have)
    return float(fuzz.token_sort_ratio(have, want)) / 100 * 0.95


def _digits_score(digits: str, e164: str, typed: str) -> float:
    if typed in (digits, e164.lstrip("+")):
        return 1.0
    if digits.startswith(typed) or digits.endswith(typed) or e164[1:].startswith(typed):
        return 0.7 + 0.3 * len(typed) / max(len(digits), len(typed))
    return 0.0


def _start_score(value: str, typed: str) -> float:
    if value == typed:
        return 1.0
    return 0.7 + 0.3 * len(typed) / len(value) if value.startswith(typed) else 0.0


def ranked(customers: Iterable[Customer], query: Query, limit: int) -> Sequence[Match]:
    """The best fits, best first; what hardly resembles is left out."""
    matches = [match for match in (scored(c, query) for c in customers) if match.score >= SCORE_MIN]
    return sorted(matches, key=lambda m: (-m.score, m.customer.id))[:limit]
