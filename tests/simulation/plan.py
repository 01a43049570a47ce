"""What a run will be: calls, agents, faults, chances. All of it is drawn from the seed beforehand, so that
a run can be replayed, and shrunk by leaving parts out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from routing.model import Timing

#: Candidates of each shard, its own region's first.
LEAD_LISTS = {
    "beijing": ("beijing-0", "beijing-1", "shanghai-0"),
    "shanghai": ("shanghai-0", "shanghai-1", "beijing-0"),
}
ROUTERS = ("beijing-0", "beijing-1", "shanghai-0", "shanghai-1")
EDGES = ("edge-0", "edge-1")
AGENTS_PER_SHARD = 2
#: Virtual seconds with faults; how long everything may take to come to rest after them.
FAULTY_SECONDS, REST_SECONDS = 24.0, 200.0
CALLS = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class CallPlan:
    """One caller."""

    call_id: str
    edge: str
    #: When the caller rings; how long it waits; how long it talks; virtual seconds.
    at: float
    patience: float
    talk: float
    #: "stream" (RouteCall), "assign" (AssignCall) or "auto" (RouteCall with auto_confirm).
    mode: str = "stream"
    #: Hangs up a moment after being told this: "", "queued", "offered", "accepted", "confirming".
    hang_up_at: str = ""
    #: How the edge numbers what it opens again: "rising", "same" (at times), "back" (at times).
    attempts: str = "rising"
    #: What it does with place tokens: "use", "forget", "forge", "foreign".
    token: str = "use"
    #: Its priority is changed, and the change repeated, while it waits.
    reprioritized: bool = False
    #: The edge takes about as long to confirm as it may.
    slow: bool = False
    #: What the engine fails on: "", "decide", "evolve", "timer"; "kill" ends the leader's process.
    poison: str = ""
    #: Its edge sends far too much at first.
    oversized: bool = False
    #: Its edge holds the stream in a conversation too, and opens it again when it breaks.
    listens: bool = False
    #: The conversation breaks off, after so long (virtual seconds); 0: it does not.
    breaks_off: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that befalls the world."""

    kind: str
    #: Virtual second, or (with `point`) from when on the point is waited for.
    at: float
    #: Machine or shard that it befalls.
    target: str = ""
    #: How long it lasts.
    seconds: float = 0.0
    #: Strikes when the target reaches this point of the journal for the `nth` time after `at`.
    point: str = ""
    nth: int = 1
    #: Callbacks of the target that still run when it strikes.
    callbacks: int = 0
    #: What else the kind needs.
    value: float = 0.0
    other: str = ""

    def __str__(self) -> str:
        where = f" at its {self.nth}. {self.point}" if self.point else ""
        extra = "".join(f" {name}" for name in (self.other,) if name)
        return f"{self.at:6.2f} s {self.kind} {self.target}{extra}{where} for {self.seconds:.2f} s"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    calls: tuple[CallPlan, ...]
    faults: tuple[Fault, ...]
    #: Chance of each kind of small trouble, by "kind".
    chances: dict[str, float]
    #: Small troubles that are left out, by name; filled by shrinking.
    muted: frozenset[str] = frozenset()
    shards: tuple[str, ...] = tuple(LEAD_LISTS)
    #: What ends leading at last (endings.py); empty for nothing.
    ending: str = ""
    #: Seconds of a router's machine in a true second, by router; 1 where none is named.
    rates: dict[str, float] = field(default_factory=dict)
    #: Blocks, steps and the broker's backlog are small.
    tight: bool = False
    #: "reject" or "continue", and for how long a router then promises not to lead.
    on_outage: str = "reject"
    hold_seconds: float = 3.0
    timing: Timing = field(
        default_factory=lambda: Timing(
            confirm_span_ms=5_000,
            grace_span_ms=5_000,
            reattach_span_ms=3_000,
            agent_grace_span_ms=5_000,
            move_span_ms=5_000,
            memory_span_ms=900_000,
        )
    )

    def without(self, *, faults: frozenset[int] = frozenset(), calls: frozenset[int] = frozenset()) -> Plan:
        """This plan less some of its faults and calls, by index."""
        return replace(
            self,
            faults=tuple(f for i, f in enumerate(self.faults) if i not in faults),
            calls=tuple(c for i, c in enumerate(self.calls) if i not in calls),
        )


