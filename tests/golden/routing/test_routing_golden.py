"""Golden scenarios: small scripts run through the engine, with the events they are expected to cause.

A scenario is a text file: lines that begin with `>` are commands, what stands between them is what the shard
decided, one event a line, `! REASON` for a refusal. After a change that is meant to change decisions, rewrite
them all and read the difference before committing it:

    GOLDEN_REWRITE=1 .venv/bin/pytest tests/golden/routing
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routing.engine import step
from routing.model import (
    AcceptOffer,
    AgentConfig,
    CallFacts,
    CloseSession,
    Command,
    ConfigureAgent,
    ConfigureQueue,
    ConfirmCall,
    DeclineOffer,
    DetachCall,
    DetachFront,
    DetachSession,
    EndCall,
    FinishWrapUp,
    HangUp,
    OpenSession,
    OverflowCall,
    PlaceCall,
    Presence,
    QueueConfig,
    Reprioritize,
    SetPresence,
    ShardOpened,
    Strategy,
    Tick,
    WithdrawCall,
)
from routing.state import ShardState, evolve, next_deadline

SCENARIOS = Path(__file__).parent / "scenarios"
REWRITE = os.environ.get("GOLDEN_REWRITE") == "1"
START_MS = 1_000_000
#: Fields whose values are instants: shown as seconds since the start.
INSTANTS = ("until_ms", "queued_ms", "effective_ms", "refuse_ms", "rest_until_ms", "wrap_up_until_ms")


class Script:
    """Runs a scenario's commands, and lists what each caused."""

    def __init__(self) -> None:
        self.state = ShardState("s")
        self.state.epoch = 1
        self.now_ms = START_MS

    def run(self, line: str) -> list[str]:
        """The lines that a command causes."""
        name, *words = shlex.split(line)
        plain = [word for word in words if "=" not in word]
        named = dict(word.split("=", 1) for word in words if "=" in word)
        if name == "wait":
            return self.wait(float(plain[0]))
        if name == "takeover":
            return self.takeover(float(plain[0]))
        return self.do(COMMANDS[name](self.state, plain, named))

    def do(self, command: Command) -> list[str]:
        events, answer = step(self.state, command, self.now_ms)
        refused = [f"! {answer.refusal.reason}"] if answer.refusal is not None else []
        return [*(self.show(event) for event in events), *refused]

    def wait(self, seconds: float) -> list[str]:
        """Lets time pass; what is due happens at its time."""
        shown: list[str] = []
        until_ms = self.now_ms + round(seconds * 1000)
        while (due := next_deadline(self.state)) is not None and due[0] <= until_ms:
            self.now_ms = max(self.now_ms, due[0])
            shown += self.do(Tick())
        self.now_ms = until_ms
        return shown

    def takeover(self, seconds: float) -> list[str]:
        """Another leader opens after so many seconds without one."""
        self.now_ms += round(seconds * 1000)
        event = ShardOpened(router="r2", leaderless_span_ms=round(seconds * 1000))
        self.state.epoch += 1
        evolve(self.state, event, self.now_ms)
        return [self.show(event)]

    def show(self, event: Any) -> str:
        """`12.5 CallOffered call_id=c1 …`, without what is empty or configuration."""
        parts = [f"{(self.now_ms - START_MS) / 1000:g}", type(event).__name__]
        for name in event.__struct_fields__:
            value = getattr(event, name)
            if name == "facts":
                parts.append(value.call_id)
            elif name in ("queue", "agent") and not isinstance(value, str):
                parts.append(value.id)
            elif name in INSTANTS:
                parts += [f"{name.removesuffix('_ms')}={(value - START_MS) / 1000:g}"] if value else []
            elif value not in ("", 0, None, (), False):
                parts.append(f"{name}={value}")
        return " ".join(parts)


def _numbers(named: dict[str, str], **defaults: int) -> dict[str, Any]:
    return {name: int(named.get(name, default)) for name, default in defaults.items()}


def _skills(text: str) -> tuple[tuple[str, int], ...]:
    """`english:3,french:1`"""
    return tuple(sorted((s.split(":")[0], int(s.split(":")[1])) for s in text.split(",") if s))


