"""Trees of least expected cost. Pure, and knows nothing of menus: items are anything with a weight.

Which algorithm, and why it is optimal:

- Free grouping: D. A. Huffman, "A Method for the Construction of Minimum-Redundancy Codes", Proc. IRE 40
  (1952), for any arity: the first merge takes as few items as make all later ones full. Of equal weights
  the lower tree is merged first, which gives the least greatest depth among the optimal trees.
- Some keys of the top level taken: the same, with a top of fewer places. It is Huffman's algorithm with the
  taken places as items so heavy that they are merged last, hence optimal too.
- Kept order: A. Itai, "Optimal Alphabetic Trees", SIAM J. Comput. 5 (1976): dynamic programming over spans
  of items.
- Kept groups: a group's inside and its place cost their sum, so each is solved by itself, the group being
  one item outside.
- Choices that cost more the later they are told (keys and listening together): exact algorithms are known
  but far too slow here (Golin and Rote, IEEE Trans. Inf. Theory 44 (1998), O(n^(C+2)) for greatest cost C).
  Near-optimal is splitting the items from the top, each choice getting its share of the weight: K.
  Mehlhorn, "An Efficient Algorithm for Constructing Nearly Optimal Prefix Codes", IEEE Trans. Inf. Theory
  26 (1980). It is tried beside Huffman's trees of every arity.
- Order of telling: W. E. Smith, "Various Optimizers for Single-Stage Production", Naval Res. Logist. Q. 3
  (1956): told by falling ratio of weight to duration, the expected time to hear one's own choice is least.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

#: Items of an ordered level: the dynamic programme takes time in the cube of them.
ORDERED_MAX = 100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bundle(Generic[T]):
    """Items that share a level below the one it stands on."""

    members: tuple[T | Bundle[T], ...]


def cheapest(
    weights: Sequence[float], items: Sequence[T], arity: int, top: int, heights: Sequence[int] = ()
) -> list[T | Bundle[T]]:
    """The top level of a tree over `items` with the least sum of weight times depth: at most `top` entries,
    at most `arity` below each. `heights` are those of what the items hold themselves, to keep the whole low
    among equals. ValueError for an arity below 2 or no place at the top.
    """
    if arity < 2 or top < 1:
        raise ValueError("a tree needs two choices a level and a place at the top")
    order = itertools.count()
    each = zip(weights, heights or [0] * len(items), items, strict=True)
    heap: list[tuple[float, int, int, T | Bundle[T]]] = [(w, h, next(order), i) for w, h, i in each]
    heapq.heapify(heap)
    if len(heap) > top:
        merge = (len(heap) - top - 1) % (arity - 1) + 2
        while len(heap) > top:
            taken = [heapq.heappop(heap) for _ in range(merge)]
            bundle: Bundle[T] = Bundle(tuple(item for *_, item in reversed(taken)))
            weight, height = sum(w for w, *_ in taken), max(h for _, h, *_ in taken) + 1
            heapq.heappush(heap, (weight, height, next(order), bundle))
            merge = arity
    return [item for *_, item in sorted(heap, key=lambda entry: (-entry[0], entry[2]))]


def split(
    weights: Sequence[float], items: Sequence[T], costs: Sequence[float], top: Sequence[float]
) -> list[T | Bundle[T]]:
    """The top level of a nearly cheapest tree where choosing the i-th entry of a level costs `costs[i]` > 0
    and of the top level `top[i]`; both rise. ValueError for fewer than two choices a level or no place at
    the top.
    """
    if len(costs) < 2 or not top:
        raise ValueError("a tree needs two choices a level and a place at the top")
    by_weight = sorted(range(len(items)), key=lambda i: -weights[i])
    sums = [0.0, *itertools.accumulate(weights[i] for i in by_weight)]
    below, above = _shares(costs), _shares(top) if len(top) > 1 else [1.0]

    def level(first: int, end: int, shares: Sequence[float]) -> list[T | Bundle[T]]:
        if end - first <= len(shares):
            return [items[i] for i in by_weight[first:end]]
        found: list[T | Bundle[T]] = []
        start, given, whole = first, 0.0, sums[end] - sums[first]
        for place, share in enumerate(shares):
            given += share
            # Each entry gets an item at least, the last one the rest.
            latest = end - (len(shares) - place - 1)
            upto = start + 1 if place < len(shares) - 1 else end
            while upto < latest and sums[upto] - sums[first] + weights[by_weight[upto]] / 2 <= given * whole:
                upto += 1
            alone = upto - start == 1
            found.append(items[by_weight[start]] if alone else Bundle(tuple(level(start, upto, below))))
            start = upto
        return found

    return level(0, len(items), above)


def least_presses(weights: Sequence[float], arity: int) -> float:
    """Weight times depth, summed over the items of the optimal tree: the least possible, one press a level.
    0 for no item; a lone item takes one press.
    """
    heap = list(weights)
    if len(heap) < 2:
        return float(sum(heap))
    heapq.heapify(heap)
    cost = 0.0
    merge = (len(heap) - 2) % (arity - 1) + 2
    while len(heap) > 1:
        together = sum(heapq.heappop(heap) for _ in range(merge))
        cost += together
        heapq.heappush(heap, together)
        merge = arity
    return cost


def cheapest_in_order(
    weights: Sequence[float], items: Sequence[T], arity: int, top: int
) -> list[T | Bundle[T]]:
    """As `cheapest`, with the items in their order from left to right. ValueError for more than
    `ORDERED_MAX`.
    """
    count = len(items)
    if count > ORDERED_MAX:
        raise ValueError(f"an ordered level may have at most {ORDERED_MAX} items")
    if count <= top:
        return list(items)
    table = _Spans(weights, arity)
    return table.parts(items, 0, count, top)


class _Spans:
    """Least costs of spans of items that keep their order."""

    def __init__(self, weights: Sequence[float], arity: int) -> None:
        self._sums = [0.0, *itertools.accumulate(weights)]
        self._arity = arity
        count = len(weights)
        #: [k][i][j]: cost of items i..j-1 below at most k entries of one level, without that level's own
        #: press.
        self._cost = [[[math.inf] * (count + 1) for _ in range(count + 1)] for _ in range(arity + 1)]
        self._cut = [[[0] * (count + 1) for _ in range(count + 1)] for _ in range(arity + 1)]
        for length in range(1, count + 1):
            for i in range(count - length + 1):
                self._fill(i, i + length)

    def _whole(self, i: int, j: int) -> float:
        """Cost of a span below one entry."""
        if j - i == 1:
            return 0.0
        return self._cost[self._arity][i][j] + self._sums[j] - self._sums[i]

    def _fill(self, i: int, j: int) -> None:
        # With two entries or more, both sides of the cut are shorter spans: known already.
        for k in range(2, self._arity + 1):
            best, at = (0.0, j) if j - i == 1 else (math.inf, 0)
            for cut in range(i + 1, j):
                rest = self._whole(cut, j) if k == 2 else min(self._whole(cut, j), self._cost[k - 1][cut][j])
                cost = self._whole(i, cut) + rest
                if cost < best:
                    best, at = cost, cut
            self._cost[k][i][j], self._cut[k][i][j] = best, at

    def parts(self, items: Sequence[T], i: int, j: int, k: int) -> list[T | Bundle[T]]:
        """The entries of a level over items i..j-1."""
        found: list[T | Bundle[T]] = []
        while k >= 2 and j - i > 1:
            cut = self._cut[k][i][j]
            found.append(self._one(items, i, cut))
            alone = k == 2 or self._whole(cut, j) <= self._cost[k - 1][cut][j]
            i, k = cut, 1 if alone else k - 1
        return [*found, self._one(items, i, j)]

    def _one(self, items: Sequence[T], i: int, j: int) -> T | Bundle[T]:
        if j - i == 1:
            return items[i]
        return Bundle(tuple(self.parts(items, i, j, self._arity)))


def _shares(costs: Sequence[float]) -> list[float]:
    """The share of the weight that each choice is to get: z to the power of its cost, z so that they make 1
    together.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**cost for cost in costs) < 1 else (low, middle)
    return [low**cost for cost in costs]


def told_in_order(items: Sequence[T], weight: Callable[[T], float], seconds: Callable[[T], float]) -> list[T]:
    """Items in the order that makes hearing one's own choice quickest on average; stable among equals."""
    return sorted(items, key=lambda item: -weight(item) / max(seconds(item), 1e-3))
