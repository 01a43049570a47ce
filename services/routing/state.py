"""A shard's state and `evolve`, the only function that changes it.

The state is a function of the journal alone: `evolve` reads no clock, no configuration and no randomness,
only the event and the time it was decided at. What stands beside the facts (heaps, idle sets, worklists) is
an index of them and may be tidied at any time. Entries of a heap are never moved: a change pushes a new entry
under a new ticket, and the old one is skipped when it comes up. So a decision costs O(log n).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import msgspec

from routing.deadlines import Deadline, Deadlines
from routing.free import INBOX_MAX, ByHeap, ByLot, ByRank, ByTurn, Free, Place
from routing.model import (
    ABANDONED,
    ACCEPTED,
    AVAILABLE,
    BEFORE_CONNECTION,
    CONNECTED,
    DECLINERS_MAX,
    ENDED,
    MOVED,
    OFFERED,
    OFFLINE,
    OVERFLOWING,
    OWN_WAITING_MAX,
    REFUSED,
    WAITING,
    ActRecorded,
    AgentConfig,
    AgentConfigured,
    AgentDraining,
    AgentRemoved,
    AgentRested,
    AgentState,
    CallAttached,
    CallbackDue,
    CallbackRequested,
    CallConnected,
    CallDetached,
    CallEnded,
    CallFacts,
    CallMonitored,
    CallOffered,
    CallOutcome,
    CallOverflowing,
    CallQueued,
    CallRelaxed,
    CallReprioritized,
    CallResumed,
    CallsForgotten,
    CallTransferred,
    CallWrappedUp,
    DeadlinesMoved,
    DrainingSet,
    Event,
    LeadListSet,
    LineKey,
    OfferAccepted,
    OfferEnded,
    OfferOutcome,
    PreferenceEnded,
    Presence,
    PresenceSet,
    QueueConfig,
    QueueConfigured,
    QueueRemoved,
    RecordingNamed,
    Requirement,
    SessionClosed,
    SessionDetached,
    SessionOpened,
    ShardOpened,
    Strategy,
    Timing,
    TimingConfigured,
)

#: Weight of the newest handle time in the running mean that expected waits are made of.
HANDLE_TIME_GAIN = 0.05
#: Weight of the newest wait in what is known of earlier ones that were told; so many calls are taken for told
#: rightly before the first was seen.
TOLD_GAIN, TOLD_TRUSTED = 0.02, 25
#: What is told is corrected by no more than this, either way.
TOLD_CORRECTION_MAX = 20.0


class CallEntry:
    """One call as this shard holds it."""

    __slots__ = (
        "agent",
        "attached",
        "attempt",
        "callback_asked_ms",
        "callback_ms",
        "callback_number",
        "connected_ms",
        "declined_by",
        "detached_until_ms",
        "disposed",
        "effective_ms",
        "ended_ms",
        "expire_ms",
        "facts",
        "forget_ms",
        "front",
        "line",
        "move",
        "offer_id",
        "offer_until_ms",
        "ordinal",
        "outcome",
        "prefer_ms",
        "preferred",
        "queued_ms",
        "reason",
        "recording_uri",
        "refuse_ms",
        "relax_ms",
        "resume_ms",
        "state",
        "step",
        "ticket",
        "told_ms",
        "transfers",
        "wrap_up_until_ms",
        "wrapped",
    )

    def __init__(self, facts: CallFacts, line: Line) -> None:
        self.facts = facts
        self.line = line
        self.attempt = self.move = 0
        self.state = WAITING
        self.outcome: CallOutcome | None = None
        self.reason = self.front = self.agent = self.offer_id = self.recording_uri = ""
        self.attached = True
        self.queued_ms = self.effective_ms = self.connected_ms = self.ended_ms = 0
        #: Deadlines, each 0 when none runs.
        self.offer_until_ms = self.detached_until_ms = self.refuse_ms = self.resume_ms = 0
        self.wrap_up_until_ms = self.forget_ms = 0
        self.relax_ms = self.prefer_ms = self.callback_ms = self.expire_ms = 0
        #: When it was asked for to be called back later.
        self.callback_asked_ms = 0
        #: Step of relaxation in force.
        self.step = 0
        #: Agent it waits for first; empty for none.
        self.preferred = ""
        #: To be called back there: it needs no stream. Empty for a caller who holds the line.
        self.callback_number = ""
        #: Who let an offer of it come to nothing in this wait, the last `DECLINERS_MAX`.
        self.declined_by: tuple[str, ...] = ()
        #: Conversations that were handed on before this wait.
        self.transfers = 0
        #: After-call work is over; what came of the call is known.
        self.wrapped = self.disposed = False
        #: Breaks ties of effective arrival: when it was queued, kept with its place.
        self.ordinal = 0
        #: Ticket of its heap entry while it may be offered; 0 otherwise.
        self.ticket = 0
        #: Wait that was expected when it came, of a call that found others waiting; 0 for the others.
        self.told_ms = 0

    @property
    def version(self) -> tuple[int, int]:
        """(attempt, move): the higher one is the newer."""
        return (self.attempt, self.move)

    @property
    def offerable(self) -> bool:
        """Waits, and somebody holds the line (or nobody needs to)."""
        if self.state is not WAITING:
            return False
        return not self.callback_ms if self.callback_number else self.attached

    def waited_span_ms(self, now_ms: int) -> int:
        """Of a call that still waits, how long by now: not while a wished call-back's time has not come."""
        return (self.callback_asked_ms if self.callback_ms else now_ms) - self.queued_ms


#: What an agent who holds nothing is to the world.
_AS_PRESENT = {presence: AgentState(presence.value) for presence in Presence}
#: What one who holds something is, by short names as those of `model`.
_RESERVED, _ON_CALL, _WRAP_UP = AgentState.RESERVED, AgentState.ON_CALL, AgentState.WRAP_UP


