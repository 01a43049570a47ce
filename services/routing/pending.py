"""What a leader has decided and not committed: a command's events, with the answer and the facts that wait
for their block.
"""

from __future__ import annotations

import asyncio

import msgspec

from routing import codec
from routing.committed import Committed
from routing.model import Answer, Fact, LeadListSet


class Pending(msgspec.Struct, eq=False):
    """A decided command that waits for its block."""

    now_ms: int
    events: list[codec.Packed]
    answer: Answer
    future: asyncio.Future[Committed] | None
    #: Facts by front, taken when the command was decided.
    facts: list[tuple[str, Fact]]
    #: Events ever applied when it had been decided.
    ordinal: int
    #: Of its encoded events.
    bytes: int


def names_list(pending: Pending) -> bool:
    """Whether a decision is of another lead list."""
    return any(event.name == LeadListSet.__name__ for event in pending.events)
