"""A shard's state: its facts, and the indexes by which they are found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from routing.model import AgentState, LineKey, QueueConfig, Requirement, Strategy, Timing
from routing.state.deadlines import Deadline, Deadlines
from routing.state.entries import AgentEntry, CallEntry, Crowd, Line
from routing.state.free import Free
from routing.state.lines import fill, turn_of
from routing.state.tallies import Tally


class ShardState:
    """Everything a shard knows."""

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self.epoch = 0
        #: Rules that the state was made by, and since which event; empty for one made here from the start.
        self.lineage = ""
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
        due_of_call = DUE_OF_CALL.get(kind)
        if due_of_call is not None:
            call = self.calls.get(owner)
            return call is not None and getattr(call, due_of_call) == ms
        agent_id, _, call_id = owner.partition("/")
        agent = self.agents.get(agent_id)
        if agent is None:
            return False
        if kind == "wrap":
            return agent.wraps.get(call_id, (0, 0))[1] == ms
        return getattr(agent, DUE_OF_AGENT[kind]) == ms

    def line_of(self, key: LineKey) -> Line:
        """The line of this key, made with its agents when it is the first to want it."""
        line = self.lines.get(key)
        if line is None:
            crowd = self.crowds.setdefault(key[0], {}).setdefault(key[1], Crowd())
            line = self.lines[key] = Line(key, self.queues[key[0]], crowd)
            self.lines_by_queue.setdefault(key[0], []).append(line)
            fill(line, self._who_may_fit(line), listed=self.share(line))
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
DUE_OF_CALL = {
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
DUE_OF_AGENT = {"lost": "lost_ms", "rest": "rest_until_ms"}


def next_deadline(state: ShardState) -> Deadline | None:
    """The earliest live deadline as (ms, kind, owner)."""
    return state.deadlines.first()


def due_together(state: ShardState, kind: str, now_ms: int, limit: int) -> tuple[str, ...]:
    """Owners whose deadline of one kind is due before any other kind's, in order. Only looks."""
    return state.deadlines.together(kind, now_ms, limit)