#: Kinds of faults with the weight that they are drawn by.
WEIGHTS = {
    "break": 6,
    "freeze": 5,
    "freeze_leader": 4,
    "sleep_sending": 2,
    "sleep_opening": 2,
    "crash": 3,
    "crash_leader": 3,
    "restart_edge": 1,
    "restart_desk": 2,
    "take_session": 2,
    "stall_replication": 4,
    "store_down": 2,
    "slow_store": 2,
    "stale_reads": 2,
    "cut_store": 3,
    "cut_routers": 3,
    "cut_clients": 3,
    "slow_machine": 1,
    "step_clock": 2,
    "drain": 1,
}
#: Small troubles that may strike at any time, and how often at most.
CHANCES = {
    "refused": 0.03,
    "late": 0.03,
    "unanswered": 0.03,
    "lost": 0.04,
    "twice": 0.04,
    "half_open": 0.3,
    "interrupted": 0.05,
}
#: Further kinds, drawn beside the others.
MORE_WEIGHTS = {"stall": 1, "overload": 1}
#: So many of them at most.
MORE_MAX = 3
#: Further small troubles, of relays and their broker.
MORE_CHANCES = {
    "unroutable": 0.02,
    "unpublished": 0.02,
    "unconfirmed": 0.05,
    "relay_dies": 0.1,
    "relay_sleeps": 0.05,
}
#: What only some runs have, each once, with the chance of it; not all of them are faults that strike.
RARE = {
    "lose_region": 0.1,
    "change_list": 0.2,
    "seize": 0.25,
    "move_agent": 0.15,
    "flap_store": 0.1,
    "full_house": 0.15,
    "drain_region": 0.15,
    "broker_away": 0.15,
    "poison": 0.15,
    "rates": 0.1,
    "tight": 0.2,
}
#: Further faults of a run with `continue`, by how often each is drawn, and how many.
OUTAGE_WEIGHTS = {
    "store_away": 4,
    "away_for_some": 4,
    "cut_store": 2,
    "crash_leader": 1,
    "freeze_leader": 1,
    "betray": 3,
    "sleep_holding": 2,
    "stick_clock": 2,
}
OUTAGE_FAULTS = 6
#: Those of them that befall a shard.
_OF_SHARDS = frozenset({"store_away", "away_for_some", "betray", "sleep_holding"})
#: A run of betrayals: how many, how long each, how often somebody calls, what a router promises (virtual
#: seconds); which others of a shard are restarted; LONE is none, and one of them alone reaches the store.
BETRAYALS, BETRAYAL_SECONDS, CALLER_SECONDS, LONG_HOLD_SECONDS = 2, 5.5, 0.2, 6.0
ALL, NONE, LONE = "all", "none", "lone"
#: What ends leading by design, and how often a run ends so.
ENDINGS, ENDING_CHANCE = ("set_back", "newer_format", "wrong_digest"), 0.06
POISONS = ("decide", "evolve", "timer", "kill")
#: A machine's clock is wrong by at most so much.
RATE_ERROR_MAX = 0.1
#: Callers who come while a region is drained; each waits for as long, at most.
CROWD, CROWD_PATIENCE_SECONDS = 24, 8.0
#: Edges that listen in a conversation, how long those are (virtual seconds), and how many break off.
LISTENING_CHANCE, LONG_TALK_SECONDS, BREAKS_OFF_CHANCE = 0.4, (2.0, 9.0), 0.25
POINTS = ("sending", "applied", "committed", "answered", "read")


def draw(seed: int, kinds: dict[str, int] | None = None, chances: dict[str, float] | None = None) -> Plan:
    """The plan of a seed. Each seed has its own mixture, so that rare things come together in some runs;
    `kinds` and `chances` give a mixture instead.
    """
    rng = random.Random(f"plan {seed}")
    mixture = dict(kinds or {kind: w * rng.choice((0, 1, 1, 3)) for kind, w in WEIGHTS.items()})
    for kind in rng.sample(sorted(WEIGHTS), 4) if kinds is None else ():
        mixture[kind] = max(1, mixture[kind])
    if chances is None:
        chances = {kind: most * rng.choice((0.0, 0.3, 1.0)) for kind, most in CHANCES.items()}
    count = rng.randint(8, 18)
    faults = [_fault(rng, kind) for kind in _kinds(rng, mixture, count)]
    more = random.Random(f"more {seed}")
    if kinds is None:
        chosen = more.choices(list(MORE_WEIGHTS), list(MORE_WEIGHTS.values()), k=more.randint(0, MORE_MAX))
        faults += [_fault(more, kind) for kind in chosen]
    talk = random.Random(f"talk {seed}")
    calls = tuple(_listening(talk, _call(rng, n)) for n in range(CALLS))
    plan = Plan(
        seed=seed,
        calls=calls,
        faults=tuple(sorted(faults, key=lambda f: f.at)),
        chances={kind: most * more.choice((0.0, 0.3, 1.0)) for kind, most in MORE_CHANCES.items()} | chances,
    )
    return plan if kinds is not None else with_rare(plan)