class AgentEntry:
    """One agent as this shard holds it. Its load is the set of what it holds, never a counter."""

    __slots__ = (
        "attached",
        "busy_since_ms",
        "busy_span_ms",
        "calls",
        "channels",
        "command",
        "config",
        "counted",
        "draining",
        "free_in",
        "front",
        "idle",
        "last_offer",
        "lines",
        "log_out",
        "login_ms",
        "lost_ms",
        "missed",
        "offers",
        "own",
        "own_count",
        "pause_reason",
        "plain",
        "presence",
        "remove",
        "rest_until_ms",
        "session",
        "since_ms",
        "skills",
        "taken",
        "wanted_by",
        "wrap_queues",
        "wraps",
    )

    def __init__(self, config: AgentConfig) -> None:
        self.configure(config)
        self.presence = OFFLINE
        self.pause_reason = self.front = ""
        self.session = self.command = 0
        self.attached = False
        #: Calls held, by kind: rung or accepted (with the offer's id), in conversation, in after-call work.
        self.offers: dict[str, str] = {}
        self.calls: set[str] = set()
        #: The last with (began, ends by itself).
        self.wraps: dict[str, tuple[int, int]] = {}
        #: Queue that after-call work is of, where the call was handed on to another.
        self.wrap_queues: dict[str, str] = {}
        #: By channel while offerable on it.
        self.idle: dict[str, Place] = {}
        #: As what it is counted in `ShardState.by_state`; None while it is not.
        self.counted: AgentState | None = None
        #: Lines it fits, by channel; of them those that count their free agents.
        self.lines: dict[str, list[Line]] = {}
        self.plain: dict[str, list[Line]] = {}
        #: Where it is listed when it is free, by channel; a channel is worked out anew when it is not here.
        self.free_in: dict[str, list[Free]] = {}
        self.lost_ms = self.rest_until_ms = 0
        self.missed = self.taken = self.last_offer = 0
        self.since_ms = 0
        #: When the agent logged in; time on contacts since then, and since when on the present ones (0: on
        #: none).
        self.login_ms = self.busy_span_ms = self.busy_since_ms = 0
        #: Takes nothing more and is logged out when free: to be removed, by somebody's word, or both.
        self.draining = self.remove = self.log_out = False
        #: Heaps of calls that wait for this very agent, by channel, as a line's: one who is free for chats
        #: only is free for those behind a voice call.
        self.own: dict[str, list[tuple[int, int, str, int]]] = {}
        self.own_count = 0
        #: Ids of all calls that are this very agent's first: also those that ring, that nobody holds just now
        #: or that are on their way elsewhere, which are in no heap.
        self.wanted_by: set[str] = set()

    def configure(self, config: AgentConfig) -> None:
        """Puts an agent's settings in force; it is to be found and to join lines anew."""
        self.config = config
        self.skills = dict(config.skills)
        self.channels = frozenset(channel for channel, n in config.capacity if n > 0)

    @property
    def state(self) -> AgentState:
        """What the agent is to the world."""
        if self.calls:
            return _ON_CALL
        if self.offers:
            return _RESERVED
        if self.wraps:
            return _WRAP_UP
        return _AS_PRESENT[self.presence]

    @property
    def is_present(self) -> bool:
        """Logged in, and its desktop is attached."""
        return self.attached and self.presence is not OFFLINE

    @property
    def serves(self) -> bool:
        """Takes calls, or will when what is held is done."""
        return self.attached and self.presence is AVAILABLE

    @property
    def holding(self) -> bool:
        """Whether any contact fills the agent."""
        return bool(self.offers or self.calls or self.wraps)

    def occupancy_ppm(self, now_ms: int) -> int:
        """Share of the time since log-in spent on contacts, parts per million."""
        since_ms = now_ms - self.busy_since_ms if self.busy_since_ms else 0
        span_ms = now_ms - self.login_ms
        return (self.busy_span_ms + since_ms) * 1_000_000 // (span_ms if span_ms > 0 else 1)

    def holds(self) -> Iterator[str]:
        """Ids of all calls that fill the agent."""
        yield from self.offers
        yield from self.calls
        yield from self.wraps


class Crowd:
    """Calls that wait in one queue on one channel, all its lines together."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting = 0


class Line:
    """What calls of one queue, channel, set of extra skills and step of relaxation wait in, with the agents
    who can take them.
    """

    __slots__ = (
        "agents",
        "channel",
        "counted",
        "crowd",
        "free",
        "idle",
        "key",
        "logged_in",
        "present",
        "queue",
        "requirements",
        "serving",
        "waiting",
        "waiting_count",
    )

    def __init__(self, key: LineKey, queue: QueueConfig, crowd: Crowd) -> None:
        self.key = key
        self.channel = key[1]
        self.crowd = crowd
        #: The plain line of its queue and channel, whose free agents many ask for: only it counts them.
        self.counted = not key[2] and not key[3]
        self.configure(queue)
        #: Heap of (effective arrival less the queue's head start, ordinal, call id, ticket).
        self.waiting: list[tuple[int, int, str, int]] = []
        self.agents: set[str] = set()
        self.waiting_count = self.logged_in = 0
        #: Of those logged in, whose desktop is attached: who can be offered a call; of them, not in a pause.
        self.present = self.serving = 0

    def configure(self, queue: QueueConfig) -> None:
        """Puts a queue's settings in force; the agents are to join anew."""
        self.queue = queue
        _, _, extra, step = self.key
        waived = queue.waives_call_skills(step)
        #: What an agent must have, the queue's and the call's together.
        self.requirements = (*queue.requirements(step), *(() if waived else extra))
        #: Its free agents.
        self.free: Free = _FREE.get(queue.strategy, ByRank)(_RANKS[queue.strategy](self))
        self.idle = 0

    def fits(self, agent: AgentEntry) -> bool:
        """The agent has the channel and every skill at its level."""
        skills = agent.skills
        for skill, level in self.requirements:
            if skills.get(skill, 0) < level:
                return False
        return self.channel in agent.channels

    @property
    def looks_for(self) -> tuple[str, tuple[Requirement, ...], Strategy]:
        """Channel, requirements and strategy: lines alike in these have the same free agents in the same
        order.
        """
        return self.channel, self.requirements, self.queue.strategy

    @property
    def asked(self) -> str:
        """A skill that every agent here has; empty when none is asked for."""
        return self.requirements[0][0] if self.requirements else ""

    @property
    def idle_count(self) -> int:
        """Free agents. O(1) for a line that counts them, else O(n)."""
        return self.idle if self.counted else self.free.count()


class Tally:
    """What happened to a queue's calls in this shard, since the journal began."""

    __slots__ = (
        "abandoned",
        "answered",
        "answered_in_target",
        "handle_span_ms",
        "handled",
        "kept_span_ms",
        "moved",
        "offered",
        "refused",
        "short_abandoned",
        "told_span_ms",
        "wait_total_ms",
        "wrap_up_span_ms",
        "wrapped",
    )

    def __init__(self) -> None:
        self.offered = self.answered = self.answered_in_target = self.abandoned = self.short_abandoned = 0
        self.refused = self.moved = self.handled = self.wait_total_ms = 0
        self.wrapped = 0
        #: Running means of conversation and of after-call work; 0.0 before the first.
        self.handle_span_ms = self.wrap_up_span_ms = 0.0
        #: Waits that were expected and what they came to, added up, the older the less; 0.0 before the first.
        self.told_span_ms = self.kept_span_ms = 0.0

    def keep(self, told_ms: int, wait_ms: int) -> None:
        """A call of which `told_ms` was expected was answered after `wait_ms`."""
        if not self.told_span_ms:
            self.told_span_ms = self.kept_span_ms = float(TOLD_TRUSTED * told_ms)
        self.told_span_ms += told_ms - TOLD_GAIN * self.told_span_ms
        self.kept_span_ms += wait_ms - TOLD_GAIN * self.kept_span_ms

    @property
    def correction(self) -> float:
        """What waits come to, of what is expected of them: agents who serve other queues too, callers who
        leave or go before, ringing, several chats at once are in it.
        """
        if not self.told_span_ms:
            return 1.0
        ratio = self.kept_span_ms / self.told_span_ms
        return min(TOLD_CORRECTION_MAX, max(1 / TOLD_CORRECTION_MAX, ratio))


