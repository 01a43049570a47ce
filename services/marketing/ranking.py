"""Ranks offers for one customer, and finds the words for it.

An offer's score is the estimated probability that the customer takes it (association.py) times its worth. The
best n of the eligible offers are found without scoring every one: for each product x there is a list of all
offers by their score for owners of x; the lists of a customer's products are merged from the top until n are
found (the threshold idea of Fagin, Lotem, Naor: Optimal aggregation algorithms for middleware, PODS 2001,
with the maximum as aggregate, for which the first sight of an offer is its score). Lists are made when first
needed and kept as arrays, so a request costs little more with a thousand offers than with fifty.

Equal scores go by the offer's id: the same input gives the same ranking everywhere.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from marketing.association import Rule, RuleTable, best_rule, popularity, rule
from marketing.engine import eligible, scripts_for
from marketing.model import (
    Contact,
    Offer,
    OfferState,
    Profile,
    RankedOffer,
    Reason,
    ReasonCode,
    Text,
    best_text,
)

#: Most lists kept; the oldest goes first.
LISTS_MAX = 2_000
#: Products of a customer that are looked at, in the order of their ids.
OWNED_PRODUCTS_MAX = 200
#: Fewest customers with both products before the pair is spoken of; fewer could point at a person.
SAID_CUSTOMERS_MIN = 5
#: From this share on one says "often".
OFTEN_SHARE_MIN = 0.1


class Ranker:
    """Ranks one state of the catalogue by one rule table. Not for use by several threads at once."""

    def __init__(self, offers: Iterable[Offer], table: RuleTable) -> None:
        """Offers that are not published are left out."""
        published = [offer for offer in offers if offer.state is OfferState.PUBLISHED]
        self._offers: Sequence[Offer] = tuple(sorted(published, key=lambda offer: offer.id))
        self._worths = [float(offer.worth.amount) for offer in self._offers]
        self._titles = _product_titles(self._offers)
        self._table = table
        self._lists: dict[str, tuple[array[float], array[int]]] = {}

    @property
    def table(self) -> RuleTable:
        """The rule table in use."""
        return self._table

    def rank(self, profile: Profile, contact: Contact, now: datetime, limit: int) -> tuple[RankedOffer, ...]:
        """The best `limit` eligible offers, at most one a product, best first."""
        owned = self._evidence(profile, contact)
        chosen: list[RankedOffer] = []
        products: set[str] = set()
        for index in self._merged(owned):
            offer = self._offers[index]
            if offer.product in products or not eligible(offer, profile, contact, now):
                continue
            products.add(offer.product)
            found = best_rule(self._table, owned, offer.product)
            chosen.append(self._entry(offer, found, profile, len(chosen) + 1, self._worths[index]))
            if len(chosen) >= limit:
                break
        return tuple(chosen)

    def _evidence(self, profile: Profile, contact: Contact) -> list[str]:
        """The products that speak: those the customer has, and those asked about just now."""
        return sorted(profile.products | set(contact.products_asked))[:OWNED_PRODUCTS_MAX]

    def _merged(self, owned: Sequence[str]) -> Iterator[int]:
        """Indexes of all offers, each once, highest score first."""
        known = [x for x in owned if x in self._table.partners]
        streams = [self._stream(x) for x in known]
        if not known or self._some_unjudged(known):
            streams.append(self._unjudged(known))
        seen: set[int] = set()
        for _, index in heapq.merge(*streams):
            if index not in seen:
                seen.add(index)
                yield index

    def _some_unjudged(self, known: Sequence[str]) -> bool:
        """Whether there may be an offer that no list of `known` holds."""
        whole = [x for x in known if self._table.partners[x].complete]
        # A product does not speak for itself, so one whole list leaves its own product open.
        return len(whole) < 2

    def _unjudged(self, known: Sequence[str]) -> Iterator[tuple[float, int]]:
        """The popularity list without the offers that some product of the customer judges."""
        for entry in self._stream(""):
            product = self._offers[entry[1]].product
            if all(rule(self._table, x, product) is None for x in known):
                yield entry

    def _stream(self, antecedent: str) -> Iterator[tuple[float, int]]:
        scores, indexes = self._list(antecedent)
        return zip(scores, indexes, strict=True)

    def _list(self, antecedent: str) -> tuple[array[float], array[int]]:
        """(minus score, offer index) in rising order for owners of a product, for anybody with ""."""
        made = self._lists.get(antecedent)
        if made is None:
            made = self._make_list(antecedent)
            if len(self._lists) >= LISTS_MAX:
                del self._lists[next(iter(self._lists))]
            self._lists[antecedent] = made
        return made

    def _make_list(self, antecedent: str) -> tuple[array[float], array[int]]:
        entries = []
        for index, offer in enumerate(self._offers):
            found = (
                rule(self._table, antecedent, offer.product)
                if antecedent
                else popularity(self._table, offer.product)
            )
            if found is not None:
                entries.append((-found.probability * self._worths[index], index))
        entries.sort()
        return array("d", (score for score, _ in entries)), array("L", (index for _, index in entries))

    def _entry(self, offer: Offer, found: Rule, profile: Profile, rank: int, worth: float) -> RankedOffer:
        return RankedOffer(
            offer=offer.id,
            revision=offer.version,
            product=offer.product,
            titles=offer.titles,
            price=offer.price,
            worth=offer.worth,
            rank=rank,
            score=found.probability * worth,
            probability=found.probability,
            propensity=1.0,
            reason=reason_for(self._table, found, offer, self._titles),
            scripts=scripts_for(offer, profile),
        )


def _product_titles(offers: Iterable[Offer]) -> dict[str, tuple[Text, ...]]:
    """What each product is called: as its first offer calls it."""
    titles: dict[str, tuple[Text, ...]] = {}
    for offer in offers:
        titles.setdefault(offer.product, offer.titles)
    return titles


def reason_for(table: RuleTable, found: Rule, offer: Offer, titles: Mapping[str, tuple[Text, ...]]) -> Reason:
    """The reason to give for an offer that was ranked by a rule. A rule that speaks against the product, or
    rests on too few customers to be spoken of, gives way to the product's popularity.
    """
    said = bool(found.antecedent) and found.together >= SAID_CUSTOMERS_MIN and found.lift > 1.0
    told = found if said else popularity(table, offer.product)
    because = titles.get(told.antecedent, ())
    words = {
        "zh": _words_zh(told, best_text(because, "zh") or told.antecedent, offer.title("zh")),
        "en": _words_en(told, best_text(because, "en") or told.antecedent, offer.title("en")),
    }
    return Reason(
        code=ReasonCode.ASSOCIATION if said else ReasonCode.POPULARITY,
        texts=tuple(Text(language=language, text=text) for language, text in words.items()),
        because_product=told.antecedent,
        share=told.share,
        customer_count=told.customers,
        lift=told.lift,
    )


def _percent(share: float) -> str:
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"


def _words_en(told: Rule, because: str, title: str) -> str:
    figures = f"{_percent(told.share)} % of {told.customers:,}"
    if told.antecedent and told.share >= OFTEN_SHARE_MIN:
        return f"Customers with {because} often take {title}: {figures}."
    if told.antecedent:
        return f"Customers with {because} take {title} more often than others do: {figures}."
    if told.together < SAID_CUSTOMERS_MIN:
        return f"{title} is new in our range."
    return f"Many customers choose {title}: {figures}."


def _words_zh(told: Rule, because: str, title: str) -> str:
    figures = f"{told.customers:,}位客户中有{_percent(told.share)}%"
    if told.antecedent and told.share >= OFTEN_SHARE_MIN:
        return f"使用{because}的客户常常选择{title}：{figures}。"
    if told.antecedent:
        return f"使用{because}的客户比其他客户更多选择{title}：{figures}。"
    if told.together < SAID_CUSTOMERS_MIN:
        return f"{title}是我们的新产品。"
    return f"许多客户选择{title}：{figures}。"
