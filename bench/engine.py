"""How fast the engine of routing decides, and how that grows with the centre.

Run as `python -m bench.engine`. A contact centre is simulated in business time, with all features in use:
calls arrive, agents answer, talk and write up; queues ask less the longer somebody waits, callers wait for
the agent they know, conversations are handed on to another queue or agent, callers hang up or ask to be
called back, offers are missed, declined or declined as busy, priorities change, agents pause, are paused, go
home and come back.
Every input that this gives the engine is written down; then all of it is played to a fresh engine, and the
commands after the centre has filled up are timed, by the process's own CPU time, so that other work on the
machine does not blur the result. What is timed is `engine.step` alone: decide, apply, pair, answer.

A command is one input: place, accept, confirm, end, wrap-up done, or a timer. An offer is no input but what a
command leads to, so it is not counted.

Twice more, with 1,000 agents and 6 queues and with 100,000 and 600, the same number of commands is played:
compared are time and heap operations (pushes and pops, counted in a run of its own) a command. Prints a
table, writes build/reports/engine.json and exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import heapq
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "services"))

from bench.reporting import show, write_report  # noqa: E402

from chassis import garbage  # noqa: E402
from routing import model  # noqa: E402
from routing.engine import step  # noqa: E402
from routing.state import ShardState, next_deadline  # noqa: E402

#: The limits.
COMMANDS_PER_SECOND_MIN = 50_000
SCALE_RATIO_MAX = 1.5
SCALE_TIME_RATIO_MAX = 3.0
#: (agents, queues): the one that the speed is measured with, and the two that are compared.
CENTRE, SMALL, LARGE = (10_000, 60), (1_000, 6), (100_000, 600)
#: Queues that one skill serves: a queue asks for a skill at one of three levels, or for two skills.
QUEUES_PER_SKILL = 3
SKILLS_PER_AGENT = 5
#: Share of the agents that are busy once the centre has filled up.
OCCUPANCY = 0.9
#: Means, business milliseconds.
TALK_MS, WRAP_UP_MS, PICK_UP_MS, PATIENCE_MS = 60_000, 10_000, 3_000, 90_000
#: The rest of a second in which an edge confirms.
CONFIRM_MS = 150
#: Until the centre has filled up, business milliseconds: calls are by then forgotten as fast as they come.
WARM_UP_MS, MEMORY_MS = 120_000, 60_000
START_MS = 1_772_000_000_000
#: Shares: of calls that ask for the agent who had the queue's last conversation; of conversations that are
#: handed on, half of them to a certain agent; of the impatient who want to be called back; of agents who
#: pause or go home after a conversation.
PREFERRED, HANDED_ON, CALLED_BACK, PAUSED, GONE_HOME = 0.10, 0.06, 0.25, 0.02, 0.01
#: Until the next step of relaxation, and how long a preferred agent is waited for.
RELAX_MS, PREFERRED_MS = 4_000, 10_000
SEED = 11

Timed = tuple[int, model.Command]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a centre is."""

    agents: int
    queues: int
    #: Skills there are; an agent has `SKILLS_PER_AGENT` of them.
    skills: int


def configuration(size: Size, draw: random.Random) -> Iterator[model.Command]:
    """Timing, queues of every strategy, agents with their sessions open."""
    yield model.ConfigureTiming(timing=model.Timing(memory_span_ms=MEMORY_MS))
    strategies = list(model.Strategy)
    for number in range(size.queues):
        first, second = draw.sample(range(size.skills), 2)
        wanted = {f"skill-{number % size.skills}": 1 + number % 3}
        if number % 10 == 9:
            wanted = {f"skill-{first}": 1, f"skill-{second}": 1}
        yield model.ConfigureQueue(
            queue=model.QueueConfig(
                id=queue_id(number),
                skills=tuple(sorted(wanted.items())),
                strategy=strategies[number % len(strategies)],
                weight=number % 4,
                wrap_up_span_ms=3 * WRAP_UP_MS,
                length_max=size.agents,
                wait_span_max_ms=600_000 if number % 5 == 0 else 0,
                reject_delay_span_ms=2_000,
                no_answer_delay_span_ms=3_000,
                busy_delay_span_ms=5_000,
                missed_offers_max=3,
                preferred_span_ms=PREFERRED_MS,
                seed=number,
                steps=relaxation(wanted) if number % 2 == 0 else (),
            )
        )
    for number in range(size.agents):
        skills = {f"skill-{n}": draw.randint(1, 5) for n in draw.sample(range(size.skills), SKILLS_PER_AGENT)}
        capacity = (("chat", 3), ("voice", 1)) if number % 10 == 0 else (("voice", 1),)
        agent = f"agent-{number}"
        yield model.ConfigureAgent(
            agent=model.AgentConfig(
                id=agent,
                skills=tuple(sorted(skills.items())),
                capacity=capacity,
                priority=number % 7,
                address=f"sip:{agent}@example.org",
                warm_up_span_ms=1_000 if number % 5 == 0 else 0,
            )
        )
        yield model.OpenSession(agent=agent, session=1, command=1, front=f"front-{number % 3}")


