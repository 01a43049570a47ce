"""What people do around a ticket's flow: take it, hand it on, talk about it, put files and links to it, make
one of two. Pure; every function answers a `Change` and none changes a state.

Rules. A final ticket is not assigned any more. An agent takes what nobody has. Work on a ticket (a claim, an
answer, a step) breaks its assignee's silence, which counts while the ticket is open. A link is written on one
side together with an intent for the other. What a merged ticket has goes over once and whole: the other has
room for it before it ends, remembers that it went over, and the merged one takes no more words and files once
it has ended, for nobody would read them there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chassis.errors import FailedPrecondition
from tickets import sla as clocks
from tickets.engine import TicketFull, handed_over
from tickets.model import (
    ATTACHMENTS_MAX,
    CALLS_MAX,
    COMMENTS_MAX,
    FINAL_PHASES,
    GUESTS_MAX,
    INTENTS_MAX,
    INVERSE,
    LINKS_MAX,
    PRIORITY_RANK,
    REQUESTS_MAX,
    WATCHERS_MAX,
    Assigned,
    Attachment,
    Change,
    Comment,
    Commented,
    Happening,
    Intent,
    IntentKind,
    Link,
    Member,
    Merged,
    Relation,
    Rules,
    Sla,
    Ticket,
    Updated,
)
from tickets.owners import brought, guests_with, owner_of


class AlreadyClaimed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "ALREADY_CLAIMED"


class TicketFinal(FailedPrecondition):
    """{subject}: {why}."""

    reason = "TICKET_FINAL"


class SkillsMissing(FailedPrecondition):
    """{subject}: {why}."""

    reason = "SKILLS_MISSING"


class NobodyFree(FailedPrecondition):
    """{subject}: {why}."""

    reason = "NOBODY_FREE"


def _touch(ticket: Ticket, now: int, **changes: Any) -> Ticket:
    return replace(ticket, updated_ms=max(now, ticket.updated_ms), **changes)


def _full(ticket: Ticket, what: str) -> TicketFull:
    return TicketFull(subject=f"tickets/{ticket.id}", what=what, retry_seconds=0.0)


def remembered(ticket: Ticket, key: str, content: str) -> Ticket:
    """The ticket with a request that changed it."""
    return replace(ticket, requests=(*ticket.requests, (key, content))[-REQUESTS_MAX:]) if key else ticket


def check_open(ticket: Ticket) -> None:
    """TicketFinal for a ticket that is over."""
    if ticket.phase in FINAL_PHASES:
        raise TicketFinal(subject=f"tickets/{ticket.id}", why=f"is over, in state {ticket.state}")


def _check_there(ticket: Ticket) -> None:
    """TicketFinal for a ticket that another took over."""
    if ticket.merged_into and ticket.phase in FINAL_PHASES:
        raise TicketFinal(
            subject=f"tickets/{ticket.id}", why=f"is merged into tickets/{ticket.merged_into}: write there"
        )


# ---- tasks


def assign(ticket: Ticket, agent: str, team: str, reason: str, now: int) -> Change:
    """The ticket with another assignee (empty: nobody) and team; no happening when it is so already."""
    check_open(ticket)
    if (agent, team) == (ticket.assignee, ticket.team):
        return Change(ticket=ticket)
    told = Assigned(previous_assignee=ticket.assignee, previous_team=ticket.team, reason=reason)
    changed_hands = bool(agent) and agent != ticket.assignee and ticket.had_assignee
    given = _touch(
        ticket,
        now,
        assignee=agent,
        team=team,
        silent_ms=now if agent and ticket.is_open else None,
        had_assignee=ticket.had_assignee or bool(agent),
        reassign_count=ticket.reassign_count + changed_hands,
    )
    return Change(ticket=given, happenings=(told,))


def transfer(ticket: Ticket, agent: str, team: str, reason: str, now: int, *, actor: str) -> Change:
    """The ticket handed over, with the reason and who did it in its history; no happening when it is so
    already."""
    change = assign(ticket, agent, team, reason, now)
    if not change.happenings:
        return change
    given = change.ticket
    return replace(change, ticket=handed_over(given, actor, reason, given.updated_ms))


def claim(ticket: Ticket, agent: str, skills: Collection[str] | None, now: int) -> Change:
    """The ticket taken by an agent. AlreadyClaimed when another has it, SkillsMissing when `skills` (None:
    not known, not looked at) are too few."""
    if ticket.assignee and ticket.assignee != agent:
        raise AlreadyClaimed(subject=f"tickets/{ticket.id}", why=f"agents/{ticket.assignee} has it")
    missing = sorted(set(ticket.draft.required_skills) - set(skills)) if skills is not None else []
    if missing:
        raise SkillsMissing(subject=f"tickets/{ticket.id}", why=f"needs {', '.join(missing)}")
    return assign(ticket, agent, ticket.team, "claimed", now)


def pile_order(ticket: Ticket) -> tuple[int, int, str]:
    """What of a team's pile comes first: the most urgent, then the oldest."""
    return (-PRIORITY_RANK[ticket.draft.priority], ticket.created_ms, ticket.id)


