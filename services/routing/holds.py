"""Holds: who may go on, and who may open, while no router of a shard can write its journal.

Pure: no clock, no I/O; `now` is one moment by several clocks.

1. A leader whose block is unknown for too long asks every other router of the lead list to hold, and while it
   is unknown which list is in force those of each that may be. Only when all of them have promised in one
   round may it go on from memory, for `HOLD_SHARE` of the time promised, counted from before it asked. A
   round that misses one answer changes nothing: what was promised runs out.
2. A router that can write is not held: the leader stops, and hands its blocks to it.
3. A router promises only when it has just tried to write and could not, has read the journal since its
   process began, has never heard of a newer epoch, and has no opening on its way whose result is unknown.
   Until the promise is over it opens nothing. It promises what it is asked for, or nothing.
4. A router that is younger than the longest promise opens nothing: it may have promised in a former life.
5. The leader measures by several clocks, and the one that is furthest decides: CLOCK_BOOTTIME, which goes on
   while the machine sleeps, that of its timers, the wall clock. So one of them may stand still. Who holds
   measures by the first two, and the one that is furthest behind decides: one that stood still and catches up
   ends no promise before its time. (A wall clock that was set back would, for as long as it was set back.)

| asked in which state | answer | the leader |
|---|---|---|
| knows a newer epoch | NEWER_EPOCH | steps down |
| leads, or is stopping | LEADS, STOPPED | waits |
| has an opening of unknown result | OPENING | waits |
| has not read the journal yet | UNREAD | waits |
| is asked for longer than it may promise | TOO_LONG | waits |
| can write | can_write | stops, hands over |
| cannot write | held | goes on, when all others hold too |
| silent | none | waits |
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

#: Share of the time promised that a leader uses: clocks differ, by 10 % at most.
HOLD_SHARE = 0.8
NEWER_EPOCH, LEADS, STOPPED, OPENING = "NEWER_EPOCH", "LEADS", "STOPPED", "OPENING"
UNREAD, TOO_LONG = "UNREAD", "TOO_LONG"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asker:
    """Which leader asks, and in which of its rounds: what is on its way for long is told from what is new."""

    epoch: int
    round: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldAnswer:
    """What a router says when it is asked to hold."""

    #: It will not open until the time asked for is over.
    held: bool = False
    #: It could write just now.
    can_write: bool = False
    #: Why it does not hold.
    reason: str = ""
    #: Newest epoch that it knows of.
    epoch: int = 0


class Verdict(enum.StrEnum):
    """What follows from a round of answers."""

    WAIT = "wait"
    GO_ON = "go_on"
    HAND_OVER = "hand_over"
    STEP_DOWN = "step_down"


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """The answers of one round, by router; None for a router that did not answer."""

    epoch: int
    answers: Mapping[str, HoldAnswer | None]
    #: Those that are on every list that may be in force: one of them may be given the blocks.
    able: Collection[str]

    def newest_epoch(self) -> int:
        """The newest epoch that anybody knows of."""
        known = [answer.epoch for answer in self.answers.values() if answer is not None]
        return max(known, default=0)

    def writer(self) -> str:
        """The first router, in the order of the lead list, that can write; empty for none."""
        could = (name for name, answer in self.answers.items() if answer is not None and answer.can_write)
        return next((name for name in could if name in self.able), "")

    def verdict(self) -> Verdict:
        """What the leader does."""
        if self.newest_epoch() > self.epoch:
            return Verdict.STEP_DOWN
        if self.writer():
            return Verdict.HAND_OVER
        held = all(answer is not None and answer.held for answer in self.answers.values())
        return Verdict.GO_ON if held else Verdict.WAIT


#: One moment by several clocks, seconds, always the same ones in the same order.
Moment = tuple[float, ...]


class Holds:
    """The leader's side: until when it may go on from memory."""

    def __init__(self, hold_seconds: float) -> None:
        self.hold_seconds = hold_seconds
        self._until: Moment = ()

    def take(self, answers: Round, asked: Moment) -> Verdict:
        """Takes a round that was asked at `asked`."""
        verdict = answers.verdict()
        if verdict is Verdict.GO_ON:
            self._until = tuple(at + HOLD_SHARE * self.hold_seconds for at in asked)
        elif verdict is not Verdict.WAIT:
            self.void()
        return verdict

    def left(self, now: Moment) -> float:
        """For how long yet, by the clock that is furthest; 0 or less: no longer."""
        if not self._until:
            return 0.0
        return min(until - at for until, at in zip(self._until, now, strict=True))

    def void(self) -> None:
        """Nothing was promised any more."""
        self._until = ()


class Lists:
    """Which routers may be on the lead list in force. A list that was decided and is not known to be
    committed may be in force or not, and so may the one before it.
    """

    def __init__(self) -> None:
        self._lists: list[Sequence[str]] = [()]

    def is_in_force(self, lead_list: Sequence[str]) -> None:
        """All decisions up to this list are committed, and no later one names another."""
        self._lists = [lead_list]

    def may_be(self, lead_list: Sequence[str]) -> None:
        """A decision names this one."""
        if self._lists[-1] != lead_list:
            self._lists.append(lead_list)

    @property
    def certain(self) -> bool:
        """Whether only one list can be in force."""
        return len(self._lists) == 1

    def named(self, homes: Sequence[str]) -> list[str]:
        """Everybody who is on any of them, in order; an empty list means `homes`."""
        return list(dict.fromkeys(router for each in self._lists for router in each or homes))

    def able(self, homes: Sequence[str]) -> set[str]:
        """Who is on all of them."""
        return set.intersection(*(set(each or homes) for each in self._lists))


class Promise:
    """A router's own side: until when it opens nothing."""

    def __init__(self, born: Moment, hold_seconds: float) -> None:
        """`born`: when its process started; `hold_seconds`: the longest time that anybody asks for."""
        self.hold_seconds = hold_seconds
        self._until = tuple(at + hold_seconds for at in born)
        self._born_until = self._until
        self._newest = (0, 0)

    def give(self, asker: Asker, now: Moment, seconds: float) -> None:
        """Promises, `hold_seconds` at most; a longer promise stays as it is."""
        self._until = tuple(max(until, at + seconds) for until, at in zip(self._until, now, strict=True))
        self._newest = max(self._newest, (asker.epoch, asker.round))

    def given_later(self, asker: Asker) -> bool:
        """Whether something was promised after this was asked: then it must not release the promise."""
        return self._newest > (asker.epoch, asker.round)

    def may_open(self, now: Moment) -> bool:
        return all(at >= until for until, at in zip(self._until, now, strict=True))

    def release(self) -> None:
        """Whom it was given to has stopped, and wants this router to open. What a former life has promised
        stays.
        """
        self._until = self._born_until
