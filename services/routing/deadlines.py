"""Deadlines in their order, for a shard that sets many and lets few come to pass.

Nearly every deadline is outdated before it is due: the offer was accepted, the call answered, the work
written up. So deadlines of one second lie in a bag, unordered, until that second is the first: then those
that still run become a heap. Whatever was outdated by then was never ordered.

An entry is (milliseconds, kind, owner), and nothing else orders them: a state made from an image comes to the
same first one. It counts only while its owner has that very deadline; whoever sets a deadline again adds it
again. All of this is an index, and may be tidied at any time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

Deadline = tuple[int, str, str]
#: A bag holds the deadlines of 2^10 milliseconds.
_BAG_BITS = 10


class Deadlines:
    """Entries of one shard."""

    __slots__ = ("_bags", "_heaps", "_order", "_runs")

    def __init__(self, runs: Callable[[Deadline], bool]) -> None:
        """`runs` says whether an entry's owner has that very deadline now."""
        self._runs = runs
        #: By the second that they are due in: bags, an entry's three parts in a row, for that makes no object
        #: that the garbage collector would look at; and what has become a heap of entries.
        self._bags: dict[int, list[Any]] = {}
        self._heaps: dict[int, list[Deadline]] = {}
        #: Heap of those seconds.
        self._order: list[int] = []

    def __len__(self) -> int:
        """Outdated ones included."""
        return sum(len(bag) // 3 for bag in self._bags.values()) + sum(map(len, self._heaps.values()))

    def __iter__(self) -> Iterator[Deadline]:
        """All, in no order, outdated ones included."""
        yield from itertools.chain.from_iterable(map(_entries, self._bags.values()))
        yield from itertools.chain.from_iterable(self._heaps.values())

    def add(self, deadline: Deadline) -> None:
        """One more."""
        second = deadline[0] >> _BAG_BITS
        if (bag := self._bags.get(second)) is not None:
            bag.extend(deadline)
        elif (heap := self._heaps.get(second)) is not None:
            heapq.heappush(heap, deadline)
        else:
            self._bags[second] = [*deadline]
            heapq.heappush(self._order, second)

    @property
    def earliest_ms(self) -> float:
        """No deadline is due before this; infinity without one."""
        if not self._order:
            return inf
        second = self._order[0]
        heap = self._heaps.get(second)
        return heap[0][0] if heap else second << _BAG_BITS

    def first(self) -> Deadline | None:
        """The earliest that runs; outdated ones are dropped on the way."""
        order, runs = self._order, self._runs
        while order:
            heap = self._heap_of(order[0])
            while heap:
                if runs(heap[0]):
                    return heap[0]
                heapq.heappop(heap)
            self._drop_first_bag()
        return None

    def drop_first(self) -> Deadline | None:
        """Takes the earliest out."""
        first = self.first()
        if first is not None:
            heapq.heappop(self._heaps[self._order[0]])
        return first

    def together(self, kind: str, now_ms: int, limit: int) -> tuple[str, ...]:
        """Owners whose deadline of one kind is due before any other kind's, in order; nothing that runs is
        taken out. O(limit log limit).
        """
        found: dict[str, None] = {}
        # Second by second: the later ones are not even made heaps before they are wanted.
        for second in _ascending(self._order, (now_ms >> _BAG_BITS) + 1):
            for deadline in _ascending(self._heap_of(second), (now_ms + 1,)):
                if len(found) >= limit:
                    return tuple(found)
                if not self._runs(deadline):
                    continue
                if deadline[1] != kind:
                    return tuple(found)
                found[deadline[2]] = None
        return tuple(found)

    def tidy(self) -> None:
        """Drops all that are outdated: for who only adds."""
        kept = [deadline for deadline in self if self._runs(deadline)]
        self.clear()
        for deadline in kept:
            self.add(deadline)

    def clear(self) -> None:
        """Drops everything."""
        self._bags, self._heaps, self._order = {}, {}, []

    def _heap_of(self, second: int) -> list[Deadline]:
        """The bag of a second as a heap."""
        heap = self._heaps.get(second)
        if heap is None:
            heap = [deadline for deadline in _entries(self._bags.pop(second)) if self._runs(deadline)]
            heapq.heapify(heap)
            self._heaps[second] = heap
        return heap

    def _drop_first_bag(self) -> None:
        del self._heaps[heapq.heappop(self._order)]


def _entries(bag: list[Any]) -> Iterator[Deadline]:
    parts = iter(bag)
    return zip(parts, parts, parts, strict=True)


def _ascending(heap: list[Any], below: Any) -> Iterator[Any]:
    """Entries of a heap that are less than `below`, in order: from its top downwards, each after its parent.
    The heap stays as it is. O(log n) for each that is taken, however many there are.
    """
    least = [(heap[0], 0)] if heap and heap[0] < below else []
    while least:
        entry, at = heapq.heappop(least)
        yield entry
        for child in range(2 * at + 1, min(2 * at + 3, len(heap))):
            if heap[child] < below:
                heapq.heappush(least, (heap[child], child))