def _queue(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
    fields: dict[str, Any] = {
        name: int(value) for name, value in named.items() if value.lstrip("-").isdigit()
    }
    if "skills" in named:
        fields["skills"] = _skills(named["skills"])
    if "strategy" in named:
        fields["strategy"] = Strategy(named["strategy"])
    return ConfigureQueue(queue=QueueConfig(id=plain[0], **fields))


def _agent(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
    return ConfigureAgent(
        agent=AgentConfig(
            id=plain[0],
            skills=_skills(named.get("skills", "")),
            capacity=_skills(named.get("capacity", "voice:1")),
            priority=int(named.get("priority", 0)),
        )
    )


def _login(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
    return OpenSession(
        agent=plain[0],
        front=named.get("front", "f"),
        calls_held=tuple(filter(None, named.get("holds", "").split(","))),
        **_numbers(named, session=1, command=1),
    )


def _place(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
    facts = CallFacts(
        call_id=plain[0],
        queue=named.get("queue", "service"),
        channel=named.get("channel", "voice"),
        skills=_skills(named.get("skills", "")),
        priority=int(named.get("priority", 0)),
    )
    return PlaceCall(
        facts=facts,
        front=named.get("front", "f"),
        waited_span_ms=int(named.get("waited", 0)) * 1000,
        agent_lost="agent_lost" in named,
        **_numbers(named, attempt=1, move=1),
    )


def _of_offer(kind: type) -> Callable[[ShardState, list[str], dict[str, str]], Command]:
    """`accept c1`: by the agent who is rung for it, unless the script says otherwise."""

    def build(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
        entry = state.calls[plain[0]]
        offer = named.get("offer", entry.offer_id)
        command: Command = kind(
            agent=named.get("agent", entry.agent), offer_id=offer, **_numbers(named, session=1)
        )
        return command

    return build


def _confirm(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
    entry = state.calls[plain[0]]
    return ConfirmCall(
        call_id=plain[0],
        offer_id=named.get("offer", entry.offer_id),
        **_numbers(named, attempt=entry.attempt, move=entry.move),
    )


def _versioned(kind: type) -> Callable[[ShardState, list[str], dict[str, str]], Command]:
    def build(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
        command: Command = kind(call_id=plain[0], **_numbers(named, attempt=1, move=1))
        return command

    return build


def _state(state: ShardState, plain: list[str], named: dict[str, str]) -> Command:
    return SetPresence(agent=plain[0], presence=Presence(plain[1]), **_numbers(named, session=1, command=2))


COMMANDS: dict[str, Callable[[ShardState, list[str], dict[str, str]], Command]] = {
    "queue": _queue,
    "agent": _agent,
    "login": _login,
    "logout": lambda s, p, n: CloseSession(agent=p[0], **_numbers(n, session=1)),
    "detach_agent": lambda s, p, n: DetachSession(agent=p[0], **_numbers(n, session=1)),
    "state": _state,
    "place": _place,
    "detach": _versioned(DetachCall),
    "detach_front": lambda s, p, n: DetachFront(front=p[0]),
    "overflow": _versioned(OverflowCall),
    "withdraw": _versioned(WithdrawCall),
    "accept": _of_offer(AcceptOffer),
    "decline": _of_offer(DeclineOffer),
    "confirm": _confirm,
    "hang_up": lambda s, p, n: HangUp(call_id=p[0], **_numbers(n, attempt=0)),
    "end": lambda s, p, n: EndCall(call_id=p[0], agent=n.get("agent", "")),
    "wrap_up": lambda s, p, n: FinishWrapUp(
        agent=s.calls[p[0]].agent, call_id=p[0], **_numbers(n, session=1)
    ),
    "priority": lambda s, p, n: Reprioritize(call_id=p[0], priority=int(p[1])),
}


def played(text: str) -> str:
    """The scenario with what its commands cause today."""
    script, lines = Script(), []
    for line in text.splitlines():
        if line.startswith(">"):
            lines += [line, *(f"  {shown}" for shown in script.run(line[1:]))]
        elif line.startswith("#") or not line:
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    expected = path.read_text()
    found = played(expected)
    if REWRITE:
        path.write_text(found)
        return
    assert found == expected, "decisions have changed: rewrite with GOLDEN_REWRITE=1 and read the difference"


def test_there_are_scenarios_and_each_expects_something() -> None:
    texts = [path.read_text() for path in SCENARIOS.glob("*.txt")]
    assert len(texts) >= 8
    for text in texts:
        assert any(line.startswith("  ") for line in text.splitlines())
