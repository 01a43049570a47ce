"""Proto <-> model, and the events that happenings become. Message stubs only: the worker loads this too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import customers_pb2
from callmesh.crm.v1 import events_pb2 as crm_events
from callmesh.routing.v1 import events_pb2 as routing_events
from callmesh.tickets.v1 import events_pb2, ticket_pb2
from chassis.bus import Event
from chassis.clock import from_ms
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name, stable_id
from chassis.mongo import etag
from tickets import sla as clocks
from tickets.documents import is_breached
from tickets.engine import CALL_PREFIX
from tickets.flows import allowed_verbs
from tickets.model import (
    Assigned,
    Attached,
    Attachment,
    Breached,
    CallFacts,
    CallLink,
    CareFacts,
    Channel,
    ClockState,
    ClockType,
    Comment,
    Commented,
    Created,
    Dispatch,
    Draft,
    Escalated,
    FeeLine,
    FollowUp,
    Happening,
    Kind,
    Merged,
    PartLine,
    Phase,
    Priority,
    Profile,
    Relation,
    Scheduled,
    Sla,
    SlaClock,
    Step,
    SurveyAnswer,
    Ticket,
    TicketRequest,
    Transitioned,
    Updated,
    Visit,
    Visited,
    Warned,
)
from tickets.validation import clean_id, clean_number

#: The service's name in event sources and error domains.
SERVICE = "tickets"
#: Digits of a fee order's total: 24 of an amount, 7 of a quantity, 3 of a number of lines.
FEE_DIGITS_MAX = 34
#: Quiet windows of a customer that are kept.
QUIET_WINDOWS_MAX = 32

KINDS: dict[Kind, Any] = {kind: ticket_pb2.TicketKind.Value(f"TICKET_KIND_{kind.name}") for kind in Kind}
PRIORITIES: dict[Priority, Any] = {p: ticket_pb2.Priority.Value(f"PRIORITY_{p.name}") for p in Priority}
PHASES: dict[Phase, Any] = {
    phase: ticket_pb2.TicketPhase.Value(f"TICKET_PHASE_{phase.name}") for phase in Phase
}
CHANNELS: dict[Channel, Any] = {
    channel: common_pb2.Channel.Value(
        "CHANNEL_UNSPECIFIED" if channel is Channel.UNKNOWN else f"CHANNEL_{channel.name}"
    )
    for channel in Channel
}
CLOCK_STATES: dict[ClockState, Any] = {
    s: ticket_pb2.SlaClock.State.Value("STATE_UNSPECIFIED" if s is ClockState.ABSENT else f"STATE_{s.name}")
    for s in ClockState
}
RELATIONS: dict[Relation, Any] = {
    r: ticket_pb2.TicketLink.Relation.Value(f"RELATION_{r.name}") for r in Relation
}
CLOCK_TYPES: dict[ClockType, Any] = {
    t: events_pb2.SlaClockType.Value(f"SLA_CLOCK_TYPE_{t.name}") for t in ClockType
}
_KIND_OF = {number: kind for kind, number in KINDS.items()}
_PRIORITY_OF = {number: priority for priority, number in PRIORITIES.items()}
_CHANNEL_OF = {number: channel for channel, number in CHANNELS.items()}

_RELATION_OF = {number: relation for relation, number in RELATIONS.items()}


def stamp(ms: int | None) -> Timestamp | None:
    """Epoch ms as a Timestamp; None stays None (an unset field)."""
    return None if ms is None else Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def read_stamp(value: Timestamp) -> int:
    """A Timestamp as epoch ms, rounded down."""
    return value.seconds * 1000 + value.nanos // 1_000_000


def _duration(ms: int) -> Duration:
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def _name(collection: str, id: str) -> str:
    return f"{collection}/{id}" if id else ""


# ---- model -> proto


def _clock(clock: SlaClock) -> ticket_pb2.SlaClock:
    return ticket_pb2.SlaClock(
        state=CLOCK_STATES[clock.state],
        target=_duration(clock.target_ms + clock.extra_ms),
        used=_duration(clock.used_ms),
        due_time=stamp(clocks.due_ms(clock)),
        breach_time=stamp(clock.breached_ms),
        stop_time=stamp(clock.stopped_ms),
        cycle=max(1, clock.cycle),
    )


def sla_to_proto(sla: Sla) -> ticket_pb2.TicketSla:
    """The service-level clocks as clients see them."""
    return ticket_pb2.TicketSla(
        policy=_name("slaPolicies", sla.policy),
        rule=sla.rule,
        first_response=_clock(sla.first_response),
        next_response=_clock(sla.next_response) if sla.next_response is not None else None,
        resolution=_clock(sla.resolution),
        explanation=sla.explanation,
        escalation_level=sla.level,
    )


def _part(line: PartLine) -> ticket_pb2.PartLine:
    return ticket_pb2.PartLine(part_number=line.number, quantity=line.quantity, description=line.description)


def _dispatch(order: Dispatch | None) -> ticket_pb2.DispatchOrder | None:
    if order is None:
        return None
    message = ticket_pb2.DispatchOrder(
        site_address=order.address,
        engineer=order.engineer,
        parts=[_part(line) for line in order.parts],
        site_contact=order.contact,
    )
    if order.latitude is not None and order.longitude is not None:
        message.site_location.latitude, message.site_location.longitude = order.latitude, order.longitude
    if order.start_ms is not None:
        message.appointment.start_time.FromMilliseconds(order.start_ms)
    if order.end_ms is not None:
        message.appointment.end_time.FromMilliseconds(order.end_ms)
    return message


def _fee(lines: tuple[FeeLine, ...]) -> ticket_pb2.FeeOrder | None:
    if not lines:
        return None
    money = common_pb2.Money
    with localcontext(prec=FEE_DIGITS_MAX):
        total = sum((Decimal(line.amount) * line.quantity for line in lines), Decimal(0))
    return ticket_pb2.FeeOrder(
        lines=[
            ticket_pb2.FeeLine(
                description=line.description,
                quantity=line.quantity,
                unit_amount=money(currency_code=line.currency, amount=line.amount),
            )
            for line in lines
        ],
        total=money(currency_code=lines[0].currency, amount=f"{total:f}"),
    )


def _survey(answer: SurveyAnswer) -> ticket_pb2.SurveyAnswer:
    return ticket_pb2.SurveyAnswer(
        question_id=answer.question_id, question=answer.question, answer=answer.answer
    )


def attachment_to_proto(file: Attachment) -> ticket_pb2.Attachment:
    """A file of a ticket."""
    return ticket_pb2.Attachment(
        attachment_id=file.id,
        uri=file.uri,
        file_name=file.file_name,
        media_type=file.media_type,
        size_bytes=file.size,
        sha256=file.sha256,
        creator=file.creator,
        create_time=stamp(file.time_ms),
    )


def comment_to_proto(ticket_id: str, comment: Comment, *, body: bool = True) -> ticket_pb2.Comment:
    """A comment of a ticket."""
    shown = ticket_pb2.Comment.VISIBILITY_PUBLIC if comment.public else ticket_pb2.Comment.VISIBILITY_INTERNAL
    return ticket_pb2.Comment(
        name=f"tickets/{ticket_id}/comments/{comment.sequence}",
        body=comment.body if body else "",
        visibility=shown,
        author=comment.author,
        from_customer=comment.from_customer,
        attachment_ids=comment.attachments,
        create_time=stamp(comment.time_ms),
    )


def call_to_proto(call: CallLink) -> ticket_pb2.CallLink:
    """A call of a ticket."""
    return ticket_pb2.CallLink(
        call=_name("calls", call.call_id),
        time=stamp(call.time_ms),
        agent=call.agent,
        disposition_code=call.code,
        contact_reason=call.reason,
        notes=call.notes,
        opened_ticket=call.opened,
    )


def _follow_up(plan: FollowUp | None) -> ticket_pb2.FollowUp | None:
    if plan is None:
        return None
    return ticket_pb2.FollowUp(
        schedule_time=stamp(plan.schedule_ms),
        ticket=_name("tickets", plan.ticket_id),
        created=plan.created,
        resolution_number=plan.number,
    )


def _visit(visit: Visit | None) -> ticket_pb2.VisitDetails | None:
    if visit is None:
        return None
    return ticket_pb2.VisitDetails(
        resolution_number=visit.number,
        answered=visit.answered,
        satisfied=visit.satisfied,
        satisfaction_score=visit.score,
        comment=visit.comment,
        preferred_channel=CHANNELS[visit.channel],
    )


def step_to_proto(step: Step) -> ticket_pb2.TransitionRecord:
    """A step of the history."""
    return ticket_pb2.TransitionRecord(
        sequence=step.sequence,
        transition=step.verb,
        from_state=step.source,
        to_state=step.target,
        to_phase=PHASES[step.phase],
        actor=step.actor,
        reason=step.reason,
        time=stamp(step.time_ms),
    )


def draft_to_proto(draft: Draft) -> ticket_pb2.Ticket:
    """A Ticket with what people fill in."""
    return ticket_pb2.Ticket(
        subject=draft.subject,
        description=draft.description,
        priority=PRIORITIES[draft.priority],
        category=draft.category,
        customer=_name("customers", draft.customer_id),
        caller_number=draft.caller_number,
        language=draft.language,
        channel=CHANNELS[draft.channel],
        required_skills=draft.required_skills,
        tags=draft.tags,
        attributes=draft.attributes,
        assets=draft.assets,
        products=draft.products,
        dispatch=_dispatch(draft.dispatch),
        fee=_fee(draft.fee),
        parts=[_part(line) for line in draft.parts],
        survey=[_survey(answer) for answer in draft.survey],
    )


def _around(ticket: Ticket, message: ticket_pb2.Ticket) -> None:
    """What only some tickets have."""
    for link in ticket.links:
        message.links.add(
            ticket=_name("tickets", link.ticket_id),
            relation=RELATIONS[link.relation],
            create_time=stamp(link.time_ms),
        )
    message.attachments.extend(attachment_to_proto(file) for file in ticket.attachments)
    message.watchers.extend(ticket.watchers)
    if ticket.draft.fee:
        message.fee.approver = ticket.fee_approver
        if ticket.fee_paid_ms is not None:
            message.fee.pay_time.FromMilliseconds(ticket.fee_paid_ms)


def to_proto(ticket: Ticket) -> ticket_pb2.Ticket:
    """The resource as clients see it."""
    message = draft_to_proto(ticket.draft)
    rest = ticket_pb2.Ticket(
        name=_name("tickets", ticket.id),
        kind=KINDS[ticket.kind],
        flow=_name("flows", ticket.flow),
        state=ticket.state,
        phase=PHASES[ticket.phase],
        customer_tier=ticket.tier.upper(),
        calls=[call_to_proto(call) for call in ticket.calls],
        sla=sla_to_proto(ticket.sla),
        due_time=stamp(clocks.due_ms(ticket.sla.resolution)),
        resolution=ticket.resolution,
        parent=_name("tickets", ticket.parent_id),
        follow_up=_follow_up(ticket.follow_up),
        visit=_visit(ticket.visit),
        reopen_count=ticket.reopen_count,
        first_contact_resolved=ticket.first_contact_resolved,
        allowed_transitions=allowed_verbs(ticket.flow, ticket.state, ticket.flow_version),
        assignee=_name("agents", ticket.assignee),
        team=_name("teams", ticket.team),
        reassignment_count=ticket.reassign_count,
        merged_into=_name("tickets", ticket.merged_into),
        problem=_name("problems", ticket.problem),
        creator=ticket.creator,
        create_time=stamp(ticket.created_ms),
        update_time=stamp(ticket.updated_ms),
        resolve_time=stamp(ticket.resolved_ms),
        close_time=stamp(ticket.closed_ms),
        etag=etag(ticket.version) if ticket.version else "",
    )
    message.MergeFrom(rest)
    _around(ticket, message)
    return message


def snapshot(ticket: Ticket) -> events_pb2.TicketSnapshot:
    """The ticket as events carry it."""
    opener = next((call.call_id for call in ticket.calls if call.opened), "")
    draft = ticket.draft
    return events_pb2.TicketSnapshot(
        ticket=_name("tickets", ticket.id),
        kind=KINDS[ticket.kind],
        state=ticket.state,
        phase=PHASES[ticket.phase],
        priority=PRIORITIES[draft.priority],
        subject=draft.subject,
        category=draft.category,
        customer=_name("customers", draft.customer_id),
        caller_number=draft.caller_number,
        customer_tier=ticket.tier.upper(),
        call=_name("calls", opener),
        due_time=stamp(clocks.due_ms(ticket.sla.resolution)),
        parent=_name("tickets", ticket.parent_id),
        version=ticket.version,
        create_time=stamp(ticket.created_ms),
        update_time=stamp(ticket.updated_ms),
        reopen_count=ticket.reopen_count,
        first_contact_resolved=ticket.first_contact_resolved,
        call_count=ticket.call_count,
        breached=is_breached(ticket.sla),
        assignee=_name("agents", ticket.assignee),
        team=_name("teams", ticket.team),
        language=draft.language,
        channel=CHANNELS[draft.channel],
        tags=draft.tags,
        products=draft.products,
    )


def message_of(ticket: Ticket, happening: Happening) -> Message:
    """The payload of what happened to a ticket, which is `ticket` (with its new version) after it."""
    after = snapshot(ticket)
    match happening:
        case Created():
            return events_pb2.TicketCreated(ticket=after, actor=happening.actor)
        case Transitioned():
            step = step_to_proto(happening.step)
            return events_pb2.TicketTransitioned(ticket=after, transition=step, reopened=happening.reopened)
        case Updated():
            return events_pb2.TicketUpdated(
                ticket=after, changed_fields=happening.fields, actor=happening.actor
            )
        case Attached():
            return events_pb2.CallAttached(ticket=after, call=call_to_proto(happening.call))
        case Scheduled():
            plan = happening.follow_up
            return events_pb2.FollowUpScheduled(
                ticket=after,
                schedule_time=stamp(plan.schedule_ms),
                follow_up_ticket=_name("tickets", plan.ticket_id),
                resolution_number=plan.number,
            )
        case Visited():
            parent = _name("tickets", ticket.parent_id)
            return events_pb2.FollowUpCompleted(ticket=after, parent=parent, visit=_visit(happening.visit))
        case Breached():
            return events_pb2.SlaBreached(
                ticket=after,
                clock=CLOCK_TYPES[happening.clock],
                due_time=stamp(happening.due_ms),
                cycle=happening.cycle,
            )
        case Warned():
            clock = CLOCK_TYPES[happening.clock]
            due, cycle = stamp(happening.due_ms), happening.cycle
            return events_pb2.SlaWarned(ticket=after, clock=clock, due_time=due, cycle=cycle)
        case Escalated():
            clock = CLOCK_TYPES[happening.clock]
            return events_pb2.TicketEscalated(ticket=after, level=happening.level.level, clock=clock)
        case Assigned():
            return events_pb2.TicketAssigned(
                ticket=after,
                previous_assignee=_name("agents", happening.previous_assignee),
                previous_team=_name("teams", happening.previous_team),
                reason=happening.reason,
            )
        case Commented():
            return events_pb2.CommentAdded(
                ticket=after, comment=comment_to_proto(ticket.id, happening.comment, body=False)
            )
        case Merged():
            return events_pb2.TicketsMerged(ticket=after, source=_name("tickets", happening.source_id))


def event_of(ticket: Ticket, happening: Happening) -> Event:
    """The event of what happened to a ticket; its time is the change's business time."""
    return Event.of(
        message_of(ticket, happening),
        source=SERVICE,
        subject=_name("tickets", ticket.id),
        time=from_ms(ticket.updated_ms),
    )


