"""Why a call goes where it goes: a pure, read-only look at a shard's state, by the engine's own rules.

1. A call is looked at in its step of relaxation; a hypothetical one in the step that it would begin in.
2. Agents who have the channel and the skills come first: the free ones in the order in which the engine would
   take them, then the others with what keeps them from it. Those who lack a skill or the channel follow.
3. The first reason in the order of `_UNFIT`, then `_OCCUPIED`, is told: what a supervisor can change least
   comes first.
4. In a line of very many agents the first `LOOKED_AT_MAX` by their order in the shard are looked at, and
   the sentence says so; the free ones are all counted. So an explanation keeps nobody waiting.
5. It never changes the state, not even an index: what an explanation says depends on the journal alone.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from routing.model import (
    AgentCandidate,
    AskExplain,
    CallFacts,
    CallState,
    Explanation,
    Presence,
    QueueConfig,
    Strategy,
)
from routing.state import AgentEntry, CallEntry, Crowd, Line, ShardState, worth_waiting_for

#: Agents looked at in one explanation, at most: beyond it the rest is only counted.
CANDIDATES_MAX = 100
#: Agents whose occupation is looked at.
LOOKED_AT_MAX = 400

_STRATEGIES = {
    Strategy.LONGEST_IDLE: "longest idle first",
    Strategy.FEWEST_CALLS: "fewest contacts first",
    Strategy.LEAST_OCCUPIED: "least occupied first",
    Strategy.ROUND_ROBIN: "in turn",
    Strategy.RANDOM: "by lot, each as likely",
    Strategy.PRIORITY_ORDER: "by the agents' priority",
    Strategy.BEST_PROFICIENCY: "highest levels first",
}


def explain(state: ShardState, question: AskExplain, now_ms: int) -> Explanation:
    """The explanation for a call of the shard, or for a hypothetical one.

    Raises KeyError for an unknown call or queue.
    """
    entry = state.calls[question.call_id] if question.facts is None else None
    facts = entry.facts if entry is not None else question.facts
    assert facts is not None
    queue = state.queues.get(facts.queue) or (entry.line.queue if entry is not None else None)
    if queue is None:
        raise KeyError(facts.queue)
    step = entry.step if entry is not None else first_step(state, queue, facts, question.waited_span_ms)
    line = state.lines.get((queue.id, facts.channel, facts.skills, step))
    line = line if line is not None else _line(state, queue, facts, step)
    # Of those who fit; empty for the free.
    few = len(line.agents) <= LOOKED_AT_MAX
    looked_at = (
        sorted(line.agents) if few else islice((a for a in state.agents if a in line.agents), LOOKED_AT_MAX)
    )
    reasons = {agent_id: _occupied(state, line, state.agents[agent_id]) for agent_id in looked_at}
    preferred = _preferred(state, entry, facts)
    limit = min(question.limit, CANDIDATES_MAX)
    candidates = _candidates(state, line, entry, preferred, reasons, limit)
    refused = _refused(state, line) if entry is None else ""
    return Explanation(
        queue=queue.id,
        step=step,
        agents=tuple(candidates),
        summary=f"It would be refused: {refused}."
        if refused
        else _summary(line, entry, preferred, candidates, reasons, now_ms),
    )


def _preferred(state: ShardState, entry: CallEntry | None, facts: CallFacts) -> str:
    """The agent whom the call waits for, or would wait for; empty for whoever is free."""
    if entry is not None:
        return entry.preferred if entry.state is not CallState.ENDED else ""
    wanted, queue = facts.preferred_agent, state.queues.get(facts.queue)
    if queue is None or not (facts.preferred_span_ms or queue.preferred_span_ms):
        return ""
    return wanted if worth_waiting_for(state.agents.get(wanted), facts.channel) else ""


def _refused(state: ShardState, line: Line) -> str:
    """Why a call that came now would not be taken, as the engine would say; empty if it would."""
    queue, where = line.queue, _where(line)
    if queue.closed:
        return f"{where} is closed"
    if sum(crowd.waiting for crowd in state.crowds.get(queue.id, {}).values()) >= queue.length_max:
        return f"{where} is full"
    if queue.refuse_without_agents and not line.logged_in:
        return f"nobody who fits is logged in, and {where} refuses calls then"
    return ""


def first_step(state: ShardState, queue: QueueConfig, facts: CallFacts, waited_ms: int = 0) -> int:
    """The step of relaxation that a call would begin in: steps that nobody who is logged in fits may be
    passed over, and those that it has waited for elsewhere are; the last one never is.
    """
    for index, step in enumerate(queue.steps[:-1]):
        if step.skip_if_nobody_fits and not _logged_in(state, queue, facts, index):
            continue
        if waited_ms < step.span_ms:
            return index
        waited_ms -= step.span_ms
    return max(0, len(queue.steps) - 1)


def _logged_in(state: ShardState, queue: QueueConfig, facts: CallFacts, step: int) -> bool:
    """Whether anybody who fits a step is logged in."""
    key = (queue.id, facts.channel, facts.skills, step)
    known = state.lines.get(key)
    if known is not None:
        return known.logged_in > 0
    line = Line(key, queue, Crowd())
    agents = state.agents_with_all([skill for skill, _ in line.requirements])
    return any(agent.presence is not Presence.OFFLINE and line.fits(agent) for agent in agents)


def _line(state: ShardState, queue: QueueConfig, facts: CallFacts, step: int) -> Line:
    """The line as it would be, outside the state."""
    others = state.lines_by_queue.get(queue.id, [])
    crowd = next((other.crowd for other in others if other.channel == facts.channel), Crowd())
    line = Line((queue.id, facts.channel, facts.skills, step), queue, crowd)
    free = []
    for agent in state.agents_with_all([skill for skill, _ in line.requirements]):
        if line.fits(agent):
            line.agents.add(agent.config.id)
            line.logged_in += agent.presence is not Presence.OFFLINE
            if line.channel in agent.idle:
                free.append(agent)
    for agent in sorted(free, key=lambda agent: (agent.since_ms, agent.config.id)):
        line.free.add(agent.idle[line.channel])
        line.idle += 1
    return line


def _candidates(
    state: ShardState,
    line: Line,
    entry: CallEntry | None,
    preferred: str,
    reasons: Mapping[str, str],
    limit: int,
) -> list[AgentCandidate]:
    if preferred:
        free = [preferred] if line.channel in state.agents[preferred].idle else []
    else:
        free = line.free.order(limit + len(entry.declined_by if entry is not None else ()))
    if entry is not None and entry.declined_by:
        # Who let it ring in vain comes after the others.
        free.sort(key=lambda agent_id: agent_id in entry.declined_by)
    chosen = [AgentCandidate(agent=a, rank=_rank(line, i)) for i, a in enumerate(free[:limit], 1)]
    ranked = set(free)
    skipped = (
        (_ORDER.get(reason, -1), agent_id, reason or "NOT_PREFERRED")
        for agent_id, reason in reasons.items()
        if agent_id not in ranked and (reason or preferred)
    )
    for _, agent_id, reason in heapq.nsmallest(limit - len(chosen), skipped):
        chosen.append(AgentCandidate(agent=agent_id, rank=0, skipped_reason=reason))
    others = ((a, agent) for a, agent in state.agents.items() if a not in line.agents)
    for agent_id, agent in islice(others, limit - len(chosen)):
        chosen.append(AgentCandidate(agent=agent_id, rank=0, skipped_reason=_unfit(state, line, agent)))
    return chosen


def _rank(line: Line, place: int) -> int:
    """Where lots are drawn, nobody is better than another."""
    return 1 if line.queue.strategy is Strategy.RANDOM else place


# --- reasons ---


def _warming_up(s: ShardState, line: Line, agent: AgentEntry) -> bool:
    """Rests since the log-in, not since a missed offer."""
    warm_ms = agent.login_ms + agent.config.warm_up_span_ms
    return bool(agent.rest_until_ms) and (not agent.missed or agent.rest_until_ms == warm_ms)


def _no_channel(s: ShardState, line: Line, agent: AgentEntry) -> bool:
    return not any(channel == line.channel and n > 0 for channel, n in agent.config.capacity)


def _skill_missing(s: ShardState, line: Line, agent: AgentEntry) -> bool:
    return any(skill not in agent.skills for skill, _ in line.requirements)


def _level_too_low(s: ShardState, line: Line, agent: AgentEntry) -> bool:
    return any(agent.skills.get(skill, 0) < level for skill, level in line.requirements)


def _full(s: ShardState, line: Line, agent: AgentEntry) -> bool:
    """As many contacts of this channel as the agent takes, where that is more than one."""
    held = (*agent.offers, *agent.calls)
    full = len(held) >= _capacity(agent, line.channel) > 1
    return full and all(s.calls[call_id].facts.channel == line.channel for call_id in held)


def _taken(state: ShardState, line: Line, agent: AgentEntry) -> bool:
    """What the agent holds leaves no room: as much as they take, or another channel."""
    if len(agent.offers) + len(agent.calls) >= _capacity(agent, line.channel):
        return True
    return any(state.calls[c].facts.channel != line.channel for c in (*agent.offers, *agent.calls))


def _capacity(agent: AgentEntry, channel: str) -> int:
    return next((n for name, n in agent.config.capacity if name == channel), 0)


Check = Callable[[ShardState, Line, AgentEntry], bool]
#: Why an agent does not fit, in the order in which it is looked at.
_UNFIT: tuple[tuple[str, Check], ...] = (
    ("NO_CHANNEL", _no_channel),
    ("SKILL_MISSING", _skill_missing),
    ("LEVEL_TOO_LOW", _level_too_low),
)
#: What keeps one who fits from the call, in the order in which it is looked at.
_OCCUPIED: tuple[tuple[str, Check], ...] = (
    ("OFFLINE", lambda s, line, a: a.presence is Presence.OFFLINE),
    ("NO_STREAM", lambda s, line, a: not a.attached),
    ("DRAINING", lambda s, line, a: a.draining),
    ("PAUSED", lambda s, line, a: a.presence is Presence.PAUSED),
    ("CHANNEL_FULL", _full),
    ("RESERVED", lambda s, line, a: bool(a.offers) and not a.calls and _taken(s, line, a)),
    ("BUSY", lambda s, line, a: bool(a.calls) and _taken(s, line, a)),
    ("WRAP_UP", lambda s, line, a: bool(a.wraps)),
    ("WARMING_UP", _warming_up),
    ("REJECT_DELAY", lambda s, line, a: bool(a.rest_until_ms)),
)
#: Who is nearest to being free comes first.
_ORDER = {name: place for place, (name, _) in enumerate(reversed(_OCCUPIED))}


def _occupied(state: ShardState, line: Line, agent: AgentEntry) -> str:
    """What keeps an agent who fits from the call; empty for a free one."""
    if line.channel in agent.idle:
        return ""
    for name, holds in _OCCUPIED:
        if holds(state, line, agent):
            return name
    return ""


def _unfit(state: ShardState, line: Line, agent: AgentEntry) -> str:
    """Why an agent does not fit."""
    return next((name for name, holds in _UNFIT if holds(state, line, agent)), "")


# --- one sentence ---


def _summary(
    line: Line,
    entry: CallEntry | None,
    preferred: str,
    candidates: Iterable[AgentCandidate],
    reasons: Mapping[str, str],
    now_ms: int,
) -> str:
    who = _who(line, reasons)
    best = next((c.agent for c in candidates if c.rank), "")
    where = _where(line)
    if entry is not None and entry.state is not CallState.WAITING:
        return f"{_standing(entry)} in {where}; {who}."
    if entry is None:
        if best:
            drawn = line.queue.strategy is Strategy.RANDOM and not preferred and line.idle_count > 1
            whom = f"one of {line.idle_count} who are free" if drawn else best
            order = "the agent asked for" if preferred else _STRATEGIES[line.queue.strategy]
            return f"It would be offered to {whom} at once in {where}, {order}."
        if preferred:
            return f"It would wait for {preferred} in {where}; {who}."
        return f"It would wait in {where} behind {line.crowd.waiting} others; {who}."
    waited = max(0, entry.waited_span_ms(now_ms)) // 1000
    if not entry.offerable:
        why = "until it is time to call back" if entry.callback_number else "because nobody holds its stream"
        return f"Keeps its place in {where} after {waited} s, not offered {why}; {who}."
    if preferred:
        return f"Waits {waited} s for {preferred} in {where}; {who}."
    return f"Waits {waited} s in {where} with {line.crowd.waiting - 1} others; {who}."


def _where(line: Line) -> str:
    return f"queue {line.queue.id}" + (f", step {line.key[3] + 1}" if line.queue.steps else "")


def _standing(entry: CallEntry) -> str:
    match entry.state:
        case CallState.OFFERED:
            return f"Rings at {entry.agent}"
        case CallState.ACCEPTED:
            return f"Accepted by {entry.agent}, to be confirmed by its edge"
        case CallState.CONNECTED:
            return f"Talks with {entry.agent}"
        case CallState.OVERFLOWING:
            return "Is being placed in another region"
    outcome = entry.outcome.value if entry.outcome is not None else "ended"
    return f"Ended {outcome}" + (f" ({entry.reason})" if entry.reason else "")


def _who(line: Line, reasons: Mapping[str, str]) -> str:
    """How those who fit are occupied: "of 12 who fit, 9 busy, 2 paused, 1 offline"."""
    if not line.agents:
        return "nobody fits"
    counts = Counter(reason for reason in reasons.values() if reason)
    counts["FREE"] = line.idle_count
    parts = [f"{n} {name.lower().replace('_', ' ')}" for name, n in counts.most_common() if n]
    seen = "" if len(reasons) == len(line.agents) else f" ({len(reasons)} looked at)"
    return f"of {len(line.agents)} who fit{seen}, {', '.join(parts)}"
