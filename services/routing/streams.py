"""What a router holds for its clients' streams: a caller's, a desktop's, and the updates that go out on
them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Any

import msgspec

from chassis.errors import CallmeshError, Unavailable
from routing.model import CallFacts, CallState, CallView, Fact, Presence

#: Updates that a slow reader may leave unread before its stream is cut (its place is kept for the grace
#: period).
UPDATES_UNREAD_MAX = 256


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """The call is in another region now."""

    region: str
    reason: str


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """The call's or agent's present state, where nothing has happened to tell."""

    call: CallView | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One thing for a client's stream."""

    shard: str
    epoch: int
    sequence: int
    now_ms: int
    what: Fact | Moved | Present
    durable: bool = True


class Mailbox:
    """What is to be said on one client's stream: whoever has news puts it in, the stream's task takes it out.
    An asyncio.Queue serves many of either kind, and that costs each call several times as much.
    """

    __slots__ = ("_closed", "_reader", "cut_off", "unread")

    def __init__(self) -> None:
        #: Oldest first.
        self.unread: deque[Any] = deque()
        #: Its reader has stalled. One whose connection takes nothing more comes back to read neither what
        #: is here nor its end: whoever finds this is not to wait for that.
        self.cut_off = False
        #: Its result: whether nothing came in time.
        self._reader: asyncio.Future[bool] | None = None
        self._closed = False

    def push(self, update: Any) -> None:
        """Puts in an update; a reader that has stalled is cut off instead of filling the memory."""
        if len(self.unread) >= UPDATES_UNREAD_MAX:
            self.unread.clear()
            self.cut_off = True
            update = Unavailable(why="the stream was not read; open it again")
        self.unread.append(update)
        self._wake()

    def close(self) -> None:
        """Nobody reads on after what is there."""
        self._closed = True
        self._wake()

    async def get(self, until: float = inf) -> Any:
        """The oldest update unread; None when none came `until` (the loop's time), or after the close."""
        if self.unread:
            return self.unread.popleft()
        loop = asyncio.get_running_loop()
        late = until != inf and loop.time() >= until
        while not self.unread:
            if self._closed or late:
                return None
            reader = self._reader = loop.create_future()
            # The timer's word counts, not the clock's: a loop whose clock ticks in milliseconds calls a timer
            # up to one tick before its time, and would be asked again and again within that tick.
            timer = None if until == inf else loop.call_at(until, _tell, reader, True)
            try:
                late = await reader
            finally:
                self._reader = None
                if timer is not None:
                    timer.cancel()
        return self.unread.popleft()

    def _wake(self) -> None:
        if self._reader is not None:
            _tell(self._reader, False)


def _tell(reader: asyncio.Future[bool], late: bool) -> None:
    if not reader.done():
        reader.set_result(late)


class Caller(msgspec.Struct, eq=False):
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
    placing: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)
    #: Its region is lost and there is no other: it is placed nowhere until that one has a leader.
    stays: bool = False
    #: Its region has just said that it keeps it: not moved before this (monotonic clock).
    stays_until: float = 0.0
    #: Region in which it talks, for all that its edge was told: it is opened there and nowhere else, for as
    #: long as its edge does not say that the conversation broke off.
    talks: str = ""
    #: Regions where entries of older streams may stand: withdrawn once this one is placed.
    stale: list[str] = msgspec.field(default_factory=list)
    #: Shard, epoch and sequence of the newest block that told something.
    heard_at: tuple[str, int, int] = ("", 0, 0)
    #: (position, expected wait in milliseconds) that it was last told, and when, on the monotonic clock.
    place: tuple[int, int] | None = None
    place_seconds: float = 0.0
    #: Nobody waits for its first place any longer than this (the loop's time).
    give_up: float = inf
    #: Updates, and errors that end the stream.
    updates: Mailbox = msgspec.field(default_factory=Mailbox)

    @property
    def version(self) -> tuple[int, int]:
        return (self.attempt, self.move)

    def push(self, update: Update | CallmeshError) -> None:
        """Hands on an update."""
        self.updates.push(update)


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
    #: Its region's leader has taken it: a later one is to take it as well.
    opened: bool = False
    #: The stream that it takes the place of, whose session stands until this one is opened.
    before: Desk | None = None
    #: Updates, errors that end the stream, and messages of the servicer's own.
    updates: Mailbox = field(default_factory=Mailbox)
    #: Shard, epoch and sequence that it was told of last.
    heard: tuple[str, int, int] = ("", 0, 0)

    def has_heard_after(self, update: Update) -> bool:
        """Whether it was told of later blocks of the same shard."""
        shard, *place = self.heard
        return shard == update.shard and place > [update.epoch, update.sequence]

    @property
    def number(self) -> tuple[int, int]:
        """Session and newest command: of one agent's streams that with the higher one is the newer."""
        return (self.session, self.command)

    def push(self, update: Any) -> None:
        """Hands on an update."""
        self.updates.push(update)