# ---- proto -> model


def read_kind(number: int, field: str = "ticket.kind") -> Kind:
    """InvalidArgument(field) for one that is not said or not known."""
    if number not in _KIND_OF:
        raise InvalidArgument(field=field, why="must be one of TicketKind, and not unspecified")
    return _KIND_OF[number]


def read_priority(number: int, field: str = "ticket.priority") -> Priority:
    """NORMAL for one that is not said; InvalidArgument(field) for one that is not known."""
    if number == ticket_pb2.PRIORITY_UNSPECIFIED:
        return Priority.NORMAL
    if number not in _PRIORITY_OF:
        raise InvalidArgument(field=field, why="must be one of Priority")
    return _PRIORITY_OF[number]


def _channel(number: int) -> Channel:
    if number not in _CHANNEL_OF:
        raise InvalidArgument(field="ticket.channel", why="must be one of Channel")
    return _CHANNEL_OF[number]


def read_optional_name(field: str, collection: str, name: str) -> str:
    """The id in a name, empty for an empty one; InvalidArgument(field) for any other form."""
    return parse_name(field, collection, name) if name else ""


def read_draft(message: ticket_pb2.Ticket) -> Draft:
    """What people filled in; InvalidArgument for unknown enum values, malformed names and fields not served
    yet.

    The rest is for `validation.check_draft`.
    """
    return Draft(
        subject=message.subject,
        description=message.description,
        priority=read_priority(message.priority),
        category=message.category,
        customer_id=read_optional_name("ticket.customer", "customers", message.customer),
        caller_number=message.caller_number,
        language=message.language,
        channel=_channel(message.channel),
        required_skills=tuple(message.required_skills),
        tags=tuple(message.tags),
        attributes=dict(message.attributes),
        assets=tuple(message.assets),
        products=tuple(message.products),
        dispatch=_read_dispatch(message.dispatch) if message.HasField("dispatch") else None,
        fee=_read_fee(message),
        parts=_read_parts(message.parts),
        survey=tuple(
            SurveyAnswer(question_id=one.question_id, question=one.question, answer=one.answer)
            for one in message.survey
        ),
    )


