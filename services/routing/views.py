"""What the state looks like from outside: calls, agents, loads of queues. Pure reads."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from routing.model import ENDED, OVERFLOWING, WAITING, AgentView, AskCalls, CallView, context_bytes
from routing.state import CallEntry, Line, ShardState, Tally, expected_span_ms, turn_of

#: Context that the calls of one page carry. A gRPC client takes messages of 4 MiB unless it says otherwise,
#: and a thousand calls without context are half a MiB.
PAGE_BYTES_MAX = 3 << 20
#: In a queue of more waiting calls nobody looks for those that a caller goes before: it is told the last
#: place, and its own with the next round of positions.
LOOKED_THROUGH_MAX = 500


def expected_wait_span_ms(line: Line, tally: Tally | None, ahead: int) -> int:
    """What a caller behind `ahead` calls is told of the wait, in milliseconds; -1 for an unknown one: what
    the line's agents alone would make of it, corrected by what earlier waits of the queue came to.
    """
    span_ms = expected_span_ms(line, tally, ahead)
    return round(span_ms * tally.correction) if span_ms > 0 and tally is not None else span_ms


#: Places of those who wait, in order, by their crowd's identity: for who looks at many calls at one moment.
Places = dict[int, list[tuple[int, int]]]


def calls_ahead(state: ShardState, entry: CallEntry, places: Places | None = None) -> int:
    """Calls of its queue and channel that are served before a waiting one. O(n); with `places`, which are
    filled in, O(log n) for each call of a crowd but the first.
    """
    crowd = entry.line.crowd
    others = crowd.waiting - bool(entry.ticket)
    if others <= 0:
        return 0
    if entry.effective_ms >= state.now_ms or crowd.waiting > LOOKED_THROUGH_MAX:
        return others
    queue, calls, behind = entry.line.queue, state.calls, 0
    place = turn_of(entry)
    if places is not None:
        known = places.get(id(crowd))
        if known is None:
            known = places[id(crowd)] = _places(state, entry.line)
        return max(0, others - len(known) + bisect_right(known, place))
    for line in state.lines_by_queue.get(queue.id, ()):
        if line.crowd is crowd:
            for sort_ms, ordinal, call_id, ticket in line.waiting:
                if (sort_ms, ordinal) > place:
                    other = calls.get(call_id)
                    behind += other is not None and other.ticket == ticket
    return max(0, others - behind)


def _places(state: ShardState, line: Line) -> list[tuple[int, int]]:
    """Places of all who wait in a line's queue on its channel, in order."""
    calls = state.calls
    return sorted(
        (sort_ms, ordinal)
        for each in state.lines_by_queue.get(line.queue.id, ())
        if each.crowd is line.crowd
        for sort_ms, ordinal, call_id, ticket in each.waiting
        if (other := calls.get(call_id)) is not None and other.ticket == ticket
    )


def view_call(state: ShardState, call_id: str, places: Places | None = None) -> CallView:
    """The call's entry, with its place and expected wait while it waits; `places` as for `calls_ahead`.
    Raises KeyError if unknown.
    """
    e = state.calls[call_id]
    position, wait_ms = 0, -1
    if e.state is WAITING or e.state is OVERFLOWING:
        ahead = calls_ahead(state, e, places)
        position = ahead + 1
        wait_ms = expected_wait_span_ms(e.line, state.tallies.get(e.facts.queue), ahead)
    agent = state.agents.get(e.agent) if e.agent else None
    # By position: CPython puts more than fifteen keywords into a dict first, and a view is made for nearly
    # every command.
    return CallView(
        e.facts,
        e.attempt,
        e.move,
        e.state,
        e.outcome,
        e.reason,
        e.queued_ms,
        e.effective_ms,
        e.connected_ms,
        e.ended_ms,
        e.agent,
        agent.config.address if agent is not None else "",
        e.offer_id,
        e.offer_until_ms,
        not e.attached,
        position,
        wait_ms,
        recording_uri=e.recording_uri,
        wrap_up_until_ms=e.wrap_up_until_ms,
        step=e.step,
        preferred=e.preferred,
        callback_number=e.callback_number,
        transfers=e.transfers,
        callback_ms=e.callback_ms,
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
    #: Expected wait of a call that came now, as callers are told it; -1 when it cannot be estimated.
    expected_wait_span_ms: int
    #: The same if all agents served this queue alone and no call went elsewhere: what placement compares
    #: regions by, for what it does about a wait must not change what it sees.
    own_wait_span_ms: int


def queue_loads(state: ShardState) -> list[QueueLoad]:
    """The load of every queue, by queue id."""
    loads = []
    for queue_id in sorted(state.queues):
        lines = state.lines_by_queue.get(queue_id, [])
        waiting = sum(line.waiting_count for line in lines)
        plain, tally = state.lines.get((queue_id, "voice", (), 0)), state.tallies.get(queue_id)
        loads.append(
            QueueLoad(
                queue=queue_id,
                waiting=waiting,
                agents_logged_in=plain.logged_in if plain else 0,
                agents_present=plain.present if plain else 0,
                agents_free=plain.idle_count if plain else 0,
                expected_wait_span_ms=expected_wait_span_ms(plain, tally, waiting) if plain else -1,
                own_wait_span_ms=expected_span_ms(plain, tally, waiting) if plain else -1,
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
    heaps += [heap for agent in state.agents.values() if agent.own_count for heap in agent.own.values()]
    for sort_ms, ordinal, call_id, ticket in itertools.chain.from_iterable(heaps):
        entry = state.calls.get(call_id)
        if entry is not None and entry.ticket == ticket:
            crowds.setdefault(id(entry.line.crowd), []).append((sort_ms, ordinal, call_id))
    for waiting in crowds.values():
        for ahead, (_, _, call_id) in enumerate(heapq.nsmallest(limit, waiting)):
            line = state.calls[call_id].line
            wait_ms = expected_wait_span_ms(line, state.tallies.get(line.queue.id), ahead)
            yield call_id, ahead + 1, wait_ms


def page_of_calls(state: ShardState, question: AskCalls) -> tuple[tuple[CallView, ...], bool]:
    """Live calls after `question.after`, ordered by (first queued, call id), as many as were asked for or
    make a message; and whether there are more. O(n log n): for people, not for routing.
    """
    wanted = frozenset(question.states)
    rows = sorted(
        (entry.queued_ms, call_id)
        for call_id, entry in state.calls.items()
        if entry.state is not ENDED
        and (not wanted or entry.state in wanted)
        and (not question.queue or entry.facts.queue == question.queue)
        and (entry.queued_ms, call_id) > question.after
    )
    places, carried = Places(), 0
    page: list[CallView] = []
    for _, call_id in rows[: question.limit]:
        carried += context_bytes(state.calls[call_id].facts.attributes)
        if page and carried > PAGE_BYTES_MAX:
            break
        page.append(view_call(state, call_id, places))
    return tuple(page), len(page) < len(rows)
