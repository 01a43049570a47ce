"""TicketService's calls around a ticket's flow: tasks, comments, files, watchers, links, merging,
splitting and
bulk edits. Message stubs only; `servicer` puts them into the gRPC service."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

from callmesh.tickets.v1 import ticket_pb2, ticket_service_pb2
from chassis import localize
from chassis.callcontext import current_identity, remaining_seconds
from chassis.errors import CallmeshError, DeadlineExceeded, FieldViolation, InvalidArgument, NotFound
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import new_id, parse_name
from chassis.localize import caller_language
from chassis.mongo import parse_etag
from chassis.pagination import Page
from tickets import convert, desk, filters
from tickets.engine import Act
from tickets.handlers import Handlers, Request
from tickets.model import Attachment, Change, Comment, Draft, Ticket
from tickets.opening import Create
from tickets.store import Query, sort_key
from tickets.teams import Teams
from tickets.validation import (
    SKILLS_MAX,
    label_problem,
    line_or_text,
    line_problem,
    text_problem,
)

#: What UpdateTicket may change.
UPDATABLE = frozenset(
    {
        "subject",
        "description",
        "priority",
        "category",
        "customer",
        "caller_number",
        "language",
        "channel",
        "required_skills",
        "tags",
        "attributes",
        "assets",
        "products",
        "dispatch",
        "fee",
        "parts",
        "survey",
    }
)
IMMUTABLE = frozenset({"kind", "flow"})
#: Most tickets of one bulk edit.
BULK_MAX = 10_000
#: Tickets fetched at once for one.
BULK_PAGE = 500
#: Comments and calls that one split may name.
SPLIT_PARTS_MAX = 1_000

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WATCHER = re.compile(r"[\x21-\x7e]{1,128}")


def subject() -> str:
    """Who is calling."""
    return current_identity().subject


def ticket_id(field: str, name: str) -> str:
    """The id in a ticket's name; InvalidArgument(field)."""
    return parse_name(field, "tickets", name)


def request_of(message: Any, method: str, name: str, *, field: str = "name") -> Request:
    """Which ticket a message is about, and on what terms."""
    asked = getattr(message, "request_id", "")
    key = request_key(current_identity(), method, asked) or ""
    return Request(
        ticket_id=ticket_id(field, name),
        version=parse_etag("etag", getattr(message, "etag", "")),
        key=key,
        fingerprint=content_fingerprint(message, ignoring=("request_id", "etag")) if key else "",
        validate_only=getattr(message, "validate_only", False),
    )


def draft_edit(patch: ticket_pb2.Ticket, mask: Any) -> Callable[[Ticket], Draft]:
    """Makes the draft that a ticket has once `patch` is laid over it."""

    def edit(ticket: Ticket) -> Draft:
        message = convert.to_proto(ticket)
        apply_mask(message, patch, mask, allowed=UPDATABLE, immutable=IMMUTABLE, at="ticket")
        return convert.read_draft(message)

    return edit


def roles() -> frozenset[str]:
    """What the caller may do."""
    return current_identity().scopes


def _check_reason(reason: str, *, required: bool = False) -> None:
    problem = line_or_text(reason)
    if required and not reason.strip():
        problem = "must not be empty"
    if problem:
        raise InvalidArgument(field="reason", why=problem)


def _agent(field: str, name: str) -> str:
    return parse_name(field, "agents", name)


def _skills(values: Any) -> list[str]:
    if len(values) > 4 * SKILLS_MAX:
        raise InvalidArgument(
            field="skills", why=f"holds too many entries, at most {4 * SKILLS_MAX} are allowed"
        )
    for index, value in enumerate(values):
        if problem := label_problem(value):
            raise InvalidArgument(field=f"skills[{index}]", why=problem)
    return list(values)


def read_attachment(message: ticket_pb2.Attachment) -> Attachment:
    """A file's reference; InvalidArgument naming each bad field."""
    checks = (
        ("uri", _uri_problem(message.uri)),
        ("file_name", line_problem(message.file_name, 255) if message.file_name else "must not be empty"),
        ("media_type", line_problem(message.media_type, 128)),
        ("size_bytes", "must not be negative" if message.size_bytes < 0 else None),
        (
            "sha256",
            None if not message.sha256 or _SHA256.fullmatch(message.sha256) else "must be 64 hex digits",
        ),
    )
    found = [FieldViolation(field=f"attachment.{name}", description=why) for name, why in checks if why]
    if found:
        raise InvalidArgument.many(found)
    return Attachment(
        id=new_id(),
        uri=message.uri,
        file_name=message.file_name,
        media_type=message.media_type,
        size=message.size_bytes,
        sha256=message.sha256,
        creator=subject(),
    )