class ShardState:
    """Everything a shard knows."""

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self.epoch = 0
        self.now_ms = 0
        #: Counts events ever applied: breaks ties.
        self.ordinal = 0
        self.offers_made = 0
        #: Nothing is concluded from absence before this.
        self.conclude_ms = 0
        self.draining = False
        #: Routers that may lead, in order; empty for those of the region itself.
        self.lead_list: tuple[str, ...] = ()
        self.timing = Timing()
        self.queues: dict[str, QueueConfig] = {}
        self.agents: dict[str, AgentEntry] = {}
        self.calls: dict[str, CallEntry] = {}
        self.lines: dict[LineKey, Line] = {}
        self.lines_by_queue: dict[str, list[Line]] = {}
        #: By queue, then channel.
        self.crowds: dict[str, dict[str, Crowd]] = {}
        self.tallies: dict[str, Tally] = {}
        #: Running totals: agents by state; calls that are rung, accepted or in conversation, by queue.
        self.by_state: dict[AgentState, int] = {}
        self.in_service: dict[str, int] = {}
        self.deadlines = Deadlines(self._runs)
        #: Worklists of the pairing: calls that began to wait, agents that became free.
        self.hot_calls: list[str] = []
        self.hot_agents: list[str] = []
        #: Draining agents who have become free.
        self.leaving: list[str] = []
        self._ticket = 0
        #: Lines by a skill that they ask for, agents by each skill that they have: an agent meets only the
        #: lines that may fit, and a new line only such agents.
        self._asking: dict[str, list[Line]] = {}
        self._skilled: dict[str, dict[str, AgentEntry]] = {}
        #: Free agents by what lines look for, each with the number of those lines.
        self._shared: dict[tuple[str, tuple[Requirement, ...], Strategy], tuple[Free, int]] = {}

    @property
    def unpaired(self) -> bool:
        """Whether the pairing has something left to look at."""
        return bool(self.hot_calls or self.hot_agents or self.leaving)

    def put_in_order(self) -> None:
        """Of calls that have come to wait at the same time, whoever is ahead of the others is looked at first
        (the last of the list).
        """
        waiting = {c for c in self.hot_calls if c in self.calls and self.calls[c].ticket}
        self.hot_calls = sorted(waiting, key=lambda c: turn_of(self.calls[c]), reverse=True)

    def clear_worklists(self) -> None:
        """For who only reads: nobody pairs there."""
        self.hot_calls.clear()
        self.hot_agents.clear()
        self.leaving.clear()

    def serve(self, queue: str, more: int) -> None:
        """Counts calls of a queue that began, or ceased, to be held by an agent."""
        self.in_service[queue] = self.in_service.get(queue, 0) + more

    def count(self, agent: AgentEntry, state: AgentState | None) -> None:
        """Counts an agent as what it is now; None for one that is gone."""
        if agent.counted is not None:
            self.by_state[agent.counted] -= 1
        if state is not None:
            self.by_state[state] = self.by_state.get(state, 0) + 1
        agent.counted = state

    def next_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def set_deadline(self, ms: int, kind: str, owner: str) -> None:
        if ms:
            self.deadlines.add((ms, kind, owner))

    def _runs(self, deadline: Deadline) -> bool:
        ms, kind, owner = deadline
        due_of_call = _DUE_OF_CALL.get(kind)
        if due_of_call is not None:
            call = self.calls.get(owner)
            return call is not None and getattr(call, due_of_call) == ms
        agent_id, _, call_id = owner.partition("/")
        agent = self.agents.get(agent_id)
        if agent is None:
            return False
        if kind == "wrap":
            return agent.wraps.get(call_id, (0, 0))[1] == ms
        return getattr(agent, _DUE_OF_AGENT[kind]) == ms

    def line_of(self, key: LineKey) -> Line:
        """The line of this key, made with its agents when it is the first to want it."""
        line = self.lines.get(key)
        if line is None:
            crowd = self.crowds.setdefault(key[0], {}).setdefault(key[1], Crowd())
            line = self.lines[key] = Line(key, self.queues[key[0]], crowd)
            self.lines_by_queue.setdefault(key[0], []).append(line)
            _fill(line, self._who_may_fit(line), listed=self.share(line))
            self._asking.setdefault(line.asked, []).append(line)
        return line

    def _who_may_fit(self, line: Line) -> Iterable[AgentEntry]:
        """The agents of a line that asks for just the same, if there is one: only they fit. Else all who have
        the skill asked for.
        """
        for other in self._asking.get(line.asked, ()):
            if other.channel == line.channel and other.requirements == line.requirements:
                return [self.agents[agent_id] for agent_id in other.agents]
        return self.agents_with(line.asked)

    def share(self, line: Line) -> bool:
        """Lets a line look for free agents where others that ask for the same, and rank alike, look too;
        whether there is one.
        """
        free, lines = self._shared.get(line.looks_for, (line.free, 0))
        self._shared[line.looks_for] = (free, lines + 1)
        line.free = free
        return lines > 0

    def unshare(self, line: Line) -> None:
        """The inverse, before the line asks for something else or goes."""
        free, lines = self._shared.pop(line.looks_for)
        if lines > 1:
            self._shared[line.looks_for] = (free, lines - 1)

    def agents_with(self, skill: str) -> Iterable[AgentEntry]:
        """Agents who have a skill, at whatever level; all for ""."""
        return self._skilled.get(skill, {}).values() if skill else self.agents.values()

    def agents_with_all(self, skills: Collection[str]) -> Iterable[AgentEntry]:
        """Agents who have each of some skills, at whatever level, in no order; all for none."""
        if not skills:
            return self.agents.values()
        first, *others = sorted((self._skilled.get(skill, {}) for skill in skills), key=len)
        found = set(first)
        for having in others:
            found &= having.keys()
        return [first[agent_id] for agent_id in found]

    def lines_for(self, agent: AgentEntry) -> Iterator[Line]:
        """Lines that ask for nothing, or for a skill that the agent has."""
        for skill in ("", *agent.skills):
            yield from self._asking.get(skill, ())

    def index_skills(self, agent: AgentEntry) -> None:
        """The agent can be found by the present skills."""
        for skill in agent.skills:
            self._skilled.setdefault(skill, {})[agent.config.id] = agent

    def drop_skills(self, agent: AgentEntry) -> None:
        """The inverse."""
        for skill in agent.skills:
            self._skilled.get(skill, {}).pop(agent.config.id, None)

    def index_lines(self) -> None:
        """Lines by what they ask for, anew: after a queue was changed or removed."""
        self._asking = {}
        for line in self.lines.values():
            self._asking.setdefault(line.asked, []).append(line)


#: Kinds of deadlines, and the attribute of a call, or of an agent, that says when one is due (0: it does not
#: run). One more kind, "wrap", is of an agent and a call ("agent/call"): it is in the agent's `wraps`.
_DUE_OF_CALL = {
    "offer": "offer_until_ms",
    "detached": "detached_until_ms",
    "refuse": "refuse_ms",
    "resume": "resume_ms",
    "relax": "relax_ms",
    "prefer": "prefer_ms",
    "callback": "callback_ms",
    "expire": "expire_ms",
    "forget": "forget_ms",
}
_DUE_OF_AGENT = {"lost": "lost_ms", "rest": "rest_until_ms"}


def next_deadline(state: ShardState) -> Deadline | None:
    """The earliest live deadline as (ms, kind, owner)."""
    return state.deadlines.first()


def due_together(state: ShardState, kind: str, now_ms: int, limit: int) -> tuple[str, ...]:
    """Owners whose deadline of one kind is due before any other kind's, in order. Only looks."""
    return state.deadlines.together(kind, now_ms, limit)


