"""What other routers know of a shard's journal.

A leader that wakes over a journal that ends with its own last block cannot see whether another one has led
since and the database was set back: nothing stands where that one's blocks were. The others have read them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from callmesh.routing.v1 import shard_pb2, shard_pb2_grpc
from routing.links import ADDRESSES_MAX, Routers

#: The others have so long to answer, real seconds: whoever asks has slept for longer.
ANSWER_SECONDS = 1.0


class Witnesses:
    """The other routers, by the channels that this one has to them."""

    def __init__(self, routers: Routers) -> None:
        self._routers = routers

    async def newest(self, shard: str, lead_list: Sequence[str] = ()) -> int:
        """The newest block of the shard that one of them has read, or written, as committed; 0 when none says
        so in time. Who may lead it follows it, and is asked first: the others are too many to ask them all.
        """
        routers = self._routers
        known = dict.fromkeys((*routers.homes(shard), *lead_list, *routers.others()))
        asked = [address for address in known if address != routers.own][:ADDRESSES_MAX]
        return max(await asyncio.gather(*(self._ask(address, shard) for address in asked)), default=0)

    async def _ask(self, address: str, shard: str) -> int:
        dialer = self._routers.dialer
        stub = shard_pb2_grpc.ShardServiceStub(dialer.channel(address))
        try:
            answer = await stub.GetNewestBlock(
                shard_pb2.GetNewestBlockRequest(shard=shard),
                timeout=ANSWER_SECONDS,
                metadata=dialer.metadata(),
            )
        except grpc.aio.AioRpcError:
            # Away, or of an older release.
            return 0
        return int(answer.sequence)
