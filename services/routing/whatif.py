"""What if: a past day with other people, other hours or other rules, through the real engine. Pure.

1. A `Past` is a day as it happened: who called when and what came of it, who was at work, and the queues'
   rules. It comes from a call log (`callmesh simulate`) or from the journal (past.py).
2. What a caller who was served would have borne, and what one who left would have needed, nobody has seen.
   Both are estimated from the day: patience beyond the own wait from the Kaplan-Meier curve, conversations
   from those of the same queue. The draws depend on the seed and the contact alone, so two policies meet
   the same callers.
3. A `Policy` says what is changed. The day then goes through the engine twice (virtual.py): as it was and as
   proposed. The first run is the yardstick: what it does not show of what happened (agents who were slow to
   accept, breaks that the day does not know), the second will not show either.
4. Figures are the field's: service level = answered within the target / (answered + abandoned after more
   than the short-abandon time); ASA = mean wait of the answered; occupancy = time with a contact or
   after-call work / time at work, overtime for the last contact included.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from chassis.errors import InvalidArgument
from routing.model import AgentConfig, QueueConfig
from routing.patience import PatienceCurve, kaplan_meier
from routing.virtual import HERE, Contact, DayResult, Duty, Fate, Outcome, Roster, run_day

#: Rows of the interval figures.
INTERVAL_MS = 1_800_000
DAY_MS = 86_400_000
#: A day with more contacts, agents or duties is not simulated: it would keep the process for minutes.
CONTACTS_MAX = 200_000
AGENTS_MAX = 20_000
DUTIES_MAX = 100_000
#: After the last duty has ended nobody comes any more, so waiting is of no use.
TAIL_MS = 3_600_000
#: What a conversation is taken for where the day has none to learn from.
TALK_MS_DEFAULT = 180_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A contact as it was seen."""

    #: Its talk and after-call work are 0 where it had none, its patience None.
    contact: Contact
    fate: Fate
    wait_ms: int
    agent: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """A day as it happened."""

    #: For people: where it is from and which day.
    title: str
    #: Midnight that clock times count from.
    origin_ms: int
    seen: tuple[Seen, ...]
    roster: Roster
    #: Milliseconds with a contact in hand by agent, where known.
    busy_ms: Mapping[str, int]
    #: What was assumed, one sentence each.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What is to be otherwise; None leaves it as it was."""

    queues: tuple[QueueConfig, ...] | None = None
    agents: tuple[AgentConfig, ...] | None = None
    duties: tuple[Duty, ...] | None = None
    sites: Mapping[str, str] | None = None
    share: bool | None = None
    ring_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a day, a queue or half an hour of it came to."""

    offered: int
    answered: int
    #: After more than the short-abandon time, and sooner.
    abandoned: int
    short_abandoned: int
    refused: int
    #: Still waiting when the day was over.
    unserved: int
    answered_in_target: int
    service_level_ratio: float
    asa_seconds: float
    #: All who abandoned / offered.
    abandoned_ratio: float
    #: Conversation and after-call work of those answered.
    handle_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Half an hour of arrivals."""

    start_ms: int
    figures: Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A day's figures."""

    total: Figures
    queues: Mapping[str, Figures]
    intervals: tuple[Interval, ...]
    occupancy_ratio: float
    #: Hours at work, all agents together.
    staffed_hours: float
    agents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A proposal against the past."""

    happened: Report
    #: The same day through the engine, with nothing changed.
    as_it_was: Report
    proposed: Report


def simulate(past: Past, policy: Policy, seed: int = 1) -> Comparison:
    """A past day under another policy. Raises InvalidArgument naming the field that does not fit."""
    contacts = estimate(past, seed)
    proposed = apply(past.roster, policy)
    _bounded(past, proposed)
    return Comparison(
        happened=report(happened(past), past.roster),
        as_it_was=report(_run(past.roster, contacts), past.roster),
        proposed=report(_run(proposed, contacts), proposed),
    )


def _bounded(past: Past, proposed: Roster) -> None:
    for field, count, most in (
        ("day", len(past.seen), CONTACTS_MAX),
        ("agents", len(proposed.agents), AGENTS_MAX),
        ("shifts", len(proposed.duties), DUTIES_MAX),
    ):
        if count > most:
            raise InvalidArgument(field=field, why=f"has {count} entries, at most {most} can be simulated")


def _run(roster: Roster, contacts: Sequence[Contact]) -> DayResult:
    last = max([0, *(c.arrival_ms for c in contacts), *(d.end_ms for d in roster.duties)])
    try:
        return run_day(roster, contacts, until_ms=last + TAIL_MS)
    except ValueError as error:
        raise InvalidArgument(field="queues", why=str(error)) from error


# --- what nobody has seen


def estimate(past: Past, seed: int) -> list[Contact]:
    """The day's contacts with patience and conversations for all: real where they were seen, else drawn."""
    curve = patience_of(past.seen)
    talks: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for seen in past.seen:
        if seen.fate is Fate.ANSWERED:
            talks[seen.contact.queue].append((seen.contact.talk_ms, seen.contact.wrap_up_ms))
    everywhere = [talk for queue in sorted(talks) for talk in talks[queue]] or [(TALK_MS_DEFAULT, 0)]
    return [_estimated(seen, curve, talks.get(seen.contact.queue) or everywhere, seed) for seen in past.seen]


