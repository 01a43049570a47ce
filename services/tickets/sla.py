"""Service-level clocks: how long a ticket may take, how much of it is used, when it is due, and why.

Rules. The first of the operator's policies that matches a ticket gives targets in its calendar's working
time; where none matches, the shipped table does, in which every hour counts: the kind's duration, times the
priority's percent, times the tier's percent. A clock accumulates used time only while it runs, so it is due
when the calendar has let the rest pass; whatever changes the target, the calendar or stops the clock for a
while keeps the credit, a policy without such a target too. The first-response clock runs in phase NEW and
ends when it is left, or with the first public answer. The next-response clock runs from a customer's message
to the next public answer. The resolution clock runs in NEW and ACTIVE, pauses in WAITING and the policy's
pausing states, ends in RESOLVED, CLOSED and CANCELLED, and a reopening starts a new cycle of it: used time
stays, but at least a declared share of the target is left, so that nothing is overdue at the instant it is
reopened. A target passes once a cycle; a clock whose target passed stays BREACHED for that cycle whatever
comes. Warnings and escalation levels are alarms: functions of the running clocks, each told once a cycle, and
those that would be past at the instant of a reopening are passed over in that cycle, also where the ticket is
reopened into a pause or gets other targets afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from tickets.calendars import Calendar, add_ms, elapsed_ms
from tickets.model import (
    Alarm,
    Breached,
    ClockState,
    ClockType,
    Escalated,
    Kind,
    Level,
    Phase,
    Policy,
    Priority,
    Rules,
    Sla,
    SlaClock,
    SlaPolicy,
    SlaTarget,
    Warned,
)

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def _target(response_minutes: int, resolution_hours: int) -> SlaTarget:
    return SlaTarget(first_response_ms=response_minutes * MINUTE_MS, resolution_ms=resolution_hours * HOUR_MS)


#: What ships. Durations at normal priority, in business time.
DEFAULT_POLICY = SlaPolicy(
    id="default",
    targets=MappingProxyType(
        {
            Kind.INQUIRY: _target(60, 24),
            Kind.COMPLAINT: _target(30, 48),
            Kind.REPAIR: _target(60, 48),
            Kind.INSTALLATION: _target(120, 96),
            Kind.RETURN_VISIT: _target(240, 24),
            Kind.FEE_ORDER: _target(240, 72),
            Kind.PARTS_REQUEST: _target(120, 120),
            Kind.CARE: _target(480, 72),
            Kind.MARKET_SURVEY: _target(480, 168),
            Kind.OTHER: _target(120, 72),
        }
    ),
    priority_percent=MappingProxyType(
        {Priority.LOW: 200, Priority.NORMAL: 100, Priority.HIGH: 50, Priority.URGENT: 25}
    ),
    tier_percent=MappingProxyType({"silver": 90, "gold": 75, "platinum": 60, "vip": 50}),
    reopen_floor_percent=25,
)

#: Clocks that run, by phase.
_RESOLUTION_RUNS = frozenset({Phase.NEW, Phase.ACTIVE})


def problems_of(policy: SlaPolicy) -> list[str]:
    """What is wrong with a table of durations, one line each; empty for a sound one."""
    problems = [f"no target for kind {kind}" for kind in Kind if kind not in policy.targets]
    problems += [f"no percent for priority {p}" for p in Priority if p not in policy.priority_percent]
    for kind, target in policy.targets.items():
        if not 0 < target.first_response_ms <= target.resolution_ms:
            problems.append(f"{kind}: a first response must take some time, and no more than the resolution")
    percents = {str(name): percent for name, percent in policy.priority_percent.items()} | dict(
        policy.tier_percent
    )
    problems += [
        f"{name}: {percent} % is not 1 to 1000"
        for name, percent in percents.items()
        if not 0 < percent <= 1000
    ]
    if not 0 < policy.reopen_floor_percent <= 100:
        problems.append("the reopening floor must be 1 to 100 %")
    return problems


def _text(ms: int) -> str:
    """A duration for people: `1 h 30 min`."""
    seconds = ms // 1000
    parts = ((seconds // 3600, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def targets(
    policy: SlaPolicy, kind: Kind, priority: Priority, tier: str
) -> tuple[SlaTarget, str, tuple[str, ...]]:
    """The durations that apply, the name of the rule and how it came about."""
    base = policy.targets[kind]
    by_priority = policy.priority_percent[priority]
    by_tier = policy.tier_percent.get(tier, 100)

    def apply(ms: int) -> int:
        return max(1, ms * by_priority * by_tier // 10_000)

    result = SlaTarget(
        first_response_ms=apply(base.first_response_ms), resolution_ms=apply(base.resolution_ms)
    )
    said_tier = tier or "unknown"
    lines = (
        f"policy {policy.id}: {kind} allows {_text(base.first_response_ms)} to the first response "
        f"and {_text(base.resolution_ms)} to resolution",
        f"priority {priority}: {by_priority} %",
        f"customer tier {said_tier}: {by_tier} %",
        f"so {_text(result.first_response_ms)} to the first response "
        f"and {_text(result.resolution_ms)} to resolution",
    )
    return result, f"{kind}/{priority}/{said_tier}", lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What was found to apply to a ticket."""

    #: The policy's id.
    policy: str
    #: What of it matched, for people.
    rule: str
    #: `{calendar}@{version}`; empty: every hour counts.
    calendar: str
    #: Targets, ms; None: no such clock.
    first_response_ms: int | None
    next_response_ms: int | None
    resolution_ms: int | None
    pausing: tuple[str, ...]
    levels: tuple[Level, ...]
    #: How all this came about, one step a line.
    lines: tuple[str, ...]