def _read_parts(lines: Iterable[ticket_pb2.PartLine]) -> tuple[PartLine, ...]:
    return tuple(
        PartLine(number=line.part_number, quantity=line.quantity, description=line.description)
        for line in lines
    )


def _read_fee(message: ticket_pb2.Ticket) -> tuple[FeeLine, ...]:
    if message.HasField("fee") and not message.fee.lines:
        raise InvalidArgument(field="ticket.fee", why="must have at least one line")
    return tuple(
        FeeLine(
            description=line.description,
            quantity=line.quantity,
            amount=line.unit_amount.amount,
            currency=line.unit_amount.currency_code,
        )
        for line in message.fee.lines
    )


def _read_dispatch(order: ticket_pb2.DispatchOrder) -> Dispatch:
    placed = order.HasField("site_location")
    when = order.appointment
    return Dispatch(
        address=order.site_address,
        latitude=order.site_location.latitude if placed else None,
        longitude=order.site_location.longitude if placed else None,
        start_ms=read_stamp(when.start_time) if when.HasField("start_time") else None,
        end_ms=read_stamp(when.end_time) if when.HasField("end_time") else None,
        engineer=order.engineer,
        parts=_read_parts(order.parts),
        contact=order.site_contact,
    )


def read_relation(number: int) -> Relation:
    """InvalidArgument(relation) for one that is not said or not known."""
    if number not in _RELATION_OF:
        raise InvalidArgument(field="relation", why="must be one of Relation, and not unspecified")
    return _RELATION_OF[number]


