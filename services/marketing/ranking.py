"""Ranks offers for one customer, and finds the words for it.

An offer's score is the estimated probability that the customer takes it (association.py) times its worth.
For each product x there is an array of the probabilities of all offers for owners of x, made when first
needed and kept, and a list of its highest scores. A customer's own probabilities are the largest of the
arrays of what they have. The few best of them are the best of these lists, so mostly no array is looked at;
where the lists are too short to tell, and where a propensity model has its say, the largest are found for all
offers at once, and so are the offers that are out of the question (over, owned already, of another kind).
Conditions that several offers share are judged once a request. So a request costs little more with a thousand
offers than with fifty.

A product is new while its offer was published lately and few customers have it: then "nobody has it" says
nothing, and it is estimated like a product of which nothing is known. Among thousands of offers that is
rarely enough to be seen, so a few new offers are tried beside the best (`newcomers`): exploration shows them,
and what becomes of it is learned.

Equal scores go by the offer's id: the same input gives the same ranking everywhere.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marketing.association import Rule, RuleTable, popularity, rule
from marketing.engine import LOST_TAG, audience_fits, eligible, scripts_for
from marketing.model import (
    EVERYBODY,
    Audience,
    Considered,
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
from marketing.policy import share_of
from marketing.propensity import BASE, BASE_SCALE, CONSTANT, Propensity, corrected, traits
from marketing.rules import CustomerFacts, compiled

#: Most arrays kept, and most bytes of them; the oldest goes first.
ROWS_MAX = 2_000
ROWS_BYTES_MAX = 64 * 1024 * 1024
#: Most lines of rankings kept, and most single estimates; the oldest goes first.
TEMPLATES_MAX = 10_000
RULES_MAX = 50_000
#: Sayings kept of one candidate.
CHANCES_MAX = 4
#: Products of a customer that are looked at, in the order of their ids.
OWNED_PRODUCTS_MAX = 200
#: Fewest customers with both products before the pair is spoken of; fewer could point at a person.
SAID_CUSTOMERS_MIN = 5
#: From this share on one says "often".
OFTEN_SHARE_MIN = 0.1
#: Of the offers with the highest scores so many more than wanted are put in order at first; each further time
#: so many times more.
SPARE_OFFERS = 12
#: So many more of the highest scores than are wanted, beside one for each product that the customer has.
SPARE_HEIGHTS = 4
#: Highest scores kept of each product; whoever needs more looks at all offers.
HEIGHTS_MAX = 32
FURTHER_TIMES = 8

#: An offer is new for so long, and while fewer customers than this have its product.
NEW_DAYS = timedelta(days=30)
NEW_CUSTOMERS_MAX = 20
#: New offers tried beside the best, and looked at to find them.
NEWCOMERS_MAX = 2
NEWCOMERS_LOOKED_AT = 16
#: Traits whose weights are kept as arrays; the oldest goes first.
TRAITS_MAX = 2_000

Floats = NDArray[np.float64]
Indexes = NDArray[np.intp]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: Instants before and after all others.
_EVER, _NEVER = -(2**62), 2**62


class Candidate(NamedTuple):
    """An offer that may be made, before words are put to it.

    A tuple, for several are made for each caller: a frozen dataclass takes four times as long to make.
    """

    #: The offer.
    offer: Offer
    #: What the history says.
    rule: Rule
    #: Estimated probability of acceptance.
    probability: float
    #: What an acceptance is worth.
    worth: float
    #: Probability x worth.
    score: float
    #: What decisions say of it, by the probability with which it came first.
    told: dict[float, Considered]

    def considered(self, chance: float) -> Considered:
        """What a decision says of it, having it first with this probability."""
        made = self.told.get(chance)
        if made is None:
            if len(self.told) >= CHANCES_MAX:
                self.told.clear()
            made = Considered(
                self.offer.id, self.offer.product, self.rule.probability, self.probability, self.worth, chance
            )
            self.told[chance] = made
        return made


#: A score's negative, the offer's place, the probability's negative, who says so: the smallest is the best,
#: and of those who say the same it is the first.
_Height: TypeAlias = tuple[float, int, float, str]
_NEGATIVE = itemgetter(0)


class _Row(NamedTuple):
    """What the owners of one product say of every offer."""

    #: The probability of each offer's product, -1 where the counts cannot judge.
    chances: Floats
    #: The highest scores above 0 by these, best first.
    heights: list[_Height]

    def height(self, count: int) -> float:
        """The score that `count` offers reach; 0 where not so many reach that."""
        return -self.heights[count - 1][0] if count <= len(self.heights) else 0.0

    def reaching(self, bound: float) -> list[_Height] | None:
        """Those that reach a bound above 0; None where there may be more of them than are kept."""
        heights, end = self.heights, (-bound, math.inf)
        if len(heights) >= HEIGHTS_MAX and heights[-1] < end:
            return None
        return heights[: bisect(heights, end)]


class _Group(NamedTuple):
    """Places of offers that have something in common, in both forms that they are needed in."""

    places: frozenset[int]
    indexes: Indexes

    @classmethod
    def of(cls, indexes: Indexes) -> _Group:
        return cls(frozenset(indexes.tolist()), indexes)


NO_PROPENSITY = Propensity()
#: Nobody has words of their own.
_FOR_EVERYBODY: tuple[str, frozenset[str]] = ("", frozenset())


def _instant(moment: datetime | None, otherwise: int) -> int:
    """Microseconds since 1970."""
    return otherwise if moment is None else (moment - _EPOCH) // _MICROSECOND


class Catalogue:
    """What can be said of offers whoever is asked for: conditions as arrays, places by product and kind."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        """Offers that are not published, or are sold out, are left out."""
        made = [offer for offer in offers if offer.state is OfferState.PUBLISHED and not offer.sold_out]
        self.offers: Sequence[Offer] = tuple(sorted(made, key=lambda offer: offer.id))
        self.worth_of: Sequence[float] = [float(offer.worth.amount) for offer in self.offers]
        self.worths: Floats = np.array(self.worth_of)
        self._from = np.array([_instant(offer.valid_from, _EVER) for offer in self.offers], dtype=np.int64)
        self._until = np.array([_instant(offer.valid_until, _NEVER) for offer in self.offers], dtype=np.int64)
        #: Offers that are not valid, and from when until when they are these.
        self._invalid = _Group.of(np.array([], dtype=np.intp))
        self._invalid_from, self._invalid_until = 0, 0
        #: Places by product, and of those that are made to nobody who has the product.
        self.places: dict[str, list[int]] = {}
        self._once: dict[str, list[int]] = {}
        for at, offer in enumerate(self.offers):
            self.places.setdefault(offer.product, []).append(at)
            if not offer.repeatable:
                self._once.setdefault(offer.product, []).append(at)
        self._retention = self._of_kind(OfferKind.RETENTION)
        self._win_back = self._of_kind(OfferKind.WIN_BACK)
        #: Conditions that must be judged for each customer, numbered, and the number of each offer.
        self._conditions: list[_Condition] = []
        numbers: dict[_Condition, int] = {}
        self.condition_of: list[int] = [
            numbers.setdefault(_Condition.of(offer), len(numbers)) for offer in self.offers
        ]
        self._conditions.extend(numbers)
        #: Numbers of those that hold whoever asks, in the form of what was judged.
        self.always: dict[int, bool] = {
            number: True for condition, number in numbers.items() if condition == _NO_CONDITION
        }

    def _of_kind(self, kind: OfferKind) -> _Group:
        places = [at for at, offer in enumerate(self.offers) if offer.kind is kind]
        return _Group.of(np.array(places, dtype=np.intp))

    def shut(
        self, scores: Floats, profile: Profile, contact: Contact, now: datetime, at_risk: bool = False
    ) -> None:
        """Puts -1 in the place of each offer that is out of the question."""
        for group in self.shut_groups(profile, contact, now, at_risk):
            scores[group.indexes] = -1.0
        for product in profile.products:
            # One by one: a customer has few, and a list of places is dear to look up.
            for place in self._once.get(product, ()):
                scores[place] = -1.0

    def shut_groups(
        self, profile: Profile, contact: Contact, now: datetime, at_risk: bool = False
    ) -> list[_Group]:
        """The offers that are out of the question, beside those that the customer has. Retention is for those
        who want to leave, and those `at_risk` of it.
        """
        groups = [self._invalid_at(_instant(now, 0))]
        if not (at_risk or contact.wants_to_leave or profile.may_leave):
            groups.append(self._retention)
        if LOST_TAG not in profile.tags:
            groups.append(self._win_back)
        return [group for group in groups if group.places]

    def _invalid_at(self, instant: int) -> _Group:
        """Offers that are not valid then; looked for again behind the next beginning or end."""
        if not self._invalid_from <= instant < self._invalid_until:
            self._invalid = _Group.of(np.flatnonzero((self._from > instant) | (self._until <= instant)))
            bounds = np.concatenate((self._from, self._until))
            self._invalid_from = int(bounds[bounds <= instant].max(initial=_EVER))
            self._invalid_until = int(bounds[bounds > instant].min(initial=_NEVER))
        return self._invalid

    def holds(self, number: int, profile: Profile, contact: Contact, now: datetime) -> bool:
        """Whether a numbered condition holds."""
        return self._conditions[number].holds(profile, contact, now)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Condition:
    """What an offer asks of a customer beyond what arrays can say."""

    audience: Audience
    rule: str
    prerequisites: frozenset[str]
    exclusions: frozenset[str]

    @classmethod
    def of(cls, offer: Offer) -> _Condition:
        return cls(
            audience=offer.audience,
            rule=offer.rule,
            prerequisites=offer.prerequisites,
            exclusions=offer.exclusions,
        )

    def holds(self, profile: Profile, contact: Contact, now: datetime) -> bool:
        owned = profile.products
        if not self.prerequisites <= owned or self.exclusions & owned:
            return False
        if not audience_fits(self.audience, profile, contact):
            return False
        return not self.rule or bool(compiled(self.rule).matches(CustomerFacts(profile, contact, now)))


_NO_CONDITION = _Condition(audience=EVERYBODY, rule="", prerequisites=frozenset(), exclusions=frozenset())


class Ranker:
    """Ranks one state of the catalogue by one rule table. Not for use by several threads at once."""

    def __init__(self, offers: Iterable[Offer], table: RuleTable, now: datetime | None = None) -> None:
        """Offers that are not published are left out; `now` tells which are new, None for none."""
        every = sorted(offers, key=lambda offer: offer.id)
        self._titles = _product_titles(offer for offer in every if offer.state is OfferState.PUBLISHED)
        self._catalogue = Catalogue(every)
        self._offers = self._catalogue.offers
        self._table = table
        #: Tiers and tags that have words of their own, by offer.
        self._heard = {
            offer.id: frozenset(script.audience for script in offer.scripts) - {""} for offer in self._offers
        }
        #: Lines of rankings by offer, antecedent, whether drawn, and whose words.
        self._templates: dict[tuple[str, str, bool, tuple[str, frozenset[str]]], RankedOffer] = {}
        #: What the history says of a product for the owners of another, "" for anybody.
        self._rules: dict[tuple[str, str], Rule] = {}
        #: Places of new offers.
        self._new = (
            [] if now is None else [at for at, one in enumerate(self._offers) if self._is_new(one, now)]
        )
        self._new_products = frozenset(self._offers[at].product for at in self._new)
        self._popular = self._popularity()
        #: Weights of the propensity model over all offers, by trait, "" for what holds of everybody.
        self._weights: dict[str, Floats] = {}
        self._weights_of = ""
        #: Candidates as the history alone makes them, by antecedent and place.
        self._made: dict[tuple[str, int], Candidate] = {}
        #: By antecedent, and of anybody.
        self._rows: dict[str, _Row] = {}
        self._anybody = self._measured("", self._popular)
        self._rows_max = max(1, min(ROWS_MAX, ROWS_BYTES_MAX // (8 * max(1, len(self._offers)))))

    @property
    def table(self) -> RuleTable:
        """The rule table in use."""
        return self._table

    def _is_new(self, offer: Offer, now: datetime) -> bool:
        lately = offer.published_at is not None and now - offer.published_at < NEW_DAYS
        return lately and self._table.having.get(offer.product, 0) < NEW_CUSTOMERS_MAX

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
        at_risk: bool = False,
    ) -> list[Candidate]:
        """The best `limit` eligible offers, at most one a product, in the order of their expected value by
        the history, corrected by the propensity model if there is one.
        """
        if not self._offers:
            return []
        owned, rows = self._evidence(profile, contact)
        if not propensity.weights:
            highest = self._highest(rows, profile, contact, now, limit, at_risk)
            if highest is not None:
                return highest
        best = self._best(rows)
        known = traits(profile, contact) if propensity.weights else ()
        likely = self._corrected(best, propensity, known) if propensity.weights else best
        scores = likely * self._catalogue.worths
        width = limit + SPARE_OFFERS
        # As many are as high by one product alone; the model may lower all of them.
        bound = _nth_highest(scores, width) if propensity.weights else self._surely(rows, width)
        self._catalogue.shut(scores, profile, contact, now, at_risk)
        chosen = []
        for place in self._eligible(scores, bound, profile, contact, now, limit):
            probability, antecedent = best.item(place), ""
            for x, row in zip(owned, rows, strict=True):
                if row.chances.item(place) == probability:
                    antecedent = x
                    break
            chosen.append(self._candidate(antecedent, place, probability))
        if propensity.weights:
            chosen = [_by_model(candidate, propensity, known) for candidate in chosen]
            chosen.sort(key=lambda candidate: (-candidate.score, candidate.offer.id))
        return chosen

    def _highest(
        self,
        rows: Sequence[_Row],
        profile: Profile,
        contact: Contact,
        now: datetime,
        limit: int,
        at_risk: bool,
    ) -> list[Candidate] | None:
        """The candidates by the history alone, found among the highest scores of each product that speaks;
        None where too few of these are eligible to tell.
        """
        # What the customer has is often among what its owners have, and dropped.
        spare = min(SPARE_HEIGHTS + len(profile.products), SPARE_OFFERS)
        heights = self._reaching(rows, self._surely(rows, limit + spare))
        if heights is None:
            return None
        # Numbers alone are several times as quick to put in order; equal ones are rare.
        heights.sort(key=_NEGATIVE)
        found, looked_at = self._first(heights, profile, contact, now, limit, at_risk)
        near = heights[: looked_at + 1]
        if len(set(map(_NEGATIVE, near))) < len(near):
            heights.sort()
            found, _ = self._first(heights, profile, contact, now, limit, at_risk)
        return found if len(found) == limit else None

    def _first(
        self,
        heights: Sequence[_Height],
        profile: Profile,
        contact: Contact,
        now: datetime,
        limit: int,
        at_risk: bool,
    ) -> tuple[list[Candidate], int]:
        """(the first `limit` eligible candidates, at most one a product; how many heights were looked at)."""
        catalogue, owned = self._catalogue, profile.products
        shut = [group.places for group in catalogue.shut_groups(profile, contact, now, at_risk)]
        held = catalogue.always.copy()
        condition_of, offers = catalogue.condition_of, self._offers
        taken: set[str] = set()
        found: list[Candidate] = []
        for at, (_, place, chance, antecedent) in enumerate(heights):
            product = offers[place].product
            if product in taken or (product in owned and not offers[place].repeatable):
                continue
            if shut and any(place in places for places in shut):
                continue
            number = condition_of[place]
            holds = held.get(number)
            if holds is None:
                holds = held[number] = catalogue.holds(number, profile, contact, now)
            if holds:
                taken.add(product)
                found.append(self._candidate(antecedent, place, -chance))
                if len(found) >= limit:
                    return found, at + 1
        return found, len(heights)

    def _reaching(self, rows: Sequence[_Row], bound: float) -> list[_Height] | None:
        """All scores by one product alone that reach a bound: the best of those with one place is the offer's
        own. None where they are not all known.
        """
        if bound <= 0:
            return None
        found: list[_Height] = []
        for row in rows:
            heights = row.reaching(bound)
            if heights is None:
                return None
            found += heights
        popular = self._anybody.reaching(bound)
        if popular is None:
            return None
        for one in popular:
            # What is usual counts where none of the products can judge.
            for row in rows:
                if row.chances.item(one[1]) >= 0:
                    break
            else:
                found.append(one)
        return found

    def _candidate(self, antecedent: str, place: int, probability: float) -> Candidate:
        """The offer at a place, of which the owners of a product say most."""
        made = self._made.get((antecedent, place))
        if made is None:
            offer, worth = self._offers[place], self._catalogue.worth_of[place]
            found = self._rule(antecedent, offer.product)
            if len(self._made) >= RULES_MAX:
                del self._made[next(iter(self._made))]
            made = Candidate(offer, found, probability, worth, probability * worth, {})
            self._made[antecedent, place] = made
        return made

    def newcomers(
        self,
        profile: Profile,
        contact: Contact,
        now: datetime,
        beside: Sequence[Candidate],
        propensity: Propensity = NO_PROPENSITY,
    ) -> list[Candidate]:
        """A few new eligible offers of products that are not among those `beside`. Where there are more, each
        customer meets others, and others each day.
        """
        if not self._new:
            return []
        taken = {candidate.offer.product for candidate in beside}
        first = int(share_of("new", profile.customer, f"{now:%Y-%m-%d}") * len(self._new))
        found: list[Candidate] = []
        for at in [*self._new[first:], *self._new[:first]][:NEWCOMERS_LOOKED_AT]:
            offer = self._offers[at]
            if offer.product in taken or not eligible(offer, profile, contact, now):
                continue
            taken.add(offer.product)
            rule_of, worth = self._rule("", offer.product), float(offer.worth.amount)
            chance = rule_of.probability
            if propensity.weights:
                chance = corrected(propensity, offer.id, traits(profile, contact), chance)
            found.append(Candidate(offer, rule_of, chance, worth, chance * worth, {}))
            if len(found) >= NEWCOMERS_MAX:
                break
        return found

    def _corrected(self, best: Floats, propensity: Propensity, known: Sequence[str]) -> Floats:
        """`propensity.corrected` for all offers at once."""
        if self._weights_of != propensity.model:
            self._weights, self._weights_of = {}, propensity.model
        kept = np.clip(best, 1e-6, 1 - 1e-6)
        total = np.log(kept / (1 - kept)) * (propensity.weights.get(BASE, 0.0) / BASE_SCALE)
        for trait in ("", *known):
            total = total + self._weights_over(trait, propensity)
        return np.asarray(1 / (1 + np.exp(-np.clip(total, -50.0, 50.0))))

    def _weights_over(self, trait: str, propensity: Propensity) -> Floats:
        made = self._weights.get(trait)
        if made is None:
            weights = propensity.weights
            whole = weights.get(trait or CONSTANT, 0.0)
            names = (f"{trait}|{offer.id}" if trait else f"offer={offer.id}" for offer in self._offers)
            made = np.array([whole + weights.get(name, 0.0) for name in names])
            if len(self._weights) >= TRAITS_MAX:
                del self._weights[next(iter(self._weights))]
            self._weights[trait] = made
        return made

    def _evidence(self, profile: Profile, contact: Contact) -> tuple[list[str], list[_Row]]:
        """(the products that speak: had, or asked about just now; what each says of every offer)."""
        speaking = (
            profile.products.union(contact.products_asked) if contact.products_asked else profile.products
        )
        known = [x for x in sorted(speaking)[:OWNED_PRODUCTS_MAX] if x in self._table.partners]
        return known, [self._row(x) for x in known]

    def _best(self, rows: Sequence[_Row]) -> Floats:
        """The probability of each offer: what speaks loudest for it, else its popularity."""
        if not rows:
            return self._popular
        best = rows[0].chances.copy()
        # One by one: numpy would first make one array of all of them.
        for row in rows[1:]:
            np.maximum(best, row.chances, out=best)
        np.copyto(best, self._popular, where=best < 0)
        return best

    def _surely(self, rows: Sequence[_Row], count: int) -> float:
        """A bound that at least `count` offers reach by the history, if there are so many."""
        return max([row.height(count) for row in rows or (self._anybody,)])

    def _eligible(
        self,
        scores: Floats,
        bound: float,
        profile: Profile,
        contact: Contact,
        now: datetime,
        limit: int,
    ) -> list[int]:
        """The places of the best eligible offers, at most `limit`, at most one a product, best first. Those
        whose scores reach `bound` are looked at first.
        """
        catalogue, offers = self._catalogue, self._offers
        held = catalogue.always.copy()
        condition_of = catalogue.condition_of
        products: set[str] = set()
        places: list[int] = []
        done = 0
        while True:
            order = _from(scores, bound)
            for index in order[done:]:
                number, product = condition_of[index], offers[index].product
                if product in products:
                    continue
                holds = held.get(number)
                if holds is None:
                    holds = held[number] = catalogue.holds(number, profile, contact, now)
                if holds:
                    products.add(product)
                    places.append(index)
                    if len(places) >= limit:
                        return places
            if bound <= 0:
                return places
            done = len(order)
            bound = _nth_highest(scores, FURTHER_TIMES * max(done, limit))

    def _rule(self, antecedent: str, product: str) -> Rule:
        """What the history says of a product for the owners of another."""
        found = self._rules.get((antecedent, product))
        if found is None:
            judged = rule(self._table, antecedent, product) if antecedent else None
            found = judged or popularity(self._table, product)
            if product in self._new_products:
                found = self._of_new(found)
            if len(self._rules) >= RULES_MAX:
                del self._rules[next(iter(self._rules))]
            self._rules[antecedent, product] = found
        return found

    def _of_new(self, found: Rule) -> Rule:
        """A new product is as likely as one of which nothing is known; what its first customers have speaks,
        what the others lack does not.
        """
        rate, strength = self._table.smoothing.rate, self._table.smoothing.strength
        if not found.antecedent or not found.together:
            return replace(popularity(self._table, found.consequent), probability=rate, base=rate)
        together = (found.together + strength * rate) / (found.customers + strength)
        return replace(found, probability=together, base=rate)

    def _popularity(self) -> Floats:
        return np.array([self._rule("", offer.product).probability for offer in self._offers])

    def _row(self, antecedent: str) -> _Row:
        made = self._rows.get(antecedent)
        if made is None:
            made = self._measured(antecedent, self._make_row(antecedent))
            if len(self._rows) >= self._rows_max:
                del self._rows[next(iter(self._rows))]
            self._rows[antecedent] = made
        return made

    def _measured(self, antecedent: str, chances: Floats) -> _Row:
        scores = chances * self._catalogue.worths
        places = (-scores).argsort(kind="stable")[:HEIGHTS_MAX].tolist()
        return _Row(
            chances,
            [
                (-scores.item(place), place, -chances.item(place), antecedent)
                for place in places
                if scores.item(place) > 0
            ],
        )

    def _make_row(self, antecedent: str) -> Floats:
        """The same figures as `association.rule` gives, for all offers at once."""
        entry, strength = self._table.partners[antecedent], self._table.smoothing.strength
        places = self._catalogue.places
        together = np.zeros(len(self._offers))
        found = [(at, count) for product, count in entry.together.items() for at in places.get(product, ())]
        if found:
            # All at once: numpy takes longer to look at one place of its own than at a hundred.
            at, counts = zip(*found, strict=True)
            together[list(at)] = counts
        row = (together + strength * self._popular) / (entry.customers + strength)
        if not entry.complete:
            row[together == 0] = -1.0
        fresh = np.array(self._new, dtype=np.intp)
        row[fresh[together[fresh] == 0]] = -1.0
        row[places.get(antecedent, [])] = -1.0
        return row

    def entry(
        self,
        candidate: Candidate,
        profile: Profile,
        rank: int,
        propensity: float = 1.0,
        explored: bool = False,
    ) -> RankedOffer:
        """A candidate as a line of a ranking, with its words."""
        offer = candidate.offer
        heard = self._heard[offer.id]
        words = (
            (profile.tier if profile.tier in heard else "", profile.tags & heard) if heard else _FOR_EVERYBODY
        )
        key = (offer.id, candidate.rule.antecedent, explored, words)
        template = self._templates.get(key)
        if template is None:
            template = self._template(candidate, scripts_for(offer, profile), explored)
            if len(self._templates) >= TEMPLATES_MAX:
                del self._templates[next(iter(self._templates))]
            self._templates[key] = template
        # By hand: `replace` takes several times as long, and this is done for each line of each ranking.
        return RankedOffer(
            offer=template.offer,
            revision=template.revision,
            product=template.product,
            titles=template.titles,
            price=template.price,
            worth=template.worth,
            rank=rank,
            score=candidate.score,
            probability=candidate.probability,
            propensity=propensity,
            reason=template.reason,
            scripts=template.scripts,
            forms=template.forms,
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


def _by_model(candidate: Candidate, propensity: Propensity, known: tuple[str, ...]) -> Candidate:
    """A candidate whose probability is corrected by the propensity model."""
    offer, worth = candidate.offer, candidate.worth
    chance = corrected(propensity, offer.id, known, candidate.probability)
    return Candidate(offer, candidate.rule, chance, worth, chance * worth, {})


def _nth_highest(scores: Floats, count: int) -> float:
    """The score that `count` offers reach; 0 where not so many reach that."""
    if count >= len(scores):
        return 0.0
    parted = scores.copy()
    parted.partition(-count)
    return max(0.0, parted.item(-count))


def _from(scores: Floats, bound: float) -> list[int]:
    """The places of all scores that reach a bound, best first; equal ones in the order of their places."""
    # The arrays' own methods: numpy's functions of these names look for other kinds of arrays first.
    (found,) = (scores >= bound).nonzero()
    ordered: list[int] = found.take((-scores.take(found)).argsort(kind="stable")).tolist()
    return ordered


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