def head_of(
    heap: list[tuple[int, int, str, int]], calls: dict[str, CallEntry]
) -> tuple[int, int, str] | None:
    """The next call of those that wait in a line, or for one agent, as (sort key, ordinal, call id); outdated
    entries are dropped on the way.
    """
    while heap:
        sort_ms, ordinal, call_id, ticket = heap[0]
        entry = calls.get(call_id)
        if entry is not None and entry.ticket == ticket:
            return sort_ms, ordinal, call_id
        heapq.heappop(heap)
    return None


def turn_of(entry: CallEntry) -> tuple[int, int]:
    """Where a call stands among all that wait: effective arrival less its queue's head start, then who came
    first.
    """
    queue = entry.line.queue
    return entry.effective_ms - queue.weight * queue.priority_credit_span_ms, entry.ordinal


def worth_waiting_for(agent: AgentEntry | None, channel: str) -> bool:
    """Whether a call may wait for this very agent: there, ready and staying, and not for too many already."""
    if agent is None or agent.presence is not AVAILABLE or not agent.attached or agent.draining:
        return False
    takes = any(name == channel and n > 0 for name, n in agent.config.capacity)
    return takes and agent.own_count < OWN_WAITING_MAX


def best_idle(
    line: Line, agents: dict[str, AgentEntry], draw: int = 0, last: Collection[str] = ()
) -> str | None:
    """The line's best free agent by its strategy. `draw` is the lot, any number, of a queue that draws
    lots; agents of `last` are taken only when nobody else is free.
    """
    best = line.free.best(draw)
    if best in last:
        # At most all of `last` come before the first of the others.
        return next((agent_id for agent_id in line.free.order(len(last) + 1) if agent_id not in last), best)
    return best


def expected_span_ms(line: Line, tally: Tally | None, ahead: int) -> int:
    """Expected wait behind `ahead` calls if a line's agents served nobody else, in milliseconds; -1 when it
    cannot be estimated.

    With n agents at work and mean handle time h, one of them becomes free every h / n on average, so the call
    behind k others waits (k + 1) h / n: the mean of the (k+1)-th of Poisson departures at rate n / h (the
    delay of those who wait in M/M/n, Erlang 1917, without later arrivals overtaking). Who is in a pause is
    not at work, unless all are.
    """
    if ahead == 0 and line.idle_count > 0:
        return 0
    agents = line.serving or line.logged_in
    if tally is None or not tally.handled or not agents:
        return -1
    return round((ahead + 1) * (tally.handle_span_ms + tally.wrap_up_span_ms) / agents)


# --- indexes


def _by_proficiency(line: Line) -> Callable[[Place], int]:
    """The higher the sum of the levels asked for, the better."""
    wanted = [skill for skill, _ in line.requirements]
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
#: How a line ranks its free agents, lower first: by what does not change while an agent stays free.
_RANKS: dict[Strategy, Callable[[Line], Callable[[Place], int]]] = {
    Strategy.LONGEST_IDLE: lambda line: lambda place: 0,
    Strategy.FEWEST_CALLS: lambda line: lambda place: place.agent.taken,
    Strategy.LEAST_OCCUPIED: lambda line: lambda place: place.agent.occupancy_ppm(place.since_ms),
    Strategy.ROUND_ROBIN: lambda line: lambda place: place.agent.last_offer,
    Strategy.RANDOM: lambda line: lambda place: 0,
    Strategy.PRIORITY_ORDER: lambda line: lambda place: place.agent.config.priority,
    Strategy.BEST_PROFICIENCY: _by_proficiency,
}


def _holds_only(state: ShardState, agent: AgentEntry, channel: str) -> bool:
    """Whether all that the agent holds is of one channel."""
    return all(state.calls[call_id].facts.channel == channel for call_id in (*agent.offers, *agent.calls))


def _refresh(state: ShardState, agent: AgentEntry) -> None:
    """Brings the agent's place in the idle heaps into line with what it holds."""
    _account(state, agent)
    standing = agent.state
    if standing is not agent.counted:
        state.count(agent, standing)
    if agent.draining and not agent.holding:
        state.leaving.append(agent.config.id)
    takes = not (agent.wraps or agent.rest_until_ms or agent.draining) and agent.serves
    if not takes and not agent.idle:
        return
    held = len(agent.offers) + len(agent.calls)
    for channel, capacity in agent.config.capacity:
        if takes and held < capacity and (not held or _holds_only(state, agent, channel)):
            if channel not in agent.idle:
                agent.since_ms = state.now_ms
                _come(agent, channel)
            state.hot_agents.append(agent.config.id)
        elif channel in agent.idle:
            agent.idle.pop(channel).live = False
            for line in agent.plain.get(channel, ()):
                line.idle -= 1


def _step_back(agent: AgentEntry) -> None:
    """Whoever is given a contact and has room for another is free anew, behind the others and with the rank
    of now: else one agent would be filled to the brim while the others sit idle.
    """
    for channel, place in agent.idle.items():
        place.live = False
        for line in agent.plain.get(channel, ()):
            line.idle -= 1
    agent.idle = {}


def _come(agent: AgentEntry, channel: str) -> None:
    """The agent is free for all lines of a channel. By far the most frequent thing that happens to a line."""
    place = agent.idle[channel] = Place(agent.config.id, agent, agent.since_ms)
    everywhere = agent.free_in.get(channel)
    if everywhere is None:
        shared = {id(line.free): line.free for line in agent.lines.get(channel, ())}
        everywhere = agent.free_in[channel] = list(shared.values())
    for free in everywhere:
        inbox = free.inbox
        inbox.append(place)
        if len(inbox) > INBOX_MAX:
            free.take_in()
    for line in agent.plain.get(channel, ()):
        line.idle += 1


def _stay_free(agent: AgentEntry, since_ms: dict[str, int]) -> None:
    """Whoever was free when its settings changed keeps its turn, on the channels that it still takes."""
    for channel, ms in since_ms.items():
        if channel in agent.channels:
            place = agent.idle[channel] = Place(agent.config.id, agent, ms)
            for free in {id(line.free): line.free for line in agent.lines.get(channel, ())}.values():
                free.add_back(place)
            for line in agent.plain.get(channel, ()):
                line.idle += 1


def _account(state: ShardState, agent: AgentEntry) -> None:
    """Counts the time on contacts, for the strategies that look at it."""
    if agent.offers or agent.calls or agent.wraps:
        agent.busy_since_ms = agent.busy_since_ms or state.now_ms
    elif agent.busy_since_ms:
        agent.busy_span_ms += state.now_ms - agent.busy_since_ms
        agent.busy_since_ms = 0


def _fill(line: Line, agents: Iterable[AgentEntry], *, listed: bool) -> None:
    """Those of the agents who fit join the line; unless they are listed where it looks for free ones, they
    are, who has been free for longer first.
    """
    idle = [agent for agent in agents if _join(agent, line, listed=listed) and line.channel in agent.idle]
    for agent in sorted(idle, key=lambda agent: (agent.idle[line.channel].since_ms, agent.config.id)):
        if not listed:
            line.free.add(agent.idle[line.channel])
        line.idle += 1