def relaxation(wanted: dict[str, int]) -> tuple[model.RelaxationStep, ...]:
    """First who is better than need be, then who is good enough, then who has the skill at all."""
    levels = [{skill: min(5, level + 1) for skill, level in wanted.items()}, wanted, dict.fromkeys(wanted, 1)]
    return tuple(
        model.RelaxationStep(
            skills=tuple(sorted(skills.items())),
            span_ms=RELAX_MS if step < 2 else 0,
            skip_if_nobody_fits=step == 0,
            without_call_skills=step == 2,
        )
        for step, skills in enumerate(levels)
    )


def queue_id(number: int) -> str:
    return f"queue-{number}"


class Day:
    """A centre at work, in business time; what it tells the engine is in `log`."""

    def __init__(self, size: Size, seed: int) -> None:
        self._size = size
        self._draw = random.Random(seed)
        self.state = ShardState("bench")
        self.log: list[Timed] = []
        #: Events of `FEATURES` so far.
        self.seen: Counter[str] = Counter()
        self.now_ms = START_MS
        self.connected = self.offers = 0
        self._plan: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self._calls = 0
        self._command = 1
        #: Who had the last conversation of a queue; session numbers of those who went home and came back.
        self._known: dict[str, str] = {}
        self._sessions: dict[str, int] = {}
        held_ms = TALK_MS + WRAP_UP_MS + PICK_UP_MS + CONFIRM_MS
        self._gap_ms = held_ms / (size.agents * OCCUPANCY)
        self._arrival_ms = 0.0
        for command in configuration(size, self._draw):
            self._tell(command)

    def run(self, until_ms: int, commands_max: int) -> None:
        """Until the instant (since the start), or the number of commands, has been reached."""
        if not self._plan:
            self._later(0, self._arrive)
        while len(self.log) < commands_max and self._plan[0][0] <= START_MS + until_ms:
            due = next_deadline(self.state)
            if due is not None and due[0] <= self._plan[0][0]:
                self.now_ms = max(self.now_ms, due[0])
                self._tell(model.Tick())
                continue
            self.now_ms, _, act, values = heapq.heappop(self._plan)
            act(*values)

    def _later(self, ms: float, act: Callable[..., None], *values: Any) -> None:
        self._planned += 1
        heapq.heappush(self._plan, (self.now_ms + int(ms), self._planned, act, values))

    def _tell(self, command: model.Command) -> None:
        """Gives the engine a command, and lets the agents who are offered a call by it react."""
        self.log.append((self.now_ms, command))
        events, _ = step(self.state, command, self.now_ms)
        for event in events:
            self.seen[type(event).__name__] += 1
            if isinstance(event, model.CallOffered):
                self.offers += 1
                self._offered(event)

    # --- callers
    # ----------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        self._calls += 1
        draw, number = self._draw, self._calls
        queue = draw.randrange(self._size.queues)
        extra = (("skill-0", 2),) if number % 20 == 0 else ()
        facts = model.CallFacts(
            call_id=f"call-{number}",
            queue=queue_id(queue),
            channel="chat" if number % 12 == 0 else "voice",
            caller_number=f"+8613{draw.randrange(10**9):09d}",
            skills=extra,
            priority=draw.choice((0, 0, 0, 0, 1, 2, 4)),
            home_region="bench",
            language="zh-CN",
            attributes=(("menu", "cards"),),
            preferred_agent=self._known.get(queue_id(queue), "") if draw.random() < PREFERRED else "",
            priority_parts=(("TIER", 1),) if number % 10 == 0 else (),
        )
        self._tell(model.PlaceCall(facts=facts, attempt=1, move=1, front=f"front-{number % 3}"))
        self._later(draw.expovariate(1 / PATIENCE_MS), self._lose_patience, facts.call_id)
        if number % 50 == 0:
            self._tell(model.Reprioritize(call_id=facts.call_id, priority=5))
        self._arrival_ms += draw.expovariate(1 / self._gap_ms)
        self._later(START_MS + self._arrival_ms - self.now_ms, self._arrive)

    def _lose_patience(self, call_id: str) -> None:
        entry = self.state.calls.get(call_id)
        if entry is None or entry.state is not model.CallState.WAITING or entry.callback_number:
            return
        if self._draw.random() < CALLED_BACK:
            later_ms = self.now_ms + 10_000 if self._draw.random() < 0.5 else 0
            number = entry.facts.caller_number
            self._tell(model.RequestCallback(call_id=call_id, number=number, not_before_ms=later_ms))
        else:
            self._tell(model.HangUp(call_id=call_id, attempt=1))

    def _confirm(self, offer: model.CallOffered) -> None:
        self._tell(model.ConfirmCall(call_id=offer.call_id, offer_id=offer.offer_id, attempt=1, move=1))
        self._talk(offer)

    def _talk(self, offer: model.CallOffered) -> None:
        """If this offer was connected, they talk for a while."""
        entry = self.state.calls.get(offer.call_id)
        if entry is None or entry.state is not model.CallState.CONNECTED or entry.offer_id != offer.offer_id:
            return
        self.connected += 1
        self._known[entry.facts.queue] = offer.agent
        on = self._draw.random() < HANDED_ON and not entry.callback_number
        after_ms = self._draw.expovariate(1 / TALK_MS)
        self._later(after_ms, self._hand_on if on else self._end, offer.call_id, offer.agent)

    def _end(self, call_id: str, agent: str) -> None:
        self._tell(model.EndCall(call_id=call_id))
        self._write_up(call_id, agent)

    def _hand_on(self, call_id: str, agent: str) -> None:
        """To another queue, or to somebody who is known there; the caller's patience begins anew."""
        queue = queue_id(self._draw.randrange(self._size.queues))
        wanted = self._known.get(queue, "") if self._draw.random() < 0.5 else ""
        context = (("why", "second line"),)
        self._tell(
            model.TransferCall(
                call_id=call_id, queue=queue, agent=wanted if wanted != agent else "", attributes=context
            )
        )
        self._later(self._draw.expovariate(1 / PATIENCE_MS), self._lose_patience, call_id)
        self._write_up(call_id, agent)

    def _write_up(self, call_id: str, agent: str) -> None:
        if self._draw.random() < 0.9:
            # The others leave it to the timer.
            self._later(self._draw.expovariate(1 / WRAP_UP_MS), self._wrap_up, call_id, agent)

    # --- agents
    # -----------------------------------------------------------------------------------------------

    def _offered(self, offer: model.CallOffered) -> None:
        fate = self._draw.random()
        if fate < 0.95:
            self._later(self._draw.expovariate(1 / PICK_UP_MS), self._accept, offer)
        elif fate < 0.98:
            self._later(PICK_UP_MS, self._decline, offer)
        # The others let it ring until the timer ends it.

    def _session(self, agent: str) -> int:
        return self._sessions.get(agent, 1)

    def _accept(self, offer: model.CallOffered) -> None:
        agent, session = offer.agent, self._session(offer.agent)
        self._tell(model.AcceptOffer(agent=agent, session=session, offer_id=offer.offer_id))
        entry = self.state.calls.get(offer.call_id)
        if entry is not None and entry.callback_number:
            # Nobody holds a line: accepting connected.
            self._talk(offer)
        else:
            self._later(CONFIRM_MS, self._confirm, offer)

    def _decline(self, offer: model.CallOffered) -> None:
        agent, session = offer.agent, self._session(offer.agent)
        reason = "BUSY" if self._draw.random() < 0.3 else ""
        self._tell(model.DeclineOffer(agent=agent, session=session, offer_id=offer.offer_id, reason=reason))

    def _wrap_up(self, call_id: str, agent: str) -> None:
        said = model.Disposition(code="resolved", resolved=True)
        session = self._session(agent)
        self._tell(model.FinishWrapUp(agent=agent, session=session, call_id=call_id, disposition=said))
        fate = self._draw.random()
        if fate < PAUSED / 2:
            self._presence(agent, model.Presence.PAUSED, "coffee")
            self._later(20_000, self._presence, agent, model.Presence.AVAILABLE, "")
        elif fate < PAUSED:
            self._tell(model.PauseAgent(agent=agent, paused=True, reason="meeting"))
            back = model.PauseAgent(agent=agent, paused=False)
            self._later(20_000, self._tell, back)
        elif fate < PAUSED + GONE_HOME and not self.state.agents[agent].holding:
            self._tell(model.CloseSession(agent=agent, session=session))
            self._later(30_000, self._come_back, agent)
        elif (paused := self.state.agents[agent]).presence is model.Presence.PAUSED:
            # Missed too many offers; the agent is back.
            self._presence(paused.config.id, model.Presence.AVAILABLE, "")

    def _come_back(self, agent: str) -> None:
        session = self._sessions[agent] = self._session(agent) + 1
        self._tell(model.OpenSession(agent=agent, session=session, command=1, front="front-0"))

    def _presence(self, agent: str, presence: model.Presence, reason: str) -> None:
        self._command += 1
        self._tell(
            model.SetPresence(
                agent=agent,
                session=self._session(agent),
                command=self._command,
                presence=presence,
                pause_reason=reason,
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """Everything a day told the engine; timed is what comes after `warm`."""

    commands: list[Timed]
    warm: int
    connected: int
    offers: int
    waiting_seconds: float
    #: How often each of `FEATURES` happened.
    features: dict[str, int]


#: What has to happen while it is timed, or the measured engine is not the one with all features on.
FEATURES = (
    "CallRelaxed",
    "PreferenceEnded",
    "CallTransferred",
    "CallbackRequested",
    "CallbackDue",
    "CallReprioritized",
    "OfferEnded",
    "AgentRested",
    "CallWrappedUp",
    "PresenceSet",
    "SessionClosed",
)


def recorded(size: Size, commands: int, seed: int) -> Log:
    """A day up to `commands` commands after the centre has filled up."""
    day = Day(size, seed)
    day.run(WARM_UP_MS, sys.maxsize)
    warm, connected, offers = len(day.log), day.connected, day.offers
    day.seen.clear()
    day.run(10**12, warm + commands)
    tallies = day.state.tallies.values()
    answered = sum(tally.answered for tally in tallies)
    return Log(
        commands=day.log,
        warm=warm,
        connected=day.connected - connected,
        offers=day.offers - offers,
        waiting_seconds=sum(tally.wait_total_ms for tally in tallies) / max(1, answered) / 1000,
        features={name: day.seen[name] for name in FEATURES},
    )


def played(log: Log) -> ShardState:
    """A fresh engine, filled up."""
    state = ShardState("bench")
    for now_ms, command in log.commands[: log.warm]:
        step(state, command, now_ms)
    return state


def seconds_a_command(log: Log, slices: int) -> list[float]:
    """CPU seconds of a command, for each slice of what is timed."""
    state = played(log)
    thresholds = gc.get_threshold()
    # As a serving process does.
    garbage.settle()
    found = []
    timed = log.commands[log.warm :]
    width = len(timed) // slices
    for begin in range(0, width * slices, width):
        part = timed[begin : begin + width]
        started = time.process_time()
        for now_ms, command in part:
            step(state, command, now_ms)
        found.append((time.process_time() - started) / len(part))
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    return found


class HeapCount:
    """Heap operations: a push or a pop is one, a heap made from a list one for each element. What is put into
    its place in a sorted row counts as pushed.
    """

    def __init__(self) -> None:
        self.operations = 0

    def one(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any) -> Any:
            self.operations += 1
            return function(*values)

        return counted

    def each(self, function: Callable[[list[Any]], None]) -> Callable[[list[Any]], None]:
        def counted(values: list[Any]) -> None:
            self.operations += len(values)
            function(values)

        return counted


@contextmanager
def counting() -> Iterator[HeapCount]:
    """Counts what is done to any heap meanwhile. The engine reaches these functions through their modules."""
    count = HeapCount()
    names = ("heappush", "heappop", "heapreplace", "heappushpop")
    kept = {name: getattr(heapq, name) for name in (*names, "heapify")}
    for name in names:
        setattr(heapq, name, count.one(kept[name]))
    heapq.heapify = count.each(kept["heapify"])
    insort, bisect.insort = bisect.insort, count.one(bisect.insort)
    try:
        yield count
    finally:
        bisect.insort = insort
        for name, function in kept.items():
            setattr(heapq, name, function)


def heap_operations_a_command(log: Log) -> float:
    state = played(log)
    timed = log.commands[log.warm :]
    with counting() as count:
        for now_ms, command in timed:
            step(state, command, now_ms)
    return count.operations / len(timed)


def compared(commands: int, slices: int) -> dict[str, Any]:
    """The small and the large centre, an agent fitting as many queues in both."""
    seconds, operations = {}, {}
    for agents, queues in (SMALL, LARGE):
        log = recorded(Size(agents=agents, queues=queues, skills=queues), commands, SEED)
        seconds[agents] = statistics.median(seconds_a_command(log, slices))
        operations[agents] = heap_operations_a_command(log)
    small, large = SMALL[0], LARGE[0]
    return {
        "scale_ratio": round(operations[large] / operations[small], 3),
        "scale_time_ratio": round(seconds[large] / seconds[small], 3),
        "small_heap_operations_per_command": round(operations[small], 2),
        "large_heap_operations_per_command": round(operations[large], 2),
        "small_microseconds_per_command": round(seconds[small] * 1e6, 1),
        "large_microseconds_per_command": round(seconds[large] * 1e6, 1),
    }


def measured(commands: int, slices: int) -> dict[str, Any]:
    """The speed, in a centre whose agents each fit a fifth of the queues."""
    agents, queues = CENTRE
    log = recorded(Size(agents=agents, queues=queues, skills=queues // QUEUES_PER_SKILL), commands, SEED)
    found = seconds_a_command(log, slices)
    return {
        "commands_per_second": round(1 / statistics.median(found)),
        "slowest_slice_commands_per_second": round(1 / max(found)),
        "commands": len(log.commands) - log.warm,
        "calls_connected": log.connected,
        "offers": log.offers,
        "speed_of_answer_seconds": round(log.waiting_seconds, 1),
        **{f"events_{name}": count for name, count in log.features.items()},
        "features_unused": sum(count == 0 for count in log.features.values()),
    }


def main() -> int:
    """0 when the limits are met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--commands", type=int, default=120_000, help="timed in the centre of 10,000 agents")
    parser.add_argument("--scale-commands", type=int, default=60_000, help="timed in each of the other two")
    parser.add_argument("--slices", type=int, default=6, help="parts that are timed apart; the median counts")
    parser.add_argument("--speed-only", action="store_true", help="leave out the comparison")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "reports" / "engine.json")
    arguments = parser.parse_args()
    result = measured(arguments.commands, arguments.slices)
    ok = result["commands_per_second"] >= COMMANDS_PER_SECOND_MIN and not result["features_unused"]
    if not arguments.speed_only:
        result |= compared(arguments.scale_commands, arguments.slices)
        ok = ok and result["scale_ratio"] <= SCALE_RATIO_MAX
        ok = ok and result["scale_time_ratio"] <= SCALE_TIME_RATIO_MAX
    result |= {
        "commands_per_second_min": COMMANDS_PER_SECOND_MIN,
        "scale_ratio_max": SCALE_RATIO_MAX,
        "scale_time_ratio_max": SCALE_TIME_RATIO_MAX,
        "ok": ok,
    }
    show(result)
    return int(not ok) if arguments.speed_only else write_report(result, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
