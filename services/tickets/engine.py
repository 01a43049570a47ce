"""What may happen to a ticket, and what follows.

Rules.
1. A state changes only through a row of its flow (`flows.find_row`). A verb without a row from the present
   state raises `IllegalTransition` and changes nothing; a row's required texts are checked before anything
   changes.
2. Every change of phase moves the service-level clocks (`sla.advance`); a target found passed on the way is
   told once.
3. Entering RESOLVED plans a return visit where the flow has one. Leaving RESOLVED withdraws it: a visit not
   made yet is forgotten, one that exists is cancelled by an intent.
4. A visit's verdict becomes an intent for its parent: content or not reachable closes it, discontent reopens
   it. It counts only while the parent is still in the very resolution that the visit asked about.
5. An intent is stored in the same write as its cause, carried out at once or by a worker later, and changes
   nothing when carried out again: whether it still applies can be read off the other ticket.
6. A call whose agent asked for a ticket makes exactly one link: its own ticket, or an open one of the same
   customer (or number) and topic. A complaint only ever joins a complaint, and no call joins a return visit
   or an internal order.
7. Timers are not stored as such: the next one is a function of the ticket (`next_timer_ms`), so it cannot
   disagree with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from tickets import sla as clocks
from tickets.flows import allowed_verbs, find_flow, find_row
from tickets.model import (
    CALLS_MAX,
    FINAL_PHASES,
    INTENTS_MAX,
    OPEN_PHASES,
    PRIORITY_RANK,
    SYSTEM,
    TRANSFER,
    WATCHERS_MAX,
    Assigned,
    Attached,
    CallFacts,
    CallLink,
    CareFacts,
    Change,
    Channel,
    Created,
    Dispatch,
    Draft,
    Effect,
    Escalated,
    Flow,
    FollowUp,
    Happening,
    Intent,
    IntentKind,
    Kind,
    Phase,
    Priority,
    Profile,
    Rules,
    Scheduled,
    Sla,
    Step,
    Ticket,
    Transition,
    Transitioned,
    Updated,
    Visit,
    Visited,
)
from tickets.owners import without_guest
from tickets.validation import (
    NOTES_CHARACTERS_MAX,
    REASON_CHARACTERS_MAX,
    SUBJECT_CHARACTERS_MAX,
    check_request_texts,
    clean_label,
    clean_line,
    clean_text,
)

#: What ids of return visits have between the parent's id and the resolution's number.
VISIT_MARK = ".visit-"
#: What ids of tickets opened from calls begin with.
CALL_PREFIX = "call-"
#: Longest id a client may choose; leaves room for its return visits'.
TICKET_ID_CHARACTERS_MAX = 96
#: Why a ticket left a silent assignee.
SILENCE = "the assignee was silent for too long"
#: Quiet windows that may follow on one another.
QUIET_STEPS_MAX = 16
#: Kinds that a customer's call never joins.
_NOT_JOINED = frozenset({Kind.RETURN_VISIT, Kind.FEE_ORDER, Kind.PARTS_REQUEST})
#: Kinds that somebody goes to the customer for.
_ON_SITE = frozenset({Kind.REPAIR, Kind.INSTALLATION})
#: Fields of a draft that people changed are told by their names in the proto.
_FIELD_NAMES = {"customer_id": "customer"}


class IllegalTransition(FailedPrecondition):
    """{subject}: {why}."""

    reason = "ILLEGAL_TRANSITION"


class TransitionIncomplete(FailedPrecondition):
    """{subject}: {why}."""

    reason = "TRANSITION_INCOMPLETE"


class TicketFull(ResourceExhausted):
    """{subject} has {what}."""

    reason = "TICKET_FULL"


class CustomerErased(FailedPrecondition):
    """{subject}: {why}."""

    reason = "CUSTOMER_ERASED"


class FeesApproved(FailedPrecondition):
    """{subject}: {why}."""

    reason = "FEES_APPROVED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One use of a verb: what, by whom, why."""

    verb: str
    actor: str
    reason: str = ""
    resolution: str = ""
    score: int = 0
    #: When the customer asked to be called again, for the return visit; None: after the usual delay.
    visit_ms: int | None = None
    #: What the actor may do; None: everything (the service itself).
    roles: frozenset[str] | None = None
    #: Key and content of the request, for repeats.
    request_key: str = ""
    fingerprint: str = ""


def visit_id(ticket_id: str, number: int) -> str:
    """The id of the return visit after a ticket's resolution `number`; the same whoever computes it."""
    return f"{ticket_id}{VISIT_MARK}{number}"


def check_served(profile: Profile | None) -> None:
    """CustomerErased for a customer of whom nothing may be kept any more."""
    if profile is not None and profile.erased:
        raise CustomerErased(subject=f"customers/{profile.customer_id}", why="was legally erased")


def open_ticket(
    ticket_id: str,
    kind: Kind,
    draft: Draft,
    rules: Rules,
    now: int,
    *,
    actor: str,
    flow: str = "",
    tier: str = "",
    parent_id: str = "",
    visit: Visit | None = None,
    calls: tuple[CallLink, ...] = (),
    open_key: str = "",
) -> Change:
    """A new ticket in its flow's initial state, all clocks running from `now`. `draft` is checked by the
    caller."""
    table = flow_for(kind, flow, rules)
    step = Step(
        sequence=1,
        verb="open",
        source="",
        target=table.initial,
        phase=table.states[table.initial],
        actor=actor,
        reason="",
        time_ms=now,
    )
    ticket = Ticket(
        id=ticket_id,
        kind=kind,
        flow=table.id,
        state=step.target,
        phase=step.phase,
        draft=draft,
        sla=clocks.start(rules, (kind, draft.priority, tier, draft.category), now),
        tier=tier,
        flow_version=table.version,
        team=standing_team(table.state_teams.get(table.initial, table.team), table, rules),
        silent_limit_ms=table.silent_ms,
        calls=calls,
        call_count=len(calls),
        parent_id=parent_id,
        visit=visit,
        history=(step,),
        step_count=1,
        creator=actor,
        open_key=open_key,
        created_ms=now,
        updated_ms=now,
    )
    return Change(ticket=ticket, happenings=(Created(actor=actor),))