def with_rare(plan: Plan, chances: dict[str, float] | None = None) -> Plan:
    """The plan and what is rare, drawn from the same seed beside the rest."""
    rng = random.Random(f"rare {plan.seed}")
    wanted = RARE if chances is None else chances
    struck = [kind for kind in RARE if rng.random() < wanted.get(kind, 0.0)]
    faults = [_rare(rng, kind) for kind in struck if kind not in ("poison", "rates", "tight")]
    calls = list(plan.calls)
    calls[2] = replace(calls[2], oversized=rng.random() < 0.3)
    if "poison" in struck:
        calls[5] = replace(calls[5], poison=rng.choice(POISONS))
    if "drain_region" in struck:
        at = next(fault.at for fault in faults if fault.kind == "drain_region")
        calls += [_hasty(rng, f"x{n}", at) for n in range(CROWD)]
    machines = ROUTERS if "rates" in struck else ()
    return replace(
        plan,
        calls=tuple(calls),
        faults=tuple(sorted((*plan.faults, *faults), key=lambda fault: fault.at)),
        rates={name: rng.uniform(1 - RATE_ERROR_MAX, 1 + RATE_ERROR_MAX) for name in machines},
        tight="tight" in struck,
        ending=rng.choice(ENDINGS) if chances is None and rng.random() < ENDING_CHANCE else "",
    )


def _rare(rng: random.Random, kind: str) -> Fault:
    shard = rng.choice(tuple(LEAD_LISTS))
    target = rng.choice(agents()) if kind == "move_agent" else shard
    return Fault(
        kind=kind,
        at=rng.uniform(3.0, FAULTY_SECONDS * 0.7),
        target=target,
        seconds=rng.uniform(2.0, 8.0),
        value=rng.random(),
        other=rng.choice(LEAD_LISTS[shard]) if kind == "seize" else "",
    )


def through_outages(plan: Plan) -> Plan:
    """The plan with `continue` and outages to go on in, drawn from the same seed beside the rest; in half of
    the runs clocks go wrong.
    """
    rng = random.Random(f"continue {plan.seed}")
    kinds = rng.choices(list(OUTAGE_WEIGHTS), list(OUTAGE_WEIGHTS.values()), k=OUTAGE_FAULTS)
    faults = [_of_outage(rng, kind) for kind in ("store_away", *kinds)]
    rates = {name: rng.uniform(1 - RATE_ERROR_MAX, 1 + RATE_ERROR_MAX) for name in ROUTERS}
    return replace(
        plan,
        faults=tuple(sorted((*plan.faults, *faults), key=lambda fault: fault.at)),
        rates=plan.rates or (rates if rng.random() < 0.5 else {}),
        on_outage="continue",
    )


def betrayed(plan: Plan, restarted: str = ALL) -> Plan:
    """The plan with `continue`, long holds, and nothing but betrayals: one after the other, each with all
    other routers restarted or not (`ALL`, `NONE`, `LONE`), and callers who come so often that there is always
    something to tell.
    """
    rng = random.Random(f"betrayed {plan.seed}")
    faults, calls = [], []
    for n in range(BETRAYALS):
        at = LONG_HOLD_SECONDS + 1.0 + n * BETRAYAL_SECONDS
        target = rng.choice(tuple(LEAD_LISTS))
        faults.append(Fault(kind="betray", at=at, target=target, seconds=BETRAYAL_SECONDS, other=restarted))
        crowd = range(int(BETRAYAL_SECONDS / CALLER_SECONDS))
        calls += [_hasty(rng, f"b{n}-{k}", at + k * CALLER_SECONDS) for k in crowd]
    return replace(
        plan, calls=tuple(calls), faults=tuple(faults), on_outage="continue", hold_seconds=LONG_HOLD_SECONDS
    )


def _of_outage(rng: random.Random, kind: str) -> Fault:
    if kind in _OF_SHARDS:
        seconds = rng.choice((rng.uniform(2.0, 6.0), rng.uniform(6.0, 20.0)))
        at, target = rng.uniform(2.0, FAULTY_SECONDS * 0.6), rng.choice(tuple(LEAD_LISTS))
        return Fault(kind=kind, at=at, target=target, seconds=seconds, value=rng.random())
    return _fault(rng, kind)


