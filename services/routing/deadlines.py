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
from collections.abc import Callable, Iterator
from math import inf

Deadline = tuple[int, str, str]
#: A bag holds the deadlines of 2^10 milliseconds.
_BAG_BITS = 10


class Deadlines:
    """Entries of one shard."""

    __slots__ = ("_bags", "_heaps", "_order", "_runs")

    def __init__(self, runs: Callable[[Deadline], bool]) -> None:
        """`runs` says whether an entry's owner has that very deadline now."""
        self._runs = runs
        #: By the second that they are due in.
        self._bags: dict[int, list[Deadline]] = {}
        #: Heap of those seconds; those of them whose bag is a heap by now.
        self._order: list[int] = []
        self._heaps: set[int] = set()

    def __len__(self) -> int:
        """Outdated ones included."""
        return sum(map(len, self._bags.values()))

    def __iter__(self) -> Iterator[Deadline]:
        """All, in no order, outdated ones included."""
        for bag in self._bags.values():
            yield from bag

    def add(self, deadline: Deadline) -> None:
        """One more."""
        second = deadline[0] >> _BAG_BITS
        bag = self._bags.get(second)
        if bag is None:
            self._bags[second] = [deadline]
            heapq.heappush(self._order, second)
        elif second in self._heaps:
            heapq.heappush(bag, deadline)
        else:
            bag.append(deadline)

    @property
    def earliest_ms(self) -> float:
        """No deadline is due before this; infinity without one."""
        if not self._order:
            return inf
        second = self._order[0]
        return self._bags[second][0][0] if second in self._heaps else second << _BAG_BITS

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
            heapq.heappop(self._bags[self._order[0]])
        return first

    def together(self, kind: str, now_ms: int, limit: int) -> tuple[str, ...]:
        """Owners whose deadline of one kind is due before any other kind's, in order; nothing that runs is
        taken out. O(limit log limit).
        """
        found: dict[str, None] = {}
        order, last = self._order, now_ms >> _BAG_BITS
        if order and order[0] <= last and self._gather(self._heap_of(order[0]), kind, now_ms, limit, found):
            # All of the first second's: the others are looked for only now, there may be thousands.
            for second in sorted(s for s in order if order[0] < s <= last):
                if not self._gather(self._heap_of(second), kind, now_ms, limit, found):
                    break
        return tuple(found)

    def _gather(
        self, heap: list[Deadline], kind: str, now_ms: int, limit: int, found: dict[str, None]
    ) -> bool:
        """Adds the owners of one second; whether to go on with the next. The heap's least entries are found
        from its top downwards, each below its parent, and only those that are due.
        """
        least = [(heap[0], 0)] if heap else []
        while least:
            if len(found) >= limit:
                return False
            deadline, at = heapq.heappop(least)
            for child in range(2 * at + 1, min(2 * at + 3, len(heap))):
                if heap[child][0] <= now_ms:
                    heapq.heappush(least, (heap[child], child))
            if not self._runs(deadline):
                continue
            if deadline[1] != kind or deadline[0] > now_ms:
                return False
            found[deadline[2]] = None
        return True

    def tidy(self) -> None:
        """Drops all that are outdated: for who only adds."""
        kept = [deadline for deadline in self if self._runs(deadline)]
        self.clear()
        for deadline in kept:
            self.add(deadline)

    def clear(self) -> None:
        """Drops everything."""
        self._bags, self._order, self._heaps = {}, [], set()

    def _heap_of(self, second: int) -> list[Deadline]:
        """The bag of a second as a heap."""
        if second not in self._heaps:
            bag = self._bags[second] = [deadline for deadline in self._bags[second] if self._runs(deadline)]
            heapq.heapify(bag)
            self._heaps.add(second)
        return self._bags[second]

    def _drop_first_bag(self) -> None:
        second = heapq.heappop(self._order)
        del self._bags[second]
        self._heaps.discard(second)
