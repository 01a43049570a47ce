"""Service-level clocks: how long a ticket may take, how much of it is used, when it is due, and why.

Rules. A target is a duration of business time: the kind's duration, times the priority's percent, times the
tier's percent. A clock accumulates used time only while it runs, so it is due at `since + (target + extra -
used)`; whatever changes the target or stops the clock for a while keeps the credit. The first-response clock
runs in phase NEW and ends when it is left. The resolution clock runs in NEW and ACTIVE, pauses in WAITING,
ends in RESOLVED, CLOSED and CANCELLED, and a reopening starts a new cycle of it: used time stays, but at
least a declared share of the target is left, so that nothing is overdue at the instant it is reopened. A
target passes once a cycle; a clock whose target passed stays BREACHED for that cycle whatever comes.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from tickets.model import (
    Breached,
    ClockState,
    ClockType,
    Kind,
    Phase,
    Priority,
    Sla,
    SlaClock,
    SlaPolicy,
    SlaTarget,
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


def due_ms(clock: SlaClock) -> int | None:
    """When the target passes if nothing changes; None unless the clock runs and the target hasn't passed."""
    if clock.state is not ClockState.RUNNING or clock.since_ms is None:
        return None
    return clock.since_ms + clock.target_ms + clock.extra_ms - clock.used_ms


def used_ms(clock: SlaClock, now: int) -> int:
    """Time used up to `now`; a `now` before the latest change counts as that change's time."""
    return clock.used_ms + (max(0, now - clock.since_ms) if clock.since_ms is not None else 0)


def start(policy: SlaPolicy, kind: Kind, priority: Priority, tier: str, now: int) -> Sla:
    """The clocks of a ticket opened at `now`."""
    target, rule, lines = targets(policy, kind, priority, tier)

    def clock(ms: int) -> SlaClock:
        return SlaClock(state=ClockState.RUNNING, target_ms=ms, since_ms=now)

    return Sla(
        policy=policy.id,
        rule=rule,
        first_response=clock(target.first_response_ms),
        resolution=clock(target.resolution_ms),
        explanation=lines,
    )


def retarget(sla: Sla, policy: SlaPolicy, kind: Kind, priority: Priority, tier: str) -> Sla:
    """New durations for a ticket whose priority or tier changed; used time and what reopenings gave stay."""
    target, rule, lines = targets(policy, kind, priority, tier)
    kept = sla.explanation[4:]  # what happened since the opening stays explained
    return replace(
        sla,
        policy=policy.id,
        rule=rule,
        first_response=replace(sla.first_response, target_ms=target.first_response_ms),
        resolution=replace(sla.resolution, target_ms=target.resolution_ms),
        explanation=lines + kept,
    )


def settle(sla: Sla, now: int) -> tuple[Sla, tuple[Breached, ...]]:
    """Marks targets that passed up to `now`. Repeating it changes nothing."""
    breaches = []
    for kind in ClockType:
        clock = sla.resolution if kind is ClockType.RESOLUTION else sla.first_response
        due = due_ms(clock)
        if due is not None and due <= now:
            passed = replace(clock, state=ClockState.BREACHED, breached_ms=due)
            if kind is ClockType.RESOLUTION:
                sla = replace(sla, resolution=passed)
            else:
                sla = replace(sla, first_response=passed)
            breaches.append(Breached(clock=kind, due_ms=due, cycle=clock.cycle))
    return sla, tuple(breaches)


def _stop(clock: SlaClock, now: int, state: ClockState) -> SlaClock:
    if clock.stopped_ms is not None:
        return clock
    ended = ClockState.BREACHED if clock.breached_ms is not None else state
    return replace(clock, state=ended, used_ms=used_ms(clock, now), since_ms=None, stopped_ms=now)


def _pause(clock: SlaClock, now: int) -> SlaClock:
    if clock.since_ms is None:
        return clock
    state = clock.state if clock.breached_ms is not None else ClockState.PAUSED
    return replace(clock, state=state, used_ms=used_ms(clock, now), since_ms=None)


def _run(clock: SlaClock, now: int) -> SlaClock:
    if clock.since_ms is not None:
        return clock
    state = ClockState.BREACHED if clock.breached_ms is not None else ClockState.RUNNING
    return replace(clock, state=state, since_ms=now, stopped_ms=None)


def _reopened(clock: SlaClock, now: int, floor_percent: int) -> SlaClock:
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
    )


def _first_response(clock: SlaClock, after: Phase, now: int) -> SlaClock:
    if after is Phase.NEW:
        return clock
    return _stop(clock, now, ClockState.STOPPED if after is Phase.CANCELLED else ClockState.MET)


def _resolution(clock: SlaClock, before: Phase, after: Phase, now: int, policy: SlaPolicy) -> SlaClock:
    if before is Phase.RESOLVED and (after in _RESOLUTION_RUNS or after is Phase.WAITING):
        reopened = _reopened(clock, now, policy.reopen_floor_percent)
        return reopened if after is not Phase.WAITING else _pause(reopened, now)
    if after in _RESOLUTION_RUNS:
        return _run(clock, now)
    if after is Phase.WAITING:
        return _pause(clock, now)
    return _stop(clock, now, ClockState.STOPPED if after is Phase.CANCELLED else ClockState.MET)


def advance(
    sla: Sla, policy: SlaPolicy, before: Phase, after: Phase, now: int
) -> tuple[Sla, tuple[Breached, ...]]:
    """The clocks after a change of phase at `now`, and what passed before it."""
    sla, breaches = settle(sla, now)
    resolution = _resolution(sla.resolution, before, after, now, policy)
    explanation = sla.explanation
    if resolution.cycle > sla.resolution.cycle:
        left = resolution.target_ms + resolution.extra_ms - resolution.used_ms
        # one line for the latest cycle: a ticket may be reopened without end
        explanation = (
            *explanation[:4],
            f"reopened, cycle {resolution.cycle}: {_text(left)} left to resolution",
        )
    advanced = replace(
        sla,
        first_response=_first_response(sla.first_response, after, now),
        resolution=resolution,
        explanation=explanation,
    )
    return advanced, breaches
