"""Proto <-> model of what tickets go by: flows, policies, calendars, teams. Message stubs only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from callmesh.tickets.v1 import flow_pb2, sla_pb2, team_pb2
from chassis.errors import InvalidArgument
from chassis.ids import parse_name
from tickets import calendars, convert, flows, workdays
from tickets.calendars import Calendar, Window
from tickets.model import (
    Effect,
    Flow,
    Kind,
    Level,
    Member,
    Phase,
    Policy,
    Team,
    Transition,
)
from tickets.validation import label_problem, line_problem

#: Most members of a team, skills of one, and open tickets that one may be bound to.
MEMBERS_MAX, MEMBER_SKILLS_MAX, OPEN_TICKETS_MAX = 500, 64, 10_000
#: Most escalation levels of a policy, and identities that one tells.
LEVELS_MAX, NOTIFY_MAX = 16, 32
#: Most values of each of a policy's conditions.
CONDITION_VALUES_MAX = 64
#: Longest target: a year.
TARGET_SECONDS_MAX = 366 * 86_400

#: (field, what is wrong).
Problem = tuple[str, str]

_PHASE_OF = {number: phase for phase, number in convert.PHASES.items()}
_KIND_OF = {number: kind for kind, number in convert.KINDS.items()}
_PRIORITY_OF = {number: priority for priority, number in convert.PRIORITIES.items()}
#: What verdicts' ids do, in an operator's own return-visit flow as in the shipped one.
_EFFECTS = {
    "satisfied": Effect.SATISFIED,
    "dissatisfied": Effect.DISSATISFIED,
    "give_up": Effect.UNREACHED,
}


def _ms(duration: Any) -> int:
    return int(duration.seconds * 1000 + duration.nanos // 1_000_000)


# ---- flows


def flow_to_proto(flow: Flow) -> flow_pb2.Flow:
    """A shipped flow as clients see it."""
    return flow_pb2.Flow(
        name=f"flows/{flow.id}",
        display_name=flow.title or flow.id.replace("_", " ").capitalize(),
        kind=convert.KINDS[flow.kind],
        default_flow=True,
        shipped=True,
        initial_state=flow.initial,
        states=[
            flow_pb2.FlowState(state=state, display_name=state.replace("_", " "), phase=convert.PHASES[phase])
            for state, phase in flow.states.items()
        ],
        transitions=[
            flow_pb2.FlowTransition(
                transition=row.verb,
                from_states=sorted(row.sources),
                to_state=row.target,
                roles=sorted(row.roles),
                required_fields=sorted(row.requires),
                display_name=row.verb.replace("_", " "),
            )
            for row in flow.transitions
        ],
        follow_up=flow_pb2.FollowUpRule(flow="flows/return_visit", share=1.0) if flow.follow_up else None,
        version=flow.version,
    )


def read_flow(message: flow_pb2.Flow, id: str, version: int) -> Flow:
    """An operator's flow; InvalidArgument for enums and names that are none. Its table is for
    `flows.problems_of`."""
    if message.kind not in _KIND_OF:
        raise InvalidArgument(field="flow.kind", why="must be one of TicketKind, and not unspecified")
    kind = _KIND_OF[message.kind]
    rule = message.follow_up
    visits = message.HasField("follow_up")
    return Flow(
        id=id,
        kind=kind,
        initial=message.initial_state,
        states={one.state: _phase(one) for one in message.states},
        transitions=tuple(_transition(row, kind) for row in message.transitions),
        follow_up=visits,
        follow_up_delay_ms=_ms(rule.delay) if visits and rule.HasField("delay") else None,
        follow_up_flow=parse_name("flow.follow_up.flow", "flows", rule.flow) if rule.flow else "return_visit",
        follow_up_share=rule.share or 1.0,
        silent_ms=_ms(message.silent_assignee_limit) if message.HasField("silent_assignee_limit") else None,
        team=convert.read_optional_name("flow.initial_team", "teams", message.initial_team),
        state_teams={
            one.state: convert.read_optional_name(f"flow.states[{index}].team", "teams", one.team)
            for index, one in enumerate(message.states)
            if one.team
        },
        version=version,
        title=message.display_name,
        default=message.default_flow,
        shipped=False,
    )


def _phase(state: flow_pb2.FlowState) -> Phase:
    if state.phase not in _PHASE_OF:
        raise InvalidArgument(field="flow.states", why=f"state {state.state[:64]!r} has no phase")
    return _PHASE_OF[state.phase]


def _transition(row: flow_pb2.FlowTransition, kind: Kind) -> Transition:
    return Transition(
        verb=row.transition,
        sources=frozenset(row.from_states),
        target=row.to_state,
        requires=frozenset(row.required_fields),
        roles=frozenset(row.roles),
        effect=_EFFECTS.get(row.transition, Effect.NONE) if kind is Kind.RETURN_VISIT else Effect.NONE,
    )


def flow_problems(message: flow_pb2.Flow) -> list[flow_pb2.FlowProblem]:
    """What makes a flow unsound, in the API's words; InvalidArgument for what cannot even be read."""
    flow = read_flow(message, "checked", 1)
    found = [line.partition(": ") for line in (*flows.problems_of(flow), *flows.demanding(flow))]
    names = [one.state for one in message.states]
    found += [("AMBIGUOUS_STATE", ": ", name) for name in sorted({n for n in names if names.count(n) > 1})]
    if flow.follow_up and flow.kind is Kind.RETURN_VISIT:
        found.append(("BAD_FOLLOW_UP", ": ", "follow_up: a return visit is not visited itself"))
    visit = message.follow_up.flow
    if visit and (target := flows.find_flow(visit.removeprefix("flows/"))) is None:
        found.append(("UNKNOWN_FLOW", ": ", f"{visit[:96]} of the follow-up does not exist"))
    elif visit and target is not None and target.kind is not Kind.RETURN_VISIT:
        found.append(("UNKNOWN_FLOW", ": ", f"{visit[:96]} of the follow-up is for another kind"))
    limit = message.silent_assignee_limit
    # none at all would take every ticket from everybody at once, again and again
    if message.HasField("silent_assignee_limit") and not 1 <= limit.seconds <= TARGET_SECONDS_MAX:
        found.append(
            ("BAD_DURATION", ": ", f"silent_assignee_limit must be 1 to {TARGET_SECONDS_MAX} s, or unset")
        )
    if not 0 <= message.follow_up.delay.seconds <= TARGET_SECONDS_MAX:
        found.append(("BAD_DURATION", ": ", f"delay must be 0 to {TARGET_SECONDS_MAX} s"))
    return [
        flow_pb2.FlowProblem(subject=_subject_of(text), problem=problem, message=f"{problem}: {text}")
        for problem, _, text in found
    ]


