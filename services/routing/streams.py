"""What a router holds for its clients' streams: a caller's, a desktop's, and the updates that go out on
them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from chassis.errors import CallmeshError, Unavailable
from routing.model import CallFacts, CallState, CallView, Fact, Presence

#: Updates that a slow reader may leave unread before its stream is cut (its place is kept for the grace
#: period).
UPDATES_UNREAD_MAX = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """The call is in another region now."""

    region: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Present:
    """The call's or agent's present state, where nothing has happened to tell."""

    call: CallView | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One thing for a client's stream."""

    shard: str
    epoch: int
    sequence: int
    now_ms: int
    what: Fact | Moved | Present
    durable: bool = True


@dataclass(eq=False, slots=True)
class Caller:
    """A caller's stream."""

    facts: CallFacts
    attempt: int
    queued_ms: int
    agent_lost: bool
    auto_confirm: bool
    regions: list[str]
    move: int = 0
    region: str = ""
    state: CallState = CallState.WAITING
    heard: bool = False
    moving: bool = False
    moved_ms: int = 0
    #: The caller is gone: nothing is placed any more.
    hung_up: bool = False
    #: Why it was last moved: OVERFLOW, DRAINING or REGION_LOST.
    moved_for: str = "OVERFLOW"
    #: Region it is being moved from; its entry there stands until the other one does.
    source: str = ""
    #: One placement at a time: each numbers itself above the last.
    placing: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Regions where entries of older streams may stand: withdrawn once this one is placed.
    stale: list[str] = field(default_factory=list)
    #: Shard, epoch and sequence of the newest block that told something.
    heard_at: tuple[str, int, int] = ("", 0, 0)
    updates: asyncio.Queue[Update | CallmeshError] = field(
        default_factory=lambda: asyncio.Queue(UPDATES_UNREAD_MAX)
    )

    @property
    def version(self) -> tuple[int, int]:
        return (self.attempt, self.move)

    def push(self, update: Update | CallmeshError) -> None:
        """Hands on an update; a reader that has stalled is cut off instead of filling the memory."""
        _push(self.updates, update)


@dataclass(eq=False, slots=True)
class Desk:
    """An agent's session."""

    agent: str
    session: int
    command: int
    region: str
    presence: Presence
    pause_reason: str
    calls_held: tuple[str, ...]
    #: Updates, errors that end the stream, and messages of the servicer's own.
    updates: asyncio.Queue[Any] = field(default_factory=lambda: asyncio.Queue(UPDATES_UNREAD_MAX))

    def push(self, update: Any) -> None:
        """Hands on an update, as `Caller.push` does."""
        _push(self.updates, update)


def _push(updates: asyncio.Queue[Any], update: Any) -> None:
    if updates.full():
        while not updates.empty():
            updates.get_nowait()
        update = Unavailable(why="the stream was not read; open it again")
    updates.put_nowait(update)
