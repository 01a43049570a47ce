"""What the state looks like from outside: calls, agents, loads of queues. Pure reads."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from routing.model import AgentView, AskCalls, CallState, CallView
from routing.state import Line, ShardState, Tally


def expected_wait_span_ms(line: Line, tally: Tally | None, ahead: int) -> int:
    """Expected wait behind `ahead` calls, in milliseconds; -1 when it cannot be estimated.

    With n agents at work and mean handle time h, one of them becomes free every h / n on average, so the call
    behind k others waits (k + 1) h / n: the mean of the (k+1)-th of Poisson departures at rate n / h (the
    delay of those who wait in M/M/n, Erlang 1917, without later arrivals overtaking).
    """
    if ahead == 0 and line.idle_count > 0:
        return 0
    if tally is None or not tally.handled or not line.logged_in:
        return -1
    handle = tally.handle_span_ms + tally.wrap_up_span_ms
    return round((ahead + 1) * handle / line.logged_in)


def view_call(state: ShardState, call_id: str) -> CallView:
    """The call's entry; position and wait are those of the last of its queue and channel. Raises KeyError if
    unknown.
    """
    e = state.calls[call_id]
    position, wait_ms = 0, -1
    if e.state is CallState.WAITING or e.state is CallState.OVERFLOWING:
        ahead = max(0, e.line.crowd.waiting - 1)
        position = ahead + 1
        wait_ms = expected_wait_span_ms(e.line, state.tallies.get(e.facts.queue), ahead)
    agent = state.agents.get(e.agent) if e.agent else None
    return CallView(
        facts=e.facts,
        attempt=e.attempt,
        move=e.move,
        state=e.state,
        outcome=e.outcome,
        reason=e.reason,
        queued_ms=e.queued_ms,
        effective_ms=e.effective_ms,
        connected_ms=e.connected_ms,
        ended_ms=e.ended_ms,
        agent=e.agent,
        agent_address=agent.config.address if agent is not None else "",
        offer_id=e.offer_id,
        offer_until_ms=e.offer_until_ms,
        detached=not e.attached,
        position=position,
        expected_wait_span_ms=wait_ms,
        recording_uri=e.recording_uri,
        wrap_up_until_ms=e.wrap_up_until_ms,
        step=e.step,
        preferred=e.preferred,
        callback_number=e.callback_number,
        transfers=e.transfers,
    )


def view_agent(state: ShardState, agent_id: str) -> AgentView:
    """The agent as it stands. Raises KeyError if unknown."""
    a = state.agents[agent_id]
    return AgentView(
        agent=agent_id,
        state=a.state,
        pause_reason=a.pause_reason,
        session=a.session,
        command=a.command,
        calls=tuple(sorted((*a.calls, *a.wraps))) if a.calls or a.wraps else (),
        offers=tuple(sorted(a.offers.values())) if a.offers else (),
        since_ms=a.since_ms,
        capacity=a.config.capacity,
        draining=a.draining,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLoad:
    """A queue's load in one shard, all its lines together; agents are those of its plain voice line."""

    #: Queue id.
    queue: str
    #: Calls waiting.
    waiting: int
    #: Agents logged in who fit.
    agents_logged_in: int
    #: Of them with an attached desktop: after a change of leader, those who have come back.
    agents_present: int
    #: Of them free.
    agents_free: int
    #: Expected wait of a call that came now; -1 when it cannot be estimated.
    expected_wait_span_ms: int


def queue_loads(state: ShardState) -> list[QueueLoad]:
    """The load of every queue, by queue id."""
    loads = []
    for queue_id in sorted(state.queues):
        lines = state.lines_by_queue.get(queue_id, [])
        waiting = sum(line.waiting_count for line in lines)
        plain = state.lines.get((queue_id, "voice", (), 0))
        loads.append(
            QueueLoad(
                queue=queue_id,
                waiting=waiting,
                agents_logged_in=plain.logged_in if plain else 0,
                agents_present=plain.present if plain else 0,
                agents_free=plain.idle_count if plain else 0,
                expected_wait_span_ms=expected_wait_span_ms(plain, state.tallies.get(queue_id), waiting)
                if plain
                else -1,
            )
        )
    return loads


def positions(state: ShardState, limit: int) -> Iterator[tuple[str, int, int]]:
    """(call id, position from 1, expected wait in milliseconds) of the first `limit` calls of every queue and
    channel, in the order of serving. A call that waits for one agent counts where it would stand in its line.
    O(n log n).
    """
    crowds: dict[int, list[tuple[int, int, str]]] = {}
    heaps = [line.waiting for line in state.lines.values() if line.waiting_count]
    heaps += [agent.own for agent in state.agents.values() if agent.own_count]
    for sort_ms, ordinal, call_id, ticket in itertools.chain.from_iterable(heaps):
        entry = state.calls.get(call_id)
        if entry is not None and entry.ticket == ticket:
            crowds.setdefault(id(entry.line.crowd), []).append((sort_ms, ordinal, call_id))
    for waiting in crowds.values():
        for ahead, (_, _, call_id) in enumerate(heapq.nsmallest(limit, waiting)):
            line = state.calls[call_id].line
            wait_ms = expected_wait_span_ms(line, state.tallies.get(line.queue.id), ahead)
            yield call_id, ahead + 1, wait_ms


def page_of_calls(state: ShardState, question: AskCalls) -> tuple[CallView, ...]:
    """Live calls after `question.after`, ordered by (first queued, call id). O(n log n): for people, not
    for routing.
    """
    wanted = frozenset(question.states)
    rows = sorted(
        (entry.queued_ms, call_id)
        for call_id, entry in state.calls.items()
        if entry.state is not CallState.ENDED
        and (not wanted or entry.state in wanted)
        and (not question.queue or entry.facts.queue == question.queue)
        and (entry.queued_ms, call_id) > question.after
    )
    return tuple(view_call(state, call_id) for _, call_id in rows[: question.limit])
