"""Routing's frozen values: configuration, commands (what comes in) and events (what the journal holds).

Every time is business time in milliseconds since 1970 (`*_ms` names an instant), every span is in
milliseconds too (`*_span_ms`). Events carry results, never increments, so that applying one twice changes
nothing.

What is configured are dataclasses; a call's facts, commands, events and views, of which each call makes
dozens, are msgspec structs: the same to read and to store, and made several times faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

#: Largest block: events and bytes. Larger work goes in steps.
EVENTS_PER_BLOCK_MAX = 1_000
BLOCK_BYTES_MAX = 1 << 20
#: Entries that one command may end or detach; the rest follows by the same command again.
STEP_ENTRIES_MAX = 200
#: Offers made by one command; what is left to pair follows with the next tick, at once.
PAIRS_PER_STEP_MAX = 300
#: Distinct (queue, channel, skills, step) lines of a shard.
LINES_MAX = 20_000
#: Steps of a queue's relaxation.
STEPS_MAX = 10
#: Calls that may wait for one preferred agent; further ones wait in their line at once.
OWN_WAITING_MAX = 20
#: What the directory says for a queue that does not: a declined offer keeps the agent from the next this
#: long.
REJECT_DELAY_SPAN_MS = 5_000
#: Agents who let an offer of one call come to nothing that are remembered: the others come first.
DECLINERS_MAX = 8
#: What a call's attributes may come to, however often it is handed on: keys, and bytes of keys and values.
CONTEXT_KEYS_MAX = 16
CONTEXT_BYTES_MAX = 16 * 1024
#: A call-back that nobody could make in this time is given up.
CALLBACK_SPAN_MAX_MS = 86_400_000


#: The channel that regions are compared by.
VOICE = "voice"


class CallState(StrEnum):
    """Where a call's entry in this shard stands."""

    WAITING = "waiting"
    OVERFLOWING = "overflowing"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    CONNECTED = "connected"
    ENDED = "ended"


#: By short names, as `CallOutcome` and `Presence` below: every command compares several, and to look a member
#: up on its class takes CPython 3.11 longer than to compare it with another.
WAITING, OVERFLOWING, OFFERED, ACCEPTED, CONNECTED, ENDED = CallState

#: States in which a caller waits for a conversation.
BEFORE_CONNECTION = frozenset({WAITING, OVERFLOWING, OFFERED, ACCEPTED})


class CallOutcome(StrEnum):
    """How an entry ended."""

    COMPLETED = "completed"
    ABANDONED = "abandoned"
    MOVED = "moved"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"


COMPLETED, ABANDONED, MOVED, REFUSED, INTERRUPTED = CallOutcome


class OfferOutcome(StrEnum):
    """How an offer ended."""

    CONFIRMED = "confirmed"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    UNCONFIRMED = "unconfirmed"
    AGENT_LOST = "agent_lost"


class AgentState(StrEnum):
    """What an agent is to the world; derived from presence and from what the agent holds."""

    OFFLINE = "offline"
    AVAILABLE = "available"
    RESERVED = "reserved"
    ON_CALL = "on_call"
    WRAP_UP = "wrap_up"
    PAUSED = "paused"


class Presence(StrEnum):
    """What an agent declares."""

    OFFLINE = "offline"
    AVAILABLE = "available"
    PAUSED = "paused"


OFFLINE, AVAILABLE, PAUSED = Presence


class Strategy(StrEnum):
    """How a queue ranks its free agents (lower rank first, ties by longest idle)."""

    LONGEST_IDLE = "longest_idle"
    FEWEST_CALLS = "fewest_calls"
    #: Least share of the time since log-in spent on contacts, as of when the agent became free.
    LEAST_OCCUPIED = "least_occupied"
    ROUND_ROBIN = "round_robin"
    #: Every free agent equally likely, by the queue's seed.
    RANDOM = "random"
    PRIORITY_ORDER = "priority_order"
    BEST_PROFICIENCY = "best_proficiency"


#: Skill id and least level (1-5).
Requirement = tuple[str, int]
#: What a line is: queue id, channel, requirements beyond the queue's (sorted), step of relaxation.
LineKey = tuple[str, str, tuple[Requirement, ...], int]