def _join(agent: AgentEntry, line: Line, *, listed: bool = False) -> bool:
    """The agent, not yet listed as free, joins the line if it fits; whether it did. `listed`: whoever fits is
    listed already where the line looks for free ones.
    """
    if not line.fits(agent):
        return False
    line.agents.add(agent.config.id)
    agent.lines.setdefault(line.channel, []).append(line)
    if not listed and line.channel in agent.free_in:
        agent.free_in[line.channel].append(line.free)
    if line.counted:
        agent.plain.setdefault(line.channel, []).append(line)
    line.logged_in += agent.presence is not OFFLINE
    line.present += agent.is_present
    line.serving += agent.serves
    return True


def _part(agent: AgentEntry, line: Line) -> None:
    """The inverse, on the agent's side."""
    agent.lines[line.channel].remove(line)
    agent.free_in.pop(line.channel, None)
    if line.counted:
        agent.plain[line.channel].remove(line)


def _leave_lines(agent: AgentEntry) -> None:
    for line in lines_of(agent):
        line.agents.discard(agent.config.id)
        line.logged_in -= agent.presence is not OFFLINE
        line.present -= agent.is_present
        line.serving -= agent.serves
        line.idle -= line.channel in agent.idle
    for place in agent.idle.values():
        place.live = False
    agent.lines, agent.plain, agent.free_in = {}, {}, {}
    agent.idle = {}


def lines_of(agent: AgentEntry) -> Iterator[Line]:
    """All lines that an agent fits."""
    return itertools.chain.from_iterable(agent.lines.values())


def _set_presence(agent: AgentEntry, presence: Presence, *, attached: bool) -> None:
    """What the agent says, and whether its desktop is attached; its lines count both."""
    logged_in, present, serves = agent.presence is not OFFLINE, agent.is_present, agent.serves
    agent.presence, agent.attached = presence, attached
    more_logged_in = (presence is not OFFLINE) - logged_in
    more_present = agent.is_present - present
    more_serving = agent.serves - serves
    if more_logged_in or more_present or more_serving:
        for line in lines_of(agent):
            line.logged_in += more_logged_in
            line.present += more_present
            line.serving += more_serving


def _list_call(state: ShardState, entry: CallEntry) -> None:
    """Puts a call that may be offered into its line's heap (again), or into that of the agent it waits for,
    at its original place.
    """
    _unlist_call(state, entry)
    if not entry.offerable:
        return
    entry.ticket = state.next_ticket()
    place = (*turn_of(entry), entry.facts.call_id, entry.ticket)
    preferred = state.agents.get(entry.preferred)
    if preferred is None:
        heapq.heappush(entry.line.waiting, place)
    else:
        heapq.heappush(preferred.own.setdefault(entry.facts.channel, []), place)
        preferred.own_count += 1
    entry.line.waiting_count += 1
    entry.line.crowd.waiting += 1
    state.hot_calls.append(entry.facts.call_id)


def _unlist_call(state: ShardState, entry: CallEntry) -> None:
    if not entry.ticket:
        return
    entry.ticket = 0
    entry.line.waiting_count -= 1
    entry.line.crowd.waiting -= 1
    preferred = state.agents.get(entry.preferred)
    if preferred is not None:
        preferred.own_count -= 1


def _prefer(state: ShardState, entry: CallEntry, agent_id: str) -> None:
    """Makes a call, which is not listed, one agent's first; "" for nobody's."""
    for name, change in ((entry.preferred, set.discard), (agent_id, set.add)):
        agent = state.agents.get(name) if name else None
        if agent is not None:
            change(agent.wanted_by, entry.facts.call_id)
    entry.preferred = agent_id


# --- taking in an image


def adopt_agent(state: ShardState, agent: AgentEntry, idle: Iterable[str]) -> None:
    """Takes in an agent of an image, before the lines: it can be found, it is free on the channels `idle`,
    and its deadlines run.
    """
    state.agents[agent.config.id] = agent
    state.count(agent, agent.state)
    agent.idle = {channel: Place(agent.config.id, agent, agent.since_ms) for channel in idle}
    state.index_skills(agent)
    for kind, name in _DUE_OF_AGENT.items():
        state.set_deadline(getattr(agent, name), kind, agent.config.id)
    for call_id, (_, due_ms) in agent.wraps.items():
        state.set_deadline(due_ms, "wrap", f"{agent.config.id}/{call_id}")


def adopt_call(state: ShardState, entry: CallEntry, *, listed: bool) -> None:
    """Takes in a call of an image, after agents and lines: its deadlines run, and it waits if it did."""
    state.calls[entry.facts.call_id] = entry
    agent = state.agents.get(entry.agent)
    if agent is not None and (entry.facts.call_id in agent.calls or entry.facts.call_id in agent.offers):
        state.serve(entry.facts.queue, 1)
    for kind, name in _DUE_OF_CALL.items():
        state.set_deadline(getattr(entry, name), kind, entry.facts.call_id)
    _prefer(state, entry, entry.preferred)
    if listed:
        _list_call(state, entry)


# --- evolve


def evolve(state: ShardState, event: Event, now_ms: int) -> None:
    """Applies one event that was decided at `now_ms` (business milliseconds since 1970).

    Raises KeyError or AssertionError for an event that does not fit the state: such a journal is not led by
    this code.
    """
    state.ordinal += 1
    if now_ms > state.now_ms:
        state.now_ms = now_ms
    _EVOLVE[type(event)](state, event)


def _shard_opened(s: ShardState, e: ShardOpened) -> None:
    s.conclude_ms = s.now_ms + s.timing.reattach_span_ms
    s.clear_worklists()
    _move_deadlines(s, e.leaderless_span_ms)
    for call in s.calls.values():
        if call.callback_number and call.state is not CONNECTED:
            continue
        if call.state in BEFORE_CONNECTION:
            _detach_call(s, call, s.conclude_ms + s.timing.grace_span_ms)
        elif call.state is CONNECTED:
            call.attached = False
    for agent in s.agents.values():
        if agent.presence is not OFFLINE:
            _detach_agent(s, agent, s.conclude_ms + s.timing.agent_grace_span_ms)


def _deadlines_moved(s: ShardState, e: DeadlinesMoved) -> None:
    s.conclude_ms += e.span_ms
    _move_deadlines(s, e.span_ms)


def _move_deadlines(s: ShardState, span_ms: int) -> None:
    """Nothing could be concluded or done for so long: every deadline that runs is later by it."""
    s.deadlines.clear()
    for call_id, call in s.calls.items():
        for kind, name in _DUE_OF_CALL.items():
            due_ms = getattr(call, name)
            if due_ms:
                setattr(call, name, due_ms + span_ms)
                s.set_deadline(due_ms + span_ms, kind, call_id)
    for agent_id, agent in s.agents.items():
        for kind, name in _DUE_OF_AGENT.items():
            due_ms = getattr(agent, name)
            if due_ms:
                setattr(agent, name, due_ms + span_ms)
                s.set_deadline(due_ms + span_ms, kind, agent_id)
        for call_id, (began_ms, due_ms) in agent.wraps.items():
            agent.wraps[call_id] = (began_ms, due_ms + span_ms)
            s.set_deadline(due_ms + span_ms, "wrap", f"{agent_id}/{call_id}")


def _timing_configured(s: ShardState, e: TimingConfigured) -> None:
    s.timing = e.timing


def _draining_set(s: ShardState, e: DrainingSet) -> None:
    s.draining = e.draining


