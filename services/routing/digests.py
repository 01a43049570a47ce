"""Digests in blocks: whether a reader of the journal has come to the same state as the leader
that wrote it.
"""

from __future__ import annotations

from chassis import logs, metrics
from routing import image
from routing.journal import Block
from routing.state import ShardState

#: The leader puts a digest into one block of so many.
DIGEST_BLOCKS = 1_000

log = logs.get_logger(__name__)
_diverged = metrics.counter(
    "callmesh_journal_digest_mismatches_total",
    "Blocks whose digest is not that of the reader's state.",
    ("shard",),
)


def digest_of(state: ShardState, sequence: int) -> str:
    """The digest that block `sequence` carries: of another stretch of the state each time."""
    return image.digest(state, sequence // DIGEST_BLOCKS)


def agrees(state: ShardState, block: Block) -> bool:
    """Whether a reader's state after the block is the leader's, as far as the block's digest says; counted
    and told if not. A digest made by a release with other fields or rules, or of a state that
    began from an image of such a release elsewhere, says nothing.
    """
    if not block.digest:
        return True
    own = digest_of(state, block.sequence)
    if own == block.digest or not image.comparable(own, block.digest):
        return True
    _diverged.labels(state.shard).inc()
    log.error("digest_mismatch", block=block.key, own=own, leaders=block.digest)
    return False
