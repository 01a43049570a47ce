"""What the edges' and desktops' books say about a lost region. Pure; times are real seconds of the ledger's
clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cli.demo.ledger import Conversation, Entry, Fact, Ledger

#: A region is back when so many of its callers, asking over so many seconds, are answered by its own agents.
HOME_SHARE_MIN, HOME_SECONDS = 0.95, 3.0
#: The call has a place in a region's queue.
_PLACED = frozenset({Fact.QUEUED, Fact.MOVED})
#: It needs none any more.
_DONE = frozenset({Fact.BRIDGED, Fact.HUNG_UP, Fact.REFUSED, Fact.TALKED})


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How one caller fared."""

    call: str
    #: When the caller asked.
    asked: float
    #: When an agent was bridged; None if none was.
    answered: float | None
    #: That agent's region and name; empty without one.
    region: str
    agent: str


def answers(ledger: Ledger, home_of: Mapping[str, str], region: str) -> list[Answer]:
    """Of the callers who live in a region, in the order in which they asked."""
    found = []
    for call, entries in ledger.by_call().items():
        asked = next((entry.at for entry in entries if entry.fact is Fact.ASKED), None)
        if home_of.get(call) != region or asked is None:
            continue
        bridged = next((entry for entry in entries if entry.fact is Fact.BRIDGED), None)
        found.append(
            Answer(
                call=call,
                asked=asked,
                answered=bridged.at if bridged else None,
                region=bridged.region if bridged else "",
                agent=bridged.agent if bridged else "",
            )
        )
    return sorted(found, key=lambda answer: answer.asked)


def reroute_seconds(found: Sequence[Answer], since: float, until: float) -> dict[str, float]:
    """How long the callers who asked between two instants waited for their agent, by call; endless for those
    who got none.
    """
    return {
        each.call: (each.answered - each.asked) if each.answered is not None else float("inf")
        for each in found
        if since <= each.asked < until
    }


def moved_seconds(ledger: Ledger, region: str, lost_at: float) -> dict[str, float]:
    """How long the calls that waited in a region when it was lost took to have a place, or an agent, in
    another, by call; endless for those that had neither.
    """
    found: dict[str, float] = {}
    for call, entries in ledger.by_call().items():
        before = [e for e in entries if e.at < lost_at and e.fact in (_PLACED | _DONE | {Fact.BROKEN})]
        if not before or before[-1].fact not in _PLACED or before[-1].region != region:
            continue
        settled = next((e.at for e in entries if e.at >= lost_at and _is_safe(e, region)), float("inf"))
        found[call] = settled - lost_at
    return found


def _is_safe(entry: Entry, lost: str) -> bool:
    """Whether the call has a place elsewhere or needs none. An agent of the lost region whom it reaches all
    the same (through another region's routers) serves as well as any.
    """
    return entry.fact in _DONE or (entry.fact in _PLACED and entry.region != lost)


def home_again(found: Sequence[Answer], region: str, agents: Iterable[str], healed: float) -> float:
    """Seconds from the healing until the region's callers are answered at home again and each of its agents
    has answered somebody; endless if that did not come.
    """
    later = [each for each in found if each.asked >= healed and each.answered is not None]
    callers = next(
        (each.asked - healed for each in later if _share_at_home(later, region, each.asked)), float("inf")
    )
    return max(callers, _last_agent(later, agents, healed))


def _share_at_home(later: Sequence[Answer], region: str, begin: float) -> bool:
    window = [each for each in later if begin <= each.asked < begin + HOME_SECONDS]
    complete = bool(later) and later[-1].asked >= begin + HOME_SECONDS
    return complete and sum(e.region == region for e in window) >= HOME_SHARE_MIN * len(window)


def _last_agent(later: Sequence[Answer], agents: Iterable[str], healed: float) -> float:
    first: dict[str, float] = {}
    for each in later:
        if each.answered is not None:
            first[each.agent] = min(first.get(each.agent, float("inf")), each.answered - healed)
    return max((first.get(agent, float("inf")) for agent in agents), default=0.0)


def connected_twice(ledger: Ledger, desks: Sequence[Conversation]) -> list[str]:
    """Calls that were bridged while bridged, or after their conversation had come to its end, and calls that
    a desktop took up with whom their edge was never bridged although it was bridged with another meanwhile.
    """
    found: dict[str, None] = {}
    talks: dict[str, list[tuple[str, float, float]]] = {}
    for call, entries in ledger.by_call().items():
        agent, since, over = "", 0.0, False
        for entry in entries:
            if entry.fact is Fact.BRIDGED:
                if agent or over:
                    found[call] = None
                agent, since = entry.agent, entry.at
            elif entry.fact in (Fact.TALKED, Fact.BROKEN) and agent:
                talks.setdefault(call, []).append((agent, since, entry.at))
                agent, over = "", entry.fact is Fact.TALKED
    for desk in desks:
        spans = talks.get(desk.call, [])
        overlaps = any(desk.start < end and begin < desk.end for _, begin, end in spans)
        if overlaps and all(agent != desk.agent for agent, _, _ in spans):
            found[desk.call] = None
    return list(found)
