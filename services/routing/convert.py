"""Proto <-> model: checks what clients say, and words what shards say. No gRPC here, so the worker uses it
too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import agent_pb2, call_pb2, routing_pb2
from chassis.clock import from_ms, to_ms
from chassis.errors import InvalidArgument
from chassis.ids import check_id, parse_name, resource_name
from routing import model
from routing.streams import Desk, Moved, Present, Update

#: A call with everything that comes with it, bytes.
CALL_BYTES_MAX = 16 * 1024
ATTRIBUTE_KEY_CHARACTERS_MAX = 64
SKILLS_MAX = 8
ATTEMPT_MAX = 1_000
TEXT_CHARACTERS_MAX = 4_000
#: Longest BCP 47 tag.
LANGUAGE_CHARACTERS_MAX = 35
CALLS_HELD_MAX = 100
PREFERRED_AGENT_SECONDS_MAX = 3_600
_REOPEN_REASONS = frozenset(call_pb2.ReopenReason.values())
#: Numbers that fit a signed 64-bit integer.
INT64_MAX = 2**63 - 1

_CHANNELS: dict[int, str] = {
    common_pb2.CHANNEL_UNSPECIFIED: "voice",
    common_pb2.CHANNEL_VOICE: "voice",
    common_pb2.CHANNEL_CHAT: "chat",
    common_pb2.CHANNEL_SMS: "sms",
    common_pb2.CHANNEL_EMAIL: "email",
    common_pb2.CHANNEL_VISIT: "visit",
}
_CHANNEL_NUMBERS: dict[str, Any] = {name: number for number, name in _CHANNELS.items() if number}

CALL_STATES = {state: getattr(call_pb2, f"CALL_STATE_{state.name}") for state in model.CallState}
CALL_STATES_BY_NUMBER = {number: state for state, number in CALL_STATES.items()}
CALL_OUTCOMES = {o: getattr(call_pb2, f"CALL_OUTCOME_{o.name}") for o in model.CallOutcome}
OFFER_OUTCOMES = {o: getattr(call_pb2, f"OFFER_OUTCOME_{o.name}") for o in model.OfferOutcome}
AGENT_STATES = {state: getattr(agent_pb2, f"AGENT_STATE_{state.name}") for state in model.AgentState}
_PRESENCE: dict[int, model.Presence] = {
    agent_pb2.AGENT_STATE_UNSPECIFIED: model.Presence.AVAILABLE,
    agent_pb2.AGENT_STATE_AVAILABLE: model.Presence.AVAILABLE,
    agent_pb2.AGENT_STATE_PAUSED: model.Presence.PAUSED,
}


def timestamp(ms: int) -> Timestamp | None:
    """Milliseconds since 1970, None for 0 (not set)."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000) if ms else None


def duration(ms: int) -> Duration:
    """A span in milliseconds."""
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def span_ms(field: str, value: Duration, *, maximum_ms: int, default_ms: int = 0) -> int:
    """A duration as milliseconds; `default_ms` when it is zero. Raises InvalidArgument when negative or
    beyond the maximum.
    """
    if value.seconds == 0 and value.nanos == 0:
        return default_ms
    ms = value.seconds * 1000 + value.nanos // 1_000_000
    valid = 0 <= value.nanos < 1_000_000_000
    if not valid or not 0 < ms <= maximum_ms:
        raise InvalidArgument(field=field, why=f"must be more than 0 and at most {maximum_ms / 1000:g} s")
    return ms


def whole(field: str, value: int, low: int, high: int) -> int:
    """`value`, which must lie in [low, high]."""
    if not low <= value <= high:
        raise InvalidArgument(field=field, why=f"must be between {low} and {high}, got {value}")
    return value


def text(field: str, value: str, maximum: int, *, required: bool = False) -> str:
    """`value`, at most `maximum` characters, without NUL."""
    if required and not value.strip():
        raise InvalidArgument(field=field, why="must not be empty")
    if len(value) > maximum:
        raise InvalidArgument(field=field, why=f"must be at most {maximum} characters, got {len(value)}")
    if "\x00" in value:
        raise InvalidArgument(field=field, why="must not contain a NUL character")
    return value


def channel_of(field: str, number: int) -> str:
    """The channel's name; voice when not said."""
    if number not in _CHANNELS:
        raise InvalidArgument(field=field, why=f"is not a channel that this release knows: {number}")
    return _CHANNELS[number]


