"""An operator's `shard seize`: this router opens a shard at once.

Leading is left to the routers of a shard's lead list, and to patience. When those are gone, or one of them
leads and should not, an operator names a router: it opens as soon as it has read the journal and can write,
whoever leads and whatever the shard's own list says. That is as safe as any opening: the journal's fence
decides, and who led before runs into the opening block. What comes then is as always: a healthy router of
the shard's own region leads again by itself, so to keep it away take it off the region's lead list first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from callmesh.routing.v1 import supervision_pb2 as pb
from chassis.callcontext import current_identity
from chassis.errors import FailedPrecondition, Unavailable
from chassis.ids import parse_name, resource_name
from routing.acts import REASON_CHARACTERS_MAX
from routing.audit import Act
from routing.convert import text
from routing.errors import RegionNotFound
from routing.leader import Leader
from routing.model import RecordAct

#: A shard that could not be opened for so long is left alone again, real seconds.
SEIZE_SECONDS_MAX = 10.0
#: Kept for the answer's way back, real seconds.
ANSWER_SECONDS = 0.2


class ShardNotFollowed(FailedPrecondition):
    """This router does not follow {subject}: {why}."""

    reason = "SHARD_NOT_FOLLOWED"


class ShardNotSeized(Unavailable):
    """Shard {shard} could not be opened here in time: {why}."""

    reason = "SHARD_NOT_SEIZED"


class Seizer:
    """One a router. Its methods belong to one event loop."""

    def __init__(self, leaders: Mapping[str, Leader], shards: frozenset[str], router: str) -> None:
        """`leaders` are those of this router by shard, read anew each time; `shards` are all there are."""
        self._leaders = leaders
        self._shards = shards
        self._router = router

    async def seize(self, request: pb.SeizeShardRequest, remaining: float) -> pb.SeizeShardResponse:
        """Leads the region's shard on return. Raises InvalidArgument, RegionNotFound, ShardNotFollowed,
        ShardNotSeized.
        """
        shard = parse_name("region", "regions", request.region)
        reason = text("reason", request.reason, REASON_CHARACTERS_MAX, required=True)
        if shard not in self._shards:
            raise RegionNotFound(resource=request.region)
        leader = self._leaders.get(shard)
        if leader is None:
            raise ShardNotFollowed(subject=request.region, why="name it in the region's lead list first")
        if not leader.leading:
            await self._open(leader, min(SEIZE_SECONDS_MAX, remaining - ANSWER_SECONDS))
            await self._record(leader, reason)
        return pb.SeizeShardResponse(
            region=request.region, router=self._router, epoch=leader.epoch, sequence=leader.sequence
        )

    async def _open(self, leader: Leader, seconds: float) -> None:
        leader.begin_seizure()
        try:
            async with asyncio.timeout(seconds):
                await leader.wait_until_leading()
        except TimeoutError:
            why = "the journal cannot be read and written, or others opened first"
            raise ShardNotSeized(shard=leader.shard, why=why, retry_seconds=1.0) from None
        finally:
            leader.end_seizure()

    async def _record(self, leader: Leader, reason: str) -> None:
        """After the deed, unlike other acts: before it there is perhaps nobody who could commit a record."""
        act = RecordAct(
            actor=current_identity().subject,
            act=Act.SEIZE_SHARD,
            subject=resource_name("regions", leader.shard),
            reason=reason,
            details=(("epoch", str(leader.epoch)), ("router", self._router)),
        )
        try:
            await leader.submit(act)
        except Unavailable as error:
            raise ShardNotSeized(
                shard=leader.shard, why="another opened it since", retry_seconds=1.0
            ) from error