def call_facts(message: routing_events.CallWrappedUp) -> CallFacts | None:
    """What routing tells of a finished call; None when there is nothing to be done about it.

    The event's texts are not trusted: the engine makes them valid. InvalidArgument without a usable call id:
    such an event is a defect of its sender and goes where people see it.
    """
    said = message.disposition
    if not message.HasField("disposition") or not said.HasField("ticket"):
        return None
    check_id("call.call_id", message.call.call_id)
    asked = said.ticket
    return CallFacts(
        call_id=message.call.call_id,
        ticket_id=CALL_PREFIX + stable_id("ticket-of-call", message.call.call_id),
        time_ms=read_stamp(message.event_time),
        number=clean_number(message.call.caller_number),
        agent=message.call.agent,
        channel=_CHANNEL_OF.get(message.call.channel, Channel.UNKNOWN),
        code=said.code,
        resolved=said.resolved,
        reason=said.contact_reason,
        notes=said.notes,
        follow_up_ms=read_stamp(said.follow_up_time) if said.HasField("follow_up_time") else None,
        request=TicketRequest(
            kind=asked.kind,
            priority=asked.priority,
            category=asked.category,
            subject=asked.subject,
            description=asked.description,
        ),
    )


def _customer_id(name: str) -> str:
    return clean_id(name.removeprefix("customers/"))


