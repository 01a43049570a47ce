"""The journal: what a shard's leaders have decided, one document a block, and the fence between leaders.

A block's `_id` is `shard:%016d`, so a sequence number can be taken once. Whoever finds another's block there
has been deposed. A block is committed when its insert was acknowledged by a majority, or when a majority read
finds it with our nonce; every other answer is unknown. `DuplicateKey` is unknown too: MongoDB answers it for
blocks that are rolled back later.

`JournalStore` is the port; `MongoJournal` the real one; `MemoryJournal` (testing.py) the one for unit tests.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from bson import Binary
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.cursor import AsyncCursor
    from pymongo.asynchronous.database import AsyncDatabase

#: Collection of all shards' blocks.
COLLECTION = "journal"
#: Collections of snapshots: what makes one count, and its parts.
SNAPSHOTS, SNAPSHOT_PARTS = "journal_snapshots", "journal_snapshot_parts"
#: Collection of the candidates' probes, one document a shard and router.
PROBES = "journal_probes"
#: Collection of blocks that were told from memory and are in no journal: for an operator to look at, within
#: so many seconds.
ORPHANS, ORPHANS_SECONDS = "journal_orphans", 7 * 86_400
#: Blocks fetched at once when a journal is read, and parts of a snapshot.
READ_BATCH_BLOCKS, READ_BATCH_PARTS = 1_000, 4
#: Documents handed on at once of what was fetched; a block has up to 1 MiB.
READ_AT_ONCE = 32
#: An answer that takes longer than this is none, real seconds. A database that hangs with its connections
#: open would otherwise hold a leader, or a standby, for as long as the driver waits for a socket: 20 s.
ANSWER_SECONDS_MAX = 5.0


class OutcomeUnknown(Exception):
    """The database gave no answer that says whether the block is there."""


class JournalGap(Exception):
    """A block is missing, does not follow the one before it, or cannot be read or applied: such a journal
    cannot be led.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What is inserted at once. Its bytes never change once it was sent."""

    shard: str
    #: 1, 2, 3 … without a gap.
    sequence: int
    #: Sequence of the opening block of the leader that wrote it.
    epoch: int
    #: Random, tells our block from another's.
    nonce: str
    #: Nonce of the block before; empty for the first.
    prev: str
    #: Business time that the events' offsets count from.
    now_ms: int
    #: Format of `body`; a reader that does not know it must not lead.
    format: int
    #: Events inside.
    count: int
    #: Encoded events (codec.encode_events).
    body: bytes
    #: Of the state after this block (image.digest); empty for most blocks.
    digest: str = ""

    @property
    def opening(self) -> bool:
        """A leader's first block. Never pruned: it is what a leader that wakes runs into."""
        return self.epoch == self.sequence

    @property
    def key(self) -> str:
        return block_key(self.shard, self.sequence)


def block_key(shard: str, sequence: int) -> str:
    """The `_id` of a block."""
    return f"{shard}:{sequence:016d}"


def end_of(shard: str) -> str:
    """Behind every key of the shard, before any other's: ';' follows ':' in ASCII."""
    return f"{shard};"


def to_document(block: Block) -> dict[str, Any]:
    """The block as MongoDB keeps it."""
    document = {
        "_id": block.key,
        "epoch": block.epoch,
        "nonce": block.nonce,
        "prev": block.prev,
        "now": block.now_ms,
        "format": block.format,
        "count": block.count,
        "opening": block.opening,
        "body": Binary(block.body),
    }
    return {**document, "digest": block.digest} if block.digest else document


def orphan_document(block: Block, kept_time: datetime) -> dict[str, Any]:
    """A block that is in no journal, as it is put aside."""
    return {**to_document(block), "_id": f"{block.key}:{block.nonce}", "kept_time": kept_time}


