"""What a ticket is. Frozen values and enums; no clock, no I/O. Times are business time in integer ms since
1970 (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tickets.calendars import Calendar

#: History steps kept inside a ticket; older ones go to pages of their own.
HISTORY_INLINE_MAX = 64
#: History steps that stay inside when the oldest go.
HISTORY_INLINE_KEPT = 32
#: Calls kept on a ticket: the opening one and the latest.
CALLS_MAX = 100
#: Things still to be done to other tickets that one ticket may carry.
INTENTS_MAX = 16
#: Comments kept inside a ticket; older ones go to documents of their own.
COMMENTS_INLINE_MAX = 8
#: Comments that stay inside when the oldest go.
COMMENTS_INLINE_KEPT = 4
#: Links, files and watchers of a ticket.
LINKS_MAX, ATTACHMENTS_MAX, WATCHERS_MAX = 100, 64, 64
#: Others than its own customer whose words merges and splits may bring into a ticket.
GUESTS_MAX = 100
#: Requests that a ticket remembers.
REQUESTS_MAX = 16
#: Comments of a ticket in all.
COMMENTS_MAX = 10_000
#: What the history calls a handing over, in which the state stays.
TRANSFER = "transfer"
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
    #: Scopes or roles of which the actor needs one; empty: whoever may write.
    roles: frozenset[str] = frozenset()


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
    #: How long after it, ms; None: the service's usual delay.
    follow_up_delay_ms: int | None = None
    #: The visit's flow.
    follow_up_flow: str = "return_visit"
    #: The share of resolutions that are visited, 0 to 1.
    follow_up_share: float = 1.0
    #: When an assignee is silent this long, the ticket goes back to its team, ms; None: never.
    silent_ms: int | None = None
    #: The team that new tickets go to; empty: none.
    team: str = ""
    #: The team whose task a ticket becomes when it enters a state, by state.
    state_teams: Mapping[str, str] = field(default_factory=dict)
    #: +1 with each change; tickets go on in the version they began with.
    version: int = 1
    #: In words.
    title: str = ""
    #: Whether the kind's tickets follow it unless told otherwise.
    default: bool = False
    #: Whether it came with the service.
    shipped: bool = True


class ClockState(StrEnum):
    """What a service-level clock is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    MET = "met"
    BREACHED = "breached"
    STOPPED = "stopped"
    #: The ticket has no such clock.
    ABSENT = "absent"