def absorbed_profiles(message: crm_events.CustomersMerged, survivor: str) -> list[Profile]:
    """What a merge tells of those who were taken over; version 0 where it tells none. Malformed names are
    left out."""
    names, versions = message.absorbed, [*message.absorbed_versions, *[0] * len(message.absorbed)]
    told = zip(map(_customer_id, names), versions, strict=False)
    return [
        Profile(customer_id=id, version=version, merged_into=survivor)
        for id, version in told
        if id and id != survivor
    ]


#: Occasions that are somebody's work; of the others an agent reads when the customer calls.
CARE_KINDS = frozenset({"CONTRACT_EXPIRES", "LOW_BALANCE", "CHURN", "SILENCE"})
#: Customers for whom nothing is to be done any more.
_NOT_SERVED = frozenset(
    {
        customers_pb2.CUSTOMER_STATE_DELETED,
        customers_pb2.CUSTOMER_STATE_ERASED,
        customers_pb2.CUSTOMER_STATE_MERGED,
    }
)
#: Category of the ticket of who may leave.
RETENTION = "retention"
#: Churn score from which on somebody is to talk to the customer.
RISK_MIN = 0.75


def care_ticket_id(care_task: str) -> str:
    """The id of the ticket of a care task, always the same."""
    return stable_id("care", care_task)


