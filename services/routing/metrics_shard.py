"""A router's figures of the shards that it leads or follows, for /metrics. Nothing is counted where calls are
decided: everything here is read from the leader's state when somebody asks.

1. **Counters** say what happened to calls while this router led. They are differences of the state's own
   tallies between two looks, from the moment it began to lead on; so the sum over routers counts every call
   once, whoever leads when, and a standby that reads old blocks adds nothing. What happened between the last
   look and a crash is missing: for exact counts there are reports (reports.py).
2. **Gauges** are shown for shards that this router leads, and by nobody else.
3. A queue has its own name while it is among the largest; the others are added up as "(other)". What was
   counted under one name stays there: counters never go back.
4. Agents and calls that look wrong are so only if they still do after `SUSPECT_SECONDS`: a look may fall
   between two halves of a change.

Spans of calls and agents are business time, those of the journal are real time.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from chassis.metrics import OTHERS, LargestFirst
from routing.model import AgentState, AskStats, CallState, QueueFigures
from routing.state import AgentEntry, CallEntry, ShardState, Tally
from routing.stats import shard_stats

#: (Region, queue) pairs with a name of their own in one router, over all shards that it leads or follows.
QUEUES_NAMED_MAX = 120
#: How long an agent or a call has to look wrong, and how often they are looked through, real seconds.
SUSPECT_SECONDS = 30.0
WALK_SECONDS = 5.0
#: An offer or after-call work this far past its end is not ended by its timer any more, business time.
OVERDUE_SPAN_MS = 60_000

Pair = tuple[str, str]

_REGION, _QUEUE = ("region",), ("region", "queue")
#: Counters by the tally's field: (name without "_total", doc).
COUNTERS = {
    "offered": ("callmesh_queue_offered", "Calls that began to wait in a queue."),
    "answered": ("callmesh_queue_answered", "Calls connected to an agent."),
    "answered_in_target": (
        "callmesh_queue_answered_in_target",
        "Calls connected within the queue's service level target.",
    ),
    "abandoned": ("callmesh_queue_abandoned", "Callers gone after more than the short-abandon time."),
    "short_abandoned": ("callmesh_queue_short_abandoned", "Callers gone within the short-abandon time."),
    "refused": ("callmesh_queue_refused", "Calls given up by the platform: no agent in time."),
    "moved": ("callmesh_queue_moved", "Calls that went on in another region."),
    "handled": ("callmesh_queue_handled", "Conversations that ended."),
    "wait_total_ms": (
        "callmesh_queue_answer_wait_seconds",
        "Waits of the calls that were answered, added up, seconds.",
    ),
}
_FIELDS = tuple(COUNTERS)
_MS = _FIELDS.index("wait_total_ms")
#: Gauges of a queue by the figure's field: (name, doc, factor).
GAUGES = {
    "waiting": ("callmesh_queue_waiting_calls", "Calls that wait.", 1.0),
    "longest_wait_span_ms": (
        "callmesh_queue_longest_wait_seconds",
        "How long the caller waits who has waited longest; 0 when nobody does but callers to be called back.",
        0.001,
    ),
    "in_service": (
        "callmesh_queue_calls_in_service",
        "Calls that ring, are accepted or in conversation.",
        1.0,
    ),
    "agents_logged_in": ("callmesh_queue_agents_logged_in", "Agents logged in who fit the queue.", 1.0),
    "agents_free": ("callmesh_queue_agents_free", "Agents who fit the queue and could take a call now.", 1.0),
    "expected_wait_span_ms": (
        "callmesh_queue_expected_wait_seconds",
        "Expected wait of a call that came now; missing while it cannot be estimated.",
        0.001,
    ),
}
#: What adds up over queues; of agents that would count one several times.
_ADDED_UP = ("waiting", "in_service")

TARGET = (
    "callmesh_queue_service_level_target_seconds",
    "Wait within which a call is answered in target, as the directory has it.",
)
AGENTS = ("callmesh_agents", "Agents by what they are doing; offline ones are configured and not logged in.")
CALLS = ("callmesh_calls_live", "Calls that a shard holds and that are not over, by state.")
STUCK = (
    "callmesh_agents_stuck",
    "Agents held by no live offer or call for longer than any timer allows. 0 unless something is broken.",
)
LOST = (
    "callmesh_calls_lost",
    "Calls that were taken and that nothing goes on with: they neither wait, ring nor talk. 0 unless "
    "something is broken.",
)
DRAINING = ("callmesh_region_draining", "1 while a region takes no new calls.")
EPOCH = ("callmesh_shard_epoch", "Epoch of the shard as this router knows it: it rises with every opening.")
SEQUENCE = ("callmesh_shard_sequence", "Newest block of the shard that this router knows to be committed.")
STALLED = ("callmesh_shard_stalled", "1 while this router leads and cannot commit.")
_LIVE_STATES = tuple(state for state in CallState if state is not CallState.ENDED)


class Led(Protocol):
    """What is read of a `routing.leader.Leader`."""

    shard: str
    state: ShardState

    @property
    def leading(self) -> bool: ...
    @property
    def stalled(self) -> bool: ...
    @property
    def epoch(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    def now_ms(self) -> int: ...


def tallied(tally: Tally) -> tuple[int, ...]:
    """A tally's counts in the order of `COUNTERS`."""
    return (
        tally.offered,
        tally.answered,
        tally.answered_in_target,
        tally.abandoned,
        tally.short_abandoned,
        tally.refused,
        tally.moved,
        tally.handled,
        tally.wait_total_ms,
    )