#: What tells a ticket's policy: kind, priority, tier, category.
Facts = tuple[Kind, Priority, str, str]
#: What the clocks told.
Told = Breached | Warned | Escalated
#: A ticket's phase and state.
Place = tuple[Phase, str]


def _matches(policy: Policy, facts: Facts) -> bool:
    kind, priority, tier, category = facts
    return (
        (not policy.kinds or kind in policy.kinds)
        and (not policy.priorities or priority in policy.priorities)
        and (not policy.tiers or tier in policy.tiers)
        and (not policy.categories or category in policy.categories)
    )


def _own_terms(policy: Policy, facts: Facts) -> Terms:
    kind, priority, tier, category = facts
    named = (
        ("first response", policy.first_response_ms),
        ("next response", policy.next_response_ms),
        ("resolution", policy.resolution_ms),
    )
    said = ", ".join(f"{_text(ms)} to the {name}" for name, ms in named if ms is not None)
    lines = [
        f"policy {policy.id} (order {policy.order}) is the first that matches: kind {kind}, "
        f"priority {priority}, tier {tier or 'unknown'}, category {category or 'none'}",
        f"it allows {said or 'any time'}",
        f"only the working time of calendar {policy.calendar} counts",
    ]
    pauses = ", ".join(policy.pausing)
    lines.append(f"the clocks pause in phase waiting{f' and in {pauses}' if pauses else ''}")
    return Terms(
        policy=policy.id,
        rule=f"{kind}/{priority}/{tier or 'unknown'}",
        calendar=policy.calendar,
        first_response_ms=policy.first_response_ms,
        next_response_ms=policy.next_response_ms,
        resolution_ms=policy.resolution_ms,
        pausing=policy.pausing,
        levels=policy.levels,
        lines=tuple(lines),
    )


def terms(rules: Rules, facts: Facts) -> Terms:
    """What applies to a ticket of these facts."""
    for policy in rules.policies:
        if _matches(policy, facts):
            return _own_terms(policy, facts)
    kind, priority, tier, _ = facts
    target, rule, lines = targets(rules.sla, kind, priority, tier)
    return Terms(
        policy=rules.sla.id,
        rule=rule,
        calendar="",
        first_response_ms=target.first_response_ms,
        next_response_ms=None,
        resolution_ms=target.resolution_ms,
        pausing=(),
        levels=(),
        lines=lines,
    )