def care_facts(message: crm_events.CareTaskRaised) -> CareFacts | None:
    """What a care task asks for; None when it is nobody's work, or for nobody who is served."""
    customer_id = _customer_id(message.customer.customer)
    if not customer_id or not message.care_task or message.kind not in CARE_KINDS:
        return None
    if message.customer.state in _NOT_SERVED:
        return None
    churn = message.kind == "CHURN"
    return CareFacts(
        # A retention ticket stands for more than the task: its end leaves it open.
        ticket_id=stable_id("churn", message.care_task) if churn else care_ticket_id(message.care_task),
        subject=message.text,
        category=RETENTION if churn else message.kind.lower().replace("_", "-"),
        customer_id=customer_id,
        priority=Priority.HIGH if churn else Priority.NORMAL,
        once=churn,
    )


def leaving_facts(message: crm_events.LeaveIntentFlagged) -> CareFacts | None:
    """What "I want to leave" asks for; None when it is taken back, or it is not known who said it."""
    customer_id, number = _customer_id(message.customer), clean_number(message.caller_number)
    if not message.wants_to_leave or not (customer_id or number):
        return None
    return CareFacts(
        ticket_id=stable_id("leaving", customer_id or number, message.event_time.ToMilliseconds()),
        subject="客户表示想离网 / wants to leave",
        category=RETENTION,
        customer_id=customer_id,
        number=number,
        priority=Priority.HIGH,
        once=True,
    )