def _queue_configured(s: ShardState, e: QueueConfigured) -> None:
    s.queues[e.queue.id] = e.queue
    s.tallies.setdefault(e.queue.id, Tally())
    for line in s.lines_by_queue.get(e.queue.id, []):
        for agent_id in line.agents:
            _part(s.agents[agent_id], line)
        s.unshare(line)
        line.configure(e.queue)
        line.agents, line.logged_in, line.present, line.serving = set(), 0, 0, 0
        _fill(line, s.agents_with(line.asked), listed=s.share(line))
        _line_up(s, line)
    s.index_lines()
    for step in range(max(1, len(e.queue.steps))):
        s.line_of((e.queue.id, "voice", (), step))
    if e.queue.closed:
        _close_queue(s, e.queue.id)


def _line_up(s: ShardState, line: Line) -> None:
    """Whoever waits in a line stands where its queue's head start puts it now, and is looked at if somebody
    is free: the first ones, by the queue's strategy.
    """
    waiting = [
        (*turn_of(entry), call_id, ticket)
        for _, _, call_id, ticket in line.waiting
        if (entry := s.calls.get(call_id)) is not None and entry.ticket == ticket
    ]
    heapq.heapify(waiting)
    line.waiting = waiting
    first = heapq.nsmallest(min(line.free.count(), len(waiting)), waiting)
    s.hot_calls.extend(call_id for _, _, call_id, _ in first)


def _close_queue(s: ShardState, queue_id: str) -> None:
    """Whoever waits in a closed queue is refused, one by one, by the timers."""
    for call_id, entry in s.calls.items():
        if entry.facts.queue == queue_id and entry.state in BEFORE_CONNECTION:
            entry.refuse_ms = s.now_ms
            s.set_deadline(s.now_ms, "refuse", call_id)


def _queue_removed(s: ShardState, e: QueueRemoved) -> None:
    s.queues.pop(e.queue, None)
    s.crowds.pop(e.queue, None)
    for line in s.lines_by_queue.pop(e.queue, []):
        s.lines.pop(line.key, None)
        s.unshare(line)
        for agent_id in line.agents:
            _part(s.agents[agent_id], line)
    s.index_lines()


def _agent_configured(s: ShardState, e: AgentConfigured) -> None:
    agent = s.agents.get(e.agent.id)
    free_since_ms: dict[str, int] = {}
    if agent is None:
        agent = s.agents[e.agent.id] = AgentEntry(e.agent)
    else:
        free_since_ms = {channel: place.since_ms for channel, place in agent.idle.items()}
        _leave_lines(agent)
        s.drop_skills(agent)
        agent.configure(e.agent)
    s.index_skills(agent)
    for line in s.lines_for(agent):
        _join(agent, line)
    _stay_free(agent, free_since_ms)
    _refresh(s, agent)


def _agent_removed(s: ShardState, e: AgentRemoved) -> None:
    agent = s.agents.get(e.agent)
    if agent is None:
        return
    for call_id in sorted(agent.wanted_by):
        _end_preference(s, s.calls[call_id])
    del s.agents[e.agent]
    s.count(agent, None)
    for call_id in (*agent.offers, *agent.calls):
        s.serve(s.calls[call_id].facts.queue, -1)
    s.drop_skills(agent)
    _leave_lines(agent)


def _call_queued(s: ShardState, e: CallQueued) -> None:
    line = s.line_of((e.facts.queue, e.facts.channel, e.facts.skills, e.step))
    old = s.calls.get(e.facts.call_id)
    goes_on = old is not None and old.state is not ENDED
    if old is None or not goes_on or old.facts.queue != e.facts.queue:
        s.tallies[e.facts.queue].offered += 1
        if old is not None and goes_on and old.facts.queue in s.tallies:
            # Its edge has opened it again for another queue.
            s.tallies[old.facts.queue].moved += 1
    if old is not None:
        _unlist_call(s, old)
        _prefer(s, old, "")
    entry = s.calls[e.facts.call_id] = CallEntry(e.facts, line)
    entry.ordinal = s.ordinal
    entry.attempt, entry.move, entry.front = e.attempt, e.move, e.front
    entry.queued_ms, entry.effective_ms, entry.refuse_ms = e.queued_ms, e.effective_ms, e.refuse_ms
    s.set_deadline(e.refuse_ms, "refuse", e.facts.call_id)
    _begin_wait(s, entry, e)


def _begin_wait(s: ShardState, entry: CallEntry, e: CallQueued | CallTransferred) -> None:
    """The step of relaxation and the preferred agent that a wait begins with."""
    call_id = entry.facts.call_id
    entry.step, entry.relax_ms = e.step, e.relax_ms
    entry.prefer_ms = e.preferred_until_ms
    _prefer(s, entry, e.preferred)
    if e.relax_ms:
        s.set_deadline(e.relax_ms, "relax", call_id)
    if e.preferred_until_ms:
        s.set_deadline(e.preferred_until_ms, "prefer", call_id)
    _list_call(s, entry)
    if entry.line.crowd.waiting > 1:
        _expect(s, entry)


def _expect(s: ShardState, entry: CallEntry) -> None:
    """Remembers the wait that is expected of a call that found others waiting, for what will come of it. Not
    of one with a head start, for which nobody knows its place at once, or that waits for one agent.
    """
    ahead = entry.line.crowd.waiting - 1
    if entry.ticket and entry.effective_ms == s.now_ms and not entry.preferred:
        tally = s.tallies.get(entry.facts.queue)
        entry.told_ms = max(0, expected_span_ms(entry.line, tally, ahead))


def _call_relaxed(s: ShardState, e: CallRelaxed) -> None:
    entry = s.calls[e.call_id]
    _unlist_call(s, entry)
    entry.step, entry.relax_ms = e.step, e.relax_ms
    facts = entry.facts
    entry.line = s.line_of((facts.queue, facts.channel, facts.skills, e.step))
    s.set_deadline(e.relax_ms, "relax", e.call_id)
    _list_call(s, entry)


def _preference_ended(s: ShardState, e: PreferenceEnded) -> None:
    _end_preference(s, s.calls[e.call_id])


def _end_preference(s: ShardState, entry: CallEntry) -> None:
    _unlist_call(s, entry)
    _prefer(s, entry, "")
    entry.prefer_ms = 0
    _list_call(s, entry)


def _call_transferred(s: ShardState, e: CallTransferred) -> None:
    call_id = e.facts.call_id
    entry = s.calls[call_id]
    _tally_conversation(s, entry)
    agent = s.agents.get(e.agent)
    if agent is not None and call_id in agent.calls:
        agent.calls.discard(call_id)
        s.serve(entry.facts.queue, -1)
        if e.wrap_up_until_ms and entry.facts.queue != e.facts.queue:
            agent.wrap_queues[call_id] = entry.facts.queue
    entry.facts, entry.agent, entry.offer_id = e.facts, "", ""
    entry.state = OVERFLOWING if e.resume_ms else WAITING
    entry.resume_ms = e.resume_ms
    s.set_deadline(e.resume_ms, "resume", call_id)
    entry.line = s.line_of((e.facts.queue, e.facts.channel, e.facts.skills, e.step))
    entry.connected_ms, entry.ordinal = 0, s.ordinal
    entry.queued_ms, entry.effective_ms, entry.refuse_ms = e.queued_ms, e.effective_ms, e.refuse_ms
    entry.callback_number, entry.declined_by, entry.told_ms = "", (), 0
    entry.transfers += 1
    s.tallies[e.facts.queue].offered += 1
    s.set_deadline(e.refuse_ms, "refuse", call_id)
    _begin_wait(s, entry, e)
    if agent is not None:
        _begin_wrap_up(s, agent, call_id, e.wrap_up_until_ms)