def patience_of(seen: Iterable[Seen]) -> PatienceCurve:
    """Kaplan-Meier over a day, by seconds: who left shows a patience, who was served or refused had more."""
    left: Counter[int] = Counter()
    stayed: Counter[int] = Counter()
    for each in seen:
        if each.fate is not Fate.ABANDONED:
            stayed[round(each.wait_ms / 1000)] += 1
        elif each.wait_ms > 0:
            left[math.ceil(each.wait_ms / 1000)] += 1
    return kaplan_meier(left, stayed)


def _estimated(seen: Seen, curve: PatienceCurve, talks: Sequence[tuple[int, int]], seed: int) -> Contact:
    rng = random.Random(f"{seed}:{seen.contact.id}")
    beyond = curve.draw_beyond(seen.wait_ms / 1000, rng)
    talk_ms, wrap_up_ms = rng.choice(talks)
    if seen.fate is Fate.ANSWERED:
        talk_ms, wrap_up_ms = seen.contact.talk_ms, seen.contact.wrap_up_ms
    patience_ms = None if math.isinf(beyond) else round(beyond * 1000)
    if seen.fate is Fate.ABANDONED:
        patience_ms = seen.wait_ms
    return replace(seen.contact, patience_ms=patience_ms, talk_ms=talk_ms, wrap_up_ms=wrap_up_ms)


def happened(past: Past) -> DayResult:
    """The day itself, in the form of a run."""
    duty_ms: Counter[str] = Counter()
    for duty in past.roster.duties:
        duty_ms[duty.agent] += duty.end_ms - duty.start_ms
    outcomes = (
        Outcome(contact=s.contact, fate=s.fate, wait_ms=s.wait_ms, agent=s.agent, site=s.contact.home)
        for s in past.seen
    )
    return DayResult(
        outcomes=tuple(sorted(outcomes, key=lambda o: (o.contact.arrival_ms, o.contact.id))),
        busy_ms=past.busy_ms,
        duty_ms=duty_ms,
        commands=0,
    )


# --- figures