class QueueCounts:
    """Counts by (region, queue), and those of the queues without a name by region."""

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self._names: LargestFirst[Pair] = LargestFirst(limit, monotonic)
        self.own: dict[Pair, list[int]] = {}
        self.others: dict[str, list[int]] = {}
        #: What `own` is ranked by: calls since the journal began.
        self._sizes: dict[Pair, float] = {}
        #: By region: the state that was looked at, and its tallies then.
        self._seen: dict[str, tuple[weakref.ref[ShardState], dict[str, tuple[int, ...]]]] = {}

    def begin(self, state: ShardState) -> None:
        """Counts from here on; what a state has counted before is others' or of the past."""
        self._seen[state.shard] = (weakref.ref(state), {q: tallied(t) for q, t in state.tallies.items()})

    def meet(self, states: Mapping[str, ShardState]) -> None:
        """Learns which queues there are and how large they are. A shard that is just being read has none: it
        keeps those that it had.
        """
        gone = [pair for pair in self.own if not self._there(pair, states.get(pair[0]))]
        for pair in gone:
            del self.own[pair], self._sizes[pair]
        for shard, state in states.items():
            for queue in state.queues:
                tally = state.tallies.get(queue)
                self.own.setdefault((shard, queue), [0] * len(_FIELDS))
                self._sizes[shard, queue] = float(tally.offered) if tally is not None else 0.0

    def _there(self, pair: Pair, state: ShardState | None) -> bool:
        return state is not None and (not state.queues or pair[1] in state.queues)

    def rank(self) -> frozenset[Pair]:
        """The pairs with names; see `LargestFirst`."""
        return self._names.rank(self._sizes)

    def count(self, state: ShardState) -> None:
        """Adds what happened since the last look at this very state."""
        known = self._seen.get(state.shard)
        if known is None or known[0]() is not state:
            self.begin(state)
            return
        seen, named = known[1], self._names.named
        for queue, tally in state.tallies.items():
            now, pair = tallied(tally), (state.shard, queue)
            before = seen.get(queue)
            if now == before or pair not in self.own:
                continue
            seen[queue] = now
            self._add(self.own[pair], now, before)
            if pair not in named:
                self._add(self.others.setdefault(state.shard, [0] * len(_FIELDS)), now, before)

    def _add(self, counts: list[int], now: tuple[int, ...], before: tuple[int, ...] | None) -> None:
        for i, count in enumerate(now):
            # A queue that was taken away and made anew begins at 0 again.
            counts[i] += max(0, count - before[i]) if before is not None else count

    def families(self, regions: Iterable[str]) -> Iterable[Metric]:
        """The counters, of names and of the others."""
        rows = [(pair, self.own[pair]) for pair in sorted(self._names.named)]
        rows += [((region, OTHERS), self.others[region]) for region in regions if region in self.others]
        for i, (name, doc) in enumerate(COUNTERS.values()):
            family = CounterMetricFamily(name, doc, labels=_QUEUE)
            for pair, counts in rows:
                family.add_metric(pair, counts[i] / 1000 if i == _MS else counts[i])
            yield family