#: Lines of explanation that terms have; what happened since follows them.
_TERM_LINES = 4


def due_ms(clock: SlaClock | None) -> int | None:
    """When the target passes if nothing changes; None unless the clock runs and the target hasn't passed."""
    return clock.due_ms if clock is not None and clock.state is ClockState.RUNNING else None


def used_ms(clock: SlaClock, now: int, calendar: Calendar | None = None) -> int:
    """Time used up to `now`; a `now` before the latest change counts as that change's time."""
    since = clock.since_ms
    return clock.used_ms + (elapsed_ms(calendar, since, now) if since is not None else 0)


def calendar_of(sla: Sla, rules: Rules) -> Calendar | None:
    """The calendar that a ticket's clocks go by; None where every hour counts."""
    return rules.calendars.get(sla.calendar) if sla.calendar else None


# ---- what follows from the clocks


def _clocks(sla: Sla) -> Sequence[tuple[ClockType, SlaClock]]:
    found = [(ClockType.FIRST_RESPONSE, sla.first_response), (ClockType.RESOLUTION, sla.resolution)]
    if sla.next_response is not None:
        found.insert(1, (ClockType.NEXT_RESPONSE, sla.next_response))
    return found


def _with_clock(sla: Sla, kind: ClockType, clock: SlaClock) -> Sla:
    if kind is ClockType.FIRST_RESPONSE:
        return replace(sla, first_response=clock)
    return (
        replace(sla, next_response=clock)
        if kind is ClockType.NEXT_RESPONSE
        else replace(sla, resolution=clock)
    )


def _reaches(clock: SlaClock, working_ms: int, calendar: Calendar | None) -> int:
    """When a running clock will have used `working_ms`."""
    assert clock.since_ms is not None
    return add_ms(calendar, clock.since_ms, working_ms - clock.used_ms)


def _with_due(clock: SlaClock, calendar: Calendar | None) -> SlaClock:
    runs = clock.state is ClockState.RUNNING and clock.since_ms is not None
    due = _reaches(clock, clock.target_ms + clock.extra_ms, calendar) if runs else None
    return clock if due == clock.due_ms else replace(clock, due_ms=due)


def _alarms(sla: Sla, calendar: Calendar | None) -> tuple[Alarm, ...]:
    found = []
    if sla.warn_percent:
        for kind, clock in _clocks(sla):
            if clock.due_ms is not None and not clock.warned:
                allowed = clock.target_ms * sla.warn_percent // 100 + clock.extra_ms
                found.append(Alarm(at_ms=_reaches(clock, allowed, calendar), clock=kind))
    if sla.resolution.since_ms is not None:
        whole = sla.resolution.target_ms + sla.resolution.extra_ms
        for level in sla.levels[sla.levels_past :]:
            at = _reaches(sla.resolution, whole + level.offset_ms, calendar)
            found.append(Alarm(at_ms=at, clock=ClockType.RESOLUTION, level=level.level))
    return tuple(sorted(found, key=lambda alarm: (alarm.at_ms, alarm.level)))


def planned(sla: Sla, calendar: Calendar | None) -> Sla:
    """The clocks with their due times and alarms computed anew."""
    for kind, clock in _clocks(sla):
        timed = _with_due(clock, calendar)
        if timed is not clock:
            sla = _with_clock(sla, kind, timed)
    alarms = _alarms(sla, calendar)
    return sla if alarms == sla.alarms else replace(sla, alarms=alarms)


def _skip_past(sla: Sla, now: int) -> Sla:
    """Passes over what a reopening finds already past: nothing escalates at the instant it is reopened."""
    past = [alarm for alarm in sla.alarms if alarm.clock is ClockType.RESOLUTION and alarm.at_ms <= now]
    if not past:
        return sla
    return replace(
        sla,
        alarms=tuple(alarm for alarm in sla.alarms if alarm not in past),
        levels_past=sla.levels_past + sum(1 for alarm in past if alarm.level),
        resolution=replace(
            sla.resolution, warned=sla.resolution.warned or any(not alarm.level for alarm in past)
        ),
    )


