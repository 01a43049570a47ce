"""One process of a local stack: where it listens, whether it serves, how it is ended."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chassis.localstack import ManagedProcess, ProcessFailed

#: How often a waiting loop looks again, seconds.
POLL_SECONDS = 0.02


class State(enum.StrEnum):
    """What a part is doing."""

    #: It runs and answers.
    UP = "up"
    #: It runs and does not answer (yet).
    STARTING = "starting"
    #: It ended without being stopped.
    CRASHED = "crashed"
    #: It was not started, or was stopped.
    DOWN = "down"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One process that a stack may consist of."""

    name: str
    process: ManagedProcess
    #: Loopback ports it listens on, the main one first.
    ports: tuple[int, ...]
    #: Whether it serves now; None: as soon as it runs.
    ready: Callable[[], bool] | None
    #: Between SIGTERM and SIGKILL, seconds.
    stop_seconds_max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PartStatus:
    """What one process is doing now."""

    name: str
    state: State
    #: None unless it runs.
    pid: int | None
    ports: tuple[int, ...]
    #: Seconds since the kernel started it; None unless it runs.
    uptime_seconds: float | None
    log_path: Path


def _uptime_seconds(process: ManagedProcess) -> float | None:
    """How long the process runs, by the kernel's own clock."""
    record = process.record()
    if record is None:
        return None
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, since_boot - record.start_ticks / os.sysconf("SC_CLK_TCK"))


def describe(part: Part) -> PartStatus:
    """Looks at a part: one probe, a second or two at most when it does not answer."""
    pid = part.process.pid()
    if pid is not None:
        state = State.UP if part.ready is None or part.ready() else State.STARTING
    else:
        state = State.DOWN if part.process.record() is None else State.CRASHED
    return PartStatus(
        name=part.name,
        state=state,
        pid=pid,
        ports=part.ports,
        uptime_seconds=_uptime_seconds(part.process) if pid is not None else None,
        log_path=part.process.log_path,
    )


def end(parts: Sequence[Part]) -> None:
    """Asks all of them to end, gives each its time, kills what is left with all its descendants.

    Raises:
        ProcessFailed: one survives SIGKILL; the others were ended all the same.
    """
    started = time.monotonic()
    for part in parts:
        part.process.send(signal.SIGTERM)
    with contextlib.ExitStack() as undo:
        for part in reversed(parts):
            undo.callback(_end_one, part, started + part.stop_seconds_max)


def _end_one(part: Part, deadline: float) -> None:
    while part.process.alive() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    part.process.kill()


def kill(parts: Sequence[Part]) -> None:
    """Kills all of them at once, with all their descendants.

    Raises:
        ProcessFailed: one survives SIGKILL; the others were killed all the same.
    """
    failures = []
    for part in parts:
        part.process.send(signal.SIGKILL)
    for part in parts:
        try:
            part.process.kill()
        except ProcessFailed as failure:
            failures.append(failure)
    if failures:
        raise failures[0]
