"""What the simulated edges and desktops saw, and what follows from it. The server's word counts for nothing
here.

Each edge and each desktop writes down what it did, in order, at the moment it did it. From these two books
alone the
demo says whether a call was lost and whether an agent talked with two callers at once:

  lost           a call that was acknowledged (its edge saw QUEUED) and whose book does not end in a
  conversation that was
                 ended, a hang-up or a refusal; also one that the platform denied knowing, or ended by itself,
                 while its
                 caller was still on the line. A call still waiting when the demo is broken off is not lost.
  double-booked  an agent with two conversations that overlap, in the edges' books or in the desktops'.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

#: Records a ledger takes at most; a day has about ten for each call.
RECORDS_MAX = 2_000_000


class Fact(enum.StrEnum):
    """What an edge writes down about a call."""

    #: The caller asked for an agent; RouteCall is about to be opened for the first time.
    ASKED = "asked"
    #: QUEUED was received: the call is acknowledged. Written once for each attempt and region.
    QUEUED = "queued"
    #: The call is opened again with a higher attempt.
    REOPENED = "reopened"
    #: MOVED was received.
    MOVED = "moved"
    #: Caller and agent are bridged.
    BRIDGED = "bridged"
    #: The conversation is over, both hung up.
    TALKED = "talked"
    #: The conversation broke off: the agent's region went away.
    BROKEN = "broken"
    #: The caller hung up before an answer.
    HUNG_UP = "hung_up"
    #: The platform refused the call with a reason, and the caller was told.
    REFUSED = "refused"
    #: The platform ended the call, or denied knowing it, with the caller still on the line.
    DROPPED = "dropped"
    #: No router took the call for as long as the edge tries.
    GAVE_UP = "gave_up"
    #: Waiting, or talking, when the demo was broken off.
    STILL_WAITING = "still_waiting"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of an edge's book."""

    #: The call.
    call: str
    #: What happened.
    fact: Fact
    #: Real seconds of the machine's monotonic clock.
    at: float
    #: Business seconds since the replay began.
    business: float
    #: Region concerned: whose queue, or whose agent; may be empty.
    region: str = ""
    #: Agent id, with BRIDGED, TALKED and BROKEN.
    agent: str = ""
    #: Attempt.
    attempt: int = 0
    #: Reason, for people.
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A span in which an agent talked with a caller, by one side's book."""

    #: Agent id.
    agent: str
    #: Call id.
    call: str
    #: Real seconds, monotonic. `end` is infinite for one that did not end.
    start: float
    end: float


@dataclass(slots=True)
class Ledger:
    """An append-only book. One for all edges of the demo, in the order of what happened."""

    #: The lines.
    entries: list[Entry] = field(default_factory=list)

    def write(self, entry: Entry) -> None:
        if len(self.entries) >= RECORDS_MAX:
            raise OverflowError(f"the ledger is full ({RECORDS_MAX} lines)")
        self.entries.append(entry)

    def by_call(self) -> dict[str, list[Entry]]:
        """Each call's lines in their order."""
        calls: dict[str, list[Entry]] = {}
        for entry in self.entries:
            calls.setdefault(entry.call, []).append(entry)
        return calls


#: A book that ends so has not lost its call.
_GOOD_ENDS = frozenset({Fact.TALKED, Fact.HUNG_UP, Fact.REFUSED, Fact.STILL_WAITING})


def lost_calls(ledger: Ledger) -> list[str]:
    """Ids of the acknowledged calls that were lost."""
    return [
        call
        for call, entries in ledger.by_call().items()
        if any(entry.fact is Fact.QUEUED for entry in entries) and entries[-1].fact not in _GOOD_ENDS
    ]


def untaken_calls(ledger: Ledger) -> list[str]:
    """Ids of calls that no router ever acknowledged although the caller stayed: not lost, but not served
    either.
    """
    return [
        call
        for call, entries in ledger.by_call().items()
        if not any(entry.fact is Fact.QUEUED for entry in entries)
        and entries[-1].fact in (Fact.GAVE_UP, Fact.DROPPED, Fact.ASKED, Fact.REOPENED)
    ]


def conversations(ledger: Ledger) -> list[Conversation]:
    """Every bridged span of the edges' book; one that never ended runs to infinity."""
    spans: list[Conversation] = []
    open_spans: dict[str, tuple[str, float]] = {}
    for entry in ledger.entries:
        if entry.fact is Fact.BRIDGED:
            _close(spans, open_spans, entry.call, entry.at)
            open_spans[entry.call] = (entry.agent, entry.at)
        elif entry.fact in (Fact.TALKED, Fact.BROKEN, Fact.STILL_WAITING):
            _close(spans, open_spans, entry.call, entry.at)
    for call in list(open_spans):
        _close(spans, open_spans, call, float("inf"))
    return spans


def _close(spans: list[Conversation], open_spans: dict[str, tuple[str, float]], call: str, at: float) -> None:
    if call in open_spans:
        agent, start = open_spans.pop(call)
        spans.append(Conversation(agent=agent, call=call, start=start, end=at))


