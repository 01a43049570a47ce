"""Who of the blended agents makes outbound calls now, and who is called back to inbound. Pure: one object,
used by the simulation in virtual time and by the live dialler.

1. Inbound comes first. An outbound contact is begun only while nobody waits, and what has been begun but not
   answered yet (a preview, a line that rings) is given up as soon as a caller waits whom no free agent will
   take, the latest first. A conversation is never cut.
2. What one more outbound conversation costs is the number of inbound calls that it will make late, by the
   forecast of the next minutes and the people who will be there (`marginal.py`). A contact costs that times
   the chance that it is answered, and gains the time it keeps an agent at work. It is begun while cost /
   gain is at most the price.
3. What the forecast does not foresee is limited by an account: every inbound call expected pays in
   `loss_ratio_max`, every conversation that comes about draws what it costs, whatever was expected when its
   contact was begun. Nothing is begun that costs more than there is, so inbound does not lose more than the
   share allowed by more than the model errs.
4. An agent who begins a stint stays in outbound for `stint_min_ms`: contact after contact, at up to
   `stay_factor` times the price. A caller who waits ends the stint. Agents in a stint come first, then those
   who have been free longest.
5. At most `share` of the people there are blended at a time, and nobody begins a contact who leaves sooner
   than it takes.
6. The kill switch gives up all that is not answered and begins nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from chassis.errors import InvalidArgument
from routing.planning.erlang import Demand
from routing.planning.marginal import MarginalCost

#: Tables kept: one for each number of people and each demand met lately.
TABLES_MAX = 256
#: Demands are told apart to this share of a call's handle time.
LOAD_STEP = 0.05
#: The account holds at most what so many seconds pay in.
ACCOUNT_SECONDS = 3_600.0


class Phase(StrEnum):
    """What an agent does."""

    FREE = "free"
    #: Rung by, talking to or working after an inbound call.
    INBOUND = "inbound"
    #: Has an outbound contact that nobody has answered yet: to be given up at any time.
    DIALLING = "dialling"
    #: In an outbound conversation or its after-call work.
    TALKING = "talking"


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """An agent who is there and not paused."""

    agent: str
    phase: Phase
    #: In this phase since then.
    since_ms: int
    #: May make outbound calls.
    blended: bool = False
    #: Duty ends then; 0 when nobody knows.
    leaves_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Contacts:
    """What a contact of the list is like, on average."""

    #: Share of attempts that somebody answers.
    answer_ratio: float
    #: From the beginning until somebody answers or the attempt is given up.
    dial_seconds: float
    #: Conversation and after-call work of an answered one.
    talk_seconds: float

    @property
    def gain_seconds(self) -> float:
        """Time that a contact keeps an agent at work."""
        return self.dial_seconds + self.answer_ratio * self.talk_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The floor at one moment."""

    now_ms: int
    #: Everybody who is there for inbound.
    seats: Sequence[Seat]
    #: Inbound callers who wait.
    waiting: int
    #: Inbound of the next minutes, by the forecast.
    demand: Demand
    #: The list has somebody who may be called now.
    contacts: bool = True
    #: The kill switch.
    stopped: bool = False
    #: What the contacts at hand are like, where it is not what the policy was made for.
    like: Contacts | None = None
    #: The lists want a stint of at least so long.
    stint_min_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BlendingRules:
    """What is allowed."""

    #: Share of the people there who may be in outbound, 0.5 to 0.8.
    share: float = 0.7
    #: Once begun, an agent stays in outbound so long.
    stint_min_ms: int = 300_000
    #: Share of inbound calls that outbound may make late, by the model.
    loss_ratio_max: float = 0.03
    #: Late calls that an hour of outbound may cost, while the account has anything.
    price: float = 2.2
    #: Who is in a stint goes on at so many times the price, and a contact begun is only given up beyond so
    #: many times.
    stay_factor: float = 1.5
    recall_factor: float = 2.0

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the field."""
        for name, value, low, high in (
            ("share", self.share, 0.5, 0.8),
            ("stint_min_ms", self.stint_min_ms, 0, 14_400_000),
            ("loss_ratio_max", self.loss_ratio_max, 0.0, 0.1),
            ("price", self.price, 0.0, 1_000.0),
            ("stay_factor", self.stay_factor, 1.0, 10.0),
            ("recall_factor", self.recall_factor, self.stay_factor, 100.0),
        ):
            if not low <= value <= high:
                raise InvalidArgument(field=name, why=f"must be {low:g} to {high:g}, got {value!r}")


class Act(StrEnum):
    """What is to be done."""

    #: Gives the agent a contact.
    BEGIN = "begin"
    #: Takes an unanswered contact from the agent.
    RECALL = "recall"


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One thing to be done."""

    act: Act
    agent: str