class MonitorMode(StrEnum):
    """How a supervisor takes part in a conversation."""

    LISTEN = "listen"
    WHISPER = "whisper"
    BARGE = "barge"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """A shard's protocol durations, in business milliseconds (the shell scales real seconds by the clock's
    speed).
    """

    #: The edge must confirm an accepted offer within this.
    confirm_span_ms: int = 5_000
    #: A call without a stream keeps its place this long.
    grace_span_ms: int = 5_000
    #: After an opening nothing is concluded from absence for this long.
    reattach_span_ms: int = 3_000
    #: An agent whose session broke counts as there this long.
    agent_grace_span_ms: int = 5_000
    #: An overflowing call is offered here again after this.
    move_span_ms: int = 5_000
    #: Ended calls are remembered this long.
    memory_span_ms: int = 900_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RelaxationStep:
    """What a queue asks of agents for a while; the last step has no end."""

    #: What an agent must have during this step, sorted; in place of the queue's own.
    skills: tuple[Requirement, ...] = ()
    #: Length of the step; 0 for the last one.
    span_ms: int = 0
    #: Passed over when nobody who fits is logged in.
    skip_if_nobody_fits: bool = False
    #: The call's own extra skills are waived too.
    without_call_skills: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueConfig:
    """A queue as the engine knows it."""

    #: Id.
    id: str
    #: What an agent must have, sorted.
    skills: tuple[Requirement, ...] = ()
    #: Answered within this counts for the service level.
    service_level_span_ms: int = 20_000
    #: Abandoned sooner than this does not count.
    short_abandon_span_ms: int = 5_000
    #: Ranking of free agents.
    strategy: Strategy = Strategy.LONGEST_IDLE
    #: Head start of its calls over other queues', in points of `priority_credit_span_ms`.
    weight: int = 0
    #: What one point of priority is worth in waiting.
    priority_credit_span_ms: int = 30_000
    #: Ringing.
    ring_span_ms: int = 15_000
    #: After-call work.
    wrap_up_span_ms: int = 30_000
    #: Calls that may wait in this shard.
    length_max: int = 10_000
    #: Longest wait; 0 for no limit.
    wait_span_max_ms: int = 0
    #: Expected wait from which the front looks elsewhere.
    overflow_span_ms: int = 20_000
    #: Refuse when nobody who fits is logged in.
    refuse_without_agents: bool = False
    #: A declined offer keeps the agent from the next this long.
    reject_delay_span_ms: int = 0
    #: Missed offers in a row after which the agent is paused; 0 never.
    missed_offers_max: int = 0
    #: An unanswered offer does; 0 for as long as a declined one.
    no_answer_delay_span_ms: int = 0
    #: An offer declined as busy does; 0 for as long as any declined one.
    busy_delay_span_ms: int = 0
    #: Staged relaxation; without steps the queue's skills hold for ever.
    steps: tuple[RelaxationStep, ...] = ()
    #: A preferred agent is waited for this long.
    preferred_span_ms: int = 30_000
    #: Of RANDOM.
    seed: int = 0
    #: Closed by a supervisor: new calls are refused, waiting ones too.
    closed: bool = False
    #: Text for refused callers by BCP 47 language, sorted.
    announcements: tuple[tuple[str, str], ...] = ()
    #: Points of priority for each earlier call of the same number whose matter is not settled; fronts look
    #: at it.
    repeat_points: int = 1

    def requirements(self, step: int) -> tuple[Requirement, ...]:
        """What the queue itself asks of agents in a step; the last step's if there are fewer."""
        if not self.steps:
            return self.skills
        return self.steps[min(step, len(self.steps) - 1)].skills

    def waives_call_skills(self, step: int) -> bool:
        """Whether a call's own extra skills are waived in a step."""
        return bool(self.steps) and self.steps[min(step, len(self.steps) - 1)].without_call_skills


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """An agent as the engine knows it."""

    #: Id.
    id: str
    #: Skill to level (1-5), sorted by skill.
    skills: tuple[Requirement, ...] = ()
    #: Contacts at once by channel.
    capacity: tuple[tuple[str, int], ...] = (("voice", 1),)
    #: For PRIORITY_ORDER; lower first.
    priority: int = 0
    #: How to reach the seat.
    address: str = ""
    #: After logging in, the first offer comes this much later.
    warm_up_span_ms: int = 0


