"""Commands that leaders were lost to: which of them is poison, and which was only there when it happened.

1. A leader whose stream breaks just after it was given a command may have died of it. Whether it died at all
   is known when somebody leads its shard again: until then the command is a suspect.
2. Whatever is a suspect, or has outlived one leader, is asked alone in every shard, and the leader says that
   it has received it before it decides: what dies then dies of it.
3. Poison is what has outlived two leaders: of one shard, or of all that this router speaks to, for a call
   goes on to the next region. Of several shards only those leaders count each for itself that were lost to it
   while it was asked alone: by one accident many may go at once, and one process may lead several shards.
4. A leader that carries it out or refuses it acquits it: in its own shard of everything, elsewhere of what
   was counted over shards. What kills in one shard alone is poison there, however often others answer it.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from routing.model import Command

#: Leaders that a command may outlive; how long, and of how many commands, that is remembered, real seconds.
OUTLIVED_MAX = 2
OUTLIVED_LIFE_SECONDS, OUTLIVED_REMEMBERED_MAX = 600.0, 1_000


class Verdict(enum.Enum):
    """What is to be done with a command."""

    #: Nothing is held against it.
    CLEAR = enum.auto()
    #: It is asked alone.
    ALONE = enum.auto()
    #: It is poison if the leaders that it is suspected of have died, which nobody knows yet.
    UNSURE = enum.auto()
    #: No further leader is to be given it.
    POISON = enum.auto()


def identity(command: Command) -> str:
    """The same for each try of a command: its kind and what it is about."""
    facts = getattr(command, "facts", None)
    names = ("call_id", "agent", "queue", "front")
    subject = (
        facts.call_id
        if facts is not None
        else next((str(value) for name in names if (value := getattr(command, name, ""))), "")
    )
    return f"{type(command).__name__} {subject}"


@dataclass(slots=True)
class _Record:
    """What is held against one command."""

    at_seconds: float = 0.0
    #: Leaders lost to it, by shard.
    lost: dict[str, int] = field(default_factory=dict)
    #: Of all shards: how many while it was asked alone, and whether there were others.
    lost_alone: int = 0
    lost_together: bool = False
    #: Shards in which it is a suspect: whether it was asked alone; None when acquitted elsewhere since.
    suspected: dict[str, bool | None] = field(default_factory=dict)

    def verdict(self, shard: str) -> Verdict:
        here, everywhere = self.lost.get(shard, 0), self.lost_alone + self.lost_together
        if max(here, everywhere) >= OUTLIVED_MAX:
            return Verdict.POISON
        suspected = self.suspected.values()
        together = self.lost_together or False in suspected
        perhaps = self.lost_alone + sum(alone is True for alone in suspected) + together
        worst = max(here + (shard in self.suspected), perhaps)
        if worst >= OUTLIVED_MAX:
            return Verdict.UNSURE
        return Verdict.ALONE if worst else Verdict.CLEAR

    def lose(self, shard: str, alone: bool | None) -> None:
        self.lost[shard] = self.lost.get(shard, 0) + 1
        if alone:
            self.lost_alone += 1
        elif alone is not None:
            self.lost_together = True


class Outlived:
    """One a router: what it holds against commands, by identity."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known: OrderedDict[str, _Record] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._known)

    def verdict(self, command: str, shard: str) -> Verdict:
        """Whether, and how, a shard's leader is to be given this command."""
        record = self._known.get(command)
        if record is None or self._monotonic() - record.at_seconds >= OUTLIVED_LIFE_SECONDS:
            return Verdict.CLEAR
        return record.verdict(shard)

    def suspect(self, command: str, shard: str, *, alone: bool) -> None:
        """The stream of the shard's leader broke just after it had been given this command."""
        suspected = self._record(command).suspected
        suspected[shard] = alone and suspected.get(shard) is not False

    def judge(self, command: str, shard: str, *, died: bool) -> None:
        """Whether that leader has died is known."""
        record = self._record(command)
        alone = record.suspected.pop(shard, False)
        if died:
            record.lose(shard, alone)
        self._drop_if_clear(command, record)

    def add(self, command: str, shard: str) -> None:
        """A leader was lost to this command, for sure."""
        self._record(command).lose(shard, True)

    def answered(self, command: str, shard: str) -> None:
        """A leader has carried it out, or refused it, and lives."""
        record = self._known.get(command)
        if record is None:
            return
        record.lost.pop(shard, None)
        record.lost_alone, record.lost_together = 0, False
        record.suspected = {other: None for other in record.suspected if other != shard}
        self._drop_if_clear(command, record)

    def _record(self, command: str) -> _Record:
        """What is held against a command, anew when it is too long ago."""
        record, now = self._known.pop(command, None), self._monotonic()
        if record is None or now - record.at_seconds >= OUTLIVED_LIFE_SECONDS:
            record = _Record()
        record.at_seconds = now
        self._known[command] = record
        if len(self._known) > OUTLIVED_REMEMBERED_MAX:
            self._known.popitem(last=False)
        return record

    def _drop_if_clear(self, command: str, record: _Record) -> None:
        if not (record.lost or record.suspected or record.lost_alone or record.lost_together):
            self._known.pop(command, None)