def _subject_of(text: str) -> str:
    """The state or transition that a problem's text begins with, or names last."""
    words = re.findall(r"[a-z][a-z0-9_]*", text)
    return words[-1] if text.startswith("the initial") and words else (words[0] if words else "")


# ---- calendars


def _windows(windows: Iterable[sla_pb2.WorkWindow]) -> tuple[Window, ...]:
    return tuple(sorted((window.start_minute, window.end_minute) for window in windows))


def _special_day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        return None


def read_calendar(message: sla_pb2.Calendar, id: str, year: int) -> Calendar:
    """A calendar that `calendar_problems` has nothing to say against; `year` is the present one."""
    holidays, moved = (
        workdays.public_days(message.holiday_country, year) if message.holiday_country else ({}, ())
    )
    days = {_special_day(day.date): _windows(day.windows) for day in message.special_days}
    return Calendar(
        id=id,
        zone=message.time_zone,
        week=tuple(_windows(w for w in message.windows if w.weekday == weekday) for weekday in range(1, 8)),
        holidays=holidays,
        moved=frozenset(moved),
        special={day: windows for day, windows in days.items() if day is not None},
    )


def calendar_problems(message: sla_pb2.Calendar) -> list[Problem]:
    """What is wrong with a calendar."""
    found: list[Problem] = []
    if problem := line_problem(message.display_name, 200):
        found.append(("display_name", problem))
    if not _zone_exists(message.time_zone):
        found.append(("time_zone", f"{message.time_zone[:64]!r} is not an IANA zone"))
    country = message.holiday_country
    if country and not workdays.is_known(country):
        found.append(("holiday_country", f"{country[:16]!r} is not a country whose holidays are known"))
    if any(not 1 <= window.weekday <= 7 for window in message.windows):
        found.append(("windows", "weekday must be 1 (Monday) to 7 (Sunday)"))
    if len(message.windows) > 7 * calendars.WINDOWS_MAX:
        found.append(("windows", f"at most {calendars.WINDOWS_MAX} windows a day are allowed"))
    if len(message.special_days) > calendars.SPECIAL_DAYS_MAX:
        found.append(("special_days", f"at most {calendars.SPECIAL_DAYS_MAX} are allowed"))
    dates = [day.date for day in message.special_days]
    found += [
        ("special_days", f"{day[:16]!r} is not an ISO date") for day in dates if _special_day(day) is None
    ]
    if len(set(dates)) < len(dates):
        found.append(("special_days", "holds a date twice"))
    if not found:
        found += calendars.problems_of(read_calendar(message, "checked", 2026))
    return found