class Suspects:
    """Agents and calls of one shard that look wrong, and since when."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._agents: dict[str, float] = {}
        self._calls: dict[str, float] = {}

    def look(self, state: ShardState, now_ms: int) -> tuple[int, int]:
        """(stuck agents, lost calls): what looked wrong already `SUSPECT_SECONDS` ago, and ever since."""
        now = self._monotonic()
        agents = {a for a, agent in state.agents.items() if agent.holding and is_stuck(state, agent, now_ms)}
        calls = {c for c, call in state.calls.items() if is_lost(state, call)}
        self._agents = {agent: self._agents.get(agent, now) for agent in agents}
        self._calls = {call: self._calls.get(call, now) for call in calls}
        return self._old(self._agents, now), self._old(self._calls, now)

    def _old(self, since: dict[str, float], now: float) -> int:
        return sum(now - each >= SUSPECT_SECONDS for each in since.values())

    def forget(self) -> None:
        """Somebody else leads."""
        self._agents.clear()
        self._calls.clear()


def is_stuck(state: ShardState, agent: AgentEntry, now_ms: int) -> bool:
    """Whether anything that an agent holds is no live offer, conversation or after-call work of it."""
    me, calls = agent.config.id, state.calls
    for call_id in agent.offers:
        call = calls.get(call_id)
        if call is None or call.agent != me or not 0 < call.offer_until_ms > now_ms - OVERDUE_SPAN_MS:
            return True
    for call_id in agent.calls:
        call = calls.get(call_id)
        if call is None or call.agent != me or call.state is not CallState.CONNECTED:
            return True
    return any(until_ms <= now_ms - OVERDUE_SPAN_MS for _, until_ms in agent.wraps.values())


def is_lost(state: ShardState, call: CallEntry) -> bool:
    """Whether a call that is not over is in nobody's hands: no line, no timer and no agent has it."""
    if call.state is CallState.ENDED:
        return False
    if call.state is CallState.WAITING:
        if call.offerable:
            return not call.ticket
        return not (call.detached_until_ms or call.callback_ms or call.expire_ms)
    if call.state is CallState.OVERFLOWING:
        return not (call.resume_ms or call.detached_until_ms)
    agent = state.agents.get(call.agent)
    if agent is None:
        return True
    call_id = call.facts.call_id
    return call_id not in (agent.calls if call.state is CallState.CONNECTED else agent.offers)


@dataclass(slots=True)
class _Seen:
    """One shard at the last look."""

    epoch: int = 0
    sequence: int = 0
    leading: bool = False
    stalled: bool = False
    draining: bool = False
    agents: dict[str, int] = field(default_factory=dict)
    queues: tuple[QueueFigures, ...] = ()
    #: Service level targets of the queues, milliseconds.
    targets_ms: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    stuck: int = 0
    lost: int = 0


