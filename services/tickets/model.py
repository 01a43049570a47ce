"""What a ticket is. Frozen values and enums; no clock, no I/O. Times are business time in integer ms since
1970 (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

#: History steps kept inside a ticket; older ones go to pages of their own.
HISTORY_INLINE_MAX = 64
#: History steps that stay inside when the oldest go.
HISTORY_INLINE_KEPT = 32
#: Calls kept on a ticket: the opening one and the latest.
CALLS_MAX = 100
#: Things still to be done to other tickets that one ticket may carry.
INTENTS_MAX = 16
#: Who does what the service does by itself.
SYSTEM = "system"


class Kind(StrEnum):
    """What sort of request a ticket is."""

    INQUIRY = "inquiry"
    COMPLAINT = "complaint"
    REPAIR = "repair"
    INSTALLATION = "installation"
    RETURN_VISIT = "return_visit"
    FEE_ORDER = "fee_order"
    PARTS_REQUEST = "parts_request"
    CARE = "care"
    MARKET_SURVEY = "market_survey"
    OTHER = "other"


class Priority(StrEnum):
    """How urgent a ticket is, by rising urgency."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


#: Position of each priority, for comparisons.
PRIORITY_RANK: Mapping[Priority, int] = MappingProxyType({p: rank for rank, p in enumerate(Priority)})


class Phase(StrEnum):
    """What a state means outside its flow."""

    NEW = "new"
    ACTIVE = "active"
    WAITING = "waiting"
    RESOLVED = "resolved"
    CLOSED = "closed"
    CANCELLED = "cancelled"


#: Phases in which a ticket is open.
OPEN_PHASES = frozenset({Phase.NEW, Phase.ACTIVE, Phase.WAITING})
#: Phases that no transition leaves.
FINAL_PHASES = frozenset({Phase.CLOSED, Phase.CANCELLED})


class Channel(StrEnum):
    """How a request came in."""

    UNKNOWN = "unknown"
    VOICE = "voice"
    CHAT = "chat"
    SMS = "sms"
    EMAIL = "email"
    VISIT = "visit"


class Effect(StrEnum):
    """What a transition does beyond its own ticket."""

    NONE = "none"
    #: The customer is content: the parent is closed.
    SATISFIED = "satisfied"
    #: The customer is not: the parent is reopened.
    DISSATISFIED = "dissatisfied"
    #: The customer could not be asked: the parent is closed.
    UNREACHED = "unreached"


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One row of a state table."""

    #: Its id, for example `resolve`; from one state an id leads to one state.
    verb: str
    #: From which states.
    sources: frozenset[str]
    #: To which state.
    target: str
    #: What must be given: `reason`, `resolution`.
    requires: frozenset[str] = frozenset()
    #: What it does to the parent.
    effect: Effect = Effect.NONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """A declared state table; checked by `flows.problems_of`."""

    #: Id, the last part of `flows/{flow}`.
    id: str
    #: For which kind.
    kind: Kind
    #: In which state tickets open.
    initial: str
    #: Every state and what it means.
    states: Mapping[str, Phase]
    #: Every transition.
    transitions: tuple[Transition, ...]
    #: Whether a return visit follows a resolution.
    follow_up: bool = False


class ClockState(StrEnum):
    """What a service-level clock is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    MET = "met"
    BREACHED = "breached"
    STOPPED = "stopped"


