"""Past decisions: finds the block in which a call was last offered, and brings the shard to the moment
before.

1. The journal is searched from its newest block back, by a look for the call's id in the bytes: only blocks
   that have it are decoded. With an hour to look around, blocks outside it are not read.
2. The shard is then replayed from the nearest start at or below that block, up to the very event. What is
   explained is what the leader saw.
3. A call that was never offered is looked at just before it ended.
4. Everything is bounded: blocks searched, blocks replayed, time. Blocking code: it runs in a thread, one at
   a time, and lets the event loop have its turn.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mongoengine import get_db
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from chassis.errors import FailedPrecondition, ResourceExhausted
from routing import codec, model
from routing.explain import CANDIDATES_MAX, explain
from routing.journal import COLLECTION, Block, ChainReader, JournalGap, block_key, from_document
from routing.model import AskExplain, CallView, Explanation
from routing.publish import Projection
from routing.snapshots import MongoSnapshots, nearest_start
from routing.state import evolve
from routing.views import view_call

if TYPE_CHECKING:
    from pymongo.collection import Collection
    from pymongo.database import Database

#: Blocks searched and blocks replayed for one question.
SEARCH_BLOCKS_MAX = 400_000
REPLAY_BLOCKS_MAX = 400_000
#: Half of the span that is searched around a given time, business milliseconds.
AROUND_SPAN_MS = 3_600_000
#: Blocks after which the loop gets its turn, and for how long, real seconds.
TURN_BLOCKS, TURN_SECONDS = 50, 0.001


class JournalPruned(FailedPrecondition):
    """{subject} cannot be explained any more: {why}."""

    reason = "JOURNAL_PRUNED"


class SearchTooLong(ResourceExhausted):
    """The search for {subject} takes too long; name its region and about when it was offered."""

    reason = "SEARCH_TOO_LONG"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Where a decision stands in the journal."""

    sequence: int
    #: Place of the event in its block.
    place: int
    #: Whom the call was offered to; empty when it never was.
    agent: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PastDecision:
    """A decision as its leader saw it."""

    shard: str
    at_ms: int
    #: The call just before.
    call: CallView
    explanation: Explanation
    #: Whom it was offered to; empty when it never was.
    agent: str


class PastBlocks(Protocol):
    """A journal to look back into. Methods raise pymongo's errors."""

    def newest(self, shard: str) -> int:
        """Sequence of the newest block, 0 without one."""

    def time_at(self, shard: str, sequence: int) -> int | None:
        """Business time of the first block at or above a sequence; None when there is none."""

    def back(self, shard: str, sequence: int) -> Iterable[Block]:
        """Blocks at or below a sequence, newest first."""

    def forth(self, shard: str, after: int, upto: int) -> Iterable[Block]:
        """Blocks above `after`, up to `upto`."""


#: The nearest state to begin from: (shard, newest block it may hold) -> (projection, its last block's
#: reader), or None for the journal's beginning.
NearestStart = Callable[[str, int], "tuple[Projection, ChainReader] | None"]


