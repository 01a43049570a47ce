"""Deadlines in their order, for a shard that sets many and lets few come to pass.

Nearly every deadline is outdated before it is due: the offer was accepted, the call answered, the work
written up. So deadlines of one second lie in a bag, unordered, until that second is the first: then those
that still run become a sorted row. Whatever was outdated by then was never ordered.

An entry is (milliseconds, kind, owner), and nothing else orders them: a state made from an image comes to the
same first one. It counts only while its owner has that very deadline; whoever sets a deadline again adds it
again. All of this is an index, and may be tidied at any time.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

Deadline = tuple[int, str, str]
#: A bag holds the deadlines of 2^10 milliseconds.
_BAG_BITS = 10


class Deadlines:
    """Entries of one shard."""

    __slots__ = ("_bags", "_order", "_rows", "_runs")

    def __init__(self, runs: Callable[[Deadline], bool]) -> None:
        """`runs` says whether an entry's owner has that very deadline now."""
        self._runs = runs
        #: By the second that they are due in: bags, an entry's three parts in a row, for that makes no object
        #: that the garbage collector would look at; and what has become a sorted row of entries.
        self._bags: dict[int, list[Any]] = {}
        self._rows: dict[int, list[Deadline]] = {}
        #: Those seconds, ascending.
        self._order: list[int] = []

    def __len__(self) -> int:
        """Outdated ones included."""
        return sum(len(bag) // 3 for bag in self._bags.values()) + sum(map(len, self._rows.values()))

    def __iter__(self) -> Iterator[Deadline]:
        """All, in no order, outdated ones included."""
        yield from itertools.chain.from_iterable(map(_entries, self._bags.values()))
        yield from itertools.chain.from_iterable(self._rows.values())

    def add(self, deadline: Deadline) -> None:
        """One more."""
        second = deadline[0] >> _BAG_BITS
        if (bag := self._bags.get(second)) is not None:
            bag.extend(deadline)
        elif (row := self._rows.get(second)) is not None:
            bisect.insort(row, deadline)
        else:
            self._bags[second] = [*deadline]
            bisect.insort(self._order, second)

    @property
    def earliest_ms(self) -> float:
        """No deadline is due before this; infinity without one."""
        if not self._order:
            return inf
        second = self._order[0]
        row = self._rows.get(second)
        return row[0][0] if row else second << _BAG_BITS

    def first(self) -> Deadline | None:
        """The earliest that runs; outdated ones are dropped on the way."""
        while self._order:
            row, outdated = self._row_of(self._order[0]), 0
            for deadline in row:
                if self._runs(deadline):
                    break
                outdated += 1
            # All at once: a row is as long as a second is busy.
            del row[:outdated]
            if row:
                return row[0]
            del self._rows[self._order.pop(0)]
        return None

    def drop_first(self) -> Deadline | None:
        """Takes the earliest out."""
        first = self.first()
        if first is not None:
            del self._rows[self._order[0]][0]
        return first

    def together(self, kind: str, now_ms: int, limit: int) -> tuple[str, ...]:
        """Owners whose deadline of one kind is due before any other kind's, in order; nothing that runs is
        taken out. O(limit).
        """
        found: dict[str, None] = {}
        last = now_ms >> _BAG_BITS
        for second in self._order:
            if second > last:
                # The later ones are not even sorted before they are wanted.
                break
            for deadline in self._row_of(second):
                if deadline[0] > now_ms or len(found) >= limit:
                    return tuple(found)
                if self._runs(deadline):
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
        self._bags, self._rows, self._order = {}, {}, []

    def _row_of(self, second: int) -> list[Deadline]:
        """The bag of a second, sorted."""
        row = self._rows.get(second)
        if row is None:
            row = self._rows[second] = sorted(filter(self._runs, _entries(self._bags.pop(second))))
        return row


def _entries(bag: list[Any]) -> Iterator[Deadline]:
    parts = iter(bag)
    return zip(parts, parts, parts, strict=True)