def settle(sla: Sla, now: int) -> tuple[Sla, tuple[Told, ...]]:
    """Marks targets and alarms that passed up to `now`. Repeating it changes nothing."""
    told: list[tuple[int, Told]] = []
    for alarm in sla.alarms:
        if alarm.at_ms > now:
            break
        sla, said = _ring(sla, alarm)
        told.append((alarm.at_ms, said))
    if told:
        sla = replace(sla, alarms=sla.alarms[len(told) :])
    for kind, clock in _clocks(sla):
        due = due_ms(clock)
        if due is not None and due <= now:
            passed = replace(clock, state=ClockState.BREACHED, breached_ms=due, due_ms=None)
            sla = _with_clock(sla, kind, passed)
            # a warning that comes with the breach would say nothing new
            sla = replace(sla, alarms=tuple(a for a in sla.alarms if a.level or a.clock is not kind))
            told.append((due, Breached(clock=kind, due_ms=due, cycle=clock.cycle)))
    return sla, tuple(said for _, said in sorted(told, key=lambda pair: pair[0]))


def _ring(sla: Sla, alarm: Alarm) -> tuple[Sla, Told]:
    if alarm.level:
        level = next(one for one in sla.levels if one.level == alarm.level)
        reached = replace(sla, levels_past=sla.levels_past + 1, level=max(sla.level, alarm.level))
        return reached, Escalated(level=level, clock=alarm.clock)
    clock = next(clock for kind, clock in _clocks(sla) if kind is alarm.clock)
    warned = Warned(clock=alarm.clock, due_ms=clock.due_ms or alarm.at_ms, cycle=clock.cycle)
    return _with_clock(sla, alarm.clock, replace(clock, warned=True)), warned


# ---- what moves the clocks


def _absent(clock: SlaClock) -> SlaClock:
    """A clock that the ticket does not have any more; what is known of it stays, should it have one again."""
    return replace(clock, state=ClockState.ABSENT, target_ms=0, since_ms=None, due_ms=None)


def _new(target_ms: int | None, now: int) -> SlaClock:
    if target_ms is None:
        return SlaClock(state=ClockState.ABSENT, target_ms=0)
    return SlaClock(state=ClockState.RUNNING, target_ms=target_ms, since_ms=now)


def start(rules: Rules, facts: Facts, now: int) -> Sla:
    """The clocks of a ticket opened at `now`."""
    found = terms(rules, facts)
    sla = Sla(
        policy=found.policy,
        rule=found.rule,
        first_response=_new(found.first_response_ms, now),
        resolution=_new(found.resolution_ms, now),
        explanation=found.lines,
        next_response_ms=found.next_response_ms or 0,
        calendar=found.calendar,
        pausing=found.pausing,
        levels=found.levels,
        warn_percent=rules.warn_percent,
    )
    return planned(sla, calendar_of(sla, rules))


def _bank(clock: SlaClock, now: int, calendar: Calendar | None) -> SlaClock:
    """A running clock with its used time counted up to `now`."""
    if clock.since_ms is None:
        return clock
    return replace(clock, used_ms=used_ms(clock, now, calendar), since_ms=max(now, clock.since_ms))


def _retargeted(clock: SlaClock, target_ms: int | None, runs: bool, now: int) -> SlaClock:
    if target_ms is None:
        return _absent(clock)
    clock = replace(clock, target_ms=target_ms)
    if clock.state is not ClockState.ABSENT:
        return clock
    if clock.stopped_ms is not None:
        ended = ClockState.MET if clock.breached_ms is None else ClockState.BREACHED
        return replace(clock, state=ended)
    paused = replace(clock, state=ClockState.PAUSED if clock.breached_ms is None else ClockState.BREACHED)
    return _run(paused, now) if runs else paused