def _uri_problem(uri: str) -> str | None:
    if len(uri) > 2_048:
        return f"must be at most 2048 characters, got {len(uri)}"
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "is not a URI"
    return (
        None if parts.scheme and (parts.netloc or parts.path) and uri.isascii() else "must be an absolute URI"
    )


def read_comment(message: ticket_pb2.Comment) -> Comment:
    """A comment to be written; InvalidArgument naming each bad field."""
    problem = text_problem(message.body) if message.body.strip() else "must not be empty"
    if problem:
        raise InvalidArgument(field="comment.body", why=problem)
    if message.visibility not in ticket_pb2.Comment.Visibility.values():
        raise InvalidArgument(field="comment.visibility", why="must be one of Visibility")
    if len(message.attachment_ids) > 64:
        raise InvalidArgument(field="comment.attachment_ids", why="at most 64 are allowed")
    public = message.visibility == ticket_pb2.Comment.VISIBILITY_PUBLIC
    return Comment(
        sequence=0,
        body=message.body,
        public=public or message.from_customer,
        author=subject(),
        from_customer=message.from_customer,
        time_ms=0,
        attachments=tuple(message.attachment_ids),
    )


class Around:
    """The calls. Plain methods run in the server's thread pool."""

    _handlers: Handlers
    _teams: Teams

    def _change(self, request: Request, decide: Callable[[Ticket, int], Change]) -> ticket_pb2.Ticket:
        return convert.to_proto(self._handlers.change(request, decide))

    # ---- tasks

    def ClaimTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Takes an unassigned ticket for the caller."""
        agent = _agent("agent", request.agent or f"agents/{subject()}")
        member = self._teams.member(agent)
        skills = member.skills if member is not None else None
        return self._change(
            request_of(request, "ClaimTicket", request.name),
            lambda ticket, now: desk.claim(ticket, agent, skills, now),
        )

    def ClaimNextTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Takes the best ticket of a team's pile for an agent."""
        team, agent = parse_name("team", "teams", request.team), _agent("agent", request.agent)
        # the request names no ticket: the one that it got is found by its key
        asked = request_of(request, "ClaimNextTicket", "tickets/next")
        return convert.to_proto(self._handlers.claim_next(team, agent, _skills(request.skills), asked))

    def AssignTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Gives a ticket to an agent, or to the one whose turn it is."""
        strategies = ticket_service_pb2.AssignTicketRequest.Strategy
        if request.strategy not in strategies.values():
            raise InvalidArgument(field="strategy", why="must be one of Strategy")
        asked = request_of(request, "AssignTicket", request.name)
        team = convert.read_optional_name("team", "teams", request.team)
        if request.strategy == ticket_service_pb2.AssignTicketRequest.STRATEGY_UNSPECIFIED:
            agent = _agent("agent", request.agent)

            def assign(ticket: Ticket, now: int) -> Change:
                self._teams.check(team, ticket)
                return desk.assign(ticket, agent, team or ticket.team, "assigned", now)

            return self._change(asked, assign)
        if request.agent:
            raise InvalidArgument(field="agent", why="must be empty with a strategy")
        in_turn = request.strategy == ticket_service_pb2.AssignTicketRequest.STRATEGY_ROUND_ROBIN

        def choose(ticket: Ticket, now: int) -> Change:
            chosen_team = team or ticket.team
            if not chosen_team:
                raise InvalidArgument(field="team", why="is required: the ticket lies with no team")
            agent = self._teams.choose(chosen_team, ticket, in_turn=in_turn)
            return desk.assign(ticket, agent, chosen_team, "assigned by the service", now)

        return self._change(asked, choose)

    def TransferTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Hands a ticket over, with a reason that stays in its history."""
        _check_reason(request.reason, required=True)
        team = convert.read_optional_name("team", "teams", request.team)
        agent = convert.read_optional_name("agent", "agents", request.agent)
        if not team and not agent:
            raise InvalidArgument(field="team", why="a team or an agent is required")
        actor = subject()

        def transfer(ticket: Ticket, now: int) -> Change:
            self._teams.check(team, ticket)
            return desk.transfer(ticket, agent, team or ticket.team, request.reason, now, actor=actor)

        return self._change(request_of(request, "TransferTicket", request.name), transfer)

    def ReleaseTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Puts a ticket back to its team."""
        _check_reason(request.reason)
        return self._change(
            request_of(request, "ReleaseTicket", request.name),
            lambda ticket, now: desk.assign(ticket, "", ticket.team, request.reason or "released", now),
        )

    # ---- comments, files, watchers

    def CreateComment(self, request: Any, context: Any) -> ticket_pb2.Comment:
        """Writes a comment."""
        asked = request_of(request, "CreateComment", request.parent, field="parent")
        ticket, written = self._handlers.comment(asked, read_comment(request.comment))
        return convert.comment_to_proto(ticket.id, written)

    def ListComments(self, request: Any, context: Any) -> ticket_service_pb2.ListCommentsResponse:
        """A page of a ticket's comments."""
        id = ticket_id("parent", request.parent)
        page = Page.of(request)
        found = self._handlers.comments(id, page.value(int) or 0, page.limit + 1)
        shown, token = page.cut(found, attrgetter("sequence"))
        visible = [said for said in shown if said.public or not request.public_only]
        return ticket_service_pb2.ListCommentsResponse(
            comments=[convert.comment_to_proto(id, said) for said in visible], next_page_token=token
        )

    def AttachFile(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Adds a file by reference."""
        file = read_attachment(request.attachment)
        return self._change(
            request_of(request, "AttachFile", request.name),
            lambda ticket, now: desk.attach(ticket, replace(file, time_ms=now), now),
        )

    def DetachFile(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Removes a file's reference."""
        if not request.attachment_id:
            raise InvalidArgument(field="attachment_id", why="must not be empty")
        actor = subject()

        def decide(ticket: Ticket, now: int) -> Change:
            change = desk.detach(ticket, request.attachment_id, actor, now)
            if not change.happenings:
                raise NotFound(resource=f"tickets/{ticket.id}/attachments/{request.attachment_id[:64]}")
            return change

        return self._change(request_of(request, "DetachFile", request.name), decide)

    def _watch(self, request: Any, method: str, wanted: bool) -> ticket_pb2.Ticket:
        watcher = request.watcher or subject()
        if not _WATCHER.fullmatch(watcher):
            raise InvalidArgument(field="watcher", why="must be an identity of at most 128 characters")
        actor = subject()
        return self._change(
            request_of(request, method, request.name),
            lambda ticket, now: desk.watch(ticket, watcher, wanted, actor, now),
        )

    def WatchTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Adds a watcher."""
        return self._watch(request, "WatchTicket", True)

    def UnwatchTicket(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Removes a watcher."""
        return self._watch(request, "UnwatchTicket", False)

    # ---- two tickets

    def _link(self, request: Any, method: str, wanted: bool) -> ticket_pb2.Ticket:
        other, relation = ticket_id("other", request.other), convert.read_relation(request.relation)
        asked = request_of(request, method, request.name)
        return convert.to_proto(self._handlers.link(asked, other, relation, wanted, subject()))

    def LinkTickets(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Links two tickets, both ways."""
        return self._link(request, "LinkTickets", True)

    def UnlinkTickets(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Removes a link, both ways."""
        return self._link(request, "UnlinkTickets", False)

    def MergeTickets(self, request: Any, context: Any) -> ticket_pb2.Ticket:
        """Makes one ticket of two."""
        _check_reason(request.reason)
        source = ticket_id("source", request.source)
        asked = request_of(request, "MergeTickets", request.name)
        return convert.to_proto(self._handlers.merge(asked, source, subject(), request.reason))

    def SplitTicket(self, request: Any, context: Any) -> ticket_service_pb2.SplitTicketResponse:
        """Makes a second ticket out of a part of one."""
        for named in ("calls", "comments"):
            if len(getattr(request, named)) > SPLIT_PARTS_MAX:
                raise InvalidArgument(field=named, why=f"at most {SPLIT_PARTS_MAX} are allowed")
        asked = request_of(request, "SplitTicket", request.name)
        original = self._handlers.get(asked.ticket_id)
        message = convert.draft_to_proto(original.draft)
        for name in ("dispatch", "fee", "parts", "survey", "description"):
            message.ClearField(name)
        taken = type(message)()
        taken.CopyFrom(request.ticket)
        for field, _ in taken.ListFields():
            message.ClearField(field.name)
        message.MergeFrom(taken)
        key = asked.key or None
        command = Create(
            kind=convert.read_kind(request.ticket.kind),
            draft=convert.read_draft(message),
            actor=subject(),
            flow=convert.read_optional_name("ticket.flow", "flows", request.ticket.flow),
            parent_id=original.id,
            request_key=key,
            fingerprint=asked.fingerprint if key else None,
            validate_only=request.validate_only,
        )
        calls = [parse_name(f"calls[{index}]", "calls", name) for index, name in enumerate(request.calls)]
        said = [
            _comment_sequence(f"comments[{index}]", asked.ticket_id, name)
            for index, name in enumerate(request.comments)
        ]
        made = self._handlers.split(asked, command, calls, said)
        answer = ticket_service_pb2.SplitTicketResponse(
            original=convert.to_proto(made.original), created=convert.to_proto(made.created)
        )
        if request.validate_only:
            answer.created.ClearField("name")
        return answer

    # ---- many tickets

    def BulkUpdateTickets(self, request: Any, context: Any) -> ticket_service_pb2.BulkUpdateTicketsResponse:
        """Changes many tickets alike; each for itself, so that one's error leaves the others."""
        if bool(request.names) == bool(request.filter):
            raise InvalidArgument(field="names", why="exactly one of names and filter is required")
        if not request.HasField("ticket") and not request.transition:
            raise InvalidArgument(field="ticket", why="new values or a transition are required")
        _check_reason(request.reason)
        answer, act = ticket_service_pb2.BulkUpdateTicketsResponse(), _bulk_act(request)
        language = caller_language(context)
        for id in self._bulk_ids(request):
            if remaining_seconds() == 0.0:
                raise DeadlineExceeded()  # what is done is done; a repeat goes on with the rest
            outcome = answer.outcomes.add(name=f"tickets/{id}")
            try:
                outcome.changed = self._bulk_one(request, id, act)
            except CallmeshError as error:
                said = localize.message(error, language, localize.package_of(Around))
                outcome.reason, outcome.message = error.reason, said[:1_024]
            answer.changed_count += outcome.changed
            answer.failed_count += bool(outcome.reason)
        return answer

    def _bulk_ids(self, request: Any) -> list[str]:
        if request.names:
            if len(request.names) > BULK_MAX:
                raise InvalidArgument(field="names", why=f"at most {BULK_MAX} are allowed")
            ids = (ticket_id(f"names[{index}]", name) for index, name in enumerate(request.names))
            return list(dict.fromkeys(ids))
        query, found = Query(conditions=filters.parse(request.filter)), list[str]()
        if not query.conditions:
            # Blanks: what looks empty must not mean all tickets there are.
            raise InvalidArgument(field="filter", why="must not be empty")
        after: tuple[int, str] | None = None
        while True:
            page = self._handlers.page(query, BULK_PAGE, after)
            found += [ticket.id for ticket in page]
            if len(found) > BULK_MAX:
                raise InvalidArgument(field="filter", why=f"matches more than {BULK_MAX} tickets")
            if len(page) < BULK_PAGE:
                return found
            after = sort_key(page[-1], query)

    def _bulk_one(self, request: Any, id: str, act: Act | None) -> bool:
        """Whether the ticket changed, or would."""
        edit = draft_edit(request.ticket, request.update_mask) if request.HasField("ticket") else None
        return self._handlers.edit_and_move(
            id, edit, act, actor=subject(), validate_only=request.validate_only
        )


def _bulk_act(request: Any) -> Act | None:
    """The transition of a bulk edit; None where it asks for none. Made once: a request may name thousands of
    tickets, and its digest is that of all of them."""
    key = request_key(current_identity(), "BulkUpdateTickets", request.request_id)
    if not request.transition:
        return None
    return Act(
        verb=request.transition,
        actor=subject(),
        reason=request.reason,
        resolution=request.reason,
        roles=roles(),
        request_key=key or "",
        fingerprint=content_fingerprint(request) if key else "",
    )


def _comment_sequence(field: str, ticket: str, name: str) -> int:
    prefix, _, last = name.rpartition("/")
    if prefix != f"tickets/{ticket}/comments" or not re.fullmatch(r"[1-9][0-9]{0,5}", last):
        raise InvalidArgument(field=field, why=f"must have the form tickets/{ticket}/comments/{{comment}}")
    return int(last)