def able(members: Sequence[Member], ticket: Ticket, load: Mapping[str, int]) -> list[Member]:
    """The members who may be given a ticket: with its skills and below their bound of open tickets.
    NobodyFree when there is none."""
    needed = set(ticket.draft.required_skills)
    found = [
        member
        for member in members
        if needed <= member.skills and (not member.open_max or load.get(member.agent, 0) < member.open_max)
    ]
    if not found:
        raise NobodyFree(subject=f"tickets/{ticket.id}", why="no member has the skills and room for it")
    return found


def next_in_turn(members: Sequence[Member], able_ones: Sequence[Member], turn: int) -> Member:
    """The first able member from position `turn` of the whole team on."""
    agents = {member.agent for member in able_ones}
    order = [members[(turn + offset) % len(members)] for offset in range(len(members))]
    return next(member for member in order if member.agent in agents)


def least_loaded(able_ones: Sequence[Member], load: Mapping[str, int]) -> Member:
    """The able member with the fewest open tickets, the first of those with equally many."""
    return min(able_ones, key=lambda member: load.get(member.agent, 0))


# ---- words and files


def comment(ticket: Ticket, said: Comment, rules: Rules, now: int) -> Change:
    """The ticket with a comment (its sequence is set here). A customer's message starts the next-response
    clock unless the ticket is over; a public answer is the first response, or the next. TicketFull,
    TicketFinal once it is merged."""
    _check_there(ticket)
    if ticket.comment_count >= COMMENTS_MAX:
        raise _full(ticket, f"{COMMENTS_MAX} comments")
    now = max(now, ticket.updated_ms)
    levels: Sla = ticket.sla
    told: tuple[Happening, ...] = ()
    if said.from_customer and ticket.phase not in FINAL_PHASES:
        levels, told = clocks.customer_wrote(levels, rules, now)
    elif said.public and not said.from_customer:
        levels, told = clocks.operator_wrote(levels, rules, now)
    written = replace(said, sequence=ticket.comment_count + 1, time_ms=now)
    ticket = _touch(
        ticket,
        now,
        sla=levels,
        comments=(*ticket.comments, written),
        comment_count=written.sequence,
        silent_ms=now if ticket.silent_ms is not None and not said.from_customer else ticket.silent_ms,
        timer_hold_ms=0,
    )
    happenings: tuple[Happening, ...] = (*told, Commented(comment=written))
    return Change(ticket=ticket, happenings=happenings)


def attach(ticket: Ticket, file: Attachment, now: int) -> Change:
    """The ticket with a file's reference. TicketFull, TicketFinal once it is merged."""
    _check_there(ticket)
    if len(ticket.attachments) >= ATTACHMENTS_MAX:
        raise _full(ticket, f"{ATTACHMENTS_MAX} files")
    ticket = _touch(ticket, now, attachments=(*ticket.attachments, file))
    return Change(ticket=ticket, happenings=(Updated(fields=("attachments",), actor=file.creator),))