class MongoPast:
    """Journals in MongoDB, read blockingly."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._blocks: Collection[dict[str, Any]] = database.get_collection(
            COLLECTION, read_concern=ReadConcern("majority"), read_preference=ReadPreference.PRIMARY
        )

    def newest(self, shard: str) -> int:
        span = {"_id": {"$gt": block_key(shard, 0), "$lt": f"{shard};"}}
        found = self._blocks.find_one(span, {"_id": 1}, sort=[("_id", -1)])
        return 0 if found is None else int(str(found["_id"]).rpartition(":")[2])

    def time_at(self, shard: str, sequence: int) -> int | None:
        span = {"_id": {"$gte": block_key(shard, sequence), "$lt": f"{shard};"}}
        found = self._blocks.find_one(span, {"now": 1}, sort=[("_id", 1)])
        return None if found is None else int(found["now"])

    def back(self, shard: str, sequence: int) -> Iterator[Block]:
        span = {"_id": {"$gt": block_key(shard, 0), "$lte": block_key(shard, sequence)}}
        yield from map(from_document, self._blocks.find(span).sort("_id", -1).batch_size(500))

    def forth(self, shard: str, after: int, upto: int) -> Iterator[Block]:
        span = {"_id": {"$gt": block_key(shard, after), "$lte": block_key(shard, upto)}}
        yield from map(from_document, self._blocks.find(span).sort("_id", 1).batch_size(500))


def past_decision(
    blocks: PastBlocks,
    shard: str,
    call_id: str,
    *,
    limit: int,
    seconds: float,
    around_ms: int = 0,
    start: NearestStart = lambda shard, sequence: None,
) -> PastDecision | None:
    """The last decision on a call of a shard; None when its journal does not have the call.

    Raises JournalPruned, SearchTooLong (after `seconds`, real), pymongo's errors.
    """
    patience = _Patience(call_id, seconds)
    try:
        found = find_decision(blocks, shard, call_id, patience, around_ms)
        return None if found is None else _replay(blocks, shard, call_id, found, limit, patience, start)
    except (JournalGap, codec.CodecError) as error:
        raise JournalPruned(
            subject=f"calls/{call_id}", why="the journal before it is no longer kept"
        ) from error


class _Patience:
    """Bounds what one question may take."""

    def __init__(self, call_id: str, seconds: float) -> None:
        self._call_id = call_id
        self._give_up = time.monotonic() + seconds
        self._blocks = 0

    def spend(self, blocks_max: int) -> None:
        """One block more. Raises SearchTooLong."""
        self._blocks += 1
        if self._blocks % TURN_BLOCKS == 0:
            time.sleep(TURN_SECONDS)
            if time.monotonic() > self._give_up:
                raise self._too_long()
        if self._blocks > blocks_max:
            raise self._too_long()

    def _too_long(self) -> SearchTooLong:
        return SearchTooLong(
            subject=f"calls/{self._call_id}", limit=f"at most {SEARCH_BLOCKS_MAX} blocks", retry_seconds=1.0
        )

    def renew(self) -> None:
        """Blocks are counted anew; the time goes on."""
        self._blocks = 0


def find_decision(
    blocks: PastBlocks, shard: str, call_id: str, patience: _Patience, around_ms: int = 0
) -> Found | None:
    """The newest offer of a call, or its end if it never had one. Raises SearchTooLong."""
    newest = _first_at(blocks, shard, around_ms + AROUND_SPAN_MS) if around_ms else blocks.newest(shard)
    needle, ended = call_id.encode(), None
    for block in blocks.back(shard, newest):
        patience.spend(SEARCH_BLOCKS_MAX)
        if around_ms and block.now_ms < around_ms - AROUND_SPAN_MS:
            break
        if needle not in block.body:
            continue
        events = codec.decode_events(block.body, block.now_ms)
        for place in reversed(range(len(events))):
            event = events[place][1]
            if isinstance(event, model.CallOffered) and event.call_id == call_id:
                return Found(sequence=block.sequence, place=place, agent=event.agent)
            if isinstance(event, model.CallEnded) and event.call_id == call_id and ended is None:
                ended = Found(sequence=block.sequence, place=place, agent="")
            if isinstance(event, model.CallQueued) and event.facts.call_id == call_id:
                return ended
            if isinstance(event, model.CallTransferred) and event.facts.call_id == call_id and ended:
                # Offers before it led to another conversation.
                return ended
    return None


def _first_at(blocks: PastBlocks, shard: str, at_ms: int) -> int:
    """Sequence of a block no later than the first one after an instant: business time never goes back."""
    low, high = 0, blocks.newest(shard)
    while low < high:
        middle = (low + high) // 2
        now_ms = blocks.time_at(shard, middle + 1)
        if now_ms is not None and now_ms <= at_ms:
            low = middle + 1
        else:
            high = middle
    return low


def _replay(
    blocks: PastBlocks,
    shard: str,
    call_id: str,
    found: Found,
    limit: int,
    patience: _Patience,
    start: NearestStart,
) -> PastDecision:
    patience.renew()
    projection, chain = start(shard, found.sequence - 1) or (Projection(shard), ChainReader())
    for block in blocks.forth(shard, chain.sequence, found.sequence):
        patience.spend(REPLAY_BLOCKS_MAX)
        chain.accept(block)
        if block.sequence < found.sequence:
            projection.skip(block)
            continue
        state = projection.state
        if block.opening:
            state.epoch = block.epoch
        events = codec.decode_events(block.body, block.now_ms)
        for at_ms, event in events[: found.place]:
            evolve(state, event, at_ms)
        at_ms = max(state.now_ms, events[found.place][0])
        return PastDecision(
            shard=shard,
            at_ms=at_ms,
            call=view_call(state, call_id),
            explanation=explain(state, AskExplain(call_id=call_id, limit=limit), at_ms),
            agent=found.agent,
        )
    raise JournalGap(f"{shard}: block {found.sequence} is gone")


def look_back(shard: str, call_id: str, around_ms: int, seconds: float) -> PastDecision | None:
    """`past_decision` over the process's own database: mongoengine's default connection."""
    database = get_db()
    return past_decision(
        MongoPast(database),
        shard,
        call_id,
        limit=CANDIDATES_MAX,
        seconds=seconds,
        around_ms=around_ms,
        start=functools.partial(nearest_start, MongoSnapshots(database)),
    )