class ClockType(StrEnum):
    """Which service-level clock."""

    FIRST_RESPONSE = "first_response"
    RESOLUTION = "resolution"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlaClock:
    """Used time against a target. Used time accumulates, so pauses, reopenings and new targets keep their
    credit."""

    #: What it is doing.
    state: ClockState
    #: What the policy allows, ms.
    target_ms: int
    #: What reopenings added to it, ms.
    extra_ms: int = 0
    #: Used up to `since_ms` (or in all, while it doesn't run), ms.
    used_ms: int = 0
    #: Since when it runs; None while it doesn't. A breached clock runs on until the work is done.
    since_ms: int | None = None
    #: When the target passed in this cycle.
    breached_ms: int | None = None
    #: When it was met or stopped.
    stopped_ms: int | None = None
    #: 1 at first, +1 after each reopening.
    cycle: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sla:
    """A ticket's clocks and how their targets came about."""

    #: Which policy.
    policy: str
    #: Which rule of it, for example `complaint/high/vip`.
    rule: str
    #: From opening to the first response.
    first_response: SlaClock
    #: From opening to resolution.
    resolution: SlaClock
    #: How the targets came about, one step a line.
    explanation: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SlaTarget:
    """Durations for a kind at normal priority for a customer of no special tier."""

    #: To the first response, ms.
    first_response_ms: int
    #: To resolution, ms.
    resolution_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SlaPolicy:
    """The declared table of durations."""

    #: Its id, the last part of `slaPolicies/{sla_policy}`.
    id: str
    #: Durations of each kind.
    targets: Mapping[Kind, SlaTarget]
    #: Percent of them at each priority.
    priority_percent: Mapping[Priority, int]
    #: Percent of that for each customer tier; others 100.
    tier_percent: Mapping[str, int]
    #: Percent of the target that a reopened ticket has left at least.
    reopen_floor_percent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CallLink:
    """A call that opened a ticket or was attached to it."""

    #: The edge's id of the call.
    call_id: str
    #: When the agent finished with it.
    time_ms: int
    #: Who took it, `agents/{agent}`.
    agent: str = ""
    #: The disposition code.
    code: str = ""
    #: Why the customer called.
    reason: str = ""
    #: The agent's notes.
    notes: str = ""
    #: True for the call that opened the ticket.
    opened: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FollowUp:
    """The return visit of the latest resolution."""

    #: When its ticket is to be made.
    schedule_ms: int
    #: The id that ticket has or will have.
    ticket_id: str
    #: Which resolution it follows.
    number: int
    #: Whether the ticket exists.
    created: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What a return visit asks and hears."""

    #: Which resolution of the parent it asks about.
    number: int
    #: Whether the customer answered.
    answered: bool = False
    #: The verdict, meaningful when answered.
    satisfied: bool = False
    #: 1 to 5, 0 when not given.
    score: int = 0
    #: The customer's words.
    comment: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a ticket's history."""

    #: 1 for the opening, +1 each.
    sequence: int
    #: The transition's id, `open` for the first.
    verb: str
    #: State before; empty for the first.
    source: str
    #: State after.
    target: str
    #: Phase after.
    phase: Phase
    #: Who did it.
    actor: str
    #: Why.
    reason: str
    #: When.
    time_ms: int
    #: Key of the request that did it, for repeats; empty: none.
    request_key: str = ""
    #: Fingerprint of that request's content.
    fingerprint: str = ""


