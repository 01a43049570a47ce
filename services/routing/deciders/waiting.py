"""Whether and how a call can wait: its place, its step of relaxation, whom it waits for. Asked by whoever
places a call or hands it on; decides nothing by itself.
"""

from __future__ import annotations

from routing.model import LINES_MAX, CallFacts, QueueConfig, Refusal
from routing.state import Crowd, ShardState, worth_waiting_for

_NO_CROWDS: dict[str, Crowd] = {}


def place_ms(queue: QueueConfig, facts: CallFacts, queued_ms: int, priority: int) -> int:
    """Effective arrival of a wait that began at `queued_ms`: its place among others."""
    return queued_ms - facts.credit_span_ms - priority * queue.priority_credit_span_ms


def no_room(
    s: ShardState, queue: QueueConfig, facts: CallFacts, step: int, *, fitting: bool = False
) -> Refusal | None:
    """Why a call cannot wait in a queue; None if it can. `fitting`: only where somebody is who fits it."""
    line = s.lines.get((queue.id, facts.channel, facts.skills, step))
    if queue.closed:
        return Refusal(reason="QUEUE_CLOSED", field="queue")
    if line is None and len(s.lines) >= LINES_MAX:
        return Refusal(reason="TOO_MANY_SKILL_SETS", field="skills")
    waiting = 0
    for crowd in s.crowds.get(queue.id, _NO_CROWDS).values():
        waiting += crowd.waiting
    if waiting >= queue.length_max:
        return Refusal(reason="QUEUE_FULL", field="queue")
    if (queue.refuse_without_agents or fitting) and not logged_in(s, queue, facts, step):
        return Refusal(reason="NO_AGENT_LOGGED_IN", field="queue")
    return None


def step_at(
    s: ShardState, queue: QueueConfig, facts: CallFacts, began_ms: int, now_ms: int
) -> tuple[int, int]:
    """(step of relaxation in force at `now_ms` for a wait that began at `began_ms`, when the next begins).

    A step is over when its time is, or at once when nobody who fits it is logged in and it says so; the last
    one has no end, so 0 is returned for the next.
    """
    if not queue.steps:
        return 0, 0
    ends_ms = began_ms
    for index, step in enumerate(queue.steps[:-1]):
        if step.skip_if_nobody_fits and not logged_in(s, queue, facts, index):
            continue
        ends_ms += step.span_ms
        if now_ms < ends_ms:
            return index, ends_ms
    return max(0, len(queue.steps) - 1), 0


def logged_in(s: ShardState, queue: QueueConfig, facts: CallFacts, step: int) -> int:
    """Agents logged in who could take the call in a step. Makes the step's line if it is the first to want
    it: an index, no fact.
    """
    key = (queue.id, facts.channel, facts.skills, step)
    if key not in s.lines and len(s.lines) >= LINES_MAX:
        return 0
    return s.line_of(key).logged_in


def hope(s: ShardState, queue: QueueConfig, facts: CallFacts, began_ms: int, now_ms: int) -> tuple[str, int]:
    """(the preferred agent, until when it is waited for), or ("", 0) when there is none to be waited for."""
    if not facts.preferred_agent:
        return "", 0
    until_ms = began_ms + (facts.preferred_span_ms or queue.preferred_span_ms)
    if until_ms <= now_ms or not worth_waiting_for(s.agents.get(facts.preferred_agent), facts.channel):
        return "", 0
    return facts.preferred_agent, until_ms
