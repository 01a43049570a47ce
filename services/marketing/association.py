"""Which products go together in customers' histories: counting, and what may be concluded from the counts.

A customer's history is the set of products they ever had, so a "transaction" of the literature is a customer
here. Rules:

1. support, confidence (Agrawal, Imielinski, Swami: Mining association rules between sets of items in large
   databases, SIGMOD 1993) and lift (Brin, Motwani, Ullman, Tsur: Dynamic itemset counting, SIGMOD 1997, there
   "interest") are those of single products: x -> y.
2. A share of few customers says little. It is pulled towards the product's base rate as if `strength` further
   customers had behaved like the average: the m-estimate (Cestnik: Estimating probabilities, ECAI 1990). The
   base rate itself is pulled towards `rate`, so a product that nobody has yet is unlikely, not impossible.
3. Of several products of a customer the one that speaks loudest for y counts: the maximum, which can be
   explained in one sentence, where a product of likelihoods could not.
4. Counts are bounded: products, partners of a product, and products of one customer. What was cut is known to
   be cut: a pair missing from a whole list was never seen, a pair missing from a cut list is not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations

#: Most products of one customer that are counted; beyond it the customer is a reseller, and quadratic in
#: work.
PRODUCTS_PER_CUSTOMER_MAX = 100
#: Most products in a table, the commonest first.
PRODUCTS_MAX = 2_000
#: Most partners kept of one product, the commonest first.
PARTNERS_MAX = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """How strongly small counts are pulled to what is usual."""

    #: Imagined customers behind a confidence and behind a base rate, > 0.
    strength: float = 20.0
    #: Base rate of a product of which nothing is known, in (0, 1).
    rate: float = 0.01

    def __post_init__(self) -> None:
        if not (self.strength > 0 and 0 < self.rate < 1):
            raise ValueError("smoothing needs a strength above 0 and a rate between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Partners:
    """The customers of one product x, and what else they have."""

    #: Customers who have x, n(x) >= 1.
    customers: int
    #: Customers who have both x and y, n(x, y) >= 1, by y.
    together: Mapping[str, int]
    #: Whether every y with n(x, y) >= 1 is in `together`.
    complete: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleTable:
    """The counts of one model version."""

    #: Id of the model version, "" for the empty table.
    model: str = ""
    #: Customers with at least one product, n.
    customers: int = 0
    #: Customers who have y, n(y), by y.
    having: Mapping[str, int] = field(default_factory=dict)
    #: By x.
    partners: Mapping[str, Partners] = field(default_factory=dict)
    #: How to read small counts.
    smoothing: Smoothing = Smoothing()

    @property
    def facts(self) -> int:
        """(customer, product) pairs counted."""
        return sum(self.having.values())

    @property
    def rules(self) -> int:
        """Ordered product pairs kept."""
        return sum(len(entry.together) for entry in self.partners.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What the counts say about y for those who have x; with `antecedent` "" about y for anybody."""

    #: x.
    antecedent: str
    #: y.
    consequent: str
    #: n(x, y), or n(y).
    together: int
    #: n(x), or n.
    customers: int
    #: Smoothed probability of y given x, in (0, 1).
    probability: float
    #: Smoothed probability of y, in (0, 1).
    base: float

    @property
    def share(self) -> float:
        """The confidence as counted; 0 when nobody was counted."""
        return self.together / self.customers if self.customers else 0.0

    @property
    def lift(self) -> float:
        """How many times likelier y is for those who have x."""
        return self.probability / self.base


class Counts:
    """Counts customers' product sets, one customer at a time."""

    __slots__ = ("customers", "having", "pairs")

    def __init__(self) -> None:
        self.customers = 0
        self.having: Counter[str] = Counter()
        self.pairs: dict[str, Counter[str]] = {}

    def add(self, products: Iterable[str]) -> None:
        """Counts one customer's products; repeated ones once, an empty set not at all. Of more than
        `PRODUCTS_PER_CUSTOMER_MAX` the first in the order of their ids count."""
        basket = sorted(set(products))[:PRODUCTS_PER_CUSTOMER_MAX]
        if not basket:
            return
        self.customers += 1
        self.having.update(basket)
        for x, y in permutations(basket, 2):
            row = self.pairs.get(x)
            if row is None:
                row = self.pairs[x] = Counter()
            row[y] += 1

    def table(self, *, model: str, smoothing: Smoothing | None = None) -> RuleTable:
        """The table of what was counted, cut to the bounds above, deterministically."""
        kept = _commonest(self.having, PRODUCTS_MAX)
        partners = {}
        for x in sorted(kept):
            row = self.pairs.get(x, Counter())
            together = _commonest({y: count for y, count in row.items() if y in kept}, PARTNERS_MAX)
            partners[x] = Partners(
                customers=self.having[x], together=together, complete=len(together) == len(row)
            )
        return RuleTable(
            model=model,
            customers=self.customers,
            having=kept,
            partners=partners,
            smoothing=smoothing or Smoothing(),
        )


def _commonest(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """The `limit` largest counts; of equal ones those whose product sorts first."""
    if len(counts) <= limit:
        return dict(counts)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit])


def base_rate(table: RuleTable, product: str) -> float:
    """Smoothed share of all customers who have a product, in (0, 1)."""
    strength, rate = table.smoothing.strength, table.smoothing.rate
    return (table.having.get(product, 0) + strength * rate) / (table.customers + strength)


def popularity(table: RuleTable, product: str) -> Rule:
    """What the counts say about a product for anybody."""
    base = base_rate(table, product)
    return Rule(
        antecedent="",
        consequent=product,
        together=table.having.get(product, 0),
        customers=table.customers,
        probability=base,
        base=base,
    )


def rule(table: RuleTable, antecedent: str, consequent: str) -> Rule | None:
    """What the counts say about `consequent` for those who have `antecedent`; None when they cannot judge."""
    entry = table.partners.get(antecedent)
    if entry is None or antecedent == consequent:
        return None
    together = entry.together.get(consequent, 0)
    if not together and not entry.complete:
        return None
    base = base_rate(table, consequent)
    strength = table.smoothing.strength
    return Rule(
        antecedent=antecedent,
        consequent=consequent,
        together=together,
        customers=entry.customers,
        probability=(together + strength * base) / (entry.customers + strength),
        base=base,
    )


def table_problems(table: RuleTable) -> list[str]:
    """What cannot be true of counts, in words; empty for a table that may serve."""
    found: list[str] = []
    for x, entry in table.partners.items():
        if not 1 <= entry.customers <= table.customers:
            found.append(f"{entry.customers} of {table.customers} customers are said to have {x}")
        for y, count in entry.together.items():
            if not 1 <= count <= min(entry.customers, table.having.get(y, 0)):
                found.append(f"{count} customers are said to have both {x} and {y}")
    return found
