"""Customers who are probably one. Pure.

Two customers are compared field by field. Each field that speaks for their being one has a weight w, how far
it alone is to be believed, and a similarity s from 0 to 1; the score is 1 - product(1 - w s), as if the
fields were independent witnesses. A field that both have and that differs plainly (another day of birth,
another external id in one system) takes from it. Similarities are rapidfuzz's (Indel ratio,
Damerau-Levenshtein for swapped digits).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rapidfuzz import fuzz
from rapidfuzz.distance import OSA, Indel

from crm import search
from crm.model import Customer

SCORE_DEFAULT = 0.8
#: Below, two values are not called alike.
SIMILARITY_MIN = 0.75

_WEIGHTS = {
    "phone_numbers": 0.75,
    "email_addresses": 0.75,
    "display_name": 0.6,
    "birth_date": 0.55,
    "addresses": 0.45,
    "company": 0.2,
}
#: What a plain contradiction leaves of the score.
_CONTRADICTION = 0.55


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One field that speaks for it."""

    #: Name of the field.
    field: str
    #: EXACT, FUZZY or TRANSPOSED.
    kind: str
    #: 0 to 1.
    similarity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two customers and how much speaks for their being one."""

    #: The one asked about.
    customer: str
    #: The other.
    other: str
    #: 0 to 1.
    score: float
    #: Strongest first.
    reasons: tuple[Reason, ...]


def compared(one: Customer, other: Customer) -> Pair:
    """How much speaks for two customers being one; symmetric but for the names' places."""
    reasons = [
        reason
        for reason in (
            _names(one, other),
            _numbers(one, other),
            _emails(one, other),
            _birth(one, other),
            _addresses(one, other),
            _company(one, other),
        )
        if reason is not None
    ]
    doubt = 1.0
    for reason in reasons:
        doubt *= 1.0 - _WEIGHTS[reason.field] * reason.similarity
    score = (1.0 - doubt) * (_CONTRADICTION if _contradicts(one, other) else 1.0)
    if one.kind is not other.kind:
        score = 0.0
    ordered = sorted(reasons, key=lambda r: (-_WEIGHTS[r.field] * r.similarity, r.field))
    return Pair(customer=one.id, other=other.id, score=round(score, 4), reasons=tuple(ordered))


def _names(one: Customer, other: Customer) -> Reason | None:
    first, second = search.folded(one.display_name), search.folded(other.display_name)
    straight = fuzz.ratio(first, second) / 100
    sorted_ = fuzz.ratio(search.name_key(first), search.name_key(second)) / 100
    if straight == 1.0 or " ".join(search.words(first)) == " ".join(search.words(second)):
        return Reason(field="display_name", kind="EXACT", similarity=1.0)
    best = max(straight, sorted_, _swapped_han(first, second))
    if best < SIMILARITY_MIN:
        return None
    kind = "TRANSPOSED" if best > straight else "FUZZY"
    return Reason(field="display_name", kind=kind, similarity=round(best, 4))


def _swapped_han(first: str, second: str) -> float:
    """Family and given name of a Chinese name the other way round."""
    if len(first) == len(second) and 2 <= len(first) <= 4 and sorted(first) == sorted(second):
        return 0.9
    return 0.0


def _numbers(one: Customer, other: Customer) -> Reason | None:
    best: Reason | None = None
    for mine in one.phone_numbers:
        for theirs in other.phone_numbers:
            a, b = search.national(mine.number), search.national(theirs.number)
            found = _digits("phone_numbers", a, b)
            if found is not None and (best is None or found.similarity > best.similarity):
                best = found
    return best


def _digits(field: str, a: str, b: str) -> Reason | None:
    if a == b:
        return Reason(field=field, kind="EXACT", similarity=1.0)
    # One slip of the finger: a swap of neighbours counts as one step, as does a wrong, missing or added
    # digit.
    if OSA.distance(a, b) != 1:
        return None
    swapped = len(a) == len(b) and sorted(a) == sorted(b)
    return Reason(
        field=field, kind="TRANSPOSED" if swapped else "FUZZY", similarity=0.95 if swapped else 0.85
    )


def _emails(one: Customer, other: Customer) -> Reason | None:
    best: Reason | None = None
    for mine in one.email_addresses:
        for theirs in other.email_addresses:
            a, b = search.folded(mine.address), search.folded(theirs.address)
            (local_a, _, domain_a), (local_b, _, domain_b) = a.partition("@"), b.partition("@")
            alike = Indel.normalized_similarity(a, b)
            if local_a == local_b and domain_a != domain_b:
                alike = max(alike, 0.8)
            if alike < 0.8 or (local_a != local_b and domain_a != domain_b):
                continue
            kind = "EXACT" if a == b else "FUZZY"
            if best is None or alike > best.similarity:
                best = Reason(field="email_addresses", kind=kind, similarity=round(alike, 4))
    return best


def _birth(one: Customer, other: Customer) -> Reason | None:
    a, b = one.birth_date, other.birth_date
    if a is None or b is None or not (a.year and b.year):
        return None
    if a == b:
        return Reason(field="birth_date", kind="EXACT", similarity=1.0)
    if a.year == b.year and (a.month, a.day) == (b.day, b.month):
        return Reason(field="birth_date", kind="TRANSPOSED", similarity=0.9)
    return None


def _addresses(one: Customer, other: Customer) -> Reason | None:
    best = 0.0
    for mine in one.addresses:
        for theirs in other.addresses:
            if not (mine.street and theirs.street):
                continue
            a = search.folded(f"{mine.city}{mine.district}{mine.street}")
            b = search.folded(f"{theirs.city}{theirs.district}{theirs.street}")
            best = max(best, fuzz.ratio(a, b) / 100)
    if best < 0.85:
        return None
    return Reason(field="addresses", kind="EXACT" if best == 1.0 else "FUZZY", similarity=round(best, 4))


def _company(one: Customer, other: Customer) -> Reason | None:
    if one.company and one.company == other.company:
        return Reason(field="company", kind="EXACT", similarity=1.0)
    return None


def _contradicts(one: Customer, other: Customer) -> bool:
    """Another day of birth, or another id in one and the same system."""
    a, b = one.birth_date, other.birth_date
    if a and b and a.year and b.year and _birth(one, other) is None:
        return True
    mine = {e.system: e.id for e in one.external_ids}
    return any(e.system in mine and mine[e.system] != e.id for e in other.external_ids)


def probable(customer: Customer, candidates: Iterable[Customer], score_min: float) -> list[Pair]:
    """The pairs that reach the least score, highest first."""
    pairs = [compared(customer, other) for other in candidates if other.id != customer.id]
    good = [pair for pair in pairs if pair.score >= score_min]
    return sorted(good, key=lambda pair: (-pair.score, pair.other))