def risk_facts(message: crm_events.ChurnRiskChanged) -> CareFacts | None:
    """What a churn score asks for; None when it is not that high."""
    customer_id = _customer_id(message.customer)
    if not customer_id or not RISK_MIN <= message.score <= 1:
        return None
    return CareFacts(
        ticket_id=stable_id("churn", customer_id, message.event_time.ToMilliseconds()),
        subject=f"流失风险 / churn risk {message.score:.0%}: {', '.join(message.reasons[:5])}",
        category=RETENTION,
        customer_id=customer_id,
        priority=Priority.HIGH,
        once=True,
    )


def profile_of(message: crm_events.CustomerSnapshot) -> Profile | None:
    """What crm tells of a customer; None without a usable name. Numbers are empty unless the customer
    lives."""
    customer_id = _customer_id(message.customer)
    if not customer_id:
        return None
    tier = crm_tier(message)
    numbers = tuple(number for number in map(clean_number, message.numbers) if number)
    merged = _customer_id(message.merged_into)
    profile = Profile(
        customer_id=customer_id,
        version=message.version,
        numbers=numbers,
        tier=tier,
        language=message.language,
        erased=message.state == customers_pb2.CUSTOMER_STATE_ERASED,
        refused=_refused(message),
        preferred=_preferred(message),
        quiet=_quiet(message),
        zone=message.time_zone[:64],
    )
    return replace(profile, merged_into=merged, numbers=()) if merged else profile


def deleted_profile(message: crm_events.CustomerDeleted) -> Profile | None:
    """As `profile_of`, with the numbers that were the customer's until then."""
    profile = profile_of(message.customer)
    former = tuple(number for number in map(clean_number, message.released_numbers) if number)
    return profile and replace(profile, former_numbers=former)


def _refused(message: crm_events.CustomerSnapshot) -> frozenset[Channel]:
    """Channels by which the customer said not to want to be asked how it was."""
    survey = customers_pb2.PURPOSE_SURVEY
    return frozenset(
        _CHANNEL_OF[consent.channel]
        for consent in message.consents
        if consent.purpose == survey and not consent.granted and consent.channel in _CHANNEL_OF
    )


def _preferred(message: crm_events.CustomerSnapshot) -> tuple[Channel, ...]:
    """Channels by which the customer said to want to be asked how it was, the latest said first."""
    granted = [
        consent
        for consent in message.consents
        if consent.purpose == customers_pb2.PURPOSE_SURVEY
        and consent.granted
        and consent.channel in _CHANNEL_OF
    ]
    granted.sort(key=lambda consent: (consent.decide_time.seconds, consent.decide_time.nanos), reverse=True)
    return tuple(dict.fromkeys(_CHANNEL_OF[consent.channel] for consent in granted))


def _quiet(message: crm_events.CustomerSnapshot) -> tuple[tuple[tuple[int, ...], int, int], ...]:
    """The customer's quiet windows; those that make no sense are left out."""
    return tuple(
        (tuple(window.weekdays), window.start_minute, window.end_minute)
        for window in message.quiet_windows[:QUIET_WINDOWS_MAX]
        if 0 <= window.start_minute < 1_440
        and 0 <= window.end_minute <= 1_440
        and window.start_minute != window.end_minute
        and all(1 <= day <= 7 for day in window.weekdays)
    )


def crm_tier(message: crm_events.CustomerSnapshot) -> str:
    """crm's tier in lower case without its prefix, for example `vip`; empty when not known."""
    if message.tier not in customers_pb2.Tier.values():
        return ""
    word = customers_pb2.Tier.Name(message.tier).removeprefix("TIER_").lower()
    return "" if word == "unspecified" else word