def flow_for(kind: Kind, flow: str, rules: Rules) -> Flow:
    """The flow that a new ticket follows: the one asked for, the operator's default, the shipped one."""
    for wanted in (flow, rules.default_flows.get(kind, "")):
        found = find_flow(wanted) if wanted else None
        if found is not None:
            return found
    return _known(find_flow(kind.value))


def _known(flow: Flow | None) -> Flow:
    if flow is None:
        raise Unavailable(why="the ticket's flow is not known here yet", retry_seconds=1.0)
    return flow


def flow_of(ticket: Ticket) -> Flow:
    """The flow that a ticket follows, in its version. Unavailable where a new one has not arrived yet."""
    return _known(find_flow(ticket.flow, ticket.flow_version))


def _place(ticket: Ticket) -> clocks.Place:
    return ticket.phase, ticket.state


def _facts(ticket: Ticket) -> clocks.Facts:
    return ticket.kind, ticket.draft.priority, ticket.tier, ticket.draft.category


def _row(ticket: Ticket, verb: str) -> Transition:
    flow_of(ticket)
    row = find_row(ticket.flow, ticket.flow_version, ticket.state, verb)
    if row is not None:
        return row
    allowed = allowed_verbs(ticket.flow, ticket.state, ticket.flow_version)
    options = ", ".join(allowed) or "nothing: the state is final"
    raise IllegalTransition(
        subject=f"tickets/{ticket.id}",
        why=f"{verb[:64]!r} is not possible from state {ticket.state}, possible: {options}",
        transition=verb,
        state=ticket.state,
        allowed=",".join(allowed),
    )


def _check_roles(row: Transition, act: Act) -> None:
    if row.roles and act.roles is not None and "*" not in act.roles and not row.roles & act.roles:
        raise PermissionDenied(scope=" or ".join(sorted(row.roles)))


def _is_filled(ticket: Ticket, name: str) -> bool:
    """Whether a ticket's field that a transition may require is filled in."""
    draft = ticket.draft
    dispatch = draft.dispatch
    special = {
        "customer": bool(draft.customer_id),
        "assignee": bool(ticket.assignee),
        "dispatch": dispatch is not None and bool(dispatch.address),
        "dispatch.appointment": dispatch is not None and dispatch.start_ms is not None,
        "dispatch.engineer": dispatch is not None and bool(dispatch.engineer),
    }
    return special[name] if name in special else bool(getattr(draft, name))


def _check_requirements(ticket: Ticket, row: Transition, act: Act) -> None:
    check_request_texts(
        reason=act.reason,
        resolution=act.resolution,
        score=act.score,
        scored=row.effect in (Effect.SATISFIED, Effect.DISSATISFIED),
    )
    given = {"reason": act.reason, "resolution": act.resolution, "satisfaction_score": str(act.score or "")}
    texts = sorted(row.requires & given.keys())
    missing = [(name, f"is required for {row.verb!r}") for name in texts if not given[name].strip()]
    if missing:
        raise InvalidArgument.many(missing)
    blank = [name for name in sorted(row.requires - given.keys()) if not _is_filled(ticket, name)]
    if blank:
        raise TransitionIncomplete(
            subject=f"tickets/{ticket.id}",
            why=f"{row.verb!r} needs {', '.join(blank)} to be filled in",
            missing=",".join(blank),
        )


def _with_intent(ticket: Ticket, intent: Intent) -> Ticket:
    """TicketFull when there are too many: each of them is owed, the other side of a link, say."""
    if len(ticket.intents) >= INTENTS_MAX:
        what = "too much still to be done to other tickets"
        raise TicketFull(subject=f"tickets/{ticket.id}", what=what, retry_seconds=1.0)
    return replace(ticket, intents=(*ticket.intents, intent))


def _is_sampled(ticket_id: str, number: int, share: float) -> bool:
    """Whether this resolution is among the share that is visited; the same whoever asks."""
    return share >= 1 or zlib.crc32(f"{ticket_id}/{number}".encode()) < share * 2**32


def _is_erased(ticket: Ticket) -> bool:
    """Whether nobody is left to be asked about it."""
    of = ticket.draft
    return of.subject == ERASED and not of.customer_id and not of.caller_number


def _entered_resolved(
    ticket: Ticket, act: Act, rules: Rules, now: int
) -> tuple[Ticket, tuple[Happening, ...]]:
    number = ticket.resolve_count + 1
    ticket = replace(
        ticket,
        resolve_count=number,
        resolved_ms=now,
        resolution=act.resolution or ticket.resolution,
        satisfaction=0,  # what was said is of the resolution before
    )
    flow = flow_of(ticket)
    wanted = flow.follow_up and not _is_erased(ticket)
    if not wanted or not _is_sampled(ticket.id, number, flow.follow_up_share):
        return ticket, ()
    delay = flow.follow_up_delay_ms
    usual = now + (rules.follow_up_delay_ms if delay is None else delay)
    plan = FollowUp(
        schedule_ms=usual if act.visit_ms is None else max(now, act.visit_ms),
        ticket_id=visit_id(ticket.id, number),
        number=number,
    )
    return replace(ticket, follow_up=plan), (Scheduled(follow_up=plan),)