def report(result: DayResult, roster: Roster) -> Report:
    """The figures of a run, or of what happened."""
    queues = {queue.id: queue for queue in roster.queues}
    by_queue: dict[str, list[Outcome]] = {queue: [] for queue in queues}
    by_interval: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in result.outcomes:
        by_queue[outcome.contact.queue].append(outcome)
        by_interval[outcome.contact.arrival_ms // INTERVAL_MS * INTERVAL_MS].append(outcome)
    staffed_ms = sum(result.duty_ms.values())
    return Report(
        total=figures(result.outcomes, queues),
        queues={queue: figures(outcomes, queues) for queue, outcomes in sorted(by_queue.items())},
        intervals=tuple(
            Interval(start_ms=start, figures=figures(by_interval[start], queues))
            for start in sorted(by_interval)
        ),
        occupancy_ratio=min(1.0, sum(result.busy_ms.values()) / staffed_ms) if staffed_ms else 0.0,
        staffed_hours=staffed_ms / 3_600_000,
        agents=sum(ms > 0 for ms in result.duty_ms.values()),
    )


def figures(outcomes: Sequence[Outcome], queues: Mapping[str, QueueConfig]) -> Figures:
    """The figures of some outcomes, each by its queue's own target and short-abandon time."""
    fates = Counter(outcome.fate for outcome in outcomes)
    answered = [outcome for outcome in outcomes if outcome.fate is Fate.ANSWERED]
    in_target = sum(o.wait_ms <= queues[o.contact.queue].service_level_span_ms for o in answered)
    short = sum(
        o.fate is Fate.ABANDONED and o.wait_ms <= queues[o.contact.queue].short_abandon_span_ms
        for o in outcomes
    )
    abandoned = fates[Fate.ABANDONED] - short
    counted = len(answered) + abandoned
    return Figures(
        offered=len(outcomes),
        answered=len(answered),
        abandoned=abandoned,
        short_abandoned=short,
        refused=fates[Fate.REFUSED],
        unserved=fates[Fate.UNSERVED],
        answered_in_target=in_target,
        service_level_ratio=in_target / counted if counted else 1.0,
        asa_seconds=_mean(o.wait_ms for o in answered) / 1000,
        abandoned_ratio=fates[Fate.ABANDONED] / len(outcomes) if outcomes else 0.0,
        handle_seconds=_mean(o.contact.talk_ms + o.contact.wrap_up_ms for o in answered) / 1000,
    )


def _mean(values: Iterable[int]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


# --- policies


def apply(roster: Roster, policy: Policy) -> Roster:
    """The roster as proposed. Raises InvalidArgument for a duty of an agent that is not there."""
    queues = {queue.id: queue for queue in roster.queues} | {queue.id: queue for queue in policy.queues or ()}
    agents = roster.agents if policy.agents is None else policy.agents
    known = {agent.id for agent in agents}
    duties = roster.duties if policy.duties is None else policy.duties
    if policy.duties is None:
        duties = tuple(duty for duty in duties if duty.agent in known)
    for duty in duties:
        if duty.agent not in known:
            raise InvalidArgument(field="shifts", why=f"name {duty.agent!r}, who is no agent")
    return replace(
        roster,
        queues=tuple(queues[queue] for queue in sorted(queues)),
        agents=tuple(agents),
        duties=tuple(duties),
        sites=roster.sites if policy.sites is None else policy.sites,
        share=roster.share if policy.share is None else policy.share,
        ring_ms=roster.ring_ms if policy.ring_ms is None else policy.ring_ms,
    )


def constant_staff(past: Past, count: int) -> Policy:
    """`count` agents from the first to the last minute of the day's duties (or calls), with the skills and
    sites of those of the day in turn. Raises InvalidArgument for a count out of range.
    """
    if not 1 <= count <= AGENTS_MAX:
        raise InvalidArgument(field="agents", why=f"must be 1 to {AGENTS_MAX}")
    start_ms, end_ms = span_of(past)
    models = past.roster.agents or (AgentConfig(id="agent"),)
    agents = tuple(replace(models[n % len(models)], id=f"agent-{n + 1:05d}") for n in range(count))
    sites = {
        agent.id: past.roster.sites.get(models[n % len(models)].id, HERE) for n, agent in enumerate(agents)
    }
    duties = tuple(Duty(agent=agent.id, start_ms=start_ms, end_ms=end_ms) for agent in agents)
    return Policy(agents=agents, duties=duties, sites=sites)


def scaled_staff(past: Past, factor: float) -> Policy:
    """The day's agents times `factor`, at every time of the day: some of them twice, or some not at all,
    chosen evenly over the list of agents by the hours they work. Raises InvalidArgument for a factor out of
    range.
    """
    if not 0.1 <= factor <= 10.0:
        raise InvalidArgument(field="scale", why="must be 0.1 to 10")
    hours: Counter[str] = Counter()
    for duty in past.roster.duties:
        hours[duty.agent] += duty.end_ms - duty.start_ms
    agents: list[AgentConfig] = []
    copies: dict[str, list[str]] = {}
    sites: dict[str, str] = {}
    owed = 0.5
    for agent in sorted(past.roster.agents, key=lambda a: (-hours[a.id], a.id)):
        owed += factor
        whole = int(owed)
        owed -= whole
        names = [agent.id if n == 0 else f"{agent.id}~{n + 1}" for n in range(whole)]
        copies[agent.id] = names
        agents += [replace(agent, id=name) for name in names]
        sites |= dict.fromkeys(names, past.roster.sites.get(agent.id, HERE))
    duties = tuple(replace(duty, agent=name) for duty in past.roster.duties for name in copies[duty.agent])
    return Policy(agents=tuple(agents), duties=duties, sites=sites)


def span_of(past: Past) -> tuple[int, int]:
    """From the first call or duty of the day to the end of its last duty (of its last call, where longer)."""
    arrivals = [seen.contact.arrival_ms for seen in past.seen] or [past.origin_ms]
    starts = [duty.start_ms for duty in past.roster.duties]
    ends = [duty.end_ms for duty in past.roster.duties]
    return min([*starts, *arrivals]), max([*ends, *arrivals])


def simulate_day(
    past: Past,
    agents: Sequence[AgentConfig],
    queues: Sequence[QueueConfig],
    seed: int,
    sites: Mapping[str, str] | None = None,
) -> tuple[Mapping[str, Figures], Mapping[str, Figures]]:
    """(what happened, what would have happened) by queue: `SupervisionService.SimulateDay` in plain values.

    Agents as they would be: who was at work in the past works the same hours, others the whole span at their
    site of `sites`; empty leaves all as they were. Queues replace those of the same id. Raises
    InvalidArgument.
    """
    policy = Policy(queues=tuple(queues))
    if agents:
        known = {agent.id for agent in past.roster.agents}
        start_ms, end_ms = span_of(past)
        new = tuple(Duty(agent=a.id, start_ms=start_ms, end_ms=end_ms) for a in agents if a.id not in known)
        wanted = {agent.id for agent in agents}
        kept = tuple(duty for duty in past.roster.duties if duty.agent in wanted)
        where = {**past.roster.sites, **(sites or {})}
        policy = replace(policy, agents=tuple(agents), duties=(*kept, *new), sites=where)
    compared = simulate(past, policy, seed or 1)
    return compared.happened.queues, compared.proposed.queues