def retarget(sla: Sla, rules: Rules, facts: Facts, place: Place, now: int) -> Sla:
    """What applies to a ticket whose facts, policy or calendar changed at `now`; used time and what
    reopenings
    gave stay. Settle first, and again afterwards: a nearer target may be past already."""
    found = terms(rules, facts)
    old = calendar_of(sla, rules)
    phase, state = place
    running = phase in _RESOLUTION_RUNS and state not in found.pausing
    resolution = _retargeted(_bank(sla.resolution, now, old), found.resolution_ms, running, now)
    next_response = sla.next_response
    if next_response is not None:
        next_response = _retargeted(_bank(next_response, now, old), found.next_response_ms, True, now)
    if resolution.state not in (ClockState.MET, ClockState.STOPPED, ClockState.ABSENT) and not phase_ends(
        phase
    ):
        resolution = _run(resolution, now) if running else _pause(resolution, now, old)
    first = _retargeted(_bank(sla.first_response, now, old), found.first_response_ms, phase is Phase.NEW, now)
    if first.since_ms is None and (first.stopped_ms is None or not first.cycle):
        first = _absent(first)  # it never pauses: the response was given before there was a clock
    changed = replace(
        sla,
        policy=found.policy,
        rule=found.rule,
        first_response=first,
        resolution=resolution,
        explanation=found.lines + sla.explanation[_TERM_LINES:],
        next_response=next_response,
        next_response_ms=found.next_response_ms or 0,
        calendar=found.calendar,
        pausing=found.pausing,
        levels=found.levels,
        levels_past=sum(1 for level in found.levels if level.level <= _passed(sla)),
    )
    return planned(changed, calendar_of(changed, rules))


def _passed(sla: Sla) -> int:
    """The last level that was reached, or passed over by a reopening, in this cycle; 0 for none."""
    past = sla.levels[: sla.levels_past]
    return max(sla.level, past[-1].level if past else 0)


def phase_ends(phase: Phase) -> bool:
    """Whether the resolution clock is over in a phase."""
    return phase in (Phase.RESOLVED, Phase.CLOSED, Phase.CANCELLED)


def _stop(clock: SlaClock, now: int, state: ClockState, calendar: Calendar | None) -> SlaClock:
    if clock.stopped_ms is not None:
        return clock
    if clock.state is ClockState.ABSENT:
        return replace(clock, stopped_ms=now)  # done while nothing is promised: no later target runs for it
    ended = ClockState.BREACHED if clock.breached_ms is not None else state
    used = used_ms(clock, now, calendar)
    return replace(clock, state=ended, used_ms=used, since_ms=None, stopped_ms=now)


def _pause(clock: SlaClock, now: int, calendar: Calendar | None) -> SlaClock:
    if clock.since_ms is None:
        return clock
    state = clock.state if clock.breached_ms is not None else ClockState.PAUSED
    return replace(clock, state=state, used_ms=used_ms(clock, now, calendar), since_ms=None)


def _run(clock: SlaClock, now: int) -> SlaClock:
    if clock.since_ms is not None or clock.state is ClockState.ABSENT:
        return clock
    state = ClockState.BREACHED if clock.breached_ms is not None else ClockState.RUNNING
    return replace(clock, state=state, since_ms=now, stopped_ms=None)