def from_document(document: dict[str, Any]) -> Block:
    """The inverse of `to_document`. Raises JournalGap for a document that this code cannot read."""
    shard, _, sequence = document["_id"].rpartition(":")
    try:
        return Block(
            shard=shard,
            sequence=int(sequence),
            # Plain numbers: BSON's own kind of integer would go on into the state, and no further.
            epoch=int(document["epoch"]),
            nonce=document["nonce"],
            prev=document["prev"],
            now_ms=int(document["now"]),
            format=int(document["format"]),
            count=int(document["count"]),
            body=bytes(document["body"]),
            digest=document.get("digest", ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise JournalGap(f"{document['_id']} is not a block that this code can read: {error!r}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What makes the parts of a snapshot count: the state after the block at `sequence`."""

    shard: str
    sequence: int
    #: Of that block.
    nonce: str
    epoch: int
    #: Events applied since the journal began.
    ordinal: int
    #: The shard's time, business milliseconds since 1970.
    now_ms: int
    #: Of the parts (image.FORMAT).
    format: int
    #: How many.
    parts: int
    #: Random: parts of different makers do not mix.
    maker: str
    #: SHA-256 over all parts.
    seal: str

    @property
    def key(self) -> str:
        return manifest_key(self.shard, self.sequence)

    @property
    def span(self) -> dict[str, Any]:
        """Filter that finds the parts."""
        prefix = f"{self.key}:{self.maker}:"
        return {"_id": {"$gte": prefix, "$lt": f"{self.key}:{self.maker};"}}


def manifest_key(shard: str, sequence: int) -> str:
    """The `_id` of a manifest, and what its parts' `_id`s begin with."""
    return f"{shard}:{sequence:016d}"


def manifest_to_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as MongoDB keeps it."""
    fields = {name: getattr(manifest, name) for name in Manifest.__slots__ if name not in _KEYED}
    return {"_id": manifest.key, **fields}


_KEYED = frozenset({"shard", "sequence"})


def manifest_from_document(document: dict[str, Any]) -> Manifest:
    """The inverse of `manifest_to_document`."""
    shard, _, sequence = document["_id"].rpartition(":")
    found = ((name, document[name]) for name in Manifest.__slots__ if name not in _KEYED)
    fields: dict[str, Any] = {n: int(value) if isinstance(value, int) else value for n, value in found}
    return Manifest(shard=shard, sequence=int(sequence), **fields)


class JournalStore(Protocol):
    """Where blocks go. Every read is a majority read."""

    async def insert(self, block: Block) -> None:
        """Returns once a majority has the block. Raises OutcomeUnknown for every other answer, a taken
        `_id` included.
        """

    async def insert_all(self, blocks: Sequence[Block]) -> None:
        """Several that follow each other, one after the other: none is tried unless the one before it was
        taken. Returns once a majority has all. Raises OutcomeUnknown for every other answer; any number of
        the first may be there then, or come there yet.
        """

    async def find(self, shard: str, sequence: int) -> Block | None:
        """The block at a sequence, None when a majority has none. Raises OutcomeUnknown."""

    def read(self, shard: str, after: int) -> AsyncIterator[Block]:
        """Blocks above `after` in order of sequence. Raises OutcomeUnknown."""

    async def above(self, shard: str, sequence: int) -> bool:
        """Whether any block stands above, or a snapshot at or above, seen in the causal session of this
        store's own writes. Raises OutcomeUnknown.
        """

    async def manifests(self, shard: str) -> list[Manifest]:
        """The shard's snapshots, newest first. Raises OutcomeUnknown."""

    def parts(self, manifest: Manifest) -> AsyncIterator[bytes]:
        """The parts of a snapshot that are there, in order. Raises OutcomeUnknown."""

    async def probe(self, shard: str, router: str) -> None:
        """Writes something of the candidate's own beside the journal; returns once a majority has it. Raises
        OutcomeUnknown.
        """

    async def keep_orphans(self, blocks: Sequence[Block]) -> None:
        """Puts blocks aside that were told and met another epoch, but for those that the journal has after
        all. Raises OutcomeUnknown.
        """

    async def now_ms(self) -> int:
        """The database's time, real milliseconds since 1970. Raises OutcomeUnknown."""

    async def close(self) -> None:
        """Ends the session; a later use begins another."""


class MongoJournal:
    """Blocks in a MongoDB replica set."""

    def __init__(
        self, database: AsyncDatabase[dict[str, Any]], *, answer_seconds: float = ANSWER_SECONDS_MAX
    ) -> None:
        """Every question, every batch of a longer reading, has `answer_seconds` (real) to be answered."""
        self._database = database
        self._answer_seconds = answer_seconds
        self._blocks = database.get_collection(
            COLLECTION,
            write_concern=WriteConcern(w="majority", j=True),
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )
        majority = ReadConcern("majority")
        self._manifests = database.get_collection(SNAPSHOTS, read_concern=majority)
        self._parts = database.get_collection(SNAPSHOT_PARTS, read_concern=majority)
        self._probes = database.get_collection(PROBES, write_concern=WriteConcern(w="majority", j=True))
        self._orphans = database.get_collection(ORPHANS, write_concern=WriteConcern(w="majority", j=True))
        self._session: AsyncClientSession | None = None

    def _causal(self) -> AsyncClientSession:
        if self._session is None:
            self._session = self._database.client.start_session(causal_consistency=True)
        return self._session

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """One question to the database. Raises OutcomeUnknown for every error and when it takes too long."""
        try:
            # Not the driver's own timeout: with that it asks again and again until the time is over, and an
            # outage would be heard of only then.
            async with asyncio.timeout(self._answer_seconds):
                yield
        except TimeoutError:
            raise OutcomeUnknown(f"no answer within {self._answer_seconds} s") from None
        except PyMongoError as error:
            raise OutcomeUnknown(str(error)) from error

    async def insert(self, block: Block) -> None:
        try:
            async with self._answering():
                try:
                    await self._blocks.insert_one(to_document(block), session=self._causal())
                    return
                except DuplicateKeyError:
                    pass
        except OutcomeUnknown:
            await self.close()
            raise
        raise OutcomeUnknown(f"{block.key} is taken")

    async def insert_all(self, blocks: Sequence[Block]) -> None:
        try:
            async with self._answering():
                documents = [to_document(block) for block in blocks]
                # Ordered: the primary stops at the first that it cannot take, and a retry goes on there.
                await self._blocks.insert_many(documents, ordered=True, session=self._causal())
        except OutcomeUnknown:
            await self.close()
            raise

    async def find(self, shard: str, sequence: int) -> Block | None:
        async with self._answering():
            document = await self._blocks.find_one({"_id": block_key(shard, sequence)})
        return None if document is None else from_document(document)

    async def read(self, shard: str, after: int) -> AsyncIterator[Block]:
        span = {"_id": {"$gt": block_key(shard, after), "$lt": end_of(shard)}}
        blocks = self._blocks.find(span).sort("_id", 1).batch_size(READ_BATCH_BLOCKS)
        async for document in self._documents(blocks):
            yield from_document(document)

    async def _documents(self, cursor: AsyncCursor[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        """All of a cursor, a few at a time: whoever reads may take its time between them."""
        full = True
        while full:
            async with self._answering():
                batch = await cursor.to_list(READ_AT_ONCE)
            full = len(batch) == READ_AT_ONCE
            for document in batch:
                yield document

    async def above(self, shard: str, sequence: int) -> bool:
        blocks = {"_id": {"$gt": block_key(shard, sequence), "$lt": end_of(shard)}}
        snapshots = {"_id": {"$gte": manifest_key(shard, sequence), "$lt": end_of(shard)}}
        session = self._causal()
        async with self._answering():
            if await self._blocks.find_one(blocks, {"_id": 1}, session=session) is not None:
                return True
            return await self._manifests.find_one(snapshots, {"_id": 1}, session=session) is not None

    async def manifests(self, shard: str) -> list[Manifest]:
        span = {"_id": {"$gt": f"{shard}:", "$lt": end_of(shard)}}
        async with self._answering():
            found = await self._manifests.find(span).sort("_id", -1).to_list()
        return [manifest_from_document(document) for document in found]

    async def parts(self, manifest: Manifest) -> AsyncIterator[bytes]:
        parts = self._parts.find(manifest.span).sort("_id", 1).batch_size(READ_BATCH_PARTS)
        async for document in self._documents(parts):
            yield bytes(document["body"])

    async def probe(self, shard: str, router: str) -> None:
        async with self._answering():
            # Always another value: an update that changes nothing proves nothing.
            await self._probes.update_one(
                {"_id": f"{shard}:{router}"}, {"$set": {"nonce": secrets.token_hex(8)}}, upsert=True
            )

    async def keep_orphans(self, blocks: Sequence[Block]) -> None:
        async with self._answering():
            await self._orphans.create_index("kept_time", expireAfterSeconds=ORPHANS_SECONDS)
        for block in blocks:
            found = await self.find(block.shard, block.sequence)
            if found is not None and found.nonce == block.nonce:
                continue
            document = orphan_document(block, datetime.now(UTC))
            async with self._answering():
                await self._orphans.replace_one({"_id": document["_id"]}, document, upsert=True)

    async def now_ms(self) -> int:
        async with self._answering():
            hello = await self._database.client.admin.command("hello")
        return int(hello["localTime"].timestamp() * 1000)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.end_session()
            self._session = None


class ChainReader:
    """Checks that blocks follow one another while they are read."""

    def __init__(self, sequence: int = 0, nonce: str = "") -> None:
        self.sequence = sequence
        self.nonce = nonce

    def accept(self, block: Block) -> None:
        """Takes the next block. Raises JournalGap when it is not the next or names another predecessor."""
        if block.sequence != self.sequence + 1 or (self.sequence and block.prev != self.nonce):
            raise JournalGap(
                f"{block.shard}: block {block.sequence} (prev {block.prev or 'none'}) does not follow block "
                f"{self.sequence} ({self.nonce or 'none'})"
            )
        self.sequence, self.nonce = block.sequence, block.nonce