class IntentKind(StrEnum):
    """Something still to be done to another ticket."""

    CLOSE_PARENT = "close_parent"
    REOPEN_PARENT = "reopen_parent"
    CANCEL_VISIT = "cancel_visit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Intent:
    """Written in one step with what caused it, carried out at once or by the worker after a crash; harmless
    when repeated."""

    #: What.
    kind: IntentKind
    #: To which ticket.
    ticket_id: str
    #: About which resolution of the parent.
    number: int
    #: Why, for that ticket's history.
    reason: str
    #: When it was decided.
    time_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What people may fill in by hand, at creation or later; checked by `validation.check_draft`."""

    #: One line.
    subject: str
    #: Free text.
    description: str = ""
    #: Urgency.
    priority: Priority = Priority.NORMAL
    #: Id of the operator's list.
    category: str = ""
    #: Customer id; empty: unknown.
    customer_id: str = ""
    #: E.164; empty: unknown.
    caller_number: str = ""
    #: BCP 47; empty: unknown.
    language: str = ""
    #: How it came in.
    channel: Channel = Channel.UNKNOWN
    #: Skills that an assignee needs.
    required_skills: tuple[str, ...] = ()
    #: Free labels.
    tags: tuple[str, ...] = ()
    #: The operator's own fields.
    attributes: Mapping[str, str] = field(default_factory=dict)
    #: The customer's assets, `assets/{asset}`.
    assets: tuple[str, ...] = ()
    #: Products, offers or campaigns concerned.
    products: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One request of a customer."""

    #: Last part of `tickets/{ticket}`.
    id: str
    #: What sort of request.
    kind: Kind
    #: Which flow it follows.
    flow: str
    #: Where it is in it.
    state: str
    #: What that means.
    phase: Phase
    #: What people fill in.
    draft: Draft
    #: The service-level clocks.
    sla: Sla
    #: The customer's tier when it was opened; empty: unknown.
    tier: str = ""
    #: Calls, oldest first.
    calls: tuple[CallLink, ...] = ()
    #: How many calls in all, those no longer kept included.
    call_count: int = 0
    #: How it was resolved.
    resolution: str = ""
    #: The ticket it belongs to.
    parent_id: str = ""
    #: The return visit of the latest resolution.
    follow_up: FollowUp | None = None
    #: Only for return visits.
    visit: Visit | None = None
    #: The latest steps, oldest first.
    history: tuple[Step, ...] = ()
    #: How many steps in all.
    step_count: int = 0
    #: What is still to be done to other tickets.
    intents: tuple[Intent, ...] = ()
    #: How often it was resolved.
    resolve_count: int = 0
    #: How often it was reopened.
    reopen_count: int = 0
    #: Whether the call that opened it also resolved it.
    first_contact_resolved: bool = False
    #: Who opened it.
    creator: str = ""
    #: While set, holds the "one open ticket of a caller and topic" place; unique over all tickets.
    open_key: str = ""
    #: No timer fires before; set after a failure.
    timer_hold_ms: int = 0
    #: When opened.
    created_ms: int = 0
    #: When last changed.
    updated_ms: int = 0
    #: When last resolved; None unless it is.
    resolved_ms: int | None = None
    #: When closed or cancelled.
    closed_ms: int | None = None
    #: 0 before it is stored, then +1 with every write.
    version: int = 0

    @property
    def is_open(self) -> bool:
        """Whether somebody still has to do something."""
        return self.phase in OPEN_PHASES

    @property
    def topic(self) -> str:
        """What repeat calls are matched by: the category, or the kind where there is none."""
        return self.draft.category or self.kind.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What tickets knows of a customer, from crm's events."""

    #: Last part of `customers/{customer}`.
    customer_id: str
    #: crm's version of it; the higher is the newer.
    version: int
    #: E.164.
    numbers: tuple[str, ...] = ()
    #: crm's word, lower-case, for example `vip`.
    tier: str = ""
    #: BCP 47.
    language: str = ""
    #: The customer that took this one over.
    merged_into: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketRequest:
    """The ticket that an agent asked for when finishing a call, as received: nothing in it is trusted."""

    kind: str
    priority: str
    category: str
    subject: str
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFacts:
    """A finished call and what its agent said of it."""

    #: The edge's id.
    call_id: str
    #: Id that a ticket opened from it has.
    ticket_id: str
    #: When the agent finished.
    time_ms: int
    #: E.164; empty for a withheld number.
    number: str = ""
    #: `agents/{agent}`.
    agent: str = ""
    #: How it came in.
    channel: Channel = Channel.UNKNOWN
    #: Disposition code.
    code: str = ""
    #: Settled in this call.
    resolved: bool = False
    #: Why the customer called.
    reason: str = ""
    #: The agent's notes.
    notes: str = ""
    #: When the customer asked to be called again.
    follow_up_ms: int | None = None
    #: The ticket asked for.
    request: TicketRequest | None = None
    #: The customer, if known.
    profile: Profile | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    """A ticket was opened."""

    actor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitioned:
    """A ticket went through a transition."""

    step: Step
    reopened: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Updated:
    """Something else about a ticket changed."""

    fields: tuple[str, ...]
    actor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Attached:
    """A repeat call was attached."""

    call: CallLink


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduled:
    """A return visit is planned."""

    follow_up: FollowUp


@dataclass(frozen=True, kw_only=True, slots=True)
class Visited:
    """A return visit ended with a verdict."""

    visit: Visit


@dataclass(frozen=True, kw_only=True, slots=True)
class Breached:
    """A service-level target passed."""

    clock: ClockType
    due_ms: int
    cycle: int


Happening = Created | Transitioned | Updated | Attached | Scheduled | Visited | Breached


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a decision makes of a ticket. `ticket.version` is still the one that was read."""

    #: The ticket after it.
    ticket: Ticket
    #: What is to be told.
    happenings: tuple[Happening, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What decisions depend on besides the ticket."""

    #: The durations.
    sla: SlaPolicy
    #: From resolution to the return visit, ms.
    follow_up_delay_ms: int