def visit_withdrawn(plan: FollowUp, now: int) -> Intent:
    """What takes a return visit back that is not wanted any more."""
    return Intent(
        kind=IntentKind.CANCEL_VISIT,
        ticket_id=plan.ticket_id,
        number=plan.number,
        reason="the ticket it asks about is no longer resolved",
        time_ms=now,
    )


def _left_resolved(ticket: Ticket, to: Phase, actor: str, now: int) -> Ticket:
    plan = ticket.follow_up
    if plan is not None and not plan.created:
        ticket = replace(ticket, follow_up=None)
    # one that is due may exist already, made by who died before it could say so here
    there = plan is not None and (plan.created or plan.schedule_ms <= now)
    if plan is not None and there and actor != f"tickets/{plan.ticket_id}":  # not the visit's own verdict
        ticket = _with_intent(ticket, visit_withdrawn(plan, now))
    if to in FINAL_PHASES:
        return ticket
    return replace(
        ticket,
        reopen_count=ticket.reopen_count + 1,
        resolved_ms=None,
        first_contact_resolved=False,
    )


def _verdict(ticket: Ticket, row: Transition, act: Act, now: int) -> tuple[Ticket, tuple[Happening, ...]]:
    """A visit's outcome, and the intent for its parent."""
    if ticket.visit is None or row.effect is Effect.NONE:
        return ticket, ()
    answered = row.effect is not Effect.UNREACHED
    visit = replace(
        ticket.visit,
        answered=answered,
        satisfied=row.effect is Effect.SATISFIED,
        score=act.score,
        comment=clean_line(act.reason, NOTES_CHARACTERS_MAX),
    )
    words = {
        Effect.SATISFIED: "the customer is satisfied",
        Effect.DISSATISFIED: f"the customer is not satisfied: {act.reason}",
        Effect.UNREACHED: "the customer could not be reached",
    }
    kind = IntentKind.REOPEN_PARENT if row.effect is Effect.DISSATISFIED else IntentKind.CLOSE_PARENT
    intent = Intent(
        kind=kind,
        ticket_id=ticket.parent_id,
        number=visit.number,
        reason=words[row.effect][:REASON_CHARACTERS_MAX],
        time_ms=now,
        score=act.score,
    )
    ticket = replace(ticket, visit=visit, satisfaction=act.score)
    return _with_intent(ticket, intent), (Visited(visit=visit),)


def transition(ticket: Ticket, act: Act, rules: Rules, now: int) -> Change:
    """The ticket after `act`. IllegalTransition when its flow has no such row from here, InvalidArgument
    when a text that the row requires is missing or a text is too long; then nothing has changed."""
    row = _row(ticket, act.verb)
    _check_roles(row, act)
    _check_requirements(ticket, row, act)
    return _perform(ticket, row, act, rules, now)


def end_merged(ticket: Ticket, target_id: str, act: Act, rules: Rules, now: int) -> Change:
    """A ticket that another takes over: ends in its flow's first cancelled (or else closed) state, from
    wherever it is, the only change of state without a row; what it has goes over by an intent."""
    states = flow_of(ticket).states
    ends = [s for phase in (Phase.CANCELLED, Phase.CLOSED) for s, p in states.items() if p is phase]
    row = Transition(verb=act.verb, sources=frozenset({ticket.state}), target=ends[0])
    change = _perform(ticket, row, act, rules, now)
    intent = Intent(
        kind=IntentKind.ABSORB,
        ticket_id=target_id,
        number=0,
        reason=act.reason,
        time_ms=change.ticket.updated_ms,
    )
    ended = replace(_with_intent(change.ticket, intent), merged_into=target_id)
    return replace(change, ticket=ended)


def _perform(ticket: Ticket, row: Transition, act: Act, rules: Rules, now: int) -> Change:
    now = max(now, ticket.updated_ms)  # history never runs backwards, whoever's clock is behind
    before, after = ticket.phase, flow_of(ticket).states[row.target]
    ticket, breaches = _settled(ticket, now)
    levels, _ = clocks.advance(ticket.sla, rules, _place(ticket), (after, row.target), now)
    step = Step(
        sequence=ticket.step_count + 1,
        verb=act.verb,
        source=ticket.state,
        target=row.target,
        phase=after,
        actor=act.actor,
        reason=act.reason,
        time_ms=now,
        request_key=act.request_key,
        fingerprint=act.fingerprint,
    )
    ticket = replace(
        ticket,
        state=row.target,
        phase=after,
        sla=levels,
        history=(*ticket.history, step),
        step_count=step.sequence,
        updated_ms=now,
        timer_hold_ms=0,
        open_key=ticket.open_key if after in OPEN_PHASES else "",
        closed_ms=now if after in FINAL_PHASES else None,
        silent_ms=now if ticket.assignee and after in OPEN_PHASES else None,
    )
    ticket = _fee_step(ticket, row, act, now)
    ticket, moved = _state_team(ticket, row, rules)
    more: tuple[Happening, ...] = ()
    if before is Phase.RESOLVED and after is not Phase.RESOLVED:
        ticket = _left_resolved(ticket, after, act.actor, now)
    if after is Phase.RESOLVED and before is not Phase.RESOLVED:
        ticket, more = _entered_resolved(ticket, act, rules, now)
    ticket, outcome = _verdict(ticket, row, act, now)
    reopened = before is Phase.RESOLVED and ticket.is_open
    told = (*breaches, Transitioned(step=step, reopened=reopened), *moved, *more, *outcome)
    return Change(ticket=ticket, happenings=told)