def context_bytes(attributes: Iterable[tuple[str, str]]) -> int:
    """What the context of a call comes to."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in attributes)


class CallFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an edge said of a call, checked and normalised."""

    #: The edge's id.
    call_id: str
    #: Queue id.
    queue: str
    #: Channel name, lower case.
    channel: str = "voice"
    #: E.164 or empty.
    caller_number: str = ""
    #: Beyond the queue's own, sorted.
    skills: tuple[Requirement, ...] = ()
    #: -100 to 100, the points of `priority_parts` included.
    priority: int = 0
    #: Region nearest to the caller.
    home_region: str = ""
    #: BCP 47.
    language: str = ""
    #: Context for the desktop.
    attributes: tuple[tuple[str, str], ...] = ()
    #: W3C trace context of the request that placed it; its events carry it on.
    traceparent: str = ""
    #: Tried first: last agent, account manager. Empty for none.
    preferred_agent: str = ""
    #: For this long; 0 for the queue's span.
    preferred_span_ms: int = 0
    #: Points that what is known of the caller added to the edge's own, by where they come from, sorted.
    priority_parts: tuple[tuple[str, int], ...] = ()
    #: Waited before a conversation that was handed on: counts for the place, not as waiting.
    credit_span_ms: int = 0


# --- commands: one input to the engine each


