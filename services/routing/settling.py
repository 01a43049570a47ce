"""How a leader's block comes into the journal, and how it is known that it did, or never will.

An insert without an answer may have been done. So whoever is not sure looks first: at the block's place, and
at what it stands on; who slept also asks what the others know. Only then is it sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from routing.journal import Block, JournalGap, OutcomeUnknown

if TYPE_CHECKING:
    from routing.leader import Leader

#: First and longest pause between attempts to learn what became of a block, real seconds.
RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 0.02, 0.5

log = structlog.get_logger(__name__)


class Settling:
    """Of one leader; a block at a time."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        #: Monotonic second at which the block in flight was first sent.
        self.sent_seconds: float | None = None
        #: Monotonic second at which it was last known what stands at the journal's end.
        self.known_seconds = float("-inf")

    async def settle(self, block: Block, *, sent: bool = False) -> bool:
        """Brings a block into the journal: True once a majority has it, False when another's stands in its
        place. `sent`: it may be there already.

        Raises JournalGap when the block before is gone: the database was set back, and leading on would
        fork history.
        """
        leader = self._leader
        now = self.sent_seconds = leader.clock.monotonic()
        # Whoever opens, or slept, looks first whether what the block stands on is still there.
        unsure = sent or self.slept(now)
        try:
            return await self.send_until_known(block, unsure=unsure, leads=leader.leading)
        finally:
            self.sent_seconds = None

    async def send_until_known(self, block: Block, *, unsure: bool, leads: bool) -> bool:
        """As `settle`, of any leader's block. `unsure`: nobody here knows that the block before it is there;
        `leads`: it is one of this leader's.
        """
        leader = self._leader
        warned = False
        pause = RETRY_SECONDS_FIRST
        while True:
            # What the answer says was so after this: who sleeps before reading it knows no more than that.
            asked_seconds = leader.clock.monotonic()
            try:
                known = await self._send(block, look=unsure, leads=leads)
                self.known_seconds = asked_seconds
                return known
            except OutcomeUnknown as error:
                unsure = True
                if leader.outage and not warned:
                    warned = True
                    log.warning("journal_outage", shard=leader.shard, error=str(error)[:200])
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)

    async def _send(self, block: Block, *, look: bool, leads: bool) -> bool:
        """One try; with `look` only if the block is not there and its place is free. Raises JournalGap when
        that place had another's block: the database was set back.
        """
        if look:
            settled = await self._look(block)
            if settled is None and leads:
                settled = await self._ask_others(block)
            if settled is not None:
                return settled
        await self._leader.store.insert(block)
        return True

    async def _look(self, block: Block) -> bool | None:
        """Whether the block is there; False when it will never be. None when its place is the journal's
        next. Raises JournalGap when the block before is gone.
        """
        leader = self._leader
        found = await leader.store.find(leader.shard, block.sequence)
        if found is not None:
            return found.nonce == block.nonce
        return None if await self._may_send_again(block) else False

    async def _ask_others(self, block: Block) -> bool | None:
        """As `_look`, of a leader's block whose place was free. A leader that has not known the journal's end
        for as long as another one waits before it opens asks what the others know: what was committed there
        and is gone was taken back. One that was deposed meanwhile writes nothing.
        """
        leader = self._leader
        unknown_seconds = leader.clock.monotonic() - self.known_seconds
        long = unknown_seconds >= leader.options.takeover_seconds
        if leader.leading and leader.ask_others is not None and long:
            newest = await leader.ask_others(leader.state.lead_list)
            if newest >= block.sequence:
                leader.hear_committed(newest)
                # It may have come there since.
                settled = await self._look(block)
                if settled is None:
                    raise JournalGap(f"{block.key} was committed: the database was set back")
                return settled
        return None if leader.leading else False

    async def _may_send_again(self, block: Block) -> bool:
        """Whether the block's place is the journal's next. False when a snapshot stands at or past it: others
        have led on for so long that the place was pruned. Raises JournalGap when the block before is gone.
        """
        leader = self._leader
        if block.sequence == 1:
            return True
        previous = await leader.store.find(leader.shard, block.sequence - 1)
        if previous is not None and previous.nonce == block.prev:
            return True
        snapshots = await leader.store.manifests(leader.shard)
        if any(manifest.sequence >= block.sequence for manifest in snapshots):
            return False
        raise JournalGap(f"{leader.shard}: block {block.sequence - 1} is gone: the database was set back")

    async def settle_all(self, blocks: Sequence[Block]) -> bool:
        """Tries once to bring several into the journal that follow its last known one: True once a majority
        has all of them; False when nobody knows which are there, or when that has to be looked at first.
        """
        leader = self._leader
        asked_seconds = leader.clock.monotonic()
        if self.slept(asked_seconds):
            return False
        self.sent_seconds = asked_seconds
        try:
            async with asyncio.timeout(leader.options.outage_seconds):
                await leader.store.insert_all(blocks)
        except (TimeoutError, OutcomeUnknown) as error:
            log.warning("blocks_unknown", shard=leader.shard, blocks=len(blocks), error=str(error)[:200])
            return False
        finally:
            self.sent_seconds = None
        self.known_seconds = asked_seconds
        return True

    def slept(self, now: float) -> bool:
        """Whether the journal's end has not been known for so long that others may have led meanwhile."""
        leader = self._leader
        patience = max(leader.options.outage_seconds, 2 * leader.options.heartbeat_seconds)
        return now - self.known_seconds > patience