def update(
    ticket: Ticket, draft: Draft, rules: Rules, now: int, *, actor: str, tier: str | None = None
) -> Change:
    """The ticket with another draft (checked by the caller) and, unless None, another tier; no happening
    when nothing changed.

    A new priority or tier sets new targets; a target that passes by that is told here. FeesApproved for other
    fees than those that somebody approved.
    """
    names = Draft.__dataclass_fields__
    changed = [name for name in names if getattr(draft, name) != getattr(ticket.draft, name)]
    fields = [_FIELD_NAMES.get(name, name) for name in changed]
    if tier is not None and tier != ticket.tier:
        fields.append("customer_tier")
    if not fields:
        return Change(ticket=ticket)
    if "fee" in changed and ticket.fee_approver:
        raise FeesApproved(
            subject=f"tickets/{ticket.id}",
            why=f"its fees are approved by {ticket.fee_approver}; reject or refund it to change them",
        )
    now = max(now, ticket.updated_ms)
    new_tier = ticket.tier if tier is None else tier
    ticket, breaches = _settled(ticket, now)
    levels = ticket.sla
    finished = ticket.phase in FINAL_PHASES  # what was promised then stays on record
    facts = (ticket.kind, draft.priority, new_tier, draft.category)
    if not finished and facts != _facts(ticket):
        levels = clocks.retarget(levels, rules, facts, _place(ticket), now)
        levels, late = clocks.settle(levels, now)
        breaches += late
    # The place for one open ticket of a caller and topic is given up when either changes: nobody could find
    # its holder.
    moved = {"customer_id", "caller_number", "category"} & set(changed)
    ticket = replace(
        ticket,
        draft=draft,
        tier=new_tier,
        sla=levels,
        updated_ms=now,
        timer_hold_ms=0,
        open_key="" if moved else ticket.open_key,
        merged_from=() if "customer_id" in changed else ticket.merged_from,
    )
    return Change(ticket=ticket, happenings=(*breaches, Updated(fields=tuple(fields), actor=actor)))


def next_timer_ms(ticket: Ticket) -> int | None:
    """When something is to be done to or because of this ticket; None for nothing."""
    dues = [intent.time_ms for intent in ticket.intents]
    levels = ticket.sla
    three = (levels.first_response, levels.next_response, levels.resolution)
    dues += [d for d in map(clocks.due_ms, three) if d is not None]
    dues += [alarm.at_ms for alarm in levels.alarms]
    silence = _silence_ends_ms(ticket)
    if silence is not None:
        dues.append(silence)
    if ticket.follow_up is not None and not ticket.follow_up.created:
        dues.append(ticket.follow_up.schedule_ms)
    return max(min(dues), ticket.timer_hold_ms) if dues else None


def breach(ticket: Ticket, now: int) -> Change:
    """Marks and tells the targets that passed; no happening when none did."""
    settled, told = _settled(ticket, now)
    settled, released = _silent(settled, now)
    if not told and not released:
        return Change(ticket=ticket)
    settled = replace(settled, updated_ms=max(now, ticket.updated_ms))
    return Change(ticket=settled, happenings=(*told, *released))


def _settled(ticket: Ticket, now: int) -> tuple[Ticket, tuple[Happening, ...]]:
    """The ticket with what its clocks tell up to `now`: passed targets, warnings, escalation levels with
    their team and priority. An escalation's priority leaves the targets: what was promised does not
    change."""
    levels, told = clocks.settle(ticket.sla, now)
    if not told:
        return ticket, ()
    ticket = replace(ticket, sla=levels)
    happenings: list[Happening] = []
    for one in told:
        happenings.append(one)
        if isinstance(one, Escalated):
            ticket, more = _escalate(ticket, one)
            happenings += more
    return ticket, tuple(happenings)


def _escalate(ticket: Ticket, reached: Escalated) -> tuple[Ticket, list[Happening]]:
    level, more = reached.level, list[Happening]()
    if level.priority is not None and level.priority != ticket.draft.priority:
        ticket = replace(ticket, draft=replace(ticket.draft, priority=level.priority))
        more.append(Updated(fields=("priority",), actor=SYSTEM))
    if level.team and level.team != ticket.team:
        moved = Assigned(
            previous_assignee=ticket.assignee,
            previous_team=ticket.team,
            reason=f"escalation level {level.level}",
        )
        ticket = replace(ticket, team=level.team, assignee="", silent_ms=None)
        more.append(moved)
    told = tuple(dict.fromkeys((*ticket.watchers, *level.notify)))[:WATCHERS_MAX]
    return replace(ticket, watchers=told), more


def handed_on(change: Change, agent: str, now: int) -> Change:
    """The change that took a silent assignee's ticket away, with another agent given it."""
    had = change.ticket.had_assignee
    given = replace(
        change.ticket,
        assignee=agent,
        silent_ms=now,
        had_assignee=True,
        reassign_count=change.ticket.reassign_count + had,
    )
    return replace(change, ticket=given)


def was_silent(change: Change) -> str:
    """The agent from whom a change took the ticket for silence; empty when it did not."""
    told = (one for one in change.happenings if isinstance(one, Assigned) and one.reason == SILENCE)
    return next((one.previous_assignee for one in told), "")