def _reopened(clock: SlaClock, now: int, floor_percent: int) -> SlaClock:
    if clock.state is ClockState.ABSENT:
        return replace(clock, breached_ms=None, stopped_ms=None, warned=False)
    floor = max(1, clock.target_ms * floor_percent // 100)
    left = clock.target_ms + clock.extra_ms - clock.used_ms
    return replace(
        clock,
        state=ClockState.RUNNING,
        since_ms=now,
        extra_ms=clock.extra_ms + max(0, floor - left),
        breached_ms=None,
        stopped_ms=None,
        cycle=clock.cycle + 1,
        warned=False,
    )


def _answered(clock: SlaClock, now: int, state: ClockState, calendar: Calendar | None) -> SlaClock:
    ended = _stop(clock, now, state, calendar)
    return ended if ended is clock or ended.state is not ClockState.ABSENT else replace(ended, cycle=0)


def _first_response(clock: SlaClock, after: Phase, now: int, calendar: Calendar | None) -> SlaClock:
    if after is Phase.NEW:
        return clock
    return _answered(clock, now, ClockState.STOPPED if after is Phase.CANCELLED else ClockState.MET, calendar)


def _is_paused(sla: Sla, place: Place) -> bool:
    phase, state = place
    return phase is Phase.WAITING or (phase in _RESOLUTION_RUNS and state in sla.pausing)


def _resolution(sla: Sla, rules: Rules, before: Place, after: Place, now: int) -> SlaClock:
    clock, calendar = sla.resolution, calendar_of(sla, rules)
    (was, _), (phase, _) = before, after
    if was is Phase.RESOLVED and (phase in _RESOLUTION_RUNS or phase is Phase.WAITING):
        return _reopened(clock, now, rules.sla.reopen_floor_percent)
    if _is_paused(sla, after):
        return _pause(clock, now, calendar)
    if phase in _RESOLUTION_RUNS:
        return _run(clock, now)
    return _stop(clock, now, ClockState.STOPPED if phase is Phase.CANCELLED else ClockState.MET, calendar)


def advance(sla: Sla, rules: Rules, before: Place, after: Place, now: int) -> tuple[Sla, tuple[Told, ...]]:
    """The clocks after a change of phase or state at `now`, and what passed before it."""
    sla, told = settle(sla, now)
    calendar = calendar_of(sla, rules)
    resolution = _resolution(sla, rules, before, after, now)
    reopened = resolution.cycle > sla.resolution.cycle
    explanation = sla.explanation
    if reopened:
        left = resolution.target_ms + resolution.extra_ms - resolution.used_ms
        # one line for the latest cycle: a ticket may be reopened without end
        line = f"reopened, cycle {resolution.cycle}: {_text(left)} left to resolution"
        explanation = (*explanation[:_TERM_LINES], line)
    next_response = sla.next_response
    if next_response is not None and phase_ends(after[0]):
        ended = ClockState.STOPPED if after[0] is Phase.CANCELLED else ClockState.MET
        next_response = _stop(next_response, now, ended, calendar)
    advanced = replace(
        sla,
        first_response=_first_response(sla.first_response, after[0], now, calendar),
        next_response=next_response,
        resolution=resolution,
        explanation=explanation,
        levels_past=0 if reopened else sla.levels_past,
        level=0 if reopened else sla.level,
    )
    advanced = planned(advanced, calendar)
    if reopened:
        # what is past is seen by the running clock, also where the ticket is reopened into a pause
        advanced = _skip_past(advanced, now)
        if _is_paused(advanced, after):
            paused = _pause(advanced.resolution, now, calendar)
            advanced = planned(replace(advanced, resolution=paused), calendar)
    return advanced, told


def customer_wrote(sla: Sla, rules: Rules, now: int) -> tuple[Sla, tuple[Told, ...]]:
    """The clocks after a customer's message: the next response is awaited from the first unanswered one
    on."""
    sla, told = settle(sla, now)
    waiting = sla.next_response is not None and sla.next_response.since_ms is not None
    if not sla.next_response_ms or waiting or sla.first_response.since_ms is not None:
        return sla, told
    cycle = sla.next_response.cycle + 1 if sla.next_response is not None else 1
    begun = replace(_new(sla.next_response_ms, now), cycle=cycle)
    return planned(replace(sla, next_response=begun), calendar_of(sla, rules)), told


def operator_wrote(sla: Sla, rules: Rules, now: int) -> tuple[Sla, tuple[Told, ...]]:
    """The clocks after a public answer: it is the first response, or the next."""
    sla, told = settle(sla, now)
    calendar = calendar_of(sla, rules)
    answered = replace(sla, first_response=_answered(sla.first_response, now, ClockState.MET, calendar))
    if answered.next_response is not None:
        answered = replace(
            answered, next_response=_stop(answered.next_response, now, ClockState.MET, calendar)
        )
    return (planned(answered, calendar) if answered != sla else sla), told