def _callback_requested(s: ShardState, e: CallbackRequested) -> None:
    entry = s.calls[e.call_id]
    _end_deferral(s, entry)
    entry.callback_number, entry.callback_ms, entry.expire_ms = e.number, e.not_before_ms, e.expire_ms
    entry.callback_asked_ms = s.now_ms
    entry.detached_until_ms = entry.refuse_ms = entry.told_ms = 0
    if entry.state is OVERFLOWING:
        entry.state, entry.resume_ms = WAITING, 0
    s.set_deadline(e.not_before_ms, "callback", e.call_id)
    s.set_deadline(e.expire_ms, "expire", e.call_id)
    _list_call(s, entry)


def _callback_due(s: ShardState, e: CallbackDue) -> None:
    entry = s.calls[e.call_id]
    _end_deferral(s, entry)
    _list_call(s, entry)


def _end_deferral(s: ShardState, entry: CallEntry) -> None:
    """Whoever wished to be called back later did not wait for anybody until then: that time counts for the
    place alone.
    """
    if entry.callback_ms:
        span_ms = s.now_ms - entry.callback_asked_ms
        entry.queued_ms += span_ms
        entry.facts = msgspec.structs.replace(
            entry.facts, credit_span_ms=entry.facts.credit_span_ms + span_ms
        )
        entry.callback_ms = 0


def _nothing(s: ShardState, e: Event) -> None:
    """Told to others; the shard itself is as it was."""


def _call_attached(s: ShardState, e: CallAttached) -> None:
    entry = s.calls[e.call_id]
    entry.attempt, entry.move, entry.front = e.attempt, e.move, e.front
    entry.attached, entry.detached_until_ms = True, 0
    # The caller is on the line again.
    _end_deferral(s, entry)
    entry.callback_number, entry.callback_ms, entry.expire_ms = "", 0, 0
    if e.refuse_ms:
        entry.refuse_ms = e.refuse_ms
        s.set_deadline(e.refuse_ms, "refuse", e.call_id)
    if entry.state is OVERFLOWING:
        entry.state, entry.resume_ms = WAITING, 0
    if entry.state is WAITING and not entry.ticket:
        _list_call(s, entry)


def _call_detached(s: ShardState, e: CallDetached) -> None:
    _detach_call(s, s.calls[e.call_id], e.until_ms)


def _detach_call(s: ShardState, entry: CallEntry, until_ms: int) -> None:
    entry.attached, entry.detached_until_ms = False, until_ms
    _unlist_call(s, entry)
    s.set_deadline(until_ms, "detached", entry.facts.call_id)


def _call_overflowing(s: ShardState, e: CallOverflowing) -> None:
    entry = s.calls[e.call_id]
    entry.state, entry.resume_ms = OVERFLOWING, e.until_ms
    _unlist_call(s, entry)
    s.set_deadline(e.until_ms, "resume", e.call_id)


def _call_resumed(s: ShardState, e: CallResumed) -> None:
    entry = s.calls[e.call_id]
    entry.state, entry.resume_ms = WAITING, 0
    _list_call(s, entry)


def _call_reprioritized(s: ShardState, e: CallReprioritized) -> None:
    entry = s.calls[e.call_id]
    entry.facts = msgspec.structs.replace(entry.facts, priority=e.priority, priority_parts=())
    entry.effective_ms = e.effective_ms
    if entry.ticket:
        _list_call(s, entry)


def _call_offered(s: ShardState, e: CallOffered) -> None:
    entry, agent = s.calls[e.call_id], s.agents[e.agent]
    s.offers_made = int(e.offer_id.rpartition(".")[2])
    entry.state, entry.agent, entry.offer_id = OFFERED, e.agent, e.offer_id
    entry.offer_until_ms = e.until_ms
    _unlist_call(s, entry)
    agent.offers[e.call_id] = e.offer_id
    s.serve(entry.facts.queue, 1)
    agent.last_offer = s.ordinal
    agent.since_ms = s.now_ms
    _step_back(agent)
    s.set_deadline(e.until_ms, "offer", e.call_id)
    _refresh(s, agent)


def _offer_accepted(s: ShardState, e: OfferAccepted) -> None:
    entry = s.calls[e.call_id]
    entry.state, entry.offer_until_ms = ACCEPTED, e.until_ms
    s.set_deadline(e.until_ms, "offer", e.call_id)


def _offer_ended(s: ShardState, e: OfferEnded) -> None:
    entry, agent = s.calls[e.call_id], s.agents.get(e.agent)
    entry.state, entry.agent, entry.offer_id, entry.offer_until_ms = WAITING, "", "", 0
    if e.outcome in (OfferOutcome.DECLINED, OfferOutcome.EXPIRED):
        others = tuple(agent_id for agent_id in entry.declined_by if agent_id != e.agent)
        entry.declined_by = (*others, e.agent)[-DECLINERS_MAX:]
    _list_call(s, entry)
    if agent is None:
        return
    if agent.offers.pop(e.call_id, None) is not None:
        s.serve(entry.facts.queue, -1)
    agent.missed, agent.rest_until_ms = e.missed, e.rest_until_ms
    agent.since_ms = s.now_ms
    s.set_deadline(e.rest_until_ms, "rest", e.agent)
    _refresh(s, agent)


def _call_connected(s: ShardState, e: CallConnected) -> None:
    entry, agent = s.calls[e.call_id], s.agents[e.agent]
    entry.state, entry.offer_until_ms, entry.refuse_ms = CONNECTED, 0, 0
    entry.relax_ms = entry.prefer_ms = entry.callback_ms = entry.expire_ms = 0
    if entry.preferred:
        _prefer(s, entry, "")
    entry.connected_ms, entry.detached_until_ms = s.now_ms, 0
    agent.offers.pop(e.call_id, None)
    agent.calls.add(e.call_id)
    agent.missed, agent.since_ms = 0, s.now_ms
    agent.taken += 1
    if agent.idle:
        _step_back(agent)
    tally = s.tallies[entry.facts.queue]
    wait = s.now_ms - entry.queued_ms
    tally.answered += 1
    tally.answered_in_target += wait <= entry.line.queue.service_level_span_ms
    tally.wait_total_ms += wait
    if entry.told_ms:
        tally.keep(entry.told_ms, wait)
    _refresh(s, agent)


def _call_ended(s: ShardState, e: CallEnded) -> None:
    entry = s.calls[e.call_id]
    was_connected = entry.state is CONNECTED
    _end_deferral(s, entry)
    entry.state, entry.outcome, entry.reason = ENDED, e.outcome, e.reason
    entry.ended_ms, entry.recording_uri = s.now_ms, e.recording_uri
    entry.offer_until_ms = entry.detached_until_ms = entry.refuse_ms = entry.resume_ms = 0
    entry.relax_ms = entry.prefer_ms = entry.callback_ms = entry.expire_ms = 0
    entry.wrap_up_until_ms = e.wrap_up_until_ms
    done_ms = e.wrap_up_until_ms if e.wrap_up_until_ms > s.now_ms else s.now_ms
    entry.forget_ms = done_ms + s.timing.memory_span_ms
    _unlist_call(s, entry)
    if entry.preferred:
        _prefer(s, entry, "")
    s.set_deadline(entry.forget_ms, "forget", e.call_id)
    _tally_end(s, entry, was_connected)
    agent = s.agents.get(entry.agent)
    if agent is None:
        return
    if agent.offers.pop(e.call_id, None) is not None or e.call_id in agent.calls:
        s.serve(entry.facts.queue, -1)
    agent.calls.discard(e.call_id)
    _begin_wrap_up(s, agent, e.call_id, e.wrap_up_until_ms)


