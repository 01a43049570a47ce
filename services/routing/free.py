"""Who is free for a line, in the order in which its queue's strategy takes them.

An agent is listed in many lines at once, and leaves all of them with each offer: coming must cost next to
nothing, and going nothing at all. So one `Place` stands in all those lines; an agent who goes marks it, and
it stays behind in each of them until it comes up there, or until the outdated outnumber the living. Ranks
that many agents share (proficiency, priority, calls taken) have a list each, first come first served; ranks
that hardly two agents share (occupancy, turn) need a heap.

All are indexes of a shard's state, no facts: made again, they may order agents of equal rank differently.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque

#: An index is tidied when its outdated places outnumber the live ones by this.
OUTDATED_MAX = 64


class Place:
    """One agent's being free on one channel, from coming to going."""

    __slots__ = ("agent_id", "live")

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        #: Until the agent goes; then never again.
        self.live = True


class Free(ABC):
    """The free agents of one line."""

    __slots__ = ("count", "length")

    def __init__(self) -> None:
        #: Free agents. Whoever marks a place as no longer live takes one off here.
        self.count = 0
        #: Places, outdated ones included.
        self.length = 0

    def add(self, place: Place, rank: int) -> None:
        """Free from now on. A lower rank is taken first, of equal ranks who came first."""
        self.count += 1
        self.length += 1
        self._put(place, rank)
        if self.length > 2 * self.count + OUTDATED_MAX:
            # Each place is dropped once, so this adds a constant to its coming.
            self._tidy()

    @abstractmethod
    def _put(self, place: Place, rank: int) -> None:
        """Lists a place."""

    @abstractmethod
    def _tidy(self) -> None:
        """Drops outdated places, and says in `length` what is left."""

    @abstractmethod
    def best(self, lot: int) -> str | None:
        """Who is taken next, None when nobody is free. `lot` is any number, for who draws lots."""

    @abstractmethod
    def order(self) -> list[str]:
        """All, as they would be taken. O(n log n): for people."""


class ByRank(Free):
    """A list for each rank. O(1), and O(log ranks) for a rank not seen."""

    __slots__ = ("_lists", "_ranks")

    def __init__(self) -> None:
        super().__init__()
        self._lists: dict[int, deque[Place]] = {}
        #: Heap of the ranks that have a list.
        self._ranks: list[int] = []

    def _put(self, place: Place, rank: int) -> None:
        places = self._lists.get(rank)
        if places is None:
            places = self._lists[rank] = deque()
            heapq.heappush(self._ranks, rank)
        places.append(place)

    def _tidy(self) -> None:
        self._lists = {
            rank: deque(live)
            for rank, places in self._lists.items()
            if (live := [place for place in places if place.live])
        }
        self._ranks = sorted(self._lists)
        self.length = self.count

    def best(self, lot: int) -> str | None:
        ranks = self._ranks
        while ranks:
            places = self._lists[ranks[0]]
            while places:
                if places[0].live:
                    return places[0].agent_id
                places.popleft()
                self.length -= 1
            del self._lists[heapq.heappop(ranks)]
        return None

    def order(self) -> list[str]:
        lists = (self._lists[rank] for rank in sorted(self._lists))
        return [place.agent_id for places in lists for place in places if place.live]


class ByHeap(Free):
    """Where hardly two ranks are equal. O(log n)."""

    __slots__ = ("_came", "_heap")

    def __init__(self) -> None:
        super().__init__()
        #: Of (rank, how many came before, place).
        self._heap: list[tuple[int, int, Place]] = []
        self._came = 0

    def _put(self, place: Place, rank: int) -> None:
        self._came += 1
        heapq.heappush(self._heap, (rank, self._came, place))

    def _tidy(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].live]
        heapq.heapify(self._heap)
        self.length = len(self._heap)

    def best(self, lot: int) -> str | None:
        heap = self._heap
        while heap:
            place = heap[0][2]
            if place.live:
                return place.agent_id
            heapq.heappop(heap)
            self.length -= 1
        return None

    def order(self) -> list[str]:
        return [place.agent_id for _, _, place in sorted(self._heap) if place.live]


class ByLot(Free):
    """Everybody equally likely. O(1)."""

    __slots__ = ("_pool",)

    def __init__(self) -> None:
        super().__init__()
        self._pool: list[Place] = []

    def _put(self, place: Place, rank: int) -> None:
        self._pool.append(place)

    def _tidy(self) -> None:
        self._pool = [place for place in self._pool if place.live]
        self.length = len(self._pool)

    def best(self, lot: int) -> str | None:
        # A lot that falls on one who has gone is drawn again among the others: each of them remains equally
        # likely.
        pool = self._pool
        while pool:
            at = lot % len(pool)
            if pool[at].live:
                return pool[at].agent_id
            pool[at] = pool[-1]
            pool.pop()
            self.length -= 1
        return None

    def order(self) -> list[str]:
        return [place.agent_id for place in self._pool if place.live]
