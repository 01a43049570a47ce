"""Who is free for a line, in the order in which its queue's strategy takes them.

An agent is listed in many lines at once, and leaves all of them at once with each offer: so coming and going
must cost next to nothing. Ranks that few agents differ in (proficiency, priority, calls taken) have a list
each, first come first served, from which an agent is taken out wherever it stands. Ranks that all agents
differ in (occupancy, turn) need a heap, where one who has gone stays behind until it comes up, or until the
outdated outnumber the living.

All are indexes of a shard's state, no facts: made again, they may order agents of equal rank differently.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Protocol

#: A heap is tidied when its outdated entries outnumber the live ones by this.
OUTDATED_MAX = 64


class Free(Protocol):
    """The free agents of one line."""

    def add(self, agent_id: str, rank: int) -> None:
        """Free from now on; not called again before `remove`. A lower rank is taken first."""

    def remove(self, agent_id: str) -> None:
        """No longer; nothing happens for one who is not listed."""

    def best(self, lot: int) -> str | None:
        """Who is taken next, None when nobody is free. `lot` is any number, for who draws lots."""

    def order(self) -> list[str]:
        """All, as they would be taken. O(n log n): for people."""

    def __len__(self) -> int: ...


class ByRank:
    """By rank, those of equal rank in the order they came. O(1), and O(log ranks) for a rank not seen."""

    __slots__ = ("_listed", "_lists", "_ranks")

    def __init__(self) -> None:
        self._lists: dict[int, OrderedDict[str, None]] = {}
        self._listed: dict[str, OrderedDict[str, None]] = {}
        #: Heap of the ranks that have a list.
        self._ranks: list[int] = []

    def add(self, agent_id: str, rank: int) -> None:
        listed = self._lists.get(rank)
        if listed is None:
            listed = self._lists[rank] = OrderedDict()
            heapq.heappush(self._ranks, rank)
        listed[agent_id] = None
        self._listed[agent_id] = listed

    def remove(self, agent_id: str) -> None:
        listed = self._listed.pop(agent_id, None)
        if listed is not None:
            del listed[agent_id]

    def best(self, lot: int) -> str | None:
        ranks = self._ranks
        while ranks:
            listed = self._lists[ranks[0]]
            if listed:
                return next(iter(listed))
            del self._lists[heapq.heappop(ranks)]
        return None

    def order(self) -> list[str]:
        return [agent_id for rank in sorted(self._lists) for agent_id in self._lists[rank]]

    def __len__(self) -> int:
        return len(self._listed)


class ByHeap:
    """By rank, where hardly two ranks are equal. O(log n)."""

    __slots__ = ("_heap", "_listed", "_ticket")

    def __init__(self) -> None:
        #: Of (rank, ticket, agent id).
        self._heap: list[tuple[int, int, str]] = []
        self._listed: dict[str, int] = {}
        self._ticket = 0

    def add(self, agent_id: str, rank: int) -> None:
        self._ticket += 1
        self._listed[agent_id] = self._ticket
        heapq.heappush(self._heap, (rank, self._ticket, agent_id))
        if len(self._heap) > 2 * len(self._listed) + OUTDATED_MAX:
            self._heap = self._live()
            heapq.heapify(self._heap)

    def remove(self, agent_id: str) -> None:
        self._listed.pop(agent_id, None)

    def best(self, lot: int) -> str | None:
        heap, listed = self._heap, self._listed
        while heap:
            _, ticket, agent_id = heap[0]
            if listed.get(agent_id) == ticket:
                return agent_id
            heapq.heappop(heap)
        return None

    def order(self) -> list[str]:
        return [agent_id for _, _, agent_id in sorted(self._live())]

    def _live(self) -> list[tuple[int, int, str]]:
        return [entry for entry in self._heap if self._listed.get(entry[2]) == entry[1]]

    def __len__(self) -> int:
        return len(self._listed)


class ByLot:
    """Everybody equally likely. O(1)."""

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool: list[str] = []
        #: Where in the pool each stands.
        self._at: dict[str, int] = {}

    def add(self, agent_id: str, rank: int) -> None:
        self._at[agent_id] = len(self._pool)
        self._pool.append(agent_id)

    def remove(self, agent_id: str) -> None:
        at = self._at.pop(agent_id, None)
        if at is None:
            return
        # The last one takes the place.
        last = self._pool.pop()
        if last != agent_id:
            self._pool[at] = last
            self._at[last] = at

    def best(self, lot: int) -> str | None:
        return self._pool[lot % len(self._pool)] if self._pool else None

    def order(self) -> list[str]:
        return list(self._pool)

    def __len__(self) -> int:
        return len(self._pool)