class Blending(Protocol):
    """A policy."""

    def look(self, look: Look) -> list[Order]:
        """What is to be done now. Looks come in the order of time."""


@lru_cache(maxsize=TABLES_MAX)
def _table(agents: int, demand: Demand, away_seconds: float) -> MarginalCost:
    return MarginalCost(agents, demand, away_seconds)


@dataclass(slots=True)
class _Floor:
    """Counts of a look, kept up with what is ordered."""

    people: int
    in_system: int
    talking: int
    dialling: int
    free: int


@dataclass(slots=True)
class ForecastBlending:
    """The policy of the rules above."""

    rules: BlendingRules
    contacts: Contacts
    #: Late calls that may still be caused.
    account: float = 0.0
    #: Ends of stints by agent.
    _stints: dict[str, int] = field(default_factory=dict)
    #: In conversation at the last look, and when that was.
    _talking: frozenset[str] = frozenset()
    _looked_ms: int | None = None
    #: What the contacts of this look are like.
    _like: Contacts = field(init=False)

    def __post_init__(self) -> None:
        self._like = self.contacts

    def look(self, look: Look) -> list[Order]:
        """Recalls first, then beginnings."""
        self._like = look.like or self.contacts
        table, floor = self._table(look), _floor(look)
        self._settle(look, table, floor)
        if look.stopped:
            return [Order(act=Act.RECALL, agent=s.agent) for s in _latest(look, Phase.DIALLING)]
        recalled = self._recall(look, table, floor)
        if look.waiting or recalled or not look.contacts:
            return recalled
        return self._begin(look, table, floor)

    def stint_ends_ms(self, agent: str) -> int:
        """When the agent's stint may end; 0 for who is in none."""
        return self._stints.get(agent, 0)

    def _table(self, look: Look) -> MarginalCost:
        """Those who leave within a conversation are not counted on."""
        until_ms = look.now_ms + round(self._like.talk_seconds * 1000)
        staying = sum(not s.leaves_ms or s.leaves_ms >= until_ms for s in look.seats)
        return _table(staying, _rounded(look.demand), self._like.talk_seconds)

    def _full(self, demand: Demand) -> float:
        return demand.rate * ACCOUNT_SECONDS * self.rules.loss_ratio_max

    def _settle(self, look: Look, table: MarginalCost, floor: _Floor) -> None:
        """Pays in what was expected since the last look, and draws the conversations that came about."""
        since_ms = look.now_ms - self._looked_ms if self._looked_ms is not None else 0
        self.account += look.demand.rate * since_ms / 1000 * self.rules.loss_ratio_max
        self.account = min(self.account, self._full(look.demand))
        talking = frozenset(s.agent for s in look.seats if s.phase is Phase.TALKING)
        new = len(talking - self._talking)
        for n in range(new):
            self.account -= table.cost(len(talking) - new + n, floor.in_system)
        self._talking, self._looked_ms = talking, look.now_ms
        there = {s.agent for s in look.seats}
        for agent in [a for a, end in self._stints.items() if a not in there or end <= look.now_ms]:
            del self._stints[agent]

    def _recall(self, look: Look, table: MarginalCost, floor: _Floor) -> list[Order]:
        orders: list[Order] = []
        for seat in _latest(look, Phase.DIALLING):
            needed = floor.in_system > floor.people - floor.talking - floor.dialling
            if not needed and self._worth(table, floor, -1, self.rules.recall_factor):
                break
            floor.dialling -= 1
            self._stints.pop(seat.agent, None)
            orders.append(Order(act=Act.RECALL, agent=seat.agent))
        return orders

    def _begin(self, look: Look, table: MarginalCost, floor: _Floor) -> list[Order]:
        orders: list[Order] = []
        room = int(self.rules.share * floor.people + 1e-9) - floor.talking - floor.dialling
        takes_ms = round(1000 * (self._like.dial_seconds + self._like.talk_seconds))
        free = [
            s
            for s in look.seats
            if s.phase is Phase.FREE
            and s.blended
            and (not s.leaves_ms or s.leaves_ms >= look.now_ms + takes_ms)
        ]
        for seat in sorted(free, key=lambda s: (s.agent not in self._stints, s.since_ms, s.agent)):
            factor = self.rules.stay_factor if seat.agent in self._stints else 1.0
            if len(orders) >= room or not self._worth(table, floor, 0, factor, self.account):
                break
            floor.dialling += 1
            floor.free -= 1
            stint_ms = max(self.rules.stint_min_ms, look.stint_min_ms)
            self._stints.setdefault(seat.agent, look.now_ms + stint_ms)
            orders.append(Order(act=Act.BEGIN, agent=seat.agent))
        return orders

    def _worth(
        self, table: MarginalCost, floor: _Floor, besides: int, factor: float, account: float = math.inf
    ) -> bool:
        """Whether one more contact (`besides` 0), or the last of them (-1), is worth a multiple of the
        price and in the account.
        """
        if floor.people <= floor.talking + floor.dialling + besides:
            return False
        away = floor.talking + self._like.answer_ratio * (floor.dialling + besides)
        cost = self._like.answer_ratio * table.cost(away, floor.in_system)
        price = self.rules.price / 3_600.0 * factor * self._like.gain_seconds
        return cost <= min(price, max(0.0, account))