def _recording_named(s: ShardState, e: RecordingNamed) -> None:
    s.calls[e.call_id].recording_uri = e.recording_uri


def _begin_wrap_up(s: ShardState, agent: AgentEntry, call_id: str, until_ms: int) -> None:
    """After-call work, if there is any to do."""
    agent.since_ms = s.now_ms
    if until_ms:
        agent.wraps[call_id] = (s.now_ms, until_ms)
        s.set_deadline(until_ms, "wrap", f"{agent.config.id}/{call_id}")
    _refresh(s, agent)


def _tally_conversation(s: ShardState, entry: CallEntry) -> None:
    tally = s.tallies.get(entry.facts.queue)
    if tally is not None:
        gain = HANDLE_TIME_GAIN if tally.handled else 1.0
        tally.handle_span_ms += gain * (s.now_ms - entry.connected_ms - tally.handle_span_ms)
        tally.handled += 1


def _tally_end(s: ShardState, entry: CallEntry, was_connected: bool) -> None:
    tally = s.tallies.get(entry.facts.queue)
    if tally is None:
        return
    if was_connected:
        _tally_conversation(s, entry)
    elif entry.outcome is ABANDONED:
        if s.now_ms - entry.queued_ms <= entry.line.queue.short_abandon_span_ms:
            tally.short_abandoned += 1
        else:
            tally.abandoned += 1
    elif entry.outcome is MOVED:
        tally.moved += 1
    elif entry.outcome is REFUSED:
        tally.refused += 1


def _call_wrapped_up(s: ShardState, e: CallWrappedUp) -> None:
    entry, agent = s.calls.get(e.call_id), s.agents.get(e.agent)
    began_ms = agent.wraps.pop(e.call_id, (0, 0))[0] if agent is not None else 0
    was_at_it = began_ms > 0
    queue = entry.facts.queue if entry is not None else ""
    if agent is not None:
        queue = agent.wrap_queues.pop(e.call_id, queue)
    if entry is not None and entry.agent == e.agent:
        # Whoever handed the call on has no say in what becomes of it.
        began_ms = began_ms or (entry.ended_ms if not entry.wrapped else 0)
        entry.wrapped, entry.wrap_up_until_ms = True, 0
        entry.disposed = entry.disposed or e.disposition is not None
    tally = s.tallies.get(queue)
    if tally is not None and began_ms:
        gain = HANDLE_TIME_GAIN if tally.wrapped else 1.0
        tally.wrap_up_span_ms += gain * (s.now_ms - began_ms - tally.wrap_up_span_ms)
        tally.wrapped += 1
    if agent is not None and was_at_it:
        agent.since_ms = s.now_ms
        _refresh(s, agent)


def _calls_forgotten(s: ShardState, e: CallsForgotten) -> None:
    for call_id in e.call_ids:
        s.calls.pop(call_id, None)


def _session_opened(s: ShardState, e: SessionOpened) -> None:
    agent = s.agents[e.agent]
    if agent.presence is OFFLINE:
        agent.taken = agent.busy_span_ms = agent.busy_since_ms = 0
        agent.login_ms = s.now_ms
        agent.rest_until_ms = e.rest_until_ms
        agent.draining, agent.log_out = agent.remove, False
        s.set_deadline(e.rest_until_ms, "rest", e.agent)
    agent.session, agent.command, agent.front = e.session, e.command, e.front
    agent.lost_ms = 0
    agent.pause_reason = e.pause_reason
    _set_presence(agent, e.presence, attached=True)
    _refresh(s, agent)


def _session_detached(s: ShardState, e: SessionDetached) -> None:
    _detach_agent(s, s.agents[e.agent], e.until_ms)


def _detach_agent(s: ShardState, agent: AgentEntry, until_ms: int) -> None:
    agent.lost_ms = until_ms
    _set_presence(agent, agent.presence, attached=False)
    s.set_deadline(until_ms, "lost", agent.config.id)
    _refresh(s, agent)


def _session_closed(s: ShardState, e: SessionClosed) -> None:
    agent = s.agents[e.agent]
    agent.lost_ms = agent.rest_until_ms = 0
    agent.pause_reason = ""
    agent.draining, agent.log_out = agent.remove, False
    _set_presence(agent, OFFLINE, attached=False)
    _refresh(s, agent)


def _presence_set(s: ShardState, e: PresenceSet) -> None:
    agent = s.agents[e.agent]
    agent.command, agent.pause_reason = e.command, e.pause_reason
    if e.presence is AVAILABLE:
        agent.missed = 0
    _set_presence(agent, e.presence, attached=agent.attached)
    _refresh(s, agent)


def _agent_draining(s: ShardState, e: AgentDraining) -> None:
    agent = s.agents[e.agent]
    agent.draining, agent.remove, agent.log_out = e.draining or e.remove, e.remove, e.log_out
    _refresh(s, agent)


def _lead_list_set(s: ShardState, e: LeadListSet) -> None:
    s.lead_list = e.routers


def _agent_rested(s: ShardState, e: AgentRested) -> None:
    agent = s.agents[e.agent]
    agent.rest_until_ms = 0
    _refresh(s, agent)


_EVOLVE: dict[type, Callable[[ShardState, Any], None]] = {
    ShardOpened: _shard_opened,
    TimingConfigured: _timing_configured,
    DrainingSet: _draining_set,
    QueueConfigured: _queue_configured,
    QueueRemoved: _queue_removed,
    AgentConfigured: _agent_configured,
    AgentRemoved: _agent_removed,
    CallQueued: _call_queued,
    CallAttached: _call_attached,
    CallDetached: _call_detached,
    CallOverflowing: _call_overflowing,
    CallResumed: _call_resumed,
    CallReprioritized: _call_reprioritized,
    CallOffered: _call_offered,
    OfferAccepted: _offer_accepted,
    OfferEnded: _offer_ended,
    CallConnected: _call_connected,
    CallEnded: _call_ended,
    RecordingNamed: _recording_named,
    CallWrappedUp: _call_wrapped_up,
    CallsForgotten: _calls_forgotten,
    SessionOpened: _session_opened,
    SessionDetached: _session_detached,
    SessionClosed: _session_closed,
    PresenceSet: _presence_set,
    AgentRested: _agent_rested,
    CallRelaxed: _call_relaxed,
    PreferenceEnded: _preference_ended,
    CallTransferred: _call_transferred,
    CallbackRequested: _callback_requested,
    CallbackDue: _callback_due,
    CallMonitored: _nothing,
    AgentDraining: _agent_draining,
    ActRecorded: _nothing,
    LeadListSet: _lead_list_set,
    DeadlinesMoved: _deadlines_moved,
}