def double_booked(spans: Iterable[Conversation]) -> dict[str, tuple[str, str]]:
    """Agents with two conversations at the same time, each with the first such pair of calls."""
    by_agent: dict[str, list[Conversation]] = {}
    for span in spans:
        by_agent.setdefault(span.agent, []).append(span)
    found: dict[str, tuple[str, str]] = {}
    for agent, rows in by_agent.items():
        latest: Conversation | None = None
        for row in sorted(rows, key=lambda span: (span.start, span.end)):
            if latest is not None and row.start < latest.end:
                found.setdefault(agent, (latest.call, row.call))
            if latest is None or row.end > latest.end:
                latest = row
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What the edges' book says of the day. Waits in business seconds, recovery in real ones."""

    #: Calls asked for.
    offered: int
    #: Waits of those answered, in no order.
    answered_waits: Sequence[float]
    #: Waits of those who hung up unanswered.
    abandoned_waits: Sequence[float]
    #: Calls refused with a reason, by reason.
    refused: Mapping[str, int]
    #: Of those answered, by an agent of the caller's own region.
    answered_at_home: int
    #: Calls that went on elsewhere after having been queued: moved, or opened again after a loss.
    rerouted: int
    #: Calls opened again with a higher attempt.
    reopened: int
    #: Conversations that broke off because the agent's region went away.
    interrupted: int
    #: Real milliseconds from asking to the first acknowledgement, of those who got one, in no order.
    acknowledge_milliseconds: Sequence[float]
    #: Callers who hung up without ever having been acknowledged.
    unacknowledged: int
    #: Why calls were opened again, most frequent first.
    reopened_why: Mapping[str, int]


def tally(ledger: Ledger, home_of: Mapping[str, str]) -> Tally:
    """The day's figures. `home_of` gives each call's home region."""
    answered: list[float] = []
    abandoned: list[float] = []
    acknowledged: list[float] = []
    refused: dict[str, int] = {}
    why: Counter[str] = Counter()
    at_home = rerouted = reopened = interrupted = offered = unacknowledged = 0
    for call, entries in ledger.by_call().items():
        facts = {entry.fact for entry in entries}
        asked = next((entry for entry in entries if entry.fact is Fact.ASKED), None)
        offered += asked is not None
        first = next((entry for entry in entries if entry.fact is Fact.BRIDGED), None)
        queued = next((entry for entry in entries if entry.fact is Fact.QUEUED), None)
        if queued is not None and asked is not None:
            acknowledged.append((queued.at - asked.at) * 1000.0)
        if first is not None and asked is not None:
            answered.append(first.business - asked.business)
            at_home += first.region == home_of.get(call, "")
        elif entries[-1].fact is Fact.HUNG_UP and asked is not None:
            abandoned.append(entries[-1].business - asked.business)
            unacknowledged += queued is None
        elif entries[-1].fact is Fact.REFUSED:
            refused[entries[-1].why] = refused.get(entries[-1].why, 0) + 1
        rerouted += Fact.MOVED in facts or (Fact.REOPENED in facts and Fact.QUEUED in facts)
        reopened += Fact.REOPENED in facts
        interrupted += Fact.BROKEN in facts
        why.update(entry.why for entry in entries if entry.fact is Fact.REOPENED)
    return Tally(
        offered=offered,
        answered_waits=answered,
        abandoned_waits=abandoned,
        refused=refused,
        answered_at_home=at_home,
        rerouted=rerouted,
        reopened=reopened,
        interrupted=interrupted,
        acknowledge_milliseconds=acknowledged,
        unacknowledged=unacknowledged,
        reopened_why=dict(why.most_common()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """How the callers of a killed region fared, in real seconds from the kill. None: there was nobody."""

    #: Calls waiting in the region, or talking with its agents, at the kill.
    affected: int
    #: Until the last of them was queued elsewhere or had hung up.
    worst_seconds: float | None
    #: Until the first new caller who lives there was queued elsewhere.
    first_new_call_seconds: float | None
    #: Who answered callers who live there from the kill on, by region.
    answered_by: Mapping[str, int] = field(default_factory=dict)


def recovery(ledger: Ledger, region: str, killed_at: float, home_of: Mapping[str, str]) -> Recovery:
    """From the edges' book. `killed_at` is on its clock."""
    worst: list[float] = []
    first_new: float | None = None
    went: Counter[str] = Counter()
    for call, entries in ledger.by_call().items():
        before = [entry for entry in entries if entry.at < killed_at and entry.region]
        after = [entry for entry in entries if entry.at >= killed_at]
        if home_of.get(call) == region:
            bridged = next((e for e in after if e.fact is Fact.BRIDGED), None)
            went.update([bridged.region] if bridged is not None else [])
        if before and before[-1].region == region and before[-1].fact in _HELD:
            settled = next((e for e in after if e.fact in _SETTLED), None)
            if settled is not None:
                worst.append(settled.at - killed_at)
        elif not before and home_of.get(call) == region and first_new is None:
            queued = next((e for e in after if e.fact is Fact.QUEUED), None)
            first_new = queued.at - killed_at if queued is not None else None
    return Recovery(
        affected=len(worst),
        worst_seconds=max(worst) if worst else None,
        first_new_call_seconds=first_new,
        answered_by=dict(went.most_common()),
    )


#: The call waits in the region, or talks with one of its agents.
_HELD = frozenset({Fact.QUEUED, Fact.MOVED, Fact.BRIDGED})
#: The call of a lost region is safe again.
_SETTLED = frozenset({Fact.QUEUED, Fact.BRIDGED, Fact.HUNG_UP, Fact.TALKED, Fact.REFUSED})