@dataclass(slots=True)
class ThresholdBlending:
    """What is usual, to compare with: outbound while more than `reserve` agents are free. With `recalls`,
    unanswered contacts are given up for a caller who waits, as above.
    """

    reserve: int
    share: float = 0.7
    recalls: bool = True

    def look(self, look: Look) -> list[Order]:
        """Recalls, or beginnings while nobody waits."""
        floor = _floor(look)
        dialling = _latest(look, Phase.DIALLING)
        if look.stopped:
            return [Order(act=Act.RECALL, agent=seat.agent) for seat in dialling]
        short = floor.in_system - (floor.people - floor.talking - floor.dialling)
        if self.recalls and short > 0 and dialling:
            return [Order(act=Act.RECALL, agent=seat.agent) for seat in dialling[:short]]
        if look.waiting or not look.contacts:
            return []
        room = int(self.share * floor.people + 1e-9) - floor.talking - floor.dialling
        free = sorted(
            (s for s in look.seats if s.phase is Phase.FREE and s.blended),
            key=lambda s: (s.since_ms, s.agent),
        )
        return [
            Order(act=Act.BEGIN, agent=seat.agent)
            for seat in free[: max(0, min(room, floor.free - self.reserve))]
        ]


def _floor(look: Look) -> _Floor:
    count = dict.fromkeys(Phase, 0)
    for seat in look.seats:
        count[seat.phase] += 1
    return _Floor(
        people=len(look.seats),
        in_system=count[Phase.INBOUND] + look.waiting,
        talking=count[Phase.TALKING],
        dialling=count[Phase.DIALLING],
        free=count[Phase.FREE],
    )


def _latest(look: Look, phase: Phase) -> list[Seat]:
    return sorted((s for s in look.seats if s.phase is phase), key=lambda s: (-s.since_ms, s.agent))


def _rounded(demand: Demand) -> Demand:
    """The demand with its load upwards to a multiple of `LOAD_STEP`, so that tables serve again."""
    steps = -(-demand.load // LOAD_STEP) if demand.load > 0 else 0
    return Demand(
        rate=steps * LOAD_STEP / demand.handle_seconds,
        handle_seconds=demand.handle_seconds,
        patience_seconds=demand.patience_seconds,
        target_seconds=demand.target_seconds,
        short_abandon_seconds=demand.short_abandon_seconds,
    )