def detach(ticket: Ticket, file_id: str, actor: str, now: int) -> Change:
    """The ticket without a file's reference; no happening when there is none."""
    left = tuple(file for file in ticket.attachments if file.id != file_id)
    if left == ticket.attachments:
        return Change(ticket=ticket)
    ticket = _touch(ticket, now, attachments=left)
    return Change(ticket=ticket, happenings=(Updated(fields=("attachments",), actor=actor),))


def watch(ticket: Ticket, watcher: str, wanted: bool, actor: str, now: int) -> Change:
    """The ticket with or without a watcher; no happening when it is so already."""
    if wanted is (watcher in ticket.watchers):
        return Change(ticket=ticket)
    if wanted and len(ticket.watchers) >= WATCHERS_MAX:
        raise _full(ticket, f"{WATCHERS_MAX} watchers")
    others = tuple(one for one in ticket.watchers if one != watcher)
    ticket = _touch(ticket, now, watchers=(*others, watcher) if wanted else others)
    return Change(ticket=ticket, happenings=(Updated(fields=("watchers",), actor=actor),))


# ---- two tickets


def _has_link(ticket: Ticket, other_id: str, relation: Relation) -> bool:
    return any((link.ticket_id, link.relation) == (other_id, relation) for link in ticket.links)


def _linked(ticket: Ticket, other_id: str, relation: Relation, now: int) -> Ticket:
    if _has_link(ticket, other_id, relation):
        return ticket
    if len(ticket.links) >= LINKS_MAX:
        raise _full(ticket, f"{LINKS_MAX} links")
    link = Link(ticket_id=other_id, relation=relation, time_ms=now)
    return _touch(ticket, now, links=(*ticket.links, link))


def _unlinked(ticket: Ticket, other_id: str, relation: Relation, now: int) -> Ticket:
    left = tuple(link for link in ticket.links if (link.ticket_id, link.relation) != (other_id, relation))
    return ticket if left == ticket.links else _touch(ticket, now, links=left)


def link(ticket: Ticket, other: Ticket, relation: Relation, wanted: bool, actor: str, now: int) -> Change:
    """One side of a link made or removed, with the intent for the other; no happening when it is so
    already."""
    changed = (_linked if wanted else _unlinked)(ticket, other.id, relation, now)
    if changed is ticket:
        return Change(ticket=ticket)
    if wanted and len(other.links) >= LINKS_MAX:
        raise _full(other, f"{LINKS_MAX} links")
    if len(ticket.intents) >= INTENTS_MAX:
        raise _full(ticket, "too much still to be done to other tickets")
    intent = Intent(
        kind=IntentKind.LINK if wanted else IntentKind.UNLINK,
        ticket_id=other.id,
        number=0,
        reason=INVERSE[relation].value,
        time_ms=changed.updated_ms,
    )
    changed = replace(changed, intents=(*changed.intents, intent))
    return Change(ticket=changed, happenings=(Updated(fields=("links",), actor=actor),))


def carry_out_link(intent: Intent, ticket: Ticket, now: int, *, cause: str) -> Change:
    """The other side of a link; no happening when it is so already, or has no room left."""
    relation = Relation(intent.reason)
    if intent.kind is IntentKind.UNLINK:
        changed = _unlinked(ticket, cause, relation, now)
    elif len(ticket.links) >= LINKS_MAX:
        return Change(ticket=ticket)
    else:
        changed = _linked(ticket, cause, relation, now)
    if changed is ticket:
        return Change(ticket=ticket)
    return Change(ticket=changed, happenings=(Updated(fields=("links",), actor=f"tickets/{cause}"),))


