"""Holds over gRPC: how a leader asks other routers, and the blocks that it hands over as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import bson
import bson.errors
import grpc
import structlog

from callmesh.routing.v1 import shard_pb2, shard_pb2_grpc
from chassis.errors import InvalidArgument
from routing import codec
from routing.holds import Asker, HoldAnswer
from routing.journal import Block, JournalGap, from_document, to_document
from routing.links import Routers

#: A router that takes blocks writes them down within this, real seconds.
TAKE_ANSWER_SECONDS = 6.0
#: Blocks that one message may bring.
BLOCKS_MAX = 1_000

log = structlog.get_logger(__name__)


class GrpcHoldPeers:
    """The other routers, by the channels that this one has to them."""

    def __init__(self, routers: Routers) -> None:
        self._routers = routers

    def homes(self, shard: str) -> Sequence[str]:
        return self._routers.homes(shard)

    def _stub(self, router: str) -> shard_pb2_grpc.ShardServiceStub:
        return shard_pb2_grpc.ShardServiceStub(self._routers.dialer.channel(router))

    async def hold(
        self, router: str, shard: str, asker: Asker, seconds: float, wait_seconds: float
    ) -> HoldAnswer | None:
        request = shard_pb2.HoldRequest(
            shard=shard,
            epoch=asker.epoch,
            round=asker.round,
            router=self._routers.own,
            hold_ms=round(seconds * 1000),
        )
        try:
            answer = await self._stub(router).Hold(
                request, timeout=wait_seconds, metadata=self._routers.dialer.metadata()
            )
        except grpc.aio.AioRpcError as error:
            log.info("hold_unanswered", shard=shard, router=router, code=error.code().name)
            return None
        return HoldAnswer(
            held=answer.held, can_write=answer.can_write, reason=answer.reason, epoch=answer.epoch
        )

    async def take(
        self, router: str, shard: str, asker: Asker, blocks: Sequence[Block], *, last: bool
    ) -> bool:
        request = shard_pb2.TakeBlocksRequest(
            shard=shard,
            epoch=asker.epoch,
            round=asker.round,
            blocks=[pack_block(block) for block in blocks],
            open=last,
        )
        try:
            answer = await self._stub(router).TakeBlocks(
                request, timeout=TAKE_ANSWER_SECONDS, metadata=self._routers.dialer.metadata()
            )
        except grpc.aio.AioRpcError as error:
            log.warning("blocks_not_handed_over", shard=shard, router=router, code=error.code().name)
            return False
        return bool(answer.taken)


def pack_block(block: Block) -> bytes:
    """A block as it is inserted."""
    packed: bytes = bson.encode(to_document(block))
    return packed


def _unpack(raw: bytes) -> Block:
    """The inverse of `pack_block`. Raises BSONError, JournalGap, CodecError."""
    document = bson.decode(raw)
    kinds = {"_id": str, "nonce": str, "prev": str, "body": bytes}
    wrong = [name for name, kind in kinds.items() if not isinstance(document.get(name), kind)]
    if wrong:
        raise JournalGap(f"its {wrong[0]} is {type(document.get(wrong[0])).__name__}")
    block = from_document(document)
    if block.format <= codec.FORMAT:
        # What cannot be read must not get into the journal: nobody could lead after it.
        codec.decode_events(block.body, block.now_ms)
    return block


def unpack_blocks(request: shard_pb2.TakeBlocksRequest) -> list[Block]:
    """The blocks of a request, in order. Raises InvalidArgument for what is no block of the shard and epoch,
    or does not follow the one before it.
    """
    if len(request.blocks) > BLOCKS_MAX:
        raise InvalidArgument(field="blocks", why=f"must be at most {BLOCKS_MAX}")
    blocks: list[Block] = []
    for index, raw in enumerate(request.blocks):
        field = f"blocks[{index}]"
        try:
            block = _unpack(raw)
        except (bson.errors.BSONError, JournalGap, codec.CodecError) as error:
            raise InvalidArgument(field=field, why=f"is no block: {error!r}"[:200]) from error
        if block.shard != request.shard or block.epoch != request.epoch:
            raise InvalidArgument(field=field, why=f"is not of {request.shard!r} and epoch {request.epoch}")
        if blocks and (block.sequence != blocks[-1].sequence + 1 or block.prev != blocks[-1].nonce):
            raise InvalidArgument(field=field, why="does not follow the one before it")
        blocks.append(block)
    return blocks