class ConfigureTiming(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Puts protocol durations in force."""

    timing: Timing


class ConfigureQueue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Adds or changes a queue."""

    queue: QueueConfig


class RemoveQueue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Takes a queue away; refused while somebody waits in it."""

    queue: str


class ConfigureAgent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Adds or changes an agent."""

    agent: AgentConfig


class RemoveAgent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Takes an agent away; what it holds ends as with a log-out."""

    agent: str


class SetDraining(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The region stops (or starts again) taking new calls from elsewhere."""

    draining: bool


class PlaceCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Places a call, or attaches its stream again: one idempotent command, answered with what is now."""

    facts: CallFacts
    attempt: int
    move: int
    #: Router that holds the stream.
    front: str
    #: Waited before in other entries, from the place token or the front.
    waited_span_ms: int = 0
    #: The edge says that the conversation broke off: only then a connected call is queued again.
    agent_lost: bool = False
    #: It talks here, for all that its edge or front knows: found or not, it is not queued for that.
    talks: bool = False
    #: It comes from where it waits, for an agent's sake: not to where nobody is who fits it.
    fitting: bool = False


class AttachCalls(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """After a change of leader: these calls wait, and one front holds their streams as before. What does not
    stand so is named in the answer (`apart`) and left as it is. At most STEP_ENTRIES_MAX.
    """

    front: str
    #: (call id, attempt, move) of each.
    calls: tuple[tuple[str, int, int], ...]


class DetachCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The stream broke without a word: the place is kept for the grace period."""

    call_id: str
    attempt: int
    move: int
    #: Who lost it: a call that another front holds by now stays. Empty for whoever.
    front: str = ""


class DetachCalls(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Streams of one front have ended: as a DetachCall for each, in one command. At most STEP_ENTRIES_MAX."""

    front: str
    #: (call id, attempt, move) of each.
    calls: tuple[tuple[str, int, int], ...]


class OverflowCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The front wants to place the call elsewhere: no offers here meanwhile."""

    call_id: str
    attempt: int
    move: int


class WithdrawCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The call is queued elsewhere under a higher version: this entry ends as MOVED."""

    call_id: str
    attempt: int
    move: int
    reason: str = "OVERFLOW"
    #: The edge says that the conversation broke off: only then one ends here.
    agent_lost: bool = False


class HangUp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The caller hung up."""

    call_id: str
    attempt: int


class EndCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The conversation is over, says the edge (agent empty) or the desktop."""

    call_id: str
    attempt: int = 0
    agent: str = ""
    recording_uri: str = ""


class ConfirmCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The edge's consent to exactly one accepted offer."""

    call_id: str
    offer_id: str
    attempt: int
    move: int


class Reprioritize(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A waiting call's priority, absolute."""

    call_id: str
    priority: int


class DetachFront(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A front's link broke: all its calls and sessions are detached, in steps."""

    front: str


class OpenSession(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A desktop opens or re-attaches its session; the newest session wins."""

    agent: str
    session: int
    command: int
    front: str
    presence: Presence = Presence.AVAILABLE
    pause_reason: str = ""
    calls_held: tuple[str, ...] = ()


class DetachSession(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A desktop's stream broke."""

    agent: str
    session: int
    #: Who lost it: a session that another front holds by now stays. Empty for whoever.
    front: str = ""


class CloseSession(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A desktop logs out."""

    agent: str
    session: int


class SetPresence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """AVAILABLE or PAUSED; a command number that is not newer is ignored."""

    agent: str
    session: int
    command: int
    presence: Presence
    pause_reason: str = ""


class AcceptOffer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The agent takes an offer."""

    agent: str
    session: int
    offer_id: str


class DeclineOffer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The agent declines an offer."""

    agent: str
    session: int
    offer_id: str
    reason: str = ""


class TicketWish(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A ticket that a disposition asks for."""

    kind: str
    subject: str
    priority: str = ""
    category: str = ""
    description: str = ""


class Disposition(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an agent says of a finished contact."""

    code: str
    resolved: bool = False
    contact_reason: str = ""
    notes: str = ""
    ticket: TicketWish | None = None
    follow_up_ms: int = 0
    wants_to_leave: bool = False


class FinishWrapUp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """After-call work is done."""

    agent: str
    session: int
    call_id: str
    disposition: Disposition | None = None


class TransferCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A conversation goes on with another queue or agent; the agent who had it goes into after-call work."""

    call_id: str
    #: Queue id; the call's present one when empty (a transfer to an agent).
    queue: str = ""
    #: Agent to be tried first; none when empty.
    agent: str = ""
    #: The agent is another shard's: nobody is offered the call here while its front places it there.
    elsewhere: bool = False
    #: Added to the call's context, sorted.
    attributes: tuple[tuple[str, str], ...] = ()


class RequestCallback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The caller hangs up and keeps the place; an agent calls them when it is their turn."""

    call_id: str
    #: E.164.
    number: str
    #: Not offered before; 0 for as soon as it is their turn.
    not_before_ms: int = 0


class ForceLogOut(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A supervisor logs an agent out: at once, or when what the agent holds is done."""

    agent: str
    interrupt: bool = False


class PauseAgent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A supervisor pauses an agent, or ends the pause."""

    agent: str
    paused: bool
    reason: str = ""


class MonitorCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A supervisor listens to, whispers into or joins a conversation: the edge that holds it is told."""

    call_id: str
    mode: MonitorMode
    #: The supervisor's seat.
    address: str = ""


class RecordAct(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An administrative act, for the audit log."""

    actor: str
    #: UPPER_SNAKE: LOG_OUT_AGENT, CLOSE_QUEUE …
    act: str
    #: Resource name.
    subject: str
    reason: str = ""
    #: Further facts, sorted.
    details: tuple[tuple[str, str], ...] = ()


class SetLeadList(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Routers that may lead the shard, in order: `host:port`."""

    routers: tuple[str, ...]


class MoveDeadlines(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Nothing could be committed for so long: every deadline moves by it."""

    span_ms: int


class AskExplain(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a call here goes where it goes, or where a hypothetical one would."""

    #: A live or remembered call; empty for a hypothetical one.
    call_id: str = ""
    #: The hypothetical one.
    facts: CallFacts | None = None
    #: Agents looked at, at most.
    limit: int = 100
    #: What the hypothetical one has waited elsewhere.
    waited_span_ms: int = 0


class AskCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Only the present state; the answer waits for a commit begun after the question."""

    call_id: str


class AskAgent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Only an agent's present state."""

    agent: str


class AskCalls(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Live calls of the shard, oldest first, one page."""

    #: Queue id; all when empty.
    queue: str = ""
    #: Only in these states; all live ones when empty.
    states: tuple[CallState, ...] = ()
    #: (queued_ms, call id) of the last one of the page before.
    after: tuple[int, str] = (0, "")
    limit: int = 50


class AskStats(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The shard's live figures."""

    #: With the agents who are logged in, one by one: those behind this one by id.
    agents: bool = False
    after: str = ""


class Tick(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Time has passed: what is due happens, in steps."""


Command = (
    ConfigureTiming
    | ConfigureQueue
    | RemoveQueue
    | ConfigureAgent
    | RemoveAgent
    | SetDraining
    | PlaceCall
    | AttachCalls
    | DetachCall
    | DetachCalls
    | OverflowCall
    | WithdrawCall
    | HangUp
    | EndCall
    | ConfirmCall
    | Reprioritize
    | DetachFront
    | OpenSession
    | DetachSession
    | CloseSession
    | SetPresence
    | AcceptOffer
    | DeclineOffer
    | FinishWrapUp
    | TransferCall
    | RequestCallback
    | ForceLogOut
    | PauseAgent
    | MonitorCall
    | RecordAct
    | SetLeadList
    | MoveDeadlines
    | AskExplain
    | AskCall
    | AskAgent
    | AskCalls
    | AskStats
    | Tick
)


# --- events: what the journal holds


class ShardOpened(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A leader's first block. Its sequence is its epoch; deadlines move by the leaderless time."""

    router: str
    leaderless_span_ms: int


class TimingConfigured(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Protocol durations in force."""

    timing: Timing


class QueueConfigured(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A queue in force."""

    queue: QueueConfig


class QueueRemoved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A queue is gone."""

    queue: str


class AgentConfigured(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent in force."""

    agent: AgentConfig


class AgentRemoved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent is gone."""

    agent: str


class DrainingSet(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The region drains, or no longer."""

    draining: bool


class CallQueued(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call waits."""

    facts: CallFacts
    attempt: int
    move: int
    front: str
    #: When it first came, all entries together.
    queued_ms: int
    #: Effective arrival: less the credit of its priority.
    effective_ms: int
    #: Waited before in other entries.
    waited_span_ms: int
    #: Refused then (longest wait); 0 never.
    refuse_ms: int = 0
    #: Step of relaxation it begins in.
    step: int = 0
    #: The next step begins then; 0 never.
    relax_ms: int = 0
    #: Agent it waits for first; empty for none.
    preferred: str = ""
    #: Until then.
    preferred_until_ms: int = 0


class CallAttached(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A stream holds the call (again)."""

    call_id: str
    attempt: int
    move: int
    front: str
    #: Of one that was to be called back: refused then (longest wait); 0 never.
    refuse_ms: int = 0


class CallDetached(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """No stream holds the call; abandoned at `until_ms` unless one comes back."""

    call_id: str
    until_ms: int


class CallOverflowing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Being placed elsewhere; offered here again at `until_ms`."""

    call_id: str
    until_ms: int


class CallResumed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Offered here again."""

    call_id: str


class CallReprioritized(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """New priority and place."""

    call_id: str
    priority: int
    effective_ms: int


class CallRelaxed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The queue's next step of relaxation holds for the call."""

    call_id: str
    step: int
    #: The next one begins then; 0 never.
    relax_ms: int = 0


class PreferenceEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The preferred agent is waited for no longer: the call waits in its line."""

    call_id: str


class CallTransferred(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A conversation ended for its agent and the call waits again, for another queue or agent."""

    #: Being placed elsewhere; offered here then if that comes to nothing. 0 for at once.
    resume_ms: int = 0
    #: As they are from now on.
    facts: CallFacts
    #: Who had the conversation.
    agent: str
    #: The agent is in after-call work until then; 0 for none.
    wrap_up_until_ms: int
    #: When this wait began.
    queued_ms: int
    #: Effective arrival: less what it waited before (`facts.credit_span_ms`) and the credit of its priority.
    effective_ms: int
    refuse_ms: int = 0
    step: int = 0
    relax_ms: int = 0
    preferred: str = ""
    preferred_until_ms: int = 0

    @property
    def to_agent(self) -> str:
        """Agent who is to have it, here or where it is being placed; empty for whoever of the queue, also
        when the one who was wished for is not there.
        """
        return self.facts.preferred_agent if self.resume_ms else self.preferred


class CallbackRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The caller is to be called back; the place is kept without a stream."""

    call_id: str
    number: str
    #: Offered from then on; 0 at once.
    not_before_ms: int
    #: Given up then.
    expire_ms: int


class CallbackDue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A call-back's time has come."""

    call_id: str


class CallMonitored(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A supervisor takes part; the edge is told."""

    call_id: str
    mode: MonitorMode
    address: str


class CallOffered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent is being rung until `until_ms`."""

    call_id: str
    offer_id: str
    agent: str
    until_ms: int


class OfferAccepted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The agent holds; the edge must confirm until `until_ms`."""

    call_id: str
    offer_id: str
    agent: str
    until_ms: int


class OfferEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An offer came to nothing; the call, if it lives, waits at its original place."""

    call_id: str
    offer_id: str
    agent: str
    outcome: OfferOutcome
    #: The agent is offered nothing before this; 0 at once.
    rest_until_ms: int = 0
    #: Missed offers in a row, absolute.
    missed: int = 0


class CallConnected(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The edge confirmed. At most once over all shards."""

    call_id: str
    offer_id: str
    agent: str


class CallEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An entry ended."""

    call_id: str
    outcome: CallOutcome
    reason: str = ""
    #: The agent is in after-call work until then; 0 for none.
    wrap_up_until_ms: int = 0
    recording_uri: str = ""


class RecordingNamed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The edge has named a conversation's recording, after its end."""

    call_id: str
    recording_uri: str


class CallWrappedUp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """After-call work is done."""

    call_id: str
    agent: str
    disposition: Disposition | None


class CallsForgotten(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ended calls leave the memory."""

    call_ids: tuple[str, ...]


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A desktop's session is attached."""

    agent: str
    session: int
    command: int
    front: str
    presence: Presence
    pause_reason: str
    #: Offered nothing before this (warm-up); 0 at once.
    rest_until_ms: int = 0


class SessionDetached(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The desktop's stream broke; logged out at `until_ms` unless it comes back."""

    agent: str
    until_ms: int


class SessionClosed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The agent is logged out."""

    agent: str


class PresenceSet(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """AVAILABLE or PAUSED."""

    agent: str
    command: int
    presence: Presence
    pause_reason: str


class AgentDraining(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The agent finishes what it holds, takes nothing more and is logged out then."""

    agent: str
    draining: bool
    #: And removed.
    remove: bool = False
    #: Somebody has asked for the log-out: it stands even if the removal is taken back.
    log_out: bool = False


class ActRecorded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An administrative act."""

    actor: str
    act: str
    subject: str
    reason: str = ""
    details: tuple[tuple[str, str], ...] = ()


class LeadListSet(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Routers that may lead the shard, in order."""

    routers: tuple[str, ...]


class DeadlinesMoved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Every deadline is later by this."""

    span_ms: int


class AgentRested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The delay after a missed offer is over."""

    agent: str


Event = (
    ShardOpened
    | TimingConfigured
    | QueueConfigured
    | QueueRemoved
    | AgentConfigured
    | AgentRemoved
    | DrainingSet
    | CallQueued
    | CallAttached
    | CallDetached
    | CallOverflowing
    | CallResumed
    | CallReprioritized
    | CallOffered
    | OfferAccepted
    | OfferEnded
    | CallConnected
    | CallEnded
    | RecordingNamed
    | CallWrappedUp
    | CallsForgotten
    | SessionOpened
    | SessionDetached
    | SessionClosed
    | PresenceSet
    | AgentRested
    | CallRelaxed
    | PreferenceEnded
    | CallTransferred
    | CallbackRequested
    | CallbackDue
    | CallMonitored
    | AgentDraining
    | ActRecorded
    | LeadListSet
    | DeadlinesMoved
)


# --- what leaves a shard


class CallView(msgspec.Struct, frozen=True, gc=False):
    """A call's entry as it stands."""

    facts: CallFacts
    attempt: int
    move: int
    state: CallState
    outcome: CallOutcome | None
    reason: str
    queued_ms: int
    effective_ms: int
    connected_ms: int
    ended_ms: int
    agent: str
    agent_address: str
    offer_id: str
    #: Ringing or confirmation ends then.
    offer_until_ms: int
    detached: bool
    #: 1 is the next; 0 unknown.
    position: int
    #: Expected wait; -1 unknown.
    expected_wait_span_ms: int
    recording_uri: str
    wrap_up_until_ms: int
    #: Step of relaxation in force.
    step: int = 0
    #: Agent it waits for first; empty for none.
    preferred: str = ""
    #: To be called back at this number; empty for a caller who holds the line.
    callback_number: str = ""
    #: Conversations that were handed on before this one.
    transfers: int = 0
    #: To be called back from then on; 0 at once.
    callback_ms: int = 0

    @property
    def called_back(self) -> bool:
        """Whether the caller has hung up and is still to be called."""
        return bool(self.callback_number) and self.state in BEFORE_CONNECTION


class AgentView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent as it stands."""

    agent: str
    state: AgentState
    pause_reason: str
    session: int
    command: int
    calls: tuple[str, ...]
    offers: tuple[str, ...]
    since_ms: int
    capacity: tuple[tuple[str, int], ...]
    #: Takes nothing more and is logged out when free.
    draining: bool = False


class PositionChanged(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A waiting call's place and expected wait; told without a commit, for it promises nothing."""

    call_id: str
    #: 1 is the next.
    position: int
    #: -1 when it cannot be estimated.
    expected_wait_span_ms: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A command that changed nothing, and why (UPPER_SNAKE)."""

    reason: str
    #: The field at fault, if one is.
    field: str = ""


class AgentCandidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An agent looked at for a call."""

    agent: str
    #: Rank by the queue's strategy, 1 the best; 0 when skipped.
    rank: int
    #: UPPER_SNAKE, empty when eligible.
    skipped_reason: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a call goes where it goes."""

    queue: str
    #: Step of relaxation looked at.
    step: int
    #: Best first, at most as many as asked for.
    agents: tuple[AgentCandidate, ...]
    #: One sentence.
    summary: str


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A queue in a shard now."""

    queue: str
    waiting: int
    #: Of those waiting now.
    longest_wait_span_ms: int
    #: Of a call that came now; -1 when it cannot be estimated.
    expected_wait_span_ms: int
    #: Who fit.
    agents_logged_in: int
    agents_free: int
    #: Rung, accepted or in conversation.
    in_service: int


class ShardStats(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A shard's live figures."""

    now_ms: int
    draining: bool
    #: By id.
    queues: tuple[QueueFigures, ...]
    #: (state, how many).
    agents_by_state: tuple[tuple[str, int], ...]
    #: Logged in, by id, when asked for; and how many more there are behind the last of them.
    agents: tuple[AgentView, ...] = ()
    agents_left_out: int = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a command is answered with, once its commit is done."""

    refusal: Refusal | None = None
    call: CallView | None = None
    agent: AgentView | None = None
    #: For AskCalls; for OpenSession those that the agent talks to, and those that ring.
    calls: tuple[CallView, ...] = ()
    #: Entries left for the same command again; for AskCalls, for a page behind this one.
    more: bool = False
    #: For AttachCalls: calls that have to be placed one by one.
    apart: tuple[str, ...] = ()
    #: For AskExplain.
    explanation: Explanation | None = None
    #: For AskStats.
    stats: ShardStats | None = None


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A committed event for the front that holds the call's or the agent's stream."""

    event: Event | PositionChanged
    now_ms: int
    call: CallView | None = None
    agent: AgentView | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What `decide` says: events, or a refusal."""

    events: list[Event] = msgspec.field(default_factory=list)
    refusal: Refusal | None = None
    more: bool = False
    #: As in the answer.
    apart: tuple[str, ...] = ()
