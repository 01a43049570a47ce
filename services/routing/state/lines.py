"""A line and its agents: who belongs to it, who is free for it, who of those that wait in it comes next.

Here agents join and leave lines, and come and go as free; when they do, `indexes` and `configuration` say.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator

from routing.model import AVAILABLE, OFFLINE, OWN_WAITING_MAX, Presence
from routing.state.entries import AgentEntry, CallEntry, Line
from routing.state.free import INBOX_MAX, Place


def head_of(
    heap: list[tuple[int, int, str, int]], calls: dict[str, CallEntry]
) -> tuple[int, int, str] | None:
    """The next call of those that wait in a line, or for one agent, as (sort key, ordinal, call id); outdated
    entries are dropped on the way.
    """
    while heap:
        sort_ms, ordinal, call_id, ticket = heap[0]
        entry = calls.get(call_id)
        if entry is not None and entry.ticket == ticket:
            return sort_ms, ordinal, call_id
        heapq.heappop(heap)
    return None


def turn_of(entry: CallEntry) -> tuple[int, int]:
    """Where a call stands among all that wait: effective arrival less its queue's head start, then who came
    first.
    """
    queue = entry.line.queue
    return entry.effective_ms - queue.weight * queue.priority_credit_span_ms, entry.ordinal


def worth_waiting_for(agent: AgentEntry | None, channel: str) -> bool:
    """Whether a call may wait for this very agent: there, ready and staying, and not for too many already."""
    if agent is None or agent.presence is not AVAILABLE or not agent.attached or agent.draining:
        return False
    takes = any(name == channel and n > 0 for name, n in agent.config.capacity)
    return takes and agent.own_count < OWN_WAITING_MAX


def best_idle(
    line: Line, agents: dict[str, AgentEntry], draw: int = 0, last: Collection[str] = ()
) -> str | None:
    """The line's best free agent by its strategy. `draw` is the lot, any number, of a queue that draws
    lots; agents of `last` are taken only when nobody else is free.
    """
    best = line.free.best(draw)
    if best in last:
        # At most all of `last` come before the first of the others.
        return next((agent_id for agent_id in line.free.order(len(last) + 1) if agent_id not in last), best)
    return best


def lines_of(agent: AgentEntry) -> Iterator[Line]:
    """All lines that an agent fits."""
    return itertools.chain.from_iterable(agent.lines.values())


def fill(line: Line, agents: Iterable[AgentEntry], *, listed: bool) -> None:
    """Those of the agents who fit join the line; unless they are listed where it looks for free ones, they
    are, who has been free for longer first.
    """
    idle = [agent for agent in agents if join(agent, line, listed=listed) and line.channel in agent.idle]
    for agent in sorted(idle, key=lambda agent: (agent.idle[line.channel].since_ms, agent.config.id)):
        if not listed:
            line.free.add(agent.idle[line.channel])
        line.idle += 1


def join(agent: AgentEntry, line: Line, *, listed: bool = False) -> bool:
    """The agent, not yet listed as free, joins the line if it fits; whether it did. `listed`: whoever fits is
    listed already where the line looks for free ones.
    """
    if not line.fits(agent):
        return False
    line.agents.add(agent.config.id)
    agent.lines.setdefault(line.channel, []).append(line)
    if not listed and line.channel in agent.free_in:
        agent.free_in[line.channel].append(line.free)
    if line.counted:
        agent.plain.setdefault(line.channel, []).append(line)
    line.logged_in += agent.presence is not OFFLINE
    line.present += agent.is_present
    line.serving += agent.serves
    return True


def part(agent: AgentEntry, line: Line) -> None:
    """The inverse, on the agent's side."""
    agent.lines[line.channel].remove(line)
    agent.free_in.pop(line.channel, None)
    if line.counted:
        agent.plain[line.channel].remove(line)


def leave_lines(agent: AgentEntry) -> None:
    for line in lines_of(agent):
        line.agents.discard(agent.config.id)
        line.logged_in -= agent.presence is not OFFLINE
        line.present -= agent.is_present
        line.serving -= agent.serves
        line.idle -= line.channel in agent.idle
    for place in agent.idle.values():
        place.live = False
    agent.lines, agent.plain, agent.free_in = {}, {}, {}
    agent.idle = {}


def set_presence(agent: AgentEntry, presence: Presence, *, attached: bool) -> None:
    """What the agent says, and whether its desktop is attached; its lines count both."""
    logged_in, present, serves = agent.presence is not OFFLINE, agent.is_present, agent.serves
    agent.presence, agent.attached = presence, attached
    more_logged_in = (presence is not OFFLINE) - logged_in
    more_present = agent.is_present - present
    more_serving = agent.serves - serves
    if more_logged_in or more_present or more_serving:
        for line in lines_of(agent):
            line.logged_in += more_logged_in
            line.present += more_present
            line.serving += more_serving


def come(agent: AgentEntry, channel: str) -> None:
    """The agent is free for all lines of a channel. By far the most frequent thing that happens to a line."""
    place = agent.idle[channel] = Place(agent.config.id, agent, agent.since_ms)
    everywhere = agent.free_in.get(channel)
    if everywhere is None:
        shared = {id(line.free): line.free for line in agent.lines.get(channel, ())}
        everywhere = agent.free_in[channel] = list(shared.values())
    for free in everywhere:
        inbox = free.inbox
        inbox.append(place)
        if len(inbox) > INBOX_MAX:
            free.take_in()
    for line in agent.plain.get(channel, ()):
        line.idle += 1


def stay_free(agent: AgentEntry, since_ms: dict[str, int]) -> None:
    """Whoever was free when its settings changed keeps its turn, on the channels that it still takes."""
    for channel, ms in since_ms.items():
        if channel in agent.channels:
            place = agent.idle[channel] = Place(agent.config.id, agent, ms)
            for free in {id(line.free): line.free for line in agent.lines.get(channel, ())}.values():
                free.add_back(place)
            for line in agent.plain.get(channel, ()):
                line.idle += 1


def step_back(agent: AgentEntry) -> None:
    """Whoever is given a contact and has room for another is free anew, behind the others and with the rank
    of now: else one agent would be filled to the brim while the others sit idle.
    """
    for channel, place in agent.idle.items():
        place.live = False
        for line in agent.plain.get(channel, ()):
            line.idle -= 1
    agent.idle = {}
