"""A policy as JSON: what `callmesh simulate` is asked to try, checked and turned into a
`routing.whatif.Policy`.

    {"scale": 1.1,                                     or "agents": 14, or "shifts": [...], or none of them
     "remove": ["ann"],
     "add": [{"agent": "new-1", "from": "09:00", "until": "17:30", "skills": {"english": 3}, "site": "here"}],
     "skills": {"bob": {"english": 4}},
     "queues": {"service": {"strategy": "best_proficiency", "service_level_seconds": 20}},
     "share": true, "ring_seconds": 4}

Staff comes first (as it was, `agents` all day long, `scale` times the day's, or just these `shifts`), then
`remove`, `add` and `skills`. Clock times are the day's; past midnight the hours go on ("26:00").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import msgspec

from chassis.errors import InvalidArgument
from routing.model import AgentConfig, QueueConfig, Strategy
from routing.virtual import HERE, Duty
from routing.whatif import AGENTS_MAX, Past, Policy, apply, constant_staff, scaled_staff

#: Largest policy file that is read.
POLICY_BYTES_MAX = 4 << 20
#: Last clock time of a day: conversations and shifts may run on after midnight.
HOURS_MAX = 48
_DAY_SECONDS = 86_400
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)")
_PLACE = re.compile(r"(.*?) - at `\$\.?(.*)`", re.S)

Seconds = Annotated[float, msgspec.Meta(ge=0, le=_DAY_SECONDS)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Level = Annotated[int, msgspec.Meta(ge=1, le=5)]
Skills = dict[Name, Level]


class QueueChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A queue's rules; what is left out stays as it was."""

    strategy: Strategy | None = None
    weight: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    length_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    refuse_without_agents: bool | None = None
    skills: Skills | None = None
    service_level_seconds: Seconds | None = None
    short_abandon_seconds: Seconds | None = None
    priority_credit_seconds: Seconds | None = None
    wrap_up_seconds: Seconds | None = None
    wait_max_seconds: Seconds | None = None
    overflow_seconds: Seconds | None = None