def requirements(
    field: str, wanted: Sequence[call_pb2.SkillRequirement], maximum: int
) -> tuple[model.Requirement, ...]:
    """Skill requirements, sorted, each skill once."""
    if not wanted:
        return ()
    found: dict[str, int] = {}
    for index, each in enumerate(wanted):
        if index >= maximum:
            raise InvalidArgument(field=field, why=f"must have at most {maximum} skills")
        skill = check_id(f"{field}[{index}].skill", each.skill, max_length=63)
        level = whole(f"{field}[{index}].level_min", each.level_min or 1, 1, 5)
        found[skill] = max(level, found.get(skill, 0))
    return tuple(sorted(found.items()))


def check_skills(field: str, wanted: Sequence[call_pb2.SkillRequirement], known: Container[str]) -> None:
    """A skill that nobody can have is waited for in vain. Raises InvalidArgument, naming it."""
    for index, each in enumerate(wanted):
        if each.skill not in known:
            raise InvalidArgument(field=f"{field}[{index}].skill", why=f"there is no skill {each.skill!r}")


def call_facts(
    request: call_pb2.CallRequest,
    *,
    queue: str,
    number: str,
    home_region: str,
    extra: tuple[tuple[str, int], ...] = (),
    traceparent: str = "",
) -> model.CallFacts:
    """A call that `check_call` has let pass, which says the id of its `queue`. `number` is its E.164 form,
    already read; `extra` points of priority by where they come from (callers.py); `traceparent` the trace
    that its events shall belong to.
    """
    priority = whole("call.priority", request.priority, -100, 100)
    return model.CallFacts(
        call_id=request.call_id,
        queue=queue,
        channel=channel_of("call.channel", request.channel),
        caller_number=number,
        skills=requirements("call.skills", request.skills, SKILLS_MAX),
        priority=max(-100, min(100, priority + sum([value for _, value in extra]))) if extra else priority,
        priority_parts=extra,
        home_region=home_region,
        language=request.language,
        attributes=attributes("call.attributes", request.attributes),
        traceparent=traceparent,
        preferred_agent=parse_name("call.preferred_agent", "agents", request.preferred_agent)
        if request.preferred_agent
        else "",
        preferred_span_ms=preferred_span_ms(request),
    )


def preferred_span_ms(request: call_pb2.CallRequest) -> int:
    """How long the preferred agent is to be waited for; 0 for as long as the queue says."""
    if not request.HasField("preferred_agent_timeout"):
        return 0
    limit_ms = PREFERRED_AGENT_SECONDS_MAX * 1000
    return span_ms("call.preferred_agent_timeout", request.preferred_agent_timeout, maximum_ms=limit_ms)


def check_call(request: call_pb2.CallRequest) -> str:
    """What can be refused before anything is looked up; the queue's id. Raises InvalidArgument naming the
    field.
    """
    size = request.ByteSize()
    if size > CALL_BYTES_MAX:
        raise InvalidArgument(field="call", why=f"must be at most {CALL_BYTES_MAX} bytes, got {size}")
    check_id("call.call_id", request.call_id)
    whole("call.attempt", request.attempt, 0, ATTEMPT_MAX)
    if request.reopen_reason not in _REOPEN_REASONS:
        raise InvalidArgument(field="call.reopen_reason", why="is not a reason that this release knows")
    text("call.caller_number", request.caller_number, 64)
    # Where a language is spoken is remembered before the facts are made.
    text("call.language", request.language, LANGUAGE_CHARACTERS_MAX)
    if request.preferred_agent:
        parse_name("call.preferred_agent", "agents", request.preferred_agent)
    preferred_span_ms(request)
    return parse_name("call.queue", "queues", request.queue)