class ShardMetrics:
    """All shards of a router, a `chassis.metrics.Source`."""

    def __init__(
        self,
        leaders: Callable[[], Mapping[str, Led]],
        *,
        queues_named_max: int = QUEUES_NAMED_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leaders`: what this router leads or follows, by shard."""
        self._leaders = leaders
        self._monotonic = monotonic
        self._counts = QueueCounts(queues_named_max, monotonic)
        self._suspects: dict[str, Suspects] = {}
        self._walked_at: dict[str, float] = {}
        self._seen: dict[str, _Seen] = {}
        self._named: frozenset[Pair] = frozenset()

    def begin(self, leader: Led) -> None:
        """This router leads a shard from now on."""
        self._counts.begin(leader.state)

    def look(self) -> None:
        """Reads the state of every shard."""
        leaders = dict(self._leaders())
        self._counts.meet({shard: leader.state for shard, leader in leaders.items()})
        self._named = self._counts.rank()
        self._seen = {shard: self._look_at(leader) for shard, leader in sorted(leaders.items())}

    def _look_at(self, leader: Led) -> _Seen:
        shard, state = leader.shard, leader.state
        if not leader.leading:
            self._suspects.pop(shard, None)
            self._walked_at.pop(shard, None)
            return _Seen(epoch=leader.epoch, sequence=leader.sequence)
        self._counts.count(state)
        now_ms = leader.now_ms()
        stats = shard_stats(state, AskStats(), now_ms)
        seen = _Seen(
            epoch=leader.epoch,
            sequence=leader.sequence,
            leading=True,
            stalled=leader.stalled,
            draining=state.draining,
            agents=dict(stats.agents_by_state),
            queues=stats.queues,
            targets_ms={id: queue.service_level_span_ms for id, queue in state.queues.items()},
        )
        self._walk(leader, now_ms, seen)
        return seen

    def _walk(self, leader: Led, now_ms: int, seen: _Seen) -> None:
        """Looks at every agent and call, unless that was just done."""
        shard, now = leader.shard, self._monotonic()
        before = self._seen.get(shard)
        if before is not None and before.leading and now - self._walked_at.get(shard, -now) < WALK_SECONDS:
            seen.calls, seen.stuck, seen.lost = before.calls, before.stuck, before.lost
            return
        self._walked_at[shard] = now
        seen.calls = dict.fromkeys((state.value for state in _LIVE_STATES), 0)
        for call in leader.state.calls.values():
            if call.state is not CallState.ENDED:
                seen.calls[call.state.value] += 1
        suspects = self._suspects.setdefault(shard, Suspects(self._monotonic))
        if leader.stalled:
            # Timers stand still while nothing can be committed.
            suspects.forget()
        else:
            seen.stuck, seen.lost = suspects.look(leader.state, now_ms)

    def collect(self) -> Iterable[Metric]:
        """What the last look saw."""
        yield from self._counts.families(self._seen)
        yield from self._queues()
        targets = GaugeMetricFamily(*TARGET, labels=_QUEUE)
        for shard, seen in self._seen.items():
            for queue, target_ms in seen.targets_ms.items():
                if (shard, queue) in self._named:
                    targets.add_metric((shard, queue), target_ms / 1000)
        yield targets
        led = {shard: seen for shard, seen in self._seen.items() if seen.leading}
        yield _by(AGENTS, "state", {s: _agents(seen) for s, seen in led.items()})
        yield _by(CALLS, "state", {s: seen.calls for s, seen in led.items()})
        yield _of(STUCK, "region", {s: seen.stuck for s, seen in led.items()})
        yield _of(LOST, "region", {s: seen.lost for s, seen in led.items()})
        yield _of(DRAINING, "region", {s: seen.draining for s, seen in led.items()})
        yield _of(STALLED, "shard", {s: seen.stalled for s, seen in led.items()})
        yield _of(EPOCH, "shard", {s: seen.epoch for s, seen in self._seen.items()})
        yield _of(SEQUENCE, "shard", {s: seen.sequence for s, seen in self._seen.items()})

    def _queues(self) -> Iterable[Metric]:
        for name, (metric, doc, factor) in GAUGES.items():
            family = GaugeMetricFamily(metric, doc, labels=_QUEUE)
            for shard, seen in self._seen.items():
                rest = [q for q in seen.queues if (shard, q.queue) not in self._named]
                for figures in seen.queues:
                    value = getattr(figures, name)
                    if value >= 0 and (shard, figures.queue) in self._named:
                        family.add_metric((shard, figures.queue), value * factor)
                if rest and name in _ADDED_UP:
                    family.add_metric((shard, OTHERS), sum(getattr(q, name) for q in rest) * factor)
                elif rest and name == "longest_wait_span_ms":
                    family.add_metric((shard, OTHERS), max(q.longest_wait_span_ms for q in rest) * factor)
            yield family


def _agents(seen: _Seen) -> dict[str, int]:
    """Every state, those that nobody is in as well."""
    return {state.value: seen.agents.get(state.value, 0) for state in AgentState}


def _of(metric: tuple[str, str], label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(*metric, labels=(label,))
    for subject, value in values.items():
        family.add_metric((subject,), float(value))
    return family


def _by(metric: tuple[str, str], label: str, values: Mapping[str, Mapping[str, int]]) -> Metric:
    family = GaugeMetricFamily(*metric, labels=("region", label))
    for region, counts in values.items():
        for kind, count in counts.items():
            family.add_metric((region, kind), float(count))
    return family
