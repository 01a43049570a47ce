"""What a state is made of: calls, agents, and the lines in which the ones wait for the others.

Entries hold facts and, beside them, where they stand in the indexes. Only the modules of this package write
to them; everybody else reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from routing.model import (
    AVAILABLE,
    OFFLINE,
    WAITING,
    AgentConfig,
    AgentState,
    CallFacts,
    CallOutcome,
    LineKey,
    Presence,
    QueueConfig,
    Requirement,
    Strategy,
)
from routing.state.free import Free, Place, free_by


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
        "others_wrap_until_ms",
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
        #: Until when whoever handed it on may be at after-call work: it is remembered for that long.
        self.others_wrap_until_ms = 0
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
        #: Queue that after-call work is of, where the call was handed on.
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
        self.free: Free = free_by(queue.strategy, self.requirements)
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