def _silence_ends_ms(ticket: Ticket) -> int | None:
    """When an open ticket's assignee will have been silent for too long; None where nobody has to speak."""
    if not ticket.is_open or not ticket.assignee or ticket.silent_ms is None or not ticket.silent_limit_ms:
        return None
    return ticket.silent_ms + ticket.silent_limit_ms


def _silent(ticket: Ticket, now: int) -> tuple[Ticket, tuple[Happening, ...]]:
    """Puts a ticket back to its team when its assignee was silent for too long."""
    ends = _silence_ends_ms(ticket)
    if ends is None or ends > now:
        return ticket, ()
    told = Assigned(
        previous_assignee=ticket.assignee,
        previous_team=ticket.team,
        reason=SILENCE,
    )
    return replace(ticket, assignee="", silent_ms=None), (told,)


def standing_team(team: str, table: Flow, rules: Rules) -> str:
    """A team; for one that was deleted the flow's, else the service's default, else none."""
    if team not in rules.gone_teams:
        return team
    others = (table.team, rules.default_team)
    return next((one for one in others if one and one not in rules.gone_teams), "")


def _state_team(ticket: Ticket, row: Transition, rules: Rules) -> tuple[Ticket, tuple[Happening, ...]]:
    """The ticket with the team whose task its new state is; its assignee stays within a team."""
    table = flow_of(ticket)
    wanted = table.state_teams.get(row.target, ticket.team)
    team = standing_team(wanted, table, rules)
    if team == ticket.team:
        return ticket, ()
    told = Assigned(
        previous_assignee=ticket.assignee,
        previous_team=ticket.team,
        reason=f"the task of teams/{wanted} in state {row.target}" if team == wanted else _gone(wanted),
    )
    return replace(ticket, team=team, assignee="", silent_ms=None), (told,)


def _gone(team: str) -> str:
    return f"teams/{team} was deleted"


def _rehomed(ticket: Ticket, rules: Rules, now: int) -> tuple[Ticket, tuple[Happening, ...]]:
    """The ticket of a deleted team with the team that takes its place, and why in its history. Whoever works
    on it goes on."""
    team = standing_team(ticket.team, flow_of(ticket), rules)
    if team == ticket.team:
        return ticket, ()
    why = _gone(ticket.team)
    told = Assigned(previous_assignee=ticket.assignee, previous_team=ticket.team, reason=why)
    moved = handed_over(replace(ticket, team=team), SYSTEM, why, max(now, ticket.updated_ms))
    return moved, (told,)


def handed_over(ticket: Ticket, actor: str, reason: str, time_ms: int) -> Ticket:
    """A ticket that has changed hands, with who did it and why in its history."""
    step = Step(
        sequence=ticket.step_count + 1,
        verb=TRANSFER,
        source=ticket.state,
        target=ticket.state,
        phase=ticket.phase,
        actor=actor,
        reason=reason,
        time_ms=time_ms,
    )
    return replace(ticket, history=(*ticket.history, step), step_count=step.sequence)


def _fee_step(ticket: Ticket, row: Transition, act: Act, now: int) -> Ticket:
    """Who approved the fees, and when they were paid; what goes back is to be approved anew."""
    if ticket.kind is not Kind.FEE_ORDER:
        return ticket
    if row.verb == "approve":
        return replace(ticket, fee_approver=act.actor)
    if row.verb == "pay":
        return replace(ticket, fee_paid_ms=now)
    back = row.verb in ("refund", "reject")
    return replace(ticket, fee_approver="", fee_paid_ms=None) if back else ticket


def retime(ticket: Ticket, rules: Rules, now: int) -> Change:
    """An open ticket after a change of policies, calendars or teams: new targets, the time already used still
    counts; a team that stands."""
    if ticket.phase in FINAL_PHASES:
        return Change(ticket=ticket)
    settled, told = _settled(ticket, now)
    levels = clocks.retarget(settled.sla, rules, _facts(settled), _place(settled), now)
    if told or not _same_promise(levels, settled.sla):
        settled, late = _settled(replace(settled, sla=levels), now)
        told = (*told, *late, Updated(fields=("sla",), actor=SYSTEM))
    settled, moved = _rehomed(settled, rules, now)
    if not told and not moved:
        return Change(ticket=ticket)
    settled = replace(settled, updated_ms=max(now, ticket.updated_ms))
    return Change(ticket=settled, happenings=(*told, *moved))


def _same_promise(new: Sla, old: Sla) -> bool:
    same = ("policy", "rule", "calendar", "pausing", "levels", "next_response_ms", "explanation")
    if any(getattr(new, name) != getattr(old, name) for name in same):
        return False
    return all(
        (a.target_ms, clocks.due_ms(a)) == (b.target_ms, clocks.due_ms(b))
        for a, b in ((new.first_response, old.first_response), (new.resolution, old.resolution))
    )


def visit_due(ticket: Ticket, now: int) -> bool:
    """Whether the planned return visit is to be made now."""
    plan = ticket.follow_up
    return plan is not None and not plan.created and plan.schedule_ms <= now


def visit_moved(ticket: Ticket, profile: Profile | None, rules: Rules, now: int) -> Change | None:
    """The parent with its visit put off to the end of the customer's quiet time; None when it may be made."""
    assert ticket.follow_up is not None
    until = quiet_until(profile, rules.time_zone, now) if profile is not None else None
    if until is None:
        return None
    plan = replace(ticket.follow_up, schedule_ms=until)
    ticket = replace(ticket, follow_up=plan, updated_ms=max(now, ticket.updated_ms))
    return Change(ticket=ticket, happenings=(Scheduled(follow_up=plan),))


