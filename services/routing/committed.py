"""What whoever asks a shard's leader gets: a committed answer, or why there is none.

Apart from the leader (leader.py), so that a front knows its answers and not the leader.
"""

from __future__ import annotations

import msgspec

from chassis.errors import Unavailable
from routing.model import Answer


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that may be given: its block is in the journal of a majority."""

    answer: Answer
    shard: str
    epoch: int
    sequence: int
    now_ms: int
    durable: bool = True


class NothingTaken(Unavailable):
    """Shard {shard} did not take it and nothing has changed; try again."""


class NotLeading(NothingTaken):
    """Shard {shard} has no leader here just now; try again."""

    reason = "SHARD_NOT_LED"


class LeaderGone(Unavailable):
    """The leader of shard {shard} went before it had an answer; ask again, nothing is done twice."""

    reason = "SHARD_NOT_LED"


class StoreOutage(NothingTaken):
    """The journal of shard {shard} cannot be written just now; nothing was taken, try again."""

    reason = "JOURNAL_UNAVAILABLE"


class ShardBusy(NothingTaken):
    """Shard {shard} has more work than it can commit just now; nothing was taken, try again."""

    reason = "SHARD_BUSY"


class PoisonCommand(Exception):
    """The engine failed on a command; nothing has changed."""

    def __init__(self, command: str, *, deposed: bool = False) -> None:
        """`deposed`: it failed half-way, so the leader steps down and reads its journal again."""
        super().__init__(command)
        self.deposed = deposed
