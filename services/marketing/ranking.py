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
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime

from marketing.association import Rule, RuleTable, best_rule, popularity, rule
from marketing.engine import eligible, scripts_for
from marketing.model import (
    Contact,
    Offer,
    OfferKind,
    OfferState,
    Profile,
    RankedOffer,
    Reason,
    ReasonCode,
    Text,
    best_text,
)
from marketing.propensity import Propensity, corrected, traits

#: Most lists kept; the oldest goes first.
LISTS_MAX = 2_000
#: Most lines of rankings kept; the oldest goes first.
TEMPLATES_MAX = 10_000
#: Products of a customer that are looked at, in the order of their ids.
OWNED_PRODUCTS_MAX = 200
#: Fewest customers with both products before the pair is spoken of; fewer could point at a person.
SAID_CUSTOMERS_MIN = 5
#: From this share on one says "often".
OFTEN_SHARE_MIN = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An offer that may be made, before words are put to it."""

    #: The offer.
    offer: Offer
    #: What the history says.
    rule: Rule
    #: Estimated probability of acceptance.
    probability: float
    #: Probability x worth.
    score: float


NO_PROPENSITY = Propensity()


class Ranker:
    """Ranks one state of the catalogue by one rule table. Not for use by several threads at once."""

    def __init__(self, offers: Iterable[Offer], table: RuleTable) -> None:
        """Offers that are not published are left out."""
        published = [offer for offer in offers if offer.state is OfferState.PUBLISHED]
        self._offers: Sequence[Offer] = tuple(sorted(published, key=lambda offer: offer.id))
        self._worths = [float(offer.worth.amount) for offer in self._offers]
        self._titles = _product_titles(self._offers)
        self._by_product: dict[str, list[int]] = {}
        # Of one product the dearer ones come first, and of equal ones the smaller id.
        for index in sorted(range(len(self._offers)), key=lambda index: (-self._worths[index], index)):
            self._by_product.setdefault(self._offers[index].product, []).append(index)
        self._table = table
        #: Lines of rankings by offer, antecedent, whether drawn, and words.
        self._templates: dict[tuple[str, str, bool, tuple[Text, ...]], RankedOffer] = {}
        self._lists: dict[str, tuple[array[float], array[int]]] = {}

    @property
    def table(self) -> RuleTable:
        """The rule table in use."""
        return self._table

    def rank(self, profile: Profile, contact: Contact, now: datetime, limit: int) -> tuple[RankedOffer, ...]:
        """The best `limit` eligible offers, at most one a product, best first."""
        found = self.candidates(profile, contact, now, limit)
        return tuple(self.entry(candidate, profile, at + 1) for at, candidate in enumerate(found))

    def candidates(
        self,
        profile: Profile,
        contact: Contact,
        now: datetime,
        limit: int,
        propensity: Propensity = NO_PROPENSITY,
    ) -> list[Candidate]:
        """The best `limit` eligible offers by the history, at most one a product, in the order of their
        expected value by the propensity model.
        """
        owned = self._evidence(profile, contact)
        known = traits(profile, contact) if propensity.weights else ()
        chosen: list[Candidate] = []
        products: set[str] = set()
        for index in self._merged(owned):
            offer = self._offers[index]
            if offer.product in products or not eligible(offer, profile, contact, now):
                continue
            products.add(offer.product)
            found = best_rule(self._table, owned, offer.product)
            probability = corrected(propensity, offer.id, known, found.probability)
            chosen.append(
                Candidate(
                    offer=offer, rule=found, probability=probability, score=probability * self._worths[index]
                )
            )
            if len(chosen) >= limit:
                break
        if propensity.weights:
            chosen.sort(key=lambda candidate: (-candidate.score, candidate.offer.id))
        return chosen

    def _evidence(self, profile: Profile, contact: Contact) -> list[str]:
        """The products that speak: those the customer has, and those asked about just now."""
        return sorted(profile.products | set(contact.products_asked))[:OWNED_PRODUCTS_MAX]

    def _merged(self, owned: Sequence[str]) -> Iterator[int]:
        """Indexes of all offers, each once, highest score first."""
        known = [x for x in owned if x in self._table.partners]
        streams = [self._stream(x) for x in known]
        streams.append(self._unjudged(known))
        seen: set[int] = set()
        for _, index in heapq.merge(*streams):
            if index not in seen:
                seen.add(index)
                yield index

    def _unjudged(self, known: Sequence[str]) -> Iterator[tuple[float, int]]:
        """The popularity list without the offers that some product of the customer judges. A product whose
        list is whole judges everything but itself, another what its list holds.
        """
        whole = [x for x in known if self._table.partners[x].complete]
        if len(whole) >= 2:
            return
        judged: set[str] = set()
        for x in known:
            judged |= self._table.partners[x].together.keys() - {x}
        if whole:
            yield from (
                entry for index in self._by_product.get(whole[0], ()) if (entry := self._open(index, judged))
            )
            return
        for entry in self._stream(""):
            if self._offers[entry[1]].product not in judged:
                yield entry

    def _open(self, index: int, judged: Set[str]) -> tuple[float, int] | None:
        """An offer's place in the popularity list, unless its product is judged."""
        product = self._offers[index].product
        if product in judged:
            return None
        return -popularity(self._table, product).probability * self._worths[index], index

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

    def entry(
        self,
        candidate: Candidate,
        profile: Profile,
        rank: int,
        propensity: float = 1.0,
        explored: bool = False,
    ) -> RankedOffer:
        """A candidate as a line of a ranking, with its words."""
        scripts = scripts_for(candidate.offer, profile)
        key = (candidate.offer.id, candidate.rule.antecedent, explored, scripts)
        template = self._templates.get(key)
        if template is None:
            template = self._template(candidate, scripts, explored)
            if len(self._templates) >= TEMPLATES_MAX:
                del self._templates[next(iter(self._templates))]
            self._templates[key] = template
        return replace(
            template,
            rank=rank,
            score=candidate.score,
            probability=candidate.probability,
            propensity=propensity,
        )

    def _template(self, candidate: Candidate, scripts: tuple[Text, ...], explored: bool) -> RankedOffer:
        offer = candidate.offer
        reason = reason_for(self._table, candidate.rule, offer, self._titles)
        if explored:
            reason = replace(reason, code=ReasonCode.EXPLORATION)
        elif offer.kind in _KIND_REASONS:
            reason = replace(reason, code=_KIND_REASONS[offer.kind])
        return RankedOffer(
            offer=offer.id,
            revision=offer.version,
            product=offer.product,
            titles=offer.titles,
            price=offer.price,
            worth=offer.worth,
            rank=1,
            score=0.0,
            probability=0.0,
            propensity=1.0,
            reason=reason,
            scripts=scripts,
        )


#: Offers that have their own reason to be made.
_KIND_REASONS: Mapping[OfferKind, ReasonCode] = {
    OfferKind.RETENTION: ReasonCode.RETENTION,
    OfferKind.WIN_BACK: ReasonCode.WIN_BACK,
    OfferKind.SAVING: ReasonCode.SAVING,
}


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
