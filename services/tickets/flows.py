"""The shipped state tables, one a kind, and what makes a table sound.

Rules: from one state a verb leads to one state. Every state is reachable from the initial one, from every
state a final one (CLOSED, CANCELLED) is reachable, and nothing leaves a final one. A flow with a return
visit has `close` and `reopen` from every RESOLVED state, so that a verdict can always be carried out; every
return-visit flow has `cancel` from its open states.

An operator's flows stand beside the shipped ones in the same book. What is in the book never changes: a
changed flow is a new version, and tickets go on in the version they began with. So the book only grows, and
which process looks something up makes no difference but for how soon a new version is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from tickets.model import FINAL_PHASES, OPEN_PHASES, Effect, Flow, Kind, Phase, Transition

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

#: Most states of a flow.
STATES_MAX = 64
#: Most transitions of a flow.
TRANSITIONS_MAX = 512

#: What `requires` may name besides Ticket's fields.
REQUEST_FIELDS = frozenset({"reason", "resolution", "satisfaction_score"})
#: Ticket's fields that a transition may require.
TICKET_FIELDS = frozenset(
    {"description", "category", "customer", "caller_number", "language", "required_skills", "tags", "assets"}
    | {
        "products",
        "dispatch",
        "dispatch.appointment",
        "dispatch.engineer",
        "fee",
        "parts",
        "survey",
        "assignee",
    }
)

_REASON = frozenset({"reason"})
_RESOLUTION = frozenset({"resolution"})
#: Nobody is sent without knowing where to, nor an order sent without saying who goes.
_DISPATCH = frozenset({"dispatch", "dispatch.engineer"})


def _row(
    verb: str,
    sources: str,
    target: str,
    requires: frozenset[str] = frozenset(),
    effect: Effect = Effect.NONE,
) -> Transition:
    """`sources` are separated by blanks."""
    return Transition(
        verb=verb, sources=frozenset(sources.split()), target=target, requires=requires, effect=effect
    )


_SIMPLE_STATES = {
    "new": Phase.NEW,
    "in_progress": Phase.ACTIVE,
    "waiting_customer": Phase.WAITING,
    "resolved": Phase.RESOLVED,
    "closed": Phase.CLOSED,
    "cancelled": Phase.CANCELLED,
}
_SIMPLE_ROWS = (
    _row("start", "new", "in_progress"),
    _row("wait", "in_progress", "waiting_customer"),
    _row("resume", "waiting_customer", "in_progress"),
    _row("resolve", "new in_progress waiting_customer", "resolved"),
    _row("reopen", "resolved", "in_progress", _REASON),
    _row("close", "resolved", "closed"),
    _row("cancel", "new in_progress waiting_customer", "cancelled", _REASON),
)


def _simple(kind: Kind, *, follow_up: bool) -> Flow:
    return Flow(
        id=kind.value,
        kind=kind,
        initial="new",
        states=MappingProxyType(_SIMPLE_STATES),
        transitions=_SIMPLE_ROWS,
        follow_up=follow_up,
    )


_COMPLAINT = Flow(
    id="complaint",
    kind=Kind.COMPLAINT,
    initial="new",
    states=MappingProxyType(
        {
            "new": Phase.NEW,
            "investigating": Phase.ACTIVE,
            "back_office": Phase.ACTIVE,
            "waiting_customer": Phase.WAITING,
            "resolved": Phase.RESOLVED,
            "closed": Phase.CLOSED,
            "withdrawn": Phase.CANCELLED,
        }
    ),
    transitions=(
        _row("start", "new", "investigating"),
        _row("escalate", "new investigating", "back_office", _REASON),
        _row("return", "back_office", "investigating"),
        _row("wait", "investigating back_office", "waiting_customer"),
        _row("resume", "waiting_customer", "investigating"),
        _row("resolve", "investigating back_office waiting_customer", "resolved", _RESOLUTION),
        _row("reopen", "resolved", "investigating", _REASON),
        _row("close", "resolved", "closed"),
        _row("cancel", "new investigating back_office waiting_customer", "withdrawn", _REASON),
    ),
    follow_up=True,
)

_FIELD_STATES = {
    "new": Phase.NEW,
    "dispatched": Phase.ACTIVE,
    "on_site": Phase.ACTIVE,
    "waiting_parts": Phase.WAITING,
    "waiting_customer": Phase.WAITING,
    "resolved": Phase.RESOLVED,
    "closed": Phase.CLOSED,
    "cancelled": Phase.CANCELLED,
}
_FIELD_ROWS = (
    _row("dispatch", "new", "dispatched", _DISPATCH),
    _row("arrive", "dispatched", "on_site"),
    _row("need_parts", "dispatched on_site", "waiting_parts"),
    _row("wait", "dispatched on_site", "waiting_customer"),
    _row("resume", "waiting_parts waiting_customer", "dispatched"),
    _row("resolve", "dispatched on_site", "resolved", _RESOLUTION),
    _row("reopen", "resolved", "dispatched", _REASON),
    _row("close", "resolved", "closed"),
    _row("cancel", "new dispatched on_site waiting_parts waiting_customer", "cancelled", _REASON),
)


def _field_work(kind: Kind) -> Flow:
    return Flow(
        id=kind.value,
        kind=kind,
        initial="new",
        states=MappingProxyType(_FIELD_STATES),
        transitions=_FIELD_ROWS,
        follow_up=True,
    )


_RETURN_VISIT = Flow(
    id="return_visit",
    kind=Kind.RETURN_VISIT,
    initial="new",
    states=MappingProxyType(
        {
            "new": Phase.NEW,
            "contacting": Phase.ACTIVE,
            "unreachable": Phase.WAITING,
            "satisfied": Phase.CLOSED,
            "dissatisfied": Phase.CLOSED,
            "unreached": Phase.CLOSED,
            "cancelled": Phase.CANCELLED,
        }
    ),
    transitions=(
        _row("start", "new", "contacting"),
        _row("no_answer", "new contacting", "unreachable"),
        _row("retry", "unreachable", "contacting"),
        _row("satisfied", "new contacting unreachable", "satisfied", effect=Effect.SATISFIED),
        _row("dissatisfied", "new contacting unreachable", "dissatisfied", _REASON, Effect.DISSATISFIED),
        _row("give_up", "contacting unreachable", "unreached", effect=Effect.UNREACHED),
        _row("cancel", "new contacting unreachable", "cancelled"),
    ),
)

_FEE_ORDER = Flow(
    id="fee_order",
    kind=Kind.FEE_ORDER,
    initial="new",
    states=MappingProxyType(
        {
            "new": Phase.NEW,
            "submitted": Phase.ACTIVE,
            "approved": Phase.ACTIVE,
            "rejected": Phase.WAITING,
            "paid": Phase.RESOLVED,
            "closed": Phase.CLOSED,
            "cancelled": Phase.CANCELLED,
        }
    ),
    transitions=(
        _row("submit", "new rejected", "submitted", frozenset({"fee"})),
        _row("approve", "submitted", "approved"),
        _row("reject", "submitted approved", "rejected", _REASON),
        _row("pay", "approved", "paid"),
        _row("refund", "paid", "submitted", _REASON),
        _row("close", "paid", "closed"),
        _row("cancel", "new submitted rejected", "cancelled", _REASON),
    ),
)

_PARTS_REQUEST = Flow(
    id="parts_request",
    kind=Kind.PARTS_REQUEST,
    initial="new",
    states=MappingProxyType(
        {
            "new": Phase.NEW,
            "approved": Phase.ACTIVE,
            "ordered": Phase.WAITING,
            "delivered": Phase.RESOLVED,
            "closed": Phase.CLOSED,
            "cancelled": Phase.CANCELLED,
        }
    ),
    transitions=(
        _row("approve", "new", "approved", frozenset({"parts"})),
        _row("order", "approved", "ordered"),
        _row("deliver", "approved ordered", "delivered"),
        _row("return", "delivered", "approved", _REASON),
        _row("close", "delivered", "closed"),
        _row("cancel", "new approved ordered", "cancelled", _REASON),
    ),
)


def _reachable(starts: Iterable[str], edges: Mapping[str, set[str]]) -> set[str]:
    found, pending = set(starts), list(starts)
    while pending:
        for target in edges.get(pending.pop(), set()) - found:
            found.add(target)
            pending.append(target)
    return found


def _row_problems(flow: Flow) -> list[str]:
    """What is wrong with single rows of the table."""
    problems, seen = [], set()
    for row in flow.transitions:
        for state in row.sources | {row.target}:
            if state not in flow.states:
                problems.append(f"UNKNOWN_STATE: {row.verb} names {state}")
        for source in row.sources & flow.states.keys():
            if flow.states[source] in FINAL_PHASES:
                problems.append(f"LEAVES_FINAL_STATE: {row.verb} leaves {source}")
            if (source, row.verb) in seen:
                problems.append(f"AMBIGUOUS_TRANSITION: {row.verb} twice from {source}")
            seen.add((source, row.verb))
        unknown = sorted(row.requires - REQUEST_FIELDS - TICKET_FIELDS)
        problems += [f"UNKNOWN_FIELD: {row.verb} requires {name}" for name in unknown]
    return problems


def _needed(flow: Flow) -> list[tuple[str, str]]:
    """(verb, state) of what the service itself has to be able to do."""
    needed: list[tuple[str, Iterable[Phase]]] = []
    if flow.follow_up:
        needed += [("close", {Phase.RESOLVED}), ("reopen", {Phase.RESOLVED})]
    if flow.kind is Kind.RETURN_VISIT:
        needed.append(("cancel", OPEN_PHASES))
    return [
        (verb, state) for verb, phases in needed for state, phase in flow.states.items() if phase in phases
    ]


def _missing_verbs(flow: Flow) -> list[str]:
    have = {(source, row.verb) for row in flow.transitions for source in row.sources}
    needed = _needed(flow)
    return [f"MISSING_TRANSITION: {verb} from {state}" for verb, state in needed if (state, verb) not in have]


def demanding(flow: Flow) -> list[str]:
    """Where the service has to be able to do something and the row asks for what only people can give, one
    line each. Not part of `problems_of`: what an earlier release stored is read all the same."""
    rows = {(source, row.verb): row for row in flow.transitions for source in row.sources}
    return [
        f"MISSING_TRANSITION: {verb} from {state} must require nothing but a reason"
        for verb, state in _needed(flow)
        if (state, verb) in rows and rows[state, verb].requires - _REASON
    ]


def problems_of(flow: Flow) -> list[str]:
    """What makes a flow unsound, one line each, starting with its reason; empty for a sound one."""
    if flow.initial not in flow.states:
        return [f"UNKNOWN_STATE: the initial {flow.initial}"]
    if len(flow.states) > STATES_MAX or len(flow.transitions) > TRANSITIONS_MAX:
        return [f"TOO_LARGE: at most {STATES_MAX} states and {TRANSITIONS_MAX} transitions"]
    problems = _row_problems(flow)
    forward: dict[str, set[str]] = {}
    backward: dict[str, set[str]] = {}
    for row in flow.transitions:
        for source in row.sources:
            forward.setdefault(source, set()).add(row.target)
            backward.setdefault(row.target, set()).add(source)
    reached = _reachable([flow.initial], forward)
    problems += [f"UNREACHABLE_STATE: {state}" for state in flow.states if state not in reached]
    finals = [state for state, phase in flow.states.items() if phase in FINAL_PHASES]
    ending = _reachable(finals, backward)
    problems += [f"TRAPPING_STATE: {state}" for state in flow.states if state not in ending]
    return problems + _missing_verbs(flow) + _label_problems(flow)


def _label_problems(flow: Flow) -> list[str]:
    """Ids that are none, and numbers out of bounds."""
    names = {*flow.states, *(row.verb for row in flow.transitions)}
    found = [f"BAD_NAME: {name[:64]}" for name in sorted(names) if not _NAME.fullmatch(name)]
    if not 0 <= flow.follow_up_share <= 1:
        found.append("BAD_SHARE: follow_up.share must be 0 to 1")
    return found


def _load(flows: Iterable[Flow]) -> Mapping[str, Flow]:
    """Flows by id; ValueError for an unsound or repeated one."""
    table: dict[str, Flow] = {}
    for flow in flows:
        problems = problems_of(flow)
        if problems or flow.id in table:
            raise ValueError(f"flow {flow.id}: {'; '.join(problems) or 'declared twice'}")
        table[flow.id] = flow
    return MappingProxyType(table)


#: Every shipped flow by id. A kind's default flow has the kind's value as its id.
FLOWS: Mapping[str, Flow] = _load(
    (
        _simple(Kind.INQUIRY, follow_up=True),
        _COMPLAINT,
        _field_work(Kind.REPAIR),
        _field_work(Kind.INSTALLATION),
        _RETURN_VISIT,
        _FEE_ORDER,
        _PARTS_REQUEST,
        _simple(Kind.CARE, follow_up=False),
        _simple(Kind.MARKET_SURVEY, follow_up=False),
        _simple(Kind.OTHER, follow_up=True),
    )
)


class _Book:
    """Every version of every flow that this process knows."""

    def __init__(self) -> None:
        self.flows: dict[tuple[str, int], Flow] = {}
        #: (flow, version, state, verb) -> row: the one table that every change of state goes through.
        self.rows: dict[tuple[str, int, str, str], Transition] = {}
        self.latest: dict[str, int] = {}
        #: Ids of flows that no new ticket follows.
        self.retired: frozenset[str] = frozenset()

    def add(self, flow: Flow) -> None:
        """Adds a version; one that is known stays as it is."""
        if (flow.id, flow.version) in self.flows:
            return
        for row in flow.transitions:
            for source in row.sources:
                self.rows[flow.id, flow.version, source, row.verb] = row
        self.flows[flow.id, flow.version] = flow
        self.latest[flow.id] = max(flow.version, self.latest.get(flow.id, 0))


_BOOK = _Book()
for _shipped in FLOWS.values():
    _BOOK.add(_shipped)


def install(flows: Iterable[Flow]) -> None:
    """Adds versions of an operator's flows to the book; ValueError for an unsound one or a shipped one's
    id."""
    for flow in flows:
        problems = problems_of(flow)
        if flow.id in FLOWS:
            problems.append("a shipped flow cannot be changed")
        if problems:
            raise ValueError(f"flow {flow.id}: {'; '.join(problems)}")
        _BOOK.add(flow)


def find_flow(flow_id: str, version: int = 0) -> Flow | None:
    """A version of a flow, 0 for the latest; None when there is none."""
    return _BOOK.flows.get((flow_id, version or _BOOK.latest.get(flow_id, 0)))


def set_retired(ids: Iterable[str]) -> None:
    """Which flows no new ticket follows; tickets that follow them go on."""
    _BOOK.retired = frozenset(ids)


def is_retired(flow_id: str) -> bool:
    """Whether a flow takes no new tickets."""
    return flow_id in _BOOK.retired


def find_row(flow_id: str, version: int, state: str, verb: str) -> Transition | None:
    """The row of a verb from a state; None when there is none."""
    return _BOOK.rows.get((flow_id, version, state, verb))


def allowed_verbs(flow_id: str, state: str, version: int = 1) -> tuple[str, ...]:
    """The verbs possible from a state, in the order of the table; empty for a final state or an unknown
    flow."""
    flow = find_flow(flow_id, version)
    return tuple(row.verb for row in flow.transitions if state in row.sources) if flow is not None else ()
