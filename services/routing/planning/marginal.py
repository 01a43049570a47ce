"""What taking agents away from a queue for a while costs: expected calls that are then answered late. Pure.

The queue is Erlang-A with `agents` people. While `away` of them are in outbound conversations, each of which
ends at rate 1/t, the others serve. Let x callers be in service or waiting and late(x) be the share of
arrivals that then neither are answered within the target nor leave within the short-abandon time.

1. With nobody away the chain has a mean rate g of late calls and relative values h(x), the Poisson equation's
   solution: how many more late calls are to come from x than from an average state.
2. U_m(x), the same with m away, follows from U_(m-1) by one tridiagonal system: the next thing that happens
   is an arrival, a departure, or the end of one of the m outbound conversations.
3. `cost(m, x)` = U_(m+1)(x) - U_m(x): the late calls that one more outbound conversation causes. It grows
   with the callers in the system, and where somebody is nearly always free it is nearly nothing.

With nobody leaving and agents who cannot keep up there is no mean rate; such a queue has nothing to spare and
the cost is one call. Dynamic programming of queues: Puterman 1994, chapter 11; that outbound work should
leave idle agents in reserve, and more of them for a tighter target: Bhulai and Koole 2003, "A queueing
model for call blending in call centers", https://doi.org/10.1109/TAC.2003.815038; Gans and Zhou 2003,
https://doi.org/10.1287/opre.51.2.255.12787.
"""

from __future__ import annotations

from itertools import islice

from routing.planning.erlang import Demand, fates, performance

#: States beyond "all busy" that are told apart, as so many standard deviations of the load, plus a few.
WAITING_DEVIATIONS, WAITING_MIN = 4.0, 20
#: Agents of one table: it takes a system of equations for each that may be away.
AGENTS_MAX = 2_000
#: Agents told apart as away, at most; what is beyond costs as much as the last.
AWAY_MAX = 64


class MarginalCost:
    """A table for one number of agents and one demand."""

    def __init__(self, agents: int, demand: Demand, away_seconds: float) -> None:
        """`away_seconds` is the mean length of an outbound conversation, after-call work included."""
        self.agents = min(agents, AGENTS_MAX)
        self.away_max = min(self.agents, AWAY_MAX)
        self._demand = demand
        self._states = self.agents + WAITING_MIN + round(WAITING_DEVIATIONS * demand.load**0.5) + 1
        steady = performance(self.agents, demand)
        self.hopeless = self.agents == 0 or steady.delayed_ratio >= 1.0
        #: Late calls a second with nobody away.
        self.late_rate = 0.0
        self._values: list[list[float]] = []
        if not self.hopeless and demand.rate > 0:
            self._solve(1.0 / away_seconds)

    def cost(self, away: float, in_system: int) -> float:
        """Late calls that one more outbound conversation causes; between whole numbers of `away` linear."""
        if self._demand.rate == 0:
            return 0.0
        if self.hopeless or away >= self.agents:
            return 1.0
        x = min(in_system, self._states - 1)
        low = min(int(away), self.away_max - 1)
        high = min(low + 1, self.away_max - 1)
        share = min(1.0, away - low)
        return max(0.0, self._step(low, x) * (1.0 - share) + self._step(high, x) * share)

    def _step(self, away: int, x: int) -> float:
        return self._values[away + 1][x] - self._values[away][x]

    def _solve(self, back: float) -> None:
        late = self._late(0)
        gone = self._departures(0)
        self.late_rate = self._mean(late, gone)
        values = self._relative(late, gone)
        self._values.append(values)
        for away in range(1, self.away_max + 1):
            values = self._with_away(away * back, self._late(away), self._departures(away), values)
            self._values.append(values)

    def _late(self, away: int) -> list[float]:
        """Late calls a second by callers in the system."""
        agents = self.agents - away
        waiting = self._states - agents
        shares = [1.0 - answered - left for answered, left in islice(fates(agents, self._demand), waiting)]
        return [0.0] * agents + [self._demand.rate * max(0.0, share) for share in shares]

    def _departures(self, away: int) -> list[float]:
        agents, demand = self.agents - away, self._demand
        return [
            min(x, agents) / demand.handle_seconds + max(0, x - agents) * demand.leaving_rate
            for x in range(self._states)
        ]

    def _mean(self, late: list[float], gone: list[float]) -> float:
        """g, with the states weighted from the likeliest on."""
        rate = self._demand.rate
        top = next((x for x in range(self._states - 1) if gone[x + 1] >= rate), self._states - 1)
        total, found = 1.0, late[top]
        weight = 1.0
        for x in range(top + 1, self._states):
            weight *= rate / gone[x]
            total += weight
            found += weight * late[x]
        weight = 1.0
        for x in range(top, 0, -1):
            weight *= gone[x] / rate
            total += weight
            found += weight * late[x - 1]
        return found / total

    def _relative(self, late: list[float], gone: list[float]) -> list[float]:
        """h, 0 with nobody there. Its steps are found upwards as long as arrivals outnumber departures and
        downwards from the top else: both ways errors shrink.
        """
        rate, g, last = self._demand.rate, self.late_rate, self._states - 1
        steps = [0.0] * self._states
        for x in range(last, 0, -1):
            if gone[x] < rate:
                break
            steps[x - 1] = (rate * steps[x] + late[x] - g) / gone[x]
        below = 0.0
        for x in range(last):
            if x and gone[x + 1] >= rate:
                break
            below = steps[x] = (g - late[x] + gone[x] * below) / rate
        values = [0.0]
        for step in steps[:-1]:
            values.append(values[-1] + step)
        return values

    def _with_away(
        self, back: float, late: list[float], gone: list[float], before: list[float]
    ) -> list[float]:
        """U_m of U_(m-1): Thomas's elimination, stable as the diagonal outweighs the rest."""
        rate, g, n = self._demand.rate, self.late_rate, self._states
        upper, right = [0.0] * n, [0.0] * n
        for x in range(n):
            up = rate if x < n - 1 else 0.0
            pivot = up + gone[x] + back
            known = late[x] - g + back * before[x]
            if x:
                pivot -= gone[x] * upper[x - 1]
                known += gone[x] * right[x - 1]
            upper[x], right[x] = up / pivot, known / pivot
        for x in range(n - 2, -1, -1):
            right[x] += upper[x] * right[x + 1]
        return right
