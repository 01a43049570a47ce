"""How many lines are dialled for the agents whom blending has given to outbound. Pure.

1. Preview: an agent has the contact in front and starts the call. Progressive: one line for each agent. In
   both whoever answers speaks to an agent at once; progressive abandons only where inbound took the agent
   while the line rang.
2. Predictive: lines are dialled ahead, as not everybody answers. With n lines, each answered with
   probability p, and a agents, E[max(0, B - a)] callers find nobody, B binomial. As many lines are dialled
   as keep (abandoned + expected to be) / (answered + expected to be) over the window at most at the cap,
   and never more than `LINES_PER_AGENT_MAX` an agent.
3. Over the cap, or while fewer than `ANSWERED_MIN` have answered in the window, predictive is progressive:
   what is not known is not bet on. So the share abandoned cannot begin above the cap.

An answered caller whom no agent takes within two seconds is abandoned, as the rules of several countries
have it (47 CFR 64.1200(a)(7): at most 3 % of the answered calls of 30 days; Ofcom: 3 % of a day).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from chassis.errors import InvalidArgument

#: An answered caller waits so long at most.
ANSWERED_WAIT_MS_MAX = 2_000
#: Lines dialled for one agent, at most.
LINES_PER_AGENT_MAX = 4.0
#: Answered calls before a rate means anything.
ANSWERED_MIN = 30
#: Spans over which abandons are counted: a minute to 31 days.
WINDOW_MS_MIN, WINDOW_MS_MAX = 60_000, 2_678_400_000
#: Answered calls that are remembered, and losses expected that are.
REMEMBERED_MAX, EXPECTED_KEPT_MAX = 100_000, 4_096


class Mode(StrEnum):
    """How calls are started."""

    PREVIEW = "preview"
    PROGRESSIVE = "progressive"
    PREDICTIVE = "predictive"


@dataclass(slots=True)
class Pacing:
    """One list's pace."""

    mode: Mode
    #: Share of answered calls that may find nobody.
    abandon_ratio_max: float = 0.03
    #: Over this span.
    window_ms: int = 86_400_000
    #: (when, abandoned) of answered calls.
    _answered: deque[tuple[int, bool]] = field(default_factory=lambda: deque(maxlen=REMEMBERED_MAX))
    _abandoned: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidArgument naming the field."""
        if not 0.0 <= self.abandon_ratio_max <= 0.1:
            raise InvalidArgument(field="abandon_ratio_max", why="must be 0 to 0.1")
        if not WINDOW_MS_MIN <= self.window_ms <= WINDOW_MS_MAX:
            raise InvalidArgument(field="window_ms", why="must be a minute to 31 days")

    def answered(self, now_ms: int, *, abandoned: bool) -> None:
        """Somebody answered and spoke to an agent, or found none."""
        if len(self._answered) == REMEMBERED_MAX:
            self._forget()
        self._answered.append((now_ms, abandoned))
        self._abandoned += abandoned

    def remember(self, now_ms: int, *, answered: int, abandoned: int) -> None:
        """What was before, as if it were now: the cap holds over a restart."""
        for place in range(min(answered, REMEMBERED_MAX)):
            self.answered(now_ms, abandoned=place < abandoned)

    def _forget(self) -> None:
        _, abandoned = self._answered.popleft()
        self._abandoned -= abandoned

    def abandon_ratio(self, now_ms: int) -> float:
        """Over the window."""
        while self._answered and self._answered[0][0] <= now_ms - self.window_ms:
            self._forget()
        return self._abandoned / len(self._answered) if self._answered else 0.0

    def lines(self, now_ms: int, agents: int, answer_ratio: float) -> int:
        """Lines that may ring at a time for so many agents who have nobody to talk to."""
        if agents <= 0:
            return 0
        ratio = self.abandon_ratio(now_ms)
        known = len(self._answered)
        if self.mode is not Mode.PREDICTIVE or known < ANSWERED_MIN or ratio >= self.abandon_ratio_max:
            return agents
        return self._most_lines(agents, answer_ratio)

    def _most_lines(self, agents: int, answer_ratio: float) -> int:
        """The most lines that the cap allows. What is lost bends upwards with every line, and what may be
        lost grows evenly: so the lines allowed end in one place, which halving finds.
        """
        low, high = agents, int(LINES_PER_AGENT_MAX * agents)
        while low < high:
            middle = (low + high + 1) // 2
            if self._allow(middle, agents, answer_ratio):
                low = middle
            else:
                high = middle - 1
        return low

    def _allow(self, lines: int, agents: int, answer_ratio: float) -> bool:
        lost, answered = expected_lost(lines, agents, answer_ratio), lines * answer_ratio
        if self._abandoned + lost > self.abandon_ratio_max * (len(self._answered) + answered):
            return False
        # Nor may this moment alone be far above the cap, however good the day was.
        return lost <= 2 * self.abandon_ratio_max * answered


@lru_cache(maxsize=EXPECTED_KEPT_MAX)
def expected_lost(lines: int, agents: int, answer_ratio: float) -> float:
    """E[max(0, B - agents)] for B of `lines` independent lines, each answered with `answer_ratio`."""
    if lines <= agents or answer_ratio <= 0.0:
        return 0.0
    if answer_ratio >= 1.0:
        return float(lines - agents)
    log_odds = math.log(answer_ratio) - math.log1p(-answer_ratio)
    # Outwards from one side to the other each probability is the one before times a ratio; the first is
    # reckoned by its logarithm, as a power of it may be too small for a number.
    first = agents + 1
    log_weight = _log_choose(lines, first) + first * math.log(answer_ratio)
    log_weight += (lines - first) * math.log1p(-answer_ratio)
    lost = 0.0
    for k in range(first, lines + 1):
        lost += (k - agents) * math.exp(log_weight)
        if k < lines:
            log_weight += math.log((lines - k) / (k + 1)) + log_odds
    return lost


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
