"""Who is free for a line, in the order in which its queue's strategy takes them.

An agent is listed in many lines at once, and leaves all of them with each offer: coming must cost next to
nothing, and going nothing at all. So one `Place` stands in all those lines. An agent who comes puts it into
each line's inbox, unranked; only a line that is asked for its best ranks what its inbox holds. An agent who
goes marks the place, and it stays behind wherever it is until it comes up there: a place that has gone by
the time its line is asked was never ranked, and in a busy centre most have. Ranks that many agents share
(proficiency, priority, calls taken) have a list each, first come first served; ranks that hardly two agents
share (occupancy, turn) need a heap.

All are indexes of a shard's state, no facts: made again, they may order agents of equal rank differently.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from routing.model import Requirement, Strategy

#: Places in an inbox before they are ranked unasked.
INBOX_MAX = 128
#: An index is tidied when it is twice as long as the last time, and by this much longer.
OUTDATED_MAX = 64
#: Bits of a place's number in a heap that say how many came before.
_CAME_BITS = 48


class Place:
    """One agent's being free on one channel, from coming to going."""

    __slots__ = ("agent", "agent_id", "live", "since_ms")

    def __init__(self, agent_id: str, agent: Any, since_ms: int) -> None:
        self.agent_id = agent_id
        #: For who ranks it.
        self.agent = agent
        #: When the agent came.
        self.since_ms = since_ms
        #: Until the agent goes; then never again.
        self.live = True


_since = operator.attrgetter("since_ms")


class Free(ABC):
    """The free agents of one line. Whoever appends to `inbox` looks at its length and calls `take_in`."""

    __slots__ = ("_disordered", "_rank", "_tidy_at", "inbox", "length")

    def __init__(self, rank: Callable[[Place], int]) -> None:
        """A lower rank is taken first, of equal ranks who came first. The rank of a place may not change."""
        self._rank = rank
        #: Who came since the line was last asked, in order.
        self.inbox: list[Place] = []
        #: Ranked places, outdated ones included.
        self.length = 0
        self._tidy_at = OUTDATED_MAX
        #: Somebody is to stand before others who came earlier.
        self._disordered = False

    def add(self, place: Place) -> None:
        """Free from now on."""
        self.inbox.append(place)
        if len(self.inbox) > INBOX_MAX:
            self.take_in()

    def add_back(self, place: Place) -> None:
        """Free since before, and to stand where that puts it among those of its rank."""
        self._disordered = True
        self.add(place)

    def take_in(self) -> None:
        """Ranks what came."""
        came = [place for place in self.inbox if place.live]
        self.inbox.clear()
        self.length += len(came)
        self._put(came)
        if self._disordered:
            self._put_in_order()
            self._disordered = False
        if self.length > self._tidy_at:
            # Each place is dropped once, so this adds a constant to its coming.
            self._tidy()
            self._tidy_at = 2 * self.length + OUTDATED_MAX

    def best(self, lot: int) -> str | None:
        """Who is taken next, None when nobody is free. `lot` is any number, for who draws lots."""
        if self.inbox:
            self.take_in()
        return self._best(lot)

    def order(self, limit: int = sys.maxsize) -> list[str]:
        """The first `limit`, as they would be taken; changes nothing. O(n log limit): for people."""
        came = ((self._rank(place), place) for place in self.inbox)
        ranked = (
            (rank, place.since_ms, place)
            for rank, place in itertools.chain(self._ranked(), came)
            if place.live
        )
        first = heapq.nsmallest(limit, ranked, key=operator.itemgetter(0, 1))
        return [place.agent_id for _, _, place in first]

    def count(self) -> int:
        """How many are free; changes nothing. O(n)."""
        return sum(place.live for _, place in self._ranked()) + sum(place.live for place in self.inbox)

    @abstractmethod
    def _put(self, places: list[Place]) -> None:
        """Ranks and lists places."""

    @abstractmethod
    def _put_in_order(self) -> None:
        """Of those of one rank who has been free for longer first."""

    @abstractmethod
    def _tidy(self) -> None:
        """Drops outdated places, and says in `length` what is left."""

    @abstractmethod
    def _best(self, lot: int) -> str | None:
        """Of those who are ranked."""

    @abstractmethod
    def _ranked(self) -> Iterator[tuple[int, Place]]:
        """(rank, place) of those who are ranked, outdated ones included; of equal ranks, who came first."""


class ByRank(Free):
    """A list for each rank. O(1), and O(log ranks) for a rank not seen."""

    __slots__ = ("_lists", "_ranks")

    def __init__(self, rank: Callable[[Place], int]) -> None:
        super().__init__(rank)
        self._lists: dict[int, deque[Place]] = {}
        #: Heap of the ranks that have a list.
        self._ranks: list[int] = []

    def _put(self, places: list[Place]) -> None:
        rank_of, lists = self._rank, self._lists
        for place in places:
            rank = rank_of(place)
            same = lists.get(rank)
            if same is None:
                same = lists[rank] = deque()
                heapq.heappush(self._ranks, rank)
            same.append(place)

    def _put_in_order(self) -> None:
        self._lists = {rank: deque(sorted(same, key=_since)) for rank, same in self._lists.items()}

    def _tidy(self) -> None:
        self._lists = {
            rank: deque(live)
            for rank, places in self._lists.items()
            if (live := [place for place in places if place.live])
        }
        self._ranks = sorted(self._lists)
        self.length = sum(len(places) for places in self._lists.values())

    def _best(self, lot: int) -> str | None:
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

    def _ranked(self) -> Iterator[tuple[int, Place]]:
        return ((rank, place) for rank, places in self._lists.items() for place in places)