def _zone_exists(name: str) -> bool:
    try:
        return bool(name) and ZoneInfo(name) is not None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False


# ---- policies


def read_policy(message: sla_pb2.SlaPolicy, id: str, calendar: str) -> Policy:
    """A policy that `policy_problems` has nothing to say against; `calendar` is `{calendar}@{version}`."""

    def target(name: str) -> int | None:
        return _ms(getattr(message, name)) if message.HasField(name) else None

    levels = sorted(message.escalations, key=lambda level: (_ms(level.offset), level.level))
    return Policy(
        id=id,
        order=message.order,
        calendar=calendar,
        kinds=frozenset(_KIND_OF[kind] for kind in message.kinds),
        priorities=frozenset(_PRIORITY_OF[priority] for priority in message.priorities),
        tiers=frozenset(tier.lower() for tier in message.customer_tiers),
        categories=frozenset(message.categories),
        first_response_ms=target("first_response_target"),
        next_response_ms=target("next_response_target"),
        resolution_ms=target("resolution_target"),
        pausing=tuple(message.pausing_states),
        levels=tuple(_level(level) for level in levels),
    )


def _level(message: sla_pb2.EscalationLevel) -> Level:
    return Level(
        level=message.level,
        offset_ms=_ms(message.offset),
        team=message.team.removeprefix("teams/"),
        priority=_PRIORITY_OF.get(message.priority),
        notify=tuple(message.notify),
    )


def policy_problems(message: sla_pb2.SlaPolicy) -> list[Problem]:
    """What is wrong with a policy, but for whether its calendar exists."""
    found: list[Problem] = []
    if problem := line_problem(message.display_name, 200):
        found.append(("display_name", problem))
    if not message.calendar:
        found.append(("calendar", "is required: a service level needs to know whose working time counts"))
    found += [("kinds", "must be of TicketKind") for kind in message.kinds if kind not in _KIND_OF]
    found += [("priorities", "must be of Priority") for one in message.priorities if one not in _PRIORITY_OF]
    for name in ("kinds", "priorities", "customer_tiers", "categories", "pausing_states"):
        values = list(getattr(message, name))
        if len(values) > CONDITION_VALUES_MAX:
            found.append((name, f"at most {CONDITION_VALUES_MAX} are allowed"))
        elif name not in ("kinds", "priorities"):
            found += [(name, problem) for value in values if (problem := label_problem(value))]
    targets = [
        n
        for n in ("first_response_target", "next_response_target", "resolution_target")
        if message.HasField(n)
    ]
    for name in targets:
        if not 0 < _ms(getattr(message, name)) <= TARGET_SECONDS_MAX * 1000:
            found.append((name, f"must be more than 0 and at most {TARGET_SECONDS_MAX} s"))
    if not targets:
        found.append(("resolution_target", "at least one target is required"))
    return found + _level_problems(message)