class Shift(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An agent at work from one clock time to another."""

    agent: Name
    start: str = msgspec.field(name="from")
    until: str
    skills: Skills | None = None
    site: Name | None = None


class PolicyFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    agents: Annotated[int, msgspec.Meta(ge=1, le=AGENTS_MAX)] | None = None
    scale: Annotated[float, msgspec.Meta(ge=0.1, le=10)] | None = None
    shifts: list[Shift] | None = None
    remove: list[Name] = []
    add: list[Shift] = []
    skills: dict[Name, Skills] = {}
    queues: dict[Name, QueueChange] = {}
    share: bool | None = None
    ring_seconds: Seconds | None = None


#: Field of a change to the field of a queue, where it is a span.
_SPANS = {
    "service_level_seconds": "service_level_span_ms",
    "short_abandon_seconds": "short_abandon_span_ms",
    "priority_credit_seconds": "priority_credit_span_ms",
    "wrap_up_seconds": "wrap_up_span_ms",
    "wait_max_seconds": "wait_span_max_ms",
    "overflow_seconds": "overflow_span_ms",
}


def parse(raw: bytes) -> PolicyFile:
    """A policy file's bytes. Raises InvalidArgument naming the field ("policy.queues[...].weight")."""
    if len(raw) > POLICY_BYTES_MAX:
        raise InvalidArgument(field="policy", why=f"must be at most {POLICY_BYTES_MAX} bytes")
    try:
        read = msgspec.json.decode(raw, type=PolicyFile)
    except msgspec.ValidationError as error:
        at = _PLACE.fullmatch(str(error))
        why, place = (at[1], f"policy.{at[2]}") if at else (str(error), "policy")
        if why.startswith("Invalid enum value"):
            why = f"must be one of {', '.join(Strategy)}, got {why.rpartition(' ')[2]}"
        raise InvalidArgument(field=place, why=why) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(field="policy", why=f"is no JSON: {error}") from None
    chosen = [name for name in ("agents", "scale", "shifts") if getattr(read, name) is not None]
    if len(chosen) > 1:
        raise InvalidArgument(field=f"policy.{chosen[1]}", why=f"cannot be given together with {chosen[0]}")
    return read


def policy_for(past: Past, read: PolicyFile) -> Policy:
    """The policy for a day. Raises InvalidArgument naming the field that does not fit the day."""
    policy = _staff(past, read)
    roster = apply(past.roster, policy)
    agents = {agent.id: agent for agent in roster.agents}
    duties = list(roster.duties)
    sites = dict(roster.sites)
    for index, name in enumerate(read.remove):
        if agents.pop(name, None) is None:
            raise InvalidArgument(field=f"policy.remove[{index}]", why=f"names {name!r}, who was not at work")
    duties = [duty for duty in duties if duty.agent in agents]
    for index, shift in enumerate(read.add):
        _add(f"policy.add[{index}]", shift, past, agents, duties, sites)
    for name, skills in read.skills.items():
        if name not in agents:
            raise InvalidArgument(field=f"policy.skills[{name!r}]", why="names nobody who is at work")
        agents[name] = replace(agents[name], skills=_pairs(skills))
    return Policy(
        queues=_queues(past, read.queues),
        agents=tuple(agents.values()),
        duties=tuple(duties),
        sites=sites,
        share=read.share,
        ring_ms=None if read.ring_seconds is None else round(read.ring_seconds * 1000),
    )


def _staff(past: Past, read: PolicyFile) -> Policy:
    if read.agents is not None:
        return constant_staff(past, read.agents)
    if read.scale is not None:
        return scaled_staff(past, read.scale)
    if read.shifts is None:
        return Policy()
    known = {agent.id: agent for agent in past.roster.agents}
    agents: dict[str, AgentConfig] = {}
    duties: list[Duty] = []
    sites = dict(past.roster.sites)
    for index, shift in enumerate(read.shifts):
        if shift.agent in known:
            agents.setdefault(shift.agent, known[shift.agent])
        _add(f"policy.shifts[{index}]", shift, past, agents, duties, sites)
    return Policy(agents=tuple(agents.values()), duties=tuple(duties), sites=sites)


def _add(
    field: str,
    shift: Shift,
    past: Past,
    agents: dict[str, AgentConfig],
    duties: list[Duty],
    sites: dict[str, str],
) -> None:
    """Adds a shift; an agent who is new can do what is said, else all that the day's agents can."""
    start_ms = past.origin_ms + _clock_ms(f"{field}.from", shift.start)
    end_ms = past.origin_ms + _clock_ms(f"{field}.until", shift.until)
    if end_ms <= start_ms:
        raise InvalidArgument(field=f"{field}.until", why="must be later than from")
    mine = [duty for duty in duties if duty.agent == shift.agent]
    if any(duty.start_ms < end_ms and start_ms < duty.end_ms for duty in mine):
        raise InvalidArgument(field=field, why=f"overlaps another shift of {shift.agent!r}")
    places = {*past.roster.sites.values(), *(seen.contact.home for seen in past.seen)} or {HERE}
    if shift.site is not None and shift.site not in places:
        raise InvalidArgument(field=f"{field}.site", why=f"is none of the day's: {', '.join(sorted(places))}")
    if shift.agent not in agents:
        skills = _pairs(shift.skills) if shift.skills is not None else _all_skills(past)
        agents[shift.agent] = AgentConfig(id=shift.agent, skills=skills)
        sites[shift.agent] = shift.site or min(places)
    elif shift.skills is not None:
        agents[shift.agent] = replace(agents[shift.agent], skills=_pairs(shift.skills))
    duties.append(Duty(agent=shift.agent, start_ms=start_ms, end_ms=end_ms))


def _clock_ms(field: str, text: str) -> int:
    match = _CLOCK.fullmatch(text)
    if match is None or int(match[1]) * 60 + int(match[2]) > HOURS_MAX * 60:
        raise InvalidArgument(field=field, why=f'must be a clock time such as "09:30", got {text[:32]!r}')
    return (int(match[1]) * 60 + int(match[2])) * 60_000


def _pairs(skills: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(skills.items()))


def _all_skills(past: Past) -> tuple[tuple[str, int], ...]:
    best: dict[str, int] = {}
    for agent in past.roster.agents:
        for skill, level in agent.skills:
            best[skill] = max(level, best.get(skill, 0))
    return _pairs(best)


def _queues(past: Past, changes: Mapping[str, QueueChange]) -> tuple[QueueConfig, ...] | None:
    known = {queue.id: queue for queue in past.roster.queues}
    changed = []
    for name, change in changes.items():
        if name not in known:
            raise InvalidArgument(
                field=f"policy.queues[{name!r}]", why=f"is none of the day's: {', '.join(sorted(known))}"
            )
        said = {f: getattr(change, f) for f in change.__struct_fields__ if getattr(change, f) is not None}
        values = {_SPANS.get(f, f): round(v * 1000) if f in _SPANS else v for f, v in said.items()}
        if "skills" in values:
            values["skills"] = _pairs(values["skills"])
        changed.append(replace(known[name], **values))
    return tuple(changed) or None