def attributes(field: str, values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Free context, sorted."""
    if not values:
        return ()
    if len(values) > model.CONTEXT_KEYS_MAX:
        raise InvalidArgument(field=field, why=f"must have at most {model.CONTEXT_KEYS_MAX} keys")
    for key, value in values.items():
        if not key.strip() or len(key) > ATTRIBUTE_KEY_CHARACTERS_MAX or "\x00" in key:
            limit = ATTRIBUTE_KEY_CHARACTERS_MAX
            raise InvalidArgument(
                field=field, why=f"a key must have 1 to {limit} characters, none of them NUL"
            )
        text(f"{field}[{key}]", value, CALL_BYTES_MAX)
    return tuple(sorted(values.items()))


def context(field: str, values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """As `attributes`, of a request whose size nobody has looked at: no more than one call may carry."""
    found = attributes(field, values)
    size = model.context_bytes(found)
    if size > model.CONTEXT_BYTES_MAX:
        why = f"must be at most {model.CONTEXT_BYTES_MAX} bytes, got {size}"
        raise InvalidArgument(field=field, why=why)
    return found


def version(attempt: int, move: int) -> common_pb2.CallVersion:
    return common_pb2.CallVersion(attempt=attempt, move=move)


# --- calls out --------------------------------------------------------------------------------------------


def call_message(view: model.CallView, shard: str) -> call_pb2.Call:
    """The Call resource."""
    facts = view.facts
    return call_pb2.Call(
        name=resource_name("calls", facts.call_id),
        call_id=facts.call_id,
        version=version(view.attempt, view.move),
        state=CALL_STATES[view.state],
        outcome=CALL_OUTCOMES[view.outcome] if view.outcome is not None else None,
        caller_number=facts.caller_number,
        channel=_CHANNEL_NUMBERS[facts.channel],
        queue=resource_name("queues", facts.queue),
        region=resource_name("regions", shard),
        home_region=resource_name("regions", facts.home_region) if facts.home_region else "",
        agent=resource_name("agents", view.agent) if view.agent else "",
        offer_id=view.offer_id,
        effective_arrival_time=timestamp(view.effective_ms),
        queue_time=timestamp(view.queued_ms),
        connect_time=timestamp(view.connected_ms),
        end_time=timestamp(view.ended_ms),
        detached=view.detached,
        priority=facts.priority,
        shard=shard,
        recording_uri=view.recording_uri,
        attributes=dict(facts.attributes),
        callback_number=view.callback_number,
        preferred_agent=resource_name("agents", view.preferred) if view.preferred else "",
        relaxation_step=view.step,
        transfers=view.transfers,
        end_reason=view.reason,
    )


def caller_events(update: Update, token: Any) -> list[routing_pb2.RouteCallEvent]:
    """What a caller's stream says of an update; `token(view, update)` makes a call's place token."""
    what = update.what
    if isinstance(what, Moved):
        moved = routing_pb2.RouteCallEvent.Moved(
            region=resource_name("regions", what.region), reason=what.reason
        )
        return [_caller_event(update, None, moved=moved)]
    view = what.call
    if view is None:
        return []
    if isinstance(what, Present):
        kind = _present_kind(view, update, token)
    else:
        kind = _event_kind(what.event, view, update, token)
    return [_caller_event(update, view, **kind)] if kind else []


def _caller_event(update: Update, view: model.CallView | None, **kind: Any) -> routing_pb2.RouteCallEvent:
    return routing_pb2.RouteCallEvent(
        shard=update.shard,
        epoch=update.epoch,
        sequence=update.sequence,
        durable=update.durable,
        version=version(view.attempt, view.move) if view is not None else None,
        event_time=timestamp(update.now_ms),
        **kind,
    )


def _event_kind(event: Any, view: model.CallView, update: Update, token: Any) -> dict[str, Any]:
    match event:
        case model.CallQueued() | model.CallAttached() | model.CallResumed() | model.CallReprioritized():
            return (
                _present_kind(view, update, token)
                if view.state is not model.CallState.OFFERED
                else {"queued": _queued(view, update, token)}
            )
        case model.PositionChanged():
            queued = _queued(view, update, token)
            queued.position = event.position
            if event.expected_wait_span_ms >= 0:
                queued.expected_wait.CopyFrom(duration(event.expected_wait_span_ms))
            return {"queued": queued}
        case model.CallOffered():
            return {
                "offered": routing_pb2.RouteCallEvent.Offered(
                    offer_id=event.offer_id,
                    agent=resource_name("agents", event.agent),
                    expire_time=timestamp(event.until_ms),
                )
            }
        case model.OfferAccepted():
            return {
                "accepted": routing_pb2.RouteCallEvent.Accepted(
                    offer_id=event.offer_id,
                    agent=resource_name("agents", event.agent),
                    expire_time=timestamp(event.until_ms),
                )
            }
        case model.OfferEnded():
            outcome = OFFER_OUTCOMES[event.outcome]
            return {
                "offer_ended": routing_pb2.RouteCallEvent.OfferEnded(offer_id=event.offer_id, outcome=outcome)
            }
        case model.CallConnected():
            return {"connected": _connected(view, update, token)}
        case model.CallTransferred():
            return {"transferred": _transferred(event, view, update, token)}
        case model.CallbackRequested():
            return {"callback_scheduled": _callback(view, event.not_before_ms)}
        case model.CallMonitored():
            return {
                "monitored": routing_pb2.RouteCallEvent.Monitored(
                    mode=event.mode.name, supervisor_address=event.address
                )
            }
        case model.CallEnded() if event.outcome is not model.CallOutcome.MOVED:
            return {"ended": _ended(view)}
    return {}


def _present_kind(view: model.CallView, update: Update, token: Any) -> dict[str, Any]:
    """The present state as an event."""
    agent = resource_name("agents", view.agent) if view.agent else ""
    until = timestamp(view.offer_until_ms)
    if view.called_back:
        return {"callback_scheduled": _callback(view, view.callback_ms)}
    match view.state:
        case model.CallState.WAITING | model.CallState.OVERFLOWING:
            return {"queued": _queued(view, update, token)}
        case model.CallState.OFFERED:
            return {
                "offered": routing_pb2.RouteCallEvent.Offered(
                    offer_id=view.offer_id, agent=agent, expire_time=until
                )
            }
        case model.CallState.ACCEPTED:
            return {
                "accepted": routing_pb2.RouteCallEvent.Accepted(
                    offer_id=view.offer_id, agent=agent, expire_time=until
                )
            }
        case model.CallState.CONNECTED:
            return {"connected": _connected(view, update, token)}
        case model.CallState.ENDED:
            return {"ended": _ended(view)}


def _queued(view: model.CallView, update: Update, token: Any) -> routing_pb2.RouteCallEvent.Queued:
    wait = view.expected_wait_span_ms
    return routing_pb2.RouteCallEvent.Queued(
        position=view.position,
        expected_wait=duration(wait) if wait >= 0 else None,
        region=resource_name("regions", update.shard),
        place_token=token(view, update),
        home_region=resource_name("regions", view.facts.home_region) if view.facts.home_region else "",
        queue=resource_name("queues", view.facts.queue),
    )


def _transferred(
    event: model.CallTransferred, view: model.CallView, update: Update, token: Any
) -> routing_pb2.RouteCallEvent.Transferred:
    return routing_pb2.RouteCallEvent.Transferred(
        from_agent=resource_name("agents", event.agent),
        queue=resource_name("queues", event.facts.queue),
        to_agent=resource_name("agents", event.to_agent) if event.to_agent else "",
        place_token=token(view, update),
    )


def _callback(view: model.CallView, not_before_ms: int) -> routing_pb2.RouteCallEvent.CallbackScheduled:
    return routing_pb2.RouteCallEvent.CallbackScheduled(
        number=view.callback_number,
        not_before_time=timestamp(not_before_ms),
        position=view.position,
    )


def _connected(view: model.CallView, update: Update, token: Any) -> routing_pb2.RouteCallEvent.Connected:
    return routing_pb2.RouteCallEvent.Connected(
        offer_id=view.offer_id,
        agent=resource_name("agents", view.agent),
        agent_address=view.agent_address,
        place_token=token(view, update),
    )


def _ended(view: model.CallView) -> routing_pb2.RouteCallEvent.Ended:
    return routing_pb2.RouteCallEvent.Ended(
        outcome=CALL_OUTCOMES[view.outcome] if view.outcome is not None else None, reason=view.reason
    )


# --- agents -----------------------------------------------------------------------------------------------


def desk_of(command: agent_pb2.AgentCommand, region: str) -> Desk:
    """The session that an `open` command asks for."""
    opening = command.open
    wanted = presence("open.state", opening.state)
    return Desk(
        agent=parse_name("open.agent", "agents", opening.agent),
        session=whole("open.session", opening.session, 1, INT64_MAX),
        command=whole("command", command.command, 1, INT64_MAX),
        region=region,
        presence=wanted,
        pause_reason=pause_reason("open.pause_reason", opening.pause_reason, wanted),
        calls_held=calls_held(opening.calls_held),
    )


def calls_held(ids: Iterable[str]) -> tuple[str, ...]:
    """Ids of calls that a desktop says it holds."""
    held: set[str] = set()
    for index, call_id in enumerate(ids):
        if index >= CALLS_HELD_MAX:
            raise InvalidArgument(field="open.calls_held", why=f"must have at most {CALLS_HELD_MAX} calls")
        held.add(check_id(f"open.calls_held[{index}]", call_id))
    return tuple(sorted(held))


def presence(field: str, state: int) -> model.Presence:
    """AVAILABLE or PAUSED; available when not said."""
    if state not in _PRESENCE:
        raise InvalidArgument(field=field, why="must be AGENT_STATE_AVAILABLE or AGENT_STATE_PAUSED")
    return _PRESENCE[state]


def pause_reason(field: str, reason: str, wanted: model.Presence) -> str:
    """Why an agent is paused. Who is ready has none, whatever a desktop keeps saying."""
    checked = text(field, reason, 64)
    return checked if wanted is model.Presence.PAUSED else ""


def agent_command(command: agent_pb2.AgentCommand, desk: Desk) -> model.Command | None:
    """The engine's command of a desktop's; None for `close`. Raises InvalidArgument naming the field."""
    number = whole("command", command.command, 1, INT64_MAX)
    who: dict[str, Any] = {"agent": desk.agent, "session": desk.session}
    match command.WhichOneof("kind"):
        case "set_state":
            wanted = presence("set_state.state", command.set_state.state)
            return model.SetPresence(
                **who,
                command=number,
                presence=wanted,
                pause_reason=pause_reason("set_state.pause_reason", command.set_state.pause_reason, wanted),
            )
        case "accept":
            return model.AcceptOffer(
                **who, offer_id=check_id("accept.offer_id", command.accept.offer_id, 200)
            )
        case "decline":
            return model.DeclineOffer(
                **who,
                offer_id=check_id("decline.offer_id", command.decline.offer_id, 200),
                reason=text("decline.reason", command.decline.reason, 64),
            )
        case "end_conversation":
            call_id = check_id("end_conversation.call_id", command.end_conversation.call_id)
            return model.EndCall(call_id=call_id, agent=desk.agent)
        case "wrap_up":
            return model.FinishWrapUp(
                **who,
                call_id=check_id("wrap_up.call_id", command.wrap_up.call_id),
                disposition=disposition("wrap_up.disposition", command.wrap_up),
            )
        case "close":
            return None
        case "open":
            raise InvalidArgument(field="open", why="is only the first command of a stream")
    raise InvalidArgument(field="kind", why="must be set")


def disposition(field: str, wrap_up: agent_pb2.AgentCommand.WrapUp) -> model.Disposition | None:
    """What came of a contact; None when the agent says nothing."""
    if not wrap_up.HasField("disposition"):
        return None
    said = wrap_up.disposition
    return model.Disposition(
        code=text(f"{field}.code", said.code, 64, required=True),
        resolved=said.resolved,
        contact_reason=text(f"{field}.contact_reason", said.contact_reason, 200),
        notes=text(f"{field}.notes", said.notes, TEXT_CHARACTERS_MAX),
        ticket=_ticket(f"{field}.ticket", said.ticket) if said.HasField("ticket") else None,
        follow_up_ms=moment_ms(f"{field}.follow_up_time", said.follow_up_time)
        if said.HasField("follow_up_time")
        else 0,
        wants_to_leave=said.wants_to_leave,
    )


def _ticket(field: str, wish: call_pb2.TicketRequest) -> model.TicketWish:
    if wish.priority not in ("", "low", "normal", "high", "urgent"):
        raise InvalidArgument(field=f"{field}.priority", why="must be low, normal, high or urgent")
    return model.TicketWish(
        kind=check_id(f"{field}.kind", wish.kind, max_length=63),
        subject=text(f"{field}.subject", wish.subject, 200, required=True),
        priority=wish.priority,
        category=text(f"{field}.category", wish.category, 100),
        description=text(f"{field}.description", wish.description, TEXT_CHARACTERS_MAX),
    )


def moment_ms(field: str, value: Timestamp) -> int:
    """A point in time as milliseconds since 1970. Raises InvalidArgument."""
    try:
        return to_ms(value.ToDatetime(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise InvalidArgument(field=field, why="is not a point in time") from None


def disposition_message(said: model.Disposition) -> call_pb2.Disposition:
    """For events."""
    ticket = said.ticket
    return call_pb2.Disposition(
        code=said.code,
        resolved=said.resolved,
        contact_reason=said.contact_reason,
        notes=said.notes,
        ticket=call_pb2.TicketRequest(
            kind=ticket.kind,
            subject=ticket.subject,
            priority=ticket.priority,
            category=ticket.category,
            description=ticket.description,
        )
        if ticket is not None
        else None,
        follow_up_time=timestamp(said.follow_up_ms),
        wants_to_leave=said.wants_to_leave,
    )


def status_message(view: model.AgentView, region: str) -> agent_pb2.AgentStatus:
    """An agent's live state."""
    return agent_pb2.AgentStatus(
        agent=resource_name("agents", view.agent),
        state=AGENT_STATES[view.state],
        pause_reason=view.pause_reason,
        session=view.session,
        command=view.command,
        calls_held=view.calls,
        offers_held=view.offers,
        state_time=timestamp(view.since_ms),
        region=resource_name("regions", region),
        capacity=dict(view.capacity),
        load=min(1.0, (len(view.calls) + len(view.offers)) / max(1, sum(n for _, n in view.capacity))),
        channels=[_CHANNEL_NUMBERS[name] for name, _ in view.capacity if name in _CHANNEL_NUMBERS],
        draining=view.draining,
    )


def agent_events(update: Update) -> list[agent_pb2.AgentEvent]:
    """What a desktop is told of an update."""
    what = update.what
    if isinstance(what, Moved):
        return []
    if isinstance(what, Present):
        call = what.call
        if call is None:
            return []
        if call.state is model.CallState.OFFERED:
            return [_agent_event(update, offer=_ringing(call, update.shard))]
        return [_agent_event(update, connected=_connected_to(call, update.shard))]
    kind = _agent_kind(what, update.shard)
    return [_agent_event(update, **kind)] if kind else []


def _connected_to(view: model.CallView, shard: str) -> agent_pb2.AgentEvent.CallConnected:
    return agent_pb2.AgentEvent.CallConnected(call=call_message(view, shard), offer_id=view.offer_id)


def _ringing(view: model.CallView, shard: str) -> agent_pb2.AgentEvent.Offer:
    return agent_pb2.AgentEvent.Offer(
        offer_id=view.offer_id, call=call_message(view, shard), expire_time=timestamp(view.offer_until_ms)
    )


def _agent_kind(fact: model.Fact, shard: str) -> dict[str, Any]:
    event, call, agent = fact.event, fact.call, fact.agent
    match event:
        case model.CallOffered() if call is not None:
            return {
                "offer": agent_pb2.AgentEvent.Offer(
                    offer_id=event.offer_id,
                    call=call_message(call, shard),
                    expire_time=timestamp(event.until_ms),
                )
            }
        case model.OfferEnded():
            outcome = OFFER_OUTCOMES[event.outcome]
            return {"offer_gone": agent_pb2.AgentEvent.OfferGone(offer_id=event.offer_id, outcome=outcome)}
        case model.CallConnected() if call is not None:
            return {"connected": _connected_to(call, shard)}
        case model.CallTransferred():
            return {
                "ended": agent_pb2.AgentEvent.CallEnded(
                    call_id=event.facts.call_id,
                    outcome=CALL_OUTCOMES[model.CallOutcome.COMPLETED],
                    wrap_up_expire_time=timestamp(event.wrap_up_until_ms),
                )
            }
        case model.CallEnded():
            return {
                "ended": agent_pb2.AgentEvent.CallEnded(
                    call_id=event.call_id,
                    outcome=CALL_OUTCOMES[event.outcome],
                    wrap_up_expire_time=timestamp(event.wrap_up_until_ms),
                )
            }
    return {"status": status_message(agent, shard)} if agent is not None else {}


def _agent_event(update: Update, **kind: Any) -> agent_pb2.AgentEvent:
    return agent_pb2.AgentEvent(
        shard=update.shard,
        epoch=update.epoch,
        sequence=update.sequence,
        durable=update.durable,
        event_time=timestamp(update.now_ms),
        **kind,
    )


def moment(ms: int) -> datetime:
    """Milliseconds since 1970 as a UTC datetime."""
    return from_ms(ms)