def _level_problems(message: sla_pb2.SlaPolicy) -> list[Problem]:
    levels = list(message.escalations)
    if len(levels) > LEVELS_MAX:
        return [("escalations", f"at most {LEVELS_MAX} are allowed")]
    found: list[Problem] = []
    if levels and not message.HasField("resolution_target"):
        found.append(("escalations", "need a resolution_target that they are counted from"))
    in_order = sorted(levels, key=lambda level: _ms(level.offset))
    if [level.level for level in in_order] != list(range(1, len(levels) + 1)):
        found.append(("escalations", "must have levels 1, 2, 3 and so on by rising offset"))
    for index, level in enumerate(levels):
        name = f"escalations[{index}]"
        if abs(level.offset.seconds) > TARGET_SECONDS_MAX:
            found.append((f"{name}.offset", f"must be within {TARGET_SECONDS_MAX} s"))
        if level.team and not re.fullmatch(r"teams/[A-Za-z0-9._~:-]{1,128}", level.team):
            found.append((f"{name}.team", "must have the form teams/{team}"))
        if level.priority and level.priority not in _PRIORITY_OF:
            found.append((f"{name}.priority", "must be one of Priority"))
        if len(level.notify) > NOTIFY_MAX or any(line_problem(one, 128) or not one for one in level.notify):
            found.append((f"{name}.notify", f"must be at most {NOTIFY_MAX} identities"))
    return found


def teams_named(message: flow_pb2.Flow | sla_pb2.SlaPolicy) -> list[tuple[str, str]]:
    """(field, name) of every team that a flow or a policy names."""
    if isinstance(message, flow_pb2.Flow):
        states = ((f"states[{index}].team", state.team) for index, state in enumerate(message.states))
        found = [("initial_team", message.initial_team), *states]
    else:
        found = [(f"escalations[{index}].team", one.team) for index, one in enumerate(message.escalations)]
    return [(field, name) for field, name in found if name]


# ---- teams


def read_team(message: team_pb2.Team, id: str) -> Team:
    """A team that `team_problems` has nothing to say against."""
    members = (
        Member(
            agent=one.agent.removeprefix("agents/"),
            skills=frozenset(one.skills),
            open_max=one.open_tickets_max,
        )
        for one in message.members
    )
    return Team(id=id, members=tuple(members))


def team_problems(message: team_pb2.Team) -> list[Problem]:
    """What is wrong with a team."""
    found: list[Problem] = []
    if problem := line_problem(message.display_name, 200):
        found.append(("display_name", problem))
    if len(message.members) > MEMBERS_MAX:
        return [*found, ("members", f"at most {MEMBERS_MAX} are allowed")]
    agents = [one.agent for one in message.members]
    if len(set(agents)) < len(agents):
        found.append(("members", "holds an agent twice"))
    for index, one in enumerate(message.members):
        name = f"members[{index}]"
        if not re.fullmatch(r"agents/[A-Za-z0-9._~:-]{1,128}", one.agent):
            found.append((f"{name}.agent", "must have the form agents/{agent}"))
        if len(one.skills) > MEMBER_SKILLS_MAX or any(label_problem(skill) for skill in one.skills):
            found.append((f"{name}.skills", f"must be at most {MEMBER_SKILLS_MAX} skills' ids"))
        if not 0 <= one.open_tickets_max <= OPEN_TICKETS_MAX:
            found.append((f"{name}.open_tickets_max", f"must be 0 to {OPEN_TICKETS_MAX}"))
    return found