class ByTurn(Free):
    """Who came first. O(1)."""

    __slots__ = ("_places",)

    def __init__(self, rank: Callable[[Place], int]) -> None:
        super().__init__(rank)
        self._places: deque[Place] = deque()

    def _put(self, places: list[Place]) -> None:
        self._places.extend(places)

    def _put_in_order(self) -> None:
        self._places = deque(sorted(self._places, key=_since))

    def _tidy(self) -> None:
        self._places = deque(place for place in self._places if place.live)
        self.length = len(self._places)

    def _best(self, lot: int) -> str | None:
        places = self._places
        while places:
            if places[0].live:
                return places[0].agent_id
            places.popleft()
            self.length -= 1
        return None

    def _ranked(self) -> Iterator[tuple[int, Place]]:
        return ((0, place) for place in self._places)


class ByHeap(Free):
    """Where hardly two ranks are equal. O(log n)."""

    __slots__ = ("_came", "_heap", "_places")

    def __init__(self, rank: Callable[[Place], int]) -> None:
        super().__init__(rank)
        #: Of a number a place: its rank, then how many came before. Numbers compare faster than tuples, and
        #: no garbage collector looks at them.
        self._heap: list[int] = []
        self._places: dict[int, Place] = {}
        self._came = 0

    def _put(self, places: list[Place]) -> None:
        for place in places:
            self._came += 1
            number = (self._rank(place) << _CAME_BITS) + self._came
            self._places[number] = place
            heapq.heappush(self._heap, number)

    def _put_in_order(self) -> None:
        ranked = [(number >> _CAME_BITS, place.since_ms, number) for number, place in self._places.items()]
        places, self._places = self._places, {}
        for rank, _, number in sorted(ranked):
            self._came += 1
            self._places[(rank << _CAME_BITS) + self._came] = places[number]
        self._heap = list(self._places)

    def _tidy(self) -> None:
        self._places = {number: place for number, place in self._places.items() if place.live}
        self._heap = list(self._places)
        heapq.heapify(self._heap)
        self.length = len(self._heap)

    def _best(self, lot: int) -> str | None:
        heap, places = self._heap, self._places
        while heap:
            place = places[heap[0]]
            if place.live:
                return place.agent_id
            del places[heapq.heappop(heap)]
            self.length -= 1
        return None

    def _ranked(self) -> Iterator[tuple[int, Place]]:
        return ((number >> _CAME_BITS, self._places[number]) for number in sorted(self._heap))


class ByLot(Free):
    """Everybody equally likely. O(1)."""

    __slots__ = ("_pool",)

    def __init__(self, rank: Callable[[Place], int]) -> None:
        super().__init__(rank)
        self._pool: list[Place] = []

    def _put(self, places: list[Place]) -> None:
        self._pool += places

    def _put_in_order(self) -> None:
        """Everybody is equally likely wherever they stand."""

    def _tidy(self) -> None:
        self._pool = [place for place in self._pool if place.live]
        self.length = len(self._pool)

    def _best(self, lot: int) -> str | None:
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

    def _ranked(self) -> Iterator[tuple[int, Place]]:
        return ((0, place) for place in self._pool)


def _by_proficiency(requirements: Sequence[Requirement]) -> Callable[[Place], int]:
    """The higher the sum of the levels asked for, the better."""
    wanted = [skill for skill, _ in requirements]
    if len(wanted) == 1:
        only = wanted[0]
        return lambda place: -place.agent.skills.get(only, 0)
    return lambda place: -sum([place.agent.skills.get(skill, 0) for skill in wanted])


#: Strategies without ranks, and those whose ranks hardly two agents share; the others list free agents by
#: rank.
_FREE: dict[Strategy, Callable[[Callable[[Place], int]], Free]] = {
    Strategy.LONGEST_IDLE: ByTurn,
    Strategy.RANDOM: ByLot,
    Strategy.LEAST_OCCUPIED: ByHeap,
    Strategy.ROUND_ROBIN: ByHeap,
}
#: How a line of some requirements ranks its free agents, lower first: by what does not change while an agent
#: stays free.
_RANKS: dict[Strategy, Callable[[Sequence[Requirement]], Callable[[Place], int]]] = {
    Strategy.LONGEST_IDLE: lambda requirements: lambda place: 0,
    Strategy.FEWEST_CALLS: lambda requirements: lambda place: place.agent.taken,
    Strategy.LEAST_OCCUPIED: lambda requirements: lambda place: place.agent.occupancy_ppm(place.since_ms),
    Strategy.ROUND_ROBIN: lambda requirements: lambda place: place.agent.last_offer,
    Strategy.RANDOM: lambda requirements: lambda place: 0,
    Strategy.PRIORITY_ORDER: lambda requirements: lambda place: place.agent.config.priority,
    Strategy.BEST_PROFICIENCY: _by_proficiency,
}


def free_by(strategy: Strategy, requirements: Sequence[Requirement]) -> Free:
    """The free agents, none yet, of a line with these requirements whose queue has this strategy."""
    return _FREE.get(strategy, ByRank)(_RANKS[strategy](requirements))