def quiet_until(profile: Profile, default_zone: str, now: int) -> int | None:
    """The end of the quiet windows that the customer is in; None outside them. They hold in the customer's
    own time zone, in the enterprise's for one who has none."""
    zone = zone_of(profile.zone, default_zone)
    end = now
    for _ in range(QUIET_STEPS_MAX):
        local = datetime.fromtimestamp(end / 1000, zone)
        minute = local.hour * 60 + local.minute
        left = max((_quiet_left(window, local.isoweekday(), minute) for window in profile.quiet), default=0)
        if left == 0:
            break
        end = (end // 60_000 + left) * 60_000
    return end if end > now else None


def _quiet_left(window: tuple[tuple[int, ...], int, int], weekday: int, minute: int) -> int:
    """Minutes left of a quiet window; 0 outside it. One that ends before it begins goes past midnight."""
    days, start, end = window
    yesterday = (weekday - 2) % 7 + 1
    if start < end:
        return end - minute if (not days or weekday in days) and start <= minute < end else 0
    if (not days or weekday in days) and minute >= start:
        return 1_440 - minute + end
    return end - minute if (not days or yesterday in days) and minute < end else 0


def zone_of(name: str, default: str) -> tzinfo:
    """An IANA zone, the default one for one that nobody knows."""
    try:
        return ZoneInfo(name or default)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo(default)


def visit_channel(ticket: Ticket, profile: Profile | None) -> Channel | None:
    """How the customer is to be asked: as they said they want to be, else as the request came in unless that
    is refused; None: not at all."""
    refused = profile.refused if profile is not None else frozenset()
    preferred = profile.preferred if profile is not None else ()
    wishes = (*preferred, ticket.draft.channel, Channel.VOICE, Channel.SMS, Channel.EMAIL, Channel.CHAT)
    return next((channel for channel in wishes if channel not in refused), None)


def without_visit(ticket: Ticket, now: int) -> Change:
    """The parent of a visit that the customer doesn't want."""
    ticket = replace(ticket, follow_up=None, updated_ms=max(now, ticket.updated_ms))
    return Change(ticket=ticket, happenings=(Updated(fields=("follow_up",), actor=SYSTEM),))


def make_visit(ticket: Ticket, rules: Rules, now: int, channel: Channel = Channel.UNKNOWN) -> Change:
    """The return visit's own ticket. Needs `visit_due`. Opened at the time it was planned for."""
    assert ticket.follow_up is not None
    plan = ticket.follow_up
    of = ticket.draft
    draft = Draft(
        subject=clean_line(f"Return visit: {of.subject}", SUBJECT_CHARACTERS_MAX),
        description=ticket.resolution,
        priority=Priority.NORMAL,
        category=of.category,
        customer_id=of.customer_id,
        caller_number=of.caller_number,
        language=of.language,
        channel=of.channel if channel is Channel.UNKNOWN else channel,
        products=of.products,
    )
    change = open_ticket(
        plan.ticket_id,
        Kind.RETURN_VISIT,
        draft,
        rules,
        now,
        actor=SYSTEM,
        tier=ticket.tier,
        parent_id=ticket.id,
        flow=flow_of(ticket).follow_up_flow,
        visit=Visit(number=plan.number, channel=channel),
    )
    return replace(change, ticket=replace(change.ticket, merged_from=ticket.merged_from))


def visit_made(ticket: Ticket, now: int) -> Change:
    """The parent once the visit's ticket exists."""
    assert ticket.follow_up is not None
    plan = replace(ticket.follow_up, created=True)
    ticket = replace(ticket, follow_up=plan, updated_ms=max(now, ticket.updated_ms))
    return Change(ticket=ticket, happenings=(Updated(fields=("follow_up",), actor=SYSTEM),))


def rated(ticket: Ticket, score: int, now: int, *, actor: str) -> Change:
    """The ticket with what its customer said of the latest resolution, 1 to 5; no happening when it is known
    already."""
    if ticket.satisfaction == score:
        return Change(ticket=ticket)
    ticket = replace(ticket, satisfaction=score, updated_ms=max(now, ticket.updated_ms))
    return Change(ticket=ticket, happenings=(Updated(fields=("satisfaction",), actor=actor),))


def carry_out(intent: Intent, ticket: Ticket, rules: Rules, now: int, *, cause: str) -> Change:
    """What `intent` does to the ticket it is for; no happening when it no longer applies or was done before.

    `cause` is the ticket the intent comes from, for the history.
    """
    act = Act(verb="", actor=f"tickets/{cause}", reason=intent.reason)
    if intent.kind is IntentKind.CANCEL_VISIT:
        void = not ticket.is_open or ticket.visit is None or ticket.visit.number != intent.number
        return Change(ticket=ticket) if void else transition(ticket, replace(act, verb="cancel"), rules, now)
    if ticket.phase is not Phase.RESOLVED or ticket.resolve_count != intent.number:
        return Change(ticket=ticket)
    verb = "close" if intent.kind is IntentKind.CLOSE_PARENT else "reopen"
    ticket = replace(ticket, satisfaction=intent.score or ticket.satisfaction)
    return transition(ticket, replace(act, verb=verb), rules, now)


def without_intent(ticket: Ticket, intent: Intent) -> Ticket:
    """The ticket once `intent` is done."""
    return replace(ticket, intents=tuple(other for other in ticket.intents if other != intent))


def postponed(ticket: Ticket, until_ms: int) -> Ticket:
    """The ticket with its timers held back, after one of them failed."""
    return replace(ticket, timer_hold_ms=until_ms)


# ---- tickets from calls


def _request_kind(text: str) -> Kind:
    """The kind an agent asked for; what nobody knows is OTHER rather than lost."""
    try:
        kind = Kind(text.strip().lower().removeprefix("ticket_kind_"))
    except ValueError:
        return Kind.OTHER
    return Kind.OTHER if kind is Kind.RETURN_VISIT else kind


def _request_priority(text: str) -> Priority:
    try:
        return Priority(text.strip().lower().removeprefix("priority_"))
    except ValueError:
        return Priority.NORMAL


def call_draft(facts: CallFacts) -> tuple[Kind, Draft]:
    """Kind and draft of the ticket that a call asks for, made valid whatever was received. Needs
    `facts.request`."""
    assert facts.request is not None
    request, kind = facts.request, _request_kind(facts.request.kind)
    wishes = (request.subject, facts.reason, facts.code, f"{kind} from a call")
    subject = next(line for line in (clean_line(wish, SUBJECT_CHARACTERS_MAX) for wish in wishes) if line)
    profile = facts.profile
    draft = Draft(
        subject=subject,
        description=clean_text(request.description or facts.notes),
        priority=_request_priority(request.priority),
        category=clean_label(request.category),
        customer_id=profile.customer_id if profile else "",
        caller_number=facts.number,
        language=profile.language if profile else "",
        channel=facts.channel,
    )
    return kind, with_documents(kind, draft)


def with_documents(kind: Kind, draft: Draft) -> Draft:
    """The draft with the papers that its kind goes by, as far as customer and call say what is in them: a
    dispatch order names whom to ring at the site."""
    if kind not in _ON_SITE or not draft.caller_number:
        return draft
    order = draft.dispatch or Dispatch()
    return draft if order.contact else replace(draft, dispatch=replace(order, contact=draft.caller_number))


def call_link(facts: CallFacts, *, opened: bool) -> CallLink:
    """How a call is kept on a ticket."""
    return CallLink(
        call_id=facts.call_id,
        time_ms=facts.time_ms,
        agent=facts.agent,
        code=clean_line(facts.code, 64),
        reason=clean_line(facts.reason, 256),
        notes=clean_text(facts.notes, NOTES_CHARACTERS_MAX),
        opened=opened,
    )


def topic_of(kind: Kind, draft: Draft) -> str:
    """What repeat calls are matched by; the same as `Ticket.topic`."""
    return draft.category or kind.value


def open_key(kind: Kind, draft: Draft) -> str:
    """The place that at most one open call-born ticket of a caller and topic holds; empty for an unknown
    caller or an internal order, which never hold one."""
    who = f"c:{draft.customer_id}" if draft.customer_id else draft.caller_number
    if not who or kind in _NOT_JOINED:
        return ""
    side = "complaint" if kind is Kind.COMPLAINT else "request"
    return f"{who}|{side}|{topic_of(kind, draft)}"


def _same_caller(ticket: Ticket, draft: Draft) -> bool:
    if ticket.draft.customer_id and draft.customer_id:
        return ticket.draft.customer_id == draft.customer_id
    return bool(draft.caller_number) and ticket.draft.caller_number == draft.caller_number


def joinable(kind: Kind, draft: Draft, candidates: Iterable[Ticket]) -> Ticket | None:
    """The open ticket that a call joins instead of opening another: the newest that fits; None for none."""
    if kind in _NOT_JOINED:
        return None
    fits = [
        ticket
        for ticket in candidates
        if ticket.is_open
        and ticket.kind not in _NOT_JOINED
        and ticket.topic == topic_of(kind, draft)
        and _same_caller(ticket, draft)
        and (kind is not Kind.COMPLAINT or ticket.kind is Kind.COMPLAINT)
    ]
    return max(fits, key=lambda ticket: (ticket.created_ms, ticket.id), default=None)


def _resolve_by_call(change: Change, facts: CallFacts, rules: Rules) -> Change:
    """Takes the ticket on to its resolution when the agent settled the matter and the flow allows it from
    here."""
    ticket = change.ticket
    if not facts.resolved or "resolve" not in allowed_verbs(ticket.flow, ticket.state, ticket.flow_version):
        return change
    row = find_row(ticket.flow, ticket.flow_version, ticket.state, "resolve")
    if row is None or row.requires - {"reason", "resolution"}:
        return change  # an operator's flow wants more filled in than a call can give
    words = clean_text(facts.notes).strip() or clean_line(facts.code, 64) or "settled in the call"
    act = Act(
        verb="resolve",
        actor=f"calls/{facts.call_id}",
        reason="settled in the call",
        resolution=words,
        visit_ms=facts.follow_up_ms,
    )
    resolved = transition(ticket, act, rules, facts.time_ms)
    return Change(ticket=resolved.ticket, happenings=change.happenings + resolved.happenings)


def open_from_call(facts: CallFacts, rules: Rules) -> Change:
    """The ticket that a call opens. Needs `facts.request`."""
    kind, draft = call_draft(facts)
    opened = open_ticket(
        facts.ticket_id,
        kind,
        draft,
        rules,
        facts.time_ms,
        actor=f"calls/{facts.call_id}",
        tier=facts.profile.tier if facts.profile else "",
        calls=(call_link(facts, opened=True),),
        open_key=open_key(kind, draft),
    )
    change = _resolve_by_call(opened, facts, rules)
    settled = change.ticket.phase is Phase.RESOLVED
    return replace(change, ticket=replace(change.ticket, first_contact_resolved=settled))


def has_call(ticket: Ticket, call_id: str) -> bool:
    """Whether a call is linked with the ticket already."""
    return any(link.call_id == call_id for link in ticket.calls)


def _kept_calls(calls: Sequence[CallLink]) -> tuple[CallLink, ...]:
    """The first one and the latest, `CALLS_MAX` in all."""
    return tuple(calls) if len(calls) <= CALLS_MAX else (calls[0], *calls[-(CALLS_MAX - 1) :])


def attach_call(ticket: Ticket, facts: CallFacts, rules: Rules) -> Change:
    """The ticket with one more call; no happening when it is linked already. A higher priority asked for is
    taken over."""
    if has_call(ticket, facts.call_id):
        return Change(ticket=ticket)
    _, asked = call_draft(facts)
    link = call_link(facts, opened=False)
    urgent = max(ticket.draft.priority, asked.priority, key=lambda priority: PRIORITY_RANK[priority])
    actor = f"calls/{facts.call_id}"
    change = update(ticket, replace(ticket.draft, priority=urgent), rules, facts.time_ms, actor=actor)
    ticket = replace(
        change.ticket,
        calls=_kept_calls((*ticket.calls, link)),
        call_count=ticket.call_count + 1,
        updated_ms=max(facts.time_ms, ticket.updated_ms),
    )
    attached = Change(ticket=ticket, happenings=(Attached(call=link), *change.happenings))
    return _resolve_by_call(attached, facts, rules)


# ---- what crm says

#: What an erased customer's tickets have for a subject, and what is still to be done to others for a reason.
ERASED = "(erased)"


def open_for_care(facts: CareFacts, path: Sequence[Profile], rules: Rules, now: int) -> Change:
    """The ticket that an occasion to care for a customer opens, made valid whatever was received. `path`: as
    in `of_path`."""
    profile = path[-1] if path else None
    subject = clean_line(facts.subject, SUBJECT_CHARACTERS_MAX) or f"care: {facts.category}"
    draft = Draft(
        subject=subject,
        priority=facts.priority,
        category=clean_label(facts.category),
        customer_id=profile.customer_id if profile else facts.customer_id,
        caller_number=facts.number,
        language=profile.language if profile else "",
    )
    change = open_ticket(
        facts.ticket_id,
        Kind.CARE,
        draft,
        rules,
        now,
        actor=SYSTEM,
        tier=profile.tier if profile else "",
        open_key=open_key(Kind.CARE, draft) if facts.once else "",
    )
    return of_path(change, path)


def of_path(change: Change, path: Sequence[Profile]) -> Change:
    """A ticket that was made for a customer, or for the last of those who took that one over, one after
    another: should a merge be undone, it is found again. `path` is empty for a customer of whom nothing is
    known."""
    before = tuple(profile.customer_id for profile in path[:-1])
    return replace(change, ticket=replace(change.ticket, merged_from=before)) if before else change


def handed_up(ticket: Ticket, path: Sequence[Profile], rules: Rules, now: int) -> Change:
    """The ticket with the last of those who took its first customer over, one after another; it remembers the
    others. `path` begins with the first one.
    """
    here = path[-1].customer_id == ticket.draft.customer_id
    change = Change(ticket=ticket) if here else adopt(ticket, path[-1], rules, now)
    return of_path(replace(change, ticket=replace(change.ticket, merged_from=())), path)


def adopt(ticket: Ticket, profile: Profile, rules: Rules, now: int) -> Change:
    """An open ticket of an unknown caller (or of a customer that was taken over) once the customer is
    known."""
    draft = replace(
        ticket.draft, customer_id=profile.customer_id, language=ticket.draft.language or profile.language
    )
    return update(ticket, draft, rules, now, actor=SYSTEM, tier=profile.tier or ticket.tier)


def forget_guest(ticket: Ticket, guest: str, now: int) -> Change:
    """The ticket without what an erased customer said elsewhere and a merge or a split brought here."""
    left = replace(without_guest(ticket, guest), updated_ms=max(now, ticket.updated_ms))
    three = ("attachments", "calls", "comments")
    fields = tuple(name for name in three if getattr(left, name) != getattr(ticket, name))
    return Change(ticket=left, happenings=(Updated(fields=fields, actor=SYSTEM),))


def erase(ticket: Ticket, now: int) -> Change:
    """The ticket without anything personal: whose, from which number, and every free text. What remains is
    what happened when.

    No happening when nothing personal is left.
    """
    of = ticket.draft
    bare = Draft(
        subject=ERASED, priority=of.priority, category=of.category, channel=of.channel, products=of.products
    )
    history = tuple(replace(step, reason="") for step in ticket.history)
    calls = tuple(replace(call, notes="", reason="", owner="") for call in ticket.calls)
    visit = ticket.visit and replace(ticket.visit, comment="")
    links = (IntentKind.LINK, IntentKind.UNLINK)
    # nobody is left to be asked how it was
    visit_planned = ticket.follow_up is not None and not ticket.follow_up.created
    # a reason is left: without one the other ticket could not be reopened
    intents = tuple(i if i.kind in links else replace(i, reason=ERASED) for i in ticket.intents)
    erased = replace(
        ticket,
        draft=bare,
        history=history,
        calls=calls,
        visit=visit,
        resolution="",
        open_key="",
        merged_from=(),
        follow_up=None if visit_planned else ticket.follow_up,
        intents=intents,
        comments=tuple(replace(comment, body="", owner="") for comment in ticket.comments),
        attachments=(),
        guests=(),
    )
    if erased == ticket:
        return Change(ticket=ticket)
    erased = replace(erased, updated_ms=max(now, ticket.updated_ms))
    fields = ("caller_number", "customer", "description", "subject")
    return Change(ticket=erased, happenings=(Updated(fields=fields, actor=SYSTEM),))