def _hasty(rng: random.Random, call_id: str, at: float) -> CallPlan:
    """One of many callers who come at nearly the same time, and have little time."""
    return CallPlan(
        call_id=call_id,
        edge=rng.choice(EDGES),
        at=at - rng.uniform(0.0, 1.5),
        patience=rng.uniform(1.0, CROWD_PATIENCE_SECONDS),
        talk=rng.uniform(0.1, 0.5),
    )


def _kinds(rng: random.Random, mixture: dict[str, int], count: int) -> list[str]:
    """Kinds of a run's faults: at least three different ones, where there are as many."""
    possible = [kind for kind, weight in mixture.items() if weight]
    chosen = rng.sample(possible, min(3, len(possible)))
    return chosen + rng.choices(possible, [mixture[kind] for kind in possible], k=count - len(chosen))


def _fault(rng: random.Random, kind: str) -> Fault:
    at = rng.uniform(1.0, FAULTY_SECONDS)
    target, other = rng.choice(ROUTERS), ""
    if kind in ("freeze_leader", "crash_leader", "sleep_sending", "stall", "overload"):
        target = rng.choice(tuple(LEAD_LISTS))
    elif kind == "restart_edge":
        target = rng.choice(EDGES)
    elif kind in ("restart_desk", "take_session"):
        target = rng.choice(agents())
    elif kind == "cut_routers":
        other = rng.choice([r for r in ROUTERS if r != target])
    elif kind == "cut_clients":
        other = rng.choice((*EDGES, *(f"desk-{a}" for a in agents())))
    point = rng.choice(POINTS) if kind in _POINTED and rng.random() < 0.6 else ""
    if kind in _SLEEPS:
        return Fault(kind=kind, at=at, target=target, seconds=rng.uniform(5.0, 14.0), point=_SLEEPS[kind])
    return Fault(
        kind=kind,
        at=at,
        target=target,
        seconds=_seconds(rng, kind),
        point=point,
        nth=rng.randint(1, 3),
        callbacks=rng.choice((0, 0, 0, 1, 2, 3, 5, 8, 13, 21)),
        value=rng.random(),
        other=other,
    )


#: Slept longer than blocks are kept, right before something is sent.
_SLEEPS = {"sleep_sending": "sending", "sleep_opening": "opening"}
_POINTED = frozenset({"freeze", "freeze_leader", "crash", "crash_leader"})


def _seconds(rng: random.Random, kind: str) -> float:
    if kind in ("freeze", "freeze_leader"):
        return rng.choice((rng.uniform(0.05, 1.0), rng.uniform(1.0, 5.0), rng.uniform(5.0, 12.0)))
    if kind in ("crash", "crash_leader", "restart_edge", "restart_desk"):
        return rng.uniform(0.1, 6.0)
    return rng.uniform(0.2, 5.0)


def _call(rng: random.Random, number: int) -> CallPlan:
    mode = rng.choice(("stream",) * 7 + ("assign",) * 2 + ("auto",))
    return CallPlan(
        call_id=f"c{number}",
        edge=rng.choice(EDGES),
        at=rng.uniform(0.5, FAULTY_SECONDS * 0.8),
        patience=rng.uniform(8.0, 60.0),
        talk=rng.uniform(0.3, 4.0),
        mode=mode,
        hang_up_at=rng.choice(("",) * 8 + ("queued", "offered", "accepted", "confirming")),
        attempts=rng.choice(("rising",) * 6 + ("same", "back")),
        token=rng.choice(("use",) * 5 + ("forget", "forge", "foreign")),
        reprioritized=rng.random() < 0.2,
        slow=number % 7 == 3,
    )


def _listening(rng: random.Random, call: CallPlan) -> CallPlan:
    """The same caller, perhaps of an edge that listens in a conversation; then it is a long one."""
    listens, talk, breaks_off = rng.random() < LISTENING_CHANCE, rng.uniform(*LONG_TALK_SECONDS), rng.random()
    if not listens or call.mode == "assign":
        return call
    breaks_off = rng.uniform(0.2, talk) if breaks_off < BREAKS_OFF_CHANCE else 0.0
    return replace(call, listens=True, talk=talk, breaks_off=breaks_off)


def agents() -> list[str]:
    """Ids of all agents."""
    return [f"{shard}-a{n}" for shard in LEAD_LISTS for n in range(AGENTS_PER_SHARD)]
