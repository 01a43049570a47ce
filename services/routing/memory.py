"""A shard's memory made of its journal: of a snapshot, and of the blocks behind it."""

from __future__ import annotations

import asyncio
import hashlib

import structlog

from routing import codec, digests, image
from routing.journal import Block, ChainReader, JournalGap, JournalStore, Manifest
from routing.model import ShardOpened
from routing.state import ShardState, evolve

log = structlog.get_logger(__name__)


async def restored(store: JournalStore, shard: str, manifest: Manifest) -> ShardState | None:
    """A snapshot's state, None when it is incomplete or cannot be read; others have their turn between
    its parts.
    """
    restorer, seal, count = image.Restorer(shard), hashlib.sha256(), 0
    if manifest.format > image.FORMAT:
        return None
    try:
        async for part in store.parts(manifest):
            seal.update(part)
            restorer.add(part)
            count += 1
            await asyncio.sleep(0)
    except image.ImageError as error:
        log.error("snapshot_unreadable", shard=shard, sequence=manifest.sequence, error=str(error))
        return None
    if count != manifest.parts or seal.hexdigest() != manifest.seal:
        log.error("snapshot_incomplete", shard=shard, sequence=manifest.sequence, parts=count)
        return None
    return restorer.state


def apply(state: ShardState, chain: ChainReader, block: Block) -> str:
    """Takes the next committed block into a state; who opened the shard with it, "" if nobody. Raises
    JournalGap when it does not follow, or when this code cannot read or apply it: such a reader does not
    lead.
    """
    if block.format > codec.FORMAT:
        raise JournalGap(
            f"{state.shard}: block {block.sequence} has format {block.format}, "
            f"this router reads {codec.FORMAT}"
        )
    chain.accept(block)
    if block.opening:
        state.epoch = block.epoch
    opened_by = ""
    try:
        for at_ms, event in codec.decode_events(block.body, block.now_ms):
            evolve(state, event, at_ms)
            if type(event) is ShardOpened:
                opened_by = event.router
    except Exception as error:
        raise JournalGap(f"{state.shard}: block {block.sequence} cannot be applied: {error!r}") from error
    state.now_ms = max(state.now_ms, block.now_ms)
    state.clear_worklists()
    if not digests.agrees(state, block):
        raise JournalGap(f"{state.shard}: this state is not the leader's after block {block.sequence}")
    return opened_by