def has_absorbed(ticket: Ticket, source_id: str) -> bool:
    """Whether a ticket has what another had. That somebody called the two duplicates does not say so."""
    return source_id in ticket.absorbed


def check_room(target: Ticket, source: Ticket) -> None:
    """TicketFull unless a ticket has room for all that another has."""
    links = _unlinked(target, source.id, Relation.DUPLICATE, 0).links
    watchers = {*source.watchers} - {*target.watchers}
    guests = {owner_of(source), *source.guests} - {owner_of(target), *target.guests, ""}
    needed = (
        (target.comment_count, source.comment_count, COMMENTS_MAX, "comments"),
        (len(target.attachments), len(source.attachments), ATTACHMENTS_MAX, "files"),
        (len(target.watchers), len(watchers), WATCHERS_MAX, "watchers"),
        (len(links), 1, LINKS_MAX, "links"),
        (len(target.guests), len(guests), GUESTS_MAX, "customers' words"),
    )
    for held, more, most, what in needed:
        if held + more > most:
            raise _full(target, f"no room for {more} more {what}")


def absorb(target: Ticket, source: Ticket, comments: Sequence[Comment], now: int) -> Change:
    """The ticket that stays with what the ended one has; no happening when it has it already. What it has no
    room left for stays where it is (`emptied`)."""
    if has_absorbed(target, source.id):
        return Change(ticket=target)
    known = {call.call_id for call in target.calls}
    new = brought([call for call in source.calls if call.call_id not in known], source, target)
    calls = (*target.calls, *(replace(call, opened=False) for call in new))
    count = target.comment_count
    moved = [
        replace(said, sequence=count + place, request_key="", fingerprint="")
        for place, said in enumerate(brought(comments[: COMMENTS_MAX - count], source, target), start=1)
    ]
    files = brought(source.attachments, source, target)
    link_ = Link(ticket_id=source.id, relation=Relation.DUPLICATE, time_ms=now)
    links = _unlinked(target, source.id, Relation.DUPLICATE, now).links
    changed = _touch(
        target,
        now,
        calls=tuple(sorted(calls, key=lambda call: (not call.opened, call.time_ms))[:1])
        + tuple(sorted(calls, key=lambda call: (not call.opened, call.time_ms))[1:][-(CALLS_MAX - 1) :]),
        call_count=target.call_count + source.call_count,
        comments=(*target.comments, *moved),
        comment_count=count + len(moved),
        attachments=(*target.attachments, *files)[:ATTACHMENTS_MAX],
        guests=guests_with(target, (*new, *moved, *files)),
        watchers=tuple(dict.fromkeys((*target.watchers, *source.watchers)))[:WATCHERS_MAX],
        links=(*links, link_)[-LINKS_MAX:],
        absorbed=(*target.absorbed, source.id)[-LINKS_MAX:],
    )
    return Change(ticket=changed, happenings=(Merged(source_id=source.id),))


def emptied(source: Ticket, target: Ticket) -> Ticket:
    """The ended ticket once the other has what it had."""
    there = {file.id for file in target.attachments}
    kept = tuple(file for file in source.attachments if file.id not in there)
    comments = source.comments if target.comment_count >= COMMENTS_MAX else ()
    return replace(source, calls=(), comments=comments, attachments=kept, watchers=())


def cede(ticket: Ticket, calls: Collection[str], cause: str, now: int) -> Change:
    """The ticket without the calls that went to a split-off one, linked with it as its child."""
    left = tuple(call for call in ticket.calls if call.call_id not in calls)
    changed = ticket if len(ticket.links) >= LINKS_MAX else _linked(ticket, cause, Relation.CHILD, now)
    if changed is ticket and left == ticket.calls:
        return Change(ticket=ticket)
    gone = len(ticket.calls) - len(left)
    changed = _touch(changed, now, calls=left, call_count=max(0, ticket.call_count - gone))
    return Change(ticket=changed, happenings=(Updated(fields=("calls", "links"), actor=f"tickets/{cause}"),))