class ClockType(StrEnum):
    """Which service-level clock."""

    FIRST_RESPONSE = "first_response"
    NEXT_RESPONSE = "next_response"
    RESOLUTION = "resolution"


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Something to do near the resolution's deadline."""

    #: 1 for the first.
    level: int
    #: When: working time after the deadline, negative before it, ms.
    offset_ms: int
    #: The team it goes to; empty: stays.
    team: str = ""
    #: The priority it takes; None: keeps. Its targets stay: what was promised does not change.
    priority: Priority | None = None
    #: Who is told, identities.
    notify: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """A moment at which a running clock wants something told."""

    #: When, ms.
    at_ms: int
    #: Which clock.
    clock: ClockType
    #: The escalation level reached then; 0: only a warning.
    level: int = 0


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
    #: 1 at first, +1 after each reopening; 0 for a first response given while none was promised.
    cycle: int = 1
    #: When the target passes if nothing changes; None unless the clock runs and it hasn't passed.
    due_ms: int | None = None
    #: Whether the warning of this cycle is past.
    warned: bool = False


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
    #: From a customer's message to the next response; None: no such clock yet.
    next_response: SlaClock | None = None
    #: What a next response may take, ms; 0: no such clock.
    next_response_ms: int = 0
    #: Whose working time counts, `{calendar}@{version}`; empty: every hour of every day.
    calendar: str = ""
    #: States in which the clocks pause besides those of phase WAITING.
    pausing: tuple[str, ...] = ()
    #: What happens near the resolution's deadline, by rising offset.
    levels: tuple[Level, ...] = ()
    #: How many of them are past in this cycle.
    levels_past: int = 0
    #: The escalation level reached, 0 for none.
    level: int = 0
    #: The share of a target after which a warning is told, percent; 0: never.
    warn_percent: int = 0
    #: What is still to be told while the clocks run, soonest first.
    alarms: tuple[Alarm, ...] = ()


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
class Policy:
    """An operator's own targets for the tickets that it matches; tried by rising order, the first counts."""

    #: Its id, the last part of `slaPolicies/{sla_policy}`.
    id: str
    #: When it is tried.
    order: int
    #: Whose working time counts, `{calendar}@{version}`.
    calendar: str
    #: What it is for; empty: all.
    kinds: frozenset[Kind] = frozenset()
    priorities: frozenset[Priority] = frozenset()
    tiers: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    #: Targets, ms; None: no such clock.
    first_response_ms: int | None = None
    next_response_ms: int | None = None
    resolution_ms: int | None = None
    #: States in which the clocks pause besides those of phase WAITING.
    pausing: tuple[str, ...] = ()
    #: What happens near the resolution's deadline, by rising offset.
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One of a team."""

    #: Last part of `agents/{agent}`.
    agent: str
    #: What the agent can do.
    skills: frozenset[str] = frozenset()
    #: Open tickets above which nothing more is given; 0: no bound.
    open_max: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """Who shares a pile of tickets."""

    #: Last part of `teams/{team}`.
    id: str
    #: Who is in it, in the order of their turns.
    members: tuple[Member, ...] = ()


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
    #: Whose it is where that is not whose the ticket is: a customer's id or, of nobody's, a number.
    owner: str = ""


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
    #: How the customer is to be asked.
    channel: Channel = Channel.UNKNOWN


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
    #: Take over what a merged ticket has, then end it.
    ABSORB = "absorb"
    #: The other side of a link.
    LINK = "link"
    UNLINK = "unlink"
    #: Give up the calls that went to a split-off ticket.
    CEDE = "cede"


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
    #: Why, for that ticket's history; for a link its relation, seen from there.
    reason: str
    #: When it was decided.
    time_ms: int
    #: A visit's score, 0 when not given.
    score: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PartLine:
    """One line of a parts list."""

    #: The part's number in the operator's catalogue.
    number: str
    #: How many.
    quantity: int
    #: What it is.
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatch:
    """Work on site."""

    #: Where, a postal address.
    address: str = ""
    #: Where on the map, degrees; None: not known.
    latitude: float | None = None
    longitude: float | None = None
    #: When the engineer is expected, ms; None: not agreed.
    start_ms: int | None = None
    end_ms: int | None = None
    #: Who goes, `agents/{agent}`.
    engineer: str = ""
    #: What must be brought along.
    parts: tuple[PartLine, ...] = ()
    #: Who is there and how to reach them.
    contact: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeeLine:
    """One line of a fee order."""

    #: What is charged.
    description: str
    #: How many.
    quantity: int
    #: The price of one, a decimal number.
    amount: str
    #: ISO 4217.
    currency: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SurveyAnswer:
    """A question of a survey and what the customer said."""

    #: The question's id.
    question_id: str
    #: As put.
    question: str = ""
    #: Empty while not asked.
    answer: str = ""


class Relation(StrEnum):
    """What another ticket is to this one."""

    RELATED = "related"
    PARENT = "parent"
    CHILD = "child"
    DUPLICATE = "duplicate"
    BLOCKED_BY = "blocked_by"
    BLOCKS = "blocks"


#: What this ticket is to the other one then.
INVERSE: Mapping[Relation, Relation] = MappingProxyType(
    {
        Relation.RELATED: Relation.RELATED,
        Relation.PARENT: Relation.CHILD,
        Relation.CHILD: Relation.PARENT,
        Relation.DUPLICATE: Relation.DUPLICATE,
        Relation.BLOCKED_BY: Relation.BLOCKS,
        Relation.BLOCKS: Relation.BLOCKED_BY,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A link with another ticket."""

    #: The other.
    ticket_id: str
    #: What it is to this one.
    relation: Relation
    #: When the link was made.
    time_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """A file kept elsewhere."""

    #: Id within the ticket.
    id: str
    #: Where it is; never opened.
    uri: str
    #: Its name.
    file_name: str
    #: For example `image/png`.
    media_type: str = ""
    #: In bytes, 0 when not known.
    size: int = 0
    #: In hex.
    sha256: str = ""
    #: Who attached it.
    creator: str = ""
    #: When.
    time_ms: int = 0
    #: Whose it is where that is not whose the ticket is: a customer's id or, of nobody's, a number.
    owner: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comment:
    """A remark on a ticket."""

    #: 1 for the first, +1 each; also its id.
    sequence: int
    #: The text.
    body: str
    #: Whether the customer may read it.
    public: bool
    #: Who wrote it.
    author: str
    #: Whether the customer wrote it.
    from_customer: bool
    #: When.
    time_ms: int
    #: Files that belong to it.
    attachments: tuple[str, ...] = ()
    #: Key and content of the request that wrote it, for repeats.
    request_key: str = ""
    fingerprint: str = ""
    #: Whose it is where that is not whose the ticket is: a customer's id or, of nobody's, a number.
    owner: str = ""


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
    #: Only repair and installation: the work on site.
    dispatch: Dispatch | None = None
    #: Only fee orders: the money.
    fee: tuple[FeeLine, ...] = ()
    #: Only parts requests: what is needed.
    parts: tuple[PartLine, ...] = ()
    #: Only market surveys: questions and answers.
    survey: tuple[SurveyAnswer, ...] = ()


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
    #: (key, content) of the latest requests that changed it, for repeats.
    requests: tuple[tuple[str, str], ...] = ()
    #: How often it was resolved.
    resolve_count: int = 0
    #: How often it was reopened.
    reopen_count: int = 0
    #: Whether the call that opened it also resolved it.
    first_contact_resolved: bool = False
    #: Who opened it.
    creator: str = ""
    #: Customers whose it was before each was merged into another, the first one first.
    merged_from: tuple[str, ...] = ()
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
    #: Which version of the flow.
    flow_version: int = 1
    #: Who works on it, last part of `agents/{agent}`; empty: nobody.
    assignee: str = ""
    #: The team it lies with, last part of `teams/{team}`.
    team: str = ""
    #: Whether anybody was ever its assignee.
    had_assignee: bool = False
    #: Since when the assignee has been silent; None without one.
    silent_ms: int | None = None
    #: After how much silence it goes back to its team, ms; None: never.
    silent_limit_ms: int | None = None
    #: How often its assignee changed after the first.
    reassign_count: int = 0
    #: Other tickets.
    links: tuple[Link, ...] = ()
    #: Files.
    attachments: tuple[Attachment, ...] = ()
    #: Who is told of changes.
    watchers: tuple[str, ...] = ()
    #: The latest comments, oldest first.
    comments: tuple[Comment, ...] = ()
    #: How many in all.
    comment_count: int = 0
    #: The ticket that took it over in a merge.
    merged_into: str = ""
    #: The tickets that it took over, whose calls, comments and files it has by now; the latest.
    absorbed: tuple[str, ...] = ()
    #: Whose words besides its own it holds, since merges and splits: `owner` of its parts.
    guests: tuple[str, ...] = ()
    #: The problem it is a case of.
    problem: str = ""
    #: Who approved its fees.
    fee_approver: str = ""
    #: When they were paid.
    fee_paid_ms: int | None = None
    #: How satisfied the customer said to be about the latest resolution, 1 to 5; 0: not said.
    satisfaction: int = 0

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
    #: Numbers that were its own until it was deleted, E.164: an erasure reaches what came from them; of an
    #: erased one until its tickets were looked for once more.
    former_numbers: tuple[str, ...] = ()
    #: crm's word, lower-case, for example `vip`.
    tier: str = ""
    #: BCP 47.
    language: str = ""
    #: The customer that took this one over.
    merged_into: str = ""
    #: The customer was legally erased: nothing is kept of them any more.
    erased: bool = False
    #: When this service erased it; None: it did not, or an earlier release did.
    erased_ms: int | None = None
    #: When an erased one's tickets are looked for once more; None: not any more.
    again_ms: int | None = None
    #: Channels by which the customer doesn't want to be asked how it was.
    refused: frozenset[Channel] = frozenset()
    #: Channels by which the customer said to want to be asked, the latest said first.
    preferred: tuple[Channel, ...] = ()
    #: When the customer wants not to be contacted: (ISO weekdays, none: every day; first minute; first
    #: after).
    quiet: tuple[tuple[tuple[int, ...], int, int], ...] = ()
    #: IANA zone of these; empty: the enterprise's.
    zone: str = ""


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
class CareFacts:
    """An occasion to care for a customer, as crm tells it."""

    #: Id that a ticket opened for it has.
    ticket_id: str
    #: What is to be done, one line.
    subject: str
    #: Sort of occasion, the ticket's category: "retention", "contract-expires".
    category: str
    #: The customer; empty: not known.
    customer_id: str = ""
    #: E.164; empty: not known.
    number: str = ""
    #: Urgency.
    priority: Priority = Priority.NORMAL
    #: Whether one open ticket of this category is enough for a customer.
    once: bool = False


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """A service-level target is near."""

    clock: ClockType
    due_ms: int
    cycle: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Escalated:
    """An escalation level was reached."""

    level: Level
    clock: ClockType


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigned:
    """Assignee or team changed."""

    previous_assignee: str
    previous_team: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Commented:
    """A comment was written."""

    comment: Comment


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """Another ticket was taken over."""

    source_id: str


Happening = (
    Created
    | Transitioned
    | Updated
    | Attached
    | Scheduled
    | Visited
    | Breached
    | Warned
    | Escalated
    | Assigned
    | Commented
    | Merged
)


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
    #: The operator's own policies by rising order; what none matches goes by `sla`.
    policies: tuple[Policy, ...] = ()
    #: Every version of every calendar by `{calendar}@{version}`.
    calendars: Mapping[str, Calendar] = field(default_factory=dict)
    #: The share of a target after which a warning is told, percent; 0: never.
    warn_percent: int = 0
    #: Which flow a kind's new tickets follow, where it isn't the shipped one.
    default_flows: Mapping[Kind, str] = field(default_factory=dict)
    #: Teams by id.
    teams: Mapping[str, Team] = field(default_factory=dict)
    #: Ids of teams that were deleted.
    gone_teams: frozenset[str] = frozenset()
    #: The team that tickets of a deleted one go to where their flow names none; empty: no team.
    default_team: str = ""
    #: IANA zone of customers who have none of their own.
    time_zone: str = "UTC"
